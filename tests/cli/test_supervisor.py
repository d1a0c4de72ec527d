"""Services are started in order, started again, stopped with all they started, and never run twice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlbot_core.cli.supervisor import Service, ServiceError, Supervisor, read_record
from mlbot_core.cli.up import AlreadyUpError, home_lock
from mlbot_core.cli.up_live import end_orphans
from mlbot_core.execution.safety import process_started

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")
PARENT = (
    sys.executable,
    "-c",
    "import subprocess, sys, time; from pathlib import Path\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "Path(sys.argv[1]).write_text(str(child.pid)); time.sleep(600)",
)


def wait(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(folder: Path, *services: Service) -> Iterator[tuple[list[str], threading.Event]]:
    said: list[str] = []
    stopping = threading.Event()
    supervisor = Supervisor(services, dict(os.environ), folder, said.append)
    thread = threading.Thread(target=supervisor.run, args=(stopping,))
    thread.start()
    try:
        wait(lambda: any(line.startswith("running:") for line in said))
        yield said, stopping
    finally:
        stopping.set()
        thread.join(30)
        assert not thread.is_alive()


def pids(folder: Path) -> dict[str, int]:
    return {row["name"]: row["pid"] for row in read_record(folder / "services.json")}


def test_a_killed_service_is_started_again_and_all_end_together(tmp_path: Path) -> None:
    with running(tmp_path, Service("one", SLEEPER), Service("two", SLEEPER)) as (said, _):
        before = pids(tmp_path)
        assert list(before) == ["one", "two"]
        os.kill(before["two"], signal.SIGKILL)
        wait(lambda: any("two started again" in line for line in said))
        after = pids(tmp_path)
        assert after["one"] == before["one"]
        assert after["two"] != before["two"]
        assert process_started(before["two"]) is None
    assert [process_started(pid) for pid in after.values()] == [None, None]
    assert any("two ended with status -9; again in 1 s" in line for line in said)


def test_what_a_service_had_started_ends_with_it(tmp_path: Path) -> None:
    note = tmp_path / "child"
    with running(tmp_path, Service("parent", (*PARENT, str(note)))) as (said, _):
        wait(note.exists)
        first = int(note.read_text())
        os.kill(pids(tmp_path)["parent"], signal.SIGKILL)
        wait(lambda: any("started again" in line for line in said))
        assert process_started(first) is None
        wait(lambda: note.read_text() not in ("", str(first)))
        second = int(note.read_text())
        assert process_started(second) is not None
    assert process_started(second) is None


def test_a_stopped_process_does_not_survive_the_end(tmp_path: Path) -> None:
    with running(tmp_path, Service("frozen", SLEEPER, stop_wait_s=2.0)):
        pid = pids(tmp_path)["frozen"]
        os.kill(pid, signal.SIGSTOP)
    assert process_started(pid) is None


def test_the_next_service_waits_for_the_one_before(tmp_path: Path) -> None:
    port = free_port()
    server = f"import socket, time; time.sleep(0.5); s = socket.create_server(('127.0.0.1', {port})); time.sleep(600)"
    client = f"import socket, time; socket.create_connection(('127.0.0.1', {port})); time.sleep(600)"
    services = (
        Service("server", (sys.executable, "-c", server), ready=("127.0.0.1", port)),
        Service("client", (sys.executable, "-c", client)),
    )
    with running(tmp_path, *services) as (said, stopping):
        assert not stopping.wait(0.6)
        assert not any("ended" in line for line in said)


def test_a_service_that_does_not_come_up_stops_the_others(tmp_path: Path) -> None:
    broken = Service("broken", (sys.executable, "-c", "raise SystemExit(3)"), ready=("127.0.0.1", free_port()))
    supervisor = Supervisor((Service("first", SLEEPER), broken), dict(os.environ), tmp_path, lambda _: None)
    with pytest.raises(ServiceError, match=r"broken ended with status 3; see .*broken.log"):
        supervisor.run(threading.Event())
    assert read_record(tmp_path / "services.json") == []


KILLED = """
import os, sys, threading
from pathlib import Path
from mlbot_core.cli.supervisor import Service, Supervisor
sleeper = (sys.executable, "-c", "import time; time.sleep(600)")
Supervisor((Service("orphan", sleeper),), dict(os.environ), Path(sys.argv[1]), lambda _: None).run(threading.Event())
"""


def test_a_killed_supervisor_is_followed_by_one_that_clears_up(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    wait(lambda: "orphan" in pids(tmp_path))
    orphan = pids(tmp_path)["orphan"]
    killed.kill()
    killed.wait()
    assert process_started(orphan) is not None
    with running(tmp_path, Service("new", SLEEPER)) as (said, _):
        assert process_started(orphan) is None
        assert any("orphan" in line and "left behind" in line for line in said)


def test_a_reused_number_is_not_taken_for_a_service(tmp_path: Path) -> None:
    bystander = subprocess.Popen(SLEEPER)
    (tmp_path / "services.json").write_text(f'[{{"name": "x", "pid": {bystander.pid}, "begun": 1}}]')
    try:
        with running(tmp_path, Service("new", SLEEPER)):
            assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


KILLED_WITH_ITS_HOME = """
import os, sys, threading
from pathlib import Path
from mlbot_core.cli.supervisor import Service, Supervisor
from mlbot_core.cli.up import home_lock, write_holder
from mlbot_core.execution.safety import process_started

home = Path(sys.argv[1])
sleeper = Service("sleeper", (sys.executable, "-c", "import time; time.sleep(600)"))
with home_lock(home, "http://here") as lock:
    write_holder(lock, {"pid": os.getpid(), "begun": process_started(os.getpid()), "url": "", "live": "emulator"})
    say = lambda text: print(text, flush=True)
    Supervisor([sleeper], dict(os.environ), home / "live", say, (lock,)).run(threading.Event())
"""


def test_after_a_killed_supervisor_the_home_can_be_taken_again(tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    command = [sys.executable, "-c", KILLED_WITH_ITS_HOME, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        try:
            for line in supervisor.stdout:
                if line.startswith("running:"):
                    break
            said: list[str] = []
            end_orphans(tmp_path, tmp_path / "live", said.append)
            assert not said, "a supervisor that lives is left alone"
        finally:
            supervisor.kill()
    (pid,) = pids(tmp_path / "live").values()
    assert process_started(pid) is not None
    with pytest.raises(AlreadyUpError), home_lock(tmp_path, "http://here"):
        pass
    end_orphans(tmp_path, tmp_path / "live", said.append)
    assert process_started(pid) is None
    assert ["sleeper" in line for line in said] == [True]
    with home_lock(tmp_path, "http://here"):
        pass
