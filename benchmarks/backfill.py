"""A backfill of four timeframes over 24 months, raw to features and targets: total time, and what Dagster adds.

The same months are made twice from the same emulator: by ``mlbot backfill`` (one in-process Dagster run a market) and
by calling the core's functions directly. The difference a run is Dagster's overhead.

    python benchmarks/bench_backfill.py [--months 24] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NOW = "2026-01-01T00:10:00Z"


def _environment(home: Path, threads: int, url: str | None = None) -> dict[str, str]:
    environment = dict(os.environ) | {
        "MLBOT_HOME": str(home),
        "MLBOT_CLOCK": f"fixed:{NOW}",
        "MLBOT_SOURCE": "emulator",
        "MLBOT_THREADS": str(threads),
    }
    return environment | ({"MLBOT_EMULATOR_URL": url} if url else {})


def by_command(home: Path, start: str, threads: int) -> dict[str, Any]:
    """Run ``mlbot backfill`` and return its own account of the runs, with the wall time."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "mlbot_core.cli.main", "backfill", "--from", start, "--to", NOW[:10], "--json"],
        env=_environment(home, threads),
        capture_output=True,
        text=True,
        check=True,
    )
    return {"wall": time.perf_counter() - started, "runs": json.loads(done.stdout)["runs"]}


def directly(home: Path, start: str) -> dict[str, float]:
    """Make the same months with the core alone; return seconds a market."""
    os.environ.update(_environment(home, 1))
    from mlbot_core.clock import clock_from_env, parse_utc_ms
    from mlbot_core.config import load_settings
    from mlbot_core.emulator.launch import serve
    from mlbot_core.features.dataset import DatasetRequest, materialize_features
    from mlbot_core.market import CORE_SERIES
    from mlbot_core.sources import open_source
    from mlbot_core.targets.dataset import materialize_targets
    from mlbot_core.timeframe import Month
    from mlbot_core.warehouse import Warehouse
    from mlbot_core.warehouse.ingest import IngestRequest, ingest

    settings, clock = load_settings(), clock_from_env()
    warehouse = Warehouse(settings.warehouse_path, clock)
    months = tuple(Month.span(parse_utc_ms(start), parse_utc_ms(NOW[:10])))
    delay = settings.intervals.settle_delay_ms("emulator")
    seconds: dict[str, float] = {}
    with serve(settings.intervals.emulator, clock) as url:
        for market in settings.intervals.markets:
            started = time.perf_counter()
            with open_source("emulator", settings, clock, base_url=url) as source:
                for series in CORE_SERIES:
                    request = IngestRequest(series, market, months, settings.intervals.quality, delay, "bench")
                    ingest(warehouse, source, clock, request)
            wanted = DatasetRequest("emulator", market, months, delay, clock.now_ms(), "bench")
            materialize_targets(warehouse, wanted, settings.models.targets)
            materialize_features(warehouse, wanted, settings.models.features)
            seconds[str(market)] = time.perf_counter() - started
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", type=int, default=24, choices=range(1, 25), metavar="1..24")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    year, month = divmod(2026 * 12 - args.months, 12)
    start = f"{year:04d}-{month + 1:02d}-01"
    with tempfile.TemporaryDirectory() as folder:
        # one process at a time for the comparison, as many as there are cores for the time a person waits
        alone = by_command(Path(folder) / "alone", start, 1)
        core = directly(Path(folder) / "core", start)
        shared = by_command(Path(folder) / "shared", start, os.cpu_count() or 1)
    print(f"{len(core)} markets x {args.months} months from {start}, raw to features and targets")
    print(f"{'run':32} {'dagster s':>10} {'core s':>10} {'overhead s':>11} {'ratio':>6}")
    overheads = []
    for run, (market, seconds) in zip(alone["runs"], core.items(), strict=True):
        overheads.append(run["seconds"] - seconds)
        print(
            f"{run['title']:32} {run['seconds']:10.1f} {seconds:10.1f} "
            f"{overheads[-1]:11.1f} {run['seconds'] / seconds:6.2f}"
        )
        assert run["title"].startswith(f"{market} ")
        assert run["success"], run["errors"]
    print(f"whole command, one process {alone['wall']:.1f} s; on all cores {shared['wall']:.1f} s")
    if args.json:
        result = {"months": args.months, "wall_one_process": alone["wall"], "wall_all_cores": shared["wall"]}
        result |= {"core_seconds": sum(core.values()), "worst_overhead_seconds": max(overheads)}
        print(json.dumps(result))


if __name__ == "__main__":
    main()
