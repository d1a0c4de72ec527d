"""Small plots for asset metadata: a few kilobytes each, since an event log keeps one a partition."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

_POINTS = 400


def line_png(
    ts: npt.NDArray[np.int64],
    values: Mapping[str, npt.NDArray[np.float64]],
    title: str,
    unit: str,
) -> bytes:
    """Return a PNG with one line a name over UTC time.

    Long series are thinned to 400 points by taking every n-th, which is enough to see levels, jumps and holes.

    Parameters
    ----------
    ts
        UTC ms, ascending.
    values
        Same length as ``ts``; NaN leaves a hole.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 1.8), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    step = max(1, len(ts) // _POINTS)
    when = ts[::step].astype("datetime64[ms]")
    for name, series in values.items():
        axis.plot(when, series[::step], linewidth=0.9, label=name)
    axis.set_title(f"{title} [{unit}]", fontsize=8, loc="left")
    axis.tick_params(labelsize=6)
    axis.spines[["top", "right"]].set_visible(False)
    if len(values) > 1:
        axis.legend(fontsize=6, frameon=False, ncols=len(values), loc="upper left")
    return _png(figure)


def bar_png(labels: Sequence[str], values: Sequence[float], title: str) -> bytes:
    """Return a PNG with horizontal bars, for shares and importances."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 0.5 + 0.2 * len(labels)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.barh(list(labels)[::-1], list(values)[::-1], height=0.6)
    axis.set_title(title, fontsize=8, loc="left")
    axis.tick_params(labelsize=6)
    axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def markdown_image(png: bytes, alt: str) -> str:
    """Return markdown that shows a PNG without a file."""
    return f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})"


def _png(figure: object) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")  # type: ignore[attr-defined]
    return buffer.getvalue()
