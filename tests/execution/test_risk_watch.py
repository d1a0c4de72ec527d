"""The risk watch on an account of the emulator: limits flatten, state survives, trouble does no harm."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from decimal import Decimal

import pytest

from mlbot_core.decision.state import (
    API_DEGRADED,
    DAILY_LOSS,
    DATA_STALE,
    DRAWDOWN,
    ERROR,
    FLAT_TODAY,
    HALTED,
    HALTING,
    KILL,
    NORMAL,
)
from mlbot_core.emulator.exchange import TradeFault
from mlbot_core.execution.flatten_record import pending_reports
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.marking import limits_from_risk
from mlbot_core.execution.risk_watch import NAME, RiskWatch, worth_a_row
from mlbot_core.execution.safety import Halt
from mlbot_core.execution.types import CoinBalance, OrderRequest, OrderType, Side
from mlbot_core.timeframe import DAY_MS

D = Decimal


class Bench:
    """A watch over a desk; each of its parts can be made anew."""

    def __init__(self, desk):
        self.desk = desk
        self.limits = limits_from_risk(desk.rules.risk, desk.timeframe)
        self.said = []
        self.broker = desk.broker
        self.ledger = ExecutionLedger(desk.home, desk.clock, desk.account, timeout_s=0.1)

    def watch(self, by_book=True, **more):
        executor = self.desk.executor()
        return RiskWatch(
            self.broker, self.ledger, self.desk.files, self.desk.clock, self.desk.symbol, self.limits,
            flatten=executor.flatten if by_book else None, say=self.said.append,
            boot_time=lambda: self.desk.clock.now_ms() / 1000, **more,
        )  # fmt: skip

    def state(self):
        return self.ledger.load_risk_state(self.desk.symbol)

    def nav(self):
        return float(self.desk.truth()["balance"]["totalEquity"])

    def enter(self):
        made = self.desk.decide(0.05, 1.0)
        assert self.desk.held() > 0, made
        return made

    def fall(self, name="daily_loss"):
        """Hold a position until NAV has fallen, then draw the limit closely below what it was."""
        self.enter()
        self.watch().look()
        for _ in range(200):
            self.desk.clock.sleep(120)
            state = self.state().state
            loss = 1 - self.nav() / (state.day_start_nav if name == "daily_loss" else state.peak_nav)
            if loss > 2e-4:
                break
        else:
            raise AssertionError("the market did not fall")
        self.limits = self.limits._replace(**{name: loss * 0.9})

    def looks_until_flat(self, watch, most=5):
        for looks in range(1, most):
            watch.look()
            if not self.desk.held():
                return looks
        raise AssertionError(f"still held after {most} looks")


@pytest.fixture
def bench(desk):
    made = Bench(desk)
    yield made
    made.ledger.close()


def lock(bench):
    held = sqlite3.connect(bench.desk.home / "execution.sqlite", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    return held


def test_a_quiet_account_is_looked_at_and_hardly_written(bench):
    bench.enter()
    watch = bench.watch()
    first = watch.look()
    assert (first.seen, first.by_book, first.level) == (True, True, NORMAL)
    assert first.position == bench.desk.held()
    rows = len(bench.ledger.rows("risk_states"))
    for _ in range(20):
        bench.desk.clock.sleep(0.1)
        watch.look()
    assert len(bench.ledger.rows("risk_states")) <= rows + 1
    beat = bench.desk.files.heartbeat(NAME)
    assert beat.counter == 21
    assert D(beat.facts["nav"]) == D(bench.desk.truth()["balance"]["totalEquity"])
    assert beat.facts["blind_s"] == 0


def test_before_the_book_begins_an_empty_account_has_no_limits(bench):
    assert bench.watch().look().level is None
    assert bench.state() is None


def test_the_days_loss_flattens_within_two_looks_and_ends_with_the_day(bench):
    desk = bench.desk
    bench.fall()
    watch = bench.watch()
    assert bench.looks_until_flat(watch) <= 2
    assert bench.state().state.causes == DAILY_LOSS
    assert desk.files.halted() is None
    assert "risk_daily_loss" in desk.codes()
    # by the book: a decision of its own, carried out by intents
    assert bench.ledger.newest_decision(desk.symbol, "risk") is not None
    desk.trader().cycle()
    desk.agrees()
    assert watch.look().level == FLAT_TODAY
    day = desk.clock.now_ms() // DAY_MS
    desk.clock.set_ms((day + 1) * DAY_MS + 1000)
    assert watch.look().level == NORMAL
    assert bench.state().state.day == day + 1


def test_a_drawdown_halts_and_a_new_watch_goes_on_in_it(bench):
    desk = bench.desk
    bench.fall("max_drawdown")
    assert bench.looks_until_flat(bench.watch()) <= 2
    assert bench.state().state.causes & HALTING == DRAWDOWN
    assert "drawdown" in desk.files.halted().reason
    assert not desk.permit.entry()
    before = bench.state().state
    again = bench.watch()
    assert again.look().level == HALTED
    after = bench.state().state
    assert (after.day, after.day_start_nav, after.peak_nav, after.causes) == (
        before.day, before.day_start_nav, before.peak_nav, before.causes,
    )  # fmt: skip
    desk.clock.sleep(86_400)
    assert again.look().level == HALTED


def test_a_breach_is_closed_while_the_book_is_locked_and_recorded_afterwards(bench):
    desk = bench.desk
    bench.fall()
    watch = bench.watch()
    held = lock(bench)
    assert bench.looks_until_flat(watch) <= 2
    assert pending_reports(desk.files)
    assert bench.state().state.causes == 0
    assert desk.files.heartbeat(NAME).facts["by_book"] is False
    held.execute("ROLLBACK")
    held.close()
    watch.look()
    assert not pending_reports(desk.files)
    assert bench.state().state.causes == DAILY_LOSS
    assert {"flatten", "risk_daily_loss"} <= set(desk.codes())
    desk.trader().cycle()
    desk.agrees()


@pytest.mark.parametrize("locked", [False, True])
def test_money_paid_out_or_in_is_no_loss(bench, locked):
    desk = bench.desk
    bench.enter()
    watch = bench.watch()
    watch.look()
    held = lock(bench) if locked else None
    for amount in (D(-30_000), D(50_000), D(-20_000)):
        desk.clock.sleep(1)
        desk.exchange.transfer(amount)
        desk.clock.sleep(1)
        assert watch.look().level == NORMAL, bench.said
    if held is not None:
        held.execute("ROLLBACK")
        held.close()
        assert watch.look().level == NORMAL, bench.said
    state = bench.state().state
    assert state.peak_nav == pytest.approx(bench.nav(), rel=0.005)
    assert desk.held() > 0


def test_one_nonsense_answer_closes_nothing(bench):
    desk = bench.desk
    bench.enter()

    class Liar:
        lies = 1

        def __getattr__(self, name):
            return getattr(desk.broker, name)

        def wallet(self):
            wallet = desk.broker.wallet()
            if not self.lies:
                return wallet
            self.lies -= 1
            coin = wallet.coin("USDT")
            return replace(wallet, coins=(CoinBalance("USDT", coin.wallet_balance, D(1), D(0), D(1)),))

    bench.broker = Liar()
    bench.broker.lies = 0
    watch = bench.watch()
    watch.look()
    bench.broker.lies = 1
    assert watch.look().level == NORMAL
    assert desk.held() > 0
    bench.broker.lies = 10
    assert watch.look().level == HALTED


def test_what_it_cannot_see_is_degraded_then_stale_and_ends_when_seen(bench):
    desk = bench.desk
    bench.enter()
    watch = bench.watch(stale_after_s=60)
    watch.look()
    now = desk.clock.now_ms()
    desk.faults(TradeFault("outage", active_from_ms=now, active_to_ms=now + 200_000))
    assert not watch.look().seen
    assert bench.state().state.causes == 0
    watch.look()
    assert bench.state().state.causes == API_DEGRADED
    while desk.clock.now_ms() < now + 80_000:
        desk.clock.sleep(20)
        watch.look()
    assert bench.state().state.causes == API_DEGRADED | DATA_STALE
    beat = desk.files.heartbeat(NAME)
    assert beat.facts["blind_s"] > 60
    assert beat.facts["level"] == "REDUCE_ONLY"
    desk.clock.set_ms(now + 201_000)
    assert watch.look().level == NORMAL
    assert bench.state().state.causes == 0
    assert desk.files.heartbeat(NAME).facts["blind_s"] == 0
    assert desk.held() > 0


def test_flags_of_others_are_left_alone(bench):
    bench.enter()
    watch = bench.watch()
    watch.look()
    bench.ledger.set_flags(bench.desk.symbol, "data", DATA_STALE)
    watch.look()
    assert bench.state().state.causes == DATA_STALE


def test_a_marker_becomes_a_cause_and_closes_the_position(bench):
    desk = bench.desk
    bench.enter()
    watch = bench.watch()
    watch.look()
    desk.files.halt("ann", "fire", desk.clock.now_ms())
    assert watch.look().level == HALTED
    assert bench.state().state.causes & HALTING == KILL
    assert desk.held() == 0
    assert desk.files.halted() == Halt("ann", "fire", desk.files.halted().at_ms)


def test_a_marker_that_keeps_the_position_does_so(bench):
    desk = bench.desk
    bench.enter()
    watch = bench.watch()
    desk.files.halt("ann", "look first", desk.clock.now_ms(), keep_position=True)
    assert watch.look().level == NORMAL
    assert desk.held() > 0
    assert not desk.permit.entry()


def test_a_halting_cause_makes_the_marker(bench):
    desk = bench.desk
    bench.enter()
    watch = bench.watch()
    watch.look()
    bench.ledger.raise_error(desk.symbol, "trader", "a contradiction")
    watch.look()
    assert bench.state().state.causes & HALTING == ERROR
    assert "error" in desk.files.halted().reason
    assert desk.held() == 0


def test_when_closing_by_the_book_fails_it_is_closed_without_it(bench):
    desk = bench.desk
    bench.enter()
    watch = bench.watch(by_book=False)
    desk.files.halt("ann", "fire", desk.clock.now_ms())
    glance = watch.look()
    assert glance.report.done
    assert desk.held() == 0
    assert not pending_reports(desk.files)
    assert [row["trigger"] for row in bench.ledger.rows("decisions")][-1] == "emergency-risk"


def test_orders_that_would_open_something_are_cancelled_too(bench):
    desk = bench.desk
    bench.enter()
    watch = bench.watch()
    watch.look()
    desk.files.halt("ann", "fire", desk.clock.now_ms())
    watch.look()
    price = (desk.broker.ticker(desk.symbol).last * D("0.97")).quantize(D(1))
    order = OrderRequest("by-hand", desk.symbol, Side.BUY, OrderType.LIMIT, D("0.01"), price, "GTC")
    desk.broker.place(order, may_send=lambda: True)
    assert desk.broker.open_orders(desk.symbol)
    watch.look()
    assert not desk.broker.open_orders(desk.symbol)


def test_a_mistake_is_counted_and_not_followed_by_a_beat(bench):
    bench.enter()
    watch = bench.watch()
    watch.look()

    class Broken:
        def wallet(self):
            raise ZeroDivisionError("a mistake")

    watch._broker = Broken()
    before = bench.desk.files.heartbeat(NAME)
    with pytest.raises(ZeroDivisionError):
        watch.look()
    watch.failed(ZeroDivisionError("a mistake"))
    assert watch.failures == 1
    assert bench.desk.files.heartbeat(NAME).identity == before.identity
    watch._broker = bench.desk.broker
    watch.look()
    assert bench.desk.files.heartbeat(NAME).facts["failures"] == 1


def test_it_says_farewell_only_when_nothing_is_left_or_it_was_told_to(bench):
    desk = bench.desk
    bench.enter()
    watch = bench.watch()
    watch.look()
    assert not watch.end()
    assert not desk.files.heartbeat(NAME).farewell
    assert watch.end(leave_position=True)
    assert desk.files.heartbeat(NAME).facts["why"] == "told to leave the position"
    desk.executor().flatten("person", "test")
    watch.look()
    assert not desk.files.heartbeat(NAME).farewell
    assert watch.end()
    assert desk.files.heartbeat(NAME).facts["why"] == "flat"


def test_a_row_is_written_when_it_says_something(bench):
    bench.enter()
    bench.watch().look()
    state = bench.state().state
    assert not worth_a_row(state, state._replace(ts=state.ts + 10**6, last_nav=state.last_nav * 1.00005))
    for changed in (
        {"causes": KILL},
        {"day": state.day + 1},
        {"day_start_nav": state.day_start_nav * 1.00001},
        {"peak_nav": state.peak_nav * 1.0002},
        {"last_nav": state.last_nav * 0.9998},
        {"peak_nav": float("nan")},
        {"unmarked_flow": 1.0},
    ):
        assert worth_a_row(state, state._replace(**changed))
