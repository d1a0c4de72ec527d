"""Rows of a Coinglass answer as arrays: times, types and units put right, anything doubtful refused by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from mlbot_core.clock import format_utc
from mlbot_core.errors import BadDataError
from mlbot_core.market.catalogue import Column, SeriesSpec
from mlbot_core.sources.paging import Page
from mlbot_core.timeframe import Timeframe

# Times below this are seconds: it is 1973 in milliseconds and the year 5138 in seconds.
SECONDS_BELOW: Final = 10**11


def served_columns(spec: SeriesSpec) -> tuple[Column, ...]:
    """Return the columns of a series that its endpoint serves."""
    return tuple(column for column in spec.columns if column.field is not None)


def parse_rows(rows: Sequence[Any], spec: SeriesSpec, timeframe: Timeframe, asked_at: int, received_at: int) -> Page:
    """Return the closed bars of one answer in canonical units.

    Parameters
    ----------
    rows
        ``data`` of the answer: objects with ``time`` and the catalogue's fields; numbers may be texts.
    spec
        The series, with each field's scale.
    timeframe
        Length of a bar.
    asked_at
        When the call was made, UTC ms: a bar that was open then is dropped, even if it closed on the way.
    received_at
        When the answer had arrived, UTC ms.

    Raises
    ------
    BadDataError
        If a row is no object, a field is missing or no finite number, a bar is off the grid, or one bar occurs
        twice with different values. The message names endpoint, field, bar and value.
    """
    columns = served_columns(spec)
    bars: dict[int, tuple[float, ...]] = {}
    repeated = 0
    ordered = True
    newest = -1
    for row in rows:
        if not isinstance(row, dict):
            raise BadDataError(f"{spec.endpoint}: a row is {str(row)[:80]!r}, not an object; nothing was stored")
        ts = _time(row.get("time"), spec)
        if ts % timeframe.ms:
            raise BadDataError(
                f"{spec.endpoint}: time {row.get('time')!r} ({format_utc(ts)}) is off the {timeframe} grid; "
                "nothing was stored"
            )
        # the last row of an answer is the open bar; its values are no observation of anything
        if not timeframe.is_closed(ts, asked_at):
            continue
        values = tuple(_value(row, column, ts, spec) for column in columns)
        known = bars.setdefault(ts, values)
        if known is not values:
            if known != values:
                raise BadDataError(
                    f"{spec.endpoint}: bar {format_utc(ts)} occurs twice with different values {known} and {values}; "
                    "nothing was stored"
                )
            repeated += 1
        ordered = ordered and ts >= newest
        newest = max(newest, ts)
    notes = []
    if repeated:
        notes.append(f"{repeated} identical duplicate rows dropped")
    if not ordered:
        notes.append("rows were out of order")
    stamps = np.array(sorted(bars), dtype=np.int64)
    matrix = np.array([bars[int(ts)] for ts in stamps], dtype=np.float64).reshape(len(stamps), len(columns))
    return Page(stamps, matrix, received_at, tuple(notes))


def _time(raw: Any, spec: SeriesSpec) -> int:
    try:
        number = float(_text(raw))
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number != int(number) or number < 0:
        raise BadDataError(f"{spec.endpoint}: time is {str(raw)[:80]!r}, not a time in ms or s; nothing was stored")
    stamp = int(number)
    stamp = stamp * 1000 if stamp < SECONDS_BELOW else stamp
    if stamp > 253402300799999:
        raise BadDataError(f"{spec.endpoint}: time {str(raw)[:80]!r} lies beyond the year 9999; nothing was stored")
    return stamp


def _value(row: dict[str, Any], column: Column, ts: int, spec: SeriesSpec) -> float:
    if column.field not in row:
        raise BadDataError(
            f"{spec.endpoint}: field {column.field!r} is missing at bar {format_utc(ts)}; has the answer's shape "
            "changed? Nothing was stored"
        )
    raw = row[column.field]
    try:
        number = float(_text(raw))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadDataError(
            f"{spec.endpoint}: {column.field} is {str(raw)[:80]!r} at bar {format_utc(ts)}, not a finite number; "
            "nothing was stored"
        )
    return number * column.scale


def _text(raw: Any) -> str:
    """Return a JSON number or text as text; Python's digit separators are no numbers on the wire."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)) or (isinstance(raw, str) and "_" in raw):
        raise ValueError(raw)
    return str(raw)
