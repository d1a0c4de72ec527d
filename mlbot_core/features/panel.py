"""The panel: every series of a market side by side on one regular grid of bars, as it was known at decision time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.errors import BadDataError, UsageError
from mlbot_core.features.panel_columns import (
    AGE_COLUMNS,
    COLUMN_SERIES,
    PANEL_COLUMNS,
    SOURCES,
    VALUE_COLUMNS,
    bars_behind,
    carry_ms,
    joins_as_of,
)
from mlbot_core.market.catalogue import series_spec
from mlbot_core.timeframe import HOUR_MS, Market, Timeframe

__all__ = ["AGE_COLUMNS", "COLUMN_SERIES", "PANEL_COLUMNS", "VALUE_COLUMNS", "SettledSeries", "build_panel"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


_COLUMNS: Final = {name: at for at, name in enumerate((*VALUE_COLUMNS, *AGE_COLUMNS))}


@dataclass(frozen=True)
class SettledSeries:
    """One value a bar of one series, as the warehouse's ``settled`` read yields it.

    Parameters
    ----------
    series, timeframe
        Name in the catalogue and the length of these bars, which may exceed the market's.
    frame
        ``ts`` and ``known_at`` (int64, UTC ms) and the catalogue's value columns, as a frame or as plain arrays by
        name (which a live decision spares the cost of thirty frames); ``ts`` ascending, each once.

    Raises
    ------
    BadDataError
        If a column is missing, a bar is duplicated, out of order or off the grid, or is said to have been known
        before it closed.
    """

    series: str
    timeframe: Timeframe
    frame: pd.DataFrame | Mapping[str, npt.NDArray[Any]]

    def __post_init__(self) -> None:
        expected = ["ts", "known_at", *series_spec(self.series).column_names]
        missing = [name for name in expected if name not in self.frame]
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
        return np.asarray(self.frame["ts"], dtype=np.int64)

    @property
    def known_at(self) -> IntArray:
        """From when a decision may use each bar, UTC ms."""
        return np.asarray(self.frame["known_at"], dtype=np.int64)

    def values(self, name: str) -> FloatArray:
        """Return a value column as float64, NaN where nothing was served."""
        column = self.frame[name]
        if isinstance(column, pd.Series):
            return column.to_numpy(dtype=np.float64, na_value=np.nan)
        return np.asarray(column, dtype=np.float64)

    def rows(self, chosen: slice | npt.NDArray[np.bool_]) -> SettledSeries:
        """Return the series with some of its rows only."""
        if isinstance(self.frame, pd.DataFrame):
            return replace(self, frame=self.frame[chosen].reset_index(drop=True))
        return replace(self, frame={name: values[chosen] for name, values in self.frame.items()})


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
    have it in their windows, and some of them were decided before it came. A series whose newest closed bar is not
    settled yet at decision time (``SeriesSpec.lag_ms``) joins the same way, a fixed number of bars behind.

    A series of a longer timeframe, or with bars on some days only, joins as-of: at a row's decision time
    (``ts`` + timeframe + ``settle_delay_ms``) the newest of its bars with ``known_at`` at or before that time, for as
    long as :func:`mlbot_core.features.panel_columns.carry_ms` says. Totals over such a bar (turnover, liquidations)
    are spread evenly over its length.

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
        ``ts`` (int64); ``VALUE_COLUMNS`` (float64, in the catalogue's units: USD, coins, fractions, indices; totals
        per bar of the panel); ``AGE_COLUMNS`` (float64, hours from the joined bar's close to this bar's close: 0 for
        the own timeframe, NaN where there is no bar); ``late`` (bool): a value of the own timeframe in this row
        became known only after the row's decision time.

    Raises
    ------
    UsageError
        If a series does not belong to the panel, is shorter than the market's timeframe, is filed under another
        name, or prices are longer than the market's timeframe.
    """
    _check(inputs, market)
    ts = market.timeframe.opens_between(start_ms, end_ms)
    decision = ts + market.timeframe.ms + settle_delay_ms
    late = np.zeros(len(ts), dtype=np.bool_)
    # one block for all columns: a frame made of it costs nothing, and a column of it is contiguous
    block = np.full((len(_COLUMNS), len(ts)), np.nan)
    for name, series in inputs.items():
        source, own, known_at = SOURCES[name], series.ts, series.known_at
        if len(own) == 0 or len(ts) == 0:
            continue
        if joins_as_of(name, series.timeframe, market.timeframe):
            at = _as_of(known_at, decision)
            at = np.where((at >= 0) & (ts - own[at] <= carry_ms(name, series.timeframe)), at, np.int64(-1))
        else:
            behind = bars_behind(name, series.timeframe, settle_delay_ms)
            at = _equal(own, ts - behind * market.timeframe.ms, market.timeframe.ms)
            tardy = (at >= 0) & (known_at[at] > decision)
            late |= tardy
            at = at if keep_late else np.where(tardy, np.int64(-1), at)
        there = at >= 0
        at = np.maximum(at, 0)
        for target, column in source.columns.items():
            row = block[_COLUMNS[target]]
            np.take(series.values(column), at, out=row, mode="clip")
            if target in source.spread and series.timeframe != market.timeframe:
                row *= market.timeframe.ms / series.timeframe.ms
            row[~there] = np.nan
        if source.age is not None:
            row = block[_COLUMNS[source.age]]
            row[there] = (ts - own[at] + (market.timeframe.ms - series.timeframe.ms))[there] / HOUR_MS
    panel = pd.DataFrame(block.T, columns=list(_COLUMNS), copy=False)
    panel.insert(0, "ts", ts)
    panel["late"] = late
    return panel


def _check(inputs: Mapping[str, SettledSeries], market: Market) -> None:
    for name, series in inputs.items():
        if name not in SOURCES:
            raise UsageError(f"series {name!r} has no place in the panel; it takes {', '.join(SOURCES)}")
        if series.series != name:
            raise UsageError(f"series {series.series!r} was handed over as {name!r}")
        if series.timeframe < market.timeframe:
            raise UsageError(
                f"{name} has bars of {series.timeframe}, shorter than {market}; resample it to {market.timeframe} first"
            )
        if name == "price" and series.timeframe != market.timeframe:
            raise UsageError(f"prices of {series.timeframe} cannot stand in for {market}; read them at its timeframe")


def _equal(have: IntArray, want: IntArray, step: int) -> IntArray:
    """Return the row of ``have`` that equals each of ``want``, -1 where there is none; both ascend on one grid."""
    gapless = int(have[-1] - have[0]) == (len(have) - 1) * step  # then the row follows from the time
    at = (want - have[0]) // step if gapless else np.searchsorted(have, want)
    at = np.clip(at, 0, len(have) - 1).astype(np.int64)
    return np.where(have[at] == want, at, np.int64(-1))


def _as_of(known_at: IntArray, decision: IntArray) -> IntArray:
    """Return the row of the newest bar known at each decision time, -1 where none is; ``known_at`` is not empty.

    Bars may become known out of order (a gap filled later), hence the running maximum over the order of knowledge.
    """
    order = np.argsort(known_at, kind="stable")
    newest = np.maximum.accumulate(order).astype(np.int64)  # rows ascend in ts: a greater row is a newer bar
    position = np.searchsorted(known_at[order], decision, side="right") - 1
    return np.where(position >= 0, newest[np.maximum(position, 0)], np.int64(-1))
