"""``mlbot bandit``: what a person sees, what is refused and how it leaves."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mlbot_core.backtest.sizing_section import sizing
from mlbot_core.cli.bandit import table_of
from mlbot_core.cli.main import app
from mlbot_core.clock import FixedClock
from mlbot_core.config import load_settings
from mlbot_core.decision.bandit import PolicySpec, initial_bandit
from mlbot_core.decision.bandit_context import N_CONTEXT, Context, ContextScale
from mlbot_core.decision.bandit_log import FILE_NAME, BanditLog
from mlbot_core.errors import UsageError

LINE = "archive BTC-2h lightgbm"
WHY = ("--why", "for a test")
SUMMARY = {
    "line": LINE,
    "model_version": "a" * 64,
    "synthetic": False,
    "judged": 345,
    "decisions": 690,
    "judged_from_ms": 1_697_500_800_000,
    "end_ms": 1_751_328_000_000,
    "level": 0.95,
    "verdict": "refused, sizes stay as they are: <b>not</b> significant",
    "rows": [
        {
            "name": "fixed <1>",
            "multiplier": 1.0,
            "reward": [-0.8, -1.2, -0.4],
            "dr": [-0.5, -1.5, 0.4],
            "effective_n": 42.0,
            "advantage_simulated": [0.6, 0.3, 0.9],
            "advantage_log": None,
            "total_return": -0.07,
            "sharpe": [None, None, None],
            "max_drawdown": 0.1,
            "trades": 349,
        }
    ],
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MLBOT_HOME", str(tmp_path))
    monkeypatch.setenv("MLBOT_SOURCE", "archive")
    monkeypatch.setenv("MLBOT_CLOCK", "fixed:2025-07-02T00:00:00Z")
    return tmp_path


@pytest.fixture
def promoted(home) -> BanditLog:
    log = BanditLog(home, FixedClock(1_750_000_000_000))
    spec = PolicySpec("lints", "shared", N_CONTEXT)
    log.promote(LINE, initial_bandit(spec), ContextScale(0.5, 0.25), why="test", verdict={})
    log.act(LINE, "1", Context(0.003, 0.01, 0.0015, 0.001, 0.5, 1.0, 0.0, 0.0), explore=False)
    return log


def invoke(*words):
    return CliRunner().invoke(app, ["bandit", *words])


def test_status_of_nothing(home):
    assert "whole cap is used" in invoke("status").stdout
    assert json.loads(invoke("status", "--json").stdout) == {"events": [], "lines": []}


def test_status_shows_what_is_used_and_off_turns_it_off(promoted):
    (row,) = json.loads(invoke("status", "--json").stdout)["lines"]
    assert (row["line"], row["sizes by"], row["updates"], row["open"]) == (LINE, "bandit", 0, 1)
    done = invoke("off", *WHY, "-i", "2h", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert LINE in found["off"]
    assert not any("4h" in line for line in found["off"])
    assert found["not_logged"] is None
    after = json.loads(invoke("status", "--json").stdout)
    assert after["lines"][0]["sizes by"] == "volatility target"
    assert [event["kind"] for event in after["events"]] == ["promoted", "off"]
    assert promoted.act(LINE, "2", Context(*[0.1] * 8), explore=False) is None


def test_off_works_where_the_log_is_broken(promoted, home):
    for suffix in ("-wal", "-shm"):
        (home / f"{FILE_NAME}{suffix}").unlink(missing_ok=True)
    (home / FILE_NAME).write_bytes(b"no database" * 500)
    done = invoke("off", *WHY)
    assert done.exit_code == 0, done.output
    assert "it holds" in done.stdout
    assert promoted.act(LINE, "2", Context(*[0.1] * 8), explore=False) is None


@pytest.mark.usefixtures("archive_dir")
def test_promotion_without_an_evaluation_is_refused_and_says_what_to_run(home):
    done = invoke("promote", "-i", "2h", *WHY, "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["promoted"] is False
    assert "mlbot bandit evaluate -s archive -i 2h -m lightgbm" in found["reason"]
    assert not (home / FILE_NAME).exists()


def test_mistakes_are_usage_errors(home):
    assert isinstance(invoke("off", "--why", "  ").exception, UsageError)
    assert isinstance(invoke("off", *WHY, "--symbol", "DOGE").exception, UsageError)
    assert isinstance(invoke("promote", "-i", "7h", *WHY).exception, UsageError)


def test_exploration_with_real_money_is_off_by_default(home):
    assert load_settings().bandit.explore_live is False


def test_tables_of_an_evaluation():
    from rich.console import Console

    console = Console(width=200, record=True, file=None, quiet=True)
    console.print(table_of(SUMMARY))
    html = sizing(SUMMARY, "a" * 64)
    assert "fixed &lt;1&gt;" in html
    assert "&lt;b&gt;not&lt;/b&gt;" in html
    assert "+0.600 [+0.300, +0.900]" in html
    assert "another version" not in html
    assert "another version" in sizing(SUMMARY, "b" * 64)
    assert "mlbot bandit evaluate" in sizing(None, "a")
