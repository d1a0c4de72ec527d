"""The newest bars read again, every bar: late and restated ones become versions, verdicts stay up to date.

The first refresh of a series begins its watch (:mod:`mlbot_core.warehouse.watches`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import duckdb

from mlbot_core.clock import Clock
from mlbot_core.errors import SourceError
from mlbot_core.market import SeriesBatch, series_spec
from mlbot_core.sources import Served, Source
from mlbot_core.timeframe import Month
from mlbot_core.warehouse.bitemporal import append
from mlbot_core.warehouse.gaps import missing_runs, named_causes, record_gaps
from mlbot_core.warehouse.incidents import Line, incidents, tell
from mlbot_core.warehouse.ingest import IngestRequest, record_months, require_same_market
from mlbot_core.warehouse.partitions import PartitionOutcome
from mlbot_core.warehouse.store import Warehouse
from mlbot_core.warehouse.watches import begin, watched_since

_LOG = logging.getLogger(__name__)

REFRESH_BARS = 12
# each series takes a few milliseconds to judge; so many together keep a transaction well below a second
_SERIES_PER_WRITE = 10


@dataclass(frozen=True)
class Refreshed:
    """What reading the newest bars of one series again came to.

    Parameters
    ----------
    outcomes
        The months that were judged again, ascending; empty where nothing was read.
    inserted, restated
        New versions, and how many of them restate a bar that was stored.
    error
        Why the source did not deliver; empty where it did. The missing bars of a watched series are rows of the
        gaps table then.
    """

    series: str
    outcomes: tuple[PartitionOutcome, ...]
    inserted: int = 0
    restated: int = 0
    error: str = ""


def refresh(
    store: Warehouse, source: Source, clock: Clock, request: IngestRequest, bars: int = REFRESH_BARS
) -> Refreshed:
    """Read the last bars of a series again and store what is new, in one short transaction.

    The months of the request are not looked at: those of the bars are judged again.

    Raises
    ------
    SourceError
        If the source did not deliver. What is missing by now of a watched series has been written down as gaps.
    WarehouseError
        If the store holds another market under this source's name.
    """
    (found,) = _refresh(store, source, clock, [request], bars, 1, strict=True)
    return found


def refresh_many(
    store: Warehouse,
    source: Source,
    clock: Clock,
    requests: Sequence[IngestRequest],
    bars: int = REFRESH_BARS,
    *,
    threads: int = 4,
    ask_after_ms: int | None = None,
) -> list[Refreshed]:
    """Refresh several series of one source at once; one that fails keeps none of the others back.

    Parameters
    ----------
    threads
        How many series are asked for at the same time, within the source's rate limit.
    ask_after_ms
        How long after its close a bar is asked for, ms; by default once it is settled. Who asks earlier has to read
        again until then: what stands at the decision time is what counts.

    Raises
    ------
    WarehouseError
        If the store holds another market under this source's name.
    """
    return _refresh(store, source, clock, requests, bars, threads, strict=False, ask_after_ms=ask_after_ms)


@dataclass(frozen=True)
class _Pulled:
    request: IngestRequest
    served: Served
    start_ms: int
    end_ms: int
    batch: SeriesBatch | None
    error: SourceError | None


def _refresh(
    store: Warehouse,
    source: Source,
    clock: Clock,
    requests: Sequence[IngestRequest],
    bars: int,
    threads: int,
    *,
    strict: bool,
    ask_after_ms: int | None = None,
) -> list[Refreshed]:
    with ThreadPoolExecutor(max_workers=max(1, min(threads, len(requests)))) as pool:
        pulled = list(pool.map(lambda request: _pull(source, clock, request, bars, ask_after_ms), requests))
    done: list[Refreshed] = []
    for first in range(0, len(requests), _SERIES_PER_WRITE):
        some = list(zip(requests, pulled, strict=True))[first : first + _SERIES_PER_WRITE]
        if all(pull is None for _, pull in some):
            done += [Refreshed(request.series, ()) for request, _ in some]
            continue
        lines: list[Line] = []
        with store.write() as con:
            for request, pull in some:
                done.append(Refreshed(request.series, ()) if pull is None else _keep(con, source, clock, pull, lines))
        tell(lines)
    _tell_failures(source, requests, done)
    failed = next((pull.error for pull in pulled if pull is not None and pull.error is not None), None)
    if strict and failed is not None:
        raise failed
    return done


def _pull(source: Source, clock: Clock, request: IngestRequest, bars: int, ask_after_ms: int | None) -> _Pulled | None:
    """Ask for the newest bars; None where the source does not serve the series."""
    try:
        served = source.served(request.series, request.market)
    except SourceError as error:
        # not even what it serves is told: what the catalogue says of its bars is what is missed
        spec = series_spec(request.series)
        served = Served(spec.native or request.market.timeframe, None, None)
        lag = spec.lag_ms(served.timeframe)
        end = served.timeframe.floor(clock.now_ms() - request.settle_delay_ms - lag)
        return _Pulled(request, served, end - bars * served.timeframe.ms, end, None, error)
    if served is None:
        return None
    step = served.timeframe.ms
    lag = series_spec(request.series).lag_ms(served.timeframe)
    delay = request.settle_delay_ms if ask_after_ms is None else ask_after_ms
    end = served.timeframe.floor(clock.now_ms() - delay - lag)
    end = end if served.latest_ms is None else min(end, served.timeframe.floor(served.latest_ms))
    start = end - bars * step
    try:
        batch = source.fetch(request.series, request.market, start, end)
    except SourceError as error:
        return _Pulled(request, served, start, end, None, error)
    return _Pulled(request, served, start, end, batch, None)


def _keep(con: duckdb.DuckDBPyConnection, source: Source, clock: Clock, pull: _Pulled, lines: list[Line]) -> Refreshed:
    request, served = pull.request, pull.served
    require_same_market(con, source.name, request.identity)
    now_ms = clock.now_ms()
    if pull.batch is None:
        watched = watched_since(
            con, request.series, source=source.name, symbol=request.market.symbol, timeframe=served.timeframe
        )
        if watched is None:
            return Refreshed(request.series, (), error=str(pull.error))
        cause = f"source failed ({type(pull.error).__name__})"
        lost = missing_runs(
            con, request.series, source=source.name, symbol=request.market.symbol, timeframe=served.timeframe,
            start_ms=pull.start_ms, end_ms=pull.end_ms, cause=cause,
        )  # fmt: skip
        record_gaps(con, lost, now_ms=now_ms)
        return Refreshed(request.series, (), error=str(pull.error))
    if served.latest_ms is None and not pull.batch.recorded:
        begin(
            con, request.series, source=source.name, symbol=request.market.symbol, timeframe=served.timeframe,
            since_ms=now_ms, now_ms=now_ms,
        )  # fmt: skip
    appended = append(con, named_causes(con, pull.batch), now_ms=now_ms)
    lines += incidents(con, pull.batch, appended, start_ms=pull.start_ms, end_ms=pull.end_ms, now_ms=now_ms)
    months = Month.span(pull.start_ms, pull.end_ms)
    outcomes = record_months(con, source.name, served, months, now_ms, request, appended, pull.batch.notes)
    return Refreshed(request.series, tuple(outcomes), appended.inserted, appended.restated)


def _tell_failures(source: Source, requests: Sequence[IngestRequest], done: Sequence[Refreshed]) -> None:
    """Write one line for all series that failed: an outage is one incident, however many series it meets."""
    failed = failures(done)
    if failed:
        first = next(iter(failed))
        _LOG.warning(
            "%s of %s: %d of %d series were not delivered, and what is missing of them is noted as gaps; first %s: %s",
            requests[0].market, source.name, len(failed), len(done), first, failed[first],
        )  # fmt: skip


def failures(done: Sequence[Refreshed]) -> dict[str, str]:
    """Return why series failed, by series."""
    return {one.series: one.error for one in done if one.error}
