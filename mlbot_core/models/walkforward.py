"""Walk-forward training: each fold learns from its past only and forecasts the stretch after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.clock import format_utc
from mlbot_core.errors import MlbotError
from mlbot_core.models.base import FORECAST, OUTCOMES, Model, TrainingDataError, blank_rows, check_weights
from mlbot_core.models.fold_scores import fold_scores, mean_importance
from mlbot_core.models.fold_store import FoldStore

FORECAST_COLUMNS: Final = ("ts", "fold", *FORECAST, "train_end_ms", "model_version")


class LeakError(MlbotError):
    """A fold would train on something that was not known when its test began."""


class FrameError(MlbotError):
    """Features, outcomes and folds do not fit together."""


class Fold(Protocol):
    """What this module needs of a fold; indices are row positions in the aligned frames, times UTC ms."""

    @property
    def index(self) -> int:
        """Number of the fold."""

    @property
    def train_idx(self) -> npt.NDArray[np.int64]:
        """Rows to train on."""

    @property
    def test_idx(self) -> npt.NDArray[np.int64]:
        """Rows to forecast."""

    @property
    def train_start_ms(self) -> int:
        """Start of the training window."""

    @property
    def train_end_ms(self) -> int:
        """End of the training window."""

    @property
    def test_start_ms(self) -> int:
        """Start of the test window: every training label must be settled by then."""

    @property
    def test_end_ms(self) -> int:
        """End of the test window."""


Progress = Callable[[int, int, dict[str, Any]], None]
Weights = Callable[[npt.NDArray[np.int64]], npt.ArrayLike]


@dataclass(frozen=True)
class WalkForwardResult:
    """What came out of a walk-forward run.

    Parameters
    ----------
    forecasts
        ``ts`` (int64), ``fold`` (int64), the columns of :data:`mlbot_core.models.base.FORECAST` (NaN where the bar had
        no forecast), ``train_end_ms`` (int64), ``model_version``; one row per test bar, ascending in ``ts``.
    fold_table
        One row a fold; see :func:`mlbot_core.models.fold_scores.fold_scores`.
    importance
        See :func:`mlbot_core.models.fold_scores.mean_importance`.
    final_model
        Trained on ``final_idx``, or None where that was not asked for.
    """

    forecasts: pd.DataFrame
    fold_table: pd.DataFrame
    importance: pd.DataFrame
    final_model: Model | None

    @property
    def hits(self) -> int:
        """Directional hits over all folds."""
        return int(self.fold_table["hits"].sum())

    @property
    def directional_rows(self) -> int:
        """Forecasts over all folds whose label was up or down."""
        return int(self.fold_table["directional_rows"].sum())


@dataclass(frozen=True)
class _Data:
    X: pd.DataFrame
    y: pd.DataFrame
    ts: npt.NDArray[np.int64]
    settled: npt.NDArray[np.float64]
    usable: npt.NDArray[np.bool_]

    def train(self, rows: npt.NDArray[np.int64], model: Model, weights: Weights | None) -> Model:
        """Fit on rows; the model is handed nothing after the last of them."""
        first, stop = max(0, int(rows[0]) - model.context_bars), int(rows[-1]) + 1
        weight = None if weights is None else check_weights(np.asarray(weights(rows)), len(rows))
        return model.fit(self.X.iloc[first:stop], self.y.iloc[first:stop], rows - first, weight)

    def forecast(self, rows: npt.NDArray[np.int64], model: Model) -> pd.DataFrame:
        """Forecast rows; the model is handed their context and nothing after the last of them."""
        first, stop = max(0, int(rows.min()) - model.context_bars), int(rows.max()) + 1
        return model.predict(self.X.iloc[first:stop], rows - first)


@dataclass(frozen=True)
class _Done:
    """One fold's result."""

    forecasts: pd.DataFrame
    scores: dict[str, Any]
    importance: pd.DataFrame


