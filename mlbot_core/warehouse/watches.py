"""From when on a series is being watched live.

A bar that closed after somebody began to watch is known from when it was seen and not before, even if it arrives late
or is filled in after an outage: a decision of that time did not have it. A bar that closed before can only be
modelled: it is known from its close plus the publication lag. The first refresh of a series begins its watch.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from mlbot_core.timeframe import Timeframe

_MINE = "source = ? AND symbol = ? AND timeframe = ? AND series = ?"


@dataclass(frozen=True)
class Watch:
    """One series that is watched.

    Parameters
    ----------
    since_ms
        Bars that closed at or after this instant are live, UTC ms.
    started_at
        When this was written down, UTC ms.
    """

    source: str
    symbol: str
    timeframe: Timeframe
    series: str
    since_ms: int
    started_at: int


def begin(
    con: duckdb.DuckDBPyConnection,
    series: str,
    *,
    source: str,
    symbol: str,
    timeframe: Timeframe,
    since_ms: int,
    now_ms: int,
) -> None:
    """Begin to watch a series; nothing happens if it is watched already."""
    scope = [source, symbol, str(timeframe), series]
    if watched_since(con, series, source=source, symbol=symbol, timeframe=timeframe) is None:
        con.execute("INSERT INTO watches VALUES (?, ?, ?, ?, ?, ?)", [*scope, since_ms, now_ms])


def watched_since(
    con: duckdb.DuckDBPyConnection, series: str, *, source: str, symbol: str, timeframe: Timeframe
) -> int | None:
    """Return from when on a series is watched, UTC ms; None if it never was."""
    row = con.execute(
        f"SELECT min(since_ms) FROM watches WHERE {_MINE}", [source, symbol, str(timeframe), series]
    ).fetchone()
    return None if row is None or row[0] is None else int(row[0])


def all_watches(con: duckdb.DuckDBPyConnection) -> list[Watch]:
    """Return every watch, ordered by source, market and series."""
    rows = con.execute(
        "SELECT source, symbol, timeframe, series, since_ms, started_at FROM watches ORDER BY ALL"
    ).fetchall()
    return [Watch(str(a), str(b), Timeframe.parse(c), str(d), int(e), int(f)) for a, b, c, d, e, f in rows]
