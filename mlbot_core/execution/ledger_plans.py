"""Plans in the book: what replaces what, what goes on for what, and how often was sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy.engine import Connection

from mlbot_core.execution import ledger_questions as questions
from mlbot_core.execution.identifiers import Leg
from mlbot_core.execution.intents import Intent
from mlbot_core.execution.ledger_folds import AttemptEvent, Closing
from mlbot_core.execution.ledger_mirror import Mirror
from mlbot_core.execution.ledger_risk import RiskLedger
from mlbot_core.execution.ledger_schema import ATTEMPT_EVENTS, ATTEMPTS, CLOSINGS
from mlbot_core.execution.ledger_states import BAR, AttemptError, DecisionRecord
from mlbot_core.execution.types import OrderStatus

# What a decision does to the plans before it (in its details); without the word it replaces them all.
REPLACES: Final = "replaces"
ALL: Final = "all"
ENTRIES: Final = "entries"
NONE: Final = "none"


class PlansLedger(RiskLedger):
    """The part of the book that keeps plans apart."""

    def __init__(self, *where: Any, **more: Any) -> None:
        super().__init__(*where, **more)
        self._links: Mirror[str] = Mirror(ATTEMPTS, "order_link_id", lambda row: str(row["order_link_id"]))

    def plan_flatten(
        self, symbol: str, trigger: str, now_ms: int, make: Callable[[int], tuple[DecisionRecord, Sequence[Intent]]]
    ) -> bool:
        """Write down a decision to close everything, unless the closes of such a decision are still open.

        Parameters
        ----------
        make
            From the moment that names it (UTC ms, now or a little later) to the decision and its plan.
        """
        with self._writing() as connection:
            is_open = self._ask(connection, questions.OPEN_LEGS, symbol=symbol, leg=Leg.CLOSE.value)
            replaced = self._replaced(connection, symbol)
            for row in is_open:
                asked = self._ask(connection, questions.DECISION, decision_id=row["decision_id"])
                if asked[0]["trigger"] != BAR and row["intent_id"] not in replaced:
                    return False
            newest = self._newest_decision(connection, symbol, trigger)
            at = now_ms if newest is None else max(now_ms, int(newest["ts"]) + 1)
            self._decide(connection, *make(at))
            return True

    def go_on_as(self, intent_id: str, successor: Intent) -> None:
        """Close an intent and plan the one that goes on for it: both or neither.

        Raises
        ------
        AttemptError
            If its last order is not proven over or absent.
        """
        with self._writing() as connection:
            state = self._state(connection, intent_id)
            if state.closing is not None:
                return
            if state.last is not None and not state.last.over:
                raise AttemptError(
                    f"intent {intent_id} cannot be followed: order {state.last.order_link_id} is not over"
                )
            self._close(connection, intent_id, Closing.SUPERSEDED, f"goes on as {successor.intent_id}")
            self._plan(connection, [successor], successor.key.decision_id)

    def unseen_ends(self, symbol: str, since_ms: int) -> list[str]:
        """Return the ids of orders begun since an instant whose end the exchange has not told, of closed intents.

        An intent may be completed by its fills, or given up, before its order was seen to its end.
        """

        def find(connection: Connection) -> list[str]:
            begun = self._ask(connection, questions.ATTEMPTS_OF_CLOSED, recorded_ms=since_ms)
            if not begun:
                return []
            links = {row["order_link_id"] for row in begun}
            told = self._ask(connection, questions.ORDERS_AMONG, order_link_id=sorted(links))
            ended = {row["order_link_id"] for row in told if OrderStatus(row["status"]).terminal}
            owners = {row["intent_id"] for row in begun if row["order_link_id"] not in ended}
            states = self._find(connection, questions.INTENTS_AMONG, symbol=symbol, intent_id=sorted(owners))
            return [
                attempt.order_link_id
                for state in states
                for attempt in state.attempts
                if attempt.order_link_id in links - ended and not attempt.proven
            ]

        nothing: list[str] = []
        return self._reading(CLOSINGS, find, nothing)

    def own_links(self) -> set[str]:
        """Return the ids of all orders that were ever begun."""
        return {link for _, link in self._mirrored(self._links, 0)}

    def replaced(self, symbol: str) -> set[str]:
        """Return the ids of open intents that a later decision replaced."""
        nothing: set[str] = set()
        return self._reading(CLOSINGS, lambda connection: self._replaced(connection, symbol), nothing)

    def sends_since(self, since_ms: int) -> list[int]:
        """Return when orders were sent since an instant, UTC ms."""
        rows = self._rows(ATTEMPT_EVENTS, questions.EVENTS_SINCE, kind=AttemptEvent.SENT.value, recorded_ms=since_ms)
        return [int(row["recorded_ms"]) for row in rows]

    def last_send_ms(self, order_link_id: str) -> int:
        """Return when an order that was begun was last sent, UTC ms."""
        return self._reading(ATTEMPT_EVENTS, lambda connection: self._last_send_ms(connection, order_link_id), 0)

    def _replaced(self, connection: Connection, symbol: str) -> set[str]:
        waiting = self._ask(connection, questions.OPEN_INTENTS_OF, symbol=symbol)
        if not waiting:
            return set()
        asked = {row["decision_id"] for row in waiting}
        decided = self._ask(connection, questions.DECISIONS_AMONG, decision_id=sorted(asked))
        first = min(int(row["seq"]) for row in decided)
        later = self._ask(connection, questions.DECISIONS_FROM, symbol=symbol, seq=first)
        number = {row["decision_id"]: int(row["seq"]) for row in later}
        last = {word: 0 for word in (ALL, ENTRIES, NONE)}
        for row in later:
            word = json.loads(row["details"]).get(REPLACES, ALL)
            last[word if word in last else ALL] = int(row["seq"])
        found = set()
        for row in waiting:
            newest = last[ALL] if row["reduce_only"] else max(last[ALL], last[ENTRIES])
            if newest > number[row["decision_id"]]:
                found.add(row["intent_id"])
        return found
