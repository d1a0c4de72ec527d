"""The learning policies: arithmetic, choices and their probabilities, state, replay, and the risk envelope."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlbot_core.decision.bandit import (
    ARMS,
    BanditError,
    BanditState,
    PolicySpec,
    arm_rows,
    choose,
    expectations,
    initial_bandit,
    nearest_arm,
    propensities,
    state_from_json,
    state_to_json,
    update,
)
from mlbot_core.decision.bandit_baselines import (
    KELLY,
    VOLATILITY_TARGET,
    baselines,
    fractional_kelly,
    volatility_target,
)
from mlbot_core.decision.bandit_context import (
    N_CONTEXT,
    Context,
    ContextScale,
    context_from_json,
    context_to_json,
    context_vector,
)
from mlbot_core.decision.bandit_math import (
    cholesky,
    drawn,
    next_word,
    normal_quantile,
    sampled_shares,
    solve_lower,
    solve_upper,
)
from mlbot_core.decision.state import Forecast, Limits, Observation, initial_state
from mlbot_core.decision.step import step

ROOT = Path(__file__).resolve().parents[2]
SCALE = ContextScale(0.5, 0.25)
LIMITS = Limits(0.1, 0.105, 0.03, 0.25, 10_000_000, 0.02, 300_000)
KINDS = [("lints", "shared"), ("lints", "disjoint"), ("linucb", "shared"), ("linucb", "disjoint")]
anything = st.floats(allow_nan=True, allow_infinity=True, width=64)


def trained(policy: str = "lints", features: str = "shared", n: int = 3, steps: int = 60, seed: int = 5) -> BanditState:
    rng = np.random.default_rng(seed)
    state = initial_bandit(PolicySpec(policy, features, n, epsilon=0.2, seed=seed))
    for t in range(steps):
        x = np.r_[1.0, rng.standard_normal(n - 1)]
        arm = choose(state, x, str(t), explore=True).arm
        state = update(state, x, arm, ARMS[arm] * (0.5 + x[-1]) - 0.4 * ARMS[arm] ** 2 + 0.3 * rng.standard_normal())
    return state


def test_generator_is_splitmix64():
    """The first outputs for the seed 0 of the reference implementation (xoshiro.di.unimi.it/splitmix64.c)."""
    state = np.zeros(1, np.uint64)
    words = [int(next_word(state)) for _ in range(3)]
    assert words == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_normal_quantile_agrees_with_scipy():
    from scipy.special import ndtri

    p = np.r_[1e-300, 1e-16, 1e-9, np.linspace(0.001, 0.999, 999), 1 - 1e-12]
    assert max(abs(normal_quantile(v) - ndtri(v)) for v in p) < 1e-13 * 40


@given(st.integers(1, 8), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_linear_algebra_agrees_with_numpy(n, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n + 3, n))
    matrix = rows.T @ rows + np.eye(n)
    lower, fine = cholesky(matrix)
    assert fine
    np.testing.assert_allclose(lower @ lower.T, matrix, atol=1e-10)
    right = rng.standard_normal(n)
    np.testing.assert_allclose(
        solve_upper(lower, solve_lower(lower, right)), np.linalg.solve(matrix, right), rtol=1e-8, atol=1e-10
    )


def test_cholesky_refuses_what_has_none():
    for bad in (np.zeros((2, 2)), -np.eye(2), np.array([[1.0, 2.0], [2.0, 1.0]]), np.full((2, 2), math.nan)):
        assert not cholesky(bad)[1]


@pytest.mark.parametrize("features", ["shared", "disjoint"])
def test_means_and_widths_are_those_of_ridge_regression(features):
    state = trained("linucb", features)
    x = np.array([1.0, 0.3, -0.7])
    mean, width = expectations(state, x)
    rows, inverse = arm_rows(state.spec, x), np.linalg.inv(state.gram)
    np.testing.assert_allclose(mean, rows @ inverse @ state.moment, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(width, np.sqrt(np.einsum("ij,jk,ik->i", rows, inverse, rows)), rtol=1e-9, atol=1e-12)


def test_shared_features_know_that_no_position_earns_nothing():
    state = trained()
    mean, width = expectations(state, np.array([1.0, 2.0, -3.0]))
    assert mean[0] == 0.0
    assert width[0] == 0.0


@pytest.mark.parametrize(("policy", "features"), KINDS)
def test_choices_come_with_their_logged_probabilities(policy, features):
    """Over many ids, each arm is chosen as often as the sum of its logged probabilities says."""
    state, x, n = trained(policy, features), np.array([1.0, 0.4, 0.1]), 3_000
    choices = [choose(state, x, f"id {i}", explore=True) for i in range(n)]
    p = np.array([choice.propensities for choice in choices])
    assert np.abs(p.sum(axis=1) - 1).max() < 1e-12
    assert p.min() >= state.spec.epsilon / len(ARMS) - 1e-12
    counts = np.bincount([choice.arm for choice in choices], minlength=len(ARMS))
    error = np.sqrt((p * (1 - p)).sum(axis=0))
    assert (np.abs(counts - p.sum(axis=0)) < 4.5 * error).all()


def test_thompson_shares_are_those_of_the_posterior():
    """Two arms whose scores are normal: the share of the better one is a normal probability."""
    from scipy.stats import norm

    rows = np.array([[1.0, 0.0], [0.0, 1.0]])
    shares, fine = sampled_shares(np.diag([4.0, 1.0]), np.array([2.0, 0.8]), rows, 0.7, 60_000, np.uint64(3))
    assert fine
    expected = norm.cdf((0.5 - 0.8) / (0.7 * math.sqrt(0.25 + 1.0)))
    assert abs(shares[0] - expected) < 4 * math.sqrt(expected * (1 - expected) / 60_000)


def test_without_exploration_the_largest_mean_is_taken_and_a_tie_takes_the_smallest():
    state, x = trained(), np.array([1.0, 1.5, 0.2])
    mean, _ = expectations(state, x)
    choice = choose(state, x, "a", explore=False)
    assert choice.arm == int(np.argmax(mean))
    assert choice.propensity == 1.0
    assert choose(initial_bandit(state.spec), x, "a", explore=False).multiplier == 0.0


@pytest.mark.parametrize("features", ["shared", "disjoint"])
def test_linucb_takes_the_largest_upper_bound(features):
    """Optimism: an arm of which little is known is tried though another has the larger mean."""
    optimists = 0
    for seed in range(40):
        state = trained("linucb", features, steps=12, seed=seed)
        x = np.r_[1.0, np.random.default_rng(seed).standard_normal(2)]
        mean, width = expectations(state, x)
        p = propensities(state, x, "a", explore=True)
        best = int(np.argmax(mean + state.spec.alpha * width))
        assert int(np.argmax(p)) == best
        assert p[best] == pytest.approx(1 - state.spec.epsilon + state.spec.epsilon / len(ARMS))
        optimists += best != int(np.argmax(mean))
    assert optimists > 5


def test_drawn_never_takes_what_has_no_probability():
    p = np.array([0.0, 0.5, 0.0, 0.5, 0.0])
    assert {drawn(p, np.uint64(seed)) for seed in range(500)} == {1, 3}
    assert drawn(np.array([1.0, 0, 0, 0, 0]), np.uint64(1)) == 0


@pytest.mark.parametrize(("policy", "features"), KINDS)
def test_state_survives_json_bit_for_bit(policy, features):
    state = trained(policy, features)
    again = state_from_json(json.loads(json.dumps(state_to_json(state))))
    assert again.version == state.version
    assert again.gram.tobytes() == state.gram.tobytes()
    assert again.moment.tobytes() == state.moment.tobytes()
    assert again.spec == state.spec


def test_a_damaged_state_is_refused():
    good = state_to_json(trained())
    nan = [list(row) for row in good["gram"]]
    nan[0][0] = "nan"
    skew = [list(row) for row in good["gram"]]
    skew[0][1] = (1.5).hex()
    for wrong in (
        {"format": 2},
        {"arms": ["0x0.0p+0"]},
        {"gram": nan},
        {"gram": skew},
        {"gram": good["gram"][:-1]},
        {"moment": good["moment"][:-1]},
        {"updates": -1},
        {"spec": {**good["spec"], "policy": "magic"}},
        {"spec": {**good["spec"], "more": 1}},
    ):
        with pytest.raises(BanditError):
            state_from_json({**good, **wrong})
    with pytest.raises(BanditError):
        state_from_json({})


def test_what_cannot_be_learned_from_is_refused_and_changes_nothing():
    state = trained()
    before = state.version
    x = np.array([1.0, 0.0, 0.0])
    for arm, reward, context in ((5, 0.0, x), (-1, 0.0, x), (1, math.nan, x), (1, math.inf, x), (1, 0.0, x * math.nan)):
        with pytest.raises(BanditError):
            update(state, context, arm, reward)
    update(state, x, 2, 1.0)
    assert state.version == before


def test_another_process_gives_the_same_policy_bit_for_bit():
    code = (
        "import numpy as np\n"
        "from mlbot_core.decision.bandit import *\n"
        "rng = np.random.default_rng(11)\n"
        f"for policy, features in {KINDS!r}:\n"
        "    state = initial_bandit(PolicySpec(policy, features, 4, epsilon=0.1, seed=3))\n"
        "    for t in range(60):\n"
        "        x = rng.standard_normal(4); arm = choose(state, x, str(t), explore=True).arm\n"
        "        state = update(state, x, arm, float(rng.standard_normal()))\n"
        "    print(state.version)\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert len(set(runs[0].split())) == len(KINDS)


@given(
    state_seed=st.integers(0, 50),
    kind=st.sampled_from(KINDS),
    vector=st.lists(anything, min_size=3, max_size=3),
    damage=st.none() | st.tuples(st.integers(0, 3), st.integers(0, 3), anything),
    explore=st.booleans(),
    edge=anything,
    nav=st.floats(1_000, 1e6),
    price=st.floats(100, 200_000),
    held=st.floats(-0.3, 0.3),
)
@settings(max_examples=300, deadline=None)
def test_no_policy_state_or_context_widens_the_risk_envelope(
    state_seed, kind, vector, damage, explore, edge, nav, price, held
):
    """Whatever the bandit is and sees, the target is at most that of the whole cap, and on no other side."""
    state = trained(*kind, steps=10, seed=state_seed)
    if damage is not None:
        gram = state.gram.copy()
        gram[damage[0], damage[1]] = damage[2]
        moment = state.moment.copy()
        moment[damage[0]] = damage[2]
        state = BanditState(state.spec, gram, moment, state.updates)
    choice = choose(state, np.array(vector), "decision", explore=explore)
    assert choice.multiplier in ARMS
    assert abs(sum(choice.propensities) - 1) < 1e-9
    if not np.isfinite(vector).all():
        assert choice.multiplier == 0.0
    _inside_the_envelope(choice.multiplier, edge, nav, price, held)


@given(
    multiplier=anything, edge=anything, nav=st.floats(1_000, 1e6), price=st.floats(100, 200_000), held=st.floats(-1, 1)
)
@settings(max_examples=300, deadline=None)
def test_no_multiplier_whatever_widens_the_risk_envelope(multiplier, edge, nav, price, held):
    _inside_the_envelope(multiplier, edge, nav, price, held)


def _inside_the_envelope(multiplier: float, edge: float, nav: float, price: float, held: float) -> None:
    position = held * nav / price
    seen = Observation(1_000_000, 0, price, nav, position, 0.0, 0, 0)
    (after, sized), (whole_after, whole) = (
        step(initial_state(), seen, Forecast(edge, m, 0), LIMITS, 0.0015) for m in (multiplier, 1.0)
    )
    assert after.causes == whole_after.causes
    assert sized.level == whole.level
    assert math.isfinite(sized.target)
    assert abs(sized.target) <= LIMITS.max_position
    assert abs(sized.target) <= abs(whole.target)
    assert sized.target * whole.target >= 0.0


@given(st.lists(anything, min_size=8, max_size=8))
@example([7772623702720724.0, 0.0, 1.0, -7772623031632083.0, 1.0, 0.0, 0.0, 0.0])
@settings(max_examples=200, deadline=None)
def test_context_is_bounded_or_all_nan(values):
    vector = context_vector(Context(*values), SCALE)
    assert vector.shape == (N_CONTEXT,)
    assert np.isnan(vector).all() or (np.isfinite(vector).all() and np.abs(vector).max() <= 3.0)
    again = context_from_json(json.loads(json.dumps(context_to_json(Context(*values)))))
    np.testing.assert_array_equal(np.array(list(vars(again).values())), np.array(values))


def test_context_by_hand():
    context = Context(-0.003, 0.003, 0.0015, math.nan, 1.0, 0.5, 0.05, -0.1)
    expected = [1.0, math.log(2), 0.0, 0.0, math.log(2), math.log(0.5), 0.2, -0.5]
    np.testing.assert_allclose(context_vector(context, SCALE), expected, rtol=1e-12)
    for name in ("edge", "edge_sd", "cost", "volatility", "drawdown"):
        assert np.isnan(context_vector(replace(context, **{name: math.nan}), SCALE)).all()
    for name in ("edge_sd", "spread"):
        assert np.isnan(context_vector(replace(context, **{name: -1e-9}), SCALE)).all()
    with pytest.raises(BanditError):
        context_from_json({"edge": "0x1p0"})


def test_nearest_arm():
    wanted = {-1.0: 0, 0.0: 0, 0.125: 0, 0.13: 1, 0.6: 2, 0.62: 2, 0.63: 3, 2.0: 4, math.nan: 0, math.inf: 0}
    assert {value: nearest_arm(value) for value in wanted} == wanted


def test_baselines_by_hand():
    context = Context(-0.0035, 0.02, 0.0015, math.nan, 0.8, 1.0, 0.0, 0.0)
    assert volatility_target(0.4, context) == 0.5
    assert volatility_target(0.9, context) == 1.0
    assert volatility_target(0.4, replace(context, volatility=math.nan)) == 0.0
    # (0.0035 - 0.0015) / 0.02^2 = 5 x NAV; a hundredth of it is 0.05 of NAV, half of a cap of 0.1
    assert fractional_kelly(0.01, 0.1, context) == pytest.approx(0.5)
    assert fractional_kelly(0.01, 0.1, replace(context, edge=0.001)) == 0.0
    assert fractional_kelly(0.25, 0.1, context) == 1.0
    rules = baselines(fixed=(0.25, 1.0), target_volatility=0.4, kelly_fraction=0.01, max_position=0.1)
    assert [rule.name for rule in rules] == ["fixed 0.25", "fixed 1", VOLATILITY_TARGET, KELLY]
    assert [ARMS[rule.rule(context)] for rule in rules] == [0.25, 1.0, 0.5, 0.5]


@given(st.lists(anything, min_size=8, max_size=8))
@settings(max_examples=100, deadline=None)
def test_baselines_choose_an_arm_of_any_context(values):
    rules = baselines(fixed=(0.5,), target_volatility=0.4, kelly_fraction=0.25, max_position=0.1)
    for rule in rules:
        assert 0 <= rule.rule(Context(*values)) < len(ARMS)


def test_spec_refuses_what_cannot_be():
    for wrong in (
        {"policy": "greedy"},
        {"features": "deep"},
        {"n_context": 0},
        {"ridge": 0.0},
        {"alpha": -1.0},
        {"epsilon": 1.5},
        {"draws": 0},
    ):
        with pytest.raises(BanditError):
            PolicySpec(**({"policy": "lints", "features": "shared", "n_context": 3} | wrong))
    with pytest.raises(BanditError, match="n_context"):
        PolicySpec("lints", "shared", 65)
    assert PolicySpec("lints", "shared", 64, epsilon=1.0, alpha=0.0, draws=1).dimension == 65
    assert PolicySpec("lints", "disjoint", 1, epsilon=0.0, draws=100_000).dimension == len(ARMS)
    with pytest.raises(BanditError):
        PolicySpec("lints", "shared", 3, draws=100_001)
    with pytest.raises(BanditError):
        propensities(trained(), np.zeros(2), "a", explore=True)
