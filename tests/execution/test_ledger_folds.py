"""What follows from the facts does not depend on the order in which they were told."""

from __future__ import annotations

import random
from decimal import Decimal as D

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.execution.ledger_folds import (
    AttemptEvent,
    LedgerConflictError,
    fold_attempt,
    fold_positions,
    fold_wallet,
    order_state,
)
from mlbot_core.execution.ledger_rows import from_row, spell, to_row
from mlbot_core.execution.rounding import round_price, round_qty, round_signed, round_stop, steps_down, steps_up
from mlbot_core.execution.types import (
    ExecType,
    Execution,
    Instrument,
    OrderRefusedError,
    OrderRequest,
    OrderSnapshot,
    OrderStatus,
    OrderType,
    Side,
    TimeInForce,
    WalletEvent,
)

INSTRUMENT = Instrument("BTCUSDT", D("0.10"), D("0.001"), D("0.001"), D("1190"), D("500"), D("5"))
REQUEST = OrderRequest("m1", "BTCUSDT", Side.BUY, OrderType.MARKET, D("1"), stop_loss=D("40000"))
quantities = st.decimals("0.001", "5", places=3)
prices = st.decimals("1000", "100000", places=1)


def fill(number, side, qty, price="50000", kind=ExecType.TRADE, fee="0"):
    side = Side(side)
    qty, price = D(qty), D(price)
    return Execution(
        f"e{number}", kind, "x", "m1", "BTCUSDT", side, qty, price, qty * price, D(fee), D(0), False, D(0), 5, number
    )


def told(status, filled="0", at=1):
    return OrderSnapshot(
        "x",
        "m1",
        "BTCUSDT",
        Side.BUY,
        OrderType.MARKET,
        OrderStatus(status),
        D(1),
        D(filled),
        D(filled) * 50_000,
        D(0),
        None,
        TimeInForce.IOC,
        False,
        0,
        at,
    )


def test_positions_by_hand():
    fills = [
        fill(1, "Buy", "1", "50000", fee="27.5"),
        fill(2, "Buy", "1", "52000"),
        fill(3, "Sell", "0.5", "53000"),
        fill(4, "Buy", "1.5", "53000", ExecType.FUNDING, fee="7.95"),
        fill(5, "Sell", "2", "50000", ExecType.BUST_TRADE),
    ]
    view = fold_positions(fills)["BTCUSDT"]
    # entry 51000: +1000 on 0.5 + 2000 x 0.5, then -1000 x 1.5, and short 0.5 at 50000
    assert (view.size, view.average_price, view.realised) == (D("-0.5"), D(50_000), D(1_000) - D(1_500))
    assert (view.fees, view.funding) == (D("27.5"), D("7.95"))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(Side), quantities, prices), max_size=12), st.randoms())
def test_positions_are_cash_and_coins(trades, shuffle: random.Random):
    """Size is the signed sum; realised profit is cash flow plus the entry value of what is held."""
    fills = [fill(number, side, qty, price) for number, (side, qty, price) in enumerate(trades)]
    mixed = list(fills)
    shuffle.shuffle(mixed)
    views = fold_positions(mixed)
    assert views == fold_positions(fills)
    if not fills:
        assert views == {}
        return
    view = views["BTCUSDT"]
    assert view.size == sum(one.qty * one.side.sign for one in fills)
    cash = -sum(one.value * one.side.sign for one in fills)
    assert abs(view.realised - (cash + view.size * view.average_price)) < D("1e-15")


@given(st.permutations(["New", "PartiallyFilled", "Filled"]))
def test_an_order_that_ended_has_ended(order):
    snapshots = [told(status, {"New": "0", "PartiallyFilled": "0.4", "Filled": "1"}[status]) for status in order]
    state = order_state(snapshots)
    assert state.status is OrderStatus.FILLED
    assert state.filled_qty == 1
    assert order_state([]) is None


@given(st.permutations([told("New"), told("PartiallyFilled", "0.2", 2), told("PartiallyFilled", "0.6", 2)]))
def test_the_traded_quantity_never_falls(snapshots):
    assert order_state(snapshots).filled_qty == D("0.6")


@pytest.mark.parametrize(
    ("events", "proven", "over"),
    [
        ("sent", False, False),
        ("sent refused", True, True),
        ("sent ambiguous", False, False),
        ("sent ambiguous sent refused", False, False),
        ("sent ambiguous sent refused absent", False, True),
        ("sent refused sent refused", True, True),
        ("sent acknowledged", False, False),
        ("sent absent", False, True),
        ("sent absent sent", False, False),
    ],
)
def test_what_is_proven_without_an_order(events, proven, over):
    state = fold_attempt("m1", 0, REQUEST, 0, map(AttemptEvent, events.split()), [], [])
    assert (state.proven, state.over) == (proven, over)


