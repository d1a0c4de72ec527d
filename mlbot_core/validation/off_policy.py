"""What a policy would have earned, from the log of another one: IPS, SNIPS and doubly robust, with intervals.

With target policy π, logged policy p, context x, chosen arm a, reward r, and the weight w = π(a|x) / p(a|x), clipped:

======  ==================================  ==========================================
name    estimate                            influence of one decision (its mean is the estimate)
======  ==================================  ==========================================
IPS     mean(w r)                           w r
SNIPS   V = mean(w r) / mean(w)             V + w (r - V) / mean(w)
DR      mean(Σ π q + w (r - q(a)))          Σ π q + w (r - q(a))
======  ==================================  ==========================================

q is a model of the reward; what it was fitted on must not be what it is used on, and then the estimate is right
whenever p is, however wrong q may be. The log may come from a policy that learns: the propensities are those of the
moment, and each term is right given all before it (a martingale).

Intervals are Student's on the influences (for SNIPS the delta method), or by the stationary bootstrap where one
decision moves with the next. Two policies on the same log are compared by the differences of their influences: what
moved both cancels.

Clipping trades variance for bias: the share of clipped weights and the effective sample size (Σw)² / Σw² (Kish) are
part of every answer, and an interval with many clipped weights is about something smaller than the policy's value.

Sources
-------
D. Horvitz and D. Thompson, "A generalization of sampling without replacement from a finite universe", JASA 47, 1952.
A. Swaminathan and T. Joachims, "The self-normalized estimator for counterfactual learning", NeurIPS 2015.
M. Dudík, J. Langford and L. Li, "Doubly robust policy evaluation and learning", ICML 2011.
L. Bottou et al., "Counterfactual reasoning and learning systems", JMLR 14, 2013 (clipping, effective sample size).
A. Owen, "Monte Carlo theory, methods and examples", 2013, chapter 9 (self-normalised intervals).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from mlbot_core.errors import MlbotError
from mlbot_core.validation.bootstrap import bootstrap_mean_interval
from mlbot_core.validation.significance import Interval

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Method = Literal["student", "bootstrap"]

# what rounding may leave of the sum of a row of probabilities
_ROUNDING: Final = 1e-9


class OffPolicyError(MlbotError):
    """A log cannot answer the question; the message says why."""


@dataclass(frozen=True, eq=False)
class DecisionLog:
    """What was chosen, with which probability, and what came of it.

    Parameters
    ----------
    arms
        int64[n], index of the chosen arm.
    rewards
        float64[n], any unit.
    propensities
        float64[n, arms], with which probability the logged policy chose each arm there; rows sum to 1.

    Raises
    ------
    OffPolicyError
        If shapes differ, a number is not finite, a row is no distribution, or an arm was chosen that could not be.
    """

    arms: IntArray
    rewards: FloatArray
    propensities: FloatArray

    def __post_init__(self) -> None:
        arms = np.asarray(self.arms, dtype=np.int64)
        rewards = np.asarray(self.rewards, dtype=np.float64)
        p = _distribution(self.propensities, len(arms), "logged propensities")
        if rewards.shape != arms.shape or not np.isfinite(rewards).all():
            raise OffPolicyError(f"{rewards.shape} rewards for {len(arms)} decisions; give one finite number each")
        if len(arms) and not ((arms >= 0) & (arms < p.shape[1])).all():
            raise OffPolicyError(f"a chosen arm is not one of 0 to {p.shape[1] - 1}")
        chosen = p[np.arange(len(arms)), arms]
        if (chosen <= 0.0).any():
            at = int(np.argmax(chosen <= 0.0))
            raise OffPolicyError(f"decision {at} chose arm {arms[at]} with a logged propensity of {chosen[at]}")
        for name, value in (("arms", arms), ("rewards", rewards), ("propensities", p)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.arms)


@dataclass(frozen=True, eq=False)
class Estimate:
    """The value of a policy as one estimator sees it.

    Parameters
    ----------
    name
        ``IPS``, ``SNIPS`` or ``DR``.
    interval
        Of the mean reward a decision.
    influence
        float64[n]; its mean is the value.
    effective_n
        (Σw)² / Σw².
    largest_weight, clipped
        Largest weight before clipping; share of decisions whose weight was clipped.
    """

    name: str
    interval: Interval
    influence: FloatArray
    effective_n: float
    largest_weight: float
    clipped: float

    @property
    def value(self) -> float:
        """Mean reward a decision."""
        return self.interval.value


def weights_of(log: DecisionLog, target: npt.ArrayLike, max_weight: float = math.inf) -> tuple[FloatArray, FloatArray]:
    """Return the importance weights, clipped and as they are, float64[n] each.

    Raises
    ------
    OffPolicyError
        If the target would choose what the logged policy never did: no log tells what that earns.
    """
    pi = _distribution(target, len(log), "target probabilities", arms=log.propensities.shape[1])
    if not max_weight > 1.0:
        raise OffPolicyError(f"max_weight {max_weight} must be above 1; a weight of 1 means that both policies agree")
    unseen = (pi > 0.0) & (log.propensities <= 0.0)
    if unseen.any():
        at = int(np.argmax(unseen.any(axis=1)))
        raise OffPolicyError(
            f"in {int(unseen.any(axis=1).sum())} of {len(log)} decisions (the first is {at}) the policy would choose "
            "an arm that the logged one never does there; log with exploration on"
        )
    at_chosen = np.arange(len(log)), log.arms
    raw = pi[at_chosen] / log.propensities[at_chosen]
    return np.minimum(raw, max_weight), raw


def ips(
    log: DecisionLog,
    target: npt.ArrayLike,
    *,
    max_weight: float = math.inf,
    level: float = 0.95,
    method: Method = "student",
    seed: int = 0,
) -> Estimate:
    """Return the inverse propensity score estimate.

    Parameters
    ----------
    target
        float64[n, arms], with which probability the evaluated policy chooses each arm there.
    max_weight
        Larger weights are clipped to it.
    level, method, seed
        Of the interval.

    Raises
    ------
    OffPolicyError
        If there are fewer than two decisions, or as :func:`weights_of`.
    """
    w, raw = weights_of(log, target, max_weight)
    return _estimate("IPS", w * log.rewards, w, raw, max_weight, level, method, seed)


def snips(
    log: DecisionLog,
    target: npt.ArrayLike,
    *,
    max_weight: float = math.inf,
    level: float = 0.95,
    method: Method = "student",
    seed: int = 0,
) -> Estimate:
    """Return the self-normalised estimate; parameters and errors as :func:`ips`. NaN where every weight is 0."""
    w, raw = weights_of(log, target, max_weight)
    mean = float(w.mean()) if len(w) else 0.0
    if mean > 0.0:
        value = float((w * log.rewards).mean()) / mean
        influence = value + w * (log.rewards - value) / mean
    else:
        influence = np.full(len(w), math.nan)
    return _estimate("SNIPS", influence, w, raw, max_weight, level, method, seed)


def doubly_robust(
    log: DecisionLog,
    target: npt.ArrayLike,
    expected: npt.ArrayLike,
    *,
    max_weight: float = math.inf,
    level: float = 0.95,
    method: Method = "student",
    seed: int = 0,
) -> Estimate:
    """Return the doubly robust estimate; parameters and errors as :func:`ips`.

    Parameters
    ----------
    expected
        q, float64[n, arms]: a model's expected reward of each arm there, fitted on other decisions than these.
    """
    w, raw = weights_of(log, target, max_weight)
    pi = np.asarray(target, dtype=np.float64)
    q = np.asarray(expected, dtype=np.float64)
    if q.shape != log.propensities.shape or not np.isfinite(q).all():
        raise OffPolicyError(f"expected rewards have shape {q.shape}; give a finite one for each of {pi.shape}")
    influence = (pi * q).sum(axis=1) + w * (log.rewards - q[np.arange(len(log)), log.arms])
    return _estimate("DR", influence, w, raw, max_weight, level, method, seed)


def difference(
    first: Estimate, second: Estimate, *, level: float = 0.95, method: Method = "student", seed: int = 0
) -> Interval:
    """Return how much more the first policy is worth than the second, by the same estimator on the same log.

    Raises
    ------
    OffPolicyError
        If the estimators or logs are different ones.
    """
    if first.name != second.name or first.influence.shape != second.influence.shape:
        raise OffPolicyError(
            f"{first.name} of {len(first.influence)} decisions and {second.name} of {len(second.influence)} cannot be "
            "compared; use one estimator on one log"
        )
    return mean_interval(first.influence - second.influence, level=level, method=method, seed=seed)


def mean_interval(values: npt.ArrayLike, *, level: float = 0.95, method: Method = "student", seed: int = 0) -> Interval:
    """Return the mean of a series and its interval: Student's, or by the stationary bootstrap.

    Raises
    ------
    OffPolicyError
        If there are fewer than two values.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise OffPolicyError(f"{x.shape} decisions have no interval; log more of them")
    if not np.isfinite(x).all():
        return Interval(math.nan, math.nan, math.nan, math.nan, level, len(x))
    if method == "bootstrap":
        return bootstrap_mean_interval(x, level=level, n_resamples=4_000, seed=seed)
    from scipy.special import stdtrit

    mean, error = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(len(x))
    half = float(stdtrit(len(x) - 1, (1.0 + level) / 2.0)) * error
    return Interval(mean, mean - half, mean + half, error, level, len(x))


