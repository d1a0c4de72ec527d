"""The columns of Alpha158 from the states of their windows, each table of them in one compiled pass.

A table fills the rows ``at[0], at[1], ...`` of ``into``, shape (rows, bars); a row of -1 is not wanted. Its columns are
in Qlib's order, the five windows of each operator side by side. Inputs are float64 of shape (bars,). A value is NaN
where its window does not fit, ends in a missing value or lacks more than 20 % of its values.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.features.alpha158_states import (
    BLOCK,
    LENGTHS,
    REACH,
    both,
    gate,
    load,
    maxima,
    moments,
    moves,
    pairs,
    room,
    trend,
)
from mlbot_core.features.rolling import CLOSE_TO_ZERO

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

EPSILON = 1e-12
"""What Qlib adds to a denominator."""

_WINDOWS = len(LENGTHS)
_SIDES = ((1.0, 0.0), (0.0, -1.0), (1.0, 1.0))  # rises, falls, rises less falls


@njit(cache=True, error_model="numpy")
def _divide(dst: Array, value: Array, base: Array, epsilon: float, gated: Array) -> None:
    for q in range(dst.size):
        dst[q] = value[q] / (base[q] + epsilon) * gated[q]


@njit(cache=True, error_model="numpy")
def _deviation(dst: Array, squares: Array, count: Array, base: Array, epsilon: float, gated: Array) -> None:
    """Sample standard deviation (ddof = 1) over ``base + epsilon``."""
    for q in range(dst.size):
        dst[q] = math.sqrt(squares[q] / (count[q] - 1.0)) / (base[q] + epsilon) * gated[q]


@njit(cache=True, error_model="numpy")
def _slope(dst: Array, xy: Array, xx: Array, base: Array, gated: Array) -> None:
    for q in range(dst.size):
        dst[q] = xy[q] / xx[q] / base[q] * gated[q]


@njit(cache=True, error_model="numpy")
def _fit(dst: Array, count: Array, xx: Array, yy: Array, xy: Array, squared: bool, gated: Array) -> None:
    """Pearson's correlation, or its square; NaN where Qlib calls a deviation of y (or x) zero."""
    for q in range(dst.size):
        floor = CLOSE_TO_ZERO * CLOSE_TO_ZERO * (count[q] - 1.0)
        fit = xy[q] / (math.sqrt(xx[q]) * math.sqrt(yy[q]))
        fit = fit if fit > -1.0 else -1.0
        fit = fit if fit < 1.0 else 1.0
        fit = fit * fit if squared else fit
        dst[q] = fit * gated[q] if yy[q] > floor and xx[q] > floor else np.nan


@njit(cache=True, error_model="numpy")
def _residual(dst: Array, mean_x: Array, mean_y: Array, xx: Array, xy: Array, close: Array, gated: Array) -> None:
    """The last value's distance from its least-squares line, over the last value."""
    for q in range(dst.size):
        dst[q] = (close[q] - mean_y[q] + xy[q] / xx[q] * mean_x[q]) / close[q] * gated[q]


@njit(cache=True, error_model="numpy")
def _balance(dst: Array, rise: Array, fall: Array, up: float, down: float, gated: Array) -> None:
    """Rises, falls or their difference over all movement."""
    for q in range(dst.size):
        dst[q] = (up * rise[q] - down * fall[q]) / (rise[q] + fall[q] + EPSILON) * gated[q]


@njit(cache=True, error_model="numpy")
def _share(dst: Array, rises: Array, falls: Array, up: float, down: float, count: Array, gated: Array) -> None:
    """Number of rises, of falls or their difference over the number of values."""
    for q in range(dst.size):
        dst[q] = (up * rises[q] - down * falls[q]) / count[q] * gated[q]


@njit(cache=True, error_model="numpy")
def _stochastic(dst: Array, top: Array, negated_bottom: Array, close: Array, gated: Array) -> None:
    """The close's place between the lowest low and the highest high."""
    for q in range(dst.size):
        bottom = -negated_bottom[q]
        dst[q] = (close[q] - bottom) / (top[q] - bottom + EPSILON) * gated[q]


