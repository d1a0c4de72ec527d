"""A promoted policy sizes live decisions, is paid what came of them, and leaves no trace where none is promoted."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config import load_settings
from mlbot_core.config.execution import OrdersConfig
from mlbot_core.config.secrets import KeyPair
from mlbot_core.decision.bandit import ARMS, BanditState, PolicySpec, initial_bandit, update
from mlbot_core.decision.bandit_baselines import volatility_target_arm
from mlbot_core.decision.bandit_context import N_CONTEXT, ContextScale, context_from_json
from mlbot_core.decision.bandit_inputs import reward_of
from mlbot_core.decision.bandit_live import line_of
from mlbot_core.decision.bandit_log import FILE_NAME, BanditLog
from mlbot_core.decision.costs import costs_from_fees
from mlbot_core.decision.state import Forecast
from mlbot_core.emulator import SyntheticMarket
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.bybit_market import BybitMarket
from mlbot_core.emulator.bybit_public import PublicMarket
from mlbot_core.emulator.exchange import ApiKey, Exchange, ExchangeOptions
from mlbot_core.emulator.exchange.adapter import InProcess
from mlbot_core.execution import evidence
from mlbot_core.execution.broker import Venue
from mlbot_core.execution.bybit import BybitBroker
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.safety import Lease, Permit, SafetyFiles
from mlbot_core.execution.sending import ExecutionRules
from mlbot_core.execution.trader import Trader
from mlbot_core.live.observation import Said
from mlbot_core.live.signal_store import Signal, SignalKey
from mlbot_core.live.sizing import settle, size_in, sized
from mlbot_core.models.base import FORECAST
from mlbot_core.observability.audit import Audit, explain_decision
from mlbot_core.observability.audit_replay import replay_size, replay_step
from mlbot_core.observability.audit_text import _decision as decision_lines
from mlbot_core.sources import open_source
from mlbot_core.timeframe import HOUR_MS, Market, Month
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.ingest import IngestRequest, ingest

ROOT = Path(__file__).resolve().parents[2]
SOURCE, MARKET, CONTRACT, ACCOUNT = "emulator", Market.parse("BTC-2h"), "BTCUSDT", "emulator:100001"
FIRST = parse_utc_ms("2024-09-20T00:00:00Z")
STEP = 2 * HOUR_MS


def policy(wanted: float) -> BanditState:
    """Return a policy that learned, whatever the context, that a share of the cap is the best one."""
    state = initial_bandit(PolicySpec("lints", "shared", N_CONTEXT, draws=16))
    rng = np.random.default_rng(5)
    for i in range(600):
        share = ARMS[i % len(ARMS)]
        x = np.r_[1.0, rng.uniform(-1, 1, N_CONTEXT - 1)]
        state = update(state, x, i % len(ARMS), 2 * wanted * share - share * share)
    return state


class World:
    """An account on the emulator's exchange, and the bars of its market; what is forecast is the test's."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from mlbot_core.emulator.launch import serve

        environ = {"MLBOT_HOME": str(folder), "MLBOT_CONFIG_DIR": str(ROOT / "config"), "MLBOT_THREADS": "1"}
        self.settings = load_settings(environ)
        self.clock = FixedClock(FIRST)
        emulator = self.settings.intervals.emulator
        self.url = stack.enter_context(serve(emulator, self.clock))
        market = BybitMarket(SyntheticMarket(emulator.seed, emulator.start_ms, emulator.mode))
        public = PublicMarket({CONTRACT: market}, BybitOptions())
        options = ExchangeOptions(keys=(ApiKey("key", "secret", parent_uid=1),))
        exchange = Exchange.synthetic({CONTRACT: market}, self.clock, options=options, public=public)
        keys = KeyPair(key=SecretStr("key"), secret=SecretStr("secret"))
        self.broker = BybitBroker(Venue.EMULATOR, keys, self.clock, adapter=InProcess(exchange))
        stack.callback(self.broker.close)
        self.ledger = ExecutionLedger(folder, self.clock, ACCOUNT)
        self.log = BanditLog(folder, self.clock)
        self.line = line_of(SOURCE, MARKET, self.settings.execution.model)

    @property
    def store(self) -> Warehouse:
        return Warehouse(self.settings.warehouse_path, self.clock, timeout_s=20)

    def promote(self, wanted: float) -> None:
        self.log.promote(self.line, policy(wanted), ContextScale(0.5, 0.25), why="test", verdict={})

    def said(self, n: int, edge: float) -> Said:
        ts = FIRST + n * STEP
        self.clock.set_ms(max(self.clock.now_ms(), ts + STEP + 5_000))
        months = (Month(2024, 8), Month(2024, 9))
        with open_source(SOURCE, self.settings, self.clock, base_url=self.url) as source:
            intervals = self.settings.intervals
            delay = intervals.settle_delay_ms(SOURCE)
            request = IngestRequest(
                "price", MARKET, months, intervals.quality, delay, "test", intervals.emulator.identity
            )
            ingest(self.store, source, self.clock, request)
        numbers = dict.fromkeys(FORECAST, 0.3) | {"score": edge / 0.02, "score_sd": 0.5}
        signal = Signal(
            key=SignalKey(SOURCE, MARKET, ts, self.settings.execution.model, "v" * 64), role="champion",
            forecast=numbers, width=0.02, edge=edge, multiplier=1.0, usable=math.isfinite(edge), late=False, reason="",
            decision_ms=ts + STEP + 5_000, known_by_ms=ts + STEP + 5_000, made_at=self.clock.now_ms(), run_id="test",
            code="c", vector=np.zeros((1, 1)), inputs=(), details={},
        )  # fmt: skip
        return Said(MARKET, ts, Forecast(edge, 1.0, 0), signal, "")

    def sized(self, said: Said) -> Said:
        return sized(self.store, self.settings, self.ledger, SOURCE, CONTRACT, said)

    def bar(self, n: int, edge: float) -> Any:
        """One bar as a live run decides it; return the size and what was recorded."""
        said = self.sized(self.said(n, edge))
        lease = Lease(10.0, self.clock)
        permit = Permit(SafetyFiles(self.settings.live_dir, ACCOUNT, self.clock), lease)
        rules = ExecutionRules("mlbot", OrdersConfig(participation=None), self.settings.risk, Decimal("0.1"))
        costs = costs_from_fees(self.settings.fees)
        trader = Trader(
            self.ledger, self.broker, self.clock, permit, rules, MARKET.timeframe, costs, CONTRACT, renew=lease.renew
        )
        done = trader.decide(said.ts, said.forecast, {"signal": said.as_json()})
        trader.finish(self.clock.now_ms() + 60_000)
        record = self.ledger.decision(done.decision_id)
        assert record is not None, done.reason
        return SimpleNamespace(said=said, size=said.size, record=record, decision=done.decision)


