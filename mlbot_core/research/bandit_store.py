"""Evaluations of the bandit in the warehouse: the log of decisions, the judged policy, the verdict with its reasons."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa

from mlbot_core.backtest.dataset import BacktestRequest, conditions_of
from mlbot_core.backtest.metrics import daily_returns
from mlbot_core.backtest.setup import simulation_params
from mlbot_core.config import Settings
from mlbot_core.decision.bandit import ARMS, BanditState, initial_bandit, state_to_json
from mlbot_core.decision.bandit_context import NAMES
from mlbot_core.decision.bandit_live import line_of
from mlbot_core.decision.bandit_log import BanditLog, fold
from mlbot_core.errors import MissingDataError, MlbotError
from mlbot_core.models.canonical import canonical_json, sha256_hex
from mlbot_core.research.bandit_data import LoadedMarket, load_market
from mlbot_core.research.bandit_evaluation import Evaluation, Judged, best_baseline, evaluate
from mlbot_core.research.bandit_training import spec_of
from mlbot_core.validation.namespaces import namespace_of
from mlbot_core.validation.significance import Interval
from mlbot_core.validation.trials import DailyReturns, TrialLedger, open_ledger
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
from mlbot_core.warehouse.references import stored_identity
from mlbot_core.warehouse.windows import exists

EVALUATIONS_TABLE: Final = "bandit_evaluations"
DECISIONS_TABLE: Final = "bandit_decisions"
BANDIT_CHECKS: Final = ("replay", "promotion")


class BanditRefusedError(MlbotError):
    """A policy may not be promoted; the message names every reason."""


@dataclass(frozen=True, eq=False)
class StoredEvaluation:
    """An evaluation with its record and its numbers as plain values."""

    evaluation: Evaluation
    outcome: PartitionOutcome
    summary: dict[str, Any]


def evaluate_stored(
    warehouse: Warehouse, request: BacktestRequest, settings: Settings, ledger: TrialLedger | None = None
) -> StoredEvaluation:
    """Evaluate the bandit on the newest version of a model's forecasts, count it as a trial, and store everything.

    Raises
    ------
    MissingDataError, QualityRefusedError
        If there are no good forecasts, or they call for a position too seldom.
    LedgerTamperedError
        If the trial ledger cannot be believed.
    """
    loaded, found = compute_evaluation(warehouse, request, settings)
    summary = summary_of(found, loaded)
    log = decisions_table(found)
    again = replay(log, found)
    outcome = PartitionOutcome(
        PartitionKey("bandit", request.source, request.partition),
        log.num_rows,
        data_version(log),
        (
            Verdict("replay", again.version == summary["explored_version"], {"policy": again.version[:12]}),
            Verdict("promotion", found.passed, {"outcome": found.outcome}),
        ),
        {"model_version": loaded.model_version, "policy_version": found.state.version, "verdict": found.outcome},
    )
    _count(warehouse, request, settings, loaded, found, ledger)
    row = pa.table(
        {
            "created_at": pa.array([warehouse.clock.now_ms()], pa.int64()),
            "data_version": [outcome.version],
            "policy_version": [found.state.version],
            "passed": pa.array([found.passed], pa.bool_()),
            "outcome": [found.outcome],
            "summary": [json.dumps(summary, sort_keys=True)],
            "policy": [canonical_json(state_to_json(found.state))],
            "run_id": [request.run_id],
        }
    )
    scope = {**request.scope, "model_version": loaded.model_version}
    with warehouse.write() as con:
        replace_window(con, DECISIONS_TABLE, scope, log)
        replace_window(con, EVALUATIONS_TABLE, scope, row)
        record_partition(con, outcome, now_ms=warehouse.clock.now_ms(), run_id=request.run_id)
    return StoredEvaluation(found, outcome, summary)


def compute_evaluation(
    warehouse: Warehouse, request: BacktestRequest, settings: Settings
) -> tuple[LoadedMarket, Evaluation]:
    """Evaluate without storing anything; the same input gives the same evaluation, bit for bit."""
    loaded = load_market(warehouse, request, settings)
    line = line_of(request.source, request.market, request.model_type)
    unit = simulation_params(
        request.market,
        settings.fees,
        settings.risk,
        request.settle_delay_ms,
        loaded.data.latency_ms,
        unit=True,
        initial_nav=settings.bandit.evaluation.initial_nav,
    )
    return loaded, evaluate(loaded.market, settings.bandit, line, unit)


def promote_stored(
    warehouse: Warehouse, request: BacktestRequest, settings: Settings, log: BanditLog, why: str
) -> dict[str, Any]:
    """Let a market use the evaluated policy, if the evaluation, made again now, passes; return its summary.

    The stored verdict is not believed: the evaluation is computed again from the warehouse and today's configuration,
    and must be the stored one.

    Raises
    ------
    MissingDataError
        If nothing was evaluated.
    BanditRefusedError
        If it does not pass, or is not what was stored.
    """
    stored = newest_evaluation(warehouse, request)
    line = line_of(request.source, request.market, request.model_type)
    again = f"run: mlbot bandit evaluate -s {request.source} -i {request.market.timeframe} -m {request.model_type}"
    if stored is None:
        raise MissingDataError(f"no evaluation of the bandit of {line} is stored; {again}")
    loaded, found = compute_evaluation(warehouse, request, settings)
    summary = summary_of(found, loaded)
    same = stored["policy_version"] == found.state.version
    if not same or stored["data_version"] != data_version(decisions_table(found)):
        raise BanditRefusedError(
            f"the stored evaluation of {line} is not what comes out today: data, forecasts, costs, limits or "
            f"bandit.yaml changed since; {again}"
        )
    if not found.passed:
        raise BanditRefusedError(f"{line}: {found.outcome}")
    verdict = {"outcome": found.outcome, "model_version": loaded.model_version, "summary": _hexed(summary)}
    log.promote(line, found.state, found.scale, why=why, verdict=verdict)
    return summary


def newest_evaluation(warehouse: Warehouse, request: BacktestRequest) -> dict[str, Any] | None:
    """Return the newest stored evaluation of a market and model, ``summary`` as values; None where there is none."""
    if not warehouse.path.exists():
        return None
    with warehouse.read() as con:
        found = stored_evaluations(con, request.scope)
    return found[-1] if found else None


def stored_evaluations(con: duckdb.DuckDBPyConnection, scope: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return stored evaluations within a scope, oldest first, ``summary`` as values."""
    if not exists(con, EVALUATIONS_TABLE):
        return []
    rows = read_window(con, EVALUATIONS_TABLE, scope, order_by="created_at").to_pylist()
    return [row | {"summary": json.loads(row["summary"])} for row in rows]


