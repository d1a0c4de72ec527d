"""Windowed kernels: every output is computed from exactly its own window, oldest value first, by an explicit loop.

No running sum is ever carried from bar to bar, so cutting a series at either end changes no bit of what remains. The
moment kernels run their loops over blocks of outputs (the inner loop steps through neighbouring outputs, which the
compiler vectorises): each output still adds its own window in its own order.

All take float64 arrays of shape (bars,) and return one; a window of ``n`` bars ends at the current bar. The rule for
missing values is the same everywhere: NaN where the window does not fit, where its last value is not finite, or where
fewer than 80 % of its values are finite; otherwise the finite ones are used.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]

_BLOCK = 512  # outputs per block: their accumulators stay in the first-level cache
_FLAT = 1e-12  # a dispersion below this share of the level is rounding, not movement


def ema_window(span: int) -> int:
    """Return the bars in the window of a restarted EMA: the current one and ten spans before it."""
    return 10 * span + 1


def wilder_window(period: int) -> int:
    """Return the bars in the window of a restarted Wilder average (alpha 1/period is a span of 2 period - 1)."""
    return 10 * (2 * period - 1) + 1


@njit(cache=True)
def _prepare(x: Array, n: int) -> tuple[Array, Array, Array]:
    """Return values with gaps as zero, a 1/0 mask, and the window's finite count (0 where the window is unusable)."""
    values = np.zeros(x.size)
    mask = np.zeros(x.size)
    count = np.zeros(x.size)
    finite = 0  # an integer, hence exact: the only thing that is counted on
    for i in range(x.size):
        if np.isfinite(x[i]):
            values[i] = x[i]
            mask[i] = 1.0
            finite += 1
        if i >= n and mask[i - n] == 1.0:
            finite -= 1
        if i >= n - 1 and mask[i] == 1.0 and 10 * finite >= 8 * n:
            count[i] = finite
    return values, mask, count


@njit(cache=True)
def _sums(values: Array, n: int) -> Array:
    out = np.zeros(values.size)
    for begin in range(n - 1, values.size, _BLOCK):
        end = min(begin + _BLOCK, values.size)
        acc = out[begin:end]  # slices, indexed from zero: only so does the compiler vectorise the inner loop
        for j in range(n - 1, -1, -1):
            value = values[begin - j : end - j]
            for i in range(acc.size):
                acc[i] += value[i]
    return out


@njit(cache=True)
def _central(values: Array, mask: Array, centre: Array, n: int, power: int) -> Array:
    """Return the window's sum of (value - centre)^power, power 2 or 3."""
    out = np.zeros(values.size)
    for begin in range(n - 1, values.size, _BLOCK):
        end = min(begin + _BLOCK, values.size)
        acc = out[begin:end]
        middle = centre[begin:end]
        for j in range(n - 1, -1, -1):
            value = values[begin - j : end - j]
            there = mask[begin - j : end - j]
            if power == 2:
                for i in range(acc.size):
                    d = (value[i] - middle[i]) * there[i]
                    acc[i] += d * d
            else:
                for i in range(acc.size):
                    d = (value[i] - middle[i]) * there[i]
                    acc[i] += d * d * d
    return out


@njit(cache=True)
def _moments(x: Array, n: int) -> tuple[Array, Array, Array]:
    """Return (count, mean, sum of squared deviations) of every window; a flat window has exactly no deviation."""
    values, mask, count = _prepare(x, n)
    centre = _sums(values, n)
    for i in range(x.size):
        if count[i] > 0:
            centre[i] = centre[i] / count[i]
    squares = _central(values, mask, centre, n, 2)
    for i in range(x.size):
        if squares[i] <= count[i] * (_FLAT * centre[i]) ** 2:
            squares[i] = 0.0
    return count, centre, squares


@njit(cache=True)
def total(x: Array, n: int) -> Array:
    """Return the sum of the window's finite values."""
    values, _, count = _prepare(x, n)
    out = _sums(values, n)
    for i in range(x.size):
        if count[i] == 0:
            out[i] = np.nan
    return out


@njit(cache=True)
def mean(x: Array, n: int) -> Array:
    """Return the arithmetic mean."""
    values, _, count = _prepare(x, n)
    out = _sums(values, n)
    for i in range(x.size):
        out[i] = out[i] / count[i] if count[i] > 0 else np.nan
    return out


@njit(cache=True)
def std(x: Array, n: int) -> Array:
    """Return the sample standard deviation (ddof = 1); NaN with fewer than two values."""
    count, _, squares = _moments(x, n)
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        if count[i] >= 2:
            out[i] = np.sqrt(squares[i] / (count[i] - 1))
    return out


@njit(cache=True)
def zscore(x: Array, n: int) -> Array:
    """Return the last value's distance from the window's mean in its standard deviations; 0 in a flat window."""
    count, centre, squares = _moments(x, n)
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        if count[i] >= 2:
            out[i] = (x[i] - centre[i]) / np.sqrt(squares[i] / (count[i] - 1)) if squares[i] > 0 else 0.0
    return out


@njit(cache=True)
def skew(x: Array, n: int) -> Array:
    """Return the bias-adjusted Fisher-Pearson skewness (Joanes and Gill, 1998); 0 in a flat window."""
    count, centre, squares = _moments(x, n)
    values, mask, _ = _prepare(x, n)
    cubes = _central(values, mask, centre, n, 3)
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


@njit(cache=True)
def highest(x: Array, n: int) -> Array:
    """Return the greatest finite value."""
    _, mask, count = _prepare(x, n)
    out = np.full(x.size, np.nan)
    for i in range(n - 1, x.size):
        if count[i] > 0:
            best = x[i]
            for j in range(i - n + 1, i):
                if mask[j] == 1.0 and x[j] > best:
                    best = x[j]
            out[i] = best
    return out


