"""What a write changed that a person should hear of, as one line each: bars missing, bars back, bars restated.

The rows of the gaps table and the versions of the bars are the truth; these lines are for whoever reads the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import duckdb

from mlbot_core.clock import format_utc
from mlbot_core.market import SeriesBatch
from mlbot_core.timeframe import Timeframe
from mlbot_core.warehouse.bitemporal import AppendResult
from mlbot_core.warehouse.gaps import fillable, missing_runs

_LOG = logging.getLogger(__name__)

Line = tuple[int, str]


def incidents(
    con: duckdb.DuckDBPyConnection,
    batch: SeriesBatch,
    appended: AppendResult,
    *,
    start_ms: int,
    end_ms: int,
    now_ms: int,
    missing: bool = True,
) -> list[Line]:
    """Return what the write of a batch changed in ``[start_ms, end_ms)``: (level of the log, line) each.

    Parameters
    ----------
    now_ms
        When it was written, UTC ms: gaps that were found or filled then are this write's.
    missing
        Whether to tell what is missing; a repair asks for gaps that were told when they were found.
    """
    what = f"{batch.series} {batch.symbol}-{batch.timeframe} from {batch.source}"
    lines: list[Line] = []
    if appended.restated:
        lines.append(
            (logging.WARNING, f"{what}: {appended.restated} stored bars were restated; both versions are kept")
        )
    changed = con.execute(
        "SELECT from_ts, to_ts, cause, found_at, filled_at FROM gaps WHERE series = ? AND symbol = ? AND timeframe = ? "
        "AND source = ? AND to_ts >= ? AND from_ts < ? AND (found_at = ? OR filled_at = ?) ORDER BY from_ts, rowid",
        [batch.series, batch.symbol, str(batch.timeframe), batch.source, start_ms, end_ms, now_ms, now_ms],
    ).fetchall()
    for from_ts, to_ts, cause, found_at, filled_at in changed:
        if filled_at is not None:
            # one that was found and filled at once was never missing here
            if found_at != now_ms:
                bars = _bars(batch.timeframe, from_ts, to_ts)
                lines.append((logging.INFO, f"{what}: filled {bars}, missing since {format_utc(found_at)} ({cause})"))
            continue
        if not missing:
            continue
        # the source may leave out, with what is missing, bars that it has served before
        runs = missing_runs(
            con, batch.series, source=batch.source, symbol=batch.symbol, timeframe=batch.timeframe,
            start_ms=from_ts, end_ms=to_ts + batch.timeframe.ms, cause=cause,
        )  # fmt: skip
        level = logging.WARNING if fillable(cause) else logging.INFO
        lines += [(level, f"{what}: missing {_bars(run.timeframe, run.from_ts, run.to_ts)}: {cause}") for run in runs]
    return lines


def tell(lines: Iterable[Line]) -> None:
    """Write the lines to the log; to be called once what they say is committed."""
    for level, line in lines:
        _LOG.log(level, line)


def _bars(timeframe: Timeframe, from_ts: int, to_ts: int) -> str:
    count = (to_ts - from_ts) // timeframe.ms + 1
    span = format_utc(from_ts) if count == 1 else f"{format_utc(from_ts)} to {format_utc(to_ts)}"
    return f"{count} {'bar' if count == 1 else 'bars'} {span}"
