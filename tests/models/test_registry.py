"""Stages, the chain of signed events, and that a refusal changes nothing."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
import stat
from contextlib import closing

import pytest

from mlbot_core.errors import ConfigError, UsageError
from mlbot_core.models.artefact import ArtefactError, LibraryMismatchError
from mlbot_core.models.base import FeatureMismatchError
from mlbot_core.models.gate import GateRefusedError
from mlbot_core.models.registry import (
    Registry,
    RegistryError,
    RegistryTamperedError,
    StageError,
    open_registry,
)
from mlbot_core.models.signing import Signer, make_signer, read_signer
from mlbot_core.validation.criteria import Measured, Statistics


def sql(bench, *statements):
    with closing(sqlite3.connect(bench.home / "registry.sqlite")) as con, con:
        for statement in statements:
            con.execute(statement)


def stages(bench):
    return {version: entry.stage for version, entry in bench.registry.state().models.items()}


# --- stages ----------------------------------------------------------------------------------------------------


def test_registering_is_idempotent_and_makes_a_candidate(registry_bench):
    bench = registry_bench
    entry = bench.register()
    assert entry.stage == "candidate"
    assert entry.registration.features == bench.features
    assert (entry.who, entry.since_ms) == ("ann@desk", bench.clock.now_ms())
    head = bench.registry.state().head
    bench.clock.sleep(60)
    assert bench.register() == entry
    assert bench.registry.state().head == head


def test_a_version_is_the_hash_of_its_inputs_and_immutable(registry_bench):
    bench = registry_bench
    entry = bench.register()
    known = dict(
        slot=entry.slot,
        identity="",
        start_ms=0,
        end_ms=1,
        data_as_of_ms=1,
        models_dir=bench.models_dir,
        run_id="r",
    )
    with pytest.raises(RegistryError, match="is not the hash"):
        bench.registry.register(entry.version, inputs={"seed": 2}, **known)
    with pytest.raises(RegistryError, match="another slot"):
        bench.register(slot=bench.slot(timeframe="4h"))
    shutil.rmtree(bench.models_dir / entry.version)
    with pytest.raises(ArtefactError, match="cannot be read"):
        bench.registry.register(entry.version, inputs=dict(entry.registration.inputs), **known)
    assert stages(bench) == {entry.version: "candidate"}


def test_promoting_retires_the_former_and_rollback_returns_to_it(registry_bench):
    bench = registry_bench
    first, second, third = (bench.register(seed) for seed in (1, 2, 3))
    bench.promote(first)
    bench.clock.sleep(60)
    state = bench.promote(second)
    assert stages(bench) == {first.version: "retired", second.version: "champion", third.version: "candidate"}
    assert state.role(state.models[third.version]) == "challenger"
    assert state.previous(first.slot).version == first.version
    assert state.models[second.version].why == "better"
    assert state.models[second.version].since_ms == bench.clock.now_ms()

    def back():
        return bench.registry.rollback(first.slot, models_dir=bench.models_dir, ledger=bench.ledger, why="worse")

    state = back()
    assert state.champions == {first.slot: first.version}
    assert state.models[second.version].stage == "retired"
    assert state.models[first.version].why == "worse"
    with pytest.raises(StageError, match="no champion to return to"):
        back()
    state = bench.promote(third)
    assert state.champions == {first.slot: third.version}
    assert back().champions == {first.slot: first.version}
    kinds = [event.kind for event in bench.registry.events()]
    assert kinds == ["registered"] * 3 + ["gate", "promoted"] * 2 + ["rolled_back", "gate", "promoted", "rolled_back"]


def test_months_later_one_can_return_to_a_former_champion_and_promote_nothing_old(registry_bench):
    bench = registry_bench
    first, second, third = (bench.register(seed) for seed in (1, 2, 3))
    bench.promote(first)
    bench.promote(second)
    bench.clock.sleep(100 * 86_400)
    with pytest.raises(GateRefusedError, match="116 days before now, and at most 45"):
        bench.promote(third)
    back = bench.registry.rollback(first.slot, models_dir=bench.models_dir, ledger=bench.ledger, why="worse")
    assert back.champions == {first.slot: first.version}


def test_each_slot_has_a_champion_of_its_own(registry_bench):
    bench = registry_bench
    slots = [
        bench.slot(),
        bench.slot(timeframe="4h"),
        bench.slot(model_type="meta"),
        bench.slot(symbol="ETH"),
        bench.slot(source="bybit"),
    ]
    for seed, slot in enumerate(slots):
        bench.promote(bench.register(seed, slot=slot))
    state = bench.registry.state()
    assert set(state.champions) == set(slots)
    assert {entry.stage for entry in state.models.values()} == {"champion"}


def test_only_candidates_are_promoted_and_retiring_is_final(registry_bench):
    bench = registry_bench
    first, second = bench.register(1), bench.register(2)
    bench.promote(first)
    with pytest.raises(StageError, match="is champion, and only a candidate"):
        bench.promote(first)
    bench.registry.retire(second.version, why="noisy")
    with pytest.raises(StageError, match="is retired, and only a candidate"):
        bench.promote(second)
    with pytest.raises(StageError, match="retired already"):
        bench.registry.retire(second.version, why="again")
    assert bench.registry.state().champions == {first.slot: first.version}
    assert bench.registry.retire(first.version, why="stop").champions == {}
    with pytest.raises(StageError, match="no champion to return to"):
        bench.registry.rollback(first.slot, models_dir=bench.models_dir, ledger=bench.ledger, why="x")


def test_a_retired_champion_leaves_its_place_to_a_rollback(registry_bench):
    bench = registry_bench
    first, second = bench.register(1), bench.register(2)
    bench.promote(first)
    bench.promote(second)
    assert bench.registry.retire(second.version, why="broken").champion(first.slot) is None
    state = bench.registry.rollback(first.slot, models_dir=bench.models_dir, ledger=bench.ledger, why="need one")
    assert state.champion(first.slot).version == first.version


def test_versions_are_found_by_their_beginning(registry_bench):
    entry = registry_bench.register()
    assert registry_bench.registry.find(entry.version[:6]).version == entry.version
    with pytest.raises(UsageError, match="ambiguous"):
        registry_bench.registry.find(entry.version[:5])
    with pytest.raises(UsageError, match="no model version beginning"):
        registry_bench.registry.find("zzzzzz")


# --- refusals leave the champion as it is -----------------------------------------------------------------------

WEAK = Measured(0.2, -1.0, 1.4, 0.1, 0.4, 400, 150)


def truncate(bench, entry):
    path = bench.models_dir / entry.version / "model.txt"
    path.write_bytes(path.read_bytes()[:100])


def forge_meta(bench, entry):
    path = bench.models_dir / entry.version / "meta.json"
    path.write_text(path.read_text().replace('"f_3"', '"f_9"'))


REFUSALS = {
    "weak at unit exposure": (GateRefusedError, {"unit": WEAK}, None, {}),
    "weak at the traded size": (GateRefusedError, {"traded": WEAK}, None, {}),
    "not significant": (GateRefusedError, {"statistics": Statistics(0.9, 0.1, 40)}, None, {}),
    "old": (GateRefusedError, {"backtest_end_ms": 1_736_100_000_000}, None, {}),
    "truncated artefact": (ArtefactError, {}, truncate, {}),
    "tampered meta": (ArtefactError, {}, forge_meta, {}),
    "another release": (LibraryMismatchError, {}, None, {"libraries": {"lightgbm": "3.0.0"}}),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_promotion_changes_nothing(registry_bench, name):
    error, changes, spoil, inputs = REFUSALS[name]
    bench = registry_bench
    champion, candidate = bench.register(1), bench.register(2, **inputs)
    bench.promote(champion)
    before = bench.registry.events()
    if spoil is not None:
        spoil(bench, candidate)
    with pytest.raises(error):
        bench.promote(candidate, **changes)
    assert bench.registry.events() == before
    assert bench.registry.state().champions == {champion.slot: champion.version}


def test_a_model_of_other_features_is_refused(registry_bench):
    from mlbot_core.models.artefact import read_artefact, write_artefact

    bench = registry_bench
    champion, candidate = bench.register(1), bench.register(2)
    bench.promote(champion)
    folder = bench.models_dir / candidate.version
    meta, payload = read_artefact(folder)
    shutil.rmtree(folder)
    kept = {key: value for key, value in meta.items() if key not in ("format", "files")}
    write_artefact(folder, payload, kept | {"features": ["g_0", "g_1", "g_2", "g_3"]})
    with pytest.raises(FeatureMismatchError, match="g_0"):
        bench.promote(candidate)
    assert bench.registry.state().champions == {champion.slot: champion.version}


def test_a_record_about_something_else_is_refused(registry_bench):
    bench = registry_bench
    entry = bench.register()
    record = bench.record(entry, registration=dataclasses.replace(entry.registration, data_as_of_ms=1))
    with pytest.raises(RegistryTamperedError, match="something else"):
        bench.registry.promote(record, models_dir=bench.models_dir, ledger=bench.ledger, why="x")


def test_a_rollback_asks_for_everything_again(registry_bench):
    bench = registry_bench
    first, second = bench.register(1), bench.register(2)
    bench.promote(first)
    bench.promote(second)
    truncate(bench, first)
    with pytest.raises(ArtefactError):
        bench.registry.rollback(first.slot, models_dir=bench.models_dir, ledger=bench.ledger, why="x")
    assert bench.registry.state().champions == {first.slot: second.version}


# --- tampering -------------------------------------------------------------------------------------------------

_LAST = "(SELECT max(seq) FROM registry_events)"
TAMPERING = {
    "an edited body": ("UPDATE registry_events SET body = replace(body, '1.5', '2.5') WHERE kind = 'gate'",),
    "another author": ("UPDATE registry_events SET who = 'bob@desk' WHERE seq = 2",),
    "another stage": ("UPDATE registry_events SET kind = 'retired' WHERE kind = 'promoted'",),
    "an event taken out": ("DELETE FROM registry_events WHERE seq = 2",),
    "the end cut off": (f"DELETE FROM registry_events WHERE seq = {_LAST}",),
    "everything removed": ("DELETE FROM registry_events",),
    "a signature of nobody": (f"UPDATE registry_events SET signature = '{'0' * 64}' WHERE seq = {_LAST}",),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_noticed_and_nothing_is_added(registry_bench, name):
    bench = registry_bench
    bench.register(1)
    bench.promote(bench.register(2))
    sql(bench, *TAMPERING[name])
    with pytest.raises(RegistryTamperedError, match="tampered with or damaged"):
        bench.registry.state()
    with pytest.raises(RegistryTamperedError):
        bench.register(3)


def test_an_event_of_a_sound_chain_without_the_key_is_noticed(registry_bench):
    """Whoever may write to the database but lacks the key cannot crown a champion, hashes or not."""
    from mlbot_core.models.registry_events import make_event
    from mlbot_core.models.registry_store import RegistryStore

    bench = registry_bench
    entry = bench.register()
    head = bench.registry.state().head
    forger = Signer(b"f" * 32)
    event = make_event(head, "retired", entry.version, {}, at_ms=1, who="x", why="x", signer=forger)
    for forged in (event, dataclasses.replace(event, key_id=bench.registry.signer.key_id)):
        forged = dataclasses.replace(forged, row_hash=forged.expected_hash())
        store = RegistryStore(bench.home / "registry.sqlite", None, 5.0)
        with store.transaction() as writing:
            writing.add(forged)
        with pytest.raises(RegistryTamperedError, match=r"signed with"):
            bench.registry.state()
        sql(bench, f"DELETE FROM registry_events WHERE seq = {forged.seq}")


def test_the_heads_are_a_second_witness(registry_bench):
    bench = registry_bench
    bench.register(1)
    (heads,) = (bench.home / "registry-heads").rglob("*.heads")
    kept = heads.read_bytes()
    heads.unlink()
    with pytest.raises(RegistryTamperedError, match="is missing"):
        bench.registry.state()
    heads.write_bytes(b"nonsense\n" + kept)
    with pytest.raises(RegistryTamperedError, match="is damaged"):
        bench.registry.state()
    heads.write_bytes(kept)
    (bench.home / "registry.sqlite").unlink()
    with pytest.raises(RegistryTamperedError, match="cut off"):
        bench.registry.state()


# --- the key ---------------------------------------------------------------------------------------------------


def test_the_key_is_private_made_once_and_never_shown(registry_bench):
    bench = registry_bench
    assert bench.registry.state().models == {}
    assert not bench.home.exists()
    with pytest.raises(RegistryError, match="no registry yet"):
        _ = bench.registry.signer
    bench.register(1)
    path = bench.home / "registry.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = path.read_text().strip()
    assert len(secret) == 64
    signer = read_signer(path)
    assert secret not in repr(signer) + str(vars(signer).keys()) + signer.key_id
    assert make_signer(path).key_id == signer.key_id
    assert path.read_text().strip() == secret
    assert [p.name for p in bench.home.glob(".registry.key*")] == []
    stored = [path.read_bytes() for path in bench.home.rglob("*") if path.is_file() and path.name != "registry.key"]
    assert stored
    assert not any(secret.encode() in data for data in stored)


def test_a_key_that_others_may_read_or_that_is_damaged_is_refused(registry_bench):
    bench = registry_bench
    bench.register(1)
    path = bench.home / "registry.key"
    secret = path.read_text()
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="mode 0640") as refused:
        bench.registry.state()
    assert secret.strip() not in str(refused.value)
    path.chmod(0o600)
    path.write_text(secret[:20])
    with pytest.raises(ConfigError, match="damaged") as refused:
        bench.registry.state()
    assert secret[:20] not in str(refused.value)
    path.unlink()
    with pytest.raises(RegistryError, match="is missing, and the registry was signed with key"):
        bench.registry.state()
    with pytest.raises(RegistryError, match="is missing"):
        bench.register(2)
    make_signer(path)
    with pytest.raises(RegistryTamperedError, match="was signed with key"):
        bench.registry.state()


# --- the store -------------------------------------------------------------------------------------------------


def test_the_store_is_durable_and_lies_in_the_home(registry_bench):
    bench = registry_bench
    bench.register(1)
    with closing(sqlite3.connect(bench.home / "registry.sqlite")) as con:
        assert con.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not (bench.home / "warehouse.duckdb").exists()
    here = open_registry(bench.home, bench.clock, {})
    assert len(here.state().models) == 1


def test_a_broken_store_is_named(registry_bench):
    bench = registry_bench
    bench.home.mkdir(parents=True)
    (bench.home / "registry.sqlite").write_bytes(b"this is not a database" * 100)
    with pytest.raises(RegistryError, match=r"refused: .*not a database"):
        bench.registry.state()


def test_who_acts_is_recorded_by_default(registry_bench):
    bench = registry_bench
    entry = bench.register(1)
    nameless = Registry(bench.home, bench.clock)
    state = nameless.retire(entry.version, why="w")
    assert "@" in state.models[entry.version].who
    assert os.uname().nodename in state.models[entry.version].who