def walk_forward(
    X: pd.DataFrame,
    y: pd.DataFrame,
    folds: Sequence[Fold],
    make_model: Callable[[], Model],
    progress: Progress | None = None,
    *,
    model_version: str,
    weights: Weights | None = None,
    final_idx: npt.ArrayLike | None = None,
    store: FoldStore | None = None,
    jobs: int = 1,
) -> WalkForwardResult:
    """Train and forecast fold by fold.

    Rows train when their outcome is known and they have at least one known feature; every test row gets a forecast,
    with or without an outcome.

    Parameters
    ----------
    X
        Shape (bars, features), float64; the index is the open time of each bar, int64 UTC ms, strictly ascending.
    y
        On the same index: the columns of :data:`mlbot_core.models.base.OUTCOMES`, and ``t1``, when the outcome that
        the model learns was settled, UTC ms (anything where it is NaN).
    folds
        See :class:`Fold`. A bar may be tested by one fold only.
    make_model
        Returns a new unfitted model.
    progress
        Called after each fold with (folds done, folds in all, that fold's scores), from this thread.
    model_version
        Written beside every forecast; see :mod:`mlbot_core.models.version`.
    weights
        Given the rows that train (positions, int64), returns one weight >= 0 for each; None for equal weights. It is
        asked per fold, because a label's uniqueness depends on the labels it trains beside.
    final_idx
        Rows to train one more model on, for what comes after the data; None for no such model.
    store
        Where fold models are kept; folds that are there already are not trained again, so a run that was killed goes
        on where it stopped. None keeps nothing.
    jobs
        Folds at a time, in threads: for models that leave the interpreter while they train.

    Raises
    ------
    LeakError
        If a training outcome was settled after its fold's test began, or the test window begins after its first row.
    FrameError
        If the frames are not aligned, a column is missing, or folds overlap or point outside.
    TrainingDataError
        If there are no folds, or a fold has nothing to learn from; the fold is named.
    """
    data = _prepare(X, y, make_model().target)
    if not folds:
        raise TrainingDataError("no folds: the data is shorter than walk_forward.min_train_days plus one test window")
    _check_folds(folds, len(data.ts))
    for fold in folds:
        _check_leak(fold, data)
    training = {fold.index: _usable_rows(fold.train_idx, data, f"fold {fold.index}") for fold in folds}
    final_rows = None if final_idx is None else _usable_rows(final_idx, data, "final_idx")

    def work(fold: Fold) -> _Done:
        model = None if store is None else store.load(fold.index)
        if model is None:
            try:
                model = data.train(training[fold.index], make_model(), weights)
            except TrainingDataError as error:
                raise TrainingDataError(
                    f"fold {fold.index} (test from {format_utc(fold.test_start_ms)}): {error}"
                ) from error
            if store is not None:
                store.save(fold.index, model)
        return _finish(fold, data, training[fold.index], model, model_version)

    done: dict[int, _Done] = {}
    for index, result in _spread(folds, work, jobs):
        done[index] = result
        if progress is not None:
            progress(len(done), len(folds), dict(result.scores))
    ordered = [done[fold.index] for fold in folds]

    final_model = None
    if final_rows is not None:
        final_model = None if store is None else store.load(None)
        if final_model is None:
            final_model = data.train(final_rows, make_model(), weights)
            if store is not None:
                store.save(None, final_model)
    merged = pd.concat([d.forecasts for d in ordered], ignore_index=True).sort_values("ts", ignore_index=True)
    return WalkForwardResult(
        merged[list(FORECAST_COLUMNS)],
        pd.DataFrame([d.scores for d in ordered]),
        mean_importance([d.importance for d in ordered]),
        final_model,
    )


def _spread(folds: Sequence[Fold], work: Callable[[Fold], _Done], jobs: int) -> Any:
    """Yield (fold number, result) as folds are done; after a failure no further fold is begun."""
    if jobs <= 1 or len(folds) == 1:
        for fold in folds:
            yield fold.index, work(fold)
        return
    with ThreadPoolExecutor(max_workers=min(jobs, len(folds)), thread_name_prefix="fold") as pool:
        waiting: dict[Future[_Done], int] = {pool.submit(work, fold): fold.index for fold in folds}
        try:
            while waiting:
                ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in sorted(ready, key=lambda f: waiting[f]):
                    yield waiting.pop(future), future.result()
        finally:
            for future in waiting:
                future.cancel()


def _finish(fold: Fold, data: _Data, train: npt.NDArray[np.int64], model: Model, version: str) -> _Done:
    test = np.asarray(fold.test_idx, dtype=np.int64)
    said = data.forecast(test, model)
    frame = pd.DataFrame({"ts": data.ts[test], "fold": np.full(len(test), fold.index, dtype=np.int64)})
    frame[list(FORECAST)] = said[list(FORECAST)].to_numpy(dtype=np.float64)
    frame["train_end_ms"] = np.full(len(test), fold.train_end_ms, dtype=np.int64)
    frame["model_version"] = version
    when = {
        "fold": int(fold.index),
        "train_rows": len(train),
        "test_rows": len(test),
        "train_start_ms": int(fold.train_start_ms),
        "train_end_ms": int(fold.train_end_ms),
        "test_start_ms": int(fold.test_start_ms),
        "test_end_ms": int(fold.test_end_ms),
        "last_label_ms": int(data.settled[train].max()),
    }
    scores = fold_scores(frame, data.y.iloc[test], data.y["label"].to_numpy(dtype=np.float64)[train])
    return _Done(frame, when | scores, model.feature_importance())


