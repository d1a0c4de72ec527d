"""Who may trade where: a table without exceptions, and nothing is loaded before everything was verified."""

from __future__ import annotations

import inspect
import shutil

import numpy as np
import pandas as pd
import pytest

from mlbot_core.errors import UsageError
from mlbot_core.models import loading
from mlbot_core.models.artefact import ArtefactError, LibraryMismatchError
from mlbot_core.models.base import FeatureMismatchError
from mlbot_core.models.gate import GateRefusedError
from mlbot_core.models.loading import VENUES, load_base, load_candidate, load_champion
from mlbot_core.models.registry import StageError
from mlbot_core.validation import criteria
from mlbot_core.validation.trials import LedgerTamperedError

MONEYLESS = ("emulator", "paper", "demo", "testnet")


def champion(bench, venue="mainnet", **changes):
    options = {"slot": bench.slot(), "venue": venue, "features": bench.features, "ledger": bench.ledger} | changes
    return load_champion(bench.registry, bench.models_dir, options.pop("slot"), **options)


def candidate(bench, entry, venue="paper", **changes):
    options = {"venue": venue, "features": bench.features} | changes
    return load_candidate(bench.registry, bench.models_dir, entry.version, **options)


def test_a_verified_champion_predicts_everywhere(registry_bench):
    bench = registry_bench
    entry = bench.register()
    bench.promote(entry)
    frame = pd.DataFrame(np.zeros((3, 4)), columns=list(bench.features), index=pd.Index([0, 7_200_000, 14_400_000]))
    for venue in VENUES:
        loaded = champion(bench, venue, features=bench.features[::-1])
        assert loaded.entry.version == entry.version
        assert loaded.record.verdict.passed
        assert loaded.model.predict(frame)["p_up"].notna().all()


def test_candidates_go_anywhere_but_to_mainnet(registry_bench):
    bench = registry_bench
    entry = bench.register()
    for venue in MONEYLESS:
        assert candidate(bench, entry, venue).record is None
    with pytest.raises(StageError, match="mainnet takes only a champion"):
        candidate(bench, entry, "mainnet")
    with pytest.raises(StageError, match="has no champion"):
        champion(bench)
    with pytest.raises(UsageError, match="venue 'live' is unknown"):
        candidate(bench, entry, "live")


def test_there_is_no_way_around():
    """No parameter of the loaders could be an override: each one only says what is loaded, from where and for what."""
    known = {"registry", "models_dir", "slot", "version", "venue", "features", "ledger", "threads", "meta", "name"}
    for function in (load_champion, load_candidate, load_base):
        assert set(inspect.signature(function).parameters) <= known
    assert "environ" not in inspect.getsource(loading)


def test_stages_are_not_confused(registry_bench):
    bench = registry_bench
    first, second = bench.register(1), bench.register(2)
    bench.promote(first)
    bench.promote(second)
    with pytest.raises(StageError, match="is retired, not a candidate"):
        candidate(bench, first)
    with pytest.raises(StageError, match="load it as the champion"):
        candidate(bench, second)
    assert champion(bench).entry.version == second.version


@pytest.mark.parametrize("venue", [venue for venue in VENUES if venue != "emulator"])
def test_what_was_trained_on_a_made_up_market_stays_on_the_emulator(registry_bench, venue):
    bench = registry_bench
    slot = bench.slot(source="emulator")
    entry, other = (bench.register(n, identity="planted, seed 7", slot=slot) for n in (1, 2))
    state = bench.promote(entry)
    assert state.models[entry.version].registration.synthetic
    promoted = [event for event in bench.registry.events() if event.kind == "promoted"]
    assert promoted[-1].facts["label"] == "synthetic"
    assert champion(bench, "emulator", slot=slot).record.registration.synthetic
    assert candidate(bench, other, "emulator").entry.version == other.version
    with pytest.raises(GateRefusedError, match="labelled synthetic"):
        champion(bench, venue, slot=slot)
    with pytest.raises((GateRefusedError, StageError), match=r"synthetic|mainnet"):
        candidate(bench, other, venue)


def test_a_real_source_pointed_at_an_emulator_is_synthetic_too(registry_bench):
    bench = registry_bench
    slot = bench.slot(source="bybit")
    bench.promote(bench.register(1, identity="http://127.0.0.1:8080", slot=slot))
    with pytest.raises(GateRefusedError, match="labelled synthetic"):
        champion(bench, "mainnet", slot=slot)


