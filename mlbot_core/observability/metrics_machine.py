"""The machine: halt markers, heartbeats, Dagster's runs and daemons, and the emulator."""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from mlbot_core.clock import SystemClock, parse_utc_ms
from mlbot_core.config import Settings
from mlbot_core.execution.safety import MARKER, SafetyFiles
from mlbot_core.observability.metrics import Readings, Since
from mlbot_core.observability.read_only import TIMEOUT_S, read_only_engine

WATCH: Final = "risk-watch"
_BEAT: Final = "beat-"
# of Dagster's own; shown as zero where there is none
_STATUSES: Final = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "SUCCESS", "FAILURE", "CANCELING", "CANCELED")


class SafetyMetrics:
    """Reads marker and heartbeats of every account of the configured venue: a few small files, no lock."""

    name = "safety"

    def __init__(self, settings: Settings, every_s: float = 1.0) -> None:
        self.every_s = every_s
        self._live_dir = settings.live_dir
        self._venue = settings.execution.venue

    def read(self) -> Readings | None:
        """Return what the files say; None where there is no account's folder."""
        folders = sorted(self._live_dir.glob(f"{self._venue}_*")) if self._live_dir.exists() else []
        readings = Readings()
        shown = False
        for folder in folders:
            beats = sorted(path.name[len(_BEAT) : -len(".json")] for path in folder.glob(f"{_BEAT}*.json"))
            if not beats and not (folder / MARKER).exists() and not (folder / "halts").exists():
                continue
            shown = True
            self._account(readings, folder, beats)
        return readings if shown else None

    def _account(self, readings: Readings, folder: Path, beats: list[str]) -> None:
        account = folder.name.replace("_", ":", 1)
        files = SafetyFiles(folder, account)
        halt = files.halted()
        readings.put("mlbot_halted", float(halt is not None), account=account)
        if halt is not None and halt.at_ms:
            readings.put("mlbot_halt_age_seconds", Since(halt.at_ms), account=account)
        for name in beats:
            beat = files.heartbeat(name)
            if beat is None:
                continue
            here = {"account": account, "process": name}
            readings.put("mlbot_heartbeat_age_seconds", Since(beat.at_ms), **here)
            readings.put("mlbot_heartbeats_total", float(beat.counter), **here)
            readings.put("mlbot_process_running", float(beat.still_runs()), **here)
            readings.put("mlbot_process_ended_on_purpose", float(beat.farewell), **here)
            if name == WATCH:
                for metric, fact in (
                    ("mlbot_watch_blind_seconds", "blind_s"),
                    ("mlbot_watch_failures_total", "failures"),
                ):
                    value = beat.facts.get(fact)
                    readings.put(metric, float(value) if isinstance(value, int | float) else math.nan, account=account)


class DagsterMetrics:
    """Reads run and daemon tables of Dagster's storage on a connection that cannot write; Dagster is not imported."""

    name = "dagster"

    def __init__(self, settings: Settings, environ: Mapping[str, str], every_s: float = 10.0) -> None:
        self.every_s = every_s
        url = environ.get("MLBOT_PG_URL") or None
        path = settings.dagster_home / "history" / "runs.db"
        self._file = path if url is None else None
        self._engine = read_only_engine(path, url)

    def read(self) -> Readings | None:
        """Return counts of runs and ages of daemons; None where there is no storage."""
        if self._file is not None and not self._file.exists():
            return None
        with self._engine.connect() as connection:
            if not sa.inspect(connection).has_table("runs"):
                return None
            counts = connection.execute(sa.text("SELECT status, count(*) FROM runs GROUP BY status")).all()
            daemons = connection.execute(sa.text("SELECT daemon_type, timestamp FROM daemon_heartbeats")).all()
        readings = Readings()
        for status, count in {**dict.fromkeys(_STATUSES, 0), **{str(s): int(n) for s, n in counts}}.items():
            readings.put("mlbot_dagster_runs", float(count), status=status)
        # Dagster stamps by the wall's clock, whatever ours is
        now_ms = SystemClock().now_ms()
        for daemon, at in daemons:
            age_s = (now_ms - parse_utc_ms(str(at))) / 1000
            readings.put("mlbot_dagster_daemon_heartbeat_age_seconds", age_s, daemon=str(daemon))
        return readings


class EmulatorMetrics:
    """Asks the emulator that ``MLBOT_EMULATOR_URL`` names which faults it injected."""

    name = "emulator"
    _PATHS: Final = (("trading", "/_emulator/exchange/faults/log"), ("data", "/_emulator/faults/log"))

    def __init__(self, settings: Settings, every_s: float = 10.0) -> None:
        self.every_s = every_s
        self._url = settings.emulator_url

    def read(self) -> Readings | None:
        """Return the counts; None where no emulator is configured."""
        if not self._url:
            return None
        readings = Readings()
        try:
            for side, path in self._PATHS:
                readings.put("mlbot_emulator_faults_total", float(len(self._ask(path))), side=side)
            readings.put("mlbot_emulator_up", 1.0)
        except OSError:
            # that it does not answer is the answer
            readings = Readings()
            readings.put("mlbot_emulator_up", 0.0)
        return readings

    def _ask(self, path: str) -> list[Any]:
        with urllib.request.urlopen(f"{str(self._url).rstrip('/')}{path}", timeout=TIMEOUT_S) as answer:
            found: Any = json.load(answer)
        return found if isinstance(found, list) else list(found.get("log", ()))
