"""What Bybit serves and how it is asked for: one feed an endpoint, fetched window by window in several threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from mlbot_core.clock import Clock
from mlbot_core.sources.bybit_http import BybitClient, Reply
from mlbot_core.sources.bybit_rows import FUNDING, Asked, account_shares, candles, funding, open_interest
from mlbot_core.sources.paging import Page, Stitched, Window, plan_windows, stitch
from mlbot_core.timeframe import Timeframe

# Calls under way at the same time: at a tenth of a second a call, just below the pace.
THREADS: Final = 8
_CURSOR_PAGES: Final = 20

_KLINE: Final[Mapping[Timeframe, str]] = {
    **{Timeframe(minutes): str(minutes) for minutes in (1, 3, 5, 15, 30, 60, 120, 240, 360, 720)},
    Timeframe(1440): "D",
}
_PERIOD: Final[Mapping[Timeframe, str]] = {
    Timeframe(5): "5min",
    Timeframe(15): "15min",
    Timeframe(30): "30min",
    Timeframe(60): "1h",
    Timeframe(240): "4h",
    Timeframe(1440): "1d",
}


@dataclass(frozen=True)
class Feed:
    """One endpoint.

    Parameters
    ----------
    method
        Name of pybit's method.
    intervals
        Lengths of bars it serves, with its spelling of each.
    interval_name, start_name, end_name
        Names of its parameters.
    most
        Most rows in an answer.
    columns
        Number of values a bar.
    parse
        Makes a page of an answer's ``result``.
    at_end
        True where rows are stamped with the end of their bar: samples taken at one moment.
    """

    method: str
    intervals: Mapping[Timeframe, str]
    interval_name: str
    start_name: str
    end_name: str
    most: int
    columns: int
    parse: Callable[[Mapping[str, Any], Timeframe, Asked], Page]
    at_end: bool = False

    def base(self, target: Timeframe) -> Timeframe | None:
        """Return the longest served interval that ``target`` can be made of; None if there is none."""
        return max((served for served in self.intervals if target.ms % served.ms == 0), default=None)


def _kline(method: str, *, flows: bool = False) -> Feed:
    parse = partial(candles, flows=flows)
    return Feed(method, _KLINE, "interval", "start", "end", 1000, 6 if flows else 4, parse)


PRICE: Final = _kline("get_kline", flows=True)
MARK: Final = _kline("get_mark_price_kline")
INDEX: Final = _kline("get_index_price_kline")
PREMIUM: Final = _kline("get_premium_index_price_kline")
OPEN_INTEREST: Final = Feed(
    "get_open_interest", _PERIOD, "intervalTime", "startTime", "endTime", 200, 2, open_interest, at_end=True
)
ACCOUNTS: Final = Feed(
    "get_long_short_ratio", _PERIOD, "period", "startTime", "endTime", 500, 2, account_shares, at_end=True
)
_FUNDING_ROWS: Final = 200


class Fetcher:
    """Asks for every bar of a range, in windows and threads, and once more for what is missing.

    Parameters
    ----------
    client
        Makes the calls.
    clock
        Stamps them.
    """

    def __init__(self, client: BybitClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="bybit")

    def close(self) -> None:
        """Drop what has not begun, and wait for the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def bars(self, feed: Feed, pair: str, timeframe: Timeframe, begin: int, stop: int) -> tuple[Stitched, list[str]]:
        """Return the closed bars with ``begin <= ts < stop`` and what was unusual about the answers.

        Windows have both bounds and never more bars than an answer holds: which end is cut otherwise is not
        documented. They do not overlap: both bounds are inclusive.
        """
        windows = plan_windows(begin, stop, timeframe, feed.most, overlap=0)
        return self._all(windows, partial(self._window, feed, pair, timeframe), feed.columns)

    def funding(self, pair: str, begin: int, stop: int) -> tuple[Stitched, list[str]]:
        """Return the settled funding of the 8-hour bars with ``begin <= ts < stop``."""
        return self._all(plan_windows(begin, stop, FUNDING, _FUNDING_ROWS, overlap=0), partial(self._funding, pair), 1)

    def _all(
        self, windows: list[Window], ask: Callable[[Window], list[Page]], columns: int
    ) -> tuple[Stitched, list[str]]:
        futures: list[Future[list[Page]]] = [self._pool.submit(ask, window) for window in windows]
        try:
            pages = [page for future in futures for page in future.result()]
        finally:
            for future in futures:
                future.cancel()
        return stitch(pages, columns), list(dict.fromkeys(note for page in pages for note in page.notes))

    def _window(self, feed: Feed, pair: str, timeframe: Timeframe, window: Window) -> list[Page]:
        pages = self._pages(feed, pair, timeframe, window)
        missing = _missing(pages, window, timeframe)
        # an empty or short page in the middle of history has been seen to be full when asked for again
        return pages if missing is None else pages + self._pages(feed, pair, timeframe, missing)

    def _pages(self, feed: Feed, pair: str, timeframe: Timeframe, window: Window) -> list[Page]:
        shift = timeframe.ms if feed.at_end else 0
        params: dict[str, str | int] = {
            "symbol": pair,
            feed.interval_name: feed.intervals[timeframe],
            feed.start_name: window.first_ts + shift,
            feed.end_name: window.last_ts + shift,
            "limit": feed.most,
        }
        pages: list[Page] = []
        while True:
            reply, asked = self._ask(feed.method, params, pair, window)
            pages.append(feed.parse(reply.result, timeframe, asked))
            cursor = reply.result.get("nextPageCursor")
            wanting = _missing(pages, window, timeframe) is not None
            if not (wanting and isinstance(cursor, str) and cursor) or len(pages) >= _CURSOR_PAGES:
                return pages
            params["cursor"] = cursor

    def _funding(self, pair: str, window: Window) -> list[Page]:
        pages = self._payments(pair, window)
        missing = _missing(pages, window, FUNDING)
        return pages if missing is None else pages + self._payments(pair, missing)

    def _payments(self, pair: str, window: Window) -> list[Page]:
        """Ask backwards from the window's end: more payments than one answer holds leave its older part out."""
        end = window.last_ts + FUNDING.ms - 1
        rows: list[Any] = []
        while True:
            reply, asked = self._ask(
                "get_funding_rate_history",
                {"symbol": pair, "startTime": window.first_ts, "endTime": end, "limit": _FUNDING_ROWS},
                pair,
                window,
            )
            _, oldest = funding(reply.result, asked)
            rows += reply.result["list"]
            if len(reply.result["list"]) < _FUNDING_ROWS or oldest is None or not window.first_ts < oldest <= end:
                page, _ = funding({**reply.result, "list": rows}, asked)
                return [page]
            end = oldest - 1

    def _ask(self, method: str, params: Mapping[str, str | int], pair: str, window: Window) -> tuple[Reply, Asked]:
        asked_at = self._clock.now_ms()
        reply = self._client.get(method, **params)
        received_at = max(asked_at, self._clock.now_ms())
        return reply, Asked(f"Bybit {method}", pair, window, min(asked_at, reply.server_ms), received_at)


def _missing(pages: list[Page], window: Window, timeframe: Timeframe) -> Window | None:
    """Return the window from the first to the last bar that no page has; None if every bar is there."""
    expected = window.expected(timeframe)
    lacking = expected[~np.isin(expected, np.concatenate([page.ts for page in pages]))]
    return Window(int(lacking[0]), int(lacking[-1])) if len(lacking) else None
