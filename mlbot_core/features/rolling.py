"""Windows that are joined from shorter ones: what a window of 60 bars needs is two windows of 30.

A *state* holds the sufficient statistics of one window a bar, shape (rows, bars); the rows are named in each function.
``*_start`` computes the state of a short window straight from its values, ``*_join`` that of a longer one from the
state of its recent part (ending at the current bar) and of its older part (ending ``lag`` bars before). Means and
squares are joined by the pairwise formulas of Chan, Golub and LeVeque (1983), Algorithms for computing the sample
variance, The American Statistician 37: no cancellation, and no running sum carried from bar to bar. So every output
rests on its own window alone, added up in an order that is fixed by the window's length: cutting a series at either
end changes no bit of what remains.

All take float64 arrays. Values that are not finite are left out and not counted; the state of a window that does not
fit is NaN, its count included. :func:`valid` is the rule of :mod:`mlbot_core.features.kernels` for when a window may
be used.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]

CLOSE_TO_ZERO = 2e-5
"""Qlib calls a standard deviation up to this (in the series' own unit) zero, and what is divided by it missing."""


@njit(cache=True, error_model="numpy")
def valid(count: float, last: float, n: int) -> bool:
    """Return whether a window of ``n`` bars may be used: its last value is finite and 80 % of them are."""
    return last - last == 0.0 and 10.0 * count >= 8.0 * n


@njit(cache=True, error_model="numpy")
def _blank(rows: int, bars: int, short: int) -> Array:
    """Return room for a state, NaN in its first ``short`` bars, whose window does not fit."""
    out = np.empty((rows, bars))
    out[:, :short] = np.nan
    return out


@njit(cache=True, error_model="numpy")
def _known(x: Array, y: Array, n: int) -> Array:
    """Return how many of the window's pairs are finite; an integer count, hence exact; 0 where it does not fit."""
    out = np.zeros(x.size)
    known = 0
    for i in range(x.size):
        known += math.isfinite(x[i] + y[i])
        if i >= n:
            known -= math.isfinite(x[i - n] + y[i - n])
        if i >= n - 1:
            out[i] = known
    return out


@njit(cache=True, error_model="numpy")
def moments_start(x: Array, n: int) -> Array:
    """Return count, mean and sum of squared deviations."""
    out = _blank(3, x.size, n - 1)
    count = _known(x, x, n)
    for i in range(n - 1, x.size):
        if count[i] == 0.0:
            out[:, i] = 0.0
            continue
        total = 0.0
        squares = 0.0
        if count[i] == n:
            for j in range(i - n + 1, i + 1):
                total += x[j]
            mean = total / n
            for j in range(i - n + 1, i + 1):
                squares += (x[j] - mean) * (x[j] - mean)
        else:
            for j in range(i - n + 1, i + 1):
                if math.isfinite(x[j]):
                    total += x[j]
            mean = total / count[i]
            for j in range(i - n + 1, i + 1):
                if math.isfinite(x[j]):
                    squares += (x[j] - mean) * (x[j] - mean)
        out[0, i] = count[i]
        out[1, i] = mean
        out[2, i] = squares
    return out


@njit(cache=True, error_model="numpy")
def moments_join(older: Array, recent: Array, lag: int) -> Array:
    """Join the states of :func:`moments_start`."""
    out = _blank(recent.shape[0], recent.shape[1], lag)
    for i in range(lag, recent.shape[1]):
        before = older[0, i - lag]
        count = before + recent[0, i]
        if count == 0.0:
            out[:, i] = 0.0
        else:
            share = recent[0, i] / count
            step = recent[1, i] - older[1, i - lag]
            out[0, i] = count
            out[1, i] = older[1, i - lag] + step * share
            out[2, i] = older[2, i - lag] + recent[2, i] + step * step * before * share
    return out


@njit(cache=True, error_model="numpy")
def pairs_start(x: Array, y: Array, n: int) -> Array:
    """Return count, means of x and y, sums of dx dx, dy dy and dx dy, over the pairs that are both finite."""
    out = _blank(6, x.size, n - 1)
    count = _known(x, y, n)
    for i in range(n - 1, x.size):
        if count[i] == 0.0:
            out[:, i] = 0.0
            continue
        whole = count[i] == n
        total_x = 0.0
        total_y = 0.0
        for j in range(i - n + 1, i + 1):
            if whole or math.isfinite(x[j] + y[j]):
                total_x += x[j]
                total_y += y[j]
        mean_x = total_x / count[i]
        mean_y = total_y / count[i]
        xx = 0.0
        yy = 0.0
        xy = 0.0
        for j in range(i - n + 1, i + 1):
            if whole or math.isfinite(x[j] + y[j]):
                dx = x[j] - mean_x
                dy = y[j] - mean_y
                xx += dx * dx
                yy += dy * dy
                xy += dx * dy
        out[0, i] = count[i]
        out[1, i] = mean_x
        out[2, i] = mean_y
        out[3, i] = xx
        out[4, i] = yy
        out[5, i] = xy
    return out


@njit(cache=True, error_model="numpy")
def trend_start(y: Array, n: int) -> Array:
    """Return the state of :func:`pairs_start` of ``y`` against time: x is 0 at the current bar, -1 before."""
    out = _blank(6, y.size, n - 1)
    count = _known(y, y, n)
    for i in range(n - 1, y.size):
        if count[i] == 0.0:
            out[:, i] = 0.0
            continue
        whole = count[i] == n
        total_x = 0.0
        total_y = 0.0
        for j in range(i - n + 1, i + 1):
            if whole or math.isfinite(y[j]):
                total_x += j - i
                total_y += y[j]
        mean_x = total_x / count[i]
        mean_y = total_y / count[i]
        xx = 0.0
        yy = 0.0
        xy = 0.0
        for j in range(i - n + 1, i + 1):
            if whole or math.isfinite(y[j]):
                dx = (j - i) - mean_x
                dy = y[j] - mean_y
                xx += dx * dx
                yy += dy * dy
                xy += dx * dy
        out[0, i] = count[i]
        out[1, i] = mean_x
        out[2, i] = mean_y
        out[3, i] = xx
        out[4, i] = yy
        out[5, i] = xy
    return out


@njit(cache=True, error_model="numpy")
def _join_pairs(older: Array, recent: Array, lag: int, shift: float) -> Array:
    out = _blank(recent.shape[0], recent.shape[1], lag)
    for i in range(lag, recent.shape[1]):
        k = i - lag
        before = older[0, k]
        count = before + recent[0, i]
        if count == 0.0:
            out[:, i] = 0.0
        else:
            share = recent[0, i] / count
            weight = before * share
            old_x = older[1, k] - shift
            step_x = recent[1, i] - old_x
            step_y = recent[2, i] - older[2, k]
            out[0, i] = count
            out[1, i] = old_x + step_x * share
            out[2, i] = older[2, k] + step_y * share
            out[3, i] = older[3, k] + recent[3, i] + step_x * step_x * weight
            out[4, i] = older[4, k] + recent[4, i] + step_y * step_y * weight
            out[5, i] = older[5, k] + recent[5, i] + step_x * step_y * weight
    return out


@njit(cache=True, error_model="numpy")
def pairs_join(older: Array, recent: Array, lag: int) -> Array:
    """Join the states of :func:`pairs_start`."""
    return _join_pairs(older, recent, lag, 0.0)


@njit(cache=True, error_model="numpy")
def trend_join(older: Array, recent: Array, lag: int) -> Array:
    """Join the states of :func:`trend_start`: the older part's times lie ``lag`` further back."""
    return _join_pairs(older, recent, lag, float(lag))


@njit(cache=True, error_model="numpy")
def moves_start(change: Array, n: int) -> Array:
    """Return count, sum of rises, sum of falls (both positive), number of rises, number of falls."""
    out = _blank(5, change.size, n - 1)
    count = _known(change, change, n)
    for i in range(n - 1, change.size):
        rise = 0.0
        fall = 0.0
        rises = 0
        falls = 0
        for j in range(i - n + 1, i + 1):  # a comparison with NaN is false
            if change[j] > 0.0 and change[j] < np.inf:
                rise += change[j]
                rises += 1
            if change[j] < 0.0 and change[j] > -np.inf:
                fall -= change[j]
                falls += 1
        out[0, i] = count[i]
        out[1, i] = rise
        out[2, i] = fall
        out[3, i] = rises
        out[4, i] = falls
    return out


@njit(cache=True, error_model="numpy")
def moves_join(older: Array, recent: Array, lag: int) -> Array:
    """Join the states of :func:`moves_start`."""
    out = _blank(recent.shape[0], recent.shape[1], lag)
    for row in range(recent.shape[0]):
        for i in range(lag, recent.shape[1]):
            out[row, i] = older[row, i - lag] + recent[row, i]
    return out


@njit(cache=True, error_model="numpy")
def extremes_start(high: Array, low: Array, n: int) -> Array:
    """Return count, maximum and its age of ``high``, then count, minimum and its age of ``low``.

    The age is in bars, 0 for the current one; of equal values the oldest counts.
    """
    out = _blank(6, high.size, n - 1)
    for i in range(n - 1, high.size):
        highs, best, best_age = 0, -np.inf, 0
        lows, least, least_age = 0, np.inf, 0
        for j in range(i - n + 1, i + 1):
            if math.isfinite(high[j]):
                highs += 1
                if high[j] > best:
                    best, best_age = high[j], i - j
            if math.isfinite(low[j]):
                lows += 1
                if low[j] < least:
                    least, least_age = low[j], i - j
        out[0, i] = highs
        out[1, i] = best
        out[2, i] = best_age
        out[3, i] = lows
        out[4, i] = least
        out[5, i] = least_age
    return out


@njit(cache=True, error_model="numpy")
def extremes_join(older: Array, recent: Array, lag: int) -> Array:
    """Join the states of :func:`extremes_start`."""
    out = _blank(recent.shape[0], recent.shape[1], lag)
    for i in range(lag, recent.shape[1]):
        k = i - lag
        out[0, i] = older[0, k] + recent[0, i]
        newer = recent[1, i] > older[1, k]
        out[1, i] = recent[1, i] if newer else older[1, k]
        out[2, i] = recent[2, i] if newer else older[2, k] + lag
        out[3, i] = older[3, k] + recent[3, i]
        newer = recent[4, i] < older[4, k]
        out[4, i] = recent[4, i] if newer else older[4, k]
        out[5, i] = recent[5, i] if newer else older[5, k] + lag
    return out


@njit(cache=True, error_model="numpy")
def _place(ordered: Array, size: int, value: float) -> int:
    """Return how many of the first ``size`` values are less than ``value``; counting all beats a search up to 60."""
    less = 0
    for j in range(size):
        less += ordered[j] < value
    return less


@njit(cache=True, error_model="numpy")
def _quantile(ordered: Array, size: int, share: float) -> float:
    """Return the linearly interpolated quantile of the first ``size`` values."""
    exact = share * (size - 1)
    at = int(exact)
    if at + 1 >= size:
        return ordered[size - 1]
    return ordered[at] + (ordered[at + 1] - ordered[at]) * (exact - at)


@njit(cache=True, error_model="numpy")
def order_statistics(x: Array, n: int) -> Array:
    """Return count, rank of the last value as a share of the count (ties averaged), 80 % and 20 % quantile.

    The window is kept sorted as it slides; what is read from it are its own values, whatever slid by before.
    """
    out = _blank(4, x.size, n - 1)
    ordered = np.empty(n + 1)
    size = 0
    for i in range(x.size):
        leaves = i >= n and math.isfinite(x[i - n])
        enters = math.isfinite(x[i])
        gap = _place(ordered, size, x[i - n]) if leaves else size
        at = _place(ordered, size, x[i]) if enters else size
        if leaves and (not enters or at > gap):  # values between move down into the gap
            last = at - 1 if enters else size - 1
            for j in range(gap, last):
                ordered[j] = ordered[j + 1]
            at = last
        else:  # values between move up into the gap, which without a leaving value is the free place at the end
            for j in range(gap, at, -1):
                ordered[j] = ordered[j - 1]
        size += enters
        size -= leaves
        if enters:
            ordered[at] = x[i]
        if i >= n - 1:
            out[:, i] = 0.0
            out[0, i] = size
            if enters:
                equal = 1
                while at + equal < size and ordered[at + equal] == x[i]:
                    equal += 1
                out[1, i] = (at + 0.5 * (equal + 1)) / size
                out[2, i] = _quantile(ordered, size, 0.8)
                out[3, i] = _quantile(ordered, size, 0.2)
    return out
