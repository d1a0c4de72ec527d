"""A backfill from Bybit's history, killed ten times at random: it never asks twice for what it has, same bytes after.

The emulator is a process of its own and remembers every call; the backfill is another one and is killed with SIGKILL.
"""

import hashlib
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from mlbot_core.clock import SystemClock, parse_utc_ms
from mlbot_core.sources.bybit_pace import CALLS_PER_WINDOW, WINDOW_S
from mlbot_core.timeframe import HOUR_MS, Month
from mlbot_core.warehouse import Warehouse

ROOT = Path(__file__).resolve().parents[2]
NOW = "2025-03-02T10:37:21Z"
KILLS = 10
# how each path's bounds are named, and by how much its stamps lie after the open of their bar
BOUNDS = {
    "/v5/market/kline": ("price", "start", "end", 0),
    "/v5/market/mark-price-kline": ("open_interest_pair", "start", "end", 0),
    "/v5/market/index-price-kline": ("index_price", "start", "end", 0),
    "/v5/market/premium-index-price-kline": ("premium_index", "start", "end", 0),
    "/v5/market/funding/history": ("funding_settled", "startTime", "endTime", 0),
    "/v5/market/account-ratio": ("long_short_ratio", "startTime", "endTime", HOUR_MS),
    "/v5/market/open-interest": ("open_interest_pair", "startTime", "endTime", HOUR_MS),
}
# What `mlbot backfill` does for one market, without the job around it.
BACKFILL = """
import sys
from mlbot_core.clock import clock_from_env
from mlbot_core.config import load_settings
from mlbot_core.sources import open_source
from mlbot_core.timeframe import Market, Month
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.ingest import IngestRequest, ingest

series, market, first, last = sys.argv[1].split(","), Market.parse(sys.argv[2]), sys.argv[3], sys.argv[4]
settings, clock = load_settings(), clock_from_env()
months = tuple(Month.span(Month.parse(first).start_ms, Month.parse(last).end_ms))
delay = settings.intervals.settle_delay_ms("bybit")
store = Warehouse(settings.warehouse_path, clock)
with open_source("bybit", settings, clock) as source:
    for name in series:
        request = IngestRequest(
            name, market, months, settings.intervals.quality, delay, "backfill", settings.bybit_url, skip_complete=True
        )
        for outcome in ingest(store, source, clock, request):
            failed = [check.check for check in outcome.checks if not check.passed]
            if failed:
                sys.exit(f"{outcome.key}: {failed}")
"""


# Calls as fast as the pace lets it, in several threads.
HAMMER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from mlbot_core.clock import clock_from_env
from mlbot_core.config import load_settings
from mlbot_core.sources.bybit_http import BybitClient
from mlbot_core.sources.bybit_pace import Pace

settings = load_settings()
pace = Pace(settings.bybit_url, clock_from_env(), folder=settings.home / "ratelimit")
client = BybitClient(settings.bybit_url, pace, retries=0)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda _: client.get("get_instruments_info", symbol="BTCUSDT"), range(int(sys.argv[1]))))
"""


@dataclass
class Emulator:
    """The emulator's process and what it tells of itself."""

    url: str
    process: subprocess.Popen

    def get(self, path):
        return httpx.get(f"{self.url}/_emulator/{path}", trust_env=False, timeout=30).json()

    def calls(self):
        return self.get("calls")["total"]

    def asked(self, since=0):
        """Return (series, first bar, last bar) of every call for bars, from the ``since``-th call on."""
        found = []
        for path, query in self.get("bybit/requests")[since:]:
            if path in BOUNDS:
                series, start, end, shift = BOUNDS[path]
                found.append((series, int(query[start]) - shift, int(query[end]) - shift))
        return found


@pytest.fixture
def emulator(make_home):
    home = make_home("emulator", MLBOT_CLOCK=f"fixed:{NOW}")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlbot_core.emulator", "--start", "2020-03-01"],
        stdout=subprocess.PIPE,
        env=home.environment,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        yield Emulator(json.loads(process.stdout.readline())["url"], process)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def start(home, series, market, first, last):
    home.path.mkdir(parents=True, exist_ok=True)
    with (home.path / "backfill.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", BACKFILL, ",".join(series), market, first, last],
            stdout=log,
            stderr=log,
            env=home.environment,
            cwd=ROOT,
            start_new_session=True,
        )
    home.started.append(process)
    return process


def finish(home, process, timeout_s=900):
    process.wait(timeout_s)
    assert process.returncode == 0, (home.path / "backfill.log").read_text()[-3000:]


