"""Windowed kernels: every output is computed from exactly its own window, in an order that the length fixes.

No running sum is ever carried from bar to bar. Sums, means and squares of a window of ``n`` bars are put together from
those of 1, 2, 4 ... bars (the binary digits of ``n`` say which), as pairwise summation does: about 2 log2(n) steps a
bar instead of ``n``, and smaller rounding errors. Which parts are joined depends on ``n`` alone, so cutting a series at
either end changes no bit of what remains. The joining of means and squares is that of Chan, Golub and LeVeque (1983),
Algorithms for computing the sample variance, The American Statistician 37.

Loops run over blocks of neighbouring outputs, and write one array each, which is what the compiler vectorises.

All take float64 arrays of shape (bars,) and return one; a window of ``n`` bars ends at the current bar. The rule for
missing values is the same everywhere: NaN where the window does not fit, where its last value is not finite, or where
fewer than 80 % of its values are finite; otherwise the finite ones are used.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.features.joining import greatest, prepare, states, sums

Array = npt.NDArray[np.float64]

_BLOCK = 512  # outputs per block: their accumulators stay in the first-level cache
_FLAT = 1e-12  # a dispersion below this share of the level is rounding, not movement


@njit(cache=True)
def _flatten(count: Array, mean: Array, squares: Array) -> None:
    """Make a flat window have exactly no deviation."""
    for i in range(count.size):
        squares[i] = 0.0 if squares[i] <= count[i] * (_FLAT * mean[i]) ** 2 else squares[i]


@njit(cache=True)
def _moments(x: Array, n: int) -> tuple[Array, Array, Array]:
    """Return (count, mean, sum of squared deviations) of every window; a flat window has exactly no deviation."""
    values, mask, count = prepare(x, n)
    state = states(values, np.empty(0), mask, n)
    _flatten(count, state[1], state[2])
    return count, state[1], state[2]


@njit(cache=True)
def _cubes(values: Array, mask: Array, centre: Array, n: int) -> Array:
    """Return the window's sum of (value - centre)^3."""
    out = np.zeros(values.size)
    for begin in range(n - 1, values.size, _BLOCK):
        end = min(begin + _BLOCK, values.size)
        acc = out[begin:end]
        middle = centre[begin:end]
        for j in range(n - 1, -1, -1):
            value = values[begin - j : end - j]
            there = mask[begin - j : end - j]
            for i in range(acc.size):
                d = (value[i] - middle[i]) * there[i]
                acc[i] += d * d * d
    return out


@njit(cache=True)
def total(x: Array, n: int) -> Array:
    """Return the sum of the window's finite values."""
    values, _, count = prepare(x, n)
    out = sums(values, n)
    for i in range(x.size):
        if count[i] == 0:
            out[i] = np.nan
    return out


@njit(cache=True)
def mean(x: Array, n: int) -> Array:
    """Return the arithmetic mean."""
    values, _, count = prepare(x, n)
    out = sums(values, n)
    for i in range(x.size):
        out[i] = out[i] / count[i] if count[i] > 0 else np.nan
    return out


@njit(cache=True, error_model="numpy")
def _deviations(count: Array, squares: Array) -> Array:
    out = np.empty(count.size)
    for i in range(count.size):
        out[i] = np.sqrt(squares[i] / (count[i] - 1.0)) if count[i] >= 2.0 else np.nan
    return out


def std(x: Array, n: int) -> Array:
    """Return the sample standard deviation (ddof = 1); NaN with fewer than two values."""
    count, _, squares = _moments(x, n)
    found: Array = _deviations(count, squares)
    return found


@njit(cache=True, error_model="numpy")
def _scores(x: Array, count: Array, centre: Array, squares: Array) -> Array:
    out = np.empty(x.size)
    for i in range(x.size):
        score = (x[i] - centre[i]) / np.sqrt(squares[i] / (count[i] - 1.0))
        score = score if squares[i] > 0.0 else 0.0
        out[i] = score if count[i] >= 2.0 else np.nan
    return out


def zscore(x: Array, n: int) -> Array:
    """Return the last value's distance from the window's mean in its standard deviations; 0 in a flat window."""
    found: Array = _scores(x, *_moments(x, n))
    return found


@njit(cache=True)
def _skews(x: Array, n: int, count: Array, centre: Array, squares: Array) -> Array:
    values, mask, _ = prepare(x, n)
    cubes = _cubes(values, mask, centre, n)
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        c = count[i]
        if c >= 3:
            if squares[i] > 0:
                variance = squares[i] / c
                out[i] = np.sqrt(c * (c - 1)) / (c - 2) * (cubes[i] / c) / (variance * np.sqrt(variance))
            else:
                out[i] = 0.0
    return out


def skew(x: Array, n: int) -> Array:
    """Return the bias-adjusted Fisher-Pearson skewness (Joanes and Gill, 1998); 0 in a flat window."""
    found: Array = _skews(x, n, *_moments(x, n))
    return found


@njit(cache=True)
def highest(x: Array, n: int) -> Array:
    """Return the greatest finite value."""
    _, mask, count = prepare(x, n)
    return greatest(x, mask, count, n)


