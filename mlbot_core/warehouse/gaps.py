"""Missing stretches: rows with a cause, open until every bar of theirs is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import duckdb
import numpy as np

from mlbot_core.market import GapRecord, SeriesBatch, series_spec
from mlbot_core.market.quality import find_gaps
from mlbot_core.sources.base import (
    CAUSE_AFTER_RECORD,
    CAUSE_BEFORE_HISTORY,
    CAUSE_NOT_RECORDED,
    CAUSE_NOTHING,
    CAUSE_PADDING,
)
from mlbot_core.timeframe import Timeframe

# what lies before a listing, a plan's history or a record, after a record, or was never recorded, cannot be asked for
_NEVER = (CAUSE_PADDING, CAUSE_AFTER_RECORD, CAUSE_NOT_RECORDED)
_BEFORE = "before "


@dataclass(frozen=True)
class OpenGap:
    """Bars that are missing now.

    Parameters
    ----------
    from_ts, to_ts
        Open times of the first and the last bar, UTC ms, both inclusive; every bar between them is missing.
    found_at
        When the gap was first recorded, UTC ms.
    """

    series: str
    symbol: str
    timeframe: Timeframe
    source: str
    from_ts: int
    to_ts: int
    cause: str
    found_at: int

    @property
    def bars(self) -> int:
        """How many bars are missing."""
        return (self.to_ts - self.from_ts) // self.timeframe.ms + 1

    @property
    def fillable(self) -> bool:
        """Whether asking the source again can bring the bars."""
        return fillable(self.cause)


def fillable(cause: str) -> bool:
    """Return whether bars that are missing for this cause can be asked for again."""
    return cause not in _NEVER and not cause.startswith(_BEFORE)


def record_gaps(con: duckdb.DuckDBPyConnection, gaps: Sequence[GapRecord], *, now_ms: int) -> int:
    """Store what of the gaps is not in an open gap already; return how many rows are new."""
    new = 0
    for gap in gaps:
        key = [gap.series, gap.symbol, str(gap.timeframe), gap.source]
        known = con.execute(
            "SELECT from_ts, to_ts FROM gaps WHERE series = ? AND symbol = ? AND timeframe = ? AND source = ? "
            "AND to_ts >= ? AND from_ts <= ? AND filled_at IS NULL",
            [*key, gap.from_ts, gap.to_ts],
        ).fetchall()
        for from_ts, to_ts in _outside(gap, known):
            con.execute(
                "INSERT INTO gaps VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)", [*key, from_ts, to_ts, gap.cause, now_ms]
            )
            new += 1
    return new


def _outside(gap: GapRecord, known: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the runs of a gap (first and last bar) that lie in none of the known ones."""
    if not known:
        return [(gap.from_ts, gap.to_ts)]
    grid = gap.timeframe.opens_between(gap.from_ts, gap.to_ts + 1)
    for from_ts, to_ts in known:
        grid = grid[(grid < from_ts) | (grid > to_ts)]
    runs = np.split(grid, np.flatnonzero(np.diff(grid) != gap.timeframe.ms) + 1)
    return [(int(run[0]), int(run[-1])) for run in runs if len(run)]


def fill_gaps(
    con: duckdb.DuckDBPyConnection, series: str, symbol: str, timeframe: Timeframe, source: str, *, now_ms: int
) -> None:
    """Mark the open gaps of a series whose every bar is stored by now."""
    scope = [series, symbol, str(timeframe), source]
    mine = "series = ? AND symbol = ? AND timeframe = ? AND source = ? AND filled_at IS NULL"
    if con.execute(f"SELECT 1 FROM gaps WHERE {mine} LIMIT 1", scope).fetchone() is None:
        return
    con.execute(
        f"""
        UPDATE gaps SET filled_at = ?
        WHERE {mine}
          AND (SELECT count(DISTINCT b.ts) FROM {series} b
               WHERE b.symbol = gaps.symbol AND b.timeframe = gaps.timeframe AND b.source = gaps.source
                 AND b.ts BETWEEN gaps.from_ts AND gaps.to_ts) = (gaps.to_ts - gaps.from_ts) // {timeframe.ms} + 1
        """,
        [now_ms, *scope],
    )


def named_causes(con: duckdb.DuckDBPyConnection, batch: SeriesBatch) -> SeriesBatch:
    """Return the batch with the causes of its gaps put right by what is stored.

    A source that is asked for a stretch in the middle of history cannot tell a hole at its beginning from the time
    before the series was listed. Where older bars are stored the series existed, so the source returned nothing.
    """
    listing = [gap for gap in batch.gaps if gap.cause == CAUSE_BEFORE_HISTORY]
    if not listing:
        return batch
    row = con.execute(
        f"SELECT min(ts) FROM {batch.series} WHERE symbol = ? AND source = ? AND timeframe = ?",
        [batch.symbol, batch.source, str(batch.timeframe)],
    ).fetchone()
    oldest = None if row is None or row[0] is None else int(row[0])
    if oldest is None or batch.recorded:
        return batch
    gaps = tuple(
        replace(gap, cause=CAUSE_NOTHING) if gap in listing and gap.from_ts > oldest else gap for gap in batch.gaps
    )
    return replace(batch, gaps=gaps)


