"""``mlbot up`` holds its home alone, ends without leaving a process, and says what is in the way."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0
STOP_S = 30.0

pytestmark = pytest.mark.slow


@dataclass
class Up:
    """One ``mlbot up`` and what it said."""

    process: subprocess.Popen[bytes]
    port: int
    out: Path

    def text(self) -> str:
        return self.out.read_text(encoding="utf-8")

    def wait_until_up(self) -> None:
        wait(lambda: "mlbot is up" in self.text() or self.process.poll() is not None, START_S, self.text)
        assert self.process.poll() is None, self.text()
        wait(lambda: "asset-groups~group:audit" in self.text(), 5, self.text)


@dataclass
class House:
    """A home and the servers that were started on it."""

    path: Path
    environment: dict[str, str]
    started: list[Up]

    def up(self, port: int | None = None) -> Up:
        port = port or free_port()
        out = self.path.parent / f"up-{len(self.started)}.log"
        with out.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlbot_core.cli.main", "up", "--port", str(port)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=ROOT,
                start_new_session=True,
                # what a shell does to a background job of a script, the harder case: Ctrl-C is ignored from birth
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
            )
        self.started.append(Up(process, port, out))
        return self.started[-1]

    def refused(self, port: int, host: str = "127.0.0.1") -> str:
        """Start one more, which must end by itself with 2, and return the one line that it said."""
        done = subprocess.run(
            [sys.executable, "-m", "mlbot_core.cli.main", "up", "--port", str(port), "--host", host],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=ROOT,
            timeout=60,
        )
        assert done.returncode == 2, done
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    @property
    def holder(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.path / "up.lock").read_text())
        return found

    @property
    def servers(self) -> int:
        pid = self.holder["servers"]
        assert isinstance(pid, int)
        return pid

    def free(self) -> bool:
        with (self.path / "up.lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True


def members(group: int) -> list[str]:
    """Return the command lines of the living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, pgrp = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, ValueError):  # it ended while we looked
            continue
        if int(pgrp) == group and state != "Z":
            found.append(f"{entry.name} {command}")
    return found


def wait(ready: Callable[[], bool], seconds: float, words: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"not within {seconds} s: {words()[-3000:]}"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    config = tmp_path / "config"
    shutil.copytree(ROOT / "config", config, ignore=shutil.ignore_patterns("api_keys.yaml"))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLBOT_", "DAGSTER_"))}
    home = tmp_path / "home"
    made = House(
        home,
        {**kept, "MLBOT_HOME": str(home), "MLBOT_CONFIG_DIR": str(config), "MLBOT_SOURCE": "emulator"},
        [],
    )
    yield made
    for up in made.started:
        if up.process.poll() is None:
            up.process.kill()
            up.process.wait()
    if made.started and members(group := made.servers):
        os.killpg(group, signal.SIGKILL)


def test_second_one_is_told_where_the_first_is_and_sigterm_leaves_nothing(house: House) -> None:
    first = house.up()
    first.wait_until_up()

    said = house.refused(free_port())
    assert f"http://127.0.0.1:{first.port}" in said
    assert f"process {first.process.pid}" in said
    assert str(house.path) in said
    assert first.process.poll() is None, "the second must not disturb the first"
    assert not house.free()

    servers = house.servers
    assert len(members(servers)) >= 4, "dagster dev, web server, daemon, code server"
    asked = time.monotonic()
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(STOP_S) == 0
    assert time.monotonic() - asked < STOP_S
    assert members(servers) == []
    assert house.free()
    said = first.text()
    assert "Dagster services shut down." in said, "they were killed, not stopped"
    worrying = re.findall(r".*(?:WARNING|Warning|ERROR|Traceback|Exception).*", said)
    assert worrying == []


def test_after_a_kill_the_home_is_locked_while_its_servers_live(house: House) -> None:
    first = house.up()
    first.wait_until_up()
    servers = house.servers
    first.process.kill()
    first.process.wait()
    assert members(servers), "they live in their own session"
    assert not house.free()

    said = house.refused(free_port())
    assert f"http://127.0.0.1:{first.port}" in said
    assert f"process {first.process.pid}" in said
    assert f"kill {servers}" in said

    os.kill(servers, signal.SIGTERM)  # what the line advises
    wait(lambda: not members(servers), STOP_S, lambda: "\n".join(members(servers)))
    assert house.free()


def test_servers_that_die_take_everything_with_them(house: House) -> None:
    first = house.up()
    first.wait_until_up()
    servers = house.servers
    os.kill(servers, signal.SIGKILL)
    assert first.process.wait(STOP_S) == 1
    assert "mlbot: the Dagster servers ended by themselves with status -9" in first.text()
    assert members(servers) == []
    assert house.free()


def test_taken_port_or_foreign_address_is_one_line(house: House) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = house.refused(port)
    assert f"port {port} on 127.0.0.1 is taken" in said
    assert "--port" in said
    said = house.refused(port, host="192.0.2.1")  # reserved for documentation: no machine has it
    assert f"cannot listen on 192.0.2.1:{port}" in said
    assert "--host" in said
    assert house.free(), "a refused start must not hold the home"
