"""The user's criteria, as constants in code, and what a backtest says about them.

A verdict here can refuse, say that the criteria are met, or that the statistics passed too; it can never promote:
promotion is a signed gate record made by a registry, which does not exist yet. DSR and PBO come from the ledger of all
trials; without a ledger they are not evaluated and nothing passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from mlbot_core.backtest.metrics import Metrics
from mlbot_core.validation.trials_significance import CandidateSignificance

MIN_SHARPE: Final = 1.0  # exclusive
MIN_MAR: Final = 0.5  # inclusive
MAX_DRAWDOWN: Final = 0.25  # exclusive
MIN_DAYS: Final = 365  # inclusive
MIN_TRADES: Final = 100  # inclusive
MIN_DSR: Final = 0.95  # inclusive
MAX_PBO: Final = 0.2  # inclusive

CRITERIA_MET: Final = "criteria met; significance not yet evaluated"
STATISTICS_PASSED: Final = "criteria met and statistics passed; not promoted (there is no registry to promote it yet)"
NOT_EVALUATED: Final = "not evaluated (needs the trial ledger)"

Sizing = Literal["traded", "unit"]


@dataclass(frozen=True)
class Criterion:
    """One bound at one size.

    Parameters
    ----------
    name
        ``Sharpe``, ``MAR``, ``max drawdown``, ``days`` or ``trades``; ``DSR`` or ``PBO``.
    bound
        As written for people, for instance ``> 1.0``.
    value
        Measured; NaN where undefined, which fails.
    passed
        Whether the bound holds.
    """

    name: str
    bound: str
    value: float
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """Every criterion at both sizes, and the outcome in one line.

    Parameters
    ----------
    criteria
        ``traded`` (at risk.max_position) and ``unit`` (100 % of NAV) to the criteria at that size.
    statistics
        DSR and PBO as far as they could be evaluated, at unit exposure.
    not_evaluated
        Names and bounds of what could not.
    significant
        Whether the 95 % interval of the Sharpe ratio lies above zero at both sizes, and, where trials were counted,
        the DSR reaches its bound.
    outcome
        ``refused: ...`` naming what fails; or that the criteria are met, with what was not evaluated; or that the
        statistics passed too. ``not significant`` is added where an interval contains zero or is undefined, and
        ``not significant among N trials`` where only the DSR says so.
    """

    criteria: Mapping[str, tuple[Criterion, ...]]
    statistics: tuple[Criterion, ...]
    not_evaluated: tuple[tuple[str, str], ...]
    significant: bool
    outcome: str

    @property
    def refused(self) -> bool:
        """Whether a criterion or a statistic fails."""
        return any(not c.passed for rows in (*self.criteria.values(), self.statistics) for c in rows)

    @property
    def passed(self) -> bool:
        """Whether everything was evaluated and holds; necessary for a promotion, not one itself."""
        return not self.refused and self.significant and not self.not_evaluated


def evaluate(metrics: Metrics) -> tuple[Criterion, ...]:
    """Return the user's criteria for one simulation; NaN never passes."""
    sharpe, mar, fall = metrics.sharpe.value, metrics.mar, metrics.drawdown.depth
    return (
        Criterion("Sharpe", f"> {MIN_SHARPE}", sharpe, sharpe > MIN_SHARPE),
        Criterion("MAR", f">= {MIN_MAR}", mar, mar >= MIN_MAR),
        Criterion("max drawdown", f"< {MAX_DRAWDOWN:.0%}", fall, fall < MAX_DRAWDOWN),
        Criterion("days", f">= {MIN_DAYS}", float(metrics.days), metrics.days >= MIN_DAYS),
        Criterion("trades", f">= {MIN_TRADES}", float(metrics.trades), metrics.trades >= MIN_TRADES),
    )


def judge(traded: Metrics, unit: Metrics, significance: CandidateSignificance | None = None) -> Verdict:
    """Return the verdict over the traded size and unit exposure.

    Parameters
    ----------
    traded, unit
        At risk.max_position, and at 100 % of NAV.
    significance
        The candidate among all trials; None where no ledger was asked: nothing can pass then.
    """
    criteria = {"traded": evaluate(traded), "unit": evaluate(unit)}
    statistics, not_evaluated = _statistics(significance)
    intervals = [metrics.sharpe for metrics in (traded, unit)]
    above = all(interval.low > 0 for interval in intervals)
    among = significance is None or significance.dsr >= MIN_DSR
    outcome = _refusal(criteria, statistics) or _met(significance, not_evaluated)
    if not all(interval.low > 0 or interval.high < 0 for interval in intervals):
        outcome += "; not significant"
    elif not above:
        outcome += "; significantly below zero"
    elif not among and significance is not None:
        trials = f"{significance.n_trials:,} trial{'s' if significance.n_trials != 1 else ''}"
        outcome += f"; not significant among {trials}"
    return Verdict(MappingProxyType(criteria), statistics, not_evaluated, above and among, outcome)


def _statistics(
    significance: CandidateSignificance | None,
) -> tuple[tuple[Criterion, ...], tuple[tuple[str, str], ...]]:
    """Return DSR and PBO where they are defined, and the names and bounds of those that are not."""
    dsr = math.nan if significance is None else significance.dsr
    pbo = math.nan if significance is None else significance.pbo
    both = (
        Criterion("DSR", f">= {MIN_DSR}", dsr, dsr >= MIN_DSR),
        Criterion("PBO", f"<= {MAX_PBO}", pbo, pbo <= MAX_PBO),
    )
    known = tuple(c for c in both if not math.isnan(c.value))
    return known, tuple((c.name, c.bound) for c in both if math.isnan(c.value))


def _refusal(criteria: Mapping[str, tuple[Criterion, ...]], statistics: tuple[Criterion, ...]) -> str:
    """Return what fails at which size, nothing where all hold."""
    failing: dict[str, list[str]] = {}
    for size, rows in criteria.items():
        for criterion in rows:
            if not criterion.passed:
                failing.setdefault(criterion.name, []).append(size)
    both = len(criteria)
    parts = [name if len(sizes) == both else f"{name} ({sizes[0]})" for name, sizes in failing.items()]
    parts += [criterion.name for criterion in statistics if not criterion.passed]
    return f"refused: {', '.join(parts)}" if parts else ""


def _met(significance: CandidateSignificance | None, not_evaluated: tuple[tuple[str, str], ...]) -> str:
    if significance is None:
        return CRITERIA_MET
    if not_evaluated:
        return f"criteria met; {' and '.join(name for name, _ in not_evaluated)} not evaluated"
    return STATISTICS_PASSED
