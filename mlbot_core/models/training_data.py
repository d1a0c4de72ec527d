"""What a model learns from: stored features and outcomes, aligned, judged and current."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.clock import format_utc
from mlbot_core.config import ModelsConfig
from mlbot_core.errors import MissingDataError
from mlbot_core.features import FeatureSet
from mlbot_core.features.dataset import CODE_ROOMS as FEATURE_ROOMS
from mlbot_core.features.dataset import FEATURE_CHECKS, DatasetRequest, input_series, table_name
from mlbot_core.features.sets import configured_set
from mlbot_core.models.version import code_version
from mlbot_core.targets import target_lookback
from mlbot_core.targets.dataset import CODE_ROOMS as TARGET_ROOMS
from mlbot_core.targets.dataset import TABLE as TARGETS_TABLE
from mlbot_core.targets.dataset import TARGET_CHECKS
from mlbot_core.timeframe import DAY_MS, Market, Month
from mlbot_core.warehouse import Accepted, Warehouse, made_partitions, read_window, require
from mlbot_core.warehouse.ingest import partition_name
from mlbot_core.warehouse.inputs import current_versions, fingerprint

# a row with less of its features known than this is a warm-up or an outage: nothing is learnt or decided on it
_MIN_FINITE: Final = 0.9
# when each kind of outcome is settled
_SETTLED: Final = {"label": "tb_t1", "score": "var_t1"}
_TARGETS: Final = ("ts", "t0", "tb_label", "tb_t1", "tb_width", "sigma", "var_ret", "var_t1", "var_ret_1")


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
        Cores the model may use.
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


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Aligned features and outcomes of a market.

    Parameters
    ----------
    X
        Features, float64, indexed by the bars' open times (UTC ms); a row that no decision can rest on is all NaN.
    y
        The columns of :data:`mlbot_core.models.base.OUTCOMES`, and ``t1`` (UTC ms, -1 unknown), on the same index.
    t0
        Closes of the bars, where every label interval begins, UTC ms.
    usable
        Which rows a decision could rest on.
    partitions
        What it was read from: name of a partition to the version of its data.
    feature_set
        Hash of the columns' definitions.
    """

    X: pd.DataFrame
    y: pd.DataFrame
    t0: npt.NDArray[np.int64]
    usable: npt.NDArray[np.bool_]
    partitions: Mapping[str, str]
    feature_set: str

    @property
    def t1(self) -> npt.NDArray[np.int64]:
        """When each outcome was settled, UTC ms; -1 unknown."""
        return np.asarray(self.y["t1"].to_numpy(dtype=np.int64))

    @property
    def ts(self) -> npt.NDArray[np.int64]:
        """Open times, UTC ms."""
        return np.asarray(self.X.index.to_numpy(dtype=np.int64))


def load_training_set(warehouse: Warehouse, request: TrainRequest, models: ModelsConfig, target: str) -> TrainingSet:
    """Read features and outcomes of the months that the request needs.

    Parameters
    ----------
    target
        ``label`` or ``score``: whose time of settlement ``t1`` is.

    Raises
    ------
    MissingDataError
        If they are absent, of another definition, or rest on raw data that has changed since.
    QualityRefusedError
        If a month failed a check.
    """
    features = configured_set(models.features)
    dataset = DatasetRequest(
        request.source, request.market, (), request.settle_delay_ms, request.known_by_ms, request.run_id
    )
    with warehouse.read() as con:
        months = _months(made_partitions(con, "features", request.source), request, models)
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
    joined = x.to_pandas().merge(
        y.select([name for name in _TARGETS if name in y.column_names]).to_pandas(), on="ts", validate="one_to_one"
    )
    matrix = joined[list(features.names)].to_numpy(dtype=np.float64, copy=True)
    usable = _usable(matrix) & ~joined["late"].to_numpy(dtype=np.bool_)
    matrix[~usable] = np.nan
    index = pd.Index(joined["ts"].to_numpy(dtype=np.int64), name="ts")
    versions = {f"{asset}|{name}": part.version for asset, parts in accepted.items() for name, part in parts.items()}
    return TrainingSet(
        pd.DataFrame(matrix, columns=list(features.names), index=index),
        outcomes(joined, models.targets.barrier_width, target).set_index(index),
        joined["t0"].to_numpy(dtype=np.int64),
        usable,
        versions,
        features.hash,
    )


