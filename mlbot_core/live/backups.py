"""Daily copies of what cannot be made again: the store, the books of orders, trials and models, the models themselves.

A backup is a folder named by its day. It appears whole or not at all, every copy in it was opened and checked before it
counts, and the newest ones are kept. Keys are not in it: a backup may be carried away. Books that lie in Postgres are
not in it either; that database has its own tools, and the result says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mlbot_core.clock import Clock, format_utc
from mlbot_core.config import Settings
from mlbot_core.errors import MlbotError, UsageError
from mlbot_core.execution.ledger_store import FILE_NAME as EXECUTION
from mlbot_core.models.registry import FILE_NAME as REGISTRY
from mlbot_core.validation.trials import FILE_NAME as TRIALS
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.backup import export_store
from mlbot_core.warehouse.copying import flush

KEPT: Final = 7
BOOKS: Final = (EXECUTION, TRIALS, REGISTRY)
# what makes a book provable: the heads of its chain lie beside it
_HEADS: Final = ("trials-heads", "registry-heads")
_VERSION: Final = re.compile(r"[0-9a-f]{64}")


class BackupError(MlbotError):
    """A backup could not be made or is not what it should be."""


@dataclass(frozen=True)
class BackedUp:
    """What a backup holds.

    Parameters
    ----------
    folder
        Named by the UTC day.
    rows
        Of the store, all tables.
    books
        Rows of each SQLite book by file name.
    models
        Folders of model artefacts, each stored once over all backups (as links where the disk allows it).
    bytes
        Of the folder, links counted in full.
    elsewhere
        What was left out and why.
    removed
        Older backups that were removed.
    """

    folder: Path
    rows: int
    books: Mapping[str, int]
    models: int
    bytes: int
    elsewhere: tuple[str, ...]
    removed: tuple[str, ...]


def back_up(settings: Settings, clock: Clock, environ: Mapping[str, str] | None = None, kept: int = KEPT) -> BackedUp:
    """Make the backup of today; one that exists already is replaced by a newer one.

    Raises
    ------
    UsageError
        If fewer than one backup is to be kept.
    BackupError
        If a copy does not pass its check; nothing is removed then.
    """
    if kept < 1:
        raise UsageError(f"kept is {kept}; at least the newest backup has to be kept")
    env = os.environ if environ is None else environ
    root = settings.home / "backups"
    folder = root / format_utc(clock.now_ms())[:10]
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    elsewhere: list[str] = []
    rows = 0
    if settings.warehouse_path.exists():
        rows = export_store(Warehouse(settings.warehouse_path, clock), partial / "warehouse").rows
    else:
        elsewhere.append("the store: there is none yet")
    books = {}
    for name in BOOKS:
        if (settings.home / name).exists():
            books[name] = copy_book(settings.home / name, partial / name)
    if env.get("MLBOT_PG_URL"):
        elsewhere.append("books in Postgres (MLBOT_PG_URL): back them up with pg_dump")
    for name in _HEADS:
        if (settings.home / name).exists():
            shutil.copytree(settings.home / name, partial / name)
    models = _link_models(settings.models_dir, partial / "models")
    summary = {"made_at": format_utc(clock.now_ms()), "rows": rows, "books": books, "models": models}
    (partial / "backup.json").write_text(json.dumps(summary, indent=1, sort_keys=True), encoding="utf-8")
    flush(partial / "backup.json")
    _swap(partial, folder)
    removed = _remove_old(root, kept)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return BackedUp(folder, rows, books, models, size, tuple(elsewhere), removed)


def copy_book(source: Path, target: Path) -> int:
    """Copy a SQLite file while others write to it; return its number of rows.

    Raises
    ------
    BackupError
        If the copy is damaged.
    """
    try:
        with (
            contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=60)) as read,
            contextlib.closing(sqlite3.connect(target)) as made,
        ):
            read.backup(made)
            found = made.execute("PRAGMA integrity_check").fetchone()[0]
            if found == "ok":
                tables = [row[0] for row in made.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
                return sum(int(made.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]) for table in tables)
    except sqlite3.DatabaseError as error:
        raise BackupError(f"{source} cannot be copied ({error}); check the disk, and the book itself") from error
    raise BackupError(f"the copy of {source} is damaged ({found}); check the disk, and the book itself")


def _link_models(source: Path, target: Path) -> int:
    """Copy model folders as hard links: artefacts never change once they are made."""
    if not source.exists():
        return 0
    target.mkdir()
    count = 0
    # a folder that is being made has another name until it is whole, and folds of unfinished trainings are no models
    for folder in sorted(path for path in source.iterdir() if _VERSION.fullmatch(path.name)):
        shutil.copytree(folder, target / folder.name, copy_function=_link)
        count += 1
    return count


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _swap(partial: Path, folder: Path) -> None:
    if folder.exists():
        old = folder.with_name(f"{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)
    flush(folder.parent)


def _remove_old(root: Path, kept: int) -> tuple[str, ...]:
    made = sorted(path for path in root.iterdir() if (path / "backup.json").exists() and len(path.name) == 10)
    gone = made[:-kept]
    for path in gone:
        shutil.rmtree(path)
    return tuple(path.name for path in gone)
