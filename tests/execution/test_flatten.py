"""Closing with nothing but a broker: flat under every fault, each request once, the stops kept until the end."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from decimal import Decimal

import pytest

from mlbot_core.decision.state import HALTING, KILL
from mlbot_core.emulator.exchange import TradeFault
from mlbot_core.errors import UsageError
from mlbot_core.execution.flatten import emergency_trigger, flatten_now, is_emergency, run_name
from mlbot_core.execution.flatten_record import (
    Recorder,
    leave_report,
    pending_reports,
    record_flattening,
    record_pending,
    report_from_json,
)
from mlbot_core.execution.identifiers import is_ours
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.safety import Halt, SafetyFiles, folder_of
from mlbot_core.execution.types import LINK_ID

D = Decimal
ACCOUNT = "emulator:100001"
CREATE, CANCEL_ALL = "order/create", "order/cancel-all"
IN_PROCESS = pytest.mark.parametrize("bench", ["in_process"], indirect=True)
LOST = ("timeout", "reset", "http_500", "http_502", "body_10000", "body_10016", "truncated_json")


def yes():
    return True


def stop_of(bench, side="Buy"):
    last = bench.broker.ticker(bench.symbol).last
    return (last * D("0.9" if side == "Buy" else "1.1")).quantize(D(1))


def hold(bench, side="Buy", qty="0.05"):
    """A position with its stop, and two more orders that rest."""
    bench.broker.place(bench.order(side, qty, stop_loss=stop_of(bench, side)), may_send=yes)
    bench.broker.place(bench.order(side, "0.01", bench.away(side)), may_send=yes)
    bench.broker.place(bench.order(side, "0.02", bench.away(side)), may_send=yes)
    assert abs(bench.broker.position(bench.symbol).size) == D(qty)
    assert len(bench.broker.open_orders(bench.symbol)) == 3


def flatten(bench, **more):
    return flatten_now(bench.broker, bench.symbol, bench.clock, trigger="drill", reason="a drill", **more)


def emergency_orders(bench):
    return [row for row in bench.truth()["orders"] if is_emergency(row["orderLinkId"])]


def sends(bench):
    return [note for note in bench.exchange.requests if note["path"].endswith(CREATE) and is_emergency(note["link"])]


def assert_clean(bench, report):
    assert report.done, report
    truth = bench.truth()
    assert D(truth["positions"][bench.symbol]["size"] or "0") == 0
    assert not bench.broker.open_orders(bench.symbol)
    # it went through zero to the other side at no moment
    size, turned = D(0), []
    for row in truth["executions"]:
        before = size
        size += D(row["execQty"]) * (1 if row["side"] == "Buy" else -1)
        turned.append(before * size < 0)
    assert size == 0
    assert not any(turned)
    # each request once
    links = [note["link"] for note in sends(bench)]
    assert len(links) == len(set(links))
    assert all(row["reduceOnly"] for row in emergency_orders(bench))


@pytest.mark.parametrize("side", ["Buy", "Sell"])
def test_it_cancels_closes_and_leaves_nothing(bench, side):
    hold(bench, side)
    report = flatten(bench)
    assert_clean(bench, report)
    assert (report.held, report.left) == (D("0.05") if side == "Buy" else D("-0.05"), 0)
    (order,) = report.orders
    assert order.outcome == "accepted"
    assert (order.qty, order.side) == (D("0.05"), "Sell" if side == "Buy" else "Buy")
    assert order.order_link_id.startswith(report.run)
    assert "flat, was" in report.in_words()
    assert report_from_json(json.loads(json.dumps(report.as_json()))) == report


def test_the_stop_stands_until_the_position_is_gone(bench):
    hold(bench)
    bench.faults(TradeFault("reject", endpoint=CREATE, code=110118, count=3))
    flatten(bench)
    notes = [note["path"].rpartition("/")[2] for note in bench.exchange.requests if note["method"] == "POST"]
    filled = next(row for row in emergency_orders(bench) if row["orderStatus"] == "Filled")
    stops = [row for row in bench.truth()["orders"] if row["stopOrderType"]]
    assert stops
    for row in stops:
        assert int(row["updatedTime"]) >= int(filled["updatedTime"])
    assert notes.count("create") == 3 + 3 + 1


def test_nothing_held_is_told_so(bench):
    report = flatten(bench)
    assert_clean(bench, report)
    assert report.orders == ()
    assert "nothing was held" in report.in_words()


@IN_PROCESS
def test_slices_are_as_large_as_the_exchange_takes(bench, monkeypatch):
    # the emulator's tiers bound a position below its largest market order: a smaller one, published and enforced
    hold(bench, qty="0.05")
    rules = bench.exchange.contracts[bench.symbol].rules
    object.__setattr__(rules, "max_market_qty", D("0.02"))
    published = replace(bench.broker.instrument(bench.symbol), max_market_qty=D("0.02"))
    monkeypatch.setattr(bench.broker, "instrument", lambda symbol: published)
    report = flatten(bench)
    assert_clean(bench, report)
    assert [order.qty for order in report.orders] == [D("0.02"), D("0.02"), D("0.01")]


@IN_PROCESS
def test_slices_shrink_where_the_exchange_takes_less_than_it_says(bench):
    hold(bench, qty="0.05")
    object.__setattr__(bench.exchange.contracts[bench.symbol].rules, "max_market_qty", D("0.02"))
    report = flatten(bench)
    assert_clean(bench, report)
    assert [order.outcome for order in report.orders][:2] == ["refused", "refused"]
    assert all(order.qty <= D("0.02") for order in report.orders if order.outcome == "accepted")


@pytest.mark.parametrize("endpoint", [CREATE, CANCEL_ALL])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("kind", "bench"),
    # what is in a body does not depend on the transport
    [*((kind, "in_process") for kind in LOST), ("timeout", "sockets"), ("reset", "sockets")],
    indirect=["bench"],
)
def test_lost_answers_do_no_harm(bench, kind, when, endpoint):
    hold(bench)
    bench.faults(TradeFault(kind, endpoint=endpoint, when=when, count=2, seconds=1.0))
    report = flatten(bench)
    assert_clean(bench, report)
    assert report.notes


@IN_PROCESS
@pytest.mark.parametrize(
    "fault",
    [
        TradeFault("outage", active_from_ms=0, active_to_ms=1),  # moved below
        TradeFault("http_403", endpoint=CREATE, count=1),
        TradeFault("body_10006", endpoint="", count=6),
        TradeFault("http_429", endpoint="position/", count=3),
        TradeFault("http_502", endpoint="position/", count=7),
        TradeFault("reset", endpoint="order/realtime", count=5),
        TradeFault("truncated_json", endpoint="", probability=0.4, count=20),
        TradeFault("partial_fill", endpoint=CREATE, fraction=0.3, count=3),
        TradeFault("partial_fill", endpoint=CREATE, fraction=0.0, count=3),
        TradeFault("engine_reject", endpoint=CREATE, count=3),
        TradeFault("late_visibility", endpoint=CREATE, seconds=3.0, count=3),
        TradeFault("reject", endpoint=CREATE, code=110017, count=2),
        TradeFault("reject", endpoint=CREATE, code=10001, count=2),
        TradeFault("reject", endpoint=CREATE, code=99999, count=2),
        TradeFault("reject", endpoint=CANCEL_ALL, code=10005, count=2),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.endpoint}-{fault.code}",
)
def test_it_gets_through_trouble(bench, fault):
    hold(bench)
    if fault.kind == "outage":
        now = bench.clock.now_ms()
        fault = TradeFault("outage", active_from_ms=now, active_to_ms=now + 20_000)
    bench.faults(fault)
    # an address that was refused is not heard for ten minutes
    report = flatten(bench, patience_s=700 if fault.kind == "http_403" else 60)
    assert_clean(bench, report)


@IN_PROCESS
@pytest.mark.parametrize("seconds", [-20.0, -2.0, 0.9])
def test_a_clock_that_is_off_does_not_shut_the_way_out_unless_the_exchange_says_so(bench, seconds):
    hold(bench)
    now = bench.clock.now_ms()
    bench.faults(TradeFault("clock_skew", seconds=seconds, active_from_ms=now, active_to_ms=now + 10_000))
    assert_clean(bench, flatten(bench))


def test_patience_ends_and_says_what_is_left(bench):
    hold(bench)
    now = bench.clock.now_ms()
    bench.faults(TradeFault("reject", endpoint=CREATE, code=110118))
    report = flatten(bench, patience_s=5)
    assert not report.flat
    assert report.left == D("0.05")
    assert bench.clock.now_ms() - now < 60_000
    assert "NOT FLAT, 0.05" in report.in_words()
    # what protects it is still there
    assert [order.stop_order_type for order in bench.broker.open_orders(bench.symbol)] == ["StopLoss"]


@IN_PROCESS
def test_an_exchange_that_answers_nothing_is_told_so(bench):
    hold(bench)
    now = bench.clock.now_ms()
    bench.faults(TradeFault("outage", active_from_ms=now, active_to_ms=now + 10**9))
    report = flatten(bench, patience_s=5)
    assert (report.flat, report.clear, report.held, report.left) == (False, False, None, None)
    assert "unknown position" in report.in_words()


def test_ids_are_of_their_own_kind():
    names = {run_name("deadman", 1_700_000_000_000 + n) for n in range(200)} | {
        run_name("abcdefghij", 36**9 - 1) for _ in range(200)
    }
    assert len(names) == 400
    for name in names:
        link = f"{name}-200"
        assert LINK_ID.fullmatch(link)
        assert is_emergency(link)
        assert not is_ours(link)
        assert emergency_trigger(link) in ("deadman", "abcdefghij")
    for link in ("", "flat", "flat-x", "mabcdefghijklmnopqrstuvwxyz234567", "flat-deadman-abc-xyzxyz-1"):
        assert not is_emergency(link)
        assert emergency_trigger(link) is None
    for trigger in ("", "Deadman", "dead-man", "abcdefghijk"):
        with pytest.raises(UsageError):
            run_name(trigger, 0)


# --- recorded afterwards


@pytest.fixture
def book(tmp_path, bench):
    with ExecutionLedger(tmp_path, bench.clock, ACCOUNT, timeout_s=0.2) as ledger:
        yield ledger


@pytest.fixture
def files(tmp_path, bench):
    return SafetyFiles(folder_of(tmp_path / "live", ACCOUNT), ACCOUNT, bench.clock)


def rows_of(book):
    names = ("decisions", "orders", "fills", "alerts", "risk_states")
    return {name: len(book.rows(name)) for name in names}


@IN_PROCESS
def test_it_is_recorded_once_however_often(bench, book):
    hold(bench)
    report = flatten(bench)
    halt = Halt("dead-man", "silence", bench.clock.now_ms())
    record_flattening(book, report, bench.broker, halt)
    before = rows_of(book)
    record_flattening(book, report, bench.broker, halt)
    assert rows_of(book) == before
    assert before["alerts"] == before["decisions"] == before["risk_states"] == 1
    (decision,) = book.rows("decisions")
    assert decision["trigger"] == "emergency-drill"
    assert D(decision["target"]) == 0
    assert json.loads(decision["details"])["run"] == report.run
    links = {row["order_link_id"] for row in book.rows("fills")}
    assert {order.order_link_id for order in report.orders} <= links
    assert book.positions_from_fills()[bench.symbol].size == 0
    stored = book.load_risk_state(bench.symbol)
    assert stored.state.causes & HALTING == KILL
    assert (stored.actor, stored.reason) == ("dead-man", "silence")


@IN_PROCESS
def test_without_a_halt_the_risk_state_is_left_alone(bench, book):
    hold(bench)
    record_flattening(book, flatten(bench), bench.broker, None)
    assert book.load_risk_state(bench.symbol) is None
    assert len(book.rows("fills")) >= 2


@IN_PROCESS
def test_a_locked_book_is_recorded_into_once_it_is_free(tmp_path, bench, book, files):
    hold(bench)
    record_flattening(book, flatten(bench), None, None)
    locker = sqlite3.connect(tmp_path / "execution.sqlite", isolation_level=None, check_same_thread=False)
    locker.execute("BEGIN IMMEDIATE")
    hold(bench)
    report = flatten(bench)
    assert report.done
    leave_report(files, report)
    recorder = Recorder(
        files, lambda: ExecutionLedger(tmp_path, bench.clock, ACCOUNT, timeout_s=0.1), bench.broker, 0.05
    )
    recorder.start()
    assert not recorder.wait(0.6)
    assert "locked" in recorder.problem
    assert len(pending_reports(files)) == 1
    locker.execute("ROLLBACK")
    locker.close()
    assert recorder.wait(20)
    assert not pending_reports(files)
    assert [json.loads(row["details"])["run"] for row in book.rows("decisions")][-1] == report.run
    assert record_pending(files, book, bench.broker) == []


@IN_PROCESS
def test_a_report_that_cannot_be_read_is_put_aside_with_an_alert(bench, book, files):
    leave_report(files, flatten(bench))
    (path,) = pending_reports(files)
    path.write_text("{")
    assert record_pending(files, book, None) == []
    assert not pending_reports(files)
    assert [row["code"] for row in book.rows("alerts")] == ["flatten_unreadable"]
    assert path.with_suffix(".unreadable").read_text() == "{"
