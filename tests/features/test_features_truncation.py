"""No feature sees the future, none needs more history than declared, and planted leaks are caught."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.errors import UsageError
from mlbot_core.features import (
    SettledSeries,
    build_features,
    build_panel,
    feature_set,
    known_at_check,
    truncation_check,
)
from mlbot_core.features import registry as r
from mlbot_core.timeframe import HOUR_MS, Market

CORE = feature_set("core", 240)
HOURLY = Market.parse("BTC-1h")


def core(panel: pd.DataFrame) -> pd.DataFrame:
    return build_features(panel, CORE)


@pytest.mark.parametrize("gap_share", [0.0, 0.05])
def test_every_feature_on_synthetic_data(make_panel: Callable[..., pd.DataFrame], gap_share: float) -> None:
    panel = make_panel(1300, seed=21, gap_share=gap_share)
    cuts = np.random.default_rng(22).integers(0, len(panel), 15)
    result = truncation_check(core, panel, cuts, lookback=CORE.lookback)
    assert result.passed, result.violations[:5]
    assert result.start_bit_equal is True
    assert result.cuts > 15


@pytest.mark.archive
def test_every_feature_on_recorded_data(archive_panel: pd.DataFrame) -> None:
    """Two stretches: the start, where the daily series begin late, and the end."""
    for part in (archive_panel.iloc[:2500], archive_panel.iloc[-1500:]):
        cuts = np.random.default_rng(23).integers(0, len(part), 8)
        result = truncation_check(core, part, cuts, lookback=CORE.lookback)
        assert result.passed, result.violations[:5]
        assert result.start_bit_equal is True


@pytest.mark.archive
def test_every_feature_forgets_what_was_not_known(archive_inputs: dict[str, SettledSeries]) -> None:
    """Cut in known_at through the daily joins, panel and features in one."""
    end = int(archive_inputs["price"].ts[-1]) + HOUR_MS
    start = end - 1100 * HOUR_MS
    cuts = start + np.random.default_rng(24).integers(0, 1100, 12) * HOUR_MS
    result = known_at_check(
        lambda known: core(build_panel(known, HOURLY, start, end, 5000)), archive_inputs, HOURLY, 5000, cuts
    )
    assert result.passed, result.violations[:5]


def test_a_late_bar_is_caught_in_known_at(make_inputs: Callable[..., dict[str, SettledSeries]]) -> None:
    inputs = make_inputs(60, seed=3)
    start = int(inputs["funding_rate"].ts[0])
    frame = inputs["price"].frame.copy()
    frame.loc[50, "known_at"] += 10 * HOUR_MS
    inputs["price"] = SettledSeries("price", inputs["price"].timeframe, frame)
    result = known_at_check(
        lambda known: build_panel(known, HOURLY, start, start + 60 * HOUR_MS, 5000),
        inputs,
        HOURLY,
        5000,
        [start + h * HOUR_MS for h in (49, 50, 51)],
    )
    assert {v.ts for v in result.violations} == {start + 50 * HOUR_MS}


LEAKS = {
    "centred rolling mean": lambda c: c.rolling(5, center=True).mean(),
    "global z-score": lambda c: (c - c.mean()) / c.std(),
    "back-fill": lambda c: c.where(np.arange(len(c)) % 3 == 0).bfill(),
    "negative shift": lambda c: c.shift(-1) / c,
    "rank over everything": lambda c: c.rank(pct=True),
    "interpolation": lambda c: c.where(np.arange(len(c)) % 4 == 0).interpolate(),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_planted_leaks_are_caught(make_panel: Callable[..., pd.DataFrame], leak: str) -> None:
    panel = make_panel(400, seed=31)

    def build(piece: pd.DataFrame) -> pd.DataFrame:
        honest = np.log(piece["close"]).diff()
        return pd.DataFrame({"ts": piece["ts"], "honest": honest, "leaky": LEAKS[leak](piece["close"])})

    result = truncation_check(build, panel, [101, 203, 301])
    assert not result.passed
    assert result.columns == ("leaky",)
    first = result.violations[0]
    assert first.cut == "end"
    assert first.ts <= first.cut_ts


def test_a_lookback_that_is_declared_too_short_is_caught(make_panel: Callable[..., pd.DataFrame]) -> None:
    panel = make_panel(400, seed=32)

    def endless(piece: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"ts": piece["ts"], "ema": piece["close"].ewm(span=10, adjust=False).mean()})

    short = truncation_check(endless, panel, [200, 300], lookback=30)
    assert [v.cut for v in short.violations] == ["start", "start"]
    enough = truncation_check(endless, panel, [200, 300], lookback=120)
    assert enough.passed
    assert enough.start_bit_equal is False


def test_every_declared_lookback_suffices_and_is_not_padded(make_panel: Callable[..., pd.DataFrame]) -> None:
    """Each feature by itself: its lookback is enough, and one bar less is not."""
    panel = make_panel(700, seed=33)

    def last(f: r.Feature, bars: int) -> float:
        columns = {name: panel[name].to_numpy(np.float64)[-bars:].copy() for name in r.panel_inputs(f.name)}
        for name in r.dependency_order((f.name,)):
            columns[name] = r.node(name).values(*(columns[needed] for needed in r.node(name).inputs))
        return float(columns[f.name][-1])

    for f in CORE.features:
        lookback = r.total_lookback(f.name)
        assert np.isfinite(last(f, 700)), f.name
        assert last(f, lookback + 1) == last(f, 700), f.name
        if lookback:
            assert last(f, lookback) != last(f, 700), f.name


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), start=st.integers(1, 900), gaps=st.sampled_from([0.0, 0.05]))
def test_no_value_depends_on_where_the_panel_starts(
    make_panel: Callable[..., pd.DataFrame], seed: int, start: int, gaps: float
) -> None:
    """Started anywhere, a row is either the same bit for bit or missing for want of history."""
    panel = make_panel(1000, seed=seed % 7, gap_share=gaps)
    full, piece = (core(p)[list(CORE.names)].to_numpy() for p in (panel, panel.iloc[start:].reset_index(drop=True)))
    there = ~np.isnan(piece)
    np.testing.assert_array_equal(piece[there], full[start:][there])
    assert (np.isnan(piece) == np.isnan(full[start:]))[CORE.lookback :].all()


def test_a_check_that_compared_nothing_has_not_passed(make_panel: Callable[..., pd.DataFrame]) -> None:
    assert not truncation_check(core, make_panel(10, seed=1), []).passed


def test_wrong_use_is_refused(make_panel: Callable[..., pd.DataFrame]) -> None:
    panel = make_panel(10, seed=1)
    with pytest.raises(UsageError, match="outside the panel"):
        truncation_check(core, panel, [10])
    with pytest.raises(UsageError, match="timeframe_ms"):
        truncation_check(core, panel, [5], labels={"t1": ("label",)})
    with pytest.raises(UsageError, match="one row for each row"):
        truncation_check(lambda piece: core(piece).iloc[1:], panel, [5])
    with pytest.raises(UsageError, match="not in what was built"):
        known_at_check(lambda known: build_panel(known, HOURLY, 0, HOUR_MS, 0), {}, HOURLY, 0, [7 * HOUR_MS])
