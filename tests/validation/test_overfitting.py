"""Probability of backtest overfitting: against an independent implementation, and what it must say by construction."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlbot_core.validation.overfitting import PboResult, pbo_cscv
from mlbot_core.validation.significance import StatisticsError

quick = settings(deadline=None, max_examples=40)


def naive(returns: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bailey, Borwein, Lopez de Prado and Zhu (2017), section 2.2, word by word. Logits, and both Sharpe ratios."""
    days, count = returns.shape
    edges = np.linspace(0, days, blocks + 1).round().astype(int)
    parts = [returns[a:b] for a, b in itertools.pairwise(edges)]
    logits, inside, outside = [], [], []
    for chosen in itertools.combinations(range(blocks), blocks // 2):
        train = np.vstack([parts[b] for b in chosen])
        test = np.vstack([parts[b] for b in range(blocks) if b not in chosen])
        r = train.mean(axis=0) / train.std(axis=0, ddof=1)
        r_bar = test.mean(axis=0) / test.std(axis=0, ddof=1)
        best = int(np.argmax(r))
        omega = stats.rankdata(r_bar)[best] / (count + 1)
        logits.append(math.log(omega / (1 - omega)))
        inside.append(r[best])
        outside.append(r_bar[best])
    return np.array(logits), np.array(inside), np.array(outside)


def market(days: int, count: int, seed: int, skill: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    common = generator.normal(0, 0.01, (days, 1))
    returns = 0.5 * common + generator.standard_t(5, (days, count)) * 0.01 * generator.uniform(0.5, 2, count)
    returns[:, 0] += skill
    return returns


@pytest.mark.parametrize(("days", "count", "blocks"), [(64, 5, 4), (101, 12, 8), (250, 30, 10), (41, 2, 2)])
@pytest.mark.parametrize("skill", [0.0, 0.002])
def test_equals_the_naive_implementation(days: int, count: int, blocks: int, skill: float) -> None:
    returns = market(days, count, days + count, skill)
    logits, inside, outside = naive(returns, blocks)
    result = pbo_cscv(returns, blocks)
    assert len(result.logits) == math.comb(blocks, blocks // 2)
    np.testing.assert_allclose(result.logits, logits, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.in_sample, inside * math.sqrt(365), rtol=1e-9)
    np.testing.assert_allclose(result.out_of_sample, outside * math.sqrt(365), rtol=1e-9, atol=1e-12)
    assert result.pbo == np.mean(logits <= 0)
    assert result.probability_of_loss == np.mean(outside < 0)
    line = stats.linregress(inside, outside)
    assert result.degradation_slope == pytest.approx(line.slope, rel=1e-8)
    assert result.degradation_intercept == pytest.approx(line.intercept * math.sqrt(365), rel=1e-8)
    assert (result.configurations, result.days, result.blocks) == (count, days, blocks)


def test_one_dominant_configuration_is_never_overfitted() -> None:
    returns = np.random.default_rng(1).normal(0, 0.01, (400, 50))
    returns[:, 17] += 0.01
    result = pbo_cscv(returns, 10)
    assert result.pbo == 0.0
    assert result.probability_of_loss == 0.0
    assert (result.logits == math.log(50)).all()  # rank 50 of 50: w = 50 / 51


def test_noise_is_near_one_half() -> None:
    values = [pbo_cscv(np.random.default_rng(seed).normal(0, 0.01, (400, 20)), 8).pbo for seed in range(150)]
    # Single values scatter widely; their mean does not.
    assert np.mean(values) == pytest.approx(0.5, abs=4 * np.std(values) / math.sqrt(150) + 0.03)
    assert np.std(values) > 0.1


def test_what_fits_one_half_fails_in_the_other() -> None:
    # Each configuration earns in one block what it loses in the next: whatever is chosen disappoints.
    generator = np.random.default_rng(2)
    returns = generator.normal(0, 0.001, (320, 8))
    for k in range(8):
        returns[40 * k : 40 * (k + 1), k] += 0.01
        returns[40 * ((k + 1) % 8) : 40 * ((k + 1) % 8) + 40, k] -= 0.01
    result = pbo_cscv(returns, 8)
    assert result.pbo > 0.8
    assert result.probability_of_loss > 0.8
    assert result.degradation_slope < 0


@quick
@given(seed=st.integers(0, 10**6), count=st.integers(2, 12), copies=st.integers(0, 3), still=st.integers(0, 3))
def test_order_of_columns_changes_nothing(seed: int, count: int, copies: int, still: int) -> None:
    returns = market(70, count, seed)
    returns = np.hstack([returns, np.repeat(returns[:, :1], copies, axis=1), np.zeros((70, still))])
    order = np.random.default_rng(seed).permutation(returns.shape[1])
    a, b = pbo_cscv(returns, 6), pbo_cscv(returns[:, order], 6)
    for name in ("logits", "in_sample", "out_of_sample"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-12)
    assert (a.pbo, a.probability_of_loss) == (b.pbo, b.probability_of_loss)
    assert a.degradation_slope == pytest.approx(b.degradation_slope, rel=1e-9, nan_ok=True)


@quick
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100))
def test_leverage_changes_nothing(seed: int, scale: float) -> None:
    returns = market(60, 6, seed)
    levered = returns * np.array([scale, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(pbo_cscv(returns, 6).logits, pbo_cscv(levered, 6).logits, rtol=1e-12)


def test_stretches_without_trading() -> None:
    generator = np.random.default_rng(3)
    never = np.zeros((80, 1))
    late = np.r_[np.zeros(40), generator.normal(0, 0.01, 40)][:, None]
    steady = np.full((80, 1), 0.001)
    result = pbo_cscv(np.hstack([never, late, never]), 4)
    assert np.isfinite(result.out_of_sample).all()
    assert (pbo_cscv(np.zeros((40, 3)), 4).logits == 0).all()  # all alike: the middle rank
    # A constant gain has no risk: it is always best, and no line can be drawn through infinity.
    certain = pbo_cscv(np.hstack([never, late, steady]), 4)
    assert certain.pbo == 0.0
    assert math.isnan(certain.degradation_slope)


@pytest.mark.parametrize(
    ("shape", "blocks", "words"),
    [
        ((100, 1), 4, "one configuration"),
        ((100, 3), 5, "5 blocks; use an even number"),
        ((100, 3), 0, "0 blocks"),
        ((100, 3), 22, "22 blocks"),
        ((30, 3), 16, "30 days cannot make 16 blocks"),
        ((100,), 4, "shape"),
    ],
)
def test_refusals_name_the_value(shape: tuple[int, ...], blocks: int, words: str) -> None:
    with pytest.raises(StatisticsError, match=words):
        pbo_cscv(np.random.default_rng(0).normal(size=shape), blocks)


def test_a_missing_day_is_named() -> None:
    returns = np.zeros((40, 3))
    returns[5, 2] = math.nan
    with pytest.raises(StatisticsError, match="return 5 of series 2 is nan"):
        pbo_cscv(returns, 4)


def test_the_size_of_the_aim() -> None:
    result: PboResult = pbo_cscv(np.random.default_rng(4).normal(0, 0.01, (2000, 500)), 16)
    assert len(result.logits) == 12_870
    assert 0.0 <= result.pbo <= 1.0
