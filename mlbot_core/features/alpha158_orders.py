"""The order statistics of Alpha158: QTLU, QTLD and RANK of the five windows, in one compiled pass.

A window in which nothing is missing goes through sorting networks (:mod:`mlbot_core.features.sorting`), a longer one
merged from shorter ones; the few others go through a sorted list. The values are the same, bit for bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.features import sorting
from mlbot_core.features.alpha158_states import BLOCK, LENGTHS, REACH, load, whole
from mlbot_core.features.rolling import order_statistics

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

_WINDOWS = len(LENGTHS)
_HIGH, _LOW = 0.8, 0.2  # the two quantiles

_SORT_5, _ORDER_5 = sorting.sorter(5)
_MERGE_10, _ORDER_10 = sorting.merger(_ORDER_5, _ORDER_5)
_MERGE_20, _ORDER_20 = sorting.merger(_ORDER_10, _ORDER_10)
_MERGE_30, _ORDER_30 = sorting.merger(_ORDER_20, _ORDER_10)
_PLACES_60 = (47, 48, 11, 12)
_MERGE_60, _ORDER_60 = sorting.merger(_ORDER_30, _ORDER_30, _PLACES_60)


def _wires() -> npt.NDArray[np.int64]:
    """Return, for each window, the wires on either side of the high and of the low quantile."""
    found = []
    for n, order in zip(LENGTHS, (_ORDER_5, _ORDER_10, _ORDER_20, _ORDER_30, _ORDER_60), strict=True):
        found.append([order[int(share * (n - 1)) + above] for share in (_HIGH, _LOW) for above in (0, 1)])
    return np.array(found, dtype=np.int64)


_WIRES = _wires()


@njit(cache=True, error_model="numpy")
def _stack(older: Array, recent: Array, lag: int, out: Array) -> None:
    """Put the sorted older part of each window and its sorted recent part on top of each other."""
    for row in range(older.shape[0]):
        out[row, lag:] = older[row, : older.shape[1] - lag]
    for row in range(recent.shape[0]):
        out[older.shape[0] + row] = recent[row]


@njit(cache=True, error_model="numpy")
def _between(dst: Array, lower: Array, upper: Array, exact: float, close: Array, gated: Array) -> None:
    """The quantile between two neighbours, over the close."""
    part = exact - int(exact)
    for q in range(dst.size):
        dst[q] = (lower[q] + (upper[q] - lower[q]) * part) / close[q] * gated[q]


@njit(cache=True, error_model="numpy")
def _count_less(values: Array, less: Array, equal: Array, begin: int, end: int) -> None:
    """Count the values from ``begin`` to ``end`` positions ago that are less than, or equal to, the last."""
    last = values[REACH:]
    for age in range(begin, end):
        value = values[REACH - age : values.size - age]
        for q in range(last.size):
            less[q] += 1.0 if value[q] < last[q] else 0.0
            equal[q] += 1.0 if value[q] == last[q] else 0.0


@njit(cache=True, error_model="numpy")
def _rank(dst: Array, less: Array, equal: Array, n: int) -> None:
    for q in range(dst.size):
        dst[q] = (less[q] + 0.5 * (equal[q] + 1.0)) / n


@njit(cache=True, error_model="numpy")
def orders(into: Array, at: Rows, close: Array) -> None:
    """QTLU QTLD RANK; windows with a missing value go through a sorted list, the others through a network."""
    size = BLOCK + REACH
    values, there, less, equal = np.empty(size), np.empty(size), np.empty(BLOCK), np.empty(BLOCK)
    five, ten, twenty = np.empty((5, size)), np.zeros((10, size)), np.zeros((20, size))
    thirty, sixty = np.zeros((30, size)), np.zeros((60, size))
    gates, ones = np.empty(BLOCK), np.ones(BLOCK)
    for begin in range(0, close.size, BLOCK):
        end = min(begin + BLOCK, close.size)
        last, stop = close[begin:end], REACH + end - begin
        load(close, begin, values, there)
        complete = whole(there[:stop])
        if complete:
            for row in range(5):
                five[row, :row] = 0.0
                five[row, row:] = values[: size - row]
            sorting.apply(_SORT_5, five)
            _stack(five, five, 5, ten)
            sorting.apply(_MERGE_10, ten)
            _stack(ten, ten, 10, twenty)
            sorting.apply(_MERGE_20, twenty)
            _stack(twenty, ten, 10, thirty)
            sorting.apply(_MERGE_30, thirty)
            _stack(thirty, thirty, 30, sixty)
            sorting.apply(_MERGE_60, sixty)
            less[:] = 0.0
            equal[:] = 0.0
        for k in range(_WINDOWS):
            n = LENGTHS[k]
            gated = ones[: end - begin]
            if complete:
                rows = (five, ten, twenty, thirty, sixty)[k]
                for side in range(2):
                    if at[5 * side + k] >= 0:
                        lower, upper = rows[_WIRES[k, 2 * side]], rows[_WIRES[k, 2 * side + 1]]
                        exact = (_HIGH if side == 0 else _LOW) * (n - 1)
                        dst = into[at[5 * side + k], begin:end]
                        _between(dst, lower[REACH:stop], upper[REACH:stop], exact, last, gated)
                _count_less(values, less, equal, 0 if k == 0 else LENGTHS[k - 1], n)
                if at[10 + k] >= 0:
                    _rank(into[at[10 + k], begin:end], less, equal, n)
            else:
                first = max(0, begin - REACH)
                state = order_statistics(close[first:end], n)[:, begin - first :]
                gated = gates[: end - begin]
                for q in range(gated.size):
                    gated[q] = 1.0 if 10.0 * state[0, q] >= 8.0 * n and last[q] - last[q] == 0.0 else np.nan
                for side in range(2):
                    if at[5 * side + k] >= 0:
                        dst = into[at[5 * side + k], begin:end]
                        for q in range(dst.size):
                            dst[q] = state[2 + side, q] / last[q] * gated[q]
                if at[10 + k] >= 0:
                    dst = into[at[10 + k], begin:end]
                    for q in range(dst.size):
                        dst[q] = state[1, q] * gated[q]
