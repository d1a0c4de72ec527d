"""Trailing normalisation: a value against its own last bars, never against the whole series.

The order statistics of a sliding window come from a Fenwick tree (Fenwick, 1994, A new data structure for cumulative
frequency tables, SPE 24) over the ranks of two windows' worth of values, made anew every window: O(log n) a bar for a
window of n. Ranks are integers and quantiles are computed from the window's own values, so that no bit depends on
where the series was cut.

The rule for missing values is that of the kernels: NaN where the window does not fit, where its last value is not
finite, or where fewer than 80 % of its values are; otherwise the finite ones are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.features import kernels

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Normalise = Literal["zscore", "rank", "robust", "winsor", "none"]

ZSCORE_CLIP: Final = 8.0
"""Trailing z-scores are clipped to this many deviations either way, so that one crash bar or one corrupt value cannot
dominate a split; a genuine 8-sigma bar still stands out as one."""

WINSOR_TAIL: Final = 0.01
"""Share of the window beyond each of the two quantiles that a winsorised value is held to."""

_IQR_OF_NORMAL = 1.3489795003921634  # between the quartiles of a standard normal distribution
_FLAT = 1e-12  # a spread below this share of the level is rounding, not movement


@njit(cache=True)
def _add(tree: IntArray, position: int, by: int) -> None:
    at = position + 1
    while at < tree.size:
        tree[at] += by
        at += at & -at


@njit(cache=True)
def _below(tree: IntArray, position: int) -> int:
    """Return how many values stand at positions before this one."""
    total = 0
    at = position
    while at > 0:
        total += tree[at]
        at -= at & -at
    return total


@njit(cache=True)
def _kth(tree: IntArray, k: int) -> int:
    """Return the position of the k-th least value, k from 1."""
    step = 1
    while 2 * step < tree.size:
        step *= 2
    at = 0
    left = k
    while step > 0:
        if at + step < tree.size and tree[at + step] < left:
            at += step
            left -= tree[at]
        step //= 2
    return at


@njit(cache=True)
def _positions(x: Array, first: int, end: int) -> tuple[Array, IntArray]:
    """Return the distinct finite values of ``x[first:end]``, ascending, and each bar's place among them (-1: none)."""
    finite = np.empty(end - first)
    many = 0
    for i in range(first, end):
        if np.isfinite(x[i]):
            finite[many] = x[i]
            many += 1
    ordered = np.sort(finite[:many])
    distinct = 0
    for i in range(many):
        if i == 0 or ordered[i] != ordered[distinct - 1]:
            ordered[distinct] = ordered[i]
            distinct += 1
    ladder = ordered[:distinct]
    place = np.full(end - first, -1, dtype=np.int64)
    for i in range(first, end):
        if np.isfinite(x[i]):
            place[i - first] = np.searchsorted(ladder, x[i])
    return ladder, place


@njit(cache=True)
def _counts(x: Array, n: int) -> IntArray:
    """Return the finite values in each window, 0 where the window is unusable."""
    out = np.zeros(x.size, dtype=np.int64)
    finite = 0
    for i in range(x.size):
        if np.isfinite(x[i]):
            finite += 1
        if i >= n and np.isfinite(x[i - n]):
            finite -= 1
        if i >= n - 1 and np.isfinite(x[i]) and 10 * finite >= 8 * n:
            out[i] = finite
    return out


@njit(cache=True)
def rank(x: Array, n: int) -> Array:
    """Return the rank of the last value among the window's finite ones: 0 the least, 1 the greatest, ties halved."""
    out = np.full(x.size, np.nan)
    count = _counts(x, n)
    for begin in range(n - 1, x.size, n):
        first, end = begin - n + 1, min(begin + n, x.size)
        ladder, place = _positions(x, first, end)
        tree = np.zeros(ladder.size + 1, dtype=np.int64)
        for i in range(first, end):
            at = place[i - first]
            if at >= 0:
                _add(tree, at, 1)
            if i >= begin:
                if count[i] >= 2:
                    less = _below(tree, at)
                    equal = _below(tree, at + 1) - less - 1
                    out[i] = (less + 0.5 * equal) / (count[i] - 1)
                gone = place[i - n + 1 - first]
                if gone >= 0:
                    _add(tree, gone, -1)
    return out


