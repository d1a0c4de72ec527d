"""A backup is whole, checked, without keys, and made while everybody goes on writing."""

from __future__ import annotations

import os
import sqlite3
import threading
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config import Settings, load_settings
from mlbot_core.errors import UsageError
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_states import BAR, DecisionRecord
from mlbot_core.live.backups import BackupError, back_up
from mlbot_core.timeframe import DAY_MS, HOUR_MS
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.backup import import_store

NOW = parse_utc_ms("2024-05-01T03:00:00Z")
VERSION = "ab" * 32


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home = tmp_path / "home"
    settings = load_settings({"MLBOT_HOME": str(home)})
    with Warehouse(settings.warehouse_path, FixedClock(NOW)).write() as con:
        con.execute("CREATE TABLE notes (ts BIGINT, value DOUBLE)")
        con.register("made", pa.table({"ts": [1, 2, 3], "value": [0.5, 1.5, 2.5]}))
        con.execute("INSERT INTO notes SELECT * FROM made")
    (settings.models_dir / VERSION).mkdir(parents=True)
    (settings.models_dir / VERSION / "model.txt").write_text("trees")
    (settings.models_dir / "folds").mkdir()
    (home / "registry.key").write_text("secret-of-this-home")
    (home / "trials-heads").mkdir()
    (home / "trials-heads" / "one").write_text("head")
    return settings


def decide(book: ExecutionLedger, bar: int) -> None:
    ts = bar * 2 * HOUR_MS
    book.record_decision(DecisionRecord(f"d{bar}", "ml", "BTCUSDT", BAR, "2h", ts, ts, Decimal("0.1")))


def test_a_backup_holds_everything_but_keys_and_can_be_loaded(settings: Settings, tmp_path: Path) -> None:
    with ExecutionLedger(settings.home, FixedClock(NOW), "test:1") as book:
        for bar in range(5):
            decide(book, bar)
    made = back_up(settings, FixedClock(NOW), environ={})
    assert made.folder == settings.home / "backups" / "2024-05-01"
    assert made.books["execution.sqlite"] == 5
    assert made.models == 1
    assert (made.folder / "models" / VERSION / "model.txt").read_text() == "trees"
    assert (made.folder / "trials-heads" / "one").read_text() == "head"
    everything = b"".join(path.read_bytes() for path in made.folder.rglob("*") if path.is_file())
    assert b"secret-of-this-home" not in everything
    other = Warehouse(tmp_path / "other.duckdb", FixedClock(NOW))
    assert import_store(other, made.folder / "warehouse").added["notes"] == 3
    loaded = load_settings({"MLBOT_HOME": str(tmp_path / "again")})
    loaded.home.mkdir()
    (loaded.home / "execution.sqlite").write_bytes((made.folder / "execution.sqlite").read_bytes())
    with ExecutionLedger(loaded.home, FixedClock(NOW), "test:1") as book:
        assert book.newest_decision("BTCUSDT").decision_id == "d4"


def test_it_is_made_while_others_write(settings: Settings) -> None:
    done = threading.Event()
    written: list[int] = []

    def write() -> None:
        with ExecutionLedger(settings.home, FixedClock(NOW), "test:1") as book:
            bar = 0
            while not done.is_set():
                decide(book, bar)
                written.append(bar)
                bar += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(written) < 20:
            done.wait(0.01)
        before = len(written)
        made = back_up(settings, FixedClock(NOW), environ={})
    finally:
        done.set()
        writer.join()
    assert before <= made.books["execution.sqlite"] <= len(written) + 1


def test_the_newest_are_kept_and_a_day_has_one(settings: Settings) -> None:
    for day in range(4):
        made = back_up(settings, FixedClock(NOW + day * DAY_MS), environ={}, kept=2)
    again = back_up(settings, FixedClock(NOW + 3 * DAY_MS), environ={}, kept=2)
    assert made.removed == ("2024-05-02",)
    assert again.removed == ()
    assert sorted(path.name for path in (settings.home / "backups").iterdir()) == ["2024-05-03", "2024-05-04"]
    with pytest.raises(UsageError, match="at least the newest"):
        back_up(settings, FixedClock(NOW), environ={}, kept=0)


def test_a_damaged_book_is_told_and_nothing_is_removed(settings: Settings) -> None:
    back_up(settings, FixedClock(NOW), environ={})
    with ExecutionLedger(settings.home, FixedClock(NOW), "test:1") as book:
        for bar in range(400):
            decide(book, bar)
    path = settings.home / "execution.sqlite"
    with sqlite3.connect(path) as con:
        con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(8192))
    with pytest.raises(BackupError, match=r"execution.sqlite.* check the disk"):
        back_up(settings, FixedClock(NOW + DAY_MS), environ={}, kept=1)
    assert (settings.home / "backups" / "2024-05-01" / "backup.json").exists()
    assert not (settings.home / "backups" / "2024-05-02").exists()


def test_postgres_is_named_as_left_out(settings: Settings) -> None:
    made = back_up(settings, FixedClock(NOW), environ={"MLBOT_PG_URL": "postgresql://nobody@127.0.0.1:1/x"})
    assert any("pg_dump" in text for text in made.elsewhere)
