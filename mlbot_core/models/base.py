"""What every model can do, the checks all of them share, and the registry of model types."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Protocol, Self, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.config import ModelsConfig
from mlbot_core.errors import MlbotError, UsageError
from mlbot_core.models.artefact import ArtefactError, read_artefact

LABELS: Final = (-1, 0, 1)
PROBABILITIES: Final = ("p_down", "p_neutral", "p_up")
FORECAST: Final = (*PROBABILITIES, "score", "score_sd")
"""What every model says of a bar: the probabilities of the triple barrier's outcomes (sum 1), and mean and standard
deviation of the log return ahead in barrier widths. The expected log return of holding is ``score`` times the bar's
barrier width."""
OUTCOMES: Final = ("label", "score", "width", "next_ret")
"""What came of a bar, float64, NaN = not known (yet): the triple barrier's label (-1, 0, 1); the log return over the
horizon in barrier widths; the barrier width itself, log return, known at the close; the log return from this bar's
close to the next bar's."""

BASE_COLUMN: Final = "(base)"
"""Column of an explanation with what the model says where no feature says anything."""

Target = Literal["label", "score"]


class ModelError(MlbotError):
    """A model refused what it was given."""


class FeatureMismatchError(ModelError):
    """The columns are not the ones the model was trained on, or not float64, or hold infinities."""


class TrainingDataError(ModelError):
    """The data cannot train a model: empty, one class only, NaN labels, wrong weights."""


class NotFittedError(ModelError):
    """The model was asked before it was fitted or loaded."""


