"""From stored features and labels to out-of-fold forecasts, a stored model and a row in the registry."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from mlbot_core.clock import format_utc
from mlbot_core.config import ModelsConfig
from mlbot_core.errors import MissingDataError
from mlbot_core.features import FeatureSet
from mlbot_core.features.dataset import CODE_ROOMS as FEATURE_ROOMS
from mlbot_core.features.dataset import FEATURE_CHECKS, DatasetRequest, input_series, table_name
from mlbot_core.features.sets import configured_set
from mlbot_core.models.base import create_model
from mlbot_core.models.version import VersionInputs, code_version, library_versions, model_version
from mlbot_core.models.walkforward import Progress, WalkForwardResult, walk_forward
from mlbot_core.targets import average_uniqueness, target_lookback
from mlbot_core.targets.dataset import CODE_ROOMS as TARGET_ROOMS
from mlbot_core.targets.dataset import TABLE as TARGETS_TABLE
from mlbot_core.targets.dataset import TARGET_CHECKS
from mlbot_core.timeframe import DAY_MS, Market, Month
from mlbot_core.validation.splits import WalkForward, WalkForwardSplit
from mlbot_core.warehouse import (
    Accepted,
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
from mlbot_core.warehouse.inputs import current_versions, fingerprint

FORECAST_CHECKS = ("duplicates", "purge", "coverage")
FORECASTS_TABLE = "forecasts"
REGISTRY_TABLE = "models"

# a walk forward that leaves out more of its bars than this has no claim to speak for the period
_MIN_COVERAGE = 0.95
# a row with less of its features known than this is a warm-up or an outage: nothing is learnt or decided on it
_MIN_FINITE = 0.9


@dataclass(frozen=True)
class TrainRequest:
    """What to train and over which test period.

    Parameters
    ----------
    start_ms, end_ms
        Walk-forward test period by open time of bars, UTC ms; None: as early as the shortest training history
        allows, and to the end of the stored months.
    settle_delay_ms
        From a bar's close to its decision; stored months must have been made with the same.
    threads
        Cores the model may use; the bytes of a model do not depend on it.
    """

    source: str
    market: Market
    model_type: str
    start_ms: int | None
    end_ms: int | None
    settle_delay_ms: int
    known_by_ms: int
    threads: int
    run_id: str

    @property
    def partition(self) -> str:
        """Partition of the model assets: ``BTC-2h|lightgbm``."""
        return f"{self.market}|{self.model_type}"

    @property
    def scope(self) -> dict[str, str]:
        """Columns that identify this model's rows, whatever its version."""
        return {
            "source": self.source,
            "symbol": self.market.symbol,
            "timeframe": str(self.market.timeframe),
            "model_type": self.model_type,
        }


@dataclass(frozen=True)
class TrainOutcome:
    """A finished training: its record, and what a person wants to see of it."""

    outcome: PartitionOutcome
    version: str
    result: WalkForwardResult
    split: WalkForwardSplit


@dataclass(frozen=True)
class _Dataset:
    """Aligned features and targets; rows that no decision can rest on have no feature at all."""

    features: pd.DataFrame
    targets: pd.DataFrame
    usable: npt.NDArray[np.bool_]
    versions: dict[str, str]


