"""Real processes append at once and are killed: the chain neither forks nor loses what was confirmed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mlbot_core.clock import FixedClock
from mlbot_core.validation.trials import DailyReturns, TrialLedger

WRITER = """
import sys
import numpy as np
from pathlib import Path
from mlbot_core.clock import SystemClock
from mlbot_core.validation.trials import DailyReturns, TrialLedger

ledger = TrialLedger(Path(sys.argv[1]), SystemClock())
name, count, shared = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "shared"
print("ready", flush=True)
for i in range(count):
    seed = i if shared else i + 1000 * int(name)
    returns = DailyReturns(0, np.random.default_rng(seed).normal(size=30))
    done = ledger.append("test", {"seed": seed}, returns, data_version="d", run_id=name)
    print(done.row.seq, done.row.row_hash, flush=True)
"""


def start(home, name, count, kind="own"):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(home), str(name), str(count), kind], stdout=subprocess.PIPE, text=True
    )


def confirmed(output):
    return {(int(seq), digest) for seq, digest in (line.split() for line in output if line.count(" ") == 1)}


def test_processes_that_append_at_once_make_one_chain(tmp_path):
    writers = [start(tmp_path, name, 15) for name in range(3)]
    lines = [writer.communicate(timeout=120)[0].splitlines() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    history = TrialLedger(tmp_path, FixedClock(0)).read("test")
    assert history.n_trials == 45
    said = [pair for output in lines for pair in confirmed(output)]
    assert sorted(said) == sorted((row.seq, row.row_hash) for row in history.rows)
    assert len({row.run_id for row in history.rows}) == 3


def test_the_same_trial_from_many_processes_counts_once(tmp_path):
    writers = [start(tmp_path, name, 8, "shared") for name in range(3)]
    for writer in writers:
        assert writer.wait(timeout=120) == 0
        writer.stdout.close()
    assert TrialLedger(tmp_path, FixedClock(0)).read("test").n_trials == 8


@pytest.mark.slow
def test_killed_writers_lose_nothing_that_was_confirmed(tmp_path):
    """Two writers at a time, killed with SIGKILL at random moments, round after round."""
    rng = np.random.default_rng(5)
    said: set[tuple[int, str]] = set()
    for round_ in range(12):
        writers = [start(tmp_path, 10 * round_ + name, 500) for name in range(2)]
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        time.sleep(float(rng.uniform(0.01, 0.4)))
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
        for writer in writers:
            output = writer.stdout.read().splitlines()
            writer.stdout.close()
            assert writer.wait(timeout=30) == -signal.SIGKILL
            said |= confirmed([line for line in output if len(line.split()[-1]) == 64])
        history = TrialLedger(tmp_path, FixedClock(0)).read("test")
        assert said <= {(row.seq, row.row_hash) for row in history.rows}
    ledger = TrialLedger(tmp_path, FixedClock(0))
    before = ledger.read("test").n_trials
    ledger.append("test", {"last": 1}, DailyReturns(0, np.ones(3)), data_version="d", run_id="r")
    assert ledger.read("test").n_trials == before + 1
    assert before >= len(said) > 20
