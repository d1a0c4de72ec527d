"""The model registry: which versions exist, which one is champion, who decided that, when and why.

``<home>/registry.sqlite`` (WAL, ``synchronous=FULL``), or Postgres where ``MLBOT_PG_URL`` is set; not in the warehouse,
which may be deleted and made again. An append-only chain of signed events
(:mod:`mlbot_core.models.registry_events`); heads are kept in ``<home>/registry-heads``. Everything that changes a stage
happens in one transaction that nobody else shares (a fair file lock, then ``BEGIN IMMEDIATE`` or an advisory lock) and
that begins with reading and verifying the whole chain: of two promotions at once the second one sees the first, and a
process that dies before the commit has changed nothing.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mlbot_core.clock import Clock
from mlbot_core.errors import UsageError
from mlbot_core.models.artefact import read_artefact
from mlbot_core.models.canonical import canonical_json, sha256_hex
from mlbot_core.models.gate import (
    GateRecord,
    artefact_digest,
    check_record,
    read_record,
    require_recent,
    sign_record,
)
from mlbot_core.models.registry_events import (
    CHAIN,
    Event,
    Registration,
    RegistryError,
    RegistryTamperedError,
    Slot,
    StageError,
    event_problems,
    make_event,
)
from mlbot_core.models.registry_state import Entry, RegistryState, fold
from mlbot_core.models.registry_store import RegistryStore
from mlbot_core.models.signing import Signer, make_signer, read_signer
from mlbot_core.validation.trials import Head, LedgerTamperedError, TrialLedger
from mlbot_core.validation.trials_heads import HeadFile
from mlbot_core.warehouse.locks import FileLock

FILE_NAME: Final = "registry.sqlite"
KEY_NAME: Final = "registry.key"
HEADS_FOLDER: Final = "registry-heads"
MIN_PREFIX: Final = 6


@dataclass(frozen=True)
class _Change:
    """An event that is wanted: its kind, the model, and what belongs to it."""

    kind: str
    version: str
    body: Mapping[str, Any]
    why: str


class Registry:
    """The registry of one home.

    Parameters
    ----------
    home
        Folder of the SQLite file, the key, the heads and the lock; created on first use.
    clock
        Says when something happened.
    url
        SQLAlchemy URL of a Postgres database; None for SQLite.
    who
        Who acts here; by default the user and the machine.
    timeout_s
        Longest wait for other processes, in seconds.
    """

    def __init__(
        self, home: Path, clock: Clock, *, url: str | None = None, who: str | None = None, timeout_s: float = 60.0
    ) -> None:
        self.home = home
        self._clock = clock
        self._who = who or _whoami()
        self._store = RegistryStore(home / FILE_NAME, url, timeout_s)
        self._lock = FileLock(home / FILE_NAME, timeout_s)
        self._heads = HeadFile(home / HEADS_FOLDER / self._store.identity, CHAIN)

    def state(self) -> RegistryState:
        """Return what all events come to, after they were verified.

        Raises
        ------
        RegistryTamperedError
            If an event was changed, removed or not signed with this home's key; every finding is named.
        RegistryError
            If the store cannot be read or the key is missing.
        """
        return self._read()[1]

    def events(self, version: str | None = None) -> list[Event]:
        """Return the verified events, of one model or all, oldest first.

        Raises
        ------
        RegistryTamperedError, RegistryError
            As :meth:`state`.
        """
        return [event for event in self._read()[0] if version in (None, event.version)]

    @property
    def signer(self) -> Signer:
        """The key of this home.

        Raises
        ------
        RegistryError
            If there is none yet.
        """
        signer = read_signer(self.home / KEY_NAME)
        if signer is None:
            raise RegistryError(f"{self.home} has no registry yet; train a model first: mlbot train")
        return signer

    def find(self, text: str, state: RegistryState | None = None) -> Entry:
        """Return the model whose version begins with ``text``.

        Raises
        ------
        UsageError
            If none or several do, or the text is shorter than six characters.
        """
        known = (self.state() if state is None else state).models
        found = [entry for version, entry in known.items() if version.startswith(text)]
        if len(text) < MIN_PREFIX or len(found) > 1:
            raise UsageError(
                f"model version {text!r} is ambiguous ({len(found)} begin with it); give at least {MIN_PREFIX} "
                "characters and enough to tell them apart, see: mlbot models list"
            )
        if not found:
            raise UsageError(
                f"no model version beginning with {text!r} is registered; see `mlbot models list`, or train it "
                "(a model that was trained before is registered again by training): mlbot train"
            )
        return found[0]

    def register(
        self,
        version: str,
        *,
        slot: Slot,
        identity: str,
        start_ms: int,
        end_ms: int,
        data_as_of_ms: int,
        inputs: Mapping[str, Any],
        models_dir: Path,
        run_id: str,
    ) -> Entry:
        """Enter a version with its stored artefact as a candidate; one that is there already is returned as it is.

        Parameters
        ----------
        version
            Hash of ``inputs``; its artefact lies in ``models_dir / version``.
        slot
            What it would be champion of.
        identity
            Of the market, as stored with its bars; empty for real data.
        start_ms, end_ms
            Walk-forward test period, UTC ms, [start, end).
        data_as_of_ms
            What was observed until then could train it, UTC ms.
        inputs
            What the version is made from (:class:`mlbot_core.models.version.VersionInputs` as JSON).
        run_id
            Which run trained it.

        Raises
        ------
        ArtefactError
            If the artefact is missing or damaged.
        RegistryError
            If the version is not the hash of the inputs, or is registered with another slot or artefact.
        """
        if sha256_hex(canonical_json(dict(inputs))) != version:
            raise RegistryError(
                f"model version {version[:12]} is not the hash of what it was made from; nothing was registered: "
                "register exactly the inputs that made the version"
            )
        meta, _ = read_artefact(models_dir / version)
        wanted = Registration(
            version,
            slot,
            identity,
            artefact_digest(meta),
            tuple(str(name) for name in meta.get("features", ())),
            start_ms,
            end_ms,
            data_as_of_ms,
            dict(inputs),
            run_id,
        )

        def change(state: RegistryState, _signer: Signer) -> list[_Change]:
            known = state.models.get(version)
            if known is None:
                return [_Change("registered", version, wanted.as_json(), f"trained by run {run_id}")]
            same = ("slot", "identity", "artefact_sha256", "features")
            other = [name for name in same if getattr(known.registration, name) != getattr(wanted, name)]
            if other:
                raise RegistryError(
                    f"model {version[:12]} is registered already with another {' and '.join(other)}; a version is "
                    "immutable: find out what changed its bytes (code, library, machine) and train a new version"
                )
            return []

        return self._write(change).models[version]

    def promote(self, record: GateRecord, *, models_dir: Path, ledger: TrialLedger, why: str) -> RegistryState:
        """Make a candidate champion of its slot, and retire the champion until then; all or nothing.

        Parameters
        ----------
        record
            What its backtest measured; judged and checked here, whatever it says of itself.

        Raises
        ------
        GateRefusedError
            If the numbers do not pass, or the backtest ended too long ago.
        ArtefactError, FeatureMismatchError, LibraryMismatchError, LedgerTamperedError
            If what it rests on cannot be believed.
        StageError
            If it is not a candidate.
        """
        version = record.registration.version

        def change(state: RegistryState, signer: Signer) -> list[_Change]:
            entry = _known(state, version)
            if entry.stage != "candidate":
                raise StageError(
                    f"model {version[:12]} ({entry.slot}) is {entry.stage}, and only a candidate can be promoted; "
                    + (
                        "it trades already"
                        if entry.stage == "champion"
                        else f"to return to the champion before, run: mlbot models rollback {entry.slot.command}"
                    )
                )
            if record.registration != entry.registration:
                raise RegistryTamperedError(
                    f"the gate record of model {version[:12]} is about something else than that model as registered; "
                    "make it again from the stored backtest"
                )
            gate = sign_record(record, signer)
            # what is judged is what will be read again, not what was handed in
            read = read_record(gate, entry.registration, signer)
            check_record(read, models_dir, ledger)
            require_recent(read, self._clock.now_ms())
            former = state.champions.get(entry.slot)
            label = "synthetic" if entry.registration.synthetic else "real"
            return [
                _Change("gate", version, {"record": gate.text, "signature": gate.signature}, why),
                _Change("promoted", version, {"former": former, "label": label}, why),
            ]

        return self._write(change)

    def rollback(self, slot: Slot, *, models_dir: Path, ledger: TrialLedger, why: str) -> RegistryState:
        """Return to the previous champion of a slot, if its gate record still holds; the champion is retired.

        Raises
        ------
        StageError
            If there was no champion before.
        GateRefusedError, RegistryTamperedError, ArtefactError, LibraryMismatchError, LedgerTamperedError
            If the previous champion does not pass now what a champion has to pass; the present one stays.
        """

        def change(state: RegistryState, signer: Signer) -> list[_Change]:
            previous = state.previous(slot)
            if previous is None or previous.gate is None:
                raise StageError(
                    f"{slot} has no champion to return to; see its history: mlbot models list --all, or promote one"
                )
            check_record(read_record(previous.gate, previous.registration, signer), models_dir, ledger)
            return [_Change("rolled_back", previous.version, {"former": state.champions.get(slot)}, why)]

        return self._write(change)

    def retire(self, version: str, *, why: str) -> RegistryState:
        """Retire a candidate or champion; final, but for a champion that a rollback returns to.

        Raises
        ------
        StageError
            If it is retired already.
        """

        def change(state: RegistryState, _signer: Signer) -> list[_Change]:
            entry = _known(state, version)
            if entry.stage == "retired":
                raise StageError(f"model {version[:12]} ({entry.slot}) is retired already; nothing was changed")
            return [_Change("retired", version, {"former_stage": entry.stage}, why)]

        return self._write(change)

    def _write(self, change: Callable[[RegistryState, Signer], list[_Change]]) -> RegistryState:
        """Verify everything, ask what is to change, and append it: all in one transaction."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self._lock.exclusive():
            with self._store.transaction() as writing:
                events = writing.events()
                witnesses, problems = self._witnesses()
                signer = self._signer(events) or make_signer(self.home / KEY_NAME)
                state = self._verified(events, signer, witnesses, problems)
                self._heads.begin()
                head = state.head
                added: list[Event] = []
                for one in change(state, signer):
                    event = make_event(
                        head,
                        one.kind,
                        one.version,
                        one.body,
                        at_ms=self._clock.now_ms(),
                        who=self._who,
                        why=one.why,
                        signer=signer,
                    )
                    writing.add(event)
                    added.append(event)
                    head = event.head
                after = fold([*events, *added])
            # only what is committed is a fact; a crash before this line leaves the heads behind, which is allowed
            self._heads.record(head)
        return after

    def _read(self) -> tuple[list[Event], RegistryState]:
        # heads first: the store can only have grown by the time that it is read
        witnesses, problems = self._witnesses()
        events = self._store.events()
        state = self._verified(events, self._signer(events), witnesses, problems)
        if self._store.shared and events and state.head not in witnesses:
            self._remember(state.head)
        return events, state

    def _remember(self, head: Head) -> None:
        """Write down a head that another machine made, so that what was seen here cannot be cut off unnoticed."""
        with self._lock.exclusive():
            self._heads.begin()
            if max(known.count for known in self._heads.read()) < head.count:
                self._heads.record(head)

    def _witnesses(self) -> tuple[list[Head], list[str]]:
        try:
            return self._heads.read(), []
        except LedgerTamperedError:
            return [], [f"{self._heads.path} is damaged"]

    def _signer(self, events: list[Event]) -> Signer | None:
        signer = read_signer(self.home / KEY_NAME)
        if signer is None and events:
            raise RegistryError(
                f"the key {self.home / KEY_NAME} is missing, and the registry was signed with key "
                f"{events[-1].key_id}; restore it from a backup, or copy it from the machine that shares this registry"
            )
        return signer

    def _verified(
        self, events: list[Event], signer: Signer | None, witnesses: list[Head], problems: list[str]
    ) -> RegistryState:
        found = problems + event_problems(events, signer, witnesses)
        if events and not self._heads.exists() and not self._store.shared:
            found.append(f"{self._heads.path} is missing, which names what the registry once held")
        if found:
            raise RegistryTamperedError(
                f"the model registry in {self.home} was tampered with or damaged: {'; '.join(found)}; restore "
                f"{FILE_NAME}, {KEY_NAME} and {HEADS_FOLDER} from a backup: until then no model is loaded or promoted"
            )
        return fold(events)


def open_registry(home: Path, clock: Clock, environ: Mapping[str, str] | None = None) -> Registry:
    """Return the registry of a home: in Postgres where ``MLBOT_PG_URL`` is set, else in a file there."""
    env = os.environ if environ is None else environ
    return Registry(home, clock, url=env.get("MLBOT_PG_URL") or None)


def _known(state: RegistryState, version: str) -> Entry:
    entry = state.models.get(version)
    if entry is None:
        raise StageError(f"model {version[:12]} is not registered; train it first: mlbot train")
    return entry


def _whoami() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"
