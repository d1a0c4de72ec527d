"""Made-up bandits whose optimum is known: how fast policies learn, and how often intervals cover the truth. Pure.

A finite population of contexts, each equally likely, and the mean reward of every arm in each of them: so the optimum,
a policy's true value and regret are exact, not estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from mlbot_core.decision.bandit import ARMS, BanditState, PolicySpec, choose, initial_bandit, propensities, update
from mlbot_core.validation.off_policy import DecisionLog, Estimate, doubly_robust, ips, snips

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

Behaviour = Literal["uniform", "thompson, fixed", "thompson, learning"]
BEHAVIOURS: Final[tuple[Behaviour, ...]] = ("uniform", "thompson, fixed", "thompson, learning")


@dataclass(frozen=True, eq=False)
class SyntheticBandit:
    """A bandit with known means.

    Parameters
    ----------
    contexts
        float64[population, numbers].
    means
        float64[population, arms].
    noise
        Standard deviation of a reward around its mean.
    tails
        Degrees of freedom of Student's t noise (scaled to ``noise``); 0 for normal noise.
    """

    contexts: FloatArray
    means: FloatArray
    noise: float
    tails: int = 0

    @property
    def optimum(self) -> float:
        """Mean reward of who always takes the best arm."""
        return float(self.means.max(axis=1).mean())

    def value(self, probabilities: FloatArray) -> float:
        """Return a policy's true mean reward from its probabilities in each context, float64[population, arms]."""
        return float((probabilities * self.means).sum(axis=1).mean())

    def reward(self, row: int, arm: int, rng: np.random.Generator) -> float:
        """Draw a reward."""
        return float(self.means[row, arm] + self.noise * self.draw(rng, 1)[0])

    def draw(self, rng: np.random.Generator, n: int) -> FloatArray:
        """Return noise of deviation 1."""
        if self.tails == 0:
            return rng.standard_normal(n)
        return np.asarray(rng.standard_t(self.tails, n) * np.sqrt((self.tails - 2) / self.tails), dtype=np.float64)


def sizing_bandit(
    seed: int, *, noise: float = 1.0, numbers: int = 6, population: int = 400, tails: int = 0
) -> SyntheticBandit:
    """Return a bandit like that of sizes: a position earns in proportion to its size, and its risk with the square."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(population), rng.standard_normal((population, numbers - 1)).clip(-3, 3)])
    theta = np.r_[0.3, rng.standard_normal(numbers - 1) / np.sqrt(numbers - 1)]
    m = np.array(ARMS)
    means = np.outer(x @ theta, m) - 0.6 * m**2
    return SyntheticBandit(x, means, noise, tails)


def disjoint_bandit(seed: int, *, noise: float = 1.0, numbers: int = 6, population: int = 400) -> SyntheticBandit:
    """Return a bandit whose arms have nothing in common: every one its own linear mean."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(population), rng.standard_normal((population, numbers - 1)).clip(-3, 3)])
    theta = rng.standard_normal((len(ARMS), numbers)) / np.sqrt(numbers)
    return SyntheticBandit(x, x @ theta.T, noise)


def regret(bandit: SyntheticBandit, policies: Mapping[str, PolicySpec], steps: int, seed: int) -> dict[str, FloatArray]:
    """Return the cumulative regret of learning policies and of naive ones, float64[steps] each.

    The naive ones: an arm at random, the best arm of all fixed ones (known from the truth: nobody knows it), the arm of
    the largest mean so far whatever the context (tried at random one time in ten), and the linear policy that never
    explores.

    Parameters
    ----------
    policies
        By name; their seeds are moved by ``seed``.
    """
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(bandit.contexts), steps)
    best = bandit.means.max(axis=1)
    found = {name: _learned(bandit, spec, rows, seed, explore=True, name=name) for name, spec in policies.items()}
    first = next(iter(policies.values()))
    found["never explores"] = _learned(bandit, first, rows, seed, explore=False, name="never explores")
    found["no context"] = _without_context(bandit, rows, seed)
    found["best fixed"] = np.full(steps, int(np.argmax(bandit.means.mean(axis=0))))
    found["random"] = rng.integers(0, len(ARMS), steps)
    return {name: np.cumsum(best[rows] - bandit.means[rows, arms]) for name, arms in found.items()}


def _learned(
    bandit: SyntheticBandit, spec: PolicySpec, rows: IntArray, seed: int, *, explore: bool, name: str
) -> IntArray:
    rng = np.random.default_rng([seed, 1])
    state = initial_bandit(spec)
    arms = np.empty(len(rows), dtype=np.int64)
    for t, row in enumerate(rows):
        x = bandit.contexts[row]
        arms[t] = choose(state, x, f"{seed}|{name}|{t}", explore=explore).arm
        state = update(state, x, int(arms[t]), bandit.reward(int(row), int(arms[t]), rng))
    return arms


def _without_context(bandit: SyntheticBandit, rows: IntArray, seed: int) -> IntArray:
    rng = np.random.default_rng([seed, 2])
    total, count = np.zeros(len(ARMS)), np.zeros(len(ARMS))
    arms = np.empty(len(rows), dtype=np.int64)
    for t, row in enumerate(rows):
        untried = np.flatnonzero(count == 0)
        if len(untried):
            arm = int(untried[0])
        elif rng.random() < 0.1:
            arm = int(rng.integers(0, len(ARMS)))
        else:
            arm = int(np.argmax(total / count))
        arms[t] = arm
        total[arm] += bandit.reward(int(row), arm, rng)
        count[arm] += 1
    return arms


