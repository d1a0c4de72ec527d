"""From the warehouse to the bandit's market: a stored model's forecasts, their bars, and what else is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pandas as pd

from mlbot_core.backtest.dataset import BacktestRequest, compute
from mlbot_core.backtest.run import BacktestInput
from mlbot_core.backtest.setup import simulation_params
from mlbot_core.config import Settings
from mlbot_core.models.training import FORECAST_CHECKS, FORECASTS_TABLE
from mlbot_core.research.bandit_episodes import BanditMarket
from mlbot_core.warehouse import Warehouse, made_partitions, read_window, require


@dataclass(frozen=True, eq=False)
class LoadedMarket:
    """A model's market with where it came from."""

    market: BanditMarket
    source: str
    model_type: str
    model_version: str
    data: BacktestInput


def load_market(warehouse: Warehouse, request: BacktestRequest, settings: Settings) -> LoadedMarket:
    """Read the newest version's out-of-fold forecasts with everything that the bandit needs to know of their bars.

    Raises
    ------
    MissingDataError, QualityRefusedError
        As :func:`mlbot_core.backtest.dataset.compute`, whose checks apply and which counts the forecasts as a trial.
    """
    result, model = compute(warehouse, request, settings.fees, settings.risk)
    data = result.input
    with warehouse.read() as con:
        own = read_window(con, FORECASTS_TABLE, {**request.scope, "model_version": model.version}).to_pandas()
        others = _others(con, request, settings.models.meta.models)
    frame = pd.DataFrame({"ts": result.equity["ts"].to_numpy(dtype=np.int64)})
    for table, columns in (
        (data.bars, ["open", "high", "low", "close", "volume"]),
        (own, ["score", "score_sd", "p_down", "p_up"]),
        (data.targets.drop(columns="score"), ["width", "label", "t1"]),
    ):
        frame = frame.merge(table[["ts", *columns]], on="ts", how="left")
    frame["edge"] = frame["score"] * frame["width"]
    frame["edge_sd"] = frame["score_sd"] * frame["width"]
    frame["spread"] = _spread(frame, others)
    params = simulation_params(
        request.market,
        settings.fees,
        settings.risk,
        request.settle_delay_ms,
        data.latency_ms,
        unit=False,
        initial_nav=settings.bandit.evaluation.initial_nav,
    )
    funding = data.funding.dropna(subset=["rate"])
    return LoadedMarket(
        BanditMarket(
            frame.drop(columns=["score", "score_sd", "width"]),
            params,
            funding["ts"].to_numpy(dtype=np.int64),
            funding["rate"].to_numpy(dtype=np.float64),
        ),
        request.source,
        request.model_type,
        model.version,
        data,
    )


def _others(con: duckdb.DuckDBPyConnection, request: BacktestRequest, models: Sequence[str]) -> dict[str, pd.Series]:
    """Return the scores of other models of the same market, by bar; what failed a check is refused."""
    partitions = {f"{request.market}|{name}": name for name in models if name != request.model_type}
    made = [name for name in made_partitions(con, "forecasts", request.source) if name in partitions]
    accepted = require(con, "forecasts", request.source, made, FORECAST_CHECKS) if made else {}
    found = {}
    for partition, part in accepted.items():
        scope = {**request.market_scope, "model_type": partitions[partition]}
        table = read_window(con, FORECASTS_TABLE, scope | {"model_version": str(part.info["model_version"])})
        stored = table.select(["ts", "score"]).to_pandas()
        found[partitions[partition]] = stored.set_index("ts")["score"]
    return found


def _spread(frame: pd.DataFrame, others: dict[str, pd.Series]) -> np.ndarray:
    """Return the standard deviation of all models' edges on each bar, log return; NaN where fewer than two spoke."""
    columns = [frame["score"], *(series.reindex(frame["ts"]).reset_index(drop=True) for series in others.values())]
    scores = np.column_stack([column.to_numpy(dtype=np.float64) for column in columns])
    count = np.isfinite(scores).sum(axis=1)
    filled = np.where(np.isfinite(scores), scores, 0.0)
    mean = filled.sum(axis=1) / np.maximum(count, 1)
    square = (np.where(np.isfinite(scores), scores - mean[:, None], 0.0) ** 2).sum(axis=1) / np.maximum(count, 1)
    spread: np.ndarray = np.where(count >= 2, np.sqrt(square), np.nan) * frame["width"].to_numpy(dtype=np.float64)
    return spread
