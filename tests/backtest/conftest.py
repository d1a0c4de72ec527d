"""Markets and inputs for the backtest room's tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from mlbot_core.backtest.run import BacktestInput
from mlbot_core.backtest.simulator import Simulation, SimulationParams, simulate
from mlbot_core.config import FeesConfig, RiskConfig
from mlbot_core.timeframe import HOUR_MS, Market

TF = 2 * HOUR_MS
START = 1_704_067_200_000  # 2024-01-01T00:00:00Z


@dataclass(frozen=True)
class Bars:
    """Bars as arrays."""

    ts: np.ndarray
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray

    def head(self, n: int) -> Bars:
        return Bars(*(getattr(self, name)[:n] for name in ("ts", "open", "high", "low", "close")))


def _random_bars(n: int, seed: int, volatility: float = 0.01, missing: float = 0.0) -> Bars:
    rng = np.random.default_rng(seed)
    close = 40_000 * np.exp(np.cumsum(rng.normal(0, volatility, n)))
    open_ = np.r_[40_000.0, close[:-1]] * np.exp(rng.normal(0, volatility / 10, n))
    high = np.maximum(open_, close) * np.exp(np.abs(rng.normal(0, volatility / 2, n)))
    low = np.minimum(open_, close) * np.exp(-np.abs(rng.normal(0, volatility / 2, n)))
    bars = Bars(START + TF * np.arange(n, dtype=np.int64), open_, high, low, close)
    gone = rng.random(n) < missing
    for values in (bars.open, bars.high, bars.low, bars.close):
        values[gone] = np.nan
    return bars


@pytest.fixture(scope="session")
def random_bars() -> Callable[..., Bars]:
    return _random_bars


@pytest.fixture(scope="session")
def make_bars() -> Callable[..., Bars]:
    """Bars from (open, close) pairs; None is a missing bar; high and low are the extremes of the two."""

    def build(pairs: list[tuple[float, float] | None], start: int = START, timeframe: int = TF) -> Bars:
        o, c = (np.array([np.nan if p is None else p[i] for p in pairs], dtype=float) for i in (0, 1))
        ts = start + timeframe * np.arange(len(pairs), dtype=np.int64)
        return Bars(ts, o, np.fmax(o, c), np.fmin(o, c), c)

    return build


@pytest.fixture(scope="session")
def run_sim() -> Callable[..., Simulation]:
    """simulate() with free trading unless said otherwise."""

    def run(bars: Bars, target: object, funding: dict[int, float] | None = None, **params: float) -> Simulation:
        settings = {"timeframe_ms": TF, "delay_ms": 0, "fee": 0.0, "slippage": 0.0, **params}
        events = sorted((funding or {}).items())
        return simulate(
            bars.ts,
            bars.open,
            bars.high,
            bars.low,
            bars.close,
            np.asarray(target, dtype=float),
            SimulationParams(**settings),
            np.array([t for t, _ in events], dtype=np.int64),
            np.array([r for _, r in events], dtype=float),
        )

    return run


def _make_input(n: int = 12 * 60, seed: int = 3, skill: float = 0.3, **changes: object) -> BacktestInput:
    """A market whose forecasts see the next 12 bars with some noise: there is something to show."""
    rng = np.random.default_rng(seed)
    bars = _random_bars(n, seed)
    log_close = np.log(bars.close)
    future = np.full(n, np.nan)
    future[:-12] = log_close[12:] - log_close[:-12]
    width = np.full(n, 0.01 * np.sqrt(12))
    label = np.where(np.isnan(future), np.nan, np.where(future > width, 1.0, np.where(future < -width, -1.0, 0.0)))
    lean = np.tanh(skill * np.nan_to_num(future) / width + pd.Series(rng.normal(0, 1, n)).ewm(12).mean().to_numpy())
    settlements = np.arange(START, bars.ts[-1] + TF, 8 * HOUR_MS, dtype=np.int64)
    values: dict[str, object] = {
        "market": Market.parse("BTC-2h"),
        "source": "archive",
        "model_type": "lightgbm",
        "model_version": "0123456789abcdef",
        "bars": pd.DataFrame({name: getattr(bars, name) for name in ("ts", "open", "high", "low", "close")}),
        "forecasts": pd.DataFrame(
            {
                "ts": bars.ts,
                "fold": np.arange(n) // 360,
                "p_down": 0.3 - 0.25 * lean,
                "p_neutral": np.full(n, 0.4),
                "p_up": 0.3 + 0.25 * lean,
                "score": 0.5 * lean,
            }
        ),
        "targets": pd.DataFrame(
            {
                "ts": bars.ts,
                "label": label,
                "width": width,
                "score": future / width,
                "score_t1": np.where(np.isnan(label), np.nan, bars.ts + 13.0 * TF),
                "t1": np.where(np.isnan(label), np.nan, bars.ts + 13.0 * TF),
            }
        ),
        "funding": pd.DataFrame({"ts": settlements, "rate": rng.normal(1e-4, 1e-4, len(settlements))}),
        "fees": FeesConfig(taker_bp=5.5, maker_bp=2.0, slippage_bp=2.0),
        "risk": RiskConfig(max_position=0.1, daily_loss_limit=0.03, max_drawdown=0.25),
        "settle_delay_ms": 5_000,
        "synthetic": True,
        "notes": ("A note on the data.",),
        "shares": {"live": 0.25, "modelled": 0.75, "restated": 0.01},
        "n_features": 44,
        **changes,
    }
    return BacktestInput(**values)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_input() -> Callable[..., BacktestInput]:
    return _make_input
