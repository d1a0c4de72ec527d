"""The panel: every series of a market side by side on one regular grid of bars, as it was known at decision time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.errors import BadDataError, UsageError
from mlbot_core.market.catalogue import series_spec
from mlbot_core.timeframe import HOUR_MS, Market, Timeframe

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Source:
    """How one series enters the panel: its age column and {panel column: catalogue column}."""

    age: str | None
    columns: Mapping[str, str]


_SOURCES: Final[Mapping[str, _Source]] = {
    "price": _Source(None, {name: name for name in ("open", "high", "low", "close", "volume_usd")}),
    "open_interest": _Source("oi_age_h", {"oi_usd": "close"}),
    "funding_rate": _Source("funding_age_h", {"funding_rate": "close"}),
    "funding_settled": _Source("funding_settled_age_h", {"funding_settled": "rate"}),
    "long_short_ratio": _Source("ratio_age_h", {"long_share": "long_share"}),
    "liquidations": _Source("liq_age_h", {"liq_long_usd": "long_usd", "liq_short_usd": "short_usd"}),
    "taker_volume": _Source("taker_age_h", {"taker_buy_usd": "buy_usd", "taker_sell_usd": "sell_usd"}),
}

VALUE_COLUMNS: Final = tuple(name for source in _SOURCES.values() for name in source.columns)
AGE_COLUMNS: Final = tuple(source.age for source in _SOURCES.values() if source.age is not None)
PANEL_COLUMNS: Final = ("ts", *VALUE_COLUMNS, *AGE_COLUMNS, "late")


@dataclass(frozen=True)
class SettledSeries:
    """One value a bar of one series, as the warehouse's ``settled`` read yields it.

    Parameters
    ----------
    series, timeframe
        Name in the catalogue and the length of these bars, which may exceed the market's.
    frame
        ``ts`` and ``known_at`` (int64, UTC ms) and the catalogue's value columns; ``ts`` ascending, each once.

    Raises
    ------
    BadDataError
        If a column is missing, a bar is duplicated, out of order or off the grid, or is said to have been known
        before it closed.
    """

    series: str
    timeframe: Timeframe
    frame: pd.DataFrame

    def __post_init__(self) -> None:
        expected = ["ts", "known_at", *series_spec(self.series).column_names]
        missing = [name for name in expected if name not in self.frame.columns]
        if missing:
            raise BadDataError(f"{self.series} {self.timeframe}: the settled frame lacks {', '.join(missing)}")
        ts, known_at = self.ts, self.known_at
        if (ts % self.timeframe.ms != 0).any():
            bad = int(ts[ts % self.timeframe.ms != 0][0])
            raise BadDataError(f"{self.series} {self.timeframe}: bar {bad} is off the {self.timeframe} grid")
        if (np.diff(ts) <= 0).any():
            bad = int(ts[1:][np.diff(ts) <= 0][0])
            raise BadDataError(f"{self.series} {self.timeframe}: bar {bad} is duplicated or out of order")
        early = known_at < ts + self.timeframe.ms
        if early.any():
            raise BadDataError(
                f"{self.series} {self.timeframe}: bar {int(ts[early][0])} is marked as known at "
                f"{int(known_at[early][0])}, before it closed; repair the warehouse's known_at"
            )

    @property
    def ts(self) -> IntArray:
        """Open times, UTC ms."""
        return self.frame["ts"].to_numpy(dtype=np.int64)

    @property
    def known_at(self) -> IntArray:
        """From when a decision may use each bar, UTC ms."""
        return self.frame["known_at"].to_numpy(dtype=np.int64)

    def values(self, name: str) -> FloatArray:
        """Return a value column as float64, NaN where nothing was served."""
        return self.frame[name].to_numpy(dtype=np.float64, na_value=np.nan)


def build_panel(
    inputs: Mapping[str, SettledSeries],
    market: Market,
    start_ms: int,
    end_ms: int,
    settle_delay_ms: int,
    *,
    keep_late: bool = False,
) -> pd.DataFrame:
    """Lay the series of a market side by side, one row a bar of the regular grid in ``[start_ms, end_ms)``.

    A series of the market's own timeframe joins by equal ``ts`` and is never carried forward: a bar that is missing
    is a row of NaN. So is, for ever, a bar that became known only after its row's decision time: the rows after it
    have it in their windows, and some of them were decided before it came. A series of a longer timeframe joins
    as-of: at a row's decision time (``ts`` + timeframe + ``settle_delay_ms``) the newest of its bars with
    ``known_at`` at or before that time.

    Parameters
    ----------
    inputs
        Settled series by catalogue name; an absent one is all NaN.
    market
        Symbol and timeframe of the rows.
    start_ms, end_ms
        Range of open times, UTC ms, end exclusive.
    settle_delay_ms
        From a bar's close to its decision, ms.
    keep_late
        True keeps late values, for labels and prices of what happened; never for what a decision sees.

    Returns
    -------
    pd.DataFrame
        ``ts`` (int64); ``VALUE_COLUMNS`` (float64: USD, long_share and the funding rates as fractions);
        ``AGE_COLUMNS`` (float64, hours from the joined bar's close to this bar's close: 0 for the own timeframe,
        NaN where there is no bar); ``late`` (bool): a value of the own timeframe in this row became known only after
        the row's decision time.

    Raises
    ------
    UsageError
        If a series does not belong to the panel, is shorter than the market's timeframe, is filed under another
        name, or prices are longer than the market's timeframe.
    """
    ts = market.timeframe.opens_between(start_ms, end_ms)
    decision = ts + market.timeframe.ms + settle_delay_ms
    late = np.zeros(len(ts), dtype=np.bool_)
    columns: dict[str, npt.NDArray[np.generic]] = {"ts": ts}
    ages: dict[str, FloatArray] = {}
    _check(inputs, market)
    for name, source in _SOURCES.items():
        series = inputs.get(name)
        if series is None:
            at = np.full(len(ts), -1, dtype=np.int64)
        elif series.timeframe == market.timeframe:
            at = _equal(series.ts, ts)
            if len(series.ts):
                tardy = (at >= 0) & (series.known_at[at] > decision)
                late |= tardy
                at = at if keep_late else np.where(tardy, np.int64(-1), at)
        else:
            at = _as_of(series.known_at, decision)
        for target, column in source.columns.items():
            columns[target] = _take(None if series is None else series.values(column), at)
        if source.age is not None:
            closes = None if series is None else (series.ts + series.timeframe.ms).astype(np.float64)
            ages[source.age] = (ts + market.timeframe.ms - _take(closes, at)) / HOUR_MS
    return pd.DataFrame({**columns, **ages, "late": late}, columns=list(PANEL_COLUMNS))


def _check(inputs: Mapping[str, SettledSeries], market: Market) -> None:
    for name, series in inputs.items():
        if name not in _SOURCES:
            raise UsageError(f"series {name!r} has no place in the panel; it takes {', '.join(_SOURCES)}")
        if series.series != name:
            raise UsageError(f"series {series.series!r} was handed over as {name!r}")
        if series.timeframe < market.timeframe:
            raise UsageError(
                f"{name} has bars of {series.timeframe}, shorter than {market}; resample it to {market.timeframe} first"
            )
        if name == "price" and series.timeframe != market.timeframe:
            raise UsageError(f"prices of {series.timeframe} cannot stand in for {market}; read them at its timeframe")


def _equal(have: IntArray, want: IntArray) -> IntArray:
    """Return the row of ``have`` that equals each of ``want``, -1 where there is none."""
    if len(have) == 0:
        return np.full(len(want), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(have, want), len(have) - 1).astype(np.int64)
    return np.where(have[at] == want, at, np.int64(-1))


def _as_of(known_at: IntArray, decision: IntArray) -> IntArray:
    """Return the row of the newest bar known at each decision time, -1 where none is.

    Bars may become known out of order (a gap filled later), hence the running maximum over the order of knowledge.
    """
    order = np.argsort(known_at, kind="stable")
    newest = np.maximum.accumulate(order).astype(np.int64)  # rows ascend in ts: a greater row is a newer bar
    position = np.searchsorted(known_at[order], decision, side="right") - 1
    return np.where(position >= 0, newest[np.maximum(position, 0)] if len(newest) else -1, np.int64(-1))


def _take(values: FloatArray | None, at: IntArray) -> FloatArray:
    if values is None or len(values) == 0:
        return np.full(len(at), np.nan)
    return np.where(at >= 0, values[at], np.nan)