@njit(cache=True, error_model="numpy")
def _place(dst: Array, age: Array, n: int, gated: Array) -> None:
    """Place of an extreme in its window over the window's length: 1 the current bar, 1 / n the oldest."""
    for q in range(dst.size):
        dst[q] = (n - age[q]) / n * gated[q]


@njit(cache=True, error_model="numpy")
def _apart(dst: Array, high_age: Array, low_age: Array, n: int, gated: Array) -> None:
    """How much later than the low the high was, over the window's length."""
    for q in range(dst.size):
        dst[q] = (low_age[q] - high_age[q]) / n * gated[q]


@njit(cache=True, error_model="numpy")
def _quotient(dst: Array, a: Array, b: Array) -> None:
    """NaN where either is not finite or ``b`` is zero; ``dst`` may be ``a``."""
    for q in range(dst.size):
        fine = a[q] - a[q] == 0.0 and b[q] - b[q] == 0.0 and b[q] != 0.0
        dst[q] = a[q] / b[q] if fine else np.nan


@njit(cache=True, error_model="numpy")
def _greater(a: float, b: float) -> float:
    return a if a > b or a != a else b


@njit(cache=True, error_model="numpy")
def _numerator(dst: Array, part: int, open_: Array, high: Array, low: Array, close: Array) -> None:
    """Body, range, upper shadow, lower shadow or close against the middle of the range, in the price's unit."""
    for q in range(dst.size):
        if part == 0:
            dst[q] = close[q] - open_[q]
        elif part == 1:
            dst[q] = high[q] - low[q]
        elif part == 2:
            dst[q] = high[q] - _greater(open_[q], close[q])
        elif part == 3:
            dst[q] = -_greater(-open_[q], -close[q]) - low[q]
        else:
            dst[q] = 2.0 * close[q] - high[q] - low[q]


_PART = (0, 1, 0, 2, 2, 3, 3, 4, 4)
_OVER_SPAN = (False, False, True, False, True, False, True, False, True)


@njit(cache=True, error_model="numpy")
def candles(into: Array, at: Rows, open_: Array, high: Array, low: Array, close: Array, vwap: Array) -> None:
    """KMID KLEN KMID2 KUP KUP2 KLOW KLOW2 KSFT KSFT2, OPEN0 HIGH0 LOW0 VWAP0, ROC of the five windows."""
    span = high - low + EPSILON
    for column in range(9):
        if at[column] >= 0:
            dst = into[at[column]]
            _numerator(dst, _PART[column], open_, high, low, close)
            if _OVER_SPAN[column]:
                _quotient(dst, dst, span)
            else:
                _quotient(dst, dst, open_)
    if at[9] >= 0:
        _quotient(into[at[9]], open_, close)
    if at[10] >= 0:
        _quotient(into[at[10]], high, close)
    if at[11] >= 0:
        _quotient(into[at[11]], low, close)
    if at[12] >= 0:
        _quotient(into[at[12]], vwap, close)
    for k in range(_WINDOWS):
        if at[13 + k] >= 0:
            n = min(LENGTHS[k], close.size)
            into[at[13 + k], :n] = np.nan
            _quotient(into[at[13 + k], n:], close[: close.size - n], close[n:])


