"""Recursive averages that restart: exponential and Wilder smoothing with a bounded memory, and windowed TA-Lib calls.

An exponential average never forgets; cut where the series begins, it would depend on where the data begins. So every
output restarts ``window`` bars before its own bar and runs the textbook recursion from there, in batch as live. What
the bars before would add weighs less than exp(-20) at ten spans. Outputs run side by side in blocks (the compiler
vectorises the inner loop), each through its own window, oldest value first.

TA-Lib's own recursive functions (EMA, RSI, ADX, MACD and their kin) start at the first bar of the array and are
poisoned for ever by a missing value, and so are those that carry running sums (SMA, BBANDS, MFI, ULTOSC, LINEARREG,
candle patterns with averages). They are rebuilt from the functions here and tested against TA-Lib; only functions that
read nothing but their window are called in TA-Lib itself, through :func:`talib_window`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]

_BLOCK = 512


def window(span: int) -> int:
    """Return the bars in the window of a restarted average of this span: the current one and ten spans before it."""
    return 10 * span + 1


def wilder_span(period: int) -> int:
    """Return the span whose exponential average has Wilder's factor 1 / period."""
    return 2 * period - 1


@njit(cache=True)
def _smooth(x: Array, alpha: float, n: int) -> Array:
    out = np.full(x.size, np.nan)
    values = np.zeros(x.size)
    weight = np.zeros(x.size)
    first = np.zeros(x.size)  # the oldest finite value at or after a bar
    finite = 0
    usable = np.zeros(x.size, dtype=np.bool_)
    for i in range(x.size):
        if np.isfinite(x[i]):
            values[i] = x[i]
            weight[i] = alpha
            finite += 1
        if i >= n and weight[i - n] > 0.0:
            finite -= 1
        usable[i] = i >= n - 1 and weight[i] > 0.0 and 10 * finite >= 8 * n
    for i in range(x.size - 1, -1, -1):
        first[i] = values[i] if weight[i] > 0.0 or i == x.size - 1 else first[i + 1]
    state = np.empty(_BLOCK)
    for begin in range(n - 1, x.size, _BLOCK):
        end = min(begin + _BLOCK, x.size)
        acc = state[: end - begin]
        acc[:] = first[begin - n + 1 : end - n + 1]
        for j in range(n - 1, -1, -1):
            value = values[begin - j : end - j]
            share = weight[begin - j : end - j]
            for i in range(acc.size):
                acc[i] += share[i] * (value[i] - acc[i])
        for i in range(acc.size):
            if usable[begin + i]:
                out[begin + i] = acc[i]
    return out


def ema(x: Array, span: int, bars: int | None = None) -> Array:
    """Return the exponential mean (alpha = 2 / (span + 1)), restarted ``bars`` bars back.

    Parameters
    ----------
    x
        Shape (bars,); gaps are skipped.
    span
        As in TA-Lib's ``timeperiod``.
    bars
        Length of the window with the current bar; by default :func:`window`.

    Returns
    -------
    Array
        NaN where the window does not fit, ends in a missing value or has less than 80 % of its values.
    """
    return _smooth(x, 2.0 / (span + 1.0), window(span) if bars is None else bars)


def wilder(x: Array, period: int, bars: int | None = None) -> Array:
    """Return Wilder's average (alpha = 1 / period), restarted ten equivalent spans back; else as :func:`ema`."""
    return _smooth(x, 1.0 / period, window(wilder_span(period)) if bars is None else bars)


def talib_window(name: str, *inputs: Array, **options: Any) -> Array:
    """Call a TA-Lib function that reads nothing but a window, on each unbroken stretch of its inputs by itself.

    Parameters
    ----------
    name
        TA-Lib's name of a function with one output and neither recursion nor running sums.
    inputs
        Shape (bars,), as TA-Lib orders them.
    options
        Handed to TA-Lib.

    Returns
    -------
    Array
        NaN where the window does not fit or holds a missing value.
    """
    import talib

    function = getattr(talib, name)
    there = np.isfinite(np.sum(inputs, axis=0)) if len(inputs) > 1 else np.isfinite(inputs[0])
    out = np.full(there.size, np.nan)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]]).astype(np.int8)))
    for begin, end in edges.reshape(-1, 2):
        out[begin:end] = function(*(np.ascontiguousarray(x[begin:end]) for x in inputs), **options)
    return out
