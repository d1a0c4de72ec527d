"""A contextual bandit that chooses how much of the risk cap to use: LinUCB and linear Thompson sampling. Pure.

What it chooses is the multiplier of :class:`mlbot_core.decision.state.Forecast`, one of :data:`ARMS`. Side, cap and
every limit stay with :func:`mlbot_core.decision.step.step`: the bandit can make a position smaller and nothing else.

Model
-----
The reward of arm a in context x is linear, ``r = φ(x, a)ᵀ θ + noise``, fitted by ridge regression: with the rows φ of
all settled decisions, ``A = ridge I + Σ φ φᵀ``, ``b = Σ r φ``, mean ``φᵀ A⁻¹ b``, width ``√(φᵀ A⁻¹ φ)``.

* ``shared``: φ = (m x, m²) with m the arm's multiplier. A position earns in proportion to its size, and its risk grows
  with the square; nothing is earned with none. Every decision teaches all arms, and arm 0 is worth exactly 0.
* ``disjoint``: φ = x in the arm's own block, one regression an arm: the textbook's form.

Policies
--------
* ``linucb`` takes the largest ``mean + alpha width``; while exploring, any arm with probability ``epsilon`` (a policy
  whose logged probabilities are 0 and 1 cannot be evaluated from its log).
* ``lints`` draws ``draws`` samples from N(A⁻¹ b, alpha² A⁻¹), counts how often each arm is the best, and draws the arm
  with these shares, mixed with ``epsilon``. So the logged propensity is not an estimate but the very probability with
  which the arm was drawn.

Without exploration both take the largest mean. Of equals the smallest multiplier wins; whatever cannot be computed
gives arm 0.

Randomness comes from a hash of the policy's seed and the decision's id and from nothing else, so the same state,
context and id give the same choice wherever and whenever it is made again.

Sources
-------
L. Li, W. Chu, J. Langford and R. Schapire, "A contextual-bandit approach to personalized news article recommendation",
WWW 2010, algorithm 1 (LinUCB, disjoint) and section 3.2 (shared features).
S. Agrawal and N. Goyal, "Thompson sampling for contextual bandits with linear payoffs", ICML 2013.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from mlbot_core.decision.bandit_math import added, drawn, expected, sampled_shares
from mlbot_core.errors import UsageError
from mlbot_core.models.canonical import canonical_json, sha256_hex

FloatArray = npt.NDArray[np.float64]

ARMS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
FORMAT: Final = 1
_POLICIES: Final = ("lints", "linucb")
_FEATURES: Final = ("shared", "disjoint")
# what rounding may leave of the sum of probabilities
_ROUNDING: Final = 1e-12


class BanditError(UsageError):
    """A bandit's state, log or choice is not what it must be."""


@dataclass(frozen=True)
class PolicySpec:
    """What decides a policy besides its data.

    Parameters
    ----------
    policy
        ``lints`` or ``linucb``.
    features
        ``shared`` or ``disjoint``.
    n_context
        Numbers in a context.
    ridge
        Of the regression; the prior's precision.
    alpha
        Width of exploration: multiple of the standard width (LinUCB), deviation of the noise in units of the reward
        (Thompson sampling).
    epsilon
        Probability of an arm at random, while exploring.
    draws
        Samples of the posterior a decision.
    seed
        Of all randomness.
    """

    policy: Literal["lints", "linucb"]
    features: Literal["shared", "disjoint"]
    n_context: int
    ridge: float = 1.0
    alpha: float = 1.0
    epsilon: float = 0.1
    draws: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = (
            (self.policy not in _POLICIES, "policy", f"one of {', '.join(_POLICIES)}"),
            (self.features not in _FEATURES, "features", f"one of {', '.join(_FEATURES)}"),
            (not 1 <= self.n_context <= 64, "n_context", "1 to 64"),
            (not (math.isfinite(self.ridge) and self.ridge > 0), "ridge", "> 0"),
            (not (math.isfinite(self.alpha) and self.alpha >= 0), "alpha", ">= 0"),
            (not 0 <= self.epsilon <= 1, "epsilon", "0 to 1"),
            (not 1 <= self.draws <= 100_000, "draws", "1 to 100,000"),
        )
        for bad, name, allowed in wrong:
            if bad:
                raise BanditError(f"bandit: {name} is {getattr(self, name)!r}; allowed: {allowed}")

    @property
    def dimension(self) -> int:
        """Numbers in φ."""
        return self.n_context + 1 if self.features == "shared" else self.n_context * len(ARMS)


