"""A walk forward in numbers of rows, with scikit-learn's interface.

The walk forward that reports are made of counts in days (:mod:`mlbot_core.validation.splits`); this one fits
``cross_val_score``, grid searches and Optuna. Both purge by label interval.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlbot_core.errors import UsageError
from mlbot_core.validation.intervals import IntArray, LabelIntervals, check_embargo, labels_for, settled_by


@dataclass(frozen=True, eq=False)
class WalkForwardCV:
    """Train on labels that were settled, test on the rows that follow, step on.

    With labels of one length on a regular grid the rows are exactly those of skfolio's ``WalkForward``: a label of
    ``h`` bars and an embargo of ``e`` bars are its ``purged_size=h - 1 + e``.

    Parameters
    ----------
    train_size
        Training rows: of the latest ones that may be used, or at least that many where ``expanding``.
    test_size
        Rows of a test window.
    labels
        Label intervals of the rows that will be split; None if they come with each call as ``groups``, shape
        (rows, 2).
    expanding
        Train on everything known rather than on the latest ``train_size`` rows.
    embargo_ms
        Time before each test window in which no training label may end, ms.
    reduce_test
        Also test a last window that is shorter than ``test_size``.

    Raises
    ------
    UsageError
        If the parameters cannot be; when splitting, if the rows do not suffice for one window.

    Examples
    --------
    >>> hour = 3_600_000
    >>> t0 = np.arange(8) * hour
    >>> labels = LabelIntervals(t0, t0 + 2 * hour)
    >>> for train, test in WalkForwardCV(3, 2, labels).split(np.zeros((8, 1))):
    ...     print(train, test)
    [0 1 2] [4 5]
    [2 3 4] [6 7]
    >>> for train, test in WalkForwardCV(3, 2, labels, expanding=True, embargo_ms=hour).split(np.zeros((8, 1))):
    ...     print(train, test)
    [0 1 2] [5 6]
    """

    train_size: int
    test_size: int
    labels: LabelIntervals | None = None
    expanding: bool = False
    embargo_ms: int = 0
    reduce_test: bool = False

    def __post_init__(self) -> None:
        for name in ("train_size", "test_size"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
                raise UsageError(f"{name} is {size!r}; it is a number of rows, at least 1")
        object.__setattr__(self, "embargo_ms", check_embargo(self.embargo_ms))

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of test windows in these rows.

        Raises
        ------
        UsageError
            If no label intervals are known, or the rows do not suffice for one window.
        """
        return len(self._starts(labels_for(self.labels, X, y, groups, who="WalkForwardCV")))

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[IntArray, IntArray]]:
        """Yield (train, test) row numbers, int64, ascending, in the order of time.

        Parameters
        ----------
        X, y
            Data; only the number of rows is used.
        groups
            Label intervals of these rows, shape (rows, 2), in place of those given at construction.
        """
        labels = labels_for(self.labels, X, y, groups, who="WalkForwardCV")
        for start in self._starts(labels):
            usable = settled_by(labels.t0[:start], labels.t1[:start], int(labels.t0[start]) - self.embargo_ms)
            train = np.flatnonzero(usable).astype(np.int64)
            test = np.arange(start, min(start + self.test_size, len(labels)), dtype=np.int64)
            yield (train if self.expanding else train[-self.train_size :]), test

    def _starts(self, labels: LabelIntervals) -> range:
        n = len(labels)
        # How many labels were settled when each row's was decided; it never falls.
        settled = np.searchsorted(np.sort(labels.t1), labels.t0 - self.embargo_ms, side="right")
        first = int(np.searchsorted(settled, self.train_size, side="left"))
        last = n if self.reduce_test else n - self.test_size + 1
        if first >= last:
            raise UsageError(
                f"{n} rows make no window: {self.train_size} settled training labels are first known at row {first}, "
                f"and {self.test_size} test rows must follow; use smaller windows or more history"
            )
        return range(first, last, self.test_size)
