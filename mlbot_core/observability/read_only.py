"""Connections for observers: to the file or the Postgres of others, unable to write and quick to give up."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from mlbot_core.validation.sqlstore import postgres_url

TIMEOUT_S: Final = 2.0


def read_only_engine(path: Path, url: str | None) -> sa.Engine:
    """Return an engine whose connections cannot write; it holds none open and needs no disposal.

    Parameters
    ----------
    path
        The SQLite file, read where there is no ``url``; it need not exist before the first connection.
    url
        SQLAlchemy URL of Postgres, or None.

    Raises
    ------
    sqlalchemy.exc.ArgumentError
        If it is not a URL.
    """
    if url is not None:
        seconds = max(1, int(TIMEOUT_S))
        options = f"-c statement_timeout={1000 * seconds} -c default_transaction_read_only=on"
        return sa.create_engine(
            postgres_url(url), poolclass=NullPool, connect_args={"connect_timeout": seconds, "options": options}
        )
    place = f"file:{quote(str(path))}?mode=ro"

    def connect() -> sqlite3.Connection:
        # transactions are begun by whoever wants one
        return sqlite3.connect(place, uri=True, timeout=TIMEOUT_S, isolation_level=None)

    return sa.create_engine("sqlite://", creator=connect, poolclass=NullPool)
