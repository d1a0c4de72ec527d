"""Normalisation that is fitted, and therefore belongs inside a fold: fit on its training rows, apply to its test rows.

A transform that has seen the test rows has told the model about them. So this is an estimator with scikit-learn's
interface (``fit``, ``transform``, ``get_params``, ``clone`` and pipelines work), and its state is plain JSON, so that
what a model was trained with can be stored beside it and loaded without unpickling anything.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from mlbot_core.errors import MlbotError, UsageError

Array = npt.NDArray[np.float64]
Kind = Literal["standard", "robust", "quantile"]

_IQR_OF_NORMAL: Final = 1.3489795003921634
_QUANTILE_STEPS: Final = 256


class NotFittedError(MlbotError):
    """A fold scaler was asked to transform before it was fitted."""


class FoldScaler:
    """Winsorise each column at its training quantiles, then scale it by its training distribution.

    Parameters
    ----------
    kind
        ``standard``: distance from the mean in standard deviations. ``robust``: from the median in interquartile
        ranges / 1.349. ``quantile``: place in the training distribution, 0 to 1, linear between 257 quantiles.
    winsor
        Share of the training values beyond each of the two quantiles that values are held between; 0: none.

    Notes
    -----
    Missing values (NaN) stay missing and count for nothing. A column that is flat or never known in the training rows
    becomes 0 wherever it is known (0.5 for ``quantile``).

    Examples
    --------
    >>> import numpy as np
    >>> scaler = FoldScaler("robust", winsor=0.0).fit(np.array([[0.0], [1.0], [2.0], [3.0], [4.0]]))
    >>> float(scaler.transform(np.array([[2.0]]))[0, 0])
    0.0
    """

    def __init__(self, kind: Kind = "standard", winsor: float = 0.005) -> None:
        self.kind = kind
        self.winsor = winsor

    def fit(self, X: npt.ArrayLike, y: object = None) -> FoldScaler:  # noqa: ARG002 (scikit-learn passes the target)
        """Learn quantiles and moments from the training rows of one fold, shape (rows, columns).

        Raises
        ------
        UsageError
            If ``kind`` or ``winsor`` is out of range or there are no rows.
        """
        if self.kind not in get_args(Kind):
            raise UsageError(f"scaling {self.kind!r} is unknown; choose one of {', '.join(get_args(Kind))}")
        if not 0.0 <= self.winsor < 0.5:
            raise UsageError(f"winsor {self.winsor} must be at least 0 and below 0.5")
        matrix = _matrix(X)
        if len(matrix) == 0:
            raise UsageError("a fold scaler cannot learn from no rows")
        grid = np.linspace(0.0, 1.0, _QUANTILE_STEPS + 1)
        state: dict[str, list[Any]] = {"low": [], "high": [], "centre": [], "spread": [], "ladder": []}
        for column in matrix.T:
            known = np.sort(column[np.isfinite(column)])
            low, high = np.quantile(known, [self.winsor, 1.0 - self.winsor]) if len(known) else (0.0, 0.0)
            held = np.clip(known, low, high)
            if self.kind == "standard":
                centre = float(held.mean()) if len(held) else 0.0
                spread = float(held.std(ddof=1)) if len(held) > 1 else 0.0
            else:
                lower, centre, upper = np.quantile(held, [0.25, 0.5, 0.75]) if len(held) else (0.0, 0.0, 0.0)
                spread = (upper - lower) / _IQR_OF_NORMAL
            for name, value in (("low", low), ("high", high), ("centre", centre), ("spread", spread)):
                state[name].append(float(value))
            if self.kind == "quantile":
                state["ladder"].append((np.quantile(held, grid) if len(held) else grid * 0.0).tolist())
        self.state_ = state
        self.n_features_in_ = matrix.shape[1]
        return self

    def transform(self, X: npt.ArrayLike) -> Array:
        """Return the rows scaled by what was learnt, shape as given, float64.

        Raises
        ------
        NotFittedError
            If nothing was learnt yet.
        UsageError
            If the number of columns is another one.
        """
        if not hasattr(self, "state_"):
            raise NotFittedError("this fold scaler has learnt nothing yet; call fit on the training rows of the fold")
        matrix = _matrix(X)
        if matrix.shape[1] != self.n_features_in_:
            raise UsageError(f"{matrix.shape[1]} columns were given, the scaler has learnt {self.n_features_in_}")
        low, high, centre, spread = (np.array(self.state_[name]) for name in ("low", "high", "centre", "spread"))
        held = np.clip(matrix, low, high)
        if self.kind == "quantile":
            return np.column_stack([_place(held[:, at], ladder) for at, ladder in enumerate(self.state_["ladder"])])
        flat = spread <= 0.0
        scaled = (held - centre) / np.where(flat, 1.0, spread)
        return np.asarray(np.where(flat & np.isfinite(matrix), 0.0, scaled), dtype=np.float64)

    def fit_transform(self, X: npt.ArrayLike, y: object = None) -> Array:
        """Fit on rows and return them scaled."""
        return self.fit(X, y).transform(X)

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002 (scikit-learn's signature)
        """Return the constructor's parameters."""
        return {"kind": self.kind, "winsor": self.winsor}

    def set_params(self, **params: Any) -> FoldScaler:
        """Set constructor parameters.

        Raises
        ------
        UsageError
            If there is no such parameter.
        """
        for name, value in params.items():
            if name not in self.get_params():
                raise UsageError(f"a fold scaler has no parameter {name!r}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags as Inputs
        from sklearn.utils import Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(),
            input_tags=Inputs(allow_nan=True),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "state_")

    def to_json(self) -> str:
        """Return parameters and state as JSON; floats keep every bit.

        Raises
        ------
        NotFittedError
            If nothing was learnt yet.
        """
        if not hasattr(self, "state_"):
            raise NotFittedError("this fold scaler has learnt nothing yet; there is no state to store")
        return json.dumps({**self.get_params(), "state": self.state_}, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> FoldScaler:
        """Return the scaler that :meth:`to_json` wrote down.

        Raises
        ------
        UsageError
            If the text is not such a state.
        """
        try:
            found = json.loads(text)
            scaler = cls(found["kind"], found["winsor"])
            scaler.state_ = {name: list(found["state"][name]) for name in ("low", "high", "centre", "spread", "ladder")}
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"this is not the state of a fold scaler: {error}") from error
        scaler.n_features_in_ = len(scaler.state_["low"])
        return scaler


def _matrix(values: npt.ArrayLike) -> Array:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2:
        raise UsageError(f"a fold scaler takes rows and columns, found {matrix.ndim} dimensions")
    return matrix


def _place(column: Array, ladder: list[float]) -> Array:
    """Return the place of each value on a ladder of quantiles; in the middle of a step that repeats."""
    steps = np.asarray(ladder, dtype=np.float64)
    grid = np.linspace(0.0, 1.0, len(steps))
    upward = np.interp(column, steps, grid)
    downward = 1.0 - np.interp(-column, -steps[::-1], grid)
    return np.where(np.isfinite(column), (upward + downward) / 2.0, np.nan)
