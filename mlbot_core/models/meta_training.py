"""The meta-model's training set: out-of-fold forecasts of all models and timeframes, joined as of their close."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.clock import format_utc
from mlbot_core.config import MetaConfig, ModelsConfig
from mlbot_core.errors import MissingDataError
from mlbot_core.models.canonical import canonical_json, sha256_hex
from mlbot_core.models.meta import AGE, SCORE, MetaModel
from mlbot_core.models.training import (
    FORECAST_CHECKS,
    FORECASTS_TABLE,
    REGISTRY_TABLE,
    TrainOutcome,
    train_on,
)
from mlbot_core.models.training_data import TrainingSet, TrainRequest, load_training_set
from mlbot_core.models.walkforward import LeakError, Progress
from mlbot_core.timeframe import Market, Timeframe
from mlbot_core.warehouse import Warehouse, made_partitions, read_window, require

_CHOICES: Final = (
    "model_type",
    "feature_set",
    "targets",
    "walk_forward",
    "weights",
    "params",
    "test_start_ms",
    "asked_end_ms",
)


@dataclass(frozen=True, eq=False)
class BaseForecasts:
    """Out-of-fold forecasts of one base model.

    Parameters
    ----------
    name
        For instance ``4h_lightgbm``: names its columns.
    market, model_version
        What forecast.
    choices
        What a person chose of it: a part of the meta-model's own configuration.
    ts
        Open times of the forecast bars, UTC ms, ascending.
    score
        Barrier widths; NaN where there was no forecast.
    """

    name: str
    market: Market
    model_version: str
    choices: Mapping[str, Any]
    ts: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]


def train_meta(
    warehouse: Warehouse,
    request: TrainRequest,
    models: ModelsConfig,
    timeframes: Sequence[Timeframe],
    models_dir: Path,
    progress: Progress | None = None,
) -> TrainOutcome:
    """Stack the newest stored forecasts of every base model of the symbol, walk forward, and store the result.

    Raises
    ------
    MissingDataError, QualityRefusedError, LeakError
        As :func:`meta_training_set` and :func:`mlbot_core.models.training.train`.
    """
    data = meta_training_set(warehouse, request, models, timeframes)
    return train_on(warehouse, request, models, data, models_dir, progress)


def meta_training_set(
    warehouse: Warehouse, request: TrainRequest, models: ModelsConfig, timeframes: Sequence[Timeframe]
) -> TrainingSet:
    """Return the base forecasts that stood at each bar's close, beside what came of it.

    Parameters
    ----------
    timeframes
        Whose base forecasts to stack, as far as they are trained.

    Raises
    ------
    MissingDataError
        If no base model of the meta-model's own timeframe is trained.
    QualityRefusedError
        If forecasts or outcomes failed a check.
    LeakError
        If a base forecast was made by a model that had seen its bar.
    """
    wanted = [
        (Market(request.market.symbol, timeframe), model) for timeframe in timeframes for model in models.meta.models
    ]
    with warehouse.read() as con:
        bases = [base for market, model in wanted if (base := _read(con, request, market, model)) is not None]
    own = [base for base in bases if base.market == request.market]
    if not own:
        raise MissingDataError(
            f"no {' or '.join(models.meta.models)} model of {request.market} from {request.source} is trained, so "
            f"there is nothing to stack; run: mlbot train --source {request.source} "
            f"--interval {request.market.timeframe} --model {models.meta.models[0]}"
        )
    grid = np.unique(np.concatenate([base.ts for base in own]))
    stored = load_training_set(warehouse, request, models, MetaModel.target)
    grid = grid[np.isin(grid, stored.ts)]
    at = np.searchsorted(stored.ts, grid)
    X = stack(bases, grid, request.market.timeframe, models.meta.max_age_bars)
    # a bar that came late, or of which too little is known, is one that no decision had
    X.loc[~stored.usable[at]] = np.nan
    versions = {f"forecasts|{base.market}|{base.name}": base.model_version for base in bases}
    return TrainingSet(
        X,
        stored.y.iloc[at],
        stored.t0[at],
        np.asarray(np.isfinite(X.filter(like=SCORE).to_numpy()).any(axis=1)),
        {**stored.partitions, **versions},
        sha256_hex(canonical_json({base.name: dict(base.choices) for base in bases}))[:16],
    )


def base_timeframes(config: MetaConfig, configured: Sequence[Timeframe]) -> tuple[Timeframe, ...]:
    """Return the timeframes whose forecasts are stacked: the chosen ones, or every configured one.

    Raises
    ------
    UsageError
        If a chosen one is not a timeframe.
    """
    return tuple(Timeframe.parse(text) for text in config.timeframes) or tuple(configured)


def stack(
    bases: Sequence[BaseForecasts], grid: npt.NDArray[np.int64], timeframe: Timeframe, max_age_bars: int
) -> pd.DataFrame:
    """Return the base forecasts that stood at the close of every bar.

    A forecast of the bar that opened at u exists from ``u + its timeframe`` on; at coincident closes it counts, as the
    decision waits for it.

    Parameters
    ----------
    grid
        Open times of the meta-model's bars, UTC ms, ascending.
    timeframe
        Of the meta-model.
    max_age_bars
        Forecasts older than so many bars, of it or of the base where those are longer, are missing.

    Returns
    -------
    pd.DataFrame
        Indexed by ``grid``; for each base ``NAME_score`` (in barrier widths of ``timeframe``, as a constant drift
        would show there; NaN = missing) and ``NAME_age`` (bars since that forecast's bar closed, of the slower of the
        two; NaN = missing).
    """
    closes = grid + timeframe.ms
    columns: dict[str, npt.NDArray[np.float64]] = {}
    for base in bases:
        known = np.isfinite(base.score)
        made, score = base.ts[known] + base.market.timeframe.ms, base.score[known]
        at = np.searchsorted(made, closes, side="right") - 1
        there = at >= 0
        age = np.full(len(grid), np.nan)
        # a longer bar's forecast stands until its next one: age counts in the bars of the slower of the two
        slower = max(timeframe.ms, base.market.timeframe.ms)
        age[there] = (closes[there] - made[at[there]]) / slower
        fresh = there & (age <= max_age_bars)
        # a barrier is as wide as the square root of its horizon: one drift shows as scores in that ratio
        scale = math.sqrt(timeframe.ms / base.market.timeframe.ms)
        columns[base.name + SCORE] = np.where(fresh, scale * score[np.maximum(at, 0)] if len(score) else np.nan, np.nan)
        columns[base.name + AGE] = np.where(fresh, age, np.nan)
    return pd.DataFrame(columns, index=pd.Index(grid, name="ts"))


def _read(
    con: duckdb.DuckDBPyConnection, request: TrainRequest, market: Market, model_type: str
) -> BaseForecasts | None:
    """Return the newest accepted forecasts of a base model; None if it was never trained."""
    base = replace(request, market=market, model_type=model_type)
    if base.partition not in made_partitions(con, "forecasts", request.source):
        return None
    accepted = require(con, "forecasts", request.source, [base.partition], FORECAST_CHECKS)[base.partition]
    version = str(accepted.info["model_version"])
    registered = read_window(con, REGISTRY_TABLE, {**base.scope, "model_version": version}, order_by="created_at")
    rows = read_window(con, FORECASTS_TABLE, {**base.scope, "model_version": version}).to_pandas().sort_values("ts")
    if registered.num_rows == 0 or rows.empty:
        raise MissingDataError(
            f"the forecasts of {base.partition} from {request.source} are recorded but not stored; run: "
            f"mlbot train --source {request.source} --interval {market.timeframe} --model {model_type}"
        )
    ts = rows["ts"].to_numpy(dtype=np.int64)
    seen = rows["train_end_ms"].to_numpy(dtype=np.int64) > ts
    if seen.any():
        at = int(ts[int(np.argmax(seen))])
        raise LeakError(
            f"{base.partition} version {version[:12]}: the forecast of bar {format_utc(at)} was made by a model that "
            "was trained on later data; only out-of-fold forecasts may be stacked"
        )
    name = f"{market.timeframe}_{model_type}"
    inputs = json.loads(registered.column("inputs")[0].as_py())
    choices = {key: inputs[key] for key in _CHOICES}
    return BaseForecasts(name, market, version, choices, ts, rows["score"].to_numpy(dtype=np.float64))