@njit(cache=True)
def lowest(x: Array, n: int) -> Array:
    """Return the least finite value."""
    return -highest(-x, n)


@njit(cache=True)
def since_highest(x: Array, n: int) -> Array:
    """Return how many bars ago the greatest value stood (0: it is the last one; the most recent of equals)."""
    _, mask, count = _prepare(x, n)
    out = np.full(x.size, np.nan)
    for i in range(n - 1, x.size):
        if count[i] > 0:
            at = i
            for j in range(i - 1, i - n, -1):
                if mask[j] == 1.0 and x[j] > x[at]:
                    at = j
            out[i] = float(i - at)
    return out


@njit(cache=True)
def since_lowest(x: Array, n: int) -> Array:
    """Return how many bars ago the least value stood (0: it is the last one; the most recent of equals)."""
    return since_highest(-x, n)


@njit(cache=True)
def rank(x: Array, n: int) -> Array:
    """Return the rank of the last value among the window's finite ones: 0 the least, 1 the greatest, ties halved."""
    _, mask, count = _prepare(x, n)
    out = np.full(x.size, np.nan)
    for i in range(n - 1, x.size):
        if count[i] >= 2:
            below = 0.0
            for j in range(i - n + 1, i):
                if mask[j] == 1.0:
                    if x[j] < x[i]:
                        below += 1.0
                    elif x[j] == x[i]:
                        below += 0.5
            out[i] = below / (count[i] - 1)
    return out


@njit(cache=True)
def slope(x: Array, n: int) -> Array:
    """Return the slope of the least-squares line through the window's finite values, units of ``x`` per bar."""
    values, mask, count = _prepare(x, n)
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
    pair_y = np.full(x.size, np.nan)
    for i in range(x.size):
        if np.isfinite(x[i]) and np.isfinite(y[i]):
            pair_x[i] = x[i]
            pair_y[i] = y[i]
    count, mean_x, xx = _moments(pair_x, n)
    _, mean_y, yy = _moments(pair_y, n)
    xy = np.full(x.size, np.nan)
    for i in range(n - 1, x.size):
        if count[i] >= 3:
            acc = 0.0
            for j in range(i - n + 1, i + 1):
                if np.isfinite(pair_x[j]):
                    acc += (pair_x[j] - mean_x[i]) * (pair_y[j] - mean_y[i])
            xy[i] = acc
    return xy, xx, yy


@njit(cache=True)
def correlation(x: Array, y: Array, n: int) -> Array:
    """Return Pearson's correlation over the pairs that are both finite; NaN where either is flat."""
    xy, xx, yy = _covariation(x, y, n)
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        if np.isfinite(xy[i]) and xx[i] > 0 and yy[i] > 0:
            out[i] = min(1.0, max(-1.0, xy[i] / (np.sqrt(xx[i]) * np.sqrt(yy[i]))))
    return out


@njit(cache=True)
def beta(y: Array, x: Array, n: int) -> Array:
    """Return the least-squares slope of ``y`` on ``x``; NaN where ``x`` is flat."""
    xy, xx, _ = _covariation(x, y, n)
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        if np.isfinite(xy[i]) and xx[i] > 0:
            out[i] = xy[i] / xx[i]
    return out


@njit(cache=True)
def ema(x: Array, span: int) -> Array:
    """Return the exponential mean (alpha = 2 / (span + 1)), restarted ten spans before every bar.

    It starts from the oldest finite value of its window of 10 span + 1 bars and skips gaps. What a start further back
    would add weighs less than exp(-20).
    """
    n = 10 * span + 1
    alpha = 2.0 / (span + 1.0)
    _, mask, count = _prepare(x, n)
    out = np.full(x.size, np.nan)
    for i in range(n - 1, x.size):
        if count[i] > 0:
            state = 0.0
            started = False
            for j in range(i - n + 1, i + 1):
                if mask[j] == 1.0:
                    if started:
                        state += alpha * (x[j] - state)
                    else:
                        state = x[j]
                        started = True
            out[i] = state
    return out


@njit(cache=True)
def wilder(x: Array, period: int) -> Array:
    """Return Wilder's average (alpha = 1 / period), restarted ten equivalent spans before every bar.

    It starts from the plain mean of the window's first ``period`` finite values, as Wilder (1978) does, and skips
    gaps.
    """
    n = 10 * (2 * period - 1) + 1
    _, mask, count = _prepare(x, n)
    out = np.full(x.size, np.nan)
    for i in range(n - 1, x.size):
        if count[i] >= period:
            state = 0.0
            seen = 0
            for j in range(i - n + 1, i + 1):
                if mask[j] == 1.0:
                    if seen < period:
                        state += x[j] / period
                    else:
                        state += (x[j] - state) / period
                    seen += 1
            out[i] = state
    return out


@njit(cache=True)
def rsi(close: Array, period: int) -> Array:
    """Return Wilder's relative strength index, 0 to 100; 50 where nothing moved. Needs one bar more than ``wilder``."""
    gain = np.full(close.size, np.nan)
    loss = np.full(close.size, np.nan)
    for i in range(1, close.size):
        change = close[i] - close[i - 1]
        if np.isfinite(change):
            gain[i] = max(change, 0.0)
            loss[i] = max(-change, 0.0)
    up = wilder(gain, period)
    down = wilder(loss, period)
    out = np.full(close.size, np.nan)
    for i in range(close.size):
        if np.isfinite(up[i]) and np.isfinite(down[i]):
            out[i] = 100.0 * up[i] / (up[i] + down[i]) if up[i] + down[i] > 0 else 50.0
    return out
