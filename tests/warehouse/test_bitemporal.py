"""The store keeps every version and never lets a decision see a later one."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlbot_core.clock import FixedClock
from mlbot_core.errors import BadDataError, VersionConflictError
from mlbot_core.market import GapRecord, SeriesBatch, make_table
from mlbot_core.timeframe import HOUR_MS, Timeframe
from mlbot_core.warehouse import Warehouse, append, as_of, latest, settled

HOURLY = Timeframe(60)
SCOPE = {"source": "test", "symbol": "BTC", "timeframe": HOURLY}
FOREVER = 2**61


def batch(
    rows: list[tuple[int, int, float]], live_since_ms: int | None = None, gaps: tuple[GapRecord, ...] = ()
) -> SeriesBatch:
    ts, observed, values = zip(*rows, strict=True) if rows else ((), (), ())
    table = make_table("price", list(ts), list(observed), {"volume_usd": list(values)})
    return SeriesBatch("price", "BTC", HOURLY, "test", table, gaps, live_since_ms=live_since_ms)


def put(warehouse: Warehouse, rows: list[tuple[int, int, float]], **kwargs: object) -> tuple[int, int, int]:
    with warehouse.write() as con:
        result = append(con, batch(rows, **kwargs), now_ms=0)  # type: ignore[arg-type]
    return result.inserted, result.restated, result.unchanged


def pairs(table: pa.Table) -> list[tuple[int, float]]:
    return list(zip(table.column("ts").to_pylist(), table.column("volume_usd").to_pylist(), strict=True))


def test_writing_the_same_values_again_adds_nothing_and_a_change_adds_a_version(warehouse: Warehouse) -> None:
    assert put(warehouse, [(0, 10 * HOUR_MS, 1.0), (HOUR_MS, 10 * HOUR_MS, 2.0)]) == (2, 0, 0)
    assert put(warehouse, [(0, 11 * HOUR_MS, 1.0), (HOUR_MS, 11 * HOUR_MS, 2.0)]) == (0, 0, 2)
    assert put(warehouse, [(0, 12 * HOUR_MS, 1.0), (HOUR_MS, 12 * HOUR_MS, 9.0)]) == (1, 1, 1)
    with warehouse.read() as con:
        stored = con.execute("SELECT ts, observed_at, volume_usd FROM price ORDER BY ALL").fetchall()
    assert stored == [(0, 10 * HOUR_MS, 1.0), (HOUR_MS, 10 * HOUR_MS, 2.0), (HOUR_MS, 12 * HOUR_MS, 9.0)]


def test_history_is_known_from_its_close_and_a_restatement_only_from_when_it_was_seen(warehouse: Warehouse) -> None:
    put(warehouse, [(0, 100 * HOUR_MS, 1.0)])
    put(warehouse, [(0, 200 * HOUR_MS, 5.0)])
    with warehouse.read() as con:
        known = con.execute("SELECT volume_usd, known_at, capture FROM price ORDER BY observed_at").fetchall()
        # a decision taken at the close must not know what was restated 199 hours later
        seen = settled(con, "price", **SCOPE, start_ms=0, end_ms=HOUR_MS, settle_delay_ms=0, known_by_ms=FOREVER)
        now = latest(con, "price", **SCOPE, start_ms=0, end_ms=HOUR_MS)
    assert known == [(1.0, HOUR_MS, "backfill"), (5.0, 200 * HOUR_MS, "backfill")]
    assert pairs(seen.table) == [(0, 1.0)]
    assert pairs(now) == [(0, 5.0)]
    assert seen.shares() == {"live": 0.0, "modelled": 1.0, "restated": 1.0, "late": 0.0}


def test_a_bar_watched_live_is_known_from_when_it_was_seen_and_is_late_if_that_was_after_its_decision(
    warehouse: Warehouse,
) -> None:
    put(warehouse, [(0, 3 * HOUR_MS, 1.0)], live_since_ms=0)
    with warehouse.read() as con:
        read = settled(con, "price", **SCOPE, start_ms=0, end_ms=1, settle_delay_ms=0, known_by_ms=FOREVER)
        early = settled(con, "price", **SCOPE, start_ms=0, end_ms=1, settle_delay_ms=0, known_by_ms=2 * HOUR_MS)
    assert read.table.column("late").to_pylist() == [True]
    assert read.table.column("known_at").to_pylist() == [3 * HOUR_MS]
    assert read.shares()["live"] == 1.0
    assert early.table.num_rows == 0


def test_a_snapshot_returns_the_same_rows_however_much_is_appended_later(warehouse: Warehouse) -> None:
    put(warehouse, [(0, 10 * HOUR_MS, 1.0)])
    put(warehouse, [(0, 20 * HOUR_MS, 2.0), (HOUR_MS, 20 * HOUR_MS, 3.0)])
    window = {**SCOPE, "start_ms": 0, "end_ms": 2 * HOUR_MS, "settle_delay_ms": 0, "known_by_ms": FOREVER}
    with warehouse.read() as con:
        assert pairs(settled(con, "price", **window, snapshot_ms=10 * HOUR_MS).table) == [(0, 1.0)]
        assert pairs(settled(con, "price", **window, snapshot_ms=20 * HOUR_MS).table) == [
            (0, 1.0),
            (HOUR_MS, 3.0),
        ]


def test_other_values_for_the_same_moment_or_from_the_past_are_refused_and_nothing_changes(
    warehouse: Warehouse,
) -> None:
    put(warehouse, [(0, 10 * HOUR_MS, 1.0)])
    with pytest.raises(VersionConflictError, match="bar 0 observed at"):
        put(warehouse, [(0, 10 * HOUR_MS, 2.0)])
    with pytest.raises(VersionConflictError, match="observations must arrive in order"):
        put(warehouse, [(HOUR_MS, 12 * HOUR_MS, 7.0), (0, 9 * HOUR_MS, 2.0)])
    with warehouse.read() as con:
        assert con.execute("SELECT ts, volume_usd FROM price").fetchall() == [(0, 1.0)]


def test_open_bars_and_duplicates_cannot_even_become_a_batch() -> None:
    with pytest.raises(BadDataError, match="still open"):
        batch([(0, HOUR_MS - 1, 1.0)])
    with pytest.raises(BadDataError, match="duplicated or out of order"):
        batch([(0, 2 * HOUR_MS, 1.0), (0, 2 * HOUR_MS, 1.0)])
    with pytest.raises(BadDataError, match="off the 1h grid"):
        batch([(7, 2 * HOUR_MS, 1.0)])


def test_a_gap_is_a_row_until_its_bars_arrive(warehouse: Warehouse) -> None:
    gap = GapRecord("price", "BTC", HOURLY, "test", HOUR_MS, 2 * HOUR_MS, "source returned nothing")
    put(warehouse, [(0, 10 * HOUR_MS, 1.0)], gaps=(gap,))
    put(warehouse, [(0, 11 * HOUR_MS, 1.0)], gaps=(gap,))
    with warehouse.read() as con:
        assert con.execute("SELECT from_ts, to_ts, filled_at FROM gaps").fetchall() == [(HOUR_MS, 2 * HOUR_MS, None)]
    put(warehouse, [(HOUR_MS, 12 * HOUR_MS, 1.0)])
    with warehouse.read() as con:
        assert con.execute("SELECT filled_at FROM gaps").fetchall() == [(None,)], "half a gap is still a gap"
    put(warehouse, [(2 * HOUR_MS, 13 * HOUR_MS, 1.0)])
    with warehouse.read() as con:
        assert con.execute("SELECT filled_at FROM gaps").fetchall() == [(0,)]


# invariant: for any stream of observations, as_of and settled equal the obvious search over all versions


@st.composite
def streams(draw: st.DrawFn) -> list[list[tuple[int, int, float]]]:
    pulls = draw(st.lists(st.integers(6, 60), min_size=1, max_size=5, unique=True))
    return [
        [
            (ts * HOUR_MS, hour * HOUR_MS, float(draw(st.integers(0, 2))))
            for ts in sorted(draw(st.sets(st.integers(0, 4), min_size=1)))
        ]
        for hour in sorted(pulls)
    ]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pulls=streams(),
    known_by=st.integers(0, 70),
    snapshot=st.integers(0, 70),
    live=st.integers(0, 70),
    delay=st.integers(0, 9),
)
def test_reads_equal_the_obvious_search(
    pulls: list[list[tuple[int, int, float]]],
    known_by: int,
    snapshot: int,
    live: int,
    delay: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder: Path = tmp_path_factory.mktemp("store")
    warehouse = Warehouse(folder / "s.duckdb", FixedClock(0))
    versions: dict[int, list[tuple[int, int, float]]] = {}
    for rows in pulls:
        put(warehouse, rows, live_since_ms=live * HOUR_MS)
        for ts, observed, value in rows:
            known = versions.setdefault(ts, [])
            if known and known[-1][2] == value:
                continue
            history_only = not known and ts + HOUR_MS < live * HOUR_MS
            known.append((observed, min(observed, ts + HOUR_MS) if history_only else observed, value))
    t, s, d = known_by * HOUR_MS, snapshot * HOUR_MS, delay * HOUR_MS
    visible = {ts: [v for v in vs if v[0] <= s and v[1] <= t] for ts, vs in sorted(versions.items())}
    expected_as_of = [(ts, vs[-1][2]) for ts, vs in visible.items() if vs]
    expected_settled = []
    for ts, vs in visible.items():
        in_time = [v for v in vs if v[1] <= ts + HOUR_MS + d]
        if vs:
            expected_settled.append((ts, (in_time[-1] if in_time else vs[0])[2]))
    window = {**SCOPE, "start_ms": 0, "end_ms": 10 * HOUR_MS, "known_by_ms": t, "snapshot_ms": s}
    with warehouse.read() as con:
        assert pairs(as_of(con, "price", **window)) == expected_as_of
        assert pairs(settled(con, "price", **window, settle_delay_ms=d).table) == expected_settled
