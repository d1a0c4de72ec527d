"""The store as a folder of Parquet files with a manifest, and back.

``export_store`` reads a copy, so nobody is held up. ``import_store`` checks every file against the manifest before it
uses it and every table after it was loaded, builds the new store beside the old one and swaps them in one step. Into
a store that holds data already, versions are merged: what is there stays, what is there already is not added again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from mlbot_core import __version__
from mlbot_core.errors import WarehouseError
from mlbot_core.warehouse import migrations, schema
from mlbot_core.warehouse.content import table_content
from mlbot_core.warehouse.copying import flush, scratch
from mlbot_core.warehouse.merge import merge_tables
from mlbot_core.warehouse.rebuild import contents, replace_store
from mlbot_core.warehouse.store import Warehouse, connected

MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class Exported:
    """Where a backup lies, and what is in it."""

    folder: Path
    tables: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class Imported:
    """What an import brought.

    Parameters
    ----------
    added
        Rows added, by table; tables that gained none are absent.
    kept
        Derived tables of the backup that were left out because this store has its own; make them again from the
        merged series.
    unchecked
        Raw partitions whose content is neither what it was here nor what it was there: consumers refuse them until
        they are materialized again.
    """

    merged: bool
    added: dict[str, int]
    kept: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


def export_store(store: Warehouse, folder: Path) -> Exported:
    """Write every table as Parquet, and a manifest with row counts and hashes; the folder appears whole or not at all.

    Raises
    ------
    WarehouseError
        If the folder exists and is not empty, or there is no store.
    """
    if folder.exists() and any(folder.iterdir()):
        raise WarehouseError(f"{folder} is not empty; export into a new folder")
    if not store.path.exists():
        raise WarehouseError(f"there is no store at {store.path} yet; nothing can be exported")
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with store.copied() as con:
            tables = {table: _export_table(con, table, partial) for table in schema.columns(con)}
            version = schema.version(con)
        manifest = {
            "format": _FORMAT,
            "schema_version": version,
            "made_by": f"mlbot {__version__}, duckdb {duckdb.__version__}",
            "created_at": store.clock.now_ms(),
            "tables": tables,
        }
        path = partial / MANIFEST
        path.write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
        for file in partial.iterdir():
            flush(file)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(file.stat().st_size for file in folder.iterdir())
    return Exported(folder, len(tables), sum(t["rows"] for t in tables.values()), size)


def _export_table(con: duckdb.DuckDBPyConnection, table: str, folder: Path) -> dict[str, Any]:
    target = str(folder / f"{table}.parquet").replace("'", "''")
    con.execute(f"COPY (SELECT * FROM {table} ORDER BY rowid) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
    content = table_content(con, table)
    described = con.execute(
        "SELECT column_name, data_type, is_nullable FROM duckdb_columns() "
        "WHERE table_name = ? AND database_name = current_database() ORDER BY column_index",
        [table],
    ).fetchall()
    return {
        "file": f"{table}.parquet",
        "rows": content.rows,
        "content_hash": content.hash,
        "sha256": _sha256(folder / f"{table}.parquet"),
        "columns": [[name, kind, bool(nullable)] for name, kind, nullable in described],
    }


def import_store(store: Warehouse, folder: Path) -> Imported:
    """Load a backup: whole where the store is empty, else merged into what is there; doing it again changes nothing.

    Raises
    ------
    WarehouseError
        If the manifest or a file is missing, damaged or of a newer program, or others kept writing to the store.
    VersionConflictError
        If backup and store hold different values for the same version of a bar. The store stays as it was.
    """
    manifest = _read_manifest(folder)
    result: list[Imported] = []

    def make(copy: Path | None, new: Path) -> None:
        result.clear()
        _build(manifest, folder, new, store.clock.now_ms())
        if copy is None or not _holds_data(copy):
            rows = {name: content.rows for name, content in contents(new).items()}
            result.append(Imported(False, {name: count for name, count in rows.items() if count}))
            return
        with scratch(store.path, "import-loaded") as loaded:
            new.rename(loaded)
            shutil.copyfile(copy, new)
            added, kept, unchecked = merge_tables(new, loaded, store.clock.now_ms())
        result.append(Imported(True, added, kept, unchecked))

    if store.path.exists():
        with store.read():
            pass  # an older store is brought forward first
    replace_store(store, "import", make)
    return result[0]


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a backup whose files are all as they were written."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tables, version, kind = manifest["tables"], int(manifest["schema_version"]), manifest["format"]
    except FileNotFoundError:
        raise WarehouseError(f"{folder} has no {MANIFEST}: it is no export of mlbot, or one that was cut off") from None
    except (ValueError, KeyError, TypeError) as error:
        raise WarehouseError(f"{path} is damaged ({error}); take another copy of the export") from error
    if kind != _FORMAT or version > schema.SCHEMA_VERSION:
        raise WarehouseError(
            f"{folder} was exported by a newer program (format {kind}, schema version {version}); update mlbot first"
        )
    for name, table in tables.items():
        file = folder / table["file"]
        if not name.isidentifier() or file.parent != folder or not file.exists():
            raise WarehouseError(f"{folder} lacks the file of table {name}; take another copy of the export")
        if _sha256(file) != table["sha256"]:
            raise WarehouseError(f"{file} is not what was exported (its hash differs); take another copy of the export")
    return manifest


def _build(manifest: dict[str, Any], folder: Path, new: Path, now_ms: int) -> None:
    """Load a backup into a new file, verify it, and bring it forward if it is older."""
    with connected(new, read_only=False) as con:
        for name, table in manifest["tables"].items():
            columns = ", ".join(f"{c} {kind}{'' if null else ' NOT NULL'}" for c, kind, null in table["columns"])
            con.execute(f"CREATE TABLE {name} ({columns})")
            source = str(folder / table["file"]).replace("'", "''")
            con.execute(f"INSERT INTO {name} SELECT * FROM read_parquet('{source}')")
            content = table_content(con, name)
            if (content.rows, content.hash) != (table["rows"], table["content_hash"]):
                raise WarehouseError(
                    f"table {name} of {folder} loads as {content.rows} rows with other content than the "
                    f"{table['rows']} that were exported; nothing was changed"
                )
        con.execute("BEGIN TRANSACTION")
        migrations.migrate(con, now_ms)
        con.execute("COMMIT")
        con.execute("CHECKPOINT")


def _holds_data(path: Path) -> bool:
    with connected(path) as con:
        present = schema.columns(con)
        names = [name for name in present if name != "schema_version"]
        return any(con.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() for name in names)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
