"""Direction classifier: gradient boosted trees by LightGBM, calibrated, deterministic to the byte.

Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", NeurIPS 2017.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.config import LightGBMConfig
from mlbot_core.models.base import LABELS, PROBABILITIES, FeatureMismatchError, NotFittedError, Target
from mlbot_core.models.calibration import Calibration, fit_temperature, hold_out, log_frequencies
from mlbot_core.models.forecast import from_probabilities
from mlbot_core.models.tabular import FloatArray, TabularModel, TrainingSample

_MODEL_FILE: Final = "model.txt"
_THREADS_LINE: Final = re.compile(r"^\[num_threads: \d+\]$", re.MULTILINE)
# LightGBM's text separates names by blanks and refuses what JSON needs for itself.
_BAD_NAME: Final = re.compile(r'[\s",:\[\]{}]|^$')


class LightGBMModel(TabularModel):
    """Multiclass LightGBM over the labels -1, 0, 1; implements :class:`mlbot_core.models.base.Model`.

    Missing values are handled by LightGBM itself (each split learns a side for NaN). The model text is the same for
    any number of threads. The probabilities are calibrated on the latest training rows by trees that did not see them
    (:mod:`mlbot_core.models.calibration`); with ``calibration.refit`` the trees that forecast are then grown on all
    rows, and keep the temperature of their shorter twins. A class that the training data did not hold has
    probability 0.

    Parameters
    ----------
    config
        Parameters of ``models.yaml``; ``seed`` seeds bagging and feature sampling.
    threads
        Cores to use, at least 1.
    """

    model_type: ClassVar[str] = "lightgbm"
    target: ClassVar[Target] = "label"
    config_class = LightGBMConfig
    libraries: ClassVar[tuple[str, ...]] = ("lightgbm",)

    _config: LightGBMConfig

    def __init__(self, config: LightGBMConfig, threads: int = 1) -> None:
        super().__init__(config, threads)
        self._classes: tuple[int, ...] = ()
        self._calibration: Calibration | None = None
        self._text = ""
        self._booster: Any = None

    @property
    def classes(self) -> tuple[int, ...]:
        """Labels that the training data held, ascending."""
        return self._classes

    @property
    def calibration(self) -> Calibration:
        """How the probabilities were calibrated, or why they were not.

        Raises
        ------
        NotFittedError
            If the model was neither fitted nor loaded.
        """
        if self._calibration is None:
            raise NotFittedError("the lightgbm model has not been fitted or loaded; call fit or load first")
        return self._calibration

    @property
    def explained(self) -> str:
        """Log odds of the highest class over the lowest one, that of up over down where both occurred."""
        classes = self._classes or LABELS
        low, high = (PROBABILITIES[LABELS.index(classes[end])] for end in (0, -1))
        return f"log({high} / {low})"

    def _learn(self, sample: TrainingSample) -> None:
        import lightgbm

        bad = [name for name in sample.names if _BAD_NAME.search(name)]
        if bad:
            raise FeatureMismatchError(f'feature name {bad[0]!r} holds a blank or one of ",:[]{{}}; rename it')
        classes = tuple(int(c) for c in np.unique(sample.outcome))
        config = self._config.calibration
        parts = hold_out(sample, config, classes=True)
        if parts.reason:
            booster = self._grow(sample, classes)
            calibration = Calibration.skipped(parts.reason, _base(sample, classes))
        else:
            earlier, later = sample.take(parts.fit), sample.take(parts.held)
            judged = self._grow(earlier, classes)
            whole = sample if config.refit else earlier
            calibration = fit_temperature(
                np.asarray(judged.predict(later.matrix, raw_score=True, num_threads=self._threads)),
                np.searchsorted(classes, later.outcome),
                later.weights(),
                _base(whole, classes),
                _base(earlier, classes),
                len(earlier),
            )
            booster = self._grow(sample, classes) if config.refit else judged
        # The thread count changes nothing but its own line in the text.
        self._text = _THREADS_LINE.sub("[num_threads: 0]", booster.model_to_string())
        # What predicts is what will be stored, so a loaded model cannot differ from a fitted one.
        self._booster = lightgbm.Booster(model_str=self._text)
        self._classes, self._calibration = classes, calibration

    def _grow(self, sample: TrainingSample, classes: tuple[int, ...]) -> Any:
        import lightgbm

        data = lightgbm.Dataset(
            sample.matrix,
            label=np.searchsorted(classes, sample.outcome),
            weight=sample.weight,
            feature_name=list(sample.names),
            params={"verbosity": -1},
        )
        return lightgbm.train(self._parameters(len(classes)), data, num_boost_round=self._config.n_estimators)

    def _forecast(self, matrix: FloatArray, index: pd.Index) -> pd.DataFrame:
        raw = np.asarray(self._booster.predict(matrix, raw_score=True, num_threads=self._threads))
        out = np.zeros((len(matrix), len(LABELS)), dtype=np.float64)
        out[:, [LABELS.index(c) for c in self._classes]] = self.calibration.probabilities(raw)
        return from_probabilities(out, index)

    def _contributions(self, matrix: FloatArray) -> FloatArray:
        """Tree SHAP of the highest class less that of the lowest (Lundberg et al. 2020, From local explanations to
        global understanding with explainable AI for trees, Nature Machine Intelligence 2), as LightGBM computes it.
        """
        width = matrix.shape[1] + 1
        raw = self._booster.predict(matrix, pred_contrib=True, num_threads=self._threads)
        parts = np.asarray(raw, dtype=np.float64).reshape(len(matrix), len(self._classes), width)
        out = parts[:, -1] - parts[:, 0]
        # Calibration is linear in the raw scores, so it scales the parts and moves the base.
        base = self.calibration.scores(np.zeros((1, len(self._classes))))[0]
        out *= self.calibration.inverse
        if self.calibration.method != "none":
            out[:, -1] += base[-1] - base[0]
        return np.asarray(out)

    def _importance(self) -> tuple[npt.ArrayLike, npt.ArrayLike]:
        return self._booster.feature_importance("gain"), self._booster.feature_importance("split")

    def _state(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        own = {"classes": list(self._classes), "calibration": self.calibration.as_json()}
        return {_MODEL_FILE: self._text.encode("utf-8")}, own

    def _restore(self, meta: Mapping[str, Any], payload: Mapping[str, bytes]) -> None:
        import lightgbm

        self._classes = tuple(meta["classes"])
        self._calibration = Calibration.from_json(meta["calibration"])
        self._text = payload[_MODEL_FILE].decode("utf-8")
        self._booster = lightgbm.Booster(model_str=self._text)
        stored = tuple(self._booster.feature_name())
        trees = self._booster.num_model_per_iteration()
        known = set(self._classes) <= set(LABELS) and len(self._calibration.base) == len(self._classes)
        if stored != self._names or trees != len(self._classes) or not known:
            raise ValueError(
                f"the trees were grown on {len(stored)} features and {trees} classes, the meta claims "
                f"{len(self._names)} and {self._classes}, or other names"
            )

    @classmethod
    def _damage(cls) -> tuple[type[Exception], ...]:
        import lightgbm

        return (*super()._damage(), lightgbm.basic.LightGBMError)

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


def _base(sample: TrainingSample, classes: tuple[int, ...]) -> FloatArray:
    return log_frequencies(np.searchsorted(classes, sample.outcome), sample.weights(), len(classes))