def train(
    warehouse: Warehouse,
    request: TrainRequest,
    models: ModelsConfig,
    models_dir: Path,
    progress: Progress | None = None,
) -> TrainOutcome:
    """Walk forward over the stored months, store forecasts and the newest model, and register the version.

    The same data, configuration, code and libraries give the same version and the same bytes.

    Raises
    ------
    MissingDataError
        If features or labels are absent, of another feature set, or too short for one fold.
    QualityRefusedError
        If a month failed a check.
    LeakError
        If a training label reaches into its test window.
    """
    features = configured_set(models.features)
    data = _load(warehouse, request, models, features)
    start_ms, end_ms = _period(data, request, models)
    t0 = data.targets["t0"].to_numpy(dtype=np.int64)
    t1 = data.targets["tb_t1"].to_numpy(dtype=np.int64)
    split = WalkForward(models.walk_forward).split(t0, t1, start_ms, end_ms, request.market.timeframe)
    if not len(split):
        reasons = "; ".join(dict.fromkeys(skip.reason for skip in split.skipped)) or "no test window"
        raise MissingDataError(
            f"{request.market} from {request.source} has too little history for one fold between "
            f"{format_utc(start_ms)} and {format_utc(end_ms)}: {reasons}; backfill earlier months"
        )
    version, inputs = _version(request, models, features, data, (start_ms, end_ms))
    known = t1 >= 0
    recent = data.targets["ts"].to_numpy(dtype=np.int64) >= end_ms - models.walk_forward.train_days * DAY_MS
    result = walk_forward(
        data.features,
        data.targets,
        list(split),
        lambda: create_model(request.model_type, models, request.threads),
        progress,
        model_version=version,
        weights=lambda rows: average_uniqueness(t0[rows], t1[rows], request.market.timeframe.ms),
        feature_names=list(features.names),
        final_idx=np.flatnonzero(known & recent & (t1 <= end_ms)),
    )
    if result.final_model is not None:
        result.final_model.save(models_dir / version)
    forecasts = result.forecasts.drop(columns="model_version")
    table = pa.Table.from_pandas(forecasts, preserve_index=False).replace_schema_metadata(None)
    outcome = PartitionOutcome(
        PartitionKey("forecasts", request.source, request.partition),
        table.num_rows,
        data_version(table),
        _judge(forecasts, result, split, request.market, (start_ms, end_ms)),
        {
            "model_version": version,
            "folds": len(split),
            "skipped_folds": len(split.skipped),
            "rows": len(data.usable),
            "unusable_rows": int((~data.usable).sum()),
        },
    )
    registered = _registry_row(request, version, inputs, result, (start_ms, end_ms), warehouse.clock.now_ms())
    with warehouse.write() as con:
        replace_window(con, FORECASTS_TABLE, {**request.scope, "model_version": version}, table)
        replace_window(con, REGISTRY_TABLE, {**request.scope, "model_version": version}, registered)
        record_partition(con, outcome, now_ms=warehouse.clock.now_ms(), run_id=request.run_id)
    return TrainOutcome(outcome, version, result, split)


def _load(warehouse: Warehouse, request: TrainRequest, models: ModelsConfig, features: FeatureSet) -> _Dataset:
    dataset = DatasetRequest(
        request.source, request.market, (), request.settle_delay_ms, request.known_by_ms, request.run_id
    )
    prefix = f"{request.market}|"
    with warehouse.read() as con:
        months = sorted(
            Month.parse(name.removeprefix(prefix))
            for name in made_partitions(con, "features", request.source)
            if name.startswith(prefix)
        )
        if request.start_ms is not None:
            reach = request.start_ms - (models.walk_forward.train_days + 1) * DAY_MS
            months = [month for month in months if month.end_ms > reach]
        if request.end_ms is not None:
            end_ms = request.end_ms
            months = [month for month in months if month.start_ms < end_ms]
        if not months:
            raise MissingDataError(
                f"no features of {request.market} from {request.source} are stored; run: "
                f"mlbot backfill --source {request.source} --interval {request.market.timeframe}"
            )
        names = [partition_name(request.market, month) for month in months]
        accepted = {
            "features": require(con, "features", request.source, names, FEATURE_CHECKS),
            "targets": require(con, "targets", request.source, names, TARGET_CHECKS),
        }
        start_ms, stop_ms = months[0].start_ms, months[-1].end_ms
        current = current_versions(con, request.source, request.market)
        series = {"features": input_series(con, dataset, features), "targets": ("price",)}
        x = read_window(con, table_name(features), dataset.scope, start_ms=start_ms, end_ms=stop_ms)
        y = read_window(con, TARGETS_TABLE, dataset.scope, start_ms=start_ms, end_ms=stop_ms)
    _require_current(request, models, features, dataset, accepted, current, series)
    joined = x.to_pandas().merge(y.select(list(_TARGETS)).to_pandas(), on="ts", validate="one_to_one")
    matrix = joined[list(features.names)].to_numpy(dtype=np.float64, copy=True)
    usable = _usable(matrix) & ~joined["late"].to_numpy(dtype=np.bool_)
    matrix[~usable] = np.nan
    rows = pd.DataFrame(matrix, columns=list(features.names))
    rows.insert(0, "ts", joined["ts"].to_numpy(dtype=np.int64))
    versions = {f"{asset}|{name}": part.version for asset, parts in accepted.items() for name, part in parts.items()}
    return _Dataset(rows, joined[list(_TARGETS)], usable, versions)


_TARGETS = ("ts", "t0", "tb_label", "tb_t1", "tb_ret", "tb_width")


