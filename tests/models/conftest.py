"""Made data and small configurations for the tests of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from mlbot_core.config import LightGBMConfig, ModelsConfig, load_settings
from mlbot_core.models import DirectionModel, create_model

BAR_MS = 7_200_000
START_MS = 1_700_006_400_000


@dataclass(frozen=True)
class MadeFold:
    """A fold by hand; the walk-forward takes anything with these attributes."""

    index: int
    train_idx: npt.NDArray[np.int64]
    test_idx: npt.NDArray[np.int64]
    train_start_ms: int
    train_end_ms: int
    test_start_ms: int
    test_end_ms: int


@dataclass(frozen=True)
class Made:
    """Aligned features and targets."""

    features: pd.DataFrame
    targets: pd.DataFrame
    horizon: int


@pytest.fixture(scope="session")
def make_fold() -> type[MadeFold]:
    return MadeFold


@pytest.fixture(scope="session")
def models_config() -> ModelsConfig:
    """The repository's own configuration with smaller trees, so that a test takes seconds."""
    config = load_settings({"MLBOT_THREADS": "1"}).models
    small = LightGBMConfig.model_validate(
        {**config.lightgbm.model_dump(), "n_estimators": 40, "num_leaves": 7, "min_child_samples": 30}
    )
    return config.model_copy(update={"lightgbm": small})


@pytest.fixture(scope="session")
def make_model(models_config: ModelsConfig) -> Callable[..., DirectionModel]:
    def make(model_type: str = "lightgbm", threads: int = 1) -> DirectionModel:
        return create_model(model_type, models_config, threads)

    return make


@pytest.fixture(scope="session")
def sample() -> tuple[pd.DataFrame, npt.NDArray[np.int64]]:
    """Eight features (one empty at places, one never known), three classes that the first two features decide."""
    generator = np.random.default_rng(5)
    n = 1500
    frame = pd.DataFrame(generator.normal(size=(n, 8)), columns=[f"f_{i}" for i in range(8)])
    score = frame["f_0"] - 0.7 * frame["f_1"] + generator.normal(size=n)
    label = np.where(score > 0.6, 1, np.where(score < -0.6, -1, 0)).astype(np.int64)
    frame.loc[generator.random(n) < 0.3, "f_1"] = np.nan
    frame["f_7"] = np.nan
    return frame, label


@pytest.fixture(scope="session")
def made() -> Callable[..., Made]:
    """Build ``n`` two-hour bars with 10 features; ``signal`` scales how much f_0 decides the label, 0 for none."""

    def build(n: int, signal: float, seed: int, horizon: int = 6) -> Made:
        generator = np.random.default_rng(seed)
        ts = START_MS + BAR_MS * np.arange(n, dtype=np.int64)
        features = pd.DataFrame(generator.normal(size=(n, 10)), columns=[f"f_{i}" for i in range(10)])
        score = signal * features["f_0"].to_numpy() + generator.normal(size=n)
        label = np.where(score > 0.5, 1.0, np.where(score < -0.5, -1.0, 0.0))
        t1 = ts + BAR_MS * (1 + generator.integers(1, horizon + 1, n))
        features.insert(0, "ts", ts)
        label[-horizon:] = np.nan
        targets = pd.DataFrame({"ts": ts, "t0": ts + BAR_MS, "tb_label": label, "tb_t1": t1})
        return Made(features, targets, horizon)

    return build


@pytest.fixture(scope="session")
def make_folds() -> Callable[..., list[MadeFold]]:
    """Expanding folds of ``test`` rows after ``first`` rows, purged by the labels' ends."""

    def build(data: Made, first: int, test: int) -> list[MadeFold]:
        ts = data.features["ts"].to_numpy()
        t1 = data.targets["tb_t1"].to_numpy()
        folds = []
        for start in range(first, len(ts) - test + 1, test):
            begin = int(ts[start])
            train = np.flatnonzero((ts < begin) & (t1 <= begin))
            folds.append(
                MadeFold(
                    len(folds),
                    train,
                    np.arange(start, start + test),
                    int(ts[train[0]]),
                    int(ts[train[-1]]),
                    begin,
                    int(ts[start + test - 1]) + BAR_MS,
                )
            )
        return folds

    return build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "v1"
