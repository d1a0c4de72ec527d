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
import pyarrow.compute as pc

from mlbot_core.errors import VersionConflictError
from mlbot_core.market import SeriesBatch, series_spec
from mlbot_core.timeframe import Timeframe
from mlbot_core.warehouse.gaps import fill_gaps, record_gaps
from mlbot_core.warehouse.watches import watched_since

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
        counts = {
            "live": pc.sum(pc.equal(self.table.column("capture"), "live")),
            "restated": pc.sum(pc.greater(self.table.column("versions"), 1)),
            "late": pc.sum(self.table.column("late")),
        }
        shares = {kind: count.as_py() / rows for kind, count in counts.items()}
        return {"live": shares["live"], "modelled": 1 - shares["live"], **shares}


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
    if old == 0 and len(ts) == 1 + np.count_nonzero(np.diff(ts)):
        # nothing to compare with: every row is the first version of its bar
        everything = np.arange(len(ts))
        return _Fresh(everything, ts, observed, np.ones(len(ts), dtype=np.bool_), np.full(len(ts), -1, dtype=np.int64))
    all_ts = np.concatenate([_int64(stored, "ts"), ts])
    all_observed = np.concatenate([_int64(stored, "observed_at"), observed])
    order = np.lexsort((np.arange(len(all_ts)) >= old, all_observed, all_ts))
    bar, incoming = all_ts[order], order >= old
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = bar[1:] != bar[:-1]
    changed = first.copy()
    for name in names:
        bits = _bits(stored, batch, name, order)
        changed[1:] |= bits[1:] != bits[:-1]
    kept = incoming & changed
    # two runs that saw the same values may store them in the other order: the earlier sight then brings nothing new
    kept &= ~_told_later(names, batch, stored, order, bar, incoming, kept)
    rows = order[kept] - old
    return _Fresh(rows, ts[rows], observed[rows], first[kept], _newest_stored(ts[rows], stored))


def _bits(stored: pa.Table, batch: SeriesBatch, name: str, order: _Ints) -> _Ints:
    """Return the stored and incoming values of a column as bits, so that a missing value equals a missing value."""
    values = np.concatenate([_float64(stored, name), _float64(batch.table, name)])
    return np.asarray(values.view(np.int64)[order])


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
        bits = _bits(stored, batch, name, order)
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
    """Insert the new versions; what is the same in every row travels as one value and not as a million."""
    spec = series_spec(batch.series)
    close = fresh.ts + batch.timeframe.ms
    live_since = batch.live_since_ms
    if live_since is None and not batch.recorded:
        live_since = watched_since(
            con, batch.series, source=batch.source, symbol=batch.symbol, timeframe=batch.timeframe
        )
    live = close >= (_FAR_FUTURE if live_since is None else live_since)
    lag = spec.lag_ms(batch.timeframe) if batch.publication_lag_ms is None else batch.publication_lag_ms
    modelled = np.minimum(fresh.observed_at, close + lag)
    known = np.where(fresh.first & ~live, modelled, fresh.observed_at)
    whole = len(fresh.rows) == batch.rows
    taken = batch.table if whole else batch.table.take(pa.array(fresh.rows))
    rows = taken.append_column("known_at", pa.array(known)).append_column("live", pa.array(live))
    con.register("fresh_rows", rows)
    try:
        con.execute(
            f"INSERT INTO {batch.series} (symbol, source, timeframe, ts, observed_at, known_at, capture, "
            f"{', '.join(spec.column_names)}) SELECT ?, ?, ?, ts, observed_at, known_at, "
            f"CASE WHEN live THEN 'live' ELSE 'backfill' END, {', '.join(spec.column_names)} FROM fresh_rows",
            [batch.symbol, batch.source, str(batch.timeframe)],
        )
    finally:
        con.unregister("fresh_rows")


def _int64(table: pa.Table, name: str) -> _Ints:
    return np.asarray(table.column(name).to_numpy(), dtype=np.int64)


def _float64(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    values = np.array(table.column(name).to_numpy(), dtype=np.float64)
    values[np.isnan(values)] = np.nan  # one bit pattern for every missing value
    values += 0.0  # and one for zero
    return values


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

    The store only scans; the version is chosen here, which for the window of a live decision takes a third of the
    time that planning and running a window query does.
    """
    snapshot = known_by_ms if snapshot_ms is None else snapshot_ms
    names = series_spec(series).column_names
    found = con.execute(
        f"SELECT ts, observed_at, known_at, capture, {', '.join(names)} FROM {series} "
        "WHERE symbol = ? AND source = ? AND timeframe = ? AND ts >= ? AND ts < ? AND observed_at <= ?",
        [symbol, source, str(timeframe), start_ms, end_ms, snapshot],
    ).to_arrow_table()
    ts, observed, known = (_int64(found, name) for name in ("ts", "observed_at", "known_at"))
    order = np.lexsort((observed, ts))
    ts, known = ts[order], known[order]
    starts = np.flatnonzero(np.diff(ts, prepend=ts[:1] - 1))
    counts = np.diff(starts, append=len(ts))
    in_time = known <= ts + (timeframe.ms + settle_delay_ms)
    rank = np.arange(len(ts))
    # per bar the last visible version in time (they are in order of observation), else the first visible one
    visible = known <= known_by_ms
    best = _per_bar(np.maximum, np.where(visible & in_time, rank, -1), starts)
    first = _per_bar(np.minimum, np.where(visible, rank, len(ts)), starts)
    chosen = np.where(best >= 0, best, first)
    there = chosen < len(ts)
    chosen, versions, late = chosen[there], counts[there], (best < 0)[there]
    rows = found.take(pa.array(order[chosen]))
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        **{name: rows.column(name) for name in ("ts", "observed_at", "known_at")},
        "late": pa.array(late),
        "capture": rows.column("capture"),
        "versions": pa.array(versions.astype(np.int64)),
        **{name: rows.column(name) for name in names},
    }
    return Settled(series, timeframe, pa.table(columns))


def _per_bar(reduce: np.ufunc, values: _Ints, starts: _Ints) -> _Ints:
    """Reduce the versions of each bar; ``starts`` is where each bar's begin."""
    return np.asarray(reduce.reduceat(values, starts), dtype=np.int64) if len(starts) else values[:0]


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
