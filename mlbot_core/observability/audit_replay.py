"""A decision made again from what is stored: nothing may come out otherwise, to the bit.

=========  ====================================================================  ==========================
part       what is made again                                                    under other code than then
=========  ====================================================================  ==========================
step       the decision function, from its stored inputs                         must be the same
size       the bandit's choice, from its log as it stood then                    must be the same
signal     that the stored signal is the one that was decided on                 must be the same
features   the vector, from the raw versions of then (T and S of the decision)   a difference is listed
forecast   what the registered model says of the stored vector                   a difference is listed
=========  ====================================================================  ==========================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.config import TargetConfig
from mlbot_core.config.models import META_MODEL
from mlbot_core.decision.bandit import ARMS
from mlbot_core.decision.bandit_baselines import volatility_target_arm
from mlbot_core.decision.bandit_context import context_from_json, context_to_json
from mlbot_core.decision.bandit_log import BanditLog
from mlbot_core.decision.edges import edge_of
from mlbot_core.errors import MissingDataError, MlbotError
from mlbot_core.execution import evidence
from mlbot_core.execution.ledger_states import DecisionRecord
from mlbot_core.features.sets import configured_set
from mlbot_core.live.asking import ask
from mlbot_core.live.chosen import stacked_by
from mlbot_core.live.code import code_now
from mlbot_core.live.observation import as_forecast
from mlbot_core.live.rows import Moment, compute_row, read_bar_again
from mlbot_core.live.signal_store import Signal, SignalKey, code_files, read_signal
from mlbot_core.live.sizing import size_in
from mlbot_core.models.base import FORECAST, Model
from mlbot_core.models.meta_training import BaseForecasts, stack
from mlbot_core.models.registry_state import Entry
from mlbot_core.observability.audit import Audit, said_in, signal_key
from mlbot_core.timeframe import Timeframe

Outcome = Literal["same", "differs", "code changed", "nothing to replay"]


@dataclass(frozen=True)
class Part:
    """One part of a replay.

    Parameters
    ----------
    name
        ``step``, ``size``, ``signal``, ``features`` or ``forecast``, with what it is of.
    outcome
        ``code changed``: it differs, and other code made it then.
    detail
        What differs, in words.
    """

    name: str
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True)
class Replay:
    """A decision that was made again.

    Parameters
    ----------
    decision_id
        Which.
    parts
        In the order of the table of this module.
    code_changes
        Files that changed since the signals were made; empty under the same code.
    """

    decision_id: str
    parts: tuple[Part, ...]
    code_changes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing differs that must not."""
        return all(part.outcome != "differs" for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "decision": self.decision_id,
            "passed": self.passed,
            "parts": [{"part": p.name, "outcome": p.outcome, "detail": p.detail} for p in self.parts],
            "code_changes": list(self.code_changes),
        }


def replay(audit: Audit, text: str) -> Replay:
    """Make a decision again from what is stored.

    Parameters
    ----------
    text
        Id of the decision, or of an intent, an order or a fill of it.

    Raises
    ------
    UsageError
        If nothing or several things have that id.
    MissingDataError
        If it belongs to no decision.
    """
    at = audit.locate(text)
    with audit.ledger(at.account) as ledger:
        decision = ledger.decision(at.decision_id) if at.decision_id else None
    if decision is None:
        raise MissingDataError(f"{at.kind} {at.name} belongs to no decision of this book: there is nothing to replay")
    return replay_decision(audit, decision)


def replay_decision(audit: Audit, decision: DecisionRecord) -> Replay:
    """As :func:`replay`, of a decision in hand."""
    parts = [replay_step(decision), *replay_size(audit, decision)]
    changes: tuple[str, ...] = ()
    key = signal_key(decision)
    if key is not None:
        signal = _stored(audit, key, parts)
        if signal is not None:
            parts.append(_is_the_one(decision, signal))
            changes = code_changes(audit, signal)
            parts += replay_signal(audit, signal)
    return Replay(decision.decision_id, tuple(parts), changes)


def replay_step(decision: DecisionRecord) -> Part:
    """Call the decision function with the stored inputs and compare all that comes out, bit for bit."""
    details = decision.details
    if "observation" not in details:
        return Part("step", "nothing to replay", f"a decision of {decision.trigger} was not made by the function")
    basis = evidence.read(details)
    made = evidence.record(basis, *basis.decide())
    different = [
        f"{part}.{name}: stored {details[part].get(name)}, again {value}"
        for part in ("after", "decision")
        for name, value in made[part].items()
        if details[part].get(name) != value
    ]
    target = float.fromhex(made["decision"]["target"])
    if float(decision.target) != target:
        different.append(f"target: stored {decision.target}, again {target!r}")
    return Part("step", "differs" if different else "same", "; ".join(different))


