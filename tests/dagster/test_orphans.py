"""Runs of killed processes are ended; runs of living ones are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlbot_dagster import orphans

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from mlbot_dagster import orphans

with orphans.alive() as name:
    print(name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLBOT_HOME", str(tmp_path))
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@dg.job
def nothing() -> None:
    pass


def unfinished(instance: dg.DagsterInstance, **tags: str) -> str:
    run = instance.create_run_for_job(nothing, tags=tags, status=dg.DagsterRunStatus.STARTED)
    return run.run_id


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_killed_process_loses_its_runs_and_a_living_one_keeps_them(instance, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ}
    )
    try:
        assert holder.stdout is not None
        name = holder.stdout.readline().decode().strip()
        theirs = unfinished(instance, **{orphans.TAG: name})
        with orphans.alive() as mine_name:
            mine = unfinished(instance, **{orphans.TAG: mine_name})
            foreign = unfinished(instance)
            assert orphans.sweep(instance) == []
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
            assert orphans.sweep(instance) == [theirs]
            assert orphans.sweep(instance) == [], "once is enough"
            assert status(instance, theirs) == dg.DagsterRunStatus.FAILURE
            assert status(instance, mine) == dg.DagsterRunStatus.STARTED
            assert status(instance, foreign) == dg.DagsterRunStatus.STARTED, "not one of ours"
            assert [lock.name for lock in (tmp_path / "dagster" / "launchers").iterdir()] == [mine_name]
        assert list((tmp_path / "dagster" / "launchers").iterdir()) == []
    finally:
        holder.kill()
        holder.wait()
        for pipe in (holder.stdin, holder.stdout):
            assert pipe is not None
            pipe.close()


def test_a_finished_run_of_a_dead_process_stays_finished(instance):
    run_id = unfinished(instance, **{orphans.TAG: "1-gone"})
    instance.report_run_failed(instance.get_run_by_id(run_id), "for a reason of its own")
    assert orphans.sweep(instance) == []


def test_the_sensor_says_what_it_did(instance):
    (sensor,) = orphans.build()
    run_id = unfinished(instance, **{orphans.TAG: "1-gone"})
    told = sensor.evaluate_tick(dg.build_sensor_context(instance=instance))
    assert run_id in str(told.skip_message)
    told = sensor.evaluate_tick(dg.build_sensor_context(instance=instance))
    assert told.skip_message == "no orphaned runs"
