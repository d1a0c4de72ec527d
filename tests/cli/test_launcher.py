"""A command that is told to end takes the processes along that it had started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlbot_core.cli.launcher import _ends_when_told
from mlbot_core.execution.safety import process_started


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, of all its threads."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def test_a_terminated_command_leaves_no_worker_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "MLBOT_HOME": str(tmp_path), "MLBOT_THREADS": "1"}
    command = [sys.executable, "-m", "mlbot_core.cli.main", "backfill", "-i", "4h", "-s", "emulator"]
    with (tmp_path / "out.txt").open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 60
        workers: list[int] = []
        while not workers:
            assert process.poll() is None, (tmp_path / "out.txt").read_text()
            assert time.monotonic() < deadline, "no worker was started"
            time.sleep(0.05)
            workers = [
                pid for pid in children(process.pid)
                if "mlbot_dagster.launch" in Path(f"/proc/{pid}/cmdline").read_text()
            ]  # fmt: skip
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert [process_started(pid) for pid in workers] == [None] * len(workers)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def told_by_default() -> Iterator[None]:
    """Give the signal its default for a test: Dagster, used earlier in the same process, sets a handler of its own."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


class Finalised:
    """Its finaliser is where the signal comes: Python prints what a handler raises there, and goes on."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)


@pytest.mark.usefixtures("told_by_default")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_was_lost_is_remembered() -> None:
    with _ends_when_told() as told:
        made = Finalised()
        del made
        with pytest.raises(SystemExit) as left:
            told.leave_if_told()
    assert left.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("told_by_default")
def test_what_is_being_made_is_finished_before_the_process_leaves() -> None:
    made = []
    with pytest.raises(SystemExit) as left, _ends_when_told() as told, told.held():  # noqa: PT012 - the order counts
        os.kill(os.getpid(), signal.SIGTERM)
        made.append("worker")
    assert made == ["worker"]
    assert left.value.code == 128 + signal.SIGTERM