@njit(cache=True, error_model="numpy")
def trends(into: Array, at: Rows, close: Array) -> None:
    """MA STD BETA RSQR RESI."""
    states, values, there, part = room(6), np.empty(BLOCK + REACH), np.empty(BLOCK + REACH), np.empty(BLOCK + REACH)
    gates = np.empty(BLOCK)
    for begin in range(0, close.size, BLOCK):
        end = min(begin + BLOCK, close.size)
        load(close, begin, values, there)
        trend(values, there, states, part)
        last, gated, stop = close[begin:end], gates[: end - begin], REACH + end - begin
        for k in range(_WINDOWS):
            state = states[k]
            count, mean_x, mean_y = state[0, REACH:stop], state[1, REACH:stop], state[2, REACH:stop]
            xx, yy, xy = state[3, REACH:stop], state[4, REACH:stop], state[5, REACH:stop]
            gate(count, last, LENGTHS[k], max(0, LENGTHS[k] - 1 - begin), gated)
            if at[k] >= 0:
                _divide(into[at[k], begin:end], mean_y, last, 0.0, gated)
            if at[5 + k] >= 0:
                _deviation(into[at[5 + k], begin:end], yy, count, last, 0.0, gated)
            if at[10 + k] >= 0:
                _slope(into[at[10 + k], begin:end], xy, xx, last, gated)
            if at[15 + k] >= 0:
                _fit(into[at[15 + k], begin:end], count, xx, yy, xy, True, gated)
            if at[20 + k] >= 0:
                _residual(into[at[20 + k], begin:end], mean_x, mean_y, xx, xy, last, gated)


@njit(cache=True, error_model="numpy")
def extremes(into: Array, at: Rows, high: Array, low: Array, close: Array) -> None:
    """MAX MIN RSV IMAX IMIN IMXD."""
    highs, lows, negated = room(3), room(3), -low
    values, there, part = np.empty(BLOCK + REACH), np.empty(BLOCK + REACH), np.empty(BLOCK + REACH)
    gates, fewer = np.empty(BLOCK), np.empty(BLOCK)
    for begin in range(0, close.size, BLOCK):
        end = min(begin + BLOCK, close.size)
        load(high, begin, values, there)
        maxima(values, there, highs, part)
        load(negated, begin, values, there)
        maxima(values, there, lows, part)
        last, high_last, low_last = close[begin:end], high[begin:end], low[begin:end]
        gated, least, stop = gates[: end - begin], fewer[: end - begin], REACH + end - begin
        sum_ = high_last + low_last
        for k in range(_WINDOWS):
            n = LENGTHS[k]
            early = max(0, n - 1 - begin)
            high_count, top, high_age = highs[k, 0, REACH:stop], highs[k, 1, REACH:stop], highs[k, 2, REACH:stop]
            low_count, bottom, low_age = lows[k, 0, REACH:stop], lows[k, 1, REACH:stop], lows[k, 2, REACH:stop]
            for q in range(least.size):
                least[q] = low_count[q] if low_count[q] < high_count[q] else high_count[q]
            if at[k] >= 0:
                gate(high_count, last, n, early, gated)
                _divide(into[at[k], begin:end], top, last, 0.0, gated)
            if at[5 + k] >= 0:
                gate(low_count, last, n, early, gated)
                _divide(into[at[5 + k], begin:end], -bottom, last, 0.0, gated)
            if at[10 + k] >= 0:
                gate(least, last, n, early, gated)
                _stochastic(into[at[10 + k], begin:end], top, bottom, last, gated)
            if at[15 + k] >= 0:
                gate(high_count, high_last, n, early, gated)
                _place(into[at[15 + k], begin:end], high_age, n, gated)
            if at[20 + k] >= 0:
                gate(low_count, low_last, n, early, gated)
                _place(into[at[20 + k], begin:end], low_age, n, gated)
            if at[25 + k] >= 0:
                gate(least, sum_, n, early, gated)
                _apart(into[at[25 + k], begin:end], high_age, low_age, n, gated)


@njit(cache=True, error_model="numpy")
def correlations(into: Array, at: Rows, x: Array, y: Array) -> None:
    """Correlation of two columns; missing where either is missing at the current bar."""
    states, size = room(6), BLOCK + REACH
    values, there, part = np.empty(size), np.empty(size), np.empty(size)
    other, other_there, gates = np.empty(size), np.empty(size), np.empty(BLOCK)
    for begin in range(0, x.size, BLOCK):
        end = min(begin + BLOCK, x.size)
        load(x, begin, values, there)
        load(y, begin, other, other_there)
        both(values, there, other, other_there)
        pairs(values, other, there, states, part)
        last, gated, stop = x[begin:end] + y[begin:end], gates[: end - begin], REACH + end - begin
        for k in range(_WINDOWS):
            if at[k] >= 0:
                count, xx = states[k, 0, REACH:stop], states[k, 3, REACH:stop]
                yy, xy = states[k, 4, REACH:stop], states[k, 5, REACH:stop]
                gate(count, last, LENGTHS[k], max(0, LENGTHS[k] - 1 - begin), gated)
                _fit(into[at[k], begin:end], count, xx, yy, xy, False, gated)


