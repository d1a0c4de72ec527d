"""What a candidate is worth beside every trial that was ever made: DSR and PBO, with N from the ledger."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mlbot_core.clock import format_utc
from mlbot_core.validation.effective_trials import effective_trials
from mlbot_core.validation.overfitting import pbo_cscv
from mlbot_core.validation.significance import (
    deflated_sharpe_ratio,
    expected_maximum_sharpe,
    probabilistic_sharpe_ratio,
)
from mlbot_core.validation.trials import DailyReturns, Head, LedgerError, TrialHistory

PBO_BLOCKS: Final = 16
MIN_PBO_DAYS: Final = PBO_BLOCKS * 10
"""Days that all compared trials must share: blocks of fewer than ten days say nothing about a Sharpe ratio."""

SEARCHED: Final = "tuning"
"""``stage`` of a trial that a search for parameters made."""

MIN_COVER: Final = 0.8
"""A trial enters the PBO matrix if it covers this share of the candidate's days; the others are counted and named."""


@dataclass(frozen=True)
class CandidateSignificance:
    """A candidate among all trials of its namespace.

    Parameters
    ----------
    head
        Of the ledger that the numbers come from.
    n_trials
        N, the candidate included: what the gate counts with.
    effective_trials
        Independent trials behind the comparable ones, by clustering; for people, never for the gate. NaN where fewer
        than two are comparable.
    trial_variance
        Variance over the trials of their annual Sharpe ratios (n - 1 in the denominator): of all of them, or without
        those of searches for parameters where that is larger; 0 for a single trial, NaN where fewer than two of several
        trials have one.
    benchmark
        Annual Sharpe ratio to expect of the best of N skill-less trials; NaN where the variance is.
    psr, dsr
        Probability that the true Sharpe ratio is above zero, and above the benchmark; NaN where undefined.
    pbo
        Probability of backtest overfitting over the comparable trials; NaN where it cannot be computed.
    pbo_trials, pbo_days
        How many trials and days it rests on; 0 where there is none.
    notes
        Why a number is missing, and what was left out, one sentence each.
    """

    head: Head
    n_trials: int
    effective_trials: float
    trial_variance: float
    benchmark: float
    psr: float
    dsr: float
    pbo: float
    pbo_trials: int
    pbo_days: int
    notes: tuple[str, ...]


def candidate_significance(
    history: TrialHistory, candidate: DailyReturns, *, min_active_days: int = 30
) -> CandidateSignificance:
    """Judge a candidate that is in the ledger already.

    Parameters
    ----------
    history
        All trials of its namespace, verified, the candidate's own evaluation among them.
    candidate
        Its daily returns at unit exposure.
    min_active_days
        With fewer days that moved, the standard error of a Sharpe ratio collapses and nothing is said.

    Raises
    ------
    LedgerError
        If the history does not hold the candidate: judging what was not counted would flatter it.
    """
    if all(row.series_id != candidate.identity for row in history.rows):
        raise LedgerError(
            f"the candidate is not among the {len(history.rows)} evaluations of the {history.namespace} ledger; "
            "append its evaluation before judging it"
        )
    notes: list[str] = []
    variance = _trial_variance(history, notes)
    benchmark = math.nan if math.isnan(variance) else expected_maximum_sharpe(history.n_trials, variance)
    active = int(np.count_nonzero(candidate.values))
    if active >= min_active_days:
        psr = probabilistic_sharpe_ratio(candidate.values)
        dsr = math.nan if math.isnan(benchmark) else deflated_sharpe_ratio(candidate.values, history.n_trials, variance)
    else:
        psr = dsr = math.nan
        notes.append(f"PSR and DSR: only {active} days moved; at least {min_active_days} are needed.")
    matrix = _comparable(history, candidate, notes)
    return CandidateSignificance(
        head=history.head,
        n_trials=history.n_trials,
        effective_trials=math.nan if matrix is None else effective_trials(matrix).number,
        trial_variance=variance,
        benchmark=benchmark,
        psr=psr,
        dsr=dsr,
        pbo=math.nan if matrix is None else pbo_cscv(matrix, PBO_BLOCKS).pbo,
        pbo_trials=0 if matrix is None else matrix.shape[1],
        pbo_days=0 if matrix is None else matrix.shape[0],
        notes=tuple(notes),
    )


def _trial_variance(history: TrialHistory, notes: list[str]) -> float:
    """Return the variance of the trials' Sharpe ratios, the larger of all trials' and of those made to be chosen among.

    A search for parameters adds many trials that are nearly the same: they count in N, but they must not make the
    trials as a whole look alike, or searching would lower the hurdle.
    """
    sharpes = history.sharpes()
    searched = np.array([json.loads(row.configuration).get("stage") == SEARCHED for row in history.counted])
    defined = sharpes[np.isfinite(sharpes)]
    apart = sharpes[np.isfinite(sharpes) & ~searched]
    if len(defined) < len(sharpes):
        notes.append(
            f"{len(sharpes) - len(defined)} of {len(sharpes)} trials never traded and have no Sharpe ratio: "
            "they count in N and not in the variance."
        )
    if len(sharpes) == 1:
        notes.append("DSR: only one trial was ever made here, so nothing was selected and DSR equals PSR.")
        return 0.0
    if len(defined) < 2:
        notes.append("DSR: fewer than two trials have a Sharpe ratio, so their variance is unknown.")
        return math.nan
    return max(float(np.var(part, ddof=1)) for part in (defined, apart) if len(part) >= 2)


def _comparable(history: TrialHistory, candidate: DailyReturns, notes: list[str]) -> npt.NDArray[np.float64] | None:
    """Return the trials that share the candidate's days, (days, trials), or None and a note why not."""
    if history.n_trials < 2:
        notes.append("PBO: it compares at least two trials, and only one was made.")
        return None
    matrix = history.matrix(candidate.first_day_ms, candidate.end_ms)
    known = np.isfinite(matrix)
    enough = known.mean(axis=0) >= MIN_COVER
    left_out = int((~enough).sum())
    if left_out:
        notes.append(
            f"PBO: {left_out} of {history.n_trials} trials cover less than {MIN_COVER:.0%} of the days from "
            f"{format_utc(candidate.first_day_ms)} to {format_utc(candidate.end_ms)} and are not compared."
        )
    if enough.sum() < 2:
        notes.append("PBO: fewer than two trials cover the candidate's days.")
        return None
    common = known[:, enough].all(axis=1)
    days = int(common.sum())
    if days < MIN_PBO_DAYS:
        notes.append(f"PBO: the trials share {days} days; at least {MIN_PBO_DAYS} are needed.")
        return None
    return np.asarray(matrix[common][:, enough], dtype=np.float64)