def test_other_features_are_refused(registry_bench):
    bench = registry_bench
    entry, other = bench.register(1), bench.register(2)
    bench.promote(entry)
    with pytest.raises(FeatureMismatchError, match="lacks f_3 and adds f_8"):
        champion(bench, features=("f_0", "f_1", "f_2", "f_8"))
    with pytest.raises(FeatureMismatchError, match="it adds f_8"):
        candidate(bench, other, features=(*bench.features, "f_8"))


def test_damage_is_refused_for_either(registry_bench):
    bench = registry_bench
    entry, other = bench.register(1), bench.register(2)
    bench.promote(entry)
    for version in (entry.version, other.version):
        path = bench.models_dir / version / "model.txt"
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtefactError, match="changed or truncated"):
        champion(bench)
    with pytest.raises(ArtefactError, match="changed or truncated"):
        candidate(bench, other)


def test_another_release_of_a_library_is_refused(registry_bench, monkeypatch):
    from mlbot_core.models import gate

    bench = registry_bench
    entry, other = bench.register(1), bench.register(2)
    bench.promote(entry)
    installed = gate.version
    monkeypatch.setattr(gate, "version", lambda name: "99.0" if name == "lightgbm" else installed(name))
    with pytest.raises(LibraryMismatchError, match=r"installed: 99\.0"):
        champion(bench)
    with pytest.raises(LibraryMismatchError, match=r"installed: 99\.0"):
        candidate(bench, other)


def test_a_champion_is_judged_again_by_the_bounds_of_now(registry_bench, monkeypatch):
    bench = registry_bench
    bench.promote(bench.register())
    monkeypatch.setattr(criteria, "MIN_TRADES", 1_000)
    with pytest.raises(GateRefusedError, match="trades"):
        champion(bench)


def test_a_ledger_that_was_cut_is_no_witness(registry_bench):
    bench = registry_bench
    bench.promote(bench.register())
    (bench.home / "trials.sqlite").unlink()
    shutil.rmtree(bench.home / "trials-heads")
    with pytest.raises(LedgerTamperedError, match="cut off"):
        champion(bench)


def test_files_that_are_swapped_while_loading_are_noticed(registry_bench, monkeypatch):
    """Between the check and the end of loading somebody replaces the artefact by another sound one."""
    from mlbot_core.models.artefact import read_artefact, write_artefact

    bench = registry_bench
    entry = bench.register()
    bench.promote(entry)
    genuine = loading.load_model

    def swapped(folder, threads):
        meta, payload = read_artefact(folder)
        shutil.rmtree(folder)
        kept = {key: value for key, value in meta.items() if key not in ("format", "files")}
        write_artefact(folder, payload, kept | {"rows": 1})
        return genuine(folder, threads)

    monkeypatch.setattr(loading, "load_model", swapped)
    with pytest.raises(ArtefactError, match="another model than the registered one"):
        champion(bench)


def test_base_models_go_where_their_meta_model_goes(registry_bench):
    """Exactly the versions that it stacks, whatever their stage, and no others."""
    bench = registry_bench
    base, made_up = bench.register(1), bench.register(2, identity="planted", slot=bench.slot(source="emulator"))
    partitions = {
        "features|BTC-2h|2024-01": "v1",
        "forecasts|BTC-2h|2h_lightgbm": base.version,
        "forecasts|BTC-4h|4h_lightgbm": "a" * 64,
        "forecasts|BTC-1h|1h_lightgbm": made_up.version,
    }
    bench.promote(bench.register(3, slot=bench.slot(model_type="meta"), partitions=partitions))
    meta = champion(bench, slot=bench.slot(model_type="meta"))
    loaded = load_base(bench.registry, bench.models_dir, meta, "2h_lightgbm", features=bench.features)
    assert (loaded.entry.version, loaded.entry.stage, loaded.venue) == (base.version, "candidate", "mainnet")
    for name, error, words in (
        ("30m_lightgbm", StageError, "stacks no forecasts"),
        ("4h_lightgbm", StageError, "is not registered"),
        ("1h_lightgbm", GateRefusedError, "labelled synthetic"),
    ):
        with pytest.raises(error, match=words):
            load_base(bench.registry, bench.models_dir, meta, name, features=bench.features)
    path = bench.models_dir / base.version / "model.txt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match="changed or truncated"):
        load_base(bench.registry, bench.models_dir, meta, "2h_lightgbm", features=bench.features)
