"""What follows from the facts in the book: states of orders and intents, positions, wallets. Pure.

An order may be told of late and out of order: a terminal status stands whatever is told after it, and the traded
quantity never falls. An attempt is *proven* over when

- the exchange described its order in a terminal status, or
- every time it was sent, the exchange answered with a definite refusal.

A refusal after an unanswered send proves nothing: the first one may have arrived.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final

from mlbot_core.execution.intents import Intent
from mlbot_core.execution.types import (
    ZERO,
    Execution,
    ExecutionError,
    OrderRequest,
    OrderSnapshot,
    OrderStatus,
    WalletEvent,
)

FLOW_KINDS: Final = frozenset(("TRANSFER_IN", "TRANSFER_OUT", "DEPOSIT", "WITHDRAW"))
TRADING_KINDS: Final = frozenset(("TRADE", "SETTLEMENT", "LIQUIDATION", "ADL", "DELIVERY"))


class LedgerConflictError(ExecutionError):
    """Two different things claim the same name; a person must look."""


class AttemptEvent(StrEnum):
    """What happened to an attempt besides what its order tells.

    ``SENT`` is written before each send. ``ABSENT`` says that none of realtime, history and executions knew the id
    after every send had grown too old to be accepted; ``FORGOTTEN`` that the exchange had shown the order, a day ago or
    longer, and lists it nowhere any more.
    """

    SENT = "sent"
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    AMBIGUOUS = "ambiguous"
    ABSENT = "absent"
    FORGOTTEN = "forgotten"


class IntentStatus(StrEnum):
    """Of an intent: planned (nothing sent), pending (sent, nothing known), working, unfinished (its last order is over
    and some is left), complete, closed (given up)."""

    PLANNED = "planned"
    PENDING = "pending"
    WORKING = "working"
    UNFINISHED = "unfinished"
    COMPLETE = "complete"
    CLOSED = "closed"


class Closing(StrEnum):
    """Why nothing more is traded for an intent. ``FILLED`` and ``FLAT`` (the position was confirmed to be none) are
    completions; ``CAPPED``: what is left is less than an order, or does not fit below the cap."""

    FILLED = "filled"
    FLAT = "flat"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    REFUSED = "refused"
    HALTED = "halted"
    CAPPED = "capped"

    @property
    def complete(self) -> bool:
        """Whether the intent reached what it was for."""
        return self in (Closing.FILLED, Closing.FLAT)


@dataclass(frozen=True)
class AttemptState:
    """One order for an intent, as far as it is known.

    Parameters
    ----------
    sends, refusals
        How often it was sent and definitely refused.
    answered
        Whether the exchange said that it took it.
    absent, forgotten
        Whether it was looked for everywhere, in time, and not found; whether it was seen once and is listed no more.
    order
        The newest that the exchange told of it.
    filled_qty
        Coins, from its order and its fills, whichever told more.
    """

    order_link_id: str
    attempt: int
    request: OrderRequest
    begun_ms: int
    sends: int
    refusals: int
    answered: bool
    absent: bool
    order: OrderSnapshot | None
    filled_qty: Decimal
    forgotten: bool = False

    @property
    def proven(self) -> bool:
        """Whether it is certain that nothing more comes of it."""
        if self.order is not None:
            return self.order.terminal or self.forgotten
        return self.sends == self.refusals and not self.filled_qty

    @property
    def over(self) -> bool:
        """Whether its intent may be given up: proven, or not to be found."""
        return self.proven or (self.absent and self.order is None and not self.filled_qty)


@dataclass(frozen=True)
class IntentState:
    """An intent, its attempts in order, and why it was closed (None while it is open)."""

    intent: Intent
    attempts: tuple[AttemptState, ...]
    closing: Closing | None

    @property
    def filled_qty(self) -> Decimal:
        """Coins."""
        return sum((attempt.filled_qty for attempt in self.attempts), ZERO)

    @property
    def remaining(self) -> Decimal:
        """Coins still to trade; never negative."""
        return max(ZERO, self.intent.qty - self.filled_qty)

    @property
    def last(self) -> AttemptState | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def next_attempt(self) -> int:
        """Number of the attempt that would come next, from 0."""
        return len(self.attempts)

    @property
    def complete(self) -> bool:
        """Whether it reached what it was for."""
        return self.closing is not None and self.closing.complete

    @property
    def status(self) -> IntentStatus:
        """In one word."""
        if self.closing is not None:
            return IntentStatus.COMPLETE if self.closing.complete else IntentStatus.CLOSED
        if self.last is None:
            return IntentStatus.PLANNED
        if self.last.proven:
            return IntentStatus.UNFINISHED if self.remaining else IntentStatus.COMPLETE
        return IntentStatus.PENDING if self.last.order is None else IntentStatus.WORKING


@dataclass(frozen=True)
class PositionView:
    """A position as the fills make it.

    Parameters
    ----------
    size
        Signed coins.
    average_price
        Of the entry, USD; 0 when flat.
    realised
        Profit of what was closed, USD, fees and funding not taken off.
    fees, funding
        Paid, USD; negative when received.
    """

    symbol: str
    size: Decimal = ZERO
    average_price: Decimal = ZERO
    realised: Decimal = ZERO
    fees: Decimal = ZERO
    funding: Decimal = ZERO


@dataclass(frozen=True)
class WalletView:
    """One coin of a wallet as its log makes it, in that coin.

    Parameters
    ----------
    opening
        Balance before the first event.
    balance
        After the last.
    flows
        Deposits less withdrawals.
    trading
        Profits, fees and funding together.
    other
        Changes of kinds that are neither: bonuses, interest ... to be looked at.
    breaks
        Ids of events whose balance does not follow from the one before: something is missing between them.
    """

    coin: str
    opening: Decimal
    balance: Decimal
    flows: Decimal
    trading: Decimal
    other: Decimal
    breaks: tuple[str, ...]


def order_state(snapshots: Sequence[OrderSnapshot]) -> OrderSnapshot | None:
    """Return the snapshot that stands, of all that were told of one order; None of none.

    Raises
    ------
    LedgerConflictError
        If they contradict each other: another side or symbol, or two different ends.
    """
    if not snapshots:
        return None
    first = snapshots[0]
    ends: dict[OrderStatus, OrderSnapshot] = {}
    for other in snapshots:
        for name in ("order_id", "order_link_id", "symbol", "side", "reduce_only"):
            if getattr(other, name) != getattr(first, name):
                raise LedgerConflictError(
                    f"order {first.order_link_id or first.order_id} was told with {name} {getattr(first, name)!r} and "
                    f"with {getattr(other, name)!r}; halt, and ask the exchange which it is"
                )
        if other.terminal:
            ends[other.status] = other
    if len(ends) > 1:
        raise LedgerConflictError(
            f"order {first.order_link_id or first.order_id} was told to have ended as "
            f"{' and as '.join(f'{end.status} with {end.filled_qty}' for end in ends.values())}; "
            "halt, and ask the exchange which it is"
        )
    pool = [s for s in snapshots if s.terminal] or list(snapshots)
    return max(pool, key=lambda s: (s.filled_qty, s.updated_ms, s.status is not OrderStatus.UNTRIGGERED))


def fold_attempt(
    order_link_id: str,
    attempt: int,
    request: OrderRequest,
    begun_ms: int,
    events: Iterable[AttemptEvent],
    snapshots: Sequence[OrderSnapshot],
    fills: Iterable[Execution],
) -> AttemptState:
    """Return the state of an attempt; ``events`` in the order in which they were written."""
    told = list(events)
    order = order_state(snapshots)
    traded = sum((fill.qty for fill in fills if fill.kind.moves_position), ZERO)
    sends = told.count(AttemptEvent.SENT)
    last_send = max((n for n, event in enumerate(told) if event is AttemptEvent.SENT), default=-1)
    return AttemptState(
        order_link_id,
        attempt,
        request,
        begun_ms,
        sends,
        told.count(AttemptEvent.REFUSED),
        AttemptEvent.ACKNOWLEDGED in told,
        AttemptEvent.ABSENT in told[last_send + 1 :],
        order,
        max(traded, ZERO if order is None else order.filled_qty),
        AttemptEvent.FORGOTTEN in told[last_send + 1 :],
    )


def fold_key(fill: Execution) -> tuple[int, int, str]:
    """Return what orders executions as the exchange does: time, then sequence."""
    return (fill.exec_ms, fill.seq, fill.exec_id)


def fold_positions(
    fills: Iterable[Execution], before: Mapping[str, PositionView] | None = None
) -> dict[str, PositionView]:
    """Return every symbol's position from its executions, by the exchange's order of them (:func:`fold_key`).

    The entry price is the average of what was added; closing leaves it, turning starts it anew.

    Parameters
    ----------
    before
        What earlier executions made; none by default.
    """
    views: dict[str, PositionView] = dict(before or {})
    for fill in sorted(fills, key=fold_key):
        view = views.get(fill.symbol, PositionView(fill.symbol))
        if not fill.kind.moves_position:
            views[fill.symbol] = PositionView(
                view.symbol, view.size, view.average_price, view.realised, view.fees, view.funding + fill.fee
            )
            continue
        views[fill.symbol] = _filled(view, fill)
    return views


def _filled(view: PositionView, fill: Execution) -> PositionView:
    signed = fill.qty * fill.side.sign
    closing = min(abs(signed), abs(view.size)) if view.size * signed < 0 else ZERO
    sign = 1 if view.size > 0 else -1
    realised = view.realised + closing * sign * (fill.price - view.average_price)
    size = view.size + signed
    opening = fill.qty - closing
    kept = abs(view.size) - closing
    average = ZERO
    if size:
        average = (
            (kept * view.average_price + opening * fill.price) / (kept + opening) if opening else view.average_price
        )
    return PositionView(view.symbol, size, average, realised, view.fees + fill.fee, view.funding)


def fold_wallet(events: Iterable[WalletEvent]) -> dict[str, WalletView]:
    """Return every coin's wallet from its log; rows of one millisecond are put in the order that links them."""
    by_coin: dict[str, list[WalletEvent]] = {}
    for event in events:
        by_coin.setdefault(event.coin, []).append(event)
    return {coin: _wallet(coin, rows) for coin, rows in sorted(by_coin.items())}


