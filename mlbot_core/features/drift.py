"""Do the features still look like those a model was trained on: feature by feature, and row by row.

Feature by feature: the population stability index over the training deciles (Siddiqi, 2006, Credit Risk Scorecards)
with the bound that chance alone explains (Yurdakul, 2018, Statistical properties of population stability index), and
the two-sample Kolmogorov-Smirnov distance. Bars are not independent, so the p-value of the latter and that bound are
too strict on their own; verdicts also ask for a PSI that is large in itself.

Row by row: the Mahalanobis distance (Mahalanobis, 1936; as an out-of-distribution score: Lee, Lee, Lee and Shin, 2018,
NeurIPS 31) of robust z-scores, under a covariance that is shrunk (Ledoit and Wolf, 2004, A well-conditioned estimator
for large-dimensional covariance matrices, JMVA 88) because hundreds of features overlap. A share of features outside
their usual range would miss the row in which each value is usual and their combination is not; it is reported beside
the distance because it says where to look. Robust z-scores are clipped, so that one wild column is not the whole score,
and a missing value counts as the median: it adds nothing. The distance is not chi-squared on fat tails, hence the
score of a row is the share of training rows that lie nearer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.errors import MissingDataError

Array = npt.NDArray[np.float64]

BINS: Final = 10
MIN_TRAINING_ROWS: Final = 200
_CLIP: Final = 8.0
_TAIL: Final = 0.005
_IQR_OF_NORMAL: Final = 1.3489795003921634
_MIN_KNOWN: Final = 0.5  # a feature that is missing in more of the training rows is not part of the distance
_CHANCE: Final = 0.99  # of the bound that chance alone explains


@dataclass(frozen=True)
class Reference:
    """What the training window looked like; made by :func:`fit_reference`.

    Parameters
    ----------
    names
        Features, in order.
    rows
        Training rows.
    samples
        Each feature's finite training values, ascending.
    edges
        Inner edges of each feature's bins: its training deciles, each once; a frequent value has a bin of its own.
    low, high
        Training quantiles 0.5 % and 99.5 %, shape (features,); NaN where a feature was never known.
    centre, spread
        Median and robust deviation (interquartile range / 1.349), shape (features,).
    active
        Which features the distance uses: known in half of the rows and not flat, shape (features,).
    precision
        Inverse of the shrunk covariance of the active features' clipped robust z-scores.
    distances
        Of the training rows, ascending.
    """

    names: tuple[str, ...]
    rows: int
    samples: tuple[Array, ...]
    edges: tuple[Array, ...]
    low: Array
    high: Array
    centre: Array
    spread: Array
    active: npt.NDArray[np.bool_]
    precision: Array
    distances: Array


@dataclass(frozen=True)
class RowScores:
    """How unusual rows are.

    Parameters
    ----------
    distance
        Root mean square Mahalanobis distance per active feature: about 1 for a usual row, shape (rows,).
    score
        Share of the training rows that lie nearer, 0 to 1.
    outside
        Share of the row's known features outside their training quantiles 0.5 % and 99.5 %; NaN if none is known.
    """

    distance: Array
    score: Array
    outside: Array


def fit_reference(matrix: Array, names: Sequence[str]) -> Reference:
    """Describe a training window.

    Parameters
    ----------
    matrix
        Feature values, shape (rows, features), NaN where missing.
    names
        Features, in the order of the columns.

    Raises
    ------
    MissingDataError
        If there are too few rows, or no feature that is known and moves.
    """
    if len(matrix) < MIN_TRAINING_ROWS:
        raise MissingDataError(
            f"{len(matrix)} training rows say too little about drift; {MIN_TRAINING_ROWS} are needed"
        )
    columns = [np.sort(column[np.isfinite(column)]) for column in matrix.T]
    shares = np.array([_TAIL, 0.25, 0.5, 0.75, 1.0 - _TAIL])
    low, lower, centre, upper, high = np.array(
        [np.quantile(column, shares) if len(column) else np.full(5, np.nan) for column in columns]
    ).T
    spread = (upper - lower) / _IQR_OF_NORMAL
    known = np.array([len(column) for column in columns]) / len(matrix)
    active = (known >= _MIN_KNOWN) & (spread > 0)
    if not active.any():
        raise MissingDataError("no feature of the training window is known and moves; backfill it first")
    edges = tuple(_edges(column) for column in columns)
    z = _robust_z(matrix, centre, spread, active)
    precision = np.asarray(np.linalg.inv(shrunk_covariance(z)), dtype=np.float64)
    distances = np.sort(_distance(z, precision))
    return Reference(
        tuple(names), len(matrix), tuple(columns), edges, low, high, centre, spread, active, precision, distances
    )


def decidable(matrix: Array, served: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which rows know half of the features that are served at all; the others are warm-up or an outage."""
    if not served.any():
        return np.zeros(len(matrix), dtype=np.bool_)
    return np.asarray(np.isfinite(matrix[:, served]).mean(axis=1) >= _MIN_KNOWN)


def row_scores(reference: Reference, matrix: Array) -> RowScores:
    """Score rows of features, shape (rows, features), against a training window."""
    z = _robust_z(matrix, reference.centre, reference.spread, reference.active)
    distance = _distance(z, reference.precision)
    score = np.searchsorted(reference.distances, distance, side="left") / len(reference.distances)
    known = np.isfinite(matrix) & np.isfinite(reference.low)
    beyond = known & ((matrix < reference.low) | (matrix > reference.high))
    count = known.sum(axis=1)
    outside = np.where(count > 0, beyond.sum(axis=1) / np.maximum(count, 1), np.nan)
    return RowScores(distance, score, outside)


