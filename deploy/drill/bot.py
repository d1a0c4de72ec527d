"""The product under drill: a home that was trained, and everything that ``mlbot up --live`` starts on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from surroundings import ROOT, fetch, free_port, wait

from mlbot_core.clock import FixedClock, SharedClock, parse_utc_ms
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.safety import folder_of, process_started
from mlbot_core.timeframe import Month, Timeframe

BEGIN = "2023-09-01"
TRAINED_FROM = "2024-03-01"
DRIFT_MONTH = "2024-03"
NOW = "2024-04-01T00:05:00Z"
CONTRACT = "BTCUSDT"
BAR = Timeframe.parse("2h")
SPEED = 2.0
SETTLE_S = 30
# the sensors ask ten seconds before the close and look every five seconds of the wall
AHEAD_MS = 24_000
SUPERVISOR = "mlbot up --live"


class Bot:
    """A home and its processes.

    Parameters
    ----------
    folder
        Everything of it lies there: ``home``, ``config``, ``clock``, ``tmp``, what it said.
    secrets
        By environment variable; those of ``api_keys.yaml`` are written there.
    environment
        On top of that of this process.
    """

    def __init__(self, folder: Path, secrets: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.config = folder / "config"
        self.keys_file = self.config / "api_keys.yaml"
        self._secrets = dict(secrets)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLBOT_", "DAGSTER_"))}
        local = {name: value for name, value in secrets.items() if name.startswith("MLBOT_EMULATOR_")}
        self.environment = kept | local | dict(environment)
        self.environment |= {
            "MLBOT_HOME": str(self.home),
            "MLBOT_CONFIG_DIR": str(self.config),
            "MLBOT_SOURCE": "emulator",
            "MLBOT_CLOCK": f"file:{folder / 'clock'}",
            "TMPDIR": str(folder / "tmp"),
        }
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    # --- before

    def configure(self) -> None:
        """Write the configuration and the keys, and begin the clock."""
        shutil.copytree(ROOT / "config", self.config, ignore=shutil.ignore_patterns("api_keys.yaml"))
        (self.folder / "tmp").mkdir()
        self._edit("intervals", timeframes=[str(BAR)], history_start=BEGIN)
        self._edit("intervals", "settle_delay_s", emulator=SETTLE_S)
        self._edit("intervals", "emulator", start=BEGIN)
        self._edit("models", "walk_forward", train_days=120, min_train_days=60, test_days=30, models={})
        self._edit("execution", model="lightgbm")
        # where trading costs next to nothing every forecast is worth an order: it is the orders that are drilled
        self._edit("fees", slippage_bp=0.1, impact_bp=0.1)
        self._edit("fees", "tiers", vip0={"taker_bp": 0.1, "maker_bp": 0.1})
        self._write_keys()
        SharedClock.begin(self.folder / "clock", parse_utc_ms(NOW), SPEED)

    def prepare(self) -> None:
        """Configure, pull a synthetic history, train one model, judge its drift."""
        self.configure()
        self.mlbot("backfill", "--from", BEGIN, "-i", str(BAR))
        self.mlbot("train", "-m", "lightgbm", "--from", TRAINED_FROM, "-i", str(BAR))
        partition = f"BTC-{BAR}|{Month.parse(DRIFT_MONTH).key}"
        plan = [{"job": "drift", "title": "drift", "first": partition, "last": partition, "source": "emulator"}]
        self._run([sys.executable, "-m", "mlbot_dagster.launch"], json.dumps(plan))

    def _edit(self, name: str, section: str = "", **values: Any) -> None:
        path = self.config / f"{name}.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        target = content[section] if section else content
        assert set(values) <= set(target), f"{path} has no {set(values) - set(target)}"
        target.update(values)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def _write_keys(self) -> None:
        named = self._secrets
        keys = {
            "cg_api": named["MLBOT_CG_API"],
            "bybit": {"key": named["MLBOT_BYBIT_KEY"], "secret": named["MLBOT_BYBIT_SECRET"]},
            "deadman": {"key": named["MLBOT_DEADMAN_KEY"], "secret": named["MLBOT_DEADMAN_SECRET"]},
            "slack_webhook": named["MLBOT_SLACK_WEBHOOK"],
        }
        self.keys_file.touch(mode=0o600)
        self.keys_file.write_text(yaml.safe_dump(keys), encoding="utf-8")

    def mlbot(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command; what it says is kept beside the logs."""
        return self._run([sys.executable, "-m", "mlbot_core.cli.main", *arguments], check=check)

    def _run(self, command: list[str], text: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            input=text,
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        with (self.folder / "commands.log").open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done

    # --- up

    def start(self) -> None:
        """Start everything and wait until it runs and the risk watch sees the account."""
        mark = len(self.said())
        with (self.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlbot_core.cli.main", "up", "--live", "--port", str(self.port)],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = self.process
        wait(lambda: "running:" in self.said()[mark:] or process.poll() is not None, 300, SUPERVISOR)
        if process.poll() is not None:
            raise RuntimeError(f"{SUPERVISOR} ended: {self.said()[mark:][-2000:]}")
        wait(lambda: self.beat("risk-watch"), 90, "the risk watch")

    def stop(self) -> None:
        """Ask everything to end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def end_left_behind(self) -> None:
        """Kill what runs although nobody supervises it any more."""
        for row in self.services().values():
            if row["begun"] is not None and process_started(row["pid"]) == row["begun"]:
                os.killpg(row["pid"], signal.SIGKILL)

    def said(self) -> str:
        """Return what the supervisor said."""
        path = self.folder / "up.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def services(self) -> dict[str, dict[str, Any]]:
        """Return the supervisor's record by service."""
        try:
            rows = json.loads((self.home / "live" / "services.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return {row["name"]: row for row in rows}

    def pid(self, name: str) -> int | None:
        """Return the process of a service; None while it has none."""
        row = self.services().get(name)
        return None if row is None else int(row["pid"])

    def processes(self) -> dict[int, bytes]:
        """Return the command lines of every process that works on this home."""
        wanted = f"MLBOT_HOME={self.home}\0".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if wanted in (entry / "environ").read_bytes():
                        found[int(entry.name)] = (entry / "cmdline").read_bytes()
                except OSError:  # it ended while we looked, or belongs to somebody else
                    continue
        return found

    # --- what it trades

    @property
    def _running(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "live/emulator/running.json").read_text(encoding="utf-8"))
        return found

    @property
    def emulator_url(self) -> str:
        """Where the emulator is."""
        return str(self._running["url"])

    @property
    def uid(self) -> str:
        """The user of the account that is traded."""
        return str(self._running["uid"])

    @property
    def account(self) -> str:
        """The account that is traded."""
        return f"emulator:{self.uid}"

    @property
    def clock(self) -> SharedClock:
        """The present of all processes."""
        return SharedClock(self.folder / "clock")

    def beat(self, name: str) -> dict[str, Any] | None:
        """Return the newest heartbeat of a process of the account."""
        try:
            path = folder_of(self.home / "live", self.account) / f"beat-{name}.json"
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found

    def halted(self) -> bool:
        """Say whether the halt marker stands."""
        return (folder_of(self.home / "live", self.account) / "HALTED").exists()

    def book(self) -> ExecutionLedger:
        """Return the book of the account."""
        url = self.environment["MLBOT_PG_URL"]
        return ExecutionLedger(self.home, FixedClock(self.clock.now_ms()), self.account, url=url)

    def truth(self) -> dict[str, Any]:
        """Return what the emulator knows."""
        found: dict[str, Any] = fetch(f"{self.emulator_url}/_emulator/exchange/truth", timeout_s=60)
        return found

    def faults(self, *faults: Mapping[str, Any]) -> None:
        """Install faults of the trading side; none ends them."""
        body = {"faults": list(faults)} if faults else None
        fetch(f"{self.emulator_url}/_emulator/exchange/faults", body, "PUT" if faults else "DELETE")

    def decided(self) -> int:
        """Return the open time of the newest bar that was decided, UTC ms; -1 of none."""
        with self.book() as book:
            newest = book.newest_decision(CONTRACT)
        return -1 if newest is None else newest.ts

    def to_next_bar(self, seconds: float = 360) -> int:
        """Move shortly before the next close and wait until its bar is decided and carried out; return its open time.

        Raises
        ------
        TimeoutError
            If it is not, in so many seconds of the wall.
        """
        now, bar = self.clock.now_ms(), BAR.floor(self.clock.now_ms())
        if self.decided() >= bar:
            bar += BAR.ms
        before = bar + BAR.ms - AHEAD_MS
        if before > now:
            self.clock.set_ms(before)
        wait(lambda: self.decided() >= bar, seconds, f"the decision on the bar of {bar}", 1.0)
        wait(lambda: not self._open_intents(), 120, "the orders of the decision", 1.0)
        return bar

    def _open_intents(self) -> int:
        with self.book() as book:
            return len(book.open_intents(CONTRACT))
