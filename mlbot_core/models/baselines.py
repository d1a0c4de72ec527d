"""What every model has to beat: a linear one, the trend, and knowing nothing but the base rates.

They pass the same suite as the models and go the same way through the walk-forward and the backtest. Buying and
holding is no forecast and is simulated by the backtest itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.config import ConstantConfig, MomentumConfig, RidgeConfig
from mlbot_core.models.base import LABELS, FeatureMismatchError, Target
from mlbot_core.models.calibration import log_frequencies
from mlbot_core.models.canonical import canonical_json
from mlbot_core.models.forecast import from_probabilities
from mlbot_core.models.linear import normal_equations, solve_ridge
from mlbot_core.models.tabular import FloatArray, NormalModel, TabularModel, TrainingSample

_MODEL_FILE: Final = "model.json"
_NUMPY: Final = ("numpy",)
# A column whose deviation is rounding error beside its mean is a constant.
_FLAT: Final = 1e-10


class RidgeModel(NormalModel):
    """Ridge regression of the score (Hoerl and Kennard, 1970, Technometrics 12); one deviation for all bars.

    Features are standardised with the training rows' weighted mean and deviation; an unknown value counts as the mean,
    a feature that was never known or never moved as nothing. The deviation is that of the residuals, corrected for the
    effective degrees of freedom.
    """

    model_type: ClassVar[str] = "ridge"
    config_class = RidgeConfig
    libraries: ClassVar[tuple[str, ...]] = _NUMPY

    _config: RidgeConfig

    def __init__(self, config: RidgeConfig, threads: int = 1) -> None:
        super().__init__(config, threads)
        self._mean = self._scale = self._coefficient = np.empty(0)
        self._intercept = self._sd = 0.0

    def _learn_normal(self, sample: TrainingSample) -> None:
        weight = sample.weights()
        self._mean, self._scale = _moments(sample.matrix, weight)
        z = self._standardised(sample.matrix)
        total = weight.sum()
        self._intercept = float((weight * sample.outcome).sum() / total)
        gram, moment = normal_equations(z, sample.outcome - self._intercept, weight)
        self._coefficient, freedom = solve_ridge(gram, moment, self._config.penalty)
        residual = sample.outcome - self._intercept - _row_sums(z * self._coefficient)
        independent = total * total / (weight * weight).sum()  # Kish's effective number of rows
        correction = independent / max(independent - freedom - 1.0, 1.0)
        self._sd = float(np.sqrt((weight * residual * residual).sum() / total * correction))

    def _normal(self, matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
        mean = _row_sums(self._contributions(matrix))
        return mean, np.full(len(mean), self._sd)

    def _contributions(self, matrix: FloatArray) -> FloatArray:
        parts = self._standardised(matrix) * self._coefficient
        return np.column_stack([parts, np.full(len(parts), self._intercept)])

    def _importance(self) -> tuple[npt.ArrayLike, npt.ArrayLike]:
        """Size of the coefficient: barrier widths a standard deviation of the feature; 1 where it is used."""
        size = np.abs(self._coefficient)
        return size, size > 0

    def _standardised(self, matrix: FloatArray) -> FloatArray:
        used = self._scale > 0
        z = (matrix - self._mean) / np.where(used, self._scale, 1.0)
        return np.where(np.isnan(z) | ~used, 0.0, z)

    def _normal_state(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        state = {
            "mean": self._mean.tolist(),
            "scale": self._scale.tolist(),
            "coefficient": self._coefficient.tolist(),
            "intercept": self._intercept,
            "sd": self._sd,
        }
        return _as_file(state, self._names), {}

    def _restore_normal(self, meta: Mapping[str, Any], payload: Mapping[str, bytes]) -> None:
        state = _from_file(meta, payload)
        vectors = [np.array(state[name], dtype=np.float64) for name in ("mean", "scale", "coefficient")]
        if any(vector.shape != (len(self._names),) for vector in vectors):
            raise ValueError(f"it holds coefficients of another number of features than {len(self._names)}")
        self._mean, self._scale, self._coefficient = vectors
        self._intercept, self._sd = float(state["intercept"]), float(state["sd"])


class MomentumModel(NormalModel):
    """Time-series momentum: the sign of the trailing return (Moskowitz, Ooi, Pedersen, 2012, JFE 104, section 4).

    The rule holds the sign of the trend whatever has come of it, scaled by volatility, which the barrier width does
    here. The score is the configured strength times the mean sign of the signals; nothing of it is estimated, and a
    rule that lost in the training window is not turned round. Only its deviation is learnt: the root mean square of
    what the training rows did beside it. An unknown signal counts as none.
    """

    model_type: ClassVar[str] = "momentum"
    config_class = MomentumConfig
    libraries: ClassVar[tuple[str, ...]] = _NUMPY

    _config: MomentumConfig

    def __init__(self, config: MomentumConfig, threads: int = 1) -> None:
        super().__init__(config, threads)
        self._sd = 0.0
        self._used = np.empty(0, dtype=np.bool_)

    def _learn_normal(self, sample: TrainingSample) -> None:
        absent = [name for name in self._config.signals if name not in sample.names]
        if absent:
            raise FeatureMismatchError(
                f"momentum reads the features {', '.join(self._config.signals)}, of which this set lacks "
                f"{', '.join(absent)}; train it on a set that holds them, or name others in momentum.signals of "
                "config/models.yaml (not normalised, with the sign of a trailing return)"
            )
        weight = sample.weights()
        self._used = np.isin(sample.names, self._config.signals)
        residual = sample.outcome - _row_sums(self._parts(sample.matrix))
        self._sd = float(np.sqrt((weight * residual * residual).sum() / weight.sum()))

    def _normal(self, matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
        mean = _row_sums(self._parts(matrix))
        return mean, np.full(len(mean), self._sd)

    def _contributions(self, matrix: FloatArray) -> FloatArray:
        return np.column_stack([self._parts(matrix), np.zeros(len(matrix))])

    def _parts(self, matrix: FloatArray) -> FloatArray:
        share = self._config.strength / len(self._config.signals)
        sign = np.sign(np.where(np.isnan(matrix), 0.0, matrix))
        return np.where(self._used, share * sign, 0.0)

    def _importance(self) -> tuple[npt.ArrayLike, npt.ArrayLike]:
        """Strength of each signal, barrier widths; 1 where it is read."""
        return self._used * self._config.strength / len(self._config.signals), self._used

    def _normal_state(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        return _as_file({"sd": self._sd}, self._names), {}

    def _restore_normal(self, meta: Mapping[str, Any], payload: Mapping[str, bytes]) -> None:
        self._sd = float(_from_file(meta, payload)["sd"])
        self._used = np.isin(meta["features"], self._config.signals)


class ConstantModel(TabularModel):
    """The training frequencies of the labels, the same for every bar: the forecast of someone without any skill."""

    model_type: ClassVar[str] = "constant"
    target: ClassVar[Target] = "label"
    config_class = ConstantConfig
    libraries: ClassVar[tuple[str, ...]] = _NUMPY

    def __init__(self, config: ConstantConfig, threads: int = 1) -> None:
        super().__init__(config, threads)
        self._p = np.empty(0)

    @property
    def explained(self) -> str:
        """Log odds of up over down."""
        return "log(p_up / p_down)"

    def _learn(self, sample: TrainingSample) -> None:
        column = np.searchsorted(LABELS, sample.outcome)
        self._p = np.exp(log_frequencies(column, sample.weights(), len(LABELS)))

    def _forecast(self, matrix: FloatArray, index: pd.Index) -> pd.DataFrame:
        return from_probabilities(np.tile(self._p, (len(matrix), 1)), index)

    def _contributions(self, matrix: FloatArray) -> FloatArray:
        out = np.zeros((len(matrix), matrix.shape[1] + 1))
        out[:, -1] = np.log(self._p[2] / self._p[0])
        return out

    def _importance(self) -> tuple[npt.ArrayLike, npt.ArrayLike]:
        none = np.zeros(len(self._names))
        return none, none

    def _state(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        return _as_file({"probabilities": self._p.tolist()}, self._names), {}

    def _restore(self, meta: Mapping[str, Any], payload: Mapping[str, bytes]) -> None:
        p = np.array(_from_file(meta, payload)["probabilities"], dtype=np.float64)
        if p.shape != (len(LABELS),) or not np.isclose(p.sum(), 1.0):
            raise ValueError(f"{p.tolist()} are not the probabilities of {len(LABELS)} classes")
        self._p = p


def _moments(matrix: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return each column's weighted mean and deviation over its known rows; deviation 0 for one that says nothing."""
    known = np.isfinite(matrix)
    share = known * weight[:, None]
    total = share.sum(axis=0)
    divisor = np.where(total > 0, total, 1.0)
    filled = np.where(known, matrix, 0.0)
    mean = (share * filled).sum(axis=0) / divisor
    scale = np.sqrt((share * (filled - mean) ** 2).sum(axis=0) / divisor)
    return mean, np.where(scale > _FLAT * np.abs(mean), scale, 0.0)


def _row_sums(parts: FloatArray) -> FloatArray:
    # Along rows in C order the order of summation is the same for one row as for many, so are the bits.
    return np.asarray(np.ascontiguousarray(parts).sum(axis=1))


def _as_file(state: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, bytes]:
    # Python writes the shortest text that reads back as the same float, so the round trip is exact.
    return {_MODEL_FILE: (canonical_json({"features": list(names), **state}) + "\n").encode("utf-8")}


def _from_file(meta: Mapping[str, Any], payload: Mapping[str, bytes]) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(payload[_MODEL_FILE])
    held, claimed = state["features"], meta["features"]
    if held != claimed:
        raise ValueError(f"it was fitted on {len(held)} features, the meta claims {len(claimed)} or other names")
    return state
