"""Windows computed straight from their values: trends and order statistics.

Every output rests on its own window alone: cutting a series at either end changes no bit of what remains. All take
float64 arrays. Values that are not finite are left out and not counted; the state of a window that does not fit is NaN,
its count included. :func:`valid` is the rule of :mod:`mlbot_core.features.kernels` for when a window may be used.
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
def trend_start(y: Array, n: int) -> Array:
    """Return count, means of time and y, sums of dt dt, dy dy and dt dy; time is 0 at the current bar, -1 before."""
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
