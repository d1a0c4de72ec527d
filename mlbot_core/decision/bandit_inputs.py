"""What the bandit's context is made of, bar by bar, and what a decision is worth, in backtest and live. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.config.bandit import BanditContextConfig, BanditRewardConfig
from mlbot_core.timeframe import DAY_MS
from mlbot_core.validation.significance import DAYS_PER_YEAR

FloatArray = npt.NDArray[np.float64]


def reward_of(growth: Any, fall: Any, config: BanditRewardConfig) -> Any:
    """Return (log growth net of costs - penalty x deepest fall) / unit; numbers or arrays."""
    return (growth - config.drawdown_penalty * fall) / config.unit


def known_at_close(frame: pd.DataFrame, timeframe_ms: int, config: BanditContextConfig) -> pd.DataFrame:
    """Return ``edge``, ``edge_sd``, ``spread``, ``volatility``, ``liquidity`` and ``calibration`` of every bar.

    Each value uses what was known at the bar's close and nothing after it.

    Parameters
    ----------
    frame
        One row a bar, without gaps: ``ts`` (UTC ms, open time), ``close`` (USD), ``volume`` (coins), ``edge``,
        ``edge_sd``, ``spread`` (log return), ``p_down``, ``p_up``, ``label`` (-1, 0, +1) and ``t1`` (when it was known,
        UTC ms); NaN = missing.
    timeframe_ms
        Length of a bar.
    """
    bars_a_day = DAY_MS / timeframe_ms
    returns = pd.Series(np.log(frame["close"].to_numpy(dtype=np.float64))).diff()
    window = max(2, round(config.volatility_days * bars_a_day))
    square = (returns**2).rolling(window, min_periods=window // 2).mean()
    window = max(2, round(config.usual_volume_days * bars_a_day))
    usual = frame["volume"].astype(float).shift(1).rolling(window, min_periods=window // 2).median()
    return pd.DataFrame(
        {
            "edge": frame["edge"],
            "edge_sd": frame["edge_sd"],
            "spread": frame["spread"],
            "volatility": np.sqrt(square * bars_a_day * DAYS_PER_YEAR),
            "liquidity": (frame["volume"] / usual.where(usual > 0)).astype(float),
            "calibration": _calibration(frame, timeframe_ms, config),
        }
    )


def _calibration(frame: pd.DataFrame, length: int, config: BanditContextConfig) -> FloatArray:
    """Return the hit rate of the newest forecasts whose outcome was known, less what they claimed; NaN for too few."""
    p_down, p_up, label, t1 = (frame[name].to_numpy(dtype=np.float64) for name in ("p_down", "p_up", "label", "t1"))
    usable = np.isfinite(p_down + p_up + label + t1) & (label != 0) & (p_up != p_down)
    rows = np.flatnonzero(usable)
    rows = rows[np.argsort(t1[rows], kind="stable")]
    better = np.maximum(p_up[rows], p_down[rows]) / (p_up[rows] + p_down[rows])
    gap = (np.sign(p_up[rows] - p_down[rows]) == label[rows]) - better
    total = np.r_[0.0, np.cumsum(gap)]
    seen = np.searchsorted(t1[rows], frame["ts"].to_numpy(dtype=np.int64) + length, side="right")
    first = np.maximum(seen - config.calibration_forecasts, 0)
    count = seen - first
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count >= config.calibration_min, (total[seen] - total[first]) / count, np.nan)
