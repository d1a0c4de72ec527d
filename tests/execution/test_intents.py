"""Plans reach the target within a lot, never exceed the cap, never let a close open anything."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal as D

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlbot_core.config import load_settings
from mlbot_core.execution.identifiers import IntentKey, Leg, decision_id, event_decision_id, is_ours
from mlbot_core.execution.intents import (
    MOST_SLICES,
    PlanRules,
    Situation,
    Ticket,
    bounded_goal,
    goal_from_fraction,
    limit_request,
    market_request,
    plan_intents,
    rules_from_risk,
)
from mlbot_core.execution.types import LINK_ID, Instrument, OrderRefusedError, OrderType, Side, TimeInForce
from mlbot_core.timeframe import HOUR_MS, Timeframe

BTC = Instrument("BTCUSDT", D("0.10"), D("0.001"), D("0.001"), D("1190"), D("500"), D("5"))
RULES = PlanRules(D("0.10"), D("0.01"), D("0.1"))
TICKET = Ticket("ml", "test:1", "decision", 1_000)

instruments = st.builds(
    lambda tick, lot, smallest, largest, notional: Instrument(
        "XUSDT", tick, lot, lot * smallest, lot * largest, lot * max(smallest, largest // 2), notional
    ),
    st.sampled_from([D("0.01"), D("0.10"), D("0.5")]),
    st.sampled_from([D("0.001"), D("0.01"), D("1")]),
    st.integers(1, 3),
    st.integers(20, 5_000),
    st.sampled_from([D(0), D(5), D(100)]),
)
prices = st.decimals("10", "200000", places=2)
rules = st.builds(
    lambda cap, share, slice_qty: PlanRules(cap, D("0.1") * cap, D("0.1"), slice_qty, share),
    st.sampled_from([D("0.05"), D("0.10"), D("1")]),
    st.sampled_from([None, D("0.01"), D("0.5")]),
    st.sampled_from([None, D("0.5"), D("20")]),
)


@st.composite
def situations(draw, instrument):
    lots = draw(st.integers(-3_000, 3_000))
    price = draw(prices)
    held = lots * instrument.lot
    entry = price * draw(st.decimals("0.97", "1.03", places=4)) if held else None
    nav = draw(st.decimals("0", "5000000", places=2))
    return Situation(held, entry, price, nav, draw(st.sampled_from([None, D(0), D(3), D(10_000)])))


@st.composite
def cases(draw):
    instrument = draw(instruments)
    situation = draw(situations(instrument))
    goal = draw(st.one_of(st.just(D(0)), st.decimals("-3000", "3000", places=5)))
    return goal, situation, instrument, draw(rules)


@settings(max_examples=100)
@given(cases())
def test_a_plan_keeps_every_promise(case):
    """Signs, bounds and sums of any plan for any account."""
    goal, situation, instrument, bounds = case
    cap = bounds.max_position * max(situation.nav, D(0)) / situation.price
    bounded = max(-cap, min(cap, goal))
    turns_or_adds = bounded * situation.held <= 0 or abs(bounded) > abs(situation.held)
    try:
        plan = plan_intents(goal, situation, instrument, bounds, TICKET)
    except OrderRefusedError:
        # only an entry is refused: on a position beyond its stop, or where no order is of an allowed size
        impossible = instrument.min_notional / situation.price * 2 + instrument.lot * 2 > instrument.max_market_qty
        assert turns_or_adds
        assert situation.held or impossible
        return
    closes = [intent for intent in plan if intent.key.leg is Leg.CLOSE]
    entries = [intent for intent in plan if intent.key.leg is Leg.ENTRY]
    assert list(plan) == closes + entries
    left = situation.held + sum(intent.signed_qty for intent in closes)
    end = left + sum(intent.signed_qty for intent in entries)

    # a close never flips and never adds; it is reduce-only, an entry is not
    assert left * situation.held >= 0
    assert abs(left) <= abs(situation.held)
    assert all(intent.reduce_only and intent.stop_loss is None for intent in closes)
    assert all(not intent.reduce_only and intent.stop_loss is not None for intent in entries)
    # an entry on the other side waits for the whole close, and for nothing otherwise
    assert all(intent.after == tuple(close.intent_id for close in closes) for intent in entries)
    assert not (closes and entries) or left == 0
    assert len({intent.intent_id for intent in plan}) == len(plan)

    # what is entered never lies above the cap at mark, nor above what was asked for
    if entries:
        assert abs(end) * situation.price <= bounds.max_position * situation.nav
        assert abs(end) <= abs(goal)
        assert end * goal > 0
    # the end is the bounded target within one lot, unless what is missing is less than the exchange takes
    missing = abs(end - bounded)
    too_small = max(instrument.min_qty, instrument.min_notional / situation.price)
    assert missing < instrument.lot * 2 or missing < too_small + instrument.lot
    if not too_small > instrument.lot:
        assert missing < instrument.lot or abs(end) <= abs(bounded)
    for intent in plan:
        assert intent.qty % instrument.lot == 0
        assert intent.qty <= min(instrument.max_qty, instrument.max_market_qty)
    for intent in entries:
        assert intent.qty >= instrument.min_qty
        assert intent.qty * situation.price >= instrument.min_notional
    # a stop-out costs no more than allowed
    if entries:
        kept = D(0) if closes else abs(situation.held)
        added = sum(intent.qty for intent in entries)
        average = (kept * (situation.entry_price or 0) + added * situation.price) / (kept + added)
        stop = entries[0].stop_loss
        assert (average - stop) * entries[0].side.sign * (kept + added) <= bounds.stop_cost * situation.nav
        assert stop % instrument.tick == 0


@settings(max_examples=100)
@given(cases())
def test_a_plan_is_the_same_twice_and_done_when_reached(case):
    goal, situation, instrument, bounds = case
    assume(situation.nav > 0)
    try:
        plan = plan_intents(goal, situation, instrument, bounds, TICKET)
    except OrderRefusedError:
        return
    assert plan == plan_intents(goal, situation, instrument, bounds, TICKET)
    end = situation.held + sum(intent.signed_qty for intent in plan)
    reached = replace(situation, held=end, entry_price=situation.price if end else None)
    assert plan_intents(goal, reached, instrument, bounds, TICKET) == ()


def plan(goal, held=D(0), entry=None, price=D(50_000), nav=D(100_000), bounds=RULES, volume=None, instrument=BTC):
    return plan_intents(D(goal), Situation(D(held), entry, price, nav, volume), instrument, bounds, TICKET)


def test_a_reversal_is_a_close_and_an_entry_that_waits():
    close, entry = plan("-0.1", held="0.15", entry=D(49_000))
    assert (close.side, close.qty, close.reduce_only) == (Side.SELL, D("0.15"), True)
    assert (entry.side, entry.qty, entry.reduce_only) == (Side.SELL, D("0.1"), False)
    assert entry.after == (close.intent_id,)
    assert entry.stop_loss == D("55000.0")


def test_a_stop_out_at_the_full_cap_costs_one_percent():
    (entry,) = plan("9")
    assert entry.qty == D("0.2")
    assert entry.stop_loss == D("45000.0")
    assert entry.qty * (D(50_000) - entry.stop_loss) == D("0.01") * 100_000


def test_adding_puts_the_stop_by_the_average_entry():
    (entry,) = plan("0.2", held="0.1", entry=D(48_000))
    assert entry.qty == D("0.1")
    assert entry.stop_loss == D("44100.0")


@pytest.mark.parametrize(("held", "goal"), [("0", "0"), ("0.1", "0.1"), ("-0.1", "-0.1004"), ("0", "0.00009")])
def test_nothing_to_do_is_no_intent(held, goal):
    assert plan(goal, held=held, entry=D(50_000) if held != "0" else None) == ()


def test_dust_is_closed_but_never_entered():
    assert [intent.qty for intent in plan("0", held="0.001", entry=D(4_000), price=D(4_000))] == [D("0.001")]
    assert plan("0.001", price=D(4_000)) == ()


def test_a_target_too_small_to_trade_on_the_other_side_is_flat():
    (close,) = plan("-0.001", held="0.1", entry=D(4_000), price=D(4_000))
    assert close.reduce_only
    assert close.qty == D("0.1")


def test_large_orders_are_sliced():
    bounds = replace(RULES, participation=D("0.05"))
    slices = plan("0.2", bounds=bounds, volume=D("1"))
    assert [intent.qty for intent in slices] == [D("0.05")] * 4
    assert [intent.key.slice for intent in slices] == [0, 1, 2, 3]
    # nobody trades: the smallest orders, but no more than the most
    assert len(plan("0.2", bounds=bounds, volume=D(0))) == MOST_SLICES
    hard = plan("0", held="1600", entry=D(50_000))
    assert [intent.qty for intent in hard] == [D(400)] * 4


def test_no_nav_only_closes():
    assert plan("1", nav=D(0)) == ()
    (close,) = plan("0.1", held="0.1", entry=D(50_000), nav=D(-5))
    assert close.reduce_only
    assert close.qty == D("0.1")


def test_an_entry_beyond_its_stop_is_refused():
    with pytest.raises(OrderRefusedError, match="already met"):
        plan("0.2", held="0.199", entry=D(60_000))


@pytest.mark.parametrize(
    "changes",
    [
        {"held": D("NaN")},
        {"held": D(1)},
        {"held": D(1), "entry_price": D("NaN")},
        {"price": D(0)},
        {"price": D("NaN")},
        {"nav": D("NaN")},
        {"volume": D("NaN")},
        {"volume": D(-1)},
    ],
)
def test_nothing_is_planned_on_guesses(changes):
    values = {"held": D(0), "entry_price": None, "price": D(1), "nav": D(1)}
    assert Situation(**values)
    with pytest.raises(OrderRefusedError):
        Situation(**{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [{"max_position": D(0)}, {"stop_cost": D("NaN")}, {"participation": D(2)}, {"max_slice_qty": D("NaN")}],
)
def test_rules_out_of_range_are_refused(changes):
    with pytest.raises(OrderRefusedError):
        replace(RULES, **changes)


@given(st.decimals("-2", "2", places=6), prices, st.decimals("0", "1000000", places=2))
def test_a_fraction_is_capped_and_rounded_towards_zero(fraction, price, nav):
    situation = Situation(D(0), None, price, nav)
    goal = goal_from_fraction(fraction, situation, BTC, RULES)
    wanted = min(abs(fraction), RULES.max_position) * nav / price
    assert abs(goal) * price <= RULES.max_position * nav
    assert abs(goal) <= wanted
    assert wanted - abs(goal) < 2 * BTC.lot
    assert goal * fraction >= 0


def test_a_goal_that_is_no_number_is_refused():
    situation = Situation(D(0), None, D(1), D(1))
    for ask in (goal_from_fraction, bounded_goal):
        with pytest.raises(OrderRefusedError, match="NaN"):
            ask(D("NaN"), situation, BTC, RULES)


def test_rules_come_from_the_configuration():
    risk = load_settings().risk
    bounds = rules_from_risk(risk)
    assert bounds.max_position == D(str(risk.max_position))
    assert bounds.stop_distance * bounds.max_position == bounds.stop_cost


def test_requests_carry_what_the_intent_says():
    close, entry = plan("-0.1", held="0.15", entry=D(49_000))
    request = market_request(entry, 1, D("0.05"))
    assert request.order_link_id == entry.key.order_link_id(1) != entry.intent_id
    assert (request.stop_loss, request.reduce_only, request.price) == (entry.stop_loss, False, None)
    resting = limit_request(close, 0, close.qty, D("50000.1"))
    assert (resting.order_type, resting.time_in_force) == (OrderType.LIMIT, TimeInForce.POST_ONLY)
    assert resting.reduce_only
    assert resting.stop_loss is None
    assert resting.order_link_id == close.intent_id


names = st.text(min_size=1, max_size=12)


@given(st.lists(st.tuples(names, names, names, names, st.sampled_from(Leg), st.integers(0, 99)), unique=True))
def test_ids_are_the_exchange_s_alphabet_and_differ(parts):
    ids = [IntentKey(*part).order_link_id(attempt) for part in parts for attempt in range(3)]
    assert len(set(ids)) == len(ids)
    assert all(LINK_ID.fullmatch(name) and len(name) <= 36 and is_ours(name) for name in ids)


def test_ids_are_the_same_tomorrow():
    bar = decision_id("test:1", "BTCUSDT", Timeframe.parse("2h"), 1_700_000_000_000 // (2 * HOUR_MS) * 2 * HOUR_MS)
    key = IntentKey("ml", "test:1", "BTCUSDT", bar, Leg.ENTRY, 0)
    assert (bar, key.intent_id) == ("dbyv3mifx43sxlx4phhuyudrb6myrevai", "mmes6cx5kxv3q6dlbby3nbn35mkijhomb")
    assert event_decision_id("test:1", "BTCUSDT", "risk", 5) != event_decision_id("test:1", "BTCUSDT", "risk", 6)
