"""The Coinglass v4 client: closed bars of catalogue series, whatever the plan, the paging and the wire do.

Endpoints, units and behaviour: https://docs.coinglass.com and the notes in this package's modules
(:mod:`~mlbot_core.sources.envelope`, :mod:`~mlbot_core.sources.rows`, :mod:`~mlbot_core.sources.paging`,
:mod:`~mlbot_core.sources.plans`). The emulator is read through this very class.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlbot_core.clock import Clock, format_utc
from mlbot_core.errors import BadDataError, KeyRejectedError, PlanError, UsageError
from mlbot_core.market.batch import SeriesBatch, column, empty_table, make_table
from mlbot_core.market.catalogue import SeriesSpec, series_spec
from mlbot_core.market.resample import resample
from mlbot_core.sources.base import (
    CAUSE_BEFORE_HISTORY,
    CAUSE_NOT_YET,
    CAUSE_NOTHING,
    CAUSE_PADDING,
    Served,
    SourceBase,
    gap_records,
)
from mlbot_core.sources.paging import (
    MAX_LIMIT,
    Page,
    Stitched,
    Window,
    halve,
    lacks_bars,
    leading_zeros,
    plan_windows,
    stitch,
)
from mlbot_core.sources.plans import INTERVALS, Plan, plan_of
from mlbot_core.sources.rows import parse_rows, served_columns
from mlbot_core.sources.transport import IntervalRefusedError, RequestRefusedError, Transport, UpstreamError
from mlbot_core.timeframe import DAY_MS, Market, Timeframe

SUBSCRIPTION: Final = "/api/user/account/subscription"
_ONE_HOUR: Final = Timeframe(60)
_TWO_HOURS: Final = Timeframe(120)
# A re-asked window grows by a bar at each end and the server may add one of its own at each end.
_SPARE: Final = 4
# How far the first bar of a plan may lie from where we think it is: time passes between the two.
_PLAN_EDGE_BARS: Final = 2
_LATE_BARS: Final = 2


@dataclass(frozen=True)
class Subscription:
    """What ``/api/user/account/subscription`` says of the key.

    Parameters
    ----------
    plan
        The limits that follow from its level.
    expires_ms
        When it ends, UTC ms; None if not told.
    """

    plan: Plan
    expires_ms: int | None


@dataclass(frozen=True)
class _Collected:
    """Bars as the endpoint gave them, with what has to be said about them."""

    bars: Stitched
    padded: bool
    notes: tuple[str, ...]


class CoinglassSource(SourceBase):
    """Coinglass API v4, or a server that speaks like it.

    Parameters
    ----------
    name
        ``coinglass`` or ``emulator``: what the rows are labelled with.
    transport
        The calls; closed with this source.
    clock
        Tells which bars are closed.
    limit
        Most rows to ask for in a call.
    """

    def __init__(self, name: str, transport: Transport, clock: Clock, *, limit: int = MAX_LIMIT) -> None:
        self.name = name
        self._transport = transport
        self._clock = clock
        self._lock = threading.Lock()
        self._subscription: Subscription | None = None
        self._native_2h: dict[str, bool] = {}
        self._spelling: dict[tuple[str, Timeframe], str] = {}
        self._window_bars = limit - _SPARE
        self._bars_of: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"CoinglassSource({self.name!r}, {self._transport!r})"

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def subscription(self) -> Subscription:
        """Ask for the key's plan (once).

        Raises
        ------
        KeyRejectedError
            If the key is not accepted or its subscription has expired.
        PlanError
            If the key has no paid plan.
        """
        with self._lock:
            if self._subscription is None:
                self._subscription = self._ask_subscription()
            return self._subscription

    def _ask_subscription(self) -> Subscription:
        try:
            data = self._transport.get(SUBSCRIPTION, {}, dict).data
        except RequestRefusedError:
            # the endpoint itself is refused: nothing is known of the plan, so nothing is assumed
            return Subscription(plan_of("unknown"), None)
        expires = data.get("expire_time")
        expires_ms = int(expires) if isinstance(expires, (int, float)) and not isinstance(expires, bool) else None
        if data.get("expired") is True:
            when = "" if expires_ms is None else f" on {format_utc(expires_ms)}"
            raise KeyRejectedError(f"the Coinglass subscription of this key has expired{when}; renew it")
        return Subscription(plan_of(str(data.get("level", "unknown"))), expires_ms)

    def served(self, series: str, market: Market) -> Served | None:
        """Return what the key's plan serves of a series; None if nothing (see :meth:`why_not`)."""
        if self.why_not(series, market):
            return None
        plan = self.subscription().plan
        earliest = plan.earliest_ms(market.timeframe, self._clock.now_ms())
        note = f"plan {plan.level}"
        if market.timeframe == _TWO_HOURS:
            note += "; 2h bars native where the endpoint serves them, else from 1h"
        return Served(market.timeframe, earliest, None, note)

    def why_not(self, series: str, market: Market) -> str:
        """Return why a series is not served for a market; empty if it is."""
        return self._not_offered(series, market) or self._not_in_plan(market.timeframe)

    def _not_offered(self, series: str, market: Market) -> str:
        if series_spec(series).endpoint is None:
            return f"Coinglass has no endpoint for {series}"
        if market.timeframe != _TWO_HOURS and str(market.timeframe) not in INTERVALS:
            return f"Coinglass has no {market.timeframe} bars; it serves {', '.join(INTERVALS)} and 2h"
        return ""

    def _not_in_plan(self, timeframe: Timeframe) -> str:
        plan = self.subscription().plan
        if plan.allows(timeframe):
            return ""
        return f"plan {plan.level} serves bars of {plan.finest} and longer, not {timeframe}"

    def fetch(self, series: str, market: Market, start_ms: int, end_ms: int) -> SeriesBatch:
        """Return the closed bars with ``start_ms <= ts < end_ms``; what is missing is in ``gaps``.

        Raises
        ------
        UsageError
            If Coinglass has no such series or interval.
        PlanError
            If the key's plan does not include the interval.
        SourceError
            If the server did not deliver; the subclass says how.
        """
        if reason := self._not_offered(series, market):
            raise UsageError(f"{series} {market}: {reason}")
        if reason := self._not_in_plan(market.timeframe):
            raise PlanError(f"{series} {market}: {reason}; choose a longer interval or another plan")
        spec, target = series_spec(series), market.timeframe
        base = self._base_timeframe(spec, market)
        now = self._clock.now_ms()
        first, stop = target.ceil(start_ms), min(target.ceil(end_ms), target.floor(now))
        if stop <= first:
            return SeriesBatch(series, market.symbol, target, self.name, empty_table(series))
        earliest = self.subscription().plan.earliest_ms(base, now)
        begin = first if earliest is None else min(max(first, base.ceil(earliest)), stop)
        got = self._collect(spec, market.symbol, base, begin, stop)
        notes = got.notes if base == target else (*got.notes, f"{target} bars made of {base} bars")
        table = resample(_table(spec, got.bars), series, base, target)
        ts = column(table, "ts")
        bounds = self._causes(ts, target, first, target.ceil(begin), stop, earliest, got.padded)
        gaps = gap_records(series, market.symbol, target, self.name, ts, bounds)
        return SeriesBatch(series, market.symbol, target, self.name, table, gaps, recorded=False, notes=notes)

    def _base_timeframe(self, spec: SeriesSpec, market: Market) -> Timeframe:
        """Return the interval to ask for: the market's own, or 1h where 2h is asked and not native."""
        if market.timeframe != _TWO_HOURS:
            return market.timeframe
        endpoint = _endpoint(spec)
        with self._lock:
            known = self._native_2h.get(endpoint)
        if known is None:
            known = self._probe_2h(spec, market.symbol)
            with self._lock:
                self._native_2h[endpoint] = known
        if known:
            return _TWO_HOURS
        if reason := self._not_in_plan(_ONE_HOUR):
            raise PlanError(f"{spec.name} {market}: 2h bars are not native here and {reason}; choose 4h")
        return _ONE_HOUR

    def _probe_2h(self, spec: SeriesSpec, symbol: str) -> bool:
        """Ask for three 2h bars: the documentation contradicts itself on whether an endpoint knows them."""
        params = {**_params(spec, symbol), "interval": "2h", "limit": 3}
        try:
            answer = self._transport.get(_endpoint(spec), params)
            page = parse_rows(answer.data, spec, _TWO_HOURS, answer.asked_at, answer.received_at)
        except (RequestRefusedError, PlanError, BadDataError):
            # refused, off the 2h grid or of another shape: not native; an outage would be no answer and is raised
            return False
        return len(page.ts) >= 2 and bool((np.diff(page.ts) == _TWO_HOURS.ms).all())

    def _collect(self, spec: SeriesSpec, symbol: str, timeframe: Timeframe, begin: int, stop: int) -> _Collected:
        """Ask for every bar in [begin, stop), windows with something missing once more."""
        pages: list[Page] = []
        for window in plan_windows(begin, stop, timeframe, self._window_bars):
            got = self._pages(spec, symbol, timeframe, window)
            pages += got
            if lacks_bars(_merged(got, spec), window, timeframe):
                wider = Window(window.first_ts - timeframe.ms, window.last_ts + timeframe.ms)
                pages += self._pages(spec, symbol, timeframe, wider)
        bars = stitch(pages, len(served_columns(spec)))
        bars = bars.select((bars.ts >= begin) & (bars.ts < stop))
        zeros = leading_zeros(bars, DAY_MS, timeframe)
        notes = [note for page in pages for note in page.notes]
        if zeros:
            notes.append(f"{zeros} rows of zero padding dropped")
            bars = bars.select(np.arange(len(bars.ts)) >= zeros)
        return _Collected(bars, zeros > 0, tuple(dict.fromkeys(notes)))

    def _pages(self, spec: SeriesSpec, symbol: str, timeframe: Timeframe, window: Window) -> list[Page]:
        """Ask for one window, in two halves once the server has failed on a whole one."""
        endpoint = _endpoint(spec)
        most = self._bars_of.get(endpoint, self._window_bars + 2)
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
        endpoint = _endpoint(spec)
        spelling = self._spelling.get((endpoint, timeframe), str(timeframe))
        params: dict[str, str | int] = {
            **_params(spec, symbol),
            "interval": spelling,
            "limit": window.bars(timeframe) + 2,
            "start_time": window.first_ts,
            # the last bar's own last moment: it is inside whether or not the bound is inclusive
            "end_time": window.last_ts + timeframe.ms - 1,
        }
        try:
            answer = self._transport.get(endpoint, params)
        except IntervalRefusedError:
            legacy = f"{spelling[-1]}{spelling[:-1]}"
            if spelling != str(timeframe):
                raise
            answer = self._transport.get(endpoint, {**params, "interval": legacy})
            self._spelling[(endpoint, timeframe)] = legacy
        return parse_rows(answer.data, spec, timeframe, answer.asked_at, answer.received_at)

    def _causes(
        self,
        ts: npt.NDArray[np.int64],
        timeframe: Timeframe,
        first: int,
        begin: int,
        stop: int,
        earliest: int | None,
        padded: bool,
    ) -> Iterator[tuple[int, int, str]]:
        """Cut [first, stop) into stretches with the cause that a bar missing there has."""
        plan = self.subscription().plan
        beyond_plan = f"before the history of plan {plan.level} ({plan.depth_days(timeframe)} days at {timeframe})"
        yield first, begin, beyond_plan
        if len(ts) == 0:
            yield begin, stop, CAUSE_PADDING if padded else CAUSE_NOTHING
            return
        head, tail = int(ts[0]), int(ts[-1]) + timeframe.ms
        at_plan_edge = earliest is not None and head <= earliest + _PLAN_EDGE_BARS * timeframe.ms
        yield begin, head, CAUSE_PADDING if padded else (beyond_plan if at_plan_edge else CAUSE_BEFORE_HISTORY)
        yield head, tail, CAUSE_NOTHING
        newest = timeframe.floor(self._clock.now_ms())
        late = stop >= newest and stop - tail <= _LATE_BARS * timeframe.ms
        yield tail, stop, CAUSE_NOT_YET if late else CAUSE_NOTHING


def _endpoint(spec: SeriesSpec) -> str:
    if spec.endpoint is None:
        raise UsageError(f"Coinglass has no endpoint for {spec.name}")
    return spec.endpoint


def _params(spec: SeriesSpec, symbol: str) -> dict[str, str | int]:
    return {name: text.format(symbol=symbol, pair=f"{symbol}USDT") for name, text in spec.params.items()}


def _merged(pages: list[Page], spec: SeriesSpec) -> Page:
    bars = stitch(pages, len(served_columns(spec)))
    return Page(bars.ts, bars.values, 0)


def _table(spec: SeriesSpec, bars: Stitched) -> pa.Table:
    values = {col.name: bars.values[:, index] for index, col in enumerate(served_columns(spec))}
    return make_table(spec.name, bars.ts, bars.observed_at, values)
