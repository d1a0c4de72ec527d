"""Arithmetic bar by bar, compiled: NaN in, NaN out, and never a warning or an infinity.

Why not numpy's own ``log`` and ``sin``: their vector loops may round differently with the length and the alignment of
an array, and a feature must come out bit for bit the same on a cut panel. Scalar calls in a compiled loop do.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]


@njit(cache=True)
def log(x: Array) -> Array:
    """Return the natural logarithm; NaN where ``x`` is not positive and finite."""
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        if np.isfinite(x[i]) and x[i] > 0.0:
            out[i] = math.log(x[i])
    return out


@njit(cache=True)
def ratio(a: Array, b: Array) -> Array:
    """Return ``a / b``; NaN where either is not finite or ``b`` is zero."""
    out = np.full(a.size, np.nan)
    for i in range(a.size):
        if np.isfinite(a[i]) and np.isfinite(b[i]) and b[i] != 0.0:
            out[i] = a[i] / b[i]
    return out


@njit(cache=True)
def log_ratio(a: Array, b: Array) -> Array:
    """Return ``log(a / b)``; NaN where either is not positive and finite."""
    out = np.full(a.size, np.nan)
    for i in range(a.size):
        if np.isfinite(a[i]) and np.isfinite(b[i]) and a[i] > 0.0 and b[i] > 0.0:
            out[i] = math.log(a[i] / b[i])
    return out


@njit(cache=True)
def lag(x: Array, k: int) -> Array:
    """Return ``x`` of ``k`` bars before; the first ``k`` are NaN."""
    out = np.full(x.size, np.nan)
    for i in range(k, x.size):
        out[i] = x[i - k]
    return out


@njit(cache=True)
def diff(x: Array, k: int) -> Array:
    """Return ``x`` less ``x`` of ``k`` bars before; NaN where either is not finite."""
    out = np.full(x.size, np.nan)
    for i in range(k, x.size):
        if np.isfinite(x[i]) and np.isfinite(x[i - k]):
            out[i] = x[i] - x[i - k]
    return out


@njit(cache=True)
def positive_part(x: Array) -> Array:
    """Return ``max(x, 0)``, NaN kept."""
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        if np.isfinite(x[i]):
            out[i] = max(x[i], 0.0)
    return out


@njit(cache=True)
def true_range(high: Array, low: Array, close: Array) -> Array:
    """Return the largest of high - low, |high - previous close|, |low - previous close| (Wilder, 1978), price units."""
    out = np.full(high.size, np.nan)
    for i in range(1, high.size):
        if np.isfinite(high[i]) and np.isfinite(low[i]) and np.isfinite(close[i - 1]):
            out[i] = max(high[i] - low[i], abs(high[i] - close[i - 1]), abs(low[i] - close[i - 1]))
    return out


@njit(cache=True)
def garman_klass(open_: Array, high: Array, low: Array, close: Array) -> Array:
    """Return the variance estimate 0.5 log(H/L)^2 - (2 log 2 - 1) log(C/O)^2 of one bar (Garman and Klass, 1980)."""
    out = np.full(close.size, np.nan)
    for i in range(close.size):
        if np.isfinite(open_[i]) and np.isfinite(high[i]) and np.isfinite(low[i]) and np.isfinite(close[i]):
            spread = math.log(high[i] / low[i])
            body = math.log(close[i] / open_[i])
            out[i] = 0.5 * spread * spread - (2.0 * math.log(2.0) - 1.0) * body * body
    return out


@njit(cache=True)
def rogers_satchell(open_: Array, high: Array, low: Array, close: Array) -> Array:
    """Return the drift-free variance estimate of one bar (Rogers and Satchell, 1991)."""
    out = np.full(close.size, np.nan)
    for i in range(close.size):
        if np.isfinite(open_[i]) and np.isfinite(high[i]) and np.isfinite(low[i]) and np.isfinite(close[i]):
            up = math.log(high[i] / close[i]) * math.log(high[i] / open_[i])
            down = math.log(low[i] / close[i]) * math.log(low[i] / open_[i])
            out[i] = up + down
    return out


@njit(cache=True)
def phase(x: Array, period: float, quarter: float) -> Array:
    """Return ``sin(2 pi (x / period + quarter / 4))``: quarter 0 is the sine, 1 the cosine of a cycle."""
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        if np.isfinite(x[i]):
            turn = (x[i] % period) / period
            out[i] = math.sin(2.0 * math.pi * (turn + quarter / 4.0))
    return out
