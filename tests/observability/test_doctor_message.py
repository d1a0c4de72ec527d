"""``mlbot doctor --test-message`` reaches every channel, says which one does not take it, and shows no secret."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlbot_core.cli.doctor import examine
from mlbot_core.clock import FixedClock
from mlbot_core.config import load_settings

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_740_000_000_000


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Settings of an empty home without anybody's keys or addresses; Bybit is a port that nobody has."""
    config = tmp_path / "config"
    shutil.copytree(ROOT / "config", config, ignore=shutil.ignore_patterns("api_keys.yaml"))
    for name in [name for name in os.environ if name.startswith("MLBOT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLBOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLBOT_CONFIG_DIR", str(config))
    monkeypatch.setenv("MLBOT_ARCHIVE_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("MLBOT_BYBIT_URL", "http://127.0.0.1:9")
    return monkeypatch


def alerts_of(**more):
    found = examine(load_settings(), FixedClock(NOW), **more)
    return {one.name: (one.state, one.text) for one in found if one.name.startswith("alerts")}


def test_without_a_channel_it_is_a_note_and_a_fault_only_for_whoever_asks_for_a_message(nowhere):
    assert alerts_of()["alerts"][0] == "note"
    state, text = alerts_of(test_message=True)["alerts"]
    assert state == "bad"
    assert "slack_webhook" in text


def test_each_channel_is_told_once_and_only_when_asked(nowhere, slack):
    nowhere.setenv("MLBOT_SLACK_WEBHOOK", slack.url)
    nowhere.setenv("MLBOT_ALERT_WEBHOOK", slack.url.replace("/services/", "/hook/"))
    assert alerts_of() == {"alerts": ("ok", "go to slack, webhook; see whether they arrive with --test-message")}
    assert slack.bodies == []
    told = alerts_of(test_message=True)
    assert {name: state for name, (state, _) in told.items()} == {"alerts: slack": "ok", "alerts: webhook": "ok"}
    assert [body["path"].split("/")[1] for body in slack.bodies] == ["services", "hook"]
    assert all("Nothing has to be done" in body["text"] for body in slack.bodies)


def test_a_channel_that_refuses_is_named_the_other_one_is_told_and_no_secret_is_shown(nowhere, slack):
    nowhere.setenv("MLBOT_SLACK_WEBHOOK", slack.url)
    nowhere.setenv("MLBOT_ALERT_WEBHOOK", slack.url.replace("/services/", "/hook/"))
    slack.answers = [(403, {})]
    told = alerts_of(test_message=True)
    assert told["alerts: slack"][0] == "bad"
    assert "HTTP 403" in told["alerts: slack"][1]
    assert told["alerts: webhook"][0] == "ok"
    assert "canary" not in json.dumps(told)
    nowhere.setenv("MLBOT_SLACK_WEBHOOK", "canary-pasted-token")
    state, text = alerts_of(test_message=True)["alerts: slack"]
    assert (state, "canary" in text) == ("bad", False)


def test_the_command_leaves_with_one_if_a_channel_does_not_take_it(nowhere, slack, tmp_path):
    nowhere.setenv("MLBOT_SLACK_WEBHOOK", slack.url)
    slack.answers = [(404, {})]
    done = subprocess.run(
        [sys.executable, "-m", "mlbot_core.cli.main", "doctor", "--test-message", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    states = {one["name"]: one["state"] for one in json.loads(done.stdout)}
    assert states["alerts: slack"] == "bad"
    assert done.returncode == 1
    assert "canary" not in done.stdout + done.stderr
