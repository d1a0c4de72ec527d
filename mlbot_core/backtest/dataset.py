"""From stored forecasts to a stored backtest and its report."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from mlbot_core.backtest.funding import funding_of
from mlbot_core.backtest.report import render_report, summary_row
from mlbot_core.backtest.run import DECISION_LATENCY_MS, BacktestInput, BacktestResult, run_backtest, run_unit
from mlbot_core.backtest.trial import count, count_and_judge, namespace_of
from mlbot_core.backtest.verdict import measured_json
from mlbot_core.config import FeesConfig, RiskConfig
from mlbot_core.errors import MissingDataError
from mlbot_core.models.canonical import canonical_json, sha256_hex
from mlbot_core.models.training import FORECAST_CHECKS, FORECASTS_TABLE, REGISTRY_TABLE
from mlbot_core.targets.dataset import TABLE as TARGETS_TABLE
from mlbot_core.targets.dataset import TARGET_CHECKS
from mlbot_core.timeframe import Market, Month
from mlbot_core.validation.trials import Appended, TrialLedger, open_ledger
from mlbot_core.warehouse import (
    PartitionKey,
    PartitionOutcome,
    Verdict,
    Warehouse,
    data_version,
    read_window,
    record_partition,
    replace_window,
    require,
)
from mlbot_core.warehouse.ingest import partition_name
from mlbot_core.warehouse.inputs import Window, read_inputs
from mlbot_core.warehouse.references import stored_identity

BACKTESTS_TABLE = "backtests"
_BAR_COLUMNS = ["ts", "open", "high", "low", "close", "volume_usd", "volume_coin"]
EQUITY_TABLE = "backtest_equity"
BACKTEST_CHECKS = ("bookkeeping", "criteria")


@dataclass(frozen=True)
class BacktestRequest:
    """Which model's stored forecasts to trade."""

    source: str
    market: Market
    model_type: str
    settle_delay_ms: int
    known_by_ms: int
    run_id: str

    @property
    def partition(self) -> str:
        """Partition of the model assets: ``BTC-2h|lightgbm``."""
        return f"{self.market}|{self.model_type}"

    @property
    def scope(self) -> dict[str, str]:
        """Columns that identify this model's rows, whatever its version."""
        return {**self.market_scope, "model_type": self.model_type}

    @property
    def market_scope(self) -> dict[str, str]:
        """Columns that identify the market's rows."""
        return {"source": self.source, "symbol": self.market.symbol, "timeframe": str(self.market.timeframe)}


@dataclass(frozen=True)
class StoredModel:
    """A registered version of a model."""

    version: str
    folds: pd.DataFrame
    importance: pd.DataFrame
    inputs: dict[str, Any]


@dataclass(frozen=True)
class BacktestOutcome:
    """A finished backtest: its record, its numbers and what the report needs."""

    outcome: PartitionOutcome
    result: BacktestResult
    model: StoredModel
    summary: dict[str, Any]


