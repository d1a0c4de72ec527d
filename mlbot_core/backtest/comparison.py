"""Two stored backtests side by side: the same metrics over the days they share, and whether one earned more.

Whether one earned more is asked of the difference of their daily returns, day by day: what moved both on the same day
cancels. Its mean has an interval by the stationary block bootstrap of the pairs (Politis and Romano 1994; Ledoit and
Wolf 2008 for comparing strategies), which keeps their dependence from day to day.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.backtest.dataset import BACKTESTS_TABLE, EQUITY_TABLE
from mlbot_core.backtest.metrics import (
    MIN_ACTIVE_DAYS,
    annual_growth,
    calmar_ratio,
    daily_returns,
    longest_drawdown,
    max_drawdown,
    sortino_ratio,
    tail_ratio,
)
from mlbot_core.errors import MissingDataError, UsageError
from mlbot_core.timeframe import Market
from mlbot_core.validation.bootstrap import bootstrap_mean_interval
from mlbot_core.validation.significance import DAYS_PER_YEAR, Interval, sharpe_ratio
from mlbot_core.warehouse.windows import exists, read_window

FloatArray = npt.NDArray[np.float64]

SIZES: Final = ("unit", "traded")
SHORTEST_PREFIX: Final = 4


@dataclass(frozen=True, eq=False)
class StoredBacktest:
    """One backtest as it is stored.

    Parameters
    ----------
    source, market, model_type, model_version
        What was traded, by whom.
    created_at_ms
        When it was stored, UTC ms.
    summary
        :func:`mlbot_core.backtest.report.summary_row`.
    daily
        ``day`` (UTC ms) and the net daily returns ``traded``, ``unit`` and ``hold``.
    """

    source: str
    market: Market
    model_type: str
    model_version: str
    created_at_ms: int
    summary: Mapping[str, Any]
    daily: pd.DataFrame

    @property
    def title(self) -> str:
        """Short name: ``BTC-2h lightgbm 0123456789ab``."""
        return f"{self.market} {self.model_type} {self.model_version[:12]}"


@dataclass(frozen=True, eq=False)
class Comparison:
    """What the days that two backtests share say.

    Parameters
    ----------
    size
        ``unit`` or ``traded``.
    first_day_ms, last_day_ms, days
        The common days: start of the first and of the last, UTC ms, and their number.
    metrics
        By name, the values of the two; fractions, but for ratios and days.
    difference
        Mean of (second - first) daily return a year (365 times the mean), with its 95 % interval; NaN ends where fewer
        than 30 days moved.
    correlation
        Of the daily returns; NaN where one never moved.
    """

    size: str
    first_day_ms: int
    last_day_ms: int
    days: int
    metrics: Mapping[str, tuple[float, float]]
    difference: Interval
    correlation: float

    @property
    def sentence(self) -> str:
        """Say whether one earned more."""
        low, high = self.difference.low, self.difference.high
        if not np.isfinite([low, high]).all():
            return "too few common days that moved to tell"
        if low > 0 or high < 0:
            return f"the {'second (B)' if low > 0 else 'first (A)'} earned more; the interval excludes zero"
        return "not shown to differ: the interval contains zero"


def find_backtest(con: duckdb.DuckDBPyConnection, asked: str, source: str) -> StoredBacktest:
    """Return the newest stored backtest of ``BTC-2h|lightgbm``, or the one of a model version (or its beginning).

    Parameters
    ----------
    asked
        Market and model type, or at least four characters of a version.
    source
        Of the former; a version is found wherever it was stored.

    Raises
    ------
    MissingDataError
        If there is none.
    UsageError
        If a prefix is too short, or fits several versions.
    """
    if not exists(con, BACKTESTS_TABLE):
        raise MissingDataError("no backtest is stored yet; run `mlbot backtest`")
    columns = "source, symbol, timeframe, model_type, model_version, created_at, summary"
    newest = f"SELECT {columns} FROM {BACKTESTS_TABLE} WHERE %s ORDER BY created_at DESC, rowid DESC"
    market, bar, model = asked.partition("|")
    if bar:
        wanted = Market.parse(market)
        where = "source = ? AND symbol = ? AND timeframe = ? AND model_type = ?"
        rows = con.execute(newest % where, [source, wanted.symbol, str(wanted.timeframe), model]).fetchall()[:1]
    else:
        if len(asked) < SHORTEST_PREFIX:
            raise UsageError(f"{asked!r} is too short for a model version; give at least {SHORTEST_PREFIX} characters")
        rows = con.execute(newest % "starts_with(model_version, ?)", [asked]).fetchall()
        found = sorted({(row[4], row[0]) for row in rows})
        if len(found) > 1:
            names = ", ".join(f"{version[:12]} ({where})" for version, where in found)
            raise UsageError(f"{asked!r} fits several backtests: {names}; give more of the version")
    if not rows:
        raise MissingDataError(
            f"no backtest of {asked!r} is stored for source {source}; `mlbot status` lists them. Name one as "
            "'BTC-2h|lightgbm', or by the beginning of its model version"
        )
    return _loaded(con, rows[0])


def _loaded(con: duckdb.DuckDBPyConnection, row: tuple[Any, ...]) -> StoredBacktest:
    source, symbol, timeframe, model_type, version, created_at, summary = row
    names = ("source", "symbol", "timeframe", "model_type", "model_version")
    equity = read_window(con, EQUITY_TABLE, dict(zip(names, row[:5], strict=True))).to_pandas()
    if equity.empty:
        raise MissingDataError(f"the equity of the backtest of {version[:12]} is gone; run `mlbot backtest` again")
    ts = equity["ts"].to_numpy(dtype=np.int64)
    daily: dict[str, Any] = {}
    for size in ("traded", "unit", "hold"):
        nav = equity[f"nav_{size}"].to_numpy(dtype=np.float64)
        # nothing is held in the first bar: its NAV is that of the beginning
        days = daily_returns(ts, nav, float(nav[0]))
        daily |= {"day": days["day"], size: days["ret"]}
    market = Market.parse(f"{symbol}-{timeframe}")
    return StoredBacktest(
        source, market, model_type, version, int(created_at), json.loads(summary), pd.DataFrame(daily)
    )


def compare(one: StoredBacktest, other: StoredBacktest, size: str = "unit", *, seed: int = 0) -> Comparison:
    """Return what the common days of two backtests say.

    Raises
    ------
    UsageError
        If the size is unknown, or they share no day.
    """
    if size not in SIZES:
        raise UsageError(f"size {size!r} is unknown; choose one of {', '.join(SIZES)}")
    both = one.daily[["day", size]].merge(other.daily[["day", size]], on="day", suffixes=("_one", "_other"))
    if both.empty:
        raise UsageError(f"{one.title} and {other.title} share no day; compare backtests of the same period")
    first, second = (both[f"{size}_{name}"].to_numpy(dtype=np.float64) for name in ("one", "other"))
    measured = [_measures(first), _measures(second)]
    gap = second - first
    moved = int(np.count_nonzero(gap))
    interval = Interval(float(gap.mean()), np.nan, np.nan, np.nan, 0.95, len(gap))
    if moved >= MIN_ACTIVE_DAYS:
        interval = bootstrap_mean_interval(gap, seed=seed)
    scaled = [value * DAYS_PER_YEAR for value in (interval.value, interval.low, interval.high)]
    varied = bool(np.ptp(first) > 0 and np.ptp(second) > 0)
    return Comparison(
        size,
        int(both["day"].iloc[0]),
        int(both["day"].iloc[-1]),
        len(both),
        {name: (measured[0][name], measured[1][name]) for name in measured[0]},
        Interval(scaled[0], scaled[1], scaled[2], np.nan, interval.level, interval.n),
        float(np.corrcoef(first, second)[0, 1]) if varied else np.nan,
    )


def _measures(returns: FloatArray) -> dict[str, float]:
    growth = np.asarray(np.cumprod(1.0 + returns), dtype=np.float64)
    end = float(growth[-1])
    fall = max_drawdown(growth, 1.0)
    cagr = annual_growth(1.0, end, len(returns))
    moved = len(returns) > 1 and bool(np.ptp(returns) > 0)
    return {
        "total return": end - 1.0,
        "CAGR": cagr,
        "volatility": float(np.std(returns, ddof=1)) * DAYS_PER_YEAR**0.5 if len(returns) > 1 else np.nan,
        "Sharpe": sharpe_ratio(returns) if moved else np.nan,
        "Sortino": sortino_ratio(returns),
        "max drawdown": fall.depth,
        "longest drawdown, days": float(longest_drawdown(growth)),
        "MAR": cagr / fall.depth if fall.depth > 0 else np.nan,
        "Calmar, 36 months": calmar_ratio(returns),
        "tail ratio": tail_ratio(returns),
    }


def configuration_changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two configurations, nested names joined by dots; None where one lacks a value."""
    flat_one, flat_other = _flat("", one), _flat("", other)
    names = sorted(flat_one.keys() | flat_other.keys())
    pairs = {name: (flat_one.get(name), flat_other.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    return found
