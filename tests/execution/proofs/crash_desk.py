"""What a crash point is tried on: a trader's desk at an exchange, what it does, and how what came of it is judged.

The exchange is in the same process, or behind sockets in another one: the desk does the same at both.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from pydantic import SecretStr

from mlbot_core.clock import Clock, FixedClock, parse_utc_ms
from mlbot_core.config.execution import OrdersConfig
from mlbot_core.config.secrets import KeyPair
from mlbot_core.config.trading import RiskConfig
from mlbot_core.decision.costs import Costs
from mlbot_core.decision.state import Forecast
from mlbot_core.emulator.exchange import Exchange
from mlbot_core.emulator.exchange.adapter import InProcess
from mlbot_core.emulator.exchange.trade_faults import LOST_KINDS
from mlbot_core.execution.broker import Venue
from mlbot_core.execution.bybit import BybitBroker
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_schema import TABLES
from mlbot_core.execution.marking import limits_from_risk, warm_up
from mlbot_core.execution.safety import Lease, Permit, SafetyFiles
from mlbot_core.execution.sending import ExecutionRules
from mlbot_core.execution.trader import CycleReport, Decided, Trader
from mlbot_core.timeframe import Timeframe

MARKET_START, NOW = parse_utc_ms("2024-01-01"), parse_utc_ms("2024-01-06T10:00:05Z")
SYMBOL, UID, ACCOUNT = "BTCUSDT", 100001, "emulator:100001"
FRAME = Timeframe.parse("2h")
CREATE = "order/create"
# How often a restarted trader may come back until the position is what was decided.
MOST_CYCLES = 6
# Within the time in which an order that was taken in must show itself, and long after it; seconds.
LATE = {"late": 4.0, "too_late": 40.0}


@dataclass(frozen=True)
class Scenario:
    """What the traded bar brings to what is held, and how."""

    name: str
    held: bool
    edge: float
    orders: dict[str, Any] = field(default_factory=dict)
    risk: dict[str, Any] = field(default_factory=dict)


SCENARIOS = (
    Scenario("entry", False, 0.01),
    Scenario("reversal", True, -0.01),
    Scenario("close", True, math.nan),
    Scenario("maker", False, 0.01, {"style": "maker"}),
    Scenario("flatten", True, 0.01, {}, {"daily_loss_limit": 1e-6}),
)


def faults() -> dict[str, list[dict[str, Any]]]:
    """Return what may happen to the first order: nothing, or a lost answer; and the order is late to be seen or not."""
    lost: dict[str, list[dict[str, Any]]] = {"none": []}
    for kind in LOST_KINDS:
        for when in ("after",) if kind == "truncated_json" else ("before", "after"):
            silent = {"seconds": 1.0} if kind == "timeout" else {}
            lost[f"{kind}/{when}"] = [{"kind": kind, "when": when, "endpoint": CREATE, "count": 1, **silent}]
    whole = dict(lost)
    for word, seconds in LATE.items():
        late = {"kind": "late_visibility", "seconds": seconds, "endpoint": CREATE, "count": 1}
        whole |= {f"{name}+{word}": [*lines, late] for name, lines in lost.items()}
    return whole


# An order that may have been accepted and is not to be seen yet cannot be told from one that is lost.
MAY_REDUCE = frozenset(name for name in faults() if name != "none")


class Way(Protocol):
    """How an exchange is reached."""

    def clock(self) -> Clock:
        """The clock of the trader and the exchange."""
        ...

    def transport(self, fault: str) -> dict[str, Any]:
        """The broker's."""
        ...

    def truth(self) -> dict[str, Any]:
        """Everything that the exchange knows of the account."""
        ...


@dataclass(frozen=True)
class OverSockets:
    """An exchange in another process; ``machinery`` is the conftest's."""

    machinery: Any
    url: str

    def clock(self) -> Clock:
        made: Clock = self.machinery.ExchangeClock(self.url)
        return made

    def transport(self, fault: str) -> dict[str, Any]:
        # loaded machines answer late; only a silence that is meant is to be a timeout
        return {"url": self.url, "timeout_s": (20.0, 0.4) if "timeout" in fault else (20.0, 20.0)}

    def truth(self) -> dict[str, Any]:
        found: dict[str, Any] = self.machinery.control(self.url, "GET", "truth")["accounts"][str(UID)]
        return found


class SteppedClock(FixedClock):
    """Moves only by sleeping, and takes the exchange along, as the other clock does over sockets."""

    then: Callable[[], None] = staticmethod(lambda: None)

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.set_ms(self.now_ms() + max(1, int(seconds * 1000)))
            self.then()


