"""What became of an order that was sent: looked up, polled to its end, cancelled with a proof. Nothing is sent anew."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from mlbot_core.clock import Clock
from mlbot_core.execution.broker import Absent, Broker, DefiniteReject, Existing, MaySend, Next
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_folds import AttemptEvent, AttemptState, IntentState
from mlbot_core.execution.ledger_intents import ABSENT_AFTER_MS
from mlbot_core.execution.types import OrderType
from mlbot_core.timeframe import DAY_MS

_END_PAUSES_S: Final = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
_CANCEL_PAUSES_S: Final = (0.0, 0.2, 0.4, 0.8, 1.6)


class Sight(StrEnum):
    """Of an order: over (nothing more comes of it), open, absent (not there now; the same may be sent again) or
    unknown (nobody can tell yet)."""

    OVER = "over"
    OPEN = "open"
    ABSENT = "absent"
    UNKNOWN = "unknown"


class Working:
    """Looks after the orders of a book at the exchange.

    Parameters
    ----------
    reduce
        Asked right before a cancel is written.
    """

    def __init__(self, ledger: ExecutionLedger, broker: Broker, clock: Clock, reduce: MaySend) -> None:
        self._ledger = ledger
        self._broker = broker
        self._clock = clock
        self._reduce = reduce

    def look_up(self, state: IntentState, attempt: AttemptState) -> Sight:
        """Find out how an order stands, write it down, and say it.

        An order that was never seen is waited for: until nothing can come of it any more, or until patience ends.

        Raises
        ------
        BrokerError
            If a question about an order that was seen before stayed without an answer.
        LedgerConflictError
            If what the exchange tells contradicts the book.
        """
        if attempt.over:
            return Sight.OVER
        symbol, link = state.intent.key.symbol, attempt.order_link_id
        if attempt.order is None:
            return self._search(symbol, attempt)
        snapshot = self._broker.order(symbol, link)
        if snapshot is not None:
            self._ledger.observe_order(snapshot)
        elif self._clock.now_ms() - self._ledger.last_send_ms(link) > DAY_MS and not any(
            order.order_link_id == link for order in self._broker.open_orders(symbol)
        ):
            # what ended without a fill is forgotten after a day
            self._ledger.note_answer(link, AttemptEvent.FORGOTTEN, None, "listed nowhere any more")
        else:
            return Sight.UNKNOWN
        return self._sight(link)

    def follow(self, state: IntentState, attempt: AttemptState) -> Sight:
        """Look up an order until it is over, for a few seconds; a limit order that rests is looked up once."""
        sight = self.look_up(state, attempt)
        for pause_s in _END_PAUSES_S:
            lagging = sight is Sight.UNKNOWN and attempt.order is not None
            if not (sight is Sight.OPEN or lagging) or attempt.request.order_type is OrderType.LIMIT:
                break
            self._clock.sleep(pause_s)
            sight = self.look_up(*self._again(attempt))
        return sight

    def cancel(self, state: IntentState, attempt: AttemptState) -> Sight:
        """Take an order back and prove it; what it traded until then is written down.

        What cannot be seen is not cancelled blindly: it is searched for first.
        """
        sight = self.look_up(state, attempt)
        symbol, link = state.intent.key.symbol, attempt.order_link_id
        for pause_s in _CANCEL_PAUSES_S:
            if sight is not Sight.OPEN:
                break
            self._clock.sleep(pause_s)
            outcome = self._broker.cancel(symbol, link, may_send=self._reduce)
            if isinstance(outcome, DefiniteReject) and outcome.then is Next.HALT:
                break
            sight = self.look_up(*self._again(attempt))
        return sight

    def ask_to_cancel(self, symbol: str, order_link_id: str = "", *, order_id: str = "") -> None:
        """Ask once, without waiting for what comes of it."""
        self._broker.cancel(symbol, order_link_id, order_id=order_id, may_send=self._reduce)

    def give_up(self, attempt: AttemptState) -> int | None:
        """Write down that an absent order never arrived; return None, or from when on (UTC ms) that may be said."""
        ready = self._ledger.last_send_ms(attempt.order_link_id) + ABSENT_AFTER_MS
        if self._clock.now_ms() < ready:
            return ready
        self._ledger.note_answer(attempt.order_link_id, AttemptEvent.ABSENT, None, "not to be found")
        return None

    def _search(self, symbol: str, attempt: AttemptState) -> Sight:
        link = attempt.order_link_id
        must_exist = attempt.answered or bool(attempt.filled_qty)
        last = self._ledger.last_send_ms(link)
        if must_exist and self._clock.now_ms() - last > DAY_MS and not attempt.filled_qty:
            # an order without a fill is forgotten by then
            must_exist = False
        # absence counts from the last send, but an order of the first one is older
        moments = [last] if attempt.sends == 1 else [last, attempt.begun_ms]
        for sent_ms in moments:
            found = self._broker.resolve(symbol, link, sent_ms, must_exist=must_exist)
            if isinstance(found, Existing):
                self._ledger.observe_order(found.order)
                return self._sight(link)
            if not isinstance(found, Absent):
                return Sight.UNKNOWN
        return Sight.ABSENT

    def _sight(self, link: str) -> Sight:
        found = self._ledger.attempt(link)
        return Sight.OVER if found is not None and found[1].over else Sight.OPEN

    def _again(self, attempt: AttemptState) -> tuple[IntentState, AttemptState]:
        found = self._ledger.attempt(attempt.order_link_id)
        assert found is not None
        return found
