"""Effective number of trials: planted clusters are found, noise is not bundled, and order does not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples

from mlbot_core.validation.effective_trials import _silhouettes, effective_trials
from mlbot_core.validation.significance import StatisticsError, deflated_sharpe_ratio, sharpe_ratio

quick = settings(deadline=None, max_examples=25)


def planted(sizes: list[int], share: float, days: int = 800, seed: int = 0) -> np.ndarray:
    """Families of trials; ``share`` is the correlation inside a family, families are unrelated."""
    generator = np.random.default_rng(seed)
    families = [np.repeat(generator.standard_normal((days, 1)), size, axis=1) for size in sizes]
    own = generator.standard_normal((days, sum(sizes)))
    return 0.01 * (math.sqrt(share) * np.hstack(families) + math.sqrt(1 - share) * own)


@pytest.mark.parametrize(
    ("sizes", "share"),
    [
        ([20] * 3, 0.8),
        ([10] * 10, 0.5),
        ([40] * 5, 0.3),
        ([2] * 30, 0.9),
        ([100, 100], 0.95),
        ([1, 1, 1, 2, 5, 10, 30, 50], 0.64),
        ([25], 0.0),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_planted_families_are_found(sizes: list[int], share: float, seed: int) -> None:
    found = effective_trials(planted(sizes, share, seed=seed))
    if share == 0.0:
        assert not found.structured
        assert found.number == sum(sizes)
        return
    assert found.structured
    assert found.number == len(sizes)
    np.testing.assert_array_equal(found.labels, np.repeat(np.arange(len(sizes)), sizes))
    assert found.cluster_sharpes.shape == (len(sizes),)
    assert found.sharpe_variance == pytest.approx(found.cluster_sharpes.var(ddof=1))


def test_a_common_market_does_not_hide_the_families() -> None:
    generator = np.random.default_rng(3)
    returns = planted([20] * 5, 0.6) + 0.006 * generator.standard_normal((800, 1))
    assert effective_trials(returns).number == 5


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99])
def test_one_family_is_interpolated_by_its_correlation(share: float) -> None:
    found = effective_trials(planted([60], share, days=2000))
    assert not found.structured
    assert found.number == pytest.approx(share + (1 - share) * 60, rel=0.06)


def test_many_unrelated_trials_count_one_by_one() -> None:
    found = effective_trials(np.random.default_rng(4).normal(0, 0.01, (600, 150)))
    assert found.number == 150.0
    expected = np.array([sharpe_ratio(column) for column in np.random.default_rng(4).normal(0, 0.01, (600, 150)).T])
    np.testing.assert_allclose(found.cluster_sharpes, expected, rtol=1e-9)


def test_copies_count_once() -> None:
    base = np.random.default_rng(5).normal(0.001, 0.01, (300, 4))
    found = effective_trials(np.repeat(base, 10, axis=1))
    assert found.number == 4.0
    np.testing.assert_allclose(found.cluster_sharpes, [sharpe_ratio(column) for column in base.T], rtol=1e-6)
    assert effective_trials(np.repeat(base[:, :1], 9, axis=1)).number == pytest.approx(1.0)
    assert effective_trials(np.zeros((50, 5))).number == pytest.approx(1.0)
    alone = effective_trials(base[:, :1])
    assert (alone.number, alone.sharpe_variance, alone.trials) == (1.0, 0.0, 1)
    assert effective_trials(base[:, :2]).number == 2.0


def test_members_are_weighted_by_inverse_variance() -> None:
    returns = planted([6, 6], 0.9, seed=6) * np.tile([1.0, 2.0, 4.0], 4)
    found = effective_trials(returns)
    assert found.number == 2.0
    for k in range(2):
        members = returns[:, 6 * k : 6 * k + 6]
        weights = 1 / members.var(axis=0, ddof=1)
        expected = sharpe_ratio(members @ (weights / weights.sum()))
        assert found.cluster_sharpes[k] == pytest.approx(expected, rel=1e-12)


@quick
@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=6),
    share=st.sampled_from([0.0, 0.3, 0.7, 0.95]),
    seed=st.integers(0, 10**6),
    still=st.integers(0, 2),
)
def test_order_of_columns_changes_nothing(sizes: list[int], share: float, seed: int, still: int) -> None:
    returns = np.hstack([planted(sizes, share, 200, seed), np.zeros((200, still))])
    order = np.random.default_rng(seed).permutation(returns.shape[1])
    a, b = effective_trials(returns), effective_trials(returns[:, order])
    assert a.number == pytest.approx(b.number, rel=1e-9)
    assert a.sharpe_variance == pytest.approx(b.sharpe_variance, rel=1e-7, abs=1e-12)
    assert a.structured == b.structured
    same = a.labels[:, None] == a.labels[None, :]
    np.testing.assert_array_equal(same[np.ix_(order, order)], b.labels[:, None] == b.labels[None, :])
    assert 1.0 <= a.number <= returns.shape[1]


def test_silhouettes_along_the_tree_equal_scikit_learn() -> None:
    from scipy.cluster.hierarchy import cut_tree, linkage
    from scipy.spatial.distance import pdist, squareform

    points = np.random.default_rng(7).normal(size=(40, 3))
    far = squareform(pdist(points))
    tree = linkage(pdist(points), "ward")
    mean, std = _silhouettes(far, tree[:, :2].astype(np.int64))
    for clusters in range(2, 40):
        labels = cut_tree(tree, n_clusters=clusters).ravel()
        expected = silhouette_samples(far, labels, metric="precomputed")
        assert mean[40 - clusters] == pytest.approx(expected.mean(), abs=1e-12)
        assert std[40 - clusters] == pytest.approx(expected.std(), abs=1e-12)


def test_the_deflated_sharpe_ratio_reads_it() -> None:
    # Fifty variations of two ideas without skill: the best is no discovery, nor is it punished for fifty trials.
    returns = planted([25, 25], 0.9, days=730, seed=8)
    found = effective_trials(returns)
    best = returns[:, int(np.argmax([sharpe_ratio(column) for column in returns.T]))]
    by_clusters = deflated_sharpe_ratio(best, found.number, found.sharpe_variance)
    assert by_clusters < 0.95
    assert by_clusters > deflated_sharpe_ratio(best, 50, found.sharpe_variance)


def test_refusals_name_the_value() -> None:
    with pytest.raises(StatisticsError, match="at least 3"):
        effective_trials(np.zeros((2, 4)))
    with pytest.raises(StatisticsError, match="return 1 of series 2 is nan"):
        effective_trials(np.array([[0.0, 0, 0], [0, 0, math.nan], [0, 0, 0]]))
