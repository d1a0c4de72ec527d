"""From intents to orders, on the emulator's exchange: every way an order can go, and every answer that can be lost."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from mlbot_core.decision.state import DRIFT
from mlbot_core.emulator.exchange import TradeFault
from mlbot_core.execution.ledger_folds import Closing, IntentStatus
from mlbot_core.execution.ledger_states import BAR

LOST = (
    *("timeout", "http_500", "body_10016", "truncated_json"),
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("reset", "http_502", "body_10000")),
)


def _closings(desk: Any, made: Any) -> list[Closing | None]:
    return [state.closing for state in desk.ledger.intents_of(made.decision_id)]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", LOST)
def test_a_lost_answer_to_an_order_is_found_out(desk: Any, kind: str, when: str) -> None:
    desk.faults(TradeFault(kind, endpoint="order/create", when=when, nth=1))
    made = desk.decide(0.01)
    assert made.cycle.clean
    assert desk.held() == made.intents[0].qty
    assert len(desk.placed()) == 1
    assert _closings(desk, made) == [Closing.FILLED]
    desk.agrees()


def test_every_order_answer_lost_ends_without_a_second_order(desk: Any) -> None:
    desk.faults(TradeFault("timeout", endpoint="order/create", when="after"))
    made = desk.decide(0.01)
    assert desk.held() == made.intents[0].qty
    assert len(desk.placed()) == 1


def test_an_order_that_shows_itself_late_is_waited_for(desk: Any) -> None:
    desk.faults(TradeFault("late_visibility", endpoint="order/create", nth=1, seconds=4.0))
    made = desk.decide(0.01)
    assert made.cycle.clean, made
    assert made.cycle.position == made.intents[0].qty
    assert len(desk.placed()) == 1
    desk.agrees()


def test_an_order_that_shows_itself_too_late_is_not_doubled_and_its_end_is_seen(desk: Any) -> None:
    desk.faults(
        TradeFault("reset", endpoint="order/create", when="after", nth=1),
        TradeFault("late_visibility", endpoint="order/create", nth=1, seconds=45.0),
    )
    made = desk.decide(0.01)
    for _ in range(4):
        desk.clock.sleep(30)
        report = desk.trader().cycle()
    assert (report.clean, report.level, report.open) == (True, "NORMAL", 0)
    assert len(desk.placed()) == 1
    assert desk.held() == made.intents[0].qty
    found = desk.ledger.attempt(desk.placed()[0]["orderLinkId"])
    assert found[1].order is not None
    assert found[1].order.terminal
    desk.agrees()


def test_what_is_not_filled_is_ordered_again(desk: Any) -> None:
    desk.faults(TradeFault("partial_fill", endpoint="order/create", count=2, fraction=0.5))
    made = desk.decide(0.01)
    assert len(desk.placed()) == 3
    assert desk.held() == made.intents[0].qty
    assert _closings(desk, made) == [Closing.FILLED]
    desk.agrees()


def test_a_rejected_order_is_tried_again_a_bounded_number_of_times(desk: Any) -> None:
    desk.faults(TradeFault("engine_reject", endpoint="order/create"))
    made = desk.decide(0.01)
    assert len(desk.placed()) == desk.rules.orders.max_attempts
    assert _closings(desk, made) == [Closing.REFUSED]
    assert desk.codes() == ["intent_refused"]
    assert desk.held() == 0


def test_an_order_that_never_arrives_is_sent_again_under_its_id(desk: Any) -> None:
    desk.faults(TradeFault("timeout", endpoint="order/create", when="before", count=2))
    made = desk.decide(0.01)
    state = desk.ledger.intents_of(made.decision_id)[0]
    assert (len(state.attempts), state.attempts[0].sends) == (1, 3)
    assert desk.held() == made.intents[0].qty


@pytest.mark.parametrize(
    ("code", "alert"), [(110007, "intent_refused"), (110013, "refused_risk_limit"), (30208, "intent_refused")]
)
def test_a_refused_entry_is_given_up_aloud(desk: Any, code: int, alert: str) -> None:
    desk.faults(TradeFault("reject", endpoint="order/create", code=code))
    made = desk.decide(0.01)
    assert _closings(desk, made) == [Closing.REFUSED]
    assert alert in desk.codes()
    assert desk.held() == 0
    assert not made.cycle.causes


def test_a_refusal_that_needs_a_person_halts(desk: Any) -> None:
    desk.faults(TradeFault("reject", endpoint="order/create", code=110011, count=1))
    made = desk.decide(0.01)
    assert made.cycle.level == "HALTED"
    assert "halt_would_liquidate" in desk.codes()
    report = desk.trader().cycle()
    assert (report.level, report.open, desk.held()) == ("HALTED", 0, 0)


def test_waiting_and_pausing_come_back(desk: Any) -> None:
    desk.faults(TradeFault("body_10006", endpoint="order/create", count=2))
    made = desk.decide(0.01)
    assert desk.held() == made.intents[0].qty
    desk.faults(TradeFault("reject", endpoint="order/create", code=110066, count=1))
    made = desk.decide(-0.01)
    assert made.cycle.open == 2
    assert made.cycle.next_ms is not None
    assert desk.trader().finish(made.cycle.next_ms + 60_000).open == 0
    assert desk.held() < 0


def test_nothing_is_sent_without_a_permit(desk: Any) -> None:
    class Never:
        def entry(self) -> bool:
            return False

        def reduce(self) -> bool:
            return False

    made = desk.decide(0.01, trader=desk.trader(permit=Never()))
    assert made.status == "decided"
    assert (made.cycle.open, desk.placed()) == (1, [])
    assert desk.trader().cycle().position == made.intents[0].qty


def test_an_order_that_was_held_up_after_its_look_is_not_sent(desk: Any) -> None:
    permit, clock, ledger = desk.permit, desk.clock, desk.ledger

    class Slow:
        """The process is frozen right before the bytes, once, and its lease does not tell."""

        frozen = False

        def entry(self) -> bool:
            begun = any(state.attempts for state in ledger.open_intents())
            if begun and not self.frozen:
                self.frozen = True
                clock.sleep(60)
            desk.lease.renew()
            return bool(permit.entry())

        def reduce(self) -> bool:
            return bool(permit.reduce())

    made = desk.decide(0.01, trader=desk.trader(permit=Slow()))
    assert desk.placed() == []
    assert made.cycle.open == 1
    assert desk.trader().cycle().position == made.intents[0].qty
    assert len(desk.placed()) == 1


def test_an_intent_expires_aloud(desk: Any) -> None:
    desk.faults(TradeFault("reject", endpoint="order/create", code=110066))
    made = desk.decide(0.01)
    desk.faults()
    desk.clock.set_ms(made.intents[0].valid_until_ms + 1)
    report = desk.trader().cycle()
    assert (report.open, report.sent) == (0, 0)
    assert _closings(desk, made) == [Closing.EXPIRED]
    assert "intent_expired" in desk.codes()


# --- maker first


def test_a_maker_order_rests_and_what_is_left_is_taken(desk: Any) -> None:
    desk.orders = {"style": "maker", "maker_timeout_s": 20.0, "max_reprices": 1}
    made = desk.decide(0.01)
    first = desk.placed()
    assert [row["timeInForce"] for row in first] == ["PostOnly"]
    assert made.cycle.open == 1
    assert made.cycle.next_ms is not None
    began = desk.clock.now_ms()
    report = desk.trader().finish(began + 300_000)
    assert (report.open, report.clean) == (0, True)
    assert desk.held() == made.intents[0].qty
    rows = desk.placed()
    assert sum(row["timeInForce"] == "PostOnly" for row in rows) <= 2
    assert desk.clock.now_ms() - began <= 40_000
    assert desk.stop() is not None
    desk.agrees()


@pytest.mark.parametrize("kind", ["timeout", "body_10016", "truncated_json"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_answer_to_a_cancel_is_found_out(desk: Any, kind: str, when: str) -> None:
    desk.orders = {"style": "maker", "maker_timeout_s": 5.0, "max_reprices": 0}
    desk.faults(TradeFault(kind, endpoint="order/cancel", when=when, count=2))
    made = desk.decide(0.01)
    report = desk.trader().finish(desk.clock.now_ms() + 120_000)
    assert (report.open, report.clean) == (0, True)
    assert desk.held() == made.intents[0].qty
    desk.agrees()


def test_a_resting_order_is_taken_back_when_the_level_forbids_entries(desk: Any) -> None:
    desk.orders = {"style": "maker", "maker_timeout_s": 600.0, "max_reprices": 0}
    made = desk.decide(0.01)
    assert made.cycle.open == 1
    desk.ledger.set_flags(desk.symbol, "test", DRIFT)
    report = desk.trader().cycle()
    assert (report.level, report.open) == ("REDUCE_ONLY", 0)
    assert desk.placed()[0]["orderStatus"] in ("Cancelled", "Filled")
    assert _closings(desk, made)[0] in (Closing.HALTED, Closing.FILLED)
    desk.agrees()


# --- slices, superseding, flattening


def test_slices_keep_their_distance(desk: Any) -> None:
    desk.orders = {"participation": 0.001, "slice_every_s": 10.0}
    made = desk.decide(0.01, bar_volume=14_400.0)
    assert len(made.intents) > 2
    report = desk.trader().finish(desk.clock.now_ms() + 700_000)
    assert report.open == 0
    times = [int(row["createdTime"]) for row in desk.placed()]
    assert len(times) == len(made.intents)
    assert all(later - earlier >= 10_000 for earlier, later in pairwise(times))
    assert desk.held() == sum(intent.qty for intent in made.intents)
    desk.agrees()


def test_a_newer_decision_takes_back_what_is_open(desk: Any) -> None:
    desk.orders = {"style": "maker", "maker_timeout_s": 3_600.0, "max_reprices": 0, "valid_share": 0.5}
    desk.risk = {}
    first = desk.decide(0.01, 0.9)
    assert first.cycle.open == 1
    # a price that never comes: the order still rests at the next bar
    second = desk.decide(float("nan"))
    desk.trader().finish(desk.clock.now_ms() + 7_000_000)
    assert desk.held() == 0
    assert second.status == "decided"
    assert _closings(desk, first)[0] in (Closing.SUPERSEDED, Closing.EXPIRED, Closing.FILLED)
    assert not [row for row in desk.placed() if row["orderStatus"] in ("New", "PartiallyFilled")]
    desk.agrees()


def test_flattening_is_written_down_first_and_made_once(desk: Any) -> None:
    desk.decide(0.01, 1.0)
    size = desk.held()
    desk.faults(TradeFault("reject", endpoint="order/create", code=110066, count=3))
    for _ in range(3):
        desk.trader().flatten("person", "a drill")
    decisions = [row for row in desk.ledger.rows("decisions") if row["trigger"] != BAR]
    assert len(decisions) == 1
    report = desk.trader().flatten("person", "a drill")
    assert (report.position, report.open) == (Decimal(0), 0)
    closing = [row for row in desk.placed() if row["reduceOnly"]]
    assert [Decimal(row["cumExecQty"]) for row in closing] == [size]
    again = desk.trader().flatten("person", "a drill")
    assert (again.sent, len([row for row in desk.ledger.rows("decisions") if row["trigger"] != BAR])) == (0, 1)
    desk.agrees()


@pytest.mark.parametrize("when", ["before", "after"])
def test_flattening_survives_a_lost_answer(desk: Any, when: str) -> None:
    desk.decide(0.01, 1.0)
    desk.faults(TradeFault("timeout", endpoint="order/create", when=when, nth=1))
    report = desk.trader().flatten("person", "a drill")
    assert report.position == 0
    assert len([row for row in desk.placed() if row["reduceOnly"]]) == 1
    desk.agrees()


def test_a_close_finds_the_position_gone(desk: Any) -> None:
    desk.decide(0.01, 1.0)
    size = desk.held()
    desk.faults(TradeFault("reject", endpoint="order/create", code=110066, count=1))
    desk.trader().flatten("person", "a drill")
    desk.exchange.intervene("AdlTrade", size, None, desk.symbol)
    report = desk.trader().flatten("person", "a drill")
    assert (report.position, report.open, report.sent) == (Decimal(0), 0, 0)
    states = [state for row in desk.ledger.rows("decisions") for state in desk.ledger.intents_of(row["decision_id"])]
    assert states[-1].closing is Closing.FLAT
    assert states[-1].status is IntentStatus.COMPLETE
    desk.agrees()


# --- over sockets


@pytest.mark.parametrize(
    "fault",
    [
        TradeFault("timeout", endpoint="order/create", when="after", nth=1, seconds=1.2),
        TradeFault("timeout", endpoint="order/create", when="before", nth=1, seconds=1.2),
        TradeFault("reset", endpoint="order/create", when="after", nth=1),
        TradeFault("truncated_json", endpoint="order/create", nth=1),
        TradeFault("http_502", endpoint="order/create", when="before", nth=1),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.when}",
)
def test_over_sockets_a_lost_answer_is_found_out(socket_desk: Any, fault: TradeFault) -> None:
    desk = socket_desk
    desk.faults(fault)
    made = desk.decide(0.01)
    assert made.cycle.clean
    assert desk.held() == made.intents[0].qty
    assert len(desk.placed()) == 1
    made = desk.decide(-0.01)
    assert (made.cycle.open, desk.held() < 0) == (0, True)
    desk.agrees()
