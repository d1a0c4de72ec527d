"""Copies of the store's file that are whole, made without holding up writers for longer than a look at its header.

DuckDB changes a database file in place, so a copy made beside a writer could be torn. A copy is therefore made without
the lock and believed only if the store has not changed meanwhile; its header counts every checkpoint. Where writers
never pause for long enough, the last try copies under the shared lock.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlbot_core.errors import WarehouseError
from mlbot_core.warehouse.locks import FileLock

# The three header pages of a DuckDB file; the two database headers hold a counter that each checkpoint raises.
_HEADER_BYTES = 3 * 4096
_FREE_TRIES = 3


@dataclass(frozen=True)
class Copied:
    """How a copy was made.

    Parameters
    ----------
    size
        Bytes.
    held_s
        Longest time for which writers were kept out, in seconds.
    tries
        Copies made until one was whole.
    signature
        Of the store that was copied; see :func:`signature`.
    """

    size: int
    held_s: float
    tries: int
    signature: tuple[bytes, int, int]


def wal_of(path: Path) -> Path:
    """Return the write-ahead log that a crash may have left beside a database file."""
    return path.with_name(path.name + ".wal")


def signature(path: Path) -> tuple[bytes, int, int]:
    """Return what differs after every write: header pages, size, size of the write-ahead log. Needs a lock."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    wal = wal_of(path)
    return header, path.stat().st_size, wal.stat().st_size if wal.exists() else 0


def copy_store(path: Path, lock: FileLock, target: Path) -> Copied:
    """Copy a database file (and the log a crash left) to ``target``, whole and flushed to disk.

    Raises
    ------
    WarehouseError
        If there is no store yet, or ``target`` exists.
    LockTimeoutError
        If a writer held the store longer than the bounded wait.
    """
    if not path.exists():
        raise WarehouseError(f"there is no store at {path} yet; fill it first (mlbot backfill)")
    if target.exists():
        raise WarehouseError(f"{target} exists already; remove it or choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    longest = 0.0
    for attempt in range(1, _FREE_TRIES + 1):
        with lock.shared():
            before = signature(path)
        _copy(path, target)
        with lock.shared():
            started = time.monotonic()
            same = signature(path) == before
            longest = max(longest, time.monotonic() - started)
        if same:
            return Copied(before[1], longest, attempt, before)
    with lock.shared():
        started = time.monotonic()
        before = signature(path)
        _copy(path, target)
        longest = max(longest, time.monotonic() - started)
    return Copied(before[1], longest, _FREE_TRIES + 1, before)


def _copy(path: Path, target: Path) -> None:
    wal = wal_of(path)
    wal_of(target).unlink(missing_ok=True)
    shutil.copyfile(path, target)
    try:
        shutil.copyfile(wal, wal_of(target))
        flush(wal_of(target))
    except FileNotFoundError:
        wal_of(target).unlink(missing_ok=True)
    flush(target)


def flush(path: Path) -> None:
    """Force a file or folder to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(made: Path, path: Path) -> None:
    """Put a finished file in the place of another in one step; a kill leaves the one or the other."""
    flush(made)
    made.replace(path)
    flush(path.parent)


def remove(path: Path) -> None:
    """Remove a database file and its write-ahead log where they exist."""
    path.unlink(missing_ok=True)
    wal_of(path).unlink(missing_ok=True)


@contextmanager
def scratch(path: Path, purpose: str) -> Iterator[Path]:
    """Yield a path beside ``path`` that is removed afterwards, and what a killed process left under the name before."""
    made = path.with_name(f"{path.name}.{purpose}-{os.getpid()}")
    for old in path.parent.glob(f"{path.name}.{purpose}-*"):
        pid = old.name.rpartition("-")[2].removesuffix(".wal")
        if pid == str(os.getpid()) or not (pid.isdigit() and _alive(int(pid))):
            old.unlink(missing_ok=True)
    try:
        yield made
    finally:
        remove(made)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
