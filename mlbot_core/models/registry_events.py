"""What happened to models, as a chain of signed events. Pure: no file, no store.

An event is never changed or removed. Every one carries the hash of the one before and a signature; the newest hash is
kept in a second place (:mod:`mlbot_core.validation.trials_heads`). What all events together come to is
:mod:`mlbot_core.models.registry_state`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from mlbot_core.clock import format_utc
from mlbot_core.errors import MlbotError
from mlbot_core.models.canonical import canonical_json, sha256_hex
from mlbot_core.models.signing import Signer
from mlbot_core.validation.namespaces import is_synthetic
from mlbot_core.validation.trials_chain import GENESIS, Head, head_problems

CHAIN: Final = "registry"
KINDS: Final = ("registered", "gate", "promoted", "rolled_back", "retired")


class RegistryError(MlbotError):
    """The registry refused an operation, or cannot be opened."""


class RegistryTamperedError(RegistryError):
    """Events or a gate record were changed, removed, or not written by this code with this key."""


class StageError(RegistryError):
    """A model is not in the stage that was asked for, or may not be used there."""


@dataclass(frozen=True, order=True)
class Slot:
    """What there is one champion of.

    Parameters
    ----------
    source, symbol, timeframe, model_type
        As in the stored tables: ``archive``, ``BTC``, ``2h``, ``lightgbm``.
    """

    source: str
    symbol: str
    timeframe: str
    model_type: str

    @property
    def market(self) -> str:
        """For instance ``BTC-2h``."""
        return f"{self.symbol}-{self.timeframe}"

    @property
    def command(self) -> str:
        """These words as options of the ``mlbot`` command."""
        return f"--source {self.source} --symbol {self.symbol} --interval {self.timeframe} --model {self.model_type}"

    def __str__(self) -> str:
        return f"{self.market} {self.model_type} from {self.source}"


@dataclass(frozen=True)
class Registration:
    """What is known of a version when it enters.

    Parameters
    ----------
    version
        Hash of ``inputs``, 64 hex digits.
    slot
        What it would be champion of.
    identity
        Of the market, as it is stored with its bars; empty for real data.
    artefact_sha256
        SHA-256 of the artefact's meta, which names the SHA-256 of every file.
    features
        Columns that it was trained on, in order.
    start_ms, end_ms
        Walk-forward test period, UTC ms, [start, end).
    data_as_of_ms
        What was observed until then could train it, UTC ms.
    inputs
        Everything that the version is made from, plain JSON.
    run_id
        Which run trained it.
    """

    version: str
    slot: Slot
    identity: str
    artefact_sha256: str
    features: tuple[str, ...]
    start_ms: int
    end_ms: int
    data_as_of_ms: int
    inputs: Mapping[str, Any]
    run_id: str

    @property
    def synthetic(self) -> bool:
        """Whether it was trained on a made-up market."""
        return is_synthetic(self.slot.source, self.identity)

    @property
    def libraries(self) -> Mapping[str, str]:
        """Libraries that it was trained with, and Python, with their versions."""
        found: Mapping[str, str] = self.inputs.get("libraries", {})
        return found

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"features": list(self.features)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Registration:
        """Read what :meth:`as_json` wrote."""
        return cls(**{**values, "slot": Slot(**values["slot"]), "features": tuple(values["features"])})


@dataclass(frozen=True)
class Event:
    """One thing that happened, as stored.

    Parameters
    ----------
    seq
        Its number, from 1.
    kind
        One of ``KINDS``.
    version
        The model that it is about.
    at_ms, who, why
        When (injected clock, UTC ms), ``user@host``, and the reason in words.
    body
        What belongs to the kind, canonical JSON.
    key_id
        Names the key of the signature.
    prev_hash, row_hash, signature
        The chain; the signature is of ``row_hash``.
    """

    seq: int
    kind: str
    version: str
    at_ms: int
    who: str
    why: str
    body: str
    key_id: str
    prev_hash: str
    row_hash: str
    signature: str

    @property
    def facts(self) -> dict[str, Any]:
        """The body as plain values."""
        value: dict[str, Any] = json.loads(self.body)
        return value

    @property
    def head(self) -> Head:
        """The head of the chain right after this event."""
        return Head(CHAIN, self.seq, self.row_hash)

    def expected_hash(self) -> str:
        """Return the hash that this content and this predecessor must have."""
        content = {name: value for name, value in asdict(self).items() if name not in ("row_hash", "signature")}
        return sha256_hex(canonical_json(content))


@dataclass(frozen=True)
class SignedGate:
    """A gate record as it was signed: canonical JSON, and its signature."""

    text: str
    signature: str

    @property
    def facts(self) -> dict[str, Any]:
        """The record as plain values."""
        value: dict[str, Any] = json.loads(self.text)
        return value


def make_event(
    head: Head, kind: str, version: str, body: Mapping[str, Any], *, at_ms: int, who: str, why: str, signer: Signer
) -> Event:
    """Return the event that follows ``head``, hashed and signed.

    Raises
    ------
    ValueError, TypeError
        If the body is not plain JSON.
    """
    bare = Event(
        seq=head.count + 1,
        kind=kind,
        version=version,
        at_ms=at_ms,
        who=who,
        why=why,
        body=canonical_json(dict(body)),
        key_id=signer.key_id,
        prev_hash=head.hash,
        row_hash="",
        signature="",
    )
    digest = bare.expected_hash()
    return replace(bare, row_hash=digest, signature=signer.sign("registry event", digest))


def event_problems(events: Sequence[Event], signer: Signer | None, witnesses: Iterable[Head]) -> list[str]:
    """Return what is wrong with a chain of events, in words; empty for a sound one.

    Parameters
    ----------
    events
        In the order of their numbers.
    signer
        The key of this home; None where there is none.
    witnesses
        Heads written down elsewhere: the chain must still hold every one of them.
    """
    found: list[str] = []
    before, expected = GENESIS, 1
    for event in events:
        name = f"event {event.seq} ({event.kind} {event.version[:12]}, {format_utc(event.at_ms)})"
        if event.seq != expected:
            found.append(f"events {expected} to {event.seq - 1} are missing")
        elif event.prev_hash != before:
            found.append(f"{name} does not follow event {event.seq - 1}, which was changed or replaced")
        if event.row_hash != event.expected_hash():
            found.append(f"{name} was changed")
        elif signer is not None and event.key_id != signer.key_id:
            found.append(f"{name} was signed with key {event.key_id}, and the key here is {signer.key_id}")
        elif signer is not None and not signer.verify("registry event", event.row_hash, event.signature):
            found.append(f"{name} was not signed with this registry's key")
        before, expected = event.row_hash, event.seq + 1
    hashes = {0: GENESIS} | {event.seq: event.row_hash for event in events}
    return found + head_problems(CHAIN, hashes, witnesses)
