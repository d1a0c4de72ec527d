"""What a simulation was worth, on daily UTC NAV returns: 24 hours, 365 days a year, flat days included.

Returns are time-weighted: a deposit or withdrawal enters at a bar's open, and what is earned after it is divided by the
NAV with it (the Global Investment Performance Standards ask for the same). Without flows growth is NAV / NAV_0.

Definitions (r: daily net returns, d: number of days, g: growth of 1)

============================  ======================================================================================
sharpe, its interval, psr     :mod:`mlbot_core.validation.significance`, risk-free rate zero
sortino                       mean(r) / sqrt(mean(min(r, 0)^2)) x sqrt(365)
cagr                          g_end^(365 / d) - 1
max_drawdown                  largest fall of daily growth from its peak so far, the first NAV included, as a fraction
drawdown_days                 days from that peak until it was reached again, or to the end
longest_drawdown_days         the same of whichever drawdown took longest
mar                           cagr / max_drawdown, over everything (Managed Account Reports)
calmar                        the same over the last 36 months, 1,095 days (Young 1991); all of a shorter record
tail_ratio                    |95th| / |5th percentile of r|: gains of good days against losses of bad ones
exposure, time_in_market      mean |position value| / NAV at the closes; share of bars with a position
turnover_per_year             sum(traded value / NAV at the decision) x 365 / d
profit_factor                 sum of winning / sum of losing round trips, net
break_even_bp                 (gross - funding) / traded value x 10^4: the cost per side at which the net is zero
capacities                    :mod:`mlbot_core.backtest.capacity`
maker_share                   share of the traded value that limit orders filled
median_holding_ms             of the closed round trips
============================  ======================================================================================

What the data do not define is NaN, which no criterion accepts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.backtest.capacity import Capacity, capacities
from mlbot_core.backtest.roundtrips import round_trips
from mlbot_core.backtest.simulator import Simulation
from mlbot_core.timeframe import DAY_MS
from mlbot_core.validation.significance import (
    DAYS_PER_YEAR,
    Interval,
    probabilistic_sharpe_ratio,
    sharpe_interval,
    wilson_interval,
)

FloatArray = npt.NDArray[np.float64]

# On fewer days with any return the standard error of a Sharpe ratio collapses (one active day in 500 was seen to be
# "significant" every time), so no interval is given.
MIN_ACTIVE_DAYS: Final = 30
CALMAR_DAYS: Final = 3 * 365


@dataclass(frozen=True)
class Waterfall:
    """From gross to net, USD over the whole period; costs positive when paid. Deposits are no part of it."""

    gross: float
    fees: float
    slippage: float
    funding: float
    net: float


@dataclass(frozen=True)
class Drawdown:
    """The deepest fall of a NAV series.

    Parameters
    ----------
    depth
        Fraction of the peak, positive.
    days
        From the peak to its recovery, or to the end.
    recovered
        Whether the peak was reached again.
    """

    depth: float
    days: int
    recovered: bool


@dataclass(frozen=True)
class Metrics:
    """Metrics of one simulation; the module's description defines each. Fractions unless the name says otherwise."""

    days: int
    nav_start: float
    nav_end: float
    total_return: float
    sharpe: Interval
    psr: float
    sortino: float
    volatility: float
    cagr: float
    drawdown: Drawdown
    drawdown_intrabar: float
    longest_drawdown_days: int
    mar: float
    calmar: float
    tail_ratio: float
    exposure: float
    time_in_market: float
    turnover_per_year: float
    trades: int
    open_trades: int
    trade_hits: Interval
    profit_factor: float
    mean_trade_return: float
    waterfall: Waterfall
    traded_value: float
    break_even_bp: float
    capacities: tuple[Capacity, ...]
    maker_share: float
    median_holding_ms: float
    flows: float
    bankrupt: bool


