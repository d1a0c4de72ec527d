"""The Coinglass v4 client: closed bars of catalogue series, whatever the plan, the paging and the wire do.

Endpoints, units and behaviour: https://docs.coinglass.com and the notes in this package's modules
(:mod:`~mlbot_core.sources.envelope`, :mod:`~mlbot_core.sources.rows`, :mod:`~mlbot_core.sources.paging`,
:mod:`~mlbot_core.sources.plans`). The emulator is read through this very class.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlbot_core.clock import Clock, format_utc
from mlbot_core.errors import KeyRejectedError, PlanError, UsageError
from mlbot_core.market.batch import SeriesBatch, column, make_table
from mlbot_core.market.catalogue import CATALOGUE, SeriesSpec, series_spec
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
from mlbot_core.sources.chunks import Chunk, pages_by_chunk, windows_over
from mlbot_core.sources.coinglass_calls import TWO_HOURS, Endpoints, stitched
from mlbot_core.sources.paging import MAX_LIMIT, Page, Stitched, Window, leading_zeros
from mlbot_core.sources.plans import INTERVALS, Plan, plan_of
from mlbot_core.sources.rows import served_columns
from mlbot_core.sources.transport import RequestRefusedError, Transport
from mlbot_core.timeframe import DAY_MS, Market, Timeframe

SUBSCRIPTION: Final = "/api/user/account/subscription"
_ONE_HOUR: Final = Timeframe(60)
# How far the first bar of a plan may lie from where we think it is: time passes between the two.
_PLAN_EDGE_BARS: Final = 2
_LATE_BARS: Final = 2
# Windows under way at a time in a long fetch: an answer may take seconds, and the pace is the bucket's to keep.
_AHEAD: Final = 2
# What a crash may cost of one series: as many calls, which is seconds on the slowest plan.
_CALLS_PER_CHUNK: Final = 4


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
class _Asked:
    """What one fetch is about: ``base`` bars are asked for, ``target`` bars come of them."""

    spec: SeriesSpec
    market: Market
    base: Timeframe
    target: Timeframe
    lag: int
    earliest: int | None


@dataclass(frozen=True)
class _Collected:
    """Bars of a stretch as the endpoint gave them, with what has to be said about them."""

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
        self._endpoints = Endpoints(transport, limit)
        # bars worth fetching before they are stored
        self.chunk_bars = _CALLS_PER_CHUNK * self._endpoints.window_bars

    @staticmethod
    def offers() -> frozenset[str]:
        """Return the series that Coinglass has an endpoint for, whatever the key's plan."""
        return frozenset(name for name, spec in CATALOGUE.items() if spec.endpoint is not None)

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
        spec, plan = series_spec(series), self.subscription().plan
        note = f"plan {plan.level}"
        if spec.caveat:
            note += f"; {spec.caveat}"
        if spec.native is not None:
            return Served(spec.native, None, None, note)
        earliest = plan.earliest_ms(market.timeframe, self._clock.now_ms())
        if market.timeframe == TWO_HOURS:
            note += "; 2h bars native where the endpoint serves them, else from 1h"
        return Served(market.timeframe, earliest, None, note)

    def why_not(self, series: str, market: Market) -> str:
        """Return why a series is not served for a market; empty if it is."""
        return self._not_offered(series, market) or self._not_included(series_spec(series), market.timeframe)

    def _not_offered(self, series: str, market: Market) -> str:
        spec = series_spec(series)
        if spec.endpoint is None:
            return f"Coinglass has no endpoint for {series}"
        if spec.symbols is not None and market.symbol not in spec.symbols:
            return f"{series} is about {', '.join(spec.symbols)} only, not {market.symbol}"
        if spec.native is not None:
            if spec.native < market.timeframe:
                return f"{series} has bars of {spec.native}, shorter than {market.timeframe}"
            return ""
        if market.timeframe != TWO_HOURS and str(market.timeframe) not in INTERVALS:
            return f"Coinglass has no {market.timeframe} bars; it serves {', '.join(INTERVALS)} and 2h"
        return ""

    def _not_included(self, spec: SeriesSpec, timeframe: Timeframe) -> str:
        """Return why the key does not reach a series: by the plan's table, or because the server has said so."""
        plan = self.subscription().plan
        if not plan.includes(spec.plan):
            return f"{spec.name} begins with plan {spec.plan.upper()}, this key has {plan.level}"
        if refusal := self._endpoints.refusal(spec, spec.native or timeframe):
            return refusal
        return "" if spec.native is not None else self._not_in_plan(timeframe)

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
        (batch,) = self._batches(series, market, [(start_ms, end_ms)], ahead=1)
        return batch

    def fetch_chunks(self, series: str, market: Market, bounds: Iterable[tuple[int, int]]) -> Iterator[SeriesBatch]:
        """Yield one batch for each ``(start_ms, end_ms)``, in order, while the next windows are already on their way.

        Stretches that follow one another share calls, and a whole history is asked for once. A stretch without bars is
        held back until a later one tells whether history had not begun or the source returned nothing.

        Parameters
        ----------
        bounds
            Ascending stretches that the caller stores one by one, about :attr:`chunk_bars` long, so that a crash
            loses little.

        Raises
        ------
        UsageError, PlanError, SourceError
            As :meth:`fetch`, when the stretch that failed is due; those before it have been yielded.
        """
        return self._batches(series, market, list(bounds), ahead=_AHEAD)

    def _batches(
        self, series: str, market: Market, bounds: Sequence[tuple[int, int]], *, ahead: int
    ) -> Generator[SeriesBatch, None, None]:
        asked = self._asked(series, market)
        chunks = [self._chunk(asked, *bound) for bound in bounds]
        begun = False
        silent: list[tuple[Chunk, _Collected]] = []
        with closing(self._pages(asked, chunks, ahead)) as arriving:
            for chunk, pages in zip(chunks, arriving, strict=True):
                got = _collected(asked, chunk, pages, begun=begun)
                if not begun and chunk.asks and len(got.bars.ts) == 0:
                    silent.append((chunk, got))
                    continue
                if len(got.bars.ts):
                    for earlier, nothing in silent:
                        yield self._batch(asked, earlier, nothing, begun=False, history=CAUSE_BEFORE_HISTORY)
                    silent = []
                    yield self._batch(asked, chunk, got, begun=begun)
                    begun = True
                elif silent:
                    silent.append((chunk, got))
                else:
                    yield self._batch(asked, chunk, got, begun=begun)
        for chunk, nothing in silent:
            yield self._batch(asked, chunk, nothing, begun=False)

    def _asked(self, series: str, market: Market) -> _Asked:
        if reason := self._not_offered(series, market):
            raise UsageError(f"{series} {market}: {reason}")
        spec = series_spec(series)
        if reason := self._not_included(spec, market.timeframe):
            raise PlanError(f"{series} {market}: {reason}; choose a longer interval or another plan")
        target = spec.native or market.timeframe
        base = self._base_timeframe(spec, market)
        earliest = None if spec.native else self.subscription().plan.earliest_ms(base, self._clock.now_ms())
        return _Asked(spec, market, base, target, spec.lag_ms(target), earliest)

    def _chunk(self, asked: _Asked, start_ms: int, end_ms: int) -> Chunk:
        target = asked.target
        first = target.ceil(start_ms)
        # a bar that may still move is left for later, live and in history alike: see SeriesSpec.lag_ms
        stop = max(first, min(target.ceil(end_ms), target.floor(self._clock.now_ms() - asked.lag)))
        begin = first if asked.earliest is None else min(max(first, asked.base.ceil(asked.earliest)), stop)
        return Chunk(first, begin, stop)

    def _base_timeframe(self, spec: SeriesSpec, market: Market) -> Timeframe:
        """Return the interval to ask for: the market's own, or 1h where 2h is asked and not native."""
        if spec.native is not None or market.timeframe != TWO_HOURS:
            return spec.native or market.timeframe
        if self._endpoints.native_2h(spec, market.symbol):
            return TWO_HOURS
        if reason := self._not_in_plan(_ONE_HOUR):
            raise PlanError(f"{spec.name} {market}: 2h bars are not native here and {reason}; choose 4h")
        return _ONE_HOUR

    def _pages(self, asked: _Asked, chunks: Sequence[Chunk], ahead: int) -> Generator[list[Page], None, None]:
        """Yield the pages of each stretch; an endpoint without bounds is asked once for all of them."""
        spec, symbol = asked.spec, asked.market.symbol
        if spec.native is None:

            def ask(window: Window) -> list[Page]:
                return self._endpoints.window(spec, symbol, asked.base, window)

            windows = windows_over(chunks, asked.base, self._endpoints.window_bars)
            yield from pages_by_chunk(chunks, windows, asked.base, ask, ahead=ahead)
            return
        whole: list[Page] | None = None
        for chunk in chunks:
            if chunk.asks and whole is None:
                whole = self._endpoints.whole(spec, symbol, asked.base, max(chunk.stop for chunk in chunks))
            yield whole or []

    def _batch(
        self, asked: _Asked, chunk: Chunk, got: _Collected, *, begun: bool, history: str | None = None
    ) -> SeriesBatch:
        """Return the batch of a stretch, its missing bars recorded with their causes.

        Parameters
        ----------
        begun
            Whether older bars of the series have been served.
        history
            Why a stretch without bars has none, where a later one has told.
        """
        series, symbol, target = asked.spec.name, asked.market.symbol, asked.target
        table = resample(_table(asked.spec, got.bars), series, asked.base, target)
        ts = column(table, "ts")
        bounds = tuple(self._causes(ts, asked, chunk, got.padded, begun, history))
        gaps = gap_records(series, symbol, target, self.name, ts, bounds)
        made = () if asked.base == target or len(ts) == 0 else (f"{target} bars made of {asked.base} bars",)
        notes = (*got.notes, *made, *_cut(chunk, ts, bounds))
        return SeriesBatch(series, symbol, target, self.name, table, gaps, notes=notes, publication_lag_ms=asked.lag)

    def _causes(
        self,
        ts: npt.NDArray[np.int64],
        asked: _Asked,
        chunk: Chunk,
        padded: bool,
        begun: bool,
        history: str | None,
    ) -> Iterator[tuple[int, int, str]]:
        """Cut [first, stop) into stretches with the cause that a bar missing there has."""
        plan, timeframe = self.subscription().plan, asked.target
        beyond_plan = f"before the history of plan {plan.level} ({plan.depth_days(timeframe)} days at {timeframe})"
        begin, stop = min(timeframe.ceil(chunk.begin), chunk.stop), chunk.stop
        yield chunk.first, begin, beyond_plan
        head, tail = begin, begin
        if len(ts):
            head, tail = int(ts[0]), int(ts[-1]) + timeframe.ms
            at_plan_edge = asked.earliest is not None and head <= asked.earliest + _PLAN_EDGE_BARS * timeframe.ms
            before = beyond_plan if at_plan_edge else CAUSE_BEFORE_HISTORY
            yield begin, head, CAUSE_PADDING if padded else CAUSE_NOTHING if begun else before
            yield head, tail, CAUSE_NOTHING
        elif padded or history is not None:
            yield begin, stop, CAUSE_PADDING if padded else str(history)
            return
        # the newest bar that has settled ends here or, as time went on, one bar later
        newest = timeframe.floor(self._clock.now_ms() - asked.lag)
        late = (begun or len(ts) > 0) and stop >= newest and stop - tail <= _LATE_BARS * timeframe.ms
        yield tail, stop, CAUSE_NOT_YET if late else CAUSE_NOTHING


