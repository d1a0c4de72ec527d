"""The lift of forecasts as a small picture."""

from __future__ import annotations

import io

import pandas as pd


def lift_png(lift: pd.DataFrame, title: str) -> bytes:
    """Return realised scores by decile of the forecast, with their 95 % intervals and the line of perfect forecasts.

    Parameters
    ----------
    lift
        Of :func:`mlbot_core.models.explain.lift_table`.
    title
        Of the plot.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 2.4), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    half = (lift["high"] - lift["low"]) / 2
    axis.errorbar(lift["forecast"], lift["realised"], yerr=half, fmt="o", markersize=4, capsize=2, linewidth=1)
    axis.plot(lift["forecast"], lift["forecast"], color="#7f7f7f", linewidth=0.8, linestyle=":", label="as forecast")
    axis.axhline(0.0, color="#7f7f7f", linewidth=0.6)
    axis.set_title(f"{title}: realised by forecast score, barrier widths, 95 %", fontsize=8, loc="left")
    axis.tick_params(labelsize=6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=6, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