@njit(cache=True)
def lowest(x: Array, n: int) -> Array:
    """Return the least finite value."""
    return -highest(-x, n)


@njit(cache=True)
def since_highest(x: Array, n: int) -> Array:
    """Return how many bars ago the greatest value stood (0: it is the last one; the most recent of equals)."""
    _, mask, count = prepare(x, n)
    out = np.full(x.size, np.nan)
    # bars whose value no later one reaches, oldest and greatest first
    waiting = np.empty(x.size, dtype=np.int64)
    first = 0
    end = 0
    for i in range(x.size):
        if mask[i] == 1.0:
            while end > first and x[waiting[end - 1]] <= x[i]:
                end -= 1
            waiting[end] = i
            end += 1
        if first < end and waiting[first] <= i - n:
            first += 1
        if count[i] > 0:
            out[i] = float(i - waiting[first])
    return out


@njit(cache=True)
def since_lowest(x: Array, n: int) -> Array:
    """Return how many bars ago the least value stood (0: it is the last one; the most recent of equals)."""
    return since_highest(-x, n)


@njit(cache=True)
def _compare(value: Array, last: Array, below: Array) -> None:
    """Add 1 where a value is less than the last one, 1/2 where they are equal."""
    for i in range(below.size):
        below[i] += 1.0 if value[i] < last[i] else (0.5 if value[i] == last[i] else 0.0)


@njit(cache=True)
def rank(x: Array, n: int) -> Array:
    """Return the rank of the last value among the window's finite ones: 0 the least, 1 the greatest, ties halved.

    Every value is compared with every window's last: for the windows of features that is no slower than a tree.
    """
    _, mask, count = prepare(x, n)
    out = np.full(x.size, np.nan)
    values = x.copy()
    for i in range(x.size):
        values[i] = x[i] if mask[i] == 1.0 else np.nan  # which compares as neither
    for begin in range(n - 1, x.size, _BLOCK):
        end = min(begin + _BLOCK, x.size)
        below = np.zeros(end - begin)
        for j in range(n - 1, 0, -1):
            _compare(values[begin - j : end - j], values[begin:end], below)
        for i in range(begin, end):
            if count[i] >= 2:
                out[i] = below[i - begin] / (count[i] - 1)
    return out


@njit(cache=True)
def slope(x: Array, n: int) -> Array:
    """Return the slope of the least-squares line through the window's finite values, units of ``x`` per bar."""
    values, mask, count = prepare(x, n)
    out = np.full(x.size, np.nan)
    for i in range(n - 1, x.size):
        if count[i] >= 2:
            first = i - n + 1
            sum_k = 0.0
            sum_x = 0.0
            for j in range(first, i + 1):
                sum_k += (j - first) * mask[j]
                sum_x += values[j]
            mean_k = sum_k / count[i]
            mean_x = sum_x / count[i]
            kk = 0.0
            kx = 0.0
            for j in range(first, i + 1):
                d = ((j - first) - mean_k) * mask[j]
                kk += d * d
                kx += d * (values[j] - mean_x)
            out[i] = kx / kk
    return out


@njit(cache=True)
def _covariation(x: Array, y: Array, n: int) -> tuple[Array, Array, Array]:
    """Return the windows' sums of dx dy, dx dx and dy dy over the pairs that are both finite; NaN where unusable."""
    pair_x = np.full(x.size, np.nan)
    pair_y = np.zeros(x.size)
    for i in range(x.size):
        if np.isfinite(x[i]) and np.isfinite(y[i]):
            pair_x[i] = x[i]
            pair_y[i] = y[i]
    values, mask, count = prepare(pair_x, n)
    state = states(values, pair_y, mask, n)
    _flatten(count, state[1], state[2])
    _flatten(count, state[3], state[4])
    xy = state[5]
    for i in range(x.size):
        xy[i] = xy[i] if count[i] >= 3.0 else np.nan
    return xy, state[2], state[4]


@njit(cache=True)
def _correlations(xy: Array, xx: Array, yy: Array) -> Array:
    out = np.full(xy.size, np.nan)
    for i in range(xy.size):
        if np.isfinite(xy[i]) and xx[i] > 0 and yy[i] > 0:
            out[i] = min(1.0, max(-1.0, xy[i] / (np.sqrt(xx[i]) * np.sqrt(yy[i]))))
    return out


def correlation(x: Array, y: Array, n: int) -> Array:
    """Return Pearson's correlation over the pairs that are both finite; NaN where either is flat."""
    found: Array = _correlations(*_covariation(x, y, n))
    return found


@njit(cache=True)
def _slopes(xy: Array, xx: Array) -> Array:
    out = np.full(xy.size, np.nan)
    for i in range(xy.size):
        if np.isfinite(xy[i]) and xx[i] > 0:
            out[i] = xy[i] / xx[i]
    return out


def beta(y: Array, x: Array, n: int) -> Array:
    """Return the least-squares slope of ``y`` on ``x``; NaN where ``x`` is flat."""
    xy, xx, _ = _covariation(x, y, n)
    found: Array = _slopes(xy, xx)
    return found
