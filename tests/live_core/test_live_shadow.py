"""A challenger trades on paper on the bars of its champion: the same forecasts, the same account, and no order sent."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from mlbot_core.cli.models import app
from mlbot_core.clock import format_utc, parse_utc_ms
from mlbot_core.decision.costs import costs_from_fees
from mlbot_core.errors import MissingDataError
from mlbot_core.live.code import code_now
from mlbot_core.live.shadow import contests, newest_period
from mlbot_core.live.signal_store import Signal, SignalKey, write_signals
from mlbot_core.models.base import FORECAST
from mlbot_core.timeframe import DAY_MS, HOUR_MS

START = parse_utc_ms("2024-09-02T00:00:00Z")
STEP = 2 * HOUR_MS
EDGES = (0.02, 0.02, -0.02, -0.02, math.nan, 0.02, 0.0, -0.02, -0.02, 0.02, 0.02, 0.02)
END = START + len(EDGES) * STEP


def say(home, tools, version, role, edges, *, skip=(), kind="lightgbm"):
    """Store what a model said of consecutive bars."""
    code = code_now()
    made = []
    for n, edge in enumerate(edges):
        if n in skip:
            continue
        key = SignalKey(tools.SOURCE, tools.TWO, START + n * STEP, kind, version)
        decided = key.ts + STEP + 5_000
        made.append(
            Signal(
                key=key,
                role=role,
                forecast=dict.fromkeys(FORECAST, 0.1),
                width=0.02,
                edge=edge,
                multiplier=1.0,
                usable=math.isfinite(edge),
                late=False,
                reason="",
                decision_ms=decided,
                known_by_ms=decided,
                made_at=decided,
                run_id="test",
                code=code.version,
                vector=np.ones((1, 2)),
                inputs=(),
                details={},
            )
        )
    write_signals(home.store, made, code)


def fought(home, tools, **more):
    return contests(home.store, home.settings, tools.SOURCE, tools.TWO, START, END, **more)


def test_the_same_forecasts_make_the_same_account(home, tools):
    say(home, tools, "a" * 64, "champion", EDGES)
    say(home, tools, "b" * 64, "challenger", EDGES)
    say(home, tools, "c" * 64, "base", [-edge for edge in EDGES])
    (found,) = fought(home, tools)
    assert found.same_bars
    assert found.lead == 0.0
    one, other = found.champion.simulation, found.challenger.simulation
    assert np.array_equal(one.nav, other.nav)
    assert one.fills.equals(other.fills)
    assert len(one.fills) >= 4
    told = found.as_json()["challenger"]
    assert told["forecasts"] == len(EDGES) - 1
    taker = costs_from_fees(home.settings.fees).taker
    assert told["fees"] == pytest.approx(told["turnover"] * 10_000.0 * taker, rel=0.01)
    assert told["turnover"] > 0.5
    assert told["max_drawdown"] > 0.0
    assert told["nav"] == pytest.approx(10_000.0 * (1.0 + told["return"]))
    assert not (home.settings.home / "live").exists(), "an account was opened"


def test_a_challenger_is_compared_on_its_own_bars_only(home, tools):
    say(home, tools, "a" * 64, "champion", EDGES[:6])
    # promoted in between: who may speak is the champion's account
    say(home, tools, "d" * 64, "champion", EDGES, skip=range(6))
    say(home, tools, "b" * 64, "challenger", [-edge for edge in EDGES], skip=range(4))
    say(home, tools, "e" * 64, "challenger", EDGES, skip=(*range(7), 9))
    newest, older = fought(home, tools)
    assert newest.challenger.versions == ("e" * 64,)
    assert newest.challenger.missed == 1
    assert not newest.same_bars
    assert (newest.start_ms, newest.end_ms) == (START + 7 * STEP, END)
    assert older.champion.versions == ("a" * 64, "d" * 64)
    assert older.same_bars
    assert len(older.challenger.simulation.ts) == 8
    mine, theirs = older.challenger.simulation.position, older.champion.simulation.position
    assert (mine * theirs < 0).sum() >= 3
    assert (mine * theirs <= 0).all()
    assert older.lead == older.challenger.total_return - older.champion.total_return != 0.0


def test_what_was_known_then_makes_the_same_account_again(home, tools):
    say(home, tools, "a" * 64, "champion", EDGES)
    say(home, tools, "b" * 64, "challenger", [-edge for edge in EDGES])
    then = home.clock.now_ms()
    (before,) = fought(home, tools)
    home.at("2024-09-20T02:00:05Z")
    (after,) = fought(home, tools, known_by_ms=then)
    assert np.array_equal(before.challenger.simulation.nav, after.challenger.simulation.nav)
    assert before.as_json() == after.as_json()


def test_without_a_challenger_there_is_nothing_to_compare(home, tools):
    say(home, tools, "a" * 64, "champion", EDGES)
    assert fought(home, tools) == ()
    say(home, tools, "f" * 64, "challenger", EDGES, kind="ridge")
    with pytest.raises(MissingDataError, match="challenged nobody"):
        fought(home, tools)
    start, end = newest_period(home.store, tools.TWO, 30)
    assert end - start == 30 * DAY_MS
    assert end <= home.clock.now_ms()


def test_the_command_shows_both_side_by_side(home, tools, monkeypatch):
    say(home, tools, "a" * 64, "champion", EDGES)
    say(home, tools, "b" * 64, "challenger", [-edge for edge in EDGES])
    monkeypatch.setenv("MLBOT_HOME", str(home.settings.home))
    monkeypatch.setenv("MLBOT_CONFIG_DIR", str(home.settings.config_dir))
    monkeypatch.setenv("MLBOT_CLOCK", f"fixed:{format_utc(home.clock.now_ms())}")
    runner = CliRunner()
    told = runner.invoke(app, ["shadow", "-s", tools.SOURCE, "--json"])
    assert told.exit_code == 0, told.output
    (one,) = json.loads(told.stdout)["contests"]
    (found,) = fought(home, tools)
    assert one["challenger"]["nav"] == pytest.approx(found.challenger.nav)
    assert one["champion"]["versions"] == ["a" * 64]
    shown = runner.invoke(app, ["shadow", "-s", tools.SOURCE], env={"COLUMNS": "200"}).output
    for word in ("champion", "challenger", "a" * 12, "b" * 12, "turnover"):
        assert word in shown
    nobody = runner.invoke(app, ["shadow", "-s", tools.SOURCE, "-i", "4h"]).output
    assert "No challenger of BTC-4h" in nobody
