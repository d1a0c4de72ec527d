"""From forecasts to an audited result: two simulations, their metrics, one verdict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.backtest.metrics import Metrics, compute_metrics, daily_returns
from mlbot_core.backtest.portfolio import VectorbtView, require_agreement, vectorbt_view
from mlbot_core.backtest.roundtrips import round_trips
from mlbot_core.backtest.setup import simulation_params
from mlbot_core.backtest.simulator import Forecasts, Simulation, SimulationParams, simulate
from mlbot_core.backtest.skill import ForecastSkill, forecast_skill
from mlbot_core.backtest.verdict import Verdict, judge
from mlbot_core.clock import format_utc
from mlbot_core.config import FeesConfig, RiskConfig
from mlbot_core.decision.edges import edge_of
from mlbot_core.errors import MissingDataError, UsageError
from mlbot_core.timeframe import MINUTE_MS, Market
from mlbot_core.validation.trials_significance import CandidateSignificance

FloatArray = npt.NDArray[np.float64]

# From the decision time to the order, measured with the live sensor and an in-process run (median 3.2 s).
DECISION_LATENCY_MS: Final = 3_200

_REQUIRED: Final = {
    "bars": ("ts", "open", "high", "low", "close"),
    "forecasts": ("ts", "fold", "p_down", "p_neutral", "p_up", "score"),
    "targets": ("ts", "label", "width", "t1"),
    "funding": ("ts", "rate"),
}


@dataclass(frozen=True)
class BacktestInput:
    """Everything a backtest depends on.

    Parameters
    ----------
    market, source, model_type, model_version
        What was forecast, from which data, by whom.
    bars
        ``ts`` (UTC ms, open time), ``open``, ``high``, ``low``, ``close`` (USD), and ``volume`` (coins) where it is
        known; ascending, NaN or absent = missing.
    forecasts
        ``ts``, ``fold``, ``p_down``, ``p_neutral``, ``p_up``, ``score`` (expected return in barrier widths): out of
        fold, one row a bar.
    targets
        ``ts``, ``width`` (barrier distance, log return, known at the close), and, for judging the forecasts only,
        ``label`` (-1, 0, +1; NaN = not realised) with ``t1``, when it was known (UTC ms; NaN or -1 = not yet), and
        where they are known ``score``, the return over the horizon in widths, with ``score_t1``.
    funding
        ``ts`` (UTC ms of the settlement), ``rate`` (fraction; positive: longs pay). May be empty.
    fees, risk
        As configured.
    settle_delay_ms
        From a bar's close to the decision time of the source.
    synthetic
        True for a made-up market; every report says so.
    notes
        What a reader must know about the data, one sentence each.
    shares
        Point-in-time shares of the data, fractions: ``live``, ``modelled``, ``restated``.
    latency_ms
        From the decision time to the fill.
    initial_nav
        USD.
    n_features
        Number of features of the model, for the summary; None where unknown.
    """

    market: Market
    source: str
    model_type: str
    model_version: str
    bars: pd.DataFrame
    forecasts: pd.DataFrame
    targets: pd.DataFrame
    funding: pd.DataFrame
    fees: FeesConfig
    risk: RiskConfig
    settle_delay_ms: int
    synthetic: bool
    notes: tuple[str, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    latency_ms: int = DECISION_LATENCY_MS
    initial_nav: float = 10_000.0
    n_features: int | None = None


@dataclass(frozen=True)
class BacktestResult:
    """What came out.

    Parameters
    ----------
    input
        What went in.
    start_ms, end_ms
        First instant and end of the simulated period, UTC ms, [start, end).
    metrics
        ``traded`` (at risk.max_position), ``unit`` (100 % of NAV, cap off) and ``hold`` (buy and hold the perpetual at
        100 %, same costs and funding).
    simulations
        By the same names.
    verdict
        The user's criteria at both sizes, and the statistics where trials were counted.
    skill
        The forecasts against realised labels.
    vectorbt
        The traded fills in vectorbt's books.
    equity
        ``ts``, ``nav_traded``, ``nav_unit``, ``nav_hold`` (USD at the close), ``close`` (USD), ``position`` (BTC,
        at the traded size): one row a bar.
    fills, payments, trades
        Of the traded size; see :class:`Simulation` and :func:`round_trips`.
    daily
        ``day``, ``traded``, ``unit``, ``hold``: daily net returns.
    notes
        The input's notes and what the run found out itself.
    significance
        The result among all trials of its namespace; None where it was not recorded in a ledger.
    """

    input: BacktestInput
    start_ms: int
    end_ms: int
    metrics: Mapping[str, Metrics]
    simulations: Mapping[str, Simulation]
    verdict: Verdict
    skill: ForecastSkill
    vectorbt: VectorbtView
    equity: pd.DataFrame
    fills: pd.DataFrame
    payments: pd.DataFrame
    trades: pd.DataFrame
    daily: pd.DataFrame
    notes: tuple[str, ...]
    significance: CandidateSignificance | None = None


@dataclass(frozen=True)
class UnitRun:
    """The part of a backtest that the trial ledger counts; its fields are those of :class:`BacktestResult`.

    ``metrics`` holds ``unit`` alone, ``daily`` holds ``day`` and ``unit``.
    """

    input: BacktestInput
    start_ms: int
    end_ms: int
    metrics: Mapping[str, Metrics]
    daily: pd.DataFrame


def run_unit(data: BacktestInput) -> UnitRun:
    """Trade the forecasts at unit exposure: the numbers of :func:`run_backtest` at that size, and no others.

    Raises
    ------
    MissingDataError, UsageError
        As :func:`run_backtest`.
    """
    _check(data)
    grid, params = _grid(data), _params(data, unit=True)
    done = _simulate(data, grid, _said(grid), params)
    daily = daily_returns(done.ts, done.nav, data.initial_nav)
    return UnitRun(
        input=data,
        start_ms=int(grid["ts"].iloc[0]),
        end_ms=int(grid["ts"].iloc[-1]) + params.timeframe_ms,
        metrics=MappingProxyType({"unit": compute_metrics(done, grid["close"].to_numpy(), grid["volume"].to_numpy())}),
        daily=pd.DataFrame({"day": daily["day"], "unit": daily["ret"]}),
    )


def run_backtest(data: BacktestInput) -> BacktestResult:
    """Trade the forecasts at the traded size and at unit exposure, and judge both.

    The period runs from the first forecast's bar to the bar after the last forecast's. A bar without a forecast inside
    it asks for no position.

    Raises
    ------
    MissingDataError
        If there are no forecasts, or none of their bars is recorded.
    UsageError
        If a frame lacks a column, has a duplicate time or is out of order.
    BookkeepingError
        If vectorbt's books of the same fills differ.
    """
    _check(data)
    grid = _grid(data)
    traded_params, unit_params = _params(data, unit=False), _params(data, unit=True)
    said = _said(grid)
    simulations = {
        "traded": _simulate(data, grid, said, traded_params),
        "unit": _simulate(data, grid, said, unit_params),
        # bought once and held: what the comparison drifts to is the point of it
        "hold": _simulate(data, grid, np.ones(len(grid)), dataclasses.replace(unit_params, rebalance_band=math.inf)),
    }
    close = grid["close"].to_numpy()
    volume = grid["volume"].to_numpy()
    metrics = {name: compute_metrics(simulation, close, volume) for name, simulation in simulations.items()}
    traded = simulations["traded"]
    view = vectorbt_view(traded, close)
    require_agreement(view)
    daily = {name: daily_returns(s.ts, s.nav, data.initial_nav) for name, s in simulations.items()}
    return BacktestResult(
        input=data,
        start_ms=int(grid["ts"].iloc[0]),
        end_ms=int(grid["ts"].iloc[-1]) + traded_params.timeframe_ms,
        metrics=MappingProxyType(metrics),
        simulations=MappingProxyType(simulations),
        verdict=judge(metrics["traded"], metrics["unit"]),
        skill=forecast_skill(data.forecasts, data.targets, traded_params.timeframe_ms),
        vectorbt=view,
        equity=pd.DataFrame(
            {
                "ts": traded.ts,
                **{f"nav_{name}": simulation.nav for name, simulation in simulations.items()},
                "close": close,
                "position": traded.position,
            }
        ),
        fills=traded.fills,
        payments=traded.payments,
        trades=round_trips(traded, float(grid["close"].ffill().iloc[-1])),
        daily=pd.DataFrame({"day": daily["traded"]["day"], **{name: frame["ret"] for name, frame in daily.items()}}),
        notes=(*data.notes, *_findings(data, grid, simulations)),
    )


def with_significance(result: BacktestResult, significance: CandidateSignificance) -> BacktestResult:
    """Return the result judged again, among all trials."""
    verdict = judge(result.metrics["traded"], result.metrics["unit"], significance)
    return dataclasses.replace(result, verdict=verdict, significance=significance)


def _check(data: BacktestInput) -> None:
    for name, columns in _REQUIRED.items():
        frame: pd.DataFrame = getattr(data, name)
        missing = [column for column in columns if column not in frame.columns]
        if missing:
            raise UsageError(f"{name} of {data.market} lack the columns {', '.join(missing)}")
        steps = np.diff(frame["ts"].to_numpy(dtype=np.int64))
        if len(steps) and steps.min() <= 0:
            at = int(frame["ts"].iloc[int(np.argmax(steps <= 0)) + 1])
            raise UsageError(f"{name} of {data.market}: {format_utc(at)} is duplicated or out of order")
    if data.forecasts.empty:
        raise MissingDataError(
            f"no forecasts of {data.model_type} for {data.market}; run `mlbot train --interval {data.market.timeframe} "
            f"--model {data.model_type}`"
        )


def _grid(data: BacktestInput) -> pd.DataFrame:
    """Return one row for every bar of the period, missing ones included as NaN."""
    length = data.market.timeframe.ms
    first, last = int(data.forecasts["ts"].iloc[0]), int(data.forecasts["ts"].iloc[-1])
    end = min(last + length, int(data.bars["ts"].max())) if len(data.bars) else last
    ts = np.arange(first, max(end, last) + 1, length, dtype=np.int64)
    grid = pd.DataFrame({"ts": ts})
    bars = data.bars if "volume" in data.bars.columns else data.bars.assign(volume=np.nan)
    for frame, columns in (
        (bars, ["open", "high", "low", "close", "volume"]),
        (data.forecasts, ["score"]),
        (data.targets, ["width"]),
    ):
        grid = grid.merge(frame[["ts", *columns]], on="ts", how="left")
    if grid["close"].isna().all():
        raise MissingDataError(
            f"no recorded price of {data.market} between {format_utc(first)} and {format_utc(last)}, where the "
            f"forecasts are; run `mlbot backfill --interval {data.market.timeframe}`"
        )
    return grid.astype({name: "float64" for name in grid.columns if name != "ts"})


def _params(data: BacktestInput, *, unit: bool) -> SimulationParams:
    return simulation_params(
        data.market,
        data.fees,
        data.risk,
        data.settle_delay_ms,
        data.latency_ms,
        unit=unit,
        initial_nav=data.initial_nav,
    )


def _said(grid: pd.DataFrame) -> Forecasts:
    return Forecasts(edge_of(grid["score"].to_numpy(), grid["width"].to_numpy()))


def _simulate(
    data: BacktestInput, grid: pd.DataFrame, decided: Forecasts | FloatArray, params: SimulationParams
) -> Simulation:
    open_, high, low, close = (grid[name].to_numpy() for name in ("open", "high", "low", "close"))
    funding = data.funding.dropna(subset=["rate"])
    return simulate(
        grid["ts"].to_numpy(),
        open_,
        high,
        low,
        close,
        decided,
        params,
        funding["ts"].to_numpy(),
        funding["rate"].to_numpy(),
        volume=grid["volume"].to_numpy(),
    )


def _findings(data: BacktestInput, grid: pd.DataFrame, simulations: Mapping[str, Simulation]) -> list[str]:
    found = []
    missing = int(grid["close"].isna().sum())
    if missing:
        found.append(f"{missing} of {len(grid)} bars are not recorded: nothing is decided or filled in them.")
    present = grid["close"].notna()
    silent = int((grid["score"].isna() & present).iloc[:-1].sum())
    if silent:
        found.append(f"{silent} bars have no forecast: no position is asked for after them.")
    inside = data.funding["ts"].between(int(grid["ts"].iloc[0]), int(grid["ts"].iloc[-1]))
    if not inside.any():
        found.append("No funding is recorded in the period: the result is before funding.")
    for name, simulation in simulations.items():
        if simulation.bankrupt_bar is not None:
            when = format_utc(int(simulation.ts[simulation.bankrupt_bar]))
            found.append(
                f"The account went bankrupt at {name} size in the bar of {when}; nothing is traded afterwards."
            )
    found.append("Settlements are paid on the last price: no mark price is recorded.")
    traded = simulations["traded"].risk_events
    days = int(traded["entered"].str.contains("daily_loss").sum())
    if days:
        found.append(f"The daily loss limit flattened the traded size on {days} days.")
    halted = traded[traded["entered"].str.contains("drawdown")]
    if len(halted):
        when = format_utc(int(halted["ts"].iloc[0]) // MINUTE_MS * MINUTE_MS)
        found.append(f"The drawdown limit halted the traded size at {when}; nobody re-arms it in a backtest.")
    return found
