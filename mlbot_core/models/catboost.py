"""Regression of the score with its uncertainty: gradient boosted symmetric trees by CatBoost, the same bytes each time.

Prokhorenkova, Gusev, Vorobev, Dorogush, Gulin, "CatBoost: unbiased boosting with categorical features", NeurIPS 2018;
Malinin, Prokhorenkova, Ustimenko, "Uncertainty in gradient boosting via ensembles", ICLR 2021.

The loss is that of a normal distribution whose mean and variance both depend on the features
(``RMSEWithUncertainty``), because a forecast of returns needs exactly these two, they cannot cross as separately fitted
quantiles can, and one ensemble gives both. To its variance (what the data leave open) is added the disagreement of
virtual ensembles, the forecasts of shorter and longer parts of the same trees (what the model does not know). Both
numbers are then corrected on the latest training rows by trees that did not see them
(:mod:`mlbot_core.models.calibration`): fitted variances are too small and fitted means too far out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from mlbot_core.config import CatBoostConfig
from mlbot_core.models.base import NotFittedError, TrainingDataError
from mlbot_core.models.calibration import Scaling, fit_scaling, hold_out
from mlbot_core.models.canonical import canonical_json
from mlbot_core.models.tabular import FloatArray, NormalModel, TrainingSample

_MAGIC: Final = b"CBM1"
_MODEL_FILE: Final = "model.cbm"
_KEPT: Final = ("boosting_options", "loss_function")
_LEAST_VARIANCE: Final = 1e-12  # square barrier widths


class CatBoostModel(NormalModel):
    """CatBoost over the score, in barrier widths; implements :class:`mlbot_core.models.base.Model`.

    Missing values go to one side of every split. The artefact is CatBoost's binary format without what differs from
    one run to the next (an identifier, the time, the history of the loss, the thread count); it does not depend on the
    number of threads.

    Parameters
    ----------
    config
        Parameters of ``models.yaml``; ``seed`` seeds the samples of rows and features.
    threads
        Cores to use, at least 1.
    """

    model_type: ClassVar[str] = "catboost"
    config_class = CatBoostConfig
    libraries: ClassVar[tuple[str, ...]] = ("catboost",)

    _config: CatBoostConfig

    def __init__(self, config: CatBoostConfig, threads: int = 1) -> None:
        super().__init__(config, threads)
        self._blob = b""
        self._trees: Any = None
        self._scaling: Scaling | None = None

    @property
    def scaling(self) -> Scaling:
        """How mean and deviation were calibrated, or why they were not.

        Raises
        ------
        NotFittedError
            If the model was neither fitted nor loaded.
        """
        if self._scaling is None:
            raise NotFittedError("the catboost model has not been fitted or loaded; call fit or load first")
        return self._scaling

    def _learn_normal(self, sample: TrainingSample) -> None:
        config = self._config.calibration
        parts = hold_out(sample, config, classes=False)
        if parts.reason:
            blob, scaling = self._grow(sample), Scaling("none", parts.reason, _mean(sample))
        else:
            earlier, later = sample.take(parts.fit), sample.take(parts.held)
            judged = self._grow(earlier)
            mean, sd = self._raw(_read(judged), later.matrix)
            whole = sample if config.refit else earlier
            scaling = fit_scaling(mean, sd, later.outcome, later.weights(), _mean(earlier), _mean(whole), len(earlier))
            blob = self._grow(sample) if config.refit else judged
        # What predicts is what will be stored, so a loaded model cannot differ from a fitted one.
        self._blob, self._trees, self._scaling = blob, _read(blob), scaling

    def _grow(self, sample: TrainingSample) -> bytes:
        import catboost

        trees = catboost.CatBoostRegressor(**self._parameters())
        names = list(sample.names)
        try:
            trees.fit(catboost.Pool(sample.matrix, sample.outcome, weight=sample.weight, feature_names=names))
        except catboost.CatBoostError as error:
            raise TrainingDataError(f"catboost cannot learn from these {len(sample)} rows: {error}") from error
        return _canonical(trees)

    def _normal(self, matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
        return self.scaling.apply(*self._raw(self._trees, matrix))

    def _raw(self, trees: Any, matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return mean and deviation as the trees say them."""
        both = trees.predict(matrix, prediction_type="RMSEWithUncertainty", thread_count=self._threads)
        mean, variance = np.asarray(both, dtype=np.float64).T
        if self._config.virtual_ensembles:
            parts = trees.virtual_ensembles_predict(
                matrix,
                prediction_type="TotalUncertainty",
                virtual_ensembles_count=self._config.virtual_ensembles,
                thread_count=self._threads,
            )
            variance = variance + np.asarray(parts, dtype=np.float64)[:, 1]
        return mean, np.sqrt(np.maximum(variance, _LEAST_VARIANCE))

    def _contributions(self, matrix: FloatArray) -> FloatArray:
        import catboost

        pool = catboost.Pool(matrix, feature_names=list(self._names))
        parts = self._trees.get_feature_importance(pool, type="ShapValues", thread_count=self._threads)
        out = np.array(np.asarray(parts, dtype=np.float64).reshape(len(matrix), -1, matrix.shape[1] + 1)[:, 0])
        scaling = self.scaling
        if scaling.method != "none":
            out *= scaling.slope
            out[:, -1] += scaling.base * (1.0 - scaling.slope)
        return out

    def _importance(self) -> tuple[npt.ArrayLike, npt.ArrayLike]:
        """CatBoost's ``PredictionValuesChange`` (mean and variance together, sums to 100), and counts of splits."""
        gain = self._trees.get_feature_importance(type="PredictionValuesChange", thread_count=self._threads)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.json"
            self._trees.save_model(str(path), format="json")
            trees = json.loads(path.read_text(encoding="utf-8"))["oblivious_trees"]
        used = [split["float_feature_index"] for tree in trees for split in tree["splits"] or []]
        return gain, np.bincount(np.array(used, dtype=np.int64), minlength=len(self._names))

    def _normal_state(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        return {_MODEL_FILE: self._blob}, {"calibration": asdict(self.scaling)}

    def _restore_normal(self, meta: Mapping[str, Any], payload: Mapping[str, bytes]) -> None:
        self._scaling = Scaling.from_json(meta["calibration"])
        self._blob = payload[_MODEL_FILE]
        self._trees = _read(self._blob)
        stored = list(self._trees.feature_names_)
        if stored != meta["features"]:
            raise ValueError(
                f"the trees hold {len(stored)} features, the meta claims {len(meta['features'])} or other names"
            )

    @classmethod
    def _damage(cls) -> tuple[type[Exception], ...]:
        import catboost

        return (*super()._damage(), catboost.CatBoostError)

    def _parameters(self) -> dict[str, Any]:
        config = self._config
        sampling: dict[str, Any] = {"bootstrap_type": "No"}
        if config.subsample < 1.0:
            sampling = {"bootstrap_type": "Bernoulli", "subsample": config.subsample}
        return {
            "loss_function": "RMSEWithUncertainty",
            "iterations": config.iterations,
            "learning_rate": config.learning_rate,
            "depth": config.depth,
            "l2_leaf_reg": config.l2_leaf_reg,
            "rsm": config.rsm,
            "posterior_sampling": config.langevin,
            "random_seed": config.seed,
            "thread_count": self._threads,
            "allow_writing_files": False,
            "verbose": False,
            **sampling,
        }


def _mean(sample: TrainingSample) -> float:
    weight = sample.weights()
    return float((weight * sample.outcome).sum() / weight.sum())


def _canonical(trees: Any) -> bytes:
    """Return the model in CatBoost's format, with of its notes only what decides forecasts."""
    notes = trees.get_metadata()
    parameters = json.loads(notes["params"])
    for name in list(notes.keys()):
        del notes[name]
    # The loss tells what the two numbers of a leaf are, the boosting options how virtual ensembles weigh the trees;
    # the rest, the thread count among it, is in the artefact's meta or does not decide anything.
    notes["params"] = canonical_json({name: parameters[name] for name in _KEPT})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _MODEL_FILE
        trees.save_model(str(path))
        return path.read_bytes()


def _read(blob: bytes) -> Any:
    import catboost

    # CatBoost reads beyond the end of a blob that is too short, and may find there what makes sense to it
    said = len(_MAGIC) + 4 + int.from_bytes(blob[len(_MAGIC) : len(_MAGIC) + 4], "little")
    if not blob.startswith(_MAGIC) or said != len(blob):
        raise ValueError(f"the trees are {len(blob)} bytes, their head says {said}")
    trees = catboost.CatBoostRegressor()
    return trees.load_model(blob=blob)
