"""A trader on the emulator's exchange, in process: decisions, levels, flows, stops, and restarts anywhere."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlbot_core.decision.state import DATA_STALE, Forecast, initial_state
from mlbot_core.emulator.exchange import TradeFault
from mlbot_core.emulator.exchange.trade_faults import TradeFaultSchedule, random_schedule
from mlbot_core.errors import UsageError
from mlbot_core.execution import evidence
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_states import BAR
from mlbot_core.execution.types import OrderRequest, OrderType, Side

NAN = float("nan")


# --- decisions


def test_one_bar_leads_to_the_target_with_a_stop(desk: Any) -> None:
    made = desk.decide(0.01)
    assert made.status == "decided", made
    assert made.cycle.clean
    assert made.cycle.open == 0
    assert desk.held() == made.intents[0].qty > 0
    assert desk.stop() == made.intents[0].stop_loss
    desk.agrees()
    record = desk.ledger.newest_decision(desk.symbol)
    assert evidence.replays(record.details)
    assert record.details["caller"] == {"model": "made"}
    assert desk.codes() == []


def test_a_decision_without_what_it_rested_on_is_not_replayed(desk: Any) -> None:
    desk.decide(NAN)
    details = dict(desk.ledger.newest_decision(desk.symbol).details)
    assert evidence.replays(details)
    changed = {**details["after"], "peak_nav": (1.0).hex()}
    assert not evidence.replays({**details, "after": changed})
    del details["observation"]
    with pytest.raises(UsageError, match="observation"):
        evidence.read(details)


def test_a_reversal_closes_first_and_a_flat_forecast_ends_it(desk: Any) -> None:
    assert desk.decide(0.01).cycle.position > 0
    made = desk.decide(-0.01)
    assert [intent.key.leg.value for intent in made.intents] == ["close", "entry"]
    assert made.cycle.position < 0
    assert desk.held() == -made.intents[1].qty
    made = desk.decide(NAN)
    assert made.cycle.position == Decimal(0)
    assert desk.placed()[-1]["reduceOnly"]
    desk.agrees()
    assert all(
        evidence.replays(desk.ledger.decision(row["decision_id"]).details) for row in desk.ledger.rows("decisions")
    )


def test_the_full_cap_is_never_exceeded(desk: Any) -> None:
    made = desk.decide(0.01, 1.0)
    truth = desk.truth()
    value = abs(desk.held()) * Decimal(truth["positions"][desk.symbol]["markPrice"])
    nav = Decimal(truth["balance"]["totalEquity"])
    assert made.intents[0].qty - Decimal("0.001") <= desk.held() <= made.intents[0].qty
    assert value <= nav * Decimal("0.1") * Decimal("1.001")


@pytest.mark.parametrize("bars_back", [-1, 1, 12])
def test_only_the_newest_closed_bar_is_decided(desk: Any, bars_back: int) -> None:
    bar = desk.to_next_bar()
    made = desk.decide(0.01, bar=bar - bars_back * desk.timeframe.ms)
    assert (made.status, made.cycle) == ("nothing", None)
    assert "newest closed" in made.reason
    assert desk.ledger.newest_decision(desk.symbol) is None
    assert desk.placed() == []


def test_an_old_bar_is_not_decided(desk: Any) -> None:
    bar = desk.to_next_bar(after_s=0.1 * 7_200 + 1)
    made = desk.decide(0.01, bar=bar)
    assert made.status == "nothing"
    assert "721 s ago" in made.reason


def test_a_bar_is_decided_once_whoever_asks(desk: Any) -> None:
    bar = desk.to_next_bar()
    first = desk.decide(0.01, bar=bar)
    second = desk.decide(-0.01, bar=bar)
    assert (first.status, second.status) == ("decided", "nothing")
    assert "exists" in second.reason
    assert len(desk.placed()) == 1
    assert len(desk.ledger.rows("decisions")) == 1


def test_nothing_is_decided_blind(desk: Any) -> None:
    assert desk.trader().cycle().clean
    bar = desk.to_next_bar()
    desk.faults(TradeFault("http_502", endpoint="wallet-balance"))
    assert desk.decide(0.01, bar=bar).status == "blind"
    assert desk.ledger.newest_decision(desk.symbol) is None
    desk.faults()
    made = desk.decide(0.01, bar=bar)
    assert (made.status, made.cycle.level) == ("decided", "NORMAL")
    assert desk.held() > 0


def test_stale_data_only_lets_reduce(desk: Any) -> None:
    made = desk.decide(0.01, flags=DATA_STALE)
    assert (made.cycle.level, made.cycle.causes, desk.held()) == ("REDUCE_ONLY", ("data_stale",), Decimal(0))
    assert desk.trader().cycle().level == "REDUCE_ONLY"
    assert desk.decide(0.01).cycle.level == "NORMAL"
    assert desk.held() > 0


def test_decision_plan_and_risk_state_are_one_transaction(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.trader().cycle()
    before = desk.ledger.load_risk_state(desk.symbol)
    bar = desk.to_next_bar()
    trader = desk.trader()
    trader.cycle()
    before = desk.ledger.load_risk_state(desk.symbol)

    class DiskFull(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        raise DiskFull

    monkeypatch.setattr(ExecutionLedger, "_save_risk", fail)
    with pytest.raises(DiskFull):
        desk.decide(0.01, bar=bar, trader=trader)
    monkeypatch.undo()
    assert desk.ledger.newest_decision(desk.symbol) is None
    assert desk.ledger.open_intents() == []
    assert desk.ledger.load_risk_state(desk.symbol) == before
    assert desk.decide(0.01, bar=bar).status == "decided"


def test_a_watch_that_marks_in_between_makes_it_decide_anew(desk: Any) -> None:
    desk.trader().cycle()
    ledger, symbol = desk.ledger, desk.symbol

    class Busy(ExecutionLedger):
        left = 2

        def commit_decision(self, *args: Any, **more: Any) -> Any:
            if self.left:
                self.left -= 1
                ledger.update_risk_state(symbol, lambda state: state, actor="watch")
            return super().commit_decision(*args, **more)

    busy = Busy(desk.home, desk.clock, desk.account)
    made = desk.decide(0.01, trader=desk.trader(ledger=busy))
    busy.close()
    assert made.status == "decided"
    assert evidence.replays(desk.ledger.newest_decision(desk.symbol).details)
    desk.agrees()


# --- levels


def test_a_daily_loss_closes_everything_until_the_next_day(desk: Any) -> None:
    desk.risk = {"daily_loss_limit": 0.0001}
    made = desk.decide(0.01, 1.0)
    assert desk.held() >= 0
    for _ in range(6):
        desk.clock.sleep(600)
        report = desk.trader().cycle()
        if report.level == "FLAT_TODAY":
            break
    assert (report.level, report.position) == ("FLAT_TODAY", Decimal(0))
    assert made.status == "decided"
    assert desk.codes().count("risk_daily_loss") == 1
    blocked = desk.decide(0.01)
    assert (blocked.cycle.level, desk.held()) == ("FLAT_TODAY", Decimal(0))
    desk.clock.set_ms(desk.clock.now_ms() // 86_400_000 * 86_400_000 + 86_400_000 + 10_000)
    assert desk.trader().cycle().level == "NORMAL"
    desk.agrees()


def test_the_kill_switch_closes_and_nothing_opens_until_it_is_rearmed(desk: Any) -> None:
    desk.decide(0.01)
    desk.files.halt("a person", "a drill", desk.clock.now_ms())
    report = desk.trader().cycle()
    assert (report.level, report.causes, report.position) == ("HALTED", ("kill",), Decimal(0))
    assert desk.decide(0.01).cycle.level == "HALTED"
    assert desk.held() == 0
    desk.files.clear_halt("a person", "over")
    assert desk.codes() == ["risk_kill"]
    # the marker is gone, the state halts on until somebody re-arms it
    assert desk.trader().cycle().level == "HALTED"
    desk.agrees()


def test_a_stop_out_bars_its_side_and_is_told_once(desk: Any) -> None:
    desk.decide(0.01)
    last = desk.broker.ticker(desk.symbol).last
    desk.broker.set_trading_stop(desk.symbol, (last - Decimal("0.5")).quantize(Decimal("0.1")))
    desk.clock.sleep(3_600)
    assert desk.held() == 0
    assert desk.trader().cycle().clean
    again = desk.decide(0.01)
    assert (desk.held(), again.intents) == (Decimal(0), ())
    state = desk.ledger.load_risk_state(desk.symbol).state
    assert state.stopped_side == 1
    made = desk.decide(-0.01)
    assert made.cycle.position < 0
    assert desk.ledger.load_risk_state(desk.symbol).state.stopped_side == 0
    details = desk.ledger.newest_decision(desk.symbol).details
    assert details["observation"]["stopped"] == 0
    desk.agrees()


def test_an_entry_is_not_finished_after_its_stop_was_hit(desk: Any) -> None:
    desk.orders = {"participation": 0.001, "slice_every_s": 60.0}
    made = desk.decide(0.01, bar_volume=2_400.0)
    assert made.cycle.open > 1
    last = desk.broker.ticker(desk.symbol).last
    desk.broker.set_trading_stop(desk.symbol, (last - Decimal("0.5")).quantize(Decimal("0.1")))
    desk.clock.sleep(240)
    while desk.held():
        desk.clock.sleep(30)
    report = desk.trader().finish(desk.clock.now_ms() + 10_000)
    assert (report.open, report.position) == (0, Decimal(0))
    desk.agrees()


# --- deposits and withdrawals


@pytest.mark.parametrize("amount", ["40000", "-40000"])
def test_a_flow_is_no_profit_and_no_loss_and_counts_once(desk: Any, amount: str) -> None:
    desk.decide(0.01)
    before = desk.ledger.load_risk_state(desk.symbol).state
    desk.exchange.transfer(Decimal(amount))
    for _ in range(3):
        report = desk.trader().cycle()
        assert report.level == "NORMAL"
    after = desk.ledger.load_risk_state(desk.symbol).state
    factor = (before.last_nav + float(amount)) / before.last_nav
    assert after.peak_nav == pytest.approx(before.peak_nav * factor, rel=1e-3)
    made = desk.decide(0.01)
    details = desk.ledger.newest_decision(desk.symbol).details
    assert float.fromhex(details["observation"]["flow"]) == 0.0
    assert made.cycle.level == "NORMAL"
    desk.agrees()


def test_a_flow_right_before_a_decision_enters_with_it_or_with_its_mark(desk: Any) -> None:
    desk.decide(0.01)
    desk.exchange.transfer(Decimal(-50_000))
    made = desk.decide(0.01)
    assert made.cycle.level == "NORMAL"
    stored = desk.ledger.rows("risk_states")
    assert stored[-1]["flow_seq"] >= max(
        row["seq"] for row in desk.ledger.rows("wallet_events") if row["kind"] == "TRANSFER_OUT"
    )


# --- several at once, and restarts


def test_two_traders_on_one_book_do_not_double_anything(desk: Any) -> None:
    other = ExecutionLedger(desk.home, desk.clock, desk.account)
    bar = desk.to_next_bar()
    first, second = desk.trader(), desk.trader(ledger=other, broker=desk.connect())
    one = first.decide(bar, Forecast(0.01, 0.5, 0))
    two = second.decide(bar, Forecast(0.01, 0.5, 0))
    assert {one.status.value, two.status.value} == {"decided", "nothing"}
    for trader in (second, first, second):
        assert trader.cycle().clean
    other.close()
    assert len(desk.placed()) == 1
    desk.agrees()


class Killed(BaseException):
    """The process ends here; nothing catches it."""


def _dying(target: Any, at: int, when: str, count: list[int]) -> Any:
    """A stand-in that lets calls through and ends the process before or after the n-th one."""

    class Dying:
        def __getattr__(self, name: str) -> Any:
            value = getattr(target, name)
            if not callable(value):
                return value

            def call(*args: Any, **more: Any) -> Any:
                count[0] += 1
                if count[0] == at and when == "before":
                    raise Killed(name)
                result = value(*args, **more)
                if count[0] == at and when == "after":
                    raise Killed(name)
                return result

            return call

    return Dying()


def _survives(desk: Any, at: int, when: str, fault: Callable[[], None]) -> bool:
    """Kill a reversal at a step, start anew, and see that all is well; return whether the step was reached."""
    bar = desk.to_next_bar()
    fault()
    count = [0]
    ledger, broker = _dying(desk.ledger, at, when, count), _dying(desk.broker, at, when, count)
    try:
        desk.decide(-0.01, bar=bar, trader=desk.trader(ledger=ledger, broker=broker))
        reached = False
    except Killed:
        reached = True
    desk.lease.drop()
    decided = desk.ledger.newest_decision(desk.symbol)
    if decided is None or decided.ts != bar:
        assert desk.decide(-0.01, bar=bar).status == "decided"
    report = desk.trader().cycle()
    assert (report.clean, report.open, report.level) == (True, 0, "NORMAL"), report
    planned = [s.intent for s in desk.ledger.intents_of(desk.ledger.newest_decision(desk.symbol).decision_id)]
    assert desk.held() == -max(intent.qty for intent in planned if not intent.reduce_only)
    assert desk.stop() is not None
    desk.agrees()
    return reached


FAULTS = {
    "none": (),
    "timeout_before": (TradeFault("timeout", endpoint="order/create", when="before", nth=1),),
    "timeout_after": (TradeFault("timeout", endpoint="order/create", when="after", nth=1),),
    "late": (TradeFault("late_visibility", endpoint="order/create", nth=1, seconds=3.0),),
    "partial": (TradeFault("partial_fill", endpoint="order/create", nth=1, fraction=0.4),),
}


@pytest.mark.parametrize("at", [70, 84, 96, 108, 124])
def test_a_process_that_ends_between_steps_is_gone_on_with(desk: Any, at: int) -> None:
    desk.decide(0.01)
    assert _survives(desk, at, "after", lambda: None)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FAULTS))
def test_a_process_that_ends_between_any_two_steps_is_gone_on_with(desk_at: Any, name: str) -> None:
    at, reached = 1, True
    while reached:
        desk = desk_at()
        desk.decide(0.01)
        reached = _survives(desk, at, "after", lambda desk=desk: desk.faults(*FAULTS[name]))
        at += 2 if name == "none" else 7
    assert at > 60


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), edges=st.lists(st.sampled_from([0.01, -0.01, 0.0, NAN]), min_size=2, max_size=3))
def test_whatever_fails_the_book_ends_equal_to_the_exchange(desk_at: Any, seed: int, edges: list[float]) -> None:
    _stress(desk_at(), seed, edges)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), edges=st.lists(st.sampled_from([0.01, -0.01, 0.0, NAN]), min_size=3, max_size=6))
def test_whatever_fails_for_long_the_book_ends_equal_to_the_exchange(
    desk_at: Any, seed: int, edges: list[float]
) -> None:
    _stress(desk_at(), seed, edges)


def _stress(desk: Any, seed: int, edges: list[float]) -> None:
    start = desk.clock.now_ms()
    desk.orders = {"style": "maker", "maker_timeout_s": 20.0} if seed % 3 == 0 else {}
    desk.exchange.install_faults(random_schedule(seed, start, start + (len(edges) + 1) * desk.timeframe.ms))
    for number, edge in enumerate(edges):
        desk.decide(edge, (0.3, 0.7, 1.0)[(seed + number) % 3])
        desk.trader().finish(desk.clock.now_ms() + 120_000)
        truth = desk.truth()
        value = abs(desk.held()) * Decimal(truth["positions"][desk.symbol]["markPrice"])
        assert value <= Decimal(truth["balance"]["totalEquity"]) * Decimal("0.105")
        assert not desk.held() or desk.stop() is not None
    desk.exchange.install_faults(TradeFaultSchedule())
    # an address that was banned is let in again after ten minutes
    desk.clock.sleep(660)
    desk.trader().finish(desk.clock.now_ms() + 300_000)
    report = desk.trader().cycle()
    assert (report.clean, report.open, report.blind) == (True, 0, ""), report
    desk.agrees()
    assert all(
        evidence.replays(desk.ledger.decision(row["decision_id"]).details)
        for row in desk.ledger.rows("decisions")
        if row["trigger"] == BAR
    )


def test_a_foreign_trade_in_between_does_not_break_the_cap(desk: Any) -> None:
    desk.trader().cycle()
    order = OrderRequest("hand", desk.symbol, Side.BUY, OrderType.MARKET, Decimal("0.15"))
    desk.broker.place(order, may_send=lambda: True)
    made = desk.decide(0.01, 1.0)
    value = desk.held() * Decimal(desk.truth()["positions"][desk.symbol]["markPrice"])
    assert value <= Decimal("0.105") * 100_000
    assert "reconcile" in desk.codes()
    assert made.cycle.clean
    assert desk.stop() is not None
    assert desk.ledger.load_risk_state(desk.symbol).state != initial_state()
