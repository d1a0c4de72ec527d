"""``mlbot up``: the Dagster UI and daemon over one home, once."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from mlbot_core.cli.launcher import child_environment
from mlbot_core.cli.status import running
from mlbot_core.clock import clock_from_env
from mlbot_core.config import Settings
from mlbot_core.config.settings import checkout_root
from mlbot_core.errors import MlbotError, UsageError

_STOP_WAIT_S = 25.0


class AlreadyUpError(UsageError):
    """Another ``mlbot up`` holds this home."""


def up(settings: Settings, console: Console, *, host: str, port: int) -> int:
    """Serve until interrupted; return the exit status.

    Raises
    ------
    AlreadyUpError
        If this home is served already.
    UsageError
        If the port is taken.
    """
    url = f"http://{host}:{port}"
    with _home_lock(settings.home, url) as lock_fd:
        _require_free(host, port)
        with _emulator(settings, console) as emulator_url:
            environment = child_environment(settings)
            if emulator_url:
                environment["MLBOT_EMULATOR_URL"] = emulator_url
            environment["DAGSTER_HOME"] = _dagster_home(settings)
            command = [sys.executable, "-m", "dagster", "dev", "-w", str(checkout_root() / "workspace.yaml")]
            command += ["-h", host, "-p", str(port)]
            # the lock goes along: it stays taken as long as the servers live, even if this process is killed
            process = subprocess.Popen(command, env=environment, pass_fds=(lock_fd,), start_new_session=True)
            console.print(f"mlbot is starting on {url} (home {settings.home}); stop it with Ctrl-C")
            return _wait(process)


def _dagster_home(settings: Settings) -> str:
    """Make Dagster's home as the launching process does, and return it."""
    home = settings.dagster_home
    home.mkdir(parents=True, exist_ok=True)
    wanted = (checkout_root() / "dagster.yaml").read_bytes()
    present = home / "dagster.yaml"
    if not present.exists() or present.read_bytes() != wanted:
        present.write_bytes(wanted)
    return str(home)


@contextmanager
def _home_lock(home: Path, url: str) -> Iterator[int]:
    home.mkdir(parents=True, exist_ok=True)
    path = home / "up.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = running(path) or {}
            raise AlreadyUpError(
                f"mlbot is already up on {home}: {holder.get('url')} (process {holder.get('pid')}); "
                "use that one, stop it first, or choose another home with MLBOT_HOME"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"pid": os.getpid(), "url": url}).encode(), 0)
        yield fd
    finally:
        os.close(fd)


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"port {port} on {host} is taken ({error.strerror}); choose another with --port") from None


@contextmanager
def _emulator(settings: Settings, console: Console) -> Iterator[str | None]:
    if settings.intervals.source != "emulator" or settings.emulator_url:
        yield settings.emulator_url
        return
    from mlbot_core.emulator.launch import serve

    with serve(settings.intervals.emulator, clock_from_env()) as url:
        console.print(f"the emulator (a SYNTHETIC market) listens on {url}")
        yield url


def _wait(process: subprocess.Popen[Any]) -> int:
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while process.poll() is None and not stopping:
            time.sleep(0.2)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if not stopping:
        raise MlbotError(
            f"the Dagster servers ended by themselves with status {process.returncode}; see their output above"
        )
    return 0
