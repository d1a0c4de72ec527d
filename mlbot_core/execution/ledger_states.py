"""Reading the book: the states of intents and their orders, put together from all that was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from sqlalchemy.engine import Connection

from mlbot_core.execution import ledger_questions as questions
from mlbot_core.execution.ledger_folds import AttemptEvent, AttemptState, Closing, IntentState, fold_attempt
from mlbot_core.execution.ledger_questions import Question
from mlbot_core.execution.ledger_rows import execution_of, from_row, intent_from_row
from mlbot_core.execution.ledger_schema import ATTEMPTS, CLOSINGS, DECISIONS
from mlbot_core.execution.ledger_store import LedgerStore, Row
from mlbot_core.execution.types import ExecutionError, OrderRequest, OrderSnapshot

BAR: Final = "bar"


class AttemptError(ExecutionError):
    """An order may not be begun, sent again or given up now."""


@dataclass(frozen=True)
class DecisionRecord:
    """What was decided.

    Parameters
    ----------
    decision_id
        Of :mod:`mlbot_core.execution.identifiers`.
    trigger
        :data:`BAR` for the decision on a bar, else what asked for it: ``risk``, ``person`` ...
    timeframe
        Of the bar; empty without one.
    ts
        Open time of the bar, or the moment of the trigger, UTC ms.
    decided_ms
        When, UTC ms.
    target
        Signed fraction of NAV.
    details
        Plain JSON: action, level, forecast, model version, NAV, mark ... whatever explains it.
    """

    decision_id: str
    strategy: str
    symbol: str
    trigger: str
    timeframe: str
    ts: int
    decided_ms: int
    target: Decimal
    details: Mapping[str, Any] = field(default_factory=dict)


class StatesLedger(LedgerStore):
    """The part of the book that answers."""

    def intent(self, intent_id: str) -> IntentState:
        """Return an intent's state.

        Raises
        ------
        AttemptError
            If there is none of this id.
        """
        found = self._states(questions.INTENT, intent_id=intent_id)
        if not found:
            raise AttemptError(f"no intent {intent_id} in the book of {self.account}; plan it first")
        return found[0]

    def open_intents(self, symbol: str | None = None) -> list[IntentState]:
        """Return the intents that are neither complete nor given up, in the order in which they were planned."""
        if symbol is None:
            return self._states(questions.OPEN_INTENTS)
        return self._states(questions.OPEN_INTENTS_OF, symbol=symbol)

    def intents_of(self, decision_id: str) -> list[IntentState]:
        """Return the intents of a decision, in the order in which they were planned."""
        return self._states(questions.INTENTS_OF_DECISION, decision_id=decision_id)

    def attempt(self, order_link_id: str) -> tuple[IntentState, AttemptState] | None:
        """Return whose order an ``orderLinkId`` is; None if it is not of this book."""

        def look(connection: Connection) -> tuple[IntentState, AttemptState] | None:
            return self._attempt(connection, order_link_id) if self._sent(connection, order_link_id) else None

        return self._reading(ATTEMPTS, look, None)

    def newest_decision(self, symbol: str, trigger: str = BAR) -> DecisionRecord | None:
        """Return the newest decision on a symbol, None if there is none."""
        row = self._reading(DECISIONS, lambda connection: self._newest_decision(connection, symbol, trigger), None)
        return None if row is None else _decision(row)

    def decision(self, decision_id: str) -> DecisionRecord | None:
        """Return a decision by its id, None if there is none."""
        rows = self._rows(DECISIONS, questions.DECISION, decision_id=decision_id)
        return _decision(rows[0]) if rows else None

    def _states(self, question: Question, **asked: Any) -> list[IntentState]:
        nothing: list[IntentState] = []
        return self._reading(CLOSINGS, lambda connection: self._find(connection, question, **asked), nothing)

    def _sent(self, connection: Connection, order_link_id: str) -> list[Row]:
        return self._ask(connection, questions.ATTEMPT, order_link_id=order_link_id)

    def _attempt(self, connection: Connection, order_link_id: str) -> tuple[IntentState, AttemptState]:
        sent = self._sent(connection, order_link_id)
        if not sent:
            raise AttemptError(f"no order {order_link_id} in the book of {self.account}; begin it first")
        state = self._state(connection, sent[0]["intent_id"])
        return state, state.attempts[int(sent[0]["attempt"])]

    def _state(self, connection: Connection, intent_id: str) -> IntentState:
        found = self._find(connection, questions.INTENT, intent_id=intent_id)
        if not found:
            raise AttemptError(f"no intent {intent_id} in the book of {self.account}; plan it first")
        return found[0]

    def _find(self, connection: Connection, question: Question, **asked: Any) -> list[IntentState]:
        planned = self._ask(connection, question, **asked)
        if not planned:
            return []
        ids = [row["intent_id"] for row in planned]
        closed = {row["intent_id"]: row for row in self._ask(connection, questions.CLOSINGS_AMONG, intent_id=ids)}
        sent = _grouped(self._ask(connection, questions.ATTEMPTS_AMONG, intent_id=ids), "intent_id")
        links = [row["order_link_id"] for rows in sent.values() for row in rows]
        told = [
            _grouped(self._ask(connection, about, order_link_id=links), "order_link_id") if links else {}
            for about in (questions.EVENTS_AMONG, questions.ORDERS_AMONG, questions.FILLS_AMONG)
        ]
        states = []
        for row in planned:
            attempts = sorted(sent.get(row["intent_id"], []), key=lambda attempt: int(attempt["attempt"]))
            closing = closed.get(row["intent_id"])
            states.append(
                IntentState(
                    intent_from_row(self.account, row),
                    tuple(
                        _folded(attempt, *(of.get(attempt["order_link_id"], []) for of in told)) for attempt in attempts
                    ),
                    None if closing is None else Closing(closing["reason"]),
                )
            )
        return states

    def _newest_decision(self, connection: Connection, symbol: str, trigger: str) -> Row | None:
        found = self._ask(connection, questions.NEWEST_DECISION, symbol=symbol, trigger=trigger)
        return found[0] if found else None


def _decision(row: Row) -> DecisionRecord:
    names = ("decision_id", "strategy", "symbol", "trigger", "timeframe", "ts", "decided_ms")
    return DecisionRecord(
        **{name: row[name] for name in names}, target=Decimal(row["target"]), details=json.loads(row["details"])
    )


def _grouped(rows: list[Row], name: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups


def _folded(row: Row, events: list[Row], orders: list[Row], fills: list[Row]) -> AttemptState:
    return fold_attempt(
        row["order_link_id"],
        int(row["attempt"]),
        from_row(OrderRequest, json.loads(row["request"])),
        int(row["recorded_ms"]),
        [AttemptEvent(event["kind"]) for event in events],
        [from_row(OrderSnapshot, order) for order in orders],
        [execution_of(fill) for fill in fills],
    )
