"""From a stored backtest to a gate record: the numbers are computed again, never taken from a stored verdict.

Daily equity is stored with a hash; Sharpe ratio, growth, drawdown and days follow from it at both sizes. Its daily
returns at unit exposure must be in the trial ledger, where nothing can be changed afterwards, and DSR and PBO are
computed among all trials that are there now. Round trips cannot be seen in daily equity: their numbers are as stored,
at unit exposure those of the ledger.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

import numpy as np
import pandas as pd

from mlbot_core.backtest.dataset import BACKTESTS_TABLE, EQUITY_TABLE
from mlbot_core.backtest.metrics import MIN_ACTIVE_DAYS, annual_growth, daily_returns, max_drawdown
from mlbot_core.backtest.verdict import statistics_of
from mlbot_core.clock import format_utc
from mlbot_core.errors import MissingDataError
from mlbot_core.models.gate import GateRecord, GateRefusedError
from mlbot_core.models.registry_events import Registration, Slot
from mlbot_core.models.registry_state import Entry
from mlbot_core.timeframe import DAY_MS
from mlbot_core.validation.criteria import Measured
from mlbot_core.validation.namespaces import namespace_of
from mlbot_core.validation.significance import sharpe_interval
from mlbot_core.validation.trials import DailyReturns, LedgerError, TrialHistory, TrialLedger
from mlbot_core.validation.trials_significance import candidate_significance
from mlbot_core.warehouse import Warehouse, data_version, read_window
from mlbot_core.warehouse.windows import exists

_NAV: Final = {"traded": "nav_traded", "unit": "nav_unit"}
# another machine's last bits
_TOLERANCE: Final = 1e-9


def measure(ts: Any, nav: Any, initial_nav: float, trades: int) -> Measured:
    """Return the measured numbers of a NAV series; the definitions are those of :mod:`mlbot_core.backtest.metrics`.

    Parameters
    ----------
    ts
        Open times, UTC ms, int64[bars].
    nav
        USD at the closes, float64[bars].
    initial_nav
        USD before the first bar.
    trades
        Closed round trips.
    """
    daily = daily_returns(np.asarray(ts, dtype=np.int64), np.asarray(nav, dtype=np.float64), initial_nav)
    returns = daily["ret"].to_numpy()
    sharpe = sharpe_interval(returns)
    sure = np.count_nonzero(returns) >= MIN_ACTIVE_DAYS
    depth = max_drawdown(daily["nav"].to_numpy(), initial_nav).depth
    growth = annual_growth(initial_nav, float(daily["nav"].iloc[-1]), len(daily))
    return Measured(
        sharpe=sharpe.value,
        sharpe_low=sharpe.low if sure else math.nan,
        sharpe_high=sharpe.high if sure else math.nan,
        mar=growth / depth if depth > 0 else math.nan,
        max_drawdown=depth,
        days=len(daily),
        trades=trades,
    )


def gate_record(warehouse: Warehouse, entry: Entry, ledger: TrialLedger, conditions: str) -> GateRecord:
    """Return the gate record of a registered model, from the stored backtest of exactly that version.

    Parameters
    ----------
    ledger
        Of all trials; DSR and PBO are computed among those that are there now.
    conditions
        Today's fees, limits and delays (:func:`mlbot_core.backtest.dataset.conditions_of`): a backtest under others
        says nothing about what would be traded.

    Raises
    ------
    MissingDataError
        If no backtest of that version is stored; the message names the command.
    GateRefusedError
        If what is stored contradicts itself, or was never counted in the ledger.
    LedgerTamperedError
        If the ledger cannot be believed.
    """
    model = entry.registration
    summary, stored_version, equity = _stored(warehouse, model)
    name = f"the stored backtest of model {model.version[:12]} ({model.slot})"
    again = f"run: mlbot backtest {model.slot.command}"
    measured = summary.get("measured")
    if not isinstance(measured, Mapping):
        raise GateRefusedError(f"{name} was made before the numbers of the gate were stored with it; {again}")
    if summary.get("conditions") != conditions:
        raise GateRefusedError(f"{name} was traded under other fees, limits or delays than today's; {again}")
    try:
        initial_nav = float(measured["initial_nav"])
        stored = {size: Measured.from_json(measured[size]) for size in _NAV}
    except (KeyError, TypeError, ValueError) as error:
        raise GateRefusedError(f"{name} cannot be read ({type(error).__name__}: {error}); {again}") from error
    ts = equity["ts"].to_numpy(dtype=np.int64)
    computed = {
        size: measure(ts, equity[column].to_numpy(dtype=np.float64), initial_nav, stored[size].trades)
        for size, column in _NAV.items()
    }
    for size in _NAV:
        different = _differences(computed[size], stored[size])
        if different:
            raise GateRefusedError(f"{name} contradicts its own equity at {size} size: {', '.join(different)}; {again}")
    # the last day that anything is known of: the age of the backtest counts from here
    known_ms = (int(ts[-1]) // DAY_MS + 1) * DAY_MS
    if int(summary["end_ms"]) > known_ms:
        raise GateRefusedError(
            f"{name} claims to end {format_utc(int(summary['end_ms']))}, and its equity ends before "
            f"{format_utc(known_ms)}; {again}"
        )
    daily = daily_returns(ts, equity["nav_unit"].to_numpy(dtype=np.float64), initial_nav)
    returns = DailyReturns(int(daily["day"].iloc[0]), daily["ret"].to_numpy())
    namespace = namespace_of(model.slot.source, model.identity)
    history = ledger.read(namespace)
    try:
        among = candidate_significance(history, returns, min_active_days=MIN_ACTIVE_DAYS)
    except LedgerError as error:
        raise GateRefusedError(
            f"{name} was never counted as a trial in the {namespace} ledger, so nothing says how it was selected; "
            f"{again}"
        ) from error
    _require_trades(history, returns, stored["unit"].trades, name, again)
    return GateRecord(
        registration=model,
        traded=computed["traded"],
        unit=computed["unit"],
        statistics=statistics_of(among),
        ledger_head=str(among.head),
        backtest_start_ms=int(summary["start_ms"]),
        backtest_end_ms=int(summary["end_ms"]),
        backtest_version=stored_version,
        conditions=conditions,
        made_at_ms=warehouse.clock.now_ms(),
    )


def scope_of(slot: Slot, version: str) -> dict[str, str]:
    """Return the columns that identify a model's rows in the warehouse."""
    return {
        "source": slot.source,
        "symbol": slot.symbol,
        "timeframe": slot.timeframe,
        "model_type": slot.model_type,
        "model_version": version,
    }