@dataclass(frozen=True, eq=False)
class BanditState:
    """A policy with all that it has learned; never changed in place.

    Parameters
    ----------
    spec
        What it is.
    gram
        A, float64[d, d].
    moment
        b, float64[d], in units of the reward.
    updates
        Settled decisions in it.
    """

    spec: PolicySpec
    gram: FloatArray
    moment: FloatArray
    updates: int

    @property
    def version(self) -> str:
        """Hash of everything in it, 64 hex digits: the same content, the same version."""
        return sha256_hex(canonical_json(state_to_json(self)))


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Parameters
    ----------
    arm
        Index into :data:`ARMS`.
    propensities
        Probability with which each arm would have been chosen here; sum 1.
    explored
        Whether exploration was on.
    """

    arm: int
    propensities: tuple[float, ...]
    explored: bool

    @property
    def multiplier(self) -> float:
        """Share of the cap, one of :data:`ARMS`."""
        return ARMS[self.arm]

    @property
    def propensity(self) -> float:
        """Of the chosen arm."""
        return self.propensities[self.arm]


def initial_bandit(spec: PolicySpec) -> BanditState:
    """Return a policy that has learned nothing."""
    d = spec.dimension
    return BanditState(spec, spec.ridge * np.eye(d), np.zeros(d), 0)


def arm_rows(spec: PolicySpec, context: npt.ArrayLike) -> FloatArray:
    """Return φ of every arm, float64[arms, d].

    Raises
    ------
    BanditError
        If the context has another length.
    """
    x = np.ascontiguousarray(context, dtype=np.float64)
    if x.shape != (spec.n_context,):
        raise BanditError(f"a context of shape {x.shape} was given to a bandit of {spec.n_context} numbers")
    rows = np.zeros((len(ARMS), spec.dimension))
    if spec.features == "shared":
        shares = np.array(ARMS)
        # 0 x infinity is NaN, which gives arm 0
        with np.errstate(invalid="ignore"):
            rows[:, :-1] = shares[:, None] * x
        rows[:, -1] = shares * shares
    else:
        for a in range(len(ARMS)):
            rows[a, a * len(x) : (a + 1) * len(x)] = x
    return rows


def expectations(state: BanditState, context: npt.ArrayLike) -> tuple[FloatArray, FloatArray] | None:
    """Return mean and standard width of every arm, float64[arms] each, in units of the reward; None: not computable."""
    rows = arm_rows(state.spec, context)
    if not np.isfinite(rows).all():
        return None
    mean, width, fine = expected(state.gram, state.moment, rows)
    return (mean, width) if fine and np.isfinite(mean).all() and np.isfinite(width).all() else None


def propensities(state: BanditState, context: npt.ArrayLike, decision_id: str, *, explore: bool) -> FloatArray:
    """Return with which probability each arm is chosen here, float64[arms], sum 1."""
    spec = state.spec
    nothing = np.zeros(len(ARMS))
    nothing[0] = 1.0
    found = expectations(state, context)
    if found is None:
        return nothing
    mean, width = found
    if explore and spec.policy == "lints" and spec.alpha > 0:
        rows = arm_rows(spec, context)
        seed = _seed(spec, decision_id, "posterior")
        p, fine = sampled_shares(state.gram, state.moment, rows, spec.alpha, spec.draws, seed)
        if not fine:
            return nothing
    else:
        score = mean + spec.alpha * width if explore else mean
        p = np.zeros(len(ARMS))
        p[int(np.argmax(score))] = 1.0
    if explore:
        p = (1.0 - spec.epsilon) * p + spec.epsilon / len(ARMS)
    return np.asarray(p / p.sum(), dtype=np.float64)


def choose(state: BanditState, context: npt.ArrayLike, decision_id: str, *, explore: bool) -> Choice:
    """Choose a multiplier.

    Parameters
    ----------
    context
        float64[n_context]; a NaN or infinite number in it gives arm 0.
    decision_id
        Names the decision; the same id gives the same choice.
    explore
        False takes the largest mean, always.
    """
    p = propensities(state, context, decision_id, explore=explore)
    arm = int(drawn(p, _seed(state.spec, decision_id, "arm")))
    return Choice(arm, tuple(float(value) for value in p), explore)


def update(state: BanditState, context: npt.ArrayLike, arm: int, reward: float) -> BanditState:
    """Return the state after the reward of one decision became known; the given one stays as it is.

    Raises
    ------
    BanditError
        If arm, context or reward cannot be: what cannot be learned from must not be counted as learned.
    """
    if not (isinstance(arm, int | np.integer) and 0 <= arm < len(ARMS)):
        raise BanditError(f"arm {arm!r} is not one of 0 to {len(ARMS) - 1}")
    row = arm_rows(state.spec, context)[arm]
    if not (math.isfinite(reward) and np.isfinite(row).all()):
        raise BanditError(f"reward {reward} or its context is not a finite number; settle the decision with a real one")
    gram, moment = added(state.gram, state.moment, row, float(reward))
    return BanditState(state.spec, gram, moment, state.updates + 1)


def state_to_json(state: BanditState) -> dict[str, Any]:
    """Return a state as plain values that JSON keeps exactly (floats by their hexadecimal text)."""
    spec = {name: value.hex() if isinstance(value, float) else value for name, value in asdict(state.spec).items()}
    return {
        "format": FORMAT,
        "arms": [m.hex() for m in ARMS],
        "spec": spec,
        "gram": [[float(value).hex() for value in row] for row in state.gram],
        "moment": [float(value).hex() for value in state.moment],
        "updates": state.updates,
    }


def state_from_json(values: Mapping[str, Any]) -> BanditState:
    """Return the state that :func:`state_to_json` wrote.

    Raises
    ------
    BanditError
        If it is of another format or damaged: a policy is never guessed at.
    """
    try:
        if values["format"] != FORMAT or values["arms"] != [m.hex() for m in ARMS]:
            raise ValueError("format or arms are others")
        told = dict(values["spec"])
        for name in ("ridge", "alpha", "epsilon"):
            told[name] = float.fromhex(told[name])
        spec = PolicySpec(**told)
        gram = np.array([[float.fromhex(value) for value in row] for row in values["gram"]], dtype=np.float64)
        moment = np.array([float.fromhex(value) for value in values["moment"]], dtype=np.float64)
        updates = int(values["updates"])
        d = spec.dimension
        if gram.shape != (d, d) or moment.shape != (d,) or updates < 0:
            raise ValueError(f"shapes {gram.shape} and {moment.shape} do not fit {d} features")
        if not (np.isfinite(gram).all() and np.isfinite(moment).all() and (gram == gram.T).all()):
            raise ValueError("a number is not finite, or the matrix is not symmetric")
    except (KeyError, TypeError, ValueError, AttributeError, BanditError) as error:
        raise BanditError(
            f"stored bandit cannot be read ({type(error).__name__}: {error}); turn it off (mlbot bandit off) and "
            "promote an evaluated one"
        ) from error
    return BanditState(spec, gram, moment, updates)


def nearest_arm(multiplier: float) -> int:
    """Return the arm nearest to a wanted share of the cap; of two equally near ones the smaller; NaN gives arm 0."""
    if not math.isfinite(multiplier):
        return 0
    wanted = min(max(multiplier, 0.0), 1.0)
    return min(range(len(ARMS)), key=lambda a: (abs(ARMS[a] - wanted), a))


def check_propensities(values: npt.ArrayLike) -> FloatArray:
    """Return probabilities of all arms after checking that they are.

    Raises
    ------
    BanditError
        If they are not probabilities of all arms that sum to 1.
    """
    p = np.asarray(values, dtype=np.float64)
    if p.shape != (len(ARMS),) or not (p >= 0.0).all() or not abs(float(p.sum()) - 1.0) <= _ROUNDING:
        raise BanditError(f"propensities {p.tolist()} are not probabilities of {len(ARMS)} arms")
    return p


def _seed(spec: PolicySpec, decision_id: str, use: str) -> np.uint64:
    digest = hashlib.sha256(f"{spec.seed}|{use}|{decision_id}".encode()).digest()
    return np.uint64(int.from_bytes(digest[:8], "big"))
