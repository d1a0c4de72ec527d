"""Every feature of the full set at 200 random cuts, and the leaks that the same check must catch.

The cuts are made inside windows, so that their cost does not grow with the history: at the end of ``ts`` and in
``known_at`` bit for bit, at the start within 1e-9 relative of the value computed on everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import pytest

from mlbot_core.errors import UsageError
from mlbot_core.features import (
    SettledSeries,
    TruncationResult,
    build_features,
    build_panel,
    feature_set,
    known_at_windows,
    truncation_check,
)
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market

HOURLY = Market.parse("BTC-1h")
DELAY = 5_000
FULL = feature_set("full", 240)
AHEAD = 64
Inputs = Mapping[str, SettledSeries]


def full(panel: pd.DataFrame) -> pd.DataFrame:
    return build_features(panel, FULL)


def panel_of(inputs: Inputs, start_ms: int, end_ms: int) -> pd.DataFrame:
    return build_panel(inputs, HOURLY, start_ms, end_ms, DELAY)


def features_of(inputs: Inputs, start_ms: int, end_ms: int) -> pd.DataFrame:
    return full(panel_of(inputs, start_ms, end_ms))


def everything(inputs: Inputs) -> pd.DataFrame:
    ts = inputs["price"].ts
    return panel_of(inputs, int(ts[0]), int(ts[-1]) + HOUR_MS)


def check(inputs: Inputs, panel: pd.DataFrame, cuts: np.ndarray) -> tuple[TruncationResult, TruncationResult]:
    """Cut at the end and the start of the panel, and in what was known."""
    at_ends = truncation_check(full, panel, cuts, lookback=FULL.lookback, ahead=AHEAD)
    moments = panel["ts"].to_numpy()[cuts]
    known = known_at_windows(features_of, inputs, HOURLY, DELAY, moments, lookback=FULL.lookback, ahead=AHEAD)
    return at_ends, known


def test_the_full_set_at_a_few_cuts(make_full_inputs: Callable[..., dict[str, SettledSeries]]) -> None:
    inputs = make_full_inputs(FULL.lookback + 400, 41, 0.02)
    panel = everything(inputs)
    cuts = np.append(np.random.default_rng(41).integers(0, len(panel), 5), [FULL.lookback, len(panel) - 1])
    at_ends, known = check(inputs, panel, cuts)
    assert at_ends.passed, at_ends.violations[:5]
    assert known.passed, known.violations[:5]


@pytest.mark.slow
@pytest.mark.parametrize("gap_share", [0.0, 0.03])
def test_the_full_set_at_200_cuts_on_synthetic_data(
    make_full_inputs: Callable[..., dict[str, SettledSeries]], gap_share: float
) -> None:
    inputs = make_full_inputs(FULL.lookback + 2500, 42, gap_share)
    panel = everything(inputs)
    cuts = np.random.default_rng(42).choice(len(panel), 100, replace=False)
    at_ends, known = check(inputs, panel, cuts)
    assert at_ends.passed, at_ends.violations[:5]
    assert known.passed, known.violations[:5]
    assert (at_ends.cuts, known.cuts) >= (150, 100)


@pytest.mark.slow
@pytest.mark.archive
def test_the_full_set_at_200_cuts_on_recorded_data(
    archive_inputs: dict[str, SettledSeries], archive_panel: pd.DataFrame
) -> None:
    """The last 8,000 hours: before them are two months of warm-up and a long stretch of the same series."""
    panel = archive_panel.iloc[-8000:].reset_index(drop=True)
    cuts = np.random.default_rng(43).choice(len(panel), 200, replace=False)
    at_ends, known = check(archive_inputs, panel, cuts)
    assert at_ends.passed, at_ends.violations[:5]
    assert known.passed, known.violations[:5]
    assert (at_ends.cuts, known.cuts) >= (350, 200)


def centred(panel: pd.DataFrame) -> pd.Series:
    """A smoother that looks five bars ahead."""
    return panel["close"].rolling(11, center=True, min_periods=1).mean()


def globally_scaled(panel: pd.DataFrame) -> pd.Series:
    """A z-score over everything there is."""
    return (panel["close"] - panel["close"].mean()) / panel["close"].std()


def reads_far_ahead(panel: pd.DataFrame) -> pd.Series:
    """Beyond the window of the cut: seen by the comparison with the build on everything."""
    return panel["close"].shift(-3 * AHEAD).fillna(0.0)


@pytest.mark.parametrize("leak", [centred, globally_scaled, reads_far_ahead])
def test_a_planted_leak_is_caught_in_the_window(make_panel: Callable[..., pd.DataFrame], leak: Callable) -> None:
    panel = make_panel(900, seed=44)
    names = feature_set("price", 60)

    def build(piece: pd.DataFrame) -> pd.DataFrame:
        return build_features(piece, names).assign(leaky=leak(piece))

    result = truncation_check(build, panel, [500, 600], lookback=names.lookback, ahead=AHEAD)
    assert not result.passed
    assert result.columns == ("leaky",)


def test_a_longer_bar_joined_at_its_open_is_caught(make_inputs: Callable[..., dict[str, SettledSeries]]) -> None:
    """The classic: yesterday's row is given today's daily value, which is made of bars still to come."""
    inputs = make_inputs(400, seed=45)
    names = feature_set("price", 20)

    def build(some: Inputs, start_ms: int, end_ms: int) -> pd.DataFrame:
        panel = panel_of(some, start_ms, end_ms)
        built = build_features(panel, names)
        ratio = some["long_short_ratio"]
        at = np.searchsorted(ratio.ts, panel["ts"].to_numpy(), side="right") - 1
        joined = np.where(at >= 0, ratio.values("long_share")[np.maximum(at, 0)], np.nan)
        fresh = at >= 0
        fresh[fresh] = panel["ts"].to_numpy()[fresh] < ratio.ts[at[fresh]] + DAY_MS
        return built.assign(leaky=np.where(fresh, joined, np.nan), honest=panel["long_share"])

    moments = inputs["price"].ts[[350, 361, 375]]
    result = known_at_windows(build, inputs, HOURLY, DELAY, moments, lookback=80, ahead=AHEAD)
    assert not result.passed
    assert result.columns == ("leaky",)


def test_a_window_needs_a_lookback(make_panel: Callable[..., pd.DataFrame]) -> None:
    with pytest.raises(UsageError, match="needs a lookback"):
        truncation_check(full, make_panel(10, seed=1), [5], ahead=3)
