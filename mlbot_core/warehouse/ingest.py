"""From a source to stored, checked months of one series.

A pull is done stretch by stretch, each one transaction: bars, gaps, verdicts and the rows that say that the months
were made become visible together. A process that is killed loses the stretch it was at; whoever starts it again with
``skip_complete`` asks only for what is not stored yet (:mod:`mlbot_core.warehouse.progress`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import duckdb

from mlbot_core.clock import Clock
from mlbot_core.config import QualityConfig
from mlbot_core.errors import WarehouseError
from mlbot_core.market import SeriesBatch
from mlbot_core.sources import Served, Source
from mlbot_core.timeframe import Market, Month, Timeframe
from mlbot_core.warehouse.bitemporal import AppendResult, append
from mlbot_core.warehouse.gaps import named_causes
from mlbot_core.warehouse.incidents import incidents, tell
from mlbot_core.warehouse.judge import RAW_CHECKS, judge, partition_name
from mlbot_core.warehouse.partitions import PartitionKey, PartitionOutcome, Verdict, record_partition
from mlbot_core.warehouse.progress import Wanted, what_is_wanted
from mlbot_core.warehouse.references import stored_identity
from mlbot_core.warehouse.store import Warehouse

__all__ = ["RAW_CHECKS", "IngestRequest", "ingest", "partition_name"]

# Bars of one write where the source does not say what is economical: about one call of Coinglass (4,500 rows), and a
# transaction of a few dozen milliseconds.
_BARS_PER_WRITE = 4_400
# a transaction of this many bars stays well below the second that a write may hold the store
_MOST_BARS_PER_WRITE = 40_000


@dataclass(frozen=True)
class IngestRequest:
    """What to pull: one series of one market for some months.

    Parameters
    ----------
    settle_delay_ms
        How long after its close a bar may take to arrive before it counts as missing. A younger bar is not asked
        for: what is served before may still move, and the first version seen in time is the one that stays.
    identity
        Which market a source with several of them serves (the emulator's seed, start and mode); empty: there is one.
    skip_complete
        Ask only for what is not stored yet, as a backfill that is resumed does. By default everything is read again,
        which is what a person who materializes a month means; so restatements are found.
    """

    series: str
    market: Market
    months: tuple[Month, ...]
    quality: QualityConfig
    settle_delay_ms: int
    run_id: str
    identity: str = ""
    skip_complete: bool = False


def ingest(warehouse: Warehouse, source: Source, clock: Clock, request: IngestRequest) -> list[PartitionOutcome]:
    """Pull the months from the source, append what is new, check what is stored, and write the verdicts down.

    Each stretch of months becomes visible together with its verdicts or not at all. A series that the source does not
    serve makes empty partitions that say so. Months that were skipped are returned as they are recorded.

    Returns
    -------
    list of PartitionOutcome
        One a month, ascending.

    Raises
    ------
    SourceError
        If the source did not deliver; nothing of the failed stretch is stored, those before it are.
    WarehouseError
        If the store holds another market under this source's name.
    VersionConflictError
        If the store already has newer or other versions for the same moment.
    """
    served = source.served(request.series, request.market)
    months = sorted(set(request.months))
    if served is None:
        return _not_served(warehouse, source, clock, request, months)
    asked_at = clock.now_ms()
    settled = served.timeframe.floor(asked_at - request.settle_delay_ms)
    if request.skip_complete:
        wanted, outcomes = what_is_wanted(
            warehouse,
            request.series,
            source.name,
            request.market,
            served,
            months,
            now_ms=asked_at,
            settle_delay_ms=request.settle_delay_ms,
            quality=request.quality,
            identity=request.identity,
        )
    else:
        wanted, outcomes = [Wanted(month, month.start_ms, month.end_ms) for month in months], []
    stretches = _stretches(wanted, _bars_per_write(source), served.timeframe)
    bounds = [(piece[0].start_ms, max(piece[0].start_ms, min(piece[-1].end_ms, settled))) for piece in stretches]
    with closing(_batches(source, request, bounds)) as batches:
        for stretch, (start_ms, end_ms), batch in zip(stretches, bounds, batches, strict=True):
            with warehouse.write() as con:
                require_same_market(con, source.name, request.identity)
                now_ms = clock.now_ms()
                appended = append(con, named_causes(con, batch), now_ms=now_ms)
                outcomes += record_months(
                    con, source.name, served, [piece.month for piece in stretch], now_ms, request,
                    appended, batch.notes,
                )  # fmt: skip
                lines = incidents(con, batch, appended, start_ms=start_ms, end_ms=end_ms, now_ms=now_ms)
            tell(lines)
    return sorted(outcomes, key=lambda outcome: outcome.key)


def _bars_per_write(source: Source) -> float:
    """Return how many bars a transaction takes; a source may know what is economical to ask for."""
    return float(min(_MOST_BARS_PER_WRITE, getattr(source, "chunk_bars", _BARS_PER_WRITE)))


def _batches(
    source: Source, request: IngestRequest, bounds: Sequence[tuple[int, int]]
) -> Generator[SeriesBatch, None, None]:
    """Yield one batch a pair of bounds; a source that can fetch ahead does so while the last batch is stored."""
    ahead = getattr(source, "fetch_chunks", None)
    if ahead is None:
        for start_ms, end_ms in bounds:
            yield source.fetch(request.series, request.market, start_ms, end_ms)
        return
    chunks: Iterator[SeriesBatch] = ahead(request.series, request.market, bounds)
    try:
        yield from chunks
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()


def _stretches(wanted: Sequence[Wanted], bars: float, timeframe: Timeframe) -> list[list[Wanted]]:
    """Group what is wanted into unbroken stretches of one write each."""
    most = max(1, int(bars / (31 * timeframe.bars_per_day)))
    groups: list[list[Wanted]] = []
    for piece in wanted:
        if groups and groups[-1][-1].end_ms == piece.start_ms and len(groups[-1]) < most:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def record_months(
    con: duckdb.DuckDBPyConnection,
    source: str,
    served: Served,
    months: Iterable[Month],
    now_ms: int,
    request: IngestRequest,
    appended: AppendResult,
    notes: Sequence[str] = (),
) -> list[PartitionOutcome]:
    """Judge months whose bars have just been stored and write down that they were made, in the same transaction."""
    outcomes = []
    for month in months:
        outcome = judge(
            con,
            request.series,
            source,
            request.market,
            served,
            month,
            now_ms=now_ms,
            settle_delay_ms=request.settle_delay_ms,
            quality=request.quality,
            identity=request.identity,
        )
        info: dict[str, Any] = dict(outcome.info)
        info |= {"appended_in_stretch": appended.inserted, "restated_in_stretch": appended.restated}
        info |= {"notes": list(notes)} if notes else {}
        outcome = replace(outcome, info=info)
        record_partition(con, outcome, now_ms=now_ms, run_id=request.run_id)
        outcomes.append(outcome)
    return outcomes


def _not_served(
    warehouse: Warehouse, source: Source, clock: Clock, request: IngestRequest, months: Sequence[Month]
) -> list[PartitionOutcome]:
    """Write down empty partitions that say why they are empty."""
    why = source.why_not(request.series, request.market)
    checks = tuple(Verdict(check, True, {"note": f"not served by {source.name}: {why}"}) for check in RAW_CHECKS)
    outcomes = []
    with warehouse.write() as con:
        require_same_market(con, source.name, request.identity)
        for month in months:
            key = PartitionKey(request.series, source.name, partition_name(request.market, month))
            outcome = PartitionOutcome(key, 0, "empty", checks, {"timeframe": None, "note": why})
            record_partition(con, outcome, now_ms=clock.now_ms(), run_id=request.run_id)
            outcomes.append(outcome)
    return outcomes


def require_same_market(con: duckdb.DuckDBPyConnection, source: str, identity: str) -> None:
    """Refuse to mix two made-up markets: the second would enter as restatements of the first, and change nothing.

    Raises
    ------
    WarehouseError
        If the store holds another market under this source's name.
    """
    stored = stored_identity(con, source)
    if stored is not None and stored != identity:
        raise WarehouseError(
            f"the store holds another market of {source} ({stored or 'unnamed'}) than the configured one "
            f"({identity or 'unnamed'}); set MLBOT_HOME to an empty folder or restore the emulator's configuration"
        )
