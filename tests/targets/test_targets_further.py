"""Further barriers and horizons, the meta-label, and sample weights: by hand, against slow references, cut anywhere."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.config import BarrierConfig, TargetConfig, load_settings
from mlbot_core.errors import BadDataError, UsageError
from mlbot_core.features import truncation_check
from mlbot_core.targets import (
    META_LABELS,
    TARGET_COLUMNS,
    average_uniqueness,
    build_meta_targets,
    build_targets,
    class_balance,
    describe_targets,
    meta_label,
    sample_weights,
    target_columns,
    target_labels,
    target_lookback,
    time_decay,
)
from mlbot_core.timeframe import HOUR_MS, Market

HOURLY = Market.parse("BTC-1h")
MAIN = TargetConfig(volatility_window=20, horizon=6, barrier_width=1.0)
RICH = TargetConfig(
    volatility_window=20,
    horizon=6,
    barrier_width=1.0,
    barriers={"fast": BarrierConfig(horizon=2, width=0.7), "slow": BarrierConfig(horizon=15, width=2.0)},
    horizons=[1, 10],
)
NAN = math.nan


def test_the_main_columns_are_untouched_by_further_ones(price_panel) -> None:
    panel = price_panel(300, seed=1, gap_share=0.02)
    rich = build_targets(panel, HOURLY, RICH)
    pd.testing.assert_frame_equal(rich[list(TARGET_COLUMNS)], build_targets(panel, HOURLY, MAIN))
    assert tuple(rich.columns) == target_columns(RICH)
    assert target_columns(MAIN) == TARGET_COLUMNS
    assert RICH.reach == 15
    assert MAIN.reach == 6


def test_each_further_label_is_what_it_would_be_alone(price_panel) -> None:
    panel = price_panel(300, seed=2, gap_share=0.02)
    rich = build_targets(panel, HOURLY, RICH)
    for name, barrier in RICH.barriers.items():
        update = {"horizon": barrier.horizon, "barrier_width": barrier.width}
        alone = build_targets(panel, HOURLY, MAIN.model_copy(update=update))
        for column in ("tb_label", "tb_t1", "tb_ret", "tb_width"):
            np.testing.assert_array_equal(rich[f"{column}_{name}"], alone[column])
    for horizon in RICH.horizons:
        alone = build_targets(panel, HOURLY, MAIN.model_copy(update={"horizon": horizon}))
        np.testing.assert_array_equal(rich[f"var_ret_{horizon}"], alone["var_ret"])
        np.testing.assert_array_equal(rich[f"var_t1_{horizon}"], alone["var_t1"])


def test_columns_are_described_with_their_types(price_panel) -> None:
    built = build_targets(price_panel(60, seed=3), HOURLY, RICH)
    rows = describe_targets(RICH)
    assert [row["name"] for row in rows] == list(built.columns)
    assert {row["name"]: row["type"] for row in rows} == {name: str(built[name].dtype) for name in built}
    assert all(row["definition"] for row in rows)
    timed = {name for time, names in target_labels(RICH).items() for name in (time, *names)}
    assert timed == {n for n in built if n.startswith(("tb_label", "tb_t1", "tb_ret", "var_"))}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), gaps=st.sampled_from([0.0, 0.03]))
def test_every_further_target_is_final_when_it_is_known(price_panel, seed: int, gaps: float) -> None:
    panel = price_panel(220, seed, gaps)
    cuts = np.random.default_rng(seed).integers(0, 220, 10)
    result = truncation_check(
        lambda piece: build_targets(piece, HOURLY, RICH),
        panel,
        cuts,
        lookback=target_lookback(RICH),
        labels=target_labels(RICH),
        timeframe_ms=HOUR_MS,
    )
    assert result.passed, result.violations[:5]


def test_wrong_configurations_are_refused() -> None:
    base = {"volatility_window": 20, "horizon": 6, "barrier_width": 1.0}
    for wrong in (
        {"horizons": [4, 4]},
        {"horizons": [0]},
        {"barriers": {"Fast!": {"horizon": 4, "width": 1}}},
        {"barriers": {"fast": {"horizon": 4, "width": 0}}},
    ):
        with pytest.raises(ValueError, match=r"horizons|barriers"):
            TargetConfig.model_validate({**base, **wrong})


UP, DOWN = 100 * math.exp(0.05), 100 * math.exp(-0.05)
COST = 0.001


@pytest.mark.parametrize(
    ("side", "following", "label", "touch", "result"),
    [
        (1.0, [(100, 106, 99, 104)], 1.0, 1, UP / 100 - 1 - COST),
        (-1.0, [(100, 106, 99, 104)], 0.0, 1, 1 - UP / 100 - COST),
        (-1.0, [(100, 101, 94, 96)], 1.0, 1, 1 - DOWN / 100 - COST),
        (0.3, [(100, 101, 94, 96)], 0.0, 1, DOWN / 100 - 1 - COST),
        (1.0, [(100, 110, 90, 104)], 0.0, 1, DOWN / 100 - 1 - COST),  # both in one bar: the stop came first
        (-1.0, [(100, 110, 90, 96)], 0.0, 1, 1 - UP / 100 - COST),
        (1.0, [(107, 108, 106, 107)], 1.0, 1, 0.07 - COST),  # opened beyond the barrier
        (-1.0, [(107, 108, 106, 107)], 0.0, 1, -0.07 - COST),
        (1.0, [(100, 101, 99, 100.05)] * 3, 0.0, 3, 0.0005 - COST),  # right about the side, and poorer for it
        (1.0, [(100, 101, 99, 100.2)] * 3, 1.0, 3, 0.002 - COST),
        (0.0, [(100, 106, 99, 104)], NAN, -1, NAN),
        (NAN, [(100, 106, 99, 104)], NAN, -1, NAN),
        (1.0, [(100, 101, 99, 100)] * 2, NAN, -1, NAN),  # the time limit has not come yet
        (1.0, [(100, 101, 99, 100), (NAN,) * 4, (100, 120, 99, 110)], NAN, -1, NAN),
    ],
)
def test_meta_label_by_hand(side: float, following: list, label: float, touch: int, result: float) -> None:
    rows = [(100.0,) * 4, *following]
    prices = [np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)]
    width = np.full(len(rows), 0.05)
    sides = np.full(len(rows), NAN)
    sides[0] = side
    got = meta_label(*prices, sides, width, width, 3, COST)
    np.testing.assert_equal(got[0][0], label)
    assert got[1][0] == touch
    np.testing.assert_allclose(got[2][0], result, rtol=1e-12)


def slow_meta(panel: pd.DataFrame, side: float, profit: float, stop: float, horizon: int, i: int) -> tuple:
    """The trade, told bar by bar."""
    entry = panel["close"][i]
    if not entry > 0 or side == 0:
        return NAN, -1
    for j in range(i + 1, i + horizon + 1):
        if j >= len(panel) or panel.loc[j, ["open", "high", "low", "close"]].isna().any():
            return NAN, -1
        worst, best = ("low", "high") if side > 0 else ("high", "low")
        loss = side * math.log(panel[worst][j] / entry)
        gain = side * math.log(panel[best][j] / entry)
        opened = side * math.log(panel["open"][j] / entry)
        if loss <= -stop:
            return side * (math.exp(side * min(-stop, opened)) - 1), j
        if gain >= profit:
            return side * (math.exp(side * max(profit, opened)) - 1), j
    return side * (panel["close"][i + horizon] / entry - 1), i + horizon


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    horizon=st.integers(1, 8),
    profit=st.floats(0.003, 0.04),
    stop=st.floats(0.003, 0.04),
    gaps=st.sampled_from([0.0, 0.05]),
)
def test_meta_label_equals_the_slow_reference(
    price_panel, seed: int, horizon: int, profit: float, stop: float, gaps: float
) -> None:
    panel = price_panel(40, seed, gaps)
    side = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], 40)
    prices = [panel[name].to_numpy() for name in ("open", "high", "low", "close")]
    label, touch, result = meta_label(*prices, side, np.full(40, profit), np.full(40, stop), horizon, 0.0)
    want = [slow_meta(panel, side[i], profit, stop, horizon, i) for i in range(40)]
    np.testing.assert_array_equal(touch, [w[1] for w in want])
    np.testing.assert_allclose(result, [w[0] for w in want], rtol=1e-9, atol=1e-12)
    known = touch >= 0
    np.testing.assert_array_equal(label[known], (result[known] > 0).astype(float))


def test_meta_label_agrees_with_the_barriers_it_follows(price_panel) -> None:
    """Without costs, a side that knows the label makes money; the opposite side loses it."""
    panel = price_panel(400, seed=5)
    targets = build_targets(panel, HOURLY, MAIN)
    label = targets["tb_label"].to_numpy()
    for sign, expected in ((1.0, 1.0), (-1.0, 0.0)):
        meta = build_meta_targets(panel, HOURLY, sign * label, targets["tb_width"], MAIN.horizon, 0.0)
        decided = np.isfinite(meta["meta_label"])
        assert decided.sum() > 100
        assert (meta.loc[decided, "meta_label"] == expected).all()
        np.testing.assert_array_equal(meta.loc[decided, "meta_t1"], targets.loc[decided, "tb_t1"])


def test_costs_turn_small_gains_into_losses(price_panel) -> None:
    panel = price_panel(400, seed=6)
    width = np.full(400, 0.01)
    shares = [
        build_meta_targets(panel, HOURLY, np.ones(400), width, 6, cost)["meta_label"].mean()
        for cost in (0.0, 0.002, 0.02)
    ]
    assert shares[0] > shares[1] > shares[2] == 0.0


def test_the_meta_label_is_final_when_it_is_known(price_panel) -> None:
    panel = price_panel(200, seed=7, gap_share=0.02)
    panel["side"] = np.random.default_rng(7).choice([-1.0, 0.0, 1.0], 200)
    result = truncation_check(
        lambda piece: build_meta_targets(piece, HOURLY, piece["side"], np.full(len(piece), 0.01), 6, 0.001),
        panel,
        range(0, 200, 9),
        lookback=0,
        labels=META_LABELS,
        timeframe_ms=HOUR_MS,
    )
    assert result.passed, result.violations[:5]
    with pytest.raises(BadDataError, match="side has shape"):
        build_meta_targets(panel, HOURLY, [1.0], np.full(200, 0.01), 6, 0.001)


@pytest.mark.parametrize(
    ("oldest", "want"),
    [
        (1.0, [1.0, 1.0, 1.0, 1.0]),
        (0.0, [0.25, 0.5, 0.75, 1.0]),
        (0.5, [0.625, 0.75, 0.875, 1.0]),
        (-0.5, [0.0, 0.0, 0.5, 1.0]),
    ],
)
def test_time_decay_by_hand(oldest: float, want: list[float]) -> None:
    t0 = np.array([3, 0, 2, 1]) * HOUR_MS
    order = np.argsort(t0)
    got = time_decay(np.ones(4), t0, oldest)
    np.testing.assert_allclose(got[order], want)


def test_the_clock_of_the_decay_is_uniqueness_and_not_the_calendar() -> None:
    got = time_decay(np.array([0.5, 0.5, NAN, 1.0]), np.arange(4) * HOUR_MS, 0.0)
    np.testing.assert_allclose(got, [0.25, 0.5, NAN, 1.0])
    assert np.isnan(time_decay(np.full(3, NAN), np.arange(3), 0.5)).all()
    with pytest.raises(UsageError, match="above -1"):
        time_decay(np.ones(2), np.arange(2), -1.0)


@settings(max_examples=60, deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), min_size=1, max_size=25),
    oldest=st.floats(-0.9, 1.0),
)
def test_weights_are_uniqueness_and_decay_with_a_mean_of_one(spans: list, oldest: float) -> None:
    """A length of 0 stands for an unknown label."""
    t0 = np.array([s for s, _ in spans], dtype=np.int64) * HOUR_MS
    t1 = np.array([(s + k) * HOUR_MS if k else -1 for s, k in spans], dtype=np.int64)
    weights = sample_weights(t0, t1, HOUR_MS, oldest)
    known = t1 >= 0
    np.testing.assert_array_equal(np.isfinite(weights), known)
    if known.any():
        assert (weights[known] >= 0).all()
        assert weights[known].mean() == pytest.approx(1.0)
        unique = average_uniqueness(t0, t1, HOUR_MS)
        factor = weights[known] / unique[known]
        newest_first = np.argsort(-t0[known], kind="stable")
        if len(np.unique(t0[known])) == known.sum():
            assert (np.diff(factor[newest_first]) <= 1e-12).all(), "an older label never counts more for its age"


def test_class_balance_counts_known_labels_only() -> None:
    assert class_balance(np.array([1.0, NAN, 0.0, 1.0, -1.0]), {"down": -1.0, "up": 1.0}) == {"down": 0.25, "up": 0.5}
    assert class_balance(np.array([NAN]), {"up": 1.0}) == {"up": 0.0}


@pytest.mark.archive
@pytest.mark.slow
def test_the_shipped_targets_on_recorded_data_at_200_cuts(archive_dir: Path) -> None:
    """Bit for bit at the end once known, missing before; within 1e-9 relative at the start."""
    config = load_settings().models.targets
    frame = pd.read_parquet(archive_dir / "btcusdt_perp_1h.parquet")
    ts = frame["ts"].dt.as_unit("ms").astype("int64").to_numpy()
    panel = frame.drop(columns=["ts", "volume"]).reset_index(drop=True)
    panel.insert(0, "ts", ts)
    result = truncation_check(
        lambda piece: build_targets(piece, HOURLY, config),
        panel,
        np.random.default_rng(2).choice(len(panel), 200, replace=False),
        lookback=target_lookback(config),
        labels=target_labels(config),
        timeframe_ms=HOUR_MS,
        ahead=config.reach + 50,
    )
    assert result.passed, result.violations[:5]
    assert result.cuts >= 390