def outcomes(targets: pd.DataFrame, barrier_width: float, target: str) -> pd.DataFrame:
    """Return what came of each bar in the terms that models share.

    Parameters
    ----------
    targets
        Columns of :func:`mlbot_core.targets.build.build_targets`; without ``var_ret_1`` the next bar's return is
        unknown.
    barrier_width
        Of the main barrier, in horizon standard deviations.
    target
        ``label`` or ``score``: whose time of settlement ``t1`` is.

    Returns
    -------
    pd.DataFrame
        :data:`mlbot_core.models.base.OUTCOMES`, and ``t1`` and ``score_t1``: when what the model learns, and when the
        score, is known (int64, UTC ms, -1 unknown).
    """
    unknown = pd.Series(np.full(len(targets), np.nan))
    one_bar = targets["var_ret_1"] if "var_ret_1" in targets.columns else unknown
    column = {name: targets[name].to_numpy(dtype=np.float64) for name in ("tb_label", "tb_width", "sigma", "var_ret")}
    return pd.DataFrame(
        {
            "label": column["tb_label"],
            "score": column["var_ret"] / barrier_width,
            "width": column["tb_width"],
            "next_ret": one_bar.to_numpy(dtype=np.float64) * column["sigma"],
            "t1": targets[_SETTLED[target]].to_numpy(dtype=np.int64),
            "score_t1": targets[_SETTLED["score"]].to_numpy(dtype=np.int64),
        }
    )


def period_to_test(data: TrainingSet, request: TrainRequest, min_train_days: int) -> tuple[int, int]:
    """Return the test period, UTC ms; by default from the shortest training history on to the last usable bar.

    Raises
    ------
    MissingDataError
        If nothing is left to test.
    """
    ts = data.ts[data.usable]
    labelled = data.ts[data.usable & (data.t1 >= 0)]
    if len(labelled) == 0:
        raise MissingDataError(
            f"none of the {len(data.ts)} stored bars of {request.market} from {request.source} has a label and enough "
            "known features: they are warm-up, incomplete or came after their decision; backfill more months"
        )
    earliest = int(labelled[0]) + (min_train_days + 1) * DAY_MS
    start_ms = request.start_ms if request.start_ms is not None else -(-earliest // DAY_MS) * DAY_MS
    last = int(ts[-1]) + request.market.timeframe.ms
    end_ms = min(request.end_ms, last) if request.end_ms is not None else last
    if start_ms >= end_ms:
        raise MissingDataError(
            f"{request.market} from {request.source} reaches from {format_utc(int(ts[0]))} to {format_utc(last)}: "
            f"nothing is left to test from {format_utc(start_ms)} on; backfill more months or choose another period"
        )
    return start_ms, end_ms


def _months(made: Any, request: TrainRequest, models: ModelsConfig) -> list[Month]:
    prefix = f"{request.market}|"
    months = sorted(Month.parse(name.removeprefix(prefix)) for name in made if name.startswith(prefix))
    if request.start_ms is not None:
        reach = request.start_ms - (models.walk_forward.of(request.model_type).train_days + 1) * DAY_MS
        months = [month for month in months if month.end_ms > reach]
    if request.end_ms is not None:
        months = [month for month in months if month.start_ms < request.end_ms]
    if not months:
        raise MissingDataError(
            f"no features of {request.market} from {request.source} are stored; run: "
            f"mlbot backfill --source {request.source} --interval {request.market.timeframe}"
        )
    return months


def _usable(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return which rows know enough: most of the features that have any value at all in these data.

    This chooses the data set, and looks at no value: rows from before a series was served are left out, since a model
    of most features missing is another model. Which months are loaded is a part of the model's version.
    """
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
