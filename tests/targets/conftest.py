"""Prices for labels: seeded, with gaps where asked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from mlbot_core.timeframe import HOUR_MS

START = 1_700_006_400_000

PanelMaker = Callable[..., pd.DataFrame]


@pytest.fixture(scope="session")
def price_panel() -> PanelMaker:
    def make(bars: int, seed: int, gap_share: float = 0.0, grid: float = 0.0) -> pd.DataFrame:
        """``grid`` rounds prices, which makes touches exact and both-barrier bars frequent."""
        rng = np.random.default_rng(seed)
        close = 30_000 * np.exp(np.cumsum(rng.normal(0, 0.006, bars)))
        open_ = np.concatenate([[30_000.0], close[:-1]]) * np.exp(rng.normal(0, 0.001, bars))
        high = np.maximum(open_, close) * np.exp(np.abs(rng.normal(0, 0.005, bars)))
        low = np.minimum(open_, close) * np.exp(-np.abs(rng.normal(0, 0.005, bars)))
        prices = np.column_stack([open_, high, low, close])
        if grid:
            prices = np.round(prices / grid) * grid
        prices[rng.random(bars) < gap_share] = np.nan
        frame = pd.DataFrame(prices, columns=["open", "high", "low", "close"])
        frame.insert(0, "ts", START + np.arange(bars, dtype=np.int64) * HOUR_MS)
        return frame

    return make
