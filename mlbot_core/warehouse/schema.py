"""The tables of the store and their version.

One append-only table a series family; derived tables (features, targets, forecasts ...) are made by the first write
from the columns it brings. No primary keys: they double the size and the write time of DuckDB tables; uniqueness is
kept by the append and verified by a blocking check.
"""

from __future__ import annotations

import duckdb

from mlbot_core.errors import WarehouseError
from mlbot_core.market import CATALOGUE

SCHEMA_VERSION = 1

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
"""


def series_ddl(series: str) -> str:
    """Return the statement that creates a series' table."""
    values = ", ".join(f"{name} DOUBLE" for name in CATALOGUE[series].column_names)
    return (
        f"CREATE TABLE IF NOT EXISTS {series} (symbol VARCHAR NOT NULL, source VARCHAR NOT NULL, "
        "timeframe VARCHAR NOT NULL, ts BIGINT NOT NULL, observed_at BIGINT NOT NULL, known_at BIGINT NOT NULL, "
        f"capture VARCHAR NOT NULL, {values})"
    )


def is_current(con: duckdb.DuckDBPyConnection) -> bool:
    """Return whether a store has all tables of this version.

    Raises
    ------
    WarehouseError
        If the file was made by another schema version.
    """
    present = {row[0] for row in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if "schema_version" not in present:
        return False
    return _version(con) == SCHEMA_VERSION and present.issuperset(CATALOGUE)


def create(con: duckdb.DuckDBPyConnection, now_ms: int) -> None:
    """Create what is missing; a store of another version is refused, never guessed at.

    Raises
    ------
    WarehouseError
        If the file was made by another schema version.
    """
    con.execute(_FIXED)
    for series in CATALOGUE:
        con.execute(series_ddl(series))
    if _version(con) is None:
        con.execute("INSERT INTO schema_version VALUES (?, ?)", [SCHEMA_VERSION, now_ms])


def _version(con: duckdb.DuckDBPyConnection) -> int | None:
    row = con.execute("SELECT max(version) FROM schema_version").fetchone()
    found = row[0] if row else None
    if found is not None and found != SCHEMA_VERSION:
        raise WarehouseError(
            f"the store has schema version {found}, this program needs {SCHEMA_VERSION}; "
            "use the release that made it, or set MLBOT_HOME to an empty folder"
        )
    return found
