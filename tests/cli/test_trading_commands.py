"""``mlbot halt``, ``flatten``, ``resume`` and the trading part of ``status`` against a running emulator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlbot_core.cli.main import app
from mlbot_core.clock import SystemClock
from mlbot_core.config import load_settings
from mlbot_core.decision.state import HALTING, KILL
from mlbot_core.emulator import EmulatorServer
from mlbot_core.errors import MlbotError, UsageError
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.marking import limits_from_risk
from mlbot_core.execution.reconcile import reconcile
from mlbot_core.execution.risk_watch import RiskWatch
from mlbot_core.execution.safety import SafetyFiles, folder_of
from mlbot_core.execution.types import OrderRequest, OrderType, Side, TimeInForce
from mlbot_core.execution.venues import open_broker

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT, SYMBOL = "emulator:100001", "BTCUSDT"
D = Decimal


class Live:
    """A home, an account with a position in its book, and the command."""

    def __init__(self, settings: Any, server: EmulatorServer) -> None:
        self.settings, self.server, self.clock = settings, server, SystemClock()
        self.opened = open_broker(settings, self.clock)
        self.broker = self.opened.broker
        self.files = SafetyFiles(folder_of(settings.live_dir, ACCOUNT), ACCOUNT)
        self.ledger = ExecutionLedger(settings.home, self.clock, ACCOUNT)

    def order(self, name: str, qty: str = "0.05", price: Decimal | None = None) -> None:
        last = self.broker.ticker(SYMBOL).last
        kind, tif = (OrderType.MARKET, TimeInForce.IOC) if price is None else (OrderType.LIMIT, TimeInForce.GTC)
        stop = (last * D("0.9")).quantize(D(1))
        self.broker.place(
            OrderRequest(name, SYMBOL, Side.BUY, kind, D(qty), price, tif, stop_loss=stop), may_send=lambda: True
        )

    def hold(self) -> None:
        reconcile(self.ledger, self.broker, self.clock, SYMBOL)
        self.order("entry")
        # no plan asked for it: reconciliation takes it into the book and names it, once
        assert not reconcile(self.ledger, self.broker, self.clock, SYMBOL).clean
        assert reconcile(self.ledger, self.broker, self.clock, SYMBOL).clean
        self.order("rests", "0.01", (self.broker.ticker(SYMBOL).last * D("0.97")).quantize(D(1)))

    def look(self) -> Any:
        limits = limits_from_risk(self.settings.risk, self.settings.execution.timeframe)
        return RiskWatch(self.broker, self.ledger, self.files, self.clock, SYMBOL, limits).look()

    def held(self) -> Decimal:
        return self.broker.position(SYMBOL).size

    def run(self, *args: str) -> Any:
        return CliRunner().invoke(app, list(args))


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config", ignore=shutil.ignore_patterns("api_keys.yaml"))
    for name, value in {"HOME": "home", "CONFIG_DIR": "config", "ARCHIVE_DIR": "no-archive"}.items():
        monkeypatch.setenv(f"MLBOT_{name}", str(tmp_path / value))
    for name in ("MLBOT_EMULATOR_URL", "MLBOT_CLOCK", "MLBOT_PG_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def live(environ: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    with EmulatorServer(start_ms=SystemClock().now_ms() // 86_400_000 * 86_400_000 - 5 * 86_400_000) as server:
        monkeypatch.setenv("MLBOT_EMULATOR_URL", server.url)
        made = Live(load_settings(), server)
        yield made
        made.ledger.close()
        made.opened.close()


def test_halt_closes_cancels_marks_and_records(live: Live) -> None:
    live.hold()
    live.look()
    done = live.run("halt", "--reason", "a test")
    assert done.exit_code == 0, done.output
    assert "HALTED by" in done.stdout
    assert "flat, was 0.05 " in done.stdout
    assert live.held() == 0
    assert not live.broker.open_orders(SYMBOL)
    assert live.files.killed().reason == "a test"
    stored = live.ledger.load_risk_state(SYMBOL)
    assert stored is not None
    assert stored.state.causes & HALTING == KILL
    assert live.ledger.newest_decision(SYMBOL, "emergency-halt") is not None
    # pressing it again is harmless
    again = live.run("halt", "--reason", "once more", "--json")
    assert again.exit_code == 0
    found = json.loads(again.stdout)
    assert found["halt"]["reason"] == "a test"
    assert found["recorded"]
    assert found["report"]["orders"] == []


def test_halt_may_keep_what_is_held(live: Live) -> None:
    live.hold()
    done = live.run("halt", "--reason", "look first", "--keep-position")
    assert done.exit_code == 0, done.output
    assert "0.05 is kept" in done.stdout
    assert live.held() == D("0.05")
    assert [order.stop_order_type for order in live.broker.open_orders(SYMBOL)] == ["StopLoss"]
    assert live.files.halted().keep_position
    assert live.look().level == 0
    assert live.run("resume", "--reason", "looked").exit_code == 0
    assert live.files.halted() is None
    assert live.held() == D("0.05")


def test_halt_without_an_exchange_still_halts_and_says_what_is_open(live: Live, monkeypatch) -> None:
    live.hold()
    live.look()
    monkeypatch.setenv("MLBOT_EMULATOR_URL", "http://127.0.0.1:9")
    done = live.run("halt", "--reason", "no network")
    assert done.exit_code == 1
    assert isinstance(done.exception, MlbotError)
    assert "nothing more will be opened" in str(done.exception)
    assert live.files.halted().reason == "no network"
    assert live.held() == D("0.05")


def test_flatten_closes_without_halting(live: Live) -> None:
    live.hold()
    done = live.run("flatten")
    assert done.exit_code == 0, done.output
    assert live.held() == 0
    assert live.files.halted() is None
    assert live.ledger.newest_decision(SYMBOL, "emergency-flatten") is not None
    assert "nothing was held" in live.run("flatten").stdout


def test_resume_takes_the_halt_away_and_begins_a_new_peak(live: Live) -> None:
    live.hold()
    live.look()
    assert live.run("halt", "--reason", "a test").exit_code == 0
    assert live.look().level == 3
    done = live.run("resume", "--reason", "found it")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "level NORMAL" in done.stdout
    stored = live.ledger.load_risk_state(SYMBOL)
    assert stored is not None
    assert stored.state.causes == 0
    assert stored.state.peak_nav == pytest.approx(float(live.broker.wallet().coin("USDT").equity))
    assert stored.reason == "resume: found it"
    assert live.files.halted() is None
    assert live.look().level == 0
    (kept,) = (live.files.folder / "halts").glob("*-cleared.json")
    assert json.loads(kept.read_text())["cleared"]["reason"] == "found it"
    nothing = live.run("resume", "--reason", "again")
    assert nothing.exit_code == 1
    assert isinstance(nothing.exception, UsageError)


def test_resume_is_refused_while_a_position_is_not_explained(live: Live) -> None:
    live.hold()
    assert live.run("halt", "--reason", "a test").exit_code == 0
    live.order("by-hand", "0.02")
    done = live.run("resume", "--reason", "all well")
    assert done.exit_code == 1
    assert "not explained" in str(done.exception)
    assert live.files.halted() is not None
    assert live.ledger.load_risk_state(SYMBOL).state.causes & KILL


def test_status_tells_what_a_person_wants_to_know(live: Live) -> None:
    live.hold()
    live.look()
    before = json.loads(live.run("status", "--json").stdout)["trading"]
    (account,) = before["accounts"]
    assert account["level"] == "NORMAL"
    assert account["halt"] is None
    assert D(account["position"]) == D("0.05")
    assert account["nav"] == pytest.approx(float(live.broker.wallet().coin("USDT").equity), rel=1e-3)
    assert account["limits"]["drawdown"]["share"] == pytest.approx(0.25, abs=0.01)
    assert account["limits"]["day's loss"]["share"] == pytest.approx(0.03, abs=0.01)
    assert account["heartbeats"]["risk-watch"]["runs"]
    assert account["heartbeats"]["dead-man"] is None
    assert live.run("halt", "--reason", "a test").exit_code == 0
    live.look()
    shown = live.run("status").stdout
    for text in ("emulator:100001", "HALTED by", "a test", "kill", "a person re-arms", "no sign of life", "last beat"):
        assert text in shown, shown


def test_status_without_anything_live(environ: None) -> None:
    done = CliRunner().invoke(app, ["status"])
    assert done.exit_code == 0
    assert "no account was live here yet" in done.stdout


@pytest.mark.parametrize("command", ["halt", "flatten", "resume"])
def test_without_a_venue_each_command_says_what_to_do(environ: None, command: str) -> None:
    done = CliRunner().invoke(app, [command, "--reason", "a test"])
    assert done.exit_code == 1
    assert isinstance(done.exception, UsageError)
    assert "MLBOT_EMULATOR_URL" in str(done.exception)
