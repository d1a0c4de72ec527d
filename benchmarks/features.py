"""How fast features are: Alpha158 beside Qlib's expression engine, the full set, and how both grow with the history.

Qlib (pyqlib 0.9.7, in a virtual environment of its own under .cache) and this project compute the same 158 columns of
the same recorded hourly prices, one after the other, in turns, each on one core; the best of each counts. Qlib's
time is that of ``D.features`` alone (no start-up, no building of its store), ours that of ``build_features`` from panel
to frame, kernels compiled. Growth is measured on synthetic bars, each size in a process of its own, whose peak memory
is reported with it; so is the time it takes to compile every kernel, with an empty cache and from the cache on disk.

    python benchmarks/features.py [--quick] [--json] [--archive ../shared/data]
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

import numpy as np
import pandas as pd

from mlbot_core.features import PANEL_COLUMNS, build_features
from mlbot_core.features import registry as r
from mlbot_core.timeframe import HOUR_MS

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "tests" / "features" / "qlib" / "reference.py"
T0 = 1_600_002_000_000 // HOUR_MS * HOUR_MS
ZSCORE_WINDOW = 240
RECENT = 1_500  # bars of lookback behind one new bar
SMALL = 2_000  # bars that get every kernel ready


def chosen(name: str) -> r.FeatureSet:
    """Return ``alpha158`` or ``full``, every declared feature."""
    features = tuple(f for f in r.all_features() if name == "full" or f.family == name)
    return r.make_feature_set(name, features, ZSCORE_WINDOW)


def synthetic(bars: int) -> pd.DataFrame:
    """A panel of made-up bars: a random walk, and log-normal noise in every other column."""
    rng = np.random.default_rng(bars)
    panel = pd.DataFrame({name: rng.lognormal(0.0, 0.3, bars) for name in PANEL_COLUMNS if name not in ("ts", "late")})
    close = 30_000 * np.exp(np.cumsum(rng.normal(0, 0.005, bars)))
    panel["open"] = np.concatenate([[30_000.0], close[:-1]])
    panel["high"] = np.maximum(panel["open"], close) * (1 + 0.003 * rng.random(bars))
    panel["low"] = np.minimum(panel["open"], close) * (1 - 0.003 * rng.random(bars))
    panel["close"] = close
    panel["volume_usd"] = rng.lognormal(18, 0.6, bars)
    panel.insert(0, "ts", T0 + HOUR_MS * np.arange(bars, dtype=np.int64))
    panel["late"] = False
    return panel


def recorded(folder: Path) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The recorded prices as a panel, and as Qlib takes them."""
    raw = pd.read_parquet(folder / "btcusdt_perp_1h.parquet")
    ts = raw["ts"].dt.as_unit("ms").astype("int64").to_numpy()
    prices = {name: raw[name].to_numpy(np.float64) for name in ("open", "high", "low", "close", "volume")}
    panel = pd.DataFrame({"ts": ts, **prices}).rename(columns={"volume": "volume_usd"})
    vwap = (prices["high"] + prices["low"] + prices["close"]) / 3
    return panel, {"ts": ts, **prices, "vwap": vwap}


def best(panel: pd.DataFrame, features: r.FeatureSet, rounds: int, last: int | None = None) -> float:
    """Return the least of several wall times, seconds."""
    took = []
    for _ in range(rounds):
        started = time.perf_counter()
        build_features(panel, features, last=last)
        took.append(time.perf_counter() - started)
    return min(took)


