"""The tables of the store and their version.

One append-only table a series family; derived tables (features, targets, forecasts ...) are made by the first write
from the columns it brings. No primary keys: they double the size and the write time of DuckDB tables; uniqueness is
kept by the append and verified by a blocking check.

``SCHEMA_VERSION`` rises when what is stored already has to be changed (:mod:`mlbot_core.warehouse.migrations`). A new
series, or a new column of one, needs no new version: :func:`create` adds it, and old rows have no value there.
"""

from __future__ import annotations

from typing import Literal

import duckdb

from mlbot_core.errors import WarehouseError
from mlbot_core.market import CATALOGUE

SCHEMA_VERSION = 2

State = Literal["empty", "older", "incomplete", "current"]

_FIXED = """
CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL, created_at BIGINT NOT NULL);

CREATE TABLE IF NOT EXISTS gaps (
    series VARCHAR NOT NULL, symbol VARCHAR NOT NULL, timeframe VARCHAR NOT NULL, source VARCHAR NOT NULL,
    from_ts BIGINT NOT NULL, to_ts BIGINT NOT NULL, cause VARCHAR NOT NULL,
    found_at BIGINT NOT NULL, filled_at BIGINT
);

CREATE TABLE IF NOT EXISTS partitions (
    asset VARCHAR NOT NULL, source VARCHAR NOT NULL, partition VARCHAR NOT NULL,
    data_version VARCHAR NOT NULL, rows BIGINT NOT NULL, info VARCHAR NOT NULL,
    written_at BIGINT NOT NULL, run_id VARCHAR NOT NULL
);

CREATE TABLE IF NOT EXISTS quality (
    asset VARCHAR NOT NULL, source VARCHAR NOT NULL, partition VARCHAR NOT NULL, check_name VARCHAR NOT NULL,
    data_version VARCHAR NOT NULL, passed BOOLEAN NOT NULL, detail VARCHAR NOT NULL,
    checked_at BIGINT NOT NULL, run_id VARCHAR NOT NULL
);

CREATE TABLE IF NOT EXISTS snapshots (
    name VARCHAR NOT NULL, snapshot_ms BIGINT NOT NULL, created_at BIGINT NOT NULL,
    content_hash VARCHAR NOT NULL, rows BIGINT NOT NULL, covers VARCHAR NOT NULL
);

CREATE TABLE IF NOT EXISTS watches (
    source VARCHAR NOT NULL, symbol VARCHAR NOT NULL, timeframe VARCHAR NOT NULL, series VARCHAR NOT NULL,
    since_ms BIGINT NOT NULL, started_at BIGINT NOT NULL
);
"""

FIXED_TABLES = ("schema_version", "gaps", "partitions", "quality", "snapshots", "watches")

KEY_COLUMNS = ("symbol", "source", "timeframe", "ts", "observed_at", "known_at", "capture")


def series_ddl(series: str) -> str:
    """Return the statement that creates a series' table."""
    values = ", ".join(f"{name} DOUBLE" for name in CATALOGUE[series].column_names)
    return (
        f"CREATE TABLE IF NOT EXISTS {series} (symbol VARCHAR NOT NULL, source VARCHAR NOT NULL, "
        "timeframe VARCHAR NOT NULL, ts BIGINT NOT NULL, observed_at BIGINT NOT NULL, known_at BIGINT NOT NULL, "
        f"capture VARCHAR NOT NULL, {values})"
    )


def columns(con: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """Return the columns of every table of the current database, in order."""
    rows = con.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = current_database() "
        "AND NOT internal ORDER BY table_name, column_index"
    ).fetchall()
    found: dict[str, list[str]] = {}
    for table, column in rows:
        found.setdefault(str(table), []).append(str(column))
    return found


def state(con: duckdb.DuckDBPyConnection) -> State:
    """Return whether a store has all tables of this version, lacks some, or waits for a migration.

    Raises
    ------
    WarehouseError
        If a newer program made the file.
    """
    present = columns(con)
    if "schema_version" not in present:
        return "empty"
    found = version(con)
    if found is None:
        return "empty"
    if found < SCHEMA_VERSION:
        return "older"
    whole = all(name in present for name in FIXED_TABLES) and not any(_missing(present).values())
    return "current" if whole else "incomplete"


def create(con: duckdb.DuckDBPyConnection, now_ms: int) -> None:
    """Create the tables and columns that are missing, in a store of this version or a new one.

    Raises
    ------
    WarehouseError
        If the file has another version; older ones are migrated first.
    """
    con.execute(_FIXED)
    found = version(con)
    if found is not None and found != SCHEMA_VERSION:
        raise WarehouseError(f"the store has schema version {found} and has to be migrated to {SCHEMA_VERSION} first")
    present = columns(con)
    for series, names in _missing(present).items():
        if series not in present:
            con.execute(series_ddl(series))
            continue
        for name in names:
            con.execute(f"ALTER TABLE {series} ADD COLUMN {name} DOUBLE")
    if found is None:
        con.execute("INSERT INTO schema_version VALUES (?, ?)", [SCHEMA_VERSION, now_ms])


def version(con: duckdb.DuckDBPyConnection) -> int | None:
    """Return the schema version of a store that has the table of versions; None while that is empty.

    Raises
    ------
    WarehouseError
        If a newer program made the file.
    """
    row = con.execute("SELECT max(version) FROM schema_version").fetchone()
    found = row[0] if row else None
    if found is not None and found > SCHEMA_VERSION:
        raise WarehouseError(
            f"the store has schema version {found}, this program knows up to {SCHEMA_VERSION}; "
            "update mlbot to the release that made it, or set MLBOT_HOME to an empty folder"
        )
    return None if found is None else int(found)


def _missing(present: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return, by series, the catalogue's columns that a store lacks."""
    return {
        series: [name for name in spec.column_names if name not in present.get(series, [])]
        for series, spec in CATALOGUE.items()
    }
