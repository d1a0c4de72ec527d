"""Values of a policy from another one's log: by hand, by their properties, and how often the intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.validation.off_policy import (
    DecisionLog,
    OffPolicyError,
    difference,
    doubly_robust,
    effective_sample_size,
    ips,
    mean_interval,
    snips,
    weights_of,
)

ARMS = 3


def make(seed: int, n: int = 300) -> tuple[DecisionLog, np.ndarray, np.ndarray]:
    """A log, a target policy and true means."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(ARMS, 2.0), n) * 0.85 + 0.05
    p /= p.sum(axis=1, keepdims=True)
    means = rng.standard_normal((n, ARMS))
    arms = np.array([rng.choice(ARMS, p=row) for row in p])
    rewards = means[np.arange(n), arms] + 0.3 * rng.standard_normal(n)
    return DecisionLog(arms, rewards, p), rng.dirichlet(np.ones(ARMS), n), means


def test_by_hand():
    log = DecisionLog([0, 1, 1, 0], [1.0, 2.0, 4.0, -1.0], [[0.5, 0.5], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75]])
    target = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 1.0]])
    w, raw = weights_of(log, target)
    assert w.tolist() == raw.tolist() == [2.0, 4.0, 1.0, 0.0]
    assert ips(log, target).value == pytest.approx((2 + 8 + 4 + 0) / 4)
    assert snips(log, target).value == pytest.approx(14 / 7)
    q = np.array([[0.5, 0.0], [0.0, 1.0], [1.0, 3.0], [0.0, 2.0]])
    # 0.5 + 2 (1 - 0.5), 1 + 4 (2 - 1), 2 + 1 (4 - 3), 2 + 0
    found = doubly_robust(log, target, q)
    assert found.influence.tolist() == [1.5, 5.0, 3.0, 2.0]
    assert found.value == pytest.approx(11.5 / 4)
    assert found.effective_n == pytest.approx(49 / 21)
    clipped = ips(log, target, max_weight=2.5)
    assert clipped.value == pytest.approx((2 + 5 + 4 + 0) / 4)
    assert (clipped.clipped, clipped.largest_weight) == (0.25, 4.0)


@given(st.integers(0, 200))
@settings(max_examples=25, deadline=None)
def test_a_policy_on_its_own_log_is_worth_what_the_log_says(seed):
    log, _, means = make(seed, 50)
    for found in (ips(log, log.propensities), snips(log, log.propensities)):
        assert found.value == pytest.approx(log.rewards.mean())
        assert found.effective_n == pytest.approx(len(log))
        assert found.clipped == 0.0
    exact = doubly_robust(log, log.propensities, np.zeros_like(means))
    assert exact.value == pytest.approx(log.rewards.mean())


@given(st.integers(0, 200), st.floats(-100, 100))
@settings(max_examples=25, deadline=None)
def test_snips_moves_with_the_rewards_and_every_mean_influence_is_the_estimate(seed, shift):
    log, target, means = make(seed, 60)
    moved = DecisionLog(log.arms, log.rewards + shift, log.propensities)
    assert snips(moved, target).value == pytest.approx(snips(log, target).value + shift, abs=1e-8)
    for found in (ips(log, target), snips(log, target), doubly_robust(log, target, means)):
        assert found.influence.mean() == pytest.approx(found.value, abs=1e-10)
        assert found.interval.low <= found.value <= found.interval.high
        assert 1.0 <= found.effective_n <= len(log) + 1e-9


def test_doubly_robust_with_the_true_means_is_the_most_precise_and_with_wrong_ones_still_right():
    log, target, means = make(3, 4_000)
    truth = float((target * means).sum(axis=1).mean())
    right, wrong = doubly_robust(log, target, means), doubly_robust(log, target, means * 0 + 5.0)
    plain = ips(log, target)
    assert right.interval.standard_error < plain.interval.standard_error < wrong.interval.standard_error
    for found in (right, wrong, plain):
        assert abs(found.value - truth) < 4 * found.interval.standard_error


def test_differences_cancel_what_moves_both():
    log, target, means = make(4, 500)
    first, second = doubly_robust(log, target, means), doubly_robust(log, log.propensities, means)
    found = difference(first, second)
    assert found.value == pytest.approx(first.value - second.value)
    same = difference(first, first)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(OffPolicyError, match="cannot be compared"):
        difference(first, ips(log, target))


def test_bootstrap_and_student_agree_on_independent_decisions():
    values = np.random.default_rng(6).standard_normal(2_000)
    student, bootstrap = mean_interval(values), mean_interval(values, method="bootstrap")
    assert student.value == pytest.approx(bootstrap.value)
    assert bootstrap.high - bootstrap.low == pytest.approx(student.high - student.low, rel=0.1)


@pytest.mark.parametrize(
    ("arms", "rewards", "p", "words"),
    [
        ([0], [1.0], [[0.5, 0.4]], "probabilities that sum to 1"),
        ([0], [1.0], [[1.5, -0.5]], "probabilities that sum to 1"),
        ([0], [1.0], [[math.nan, 1.0]], "probabilities that sum to 1"),
        ([0], [math.nan], [[0.5, 0.5]], "finite"),
        ([0, 1], [1.0], [[0.5, 0.5]] * 2, "finite"),
        ([2], [1.0], [[0.5, 0.5]], "not one of"),
        ([1], [1.0], [[1.0, 0.0]], "propensity of 0"),
        ([0], [1.0], [0.5, 0.5], "shape"),
    ],
)
def test_a_log_that_cannot_be_is_refused(arms, rewards, p, words):
    with pytest.raises(OffPolicyError, match=words):
        DecisionLog(arms, rewards, p)


def test_what_was_never_tried_cannot_be_told():
    log = DecisionLog([0, 0], [1.0, 1.0], [[1.0, 0.0], [0.5, 0.5]])
    with pytest.raises(OffPolicyError, match="never does there"):
        ips(log, [[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(OffPolicyError, match="max_weight"):
        ips(log, [[1.0, 0.0], [0.5, 0.5]], max_weight=1.0)
    with pytest.raises(OffPolicyError, match="expected rewards"):
        doubly_robust(log, [[1.0, 0.0], [0.5, 0.5]], [[math.nan, 0.0], [0.0, 0.0]])
    with pytest.raises(OffPolicyError, match="no interval"):
        ips(DecisionLog([0], [1.0], [[0.5, 0.5]]), [[0.5, 0.5]])
    never = snips(DecisionLog([0, 0], [1.0, 1.0], [[0.5, 0.5]] * 2), [[0.0, 1.0]] * 2)
    assert math.isnan(never.value)
    assert never.effective_n == 0.0


def test_effective_sample_size_of_extreme_weights():
    assert effective_sample_size([1e-200] * 5) == pytest.approx(5)
    assert effective_sample_size([1e200, 0.0]) == 1.0
    assert effective_sample_size([]) == 0.0