def bar_growth(nav: FloatArray, initial_nav: float, flows: FloatArray | None = None) -> FloatArray:
    """Return the growth of 1 at each bar's close, deposits and withdrawals taken out.

    Parameters
    ----------
    nav
        float64[n], USD at the closes.
    initial_nav
        USD before the first bar.
    flows
        float64[n], deposits less withdrawals at each bar's open, USD; None for none. Where nothing is left after a
        withdrawal there is nothing to grow, and growth stands still.
    """
    if flows is None or not flows.any():
        return np.asarray(nav / initial_nav, dtype=np.float64)
    before = np.r_[initial_nav, nav[:-1]] + flows
    factor = np.divide(nav, before, out=np.ones(len(nav)), where=before > 0)
    return np.asarray(np.cumprod(np.maximum(factor, 0.0)), dtype=np.float64)


def daily_returns(
    ts: npt.NDArray[np.int64], nav: FloatArray, initial_nav: float, flows: FloatArray | None = None
) -> pd.DataFrame:
    """Return the NAV at the end of every UTC day and the day's time-weighted return.

    Parameters
    ----------
    ts
        int64[n], open times, UTC ms; a bar belongs to the day in which it opens.
    nav
        float64[n], USD at the closes.
    initial_nav
        USD before the first bar.
    flows
        float64[n], deposits less withdrawals at each bar's open, USD; None for none.

    Returns
    -------
    pandas.DataFrame
        ``day`` (UTC ms of its start, every calendar day from first to last), ``nav`` (USD, flows included), ``growth``
        (of 1, flows taken out), ``ret``. A day without bars keeps the NAV of the day before, so its return is zero;
        after a NAV of zero returns are zero.
    """
    if len(ts) == 0:
        empty = np.array([], np.float64)
        return pd.DataFrame({"day": np.array([], np.int64), "nav": empty, "growth": empty, "ret": empty})
    day = ts // DAY_MS
    last = np.flatnonzero(np.r_[day[1:] != day[:-1], True])
    days = np.arange(day[0], day[-1] + 1, dtype=np.int64)
    rows = last[np.searchsorted(day[last], days, side="right") - 1]
    moved = flows is not None and bool(flows.any())
    growth = bar_growth(nav, initial_nav, flows)[rows]
    # without flows the NAV itself is divided: one rounding less
    path, first = (growth, 1.0) if moved else (nav[rows], initial_nav)
    before = np.r_[first, path[:-1]]
    ret = np.divide(path, before, out=np.ones(len(path)), where=before > 0) - 1.0
    return pd.DataFrame({"day": days * DAY_MS, "nav": nav[rows], "growth": growth, "ret": ret})


def max_drawdown(nav: FloatArray, initial_nav: float) -> Drawdown:
    """Return the deepest fall of a daily NAV series from its peak so far, the initial NAV included."""
    path = np.r_[initial_nav, nav]
    peak = np.maximum.accumulate(path)
    fall = 1.0 - path / peak
    bottom = int(np.argmax(fall))
    if fall[bottom] <= 0:
        return Drawdown(0.0, 0, True)
    start = int(np.argmax(path == peak[bottom]))
    # The last time the peak was touched before the fall.
    start += int(np.flatnonzero(path[start : bottom + 1] == peak[bottom])[-1])
    back = np.flatnonzero(path[bottom:] >= peak[bottom])
    end = bottom + int(back[0]) if len(back) else len(path) - 1
    return Drawdown(float(fall[bottom]), end - start, bool(len(back)))


def longest_drawdown(growth: FloatArray) -> int:
    """Return the most days that daily growth of 1 was on its way back to a peak, the first NAV included."""
    path = np.r_[1.0, growth]
    peak = np.maximum.accumulate(path)
    at_peak = np.flatnonzero(path >= peak)
    under = np.diff(np.r_[at_peak, len(path)])
    # from one touch of the peak to the next; what has not come back by the end lasts until the end
    days = np.r_[under[:-1], under[-1] - 1]
    return int(days[days > 1].max()) if (days > 1).any() else int(path[-1] < peak[-1])