def decisions_table(found: Evaluation) -> pa.Table:
    """Return the log as a table: one row a decision, in the order in which the policy learned.

    Columns: ``ts`` (open time of the decided bar, UTC ms), ``arm``, ``multiplier``, ``p_0`` to ``p_4`` (propensities),
    ``reward``, ``judged`` (whether in the judged part), and the context's numbers by their names (NaN: not usable).
    """
    walk = found.walk
    p = np.array([choice.propensities for choice in walk.choices], dtype=np.float64).reshape(-1, len(ARMS))
    judged = np.arange(len(found.decisions)) >= found.judged_from
    columns: dict[str, Any] = {
        "ts": pa.array(found.decisions.ts, pa.int64()),
        "arm": pa.array(walk.arms, pa.int64()),
        "multiplier": pa.array([ARMS[arm] for arm in walk.arms], pa.float64()),
        **{f"p_{a}": pa.array(p[:, a], pa.float64()) for a in range(len(ARMS))},
        "reward": pa.array(walk.rewards, pa.float64()),
        "judged": pa.array(judged, pa.bool_()),
        **{f"x_{name}": pa.array(walk.vectors[:, i], pa.float64()) for i, name in enumerate(NAMES)},
    }
    return pa.table(columns)


def replay(log: pa.Table, found: Evaluation) -> BanditState:
    """Return the exploring policy as a fold over its stored log."""
    vectors = np.column_stack([log.column(f"x_{name}").to_numpy() for name in NAMES])
    arms, rewards = log.column("arm").to_numpy(), log.column("reward").to_numpy()
    return fold(
        initial_bandit(spec_of(found.config)),
        [(tuple(map(float, x)), int(arm), float(r)) for x, arm, r in zip(vectors, arms, rewards, strict=True)],
    )


