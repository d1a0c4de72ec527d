"""Why was this traded? From a fill, an order, an intent or a decision down to the versions of raw bars.

The chain: fill -> order -> intent -> decision -> risk state -> forecast -> model version -> who promoted it on what ->
what its training reached to -> features with their contributions -> raw rows as the decision saw them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from mlbot_core.clock import Clock, format_utc
from mlbot_core.config import Settings
from mlbot_core.config.models import META_MODEL
from mlbot_core.decision.bandit import ARMS
from mlbot_core.decision.state import ACTIONS, LEVELS, cause_names
from mlbot_core.errors import MissingDataError, MlbotError
from mlbot_core.execution.ledger import ExecutionLedger, open_ledger
from mlbot_core.execution.ledger_folds import AttemptState, IntentState
from mlbot_core.execution.ledger_states import DecisionRecord
from mlbot_core.execution.types import Execution
from mlbot_core.features.inputs import series_of
from mlbot_core.live.chosen import Base, stacked_by
from mlbot_core.live.rows import Input
from mlbot_core.live.signal_store import Signal, SignalKey, read_signal, require_signal
from mlbot_core.live.sizing import size_in
from mlbot_core.models.base import BASE_COLUMN, Model, load_model
from mlbot_core.models.gate import check_artefact, gate_rows
from mlbot_core.models.registry import Registry, open_registry
from mlbot_core.models.registry_state import Entry
from mlbot_core.models.training import REGISTRY_TABLE
from mlbot_core.observability.audit_book import Located, open_audit_book
from mlbot_core.timeframe import Timeframe
from mlbot_core.warehouse import Warehouse, read_window, settled

TOP: Final = 10
_BARS: Final = 2


@dataclass(frozen=True)
class Audit:
    """Everything that an audit reads from.

    Parameters
    ----------
    settings
        Of the home.
    store
        Raw bars, signals, training records.
    registry
        Of models.
    clock
        For opening books; nothing is stamped.
    """

    settings: Settings
    store: Warehouse
    registry: Registry
    clock: Clock

    @classmethod
    def open(cls, settings: Settings, clock: Clock) -> Audit:
        """Open what is in a home."""
        store = Warehouse(settings.warehouse_path, clock)
        return cls(settings, store, open_registry(settings.home, clock), clock)

    def locate(self, text: str) -> Located:
        """Return what an id is; see :meth:`mlbot_core.observability.audit_book.AuditBook.locate`."""
        with open_audit_book(self.settings.home, self.clock) as book:
            return book.locate(text)

    def ledger(self, account: str) -> ExecutionLedger:
        """Return the book of an account."""
        return open_ledger(self.settings.home, self.clock, account)

    def model(self, entry: Entry) -> Model:
        """Return a registered model, after its bytes were verified."""
        check_artefact(entry.registration, self.settings.models_dir)
        return load_model(self.settings.models_dir / entry.version, 1)


def explain(audit: Audit, text: str, *, top: int = TOP) -> dict[str, Any]:
    """Return the chain of a fill, an order, an intent or a decision as plain values.

    Parameters
    ----------
    text
        An id, or its beginning.
    top
        How many features to name, those with the largest contributions.

    Raises
    ------
    UsageError
        If nothing or several things have that id.
    """
    at = audit.locate(text)
    with audit.ledger(at.account) as ledger:
        decision = ledger.decision(at.decision_id) if at.decision_id else None
        states = ledger.intents_of(at.decision_id) if at.decision_id else []
        links = {attempt.order_link_id for state in states for attempt in state.attempts}
        fills = [
            one for one in ledger.executions() if one.order_link_id in links or at.name in (one.exec_id, one.order_id)
        ]
    chain: dict[str, Any] = {
        "asked": {"kind": at.kind, "id": at.name, "account": at.account},
        "fills": [_fill(one) for one in fills],
        "intents": [_intent(state) for state in states],
        "decision": None if decision is None else explain_decision(decision),
    }
    if decision is None and fills:
        with audit.ledger(at.account) as ledger:
            before = [row for row in ledger.rows("decisions") if int(row["decided_ms"]) <= fills[0].exec_ms]
        if before:
            chain["position_of"] = before[-1]["decision_id"]
    if decision is None:
        return chain | {
            "note": "this order was not planned by a decision of this book: the exchange or a person made it"
        }
    key = signal_key(decision)
    if key is None:
        return chain | {
            "note": said_in(decision).get("reason") or f"a decision of {decision.trigger}: no forecast was asked"
        }
    signal = read_signal(audit.store, key)
    if signal is None:
        return chain | {"note": f"the signal {key} is not in this warehouse any more"}
    return chain | {"forecast": explain_signal(audit, signal, top=top)}


def said_in(decision: DecisionRecord) -> Mapping[str, Any]:
    """Return what a decision keeps of its signal (:meth:`mlbot_core.live.observation.Said.as_json`); empty without."""
    caller = decision.details.get("caller")
    said = caller.get("signal") if isinstance(caller, Mapping) else None
    return said if isinstance(said, Mapping) else {}


def signal_key(decision: DecisionRecord) -> SignalKey | None:
    """Return which signal a decision rests on; None where it rests on none."""
    key = said_in(decision).get("key")
    return None if key is None else SignalKey.from_json(key)


def explain_decision(decision: DecisionRecord) -> dict[str, Any]:
    """Return a decision with its inputs and the risk state around it, in readable numbers."""
    details = decision.details
    size = size_in(details)
    result = _readable(details.get("decision", {}))
    if result:
        result |= {
            "action": ACTIONS[int(result["action"])],
            "level": LEVELS[int(result["level"])],
            "entered": list(cause_names(int(result["entered"]))),
            "cleared": list(cause_names(int(result["cleared"]))),
        }
    return {
        "id": decision.decision_id,
        "trigger": decision.trigger,
        "symbol": decision.symbol,
        "timeframe": decision.timeframe,
        "bar": format_utc(decision.ts),
        "decided": format_utc(decision.decided_ms),
        "target": str(decision.target),
        "result": result,
        "observation": _readable(details.get("observation", {})),
        "forecast": _readable(details.get("forecast", {})),
        "limits": _readable(details.get("limits", {})),
        "cost_round_trip": _number(details.get("cost_round_trip")),
        "risk_state": {name: _risk(details.get(key, {})) for name, key in (("before", "state"), ("after", "after"))},
        "flow_seq": details.get("flow_seq"),
        "not_planned": details.get("not_planned", ""),
        "stale": said_in(decision).get("reason", ""),
        **({} if size is None else {"size": _size(size)}),
    }


def explain_signal(audit: Audit, signal: Signal, *, top: int = TOP) -> dict[str, Any]:
    """Return a signal with its model, who promoted it, its largest contributions and the raw rows beneath."""
    told: dict[str, Any] = signal.as_json() | {
        "vector_sha256": signal.vector_sha256,
        "code": signal.code,
        "inputs": [_input(one) for one in signal.inputs],
    }
    entry = audit.registry.state().models.get(signal.key.model_version)
    if entry is None:
        return told | {"model": None, "note": "its model is not in this registry any more"}
    told["model"] = explain_model(audit, entry)
    contributions = _contributions(audit, signal, entry)
    if signal.key.model_type == META_MODEL:
        bases = {base.name: base for base in stacked_by(entry)}
        told["contributions"] = contributions
        told["base_forecasts"] = [
            _base(audit, signal, one, bases[one.name], top) for one in signal.inputs if one.name in bases
        ]
        return told
    told["contributions"] = contributions[:top]
    told["contributions_left_out"] = max(0, len(contributions) - top)
    told["raw"] = raw_rows(audit.store, signal)
    return told


def explain_model(audit: Audit, entry: Entry) -> dict[str, Any]:
    """Return what a model is, what its training reached to, and who promoted it on what."""
    model = entry.registration
    history = [
        {"at": format_utc(e.at_ms), "event": e.kind, "who": e.who, "why": e.why}
        for e in audit.registry.events(entry.version)
    ]
    return {
        "version": entry.version,
        "of": str(entry.slot),
        "stage": entry.stage,
        "synthetic": model.synthetic,
        "trained_by_run": model.run_id,
        "test_period": [format_utc(model.start_ms), format_utc(model.end_ms)],
        "data_as_of": format_utc(model.data_as_of_ms),
        "fold": _fold(audit.store, entry),
        "artefact_sha256": model.artefact_sha256,
        "libraries": dict(model.libraries),
        "history": history,
        "gate": gate_rows(entry, audit.registry.signer),
    }


def raw_rows(store: Warehouse, signal: Signal, bars: int = _BARS) -> list[dict[str, Any]]:
    """Return the newest raw bars of every series as the signal saw them: which version, since when known, what values.

    Parameters
    ----------
    bars
        So many a series, the newest last.
    """
    found = []
    market = signal.key.market
    delay = int(signal.details["settle_delay_ms"])
    with store.read() as con:
        for one in signal.inputs:
            if one.ts is None or one.version:
                continue
            timeframe = Timeframe.parse(one.timeframe)
            table = settled(
                con,
                one.name,
                source=signal.key.source,
                symbol=market.symbol,
                timeframe=timeframe,
                start_ms=one.ts - (bars - 1) * timeframe.ms,
                end_ms=one.ts + timeframe.ms,
                settle_delay_ms=delay,
                known_by_ms=signal.known_by_ms,
                snapshot_ms=signal.known_by_ms,
            ).table
            found.append(
                {"series": one.name, "timeframe": one.timeframe, "rows": [_raw(row) for row in table.to_pylist()]}
            )
    return found


def _raw(row: Mapping[str, Any]) -> dict[str, Any]:
    times = {name: format_utc(int(row[name])) for name in ("ts", "observed_at", "known_at")}
    fixed = {"ts", "observed_at", "known_at", "late", "capture", "versions"}
    values = {name: value for name, value in row.items() if name not in fixed and value is not None}
    return {**times, "capture": row["capture"], "late": row["late"], "versions": row["versions"], "values": values}


def _base(audit: Audit, meta: Signal, one: Input, base: Base, top: int) -> dict[str, Any]:
    told: dict[str, Any] = _input(one)
    if one.ts is None:
        return told
    key = SignalKey(meta.key.source, base.market, one.ts, base.model_type, base.version)
    try:
        return told | {"forecast": explain_signal(audit, require_signal(audit.store, key), top=top)}
    except MissingDataError as error:
        return told | {"note": str(error)}


def _contributions(audit: Audit, signal: Signal, entry: Entry) -> list[dict[str, Any]]:
    """Return what each feature added to the forecast, the largest first; nothing where there was no forecast."""
    try:
        model = audit.model(entry)
    except MlbotError as error:
        return [{"feature": "", "value": None, "contribution": None, "note": str(error)}]
    names = list(model.feature_names)
    blank = np.array(signal.details["blank"], dtype=np.bool_)
    given = np.where(blank[:, None], np.nan, signal.vector)
    step = signal.key.market.timeframe.ms
    index = pd.Index(signal.key.ts - step * np.arange(len(given) - 1, -1, -1, dtype=np.int64), name="ts")
    added = model.explain(pd.DataFrame(given, columns=names, index=index), np.array([len(given) - 1])).iloc[0]
    values = dict(zip(names, signal.vector[-1].tolist(), strict=True))
    rows: list[dict[str, Any]] = [
        {
            "feature": name,
            "value": _finite(values[name]),
            "contribution": _finite(float(added[name])),
            "series": [] if signal.key.model_type == META_MODEL else sorted(series_of(name)),
        }
        for name in names
    ]
    rows.sort(key=lambda row: -abs(row["contribution"] or 0.0))
    base: dict[str, Any] = {
        "feature": BASE_COLUMN,
        "value": None,
        "contribution": _finite(float(added[BASE_COLUMN])),
        "series": [],
    }
    return [*rows, base] if signal.key.model_type == META_MODEL else [base, *rows]


def _fold(store: Warehouse, entry: Entry) -> dict[str, Any]:
    """Return which model of the walk forward spoke: live it is the one after the last fold."""
    slot = entry.slot
    scope = {
        "source": slot.source, "symbol": slot.symbol, "timeframe": slot.timeframe, "model_type": slot.model_type,
        "model_version": entry.version,
    }  # fmt: skip
    try:
        with store.read() as con:
            row = read_window(con, REGISTRY_TABLE, scope, order_by="created_at").to_pylist()
    except MissingDataError:
        row = []
    told = {
        "name": "newest: trained on everything up to the end of the test period",
        "trained_to": format_utc(entry.registration.end_ms),
    }
    if not row:
        return told
    folds = json.loads(row[-1]["folds"])
    last = folds[-1]
    return told | {
        "folds_before_it": len(folds),
        "last_fold": {name: format_utc(int(last[name])) for name in last if name.endswith("_ms") and last[name]},
    }


def _fill(one: Execution) -> dict[str, Any]:
    return {
        "id": one.exec_id, "kind": one.kind.value, "order": one.order_link_id or one.order_id, "side": one.side.value,
        "qty": str(one.qty), "price": str(one.price), "fee": str(one.fee), "at": format_utc(one.exec_ms),
    }  # fmt: skip


def _intent(state: IntentState) -> dict[str, Any]:
    intent = state.intent
    return {
        "id": intent.key.intent_id,
        "leg": intent.key.leg.value,
        "slice": intent.key.slice,
        "side": intent.side.value,
        "qty": str(intent.qty),
        "reduce_only": intent.reduce_only,
        "stop_loss": None if intent.stop_loss is None else str(intent.stop_loss),
        "reference_price": str(intent.reference_price),
        "valid_until": format_utc(intent.valid_until_ms),
        "closed": None if state.closing is None else state.closing.value,
        "orders": [_order(attempt) for attempt in state.attempts],
    }


def _order(attempt: AttemptState) -> dict[str, Any]:
    order = attempt.order
    return {
        "id": attempt.order_link_id,
        "attempt": attempt.attempt,
        "sends": attempt.sends,
        "begun": format_utc(attempt.begun_ms),
        "type": attempt.request.order_type.value,
        "qty": str(attempt.request.qty),
        "filled": str(attempt.filled_qty),
        "exchange_id": None if order is None else order.order_id,
        "status": None if order is None else order.status.value,
    }


def _input(one: Input) -> dict[str, Any]:
    return {
        "name": one.name,
        "timeframe": one.timeframe,
        "bar": None if one.ts is None else format_utc(one.ts),
        "known_at": None if one.known_at is None else format_utc(one.known_at),
        "age_ms": one.age_ms,
        "state": one.state,
        **({"version": one.version, "score": one.value} if one.version else {}),
    }


def _size(size: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: size[name] for name in ("line", "by", "side", "decision", "policy", "state", "explored", "problem")}
    shares = size["propensities"] or []
    return told | {
        "multiplier": _number(size["multiplier"]),
        "context": _readable(size["context"] or {}),
        "propensities": {f"{arm:g}": _number(share) for arm, share in zip(ARMS, shares, strict=False)},
    }


def _risk(values: Mapping[str, Any]) -> dict[str, Any]:
    told = _readable(values)
    if "causes" in told:
        told["causes"] = list(cause_names(int(told["causes"])))
    return told


def _readable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: Any) -> Any:
    """Return a float that was written by its hexadecimal text, None for NaN or infinity; anything else as it is."""
    if isinstance(value, str):
        try:
            return _finite(float.fromhex(value))
        except ValueError:
            return value
    return value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
