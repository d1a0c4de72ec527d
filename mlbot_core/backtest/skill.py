"""How good the forecasts themselves were, before any trading."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from mlbot_core.models.fold_scores import mean_log_loss, rank_correlation
from mlbot_core.targets.direction import label_overlap
from mlbot_core.validation.significance import Interval, wilson_interval

NORMAL_95: Final = 1.959963984540054
CLASSES = (("p_down", -1.0), ("p_neutral", 0.0), ("p_up", 1.0))


@dataclass(frozen=True)
class ForecastSkill:
    """Forecasts against realised labels.

    Parameters
    ----------
    n
        Forecasts with a realised label.
    hits
        Share of right directions where a barrier was touched: sign of ``p_up - p_down`` against the label. The
        interval counts overlapping labels once: ``n`` in it is the number of such labels times the mean of their
        average uniqueness.
    ic
        Rank correlation (Spearman) of forecast and realised score, with Fisher's interval over independent labels; NaN
        where no realised score is given.
    base_rate
        Share of the more frequent of the two directions: what always saying the same would have hit.
    log_loss, base_log_loss
        Mean -log probability of what happened, and that of the labels' own frequencies, in nats.
    calibration
        ``outcome`` (down, up), ``forecast`` (mean probability of the bin), ``realised`` (frequency), ``low``, ``high``
        (95 %, overlap counted once), ``n``: at most ten bins of equal count for each.
    """

    n: int
    hits: Interval
    ic: Interval
    base_rate: float
    log_loss: float
    base_log_loss: float
    calibration: pd.DataFrame


def forecast_skill(forecasts: pd.DataFrame, targets: pd.DataFrame, timeframe_ms: int) -> ForecastSkill:
    """Compare forecasts with the labels that came true.

    Parameters
    ----------
    forecasts
        ``ts``, ``p_down``, ``p_neutral``, ``p_up``, ``score``.
    targets
        ``ts``, ``label`` (-1, 0, +1; NaN where not realised yet), ``t1``, when it was known (UTC ms; NaN or -1 =
        not yet), and, where they are known, ``score``, the realised
        one, with ``score_t1``, when that was known.
    timeframe_ms
        Length of a bar.
    """
    joined = forecasts.merge(targets[["ts", "label", "t1"]], on="ts", how="inner").dropna(
        subset=["p_down", "p_neutral", "p_up", "label"]
    )
    label = joined["label"].to_numpy(dtype=np.float64)
    overlap = _overlap(joined, timeframe_ms)
    lean = np.sign(joined["p_up"].to_numpy() - joined["p_down"].to_numpy())
    asked = (label != 0) & (lean != 0)
    n_asked = int(asked.sum())
    rate = float((lean[asked] == label[asked]).mean()) if n_asked else math.nan
    up = float((label[asked] > 0).mean()) if n_asked else math.nan
    return ForecastSkill(
        n=len(joined),
        hits=_effective(rate, n_asked, overlap),
        ic=_information(forecasts, targets, timeframe_ms),
        base_rate=max(up, 1 - up),
        log_loss=_log_loss(joined, label),
        base_log_loss=_base_log_loss(label),
        calibration=_calibration(joined, label, overlap),
    )


def _overlap(joined: pd.DataFrame, timeframe_ms: int) -> float:
    begins = joined["ts"].to_numpy(dtype=np.int64) + timeframe_ms
    ends = joined["t1"].fillna(-1).to_numpy(dtype=np.int64)
    return label_overlap(begins, ends, timeframe_ms)


def _effective(rate: float, n: int, overlap: float) -> Interval:
    """Return Wilson's interval around a rate as if only every ``overlap``-th try were independent."""
    if n == 0:
        return wilson_interval(0, 0)
    independent = max(1, round(n / max(1.0, overlap)))
    interval = wilson_interval(min(independent, round(rate * independent)), independent)
    return Interval(rate, min(interval.low, rate), max(interval.high, rate), math.nan, interval.level, independent)


def _information(forecasts: pd.DataFrame, targets: pd.DataFrame, timeframe_ms: int) -> Interval:
    """Return the information coefficient; Fisher's z with as many independent pairs as horizons fit side by side."""
    if not {"score", "score_t1"} <= {*targets.columns}:
        return Interval(math.nan, math.nan, math.nan, math.nan, 0.95, 0)
    came_true = targets[["ts", "score", "score_t1"]].rename(columns={"score_t1": "t1"})
    both = forecasts[["ts", "score"]].merge(came_true, on="ts", suffixes=("", "_came")).dropna()
    overlap = _overlap(both, timeframe_ms)
    said, came = (both[name].to_numpy(dtype=np.float64) for name in ("score", "score_came"))
    value = rank_correlation(said, came)
    independent = int(len(both) / max(1.0, overlap))
    if not math.isfinite(value) or abs(value) >= 1.0 or independent < 4:
        return Interval(value, math.nan, math.nan, math.nan, 0.95, independent)
    half = NORMAL_95 / math.sqrt(independent - 3)
    low, high = math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)
    return Interval(value, low, high, math.nan, 0.95, independent)


def _log_loss(joined: pd.DataFrame, label: np.ndarray) -> float:
    p = np.select([label == value for _, value in CLASSES], [joined[name].to_numpy() for name, _ in CLASSES], np.nan)
    return mean_log_loss(p)


def _base_log_loss(label: np.ndarray) -> float:
    if len(label) == 0:
        return math.nan
    shares = np.unique(label, return_counts=True)[1] / len(label)
    return float(-(shares * np.log(shares)).sum())


def _calibration(joined: pd.DataFrame, label: np.ndarray, overlap: float) -> pd.DataFrame:
    rows = []
    for name, outcome, value in (("p_down", "down", -1.0), ("p_up", "up", 1.0)):
        p = joined[name].to_numpy()
        if len(p) == 0:
            continue
        edges = np.unique(np.quantile(p, np.linspace(0, 1, 11)))
        bins = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, max(0, len(edges) - 2))
        for b in np.unique(bins):
            inside = bins == b
            count = int(inside.sum())
            interval = _effective(float((label[inside] == value).mean()), count, overlap)
            rows.append((outcome, float(p[inside].mean()), interval.value, interval.low, interval.high, count))
    return pd.DataFrame(rows, columns=["outcome", "forecast", "realised", "low", "high", "n"])
