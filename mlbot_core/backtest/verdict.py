"""What a backtest comes to under the user's criteria (:mod:`mlbot_core.validation.criteria`).

A verdict here can refuse, say that the criteria are met, or that the statistics passed too; it never promotes: that is
a signed gate record in the registry (:mod:`mlbot_core.models.registry`), which judges the measured numbers again. DSR
and PBO come from the ledger of all trials; without a ledger they are not evaluated and nothing passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mlbot_core.backtest.metrics import Metrics
from mlbot_core.validation.criteria import (
    CRITERIA_MET,
    MAX_DRAWDOWN,
    MAX_PBO,
    MIN_DAYS,
    MIN_DSR,
    MIN_MAR,
    MIN_SHARPE,
    MIN_TRADES,
    NOT_EVALUATED,
    STATISTICS_PASSED,
    Criterion,
    Measured,
    Sizing,
    Statistics,
    Verdict,
    judge_measured,
)
from mlbot_core.validation.trials_significance import CandidateSignificance

__all__ = [
    "CRITERIA_MET",
    "MAX_DRAWDOWN",
    "MAX_PBO",
    "MIN_DAYS",
    "MIN_DSR",
    "MIN_MAR",
    "MIN_SHARPE",
    "MIN_TRADES",
    "NOT_EVALUATED",
    "STATISTICS_PASSED",
    "Criterion",
    "Sizing",
    "Verdict",
    "judge",
    "measured_json",
    "measured_of",
    "statistics_of",
]

SIZES: Final[tuple[Sizing, ...]] = ("traded", "unit")


def measured_of(metrics: Metrics) -> Measured:
    """Return the numbers of one simulation that the criteria are about."""
    return Measured(
        sharpe=metrics.sharpe.value,
        sharpe_low=metrics.sharpe.low,
        sharpe_high=metrics.sharpe.high,
        mar=metrics.mar,
        max_drawdown=metrics.drawdown.depth,
        days=metrics.days,
        trades=metrics.trades,
    )


def measured_json(metrics: Mapping[str, Metrics]) -> dict[str, Any]:
    """Return what is stored with a backtest for the promotion gate: the numbers at both sizes, and the NAV before."""
    stored: dict[str, Any] = {size: measured_of(metrics[size]).as_json() for size in SIZES}
    return stored | {"initial_nav": metrics["unit"].nav_start}


def statistics_of(significance: CandidateSignificance) -> Statistics:
    """Return what the criteria ask of a candidate among all trials."""
    return Statistics(significance.dsr, significance.pbo, significance.n_trials)


def judge(traded: Metrics, unit: Metrics, significance: CandidateSignificance | None = None) -> Verdict:
    """Return the verdict over the traded size and unit exposure.

    Parameters
    ----------
    traded, unit
        At risk.max_position, and at 100 % of NAV.
    significance
        The candidate among all trials; None where no ledger was asked: nothing can pass then.
    """
    statistics = None if significance is None else statistics_of(significance)
    return judge_measured(measured_of(traded), measured_of(unit), statistics)
