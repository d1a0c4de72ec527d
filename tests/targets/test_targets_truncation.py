"""Labels at a cut: one that is known by then is final, one that is not is missing, and the past suffices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.config import TargetConfig
from mlbot_core.features import TruncationResult, truncation_check
from mlbot_core.targets import LABELS, build_targets, target_lookback
from mlbot_core.timeframe import HOUR_MS, Market

HOURLY = Market.parse("BTC-1h")
CONFIG = TargetConfig(volatility_window=48, horizon=12, barrier_width=1.0)


def targets(panel: pd.DataFrame) -> pd.DataFrame:
    return build_targets(panel, HOURLY, CONFIG)


def check(build, panel: pd.DataFrame, cuts: np.ndarray) -> TruncationResult:
    return truncation_check(build, panel, cuts, lookback=target_lookback(CONFIG), labels=LABELS, timeframe_ms=HOUR_MS)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), gaps=st.sampled_from([0.0, 0.03]))
def test_every_target_on_synthetic_data(price_panel, seed: int, gaps: float) -> None:
    panel = price_panel(260, seed, gaps)
    result = check(targets, panel, np.random.default_rng(seed).integers(0, 260, 12))
    assert result.passed, result.violations[:5]
    assert result.start_bit_equal is not False


@pytest.mark.archive
def test_every_target_on_recorded_data(archive_dir: Path) -> None:
    frame = pd.read_parquet(archive_dir / "btcusdt_perp_1h.parquet").iloc[-6000:]
    ts = frame["ts"].dt.as_unit("ms").astype("int64").to_numpy()
    panel = frame.drop(columns=["ts", "volume"]).reset_index(drop=True)
    panel.insert(0, "ts", ts)
    result = check(targets, panel, np.random.default_rng(1).integers(0, 6000, 25))
    assert result.passed, result.violations[:5]
    assert result.start_bit_equal is True


def test_one_row_equals_the_batch(price_panel) -> None:
    """The label that closes now is computed from its own past and horizon alone."""
    panel = price_panel(300, seed=3, gap_share=0.01)
    batch = targets(panel)
    for t in range(48, 300 - 12, 9):
        alone = targets(panel.iloc[t - 48 : t + 13].reset_index(drop=True)).iloc[48]
        np.testing.assert_array_equal(alone.to_numpy(np.float64), batch.iloc[t].to_numpy(np.float64))


def test_a_label_from_an_unfinished_horizon_is_caught(price_panel) -> None:
    """Planted fault: at the data's edge the vertical barrier is moved to the last bar there is."""
    panel = price_panel(200, seed=4)

    def eager(piece: pd.DataFrame) -> pd.DataFrame:
        out = targets(piece)
        unknown = out["tb_label"].isna() & out["sigma"].notna()
        return out.assign(tb_label=out["tb_label"].where(~unknown, 0.0))

    result = check(eager, panel, np.array([100, 150]))
    assert not result.passed
    assert result.columns == ("tb_label",)


def test_a_width_that_knows_the_future_is_caught(price_panel) -> None:
    panel = price_panel(200, seed=5)

    def leaky(piece: pd.DataFrame) -> pd.DataFrame:
        out = targets(piece)
        return out.assign(sigma=np.log(piece["close"]).diff().rolling(49, center=True).std())

    result = check(leaky, panel, np.array([100, 150]))
    assert "sigma" in result.columns


def test_a_time_of_knowledge_that_is_too_early_is_caught(price_panel) -> None:
    """Planted fault: labels claim to be known one bar before the bar that decided them."""
    panel = price_panel(200, seed=6)

    def hasty(piece: pd.DataFrame) -> pd.DataFrame:
        out = targets(piece)
        return out.assign(tb_t1=out["tb_t1"].where(out["tb_t1"] < 0, out["tb_t1"] - HOUR_MS))

    result = check(hasty, panel, np.arange(60, 180, 10))
    assert not result.passed
    assert "tb_label" in result.columns
