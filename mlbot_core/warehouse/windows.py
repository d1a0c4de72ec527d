"""Derived tables: one short transaction replaces a window of rows.

DELETE then INSERT is the only idiom that also removes rows the new computation no longer has; both run inside the
caller's transaction, so a reader sees the old window or the new one and nothing between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import duckdb
import pyarrow as pa

from mlbot_core.errors import MissingDataError, WarehouseError

_NAME = re.compile(r"^[a-z][a-z0-9_]*$")
_TYPES: tuple[tuple[object, str], ...] = (
    (pa.float64(), "DOUBLE"),
    (pa.int64(), "BIGINT"),
    (pa.int32(), "INTEGER"),
    (pa.bool_(), "BOOLEAN"),
    (pa.string(), "VARCHAR"),
    (pa.large_string(), "VARCHAR"),
)


def replace_window(
    con: duckdb.DuckDBPyConnection,
    name: str,
    scope: Mapping[str, str],
    table: pa.Table,
    *,
    start_ms: int | None = None,
    end_ms: int | None = None,
) -> int:
    """Replace the rows of ``scope`` with ``start_ms <= ts < end_ms`` by ``table``; return the rows written.

    The table is created by its first write; columns that a later write brings anew are added. Without bounds the
    whole scope is replaced.

    Parameters
    ----------
    scope
        Text columns that identify the data (source, symbol, timeframe ...), added to every row.
    table
        Arrow table; with bounds it must have an int64 ``ts`` inside them.

    Raises
    ------
    WarehouseError
        If a name is not a plain identifier, a type is not supported, or a row lies outside the window.
    """
    _check_names([name, *scope, *table.column_names])
    if (start_ms is None) != (end_ms is None):
        raise WarehouseError(f"{name}: give both bounds of the window or none")
    _create(con, name, scope, table.schema)
    where = " AND ".join(f"{column} = ?" for column in scope) or "TRUE"
    args: list[object] = list(scope.values())
    if start_ms is not None and end_ms is not None:
        ts = table.column("ts").to_numpy()
        if len(ts) and (ts.min() < start_ms or ts.max() >= end_ms):
            raise WarehouseError(f"{name}: rows from {ts.min()} to {ts.max()} reach outside [{start_ms}, {end_ms})")
        where += " AND ts >= ? AND ts < ?"
        args += [start_ms, end_ms]
    con.execute(f"DELETE FROM {name} WHERE {where}", args)
    if table.num_rows:
        con.register("window_rows", table)
        constants = ", ".join(f"? AS {column}" for column in scope)
        con.execute(
            f"INSERT INTO {name} BY NAME SELECT {constants + ', ' if constants else ''}* FROM window_rows",
            list(scope.values()),
        )
        con.unregister("window_rows")
    return int(table.num_rows)


def read_window(
    con: duckdb.DuckDBPyConnection,
    name: str,
    scope: Mapping[str, str],
    *,
    start_ms: int | None = None,
    end_ms: int | None = None,
    order_by: str = "ts",
    columns: Sequence[str] = (),
) -> pa.Table:
    """Return the rows of ``scope`` (and ``start_ms <= ts < end_ms`` where given), ordered; of equals the newest last.

    Parameters
    ----------
    columns
        To read; all of them by default.

    Raises
    ------
    MissingDataError
        If the table does not exist yet.
    """
    _check_names([name, *scope, order_by, *columns])
    if not exists(con, name):
        raise MissingDataError(f"there is no table {name} yet; materialize the asset that writes it first")
    where = " AND ".join(f"{column} = ?" for column in scope) or "TRUE"
    args: list[object] = list(scope.values())
    for bound, operator in ((start_ms, ">="), (end_ms, "<")):
        if bound is not None:
            where += f" AND ts {operator} ?"
            args.append(bound)
    what = ", ".join(columns) or "*"
    return con.execute(f"SELECT {what} FROM {name} WHERE {where} ORDER BY {order_by}, rowid", args).to_arrow_table()


def exists(con: duckdb.DuckDBPyConnection, name: str) -> bool:
    """Return whether a table of that name is in the store."""
    row = con.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [name]).fetchone()
    return row is not None


def _create(con: duckdb.DuckDBPyConnection, name: str, scope: Mapping[str, str], schema: pa.Schema) -> None:
    wanted = {column: "VARCHAR" for column in scope} | {field.name: _sql_type(name, field) for field in schema}
    if not exists(con, name):
        con.execute(f"CREATE TABLE {name} ({', '.join(f'{c} {t}' for c, t in wanted.items())})")
        return
    present = {row[0] for row in con.execute(f"SELECT column_name FROM (DESCRIBE {name})").fetchall()}
    for column, sql_type in wanted.items():
        if column not in present:
            con.execute(f"ALTER TABLE {name} ADD COLUMN {column} {sql_type}")


def _sql_type(table: str, field: pa.Field) -> str:
    for arrow, sql in _TYPES:
        if field.type == arrow:
            return sql
    raise WarehouseError(f"{table}.{field.name}: Arrow type {field.type} has no column type here")


def _check_names(names: list[str]) -> None:
    for name in names:
        if not _NAME.match(name):
            raise WarehouseError(f"{name!r} is not a plain lower-case identifier and cannot name a table or column")
