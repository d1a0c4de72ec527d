"""What we decided, planned and sent: written down before it happens, and never twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy.engine import Connection

from mlbot_core.clock import format_utc
from mlbot_core.execution import ledger_questions as questions
from mlbot_core.execution.identifiers import Leg
from mlbot_core.execution.intents import Intent
from mlbot_core.execution.ledger_folds import AttemptEvent, AttemptState, Closing, IntentState, LedgerConflictError
from mlbot_core.execution.ledger_rows import canonical, from_row, intent_to_row, spell, to_row
from mlbot_core.execution.ledger_schema import ATTEMPT_EVENTS, ATTEMPTS, CLOSINGS, DECISIONS, INTENTS
from mlbot_core.execution.ledger_states import AttemptError, DecisionRecord, StatesLedger
from mlbot_core.execution.types import ZERO, ExecutionError, OrderRequest, Side

# The exchange takes a request at most its receive window (seconds) after its timestamp; what is in no list this long
# after the last send never arrived.
ABSENT_AFTER_MS: Final = 30_000
_DETAIL: Final = 1_000


class DecisionExistsError(ExecutionError):
    """This bar, or a newer one, was decided already."""


class IntentsLedger(StatesLedger):
    """The part of the book that we write."""

    def record_decision(self, decision: DecisionRecord, intents: Sequence[Intent] = ()) -> None:
        """Write down a decision together with its plan: both or neither.

        Raises
        ------
        DecisionExistsError
            If the bar (account, symbol, trigger, time) or a newer one has a decision, even the same one.
        LedgerConflictError
            If an intent is not of this decision.
        """
        with self._writing() as connection:
            self._decide(connection, decision, intents)

    def plan_intent(self, intent: Intent) -> bool:
        """Write down an intent of a recorded decision; return whether it was new.

        Raises
        ------
        LedgerConflictError
            If it is in the book with other content, or its decision is not.
        """
        return bool(self.plan_intents([intent]))

    def plan_intents(self, intents: Iterable[Intent]) -> int:
        """As :meth:`plan_intent` for many, all or none; return how many were new."""
        with self._writing() as connection:
            return self._plan(connection, intents, None)

    def begin_attempt(self, intent_id: str, request: OrderRequest) -> AttemptState:
        """Write down that an order is about to be sent for the first time.

        The caller sends it after this returned, and never without.

        Parameters
        ----------
        request
            Its ``order_link_id`` is that of the intent's next attempt.

        Raises
        ------
        AttemptError
            If the intent is closed, expired or waits for another, if the order before is not proven over, or if the
            request is not one for this intent.
        """
        with self._writing() as connection:
            state = self._state(connection, intent_id)
            self._may_begin(connection, state, request)
            row = {
                "order_link_id": request.order_link_id,
                "intent_id": intent_id,
                "attempt": state.next_attempt,
                "request": canonical(to_row(request)),
            }
            self._insert(connection, ATTEMPTS, row)
            self._note(connection, request.order_link_id, AttemptEvent.SENT)
            begun = self._state(connection, intent_id).last
            assert begun is not None
            return begun

    def resend(self, order_link_id: str) -> OrderRequest:
        """Write down that the same order is about to be sent again under the same id; return it.

        Raises
        ------
        AttemptError
            If it is not known, the exchange has it or may have filled it, or its intent is closed or expired.
        """
        with self._writing() as connection:
            state, attempt = self._attempt(connection, order_link_id)
            why = None
            if attempt != state.last:
                why = "a later attempt was begun"
            elif attempt.order is not None or attempt.filled_qty or attempt.answered:
                why = "the exchange has it"
            elif attempt.proven:
                why = "the exchange refused it"
            else:
                why = self._too_late(state)
            if why is not None:
                raise AttemptError(f"order {order_link_id} is not sent again: {why}; ask the exchange for its state")
            self._note(connection, order_link_id, AttemptEvent.SENT)
            return attempt.request

    def note_answer(
        self, order_link_id: str, kind: AttemptEvent, code: int | None = None, detail: str = ""
    ) -> AttemptState:
        """Write down what came of a send; return what follows.

        Parameters
        ----------
        kind
            ``REFUSED`` only for an answer that definitely means that the order does not exist.
        code, detail
            The exchange's, without secrets.

        Raises
        ------
        AttemptError
            If the order is not known, a send is noted (that is :meth:`resend`), more refusals than sends are noted, or
            it is called absent before :data:`ABSENT_AFTER_MS` have passed since its last send.
        """
        with self._writing() as connection:
            _, attempt = self._attempt(connection, order_link_id)
            if kind is AttemptEvent.SENT:
                raise AttemptError(f"order {order_link_id}: a send is begun with begin_attempt or resend, not noted")
            if kind is AttemptEvent.REFUSED and attempt.refusals >= attempt.sends:
                raise AttemptError(f"order {order_link_id} was sent {attempt.sends} times and refused as often already")
            if kind is AttemptEvent.ABSENT:
                since = self._clock.now_ms() - self._last_send_ms(connection, order_link_id)
                if since < ABSENT_AFTER_MS:
                    raise AttemptError(
                        f"order {order_link_id} was sent {since} ms ago and may still arrive; look again "
                        f"{ABSENT_AFTER_MS} ms after the last send"
                    )
            self._note(connection, order_link_id, kind, code, detail)
            return self._attempt(connection, order_link_id)[1]

    def close_intent(self, intent_id: str, closing: Closing, detail: str = "") -> Closing:
        """Write down that nothing more is traded for an intent; return the reason that stands (the first one).

        Raises
        ------
        AttemptError
            If its last order may still be at work; if it is called filled and is not, or flat and is no close.
        """
        with self._writing() as connection:
            state = self._state(connection, intent_id)
            if state.closing is not None:
                return state.closing
            if state.last is not None and not state.last.over:
                raise AttemptError(
                    f"intent {intent_id} cannot be closed: its order {state.last.order_link_id} is not proven over; "
                    "cancel it or ask the exchange for its state first"
                )
            if closing is Closing.FILLED and state.remaining:
                raise AttemptError(f"intent {intent_id} is not filled: {state.remaining} of {state.intent.qty} is left")
            if closing is Closing.FLAT and state.intent.key.leg is not Leg.CLOSE:
                raise AttemptError(f"intent {intent_id} is an entry; only a close is complete by being flat")
            self._close(connection, intent_id, closing, detail)
            return closing

    def _decide(self, connection: Connection, decision: DecisionRecord, intents: Sequence[Intent]) -> None:
        newest = self._newest_decision(connection, decision.symbol, decision.trigger)
        if newest is not None and newest["ts"] >= decision.ts:
            raise DecisionExistsError(
                f"{self.account} {decision.symbol}: decision {newest['decision_id']} on {format_utc(newest['ts'])} "
                f"was made at {format_utc(newest['decided_ms'])}; {decision.decision_id} on "
                f"{format_utc(decision.ts)} is not made: nothing to do"
            )
        row = {
            "decision_id": decision.decision_id,
            "strategy": decision.strategy,
            "symbol": decision.symbol,
            "trigger": decision.trigger,
            "timeframe": decision.timeframe,
            "ts": decision.ts,
            "decided_ms": decision.decided_ms,
            "target": spell(decision.target),
            "details": canonical(dict(decision.details)),
        }
        self._insert(connection, DECISIONS, row)
        self._plan(connection, intents, decision.decision_id)

    def _plan(self, connection: Connection, intents: Iterable[Intent], decision_id: str | None) -> int:
        new = 0
        for intent in intents:
            key = intent.key
            if key.account != self.account or (decision_id is not None and key.decision_id != decision_id):
                raise LedgerConflictError(
                    f"intent {intent.intent_id} is of account {key.account} and decision {key.decision_id}, not of "
                    f"{self.account} and {decision_id}; plan it for the decision that it belongs to"
                )
            decided = self._ask(connection, questions.DECISION, decision_id=key.decision_id)
            if not decided or (decided[0]["symbol"], decided[0]["strategy"]) != (key.symbol, key.strategy):
                raise LedgerConflictError(
                    f"intent {intent.intent_id} ({key.strategy}, {key.symbol}) belongs to decision {key.decision_id}, "
                    "which is not in the book for them; record the decision first"
                )
            new += self._add(connection, INTENTS, intent_to_row(intent), "intent_id", "intent")
        return new

    def _may_begin(self, connection: Connection, state: IntentState, request: OrderRequest) -> None:
        intent, last = state.intent, state.last
        expected = intent.key.order_link_id(state.next_attempt)
        why = self._too_late(state)
        if last is not None and request.order_link_id == last.order_link_id:
            why = "it was begun already; look what came of it, then resend it under the same id"
        elif why is None and last is not None and not last.proven:
            why = f"order {last.order_link_id} before it is not proven over; ask the exchange for its state"
        elif why is None and request.order_link_id != expected:
            why = f"the id of attempt {state.next_attempt} is {expected}"
        elif why is None and request.qty > state.remaining:
            why = f"{request.qty} is more than the {state.remaining} that is left of {intent.qty}"
        elif why is None:
            why = _misfit(intent, request) or self._waits(connection, intent)
        if why is not None:
            raise AttemptError(f"intent {intent.intent_id}: order {request.order_link_id} is not begun: {why}")

    def _too_late(self, state: IntentState) -> str | None:
        if state.closing is not None:
            return f"its intent was closed ({state.closing.value})"
        if self._clock.now_ms() > state.intent.valid_until_ms:
            return f"its intent was valid until {format_utc(state.intent.valid_until_ms)}; decide anew"
        return None

    def _waits(self, connection: Connection, intent: Intent) -> str | None:
        for before in intent.after:
            if not self._state(connection, before).complete:
                return f"intent {before} is not complete; close the position first and confirm it flat"
        return None

    def _fits(self, connection: Connection, order_link_id: str, symbol: str, side: Side) -> None:
        for row in self._sent(connection, order_link_id):
            request = from_row(OrderRequest, json.loads(row["request"]))
            if (request.symbol, request.side) != (symbol, side):
                raise LedgerConflictError(
                    f"order {order_link_id} was sent as {request.side} {request.symbol} and was told as {side} "
                    f"{symbol}; nothing was changed: halt, and find out which is true"
                )

    def _settle(self, connection: Connection, order_link_id: str) -> None:
        """Close the intent of an order if it is filled now."""
        for row in self._sent(connection, order_link_id):
            state = self._state(connection, row["intent_id"])
            if state.closing is None and not state.remaining:
                self._close(connection, row["intent_id"], Closing.FILLED, "")

    def _close(self, connection: Connection, intent_id: str, closing: Closing, detail: str) -> None:
        row = {"intent_id": intent_id, "reason": closing.value, "detail": detail[:_DETAIL]}
        self._insert(connection, CLOSINGS, row)

    def _note(
        self,
        connection: Connection,
        order_link_id: str,
        kind: AttemptEvent,
        code: int | None = None,
        detail: str = "",
    ) -> None:
        row = {"order_link_id": order_link_id, "kind": kind.value, "code": code, "detail": detail[:_DETAIL]}
        self._insert(connection, ATTEMPT_EVENTS, row)

    def _last_send_ms(self, connection: Connection, order_link_id: str) -> int:
        sent = AttemptEvent.SENT.value
        return int(self._value(connection, questions.NEWEST_EVENT, order_link_id=order_link_id, kind=sent))


def _misfit(intent: Intent, request: OrderRequest) -> str | None:
    """Return why a request is not one for an intent; None if it is."""
    if (request.symbol, request.side) != (intent.key.symbol, intent.side):
        return f"it is {request.side} {request.symbol}, the intent {intent.side} {intent.key.symbol}"
    if request.reduce_only != intent.reduce_only:
        return f"it is reduce-only {request.reduce_only}, the intent {intent.reduce_only}"
    if not intent.reduce_only and (request.stop_loss or ZERO) <= 0:
        return "an entry carries a stop from its first moment"
    return None
