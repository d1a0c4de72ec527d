"""Private endpoints about orders and executions."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

from mlbot_core.emulator.bybit_api import Refusal
from mlbot_core.emulator.exchange import entry
from mlbot_core.emulator.exchange.context import WEEK_MS, Context, Handlers, page
from mlbot_core.emulator.exchange.numbers import floor_to
from mlbot_core.emulator.exchange.orders import RESTING, Execution, Order
from mlbot_core.emulator.exchange.params import choice, integer, linear, link_id, time_window, wrong
from mlbot_core.emulator.exchange.settlement import tell_position
from mlbot_core.timeframe import DAY_MS

Result = dict[str, Any]
NOT_THERE: Final = "order not exists or too late to cancel"
# How many closed orders ``realtime`` remembers.
RECENT_CLOSED: Final = 500
_HALF: Final = 0.5


def create(context: Context) -> Result:
    """Accept an order and let it meet the book."""
    symbol = context.symbol()
    engine, account = context.engine, context.engine.account
    quote = context.quote(symbol)
    order = entry.read_order(engine, context.params, quote)
    order.number = account.next_number("order")
    order.order_id = account.new_id("order", order.number)
    fault = context.fault
    account.add(order)
    if fault is not None and fault.kind == "late_visibility":
        order.visible_ms = context.now_ms + round((fault.seconds or 0.0) * 1000)
    if fault is not None and fault.kind == "engine_reject":
        order.status, order.reject_reason = "Rejected", "EC_NoEnoughQtyToFill"
        account.changed(order, context.now_ms)
        return _ids(order)
    if fault is not None and fault.kind == "partial_fill":
        share = Decimal(str(_HALF if fault.fraction is None else fault.fraction))
        order.fill_cap = floor_to(order.qty * share, engine.contracts[symbol].rules.step)
    if order.status == "Untriggered":
        account.changed(order, context.now_ms)
    else:
        engine.work(order, quote)
    if not order.filled:
        tell_position(account, account.positions[symbol], context.now_ms)
    return _ids(order)


def _ids(order: Order) -> Result:
    return {"orderId": order.order_id, "orderLinkId": order.link_id}


def _named(context: Context) -> Order | None:
    """Return the order that the request names; ``orderId`` wins over ``orderLinkId``."""
    account = context.engine.account
    order_id = context.params.get("orderId")
    if not order_id:
        link = link_id(context.params)
        if not link:
            raise wrong("orderId or orderLinkId is required")
        order_id = account.links.get(link, "")
    found = account.orders.get(str(order_id))
    symbol = context.params.get("symbol")
    return found if found is not None and symbol in (None, "", found.symbol) else None


def _open(context: Context) -> Order:
    context.symbol()
    order = _named(context)
    if order is None or not order.is_open:
        raise Refusal(110001, NOT_THERE)
    return order


def amend(context: Context) -> Result:
    """Change an open order."""
    order = _open(context)
    entry.amend(context.engine, order, context.params, context.quote(order.symbol))
    return _ids(order)


def cancel(context: Context) -> Result:
    """Cancel an open order."""
    order = _open(context)
    _cancel(context, order)
    return _ids(order)


def _cancel(context: Context, order: Order) -> None:
    order.cancel("CancelByUser", "EC_PerCancelRequest")
    context.engine.account.changed(order, context.now_ms)
    tell_position(context.engine.account, context.engine.account.positions[order.symbol], context.now_ms)


def cancel_all(context: Context) -> Result:
    """Cancel all open orders of some contracts; without a filter stops of the position too."""
    symbols = context.symbols()
    wanted = choice(context.params, "orderFilter", ("Order", "StopOrder", "OpenOrder"), "")
    only_stop = context.params.get("stopOrderType") == "Stop"
    done = []
    for order in sorted(context.engine.account.open.values(), key=lambda o: o.number):
        if order.symbol not in symbols or not _passes(order, wanted) or (only_stop and order.stop_type != "Stop"):
            continue
        _cancel(context, order)
        done.append(_ids(order))
    return {"list": done, "success": "1"}


def _passes(order: Order, wanted: str) -> bool:
    if wanted == "StopOrder":
        return bool(order.stop_type)
    return not order.stop_type or order.status in RESTING if wanted in ("Order", "OpenOrder") else True


def realtime(context: Context) -> Result:
    """List open orders, or those that ids name whatever their status, or with ``openOnly=1`` recent closed ones."""
    linear(context.params)
    account, params = context.engine.account, context.params
    seen = [order for order in account.orders.values() if order.visible_ms <= context.now_ms]
    if params.get("orderId") or params.get("orderLinkId"):
        order = _named(context)
        closed = sorted((o for o in seen if not o.is_open), key=lambda o: o.number)[-RECENT_CLOSED:]
        kept = {o.order_id for o in closed} | {o.order_id for o in seen if o.is_open}
        found = [order] if order is not None and order.order_id in kept else []
    else:
        symbols = context.symbols()
        wanted = choice(params, "orderFilter", ("Order", "StopOrder", "tpslOrder", "OpenOrder"), "")
        closed_ones = integer(params, "openOnly", 0) == 1
        found = [o for o in seen if o.symbol in symbols and o.is_open != closed_ones and _passes(o, wanted)]
        found = found[-RECENT_CLOSED:] if closed_ones else found
    rows, cursor = page(context, found, lambda o: o.number, 20, 50)
    return {"list": [order.row() for order in rows], "nextPageCursor": cursor, "category": "linear"}


def history(context: Context) -> Result:
    """List closed orders: those without fills for a day, others for a week, filled ones for good."""
    linear(context.params)
    params, now = context.params, context.now_ms
    start, end = time_window(params, now, WEEK_MS, WEEK_MS)
    status = params.get("orderStatus")

    def listed(order: Order) -> bool:
        age = now - order.closed_ms
        kept = order.status == "Filled" or bool(order.filled) or age <= DAY_MS
        return (
            not order.is_open
            and order.visible_ms <= now
            and kept
            and start <= order.created_ms <= end
            and params.get("symbol") in (None, "", order.symbol)
            and params.get("settleCoin") in (None, "", "USDT")
            and params.get("orderId") in (None, "", order.order_id)
            and params.get("orderLinkId") in (None, "", order.link_id)
            and status in (None, "", order.status)
        )

    found = [order for order in context.engine.account.orders.values() if listed(order)]
    rows, cursor = page(context, found, lambda o: o.number, 20, 50)
    return {"list": [order.row() for order in rows], "nextPageCursor": cursor, "category": "linear"}


def executions(context: Context) -> Result:
    """List executions of a week at most, newest first: trades, funding, and what the exchange did."""
    linear(context.params)
    params, now = context.params, context.now_ms
    start, end = time_window(params, now, WEEK_MS, WEEK_MS)

    def listed(execution: Execution) -> bool:
        order = execution.order
        return (
            start <= execution.ts <= end
            and (order is None or order.visible_ms <= now)
            and params.get("symbol") in (None, "", execution.symbol)
            and params.get("settleCoin") in (None, "", "USDT")
            and params.get("execType") in (None, "", execution.kind)
            and params.get("orderId") in (None, "", order.order_id if order else "-")
            and params.get("orderLinkId") in (None, "", order.link_id if order else "-")
        )

    every = list(enumerate(context.engine.account.executions))
    found = [(number, execution) for number, execution in every if listed(execution)]
    rows, cursor = page(context, found, lambda pair: pair[0], 50, 100)
    return {"list": [pair[1].row() for pair in rows], "nextPageCursor": cursor, "category": "linear"}


HANDLERS: Final[Handlers] = {
    ("POST", "/v5/order/create"): create,
    ("POST", "/v5/order/amend"): amend,
    ("POST", "/v5/order/cancel"): cancel,
    ("POST", "/v5/order/cancel-all"): cancel_all,
    ("GET", "/v5/order/realtime"): realtime,
    ("GET", "/v5/order/history"): history,
    ("GET", "/v5/execution/list"): executions,
}
