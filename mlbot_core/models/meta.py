"""The meta-model: a regularised combination of base forecasts that leaves their plain mean only for good reasons.

Stacking after Wolpert, "Stacked generalization", Neural Networks 5 (1992). With s_b the score of base forecast b, m the
mean of those present, d their standard deviation (disagreement) and a_b their ages, the forecast is linear in

    1,   m,   s_b - m,   m * d,   m * a_b

Age and disagreement enter as factors of the mean because neither has a direction of its own: they say how much of it to
believe. Ridge regression pulls the coefficients towards a prior, either "the plain mean" (1 on m) or "nothing" (0
everywhere); prior and penalty are chosen by purged folds inside the training rows. Missing base forecasts leave the
mean and have no term of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from mlbot_core.config import MetaConfig
from mlbot_core.models.base import FeatureMismatchError, TrainingDataError
from mlbot_core.models.canonical import canonical_json
from mlbot_core.models.linear import normal_equations, solve_ridge
from mlbot_core.models.tabular import FloatArray, NormalModel, TrainingSample
from mlbot_core.validation.inner_splits import tuning_split

IntArray = npt.NDArray[np.int64]

SCORE: Final = "_score"
AGE: Final = "_age"
PRIORS: Final = {"mean": 1.0, "nothing": 0.0}
_FILE: Final = "model.json"
_MEAN: Final = 1  # position of the mean's term


@dataclass(frozen=True)
class _Pairs:
    """Where the scores and the ages of the base forecasts stand among the columns, in one order."""

    scores: IntArray
    ages: IntArray

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class _Fit:
    """Coefficients of the terms in their own units, and the spread of what they leave unexplained."""

    coefficients: FloatArray
    residual_sd: float


class MetaModel(NormalModel):
    """Stacks base forecasts; implements :class:`mlbot_core.models.base.Model`.

    Its columns come in pairs, one pair a base forecast: ``NAME_score`` (barrier widths; NaN = missing) and ``NAME_age``
    (bars since that forecast's bar closed). Its outcomes need ``t1`` beside the usual columns. A row without any base
    score trains nothing and has no forecast. Its explanation lays the forecast on the base scores: ages act through
    them and have 0 of their own; its importance is the mean absolute contribution over the training rows, in barrier
    widths.

    Parameters
    ----------
    config
        Penalties to choose from and number of inner folds.
    threads
        At least 1; the arithmetic is too small to spread.
    """

    model_type: ClassVar[str] = "meta"
    config_class: ClassVar[type[MetaConfig]] = MetaConfig
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)
    _config: MetaConfig

    def __init__(self, config: MetaConfig, threads: int = 1) -> None:
        super().__init__(config, threads)
        self._pairs = _Pairs(np.empty(0, np.int64), np.empty(0, np.int64))
        self._fit = _Fit(np.zeros(3), 0.0)
        self._chosen: dict[str, Any] = {}
        self._gain: list[float] = []

    @property
    def chosen(self) -> dict[str, Any]:
        """Prior and penalty that the inner folds chose, and their mean squared errors."""
        return dict(self._chosen)

    def _check_names(self, names: tuple[str, ...]) -> None:
        _pairs(names)

    def _learn(self, sample: TrainingSample) -> None:
        pairs = _pairs(sample.names)
        terms, known = _terms(sample.matrix, pairs)
        self._rows = int(known.sum())
        if self._rows < 2 * terms.shape[1]:
            raise TrainingDataError(
                f"{self._rows} rows with a base forecast cannot train {terms.shape[1]} terms; "
                "train the base models over a longer period, or stack fewer of them"
            )
        super()._learn(sample.take(known))

    def _learn_normal(self, sample: TrainingSample) -> None:
        if sample.settled_ms is None:
            raise TrainingDataError("the outcomes lack t1, when each was settled: the inner folds cannot be purged")
        self._pairs = _pairs(sample.names)
        terms, _ = _terms(sample.matrix, self._pairs)
        w = sample.weights()
        settled = sample.settled_ms.astype(np.int64)
        prior, penalty, errors = self._choose(terms, sample.outcome, w, sample.open_ms, settled)
        self._fit = _solve(terms, sample.outcome, w, prior, penalty)
        self._chosen = {"prior": prior, "penalty": penalty, "inner_mse": errors}
        self._gain = [float(v) for v in np.abs(self._contributions(sample.matrix)[:, :-1]).mean(axis=0)]

    def _normal(self, matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
        terms, known = _terms(matrix, self._pairs)
        mean = np.where(known, _dot(terms, self._fit.coefficients), np.nan)
        return mean, np.where(known, self._fit.residual_sd, np.nan)

    def _contributions(self, matrix: FloatArray) -> FloatArray:
        """Lay every term but the constant, which is the base, on the base scores that it is made of."""
        terms, known = _terms(matrix, self._pairs)
        c, n = self._fit.coefficients, len(self._pairs)
        scores = matrix[:, self._pairs.scores]
        present = np.isfinite(scores)
        share = np.where(present, scores, 0.0) / np.maximum(present.sum(axis=1, keepdims=True), 1)
        mean = terms[:, _MEAN]
        factor = np.divide(_dot(terms[:, 2 + n :], c[2 + n :]), mean, out=np.zeros(len(mean)), where=mean != 0)
        own = terms[:, 2 : 2 + n] * c[2 : 2 + n] + share * (c[_MEAN] + factor)[:, None]
        out = np.zeros((len(matrix), matrix.shape[1] + 1))
        out[:, self._pairs.scores] = own
        out[:, -1] = c[0]
        out[~known] = np.nan
        return out

    def _importance(self) -> tuple[npt.ArrayLike, npt.ArrayLike]:
        return self._gain, np.zeros(len(self._gain), dtype=np.int64)

    def _state(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        # all numbers of the fit stand in one file, how often a barrier is touched among them
        return self._normal_state()

    def _restore(self, meta: Mapping[str, Any], payload: Mapping[str, bytes]) -> None:
        self._restore_normal(meta, payload)

    def _normal_state(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        body = {
            "coefficients": [float(c) for c in self._fit.coefficients],
            "residual_sd": self._fit.residual_sd,
            "touch": self._touch,
            "importance": self._gain,
        }
        # plain arithmetic: the release of Python says nothing about what the artefact means
        libraries = {name: self._trained_with[name] for name in self.libraries}
        return {_FILE: canonical_json(body).encode()}, {"chosen": self._chosen, "libraries": libraries}

    def _restore_normal(self, meta: Mapping[str, Any], payload: Mapping[str, bytes]) -> None:
        body = json.loads(payload[_FILE])
        self._pairs = _pairs(self._names)
        self._fit = _Fit(np.array(body["coefficients"], dtype=np.float64), float(body["residual_sd"]))
        self._touch = float(body["touch"])
        self._gain = [float(v) for v in body["importance"]]
        self._chosen = dict(meta["chosen"])
        expected = 3 + 2 * len(self._pairs)
        if self._fit.coefficients.shape != (expected,) or len(self._gain) != len(self._names):
            raise ValueError(f"{len(self._fit.coefficients)} coefficients instead of {expected}")

    @classmethod
    def _damage(cls) -> tuple[type[Exception], ...]:
        return (*super()._damage(), FeatureMismatchError)

    def _choose(
        self, terms: FloatArray, outcome: FloatArray, w: FloatArray, begin: IntArray, end: IntArray
    ) -> tuple[str, float, dict[str, float]]:
        """Return the prior and penalty with the least squared error on purged held-out blocks, and all errors."""
        parts = tuning_split(np.arange(len(terms)), begin, end, self._config.folds)
        errors: dict[str, float] = {}
        best: tuple[float, str, float] | None = None
        for prior in PRIORS:
            for penalty in sorted(self._config.penalties, reverse=True):
                total = 0.0
                for part in parts:
                    fit = _solve(terms[part.fit_idx], outcome[part.fit_idx], w[part.fit_idx], prior, penalty)
                    held = part.held_idx
                    miss = outcome[held] - _dot(terms[held], fit.coefficients)
                    total += float((w[held] * miss * miss).sum())
                error = total / float(w.sum())
                errors[f"{prior} {penalty:g}"] = error
                if best is None or error < best[0]:
                    best = (error, prior, penalty)
        assert best is not None  # the configuration holds at least one penalty
        return best[1], best[2], errors


def _pairs(names: tuple[str, ...]) -> _Pairs:
    """Return where the pairs stand, in the order of the scores."""
    bases = tuple(name.removesuffix(SCORE) for name in names if name.endswith(SCORE))
    wanted = {b + suffix for b in bases for suffix in (SCORE, AGE)}
    if not bases or wanted != set(names):
        odd = sorted(wanted ^ set(names))[:5] or ["none at all"]
        raise FeatureMismatchError(
            f"the meta model takes pairs of columns NAME{SCORE} and NAME{AGE}; these do not fit: {', '.join(odd)}"
        )
    scores, ages = (np.array([names.index(b + end) for b in bases], dtype=np.int64) for end in (SCORE, AGE))
    return _Pairs(scores, ages)


def _terms(matrix: FloatArray, pairs: _Pairs) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return shape (rows, 3 + 2 pairs), and which rows have any base forecast; the others are zero."""
    scores = matrix[:, pairs.scores]
    ages = np.nan_to_num(matrix[:, pairs.ages])
    present = np.isfinite(scores)
    n = present.sum(axis=1)
    known = np.asarray(n > 0)
    filled = np.where(present, scores, 0.0)
    mean = filled.sum(axis=1) / np.maximum(n, 1)
    apart = np.where(present, scores - mean[:, None], 0.0)
    spread = np.sqrt((apart * apart).sum(axis=1) / np.maximum(n, 1))
    aged = np.where(present, ages, 0.0) * mean[:, None]
    terms = np.column_stack([known.astype(np.float64), mean, apart, mean * spread, aged])
    # row by row in memory, or a sum over columns would add in another order for many rows than for one
    return np.ascontiguousarray(terms), known


def _solve(terms: FloatArray, outcome: FloatArray, w: FloatArray, prior: str, penalty: float) -> _Fit:
    """Return the weighted ridge solution around the prior; terms count in units of their own spread."""
    centre = np.zeros(terms.shape[1])
    centre[_MEAN] = PRIORS[prior]
    total = float(w.sum())
    scale = np.sqrt((w[:, None] * terms * terms).sum(axis=0) / total)
    scaled = np.divide(terms, scale, out=np.zeros_like(terms), where=scale > 0)
    left = outcome - _dot(terms, centre)
    # without a linear-algebra library: the same bits for any number of threads and any processor
    gram, moment = normal_equations(np.ascontiguousarray(scaled), np.ascontiguousarray(left), np.ascontiguousarray(w))
    moved, _ = solve_ridge(gram, moment, penalty)
    coefficients = centre + np.divide(moved, scale, out=np.zeros_like(moved), where=scale > 0)
    miss = outcome - _dot(terms, coefficients)
    return _Fit(coefficients, float(np.sqrt((w * miss * miss).sum() / total)))


def _dot(terms: FloatArray, coefficients: FloatArray) -> FloatArray:
    # a sum along rows has one order whatever the number of rows: one row alone gives the same bits as in a batch
    return np.asarray((terms * coefficients).sum(axis=1), dtype=np.float64)
