"""Many parameter sets at once give what each gives alone, in whatever number of threads."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest

from mlbot_core.backtest.metrics import compute_metrics
from mlbot_core.backtest.simulator import Forecasts, Simulation, SimulationParams, simulate
from mlbot_core.backtest.sweep import sweep
from mlbot_core.timeframe import HOUR_MS

TF = 2 * HOUR_MS
BASE = SimulationParams(
    timeframe_ms=TF, delay_ms=5_000, fee=0.00055, slippage=0.0002, cap=1.0, daily_loss=0.03, max_drawdown=0.25
)


@pytest.fixture(scope="module")
def run(random_bars):
    bars = random_bars(12 * 90, 5, 0.01)
    rng = np.random.default_rng(5)
    said = Forecasts(0.03 * (0.6 * rng.random(len(bars.ts)) - 0.2))

    def simulated(params: SimulationParams) -> Simulation:
        return simulate(bars.ts, bars.open, bars.high, bars.low, bars.close, said, params)

    return bars, simulated


def test_a_sweep_is_each_set_alone(run) -> None:
    bars, simulated = run
    sets = [
        dataclasses.replace(BASE, cost_round_trip=cost, cap=cap)
        for cost, cap in itertools.product((0.0005, 0.002, 0.004), (0.05, 0.1))
    ]
    alone, together = sweep(simulated, sets, threads=1), sweep(simulated, sets, threads=2)
    pd.testing.assert_frame_equal(alone, together)
    assert alone["cost_round_trip"].tolist() == [0.0005, 0.0005, 0.002, 0.002, 0.004, 0.004]
    assert alone["fills"].nunique() > 1
    for params, row in zip(sets, alone.to_dict("records"), strict=True):
        metrics = compute_metrics(simulated(params), bars.close)
        assert row["net_return"] == pytest.approx(metrics.total_return, rel=1e-12)
        assert row["sharpe"] == pytest.approx(metrics.sharpe.value, rel=1e-12)
        assert row["max_drawdown"] == pytest.approx(metrics.drawdown.depth, rel=1e-12)
        assert row["turnover_per_year"] == pytest.approx(metrics.turnover_per_year, rel=1e-12)
        assert row["fees"] == pytest.approx(metrics.waterfall.fees, rel=1e-12)


def test_a_set_that_never_trades_has_no_sharpe(run) -> None:
    _, simulated = run
    row = sweep(simulated, [dataclasses.replace(BASE, cost_round_trip=1.0)]).iloc[0]
    assert (row["fills"], row["net_return"], row["halted"]) == (0.0, 0.0, 0.0)
    assert np.isnan(row["sharpe"])
