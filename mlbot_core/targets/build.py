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
"""Time of knowledge of each main label and the columns that become known with it, as the truncation check takes them;
:func:`target_labels` has those of a whole configuration."""

TARGET_COLUMNS: Final = ("ts", "t0", "tb_label", "tb_t1", "tb_ret", "tb_width", "sigma", "var_ret", "var_t1")
"""What every configuration makes."""


def target_labels(config: TargetConfig) -> dict[str, tuple[str, ...]]:
    """Return the time of knowledge of every label of a configuration and the columns that become known with it."""
    further = {f"tb_t1_{name}": (f"tb_label_{name}", f"tb_ret_{name}") for name in config.barriers}
    return {**LABELS, **further, **{f"var_t1_{h}": (f"var_ret_{h}",) for h in config.horizons}}


def target_columns(config: TargetConfig) -> tuple[str, ...]:
    """Return the columns that :func:`build_targets` makes, in order."""
    return tuple(row["name"] for row in describe_targets(config))


def describe_targets(config: TargetConfig) -> list[dict[str, str]]:
    """Return one row a column for documentation and metadata: ``name``, ``type`` (int64 or float64), ``definition``."""
    rows = [
        ("ts", "int64", "open time, UTC ms"),
        ("t0", "int64", "start of every label interval: the bar's close, UTC ms"),
        *_describe_barrier("", config.horizon, config.barrier_width),
        (
            "sigma",
            "float64",
            f"trailing standard deviation of one-bar log returns, {config.volatility_window} bars; known at t0",
        ),
        *_describe_return("", config.horizon),
    ]
    for name, barrier in config.barriers.items():
        rows += _describe_barrier(f"_{name}", barrier.horizon, barrier.width)
    for horizon in config.horizons:
        rows += _describe_return(f"_{horizon}", horizon)
    return [dict(zip(("name", "type", "definition"), row, strict=True)) for row in rows]


def _describe_barrier(suffix: str, horizon: int, width: float) -> list[tuple[str, str, str]]:
    what = f"barriers at {width:g} standard deviations of {horizon} bars"
    return [
        (
            f"tb_label{suffix}",
            "float64",
            f"triple barrier: 1 upper first, -1 lower first, 0 neither, or both in one bar; {what}; NaN unknown",
        ),
        (f"tb_t1{suffix}", "int64", "when the label is known: the close of the bar that decided, UTC ms; -1 unknown"),
        (f"tb_ret{suffix}", "float64", "log return from t0 to the touch or to the vertical barrier; NaN unknown"),
        (f"tb_width{suffix}", "float64", f"log distance of the {what}; known at t0"),
    ]


def _describe_return(suffix: str, horizon: int) -> list[tuple[str, str, str]]:
    return [
        (
            f"var_ret{suffix}",
            "float64",
            f"log return over the next {horizon} bars in standard deviations of {horizon} bars; NaN unknown",
        ),
        (f"var_t1{suffix}", "int64", "when that is known, UTC ms; -1 unknown"),
    ]


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
        Volatility window and horizons in bars, barrier widths in horizon standard deviations.

    Returns
    -------
    pd.DataFrame
        One row a bar, the columns of :func:`describe_targets`: the main barrier and return first, then the further
        ones with their name or horizon at the end (``tb_label_fast``, ``var_ret_24``).

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
    columns: dict[str, npt.NDArray[np.generic]] = {"ts": ts, "t0": ts + step, "sigma": sigma}
    barriers = {"": (config.horizon, config.barrier_width)}
    barriers |= {f"_{name}": (barrier.horizon, barrier.width) for name, barrier in config.barriers.items()}
    for suffix, (horizon, sigmas) in barriers.items():
        width = sigmas * sigma * math.sqrt(horizon)
        label, touch, result = triple_barrier(open_, high, low, close, width, horizon)
        columns |= {f"tb_label{suffix}": label, f"tb_t1{suffix}": _close_of(ts, touch, step)}
        columns |= {f"tb_ret{suffix}": result, f"tb_width{suffix}": width}
    for suffix, horizon in {"": config.horizon, **{f"_{h}": h for h in config.horizons}}.items():
        value, end = volatility_adjusted_return(close, sigma, horizon)
        columns |= {f"var_ret{suffix}": value, f"var_t1{suffix}": _close_of(ts, end, step)}
    return pd.DataFrame(columns, columns=list(target_columns(config)))


def target_lookback(config: TargetConfig) -> int:
    """Return the bars before the current one that a label's barriers need."""
    return config.volatility_window


def _column(panel: pd.DataFrame, name: str) -> npt.NDArray[np.float64]:
    return np.ascontiguousarray(panel[name].to_numpy(dtype=np.float64))


def _close_of(ts: npt.NDArray[np.int64], row: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.int64]:
    if len(ts) == 0:
        return ts.copy()
    return np.where(row >= 0, ts[np.maximum(row, 0)] + step, np.int64(UNKNOWN_MS))
