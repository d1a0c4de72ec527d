"""Rows per second into the warehouse, beside plain DuckDB appends of the same rows in the same run.

Bulk: a million bars of ``price`` (six values) in batches, once through ``append`` (versions compared, known_at, gaps)
and once by a plain INSERT of the same finished rows into an equal table; both open, commit and close the file once a
batch. They take turns, and the median ratio of the rounds counts. One bar: each write locks, opens, appends one bar to
a store that holds the million, commits and closes; plain: the same without the comparison. Again: the same million once
more, which adds nothing. Refresh: 12 bars of a 30-minute series of which one is new, its month of about 1,400 bars
judged. Read: the settled bars of a live decision, and the time the lock and the opening of the file add to it.

    python benchmarks/ingest.py [--bars 1000000] [--rounds 3] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlbot_core.clock import FixedClock
from mlbot_core.config import QualityConfig
from mlbot_core.market import SeriesBatch, make_table, series_spec
from mlbot_core.sources.base import Served, SourceBase
from mlbot_core.timeframe import DAY_MS, MINUTE_MS, Market, Month, Timeframe
from mlbot_core.warehouse import Warehouse, append, settled
from mlbot_core.warehouse.ingest import IngestRequest, ingest
from mlbot_core.warehouse.refresh import refresh

STEP = Timeframe(1)
HALF_HOUR = Timeframe(30)
MARKET = Market("BTC", HALF_HOUR)
T0 = 1_577_836_800_000  # 2020-01-01
AFTER = T0 + 4_000_000 * MINUTE_MS
COLUMNS = ("open", "high", "low", "close", "volume_usd", "volume_coin")


def bars(first: int, count: int, observed: int, step: Timeframe = STEP) -> SeriesBatch:
    """Return bars that have all digits a price has."""
    ts = T0 + (first + np.arange(count, dtype=np.int64)) * step.ms
    close = np.round(60_000 + 5_000 * np.sin(ts / 9e9) + 30 * np.sin(ts / 1e6), 1)
    volume = np.round(50 + 40 * np.sin(ts / 3e7), 3)
    values = dict(zip(COLUMNS, (close - 3, close + 9, close - 11, close, volume * close, volume), strict=True))
    return SeriesBatch("price", "BTC", step, "bench", make_table("price", ts, observed, values))


def finished(batch: SeriesBatch) -> pa.Table:
    """Return the rows as they end up in the table."""
    rows = batch.rows
    close = np.asarray(batch.table.column("ts").to_numpy()) + STEP.ms
    text = {"symbol": "BTC", "source": "bench", "timeframe": "1m", "capture": "backfill"}
    constant = {name: pa.array([value] * rows) for name, value in text.items()}
    return pa.table(
        {**constant, "known_at": close, **{name: batch.table.column(name) for name in batch.table.column_names}}
    )


def insert_plain(store: Warehouse, rows: pa.Table) -> None:
    with store.write() as con:
        con.register("finished", rows)
        con.execute("INSERT INTO price BY NAME SELECT * FROM finished")
        con.unregister("finished")


def insert_versions(store: Warehouse, batch: SeriesBatch) -> None:
    with store.write() as con:
        append(con, batch, now_ms=AFTER)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class HalfHours(SourceBase):
    """A source of the benchmark's bars."""

    name = "bench"

    def __init__(self, clock: FixedClock) -> None:
        self.clock = clock

    def served(self, series: str, market: Market) -> Served | None:
        return Served(HALF_HOUR, T0, None) if (series, market) == ("price", MARKET) else None

    def why_not(self, series: str, market: Market) -> str:
        return "" if self.served(series, market) else f"the benchmark has no {series} of {market}"

    def fetch(self, series: str, market: Market, start_ms: int, end_ms: int) -> SeriesBatch:
        assert self.served(series, market) is not None
        first = (start_ms - T0) // HALF_HOUR.ms
        return bars(first, (end_ms - start_ms) // HALF_HOUR.ms, self.clock.now_ms(), HALF_HOUR)


def bulk(
    folder: Path, batches: list[SeriesBatch], plain_rows: list[pa.Table], number: int
) -> tuple[Warehouse, Warehouse, float, float]:
    """Fill two new stores, batch by batch in turn; return them and the seconds of either."""
    ours, plain = (Warehouse(folder / f"{kind}{number}.duckdb", FixedClock(AFTER)) for kind in ("ours", "plain"))
    seconds = [0.0, 0.0]
    for store in (ours, plain):
        with store.read():
            pass
    for batch, rows in zip(batches, plain_rows, strict=True):
        seconds[0] += timed(partial(insert_versions, ours, batch))
        seconds[1] += timed(partial(insert_plain, plain, rows))
    return ours, plain, seconds[0], seconds[1]


def run(folder: Path, total: int, batch_bars: int, rounds: int, singles: int) -> dict[str, float]:
    batches = [bars(first, min(batch_bars, total - first), AFTER) for first in range(0, total, batch_bars)]
    plain_rows = [finished(batch) for batch in batches]
    results = [bulk(folder, batches, plain_rows, number) for number in range(rounds)]
    ours, plain = results[-1][0], results[-1][1]
    versions, inserts = np.array([r[2] for r in results]), np.array([r[3] for r in results])
    again = sum(timed(partial(insert_versions, ours, batch)) for batch in batches)
    one, one_plain = [], []
    for i in range(singles):
        batch = bars(total + i, 1, AFTER)
        one.append(timed(partial(insert_versions, ours, batch)))
        one_plain.append(timed(partial(insert_plain, plain, finished(batch))))
    refreshed = refreshes(folder, max(5, singles // 10))
    read, visit = reads(ours, total)
    return {
        "bars": total,
        "bars_a_batch": batch_bars,
        "values_a_bar": len(series_spec("price").column_names),
        "bulk_rows_per_s": total / float(np.median(versions)),
        "plain_rows_per_s": total / float(np.median(inserts)),
        "bulk_of_plain": float(np.median(inserts / versions)),
        "again_rows_per_s": total / again,
        "one_bar_ms_p50": float(np.median(one) * 1000),
        "one_bar_ms_p99": float(np.percentile(one, 99) * 1000),
        "one_bar_plain_ms_p50": float(np.median(one_plain) * 1000),
        "refresh_ms_p50": float(np.median(refreshed) * 1000),
        "settled_1500_bars_ms_p50": float(np.median(read) * 1000),
        "read_visit_ms_p50": float(np.median(visit) * 1000),
        "batch_write_s_mean": float(np.median(versions)) / len(batches),
    }


def reads(store: Warehouse, total: int) -> tuple[list[float], list[float]]:
    """Time the settled read of the newest 1,500 bars, and the whole visit around it."""
    read, visit = [], []
    window = {"start_ms": T0 + (total - 1500) * STEP.ms, "end_ms": T0 + total * STEP.ms}
    scope = {"source": "bench", "symbol": "BTC", "timeframe": STEP}
    for _ in range(30):
        started = time.perf_counter()
        with store.read() as con:
            read.append(timed(partial(settled, con, "price", **scope, **window, settle_delay_ms=0, known_by_ms=2**61)))
        visit.append(time.perf_counter() - started)
    return read, visit


def refreshes(folder: Path, count: int) -> list[float]:
    """Time refreshes of 12 bars, one of them new, near the end of a month."""
    clock = FixedClock(T0 + 29 * DAY_MS)
    store = Warehouse(folder / "refreshed.duckdb", clock)
    quality = QualityConfig(max_missing_share=0.02, max_gap_bars=24)
    request = IngestRequest("price", MARKET, (Month.of(T0),), quality, 0, "bench")
    source = HalfHours(clock)
    ingest(store, source, clock, request)
    took = []
    for _ in range(count):
        clock.set_ms(clock.now_ms() + HALF_HOUR.ms)
        took.append(timed(partial(refresh, store, source, clock, request)))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=100_000, help="bars a transaction")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--singles", type=int, default=200, help="bars written one at a time")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    total, rounds, singles = (60_000, 1, 20) if args.quick else (args.bars, args.rounds, args.singles)
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), total, min(args.batch, total), rounds, singles)
    for key, value in result.items():
        print(f"{key:26} {value:,.2f}" if isinstance(value, float) else f"{key:26} {value:,}")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