@dataclass(frozen=True, eq=False)
class Coverage:
    """How often the intervals of an estimator covered the truth.

    Parameters
    ----------
    behaviour, estimator
        Which log, which estimator.
    level
        Stated.
    covered, repetitions
        How often it did, of how many.
    bias, width
        Mean of estimate less truth, and mean width of the interval, in units of the reward.
    effective
        Mean effective sample size.
    """

    behaviour: str
    estimator: str
    level: float
    covered: int
    repetitions: int
    bias: float
    width: float
    effective: float

    @property
    def rate(self) -> float:
        """Share of repetitions that covered."""
        return self.covered / self.repetitions


def coverage(
    bandit: SyntheticBandit,
    behaviour: Behaviour,
    *,
    decisions: int,
    repetitions: int,
    levels: Sequence[float] = (0.95,),
    max_weight: float = np.inf,
    epsilon: float = 0.3,
    draws: int = 64,
    seed: int = 0,
) -> list[Coverage]:
    """Return how often IPS, SNIPS and DR cover the true value of a policy that was learned on other data, by level.

    Intervals of all levels are of the same logs.

    The evaluated policy and q come from a training log of the same length; the log that is evaluated on is made anew in
    every repetition by ``behaviour``, with propensities as they are logged.
    """
    spec = PolicySpec("lints", "shared", bandit.contexts.shape[1], epsilon=epsilon, draws=draws, seed=seed)
    trained = _trained(bandit, spec, decisions, seed)
    target = _greedy(bandit, trained)
    truth = bandit.value(target)
    q = np.array([_mean_rewards(trained, x) for x in bandit.contexts])
    fixed = _behaviour_probabilities(bandit, trained, behaviour)
    found: dict[tuple[float, str], list[Estimate]] = {}
    for repetition in range(repetitions):
        rng = np.random.default_rng([seed, 7, repetition])
        rows = rng.integers(0, len(bandit.contexts), decisions)
        if fixed is None:
            log = _learning_log(bandit, spec, rows, rng, f"{seed}|{repetition}")
        else:
            log = _fixed_log(bandit, fixed, rows, rng)
        p, means = target[rows], q[rows]
        for level in levels:
            for name, estimate in (
                ("IPS", ips(log, p, max_weight=max_weight, level=level)),
                ("SNIPS", snips(log, p, max_weight=max_weight, level=level)),
                ("DR", doubly_robust(log, p, means, max_weight=max_weight, level=level)),
            ):
                found.setdefault((level, name), []).append(estimate)
    return [
        Coverage(
            behaviour,
            name,
            level,
            sum(e.interval.low <= truth <= e.interval.high for e in estimates),
            repetitions,
            float(np.mean([e.value - truth for e in estimates])),
            float(np.mean([e.interval.high - e.interval.low for e in estimates])),
            float(np.mean([e.effective_n for e in estimates])),
        )
        for (level, name), estimates in found.items()
    ]


def _trained(bandit: SyntheticBandit, spec: PolicySpec, steps: int, seed: int) -> BanditState:
    rng = np.random.default_rng([seed, 3])
    state = initial_bandit(spec)
    for t in range(steps):
        row = int(rng.integers(0, len(bandit.contexts)))
        arm = choose(state, bandit.contexts[row], f"train|{seed}|{t}", explore=True).arm
        state = update(state, bandit.contexts[row], arm, bandit.reward(row, arm, rng))
    return state


def _greedy(bandit: SyntheticBandit, state: BanditState) -> FloatArray:
    return np.array([propensities(state, x, "", explore=False) for x in bandit.contexts])


def _mean_rewards(state: BanditState, x: FloatArray) -> FloatArray:
    from mlbot_core.decision.bandit import expectations

    found = expectations(state, x)
    return np.zeros(len(ARMS)) if found is None else found[0]


def _behaviour_probabilities(bandit: SyntheticBandit, trained: BanditState, behaviour: Behaviour) -> FloatArray | None:
    """Return the log's probabilities in each context; None for a policy that learns on."""
    if behaviour == "uniform":
        return np.full(bandit.means.shape, 1.0 / len(ARMS))
    if behaviour == "thompson, fixed":
        return np.array([propensities(trained, x, str(i), explore=True) for i, x in enumerate(bandit.contexts)])
    return None


def _fixed_log(
    bandit: SyntheticBandit, probabilities: FloatArray, rows: IntArray, rng: np.random.Generator
) -> DecisionLog:
    p = probabilities[rows]
    arms = (rng.random(len(rows))[:, None] > np.cumsum(p, axis=1)).sum(axis=1).clip(0, len(ARMS) - 1)
    rewards = bandit.means[rows, arms] + bandit.noise * bandit.draw(rng, len(rows))
    return DecisionLog(arms, rewards, p)


def _learning_log(
    bandit: SyntheticBandit, spec: PolicySpec, rows: IntArray, rng: np.random.Generator, name: str
) -> DecisionLog:
    state = initial_bandit(spec)
    arms, rewards, p = np.empty(len(rows), dtype=np.int64), np.empty(len(rows)), np.empty((len(rows), len(ARMS)))
    for t, row in enumerate(rows):
        choice = choose(state, bandit.contexts[row], f"{name}|{t}", explore=True)
        arms[t], p[t] = choice.arm, choice.propensities
        rewards[t] = bandit.reward(int(row), choice.arm, rng)
        state = update(state, bandit.contexts[row], choice.arm, float(rewards[t]))
    return DecisionLog(arms, rewards, p)
