"""Is a learned size worth more than a rule? Asked of decisions that the policy did not learn from.

The exploring policy walks through all decisions and leaves a log with its propensities. What it had learned by the end
of the first part, without exploration, is the policy that is judged on the second part, twice:

* from the log alone (IPS, SNIPS and doubly robust with q from the first part): what could be asked of a live log too;
* by simulation, which knows what every size would have earned: the same question with less noise.

A policy is promoted only if both intervals of its advantage lie above zero against every baseline, and against taking
no position at all: of losing forecasts even a policy that never trades would be an improvement, but nothing to trade.
Each condition must hold on its own (an intersection-union test), so testing several costs no confidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlbot_core.backtest.metrics import Metrics, compute_metrics
from mlbot_core.backtest.simulator import Simulation, SimulationParams
from mlbot_core.config.bandit import BanditConfig
from mlbot_core.decision.bandit import ARMS, BanditState, Choice
from mlbot_core.decision.bandit_baselines import Baseline, baselines
from mlbot_core.decision.bandit_context import ContextScale
from mlbot_core.errors import MissingDataError
from mlbot_core.research.bandit_episodes import BanditMarket, Decisions, build_decisions
from mlbot_core.research.bandit_training import (
    Walk,
    bar_multipliers,
    expected_rewards,
    follow,
    greedy_probabilities,
    learn,
    rule_probabilities,
    spec_of,
)
from mlbot_core.validation.off_policy import Estimate, difference, doubly_robust, ips, mean_interval, snips
from mlbot_core.validation.significance import Interval

FloatArray = npt.NDArray[np.float64]

BANDIT: Final = "bandit"
ONLINE: Final = "bandit, learning on"
EXPLORING: Final = "bandit, exploring"
NO_POSITION: Final = "no position"
FEWEST: Final = 20


@dataclass(frozen=True, eq=False)
class Judged:
    """One way to choose sizes, on the judged decisions.

    Parameters
    ----------
    name
        For tables.
    reward
        Mean reward a decision, simulated.
    estimates
        IPS, SNIPS and DR from the log; empty where it is the log itself, or learns on.
    advantage
        Of the bandit over it, by simulation, and by the doubly robust estimate; None where that is not asked.
    metrics
        Of the account at the traded size.
    multiplier
        Mean share of the cap.
    """

    name: str
    reward: Interval
    estimates: Mapping[str, Estimate]
    advantage: tuple[Interval, Interval] | None
    metrics: Metrics
    multiplier: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation came to.

    Parameters
    ----------
    line
        Whose sizes.
    config
        As configured then.
    state
        The judged policy.
    scale
        What its contexts are measured against.
    walk
        Of the exploring policy, over all decisions: the log.
    decisions, judged_from
        All decisions, and the first judged one.
    rows
        The bandit first, then the baselines.
    reasons
        Why it is refused, one sentence each; empty where it passed.
    unit
        The judged policy's simulation at unit exposure, as the trial ledger counts it; None where it was not asked.
    """

    line: str
    config: BanditConfig
    state: BanditState
    scale: ContextScale
    walk: Walk
    decisions: Decisions
    judged_from: int
    rows: tuple[Judged, ...]
    reasons: tuple[str, ...]
    unit: Simulation | None

    @property
    def passed(self) -> bool:
        """Whether the policy may be promoted."""
        return not self.reasons

    @property
    def outcome(self) -> str:
        """The verdict in one sentence."""
        if self.passed:
            return "passed: worth more than every baseline and than no position, by simulation and from the log"
        return "refused, sizes stay as they are: " + "; ".join(self.reasons)

    def row(self, name: str) -> Judged:
        """Return one of the rows by its name."""
        return next(row for row in self.rows if row.name == name)


