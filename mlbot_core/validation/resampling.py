"""Resampling dependent series: the stationary bootstrap and the length of its blocks.

A resample is made of blocks of consecutive periods, from a random start, of a geometrically distributed length, around
the end of the series to its beginning. The dependence inside a block is kept; the mean length of the blocks is chosen
from the data. Same seed, same resamples.

Sources
-------
D. Politis and J. Romano, "The Stationary Bootstrap", JASA 89, 1994.
D. Politis and H. White, "Automatic Block-Length Selection for the Dependent Bootstrap", Econometric Reviews 23, 2004,
with the correction of A. Patton, D. Politis and H. White, Econometric Reviews 28, 2009.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.validation.significance import StatisticsError

FloatArray = npt.NDArray[np.float64]

# Resamples held at a time.
_CHUNK: Final = 256

# Up to so many columns are summed block by block; more by one matrix product.
_FEW: Final = 16

# The fewest periods from which a block length is chosen.
_LEAST: Final = 11


@dataclass(frozen=True)
class BlockLength:
    """Mean block lengths that minimise the mean squared error of the variance estimate, in periods.

    Parameters
    ----------
    stationary
        For the stationary bootstrap.
    circular
        For the circular block bootstrap.
    """

    stationary: float
    circular: float


def optimal_block_length(values: npt.ArrayLike) -> BlockLength:
    """Return the block lengths for the mean of a series (Politis and White 2004, corrected 2009).

    Parameters
    ----------
    values
        Shape (n,), in time order, at least 11 of them.

    Returns
    -------
    BlockLength
        Not rounded, may be below 1; at most ``ceil(min(3 sqrt(n), n / 3))``. NaN for a constant series.

    Raises
    ------
    StatisticsError
        If there are too few values, or a value is NaN or infinite.

    Examples
    --------
    >>> slow = np.cumsum(np.sin(np.arange(400)) * 0.01)
    >>> optimal_block_length(slow).stationary > optimal_block_length(np.diff(slow)).circular / 10
    True
    """
    series = check_panel(np.asarray(values, dtype=np.float64)[:, None], least=_LEAST)[:, 0]
    stationary, circular = _block_length(series - series.mean())
    return BlockLength(float(stationary), float(circular))


def stationary_indices(n: int, n_resamples: int, block_length: float, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return which periods each resample consists of.

    Parameters
    ----------
    n
        Periods of the series, at least 1.
    n_resamples
        Resamples.
    block_length
        Mean block length in periods, at least 1 (1: every period on its own).
    seed
        Same seed, same indices.

    Returns
    -------
    ndarray
        Shape (n_resamples, n), from 0 to n - 1.

    Examples
    --------
    >>> index = stationary_indices(6, 2, block_length=3.0, seed=1)
    >>> index.shape, bool((index < 6).all())
    ((2, 6), True)
    """
    _check_resampling(n_resamples, block_length)
    if n < 1:
        raise StatisticsError(f"{n} periods to resample; pass a series with at least one")
    index = np.empty((n_resamples, n), dtype=np.int64)
    _fill_indices(np.random.default_rng(seed), _log_stay(block_length), index)
    return index


def check_panel(panel: FloatArray, least: int = 2) -> FloatArray:
    """Return the panel, after checking that it is (periods, series) of finite numbers.

    Raises
    ------
    StatisticsError
        If it is not, or has fewer than ``least`` periods or no series.
    """
    if panel.ndim != 2 or panel.shape[1] < 1 or panel.shape[0] < least:
        raise StatisticsError(f"returns have shape {panel.shape}; pass (periods, series), at least {least} periods")
    bad = ~np.isfinite(panel)
    if bad.any():
        day, series = (int(k) for k in np.argwhere(bad)[0])
        raise StatisticsError(
            f"return {day} of series {series} is {panel[day, series]}; a day without trading is 0, never NaN"
        )
    return panel


def chosen_block_length(panel: FloatArray) -> float:
    """Return the mean over the series of the automatic block length, at least 1; constant series do not count."""
    if len(panel) < _LEAST:
        return 1.0
    centred = panel - panel.mean(axis=0)
    lengths = np.array([_block_length(np.ascontiguousarray(column))[0] for column in centred.T])
    lengths = lengths[np.isfinite(lengths)]
    return max(1.0, float(lengths.mean())) if len(lengths) else 1.0


def _check_resampling(n_resamples: int, block_length: float) -> None:
    if n_resamples < 1:
        raise StatisticsError(f"{n_resamples} resamples; ask for at least one, better thousands")
    if not (math.isfinite(block_length) and block_length >= 1.0):
        raise StatisticsError(f"mean block length {block_length}; it is a number of periods, at least 1")


def _log_stay(block_length: float) -> float:
    """Logarithm of the probability that a block goes on; -inf where each period stands alone."""
    return math.log1p(-1.0 / block_length) if block_length > 1.0 else -math.inf


