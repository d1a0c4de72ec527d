"""Three folds and the newest model of every type, trained twice: the same forecasts and the same files, to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlbot_core.config import ModelsConfig, WalkForwardConfig
from mlbot_core.models import create_model
from mlbot_core.models import walk_forward as walk
from mlbot_core.models.fold_store import FoldStore
from mlbot_core.targets.weights import sample_weights
from mlbot_core.timeframe import DAY_MS, Timeframe
from mlbot_core.validation.splits import WalkForward

pytestmark = pytest.mark.slow

FOLDS = 3
THREADS = 2
BARS = Timeframe.parse("2h")
PROGRAM = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
import test_three_folds
test_three_folds.train(pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4])
"""


def train(at: Path, model_type: str, name: str) -> None:
    """Walk forward over the data in ``at`` as the training does; forecasts and models go to ``at/name``."""
    models = ModelsConfig.model_validate_json((at / "config.json").read_text())
    X, y = pd.read_parquet(at / "x.parquet"), pd.read_parquet(at / "y.parquet")
    ts, t1 = X.index.to_numpy(dtype=np.int64), y["t1"].to_numpy(dtype=np.int64)
    days = len(X) * BARS.ms // DAY_MS
    test_days = days // (2 * FOLDS)
    config = WalkForwardConfig(
        train_days=days, min_train_days=days - FOLDS * test_days - 2, test_days=test_days, embargo_bars=2
    )
    end = int(ts[-1]) + BARS.ms
    split = WalkForward(config).split(ts + BARS.ms, t1, end - FOLDS * test_days * DAY_MS, end, BARS)
    result = walk(
        X,
        y,
        list(split),
        lambda: create_model(model_type, models, THREADS),
        model_version="v1",
        weights=lambda rows: sample_weights(ts[rows] + BARS.ms, t1[rows], BARS.ms, models.weights.oldest),
        final_idx=np.flatnonzero(t1 <= end),
        store=FoldStore(at / name / "models", "v1", THREADS),
    )
    result.forecasts.to_parquet(at / name / "forecasts.parquet")
    (at / name / "folds.json").write_text(result.fold_table.to_json())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_trained_twice_is_the_same(kind: Any, models_config: ModelsConfig, sample_for: Any, tmp_path: Path) -> None:
    """Once here, among all that other tests have left behind, and once in a process of its own."""
    sample = sample_for(kind)
    sample.X.to_parquet(tmp_path / "x.parquet")
    sample.y.to_parquet(tmp_path / "y.parquet")
    (tmp_path / "config.json").write_text(models_config.model_dump_json())
    train(tmp_path, kind.name, "here")
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(tmp_path), kind.name, "there"]
    # spinning threads are slow where the cores are shared; how they wait decides no bit
    elsewhere = {**os.environ, "PYTHONHASHSEED": "77", "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run(command, check=True, timeout=240, env=elsewhere)

    here, there = files(tmp_path / "here"), files(tmp_path / "there")
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []
    stored = {name for name in here if name.endswith("meta.json")}
    assert stored == {"models/v1/meta.json", *(f"models/folds/v1/{fold:03}/meta.json" for fold in range(FOLDS))}
    forecasts = pd.read_parquet(tmp_path / "here" / "forecasts.parquet")
    assert forecasts.groupby("fold")["score"].count().gt(50).all()
    # what is compared is not one model four times
    trained = json.loads(here["folds.json"])["train_rows"]
    assert len(set(trained.values())) == FOLDS
