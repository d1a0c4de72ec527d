"""Small durable tables that must outlive the warehouse: a SQLite file, or Postgres, through SQLAlchemy Core.

Knows nothing of what the rows mean. One write transaction at a time: ``BEGIN IMMEDIATE`` on the file, an advisory lock
in Postgres; committed at its end, rolled back on any exception.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

T = TypeVar("T")


def postgres_url(url: str) -> sa.URL:
    """Return the URL of a Postgres with the driver that is installed, however its scheme is spelt.

    Raises
    ------
    sqlalchemy.exc.ArgumentError
        If it is not a URL.
    """
    parsed = sa.make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg2")
    return parsed


class SqlStore:
    """One database.

    Parameters
    ----------
    path
        The SQLite file (WAL, ``synchronous=FULL``).
    url
        SQLAlchemy URL of Postgres; None for the file.
    timeout_s
        Longest wait for a lock of the database, in seconds.
    metadata
        The tables, created by the first write.
    refused
        Makes the error of a refusal, from where the store is (for people, without secrets) and the cause.
    """

    def __init__(
        self,
        path: Path,
        url: str | None,
        timeout_s: float,
        metadata: sa.MetaData,
        refused: Callable[[str, str], Exception],
    ) -> None:
        self._path = path
        self._postgres = url is not None
        self._url = postgres_url(url) if url is not None else sa.URL.create("sqlite", database=str(path))
        self._timeout_s = timeout_s
        self._metadata = metadata
        self._refused = refused
        self._tables: set[str] = set()

    @property
    def identity(self) -> str:
        """A name for the database that holds no secret: ``sqlite``, or a hash of host, port and database."""
        if not self._postgres:
            return "sqlite"
        place = f"{self._url.host}:{self._url.port}/{self._url.database}"
        return f"postgres-{hashlib.sha256(place.encode()).hexdigest()[:12]}"

    @property
    def shared(self) -> bool:
        """Whether other machines may write here too."""
        return self._postgres

    @contextmanager
    def transaction(self, lock: str) -> Iterator[Connection]:
        """Open the one write transaction that there can be under the name ``lock``.

        Raises
        ------
        Exception
            What ``refused`` makes, if the database cannot be opened or refuses.
        """
        with self._connected(write=True) as connection:
            if self._postgres:
                key = int.from_bytes(hashlib.sha256(lock.encode()).digest()[:8], "big") >> 1
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
            self._metadata.create_all(connection)
            yield connection

    def reading(self, table: sa.Table, query: Callable[[Connection], T], nothing: T) -> T:
        """Return what ``query`` finds at one moment, ``nothing`` where there is no store or no ``table`` yet.

        Raises
        ------
        Exception
            What ``refused`` makes, if the database cannot be read.
        """
        if not self._postgres and not self._path.exists():
            self._tables.clear()
            return nothing
        with self._connected(write=False) as connection:
            # a table that was made once is there for good
            if table.name not in self._tables:
                if not sa.inspect(connection).has_table(table.name):
                    return nothing
                self._tables.add(table.name)
            return query(connection)

    @contextmanager
    def _connected(self, *, write: bool) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                if self._postgres:
                    level = "READ COMMITTED" if write else "REPEATABLE READ"
                    connection = connection.execution_options(isolation_level=level)
                else:
                    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
                yield connection
                connection.commit()
        except SQLAlchemyError as error:
            # the driver's first line only: the rest of the message repeats the statement with its values
            cause = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise self._refused("Postgres" if self._postgres else str(self._path), cause) from error

    @cached_property
    def _engine(self) -> Engine:
        # kept for the statements that it has compiled; it holds no connection, so it may be carried over a fork
        if self._postgres:
            options = {"connect_timeout": max(1, int(self._timeout_s))}
            return sa.create_engine(self._url, poolclass=NullPool, connect_args=options)
        engine = sa.create_engine(self._url, poolclass=NullPool, connect_args={"timeout": self._timeout_s})
        sa.event.listen(engine, "connect", lambda connection, _record: make_durable(connection, self._timeout_s))
        return engine


def make_durable(connection: sqlite3.Connection, timeout_s: float) -> None:
    """Give a connection a log and a commit that survives the loss of power.

    Raises
    ------
    sqlite3.OperationalError
        If the file is locked for longer than ``timeout_s``, in seconds.
    """
    # SQLAlchemy begins when it is told to, not when the driver thinks that a statement writes
    connection.isolation_level = None
    # SQLite does not wait for another process that makes the same new file into one with a log: it refuses at once
    end = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= end:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous=FULL")