def pay(world: World) -> tuple[str, ...]:
    return settle(world.log, world.line, world.ledger, CONTRACT, world.settings.bandit.reward)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, stack)


@pytest.mark.slow
def test_where_nothing_was_promoted_nothing_changes(world):
    said = world.said(0, 0.01)
    assert world.sized(said) is said
    assert "size" not in said.as_json()
    world.log.off([world.line], why="drill")
    assert world.sized(said) is said
    done = world.bar(0, 0.01)
    assert done.decision.target == 0.1
    assert "size" not in explain_decision(done.record)
    assert replay_size(Audit.open(world.settings, world.clock), done.record) == []


@pytest.mark.slow
def test_a_promoted_policy_sizes_is_paid_once_and_is_turned_off_at_once(world):
    world.promote(0.25)
    first = world.said(0, 0.01)
    asked = world.sized(first)
    # a run that died before it decided is followed by one that sees another account: the choice stands
    world.log.act(world.line, "another", context_from_json(asked.size["context"]), explore=False)
    again = world.sized(first)
    assert again.as_json() == asked.as_json()
    assert first.forecast.multiplier == 1.0
    done = [world.bar(0, 0.01), world.bar(1, 0.0001), world.bar(2, -0.01)]
    assert [one.size["by"] for one in done] == ["bandit"] * 3
    assert [one.decision.target for one in done] == [0.025, 0.025, -0.025]
    decision = f"{ACCOUNT}|{FIRST}"
    assert [one.size["decision"] for one in done] == [decision, decision, f"{ACCOUNT}|{FIRST + 2 * STEP}"]
    mine = [one.decision_id for one in world.log.pending(world.line)]
    assert mine == [decision, "another", f"{ACCOUNT}|{FIRST + 2 * STEP}"]
    before = world.log.state(world.line)
    done.append(world.bar(3, -0.01))
    # the exit is filled: the policy learns from it, and only once
    assert pay(world) == (decision,)
    assert pay(world) == ()
    assert world.log.state(world.line).updates == before.updates + 1
    reward = {one.decision_id: value for one, value in world.log.actions(world.line)}[decision]
    nav, held = (
        [getattr(evidence.read(one.record.details).observation, name) for one in done] for name in ("nav", "position")
    )
    assert held[1] > 0 > held[3]
    # what the account earned from the first decision to that of the reversal lies near, the exit's costs apart
    rough = math.log(nav[2] / nav[0])
    unit = reward_of(1.0, 0.0, world.settings.bandit.reward)
    assert reward / unit == pytest.approx(rough, abs=0.002 * 0.025 + 0.3 * abs(rough) + 2e-4)
    # off: volatility targeting within the very period
    world.log.off([world.line], why="drill")
    off = world.bar(4, -0.01)
    arm = volatility_target_arm(0.5, context_from_json(off.size["context"]))
    assert off.size["by"] == "volatility target"
    assert off.decision.target == -0.1 * ARMS[arm]
    assert off.size["decision"] is None
    world.bar(5, math.nan)
    world.bar(6, 0.0)
    assert [one.decision_id for one in world.log.pending(world.line)] == ["another"]
    audit = Audit.open(world.settings, world.clock)
    for one in [*done, off]:
        assert replay_step(one.record).outcome == "same"
        (part,) = replay_size(audit, one.record)
        assert part.outcome == "same", part
        told = explain_decision(one.record)
        assert told["size"]["by"] == one.size["by"]
        assert any(line.strip().startswith("size: ") for line in decision_lines(told))
        assert size_in(one.record.details) == one.size
    # the log is what the replay asks: a changed one is found
    with sqlite3.connect(world.settings.home / FILE_NAME) as con:
        con.execute(
            "UPDATE bandit_actions SET arm = 2, propensities = ?", ['["0x0p0","0x0p0","0x1p0","0x0p0","0x0p0"]']
        )
    (part,) = replay_size(audit, done[0].record)
    assert part.outcome == "differs"


@pytest.mark.slow
def test_a_policy_that_cannot_be_used_gives_volatility_targeting_and_says_so(world):
    world.promote(1.0)
    assert world.bar(0, 0.01).decision.target == 0.1
    with sqlite3.connect(world.settings.home / FILE_NAME) as con:
        con.execute("UPDATE bandit_events SET version = 'tampered'")
    done = world.bar(1, 0.01)
    assert done.size["by"] == "volatility target"
    assert "mlbot bandit off" in done.size["problem"]
    assert "sized by volatility target" in explain_decision(done.record)["stale"]
    assert 0.0 <= done.decision.target <= 0.1
    assert (replay_size(Audit.open(world.settings, world.clock), done.record))[0].outcome == "same"
    # no price: nothing is risked on what cannot be looked at
    said = world.said(2, -0.01)
    with world.store.write() as con:
        con.execute("DELETE FROM price WHERE ts = ?", [said.ts])
    blind = world.sized(said)
    assert blind.forecast.multiplier == 0.0
    assert "price" in blind.reason
    world.settings.warehouse_path.parent.joinpath(FILE_NAME).write_bytes(b"no database" * 500)
    broken = world.sized(replace(said, ts=said.ts))
    assert broken.forecast.multiplier == 0.0
