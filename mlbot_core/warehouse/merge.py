"""The versions of another store added to a store, once each."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb

from mlbot_core.errors import VersionConflictError
from mlbot_core.market import CATALOGUE, series_spec
from mlbot_core.timeframe import Market, Month, Timeframe
from mlbot_core.warehouse.bitemporal import latest
from mlbot_core.warehouse.partitions import data_version
from mlbot_core.warehouse.schema import FIXED_TABLES, columns
from mlbot_core.warehouse.store import connected

_KEY = ("symbol", "source", "timeframe", "ts", "observed_at")


def merge_tables(target: Path, other: Path, now_ms: int) -> tuple[dict[str, int], tuple[str, ...], tuple[str, ...]]:
    """Add what ``other`` has and ``target`` lacks, in one transaction.

    Returns
    -------
    added, kept, unchecked
        Rows added by table; derived tables of ``other`` that were left out; raw partitions that hold a mixture now.

    Raises
    ------
    VersionConflictError
        If both have other values for the same version of a bar.
    """
    added: dict[str, int] = {}
    kept: list[str] = []
    quoted = str(other).replace("'", "''")
    with connected(target, read_only=False) as con:
        con.execute(f"ATTACH '{quoted}' AS other (READ_ONLY)")
        theirs = _tables(con, "other")
        mine = columns(con)
        con.execute("BEGIN TRANSACTION")
        taken = [name for name in theirs if name not in CATALOGUE and name not in FIXED_TABLES]
        for name in list(taken):
            if name in mine:
                same = _count(con, f"SELECT count(*) FROM (FROM other.{name} EXCEPT FROM {name})") == 0
                taken.remove(name)
                kept += [] if same else [name]
                continue
            con.execute(f"CREATE TABLE {name} AS FROM other.{name} ORDER BY rowid")
            added[name] = _count(con, f"SELECT count(*) FROM {name}")
        for series in CATALOGUE:
            if series in theirs:
                added[series] = _merge_series(con, series)
        assets = [*CATALOGUE, *taken]
        for name in ("gaps", "partitions", "quality", "snapshots", "watches"):
            only = "asset IN (SELECT unnest(?))" if name in ("partitions", "quality") else "TRUE"
            args = [assets] if name in ("partitions", "quality") else []
            before = _count(con, f"SELECT count(*) FROM {name}")
            con.execute(
                f"INSERT INTO {name} BY NAME SELECT * FROM other.{name} o WHERE {only} AND NOT EXISTS "
                f"(FROM {name} m WHERE m IS NOT DISTINCT FROM o) ORDER BY o.rowid",
                args,
            )
            added[name] = _count(con, f"SELECT count(*) FROM {name}") - before
        unchecked = _mark_mixtures(con, now_ms)
        con.execute("COMMIT")
        con.execute("DETACH other")
        con.execute("CHECKPOINT")
    return {name: count for name, count in added.items() if count}, tuple(kept), tuple(unchecked)


def _merge_series(con: duckdb.DuckDBPyConnection, series: str) -> int:
    names = series_spec(series).column_names
    on = " AND ".join(f"m.{column} = o.{column}" for column in _KEY)
    differs = " OR ".join(f"m.{name} IS DISTINCT FROM o.{name}" for name in (*names, "known_at", "capture"))
    wrong = con.execute(
        f"SELECT o.symbol, o.source, o.timeframe, o.ts, o.observed_at FROM other.{series} o JOIN {series} m ON {on} "
        f"WHERE {differs} LIMIT 1"
    ).fetchone()
    if wrong is not None:
        symbol, source, timeframe, ts, observed = wrong
        raise VersionConflictError(
            f"{series} {symbol} {timeframe} from {source}: backup and store hold different versions of bar {ts} "
            f"observed at {observed}; import into an empty MLBOT_HOME instead"
        )
    before = _count(con, f"SELECT count(*) FROM {series}")
    con.execute(f"INSERT INTO {series} BY NAME SELECT * FROM other.{series} o ANTI JOIN {series} m ON {on}")
    return _count(con, f"SELECT count(*) FROM {series}") - before


def _mark_mixtures(con: duckdb.DuckDBPyConnection, now_ms: int) -> list[str]:
    """Give raw partitions whose newest recorded version is not what is stored now a version without verdicts."""
    rows = con.execute(
        """
        SELECT asset, source, partition, data_version, info FROM partitions WHERE asset IN (SELECT unnest(?))
        QUALIFY row_number() OVER (PARTITION BY asset, source, partition ORDER BY written_at DESC, rowid DESC) = 1
        ORDER BY ALL
        """,
        [list(CATALOGUE)],
    ).fetchall()
    unchecked = []
    for asset, source, partition, version, info in rows:
        facts = json.loads(info)
        if facts.get("timeframe") is None:
            continue
        found, count = stored_version(con, asset, source, partition, facts["timeframe"])
        if found == version:
            continue
        known = con.execute(
            "SELECT rows, info, run_id FROM partitions WHERE asset = ? AND source = ? AND partition = ? "
            "AND data_version = ? ORDER BY written_at DESC, rowid DESC LIMIT 1",
            [asset, source, partition, found],
        ).fetchone()
        text, run = (known[1], known[2]) if known else (info, "merged")
        con.execute(
            "INSERT INTO partitions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [asset, source, partition, found, count, text, now_ms, run],
        )
        if known is None:
            unchecked.append(f"{asset}|{source}|{partition}")
    return unchecked


def stored_version(
    con: duckdb.DuckDBPyConnection, asset: str, source: str, partition: str, timeframe: str
) -> tuple[str, int]:
    """Return the data version of what is stored of a raw partition now, and its bars."""
    market, _, key = partition.partition("|")
    month = Month.parse(key)
    bars = latest(
        con, asset, source=source, symbol=Market.parse(market).symbol, timeframe=Timeframe.parse(timeframe),
        start_ms=month.start_ms, end_ms=month.end_ms,
    )  # fmt: skip
    return data_version(bars), bars.num_rows


def _tables(con: duckdb.DuckDBPyConnection, database: str) -> list[str]:
    rows = con.execute(
        "SELECT table_name FROM duckdb_tables() WHERE database_name = ? ORDER BY 1", [database]
    ).fetchall()
    return [str(row[0]) for row in rows]


def _count(con: duckdb.DuckDBPyConnection, query: str) -> int:
    row = con.execute(query).fetchone()
    return int(row[0]) if row is not None else 0