def _wallet(coin: str, rows: list[WalletEvent]) -> WalletView:
    ordered = _linked(rows)
    opening = ordered[0].balance - ordered[0].change
    running, breaks = opening, []
    for event in ordered:
        if event.balance - event.change != running:
            breaks.append(event.event_id)
        running = event.balance
    sums = {
        name: sum((event.change for event in ordered if kind(event)), ZERO)
        for name, kind in (
            ("flows", lambda event: event.kind in FLOW_KINDS),
            ("trading", lambda event: event.kind in TRADING_KINDS),
            ("other", lambda event: event.kind not in FLOW_KINDS | TRADING_KINDS),
        )
    }
    return WalletView(coin, opening, running, **sums, breaks=tuple(breaks))


def _linked(rows: list[WalletEvent]) -> list[WalletEvent]:
    waiting = sorted(rows, key=lambda event: (event.at_ms, event.event_id))
    ordered: list[WalletEvent] = []
    while waiting:
        together = [event for event in waiting if event.at_ms == waiting[0].at_ms]
        if ordered:
            before = ordered[-1].balance
            chosen = next((e for e in together if e.balance - e.change == before), together[0])
        else:
            after = [event.balance for event in together]
            chosen = next((e for e in together if e.balance - e.change not in after), together[0])
        ordered.append(chosen)
        waiting.remove(chosen)
    return ordered
