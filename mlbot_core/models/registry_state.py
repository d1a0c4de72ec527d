"""What all events of the registry together come to: the stage of every model. Pure.

=============  ==============================  =============================================================
event          asks for                        does
=============  ==============================  =============================================================
registered     a new version                   the version is a candidate
gate           a candidate                     keeps its gate record; nothing else changes
promoted       a candidate with a gate record  it is champion of its slot; the champion until then is retired
rolled_back    the previous champion           it is champion again; the champion until then is retired
retired        a candidate or champion         it is retired; a slot without its champion has none
=============  ==============================  =============================================================

A candidate beside a champion is a challenger: it may run in its shadow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from mlbot_core.models.registry_events import (
    CHAIN,
    Event,
    Registration,
    RegistryTamperedError,
    SignedGate,
    Slot,
)
from mlbot_core.validation.trials_chain import GENESIS, Head

Stage = Literal["candidate", "champion", "retired"]

EMPTY: Final = Head(CHAIN, 0, GENESIS)


@dataclass(frozen=True)
class Entry:
    """A model in the registry.

    Parameters
    ----------
    registration
        What it is.
    stage
        What it is now.
    registered_ms, since_ms
        When it entered, and since when it has this stage, UTC ms.
    who, why
        Of the event that gave it this stage.
    gate
        The newest gate record; None if it never passed one.
    """

    registration: Registration
    stage: Stage
    registered_ms: int
    since_ms: int
    who: str
    why: str
    gate: SignedGate | None = None

    @property
    def version(self) -> str:
        """The model's version."""
        return self.registration.version

    @property
    def slot(self) -> Slot:
        """What it is or would be champion of."""
        return self.registration.slot


@dataclass(frozen=True)
class RegistryState:
    """What all events come to.

    Parameters
    ----------
    models
        By version, in the order in which they were registered.
    champions
        The version of each slot that has one.
    lines
        Champions of each slot in the order of their promotions, without those that were rolled back or retired.
    head
        Of the chain of events.
    """

    models: Mapping[str, Entry] = field(default_factory=dict)
    champions: Mapping[Slot, str] = field(default_factory=dict)
    lines: Mapping[Slot, tuple[str, ...]] = field(default_factory=dict)
    head: Head = EMPTY

    def champion(self, slot: Slot) -> Entry | None:
        """Return the champion of a slot, None if it has none."""
        version = self.champions.get(slot)
        return None if version is None else self.models[version]

    def previous(self, slot: Slot) -> Entry | None:
        """Return which model a rollback would make champion again, None if there is none."""
        line = [version for version in self.lines.get(slot, ()) if version != self.champions.get(slot)]
        return self.models[line[-1]] if line else None

    def role(self, entry: Entry) -> str:
        """Return the stage in words: a candidate beside a champion is a ``challenger``."""
        return "challenger" if entry.stage == "candidate" and entry.slot in self.champions else entry.stage


def fold(events: Iterable[Event]) -> RegistryState:
    """Return what all events come to.

    Raises
    ------
    RegistryTamperedError
        If an event cannot have happened after those before it.
    """
    state = RegistryState()
    for event in events:
        state = replace(_apply(state, event), head=event.head)
    return state


def _apply(state: RegistryState, event: Event) -> RegistryState:
    if event.kind == "registered":
        if event.version in state.models:
            raise _impossible(event, "is registered already")
        registration = Registration.from_json(event.facts)
        entry = Entry(registration, "candidate", event.at_ms, event.at_ms, event.who, event.why)
        return replace(state, models={**state.models, event.version: entry})
    found = state.models.get(event.version)
    if found is None:
        raise _impossible(event, "was never registered")
    if event.kind == "gate":
        if found.stage != "candidate":
            raise _impossible(event, f"is {found.stage}")
        gate = SignedGate(event.facts["record"], event.facts["signature"])
        return replace(state, models={**state.models, event.version: replace(found, gate=gate)})
    line = state.lines.get(found.slot, ())
    now = state.champions.get(found.slot)
    if event.kind == "promoted":
        if found.stage != "candidate" or found.gate is None:
            raise _impossible(event, f"is {found.stage}{'' if found.gate else ' without a gate record'}")
        return _crown(state, event, found, (*line, event.version))
    if event.kind == "rolled_back":
        previous = state.previous(found.slot)
        if previous is None or previous.version != event.version:
            raise _impossible(event, "is not the previous champion")
        return _crown(state, event, found, tuple(version for version in line if version != now))
    if event.kind == "retired":
        if found.stage == "retired":
            raise _impossible(event, "is retired already")
        champions = {slot: version for slot, version in state.champions.items() if version != event.version}
        lines = {**state.lines, found.slot: tuple(version for version in line if version != event.version)}
        return replace(state, models=_staged(state, event, retired=event.version), champions=champions, lines=lines)
    raise _impossible(event, "has an event of an unknown kind")


def _crown(state: RegistryState, event: Event, entry: Entry, line: tuple[str, ...]) -> RegistryState:
    """Make one model champion of its slot and retire the one before."""
    return replace(
        state,
        models=_staged(state, event, retired=state.champions.get(entry.slot), champion=event.version),
        champions={**state.champions, entry.slot: event.version},
        lines={**state.lines, entry.slot: line},
    )


def _staged(
    state: RegistryState, event: Event, *, retired: str | None, champion: str | None = None
) -> dict[str, Entry]:
    models = dict(state.models)
    stages: tuple[tuple[str | None, Stage], ...] = ((retired, "retired"), (champion, "champion"))
    for version, stage in stages:
        if version is not None:
            models[version] = replace(models[version], stage=stage, since_ms=event.at_ms, who=event.who, why=event.why)
    return models


def _impossible(event: Event, why: str) -> RegistryTamperedError:
    return RegistryTamperedError(
        f"event {event.seq} of the registry ({event.kind}) cannot have happened: model {event.version[:12]} {why}; "
        "restore the registry from a backup"
    )