@dataclass(frozen=True)
class InMemory:
    """An exchange in this process."""

    exchange: Exchange
    adapter: InProcess

    def clock(self) -> Clock:
        return self.exchange.clock

    def transport(self, fault: str) -> dict[str, Any]:
        return {"adapter": self.adapter}

    def truth(self) -> dict[str, Any]:
        # through JSON, as the other way's
        found: dict[str, Any] = json.loads(json.dumps(self.exchange.truth()))["accounts"][str(UID)]
        return found


class Desk:
    """A trader as one process has it: everything is made anew, nothing but the files and the account is there."""

    def __init__(self, way: Way, home: Path, scenario: Scenario, fault: str) -> None:
        self.way = way
        self.clock = way.clock()
        self.ledger = ExecutionLedger(home, self.clock, ACCOUNT)
        pair = KeyPair(key=SecretStr("key"), secret=SecretStr("secret"))
        self.broker = BybitBroker(Venue.EMULATOR, pair, self.clock, **way.transport(fault))
        risk = RiskConfig(**{"max_position": 0.1, "daily_loss_limit": 0.03, "max_drawdown": 0.25, **scenario.risk})
        orders = OrdersConfig(**{"participation": None, **scenario.orders})
        files = SafetyFiles(home / "live", ACCOUNT, self.clock)
        lease = Lease(600.0, self.clock)
        warm_up(limits_from_risk(risk, FRAME))
        self.trader = Trader(
            self.ledger, self.broker, self.clock, Permit(files, lease),
            ExecutionRules("mlbot", orders, risk, Decimal(str(risk.max_position))), FRAME,
            Costs(taker=0.00055, maker=0.0002, slippage=0.0001), SYMBOL, renew=lease.renew, halt=files,
        )  # fmt: skip

    def decide(self, edge: float) -> Decided:
        bar = FRAME.last_closed(self.clock.now_ms())
        return self.trader.decide(bar, Forecast(edge, 0.5, 0), {"model": "made"})

    def truth(self) -> dict[str, Any]:
        return self.way.truth()

    def held(self, truth: dict[str, Any]) -> Decimal:
        row = truth["positions"][SYMBOL]
        return Decimal(row["size"]) * (-1 if row["side"] == "Sell" else 1)

    def wait(self, report: CycleReport) -> None:
        wait_ms = 10_000 if report.next_ms is None else report.next_ms - self.clock.now_ms()
        self.clock.sleep(max(1, wait_ms) / 1000)

    def content(self) -> str:
        """Return a digest of every row of the book, and of the exchange's truth."""
        rows = {name: self.ledger.rows(name, limit=1_000_000) for name in TABLES}
        whole = json.dumps([rows, self.truth()], sort_keys=True)
        return hashlib.blake2b(whole.encode(), digest_size=12).hexdigest()


def begin(way: Way, home: Path, scenario: Scenario) -> str:
    """Open the book, and a long position where the scenario wants one; return what is held."""
    desk = Desk(way, home, Scenario("before", False, 0.01), "none")
    if scenario.held:
        made = desk.decide(0.01)
        assert made.cycle is not None, made
        assert made.cycle.position, made
    else:
        assert desk.trader.cycle().clean
    desk.clock.sleep((FRAME.close_of(FRAME.floor(desk.clock.now_ms())) + 5_000 - desk.clock.now_ms()) / 1000)
    held = str(desk.held(desk.truth()))
    desk.ledger.close()
    return held


def trade(way: Way, home: Path, scenario: Scenario, fault: str) -> str:
    """What is killed: a bar's decision, or a cycle that finds a limit breached, until it is carried out."""
    desk = Desk(way, home, scenario, fault)
    report = desk.trader.cycle() if scenario.name == "flatten" else desk.decide(scenario.edge).cycle
    for _ in range(60):
        if report is None or not (report.open or report.blind):
            break
        desk.wait(report)
        report = desk.trader.cycle()
    return str(desk.held(desk.truth()))


