"""The user's criteria, as constants in code, and what measured numbers come to under them. Pure: plain numbers in.

The bounds are not configuration: nobody can loosen them for one model. A backtest is judged here when it is made, and
the numbers of a gate record are judged here again whenever a model is promoted or loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Final, Literal

MIN_SHARPE: Final = 1.0  # exclusive
MIN_MAR: Final = 0.5  # inclusive
MAX_DRAWDOWN: Final = 0.25  # exclusive
MIN_DAYS: Final = 365  # inclusive
MIN_TRADES: Final = 100  # inclusive
MIN_DSR: Final = 0.95  # inclusive
MAX_PBO: Final = 0.2  # inclusive
MAX_BACKTEST_AGE_DAYS: Final = 45  # inclusive; from the end of the backtest to the promotion

CRITERIA_MET: Final = "criteria met; significance not yet evaluated"
STATISTICS_PASSED: Final = "criteria met and statistics passed; not promoted (that is for `mlbot models promote`)"
NOT_EVALUATED: Final = "not evaluated (needs the trial ledger)"

BOUNDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Sharpe": f"> {MIN_SHARPE}",
        "MAR": f">= {MIN_MAR}",
        "max drawdown": f"< {MAX_DRAWDOWN:.0%}",
        "days": f">= {MIN_DAYS}",
        "trades": f">= {MIN_TRADES}",
        "DSR": f">= {MIN_DSR}",
        "PBO": f"<= {MAX_PBO}",
    }
)
"""Every bound as written for people, by the criterion's name."""

Sizing = Literal["traded", "unit"]


@dataclass(frozen=True)
class Measured:
    """What a backtest measured at one size, on daily UTC NAV returns, flat days included. NaN = undefined.

    Parameters
    ----------
    sharpe, sharpe_low, sharpe_high
        Annual, net, with its 95 % interval.
    mar
        Annual growth over the greatest drawdown.
    max_drawdown
        Fraction of the peak, positive.
    days, trades
        Days of returns, closed round trips.
    """

    sharpe: float
    sharpe_low: float
    sharpe_high: float
    mar: float
    max_drawdown: float
    days: int
    trades: int

    def as_json(self) -> dict[str, float | int | None]:
        """Return plain values; None where a number is not finite."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measured:
        """Read what :meth:`as_json` wrote.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a number is missing or none.
        """
        read = {field.name: values[field.name] for field in fields(cls)}
        numbers = {name: math.nan if value is None else float(value) for name, value in read.items()}
        counts = {name: int(read[name]) for name in ("days", "trades")}
        return cls(**{**numbers, **counts})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Statistics:
    """A candidate among all trials of its namespace, at unit exposure.

    Parameters
    ----------
    dsr, pbo
        Deflated Sharpe ratio and probability of backtest overfitting; NaN where undefined.
    n_trials
        How many trials were ever made there.
    """

    dsr: float
    pbo: float
    n_trials: int


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


def evaluate(measured: Measured) -> tuple[Criterion, ...]:
    """Return the user's criteria at one size; NaN never passes."""
    m = measured
    return (
        _criterion("Sharpe", m.sharpe, m.sharpe > MIN_SHARPE),
        _criterion("MAR", m.mar, m.mar >= MIN_MAR),
        _criterion("max drawdown", m.max_drawdown, m.max_drawdown < MAX_DRAWDOWN),
        _criterion("days", float(m.days), m.days >= MIN_DAYS),
        _criterion("trades", float(m.trades), m.trades >= MIN_TRADES),
    )


def judge_measured(traded: Measured, unit: Measured, statistics: Statistics | None = None) -> Verdict:
    """Return the verdict over the traded size and unit exposure.

    Parameters
    ----------
    traded, unit
        At risk.max_position with every limit on, and at 100 % of NAV with cap, daily limit and halt off.
    statistics
        The candidate among all trials; None where no ledger was asked: nothing can pass then.
    """
    criteria = {"traded": evaluate(traded), "unit": evaluate(unit)}
    known, not_evaluated = _statistics(statistics)
    above = all(m.sharpe_low > 0 for m in (traded, unit))
    among = statistics is None or statistics.dsr >= MIN_DSR
    outcome = _refusal(criteria, known) or _met(statistics, not_evaluated)
    if not all(m.sharpe_low > 0 or m.sharpe_high < 0 for m in (traded, unit)):
        outcome += "; not significant"
    elif not above:
        outcome += "; significantly below zero"
    elif not among and statistics is not None:
        trials = f"{statistics.n_trials:,} trial{'s' if statistics.n_trials != 1 else ''}"
        outcome += f"; not significant among {trials}"
    return Verdict(MappingProxyType(criteria), known, not_evaluated, above and among, outcome)


def _criterion(name: str, value: float, passed: bool) -> Criterion:
    return Criterion(name, BOUNDS[name], value, bool(passed))


def _statistics(among: Statistics | None) -> tuple[tuple[Criterion, ...], tuple[tuple[str, str], ...]]:
    """Return DSR and PBO where they are defined, and the names and bounds of those that are not."""
    dsr = math.nan if among is None else among.dsr
    pbo = math.nan if among is None else among.pbo
    both = (_criterion("DSR", dsr, dsr >= MIN_DSR), _criterion("PBO", pbo, pbo <= MAX_PBO))
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


def _met(statistics: Statistics | None, not_evaluated: tuple[tuple[str, str], ...]) -> str:
    if statistics is None:
        return CRITERIA_MET
    if not_evaluated:
        return f"criteria met; {' and '.join(name for name, _ in not_evaluated)} not evaluated"
    return STATISTICS_PASSED
