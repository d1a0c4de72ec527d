"""A file's connections kept open between transactions: opening one takes longer than most that is asked of it.

It is also what keeps the WAL: when the last connection to a file closes, SQLite moves the whole of it into the file and
removes it, which makes every write three times as long.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.pool import QueuePool

from mlbot_core.validation.sqlstore import SqlStore, make_durable

_KEPT: Final = 2
# Connections of the process that this one was forked from: to close them here would end its locks in SQLite's mind.
_INHERITED: Final[list[Any]] = []


class KeptStore(SqlStore):
    """As its parent, with connections that stay open where it is a file; in Postgres there is nothing to keep.

    A connection is used only by the process that opened it and only while the path names the file that it was opened
    on: after a fork, or when a backup was put in its place, a new one is opened.
    """

    def let_go(self) -> None:
        """Close the connections; the store may be used again."""
        if "_engine" in self.__dict__:
            self._engine.dispose()

    @cached_property
    def _engine(self) -> Engine:
        if self._postgres:
            return super()._engine
        engine = sa.create_engine(
            self._url, poolclass=QueuePool, pool_size=_KEPT, max_overflow=-1,
            connect_args={"timeout": self._timeout_s, "check_same_thread": False},
        )  # fmt: skip
        sa.event.listen(engine, "connect", self._opened)
        sa.event.listen(engine, "checkout", self._lent)
        return engine

    def _opened(self, connection: Any, record: Any) -> None:
        make_durable(connection, self._timeout_s)
        record.info["whose"] = self._whose()

    def _lent(self, connection: Any, record: Any, proxy: Any) -> None:
        opened, now = record.info["whose"], self._whose()
        if opened == now:
            return
        if opened[0] != now[0]:
            _INHERITED.append(connection)
        else:
            connection.close()
        record.dbapi_connection = proxy.dbapi_connection = None
        raise sa.exc.DisconnectionError("the connection is of another process or of another file")

    def _whose(self) -> tuple[int, int, int]:
        """Return the process and the file that the path names now."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return (os.getpid(), 0, 0)
        return (os.getpid(), found.st_dev, found.st_ino)
