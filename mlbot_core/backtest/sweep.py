"""The same forecasts under many thresholds, sizes and costs, several accounts at a time.

Every set is one more trial: what a sweep finds best has been selected, and whoever reports it counts all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.backtest.metrics import annual_growth, daily_returns, max_drawdown
from mlbot_core.backtest.simulator import Simulation, SimulationParams
from mlbot_core.decision.state import HALTED
from mlbot_core.validation.significance import sharpe_ratio

FloatArray = npt.NDArray[np.float64]

VARIED = (
    "cost_round_trip",
    "cap",
    "fee",
    "slippage",
    "stop_distance",
    "rebalance_band",
    "delay_ms",
    "participation",
    "latency_bars",
    "maker_bars",
)


def sweep(
    simulated: Callable[[SimulationParams], Simulation], sets: Sequence[SimulationParams], *, threads: int = 1
) -> pd.DataFrame:
    """Simulate every parameter set and return one row a set.

    Only a few numbers of each are kept, so that memory does not grow with the number of sets.

    Parameters
    ----------
    simulated
        Runs one set, for instance ``lambda p: simulate(ts, open_, high, low, close, forecasts, p)``.
    sets
        Parameters.
    threads
        Sets at a time; the compiled loop releases the interpreter's lock.

    Returns
    -------
    pandas.DataFrame
        What was varied (:data:`VARIED`), then ``net_return``, ``sharpe`` (annual, daily returns), ``max_drawdown``,
        ``mar``, ``fills``, ``turnover_per_year`` (times NAV), ``fees``, ``slippage``, ``funding`` (USD) and ``halted``.
    """
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        rows = list(pool.map(lambda params: _row(params, simulated(params)), sets))
    return pd.DataFrame(rows)


def _row(params: SimulationParams, simulation: Simulation) -> dict[str, float]:
    start = params.initial_nav
    daily = daily_returns(simulation.ts, simulation.nav, start, simulation.flows)
    returns = daily["ret"].to_numpy()
    end = float(daily["growth"].iloc[-1]) if len(daily) else 1.0
    fall = max_drawdown(daily["growth"].to_numpy(), 1.0).depth
    growth = annual_growth(1.0, end, len(daily))
    sized = simulation.fills[simulation.fills["nav"] > 0]
    traded = float((sized["btc"] * sized["mid"] / sized["nav"]).sum())
    moved = len(returns) > 1 and bool(np.any(returns != returns[0]))
    return {
        **{name: float(getattr(params, name)) for name in VARIED},
        "net_return": end - 1.0,
        "sharpe": sharpe_ratio(returns) if moved else math.nan,
        "max_drawdown": fall,
        "mar": growth / fall if fall > 0 else math.nan,
        "fills": float(len(simulation.fills)),
        "turnover_per_year": traded * 365.0 / len(daily) if len(daily) else math.nan,
        "fees": float(simulation.fees.sum()),
        "slippage": float(simulation.slippage.sum()),
        "funding": float(simulation.funding.sum()),
        "halted": float(bool(len(simulation.level)) and simulation.level[-1] == HALTED),
    }
