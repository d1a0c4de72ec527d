"""The settled bars of many series of a market in one query: what a live decision reads.

Asking the store once for thirty series costs less than half of asking it thirty times, and the versions of all bars
are chosen in one pass. What comes out is what :func:`mlbot_core.warehouse.bitemporal.settled` returns for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlbot_core.market import series_spec
from mlbot_core.timeframe import Timeframe

_Ints = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Stretch:
    """Which bars of one series are wanted.

    Parameters
    ----------
    series, timeframe
        Name in the catalogue, and the length of the stored bars.
    start_ms, end_ms
        Range of open times, UTC ms, end exclusive.
    """

    series: str
    timeframe: Timeframe
    start_ms: int
    end_ms: int


def settled_many(
    con: duckdb.DuckDBPyConnection,
    wanted: Sequence[Stretch],
    *,
    source: str,
    symbol: str,
    settle_delay_ms: int,
    known_by_ms: int,
    snapshot_ms: int | None = None,
) -> dict[str, Columns]:
    """Return, for each bar of each series, the version its own decision could use, as ``settled`` does.

    Parameters
    ----------
    wanted
        Stretches of different series.
    settle_delay_ms
        From a bar's close to its decision, ms.
    known_by_ms, snapshot_ms
        T and S, UTC ms; S is T by default.

    Returns
    -------
    dict
        By series: ``ts`` and ``known_at`` (int64, UTC ms), ascending in ``ts``, each bar once, and the catalogue's
        value columns (float64, NaN where nothing was served).
    """
    if not wanted:
        return {}
    snapshot = known_by_ms if snapshot_ms is None else snapshot_ms
    widest = max(len(series_spec(one.series).column_names) for one in wanted)
    found = con.execute(
        " UNION ALL ".join(_select(at, one, widest) for at, one in enumerate(wanted)),
        {"symbol": symbol, "source": source, "snapshot": snapshot},
    ).to_arrow_table()
    which, ts, observed, known = (_int64(found, name) for name in ("series", "ts", "observed_at", "known_at"))
    order = _in_order(which, ts, observed)
    if order is not None:
        which, ts, known = which[order], ts[order], known[order]
    length = np.array([one.timeframe.ms for one in wanted], dtype=np.int64)
    chosen = _choose(which, ts, known <= ts + length[which] + settle_delay_ms, known <= known_by_ms)
    ends = np.searchsorted(which[chosen], np.arange(len(wanted) + 1))
    rows = chosen if order is None else order[chosen]
    ts, known = ts[chosen], known[chosen]
    values = [np.asarray(found.column(f"v{at}").to_numpy(), dtype=np.float64)[rows] for at in range(widest)]
    read: dict[str, Columns] = {}
    for at, one in enumerate(wanted):
        own = slice(int(ends[at]), int(ends[at + 1]))
        columns = {name: values[k][own] for k, name in enumerate(series_spec(one.series).column_names)}
        read[one.series] = {"ts": ts[own], "known_at": known[own], **columns}
    return read


def _select(at: int, one: Stretch, widest: int) -> str:
    """Return the query of one stretch; its columns are padded to those of the widest series.

    ``|| ''`` keeps the comparisons of text out of the scan: there they would be made on every row of the history,
    before its time is looked at. So they are made on the rows of the stretch only.
    """
    names = [*series_spec(one.series).column_names]
    columns = [f"{name} AS v{k}" for k, name in enumerate(names)]
    columns += [f"NULL::DOUBLE AS v{k}" for k in range(len(names), widest)]
    return (
        f"SELECT {at}::BIGINT AS series, ts, observed_at, known_at, {', '.join(columns)} FROM {one.series} "
        f"WHERE ts >= {int(one.start_ms)} AND ts < {int(one.end_ms)} AND observed_at <= $snapshot "
        f"AND symbol || '' = $symbol AND source || '' = $source AND timeframe || '' = '{one.timeframe}'"
    )


def _in_order(which: _Ints, ts: _Ints, observed: _Ints) -> _Ints | None:
    """Return the order by series, bar and observation; None if the rows came like that."""
    series, bar, seen = np.diff(which), np.diff(ts), np.diff(observed)
    if ((series > 0) | ((series == 0) & ((bar > 0) | ((bar == 0) & (seen >= 0))))).all():
        return None
    return np.lexsort((observed, ts, which)).astype(np.int64)


def _choose(which: _Ints, ts: _Ints, in_time: npt.NDArray[np.bool_], visible: npt.NDArray[np.bool_]) -> _Ints:
    """Return the row of each bar's version: the last visible one in time, else the first visible one; in order."""
    if len(ts) == 0:
        return np.empty(0, dtype=np.int64)
    begins = np.flatnonzero(np.concatenate([[True], (np.diff(ts) != 0) | (np.diff(which) != 0)]))
    row = np.arange(len(ts))
    best = np.maximum.reduceat(np.where(visible & in_time, row, -1), begins)
    first = np.minimum.reduceat(np.where(visible, row, len(ts)), begins)
    chosen = np.where(best >= 0, best, first)
    return np.asarray(chosen[chosen < len(ts)], dtype=np.int64)


def _int64(table: pa.Table, name: str) -> _Ints:
    return np.asarray(table.column(name).to_numpy(), dtype=np.int64)
