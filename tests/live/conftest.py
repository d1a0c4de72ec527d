"""Homes in temporary folders, with real launching processes, real stores and a real emulator."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlbot_core.clock import FixedClock, SystemClock, parse_utc_ms
from mlbot_core.emulator.server import EmulatorServer
from mlbot_core.market import CORE_SERIES
from mlbot_core.timeframe import Month
from mlbot_core.warehouse import Warehouse

ROOT = Path(__file__).resolve().parents[2]
NOW = "2024-11-01T00:10:00Z"
DERIVED = {"features": "features_core", "targets": "targets"}
TABLES = {**{name: name for name in CORE_SERIES}, **DERIVED}


@dataclass
class Home:
    """One home and the processes that were started on it."""

    path: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, plan: Sequence[Mapping[str, Any]], tag: str = "run") -> subprocess.Popen[bytes]:
        """Start a launching process with its plan on standard input, as the command line does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.out(tag).open("wb") as out, self.log(tag).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlbot_dagster.launch"],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=log,
                env=self.environment,
                cwd=ROOT,
                start_new_session=True,
            )
        assert process.stdin is not None
        process.stdin.write(json.dumps(plan).encode())
        process.stdin.close()
        self.started.append(process)
        return process

    def run(self, plan: Sequence[Mapping[str, Any]], tag: str = "run", timeout_s: float = 240) -> list[dict[str, Any]]:
        """Run a plan to its end and return how each of its runs ended."""
        process = self.start(plan, tag)
        process.wait(timeout_s)
        ends = [event for event in self.events(tag) if event["event"] == "end"]
        assert len(ends) == len(plan), f"status {process.returncode}: {self.log(tag).read_text()[-3000:]}"
        return ends

    def out(self, tag: str) -> Path:
        return self.path / f"{tag}.out"

    def log(self, tag: str) -> Path:
        return self.path / f"{tag}.log"

    def events(self, tag: str) -> list[dict[str, Any]]:
        """Return the whole lines that a process has said so far."""
        lines = self.out(tag).read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the whole process group at once, threads, children and all."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in self.started:
            if process.poll() is None:
                self.kill(process)

    @property
    def store_path(self) -> Path:
        return self.path / "warehouse.duckdb"

    def store(self) -> Warehouse:
        return Warehouse(self.store_path, SystemClock(), timeout_s=30)

    def dagster_runs(self) -> dict[str, str]:
        """Return the status of every run that Dagster knows, after asking SQLite whether its files are whole."""
        history = self.path / "dagster" / "history"
        if not history.exists():
            return {}
        for file in (history / "runs.db", *(history / "runs").glob("*.db")):
            con = sqlite3.connect(file, timeout=30)
            assert con.execute("PRAGMA integrity_check").fetchall() == [("ok",)], file
            con.close()
        con = sqlite3.connect(history / "runs.db", timeout=30)
        found = dict(con.execute("SELECT run_id, status FROM runs").fetchall())
        con.close()
        return found


@dataclass(frozen=True)
class Stored:
    """What one month of one asset holds: rows, and a hash of every value of every row."""

    rows: int
    content: str


def contents(
    home: Home, market: str, months: Sequence[Month], source: str = "emulator"
) -> dict[tuple[str, str], Stored]:
    """Return what the store holds of each monthly asset and month, whether or not it is written down as made."""
    symbol, _, timeframe = market.rpartition("-")
    found = {}
    with home.store().read() as con:
        present = {row[0] for row in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        for asset, table in TABLES.items():
            for month in months:
                rows = []
                if table in present:
                    rows = con.execute(
                        f"SELECT * FROM {table} WHERE source = ? AND symbol = ? AND timeframe = ? AND ts >= ? "
                        "AND ts < ? ORDER BY ALL",
                        [source, symbol, timeframe, month.start_ms, month.end_ms],
                    ).fetchall()
                # repr keeps every bit of a float, and tells a missing value from one that is no number
                content = hashlib.sha256(repr(rows).encode()).hexdigest()
                found[asset, f"{market}|{month.key}"] = Stored(len(rows), content)
    return found


def recorded(home: Home) -> dict[tuple[str, str], list[tuple[str, str, int, frozenset[tuple[str, bool]]]]]:
    """Return for each (asset, partition) what was written down: run, data version, rows, verdicts."""
    with home.store().read() as con:
        made = con.execute("SELECT asset, partition, run_id, data_version, rows FROM partitions").fetchall()
        verdicts = con.execute(
            "SELECT asset, partition, run_id, data_version, check_name, passed FROM quality"
        ).fetchall()
    by_run: dict[tuple[str, str, str, str], set[tuple[str, bool]]] = {}
    for asset, partition, run, version, check, passed in verdicts:
        by_run.setdefault((asset, partition, run, version), set()).add((check, passed))
    found: dict[tuple[str, str], list[tuple[str, str, int, frozenset[tuple[str, bool]]]]] = {}
    for asset, partition, run, version, rows in made:
        checks = frozenset(by_run.get((asset, partition, run, version), ()))
        found.setdefault((asset, partition), []).append((run, version, rows, checks))
    return found


@pytest.fixture(scope="session")
def tools() -> Any:
    """The functions of this module, for tests of this room (test modules cannot import one another)."""
    return sys.modules[__name__]


@pytest.fixture
def make_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Home]]:
    """A function that makes homes; whatever was started on them is ended with the test."""
    homes: list[Home] = []

    def make(name: str, **extra: str) -> Home:
        # nothing of the user's own setting gets in, and nothing of his keys
        config = tmp_path / "config"
        if not config.exists():
            shutil.copytree(ROOT / "config", config, ignore=shutil.ignore_patterns("api_keys.yaml"))
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLBOT_", "DAGSTER_"))}
        environment = {
            **kept,
            "MLBOT_HOME": str(tmp_path / name),
            "MLBOT_CONFIG_DIR": str(config),
            "MLBOT_SOURCE": "emulator",
            "MLBOT_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            **extra,
        }
        home = Home(tmp_path / name, environment)
        homes.append(home)
        return home

    yield make
    for home in homes:
        home.stop()


@pytest.fixture
def emulator() -> Iterator[EmulatorServer]:
    """The emulator of the shipped configuration, standing at :data:`NOW`."""
    with EmulatorServer(clock=FixedClock(parse_utc_ms(NOW))) as server:
        yield server


def data_run(market: str, first: str, last: str | None = None, job: str = "data", **extra: Any) -> dict[str, Any]:
    """Return one line of a plan over months ``YYYY-MM``."""
    end = last or first
    return {
        "job": job,
        "title": f"{market} {first} to {end}",
        "first": f"{market}|{Month.parse(first).key}",
        "last": f"{market}|{Month.parse(end).key}",
        "source": "emulator",
        **extra,
    }
