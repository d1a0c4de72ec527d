"""The promotion gate: a signed record of what was measured, and everything that is checked before anybody believes it.

The record is made from a stored backtest and judged when a model is promoted, and judged and checked again whenever the
model is loaded: the numbers by the constants in code now, the signature, the artefact's bytes, the trial ledger, the
libraries that are installed now.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from mlbot_core.clock import format_utc
from mlbot_core.errors import MlbotError
from mlbot_core.models.artefact import ArtefactError, LibraryMismatchError, read_artefact
from mlbot_core.models.base import FeatureMismatchError
from mlbot_core.models.canonical import canonical_json, sha256_hex
from mlbot_core.models.registry_events import Registration, RegistryTamperedError, SignedGate
from mlbot_core.models.registry_state import Entry
from mlbot_core.models.signing import Signer
from mlbot_core.timeframe import DAY_MS
from mlbot_core.validation.criteria import (
    BOUNDS,
    MAX_BACKTEST_AGE_DAYS,
    Measured,
    Statistics,
    Verdict,
    judge_measured,
)
from mlbot_core.validation.namespaces import namespace_of
from mlbot_core.validation.trials import Head, LedgerTamperedError, TrialLedger

FORMAT: Final = 1
SIZES: Final = ("traded", "unit")
_SIGNED_AS: Final = "gate record"


class GateRefusedError(MlbotError):
    """A model does not pass the promotion gate. Nothing was changed."""


@dataclass(frozen=True)
class GateRecord:
    """What a model is promoted on.

    Parameters
    ----------
    registration
        Which model, trained on what, with what, and the hash of its artefact.
    traded, unit
        What its backtest measured at the traded size with risk on, and at unit exposure.
    statistics
        DSR and PBO with the ledger's N.
    ledger_head
        Of the trial ledger that they come from.
    backtest_start_ms, backtest_end_ms
        Period of the backtest, UTC ms, [start, end).
    backtest_version
        Hash of the stored equity.
    conditions
        Hash of the fees, limits and delays it was traded under.
    made_at_ms
        When the record was made, UTC ms.
    """

    registration: Registration
    traded: Measured
    unit: Measured
    statistics: Statistics
    ledger_head: str
    backtest_start_ms: int
    backtest_end_ms: int
    backtest_version: str
    conditions: str
    made_at_ms: int

    def age_days(self, now_ms: int) -> float:
        """Return how long before ``now_ms`` (UTC ms) the backtest ended, in days."""
        return (now_ms - self.backtest_end_ms) / DAY_MS

    @property
    def verdict(self) -> Verdict:
        """The numbers under the constants in code."""
        return judge_measured(self.traded, self.unit, self.statistics)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, with the bounds in force and the verdict under them, for whoever reads it alone."""
        model = self.registration
        return {
            "format": FORMAT,
            "model_version": model.version,
            "slot": model.as_json()["slot"],
            "identity": model.identity,
            "synthetic": model.synthetic,
            "artefact_sha256": model.artefact_sha256,
            "features_sha256": sha256_hex(canonical_json(list(model.features))),
            "period": [model.start_ms, model.end_ms],
            "data_as_of_ms": model.data_as_of_ms,
            "partitions_sha256": sha256_hex(canonical_json(dict(model.inputs.get("partitions", {})))),
            "libraries": dict(model.libraries),
            "code": str(model.inputs.get("code", "")),
            "traded": self.traded.as_json(),
            "unit": self.unit.as_json(),
            "dsr": _number(self.statistics.dsr),
            "pbo": _number(self.statistics.pbo),
            "n_trials": self.statistics.n_trials,
            "ledger_head": self.ledger_head,
            "backtest_period": [self.backtest_start_ms, self.backtest_end_ms],
            "backtest_version": self.backtest_version,
            "conditions": self.conditions,
            "bounds": dict(BOUNDS),
            "outcome": self.verdict.outcome,
            "made_at_ms": self.made_at_ms,
        }


def sign_record(record: GateRecord, signer: Signer) -> SignedGate:
    """Return the record as it is stored."""
    text = canonical_json(record.as_json())
    return SignedGate(text, signer.sign(_SIGNED_AS, text))


