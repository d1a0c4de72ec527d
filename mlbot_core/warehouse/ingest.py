"""From a source to stored, checked months of one series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlbot_core.clock import Clock
from mlbot_core.config import QualityConfig
from mlbot_core.errors import WarehouseError
from mlbot_core.market import SeriesBatch, series_spec
from mlbot_core.market import quality as rules
from mlbot_core.sources import Served, Source
from mlbot_core.timeframe import Market, Month, Timeframe
from mlbot_core.warehouse.bitemporal import append, latest
from mlbot_core.warehouse.partitions import PartitionKey, PartitionOutcome, Verdict, data_version, record_partition
from mlbot_core.warehouse.store import Warehouse

RAW_CHECKS = ("duplicates", "gaps", "freshness", "sanity")

# a transaction of this many bars stays well below the second that a write may hold the store
_BARS_PER_WRITE = 40_000


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
    """

    series: str
    market: Market
    months: tuple[Month, ...]
    quality: QualityConfig
    settle_delay_ms: int
    run_id: str
    identity: str = ""


def partition_name(market: Market, month: Month) -> str:
    """Return the partition of a monthly asset: ``BTC-2h|2024-03-01``."""
    return f"{market}|{month.key}"


def ingest(warehouse: Warehouse, source: Source, clock: Clock, request: IngestRequest) -> list[PartitionOutcome]:
    """Pull the months from the source, append what is new, check what is stored, and write the verdicts down.

    The source is asked for one contiguous stretch (paging is its business); each month becomes visible together with
    its verdicts or not at all. A series that the source does not serve makes empty partitions that say so.

    Raises
    ------
    SourceError
        If the source did not deliver; nothing of the failed stretch is stored.
    WarehouseError
        If the store holds another market under this source's name.
    VersionConflictError
        If the store already has newer or other versions for the same moment.
    """
    outcomes: list[PartitionOutcome] = []
    served = source.served(request.series, request.market)
    for stretch in _stretches(request.months, request.market.timeframe):
        batch = None
        if served is not None:
            settled = served.timeframe.floor(clock.now_ms() - request.settle_delay_ms)
            start_ms, end_ms = stretch[0].start_ms, stretch[-1].end_ms
            batch = source.fetch(request.series, request.market, start_ms, max(start_ms, min(end_ms, settled)))
        with warehouse.write() as con:
            _require_same_market(con, source.name, request.identity)
            outcomes += _store(con, source, served, batch, stretch, clock.now_ms(), request)
    return outcomes


def _stretches(months: Sequence[Month], timeframe: Timeframe) -> list[list[Month]]:
    """Group consecutive months into stretches of one write each."""
    most = max(1, int(_BARS_PER_WRITE / (31 * timeframe.bars_per_day)))
    groups: list[list[Month]] = []
    for month in sorted(months):
        if groups and groups[-1][-1].next() == month and len(groups[-1]) < most:
            groups[-1].append(month)
        else:
            groups.append([month])
    return groups


def _store(
    con: duckdb.DuckDBPyConnection,
    source: Source,
    served: Served | None,
    batch: SeriesBatch | None,
    months: Sequence[Month],
    now_ms: int,
    request: IngestRequest,
) -> list[PartitionOutcome]:
    outcomes = []
    if served is None or batch is None:
        why = source.why_not(request.series, request.market)
        checks = tuple(Verdict(check, True, {"note": f"not served by {source.name}: {why}"}) for check in RAW_CHECKS)
        for month in months:
            key = PartitionKey(request.series, source.name, partition_name(request.market, month))
            outcome = PartitionOutcome(key, 0, "empty", checks, {"timeframe": None, "note": why})
            record_partition(con, outcome, now_ms=now_ms, run_id=request.run_id)
            outcomes.append(outcome)
        return outcomes
    appended = append(con, batch, now_ms=now_ms)
    for month in months:
        outcome = _judge(con, source.name, served, month, now_ms, request)
        info: dict[str, Any] = dict(outcome.info)
        info |= {"appended_in_stretch": appended.inserted, "restated_in_stretch": appended.restated}
        info |= {"notes": list(batch.notes)} if batch.notes else {}
        outcome = PartitionOutcome(outcome.key, outcome.rows, outcome.version, outcome.checks, info)
        record_partition(con, outcome, now_ms=now_ms, run_id=request.run_id)
        outcomes.append(outcome)
    return outcomes


