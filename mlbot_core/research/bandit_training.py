"""A policy learns decision after decision, as it would live, and leaves a log that other policies are judged by. Pure.

The reward of a period is known when the bar in which its exit is filled has closed. So at a reversal the next size is
chosen before the last one's reward is known, and the policy learns from it afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mlbot_core.config.bandit import BanditConfig, BanditRewardConfig
from mlbot_core.decision.bandit import (
    ARMS,
    BanditState,
    Choice,
    PolicySpec,
    choose,
    expectations,
    initial_bandit,
    update,
)
from mlbot_core.decision.bandit_context import N_CONTEXT, Context, ContextScale, context_vector
from mlbot_core.research.bandit_episodes import Decisions
from mlbot_core.validation.off_policy import DecisionLog

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# what chooses an arm: the context with the account's drawdown in it, its numbers, the decision's id
Chooser = Callable[[Context, FloatArray, str], Choice]


@dataclass(frozen=True, eq=False)
class Walk:
    """What a policy did over consecutive decisions, and what came of it.

    Parameters
    ----------
    choices
        One a decision.
    contexts
        With the drawdown that the account then had.
    vectors
        float64[n, N_CONTEXT].
    rewards
        float64[n], of what was chosen.
    state
        The policy at the end; None for one that does not learn.
    """

    choices: tuple[Choice, ...]
    contexts: tuple[Context, ...]
    vectors: FloatArray
    rewards: FloatArray
    state: BanditState | None

    @property
    def arms(self) -> IntArray:
        """int64[n], what was chosen."""
        return np.array([choice.arm for choice in self.choices], dtype=np.int64)

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """bool[n], whose context could be judged."""
        return np.asarray(np.isfinite(self.vectors).all(axis=1), dtype=np.bool_)

    def log(self, rows: slice = slice(None)) -> DecisionLog:
        """Return the decisions whose context could be judged, with their propensities."""
        usable = self.usable[rows]
        p = np.array([choice.propensities for choice in self.choices], dtype=np.float64).reshape(-1, len(ARMS))
        return DecisionLog(self.arms[rows][usable], self.rewards[rows][usable], p[rows][usable])


def spec_of(config: BanditConfig) -> PolicySpec:
    """Return the policy that is configured."""
    chosen = config.policy
    return PolicySpec(
        policy=chosen.policy,
        features=chosen.features,
        n_context=N_CONTEXT,
        ridge=chosen.ridge,
        alpha=chosen.alpha,
        epsilon=chosen.epsilon,
        draws=chosen.draws,
        seed=chosen.seed,
    )


def learn(
    decisions: Decisions,
    state: BanditState | PolicySpec,
    scale: ContextScale,
    reward: BanditRewardConfig,
    line: str,
    *,
    explore: bool,
    learning: bool = True,
) -> Walk:
    """Let a policy choose every decision in order, and learn from each reward once it is known.

    Parameters
    ----------
    state
        Where it begins.
    line
        Names the decisions: their ids are those of the durable log.
    explore
        Whether it tries other sizes.
    learning
        False keeps the policy as it is.
    """
    holder = [initial_bandit(state) if isinstance(state, PolicySpec) else state]

    def chooser(_context: Context, vector: FloatArray, decision_id: str) -> Choice:
        return choose(holder[0], vector, decision_id, explore=explore)

    def settled(vector: FloatArray, arm: int, value: float) -> None:
        if learning and np.isfinite(vector).all():
            holder[0] = update(holder[0], vector, arm, value)

    walk = follow(decisions, chooser, scale, reward, line, settled)
    return replace(walk, state=holder[0])


def follow(
    decisions: Decisions,
    chooser: Chooser,
    scale: ContextScale,
    reward: BanditRewardConfig,
    line: str,
    settled: Callable[[FloatArray, int, float], None] | None = None,
) -> Walk:
    """Let anything choose every decision in order; the account's drawdown follows from what was chosen.

    Parameters
    ----------
    settled
        Is told the context's numbers, arm and reward of each decision as soon as its reward is known.
    """
    table = decisions.rewards(reward)
    choices: list[Choice] = []
    contexts: list[Context] = []
    vectors = np.full((len(decisions), N_CONTEXT), math.nan)
    taken = np.zeros(len(decisions))
    nav = top = 1.0
    told = 0
    for e in range(len(decisions)):
        while told < e and decisions.end[told] + 1 <= decisions.start[e]:
            if settled is not None:
                settled(vectors[told], choices[told].arm, float(taken[told]))
            told += 1
        context = replace(decisions.context[e], drawdown=1.0 - nav / top)
        vectors[e] = context_vector(context, scale)
        choice = chooser(context, vectors[e], f"{line}|{decisions.ts[e]}")
        choices.append(choice)
        contexts.append(context)
        taken[e] = table[e, choice.arm]
        top = max(top, nav * float(decisions.peak[e, choice.arm]))
        nav *= math.exp(float(decisions.growth[e, choice.arm]))
    if settled is not None:
        for e in range(told, len(decisions)):
            settled(vectors[e], choices[e].arm, float(taken[e]))
    return Walk(tuple(choices), tuple(contexts), vectors, taken, None)


def greedy_probabilities(state: BanditState, vectors: FloatArray, ids: Sequence[str]) -> FloatArray:
    """Return what a policy without exploration would choose in other contexts, float64[n, arms] of zeros and ones."""
    p = np.zeros((len(vectors), len(ARMS)))
    for i, (vector, name) in enumerate(zip(vectors, ids, strict=True)):
        p[i, choose(state, vector, name, explore=False).arm] = 1.0
    return p


def rule_probabilities(rule: Callable[[Context], int], contexts: Sequence[Context]) -> FloatArray:
    """Return what a rule would choose, float64[n, arms] of zeros and ones."""
    p = np.zeros((len(contexts), len(ARMS)))
    p[np.arange(len(contexts)), [rule(context) for context in contexts]] = 1.0
    return p


def expected_rewards(state: BanditState, vectors: FloatArray) -> FloatArray:
    """Return the regression's expected reward of every arm, float64[n, arms]: q of the doubly robust estimate."""
    q = np.zeros((len(vectors), len(ARMS)))
    for i, vector in enumerate(vectors):
        found = expectations(state, vector)
        if found is not None:
            q[i] = found[0]
    return q


def bar_multipliers(decisions: Decisions, arms: IntArray, bars: int) -> FloatArray:
    """Return the share of the cap of every bar, float64[bars]; 0 outside of the periods."""
    multiplier = np.zeros(bars)
    for first, last, arm in zip(decisions.start, decisions.end, arms, strict=True):
        multiplier[first:last] = ARMS[int(arm)]
    return multiplier
