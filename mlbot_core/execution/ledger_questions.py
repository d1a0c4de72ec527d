"""What the book is asked over and over, put into words once: to make a statement takes longer than to ask it.

Every question is about one account; the rows come in the order in which they were written.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from mlbot_core.execution.ledger_schema import (
    ALERTS,
    ATTEMPT_EVENTS,
    ATTEMPTS,
    CLOSINGS,
    DECISIONS,
    DELIVERIES,
    FILLS,
    FLAGS,
    INTENTS,
    OPENINGS,
    ORDERS,
    RISK_STATES,
    WALLET_EVENTS,
)

Question = sa.Select[Any]

_ACCOUNT: Final = "account"


def rows(table: sa.Table, *equal: str, among: str = "", since: str = "", where: tuple[Any, ...] = ()) -> Question:
    """Return the question for the rows of a table.

    Parameters
    ----------
    equal
        Columns that have to have the value that is asked with under their name.
    among
        A column that has to have one of the values that are asked with under its name.
    since
        A column that has to have at least the value that is asked with under its name.
    where
        Conditions beside these, which may ask for ``account``.
    """
    conditions = [table.c[name] == sa.bindparam(name) for name in (_ACCOUNT, *equal)]
    if among:
        conditions.append(table.c[among].in_(sa.bindparam(among, expanding=True)))
    if since:
        conditions.append(table.c[since] >= sa.bindparam(since))
    return sa.select(table).where(*conditions, *where).order_by(table.c.seq)


def last(table: sa.Table, column: str, *equal: str) -> Question:
    """Return the question for the row with the highest value in a column."""
    conditions = [table.c[name] == sa.bindparam(name) for name in (_ACCOUNT, *equal)]
    return sa.select(table).where(*conditions).order_by(table.c[column].desc()).limit(1)


def highest(table: sa.Table, column: str, *equal: str) -> Question:
    """Return the question for the highest value in a column; without a row it is None."""
    conditions = [table.c[name] == sa.bindparam(name) for name in (_ACCOUNT, *equal)]
    return sa.select(sa.func.max(table.c[column])).where(*conditions)


def _names(table: sa.Table, column: str) -> Any:
    return sa.select(table.c[column]).where(table.c.account == sa.bindparam(_ACCOUNT))


_OPEN: Final = INTENTS.c.intent_id.not_in(_names(CLOSINGS, "intent_id"))

# by the column that names a fact of the table within the account
NAMED: Final = {
    (table.name, name): rows(table, name)
    for table, name in (
        (INTENTS, "intent_id"),
        (FILLS, "exec_id"),
        (WALLET_EVENTS, "event_id"),
        (DELIVERIES, "alert_key"),
        (ATTEMPTS, "order_link_id"),
    )
}
NEWEST: Final = {table.name: highest(table, "seq") for table in (FILLS, WALLET_EVENTS)}

DECISION: Final = rows(DECISIONS, "decision_id")
DECISIONS_AMONG: Final = rows(DECISIONS, among="decision_id")
DECISIONS_FROM: Final = rows(DECISIONS, "symbol", since="seq")
NEWEST_DECISION: Final = last(DECISIONS, "ts", "symbol", "trigger")

INTENT: Final = NAMED[INTENTS.name, "intent_id"]
INTENTS_OF_DECISION: Final = rows(INTENTS, "decision_id")
INTENTS_AMONG: Final = rows(INTENTS, "symbol", among="intent_id")
OPEN_INTENTS: Final = rows(INTENTS, where=(_OPEN,))
OPEN_INTENTS_OF: Final = rows(INTENTS, "symbol", where=(_OPEN,))
OPEN_LEGS: Final = rows(INTENTS, "symbol", "leg", where=(_OPEN,))
CLOSINGS_AMONG: Final = rows(CLOSINGS, among="intent_id")

ATTEMPT: Final = NAMED[ATTEMPTS.name, "order_link_id"]
ATTEMPTS_AMONG: Final = rows(ATTEMPTS, among="intent_id")
ATTEMPTS_OF_CLOSED: Final = rows(
    ATTEMPTS, since="recorded_ms", where=(ATTEMPTS.c.intent_id.in_(_names(CLOSINGS, "intent_id")),)
)
EVENTS_AMONG: Final = rows(ATTEMPT_EVENTS, among="order_link_id")
EVENTS_SINCE: Final = rows(ATTEMPT_EVENTS, "kind", since="recorded_ms")
NEWEST_EVENT: Final = highest(ATTEMPT_EVENTS, "recorded_ms", "order_link_id", "kind")

ORDERS_ALL: Final = rows(ORDERS)
ORDER: Final = rows(ORDERS, "order_id")
ORDERS_OF_LINK: Final = rows(ORDERS, "order_link_id")
ORDERS_AMONG: Final = rows(ORDERS, among="order_link_id")

FILLS_ALL: Final = rows(FILLS)
FILLS_OF: Final = rows(FILLS, "symbol")
FILLS_AMONG: Final = rows(FILLS, among="order_link_id")
FILLS_AT: Final = rows(FILLS, since="exec_ms")
NEWEST_FILL_MS: Final = highest(FILLS, "exec_ms")

WALLET_ALL: Final = rows(WALLET_EVENTS)
WALLET_FROM: Final = rows(WALLET_EVENTS, since="seq")
WALLET_AT: Final = rows(WALLET_EVENTS, since="at_ms")
NEWEST_WALLET_MS: Final = highest(WALLET_EVENTS, "at_ms")

RISK_STATE: Final = last(RISK_STATES, "version", "symbol")
OPENING: Final = rows(OPENINGS, "symbol")
FLAGS_OF: Final = rows(FLAGS, "symbol")
FLAGS_OF_OWNER: Final = rows(FLAGS, "symbol", "owner")
ALERT: Final = rows(ALERTS, "alert_key")
ALERTS_ALL: Final = sa.select(sa.func.count()).select_from(ALERTS)
PENDING_ALERTS: Final = rows(ALERTS, where=(ALERTS.c.alert_key.not_in(_names(DELIVERIES, "alert_key")),))
