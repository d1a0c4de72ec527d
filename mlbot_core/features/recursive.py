"""Recursive averages that restart: exponential and Wilder smoothing with a bounded memory, and windowed TA-Lib calls.

An exponential average never forgets; cut where the series begins, it would depend on where the data begins. So every
output restarts ``window`` bars before its own bar and runs the textbook recursion from there, in batch as live. What
the bars before would add weighs less than exp(-20) at ten spans (:func:`mlbot_core.features.smoothing.smooth`).

TA-Lib's own recursive functions (EMA, RSI, ADX, MACD and their kin) start at the first bar of the array and are
poisoned for ever by a missing value, and so are those that carry running sums (SMA, BBANDS, MFI, ULTOSC, LINEARREG,
candle patterns with averages). They are rebuilt from the functions here and tested against TA-Lib; only functions that
read nothing but their window are called in TA-Lib itself, through :func:`talib_window`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mlbot_core.features.smoothing import smooth

Array = npt.NDArray[np.float64]


def window(span: int) -> int:
    """Return the bars in the window of a restarted average of this span: the current one and ten spans before it."""
    return 10 * span + 1


def wilder_span(period: int) -> int:
    """Return the span whose exponential average has Wilder's factor 1 / period."""
    return 2 * period - 1


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
    return smooth(x, 2.0 / (span + 1.0), window(span) if bars is None else bars)


def wilder(x: Array, period: int, bars: int | None = None) -> Array:
    """Return Wilder's average (alpha = 1 / period), restarted ten equivalent spans back; else as :func:`ema`."""
    return smooth(x, 1.0 / period, window(wilder_span(period)) if bars is None else bars)


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