def resample_counts(
    n: int, n_resamples: int, block_length: float, seed: int, chunk: int = _CHUNK
) -> Iterator[FloatArray]:
    """Yield how often each period occurs in each resample, ``chunk`` resamples at a time, shape (<= chunk, n).

    The resamples are those of :func:`stationary_indices` with the same parameters.
    """
    _check_resampling(n_resamples, block_length)
    generator = np.random.default_rng(seed)
    for done in range(0, n_resamples, chunk):
        counts = np.zeros((min(chunk, n_resamples - done), n))
        _fill_counts(generator, _log_stay(block_length), counts)
        yield counts


def resampled_sums(
    values: FloatArray, n_resamples: int, block_length: float, seed: int, chunk: int = _CHUNK
) -> Iterator[FloatArray]:
    """Yield the sums over each resample, ``chunk`` resamples at a time, shape (<= chunk, columns).

    Parameters
    ----------
    values
        Shape (n, columns), of magnitude one: sums of few columns come from running sums and share their rounding.
    n_resamples, block_length, seed
        The resamples are those of :func:`stationary_indices` with the same parameters.
    """
    n, columns = values.shape
    if columns > _FEW:
        for counts in resample_counts(n, n_resamples, block_length, seed, chunk):
            yield counts @ values
        return
    _check_resampling(n_resamples, block_length)
    generator = np.random.default_rng(seed)
    running = np.zeros((n + 1, columns))
    np.cumsum(values, axis=0, out=running[1:])
    for done in range(0, n_resamples, chunk):
        sums = np.zeros((min(chunk, n_resamples - done), columns))
        _fill_sums(generator, _log_stay(block_length), running, sums)
        yield sums


@njit(cache=True)
def _block(rng: Any, log_stay: float, n: int, room: int) -> tuple[int, int]:
    """Draw a block: where it starts, and how long it is, cut at the room that is left.

    One uniform number serves both: the whole part of ``n`` times it is uniform over the periods, and the fraction,
    independent of the whole part, is uniform again (with the 53 - log2(n) bits that are left).
    """
    place = rng.random() * n
    start = int(place)
    if log_stay == -math.inf:
        return start, 1
    length = 1.0 + math.floor(math.log(1.0 - (place - start)) / log_stay)
    return start, room if length > room else int(length)


@njit(cache=True)
def _fill_indices(rng: Any, log_stay: float, index: Any) -> None:
    n = index.shape[1]
    for r in range(index.shape[0]):
        k = 0
        while k < n:
            start, length = _block(rng, log_stay, n, n - k)
            for j in range(length):
                index[r, k + j] = (start + j) % n
            k += length


@njit(cache=True)
def _fill_counts(rng: Any, log_stay: float, counts: Any) -> None:
    n = counts.shape[1]
    for r in range(counts.shape[0]):
        k = 0
        while k < n:
            start, length = _block(rng, log_stay, n, n - k)
            for j in range(length):
                at = start + j
                counts[r, at if at < n else at - n] += 1.0
            k += length


@njit(cache=True)
def _fill_sums(rng: Any, log_stay: float, running: Any, sums: Any) -> None:
    """``running[t]`` holds the sums over the periods before ``t``: a block is one difference, however long."""
    n, columns = running.shape[0] - 1, running.shape[1]
    for r in range(sums.shape[0]):
        k = 0
        while k < n:
            start, length = _block(rng, log_stay, n, n - k)
            end = start + length
            if end <= n:
                for c in range(columns):
                    sums[r, c] += running[end, c] - running[start, c]
            else:
                for c in range(columns):
                    sums[r, c] += running[n, c] - running[start, c] + running[end - n, c]
            k += length


@njit(cache=True)
def _block_length(centred: Any) -> tuple[float, float]:
    """Politis and White's rule with the tuning constants of Patton's program, as in the package arch."""
    n = len(centred)
    spread = 0.0
    for x in centred:
        spread += x * x
    if spread == 0.0:
        return np.nan, np.nan
    longest = math.ceil(min(3.0 * math.sqrt(n), n / 3.0))
    run = max(5, int(math.log10(n)))
    last = min(math.ceil(math.sqrt(n)) + run, n - 2)
    band = 2.0 * math.sqrt(math.log10(n) / n)
    covariance = np.zeros(last + 1)
    small, found = 0, -1
    for lag in range(last + 1):
        cross = 0.0
        for t in range(lag, n):
            cross += centred[t] * centred[t - lag]
        covariance[lag] = cross / n
        # The first lag from which `run` autocorrelations in a row are insignificant.
        if found < 0 and small == run:
            found = lag - run
        head, tail = 0.0, 0.0
        for t in range(n - lag - 1):
            tail += centred[t] * centred[t]
            head += centred[t + lag + 1] * centred[t + lag + 1]
        norm = math.sqrt(head * tail)
        small = small + 1 if abs(cross) < band * norm else 0
    m = min(2 * max(found, 1), last) if found >= 0 else last
    g, long_run = 0.0, covariance[0]
    for lag in range(1, m + 1):
        weight = 1.0 if 2 * lag <= m else 2.0 * (1.0 - lag / m)
        g += 2.0 * weight * lag * covariance[lag]
        long_run += 2.0 * weight * covariance[lag]
    if long_run == 0.0:
        return longest, longest
    cube = n * 2.0 * g**2 / long_run**2
    return min((cube / 2.0) ** (1.0 / 3.0), longest), min((cube * 0.75) ** (1.0 / 3.0), longest)
