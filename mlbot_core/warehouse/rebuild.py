"""Another file in the place of the store: made beside it, verified, and swapped in one step.

Whatever is killed at any moment, the store's path holds the old file or the new one, whole. The old file is kept under
another name until the new one has been opened in its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mlbot_core.errors import WarehouseError
from mlbot_core.warehouse.content import Content, table_content
from mlbot_core.warehouse.copying import flush, publish, remove, scratch, signature
from mlbot_core.warehouse.schema import columns
from mlbot_core.warehouse.store import Warehouse, connected

_TRIES = 3


def replace_store(store: Warehouse, purpose: str, make: Callable[[Path | None, Path], None]) -> None:
    """Make a new file from a copy of the store and put it in its place, if the store has not changed meanwhile.

    Parameters
    ----------
    purpose
        Plain word that names the files beside the store.
    make
        Given the copy (None where there is no store yet) and the path to fill. It works without any lock.

    Raises
    ------
    WarehouseError
        If others wrote to the store during each of three tries.
    """
    for _ in range(_TRIES):
        with scratch(store.path, f"{purpose}-copy") as copy, scratch(store.path, f"{purpose}-new") as new:
            with store.closed():
                there = store.path.exists()
            if there:
                before = store.copy_to(copy).signature
            make(copy if there else None, new)
            with store.closed():
                if there != store.path.exists() or (there and signature(store.path) != before):
                    continue
                kept = store.path.with_name(f"{store.path.name}.before-{purpose}")
                kept.unlink(missing_ok=True)
                if there:
                    os.link(store.path, kept)
                    flush(store.path.parent)
                publish(new, store.path)
            with store.read():
                pass  # it opens, has this program's version and all tables: the old file is not needed any more
            remove(kept)
            return
    raise WarehouseError(
        f"{store.path} was written to while its successor was being made, {_TRIES} times in a row; "
        "try again when nothing is being pulled or trained"
    )


def contents(path: Path) -> dict[str, Content]:
    """Return what every table of a file holds that nobody else writes to."""
    with connected(path) as con:
        return {table: table_content(con, table) for table in columns(con)}
