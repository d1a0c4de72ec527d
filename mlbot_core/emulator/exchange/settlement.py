"""What the exchange does to a position by itself: funding, liquidation, deleveraging, settlement."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from mlbot_core.emulator.exchange import stops
from mlbot_core.emulator.exchange.account import SETTLE_COIN, Account
from mlbot_core.emulator.exchange.numbers import ZERO, money
from mlbot_core.emulator.exchange.orders import OPPOSITE, Execution, Order, Side
from mlbot_core.emulator.exchange.position import Position, bankruptcy_price
from mlbot_core.emulator.exchange.rows import position_event, wallet_row


def side_of(position: Position) -> Side:
    """Return the side of an open position."""
    return "Buy" if position.size > 0 else "Sell"


def settle_funding(account: Account, symbol: str, rate: Decimal, mark: Decimal, ts: int) -> Execution:
    """Pay or receive funding on an open position: size x mark x rate, longs pay when the rate is positive.

    The execution's fee is positive when it was paid; the log row's ``funding`` has the opposite sign, and its rate is
    turned round for a short position, as documented.
    """
    position = account.positions[symbol]
    side = side_of(position)
    sign = 1 if position.size > 0 else -1
    value = abs(position.size) * mark
    paid = money(sign * value * rate)
    position.book(-paid)
    position.updated_ms, position.seq = ts, account.next_number("seq")
    exec_id = account.new_id("exec", account.next_number("exec"))
    execution = Execution(
        exec_id,
        "Funding",
        None,
        symbol,
        side,
        mark,
        abs(position.size),
        value,
        paid,
        sign * rate,
        False,
        ts,
        mark,
        ZERO,
        ZERO,
        position.seq,
    )
    account.executions.append(execution)
    account.post(
        "SETTLEMENT",
        SETTLE_COIN,
        ts,
        funding=-paid,
        symbol=symbol,
        side=side,
        qty=abs(position.size),
        size=position.size,
        price=mark,
        rate=sign * rate,
        trade_id=exec_id,
    )
    account.emit("execution", execution.event, ts)
    tell_position(account, position, ts)
    tell_wallet(account, ts)
    return execution


def liquidate(account: Account, marks: Mapping[str, Decimal], ts: int) -> None:
    """Cancel all orders and hand every position over at the price that uses up the wallet.

    With several positions each may use the share of the wallet that its maintenance margin has in the whole; what the
    market has moved beyond that price is the insurance fund's.
    """
    for order in list(account.open.values()):
        order.cancel("CancelAllBeforeLiq")
        account.changed(order, ts)
    held = [position for position in account.positions.values() if position.size]
    needs = {p.symbol: account.rules[p.symbol].maintenance(abs(p.size) * marks[p.symbol]) for p in held}
    total, wallet = sum(needs.values(), ZERO), account.wallet[SETTLE_COIN]
    for position in held:
        share = wallet * needs[position.symbol] / total
        price = bankruptcy_price(position, share, account.taker, account.rules[position.symbol].tick)
        close_by_exchange(
            account,
            position,
            abs(position.size),
            max(price, account.rules[position.symbol].tick),
            marks[position.symbol],
            ts,
            kind="BustTrade",
        )


# How the exchange's own trades are logged, and what made them.
EXCHANGE_TRADES = {
    "BustTrade": ("LIQUIDATION", "CreateByTakeOver_PassThrough"),
    "AdlTrade": ("ADL", "CreateByAdl_PassThrough"),
    "Settle": ("SETTLEMENT", "CreateBySettle"),
    "Delivery": ("DELIVERY", "CreateBySettle"),
}


def close_by_exchange(
    account: Account, position: Position, qty: Decimal, price: Decimal, mark: Decimal, ts: int, *, kind: str
) -> Execution:
    """Close (a part of) a position without an order of the user: ``BustTrade``, ``AdlTrade``, ``Settle``, ``Delivery``.

    All pay the taker fee but a settlement, which pays none.
    """
    log_kind, create_type = EXCHANGE_TRADES[kind]
    execution = account.trade(
        None,
        position.symbol,
        OPPOSITE[side_of(position)],
        qty,
        price,
        maker=False,
        ts=ts,
        mark=mark,
        kind=kind,
        log_kind=log_kind,
        create_type=create_type,
        free=kind in ("Settle", "Delivery"),
    )
    after_fill(account, position, ts)
    return execution


def after_fill(account: Account, position: Position, ts: int) -> None:
    """Bring what depends on a position in line with it, and tell the streams."""
    if position.size:
        stops.resize(account, position)
    else:
        stops.clear(account, position.symbol, ts)
    trim_reduce_only(account, position, ts)
    tell_position(account, position, ts)
    tell_wallet(account, ts)


def tell_position(account: Account, position: Position, ts: int) -> None:
    """Push a position to the streams."""
    account.emit("position", lambda: position_event(account, position, account.marks_at(ts)[position.symbol]), ts)


def tell_wallet(account: Account, ts: int) -> None:
    """Push the wallet to the streams."""
    account.emit("wallet", lambda: wallet_row(account, account.marks_at(ts)), ts)


def trim_reduce_only(account: Account, position: Position, ts: int) -> None:
    """Cut reduce-only orders that rest to what is left of the position, oldest first; none left is a cancel."""
    left = abs(position.size)
    for order in [o for o in account.open.values() if o.symbol == position.symbol]:
        if not order.reduce_only or order.status not in ("New", "PartiallyFilled"):
            continue
        room = left if position.side and position.side != order.side else ZERO
        if order.leaves > room:
            _cut(account, order, room, ts)
        left -= min(left, order.leaves)


def _cut(account: Account, order: Order, room: Decimal, ts: int) -> None:
    if room:
        order.qty = order.filled + room
    else:
        order.cancel("CancelByReduceOnly")
    account.changed(order, ts)
