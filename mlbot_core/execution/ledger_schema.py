"""Tables of the book of execution. Facts are only ever added; a number of money or coins is the text of a Decimal."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

METADATA: Final = sa.MetaData()

_ID: Final = 64
_NUMBER: Final = 64
_WORD: Final = 32


def _text(name: str, length: int = _NUMBER, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.String(length), nullable=nullable)


def _ms(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _table(name: str, *parts: Any) -> sa.Table:
    """A table with a number that rises with every row, whose account it is and when we wrote it (UTC ms)."""
    number = sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True)
    account = sa.Column("account", sa.String(_ID), nullable=False)
    return sa.Table(f"execution_{name}", METADATA, number, account, *parts, _ms("recorded_ms"))


DECISIONS: Final = _table(
    "decisions",
    _text("decision_id", _ID),
    _text("strategy", _ID),
    _text("symbol", _WORD),
    _text("trigger", _WORD),
    _text("timeframe", _WORD),
    _ms("ts"),
    _ms("decided_ms"),
    _text("target"),
    sa.Column("details", sa.Text, nullable=False),
    sa.UniqueConstraint("account", "decision_id"),
    sa.UniqueConstraint("account", "symbol", "trigger", "ts"),
)

INTENTS: Final = _table(
    "intents",
    _text("intent_id", _ID),
    _text("decision_id", _ID),
    _text("strategy", _ID),
    _text("symbol", _WORD),
    _text("leg", _WORD),
    sa.Column("slice", sa.Integer, nullable=False),
    _text("side", _WORD),
    _text("qty"),
    sa.Column("reduce_only", sa.Boolean, nullable=False),
    _text("stop_loss", nullable=True),
    _text("reference_price"),
    _ms("valid_until_ms"),
    sa.Column("after", sa.Text, nullable=False),
    sa.UniqueConstraint("account", "intent_id"),
    sa.Index("ix_execution_intents_decision", "account", "decision_id"),
)

CLOSINGS: Final = _table(
    "intent_closings",
    _text("intent_id", _ID),
    _text("reason", _WORD),
    sa.Column("detail", sa.Text, nullable=False),
    sa.UniqueConstraint("account", "intent_id"),
)

ATTEMPTS: Final = _table(
    "attempts",
    _text("order_link_id", _ID),
    _text("intent_id", _ID),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.UniqueConstraint("account", "order_link_id"),
    sa.UniqueConstraint("account", "intent_id", "attempt"),
)

ATTEMPT_EVENTS: Final = _table(
    "attempt_events",
    _text("order_link_id", _ID),
    _text("kind", _WORD),
    sa.Column("code", sa.Integer, nullable=True),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Index("ix_execution_attempt_events_link", "account", "order_link_id"),
)

ORDERS: Final = _table(
    "orders",
    _text("order_id", _ID),
    _text("order_link_id", _ID),
    _text("symbol", _WORD),
    _text("side", _WORD),
    _text("order_type", _WORD),
    _text("status", _WORD),
    _text("qty"),
    _text("filled_qty"),
    _text("filled_value"),
    _text("fee"),
    _text("price", nullable=True),
    _text("time_in_force", _WORD),
    sa.Column("reduce_only", sa.Boolean, nullable=False),
    _ms("created_ms"),
    _ms("updated_ms"),
    _text("stop_loss", nullable=True),
    _text("trigger_price", nullable=True),
    _text("stop_order_type", _WORD),
    _text("reject_reason", _ID),
    _text("cancel_type", _ID),
    _text("digest", _ID),
    _text("source", _WORD),
    sa.UniqueConstraint("account", "order_id", "digest"),
    sa.Index("ix_execution_orders_link", "account", "order_link_id"),
)

FILLS: Final = _table(
    "fills",
    _text("exec_id", _ID),
    _text("kind", _WORD),
    _text("order_id", _ID),
    _text("order_link_id", _ID),
    _text("symbol", _WORD),
    _text("side", _WORD),
    _text("qty"),
    _text("price"),
    _text("value"),
    _text("fee"),
    _text("fee_rate"),
    sa.Column("is_maker", sa.Boolean, nullable=False),
    _text("closed_qty"),
    _ms("exec_ms"),
    sa.Column("exchange_seq", sa.BigInteger, nullable=False),
    _text("stop_type", _WORD),
    _text("source", _WORD),
    sa.UniqueConstraint("account", "exec_id"),
    sa.Index("ix_execution_fills_link", "account", "order_link_id"),
)

WALLET_EVENTS: Final = _table(
    "wallet_events",
    _text("event_id", 128),
    _text("kind", _ID),
    _text("coin", _WORD),
    _ms("at_ms"),
    _text("cash_flow"),
    _text("funding"),
    _text("fee"),
    _text("change"),
    _text("balance"),
    _text("symbol", _WORD),
    _text("exec_id", _ID),
    _text("order_link_id", _ID),
    sa.UniqueConstraint("account", "event_id"),
)

RISK_STATES: Final = _table(
    "risk_states",
    _text("symbol", _WORD),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("causes", sa.Integer, nullable=False),
    # number of the newest wallet event whose deposit or withdrawal the state contains
    sa.Column("flow_seq", sa.BigInteger, nullable=False),
    _text("actor", _ID),
    sa.Column("reason", sa.Text, nullable=False),
    sa.UniqueConstraint("account", "symbol", "version"),
)

OPENINGS: Final = _table(
    "openings",
    _text("symbol", _WORD),
    _ms("at_ms"),
    _text("balance"),
    # what came before belongs to somebody else
    sa.Column("fill_seq", sa.BigInteger, nullable=False),
    sa.Column("wallet_seq", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("account", "symbol"),
)

FLAGS: Final = _table(
    "flags",
    _text("symbol", _WORD),
    _text("owner", _WORD),
    sa.Column("causes", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

ALERTS: Final = _table(
    "alerts",
    _text("level", _WORD),
    _text("code", _ID),
    sa.Column("message", sa.Text, nullable=False),
    _text("alert_key", 128),
    sa.UniqueConstraint("account", "alert_key"),
)

DELIVERIES: Final = _table(
    "alert_deliveries",
    _text("alert_key", 128),
    sa.UniqueConstraint("account", "alert_key"),
)

TABLES: Final = {
    "decisions": DECISIONS,
    "intents": INTENTS,
    "intent_closings": CLOSINGS,
    "attempts": ATTEMPTS,
    "attempt_events": ATTEMPT_EVENTS,
    "orders": ORDERS,
    "fills": FILLS,
    "wallet_events": WALLET_EVENTS,
    "risk_states": RISK_STATES,
    "openings": OPENINGS,
    "flags": FLAGS,
    "alerts": ALERTS,
    "alert_deliveries": DELIVERIES,
}
