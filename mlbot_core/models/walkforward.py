"""Walk-forward training: each fold learns from its past only and forecasts the stretch after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.clock import format_utc
from mlbot_core.errors import MlbotError
from mlbot_core.models.base import (
    LABELS,
    PROBABILITIES,
    DirectionModel,
    TrainingDataError,
    blank_rows,
    check_columns,
    check_weights,
)

FORECAST_COLUMNS: Final = ("ts", "fold", *PROBABILITIES, "train_end_ms", "model_version")
_LOSS_FLOOR: Final = 1e-15


class LeakError(MlbotError):
    """A fold would train on something that was not known when its test began."""


class FrameError(MlbotError):
    """Features, targets and folds do not fit together."""


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
Weights = npt.ArrayLike | Callable[[npt.NDArray[np.int64]], npt.ArrayLike]


@dataclass(frozen=True)
class WalkForwardResult:
    """What came out of a walk-forward run.

    Parameters
    ----------
    forecasts
        ``ts`` (int64), ``fold`` (int64), ``p_down, p_neutral, p_up`` (NaN where the bar had no feature at all),
        ``train_end_ms`` (int64), ``model_version``; one row per test bar, ascending in ``ts``.
    fold_table
        One row a fold: ``fold``; ``train_rows`` (used), ``test_rows``, ``forecast_rows``; ``train_start_ms,
        train_end_ms, test_start_ms, test_end_ms``; ``last_label_ms`` (when the newest training label was settled);
        ``directional_rows`` (forecasts whose label is up or down), ``hits`` (of these, the sign of
        ``p_up - p_down`` is the label's), ``hit_rate``; ``log_loss`` of the forecasts with a label, in nats, and
        ``base_log_loss`` of always forecasting the training frequencies, on the same rows. NaN where nothing counts.
    importance
        ``feature, gain_share`` (mean over folds of the share of the total gain), ``gain_share_std`` (over folds,
        population), ``splits`` (mean), ``folds_used`` (folds that split on it); greatest share first.
    final_model
        Trained on ``final_idx``, or None where that was not asked for.
    """

    forecasts: pd.DataFrame
    fold_table: pd.DataFrame
    importance: pd.DataFrame
    final_model: DirectionModel | None

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
    ts: npt.NDArray[np.int64]
    matrix: npt.NDArray[np.float64]
    names: list[str]
    label: npt.NDArray[np.float64]
    settled: npt.NDArray[np.float64]
    weights: Callable[[npt.NDArray[np.int64]], npt.ArrayLike] | None
    usable: npt.NDArray[np.bool_]

    def frame(self, rows: npt.NDArray[np.int64]) -> pd.DataFrame:
        return pd.DataFrame(self.matrix[rows], columns=self.names)

    def train(self, rows: npt.NDArray[np.int64], make_model: Callable[[], DirectionModel]) -> DirectionModel:
        weight = None if self.weights is None else self.weights(rows)
        return make_model().fit(self.frame(rows), self.label[rows], weight)


def walk_forward(
    features: pd.DataFrame,
    targets: pd.DataFrame,
    folds: Sequence[Fold],
    make_model: Callable[[], DirectionModel],
    progress: Progress | None = None,
    *,
    model_version: str,
    weights: Weights | None = None,
    feature_names: Sequence[str] | None = None,
    final_idx: npt.ArrayLike | None = None,
    on_model: Callable[[int, DirectionModel], None] | None = None,
) -> WalkForwardResult:
    """Train and forecast fold by fold.

    Rows train when they have a label and at least one known feature; every test row gets a forecast, labelled or not.

    Parameters
    ----------
    features
        ``ts`` (int64, UTC ms, strictly ascending) and float64 feature columns.
    targets
        The same ``ts``; ``tb_label`` (-1, 0, 1; NaN while open) and ``tb_t1`` (UTC ms when the label was settled;
        anything where the label is NaN).
    folds
        See :class:`Fold`. A bar may be tested by one fold only.
    make_model
        Returns a new unfitted model.
    progress
        Called after each fold with (folds done, folds in all, that fold's row of the table).
    model_version
        Written beside every forecast; see :mod:`mlbot_core.models.version`.
    weights
        One weight >= 0 per row of ``features``, or a function of the rows that train (positions, int64) that returns
        theirs: for weights that depend on the other training labels, such as their uniqueness, and must therefore be
        made per fold. None for equal weights.
    feature_names
        Columns to use; all but ``ts`` by default.
    final_idx
        Rows to train one more model on, for what comes after the data; None for no such model.
    on_model
        Called with (fold number, fitted model) after each fold, for instance to store it.

    Raises
    ------
    LeakError
        If a training label was settled after its fold's test began, or the test window begins after its first row.
    FrameError
        If the frames are not aligned, a column is missing, or folds overlap or point outside.
    TrainingDataError
        If there are no folds, or a fold has nothing to learn from; the fold is named.
    """
    data = _prepare(features, targets, weights, feature_names)
    if not folds:
        raise TrainingDataError("no folds: the data is shorter than walk_forward.min_train_days plus one test window")
    _check_folds(folds, len(data.ts))
    for fold in folds:
        _check_leak(fold, data)
    final_rows = None if final_idx is None else _usable_rows(final_idx, data, "final_idx")

    forecasts: list[pd.DataFrame] = []
    rows: list[dict[str, Any]] = []
    importances: list[pd.DataFrame] = []
    for done, fold in enumerate(folds, start=1):
        train = _usable_rows(fold.train_idx, data, f"fold {fold.index}")
        try:
            model = data.train(train, make_model)
        except TrainingDataError as error:
            raise TrainingDataError(
                f"fold {fold.index} (test from {format_utc(fold.test_start_ms)}): {error}"
            ) from error
        test = np.asarray(fold.test_idx, dtype=np.int64)
        p = model.predict_proba(data.frame(test))
        frame = pd.DataFrame({"ts": data.ts[test], "fold": np.full(len(test), fold.index, dtype=np.int64)})
        frame[list(PROBABILITIES)] = p.to_numpy(dtype=np.float64)
        frame["train_end_ms"] = np.full(len(test), fold.train_end_ms, dtype=np.int64)
        frame["model_version"] = model_version
        forecasts.append(frame)
        rows.append(_fold_row(fold, data, train, test, p.to_numpy(dtype=np.float64)))
        importances.append(model.feature_importance())
        if on_model is not None:
            on_model(int(fold.index), model)
        if progress is not None:
            progress(done, len(folds), dict(rows[-1]))

    final_model = None if final_rows is None else data.train(final_rows, make_model)
    merged = pd.concat(forecasts, ignore_index=True).sort_values("ts", ignore_index=True)
    return WalkForwardResult(merged[list(FORECAST_COLUMNS)], pd.DataFrame(rows), _importance(importances), final_model)


def _prepare(
    features: pd.DataFrame,
    targets: pd.DataFrame,
    weights: Weights | None,
    feature_names: Sequence[str] | None,
) -> _Data:
    for what, frame, columns in (("features", features, ["ts"]), ("targets", targets, ["ts", "tb_label", "tb_t1"])):
        absent = [name for name in columns if name not in frame.columns]
        if absent:
            raise FrameError(f"the {what} lack the columns {', '.join(absent)}")
    ts = features["ts"].to_numpy(dtype=np.int64)
    other = targets["ts"].to_numpy(dtype=np.int64)
    if not np.array_equal(ts, other):
        raise FrameError(
            f"features ({len(ts)} rows) and targets ({len(other)} rows) do not hold the same bars; "
            "join them on ts first"
        )
    if np.any(np.diff(ts) <= 0):
        at = int(np.argmax(np.diff(ts) <= 0)) + 1
        raise FrameError(f"bar {format_utc(int(ts[at]))} is repeated or out of order in features and targets")
    names = [c for c in features.columns if c != "ts"] if feature_names is None else list(feature_names)
    absent = [name for name in names if name not in features.columns]
    if absent:
        raise FrameError(f"the features lack the columns {', '.join(absent[:5])}")
    matrix = check_columns(features[names])
    label = targets["tb_label"].to_numpy(dtype=np.float64, na_value=np.nan)
    settled = targets["tb_t1"].to_numpy(dtype=np.float64, na_value=np.nan)
    labelled = ~np.isnan(label)
    # Milliseconds since 1970 are far below 2**53, so float64 holds them exactly.
    wrong = labelled & ~(settled >= ts)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise FrameError(
            f"bar {format_utc(int(ts[at]))} has label {label[at]:g} but tb_t1 {settled[at]}, which is not after it"
        )
    return _Data(ts, matrix, names, label, settled, _per_row(weights, len(ts)), labelled & ~blank_rows(matrix))


def _per_row(weights: Weights | None, rows: int) -> Callable[[npt.NDArray[np.int64]], npt.ArrayLike] | None:
    if weights is None or callable(weights):
        return weights
    values = np.asarray(check_weights(weights, rows), dtype=np.float64)
    return lambda index: values[index]


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
    late = train[~np.isnan(data.label[train]) & (data.settled[train] > fold.test_start_ms)]
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
    usable: npt.NDArray[np.int64] = index[data.usable[index]]
    if len(usable) == 0:
        raise TrainingDataError(
            f"{who}: none of the {len(index)} training rows has both a label and a known feature; "
            "check that raw series and features of that time are materialized"
        )
    return usable


def _fold_row(
    fold: Fold,
    data: _Data,
    train: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
    p: npt.NDArray[np.float64],
) -> dict[str, Any]:
    label = data.label[test]
    known = ~np.isnan(p[:, 0])
    scored = known & ~np.isnan(label)
    column = np.searchsorted(LABELS, label[scored].astype(np.int64))
    frequency = np.array([np.mean(data.label[train] == c) for c in LABELS])
    directional = scored & (label != 0)
    hits = int(np.sum(np.sign(p[directional, 2] - p[directional, 0]) == label[directional]))
    n = int(directional.sum())
    return {
        "fold": int(fold.index),
        "train_rows": len(train),
        "test_rows": len(test),
        "forecast_rows": int(known.sum()),
        "train_start_ms": int(fold.train_start_ms),
        "train_end_ms": int(fold.train_end_ms),
        "test_start_ms": int(fold.test_start_ms),
        "test_end_ms": int(fold.test_end_ms),
        "last_label_ms": int(data.settled[train].max()),
        "directional_rows": n,
        "hits": hits,
        "hit_rate": hits / n if n else math.nan,
        "log_loss": _log_loss(p[scored, column]),
        "base_log_loss": _log_loss(frequency[column]),
    }


def _log_loss(probability: npt.NDArray[np.float64]) -> float:
    if len(probability) == 0:
        return math.nan
    return float(-np.mean(np.log(np.clip(probability, _LOSS_FLOOR, 1.0))))


def _importance(folds: Sequence[pd.DataFrame]) -> pd.DataFrame:
    names = sorted(folds[0]["feature"])
    gain = np.stack([f.set_index("feature")["gain"].reindex(names).to_numpy(dtype=np.float64) for f in folds])
    splits = np.stack([f.set_index("feature")["splits"].reindex(names).to_numpy(dtype=np.float64) for f in folds])
    total = gain.sum(axis=1, keepdims=True)
    share = np.divide(gain, total, out=np.zeros_like(gain), where=total > 0)
    frame = pd.DataFrame(
        {
            "feature": names,
            "gain_share": share.mean(axis=0),
            "gain_share_std": share.std(axis=0),
            "splits": splits.mean(axis=0),
            "folds_used": (splits > 0).sum(axis=0).astype(np.int64),
        }
    )
    return frame.sort_values(["gain_share", "feature"], ascending=[False, True], ignore_index=True)