def open_gaps(
    con: duckdb.DuckDBPyConnection,
    *,
    source: str | None = None,
    series: str | None = None,
    symbol: str | None = None,
    timeframe: Timeframe | None = None,
) -> list[OpenGap]:
    """Return the runs of bars that are missing now, each once however often it was recorded; ascending.

    Gaps that overlap or touch are seen together: a bar has the cause that was recorded last.
    """
    chosen = {"source": source, "series": series, "symbol": symbol, "timeframe": str(timeframe) if timeframe else None}
    given = {column: value for column, value in chosen.items() if value is not None}
    where = "".join(f" AND {column} = ?" for column in given)
    rows = con.execute(
        "SELECT series, symbol, timeframe, source, from_ts, to_ts, cause, found_at FROM gaps "
        f"WHERE filled_at IS NULL{where} ORDER BY series, symbol, timeframe, source, found_at, rowid",
        list(given.values()),
    ).fetchall()
    groups: dict[tuple[str, str, str, str], list[tuple[int, int, str, int]]] = {}
    for row in rows:
        groups.setdefault(tuple(map(str, row[:4])), []).append(  # type: ignore[arg-type]
            (int(row[4]), int(row[5]), str(row[6]), int(row[7]))
        )
    found: list[OpenGap] = []
    for (name, coin, step, origin), recorded in groups.items():
        found += _missing(con, name, coin, Timeframe.parse(step), origin, recorded)
    return found


def _missing(
    con: duckdb.DuckDBPyConnection,
    series: str,
    symbol: str,
    timeframe: Timeframe,
    source: str,
    recorded: Sequence[tuple[int, int, str, int]],
) -> list[OpenGap]:
    """Return what of the recorded gaps of one series is still missing, cut where the cause changes."""
    series_spec(series)
    first = min(gap[0] for gap in recorded)
    stop = max(gap[1] for gap in recorded) + timeframe.ms
    stored = con.execute(
        f"SELECT DISTINCT ts FROM {series} WHERE symbol = ? AND source = ? AND timeframe = ? AND ts >= ? AND ts < ?",
        [symbol, source, str(timeframe), first, stop],
    ).to_arrow_table()
    grid = timeframe.opens_between(first, stop)
    there = np.isin(grid, np.asarray(stored.column("ts").to_numpy(), dtype=np.int64))
    owner = np.full(len(grid), -1, dtype=np.int64)
    for index, (from_ts, to_ts, _, _) in enumerate(recorded):
        owner[(grid >= from_ts) & (grid <= to_ts)] = index
    owner[there] = -1
    cause = np.array([-1, *(sorted({gap[2] for gap in recorded}).index(gap[2]) for gap in recorded)])[owner + 1]
    breaks = np.flatnonzero(np.diff(cause)) + 1
    runs = [run for run in np.split(np.arange(len(grid)), breaks) if len(run) and owner[run[0]] >= 0]
    return [
        OpenGap(
            series,
            symbol,
            timeframe,
            source,
            int(grid[run[0]]),
            int(grid[run[-1]]),
            recorded[int(owner[run[0]])][2],
            min(gap[3] for gap in recorded if gap[0] <= grid[run[-1]] and gap[1] >= grid[run[0]]),
        )
        for run in runs
    ]


def missing_runs(
    con: duckdb.DuckDBPyConnection,
    series: str,
    *,
    source: str,
    symbol: str,
    timeframe: Timeframe,
    start_ms: int,
    end_ms: int,
    cause: str,
) -> tuple[GapRecord, ...]:
    """Return what is expected in ``[start_ms, end_ms)`` and not stored, as gap records with one cause."""
    stored = con.execute(
        f"SELECT DISTINCT ts FROM {series} WHERE symbol = ? AND source = ? AND timeframe = ? AND ts >= ? AND ts < ?",
        [symbol, source, str(timeframe), start_ms, end_ms],
    ).to_arrow_table()
    ts = np.asarray(stored.column("ts").to_numpy(), dtype=np.int64)
    expected = series_spec(series).expected_opens(timeframe, start_ms, end_ms)
    return tuple(
        GapRecord(series, symbol, timeframe, source, gap.from_ts, gap.to_ts, cause)
        for gap in find_gaps(ts, timeframe, start_ms, end_ms, expected=expected)
    )
