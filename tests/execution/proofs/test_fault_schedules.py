"""Random weeks of an account under random trouble: in the end the book equals the exchange's truth, to the last cent.

A story is made from its seed: forecasts, style and limits, faults of all kinds, deposits and withdrawals,
deleveragings, restarts, deaths in the middle of a request, a risk watch that looks between and during all of this.
``MLBOT_SEEDS=17,23`` tells only these, ``MLBOT_SEEDS=0-49`` those of these that are not told yet; ``MLBOT_SHARD=0/2``
every second one; what is finished is kept in the folder
``MLBOT_PROOF_DIR`` and not told again.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config.execution import OrdersConfig
from mlbot_core.config.secrets import KeyPair
from mlbot_core.config.trading import GateConfig, RiskConfig
from mlbot_core.decision.costs import Costs
from mlbot_core.decision.risk import level_of, rearm
from mlbot_core.decision.state import (
    CAUSES,
    DATA_STALE,
    FLAT_TODAY,
    HALTED,
    HALTING,
    LEVELS,
    NORMAL,
    Forecast,
    cause_names,
    initial_state,
    state_from_json,
)
from mlbot_core.emulator import EmulatorServer, SyntheticMarket
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.bybit_market import BybitMarket
from mlbot_core.emulator.bybit_public import PublicMarket
from mlbot_core.emulator.exchange import ApiKey, Exchange, ExchangeOptions, TradeFault, TradeFaultSchedule
from mlbot_core.emulator.exchange.adapter import InProcess
from mlbot_core.emulator.exchange.trade_faults import STREAM_KINDS, TRADE_KINDS, WINDOW_KINDS, random_schedule
from mlbot_core.execution.broker import BrokerError, Venue
from mlbot_core.execution.bybit import BybitBroker
from mlbot_core.execution.executor import Executor
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.marking import limits_from_risk
from mlbot_core.execution.risk_watch import RiskWatch
from mlbot_core.execution.safety import Lease, Permit, SafetyFiles
from mlbot_core.execution.sending import ExecutionRules
from mlbot_core.execution.trader import Status, Trader
from mlbot_core.timeframe import Timeframe

MARKET_START = parse_utc_ms("2024-01-01")
BEGIN = parse_utc_ms("2024-01-03T10:37:21Z")
SYMBOL, UID, ACCOUNT = "BTCUSDT", 100001, "emulator:100001"
FRAME = Timeframe.parse("2h")
QUICK_SEEDS, SLOW_SEEDS, ALL_SEEDS = range(3), range(3, 11), range(1_000)
SOCKET_SEEDS = range(10_000, 10_100)
# The gate measures at the mark price of its look; the fill comes within seconds of it, at most the market orders'
# slippage bound away, and has paid a fee.
CAP_TOLERANCE = Decimal("1.01")
# A level that asks for nothing to be held has to be obeyed within so many complete looks of the watch.
LOOKS_TO_BE_FLAT = 4


class Killed(BaseException):
    """The process is gone: nobody catches this."""


class Dying(InProcess):
    """A transport in which the process dies before or after a request reached the exchange."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self.after: int | None = None
        self.reached = True

    def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
        if self.after is None:
            return super().send(request, *arguments, **options)
        self.after -= 1
        if self.after > 0:
            return super().send(request, *arguments, **options)
        self.after = None
        if self.reached:
            super().send(request, *arguments, **options)
        raise Killed


class Passing:
    """The clock as the trader has it: others act while it sleeps."""

    def __init__(self, base: FixedClock, meanwhile: Callable[[], None]) -> None:
        self._base, self._meanwhile = base, meanwhile

    def now_ms(self) -> int:
        return self._base.now_ms()

    def sleep(self, seconds: float) -> None:
        self._base.sleep(seconds)
        self._meanwhile()


@cache
def market(seed: int) -> BybitMarket:
    return BybitMarket(SyntheticMarket(seed, MARKET_START))


