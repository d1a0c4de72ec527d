"""What the newest version of a model rests on, and whether its forecasts still hold: computed, stored and judged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from mlbot_core.config import DriftConfig, Settings
from mlbot_core.config.models import META_MODEL
from mlbot_core.errors import MissingDataError
from mlbot_core.models.base import Model, blank_rows, model_class
from mlbot_core.models.explain import forecast_drift, lift_table, permutation_importance
from mlbot_core.models.fold_store import FoldStore
from mlbot_core.models.meta_training import base_timeframes, meta_training_set
from mlbot_core.models.training import FORECAST_CHECKS, FORECASTS_TABLE, REGISTRY_TABLE
from mlbot_core.models.training_data import TrainingSet, TrainRequest, load_training_set
from mlbot_core.targets import label_overlap
from mlbot_core.warehouse import (
    PartitionKey,
    PartitionOutcome,
    Verdict,
    Warehouse,
    data_version,
    made_partitions,
    read_window,
    record_partition,
    replace_window,
    require,
)

ASSET: Final = "explanations"
EXPLANATION_CHECKS: Final = ("forecast_drift",)
FEATURES_TABLE: Final = "explanations"
LIFT_TABLE: Final = "forecast_lift"
DRIFT_TABLE: Final = "forecast_drift"
FOLDS: Final = 3  # the newest ones, whose test rows are permuted and explained
_REPEATS: Final = 3
_BLOCKS: Final = (48, 24, 12)  # bars that are permuted together; four days of two-hour bars where they fit
_MIN_ROWS: Final = 60


@dataclass(frozen=True)
class Explained:
    """What a model rests on.

    Parameters
    ----------
    outcome
        What was stored.
    features
        ``feature``, ``gain_share`` (mean over all folds), ``permutation`` and ``permutation_sd`` (loss of skill when
        the feature is shuffled in time, out of fold, mean and deviation over the newest folds), ``contribution`` (mean
        absolute, in the unit of the model's explanations); greatest permutation importance first.
    lift
        :func:`mlbot_core.models.explain.lift_table` of all out-of-fold forecasts.
    drift
        :func:`mlbot_core.models.explain.forecast_drift` by fold.
    metric
        That the permutation importance is measured in.
    """

    outcome: PartitionOutcome
    features: pd.DataFrame
    lift: pd.DataFrame
    drift: pd.DataFrame
    metric: str


def explain_newest(warehouse: Warehouse, request: TrainRequest, settings: Settings) -> Explained:
    """Explain the newest stored version of a market and model type; see :func:`explain_stored`."""
    models = settings.models
    if request.model_type == META_MODEL:
        timeframes = base_timeframes(models.meta, settings.intervals.timeframes)
        data = meta_training_set(warehouse, request, models, timeframes)
    else:
        data = load_training_set(warehouse, request, models, model_class(request.model_type).target)
    return explain_stored(warehouse, request, data, models.drift, settings.models_dir)


def explain_stored(
    warehouse: Warehouse, request: TrainRequest, data: TrainingSet, bounds: DriftConfig, models_dir: Path
) -> Explained:
    """Explain the newest stored version by its fold models, on rows that trained none of them.

    Parameters
    ----------
    data
        What the version was trained on.
    bounds
        ``psi_alarm``: above it the forecasts of the newest fold have drifted.

    Raises
    ------
    MissingDataError
        If the model was never trained, its data has changed since, or its fold models are gone.
    QualityRefusedError
        If its forecasts failed a check.
    """
    again = (
        f"run: mlbot train --source {request.source} --interval {request.market.timeframe} --model {request.model_type}"
    )
    with warehouse.read() as con:
        accepted = require(con, "forecasts", request.source, [request.partition], FORECAST_CHECKS)[request.partition]
        version = str(accepted.info["model_version"])
        scope = {**request.scope, "model_version": version}
        registered = read_window(con, REGISTRY_TABLE, scope, order_by="created_at").to_pylist()
        forecasts = read_window(con, FORECASTS_TABLE, scope).to_pandas().sort_values("ts", ignore_index=True)
    if not registered or dict(json.loads(registered[-1]["inputs"])["partitions"]) != dict(data.partitions):
        raise MissingDataError(
            f"the data of {request.partition} has changed since version {version[:12]} was trained; {again}"
        )
    importance = pd.DataFrame(json.loads(registered[-1]["importance"]))
    newest = _judged_folds(forecasts, data)
    if not newest:
        raise MissingDataError(
            f"no fold of {request.partition} has {_MIN_ROWS} forecasts whose outcome is known yet; test a longer period"
        )
    store = FoldStore(models_dir, version, request.threads)
    parts = [_fold(store, int(fold), forecasts, data, again) for fold in newest]
    features = _features(importance, parts)
    outcome_rows = data.y.reindex(forecasts["ts"])
    settled = data.y["score_t1"].to_numpy(dtype=np.int64)
    overlap = label_overlap(data.t0, settled, request.market.timeframe.ms)
    lift = lift_table(forecasts, outcome_rows, overlap=overlap)
    drift = forecast_drift(forecasts)
    tables = {FEATURES_TABLE: features, LIFT_TABLE: lift, DRIFT_TABLE: drift.rename(columns={"column": "output"})}
    arrow = {
        name: pa.Table.from_pandas(t, preserve_index=False).replace_schema_metadata(None) for name, t in tables.items()
    }
    outcome = PartitionOutcome(
        PartitionKey(ASSET, request.source, request.partition),
        len(features),
        data_version(arrow[FEATURES_TABLE]),
        (_judge(drift, bounds),),
        {"model_version": version, "folds": [int(fold) for fold in newest]},
    )
    with warehouse.write() as con:
        for name, table in arrow.items():
            replace_window(con, name, scope, table)
        record_partition(con, outcome, now_ms=warehouse.clock.now_ms(), run_id=request.run_id)
    return Explained(outcome, features, lift, drift, str(parts[0][0]["metric"].iloc[0]))


def _judged_folds(forecasts: pd.DataFrame, data: TrainingSet) -> list[int]:
    """Return the newest folds with enough forecasts that can be compared with what came of them."""
    outcome = data.y["score"].reindex(forecasts["ts"]).to_numpy(dtype=np.float64)
    judged = forecasts.loc[np.isfinite(outcome) & np.isfinite(forecasts["score"].to_numpy(dtype=np.float64))]
    counts = judged.groupby("fold").size()
    return [int(fold) for fold in sorted(counts.index[counts >= _MIN_ROWS])][-FOLDS:]


def newest_version(con: duckdb.DuckDBPyConnection, source: str, partition: str) -> str | None:
    """Return the model version that was explained last, None where none was.

    Parameters
    ----------
    partition
        ``BTC-2h|lightgbm``.
    """
    if partition not in made_partitions(con, ASSET, source):
        return None
    return str(require(con, ASSET, source, [partition], ())[partition].info["model_version"])


def _fold(
    store: FoldStore, fold: int, forecasts: pd.DataFrame, data: TrainingSet, again: str
) -> tuple[pd.DataFrame, pd.Series]:
    """Return permutation importance and mean absolute contributions on a fold's own test rows."""
    model = store.load(fold)
    if model is None:
        raise MissingDataError(f"the model of fold {fold} of version {store.version[:12]} is not stored; {again}")
    tested = forecasts.loc[forecasts["fold"] == fold, "ts"].to_numpy(dtype=np.int64)
    at = np.flatnonzero(np.isin(data.ts, tested)).astype(np.int64)
    first = max(0, int(at[0]) - model.context_bars)
    X, y, rows = data.X.iloc[first : at[-1] + 1], data.y.iloc[first : at[-1] + 1], at - first
    return _permuted(model, X, y, rows), model.explain(X, rows).abs().mean()


def _permuted(model: Model, X: pd.DataFrame, y: pd.DataFrame, rows: Any) -> pd.DataFrame:
    # short last folds take the longest block that fits twice
    bars = int((~blank_rows(X.to_numpy(dtype=np.float64))).sum())
    block = next((bars_a_block for bars_a_block in _BLOCKS if 2 * bars_a_block <= bars), _BLOCKS[-1])
    return permutation_importance(model, X, y, rows, repeats=_REPEATS, block_bars=block)


def _features(importance: pd.DataFrame, parts: list[tuple[pd.DataFrame, pd.Series]]) -> pd.DataFrame:
    permuted = pd.concat([permutation for permutation, _ in parts]).groupby("feature")["importance"]
    contribution = pd.concat([contributions for _, contributions in parts], axis=1).mean(axis=1)
    table = pd.DataFrame(
        {"permutation": permuted.mean(), "permutation_sd": permuted.std(ddof=1), "contribution": contribution}
    ).drop(index="(base)", errors="ignore")
    table = table.join(importance.set_index("feature")["gain_share"]).rename_axis("feature").reset_index()
    order = ["feature", "gain_share", "permutation", "permutation_sd", "contribution"]
    return table[order].sort_values(["permutation", "feature"], ascending=[False, True], ignore_index=True)


def _judge(drift: pd.DataFrame, bounds: DriftConfig) -> Verdict:
    """Compare the newest fold's scores with all before it; what cannot be compared has not drifted."""
    newest = drift[drift["column"] == "score"].iloc[-1]
    psi = float(newest["psi"])
    alarm = (
        max(bounds.psi_alarm, float(newest["psi_chance"])) if np.isfinite(newest["psi_chance"]) else bounds.psi_alarm
    )
    detail = {
        "fold": str(newest["period"]),
        "psi": round(psi, 4) if np.isfinite(psi) else None,
        "alarm": round(alarm, 4),
    }
    return Verdict("forecast_drift", not psi > alarm, detail)
