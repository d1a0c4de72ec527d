"""From a few quantiles to a whole distribution: its mean, its spread, and the chances of the barriers.

The quantiles are sorted first (rearrangement never worsens them: Chernozhukov, Fernandez-Val, Galichon, 2010, Quantile
and probability curves without crossing, Econometrica 78). The quantile function is then linear between them on the
scale of a normal distribution, ``Q(u) = q + slope * (z(u) - z(level))`` with ``z`` the standard normal quantile, and
beyond the outermost ones it goes on with their slope: normal tails, as wide as the last two quantiles say. Of the
quantiles of a normal this is that normal.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from mlbot_core.models.forecast import stays_between

FloatArray = npt.NDArray[np.float64]

_LEAST_GAP: Final = 1e-6  # barrier widths between neighbouring quantiles: far below anything that can be told apart
_IMAGES: Final = range(-3, 4)
_IMAGE_EDGES: Final = [2.0 * k - 1.0 for k in (*_IMAGES, _IMAGES.stop)]  # of the bands (2k - 1, 2k + 1)
_MAX_TILT: Final = 700.0  # exp of more is not a float


def uncross(quantiles: FloatArray) -> FloatArray:
    """Return the quantiles of each row in order, and a hair apart.

    Parameters
    ----------
    quantiles
        Shape (rows, levels).
    """
    gaps = _LEAST_GAP * np.arange(quantiles.shape[1])
    return np.asarray(np.maximum.accumulate(np.sort(quantiles, axis=1) - gaps, axis=1) + gaps)


def moments(quantiles: FloatArray, levels: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return mean and standard deviation, shape (rows,) each, in the unit of the quantiles.

    Parameters
    ----------
    quantiles
        Shape (rows, levels), ascending (:func:`uncross`).
    levels
        Ascending, inside (0, 1), at least two.
    """
    from scipy.special import ndtri

    z = np.asarray(ndtri(levels))
    slope, offset = _lines(quantiles, z)
    # the outermost lines reach to infinity, where z times the density is 0
    edges = np.concatenate([[-np.inf], z[1:-1], [np.inf]])
    density = np.exp(-0.5 * edges * edges) / np.sqrt(2.0 * np.pi)
    times = np.concatenate([[0.0], z[1:-1] * density[1:-1], [0.0]])
    mass = np.diff(np.concatenate([[0.0], levels[1:-1], [1.0]]))
    first, second = -np.diff(density), mass - np.diff(times)  # of a standard normal between the edges
    mean = (offset * mass + slope * first).sum(axis=1)
    # about the mean, so that the variance is not a difference of large numbers
    away = offset - mean[:, None]
    variance = (away * away * mass + 2.0 * away * slope * first + slope * slope * second).sum(axis=1)
    return mean, np.sqrt(np.maximum(variance, 0.0))


def probability_below(value: float, quantiles: FloatArray, levels: FloatArray) -> FloatArray:
    """Return the probability of less than ``value``, shape (rows,).

    Parameters
    ----------
    value
        In the unit of the quantiles.
    quantiles, levels
        As in :func:`moments`.
    """
    from scipy.special import ndtr, ndtri

    slope, offset = _lines(quantiles, np.asarray(ndtri(levels)))
    line = np.clip((quantiles <= value).sum(axis=1) - 1, 0, slope.shape[1] - 1)[:, None]
    chosen, start = np.take_along_axis(slope, line, 1)[:, 0], np.take_along_axis(offset, line, 1)[:, 0]
    return np.asarray(ndtr((value - start) / chosen))


def forecast_columns(quantiles: FloatArray, levels: FloatArray) -> FloatArray:
    """Return the columns of :data:`mlbot_core.models.base.FORECAST`, shape (rows, 5).

    The score is the mean and not the median: what is sized and paid for is the expected return, and the two differ
    where the distribution is skewed.

    The quantiles say where the return ends, the labels which barrier the price touches first on its way. By the
    reflection principle as many paths that touch a barrier end on either side of it, so without drift ``p_neutral`` is
    the alternating sum of the probabilities of ending in the images of the band between the barriers (Karatzas and
    Shreve, 1991, Brownian Motion and Stochastic Calculus, section 2.8.A). It is used for what the distribution differs
    from the normal with its mean and deviation, for which :func:`mlbot_core.models.forecast.stays_between` is exact
    with drift. The rest is split as in :func:`mlbot_core.models.forecast.from_normal`.

    Parameters
    ----------
    quantiles
        Shape (rows, levels), in barrier widths; they may cross.
    levels
        Ascending, inside (0, 1).
    """
    from scipy.special import ndtr

    q = uncross(quantiles)
    mean, sd = moments(q, levels)
    own = _alternating([probability_below(edge, q, levels) for edge in _IMAGE_EDGES])
    normal = _alternating([np.asarray(ndtr((edge - mean) / sd)) for edge in _IMAGE_EDGES])
    neutral = np.clip(stays_between(mean, sd) + own - normal, 0.0, 1.0)
    up = (1.0 - neutral) / (1.0 + np.exp(np.clip(-2.0 * mean / (sd * sd), -_MAX_TILT, _MAX_TILT)))
    return np.column_stack([np.maximum(1.0 - neutral - up, 0.0), neutral, up, mean, sd])


def _alternating(below: list[FloatArray]) -> FloatArray:
    """Return the alternating sum of the probabilities of the bands between edges."""
    signs = np.array([(-1.0) ** abs(k) for k in _IMAGES])
    return np.asarray((signs * np.diff(np.column_stack(below), axis=1)).sum(axis=1))


def _lines(quantiles: FloatArray, z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return slope and offset of each line between neighbouring quantiles over ``z``, shape (rows, levels - 1)."""
    slope = np.diff(quantiles, axis=1) / np.diff(z)
    return slope, quantiles[:, :-1] - slope * z[:-1]
