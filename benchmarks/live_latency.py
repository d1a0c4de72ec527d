"""Latency of a live bar through sensor, run and broker, from what a live home stores, and memory of its servers.

The whole topology trades at the emulator on a shared clock that runs as fast as the wall and is moved to 15 s before
each close. Of every bar of the decision clock three parts are read from the warehouse and the book:

* close -> data complete: the last of the bar's series was stored (nothing is decided before the settle delay is over);
* data -> decision: from there, or from the end of the settle delay where that is later, to the decision;
* decision -> acknowledged: from there to the exchange's answer to the decision's first order. Bars without an order
  have none; how many had one is said.

Beside it the resident memory of the servers is sampled once a bar, and its slope over the bars is fitted.

Each arrangement (cold or warm starts; idle or during a backfill of all four timeframes) lives in a home of its own:

    python benchmarks/live_latency.py [--bars 100] [--warm] [--during-backfill] [--quick] [--out memory.png] [--json]

``--quick`` is four bars. ``--matrix`` runs all four arrangements one after the other.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlbot_core.clock import SharedClock
from mlbot_core.market import CATALOGUE
from mlbot_core.timeframe import HOUR_MS, Timeframe
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.windows import exists

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "live"))

from rehearsal import BEGIN, CONTRACT, Rehearsal  # noqa: E402

SPEED = 1.0
AHEAD_MS = 15_000
FOUR = ("30m", "1h", "2h", "4h")
DECISION = Timeframe(120)
PARTS = ("close_to_data_s", "data_to_decision_s", "decision_to_acknowledged_s", "close_to_decision_s")
SERVERS = ("code-server", "daemon", "webserver")
QUICK_BARS = 4
SUMMARY = ("bars", "with_orders", "late_series", "backfill_rounds", "backfill_rounds_failed", *PARTS, "memory")


@dataclass(frozen=True)
class Arrangement:
    """How the bars are lived through."""

    warm: bool
    backfill: bool

    def __str__(self) -> str:
        return f"{'warm' if self.warm else 'cold'}, {'during a backfill' if self.backfill else 'idle'}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_BARS} bars")
    parser.add_argument("--warm", action="store_true", help="runs are forked from a process that imported everything")
    parser.add_argument("--during-backfill", action="store_true", help="while all four timeframes are backfilled")
    parser.add_argument("--matrix", action="store_true", help="all four arrangements")
    parser.add_argument("--settle", type=int, default=5, help="settle delay, seconds; as configured by default")
    parser.add_argument("--interval", "-i", action="append", help="timeframes that forecast; default 2h and 4h")
    parser.add_argument("--prepared", type=Path, help="keep the trained home there, and use it if it is there")
    parser.add_argument("--out", type=Path, help="plot of the memory, a PNG")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    bars = QUICK_BARS if chosen.quick else chosen.bars
    timeframes = tuple(chosen.interval or ("2h", "4h"))
    if chosen.matrix:
        wanted = [Arrangement(warm, backfill) for backfill in (False, True) for warm in (False, True)]
    else:
        wanted = [Arrangement(chosen.warm, chosen.during_backfill)]
    with tempfile.TemporaryDirectory(prefix="mlbot-latency-") as folder:
        trained = prepared(chosen.prepared or Path(folder) / "trained", timeframes, chosen.settle)
        found = [measure(trained, Path(folder) / f"home{n}", one, bars) for n, one in enumerate(wanted)]
    for one in found:
        show(one)
    if chosen.out is not None:
        plot(found, chosen.out)
        print(f"memory plotted to {chosen.out}")
    if chosen.json:
        told = {one["arrangement"]: {name: one[name] for name in SUMMARY} for one in found}
        print(json.dumps({"timeframes": timeframes, "settle_s": chosen.settle, "arrangements": told}))


def prepared(folder: Path, timeframes: Sequence[str], settle_s: int) -> Rehearsal:
    """Return a trained home; made where it is not there whole.

    Raises
    ------
    SystemExit
        If the one that is there was made for something else.
    """
    one = Rehearsal(folder, timeframes, SPEED, settle_s, AHEAD_MS)
    asked = {"timeframes": list(timeframes), "settle_s": settle_s}
    note = folder / "prepared.json"
    if note.exists():
        found = json.loads(note.read_text(encoding="utf-8"))
        if {name: found[name] for name in asked} != asked:
            raise SystemExit(f"{folder} was prepared with {found}, not with {asked}; name another folder")
        # its clock went on since then, and its history did not
        SharedClock.begin(folder / "clock", int(found["now_ms"]), SPEED)
        one.surround()
        return one
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} holds something else than a prepared home; name an empty folder, or a new one")
    folder.mkdir(parents=True, exist_ok=True)
    one.prepare()
    note.write_text(json.dumps(asked | {"now_ms": one.clock.now_ms()}), encoding="utf-8")
    return one


def measure(trained: Rehearsal, folder: Path, how: Arrangement, bars: int) -> dict[str, Any]:
    """Live through bars on a copy of a trained home; return what was stored of them."""
    one = copy(trained, folder, how)
    memory: list[dict[str, float]] = []
    seen: list[int] = []
    try:
        one.start()
        with backfilling(one, on=how.backfill) as rounds:
            # the first bar wakes everything up; it is not measured
            one.to_next_bar()
            for _ in range(bars):
                seen.append(one.to_next_bar())
                memory.append({name: mib for name, mib in one.resident().items() if name in SERVERS})
            filled, failed = len(rounds), sum(status != 0 for status in rounds)
    finally:
        one.stop()
    rows = [row for row in timings(one) if row["ts"] in set(seen)]
    return {
        "arrangement": str(how),
        "bars": len(rows),
        "with_orders": sum(row["decision_to_acknowledged_s"] is not None for row in rows),
        "late_series": sum(row["late"] for row in rows),
        "backfill_rounds": filled,
        "backfill_rounds_failed": failed,
        **{name: spread([row[name] for row in rows if row[name] is not None]) for name in PARTS},
        "memory": growth(memory),
        "rss_mib": {name: [sample[name] for sample in memory if name in sample] for name in SERVERS},
        "rows": rows,
    }


def copy(trained: Rehearsal, folder: Path, how: Arrangement) -> Rehearsal:
    """Return a copy of a trained home, with the clock where training left it."""
    shutil.copytree(trained.folder, folder)
    one = Rehearsal(folder, trained.timeframes, SPEED, trained.settle_s, AHEAD_MS, how.warm)
    one.surround()
    # what was stored must not lie in the future of the copy
    SharedClock.begin(folder / "clock", trained.clock.now_ms(), SPEED)
    return one


@contextmanager
def backfilling(one: Rehearsal, *, on: bool) -> Iterator[list[int]]:
    """Pull, and derive from, all four timeframes again and again; yields the exit statuses of the rounds.

    One that fails is told and counted: the clock is moved by hours under it, and what it asked for may be late by then.
    """
    rounds: list[int] = []
    if not on:
        yield rounds
        return
    config = one.folder / "config-four"
    shutil.copytree(one.folder / "config", config)
    again = Rehearsal(one.folder, FOUR)
    again._edit(config / "intervals.yaml", timeframes=list(FOUR))
    environment = one.environment | {"MLBOT_CONFIG_DIR": str(config)}
    environment["MLBOT_EMULATOR_URL"] = emulator_of(one)
    command = [sys.executable, "-m", "mlbot_core.cli.main", "backfill", "--again", "--from", BEGIN]
    command += [part for timeframe in FOUR for part in ("-i", timeframe)]
    ended = threading.Event()
    running: list[subprocess.Popen[bytes]] = []
    words = one.folder / "backfill.log"

    def work() -> None:
        while not ended.is_set():
            with words.open("wb") as log:
                process = subprocess.Popen(command, env=environment, cwd=one.folder, stdout=log, stderr=log)
            running[:] = [process]
            status = process.wait()
            # one that was ended here is no failure
            if status and not ended.is_set():
                print(f"a round of the backfill ended with {status}:\n{words.read_text(errors='replace')[-2000:]}")
            rounds.append(0 if ended.is_set() else status)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield rounds
    finally:
        ended.set()
        for process in running:
            process.terminate()
        worker.join(120)
        # rounds that end at once are no load
        assert rounds.count(0) > len(rounds) / 2, f"{len(rounds)} rounds of the backfill ended with {rounds}"


def emulator_of(one: Rehearsal) -> str:
    """Return where the emulator of the topology answers."""
    with (one.home / "live" / "logs" / "emulator.log").open(encoding="utf-8") as log:
        return str(json.loads(log.readline())["url"])


def timings(one: Rehearsal) -> list[dict[str, Any]]:
    """Return the parts of each decided bar, seconds; None where nothing was sent."""
    with one.book() as book:
        decided = [row for row in book.rows("decisions", limit=1_000_000) if row["trigger"] == "bar"]
        intents = {row["intent_id"]: row["decision_id"] for row in book.rows("intents", limit=1_000_000)}
        attempts = {row["order_link_id"]: intents[row["intent_id"]] for row in book.rows("attempts", limit=1_000_000)}
        answered: dict[str, int] = {}
        for row in book.rows("attempt_events", limit=1_000_000):
            if row["kind"] == "acknowledged":
                decision = attempts[row["order_link_id"]]
                answered[decision] = min(int(row["recorded_ms"]), answered.get(decision, 2**62))
    rows = []
    for row in decided:
        if row["symbol"] != CONTRACT:
            continue
        ts, at = int(row["ts"]), int(row["decided_ms"])
        close = ts + DECISION.ms
        complete, late = data_complete(one, ts, close + one.settle_s * 1000)
        begun = max(complete, close + one.settle_s * 1000)
        told = answered.get(str(row["decision_id"]))
        rows.append(
            {
                "ts": ts,
                "close_to_data_s": (complete - close) / 1000,
                "data_to_decision_s": (at - begun) / 1000,
                "decision_to_acknowledged_s": None if told is None else (told - at) / 1000,
                "close_to_decision_s": (at - close) / 1000,
                "late": late,
            }
        )
    return rows


def data_complete(one: Rehearsal, ts: int, decision_ms: int) -> tuple[int, int]:
    """Return when the last series of a bar was first stored, UTC ms, and how many came after the decision time.

    A series that had not come by the next bar's close was caught up with later; it belongs to the late ones only.
    """
    store = Warehouse(one.home / "warehouse.duckdb", one.clock)
    found = []
    with store.read() as con:
        for series in CATALOGUE:
            if not exists(con, series):
                continue
            query = f"SELECT min(observed_at) FROM {series} WHERE symbol = 'BTC' AND timeframe = ? AND ts = ?"
            row = con.execute(query, [str(DECISION), ts]).fetchone()
            if row is not None and row[0] is not None:
                found.append(int(row[0]))
    assert found, f"no series of the bar {ts} is stored"
    in_time = [at for at in found if at <= decision_ms]
    return max(in_time or found), len(found) - len(in_time)


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return median and 99th percentile; None where there is no value."""
    if not values:
        return {"n": 0, "median": None, "p99": None, "max": None}
    data = np.array(values, dtype=float)
    return {
        "n": len(data),
        "median": float(np.median(data)),
        "p99": float(np.percentile(data, 99)),
        "max": float(data.max()),
    }


