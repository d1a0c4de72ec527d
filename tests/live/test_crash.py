"""A materialization that is killed at any moment leaves whole months or none, and a re-run makes it complete."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from mlbot_core.market.quality import ADVISORY_CHECKS
from mlbot_core.timeframe import Month

MARKET = "BTC-4h"
MONTHS = [Month(2024, number) for number in range(1, 7)]
KILLS = 20
KILLS_PER_HOME = 5
RAW_CHECKS = {"duplicates", "gaps", "freshness", "sanity"}
DERIVED_CHECKS = {"duplicates", "freshness", "lookahead"}


@dataclass(frozen=True)
class Moment:
    """When to kill: so many seconds after the start, or so long after the n-th time that the store was taken."""

    kind: str
    seconds: float
    write: int = 0

    def __str__(self) -> str:
        at = f"{self.seconds:6.2f} s after the start"
        return at if self.kind == "time" else f"{self.seconds * 1000:6.1f} ms into write {self.write}"


@dataclass(frozen=True)
class Killed:
    """What a kill hit."""

    moment: Moment
    lived_s: float
    step: str
    inside_write: bool


def moments(duration_s: float, writes: int, seed: int) -> list[Moment]:
    """Return 20 moments: half spread evenly at random over the duration, half inside writes, in random order."""
    rng = np.random.default_rng(seed)
    half = KILLS // 2
    shares = (np.arange(half) + rng.random(half)) / half
    timed = [Moment("time", float(share * duration_s)) for share in shares]
    numbers = 1 + (np.arange(half) * writes // half)
    inside = [Moment("write", float(rng.uniform(0, 0.02)), int(number)) for number in numbers]
    chosen = [*timed, *inside]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def held(lock: Path) -> bool:
    """Return whether somebody holds the store's lock alone, which is to say: writes."""
    try:
        fd = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def await_write(process, lock: Path, number: int) -> bool:
    """Wait until the store is taken for the ``number``-th time; False if the process ends before."""
    seen, before = 0, False
    while process.poll() is None:
        now = held(lock)
        seen += now and not before
        before = now
        if seen >= number:
            return True
        time.sleep(0.0005)
    return False


def kill_at(home, plan, moment: Moment, tag: str) -> Killed | None:
    """Start the plan and kill it at the moment; None if its run was over before."""
    lock = home.store_path.with_name(home.store_path.name + ".lock")
    started = time.monotonic()
    process = home.start(plan, tag)
    if moment.kind == "write" and not await_write(process, lock, moment.write):
        return None
    wait_until = (started if moment.kind == "time" else time.monotonic()) + moment.seconds
    while time.monotonic() < wait_until and process.poll() is None:
        time.sleep(min(0.01, max(0.0, wait_until - time.monotonic())))
    if process.poll() is not None:
        return None
    # frozen first, so that what is seen of the lock is what the kill hits
    os.killpg(process.pid, signal.SIGSTOP)
    inside = held(lock)
    home.kill(process)
    if any(event["event"] == "end" for event in home.events(tag)):
        return None
    steps = [event["step"] for event in home.events(tag) if event["event"] == "step_start"]
    return Killed(moment, time.monotonic() - started, steps[-1] if steps else "before the first step", inside)


def assert_whole_months(tools, home, clean) -> tuple[int, int]:
    """Every month of every asset is there as in a clean run, written down and judged; or there is nothing of it."""
    there = tools.contents(home, MARKET, MONTHS)
    written = tools.recorded(home)
    assert set(written) <= set(clean)
    for key, wanted in clean.items():
        if key not in written:
            assert there[key].rows == 0, f"{key}: {there[key].rows} rows that nobody wrote down"
            continue
        assert there[key] == wanted, f"{key}: {there[key].rows} rows instead of {wanted.rows}, or other values"
        for run, _, rows, verdicts in written[key]:
            assert rows == wanted.rows, (key, run)
            checks = DERIVED_CHECKS if key[0] in tools.DERIVED else RAW_CHECKS
            # raw series have further verdicts beside the required ones; none of all may have failed
            assert {(check, True) for check in checks} <= set(verdicts), (key, run)
            assert all(passed for check, passed in verdicts if check not in ADVISORY_CHECKS), (key, run)
    return len(written), len(clean)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_kills_leave_whole_months_or_none(make_home, emulator, tools, capsys):
    plan = [tools.data_run(MARKET, str(MONTHS[0]), str(MONTHS[-1]))]
    fixed = {"MLBOT_CLOCK": f"fixed:{tools.NOW}", "MLBOT_EMULATOR_URL": emulator.url}
    reference = make_home("clean", **fixed)
    began = time.monotonic()
    (end,) = reference.run(plan)
    assert end["success"], end
    (end,) = reference.run(plan)  # again, with everything cached: this is how long it takes
    duration = end["seconds"] + 2.5
    clean = tools.contents(reference, MARKET, MONTHS)
    versions = {key: {version for _, version, _, _ in found} for key, found in tools.recorded(reference).items()}
    assert {asset for asset, _ in clean} == set(tools.TABLES)
    assert sum(1 for stored in clean.values() if stored.rows) == 8 * len(MONTHS), "all but the funding not served"

    lines = []
    inside = 0
    for number, moment in enumerate(moments(duration, writes=9, seed=20260101)):
        if number % KILLS_PER_HOME == 0:
            home = make_home(f"killed-{number // KILLS_PER_HOME}", **fixed)
        killed = kill_at(home, plan, moment, f"kill-{number}")
        while killed is None:  # this machine was quicker than at the measurement
            moment = replace(moment, seconds=moment.seconds * 0.7, write=max(1, moment.write - 1))
            killed = kill_at(home, plan, moment, f"kill-{number}")
        inside += killed.inside_write
        present, of = assert_whole_months(tools, home, clean)
        runs = home.dagster_runs()
        lines.append(
            f"{number + 1:4} {killed.moment!s:28} {killed.lived_s:7.2f} {killed.step:26} "
            f"{'yes' if killed.inside_write else 'no':6} {present:3} of {of}"
        )
        if (number + 1) % KILLS_PER_HOME:
            continue
        (end,) = home.run(plan, "completing")
        assert end["success"], end
        assert assert_whole_months(tools, home, clean) == (of, of)
        assert tools.contents(home, MARKET, MONTHS) == clean, "bit for bit what a clean run stores"
        again = {key: {version for _, version, _, _ in found} for key, found in tools.recorded(home).items()}
        assert again == versions
        after = home.dagster_runs()
        assert after[end["run_id"]] == "SUCCESS"
        unfinished = {run for run, status in runs.items() if status != "SUCCESS"}
        assert {after[run] for run in unfinished} <= {"FAILURE"}, "killed runs are ended by the next launch"
        assert not list((home.path / "dagster" / "launchers").iterdir())
    with capsys.disabled():
        print(f"\n{KILLS} kills in {time.monotonic() - began:.0f} s; a whole run takes {duration:.1f} s")
        print("   # killed                        lived s step                       in a write  months x assets there")
        print("\n".join(lines))
    assert inside >= KILLS // 4, "too few kills hit a write: the moments are wrong"
