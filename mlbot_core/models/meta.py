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
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.config import MetaConfig
from mlbot_core.errors import UsageError
from mlbot_core.models.artefact import ArtefactError, check_libraries, open_artefact, write_artefact
from mlbot_core.models.base import (
    FeatureMismatchError,
    NotFittedError,
    Target,
    TrainingDataError,
    check_columns,
    check_outcomes,
    check_rows,
    check_scores,
    check_weights,
)
from mlbot_core.models.canonical import canonical_json
from mlbot_core.models.forecast import fit_touch, from_normal
from mlbot_core.models.linear import normal_equations, solve_ridge
from mlbot_core.validation.inner_splits import tuning_split

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SCORE: Final = "_score"
AGE: Final = "_age"
PRIORS: Final = {"mean": 1.0, "nothing": 0.0}
_FILE: Final = "model.json"
_LIBRARIES: Final = ("numpy",)
_MEAN: Final = 1  # position of the mean's term


@dataclass(frozen=True)
class _Fit:
    """Coefficients of the terms in their own units, the spread of what they leave unexplained, and ``touch``."""

    coefficients: FloatArray
    residual_sd: float
    touch: float = 1.0


class MetaModel:
    """Stacks base forecasts; implements :class:`mlbot_core.models.base.Model`.

    Its columns come in pairs, one pair a base forecast: ``NAME_score`` (barrier widths; NaN = missing) and ``NAME_age``
    (bars since that forecast's bar closed). Its outcomes need ``t1`` beside the usual columns.

    Parameters
    ----------
    config
        Penalties to choose from and number of inner folds.
    threads
        At least 1; the arithmetic is too small to spread.
    """

    model_type: ClassVar[str] = "meta"
    target: ClassVar[Target] = "score"
    explained: ClassVar[str] = "score, in barrier widths"

    def __init__(self, config: MetaConfig, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads {threads} must be at least 1")
        self._config = config
        self._names: tuple[str, ...] = ()
        self._bases: tuple[str, ...] = ()
        self._fit: _Fit | None = None
        self._chosen: dict[str, Any] = {}
        self._rows = 0
        self._importance: list[float] = []

    @property
    def context_bars(self) -> int:
        """No rows but its own."""
        return 0

    @classmethod
    def from_config(cls, config: MetaConfig, threads: int) -> Self:
        """Return an unfitted model."""
        return cls(config, threads)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Columns the model was trained on, in order."""
        return self._names

    @property
    def chosen(self) -> dict[str, Any]:
        """Prior and penalty that the inner folds chose, and their mean squared errors."""
        return dict(self._chosen)

    def fit(
        self,
        X: pd.DataFrame,
        y: pd.DataFrame,
        rows: npt.NDArray[np.int64] | None = None,
        weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Train; see :class:`mlbot_core.models.base.Model`.

        Raises
        ------
        TrainingDataError
            If there are fewer rows than terms, or an outcome is not known.
        FeatureMismatchError
            If the columns are not pairs of scores and ages.
        """
        names, bases = _pairs(X)
        at = check_rows(rows, len(X))
        matrix = check_columns(X)[at]
        outcome = check_scores(check_outcomes(X, y, self.target)[at], len(at))
        weights = check_weights(weight, len(at))
        terms, known = _terms(matrix, names, bases)
        w = (np.ones(len(at)) if weights is None else weights) * known
        if known.sum() < 2 * terms.shape[1]:
            raise TrainingDataError(
                f"{int(known.sum())} rows with a base forecast cannot train {terms.shape[1]} terms; "
                "train the base models over a longer period, or stack fewer of them"
            )
        if "t1" not in y.columns:
            raise TrainingDataError("the outcomes lack t1, when each was settled: the inner folds cannot be purged")
        spans = (
            X.index.to_numpy(dtype=np.int64)[at][known],
            y["t1"].to_numpy(dtype=np.float64)[at][known].astype(np.int64),
        )
        self._names, self._bases, self._rows = names, bases, int(known.sum())
        prior, penalty, errors = self._choose(terms[known], outcome[known], w[known], *spans)
        fit = _solve(terms[known], outcome[known], w[known], prior, penalty)
        label = y["label"].to_numpy(dtype=np.float64)[at][known]
        said = _dot(terms[known], fit.coefficients)
        self._fit = replace(fit, touch=fit_touch(said, np.full(len(said), fit.residual_sd), label, w[known]))
        self._chosen = {"prior": prior, "penalty": penalty, "inner_mse": errors}
        added = self._contributions(terms, matrix)
        self._importance = [float(v) for v in np.abs(added[known]).mean(axis=0)]
        return self

    def predict(self, X: pd.DataFrame, rows: npt.NDArray[np.int64] | None = None) -> pd.DataFrame:
        """Return the forecast of each row; NaN where no base forecast is present.

        Raises
        ------
        NotFittedError, FeatureMismatchError
        """
        fit = self._require_fitted()
        at = check_rows(rows, len(X))
        terms, known = _terms(check_columns(X, self._names)[at], self._names, self._bases)
        mean = np.where(known, _dot(terms, fit.coefficients), np.nan)
        return from_normal(mean, np.where(known, fit.residual_sd, np.nan), X.index[at], fit.touch)

    def explain(self, X: pd.DataFrame, rows: npt.NDArray[np.int64] | None = None) -> pd.DataFrame:
        """Return what each base score added to the score; ages act through the scores and have 0 of their own.

        Raises
        ------
        NotFittedError, FeatureMismatchError
        """
        fit = self._require_fitted()
        at = check_rows(rows, len(X))
        matrix = check_columns(X, self._names)[at]
        terms, known = _terms(matrix, self._names, self._bases)
        out = pd.DataFrame(self._contributions(terms, matrix), index=X.index[at], columns=list(self._names))
        out["(base)"] = fit.coefficients[0]
        out.loc[~known] = np.nan
        return out

    def feature_importance(self) -> pd.DataFrame:
        """Return ``feature, gain, splits``: mean absolute contribution over the training rows, in barrier widths."""
        self._require_fitted()
        frame = pd.DataFrame({"feature": list(self._names), "gain": self._importance, "splits": 0})
        return frame.sort_values(["gain", "feature"], ascending=[False, True], ignore_index=True)

    def save(self, folder: Path) -> None:
        """Write ``model.json`` and ``meta.json``.

        Raises
        ------
        NotFittedError, ArtefactError
        """
        fit = self._require_fitted()
        body = {
            "coefficients": [float(c) for c in fit.coefficients],
            "residual_sd": fit.residual_sd,
            "touch": fit.touch,
            "importance": self._importance,
        }
        meta = {
            "type": self.model_type,
            "features": list(self._names),
            "params": self._config.model_dump(mode="json"),
            "rows": self._rows,
            "chosen": self._chosen,
            "libraries": {name: version(name) for name in _LIBRARIES},
        }
        write_artefact(folder, {_FILE: canonical_json(body).encode()}, meta)

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> Self:
        """Read an artefact that :meth:`save` wrote.

        Raises
        ------
        ArtefactError
            If it is missing, damaged, of another type or of another release of numpy.
        """
        meta, payload = open_artefact(folder, cls.model_type)
        check_libraries(folder, meta, _LIBRARIES)
        try:
            body = json.loads(payload[_FILE])
            model = cls(MetaConfig.model_validate(meta["params"]), threads)
            model._names, model._bases = _pairs(pd.DataFrame(columns=meta["features"]))
            coefficients = np.array(body["coefficients"], dtype=np.float64)
            model._fit = _Fit(coefficients, float(body["residual_sd"]), float(body["touch"]))
            model._importance = [float(v) for v in body["importance"]]
            model._chosen, model._rows = dict(meta["chosen"]), int(meta["rows"])
        except (KeyError, TypeError, ValueError, FeatureMismatchError) as error:
            raise ArtefactError(
                f"{folder} is not a usable model ({type(error).__name__}: {error}); delete it and train again"
            ) from error
        expected = 3 + 2 * len(model._bases)
        if model._fit.coefficients.shape != (expected,) or len(model._importance) != len(model._names):
            raise ArtefactError(f"{folder} holds {len(model._fit.coefficients)} coefficients instead of {expected}")
        return model

    def _require_fitted(self) -> _Fit:
        if self._fit is None:
            raise NotFittedError("the meta model has not been fitted or loaded; call fit or load first")
        return self._fit

    def _contributions(self, terms: FloatArray, matrix: FloatArray) -> FloatArray:
        """Return shape (rows, columns): every term but the constant, laid on the base scores that it is made of."""
        c = self._require_fitted().coefficients
        n = len(self._bases)
        scores = matrix[:, [self._names.index(b + SCORE) for b in self._bases]]
        present = np.isfinite(scores)
        share = np.where(present, scores, 0.0) / np.maximum(present.sum(axis=1, keepdims=True), 1)
        mean = terms[:, _MEAN]
        factor = np.divide(_dot(terms[:, 2 + n :], c[2 + n :]), mean, out=np.zeros(len(mean)), where=mean != 0)
        own = terms[:, 2 : 2 + n] * c[2 : 2 + n] + share * (c[_MEAN] + factor)[:, None]
        out = np.zeros_like(matrix)
        out[:, [self._names.index(b + SCORE) for b in self._bases]] = own
        return out

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


def _pairs(X: pd.DataFrame) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the columns and the names of the base forecasts."""
    names = tuple(str(name) for name in X.columns)
    bases = tuple(name.removesuffix(SCORE) for name in names if name.endswith(SCORE))
    wanted = {b + suffix for b in bases for suffix in (SCORE, AGE)}
    if not bases or wanted != set(names):
        odd = sorted(wanted ^ set(names))[:5] or ["none at all"]
        raise FeatureMismatchError(
            f"the meta model takes pairs of columns NAME{SCORE} and NAME{AGE}; these do not fit: {', '.join(odd)}"
        )
    return names, bases


def _terms(
    matrix: FloatArray, names: tuple[str, ...], bases: tuple[str, ...]
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return shape (rows, 3 + 2 bases), and which rows have any base forecast; the others are zero."""
    scores = matrix[:, [names.index(b + SCORE) for b in bases]]
    ages = np.nan_to_num(matrix[:, [names.index(b + AGE) for b in bases]])
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
