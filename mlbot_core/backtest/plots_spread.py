"""Figures of how results are spread: daily returns, holding times, kinds of markets. Plain plotly dictionaries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.backtest.plots import GAIN, HOLD, LOSS, TRADED, UNIT, Figure, layout_of, line_of, numbers
from mlbot_core.backtest.regimes import RegimeRow
from mlbot_core.timeframe import DAY_MS, HOUR_MS, MINUTE_MS

FloatArray = npt.NDArray[np.float64]

MOST_BINS: Final = 80
# seen on both papers and on both bars
WHISKER: Final = "#6f7885"


def distribution_figure(returns: FloatArray) -> tuple[Figure, str] | None:
    """Return the histogram of daily returns that moved with a normal of their moments, and a sentence on the rest."""
    moved = returns[returns != 0]
    if len(moved) < 5 or float(np.std(moved)) == 0:
        return None
    mean, deviation = float(moved.mean()), float(moved.std(ddof=1))
    z = (moved - mean) / moved.std()
    counts, edges = np.histogram(moved * 100, bins=min(MOST_BINS, max(10, int(math.sqrt(len(moved)) * 2))))
    middle = (edges[:-1] + edges[1:]) / 2
    width = edges[1] - edges[0]
    normal = np.exp(-0.5 * ((middle / 100 - mean) / deviation) ** 2) / (deviation * 100 * math.sqrt(2 * math.pi))
    bars = {
        "type": "bar",
        "x": numbers(middle),
        "y": [int(c) for c in counts],
        "width": float(width),
        "name": "days",
        "marker": {"color": UNIT},
    }
    curve = line_of([], normal * len(moved) * width, "normal of the same mean and deviation", TRADED)
    curve["x"] = numbers(middle)
    words = (
        f"{len(moved):,} days that moved; {len(returns) - len(moved):,} flat days are left out of this figure only. "
        f"Skew {float(np.mean(z**3)):+.2f}, kurtosis {float(np.mean(z**4)):.1f} (normal: 0 and 3)."
    )
    layout = layout_of(
        320,
        xaxis={"title": {"text": "daily return, %"}},
        yaxis={"title": {"text": "days"}},
        bargap=0.02,
    )
    return {"data": [bars, curve], "layout": layout}, words


def duration(ms: float) -> str:
    """Return a length of time for people: ``45m``, ``2h``, ``1.5d``."""
    for unit, letter in ((DAY_MS, "d"), (HOUR_MS, "h")):
        if ms >= unit:
            return f"{ms / unit:.1f}".removesuffix(".0") + letter
    return f"{ms / MINUTE_MS:.0f}m"


def holding_figure(trades: pd.DataFrame, bar_ms: int) -> tuple[Figure, str] | None:
    """Return how long closed round trips were held, won and lost apart, and a sentence; None without any.

    Parameters
    ----------
    trades
        Of :func:`mlbot_core.backtest.roundtrips.round_trips`.
    bar_ms
        Length of a bar: the boundaries are one bar, two, four ... of them.
    """
    closed = trades[trades["closed"] >= 0]
    if closed.empty:
        return None
    held = (closed["closed"] - closed["opened"]).to_numpy(dtype=np.float64)
    won = closed["pnl"].to_numpy(dtype=np.float64) > 0
    # held for up to 1, 2, 4 ... bars; a fill that is late by the delay still belongs to its bar
    bucket = np.ceil(np.log2(np.maximum(held / bar_ms, 1.0)) - 1e-9).astype(np.int64)
    which = np.arange(0, int(bucket.max()) + 1)
    labels = [f"≤ {duration(bar_ms * 2.0**k)}" for k in which]
    data = []
    for name, mask, colour in (("won", won, GAIN), ("lost", ~won, LOSS)):
        counts = np.bincount(bucket[mask], minlength=len(which))
        data.append(
            {"type": "bar", "x": labels, "y": [int(c) for c in counts], "name": name, "marker": {"color": colour}}
        )
    words = (
        f"{len(closed):,} closed round trips: half were held for {duration(float(np.median(held)))} or less, the "
        f"longest for {duration(float(held.max()))}."
    )
    layout = layout_of(
        300,
        xaxis={"title": {"text": "held for"}, "type": "category"},
        yaxis={"title": {"text": "round trips"}},
        barmode="stack",
        bargap=0.15,
    )
    return {"data": data, "layout": layout}, words


def regime_figure(rows: Sequence[RegimeRow]) -> Figure | None:
    """Return the Sharpe ratio of each regime with its interval, beside buy and hold; None where none is known."""
    shown = [row for row in rows if math.isfinite(row.sharpe.value) or math.isfinite(row.hold.value)]
    if not shown:
        return None
    labels = [[f"{row.kind}" for row in shown], [row.name for row in shown]]
    data = []
    for name, intervals, colour in (
        ("unit exposure", [row.sharpe for row in shown], UNIT),
        ("buy and hold", [row.hold for row in shown], HOLD),
    ):
        value = np.array([i.value for i in intervals])
        errors = {
            "type": "data",
            "symmetric": False,
            "array": numbers(np.array([i.high for i in intervals]) - value),
            "arrayminus": numbers(value - np.array([i.low for i in intervals])),
            "color": WHISKER,
            "thickness": 1.2,
            "width": 3,
        }
        data.append(
            {
                "type": "bar",
                "x": labels,
                "y": numbers(value),
                "error_y": errors,
                "name": name,
                "marker": {"color": colour},
            }
        )
    layout = layout_of(320, yaxis={"title": {"text": "Sharpe"}}, barmode="group", bargap=0.3, hovermode="closest")
    return {"data": data, "layout": layout}
