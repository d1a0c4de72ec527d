"""Stops that hang on a position: take profit, stop loss, trailing stop; they live and end with it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import numpy as np
import numpy.typing as npt

from mlbot_core.emulator.exchange.account import Account
from mlbot_core.emulator.exchange.numbers import ZERO
from mlbot_core.emulator.exchange.orders import OPPOSITE, POSITION_STOPS, Order, Side
from mlbot_core.emulator.exchange.position import Position

Floats = npt.NDArray[np.float64]
CREATE_TYPES: Final = {
    "TakeProfit": "CreateByTakeProfit",
    "StopLoss": "CreateByStopLoss",
    "TrailingStop": "CreateByTrailingStop",
    "PartialTakeProfit": "CreateByPartialTakeProfit",
    "PartialStopLoss": "CreateByPartialStopLoss",
}


@dataclass(frozen=True)
class StopWish:
    """A stop to be set: its kind (a key of :data:`CREATE_TYPES`), price or distance (USDT) and trigger source.

    ``qty`` is for partial stops (coins); a ``limit`` makes them limit orders.
    """

    kind: str
    price: Decimal
    by: str = "LastPrice"
    qty: Decimal | None = None
    limit: Decimal | None = None
    active_price: Decimal | None = None


def standing(account: Account, symbol: str, kind: str) -> Order | None:
    """Return the whole-position stop of a kind, or None."""
    return next(
        (order for order in on_position(account, symbol) if order.stop_type == kind and order.whole),
        None,
    )


def on_position(account: Account, symbol: str) -> list[Order]:
    """Return every stop that hangs on the position in a symbol and has not been triggered."""
    return [
        order
        for order in account.open.values()
        if order.status == "Untriggered" and order.symbol == symbol and order.stop_type in POSITION_STOPS
    ]


def direction(kind: str, position: Position) -> int:
    """Return 1 when a stop waits for the price to rise, 2 when for a fall."""
    gain = kind in ("TakeProfit", "PartialTakeProfit")
    return 1 if gain == (position.size > 0) else 2


def place(account: Account, position: Position, wish: StopWish, ts: int, last: Decimal) -> Order:
    """Set a stop of an open position; a whole-position stop of the same kind is changed in place."""
    old = standing(account, position.symbol, wish.kind) if wish.qty is None else None
    if old is not None:
        old.trigger_price, old.trigger_by = wish.price, wish.by
        if wish.kind == "TrailingStop":
            old.trail, old.active_price = wish.price, wish.active_price
            position.peak = last if wish.active_price is None else None
            old.trigger_price = _trailing_price(position, wish.price)
        account.changed(old, ts)
        return old
    number = account.next_number("order")
    side: Side = OPPOSITE["Buy" if position.size > 0 else "Sell"]
    order = Order(
        order_id=account.new_id("order", number),
        link_id="",
        symbol=position.symbol,
        side=side,
        kind="Market" if wish.limit is None else "Limit",
        qty=abs(position.size) if wish.qty is None else wish.qty,
        limit=ZERO if wish.limit is None else wish.limit,
        created_ms=ts,
        updated_ms=ts,
        number=number,
        tif="IOC" if wish.limit is None else "GTC",
        status="Untriggered",
        reduce_only=True,
        close_on_trigger=True,
        stop_type=wish.kind,
        whole=wish.qty is None,
        trigger_price=wish.price,
        trigger_direction=direction(wish.kind, position),
        trigger_by=wish.by,
        create_type=CREATE_TYPES[wish.kind],
        last_on_created=last,
    )
    if wish.kind == "TrailingStop":
        order.trail, order.active_price = wish.price, wish.active_price
        position.peak = last if wish.active_price is None else None
        order.trigger_price = _trailing_price(position, wish.price)
    account.add(order)
    account.changed(order, ts)
    return order


def _trailing_price(position: Position, trail: Decimal) -> Decimal | None:
    if position.peak is None:
        return None
    return position.peak - trail if position.size > 0 else position.peak + trail


def clear(account: Account, symbol: str, ts: int, cancel_type: str = "CancelByTpSlTsClear") -> None:
    """End every stop of a position that is gone."""
    for order in on_position(account, symbol):
        order.cancel(cancel_type)
        account.changed(order, ts)
    account.positions[symbol].peak = None


def resize(account: Account, position: Position) -> None:
    """Let whole-position stops follow the size of their position."""
    for order in on_position(account, position.symbol):
        if order.whole:
            order.qty = abs(position.size)


def peaks(position: Position, order: Order, last: Floats) -> Floats:
    """Return the best price since a trailing stop became active, after each instant; NaN while it is not.

    ``last`` has shape ``(n,)``; for a short position the best price is the lowest.
    """
    long = position.size > 0
    if position.peak is not None:
        begin, best = 0, float(position.peak)
    else:
        active = float(order.active_price or ZERO)
        hit = np.flatnonzero(last >= active if long else last <= active)
        if not len(hit):
            return np.full(len(last), np.nan)
        begin, best = int(hit[0]), float(last[hit[0]])
    out = np.full(len(last), np.nan)
    tail = last[begin:]
    out[begin:] = (
        np.maximum.accumulate(np.maximum(tail, best)) if long else np.minimum.accumulate(np.minimum(tail, best))
    )
    return out


def trailing_hits(position: Position, order: Order, last: Floats) -> npt.NDArray[np.bool_]:
    """Return, per instant, whether the price has come back by the trailing distance; shape ``(n,)``, bool."""
    best = peaks(position, order, last)
    away = best - last if position.size > 0 else last - best
    # a tick of prices is far above the error of the subtraction
    return np.asarray(np.nan_to_num(away, nan=-1.0) >= float(order.trail or ZERO) - 1e-6)


def follow(position: Position, order: Order, last: Floats, decimals: int) -> None:
    """Move the peak of a trailing stop over prices that have passed."""
    best = peaks(position, order, last)
    if len(best) and not np.isnan(best[-1]):
        position.peak = Decimal(f"{best[-1]:.{decimals}f}")
        order.trigger_price = _trailing_price(position, order.trail or ZERO)
