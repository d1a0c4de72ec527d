"""The same orders and fills through code that nobody here wrote, on the archive's hourly BTC.

vectorbt keeps the books in this process; backtesting.py does in an environment of its own (``oracle/``), made once in
the git-ignored cache of the checkout.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlbot_core.backtest.portfolio import require_agreement, vectorbt_view
from mlbot_core.backtest.roundtrips import round_trips
from mlbot_core.backtest.simulator import Simulation, SimulationParams, simulate
from mlbot_core.timeframe import HOUR_MS

pytestmark = [pytest.mark.slow, pytest.mark.archive]

ORACLE = Path(__file__).resolve().parent / "oracle"
LOT = 0.001
FEE = 0.00055
NAV = 1_000_000.0
CENT = 0.005


@pytest.fixture(scope="module")
def oracle_python(oracle_environment: Callable[[str, Path], Path]) -> Path:
    """The interpreter of the oracle's environment."""
    return oracle_environment("backtesting", ORACLE / "requirements.txt")


@pytest.fixture(scope="module")
def bars(archive_dir: Path) -> pd.DataFrame:
    found = pd.read_parquet(archive_dir / "btcusdt_perp_1h.parquet")
    found["ts"] = found["ts"].dt.as_unit("ms").astype("int64")
    return found


def stream(n: int, sizes: tuple[float, ...], stay: float, seed: int) -> np.ndarray:
    """Random targets that stay for a while, flat at both ends."""
    rng = np.random.default_rng(seed)
    changes = rng.random(n) > stay
    target = np.array(sizes)[rng.integers(0, len(sizes), n)]
    target = pd.Series(np.where(changes, target, np.nan)).ffill().fillna(0.0).to_numpy(copy=True)
    target[:3] = target[-3:] = 0.0
    return target


def ours(bars: pd.DataFrame, target: np.ndarray, **more: Any) -> Simulation:
    params = {"timeframe_ms": HOUR_MS, "delay_ms": 0, "fee": FEE, "slippage": 0.0, "initial_nav": NAV, "lot": LOT}
    prices = (bars[name].to_numpy() for name in ("open", "high", "low", "close"))
    return simulate(bars["ts"].to_numpy(), *prices, target, SimulationParams(**(params | more)))


def replayed(python: Path, bars: pd.DataFrame, simulation: Simulation, tmp_path: Path) -> dict[str, Any]:
    """The simulation's fills, in lots, as orders through backtesting.py."""
    lots = simulation.fills["side"] * simulation.fills["btc"] / LOT
    whole = lots.round().astype("int64")
    assert (lots - whole).abs().max() < 1e-6
    size = np.zeros(len(bars), dtype=np.int64)
    size[simulation.fills["bar"]] = whole
    orders, result = tmp_path / "orders.npz", tmp_path / "result.json"
    # backtesting.py trades whole units only: a unit is a lot, and its price that of a lot
    prices = {name: bars[name].to_numpy() * LOT for name in ("open", "high", "low", "close")}
    np.savez(orders, size=size, cash=NAV, commission=FEE, **prices)
    command = [str(python), str(ORACLE / "replay.py"), str(orders), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def test_backtesting_py_earns_the_same_cent_on_changing_sizes(
    oracle_python: Path, bars: pd.DataFrame, tmp_path: Path
) -> None:
    sim = ours(bars, stream(len(bars), (0.0, 0.1, -0.1, 0.5, -0.5), 0.95, 7))
    trips = round_trips(sim, float(bars["close"].iloc[-1]))
    found = replayed(oracle_python, bars, sim, tmp_path)
    # a change of size on the same side splits a trade there; trades are compared one by one in the other test
    reversals = (trips["opened"].iloc[1:].to_numpy() == trips["closed"].iloc[:-1].to_numpy()).sum()
    assert reversals > 100
    assert abs(found["final_equity"] - sim.nav[-1]) < CENT


def test_every_round_trip_is_the_same_trade(oracle_python: Path, bars: pd.DataFrame, tmp_path: Path) -> None:
    sim = ours(bars, stream(len(bars), (0.0, 0.8, -0.8), 0.95, 11))
    trips = round_trips(sim, float(bars["close"].iloc[-1]))
    found = replayed(oracle_python, bars, sim, tmp_path)
    assert found["trades"] == len(trips) > 800
    theirs = pd.DataFrame({k: found[k] for k in ("entry_bar", "exit_bar", "entry_price", "exit_price", "size", "pnl")})
    theirs = theirs.sort_values("entry_bar", ignore_index=True)
    ts = bars["ts"].to_numpy()
    assert ts[theirs["entry_bar"]].tolist() == trips["opened"].tolist()
    assert ts[theirs["exit_bar"]].tolist() == trips["closed"].tolist()
    np.testing.assert_allclose(theirs["entry_price"] / LOT, trips["entry"], rtol=1e-12)
    np.testing.assert_allclose(theirs["exit_price"] / LOT, trips["exit"], rtol=1e-12)
    np.testing.assert_allclose(theirs["size"].abs() * LOT, trips["btc"], rtol=1e-12)
    assert np.sign(theirs["size"]).tolist() == trips["side"].tolist()
    net = float(trips["pnl"].sum())
    assert abs(net - (sim.nav[-1] - NAV)) < CENT
    assert abs(found["final_equity"] - NAV - net) < CENT
    assert abs(sum(found["commission"]) - sim.fees.sum()) < CENT
    # and at every bar on the way, a hundredth of a cent of rounding a trade aside
    assert np.max(np.abs(np.array(found["equity"]) - sim.nav)) < CENT


def test_vectorbt_counts_the_same_trades_and_earns_the_same_cent(bars: pd.DataFrame) -> None:
    target = stream(len(bars), (0.0, 0.8, -0.8, 0.3), 0.95, 13)
    # without the limits, and with partial fills, trims, stops and the day's limit
    volume = bars["volume"].to_numpy() * 1e-3
    plain = ours(bars, target)
    prices = [bars[name].to_numpy() for name in ("open", "high", "low", "close")]
    params = SimulationParams(
        timeframe_ms=HOUR_MS,
        delay_ms=6_000,
        settle_ms=5_000,
        fee=FEE,
        slippage=0.0002,
        impact=0.007,
        participation=0.05,
        initial_nav=NAV,
        cap=0.8,
        daily_loss=0.03,
        rebalance_band=0.1,
        stop_distance=0.1,
        lot=LOT,
        tick=0.1,
        min_notional=5.0,
    )
    limited = simulate(bars["ts"].to_numpy(), *prices, target, params, volume=volume)
    assert {"target", "drift", "trim", "stop", "risk"} == set(limited.fills["reason"])
    for sim in (plain, limited):
        view = vectorbt_view(sim, bars["close"].to_numpy())
        require_agreement(view)
        trips = round_trips(sim, float(bars["close"].iloc[-1]))
        assert view.trades["count"] == (trips["closed"] > 0).sum() > 800
        assert abs(view.equity[-1] - sim.nav[-1]) < CENT
