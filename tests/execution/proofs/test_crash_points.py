"""Killed at every line between a decision and its confirmed fill, then begun anew: nothing twice, nothing lost.

A point is a line and which time it runs, numbered in the order of a run that is not killed: every line the first time,
and the lines that order the steps again whenever something more was written or sent, see :func:`chosen_points`.

A cell is a scenario, a fault of the first request that creates an order, and a point. The exchange runs in a process
of its own. Scenarios whose cells may show ``reduce_only`` are in :data:`MAY_REDUCE`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mlbot_core.clock import parse_utc_ms
from mlbot_core.config.execution import OrdersConfig
from mlbot_core.config.secrets import KeyPair
from mlbot_core.config.trading import RiskConfig
from mlbot_core.decision.costs import Costs
from mlbot_core.decision.state import Forecast
from mlbot_core.emulator.exchange.trade_faults import LOST_KINDS
from mlbot_core.execution.broker import Venue
from mlbot_core.execution.bybit import BybitBroker
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.marking import limits_from_risk, warm_up
from mlbot_core.execution.safety import Lease, Permit, SafetyFiles
from mlbot_core.execution.sending import ExecutionRules
from mlbot_core.execution.trader import CycleReport, Decided, Trader
from mlbot_core.timeframe import Timeframe

MARKET_START, NOW = parse_utc_ms("2024-01-01"), parse_utc_ms("2024-01-06T10:00:05Z")
SYMBOL, UID, ACCOUNT = "BTCUSDT", 100001, "emulator:100001"
FRAME = Timeframe.parse("2h")
LEADING = tuple(
    f"execution/{name}.py" for name in ("trader", "cycle", "executor", "sending", "working", "reconcile", "bybit")
)
SENDING = ("place", "cancel", "set_trading_stop")
CREATE = "order/create"
# How often a restarted trader may come back until the position is what was decided.
MOST_CYCLES = 6
# Within the time in which an order that was taken in must show itself, and long after it; seconds.
LATE = {"late": 4.0, "too_late": 40.0}
SAMPLE = 36
MOST_POINTS = 8_000


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


class Desk:
    """A trader over sockets, as one process has it."""

    def __init__(self, machinery: Any, url: str, home: Path, scenario: Scenario, fault: str) -> None:
        self.machinery, self.url = machinery, url
        self.clock = machinery.ExchangeClock(url)
        self.ledger = ExecutionLedger(home, self.clock, ACCOUNT)
        # loaded machines answer late; only a silence that is meant is to be a timeout
        patience = (20.0, 0.4) if "timeout" in fault else (20.0, 20.0)
        pair = KeyPair(key=SecretStr("key"), secret=SecretStr("secret"))
        self.broker = BybitBroker(Venue.EMULATOR, pair, self.clock, url=url, timeout_s=patience)
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
        found: dict[str, Any] = self.machinery.control(self.url, "GET", "truth")["accounts"][str(UID)]
        return found

    def held(self, truth: dict[str, Any]) -> Decimal:
        row = truth["positions"][SYMBOL]
        return Decimal(row["size"]) * (-1 if row["side"] == "Sell" else 1)

    def wait(self, report: CycleReport) -> None:
        wait_ms = 10_000 if report.next_ms is None else report.next_ms - self.clock.now_ms()
        self.clock.sleep(max(1, wait_ms) / 1000)


def begin(machinery: Any, url: str, home: Path, scenario: Scenario) -> str:
    """Open the book, and a long position where the scenario wants one; return what is held."""
    desk = Desk(machinery, url, home, Scenario("before", False, 0.01), "none")
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


def trade(machinery: Any, url: str, home: Path, scenario: Scenario, fault: str) -> str:
    """What is killed: a bar's decision, or a cycle that finds a limit breached, until it is carried out."""
    desk = Desk(machinery, url, home, scenario, fault)
    report = desk.trader.cycle() if scenario.name == "flatten" else desk.decide(scenario.edge).cycle
    for _ in range(60):
        if report is None or not (report.open or report.blind):
            break
        desk.wait(report)
        report = desk.trader.cycle()
    return str(desk.held(desk.truth()))


def again(machinery: Any, url: str, home: Path, scenario: Scenario, fault: str, held: str) -> dict[str, Any]:
    """What a restarted trader does within the bar, and what came of it, judged by the exchange's truth."""
    desk = Desk(machinery, url, home, scenario, fault)
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
    return {**judged, "more_cycles": len(reports) - first, "levels": [report.level for report in reports]}


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


