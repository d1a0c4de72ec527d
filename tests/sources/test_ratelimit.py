"""No 60 seconds may see more calls than allowed: with a fake stopwatch, across threads, and across processes."""

import json
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.clock import FixedClock, ScaledClock, parse_utc_ms
from mlbot_core.sources.ratelimit import MAX_HEADER, USE_HEADER, RateLimiter

MINUTE_START = parse_utc_ms("2025-03-10T12:00:00Z")


class Stopwatch:
    """Monotonic seconds that pass only by sleeping."""

    def __init__(self):
        self.now = 1000.0

    def read(self):
        return self.now

    def sleep(self, seconds):
        assert seconds >= 0
        self.now += seconds


def limiter(watch, clock=None, **kwargs):
    clock = clock or FixedClock(MINUTE_START)
    return RateLimiter(clock, monotonic=watch.read, sleep=watch.sleep, **kwargs)


def most_in_a_minute(times):
    return max(sum(1 for t in times if begin <= t < begin + 60) for begin in times)


@settings(max_examples=60, deadline=None)
@given(per_minute=st.integers(2, 400), pauses=st.lists(st.floats(0, 20), min_size=1, max_size=80))
def test_no_window_of_60_seconds_exceeds_the_allowance(per_minute, pauses):
    watch = Stopwatch()
    bucket = limiter(watch, per_minute=per_minute)
    times = []
    for pause in [0.0] * min(2 * per_minute, 300) + pauses:
        watch.sleep(pause)
        bucket.acquire()
        times.append(watch.now)
    assert most_in_a_minute(times) <= per_minute + 1e-9


def test_long_run_pace_is_80_percent():
    watch = Stopwatch()
    bucket = limiter(watch, per_minute=300)
    began = watch.now
    for _ in range(60 + 2400):
        bucket.acquire()
    # 60 calls of burst, then 240 a minute
    assert watch.now - began == pytest.approx(600, abs=1)


def test_allowance_is_learnt_from_headers():
    bucket = limiter(Stopwatch())
    assert bucket.per_minute == 30
    bucket.learn({MAX_HEADER: "80", USE_HEADER: "3"})
    assert bucket.per_minute == 80
    for nonsense in ({}, {MAX_HEADER: "many"}, {MAX_HEADER: "0"}, {MAX_HEADER: "inf"}, {USE_HEADER: "79"}):
        bucket.learn(nonsense)
    assert bucket.per_minute == 80


def test_calls_stop_until_the_minute_when_others_used_it_up():
    watch = Stopwatch()
    bucket = limiter(watch, FixedClock(MINUTE_START + 45_000), per_minute=80)
    bucket.acquire()
    bucket.learn({MAX_HEADER: "80", USE_HEADER: "78"})
    assert bucket.acquire() == 0
    bucket.learn({MAX_HEADER: "80", USE_HEADER: "79"})
    assert bucket.acquire() == pytest.approx(15)


@pytest.mark.parametrize("attempt", [0, 1])
def test_refusal_waits_at_most_to_the_minute_even_if_the_clock_stands_still(attempt):
    watch = Stopwatch()
    bucket = limiter(watch, FixedClock(MINUTE_START + 50_000))
    waited = bucket.wait_out(attempt)
    assert 10 <= waited <= 11
    assert bucket.wait_out(attempt, retry_after_s=3.0) == pytest.approx(3, abs=0.6)
    assert bucket.wait_out(attempt, retry_after_s=1e9) <= 121


def test_refusal_follows_a_fast_clock_only_the_first_time():
    clock = ScaledClock(MINUTE_START, 3000.0)
    waits = []
    bucket = RateLimiter(clock, sleep=lambda seconds: waits.append(seconds) or threading.Event().wait(seconds))
    assert bucket.wait_out(0) < 5
    assert len(waits) <= 3


def test_the_injected_clock_does_not_pace():
    clock = FixedClock(MINUTE_START)
    watch = Stopwatch()
    bucket = limiter(watch, clock, per_minute=30)
    for _ in range(20):
        bucket.acquire()
    assert watch.now > 1000
    assert clock.now_ms() == MINUTE_START


