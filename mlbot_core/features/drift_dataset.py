"""Stored drift: the features of a month against the training window of a model, with verdicts that others obey."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlbot_core.clock import format_utc
from mlbot_core.config import DriftConfig, FeatureConfig
from mlbot_core.errors import MissingDataError
from mlbot_core.features.dataset import FEATURE_CHECKS, DatasetRequest, table_name
from mlbot_core.features.drift import Reference, RowScores, decidable, feature_drift, fit_reference, row_scores
from mlbot_core.features.registry import FeatureSet
from mlbot_core.features.sets import configured_set
from mlbot_core.timeframe import DAY_MS, Market, Month
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
from mlbot_core.warehouse.ingest import partition_name
from mlbot_core.warehouse.partitions import verdicts

DRIFT_TABLE: Final = "feature_drift"
ROWS_TABLE: Final = "feature_ood"
DRIFT_CHECKS: Final = ("drift", "ood")
_MODELS_TABLE: Final = "models"
_WORST: Final = 5


@dataclass(frozen=True)
class TrainingWindow:
    """What a stored model's newest fit was trained on.

    Parameters
    ----------
    model_type, model_version
        Which model.
    start_ms, end_ms
        Open times of its training rows, UTC ms, end exclusive.
    feature_hash
        Of the feature set it reads.
    """

    model_type: str
    model_version: str
    start_ms: int
    end_ms: int
    feature_hash: str


def asset_name(model_type: str) -> str:
    """Return the asset under which the drift verdicts of a model type are filed, by market and month."""
    return f"drift_{model_type}"


def training_window(
    con: duckdb.DuckDBPyConnection, source: str, market: Market, model_type: str, model_version: str | None = None
) -> TrainingWindow:
    """Return the training window of a registered model version, by default of the newest one.

    Raises
    ------
    MissingDataError
        If there is no such model.
    """
    scope = {
        "source": source,
        "symbol": market.symbol,
        "timeframe": str(market.timeframe),
        "model_type": model_type,
        **({} if model_version is None else {"model_version": model_version}),
    }
    rows = read_window(con, _MODELS_TABLE, scope, order_by="created_at").to_pylist()
    if not rows:
        raise MissingDataError(
            f"there is no {model_type} model of {market} from {source}"
            f"{'' if model_version is None else f' with version {model_version}'}; run: mlbot train"
        )
    row = rows[-1]
    inputs = json.loads(row["inputs"])
    end_ms = int(row["end_ms"])
    start_ms = end_ms - int(inputs["walk_forward"]["train_days"]) * DAY_MS
    return TrainingWindow(model_type, str(row["model_version"]), start_ms, end_ms, str(inputs["feature_set"]))


def training_reference(
    con: duckdb.DuckDBPyConnection, request: DatasetRequest, features: FeatureSet, window: TrainingWindow
) -> Reference:
    """Read the stored features of a training window and describe them; for a live decision too, once a model.

    Raises
    ------
    MissingDataError
        If the model reads another feature set, or its months are not stored any more.
    QualityRefusedError
        If one of the months failed a check.
    """
    if window.feature_hash != features.hash:
        raise MissingDataError(
            f"model {window.model_version[:12]} reads feature set {window.feature_hash}, configured is "
            f"{features.name} {features.hash}; train again, or restore the configuration it was trained with"
        )
    made = set(made_partitions(con, "features", request.source))
    months = [partition_name(request.market, month) for month in Month.span(window.start_ms, window.end_ms)]
    require(con, "features", request.source, [name for name in months if name in made], FEATURE_CHECKS)
    _, matrix = _read(con, request, features, window.start_ms, window.end_ms)
    served = np.asarray(np.isfinite(matrix).any(axis=0), dtype=np.bool_)
    return fit_reference(matrix[decidable(matrix, served)], features.names)


def materialize_drift(
    warehouse: Warehouse,
    request: DatasetRequest,
    config: FeatureConfig,
    bounds: DriftConfig,
    model_type: str,
    model_version: str | None = None,
) -> list[PartitionOutcome]:
    """Compare the stored features of the requested months with a model's training window, store it and judge it.

    Rows go to ``feature_drift`` (one a month and feature) and ``feature_ood`` (one a bar that knows enough features);
    the verdicts ``drift`` and ``ood`` are filed under ``drift_<model type>`` by market and month. A month inside the
    training window is compared as well: that is what no drift looks like.

    Raises
    ------
    MissingDataError
        If the model or the features are not stored, or they do not belong together.
    QualityRefusedError
        If a month of features failed a check.
    """
    features = configured_set(config)
    with warehouse.read() as con:
        window = training_window(con, request.source, request.market, model_type, model_version)
        require(
            con,
            "features",
            request.source,
            [partition_name(request.market, month) for month in request.months],
            FEATURE_CHECKS,
        )
        reference = training_reference(con, request, features, window)
        read = [_read(con, request, features, month.start_ms, month.end_ms) for month in request.months]
    outcomes = [
        _compare(request, month, window, reference, bounds, ts, matrix)
        for month, (ts, matrix) in zip(request.months, read, strict=True)
    ]
    scope = {**request.scope, "model_type": model_type, "model_version": window.model_version}
    with warehouse.write() as con:
        for month, (outcome, drifted, rows) in zip(request.months, outcomes, strict=True):
            bound = {"start_ms": month.start_ms, "end_ms": month.end_ms}
            replace_window(con, DRIFT_TABLE, scope, drifted, **bound)
            replace_window(con, ROWS_TABLE, scope, rows, **bound)
            record_partition(con, outcome, now_ms=warehouse.clock.now_ms(), run_id=request.run_id)
    return [outcome for outcome, _, _ in outcomes]


def newest_verdicts(
    con: duckdb.DuckDBPyConnection, source: str, market: Market, model_type: str
) -> tuple[Month | None, dict[str, Verdict]]:
    """Return the newest month that was judged for a market and model type, and its verdicts; for the risk state."""
    prefix = f"{market}|"
    months = [
        Month.parse(name.removeprefix(prefix))
        for name in made_partitions(con, asset_name(model_type), source)
        if name.startswith(prefix)
    ]
    if not months:
        return None, {}
    newest = max(months)
    return newest, verdicts(con, PartitionKey(asset_name(model_type), source, partition_name(market, newest)))[1]


def _read(
    con: duckdb.DuckDBPyConnection, request: DatasetRequest, features: FeatureSet, start_ms: int, end_ms: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    table = read_window(con, table_name(features), request.scope, start_ms=start_ms, end_ms=end_ms)
    others = set(table.column("feature_hash").to_pylist()) - {features.hash}
    if table.num_rows == 0 or others:
        have = f"of feature set {', '.join(sorted(map(str, others)))}" if others else "none"
        raise MissingDataError(
            f"stored features of {request.market} from {request.source} between {format_utc(start_ms)} and "
            f"{format_utc(end_ms)}: {have}, wanted {features.hash}; run: mlbot features"
        )
    columns = [table.column(name).to_numpy().astype(np.float64) for name in features.names]
    return table.column("ts").to_numpy().astype(np.int64), np.column_stack(columns)


def _compare(
    request: DatasetRequest,
    month: Month,
    window: TrainingWindow,
    reference: Reference,
    bounds: DriftConfig,
    ts: npt.NDArray[np.int64],
    matrix: npt.NDArray[np.float64],
) -> tuple[PartitionOutcome, pa.Table, pa.Table]:
    """Return the month's outcome and its rows for the two tables."""
    # nothing is decided on a row that is mostly empty, so it is not compared either
    rows = decidable(matrix, reference.active)
    ts, matrix = ts[rows], matrix[rows]
    found = feature_drift(reference, matrix)
    psi, chance = (found[name].to_numpy(dtype=np.float64) for name in ("psi", "psi_chance"))
    drifted = np.isfinite(psi) & (psi > bounds.psi_alarm) & (psi > np.nan_to_num(chance))
    scores = row_scores(reference, matrix)
    by_feature = pa.table(
        {
            "ts": pa.array(np.full(len(found), month.start_ms), pa.int64()),
            "feature": pa.array(found["feature"].tolist(), pa.string()),
            **{
                name: pa.array(found[name].to_numpy(dtype=np.float64), from_pandas=True)
                for name in found.columns
                if name != "feature"
            },
            "drifted": pa.array(drifted),
        }
    )
    by_row = pa.table(
        {
            "ts": pa.array(ts),
            "distance": pa.array(scores.distance),
            "score": pa.array(scores.score),
            "outside_share": pa.array(scores.outside, from_pandas=True),
        }
    )
    checks = _judge(found["feature"].tolist(), psi, drifted, scores, bounds)
    info = {
        "model_version": window.model_version,
        "train_start": format_utc(window.start_ms),
        "train_end": format_utc(window.end_ms),
        "feature_hash": window.feature_hash,
        "training_rows": reference.rows,
        "bounds": bounds.model_dump(),
    }
    key = PartitionKey(asset_name(window.model_type), request.source, partition_name(request.market, month))
    version = data_version(by_feature)
    return PartitionOutcome(key, by_row.num_rows, version, checks, info), by_feature, by_row


def _judge(
    names: Sequence[str],
    psi: npt.NDArray[np.float64],
    drifted: npt.NDArray[np.bool_],
    scores: RowScores,
    bounds: DriftConfig,
) -> tuple[Verdict, ...]:
    rows = len(scores.score)
    known = int(np.isfinite(psi).sum())
    share = float(drifted.sum() / known) if known else 0.0
    far = float((scores.score >= bounds.row_quantile).mean()) if rows else 0.0
    judged = rows >= bounds.min_rows
    worst = np.argsort(-np.nan_to_num(psi), kind="stable")[:_WORST]
    note: dict[str, Any] = {} if judged else {"note": f"{rows} rows are too few to judge"}
    return (
        Verdict(
            "drift",
            share <= bounds.max_drifted_share or not judged,
            {
                "features": known,
                "drifted": int(drifted.sum()),
                "share": round(share, 4),
                "worst": {names[at]: round(float(psi[at]), 3) for at in worst},
                **note,
            },
        ),
        Verdict(
            "ood",
            far <= bounds.max_row_share or not judged,
            {
                "rows": rows,
                "share_beyond": round(far, 4),
                "median_score": round(float(np.median(scores.score)), 4) if rows else None,
                **note,
            },
        ),
    )