def replay_size(audit: Audit, decision: DecisionRecord) -> list[Part]:
    """Choose a decision's share of the cap again: from the context and the log of then, never by the policy in use."""
    size = size_in(decision.details)
    if size is None:
        return []
    taken = evidence.read(decision.details).forecast.multiplier
    different = []
    if taken.hex() != size["multiplier"]:
        different.append(f"the decision took {taken:g} of the cap, its size says {float.fromhex(size['multiplier']):g}")
    if size["decision"] is not None:
        try:
            action, again = BanditLog(audit.settings.home, audit.clock).again(size["line"], size["decision"])
        except MlbotError as error:
            return [Part("size", "differs", "; ".join([*different, str(error)]))]
        kept = {
            "multiplier": action.choice.multiplier.hex(),
            "context": context_to_json(action.context),
            "propensities": [p.hex() for p in action.choice.propensities],
            "policy": action.base,
            "state": action.state,
            "explored": action.choice.explored,
        }
        different += [
            f"{name}: the decision has {size[name]}, the log {value}"
            for name, value in kept.items()
            if size[name] != value
        ]
        if again != action.choice:
            different.append(f"chosen then {action.choice}, again {again}")
    elif size.get("target_volatility") is not None:
        target = float.fromhex(size["target_volatility"])
        arm = volatility_target_arm(target, context_from_json(size["context"]))
        if ARMS[arm].hex() != size["multiplier"]:
            different.append(f"volatility targeting gives {ARMS[arm]:g} of the cap again")
    return [Part("size", "differs" if different else "same", "; ".join(different))]


def replay_signal(audit: Audit, signal: Signal) -> list[Part]:
    """Make a signal again: its vector from the raw versions of then, its forecast from the stored vector."""
    entry = audit.registry.state().models.get(signal.key.model_version)
    name = f"{signal.key.market} {signal.key.model_type}"
    if entry is None:
        return [Part(f"forecast {name}", "differs", f"model {signal.key.model_version[:12]} is not registered here")]
    same_code = signal.code == code_now().version
    try:
        model = audit.model(entry)
    except MlbotError as error:
        return [Part(f"forecast {name}", "differs", str(error))]
    parts: list[Part] = []
    if signal.key.model_type == META_MODEL:
        stacked: list[Signal] = []
        for base in stacked_by(entry):
            (entered,) = [one for one in signal.inputs if one.name == base.name]
            if entered.ts is None:
                continue
            key = SignalKey(signal.key.source, base.market, entered.ts, base.model_type, base.version)
            found = _stored(audit, key, parts)
            if found is not None:
                stacked.append(found)
        for one in stacked:
            parts += replay_signal(audit, one)
        vector = _stacked_again(signal, entry, model, stacked)
        parts.append(_compare_vectors(f"features {name}", signal, vector, model, same_code))
    else:
        parts.append(_features_again(audit, signal, entry, model, same_code))
    parts.append(_forecast_again(signal, model, f"forecast {name}", same_code))
    return parts


def code_changes(audit: Audit, signal: Signal) -> tuple[str, ...]:
    """Return which files changed since a signal was made."""
    now = code_now()
    if signal.code == now.version:
        return ()
    then = code_files(audit.store, signal.code)
    return ("the files of then were not kept",) if then is None else tuple(now.changes(then))


def _same(then: float, now: float) -> bool:
    return then.hex() == now.hex() or (math.isnan(then) and math.isnan(now))


def _stored(audit: Audit, key: SignalKey, parts: list[Part]) -> Signal | None:
    """Return a stored signal; if it is gone or was changed, that is a finding."""
    try:
        found = read_signal(audit.store, key)
    except MlbotError as error:
        parts.append(Part(f"signal {key.market} {key.model_type}", "differs", str(error)))
        return None
    if found is None:
        parts.append(
            Part(f"signal {key.market} {key.model_type}", "differs", f"the signal {key} is not stored any more")
        )
    return found


def _is_the_one(decision: DecisionRecord, signal: Signal) -> Part:
    """Compare the stored signal with what the decision says it rests on."""
    said = said_in(decision)
    different = [
        f"{name}: the decision has {said[name]}, the table {value}"
        for name, value in (("digest", signal.digest), ("vector_sha256", signal.vector_sha256))
        if name in said and said[name] != value
    ]
    if "forecast" in decision.details:
        # the multiplier is set afterwards, by whoever sizes
        taken, given = evidence.read(decision.details).forecast, as_forecast(signal, decision.ts)
        if not _same(taken.edge, given.edge) or taken.age_ms != given.age_ms:
            different.append(
                f"the decision took the edge {taken.edge!r} of age {taken.age_ms} ms, the signal gives {given.edge!r} "
                f"of age {given.age_ms} ms"
            )
    return Part("signal", "differs" if different else "same", "; ".join(different))