def test_a_fill_or_an_order_beats_a_refusal():
    events = [AttemptEvent.SENT, AttemptEvent.REFUSED]
    filled = fold_attempt("m1", 0, REQUEST, 0, events, [], [fill(1, "Buy", "0.3")])
    assert (filled.proven, filled.over, filled.filled_qty) == (False, False, D("0.3"))
    assert not fold_attempt("m1", 0, REQUEST, 0, events, [told("New")], []).proven
    absent = [AttemptEvent.SENT, AttemptEvent.ABSENT]
    assert not fold_attempt("m1", 0, REQUEST, 0, absent, [told("New")], []).over
    both = fold_attempt("m1", 0, REQUEST, 0, events, [told("Cancelled", "0.5")], [fill(1, "Buy", "0.3")])
    assert (both.proven, both.filled_qty) == (True, D("0.5"))


def log(changes, start="100"):
    balance, events = D(start), []
    for number, (kind, change) in enumerate(changes):
        balance += D(change)
        events.append(WalletEvent(f"w{number}", kind, "USDT", 7, D(change), D(0), D(0), D(change), balance))
    return events


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(["TRADE", "TRANSFER_IN", "BONUS"]), st.integers(1, 10**6)), min_size=1),
    st.randoms(),
)
def test_a_wallet_follows_its_log_in_any_order(changes, shuffle: random.Random):
    events = log(changes)
    mixed = list(events)
    shuffle.shuffle(mixed)
    view = fold_wallet(mixed)["USDT"]
    assert (view.opening, view.balance, view.breaks) == (D(100), events[-1].balance, ())
    assert view.flows == sum(change for kind, change in changes if kind == "TRANSFER_IN")
    assert view.opening + view.flows + view.trading + view.other == view.balance


def test_a_missing_wallet_event_is_named():
    events = log([("TRADE", -1), ("TRADE", -2), ("TRADE", -3)])
    assert fold_wallet([events[0], events[2]])["USDT"].breaks == ("w2",)


@given(quantities, prices)
def test_rounding_never_asks_for_more(qty, price):
    for value in (qty, qty / 7, qty * price):
        down = round_qty(value, INSTRUMENT)
        assert 0 <= value - down < INSTRUMENT.lot
        assert down % INSTRUMENT.lot == 0
        assert round_signed(-value, INSTRUMENT) == -down
    odd = price / 7
    buy, sell = round_price(odd, Side.BUY, INSTRUMENT), round_price(odd, Side.SELL, INSTRUMENT)
    assert buy <= odd <= sell
    assert sell - buy in (0, INSTRUMENT.tick)
    assert buy % INSTRUMENT.tick == sell % INSTRUMENT.tick == 0
    # a stop goes towards the entry: above its price for a long position, below for a short one
    assert round_stop(odd, Side.BUY, INSTRUMENT) == sell
    assert round_stop(odd, Side.SELL, INSTRUMENT) == buy


def test_rounding_is_exact_where_a_division_is_not():
    nearly = D("0.29999999999999999999999999999999")
    assert steps_down(nearly, D("0.1")) == D("0.2")
    assert steps_up(D("0.30000000000000000000000000000001"), D("0.1")) == D("0.4")
    assert steps_down(D("-0.25"), D("0.1")) == D("-0.3")
    assert steps_up(D("-0.25"), D("0.1")) == D("-0.2")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e40"])
def test_what_cannot_be_rounded_is_refused(value):
    with pytest.raises(OrderRefusedError):
        steps_down(D(value), D("0.001"))


@pytest.mark.parametrize("bad", ["-1", "NaN"])
def test_no_quantity_is_negative_or_unknown(bad):
    with pytest.raises(OrderRefusedError):
        round_qty(D(bad), INSTRUMENT)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=12))
def test_a_number_has_one_spelling(value):
    text = spell(value)
    assert D(text) == value
    assert text == spell(value * 1 + D("0.00"))
    assert "E" not in text


def test_requests_and_snapshots_survive_being_spelt():
    for fact in (REQUEST, told("Filled", "1"), log([("TRADE", -1)])[0], fill(1, "Buy", "1")):
        assert from_row(type(fact), to_row(fact)) == fact


@pytest.mark.parametrize(
    "changes",
    [
        {"order_link_id": "a" * 37},
        {"order_link_id": "a b"},
        {"qty": D(0)},
        {"price": D(1)},
        {"order_type": OrderType.LIMIT},
        {"time_in_force": TimeInForce.GTC},
        {"reduce_only": True},
        {"order_type": OrderType.LIMIT, "price": D(40_000)},
    ],
)
def test_orders_that_do_not_fit_together_are_not_made(changes):
    values = {
        "order_link_id": "m1",
        "symbol": "BTCUSDT",
        "side": Side.BUY,
        "order_type": OrderType.MARKET,
        "qty": D(1),
        "stop_loss": D(40_000),
    }
    assert OrderRequest(**values)
    with pytest.raises(OrderRefusedError):
        OrderRequest(**{**values, **changes})


def test_two_ends_of_one_order_are_a_conflict():
    with pytest.raises(LedgerConflictError, match="Cancelled"):
        order_state([told("Filled", "1"), told("Cancelled", "0.5")])
