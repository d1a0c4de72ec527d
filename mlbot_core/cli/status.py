"""What is stored, what failed, what was trained: read from the store, without Dagster."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlbot_core.clock import SystemClock, format_utc
from mlbot_core.config import Settings

if TYPE_CHECKING:
    import duckdb

# outside a record there is nothing to repair
_OPEN_GAPS = "SELECT count(*) FROM gaps WHERE filled_at IS NULL AND cause NOT LIKE '% the record %'"


def collect(settings: Settings) -> dict[str, Any]:
    """Return the state of the home as plain values."""
    from mlbot_core.warehouse import Warehouse

    state: dict[str, Any] = {
        "home": str(settings.home),
        "source": settings.intervals.source,
        "up": running(settings.home / "up.lock"),
        "partitions": [],
        "failed_checks": [],
        "open_gaps": 0,
        "models": [],
        "backtests": [],
    }
    if not settings.warehouse_path.exists():
        return state
    with Warehouse(settings.warehouse_path, SystemClock()).read() as con:
        state["partitions"] = _partitions(con)
        state["failed_checks"] = _failed(con)
        state["open_gaps"] = _scalar(con, _OPEN_GAPS)
        state["models"] = _models(con)
        state["backtests"] = backtests(con)
    return state


def backtests(con: duckdb.DuckDBPyConnection, source: str | None = None) -> list[dict[str, Any]]:
    """Return the newest stored summary of each market and model."""
    from mlbot_core.warehouse.windows import exists

    if not exists(con, "backtests"):
        return []
    rows = con.execute(
        """
        SELECT source, symbol, timeframe, model_type, model_version, created_at, summary FROM backtests
        WHERE ? IS NULL OR source = ?
        QUALIFY row_number() OVER (
            PARTITION BY source, symbol, timeframe, model_type ORDER BY created_at DESC, rowid DESC
        ) = 1
        ORDER BY source, symbol, model_type
        """,
        [source, source],
    ).fetchall()
    names = ("source", "symbol", "timeframe", "model_type", "model_version", "created_at")
    return [dict(zip(names, row[:6], strict=True)) | json.loads(row[6]) for row in rows]


def running(lock: Path) -> dict[str, Any] | None:
    """Return what an ``mlbot up`` wrote into its lock while it holds it, else None."""
    if not lock.exists():
        return None
    fd = os.open(lock, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            found: dict[str, Any] = json.loads(lock.read_text(encoding="utf-8"))
        except ValueError:
            return {"pid": None, "url": None}
        return found
    finally:
        os.close(fd)
    return None


def _partitions(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    rows = con.execute(
        """
        WITH newest AS (
            SELECT asset, source, split_part(partition, '|', 1) AS market, split_part(partition, '|', 2) AS part, rows,
                   written_at
            FROM partitions
            QUALIFY row_number() OVER (PARTITION BY asset, source, partition ORDER BY written_at DESC, rowid DESC) = 1
        )
        SELECT source, market, asset, count(*), min(part), max(part), sum(rows), max(written_at)
        FROM newest GROUP BY ALL ORDER BY source, market, asset
        """
    ).fetchall()
    names = ("source", "market", "asset", "partitions", "first", "last", "rows", "written_at")
    return [dict(zip(names, (*row[:6], int(row[6]), format_utc(row[7])), strict=True)) for row in rows]


def _failed(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    rows = con.execute(
        """
        WITH newest AS (
            SELECT asset, source, partition, data_version FROM partitions
            QUALIFY row_number() OVER (PARTITION BY asset, source, partition ORDER BY written_at DESC, rowid DESC) = 1
        ), verdict AS (
            SELECT q.asset, q.source, q.partition, q.check_name, q.passed, q.detail
            FROM quality q JOIN newest n USING (asset, source, partition, data_version)
            QUALIFY row_number() OVER (
                PARTITION BY q.asset, q.source, q.partition, q.check_name ORDER BY q.checked_at DESC, q.rowid DESC
            ) = 1
        )
        SELECT source, asset, partition, check_name, detail FROM verdict WHERE NOT passed ORDER BY ALL
        """
    ).fetchall()
    return [dict(zip(("source", "asset", "partition", "check", "detail"), row, strict=True)) for row in rows]


def _models(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    from mlbot_core.warehouse.windows import exists

    if not exists(con, "models"):
        return []
    rows = con.execute(
        "SELECT source, symbol, timeframe, model_type, model_version, created_at FROM models ORDER BY created_at"
    ).fetchall()
    names = ("source", "symbol", "timeframe", "model_type", "model_version", "created_at")
    return [dict(zip(names, (*row[:5], format_utc(row[5])), strict=True)) for row in rows]


def _scalar(con: duckdb.DuckDBPyConnection, query: str) -> int:
    row = con.execute(query).fetchone()
    return int(row[0]) if row is not None else 0
