"""Windows put together from shorter ones: sums, means, squares, products and extremes of all windows of one length.

See :mod:`mlbot_core.features.kernels` for the rules; this is what its kernels share.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]

_WIDE = 2048  # outputs per block, whose parts stay in the second-level cache


@njit(cache=True)
def prepare(x: Array, n: int) -> tuple[Array, Array, Array]:
    """Return values with gaps as zero, a 1/0 mask, and the window's finite count (0 where the window is unusable)."""
    values = np.empty(x.size)
    mask = np.empty(x.size)
    count = np.zeros(x.size)
    for i in range(x.size):
        values[i] = x[i] if x[i] - x[i] == 0.0 else 0.0
    for i in range(x.size):
        mask[i] = 1.0 if x[i] - x[i] == 0.0 else 0.0
    finite = 0.0  # a whole number, hence exact: the only thing that is counted on
    for i in range(min(n - 1, x.size)):
        finite += mask[i]
    for i in range(n - 1, x.size):
        finite += mask[i]
        count[i] = finite if mask[i] == 1.0 and 10.0 * finite >= 8.0 * n else 0.0
        finite -= mask[i - n + 1]
    return values, mask, count


@njit(cache=True)
def sums(values: Array, n: int) -> Array:
    """Return the sum of every window, 0 where it does not fit."""
    out = np.zeros(values.size)
    for begin in range(n - 1, values.size, _WIDE):
        end = min(begin + _WIDE, values.size)
        piece = values[begin - n + 1 : end].copy()  # sums of ``size`` bars
        other = np.empty(piece.size)
        joined = np.empty(piece.size)  # sums of ``have`` bars
        # of joined and of piece; as plain 0 and 1 they would be types of their own, compiled for once more
        have, size = n - n, n - n + 1
        left = n
        while left:
            if left & 1:
                if have:
                    _join_sums(piece, joined, have, other)
                    joined, other = other, joined
                else:
                    joined[:] = piece
                have += size
            left >>= 1
            if left:
                _join_sums(piece, piece, size, other)
                piece, other = other, piece
                size *= 2
        out[begin:end] = joined[n - 1 :]
    return out


@njit(cache=True)
def _join_sums(older: Array, recent: Array, lag: int, out: Array) -> None:
    old, new, both = older[: out.size - lag], recent[lag:], out[lag:]
    for i in range(both.size):
        both[i] = old[i] + new[i]


@njit(cache=True, error_model="numpy")
def _join_means(old: Array, new: Array, share: float, out: Array) -> None:
    for i in range(out.size):
        out[i] = old[i] + (new[i] - old[i]) * share


@njit(cache=True, error_model="numpy")
def _join_means_of(old: Array, new: Array, old_count: Array, new_count: Array, out: Array) -> None:
    """Join means of parts in which values are missing."""
    for i in range(out.size):
        count = old_count[i] + new_count[i]
        share = new_count[i] / count if count > 0.0 else 0.0
        out[i] = old[i] + (new[i] - old[i]) * share


@njit(cache=True, error_model="numpy")
def _weights_of(old_count: Array, new_count: Array, out: Array) -> None:
    for i in range(out.size):
        count = old_count[i] + new_count[i]
        out[i] = old_count[i] * (new_count[i] / count) if count > 0.0 else 0.0


@njit(cache=True, error_model="numpy")
def _join_products(
    old: Array, new: Array, old_x: Array, new_x: Array, old_y: Array, new_y: Array, weight: Array, out: Array
) -> None:
    for i in range(out.size):
        out[i] = old[i] + new[i] + (new_x[i] - old_x[i]) * (new_y[i] - old_y[i]) * weight[i]


