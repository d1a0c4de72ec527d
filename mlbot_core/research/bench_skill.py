"""How much skill one path of out-of-fold forecasts shows, with p-values that are uniform where there is none.

Let s be a forecast (``p_up - p_down``), made with what is known at a bar's close, and y its outcome (return to the
barrier in barrier widths), settled up to ``horizon`` bars later. If the log price is a martingale with symmetric
increments, ``E[s y] = 0`` exactly. But neither the products nor the hits are independent: labels overlap, forecasts
persist, and the error of a naive correlation test is too small by a factor of two or three.

Two bars whose labels do not overlap have uncorrelated products, whatever the forecasts (the later y has mean zero given
all that came before). So sums over blocks much longer than the horizon are nearly uncorrelated, and a t test over the
blocks' sums is valid however the products depend inside a block and however the blocks differ in size (Ibragimov and
Mueller 2010, "t-statistic based correlation and heterogeneity robust inference", Journal of Business and Economic
Statistics 28). Blocks here are the test windows. At the boundaries, where only the first bars of each window count,
blocks are a whole window apart and share nothing.

The IC is the correlation about zero, ``sum(s y) / sqrt(sum(s^2) sum(y^2))``: subtracting the sample's own means would
bring in the bias that makes sample autocorrelations negative (Kendall 1954), since forecasts rest on past prices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlbot_core.validation.significance import probabilistic_sharpe_ratio, sharpe_ratio

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """A number and its two-sided p-value under no skill; NaN where undefined."""

    value: float
    p: float


@dataclass(frozen=True)
class PathSkill:
    """Skill of one path: IC and hit rate at the boundaries and overall, Sharpe ratio before costs."""

    boundary_ic: Measured
    boundary_hits: Measured
    ic: Measured
    hits: Measured
    gross_sharpe: Measured


def measure(
    forecast: FloatArray,
    outcome: FloatArray,
    label: FloatArray,
    fold: npt.NDArray[np.int64],
    place: npt.NDArray[np.int64],
    boundary_bars: int,
    gross_daily: FloatArray,
) -> PathSkill:
    """Return the skill of a path.

    Parameters
    ----------
    forecast, outcome, label
        Shape (bars,), one out-of-fold bar each, in time order: ``p_up - p_down``; return to the barrier in widths;
        -1, 0 or 1. NaN where unknown.
    fold, place
        Number of the test window of each bar, and its place in the window from 0.
    boundary_bars
        Places below this are the boundary.
    gross_daily
        Daily returns before costs.
    """
    known = np.isfinite(forecast) & np.isfinite(outcome) & np.isfinite(label)
    near = known & (place < boundary_bars)
    return PathSkill(
        _ic(forecast, outcome, fold, near),
        _hits(forecast, label, fold, near),
        _ic(forecast, outcome, fold, known),
        _hits(forecast, label, fold, known),
        _sharpe(gross_daily),
    )


def block_p_value(products: FloatArray, block: npt.NDArray[np.int64]) -> float:
    """Return the two-sided p-value that products have mean zero, by a t test over the sums of their blocks.

    NaN for fewer than three blocks, or where the sums do not vary.
    """
    from scipy.special import stdtr

    _, place = np.unique(block, return_inverse=True)
    sums = np.bincount(place, weights=products) if len(place) else np.array([])
    if len(sums) < 3 or np.ptp(sums) == 0:
        return math.nan
    t = float(sums.mean() / (sums.std(ddof=1) / math.sqrt(len(sums))))
    return float(2.0 * stdtr(len(sums) - 1, -abs(t)))


def _ic(
    forecast: FloatArray, outcome: FloatArray, fold: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_]
) -> Measured:
    s, y = forecast[rows], outcome[rows]
    scale = math.sqrt(float((s**2).sum()) * float((y**2).sum()))
    value = float((s * y).sum()) / scale if scale > 0 else math.nan
    return Measured(value, block_p_value(s * y, fold[rows]))


def _hits(
    forecast: FloatArray, label: FloatArray, fold: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_]
) -> Measured:
    asked = rows & (label != 0) & (forecast != 0)
    agreed = np.sign(forecast[asked]) * label[asked]
    value = float((agreed > 0).mean()) if len(agreed) else math.nan
    return Measured(value, block_p_value(agreed, fold[asked]))


def _sharpe(daily: FloatArray) -> Measured:
    above = probabilistic_sharpe_ratio(daily)
    return Measured(sharpe_ratio(daily), 2.0 * min(above, 1.0 - above))
