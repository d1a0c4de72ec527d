"""From the panel to labels, each with the interval of time that it looks at."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.config import TargetConfig
from mlbot_core.errors import BadDataError
from mlbot_core.features.truncation import UNKNOWN_MS
from mlbot_core.targets.direction import triple_barrier
from mlbot_core.targets.returns import trailing_sigma, volatility_adjusted_return
from mlbot_core.timeframe import Market

LABELS: Final = {"tb_t1": ("tb_label", "tb_ret"), "var_t1": ("var_ret",)}
"""Time of knowledge of each label and the columns that become known with it, as the truncation check takes them."""

TARGET_COLUMNS: Final = ("ts", "t0", "tb_label", "tb_t1", "tb_ret", "tb_width", "sigma", "var_ret", "var_t1")


def build_targets(panel: pd.DataFrame, market: Market, config: TargetConfig) -> pd.DataFrame:
    """Label every bar of a panel.

    Parameters
    ----------
    panel
        A regular grid with ``ts``, ``open``, ``high``, ``low``, ``close``; NaN where a bar is missing. Only closed
        bars may be in it.
    market
        Gives the length of a bar.
    config
        Volatility window and horizon in bars, barrier width in horizon standard deviations.

    Returns
    -------
    pd.DataFrame
        One row a bar:

        ========== ======= ======================================================================================
        ts         int64   open time, UTC ms
        t0         int64   start of the label interval: the bar's close, UTC ms
        tb_label   float64 1 upper barrier first, -1 lower first, 0 neither (or both in one bar), NaN unknown
        tb_t1      int64   when the label is known: the close of the bar that decided, UTC ms; -1 unknown
        tb_ret     float64 log return from t0 to the touch or to the vertical barrier; NaN unknown
        tb_width   float64 log distance of the barriers: barrier_width x sigma x sqrt(horizon); known at t0
        sigma      float64 trailing standard deviation of one-bar log returns; known at t0
        var_ret    float64 log return over the horizon in horizon standard deviations; NaN unknown
        var_t1     int64   when that is known, UTC ms; -1 unknown
        ========== ======= ======================================================================================

        A label is unknown where a bar it needs is missing or has not closed. Unknown times are -1 and not a null, so
        that the column stays int64; such rows never train.

    Raises
    ------
    BadDataError
        If the panel is not the market's regular grid.
    """
    ts = panel["ts"].to_numpy(dtype=np.int64)
    step = market.timeframe.ms
    if (np.diff(ts) != step).any():
        bad = int(ts[1:][np.diff(ts) != step][0])
        raise BadDataError(f"{market}: the panel is not a regular grid at bar {bad}; missing bars must be rows of NaN")
    open_, high, low, close = (_column(panel, name) for name in ("open", "high", "low", "close"))
    sigma = trailing_sigma(close, config.volatility_window)
    width = config.barrier_width * sigma * math.sqrt(config.horizon)
    label, touch, result = triple_barrier(open_, high, low, close, width, config.horizon)
    value, end = volatility_adjusted_return(close, sigma, config.horizon)
    columns = {
        "ts": ts,
        "t0": ts + step,
        "tb_label": label,
        "tb_t1": _close_of(ts, touch, step),
        "tb_ret": result,
        "tb_width": width,
        "sigma": sigma,
        "var_ret": value,
        "var_t1": _close_of(ts, end, step),
    }
    return pd.DataFrame(columns, columns=list(TARGET_COLUMNS))


def target_lookback(config: TargetConfig) -> int:
    """Return the bars before the current one that a label's barriers need."""
    return config.volatility_window


def _column(panel: pd.DataFrame, name: str) -> npt.NDArray[np.float64]:
    return np.ascontiguousarray(panel[name].to_numpy(dtype=np.float64))


def _close_of(ts: npt.NDArray[np.int64], row: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.int64]:
    if len(ts) == 0:
        return ts.copy()
    return np.where(row >= 0, ts[np.maximum(row, 0)] + step, np.int64(UNKNOWN_MS))