def evaluate(market: BanditMarket, config: BanditConfig, line: str, unit: SimulationParams | None = None) -> Evaluation:
    """Let a policy learn, and judge it where it did not.

    Parameters
    ----------
    unit
        Parameters at unit exposure, for the trial ledger; None leaves that simulation out.

    Raises
    ------
    MissingDataError
        If there are too few decisions to split.
    """
    decisions = build_decisions(market, config.context)
    split = int(len(decisions) * config.evaluation.train_share)
    if min(split, len(decisions) - split) < FEWEST:
        raise MissingDataError(
            f"{line}: the forecasts called for a position {len(decisions)} times, too few to learn from and to judge "
            f"by (at least {FEWEST} on each side of the split); use a model that trades more often or a longer period"
        )
    scale = ContextScale(config.baselines.target_volatility, market.params.max_drawdown)
    walk = learn(decisions, spec_of(config), scale, config.reward, line, explore=True)
    # only what was known when the first judged size was chosen
    known = int(np.searchsorted(decisions.end[:split] + 1, decisions.start[split], side="right"))
    state = _state(learn(decisions.take(slice(0, known)), spec_of(config), scale, config.reward, line, explore=True))
    rest = decisions.take(slice(split, None))
    rules = (Baseline(NO_POSITION, lambda _context: 0), *_baselines(config, market))
    greedy = learn(rest, state, scale, config.reward, line, explore=False, learning=False)
    walks = {
        BANDIT: greedy,
        ONLINE: learn(rest, state, scale, config.reward, line, explore=False),
        EXPLORING: _part(walk, split),
        **{rule.name: _follow(rest, rule, scale, config, line) for rule in rules},
    }
    estimates = _estimates(config, walks[EXPLORING], rest, state, rules, line)
    rows = tuple(
        _judged(name, found, market, rest, estimates.get(name, {}), _advantage(name, walks, estimates, config))
        for name, found in walks.items()
    )
    reasons = _reasons(rows, len(walks[EXPLORING].log()), [rule.name for rule in rules], config)
    at_unit = None
    if unit is not None:
        at_unit = _after(market, rest).simulate(_multipliers(market, rest, greedy), unit)
    return Evaluation(line, config, state, scale, walk, decisions, split, rows, reasons, at_unit)


def _baselines(config: BanditConfig, market: BanditMarket) -> tuple[Baseline, ...]:
    return baselines(
        fixed=config.baselines.fixed,
        target_volatility=config.baselines.target_volatility,
        kelly_fraction=config.baselines.kelly_fraction,
        max_position=market.params.cap,
    )


def _follow(decisions: Decisions, rule: Baseline, scale: ContextScale, config: BanditConfig, line: str) -> Walk:
    def chooser(context: Any, _vector: FloatArray, _name: str) -> Choice:
        arm = rule.rule(context)
        return Choice(arm, tuple(float(a == arm) for a in range(len(ARMS))), False)

    return follow(decisions, chooser, scale, config.reward, line)


def _state(walk: Walk) -> BanditState:
    if walk.state is None:
        raise MissingDataError("a policy that does not learn has nothing to be judged by")
    return walk.state


def _part(walk: Walk, first: int) -> Walk:
    return Walk(walk.choices[first:], walk.contexts[first:], walk.vectors[first:], walk.rewards[first:], walk.state)


def _estimates(
    config: BanditConfig,
    logged: Walk,
    rest: Decisions,
    state: BanditState,
    rules: tuple[Baseline, ...],
    line: str,
) -> dict[str, dict[str, Estimate]]:
    log, usable = logged.log(), logged.usable
    if len(log) < FEWEST:
        raise MissingDataError(f"{line}: only {len(log)} judged decisions have a usable context; take a longer period")
    vectors = logged.vectors[usable]
    contexts = [context for context, fine in zip(logged.contexts, usable, strict=True) if fine]
    names = [f"{line}|{ts}" for ts in rest.ts[usable]]
    q = expected_rewards(state, vectors)
    targets = {BANDIT: greedy_probabilities(state, vectors, names)}
    targets |= {rule.name: rule_probabilities(rule.rule, contexts) for rule in rules}
    most, level = config.evaluation.max_weight, config.evaluation.level
    return {
        name: {
            "IPS": ips(log, target, max_weight=most, level=level),
            "SNIPS": snips(log, target, max_weight=most, level=level),
            "DR": doubly_robust(log, target, q, max_weight=most, level=level),
        }
        for name, target in targets.items()
    }


