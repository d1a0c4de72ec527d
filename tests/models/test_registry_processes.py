"""Real processes promote at once and are killed: there is exactly one champion, the old one or the new one."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PROMOTER = """
import pickle, sys, time
from pathlib import Path
from mlbot_core.clock import FixedClock
from mlbot_core.models import registry, registry_store
from mlbot_core.validation.trials import TrialLedger
from mlbot_core.validation.trials_heads import HeadFile

home, where, url = Path(sys.argv[1]), sys.argv[3], sys.argv[4] or None
record = pickle.loads(Path(sys.argv[2]).read_bytes())

def stop(text):
    print(text, flush=True)
    time.sleep(600)

# the process stands still at one place, so that it can be killed exactly there
if where == "checked":
    check = registry.check_record
    registry.check_record = lambda *args: (check(*args), stop("checked"))
elif where in ("gate", "promoted"):
    add = registry_store.Appending.add
    registry_store.Appending.add = lambda self, e: (add(self, e), e.kind == where and stop("inserted"))
elif where == "committed":
    HeadFile.record = lambda self, head: stop("committed")
print("ready", flush=True)
sys.stdin.readline()
# a backtest may be promoted for some weeks after its end
clock = FixedClock(int(sys.argv[5]))
one = registry.Registry(home, clock, url=url)
one.promote(record, models_dir=home / "models", ledger=TrialLedger(home, clock), why="race")
print("done", flush=True)
"""


def start(bench, record, where="nowhere"):
    # a made record travels to the other process as it is
    path = bench.home / f"{record.registration.version[:8]}.pickle"
    path.write_bytes(pickle.dumps(record))
    process = subprocess.Popen(
        [sys.executable, "-c", PROMOTER, str(bench.home), str(path), where, bench.url or "", str(bench.clock.now_ms())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def finish(process):
    process.communicate(timeout=120)
    return process.returncode


@pytest.mark.slow
def test_promotions_at_once_leave_one_champion(registry_bench):
    bench = registry_bench
    entries = [bench.register(seed) for seed in range(3)]
    processes = [start(bench, bench.record(entry)) for entry in entries]
    for process in processes:
        go(process)
    assert [finish(process) for process in processes] == [0, 0, 0]
    state = bench.registry.state()
    assert Counter(entry.stage for entry in state.models.values()) == {"champion": 1, "retired": 2}
    kinds = [event.kind for event in bench.registry.events()]
    assert kinds[3:] == ["gate", "promoted"] * 3
    formers = [event.facts["former"] for event in bench.registry.events() if event.kind == "promoted"]
    assert formers == [None, *state.lines[bench.slot()][:-1]]


def test_the_same_promotion_twice_at_once_happens_once(registry_bench):
    bench = registry_bench
    entry = bench.register()
    record = bench.record(entry)
    processes = [start(bench, record) for _ in range(2)]
    for process in processes:
        go(process)
    assert sorted(finish(process) for process in processes) == [0, 1]
    assert [event.kind for event in bench.registry.events()] == ["registered", "gate", "promoted"]


@pytest.mark.parametrize("where", ["checked", "gate", "promoted", "committed"])
def test_a_kill_leaves_the_old_champion_or_the_new_one_and_nothing_between(registry_bench, where):
    bench = registry_bench
    old, new, later = (bench.register(seed) for seed in (1, 2, 3))
    bench.promote(old)
    before = bench.registry.events()
    process = start(bench, bench.record(new), where)
    go(process)
    assert process.stdout.readline().strip() in ("checked", "inserted", "committed")
    os.kill(process.pid, signal.SIGKILL)
    assert finish(process) == -signal.SIGKILL
    if where == "committed":
        assert bench.registry.state().champions == {old.slot: new.version}
    else:
        assert bench.registry.events() == before
        assert bench.registry.state().champions == {old.slot: old.version}
    # whoever comes next is neither held up nor misled
    assert bench.promote(later).champions == {old.slot: later.version}
    assert bench.registry.state().champions == {old.slot: later.version}


@pytest.mark.slow
def test_first_registrations_at_once_share_one_key(registry_bench):
    """The key and the store are made by whoever comes first."""
    bench = registry_bench
    entry = bench.register()
    for name in ("registry.sqlite", "registry.sqlite-wal", "registry.sqlite-shm", "registry.key"):
        (bench.home / name).unlink(missing_ok=True)
    for path in (bench.home / "registry-heads").rglob("*.heads"):
        path.unlink()
    code = """
import json, sys
from pathlib import Path
from mlbot_core.clock import SystemClock
from mlbot_core.models.registry import Registry, Slot

home = Path(sys.argv[1])
sys.stdin.readline()
Registry(home, SystemClock()).register(
    sys.argv[2], slot=Slot("archive", "BTC", "2h", "lightgbm"), identity="", start_ms=0, end_ms=1, data_as_of_ms=1,
    inputs=json.loads(sys.argv[3]), models_dir=home / "models", run_id="r",
)
"""
    import json

    inputs = json.dumps(dict(entry.registration.inputs))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(bench.home), entry.version, inputs], stdin=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        go(process)
    assert [finish(process) for process in processes] == [0] * 4
    assert [event.kind for event in bench.registry.events()] == ["registered"]
    assert Path(bench.home / "registry.key").exists()
