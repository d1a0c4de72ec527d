"""Asking Coinglass' endpoints for bars: windows, whole histories, spellings of intervals, refusals that last."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Final

import numpy as np

from mlbot_core.clock import format_utc
from mlbot_core.errors import BadDataError, PlanError, UsageError
from mlbot_core.market.catalogue import SeriesSpec
from mlbot_core.sources.paging import Page, Stitched, Window, halve, lacks_bars, plan_windows, stitch
from mlbot_core.sources.rows import parse_answer, served_columns
from mlbot_core.sources.transport import Answer, IntervalRefusedError, RequestRefusedError, Transport, UpstreamError
from mlbot_core.timeframe import Timeframe

_LOG = logging.getLogger(__name__)

TWO_HOURS: Final = Timeframe(120)
# A re-asked window grows by a bar at each end and the server may add one of its own at each end.
_SPARE: Final = 4


class Endpoints:
    """The calls for bars, and what was learnt about each endpoint on the way; for several threads.

    Parameters
    ----------
    transport
        Makes the calls.
    limit
        Most rows to ask for in a call.
    """

    def __init__(self, transport: Transport, limit: int) -> None:
        self.window_bars = limit - _SPARE
        self._transport = transport
        self._lock = threading.Lock()
        self._native_2h: dict[str, bool] = {}
        self._spelling: dict[tuple[str, Timeframe], str] = {}
        self._bars_of: dict[str, int] = {}
        self._refused: dict[tuple[str, Timeframe], str] = {}

    def refusal(self, spec: SeriesSpec, timeframe: Timeframe) -> str:
        """Return how the server has refused the series to this key before; empty if it has not."""
        return self._refused.get((endpoint_of(spec), timeframe), "")

    def native_2h(self, spec: SeriesSpec, symbol: str) -> bool:
        """Return whether an endpoint has 2h bars of its own; asked once."""
        endpoint = endpoint_of(spec)
        with self._lock:
            known = self._native_2h.get(endpoint)
        if known is None:
            known = self._probe_2h(spec, symbol)
            with self._lock:
                self._native_2h[endpoint] = known
        return known

    def _probe_2h(self, spec: SeriesSpec, symbol: str) -> bool:
        """Ask for three 2h bars: the documentation contradicts itself on whether an endpoint knows them."""
        try:
            answer = self._ask(spec, symbol, TWO_HOURS, {"limit": 3})
            page = parse_answer(answer.data, spec, TWO_HOURS, answer.asked_at, answer.received_at, lag_ms=0)
        except (RequestRefusedError, PlanError, BadDataError):
            # refused, off the 2h grid or of another shape: not native; an outage would be no answer and is raised
            return False
        return len(page.ts) >= 2 and bool((np.diff(page.ts) == TWO_HOURS.ms).all())

    def window(self, spec: SeriesSpec, symbol: str, timeframe: Timeframe, window: Window) -> list[Page]:
        """Return the pages of one window; a window with something missing is asked for once more."""
        pages = self._pages(spec, symbol, timeframe, window)
        if lacks_bars(_merged(pages, spec), window, timeframe):
            wider = Window(window.first_ts - timeframe.ms, window.last_ts + timeframe.ms)
            pages += self._pages(spec, symbol, timeframe, wider)
            if not lacks_bars(_merged(pages, spec), window, timeframe):
                # what is missing for good becomes a gap row, which says so; a hole that healed would leave no trace
                _LOG.warning(
                    "Coinglass %s (%s %s): the answer lacked bars between %s and %s; asked again, they are there",
                    spec.endpoint, symbol, timeframe, format_utc(window.first_ts), format_utc(window.last_ts),
                )  # fmt: skip
        return pages

    def _pages(self, spec: SeriesSpec, symbol: str, timeframe: Timeframe, window: Window) -> list[Page]:
        """Ask for one window, in two halves once the server has failed on a whole one."""
        endpoint = endpoint_of(spec)
        most = self._bars_of.get(endpoint, self.window_bars + 2)
        parts = plan_windows(window.first_ts, window.last_ts + timeframe.ms, timeframe, most)
        try:
            return [self._page(spec, symbol, timeframe, part) for part in parts]
        except UpstreamError:
            halves = halve(window, timeframe)
            if len(parts) > 1 or len(halves) == 1:
                raise
            self._bars_of[endpoint] = max(half.bars(timeframe) for half in halves)
            return [self._page(spec, symbol, timeframe, half) for half in halves]

    def _page(self, spec: SeriesSpec, symbol: str, timeframe: Timeframe, window: Window) -> Page:
        bounds = {
            "limit": window.bars(timeframe) + 2,
            "start_time": window.first_ts,
            # the last bar's own last moment: it is inside whether or not the bound is inclusive
            "end_time": window.last_ts + timeframe.ms - 1,
        }
        answer = self._ask(spec, symbol, timeframe, bounds)
        return parse_answer(answer.data, spec, timeframe, answer.asked_at, answer.received_at)

    def whole(self, spec: SeriesSpec, symbol: str, timeframe: Timeframe, stop: int) -> list[Page]:
        """Return all that an endpoint without bounds has; asked once more if something before ``stop`` is missing."""
        pages: list[Page] = []
        for attempt in range(2):
            answer = self._ask(spec, symbol, timeframe, {})
            pages.append(parse_answer(answer.data, spec, timeframe, answer.asked_at, answer.received_at))
            ts = _merged(pages, spec).ts
            if len(ts) and np.isin(spec.expected_opens(timeframe, int(ts[0]), stop), ts).all():
                if attempt:
                    _LOG.warning("Coinglass %s: the answer lacked bars; asked again, they are there", spec.endpoint)
                break
        return pages

    def _ask(self, spec: SeriesSpec, symbol: str, timeframe: Timeframe, bounds: Mapping[str, int]) -> Answer:
        """Make one call, with the interval as this endpoint spells it; a refusal by the plan is remembered."""
        endpoint = endpoint_of(spec)
        params: dict[str, str | int] = {**_params(spec, symbol), **bounds}
        container = list if spec.shape == "rows" else (list, dict)
        try:
            if spec.native is not None:
                return self._transport.get(endpoint, params, container)
            plain = str(timeframe)
            spelling = self._spelling.get((endpoint, timeframe), plain)
            try:
                return self._transport.get(endpoint, {**params, "interval": spelling}, container)
            except IntervalRefusedError:
                if spelling != plain:
                    raise
                legacy = f"{plain[-1]}{plain[:-1]}"
                answer = self._transport.get(endpoint, {**params, "interval": legacy}, container)
                self._spelling[(endpoint, timeframe)] = legacy
                return answer
        except PlanError as error:
            self._refused[(endpoint, timeframe)] = f"the server refused it to this key before: {error}"
            raise


def endpoint_of(spec: SeriesSpec) -> str:
    """Return the path of a series.

    Raises
    ------
    UsageError
        If Coinglass has none.
    """
    if spec.endpoint is None:
        raise UsageError(f"Coinglass has no endpoint for {spec.name}")
    return spec.endpoint


def stitched(pages: list[Page], spec: SeriesSpec) -> Stitched:
    """Return the bars of the pages of a series."""
    return stitch(pages, len(served_columns(spec)))


def _params(spec: SeriesSpec, symbol: str) -> dict[str, str | int]:
    return {name: text.format(symbol=symbol, pair=f"{symbol}USDT") for name, text in spec.params.items()}


def _merged(pages: list[Page], spec: SeriesSpec) -> Page:
    bars = stitched(pages, spec)
    return Page(bars.ts, bars.values, 0)
