"""The whole topology as plain processes, driven and broken on purpose: the drill that users have, and its table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# every process, each of which has to be killed, seen and back
OURS = ("exporter", "alerts", "webserver", "code-server", "daemon", "risk-watch", "dead-man", "emulator")
KILLED = (*OURS, "Prometheus", "Postgres", "mlbot up --live")
ASKED = (
    "trading in Postgres mode",
    "Prometheus' targets",
    "expressions of boards and rules",
    "rules without a cause",
    "exchange down: MlbotWatchBlind at Slack",
    "exchange back: alert over, NORMAL again",
    "requests signed with canary keys",
    "requests signed with another key",
    "command lines of all processes",
    "book and exchange",
    "the search finds api_keys.yaml",
    "canaries in everything else",
)


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_the_drill_meets_every_line(tmp_path: Path) -> None:
    if shutil.which("prometheus") is None or not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        message = "the drill needs Postgres and Prometheus (Debian: apt-get install postgresql prometheus)"
        if os.environ.get("MLBOT_REQUIRE_POSTGRES"):
            pytest.fail(message)
        pytest.skip(message)
    command = [sys.executable, str(ROOT / "deploy" / "drill"), "--json", "--folder", str(tmp_path / "drill")]
    command += ["--minutes", os.environ.get("MLBOT_DRILL_MINUTES", "10")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    found = json.loads(done.stdout.splitlines()[-1])
    assert [line for line in found["lines"] if not line["met"]] == []
    assert (done.returncode, found["met"]) == (0, True)
    told = {line["what"] for line in found["lines"]}
    assert set(ASKED) | {f"{name} killed" for name in KILLED} <= told
