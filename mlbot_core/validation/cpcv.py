"""Combinatorial purged cross-validation: many backtest paths from one history.

The history is cut into folds; every choice of ``n_test_folds`` of them is tested once, by a model trained on the
others. Each fold is then tested in many splits, and one forecast of every fold makes a path through the whole history:
a distribution of backtests where a walk forward gives one.

Sources
-------
M. Lopez de Prado, "Advances in Financial Machine Learning", Wiley 2018, section 12.4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlbot_core.errors import UsageError
from mlbot_core.validation.intervals import IntArray, LabelIntervals, check_embargo, labels_for
from mlbot_core.validation.purged import kept

# Each split is a model to train: more than this is a slip of the pen.
MAX_SPLITS: Final = 100_000


def backtest_paths(n_folds: int, n_test_folds: int) -> IntArray:
    """Return which split tests each fold on each path.

    Path ``p`` takes fold ``f`` from the ``p``-th split that tests it, so every (split, tested fold) is used by exactly
    one path.

    Parameters
    ----------
    n_folds, n_test_folds
        As in :class:`CombinatorialPurged`.

    Returns
    -------
    ndarray
        Split numbers, shape (paths, folds); there are ``C(n_folds, n_test_folds) * n_test_folds / n_folds`` paths.

    Examples
    --------
    >>> backtest_paths(3, 2)
    array([[0, 0, 1],
           [1, 2, 2]])
    """
    combinations = _combinations(n_folds, n_test_folds)
    tests = np.zeros((len(combinations), n_folds), dtype=np.bool_)
    tests[np.arange(len(combinations))[:, None], combinations] = True
    return np.array([np.flatnonzero(tests[:, fold]) for fold in range(n_folds)], dtype=np.int64).T


@dataclass(frozen=True, eq=False)
class CombinatorialPurged:
    """Test every combination of folds; train on the rest, purged by label interval.

    With labels of one length on a regular grid the rows are exactly those of skfolio's ``CombinatorialPurgedCV``: a
    label of ``h`` bars is its ``purged_size=h - 1``, an embargo of ``e`` bars its ``embargo_size=e``.

    Parameters
    ----------
    n_folds
        Consecutive folds of ``rows // n_folds`` rows; the last one takes what remains. At least 2.
    n_test_folds
        Folds tested at a time, at least 1 and fewer than ``n_folds``.
    labels
        Label intervals of the rows that will be split; None if they come with each call as ``groups``, shape
        (rows, 2).
    embargo_ms
        Time after each test label in which no training label may begin, ms.

    Raises
    ------
    UsageError
        If the parameters cannot be; when splitting, if there are fewer rows than folds or nothing is left to train on.

    Examples
    --------
    >>> hour = 3_600_000
    >>> t0 = np.arange(12) * hour
    >>> cv = CombinatorialPurged(3, 2, LabelIntervals(t0, t0 + 2 * hour))
    >>> for train, test in cv.split(np.zeros((12, 1))):
    ...     print(train, test)
    [ 9 10 11] [0 1 2 3 4 5 6 7]
    [5 6] [ 0  1  2  3  8  9 10 11]
    [0 1 2] [ 4  5  6  7  8  9 10 11]
    >>> cv.n_paths
    2
    """

    n_folds: int = 10
    n_test_folds: int = 2
    labels: LabelIntervals | None = None
    embargo_ms: int = 0

    def __post_init__(self) -> None:
        if self.n_folds < 2:
            raise UsageError(f"n_folds is {self.n_folds}; some are tested and the others train, so at least 2")
        if not 1 <= self.n_test_folds < self.n_folds:
            raise UsageError(
                f"n_test_folds is {self.n_test_folds} of {self.n_folds} folds; test at least one and leave at least "
                "one to train on"
            )
        splits = math.comb(self.n_folds, self.n_test_folds)
        if splits > MAX_SPLITS:
            raise UsageError(
                f"{self.n_test_folds} of {self.n_folds} folds make {splits:,} splits, each a model to train (at most "
                f"{MAX_SPLITS:,}); use fewer folds, or n_test_folds further from {self.n_folds / 2:g}"
            )
        object.__setattr__(self, "embargo_ms", check_embargo(self.embargo_ms))

    @property
    def n_paths(self) -> int:
        """Number of backtest paths; each row is tested that many times."""
        return math.comb(self.n_folds - 1, self.n_test_folds - 1)

    @property
    def test_folds(self) -> IntArray:
        """Folds that each split tests, shape (splits, n_test_folds)."""
        return _combinations(self.n_folds, self.n_test_folds)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:  # noqa: ARG002
        """Return the number of splits; the arguments are scikit-learn's and do not matter."""
        return math.comb(self.n_folds, self.n_test_folds)

    def fold_of(self, n_rows: int) -> IntArray:
        """Return the fold of each of ``n_rows`` rows.

        Raises
        ------
        UsageError
            If there are fewer rows than folds.
        """
        if n_rows < self.n_folds:
            raise UsageError(f"{n_rows} rows cannot make {self.n_folds} folds; use fewer folds")
        size = n_rows // self.n_folds
        return np.minimum(np.arange(n_rows, dtype=np.int64) // size, self.n_folds - 1)

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[IntArray, IntArray]]:
        """Yield (train, test) row numbers, int64, ascending, one pair a combination of folds.

        Parameters
        ----------
        X, y
            Data; only the number of rows is used.
        groups
            Label intervals of these rows, shape (rows, 2), in place of those given at construction.
        """
        labels = labels_for(self.labels, X, y, groups, who="CombinatorialPurged")
        fold = self.fold_of(len(labels))
        for number, tested in enumerate(self.test_folds):
            held = np.isin(fold, tested)
            test = np.flatnonzero(held).astype(np.int64)
            train = np.flatnonzero(~held).astype(np.int64)
            yield kept(train, test, labels, self.embargo_ms, number), test

    def recombine(self, outputs: Sequence[npt.ArrayLike]) -> npt.NDArray[Any]:
        """Put the forecasts of the splits together to backtest paths.

        Parameters
        ----------
        outputs
            One array a split, in the order of :meth:`split`, aligned with that split's test rows; further axes (for
            instance class probabilities) are kept.

        Returns
        -------
        ndarray
            Shape (paths, rows, ...): each path holds every row once.

        Raises
        ------
        UsageError
            If there is not one output a split, or their lengths cannot be those of the test rows.

        Examples
        --------
        >>> CombinatorialPurged(3, 2).recombine([["a"] * 4, ["b"] * 4, ["c"] * 4])
        array([['a', 'a', 'a', 'a', 'b', 'b'],
               ['b', 'b', 'c', 'c', 'c', 'c']], dtype='<U1')
        """
        arrays = [np.asarray(output) for output in outputs]
        splits = self.get_n_splits()
        if len(arrays) != splits:
            raise UsageError(f"{len(arrays)} outputs for {splits} splits; pass one a split, in the order of split()")
        # Every row is tested n_paths times over all splits.
        n_rows, rest = divmod(sum(len(a) for a in arrays), self.n_paths)
        fold = self.fold_of(n_rows)
        test_folds = self.test_folds
        for number, (array, tested) in enumerate(zip(arrays, test_folds, strict=True)):
            expected = int(np.isin(fold, tested).sum())
            if rest or len(array) != expected:
                raise UsageError(
                    f"output {number} has {len(array)} rows where its test folds have {expected}; each output must "
                    "be aligned with the test rows of its split"
                )
        result = np.empty((self.n_paths, n_rows, *arrays[0].shape[1:]), dtype=np.result_type(*arrays))
        for path, splits_of_path in enumerate(backtest_paths(self.n_folds, self.n_test_folds)):
            for number, split_number in enumerate(splits_of_path):
                inside = fold[np.isin(fold, test_folds[split_number])] == number
                result[path, fold == number] = arrays[split_number][inside]
        return result


def _combinations(n_folds: int, n_test_folds: int) -> IntArray:
    chosen = list(itertools.combinations(range(n_folds), n_test_folds))
    return np.array(chosen, dtype=np.int64).reshape(-1, n_test_folds)
