"""A null bench small enough for a test."""

from __future__ import annotations

import pytest

from mlbot_core.config import LightGBMConfig, WalkForwardConfig
from mlbot_core.research.bench_config import LEAK, POWER, NullBenchConfig


@pytest.fixture(scope="session")
def small() -> NullBenchConfig:
    """Fewer bars, windows and trees; the same pipeline."""
    windows = WalkForwardConfig(train_days=10_000, min_train_days=40, test_days=20, embargo_bars=0)
    trees = LightGBMConfig.model_validate(LEAK.lightgbm.model_dump() | {"n_estimators": 5})
    return NullBenchConfig(
        bars=1_000,
        zscore_window=30,
        leak=LEAK.model_copy(update={"walk_forward": windows, "lightgbm": trees}),
        power=POWER.model_copy(update={"walk_forward": windows, "lightgbm": trees}),
    )
