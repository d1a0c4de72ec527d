"""Probabilities that mean what they say: one temperature around the base rates, fitted on rows the trees never saw.

Boosted trees on noisy labels are too sure of themselves. Temperature scaling (Guo, Pleiss, Sun, Weinberger, 2017, On
calibration of modern neural networks, ICML) divides the raw scores by one number, which draws an overconfident
forecast to the uniform distribution; here it is drawn to the training frequencies instead, which is what a model
without any skill should say::

    log p(class) = base(class) + (raw(class) - base(class)) / T - log(sum over classes)

with ``base`` the log frequencies. One number can be told from a few hundred overlapping labels; a bias for each class
(vector scaling) or a free curve (isotonic) cannot: the frequencies of the held-out months are not those of the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from mlbot_core.config import CalibrationConfig
from mlbot_core.models.tabular import TrainingSample

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MIN_INVERSE: Final = 0.01
"""1 / T is at least this: a forecast never loses its order altogether, nor is turned round."""
MAX_INVERSE: Final = 2.0
"""1 / T is at most this: a few hundred rows are no reason for making a forecast twice as sure."""


@dataclass(frozen=True)
class Calibration:
    """How raw scores become probabilities, and what it rests on.

    Parameters
    ----------
    method
        ``temperature``, or ``none`` where raw scores are used as they are.
    reason
        Why not, where ``none``; empty otherwise.
    inverse
        1 / T; 1 where ``none``.
    base
        Log frequencies of the classes in the rows that grew the trees, weighted, one a class.
    fit_rows, held_rows
        Rows that grew the trees which were judged, and rows that judged them; 0 where ``none``.
    log_loss_raw, log_loss
        Weighted mean log loss of the held rows before and after, nats; 0 where ``none``.
    """

    method: Literal["temperature", "none"]
    reason: str
    inverse: float
    base: tuple[float, ...]
    fit_rows: int = 0
    held_rows: int = 0
    log_loss_raw: float = 0.0
    log_loss: float = 0.0

    @classmethod
    def skipped(cls, reason: str, base: FloatArray) -> Self:
        """Return a calibration that changes nothing, and says why."""
        return cls("none", reason, 1.0, tuple(float(b) for b in base))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what :meth:`as_json` gave.

        Raises
        ------
        ValueError, TypeError, KeyError
            If it is not that.
        """
        plain = {**values, "base": tuple(float(b) for b in values["base"]), "inverse": float(values["inverse"])}
        found = cls(**plain)
        if found.method not in ("temperature", "none") or not MIN_INVERSE <= found.inverse <= MAX_INVERSE:
            raise ValueError(f"calibration {found.method!r} with inverse temperature {found.inverse} is not possible")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "base": list(self.base)}

    def scores(self, raw: FloatArray) -> FloatArray:
        """Return calibrated scores, shape (rows, classes), whose softmax are the probabilities."""
        base = np.asarray(self.base)
        return raw if self.method == "none" else np.asarray(base + self.inverse * (raw - base))

    def probabilities(self, raw: FloatArray) -> FloatArray:
        """Return probabilities, shape (rows, classes), each row summing to 1."""
        return np.exp(log_softmax(self.scores(raw)))


@dataclass(frozen=True)
class HeldOut:
    """Training rows in two parts of time, and the reason where that cannot be done.

    Parameters
    ----------
    fit, held
        Masks over the training rows: the earlier part, that grows trees, and the later one, that judges them. Between
        the two lie at least the bars that a label looks ahead, so no bar decides a label of both.
    reason
        Empty, or why there are no such parts.
    """

    fit: npt.NDArray[np.bool_]
    held: npt.NDArray[np.bool_]
    reason: str


def hold_out(sample: TrainingSample, config: CalibrationConfig, *, classes: bool) -> HeldOut:
    """Cut off the last share of the training rows, less the gap.

    The gap is counted in bars of time, not in rows, because rows may be missing. With ``classes`` the earlier part has
    to hold every outcome that occurs.
    """
    none = np.zeros(len(sample), dtype=np.bool_)
    if config.method == "none":
        return HeldOut(none, none, "switched off in the configuration")
    n_held = int(np.ceil(len(sample) * config.share))
    if n_held < config.min_rows:
        reason = f"{config.share:.0%} of {len(sample)} rows are {n_held}, fewer than min_rows {config.min_rows}"
        return HeldOut(none, none, reason)
    held = ~none
    held[: len(sample) - n_held] = False
    begins = int(sample.open_ms[held][0])
    fit = sample.open_ms + config.gap_bars * sample.bar_ms <= begins
    fit &= ~held
    if fit.sum() < n_held:
        return HeldOut(none, none, f"only {int(fit.sum())} rows lie before the gap and the {n_held} rows held out")
    missing = set(np.unique(sample.outcome).tolist()) - set(np.unique(sample.outcome[fit]).tolist())
    if classes and missing:
        labels = ", ".join(f"{label:g}" for label in sorted(missing))
        return HeldOut(none, none, f"label {labels} does not occur in the {int(fit.sum())} earlier rows")
    if sample.weight is not None and not (sample.weight[fit].any() and sample.weight[held].any()):
        return HeldOut(none, none, "all weights of one of the two parts are zero")
    return HeldOut(fit, held, "")


