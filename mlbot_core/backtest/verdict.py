"""The user's criteria, as constants in code, and what a backtest says about them.

A verdict here can refuse, or say that the criteria are met; it can never promote: DSR and PBO need the ledger of all
trials, and promotion is a signed gate record made elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from mlbot_core.backtest.metrics import Metrics

MIN_SHARPE: Final = 1.0  # exclusive
MIN_MAR: Final = 0.5  # inclusive
MAX_DRAWDOWN: Final = 0.25  # exclusive
MIN_DAYS: Final = 365  # inclusive
MIN_TRADES: Final = 100  # inclusive
MIN_DSR: Final = 0.95  # inclusive
MAX_PBO: Final = 0.2  # inclusive

CRITERIA_MET: Final = "criteria met; significance not yet evaluated"
NOT_EVALUATED: Final = "not evaluated (needs the trial ledger)"

Sizing = Literal["traded", "unit"]


@dataclass(frozen=True)
class Criterion:
    """One bound at one size.

    Parameters
    ----------
    name
        ``Sharpe``, ``MAR``, ``max drawdown``, ``days`` or ``trades``.
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
    not_evaluated
        Names and bounds of what cannot be evaluated here.
    significant
        Whether the 95 % interval of the Sharpe ratio lies above zero at both sizes.
    outcome
        ``refused: ...`` naming what fails, or ``criteria met; significance not yet evaluated``; ``not significant`` is
        added where an interval contains zero or is undefined.
    """

    criteria: Mapping[str, tuple[Criterion, ...]]
    not_evaluated: tuple[tuple[str, str], ...]
    significant: bool
    outcome: str

    @property
    def refused(self) -> bool:
        """Whether a criterion fails."""
        return any(not c.passed for rows in self.criteria.values() for c in rows)


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


def judge(traded: Metrics, unit: Metrics) -> Verdict:
    """Return the verdict over the traded size and unit exposure."""
    criteria = {"traded": evaluate(traded), "unit": evaluate(unit)}
    intervals = [metrics.sharpe for metrics in (traded, unit)]
    failing: dict[str, list[str]] = {}
    for size, rows in criteria.items():
        for criterion in rows:
            if not criterion.passed:
                failing.setdefault(criterion.name, []).append(size)
    if failing:
        both = len(criteria)
        parts = [name if len(sizes) == both else f"{name} ({sizes[0]})" for name, sizes in failing.items()]
        outcome = f"refused: {', '.join(parts)}"
    else:
        outcome = CRITERIA_MET
    if not all(interval.low > 0 or interval.high < 0 for interval in intervals):
        outcome += "; not significant"
    elif not all(interval.low > 0 for interval in intervals):
        outcome += "; significantly below zero"
    return Verdict(
        criteria=MappingProxyType(criteria),
        not_evaluated=(("DSR", f">= {MIN_DSR}"), ("PBO", f"<= {MAX_PBO}")),
        significant=all(interval.low > 0 for interval in intervals),
        outcome=outcome,
    )
