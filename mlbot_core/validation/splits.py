"""Walk-forward splits, purged by label interval.

A model that forecasts a test window may have been trained on nothing that was not known, label and all, before that
window began. Lopez de Prado (2018), Advances in Financial Machine Learning, chapter 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlbot_core.config import WalkForwardConfig
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, Timeframe
from mlbot_core.validation.inner_splits import early_stopping_split
from mlbot_core.validation.intervals import IntArray, check_intervals, embargo_of, settled_by

__all__ = ["Fold", "SkippedFold", "WalkForward", "WalkForwardSplit", "early_stopping_split"]


@dataclass(frozen=True, eq=False)
class Fold:
    """One step of a walk forward.

    Parameters
    ----------
    index
        Number of the test window, from 0; skipped windows keep theirs.
    train_idx, test_idx
        Row numbers, int64, ascending.
    train_start_ms, train_end_ms
        Training bars open at or after the first; their labels are known at or before the second, UTC ms.
    test_start_ms, test_end_ms
        Test bars open in this half-open interval, UTC ms.
    """

    index: int
    train_idx: IntArray
    test_idx: IntArray
    train_start_ms: int
    train_end_ms: int
    test_start_ms: int
    test_end_ms: int


@dataclass(frozen=True)
class SkippedFold:
    """A test window without a fold, and why."""

    index: int
    test_start_ms: int
    test_end_ms: int
    reason: str


@dataclass(frozen=True, eq=False)
class WalkForwardSplit:
    """The folds of a period, in order, and the windows that could not be one. Iterates over its folds."""

    folds: tuple[Fold, ...]
    skipped: tuple[SkippedFold, ...]

    def __iter__(self) -> Iterator[Fold]:
        return iter(self.folds)

    def __len__(self) -> int:
        return len(self.folds)

    def __getitem__(self, at: int) -> Fold:
        return self.folds[at]


class WalkForward:
    """Train on the past, test on what follows, step on.

    Parameters
    ----------
    config
        Days of training (at most and at least) and of testing, embargo in bars.
    """

    def __init__(self, config: WalkForwardConfig) -> None:
        self._config = config

    def split(self, t0: IntArray, t1: IntArray, start_ms: int, end_ms: int, timeframe: Timeframe) -> WalkForwardSplit:
        """Tile ``[start_ms, end_ms)`` with test windows and give each its purged training rows.

        A row belongs to the test window that its bar opens in (``t0`` less one bar), whether or not its label is
        known: it is forecast anyway. It trains a fold if its label is known, ``t1`` lies at or before the test
        window's start less the embargo, and its bar opens at most ``train_days`` before the test window.

        Parameters
        ----------
        t0, t1
            Label intervals, UTC ms, shape (rows,); ``t0`` (the bars' closes) strictly ascending, ``t1`` after ``t0``
            or -1 for unknown.
        start_ms, end_ms
            Period to test, by open time of bars, UTC ms; the last window may be shorter.
        timeframe
            Length of a bar; ``start_ms`` must be on its grid.

        Returns
        -------
        WalkForwardSplit
            Folds, and the windows skipped because the labels known by then reach back less than ``min_train_days``,
            or because no bar opens in them.

        Raises
        ------
        UsageError
            If the intervals are malformed, the period is empty or starts off the grid.
        """
        begin, end = check_intervals(t0, t1)
        if start_ms >= end_ms:
            raise UsageError(f"the test period [{start_ms}, {end_ms}) is empty; give an end after the start")
        if start_ms % timeframe.ms:
            raise UsageError(f"the test period starts at {start_ms}, off the {timeframe} grid; start at a bar's open")
        opens = begin - timeframe.ms
        embargo = embargo_of(self._config.embargo_bars, timeframe)
        folds: list[Fold] = []
        skipped: list[SkippedFold] = []
        for index, test_start in enumerate(range(start_ms, end_ms, self._config.test_days * DAY_MS)):
            test_end = min(test_start + self._config.test_days * DAY_MS, end_ms)
            train_end = test_start - embargo
            train_start = test_start - self._config.train_days * DAY_MS
            usable = settled_by(begin, end, train_end)
            train = np.flatnonzero(usable & (opens >= train_start)).astype(np.int64)
            test = np.flatnonzero((opens >= test_start) & (opens < test_end)).astype(np.int64)
            reason = self._refusal(opens[usable], train, test, train_start, test_start)
            if reason is None:
                folds.append(Fold(index, train, test, train_start, train_end, test_start, test_end))
            else:
                skipped.append(SkippedFold(index, test_start, test_end, reason))
        return WalkForwardSplit(tuple(folds), tuple(skipped))

    def _refusal(
        self, usable_opens: IntArray, train: IntArray, test: IntArray, train_start: int, test_start: int
    ) -> str | None:
        if len(test) == 0:
            return "no bar opens in the test window"
        if len(train) == 0:
            return "no label is known before the test window and its embargo"
        days = (test_start - max(train_start, int(usable_opens[0]))) / DAY_MS
        if days < self._config.min_train_days:
            return f"labels reach back {days:.1f} days, fewer than min_train_days {self._config.min_train_days}"
        return None