def growth(samples: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return first, last and highest memory of each server, MiB, and its slope by least squares, MiB per day of bars.

    The first tenth of the bars is left out of the slope: pools and caches fill then.
    """
    a_day = 24 * HOUR_MS / DECISION.ms
    found = {}
    for name in SERVERS:
        values = np.array([sample[name] for sample in samples if name in sample])
        if not len(values):
            continue
        warm = values[len(values) // 10 :]
        slope = float(np.polyfit(np.arange(len(warm)), warm, 1)[0]) if len(warm) > 1 else 0.0
        found[name] = {
            "first": float(values[0]),
            "last": float(values[-1]),
            "highest": float(values.max()),
            "slope_mib_per_day": slope * a_day,
        }
    return found


def show(found: dict[str, Any]) -> None:
    """Print one arrangement."""
    print(
        f"\n{found['arrangement']}: {found['bars']} bars, {found['with_orders']} of them with orders, "
        f"{found['late_series']} series late"
    )
    print(f"  {'seconds':<28}{'n':>5}{'median':>9}{'p99':>9}{'max':>9}")
    for name in PARTS:
        part = found[name]
        cells = "".join("      n/a" if part[key] is None else f"{part[key]:9.2f}" for key in ("median", "p99", "max"))
        print(f"  {name.removesuffix('_s').replace('_', ' '):<28}{part['n']:>5}{cells}")
    print(f"  {'resident MiB':<28}{'first':>9}{'last':>9}{'highest':>9}{'per day':>9}")
    for name, row in found["memory"].items():
        cells = "".join(f"{row[key]:9.1f}" for key in ("first", "last", "highest"))
        print(f"  {name:<28}{cells}{row['slope_mib_per_day']:9.2f}")


def plot(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the memory of the servers over the bars, one panel an arrangement."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 2.4 * len(found)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, one in zip(np.atleast_1d(figure.subplots(len(found), 1)), found, strict=True):
        for name, values in one["rss_mib"].items():
            slope = one["memory"].get(name, {}).get("slope_mib_per_day", 0.0)
            axis.plot(values, linewidth=1.0, label=f"{name} ({slope:+.2f} MiB a day)")
        axis.set_title(f"{one['arrangement']}: resident memory, MiB, by bar of {DECISION}", fontsize=8, loc="left")
        axis.legend(fontsize=6, frameon=False)
        axis.tick_params(labelsize=6)
        axis.set_ylim(bottom=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"took {time.monotonic() - began:.0f} s", file=sys.stderr)
