"""Close a position now, with nothing but a broker: no lock, no ledger, no model. What was done is recorded afterwards.

All orders are cancelled but the stops, which protect until the end; the position is closed with reduce-only market
orders no larger than the exchange takes; position and orders are looked at again until both are gone, twice; then the
stops that are left are cancelled. Each request is sent once, under an id of its own. Where its answer is lost the next
look at the position tells what it did, and a second order cannot do harm: the exchange bounds a reduce-only order by
the position that is left.

Ids of these orders are ``flat-<trigger>-<time>-<random>-<number>``: who asked (up to 10 letters), UTC ms in base 36,
6 hexadecimal digits, counted from 1; at most 36 characters. A process may send only within a lease from its last look,
so one that is frozen in between wakes without the right to.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final, TypeVar

from mlbot_core.clock import Clock
from mlbot_core.errors import UsageError
from mlbot_core.execution.broker import Accepted, Ambiguous, Broker, BrokerError, DefiniteReject, Next, Outcome
from mlbot_core.execution.rounding import steps_down
from mlbot_core.execution.safety import Lease
from mlbot_core.execution.types import (
    ZERO,
    ExecutionError,
    Instrument,
    OrderRequest,
    OrderSnapshot,
    OrderType,
    PositionSnapshot,
    Side,
)

T = TypeVar("T")

_ID: Final = re.compile(r"flat-([a-z]{1,10})-([0-9a-z]{1,9})-([0-9a-f]{6})-([0-9]{1,3})")
_TRIGGER: Final = re.compile(r"[a-z]{1,10}")
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
# Patience is measured by the clock, which may run fast or stand still: so many looks are made in any case, and no more
# than so many orders are ever sent.
_LEAST_ROUNDS: Final = 8
_MOST_ORDERS: Final = 200
_LEASE_S: Final = 10.0
_SHORTEST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0
_MOST_NOTES: Final = 50


@dataclass(frozen=True)
class EmergencyOrder:
    """One order that was sent to close: its id, what was asked for (coins) and what the exchange said."""

    order_link_id: str
    side: Side
    qty: Decimal
    sent_ms: int
    outcome: str
    detail: str


@dataclass(frozen=True)
class FlattenReport:
    """What was done.

    Parameters
    ----------
    trigger, reason
        Who asked and why.
    run
        Names this run: the common beginning of its orders' ids.
    flat
        Whether no position was left at the end, as the exchange says.
    clear
        Whether no order was left either.
    held, left
        Coins, signed, at the first and at the last look; None where it never succeeded.
    notes
        What went wrong on the way, in order, for people.
    """

    symbol: str
    trigger: str
    reason: str
    run: str
    started_ms: int
    ended_ms: int
    flat: bool
    clear: bool
    held: Decimal | None
    left: Decimal | None
    orders: tuple[EmergencyOrder, ...]
    notes: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether neither a position nor an order is left."""
        return self.flat and self.clear

    def in_words(self) -> str:
        """Return one line about it."""
        took = f"{(self.ended_ms - self.started_ms) / 1000:.1f} s"
        sent = f"{len(self.orders)} closing order{'' if len(self.orders) == 1 else 's'}"
        if self.done and not self.held and not self.orders:
            return f"{self.symbol}: nothing was held; orders are cancelled ({took})"
        if self.flat:
            tail = "" if self.clear else "; some orders could not be cancelled"
            return f"{self.symbol}: flat, was {self.held} ({sent}, {took}){tail}"
        left = "an unknown position" if self.left is None else f"{self.left}"
        return (
            f"{self.symbol}: NOT FLAT, {left} is left ({sent}, {took}): {self.notes[-1] if self.notes else 'unknown'}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        plain = {name: value for name, value in self.__dict__.items() if name not in ("held", "left", "orders")}
        return {
            **plain,
            "notes": list(self.notes),
            "held": None if self.held is None else str(self.held),
            "left": None if self.left is None else str(self.left),
            "orders": [{**order.__dict__, "side": str(order.side), "qty": str(order.qty)} for order in self.orders],
        }


def is_emergency(order_link_id: str) -> bool:
    """Return whether an ``orderLinkId`` is one of an emergency close; such orders are in no plan."""
    return _ID.fullmatch(order_link_id) is not None


def emergency_trigger(order_link_id: str) -> str | None:
    """Return who asked for an emergency close by the id of its order, None for any other id."""
    found = _ID.fullmatch(order_link_id)
    return None if found is None else found[1]


def run_name(trigger: str, now_ms: int) -> str:
    """Return the beginning of the ids of one run.

    Raises
    ------
    UsageError
        If the trigger is not 1 to 10 lower-case letters or the time is negative.
    """
    if not _TRIGGER.fullmatch(trigger) or now_ms < 0:
        raise UsageError(f"trigger {trigger!r} must be 1 to 10 lower-case letters and the time {now_ms} not negative")
    digits, rest = "", now_ms
    while rest or not digits:
        rest, digit = divmod(rest, 36)
        digits = _DIGITS[digit] + digits
    return f"flat-{trigger}-{digits}-{secrets.token_hex(3)}"


def flatten_now(
    broker: Broker,
    symbol: str,
    clock: Clock,
    *,
    trigger: str,
    reason: str,
    patience_s: float = 60.0,
    confirm_s: float = 0.5,
    tell: Callable[[str], None] | None = None,
) -> FlattenReport:
    """Cancel, close, and look until flat; never raises for what exchange or network do.

    Parameters
    ----------
    trigger
        Who asks: 1 to 10 lower-case letters, part of the orders' ids.
    reason
        For people.
    patience_s
        It is given up after so long, seconds of ``clock``.
    confirm_s
        Flat counts when it was seen twice, so far apart: an order may have been on its way.
    tell
        Hears what happens while it does.

    Raises
    ------
    UsageError
        If the trigger is not one.
    """
    return _Flattening(broker, symbol, clock, trigger, reason, tell).run(patience_s, confirm_s)


class _Flattening:
    """One run and what it has seen so far."""

    def __init__(
        self,
        broker: Broker,
        symbol: str,
        clock: Clock,
        trigger: str,
        reason: str,
        tell: Callable[[str], None] | None,
    ) -> None:
        self._broker = broker
        self._symbol = symbol
        self._clock = clock
        self._tell = tell
        self._started_ms = clock.now_ms()
        self._run = run_name(trigger, self._started_ms)
        self._trigger, self._reason = trigger, reason
        self._lease = Lease(_LEASE_S, clock)
        self._orders: list[EmergencyOrder] = []
        self._notes: list[str] = []
        self._held: Decimal | None = None
        self._left: Decimal | None = None
        self._clear = False
        self._most: Decimal | None = None
        self._wait_s = 0.0

    def run(self, patience_s: float, confirm_s: float) -> FlattenReport:
        """Go on until flat and clear twice, or until patience ends."""
        give_up_ms = self._started_ms + int(1000 * patience_s)
        flat_since: int | None = None
        failures = rounds = 0
        # before anything is asked: what is cancelled first cannot trade while the answer is waited for
        self._lease.renew()
        self._cancel(keep_stops=True)
        while True:
            rounds += 1
            self._wait_s = 0.0
            went_well = self._round()
            now = self._clock.now_ms()
            if went_well and self._left == 0 and self._clear:
                flat_since = now if flat_since is None else flat_since
                if now - flat_since >= 1000 * confirm_s:
                    break
            else:
                flat_since = None
            failures = 0 if went_well else failures + 1
            if now >= give_up_ms and rounds >= _LEAST_ROUNDS:
                self._note(f"given up after {(now - self._started_ms) / 1000:.0f} s and {rounds} looks")
                break
            pause_s = confirm_s if flat_since is not None else _SHORTEST_PAUSE_S * 2 ** min(failures, 10)
            self._clock.sleep(max(_SHORTEST_PAUSE_S, min(max(pause_s, self._wait_s), 2 * _LONGEST_PAUSE_S)))
        return self._report()

    def _round(self) -> bool:
        """Look once and do what is left to do; return whether everything was answered."""
        # what is sent below rests on this look: a process frozen since then has no lease when it wakes
        self._lease.renew()
        position = self._ask("the position", lambda: self._broker.position(self._symbol))
        orders = self._ask("the open orders", lambda: self._broker.open_orders(self._symbol))
        sent_well = True
        if position is not None:
            self._left = position.size
            self._held = position.size if self._held is None else self._held
            if not position.flat:
                sent_well = self._close(position)
        if orders is not None:
            sent_well = self._tidy(position, orders) and sent_well
        return position is not None and orders is not None and sent_well

    def _tidy(self, position: PositionSnapshot | None, orders: tuple[OrderSnapshot, ...]) -> bool:
        """Cancel orders that could open something now, and stops once there is nothing to protect."""
        self._clear = not orders
        if any(not order.stop_order_type for order in orders):
            return self._cancel(keep_stops=True)
        if orders and position is not None and position.flat:
            return self._cancel(keep_stops=False)
        return True

    def _close(self, position: PositionSnapshot) -> bool:
        rules = self._ask("the rules of the instrument", lambda: self._broker.instrument(self._symbol))
        if rules is None:
            return False
        if len(self._orders) >= _MOST_ORDERS:
            self._note(f"{_MOST_ORDERS} closing orders were sent and {position.size} is left; a person must look")
            return False
        qty = self._slice(abs(position.size), rules)
        if qty < rules.min_qty:
            self._note(f"{position.size} is less than the smallest order of {rules.min_qty}; close it by hand")
            return False
        link = f"{self._run}-{len(self._orders) + 1}"
        side = Side.of(position.size).opposite
        order = OrderRequest(link, self._symbol, side, OrderType.MARKET, qty, reduce_only=True)
        sent_ms = self._clock.now_ms()
        outcome = self._broker.place(order, may_send=self._lease.valid)
        self._orders.append(EmergencyOrder(link, side, qty, sent_ms, *_told(outcome)))
        if isinstance(outcome, Accepted):
            self._say(f"sent {side} {qty} {self._symbol}, reduce-only")
            self._most = None
            return True
        if isinstance(outcome, DefiniteReject) and outcome.name == "nothing_to_reduce":
            # flat already, or another close is at work: the next look tells
            return True
        if isinstance(outcome, DefiniteReject) and outcome.then in (Next.ORDER, Next.REFRESH):
            # the exchange may take less than it says
            self._most = max(rules.min_qty, steps_down(qty / 2, rules.lot))
        self._failed(f"closing order {link}", outcome)
        return False

    def _slice(self, size: Decimal, rules: Instrument) -> Decimal:
        most = rules.max_market_qty if self._most is None else min(rules.max_market_qty, self._most)
        return steps_down(min(size, most), rules.lot)

    def _cancel(self, *, keep_stops: bool) -> bool:
        outcome = self._broker.cancel_all(self._symbol, keep_stops=keep_stops, may_send=self._lease.valid)
        if isinstance(outcome, Accepted):
            return True
        self._failed("cancelling all orders", outcome)
        return False

    def _failed(self, what: str, outcome: Outcome) -> None:
        word, detail = _told(outcome)
        self._note(f"{what}: {word}, {detail}")
        if isinstance(outcome, DefiniteReject) and outcome.retry_at_ms is not None:
            self._wait_s = (outcome.retry_at_ms - self._clock.now_ms()) / 1000

    def _ask(self, what: str, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except BrokerError as error:
            self._note(f"{what} could not be read: {error}")
        except ExecutionError as error:
            self._note(f"{what} could not be understood: {error}")
        return None

    def _note(self, text: str) -> None:
        if text not in self._notes[-1:]:
            self._say(text)
            # the first ones tell how it began, the last one how it ended
            self._notes = [*self._notes[: _MOST_NOTES - 1], text]

    def _say(self, text: str) -> None:
        if self._tell is not None:
            self._tell(text)

    def _report(self) -> FlattenReport:
        orders = tuple(self._settled(order) for order in self._orders)
        return FlattenReport(
            self._symbol,
            self._trigger,
            self._reason,
            self._run,
            self._started_ms,
            self._clock.now_ms(),
            self._left == ZERO and self._left is not None,
            self._clear,
            self._held,
            self._left,
            orders,
            tuple(self._notes),
        )

    def _settled(self, order: EmergencyOrder) -> EmergencyOrder:
        """Ask once what became of an order whose answer was lost."""
        if order.outcome != "unknown" or self._left != 0:
            return order
        found = self._ask(f"order {order.order_link_id}", lambda: self._broker.order(self._symbol, order.order_link_id))
        if found is None:
            return order
        return replace(order, outcome="accepted", detail=f"found afterwards: {found.status}, {found.filled_qty} filled")


def _told(outcome: Outcome) -> tuple[str, str]:
    if isinstance(outcome, Accepted):
        return "accepted", outcome.order_id
    if isinstance(outcome, Ambiguous):
        return "unknown", f"{outcome.name}: {outcome.reason}"
    return "refused", f"{outcome.name}: {outcome.reason}"
