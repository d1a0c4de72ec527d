"""Label intervals, and the one rule by which every split purges.

A label is decided at ``t0`` and settled at ``t1``: it looks at what happens in ``(t0, t1]``. Two labels overlap when
these half-open intervals share an instant; labels that merely touch share none, because the return of the first ends
where that of the second begins. Training on a row whose label overlaps a tested one is training on the answer.

All times are UTC ms, int64. An unknown ``t1`` is -1.

Sources
-------
M. Lopez de Prado, "Advances in Financial Machine Learning", Wiley 2018, sections 7.4.1 (purging) and 7.4.2 (embargo).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlbot_core.errors import UsageError
from mlbot_core.timeframe import Timeframe

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Later than any time that occurs, and far enough from the end of int64 for an embargo to be added.
FOREVER: Final = 2**62


@dataclass(frozen=True, eq=False)
class LabelIntervals:
    """When each row's label was decided and when it was settled.

    Parameters
    ----------
    t0
        UTC ms, shape (rows,), ascending; rows of several symbols may share an instant.
    t1
        UTC ms, shape (rows,), each after its ``t0``.

    Raises
    ------
    UsageError
        If the two do not belong together, are not in order, or a label is unknown.

    Examples
    --------
    >>> labels = LabelIntervals([0, 10, 20], [15, 25, 35])
    >>> len(labels)
    3
    >>> labels.take([1, 2]).t1.tolist()
    [25, 35]
    """

    t0: IntArray
    t1: IntArray

    def __post_init__(self) -> None:
        begin, end = check_intervals(self.t0, self.t1, repeats=True)
        if (end < 0).any():
            at = int(np.argmax(end < 0))
            raise UsageError(
                f"the label of row {at} is unknown (t1 = {int(end[at])}); leave out rows without a settled label "
                "before splitting, they can neither train nor be scored"
            )
        object.__setattr__(self, "t0", begin)
        object.__setattr__(self, "t1", end)

    @classmethod
    def of_groups(cls, groups: Any) -> LabelIntervals:
        """Read the intervals from scikit-learn's ``groups``: shape (rows, 2), the columns ``t0`` and ``t1``.

        Raises
        ------
        UsageError
            If the shape is another one.
        """
        pairs = np.asarray(groups)
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise UsageError(
                f"groups have shape {pairs.shape}; pass the label intervals as (rows, 2), "
                "for example groups=np.column_stack([t0, t1])"
            )
        return cls(pairs[:, 0], pairs[:, 1])

    def take(self, rows: npt.ArrayLike) -> LabelIntervals:
        """Return the intervals of some rows, in the order asked for."""
        at = np.asarray(rows, dtype=np.int64)
        return LabelIntervals(self.t0[at], self.t1[at])

    def __len__(self) -> int:
        return len(self.t0)

    def __repr__(self) -> str:
        return f"LabelIntervals({len(self)} rows)"


def check_intervals(t0: npt.ArrayLike, t1: npt.ArrayLike, *, repeats: bool = False) -> tuple[IntArray, IntArray]:
    """Return both ends as int64, after checking that they are intervals in order.

    Parameters
    ----------
    t0, t1
        UTC ms, shape (rows,); ``t1`` is -1 where unknown.
    repeats
        Whether several rows may begin at one instant.

    Raises
    ------
    UsageError
        If the lengths differ, ``t0`` does not ascend, or a label does not end after it begins.
    """
    begin = _whole("t0", t0)
    end = _whole("t1", t1)
    if begin.shape != end.shape or begin.ndim != 1:
        raise UsageError(f"t0 and t1 must be of one length, got shapes {begin.shape} and {end.shape}")
    steps = np.diff(begin)
    backwards = steps < 0 if repeats else steps <= 0
    if backwards.any():
        raise UsageError(f"t0 must ascend; it does not after {int(begin[:-1][backwards][0])}; sort the rows by t0")
    wrong = (end >= 0) & (end <= begin)
    if wrong.any():
        raise UsageError(f"the label that begins at {int(begin[wrong][0])} ends at {int(end[wrong][0])}, not after it")
    return begin, end


def labels_for(
    known: LabelIntervals | None, x: Any = None, y: Any = None, groups: Any = None, *, who: str = "this splitter"
) -> LabelIntervals:
    """Return the label intervals that belong to the rows of ``x``.

    Parameters
    ----------
    known
        Intervals given to the splitter when it was made.
    x, y
        The data to split; only the number of rows is used.
    groups
        Intervals given for this call, shape (rows, 2); they go before ``known``, so that a splitter can be used on
        subsets (nested cross-validation).
    who
        Name for the messages.

    Raises
    ------
    UsageError
        If there are no intervals, or not as many as rows.
    """
    labels = known if groups is None else LabelIntervals.of_groups(groups)
    if labels is None:
        raise UsageError(
            f"{who} purges by label interval and was given none; make it with labels=LabelIntervals(t0, t1), "
            "or pass groups=np.column_stack([t0, t1])"
        )
    rows = _rows_of(x if x is not None else y)
    if rows is not None and rows != len(labels):
        raise UsageError(
            f"{who} has the label intervals of {len(labels)} rows and is asked to split {rows}; "
            "for a subset pass the subset's intervals as groups=np.column_stack([t0, t1])"
        )
    return labels


def embargo_of(bars: int, timeframe: Timeframe) -> int:
    """Return the length of an embargo of so many bars, in ms.

    Raises
    ------
    UsageError
        If the number is negative.

    Examples
    --------
    >>> embargo_of(3, Timeframe.parse("2h"))
    21600000
    """
    if bars < 0:
        raise UsageError(f"an embargo of {bars} bars; it must be 0 or more")
    return bars * timeframe.ms


def check_embargo(embargo_ms: int) -> int:
    """Return the embargo, after checking that it is a number of ms that makes sense.

    Raises
    ------
    UsageError
        If it is negative or not whole.
    """
    if isinstance(embargo_ms, bool) or not isinstance(embargo_ms, int | np.integer) or embargo_ms < 0:
        raise UsageError(
            f"embargo_ms is {embargo_ms!r}; it is a whole number of milliseconds, 0 or more "
            "(embargo_of(bars, timeframe) converts bars)"
        )
    return int(embargo_ms)


def merge(begin: IntArray, end: IntArray) -> tuple[IntArray, IntArray]:
    """Return the union of intervals as disjoint ones in order; O(n log n), O(n) where ``begin`` is sorted.

    Examples
    --------
    >>> spans = merge(np.array([0, 5, 20]), np.array([8, 6, 25]))
    >>> [s.tolist() for s in spans]
    [[0, 20], [8, 25]]
    """
    if len(begin) == 0:
        return begin, end
    if (np.diff(begin) < 0).any():
        order = np.argsort(begin, kind="stable")
        begin, end = begin[order], end[order]
    reach = np.maximum.accumulate(end)
    first = np.r_[True, begin[1:] > reach[:-1]]
    last = np.r_[first[1:], True]
    return begin[first], reach[last]


def overlaps(t0: IntArray, t1: IntArray, span_begin: IntArray, span_end: IntArray) -> BoolArray:
    """Return which of the labels ``(t0, t1]`` share an instant with one of the spans.

    This is the one comparison that every purge and embargo goes through.

    Parameters
    ----------
    t0, t1
        Labels, UTC ms, shape (rows,).
    span_begin, span_end
        Disjoint half-open spans ``(begin, end]`` in order, as :func:`merge` returns them.

    Examples
    --------
    >>> overlaps(np.array([0, 4, 10]), np.array([4, 6, 12]), np.array([5]), np.array([10])).tolist()
    [False, True, False]
    """
    if len(span_begin) == 0:
        return np.zeros(len(t0), dtype=np.bool_)
    # The last span that begins before the label ends; the earlier ones end before it begins.
    at = np.searchsorted(span_begin, t1, side="left") - 1
    return (at >= 0) & (span_end[np.maximum(at, 0)] > t0)


def settled_by(t0: IntArray, t1: IntArray, cutoff_ms: int) -> BoolArray:
    """Return which labels are known and look at nothing after ``cutoff_ms``: the purge of a walk forward."""
    after = np.array([cutoff_ms], dtype=np.int64), np.array([FOREVER], dtype=np.int64)
    # A label that begins after the cutoff cannot have been settled by it.
    return (t1 >= 0) & ~overlaps(t0, t1, *after)


def purge(train: IntArray, test: IntArray, t0: IntArray, t1: IntArray, embargo_ms: int = 0) -> IntArray:
    """Return the training rows that may be used beside the test rows; O(n log n).

    A training row goes if its label is unknown, overlaps the label of a test row, or begins less than ``embargo_ms``
    after one has ended.

    Parameters
    ----------
    train, test
        Row numbers, int64.
    t0, t1
        Labels of all rows, UTC ms; those of the test rows are known.
    embargo_ms
        Time after each test label in which no training label may begin, ms.

    Returns
    -------
    ndarray
        The rows of ``train`` that remain, int64, in their order.

    Examples
    --------
    Labels of two bars of 10 ms; row 2 is tested. Rows 1 and 3 overlap it; an embargo of 15 ms also takes rows 4 and 5.

    >>> t0 = np.arange(7) * 10
    >>> train, test = np.array([0, 1, 3, 4, 5, 6]), np.array([2])
    >>> purge(train, test, t0, t0 + 20).tolist()
    [0, 4, 5, 6]
    >>> purge(train, test, t0, t0 + 20, embargo_ms=15).tolist()
    [0, 6]
    """
    spans = merge(t0[test], np.minimum(t1[test], FOREVER) + embargo_ms)
    begin, end = t0[train], t1[train]
    return train[(end >= 0) & ~overlaps(begin, end, *spans)]


def _rows_of(data: Any) -> int | None:
    if data is None:
        return None
    shape = getattr(data, "shape", None)
    return int(shape[0]) if shape is not None else len(data)


def _whole(name: str, values: npt.ArrayLike) -> IntArray:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise UsageError(
            f"{name} holds {array.dtype} numbers; times are UTC milliseconds as int64 (-1 for an unknown end)"
        )
    return array.astype(np.int64)
