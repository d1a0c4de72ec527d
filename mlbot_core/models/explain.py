"""What a model rests on and whether it still holds: pure functions over forecasts and what came of them.

What each feature adds to one forecast is the model's own matter (:meth:`mlbot_core.models.base.Model.explain`); how
well probabilities are calibrated is reported by the backtest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Final, Literal
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.errors import UsageError
from mlbot_core.features.drift import MIN_TRAINING_ROWS, feature_drift, fit_reference
from mlbot_core.models.base import FORECAST, LABELS, PROBABILITIES, Model, blank_rows, check_rows
from mlbot_core.models.fold_scores import mean_log_loss, rank_correlation

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Metric = Literal["log_loss", "rank_ic"]
Period = Literal["fold", "month"]

DRIFT_COLUMNS: Final = (
    "period",
    "rows",
    "earlier_rows",
    "column",
    "psi",
    "psi_chance",
    "ks",
    "ks_p",
    "missing_earlier",
    "missing",
    "shift",
)
_NORMAL_95: Final = 1.959963984540054


def log_loss(forecast: pd.DataFrame, outcome: pd.DataFrame) -> float:
    """Return the mean -log probability of the labels that came true, nats; NaN where there are none."""
    p = forecast[list(PROBABILITIES)].to_numpy(dtype=np.float64)
    label = outcome["label"].to_numpy(dtype=np.float64)
    known = np.isfinite(p).all(axis=1) & np.isfinite(label)
    return mean_log_loss(p[known, np.searchsorted(LABELS, label[known])])


def rank_ic(forecast: pd.DataFrame, outcome: pd.DataFrame) -> float:
    """Return Spearman's correlation of the score with what it came to; NaN where it is not defined."""
    return rank_correlation(forecast["score"].to_numpy(np.float64), outcome["score"].to_numpy(np.float64))


# what to measure, and the sign that makes a worse forecast a positive importance
_METRICS: Final[dict[str, tuple[Callable[[pd.DataFrame, pd.DataFrame], float], float]]] = {
    "log_loss": (log_loss, 1.0),
    "rank_ic": (rank_ic, -1.0),
}


def permutation_importance(
    model: Model,
    X: pd.DataFrame,
    y: pd.DataFrame,
    rows: IntArray | None = None,
    *,
    metric: Metric | None = None,
    seed: int = 0,
    repeats: int = 5,
    block_bars: int = 48,
) -> pd.DataFrame:
    """Return how much worse the forecasts get when a feature is given values of another time.

    Breiman (2001), Random forests, Machine Learning 45. Blocks of bars change places, not single bars: bars next to
    each other are alike, so single bars moved about would make a series which never occurs, and would make the
    importance of a slow feature look more certain than it is. To be computed on rows that trained nothing. Features
    that say the same stand in for each other, and each looks unimportant alone.

    Parameters
    ----------
    model
        Fitted.
    X, y
        As for :meth:`mlbot_core.models.base.Model.fit`; only bars that have any feature change places.
    rows
        Positions to judge, ascending; all by default. Bars before them are context.
    metric
        ``log_loss`` or ``rank_ic``; by default the first for a model of labels, the second for one of scores.
    seed
        Of the permutations; a feature's own depend on it and on the feature's name alone.
    repeats
        Permutations a feature.
    block_bars
        Bars a block: at least the horizon of the outcome and the time over which features look alike.

    Returns
    -------
    pd.DataFrame
        ``feature``, ``importance`` (mean over the repeats of the rise in log loss, nats, or of the fall in rank
        correlation), ``sd`` (over the repeats, NaN for one), ``metric``, ``base`` (the metric with nothing permuted);
        greatest importance first.

    Raises
    ------
    UsageError
        If repeats or block are below 1, fewer than two blocks fit, or the metric is not defined on these rows.
    NotFittedError, FeatureMismatchError
    """
    if repeats < 1 or block_bars < 1:
        raise UsageError(f"permutation importance takes at least 1 repeat and 1 bar a block, got {repeats, block_bars}")
    chosen = metric or ("log_loss" if model.target == "label" else "rank_ic")
    measure, sign = _METRICS[chosen]
    index = check_rows(rows, len(X))
    outcome = y.iloc[index]
    base = measure(model.predict(X, index), outcome)
    if math.isnan(base):
        raise UsageError(f"{chosen} is not defined on these {len(index)} rows: outcomes or forecasts are missing")
    moved = np.flatnonzero(~blank_rows(X.to_numpy(dtype=np.float64)))
    if len(moved) < 2 * block_bars:
        raise UsageError(f"{len(moved)} bars do not hold two blocks of {block_bars}; use a smaller block_bars")
    table = []
    for name in model.feature_names:
        column = X[name].to_numpy(dtype=np.float64)
        falls = []
        for repeat in range(repeats):
            order = _block_order(len(moved), block_bars, np.random.default_rng([seed, crc32(name.encode()), repeat]))
            permuted = column.copy()
            permuted[moved] = column[moved[order]]
            falls.append(sign * (measure(model.predict(X.assign(**{name: permuted}), index), outcome) - base))
        sd = float(np.std(falls, ddof=1)) if repeats > 1 else math.nan
        table.append((name, float(np.mean(falls)), sd, chosen, base))
    frame = pd.DataFrame(table, columns=["feature", "importance", "sd", "metric", "base"])
    return frame.sort_values(["importance", "feature"], ascending=[False, True], ignore_index=True)


