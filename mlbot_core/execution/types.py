"""What is said to and heard from an exchange, in plain exact values: no float, no text of the wire.

Quantities are coins, prices and values USD (USDT counts as one), times UTC ms; all numbers are Decimals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final

from mlbot_core.errors import MlbotError

ZERO: Final = Decimal(0)
LINK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,36}")


class ExecutionError(MlbotError):
    """Something about an order, a fill or the book of them is not as it must be."""


class OrderRefusedError(ExecutionError):
    """An order that breaks a rule is not made: nothing was sent."""


class Side(StrEnum):
    """Of an order or a fill, as the wire spells it."""

    BUY = "Buy"
    SELL = "Sell"

    @property
    def sign(self) -> int:
        """+1 for a buy, -1 for a sell."""
        return 1 if self is Side.BUY else -1

    @property
    def opposite(self) -> Side:
        """The other side."""
        return Side.SELL if self is Side.BUY else Side.BUY

    @classmethod
    def of(cls, signed: Decimal) -> Side:
        """Return the side that adds a signed quantity to a position.

        Raises
        ------
        ValueError
            If the quantity is zero.
        """
        if signed == 0:
            raise ValueError("a quantity of zero has no side")
        return cls.BUY if signed > 0 else cls.SELL


class OrderType(StrEnum):
    """Whether an order names its worst price."""

    MARKET = "Market"
    LIMIT = "Limit"


class TimeInForce(StrEnum):
    """How long an order waits; a market order is always IOC."""

    GTC = "GTC"
    IOC = "IOC"
    FOK = "FOK"
    POST_ONLY = "PostOnly"


class TriggerBy(StrEnum):
    """Which price a stop watches."""

    LAST = "LastPrice"
    MARK = "MarkPrice"
    INDEX = "IndexPrice"


class OrderStatus(StrEnum):
    """Of an order at the exchange. A cancelled order may have fills."""

    NEW = "New"
    PARTIALLY_FILLED = "PartiallyFilled"
    UNTRIGGERED = "Untriggered"
    TRIGGERED = "Triggered"
    FILLED = "Filled"
    CANCELLED = "Cancelled"
    REJECTED = "Rejected"
    DEACTIVATED = "Deactivated"

    @property
    def terminal(self) -> bool:
        """Whether nothing can happen to the order any more."""
        return self in _TERMINAL


_TERMINAL: Final = frozenset((OrderStatus.FILLED, OrderStatus.CANCELLED, OrderStatus.REJECTED, OrderStatus.DEACTIVATED))


class ExecType(StrEnum):
    """What an execution is; it decides what the row means."""

    TRADE = "Trade"
    FUNDING = "Funding"
    ADL_TRADE = "AdlTrade"
    BUST_TRADE = "BustTrade"
    SETTLE = "Settle"
    DELIVERY = "Delivery"
    BLOCK_TRADE = "BlockTrade"
    MOVE_POSITION = "MovePosition"

    @property
    def moves_position(self) -> bool:
        """Whether its quantity was bought or sold; a funding payment only names the position that paid."""
        return self is not ExecType.FUNDING

    @property
    def by_exchange(self) -> bool:
        """Whether the exchange did it without an order of ours: a person must hear of it."""
        return self in (ExecType.ADL_TRADE, ExecType.BUST_TRADE, ExecType.SETTLE, ExecType.DELIVERY)


@dataclass(frozen=True)
class Instrument:
    """Rules of one linear perpetual that settles in USDT.

    Parameters
    ----------
    symbol
        As the exchange names it, for example ``BTCUSDT``.
    tick
        Step of prices, USD.
    lot
        Step of quantities, coins.
    min_qty, max_qty, max_market_qty
        Smallest quantity of any order, largest of a limit and of a market order, coins.
    min_notional
        Smallest value of an order, USD.

    Raises
    ------
    OrderRefusedError
        If a step or a bound is not a positive finite number, or no quantity can satisfy them.
    """

    symbol: str
    tick: Decimal
    lot: Decimal
    min_qty: Decimal
    max_qty: Decimal
    max_market_qty: Decimal
    min_notional: Decimal = ZERO

    def __post_init__(self) -> None:
        for name in ("tick", "lot", "min_qty", "max_qty", "max_market_qty"):
            value = getattr(self, name)
            if not (value.is_finite() and value > 0):
                raise OrderRefusedError(f"{self.symbol}: {name} is {value}; load the instrument from the exchange")
        if not self.lot <= self.min_qty <= min(self.max_qty, self.max_market_qty) / 2:
            raise OrderRefusedError(
                f"{self.symbol}: no quantity fits a lot of {self.lot}, a minimum of {self.min_qty} and maxima of "
                f"{self.max_qty} and {self.max_market_qty}; load the instrument from the exchange"
            )
        if not (self.min_notional.is_finite() and self.min_notional >= 0):
            raise OrderRefusedError(
                f"{self.symbol}: min_notional is {self.min_notional}; load the instrument from the exchange"
            )


@dataclass(frozen=True)
class OrderRequest:
    """An order as it will be sent, already rounded.

    Parameters
    ----------
    order_link_id
        Ours, the only key that makes a repeated request harmless: 1 to 36 of ``A-Za-z0-9_-``.
    qty
        Coins, positive.
    price
        Worst price, USD; None for a market order.
    reduce_only
        Never opens or turns a position.
    stop_loss
        Trigger price of the protective stop of the whole position; not together with ``reduce_only``, which the
        exchange refuses.
    slippage_bp
        How far a market order may go from the price, basis points; None for the exchange's own bound.

    Raises
    ------
    OrderRefusedError
        If the parts do not fit together.
    """

    order_link_id: str
    symbol: str
    side: Side
    order_type: OrderType
    qty: Decimal
    price: Decimal | None = None
    time_in_force: TimeInForce = TimeInForce.IOC
    reduce_only: bool = False
    stop_loss: Decimal | None = None
    stop_trigger_by: TriggerBy = TriggerBy.LAST
    slippage_bp: Decimal | None = None

    def __post_init__(self) -> None:
        what = f"order {self.order_link_id} ({self.side} {self.qty} {self.symbol})"
        if not LINK_ID.fullmatch(self.order_link_id):
            raise OrderRefusedError(f"{what}: its id must be 1 to 36 of A-Z, a-z, 0-9, - and _")
        for name in ("qty", "price", "stop_loss", "slippage_bp"):
            value = getattr(self, name)
            if value is not None and not (value.is_finite() and value > 0):
                raise OrderRefusedError(f"{what}: {name} is {value}; it must be a positive number")
        if (self.price is None) != (self.order_type is OrderType.MARKET):
            raise OrderRefusedError(f"{what}: a limit order has a price and a market order has none, not {self.price}")
        if self.order_type is OrderType.MARKET and self.time_in_force is not TimeInForce.IOC:
            raise OrderRefusedError(f"{what}: a market order is always IOC, not {self.time_in_force}")
        if self.reduce_only and self.stop_loss is not None:
            raise OrderRefusedError(f"{what}: the exchange refuses a stop on a reduce-only order; leave it out")
        wrong_side = (
            self.stop_loss is not None
            and self.price is not None
            and (self.price - self.stop_loss) * self.side.sign <= 0
        )
        if wrong_side:
            raise OrderRefusedError(
                f"{what}: the stop at {self.stop_loss} is on the winning side of the price {self.price}"
            )


@dataclass(frozen=True)
class OrderSnapshot:
    """An order as the exchange described it at one moment.

    Parameters
    ----------
    order_id, order_link_id
        The exchange's and ours; ours is empty for orders that we did not send (stops, other people's).
    qty, filled_qty, filled_value, fee
        Asked for and traded so far, coins; value of what was traded and fees paid for it, USD.
    price, stop_loss, trigger_price
        USD, None where there is none.
    stop_order_type
        Empty for a plain order, else the exchange's word (``StopLoss`` ...).
    reject_reason, cancel_type
        The exchange's words, empty where there is nothing to say.
    created_ms, updated_ms
        The exchange's clock.
    """

    order_id: str
    order_link_id: str
    symbol: str
    side: Side
    order_type: OrderType
    status: OrderStatus
    qty: Decimal
    filled_qty: Decimal
    filled_value: Decimal
    fee: Decimal
    price: Decimal | None
    time_in_force: TimeInForce
    reduce_only: bool
    created_ms: int
    updated_ms: int
    stop_loss: Decimal | None = None
    trigger_price: Decimal | None = None
    stop_order_type: str = ""
    reject_reason: str = ""
    cancel_type: str = ""

    @property
    def terminal(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.status.terminal

    @property
    def average_price(self) -> Decimal | None:
        """Of what was traded, USD; None before the first fill."""
        return self.filled_value / self.filled_qty if self.filled_qty else None


@dataclass(frozen=True)
class Execution:
    """One row of the exchange's execution list; ``kind`` says what it is.

    Parameters
    ----------
    exec_id
        The exchange's; the same whether it came by websocket or by asking.
    order_id, order_link_id
        Empty where there is no order of ours.
    side
        Of what was traded; for a funding payment the side of the position.
    qty, price, value
        Coins, USD a coin, USD; positive.
    fee
        USD, positive when paid: also a funding payment.
    closed_qty
        How many of the coins closed a position.
    exec_ms
        The exchange's clock.
    seq
        The exchange's sequence, orders rows of one millisecond; -1 unknown.
    stop_type
        The exchange's word for the stop that traded (``StopLoss`` ...); empty for every other order.
    """

    exec_id: str
    kind: ExecType
    order_id: str
    order_link_id: str
    symbol: str
    side: Side
    qty: Decimal
    price: Decimal
    value: Decimal
    fee: Decimal
    fee_rate: Decimal
    is_maker: bool
    closed_qty: Decimal
    exec_ms: int
    seq: int = -1
    stop_type: str = ""


@dataclass(frozen=True)
class PositionSnapshot:
    """A position in one-way mode as the exchange described it.

    Parameters
    ----------
    size
        Coins, signed: negative for a short position.
    average_price
        Of the entry, USD; None when flat.
    mark_price, liquidation_price, stop_loss
        USD, None where there is none.
    unrealised
        USD at the mark price.
    status
        ``Normal``, ``Liq`` or ``Adl``.
    """

    symbol: str
    size: Decimal
    average_price: Decimal | None
    mark_price: Decimal | None
    unrealised: Decimal
    leverage: Decimal | None
    liquidation_price: Decimal | None
    stop_loss: Decimal | None
    status: str
    updated_ms: int
    seq: int = -1

    @property
    def flat(self) -> bool:
        """Whether nothing is held."""
        return self.size == 0


@dataclass(frozen=True)
class CoinBalance:
    """One coin of a wallet, in that coin: equity = wallet_balance + unrealised."""

    coin: str
    wallet_balance: Decimal
    equity: Decimal
    unrealised: Decimal
    usd_value: Decimal


@dataclass(frozen=True)
class WalletSnapshot:
    """A unified account as the exchange described it; amounts in USD, rates as fractions (None where not given)."""

    total_equity: Decimal
    total_wallet_balance: Decimal
    total_margin_balance: Decimal
    total_available: Decimal
    initial_margin_rate: Decimal | None
    maintenance_margin_rate: Decimal | None
    coins: tuple[CoinBalance, ...]
    at_ms: int

    def coin(self, name: str) -> CoinBalance:
        """Return one coin, all zero where the account does not list it."""
        found = next((coin for coin in self.coins if coin.coin == name), None)
        return CoinBalance(name, ZERO, ZERO, ZERO, ZERO) if found is None else found


@dataclass(frozen=True)
class WalletEvent:
    """One row of the transaction log: ``change = cash_flow + funding - fee``, and the balance after it.

    Parameters
    ----------
    event_id
        The exchange's.
    kind
        The exchange's word: TRADE, SETTLEMENT, LIQUIDATION, ADL, TRANSFER_IN, TRANSFER_OUT ...
    coin
        What the amounts are in.
    exec_id, order_link_id, symbol
        Empty where the row does not belong to one.
    """

    event_id: str
    kind: str
    coin: str
    at_ms: int
    cash_flow: Decimal
    funding: Decimal
    fee: Decimal
    change: Decimal
    balance: Decimal
    symbol: str = ""
    exec_id: str = ""
    order_link_id: str = ""


@dataclass(frozen=True)
class Quote:
    """Prices of one moment, USD; coins at the best bid and ask."""

    symbol: str
    bid: Decimal
    ask: Decimal
    bid_qty: Decimal
    ask_qty: Decimal
    last: Decimal
    mark: Decimal
    at_ms: int

    @property
    def spread(self) -> Decimal:
        """(ask - bid) / middle, fraction."""
        return (self.ask - self.bid) * 2 / (self.ask + self.bid)
