"""The gate: bounds are never exceeded, what is unknown never passes, and a way out is never shut."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbot_core.config.trading import GateConfig, RiskConfig
from mlbot_core.decision.state import FLAT_TODAY, HALTED, NORMAL, REDUCE_ONLY
from mlbot_core.execution.broker import Ticker
from mlbot_core.execution.checks import RULES, Account, check_order, largest_addition
from mlbot_core.execution.types import OrderRequest, OrderType, Side, TimeInForce

D = Decimal
NOW = 1_700_000_000_000
LIMITS = RiskConfig(max_position=0.10, daily_loss_limit=0.03, max_drawdown=0.25, gate=GateConfig())
UNKNOWN = (None, D("NaN"), D("sNaN"), D("Infinity"), D("-Infinity"))


def order(qty="0.1", side=Side.BUY, price=None, *, reduce_only=False, symbol="BTCUSDT"):
    kind = OrderType.MARKET if price is None else OrderType.LIMIT
    tif = TimeInForce.IOC if price is None else TimeInForce.POST_ONLY
    price = None if price is None else D(price)
    return OrderRequest("m1", symbol, side, kind, D(qty), price, tif, reduce_only)


def account(**more):
    return replace(Account(D(100_000), D(0), D("0.01"), NOW), **more)


def quote(**more):
    made = Ticker("BTCUSDT", D(49_995), D(50_005), D(1), D(1), D(50_000), D(50_000), NOW, D(50_000))
    return replace(made, **more)


def check(request=None, acc=None, tick=None, **more):
    given_ = {
        "risk_level": NORMAL,
        "limits": LIMITS,
        "clock_offset_ms": 0,
        "recent_orders_ms": (),
        "now_ms": NOW,
        "max_position": D("0.10"),
        **more,
    }
    refusal = check_order(request or order(), acc or account(), tick or quote(), **given_)
    return None if refusal is None else refusal.name


BROKEN = [
    ("level", {"risk_level": REDUCE_ONLY}),
    ("level", {"risk_level": FLAT_TODAY}),
    ("level", {"risk_level": HALTED}),
    ("level", {"risk_level": 99}),
    ("stale_price", {"tick": quote(symbol="ETHUSDT")}),
    ("stale_price", {"tick": quote(at_ms=NOW - 60_001)}),
    ("stale_price", {"tick": quote(at_ms=NOW + 1_001)}),
    ("stale_price", {"tick": quote(mark=D(0))}),
    ("stale_account", {"acc": account(at_ms=NOW - 60_001)}),
    ("stale_account", {"acc": account(at_ms=NOW + 1_001)}),
    ("stale_account", {"acc": account(nav=D(0))}),
    ("stale_account", {"acc": account(nav=D(-5))}),
    ("clock", {"clock_offset_ms": 1_001}),
    ("clock", {"clock_offset_ms": -1_001}),
    ("clock", {"clock_offset_ms": None}),
    ("clock", {"clock_offset_ms": float("nan")}),
    ("order_rate", {"recent_orders_ms": [NOW - 59_999] * 20}),
    ("order_rate", {"recent_orders_ms": [NOW + 5_000] * 20}),
    ("order_size", {"request": order("0.241"), "max_position": D("0.10")}),
    ("position_cap", {"request": order("0.201")}),
    ("position_cap", {"request": order("0.101"), "acc": account(position=D("0.1"))}),
    ("position_cap", {"request": order("0.041"), "max_position": D("0.02")}),
    ("position_cap", {"max_position": D("NaN")}),
    ("position_cap", {"max_position": None}),
    ("price_band", {"request": order("0.1", price="48999")}),
    ("price_band", {"request": order("0.1", price="51001")}),
    ("price_band", {"tick": quote(last=D(51_001))}),
    ("spread", {"tick": quote(bid=D(49_900), ask=D("50_000.2"))}),
    ("spread", {"tick": quote(bid=D(50_010), ask=D(50_005))}),
    ("maintenance", {"acc": account(maintenance_rate=D("0.51"))}),
    ("maintenance", {"acc": account(maintenance_rate=None)}),
]


@pytest.mark.parametrize(("rule", "given_"), BROKEN)
def test_each_rule_refuses_an_entry_by_its_name(rule, given_):
    assert check(**given_) == rule


def test_every_rule_was_broken_above_and_the_bounds_themselves_pass():
    assert {rule for rule, _ in BROKEN} == set(RULES)
    assert check() is None
    assert check(request=order("0.2")) is None
    assert check(tick=quote(at_ms=NOW - 60_000), acc=account(at_ms=NOW - 60_000)) is None
    assert check(clock_offset_ms=-1_000, recent_orders_ms=[NOW - 59_999] * 19 + [NOW - 60_000] * 50) is None
    assert check(request=order("0.1", price="49000")) is None
    assert check(acc=account(maintenance_rate=D("0.5"))) is None


@pytest.mark.parametrize("value", UNKNOWN)
def test_what_is_unknown_never_passes(value):
    for field in ("bid", "ask", "last", "mark"):
        assert check(tick=quote(**{field: value})) == "stale_price"
    for field in ("nav", "position"):
        assert check(acc=account(**{field: value})) == "stale_account"
    assert check(acc=account(maintenance_rate=value)) == "maintenance"
    assert largest_addition(Side.BUY, account(nav=value), quote(), limits=LIMITS, max_position=D("0.1")) == 0
    assert largest_addition(Side.BUY, account(), quote(mark=value), limits=LIMITS, max_position=D("0.1")) == 0
    assert largest_addition(Side.BUY, account(position=value), quote(), limits=LIMITS, max_position=D("0.1")) == 0


decimals = st.decimals("0.001", "5", places=3)
prices = st.decimals("100", "200000", places=1)
navs = st.decimals("100", "10000000", places=2)
caps = st.decimals("0.001", "1", places=3)


@given(
    qty=decimals, side=st.sampled_from(Side), held=st.decimals("-5", "5", places=3), nav=navs, mark=prices, cap=caps,
    share=st.floats(0.01, 2), shift=st.none() | st.decimals("-0.02", "0.02", places=4),
    wide=st.decimals("0", "0.01", places=5),
)  # fmt: skip
def test_no_order_that_passes_exceeds_a_bound(qty, side, held, nav, mark, cap, share, shift, wide):
    limits = RiskConfig(
        max_position=0.10, daily_loss_limit=0.03, max_drawdown=0.25, gate=GateConfig(max_order_share=share)
    )
    tick = quote(mark=mark, last=mark, bid=mark * (1 - wide), ask=mark * (1 + wide))
    price = None if shift is None else (mark * (1 + shift)).quantize(D("0.1"))
    request = order(qty, side, price)
    refusal = check_order(
        request, account(nav=nav, position=held), tick, risk_level=NORMAL, limits=limits, clock_offset_ms=3,
        recent_orders_ms=(), now_ms=NOW, max_position=cap,
    )  # fmt: skip
    value = max(mark, price or mark)
    after = abs(held + qty * side.sign)
    if refusal is None:
        assert qty * value <= D(str(share)) * nav
        assert after * mark <= min(cap, D("0.1")) * nav
        assert wide * 2 * 10_000 <= 20
        assert price is None or abs(price - mark) <= D("0.02") * mark
    else:
        assert refusal.name in ("order_size", "position_cap", "price_band", "spread")
    # what the room allows passes, and a lot more does not
    room = largest_addition(side, account(nav=nav, position=held), tick, limits=limits, max_position=cap, price=price)
    lots = room // D("0.001") * D("0.001")
    reducing = held * side.sign < 0
    if (
        lots > 0
        and not reducing
        and wide * 2 * 10_000 <= 20
        and (price is None or abs(price - mark) <= D("0.02") * mark)
    ):
        assert (
            check(replace(request, qty=lots), account(nav=nav, position=held), tick, limits=limits, max_position=cap)
            is None
        )
        more = replace(request, qty=lots + D("0.001"))
        assert check(more, account(nav=nav, position=held), tick, limits=limits, max_position=cap) is not None


anything = st.sampled_from(UNKNOWN) | prices | st.just(D(0)) | st.just(D(-1))


@given(
    qty=decimals, side=st.sampled_from(Side), price=st.none() | prices, held=st.decimals("-500", "500", places=3),
    nav=anything, rate=anything, bid=anything, ask=anything, last=anything, mark=anything, at=st.integers(0, 2 * NOW),
    level=st.integers(0, 3), offset=st.none() | st.integers(-(10**9), 10**9), cap=anything,
    symbol=st.sampled_from(("BTCUSDT", "X")), recent=st.integers(0, 39),
)  # fmt: skip
def test_a_way_out_is_never_shut_by_cap_spread_band_price_clock_or_level(
    qty, side, price, held, nav, rate, bid, ask, last, mark, at, level, offset, cap, symbol, recent
):
    tick = quote(bid=bid, ask=ask, last=last, mark=mark, at_ms=at, symbol=symbol)
    assert (
        check(
            order(qty, side, price, reduce_only=True),
            account(nav=nav, position=held, maintenance_rate=rate),
            tick,
            risk_level=level,
            clock_offset_ms=offset,
            max_position=cap,
            recent_orders_ms=[NOW - 1] * recent,
        )
        is None
    )


def test_what_holds_a_way_out_back():
    out = order(reduce_only=True)
    assert check(out, acc=account(at_ms=NOW - 60_001)) == "stale_account"
    assert check(out, recent_orders_ms=[NOW - 1] * 40) == "order_rate"
    for value in UNKNOWN:
        assert check(out, acc=account(position=value)) == "stale_account"
