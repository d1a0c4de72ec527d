"""Golden values, invariants and simulated coverage of the significance statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from mlbot_core.validation.significance import (
    StatisticsError,
    deflated_sharpe_ratio,
    expected_maximum_sharpe,
    information_coefficient,
    minimum_track_record_length,
    moments,
    probabilistic_sharpe_ratio,
    psr_from_moments,
    sharpe_interval,
    sharpe_ratio,
    sharpe_standard_error_per_period,
    wilson_interval,
)

# The machine may be shared: a slow example is no failure.
quick = settings(deadline=None, max_examples=60)
finite_returns = st.lists(st.floats(-0.5, 0.5, allow_subnormal=False), min_size=3, max_size=60)


# --- golden values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trials", "expected"), [(100, 0.9004), (46, 0.9505)])
def test_deflated_sharpe_of_bailey_and_lopez_de_prado(trials: int, expected: float) -> None:
    # The Deflated Sharpe Ratio (2014), worked example: annual SR 2.5, 1,250 days at 250 a year, V = 1/2 (annual).
    benchmark = expected_maximum_sharpe(trials, 0.5) / math.sqrt(250)
    assert psr_from_moments(2.5 / math.sqrt(250), benchmark, 1250, -3.0, 10.0) == pytest.approx(expected, abs=1e-4)


def test_the_same_example_from_returns() -> None:
    # A three-point distribution with skew -3 and kurtosis 10 exists exactly at kurtosis = 1 + skew^2: two points.
    p = (1 - 3 / math.sqrt(13)) / 2
    down = round(1250 * p)
    raw = np.r_[np.full(down, -1.0), np.full(1250 - down, 1.0)]
    unit = (raw - raw.mean()) / raw.std(ddof=1)
    returns = 0.01 * (unit + 2.5 / math.sqrt(250))
    m = moments(returns)
    assert m.sharpe_per_period == pytest.approx(2.5 / math.sqrt(250), rel=1e-12)
    assert (m.skew, m.kurtosis) == (pytest.approx(-3, abs=0.02), pytest.approx(10, abs=0.1))
    assert deflated_sharpe_ratio(returns, 100, 0.5, 250) == pytest.approx(0.9004, abs=2e-3)
    assert deflated_sharpe_ratio(returns, 46, 0.5, 250) == pytest.approx(0.9505, abs=2e-3)


def test_probabilistic_sharpe_of_the_2012_paper() -> None:
    # The Sharpe Ratio Efficient Frontier: 24 months, mean 0.036, std 0.079, skew -2.448, kurtosis 10.164.
    sharpe = 0.036 / 0.079
    assert psr_from_moments(sharpe, 0.0, 24) == pytest.approx(0.982, abs=1e-3)
    assert psr_from_moments(sharpe, 0.0, 24, -2.448, 10.164) == pytest.approx(0.913, abs=1e-3)


@pytest.mark.parametrize(
    ("per_year", "skew", "kurtosis", "years"),
    [(250, 0.0, 3.0, 2.73), (52, 0.0, 3.0, 2.83), (12, 0.0, 3.0, 3.24), (12, -0.72, 5.78, 4.99)],
)
def test_minimum_track_record_of_the_2012_paper(per_year: int, skew: float, kurtosis: float, years: float) -> None:
    root = math.sqrt(per_year)
    length = minimum_track_record_length(2 / root, 1 / root, skew, kurtosis, 0.95)
    assert length / per_year == pytest.approx(years, abs=6e-3)


def test_standard_error_of_lo_is_the_normal_case() -> None:
    for sharpe in (-0.3, 0.0, 0.1, 0.5):
        assert sharpe_standard_error_per_period(sharpe, 1001) == pytest.approx(
            math.sqrt((1 + sharpe**2 / 2) / 1000), rel=1e-14
        )


def test_sharpe_by_hand() -> None:
    # mean 0.01, sample std sqrt((0.01^2 + 0.01^2) / 2) = 0.01: one per day.
    assert sharpe_ratio([0.0, 0.01, 0.02]) == pytest.approx(math.sqrt(365), rel=1e-12)
    # Flat days count: the same with as many zeros has half the mean.
    assert moments([0.0, 0.02, 0.0, 0.02]).mean == pytest.approx(0.01)


@pytest.mark.parametrize(("hits", "n"), [(5, 10), (0, 10), (10, 10), (1, 1), (523, 1000), (1, 10_000)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_equals_scipy(hits: int, n: int, level: float) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    interval = wilson_interval(hits, n, level)
    assert (interval.low, interval.high) == (
        pytest.approx(expected.low, abs=1e-12),
        pytest.approx(expected.high, abs=1e-12),
    )


def test_wilson_by_hand() -> None:
    # Wikipedia's and every textbook's 5 of 10: 0.2366 to 0.7634.
    interval = wilson_interval(5, 10)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2366, 0.7634)


def test_moments_equal_scipy() -> None:
    sample = np.random.default_rng(1).standard_t(5, 400) * 0.02
    m = moments(sample)
    assert m.skew == pytest.approx(stats.skew(sample), rel=1e-12)
    assert m.kurtosis == pytest.approx(stats.kurtosis(sample, fisher=False), rel=1e-12)
    assert m.std == pytest.approx(sample.std(ddof=1), rel=1e-12)


# --- what the data do not define -------------------------------------------------------------------------------


@pytest.mark.parametrize("returns", [[], [0.01], [0.0] * 400, [0.001] * 400])
def test_undefined_is_nan_and_passes_no_criterion(returns: list[float]) -> None:
    interval = sharpe_interval(returns)
    values = [
        sharpe_ratio(returns),
        interval.value,
        interval.low,
        interval.high,
        probabilistic_sharpe_ratio(returns),
        deflated_sharpe_ratio(returns, 10, 0.5),
    ]
    assert all(math.isnan(v) for v in values)
    assert not any(v >= 0.95 for v in values)


def test_refusals_name_the_value() -> None:
    with pytest.raises(StatisticsError, match=r"return 1 of 3 is nan"):
        sharpe_ratio([0.1, math.nan, 0.2])
    with pytest.raises(StatisticsError, match="shape"):
        sharpe_ratio([[0.1, 0.2]])
    with pytest.raises(StatisticsError, match="excess"):
        sharpe_standard_error_per_period(0.1, 100, 0.0, 0.0)
    with pytest.raises(StatisticsError, match="0 trials"):
        expected_maximum_sharpe(0, 1.0)
    with pytest.raises(StatisticsError, match="variance nan"):
        expected_maximum_sharpe(3, math.nan)
    with pytest.raises(StatisticsError, match="11 hits of 10"):
        wilson_interval(11, 10)
    with pytest.raises(StatisticsError, match="level 95"):
        sharpe_interval([0.1, 0.2], level=95)
    with pytest.raises(StatisticsError, match="same length"):
        information_coefficient([1.0], [1.0, 2.0], block_length=1)
    with pytest.raises(StatisticsError, match="block_length 0"):
        information_coefficient([1.0, 2.0], [1.0, 2.0], block_length=0)


# --- invariants ------------------------------------------------------------------------------------------------


@quick
@given(finite_returns, st.floats(0.01, 100))
def test_sharpe_does_not_depend_on_scale(returns: list[float], scale: float) -> None:
    base = sharpe_ratio(returns)
    assume(math.isfinite(base) and moments(returns).std > 1e-6)
    assert sharpe_ratio(np.array(returns) * scale) == pytest.approx(base, rel=1e-6, abs=1e-9)
    assert sharpe_ratio(-np.array(returns)) == pytest.approx(-base, rel=1e-9, abs=1e-9)


@quick
@given(finite_returns)
def test_sample_moments_never_break_the_standard_error(returns: list[float]) -> None:
    interval = sharpe_interval(returns)
    if math.isnan(interval.value):
        assert math.isnan(interval.low)
        return
    assert interval.standard_error >= 0
    assert interval.low <= interval.value <= interval.high


@quick
@given(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3), st.integers(30, 3000), st.floats(-2, 2), st.floats(0, 20))
def test_psr_is_a_probability_that_falls_with_the_benchmark(
    sharpe: float, benchmark: float, n: int, skew: float, surplus: float
) -> None:
    kurtosis = 1.0 + skew**2 + surplus
    psr = psr_from_moments(sharpe, benchmark, n, skew, kurtosis)
    assert 0.0 <= psr <= 1.0
    assert psr >= psr_from_moments(sharpe, benchmark + 0.05, n, skew, kurtosis)
    if sharpe > benchmark:
        assert psr >= 0.5


@quick
@given(st.integers(1, 100_000), st.integers(0, 1000), st.floats(0, 4))
def test_more_trials_raise_the_bar(n: int, more: int, variance: float) -> None:
    assert 0.0 <= expected_maximum_sharpe(n, variance) <= expected_maximum_sharpe(n + more, variance) + 1e-12


@quick
@given(st.floats(0.02, 0.3), st.floats(0.001, 0.9), st.floats(-2, 2), st.floats(0, 10), st.sampled_from([0.9, 0.95]))
def test_psr_at_the_minimum_track_record_is_the_level(
    sharpe: float, share: float, skew: float, surplus: float, level: float
) -> None:
    kurtosis = 1.0 + skew**2 + surplus
    length = minimum_track_record_length(sharpe, sharpe * share, skew, kurtosis, level)
    n = math.ceil(length) + 1
    assume(n >= 10)
    assert psr_from_moments(sharpe, sharpe * share, n, skew, kurtosis) >= level - 1e-9
    assert minimum_track_record_length(sharpe, sharpe) == math.inf


@quick
@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_is_symmetric_and_inside_the_unit_interval(hits: int, misses: int) -> None:
    a, b = wilson_interval(hits, hits + misses), wilson_interval(misses, hits + misses)
    if hits + misses == 0:
        assert math.isnan(a.value)
        return
    assert 0.0 <= a.low <= a.value <= a.high <= 1.0
    assert a.low == pytest.approx(1 - b.high, abs=1e-12)


@quick
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=80))
def test_information_coefficient_equals_scipy_with_ties(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    got = information_coefficient(x, y, block_length=1, n_resamples=20)
    assert got.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert -1 - 1e-12 <= got.low <= got.high <= 1 + 1e-12


def test_information_coefficient_of_resample_equals_scipy() -> None:
    # The counting ranks of a resample are the ranks a sort would give: rebuild one resample by hand.
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=40).round(1), generator.normal(size=40).round(1)
    got = information_coefficient(x, y, block_length=7, n_resamples=1, seed=11)
    starts = np.random.default_rng(11).integers(0, 40, size=6)
    index = ((starts[:, None] + np.arange(7)).ravel() % 40)[:40]
    assert got.low == got.high == pytest.approx(stats.spearmanr(x[index], y[index]).statistic, abs=1e-12)


def test_information_coefficient_leaves_out_unknown_pairs_and_repeats_itself() -> None:
    generator = np.random.default_rng(4)
    x = generator.normal(size=300)
    y = 0.5 * x + generator.normal(size=300)
    first = information_coefficient(x, y, block_length=10, n_resamples=200, seed=5)
    assert first == information_coefficient(x, y, block_length=10, n_resamples=200, seed=5)
    assert first.low > 0
    holes = np.r_[x, math.nan, 1.0], np.r_[y, 1.0, math.nan]
    assert information_coefficient(*holes, block_length=10, n_resamples=200, seed=5) == first


def test_information_coefficient_without_an_answer() -> None:
    constant = information_coefficient(np.ones(50), np.arange(50.0), block_length=5)
    assert math.isnan(constant.value)
    assert math.isnan(constant.low)
    short = information_coefficient(np.arange(9.0), np.arange(9.0), block_length=5)
    assert short.value == pytest.approx(1.0)
    assert math.isnan(short.low)


# --- does the interval cover what it promises? -----------------------------------------------------------------


def _coverage(draw: object, true_sharpe: float, n: int, runs: int) -> float:
    inside = 0
    for _ in range(runs):
        interval = sharpe_interval(draw(n))  # type: ignore[operator]
        inside += interval.low <= true_sharpe <= interval.high
    return inside / runs


def test_sharpe_interval_covers_normal_returns() -> None:
    generator = np.random.default_rng(20)
    daily = 1.5 / math.sqrt(365)
    cover = _coverage(lambda n: 0.02 * (daily + generator.standard_normal(n)), 1.5, 730, 2000)
    # Two thousand tries at 95 %: standard error 0.5 %; three of them either way.
    assert 0.935 <= cover <= 0.965


def test_sharpe_interval_covers_skewed_returns_where_the_normal_one_fails() -> None:
    # Insurance-like: many small gains, rare large losses, a large Sharpe per period so that the skew term matters.
    generator = np.random.default_rng(21)
    n, runs, per_period = 1000, 2000, 0.5
    inside, inside_normal = 0, 0
    for _ in range(runs):
        returns = 0.01 * (per_period + 1.0 - generator.standard_exponential(n))
        m = moments(returns)
        for skew, kurtosis, count in ((m.skew, m.kurtosis, "full"), (0.0, 3.0, "normal")):
            error = sharpe_standard_error_per_period(m.sharpe_per_period, n, skew, kurtosis)
            hit = abs(m.sharpe_per_period - per_period) <= 1.959964 * error
            inside += hit and count == "full"
            inside_normal += hit and count == "normal"
    assert 0.93 <= inside / runs <= 0.97
    assert inside_normal / runs < 0.88


def test_psr_is_uniform_without_skill() -> None:
    generator = np.random.default_rng(22)
    values = [probabilistic_sharpe_ratio(0.02 * generator.standard_t(6, 500)) for _ in range(1500)]
    assert stats.kstest(values, "uniform").pvalue > 0.01


def test_deflated_sharpe_of_the_best_of_many_skill_less_trials_is_rarely_high() -> None:
    generator = np.random.default_rng(23)
    passed_raw, passed_deflated = 0, 0
    for _ in range(200):
        trials = 0.02 * generator.standard_normal((50, 400))
        sharpes = trials.mean(axis=1) / trials.std(axis=1, ddof=1) * math.sqrt(365)
        best = trials[int(np.argmax(sharpes))]
        passed_raw += probabilistic_sharpe_ratio(best) >= 0.95
        passed_deflated += deflated_sharpe_ratio(best, 50, float(sharpes.var(ddof=1))) >= 0.95
    assert passed_raw / 200 > 0.8
    assert passed_deflated / 200 < 0.05


@pytest.mark.parametrize(("n", "exact", "error"), [(10, 1.53875, 0.025), (100, 2.50759, 0.01), (1000, 3.24144, 0.005)])
def test_expected_maximum_approaches_the_exact_one(n: int, exact: float, error: float) -> None:
    # Exact means of the largest of n standard normals (Teichroew 1956); the formula is asymptotic and errs upwards.
    assert exact <= expected_maximum_sharpe(n, 1.0) <= exact * (1 + error)


def test_block_bootstrap_covers_dependent_pairs_where_single_pairs_do_not() -> None:
    # Two unrelated slow series (AR 0.9): blocks must be long for the interval to know how little it has seen.
    generator = np.random.default_rng(25)
    runs, n = 200, 1500
    cover = {1: 0, 60: 0}
    for _ in range(runs):
        noise = generator.standard_normal((2, n))
        x, y = np.empty(n), np.empty(n)
        x[0], y[0] = noise[:, 0]
        for i in range(1, n):
            x[i] = 0.9 * x[i - 1] + noise[0, i]
            y[i] = 0.9 * y[i - 1] + noise[1, i]
        for block in cover:
            interval = information_coefficient(x, y, block_length=block, n_resamples=200, seed=1)
            cover[block] += interval.low <= 0.0 <= interval.high
    assert cover[60] / runs >= 0.88
    assert cover[1] / runs <= 0.65