def chosen_points(points: list[Any]) -> list[Any]:
    """Return the crash points of a run, in its order.

    A line counts the first time that it runs; those of the parts in :data:`LEADING` count again each time they run
    after something more was written or sent, and all lines of the wire while a request that changes something is on
    its way. What is left out runs in a state of book and exchange in which the same line ran before.
    """
    found, seen, sending = [], set(), False
    for point in points:
        if point.file == "execution/bybit.py":
            sending = True
        elif point.file in ("execution/sending.py", "execution/working.py", "execution/cycle.py"):
            sending = False
        leading = point.file in LEADING or (sending and point.file == "execution/bybit_wire.py")
        state = (point.file, point.line, point.after)
        if point.hit == 1 or (leading and state not in seen):
            found.append(point)
        seen.add(state)
    return found


class Room:
    """The exchange, the prepared beginnings, and the points of each scenario under each fault."""

    def __init__(self, machinery: Any, exchange: Any, folder: Path, traces: Path | None = None) -> None:
        self.machinery, self.exchange, self.folder, self.traces = machinery, exchange, folder, traces
        self._held: dict[str, str] = {}
        self._points: dict[tuple[str, str], list[Any]] = {}
        exchange.save("empty")

    def _home(self, name: str) -> Path:
        return self.folder / name

    def prepared(self, scenario: Scenario) -> str:
        """Begin once; return what is held."""
        if scenario.name not in self._held:
            home = self._home(f"begin-{scenario.name}")
            home.mkdir()
            self.exchange.load("empty", [])
            made = self.machinery.in_child(partial(begin, self.machinery, self.exchange.url, home, scenario))
            assert not made.error, made.error
            self._held[scenario.name] = made.result
            self.exchange.save(scenario.name)
        return self._held[scenario.name]

    def points(self, scenario: Scenario, fault: str) -> list[Any]:
        """Trace a run that is not killed, once for this code."""
        kept = None
        if self.traces is not None:
            kept = self.traces / f"{scenario.name}.{fault.replace('/', '-')}.{self.machinery.CODE}.points.json"
            if kept.exists() and (scenario.name, fault) not in self._points:
                known = [self.machinery.Point(*line) for line in json.loads(kept.read_text())]
                self._points[scenario.name, fault] = known
        if (scenario.name, fault) not in self._points:
            home, _ = self._again(scenario, fault)
            work = partial(trade, self.machinery, self.exchange.url, home, scenario, fault)
            made = self.machinery.in_child(work, trace=True)
            assert not made.error, made.error
            found = chosen_points(made.points)
            self._points[scenario.name, fault] = found
            shutil.rmtree(home)
            if kept is not None:
                kept.write_text(json.dumps([(one.file, one.line, one.hit, one.after) for one in found]))
        return self._points[scenario.name, fault]

    def cell(self, scenario: Scenario, fault: str, point: Any) -> dict[str, Any]:
        """Kill at a point, begin anew, judge."""
        home, held = self._again(scenario, fault)
        url = self.exchange.url
        died = self.machinery.in_child(partial(trade, self.machinery, url, home, scenario, fault), kill_at=point)
        assert died.killed or not died.error, died.error
        came = self.machinery.in_child(partial(again, self.machinery, url, home, scenario, fault, held))
        shutil.rmtree(home)
        if came.error:
            return {"outcome": "wrong", "wrong": [came.error], "killed": died.killed}
        return {**came.result, "killed": died.killed}

    def _again(self, scenario: Scenario, fault: str) -> tuple[Path, str]:
        held = self.prepared(scenario)
        home = self._home("cell")
        shutil.copytree(self._home(f"begin-{scenario.name}"), home)
        self.exchange.load(scenario.name, faults()[fault])
        return home, held


@pytest.fixture
def room(machinery: Any, exchange_process: Any, proofs: Any) -> Iterator[Room]:
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    # what a child needs is loaded before it is made
    BybitBroker(
        Venue.EMULATOR, KeyPair(key=SecretStr("key"), secret=SecretStr("secret")), None, url="http://127.0.0.1:9"
    )  # type: ignore[arg-type]
    warm_up(limits_from_risk(RiskConfig(max_position=0.1, daily_loss_limit=0.03, max_drawdown=0.25), FRAME))
    with tempfile.TemporaryDirectory(dir=base, prefix="mlbot-crash-") as folder:
        yield Room(machinery, exchange_process(MARKET_START, NOW, UID), Path(folder), proofs.folder)


