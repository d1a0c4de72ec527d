"""Halt marker, heartbeats, lease and permit: the first halt stays, doubt is safe, a sleeper cannot send."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbot_core.clock import FixedClock
from mlbot_core.errors import UsageError
from mlbot_core.execution import safety
from mlbot_core.execution.fence import fence
from mlbot_core.execution.safety import Halt, Lease, Permit, SafetyFiles, folder_of, process_started

NOW = 1_700_000_000_000
ACCOUNT = "test:1"


@pytest.fixture
def clock():
    return FixedClock(NOW)


@pytest.fixture
def files(tmp_path, clock):
    return SafetyFiles(folder_of(tmp_path, ACCOUNT), ACCOUNT, clock)


def sleeper(code="import time; time.sleep(60)"):
    return subprocess.Popen([sys.executable, "-c", code])


# --- the marker


def test_the_first_halt_stays_and_is_on_the_disk(files, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        safety.os,
        "fsync",
        lambda handle: (synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())), real(handle)),
    )
    assert files.halted() is None
    first = files.halt("ann", "fire", NOW)
    assert first == Halt("ann", "fire", NOW)
    # the text before it gets its name, the folder after
    assert ".HALTED-" in synced[0]
    assert synced[-1] == str(files.folder)
    assert files.halt("bob", "flood", NOW + 1) == first
    assert files.halted() == first
    assert [path.name for path in files.folder.iterdir()] == ["HALTED"]
    assert SafetyFiles(files.folder, ACCOUNT).halted() == first


def test_of_many_who_halt_at_once_one_stands_and_all_know_it(files):
    start = threading.Barrier(12)
    told = []

    def press(number):
        start.wait()
        told.append(SafetyFiles(files.folder, ACCOUNT).halt(f"actor-{number}", "drill", NOW + number))

    threads = [threading.Thread(target=press, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(told) == {files.halted()}
    assert [path.name for path in files.folder.iterdir()] == ["HALTED"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"actor": 1}', b"\xff\xfe", b'{"actor":"a","reason":"r","at_ms":"x"}']
)
def test_a_marker_that_cannot_be_read_is_a_halt(files, content):
    files.folder.mkdir(parents=True)
    (files.folder / "HALTED").write_bytes(content)
    halt = files.halted()
    assert halt is not None
    assert halt.actor == "unknown"
    assert files.halt("ann", "fire", NOW) == halt


def test_whatever_has_its_name_is_a_halt(files):
    files.folder.mkdir(parents=True)
    (files.folder / "HALTED").mkdir()
    assert files.halted().actor == "unknown"
    (files.folder / "HALTED").rmdir()
    (files.folder / "HALTED").symlink_to("nowhere")
    assert files.halted().actor == "unknown"
    (files.folder / "HALTED").unlink()
    assert files.halted() is None
    # the account's folder is no folder: nobody can tell, so nothing is sent
    files.folder.rmdir()
    files.folder.write_text("")
    assert files.halted().actor == "unknown"


def test_where_there_is_no_room_for_the_text_an_empty_marker_halts(files, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SafetyFiles, "_write_synced", full)
    assert files.halt("ann", "fire", NOW).actor == "unknown"
    assert (files.folder / "HALTED").stat().st_size == 0
    assert not [path for path in files.folder.iterdir() if path.name != "HALTED"]


def test_a_cleared_halt_is_kept_with_who_and_why(files, clock):
    assert files.clear_halt("bob", "nothing") is False
    for number in range(2):
        files.halt("ann", f"fire {number}", NOW)
        assert files.clear_halt("bob", f"out {number}") is True
        assert files.halted() is None
        assert files.clear_halt("bob", "again") is False
    kept = sorted((files.folder / "halts").glob("*-cleared.json"))
    assert len(kept) == 2
    for number, path in enumerate(kept):
        record = json.loads(path.read_text())
        assert record["halt"] == {"actor": "ann", "reason": f"fire {number}", "at_ms": NOW, "keep_position": False}
        assert record["cleared"] == {"actor": "bob", "reason": f"out {number}", "at_ms": NOW}
        marker = path.with_name(path.name.replace("cleared", "marker"))
        assert json.loads(marker.read_text())["reason"] == f"fire {number}"


def test_a_halt_that_keeps_the_position_gives_way_to_one_that_does_not(files):
    kept = files.halt("ann", "look first", NOW, keep_position=True)
    assert kept.keep_position
    assert files.halted() == kept
    assert files.killed() is None
    assert files.halt("bob", "also", NOW + 1, keep_position=True) == kept
    killed = files.halt("dead-man", "silence", NOW + 2)
    assert files.halted() == files.killed() == killed == Halt("dead-man", "silence", NOW + 2)
    assert files.halt("bob", "again", NOW + 3, keep_position=True) == killed


def test_a_marker_that_cannot_be_recorded_is_not_cleared(files, monkeypatch):
    files.halt("ann", "fire", NOW)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SafetyFiles, "_write_synced", full)
    with pytest.raises(OSError, match="No space"):
        files.clear_halt("bob", "out")
    assert files.halted() == Halt("ann", "fire", NOW)


def test_folders_are_named_by_accounts(tmp_path):
    assert folder_of(tmp_path, "testnet:12") == tmp_path / "testnet_12"
    for name in ("", "a/b", "..", "x" * 65):
        with pytest.raises(UsageError):
            folder_of(tmp_path, name)


# --- heartbeats


def test_each_beat_is_another_one_over_restarts(files, clock):
    assert files.heartbeat("watch") is None
    files.beat("watch", nav="1.5")
    first = files.heartbeat("watch")
    assert (first.counter, first.pid, first.account, first.at_ms) == (1, os.getpid(), ACCOUNT, NOW)
    assert first.started == process_started(os.getpid())
    assert first.facts == {"nav": "1.5"}
    assert not first.farewell
    files.beat("watch")
    SafetyFiles(files.folder, ACCOUNT, clock).farewell("watch", why="flat")
    last = files.heartbeat("watch")
    assert last.counter == 3
    assert last.farewell
    assert last.identity != first.identity
    with pytest.raises(UsageError):
        files.beat("../watch")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff"])
def test_a_beat_that_cannot_be_read_is_none(files, content):
    files.beat("watch")
    (files.folder / "beat-watch.json").write_bytes(content)
    assert files.heartbeat("watch") is None
    files.beat("watch")
    assert files.heartbeat("watch") is not None


def test_a_reader_never_sees_half_a_beat(files):
    files.beat("watch", text="x" * 4000)
    done = threading.Event()
    seen = []

    def read():
        while not done.is_set():
            seen.append(SafetyFiles(files.folder, ACCOUNT).heartbeat("watch"))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(300):
        files.beat("watch", text="x" * 4000)
    done.set()
    reader.join()
    assert len(seen) > 20
    assert None not in seen
    assert [beat.counter for beat in seen] == sorted(beat.counter for beat in seen)


def test_a_process_is_known_by_pid_and_start(files):
    child = sleeper()
    try:
        started = process_started(child.pid)
        assert started is not None
        files.beat("watch")
        mine = files.heartbeat("watch")
        assert mine.still_runs()
        beat = type(mine)("watch", ACCOUNT, 1, child.pid, started, mine.boot, NOW)
        os.kill(child.pid, signal.SIGSTOP)
        assert beat.still_runs()
        others = [
            type(mine)("watch", ACCOUNT, 1, child.pid, started - 1, mine.boot, NOW),
            type(mine)("watch", ACCOUNT, 1, child.pid, started, "another boot", NOW),
            type(mine)("watch", ACCOUNT, 1, child.pid, None, mine.boot, NOW),
        ]
        for other in others:
            # its pid belongs to somebody else now: nobody is killed
            assert not other.still_runs()
            assert not fence(other).killed
        assert not fence(mine).killed
        assert child.poll() is None
        assert fence(beat).killed
        assert child.wait(timeout=10) == -signal.SIGKILL
        assert not beat.still_runs()
        assert not fence(beat).killed
    finally:
        child.kill()
        child.wait()


def test_a_zombie_does_not_run():
    child = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 20
    while process_started(child.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    # ended, and not yet waited for
    assert process_started(child.pid) is None
    assert child.wait() == 0


# --- lease and permit


class BootTime:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_a_lease_ends_by_whichever_time_ends_it_first(clock):
    boot = BootTime()
    lease = Lease(10, clock, boot)
    assert not lease.valid()
    lease.renew()
    assert lease.valid()
    boot.now += 10.001  # asleep: the injected clock stood still
    assert not lease.valid()
    lease.renew()
    clock.sleep(10.001)  # the injected clock jumped
    assert not lease.valid()
    lease.renew()
    lease.drop()
    assert not lease.valid()
    with pytest.raises(UsageError):
        Lease(0, clock)


@given(st.floats(0.1, 100), st.lists(st.tuples(st.floats(0, 200), st.integers(0, 200_000)), max_size=5))
def test_a_lease_is_never_valid_longer_than_it_says(seconds, steps):
    clock, boot = FixedClock(NOW), BootTime()
    lease = Lease(seconds, clock, boot)
    lease.renew()
    begun = boot.now, clock.now_ms()
    for real_s, told_ms in steps:
        boot.now += real_s
        clock.set_ms(clock.now_ms() + told_ms)
        late = boot.now - begun[0] > seconds or clock.now_ms() - begun[1] > 1000 * seconds
        assert lease.valid() == (not late)


def test_a_clock_that_was_set_back_ends_a_lease():
    class Wall:
        now = NOW

        def now_ms(self):
            return self.now

        def sleep(self, seconds):
            raise AssertionError

    wall = Wall()
    lease = Lease(10, wall, BootTime())
    lease.renew()
    wall.now -= 1
    assert not lease.valid()


def test_a_real_freeze_ends_a_real_lease():
    code = (
        "import os, signal, sys\n"
        "from mlbot_core.clock import SystemClock\n"
        "from mlbot_core.execution.safety import Lease\n"
        "lease = Lease(0.5, SystemClock()); lease.renew()\n"
        "print(lease.valid(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
        "print(lease.valid(), flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "True\n"
    time.sleep(0.6)
    os.kill(child.pid, signal.SIGCONT)
    assert child.communicate(timeout=20)[0] == "False\n"


def test_a_halt_forbids_entries_and_no_way_out(files, clock):
    boot = BootTime()
    lease = Lease(10, clock, boot)
    permit = Permit(files, lease)
    assert not permit.entry()
    assert not permit.reduce()
    assert "lease" in permit.why_not(True)
    lease.renew()
    assert permit.entry()
    assert permit.reduce()
    assert permit.why_not(False) is None
    files.halt("ann", "fire", NOW)
    assert not permit.entry()
    assert permit.reduce()
    assert "ann" in permit.why_not(False)
    assert "fire" in permit.why_not(False)
    boot.now += 11
    assert not permit.reduce()
    files.clear_halt("bob", "out")
    assert not permit.entry()
    lease.renew()
    assert permit.entry()
