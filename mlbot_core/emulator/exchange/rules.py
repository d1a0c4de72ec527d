"""What an instrument allows and costs: steps, limits, tiers, fees; read from what the emulator publishes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

from mlbot_core.emulator.bybit_snapshot import PRICE_LIMIT_RATIO, risk_limits, trading_rules
from mlbot_core.errors import UsageError

TAKER_FEE: Final = Decimal("0.00055")
MAKER_FEE: Final = Decimal("0.0002")
DEFAULT_LEVERAGE: Final = Decimal(10)


@dataclass(frozen=True)
class Tier:
    """One risk tier.

    Parameters
    ----------
    number
        From 1.
    up_to
        Largest position value at mark, USDT.
    max_leverage
        Highest leverage.
    rate
        Maintenance margin rate, a fraction of position value.
    deduction
        USDT taken off the maintenance margin.
    """

    number: int
    up_to: Decimal
    max_leverage: Decimal
    rate: Decimal
    deduction: Decimal


@dataclass(frozen=True)
class Rules:
    """Trading rules of one linear contract that settles in USDT; quantities in coins, prices and values in USDT."""

    symbol: str
    base_coin: str
    tick: Decimal
    step: Decimal
    max_qty: Decimal
    max_market_qty: Decimal
    min_notional: Decimal
    min_price: Decimal
    max_price: Decimal
    max_leverage: Decimal
    band: Decimal
    tiers: tuple[Tier, ...]

    def tier(self, value: Decimal) -> Tier | None:
        """Return the tier of a position value (USDT), or None above the last one."""
        return next((tier for tier in self.tiers if value <= tier.up_to), None)

    def maintenance(self, value: Decimal) -> Decimal:
        """Return the maintenance margin of a position value, USDT: value x rate - deduction of its tier.

        Values above the last tier are counted in the last one.
        """
        tier = self.tier(value) or self.tiers[-1]
        return value * tier.rate - tier.deduction


def rules_of(symbol: str) -> Rules:
    """Return the rules that the emulator publishes for a symbol.

    Raises
    ------
    UsageError
        If a tier is not consistent with the one before it.
    """
    step, most, most_at_market, tick = trading_rules(symbol)
    return Rules(
        symbol=symbol,
        base_coin=symbol.removesuffix("USDT"),
        tick=Decimal(tick).normalize(),
        step=Decimal(step),
        max_qty=Decimal(most),
        max_market_qty=Decimal(most_at_market),
        min_notional=Decimal(5),
        min_price=Decimal(tick),
        max_price=Decimal("1999999.80"),
        max_leverage=Decimal(100),
        band=Decimal(str(PRICE_LIMIT_RATIO)),
        tiers=_tiers(risk_limits(symbol)),
    )


def _tiers(rows: Sequence[Mapping[str, Any]]) -> tuple[Tier, ...]:
    tiers = tuple(
        Tier(
            row["id"],
            Decimal(row["riskLimitValue"]),
            Decimal(row["maxLeverage"]),
            Decimal(row["maintenanceMargin"]) / 100,
            Decimal(row["mmDeduction"] or 0),
        )
        for row in rows
    )
    for lower, upper in pairwise(tiers):
        if upper.up_to <= lower.up_to or upper.rate < lower.rate:
            raise UsageError(f"risk tier {upper.number} is not above tier {lower.number}; check the published table")
    return tiers
