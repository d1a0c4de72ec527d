"""Rows of Bybit's answers and streams as types; the wire spells numbers as texts, and nothing as an empty one."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from mlbot_core.clock import parse_utc_ms
from mlbot_core.execution.broker import ApiKeyInfo, BrokerError, Ticker
from mlbot_core.execution.types import (
    ZERO,
    CoinBalance,
    ExecType,
    Execution,
    ExecutionError,
    Instrument,
    OrderSnapshot,
    OrderStatus,
    OrderType,
    PositionSnapshot,
    Side,
    TimeInForce,
    WalletEvent,
    WalletSnapshot,
)

Row = Mapping[str, Any]
_LONGEST: Final = 64


class RowError(BrokerError):
    """A row of an answer is not what Bybit documents; nothing of the answer is used."""


class SymbolNotTradingError(BrokerError):
    """The instrument is there but cannot be traded now."""


class PositionModeError(BrokerError):
    """The account is in hedge mode: a symbol has two positions. It must be in one-way mode."""


def optional(row: Row, name: str) -> Decimal | None:
    """Return a number of a row; None where it is absent or an empty text.

    Raises
    ------
    RowError
        If it is something else, or not finite.
    """
    raw = row.get(name)
    if raw is None or raw == "":
        return None
    if isinstance(raw, bool) or not isinstance(raw, str | int) or len(str(raw)) > _LONGEST:
        raise RowError(f"{name} is {type(raw).__name__} {str(raw)[:40]!r}, not a number as text")
    try:
        value = Decimal(raw)
    except InvalidOperation:
        raise RowError(f"{name} is {raw!r}, not a number") from None
    if not value.is_finite():
        raise RowError(f"{name} is {raw!r}, not a finite number")
    return value


def number(row: Row, name: str) -> Decimal:
    """Return a number that must be there; errors as :func:`optional`."""
    value = optional(row, name)
    if value is None:
        raise RowError(f"{name} is missing")
    return value


def price_or_none(row: Row, name: str) -> Decimal | None:
    """Return a price; zero and nothing are the same on this wire."""
    return optional(row, name) or None


def whole(row: Row, name: str, default: int | None = None) -> int:
    """Return a whole number, UTC ms for instance; errors as :func:`optional`."""
    value = optional(row, name)
    if value is None:
        if default is None:
            raise RowError(f"{name} is missing")
        return default
    if value != value.to_integral_value():
        raise RowError(f"{name} is {value}, not a whole number")
    return int(value)


def word(row: Row, name: str, default: str | None = None) -> str:
    """Return a text; errors as :func:`optional`."""
    raw = row.get(name)
    if raw is None and default is not None:
        return default
    if not isinstance(raw, str):
        raise RowError(f"{name} is {type(raw).__name__}, not a text")
    return raw


def _choice(kind: type, row: Row, name: str) -> Any:
    raw = word(row, name)
    try:
        return kind(raw)
    except ValueError:
        known = ", ".join(str(value) for value in kind)  # type: ignore[attr-defined]
        raise RowError(f"{name} is {raw!r}, which is none of {known}") from None


def rows_of(result: Row) -> list[Row]:
    """Return the ``list`` of a result.

    Raises
    ------
    RowError
        If it is not a list of objects.
    """
    rows = result.get("list")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RowError("the answer has no list of rows")
    return rows


def read_instrument(row: Row) -> Instrument:
    """Return the rules of an instrument (``instruments-info``).

    Raises
    ------
    RowError, SymbolNotTradingError
        If the row is wrong; if the status is not Trading.
    """
    symbol, status = word(row, "symbol"), word(row, "status")
    if status != "Trading":
        raise SymbolNotTradingError(f"{symbol} has the status {status}; it can be traded when that is Trading")
    lots, prices = row.get("lotSizeFilter"), row.get("priceFilter")
    if not isinstance(lots, dict) or not isinstance(prices, dict):
        raise RowError(f"{symbol}: lotSizeFilter or priceFilter is missing")
    try:
        return Instrument(
            symbol=symbol,
            tick=number(prices, "tickSize"),
            lot=number(lots, "qtyStep"),
            min_qty=number(lots, "minOrderQty"),
            max_qty=number(lots, "maxOrderQty"),
            max_market_qty=number(lots, "maxMktOrderQty"),
            min_notional=optional(lots, "minNotionalValue") or ZERO,
        )
    except RowError:
        raise
    except ExecutionError as error:
        raise RowError(str(error)) from None


def read_ticker(row: Row, at_ms: int) -> Ticker:
    """Return prices (``tickers``)."""
    return Ticker(
        symbol=word(row, "symbol"),
        bid=number(row, "bid1Price"),
        ask=number(row, "ask1Price"),
        bid_qty=number(row, "bid1Size"),
        ask_qty=number(row, "ask1Size"),
        last=number(row, "lastPrice"),
        mark=number(row, "markPrice"),
        index=number(row, "indexPrice"),
        at_ms=at_ms,
    )


def read_order(row: Row) -> OrderSnapshot:
    """Return an order (``order/realtime``, ``order/history``, the ``order`` stream)."""
    kind: OrderType = _choice(OrderType, row, "orderType")
    return OrderSnapshot(
        order_id=word(row, "orderId"),
        order_link_id=word(row, "orderLinkId", ""),
        symbol=word(row, "symbol"),
        side=_choice(Side, row, "side"),
        order_type=kind,
        status=_choice(OrderStatus, row, "orderStatus"),
        qty=number(row, "qty"),
        filled_qty=optional(row, "cumExecQty") or ZERO,
        filled_value=optional(row, "cumExecValue") or ZERO,
        fee=optional(row, "cumExecFee") or ZERO,
        # a market order shows the worst price that the exchange gave it
        price=price_or_none(row, "price") if kind is OrderType.LIMIT else None,
        time_in_force=_choice(TimeInForce, row, "timeInForce"),
        reduce_only=row.get("reduceOnly") is True,
        created_ms=whole(row, "createdTime"),
        updated_ms=whole(row, "updatedTime"),
        stop_loss=price_or_none(row, "stopLoss"),
        trigger_price=price_or_none(row, "triggerPrice"),
        stop_order_type=_unless_unknown(row, "stopOrderType"),
        reject_reason="" if word(row, "rejectReason", "") == "EC_NoError" else word(row, "rejectReason", ""),
        cancel_type=_unless_unknown(row, "cancelType"),
    )


def _unless_unknown(row: Row, name: str) -> str:
    text = word(row, name, "")
    return "" if text == "UNKNOWN" else text


def read_execution(row: Row) -> Execution:
    """Return an execution (``execution/list``, the ``execution`` stream)."""
    kind: ExecType = _choice(ExecType, row, "execType")
    ours = kind in (ExecType.TRADE, ExecType.BLOCK_TRADE)
    return Execution(
        exec_id=word(row, "execId"),
        kind=kind,
        # rows that no order made carry an id of the exchange's own there
        order_id=word(row, "orderId", "") if ours else "",
        order_link_id=word(row, "orderLinkId", ""),
        symbol=word(row, "symbol"),
        side=_choice(Side, row, "side"),
        qty=number(row, "execQty"),
        price=number(row, "execPrice"),
        value=number(row, "execValue"),
        fee=optional(row, "execFee") or ZERO,
        fee_rate=optional(row, "feeRate") or ZERO,
        is_maker=row.get("isMaker") is True,
        closed_qty=optional(row, "closedSize") or ZERO,
        exec_ms=whole(row, "execTime"),
        seq=whole(row, "seq", -1),
        stop_type=_unless_unknown(row, "stopOrderType"),
    )


def read_position(row: Row) -> PositionSnapshot:
    """Return a position (``position/list``, the ``position`` stream).

    Raises
    ------
    RowError, PositionModeError
        If the row is wrong; if the account is in hedge mode.
    """
    symbol = word(row, "symbol")
    if whole(row, "positionIdx", 0) != 0:
        raise PositionModeError(f"{symbol} is in hedge mode; close it and switch the account to one-way mode")
    size, side = number(row, "size"), word(row, "side", "")
    if size and side not in ("Buy", "Sell"):
        raise RowError(f"{symbol}: a position of {size} has the side {side!r}")
    return PositionSnapshot(
        symbol=symbol,
        size=-size if side == "Sell" else size,
        average_price=(price_or_none(row, "avgPrice") or price_or_none(row, "entryPrice")) if size else None,
        mark_price=price_or_none(row, "markPrice"),
        unrealised=optional(row, "unrealisedPnl") or ZERO,
        leverage=price_or_none(row, "leverage"),
        liquidation_price=price_or_none(row, "liqPrice"),
        stop_loss=price_or_none(row, "stopLoss"),
        status=word(row, "positionStatus", ""),
        updated_ms=whole(row, "updatedTime", 0),
        seq=whole(row, "seq", -1),
    )


def read_wallet(row: Row, at_ms: int) -> WalletSnapshot:
    """Return an account (``wallet-balance``, the ``wallet`` stream) as of ``at_ms``."""
    coins = row.get("coin")
    if not isinstance(coins, list):
        raise RowError("the wallet has no list of coins")
    return WalletSnapshot(
        total_equity=number(row, "totalEquity"),
        total_wallet_balance=number(row, "totalWalletBalance"),
        total_margin_balance=optional(row, "totalMarginBalance") or ZERO,
        total_available=optional(row, "totalAvailableBalance") or ZERO,
        initial_margin_rate=optional(row, "accountIMRate"),
        maintenance_margin_rate=optional(row, "accountMMRate"),
        coins=tuple(
            CoinBalance(
                coin=word(coin, "coin"),
                wallet_balance=number(coin, "walletBalance"),
                equity=number(coin, "equity"),
                unrealised=optional(coin, "unrealisedPnl") or ZERO,
                usd_value=optional(coin, "usdValue") or ZERO,
            )
            for coin in coins
        ),
        at_ms=at_ms,
    )


def read_wallet_event(row: Row) -> WalletEvent:
    """Return a row of the transaction log."""
    return WalletEvent(
        event_id=word(row, "id"),
        kind=word(row, "type"),
        coin=word(row, "currency"),
        at_ms=whole(row, "transactionTime"),
        cash_flow=optional(row, "cashFlow") or ZERO,
        funding=optional(row, "funding") or ZERO,
        fee=optional(row, "fee") or ZERO,
        change=number(row, "change"),
        balance=number(row, "cashBalance"),
        symbol=word(row, "symbol", ""),
        exec_id=word(row, "tradeId", ""),
        order_link_id=word(row, "orderLinkId", ""),
    )


def read_key_info(row: Row, fingerprint: str) -> ApiKeyInfo:
    """Return what a key may do (``user/query-api``); the key in the row is not taken over."""
    permissions = row.get("permissions")
    if not isinstance(permissions, dict):
        raise RowError("the description of the key has no permissions")
    wallet = {str(name) for name in permissions.get("Wallet") or ()}
    contract = {str(name) for name in permissions.get("ContractTrade") or ()}
    ips = tuple(str(address) for address in row.get("ips") or () if address != "*")
    parent = str(row.get("parentUid") or "")
    expired = word(row, "expiredAt", "")
    try:
        expires = parse_utc_ms(expired) if expired else 0
    except ValueError:
        raise RowError(f"expiredAt is {expired!r}, not a time") from None
    return ApiKeyInfo(
        fingerprint=fingerprint,
        user_id=str(row.get("userID") or ""),
        parent_id="" if parent == "0" else parent,
        read_only=row.get("readOnly") != 0,
        can_trade=row.get("readOnly") == 0 and {"Order", "Position"} <= contract,
        can_withdraw="Withdraw" in wallet,
        can_transfer=any("Transfer" in name for name in wallet),
        ips=ips,
        expires_ms=expires or None,
    )
