"""What a walk forward costs beside the bare library: 13 LightGBM folds, and the same 13 fits by ``lightgbm.train``.

Both train the same rows (7,323 a fold, 154 features, 300 trees for each of three classes) with the same parameters on
the same cores, in turns; the best of each counts. ``plain`` is a walk forward without calibration, which does exactly
the native fits and the bookkeeping around them: purging, sample weights, forecasts, scores, importance and the stored
models. ``calibrated`` grows the trees twice, to judge them on rows that they have not seen.

    python benchmarks/training.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROWS, FEATURES, FOLDS, TREES = 7_323, 154, 13, 300
BAR_MS = 3_600_000
START_MS = 1_609_459_200_000


def made(folds: int, rows: int, features: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return hourly bars enough for the folds: made features, of which three lean on the outcome."""
    rng = np.random.default_rng(11)
    n = rows + 30 * 24 * folds + 24
    ts = START_MS + BAR_MS * np.arange(n, dtype=np.int64)
    index = pd.Index(ts, name="ts")
    X = pd.DataFrame(rng.normal(size=(n, features)), columns=[f"f_{i:03}" for i in range(features)], index=index)
    score = 0.1 * (X["f_000"] - X["f_001"] + X["f_002"]).to_numpy() + rng.normal(size=n)
    y = pd.DataFrame(
        {
            "label": np.select([score > 0.6, score < -0.6], [1.0, -1.0], 0.0),
            "score": score,
            "width": 0.02,
            "next_ret": rng.normal(0, 0.005, n),
            "t1": ts + 13 * BAR_MS,
        },
        index=index,
    )
    return X, y


def measure(quick: bool, turns: int) -> dict[str, Any]:
    import lightgbm

    from mlbot_core.config import CalibrationConfig, LightGBMConfig, WalkForwardConfig, load_settings
    from mlbot_core.models.fold_store import FoldStore
    from mlbot_core.models.lightgbm import LightGBMModel
    from mlbot_core.models.walkforward import walk_forward
    from mlbot_core.targets.weights import sample_weights
    from mlbot_core.timeframe import DAY_MS, Timeframe
    from mlbot_core.validation.splits import WalkForward

    folds, rows, trees = (3, 2_000, 30) if quick else (FOLDS, ROWS, TREES)
    X, y = made(folds, rows, FEATURES)
    threads = load_settings().threads
    timeframe = Timeframe.parse("1h")
    t0, t1 = X.index.to_numpy() + BAR_MS, y["t1"].to_numpy()
    days = -(-rows // 24)
    schedule = WalkForwardConfig(train_days=days, min_train_days=days - 5, test_days=30, embargo_bars=12)
    first = int(X.index[0]) + (days + 1) * DAY_MS
    split = WalkForward(schedule).split(t0, t1, first, first + 30 * DAY_MS * folds, timeframe)
    base = {**load_settings().models.lightgbm.model_dump(), "n_estimators": trees}

    def ours(method: str) -> None:
        config = LightGBMConfig.model_validate({**base, "calibration": CalibrationConfig(method=method)})
        jobs = min(threads, len(split))
        with tempfile.TemporaryDirectory() as folder:
            walk_forward(
                X,
                y,
                list(split),
                lambda: LightGBMModel(config, max(1, threads // jobs)),
                model_version="benchmark",
                weights=lambda at: sample_weights(t0[at], t1[at], BAR_MS, 0.5),
                store=FoldStore(Path(folder), "benchmark"),
                jobs=jobs,
            )

    matrix, label = X.to_numpy(), y["label"].to_numpy()
    params = LightGBMModel(LightGBMConfig.model_validate(base), threads)._parameters(3)

    def native() -> None:
        for fold in split:
            at = fold.train_idx
            data = lightgbm.Dataset(matrix[at], label=label[at] + 1, weight=sample_weights(t0[at], t1[at], BAR_MS, 0.5))
            lightgbm.train(params, data, num_boost_round=trees)

    contenders: dict[str, Callable[[], None]] = {
        "native": native,
        "plain": lambda: ours("none"),
        "calibrated": lambda: ours("temperature"),
    }
    best = {name: float("inf") for name in contenders}
    for turn in range(turns):
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            spent = time.perf_counter() - started
            best[name] = min(best[name], spent)
            print(f"turn {turn + 1}: {name:<10} {spent:7.2f} s")
    return {
        "folds": len(split),
        "rows": int(np.mean([len(fold.train_idx) for fold in split])),
        "features": FEATURES,
        "trees": trees,
        "threads": threads,
        **{f"{name}_seconds": seconds for name, seconds in best.items()},
        "plain_over_native": best["plain"] / best["native"],
        "calibrated_over_native": best["calibrated"] / best["native"],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few small folds, one turn")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    found = measure(args.quick, 1 if args.quick else 3)
    print(f"\n{found['folds']} folds of {found['rows']:,} rows x {found['features']} features, {found['trees']} trees")
    for name in ("native", "plain", "calibrated"):
        ratio = found[f"{name}_seconds"] / found["native_seconds"]
        print(f"  {name:<10} {found[f'{name}_seconds']:7.2f} s   {ratio:5.2f} times the native fits")
    print(f"  peak memory {found['peak_mib']:,.0f} MiB, {found['threads']} threads, load {found['load_average']:.1f}")
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
