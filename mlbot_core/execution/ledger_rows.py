"""Between what the book means and how a row spells it: lossless, one spelling for one value."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from mlbot_core.execution.identifiers import IntentKey, Leg
from mlbot_core.execution.intents import Intent
from mlbot_core.execution.types import (
    ExecType,
    Execution,
    ExecutionError,
    OrderRequest,
    OrderSnapshot,
    OrderStatus,
    OrderType,
    Side,
    TimeInForce,
    TriggerBy,
    WalletEvent,
)

Row = dict[str, Any]

_ENUMS: Final[dict[type, dict[str, Any]]] = {
    OrderRequest: {
        "side": Side,
        "order_type": OrderType,
        "time_in_force": TimeInForce,
        "stop_trigger_by": TriggerBy,
    },
    OrderSnapshot: {"side": Side, "order_type": OrderType, "status": OrderStatus, "time_in_force": TimeInForce},
    Execution: {"kind": ExecType, "side": Side},
    WalletEvent: {},
}
_DECIMALS: Final[dict[type, frozenset[str]]] = {
    OrderRequest: frozenset(("qty", "price", "stop_loss", "slippage_bp")),
    OrderSnapshot: frozenset(
        ("qty", "filled_qty", "filled_value", "fee", "price", "stop_loss", "trigger_price"),
    ),
    Execution: frozenset(("qty", "price", "value", "fee", "fee_rate", "closed_qty")),
    WalletEvent: frozenset(("cash_flow", "funding", "fee", "change", "balance")),
}


def spell(value: Decimal) -> str:
    """Return the one text of a number: ``1.50`` and ``1.5`` are both ``1.5``.

    Raises
    ------
    ExecutionError
        If the number is not finite.
    """
    if not value.is_finite():
        raise ExecutionError(f"{value} cannot be put into the book; only finite numbers are facts")
    # not normalize(), which rounds to 28 digits
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text if value else "0"


def canonical(value: Any) -> str:
    """Return JSON with sorted keys and no spaces; NaN and infinity are refused.

    Raises
    ------
    ExecutionError
        If the value is not JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ExecutionError(f"the book takes plain JSON values only ({error}); convert them first") from error


def to_row(fact: OrderRequest | OrderSnapshot | Execution | WalletEvent) -> Row:
    """Return a fact as plain values."""
    return {field.name: _plain(getattr(fact, field.name)) for field in dataclasses.fields(fact)}


def from_row(kind: type, row: Mapping[str, Any]) -> Any:
    """Return the fact of type ``kind`` that :func:`to_row` spelt; columns that it does not know are left out.

    Raises
    ------
    ExecutionError
        If a column is missing or does not hold what it must.
    """
    values: Row = {}
    for field in dataclasses.fields(kind):
        try:
            value = row[field.name]
            if value is not None and field.name in _DECIMALS[kind]:
                value = Decimal(value)
            elif field.name in _ENUMS[kind]:
                value = _ENUMS[kind][field.name](value)
        except (KeyError, ValueError, ArithmeticError) as error:
            raise ExecutionError(
                f"a stored {kind.__name__} has no readable {field.name} ({error!r}); restore the book from a backup"
            ) from error
        values[field.name] = value
    return kind(**values)


def execution_of(row: Mapping[str, Any]) -> Execution:
    """Return the execution of a row of its table."""
    found: Execution = from_row(Execution, {**row, "seq": row["exchange_seq"]})
    return found


def digest_of(row: Mapping[str, Any]) -> str:
    """Return the hash of a row's content, 64 hex digits."""
    return hashlib.sha256(canonical(dict(row)).encode("ascii")).hexdigest()


def intent_to_row(intent: Intent) -> Row:
    """Return an intent as a row of its table."""
    key = intent.key
    return {
        "intent_id": intent.intent_id,
        "decision_id": key.decision_id,
        "strategy": key.strategy,
        "symbol": key.symbol,
        "leg": key.leg.value,
        "slice": key.slice,
        "side": intent.side.value,
        "qty": spell(intent.qty),
        "reduce_only": intent.reduce_only,
        "stop_loss": _plain(intent.stop_loss),
        "reference_price": spell(intent.reference_price),
        "valid_until_ms": intent.valid_until_ms,
        "after": canonical(list(intent.after)),
    }


def intent_from_row(account: str, row: Mapping[str, Any]) -> Intent:
    """Return the intent of a row of its table.

    Raises
    ------
    ExecutionError
        If the row's id is not the one that its content gives: it was changed.
    """
    key = IntentKey(row["strategy"], account, row["symbol"], row["decision_id"], Leg(row["leg"]), int(row["slice"]))
    if key.intent_id != row["intent_id"]:
        raise ExecutionError(
            f"intent {row['intent_id']} was changed in the book: its content gives {key.intent_id}; restore a backup"
        )
    return Intent(
        key,
        Side(row["side"]),
        Decimal(row["qty"]),
        bool(row["reduce_only"]),
        None if row["stop_loss"] is None else Decimal(row["stop_loss"]),
        Decimal(row["reference_price"]),
        int(row["valid_until_ms"]),
        tuple(json.loads(row["after"])),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return spell(value)
    return (
        value.value if isinstance(value, Side | OrderType | OrderStatus | TimeInForce | TriggerBy | ExecType) else value
    )
