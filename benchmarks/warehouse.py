"""Eight writers and eight readers on one store: nothing fails, nothing is lost, a small write stays quick.

Each writer is a process that, again and again, computes (a pause), appends a month of bars of its own symbol and
replaces a derived window, and between them makes a one-row write, which is what is timed. Readers copy a settled
month out in a closed loop. Afterwards every acknowledged row is counted.

    python benchmarks/bench_warehouse.py [--writers 8] [--readers 8] [--rounds 200] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import queue
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlbot_core.clock import SystemClock
from mlbot_core.market import SeriesBatch, make_table
from mlbot_core.timeframe import HOUR_MS, Timeframe
from mlbot_core.warehouse import Warehouse, append, replace_window, settled

T0 = 1_000_000_800_000  # long ago, so that every bar has closed
HOURLY = Timeframe(60)
COMPUTE_S = 0.06
BARS = 720


def _bars(symbol: str, start: int, bars: int, observed: int) -> SeriesBatch:
    ts = start + np.arange(bars, dtype=np.int64) * HOUR_MS
    price = 60_000 + np.sin(ts / 1e9) * 1000
    values = {name: price for name in ("open", "high", "low", "close")} | {"volume_usd": price * 10}
    return SeriesBatch("price", symbol, HOURLY, "bench", make_table("price", ts, observed, values))


def _writer(path: str, index: int, rounds: int, out: mp.Queue, begin: mp.Event) -> None:
    warehouse = Warehouse(Path(path), SystemClock())
    symbol = f"W{index}"
    rng = np.random.default_rng(index)
    small: list[float] = []
    window: list[float] = []
    begin.wait()
    for i in range(rounds):
        time.sleep(COMPUTE_S * rng.uniform(0.5, 1.5))
        started = time.perf_counter()
        with warehouse.write() as con:
            batch = _bars(symbol, T0 + i * BARS * HOUR_MS, BARS, SystemClock().now_ms())
            append(con, batch, now_ms=SystemClock().now_ms())
            derived = pa.table(
                {"ts": batch.table.column("ts"), **{f"f{k}": batch.table.column("open") for k in range(12)}}
            )
            first = T0 + i * BARS * HOUR_MS
            replace_window(con, "derived", {"symbol": symbol}, derived, start_ms=first, end_ms=first + BARS * HOUR_MS)
        window.append(time.perf_counter() - started)
        time.sleep(COMPUTE_S * rng.uniform(0.5, 1.5))
        started = time.perf_counter()
        with warehouse.write() as con:
            append(con, _bars(f"S{index}", T0 + i * HOUR_MS, 1, SystemClock().now_ms()), now_ms=SystemClock().now_ms())
        small.append(time.perf_counter() - started)
    out.put(("w", small, window))


def _reader(path: str, index: int, out: mp.Queue, begin: mp.Event, stop: mp.Event) -> None:
    warehouse = Warehouse(Path(path), SystemClock())
    took: list[float] = []
    held: list[float] = []
    begin.wait()
    while not stop.is_set():
        started = time.perf_counter()
        with warehouse.read() as con:
            opened = time.perf_counter()
            settled(con, "price", source="bench", symbol=f"W{index}", timeframe=HOURLY, start_ms=T0,
                    end_ms=T0 + BARS * HOUR_MS, settle_delay_ms=0, known_by_ms=2**61)  # fmt: skip
            held.append(time.perf_counter() - opened)
        took.append(time.perf_counter() - started)
        time.sleep(0.05)
    out.put(("r", took, held))


def _collect(out: mp.Queue, processes: list) -> list:
    """Take one answer from each process; give up as soon as one of them died without."""
    answers: list = []
    while len(answers) < len(processes):
        try:
            answers.append(out.get(timeout=5))
        except queue.Empty:
            dead = [p.exitcode for p in processes if p.exitcode not in (None, 0)]
            if dead:
                raise RuntimeError(f"{len(dead)} processes failed with {dead}") from None
    return answers


def run(folder: Path, writers: int, readers: int, rounds: int) -> dict[str, float]:
    path = folder / "bench.duckdb"
    warehouse = Warehouse(path, SystemClock())
    with warehouse.read():
        pass
    context = mp.get_context("spawn")
    out, begin, stop = context.Queue(), context.Event(), context.Event()
    ws = [context.Process(target=_writer, args=(str(path), i, rounds, out, begin), daemon=True) for i in range(writers)]
    rs = [
        context.Process(target=_reader, args=(str(path), i % writers, out, begin, stop), daemon=True)
        for i in range(readers)
    ]
    for process in (*ws, *rs):
        process.start()
    time.sleep(5.0)
    started = time.perf_counter()
    begin.set()
    answers = _collect(out, ws)
    wall = time.perf_counter() - started
    stop.set()
    reads = _collect(out, rs)
    for process in (*ws, *rs):
        process.join()
    failed = sum(p.exitcode != 0 for p in (*ws, *rs))
    small = np.array([x for kind, a, _ in answers if kind == "w" for x in a]) * 1000
    window = np.array([x for _, _, b in answers for x in b]) * 1000
    took = np.array([x for _, a, _ in reads for x in a]) * 1000
    held = np.array([x for _, _, b in reads for x in b]) * 1000
    with warehouse.read() as con:
        bars = con.execute("SELECT count(*), count(DISTINCT (symbol, ts)) FROM price").fetchone()
        derived = con.execute("SELECT count(*), count(DISTINCT (symbol, ts)) FROM derived").fetchone()
    expected_bars = writers * rounds * (BARS + 1)
    expected_derived = writers * rounds * BARS
    assert bars is not None
    assert derived is not None
    return {
        "writers": writers, "readers": readers, "writes": len(small) + len(window), "reads": len(took),
        "failed_processes": failed, "wall_seconds": wall,
        "rows_expected": expected_bars + expected_derived, "rows_found": bars[0] + derived[0],
        "rows_lost": expected_bars + expected_derived - bars[0] - derived[0],
        "rows_duplicated": bars[0] - bars[1] + derived[0] - derived[1],
        "one_row_ms_p50": float(np.percentile(small, 50)), "one_row_ms_p99": float(np.percentile(small, 99)),
        "one_row_ms_max": float(small.max()),
        "window_ms_p50": float(np.percentile(window, 50)), "window_ms_p99": float(np.percentile(window, 99)),
        "read_ms_p50": float(np.percentile(took, 50)), "read_ms_p99": float(np.percentile(took, 99)),
        "read_held_ms_p99": float(np.percentile(held, 99)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=200, help="materializations per writer")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), args.writers, args.readers, args.rounds)
    for key, value in result.items():
        print(f"{key:20} {value:,.1f}" if isinstance(value, float) else f"{key:20} {value:,}")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
