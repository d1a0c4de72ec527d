"""Confidence intervals of means and Sharpe ratios by the stationary bootstrap.

Both need nothing of a resample but sums of powers. For one series these come from running sums, block by block; for
many series a resample is held as how often it contains each day, and the sums of all of them are one matrix product,
which is why ten thousand intervals take seconds. Same seed, same intervals.

Sources
-------
D. Politis and J. Romano, "The Stationary Bootstrap", JASA 89, 1994.
B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 12 (studentised) and 13 (percentile).
O. Ledoit and M. Wolf, "Robust performance hypothesis testing with the Sharpe ratio", J. Empirical Finance 15, 2008.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from mlbot_core.validation.resampling import (
    FloatArray,
    check_panel,
    chosen_block_length,
    optimal_block_length,
    resampled_sums,
    stationary_indices,
)
from mlbot_core.validation.significance import DAYS_PER_YEAR, Interval, StatisticsError

__all__ = [
    "bootstrap_mean_interval",
    "bootstrap_sharpe_interval",
    "bootstrap_sharpe_intervals",
    "optimal_block_length",
    "stationary_indices",
]

Method = Literal["percentile", "studentised"]
Statistic = Literal["mean", "sharpe"]

# How many numbers are held of all resamples of a group of series.
_HELD: Final = 4_000_000

# An interval whose statistic is undefined in more resamples than this share (a strategy that hardly traded) is none.
_UNDEFINED: Final = 0.1

# A standard deviation this small beside the largest value is rounding noise of a constant series.
_CONSTANT: Final = 1e-12


def bootstrap_mean_interval(
    values: npt.ArrayLike,
    *,
    method: Method = "percentile",
    level: float = 0.95,
    n_resamples: int = 10_000,
    block_length: float | None = None,
    seed: int = 0,
) -> Interval:
    """Return the mean of a series with its stationary bootstrap interval.

    Parameters
    ----------
    values
        Shape (n,), in time order; any unit, which is that of the answer.
    method, level, n_resamples, seed
        As in :func:`bootstrap_sharpe_intervals`.
    block_length
        Mean block length in periods; None to choose it by :func:`optimal_block_length`.

    Raises
    ------
    StatisticsError
        If a value is NaN or infinite, or a parameter cannot be.
    """
    series = check_panel(np.asarray(values, dtype=np.float64)[:, None])
    length = chosen_block_length(series) if block_length is None else float(block_length)
    return _intervals(_scale(series), "mean", method, level, n_resamples, length, seed)[0]


def bootstrap_sharpe_interval(
    returns: npt.ArrayLike,
    *,
    method: Method = "percentile",
    level: float = 0.95,
    n_resamples: int = 10_000,
    block_length: float | None = None,
    seed: int = 0,
    periods_per_year: float = DAYS_PER_YEAR,
) -> Interval:
    """Return the annual Sharpe ratio of a series with its stationary bootstrap interval.

    See :func:`bootstrap_sharpe_intervals`, which this calls for one series.

    Examples
    --------
    >>> returns = np.random.default_rng(1).normal(0.001, 0.02, 730)
    >>> interval = bootstrap_sharpe_interval(returns, n_resamples=2000)
    >>> interval.low < interval.value < interval.high
    True
    """
    series = np.asarray(returns, dtype=np.float64)
    if series.ndim != 1:
        raise StatisticsError(f"returns have shape {series.shape}; pass one series, one number a day")
    return bootstrap_sharpe_intervals(
        series[:, None],
        method=method,
        level=level,
        n_resamples=n_resamples,
        block_length=block_length,
        seed=seed,
        periods_per_year=periods_per_year,
    )[0]


def bootstrap_sharpe_intervals(
    returns: npt.ArrayLike,
    *,
    method: Method = "percentile",
    level: float = 0.95,
    n_resamples: int = 1_000,
    block_length: float | None = None,
    seed: int = 0,
    periods_per_year: float = DAYS_PER_YEAR,
) -> tuple[Interval, ...]:
    """Return the annual Sharpe ratios of many series over the same days, each with its interval.

    The same days are drawn for all series, so their dependence on each other is kept and each one's interval is what
    it would be alone with this block length and seed.

    Parameters
    ----------
    returns
        Simple returns (fractions) a day, shape (days, series), in time order; flat days are 0.
    method
        ``percentile``: the quantiles of the resampled statistic. ``studentised``: those of its distance from the
        estimate in standard errors, turned back; better where returns are skewed. The standard error that scales is
        the one for independent returns with their skew and kurtosis; the resamples themselves carry the dependence.
    level
        Two-sided confidence.
    n_resamples
        Resamples.
    block_length
        Mean block length in days; None for the mean over the series of the automatic length, chosen (Politis and White)
        for the series' contributions to the Sharpe ratio (its influence function, Ledoit and Wolf 2008), at least 1.
    seed
        Same seed, same intervals.
    periods_per_year
        365 for daily returns around the clock.

    Returns
    -------
    tuple of Interval
        One a series. NaN value for a constant series; NaN ends too where the statistic is undefined in more than a
        tenth of the resamples. ``standard_error`` is NaN.

    Raises
    ------
    StatisticsError
        If a return is NaN or infinite, or a parameter cannot be.
    """
    scaled = _scale(check_panel(np.asarray(returns, dtype=np.float64)))
    length = block_length
    if length is None:
        z = scaled.values
        length = chosen_block_length(z - 0.5 * scaled.sharpe * (z**2 - 1.0))
    annual = math.sqrt(periods_per_year)
    return tuple(
        Interval(i.value * annual, i.low * annual, i.high * annual, math.nan, i.level, i.n)
        for i in _intervals(scaled, "sharpe", method, level, n_resamples, float(length), seed)
    )


@dataclass(frozen=True, eq=False)
class _Scaled:
    """Series in their own standard deviations from their own means; 0 where constant."""

    values: FloatArray
    mean: FloatArray
    unit: FloatArray
    constant: npt.NDArray[np.bool_]

    @property
    def sharpe(self) -> FloatArray:
        """Per period; 0 for a constant series."""
        return np.where(self.constant, 0.0, self.mean / self.unit)

    def part(self, first: int, width: int) -> _Scaled:
        """Some of the series."""
        at = slice(first, first + width)
        return _Scaled(np.ascontiguousarray(self.values[:, at]), self.mean[at], self.unit[at], self.constant[at])


def _scale(panel: FloatArray) -> _Scaled:
    mean = panel.mean(axis=0)
    values = panel - mean
    std = np.sqrt(np.einsum("ij,ij->j", values, values) / (len(panel) - 1))
    constant = std <= _CONSTANT * np.abs(panel).max(axis=0)
    unit = np.where(constant, 1.0, std)
    values /= unit
    values[:, constant] = 0.0
    return _Scaled(values, mean, unit, constant)


def _intervals(
    series: _Scaled,
    statistic: Statistic,
    method: Method,
    level: float,
    n_resamples: int,
    block_length: float,
    seed: int,
) -> list[Interval]:
    if not 0.0 < level < 1.0:
        raise StatisticsError(f"confidence level {level} is not between 0 and 1; for example 0.95")
    if method not in ("percentile", "studentised"):
        raise StatisticsError(f"method {method!r} is not known; use 'percentile' or 'studentised'")
    result: list[Interval] = []
    width = max(1, _HELD // max(1, n_resamples))
    for first in range(0, series.values.shape[1], width):
        part = series.part(first, width)
        result += _of_group(part, statistic, method, level, n_resamples, block_length, seed)
    return result


def _of_group(
    series: _Scaled,
    statistic: Statistic,
    method: Method,
    level: float,
    n_resamples: int,
    block_length: float,
    seed: int,
) -> list[Interval]:
    z = series.values
    n, width = z.shape
    # In standard deviations of each series; turned back at the end.
    estimate = series.mean / series.unit if statistic == "mean" else series.sharpe
    last = 4 if method == "studentised" and statistic == "sharpe" else 2
    powers = np.hstack([z**k for k in range(1, last + 1)])
    drawn = np.empty((n_resamples, width))
    done = 0
    for chunk in resampled_sums(powers, n_resamples, block_length, seed):
        sums = np.hsplit(chunk, last)
        drawn[done : done + len(chunk)] = _statistics(sums, n, estimate, statistic, method)
        done += len(chunk)
    low, high, undefined = _quantiles(drawn, level)
    if method == "studentised":
        own = np.hsplit(powers.sum(axis=0), last)
        error = _errors(own, n, estimate, statistic)
        low, high = estimate - high * error, estimate - low * error
    nothing = series.constant | (undefined > _UNDEFINED)
    low, high = (np.where(nothing, math.nan, end) for end in (low, high))
    value = np.where(series.constant, math.nan, estimate)
    if statistic == "mean":
        # A constant has no spread: its mean is known exactly.
        value, low, high = (np.where(series.constant, series.mean, end * series.unit) for end in (value, low, high))
    return [
        Interval(float(v), float(a), float(b), math.nan, level, n) for v, a, b in zip(value, low, high, strict=True)
    ]


def _statistics(
    sums: list[FloatArray], n: int, estimate: FloatArray, statistic: Statistic, method: Method
) -> FloatArray:
    """Return the resampled statistic, or its distance from the estimate in its own standard errors; NaN: undefined."""
    mean = sums[0] / n
    if statistic == "mean":
        value = mean + estimate
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            value = (mean + estimate) / np.sqrt(_variance(sums, n))
    if method == "percentile":
        return value
    with np.errstate(divide="ignore", invalid="ignore"):
        distance: FloatArray = (value - estimate) / _errors(sums, n, value, statistic)
    return np.where(np.isfinite(distance), distance, math.nan)


def _variance(sums: list[FloatArray], n: int) -> FloatArray:
    """Sample variance from the sums of first and second powers; NaN where it is rounding noise of a constant."""
    variance = (sums[1] - sums[0] ** 2 / n) / (n - 1)
    return np.where(variance > 1e-10, variance, math.nan)


def _errors(sums: list[FloatArray], n: int, value: FloatArray, statistic: Statistic) -> FloatArray:
    """Standard errors of means, or of Sharpe ratios with skew and kurtosis, for independent periods."""
    sample = _variance(sums, n)
    if statistic == "mean":
        return np.sqrt(sample / n)
    m = sums[0] / n
    second = sample * (n - 1) / n
    third = sums[2] / n - 3 * m * sums[1] / n + 2 * m**3
    fourth = sums[3] / n - 4 * m * sums[2] / n + 6 * m**2 * sums[1] / n - 3 * m**4
    inside = 1.0 - third / second**1.5 * value + (fourth / second**2 - 1.0) / 4.0 * value**2
    return np.sqrt(np.maximum(inside, 0.0) / (n - 1))


def _quantiles(drawn: FloatArray, level: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the two-sided quantiles of each column and the share of it that is undefined."""
    ends = [(1 - level) / 2, (1 + level) / 2]
    undefined = np.isnan(drawn).mean(axis=0)
    low, high = np.empty(drawn.shape[1]), np.empty(drawn.shape[1])
    whole = undefined == 0
    low[whole], high[whole] = np.quantile(drawn[:, whole], ends, axis=0)
    for at in np.flatnonzero(~whole):
        column = drawn[:, at]
        column = column[~np.isnan(column)]
        low[at], high[at] = np.quantile(column, ends) if len(column) else (math.nan, math.nan)
    return low, high, undefined
