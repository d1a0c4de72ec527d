"""Append-only versions of bars, and the three ways to read them.

* ``as_of(T, S)``: per bar the newest version that was known at T, for the people of that moment.
* ``settled(T, S)``: per bar the one version that its own decision could use. Features, targets, training and backtest
  read this, so that they are equal in backfill and live.
* ``latest``: what we know now; for people and quality checks, never for a decision.

S, the snapshot, cuts on ``observed_at``: the same S gives the same rows however much was appended since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlbot_core.errors import VersionConflictError
from mlbot_core.market import GapRecord, SeriesBatch, series_spec
from mlbot_core.timeframe import Timeframe

_FAR_FUTURE = 2**62

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AppendResult:
    """What an append did: rows inserted in all, how many of them restate a bar, how many were already there."""

    inserted: int
    restated: int
    unchanged: int


@dataclass(frozen=True)
class Settled:
    """Settled bars of one series.

    Parameters
    ----------
    table
        ``ts, observed_at, known_at`` (int64 UTC ms), ``late`` (bool: first known after the decision time),
        ``capture`` (live or backfill), ``versions`` (how many are stored by the snapshot), then the values.
    """

    series: str
    timeframe: Timeframe
    table: pa.Table

    def shares(self) -> dict[str, float]:
        """Return the shares of bars that were captured live, are modelled from history, were restated, came late."""
        rows = self.table.num_rows
        if rows == 0:
            return {"live": 0.0, "modelled": 0.0, "restated": 0.0, "late": 0.0}
        live = sum(1 for value in self.table.column("capture").to_pylist() if value == "live")
        restated = sum(1 for value in self.table.column("versions").to_pylist() if value > 1)
        late = sum(1 for value in self.table.column("late").to_pylist() if value)
        return {
            "live": live / rows,
            "modelled": 1 - live / rows,
            "restated": restated / rows,
            "late": late / rows,
        }


def append(con: duckdb.DuckDBPyConnection, batch: SeriesBatch, *, now_ms: int) -> AppendResult:
    """Add the versions of a batch that are new; the same values again add nothing, in whatever order they arrive.

    The first version of a bar that was only seen as history is known from its close plus the publication lag; every
    other version from when it was observed. Gaps of the batch are recorded, and open gaps that are now complete are
    marked as filled. Runs inside the caller's transaction.

    Raises
    ------
    VersionConflictError
        If other values are stored for the same ``observed_at``, or newer versions of the bar are stored already.
    """
    # what the source leaves out this time may be stored already: such a gap is recorded and filled at once
    reported = record_gaps(con, batch.gaps, now_ms=now_ms)
    if batch.rows == 0:
        if reported:
            fill_gaps(con, batch.series, batch.symbol, batch.timeframe, batch.source, now_ms=now_ms)
        return AppendResult(0, 0, 0)
    fresh = _fresh_versions(con, batch)
    late = np.flatnonzero(fresh.observed_at <= fresh.newest_stored)
    if len(late):
        first = int(late[0])
        raise VersionConflictError(
            f"{batch.series} {batch.symbol} {batch.timeframe} from {batch.source}: bar {fresh.ts[first]} observed at "
            f"{fresh.observed_at[first]} has other values than the store, whose newest version is of "
            f"{fresh.newest_stored[first]}; observations must arrive in order (is the clock set back?)"
        )
    if len(fresh.rows):
        _insert(con, batch, fresh)
    if len(fresh.rows) or reported:
        fill_gaps(con, batch.series, batch.symbol, batch.timeframe, batch.source, now_ms=now_ms)
    return AppendResult(len(fresh.rows), int((~fresh.first).sum()), batch.rows - len(fresh.rows))


@dataclass(frozen=True)
class _Fresh:
    """Rows of a batch (by position) that are new versions, whether each is its bar's first, newest stored before."""

    rows: _Ints
    ts: _Ints
    observed_at: _Ints
    first: npt.NDArray[np.bool_]
    newest_stored: _Ints


