"""The nulls have no skill in them, keep what they promise to keep, and the planted signal is as strong as it says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.config import TargetConfig
from mlbot_core.errors import UsageError
from mlbot_core.targets.build import build_targets
from mlbot_core.timeframe import Market, Timeframe
from mlbot_core.validation.nulls import (
    GarchParams,
    bootstrap_bars,
    garch_bars,
    memory,
    planted_signal,
    rotate_targets,
    tilt_for_ic,
)
from mlbot_core.validation.resampling import stationary_indices

H2 = Timeframe.parse("2h")


def returns(bars):
    return np.diff(np.log(bars["close"].to_numpy()))


def consistent(bars):
    assert (bars["high"] >= bars[["open", "close"]].max(axis=1)).all()
    assert (bars["low"] <= bars[["open", "close"]].min(axis=1)).all()
    assert (bars[["open", "high", "low", "close"]] > 0).all().all()
    assert (np.diff(bars["ts"]) == H2.ms).all()


def autocorrelation(values, lag=1):
    return float(pd.Series(values).autocorr(lag))


def test_garch_is_a_random_walk_with_clustered_volatility():
    bars = garch_bars(60_000, GarchParams(), H2, seed=1)
    consistent(bars)
    r = returns(bars)
    assert np.std(r) == pytest.approx(0.008, rel=0.1)
    assert abs(np.mean(r)) < 4 * np.std(r) / np.sqrt(len(r))
    # heavy tails widen the error of a correlation, hence the generous bound
    assert abs(autocorrelation(r)) < 0.03
    assert autocorrelation(np.abs(r)) > 0.1
    assert pd.Series(r).kurt() > 1.0
    np.testing.assert_array_equal(bars["open"].to_numpy()[1:], bars["close"].to_numpy()[:-1])


def test_seeds_and_tilts():
    one, two = (garch_bars(50, GarchParams(), H2, seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    assert not one.equals(garch_bars(50, GarchParams(), H2, seed=4))
    zero = garch_bars(50, GarchParams(), H2, seed=3, tilt=np.zeros(50))
    pd.testing.assert_frame_equal(one, zero)
    early = np.r_[np.zeros(30), np.ones(20)]
    pd.testing.assert_frame_equal(one.iloc[:30], garch_bars(50, GarchParams(), H2, seed=3, tilt=early).iloc[:30])


@pytest.mark.parametrize(
    "bad", [{"alpha": 0.5, "beta": 0.5}, {"bar_volatility": 0.0}, {"degrees": 2.0}, {"steps": 0}, {"alpha": -0.1}]
)
def test_impossible_parameters_are_refused(bad):
    with pytest.raises(UsageError, match=r"GARCH|degrees"):
        GarchParams(**bad)


@pytest.fixture(scope="module")
def trending():
    """Bars with a drift and with returns that are strongly predictable from the one before."""
    rng = np.random.default_rng(0)
    r = np.zeros(6_000)
    for i in range(1, len(r)):
        r[i] = 0.001 + 0.6 * r[i - 1] + rng.normal(0, 0.005)
    close = 100 * np.exp(np.cumsum(r))
    open_ = np.r_[100.0, close[:-1]] * np.exp(rng.normal(0, 0.0005, len(r)))
    high = np.maximum(open_, close) * np.exp(np.abs(rng.normal(0, 0.002, len(r))))
    low = np.minimum(open_, close) * np.exp(-np.abs(rng.normal(0, 0.002, len(r))))
    return pd.DataFrame({"open": open_, "high": high, "low": low, "close": close})


def test_the_bootstrap_keeps_sizes_and_removes_what_predicts(trending):
    index = stationary_indices(len(trending) - 1, 1, 48.0, seed=2)[0] + 1
    bars = bootstrap_bars(trending, index, H2, seed=2)
    consistent(bars)
    r = returns(bars)
    original = np.diff(np.log(trending["close"].to_numpy()))
    assert autocorrelation(original) > 0.5
    assert abs(autocorrelation(r)) < 0.05
    assert abs(r.mean()) < 4 * r.std() / np.sqrt(len(r))
    np.testing.assert_allclose(np.abs(r), np.abs(original[index[1:] - 1]), rtol=1e-8, atol=1e-12)
    spans = np.log(trending["high"] / trending["low"]).to_numpy()
    np.testing.assert_allclose(np.log(bars["high"] / bars["low"]).to_numpy(), spans[index], rtol=1e-8, atol=1e-12)


def test_the_bootstrap_refuses_holes(trending):
    broken = trending.copy()
    broken.loc[3, "low"] = np.nan
    with pytest.raises(UsageError, match="complete"):
        bootstrap_bars(broken, np.array([1, 2]), H2, seed=1)
    with pytest.raises(UsageError, match="row 0 has no close"):
        bootstrap_bars(trending, np.array([0, 2]), H2, seed=1)


@pytest.fixture(scope="module")
def targets():
    bars = garch_bars(600, GarchParams(), H2, seed=5)
    config = TargetConfig(volatility_window=24, horizon=8, barrier_width=1.0)
    return build_targets(bars, Market.parse("BTC-2h"), config)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 500))
def test_rotation_moves_whole_labels_with_their_durations(targets, offset):
    rows = targets["tb_t1"].to_numpy() >= 0
    moved = rotate_targets(targets, rows, offset)
    at = np.flatnonzero(rows)
    taken = np.roll(at, -offset)
    for name in ("tb_label", "tb_ret", "tb_width", "var_ret"):
        np.testing.assert_array_equal(moved[name].to_numpy()[at], targets[name].to_numpy()[taken])
    np.testing.assert_array_equal(
        (moved["tb_t1"] - moved["t0"]).to_numpy()[at], (targets["tb_t1"] - targets["t0"]).to_numpy()[taken]
    )
    assert (moved["tb_t1"].to_numpy()[~rows] == -1).all()
    assert moved["tb_label"].isna().to_numpy()[~rows].all()
    assert ((moved["tb_t1"] > moved["t0"]) | (moved["tb_t1"] == -1)).all()


def test_rotation_refuses_rows_without_labels(targets):
    with pytest.raises(UsageError, match="no label"):
        rotate_targets(targets, np.ones(len(targets), bool), 5)
    with pytest.raises(UsageError, match="cannot rotate"):
        rotate_targets(targets, targets["tb_t1"].to_numpy() >= 0, 0)


@pytest.mark.parametrize("shape", ["normal", "flag"])
@pytest.mark.parametrize("half_life", [0.0, 1.0, 6.0])
def test_the_signal_has_unit_variance_and_its_memory(shape, half_life):
    values = planted_signal(200_000, half_life, seed=3, shape=shape)
    assert values.std() == pytest.approx(1.0, abs=0.03)
    assert autocorrelation(values) == pytest.approx(memory(half_life), abs=0.01)
    if shape == "flag":
        assert set(np.unique(values)) == {-1.0, 1.0}


@pytest.mark.parametrize(("horizon", "half_life"), [(1, 0.0), (4, 0.0), (4, 2.0), (12, 6.0)])
def test_the_tilt_gives_the_wanted_correlation(horizon, half_life):
    """With the return over the horizon after the bar, in a market of constant volatility."""
    n, ic = 400_000, 0.15
    signal = planted_signal(n, half_life, seed=9)
    tilt = tilt_for_ic(ic, horizon, half_life) * np.r_[0.0, signal[:-1]]
    flat = GarchParams(alpha=0.0, beta=0.0, degrees=1000.0, steps=1)
    close = np.log(garch_bars(n, flat, H2, seed=8, tilt=tilt)["close"].to_numpy())
    after = close[horizon:] - close[:-horizon]
    assert np.corrcoef(signal[:-horizon], after)[0, 1] == pytest.approx(ic, abs=0.012)


def test_a_correlation_that_cannot_be_is_refused():
    for ic in (1.0, -0.1, 0.999):
        with pytest.raises(UsageError, match="no drift"):
            tilt_for_ic(ic, 12, 0.0) if ic != 0.999 else tilt_for_ic(ic, 500, 0.0)
    with pytest.raises(UsageError, match="negative"):
        memory(-1.0)
