"""Windowed kernels about totals and events: rebuilt cumulation, runs, concentration, what happened since the largest.

The rules are those of :mod:`mlbot_core.features.kernels`: every output is computed from exactly its own window of
``n`` bars, oldest first; NaN where the window does not fit, its last value is not finite, or fewer than 80 % of its
values are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]


@njit(cache=True)
def _usable(x: Array, n: int) -> npt.NDArray[np.bool_]:
    """Return where the window ends in a finite value and at least 80 % of it are."""
    out = np.zeros(x.size, dtype=np.bool_)
    finite = 0
    for i in range(x.size):
        if np.isfinite(x[i]):
            finite += 1
        if i >= n and np.isfinite(x[i - n]):
            finite -= 1
        out[i] = i >= n - 1 and np.isfinite(x[i]) and 10 * finite >= 8 * n
    return out


@njit(cache=True)
def cumulative_place(x: Array, n: int) -> Array:
    """Return where the cumulative sum of the window stands between its own least and greatest, 0 to 1.

    The sum starts from 0 at the head of the window, so it never rests on where somebody began to count; NaN where
    it never moved.
    """
    out = np.full(x.size, np.nan)
    usable = _usable(x, n)
    for i in range(x.size):
        if usable[i]:
            level = 0.0
            low = 0.0
            high = 0.0
            for j in range(i - n + 1, i + 1):
                if np.isfinite(x[j]):
                    level += x[j]
                    low = min(low, level)
                    high = max(high, level)
            if high > low:
                out[i] = (level - low) / (high - low)
    return out


@njit(cache=True)
def run_share(x: Array, n: int) -> Array:
    """Return the length of the run of one sign that ends now, at most ``n``, over ``n`` and with that sign.

    A zero or a missing value ends a run; the value of a bar that is zero itself is 0.
    """
    out = np.full(x.size, np.nan)
    for i in range(n - 1, x.size):
        if np.isfinite(x[i]):
            sign = np.sign(x[i])
            length = 0
            if sign != 0.0:
                while length < n and np.sign(x[i - length]) == sign:
                    length += 1
            out[i] = sign * length / n
    return out


@njit(cache=True)
def concentration(x: Array, n: int) -> Array:
    """Return the Herfindahl index of the window: sum of squares over the square of the sum, 1/n (even) to 1 (one bar).

    For values that are not negative; NaN where all are zero.
    """
    out = np.full(x.size, np.nan)
    usable = _usable(x, n)
    for i in range(x.size):
        if usable[i]:
            total = 0.0
            for j in range(i - n + 1, i + 1):
                if np.isfinite(x[j]):
                    total += x[j]
            if total > 0.0:
                acc = 0.0
                for j in range(i - n + 1, i + 1):
                    if np.isfinite(x[j]):
                        share = x[j] / total
                        acc += share * share
                out[i] = acc
    return out


@njit(cache=True)
def change_since_highest(y: Array, x: Array, n: int) -> Array:
    """Return ``y`` less what it was at the bar of the window's greatest ``x`` (the most recent of equals)."""
    out = np.full(x.size, np.nan)
    usable = _usable(x, n)
    for i in range(x.size):
        if usable[i]:
            at = i
            for j in range(i - 1, i - n, -1):
                if np.isfinite(x[j]) and x[j] > x[at]:
                    at = j
            if np.isfinite(y[i]) and np.isfinite(y[at]):
                out[i] = y[i] - y[at]
    return out


@njit(cache=True)
def distinct_total(x: Array, identity: Array, n: int) -> Array:
    """Return the sum of ``x`` over the window's distinct observations: one that is carried over many bars counts once.

    ``identity`` is the same number on all bars that carry one observation (its close time, for instance).
    """
    out = np.full(x.size, np.nan)
    usable = _usable(x, n)
    for i in range(x.size):
        if usable[i]:
            total = 0.0
            last = np.nan
            for j in range(i - n + 1, i + 1):
                if np.isfinite(x[j]) and identity[j] != last:
                    total += x[j]
                    last = identity[j]
            out[i] = total
    return out


@njit(cache=True)
def distinct_run(x: Array, identity: Array, n: int) -> Array:
    """Return how many distinct observations in a row have the sign of the last one, within the window, times it."""
    out = np.full(x.size, np.nan)
    usable = _usable(x, n)
    for i in range(x.size):
        if usable[i]:
            sign = np.sign(x[i])
            length = 0.0
            last = np.nan
            for j in range(i, i - n, -1):
                if np.isfinite(x[j]) and identity[j] != last:
                    if np.sign(x[j]) != sign:
                        break
                    length += 1.0
                    last = identity[j]
            out[i] = sign * length
    return out