class Model(Protocol):
    """A forecaster of the bars after a bar: which barrier is touched, and how far the price moves.

    Every implementation passes ``tests/models/test_models_conformance.py``. Same data, parameters, seed and number of
    threads give the same bytes on disk; one row predicted alone (with its context) equals the same row in a batch.

    Attributes
    ----------
    model_type
        As in ``models.yaml``.
    target
        Column of the outcomes that it learns: ``label`` or ``score``.
    context_bars
        Rows before a row that its forecast reads beside the row itself; 0 for a model of single rows. A row with
        fewer before it has no forecast (NaN).
    explained
        The raw output that :meth:`explain` splits into contributions, in words.
    """

    model_type: ClassVar[str]
    target: ClassVar[Target]

    @property
    def context_bars(self) -> int:
        """Rows before a row that its forecast reads."""
        ...

    @property
    def explained(self) -> str:
        """The raw output that contributions sum to, in words."""
        ...

    @classmethod
    def from_config(cls, config: Any, threads: int) -> Self:
        """Return an unfitted model; ``config`` is this type's section of ``models.yaml``, ``threads`` >= 1 cores."""
        ...

    def fit(
        self,
        X: pd.DataFrame,
        y: pd.DataFrame,
        rows: npt.NDArray[np.int64] | None = None,
        weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Train.

        Parameters
        ----------
        X
            Shape (bars, features), float64, NaN = unknown; the index is the open time of each bar, int64 UTC ms,
            ascending by whole bars (a missing bar is a row of NaN or absent).
        y
            The outcomes of the same bars, with the columns of :data:`OUTCOMES`.
        rows
            Positions that train, ascending; every other row is context at most and its outcome is not read. All by
            default.
        weight
            One number >= 0 for each of ``rows``.

        Raises
        ------
        TrainingDataError, FeatureMismatchError
        """
        ...

    def predict(self, X: pd.DataFrame, rows: npt.NDArray[np.int64] | None = None) -> pd.DataFrame:
        """Return the columns of :data:`FORECAST` for ``rows`` of X (all by default), on their index.

        NaN in a row whose features are all NaN. Columns of X may come in any order.

        Raises
        ------
        NotFittedError, FeatureMismatchError
        """
        ...

    def explain(self, X: pd.DataFrame, rows: npt.NDArray[np.int64] | None = None) -> pd.DataFrame:
        """Return what each feature added to each forecast: one column a feature, and ``(base)``.

        A row sums to the model's own raw output, which :attr:`explained` names; NaN where there is no forecast.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the artefact, all or nothing, without pickle.

        Raises
        ------
        NotFittedError, ArtefactError
        """
        ...

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> Self:
        """Read an artefact; it predicts exactly what the saved model predicted.

        Raises
        ------
        ArtefactError
            If it is missing, damaged, of another model type or of another release of its library.
        """
        ...

    def feature_importance(self) -> pd.DataFrame:
        """Return ``feature, gain, splits``, greatest gain first; ``gain`` >= 0 in the model's own unit."""
        ...

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Columns the model was trained on, in order."""
        ...


MODEL_TYPES: Final[Mapping[str, str]] = {
    "lightgbm": "mlbot_core.models.lightgbm:LightGBMModel",
    "catboost": "mlbot_core.models.catboost:CatBoostModel",
    "tft": "mlbot_core.models.tft:TFTModel",
    "ridge": "mlbot_core.models.baselines:RidgeModel",
    "momentum": "mlbot_core.models.baselines:MomentumModel",
    "constant": "mlbot_core.models.baselines:ConstantModel",
    "meta": "mlbot_core.models.meta:MetaModel",
}


def model_class(model_type: str) -> type[Model]:
    """Return the class of a model type, importing it only now.

    Raises
    ------
    UsageError
        If there is no such type.
    """
    try:
        module, _, name = MODEL_TYPES[model_type].partition(":")
    except KeyError:
        raise UsageError(f"model {model_type!r} is unknown; choose one of {', '.join(MODEL_TYPES)}") from None
    return cast("type[Model]", getattr(importlib.import_module(module), name))


def create_model(model_type: str, models: ModelsConfig, threads: int) -> Model:
    """Return an unfitted model with the parameters of its section of ``models.yaml``.

    Raises
    ------
    UsageError
        If there is no such type.
    """
    return model_class(model_type).from_config(getattr(models, model_type), threads)


def load_model(folder: Path, threads: int = 1) -> Model:
    """Load an artefact of any registered type.

    Raises
    ------
    ArtefactError
        If it is missing, damaged or of a type this code does not know.
    """
    meta, _ = read_artefact(folder)
    model_type = str(meta.get("type"))
    if model_type not in MODEL_TYPES:
        raise ArtefactError(f"{folder} holds a model of type {model_type!r}; this code knows {', '.join(MODEL_TYPES)}")
    return model_class(model_type).load(folder, threads)


def check_columns(X: pd.DataFrame, names: Sequence[str] | None = None) -> npt.NDArray[np.float64]:
    """Return the features as a C-ordered float64 matrix, columns in the order of ``names`` (default: their own).

    Raises
    ------
    FeatureMismatchError
        If columns are missing, extra, repeated, not float64 or hold an infinity; all offenders are named.
    """
    columns = list(X.columns)
    if not X.columns.is_unique:
        raise FeatureMismatchError(f"columns {_some([c for c in set(columns) if columns.count(c) > 1])} appear twice")
    wanted = columns if names is None else list(names)
    missing, extra = [c for c in wanted if c not in X.columns], [c for c in columns if c not in set(wanted)]
    if missing or extra:
        parts = [f"{word} {_some(found)}" for word, found in (("lacks", missing), ("has unknown", extra)) if found]
        raise FeatureMismatchError(
            f"the frame {' and '.join(parts)}; the model takes exactly its {len(wanted)} trained features: "
            "materialize the feature set it was trained on, or train it again"
        )
    odd = [f"{c} ({X[c].dtype})" for c in wanted if X[c].dtype != np.float64]
    if odd:
        raise FeatureMismatchError(f"columns {_some(odd)} are not float64; convert them where the features are made")
    matrix = np.ascontiguousarray(X[wanted].to_numpy(dtype=np.float64))
    infinite = np.isinf(matrix).any(axis=0)
    if infinite.any():
        raise FeatureMismatchError(f"columns {_some(np.array(wanted)[infinite])} hold infinities; unknown is NaN")
    return matrix


def check_outcomes(X: pd.DataFrame, y: pd.DataFrame, target: Target) -> npt.NDArray[np.float64]:
    """Return the outcome that a model learns, for every row of X.

    Raises
    ------
    TrainingDataError
        If X has no columns, the outcomes lack the target, or X and y do not hold the same bars.
    """
    if X.shape[1] == 0:
        raise TrainingDataError("no feature columns to train on")
    if target not in y.columns:
        raise TrainingDataError(f"the outcomes lack the column {target}; they hold {_some(y.columns)}")
    if not X.index.equals(y.index):
        raise TrainingDataError(
            f"features ({len(X)} rows) and outcomes ({len(y)} rows) are not on the same bars; join them on ts first"
        )
    return y[target].to_numpy(dtype=np.float64)


def check_labels(y: npt.ArrayLike | pd.Series, rows: int) -> npt.NDArray[np.int64]:
    """Return the labels as int64 of -1, 0, 1.

    Raises
    ------
    TrainingDataError
        If there are none, their number is not ``rows``, one is NaN or unknown, or only one class occurs.
    """
    values = np.asarray(y, dtype=np.float64)
    if rows == 0:
        raise TrainingDataError("no rows to train on; materialize features and targets of an earlier range first")
    if values.shape != (rows,):
        raise TrainingDataError(f"{rows} rows of features but labels of shape {values.shape}")
    absent = np.isnan(values)
    if absent.any():
        raise TrainingDataError(
            f"{int(absent.sum())} of {rows} labels are NaN, the first at row {int(np.argmax(absent))}; "
            "leave out rows whose barrier is still open"
        )
    unknown = ~np.isin(values, LABELS)
    if unknown.any():
        raise TrainingDataError(f"label {values[unknown][0]} at row {int(np.argmax(unknown))} is not -1, 0 or 1")
    if len(np.unique(values)) == 1:
        raise TrainingDataError(
            f"all {rows} labels are {int(values[0])}: there is nothing to tell apart; "
            "train on a longer range or change targets.barrier_width in config/models.yaml"
        )
    return values.astype(np.int64)


def check_scores(y: npt.ArrayLike | pd.Series, rows: int) -> npt.NDArray[np.float64]:
    """Return the outcomes of a regression as float64.

    Raises
    ------
    TrainingDataError
        If there are none, their number is not ``rows``, one is not finite, or all are the same.
    """
    values = np.asarray(y, dtype=np.float64)
    if rows == 0:
        raise TrainingDataError("no rows to train on; materialize features and targets of an earlier range first")
    if values.shape != (rows,):
        raise TrainingDataError(f"{rows} rows of features but outcomes of shape {values.shape}")
    bad = ~np.isfinite(values)
    if bad.any():
        raise TrainingDataError(
            f"{int(bad.sum())} of {rows} outcomes are not finite, the first at row {int(np.argmax(bad))}; "
            "leave out rows whose horizon is still open"
        )
    if values.min() == values.max():
        raise TrainingDataError(
            f"all {rows} outcomes are {values[0]}: there is nothing to tell apart; train on a longer range"
        )
    return values


def check_rows(rows: npt.ArrayLike | None, total: int) -> npt.NDArray[np.int64]:
    """Return row positions as int64, all of them for None.

    Raises
    ------
    UsageError
        If they are not ascending, repeat or point outside of the frame.
    """
    if rows is None:
        return np.arange(total, dtype=np.int64)
    index = np.asarray(rows, dtype=np.int64)
    if len(index) and (index[0] < 0 or index[-1] >= total or (np.diff(index) <= 0).any()):
        raise UsageError(f"rows {index.min()}..{index.max()} of a frame of {total} must be ascending positions inside")
    return index


def check_weights(weight: npt.ArrayLike | pd.Series | None, rows: int) -> npt.NDArray[np.float64] | None:
    """Return the weights as float64, or None.

    Raises
    ------
    TrainingDataError
        If their number is not ``rows``, one is negative or not finite, or all are zero.
    """
    if weight is None:
        return None
    values = np.asarray(weight, dtype=np.float64)
    if values.shape != (rows,):
        raise TrainingDataError(f"{rows} rows of features but weights of shape {values.shape}")
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        raise TrainingDataError(f"weight {values[bad][0]} at row {int(np.argmax(bad))} is not a number >= 0")
    if not values.any():
        raise TrainingDataError(f"all {rows} weights are zero")
    return values


def blank_rows(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return which rows have no feature at all (all NaN)."""
    return np.asarray(np.isnan(matrix).all(axis=1))


def _some(names: Any, limit: int = 5) -> str:
    texts = [str(name) for name in names]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")
