"""The report's figures as plain plotly dictionaries, and the small PNG for asset metadata.

A figure function returns None where there is nothing to show; the report says so in words instead of an empty frame.
Colours of paper, text and grid belong to the page (light or dark), not to the figures.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.backtest.metrics import Metrics, rolling_sharpe
from mlbot_core.backtest.run import BacktestResult
from mlbot_core.timeframe import DAY_MS

Figure = dict[str, Any]
FloatArray = npt.NDArray[np.float64]

# Mid-tones that are readable on white and on near-black, and apart for colour-blind eyes (blue, orange, grey).
UNIT: Final = "#3f87e5"
TRADED: Final = "#d97a2b"
HOLD: Final = "#8b94a3"
GAIN: Final = "#2f9e6e"
LOSS: Final = "#d9534f"

MAX_PRICE_POINTS: Final = 4_000
MAX_MARKERS: Final = 3_000
MIN_ROLLING_DAYS: Final = 30
CLOSE_UP_DAYS: Final = 30
LOG_FROM: Final = 8.0  # a range of NAV wider than this is drawn on a logarithmic axis

_NAMES: Final = (("unit", "unit exposure", UNIT), ("hold", "buy and hold", HOLD), ("traded", "traded size", TRADED))


def rolling_window(days: int) -> int:
    """Return the window of the rolling Sharpe ratio in days: 180, or a third of a shorter record."""
    return 180 if days >= 540 else max(MIN_ROLLING_DAYS, days // 3)


def thin(values: FloatArray, limit: int) -> npt.NDArray[np.int64]:
    """Return the rows to draw of a long line: the lowest and the highest of each bucket, first and last included.

    No extreme is lost, whatever ``limit`` (the largest number of points, at least 4) is.
    """
    n = len(values)
    if n <= limit:
        return np.arange(n, dtype=np.int64)
    edges = np.linspace(0, n, max(1, (limit - 2) // 2) + 1).astype(np.int64)
    keep = {0, n - 1}
    for start, end in itertools.pairwise(edges):
        piece = values[start:end]
        if len(piece) and not np.isnan(piece).all():
            keep.update((start + int(np.nanargmin(piece)), start + int(np.nanargmax(piece))))
    return np.array(sorted(keep), dtype=np.int64)


def _times(ms: Any) -> list[str]:
    stamps = pd.to_datetime(np.asarray(ms, dtype=np.int64), unit="ms")
    whole_days = bool(len(stamps)) and bool((np.asarray(ms) % DAY_MS == 0).all())
    return list(stamps.strftime("%Y-%m-%d" if whole_days else "%Y-%m-%d %H:%M"))


def numbers(values: Any, digits: int = 6) -> list[float | None]:
    """Return JSON-ready numbers: NaN and infinity become null, the rest keeps ``digits`` significant digits."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in np.asarray(values, dtype=np.float64)]


