"""The free run of a parity certificate: recorded forecasts traded by the simulator on the stored prices.

What a paper account of a challenger trades on comes from here too, so both rest on the same prices and funding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.backtest.funding import funding_of
from mlbot_core.backtest.simulator import Forecasts, Simulation, SimulationParams, simulate
from mlbot_core.clock import format_utc
from mlbot_core.decision.state import OBSERVED, RiskState
from mlbot_core.errors import MissingDataError
from mlbot_core.execution import evidence
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_folds import FLOW_KINDS
from mlbot_core.execution.ledger_states import BAR, DecisionRecord
from mlbot_core.execution.types import ExecType, Execution
from mlbot_core.live.observation import NO_AGE
from mlbot_core.timeframe import DAY_MS, Market, Month
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.inputs import Window, read_inputs

FARTHEST_MS: Final = 30 * DAY_MS
_SERIES: Final = ("price", "funding_rate", "funding_settled")


@dataclass(frozen=True, eq=False)
class MarketData:
    """What was traded on, as it is known at one moment.

    Parameters
    ----------
    prices
        ``ts, open, high, low, close, volume`` of each stored bar: UTC ms, USD, coins.
    funding
        ``ts, rate`` of each settlement: UTC ms, fraction of position value.
    note
        Where the funding comes from.
    """

    prices: pd.DataFrame
    funding: pd.DataFrame
    note: str


def bar_decisions(ledger: ExecutionLedger, contract: str) -> list[DecisionRecord]:
    """Return every decision on a bar of a contract, by bar."""
    found = []
    for row in ledger.rows("decisions", limit=1_000_000):
        if (row["symbol"], row["trigger"]) == (contract, BAR):
            record = ledger.decision(row["decision_id"])
            assert record is not None
            found.append(record)
    return sorted(found, key=lambda one: one.ts)


def first_flat(records: Sequence[DecisionRecord], first: DecisionRecord) -> tuple[DecisionRecord, tuple[str, ...]]:
    """Return the newest decision before ``first`` that saw no position, and what to say if there is none.

    Before it, because what was filled in the bar of ``first`` came of an earlier one; only an account that begins with
    ``first`` has none.
    """
    earlier = [one for one in records if first.ts - FARTHEST_MS <= one.ts < first.ts] or [first]
    for one in reversed(earlier):
        if evidence.read(one.details).observation.position == 0.0:
            return one, ()
    return earlier[0], (
        f"The account was not flat since {format_utc(earlier[0].ts)}: the free run begins without its position there.",
    )


def market_data(
    store: Warehouse,
    source: str,
    market: Market,
    delay_ms: int,
    start_ms: int,
    end_ms: int,
    known_by_ms: int | None = None,
) -> MarketData:
    """Read what is stored of prices and funding in the months of a period.

    Parameters
    ----------
    delay_ms
        From a bar's close to when it is settled, ms.
    known_by_ms
        As it was known then, UTC ms; by default now.

    Raises
    ------
    MissingDataError
        If a month was never pulled.
    QualityRefusedError
        If a month failed a check.
    """
    now = store.clock.now_ms() if known_by_ms is None else known_by_ms
    window = Window(source, market, tuple(Month.span(start_ms, min(end_ms, now))), delay_ms, series=_SERIES)
    inputs = read_inputs(store, window, known_by_ms=now)
    prices = inputs.settled["price"].table.to_pandas()
    prices["volume"] = prices["volume_coin"].fillna(prices["volume_usd"] / prices["close"])
    funding, note = funding_of(inputs)
    return MarketData(prices, funding, note)


def trade(
    data: MarketData,
    ts: npt.NDArray[np.int64],
    forecasts: Forecasts,
    params: SimulationParams,
    *,
    funding: pd.DataFrame | None = None,
    flags: npt.NDArray[np.int64] | None = None,
    flows: npt.NDArray[np.float64] | None = None,
    state: RiskState | None = None,
) -> Simulation:
    """Trade forecasts of the bars ``ts`` on stored prices.

    Parameters
    ----------
    ts
        int64[n], open times, UTC ms; bars that are not stored are missing to the simulator.
    funding
        ``ts, rate``; by default as stored.
    flags, flows, state
        As of :func:`mlbot_core.backtest.simulator.simulate`.

    Raises
    ------
    MissingDataError
        If no price of the bars is stored.
    """
    grid = pd.DataFrame({"ts": ts}).merge(data.prices, on="ts", how="left")
    if grid["close"].isna().all():
        raise MissingDataError(
            f"no price is stored from {format_utc(int(ts[0]))} on; pull the bars again (mlbot backfill)"
        )
    paid = data.funding if funding is None else funding
    return simulate(
        ts,
        grid["open"].to_numpy(),
        grid["high"].to_numpy(),
        grid["low"].to_numpy(),
        grid["close"].to_numpy(),
        forecasts,
        params,
        paid["ts"].to_numpy(),
        paid["rate"].to_numpy(),
        volume=grid["volume"].to_numpy(),
        flags=flags,
        flows=flows,
        state=state,
    )


def free_run(
    ledger: ExecutionLedger,
    data: MarketData,
    records: Sequence[DecisionRecord],
    executions: Sequence[Execution],
    params: SimulationParams,
    contract: str,
    end_ms: int,
) -> Simulation:
    """Trade the forecasts that ``records`` were made with, from the first of them to ``end_ms``.

    Raises
    ------
    MissingDataError
        If no price of the period is stored.
    """
    length, first_ts = params.timeframe_ms, records[0].ts
    ts = np.arange(first_ts, end_ms, length, dtype=np.int64)
    said = {one.ts: evidence.read(one.details) for one in records}
    edge, multiplier, age = (np.full(len(ts), value) for value in (math.nan, 1.0, float(NO_AGE)))
    flags = np.zeros(len(ts), dtype=np.int64)
    for at, bar in enumerate(ts.tolist()):
        if bar in said:
            basis = said[bar]
            edge[at], multiplier[at], age[at] = basis.forecast
            flags[at] = basis.observation.flags & OBSERVED
    return trade(
        data,
        ts,
        Forecasts(edge, multiplier, age),
        params,
        funding=_charged(data.funding, executions),
        flags=flags,
        flows=_flows(ledger, contract, ts, length),
        state=said[first_ts].state,
    )


def _flows(ledger: ExecutionLedger, contract: str, ts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.float64]:
    """Return deposits less withdrawals, at the open of the bar after the one in which they came.

    What came before the book began is in the balance that it began with.
    """
    flows = np.zeros(len(ts))
    opening = ledger.opening(contract)
    for row in ledger.rows("wallet_events", after=0 if opening is None else opening.wallet_seq, limit=1_000_000):
        at = (int(row["at_ms"]) - int(ts[0])) // length + 1
        if row["kind"] in FLOW_KINDS and 1 <= at < len(ts):
            flows[at] += float(row["change"])
    return flows


def _charged(stored: pd.DataFrame, executions: Sequence[Execution]) -> pd.DataFrame:
    """Return the settlements with the rates that the exchange charged, where it charged any."""
    rates = dict(zip(stored["ts"].astype(np.int64), stored["rate"].astype(float), strict=True))
    for one in executions:
        if one.kind is ExecType.FUNDING and one.qty:
            at = round(one.exec_ms / 60_000) * 60_000
            rates[at] = float(one.fee / (one.side.sign * one.qty * one.price))
    return pd.DataFrame({"ts": sorted(rates), "rate": [rates[at] for at in sorted(rates)]}).dropna()
