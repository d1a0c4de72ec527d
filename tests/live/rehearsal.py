"""A home that was trained and everything that ``mlbot up --live`` starts on it, on a clock that is moved ahead.

Shared by the rehearsal of live trading and by ``benchmarks/live_latency.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from mlbot_core.clock import FixedClock, SharedClock, parse_utc_ms
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.timeframe import Timeframe

ROOT = Path(__file__).resolve().parents[2]
BEGIN = "2023-09-01"
TRAINED_FROM = "2024-03-01"
NOW = "2024-04-01T00:05:00Z"
SPEED = 2.0
SETTLE_S = 20
# the sensors ask ten seconds before the close and look every five seconds of the wall
AHEAD_MS = 24_000
DECIDED_WITHIN_S = 600
MIB = 1024 * 1024
ACCOUNT = "emulator:100001"
CONTRACT = "BTCUSDT"
TWO_HOURS = Timeframe(120)


def wait(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.2)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass
class Rehearsal:
    """A home that was trained, and everything that trades on it."""

    folder: Path
    timeframes: Sequence[str]
    speed: float = SPEED
    settle_s: int = SETTLE_S
    ahead_ms: int = AHEAD_MS
    warm: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def clock(self) -> SharedClock:
        return SharedClock(self.folder / "clock")

    def prepare(self) -> None:
        """Write the configuration, pull the history, train."""
        config = self.folder / "config"
        shutil.copytree(ROOT / "config", config, ignore=shutil.ignore_patterns("api_keys.yaml"))
        self._edit(config / "intervals.yaml", timeframes=list(self.timeframes))
        self._edit(config / "intervals.yaml", "settle_delay_s", emulator=self.settle_s)
        self._edit(config / "intervals.yaml", "emulator", start=BEGIN, seed=20240101)
        self._edit(config / "intervals.yaml", history_start=BEGIN)
        self._edit(config / "models.yaml", "walk_forward", train_days=120, min_train_days=60, test_days=30, models={})
        self._edit(config / "execution.yaml", model="lightgbm")
        self.surround()
        SharedClock.begin(self.folder / "clock", parse_utc_ms(NOW), self.speed)
        intervals = [part for timeframe in self.timeframes for part in ("-i", timeframe)]
        self.mlbot("backfill", "--from", BEGIN, *intervals)
        self.mlbot("train", "-m", "lightgbm", "--from", TRAINED_FROM, *intervals)

    def surround(self) -> None:
        """Make the environment of every process of this home."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLBOT_", "DAGSTER_"))}
        self.environment = kept | {
            "MLBOT_HOME": str(self.home),
            "MLBOT_CONFIG_DIR": str(self.folder / "config"),
            "MLBOT_SOURCE": "emulator",
            "MLBOT_CLOCK": f"file:{self.folder / 'clock'}",
            "MLBOT_EXPORTER_PORT": str(_free_port()),
        }

    def _edit(self, path: Path, section: str = "", **values: Any) -> None:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        target = content[section] if section else content
        assert set(values) <= set(target), "the test's own edit must take"
        target.update(values)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def mlbot(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mlbot_core.cli.main", *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        port = _free_port()
        with (self.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlbot_core.cli.main", "up", "--live", "--port", str(port)]
                + ["--warm"] * self.warm,
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.port = port
        wait(lambda: "running:" in self.said() or self.process.poll() is not None, 240, "mlbot up --live")
        assert self.process.poll() is None, self.said()
        # a sensor that was never looked at asks for the newest closed bar first; let it
        wait(lambda: self.beats("risk-watch"), 60, "the risk watch")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(90)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                raise

    def said(self) -> str:
        path = self.folder / "up.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def services(self) -> dict[str, dict[str, Any]]:
        rows = json.loads((self.home / "live" / "services.json").read_text(encoding="utf-8"))
        return {row["name"]: row for row in rows}

    def beats(self, name: str) -> Mapping[str, Any] | None:
        path = self.home / "live" / "emulator_100001" / f"beat-{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def kill(self, name: str) -> None:
        before = self.services()[name]["pid"]
        os.kill(before, signal.SIGKILL)
        wait(lambda: self.services().get(name, {}).get("pid") not in (None, before), 90, f"{name} to be started again")

    def resident(self) -> dict[str, float]:
        """Return the resident memory of each service by itself, MiB; one that is being restarted is left out."""
        found = {}
        for name, row in self.services().items():
            with suppress(psutil.NoSuchProcess):
                found[name] = psutil.Process(row["pid"]).memory_info().rss / MIB
        return found

    def book(self) -> ExecutionLedger:
        return ExecutionLedger(self.home, FixedClock(self.clock.now_ms()), ACCOUNT)

    def decided(self) -> int:
        with self.book() as book:
            newest = book.newest_decision(CONTRACT)
        return -1 if newest is None else newest.ts

    def to_next_bar(self, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Move ahead to shortly before the next close, and wait until its bar is decided; return its open time."""
        now = self.clock.now_ms()
        bar = TWO_HOURS.floor(now)
        if self.decided() >= bar:
            bar += TWO_HOURS.ms
        before = bar + TWO_HOURS.ms - self.ahead_ms
        if before > now:
            self.clock.set_ms(before)
        meanwhile()
        wait(lambda: self.decided() >= bar, DECIDED_WITHIN_S, f"the decision on {bar}")
        # its orders, and what the run writes down after them
        wait(lambda: not self.open_intents(), 120, "the orders of the decision")
        time.sleep(2)
        return bar

    def open_intents(self) -> int:
        with self.book() as book:
            return len(book.open_intents(CONTRACT))

    def truth(self) -> dict[str, Any]:
        with (self.home / "live" / "logs" / "emulator.log").open(encoding="utf-8") as log:
            url = json.loads(log.readline())["url"]
        with urllib.request.urlopen(f"{url}/_emulator/exchange/truth", timeout=60) as answer:
            found: dict[str, Any] = json.loads(answer.read())["accounts"]["100001"]
        return found

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Ask the web UI's own interface."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.loads(answer.read())["data"]
        return found
