"""Quantiles of the return ahead from a sequence of bars: the Temporal Fusion Transformer.

Lim, Arik, Loeff, Pfister (2021), Temporal fusion transformers for interpretable multi-horizon time series forecasting,
International Journal of Forecasting 37. Trained by pytorch-forecasting and Lightning; a forecast needs neither, nor
torch (:mod:`mlbot_core.models.tft_infer`).
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.config import TFTConfig
from mlbot_core.errors import UsageError
from mlbot_core.models.artefact import ArtefactError, check_libraries, open_artefact, write_artefact
from mlbot_core.models.base import (
    BASE_COLUMN,
    FORECAST,
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
from mlbot_core.models.canonical import canonical_json, sha256_hex
from mlbot_core.models.tft_data import CALENDAR, Bars, Scaling, make_bars
from mlbot_core.models.tft_fit import Fitted, fit_network, forecast_bars, future_bars
from mlbot_core.models.tft_infer import toggle_windows
from mlbot_core.models.tft_quantiles import forecast_columns
from mlbot_core.models.tft_weights import REPRODUCES, network_from, weight_shapes

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LIBRARIES: Final = ("pytorch-forecasting", "torch")
"""Packages whose release decides what the weights mean. Where one is not installed it cannot contradict them."""

_FILE: Final = "weights.safetensors"
_DIGEST: Final = "features.sha256"
_SCALING: Final = ("chosen", "center", "scale", "rank_ic", "importance")


class TFTModel:
    """Temporal Fusion Transformer over the path to the score; implements :class:`mlbot_core.models.base.Model`.

    A forecast reads the bar's own features and those of the bars before it, ``encoder_length`` in all, and the
    calendar up to the horizon. A missing bar in between counts as the training median of every feature, marked as
    unknown; a window with too many of them has no forecast.

    Parameters
    ----------
    config
        Section ``tft`` of ``models.yaml``.
    threads
        At least 1. Training and forecasts run on one core, so that their bytes depend on no number of threads.
    """

    model_type: ClassVar[str] = "tft"
    target: ClassVar[Target] = "score"
    explained: ClassVar[str] = "score, in barrier widths"

    def __init__(self, config: TFTConfig, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads {threads} must be at least 1")
        self._config = config
        self._names: tuple[str, ...] = ()
        self._fitted: Fitted | None = None
        self._trained_with: dict[str, str] = {}

    @classmethod
    def from_config(cls, config: TFTConfig, threads: int) -> Self:
        """Return an unfitted model."""
        return cls(config, threads)

    @property
    def context_bars(self) -> int:
        """Rows before a row that its forecast reads."""
        return self._config.encoder_length - 1

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Columns the model was trained on, in order; :meth:`feature_importance` says which of them it reads."""
        return self._names

    @property
    def training(self) -> dict[str, Any]:
        """Rows, epochs and losses of the training.

        Raises
        ------
        NotFittedError
            If the model was neither fitted nor loaded.
        """
        return dict(self._require_fitted().training)

    def fit(
        self,
        X: pd.DataFrame,
        y: pd.DataFrame,
        rows: npt.NDArray[np.int64] | None = None,
        weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Train; see :meth:`mlbot_core.models.base.Model.fit`.

        Beside the outcomes of ``rows``, ``next_ret`` is read of the bars inside their label intervals, which are known
        when those outcomes are.

        Raises
        ------
        TrainingDataError
            If there are too few rows, an outcome is unknown, nothing varies, or the score is not the return over
            ``horizon`` bars.
        FeatureMismatchError
            If a column is not float64 or holds an infinity, or the bars are not regular.
        KeyboardInterrupt
            If the user interrupts.
        """
        index = check_rows(rows, len(X))
        matrix = check_columns(X)
        scores = check_outcomes(X, y, self.target)
        check_scores(scores[index], len(index))
        if self._config.decoder_steps > 1:
            absent = [name for name in ("width", "next_ret") if name not in y.columns]
            if absent:
                raise TrainingDataError(f"the outcomes lack {', '.join(absent)}, the path to the score")
        given = check_weights(weight, len(index))
        weights = np.ones(len(index)) if given is None else given
        fitted = fit_network(matrix, _open_ms(X), y, index, weights, self._config)
        self._names, self._fitted = tuple(str(name) for name in X.columns), fitted
        self._trained_with = {name: version(name) for name in (*LIBRARIES, "lightning", "numpy")}
        self._trained_with["python"] = platform.python_version()
        return self

    def predict(self, X: pd.DataFrame, rows: npt.NDArray[np.int64] | None = None) -> pd.DataFrame:
        """Return the forecast; see :meth:`mlbot_core.models.base.Model.predict`.

        Raises
        ------
        NotFittedError
            If the model was neither fitted nor loaded.
        FeatureMismatchError
            If the columns are not exactly the trained ones, as float64, or the bars are of another length.
        """
        index, quantiles, _ = self._forecast(X, rows)
        out = np.full((len(index), len(FORECAST)), np.nan)
        known = np.isfinite(quantiles).all(axis=1)
        out[known] = forecast_columns(quantiles[known], np.array(self._config.quantiles))
        return pd.DataFrame(out, index=index, columns=list(FORECAST))

    def quantiles(self, X: pd.DataFrame, rows: npt.NDArray[np.int64] | None = None) -> pd.DataFrame:
        """Return the quantiles of the score as the network says them, one column a level; they may cross.

        Raises
        ------
        NotFittedError, FeatureMismatchError
        """
        index, quantiles, _ = self._forecast(X, rows)
        return pd.DataFrame(quantiles, index=index, columns=list(self._config.quantiles))

    def attention(self, X: pd.DataFrame, rows: npt.NDArray[np.int64] | None = None) -> pd.DataFrame:
        """Return where each forecast looks: the attention of the score's decoder step, the mean of all heads.

        One column a bar, by its distance from the row: ``1 - encoder_length`` to 0 for the past, and beyond 0 for the
        earlier decoder steps. A row sums to 1; NaN where there is no forecast.

        Raises
        ------
        NotFittedError, FeatureMismatchError
        """
        config = self._config
        index, _, attention = self._forecast(X, rows)
        every = config.horizon // config.decoder_steps
        past = list(range(1 - config.encoder_length, 1))
        # the score's own step attends to everything before itself
        return pd.DataFrame(
            attention[:, :-1], index=index, columns=[*past, *(every * k for k in range(1, config.decoder_steps))]
        )

    def explain(self, X: pd.DataFrame, rows: npt.NDArray[np.int64] | None = None) -> pd.DataFrame:
        """Return what each feature added to each score; see :meth:`mlbot_core.models.base.Model.explain`.

        Shapley values sampled by one order of the features and its reverse (Mitchell, Cooper, Frank, Holmes, 2022,
        Sampling permutations for Shapley value estimation, JMLR 23): features go one after the other from the training
        median to their values, in all bars of the window at once, and each gets the mean of the two changes that it
        makes. ``(base)`` is the score with every feature at its median, at the bar's place in the calendar. The sum is
        exact; how an interaction is shared between its features is an estimate. Features that were not chosen get 0.

        Takes some 0.05 s a row.

        Raises
        ------
        NotFittedError, FeatureMismatchError
        """
        fitted, config = self._require_fitted(), self._config
        bars, first, index, usable = self._bars(X, rows)
        last = bars.places[index[usable] - first]
        order = np.argsort(-fitted.importance, kind="stable")
        orders = np.stack([order, order[::-1]])
        every = config.horizon // config.decoder_steps
        ahead = future_bars(bars.inputs, fitted.network, config)
        quantiles = toggle_windows(
            bars.inputs, ahead, last, config.encoder_length, every, config.decoder_steps, orders, fitted.network
        )
        flat = forecast_columns(quantiles.reshape(-1, quantiles.shape[-1]), np.array(config.quantiles))
        score = flat[:, FORECAST.index("score")].reshape(quantiles.shape[:-1])
        changes = np.diff(score, axis=2)
        parts = np.zeros((len(last), len(self._names) + 1))
        for at, sequence in enumerate(orders):
            parts[:, fitted.scaling.chosen[sequence]] += changes[:, at] / len(orders)
        parts[:, -1] = score[:, 0, 0]
        out = np.full((len(index), parts.shape[1]), np.nan)
        out[usable] = parts
        return pd.DataFrame(out, index=X.index[index], columns=[*self._names, BASE_COLUMN])

    def save(self, folder: Path) -> None:
        """Write the artefact; see :func:`mlbot_core.models.artefact.write_artefact`.

        Raises
        ------
        NotFittedError
            If there is nothing to save.
        ArtefactError
            If the folder holds another model.
        """
        from safetensors.numpy import save

        fitted = self._require_fitted()
        scaling = fitted.scaling
        arrays: dict[str, npt.NDArray[Any]] = dict(fitted.weights)
        for name, value in zip(
            _SCALING, (scaling.chosen, scaling.center, scaling.scale, scaling.rank_ic, fitted.importance), strict=True
        ):
            arrays[f"scaling.{name}"] = np.ascontiguousarray(value)
        arrays[_DIGEST] = _digest(self._names)
        meta = {
            "type": self.model_type,
            "architecture": REPRODUCES,
            "features": list(self._names),
            "chosen": [self._names[i] for i in scaling.chosen],
            "params": self._config.model_dump(mode="json"),
            "rows": fitted.training["rows"],
            "bar_ms": fitted.bar_ms,
            "training": fitted.training,
            "libraries": self._trained_with,
        }
        write_artefact(folder, {_FILE: save(arrays)}, meta)

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> Self:
        """Read an artefact that :meth:`save` wrote.

        Raises
        ------
        ArtefactError
            If it is missing, damaged, of another type or graph, or its payload and meta disagree.
        LibraryMismatchError
            If another release of torch or pytorch-forecasting trained it.
        """
        meta, payload = open_artefact(folder, cls.model_type)
        check_libraries(folder, meta, [name for name in LIBRARIES if _installed(name)])
        again = f"delete {folder} and train the model again"
        if meta.get("architecture") != REPRODUCES:
            raise ArtefactError(
                f"{folder} holds a network like {meta.get('architecture')!r}, this code runs {REPRODUCES!r}; {again}"
            )
        try:
            model = cls(TFTConfig.model_validate(meta["params"]), threads)
            model._restore(meta, payload[_FILE])
        except _damage() as error:
            raise ArtefactError(f"{folder} is not a usable model ({type(error).__name__}: {error}); {again}") from error
        return model

    def feature_importance(self) -> pd.DataFrame:
        """Return ``feature, gain, splits``, greatest gain first, then by name.

        ``gain`` is the feature's mean weight in the encoder's variable selection over the training rows, 0 if it was
        not chosen (with the calendar and the share known the weights sum to 1); ``splits`` is 1 if it was.

        Raises
        ------
        NotFittedError
            If the model was neither fitted nor loaded.
        """
        fitted = self._require_fitted()
        gain, chosen = np.zeros(len(self._names)), np.zeros(len(self._names), dtype=np.int64)
        gain[fitted.scaling.chosen], chosen[fitted.scaling.chosen] = fitted.importance, 1
        frame = pd.DataFrame({"feature": list(self._names), "gain": gain, "splits": chosen})
        return frame.sort_values(["gain", "feature"], ascending=[False, True], ignore_index=True)

    def _forecast(self, X: pd.DataFrame, rows: npt.ArrayLike | None) -> tuple[pd.Index, FloatArray, FloatArray]:
        """Return index, quantiles and attention of the asked rows, NaN where there is no forecast."""
        fitted, config = self._require_fitted(), self._config
        bars, first, index, usable = self._bars(X, rows)
        quantiles = np.full((len(index), len(config.quantiles)), np.nan)
        attention = np.full((len(index), config.encoder_length + config.decoder_steps), np.nan)
        if usable.any():
            last = bars.places[index[usable] - first]
            quantiles[usable], attention[usable] = forecast_bars(bars.inputs, last, fitted.network, config)
        return X.index[index], quantiles, attention

    def _bars(self, X: pd.DataFrame, rows: npt.ArrayLike | None) -> tuple[Bars, int, IntArray, npt.NDArray[np.bool_]]:
        """Return bars around the asked rows, the position of the first, the rows, and which have a forecast."""
        fitted, config = self._require_fitted(), self._config
        index = check_rows(rows, len(X))
        first = max(0, int(index[0]) - self.context_bars) if len(index) else 0
        part = X.iloc[first : int(index[-1]) + 1 if len(index) else 0]
        matrix = check_columns(part, self._names)
        bars = make_bars(matrix, _open_ms(part), fitted.bar_ms, fitted.scaling, config.horizon)
        return bars, first, index, bars.usable(index - first, config)

    def _restore(self, meta: dict[str, Any], data: bytes) -> None:
        from safetensors.numpy import load

        arrays = load(data)
        scaling = {name: arrays.pop(f"scaling.{name}") for name in _SCALING}
        digest = arrays.pop(_DIGEST)
        config, count = self._config, len(scaling["chosen"])
        self._names = tuple(str(name) for name in meta["features"])
        if not np.array_equal(digest, _digest(self._names)):
            raise ValueError("the weights were trained on other features than the meta claims")
        shapes = weight_shapes(
            count + 1 + len(CALENDAR),
            len(CALENDAR),
            config.hidden_size,
            config.hidden_continuous_size,
            config.attention_heads,
            len(config.quantiles),
        )
        odd = [n for n in {*shapes, *arrays} if n not in arrays or shapes.get(n) != arrays[n].shape]
        if odd or any(len(v) != count for v in scaling.values()):
            raise ValueError(f"weights and meta disagree on {', '.join(sorted(odd)[:5]) or 'the number of features'}")
        importance = scaling.pop("importance")
        self._fitted = Fitted(
            Scaling(**scaling, clip=config.clip),
            int(meta["bar_ms"]),
            arrays,
            network_from(arrays),
            importance,
            dict(meta["training"]),
        )
        self._trained_with = dict(meta["libraries"])

    def _require_fitted(self) -> Fitted:
        if self._fitted is None:
            raise NotFittedError("the tft model has not been fitted or loaded; call fit or load first")
        return self._fitted


def _open_ms(X: pd.DataFrame) -> IntArray:
    if not pd.api.types.is_integer_dtype(X.index.dtype):
        raise FeatureMismatchError(f"the index is {X.index.dtype}; it must hold open times in int64 UTC ms")
    return X.index.to_numpy(dtype=np.int64)


def _digest(names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    """Return a fingerprint of the columns, kept beside the weights so that the meta cannot claim others."""
    return np.frombuffer(bytes.fromhex(sha256_hex(canonical_json(list(names)))), dtype=np.uint8)


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _damage() -> tuple[type[Exception], ...]:
    """Errors of a payload that cannot be read."""
    from safetensors import SafetensorError

    return (KeyError, TypeError, ValueError, IndexError, SafetensorError)
