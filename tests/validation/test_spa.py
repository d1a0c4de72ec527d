"""Superior predictive ability: against arch, against the paper's formulas in plain loops, and its size and power."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.validation.resampling import stationary_indices
from mlbot_core.validation.significance import StatisticsError
from mlbot_core.validation.spa import reality_check, superior_predictive_ability

quick = settings(deadline=None, max_examples=30)


def candidates(days: int, count: int, seed: int, best: float = 0.0, worst: float = 0.0) -> np.ndarray:
    """Advantages over the benchmark: correlated, of unlike risk, from ``worst`` to 0, the first one ``best``."""
    generator = np.random.default_rng(seed)
    common = generator.normal(0, 0.01, (days, 1))
    returns = common + generator.standard_t(6, (days, count)) * 0.01 * np.linspace(0.5, 2, count)
    returns += np.linspace(0, worst, count)
    returns[:, 0] += best
    return returns


def hansen(ahead: np.ndarray, index: np.ndarray, length: float) -> dict[str, float]:
    """Hansen (2005), sections 3.1 and 3.2, with the standard errors of his equation for the stationary bootstrap."""
    n, m = ahead.shape
    mean = ahead.mean(axis=0)
    q = 1 / length
    omega = np.empty(m)
    for k in range(m):
        x = ahead[:, k] - mean[k]
        gamma = [float(x[: n - i] @ x[i:]) / n for i in range(n)]
        kappa = [(n - i) / n * (1 - q) ** i + i / n * (1 - q) ** (n - i) for i in range(n)]
        omega[k] = math.sqrt(gamma[0] + 2 * sum(kappa[i] * gamma[i] for i in range(1, n)))
    statistic = max(0.0, float(np.max(math.sqrt(n) * mean / omega)))
    threshold = -np.sqrt(omega**2 / n * 2 * math.log(math.log(n)))
    g = {"lower": np.maximum(0, mean), "consistent": mean * (mean >= threshold), "upper": mean}
    found = {}
    for name, centre in g.items():
        drawn = [max(0.0, float(np.max(math.sqrt(n) * (ahead[row].mean(axis=0) - centre) / omega))) for row in index]
        found[name] = float(np.mean(np.array(drawn) > statistic))
    return found


@pytest.mark.parametrize(("best", "worst"), [(0.0, 0.0), (0.001, -0.004), (0.002, 0.0), (-0.01, -0.01)])
def test_equals_the_paper_in_plain_loops(best: float, worst: float) -> None:
    returns = candidates(150, 6, 3, best, worst)
    expected = hansen(returns, stationary_indices(150, 300, 4.0, seed=5), 4.0)
    got = superior_predictive_ability(returns, n_resamples=300, block_length=4.0, seed=5)
    assert (got.p_lower, got.p_consistent, got.p_upper) == (
        expected["lower"],
        expected["consistent"],
        expected["upper"],
    )
    assert (got.candidates, got.days, got.n_resamples, got.block_length) == (6, 150, 300, 4.0)


@pytest.mark.parametrize(("best", "worst"), [(0.0, 0.0), (0.0015, -0.004), (0.003, -0.001), (0.0005, 0.0005)])
def test_unscaled_agrees_with_arch(best: float, worst: float) -> None:
    from arch.bootstrap import SPA

    returns = candidates(400, 12, 7, best, worst)
    benchmark = np.random.default_rng(8).normal(0, 0.001, 400)
    # Theirs are losses: less is better.
    theirs = SPA(-benchmark, -returns, block_size=6, reps=2000, seed=1)
    theirs.compute()
    got = superior_predictive_ability(returns, benchmark, n_resamples=2000, block_length=6, seed=1, studentised=False)
    for ours, name in ((got.p_lower, "lower"), (got.p_consistent, "consistent"), (got.p_upper, "upper")):
        expected = float(theirs.pvalues[name])
        p = (ours + expected) / 2
        assert abs(ours - expected) <= 4.5 * math.sqrt(2 * max(p * (1 - p), 0.25 / 2000) / 2000)
    assert reality_check(returns, benchmark, n_resamples=2000, block_length=6, seed=1) == got.p_upper


def test_unscaled_equals_arch_on_the_same_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    from arch.bootstrap import SPA, StationaryBootstrap

    returns = candidates(200, 8, 9, 0.001, -0.004)
    drawer = StationaryBootstrap(5, returns, seed=2)
    index = np.array([drawer.index.copy() for _ in drawer.bootstrap(500)])
    theirs = SPA(np.zeros(200), -returns, block_size=5, reps=500, seed=2)
    theirs.compute()
    monkeypatch.setattr("mlbot_core.validation.spa.stationary_indices", lambda *_: index.astype(np.int64))
    got = superior_predictive_ability(returns, n_resamples=500, block_length=5, studentised=False)
    assert [got.p_lower, got.p_consistent, got.p_upper] == theirs.pvalues.tolist()


@quick
@given(seed=st.integers(0, 10**6), count=st.integers(1, 10), scaled=st.booleans())
def test_order_of_columns_changes_nothing(seed: int, count: int, scaled: bool) -> None:
    returns = candidates(60, count, seed, 0.001, -0.002)
    returns = np.hstack([returns, returns[:, :1], np.zeros((60, 1))])  # a copy, and the benchmark itself
    order = np.random.default_rng(seed).permutation(returns.shape[1])
    a = superior_predictive_ability(returns, n_resamples=100, block_length=3.0, seed=seed, studentised=scaled)
    b = superior_predictive_ability(returns[:, order], n_resamples=100, block_length=3.0, seed=seed, studentised=scaled)
    assert (a.p_lower, a.p_consistent, a.p_upper) == (b.p_lower, b.p_consistent, b.p_upper)
    assert a.statistic == b.statistic
    np.testing.assert_array_equal(returns[:, a.best], returns[:, order][:, b.best])


@quick
@given(seed=st.integers(0, 10**6), count=st.integers(1, 10), scaled=st.booleans())
def test_p_values_are_in_order(seed: int, count: int, scaled: bool) -> None:
    returns = candidates(60, count, seed, 0.002, -0.005)
    got = superior_predictive_ability(returns, n_resamples=100, seed=seed, studentised=scaled)
    assert 0.0 <= got.p_lower <= got.p_consistent <= got.p_upper <= 1.0
    assert got == superior_predictive_ability(returns, n_resamples=100, seed=seed, studentised=scaled)
    assert got.block_length >= 1.0


def test_leverage_matters_only_unscaled() -> None:
    returns = candidates(300, 6, 11, 0.0035)
    returns[:, 5] -= returns[:, 5].mean()  # no advantage at all, however much of it
    levered = returns * np.array([1, 1, 1, 1, 1, 50])
    options = {"n_resamples": 500, "block_length": 3.0}
    scaled = superior_predictive_ability(returns, **options)  # type: ignore[arg-type]
    assert superior_predictive_ability(levered, **options).p_upper == scaled.p_upper  # type: ignore[arg-type]
    assert superior_predictive_ability(levered, studentised=False, **options).p_upper > 0.2  # type: ignore[arg-type]
    assert scaled.p_upper < 0.05


def test_poor_candidates_make_the_reality_check_timid_and_not_hansens() -> None:
    returns = candidates(500, 1, 12, 0.0018)
    poor = np.random.default_rng(13).normal(-0.02, 0.06, (500, 60))
    crowd = np.hstack([returns, poor])
    assert superior_predictive_ability(crowd).p_consistent < 0.05
    assert reality_check(crowd) > 0.3


def test_size_and_power() -> None:
    low, found = 0, 0
    for seed in range(150):
        generator = np.random.default_rng(seed)
        noise = generator.normal(0, 0.01, (250, 1)) + generator.normal(0, 0.01, (250, 8))
        options = {"n_resamples": 200, "seed": seed, "block_length": 1.0}
        low += superior_predictive_ability(noise, **options).p_consistent < 0.1  # type: ignore[arg-type]
        noise[:, 3] += 0.004
        found += superior_predictive_ability(noise, **options).p_consistent < 0.1  # type: ignore[arg-type]
    # Binomial with n = 150, p = 0.1: standard error 2.4 %.
    assert low / 150 <= 0.1 + 3.5 * 0.0245
    assert found / 150 >= 0.9


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda x: superior_predictive_ability(x, np.zeros(5)), r"benchmark has shape \(5,\)"),
        (lambda x: superior_predictive_ability(x[:8]), "at least 11"),
        (lambda x: superior_predictive_ability(x, np.full(60, math.nan)), "is nan"),
        (
            lambda x: superior_predictive_ability(x + np.array([0, 1]), x[:, 1]),
            "candidate 1 differs from the benchmark by 1",
        ),
        (lambda x: superior_predictive_ability(x, n_resamples=0), "0 resamples"),
        (lambda x: superior_predictive_ability(x, block_length=0.2), "block length 0.2"),
    ],
)
def test_refusals_name_the_value(act: object, words: str) -> None:
    with pytest.raises(StatisticsError, match=words):
        act(candidates(60, 2, 1))  # type: ignore[operator]
