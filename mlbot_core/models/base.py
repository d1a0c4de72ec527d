"""What every direction model can do, the checks all of them share, and the registry of model types."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, Self, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.config import ModelsConfig
from mlbot_core.errors import MlbotError, UsageError
from mlbot_core.models.artefact import ArtefactError, read_artefact

LABELS: Final = (-1, 0, 1)
PROBABILITIES: Final = ("p_down", "p_neutral", "p_up")


class ModelError(MlbotError):
    """A model refused what it was given."""


class FeatureMismatchError(ModelError):
    """The columns are not the ones the model was trained on, or not float64, or hold infinities."""


class TrainingDataError(ModelError):
    """The data cannot train a model: empty, one class only, NaN labels, wrong weights."""


class NotFittedError(ModelError):
    """The model was asked before it was fitted or loaded."""


class DirectionModel(Protocol):
    """A classifier of a bar's triple-barrier outcome: -1 (down), 0 (neutral), +1 (up).

    Every implementation passes ``tests/models/test_models_conformance.py``. Same data, parameters and seed give the
    same bytes on disk; one row predicted alone equals the same row in a batch, bit for bit.
    """

    model_type: str

    @classmethod
    def from_config(cls, config: Any, threads: int) -> Self:
        """Return an unfitted model; ``config`` is this type's section of ``models.yaml``, ``threads`` >= 1 cores."""
        ...

    def fit(
        self, X: pd.DataFrame, y: npt.ArrayLike | pd.Series, weight: npt.ArrayLike | pd.Series | None = None
    ) -> Self:
        """Train on float64 columns (NaN = unknown), labels -1, 0, 1 and optional weights >= 0.

        Raises
        ------
        TrainingDataError, FeatureMismatchError
        """
        ...

    def predict_proba(self, X: pd.DataFrame) -> pd.DataFrame:
        """Return ``p_down, p_neutral, p_up`` (sum 1) on X's index; NaN for a row whose features are all NaN.

        Columns may come in any order. A class that the training data did not hold has probability 0.

        Raises
        ------
        NotFittedError, FeatureMismatchError
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
            If it is missing, damaged or of another model type.
        """
        ...

    def feature_importance(self) -> pd.DataFrame:
        """Return ``feature, gain, splits``, greatest gain first; ``gain`` in the loss's unit, not normalised."""
        ...

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Columns the model was trained on, in order."""
        ...


MODEL_TYPES: Final[Mapping[str, str]] = {"lightgbm": "mlbot_core.models.lightgbm:LightGBMModel"}


def model_class(model_type: str) -> type[DirectionModel]:
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
    return cast("type[DirectionModel]", getattr(importlib.import_module(module), name))


def create_model(model_type: str, models: ModelsConfig, threads: int) -> DirectionModel:
    """Return an unfitted model with the parameters of its section of ``models.yaml``.

    Raises
    ------
    UsageError
        If there is no such type.
    """
    return model_class(model_type).from_config(getattr(models, model_type), threads)


def load_model(folder: Path, threads: int = 1) -> DirectionModel:
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
