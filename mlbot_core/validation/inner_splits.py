"""Splits inside the training rows of a fold: to stop early, to tune, to stack.

They see training rows only, so nothing of the outer test reaches them, and purge by the same rule as the outer split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlbot_core.errors import UsageError
from mlbot_core.validation.cpcv import CombinatorialPurged
from mlbot_core.validation.intervals import IntArray, LabelIntervals, check_embargo, check_intervals, settled_by
from mlbot_core.validation.purged import PurgedKFold


@dataclass(frozen=True, eq=False)
class InnerSplit:
    """Rows to fit on and rows to hold out, as row numbers of the whole data set; int64, ascending."""

    fit_idx: IntArray
    held_idx: IntArray


def early_stopping_split(
    train_idx: IntArray, t0: IntArray, t1: IntArray, share: float, embargo_ms: int = 0
) -> tuple[IntArray, IntArray]:
    """Split training rows into an earlier part to fit and a later part to stop on, purged between them.

    Parameters
    ----------
    train_idx
        Row numbers of a fold's training rows, ascending; their labels are known.
    t0, t1
        Label intervals of all rows, UTC ms.
    share
        Share of the training rows, the latest ones, to stop on; between 0 and 1, exclusive.
    embargo_ms
        Time before the stopping rows in which no fitted label may end, ms.

    Returns
    -------
    fit_idx, stop_idx
        Row numbers. Every fitted label is known (``t1``) at or before the first stopping label begins (``t0``) less
        the embargo, so no bar is looked at by both.

    Raises
    ------
    UsageError
        If the share is out of range, a label is unknown, or one of the parts would be empty.

    Examples
    --------
    >>> hour = 3_600_000
    >>> t0 = np.arange(10) * hour
    >>> fit, stop = early_stopping_split(np.arange(10), t0, t0 + 3 * hour, 0.3)
    >>> print(fit, stop)
    [0 1 2 3 4] [7 8 9]
    """
    if not 0 < share < 1:
        raise UsageError(f"the early stopping share must lie between 0 and 1, got {share}")
    embargo = check_embargo(embargo_ms)
    rows, begin, end = _training_rows(train_idx, t0, t1, "early stopping")
    cut = len(rows) - int(np.ceil(len(rows) * share))
    stop = rows[cut:]
    fit = rows[:cut]
    if len(stop):
        fit = fit[settled_by(begin[fit], end[fit], int(begin[stop[0]]) - embargo)]
    if len(fit) == 0 or len(stop) == 0:
        raise UsageError(f"{len(rows)} training rows are too few to hold out {share:.0%} for early stopping")
    return fit, stop


def tuning_split(
    train_idx: IntArray,
    t0: IntArray,
    t1: IntArray,
    n_folds: int = 5,
    *,
    n_test_folds: int = 1,
    embargo_ms: int = 0,
) -> tuple[InnerSplit, ...]:
    """Return the splits on which the parameters of a fold's model are chosen.

    Purged K-fold, or combinatorial purged where ``n_test_folds`` is 2 or more: selection may look both ways in time,
    since what is reported comes from the outer test alone.

    Parameters
    ----------
    train_idx
        Row numbers of a fold's training rows, ascending; their labels are known.
    t0, t1
        Label intervals of all rows, UTC ms.
    n_folds, n_test_folds
        Consecutive parts of the training rows, and how many are held out at a time.
    embargo_ms
        Time after each held-out label in which no fitted label may begin, ms.

    Raises
    ------
    UsageError
        If a label is unknown or a split would have nothing to fit on.

    Examples
    --------
    >>> hour = 3_600_000
    >>> t0 = np.arange(100) * hour
    >>> for part in tuning_split(np.arange(90, 98), t0, t0 + 2 * hour, 2):
    ...     print(part.fit_idx, part.held_idx)
    [95 96 97] [90 91 92 93]
    [90 91 92] [94 95 96 97]
    """
    rows, begin, end = _training_rows(train_idx, t0, t1, "tuning")
    labels = LabelIntervals(begin[rows], end[rows])
    cv: PurgedKFold | CombinatorialPurged
    if n_test_folds == 1:
        cv = PurgedKFold(n_folds, labels, embargo_ms)
    else:
        cv = CombinatorialPurged(n_folds, n_test_folds, labels, embargo_ms)
    return tuple(InnerSplit(rows[fit], rows[held]) for fit, held in cv.split(rows))


def stacking_split(
    train_idx: IntArray,
    t0: IntArray,
    t1: IntArray,
    n_folds: int = 5,
    *,
    past_only: bool = False,
    embargo_ms: int = 0,
) -> tuple[InnerSplit, ...]:
    """Return the splits whose held-out forecasts a meta-model is trained on.

    Each training row is held out once, and forecast by a base model that saw no label overlapping its own.

    Parameters
    ----------
    train_idx
        Row numbers of a fold's training rows, ascending; their labels are known.
    t0, t1
        Label intervals of all rows, UTC ms.
    n_folds
        Consecutive parts, at least 2.
    past_only
        Fit on labels settled before each part only, as the base models will have when they forecast; the first part
        then has no forecast, and the others are held out once.
    embargo_ms
        Time after each held-out label in which no fitted label may begin and, where ``past_only``, before each part
        in which none may end; ms.

    Raises
    ------
    UsageError
        If a label is unknown or a split would have nothing to fit on.

    Examples
    --------
    >>> hour = 3_600_000
    >>> t0 = np.arange(9) * hour
    >>> for part in stacking_split(np.arange(9), t0, t0 + 2 * hour, 3, past_only=True):
    ...     print(part.fit_idx, part.held_idx)
    [0 1] [3 4 5]
    [0 1 2 3 4] [6 7 8]
    """
    rows, begin, end = _training_rows(train_idx, t0, t1, "stacking")
    cv = PurgedKFold(n_folds, LabelIntervals(begin[rows], end[rows]), embargo_ms)
    if not past_only:
        return tuple(InnerSplit(rows[fit], rows[held]) for fit, held in cv.split(rows))
    if len(rows) < n_folds:
        raise UsageError(f"{len(rows)} training rows cannot make {n_folds} parts to stack on; use fewer")
    parts: list[InnerSplit] = []
    for held in np.array_split(rows, n_folds)[1:]:
        earlier = rows[rows < held[0]]
        cutoff = int(begin[held[0]]) - cv.embargo_ms
        fit = earlier[settled_by(begin[earlier], end[earlier], cutoff)]
        if len(fit) == 0:
            raise UsageError(
                f"no label is settled {cv.embargo_ms} ms before row {held[0]}, where part {len(parts) + 1} of the "
                "stacking split begins; use fewer parts, shorter labels or a shorter embargo"
            )
        parts.append(InnerSplit(fit, held))
    return tuple(parts)


def _training_rows(train_idx: IntArray, t0: IntArray, t1: IntArray, what: str) -> tuple[IntArray, IntArray, IntArray]:
    begin, end = check_intervals(t0, t1)
    rows = np.asarray(train_idx, dtype=np.int64)
    if (np.diff(rows) <= 0).any() or (end[rows] < 0).any():
        raise UsageError(f"{what} takes ascending training rows whose labels are known")
    return rows, begin, end