def _require_same_market(con: duckdb.DuckDBPyConnection, source: str, identity: str) -> None:
    """Refuse to mix two made-up markets: the second would enter as restatements of the first, and change nothing."""
    row = con.execute(
        """
        SELECT json_extract_string(info, '$.identity') AS identity FROM partitions
        WHERE source = ? AND identity IS NOT NULL ORDER BY written_at DESC, rowid DESC LIMIT 1
        """,
        [source],
    ).fetchone()
    if row is not None and row[0] != identity:
        raise WarehouseError(
            f"the store holds another market of {source} ({row[0] or 'unnamed'}) than the configured one "
            f"({identity or 'unnamed'}); set MLBOT_HOME to an empty folder or restore the emulator's configuration"
        )


def _judge(
    con: duckdb.DuckDBPyConnection,
    source: str,
    served: Served,
    month: Month,
    now_ms: int,
    request: IngestRequest,
) -> PartitionOutcome:
    """Check the stored bars of a month against what should be there by now."""
    timeframe = served.timeframe
    bars = latest(
        con,
        request.series,
        source=source,
        symbol=request.market.symbol,
        timeframe=timeframe,
        start_ms=month.start_ms,
        end_ms=month.end_ms,
    )
    ts = np.asarray(bars.column("ts").to_numpy(), dtype=np.int64)
    first, end = _expected(served, month, now_ms, request.settle_delay_ms)
    checks = [
        _uniqueness(con, request, source, timeframe, month),
        _verdict(
            rules.gaps(
                ts,
                timeframe,
                first,
                end,
                max_missing_share=request.quality.max_missing_share,
                max_gap_bars=request.quality.max_gap_bars,
            )
        ),
        _fresh(ts, timeframe, first, end),
        _sane(request.series, ts, bars),
    ]
    info = {
        "timeframe": str(timeframe),
        "first_ts": int(ts[0]) if len(ts) else None,
        "last_ts": int(ts[-1]) if len(ts) else None,
        "note": served.note,
        "identity": request.identity,
    }
    key = PartitionKey(request.series, source, partition_name(request.market, month))
    return PartitionOutcome(key, len(ts), data_version(bars), tuple(checks), info)


def _expected(served: Served, month: Month, now_ms: int, settle_delay_ms: int) -> tuple[int, int]:
    """Return ``[first, end)`` of the open times that should be stored by now."""
    first, end = month.start_ms, month.end_ms
    if served.earliest_ms is not None:
        first = max(first, served.earliest_ms)
    if served.latest_ms is not None:
        end = min(end, served.latest_ms)
    closed = served.timeframe.last_closed(now_ms - settle_delay_ms) + served.timeframe.ms
    return first, max(first, min(end, closed))


def _fresh(ts: npt.NDArray[np.int64], timeframe: Timeframe, first: int, end: int) -> Verdict:
    """Check that the newest bar one can expect is there (for a past month: its last one)."""
    if not len(timeframe.opens_between(first, end)):
        return Verdict("freshness", True, {"note": "nothing can be expected in this month yet"})
    return _verdict(rules.freshness(int(ts[-1]) if len(ts) else None, timeframe, end))


def _sane(series: str, ts: npt.NDArray[np.int64], bars: pa.Table) -> Verdict:
    if series != "price" or len(ts) == 0:
        return Verdict("sanity", True, {"note": f"{len(ts)} bars; signs and finiteness were checked before storing"})
    columns = [np.asarray(bars.column(name).to_numpy(), dtype=np.float64) for name in ("open", "high", "low", "close")]
    found = [rules.ohlc_order(ts, *columns), rules.price_jumps(ts, columns[3])]
    return _verdict(next((result for result in found if not result.passed), found[0]), "sanity")


def _uniqueness(
    con: duckdb.DuckDBPyConnection, request: IngestRequest, source: str, timeframe: Timeframe, month: Month
) -> Verdict:
    """Check that no (bar, observed_at) is stored twice: what a primary key would do, without its cost."""
    series_spec(request.series)
    row = con.execute(
        f"SELECT count(*), count(DISTINCT (ts, observed_at)) FROM {request.series} "
        "WHERE symbol = ? AND source = ? AND timeframe = ? AND ts >= ? AND ts < ?",
        [request.market.symbol, source, str(timeframe), month.start_ms, month.end_ms],
    ).fetchone()
    total, distinct = row if row is not None else (0, 0)
    return Verdict("duplicates", total == distinct, {"versions": total, "repeated": total - distinct})


def _verdict(result: rules.CheckResult, name: str | None = None) -> Verdict:
    return Verdict(name or result.check, result.passed, {"found": result.found, "detail": result.detail})