def _collected(asked: _Asked, chunk: Chunk, pages: list[Page], *, begun: bool) -> _Collected:
    """Return the bars of a stretch; zeros at the head of history are padding, later ones are values."""
    bars = stitched(pages, asked.spec)
    bars = bars.select((bars.ts >= chunk.begin) & (bars.ts < chunk.stop))
    zeros = leading_zeros(bars, DAY_MS, asked.base) if asked.spec.padded and not begun else 0
    notes = [note for page in pages for note in page.notes]
    if zeros:
        notes.append(f"{zeros} rows of zero padding dropped")
        bars = bars.select(np.arange(len(bars.ts)) >= zeros)
    return _Collected(bars, zeros > 0, tuple(dict.fromkeys(notes)))


def _cut(chunk: Chunk, ts: npt.NDArray[np.int64], bounds: Sequence[tuple[int, int, str]]) -> tuple[str, ...]:
    """Return a note where the answer begins later than was asked: Coinglass cuts in silence, we do not."""
    begins = int(ts[0]) if len(ts) else chunk.stop
    causes = dict.fromkeys(cause for start, end, cause in bounds if start < end <= begins)
    if begins <= chunk.first or not causes:
        return ()
    served = f"served from {format_utc(begins)} on" if len(ts) else f"nothing served before {format_utc(begins)}"
    return (f"asked from {format_utc(chunk.first)}, {served}: {'; '.join(causes)}",)


def _table(spec: SeriesSpec, bars: Stitched) -> pa.Table:
    values = {col.name: bars.values[:, index] for index, col in enumerate(served_columns(spec))}
    return make_table(spec.name, bars.ts, bars.observed_at, values)