def stored_summaries(warehouse: Warehouse) -> dict[str, dict[str, Any]]:
    """Return the stored summary of every backtest by model version; none where nothing is stored."""
    if not warehouse.path.exists():
        return {}
    with warehouse.read() as con:
        if not exists(con, BACKTESTS_TABLE):
            return {}
        rows = con.execute(
            f"SELECT model_version, summary FROM {BACKTESTS_TABLE} ORDER BY created_at, rowid"
        ).fetchall()
    return {str(version): json.loads(text) for version, text in rows}


def _stored(warehouse: Warehouse, model: Registration) -> tuple[dict[str, Any], str, pd.DataFrame]:
    """Return summary, hash and equity of the stored backtest of a version."""
    scope = scope_of(model.slot, model.version)
    missing = MissingDataError(
        f"no backtest of model {model.version[:12]} ({model.slot}) is stored; run: mlbot backtest {model.slot.command} "
        "(it trades the newest trained version: if that is another one, train this one again first)"
    )
    if not warehouse.path.exists():
        raise missing
    with warehouse.read() as con:
        if not exists(con, BACKTESTS_TABLE) or not exists(con, EQUITY_TABLE):
            raise missing
        rows = read_window(con, BACKTESTS_TABLE, scope, order_by="created_at")
        equity = read_window(con, EQUITY_TABLE, scope)
    if rows.num_rows == 0 or equity.num_rows == 0:
        raise missing
    row = rows.slice(rows.num_rows - 1).to_pylist()[0]
    equity = equity.drop_columns([column for column in scope if column in equity.column_names])
    if data_version(equity) != row["data_version"]:
        raise GateRefusedError(
            f"the stored equity of model {model.version[:12]} ({model.slot}) was changed after its backtest: its hash "
            f"is {data_version(equity)} instead of {row['data_version']}; run: mlbot backtest {model.slot.command}"
        )
    return json.loads(row["summary"]), str(row["data_version"]), equity.to_pandas()


def _differences(computed: Measured, stored: Measured) -> list[str]:
    found = []
    for field in fields(Measured):
        ours, theirs = float(getattr(computed, field.name)), float(getattr(stored, field.name))
        same = ours == theirs or not (math.isfinite(ours) or math.isfinite(theirs))
        if not same and not math.isclose(ours, theirs, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            found.append(f"{field.name.replace('_', ' ')} is {ours:g} and was stored as {theirs:g}")
    return found


def _require_trades(history: TrialHistory, returns: DailyReturns, trades: int, name: str, again: str) -> None:
    """Refuse a number of trades that the ledger contradicts; rows of before it was recorded there say nothing."""
    counted = [row.facts.get("unit_trades") for row in history.rows if row.series_id == returns.identity]
    known = [number for number in counted if number is not None]
    if known and trades not in known:
        raise GateRefusedError(f"{name} claims {trades} trades at unit exposure, the ledger {known[-1]}; {again}")
