"""From stored features and outcomes to out-of-fold forecasts, a stored model and a row in the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa

from mlbot_core.clock import format_utc
from mlbot_core.config import ModelsConfig, WalkForwardConfig
from mlbot_core.errors import MissingDataError
from mlbot_core.models.base import create_model, model_class
from mlbot_core.models.fold_store import FoldStore
from mlbot_core.models.training_data import TrainingSet, TrainRequest, load_training_set, period_to_test
from mlbot_core.models.version import VersionInputs, code_of, library_versions, model_version
from mlbot_core.models.walkforward import Progress, WalkForwardResult, walk_forward
from mlbot_core.targets.weights import sample_weights
from mlbot_core.timeframe import DAY_MS, Market
from mlbot_core.validation.splits import WalkForward, WalkForwardSplit
from mlbot_core.warehouse import (
    PartitionKey,
    PartitionOutcome,
    Verdict,
    Warehouse,
    data_version,
    read_window,
    record_partition,
    replace_window,
)

FORECAST_CHECKS = ("duplicates", "purge", "coverage")
FORECASTS_TABLE = "forecasts"
REGISTRY_TABLE = "models"

# a walk forward that leaves out more of its bars than this has no claim to speak for the period
_MIN_COVERAGE: Final = 0.95
# these hold the interpreter or the global thread pool while they train: their folds follow one another
_ONE_AT_A_TIME: Final = frozenset({"tft", "meta"})


@dataclass(frozen=True)
class TrainOutcome:
    """A finished training: its record, and what a person wants to see of it.

    Parameters
    ----------
    outcome
        What was stored.
    version, inputs
        The model version and everything that it is the hash of.
    period
        That was tested, UTC ms, [start, end).
    result, split
        Forecasts, scores and models; folds and skipped windows.
    """

    outcome: PartitionOutcome
    version: str
    inputs: Mapping[str, Any]
    period: tuple[int, int]
    result: WalkForwardResult
    split: WalkForwardSplit


def train(
    warehouse: Warehouse,
    request: TrainRequest,
    models: ModelsConfig,
    models_dir: Path,
    progress: Progress | None = None,
) -> TrainOutcome:
    """Walk forward over the stored months, store forecasts and the newest model, and register the version.

    The same data, configuration, code and libraries give the same version and the same bytes. A run that was killed
    goes on after the folds it had finished.

    Raises
    ------
    MissingDataError
        If features or labels are absent, of another feature set, or too short for one fold.
    QualityRefusedError
        If a month failed a check.
    LeakError
        If a training label reaches into its test window.
    """
    data = load_training_set(warehouse, request, models, model_class(request.model_type).target)
    return train_on(warehouse, request, models, data, models_dir, progress)


def train_on(
    warehouse: Warehouse,
    request: TrainRequest,
    models: ModelsConfig,
    data: TrainingSet,
    models_dir: Path,
    progress: Progress | None = None,
) -> TrainOutcome:
    """Walk forward over a training set; see :func:`train`."""
    schedule = models.walk_forward.of(request.model_type)
    period = period_to_test(data, request, schedule.min_train_days)
    split = WalkForward(schedule).split(data.t0, data.t1, *period, request.market.timeframe)
    if not len(split):
        reasons = "; ".join(dict.fromkeys(skip.reason for skip in split.skipped)) or "no test window"
        raise MissingDataError(
            f"{request.market} from {request.source} has too little history for one fold between "
            f"{format_utc(period[0])} and {format_utc(period[1])}: {reasons}; backfill earlier months"
        )
    version, inputs = version_of(request, models, data, schedule, period)
    jobs = 1 if request.model_type in _ONE_AT_A_TIME else min(request.threads, len(split))
    threads = max(1, request.threads // jobs)
    recent = data.ts >= period[1] - schedule.train_days * DAY_MS
    oldest = models.weights.oldest
    result = walk_forward(
        data.X,
        data.y,
        list(split),
        lambda: create_model(request.model_type, models, threads),
        progress,
        model_version=version,
        weights=lambda rows: sample_weights(data.t0[rows], data.t1[rows], request.market.timeframe.ms, oldest),
        final_idx=np.flatnonzero((data.t1 >= 0) & recent & (data.t1 <= period[1])),
        store=FoldStore(models_dir, version, threads),
        jobs=jobs,
    )
    forecasts = result.forecasts.drop(columns="model_version")
    table = pa.Table.from_pandas(forecasts, preserve_index=False).replace_schema_metadata(None)
    outcome = PartitionOutcome(
        PartitionKey("forecasts", request.source, request.partition),
        table.num_rows,
        data_version(table),
        _judge(forecasts, result, split, request.market, period),
        {
            "model_version": version,
            "folds": len(split),
            "skipped_folds": len(split.skipped),
            "rows": len(data.usable),
            "unusable_rows": int((~data.usable).sum()),
        },
    )
    registered = _registry_row(request, inputs, result, period, warehouse.clock.now_ms(), version)
    with warehouse.write() as con:
        replace_window(con, FORECASTS_TABLE, {**request.scope, "model_version": version}, table)
        replace_window(con, REGISTRY_TABLE, {**request.scope, "model_version": version}, registered)
        record_partition(con, outcome, now_ms=warehouse.clock.now_ms(), run_id=request.run_id)
        every = read_window(con, REGISTRY_TABLE, request.scope, order_by="created_at", columns=("model_version",))
    # forecasts of superseded versions are used no more: their fold models would only fill the disk
    for old in set(every.column("model_version").to_pylist()) - {version}:
        FoldStore(models_dir, str(old)).forget_folds()
    return TrainOutcome(outcome, version, inputs, period, result, split)


def version_of(
    request: TrainRequest,
    models: ModelsConfig,
    data: TrainingSet,
    schedule: WalkForwardConfig,
    period: tuple[int, int],
) -> tuple[str, dict[str, Any]]:
    """Return the model version and everything it is the hash of."""
    params = getattr(models, request.model_type).model_dump(mode="json")
    inputs = VersionInputs(
        code=code_of(request.model_type),
        market=str(request.market),
        source=request.source,
        partitions=data.partitions,
        test_start_ms=period[0],
        test_end_ms=period[1],
        asked_end_ms=request.end_ms,
        feature_set=data.feature_set,
        targets=models.targets.model_dump(mode="json"),
        walk_forward=schedule.model_dump(mode="json", exclude={"models"}),
        weights=models.weights.model_dump(mode="json"),
        model_type=request.model_type,
        params=params,
        seed=int(params["seed"]),
        libraries=library_versions(request.model_type),
    )
    return model_version(inputs), inputs.as_json()


def _judge(
    forecasts: pd.DataFrame,
    result: WalkForwardResult,
    split: WalkForwardSplit,
    market: Market,
    period: tuple[int, int],
) -> tuple[Verdict, ...]:
    """Check the outcome against the calendar, not against what happened to be stored."""
    repeated = int(forecasts["ts"].duplicated().sum())
    first_test = result.fold_table["test_start_ms"].to_numpy(dtype=np.int64)
    last_label = result.fold_table["last_label_ms"].to_numpy(dtype=np.int64)
    reaching = int((last_label > first_test).sum())
    skipped = sum(len(market.timeframe.opens_between(s.test_start_ms, s.test_end_ms)) for s in split.skipped)
    expected = len(market.timeframe.opens_between(*period)) - skipped
    made = int(np.isfinite(forecasts["score"].to_numpy(dtype=np.float64)).sum())
    share = made / expected if expected else 0.0
    return (
        Verdict("duplicates", repeated == 0, {"rows": len(forecasts), "repeated": repeated}),
        Verdict("purge", reaching == 0, {"folds": len(first_test), "labels_reaching_into_a_test": reaching}),
        Verdict("coverage", share >= _MIN_COVERAGE, {"bars": expected, "forecasts": made, "share": round(share, 4)}),
    )


def _registry_row(
    request: TrainRequest,
    inputs: dict[str, Any],
    result: WalkForwardResult,
    period: tuple[int, int],
    now_ms: int,
    version: str,
) -> pa.Table:
    return pa.table(
        {
            "created_at": pa.array([now_ms], pa.int64()),
            "start_ms": pa.array([period[0]], pa.int64()),
            "end_ms": pa.array([period[1]], pa.int64()),
            "stage": ["candidate"],
            "artefact": [f"models/{version}"],
            "inputs": [json.dumps(inputs, sort_keys=True)],
            "folds": [result.fold_table.to_json(orient="records")],
            "importance": [result.importance.to_json(orient="records")],
            "run_id": [request.run_id],
        }
    )
