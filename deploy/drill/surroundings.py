"""What stands around the product: Postgres, Prometheus, and a Slack that only listens. All on loopback, all private."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Debian keeps the server's programs out of the PATH
_PLACES = os.pathsep.join([os.environ.get("PATH", ""), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])


class MissingProgramError(Exception):
    """A program of the drill is not installed."""


def program(name: str, package: str) -> str:
    """Return the path of a program.

    Raises
    ------
    MissingProgramError
        If there is none; the message names Debian's package.
    """
    found = shutil.which(name, path=_PLACES)
    if found is None:
        raise MissingProgramError(f"{name} is not installed (Debian: apt-get install {package})")
    return found


def free_port() -> int:
    """Return a port of the loopback address that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(look: Callable[[], Any], seconds: float, what: str, every_s: float = 0.25) -> Any:
    """Return the first true thing that ``look`` finds.

    Raises
    ------
    TimeoutError
        If there is none in time; the message says what was waited for.
    """
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(every_s)
    return found


def fetch(url: str, body: Mapping[str, Any] | None = None, method: str | None = None, timeout_s: float = 15.0) -> Any:
    """Return the JSON that a server answers with; ``body`` makes it a POST."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return json.loads(answer.read())


class Postgres:
    """A cluster of its own in a folder of its own, which asks for a password."""

    def __init__(self, folder: Path, password: str) -> None:
        self._folder = folder
        self._password = password
        self._programs = {name: program(name, "postgresql") for name in ("initdb", "postgres", "pg_isready", "pg_dump")}
        # Postgres refuses to run as root
        self._who: dict[str, Any] = (
            {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        )
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """SQLAlchemy URL, with the password as an address has to have it."""
        word = urllib.parse.quote(self._password, safe="")
        return f"postgresql://mlbot:{word}@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        """Make the cluster."""
        self._folder.mkdir(parents=True)
        secret = self._folder / "password"
        secret.write_text(self._password, encoding="utf-8")
        if self._who:
            for parent in (self._folder, *self._folder.parents):
                if parent != Path("/") and not parent.stat().st_mode & 0o001:
                    parent.chmod(parent.stat().st_mode | 0o011)
            self._folder.chmod(0o777)
            secret.chmod(0o644)
        command: list[str | Path] = [self._programs["initdb"], "-D", self._folder / "data", "-U", "mlbot"]
        command += ["-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder, **self._who)
        secret.unlink()

    def start(self) -> None:
        """Start it and wait until it answers; after a kill its remains may have to end first, which is waited for."""
        deadline = time.monotonic() + 60
        command: list[str | Path] = [self._programs["postgres"], "-D", self._folder / "data"]
        # no socket in the folder: the path of one may have 107 characters, and a folder has any length
        command += ["-h", "127.0.0.1", "-p", str(self.port), "-c", "unix_socket_directories="]
        while True:
            with (self._folder / "log").open("ab") as log:
                self.process = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self._folder,
                    start_new_session=True,
                    **self._who,
                )
            with contextlib.suppress(TimeoutError):
                wait(lambda: self.answers() or self._ended(), 20, "Postgres")
            if self.answers():
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"Postgres does not start; see {self._folder / 'log'}")
            time.sleep(1)

    def answers(self) -> bool:
        """Say whether it takes connections."""
        command = [self._programs["pg_isready"], "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def kill(self) -> None:
        """Kill its main process; its others end when they see that."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def dump(self) -> bytes:
        """Return everything that it holds, as SQL."""
        command = [self._programs["pg_dump"], "-h", "127.0.0.1", "-p", str(self.port), "-U", "mlbot", "postgres"]
        environment = {**os.environ, "PGPASSWORD": self._password}
        return subprocess.run(command, check=True, capture_output=True, env=environment).stdout

    def stop(self) -> None:
        """End it, and whatever is left of it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()


class Prometheus:
    """Prometheus with the shipped configuration and rules; only its target's address is another one."""

    def __init__(self, folder: Path, target: str) -> None:
        self._program = program("prometheus", "prometheus")
        self.folder = folder
        shutil.copytree(ROOT / "deploy" / "prometheus", folder)
        (folder / "targets.json").write_text(json.dumps([{"targets": [target]}]), encoding="utf-8")
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        command = [self._program, f"--config.file={self.folder / 'prometheus.yml'}"]
        command += [f"--web.listen-address=127.0.0.1:{self._port}", f"--storage.tsdb.path={self.folder / 'data'}"]
        # what it wrote can then be searched as it lies there
        command += ["--no-storage.tsdb.wal-compression", "--log.level=warn"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        wait(self.ready, 60, "Prometheus")

    def ready(self) -> bool:
        """Say whether it answers questions."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the vector of an expression now, without what is not a number; nothing where it does not answer."""
        try:
            found = fetch(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expr})}")
        except OSError:
            return []
        return [row for row in found["data"]["result"] if row["value"][1] != "NaN"]

    def number(self, expr: str) -> float | None:
        """Return the one value of an expression; None where there is none."""
        rows = self.query(expr)
        return float(rows[0]["value"][1]) if rows else None

    def targets(self) -> list[tuple[str, str]]:
        """Return address and health of every target."""
        active = fetch(f"{self.url}/api/v1/targets")["data"]["activeTargets"]
        return [(one["labels"]["instance"], one["health"]) for one in active]

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        try:
            alerts = fetch(f"{self.url}/api/v1/alerts")["data"]["alerts"]
        except OSError:
            return set()
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    def labels(self) -> bytes:
        """Return every series with its labels, as text."""
        match = urllib.parse.urlencode({"match[]": '{__name__=~".+"}'})
        return json.dumps(fetch(f"{self.url}/api/v1/series?{match}")["data"]).encode()

    def kill(self) -> None:
        """Kill it."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()


class FakeSlack:
    """An incoming webhook on loopback that takes everything and remembers when it came."""

    def __init__(self, token: str) -> None:
        self.told: list[tuple[float, str]] = []
        self.wrong_paths = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers["Content-Length"])).decode("utf-8", "replace")
                right = self.path.endswith(token)
                outer.wrong_paths += not right
                outer.told.append((time.monotonic(), text))
                self.send_response(200 if right else 404)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/services/T000/B000/{token}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def heard(self, word: str, since: float = 0.0) -> float | None:
        """Return when a message with a word first came after ``since``, seconds of the monotonic clock."""
        return next((at for at, text in list(self.told) if at >= since and word in text), None)

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
