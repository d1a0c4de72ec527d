"""Which models forecast a market, and which of them may speak: decided by registry and gate, never by what is stored.

A champion speaks for its model type; where there is none, the newest candidate does, as far as
:mod:`mlbot_core.models.loading` lets it. Beside a champion the newest candidate is a challenger: it forecasts in
shadow. What a meta-model stacks forecasts too, in exactly the versions that it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from mlbot_core.clock import Clock
from mlbot_core.config import Settings
from mlbot_core.config.models import META_MODEL
from mlbot_core.errors import MissingDataError, MlbotError
from mlbot_core.features.sets import configured_set
from mlbot_core.models.base import FeatureMismatchError
from mlbot_core.models.loading import Loaded, Venue, load_base, load_candidate, load_champion
from mlbot_core.models.meta import AGE, SCORE
from mlbot_core.models.registry import Registry, open_registry
from mlbot_core.models.registry_events import Slot
from mlbot_core.models.registry_state import Entry, RegistryState
from mlbot_core.timeframe import Market
from mlbot_core.validation.trials import TrialLedger, open_ledger

Role = Literal["champion", "candidate", "challenger", "base"]
_FORECASTS: Final = "forecasts|"


@dataclass(frozen=True)
class Base:
    """A base forecast that a meta-model stacks.

    Parameters
    ----------
    name
        As its columns name it: ``4h_lightgbm``.
    market, model_type, version
        Who makes it.
    """

    name: str
    market: Market
    model_type: str
    version: str


@dataclass(frozen=True)
class Speaker:
    """A model that is loaded to forecast a market.

    Parameters
    ----------
    loaded
        Verified for its venue.
    role
        As of :class:`mlbot_core.live.signal_store.Signal`.
    """

    loaded: Loaded
    role: Role

    @property
    def entry(self) -> Entry:
        """As registered."""
        return self.loaded.entry

    @property
    def speaks(self) -> bool:
        """Whether a decision may rest on it."""
        return self.role in ("champion", "candidate")


@dataclass(frozen=True)
class Refused:
    """A model that could not be loaded, and why."""

    slot: Slot
    version: str
    reason: str


@dataclass(frozen=True)
class Cast:
    """The models of one market.

    Parameters
    ----------
    speakers
        Base models first, the meta-models last.
    refused
        What could not be loaded.
    """

    speakers: tuple[Speaker, ...]
    refused: tuple[Refused, ...]

    def speaking(self) -> dict[str, str]:
        """Return, by model type, the version that a decision may rest on."""
        return {one.entry.slot.model_type: one.entry.version for one in self.speakers if one.speaks}


def stacked_by(entry: Entry) -> tuple[Base, ...]:
    """Return what a meta-model stacks, from its registration; nothing for another model."""
    found = []
    for key, version in entry.registration.inputs.get("partitions", {}).items():
        if key.startswith(_FORECASTS):
            _, market, name = key.split("|")
            found.append(Base(name, Market.parse(market), name.partition("_")[2], str(version)))
    return tuple(found)


def load_cast(settings: Settings, clock: Clock, source: str, market: Market, venue: Venue) -> Cast:
    """Load every model that forecasts a market, as registry and gate say now.

    Raises
    ------
    MissingDataError
        If no model of the market is registered; the message names the command that trains one.
    RegistryTamperedError, RegistryError
        If the registry cannot be believed or read.
    """
    registry = open_registry(settings.home, clock)
    state = registry.state()
    loader = _Loader(registry, open_ledger(settings.home, clock), settings, venue)
    refused: list[Refused] = []
    found: dict[str, Speaker] = {}
    own = _slots(state, source, market.symbol, str(market.timeframe))
    metas: list[tuple[Entry, Role]] = []
    for slot in own:
        for entry, role in of_slot(state, slot):
            if slot.model_type == META_MODEL:
                metas.append((entry, role))
                continue
            loader.into(found, refused, entry, role)
    # what any meta-model of the symbol stacks of this market
    every = [slot for slot in _slots(state, source, market.symbol, None) if slot.model_type == META_MODEL]
    for slot in every:
        for entry, role in of_slot(state, slot):
            wanted = [base for base in stacked_by(entry) if base.market == market and base.version not in found]
            if not wanted:
                continue
            meta = loader.meta(refused, entry, role)
            for base in wanted:
                if meta is not None and base.version in state.models:
                    loader.base(found, refused, meta, base, state.models[base.version])
    for entry, role in metas:
        meta = loader.meta(refused, entry, role)
        if meta is not None:
            found[entry.version] = Speaker(meta, role)
    if not found and not refused:
        raise MissingDataError(
            f"no model of {market} from {source} is registered; run: mlbot train --source {source} "
            f"--symbol {market.symbol} --interval {market.timeframe}"
        )
    return Cast(tuple(found.values()), tuple(dict.fromkeys(refused)))


def _slots(state: RegistryState, source: str, symbol: str, timeframe: str | None) -> list[Slot]:
    slots = {entry.slot for entry in state.models.values()}
    mine = [
        slot for slot in slots if (slot.source, slot.symbol) == (source, symbol) and timeframe in (None, slot.timeframe)
    ]
    return sorted(mine)


def of_slot(state: RegistryState, slot: Slot) -> list[tuple[Entry, Role]]:
    """Return the champion of a slot, and its newest candidate."""
    champion = state.champion(slot)
    candidates = [entry for entry in state.models.values() if entry.slot == slot and entry.stage == "candidate"]
    found: list[tuple[Entry, Role]] = [] if champion is None else [(champion, "champion")]
    if candidates:
        found.append((candidates[-1], "candidate" if champion is None else "challenger"))
    return found


class _Loader:
    """Loads models, each once, and notes what is refused."""

    def __init__(self, registry: Registry, ledger: TrialLedger, settings: Settings, venue: Venue) -> None:
        self._registry, self._ledger, self._settings, self._venue = registry, ledger, settings, venue
        self._features = configured_set(settings.models.features)
        self._metas: dict[str, Loaded | None] = {}

    @property
    def _models(self) -> Path:
        return self._settings.models_dir

    def into(self, found: dict[str, Speaker], refused: list[Refused], entry: Entry, role: Role) -> None:
        try:
            self._same_features(entry)
            found[entry.version] = Speaker(self._load(entry, role, self._features.names), role)
        except MlbotError as error:
            refused.append(Refused(entry.slot, entry.version, str(error)))

    def meta(self, refused: list[Refused], entry: Entry, role: Role) -> Loaded | None:
        if entry.version not in self._metas:
            columns = [base.name + suffix for base in stacked_by(entry) for suffix in (SCORE, AGE)]
            try:
                self._metas[entry.version] = self._load(entry, role, columns)
            except MlbotError as error:
                self._metas[entry.version] = None
                refused.append(Refused(entry.slot, entry.version, str(error)))
        return self._metas[entry.version]

    def base(self, found: dict[str, Speaker], refused: list[Refused], meta: Loaded, base: Base, entry: Entry) -> None:
        try:
            self._same_features(entry)
            loaded = load_base(
                self._registry, self._models, meta, base.name, features=self._features.names, threads=self._threads
            )
            found[entry.version] = Speaker(loaded, "base")
        except MlbotError as error:
            refused.append(Refused(entry.slot, entry.version, str(error)))

    def _load(self, entry: Entry, role: Role, columns: Sequence[str]) -> Loaded:
        common: dict[str, Any] = {"features": columns, "threads": self._threads}
        if role == "champion":
            return load_champion(
                self._registry, self._models, entry.slot, venue=self._venue, ledger=self._ledger, **common
            )
        # in shadow nothing is traded, so what may be traded without real money may be watched beside real money
        venue: Venue = "paper" if role == "challenger" and self._venue == "mainnet" else self._venue
        return load_candidate(self._registry, self._models, entry.version, venue=venue, **common)

    @property
    def _threads(self) -> int:
        return self._settings.threads

    def _same_features(self, entry: Entry) -> None:
        trained = entry.registration.inputs.get("feature_set")
        if trained != self._features.hash:
            raise FeatureMismatchError(
                f"model {entry.version[:12]} ({entry.slot}) was trained on the features {trained}, and "
                f"config/models.yaml computes {self._features.hash} ({self._features.name}); restore that feature set, "
                f"or run: mlbot train {entry.slot.command}"
            )
