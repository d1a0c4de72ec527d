"""What the models of single rows share: the checks, the order of the steps and the artefact."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel

from mlbot_core.errors import UsageError
from mlbot_core.models.artefact import ArtefactError, check_libraries, open_artefact, write_artefact
from mlbot_core.models.base import (
    BASE_COLUMN,
    FORECAST,
    NotFittedError,
    Target,
    blank_rows,
    check_columns,
    check_labels,
    check_outcomes,
    check_rows,
    check_scores,
    check_weights,
)
from mlbot_core.models.forecast import fit_touch, from_normal

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TrainingSample:
    """Checked training rows.

    Parameters
    ----------
    names
        Features, in the order of the columns.
    matrix
        Features, shape (rows, features), float64, C order.
    outcome
        What is learnt, shape (rows,): labels -1, 0, 1 or scores.
    label
        The triple barrier's, shape (rows,), NaN where it is not known: what was learnt may be the score.
    weight
        Shape (rows,), or None for equal weights.
    open_ms
        Open time of each row's bar, UTC ms, ascending.
    bar_ms
        Least distance of two bars of the whole frame, ms; 0 if it has one bar only.
    settled_ms
        When each row's outcome was known (``t1``), shape (rows,), UTC ms as float64, NaN where it is not; None where
        the outcomes do not say.
    """

    names: tuple[str, ...]
    matrix: FloatArray
    outcome: FloatArray
    label: FloatArray
    weight: FloatArray | None
    open_ms: npt.NDArray[np.int64]
    bar_ms: int
    settled_ms: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.matrix)

    def weights(self) -> FloatArray:
        """Return the weights, ones where none were given."""
        return np.ones(len(self)) if self.weight is None else self.weight

    def take(self, rows: npt.NDArray[np.bool_]) -> TrainingSample:
        """Return some of the rows."""
        weight = None if self.weight is None else self.weight[rows]
        return replace(
            self,
            matrix=self.matrix[rows],
            outcome=self.outcome[rows],
            label=self.label[rows],
            weight=weight,
            open_ms=self.open_ms[rows],
            settled_ms=None if self.settled_ms is None else self.settled_ms[rows],
        )


class TabularModel(ABC):
    """A model whose forecast of a bar reads that bar's features alone; implements :class:`~.base.Model`.

    A subclass says how it learns, forecasts and explains checked matrices, and what its artefact holds.

    Parameters
    ----------
    config
        This type's section of ``models.yaml``.
    threads
        Cores to use, at least 1.
    """

    model_type: ClassVar[str]
    target: ClassVar[Target]
    config_class: ClassVar[type[BaseModel]]
    libraries: ClassVar[tuple[str, ...]]
    """Packages whose release decides what the artefact means: another release is refused."""

    def __init__(self, config: Any, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads {threads} must be at least 1")
        self._config = config
        self._threads = threads
        self._names: tuple[str, ...] = ()
        self._rows = 0
        self._trained_with: dict[str, str] = {}

    @classmethod
    def from_config(cls, config: Any, threads: int) -> Self:
        """Return an unfitted model."""
        return cls(config, threads)

    @property
    def context_bars(self) -> int:
        """No row before a row is read."""
        return 0

    @property
    @abstractmethod
    def explained(self) -> str:
        """The raw output that contributions sum to, in words."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Columns the model was trained on, in order."""
        return self._names

    def fit(
        self,
        X: pd.DataFrame,
        y: pd.DataFrame,
        rows: npt.NDArray[np.int64] | None = None,
        weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Train; see :meth:`mlbot_core.models.base.Model.fit`.

        Raises
        ------
        TrainingDataError
            If there are no rows or columns, an outcome is unknown, or all outcomes are the same.
        FeatureMismatchError
            If a column is not float64, holds an infinity or is not one that this type takes.
        """
        names = tuple(str(name) for name in X.columns)
        self._check_names(names)
        index = check_rows(rows, len(X))
        matrix = check_columns(X.iloc[index])
        values = check_outcomes(X, y, self.target)[index]
        outcome = check_labels(values, len(index)) if self.target == "label" else check_scores(values, len(index))
        open_ms = X.index.to_numpy(dtype=np.int64)
        sample = TrainingSample(
            names,
            matrix,
            outcome.astype(np.float64),
            check_outcomes(X, y, "label")[index],
            check_weights(weight, len(index)),
            open_ms[index],
            int(np.diff(open_ms).min()) if len(open_ms) > 1 else 0,
            y["t1"].to_numpy(dtype=np.float64)[index] if "t1" in y.columns else None,
        )
        # a type that leaves rows out puts their number right in _learn
        self._rows = len(sample)
        self._learn(sample)
        self._names = names
        self._trained_with = {name: version(name) for name in self.libraries} | {"python": platform.python_version()}
        return self

    def predict(self, X: pd.DataFrame, rows: npt.NDArray[np.int64] | None = None) -> pd.DataFrame:
        """Return the forecast; see :meth:`mlbot_core.models.base.Model.predict`.

        Raises
        ------
        NotFittedError
            If the model was neither fitted nor loaded.
        FeatureMismatchError
            If the columns are not exactly the trained ones, as float64.
        """
        self._require_fitted()
        index, matrix = self._asked(X, rows)
        if len(matrix) == 0:
            return pd.DataFrame(np.empty((0, len(FORECAST))), index=index, columns=list(FORECAST))
        forecast = self._forecast(matrix, index)
        forecast.loc[blank_rows(matrix)] = np.nan
        return forecast

    def explain(self, X: pd.DataFrame, rows: npt.NDArray[np.int64] | None = None) -> pd.DataFrame:
        """Return what each feature added; see :meth:`mlbot_core.models.base.Model.explain`.

        Raises
        ------
        NotFittedError, FeatureMismatchError
        """
        self._require_fitted()
        index, matrix = self._asked(X, rows)
        out = np.empty((0, len(self._names) + 1)) if len(matrix) == 0 else self._contributions(matrix)
        out[blank_rows(matrix)] = np.nan
        return pd.DataFrame(out, index=index, columns=[*self._names, BASE_COLUMN])

    def save(self, folder: Path) -> None:
        """Write the artefact; see :func:`mlbot_core.models.artefact.write_artefact`.

        Raises
        ------
        NotFittedError
            If there is nothing to save.
        ArtefactError
            If the folder holds another model.
        """
        self._require_fitted()
        payload, own = self._state()
        meta = {
            "type": self.model_type,
            "features": list(self._names),
            "params": self._config.model_dump(mode="json"),
            "rows": self._rows,
            "libraries": self._trained_with,
            **own,
        }
        write_artefact(folder, payload, meta)

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> Self:
        """Read an artefact that :meth:`save` wrote.

        Raises
        ------
        ArtefactError
            If it is missing, damaged, of another type, or its payload and meta disagree.
        LibraryMismatchError
            If another release of a library trained it.
        """
        meta, payload = open_artefact(folder, cls.model_type)
        check_libraries(folder, meta, cls.libraries)
        try:
            model = cls(cls.config_class.model_validate(meta["params"]), threads)
            model._names = tuple(str(name) for name in meta["features"])
            model._rows = int(meta["rows"])
            model._trained_with = dict(meta["libraries"])
            model._restore(meta, payload)
        except ArtefactError:
            raise
        except cls._damage() as error:
            raise ArtefactError(
                f"{folder} is not a usable model ({type(error).__name__}: {error}); "
                f"delete {folder} and train the model again"
            ) from error
        return model

    def feature_importance(self) -> pd.DataFrame:
        """Return ``feature, gain, splits``, greatest gain first, then by name.

        Raises
        ------
        NotFittedError
            If the model was neither fitted nor loaded.
        """
        self._require_fitted()
        gain, splits = self._importance()
        frame = pd.DataFrame(
            {
                "feature": list(self._names),
                "gain": np.asarray(gain, dtype=np.float64),
                "splits": np.asarray(splits, dtype=np.int64),
            }
        )
        return frame.sort_values(["gain", "feature"], ascending=[False, True], ignore_index=True)

    def _asked(self, X: pd.DataFrame, rows: npt.NDArray[np.int64] | None) -> tuple[pd.Index, FloatArray]:
        asked = X if rows is None else X.iloc[check_rows(rows, len(X))]
        return asked.index, check_columns(asked, self._names)

    def _require_fitted(self) -> None:
        if not self._names:
            raise NotFittedError(f"the {self.model_type} model has not been fitted or loaded; call fit or load first")

    @classmethod
    def _damage(cls) -> tuple[type[Exception], ...]:
        """Errors of a payload that cannot be read."""
        return (KeyError, TypeError, ValueError)

    def _check_names(self, names: tuple[str, ...]) -> None:  # noqa: B027 - most types take any names
        """Refuse columns that the type cannot be trained on; any names will do unless a type says otherwise.

        Raises
        ------
        FeatureMismatchError
        """

    @abstractmethod
    def _learn(self, sample: TrainingSample) -> None:
        """Train on checked rows."""

    @abstractmethod
    def _forecast(self, matrix: FloatArray, index: pd.Index) -> pd.DataFrame:
        """Return the forecast of at least one row; rows without any feature are blanked afterwards."""

    @abstractmethod
    def _contributions(self, matrix: FloatArray) -> FloatArray:
        """Return shape (rows, features + 1), the base last."""

    @abstractmethod
    def _importance(self) -> tuple[npt.ArrayLike, npt.ArrayLike]:
        """Return gain and number of splits of each feature, in their order."""

    @abstractmethod
    def _state(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        """Return payload files and further entries of the meta."""

    @abstractmethod
    def _restore(self, meta: Mapping[str, Any], payload: Mapping[str, bytes]) -> None:
        """Take over what :meth:`_state` returned.

        Raises
        ------
        ValueError
            If payload and meta disagree.
        """


class NormalModel(TabularModel):
    """A tabular model of the score that says a mean and a deviation.

    How often a barrier is touched is learnt beside them (:func:`mlbot_core.models.forecast.fit_touch`), because the
    deviation of a return with fat tails does not say it.
    """

    target: ClassVar[Target] = "score"

    def __init__(self, config: Any, threads: int = 1) -> None:
        super().__init__(config, threads)
        self._touch = 1.0

    @property
    def explained(self) -> str:
        """The mean."""
        return "score, in barrier widths"

    def _learn(self, sample: TrainingSample) -> None:
        self._learn_normal(sample)
        known = ~blank_rows(sample.matrix)
        self._touch = 1.0
        if known.any():
            mean, sd = self._normal(sample.matrix[known])
            self._touch = fit_touch(mean, sd, sample.label[known], sample.weights()[known])

    def _forecast(self, matrix: FloatArray, index: pd.Index) -> pd.DataFrame:
        mean, sd = self._normal(matrix)
        return from_normal(mean, sd, index, self._touch)

    def _state(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        payload, own = self._normal_state()
        return payload, {"touch": self._touch, **own}

    def _restore(self, meta: Mapping[str, Any], payload: Mapping[str, bytes]) -> None:
        self._touch = float(meta["touch"])
        self._restore_normal(meta, payload)

    @abstractmethod
    def _learn_normal(self, sample: TrainingSample) -> None:
        """Train on checked rows."""

    @abstractmethod
    def _normal(self, matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return mean and deviation of the score, each of shape (rows,)."""

    @abstractmethod
    def _normal_state(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        """Return payload files and further entries of the meta."""

    @abstractmethod
    def _restore_normal(self, meta: Mapping[str, Any], payload: Mapping[str, bytes]) -> None:
        """Take over what :meth:`_normal_state` returned."""
