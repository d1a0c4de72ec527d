"""How much each label should count in training: labels that overlap say the same thing twice, and old ones fade.

Lopez de Prado (2018), Advances in Financial Machine Learning, chapter 4: average uniqueness (4.2 to 4.4) and time decay
(4.7). All weights are meant for the training rows of ONE fold: a label's weight depends on all the labels handed over,
so weights of the whole history would tell a fold about its own future.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mlbot_core.errors import UsageError
from mlbot_core.targets.direction import average_uniqueness

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def time_decay(uniqueness: Array, t0: IntArray, oldest: float) -> Array:
    """Return factors that fall linearly in cumulative uniqueness, from 1 for the newest label to ``oldest``.

    The clock is the sum of uniqueness and not the calendar, so that a stretch of overlapping labels does not age its
    neighbours (snippet 4.11).

    Parameters
    ----------
    uniqueness
        Average uniqueness of each label, shape (labels,); NaN where the label is unknown.
    t0
        Start of each label interval, UTC ms.
    oldest
        c of the book, above -1 and at most 1. 1: no decay; 0 < c < 1: the factor at the far end; 0: fades to nothing
        there; below 0: the oldest share -c of the clock has no weight at all.

    Returns
    -------
    npt.NDArray[np.float64]
        In [0, 1]; NaN where the label is unknown.

    Raises
    ------
    UsageError
        If ``oldest`` is out of range.
    """
    if not -1.0 < oldest <= 1.0:
        raise UsageError(f"time decay {oldest} must be above -1 and at most 1; 1 means none")
    known = np.isfinite(uniqueness)
    out = np.full(len(uniqueness), np.nan)
    order = np.flatnonzero(known)[np.argsort(np.asarray(t0, dtype=np.int64)[known], kind="stable")]
    if len(order) == 0:
        return out
    clock = np.cumsum(np.asarray(uniqueness, dtype=np.float64)[order])
    total = clock[-1]
    slope = (1.0 - oldest) / total if oldest >= 0 else 1.0 / ((1.0 + oldest) * total)
    out[order] = np.maximum(0.0, 1.0 + slope * (clock - total))
    return out


def sample_weights(t0: IntArray, t1: IntArray, timeframe_ms: int, oldest: float = 1.0) -> Array:
    """Return average uniqueness times time decay, scaled to a mean of 1 over the known labels.

    Parameters
    ----------
    t0, t1
        Start and end of each label interval, UTC ms, shape (labels,), in any order; ``t1`` of -1 is unknown.
    timeframe_ms
        Length of a bar.
    oldest
        As in :func:`time_decay`.

    Returns
    -------
    npt.NDArray[np.float64]
        Not negative; NaN where the label is unknown.

    Raises
    ------
    UsageError
        If ``oldest`` is out of range.
    """
    uniqueness = average_uniqueness(t0, t1, timeframe_ms)
    weights = uniqueness * time_decay(uniqueness, t0, oldest)
    total = np.nansum(weights)
    return weights if total == 0 else np.asarray(weights * (np.isfinite(weights).sum() / total), dtype=np.float64)


def class_balance(labels: Array, classes: dict[str, float]) -> dict[str, float]:
    """Return the share of each class among the known labels; zeros where none is known."""
    known = labels[np.isfinite(labels)]
    return {name: float((known == value).mean()) if len(known) else 0.0 for name, value in classes.items()}
