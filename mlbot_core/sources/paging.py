"""Cutting a range into answers and answers back into a range: pure functions, no network.

Rule (Coinglass reference, section 3): windows of at most ``limit`` bars with start, end and limit all given,
neighbours sharing a bar, duplicates resolved in favour of the newest fetch. It is the only way that is safe
whatever the undocumented inclusivity of the bounds is, and whichever end a server keeps when it cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlbot_core.timeframe import Timeframe

MAX_LIMIT = 1000


@dataclass(frozen=True)
class Window:
    """The bars one call asks for: open times of the first and the last, UTC ms, both inclusive."""

    first_ts: int
    last_ts: int

    def bars(self, timeframe: Timeframe) -> int:
        """Return how many bars the window spans."""
        return (self.last_ts - self.first_ts) // timeframe.ms + 1

    def expected(self, timeframe: Timeframe) -> npt.NDArray[np.int64]:
        """Return the open times of its bars."""
        return np.arange(self.first_ts, self.last_ts + 1, timeframe.ms, dtype=np.int64)


@dataclass(frozen=True)
class Page:
    """The closed bars of one answer.

    Parameters
    ----------
    ts
        Open times, UTC ms, ascending, each once.
    values
        One row a bar, one column a value of the catalogue (those the endpoint serves), canonical units.
    observed_at
        When the answer had arrived, UTC ms.
    notes
        What was unusual about the answer.
    """

    ts: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    observed_at: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stitched:
    """Bars of several pages: ``ts`` ascending and unique, with the values and the time of the newest fetch of each."""

    ts: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    observed_at: npt.NDArray[np.int64]

    def select(self, keep: npt.NDArray[np.bool_]) -> Stitched:
        """Return the rows where ``keep`` is true."""
        return Stitched(self.ts[keep], self.values[keep], self.observed_at[keep])


def plan_windows(
    start_ms: int, end_ms: int, timeframe: Timeframe, limit: int = MAX_LIMIT, overlap: int = 1
) -> list[Window]:
    """Return windows that together cover every bar with ``start_ms <= ts < end_ms``, ascending.

    Parameters
    ----------
    limit
        Most bars a window may span; at least ``overlap + 1``.
    overlap
        How many bars a window shares with the one before it.

    Raises
    ------
    ValueError
        If ``limit`` does not exceed ``overlap``.
    """
    if not 0 <= overlap < limit:
        raise ValueError(f"windows of {limit} bars cannot overlap by {overlap}")
    first = timeframe.ceil(start_ms)
    bars = max(0, -(-(end_ms - first) // timeframe.ms))
    if bars == 0:
        return []
    step = limit - overlap
    count = 1 + max(0, -(-(bars - limit) // step))
    windows = []
    for index in range(count):
        begin = index * step
        last = min(begin + limit, bars) - 1
        windows.append(Window(first + begin * timeframe.ms, first + last * timeframe.ms))
    return windows


def halve(window: Window, timeframe: Timeframe, overlap: int = 1) -> list[Window]:
    """Return two windows of about half the size that cover ``window``; itself if it is too small to cut."""
    bars = window.bars(timeframe)
    if bars <= 2 * overlap + 2:
        return [window]
    return plan_windows(
        window.first_ts, window.last_ts + timeframe.ms, timeframe, -(-(bars + overlap) // 2), overlap=overlap
    )


def stitch(pages: Sequence[Page], columns: int) -> Stitched:
    """Join pages; where several have a bar, the one fetched last wins (the later page among equals).

    Parameters
    ----------
    pages
        In the order in which they were fetched.
    columns
        Number of value columns, for the case without pages.
    """
    if not pages:
        empty = np.empty(0, dtype=np.int64)
        return Stitched(empty, np.empty((0, columns)), empty)
    ts = np.concatenate([page.ts for page in pages])
    values = np.concatenate([page.values for page in pages])
    observed = np.concatenate([np.full(len(page.ts), page.observed_at, dtype=np.int64) for page in pages])
    turn = np.concatenate([np.full(len(page.ts), index) for index, page in enumerate(pages)])
    order = np.lexsort((turn, observed, ts))
    ts = ts[order]
    newest = np.append(ts[1:] != ts[:-1], True) if len(ts) else np.empty(0, dtype=bool)
    rows = order[newest]
    return Stitched(ts[newest], values[rows], observed[rows])


def lacks_bars(page: Page, window: Window, timeframe: Timeframe) -> bool:
    """Return whether the page lacks a bar of its window: empty, cut at an end, or with a hole."""
    return not bool(np.isin(window.expected(timeframe), page.ts).all())


def leading_zeros(stitched: Stitched, min_span_ms: int, timeframe: Timeframe) -> int:
    """Return how many rows at the head are padding: all values zero, for at least ``min_span_ms`` together.

    Coinglass pads some series with zeros back to 2015, before they exist. A single quiet bar at the head of a
    short range can be a true zero, hence the least span.
    """
    nonzero = (stitched.values != 0).any(axis=1)
    count = int(np.argmax(nonzero)) if nonzero.any() else len(nonzero)
    return count if count * timeframe.ms >= min_span_ms else 0
