"""The one way to open the store: lock, attach, work briefly, detach, unlock.

DuckDB admits one writing process; a second open fails at once. Callers compute first and come here only to copy in or
out, so that a write holds the store for milliseconds. Each thread keeps one in-memory DuckDB instance and attaches the
file to it for the length of a visit: starting an instance costs several times what attaching a file costs, and that
time would be spent while holding the lock.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from mlbot_core.clock import Clock
from mlbot_core.errors import WarehouseError
from mlbot_core.warehouse import migrations, schema
from mlbot_core.warehouse.copying import Copied, copy_store, publish, scratch, wal_of
from mlbot_core.warehouse.locks import FileLock

_LOG = logging.getLogger(__name__)
_ALIAS = "warehouse"


class Warehouse:
    """A DuckDB file shared by many processes and threads.

    Parameters
    ----------
    path
        The file; it and its folder are created on first use.
    clock
        Stamps what is written.
    timeout_s
        Longest wait for other processes, in seconds.
    threads
        Cores that one query may use.
    """

    def __init__(self, path: Path, clock: Clock, *, timeout_s: float = 60.0, threads: int = 1) -> None:
        self.path = path
        self.clock = clock
        self._threads = threads
        self._lock = FileLock(path, timeout_s)
        self._ready = False
        self._guard = threading.Lock()
        self._local = threading.local()

    @contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open for reading together with others; copy what you need to Arrow and leave.

        Raises
        ------
        LockTimeoutError
            If a writer held the store longer than the bounded wait.
        WarehouseError
            If the file cannot be opened.
        """
        self._prepare()
        with self._lock.shared(), self._attached(read_only=True) as con:
            yield con

    @contextmanager
    def write(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open alone for ONE transaction: committed at the end, rolled back on any exception.

        Raises
        ------
        LockTimeoutError
            If others held the store longer than the bounded wait.
        WarehouseError
            If the file cannot be opened.
        """
        self._prepare()
        with self._lock.exclusive(), self._attached(read_only=False) as con, _transaction(con):
            yield con

    def close(self) -> None:
        """Let go of this thread's DuckDB instance; the next visit starts another."""
        con = getattr(self._local, "con", None)
        self._local.con = None
        if con is not None:
            con.close()

    def copy_to(self, target: Path) -> Copied:
        """Copy the file, whole, while others go on writing.

        Raises
        ------
        WarehouseError
            If there is no store yet, or ``target`` exists.
        """
        return copy_store(self.path, self._lock, target)

    @contextmanager
    def copied(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a whole copy for long reading, which holds nobody up; the copy is removed afterwards.

        Raises
        ------
        WarehouseError
            If the file cannot be opened.
        """
        self._prepare()
        with scratch(self.path, "reading") as copy:
            self.copy_to(copy)
            with connected(copy, self._threads) as con:
                yield con

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Hold the store alone with its file closed and its write-ahead log folded in, to put another in its place.

        Raises
        ------
        LockTimeoutError
            If others held the store longer than the bounded wait.
        WarehouseError
            If the file cannot be opened.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.exclusive():
            if self.path.exists() and wal_of(self.path).exists():
                with self._attached(read_only=False) as con:
                    con.execute(f"CHECKPOINT {_ALIAS}")
            self._ready = False
            yield

    def _prepare(self) -> None:
        """Create the file and its tables, or bring an older file forward, once a process."""
        with self._guard:
            if self._ready:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._state() != "current":
                with self._lock.exclusive():
                    self._bring_forward()
            self._ready = True

    def _state(self) -> schema.State:
        """Return what is there; looking is cheap and shared, creating is neither."""
        with self._lock.shared():
            if not self.path.exists():
                return "empty"
            with self._attached(read_only=True) as con:
                return schema.state(con)

    def _bring_forward(self) -> None:
        """Create or migrate alone; the file of an older version is kept beside the new one."""
        found = None
        if self.path.exists():
            with self._attached(read_only=False) as con:
                found = schema.version(con) if schema.state(con) == "older" else None
                con.execute(f"CHECKPOINT {_ALIAS}")
        if found is not None:
            kept = migrations.backup_path(self.path, found)
            with scratch(self.path, "migrate") as made:
                shutil.copyfile(self.path, made)
                publish(made, kept)
        with self._attached(read_only=False) as con, _transaction(con):
            now_ms = self.clock.now_ms()
            steps = [] if found is None else migrations.migrate(con, now_ms)
            schema.create(con, now_ms)
        for step in steps:
            _LOG.warning("%s migrated from schema version %s; the old file is kept as %s", self.path, step, kept)

    def _instance(self) -> duckdb.DuckDBPyConnection:
        con: duckdb.DuckDBPyConnection | None = getattr(self._local, "con", None)
        if con is None:
            con = duckdb.connect(
                ":memory:",
                config={"threads": self._threads, "temp_directory": str(self.path.parent / "duckdb-spill")},
            )
            self._local.con = con
        return con

    @contextmanager
    def _attached(self, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        con = self._instance()
        mode = " (READ_ONLY)" if read_only else ""
        quoted = str(self.path).replace("'", "''")
        try:
            con.execute(f"ATTACH '{quoted}' AS {_ALIAS}{mode}")
        except duckdb.Error as error:
            self.close()
            first = str(error).splitlines()[0]
            raise WarehouseError(
                f"cannot open {self.path}: {first}; if another program holds the file close it, "
                "if it is damaged restore it from a backup or move it away and backfill again"
            ) from error
        try:
            con.execute(f"USE {_ALIAS}")
            yield con
        finally:
            try:
                con.execute("USE memory")
                con.execute(f"DETACH {_ALIAS}")
            except duckdb.Error:
                # a cursor somebody kept would pin the file open after the lock is gone: end the whole instance
                self.close()


@contextmanager
def connected(path: Path, threads: int = 1, *, read_only: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a file that nobody else knows of (a copy, a store in the making) in an instance of its own.

    Raises
    ------
    WarehouseError
        If the file cannot be opened.
    """
    quoted = str(path).replace("'", "''")
    spill = str(path.parent / "duckdb-spill")
    con = duckdb.connect(":memory:", config={"threads": threads, "temp_directory": spill})
    try:
        try:
            con.execute(f"ATTACH '{quoted}' AS {_ALIAS}{' (READ_ONLY)' if read_only else ''}")
        except duckdb.Error as error:
            raise WarehouseError(f"cannot open {path}: {str(error).splitlines()[0]}") from error
        con.execute(f"USE {_ALIAS}")
        yield con
    finally:
        con.close()


@contextmanager
def _transaction(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    con.execute("BEGIN TRANSACTION")
    try:
        yield
    except BaseException:
        con.execute("ROLLBACK")
        raise
    con.execute("COMMIT")