def _block_order(n: int, block: int, generator: np.random.Generator) -> IntArray:
    """Return positions 0..n-1 in blocks that changed places, from a random bar on so that block edges move too."""
    start = int(generator.integers(0, block))
    edges = np.unique(np.r_[0, np.arange(start, n, block), n])
    blocks = [np.arange(a, b, dtype=np.int64) for a, b in pairwise(edges.tolist())]
    return np.concatenate([blocks[i] for i in generator.permutation(len(blocks))])


def lift_table(forecast: pd.DataFrame, outcome: pd.DataFrame, *, bins: int = 10, overlap: float = 1.0) -> pd.DataFrame:
    """Return what came of low and of high forecasts.

    Parameters
    ----------
    forecast
        With the column ``score``.
    outcome
        ``score`` of the same rows, in the same order; NaN where it is not known yet.
    bins
        Parts of equal count, by the forecast; equal forecasts share a part, so there may be fewer.
    overlap
        How many outcomes share a bar, at least 1: an interval counts ``n / overlap`` independent rows.

    Returns
    -------
    pd.DataFrame
        One row a part, lowest forecasts first: ``from_score``, ``to_score`` and ``forecast`` (their mean); ``realised``
        (mean), ``low``, ``high`` (95 %, normal; NaN for one independent row), ``hit_rate`` (share of outcomes above
        zero) and ``n``. Scores are in barrier widths.

    Raises
    ------
    UsageError
        If the frames differ in length, or bins or overlap are below 1.
    """
    if bins < 1 or overlap < 1.0 or len(forecast) != len(outcome):
        raise UsageError(
            f"a lift table takes at least 1 bin ({bins}), an overlap of at least 1 ({overlap:g}) and as many outcomes "
            f"({len(outcome)}) as forecasts ({len(forecast)})"
        )
    said = forecast["score"].to_numpy(dtype=np.float64)
    came = outcome["score"].to_numpy(dtype=np.float64)
    both = np.isfinite(said) & np.isfinite(came)
    said, came = said[both], came[both]
    table = []
    if len(said):
        edges = np.unique(np.quantile(said, np.linspace(0, 1, bins + 1)))
        part = np.clip(np.searchsorted(edges, said, side="right") - 1, 0, max(0, len(edges) - 2))
        for b in np.unique(part):
            x, z = said[part == b], came[part == b]
            independent = len(z) / overlap
            half = _NORMAL_95 * float(z.std(ddof=1)) / math.sqrt(independent) if independent > 1 else math.nan
            mean = float(z.mean())
            table.append(
                (
                    float(x.min()),
                    float(x.max()),
                    float(x.mean()),
                    mean,
                    mean - half,
                    mean + half,
                    float((z > 0).mean()),
                    len(z),
                )
            )
    columns = ["from_score", "to_score", "forecast", "realised", "low", "high", "hit_rate", "n"]
    return pd.DataFrame(table, columns=columns)


def forecast_drift(forecasts: pd.DataFrame, by: Period = "fold") -> pd.DataFrame:
    """Compare the forecasts of each fold or month with all those before it.

    The measures are those of the features (:mod:`mlbot_core.features.drift`): the population stability index over the
    earlier deciles and the Kolmogorov-Smirnov distance. A period looks back only, so that a table of last month does
    not change this month.

    Parameters
    ----------
    forecasts
        ``ts`` (UTC ms), ``fold`` where that is asked for, and the columns of
        :data:`mlbot_core.models.base.FORECAST`.
    by
        ``fold``, or ``month`` of the calendar in UTC.

    Returns
    -------
    pd.DataFrame
        The columns of :data:`DRIFT_COLUMNS`: a row for each period and each column of the forecast, in order of time.
        ``earlier_rows`` are the forecasts before the period; with fewer than
        :data:`mlbot_core.features.drift.MIN_TRAINING_ROWS` of them, or none that move, the measures are NaN.
    """
    ordered = forecasts.sort_values("ts", ignore_index=True)
    values = ordered[list(FORECAST)].to_numpy(dtype=np.float64)
    if by == "fold":
        label = ordered["fold"].astype(str).to_numpy()
    else:
        label = pd.to_datetime(ordered["ts"], unit="ms", utc=True).dt.strftime("%Y-%m").to_numpy()
    table: list[dict[str, object]] = []
    for period in dict.fromkeys(label):
        inside = np.flatnonzero(label == period)
        earlier, now = values[: inside[0]], values[inside]
        table += [
            {"period": period, "rows": len(now), "earlier_rows": len(earlier), **row} for row in _drift(earlier, now)
        ]
    return pd.DataFrame(table, columns=list(DRIFT_COLUMNS))


def _drift(earlier: FloatArray, now: FloatArray) -> list[dict[str, object]]:
    moves = [len(np.unique(column[np.isfinite(column)])) > 1 for column in earlier.T]
    unknown = dict.fromkeys(DRIFT_COLUMNS[4:], math.nan)
    if len(earlier) < MIN_TRAINING_ROWS or not any(moves):
        return [{"column": name, **unknown} for name in FORECAST]
    # Each column by itself: what is asked here is about single columns, not about their combination.
    table: list[dict[str, object]] = []
    for at, name in enumerate(FORECAST):
        if not moves[at]:
            table.append({"column": name, **unknown})
            continue
        reference = fit_reference(earlier[:, [at]], [name])
        found = feature_drift(reference, now[:, [at]]).rename(columns={"missing_train": "missing_earlier"})
        table.append({"column": name, **{key: found[key].iloc[0] for key in DRIFT_COLUMNS[4:]}})
    return table
