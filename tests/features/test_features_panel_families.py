"""The families beside plain price bars: no look-ahead, exact lookbacks, nothing infinite, absent series."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import pytest

from mlbot_core.features import SettledSeries, build_features, build_panel, known_at_check, truncation_check
from mlbot_core.features import registry as r
from mlbot_core.features.inputs import series_needed, series_of, servable
from mlbot_core.market import CATALOGUE
from mlbot_core.timeframe import HOUR_MS, Market

FAMILIES = frozenset(
    {"basis", "context", "cross_timeframe", "crowding", "depth", "funding", "open_interest", "orderflow", "regime"}
    | {"sessions", "calendar", "derivatives", "flow", "positioning"}
)
WIDE = r.make_feature_set("wide", tuple(f for f in r.all_features() if f.family in FAMILIES), 240)
build = partial(build_features, feature_set=WIDE)
HOURLY = Market.parse("BTC-1h")
MakePanel = Callable[..., pd.DataFrame]
MakeInputs = Callable[..., dict[str, SettledSeries]]


def check(panel: pd.DataFrame, seed: int, cuts: int) -> None:
    rng = np.random.default_rng(seed)
    late = rng.integers(WIDE.lookback, len(panel), cuts // 2)
    result = truncation_check(build, panel, [*rng.integers(0, len(panel), cuts // 2), *late], lookback=WIDE.lookback)
    assert result.passed, result.violations[:5]
    assert result.start_bit_equal is True
    assert result.cuts >= cuts + cuts // 2


@pytest.mark.parametrize(("timeframe", "gap_share"), [("1h", 0.05), ("4h", 0.0)])
def test_no_family_sees_the_future(make_full_panel: MakePanel, timeframe: str, gap_share: float) -> None:
    check(make_full_panel(1200, seed=71, gap_share=gap_share, timeframe=timeframe), seed=72, cuts=12)


@pytest.mark.slow
@pytest.mark.parametrize("timeframe", ["30m", "1h", "2h", "4h"])
def test_no_family_sees_the_future_at_200_cuts(make_full_panel: MakePanel, timeframe: str) -> None:
    check(make_full_panel(2000, seed=73, gap_share=0.01, timeframe=timeframe), seed=74, cuts=200)


@pytest.mark.archive
def test_no_family_sees_the_future_on_recorded_data(archive_panel: pd.DataFrame) -> None:
    check(archive_panel.iloc[-1400:].reset_index(drop=True), seed=75, cuts=8)


def test_every_family_forgets_what_was_not_known(make_full_inputs: MakeInputs) -> None:
    """Panel and features in one, cut in known_at, with daily, lagging and sparse series among the inputs."""
    inputs = make_full_inputs(900, seed=76)
    start = int(inputs["price"].ts[0])
    cuts = start + np.random.default_rng(77).integers(0, 900, 10) * HOUR_MS
    result = known_at_check(
        lambda known: build(build_panel(known, HOURLY, start, start + 900 * HOUR_MS, 5000)),
        inputs, HOURLY, 5000, cuts,
    )  # fmt: skip
    assert result.passed, result.violations[:5]


def test_declared_lookbacks_suffice_and_are_not_padded(
    make_full_panel: MakePanel, raw_values: Callable[[pd.DataFrame, str], np.ndarray]
) -> None:
    """One bar less changes or loses the value, at some of the last rows at least: ranks and runs may stay by chance."""
    panel = make_full_panel(900, seed=78)
    for f in WIDE.features:
        lookback = r.total_lookback(f.name)
        full = raw_values(panel, f.name)
        changed = not lookback
        for row in (899, 888, 861, 850, 791):
            enough = raw_values(panel.iloc[row - lookback : row + 1].reset_index(drop=True), f.name)[-1]
            assert np.isfinite(full[row]), f.name
            assert enough == full[row], f.name
            if not changed:
                short = raw_values(panel.iloc[row - lookback + 1 : row + 1].reset_index(drop=True), f.name)
                changed = short[-1] != full[row]
        assert changed, f.name


def test_rows_computed_alone_equal_the_batch_bit_for_bit(make_full_panel: MakePanel) -> None:
    panel = make_full_panel(1100, seed=79, gap_share=0.01)
    batch = build(panel)
    for row in range(1100 - 1, WIDE.lookback, -57):
        alone = build(panel.iloc[row - WIDE.lookback : row + 1].reset_index(drop=True)).iloc[-1]
        np.testing.assert_array_equal(alone.to_numpy(), batch.iloc[row].to_numpy())


def test_nothing_is_infinite_and_most_is_there(make_full_panel: MakePanel) -> None:
    for gap_share, least in ((0.0, 1.0), (0.002, 0.9)):
        built = build(make_full_panel(1300, seed=80, gap_share=gap_share)).iloc[WIDE.lookback :, 1:]
        assert not np.isinf(built.to_numpy()).any()
        assert np.isfinite(built.to_numpy()).mean() >= least


def test_an_absent_series_empties_its_own_features_only(make_full_inputs: MakeInputs) -> None:
    inputs = make_full_inputs(900, seed=81)
    served = [name for name in inputs if name not in {"order_book", "etf_flows", "top_position_ratio", "mark_price"}]
    start = int(inputs["price"].ts[0])

    def of(names: list[str]) -> pd.DataFrame:
        chosen = {name: inputs[name] for name in names}
        return build(build_panel(chosen, HOURLY, start, start + 900 * HOUR_MS, 5000))

    full, fewer = of(list(inputs)), of(served)
    there = set(servable(WIDE, served))
    assert 0 < len(there) < len(WIDE.names)
    for name in WIDE.names:
        if name in there:
            np.testing.assert_array_equal(fewer[name].to_numpy(), full[name].to_numpy(), err_msg=name)
        else:
            assert fewer[name].isna().all(), name


def test_needed_series() -> None:
    assert series_of("to_funding") == frozenset()
    assert series_of("depth_to_liq_24") == {"liquidations", "order_book_aggregated"}
    assert series_of("top_crowd_spread") == {"top_position_ratio", "long_short_ratio"}
    assert set(series_needed(WIDE)) == set(CATALOGUE)
    small = r.make_feature_set("small", tuple(f for f in r.all_features() if f.name == "whale_level"), 240)
    assert series_needed(small) == ("price", "whale_index")


def test_the_wide_families_hold_enough_described_columns() -> None:
    assert len(WIDE.names) >= 180
    for f in WIDE.features:
        assert len(f.definition) > 10
        assert f.unit
        assert f.source
        assert r.total_lookback(f.name) <= 600, f.name
