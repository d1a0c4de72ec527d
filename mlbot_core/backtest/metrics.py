"""What a simulation was worth, on daily UTC NAV returns: 24 hours, 365 days a year, flat days included.

Definitions (r: daily net returns, d: number of days)

============================  ======================================================================================
sharpe, its interval, psr     :mod:`mlbot_core.validation.significance`, risk-free rate zero
sortino                       mean(r) / sqrt(mean(min(r, 0)^2)) x sqrt(365)
cagr                          (NAV_end / NAV_0)^(365 / d) - 1
max_drawdown                  largest fall of the daily NAV from its peak so far, NAV_0 included, as a fraction
drawdown_days                 days from that peak until it was reached again, or to the end
mar                           cagr / max_drawdown
exposure, time_in_market      mean |position value| / NAV at the closes; share of bars with a position
turnover_per_year             sum(traded value / NAV at the decision) x 365 / d
profit_factor                 sum of winning / sum of losing round trips, net
break_even_bp                 (gross - funding) / traded value x 10^4: the cost per side at which the net is zero
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


@dataclass(frozen=True)
class Waterfall:
    """From gross to net, USD over the whole period; costs positive when paid."""

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
    mar: float
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
    bankrupt: bool


def daily_returns(ts: npt.NDArray[np.int64], nav: FloatArray, initial_nav: float) -> pd.DataFrame:
    """Return the NAV at the end of every UTC day and its return.

    Parameters
    ----------
    ts
        int64[n], open times, UTC ms; a bar belongs to the day in which it opens.
    nav
        float64[n], USD at the closes.
    initial_nav
        USD before the first bar.

    Returns
    -------
    pandas.DataFrame
        ``day`` (UTC ms of its start, every calendar day from first to last), ``nav``, ``ret``. A day without bars
        keeps the NAV of the day before, so its return is zero; after a NAV of zero returns are zero.
    """
    if len(ts) == 0:
        return pd.DataFrame({"day": np.array([], np.int64), "nav": np.array([]), "ret": np.array([])})
    day = ts // DAY_MS
    last = np.flatnonzero(np.r_[day[1:] != day[:-1], True])
    days = np.arange(day[0], day[-1] + 1, dtype=np.int64)
    held = nav[last][np.searchsorted(day[last], days, side="right") - 1]
    before = np.r_[initial_nav, held[:-1]]
    ret = np.divide(held, before, out=np.ones_like(held), where=before > 0) - 1.0
    return pd.DataFrame({"day": days * DAY_MS, "nav": held, "ret": ret})


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


def compute_metrics(simulation: Simulation, close: FloatArray) -> Metrics:
    """Return the metrics of a simulation.

    Parameters
    ----------
    simulation
        What happened.
    close
        float64[n], the closes it ran on, USD; NaN = missing.
    """
    start = simulation.params.initial_nav
    daily = daily_returns(simulation.ts, simulation.nav, start)
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
        net=end - start,
    )
    drawdown = max_drawdown(daily["nav"].to_numpy(), start)
    cagr = annual_growth(start, end, days)
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
        total_return=end / start - 1.0,
        sharpe=sharpe if enough else replace(sharpe, low=math.nan, high=math.nan, standard_error=math.nan),
        psr=probabilistic_sharpe_ratio(returns) if enough else math.nan,
        sortino=sortino_ratio(returns),
        volatility=float(np.std(returns, ddof=1)) * math.sqrt(DAYS_PER_YEAR) if days > 1 else math.nan,
        cagr=cagr,
        drawdown=drawdown,
        drawdown_intrabar=_intrabar_drawdown(simulation),
        mar=cagr / drawdown.depth if drawdown.depth > 0 else math.nan,
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
        bankrupt=simulation.bankrupt,
    )


def _intrabar_drawdown(simulation: Simulation) -> float:
    """Return the deepest fall from the highest close so far to the adverse extreme of a bar, a fraction."""
    if len(simulation.nav) == 0:
        return math.nan
    peak = np.maximum.accumulate(np.r_[simulation.params.initial_nav, simulation.nav])[:-1]
    return float(max(0.0, np.max(1.0 - simulation.nav_low / peak)))


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