def held(home, series):
    """Return the open times that the store has of each series."""
    if not home.store_path.exists():
        return {name: set() for name in series}
    with Warehouse(home.store_path, SystemClock(), timeout_s=30).read() as con:
        present = {row[0] for row in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        return {
            name: {row[0] for row in con.execute(f"SELECT ts FROM {name} WHERE source = 'bybit'").fetchall()}
            if name in present
            else set()
            for name in series
        }


def content(home, series):
    """Return per series the number of rows and a hash of every value of every row."""
    found = {}
    with Warehouse(home.store_path, SystemClock(), timeout_s=30).read() as con:
        for name in series:
            rows = con.execute(f"SELECT * FROM {name} ORDER BY ALL").fetchall()
            # repr keeps every bit of a float, and tells a missing value from one that is no number
            found[name] = (len(rows), hashlib.sha256(repr(rows).encode()).hexdigest())
        gaps = con.execute("SELECT * EXCLUDE (found_at, filled_at) FROM gaps ORDER BY ALL").fetchall()
    return {**found, "gaps": gaps}


def kill_after(emulator, home, process, calls, seconds):
    """Kill the process some time after it has made some calls; return False if it was over before."""
    begun = emulator.calls()
    while process.poll() is None and emulator.calls() < begun + calls:
        time.sleep(0.002)
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    if process.poll() is not None:
        return False
    home.kill(process)
    return True


def prove(emulator, make_home, capsys, series, first, last, market="BTC-1h"):
    clocked = {"MLBOT_CLOCK": f"fixed:{NOW}", "MLBOT_BYBIT_URL": emulator.url, "MLBOT_SOURCE": "bybit"}
    clean = make_home("clean", **clocked)
    began = time.monotonic()
    finish(clean, start(clean, series, market, first, last))
    seconds, wanted = time.monotonic() - began, content(clean, series)
    needed = emulator.calls()
    again = emulator.calls()
    finish(clean, start(clean, series, market, first, last))
    assert emulator.asked(again) == [], "a finished backfill asked for bars once more"

    chance = random.Random(20260101)
    kills, repeated, homes = [], 0, 0
    while len(kills) < KILLS:
        homes += 1
        home = make_home(f"killed-{homes}", **clocked)
        over = False
        while not over:
            before, since = held(home, series), len(emulator.get("bybit/requests"))
            process = start(home, series, market, first, last)
            if len(kills) < KILLS:
                planned = (chance.randrange(1, max(2, needed // 6)), chance.uniform(0.0, 0.15))
                over = not kill_after(emulator, home, process, *planned)
            else:
                over = True
            if over:
                finish(home, process)
            asked = emulator.asked(since)
            for name, begin, end in asked:
                twice = [ts for ts in before[name] if begin <= ts <= end]
                assert not twice, f"{name}: {len(twice)} bars asked for although they were stored, from {min(twice)}"
            if not over:
                kills.append(len(asked))
        repeated += emulator.calls()
        assert content(home, series) == wanted
    assert emulator.get("calls")["refused_by_code"] == {}, "the limit of calls was provoked"
    rows = sum(count for count, _ in (wanted[name] for name in series))
    with capsys.disabled():
        print(
            f"\n{market} {first} to {last}, {len(series)} series: {rows} rows in {seconds:.1f} s and {needed} calls; "
            f"killed {len(kills)} times after {kills} calls for bars in {homes} homes: same bytes"
        )
    expected = (min(Month.parse(last).end_ms, parse_utc_ms(NOW)) - Month.parse(first).start_ms) // HOUR_MS
    assert wanted[series[0]][0] == expected, "not every bar is there"


@pytest.mark.slow
def test_killed_ten_times_it_never_asks_twice(emulator, make_home, capsys):
    series = ("price", "funding_settled", "long_short_ratio", "open_interest_pair")
    prove(emulator, make_home, capsys, series, "2022-01", "2023-09")


@pytest.mark.prove
@pytest.mark.timeout(3000)
def test_five_years_killed_ten_times(emulator, make_home, capsys):
    series = ("price", "index_price", "premium_index", "funding_settled", "long_short_ratio", "open_interest_pair")
    prove(emulator, make_home, capsys, series, "2020-03", "2025-03")


@pytest.mark.slow
def test_processes_share_the_pace(emulator, make_home, capsys):
    """Several processes that call as fast as they may, one address: the limit of Bybit is never provoked."""
    home = make_home("together", MLBOT_CLOCK=f"fixed:{NOW}", MLBOT_BYBIT_URL=emulator.url)
    home.path.mkdir(parents=True)
    each, began = 400, time.monotonic()
    processes = [
        subprocess.Popen([sys.executable, "-c", HAMMER, str(each)], env=home.environment, cwd=ROOT) for _ in range(3)
    ]
    home.started.extend(processes)
    for process in processes:
        assert process.wait(200) == 0
    seconds, counted = time.monotonic() - began, emulator.get("calls")
    assert counted["refused_by_code"] == {}
    assert counted["total"] == 3 * each
    # one bucket for all: a burst, then the pace; with a bucket each they would be through in a third of it
    assert seconds > (3 * each - CALLS_PER_WINDOW) / (CALLS_PER_WINDOW / WINDOW_S)
    with capsys.disabled():
        print(f"\n3 processes at full speed: {counted['total']} calls in {seconds:.1f} s, none refused")
