"""How a model gets to a venue: only through here, and only after everything was verified.

=========  ===================================  ======================================
venue      champion                             candidate
=========  ===================================  ======================================
emulator   yes                                  yes
paper      yes, unless trained on made-up data  yes, unless trained on made-up data
demo       yes, unless trained on made-up data  yes, unless trained on made-up data
testnet    yes, unless trained on made-up data  yes, unless trained on made-up data
mainnet    yes, unless trained on made-up data  never
=========  ===================================  ======================================

There is no parameter, setting or variable that changes this table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from mlbot_core.errors import UsageError
from mlbot_core.models.base import Model, load_model
from mlbot_core.models.gate import (
    GateRecord,
    GateRefusedError,
    check_artefact,
    check_record,
    check_releases,
    read_record,
    require_features,
)
from mlbot_core.models.registry import Registry
from mlbot_core.models.registry_events import Slot, StageError
from mlbot_core.models.registry_state import Entry
from mlbot_core.validation.trials import TrialLedger

Venue = Literal["emulator", "paper", "demo", "testnet", "mainnet"]
VENUES: Final[tuple[str, ...]] = get_args(Venue)


@dataclass(frozen=True)
class Loaded:
    """A model that may be used, and why.

    Parameters
    ----------
    model
        Ready to predict.
    entry
        As registered, with its stage.
    record
        The gate record that a champion passed just now again; None for a candidate.
    venue
        What it was loaded for.
    """

    model: Model
    entry: Entry
    record: GateRecord | None
    venue: Venue


def load_champion(
    registry: Registry,
    models_dir: Path,
    slot: Slot,
    *,
    venue: Venue,
    features: Sequence[str],
    ledger: TrialLedger,
    threads: int = 1,
) -> Loaded:
    """Load the champion of a slot, after its gate record was verified and judged again.

    Parameters
    ----------
    models_dir
        Where artefacts lie.
    venue
        Where its forecasts will trade.
    features
        Columns that the caller will ask it with; their order does not matter.
    ledger
        Of all trials; the record's head must be in it.

    Raises
    ------
    StageError
        If the slot has no champion, or it may not trade at this venue.
    GateRefusedError
        If its numbers do not pass the bounds in code.
    RegistryTamperedError, LedgerTamperedError
        If registry, record or ledger were tampered with.
    ArtefactError, FeatureMismatchError, LibraryMismatchError
        If the artefact is missing, damaged, another one, of other features, or of another release of a library.
    """
    state = registry.state()
    entry = state.champion(slot)
    if entry is None or entry.gate is None:
        raise StageError(f"{slot} has no champion; promote a candidate: mlbot models promote VERSION")
    _require_venue(entry, venue)
    record = read_record(entry.gate, entry.registration, registry.signer)
    check_record(record, models_dir, ledger)
    return Loaded(_load(entry, models_dir, features, threads), entry, record, venue)


def load_candidate(
    registry: Registry, models_dir: Path, version: str, *, venue: Venue, features: Sequence[str], threads: int = 1
) -> Loaded:
    """Load a candidate, for any venue without real money.

    Raises
    ------
    StageError
        If the venue is mainnet, the model is not a candidate, or it may not trade there.
    ArtefactError, FeatureMismatchError, LibraryMismatchError
        As for :func:`load_champion`.
    """
    entry = registry.find(version)
    if venue == "mainnet":
        raise StageError(
            f"model {entry.version[:12]} ({entry.slot}) is {entry.stage}: mainnet takes only a champion; "
            f"promote it first: mlbot models promote {entry.version[:12]}"
        )
    if entry.stage != "candidate":
        raise StageError(
            f"model {entry.version[:12]} ({entry.slot}) is {entry.stage}, not a candidate; "
            + ("load it as the champion" if entry.stage == "champion" else "choose another: mlbot models list")
        )
    _require_venue(entry, venue)
    check_artefact(entry.registration, models_dir)
    check_releases(entry.registration)
    return Loaded(_load(entry, models_dir, features, threads), entry, None, venue)


def load_base(
    registry: Registry, models_dir: Path, meta: Loaded, name: str, *, features: Sequence[str], threads: int = 1
) -> Loaded:
    """Load a base model of a loaded meta-model, for the same venue: exactly the version whose forecasts it stacks.

    The meta-model was measured with these very forecasts, so its gate record speaks for the base models too, whatever
    their own stage; what is verified is that they are the registered bytes.

    Parameters
    ----------
    meta
        As :func:`load_champion` or :func:`load_candidate` returned it.
    name
        Of the base forecasts, as the meta-model's columns name them: ``4h_lightgbm``.

    Raises
    ------
    StageError
        If the meta-model does not stack such forecasts, or their model is not registered.
    GateRefusedError
        If it was trained on a made-up market and the venue is not the emulator.
    ArtefactError, FeatureMismatchError, LibraryMismatchError
        As for :func:`load_champion`.
    """
    stacked = {
        key.rpartition("|")[2]: version
        for key, version in meta.entry.registration.inputs.get("partitions", {}).items()
        if key.startswith("forecasts|")
    }
    who = f"model {meta.entry.version[:12]} ({meta.entry.slot})"
    if name not in stacked:
        raise StageError(f"{who} stacks no forecasts {name!r}; it stacks {', '.join(sorted(stacked)) or 'none'}")
    entry = registry.state().models.get(stacked[name])
    if entry is None:
        raise StageError(
            f"{who} stacks {name} of version {stacked[name][:12]}, which is not registered; train the base model "
            "again, then the meta-model"
        )
    _require_venue(entry, meta.venue)
    check_artefact(entry.registration, models_dir)
    check_releases(entry.registration)
    return Loaded(_load(entry, models_dir, features, threads), entry, None, meta.venue)


def _require_venue(entry: Entry, venue: str) -> None:
    if venue not in VENUES:
        raise UsageError(f"venue {venue!r} is unknown; choose one of {', '.join(VENUES)}")
    if entry.registration.synthetic and venue != "emulator":
        raise GateRefusedError(
            f"model {entry.version[:12]} ({entry.slot}) is labelled synthetic: it was trained on a made-up market and "
            f"may only trade on the emulator, not on {venue}; train and promote one on real data"
        )


def _load(entry: Entry, models_dir: Path, features: Sequence[str], threads: int) -> Model:
    require_features(
        entry.registration.features,
        features,
        f"what is computed for model {entry.version[:12]} ({entry.slot})",
        "restore the feature set it was trained on, or train and promote another",
    )
    model = load_model(models_dir / entry.version, threads)
    # what was read must be what was checked, whoever replaced files in between
    check_artefact(entry.registration, models_dir)
    return model
