"""A run whose code server was killed ends as failed, and is done again where it asked for that; real servers."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import consume_new_runs_for_automatic_reexecution
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from sqlalchemy.exc import OperationalError

from mlbot_dagster import code_server, orphans, sensors
from mlbot_dagster.run_launcher import WatchedRunLauncher

ROOT = Path(__file__).resolve().parents[2]
SERVED = """
import time

import dagster as dg


@dg.op
def rest():
    time.sleep(120)


@dg.job
def long():
    rest()


defs = dg.Definitions(jobs=[long])
"""
WITH = {
    "run_launcher": {"module": "mlbot_dagster.run_launcher", "class": "WatchedRunLauncher"},
    "run_monitoring": {"enabled": True, "poll_interval_seconds": 5, "max_resume_run_attempts": 0},
    "run_retries": {"enabled": True, "max_retries": 0, "retry_on_asset_or_op_failure": False},
}


def wait(ready: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)
    return found


class Server:
    """A code server in a process group of its own, as the supervisor starts it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "served.py"
        self.file.write_text(SERVED)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = ["-m", "dagster", "api", "grpc", "--host", "127.0.0.1", "--port", str(self.port), "-f", self.file]
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command), "--location-name", "served"], cwd=ROOT, start_new_session=True
        )
        wait(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    if made.process.poll() is None:
        made.kill()


@dg.op
def rest() -> None:
    """Of the same name as what is served."""


@dg.job
def long() -> None:
    rest()


@pytest.mark.slow
@pytest.mark.parametrize("again", [True, False])
def test_a_run_that_died_with_its_server_fails_and_is_done_again_if_it_asked_for_that(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    monkeypatch.setenv("MLBOT_HOME", str(tmp_path / "home"))
    target = GrpcServerTarget(host="127.0.0.1", port=server.port, socket=None, location_name="served")
    with (
        dg.instance_for_test(temp_dir=str(tmp_path), overrides=WITH) as instance,
        create_test_daemon_workspace_context(target, instance) as daemon,
    ):
        launcher = instance.run_launcher
        assert isinstance(launcher, WatchedRunLauncher)
        workspace = daemon.create_request_context()
        job = workspace.get_code_location("served").get_repository("__repository__").get_full_job("long")

        def status(run_id: str) -> dg.DagsterRunStatus:
            run = instance.get_run_by_id(run_id)
            assert run is not None
            return run.status

        def look() -> None:
            assert not any(execute_run_monitoring_iteration(daemon, logging.getLogger("test")))

        run = instance.create_run_for_job(
            long,
            remote_job_origin=job.get_remote_origin(),
            job_code_origin=job.get_python_origin(),
            tags=sensors.AGAIN if again else {},
        )
        instance.launch_run(run.run_id, workspace)
        wait(lambda: status(run.run_id) is dg.DagsterRunStatus.STARTED)
        look()
        assert status(run.run_id) is dg.DagsterRunStatus.STARTED, "it is executed"

        server.kill()
        look()
        assert status(run.run_id) is dg.DagsterRunStatus.STARTED, "nobody can say yet"
        server.start()

        def failed_by_now() -> bool:
            look()
            return status(run.run_id) is dg.DagsterRunStatus.FAILURE

        # a server that listens may not answer yet
        wait(failed_by_now)

        failed = instance.get_run_record_by_id(run.run_id)
        assert failed is not None
        list(consume_new_runs_for_automatic_reexecution(daemon, [failed], logging.getLogger("test")))
        more = [one for one in instance.get_runs() if one.run_id != run.run_id]
        assert [one.parent_run_id for one in more] == [run.run_id] * again


def test_a_run_of_a_command_is_left_to_the_sweep() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        launcher = WatchedRunLauncher()
        launcher.register_instance(instance)
        mine = instance.create_run_for_job(long, tags={orphans.TAG: "1-abc"}, status=dg.DagsterRunStatus.STARTED)
        assert launcher.check_run_worker_health(mine).status.value == "RUNNING"


def test_the_look_for_dead_runs_survives_a_database_that_is_away(monkeypatch, caplog) -> None:
    from dagster._grpc import server

    looks = []

    def look(self: Any) -> None:
        looks.append(self)
        if len(looks) == 1:
            raise OperationalError("SELECT", {}, Exception("the server closed the connection"))

    monkeypatch.setattr(server.DagsterApiServer, "_check_for_orphaned_runs", look)
    assert code_server.look_again()
    patient: Any = server.DagsterApiServer._check_for_orphaned_runs
    patient("first")
    patient("second")
    assert looks == ["first", "second"]
    assert "could not look for dead runs, will again: OperationalError" in caplog.text


def test_where_dagster_looks_in_another_way_it_is_left_as_it_is(monkeypatch, caplog) -> None:
    from dagster._grpc import server

    monkeypatch.delattr(server.DagsterApiServer, "_check_for_orphaned_runs")
    assert not code_server.look_again()
    assert "in another way than expected" in caplog.text
