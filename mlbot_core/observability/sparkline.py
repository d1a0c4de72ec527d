"""Plots of under a thousand characters: what the web UI shows at once, without a click."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

# the Dagster UI renders markdown in place only when it is shorter than 1000 characters
MOST_CHARACTERS = 999
_WIDTH, _HEIGHT = 400, 90
_COLOURS = ("2563eb", "9ca3af", "d97706")


def sparkline(lines: Sequence[npt.NDArray[np.float64]], caption: str) -> str:
    """Return markdown with an image of lines on a common scale, and a caption beneath.

    Every n-th value is drawn, as many as the characters allow (about 140 of one line); see ``thumbnails.line_png`` for
    one with axes.

    Parameters
    ----------
    lines
        One to three series of equal length; NaN leaves a hole. The first is blue, the second grey, the third orange.
    caption
        One short line of markdown.

    Raises
    ------
    ValueError
        If there are no or more than three lines, or the caption leaves no room.
    """
    if not 1 <= len(lines) <= len(_COLOURS):
        raise ValueError(f"a sparkline has 1 to {len(_COLOURS)} lines, got {len(lines)}")
    longest = max(len(line) for line in lines)
    for points in range(min(max(longest, 1), 200), 0, -1):
        text = f"![{_plain(caption)}](data:image/svg+xml,{_svg(lines, points)})\n\n{caption}"
        if len(text) <= MOST_CHARACTERS:
            return text
    raise ValueError(f"the caption is too long for a sparkline: {caption!r}")


def small_table(columns: tuple[str, str], values: Mapping[str, float]) -> str:
    """Return a markdown table of names and shares, cut where it would not be shown at once."""
    lines = [f"| {columns[0]} | {columns[1]} |", "|---|---:|"]
    for name, value in values.items():
        line = f"| {name} | {value:.1%} |"
        if sum(len(text) + 1 for text in (*lines, line)) > MOST_CHARACTERS:
            break
        lines.append(line)
    return "\n".join(lines)


def _svg(lines: Sequence[npt.NDArray[np.float64]], points: int) -> str:
    """Return a percent-encoded SVG: relative whole-pixel steps, with signs as separators where there are any."""
    finite = np.concatenate([line[np.isfinite(line)] for line in lines])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    span = high - low or 1.0
    paths = []
    for line, colour in reversed(list(zip(lines, _COLOURS, strict=False))):
        at = np.unique(np.linspace(0, len(line) - 1, points).round().astype(int)) if len(line) else np.array([], int)
        x = np.round(at / max(1, len(line) - 1) * (_WIDTH - 2)).astype(int) + 1
        path = _path(x, np.round((high - line[at]) / span * (_HEIGHT - 4)) + 2)
        paths.append(f"%3Cpath%20d='{path}'%20stroke='%23{colour}'/%3E")
    head = f"%3Csvg%20xmlns='http://www.w3.org/2000/svg'%20width='{_WIDTH}'%20height='{_HEIGHT}'%20fill='none'%3E"
    return f"{head}{''.join(paths)}%3C/svg%3E"


def _path(x: npt.NDArray[np.int64], y: npt.NDArray[np.float64]) -> str:
    text, pen = "", None
    for across, down in zip(x.tolist(), y.tolist(), strict=True):
        if not np.isfinite(down):
            pen = None
            continue
        now = (across, int(down))
        if pen is None:
            text += f"M{now[0]},{now[1]}l"
        else:
            step = (now[0] - pen[0], now[1] - pen[1])
            separator = "" if text.endswith("l") else ","
            text += f"{separator}{step[0]}{'' if step[1] < 0 else ','}{step[1]}"
        pen = now
    return text.replace("lM", "M").removesuffix("l") or "M0,0"


def _plain(text: str) -> str:
    return "".join(character for character in text if character not in "[]()*`_")