def _usable(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return which rows know enough: most of the features that have any value at all in these data."""
    known = np.isfinite(matrix)
    served = known.any(axis=0)
    return np.asarray(known[:, served].mean(axis=1) >= _MIN_FINITE) if served.any() else np.zeros(len(matrix), np.bool_)


def _require_current(
    request: TrainRequest,
    models: ModelsConfig,
    features: FeatureSet,
    dataset: DatasetRequest,
    accepted: dict[str, dict[str, Accepted]],
    current: dict[str, str],
    series: dict[str, tuple[str, ...]],
) -> None:
    """Refuse months whose definition, code, decision delay or raw input is not today's any more.

    Raises
    ------
    MissingDataError
        Naming how many, the first one, and the command that makes them again.
    """
    reach = {"features": (features.lookback, 0), "targets": (target_lookback(models.targets), models.targets.reach)}
    wanted: dict[str, dict[str, Any]] = {
        "features": {"feature_hash": features.hash, "code": code_version(rooms=FEATURE_ROOMS)},
        "targets": {"target_config": models.targets.model_dump(), "code": code_version(rooms=TARGET_ROOMS)},
    }
    stale: list[str] = []
    for asset, parts in accepted.items():
        for name, part in parts.items():
            month = Month.parse(name.partition("|")[2])
            window = replace(dataset.window((month,), *reach[asset]), series=series[asset])
            expected = wanted[asset] | {
                "settle_delay_ms": request.settle_delay_ms,
                "inputs": fingerprint(current, window),
            }
            different = [key for key, value in expected.items() if part.info.get(key) != value]
            stale += [f"{asset} {name}: {', '.join(different)}"] if different else []
    if stale:
        raise MissingDataError(
            f"{len(stale)} stored months of {request.market} do not rest on today's definitions and raw data "
            f"(for example {stale[0]} changed); run: mlbot features --source {request.source} "
            f"--interval {request.market.timeframe}"
        )


def _period(data: _Dataset, request: TrainRequest, models: ModelsConfig) -> tuple[int, int]:
    """Return the test period; by default from the shortest training history on to the last usable bar."""
    every = data.targets["ts"].to_numpy(dtype=np.int64)
    ts = every[data.usable]
    labelled = every[data.usable & (data.targets["tb_t1"].to_numpy(dtype=np.int64) >= 0)]
    if len(labelled) == 0:
        raise MissingDataError(
            f"none of the {len(every)} stored bars of {request.market} from {request.source} has a label and enough "
            "known features: they are warm-up, incomplete or came after their decision; backfill more months"
        )
    earliest = int(labelled[0]) + (models.walk_forward.min_train_days + 1) * DAY_MS
    start_ms = request.start_ms if request.start_ms is not None else -(-earliest // DAY_MS) * DAY_MS
    last = int(ts[-1]) + request.market.timeframe.ms
    end_ms = min(request.end_ms, last) if request.end_ms is not None else last
    if start_ms >= end_ms:
        raise MissingDataError(
            f"{request.market} from {request.source} reaches from {format_utc(int(ts[0]))} to {format_utc(last)}: "
            f"nothing is left to test from {format_utc(start_ms)} on; backfill more months or choose another period"
        )
    return start_ms, end_ms


def _version(
    request: TrainRequest, models: ModelsConfig, features: FeatureSet, data: _Dataset, period: tuple[int, int]
) -> tuple[str, dict[str, Any]]:
    params = getattr(models, request.model_type).model_dump(mode="json")
    inputs = VersionInputs(
        code=code_version(),
        market=str(request.market),
        source=request.source,
        partitions=data.versions,
        test_start_ms=period[0],
        test_end_ms=period[1],
        feature_set=features.hash,
        targets=models.targets.model_dump(mode="json"),
        walk_forward=models.walk_forward.model_dump(mode="json"),
        model_type=request.model_type,
        params=params,
        seed=int(params["seed"]),
        libraries=library_versions(),
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
    made = int(np.isfinite(forecasts["p_up"].to_numpy(dtype=np.float64)).sum())
    share = made / expected if expected else 0.0
    return (
        Verdict("duplicates", repeated == 0, {"rows": len(forecasts), "repeated": repeated}),
        Verdict("purge", reaching == 0, {"folds": len(first_test), "labels_reaching_into_a_test": reaching}),
        Verdict("coverage", share >= _MIN_COVERAGE, {"bars": expected, "forecasts": made, "share": round(share, 4)}),
    )


def _registry_row(
    request: TrainRequest,
    version: str,
    inputs: dict[str, Any],
    result: WalkForwardResult,
    period: tuple[int, int],
    now_ms: int,
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
