"""How long the Temporal Fusion Transformer trains: one epoch, one fit, its memory, and its forecasts afterwards.

Made-up bars (8,000 training rows and 300 features by default) and the parameters of ``config/models.yaml``; on the CPU,
where training takes one thread, and on a GPU where torch sees one. Each device is measured in a process of its own. An
epoch is the difference of two trainings, one of which lasts longer, divided by the epochs between them. The load of the
machine is printed with it: on shared cores the times are upper bounds.

    python benchmarks/tft_training.py [--quick] [--json] [--samples 8000] [--features 300]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from mlbot_core.config import TFTConfig, load_settings
from mlbot_core.models.tft import TFTModel

BAR_MS = 7_200_000
T0 = 1_600_005_600_000 // BAR_MS * BAR_MS


def synthetic(bars: int, features: int, horizon: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Noise, and outcomes of a random walk."""
    rng = np.random.default_rng(bars)
    index = T0 + BAR_MS * np.arange(bars, dtype=np.int64)
    X = pd.DataFrame(rng.normal(size=(bars, features)), columns=[f"f_{i}" for i in range(features)], index=index)
    ret = rng.normal(0, 0.01, bars)
    width = np.full(bars, 0.01 * np.sqrt(horizon))
    path = np.concatenate([[0.0], np.cumsum(ret)])
    score = np.full(bars, np.nan)
    score[: bars - horizon] = (path[horizon:-1] - path[: bars - horizon]) / width[: bars - horizon]
    return X, pd.DataFrame({"label": np.sign(score), "score": score, "width": width, "next_ret": ret}, index=index)


def memory(field: str) -> float:
    """Return VmRSS or VmHWM (its peak) of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(device: str, samples: int, features: int, epochs: int) -> dict[str, float | str]:
    """Measure in this process."""
    base = load_settings({}).models.tft.model_dump()
    config = TFTConfig.model_validate({**base, "device": device, "max_samples": samples, "patience": 1000})
    X, y = synthetic(samples + config.encoder_length + config.horizon, features, config.horizon)
    rows = np.arange(config.encoder_length - 1, config.encoder_length - 1 + samples)

    def fit(count: int, among: np.ndarray) -> tuple[float, float, TFTModel]:
        model = TFTModel(config.model_copy(update={"max_epochs": count}))
        started, cpu = time.perf_counter(), time.process_time()
        model.fit(X, y, among)
        return time.perf_counter() - started, time.process_time() - cpu, model

    fit(1, rows[: min(200, samples)])  # imports and compiles
    before = memory("VmRSS")
    short, short_cpu, _ = fit(1, rows)
    long, long_cpu, model = fit(1 + epochs, rows)
    started = time.perf_counter()
    model.predict(X, rows)
    batch = time.perf_counter() - started
    single = X.iloc[: config.encoder_length]
    model.explain(single, np.array([config.encoder_length - 1]))
    started = time.perf_counter()
    model.predict(single, np.array([config.encoder_length - 1]))
    one = time.perf_counter() - started
    started = time.perf_counter()
    model.explain(single, np.array([config.encoder_length - 1]))
    explained = time.perf_counter() - started
    epoch = (long - short) / epochs
    trained = float(model.training["rows"])
    return {
        "device": str(model.training["device"]),
        "samples": samples,
        "features": features,
        "epoch_s": epoch,
        "epoch_cpu_s": (long_cpu - short_cpu) / epochs,
        "samples_per_s": trained / epoch,
        "full_fit_s": short + epoch * (config.max_epochs - 1),
        "max_epochs": config.max_epochs,
        "peak_mb": memory("VmHWM"),
        "peak_above_import_mb": memory("VmHWM") - before,
        "predict_all_s": batch,
        "predict_one_ms": one * 1e3,
        "explain_one_ms": explained * 1e3,
    }


def child(device: str, samples: int, features: int, epochs: int) -> dict[str, float | str]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--child", device, str(samples), str(features), str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the measurement on {device} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="600 rows, 40 features, one epoch")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--features", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=3, help="epochs between the two trainings")
    parser.add_argument("--child", nargs=4, metavar=("DEVICE", "SAMPLES", "FEATURES", "EPOCHS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child[0], *(int(v) for v in args.child[1:]))))
        return
    import torch

    sizes = (600, 40, 1) if args.quick else (args.samples, args.features, args.epochs)
    devices = ["cpu", *(["auto"] if torch.cuda.is_available() else [])]
    load = os.getloadavg()[0]
    results = [child(device, *sizes) for device in devices]
    print(f"cores {os.cpu_count()}, load before {load:.1f}, after {os.getloadavg()[0]:.1f}")
    if len(devices) == 1:
        print("no GPU: torch.cuda.is_available() is false")
    for row in results:
        print(f"\n{row['device']}: {row['samples']} samples, {row['features']} features")
        for name, value in row.items():
            if name not in ("device", "samples", "features"):
                print(f"  {name:22} {value:12,.1f}")
    if args.json:
        print(json.dumps({"load_before": load, "results": results}))


if __name__ == "__main__":
    main()