def backtest(
    warehouse: Warehouse,
    request: BacktestRequest,
    fees: FeesConfig,
    risk: RiskConfig,
    ledger: TrialLedger | None = None,
) -> BacktestOutcome:
    """Trade the newest version's out-of-fold forecasts, count the trial, and store equity and summary.

    Parameters
    ----------
    ledger
        Where trials are counted; by default the one in the warehouse's home.

    Raises
    ------
    MissingDataError
        If there is no trained model, or the prices of its period are gone.
    QualityRefusedError
        If forecasts or prices failed a check.
    BookkeepingError
        If an independent bookkeeping of the same fills disagrees.
    """
    result, model = compute(warehouse, request, fees, risk, ledger)
    summary = summary_row(result) | {
        "model_version": model.version,
        "conditions": conditions_of(fees, risk, request.settle_delay_ms),
        "start_ms": result.start_ms,
        "end_ms": result.end_ms,
    }
    equity = pa.Table.from_pandas(result.equity, preserve_index=False).replace_schema_metadata(None)
    outcome = PartitionOutcome(
        PartitionKey("backtest", request.source, request.partition),
        equity.num_rows,
        data_version(equity),
        (
            Verdict("bookkeeping", True, {"vectorbt_relative_difference": float(result.vectorbt.disagreement)}),
            Verdict("criteria", result.verdict.passed, {"outcome": result.verdict.outcome}),
        ),
        {
            "model_version": model.version,
            "verdict": result.verdict.outcome,
            "ledger_head": None if result.significance is None else str(result.significance.head),
        },
    )
    row = pa.table(
        {
            "created_at": pa.array([warehouse.clock.now_ms()], pa.int64()),
            "data_version": [outcome.version],
            "summary": [json.dumps(summary | {"measured": measured_json(result.metrics)}, default=str, sort_keys=True)],
            "run_id": [request.run_id],
        }
    )
    with warehouse.write() as con:
        replace_window(con, EQUITY_TABLE, {**request.scope, "model_version": model.version}, equity)
        replace_window(con, BACKTESTS_TABLE, {**request.scope, "model_version": model.version}, row)
        record_partition(con, outcome, now_ms=warehouse.clock.now_ms(), run_id=request.run_id)
    return BacktestOutcome(outcome, result, model, summary)


def compute(
    warehouse: Warehouse,
    request: BacktestRequest,
    fees: FeesConfig,
    risk: RiskConfig,
    ledger: TrialLedger | None = None,
) -> tuple[BacktestResult, StoredModel]:
    """Run the backtest of the newest version and count it as a trial, without storing anything in the warehouse.

    The same input gives the same result, and is counted once; its DSR and PBO move with the trials made since.
    """
    data, model, namespace = _read(warehouse, request, fees, risk)
    counted = count_and_judge(
        run_backtest(data),
        model.inputs,
        ledger or open_ledger(warehouse.path.parent, warehouse.clock),
        namespace=namespace,
        run_id=request.run_id,
    )
    return counted, model


def count_trained(
    warehouse: Warehouse, request: BacktestRequest, fees: FeesConfig, risk: RiskConfig, ledger: TrialLedger
) -> Appended:
    """Count the newest trained version as a trial, before anybody is shown how good its forecasts were.

    The row is the one that its backtest would write: that adds nothing afterwards.

    Raises
    ------
    MissingDataError, QualityRefusedError
        As :func:`backtest`.
    LedgerTamperedError
        If the trial ledger was tampered with.
    """
    data, model, namespace = _read(warehouse, request, fees, risk)
    return count(run_unit(data), model.inputs, ledger, namespace=namespace, run_id=request.run_id)


def _read(
    warehouse: Warehouse, request: BacktestRequest, fees: FeesConfig, risk: RiskConfig
) -> tuple[BacktestInput, StoredModel, str]:
    """Return what the newest version's backtest depends on, the version, and the trial namespace that it counts in."""
    with warehouse.read() as con:
        accepted = require(con, "forecasts", request.source, [request.partition], FORECAST_CHECKS)
        # the version whose forecasts were checked just now, not the one with the latest time stamp
        scope = {**request.scope, "model_version": str(accepted[request.partition].info["model_version"])}
        model = stored_model(read_window(con, REGISTRY_TABLE, scope, order_by="created_at"), request)
        forecasts = read_window(con, FORECASTS_TABLE, {**request.scope, "model_version": model.version}).to_pandas()
        first, last = int(forecasts["ts"].iloc[0]), int(forecasts["ts"].iloc[-1])
        _require_labels(con, request, model, first, last)
        labels = read_window(con, TARGETS_TABLE, request.market_scope, start_ms=first, end_ms=last + 1).to_pandas()
        namespace = namespace_of(request.source, stored_identity(con, request.source) or "")
    window = Window(
        request.source,
        request.market,
        tuple(Month.span(first, last + 1)),
        request.settle_delay_ms,
        after_ms=request.market.timeframe.ms,
    )
    inputs = read_inputs(warehouse, window, known_by_ms=request.known_by_ms)
    bars = inputs.settled["price"].table.select(_BAR_COLUMNS).to_pandas()
    # where only the turnover is served, coins follow from it at the close
    bars["volume"] = bars["volume_coin"].fillna(bars["volume_usd"] / bars["close"])
    funding, funding_note = funding_of(inputs)
    targets = pd.DataFrame(
        {
            "ts": labels["ts"],
            "label": labels["tb_label"],
            "width": labels["tb_width"],
            "t1": np.where(labels["tb_t1"] >= 0, labels["tb_t1"], np.nan),
            "score": labels["var_ret"] / float(model.inputs["targets"]["barrier_width"]),
            "score_t1": np.where(labels["var_t1"] >= 0, labels["var_t1"], np.nan),
        }
    )
    data = BacktestInput(
        market=request.market,
        source=request.source,
        model_type=request.model_type,
        model_version=model.version,
        bars=bars,
        forecasts=forecasts[["ts", "fold", "p_down", "p_neutral", "p_up", "score"]],
        targets=targets,
        funding=funding,
        fees=fees,
        risk=risk,
        settle_delay_ms=request.settle_delay_ms,
        synthetic=request.source == "emulator",
        notes=(funding_note, *inputs.notes),
        shares=inputs.shares(),
        n_features=len(model.importance),
    )
    return data, model, namespace