def _features_again(audit: Audit, signal: Signal, entry: Entry, model: Model, same_code: bool) -> Part:
    name = f"features {signal.key.market} {signal.key.model_type}"
    features = configured_set(audit.settings.models.features)
    if features.hash != signal.details["feature_hash"]:
        then = signal.details["feature_hash"]
        return Part(name, "code changed", f"the feature set was {then} and is {features.hash} ({features.name}) now")
    late = signal.known_by_ms if signal.late else None
    moment = Moment(
        signal.key.source,
        signal.key.market,
        signal.key.ts,
        int(signal.details["settle_delay_ms"]),
        signal.known_by_ms,
        late,
    )
    stored = {one.name: Timeframe.parse(one.timeframe) for one in signal.inputs}
    rows = len(signal.vector)
    with audit.store.read() as con:
        series = read_bar_again(con, moment, features, stored, rows)
    try:
        row = compute_row(series, moment, features, rows)
    except MissingDataError as error:
        return Part(name, _bad(same_code), str(error))
    vector = np.ascontiguousarray(row.features[list(model.feature_names)].to_numpy(dtype=np.float64))
    part = _compare_vectors(name, signal, vector, model, same_code)
    width = row.width(TargetConfig.model_validate(entry.registration.inputs["targets"]))
    if not _same(signal.width, width):
        return Part(name, _bad(same_code), f"{part.detail}; width {signal.width!r} then, {width!r} now".lstrip("; "))
    return part


def _stacked_again(signal: Signal, entry: Entry, model: Model, stacked: list[Signal]) -> npt.NDArray[np.float64]:
    """Return the vector of a meta-model, of the very base signals that its inputs name."""
    by_version = {one.key.model_version: one for one in stacked}
    bases = []
    for base in stacked_by(entry):
        one = by_version.get(base.version)
        stamps = np.array([one.key.ts] if one is not None else [], dtype=np.int64)
        score = np.array([one.forecast["score"]] if one is not None else [], dtype=np.float64)
        bases.append(BaseForecasts(base.name, base.market, base.version, {}, stamps, score))
    grid = np.array([signal.key.ts], dtype=np.int64)
    X = stack(bases, grid, signal.key.market.timeframe, int(signal.details["max_age_bars"]))
    return np.ascontiguousarray(X[list(model.feature_names)].to_numpy(dtype=np.float64))


def _compare_vectors(name: str, signal: Signal, vector: npt.NDArray[np.float64], model: Model, same_code: bool) -> Part:
    then = signal.vector
    if then.shape != vector.shape:
        return Part(name, _bad(same_code), f"shape {then.shape} then, {vector.shape} now")
    same = (then.view(np.int64) == vector.view(np.int64)) | (np.isnan(then) & np.isnan(vector))
    if same.all():
        return Part(name, "same", f"{then.size} numbers")
    columns = [model.feature_names[at] for at in np.flatnonzero(~same.all(axis=0))]
    shown = ", ".join(
        f"{column} {then[-1, at]!r} then, {vector[-1, at]!r} now"
        for column in columns[:3]
        for at in [model.feature_names.index(column)]
    )
    return Part(
        name, _bad(same_code), f"{int((~same).sum())} of {then.size} numbers in {len(columns)} columns: {shown}"
    )


def _forecast_again(signal: Signal, model: Model, name: str, same_code: bool) -> Part:
    step_ms = signal.key.market.timeframe.ms
    index = pd.Index(signal.key.ts - step_ms * np.arange(len(signal.vector) - 1, -1, -1, dtype=np.int64), name="ts")
    blank = np.array(signal.details["blank"], dtype=np.bool_)
    said = ask(model, signal.vector, model.feature_names, index, blank)
    said["edge"] = edge_of(said["score"], signal.width)
    then = {**signal.forecast, "edge": signal.edge}
    different = [
        f"{column} {then[column]!r} then, {said[column]!r} now"
        for column in (*FORECAST, "edge")
        if not _same(then[column], said[column])
    ]
    return Part(name, _bad(same_code) if different else "same", "; ".join(different))


def _bad(same_code: bool) -> Outcome:
    return "differs" if same_code else "code changed"
