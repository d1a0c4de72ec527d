"""Bybit's own rules of a contract, in place of those that the emulator publishes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from mlbot_core.emulator.bybit_market import FUNDING_MS
from mlbot_core.emulator.exchange.rules import Rules, Tier
from mlbot_core.emulator.paper.bybit import LiveError
from mlbot_core.timeframe import MINUTE_MS

_PERCENT_FROM: Final = 10


def live_rules(row: Mapping[str, Any], tiers: Sequence[Mapping[str, Any]]) -> Rules:
    """Return the rules of a row of ``instruments-info`` and the tiers of ``risk-limit``.

    Margins of the tiers are percents or fractions, which the documentation leaves open: initial margin times leverage
    is about one where they are fractions.

    Raises
    ------
    LiveError
        If something is missing, or the funding interval is one that the exchange here does not know.
    """
    try:
        lots, prices = row["lotSizeFilter"], row["priceFilter"]
        if int(row["fundingInterval"]) * MINUTE_MS != FUNDING_MS:
            raise LiveError(
                f"{row['symbol']} settles funding every {row['fundingInterval']} minutes; the paper exchange knows "
                f"{FUNDING_MS // MINUTE_MS} only"
            )
        return Rules(
            symbol=str(row["symbol"]),
            base_coin=str(row["baseCoin"]),
            tick=Decimal(prices["tickSize"]).normalize(),
            step=Decimal(lots["qtyStep"]),
            max_qty=Decimal(lots["maxOrderQty"]),
            max_market_qty=Decimal(lots["maxMktOrderQty"]),
            min_notional=Decimal(lots.get("minNotionalValue") or 0),
            min_price=Decimal(prices["minPrice"]),
            max_price=Decimal(prices["maxPrice"]),
            max_leverage=Decimal(row["leverageFilter"]["maxLeverage"]),
            band=Decimal(row["riskParameters"]["priceLimitRatioX"]),
            tiers=_tiers(tiers),
        )
    except (KeyError, TypeError, ValueError, InvalidOperation) as error:
        raise LiveError(f"the rules of {row.get('symbol')} cannot be read ({error!r})") from None


def _tiers(rows: Sequence[Mapping[str, Any]]) -> tuple[Tier, ...]:
    made = []
    for number, row in enumerate(sorted(rows, key=lambda row: Decimal(row["riskLimitValue"])), start=1):
        leverage = Decimal(row["maxLeverage"])
        percent = Decimal(row["initialMargin"]) * leverage > _PERCENT_FROM
        rate = Decimal(row["maintenanceMargin"]) / (100 if percent else 1)
        deduction = Decimal(row.get("mmDeduction") or 0)
        made.append(Tier(number, Decimal(row["riskLimitValue"]), leverage, rate, deduction))
    if not made:
        raise ValueError("no risk tiers")
    return tuple(made)