def test_threads_share_one_bucket():
    watch = Stopwatch()
    guard = threading.Lock()
    starts = []

    def sleep(seconds):
        with guard:
            starts.append(seconds)

    bucket = RateLimiter(FixedClock(MINUTE_START), per_minute=60, monotonic=watch.read, sleep=sleep)
    threads = [threading.Thread(target=bucket.acquire) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # the stopwatch stands: 12 calls of burst go at once, each later one has its own place in the queue
    assert sorted(starts) == pytest.approx([(i + 1) / 0.8 for i in range(8)])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"tokens": NaN, "at": 1, "per_minute": 30, "closed_until": 0}', "\x00"]
)
def test_damaged_shared_file_starts_afresh(tmp_path, text):
    path = tmp_path / "rate.json"
    path.write_text(text)
    bucket = limiter(Stopwatch(), path=path, per_minute=50)
    assert bucket.acquire() == 0
    assert bucket.per_minute == 50


def test_state_of_an_earlier_boot_blocks_nobody(tmp_path):
    path = tmp_path / "rate.json"
    path.write_text('{"tokens": -5.0, "at": 9e9, "per_minute": 80, "closed_until": 9e9}')
    bucket = limiter(Stopwatch(), path=path)
    assert bucket.acquire() < 10


WORKER = """
import sys, time
from pathlib import Path
from mlbot_core.clock import SystemClock
from mlbot_core.sources.ratelimit import RateLimiter
bucket = RateLimiter(SystemClock(), per_minute=600, path=Path(sys.argv[1]))
for _ in range(55):
    bucket.acquire()
    print(time.monotonic())
"""


def test_processes_share_one_bucket(tmp_path):
    path = str(tmp_path / "rate.json")
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, path], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    times = sorted(float(line) for worker in workers for line in worker.communicate(timeout=60)[0].split())
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert len(times) == 165
    # 120 calls of burst, then 8 a second: the other 45 need at least 5.5 s however many processes ask
    assert times[-1] - times[0] >= 45 / 8 - 0.2


def test_the_record_is_replaced_by_one_write_of_the_same_length(tmp_path):
    path = tmp_path / "rate.json"
    path.write_bytes(b"x" * 1000)  # longer than a record: what stands behind it is never read
    watch = Stopwatch()
    bucket = limiter(watch, path=path, per_minute=60)
    lengths = set()
    for used in range(30):
        bucket.acquire()
        bucket.learn({MAX_HEADER: str(60 + used), USE_HEADER: "1"})
        lengths.add(path.stat().st_size)
        assert path.read_bytes()[191:192] == b"\n"
    assert lengths == {1000}
    assert bucket.per_minute == 89
    # another process reads the same bucket: nothing is left of the burst
    assert limiter(watch, path=path).acquire() > 0


@pytest.mark.parametrize("allowed", ["1e300", "1000001", "-3", "nan"])
def test_an_allowance_that_nobody_sells_is_not_believed(tmp_path, allowed):
    bucket = limiter(Stopwatch(), path=tmp_path / "rate.json", per_minute=60)
    bucket.learn({MAX_HEADER: allowed})
    assert bucket.per_minute == 60


def test_looking_writes_nothing(tmp_path):
    path = tmp_path / "rate.json"
    watch = Stopwatch()
    bucket = limiter(watch, path=path, per_minute=60)
    bucket.acquire()
    before = path.read_bytes()
    watch.sleep(0.5)
    assert bucket.per_minute == 60
    bucket.learn({MAX_HEADER: "60", USE_HEADER: "1"})
    assert path.read_bytes() == before
    watch.sleep(2)
    assert bucket.acquire() == 0


KILLED = """
import sys
from pathlib import Path
from mlbot_core.clock import SystemClock
from mlbot_core.sources.ratelimit import RateLimiter
bucket = RateLimiter(SystemClock(), per_minute=60_000, path=Path(sys.argv[1]))
print("ready", flush=True)
while True:
    bucket.acquire()
"""


def test_a_killed_process_never_leaves_a_full_bucket(tmp_path):
    """A torn record would be read as a full bucket: the next process would have a burst it may not have."""
    path = tmp_path / "rate.json"
    for turn in range(3):
        worker = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
        assert worker.stdout.readline() == "ready\n"
        time.sleep(0.05 + 0.011 * turn)
        worker.kill()
        worker.communicate()
        record = path.read_bytes()
        assert len(record) == 192
        assert json.loads(record)["per_minute"] == 60_000