def feature_drift(reference: Reference, matrix: Array) -> pd.DataFrame:
    """Compare each feature's values, shape (rows, features), with those of the training window.

    Returns
    -------
    pd.DataFrame
        One row a feature: ``feature``; ``psi`` (missing values are a bin of their own) and ``psi_chance`` (99 % of
        what chance alone makes of it, were the rows independent); ``ks`` (largest distance of the two distributions)
        and ``ks_p``; ``missing_train``, ``missing`` (shares of rows); ``shift`` (of the median, in robust deviations of
        the training window). NaN where a feature is not known on both sides.
    """
    out = []
    for at, name in enumerate(reference.names):
        column = matrix[:, at]
        sample, trained = np.sort(column[np.isfinite(column)]), reference.samples[at]
        psi, bins = _psi(trained, reference.rows - len(trained), sample, len(column) - len(sample), reference.edges[at])
        distance, p = ks_test(trained, sample)
        shift = np.nan
        if len(sample) and reference.spread[at] > 0:
            shift = float((np.median(sample) - reference.centre[at]) / reference.spread[at])
        out.append(
            {
                "feature": name,
                "psi": psi,
                "psi_chance": psi_by_chance(reference.rows, len(column), bins),
                "ks": distance,
                "ks_p": p,
                "missing_train": 1.0 - len(trained) / reference.rows,
                "missing": 1.0 - len(sample) / len(column) if len(column) else np.nan,
                "shift": shift,
            }
        )
    return pd.DataFrame(out)


def psi_by_chance(rows: int, other_rows: int, bins: int, share: float = _CHANCE) -> float:
    """Return the quantile of the population stability index of two samples of one distribution (Yurdakul, 2018).

    ``(1 / n + 1 / m)`` times the chi-squared quantile of ``bins - 1`` degrees of freedom; NaN without rows or bins.
    """
    from scipy.stats import chi2

    if min(rows, other_rows) == 0 or bins < 2:
        return float("nan")
    return float((1.0 / rows + 1.0 / other_rows) * chi2.ppf(share, bins - 1))


def ks_test(first: Array, second: Array) -> tuple[float, float]:
    """Return the two-sample Kolmogorov-Smirnov distance of two ascending samples and its asymptotic p-value."""
    from scipy.special import kolmogorov

    n, m = len(first), len(second)
    if n == 0 or m == 0:
        return float("nan"), float("nan")
    both = np.concatenate([first, second])
    below = np.searchsorted(first, both, side="right") / n - np.searchsorted(second, both, side="right") / m
    distance = float(np.abs(below).max())
    return distance, float(kolmogorov(np.sqrt(n * m / (n + m)) * distance))


def shrunk_covariance(z: Array) -> Array:
    """Return Ledoit and Wolf's (2004) covariance: the sample's, drawn towards a multiple of the identity."""
    rows, size = z.shape
    centred = z - z.mean(axis=0)
    sample = centred.T @ centred / rows
    level = np.trace(sample) / size
    target = level * np.eye(size)
    apart = float(((sample - target) ** 2).sum())
    noise = float(((centred**2).sum(axis=1) ** 2).sum() / rows - (sample**2).sum()) / rows
    weight = min(1.0, noise / apart) if apart > 0 else 1.0
    return np.asarray(weight * target + (1.0 - weight) * sample, dtype=np.float64)


def _edges(column: Array) -> Array:
    """Return the inner edges of the bins of an ascending sample; a value that fills a bin alone has one to itself."""
    if len(column) == 0:
        return column
    deciles = np.quantile(column, np.arange(BINS + 1) / BINS)
    alone = deciles[1:][deciles[1:] == deciles[:-1]]
    return np.unique(np.concatenate([deciles[1:-1], alone, np.nextafter(alone, np.inf)]))


def _psi(trained: Array, trained_missing: int, sample: Array, missing: int, edges: Array) -> tuple[float, int]:
    """Return the index and the number of bins; half a row is added to every bin so that none is empty."""
    if len(trained) == 0 or len(sample) + missing == 0:
        return float("nan"), 0
    expected = np.append(np.bincount(np.searchsorted(edges, trained, side="right"), minlength=len(edges) + 1), 0)
    actual = np.append(np.bincount(np.searchsorted(edges, sample, side="right"), minlength=len(edges) + 1), 0)
    expected[-1], actual[-1] = trained_missing, missing
    used = (expected + actual) > 0
    p = (expected[used] + 0.5) / (expected[used] + 0.5).sum()
    q = (actual[used] + 0.5) / (actual[used] + 0.5).sum()
    return float(((q - p) * np.log(q / p)).sum()), int(used.sum())


def _robust_z(matrix: Array, centre: Array, spread: Array, active: npt.NDArray[np.bool_]) -> Array:
    z = (matrix[:, active] - centre[active]) / spread[active]
    return np.clip(np.where(np.isfinite(z), z, 0.0), -_CLIP, _CLIP)


def _distance(z: Array, precision: Array) -> Array:
    return np.asarray(np.sqrt(np.maximum(((z @ precision) * z).sum(axis=1), 0.0) / z.shape[1]), dtype=np.float64)
