"""Keeps a set of processes running: starts them in order, restarts what ends, stops all of them in reverse.

Each service is a process group of its own, so that what it starts goes with it. A service that ends is started again
after a pause that doubles from one second to half a minute and is forgotten after a minute of life. Who runs is written
down (process and its start time), so that a supervisor that was killed is followed by one that first ends the services
it left behind: two risk watches or two daemons on one home would work against each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mlbot_core.errors import MlbotError
from mlbot_core.execution.safety import process_started

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_FORGIVEN_AFTER_S: Final = 60.0
_LOOK_S: Final = 0.1
_KILL_WAIT_S: Final = 5.0

Say = Callable[[str], None]


class ServiceError(MlbotError):
    """A service did not come up."""


@dataclass(frozen=True)
class Service:
    """One process to keep running.

    Parameters
    ----------
    name
        For people, logs and the record.
    command
        Program and arguments.
    ready
        Host and port that answer when it is up; the next service starts only then. None: at once.
    stop_wait_s
        How long it may take to end after it was asked to, seconds.
    start_wait_s
        How long it may take to answer at first, seconds.
    """

    name: str
    command: tuple[str, ...]
    ready: tuple[str, int] | None = None
    stop_wait_s: float = 10.0
    start_wait_s: float = 90.0


class _Running:
    """A service and its process of the moment."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.pause_s = _FIRST_PAUSE_S
        self.again_at = 0.0
        self.restarts = 0


class Supervisor:
    """Runs services until told to stop.

    Parameters
    ----------
    services
        In the order in which they start; they stop in the reverse one.
    environment
        Of all of them.
    folder
        Working folder; logs go to ``logs`` in it and the record to ``services.json``.
    say
        Told in one line what happens.
    pass_fds
        Descriptors that live as long as any service does.
    """

    def __init__(
        self,
        services: Sequence[Service],
        environment: Mapping[str, str],
        folder: Path,
        say: Say,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._running = [_Running(service) for service in services]
        self._environment = dict(environment)
        self._folder = folder
        self._logs = folder / "logs"
        self._record = folder / "services.json"
        self._say = say
        self._pass_fds = tuple(pass_fds)

    def run(self, stopping: threading.Event) -> None:
        """Start everything, keep it running until ``stopping`` is set, then stop everything.

        Raises
        ------
        ServiceError
            If a service that others need does not answer in its time; what was started is stopped.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        end_left_behind(self._record, self._say)
        try:
            for one in self._running:
                self._start(one)
                self._wait_ready(one, stopping)
                if stopping.is_set():
                    return
            self._say(f"running: {', '.join(one.service.name for one in self._running)}")
            while not stopping.wait(_LOOK_S):
                for one in self._running:
                    self._look(one)
        finally:
            self._stop()

    def _start(self, one: _Running) -> None:
        with (self._logs / f"{one.service.name}.log").open("ab") as log:
            one.process = subprocess.Popen(
                one.service.command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=self._pass_fds,
                start_new_session=True,
            )
        one.started = time.monotonic()
        self._write_record()

    def _wait_ready(self, one: _Running, stopping: threading.Event) -> None:
        address = one.service.ready
        deadline = time.monotonic() + one.service.start_wait_s
        while address is not None and not answers(address):
            ended = one.process is not None and one.process.poll() is not None
            if ended or time.monotonic() > deadline:
                how = f"ended with status {one.process.returncode}" if ended and one.process else "does not answer"
                raise ServiceError(f"{one.service.name} {how}; see {self._logs / one.service.name}.log")
            if stopping.wait(_LOOK_S):
                return

    def _look(self, one: _Running) -> None:
        now = time.monotonic()
        if one.process is not None:
            status = one.process.poll()
            if status is None:
                return
            if now - one.started > _FORGIVEN_AFTER_S:
                one.pause_s = _FIRST_PAUSE_S
            # what it had started must not live beside its successor
            end_group(one.process.pid, 0.0)
            one.process, one.again_at = None, now + one.pause_s
            self._say(f"{one.service.name} ended with status {status}; again in {one.pause_s:g} s")
            one.pause_s = min(2 * one.pause_s, _LONGEST_PAUSE_S)
        elif now >= one.again_at:
            one.restarts += 1
            self._start(one)
            self._say(f"{one.service.name} started again (number {one.restarts})")

    def _stop(self) -> None:
        for one in reversed(self._running):
            if one.process is not None:
                end_group(one.process.pid, one.service.stop_wait_s, one.process)
                one.process = None
        self._write_record()

    def _write_record(self) -> None:
        rows = [
            {
                "name": one.service.name,
                "pid": one.process.pid,
                "begun": process_started(one.process.pid),
                "restarts": one.restarts,
            }
            for one in self._running
            if one.process is not None
        ]
        new = self._record.with_suffix(".new")
        new.write_text(json.dumps(rows), encoding="utf-8")
        new.replace(self._record)


def end_left_behind(record: Path, say: Say) -> list[str]:
    """End the services that a killed supervisor left running; return their names.

    A process is taken for one of them only if it began when the record says: numbers of processes are used again.
    """
    ended = []
    for row in read_record(record):
        pid = int(row["pid"])
        if row["begun"] is not None and process_started(pid) == row["begun"]:
            say(f"{row['name']} (process {pid}) was left behind by a killed mlbot; ending it first")
            end_group(pid, _KILL_WAIT_S)
            ended.append(str(row["name"]))
    return ended


def read_record(record: Path) -> list[dict[str, Any]]:
    """Return who was running when the record was written; nothing where there is none."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    return [row for row in found if isinstance(row, dict) and {"name", "pid", "begun"} <= set(row)]


def answers(address: tuple[str, int]) -> bool:
    """Say whether somebody takes connections there."""
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


def end_group(pid: int, wait_s: float, process: subprocess.Popen[bytes] | None = None) -> None:
    """Ask a process group to end, and kill what is still there after ``wait_s``; 0 kills at once.

    Returns when nothing of the group is left, or some seconds after it was killed.
    """
    steps = ((signal.SIGTERM, wait_s), (signal.SIGKILL, _KILL_WAIT_S))
    with contextlib.suppress(ProcessLookupError):
        # a service that is stopped would not hear that it is to end
        os.killpg(pid, signal.SIGCONT)
        for number, left_s in steps if wait_s > 0 else steps[1:]:
            os.killpg(pid, number)
            deadline = time.monotonic() + left_s
            while time.monotonic() < deadline:
                if process is not None:
                    process.poll()
                os.killpg(pid, 0)
                time.sleep(0.05)
    if process is not None:
        process.wait()
