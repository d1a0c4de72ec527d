"""Exact decimal arithmetic of the exchange: rounding, and numbers as the wire spells them."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Final

ZERO: Final = Decimal(0)
# Wallets move in steps of this size, in the settle coin.
UNIT: Final = Decimal("0.00000001")
_LONGEST: Final = 40
# Nothing that is traded is beyond; arithmetic stays exact within.
_SMALLEST: Final = Decimal("1e-12")
_LARGEST: Final = Decimal("1e12")


def money(value: Decimal) -> Decimal:
    """Return an amount of the settle coin rounded to eight decimals, half to even."""
    return value.quantize(UNIT, ROUND_HALF_EVEN)


def text(value: Decimal) -> str:
    """Return a number without exponent and without zeros at its end; zero is ``0``."""
    if not value:
        return "0"
    plain = format(value, "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def optional(value: Decimal | None, absent: str = "") -> str:
    """Return :func:`text`, or ``absent`` where there is no value."""
    return absent if value is None else text(value)


def parse(raw: object) -> Decimal | None:
    """Return the finite plain number that a JSON text spells; None for anything else, numbers without quotes too."""
    if not isinstance(raw, str) or not raw or len(raw) > _LONGEST:
        return None
    try:
        value = Decimal(raw)
    except InvalidOperation:
        return None
    return value if value.is_finite() and (not value or _SMALLEST <= abs(value) < _LARGEST) else None


def floor_to(value: Decimal, step: Decimal) -> Decimal:
    """Return the largest multiple of ``step`` that is not above ``value``."""
    return (value / step).to_integral_value(ROUND_FLOOR) * step


def ceil_to(value: Decimal, step: Decimal) -> Decimal:
    """Return the smallest multiple of ``step`` that is not below ``value``."""
    return (value / step).to_integral_value(ROUND_CEILING) * step


def is_multiple(value: Decimal, step: Decimal) -> bool:
    """Say whether ``value`` lies on the grid of ``step``."""
    return value % step == 0
