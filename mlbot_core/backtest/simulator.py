"""What a stream of forecasts or targets would have earned: an account simulated bar by bar, after costs and funding.

The loop is :func:`mlbot_core.backtest.engine.run`; its description says what happens when inside a bar. It calls the
same decision function as paper and live trading.

* A decision is made at the bar's close plus the settle delay, and its order is filled ``delay_ms`` after the close in
  the next recorded bar (``latency_bars`` bars later), so nothing is filled before it was decided; slippage and ticks
  worsen the price. With ``maker_bars`` it rests as a limit order first, at the maker's fee and without slippage.
* A settlement at ``s`` belongs to the bar with ``open < s <= close``; whoever holds the position at that instant pays,
  on the mark price (inside a bar on the bridge between its open and close).
* A bar with NaN open or close, or absent altogether, is missing: nothing is decided or filled in it, the position is
  carried at its last close, funding is still paid, and an order waits for the next recorded bar.
* A stop, a limit or a liquidation closes the whole position at once, whatever the bar's volume; the impact of its size
  worsens the price.
* When equity at the mark falls to the maintenance margin, the exchange takes the position over and nothing of the
  account is left; without maintenance tiers that happens where NAV is zero. Nothing happens afterwards.

Accounting: ``nav_end = nav_0 + gross - fees - slippage - funding + flows``, where gross is earned at prices before
slippage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.backtest import engine, records
from mlbot_core.backtest.orders import R_LIQUIDATED, REASONS
from mlbot_core.backtest.params import NO_AGE, SimulationParams
from mlbot_core.clock import format_utc
from mlbot_core.decision.state import ERROR, KILL, OBSERVED, RiskState, cause_names, initial_state
from mlbot_core.errors import UsageError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

BANKRUPT: Final = R_LIQUIDATED
_KNOWN_FLAGS: Final = OBSERVED | KILL | ERROR

__all__ = ["BANKRUPT", "REASONS", "Forecasts", "Simulation", "SimulationParams", "simulate"]


@dataclass(frozen=True)
class Forecasts:
    """What the decision function reads of each bar.

    Parameters
    ----------
    edge
        float64[n], expected log return of a long position, before costs; NaN = no forecast.
    multiplier
        float64[n], share of the cap to use; ones by default.
    age_ms
        float64[n], age of each forecast at its decision; zeros by default. NaN is unknown, and older than any limit.
    """

    edge: npt.ArrayLike
    multiplier: npt.ArrayLike | None = None
    age_ms: npt.ArrayLike | None = None

    def matrix(self, n: int) -> FloatArray:
        """Return float64[3, n] as the loop reads it.

        Raises
        ------
        UsageError
            If a column has another length, or a multiplier or age is negative.
        """
        columns = (("edge", self.edge, math.nan), ("multiplier", self.multiplier, 1.0), ("age_ms", self.age_ms, 0.0))
        out = np.empty((len(columns), n))
        for row, (name, values, default) in enumerate(columns):
            if values is None:
                out[row] = default
                continue
            data = np.asarray(values, dtype=np.float64)
            if data.shape != (n,):
                raise UsageError(f"forecasts have {data.shape} values of {name} for {n} bars")
            if name != "edge" and (data < 0.0).any():
                at = int(np.argmax(data < 0.0))
                raise UsageError(f"{name}[{at}] is {data[at]}; it must not be negative")
            # the loop reads whole milliseconds; an unknown or infinite one must not turn into a small number there
            out[row] = np.fmin(np.where(np.isnan(data), NO_AGE, data), NO_AGE) if name == "age_ms" else data
        return out


@dataclass(frozen=True)
class Simulation:
    """What happened.

    Parameters
    ----------
    ts
        int64[n], open times of the bars, UTC ms.
    nav, nav_low
        float64[n], USD at each bar's close and at its adverse extreme.
    position
        float64[n], BTC held at the close, signed.
    gross, fees, slippage, funding
        float64[n], USD within each bar; costs and payments positive when paid.
    fills
        One row a fill: ``ts`` (when, UTC ms), ``bar`` (row of the bar), ``side`` (+1, -1), ``btc``, ``price`` (USD,
        slippage included), ``mid`` (USD, before slippage), ``fee``, ``slippage`` (USD), ``reason`` (target, drift,
        trim, stop, risk, bankrupt), ``nav`` (USD, at the decision or when the level was hit; 0 for bankrupt),
        ``position`` (BTC, signed, after the fill), ``maker`` (whether a resting limit order was filled).
    payments
        One row a settlement with a position: ``ts``, ``btc``, ``price``, ``rate``, ``payment`` (USD, positive = paid).
    bankrupt_bar
        Row of the bar in which NAV was used up; None if it never was.
    params
        The parameters of the run.
    level
        int64[n], risk level after each bar's decision, a number of :data:`mlbot_core.decision.state.LEVELS`.
    flows
        float64[n], USD, deposits less withdrawals at each bar's open.
    risk_events
        One row a change of causes: ``ts``, ``bar``, ``entered``, ``cleared`` (names, joined by commas).
    final_state
        The risk state at the end.
    """

    ts: IntArray
    nav: FloatArray
    nav_low: FloatArray
    position: FloatArray
    gross: FloatArray
    fees: FloatArray
    slippage: FloatArray
    funding: FloatArray
    fills: pd.DataFrame
    payments: pd.DataFrame
    bankrupt_bar: int | None
    params: SimulationParams
    level: IntArray
    flows: FloatArray
    risk_events: pd.DataFrame
    final_state: RiskState

    @property
    def bankrupt(self) -> bool:
        """Whether NAV was used up."""
        return self.bankrupt_bar is not None


def simulate(
    ts: npt.ArrayLike,
    open_: npt.ArrayLike,
    high: npt.ArrayLike,
    low: npt.ArrayLike,
    close: npt.ArrayLike,
    decided: npt.ArrayLike | Forecasts,
    params: SimulationParams,
    funding_ts: npt.ArrayLike | None = None,
    funding_rate: npt.ArrayLike | None = None,
    *,
    volume: npt.ArrayLike | None = None,
    mark: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike] | None = None,
    flags: npt.ArrayLike | None = None,
    flows: npt.ArrayLike | None = None,
    state: RiskState | None = None,
) -> Simulation:
    """Trade forecasts, or a stream of target positions, over bars.

    Parameters
    ----------
    ts
        int64[n], open times, UTC ms, strictly ascending; bars may be absent.
    open_, high, low, close
        float64[n], USD; NaN = missing.
    decided
        Forecasts for the decision function, or float64[n] signed fractions of NAV that are wanted after each bar; NaN
        = no wish, the former target stands.
    params
        Costs, delays and limits.
    funding_ts, funding_rate
        Settlements: UTC ms, strictly ascending, and the fraction of position value that longs pay to shorts.
    volume
        float64[n], coins traded in each bar; NaN or absent = unknown: no impact, no bound on participation.
    mark
        Open, high, low, close of the mark price; the last price by default and where it is NaN.
    flags
        int64[n], causes that others found at each decision (:mod:`mlbot_core.decision.state`).
    flows
        float64[n], deposits less withdrawals at each bar's open, USD.
    state
        Of the risk machine before the first bar, as a restart or a person who re-armed it left it; by default that of
        an account that was never marked. The account starts without a position.

    Raises
    ------
    UsageError
        If lengths differ, times are not ascending, a price is not positive, a volume negative, a flow not a number, a
        flag unknown, or a target infinite or above the cap.
    """
    times = _own(ts, np.int64)
    n = len(times)
    prices = _stack((open_, high, low, close), n, "prices")
    marks = prices.copy() if mark is None else _stack(mark, n, "mark prices")
    marks = np.where(np.isnan(marks), prices, marks)
    events = _own(funding_ts if funding_ts is not None else [], np.int64)
    rates = _own(funding_rate if funding_rate is not None else [], np.float64)
    volumes = _column(volume, n, math.nan, np.float64, "volume")
    found_by_others = _column(flags, n, 0, np.int64, "flags")
    moved = _column(flows, n, 0.0, np.float64, "flows")
    wanted, said = np.empty(0), np.empty((3, 0))
    if isinstance(decided, Forecasts):
        said = decided.matrix(n)
        if not math.isfinite(params.cap):
            raise UsageError("forecasts are sized by the cap, which is infinite here; 1.0 is the whole NAV")
    else:
        wanted = _own(decided, np.float64)
        _check_targets(times, wanted, params)
    _check(times, prices, marks, events, rates, params)
    _refuse(times, volumes, (volumes < 0) | np.isinf(volumes), "volume", "a number of coins, NaN for unknown")
    _refuse(times, moved, ~np.isfinite(moved), "flow", "an amount of USD")
    _refuse(times, found_by_others, (found_by_others & ~_KNOWN_FLAGS) != 0, "flags", "a set of observed causes")
    found = engine.run(
        times,
        prices,
        marks,
        volumes,
        wanted,
        said,
        found_by_others,
        moved,
        events,
        rates,
        np.array(params.maintenance, dtype=np.float64).reshape(-1, 3),
        float(params.initial_nav),
        initial_state() if state is None else state,
        params.limits(),
        params.rules(),
    )
    return _simulation(times, params, moved, *found)


def _simulation(
    times: IntArray,
    params: SimulationParams,
    flows: FloatArray,
    bars: FloatArray,
    fill_ts: IntArray,
    fills: FloatArray,
    payment_ts: IntArray,
    payments: FloatArray,
    changes: IntArray,
    dead: int,
    state: Any,
) -> Simulation:
    return Simulation(
        ts=times,
        nav=bars[records.NAV],
        nav_low=bars[records.NAV_LOW],
        position=bars[records.POSITION],
        gross=bars[records.GROSS],
        fees=bars[records.FEES],
        slippage=bars[records.SLIPPAGE],
        funding=bars[records.FUNDING],
        fills=pd.DataFrame(
            {
                "ts": fill_ts,
                "bar": fills[:, 0].astype(np.int64),
                "side": fills[:, 1].astype(np.int64),
                "btc": fills[:, 2],
                "price": fills[:, 3],
                "mid": fills[:, 4],
                "fee": fills[:, 5],
                "slippage": fills[:, 6],
                "reason": pd.Series([REASONS[int(code)] for code in fills[:, 7]], dtype="str"),
                "nav": fills[:, 8],
                "position": fills[:, 9],
                "maker": fills[:, records.MAKER] != 0.0,
            }
        ),
        payments=pd.DataFrame(
            {
                "ts": payment_ts,
                "btc": payments[:, 0],
                "price": payments[:, 1],
                "rate": payments[:, 2],
                "payment": payments[:, 3],
            }
        ),
        bankrupt_bar=int(dead) if dead >= 0 else None,
        params=params,
        level=bars[records.LEVEL].astype(np.int64),
        flows=flows,
        risk_events=pd.DataFrame(
            {
                "ts": changes[:, 0],
                "bar": changes[:, 1],
                "entered": pd.Series([",".join(cause_names(int(c))) for c in changes[:, 2]], dtype="str"),
                "cleared": pd.Series([",".join(cause_names(int(c))) for c in changes[:, 3]], dtype="str"),
            }
        ),
        final_state=RiskState(*state),
    )


def _stack(columns: tuple[npt.ArrayLike, ...], n: int, what: str) -> FloatArray:
    arrays = [np.asarray(values, dtype=np.float64) for values in columns]
    if any(array.shape != (n,) for array in arrays):
        raise UsageError(f"bars have {n} times but {what} of {[len(a) for a in arrays]}")
    return np.ascontiguousarray(np.stack(arrays)) if n else np.empty((len(columns), 0))


def _own(values: npt.ArrayLike, kind: Any) -> Any:
    """Return a copy of one's own: the loop is compiled once, not again for every mix of read-only arrays."""
    return np.array(values, dtype=kind, order="C", copy=True)


