"""Locks, transactions, derived windows and verdict rows."""

from __future__ import annotations

import multiprocessing as mp
import os
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mlbot_core.clock import FixedClock, SystemClock
from mlbot_core.errors import LockTimeoutError, MissingDataError, QualityRefusedError, WarehouseError
from mlbot_core.warehouse import (
    Accepted,
    FileLock,
    PartitionKey,
    PartitionOutcome,
    Verdict,
    Warehouse,
    data_version,
    read_window,
    record_partition,
    replace_window,
    require,
    verdicts,
)


def numbers(*ts: int) -> pa.Table:
    return pa.table({"ts": pa.array(ts, pa.int64()), "x": pa.array([float(t) for t in ts])})


def test_an_exception_rolls_the_whole_transaction_back_and_frees_the_store(warehouse: Warehouse) -> None:
    with warehouse.write() as con:
        replace_window(con, "w", {"source": "a"}, numbers(1, 2))

    def fail_midway() -> None:
        with warehouse.write() as con:
            replace_window(con, "w", {"source": "a"}, numbers(9))
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_midway()
    with warehouse.read() as con:
        assert read_window(con, "w", {"source": "a"}).column("ts").to_pylist() == [1, 2]


def test_a_window_is_replaced_whole_and_its_neighbours_stay(warehouse: Warehouse) -> None:
    with warehouse.write() as con:
        replace_window(con, "w", {"source": "a"}, numbers(1, 2, 3, 4))
        replace_window(con, "w", {"source": "b"}, numbers(2, 3))
        replace_window(con, "w", {"source": "a"}, numbers(3), start_ms=2, end_ms=4)
    with warehouse.read() as con:
        assert read_window(con, "w", {"source": "a"}).column("ts").to_pylist() == [1, 3, 4]
        assert read_window(con, "w", {"source": "b"}, start_ms=3).column("ts").to_pylist() == [3]


def test_a_new_column_is_added_and_old_rows_have_none(warehouse: Warehouse) -> None:
    with warehouse.write() as con:
        replace_window(con, "w", {"source": "a"}, numbers(1))
        wider = numbers(2).append_column("y", pa.array([5.0]))
        replace_window(con, "w", {"source": "a"}, wider, start_ms=2, end_ms=3)
        assert read_window(con, "w", {"source": "a"}).column("y").to_pylist() == [None, 5.0]
        assert read_window(con, "w", {"source": "a"}, columns=("y",)).to_pydict() == {"y": [None, 5.0]}


def test_rows_outside_the_window_and_odd_names_are_refused(warehouse: Warehouse) -> None:
    with warehouse.write() as con:
        with pytest.raises(WarehouseError, match="reach outside"):
            replace_window(con, "w", {"source": "a"}, numbers(1, 5), start_ms=0, end_ms=5)
        with pytest.raises(WarehouseError, match="not a plain lower-case identifier"):
            replace_window(con, "w; drop table gaps", {"source": "a"}, numbers(1))
        with pytest.raises(MissingDataError, match="no table never_made yet"):
            read_window(con, "never_made", {})


def test_a_stuck_holder_gives_a_bounded_wait_and_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(path).exclusive():
            held.set()
            release.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(5)
    started = time.monotonic()
    with pytest.raises(LockTimeoutError, match=r"more than 0\.3 s"), FileLock(path, timeout_s=0.3).shared():
        pass
    assert time.monotonic() - started < 5
    release.set()
    holder.join()
    # the waiter that gave up must not keep what it got afterwards
    with FileLock(path, timeout_s=5).exclusive():
        pass


