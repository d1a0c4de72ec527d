"""In what kind of market each day began, told by what was known then: volatility and trend of the days before.

=============  =======================================================================================================
volatility     standard deviation of the last 30 daily log returns; ``low``, ``middle`` or ``high`` by its tercile among
               its own values of the last 365 days, that day's included
trend          ``up`` where the last 30 days moved the price by more than half a standard deviation of a 30 days' move
               (that volatility times the root of 30), ``down`` where by less than minus that, else ``sideways``
=============  =======================================================================================================

A day's regime rests on closes before its 00:00 UTC alone; nothing of the day itself, and no later quantile, is in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.timeframe import DAY_MS
from mlbot_core.validation.significance import Interval, sharpe_interval

FloatArray = npt.NDArray[np.float64]

WINDOW_DAYS: Final = 30
MEMORY_DAYS: Final = 365
# ranks among fewer values than this say little
MIN_VALUES: Final = 60
TREND_DEVIATIONS: Final = 0.5
# a Sharpe ratio of fewer days than this is not shown
MIN_DAYS: Final = 20

VOLATILITY: Final = ("low", "middle", "high")
TREND: Final = ("down", "sideways", "up")


@dataclass(frozen=True)
class RegimeRow:
    """What the days of one regime were worth.

    Parameters
    ----------
    kind, name
        ``volatility`` or ``trend``, and which.
    days
        How many began in it.
    total_return
        Net, compounded over these days, at unit exposure; fraction.
    sharpe, hold
        Annual Sharpe ratios of these days with 95 % intervals: unit exposure, buy and hold. NaN for under 20 days.
    trades, won
        Round trips at unit exposure that were opened on these days and are closed, and the share of them that won.
    """

    kind: str
    name: str
    days: int
    total_return: float
    sharpe: Interval
    hold: Interval
    trades: int
    won: float


def daily_regimes(ts: npt.NDArray[np.int64], close: FloatArray, days: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Return the regime in which each day began.

    Parameters
    ----------
    ts
        int64[n], open times of bars, UTC ms, ascending.
    close
        float64[n], USD; NaN = missing.
    days
        int64[m], starts of the UTC days that are asked for, UTC ms.

    Returns
    -------
    pandas.DataFrame
        ``day``, ``volatility``, ``trend``: names, None where too little was known.
    """
    known = np.isfinite(close)
    result = pd.DataFrame({"day": days, "volatility": None, "trend": None}, dtype=object).astype({"day": "int64"})
    if not known.any() or not len(days):
        return result
    last = pd.Series(close[known]).groupby(ts[known] // DAY_MS).last()
    # a day without bars carries the close of the day before
    every = np.arange(min(int(last.index[0]), int(days[0] // DAY_MS)), int(days[-1] // DAY_MS) + 1)
    price = last.reindex(every).ffill()
    move = pd.Series(np.log(price.to_numpy())).diff()
    deviation = move.rolling(WINDOW_DAYS).std(ddof=1)
    rank = deviation.rolling(MEMORY_DAYS, min_periods=MIN_VALUES).rank(pct=True)
    steps = move.rolling(WINDOW_DAYS).sum() / (deviation * math.sqrt(WINDOW_DAYS))
    volatility = np.select([rank <= 1 / 3, rank <= 2 / 3, rank <= 1], VOLATILITY, default="")
    moved = [steps < -TREND_DEVIATIONS, steps <= TREND_DEVIATIONS, steps > TREND_DEVIATIONS]
    trend = np.select(moved, TREND, default="")
    # what the close of a day completes is known on the next
    row = (days // DAY_MS - every[0] - 1).astype(np.int64)
    for name, values in (("volatility", volatility), ("trend", trend)):
        found = np.where(row >= 0, values[np.maximum(row, 0)], "")
        result[name] = [str(value) or None for value in found]
    return result


def by_regime(regimes: pd.DataFrame, daily: pd.DataFrame, trades: pd.DataFrame) -> tuple[RegimeRow, ...]:
    """Return what each regime was worth, in the order of :data:`VOLATILITY` and :data:`TREND`; empty ones left out.

    Parameters
    ----------
    regimes
        From :func:`daily_regimes`.
    daily
        ``day``, ``unit``, ``hold``: daily net returns.
    trades
        Round trips at unit exposure (:func:`mlbot_core.backtest.roundtrips.round_trips`).
    """
    joined = daily.merge(regimes, on="day", how="left")
    closed = trades[trades["closed"] >= 0]
    opened = (closed["opened"].to_numpy(dtype=np.int64) // DAY_MS) * DAY_MS
    rows = []
    for kind, names in (("volatility", VOLATILITY), ("trend", TREND)):
        for name in names:
            part = joined[joined[kind] == name]
            if part.empty:
                continue
            mine = closed["pnl"].to_numpy(dtype=np.float64)[np.isin(opened, part["day"].to_numpy())]
            rows.append(
                RegimeRow(
                    kind,
                    name,
                    len(part),
                    float(np.prod(1.0 + part["unit"].to_numpy(dtype=np.float64)) - 1.0),
                    _sharpe(part["unit"]),
                    _sharpe(part["hold"]),
                    len(mine),
                    float((mine > 0).mean()) if len(mine) else math.nan,
                )
            )
    return tuple(rows)


def _sharpe(returns: pd.Series) -> Interval:
    values = returns.to_numpy(dtype=np.float64)
    if len(values) < MIN_DAYS or not np.ptp(values) > 0:
        return Interval(math.nan, math.nan, math.nan, math.nan, 0.95, len(values))
    return sharpe_interval(values)