def again(way: Way, home: Path, scenario: Scenario, fault: str, held: str) -> dict[str, Any]:
    """What a restarted trader does within the bar, and what came of it, judged by the exchange's truth."""
    desk = Desk(way, home, scenario, fault)
    reports = [desk.trader.cycle()]
    decided = desk.decide(scenario.edge)
    if decided.cycle is not None:
        reports.append(decided.cycle)
    reports.append(desk.trader.cycle())
    first = len(reports)
    # a maker's order rests for a minute before it is taken
    most = 40 if scenario.name == "maker" else MOST_CYCLES
    while (reports[-1].open or not reports[-1].clean) and len(reports) < first + most:
        desk.wait(reports[-1])
        if decided.status == "blind":
            decided = desk.decide(scenario.edge)
        reports.append(desk.trader.cycle())
    if fault.endswith("too_late"):
        # by now everything is to be seen
        desk.clock.sleep(60)
        reports.append(desk.trader.cycle())
        first += 1
    judged = _judged(desk, scenario, Decimal(held), reports)
    return {
        **judged, "more_cycles": len(reports) - first, "levels": [report.level for report in reports],
        "content": desk.content(),
    }  # fmt: skip


def _judged(desk: Desk, scenario: Scenario, before: Decimal, reports: list[CycleReport]) -> dict[str, Any]:
    truth, ledger, wrong = desk.truth(), desk.ledger, []
    held, last = desk.held(truth), reports[-1]
    record = ledger.newest_decision(SYMBOL, "risk" if scenario.name == "flatten" else "bar")
    states = [] if record is None else ledger.intents_of(record.decision_id)
    wanted = Decimal(0) if scenario.name == "flatten" else before + sum(state.intent.signed_qty for state in states)
    given_up = sorted({str(state.closing) for state in states if not state.complete and state.closing is not None})
    alerts = Counter(alert.code for alert in ledger.pending_alerts())
    if record is None and scenario.name != "flatten":
        wrong.append("no decision is recorded")
    if last.open or not last.clean or last.blind:
        wrong.append(f"still open: {last}")
    if held != wanted and not given_up:
        wrong.append(f"lost or doubled: {held} held, {wanted} wanted")
    if held and not truth["positions"][SYMBOL]["stopLoss"]:
        wrong.append("held without a stop")
    # what was executed, by intent
    owner = {row["order_link_id"]: row["intent_id"] for row in ledger.rows("attempts")}
    done: Counter[str] = Counter()
    links = [row["orderLinkId"] for row in truth["orders"] if row["orderLinkId"]]
    for row in truth["executions"]:
        if row["orderLinkId"]:
            if row["orderLinkId"] not in owner:
                wrong.append(f"order {row['orderLinkId']} is not in the book")
            done[owner.get(row["orderLinkId"], "?")] += Decimal(row["execQty"])
    for row in ledger.rows("intents"):
        if done[row["intent_id"]] > Decimal(row["qty"]):
            wrong.append(f"intent {row['intent_id']} traded {done[row['intent_id']]} of {row['qty']}")
    if len(links) != len(set(links)):
        wrong.append("an id was used twice")
    # the book and the truth
    told = {fill.exec_id: (fill.qty, fill.price, fill.fee) for fill in ledger.executions(SYMBOL)}
    true = {
        row["execId"]: tuple(Decimal(row[name]) for name in ("execQty", "execPrice", "execFee"))
        for row in truth["executions"]
    }
    if told != true:
        wrong.append(f"fills differ: book {told}, truth {true}")
    if ledger.held(SYMBOL).size != held:
        wrong.append(f"the book holds {ledger.held(SYMBOL).size}, the exchange {held}")
    balance = ledger.balance(SYMBOL)
    if balance is None or balance[0] != Decimal(truth["wallet"]["USDT"]):
        wrong.append(f"wallet: book {balance}, truth {truth['wallet']}")
    for row in truth["orders"]:
        found = ledger.attempt(row["orderLinkId"]) if row["orderLinkId"] else None
        order = None if found is None else found[1].order
        if row["orderLinkId"] and (order is None or str(order.status) != row["orderStatus"]):
            wrong.append(f"order {row['orderLinkId']}: truth {row['orderStatus']}, book {order and order.status}")
    normal = "FLAT_TODAY" if scenario.name == "flatten" else "NORMAL"
    raised = [report.level for report in reports if report.level not in (normal, "NORMAL")]
    if last.level != normal:
        wrong.append(f"the level stays {last.level} ({last.causes})")
    if raised and not alerts:
        wrong.append(f"level {raised} without an alert")
    outcome = "wrong" if wrong else "withheld" if held != wanted else "reduce_only" if raised else "exact"
    return {
        "outcome": outcome, "wrong": wrong, "held": str(held), "wanted": str(wanted), "given_up": given_up,
        "alerts": dict(alerts),
    }  # fmt: skip
