"""Eight processes materialize into one store at once, with readers going on meanwhile; afterwards every row is counted.

The clock is the real one: overlapping runs see the same bars at different times, as they do in life.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mlbot_core.clock import SystemClock
from mlbot_core.emulator.server import EmulatorServer
from mlbot_core.market import CATALOGUE, CORE_SERIES
from mlbot_core.market.quality import ADVISORY_CHECKS, QUALITY_CHECKS, REQUIRED_CHECKS
from mlbot_core.timeframe import Market, Month
from mlbot_core.warehouse import Warehouse, latest, replace_window

SERVED = [name for name in CORE_SERIES if CATALOGUE[name].endpoint]
TABLES = {**{name: name for name in SERVED}, "features": "features_core", "targets": "targets"}
# the spacing of settlements is judged of settled funding only, and what is not served has the required verdicts
CHECKS = {name: len(QUALITY_CHECKS) - 1 if name in SERVED else len(REQUIRED_CHECKS) for name in CORE_SERIES}
CHECKS |= {"features": 3, "targets": 3}
PROBE_EVERY_S = 0.25


@dataclass(frozen=True)
class Load:
    """How much is done at once: writing processes, runs of each, reading processes, and over how many months."""

    writers: int
    runs: int
    readers: int
    months: tuple[Month, ...]
    markets: tuple[str, ...]


def plans(load: Load, tools) -> list[list[dict]]:
    """Return a plan a process; one in four partitions is also in the plan of the neighbour, at the same place."""
    rng = np.random.default_rng(7)
    partitions = [(market, month) for month in load.months for market in load.markets]
    order = [partitions[i] for i in rng.permutation(len(partitions))]
    out: list[list[dict]] = [[] for _ in range(load.writers)]
    taken = 0
    for at in range(load.runs):
        for writer in range(load.writers):
            if writer % 4 == 3:
                out[writer].append(dict(out[writer - 1][at]))
                continue
            market, month = order[taken % len(order)]
            taken += 1
            out[writer].append(tools.data_run(market, str(month)))
    return out


def bars(partition: str) -> int:
    market, _, month = partition.partition("|")
    chosen = Month.parse(month)
    return (chosen.end_ms - chosen.start_ms) // Market.parse(market).timeframe.ms


def _reader(path: str, partitions: list[str], index: int, out: mp.Queue, stop: mp.Event) -> None:
    """Look at partitions in turn: each is wholly there, written down and judged, or not at all."""
    store, rng = Warehouse(Path(path), SystemClock()), np.random.default_rng(index)
    took, faults = [], []
    while not stop.is_set():
        partition = partitions[rng.integers(len(partitions))]
        asset = list(TABLES)[rng.integers(len(TABLES))]
        market, month = Market.parse(partition.split("|")[0]), Month.parse(partition.split("|")[1])
        started = time.perf_counter()
        try:
            with store.read() as con:
                made = con.execute(
                    "SELECT rows, (SELECT count(*) FROM quality q WHERE q.run_id = p.run_id AND q.asset = p.asset "
                    "AND q.partition = p.partition) FROM partitions p WHERE asset = ? AND partition = ?",
                    [asset, partition],
                ).fetchall()
                rows = unique = 0
                if con.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [TABLES[asset]]).fetchone():
                    rows, unique = con.execute(
                        f"SELECT count(*), count(DISTINCT ts) FROM {TABLES[asset]} WHERE symbol = ? AND timeframe = ? "
                        "AND ts >= ? AND ts < ?",
                        [market.symbol, str(market.timeframe), month.start_ms, month.end_ms],
                    ).fetchone()
                if asset in CATALOGUE:
                    latest(con, asset, source="emulator", symbol=market.symbol, timeframe=market.timeframe,
                           start_ms=month.start_ms, end_ms=month.end_ms)  # fmt: skip
        except Exception as error:  # noqa: BLE001 - whatever a reader meets is a finding
            faults.append(f"{asset} {partition}: {type(error).__name__}: {error}")
            continue
        took.append(time.perf_counter() - started)
        wanted = bars(partition) if made else 0
        if rows != wanted or unique != wanted or any(m != (wanted, CHECKS[asset]) for m in made):
            faults.append(f"{asset} {partition}: {rows} rows ({unique} unique), written down as {made}")
        time.sleep(0.05)
    out.put(("reader", took, faults))


def _probe(path: str, out: mp.Queue, stop: mp.Event) -> None:
    """Write one row again and again, as a live run does; measure how long each takes, and how much of it is its own."""
    store = Warehouse(Path(path), SystemClock())
    took: list[float] = []
    own: list[float] = []
    while not stop.is_set():
        started = time.perf_counter()
        with store.write() as con:
            entered = time.perf_counter()
            row = pa.table({"ts": np.array([len(took)])})
            replace_window(con, "probe", {"source": "p"}, row, start_ms=len(took), end_ms=len(took) + 1)
        took.append(time.perf_counter() - started)
        own.append(time.perf_counter() - entered)
        time.sleep(PROBE_EVERY_S)
    out.put(("probe", took, []))
    out.put(("own", own, []))


def run_load(load: Load, home, tools, timeout_s: float) -> dict:
    """Run everything at once and count."""
    planned = plans(load, tools)
    partitions = sorted({run["first"] for plan in planned for run in plan})
    with home.store().read():
        pass
    context = mp.get_context("spawn")
    out, stop = context.Queue(), context.Event()
    watching = [
        context.Process(target=_reader, args=(str(home.store_path), partitions, i, out, stop), daemon=True)
        for i in range(load.readers)
    ]
    watching.append(context.Process(target=_probe, args=(str(home.store_path), out, stop), daemon=True))
    for process in watching:
        process.start()
    started = time.monotonic()
    processes = [home.start(plan, f"writer-{i}") for i, plan in enumerate(planned)]
    try:
        for process in processes:
            process.wait(max(1.0, timeout_s - (time.monotonic() - started)))
    finally:
        stop.set()
    wall = time.monotonic() - started
    answers = [out.get(timeout=60) for _ in range(len(watching) + 1)]
    for process in watching:
        process.join(30)
    ends = [event for i in range(load.writers) for event in home.events(f"writer-{i}") if event["event"] == "end"]
    return {
        "planned": sum(map(len, planned)),
        "partitions": partitions,
        "ends": ends,
        "wall": wall,
        "reads": np.array([t for kind, took, _ in answers if kind == "reader" for t in took]) * 1000,
        "writes": np.array([t for kind, took, _ in answers if kind == "probe" for t in took]) * 1000,
        "own": np.array([t for kind, took, _ in answers if kind == "own" for t in took]) * 1000,
        "load": os.getloadavg()[1],
        "faults": [fault for _, _, faults in answers for fault in faults],
        "exits": [process.returncode for process in processes] + [process.exitcode for process in watching],
        "logs": "\n".join(home.log(f"writer-{i}").read_text() for i in range(load.writers)),
    }


def count(home, partitions: list[str]) -> dict[str, tuple[int, int, int]]:
    """Return for each table the rows expected, found, and found more than once."""
    expected = sum(bars(partition) for partition in partitions)
    counted = {}
    with home.store().read() as con:
        for asset, table in TABLES.items():
            found, unique = con.execute(
                f"SELECT count(*), count(DISTINCT (source, symbol, timeframe, ts)) FROM {table}"
            ).fetchone()
            counted[asset] = (expected, found, found - unique)
        (probes,) = con.execute("SELECT count(*) FROM probe").fetchone()
    return counted | {"probe": (probes, probes, 0)}


def judge(load: Load, home, tools, capsys, timeout_s: float) -> dict:
    """Run the load and assert what must hold of any load."""
    done = run_load(load, home, tools, timeout_s)
    failed = [end for end in done["ends"] if not end["success"]]
    counted = count(home, done["partitions"])
    writes, reads = done["writes"], done["reads"]
    expected = sum(c[0] for c in counted.values())
    found = sum(c[1] for c in counted.values())
    with capsys.disabled():
        print(
            f"\n{load.writers} processes x {load.runs} runs of job data over {len(done['partitions'])} partitions, "
            f"{load.readers} readers: {done['wall']:.0f} s\n"
            f"runs failed            {len(failed)} of {done['planned']}\n"
            f"reads with a finding   {len(done['faults'])} of {len(reads)}\n"
            f"rows expected, found   {expected:,}, {found:,}; repeated {sum(c[2] for c in counted.values())}\n"
            f"one-row write, ms      p50 {np.percentile(writes, 50):.0f}, p99 {np.percentile(writes, 99):.0f}, "
            f"max {writes.max():.0f} ({len(writes)} writes); after its turn came "
            f"p50 {np.percentile(done['own'], 50):.0f}, p99 {np.percentile(done['own'], 99):.0f}\n"
            f"read of a month, ms    p50 {np.percentile(reads, 50):.0f}, p99 {np.percentile(reads, 99):.0f}\n"
            f"load of {os.cpu_count()} cores        {done['load']:.1f} in the last 5 minutes\n"
            f"a run, s               p50 {np.median([end['seconds'] for end in done['ends']]):.1f}, "
            f"of which Dagster's {np.median([end['seconds'] - end['step_seconds'] for end in done['ends']]):.1f}"
        )
    assert not failed, failed[0]
    assert len(done["ends"]) == done["planned"]
    assert done["exits"] == [0] * len(done["exits"])
    assert done["faults"] == []
    assert "database is locked" not in done["logs"]
    for asset, (wanted, rows, repeated) in counted.items():
        assert (rows, repeated) == (wanted, 0), asset
    return done


def assert_written_down(home, tools, done) -> None:
    """Every run of every partition left its row and its verdicts; Dagster knows of every run and materialization."""
    made = tools.recorded(home)
    per_asset: dict[str, int] = {}
    for (asset, partition), rows in made.items():
        per_asset[asset] = per_asset.get(asset, 0) + len(rows)
        assert len({run for run, *_ in rows}) == len(rows), (asset, partition)
        for _, _, count_, verdicts in rows:
            assert count_ == (bars(partition) if asset in TABLES else 0)
            assert len(verdicts) == CHECKS[asset], (asset, partition)
            judged = [passed for check, passed in verdicts if check not in ADVISORY_CHECKS]
            assert all(judged), (asset, partition, verdicts)
    assert per_asset == {asset: done["planned"] for asset in CHECKS}
    statuses = home.dagster_runs()
    assert {statuses[end["run_id"]] for end in done["ends"]} == {"SUCCESS"}
    assert len(statuses) == done["planned"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_eight_processes_and_four_readers(make_home, tools, capsys):
    with EmulatorServer(clock=SystemClock()) as server:
        home = make_home("shared", MLBOT_EMULATOR_URL=server.url)
        load = Load(8, 2, 4, tuple(Month.span(Month(2024, 2).start_ms, Month(2024, 5).end_ms)), ("BTC-2h", "BTC-4h"))
        done = judge(load, home, tools, capsys, timeout_s=350)
    assert_written_down(home, tools, done)


@pytest.mark.prove
def test_two_hundred_materializations(make_home, tools, capsys):
    with EmulatorServer(clock=SystemClock()) as server:
        home = make_home("shared", MLBOT_EMULATOR_URL=server.url)
        months = tuple(Month.span(Month(2024, 1).start_ms, Month(2025, 12).end_ms))
        load = Load(8, 25, 8, months, ("BTC-30m", "BTC-1h", "BTC-2h", "BTC-4h"))
        done = judge(load, home, tools, capsys, timeout_s=3000)
    assert_written_down(home, tools, done)
