"""Stores of earlier versions, brought forward step by step.

Each step changes what is stored from one version to the next and knows nothing of today's catalogue: it must do the
same years from now. All steps run in one transaction, after the file was copied, so that a failure or a kill leaves
the old store; a store of a newer version is refused, never guessed at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb

from mlbot_core.errors import WarehouseError
from mlbot_core.warehouse import schema


@dataclass(frozen=True)
class Migration:
    """One step forward.

    Parameters
    ----------
    to_version
        Version the store has afterwards; it had the one before.
    what
        For people.
    apply
        Changes the tables inside the caller's transaction.
    """

    to_version: int
    what: str
    apply: Callable[[duckdb.DuckDBPyConnection], None]


def _to_2(con: duckdb.DuckDBPyConnection) -> None:
    """Name the traded amount by coin, whatever the coin; the tables of snapshots and watches are new."""
    if "volume_btc" in schema.columns(con).get("price", []):
        con.execute("ALTER TABLE price RENAME COLUMN volume_btc TO volume_coin")


MIGRATIONS = (Migration(2, "price.volume_btc is volume_coin; snapshots and watches are stored", _to_2),)


def migrate(con: duckdb.DuckDBPyConnection, now_ms: int) -> list[str]:
    """Bring a store to the newest version; return what was done. Runs inside the caller's transaction.

    Raises
    ------
    WarehouseError
        If there is no step from the stored version, or the store is of a newer one.
    """
    found = schema.version(con)
    done = []
    for step in MIGRATIONS:
        if found is None or step.to_version <= found:
            continue
        if step.to_version != found + 1:
            raise WarehouseError(f"there is no migration from schema version {found}; start with an empty MLBOT_HOME")
        step.apply(con)
        con.execute("INSERT INTO schema_version VALUES (?, ?)", [step.to_version, now_ms])
        done.append(f"{found} to {step.to_version}: {step.what}")
        found = step.to_version
    schema.create(con, now_ms)
    return done


def backup_path(path: Path, version: int) -> Path:
    """Return where the file of an older version is kept."""
    return path.with_name(f"{path.name}.v{version}-backup")
