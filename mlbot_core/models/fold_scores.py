"""How good the forecasts of one fold were, and what the folds rested on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.models.base import LABELS, PROBABILITIES

_LOSS_FLOOR: Final = 1e-15


def fold_scores(
    forecasts: pd.DataFrame, outcomes: pd.DataFrame, trained_labels: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Return the scores of a fold's forecasts.

    Parameters
    ----------
    forecasts
        The columns of :data:`mlbot_core.models.base.FORECAST`, one row a test bar.
    outcomes
        ``label`` and ``score`` of the same bars; NaN = not known.
    trained_labels
        Labels of the rows that trained the fold.

    Returns
    -------
    dict
        ``forecast_rows`` (bars with a forecast); ``directional_rows`` (forecasts whose label is up or down), ``hits``
        (of these, the sign of the forecast score is the label's), ``hit_rate``; ``log_loss`` of the probabilities in
        nats and ``base_log_loss`` of always forecasting the training frequencies, on the same rows; ``ic`` (rank
        correlation of forecast and realised score). NaN where nothing counts.
    """
    p = forecasts[list(PROBABILITIES)].to_numpy(dtype=np.float64)
    said = forecasts["score"].to_numpy(dtype=np.float64)
    label = outcomes["label"].to_numpy(dtype=np.float64)
    known = ~np.isnan(said)
    judged = known & ~np.isnan(label)
    column = np.searchsorted(LABELS, label[judged].astype(np.int64))
    seen = trained_labels[~np.isnan(trained_labels)]
    frequency = np.array([np.mean(seen == c) if len(seen) else math.nan for c in LABELS])
    directional = judged & (label != 0)
    hits = int(np.sum(np.sign(said[directional]) == label[directional]))
    n = int(directional.sum())
    return {
        "forecast_rows": int(known.sum()),
        "directional_rows": n,
        "hits": hits,
        "hit_rate": hits / n if n else math.nan,
        "log_loss": mean_log_loss(p[judged, column]),
        "base_log_loss": mean_log_loss(frequency[column]),
        "ic": rank_correlation(said, outcomes["score"].to_numpy(dtype=np.float64)),
    }


def rank_correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation over the rows where both are known; NaN where it is not defined."""
    both = np.isfinite(a) & np.isfinite(b)
    x, y = (pd.Series(values[both]).rank().to_numpy() for values in (a, b))
    if len(x) < 3 or x.std() == 0.0 or y.std() == 0.0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def mean_importance(folds: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the importance of each feature over all folds.

    Returns
    -------
    pd.DataFrame
        ``feature, gain_share`` (mean over folds of the share of the total gain), ``gain_share_std`` (over folds,
        population), ``splits`` (mean), ``folds_used`` (folds that used it); greatest share first.
    """
    names = sorted({name for fold in folds for name in fold["feature"]})
    gain, splits = (
        np.stack([f.set_index("feature")[column].reindex(names).fillna(0.0).to_numpy(dtype=np.float64) for f in folds])
        for column in ("gain", "splits")
    )
    total = gain.sum(axis=1, keepdims=True)
    share = np.divide(gain, total, out=np.zeros_like(gain), where=total > 0)
    frame = pd.DataFrame(
        {
            "feature": names,
            "gain_share": share.mean(axis=0),
            "gain_share_std": share.std(axis=0),
            "splits": splits.mean(axis=0),
            "folds_used": (gain > 0).sum(axis=0).astype(np.int64),
        }
    )
    return frame.sort_values(["gain_share", "feature"], ascending=[False, True], ignore_index=True)


def mean_log_loss(probability: npt.NDArray[np.float64]) -> float:
    """Return the mean -log of the probabilities given to what came true, nats; NaN for none.

    A probability of zero counts as 1e-15: one mistake of a model that was certain does not make the mean infinite.
    """
    if len(probability) == 0:
        return math.nan
    return float(-np.mean(np.log(np.clip(probability, _LOSS_FLOOR, 1.0))))
