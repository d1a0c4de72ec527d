"""The processes of ``mlbot up --live``: who they are, how they are started, in which order."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from mlbot_core.cli.supervisor import Service
from mlbot_core.clock import format_utc
from mlbot_core.config import Settings
from mlbot_core.emulator.exchange.auth import EMULATOR_UID
from mlbot_core.execution.venues import RUNNING_FILE, emulator_folder, paper_command, running_emulator_uid
from mlbot_core.live import LIVE_VARIABLE

LOCATION = "mlbot"


@dataclass(frozen=True)
class LiveSet:
    """Services in the order in which they start, and what their environment needs on top of the usual."""

    services: tuple[Service, ...]
    environment: Mapping[str, str]


def live_set(settings: Settings, host: str, port: int, *, warm: bool) -> LiveSet:
    """Return what runs when trading is on; with ``warm`` runs are forked from a process that has imported everything.

    The emulator comes first where prices or orders go to it; then Dagster's code server, web UI and daemon, each of
    which can be restarted alone; the risk watch and the dead-man need none of them.
    """
    python = sys.executable
    services: list[Service] = []
    environment = {LIVE_VARIABLE: "1"}
    venue = settings.execution.venue
    if "emulator" in (venue, settings.intervals.source) and not settings.emulator_url:
        market, at = settings.intervals.emulator, free_port()
        environment["MLBOT_EMULATOR_URL"] = f"http://127.0.0.1:{at}"
        command = [python, "-m", "mlbot_core.emulator", "--port", str(at), "--seed", str(market.seed)]
        command += ["--start", format_utc(market.start_ms)[:10], "--mode", market.mode, "--plan", market.plan]
        services.append(Service("emulator", tuple(command), ready=("127.0.0.1", at)))
        environment["MLBOT_EMULATOR_UID"] = str(_announce(settings, environment["MLBOT_EMULATOR_URL"]))
    if venue == "paper":
        services.append(Service("paper", tuple(paper_command(settings))))
    code_port = free_port()
    workspace = settings.dagster_home / "workspace-live.yaml"
    workspace.parent.mkdir(parents=True, exist_ok=True)
    server = {"host": "127.0.0.1", "port": code_port, "location_name": LOCATION}
    workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}), encoding="utf-8")
    scripts = Path(python).parent
    code = [python, "-m", "mlbot_dagster.code_server", "--port", str(code_port), "--location-name", LOCATION]
    code += ["--warm"] if warm else []
    web = (str(scripts / "dagster-webserver"), "-h", host, "-p", str(port), "-w", str(workspace))
    daemon = (str(scripts / "dagster-daemon"), "run", "-w", str(workspace))
    services += [
        Service("code-server", tuple(code), ready=("127.0.0.1", code_port), stop_wait_s=20.0),
        Service("webserver", web, ready=(host, port)),
        Service("daemon", daemon, stop_wait_s=20.0),
        Service("risk-watch", (python, "-m", "mlbot_core.execution.risk_watch")),
        Service("dead-man", (python, "-m", "mlbot_core.execution.deadman")),
        Service("exporter", (python, "-m", "mlbot_core.observability.exporter")),
        Service("alerts", (python, "-m", "mlbot_core.observability.alerts")),
    ]
    return LiveSet(tuple(services), environment)


def _announce(settings: Settings, url: str) -> int:
    """Write down where the emulator will be, for `mlbot halt` in another terminal, and return its account.

    An emulator forgets everything when it ends. Each start trades an account of its own, with a book of its own: in the
    book of the one before, the new history would contradict the old.
    """
    before = running_emulator_uid(settings)
    uid = EMULATOR_UID if before is None else before + 1
    path = emulator_folder(settings) / RUNNING_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"url": url, "uid": uid}), encoding="utf-8")
    return uid


def free_port() -> int:
    """Return a port of the loopback address that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
