"""Stationary bootstrap: agreement with arch, with plain loops, and what the intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.validation.bootstrap import (
    bootstrap_mean_interval,
    bootstrap_sharpe_interval,
    bootstrap_sharpe_intervals,
)
from mlbot_core.validation.resampling import (
    chosen_block_length,
    optimal_block_length,
    resample_counts,
    resampled_sums,
    stationary_indices,
)
from mlbot_core.validation.significance import StatisticsError, sharpe_interval, sharpe_ratio

quick = settings(deadline=None, max_examples=50)


def autoregression(n: int, phi: float, generator: np.random.Generator) -> np.ndarray:
    noise = generator.standard_normal(n)
    out = np.empty(n)
    out[0] = noise[0] / math.sqrt(1 - phi**2)
    for i in range(1, n):
        out[i] = phi * out[i - 1] + noise[i]
    return out


# --- the length of blocks --------------------------------------------------------------------------------------


@quick
@given(n=st.integers(11, 800), phi=st.sampled_from([-0.6, 0.0, 0.3, 0.9]), seed=st.integers(0, 10**6))
def test_block_length_equals_arch(n: int, phi: float, seed: int) -> None:
    from arch.bootstrap import optimal_block_length as theirs

    series = 0.02 * autoregression(n, phi, np.random.default_rng(seed)) + 0.001
    ours = optimal_block_length(series)
    expected = theirs(series).to_numpy()[0]
    assert (ours.stationary, ours.circular) == (
        pytest.approx(expected[0], rel=1e-8),
        pytest.approx(expected[1], rel=1e-8),
    )


def test_slower_series_get_longer_blocks() -> None:
    generator = np.random.default_rng(1)
    lengths = [optimal_block_length(autoregression(3000, phi, generator)).stationary for phi in (0.0, 0.5, 0.95)]
    assert lengths[0] < lengths[1] < lengths[2]
    assert math.isnan(optimal_block_length(np.ones(50)).stationary)
    assert chosen_block_length(np.ones((50, 2))) == 1.0


# --- the resamples ---------------------------------------------------------------------------------------------


@quick
@given(n=st.integers(1, 60), length=st.floats(1.0, 30.0), seed=st.integers(0, 10**6), resamples=st.integers(1, 20))
def test_counts_are_those_of_the_indices(n: int, length: float, seed: int, resamples: int) -> None:
    index = stationary_indices(n, resamples, length, seed)
    np.testing.assert_array_equal(index, stationary_indices(n, resamples, length, seed))
    assert index.min() >= 0
    assert index.max() < n
    expected = np.array([np.bincount(row, minlength=n) for row in index])
    # Whatever the number of resamples held at a time.
    for chunk in (1, 7, 256):
        np.testing.assert_array_equal(np.vstack(list(resample_counts(n, resamples, length, seed, chunk))), expected)


@pytest.mark.parametrize("columns", [1, 3, 40])
@pytest.mark.parametrize("length", [1.0, 6.0, 200.0])
def test_sums_are_those_of_the_resamples(columns: int, length: float) -> None:
    values = np.random.default_rng(2).normal(size=(90, columns))
    expected = values[stationary_indices(90, 70, length, seed=5)].sum(axis=1)
    got = np.vstack(list(resampled_sums(values, 70, length, 5, chunk=32)))
    np.testing.assert_allclose(got, expected, atol=1e-11)


@pytest.mark.parametrize("length", [1.0, 4.0, 20.0])
def test_blocks_have_the_length_asked_for(length: float) -> None:
    n = 500
    index = stationary_indices(n, 2000, length, seed=3)
    goes_on = (index[:, 1:] == (index[:, :-1] + 1) % n).mean()
    # A block goes on with probability 1 - 1/length, and by chance 1 time in n.
    expected = 1 - 1 / length + 1 / length / n
    assert goes_on == pytest.approx(expected, abs=5 * math.sqrt(0.25 / index.size) + 1e-9)
    # Every day is as likely at every place: chi-square over the days.
    seen = np.bincount(index[:, :: max(1, int(10 * length))].ravel(), minlength=n)
    expected_seen = seen.sum() / n
    chi = ((seen - expected_seen) ** 2 / expected_seen).sum()
    assert abs(chi - (n - 1)) < 6 * math.sqrt(2 * n)


def test_variance_of_the_resampled_mean_is_that_of_the_paper() -> None:
    # Politis and Romano (1994), lemma 1: known exactly, given the data.
    from mlbot_core.validation.spa import _long_run_variance

    generator = np.random.default_rng(4)
    series = autoregression(300, 0.6, generator)
    centred = (series - series.mean())[:, None]
    length = 8.0
    exact = _long_run_variance(centred, 1 / length)[0]
    n = len(series)
    by_hand = sum(
        (1 - 1 / length) ** lag * (1 - lag / n) * centred[i, 0] * centred[(i + lag) % n, 0] * (2 if lag else 1)
        for i in range(n)
        for lag in range(n)
    )
    assert exact == pytest.approx(by_hand / n, rel=1e-9)
    means = series[stationary_indices(n, 20_000, length, seed=5)].mean(axis=1)
    assert n * means.var() == pytest.approx(exact, rel=5 * math.sqrt(2 / 20_000))


# --- the intervals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["percentile", "studentised"])
def test_intervals_equal_plain_loops(method: str) -> None:
    generator = np.random.default_rng(6)
    returns = 0.02 * generator.standard_t(5, 200) + 0.002
    index = stationary_indices(200, 400, 3.0, seed=7)
    drawn, drawn_mean = [], []
    whole = sharpe_interval(returns)
    for row in index:
        sample = returns[row]
        other = sharpe_interval(sample)
        if method == "percentile":
            drawn.append(sharpe_ratio(sample))
            drawn_mean.append(sample.mean())
        else:
            drawn.append((other.value - whole.value) / other.standard_error)
            drawn_mean.append((sample.mean() - returns.mean()) / (sample.std(ddof=1) / math.sqrt(200)))
    low, high = np.quantile(drawn, [0.05, 0.95])
    low_mean, high_mean = np.quantile(drawn_mean, [0.05, 0.95])
    if method == "studentised":
        low, high = whole.value - high * whole.standard_error, whole.value - low * whole.standard_error
        error = returns.std(ddof=1) / math.sqrt(200)
        low_mean, high_mean = returns.mean() - high_mean * error, returns.mean() - low_mean * error
    options = {"method": method, "level": 0.9, "n_resamples": 400, "block_length": 3.0, "seed": 7}
    got = bootstrap_sharpe_interval(returns, **options)  # type: ignore[arg-type]
    assert (got.value, got.low, got.high) == (
        pytest.approx(whole.value),
        pytest.approx(low, rel=1e-9),
        pytest.approx(high, rel=1e-9),
    )
    mean = bootstrap_mean_interval(returns, **options)  # type: ignore[arg-type]
    assert (mean.value, mean.low, mean.high) == (
        pytest.approx(returns.mean()),
        pytest.approx(low_mean, rel=1e-9),
        pytest.approx(high_mean, rel=1e-9),
    )
    assert (got.level, got.n) == (0.9, 200)


def test_percentile_interval_agrees_with_arch() -> None:
    from arch.bootstrap import StationaryBootstrap

    generator = np.random.default_rng(8)
    returns = 0.02 * autoregression(600, 0.2, generator) + 0.001
    theirs = StationaryBootstrap(5, returns, seed=9)
    expected = theirs.conf_int(lambda x: x.mean() / x.std(ddof=1) * math.sqrt(365), 4000, method="percentile").ravel()
    got = bootstrap_sharpe_interval(returns, n_resamples=20_000, block_length=5.0)
    # The interval is about 4 standard deviations wide; a 2.5 % quantile of m draws errs by 2.7 deviations / root m.
    deviation = (expected[1] - expected[0]) / 4
    tolerance = 4 * 2.7 * deviation / math.sqrt(4000)
    assert (got.low, got.high) == (pytest.approx(expected[0], abs=tolerance), pytest.approx(expected[1], abs=tolerance))


def test_panel_equals_one_by_one_and_any_grouping(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(10)
    panel = 0.02 * generator.standard_normal((150, 7)) + 0.001
    options = {"n_resamples": 300, "block_length": 4.0, "seed": 3}
    whole = bootstrap_sharpe_intervals(panel, **options)  # type: ignore[arg-type]
    monkeypatch.setattr("mlbot_core.validation.bootstrap._HELD", 600)  # two series at a time
    grouped = bootstrap_sharpe_intervals(panel, **options)  # type: ignore[arg-type]
    for column, a, b in zip(panel.T, whole, grouped, strict=True):
        alone = bootstrap_sharpe_interval(column, **options)  # type: ignore[arg-type]
        for other in (b, alone):
            assert (a.value, a.low, a.high) == pytest.approx((other.value, other.low, other.high), rel=1e-10)


def test_what_the_data_do_not_define() -> None:
    flat, rare, plain = np.zeros(300), np.zeros(300), np.random.default_rng(11).normal(0, 0.01, 300)
    rare[7] = 0.05  # one trade: a third of the resamples lack it
    first, second, third = bootstrap_sharpe_intervals(np.column_stack([flat, rare, plain]), block_length=1.0)
    assert math.isnan(first.value)
    assert math.isnan(first.low)
    assert second.value == pytest.approx(sharpe_ratio(rare))
    assert math.isnan(second.low)
    assert third.low < third.value < third.high
    constant = bootstrap_mean_interval(np.full(40, 0.3))
    assert (constant.value, constant.low, constant.high) == (0.3, 0.3, 0.3)
    assert bootstrap_mean_interval([0.1, 0.2]).low == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: bootstrap_sharpe_interval([0.1, math.nan]), "return 1 of series 0 is nan"),
        (lambda: bootstrap_sharpe_interval([[0.1, 0.2]]), "shape"),
        (lambda: bootstrap_sharpe_interval([0.1]), "at least 2 periods"),
        (lambda: bootstrap_sharpe_interval([0.1, 0.2], n_resamples=0), "0 resamples"),
        (lambda: bootstrap_sharpe_interval([0.1, 0.2], block_length=0.5), "block length 0.5"),
        (lambda: bootstrap_sharpe_interval([0.1, 0.2], level=95), "level 95"),
        (lambda: bootstrap_sharpe_interval([0.1, 0.2], method="bca"), "'bca' is not known"),  # type: ignore[arg-type]
        (lambda: optimal_block_length(np.arange(5.0)), "at least 11"),
        (lambda: stationary_indices(0, 1, 1.0), "0 periods"),
    ],
)
def test_refusals_name_the_value(act: object, words: str) -> None:
    with pytest.raises(StatisticsError, match=words):
        act()  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["percentile", "studentised"])
def test_intervals_cover_dependent_returns_where_single_days_do_not(method: str) -> None:
    # Slow returns (AR 0.4): the automatic blocks must widen the interval.
    generator = np.random.default_rng(12)
    runs, n, per_period = 400, 1000, 0.05
    phi = 0.4
    deviation = 1 / math.sqrt(1 - phi**2)
    cover = {"automatic": 0, "single days": 0}
    for _ in range(runs):
        returns = 0.01 * (autoregression(n, phi, generator) / deviation + per_period)
        for name, length in (("automatic", None), ("single days", 1.0)):
            got = bootstrap_sharpe_interval(
                returns,
                n_resamples=400,
                block_length=length,
                method=method,  # type: ignore[arg-type]
                periods_per_year=1.0,
            )
            cover[name] += got.low <= per_period <= got.high
    assert 0.89 <= cover["automatic"] / runs <= 0.98
    assert cover["single days"] / runs <= 0.85