def _prepare(X: pd.DataFrame, y: pd.DataFrame, target: str) -> _Data:
    absent = [name for name in (*OUTCOMES, "t1") if name not in y.columns]
    if absent:
        raise FrameError(f"the outcomes lack the columns {', '.join(absent)}")
    ts = X.index.to_numpy(dtype=np.int64)
    other = y.index.to_numpy(dtype=np.int64)
    if not np.array_equal(ts, other):
        raise FrameError(
            f"features ({len(ts)} rows) and outcomes ({len(other)} rows) do not hold the same bars; "
            "join them on the open time first"
        )
    if np.any(np.diff(ts) <= 0):
        at = int(np.argmax(np.diff(ts) <= 0)) + 1
        raise FrameError(f"bar {format_utc(int(ts[at]))} is repeated or out of order in features and outcomes")
    learnt = y[target].to_numpy(dtype=np.float64)
    settled = y["t1"].to_numpy(dtype=np.float64)
    known = ~np.isnan(learnt)
    # written so that a NaN time is odd as well
    odd = known & ~(settled > ts)
    if odd.any():
        at = int(np.argmax(odd))
        raise FrameError(
            f"the {target} of bar {format_utc(int(ts[at]))} says it was settled at {settled[at]}, which is not after it"
        )
    blank = blank_rows(X.to_numpy(dtype=np.float64)) if X.shape[1] else np.ones(len(X), dtype=np.bool_)
    return _Data(X, y, ts, settled, known & ~blank)


def _check_folds(folds: Sequence[Fold], rows: int) -> None:
    seen = np.zeros(rows, dtype=bool)
    for fold in folds:
        for what, given in (("train", fold.train_idx), ("test", fold.test_idx)):
            index = np.asarray(given, dtype=np.int64)
            if len(index) and (index.min() < 0 or index.max() >= rows):
                raise FrameError(f"fold {fold.index}: {what} rows {index.min()}..{index.max()} of a frame of {rows}")
        test = np.asarray(fold.test_idx, dtype=np.int64)
        if len(test) == 0:
            raise FrameError(f"fold {fold.index} tests no rows")
        if seen[test].any() or len(np.unique(test)) != len(test):
            raise FrameError(f"fold {fold.index} tests bars that were tested before; a bar has one forecast")
        seen[test] = True


def _check_leak(fold: Fold, data: _Data) -> None:
    first_test = int(data.ts[np.asarray(fold.test_idx, dtype=np.int64)].min())
    if fold.test_start_ms > first_test:
        raise LeakError(
            f"fold {fold.index} says its test begins at {format_utc(fold.test_start_ms)} but tests the bar of "
            f"{format_utc(first_test)}"
        )
    train = np.asarray(fold.train_idx, dtype=np.int64)
    late = train[data.usable[train] & (data.settled[train] > fold.test_start_ms)]
    if len(late):
        at = int(late[0])
        raise LeakError(
            f"fold {fold.index}: {len(late)} training labels were settled after the test began at "
            f"{format_utc(fold.test_start_ms)}, the first that of bar {format_utc(int(data.ts[at]))}, settled at "
            f"{format_utc(int(data.settled[at]))}; purge the folds by the label interval (t0, t1)"
        )
    future = train[data.ts[train] >= first_test]
    if len(future):
        raise LeakError(
            f"fold {fold.index} trains on the bar of {format_utc(int(data.ts[future[0]]))}, "
            f"which is not before its first test bar {format_utc(first_test)}"
        )


def _usable_rows(given: npt.ArrayLike, data: _Data, who: str) -> npt.NDArray[np.int64]:
    index = np.asarray(given, dtype=np.int64)
    if len(index) and (index.min() < 0 or index.max() >= len(data.ts)):
        raise FrameError(f"{who}: rows {index.min()}..{index.max()} of a frame of {len(data.ts)}")
    usable: npt.NDArray[np.int64] = np.sort(index[data.usable[index]])
    if len(usable) == 0:
        raise TrainingDataError(
            f"{who}: none of the {len(index)} training rows has both an outcome and a known feature; "
            "check that raw series and features of that time are materialized"
        )
    return usable
