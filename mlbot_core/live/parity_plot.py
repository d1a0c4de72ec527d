"""The picture of a parity certificate."""

from __future__ import annotations

import io

import pandas as pd

from mlbot_core.clock import format_utc
from mlbot_core.live.parity import Parity


def parity_png(found: Parity) -> bytes:
    """Return a picture: positions of both above, price differences within their band below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    when = pd.to_datetime(found.bars["ts"], unit="ms", utc=True)
    above.step(when, found.bars["live_position"], where="post", label="live", linewidth=1.6)
    above.step(when, found.bars["position"], where="post", label="backtest", linewidth=0.9, linestyle="--")
    above.set_title(
        f"{found.market} {format_utc(found.start_ms)[:10]}: {'parity' if found.passed else 'NO PARITY'}, coins held",
        fontsize=8,
        loc="left",
    )
    above.legend(fontsize=6, frameon=False)
    band = found.bars["band"] * 1e4
    below.fill_between(when, -band, band, alpha=0.2, linewidth=0, label="99 % band")
    below.plot(when, (found.bars["live_price"] / found.bars["price"] - 1) * 1e4, "o", markersize=3, label="fills")
    below.set_title("fill price, live against backtest, bp", fontsize=8, loc="left")
    below.legend(fontsize=6, frameon=False)
    for axis in (above, below):
        axis.tick_params(labelsize=6)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
