"""A backfill from Coinglass at a Startup plan's depth and rate, killed ten times at random, with the real command.

Three kinds of processes take part: the emulator, which remembers every call; `mlbot backfill`; and the process in which
it launches its run. The last two form a group that is killed with SIGKILL. Time stands still at one instant for all of
them, so every stored value is comparable, `observed_at` and `found_at` included; the minutes of the rate limit are
real ones.
"""

import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from mlbot_core.clock import SystemClock, format_utc, parse_utc_ms
from mlbot_core.market import CATALOGUE
from mlbot_core.sources.plans import PLANS
from mlbot_core.sources.ratelimit import PACE
from mlbot_core.timeframe import DAY_MS, Timeframe
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.content import table_content

ROOT = Path(__file__).resolve().parents[2]
NOW = "2025-03-02T10:37:21Z"
FIRST = "2024-08-01"  # a month before the Startup plan's 180 days begin
KILLS = 10
STARTUP = PLANS["STARTUP"]
SERVED = [name for name, spec in CATALOGUE.items() if spec.endpoint is not None]
BY_PATH = {str(CATALOGUE[name].endpoint): name for name in SERVED}
# one of each kind: prices, a late one, one stamped in seconds and one that answers with its whole history
FEW = ("price", "order_book", "coinbase_premium", "etf_flows")


@dataclass
class Emulator:
    """The emulator's process and what it tells of itself."""

    url: str
    process: subprocess.Popen

    def get(self, path):
        return httpx.get(f"{self.url}/_emulator/{path}", trust_env=False, timeout=30).json()

    def requests(self, since=0):
        return self.get("coinglass/requests")[since:]

    def for_bars(self, since=0):
        """Return (series, interval, first bar, last bar) of every call for bars, from the ``since``-th call on.

        The bounds of a series that answers with its whole history are None.
        """
        found = []
        for asked in self.requests(since):
            if series := BY_PATH.get(asked["path"]):
                bounds = [int(v) if (v := asked["query"].get(name)) else None for name in ("start_time", "end_time")]
                found.append((series, asked["query"].get("interval"), *bounds))
        return found


@pytest.fixture
def start_emulator(make_home):
    started = []

    def begin(*options):
        process = subprocess.Popen(
            [sys.executable, "-m", "mlbot_core.emulator", *options],
            stdout=subprocess.PIPE,
            env=make_home("emulator", MLBOT_CLOCK=f"fixed:{NOW}").environment,
            cwd=ROOT,
        )
        started.append(process)
        return Emulator(json.loads(process.stdout.readline())["url"], process)

    yield begin
    for process in started:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def start(home, series, interval="1h", first=FIRST):
    home.path.mkdir(parents=True, exist_ok=True)
    command = ["backfill", "--source", "emulator", "-i", interval, "--series", series, "--raw-only", "--from", first]
    with (home.path / f"backfill-{interval}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlbot_core.cli.main", *command],
            stdout=log,
            stderr=log,
            env=home.environment,
            cwd=ROOT,
            start_new_session=True,
        )
    home.started.append(process)
    return process


def finish(home, process, interval="1h", timeout_s=1500):
    process.wait(timeout_s)
    assert process.returncode == 0, (home.path / f"backfill-{interval}.log").read_text()[-3000:]


def store(home):
    return Warehouse(home.store_path, SystemClock(), timeout_s=60)


