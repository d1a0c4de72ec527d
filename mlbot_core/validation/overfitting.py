"""Probability of backtest overfitting, by combinatorially symmetric cross-validation.

The history is cut into blocks. For every choice of half of them, the configuration that was best in these is looked up
in the other half: if choosing found skill, it ranks high there; if it fitted noise, it ranks anywhere. The probability
of backtest overfitting (PBO) is how often the chosen one lands in the lower half.

Sources
-------
D. Bailey, J. Borwein, M. Lopez de Prado and Q. Zhu, "The Probability of Backtest Overfitting", Journal of
Computational Finance 20(4), 2017.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.validation.resampling import FloatArray, check_panel
from mlbot_core.validation.significance import DAYS_PER_YEAR, StatisticsError

# 20 blocks are 184,756 combinations; more say nothing new and take hours.
MAX_BLOCKS: Final = 20

# In units of a configuration's own variance: what is left of that of a stretch without trading, by rounding.
_FLAT: Final = 1e-12


@dataclass(frozen=True, eq=False)
class PboResult:
    """What choosing the best configuration was worth out of sample.

    Parameters
    ----------
    pbo
        Share of the combinations in which the chosen configuration ranked in the lower half out of sample (logit at
        or below 0).
    logits
        ``ln(w / (1 - w))`` of each combination, ``w`` the chosen one's out-of-sample rank over (configurations + 1);
        shape (combinations,).
    in_sample, out_of_sample
        Annual Sharpe ratio of the chosen configuration in the half it was chosen on and in the other; shape
        (combinations,). 0 for a half without trading.
    degradation_slope, degradation_intercept
        Least squares line of ``out_of_sample`` on ``in_sample``; NaN where ``in_sample`` does not vary.
    probability_of_loss
        Share of the combinations in which the chosen one lost money out of sample.
    configurations, days, blocks
        Size of the input.
    """

    pbo: float
    logits: FloatArray
    in_sample: FloatArray
    out_of_sample: FloatArray
    degradation_slope: float
    degradation_intercept: float
    probability_of_loss: float
    configurations: int
    days: int
    blocks: int


def pbo_cscv(returns: npt.ArrayLike, blocks: int = 16, periods_per_year: float = DAYS_PER_YEAR) -> PboResult:
    """Return the probability that the best of the configurations was overfitted.

    Configurations of equal Sharpe ratio share the mean of their ranks, and where several are best in sample, the mean
    over them counts: the order of the columns does not matter.

    Parameters
    ----------
    returns
        Simple returns (fractions) a day of EVERY configuration tried, shape (days, configurations), over the same
        days; flat days are 0.
    blocks
        Consecutive blocks, even; they differ by at most one day.
    periods_per_year
        365 for daily returns around the clock.

    Raises
    ------
    StatisticsError
        If there are fewer than two configurations, blocks are odd, too many or shorter than two days, or a return is
        NaN or infinite.

    Examples
    --------
    A configuration with real skill among noise is chosen, and stays the best:

    >>> returns = np.random.default_rng(1).normal(0, 0.01, (480, 10))
    >>> returns[:, 3] += 0.01
    >>> pbo_cscv(returns, blocks=8).pbo
    0.0
    """
    panel = check_panel(np.ascontiguousarray(returns, dtype=np.float64))
    days, configurations = panel.shape
    if configurations < 2:
        raise StatisticsError("one configuration was not chosen from any; pass the returns of all that were tried")
    if blocks < 2 or blocks % 2 or blocks > MAX_BLOCKS:
        raise StatisticsError(f"{blocks} blocks; use an even number from 2 to {MAX_BLOCKS}, for example 16")
    if days < 2 * blocks:
        raise StatisticsError(f"{days} days cannot make {blocks} blocks of two days or more; use fewer blocks")
    mean = panel.mean(axis=0)
    unit = np.sqrt(((panel - mean) ** 2).mean(axis=0))
    unit = np.where(unit <= 1e-12 * np.abs(panel).max(axis=0), 0.0, unit)
    scaled = np.divide(panel - mean, unit, out=np.zeros_like(panel), where=unit > 0)
    drift = np.divide(mean, unit, out=np.where(mean == 0, 0.0, np.copysign(np.inf, mean)), where=unit > 0)
    edges = np.linspace(0, days, blocks + 1).round().astype(np.int64)
    sums = np.add.reduceat(scaled, edges[:-1], axis=0)
    squares = np.add.reduceat(scaled**2, edges[:-1], axis=0)
    halves = np.array(list(itertools.combinations(range(blocks), blocks // 2)), dtype=np.int64)
    chosen = np.zeros((len(halves), blocks), dtype=np.bool_)
    chosen[np.arange(len(halves))[:, None], halves] = True
    rank, inside, outside = _cscv(sums, squares, np.diff(edges).astype(np.float64), drift, chosen)
    # ln(w / (1 - w)) with w = rank / (configurations + 1), without rounding w.
    logits = np.log(rank / (configurations + 1.0 - rank))
    annual = math.sqrt(periods_per_year)
    inside, outside = inside * annual, outside * annual
    slope, intercept = _line(inside, outside)
    return PboResult(
        pbo=float(np.mean(logits <= 0.0)),
        logits=logits,
        in_sample=inside,
        out_of_sample=outside,
        degradation_slope=slope,
        degradation_intercept=intercept,
        probability_of_loss=float(np.mean(outside < 0.0)),
        configurations=configurations,
        days=days,
        blocks=blocks,
    )


def _line(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 2 or np.ptp(x) <= 1e-12 * np.abs(x).max():
        return math.nan, math.nan
    centred = x - x.mean()
    slope = float(centred @ (y - y.mean()) / (centred @ centred))
    return slope, float(y.mean() - slope * x.mean())


@njit(cache=True)
def _sharpe(total: float, squares: float, n: float, drift: float) -> float:
    """Sharpe ratio per period of a half, from sums of returns scaled by the configuration's own moments."""
    variance = (squares - total * total / n) / (n - 1.0)
    mean = total / n + drift
    if variance > _FLAT:
        return mean / math.sqrt(variance)
    if abs(mean) < 1e-9:
        return 0.0
    return math.inf if mean > 0 else -math.inf