def _require_labels(
    con: duckdb.DuckDBPyConnection, request: BacktestRequest, model: StoredModel, first: int, last: int
) -> None:
    """Refuse labels that failed a check or are not those the model was trained on: their widths turn scores to edges.

    Raises
    ------
    MissingDataError
        If they were made again since.
    QualityRefusedError
        If a month failed a check.
    """
    names = [partition_name(request.market, month) for month in Month.span(first, last + 1)]
    accepted = require(con, "targets", request.source, names, TARGET_CHECKS)
    known = model.inputs["partitions"]
    other = [name for name, part in accepted.items() if known.get(f"targets|{name}") != part.version]
    if other:
        raise MissingDataError(
            f"{len(other)} months of labels of {request.market} (the first {other[0]}) are not those that model "
            f"{model.version[:12]} was trained on; run: mlbot train --source {request.source} "
            f"--interval {request.market.timeframe} --model {request.model_type}"
        )


def conditions_of(fees: FeesConfig, risk: RiskConfig, settle_delay_ms: int) -> str:
    """Return the hash of what a backtest was traded under: costs, limits and delays."""
    made_of = {
        "fees": fees.model_dump(mode="json"),
        # what single orders are checked against does not reach a backtest
        "risk": risk.model_dump(mode="json", exclude={"gate"}),
        "settle_delay_ms": settle_delay_ms,
        "latency_ms": DECISION_LATENCY_MS,
    }
    return sha256_hex(canonical_json(made_of))


def stored_model(registry: pa.Table, request: BacktestRequest) -> StoredModel:
    """Return the registered version.

    Raises
    ------
    MissingDataError
        If none is registered.
    """
    if registry.num_rows == 0:
        raise MissingDataError(
            f"no {request.model_type} model of {request.market} from {request.source} is registered; run: "
            f"mlbot train --source {request.source} --interval {request.market.timeframe} --model {request.model_type}"
        )
    row = registry.slice(registry.num_rows - 1).to_pylist()[0]
    return StoredModel(
        str(row["model_version"]),
        pd.DataFrame(json.loads(row["folds"])),
        pd.DataFrame(json.loads(row["importance"])),
        json.loads(row["inputs"]),
    )


def write_report(
    result: BacktestResult, model: StoredModel, folder: Path, sizes: Mapping[str, Any] | None = None
) -> Path:
    """Write the HTML report and return its path: whole or not at all, one file a model version."""
    importance = model.importance.set_index("feature")["gain_share"] if len(model.importance) else None
    html = render_report(result, importance, model.folds, sizes)
    folder.mkdir(parents=True, exist_ok=True)
    data = result.input
    path = folder / f"{data.market}-{data.model_type}-{data.source}-{model.version[:12]}.html"
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".report-", suffix=".html")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(html)
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)
    return path