def _advantage(
    name: str, walks: Mapping[str, Walk], estimates: Mapping[str, Mapping[str, Estimate]], config: BanditConfig
) -> tuple[Interval, Interval] | None:
    if name not in estimates or name == BANDIT:
        return None
    level = config.evaluation.level
    simulated = mean_interval(walks[BANDIT].rewards - walks[name].rewards, level=level, method="bootstrap")
    return simulated, difference(estimates[BANDIT]["DR"], estimates[name]["DR"], level=level)


def _judged(
    name: str,
    walk: Walk,
    market: BanditMarket,
    rest: Decisions,
    estimates: Mapping[str, Estimate],
    advantage: tuple[Interval, Interval] | None,
) -> Judged:
    part = _after(market, rest)
    simulation = part.simulate(_multipliers(market, rest, walk))
    metrics = compute_metrics(simulation, part.frame["close"].to_numpy(dtype=np.float64))
    share = float(np.mean([ARMS[arm] for arm in walk.arms]))
    return Judged(name, mean_interval(walk.rewards, method="bootstrap"), estimates, advantage, metrics, share)


def _after(market: BanditMarket, rest: Decisions) -> BanditMarket:
    """Return the market from the bar of the first judged decision on."""
    frame = market.frame.iloc[int(rest.start[0]) :].reset_index(drop=True)
    return BanditMarket(frame, market.params, market.funding_ts, market.funding_rate)


def _multipliers(market: BanditMarket, rest: Decisions, walk: Walk) -> FloatArray:
    return bar_multipliers(rest, walk.arms, len(market.frame))[int(rest.start[0]) :]


def _reasons(rows: tuple[Judged, ...], judged: int, rules: list[str], config: BanditConfig) -> tuple[str, ...]:
    asked = config.evaluation
    by_name = {row.name: row for row in rows}
    dr = by_name[BANDIT].estimates["DR"]
    found = []
    if judged < asked.min_decisions:
        found.append(f"{judged} judged decisions, at least {asked.min_decisions} are needed")
    if not dr.effective_n >= asked.min_effective:
        found.append(f"effective sample size {dr.effective_n:.0f}, at least {asked.min_effective:g} is needed")
    for which, words in ((0, "by simulation"), (1, "from the log")):
        losing = []
        for name in rules:
            advantage = by_name[name].advantage
            if advantage is None or not advantage[which].low > 0.0:
                losing.append(name)
        if losing:
            found.append(f"not significantly better {words} than {', '.join(losing)}")
    return tuple(found)


def best_baseline(evaluation: Evaluation) -> Judged:
    """Return the baseline of the largest simulated mean reward, no position left aside."""
    skipped = (BANDIT, ONLINE, EXPLORING, NO_POSITION)
    return max(
        (row for row in evaluation.rows if row.name not in skipped),
        key=lambda row: row.reward.value if math.isfinite(row.reward.value) else -math.inf,
    )


def replayed(evaluation: Evaluation) -> BanditState:
    """Return the exploring policy learned again from its log: contexts, arms and rewards, in their order.

    The propensities of every decision are computed again on the way, and must be those of the log.

    Raises
    ------
    MissingDataError
        If one differs: the log is not of this policy.
    """
    decisions, walk = evaluation.decisions, evaluation.walk
    again = learn(
        decisions, spec_of(evaluation.config), evaluation.scale, evaluation.config.reward, evaluation.line, explore=True
    )
    for e, (first, second) in enumerate(zip(walk.choices, again.choices, strict=True)):
        if first != second:
            raise MissingDataError(f"{evaluation.line}: decision {e} of the log is not what the policy chooses there")
    return _state(again)


__all__ = [
    "BANDIT",
    "EXPLORING",
    "NO_POSITION",
    "ONLINE",
    "Evaluation",
    "Judged",
    "best_baseline",
    "evaluate",
    "replayed",
]