@njit(cache=True, error_model="numpy")
def price_moves(into: Array, at: Rows, change: Array) -> None:
    """CNTP CNTN CNTD SUMP SUMN SUMD."""
    states, values, there, part = room(5), np.empty(BLOCK + REACH), np.empty(BLOCK + REACH), np.empty(BLOCK + REACH)
    gates = np.empty(BLOCK)
    for begin in range(0, change.size, BLOCK):
        end = min(begin + BLOCK, change.size)
        load(change, begin, values, there)
        moves(values, there, states, part)
        last, gated, stop = change[begin:end], gates[: end - begin], REACH + end - begin
        for k in range(_WINDOWS):
            count, rise, fall = states[k, 0, REACH:stop], states[k, 1, REACH:stop], states[k, 2, REACH:stop]
            rises, falls = states[k, 3, REACH:stop], states[k, 4, REACH:stop]
            gate(count, last, LENGTHS[k], max(0, LENGTHS[k] - 1 - begin), gated)
            for kind in range(3):
                up, down = _SIDES[kind]
                if at[5 * kind + k] >= 0:
                    _share(into[at[5 * kind + k], begin:end], rises, falls, up, down, count, gated)
                if at[15 + 5 * kind + k] >= 0:
                    _balance(into[at[15 + 5 * kind + k], begin:end], rise, fall, up, down, gated)


def volume_moves(into: Array, at: Rows, change: Array) -> None:
    """VSUMP VSUMN VSUMD."""
    price_moves(into, np.concatenate([np.full(15, -1), at]), change)


@njit(cache=True, error_model="numpy")
def volumes(into: Array, at: Rows, volume: Array) -> None:
    """VMA VSTD."""
    states, values, there, part = room(3), np.empty(BLOCK + REACH), np.empty(BLOCK + REACH), np.empty(BLOCK + REACH)
    gates = np.empty(BLOCK)
    for begin in range(0, volume.size, BLOCK):
        end = min(begin + BLOCK, volume.size)
        load(volume, begin, values, there)
        moments(values, there, states, part)
        last, gated, stop = volume[begin:end], gates[: end - begin], REACH + end - begin
        for k in range(_WINDOWS):
            count, mean, squares = states[k, 0, REACH:stop], states[k, 1, REACH:stop], states[k, 2, REACH:stop]
            gate(count, last, LENGTHS[k], max(0, LENGTHS[k] - 1 - begin), gated)
            if at[k] >= 0:
                _divide(into[at[k], begin:end], mean, last, EPSILON, gated)
            if at[5 + k] >= 0:
                _deviation(into[at[5 + k], begin:end], squares, count, last, EPSILON, gated)


@njit(cache=True, error_model="numpy")
def weighted_moves(into: Array, at: Rows, weighted: Array) -> None:
    """WVMA."""
    states, values, there, part = room(3), np.empty(BLOCK + REACH), np.empty(BLOCK + REACH), np.empty(BLOCK + REACH)
    gates = np.empty(BLOCK)
    for begin in range(0, weighted.size, BLOCK):
        end = min(begin + BLOCK, weighted.size)
        load(weighted, begin, values, there)
        moments(values, there, states, part)
        last, gated, stop = weighted[begin:end], gates[: end - begin], REACH + end - begin
        for k in range(_WINDOWS):
            count, mean, squares = states[k, 0, REACH:stop], states[k, 1, REACH:stop], states[k, 2, REACH:stop]
            gate(count, last, LENGTHS[k], max(0, LENGTHS[k] - 1 - begin), gated)
            if at[k] >= 0:
                _deviation(into[at[k], begin:end], squares, count, mean, EPSILON, gated)