@njit(cache=True, error_model="numpy")
def _join(older: Array, recent: Array, lag: int, have: int, weight: Array, complete: bool, out: Array) -> None:
    """Join two states: rows count, mean of x, sum of dx dx, and for pairs mean of y, sums of dy dy and of dx dy.

    The older part has ``have`` bars, the recent one ``lag``; ``complete``: nothing is missing in either.
    """
    end = out.shape[1] - lag
    old_x, new_x = older[1, :end], recent[1, lag:]
    if complete:
        share = lag / (lag + have)
        weight[:] = have * share
        _join_means(old_x, new_x, share, out[1, lag:])
    else:
        _weights_of(older[0, :end], recent[0, lag:], weight[lag:])
        _join_means_of(old_x, new_x, older[0, :end], recent[0, lag:], out[1, lag:])
    part = weight[lag:]
    _join_sums(older[0], recent[0], lag, out[0])
    _join_products(older[2, :end], recent[2, lag:], old_x, new_x, old_x, new_x, part, out[2, lag:])
    if out.shape[0] > 3:
        old_y, new_y = older[3, :end], recent[3, lag:]
        if complete:
            _join_means(old_y, new_y, share, out[3, lag:])
        else:
            _join_means_of(old_y, new_y, older[0, :end], recent[0, lag:], out[3, lag:])
        _join_products(older[4, :end], recent[4, lag:], old_y, new_y, old_y, new_y, part, out[4, lag:])
        _join_products(older[5, :end], recent[5, lag:], old_x, new_x, old_y, new_y, part, out[5, lag:])


@njit(cache=True, error_model="numpy")
def states(x: Array, y: Array, mask: Array, n: int) -> Array:
    """Return the state of every window (see :func:`_join`): 6 rows, or 3 if ``y`` is empty; 0 where it does not fit.

    ``x`` and ``y`` are zero where ``mask`` is.
    """
    rows = 6 if y.size else 3
    out = np.zeros((rows, x.size))
    for begin in range(n - 1, x.size, _WIDE):
        first, end = begin - n + 1, min(begin + _WIDE, x.size)
        piece = np.zeros((rows, end - first))  # states of ``size`` bars
        piece[0] = mask[first:end]
        piece[1] = x[first:end]
        if rows > 3:
            piece[3] = y[first:end]
        complete = piece[0].sum() == piece.shape[1]
        other, joined, weight = np.empty(piece.shape), np.empty(piece.shape), np.empty(piece.shape[1])
        have, size = n - n, n - n + 1
        left = n
        while left:
            if left & 1:
                if have:
                    _join(piece, joined, have, size, weight, complete, other)
                    joined, other = other, joined
                else:
                    joined[:] = piece
                have += size
            left >>= 1
            if left:
                _join(piece, piece, size, size, weight, complete, other)
                piece, other = other, piece
                size *= 2
        for row in range(rows):
            out[row, begin:end] = joined[row, n - 1 :]
    return out


@njit(cache=True)
def _later(older: Array, recent: Array, lag: int, out: Array) -> None:
    old, new, both = older[: out.size - lag], recent[lag:], out[lag:]
    for i in range(both.size):
        both[i] = old[i] if old[i] > new[i] else new[i]


@njit(cache=True)
def greatest(x: Array, mask: Array, count: Array, n: int) -> Array:
    """Return the greatest finite value of every window, NaN where ``count`` is 0."""
    out = np.full(x.size, np.nan)
    for begin in range(n - 1, x.size, _WIDE):
        end = min(begin + _WIDE, x.size)
        there = mask[begin - n + 1 : end]
        top = x[begin - n + 1 : end].copy()  # greatest of ``size`` bars
        for i in range(top.size):
            top[i] = top[i] if there[i] == 1.0 else -np.inf
        other = np.empty(top.size)
        size = n - n + 1
        while 2 * size <= n:
            _later(top, top, size, other)
            top, other = other, top
            size *= 2
        if size < n:  # two stretches that overlap: the greatest of both is the greatest of all
            _later(top, top, n - size, other)
            top, other = other, top
        out[begin:end] = top[n - 1 :]
    for i in range(x.size):
        out[i] = out[i] if count[i] > 0.0 else np.nan
    return out
