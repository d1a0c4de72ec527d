"""Onto the exchange's grid: quantities down, prices by side; exact."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from mlbot_core.execution.types import Instrument, OrderRefusedError, Side


def steps_down(value: Decimal, step: Decimal) -> Decimal:
    """Return the largest multiple of ``step`` that is not above ``value``.

    Raises
    ------
    OrderRefusedError
        If the value is not finite or the step not positive.
    """
    whole = _whole(value, step)
    return (whole - 1 if whole * step > value else whole) * step


def steps_up(value: Decimal, step: Decimal) -> Decimal:
    """Return the smallest multiple of ``step`` that is not below ``value``; errors as :func:`steps_down`."""
    whole = _whole(value, step)
    return (whole + 1 if whole * step < value else whole) * step


def round_qty(qty: Decimal, instrument: Instrument) -> Decimal:
    """Return a quantity (coins, not negative) rounded DOWN to whole lots: never more than asked for.

    Raises
    ------
    OrderRefusedError
        If the quantity is negative or not finite.
    """
    if not (qty.is_finite() and qty >= 0):
        raise OrderRefusedError(f"{instrument.symbol}: a quantity of {qty} cannot be ordered; give its size and a side")
    return steps_down(qty, instrument.lot)


def round_signed(qty: Decimal, instrument: Instrument) -> Decimal:
    """Return signed coins rounded towards zero to whole lots."""
    size = round_qty(abs(qty), instrument)
    return -size if qty < 0 else size


def round_price(price: Decimal, side: Side, instrument: Instrument) -> Decimal:
    """Return a limit price (USD) on the grid of ticks: a buy's down, a sell's up, so it never pays more than asked.

    Raises
    ------
    OrderRefusedError
        If the price is not positive and finite, or rounds to nothing.
    """
    rounded = (steps_down if side is Side.BUY else steps_up)(price, instrument.tick)
    if not rounded > 0:
        raise OrderRefusedError(f"{instrument.symbol}: a price of {price} is below one tick ({instrument.tick})")
    return rounded


def round_stop(price: Decimal, position_side: Side, instrument: Instrument) -> Decimal:
    """Return the trigger price (USD) of a protective stop, rounded TOWARDS the entry: it costs no more than asked.

    A long position's stop lies below and goes up to the tick, a short position's lies above and goes down.

    Raises
    ------
    OrderRefusedError
        If the price is not positive and finite, or rounds to nothing.
    """
    return round_price(price, position_side.opposite, instrument)


def _whole(value: Decimal, step: Decimal) -> Decimal:
    """Return value / step, truncated: exact, where a division would round to its 28 digits."""
    if not value.is_finite() or not (step.is_finite() and step > 0):
        raise OrderRefusedError(f"{value} cannot be rounded to steps of {step}; both must be finite, the step positive")
    try:
        return value // step
    except InvalidOperation as error:
        raise OrderRefusedError(f"{value} has too many steps of {step} to be a quantity or a price") from error
