"""From a model's own output to the forecast that all models share (:data:`mlbot_core.models.base.FORECAST`)."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.models.base import FORECAST

FloatArray = npt.NDArray[np.float64]

# Below this deviation the series of images needs two mirrors and no more, above it the sine series nine terms.
_IMAGES_BELOW: Final = 0.5
_SINE_TERMS: Final = 9
_TOUCHES: Final = (0.1, 5.0)


def from_probabilities(p: FloatArray, index: pd.Index) -> pd.DataFrame:
    """Return the forecast of a classifier.

    A touched barrier earns plus or minus one width and a neutral outcome counts as nothing, so the score is
    ``p_up - p_down`` and its variance ``p_up + p_down - score ** 2``.

    Parameters
    ----------
    p
        Shape (rows, 3): down, neutral, up; NaN where there is no forecast.
    """
    score = p[:, 2] - p[:, 0]
    variance = np.maximum(p[:, 2] + p[:, 0] - score * score, 0.0)
    return pd.DataFrame(np.column_stack([p, score, np.sqrt(variance)]), index=index, columns=list(FORECAST))


def from_normal(mean: FloatArray, sd: FloatArray, index: pd.Index, touch: float = 1.0) -> pd.DataFrame:
    """Return the forecast of a regression whose return over the horizon is taken as normal.

    The probabilities are those of a Brownian motion with this mean and deviation at the horizon: ``p_neutral`` that it
    stays between the barriers at plus and minus one width all the way (:func:`stays_between`). It starts midway, so
    where it leaves does not depend on when, and ``p_up / p_down = exp(2 mean / sd ** 2)`` (Karatzas and Shreve, 1991,
    Brownian Motion and Stochastic Calculus, section 3.5.C). That it merely *ends* beyond a barrier is about half as
    likely as that it touches one, and is not what the labels say.

    Parameters
    ----------
    mean, sd
        Shape (rows,), in barrier widths; NaN where there is no forecast. ``sd`` > 0.
    touch
        Deviation that decides whether a barrier is touched, in ``sd``; :func:`fit_touch` finds it. Returns have fat
        tails: their deviation is made by few large moves, and most bars see less of them than a normal one of the same
        deviation, so that 1 claims too many touches.
    """
    from scipy.special import expit

    neutral = stays_between(mean, touch * sd)
    tilt = 2.0 * mean / (sd * sd)
    p = np.column_stack([(1.0 - neutral) * expit(-tilt), neutral, (1.0 - neutral) * expit(tilt)])
    return pd.DataFrame(np.column_stack([p, mean, sd]), index=index, columns=list(FORECAST))


def fit_touch(mean: FloatArray, sd: FloatArray, label: FloatArray, weight: FloatArray) -> float:
    """Return the ``touch`` of :func:`from_normal` with which the mean ``p_neutral`` is the share of neutral labels.

    Parameters
    ----------
    mean, sd
        Forecasts of training rows, shape (rows,).
    label
        -1, 0, 1 of the same rows; rows where it is NaN do not count.
    weight
        Shape (rows,).

    Returns
    -------
    float
        Between 0.1 and 5; 1 if no label is known.
    """
    from scipy.optimize import brentq

    known = np.isfinite(label) & np.isfinite(mean) & (weight > 0)
    if not known.any():
        return 1.0
    share = weight[known] / weight[known].sum()
    wanted = float(share[label[known] == 0].sum())

    def excess(touch: float) -> float:
        return float((share * stays_between(mean[known], touch * sd[known])).sum()) - wanted

    low, high = _TOUCHES
    if excess(low) <= 0.0:
        return low
    if excess(high) >= 0.0:
        return high
    return float(brentq(excess, low, high, xtol=1e-10, rtol=1e-10))


def stays_between(mean: FloatArray, sd: FloatArray) -> FloatArray:
    """Return the probability that a Brownian motion from 0 stays between -1 and 1 until time 1.

    Two series of the same function (Borodin and Salminen, 2002, Handbook of Brownian Motion, part II, 3.0): one of
    mirror images, for small deviations, and one of sines, for large ones.

    Parameters
    ----------
    mean, sd
        Of its value at time 1, were there no barriers; shape (rows,), ``sd`` > 0. NaN gives NaN.
    """
    drift = np.abs(mean)  # the barriers are symmetric
    narrow = sd < _IMAGES_BELOW
    # Each series gets values it is good for; the other rows are thrown away.
    images = _by_images(np.where(narrow, drift, 0.0), np.where(narrow, sd, _IMAGES_BELOW))
    sines = _by_sines(np.where(narrow, 0.0, drift), np.where(narrow, 1.0, sd))
    return np.clip(np.where(narrow, images, sines), 0.0, 1.0)


def _by_images(drift: FloatArray, sd: FloatArray) -> FloatArray:
    from scipy.special import log_ndtr

    total = np.zeros_like(drift)
    for mirror, sign in ((0.0, 1.0), (2.0, -1.0), (-2.0, -1.0), (4.0, 1.0), (-4.0, 1.0)):
        # The weight of an image may be too great for a float where its share of the normal is too small for one.
        log_weight = drift * mirror / (sd * sd)
        upper = np.exp(log_weight + log_ndtr((1.0 - mirror - drift) / sd))
        lower = np.exp(log_weight + log_ndtr((-1.0 - mirror - drift) / sd))
        total += sign * (upper - lower)
    return total


def _by_sines(drift: FloatArray, sd: FloatArray) -> FloatArray:
    variance = sd * sd
    theta = drift / variance
    # cosh(theta) exp(-drift ** 2 / (2 variance)) / 2 in a form that does not overflow
    scale = 0.5 * (np.exp(theta - 0.5 * drift * theta) + np.exp(-theta - 0.5 * drift * theta))
    total = np.zeros_like(drift)
    for term in range(_SINE_TERMS):
        k = (2 * term + 1) * np.pi / 2.0
        total += (-1.0) ** term * 2.0 * k / (theta * theta + k * k) * np.exp(-0.5 * k * k * variance)
    return scale * total