def effective_sample_size(weights: npt.ArrayLike) -> float:
    """Return (Σw)² / Σw² of weights that are not negative; 0 where all are 0."""
    w = np.asarray(weights, dtype=np.float64)
    # in units of the largest: a square may be too small or too great for a float
    top = float(w.max()) if len(w) else 0.0
    return float((w / top).sum() ** 2 / ((w / top) ** 2).sum()) if top > 0.0 else 0.0


def _estimate(
    name: str,
    influence: FloatArray,
    w: FloatArray,
    raw: FloatArray,
    max_weight: float,
    level: float,
    method: Method,
    seed: int,
) -> Estimate:
    return Estimate(
        name,
        mean_interval(influence, level=level, method=method, seed=seed),
        influence,
        effective_sample_size(w),
        float(raw.max()),
        float((raw > max_weight).mean()),
    )


def _distribution(values: npt.ArrayLike, n: int, name: str, arms: int | None = None) -> FloatArray:
    p = np.asarray(values, dtype=np.float64)
    if p.ndim != 2 or len(p) != n or (arms is not None and p.shape[1] != arms):
        wanted = f"({n}, arms)" if arms is None else f"({n}, {arms})"
        raise OffPolicyError(f"{name} have shape {p.shape} instead of {wanted}")
    wrong = ~((p >= 0.0).all(axis=1) & (np.abs(p.sum(axis=1) - 1.0) <= _ROUNDING))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise OffPolicyError(f"{name} of decision {at} are {p[at].tolist()}, which are not probabilities that sum to 1")
    return p