def summary_of(found: Evaluation, loaded: LoadedMarket) -> dict[str, Any]:
    """Return an evaluation as plain values; None where a number is undefined."""
    first = int(found.decisions.ts[found.judged_from])
    explored = found.walk.state
    return {
        "line": found.line,
        "timeframe": str(loaded.data.market.timeframe),
        "model_type": loaded.model_type,
        "model_version": loaded.model_version,
        "policy_version": found.state.version,
        "explored_version": None if explored is None else explored.version,
        "policy": found.config.policy.model_dump(mode="json"),
        "synthetic": loaded.data.synthetic,
        "decisions": len(found.decisions),
        "judged": len(found.decisions) - found.judged_from,
        "judged_from_ms": first,
        "end_ms": int(loaded.market.frame["ts"].iloc[-1]) + loaded.market.params.timeframe_ms,
        "level": found.config.evaluation.level,
        "best_baseline": best_baseline(found).name,
        "rows": [_row(row) for row in found.rows],
        "reasons": list(found.reasons),
        "passed": found.passed,
        "verdict": found.outcome,
    }


def _row(row: Judged) -> dict[str, Any]:
    m = row.metrics
    dr = row.estimates.get("DR")
    return {
        "name": row.name,
        "multiplier": row.multiplier,
        "reward": _interval(row.reward),
        **{name.lower(): _interval(found.interval) for name, found in row.estimates.items()},
        "effective_n": None if dr is None else dr.effective_n,
        "clipped": None if dr is None else dr.clipped,
        "largest_weight": None if dr is None else dr.largest_weight,
        "advantage_simulated": None if row.advantage is None else _interval(row.advantage[0]),
        "advantage_log": None if row.advantage is None else _interval(row.advantage[1]),
        "total_return": _finite(m.total_return),
        "sharpe": _interval(m.sharpe),
        "max_drawdown": _finite(m.drawdown.depth),
        "trades": m.trades,
        "turnover_per_year": _finite(m.turnover_per_year),
    }


def _interval(value: Interval) -> list[float | None]:
    return [_finite(value.value), _finite(value.low), _finite(value.high)]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _hexed(value: Any) -> Any:
    """Return plain values with floats as text: a verdict is kept exactly."""
    if isinstance(value, Mapping):
        return {str(key): _hexed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hexed(item) for item in value]
    return value.hex() if isinstance(value, float) else value


def _count(
    warehouse: Warehouse,
    request: BacktestRequest,
    settings: Settings,
    loaded: LoadedMarket,
    found: Evaluation,
    ledger: TrialLedger | None,
) -> None:
    """Record the judged policy in the ledger of trials: a way to choose sizes was tried, whatever came of it."""
    if found.unit is None:
        return
    daily = daily_returns(found.unit.ts, found.unit.nav, found.unit.params.initial_nav)
    with warehouse.read() as con:
        namespace = namespace_of(request.source, stored_identity(con, request.source) or "")
    conditions = conditions_of(settings.fees, settings.risk, request.settle_delay_ms)
    (ledger or open_ledger(warehouse.path.parent, warehouse.clock)).append(
        namespace,
        {
            "market": str(request.market),
            "source": request.source,
            "model_type": request.model_type,
            "sizing": "bandit",
            "bandit": settings.bandit.model_dump(mode="json"),
            "conditions": conditions,
            "exposure": "unit",
        },
        DailyReturns(int(daily["day"].iloc[0]), daily["ret"].to_numpy(dtype=np.float64)),
        data_version=sha256_hex(f"{loaded.model_version}|{data_version(decisions_table(found))}"),
        run_id=request.run_id,
        info={"model_version": loaded.model_version, "policy_version": found.state.version},
    )
