"""Reading many series at once gives what reading each by itself gives, version by version."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest

from mlbot_core.clock import FixedClock
from mlbot_core.market import SeriesBatch, make_table, series_spec
from mlbot_core.timeframe import HOUR_MS, MINUTE_MS, Timeframe
from mlbot_core.warehouse import Warehouse, append
from mlbot_core.warehouse.bitemporal import settled
from mlbot_core.warehouse.read_many import Stretch, settled_many

START = 1_700_006_400_000
BARS = 60
DELAY = 5_000
HOUR, EIGHT = Timeframe.parse("1h"), Timeframe.parse("8h")
STORED = {"price": HOUR, "long_short_ratio": HOUR, "funding_settled": EIGHT, "liquidations": HOUR}


def batch(
    series: str, symbol: str, timeframe: Timeframe, ts: np.ndarray, seen: np.ndarray, rng: np.random.Generator
) -> SeriesBatch:
    level = rng.uniform(0.01, 0.04, len(ts))
    values = {name: level.copy() for name in series_spec(series).column_names}
    if series == "liquidations":
        values["short_usd"][::5] = np.nan  # a value that was not served
    table = make_table(series, ts, seen, values)
    return SeriesBatch(series, symbol, timeframe, "archive", table, recorded=True, live_since_ms=0)


@pytest.fixture
def store(tmp_path: Path) -> Warehouse:
    """Several series of two symbols: bars missing, late, restated once or twice, symbols and times interleaved."""
    now = START + 400 * HOUR_MS
    warehouse = Warehouse(tmp_path / "store.duckdb", FixedClock(now))
    rng = np.random.default_rng(7)
    with warehouse.write() as con:
        for attempt in range(3):
            for symbol in ("ETH", "BTC"):
                for series, timeframe in STORED.items():
                    ts = START + timeframe.ms * np.arange(BARS, dtype=np.int64)
                    ts = ts[rng.random(BARS) < (0.85 if attempt == 0 else 0.2)]
                    wait = rng.choice([1_000, 4_000, 20_000, 90 * MINUTE_MS], len(ts)) + attempt * 40 * HOUR_MS
                    append(con, batch(series, symbol, timeframe, ts, ts + timeframe.ms + wait, rng), now_ms=now)
    return warehouse


def each(con: duckdb.DuckDBPyConnection, wanted: list[Stretch], known_by: int, snapshot: int | None) -> dict:
    return {
        one.series: settled(
            con, one.series, source="archive", symbol="BTC", timeframe=one.timeframe, start_ms=one.start_ms,
            end_ms=one.end_ms, settle_delay_ms=DELAY, known_by_ms=known_by, snapshot_ms=snapshot,
        ).table
        for one in wanted
    }  # fmt: skip


@pytest.mark.parametrize("snapshot_hours", [None, 30, 300])
@pytest.mark.parametrize("known_hours", [10, 55, 300])
def test_every_series_is_read_as_by_itself(store: Warehouse, known_hours: int, snapshot_hours: int | None) -> None:
    known_by = START + known_hours * HOUR_MS
    snapshot = None if snapshot_hours is None else START + snapshot_hours * HOUR_MS
    wanted = [Stretch(name, frame, START + 3 * frame.ms, START + 50 * frame.ms) for name, frame in STORED.items()]
    with store.read() as con:
        read = settled_many(
            con,
            wanted,
            source="archive",
            symbol="BTC",
            settle_delay_ms=DELAY,
            known_by_ms=known_by,
            snapshot_ms=snapshot,
        )
        expected = each(con, wanted, known_by, snapshot)
    assert list(read) == list(STORED)
    for name, columns in read.items():
        assert list(columns) == ["ts", "known_at", *series_spec(name).column_names]
        for column, values in columns.items():
            np.testing.assert_array_equal(values, expected[name].column(column).to_numpy(), err_msg=f"{name} {column}")
    rows = sum(len(columns["ts"]) for columns in read.values())
    assert rows > (100 if known_hours == 300 and snapshot_hours != 30 else 5)


def test_versions_were_there_to_choose_from(store: Warehouse) -> None:
    with store.read() as con:
        shares = settled(
            con, "price", source="archive", symbol="BTC", timeframe=HOUR, start_ms=START, end_ms=START + 60 * HOUR_MS,
            settle_delay_ms=DELAY, known_by_ms=START + 300 * HOUR_MS,
        ).shares()  # fmt: skip
    assert shares["restated"] > 0.1
    assert shares["late"] > 0.1


def test_nothing_stored_and_nothing_wanted(store: Warehouse) -> None:
    with store.read() as con:
        asked = {"source": "archive", "settle_delay_ms": DELAY, "known_by_ms": START + 300 * HOUR_MS}
        assert settled_many(con, [], symbol="BTC", **asked) == {}
        empty = settled_many(con, [Stretch("price", HOUR, START, START + HOUR_MS)], symbol="DOGE", **asked)
    assert [len(values) for values in empty["price"].values()] == [0] * len(empty["price"])