def _column(values: npt.ArrayLike | None, n: int, default: float, kind: Any, what: str) -> Any:
    if values is None:
        return np.full(n, default, dtype=kind)
    array = np.asarray(values)
    if array.shape != (n,):
        raise UsageError(f"bars have {n} times but {array.shape} values of {what}")
    if kind is np.int64 and array.dtype.kind not in "iub":
        raise UsageError(f"{what} are {array.dtype}; they must be whole numbers")
    return _own(array, kind)


def _refuse(ts: IntArray, values: Any, bad: npt.NDArray[np.bool_], what: str, rule: str) -> None:
    if bad.any():
        at = int(np.argmax(bad))
        raise UsageError(f"{what} {values[at]} at bar {format_utc(int(ts[at]))} is not {rule}")


def _check_targets(ts: IntArray, target: FloatArray, params: SimulationParams) -> None:
    if target.shape != ts.shape:
        raise UsageError(f"bars have {len(ts)} times but {target.shape} targets")
    wrong = np.abs(target) > params.cap * (1 + 1e-9)
    if wrong.any() or np.isinf(target).any():
        at = int(np.argmax(wrong | np.isinf(target)))
        raise UsageError(
            f"target {target[at]} at bar {format_utc(int(ts[at]))} exceeds the cap of {params.cap} of NAV; "
            "size positions with the same max_position as the simulation"
        )


def _check(
    ts: IntArray, prices: FloatArray, marks: FloatArray, events: IntArray, rates: FloatArray, params: SimulationParams
) -> None:
    step = np.diff(ts)
    if len(step) and step.min() < params.timeframe_ms:
        at = int(ts[1:][step < params.timeframe_ms][0])
        raise UsageError(f"bar {format_utc(at)} overlaps the bar before it; bars must ascend, one a timeframe")
    for values in (*prices, *marks):
        _refuse(ts, values, (values <= 0) | np.isinf(values), "price", "a positive number of USD")
    if len(events) != len(rates) or (len(events) > 1 and np.diff(events).min() <= 0):
        raise UsageError(
            f"funding has {len(events)} times and {len(rates)} rates; times must ascend, one rate a settlement"
        )
    if not np.isfinite(rates).all():
        at = int(np.argmax(~np.isfinite(rates)))
        raise UsageError(f"funding rate {rates[at]} at {format_utc(int(events[at]))} is not a number; drop the row")
