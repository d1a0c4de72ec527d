"""``mlbot up``: the Dagster UI and daemon over one home, once."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from mlbot_core.cli.launcher import child_environment
from mlbot_core.cli.status import running
from mlbot_core.cli.supervisor import answers, end_group
from mlbot_core.cli.views import told
from mlbot_core.clock import clock_from_env
from mlbot_core.config import Settings
from mlbot_core.config.home import prepare_dagster_home
from mlbot_core.config.settings import checkout_root
from mlbot_core.errors import MlbotError, UsageError

# together under half a minute, the patience of service managers
_STOP_WAIT_S = 20.0
_GROUP_WAIT_S = 3.0
# Dagster names another package for its own command, which nobody here can act on
_HUSH = "ignore:Function `dev_command` is superseded"


class AlreadyUpError(UsageError):
    """Another ``mlbot up`` holds this home."""


def up(settings: Settings, console: Console, *, host: str, port: int) -> int:
    """Serve until interrupted; return the exit status.

    Raises
    ------
    AlreadyUpError
        If this home is served already.
    UsageError
        If the port is taken or the address is not one of this machine.
    MlbotError
        If the servers end by themselves.
    """
    url = f"http://{host}:{port}"
    with home_lock(settings.home, url) as lock_fd:
        require_free(host, port)
        with stop_signals() as stopping, _emulator(settings, console) as emulator_url:
            command = [sys.executable, "-W", _HUSH, "-m", "dagster", "dev"]
            command += ["-w", str(checkout_root() / "workspace.yaml"), "-h", host, "-p", str(port)]
            process = subprocess.Popen(
                command,
                env=servers_environment(settings, emulator_url),
                # in a folder with another dagster.yaml than DAGSTER_HOME's, Dagster would warn at every start
                cwd=settings.dagster_home,
                # the lock goes along: it stays taken as long as the servers live, even if this process is killed
                pass_fds=(lock_fd,),
                start_new_session=True,
            )
            try:
                write_holder(lock_fd, {"pid": os.getpid(), "url": url, "servers": process.pid})
                console.print(f"mlbot is starting on {url} (home {settings.home}); stop it with Ctrl-C")
                return _serve(process, stopping, console, (host, port))
            finally:
                end_group(process.pid, _GROUP_WAIT_S, process)


def servers_environment(settings: Settings, emulator_url: str | None) -> dict[str, str]:
    """Return the servers' environment: every place absolute, since they run in Dagster's home."""
    environment = child_environment(settings)
    environment["MLBOT_CONFIG_DIR"] = str(settings.config_dir)
    environment["MLBOT_ARCHIVE_DIR"] = str(settings.archive_dir)
    environment["DAGSTER_HOME"] = str(prepare_dagster_home(settings))
    if emulator_url:
        environment["MLBOT_EMULATOR_URL"] = emulator_url
    return environment


@contextmanager
def home_lock(home: Path, url: str) -> Iterator[int]:
    """Hold the home for the length of a ``with`` block; yields the descriptor, which servers inherit."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / "up.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _take(fd, path)
        write_holder(fd, {"pid": os.getpid(), "url": url})
        yield fd
    finally:
        os.close(fd)


def _take(fd: int, path: Path) -> None:
    """Take the lock or say who has it; ``mlbot status`` holds it for an instant, which is waited out."""
    for _ in range(20):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = running(path)
        if holder is not None:
            raise AlreadyUpError(_who(path.parent, holder))
        time.sleep(0.05)
    raise AlreadyUpError(f"the lock {path} is taken again and again; try once more")


def _who(home: Path, holder: Mapping[str, Any]) -> str:
    pid, servers = holder.get("pid"), holder.get("servers")
    if pid and servers and not _alive(pid):
        return (
            f"an mlbot up on {home} was killed (process {pid}), but its servers go on: {holder.get('url')} "
            f"(process {servers}); stop them with: kill {servers}"
        )
    return (
        f"mlbot is already up on {home}: {holder.get('url')} (process {pid}); "
        "use that one, stop it first, or choose another home with MLBOT_HOME"
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_holder(fd: int, holder: Mapping[str, Any]) -> None:
    """Write into the lock who holds it."""
    text = json.dumps(holder).encode()
    os.pwrite(fd, text, 0)
    os.ftruncate(fd, len(text))


def require_free(host: str, port: int) -> None:
    """Refuse an address that is taken or not of this machine.

    Raises
    ------
    UsageError
        If the servers could not listen there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UsageError(f"port {port} on {host} is taken; choose another with --port") from None
            raise UsageError(
                f"cannot listen on {host}:{port} ({error.strerror}); choose others with --host and --port"
            ) from None


@contextmanager
def _emulator(settings: Settings, console: Console) -> Iterator[str | None]:
    if settings.intervals.source != "emulator" or settings.emulator_url:
        yield settings.emulator_url
        return
    from mlbot_core.emulator.launch import serve

    with serve(settings.intervals.emulator, clock_from_env()) as url:
        console.print(f"the emulator (a SYNTHETIC market) listens on {url}")
        yield url


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Yield what is set when somebody wants an end: Ctrl-C, ``kill``, a closed terminal.

    Entered BEFORE the servers start: a signal that is caught here is at its default in them, while one that a shell
    ignores for its background jobs would be ignored in them too, and they could not be stopped in peace.
    """
    stopping = threading.Event()
    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup means that a closed terminal shall not matter
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, lambda _number, _frame: stopping.set())
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _serve(
    process: subprocess.Popen[Any], stopping: threading.Event, console: Console, address: tuple[str, int]
) -> int:
    """Wait for the end, telling when the UI first answers."""
    announced = False
    while not stopping.wait(0.2):
        if process.poll() is not None:
            raise MlbotError(
                f"the Dagster servers ended by themselves with status {process.returncode}; see their output above"
            )
        if not announced and answers(address):
            url = f"http://{address[0]}:{address[1]}"
            console.print(f"mlbot is up: {url}")
            for line in told(url):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            announced = True
    console.print("mlbot is stopping")
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_WAIT_S)
    return 0