class Story:
    """One account's weeks."""

    def __init__(self, seed: int, bars: int, home: Path, *, sockets: bool) -> None:
        self.seed, self.bars, self.home, self.sockets = seed, bars, home, sockets
        self.rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0x5707,)))
        rng = self.rng
        cap = float(rng.choice((0.1, 0.1, 0.3, 0.8)))
        self.risk = RiskConfig(
            max_position=cap,
            daily_loss_limit=float(rng.choice((0.03, 0.005))),
            max_drawdown=float(rng.choice((0.25, 0.02))),
            gate=GateConfig(max_order_share=1.2 * cap),
        )
        style = str(rng.choice(("taker", "maker")))
        self.orders = OrdersConfig(style=style, participation=float(rng.choice((0.05, 1.0))))
        self.rules = ExecutionRules("mlbot", self.orders, self.risk, Decimal(str(cap)))
        self.limits = limits_from_risk(self.risk, FRAME)
        self.clock = FixedClock(BEGIN + int(rng.integers(0, 24)) * 3_600_000)
        self.passing = Passing(self.clock, self._meanwhile)
        self.counts: Counter[str] = Counter()
        self.said: list[str] = []
        self._stack = ExitStack()
        self._looking = False
        self._unheeded = 0
        self.bar = 0
        self.url = ""
        options = ExchangeOptions(keys=(ApiKey("key", "secret", uid=UID, parent_uid=1),), limits="exchange")
        if sockets:
            server = self._stack.enter_context(
                EmulatorServer(
                    seed=seed % 5, start_ms=MARKET_START, clock=self.clock,
                    bybit=BybitOptions(ip_calls=10**9), trading=options,
                )
            )  # fmt: skip
            self.exchange, self.url = server.exchange, server.url
        else:
            made = {SYMBOL: market(seed % 5)}
            public = PublicMarket(made, BybitOptions(ip_calls=10**9))
            self.exchange = Exchange.synthetic(made, self.clock, options=options, public=public)
        self.files = SafetyFiles(home / "live", ACCOUNT, self.clock)
        self._open()

    def close(self) -> None:
        self._stack.close()

    # --- processes

    def _open(self) -> None:
        """Begin as a process does: with nothing but the files."""
        self.life = ExitStack()
        self._stack.callback(self.life.close)
        self.dying = Dying(self.exchange)
        self.ledger = self.life.enter_context(ExecutionLedger(self.home, self.clock, ACCOUNT))
        self.broker = self._broker(self.dying)
        lease = Lease(600.0, self.clock)
        self.trader = Trader(
            self.ledger, self.broker, self.passing, Permit(self.files, lease), self.rules, FRAME,
            Costs(taker=0.00055, maker=0.0002, slippage=0.0001), SYMBOL, renew=lease.renew, halt=self.files,
        )  # fmt: skip
        watch_lease = Lease(600.0, self.clock)
        book = self.life.enter_context(ExecutionLedger(self.home, self.clock, ACCOUNT, timeout_s=2.0))
        eyes = self._broker(InProcess(self.exchange))
        closes = Executor(
            book, eyes, self.clock, Permit(self.files, watch_lease), self.rules, SYMBOL, renew=watch_lease.renew
        )
        self.watch = RiskWatch(
            eyes, book, self.files, self.clock, SYMBOL, self.limits, flatten=closes.flatten, say=self.said.append,
            boot_time=lambda: self.clock.now_ms() / 1000, patience_s=600.0,
        )  # fmt: skip

    def _broker(self, adapter: Dying | InProcess) -> BybitBroker:
        pair = KeyPair(key=SecretStr("key"), secret=SecretStr("secret"))
        way: dict[str, Any] = {"url": self.url, "timeout_s": (2.0, 0.6)} if self.sockets else {"adapter": adapter}
        broker = BybitBroker(Venue.EMULATOR, pair, self.clock, **way)
        self.life.callback(broker.close)
        return broker

    def restart(self) -> None:
        self.life.close()
        self.counts["restarts"] += 1
        self._open()

    def _meanwhile(self) -> None:
        if not self._looking and self.rng.random() < 0.05:
            self.look()

    # --- what happens

    def tell(self) -> None:
        """Live through all bars, then through a quiet end."""
        end = self.clock.now_ms() + (self.bars + 1) * FRAME.ms
        lines = list(random_schedule(self.seed, self.clock.now_ms(), end, lines=max(8, self.bars // 4)).faults)
        close = FRAME.floor(self.clock.now_ms())
        for _ in range(self.bars):
            close += FRAME.ms
            if self.rng.random() < 0.5:
                lines.append(self._trouble(close))
        self.exchange.install_faults(TradeFaultSchedule(tuple(lines), self.seed))
        for _ in range(self.bars):
            self._between()
            self._bar()
            self._invariants_now()
            self.bar += 1
        self._calm()

    def _trouble(self, close_ms: int) -> TradeFault:
        """A fault in the minutes in which orders are sent."""
        rng = self.rng
        kind = str(rng.choice([kind for kind in TRADE_KINDS if kind not in STREAM_KINDS]))
        window = kind in WINDOW_KINDS
        begin = close_ms + int(rng.integers(0, 30)) * 1000
        seconds: float | None = None
        if kind in ("late_visibility", "clock_skew", "timeout"):
            seconds = float(rng.choice((1.5, 4.0, 20.0))) * (1 if kind != "clock_skew" else float(rng.choice((-1, 1))))
        return TradeFault(
            kind=kind,
            endpoint="" if window else str(rng.choice(("order/create", "order/create", "order/cancel", "v5/"))),
            when=str(rng.choice(("before", "after"))),
            probability=None if window else float(rng.choice((0.3, 1.0))),
            count=None if window else int(rng.integers(1, 4)),
            active_from_ms=begin,
            active_to_ms=begin + (int(rng.integers(2, 60)) * 1000 if window else 600_000),
            seconds=seconds,
            fraction=float(rng.choice((0.0, 0.3, 0.8))) if kind == "partial_fill" else None,
            code=int(rng.choice((110007, 110017, 110003))) if kind == "reject" else None,
            limit=int(rng.integers(1, 4)) if kind == "rate_burst" else None,
        )

    def _between(self) -> None:
        rng, now = self.rng, self.clock.now_ms()
        close = FRAME.floor(now) + FRAME.ms
        for at in sorted(rng.integers(now, close, size=int(rng.integers(0, 4)))):
            if at <= self.clock.now_ms():
                continue
            self.clock.set_ms(int(at))
            self._event()
            self._act(self.look if rng.random() < 0.6 else lambda: self.trader.cycle())
        self.clock.set_ms(max(close, self.clock.now_ms()) + int(rng.integers(1_000, 40_000)))

    def _event(self) -> None:
        # what is held may have been stopped out since anybody looked
        self.exchange.advance()
        rng, wallet = self.rng, self.exchange.engines[UID].account.wallet["USDT"]
        held = self.exchange.engines[UID].account.positions[SYMBOL].size
        chance = rng.random()
        if chance < 0.10:
            amount = Decimal(int(float(wallet) * rng.uniform(0.01, 0.2)))
            sign = 1 if rng.random() < 0.5 else -1
            self.exchange.transfer(sign * amount, uid=UID)
            self.counts["transfers"] += 1
        elif chance < 0.16 and held:
            qty = max(Decimal("0.001"), (abs(held) * Decimal("0.4")).quantize(Decimal("0.001")))
            self.exchange.intervene("AdlTrade", min(qty, abs(held)), None, SYMBOL, UID)
            self.counts["deleveragings"] += 1
        elif chance < 0.18:
            self.restart()

    def _bar(self) -> None:
        rng, bar = self.rng, FRAME.last_closed(self.clock.now_ms())
        chance = rng.random()
        edge = math.nan if chance < 0.05 else 0.0 if chance < 0.2 else float(rng.choice((-0.01, 0.01)))
        forecast = Forecast(edge, float(rng.uniform(0.25, 1.0)), 0)
        if level_of(self._causes()) == HALTED and rng.random() < 0.5:
            self._person()
        if rng.random() < 0.15:
            self.dying.after, self.dying.reached = int(rng.integers(1, 60)), bool(rng.random() < 0.5)
        # so that the largest order takes one to four slices
        whole = self.risk.max_position * 100_000 / 43_000
        volume = whole / float(rng.integers(1, 5)) / 0.05 * FRAME.ms / (1000 * self.orders.slice_every_s)
        for _ in range(6):
            made = self._act(lambda: self.trader.decide(bar, forecast, {"seed": self.seed}, bar_volume=volume))
            if made is not None and made.status is not Status.BLIND:
                self.counts[f"decide {made.status}"] += 1
                break
            self.clock.sleep(5)
        self._finish()
        self.dying.after = None

    def _finish(self) -> None:
        """Come back as a trader does, ever more seldom; what is still open then is the next bar's."""
        for turn in range(int(self.rng.integers(2, 10))):
            report = self._act(lambda: self.trader.cycle())
            now = self.clock.now_ms()
            if report is not None and not report.open and not report.blind:
                break
            wait_ms = 0 if report is None or report.next_ms is None else report.next_ms - now
            self.clock.sleep(max(wait_ms / 1000, 2.0**turn))

    def _act(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Killed:
            self.counts["deaths"] += 1
            self.restart()
            return None

    def look(self) -> None:
        self._looking = True
        try:
            glance = self.watch.look()
        finally:
            self._looking = False
        self.counts["looks"] += 1
        if not glance.seen or glance.level is None:
            return
        self.counts[f"seen {LEVELS[glance.level]}"] += 1
        held = self.exchange.engines[UID].account.positions[SYMBOL].size
        self._unheeded = self._unheeded + 1 if glance.level >= FLAT_TODAY and held else 0
        assert self._unheeded <= LOOKS_TO_BE_FLAT, f"{held} held, level {LEVELS[glance.level]}: nobody closes it"

    def _person(self) -> None:
        """Re-arm, as a person does who has looked."""
        try:
            nav = self.trader.observe().nav
        except BrokerError:
            return

        def change(state: Any, flow: float) -> Any:
            return rearm(state, self.clock.now_ms(), float(nav), flow) if state.causes & HALTING else state

        if self.files.halted() is not None:
            self.files.clear_halt("person", "looked at it")
        self.ledger.mark(SYMBOL, (), change, actor="person", reason="looked at it")
        self.counts["re-armed"] += 1

    def _calm(self) -> None:
        """No more trouble: within a few cycles nothing is open and book and exchange agree."""
        self.exchange.install_faults(TradeFaultSchedule())
        self.dying.after = None
        # the longest trouble is an address that is refused for ten minutes
        self.clock.sleep(660)
        # a maker's order may rest for a minute, looked at every five seconds, and what is left is taken after that
        for _ in range(24):
            self.look()
            report = self.trader.cycle()
            if report.clean and not report.open and not report.blind:
                break
            wait_ms = 5_000 if report.next_ms is None else max(1_000, report.next_ms - self.clock.now_ms())
            self.clock.sleep(min(wait_ms, 60_000) / 1000)
        assert report.clean, report
        assert not report.open, report
        self.look()
        flags = self.ledger.flags(SYMBOL) & ~DATA_STALE
        assert not flags, f"flags {cause_names(flags)} stand though nothing is wrong any more"
        self._agrees()
        self._once()
        self._explained()

    # --- what must hold

    def _causes(self) -> int:
        stored = self.ledger.load_risk_state(SYMBOL)
        return (initial_state() if stored is None else stored.state).causes

    def _truth(self) -> dict[str, Any]:
        found: dict[str, Any] = self.exchange.truth()["accounts"][str(UID)]
        return found

    def _invariants_now(self) -> None:
        links = [order.link_id for order in self.exchange.engines[UID].account.orders.values() if order.link_id]
        assert len(links) == len(set(links)), "an id was used twice"

    def _agrees(self) -> None:
        """Positions, fills, fees, funding and the wallet of every coin are those of the exchange."""
        truth = self._truth()
        row = truth["positions"][SYMBOL]
        size = Decimal(row["size"]) * (-1 if row["side"] == "Sell" else 1)
        assert self.ledger.held(SYMBOL).size == size, f"position: book {self.ledger.held(SYMBOL).size}, truth {size}"
        told = {fill.exec_id: fill for fill in self.ledger.executions(SYMBOL)}
        missing = [one for one in truth["executions"] if one["execId"] not in told]
        assert not missing, f"{len(missing)} executions are not in the book, the first is {missing[0]}"
        assert len(told) == len(truth["executions"]), "the book has executions that never were"
        for one in truth["executions"]:
            mine = told[one["execId"]]
            for name, value in (("execQty", mine.qty), ("execPrice", mine.price), ("execFee", mine.fee)):
                assert value == Decimal(one[name]), (name, value, one)
            assert (mine.kind.value, mine.side.value) == (one["execType"], one["side"])
        events = {event["event_id"]: event for event in self.ledger.rows("wallet_events", limit=1_000_000)}
        opening = self.ledger.opening(SYMBOL)
        assert opening is not None
        for line in truth["transaction_log"]:
            event = events.pop(line["id"], None)
            assert event is not None, f"the book misses {line}"
            for name, key in (("change", "change"), ("fee", "fee"), ("balance", "cashBalance")):
                assert Decimal(event[name]) == Decimal(line[key] or "0"), (name, event, line)
        assert not events, f"the book has rows that never were: {list(events)[:3]}"
        for coin, amount in truth["wallet"].items():
            mine_all = sum(
                (Decimal(e["change"]) for e in self.ledger.rows("wallet_events", limit=1_000_000) if e["coin"] == coin),
                Decimal(0),
            )
            assert mine_all == Decimal(amount), (coin, mine_all, amount)
        balance = self.ledger.balance(SYMBOL)
        assert balance is not None
        assert balance[0] == Decimal(truth["wallet"]["USDT"])
        self.counts["executions"] += len(told)
        self.counts["funding"] += sum(one["execType"] == "Funding" for one in truth["executions"])
        self.counts["stop-outs"] += sum(
            one["stopOrderType"] in ("StopLoss", "Stop") and one["execType"] == "Trade" for one in truth["executions"]
        )
        self.counts["orders"] += len(truth["orders"])
        self.counts["faults"] += len(self.exchange.faults.log)

    def _once(self) -> None:
        """No intent traded more than it wanted, no entry led above the cap or was sent where only exits may be."""
        truth = self._truth()
        sent = {row["order_link_id"]: row["intent_id"] for row in self.ledger.rows("attempts", limit=1_000_000)}
        wanted = {row["intent_id"]: row for row in self.ledger.rows("intents", limit=1_000_000)}
        done: Counter[str] = Counter()
        logged = {line["tradeId"]: line for line in truth["transaction_log"] if line["tradeId"]}
        size, average = Decimal(0), Decimal(0)
        for one in truth["executions"]:
            if one["execType"] == "Funding":
                continue
            signed = Decimal(one["execQty"]) * (1 if one["side"] == "Buy" else -1)
            adds, size_before = size * signed >= 0, size
            price, mark = Decimal(one["execPrice"]), Decimal(one["markPrice"])
            size += signed
            if adds:
                average = (average * abs(size_before) + price * abs(signed)) / abs(size)
            elif size * size_before < 0:
                average = price
            intent = sent.get(one["orderLinkId"])
            if intent is None:
                continue
            done[intent] += Decimal(one["execQty"])
            assert done[intent] <= Decimal(wanted[intent]["qty"]), f"intent {intent} traded twice"
            if not wanted[intent]["reduce_only"]:
                nav = Decimal(logged[one["execId"]]["cashBalance"]) + (mark - average) * size
                cap = Decimal(str(self.risk.max_position)) * nav * CAP_TOLERANCE
                assert abs(size) * mark <= cap, f"{size} at {mark} is above the cap of {cap} ({one})"
        states = [
            (row["recorded_ms"], state_from_json(json.loads(row["state"])).causes)
            for row in self.ledger.rows("risk_states", limit=1_000_000)
        ]
        for row in self.ledger.rows("attempt_events", limit=1_000_000):
            if row["kind"] != "sent" or wanted[sent[row["order_link_id"]]]["reduce_only"]:
                continue
            before = [causes for at, causes in states if at < row["recorded_ms"]]
            # of the same millisecond nobody can say which came first
            just = {causes for at, causes in states if at == row["recorded_ms"]}
            levels = {level_of(causes) for causes in {*(before[-1:] or [0]), *just}}
            assert NORMAL in levels, f"an entry was sent at the level {[LEVELS[level] for level in levels]}: {row}"

    def _explained(self) -> None:
        """Whoever finds a level that is not NORMAL finds an alert that tells why."""
        alerts = self.ledger.rows("alerts", limit=1_000_000)
        words = {
            "reconcile": ("reconcile", "risk_reconcile", "opening"),
            "api_degraded": ("api_degraded", "risk_api_degraded"),
            "error": ("halt_", "by_exchange", "ledger_conflict", "risk_error"),
        }
        entered: dict[str, int] = {}
        before = 0
        for row in self.ledger.rows("risk_states", limit=1_000_000):
            causes = int(row["causes"])
            for cause in CAUSES:
                # what halts already is told: the marker that a watch makes of it says no more
                if cause.bit & causes & ~before and not (
                    cause.bit & HALTING and (before | causes) & HALTING & ~cause.bit
                ):
                    entered.setdefault(cause.name, row["recorded_ms"])
                    self.counts[f"cause {cause.name}"] += 1
            before = causes
        for name, at in entered.items():
            known = words.get(name, (f"risk_{name}",))
            found = [one for one in alerts if any(word in one["code"] or word in one["message"] for word in known)]
            there = Counter(one["code"] for one in alerts)
            assert found, f"{name} was raised at {at} and no alert tells of it; there are {there}"


def story(seed: int, bars: int, *, sockets: bool) -> dict[str, Any]:
    """Tell one story; return what happened in it, or why it is wrong and how to tell it again."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base, prefix="mlbot-story-") as folder:
        told = Story(seed, bars, Path(folder), sockets=sockets)
        try:
            told.tell()
        except Exception as error:
            where = "over_sockets" if sockets else "in_process"
            raise AssertionError(
                f"seed {seed} (bar {told.bar} of {bars}, {where}): {error}\nafter {dict(told.counts)}\n"
                f"{told.orders.style}, {asdict_of(told.risk)}\nlast words of the watch: {told.said[-5:]}\n"
                f"again: MLBOT_SEEDS={seed} .venv/bin/pytest tests/execution/proofs/test_fault_schedules.py "
                f"-m prove -k {where}"
            ) from error
        finally:
            told.close()
        return {"seed": seed, "bars": bars, "sockets": sockets, **{"counts": dict(sorted(told.counts.items()))}}


def asdict_of(risk: RiskConfig) -> dict[str, Any]:
    return {name: getattr(risk, name) for name in ("max_position", "daily_loss_limit", "max_drawdown")}


def _chosen(seeds: range) -> list[int]:
    first, dash, last = os.environ.get("MLBOT_SEEDS", "").partition("-")
    if dash:
        return list(range(int(first), int(last) + 1))
    if first:
        return [int(text) for text in first.split(",")]
    shard, _, shards = os.environ.get("MLBOT_SHARD", "0/1").partition("/")
    return [seed for seed in seeds if seed % int(shards) == int(shard)]


@pytest.fixture(autouse=True)
def _compiled(machinery: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machinery.share_compiled_statements(monkeypatch)


@pytest.mark.parametrize("seed", QUICK_SEEDS)
def test_a_story_of_a_few_bars(seed: int) -> None:
    assert story(seed, 5, sockets=False)["counts"]["orders"]


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", SLOW_SEEDS)
def test_a_story_of_some_days(seed: int) -> None:
    assert story(seed, 8, sockets=False)["counts"]["executions"]


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_story_over_sockets() -> None:
    assert story(SOCKET_SEEDS[0], 8, sockets=True)["counts"]["executions"]


@pytest.mark.prove
@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    ("name", "seeds", "bars", "sockets"),
    [("in_process", ALL_SEEDS, 50, False), ("over_sockets", SOCKET_SEEDS, 200, True)],
    ids=["in_process", "over_sockets"],
)
def test_many_stories(name: str, seeds: range, bars: int, sockets: bool, proofs: Any) -> None:
    """All seeds; one that fails does not stop the others."""
    done = proofs.cells(f"schedules_{name}")
    wrong = []
    for seed in _chosen(seeds):
        if done.has(str(seed)) and (not (named := os.environ.get("MLBOT_SEEDS")) or "-" in named):
            continue
        began = time.process_time()
        try:
            told = story(seed, bars, sockets=sockets)
            done.add(str(seed), {**told, "cpu_s": round(time.process_time() - began, 1)})
        except AssertionError as error:
            done.note_failure(str(seed), str(error))
            wrong.append(str(error))
    total: Counter[str] = Counter()
    for told in done.results():
        total.update(told["counts"])
    print(f"\n{name}: {len(done.results())} stories of {bars} bars")
    for word, count in sorted(total.items()):
        print(f"  {word:<24}{count:>9}")
    assert not wrong, f"{len(wrong)} stories are wrong; the first:\n{wrong[0]}"
    assert done.results()
