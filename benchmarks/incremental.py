"""One new bar: what it costs with one month and with five years of history behind it in the warehouse.

Two stores are filled with every series of the catalogue (synthetic, at the market's interval; daily where a series is
daily). Then, turn by turn in one run, the newest bar's features are computed from each store as a live decision would:
open the store, check the months' verdicts, read the lookback by SQL, lay out the panel, compute. The stages are timed
inside the same calls.

    python benchmarks/incremental.py [--interval 30m] [--set full] [--repeats 40] [--years 5] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from mlbot_core.clock import FixedClock
from mlbot_core.config import load_settings
from mlbot_core.features import build_features, build_panel, configured_set
from mlbot_core.features.incremental import Decision, live_row, read_lookback
from mlbot_core.features.inputs import series_needed
from mlbot_core.market import CATALOGUE, SeriesBatch, make_table
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market, Month, Timeframe
from mlbot_core.warehouse import PartitionKey, PartitionOutcome, Verdict, Warehouse, append, record_partition
from mlbot_core.warehouse.ingest import RAW_CHECKS, partition_name

END = Month.parse("2025-06").end_ms
DELAY = 5_000
DAILY = Timeframe(1440)
NATIVE = {"funding_settled": Timeframe(480)}
SOURCE = "archive"


def values_of(series: str, ts: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return plausible positive values: a random walk for levels, noise for everything else."""
    size = len(ts)
    close = 30_000 * np.exp(np.cumsum(rng.normal(0, 0.004, size)))
    open_ = np.concatenate([[30_000.0], close[:-1]])
    spread = np.abs(rng.normal(0, 0.002, (2, size)))
    ohlc = {"open": open_, "high": np.maximum(open_, close) * (1 + spread[0]),
            "low": np.minimum(open_, close) * (1 - spread[1]), "close": close}  # fmt: skip
    out = {}
    for column in CATALOGUE[series].columns:
        noise = rng.uniform(0.2, 0.8, size) * min(1.0, column.maximum or 1.0)
        if column.name in ohlc and column.unit != "fraction":
            out[column.name] = ohlc[column.name]
        elif column.unit == "fraction":
            out[column.name] = noise if column.positive != "no" else (noise - 0.5) * 4e-4
        else:
            out[column.name] = noise * (1.0 if column.maximum else 1e8)
    return out


def fill(path: Path, market: Market, start_ms: int) -> Warehouse:
    """Make a store with every series from ``start_ms`` to the end, in one observation, with good verdicts."""
    warehouse = Warehouse(path, FixedClock(END + HOUR_MS))
    months = Month.span(start_ms, END)
    for at, (name, spec) in enumerate(CATALOGUE.items()):
        timeframe = spec.native or NATIVE.get(name, market.timeframe)
        timeframe = timeframe if timeframe >= market.timeframe else market.timeframe
        ts = timeframe.opens_between(start_ms, END)
        table = make_table(name, ts, END + 1, values_of(name, ts, np.random.default_rng(at)))
        verdicts = tuple(Verdict(check, True) for check in RAW_CHECKS)
        with warehouse.write() as con:
            append(con, SeriesBatch(name, market.symbol, timeframe, SOURCE, table), now_ms=END + 1)
            for month in months:
                key = PartitionKey(name, SOURCE, partition_name(market, month))
                outcome = PartitionOutcome(key, 1, f"{name}-{month}", verdicts, {"timeframe": str(timeframe)})
                record_partition(con, outcome, now_ms=END + 1, run_id="bench")
    return warehouse


def stages(warehouse: Warehouse, decision: Decision, features) -> dict[str, float]:
    """Return the milliseconds of each stage of one row; ``total`` is :func:`live_row` as a whole, timed beside."""
    step = decision.market.timeframe.ms
    start_ms = decision.ts - features.lookback * step
    marks = [time.perf_counter()]
    with warehouse.read() as con:
        marks.append(time.perf_counter())
        series, _ = read_lookback(con, decision, series_needed(features), start_ms)
        marks.append(time.perf_counter())
    marks.append(time.perf_counter())
    panel = build_panel(series, decision.market, start_ms, decision.ts + step, decision.settle_delay_ms)
    marks.append(time.perf_counter())
    build_features(panel, features, last=1)
    marks.append(time.perf_counter())
    live_row(warehouse, decision, features)
    marks.append(time.perf_counter())
    names = ("open_ms", "read_ms", "close_ms", "panel_ms", "kernels_ms", "total_ms")
    return {name: 1000 * (b - a) for name, a, b in zip(names, marks[:-1], marks[1:], strict=True)}


def run(folder: Path, interval: str, chosen: str, repeats: int, years: float) -> dict[str, object]:
    market = Market.parse(f"BTC-{interval}")
    features = configured_set(load_settings().models.features, chosen)
    decision = Decision(SOURCE, market, END - market.timeframe.ms, DELAY, snapshot_ms=END + HOUR_MS)
    lookback_ms = features.lookback * market.timeframe.ms
    histories = {"month": max(31 * DAY_MS, lookback_ms + DAY_MS), "years": int(years * 365 * DAY_MS)}
    stores = {name: fill(folder / f"{name}.duckdb", market, END - length) for name, length in histories.items()}
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in stores}
    for warehouse in stores.values():
        stages(warehouse, decision, features)  # compiles, and starts each store's DuckDB
    for _ in range(repeats):
        for name, warehouse in stores.items():
            samples[name].append(stages(warehouse, decision, features))
    median = {
        name: {stage: float(np.median([row[stage] for row in rows])) for stage in rows[0]}
        for name, rows in samples.items()
    }
    worst = {name: float(np.percentile([row["total_ms"] for row in rows], 95)) for name, rows in samples.items()}
    return {
        "market": str(market), "feature_set": chosen, "features": len(features.names),
        "series": len(series_needed(features)), "lookback_bars": features.lookback, "repeats": repeats,
        "month_bars": len(market.timeframe.opens_between(END - histories["month"], END)),
        "years_bars": len(market.timeframe.opens_between(END - histories["years"], END)),
        **{f"{name}_{stage}": value for name, row in median.items() for stage, value in row.items()},
        "month_total_ms_p95": worst["month"], "years_total_ms_p95": worst["years"],
        "years_over_month": median["years"]["total_ms"] / median["month"]["total_ms"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interval", default="30m")
    parser.add_argument("--set", dest="chosen", default="full")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--years", type=float, default=5.0)
    parser.add_argument("--quick", action="store_true", help="a smoke run: half a year, five repeats")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    repeats, years = (5, 0.5) if args.quick else (args.repeats, args.years)
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), args.interval, args.chosen, repeats, years)
    for key, value in result.items():
        print(f"{key:22} {value:,.2f}" if isinstance(value, float) else f"{key:22} {value}")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
