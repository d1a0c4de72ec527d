"""How much may be held, and how little can be: the cap of today, the largest quantity under it, the least account."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from mlbot_core.config import Settings
from mlbot_core.execution.broker import Venue
from mlbot_core.execution.rounding import round_qty, steps_up
from mlbot_core.execution.types import ZERO, Instrument, OrderRefusedError
from mlbot_core.timeframe import DAY_MS

# The smallest share of the cap that sizing chooses when it trades at all.
SMALLEST_MULTIPLIER: Final = Decimal("0.25")


def effective_max_position(settings: Settings, first_trade_ms: int | None, now_ms: int) -> Decimal:
    """Return the cap that holds now, fraction of NAV: on mainnet a smaller one for the first 24 hours of trading.

    Parameters
    ----------
    first_trade_ms
        When the account traded first, UTC ms; None if it never did.
    """
    cap = Decimal(str(settings.risk.max_position))
    if settings.execution.venue != Venue.MAINNET.value:
        return cap
    if first_trade_ms is not None and now_ms - first_trade_ms >= DAY_MS:
        return cap
    return min(cap, Decimal(str(settings.risk.gate.first_day_max_position)))


def largest_qty(nav: Decimal, price: Decimal, cap: Decimal, instrument: Instrument) -> Decimal:
    """Return the most coins whose value is not above ``cap x nav``, in whole lots; rounded down, never above the cap.

    Raises
    ------
    OrderRefusedError
        If the price is not positive.
    """
    _priced(price, instrument)
    if not (nav > 0 and cap > 0):
        return ZERO
    # a quotient is rounded to 28 digits and may end above the true one
    qty = round_qty(nav * cap / price, instrument)
    return qty - instrument.lot if qty * price > nav * cap else qty


def smallest_order(price: Decimal, instrument: Instrument) -> Decimal:
    """Return the fewest coins that the exchange takes as an order at a price.

    Raises
    ------
    OrderRefusedError
        If the price is not positive.
    """
    _priced(price, instrument)
    return steps_up(max(instrument.min_qty, instrument.min_notional / price), instrument.lot)


def smallest_nav(price: Decimal, cap: Decimal, instrument: Instrument) -> Decimal:
    """Return the NAV (USD) at which the smallest order is a position of the smallest multiplier under the cap.

    Raises
    ------
    OrderRefusedError
        If price or cap is not positive.
    """
    if not cap > 0:
        raise OrderRefusedError(f"{instrument.symbol}: nothing can be traded under a cap of {cap}; raise max_position")
    return smallest_order(price, instrument) * price / (cap * SMALLEST_MULTIPLIER)


def _priced(price: Decimal, instrument: Instrument) -> None:
    if not (price.is_finite() and price > 0):
        raise OrderRefusedError(f"{instrument.symbol}: a price of {price} values nothing; read the ticker again")
