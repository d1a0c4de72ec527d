"""Stretches that are stored one by one, and the windows of calls that bring them.

Calls are economical when each asks for as many bars as the server gives; progress is durable when little is stored at
a time. So windows are cut over neighbouring stretches together, and a stretch is complete as soon as the window that
holds its last bar has arrived. A few windows are asked for ahead, so that the waits for the server overlap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from mlbot_core.sources.paging import Page, Window, plan_windows
from mlbot_core.timeframe import Timeframe


@dataclass(frozen=True)
class Chunk:
    """One stretch ``[first, stop)`` of bars, UTC ms; nothing before ``begin`` is asked for."""

    first: int
    begin: int
    stop: int

    @property
    def asks(self) -> bool:
        """Whether anything is asked for."""
        return self.begin < self.stop


def windows_over(chunks: Sequence[Chunk], timeframe: Timeframe, limit: int) -> list[Window]:
    """Return the fewest windows of at most ``limit`` bars that cover the stretches, ascending as these are.

    Parameters
    ----------
    chunks
        In ascending order; those that follow one another without a hole share windows.
    """
    runs: list[list[int]] = []
    for chunk in chunks:
        if not chunk.asks:
            continue
        if runs and runs[-1][1] == chunk.begin:
            runs[-1][1] = chunk.stop
        else:
            runs.append([chunk.begin, chunk.stop])
    return [window for begin, stop in runs for window in plan_windows(begin, stop, timeframe, limit)]


def pages_by_chunk(
    chunks: Sequence[Chunk],
    windows: Sequence[Window],
    timeframe: Timeframe,
    ask: Callable[[Window], list[Page]],
    *,
    ahead: int,
) -> Generator[list[Page], None, None]:
    """Yield for each stretch the pages that hold its bars, as soon as they are there.

    Parameters
    ----------
    windows
        Those of :func:`windows_over`.
    ask
        Brings the pages of one window; called from several threads. What it raises is raised when the stretch that
        needs the window is due.
    ahead
        How many windows may be under way at a time.
    """
    held: list[tuple[Window, list[Page]]] = []
    with closing(_answers(windows, ask, ahead)) as arriving:
        reached = 0
        for chunk in chunks:
            held = [item for item in held if item[0].last_ts >= chunk.begin]
            while chunk.asks and reached < len(windows) and windows[reached].first_ts < chunk.stop:
                if held and held[-1][0].last_ts + timeframe.ms >= chunk.stop:
                    break
                held.append((windows[reached], next(arriving)))
                reached += 1
            yield [page for window, pages in held for page in pages if chunk.asks and window.first_ts < chunk.stop]


def _answers(
    windows: Sequence[Window], ask: Callable[[Window], list[Page]], ahead: int
) -> Generator[list[Page], None, None]:
    """Yield the pages of each window in order, while the next ones are already on their way."""
    if len(windows) <= 1 or ahead <= 1:
        yield from map(ask, windows)
        return
    waiting = iter(windows)
    with ThreadPoolExecutor(ahead, thread_name_prefix="coinglass-window") as pool:
        under_way: deque[Future[list[Page]]] = deque()
        try:
            while True:
                while len(under_way) < ahead and (window := next(waiting, None)) is not None:
                    under_way.append(pool.submit(ask, window))
                if not under_way:
                    return
                yield under_way.popleft().result()
        finally:
            # what is already on its way ends by itself; nothing new begins
            pool.shutdown(wait=True, cancel_futures=True)
