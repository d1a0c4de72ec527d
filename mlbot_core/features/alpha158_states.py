"""Sufficient statistics of the windows of Alpha158, block by block: what 60 bars need is two windows of 30.

A block is a stretch of outputs with :data:`REACH` bars before it; a position in it is counted from the first of these.
A *state* is a matrix (rows, positions) that holds the statistics of one window a position. The shortest window's is
computed straight from the values, oldest first; a longer one's is joined from that of its recent part and that of its
older part, which ends ``lag`` positions before. Means and squares are joined by the pairwise formulas of Chan, Golub
and LeVeque (1983), Algorithms for computing the sample variance, The American Statistician 37: no cancellation, and
nothing carried from bar to bar. So every output rests on its own window alone, added up in an order that the window's
length fixes: neither the blocks nor a cut of the series changes a bit of it.

Values that are not finite are left out: they enter as zero with a ``there`` of zero, as does what lies before the
series. The inner loops run over neighbouring positions and write one row each, which is what the compiler vectorises.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]

SHORTEST = 5
LENGTHS = (5, 10, 20, 30, 60)
OLDER = (0, 0, 1, 2, 3)
"""Which of the lengths the older part of each window has (the shortest is not joined)."""
RECENT = (0, 0, 1, 1, 3)
"""Which of the lengths its recent part has."""
REACH = LENGTHS[-1] - 1
BLOCK = 1024


@njit(cache=True, error_model="numpy")
def room(rows: int) -> Array:
    """Return room for the states of one block, shape (lengths, rows, positions)."""
    return np.zeros((len(LENGTHS), rows, BLOCK + REACH))


@njit(cache=True, error_model="numpy")
def load(x: Array, begin: int, values: Array, there: Array) -> None:
    """Take a block of ``x`` whose outputs begin at ``begin``: its finite values, else zero, and which are."""
    before = max(0, REACH - begin)
    own = x[begin - REACH + before : min(begin + BLOCK, x.size)]
    for part in (values, there):
        part[:before] = 0.0
        part[before + own.size :] = 0.0
    value, known = values[before : before + own.size], there[before : before + own.size]
    for q in range(own.size):
        finite = own[q] - own[q] == 0.0
        value[q] = own[q] if finite else 0.0
        known[q] = 1.0 if finite else 0.0


@njit(cache=True, error_model="numpy")
def both(x: Array, x_there: Array, y: Array, y_there: Array) -> None:
    """Leave only the pairs of which both are there; afterwards ``x_there`` says which."""
    for q in range(x.size):
        x_there[q] *= y_there[q]
    for q in range(x.size):
        x[q] = x[q] if x_there[q] == 1.0 else 0.0
    for q in range(y.size):
        y[q] = y[q] if x_there[q] == 1.0 else 0.0


@njit(cache=True, error_model="numpy")
def _sum(x: Array, out: Array) -> None:
    """Add up the shortest window, oldest value first."""
    out[:] = 0.0
    acc = out[SHORTEST - 1 :]
    for age in range(SHORTEST - 1, -1, -1):
        value = x[SHORTEST - 1 - age : x.size - age]
        for q in range(acc.size):
            acc[q] += value[q]


@njit(cache=True, error_model="numpy")
def _mean(x: Array, count: Array, out: Array) -> None:
    _sum(x, out)
    for q in range(out.size):
        out[q] = out[q] / count[q] if count[q] > 0.0 else 0.0


@njit(cache=True, error_model="numpy")
def _product(x: Array, mean_x: Array, y: Array, mean_y: Array, there: Array, out: Array) -> None:
    """Add up the products of the deviations of x and y over the shortest window."""
    out[:] = 0.0
    acc, middle_x, middle_y = out[SHORTEST - 1 :], mean_x[SHORTEST - 1 :], mean_y[SHORTEST - 1 :]
    for age in range(SHORTEST - 1, -1, -1):
        first, last = SHORTEST - 1 - age, x.size - age
        value_x, value_y, known = x[first:last], y[first:last], there[first:last]
        for q in range(acc.size):
            acc[q] += ((value_x[q] - middle_x[q]) * known[q]) * ((value_y[q] - middle_y[q]) * known[q])


@njit(cache=True, error_model="numpy")
def _time_sum(there: Array, out: Array) -> None:
    """Add up the times of the shortest window's values: 0 at its end, -1 before."""
    out[:] = 0.0
    acc = out[SHORTEST - 1 :]
    for age in range(SHORTEST - 1, -1, -1):
        known = there[SHORTEST - 1 - age : there.size - age]
        for q in range(acc.size):
            acc[q] -= age * known[q]


