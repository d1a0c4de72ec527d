"""Reading a recorded Parquet file into arrays, or saying exactly what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mlbot_core.clock import format_utc
from mlbot_core.errors import BadDataError, ConfigError
from mlbot_core.timeframe import Timeframe

_RESTORE = "restore it from where it was recorded; nothing of it was stored"


@dataclass(frozen=True)
class Recorded:
    """One file: versions of bars, sorted by (ts, observed_at).

    Parameters
    ----------
    path
        Where it lies.
    timeframe
        Length of its bars.
    ts
        Open times, UTC ms.
    observed_at
        When each version was seen, UTC ms; None for a file that does not record it.
    values
        float64 columns by the file's own names.
    """

    path: Path
    timeframe: Timeframe
    ts: npt.NDArray[np.int64]
    observed_at: npt.NDArray[np.int64] | None
    values: dict[str, npt.NDArray[np.float64]]

    @property
    def earliest_ms(self) -> int:
        """Open time of the first bar, UTC ms."""
        return int(self.ts[0])

    @property
    def end_ms(self) -> int:
        """Close time of the last bar, UTC ms."""
        return int(self.ts[-1]) + self.timeframe.ms

    def closed(self) -> Recorded:
        """Return the record without versions that were seen before their bar had closed: unfinished bars.

        Raises
        ------
        BadDataError
            If nothing remains.
        """
        if self.observed_at is None:
            return self
        keep = self.observed_at >= self.ts + self.timeframe.ms
        if not keep.any():
            raise BadDataError(f"{self.path} has no closed bar; {_RESTORE}")
        values = {name: data[keep] for name, data in self.values.items()}
        return Recorded(self.path, self.timeframe, self.ts[keep], self.observed_at[keep], values)


def read_recorded(
    path: Path, timeframe: Timeframe, columns: Sequence[str], *, versions: bool, begins_late: bool = False
) -> Recorded:
    """Read the named columns of a file and check everything that can be checked.

    Parameters
    ----------
    columns
        Value columns to read; others are ignored.
    versions
        Whether the file has ``observed_at`` and several rows a bar.
    begins_late
        The columns may begin after the file does: rows without a value before the first one are left out.

    Raises
    ------
    ConfigError
        If there is no such file.
    BadDataError
        If it is truncated or corrupt, lacks a column or has one of another type, has a missing or infinite
        value, an open time off the grid, or rows that are out of order or repeated.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is missing; point MLBOT_ARCHIVE_DIR at the folder with the recorded data")
    times = ["ts", "observed_at"] if versions else ["ts"]
    table = _read(path, [*times, *columns])
    if table.num_rows == 0:
        raise BadDataError(f"{path} has no rows; {_RESTORE}")
    stamps = {name: _stamps(path, table, name) for name in times}
    if begins_late:
        table = _from_first_value(table, columns)
        stamps = {name: _stamps(path, table, name) for name in times}
    values = {name: _floats(path, table, name) for name in columns}
    ts, observed = stamps["ts"], stamps.get("observed_at")
    off = ts % timeframe.ms != 0
    if off.any():
        raise BadDataError(f"{path}: ts {format_utc(int(ts[off][0]))} is off the {timeframe} grid; {_RESTORE}")
    rising = np.diff(ts) > 0
    if observed is not None:
        rising |= (np.diff(ts) == 0) & (np.diff(observed) > 0)
    if not rising.all():
        at = int(np.argmin(rising)) + 1
        raise BadDataError(
            f"{path}: row {at} (bar {format_utc(int(ts[at]))}) repeats or precedes the row before it; rows must be "
            f"sorted by {', '.join(times)} and unique; {_RESTORE}"
        )
    return Recorded(path, timeframe, ts, observed, values)


def _from_first_value(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return the table from the first row on that has a value in every column; all of it if there is none."""
    missing = np.zeros(table.num_rows, dtype=np.bool_)
    for name in columns:
        missing |= np.asarray(table.column(name).is_null(nan_is_null=True).to_numpy(), dtype=np.bool_)
    return table if missing.all() else table.slice(int(np.argmin(missing)))


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        present = pq.read_schema(path).names
        missing = [name for name in columns if name not in present]
        if missing:
            raise BadDataError(
                f"{path} has no column {', '.join(missing)} (it has {', '.join(present)}): its schema has changed; "
                f"{_RESTORE}"
            )
        return pq.read_table(path, columns=columns, page_checksum_verification=True, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadDataError(f"{path} is truncated or corrupt ({reason}); {_RESTORE}") from error


def _stamps(path: Path, table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    data = table.column(name)
    if not pa.types.is_timestamp(data.type) or data.type.tz != "UTC":
        raise BadDataError(f"{path}: {name} is {data.type}, not a timestamp in UTC: its schema has changed; {_RESTORE}")
    if data.null_count:
        raise BadDataError(f"{path}: {name} is missing in {data.null_count} rows; {_RESTORE}")
    try:
        exact = data.cast(pa.timestamp("ms", "UTC"))
    except pa.ArrowInvalid as error:
        raise BadDataError(f"{path}: {name} has times finer than a millisecond; {_RESTORE}") from error
    return np.asarray(exact.cast(pa.int64()).to_numpy(), dtype=np.int64)


def _floats(path: Path, table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    data = table.column(name)
    if not (pa.types.is_floating(data.type) or pa.types.is_integer(data.type)):
        raise BadDataError(f"{path}: {name} is {data.type}, not a number: its schema has changed; {_RESTORE}")
    values = np.asarray(data.to_numpy(), dtype=np.float64)
    wrong = ~np.isfinite(values)
    if wrong.any():
        raise BadDataError(f"{path}: {name} is {values[wrong][0]} in row {int(np.argmax(wrong))}; {_RESTORE}")
    return values