def test_readers_share_and_a_waiting_writer_goes_before_new_readers(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    order: list[str] = []
    inside = threading.Barrier(3)
    leave = threading.Event()

    def first_reader() -> None:
        with FileLock(path).shared():
            inside.wait(5)
            leave.wait(5)

    def writer() -> None:
        with FileLock(path).exclusive():
            order.append("writer")

    def late_reader() -> None:
        with FileLock(path).shared():
            order.append("reader")

    readers = [threading.Thread(target=first_reader) for _ in range(2)]
    for thread in readers:
        thread.start()
    inside.wait(5)  # both readers are in at once
    waiting_writer = threading.Thread(target=writer)
    waiting_writer.start()
    time.sleep(0.3)
    late = threading.Thread(target=late_reader)
    late.start()
    time.sleep(0.3)
    assert order == []
    leave.set()
    for thread in (*readers, waiting_writer, late):
        thread.join(10)
    assert order == ["writer", "reader"]


def _append_rows(path: str, index: int, count: int) -> None:
    warehouse = Warehouse(Path(path), SystemClock())
    for i in range(count):
        with warehouse.write() as con:
            replace_window(con, "w", {"source": f"s{index}"}, numbers(i), start_ms=i, end_ms=i + 1)


def test_processes_writing_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    context = mp.get_context("spawn")
    processes = [context.Process(target=_append_rows, args=(str(path), i, 15)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [p.exitcode for p in processes] == [0] * 4
    with Warehouse(path, SystemClock()).read() as con:
        rows = con.execute("SELECT source, count(*) FROM w GROUP BY 1 ORDER BY 1").fetchall()
    assert rows == [(f"s{i}", 15) for i in range(4)]


def _write_for_ever(path: str) -> None:
    warehouse = Warehouse(Path(path), SystemClock())
    i = 0
    while True:
        i += 1
        table = pa.table({"ts": np.arange(2000), "generation": np.full(2000, i)})
        with warehouse.write() as con:
            replace_window(con, "w", {"source": "a"}, table)


def test_a_killed_writer_leaves_a_whole_window_and_a_free_store(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    context = mp.get_context("spawn")
    rng = np.random.default_rng(5)
    warehouse = Warehouse(path, SystemClock(), timeout_s=20)
    for _ in range(5):
        process = context.Process(target=_write_for_ever, args=(str(path),))
        process.start()
        time.sleep(1.2 + rng.uniform(0, 0.5))
        assert process.pid is not None
        os.kill(process.pid, 9)
        process.join(10)
        with warehouse.read() as con:
            if con.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'w'").fetchone():
                rows, generations = con.execute("SELECT count(*), count(DISTINCT generation) FROM w").fetchone()
                assert (rows, generations) in {(2000, 1), (0, 0)}
        with warehouse.write() as con:
            replace_window(con, "still_writable", {"source": "a"}, numbers(1))


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    path.write_bytes(b"not a database, surely" * 1000)
    with pytest.raises(WarehouseError, match="restore it from a backup"), Warehouse(path, FixedClock(0)).read():
        pass
    assert path.read_bytes().startswith(b"not a database"), "what was there stays untouched"


def test_a_store_of_another_schema_is_refused(warehouse: Warehouse) -> None:
    with warehouse.write() as con:
        con.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(WarehouseError, match="schema version 99"), Warehouse(warehouse.path, FixedClock(0)).read():
        pass


KEY = PartitionKey("price", "archive", "BTC-1h|2024-01-01")


def record(warehouse: Warehouse, version: str, passed: bool | None, key: PartitionKey = KEY) -> None:
    checks = [] if passed is None else [Verdict("gaps", passed, {"missing": 3})]
    with warehouse.write() as con:
        outcome = PartitionOutcome(key, 1, version, tuple(checks), {"timeframe": "1h"})
        record_partition(con, outcome, now_ms=0, run_id="r")


def test_consumers_refuse_what_failed_was_unchecked_or_is_missing(warehouse: Warehouse) -> None:
    args = ("price", "archive", [KEY.partition], ["gaps"])
    with warehouse.read() as con, pytest.raises(MissingDataError, match="no data for BTC-1h"):
        require(con, *args)
    record(warehouse, "v1", True)
    with warehouse.read() as con:
        assert require(con, *args) == {KEY.partition: Accepted("v1", 1, {"timeframe": "1h"})}
    record(warehouse, "v2", None)
    with warehouse.read() as con, pytest.raises(QualityRefusedError, match="never run on version v2"):
        require(con, *args)
    record(warehouse, "v2", False)
    with warehouse.read() as con, pytest.raises(QualityRefusedError, match=r'gaps failed .*"missing": 3'):
        require(con, *args)
    record(warehouse, "v2", True)
    with warehouse.read() as con:
        assert require(con, *args)[KEY.partition].version == "v2"
        assert verdicts(con, KEY) == ("v2", {"gaps": Verdict("gaps", True, {"missing": 3})})


def test_a_data_version_depends_on_content_alone() -> None:
    table = pa.table({"ts": [1, 2], "x": [1.0, None], "s": ["a", "b"], "b": [True, None]})
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert data_version(table) == data_version(chunked)
    for other in (
        pa.table({"ts": [1, 2], "x": [1.0, 0.0], "s": ["a", "b"], "b": [True, None]}),
        pa.table({"ts": [2, 1], "x": [1.0, None], "s": ["a", "b"], "b": [True, None]}),
        pa.table({"ts": [1, 2], "y": [1.0, None], "s": ["a", "b"], "b": [True, None]}),
        pa.table({"ts": [1, 2], "x": [1.0, None], "s": ["a", "c"], "b": [True, None]}),
        pa.table({"ts": [1, 2], "x": [1.0, None], "s": ["a", "b"], "b": [True, False]}),
    ):
        assert data_version(other) != data_version(table)
