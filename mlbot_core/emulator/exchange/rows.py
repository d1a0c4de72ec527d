"""Positions and wallets as the wire shows them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from mlbot_core.emulator.exchange import stops
from mlbot_core.emulator.exchange.account import SETTLE_COIN, Account
from mlbot_core.emulator.exchange.numbers import UNIT, ZERO, money, text
from mlbot_core.emulator.exchange.position import Position, liquidation_price

Row = dict[str, Any]
_BREAK_EVEN_FEE = Decimal("0.00055")


def position_row(account: Account, position: Position, mark: Decimal) -> Row:
    """Return a position as ``position/list`` lists it, at a mark price."""
    rules = account.rules[position.symbol]
    value = abs(position.size) * mark
    tier = rules.tier(value) or rules.tiers[-1]
    liquidation = liquidation_price(position, account.wallet[SETTLE_COIN], rules) if position.size else None
    margin = money(value / position.leverage)
    maintenance = money(rules.maintenance(value)) if position.size else ZERO

    def stop(kind: str) -> str:
        order = stops.standing(account, position.symbol, kind)
        return "" if order is None else text((order.trail if kind == "TrailingStop" else order.trigger_price) or ZERO)

    return {
        "positionIdx": 0,
        "riskId": tier.number,
        "riskLimitValue": text(tier.up_to),
        "symbol": position.symbol,
        "side": position.side,
        "size": text(abs(position.size)),
        "avgPrice": text(position.average.quantize(UNIT)) if position.size else "",
        "positionValue": text(position.entry_value) if position.size else "",
        "tradeMode": 0,
        "positionStatus": "Normal",
        "autoAddMargin": 0,
        "adlRankIndicator": 2 if position.size else 0,
        "leverage": text(position.leverage),
        "breakEvenPrice": _break_even(account, position),
        "positionBalance": text(margin),
        "markPrice": text(mark),
        "liqPrice": "" if liquidation is None else text(liquidation.quantize(rules.tick)),
        "bustPrice": "",
        "positionMM": text(maintenance),
        "positionMMByMp": text(maintenance),
        "positionIM": text(margin),
        "positionIMByMp": text(margin),
        "tpslMode": "Full",
        "takeProfit": stop("TakeProfit"),
        "stopLoss": stop("StopLoss"),
        "trailingStop": stop("TrailingStop") or "0",
        "unrealisedPnl": text(money(position.unrealised(mark))) if position.size else "",
        "curRealisedPnl": text(position.realised),
        "cumRealisedPnl": text(position.total_realised),
        "seq": position.seq,
        "isReduceOnly": False,
        "mmrSysUpdatedTime": "",
        "leverageSysUpdatedTime": "",
        "sessionAvgPrice": "",
        "openTime": position.opened_ms if position.size else 0,
        "createdTime": str(position.created_ms),
        "updatedTime": str(position.updated_ms),
    }


def _break_even(account: Account, position: Position) -> str:
    """Return (entry x size - realised) / (size - |size| x max(taker, 0.00055)), as documented."""
    if not position.size:
        return ""
    size = position.size
    signed = position.entry_value if size > 0 else -position.entry_value
    price = (signed - position.realised) / (size - abs(size) * max(account.taker, _BREAK_EVEN_FEE))
    return text(price.quantize(UNIT))


def position_event(account: Account, position: Position, mark: Decimal) -> Row:
    """Return a position as the ``position`` stream pushes it."""
    row = position_row(account, position, mark)
    return {**row, "entryPrice": row.pop("avgPrice") or "0", "category": "linear"}


def wallet_row(account: Account, marks: Mapping[str, Decimal], coins: frozenset[str] | None = None) -> Row:
    """Return the account as ``wallet-balance`` lists it; marks by symbol, USDT counts as one USD.

    Only USDT is margin. Other coins are shown and valued at their mark price, where there is one, and carry nothing.
    """
    margin = account.margin(marks)
    values = {coin: money(amount * _usd(coin, marks)) for coin, amount in account.wallet.items()}
    others = sum((value for coin, value in values.items() if coin != SETTLE_COIN), ZERO)

    def rate(part: Decimal) -> str:
        return text((part / margin.balance).quantize(Decimal("0.0001"))) if part and margin.balance > 0 else "0"

    listed = []
    for coin in account.wallet if coins is None else sorted(coins):
        amount = account.wallet.get(coin, ZERO)
        if coins is None and not amount and coin != SETTLE_COIN:
            continue
        settle = coin == SETTLE_COIN
        equity = amount + (margin.unrealised if settle else ZERO)
        realised = sum((p.total_realised for p in account.positions.values()), ZERO) if settle else ZERO
        listed.append(
            {
                "coin": coin,
                "equity": text(equity),
                "usdValue": text(equity if settle else values.get(coin, ZERO)),
                "walletBalance": text(amount),
                "availableToWithdraw": "",
                "availableToBorrow": "",
                "borrowAmount": "0",
                "accruedInterest": "0",
                "totalOrderIM": text(margin.order_im) if settle else "0",
                "totalPositionIM": text(margin.position_im) if settle else "0",
                "totalPositionMM": text(margin.maintenance) if settle else "0",
                "unrealisedPnl": text(margin.unrealised) if settle else "0",
                "cumRealisedPnl": text(realised),
                "bonus": "0",
                "collateralSwitch": settle,
                "marginCollateral": True,
                "locked": "0",
                "spotHedgingQty": "0",
                "spotBorrow": "0",
            }
        )
    return {
        "totalEquity": text(margin.balance + others),
        "accountIMRate": rate(margin.initial),
        "accountIMRateByMp": rate(margin.initial),
        "totalMarginBalance": text(margin.balance),
        "totalInitialMargin": text(margin.initial),
        "totalInitialMarginByMp": text(margin.initial),
        "accountType": "UNIFIED",
        "totalAvailableBalance": text(margin.available),
        "accountMMRate": rate(margin.maintenance),
        "accountMMRateByMp": rate(margin.maintenance),
        "totalPerpUPL": text(margin.unrealised),
        "totalWalletBalance": text(margin.wallet + others),
        "accountLTV": "0",
        "totalMaintenanceMargin": text(margin.maintenance),
        "totalMaintenanceMarginByMp": text(margin.maintenance),
        "coin": listed,
    }


def _usd(coin: str, marks: Mapping[str, Decimal]) -> Decimal:
    return Decimal(1) if coin in (SETTLE_COIN, "USDC") else marks.get(f"{coin}USDT", ZERO)
