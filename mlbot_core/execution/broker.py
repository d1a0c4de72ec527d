"""What every broker offers, and the words it answers in: accepted, refused for certain, or unknown.

A broker sends each request once. What became of a request whose answer was lost is found out by asking
(:meth:`Broker.resolve`), never by sending again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final, Protocol

from mlbot_core.execution.types import (
    Execution,
    ExecutionError,
    Instrument,
    OrderRequest,
    OrderSnapshot,
    PositionSnapshot,
    Quote,
    TriggerBy,
    WalletEvent,
    WalletSnapshot,
)

# Asked right before the bytes of a request are written; False: nothing is sent. It must be quick and must not raise.
MaySend = Callable[[], bool]


class Venue(StrEnum):
    """Where orders go."""

    EMULATOR = "emulator"
    PAPER = "paper"
    DEMO = "demo"
    TESTNET = "testnet"
    MAINNET = "mainnet"


class BrokerError(ExecutionError):
    """A broker could not answer a question, or is not to be used as configured."""


class VenueUnreachableError(BrokerError):
    """The exchange did not give a usable answer to a question, however often it was asked. Asking again may help."""


class VenueClockError(BrokerError):
    """This machine's clock and the exchange's differ too much, or the difference could not be measured."""


class VenueRefusedError(BrokerError):
    """The exchange refused a question; ``code`` is its code, ``then`` what it means for trading."""

    def __init__(self, message: str, *, code: int, then: Next) -> None:
        super().__init__(message)
        self.code = code
        self.then = then


class Next(StrEnum):
    """What a refusal means for what comes next."""

    ORDER = "order"
    """This order is out; others may go on."""
    REFRESH = "refresh"
    """Rules, prices or the wallet are not what they were thought to be: read them again first."""
    LOOK = "look"
    """Position or order are not what they were thought to be: read them again first."""
    WAIT = "wait"
    """Nothing was done; the same may be asked again at ``retry_at_ms``."""
    CLOCK = "clock"
    """Nothing was done; the clock has to be right first."""
    PAUSE = "pause"
    """The symbol cannot be traded at the moment."""
    HALT = "halt"
    """A person has to look: key, account or configuration."""


@dataclass(frozen=True)
class Accepted:
    """The exchange took the request. For an order that means accepted, not filled, and it may still end rejected.

    Parameters
    ----------
    order_id, order_link_id
        Empty where the request was not about one order.
    at_ms
        The exchange's time of the answer, UTC ms.
    unchanged
        Things were already as asked.
    """

    order_id: str = ""
    order_link_id: str = ""
    at_ms: int = 0
    unchanged: bool = False


@dataclass(frozen=True)
class DefiniteReject:
    """Nothing happened at the exchange, for certain.

    Parameters
    ----------
    code
        The exchange's ``retCode`` or HTTP status; 0 where the request was never sent.
    name
        One word for the reason, stable: for tests, ledgers and alerts.
    reason
        For a person.
    then
        What it means for what comes next.
    retry_at_ms
        With :attr:`Next.WAIT`: not before, UTC ms.
    """

    code: int
    name: str
    reason: str
    then: Next
    retry_at_ms: int | None = None


@dataclass(frozen=True)
class Ambiguous:
    """Nobody knows yet whether it happened; :meth:`Broker.resolve` finds out.

    Parameters
    ----------
    name, reason, code
        As of :class:`DefiniteReject`.
    must_exist
        The exchange said that the id is taken: an order with it exists, even if it cannot be seen yet.
    """

    name: str
    reason: str
    code: int = 0
    must_exist: bool = False


Outcome = Accepted | DefiniteReject | Ambiguous


@dataclass(frozen=True)
class Existing:
    """The order exists; its state and what it traded, as far as it can be seen now."""

    order: OrderSnapshot


@dataclass(frozen=True)
class Absent:
    """The order does not exist and never will, or left nothing behind.

    Parameters
    ----------
    asked_ms
        When the last question was asked, UTC ms.
    name
        ``never_seen``: the exchange still remembers all orders of that time and this is none of them;
        ``no_effect``: it is so long ago that an order which ended without a fill would be forgotten, but nothing is
        open and nothing was traded.
    """

    asked_ms: int
    name: str


Resolution = Existing | Absent | Ambiguous


@dataclass(frozen=True)
class ClockCheck:
    """The exchange's clock against ours.

    Parameters
    ----------
    offset_ms
        How far ours is ahead of the exchange's (negative: behind), measured at the middle of the quickest exchange of
        several.
    round_trip_ms
        How long that one took; the true offset is within half of it.
    measured_ms
        When, UTC ms of our clock.
    """

    offset_ms: int
    round_trip_ms: int
    measured_ms: int

    @property
    def worst_ms(self) -> int:
        """Largest offset that the measurement allows for, ms, without sign."""
        return abs(self.offset_ms) + (self.round_trip_ms + 1) // 2


@dataclass(frozen=True)
class Ticker(Quote):
    """Best prices, last, mark and index of one moment, USD."""

    index: Decimal


@dataclass(frozen=True)
class ApiKeyInfo:
    """What a key may do; the key itself is not in it.

    Parameters
    ----------
    fingerprint
        First 16 hex digits of the key's SHA-256: equal for equal keys.
    user_id, parent_id
        Of the account, and of the master above a sub-account (empty for a master).
    can_trade
        Derivatives orders and positions.
    ips
        Addresses it is bound to; empty: any.
    expires_ms
        UTC ms; None: never (bound keys).
    """

    fingerprint: str
    user_id: str
    parent_id: str
    read_only: bool
    can_trade: bool
    can_withdraw: bool
    can_transfer: bool
    ips: tuple[str, ...]
    expires_ms: int | None

    @property
    def sub_account(self) -> bool:
        """Whether it belongs to a sub-account."""
        return bool(self.parent_id)


class Broker(Protocol):
    """An account at an exchange, one-way mode, linear contracts that settle in USDT.

    Questions raise :class:`BrokerError` (one of its kinds) when there is no answer, after a bounded number of
    attempts. Requests never raise for what the exchange or the network does: they return an :data:`Outcome`.
    """

    @property
    def venue(self) -> Venue:
        """Where orders go."""
        ...

    def check_clock(self) -> ClockCheck:
        """Measure the clocks; until it is within bounds :meth:`place` and :meth:`amend` refuse."""
        ...

    def instrument(self, symbol: str) -> Instrument:
        """Return the rules of an instrument that trades."""
        ...

    def ticker(self, symbol: str) -> Ticker:
        """Return prices of now."""
        ...

    def position(self, symbol: str) -> PositionSnapshot:
        """Return the position, also when flat."""
        ...

    def positions(self) -> tuple[PositionSnapshot, ...]:
        """Return every position of the account that is not flat."""
        ...

    def wallet(self) -> WalletSnapshot:
        """Return the account."""
        ...

    def open_orders(self, symbol: str) -> tuple[OrderSnapshot, ...]:
        """Return all open orders, stops included, oldest first."""
        ...

    def order(self, symbol: str, order_link_id: str) -> OrderSnapshot | None:
        """Return one order whatever its state; None where it cannot be seen, which proves nothing."""
        ...

    def executions_since(self, symbol: str, since_ms: int) -> tuple[Execution, ...]:
        """Return the executions of all kinds from ``since_ms`` (UTC) to now, oldest first, each once."""
        ...

    def wallet_events_since(self, since_ms: int) -> tuple[WalletEvent, ...]:
        """Return the transaction log from ``since_ms`` (UTC) to now, oldest first, each once."""
        ...

    def api_key_info(self) -> ApiKeyInfo:
        """Return what the key may do."""
        ...

    def place(self, order: OrderRequest, *, may_send: MaySend) -> Outcome:
        """Send an order, once."""
        ...

    def amend(
        self,
        symbol: str,
        order_link_id: str,
        *,
        may_send: MaySend,
        qty: Decimal | None = None,
        price: Decimal | None = None,
    ) -> Outcome:
        """Change quantity (coins, the whole) or price (USD) of an open order."""
        ...

    def cancel(
        self, symbol: str, order_link_id: str = "", *, order_id: str = "", may_send: MaySend | None = None
    ) -> Outcome:
        """Cancel an open order by our id, or by the exchange's where it has none of ours."""
        ...

    def cancel_all(self, symbol: str, *, keep_stops: bool = True, may_send: MaySend | None = None) -> Outcome:
        """Cancel all open orders; with ``keep_stops`` those that protect a position stay."""
        ...

    def set_trading_stop(
        self,
        symbol: str,
        stop_loss: Decimal | None,
        *,
        may_send: MaySend | None = None,
        trigger_by: TriggerBy = TriggerBy.LAST,
    ) -> Outcome:
        """Set the stop (USD) of the whole position at the exchange; None takes it away."""
        ...

    def set_leverage(self, symbol: str, leverage: Decimal, *, may_send: MaySend | None = None) -> Outcome:
        """Set the leverage of a symbol."""
        ...

    def resolve(self, symbol: str, order_link_id: str, sent_ms: int, *, must_exist: bool = False) -> Resolution:
        """Find out what became of an order that was sent at ``sent_ms`` (UTC, our clock). Never raises BrokerError."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def plain(value: Decimal) -> str:
    """Return a decimal as the wire wants it: all digits, no exponent.

    Raises
    ------
    TypeError
        If it is no Decimal: a float is never sent.
    ValueError
        If it is not finite.
    """
    if not isinstance(value, Decimal):
        raise TypeError(f"{value!r} is a {type(value).__name__}; prices and quantities are Decimals")
    if not value.is_finite():
        raise ValueError(f"{value} is not a number that can be sent")
    return format(value, "f")


def refused(name: str, reason: str, then: Next = Next.ORDER, retry_at_ms: int | None = None) -> DefiniteReject:
    """Return a refusal of our own: nothing was sent."""
    return DefiniteReject(0, name, f"{reason}; nothing was sent", then, retry_at_ms)


_GRID: Final = ("price", "stop_loss")


def rule_violation(order: OrderRequest, instrument: Instrument, last: Decimal | None) -> DefiniteReject | None:
    """Return why an order may not be sent, or None: quantity, price and stop on their grids, sizes within bounds.

    Parameters
    ----------
    last
        Price that values a market order, USD; not needed for limit and reduce-only orders, which have their own or
        no smallest value.
    """
    rules, what = instrument, f"{order.side} {order.qty} {order.symbol}"
    values = (order.qty, order.price, order.stop_loss, order.slippage_bp)
    if any(value is not None and not isinstance(value, Decimal) for value in values):
        return refused("not_decimal", f"{what}: a quantity or price is not a Decimal")
    if order.qty % rules.lot:
        return refused("lot", f"{what}: {order.qty} is not a multiple of {rules.lot}; round it down")
    for name in _GRID:
        value = getattr(order, name)
        if value is not None and value % rules.tick:
            return refused("tick", f"{what}: {name} {value} is not a multiple of {rules.tick}; round it")
    most = rules.max_market_qty if order.price is None else rules.max_qty
    if order.qty < rules.min_qty:
        return refused("min_qty", f"{what}: below the smallest order of {rules.min_qty}")
    if order.qty > most:
        return refused("max_qty", f"{what}: above the largest order of {most}; slice it")
    if order.reduce_only:
        return None
    price = last if order.price is None else order.price
    if price is None:
        return refused("no_price", f"{what}: no price to value it at", Next.REFRESH)
    if order.qty * price < rules.min_notional:
        return refused(
            "min_notional", f"{what} at {price}: worth less than the smallest order, {rules.min_notional} USD"
        )
    return None
