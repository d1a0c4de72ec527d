"""Direction classifier: gradient boosted trees by LightGBM, deterministic to the byte.

Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", NeurIPS 2017.
"""

from __future__ import annotations

import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.config import LightGBMConfig
from mlbot_core.errors import UsageError
from mlbot_core.models.artefact import ArtefactError, read_artefact, write_artefact
from mlbot_core.models.base import (
    LABELS,
    PROBABILITIES,
    FeatureMismatchError,
    NotFittedError,
    TrainingDataError,
    blank_rows,
    check_columns,
    check_labels,
    check_weights,
)

_MODEL_FILE: Final = "model.txt"
_THREADS_LINE: Final = re.compile(r"^\[num_threads: \d+\]$", re.MULTILINE)
# LightGBM's text separates names by blanks and refuses what JSON needs for itself.
_BAD_NAME: Final = re.compile(r'[\s",:\[\]{}]|^$')


class LightGBMModel:
    """Multiclass LightGBM over the labels -1, 0, 1; implements :class:`mlbot_core.models.base.DirectionModel`.

    Missing values are handled by LightGBM itself (each split learns a side for NaN). The model text is the same for
    any number of threads.

    Parameters
    ----------
    config
        Parameters of ``models.yaml``; ``seed`` seeds bagging and feature sampling.
    threads
        Cores to use, at least 1.
    """

    model_type: ClassVar[str] = "lightgbm"

    def __init__(self, config: LightGBMConfig, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads {threads} must be at least 1")
        self._config = config
        self._threads = threads
        self._names: tuple[str, ...] = ()
        self._classes: tuple[int, ...] = ()
        self._rows = 0
        self._text = ""
        self._libraries: dict[str, str] = {}
        self._booster: Any = None

    @classmethod
    def from_config(cls, config: LightGBMConfig, threads: int) -> Self:
        """Return an unfitted model."""
        return cls(config, threads)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Columns the model was trained on, in order."""
        return self._names

    @property
    def classes(self) -> tuple[int, ...]:
        """Labels that the training data held, ascending."""
        return self._classes

    def fit(
        self, X: pd.DataFrame, y: npt.ArrayLike | pd.Series, weight: npt.ArrayLike | pd.Series | None = None
    ) -> Self:
        """Train; see :class:`mlbot_core.models.base.DirectionModel`.

        Raises
        ------
        TrainingDataError
            If there are no rows or columns, a label is NaN or unknown, or only one class occurs.
        FeatureMismatchError
            If a column is not float64, holds an infinity or has a name LightGBM cannot store.
        """
        import lightgbm

        matrix = check_columns(X)
        labels = check_labels(y, len(matrix))
        weights = check_weights(weight, len(matrix))
        names = [str(name) for name in X.columns]
        if not names:
            raise TrainingDataError("no feature columns to train on")
        bad = [name for name in names if _BAD_NAME.search(name)]
        if bad:
            raise FeatureMismatchError(f'feature name {bad[0]!r} holds a blank or one of ",:[]{{}}; rename it')
        classes = tuple(int(c) for c in np.unique(labels))
        data = lightgbm.Dataset(
            matrix,
            label=np.searchsorted(classes, labels),
            weight=weights,
            feature_name=names,
            params={"verbosity": -1},
        )
        booster = lightgbm.train(self._parameters(len(classes)), data, num_boost_round=self._config.n_estimators)
        self._names, self._classes, self._rows = tuple(names), classes, len(matrix)
        self._libraries = {name: version(name) for name in ("lightgbm", "numpy")} | {
            "python": platform.python_version()
        }
        # The thread count changes nothing but its own line in the text.
        self._text = _THREADS_LINE.sub("[num_threads: 0]", booster.model_to_string())
        # What predicts is what will be stored, so a loaded model cannot differ from a fitted one.
        self._booster = lightgbm.Booster(model_str=self._text)
        return self

    def predict_proba(self, X: pd.DataFrame) -> pd.DataFrame:
        """Return ``p_down, p_neutral, p_up``; see :class:`mlbot_core.models.base.DirectionModel`.

        Raises
        ------
        NotFittedError
            If the model was neither fitted nor loaded.
        FeatureMismatchError
            If the columns are not exactly the trained ones, as float64.
        """
        self._require_fitted()
        matrix = check_columns(X, self._names)
        out = np.zeros((len(matrix), len(LABELS)), dtype=np.float64)
        if len(matrix):
            raw = self._booster.predict(matrix, num_threads=self._threads)
            out[:, [LABELS.index(c) for c in self._classes]] = raw
            out[blank_rows(matrix)] = np.nan
        return pd.DataFrame(out, index=X.index, columns=list(PROBABILITIES))

    def save(self, folder: Path) -> None:
        """Write ``model.txt`` and ``meta.json``; see :func:`mlbot_core.models.artefact.write_artefact`.

        Raises
        ------
        NotFittedError
            If there is nothing to save.
        ArtefactError
            If the folder holds another model.
        """
        self._require_fitted()
        meta = {
            "type": self.model_type,
            "features": list(self._names),
            "classes": list(self._classes),
            "params": self._config.model_dump(mode="json"),
            "rows": self._rows,
            "libraries": self._libraries,
        }
        write_artefact(folder, {_MODEL_FILE: self._text.encode("utf-8")}, meta)

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> Self:
        """Read an artefact that :meth:`save` wrote.

        Raises
        ------
        ArtefactError
            If it is missing, damaged, of another type, or its text and meta disagree on features or classes.
        """
        import lightgbm

        meta, payload = read_artefact(folder)
        if meta.get("type") != cls.model_type:
            raise ArtefactError(f"{folder} holds a {meta.get('type')!r} model, not {cls.model_type!r}")
        again = f"delete {folder} and train the model again"
        try:
            model = cls(LightGBMConfig.model_validate(meta["params"]), threads)
            model._names = tuple(meta["features"])
            model._classes = tuple(meta["classes"])
            model._rows = int(meta["rows"])
            model._libraries = dict(meta["libraries"])
            model._text = payload[_MODEL_FILE].decode("utf-8")
            model._booster = lightgbm.Booster(model_str=model._text)
        except (KeyError, TypeError, ValueError, lightgbm.basic.LightGBMError) as error:
            raise ArtefactError(f"{folder} is not a usable model ({type(error).__name__}: {error}); {again}") from error
        stored = tuple(model._booster.feature_name())
        trees = model._booster.num_model_per_iteration()
        if stored != model._names or trees != len(model._classes) or not set(model._classes) <= set(LABELS):
            raise ArtefactError(
                f"{folder}: the trees were grown on {len(stored)} features and {trees} classes, the meta claims "
                f"{len(model._names)} and {model._classes}, or other names; {again}"
            )
        return model

    def feature_importance(self) -> pd.DataFrame:
        """Return ``feature, gain, splits``, greatest total gain first, then by name.

        Raises
        ------
        NotFittedError
            If the model was neither fitted nor loaded.
        """
        self._require_fitted()
        frame = pd.DataFrame(
            {
                "feature": list(self._names),
                "gain": np.asarray(self._booster.feature_importance("gain"), dtype=np.float64),
                "splits": np.asarray(self._booster.feature_importance("split"), dtype=np.int64),
            }
        )
        return frame.sort_values(["gain", "feature"], ascending=[False, True], ignore_index=True)

    def _require_fitted(self) -> None:
        if self._booster is None:
            raise NotFittedError("the lightgbm model has not been fitted or loaded; call fit or load first")

    def _parameters(self, classes: int) -> dict[str, Any]:
        config = self._config
        return {
            "objective": "multiclass",
            "num_class": classes,
            "learning_rate": config.learning_rate,
            "num_leaves": config.num_leaves,
            "min_data_in_leaf": config.min_child_samples,
            "bagging_fraction": config.subsample,
            "bagging_freq": config.subsample_freq,
            "feature_fraction": config.colsample_bytree,
            "lambda_l2": config.reg_lambda,
            "seed": config.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": self._threads,
            "verbosity": -1,
        }
