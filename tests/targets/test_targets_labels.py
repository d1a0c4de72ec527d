"""Triple barrier and forward return: by hand, against a slow reference, and with what is missing."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.config import TargetConfig
from mlbot_core.errors import BadDataError
from mlbot_core.targets import (
    TARGET_COLUMNS,
    average_uniqueness,
    build_targets,
    label_overlap,
    trailing_sigma,
    triple_barrier,
    volatility_adjusted_return,
)
from mlbot_core.timeframe import HOUR_MS, Market

HOURLY = Market.parse("BTC-1h")
CONFIG = TargetConfig(volatility_window=20, horizon=6, barrier_width=1.0)
NAN = math.nan


def bars(*rows: tuple[float, float, float, float]) -> list[np.ndarray]:
    return [np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)]


ENTRY = (100.0, 100.0, 100.0, 100.0)
UP, DOWN = 100 * math.exp(0.05), 100 * math.exp(-0.05)


@pytest.mark.parametrize(
    ("following", "label", "touch", "result"),
    [
        ([(100, 106, 99, 104)], 1.0, 1, 0.05),
        ([(100, 101, 94, 96)], -1.0, 1, -0.05),
        ([(100, 102, 98, 101), (101, 103, 99, 103), (103, 104, 102, 104)], 0.0, 3, math.log(1.04)),
        ([(100, 102, 98, 101), (101, 103, 90, 103)], -1.0, 2, -0.05),
        ([(100, 110, 90, 103)], 0.0, 1, math.log(1.03)),  # both in one bar: the order is not known
        ([(107, 108, 106, 107)], 1.0, 1, math.log(1.07)),  # opened beyond the barrier: that was the price to be had
        ([(93, 94, 92, 93)], -1.0, 1, math.log(0.93)),
        ([(100, UP, 100, 101)], 1.0, 1, 0.05),  # reaching it is touching it
        ([(100, 101, DOWN, 100)], -1.0, 1, -0.05),
        ([(100, 102, 98, 101), (100, 101, 99, 100)], NAN, -1, NAN),  # the horizon has not closed yet
        ([(100, 102, 98, 101), (NAN, NAN, NAN, NAN), (100, 120, 99, 110)], NAN, -1, NAN),  # a bar it needs is missing
        ([(100, 106, 99, 104), (NAN, NAN, NAN, NAN)], 1.0, 1, 0.05),  # decided before the gap
    ],
)
def test_triple_barrier_by_hand(
    following: list[tuple[float, float, float, float]], label: float, touch: int, result: float
) -> None:
    prices = bars(ENTRY, *following)
    got = triple_barrier(*prices, np.full(len(following) + 1, 0.05), 3)
    np.testing.assert_equal(got[0][0], label)
    assert got[1][0] == touch
    np.testing.assert_allclose(got[2][0], result)


@pytest.mark.parametrize("width", [NAN, 0.0, -0.1, math.inf])
def test_no_barrier_no_label(width: float) -> None:
    label, touch, result = triple_barrier(*bars(ENTRY, (100, 110, 90, 100)), np.full(2, width), 1)
    assert np.isnan(label).all()
    assert (touch == -1).all()
    assert np.isnan(result).all()


def reference(panel: pd.DataFrame, width: np.ndarray, horizon: int, i: int) -> tuple[float, int, float]:
    """The definition, read aloud."""
    if not (panel["close"][i] > 0 and width[i] > 0):
        return NAN, -1, NAN
    entry = panel["close"][i]
    for j in range(i + 1, i + horizon + 1):
        if j >= len(panel) or panel.loc[j, ["open", "high", "low", "close"]].isna().any():
            return NAN, -1, NAN
        up = panel["high"][j] >= entry * math.exp(width[i])
        down = panel["low"][j] <= entry * math.exp(-width[i])
        at_close = math.log(panel["close"][j] / entry)
        at_open = math.log(panel["open"][j] / entry)
        if up and down:
            return 0.0, j, at_close
        if up:
            return 1.0, j, max(width[i], at_open)
        if down:
            return -1.0, j, min(-width[i], at_open)
    return 0.0, i + horizon, at_close


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    horizon=st.integers(1, 8),
    width=st.floats(0.002, 0.04),
    gaps=st.sampled_from([0.0, 0.05]),
    grid=st.sampled_from([0.0, 50.0]),
)
def test_triple_barrier_equals_the_slow_reference(
    price_panel, seed: int, horizon: int, width: float, gaps: float, grid: float
) -> None:
    panel = price_panel(50, seed, gaps, grid)
    widths = np.full(50, width)
    prices = [panel[name].to_numpy() for name in ("open", "high", "low", "close")]
    label, touch, result = triple_barrier(*prices, widths, horizon)
    want = [reference(panel, widths, horizon, i) for i in range(50)]
    np.testing.assert_array_equal(label, [w[0] for w in want])
    np.testing.assert_array_equal(touch, [w[1] for w in want])
    np.testing.assert_allclose(result, [w[2] for w in want], rtol=1e-9, atol=1e-12)


def test_every_column_says_what_it_should(price_panel) -> None:
    panel = price_panel(300, seed=1)
    out = build_targets(panel, HOURLY, CONFIG)
    assert list(out.columns) == list(TARGET_COLUMNS)
    assert {n for n in out if out[n].dtype == np.int64} == {"ts", "t0", "tb_t1", "var_t1"}
    np.testing.assert_array_equal(out["t0"], panel["ts"] + HOUR_MS)
    log_close = np.log(panel["close"])
    sigma = log_close.diff().rolling(20).std()
    np.testing.assert_allclose(out["sigma"][20:], sigma[20:], rtol=1e-9)
    assert out["sigma"][:20].isna().all()
    np.testing.assert_allclose(out["tb_width"][20:], sigma[20:] * math.sqrt(6), rtol=1e-9)
    forward = (log_close.shift(-6) - log_close) / (sigma * math.sqrt(6))
    np.testing.assert_allclose(out["var_ret"], forward, rtol=1e-9)
    known = out["tb_t1"] >= 0
    assert set(out.loc[known, "tb_label"]) == {-1.0, 0.0, 1.0}
    assert (out.loc[~known, ["tb_label", "tb_ret"]].isna()).all(axis=None)
    assert (out.loc[~known, "tb_t1"] == -1).all()
    span = out.loc[known, "tb_t1"] - out.loc[known, "t0"]
    assert span.between(HOUR_MS, 6 * HOUR_MS).all()
    assert ((out["var_t1"] - out["t0"])[out["var_t1"] >= 0] == 6 * HOUR_MS).all()
    np.testing.assert_array_equal(
        np.sign(out.loc[known & (out["tb_label"] != 0), "tb_ret"]), out.loc[known & (out["tb_label"] != 0), "tb_label"]
    )


def test_wider_barriers_are_touched_less(price_panel) -> None:
    panel = price_panel(1000, seed=2)
    shares = [
        (build_targets(panel, HOURLY, CONFIG.model_copy(update={"barrier_width": w}))["tb_label"] == 0).mean()
        for w in (0.5, 1.0, 2.0, 4.0)
    ]
    assert shares == sorted(shares)
    assert shares[-1] > shares[0]


def test_an_irregular_panel_is_refused(price_panel) -> None:
    with pytest.raises(BadDataError, match="not a regular grid"):
        build_targets(price_panel(50, seed=1).drop(index=7), HOURLY, CONFIG)
    with pytest.raises(BadDataError, match="BTC-2h"):
        build_targets(price_panel(50, seed=1), Market.parse("BTC-2h"), CONFIG)


def test_empty_and_short_panels_have_no_labels(price_panel) -> None:
    panel = price_panel(30, seed=1)
    assert len(build_targets(panel.iloc[:0], HOURLY, CONFIG)) == 0
    short = build_targets(panel.iloc[:10], HOURLY, CONFIG)
    assert (short["tb_t1"] == -1).all()
    assert (short["var_t1"] == -1).all()


def test_forward_return_needs_only_its_two_closes() -> None:
    close = np.array([100.0, NAN, 110.0, 121.0])
    value, end = volatility_adjusted_return(close, np.full(4, 0.1), 2)
    np.testing.assert_allclose(value, [math.log(1.1) / (0.1 * math.sqrt(2)), NAN, NAN, NAN])
    assert end.tolist() == [2, -1, -1, -1]


def test_a_still_market_has_no_unit_to_measure_in() -> None:
    close = np.full(60, 100.0)
    sigma = trailing_sigma(close, 20)
    assert (sigma[20:] == 0).all()
    assert np.isnan(volatility_adjusted_return(close, sigma, 3)[0]).all()


def test_uniqueness_by_hand() -> None:
    """Lopez de Prado's picture: two labels share a bar, one stands alone, one is unknown."""
    t0 = np.array([0, 2, 10, 20]) * HOUR_MS
    t1 = np.array([3, 4, 12, -1]) * HOUR_MS
    t1[3] = -1
    np.testing.assert_allclose(average_uniqueness(t0, t1, HOUR_MS), [(1 + 1 + 0.5) / 3, (0.5 + 1) / 2, 1.0, NAN])
    assert average_uniqueness(t0[:0], t1[:0], HOUR_MS).tolist() == []
    assert np.isnan(average_uniqueness(t0, np.full(4, -1), HOUR_MS)).all()
    assert label_overlap(t0, t1, HOUR_MS) == pytest.approx(3 / (2.5 / 3 + 0.75 + 1.0))
    assert label_overlap(t0, np.full(4, -1), HOUR_MS) == label_overlap(t0[:0], t1[:0], HOUR_MS) == 1.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), min_size=1, max_size=25))
def test_uniqueness_equals_counting(spans: list[tuple[int, int]]) -> None:
    """A length of 0 stands for an unknown label."""
    t0 = np.array([s for s, _ in spans], dtype=np.int64) * HOUR_MS
    t1 = np.array([(s + n) * HOUR_MS if n else -1 for s, n in spans], dtype=np.int64)
    alive = [sum(s <= b < s + n for s, n in spans) for b in range(40)]
    want = [np.mean([1 / alive[b] for b in range(s, s + n)]) if n else NAN for s, n in spans]
    got = average_uniqueness(t0, t1, HOUR_MS)
    np.testing.assert_allclose(got, want)
    # every bar that somebody watches is shared out exactly once
    assert np.nansum(got * (t1 - t0) / HOUR_MS) == pytest.approx(sum(a > 0 for a in alive))
