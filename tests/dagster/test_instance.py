"""Dagster's storage in our home: safe under threads, made whole or not at all, nothing left behind."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlbot_dagster.instance import HomeEventLog, HomeRunStorage

ROOT = Path(__file__).resolve().parents[2]
THREADS, RUNS, EVENTS = 4, 3, 8


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLBOT_HOME", str(tmp_path))
    monkeypatch.delenv("MLBOT_PG_URL", raising=False)
    folder = tmp_path / "dagster"
    folder.mkdir()
    (folder / "dagster.yaml").write_bytes((ROOT / "dagster.yaml").read_bytes())
    return folder


@dg.job
def nothing() -> None:
    pass


def write_runs(instance: Any, who: int) -> list[str]:
    """Create runs and write events of all of them in turn, so that more files are in use than are kept open."""
    runs = [instance.create_run_for_job(nothing, tags={"who": str(who)}) for _ in range(RUNS)]
    for number in range(EVENTS):
        for run in runs:
            instance.report_engine_event(f"event {number}", run)
            instance.get_run_by_id(run.run_id)
    for run in runs:
        instance.report_run_failed(run, "done")
    return [run.run_id for run in runs]


def test_many_threads_lose_no_run_and_no_event(home):
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert isinstance(instance.event_log_storage, HomeEventLog)
        assert isinstance(instance.run_storage, HomeRunStorage)
        with ThreadPoolExecutor(THREADS) as pool:
            ids = [run for made in pool.map(lambda who: write_runs(instance, who), range(THREADS)) for run in made]
        assert len(set(ids)) == THREADS * RUNS > 8
        assert {run.run_id: run.status for run in instance.get_runs()} == dict.fromkeys(
            ids, dg.DagsterRunStatus.FAILURE
        )
        for run_id in ids:
            told = [entry.message for entry in instance.all_logs(run_id)]
            assert [text for text in told if text.startswith("event ")] == [f"event {n}" for n in range(EVENTS)]
        assert instance.event_log_storage.is_run_sharded
    # every connection is closed with the instance: SQLite has folded its logs into the files
    assert list(home.rglob("*-wal")) == []
    assert list(home.rglob("*-shm")) == []


def test_wiping_lets_go_of_the_files(home):
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (first, *_) = write_runs(instance, 0)
        instance.event_log_storage.wipe()
        assert instance.all_logs(first) == []
        (second, *_) = write_runs(instance, 1)
        assert len(instance.all_logs(second)) > EVENTS


def test_two_processes_that_open_a_new_home_together(home):
    code = "import dagster as dg, sys\nwith dg.DagsterInstance.from_config(sys.argv[1]) as i: print(len(i.get_runs()))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(home)], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)
    ]
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, b"0\n")


@pytest.mark.parametrize("left", ["aside", "half"])
def test_a_process_killed_while_it_made_the_storage_does_not_matter(home, left):
    """Either it had moved nothing into place, or the schedules only: the next one makes the rest, of this version."""
    (home / ".storage-dead" / "history").mkdir(parents=True)
    (home / ".storage-dead" / "history" / "runs.db").write_bytes(b"half a file")
    if left == "half":
        with dg.DagsterInstance.from_config(str(home)):
            pass
        shutil.rmtree(home / "history")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        write_runs(instance, 0)
        assert instance.run_storage.has_built_index("run_start_end_overwritten")
    assert list(home.glob(".storage-*")) == []
    con = sqlite3.connect(home / "history" / "runs.db")
    assert con.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    con.close()
