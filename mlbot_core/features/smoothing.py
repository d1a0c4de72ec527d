"""Exponential averages that restart: every output runs through its own window, oldest value first.

Outputs run side by side in blocks, which the compiler vectorises. The rule for missing values is that of
:mod:`mlbot_core.features.kernels`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.features.joining import prepare

Array = npt.NDArray[np.float64]

_BLOCK = 512  # outputs per block: their averages stay in the first-level cache


def ema_window(span: int) -> int:
    """Return the bars in the window of a restarted EMA: the current one and ten spans before it."""
    return 10 * span + 1


def wilder_window(period: int) -> int:
    """Return the bars in the window of a restarted Wilder average (alpha 1/period is a span of 2 period - 1)."""
    return 10 * (2 * period - 1) + 1


@njit(cache=True)
def _approach(value: Array, share: Array, acc: Array) -> None:
    """Move each average by its share towards the next value."""
    for i in range(acc.size):
        acc[i] += share[i] * (value[i] - acc[i])


@njit(cache=True)
def smooth(x: Array, alpha: float, n: int) -> Array:
    """Return the exponential mean with weight ``alpha``, restarted at every output's window of ``n`` bars.

    It starts from the oldest finite value of its window and skips gaps.
    """
    values, weight, count = prepare(x, n)
    first = np.zeros(x.size)  # the oldest finite value at or after a bar
    for i in range(x.size - 1, -1, -1):
        first[i] = values[i] if weight[i] > 0.0 or i == x.size - 1 else first[i + 1]
    for i in range(x.size):
        weight[i] = alpha if weight[i] > 0.0 else 0.0
    out = np.full(x.size, np.nan)
    for begin in range(n - 1, x.size, _BLOCK):
        end = min(begin + _BLOCK, x.size)
        acc = first[begin - n + 1 : end - n + 1].copy()
        for j in range(n - 1, -1, -1):
            _approach(values[begin - j : end - j], weight[begin - j : end - j], acc)
        for i in range(acc.size):
            out[begin + i] = acc[i] if count[begin + i] > 0.0 else np.nan
    return out


@njit(cache=True)
def ema(x: Array, span: int) -> Array:
    """Return the exponential mean (alpha = 2 / (span + 1)), restarted ten spans before every bar.

    It starts from the oldest finite value of its window of 10 span + 1 bars and skips gaps. What a start further back
    would add weighs less than exp(-20).
    """
    return smooth(x, 2.0 / (span + 1.0), 10 * span + 1)


@njit(cache=True)
def _wilder_of(x: Array, mask: Array, period: int) -> float:
    """Return Wilder's average of one window in which values are missing."""
    state = 0.0
    seen = 0
    for j in range(x.size):
        if mask[j] == 1.0:
            if seen < period:
                state += x[j] / period
            else:
                state += (x[j] - state) / period
            seen += 1
    return state


@njit(cache=True)
def wilder(x: Array, period: int) -> Array:
    """Return Wilder's average (alpha = 1 / period), restarted ten equivalent spans before every bar.

    It starts from the plain mean of the window's first ``period`` finite values, as Wilder (1978) does, and skips
    gaps.
    """
    n = 10 * (2 * period - 1) + 1
    values, mask, count = prepare(x, n)
    out = np.full(x.size, np.nan)
    for begin in range(n - 1, x.size, _BLOCK):
        end = min(begin + _BLOCK, x.size)
        acc = np.zeros(end - begin)
        for j in range(n - 1, -1, -1):
            value = values[begin - j : end - j]
            if j >= n - period:
                for i in range(acc.size):
                    acc[i] += value[i] / period
            else:
                for i in range(acc.size):
                    acc[i] += (value[i] - acc[i]) / period
        for i in range(begin, end):
            if count[i] == n:
                out[i] = acc[i - begin]
            elif count[i] >= period:
                out[i] = _wilder_of(x[i - n + 1 : i + 1], mask[i - n + 1 : i + 1], period)
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