def tail_ratio(returns: FloatArray) -> float:
    """Return |95th| / |5th percentile| of daily returns; NaN where the latter is zero, or there are no returns."""
    if len(returns) == 0:
        return math.nan
    high, low = np.abs(np.percentile(returns, [95, 5]))
    return float(high / low) if low > 0 else math.nan


def calmar_ratio(returns: FloatArray) -> float:
    """Return the annual growth over the deepest drawdown of the last 36 months; NaN without a drawdown."""
    growth = np.asarray(np.cumprod(1.0 + returns[-CALMAR_DAYS:]), dtype=np.float64)
    if not len(growth):
        return math.nan
    fall = max_drawdown(growth, 1.0).depth
    return annual_growth(1.0, float(growth[-1]), len(growth)) / fall if fall > 0 else math.nan


def sortino_ratio(returns: FloatArray) -> float:
    """Return the annual Sortino ratio of daily returns against zero; NaN without a losing day."""
    if len(returns) < 2:
        return math.nan
    downside = math.sqrt(float(np.mean(np.minimum(returns, 0.0) ** 2)))
    return float(np.mean(returns)) / downside * math.sqrt(DAYS_PER_YEAR) if downside > 0 else math.nan


def annual_growth(nav_start: float, nav_end: float, days: int) -> float:
    """Return the compound annual growth rate as a fraction; -1 when nothing is left, NaN for no days."""
    if days == 0:
        return math.nan
    if nav_end <= 0:
        return -1.0
    log_growth = math.log(nav_end / nav_start) * DAYS_PER_YEAR / days
    # A good day extrapolated to a year may exceed every float.
    return math.expm1(log_growth) if log_growth < 700 else math.inf


def compute_metrics(simulation: Simulation, close: FloatArray, volume: FloatArray | None = None) -> Metrics:
    """Return the metrics of a simulation.

    Parameters
    ----------
    simulation
        What happened.
    close
        float64[n], the closes it ran on, USD; NaN = missing.
    volume
        float64[n], coins traded in each bar, for the capacity; NaN or None = unknown.
    """
    start = simulation.params.initial_nav
    flows = float(simulation.flows.sum())
    daily = daily_returns(simulation.ts, simulation.nav, start, simulation.flows)
    growth = daily["growth"].to_numpy()
    grown = float(growth[-1]) if len(growth) else 1.0
    returns = daily["ret"].to_numpy()
    days = len(daily)
    end = float(simulation.nav[-1]) if len(simulation.nav) else start
    marks = pd.Series(close, dtype=np.float64).ffill().to_numpy()
    trips = round_trips(simulation, float(marks[-1]) if len(marks) else math.nan)
    closed = trips[trips["closed"] >= 0]
    pnl = closed["pnl"].to_numpy()
    lost = float(-pnl[pnl < 0].sum())
    fills = simulation.fills
    decided = fills[fills["nav"] > 0]
    traded = float((fills["btc"] * fills["mid"]).sum())
    waterfall = Waterfall(
        gross=float(simulation.gross.sum()),
        fees=float(simulation.fees.sum()),
        slippage=float(simulation.slippage.sum()),
        funding=float(simulation.funding.sum()),
        net=end - start - flows,
    )
    drawdown = max_drawdown(growth, 1.0)
    cagr = annual_growth(1.0, grown, days)
    held = simulation.position != 0
    value = np.zeros(len(marks))
    alive = held & (simulation.nav > 0)
    value[alive] = np.abs(simulation.position[alive]) * marks[alive] / simulation.nav[alive]
    sharpe = sharpe_interval(returns)
    enough = np.count_nonzero(returns) >= MIN_ACTIVE_DAYS
    return Metrics(
        days=days,
        nav_start=start,
        nav_end=end,
        total_return=grown - 1.0,
        sharpe=sharpe if enough else replace(sharpe, low=math.nan, high=math.nan, standard_error=math.nan),
        psr=probabilistic_sharpe_ratio(returns) if enough else math.nan,
        sortino=sortino_ratio(returns),
        volatility=float(np.std(returns, ddof=1)) * math.sqrt(DAYS_PER_YEAR) if days > 1 else math.nan,
        cagr=cagr,
        drawdown=drawdown,
        drawdown_intrabar=_intrabar_drawdown(simulation),
        longest_drawdown_days=longest_drawdown(growth),
        mar=cagr / drawdown.depth if drawdown.depth > 0 else math.nan,
        calmar=calmar_ratio(returns),
        tail_ratio=tail_ratio(returns),
        exposure=float(value.mean()) if len(value) else math.nan,
        time_in_market=float(held.mean()) if len(held) else math.nan,
        turnover_per_year=(
            float((decided["btc"] * decided["mid"] / decided["nav"]).sum()) * DAYS_PER_YEAR / days if days else math.nan
        ),
        trades=len(closed),
        open_trades=len(trips) - len(closed),
        trade_hits=wilson_interval(int((pnl > 0).sum()), len(closed)),
        profit_factor=float(pnl[pnl > 0].sum()) / lost if lost > 0 else math.nan,
        mean_trade_return=float(closed["ret"].mean()) if len(closed) else math.nan,
        waterfall=waterfall,
        traded_value=traded,
        break_even_bp=(waterfall.gross - waterfall.funding) / traded * 1e4 if traded > 0 else math.nan,
        capacities=capacities(simulation, volume),
        maker_share=float((fills["btc"] * fills["mid"])[fills["maker"]].sum()) / traded if traded > 0 else math.nan,
        median_holding_ms=float((closed["closed"] - closed["opened"]).median()) if len(closed) else math.nan,
        flows=flows,
        bankrupt=simulation.bankrupt,
    )


