"""Is the best of many candidates better than the benchmark, or only the luckiest? White's and Hansen's tests.

Both compare the best candidate's mean advantage with what the best of them all would show by luck, drawn again by the
stationary bootstrap with the dependence between days and between candidates kept. White's reality check takes every
candidate as if it were exactly as good as the benchmark; poor candidates then make the test timid. Hansen's test of
superior predictive ability scales each candidate by its risk and leaves out those that are clearly worse.

Sources
-------
H. White, "A Reality Check for Data Snooping", Econometrica 68(5), 2000.
P. R. Hansen, "A Test for Superior Predictive Ability", Journal of Business & Economic Statistics 23(4), 2005.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.validation.resampling import check_panel, chosen_block_length, stationary_indices
from mlbot_core.validation.significance import StatisticsError


@dataclass(frozen=True)
class SpaResult:
    """How likely the best candidate's advantage is by luck alone.

    Parameters
    ----------
    p_consistent
        P-value with the candidates that are clearly worse left out; the one to report.
    p_lower, p_upper
        Bounds: with every candidate worse than the benchmark left out (liberal), and with none (conservative).
    statistic
        The best candidate's mean advantage: times the root of the days over its standard deviation where
        ``studentised``, else in the unit of the returns, per day.
    best
        Column of the best candidate.
    candidates, days
        Size of the input.
    block_length
        Mean block length of the bootstrap, days.
    n_resamples
        Resamples; p-values are multiples of one over this.
    studentised
        Whether candidates were scaled by their risk.
    """

    p_consistent: float
    p_lower: float
    p_upper: float
    statistic: float
    best: int
    candidates: int
    days: int
    block_length: float
    n_resamples: int
    studentised: bool


def superior_predictive_ability(
    returns: npt.ArrayLike,
    benchmark: npt.ArrayLike | None = None,
    *,
    n_resamples: int = 1_000,
    block_length: float | None = None,
    seed: int = 0,
    studentised: bool = True,
) -> SpaResult:
    """Test whether any candidate beats the benchmark (Hansen 2005, section 3).

    Parameters
    ----------
    returns
        Performance of the candidates a day (simple returns, or any score of which more is better), shape (days,
        candidates), in time order.
    benchmark
        The benchmark's on the same days, shape (days,); None for 0 (not trading).
    n_resamples
        Bootstrap resamples.
    block_length
        Mean block length in days; None for the mean over the candidates of the automatic length of their advantage.
    seed
        Same seed, same p-values.
    studentised
        Divide each candidate's advantage by its standard deviation, as Hansen does. Without, the statistic is White's;
        the three p-values are then those of ``arch.bootstrap.SPA``, which scales nothing.

    Raises
    ------
    StatisticsError
        If a value is NaN or infinite, the shapes differ, there are fewer than 11 days, or a candidate differs from the
        benchmark by the same amount every day.

    Examples
    --------
    >>> returns = np.random.default_rng(2).normal(0, 0.01, (500, 20))
    >>> superior_predictive_ability(returns).p_consistent > 0.05
    True
    >>> returns[:, 7] += 0.003
    >>> result = superior_predictive_ability(returns)
    >>> result.best, result.p_consistent < 0.01
    (7, True)
    """
    panel = check_panel(np.asarray(returns, dtype=np.float64), least=11)
    days, candidates = panel.shape
    base = np.zeros(days) if benchmark is None else np.asarray(benchmark, dtype=np.float64)
    if base.shape != (days,):
        raise StatisticsError(f"the benchmark has shape {base.shape} where the candidates have {days} days; align them")
    ahead = np.ascontiguousarray(panel - check_panel(base[:, None], least=11))
    length = chosen_block_length(ahead) if block_length is None else float(block_length)
    mean = ahead.mean(axis=0)
    centred = ahead - mean
    indices = stationary_indices(days, n_resamples, length, seed)
    variance = _long_run_variance(centred, 1.0 / length)
    scale = np.abs(ahead).max(axis=0)
    constant = variance <= (1e-12 * scale) ** 2
    if (constant & (scale > 0)).any():
        at = int(np.argmax(constant & (scale > 0)))
        raise StatisticsError(
            f"candidate {at} differs from the benchmark by {mean[at]} every day; pass returns, day by day, after costs"
        )
    # A candidate that is the benchmark says nothing: its advantage is 0, drawn or not.
    unit = np.where(constant, 1.0, np.sqrt(variance / days)) if studentised else np.ones(candidates)
    bound = -np.sqrt(variance / days * 2.0 * math.log(math.log(days)))
    drawn = _drawn_means(centred, indices)
    # The mean that a candidate has in the resampled world, by the three ways to treat the poor ones.
    kept = {
        "upper": np.zeros(candidates),
        "consistent": np.where(mean >= bound, 0.0, mean),
        "lower": np.minimum(mean, 0.0),
    }
    scores = mean / unit
    best = int(np.argmax(scores))
    statistic = float(scores[best])
    p: dict[str, float] = {}
    for name, left in kept.items():
        highest = ((drawn + left) / unit).max(axis=1)
        reference = statistic
        if studentised:
            # Hansen's statistic is never below 0.
            highest, reference = np.maximum(highest, 0.0), max(statistic, 0.0)
        p[name] = float(np.mean(highest > reference))
    return SpaResult(
        p_consistent=p["consistent"],
        p_lower=p["lower"],
        p_upper=p["upper"],
        statistic=statistic,
        best=best,
        candidates=candidates,
        days=days,
        block_length=length,
        n_resamples=n_resamples,
        studentised=studentised,
    )


def reality_check(
    returns: npt.ArrayLike,
    benchmark: npt.ArrayLike | None = None,
    *,
    n_resamples: int = 1_000,
    block_length: float | None = None,
    seed: int = 0,
) -> float:
    """Return the p-value of White's reality check: no scaling, and no candidate left out.

    Parameters are those of :func:`superior_predictive_ability`.

    Examples
    --------
    >>> returns = np.random.default_rng(2).normal(0, 0.01, (500, 20))
    >>> reality_check(returns) > 0.05
    True
    """
    result = superior_predictive_ability(
        returns, benchmark, n_resamples=n_resamples, block_length=block_length, seed=seed, studentised=False
    )
    return result.p_upper


@njit(cache=True)
def _drawn_means(values: Any, indices: Any) -> Any:
    """Means of the resamples, shape (resamples, columns); each column's sum runs in the order of its resample."""
    n_resamples, n = indices.shape
    columns = values.shape[1]
    means = np.zeros((n_resamples, columns))
    for r in range(n_resamples):
        for t in range(n):
            row = indices[r, t]
            for k in range(columns):
                means[r, k] += values[row, k]
        for k in range(columns):
            means[r, k] /= n
    return means


@njit(cache=True)
def _long_run_variance(centred: Any, p: float) -> Any:
    """Variance of the root of n times the resampled mean, given the data (Politis and Romano 1994, lemma 1).

    ``g(0) + 2 sum_i k(i) g(i)`` with ``k(i) = (1 - i/n) (1 - p)^i + (i/n) (1 - p)^(n - i)``.
    """
    n, columns = centred.shape
    total = np.zeros(columns)
    for t in range(n):
        for k in range(columns):
            total[k] += centred[t, k] * centred[t, k]
    for lag in range(1, n):
        share = lag / n
        weight = (1.0 - share) * (1.0 - p) ** lag + share * (1.0 - p) ** (n - lag)
        # Far lags weigh nothing.
        if weight < 1e-14:
            continue
        for t in range(lag, n):
            for k in range(columns):
                total[k] += 2.0 * weight * centred[t, k] * centred[t - lag, k]
    return total / n
