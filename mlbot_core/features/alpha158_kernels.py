"""From states of windows (:mod:`mlbot_core.features.rolling`) to the columns of Alpha158, one compiled pass each.

All take float64 arrays of shape (bars,) and return one; ``count`` is the state's, ``last`` the column whose current
value must be there, ``n`` the window's length in bars. NaN where the window is not valid.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from mlbot_core.features.rolling import CLOSE_TO_ZERO, Array, valid

EPSILON = 1e-12
"""What Qlib adds to a denominator."""


@njit(cache=True, error_model="numpy")
def over(value: Array, count: Array, base: Array, n: int) -> Array:
    """Return ``value / base`` where the window is valid; the base is its last value."""
    out = np.empty(value.size)
    for i in range(value.size):
        out[i] = value[i] / base[i] if valid(count[i], base[i], n) else np.nan
    return out


@njit(cache=True, error_model="numpy")
def share(value: Array, whole: Array, count: Array, last: Array, n: int) -> Array:
    """Return ``value / (whole + 1e-12)`` where the window is valid."""
    out = np.empty(value.size)
    for i in range(value.size):
        out[i] = value[i] / (whole[i] + EPSILON) if valid(count[i], last[i], n) else np.nan
    return out


@njit(cache=True, error_model="numpy")
def deviation(squares: Array, count: Array, base: Array, epsilon: float, last: Array, n: int) -> Array:
    """Return the sample standard deviation (ddof = 1) over ``base + epsilon`` where the window is valid."""
    out = np.empty(count.size)
    for i in range(count.size):
        fraction = math.sqrt(squares[i] / (count[i] - 1.0)) / (base[i] + epsilon)
        out[i] = fraction if valid(count[i], last[i], n) else np.nan
    return out


@njit(cache=True, error_model="numpy")
def slope(xy: Array, xx: Array, count: Array, base: Array, n: int) -> Array:
    """Return the slope of the least-squares line over the last value."""
    out = np.empty(count.size)
    for i in range(count.size):
        out[i] = xy[i] / xx[i] / base[i] if valid(count[i], base[i], n) else np.nan
    return out


@njit(cache=True, error_model="numpy")
def balance(rise: Array, fall: Array, part: int, count: Array, last: Array, n: int) -> Array:
    """Return rises (part 1), falls (-1) or their difference (0) over all movement."""
    out = np.empty(count.size)
    for i in range(count.size):
        value = rise[i] if part > 0 else (fall[i] if part < 0 else rise[i] - fall[i])
        out[i] = value / (rise[i] + fall[i] + EPSILON) if valid(count[i], last[i], n) else np.nan
    return out


@njit(cache=True, error_model="numpy")
def apart(high_age: Array, low_age: Array, high_count: Array, low_count: Array, last: Array, n: int) -> Array:
    """Return how much later than the low the high was, over the window's length."""
    out = np.empty(last.size)
    for i in range(last.size):
        whole = valid(min(high_count[i], low_count[i]), last[i], n)
        out[i] = (low_age[i] - high_age[i]) / n if whole else np.nan
    return out


@njit(cache=True, error_model="numpy")
def fit(count: Array, xx: Array, yy: Array, xy: Array, last: Array, n: int, squared: bool) -> Array:
    """Return Pearson's correlation, or its square; NaN where Qlib calls a deviation of y (or x) zero."""
    out = np.empty(count.size)
    for i in range(count.size):
        floor = CLOSE_TO_ZERO * CLOSE_TO_ZERO * (count[i] - 1.0)
        fit = min(1.0, max(-1.0, xy[i] / (math.sqrt(xx[i]) * math.sqrt(yy[i]))))
        fit = fit * fit if squared else fit
        out[i] = fit if valid(count[i], last[i], n) and yy[i] > floor and xx[i] > floor else np.nan
    return out


@njit(cache=True, error_model="numpy")
def residual(count: Array, mean_x: Array, mean_y: Array, xx: Array, xy: Array, close: Array, n: int) -> Array:
    """Return the last value's distance from its least-squares line, over the last value."""
    out = np.empty(count.size)
    for i in range(count.size):
        residual = close[i] - mean_y[i] + xy[i] / xx[i] * mean_x[i]
        out[i] = residual / close[i] if valid(count[i], close[i], n) else np.nan
    return out


@njit(cache=True, error_model="numpy")
def stochastic(state_high: Array, count_high: Array, state_low: Array, count_low: Array, close: Array, n: int) -> Array:
    """Return the close's place between the lowest low and the highest high."""
    out = np.empty(close.size)
    for i in range(close.size):
        place = (close[i] - state_low[i]) / (state_high[i] - state_low[i] + EPSILON)
        out[i] = place if valid(min(count_high[i], count_low[i]), close[i], n) else np.nan
    return out


@njit(cache=True, error_model="numpy")
def place(age: Array, count: Array, last: Array, n: int) -> Array:
    """Return the place of an extreme in its window over the window's length: 1 the current bar, 1 / n the oldest."""
    out = np.empty(age.size)
    for i in range(age.size):
        out[i] = (n - age[i]) / n if valid(count[i], last[i], n) else np.nan
    return out


@njit(cache=True, error_model="numpy")
def plain(value: Array, count: Array, last: Array, n: int) -> Array:
    """Return the value where the window is valid."""
    out = np.empty(value.size)
    for i in range(value.size):
        out[i] = value[i] if valid(count[i], last[i], n) else np.nan
    return out


@njit(cache=True, error_model="numpy")
def mean_of(value: Array, count: Array, last: Array, n: int) -> Array:
    """Return the value over the count."""
    out = np.empty(value.size)
    for i in range(value.size):
        out[i] = value[i] / count[i] if valid(count[i], last[i], n) else np.nan
    return out
