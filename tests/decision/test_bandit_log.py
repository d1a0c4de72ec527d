"""The durable log: exactly once over crashes, replay, and an off switch that always works."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlbot_core.clock import FixedClock
from mlbot_core.config.bandit import BanditConfig
from mlbot_core.decision.bandit import ARMS, BanditError, PolicySpec, initial_bandit, state_to_json, update
from mlbot_core.decision.bandit_baselines import volatility_target_arm
from mlbot_core.decision.bandit_context import N_CONTEXT, Context, ContextScale, context_vector
from mlbot_core.decision.bandit_live import Sized, size_of
from mlbot_core.decision.bandit_log import FILE_NAME, BanditLog, BanditLogError, fold

ROOT = Path(__file__).resolve().parents[2]
LINE = "archive BTC-2h lightgbm"
SCALE = ContextScale(0.5, 0.25)
SPEC = PolicySpec("lints", "shared", N_CONTEXT, epsilon=0.2, draws=16, seed=4)


def context(i: int) -> Context:
    rng = np.random.default_rng([9, i])
    edge, sd, spread, vol, liquidity = rng.uniform(0.001, 0.01, 5)
    return Context(edge, sd, 0.0015, spread, 60 * vol, 100 * liquidity, 0.01, 0.02)


def reward(i: int, multiplier: float) -> float:
    return multiplier * (1.0 - 0.2 * (i % 7)) - 0.3 * multiplier**2


@pytest.fixture
def log(tmp_path: Path) -> BanditLog:
    found = BanditLog(tmp_path, FixedClock(1_000))
    found.promote(LINE, initial_bandit(SPEC), SCALE, why="test", verdict={"passed": True})
    return found


def test_nothing_is_chosen_where_nothing_was_promoted(tmp_path):
    log = BanditLog(tmp_path, FixedClock(0))
    assert log.act(LINE, "1", context(1), explore=True) is None
    assert log.state(LINE) is None
    assert log.promoted(LINE) is None
    assert log.actions(LINE) == []
    with pytest.raises(BanditLogError, match="never made"):
        log.settle(LINE, "1", 0.0)


def test_a_decision_is_made_once_and_settled_once(log):
    first = log.act(LINE, "1", context(1), explore=True)
    assert [action.decision_id for action in log.pending(LINE)] == ["1"]
    assert log.settle(LINE, "1", 0.25) is True
    learned = log.state(LINE).version
    assert log.settle(LINE, "1", 0.25) is False
    assert log.act(LINE, "1", context(1), explore=True) == first
    assert log.state(LINE).version == learned
    assert log.state(LINE).updates == 1
    assert log.pending(LINE) == []
    with pytest.raises(BanditLogError, match="settled once"):
        log.settle(LINE, "1", 0.5)
    with pytest.raises(BanditLogError, match="another context"):
        log.act(LINE, "1", context(2), explore=True)
    for wrong in (math.nan, math.inf, -math.inf):
        with pytest.raises(BanditLogError, match="settle it with a number"):
            log.settle(LINE, "1", wrong)


def test_state_is_the_fold_over_the_log_in_the_order_of_the_rewards(log):
    for i in range(12):
        log.act(LINE, str(i), context(i), explore=True)
    for i in (3, 1, 2, 0, 11, 7):
        log.settle(LINE, str(i), reward(i, 0.5))
    rows = {action.decision_id: action for action, _ in log.actions(LINE)}
    expected = initial_bandit(SPEC)
    for i in (3, 1, 2, 0, 11, 7):
        action = rows[str(i)]
        np.testing.assert_array_equal(action.vector, context_vector(context(i), SCALE))
        expected = update(expected, action.vector, action.choice.arm, reward(i, 0.5))
    assert log.state(LINE).version == expected.version
    assert {a.decision_id for a in log.pending(LINE)} == {"4", "5", "6", "8", "9", "10"}


def test_an_unusable_context_takes_no_position_and_teaches_nothing(log):
    unusable = Context(math.nan, 0.01, 0.0015, math.nan, 0.5, 1.0, 0.0, 0.0)
    choice = log.act(LINE, "1", unusable, explore=True)
    assert choice.multiplier == 0.0
    assert log.act(LINE, "1", unusable, explore=True) == choice
    log.settle(LINE, "1", 0.0)
    assert log.state(LINE).version == initial_bandit(SPEC).version
    assert log.pending(LINE) == []


def test_lines_do_not_know_each_other(log):
    other = "archive BTC-4h lightgbm"
    log.promote(other, initial_bandit(SPEC), SCALE, why="test", verdict={})
    log.act(LINE, "1", context(1), explore=True)
    log.settle(LINE, "1", 1.0)
    assert log.state(other).updates == 0
    log.off([other], why="test")
    assert log.state(other) is None
    assert log.state(LINE).updates == 1


def test_off_works_and_promotion_ends_it(log):
    log.act(LINE, "1", context(1), explore=True)
    assert log.off([LINE], why="drill") is None
    assert log.act(LINE, "2", context(2), explore=True) is None
    assert log.promoted(LINE) is None
    # what was open is settled all the same
    assert log.settle(LINE, "1", 0.1) is True
    log.promote(LINE, initial_bandit(SPEC), SCALE, why="again", verdict={})
    assert log.act(LINE, "2", context(2), explore=True) is not None
    assert [(event["kind"], event["why"]) for event in log.events()] == [
        ("promoted", "test"),
        ("off", "drill"),
        ("promoted", "again"),
    ]


def test_off_works_on_a_broken_database(log, tmp_path):
    path = tmp_path / FILE_NAME
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(b"this is no database" * 500)
    assert "refused" in (log.off([LINE], why="drill") or "")
    assert BanditLog(tmp_path, FixedClock(0)).act(LINE, "9", context(9), explore=False) is None
    assert BanditLog(tmp_path, FixedClock(0)).state(LINE) is None


def test_a_live_size_is_the_policys_or_volatility_targetings(log, tmp_path):
    config = BanditConfig()
    first = size_of(log, LINE, "1", context(1), config)
    assert (first.by, first.problem) == ("bandit", None)
    assert size_of(log, LINE, "1", context(1), config) == first
    (action, _) = log.actions(LINE)[0]
    assert action.choice.explored is False
    assert action.choice.propensity == 1.0
    other = size_of(log, "archive BTC-4h ridge", "1", context(1), config)
    assert other == Sized(ARMS[volatility_target_arm(0.5, context(1))], "volatility target", None)
    (tmp_path / FILE_NAME).unlink()
    for suffix in ("-wal", "-shm"):
        Path(f"{tmp_path / FILE_NAME}{suffix}").unlink(missing_ok=True)
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 500)
    broken = size_of(log, LINE, "2", context(2), config)
    assert broken.by == "volatility target"
    assert "refused" in (broken.problem or "")


def test_a_changed_policy_or_action_is_refused(log, tmp_path):
    log.act(LINE, "1", context(1), explore=True)
    with sqlite3.connect(tmp_path / FILE_NAME) as con:
        con.execute('UPDATE bandit_actions SET propensities = \'["0x1p0","0x1p0","0x0p0","0x0p0","0x0p0"]\'')
    with pytest.raises(BanditLogError, match="cannot be read"):
        log.actions(LINE)
    other = state_to_json(update(initial_bandit(SPEC), np.ones(N_CONTEXT), 4, 100.0))
    with sqlite3.connect(tmp_path / FILE_NAME) as con:
        (body,) = con.execute("SELECT body FROM bandit_events").fetchone()
        was = state_to_json(initial_bandit(SPEC))["moment"][0]
        con.execute("UPDATE bandit_events SET body = ?", (body.replace(f'"{was}"', f'"{other["moment"][0]}"'),))
    with pytest.raises((BanditLogError, BanditError)):
        log.promoted(LINE)


def test_fold_passes_over_what_could_not_be_judged():
    vector = tuple(context_vector(context(1), SCALE))
    nothing = (math.nan,) * N_CONTEXT
    base = initial_bandit(SPEC)
    assert fold(base, [(nothing, 0, 0.0), (vector, 2, 1.0)]).version == update(base, vector, 2, 1.0).version


WORKER = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from test_bandit_log import LINE, context, reward
from mlbot_core.clock import FixedClock
from mlbot_core.decision.bandit_log import BanditLog
log = BanditLog(Path(sys.argv[1]), FixedClock(5_000))
for i in range(int(sys.argv[2])):
    choice = log.act(LINE, str(i), context(i), explore=True)
    log.settle(LINE, str(i), reward(i, choice.multiplier))
print("finished", flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_or_counted_twice(tmp_path):
    """kill -9 between action and reward, again and again; the end is that of a run that was never disturbed."""
    n = 30
    code = WORKER.format(here=str(Path(__file__).parent))
    command = [sys.executable, "-c", code]
    versions = []
    for name, kills in (("undisturbed", []), ("killed", list(np.random.default_rng(2).uniform(0.0, 0.25, 4)))):
        home = tmp_path / name
        log = BanditLog(home, FixedClock(1_000))
        log.promote(LINE, initial_bandit(SPEC), SCALE, why="test", verdict={})
        killed_inside = 0
        for wait in kills:
            before = len(log.actions(LINE))
            worker = subprocess.Popen([*command, str(home), str(n)], stdout=subprocess.PIPE, cwd=ROOT)
            # from the first new row on, so that the blow falls into the work and not into the start
            deadline = time.monotonic() + 60
            while len(log.actions(LINE)) == before and worker.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(wait / 10)
            os.kill(worker.pid, signal.SIGKILL)
            worker.communicate()
            killed_inside += 0 < len(log.actions(LINE)) < n
        done = subprocess.run([*command, str(home), str(n)], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.stdout == "finished\n", done.stderr
        if kills:
            assert killed_inside >= 2
        settled = log.actions(LINE)
        assert len(settled) == n
        assert log.pending(LINE) == []
        assert log.state(LINE).updates == n
        versions.append((log.state(LINE).version, [action.choice for action, _ in settled]))
    assert versions[0] == versions[1]


def test_killed_between_action_and_reward_the_reward_still_comes(tmp_path):
    code = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_bandit_log import LINE, context\n"
        "from mlbot_core.clock import FixedClock\n"
        "from mlbot_core.decision.bandit_log import BanditLog\n"
        "BanditLog(Path(sys.argv[1]), FixedClock(5)).act(LINE, 'a', context(1), explore=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    log = BanditLog(tmp_path, FixedClock(1))
    log.promote(LINE, initial_bandit(SPEC), SCALE, why="test", verdict={})
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [action.decision_id for action in log.pending(LINE)] == ["a"]
    assert log.settle(LINE, "a", 0.5) is True
    assert log.settle(LINE, "a", 0.5) is False
    assert log.state(LINE).updates == 1