@njit(cache=True)
def _cscv(sums: Any, squares: Any, sizes: Any, drift: Any, chosen: Any) -> Any:
    combinations, blocks = chosen.shape
    n_configurations = sums.shape[1]
    rank = np.empty(combinations)
    inside, outside = np.empty(combinations), np.empty(combinations)
    # First axis: the half that is not chosen, and the one that is.
    total, square = np.empty((2, n_configurations)), np.empty((2, n_configurations))
    other = np.empty(n_configurations)
    for c in range(combinations):
        total[:], square[:] = 0.0, 0.0
        n_out, n_in = 0.0, 0.0
        for b in range(blocks):
            half = 1 if chosen[c, b] else 0
            if half == 1:
                n_in += sizes[b]
            else:
                n_out += sizes[b]
            for k in range(n_configurations):
                total[half, k] += sums[b, k]
                square[half, k] += squares[b, k]
        best = -math.inf
        for k in range(n_configurations):
            total[1, k] = _sharpe(total[1, k], square[1, k], n_in, drift[k])
            other[k] = _sharpe(total[0, k], square[0, k], n_out, drift[k])
            best = max(best, total[1, k])
        ties, ranks, value = 0, 0.0, 0.0
        for k in range(n_configurations):
            if total[1, k] == best:
                below, same = 0, 0
                for j in range(n_configurations):
                    below += other[j] < other[k]
                    same += other[j] == other[k]
                ties += 1
                ranks += below + (same + 1.0) / 2.0
                value += other[k]
        rank[c], inside[c], outside[c] = ranks / ties, best, value / ties
    return rank, inside, outside