@njit(cache=True)
def quantiles(x: Array, n: int, shares: Array) -> Array:
    """Return quantiles of every window's finite values, linear between neighbours; shape (shares, bars)."""
    out = np.full((shares.size, x.size), np.nan)
    count = _counts(x, n)
    for begin in range(n - 1, x.size, n):
        first, end = begin - n + 1, min(begin + n, x.size)
        ladder, place = _positions(x, first, end)
        tree = np.zeros(ladder.size + 1, dtype=np.int64)
        for i in range(first, end):
            if place[i - first] >= 0:
                _add(tree, place[i - first], 1)
            if i >= begin:
                for q in range(shares.size):
                    if count[i] > 0:
                        height = shares[q] * (count[i] - 1)
                        k = math.floor(height)
                        low = ladder[_kth(tree, k + 1)]
                        high = ladder[_kth(tree, min(k + 2, count[i]))]
                        out[q, i] = low + (height - k) * (high - low)
                if place[i - n + 1 - first] >= 0:
                    _add(tree, place[i - n + 1 - first], -1)
    return out


@njit(cache=True)
def robust(x: Array, n: int) -> Array:
    """Return the distance from the window's median in robust deviations (interquartile range / 1.349).

    In a window whose middle half is flat: 0 at the median, ``ZSCORE_CLIP`` either way beside it.
    """
    found = quantiles(x, n, np.array([0.25, 0.5, 0.75]))
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        middle = found[1, i]
        if np.isfinite(middle):
            spread = (found[2, i] - found[0, i]) / _IQR_OF_NORMAL
            if spread > _FLAT * abs(middle):
                out[i] = (x[i] - middle) / spread
            else:
                out[i] = ZSCORE_CLIP * np.sign(x[i] - middle)
    return out


@njit(cache=True)
def winsorise(x: Array, n: int, tail: float) -> Array:
    """Return the value held between the window's quantiles ``tail`` and ``1 - tail``, in its own unit."""
    found = quantiles(x, n, np.array([tail, 1.0 - tail]))
    out = np.full(x.size, np.nan)
    for i in range(x.size):
        if np.isfinite(found[0, i]):
            out[i] = min(max(x[i], found[0, i]), found[1, i])
    return out


@njit(cache=True)
def clip(x: Array, bound: float) -> None:
    """Hold values within a bound either way, in place."""
    for i in range(x.size):
        x[i] = -bound if x[i] < -bound else (bound if x[i] > bound else x[i])


def scale_zscore(x: Array, n: int) -> Array:
    """Return the trailing z-score, clipped."""
    score = kernels.zscore(x, n)
    clip(score, ZSCORE_CLIP)
    return score


def scale_robust(x: Array, n: int) -> Array:
    """Return the trailing robust score, clipped."""
    score = robust(x, n)
    clip(score, ZSCORE_CLIP)
    return score


def scale_rank(x: Array, n: int) -> Array:
    """Return the trailing rank, 0 to 1."""
    return np.asarray(rank(x, n), dtype=np.float64)


def scale_winsor(x: Array, n: int) -> Array:
    """Return the value held to its trailing 1 % and 99 % quantiles."""
    return np.asarray(winsorise(x, n, WINSOR_TAIL), dtype=np.float64)


NORMALISERS: Final[Mapping[str, Callable[[Array, int], Array]]] = {
    "zscore": scale_zscore,
    "rank": scale_rank,
    "robust": scale_robust,
    "winsor": scale_winsor,
}
"""What ``normalise`` of a feature stands for; ``none`` has no entry."""

DESCRIPTIONS: Final[Mapping[str, str]] = {
    "zscore": f"trailing z-score, clipped at {ZSCORE_CLIP:g}",
    "rank": "trailing rank, 0 to 1",
    "robust": f"trailing distance from the median in robust deviations, clipped at {ZSCORE_CLIP:g}",
    "winsor": f"held to its trailing {WINSOR_TAIL:.0%} and {1 - WINSOR_TAIL:.0%} quantiles",
    "none": "as it is",
}
