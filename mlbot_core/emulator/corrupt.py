"""What the row faults do to the rows of a good answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mlbot_core.emulator.faults import Fault
from mlbot_core.errors import UsageError

Row = dict[str, Any]
Rows = list[Row]


def _value_fields(row: Row) -> list[str]:
    return [name for name, value in row.items() if name != "time" and isinstance(value, int | float | str)]


def _scaled(value: Any, factor: float) -> Any:
    """Multiply a served value and keep its JSON type."""
    if isinstance(value, str):
        return f"{float(value) * factor:.8f}".rstrip("0").rstrip(".")
    return round(value * factor) if isinstance(value, int) else round(value * factor, 8)


def _duplicate_bars(rows: Rows, fault: Fault) -> Rows:
    at = len(rows) // 2
    factor = fault.factor if fault.factor is not None else 1.0
    copy = dict(rows[at])
    if factor != 1.0:
        copy.update({name: _scaled(copy[name], factor) for name in _value_fields(copy)})
    return [*rows[: at + 1], copy, *rows[at + 1 :]]


def _strings_for_numbers(rows: Rows) -> Rows:
    """Quote every value but the last one of the last row, as has been seen in open bars."""
    quoted: Rows = [{n: v if n == "time" else str(v) for n, v in row.items()} for row in rows]
    last = _value_fields(rows[-1])[-1]
    quoted[-1][last] = float(rows[-1][last])
    return quoted


def _unparsable(rows: Rows, fault: Fault) -> Rows:
    at = len(rows) // 2
    name = fault.column if fault.column in rows[at] else _value_fields(rows[at])[-1]
    return [*rows[:at], {**rows[at], str(name): "abc" if fault.text is None else fault.text}, *rows[at + 1 :]]


def _inside(row: Row, fault: Fault) -> bool:
    # The constructor of Fault demands both bounds of a kind that uses them.
    return (fault.from_ts or 0) <= row["time"] <= (fault.to_ts or 0)


def _restate(rows: Rows, fault: Fault) -> Rows:
    factor = float(fault.factor if fault.factor is not None else 1.0)

    def changed(row: Row) -> Row:
        names = _value_fields(row) if fault.column is None else [fault.column] if fault.column in row else []
        after = {**row, **{name: _scaled(row[name], factor) for name in names}}
        return _enclosed(after) if fault.column in _ENDS else after

    return [changed(row) if _inside(row, fault) else row for row in rows]


_ENDS = ("open", "close")


def _enclosed(row: Row) -> Row:
    """Return a bar whose high and low enclose its ends again, each in its JSON type."""
    if not {"high", "low", *_ENDS} <= row.keys():
        return row
    ends = [row[name] for name in _ENDS]
    high = max([row["high"], *ends], key=float)
    low = min([row["low"], *ends], key=float)
    return {**row, "high": _typed(high, row["high"], math.ceil), "low": _typed(low, row["low"], math.floor)}


def _typed(value: Any, like: Any, whole: Callable[[float], int]) -> Any:
    """Return a value in the JSON type of another; a whole number is rounded outwards."""
    return whole(float(value)) if isinstance(like, int) else type(like)(value)


def corrupt(rows: Rows, fault: Fault, step: int, now_ms: int) -> Rows:
    """Return the rows with one row fault in them; the given rows are not changed.

    Parameters
    ----------
    rows
        Rows as served, ascending, each with ``time``.
    fault
        A fault of a row kind.
    step
        Length of a bar in ms.
    now_ms
        The emulator's present, UTC ms.

    Raises
    ------
    UsageError
        If the fault acts on the whole answer instead.
    """
    if fault.kind == "empty_page" or not rows:
        return []
    if fault.kind == "duplicate_bars":
        return _duplicate_bars(rows, fault)
    if fault.kind == "strings_for_numbers":
        return _strings_for_numbers(rows)
    if fault.kind == "unparsable":
        return _unparsable(rows, fault)
    if fault.kind == "gap":
        return [row for row in rows if not _inside(row, fault)]
    if fault.kind == "restate":
        return _restate(rows, fault)
    if fault.kind == "late_bars":
        return [row for row in rows if row["time"] + step + (fault.seconds or 0.0) * 1000 <= now_ms]
    last = rows[-1]
    if fault.kind == "extra_open_bar":  # the last row again, one step later: a bar that cannot be known yet
        return [*rows, {**last, "time": last["time"] + step}]
    if fault.kind == "off_grid":  # stamped somewhere inside its bar, as snapshot endpoints do
        return [*rows[:-1], {**last, "time": last["time"] + step // 3 + 1}]
    raise UsageError(f"fault {fault.kind} does not act on rows")
