"""The typed frame that every source yields and the warehouse appends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlbot_core.errors import BadDataError
from mlbot_core.market.catalogue import Column, series_spec
from mlbot_core.timeframe import Timeframe

Capture = Literal["live", "backfill"]

TIME_COLUMNS: Final = ("ts", "observed_at")


@dataclass(frozen=True)
class GapRecord:
    """A stretch of bars that the source did not deliver.

    Parameters
    ----------
    from_ts, to_ts
        Open times of the first and the last missing bar, UTC ms, both inclusive.
    cause
        Why, in a few words: ``source returned nothing``, ``before the plan's history`` ...
    """

    series: str
    symbol: str
    timeframe: Timeframe
    source: str
    from_ts: int
    to_ts: int
    cause: str


@dataclass(frozen=True)
class SeriesBatch:
    """Closed bars of one series as one source saw them.

    Parameters
    ----------
    series, symbol, timeframe, source
        What this is; ``timeframe`` is the one of the rows, which may be longer than the market's
        (daily series that accompany hourly prices).
    table
        Arrow table: ``ts`` and ``observed_at`` (int64, UTC ms), then the catalogue's columns (float64, null =
        not served), sorted by (ts, observed_at), each pair once. ``observed_at`` is when the version was first
        seen; every row was closed by then.
    gaps
        What is missing between the first and the last bar that was asked for.
    recorded
        True when ``observed_at`` was recorded by somebody at the time (archive of vintages); False when it is the
        moment of this very fetch.
    publication_lag_ms
        How long after its close a bar that was only seen as history could have been known at the earliest; None: as
        the catalogue says.
    live_since_ms
        Bars that closed at or after this instant were watched live, so a version was known from ``observed_at`` on
        and not before. None: everything in the batch was seen as history only.
    """

    series: str
    symbol: str
    timeframe: Timeframe
    source: str
    table: pa.Table
    gaps: tuple[GapRecord, ...] = ()
    recorded: bool = False
    live_since_ms: int | None = None
    notes: tuple[str, ...] = field(default=())
    publication_lag_ms: int | None = None

    def __post_init__(self) -> None:
        spec = series_spec(self.series)
        expected = [*TIME_COLUMNS, *spec.column_names]
        if self.table.column_names != expected:
            raise BadDataError(f"{self.series}: columns {self.table.column_names} instead of {expected}")
        ts = column(self.table, "ts")
        observed = column(self.table, "observed_at")
        if len(ts) == 0:
            return
        off_grid = ts[ts % self.timeframe.ms != 0]
        if len(off_grid):
            raise BadDataError(f"{self.series}: bar {int(off_grid[0])} is off the {self.timeframe} grid")
        if np.any(observed < ts + self.timeframe.ms):
            bad = int(ts[observed < ts + self.timeframe.ms][0])
            raise BadDataError(
                f"{self.series} {self.timeframe}: bar {bad} was still open when observed and must not be stored"
            )
        later = (np.diff(ts) > 0) | ((np.diff(ts) == 0) & (np.diff(observed) > 0))
        if not later.all():
            bad = int(ts[1:][~later][0])
            raise BadDataError(f"{self.series} {self.timeframe}: bar {bad} is duplicated or out of order")

    @property
    def rows(self) -> int:
        """Number of versions in the batch."""
        return int(self.table.num_rows)


def column(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    """Return an int64 column as a numpy array."""
    return np.asarray(table.column(name).to_numpy(zero_copy_only=False), dtype=np.int64)


def schema(series: str) -> pa.Schema:
    """Return the Arrow schema of a series' batch table."""
    values = [pa.field(name, pa.float64()) for name in series_spec(series).column_names]
    return pa.schema([pa.field("ts", pa.int64()), pa.field("observed_at", pa.int64()), *values])


def empty_table(series: str) -> pa.Table:
    """Return a batch table without rows."""
    return schema(series).empty_table()


def make_table(
    series: str,
    ts: npt.NDArray[np.int64] | Sequence[int],
    observed_at: npt.NDArray[np.int64] | Sequence[int] | int,
    values: Mapping[str, npt.NDArray[np.float64] | Sequence[float]],
) -> pa.Table:
    """Build a batch table; NaN becomes null, absent columns are all null, rows are sorted by (ts, observed_at).

    Raises
    ------
    BadDataError
        If a value is infinite or violates the sign or the bound of its column, or a name is not in the catalogue.
    """
    spec = series_spec(series)
    unknown = set(values) - set(spec.column_names)
    if unknown:
        raise BadDataError(f"{series}: no columns {sorted(unknown)} in the catalogue")
    stamps = np.asarray(ts, dtype=np.int64)
    observed = np.broadcast_to(np.asarray(observed_at, dtype=np.int64), stamps.shape)
    order = np.lexsort((observed, stamps))
    arrays: list[pa.Array] = [pa.array(stamps[order]), pa.array(np.ascontiguousarray(observed[order]))]
    for col in spec.columns:
        if col.name not in values:
            arrays.append(pa.nulls(len(stamps), pa.float64()))
            continue
        data = np.asarray(values[col.name], dtype=np.float64)[order]
        _check(series, col, stamps[order], data)
        arrays.append(pa.array(data, mask=np.isnan(data)))
    return pa.Table.from_arrays(arrays, schema=schema(series))


def _check(series: str, col: Column, ts: npt.NDArray[np.int64], data: npt.NDArray[np.float64]) -> None:
    bad = np.isinf(data)
    if col.positive == "strict":
        bad |= data <= 0
    elif col.positive == "nonnegative":
        bad |= data < 0
    bad |= np.abs(data) > col.limit
    if bad.any():
        at = int(np.argmax(bad))
        raise BadDataError(
            f"{series}.{col.name} is {data[at]} {col.unit} at bar {int(ts[at])}, which cannot be; nothing of this "
            "answer was stored"
        )
