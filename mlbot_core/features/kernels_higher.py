"""Bars of a longer timeframe, rebuilt from the panel's own and used only once they have closed.

A higher bar is ``m`` consecutive bars of the grid, aligned so that one begins on Monday 1970-01-05 00:00 UTC: lengths
that divide a day or a week lie on days and ISO weeks. It closes with the last of its bars, and that bar's row is the
first that may use it: the row is decided at that close plus the settle delay, the lag that every bar has. The rows
after it go on using it until the next one has closed. It is missing where its last bar is, or where fewer than three
quarters of its bars are there.

At a row, the higher bars before the last closed one stand exactly ``m`` rows apart, so windows of higher bars are read
in steps of ``m``. A value that looks at ``k`` higher bars rests on the row itself and at most ``(k + 1) m - 2`` rows
before it (:func:`reach`); with fewer rows it is NaN, whatever the row's place in its higher bar.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.timeframe import DAY_MS

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

_MONDAY_MS = 4 * DAY_MS

LAST, FIRST, MAX, MIN, SUM = 0, 1, 2, 3, 4


def reach(m: int, bars: int = 1) -> int:
    """Return how many rows before its own a value over so many higher bars of ``m`` rows may rest on."""
    return (bars + 1) * m - 2


@njit(cache=True)
def ends(ts: Array, m: int) -> Rows:
    """Return for each row the row at which the last closed higher bar ended; -1 where it may not lie within the data.

    ``ts``: open times of a regular grid, UTC ms.
    """
    out = np.full(ts.size, -1, dtype=np.int64)
    if ts.size < 2:
        return out
    step = np.int64(ts[1]) - np.int64(ts[0])
    for i in range(2 * m - 2, ts.size):
        place = ((np.int64(ts[i]) - _MONDAY_MS) // step) % m
        out[i] = i if place == m - 1 else i - place - 1
    return out


@njit(cache=True)
def bar(x: Array, end: Rows, m: int, how: int) -> Array:
    """Return a column of the last closed higher bar at every row: ``how`` is LAST, FIRST, MAX, MIN or SUM."""
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        e = end[i]
        if e < 0:
            continue
        if i > 0 and end[i - 1] == e:
            out[i] = out[i - 1]
            continue
        if not np.isfinite(x[e]):
            continue
        finite = 0
        first = np.nan
        high = x[e]
        low = x[e]
        total = 0.0
        for j in range(e - m + 1, e + 1):
            if np.isfinite(x[j]):
                if finite == 0:
                    first = x[j]
                finite += 1
                high = max(high, x[j])
                low = min(low, x[j])
                total += x[j]
        if 4 * finite >= 3 * m:
            if how == LAST:
                out[i] = x[e]
            elif how == FIRST:
                out[i] = first
            elif how == MAX:
                out[i] = high
            elif how == MIN:
                out[i] = low
            else:
                out[i] = total
    return out


@njit(cache=True)
def _whole(x: Array, i: int, m: int, k: int) -> bool:
    """Return whether row ``i`` has ``k`` higher bars within the data, the last there and at least 80 % of all."""
    if i < (k + 1) * m - 2 or not np.isfinite(x[i]):
        return False
    finite = 0
    for j in range(k):
        if np.isfinite(x[i - j * m]):
            finite += 1
    return 10 * finite >= 8 * k


@njit(cache=True)
def change(x: Array, m: int, k: int) -> Array:
    """Return a higher bar's value less that of ``k`` higher bars before."""
    out = np.full(x.size, np.nan)
    for i in range((k + 2) * m - 2, x.size):
        if np.isfinite(x[i]) and np.isfinite(x[i - k * m]):
            out[i] = x[i] - x[i - k * m]
    return out


@njit(cache=True)
def mean(x: Array, m: int, k: int) -> Array:
    """Return the mean over the last ``k`` higher bars."""
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        if _whole(x, i, m, k):
            total = 0.0
            count = 0
            for j in range(k - 1, -1, -1):
                if np.isfinite(x[i - j * m]):
                    total += x[i - j * m]
                    count += 1
            out[i] = total / count
    return out


@njit(cache=True)
def extreme(x: Array, m: int, k: int, how: int) -> Array:
    """Return the greatest (``how`` MAX) or least (MIN) over the last ``k`` higher bars."""
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        if _whole(x, i, m, k):
            best = x[i]
            for j in range(1, k):
                value = x[i - j * m]
                if np.isfinite(value) and ((how == MAX and value > best) or (how == MIN and value < best)):
                    best = value
            out[i] = best
    return out


@njit(cache=True)
def deviation(x: Array, m: int, k: int) -> Array:
    """Return the sample standard deviation of the changes among the last ``k`` higher bars (``k - 1`` changes)."""
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        if _whole(x, i, m, k):
            total = 0.0
            count = 0
            for j in range(k - 2, -1, -1):
                d = x[i - j * m] - x[i - (j + 1) * m]
                if np.isfinite(d):
                    total += d
                    count += 1
            if count >= 2:
                centre = total / count
                squares = 0.0
                for j in range(k - 2, -1, -1):
                    d = x[i - j * m] - x[i - (j + 1) * m]
                    if np.isfinite(d):
                        squares += (d - centre) * (d - centre)
                out[i] = np.sqrt(squares / (count - 1))
    return out


@njit(cache=True)
def balance(x: Array, m: int, k: int) -> Array:
    """Return rises less falls over rises plus falls among the last ``k`` higher bars, -1 to 1; 0 where none moved."""
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        if _whole(x, i, m, k):
            net = 0.0
            path = 0.0
            for j in range(k - 2, -1, -1):
                d = x[i - j * m] - x[i - (j + 1) * m]
                if np.isfinite(d):
                    net += d
                    path += abs(d)
            out[i] = net / path if path > 0.0 else 0.0
    return out