def read_record(gate: SignedGate, registration: Registration, signer: Signer) -> GateRecord:
    """Return a stored record after its signature, and that it is about this very model, were verified.

    Raises
    ------
    RegistryTamperedError
        If it was changed, signed with another key, is not readable or about another model.
    """
    name = f"the gate record of model {registration.version[:12]}"
    restore = "restore the registry from a backup or promote a model again"
    if not signer.verify(_SIGNED_AS, gate.text, gate.signature):
        raise RegistryTamperedError(
            f"{name} was changed, or was not signed with this registry's key {signer.key_id}; {restore}"
        )
    facts = gate.facts
    if facts.get("format") != FORMAT:
        raise RegistryTamperedError(f"{name} has format {facts.get('format')!r}, this code reads {FORMAT}; {restore}")
    try:
        record = GateRecord(
            registration=registration,
            traded=Measured.from_json(facts["traded"]),
            unit=Measured.from_json(facts["unit"]),
            statistics=Statistics(_float(facts["dsr"]), _float(facts["pbo"]), int(facts["n_trials"])),
            ledger_head=str(facts["ledger_head"]),
            backtest_start_ms=int(facts["backtest_period"][0]),
            backtest_end_ms=int(facts["backtest_period"][1]),
            backtest_version=str(facts["backtest_version"]),
            conditions=str(facts["conditions"]),
            made_at_ms=int(facts["made_at_ms"]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RegistryTamperedError(f"{name} cannot be read ({type(error).__name__}: {error}); {restore}") from error
    # the bounds and the outcome are what they were then; everything else has to be what the registration says
    past = {"bounds": facts.get("bounds"), "outcome": facts.get("outcome")}
    if record.as_json() | past != facts:
        raise RegistryTamperedError(f"{name} is about something else than that model as it is registered; {restore}")
    return record


def require_passed(record: GateRecord) -> None:
    """Refuse numbers that do not pass under the constants in code.

    Raises
    ------
    GateRefusedError
        Naming every criterion that fails, with value and bound.
    """
    verdict = record.verdict
    if verdict.passed:
        return
    failing = [f"{name} {value} (required {bound})" for name, value, bound, passed in _lines(record) if not passed]
    reasons = ", ".join(failing) or verdict.outcome
    model = record.registration
    raise GateRefusedError(
        f"model {model.version[:12]} ({model.slot}) does not pass the gate: {reasons}; nothing was changed: "
        "improve the model and backtest it, the bounds are constants"
    )


def require_recent(record: GateRecord, now_ms: int) -> None:
    """Refuse a backtest that ended too long ago to speak for the market that would be traded now.

    Asked when a model is promoted, and not when it is loaded: what watches a champion afterwards is the drift of its
    features and forecasts, and a rollback has to be possible at any time.

    Raises
    ------
    GateRefusedError
        If more than ``MAX_BACKTEST_AGE_DAYS`` lie between its end and ``now_ms`` (UTC ms).
    """
    age = record.age_days(now_ms)
    if age <= MAX_BACKTEST_AGE_DAYS:
        return
    model = record.registration
    raise GateRefusedError(
        f"the backtest of model {model.version[:12]} ({model.slot}) ends {format_utc(record.backtest_end_ms)}, "
        f"{age:.0f} days before now, and at most {MAX_BACKTEST_AGE_DAYS} may lie between; nothing was changed: pull "
        f"newer data, then train and backtest it again (mlbot train {model.slot.command})"
    )


def check_record(record: GateRecord, models_dir: Path, ledger: TrialLedger) -> None:
    """Check everything that a record rests on, besides its signature.

    Raises
    ------
    GateRefusedError
        If the numbers fail, or were judged in the ledger of another market.
    LedgerTamperedError
        If the ledger does not hold the head any more that the statistics come from.
    ArtefactError, FeatureMismatchError
        If the artefact is missing, damaged, another one, or of other features.
    LibraryMismatchError
        If another release of a library is installed.
    """
    require_passed(record)
    model = record.registration
    head = Head.parse(record.ledger_head)
    wanted = namespace_of(model.slot.source, model.identity)
    if head.namespace != wanted:
        raise GateRefusedError(
            f"model {model.version[:12]} was judged among the trials of {head.namespace}, and those of {model.slot} "
            f"count in {wanted}; run: mlbot backtest {model.slot.command}"
        )
    _, problems = ledger.examine(head.namespace, [head])
    if problems:
        raise LedgerTamperedError(
            f"the trial ledger that judged model {model.version[:12]} cannot be believed: {'; '.join(problems)}; "
            "restore it from a backup (`mlbot trials verify` says more)"
        )
    check_artefact(model, models_dir)
    check_releases(model)


def check_artefact(model: Registration, models_dir: Path) -> None:
    """Refuse an artefact that is not, to the byte, the one that was registered.

    Raises
    ------
    ArtefactError
        If it is missing, truncated, changed or another one.
    FeatureMismatchError
        If it was trained on other features.
    """
    folder = models_dir / model.version
    meta, _ = read_artefact(folder)
    trained = tuple(str(name) for name in meta.get("features", ()))
    require_features(model.features, trained, f"the artefact in {folder}", "train the model again")
    digest = artefact_digest(meta)
    if digest != model.artefact_sha256:
        raise ArtefactError(
            f"{folder} holds another model than the registered one (SHA-256 of its meta {digest[:12]}.. instead of "
            f"{model.artefact_sha256[:12]}..); restore the folder from a backup, or delete it and train the model again"
        )


def artefact_digest(meta: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an artefact's meta, which names the SHA-256 of every one of its files."""
    return sha256_hex(canonical_json(dict(meta)))


def require_features(expected: Collection[str], found: Collection[str], who: str, then: str) -> None:
    """Refuse features that are not exactly the expected ones; their order does not matter.

    Parameters
    ----------
    expected, found
        As the model was registered, and as they are.
    who, then
        For the message: what has the found ones, and the next step.

    Raises
    ------
    FeatureMismatchError
        Naming the first ones that are missing or too many.
    """
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    parts = [f"{word} {', '.join(names[:5])}" for word, names in (("lacks", missing), ("adds", extra)) if names]
    if parts:
        raise FeatureMismatchError(
            f"{who} has {len(found)} features where the model was registered with {len(expected)}: "
            f"it {' and '.join(parts)}; {then}"
        )


def check_releases(model: Registration) -> None:
    """Refuse a model that was trained with other releases of its libraries than those installed.

    Raises
    ------
    LibraryMismatchError
        Naming every library with both versions.
    """
    installed = {name: _installed(name) for name in model.libraries}
    different = [
        f"{name} {model.libraries[name]} (installed: {now or 'none'})"
        for name, now in installed.items()
        if now != model.libraries[name]
    ]
    if different or not model.libraries:
        what = ", ".join(different) or "unknown libraries"
        raise LibraryMismatchError(
            f"model {model.version[:12]} ({model.slot}) was trained with {what}: its forecasts may differ now; install "
            f"those releases (constraints.txt) or train it again: mlbot train {model.slot.command}"
        )


def gate_rows(entry: Entry, signer: Signer) -> list[dict[str, Any]]:
    """Return a model's stored gate record for a table or an asset check: one row a criterion; none without a record.

    Keys: ``size`` (``traded``, ``unit``; empty for the statistics), ``criterion``, ``value``, ``bound``, ``passed``.
    """
    return [] if entry.gate is None else record_rows(read_record(entry.gate, entry.registration, signer))


def record_rows(record: GateRecord) -> list[dict[str, Any]]:
    """Return one row a criterion, as :func:`gate_rows`; a value that is not defined is None and fails."""
    verdict = record.verdict
    names = {size: f"{size} " for size in SIZES}
    rows = [
        {"size": size, "criterion": c.name, "value": _number(c.value), "bound": c.bound, "passed": c.passed}
        for size in names
        for c in verdict.criteria[size]
    ]
    rows += [
        {
            "size": size,
            "criterion": "Sharpe, lower end",
            "value": _number(getattr(record, size).sharpe_low),
            "bound": "> 0",
            "passed": bool(getattr(record, size).sharpe_low > 0),
        }
        for size in names
    ]
    rows += [
        {"size": "", "criterion": c.name, "value": _number(c.value), "bound": c.bound, "passed": c.passed}
        for c in verdict.statistics
    ]
    rows += [
        {"size": "", "criterion": name, "value": None, "bound": bound, "passed": False}
        for name, bound in verdict.not_evaluated
    ]
    age = record.age_days(record.made_at_ms)
    bound = f"<= {MAX_BACKTEST_AGE_DAYS}"
    rows.append(
        {
            "size": "",
            "criterion": "days since the backtest",
            "value": age,
            "bound": bound,
            "passed": age <= MAX_BACKTEST_AGE_DAYS,
        }
    )
    return rows


def describe_record(record: GateRecord) -> str:
    """Return in one line where the numbers come from."""
    period = f"{format_utc(record.backtest_start_ms)} to {format_utc(record.backtest_end_ms)}"
    label = "SYNTHETIC market, " if record.registration.synthetic else ""
    return f"{label}backtest {period}, N = {record.statistics.n_trials}, ledger {record.ledger_head}"


def _lines(record: GateRecord) -> list[tuple[str, str, str, bool]]:
    lines = []
    for row in record_rows(record):
        value = "undefined" if row["value"] is None else f"{row['value']:.4g}"
        size = f" ({row['size']})" if row["size"] else ""
        lines.append((f"{row['criterion']}{size}", value, str(row["bound"]), bool(row["passed"])))
    return lines


def _installed(name: str) -> str | None:
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
