"""Coinglass answers as arrays: shapes, times, types and units put right, anything doubtful refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from mlbot_core.clock import format_utc
from mlbot_core.errors import BadDataError
from mlbot_core.market.catalogue import Column, SeriesSpec
from mlbot_core.sources.paging import Page
from mlbot_core.timeframe import Timeframe

# Times below this are seconds: it is 1973 in milliseconds and the year 5138 in seconds.
SECONDS_BELOW: Final = 10**11
_LAST_MS: Final = 253402300799999  # the end of the year 9999
# Parts are percents of two decimals each.
_ROUNDING: Final = 0.011
# Highs are rounded to whole numbers where closes are not: one in the ten digits of an open interest.
_WHOLE: Final = 1e-9
_ALL: Final = "all"
_OHLC: Final = ("open", "high", "low", "close")
_NOTHING: Final = "nothing was stored"

Row = Mapping[str, Any]


def served_columns(spec: SeriesSpec) -> tuple[Column, ...]:
    """Return the columns of a series that its endpoint serves."""
    return tuple(column for column in spec.columns if column.field is not None)


def parse_answer(
    data: Any, spec: SeriesSpec, timeframe: Timeframe, asked_at: int, received_at: int, *, lag_ms: int | None = None
) -> Page:
    """Return the settled bars of one answer in canonical units.

    Parameters
    ----------
    data
        ``data`` of the answer, of the shape that the catalogue says; numbers may be texts.
    spec
        The series, with each field's scale.
    timeframe
        Length of a bar.
    asked_at
        When the call was made, UTC ms: a bar that was open then is dropped, even if it closed on the way.
    received_at
        When the answer had arrived, UTC ms.
    lag_ms
        How long after its close a bar is still dropped as preliminary; None: as the catalogue says.

    Raises
    ------
    BadDataError
        If the shape is another one, a row is no object, a field is missing or no finite number, a bar is off the
        grid, one bar occurs twice with different values, a high or low lies inside its bar, or parts do not make a
        whole. The message names endpoint, field, bar and value.
    """
    lag = spec.lag_ms(timeframe) if lag_ms is None else lag_ms
    columns = served_columns(spec)
    bars: dict[int, tuple[float, ...]] = {}
    stamps: dict[int, int] = {}
    repeated = unmade = 0
    ordered = True
    newest = -1
    for row in _rows(data, spec):
        stamp = _time(row.get(spec.time_field), spec)
        ts = timeframe.floor(stamp) if spec.snapped else stamp
        if ts % timeframe.ms:
            raise BadDataError(
                f"{spec.endpoint}: {spec.time_field} {str(row.get(spec.time_field))[:40]!r} ({format_utc(ts)}) is off "
                f"the {timeframe} grid; {_NOTHING}"
            )
        # the last row of an answer is the open bar; its values are no observation of anything
        if not timeframe.is_closed(ts, asked_at - lag):
            continue
        if not _made(row, spec, ts):
            unmade += 1
            continue
        values = tuple(_value(row, column, ts, spec) for column in columns)
        if not (spec.padded and not any(values)):  # zero padding contradicts everything, and is dropped later
            _possible(values, columns, spec, ts)
            _consistent(values, columns, spec, ts)
        ordered = ordered and stamp >= newest
        newest = max(newest, stamp)
        if ts not in bars or stamps[ts] < stamp:
            bars[ts], stamps[ts] = values, stamp
        elif stamps[ts] == stamp:
            if bars[ts] != values:
                raise BadDataError(
                    f"{spec.endpoint}: bar {format_utc(ts)} occurs twice with different values {bars[ts]} and "
                    f"{values}; {_NOTHING}"
                )
            repeated += 1
    notes = []
    if repeated:
        notes.append(f"{repeated} identical duplicate rows dropped")
    if not ordered:
        notes.append("rows were out of order")
    if unmade:
        notes.append(f"{unmade} rows without any value are observations not made, not zeros")
    opens = np.array(sorted(bars), dtype=np.int64)
    matrix = np.array([bars[int(ts)] for ts in opens], dtype=np.float64).reshape(len(opens), len(columns))
    return Page(opens, matrix, received_at, tuple(notes))


def _rows(data: Any, spec: SeriesSpec) -> Iterable[Row]:
    if spec.shape == "rows":
        for row in _listed(data, "data", spec):
            if not isinstance(row, dict):
                raise BadDataError(f"{spec.endpoint}: a row is {str(row)[:80]!r}, not an object; {_NOTHING}")
            yield row
        return
    # documented as a list of one object, served as the object itself
    parts = data if isinstance(data, list) else [data]
    if not parts:
        return
    if len(parts) != 1 or not isinstance(parts[0], dict):
        raise BadDataError(f"{spec.endpoint}: data is {str(data)[:80]!r}, not an object of lists; {_NOTHING}")
    yield from _parallel(parts[0], spec)


def _parallel(data: Mapping[str, Any], spec: SeriesSpec) -> Iterable[Row]:
    times = _listed(data.get(spec.time_field), spec.time_field, spec)
    columns: dict[str, Sequence[Any]] = {}
    for column in served_columns(spec):
        name = str(column.field)
        raw = data.get(name)
        columns[name] = _summed(raw, name, len(times), spec) if spec.shape == "data_map" else _listed(raw, name, spec)
        if len(columns[name]) != len(times):
            raise BadDataError(
                f"{spec.endpoint}: {name} has {len(columns[name])} values for {len(times)} times; {_NOTHING}"
            )
    for index, time in enumerate(times):
        row = {name: values[index] for name, values in columns.items()}
        if any(value is not None for value in row.values()):
            yield {spec.time_field: time, **row}


def _summed(raw: Any, name: str, count: int, spec: SeriesSpec) -> list[float | None]:
    """Return the sum over exchanges per point; None where no exchange has a value."""
    if not isinstance(raw, dict):
        raise BadDataError(f"{spec.endpoint}: {name} is {str(raw)[:80]!r}, not an object; {_NOTHING}")
    sums: list[float | None] = [None] * count
    for exchange, listed in raw.items():
        if str(exchange).lower() == _ALL:
            continue
        values = _listed(listed, f"{name}.{exchange}", spec)
        if len(values) != count:
            raise BadDataError(
                f"{spec.endpoint}: {name}.{str(exchange)[:40]} has {len(values)} values for {count} times; {_NOTHING}"
            )
        for index, value in enumerate(values):
            if value is None:
                continue
            number = _number(value)
            if not math.isfinite(number) or number < 0:
                raise BadDataError(
                    f"{spec.endpoint}: {name}.{str(exchange)[:40]} is {str(value)[:80]!r}, not a finite number of 0 "
                    f"or more; {_NOTHING}"
                )
            sums[index] = (sums[index] or 0.0) + number
    return sums


def _listed(raw: Any, name: str, spec: SeriesSpec) -> Sequence[Any]:
    if not isinstance(raw, list):
        raise BadDataError(f"{spec.endpoint}: {name} is {str(raw)[:80]!r}, not a list; {_NOTHING}")
    return raw


def _made(row: Row, spec: SeriesSpec, ts: int) -> bool:
    """Return whether a row with components is an observation: one of them at least has a value."""
    if spec.components is None:
        return True
    name, field = spec.components
    parts = row.get(name)
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise BadDataError(
            f"{spec.endpoint}: {name} is {str(parts)[:80]!r} at bar {format_utc(ts)}, not a list of objects; {_NOTHING}"
        )
    values = [part.get(field) for part in parts]
    for value in values:
        if value is not None and not math.isfinite(_number(value)):
            raise BadDataError(
                f"{spec.endpoint}: {name}.{field} is {str(value)[:80]!r} at bar {format_utc(ts)}, not a finite number; "
                f"{_NOTHING}"
            )
    return any(value is not None for value in values)


def _possible(values: tuple[float, ...], columns: Sequence[Column], spec: SeriesSpec, ts: int) -> None:
    """Refuse a bar with a value of a sign or size that its column cannot have."""
    for column, value in zip(columns, values, strict=True):
        negative = value < 0 if column.positive == "nonnegative" else value <= 0 and column.positive == "strict"
        if negative or abs(value) > column.limit:
            raise BadDataError(
                f"{spec.endpoint}: {spec.name}.{column.name} is {value} {column.unit} at bar {format_utc(ts)}, which "
                f"cannot be; {_NOTHING}"
            )


def _consistent(values: tuple[float, ...], columns: Sequence[Column], spec: SeriesSpec, ts: int) -> None:
    """Refuse a bar whose values contradict each other."""
    named = dict(zip((column.name for column in columns), values, strict=True))
    if all(name in named for name in _OHLC):
        open_, high, low, close = (named[name] for name in _OHLC)
        slack = _WHOLE * max(abs(value) for value in (open_, high, low, close))
        if high < max(open_, close) - slack or low > min(open_, close) + slack:
            raise BadDataError(
                f"{spec.endpoint}: bar {format_utc(ts)} has open {open_:g}, high {high:g}, low {low:g}, close "
                f"{close:g}: a high or low lies inside; {_NOTHING}"
            )
    if spec.parts and abs(sum(named[name] for name in spec.parts) - 1) > _ROUNDING:
        shown = ", ".join(f"{name} {named[name]:g}" for name in spec.parts)
        raise BadDataError(f"{spec.endpoint}: bar {format_utc(ts)} has {shown}: they do not make a whole; {_NOTHING}")


def _time(raw: Any, spec: SeriesSpec) -> int:
    number = _number(raw)
    if not math.isfinite(number) or number != int(number) or number < 0:
        raise BadDataError(
            f"{spec.endpoint}: {spec.time_field} is {str(raw)[:80]!r}, not a time in ms or s; {_NOTHING}"
        )
    stamp = int(number)
    stamp = stamp * 1000 if stamp < SECONDS_BELOW else stamp
    if stamp > _LAST_MS:
        raise BadDataError(
            f"{spec.endpoint}: {spec.time_field} {str(raw)[:80]!r} lies beyond the year 9999; {_NOTHING}"
        )
    return stamp


def _value(row: Row, column: Column, ts: int, spec: SeriesSpec) -> float:
    if column.field not in row:
        raise BadDataError(
            f"{spec.endpoint}: field {column.field!r} is missing at bar {format_utc(ts)}; has the answer's shape "
            f"changed? {_NOTHING.capitalize()}"
        )
    raw = row[str(column.field)]
    number = _number(raw)
    if not math.isfinite(number):
        raise BadDataError(
            f"{spec.endpoint}: {column.field} is {str(raw)[:80]!r} at bar {format_utc(ts)}, not a finite number; "
            f"{_NOTHING}"
        )
    return number * column.scale


def _number(raw: Any) -> float:
    """Return a JSON number or text as a float; NaN for what is no number on the wire (Python would read more)."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        return math.nan
    if isinstance(raw, str) and ("_" in raw or not raw.isascii()):
        return math.nan
    try:
        return float(str(raw))
    except (ValueError, OverflowError):
        return math.nan