def _fresh_versions(con: duckdb.DuckDBPyConnection, batch: SeriesBatch) -> _Fresh:
    """Find the rows of the batch whose values differ from the version before them.

    Stored and incoming versions are merged by (bar, observed_at) and each is compared with its predecessor. The
    stored ones come out of a plain scan and the comparison runs here: for the few rows of a live pull that is
    several times cheaper than planning a window query, and it is no slower for a bulk load.
    """
    names = series_spec(batch.series).column_names
    ts, observed = _int64(batch.table, "ts"), _int64(batch.table, "observed_at")
    stored = con.execute(
        f"SELECT ts, observed_at, {', '.join(names)} FROM {batch.series} "
        "WHERE symbol = ? AND source = ? AND timeframe = ? AND ts BETWEEN ? AND ?",
        [batch.symbol, batch.source, str(batch.timeframe), int(ts[0]), int(ts[-1])],
    ).to_arrow_table()
    old = stored.num_rows
    all_ts = np.concatenate([_int64(stored, "ts"), ts])
    all_observed = np.concatenate([_int64(stored, "observed_at"), observed])
    order = np.lexsort((np.arange(len(all_ts)) >= old, all_observed, all_ts))
    bar, incoming = all_ts[order], order >= old
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = bar[1:] != bar[:-1]
    changed = first.copy()
    for name in names:
        # as bits, so that a missing value (NaN) equals a missing value
        bits = np.concatenate([_float64(stored, name), _float64(batch.table, name)]).view(np.int64)[order]
        changed[1:] |= bits[1:] != bits[:-1]
    kept = incoming & changed
    # two runs that saw the same values may store them in the other order: the earlier sight then brings nothing new
    kept &= ~_told_later(names, batch, stored, order, bar, incoming, kept)
    rows = order[kept] - old
    return _Fresh(rows, ts[rows], observed[rows], first[kept], _newest_stored(ts[rows], stored))


