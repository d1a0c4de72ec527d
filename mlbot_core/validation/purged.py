"""K-fold cross-validation, purged by label interval."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlbot_core.errors import UsageError
from mlbot_core.validation.intervals import IntArray, LabelIntervals, check_embargo, labels_for, purge


@dataclass(frozen=True, eq=False)
class PurgedKFold:
    """Test each of ``n_splits`` consecutive stretches once; train on what does not overlap it.

    The test folds are those of scikit-learn's ``KFold`` without shuffling. From the training rows go all whose label
    overlaps a test label, and those whose label begins within the embargo after one (Lopez de Prado 2018, chapter 7).

    Parameters
    ----------
    n_splits
        Folds, at least 2.
    labels
        Label intervals of the rows that will be split; None if they come with each call as ``groups``, shape
        (rows, 2).
    embargo_ms
        Time after each test label in which no training label may begin, ms; see
        :func:`~mlbot_core.validation.intervals.embargo_of`.

    Raises
    ------
    UsageError
        If the parameters cannot be; when splitting, if there are fewer rows than folds or nothing is left to train on.

    Examples
    --------
    Six hourly rows whose labels take two hours:

    >>> hour = 3_600_000
    >>> t0 = np.arange(6) * hour
    >>> cv = PurgedKFold(3, LabelIntervals(t0, t0 + 2 * hour))
    >>> for train, test in cv.split(np.zeros((6, 1))):
    ...     print(train, test)
    [3 4 5] [0 1]
    [0 5] [2 3]
    [0 1 2] [4 5]
    """

    n_splits: int = 5
    labels: LabelIntervals | None = None
    embargo_ms: int = 0

    def __post_init__(self) -> None:
        if self.n_splits < 2:
            raise UsageError(f"n_splits is {self.n_splits}; one part is tested and the others train, so at least 2")
        object.__setattr__(self, "embargo_ms", check_embargo(self.embargo_ms))

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:  # noqa: ARG002
        """Return the number of folds; the arguments are scikit-learn's and do not matter."""
        return self.n_splits

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[IntArray, IntArray]]:
        """Yield (train, test) row numbers, int64, ascending.

        Parameters
        ----------
        X, y
            Data; only the number of rows is used.
        groups
            Label intervals of these rows, shape (rows, 2), in place of those given at construction.
        """
        labels = labels_for(self.labels, X, y, groups, who="PurgedKFold")
        n = len(labels)
        if n < self.n_splits:
            raise UsageError(f"{n} rows cannot make {self.n_splits} folds; use fewer folds")
        rows = np.arange(n, dtype=np.int64)
        for number, test in enumerate(np.array_split(rows, self.n_splits)):
            train = np.r_[rows[: test[0]], rows[test[-1] + 1 :]]
            yield kept(train, test, labels, self.embargo_ms, number), test


def kept(train: IntArray, test: IntArray, labels: LabelIntervals, embargo_ms: int, number: int) -> IntArray:
    """Return the purged training rows of one split.

    Raises
    ------
    UsageError
        If none is left.
    """
    left = purge(train, test, labels.t0, labels.t1, embargo_ms)
    if len(left) == 0:
        longest = int((labels.t1 - labels.t0).max())
        raise UsageError(
            f"split {number}: all {len(train)} training rows overlap the test labels (the longest label takes "
            f"{longest} ms, the embargo {embargo_ms} ms); use fewer folds, shorter labels or a shorter embargo"
        )
    return left
