"""Where the registry's events lie: SQLite or Postgres. Knows nothing of what they mean.

The store itself refuses two events after the same predecessor, so a chain cannot fork whoever writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlbot_core.models.registry_events import Event, RegistryError
from mlbot_core.validation.sqlstore import SqlStore

_METADATA: Final = sa.MetaData()

_EVENTS: Final = sa.Table(
    "registry_events",
    _METADATA,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("key_id", sa.String(12), nullable=False),
    sa.Column("prev_hash", sa.String(64), nullable=False, unique=True),
    sa.Column("row_hash", sa.String(64), nullable=False),
    sa.Column("signature", sa.String(64), nullable=False),
)


class Appending:
    """One open write transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def events(self) -> list[Event]:
        """Return every event in the order of the numbers."""
        return _events(self._connection)

    def add(self, event: Event) -> None:
        """Insert an event; it counts when the transaction ends."""
        self._connection.execute(sa.insert(_EVENTS).values(asdict(event)))


class RegistryStore:
    """Events in one database.

    Parameters
    ----------
    path
        The SQLite file.
    url
        SQLAlchemy URL of Postgres; None for the file.
    timeout_s
        Longest wait for a lock of the database, in seconds.
    """

    def __init__(self, path: Path, url: str | None, timeout_s: float) -> None:
        self._store = SqlStore(path, url, timeout_s, _METADATA, _refused)

    @property
    def identity(self) -> str:
        """A name for the database that holds no secret."""
        return self._store.identity

    @property
    def shared(self) -> bool:
        """Whether other machines may write here too."""
        return self._store.shared

    @contextmanager
    def transaction(self) -> Iterator[Appending]:
        """Open the one write transaction that there can be: committed at the end, rolled back on any exception.

        Raises
        ------
        RegistryError
            If the database cannot be opened or refuses.
        """
        with self._store.transaction("mlbot registry") as connection:
            yield Appending(connection)

    def events(self) -> list[Event]:
        """Return every event in the order of the numbers, from one moment; none where there is no store.

        Raises
        ------
        RegistryError
            If the database cannot be read.
        """
        nothing: list[Event] = []
        return self._store.reading(_EVENTS, _events, nothing)


def _events(connection: Connection) -> list[Event]:
    query = sa.select(_EVENTS).order_by(_EVENTS.c.seq)
    return [Event(**found) for found in connection.execute(query).mappings()]


def _refused(place: str, cause: str) -> RegistryError:
    return RegistryError(
        f"the model registry ({place}) refused: {cause}; nothing was changed: if it is damaged restore it from a backup"
    )
