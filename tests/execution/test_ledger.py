"""The book says once what was told twice, refuses what contradicts, and lets no order be begun twice."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal as D

import pytest
import sqlalchemy as sa

from mlbot_core.clock import FixedClock
from mlbot_core.decision.state import DATA_STALE, initial_state
from mlbot_core.errors import UsageError
from mlbot_core.execution.identifiers import decision_id
from mlbot_core.execution.intents import PlanRules, Situation, Ticket, market_request, plan_intents
from mlbot_core.execution.ledger import ExecutionLedger, open_ledger
from mlbot_core.execution.ledger_folds import AttemptEvent, Closing, IntentStatus, LedgerConflictError
from mlbot_core.execution.ledger_intents import ABSENT_AFTER_MS, DecisionExistsError
from mlbot_core.execution.ledger_risk import AlertLevel, RiskStateConflictError
from mlbot_core.execution.ledger_schema import METADATA
from mlbot_core.execution.ledger_states import BAR, AttemptError, DecisionRecord
from mlbot_core.execution.ledger_store import LedgerError
from mlbot_core.execution.types import (
    ExecType,
    Execution,
    ExecutionError,
    Instrument,
    OrderSnapshot,
    OrderStatus,
    OrderType,
    Side,
    TimeInForce,
    WalletEvent,
)
from mlbot_core.timeframe import HOUR_MS, Timeframe

BTC = Instrument("BTCUSDT", D("0.10"), D("0.001"), D("0.001"), D("1190"), D("500"), D("5"))
RULES = PlanRules(D("0.10"), D("0.01"), D("0.1"))
ACCOUNT = "test:1"
BAR_TS = 100 * 2 * HOUR_MS
NOW = BAR_TS + 2 * HOUR_MS + 2_000
TWO_HOURS = Timeframe.parse("2h")


def decided(ts=BAR_TS, target="-0.05"):
    name = decision_id(ACCOUNT, "BTCUSDT", TWO_HOURS, ts)
    return DecisionRecord(name, "ml", "BTCUSDT", BAR, "2h", ts, ts + 2 * HOUR_MS, D(target), {"edge": 0.25})


def reversal(decision):
    ticket = Ticket("ml", ACCOUNT, decision.decision_id, NOW + HOUR_MS)
    return plan_intents(D("-0.1"), Situation(D("0.15"), D(49_000), D(50_000), D(100_000)), BTC, RULES, ticket)


def snapshot(request, status, filled="0", at=1, **changes):
    values = {
        "order_id": f"x-{request.order_link_id}",
        "order_link_id": request.order_link_id,
        "symbol": request.symbol,
        "side": request.side,
        "order_type": OrderType.MARKET,
        "status": OrderStatus(status),
        "qty": request.qty,
        "filled_qty": D(filled),
        "filled_value": D(filled) * 50_000,
        "fee": D(0),
        "price": None,
        "time_in_force": TimeInForce.IOC,
        "reduce_only": request.reduce_only,
        "created_ms": 0,
        "updated_ms": at,
    }
    return OrderSnapshot(**{**values, **changes})


def trade(exec_id, request, qty, price="50000", kind=ExecType.TRADE, at=1, fee="0.1"):
    return Execution(
        exec_id,
        kind,
        f"x-{request.order_link_id}",
        request.order_link_id,
        request.symbol,
        request.side,
        D(qty),
        D(price),
        D(qty) * D(price),
        D(fee),
        D("0.00055"),
        False,
        D(0),
        at,
    )


@pytest.fixture
def clock():
    return FixedClock(NOW)


@pytest.fixture(params=["file", pytest.param("postgres", marks=pytest.mark.slow)])
def opened(request, tmp_path, clock):
    """What opens the book of an account in an empty database."""
    url = None
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
        engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg2:"))
        METADATA.drop_all(engine)
        engine.dispose()
    with ExitStack() as stack:
        yield lambda account: stack.enter_context(ExecutionLedger(tmp_path, clock, account, url=url))


@pytest.fixture
def book(opened):
    return opened(ACCOUNT)


@pytest.fixture
def planned(book):
    """A book with a decision to reverse, and its two intents."""
    return filled(book)


@pytest.fixture
def file_planned(tmp_path, clock):
    with ExecutionLedger(tmp_path, clock, ACCOUNT) as ledger:
        yield filled(ledger)


def filled(ledger):
    decision = decided()
    plan = reversal(decision)
    ledger.record_decision(decision, plan)
    return ledger, *plan


def test_a_bar_is_decided_once(book):
    book.record_decision(decided())
    for again in (decided(), decided(target="0.05"), decided(ts=BAR_TS - 2 * HOUR_MS)):
        with pytest.raises(DecisionExistsError, match=decided().decision_id):
            book.record_decision(again)
    hourly = replace(decided(), decision_id="another", timeframe="1h")
    with pytest.raises(DecisionExistsError):
        book.record_decision(hourly)
    book.record_decision(decided(ts=BAR_TS + 2 * HOUR_MS))
    assert book.decision(decided().decision_id) == decided()
    assert book.newest_decision("BTCUSDT").ts == BAR_TS + 2 * HOUR_MS
    assert book.newest_decision("ETHUSDT") is None


def test_a_decision_and_its_plan_are_both_written_or_neither(book):
    foreign = reversal(decided(ts=BAR_TS + 2 * HOUR_MS))
    with pytest.raises(LedgerConflictError):
        book.record_decision(decided(), foreign)
    assert book.newest_decision("BTCUSDT") is None
    with pytest.raises(LedgerConflictError, match="record the decision first"):
        book.plan_intents(foreign)


def test_an_intent_is_planned_once_and_never_changed(planned):
    book, close, entry = planned
    assert book.plan_intent(close) is False
    with pytest.raises(LedgerConflictError, match=r"0\.15.*0\.14"):
        book.plan_intent(replace(close, qty=D("0.14")))
    assert [state.intent for state in book.open_intents()] == [close, entry]
    assert [state.status for state in book.intents_of(decided().decision_id)] == [IntentStatus.PLANNED] * 2


def test_an_entry_waits_for_its_close(planned):
    book, close, entry = planned
    request = market_request(entry, 0, entry.qty)
    with pytest.raises(AttemptError, match=close.intent_id):
        book.begin_attempt(entry.intent_id, request)
    book.close_intent(close.intent_id, Closing.EXPIRED)
    with pytest.raises(AttemptError, match=close.intent_id):
        book.begin_attempt(entry.intent_id, request)


def test_a_whole_reversal(planned):
    book, close, entry = planned
    closing = market_request(close, 0, close.qty)
    begun = book.begin_attempt(close.intent_id, closing)
    assert (begun.order_link_id, begun.sends, begun.proven) == (close.intent_id, 1, False)
    assert book.intent(close.intent_id).status is IntentStatus.PENDING
    book.note_answer(close.intent_id, AttemptEvent.ACKNOWLEDGED, 0)
    assert book.observe_order(snapshot(closing, "New"))
    assert book.intent(close.intent_id).status is IntentStatus.WORKING
    assert book.record_execution(trade("e1", closing, "0.1"))
    assert book.intent(close.intent_id).remaining == D("0.05")
    assert book.record_execution(trade("e2", closing, "0.05"))
    assert book.intent(close.intent_id).complete
    assert book.observe_order(snapshot(closing, "Filled", "0.15", at=2))
    opening = market_request(entry, 0, entry.qty)
    book.begin_attempt(entry.intent_id, opening)
    assert book.observe_order(snapshot(opening, "Filled", "0.1"))
    assert book.open_intents() == []
    assert book.orders(open_only=True) == []


def test_flat_completes_a_close_only(planned):
    book, close, entry = planned
    assert book.close_intent(close.intent_id, Closing.FLAT, "110017") is Closing.FLAT
    assert book.close_intent(close.intent_id, Closing.EXPIRED) is Closing.FLAT
    book.begin_attempt(entry.intent_id, market_request(entry, 0, entry.qty))
    with pytest.raises(AttemptError, match="not proven over"):
        book.close_intent(entry.intent_id, Closing.EXPIRED)
    assert book.note_answer(entry.intent_id, AttemptEvent.REFUSED, 110007).proven
    with pytest.raises(AttemptError, match="refused as often"):
        book.note_answer(entry.intent_id, AttemptEvent.REFUSED, 110007)
    with pytest.raises(AttemptError, match="only a close"):
        book.close_intent(entry.intent_id, Closing.FLAT)
    with pytest.raises(AttemptError, match="is not filled"):
        book.close_intent(entry.intent_id, Closing.FILLED)


def test_an_attempt_is_begun_once(planned):
    book, close, _ = planned
    request = market_request(close, 0, close.qty)
    book.begin_attempt(close.intent_id, request)
    with pytest.raises(AttemptError, match="begun already"):
        book.begin_attempt(close.intent_id, request)


@pytest.mark.parametrize("told", [None, AttemptEvent.AMBIGUOUS, AttemptEvent.ACKNOWLEDGED])
def test_without_proof_there_is_no_next_attempt(planned, told):
    book, close, _ = planned
    book.begin_attempt(close.intent_id, market_request(close, 0, close.qty))
    if told is not None:
        book.note_answer(close.intent_id, told)
    with pytest.raises(AttemptError, match="not proven over"):
        book.begin_attempt(close.intent_id, market_request(close, 1, close.qty))


@pytest.mark.parametrize("status", ["New", "PartiallyFilled", "Triggered", "Untriggered"])
def test_an_order_at_work_is_no_proof(planned, status):
    book, close, _ = planned
    request = market_request(close, 0, close.qty)
    book.begin_attempt(close.intent_id, request)
    book.observe_order(snapshot(request, status))
    with pytest.raises(AttemptError, match="not proven over"):
        book.begin_attempt(close.intent_id, market_request(close, 1, close.qty))


@pytest.mark.parametrize("status", ["Cancelled", "Rejected", "Deactivated"])
def test_an_ended_order_lets_the_rest_be_tried_again(planned, status):
    book, close, _ = planned
    request = market_request(close, 0, close.qty)
    book.begin_attempt(close.intent_id, request)
    book.observe_order(snapshot(request, status, "0.1"))
    with pytest.raises(AttemptError, match="more than"):
        book.begin_attempt(close.intent_id, market_request(close, 1, close.qty))
    begun = book.begin_attempt(close.intent_id, market_request(close, 1, D("0.05")))
    assert begun.attempt == 1
    assert begun.order_link_id == close.key.order_link_id(1)


def test_one_refusal_of_two_sends_proves_nothing(planned):
    book, close, _ = planned
    request = market_request(close, 0, close.qty)
    book.begin_attempt(close.intent_id, request)
    book.note_answer(close.intent_id, AttemptEvent.AMBIGUOUS, None, "timeout")
    assert book.resend(close.intent_id) == request
    state = book.note_answer(close.intent_id, AttemptEvent.REFUSED, 110007)
    assert (state.sends, state.refusals, state.proven) == (2, 1, False)
    with pytest.raises(AttemptError, match="not proven over"):
        book.begin_attempt(close.intent_id, market_request(close, 1, close.qty))


def test_a_refusal_of_the_only_send_is_a_proof(planned):
    book, close, _ = planned
    book.begin_attempt(close.intent_id, market_request(close, 0, close.qty))
    assert book.note_answer(close.intent_id, AttemptEvent.REFUSED, 110007).proven
    with pytest.raises(AttemptError, match="refused it"):
        book.resend(close.intent_id)
    assert book.begin_attempt(close.intent_id, market_request(close, 1, close.qty)).attempt == 1


def test_what_the_exchange_has_is_not_sent_again(planned):
    book, close, _ = planned
    request = market_request(close, 0, close.qty)
    book.begin_attempt(close.intent_id, request)
    book.observe_order(snapshot(request, "New"))
    with pytest.raises(AttemptError, match="the exchange has it"):
        book.resend(close.intent_id)


def test_absent_needs_time_and_lets_an_intent_be_given_up_but_not_tried_again(planned, clock):
    book, close, _ = planned
    book.begin_attempt(close.intent_id, market_request(close, 0, close.qty))
    clock.sleep(ABSENT_AFTER_MS / 1000 - 1)
    with pytest.raises(AttemptError, match="may still arrive"):
        book.note_answer(close.intent_id, AttemptEvent.ABSENT)
    clock.sleep(1)
    assert not book.note_answer(close.intent_id, AttemptEvent.ABSENT).proven
    with pytest.raises(AttemptError, match="not proven over"):
        book.begin_attempt(close.intent_id, market_request(close, 1, close.qty))
    book.resend(close.intent_id)
    with pytest.raises(AttemptError, match="not proven over"):
        book.close_intent(close.intent_id, Closing.EXPIRED)
    clock.sleep(ABSENT_AFTER_MS / 1000)
    book.note_answer(close.intent_id, AttemptEvent.ABSENT)
    assert book.close_intent(close.intent_id, Closing.EXPIRED) is Closing.EXPIRED


def test_nothing_is_begun_or_resent_after_its_time(planned, clock):
    book, close, _ = planned
    book.begin_attempt(close.intent_id, market_request(close, 0, close.qty))
    clock.set_ms(close.valid_until_ms + 1)
    with pytest.raises(AttemptError, match="valid until"):
        book.resend(close.intent_id)
    book.note_answer(close.intent_id, AttemptEvent.REFUSED)
    with pytest.raises(AttemptError, match="valid until"):
        book.begin_attempt(close.intent_id, market_request(close, 1, close.qty))


@pytest.mark.parametrize("changes", [{"qty": D("0.151")}, {"symbol": "ETHUSDT"}, {"side": Side.BUY}])
def test_a_request_must_be_one_for_its_intent(planned, changes):
    book, close, _ = planned
    with pytest.raises(AttemptError):
        book.begin_attempt(close.intent_id, replace(market_request(close, 0, close.qty), **changes))
    with pytest.raises(AttemptError):
        book.begin_attempt(close.intent_id, replace(market_request(close, 0, close.qty), reduce_only=False))
    assert book.intent(close.intent_id).attempts == ()


def test_an_execution_told_twice_is_one_row(planned):
    book, close, _ = planned
    request = market_request(close, 0, close.qty)
    book.begin_attempt(close.intent_id, request)
    told = trade("e1", request, "0.1")
    assert book.record_execution(told, "stream") is True
    assert book.record_execution(replace(told, qty=D("0.100"), seq=77), "rest") is False
    with pytest.raises(LedgerConflictError, match=r"e1.*qty '0\.1'.*qty '0\.12'"):
        book.record_execution(replace(told, qty=D("0.12")))
    assert book.executions() == [told]


def test_contradicting_orders_are_refused(planned):
    book, close, _ = planned
    request = market_request(close, 0, close.qty)
    book.begin_attempt(close.intent_id, request)
    assert book.observe_order(snapshot(request, "Cancelled", "0.1", at=5))
    assert book.observe_order(snapshot(request, "Cancelled", "0.1", at=5)) is False
    # a late message of the past changes nothing
    assert book.observe_order(snapshot(request, "PartiallyFilled", "0.05", at=3))
    assert book.orders()[0].status is OrderStatus.CANCELLED
    with pytest.raises(LedgerConflictError, match="ended as"):
        book.observe_order(snapshot(request, "Filled", "0.15", at=6))
    with pytest.raises(LedgerConflictError, match="executed twice"):
        book.observe_order(snapshot(request, "New", order_id="x-other"))
    with pytest.raises(LedgerConflictError, match="side"):
        book.observe_order(snapshot(request, "Cancelled", "0.1", at=7, side=Side.BUY))
    assert len(book.rows("orders")) == 2


def test_a_fill_on_the_wrong_side_is_refused_whole(planned):
    book, close, _ = planned
    request = market_request(close, 0, close.qty)
    book.begin_attempt(close.intent_id, request)
    with pytest.raises(LedgerConflictError, match="sent as Sell"):
        book.record_executions([trade("e1", request, "0.1"), replace(trade("e2", request, "0.1"), side=Side.BUY)])
    assert book.executions() == []


def wallet_event(name, change, balance, kind="TRADE", at=1):
    return WalletEvent(name, kind, "USDT", at, D(change), D(0), D(0), D(change), D(balance))


def test_wallet_events_are_one_row_each(book):
    assert book.record_wallet_events([wallet_event("a", 100, 100, "TRANSFER_IN"), wallet_event("b", -2, 98)]) == 2
    assert book.record_wallet_event(wallet_event("b", "-2.0", 98)) is False
    with pytest.raises(LedgerConflictError, match=r"'-2'.*'-3'"):
        book.record_wallet_event(wallet_event("b", -3, 98))
    view = book.wallet_from_events()["USDT"]
    assert (view.balance, view.flows, view.trading, view.breaks) == (D(98), D(100), D(-2), ())


def test_numbers_are_kept_to_the_last_digit(book):
    exact = D("0.1234567890123456789012345678901234")
    event = wallet_event("a", exact, exact)
    book.record_wallet_event(event)
    assert book.wallet_events() == [event]
    with pytest.raises(ExecutionError, match="finite"):
        book.record_wallet_event(wallet_event("c", "NaN", 1))


def test_the_risk_state_follows_from_the_one_that_was_read(book):
    assert book.load_risk_state("BTCUSDT") is None
    first = book.save_risk_state("BTCUSDT", initial_state(), after=0, actor="trader")
    stale = initial_state()._replace(causes=DATA_STALE, last_nav=0.1 + 0.2)
    watched = book.save_risk_state("BTCUSDT", stale, after=first.version, actor="risk-watch")
    with pytest.raises(RiskStateConflictError, match="risk-watch"):
        book.save_risk_state("BTCUSDT", initial_state(), after=first.version, actor="trader")
    loaded = book.load_risk_state("BTCUSDT")
    assert (loaded.version, loaded.state.causes, loaded.state.last_nav) == (watched.version, DATA_STALE, 0.1 + 0.2)
    book.update_risk_state("BTCUSDT", lambda state: state._replace(causes=0), actor="me", reason="looked at it")
    assert book.load_risk_state("BTCUSDT").state.causes == 0
    assert len(book.rows("risk_states")) == 3
    assert book.load_risk_state("ETHUSDT") is None


def test_a_damaged_risk_state_is_not_guessed_at(file_planned, tmp_path):
    book = file_planned[0]
    book.save_risk_state("BTCUSDT", initial_state(), after=0, actor="trader")
    with sqlite3.connect(tmp_path / "execution.sqlite") as raw:
        raw.execute('UPDATE execution_risk_states SET state = replace(state, \'"causes":0\', \'"causes":"x"\')')
    with pytest.raises(UsageError, match="causes"):
        book.load_risk_state("BTCUSDT")


def test_alerts_are_raised_and_delivered_once(book, clock):
    assert book.raise_alert(AlertLevel.CRITICAL, "reconcile", "position differs", key="reconcile/1")
    assert not book.raise_alert(AlertLevel.CRITICAL, "reconcile", "position differs still", key="reconcile/1")
    assert book.raise_alert(AlertLevel.INFO, "start", "hello")
    assert book.raise_alert(AlertLevel.INFO, "start", "hello")
    assert [alert.code for alert in book.pending_alerts()] == ["reconcile", "start", "start"]
    assert book.alert_delivered("reconcile/1")
    assert not book.alert_delivered("reconcile/1")
    assert [alert.code for alert in book.pending_alerts()] == ["start", "start"]
    with pytest.raises(LedgerError, match="no alert"):
        book.alert_delivered("none")


def test_accounts_do_not_see_each_other(planned, opened):
    close = planned[1]
    other = opened("test:2")
    assert other.open_intents() == []
    assert other.newest_decision("BTCUSDT") is None
    with pytest.raises(AttemptError):
        other.begin_attempt(close.intent_id, market_request(close, 0, close.qty))
    with pytest.raises(LedgerConflictError, match="account"):
        other.plan_intent(close)


def test_an_empty_home_has_an_empty_book(tmp_path, clock):
    ledger = open_ledger(tmp_path / "none", clock, ACCOUNT, {})
    assert ledger.open_intents() == []
    assert ledger.positions_from_fills() == {}
    assert ledger.wallet_from_events() == {}
    assert ledger.attempt("x") is None
    assert ledger.pending_alerts() == []
    assert ledger.newest_execution_ms() is None
    assert not (tmp_path / "none").exists()


def test_the_file_is_durable_and_readers_hold_up_nobody(file_planned, tmp_path):
    book, close, _ = file_planned
    reader = sqlite3.connect(tmp_path / "execution.sqlite", isolation_level=None)
    assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    reader.execute("BEGIN")
    before = reader.execute("SELECT COUNT(*) FROM execution_attempts").fetchone()
    book.begin_attempt(close.intent_id, market_request(close, 0, close.qty))
    assert reader.execute("SELECT COUNT(*) FROM execution_attempts").fetchone() == before == (0,)
    reader.execute("COMMIT")
    assert reader.execute("SELECT COUNT(*) FROM execution_attempts").fetchone() == (1,)
    reader.close()


def test_a_held_database_is_an_error_that_says_so(file_planned, tmp_path, clock):
    _, close, _ = file_planned
    holder = sqlite3.connect(tmp_path / "execution.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with ExecutionLedger(tmp_path, clock, ACCOUNT, timeout_s=0.05) as book, pytest.raises(LedgerError, match="locked"):
        book.begin_attempt(close.intent_id, market_request(close, 0, close.qty))
    holder.execute("ROLLBACK")
    holder.close()


def test_a_changed_intent_is_noticed(file_planned, tmp_path):
    book, close, _ = file_planned
    with sqlite3.connect(tmp_path / "execution.sqlite") as raw:
        raw.execute("UPDATE execution_intents SET slice = 9 WHERE intent_id = ?", (close.intent_id,))
    with pytest.raises(ExecutionError, match="was changed"):
        book.open_intents()


def test_rows_are_read_in_pages(planned):
    book, close, entry = planned
    first = book.rows("intents", limit=1)
    rest = book.rows("intents", after=first[-1]["seq"])
    assert [row["intent_id"] for row in first + rest] == [close.intent_id, entry.intent_id]
    with pytest.raises(UsageError, match="no table"):
        book.rows("secrets")