@njit(cache=True, error_model="numpy")
def _time_product(mean_x: Array, y: Array, mean_y: Array, there: Array, squared: bool, out: Array) -> None:
    """Add up the squared deviations of time over the shortest window, or its products with those of y."""
    out[:] = 0.0
    acc, middle_x, middle_y = out[SHORTEST - 1 :], mean_x[SHORTEST - 1 :], mean_y[SHORTEST - 1 :]
    for age in range(SHORTEST - 1, -1, -1):
        value, known = y[SHORTEST - 1 - age : y.size - age], there[SHORTEST - 1 - age : y.size - age]
        if squared:
            for q in range(acc.size):
                d = (-age - middle_x[q]) * known[q]
                acc[q] += d * d
        else:
            for q in range(acc.size):
                acc[q] += ((-age - middle_x[q]) * known[q]) * ((value[q] - middle_y[q]) * known[q])


@njit(cache=True, error_model="numpy")
def _add(older: Array, recent: Array, lag: int, out: Array) -> None:
    old, new, sum_ = older[: out.size - lag], recent[lag:], out[lag:]
    for q in range(sum_.size):
        sum_[q] = old[q] + new[q]


@njit(cache=True, error_model="numpy")
def _share(recent: Array, count: Array, out: Array) -> None:
    """Return the recent part's share of a window's values."""
    for q in range(out.size):
        out[q] = recent[q] / count[q] if count[q] > 0.0 else 0.0


@njit(cache=True, error_model="numpy")
def _join_mean(older: Array, recent: Array, lag: int, shift: float, share: Array, count: Array, out: Array) -> None:
    old, new, part = older[: out.size - lag], recent[lag:], share[lag:]
    many, mean = count[lag:], out[lag:]
    for q in range(mean.size):
        before = old[q] - shift
        joined = before + (new[q] - before) * part[q]
        mean[q] = joined if many[q] > 0.0 else 0.0


@njit(cache=True, error_model="numpy")
def _join_squares(older: Array, recent: Array, at: int, lag: int, share: Array, out: Array) -> None:
    """Join row ``at`` of two states, squared deviations of the row before it; row 0 counts."""
    end = out.shape[1] - lag
    old, new, part = older[at, :end], recent[at, lag:], share[lag:]
    old_mean, new_mean, before = older[at - 1, :end], recent[at - 1, lag:], older[0, :end]
    joined = out[at, lag:]
    for q in range(joined.size):
        step = new_mean[q] - old_mean[q]
        joined[q] = old[q] + new[q] + step * step * before[q] * part[q]


@njit(cache=True, error_model="numpy")
def _join_product(
    older: Array, recent: Array, at: int, a: int, shift_a: float, b: int, shift_b: float, lag: int, share: Array,
    out: Array,
) -> None:  # fmt: skip
    """Join row ``at`` of two states, a sum of products of the deviations of rows ``a`` and ``b``; row 0 counts."""
    end = out.shape[1] - lag
    old, new, part, before = older[at, :end], recent[at, lag:], share[lag:], older[0, :end]
    old_a, new_a, old_b, new_b = older[a, :end], recent[a, lag:], older[b, :end], recent[b, lag:]
    joined = out[at, lag:]
    for q in range(joined.size):
        step_a = new_a[q] - (old_a[q] - shift_a)
        step_b = new_b[q] - (old_b[q] - shift_b)
        joined[q] = old[q] + new[q] + step_a * step_b * (before[q] * part[q])


@njit(cache=True, error_model="numpy")
def moments(x: Array, there: Array, states: Array, share: Array) -> None:
    """Compute count, mean and sum of squared deviations of every window."""
    first = states[0]
    _sum(there, first[0])
    _mean(x, first[0], first[1])
    _product(x, first[1], x, first[1], there, first[2])
    for k in range(1, len(LENGTHS)):
        older, recent, out, lag = states[OLDER[k]], states[RECENT[k]], states[k], LENGTHS[RECENT[k]]
        _add(older[0], recent[0], lag, out[0])
        _share(recent[0], out[0], share)
        _join_mean(older[1], recent[1], lag, 0.0, share, out[0], out[1])
        _join_squares(older, recent, 2, lag, share, out)


@njit(cache=True, error_model="numpy")
def _join_pairs(states: Array, share: Array, step: float) -> None:
    for k in range(1, len(LENGTHS)):
        older, recent, out, lag = states[OLDER[k]], states[RECENT[k]], states[k], LENGTHS[RECENT[k]]
        shift = step * lag
        _add(older[0], recent[0], lag, out[0])
        _share(recent[0], out[0], share)
        _join_mean(older[1], recent[1], lag, shift, share, out[0], out[1])
        _join_mean(older[2], recent[2], lag, 0.0, share, out[0], out[2])
        _join_product(older, recent, 3, 1, shift, 1, shift, lag, share, out)
        _join_product(older, recent, 4, 2, 0.0, 2, 0.0, lag, share, out)
        _join_product(older, recent, 5, 1, shift, 2, 0.0, lag, share, out)