def line_of(x: list[str], y: Any, name: str, colour: str, **more: Any) -> Figure:
    """Return a line, in the report's width."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": numbers(y),
        "name": name,
        "line": {"color": colour, "width": 1.6},
        **more,
    }


def layout_of(height: int, **more: Any) -> Figure:
    """Return the layout that every figure starts from; height in pixels."""
    return {
        "height": height,
        "margin": {"l": 64, "r": 16, "t": 30, "b": 40},
        "hovermode": "x unified",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        **more,
    }


def _growth(result: BacktestResult, name: str) -> FloatArray:
    return np.asarray(np.cumprod(1.0 + result.daily[name].to_numpy()), dtype=np.float64)


def _fall(growth: FloatArray) -> FloatArray:
    peak = np.maximum.accumulate(np.r_[1.0, growth])[1:]
    return np.asarray(growth / peak - 1.0, dtype=np.float64)


def equity_figure(result: BacktestResult, names: Sequence[str]) -> Figure | None:
    """Return growth of 1 at daily closes with the drawdown beneath, for some of traded, unit and hold."""
    if len(result.daily) < 2:
        return None
    x = _times(result.daily["day"])
    data: list[Figure] = []
    for key, title, colour in _NAMES:
        if key not in names:
            continue
        growth = _growth(result, key)
        data.append(line_of(x, growth, title, colour, legendgroup=key))
        data.append(
            line_of(
                x,
                _fall(growth),
                f"{title}, drawdown",
                colour,
                legendgroup=key,
                showlegend=False,
                yaxis="y2",
                **({"fill": "tozeroy", "fillcolor": f"{colour}33"} if len(names) == 1 or key == "unit" else {}),
            )
        )
    paths = np.concatenate([_growth(result, key) for key in names])
    scale: Figure = {"title": {"text": "growth of 1"}}
    if paths.min() > 0 and paths.max() / paths.min() > LOG_FROM:
        decades = range(math.floor(math.log10(paths.min())), math.ceil(math.log10(paths.max())) + 1)
        ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        scale = {"title": {"text": "growth of 1 (log)"}, "type": "log"}
        scale |= {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    layout = layout_of(
        460,
        xaxis={"anchor": "y2", "type": "date"},
        yaxis={"domain": [0.36, 1.0], **scale},
        yaxis2={"domain": [0.0, 0.3], "title": {"text": "drawdown"}, "tickformat": ".1%", "rangemode": "tozero"},
    )
    return {"data": data, "layout": layout}


def rolling_figure(result: BacktestResult) -> Figure | None:
    """Return the rolling annual Sharpe ratio of the two sizes; None for too few days."""
    days = len(result.daily)
    window = rolling_window(days)
    if days < window + 2:
        return None
    x = _times(result.daily["day"])[window - 1 :]
    data = []
    for key, title, colour in _NAMES:
        values = rolling_sharpe(result.daily[key].to_numpy(), window)[window - 1 :]
        if not np.isnan(values).all():
            data.append(line_of(x, values, title, colour))
            # The two sizes nearly coincide; the dashes let the lower line through.
            data[-1]["line"]["dash"] = "dash" if key == "traded" else "solid"
    if not data:
        return None
    shapes = [_rule(0.0, "solid"), _rule(1.0, "dot")]
    return {"data": data, "layout": layout_of(300, yaxis={"title": {"text": "Sharpe"}}, shapes=shapes)}


def _rule(y: float, dash: str) -> Figure:
    line = {"color": HOLD, "width": 1, "dash": dash}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line}


def trades_figure(result: BacktestResult, last_days: int | None = None) -> tuple[Figure, str] | None:
    """Return price with entries and exits and the position beneath, and a sentence on what was left out.

    ``last_days`` draws the end of the period only; None (the default) all of it.
    """
    equity, trades = result.equity, result.trades
    if last_days is not None:
        since = result.end_ms - last_days * DAY_MS
        equity = equity[equity["ts"] >= since]
        trades = trades[(trades["closed"] < 0) | (trades["closed"] >= since)]
    if equity["close"].isna().all():
        return None
    close_at = equity["ts"].to_numpy() + result.input.market.timeframe.ms
    rows = thin(equity["close"].to_numpy(), MAX_PRICE_POINTS)
    data = [line_of(_times(close_at[rows]), equity["close"].to_numpy()[rows], "close", HOLD)]
    data[0]["line"]["width"] = 1.1
    held = equity["position"].to_numpy()
    # A step line needs its corners only.
    corners = np.flatnonzero(np.r_[True, np.sign(held[1:]) != np.sign(held[:-1])])
    steps = np.unique(np.r_[corners, len(held) - 1])
    data.append(
        line_of(
            _times(close_at[steps]),
            np.sign(held[steps]),
            "side held",
            UNIT,
            yaxis="y2",
            fill="tozeroy",
            showlegend=False,
        )
    )
    data[-1]["line"].update({"shape": "hv", "width": 0.8})
    left_out = max(0, len(trades) - MAX_MARKERS // 2)
    shown = trades.iloc[left_out:]
    closed = shown[shown["closed"] >= 0]
    # entries on top: where there are many, the exits would hide them
    for name, part, when, price, symbol, colour in (
        ("exit", closed, "closed", "exit", "x-thin", HOLD),
        ("long entry", shown[shown["side"] > 0], "opened", "entry", "triangle-up", GAIN),
        ("short entry", shown[shown["side"] < 0], "opened", "entry", "triangle-down", LOSS),
    ):
        if len(part):
            few = len(trades) < 150
            marker: Figure = {"symbol": symbol, "color": colour, "size": 8 if few else 5, "opacity": 1 if few else 0.6}
            if symbol == "x-thin":
                marker.update({"line": {"color": colour, "width": 1.4}, "size": 6 if len(trades) < 150 else 4})
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": _times(part[when]),
                    "y": numbers(part[price]),
                    "name": name,
                    "marker": marker,
                }
            )
    words = f"Price: {len(rows):,} of {len(equity):,} closes drawn, the lowest and highest of each stretch among them. "
    if len(rows) == len(equity):
        words = f"Price: all {len(equity):,} closes drawn. "
    words += (
        f"Markers: all {len(trades):,} round trips."
        if not left_out
        else (f"Markers: the latest {len(shown):,} of {len(trades):,} round trips.")
    )
    layout = layout_of(
        440,
        xaxis={"anchor": "y2", "type": "date", "range": _times(close_at[[0, -1]])},
        yaxis={"domain": [0.24, 1.0], "title": {"text": "USD"}},
        yaxis2={
            "domain": [0.0, 0.17],
            "range": [-1.2, 1.2],
            "tickvals": [-1, 0, 1],
            "ticktext": ["short", "flat", "long"],
        },
        hovermode="closest",
    )
    return {"data": data, "layout": layout}, words


def waterfall_figure(metrics: Metrics) -> Figure | None:
    """Return gross, fees, slippage, funding and net as a waterfall, percent of the first NAV; None without trades."""
    if metrics.traded_value == 0:
        return None
    w, scale = metrics.waterfall, 100.0 / metrics.nav_start
    steps = [w.gross * scale, -w.fees * scale, -w.slippage * scale, -w.funding * scale, w.net * scale]
    trace = {
        "type": "waterfall",
        "measure": ["relative", "relative", "relative", "relative", "total"],
        "x": ["gross", "fees", "slippage", "funding", "net"],
        "y": numbers(steps),
        "text": [f"{value:+.2f} %" for value in steps],
        "textposition": "outside",
        "cliponaxis": False,
        "increasing": {"marker": {"color": GAIN}},
        "decreasing": {"marker": {"color": LOSS}},
        "totals": {"marker": {"color": UNIT}},
        "connector": {"line": {"color": HOLD, "width": 1}},
    }
    # Room for the labels outside the bars.
    levels = np.r_[0.0, np.cumsum(steps[:4]), steps[4]]
    pad = 0.14 * max(float(levels.max() - levels.min()), 1e-9)
    y = {"title": {"text": "% of first NAV"}, "range": [float(levels.min() - pad), float(levels.max() + pad)]}
    layout = layout_of(320, yaxis=y, showlegend=False, hovermode="closest")
    return {"data": [trace], "layout": layout}


def calibration_figure(result: BacktestResult) -> Figure | None:
    """Return forecast probability against realised frequency with 95 % intervals; None without labels."""
    table = result.skill.calibration
    if table.empty:
        return None
    low, high = float(table["forecast"].min()), float(table["forecast"].max())
    data: list[Figure] = [line_of([], [low, high], "perfect", HOLD)]
    data[0]["x"] = numbers([low, high])
    data[0]["line"]["dash"] = "dot"
    for outcome, colour in (("up", GAIN), ("down", LOSS)):
        part = table[table["outcome"] == outcome]
        errors = {
            "type": "data",
            "symmetric": False,
            "array": numbers(part["high"] - part["realised"]),
            "arrayminus": numbers(part["realised"] - part["low"]),
            "thickness": 1,
            "width": 3,
        }
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": numbers(part["forecast"]),
                "y": numbers(part["realised"]),
                "error_y": errors,
                "name": outcome,
                "line": {"color": colour, "width": 1.4},
                "marker": {"size": 6},
            }
        )
    layout = layout_of(
        360,
        xaxis={"title": {"text": "forecast probability"}, "tickformat": ".0%"},
        yaxis={"title": {"text": "realised frequency"}, "tickformat": ".0%"},
        hovermode="closest",
    )
    return {"data": data, "layout": layout}


def importance_figure(importance: Sequence[tuple[str, float]], top: int = 25) -> Figure | None:
    """Return a bar for each of the ``top`` most important features, shares of the total."""
    usable = [(name, value) for name, value in importance if math.isfinite(value)]
    total = sum(abs(value) for _, value in usable)
    if not total:
        return None
    ranked = sorted(usable, key=lambda item: item[1], reverse=True)[:top][::-1]
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": [name for name, _ in ranked],
        "x": numbers([value / total for _, value in ranked]),
        "marker": {"color": UNIT},
    }
    layout = layout_of(
        90 + 20 * len(ranked),
        margin={"l": 220, "r": 16, "t": 30, "b": 44},
        xaxis={"title": {"text": "share of importance"}, "tickformat": ".1%", "nticks": 6},
        yaxis={"tickmode": "linear", "automargin": True},
        showlegend=False,
        hovermode="closest",
    )
    return {"data": [trace], "layout": layout}


def summary_png(result: BacktestResult) -> bytes:
    """Return a small PNG (under 150 kB): unit exposure beside buy and hold, the traded size, and drawdowns."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import PercentFormatter

    figure = Canvas(figsize=(8.0, 6.4), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    upper, middle, lower = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 2])
    when = pd.to_datetime(result.daily["day"], unit="ms").to_numpy()
    for key, title, colour in _NAMES:
        growth = _growth(result, key)
        axis = middle if key == "traded" else upper
        axis.plot(when, growth, color=colour, linewidth=1.1, label=title)
        lower.plot(when, _fall(growth), color=colour, linewidth=0.9, label=title)
    label = f"{'SYNTHETIC MARKET  ' if result.input.synthetic else ''}{result.input.market} {result.input.model_type}"
    upper.set_title(f"{label}\n{result.verdict.outcome}", fontsize=10, loc="left", wrap=True)
    for axis, text in ((upper, "growth of 1"), (middle, "growth of 1"), (lower, "drawdown")):
        axis.set_ylabel(text, fontsize=9)
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.tick_params(labelsize=8)
        if axis is not lower:
            axis.legend(fontsize=8, loc="best", frameon=False)
    lower.yaxis.set_major_formatter(PercentFormatter(1.0))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