def fit_temperature(
    raw: FloatArray, column: IntArray, weight: FloatArray, base: FloatArray, held_base: FloatArray, fit_rows: int
) -> Calibration:
    """Return the temperature with the least weighted log loss; that loss is convex in 1 / T, so there is one.

    Parameters
    ----------
    raw
        Raw scores of the held rows by trees that never saw them, shape (rows, classes).
    column
        Which class came true, shape (rows,).
    weight
        Shape (rows,), not all zero.
    base
        Log frequencies to draw the final forecasts to, shape (classes,).
    held_base
        Log frequencies of the rows that grew the trees which made ``raw``.
    fit_rows
        Their number, for the record.
    """
    from scipy.optimize import brentq

    away = raw - held_base
    came = away[np.arange(len(raw)), column]
    share = weight / weight.sum()

    def loss(inverse: float) -> float:
        log_p = log_softmax(held_base + inverse * away)
        return float(-np.sum(share * log_p[np.arange(len(raw)), column]))

    def slope(inverse: float) -> float:
        p = np.exp(log_softmax(held_base + inverse * away))
        return float(np.sum(share * ((p * away).sum(axis=1) - came)))

    if slope(MIN_INVERSE) >= 0.0:
        inverse = MIN_INVERSE
    elif slope(MAX_INVERSE) <= 0.0:
        inverse = MAX_INVERSE
    else:
        inverse = float(brentq(slope, MIN_INVERSE, MAX_INVERSE, xtol=1e-12, rtol=1e-12))
    return Calibration(
        "temperature", "", inverse, tuple(float(b) for b in base), fit_rows, len(raw), loss(1.0), loss(inverse)
    )


@dataclass(frozen=True)
class Scaling:
    """How a regression's mean and deviation are corrected, and what it rests on.

    ``mean' = base + slope * (mean - base)`` and ``sd' = factor * sd``: the counterpart of the temperature for a normal
    forecast (Levi, Gispan, Giladi, Fetaya, 2022, Evaluating and calibrating uncertainty prediction in regression
    tasks, Sensors 22, scale the deviation alone; trees that are too sure exaggerate the mean as well).

    Parameters
    ----------
    method
        ``scale``, or ``none`` where mean and deviation are used as they are.
    reason
        Why not, where ``none``; empty otherwise.
    base
        Weighted mean score of the rows that grew the trees which forecast, barrier widths.
    slope, factor
        1 where ``none``.
    fit_rows, held_rows
        Rows that grew the trees which were judged, and rows that judged them; 0 where ``none``.
    loss_raw, loss
        Weighted mean ``log(sd) + z ** 2 / 2`` of the held rows before and after; 0 where ``none``.
    """

    method: Literal["scale", "none"]
    reason: str
    base: float
    slope: float = 1.0
    factor: float = 1.0
    fit_rows: int = 0
    held_rows: int = 0
    loss_raw: float = 0.0
    loss: float = 0.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what ``dataclasses.asdict`` gave.

        Raises
        ------
        ValueError, TypeError
            If it is not that.
        """
        found = cls(**values)
        possible = MIN_INVERSE <= found.slope <= MAX_INVERSE and 0.0 < found.factor < np.inf and np.isfinite(found.base)
        if found.method not in ("scale", "none") or not possible:
            raise ValueError(
                f"scaling {found.method!r} with slope {found.slope}, factor {found.factor} is not possible"
            )
        return found

    def apply(self, mean: FloatArray, sd: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return corrected mean and deviation."""
        if self.method == "none":
            return mean, sd
        return self.base + self.slope * (mean - self.base), self.factor * sd


def fit_scaling(
    mean: FloatArray,
    sd: FloatArray,
    outcome: FloatArray,
    weight: FloatArray,
    held_base: float,
    base: float,
    fit_rows: int,
) -> Scaling:
    """Return slope and factor of the greatest likelihood; the slope does not depend on the factor.

    Parameters
    ----------
    mean, sd
        Forecasts of the held rows by trees that never saw them, shape (rows,).
    outcome, weight
        Scores that came true, and weights that are not all zero; shape (rows,).
    held_base
        Mean score of the rows that grew those trees.
    base
        Mean score to draw the final forecasts to.
    fit_rows
        Number of the rows that grew them, for the record.
    """
    share = weight / weight.sum()
    precision = share / (sd * sd)
    away, came = mean - held_base, outcome - held_base
    squares = float((precision * away * away).sum())
    best = float((precision * away * came).sum()) / squares if squares > 0 else 1.0
    slope = min(max(best, MIN_INVERSE), MAX_INVERSE)

    def loss(slope: float, factor: float) -> float:
        z = (came - slope * away) / (factor * sd)
        return float((share * (np.log(factor * sd) + 0.5 * z * z)).sum())

    factor = float(np.sqrt((precision * (came - slope * away) ** 2).sum()))
    return Scaling("scale", "", base, slope, factor, fit_rows, len(mean), loss(1.0, 1.0), loss(slope, factor))


def log_frequencies(column: IntArray, weight: FloatArray, classes: int) -> FloatArray:
    """Return the logarithm of each class's weighted share; half a row is added to each, so that none is zero."""
    unit = float(weight.mean())
    total = np.bincount(column, weights=weight, minlength=classes) + 0.5 * unit
    return np.asarray(np.log(total / total.sum()))


def log_softmax(scores: FloatArray) -> FloatArray:
    """Return log probabilities, shape (rows, classes)."""
    down = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(down - np.log(np.exp(down).sum(axis=1, keepdims=True)))
