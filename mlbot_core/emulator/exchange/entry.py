"""Order entry: what a create or amend request may ask for, checked in the order in which Bybit answers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

from mlbot_core.emulator.bybit_api import Refusal
from mlbot_core.emulator.exchange.contract import Contract
from mlbot_core.emulator.exchange.engine import Engine
from mlbot_core.emulator.exchange.feed import Quote
from mlbot_core.emulator.exchange.numbers import ZERO, is_multiple, text
from mlbot_core.emulator.exchange.orders import RESTING, Order
from mlbot_core.emulator.exchange.params import (
    TRIGGERS,
    Params,
    choice,
    flag,
    integer,
    link_id,
    number,
    one_way,
    required_number,
    wrong,
)
from mlbot_core.emulator.exchange.settlement import trim_reduce_only

MAX_ACTIVE: Final = 500
MAX_CONDITIONAL: Final = 10


def read_order(engine: Engine, params: Params, quote: Quote) -> Order:
    """Return the order that a create request describes; nothing is changed.

    Raises
    ------
    Refusal
        With the code and message of the first thing that is wrong.
    """
    account = engine.account
    contract = engine.contracts[params["symbol"]]
    one_way(params)
    side = choice(params, "side", ("Buy", "Sell"))
    kind = choice(params, "orderType", ("Market", "Limit"))
    tif = choice(params, "timeInForce", ("GTC", "IOC", "FOK", "PostOnly"), "GTC")
    reduce_only, close_on_trigger = flag(params, "reduceOnly"), flag(params, "closeOnTrigger")
    link = link_id(params)
    qty = required_number(params, "qty")
    order = Order(
        order_id="",
        link_id=link,
        symbol=contract.rules.symbol,
        side=side,  # type: ignore[arg-type]
        kind=kind,  # type: ignore[arg-type]
        qty=qty,
        limit=ZERO,
        created_ms=quote.ts,
        updated_ms=quote.ts,
        number=0,
        tif="IOC" if kind == "Market" else tif,
        reduce_only=reduce_only,
        close_on_trigger=close_on_trigger,
        last_on_created=quote.last,
    )
    _read_trigger(order, params, quote)
    _read_price(order, params, contract, quote)
    _read_tpsl(order, params, contract, quote)
    _check_qty(order, contract, quote)
    if link and link in account.links:
        raise Refusal(110072, "OrderLinkedID is duplicate")
    _check_counts(engine, order)
    if order.status != "Untriggered":
        if reduce_only:
            _fit_reduce_only(engine, order)
        check_margin(engine, order, quote)
    return order


def _read_trigger(order: Order, params: Params, quote: Quote) -> None:
    price = number(params, "triggerPrice")
    if not price:
        return
    order.trigger_by = choice(params, "triggerBy", TRIGGERS, "LastPrice")
    direction = integer(params, "triggerDirection", 0)
    if direction not in (1, 2):
        raise wrong("TriggerDirection invalid")
    current = quote.price(order.trigger_by)
    if direction == 1 and price <= current:
        raise Refusal(110092, f"expect Rising, but trigger_price[{text(price)}] <= current[{text(current)}]")
    if direction == 2 and price >= current:
        raise Refusal(110093, f"expect Falling, but trigger_price[{text(price)}] >= current[{text(current)}]")
    order.trigger_price, order.trigger_direction = price, direction
    order.stop_type, order.status, order.create_type = "Stop", "Untriggered", "CreateByStopOrder"


def _read_price(order: Order, params: Params, contract: Contract, quote: Quote) -> None:
    rules = contract.rules
    if order.trigger_price is not None and not is_multiple(order.trigger_price, rules.tick):
        raise wrong("triggerPrice invalid")
    if order.kind == "Market":
        order.cap_type = choice(params, "slippageToleranceType", ("TickSize", "Percent"), "")
        order.cap_value = str(params.get("slippageTolerance") or "")
        value = required_number(params, "slippageTolerance") if order.cap_type else ZERO
        if order.cap_type == "TickSize" and not (1 <= value <= 10_000 and value == value.to_integral_value()):
            raise Refusal(110108, "Allowable range: 1 to 10000 tick size")
        if order.cap_type == "Percent" and not Decimal("0.01") <= value <= 10:
            raise Refusal(110109, "Allowable range: 0.01% to 10%")
        order.limit = contract.cap(order.side, quote, order.cap_type, value)
        return
    order.limit = required_number(params, "price")
    check_price(order, contract, quote)


def check_price(order: Order, contract: Contract, quote: Quote) -> None:
    """Refuse a limit price off the grid or outside of what may be named now.

    Raises
    ------
    Refusal
        10001, 110003, 30208 or 30209.
    """
    rules = contract.rules
    if not order.limit or not is_multiple(order.limit, rules.tick):
        raise wrong("Price invalid")
    if not rules.min_price <= order.limit <= rules.max_price:
        raise Refusal(110003, "Order price exceeds the allowable range.")
    if order.status == "Untriggered":
        return
    highest, lowest = contract.band(quote.mark)
    if order.side == "Buy" and order.limit > highest:
        raise Refusal(30208, f"The order price is higher than the maximum buying price. max: {text(highest)}")
    if order.side == "Sell" and order.limit < lowest:
        raise Refusal(30209, f"The order price is lower than the minimum selling price. min: {text(lowest)}")


def _read_tpsl(order: Order, params: Params, contract: Contract, quote: Quote) -> None:
    take, stop = number(params, "takeProfit") or None, number(params, "stopLoss") or None
    choice(params, "tpslMode", ("Full",), "Full")
    if take is None and stop is None:
        return
    if order.reduce_only:
        raise wrong("reduceOnly order can not set tp/sl")
    order.tp_by = choice(params, "tpTriggerBy", TRIGGERS, "LastPrice")
    order.sl_by = choice(params, "slTriggerBy", TRIGGERS, "LastPrice")
    order.take_profit, order.stop_loss = take, stop
    base = order.limit if order.kind == "Limit" else (order.trigger_price or quote.last)
    check_levels(order.side, take, stop, base, contract)


def check_levels(side: str, take: Decimal | None, stop: Decimal | None, base: Decimal, contract: Contract) -> None:
    """Refuse a take profit or stop loss on the wrong side of a price, or off the grid.

    Raises
    ------
    Refusal
        10001.
    """
    for name, level, above in (("TakeProfit", take, side == "Buy"), ("StopLoss", stop, side == "Sell")):
        if level is None:
            continue
        if not is_multiple(level, contract.rules.tick):
            raise wrong(f"{name} invalid")
        if (level <= base) if above else (level >= base):
            relation = "higher" if above else "lower"
            raise Refusal(
                10001, f"{name}:{text(level)} set for {side} position should be {relation} than base_price:{text(base)}"
            )


def _check_qty(order: Order, contract: Contract, quote: Quote) -> None:
    rules = contract.rules
    if not order.qty and order.reduce_only and order.close_on_trigger:
        return  # closes what there is
    most = rules.max_market_qty if order.kind == "Market" else rules.max_qty
    if not is_multiple(order.qty, rules.step):
        raise wrong("Qty invalid")
    if order.qty < rules.step:
        raise Refusal(10001, "The number of contracts exceeds minimum limit allowed")
    if order.qty > most:
        raise Refusal(10001, "The number of contracts exceeds maximum limit allowed: too large")
    price = order.limit if order.kind == "Limit" else (order.trigger_price or quote.last)
    if not order.reduce_only and order.qty * price < rules.min_notional:
        raise Refusal(110094, f"Order does not meet minimum order value {text(rules.min_notional)}USDT")


def _check_counts(engine: Engine, order: Order) -> None:
    same = [o for o in engine.account.open.values() if o.symbol == order.symbol]
    if order.status == "Untriggered":
        if sum(o.stop_type == "Stop" and o.status == "Untriggered" for o in same) >= MAX_CONDITIONAL:
            raise Refusal(110009, "The number of stop orders exceeds the maximum allowable limit")
    elif sum(o.status in RESTING for o in same) >= MAX_ACTIVE:
        raise Refusal(110020, "Not allowed to have more than 500 active orders.")


def _fit_reduce_only(engine: Engine, order: Order) -> None:
    """Cut a reduce-only order to what the position and the other reduce-only orders leave."""
    account = engine.account
    position = account.positions[order.symbol]
    if not position.side or position.side == order.side:
        raise Refusal(110017, "current position is zero, cannot fix reduce-only order qty")
    rules = engine.contracts[order.symbol].rules
    used = sum(
        (
            o.leaves
            for o in account.open.values()
            if o.symbol == order.symbol and o.reduce_only and o.side == order.side and o.status in RESTING
        ),
        ZERO,
    )
    free = abs(position.size) - used
    if free <= 0:
        raise Refusal(110017, "orderQty will be truncated to zero")
    most = rules.max_market_qty if order.kind == "Market" else rules.max_qty
    order.qty = min(order.qty or most, free)


def check_margin(engine: Engine, order: Order, quote: Quote) -> None:
    """Refuse an order that the account cannot carry, or that its leverage does not allow at that size.

    Raises
    ------
    Refusal
        110007 or 110090.
    """
    if order.reduce_only:
        return
    account, position = engine.account, engine.account.positions[order.symbol]
    priced = order
    if order.kind == "Market":
        best = (quote.asks if order.side == "Buy" else quote.bids)[0][0]
        priced = Order(**{**vars(order), "limit": best})
    margin = account.margin(engine.marks(quote.ts), priced)
    adding = account.order_margin(order.symbol, priced) > account.order_margin(order.symbol)
    if adding and margin.balance < margin.initial:
        raise Refusal(110007, "ab not enough for new order")
    rules = engine.contracts[order.symbol].rules
    after = abs(position.size + order.sign * order.qty)
    if after > abs(position.size):
        tier = rules.tier(after * quote.mark)
        if tier is None or position.leverage > tier.max_leverage:
            allowed = text(tier.max_leverage) if tier is not None else "0"
            raise Refusal(
                110090,
                "Order placement failed as your position may exceed the max limit. "
                f"Please adjust your leverage to {allowed} or below to increase the max. position limit",
            )


def amend(engine: Engine, order: Order, params: Params, quote: Quote) -> None:
    """Change an open order and let it meet the book again.

    Raises
    ------
    Refusal
        With nothing changed.
    """
    contract, rules = engine.contracts[order.symbol], engine.contracts[order.symbol].rules
    wish: dict[str, Any] = {}
    for name, field in (("qty", "qty"), ("price", "limit"), ("triggerPrice", "trigger_price")):
        value = number(params, name)
        if value is not None and value != getattr(order, field):
            wish[field] = value
    for name, field in (("takeProfit", "take_profit"), ("stopLoss", "stop_loss")):
        value = number(params, name)
        if value is not None and (value or None) != getattr(order, field):
            wish[field] = value or None
    if not wish:
        raise Refusal(10001, "order not modified")
    if "qty" in wish and wish["qty"] <= order.filled:
        raise Refusal(110064, "The modified contract quantity cannot be less than or equal to the filled quantity.")
    changed = Order(**{**vars(order), **wish})
    if "limit" in wish:
        if order.kind == "Market":
            raise wrong("price invalid")
        check_price(changed, contract, quote)
    if "trigger_price" in wish:
        if order.status != "Untriggered" or not is_multiple(wish["trigger_price"], rules.tick):
            raise wrong("triggerPrice invalid")
        _check_trigger_side(changed, quote)
    if "qty" in wish:
        if order.whole:
            raise wrong("qty invalid")
        _check_qty(changed, contract, quote)
    if order.filled and ("take_profit" in wish or "stop_loss" in wish):
        raise Refusal(110059, "Not allowed to modify the TP/SL of a partially filled open order")
    check_levels(order.side, changed.take_profit, changed.stop_loss, changed.limit or quote.last, contract)
    engine.account.open.pop(order.order_id)
    try:
        if changed.status != "Untriggered":
            check_margin(engine, changed, quote)
    finally:
        engine.account.open[order.order_id] = order
    for field, value in wish.items():
        setattr(order, field, value)
    if order.status in RESTING:
        trim_reduce_only(engine.account, engine.account.positions[order.symbol], quote.ts)
    if order.status in RESTING:
        engine.work(order, quote)
    elif order.is_open:
        engine.account.changed(order, quote.ts)


def _check_trigger_side(order: Order, quote: Quote) -> None:
    current, level = quote.price(order.trigger_by), order.trigger_price or ZERO
    if order.trigger_direction == 1 and level <= current:
        raise Refusal(110092, f"expect Rising, but trigger_price[{text(level)}] <= current[{text(current)}]")
    if order.trigger_direction == 2 and level >= current:
        raise Refusal(110093, f"expect Falling, but trigger_price[{text(level)}] >= current[{text(current)}]")
