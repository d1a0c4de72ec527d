"""The block that every report and every asset shows: how much was measured, and how sure one may be of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mlbot_core.backtest.run import BacktestResult
from mlbot_core.backtest.verdict import MAX_PBO, MIN_DSR
from mlbot_core.clock import format_utc
from mlbot_core.validation.significance import Interval

NOT_SIGNIFICANT = "not significant"
_SHARES = ("live", "modelled", "restated")


@dataclass(frozen=True)
class SignificanceBlock:
    """What a reader must know before believing a number. At unit exposure, net of costs and funding.

    Parameters
    ----------
    days, forecasts, trades
        How much there is: days of returns, forecasts with a realised label, closed round trips.
    start_ms, end_ms
        Period, UTC ms, [start, end).
    sharpe
        Annual, with its 95 % interval.
    psr
        Probability that the true Sharpe ratio is above zero, this result taken alone.
    dsr, n_trials, effective_trials, benchmark
        Probability that it is above ``benchmark``, what the best of N skill-less trials would show; how many
        independent ones are behind them, for information. NaN and 0 where no ledger was asked.
    pbo, pbo_trials, pbo_days
        Probability of backtest overfitting, over how many trials and common days; NaN and 0 where it has none.
    hits
        Forecast hit rate with its 95 % interval, overlapping labels counted once.
    turnover_per_year
        Traded value over NAV, a year.
    break_even_bp
        Cost per side at which the net is zero, in basis points.
    shares
        Point-in-time shares of the data: ``live``, ``modelled``, ``restated``; fractions, NaN where not given.
    significant
        As the verdict says.
    sentence
        That in words.
    notes
        Why a number is missing, one sentence each.
    ledger_head
        Which ledger the counts come from; empty without one.
    """

    days: int
    forecasts: int
    trades: int
    start_ms: int
    end_ms: int
    sharpe: Interval
    psr: float
    dsr: float
    n_trials: int
    effective_trials: float
    benchmark: float
    pbo: float
    pbo_trials: int
    pbo_days: int
    hits: Interval
    turnover_per_year: float
    break_even_bp: float
    shares: Mapping[str, float]
    significant: bool
    sentence: str
    notes: tuple[str, ...]
    ledger_head: str


def significance_block(result: BacktestResult) -> SignificanceBlock:
    """Return the block of a backtest."""
    unit, among = result.metrics["unit"], result.significance
    return SignificanceBlock(
        days=unit.days,
        forecasts=result.skill.n,
        trades=unit.trades,
        start_ms=result.start_ms,
        end_ms=result.end_ms,
        sharpe=unit.sharpe,
        psr=unit.psr,
        dsr=math.nan if among is None else among.dsr,
        n_trials=0 if among is None else among.n_trials,
        effective_trials=math.nan if among is None else among.effective_trials,
        benchmark=math.nan if among is None else among.benchmark,
        pbo=math.nan if among is None else among.pbo,
        pbo_trials=0 if among is None else among.pbo_trials,
        pbo_days=0 if among is None else among.pbo_days,
        hits=result.skill.hits,
        turnover_per_year=unit.turnover_per_year,
        break_even_bp=unit.break_even_bp,
        shares=MappingProxyType({name: float(result.input.shares.get(name, math.nan)) for name in _SHARES}),
        significant=result.verdict.significant,
        sentence=_sentence(result),
        notes=("No trial ledger was asked: DSR and PBO are not evaluated.",) if among is None else among.notes,
        ledger_head="" if among is None else str(among.head),
    )


def flat(block: SignificanceBlock) -> dict[str, Any]:
    """Return the block as one level of plain numbers and texts; what is undefined is left out.

    Keys: ``significance`` (the sentence), ``period``, ``days``, ``forecasts``, ``round trips``, ``Sharpe``,
    ``Sharpe low``, ``Sharpe high``, ``PSR``, ``DSR``, ``trials counted (N)``, ``independent trials among them``,
    ``Sharpe expected of the best of N``, ``PBO``, ``PBO over trials``, ``PBO over days``, ``hit rate``,
    ``hit rate low``, ``hit rate high``, ``turnover a year, x NAV``, ``break-even cost per side, bp``, ``share live``,
    ``share modelled``, ``share restated``, ``not evaluated``, ``trial ledger``. Rates and probabilities are fractions.
    """
    values: dict[str, Any] = {
        "significance": block.sentence,
        "period": f"{format_utc(block.start_ms)} to {format_utc(block.end_ms)}",
        "days": block.days,
        "forecasts": block.forecasts,
        "round trips": block.trades,
        "Sharpe": block.sharpe.value,
        "Sharpe low": block.sharpe.low,
        "Sharpe high": block.sharpe.high,
        "PSR": block.psr,
        "DSR": block.dsr,
        "trials counted (N)": block.n_trials or None,
        "independent trials among them": block.effective_trials,
        "Sharpe expected of the best of N": block.benchmark,
        "PBO": block.pbo,
        "PBO over trials": block.pbo_trials or None,
        "PBO over days": block.pbo_days or None,
        "hit rate": block.hits.value,
        "hit rate low": block.hits.low,
        "hit rate high": block.hits.high,
        "turnover a year, x NAV": block.turnover_per_year,
        "break-even cost per side, bp": block.break_even_bp,
        **{f"share {name}": share for name, share in block.shares.items()},
        "not evaluated": " ".join(block.notes) or None,
        "trial ledger": block.ledger_head or None,
    }
    return {
        name: value
        for name, value in values.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def _sentence(result: BacktestResult) -> str:
    verdict, among = result.verdict, result.significance
    if verdict.significant:
        if among is None:
            return "significantly above zero before counting trials"
        return f"significantly above zero among {_trials(among.n_trials)} (DSR {among.dsr:.1%}, at least {MIN_DSR:.0%})"
    unit, traded = result.metrics["unit"].sharpe, result.metrics["traded"].sharpe
    if unit.high < 0 and traded.high < 0:
        return f"{NOT_SIGNIFICANT}: the Sharpe ratio is significantly BELOW zero"
    if not (unit.low > 0 and traded.low > 0):
        return f"{NOT_SIGNIFICANT}: the Sharpe ratio is not shown to be above zero"
    if among is None or math.isnan(among.dsr):
        return f"{NOT_SIGNIFICANT}: the DSR could not be evaluated"
    return (
        f"{NOT_SIGNIFICANT}: above zero alone, but not beside {_trials(among.n_trials)} "
        f"(DSR {among.dsr:.1%}, below {MIN_DSR:.0%})"
    )


def overfitting_words(block: SignificanceBlock) -> str:
    """Return what the PBO says, empty where there is none."""
    if math.isnan(block.pbo):
        return ""
    side = "acceptable" if block.pbo <= MAX_PBO else "too high"
    return (
        f"{block.pbo:.1%} over {_trials(block.pbo_trials)} and {block.pbo_days:,} common days: {side} "
        f"(bound {MAX_PBO:.0%})"
    )


def _trials(n: int) -> str:
    return f"{n:,} trial{'' if n == 1 else 's'}"
