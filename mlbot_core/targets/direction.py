"""Direction: which barrier does the price touch first.

The triple-barrier method of Lopez de Prado (2018), Advances in Financial Machine Learning, chapter 3, and the average
uniqueness of overlapping labels, chapter 4.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@njit(cache=True)
def triple_barrier(
    open_: Array, high: Array, low: Array, close: Array, width: Array, horizon: int
) -> tuple[Array, IntArray, Array]:
    """Label every bar by the barrier that the following bars touch first.

    The position is entered at the close of bar ``i``. The barriers lie at ``close * exp(+-width)`` and are touched by
    the highs and lows of bars ``i + 1 .. i + horizon``; the vertical barrier is the close of bar ``i + horizon``.

    Parameters
    ----------
    open_, high, low, close
        Prices, USD, shape (bars,); NaN where a bar is missing.
    width
        Log distance of the barriers, shape (bars,); a bar without a positive width gets no label.
    horizon
        Bars until the vertical barrier.

    Returns
    -------
    label
        1 upper first, -1 lower first, 0 at the vertical barrier; also 0 where one bar touches both, because the
        order inside a bar is not known. NaN where a bar that is needed is missing or has not closed yet.
    touch
        Row of the bar that decided, -1 where the label is unknown.
    result
        Log return from the entry to that moment: the barrier, or the open of a bar that opened beyond it; the close
        of the bar at the vertical barrier and where both were touched. NaN where unknown.
    """
    size = close.size
    label = np.full(size, np.nan)
    touch = np.full(size, -1, dtype=np.int64)
    result = np.full(size, np.nan)
    for i in range(size):
        if not (np.isfinite(close[i]) and np.isfinite(width[i]) and width[i] > 0.0):
            continue
        upper = close[i] * math.exp(width[i])
        lower = close[i] * math.exp(-width[i])
        for j in range(i + 1, min(i + horizon, size - 1) + 1):
            if not (np.isfinite(open_[j]) and np.isfinite(high[j]) and np.isfinite(low[j]) and np.isfinite(close[j])):
                break
            up = high[j] >= upper
            down = low[j] <= lower
            if up and not down:
                label[i] = 1.0
                result[i] = math.log(open_[j] / close[i]) if open_[j] > upper else width[i]
            elif down and not up:
                label[i] = -1.0
                result[i] = math.log(open_[j] / close[i]) if open_[j] < lower else -width[i]
            elif (up and down) or j == i + horizon:
                label[i] = 0.0
                result[i] = math.log(close[j] / close[i])
            else:
                continue
            touch[i] = j
            break
    return label, touch, result


@njit(cache=True)
def _uniqueness(first: IntArray, last: IntArray, bars: int) -> Array:
    concurrent = np.zeros(bars + 1, dtype=np.int64)
    for i in range(first.size):
        if last[i] > first[i]:
            concurrent[first[i]] += 1
            concurrent[last[i]] -= 1
    for b in range(1, bars + 1):
        concurrent[b] += concurrent[b - 1]
    out = np.full(first.size, np.nan)
    for i in range(first.size):
        if last[i] > first[i]:
            share = 0.0
            for b in range(first[i], last[i]):
                share += 1.0 / concurrent[b]
            out[i] = share / (last[i] - first[i])
    return out


def average_uniqueness(t0: IntArray, t1: IntArray, timeframe_ms: int) -> Array:
    """Return how much of each label's interval it has to itself: the mean over its bars of 1 / labels alive.

    Meant as a sample weight, and to be computed on the training rows of a fold alone: a label's weight depends on all
    the labels that are handed over.

    Parameters
    ----------
    t0, t1
        Start and end of each label interval, UTC ms, shape (labels,), in any order; ``t1`` of -1 is unknown.
    timeframe_ms
        Length of a bar.

    Returns
    -------
    npt.NDArray[np.float64]
        In (0, 1]; 1 where no other label overlaps, NaN where the label is unknown.
    """
    start = np.asarray(t0, dtype=np.int64)
    end = np.asarray(t1, dtype=np.int64)
    known = end > start
    if not known.any():
        return np.full(len(start), np.nan)
    origin = int(start[known].min())
    first = np.where(known, (start - origin) // timeframe_ms, 0)
    last = np.where(known, -((origin - end) // timeframe_ms), 0)
    return np.asarray(_uniqueness(first, last, int(last.max())), dtype=np.float64)


def label_overlap(t0: IntArray, t1: IntArray, timeframe_ms: int) -> float:
    """Return how many labels share a bar: one over the mean of their :func:`average_uniqueness`.

    So many labels in a row say as much as one independent label: an interval counts rows divided by it.

    Parameters
    ----------
    t0, t1, timeframe_ms
        As for :func:`average_uniqueness`.

    Returns
    -------
    float
        At least 1; 1 where no label is known.
    """
    uniqueness = average_uniqueness(t0, t1, timeframe_ms)
    known = uniqueness[np.isfinite(uniqueness)]
    return max(1.0, 1.0 / float(known.mean())) if len(known) else 1.0