def table(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """Return points x faults by scenario: cells and what came of them."""
    names = ("exact", "reduce_only", "withheld", "wrong")
    counts: dict[tuple[str, str], Counter[str]] = {}
    for cell, result in rows:
        scenario, fault, _ = cell.split("|")
        count = counts.setdefault((scenario, fault), Counter())
        count["cells"] += 1
        count[result["outcome"]] += 1
        count["points"] = result.get("points", 0)
        count["more"] = max(count["more"], result.get("more_cycles", 0))
        count["not killed"] += not result["killed"]
    lines = [f"{'scenario':<10}{'fault':<22}{'points':>8}{'cells':>8}" + "".join(f"{name:>13}" for name in names)
             + f"{'not reached':>13}{'most cycles':>13}"]  # fmt: skip
    for (scenario, fault), count in sorted(counts.items()):
        lines.append(
            f"{scenario:<10}{fault:<22}{count['points']:>8}{count['cells']:>8}"
            + "".join(f"{count[name]:>13}" for name in names)
            + f"{count['not killed']:>13}{count['more'] + 1:>13}"
        )
    return "\n".join(lines)


def _check(rows: list[tuple[str, dict[str, Any]]]) -> None:
    for cell, result in rows:
        assert result["outcome"] != "wrong", f"{cell}: {result}"
        if result["outcome"] != "exact":
            assert cell.split("|")[1] in MAY_REDUCE, f"{cell}: {result}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_some_lines(room: Room, proofs: Any) -> None:
    """Points spread over all scenarios and some faults, within a few minutes."""
    done, until = proofs.cells("crash_sample"), time.monotonic() + 200
    columns = ("timeout/after+late", "reset/before", "http_502/after", "truncated_json/after", "body_10016/before+late")
    for turn in range(SAMPLE):
        place, lap = turn % len(SCENARIOS), turn // len(SCENARIOS)
        scenario, fault = SCENARIOS[place], columns[place] if lap % 2 else "none"
        points = room.points(scenario, fault)
        number = (turn * 7919 + 13) % len(points)
        result = room.cell(scenario, fault, points[number])
        done.add(f"{scenario.name}|{fault}|{number} {points[number]}", {**result, "points": len(points)})
        if time.monotonic() > until:
            break
    print("\n" + table(done.items()))
    assert len(done.results()) >= 5
    _check(done.items())


@pytest.mark.prove
@pytest.mark.timeout(0)
def test_killed_at_every_line(room: Room, proofs: Any) -> None:
    """Every point under every fault; ``MLBOT_CELLS`` bounds how many more are done now, the rest goes on later, and
    ``MLBOT_FAULTS=none,timeout/after`` the faults.

    Cells are taken in an order that spreads over everything, so that a part of them is a fair sample. One that is
    wrong does not stop the others; ``MLBOT_CELL='entry|none|17 execution/trader.py:100:1'`` does only that one again.
    """
    done = proofs.cells("crash_points")
    only = os.environ.get("MLBOT_CELL", "")
    shard, _, shards = os.environ.get("MLBOT_SHARD", "0/1").partition("/")
    columns = os.environ.get("MLBOT_FAULTS", ",".join(faults())).split(",")
    places = [(scenario, fault, n) for scenario in SCENARIOS for fault in columns for n in range(MOST_POINTS)]
    places.sort(key=lambda one: hashlib.blake2b(f"{one[0].name}|{one[1]}|{one[2]}".encode()).digest())
    left = int(os.environ.get("MLBOT_CELLS", "1000000000"))
    for place, (scenario, fault, number) in enumerate(places):
        if left <= 0:
            break
        if place % int(shards) != int(shard) or (only and not only.startswith(f"{scenario.name}|{fault}|{number} ")):
            continue
        points = room.points(scenario, fault)
        assert len(points) <= MOST_POINTS
        if number >= len(points):
            continue
        cell, count = f"{scenario.name}|{fault}|{number} {points[number]}", len(points)
        if done.has(cell) and not only:
            continue
        left -= 1
        result = {**room.cell(scenario, fault, points[number]), "points": count}
        done.add(cell, result)
        if result["outcome"] == "wrong":
            done.note_failure(cell, json.dumps(result))
            print(f"\nWRONG {cell}: {result}", flush=True)
    shown = table(done.items())
    print(f"\n{len(done.results())} cells\n{shown}")
    (proofs.folder / "crash_points.txt").write_text(shown + "\n")
    _check(done.items())
