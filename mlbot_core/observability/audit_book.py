"""Whatever id somebody has in hand: which decision it belongs to, in whose book."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from mlbot_core.clock import Clock
from mlbot_core.errors import UsageError
from mlbot_core.execution.ledger_schema import ATTEMPTS, DECISIONS, FILLS, INTENTS, ORDERS
from mlbot_core.execution.ledger_store import LedgerStore

_MIN_ID: Final = 6


@dataclass(frozen=True)
class Located:
    """Where an id belongs.

    Parameters
    ----------
    kind
        ``decision``, ``intent``, ``order`` (ours or the exchange's id) or ``fill``.
    name
        The whole id.
    account
        Whose book.
    decision_id
        The decision that it carries out; empty for an order that is not of this book's plans.
    """

    kind: str
    name: str
    account: str
    decision_id: str


class AuditBook(LedgerStore):
    """Questions over all accounts of a book; it writes nothing."""

    def locate(self, text: str) -> Located:
        """Return what has the id, or begins with it.

        Raises
        ------
        UsageError
            If nothing or several things do, or it is shorter than six characters.
        """
        if len(text) < _MIN_ID:
            raise UsageError(f"id {text!r} is shorter than {_MIN_ID} characters; give more of it")
        nothing: list[Located] = []
        found = self._reading(DECISIONS, lambda connection: self._look(connection, text), nothing)
        exact = [one for one in found if one.name == text]
        found = exact or found
        if not found:
            raise UsageError(
                f"no decision, intent, order or fill {text!r} is in the book; see the newest ones: mlbot status"
            )
        names = {(one.name, one.account) for one in found}
        if len(names) > 1:
            raise UsageError(f"{text!r} is the beginning of {len(names)} ids; give more of it")
        # an intent's id is that of its first order: the order is the more telling one
        return max(found, key=lambda one: ("decision", "intent", "order", "fill").index(one.kind))

    def _look(self, connection: sa.Connection, text: str) -> list[Located]:
        def starting(column: sa.Column[str]) -> sa.ColumnElement[bool]:
            return column.startswith(text, autoescape=True)

        found = [
            Located("decision", row.decision_id, row.account, row.decision_id)
            for row in connection.execute(sa.select(DECISIONS).where(starting(DECISIONS.c.decision_id)))
        ]
        of_intent = {
            (row.account, row.intent_id): row.decision_id
            for row in connection.execute(sa.select(INTENTS.c.account, INTENTS.c.intent_id, INTENTS.c.decision_id))
        }
        found += [
            Located("intent", intent, account, decision)
            for (account, intent), decision in of_intent.items()
            if intent.startswith(text)
        ]
        of_link = {
            (row.account, row.order_link_id): of_intent.get((row.account, row.intent_id), "")
            for row in connection.execute(sa.select(ATTEMPTS.c.account, ATTEMPTS.c.order_link_id, ATTEMPTS.c.intent_id))
        }
        found += [
            Located("order", link, account, decision)
            for (account, link), decision in of_link.items()
            if link.startswith(text)
        ]
        orders = connection.execute(
            sa.select(ORDERS.c.account, ORDERS.c.order_id, ORDERS.c.order_link_id)
            .where(starting(ORDERS.c.order_id))
            .distinct()
        )
        found += [
            Located("order", row.order_id, row.account, of_link.get((row.account, row.order_link_id), ""))
            for row in orders
        ]
        fills = connection.execute(sa.select(FILLS).where(starting(FILLS.c.exec_id)))
        found += [
            Located("fill", row.exec_id, row.account, of_link.get((row.account, row.order_link_id), ""))
            for row in fills
        ]
        return found


def open_audit_book(home: Path, clock: Clock, environ: Mapping[str, str] | None = None) -> AuditBook:
    """Return the questions over the book of a home, as :func:`mlbot_core.execution.ledger.open_ledger` finds it."""
    env = os.environ if environ is None else environ
    return AuditBook(home, clock, "every account", url=env.get("MLBOT_PG_URL") or None)