def held(home):
    """Return the open times that the store has of each series."""
    if not home.store_path.exists():
        return {name: set() for name in SERVED}
    with store(home).read() as con:
        present = {row[0] for row in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        return {
            name: {row[0] for row in con.execute(f"SELECT ts FROM {name}").fetchall()} if name in present else set()
            for name in SERVED
        }


def content(home):
    """Return what the store holds: hashes of all values of all series and gaps, newest outcomes and verdicts.

    Left out is what tells one run from another: ids of runs, when and how often a month was written down, and how many
    rows a write had.
    """
    with store(home).read() as con:
        found = {name: table_content(con, name) for name in (*CATALOGUE, "gaps")}
        made = con.execute(
            "SELECT asset, source, partition, data_version, rows FROM partitions "
            "QUALIFY row_number() OVER (PARTITION BY asset, source, partition ORDER BY written_at DESC, rowid DESC) = 1"
            " ORDER BY ALL"
        ).fetchall()
        verdicts = con.execute(
            "SELECT DISTINCT asset, source, partition, data_version, check_name, passed FROM quality ORDER BY ALL"
        ).fetchall()
    return {**found, "made": made, "verdicts": verdicts}


def expected_bars(name, interval):
    """Return how many bars of a series the plan serves from FIRST to NOW."""
    spec, now = CATALOGUE[name], parse_utc_ms(NOW)
    timeframe = spec.native or Timeframe.parse(interval)
    stop = timeframe.floor(now - spec.lag_ms(timeframe))
    earliest = None if spec.native else STARTUP.earliest_ms(timeframe, now)
    begin = max(parse_utc_ms(FIRST), earliest or 0)
    return len(spec.expected_opens(timeframe, begin, stop))


def never_twice(asked, before):
    """Fail if a call asked for a bar that was stored when its process began."""
    for series, interval, first, last in asked:
        if first is None:
            complete = len(before[series]) == expected_bars(series, interval)
            assert not complete, f"{series}: its whole history was asked for although it was stored"
            continue
        twice = [ts for ts in before[series] if first <= ts <= last]
        assert not twice, f"{series}: {len(twice)} bars asked for although they were stored, from {min(twice)}"


def cut_is_said(home, series):
    """Fail unless notes and gap rows say that the plan's history begins later than was asked."""
    edge = STARTUP.earliest_ms(Timeframe.parse("1h"), parse_utc_ms(NOW))
    cause = "before the history of plan STARTUP (180 days at 1h)"
    note = f"asked from {FIRST}T00:00:00Z, served from {format_utc(edge)} on: {cause}"
    windowed = [name for name in series if CATALOGUE[name].native is None]
    with store(home).read() as con:
        gaps = con.execute("SELECT series, from_ts, to_ts, filled_at, cause FROM gaps ORDER BY series").fetchall()
        for name in windowed:
            notes = con.execute(
                "SELECT info FROM partitions WHERE asset = ? AND partition = 'BTC-1h|2024-09-01'", [name]
            ).fetchall()
            assert any(note in json.loads(row[0]).get("notes", ()) for row in notes), name
    begin, end = parse_utc_ms(FIRST), edge - Timeframe.parse("1h").ms
    assert gaps == [(name, begin, end, None, cause) for name in sorted(windowed)]


def kill_after(emulator, home, process, calls, seconds):
    """Kill the process group some time after it has made some calls for bars; return False if it was over before."""
    begun = len(emulator.for_bars())
    while process.poll() is None and len(emulator.for_bars()) < begun + calls:
        time.sleep(0.01)
    if process.poll() is None:
        time.sleep(seconds)
    if process.poll() is not None:
        return False
    home.kill(process)
    return True


def most_in_a_minute(requests):
    """Return the most calls in any 60 seconds by the server's own stopwatch."""
    times = [asked["elapsed_s"] for asked in requests]
    return max(sum(1 for t in times if begin <= t < begin + 60) for begin in times)


def prove(emulator, make_home, capsys, series):
    chosen = ",".join(series)
    clocked = {"MLBOT_CLOCK": f"fixed:{NOW}", "MLBOT_EMULATOR_URL": emulator.url}
    clean = make_home("clean", **clocked)
    began = time.monotonic()
    finish(clean, start(clean, chosen))
    seconds, wanted, needed = time.monotonic() - began, content(clean), emulator.for_bars()
    stored = {name: wanted[name].rows for name in series}
    assert stored == {name: expected_bars(name, "1h") for name in series}, "not every bar of the plan is there"
    assert all(passed for *_, passed in wanted["verdicts"])
    cut_is_said(clean, series)
    depth = 180 * DAY_MS // Timeframe.parse("1h").ms
    fewest = {name: 1 if CATALOGUE[name].native else -(-depth // 995) for name in series}
    assert {name: sum(1 for asked in needed if asked[0] == name) for name in series} == fewest

    seen = len(emulator.requests())
    finish(clean, start(clean, chosen))
    assert emulator.for_bars(seen) == [], "a finished backfill asked for bars once more"

    chance, kills, homes = random.Random(20260101), [], 0
    while len(kills) < KILLS:
        homes += 1
        home, over = make_home(f"killed-{homes}", **clocked), False
        while not over:
            before, seen = held(home), len(emulator.requests())
            process = start(home, chosen)
            if len(kills) < KILLS:
                # always after its first call: a kill while the process starts would try nothing
                planned = (chance.randrange(1, max(3, len(needed) // 8)), chance.uniform(0.0, 0.6))
                over = not kill_after(emulator, home, process, *planned)
            else:
                over = True
            if over:
                finish(home, process)
            asked = emulator.for_bars(seen)
            never_twice(asked, before)
            if not over:
                kills.append(len(asked))
        assert content(home) == wanted
    calls = emulator.get("calls")
    assert calls["refused_by_code"] == {}, "the limit of calls was provoked"
    allowed = emulator.get("state")["calls_per_minute"]
    assert most_in_a_minute(emulator.requests()) <= allowed
    most, rows = most_in_a_minute(emulator.requests()), sum(stored.values())
    with capsys.disabled():
        print(
            f"\nBTC-1h from {FIRST} at plan STARTUP ({allowed} calls a minute), {len(series)} series: {rows} rows in "
            f"{seconds:.0f} s with {len(needed)} calls for bars; killed {len(kills)} times after {kills} calls for "
            f"bars in {homes} homes, same content; {calls['total']} calls together, at most {most} in a minute, none "
            "refused"
        )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_ten_times_it_never_asks_twice(start_emulator, make_home, capsys):
    # slower than the plan, so that the pace bites on a few series too: some kills hit a process that waits its turn
    prove(start_emulator("--plan", "startup", "--calls-per-minute", "60"), make_home, capsys, FEW)


@pytest.mark.prove
@pytest.mark.timeout(5400)
def test_every_series_at_the_plans_rate_killed_ten_times(start_emulator, make_home, capsys):
    prove(start_emulator("--plan", "startup"), make_home, capsys, SERVED)


def together(emulator, make_home, capsys, series):
    """Two backfills at the same time, of two intervals, on one home: one bucket for the key they share."""
    home = make_home("together", MLBOT_CLOCK=f"fixed:{NOW}", MLBOT_EMULATOR_URL=emulator.url)
    intervals = ("1h", "30m")
    processes = {interval: start(home, ",".join(series), interval) for interval in intervals}
    for interval, process in processes.items():
        finish(home, process, interval)
    requests = emulator.requests()
    assert emulator.get("calls")["refused_by_code"] == {}
    assert most_in_a_minute(requests) <= STARTUP.per_minute
    by_interval = {i: [a for a in emulator.for_bars() if a[1] == i] for i in intervals}
    overlap = [[a["elapsed_s"] for a in requests if a["query"].get("interval") == i] for i in intervals]
    assert max(map(min, overlap)) < min(map(max, overlap)), "they were not at work at the same time"
    # one bucket: a burst, then the pace for all; with a bucket each they would be through in half of it
    seconds = requests[-1]["elapsed_s"] - requests[0]["elapsed_s"]
    burst, rate = STARTUP.per_minute * (1 - PACE), STARTUP.per_minute * PACE / 60
    assert seconds >= (len(requests) - 1 - burst) / rate - 1
    with store(home).read() as con:
        for name in series:
            counted = con.execute(f"SELECT timeframe, count(*) FROM {name} GROUP BY 1").fetchall()
            native = CATALOGUE[name].native
            wanted = (
                {str(native): expected_bars(name, "1h")} if native else {i: expected_bars(name, i) for i in intervals}
            )
            assert dict(counted) == wanted, name
    with capsys.disabled():
        print(
            f"\n2 processes, {len(series)} series of {' and '.join(intervals)} at {STARTUP.per_minute} calls a minute: "
            f"{len(requests)} calls ({', '.join(f'{len(a)} for {i} bars' for i, a in by_interval.items())}) in "
            f"{seconds:.0f} s, at most {most_in_a_minute(requests)} in a minute, none refused"
        )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_share_the_pace_of_a_key(start_emulator, make_home, capsys):
    together(start_emulator("--plan", "startup"), make_home, capsys, FEW)


@pytest.mark.prove
@pytest.mark.timeout(3000)
def test_processes_share_the_pace_for_every_series(start_emulator, make_home, capsys):
    together(start_emulator("--plan", "startup"), make_home, capsys, SERVED)