def _intrabar_drawdown(simulation: Simulation) -> float:
    """Return the deepest fall from the highest close so far to the adverse extreme of a bar, a fraction."""
    if len(simulation.nav) == 0:
        return math.nan
    start = simulation.params.initial_nav
    growth = np.r_[1.0, bar_growth(simulation.nav, start, simulation.flows)]
    before = np.r_[start, simulation.nav[:-1]] + simulation.flows
    low = np.divide(simulation.nav_low, before, out=np.ones(len(before)), where=before > 0) * growth[:-1]
    peak = np.maximum.accumulate(growth)[:-1]
    fall = np.divide(low, peak, out=np.ones(len(peak)), where=peak > 0)
    return float(max(0.0, np.max(1.0 - fall)))


def rolling_sharpe(returns: FloatArray, window: int) -> FloatArray:
    """Return the annual Sharpe ratio of the last ``window`` days at each day; NaN before, and where nothing moved."""
    series = pd.Series(returns, dtype=np.float64)
    mean = series.rolling(window).mean().to_numpy()
    deviation = series.rolling(window).std(ddof=1).to_numpy()
    result = np.full(len(returns), np.nan)
    # A rolling variance of zeros leaves rounding dust, which is no risk.
    moving = deviation > 1e-12
    result[moving] = mean[moving] / deviation[moving] * math.sqrt(DAYS_PER_YEAR)
    return result


def monthly_returns(daily: pd.DataFrame) -> pd.DataFrame:
    """Return compounded returns by month: index year, columns 1 to 12 and ``year``; NaN where there is no day."""
    if daily.empty:
        return pd.DataFrame(columns=[*range(1, 13), "year"])
    when = pd.to_datetime(daily["day"], unit="ms", utc=True)
    growth = 1.0 + daily["ret"]
    table = growth.groupby([when.dt.year, when.dt.month]).prod().unstack().reindex(columns=range(1, 13)) - 1.0
    table["year"] = growth.groupby(when.dt.year).prod() - 1.0
    table.index.name = None
    return table
