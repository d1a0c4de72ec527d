"""Backup, compaction, checks, snapshots, migration: content survives, damage is named, a kill leaves a whole file."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.errors import QualityRefusedError, UsageError, VersionConflictError, WarehouseError
from mlbot_core.timeframe import HOUR_MS, Month
from mlbot_core.warehouse import Warehouse, replace_window, require
from mlbot_core.warehouse.backup import export_store, import_store
from mlbot_core.warehouse.compact import compact
from mlbot_core.warehouse.content import table_content
from mlbot_core.warehouse.ingest import RAW_CHECKS, ingest
from mlbot_core.warehouse.inputs import Window, read_inputs
from mlbot_core.warehouse.integrity import check_store
from mlbot_core.warehouse.migrations import backup_path
from mlbot_core.warehouse.rebuild import contents
from mlbot_core.warehouse.refresh import refresh
from mlbot_core.warehouse.schema import SCHEMA_VERSION
from mlbot_core.warehouse.snapshots import changed_since, create_snapshot, snapshot

# The statements that made a store of schema version 1, as they were.
V1_DDL = """
CREATE TABLE schema_version (version INTEGER NOT NULL, created_at BIGINT NOT NULL);
CREATE TABLE gaps (
    series VARCHAR NOT NULL, symbol VARCHAR NOT NULL, timeframe VARCHAR NOT NULL, source VARCHAR NOT NULL,
    from_ts BIGINT NOT NULL, to_ts BIGINT NOT NULL, cause VARCHAR NOT NULL,
    found_at BIGINT NOT NULL, filled_at BIGINT
);
CREATE TABLE partitions (
    asset VARCHAR NOT NULL, source VARCHAR NOT NULL, partition VARCHAR NOT NULL,
    data_version VARCHAR NOT NULL, rows BIGINT NOT NULL, info VARCHAR NOT NULL,
    written_at BIGINT NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE quality (
    asset VARCHAR NOT NULL, source VARCHAR NOT NULL, partition VARCHAR NOT NULL, check_name VARCHAR NOT NULL,
    data_version VARCHAR NOT NULL, passed BOOLEAN NOT NULL, detail VARCHAR NOT NULL,
    checked_at BIGINT NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE price (symbol VARCHAR NOT NULL, source VARCHAR NOT NULL, timeframe VARCHAR NOT NULL, ts BIGINT NOT NULL,
    observed_at BIGINT NOT NULL, known_at BIGINT NOT NULL, capture VARCHAR NOT NULL,
    open DOUBLE, high DOUBLE, low DOUBLE, close DOUBLE, volume_usd DOUBLE, volume_btc DOUBLE);
CREATE TABLE open_interest (symbol VARCHAR NOT NULL, source VARCHAR NOT NULL, timeframe VARCHAR NOT NULL,
    ts BIGINT NOT NULL, observed_at BIGINT NOT NULL, known_at BIGINT NOT NULL, capture VARCHAR NOT NULL,
    open DOUBLE, high DOUBLE, low DOUBLE, close DOUBLE);
CREATE TABLE funding_rate (symbol VARCHAR NOT NULL, source VARCHAR NOT NULL, timeframe VARCHAR NOT NULL,
    ts BIGINT NOT NULL, observed_at BIGINT NOT NULL, known_at BIGINT NOT NULL, capture VARCHAR NOT NULL,
    open DOUBLE, high DOUBLE, low DOUBLE, close DOUBLE);
CREATE TABLE long_short_ratio (symbol VARCHAR NOT NULL, source VARCHAR NOT NULL, timeframe VARCHAR NOT NULL,
    ts BIGINT NOT NULL, observed_at BIGINT NOT NULL, known_at BIGINT NOT NULL, capture VARCHAR NOT NULL,
    long_share DOUBLE, short_share DOUBLE);
CREATE TABLE liquidations (symbol VARCHAR NOT NULL, source VARCHAR NOT NULL, timeframe VARCHAR NOT NULL,
    ts BIGINT NOT NULL, observed_at BIGINT NOT NULL, known_at BIGINT NOT NULL, capture VARCHAR NOT NULL,
    long_usd DOUBLE, short_usd DOUBLE);
CREATE TABLE taker_volume (symbol VARCHAR NOT NULL, source VARCHAR NOT NULL, timeframe VARCHAR NOT NULL,
    ts BIGINT NOT NULL, observed_at BIGINT NOT NULL, known_at BIGINT NOT NULL, capture VARCHAR NOT NULL,
    buy_usd DOUBLE, sell_usd DOUBLE);
CREATE TABLE funding_settled (symbol VARCHAR NOT NULL, source VARCHAR NOT NULL, timeframe VARCHAR NOT NULL,
    ts BIGINT NOT NULL, observed_at BIGINT NOT NULL, known_at BIGINT NOT NULL, capture VARCHAR NOT NULL, rate DOUBLE);
CREATE TABLE features_core (source VARCHAR, symbol VARCHAR, ts BIGINT, x DOUBLE);
INSERT INTO schema_version VALUES (1, 17);
INSERT INTO price SELECT 'BTC', 'archive', '1h', i * 3600000, i * 3600000 + 9000000, i * 3600000 + 3600000, 'backfill',
    10 + i, 12 + i, 9 + i, 11 + i, 100 * i, i FROM range(500) t(i);
INSERT INTO funding_settled SELECT 'BTC', 'archive', '8h', i * 28800000, i * 28800000 + 90000000,
    i * 28800000 + 28800000, 'backfill', 0.0001 FROM range(60) t(i);
INSERT INTO partitions VALUES ('price', 'archive', 'BTC-1h|1970-01-01', 'abc', 500, '{"timeframe": "1h"}', 5, 'r');
INSERT INTO quality VALUES ('price', 'archive', 'BTC-1h|1970-01-01', 'gaps', 'abc', true, '{}', 5, 'r');
INSERT INTO features_core VALUES ('archive', 'BTC', 0, 1.5);
"""


@pytest.fixture(scope="module")
def filled_file(tmp_path_factory, tools) -> Path:
    """A store with two checked months, a restatement, a gap, a watch, a derived table and a snapshot."""
    path = tmp_path_factory.mktemp("filled") / "test.duckdb"
    clock = FixedClock(parse_utc_ms("2025-01-01T00:00:00Z"))
    store, feed = Warehouse(path, clock), tools.Feed(clock)
    feed.holes = {parse_utc_ms("2024-03-10")}
    ingest(store, feed, clock, tools.ask("2024-03", "2024-04"))
    feed.changed[parse_utc_ms("2024-03-11")] = 50_123.0
    clock.set_ms(clock.now_ms() + HOUR_MS)
    ingest(store, feed, clock, tools.ask("2024-03"))
    refresh(store, feed, clock, tools.ask(series="open_interest"))
    with store.write() as con:
        table = pa.table({"ts": [1, 2], "x": [0.5, None], "ok": [True, None]})
        replace_window(con, "derived", {"source": "feed"}, table)
    create_snapshot(store, "first")
    store.close()
    return path


@pytest.fixture
def filled(filled_file, warehouse, clock, feed):
    """A copy of that store, an hour later; the feed is what it was."""
    warehouse.path.parent.mkdir(parents=True)
    shutil.copyfile(filled_file, warehouse.path)
    clock.set_ms(clock.now_ms() + HOUR_MS)
    feed.holes = {parse_utc_ms("2024-03-10")}
    feed.changed[parse_utc_ms("2024-03-11")] = 50_123.0
    return warehouse


def test_the_hash_of_a_table_depends_on_its_rows_and_not_on_their_order(warehouse):
    with warehouse.write() as con:
        con.execute("CREATE TABLE a (k VARCHAR, x DOUBLE, n BIGINT, b BOOLEAN, v BLOB)")
        con.execute(
            "INSERT INTO a VALUES ('p', 1.5, 1, true, '\\xFF\\x00'), ('q', NULL, 2, NULL, NULL), "
            "('p', 'nan', 3, false, '')"
        )
        con.execute("CREATE TABLE b AS FROM a ORDER BY n DESC")
        con.execute("ALTER TABLE b ADD COLUMN later DOUBLE")
        one = table_content(con, "a")
        assert table_content(con, "b") == one, "neither order nor an empty column counts"
        for change in (
            "x = 1.25 WHERE n = 1",
            "k = 'r' WHERE n = 2",
            "x = 0 WHERE n = 2",
            "b = true WHERE n = 3",
            r"v = '\xFF\x01' WHERE n = 1",
            "v = '' WHERE n = 2",
        ):
            con.execute("CREATE OR REPLACE TABLE c AS FROM a")
            con.execute(f"UPDATE c SET {change}")
            assert table_content(con, "c").hash != one.hash, change
        con.execute("INSERT INTO b SELECT * FROM b WHERE n = 2")
        assert table_content(con, "b").rows == 4
        assert table_content(con, "b").hash != one.hash


def test_an_export_comes_back_the_same_in_an_empty_home(filled, tmp_path, clock):
    made = export_store(filled, tmp_path / "backup")
    assert (made.folder / "manifest.json").exists()
    home = Warehouse(tmp_path / "other" / "home.duckdb", clock)
    done = import_store(home, tmp_path / "backup")
    assert not done.merged
    assert contents(home.path) == contents(filled.path)
    with filled.read() as one, home.read() as two:
        for table in ("partitions", "quality", "derived"):
            assert one.execute(f"FROM {table}").fetchall() == two.execute(f"FROM {table}").fetchall(), "order is kept"
    assert [rule for rule in check_store(home) if not rule.passed] == []
    again = import_store(home, tmp_path / "backup")
    assert (again.merged, again.added, again.kept, again.unchecked) == (True, {}, (), ())
    with pytest.raises(WarehouseError, match="not empty"):
        export_store(filled, tmp_path / "backup")


def test_two_homes_merge_and_a_mixed_month_waits_for_its_checks(filled, tmp_path, clock, feed, tools):
    export_store(filled, tmp_path / "backup")
    home = Warehouse(tmp_path / "other.duckdb", clock)
    feed.holes = {parse_utc_ms("2024-04-05")}
    clock.set_ms(clock.now_ms() + HOUR_MS)
    ingest(home, feed, clock, tools.ask("2024-04", "2024-05"))
    with home.write() as con:
        replace_window(con, "derived", {"source": "feed"}, pa.table({"ts": [9], "x": [1.0], "ok": [True]}))
    done = import_store(home, tmp_path / "backup")
    assert done.merged
    assert done.kept == ("derived",)
    # April here lacked a bar that the backup has, and differs in when it was observed: it is neither of the two
    assert done.unchecked == ("price|feed|BTC-1h|2024-04-01",)
    with home.read() as con:
        require(con, "price", "feed", ["BTC-1h|2024-03-01", "BTC-1h|2024-05-01"], RAW_CHECKS)
        with pytest.raises(QualityRefusedError, match="never run"):
            require(con, "price", "feed", ["BTC-1h|2024-04-01"], RAW_CHECKS)
    clock.set_ms(clock.now_ms() + HOUR_MS)
    assert import_store(home, tmp_path / "backup").added == {}


def test_a_backup_with_other_values_for_the_same_version_is_refused(filled, tmp_path, clock):
    export_store(filled, tmp_path / "backup")
    with filled.write() as con:
        con.execute("UPDATE price SET close = close + 1 WHERE ts = ?", [parse_utc_ms("2024-03-20")])
    before = contents(filled.path)
    with pytest.raises(VersionConflictError, match="different versions of bar"):
        import_store(filled, tmp_path / "backup")
    assert contents(filled.path) == before


def test_damage_in_an_export_is_named(filled, tmp_path, clock):
    export_store(filled, tmp_path / "backup")
    home = Warehouse(tmp_path / "home.duckdb", clock)
    file = tmp_path / "backup" / "price.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(WarehouseError, match=r"price\.parquet is not what was exported"):
        import_store(home, tmp_path / "backup")
    file.unlink()
    with pytest.raises(WarehouseError, match="lacks the file of table price"):
        import_store(home, tmp_path / "backup")
    file.write_bytes(whole)
    manifest = tmp_path / "backup" / "manifest.json"
    text = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**text, "schema_version": 99}))
    with pytest.raises(WarehouseError, match="newer program"):
        import_store(home, tmp_path / "backup")
    manifest.unlink()
    with pytest.raises(WarehouseError, match=r"has no manifest\.json"):
        import_store(home, tmp_path / "backup")
    assert not home.path.exists()


def test_compaction_keeps_every_row_and_gives_space_back(warehouse, clock, feed, tools):
    ingest(warehouse, feed, clock, tools.ask("2024-03"))
    rng = np.random.default_rng(3)
    for _ in range(3):
        table = pa.table({"ts": np.arange(300_000), "x": rng.random(300_000)})
        with warehouse.write() as con:
            replace_window(con, "derived", {"source": "feed"}, table)
    with warehouse.write() as con:
        replace_window(con, "derived", {"source": "feed"}, table.slice(0, 10))
    before = contents(warehouse.path)
    done = compact(warehouse)
    assert contents(warehouse.path) == before
    assert done.after < done.before / 2
    assert [p.name for p in warehouse.path.parent.iterdir() if "compact" in p.name] == []
    assert ingest(warehouse, feed, clock, tools.ask("2024-03"))[0].passed, "it is a store like before"


def test_compaction_gives_up_when_others_keep_writing_and_loses_nothing_of_theirs(filled, monkeypatch):
    from mlbot_core.warehouse import compact as room

    plain = room._rewrite
    written = []

    def interrupted(copy, new):
        plain(copy, new)
        with filled.write() as con:
            written.append(len(written))
            replace_window(con, "busy", {"source": "a"}, pa.table({"ts": written}))

    monkeypatch.setattr(room, "_rewrite", interrupted)
    with pytest.raises(WarehouseError, match="written to while its successor"):
        compact(filled)
    with filled.read() as con:
        assert con.execute("SELECT count(*) FROM busy").fetchone() == (3,)


@pytest.mark.slow
@pytest.mark.parametrize("work", ["compact", "import"])
def test_a_kill_at_any_moment_leaves_a_whole_store(filled, tmp_path, work):
    """Killed with SIGKILL after ever longer times, until the work gets to its end."""
    export_store(filled, tmp_path / "backup")
    target = filled if work == "compact" else Warehouse(tmp_path / "home.duckdb", filled.clock)
    old = contents(filled.path)
    empty = {}
    wait, finished, kills = 0.02, False, 0
    while not finished:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child = Warehouse(target.path, filled.clock)
                compact(child) if work == "compact" else import_store(child, tmp_path / "backup")
                code = 0
            finally:
                os._exit(code)
        time.sleep(wait)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done == 0:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            kills += 1
        else:
            assert os.waitstatus_to_exitcode(status) == 0
            finished = True
        if target.path.exists():
            with Warehouse(target.path, filled.clock).read() as con:
                con.execute("SELECT count(*) FROM price").fetchone()
            found = contents(target.path)
            found.pop("schema_version")
            rows = {name: content for name, content in found.items() if content.rows}
            assert rows in ({n: c for n, c in old.items() if c.rows and n != "schema_version"}, empty)
        wait = wait * 1.6 + 0.03
    assert kills >= 3
    compact(target)
    leftovers = [p.name for p in target.path.parent.iterdir() if work in p.name]
    assert leftovers == [] or all(name == "backup" for name in leftovers)


def test_a_copy_is_whole_although_others_write(warehouse, tmp_path):
    stop = threading.Event()

    def write():
        writer, i = Warehouse(warehouse.path, warehouse.clock), 0
        while not stop.is_set():
            i += 1
            table = pa.table({"ts": list(range(3000)), "generation": [i] * 3000})
            with writer.write() as con:
                replace_window(con, "w", {"source": "a"}, table)
        writer.close()

    with warehouse.write() as con:
        replace_window(con, "w", {"source": "a"}, pa.table({"ts": list(range(3000)), "generation": [0] * 3000}))
    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(6):
            copied = warehouse.copy_to(tmp_path / f"copy{number}.duckdb")
            assert copied.held_s < 1
            with duckdb.connect(str(tmp_path / f"copy{number}.duckdb"), read_only=True) as con:
                assert con.execute("SELECT count(*), count(DISTINCT generation) FROM w").fetchone() == (3000, 1)
    finally:
        stop.set()
        thread.join(20)


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        ("INSERT INTO price SELECT * FROM price LIMIT 1", "no version is stored twice"),
        ("UPDATE price SET observed_at = ts WHERE ts = 1710460800000", "no bar was observed before its close"),
        ("UPDATE price SET known_at = ts WHERE ts = 1710460800000", "known_at lies between close and observation"),
        ("UPDATE price SET close = 1 WHERE ts = 1710460800000", "each raw month holds what was judged"),
        ("DELETE FROM price WHERE ts = 1710460800000", "named snapshots hold what they held"),
        ("UPDATE price SET ts = ts + 1 WHERE ts = 1710460800000", "bars lie on the grid of their timeframe"),
        ("UPDATE gaps SET filled_at = 5", "gaps are open exactly while bars are missing"),
        ("UPDATE quality SET data_version = 'x' WHERE check_name = 'gaps'", "each verdict is about a partition that"),
        (
            "INSERT INTO price SELECT symbol, source, timeframe, ts, observed_at + 1, observed_at + 1, capture, open, "
            "high, low, close, volume_usd, volume_coin FROM price WHERE ts = 1710460800000",
            "no version repeats the one before it",
        ),
        (
            "UPDATE price SET known_at = observed_at - 1 WHERE close = 50123",
            "later and live versions are known from when they were seen",
        ),
    ],
)
def test_the_check_finds_what_must_not_be(filled, damage, rule):
    assert all(found.passed for found in check_store(filled))
    with filled.write() as con:
        con.execute(damage)
    broken = [found.rule for found in check_store(filled) if not found.passed]
    assert any(name.startswith(rule) for name in broken), broken


def test_a_named_snapshot_holds_reads_to_what_was_observed_by_then(filled, clock, feed, tools):
    with filled.read() as con:
        first = snapshot(con, "first")
        assert changed_since(con, first) == {}
    window = Window("feed", tools.MARKET, (Month.parse("2024-03"),), tools.DELAY_MS, series=("price",))
    before = read_inputs(filled, window, known_by_ms=first.snapshot_ms).settled["price"].table
    clock.set_ms(clock.now_ms() + HOUR_MS)
    feed.holes = set()
    ingest(filled, feed, clock, tools.ask("2024-03"))
    with filled.read() as con:
        assert changed_since(con, first) == {}, "what came later is not covered"
    held = read_inputs(filled, window, known_by_ms=clock.now_ms(), snapshot_ms=first.snapshot_ms)
    assert held.snapshot_ms == first.snapshot_ms
    assert held.settled["price"].table.equals(before)
    assert read_inputs(filled, window, known_by_ms=clock.now_ms()).settled["price"].table.num_rows == 744
    with filled.write() as con:
        con.execute("DELETE FROM price WHERE ts = ?", [parse_utc_ms("2024-03-20")])
    with filled.read() as con:
        assert changed_since(con, first) == {"price": (first.covers["price"].rows, first.covers["price"].rows - 1)}
    with pytest.raises(UsageError, match="already"):
        create_snapshot(filled, "first")
    with pytest.raises(UsageError, match="in the future"):
        create_snapshot(filled, "second", clock.now_ms() + 1)
    with filled.read() as con, pytest.raises(UsageError, match="stored are: first"):
        snapshot(con, "none")


# ---- migration


def version_1(path: Path) -> None:
    with duckdb.connect(str(path)) as con:
        con.execute(V1_DDL)


def test_a_store_of_version_1_is_brought_forward_with_everything_in_it(tmp_path):
    path = tmp_path / "old.duckdb"
    version_1(path)
    old_file = path.read_bytes()
    with duckdb.connect(str(path), read_only=True) as con:
        old = {
            table: con.execute(f"FROM {table} ORDER BY ALL").fetchall()
            for table in ("price", "funding_settled", "partitions", "quality", "features_core")
        }
    store = Warehouse(path, FixedClock(99))
    with store.read() as con:
        for table, rows in old.items():
            assert con.execute(f"FROM {table} ORDER BY ALL").fetchall() == rows
        names = [row[0] for row in con.execute("DESCRIBE price").fetchall()]
        assert names[-1] == "volume_coin"
        assert con.execute("SELECT sum(volume_coin) FROM price").fetchone() == (sum(range(500)),)
        assert con.execute("FROM schema_version ORDER BY 1").fetchall() == [(1, 17), (SCHEMA_VERSION, 99)]
        assert con.execute("SELECT count(*) FROM snapshots").fetchone() == (0,)
        assert con.execute("SELECT count(*) FROM spot_price").fetchone() == (0,), "new series have their tables"
    assert backup_path(path, 1).read_bytes() == old_file
    current = path.read_bytes()
    with Warehouse(path, FixedClock(100)).read():
        pass
    assert path.read_bytes() == current, "a second opening changes nothing"


@pytest.mark.slow
def test_a_kill_during_migration_leaves_the_old_or_the_new_store(tmp_path):
    for number in range(6):
        path = tmp_path / f"old{number}.duckdb"
        version_1(path)
        pid = os.fork()
        if pid == 0:
            try:
                with Warehouse(path, FixedClock(99)).read():
                    pass
            finally:
                os._exit(0)
        time.sleep(0.01 + 0.03 * number)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        with Warehouse(path, FixedClock(100)).read() as con:
            assert con.execute("SELECT count(*), sum(volume_coin) FROM price").fetchone() == (500, sum(range(500)))


def test_an_export_of_version_1_is_loaded_and_brought_forward(tmp_path, clock):
    """The manifest and files are what a program of version 1 would have written."""
    import hashlib

    path, folder = tmp_path / "old.duckdb", tmp_path / "backup"
    version_1(path)
    folder.mkdir()
    tables = {}
    with duckdb.connect(str(path)) as con:
        for (table,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall():
            con.execute(f"COPY {table} TO '{folder / table}.parquet' (FORMAT parquet)")
            content = table_content(con, table)
            described = con.execute(
                "SELECT column_name, data_type, is_nullable FROM duckdb_columns() WHERE table_name = ? "
                "ORDER BY column_index",
                [table],
            ).fetchall()
            digest = hashlib.sha256((folder / f"{table}.parquet").read_bytes()).hexdigest()
            tables[table] = {
                "file": f"{table}.parquet", "rows": content.rows, "content_hash": content.hash, "sha256": digest,
                "columns": [list(row) for row in described],
            }  # fmt: skip
    manifest = {"format": 1, "schema_version": 1, "tables": tables}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    home = Warehouse(tmp_path / "home.duckdb", clock)
    import_store(home, folder)
    with home.read() as con:
        assert con.execute("SELECT sum(volume_coin) FROM price").fetchone() == (sum(range(500)),)


def test_a_store_of_a_newer_program_is_refused_and_untouched(tmp_path):
    path = tmp_path / "new.duckdb"
    with Warehouse(path, FixedClock(1)).write() as con:
        con.execute("INSERT INTO schema_version VALUES (99, 5)")
    before = path.read_bytes()
    with (
        pytest.raises(WarehouseError, match="schema version 99, this program knows up to"),
        Warehouse(path, FixedClock(2)).read(),
    ):
        pass
    assert path.read_bytes() == before
