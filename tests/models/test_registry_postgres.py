"""The same registry in a real Postgres: machines that share it and its key see one champion."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys

import pytest
import sqlalchemy as sa

from mlbot_core.clock import SystemClock
from mlbot_core.models.registry import Registry, RegistryError, RegistryTamperedError, open_registry
from mlbot_core.validation.trials import TrialLedger

pytestmark = pytest.mark.slow

PROMOTER = """
import pickle, sys
from pathlib import Path
from mlbot_core.clock import FixedClock
from mlbot_core.models.registry import Registry
from mlbot_core.validation.trials import TrialLedger

home, ledger = Path(sys.argv[1]), Path(sys.argv[2])
record = pickle.loads(Path(sys.argv[3]).read_bytes())
sys.stdin.readline()
clock = FixedClock(int(sys.argv[5]))
Registry(home, clock, url=sys.argv[4]).promote(
    record, models_dir=home / "models", ledger=TrialLedger(ledger, clock), why="race"
)
"""


@pytest.fixture
def bench(registry_bench, postgres_url):
    yield dataclasses.replace(registry_bench, url=postgres_url)
    engine = sa.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg2:"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS registry_events")
    engine.dispose()


def another_machine(bench, name):
    """A second home that shares the database and was given the key and the artefacts."""
    home = bench.home.parent / name
    home.mkdir()
    shutil.copy2(bench.home / "registry.key", home / "registry.key")
    shutil.copytree(bench.models_dir, home / "models")
    return home


def test_promotion_rollback_and_tampering(bench):
    first, second = bench.register(1), bench.register(2)
    bench.promote(first)
    bench.promote(second)
    there = open_registry(another_machine(bench, "there"), bench.clock, {"MLBOT_PG_URL": bench.url})
    assert there.state().champions == {first.slot: second.version}
    assert not (bench.home / "registry.sqlite").exists()
    state = there.rollback(
        first.slot, models_dir=bench.models_dir, ledger=TrialLedger(bench.home, bench.clock), why="worse"
    )
    assert state.champions == bench.registry.state().champions == {first.slot: first.version}
    engine = sa.create_engine(bench.url.replace("postgresql:", "postgresql+psycopg2:"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM registry_events WHERE kind = 'rolled_back'")
    engine.dispose()
    for registry in (bench.registry, there):
        with pytest.raises(RegistryTamperedError, match="cut off"):
            registry.state()


def test_a_machine_without_the_key_is_told_which_one(bench):
    bench.register(1)
    stranger = Registry(bench.home.parent / "stranger", bench.clock, url=bench.url)
    with pytest.raises(RegistryError, match=f"signed with key {bench.registry.signer.key_id}.*copy it"):
        stranger.state()


def test_machines_that_promote_at_once_make_one_champion(bench, tmp_path):
    import pickle

    entries = [bench.register(seed) for seed in range(3)]
    homes = [another_machine(bench, f"home{n}") for n in range(3)]
    processes = []
    for entry, home in zip(entries, homes, strict=True):
        path = tmp_path / f"{entry.version[:8]}.pickle"
        path.write_bytes(pickle.dumps(bench.record(entry)))
        words = [str(home), str(bench.home), str(path), bench.url, str(bench.clock.now_ms())]
        processes.append(subprocess.Popen([sys.executable, "-c", PROMOTER, *words], stdin=subprocess.PIPE, text=True))
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [0, 0, 0]
    states = [Registry(home, SystemClock(), url=bench.url).state() for home in (bench.home, *homes)]
    assert len({state.head for state in states}) == 1
    assert sorted(entry.stage for entry in states[0].models.values()) == ["champion", "retired", "retired"]
    assert len(states[0].lines[bench.slot()]) == 3


def test_a_database_that_is_not_there_is_named_without_its_password(bench):
    url = "postgresql://me:hunter2secret@127.0.0.1:1/none"
    nowhere = Registry(bench.home, bench.clock, url=url, timeout_s=2.0)
    with pytest.raises(RegistryError, match="Postgres") as refused:
        nowhere.state()
    assert "hunter2secret" not in str(refused.value)