def qlib(prices: dict[str, np.ndarray], folder: Path, rounds: int) -> dict:
    """Let Qlib compute; return what its process said of itself."""
    np.savez(folder / "prices.npz", **prices)
    done = subprocess.run(
        [sys.executable, str(REFERENCE), "--prices", str(folder / "prices.npz"), "--out", str(folder / "out.npz"),
         "--environment", str(ROOT / ".cache" / "qlib-venv"), "--repeat", str(rounds)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"Qlib failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def child(name: str, bars: int, rounds: int, last: int | None, cache: str | None = None) -> dict[str, float]:
    """Measure one size in a process of its own; ``cache`` is a folder for compiled kernels instead of the usual one."""
    command = [sys.executable, __file__, "--child", name, str(bars), str(rounds), str(last or 0)]
    env = {**os.environ, **({"NUMBA_CACHE_DIR": cache} if cache else {})}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return json.loads(done.stdout.strip().splitlines()[-1])


def memory(field: str) -> float:
    """Return VmRSS or VmHWM (its peak) of this process, MB; getrusage's peak would include the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(name: str, bars: int, rounds: int, last: int | None) -> dict[str, float]:
    """Measure in this process: getting the kernels ready (``ready_s``), then whole builds and their peak memory, MB."""
    panel, features = synthetic(bars), chosen(name)
    small = panel.iloc[:SMALL]
    started = time.perf_counter()
    build_features(small, features, last=last)
    ready = time.perf_counter() - started - best(small, features, 1, last)
    before = memory("VmRSS")
    warm = best(panel, features, rounds, last)
    return {"ready_s": ready, "warm_s": warm, "peak_above_start_mb": memory("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--archive", type=Path, default=None)
    parser.add_argument("--child", nargs=4, metavar=("SET", "BARS", "ROUNDS", "LAST"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, bars, rounds, last = args.child
        print(json.dumps(measure(name, int(bars), int(rounds), int(last) or None)))
        return
    archive = args.archive or Path(os.environ.get("MLBOT_ARCHIVE_DIR") or ROOT.parent / "shared" / "data")
    turns, repeats = (1, 2) if args.quick else (3, 3)
    panel, prices = recorded(archive)
    ours_set, full = chosen("alpha158"), chosen("full")
    bars = len(panel)

    started = time.perf_counter()
    build_features(panel, ours_set)
    first = time.perf_counter() - started
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            said = qlib(prices, Path(folder), repeats)
            theirs.append(said["seconds"])
            ours.append(best(panel, ours_set, 5 * repeats))
            print(f"turn {turn + 1}: Qlib {theirs[-1]:.3f} s, ours {ours[-1]:.4f} s for {bars:,} bars", flush=True)
    speedup = min(theirs) / min(ours)
    print(f"\nAlpha158 on {bars:,} recorded bars (one core each; Qlib with {said['versions']})")
    print(f"  Qlib {bars / min(theirs):>12,.0f} bars/s\n  ours {bars / min(ours):>12,.0f} bars/s   {speedup:.1f} times")
    print(f"  load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    result: dict[str, object] = {
        "alpha158_speedup_vs_qlib": speedup,
        "alpha158_bars_per_s": bars / min(ours),
        "alpha158_first_call_s": first,
        "qlib_bars_per_s": bars / min(theirs),
        "qlib_versions": said["versions"],
        "load_average": os.getloadavg()[0],
        "full_columns": len(full.names),
        "full_lookback_bars": full.lookback,
    }

    if not args.quick:
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (child("full", SMALL, 1, None, cache)["ready_s"] for _ in range(2))
        result |= {"full_compile_cold_s": cold, "full_compile_cached_s": warm}
        print(
            f"\nevery kernel ready: {cold:.0f} s when compiled for the first time, {warm:.1f} s from the cache on disk"
        )
    sizes = {"alpha158": (10_000, 100_000), "full": (5_000, 10_000)} if args.quick else {
        "alpha158": (10_000, 41_080, 100_000, 1_000_000), "full": (10_000, 41_080, 100_000, 1_000_000)
    }  # fmt: skip
    growth = []
    print("\nsynthetic bars   set        seconds     bars/s    peak above start, MB")
    for name, lengths in sizes.items():
        for length in lengths:
            got = child(name, length, 1 if args.quick else (2 if length > 100_000 else 3), None)
            growth.append({"set": name, "bars": length, "bars_per_s": length / got["warm_s"], **got})
            print(f"{length:>14,}   {name:9} {got['warm_s']:>8.3f} {length / got['warm_s']:>10,.0f} "
                  f"{got['peak_above_start_mb']:>12,.0f}", flush=True)  # fmt: skip
    result["growth"] = growth
    one = child("full", RECENT, 3 if args.quick else 10, 1)
    result["one_bar_full_ms"] = one["warm_s"] * 1000
    print(
        f"\none new bar of the full set ({len(full.names)} columns) from {RECENT:,} bars: {one['warm_s'] * 1000:.0f} ms"
    )
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