@njit(cache=True, error_model="numpy")
def pairs(x: Array, y: Array, there: Array, states: Array, share: Array) -> None:
    """Compute count, means of x and y, sums of dx dx, dy dy and dx dy of every window."""
    first = states[0]
    _sum(there, first[0])
    _mean(x, first[0], first[1])
    _mean(y, first[0], first[2])
    _product(x, first[1], x, first[1], there, first[3])
    _product(y, first[2], y, first[2], there, first[4])
    _product(x, first[1], y, first[2], there, first[5])
    _join_pairs(states, share, 0.0)


@njit(cache=True, error_model="numpy")
def trend(y: Array, there: Array, states: Array, share: Array) -> None:
    """Compute what :func:`pairs` does, of ``y`` against time: x is 0 at the window's end, -1 before."""
    first = states[0]
    _sum(there, first[0])
    _time_sum(there, first[1])
    for q in range(first.shape[1]):
        first[1, q] = first[1, q] / first[0, q] if first[0, q] > 0.0 else 0.0
    _mean(y, first[0], first[2])
    _time_product(first[1], y, first[2], there, True, first[3])
    _product(y, first[2], y, first[2], there, first[4])
    _time_product(first[1], y, first[2], there, False, first[5])
    _join_pairs(states, share, 1.0)


@njit(cache=True, error_model="numpy")
def moves(change: Array, there: Array, states: Array, part: Array) -> None:
    """Compute count, sum of rises, sum of falls (both positive), number of rises, number of falls of every window."""
    first = states[0]
    _sum(there, first[0])
    for row in range(1, 5):
        for q in range(change.size):
            size = change[q] if row % 2 == 1 else -change[q]
            amount = size if row < 3 else 1.0
            part[q] = amount if size > 0.0 else 0.0
        _sum(part, first[row])
    for k in range(1, len(LENGTHS)):
        for row in range(5):
            _add(states[OLDER[k], row], states[RECENT[k], row], LENGTHS[RECENT[k]], states[k, row])


@njit(cache=True, error_model="numpy")
def _first_best(x: Array, best: Array, age: Array) -> None:
    best[:] = -np.inf
    age[:] = 0.0
    top, when = best[SHORTEST - 1 :], age[SHORTEST - 1 :]
    for back in range(SHORTEST - 1, -1, -1):
        value = x[SHORTEST - 1 - back : x.size - back]
        for q in range(top.size):
            when[q] = back if value[q] > top[q] else when[q]
        for q in range(top.size):
            top[q] = value[q] if value[q] > top[q] else top[q]


@njit(cache=True, error_model="numpy")
def _later_best(older: Array, recent: Array, lag: int, out: Array) -> None:
    end = out.shape[1] - lag
    old, new, old_age, new_age = older[1, :end], recent[1, lag:], older[2, :end], recent[2, lag:]
    top, age = out[1, lag:], out[2, lag:]
    for q in range(age.size):
        age[q] = new_age[q] if new[q] > old[q] else old_age[q] + lag
    for q in range(top.size):
        top[q] = new[q] if new[q] > old[q] else old[q]


@njit(cache=True, error_model="numpy")
def maxima(x: Array, there: Array, states: Array, part: Array) -> None:
    """Compute count, maximum and its age (0 at the window's end; of equal values the oldest's) of every window."""
    first = states[0]
    _sum(there, first[0])
    for q in range(x.size):
        part[q] = x[q] if there[q] == 1.0 else -np.inf
    _first_best(part, first[1], first[2])
    for k in range(1, len(LENGTHS)):
        older, recent, lag = states[OLDER[k]], states[RECENT[k]], LENGTHS[RECENT[k]]
        _add(older[0], recent[0], lag, states[k, 0])
        _later_best(older, recent, lag, states[k])


@njit(cache=True, error_model="numpy")
def gate(count: Array, last: Array, n: int, early: int, out: Array) -> None:
    """Say with 1 or NaN where a window may be used: it fits, its last value is finite and 80 % of them are.

    Parameters
    ----------
    count
        Of the window's finite values, by output.
    last
        The column whose last value must be there.
    early
        Outputs at the beginning whose window does not fit.
    """
    for q in range(out.size):
        out[q] = 1.0 if 10.0 * count[q] >= 8.0 * n and last[q] - last[q] == 0.0 else np.nan
    out[: min(early, out.size)] = np.nan


@njit(cache=True, error_model="numpy")
def whole(there: Array) -> bool:
    """Return whether nothing is missing."""
    known = 0.0
    for q in range(there.size):
        known += there[q]
    return known == there.size