def _told_later(
    names: Sequence[str],
    batch: SeriesBatch,
    stored: pa.Table,
    order: _Ints,
    bar: _Ints,
    incoming: npt.NDArray[np.bool_],
    kept: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Return where the next stored version of the same bar has the same values; all arguments are in merged order."""
    nothing = np.zeros(len(order), dtype=np.bool_)
    beyond = len(order)
    following = np.minimum.accumulate(np.where(incoming, beyond, np.arange(beyond))[::-1])[::-1]
    at = np.flatnonzero(kept & (following < beyond))
    at = at[bar[following[at]] == bar[at]]
    if len(at) == 0:
        return nothing
    same = np.ones(len(at), dtype=np.bool_)
    for name in names:
        bits = np.concatenate([_float64(stored, name), _float64(batch.table, name)]).view(np.int64)[order]
        same &= bits[at] == bits[following[at]]
    nothing[at[same]] = True
    return nothing


def _newest_stored(ts: _Ints, stored: pa.Table) -> _Ints:
    """Return the greatest stored ``observed_at`` of each bar, -1 where the bar is new."""
    bars, observed = _int64(stored, "ts"), _int64(stored, "observed_at")
    if len(bars) == 0:
        return np.full(len(ts), -1, dtype=np.int64)
    order = np.lexsort((observed, bars))
    bars, observed = bars[order], observed[order]
    at = np.searchsorted(bars, ts, side="right") - 1
    return np.where((at >= 0) & (bars[at] == ts), observed[at], np.int64(-1))


def _insert(con: duckdb.DuckDBPyConnection, batch: SeriesBatch, fresh: _Fresh) -> None:
    spec = series_spec(batch.series)
    close = fresh.ts + batch.timeframe.ms
    live_since = _FAR_FUTURE if batch.live_since_ms is None else batch.live_since_ms
    history = close < live_since
    lag = spec.publication_lag_ms if batch.publication_lag_ms is None else batch.publication_lag_ms
    modelled = np.minimum(fresh.observed_at, close + lag)
    known = np.where(history & fresh.first, modelled, fresh.observed_at)
    taken = batch.table.take(pa.array(fresh.rows))
    rows = pa.table(
        {
            "symbol": [batch.symbol] * len(known),
            "source": [batch.source] * len(known),
            "timeframe": [str(batch.timeframe)] * len(known),
            "ts": taken.column("ts"),
            "observed_at": taken.column("observed_at"),
            "known_at": known,
            "capture": np.where(history, "backfill", "live"),
            **{name: taken.column(name) for name in spec.column_names},
        }
    )
    con.register("fresh_rows", rows)
    try:
        con.execute(f"INSERT INTO {batch.series} BY NAME SELECT * FROM fresh_rows")
    finally:
        con.unregister("fresh_rows")


def _int64(table: pa.Table, name: str) -> _Ints:
    return np.asarray(table.column(name).to_numpy(), dtype=np.int64)


def _float64(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    values = np.array(table.column(name).to_numpy(), dtype=np.float64)
    values[np.isnan(values)] = np.nan  # one bit pattern for every missing value
    values += 0.0  # and one for zero
    return values


def record_gaps(con: duckdb.DuckDBPyConnection, gaps: Sequence[GapRecord], *, now_ms: int) -> int:
    """Store gaps that are not open already; return how many were new."""
    new = 0
    for gap in gaps:
        key = [gap.series, gap.symbol, str(gap.timeframe), gap.source, gap.from_ts, gap.to_ts]
        known = con.execute(
            "SELECT 1 FROM gaps WHERE series = ? AND symbol = ? AND timeframe = ? AND source = ? "
            "AND from_ts = ? AND to_ts = ? AND filled_at IS NULL",
            key,
        ).fetchone()
        if known is None:
            con.execute("INSERT INTO gaps VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)", [*key, gap.cause, now_ms])
            new += 1
    return new


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


def settled(
    con: duckdb.DuckDBPyConnection,
    series: str,
    *,
    source: str,
    symbol: str,
    timeframe: Timeframe,
    start_ms: int,
    end_ms: int,
    settle_delay_ms: int,
    known_by_ms: int,
    snapshot_ms: int | None = None,
) -> Settled:
    """Return, for each bar opened in ``[start_ms, end_ms)``, the version its own decision could use.

    That is the newest version known at ``ts + timeframe + settle_delay``; where there was none in time, the first
    version, marked late. ``known_by_ms`` is T: nothing known after it is returned. ``snapshot_ms`` is S: rows
    observed after it are not looked at (default: T).
    """
    values = ", ".join(series_spec(series).column_names)
    snapshot = known_by_ms if snapshot_ms is None else snapshot_ms
    table = con.execute(
        f"""
        WITH v AS (
            SELECT *, known_at <= ts + {timeframe.ms + settle_delay_ms} AS in_time,
                   count(*) OVER (PARTITION BY ts) AS versions
            FROM {series}
            WHERE symbol = ? AND source = ? AND timeframe = ? AND ts >= ? AND ts < ? AND observed_at <= ?
        )
        SELECT ts, observed_at, known_at, NOT in_time AS late, capture, versions, {values}
        FROM v WHERE known_at <= ?
        QUALIFY row_number() OVER (
            PARTITION BY ts ORDER BY in_time DESC, CASE WHEN in_time THEN -observed_at ELSE observed_at END
        ) = 1
        ORDER BY ts
        """,
        [symbol, source, str(timeframe), start_ms, end_ms, snapshot, known_by_ms],
    ).to_arrow_table()
    return Settled(series, timeframe, table)


def as_of(
    con: duckdb.DuckDBPyConnection,
    series: str,
    *,
    source: str,
    symbol: str,
    timeframe: Timeframe,
    start_ms: int,
    end_ms: int,
    known_by_ms: int,
    snapshot_ms: int | None = None,
) -> pa.Table:
    """Return, for each bar opened in ``[start_ms, end_ms)``, the newest version with ``known_at <= known_by_ms``.

    Columns: ``ts, observed_at, known_at``, then the values. ``snapshot_ms`` (default ``known_by_ms``) hides rows that
    were observed after it.
    """
    values = ", ".join(series_spec(series).column_names)
    snapshot = known_by_ms if snapshot_ms is None else snapshot_ms
    return con.execute(
        f"""
        SELECT ts, observed_at, known_at, {values} FROM {series}
        WHERE symbol = ? AND source = ? AND timeframe = ? AND ts >= ? AND ts < ? AND observed_at <= ? AND known_at <= ?
        QUALIFY row_number() OVER (PARTITION BY ts ORDER BY observed_at DESC) = 1
        ORDER BY ts
        """,
        [symbol, source, str(timeframe), start_ms, end_ms, snapshot, known_by_ms],
    ).to_arrow_table()


def latest(
    con: duckdb.DuckDBPyConnection,
    series: str,
    *,
    source: str,
    symbol: str,
    timeframe: Timeframe,
    start_ms: int,
    end_ms: int,
) -> pa.Table:
    """Return the newest version of each bar opened in ``[start_ms, end_ms)``; for people and checks only."""
    return as_of(
        con,
        series,
        source=source,
        symbol=symbol,
        timeframe=timeframe,
        start_ms=start_ms,
        end_ms=end_ms,
        known_by_ms=_FAR_FUTURE,
    )
