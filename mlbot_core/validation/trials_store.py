"""Where the trial ledger's rows lie: SQLite or Postgres through SQLAlchemy Core. Knows nothing of what rows mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlbot_core.errors import UsageError
from mlbot_core.validation.sqlstore import SqlStore
from mlbot_core.validation.trials_chain import GENESIS, DailyReturns, Head, LedgerError, LedgerTamperedError, TrialRow

_METADATA: Final = sa.MetaData()

_TRIALS: Final = sa.Table(
    "trials",
    _METADATA,
    sa.Column("namespace", sa.String(16), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("trial_id", sa.String(64), nullable=False),
    sa.Column("data_version", sa.String(128), nullable=False),
    sa.Column("series_id", sa.String(64), nullable=False),
    sa.Column("recorded_at_ms", sa.BigInteger, nullable=False),
    sa.Column("run_id", sa.String(128), nullable=False),
    sa.Column("configuration", sa.Text, nullable=False),
    sa.Column("info", sa.Text, nullable=False),
    sa.Column("first_day_ms", sa.BigInteger, nullable=False),
    sa.Column("returns", sa.LargeBinary, nullable=False),
    sa.Column("prev_hash", sa.String(64), nullable=False),
    sa.Column("row_hash", sa.String(64), nullable=False),
    # a chain that forks would need two rows after the same one
    sa.UniqueConstraint("namespace", "prev_hash"),
    sa.UniqueConstraint("namespace", "trial_id", "data_version", "series_id"),
)

_HEADS: Final = sa.Table(
    "trial_heads",
    _METADATA,
    sa.Column("namespace", sa.String(16), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)

_SCALARS: Final = tuple(column.name for column in _TRIALS.columns if column.name not in ("first_day_ms", "returns"))


class Writing:
    """One open write transaction on a namespace."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace

    def head(self) -> Head:
        """Return the head as the store keeps it."""
        return _head(self._connection, self._namespace)

    def hash_of(self, seq: int) -> str:
        """Return the hash of a row, of the empty chain for 0, and nothing for a row that is not there."""
        if seq == 0:
            return GENESIS
        query = sa.select(_TRIALS.c.row_hash).where(_TRIALS.c.namespace == self._namespace, _TRIALS.c.seq == seq)
        return str(self._connection.execute(query).scalar() or "")

    def find(self, trial_id: str, data_version: str, series_id: str) -> TrialRow | None:
        """Return the row of an evaluation, None if there is none."""
        query = sa.select(_TRIALS).where(
            _TRIALS.c.namespace == self._namespace,
            _TRIALS.c.trial_id == trial_id,
            _TRIALS.c.data_version == data_version,
            _TRIALS.c.series_id == series_id,
        )
        found = self._connection.execute(query).mappings().first()
        return None if found is None else _row(found)

    def add(self, row: TrialRow) -> None:
        """Insert a row and move the head to it."""
        values = {column.name: getattr(row, column.name, None) for column in _TRIALS.columns}
        values |= {"first_day_ms": row.returns.first_day_ms, "returns": row.returns.to_bytes()}
        self._connection.execute(sa.insert(_TRIALS).values(values))
        changed = self._connection.execute(
            sa.update(_HEADS)
            .where(_HEADS.c.namespace == row.namespace, _HEADS.c.count == row.seq - 1, _HEADS.c.hash == row.prev_hash)
            .values(count=row.seq, hash=row.row_hash)
        )
        if changed.rowcount == 0:
            if row.seq != 1:
                raise LedgerError(f"row {row.seq} of the {row.namespace} ledger does not follow the head of the store")
            self._connection.execute(sa.insert(_HEADS).values(namespace=row.namespace, count=1, hash=row.row_hash))


class TrialStore:
    """Rows and heads in one database.

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
    def transaction(self, namespace: str) -> Iterator[Writing]:
        """Open the one write transaction that there can be: committed at the end, rolled back on any exception.

        Raises
        ------
        LedgerError
            If the database cannot be opened or refuses.
        """
        with self._store.transaction(f"mlbot trials {namespace}") as connection:
            yield Writing(connection, namespace)

    def read(self, namespace: str) -> tuple[list[TrialRow], Head]:
        """Return the rows in the order of their numbers and the head, from one moment.

        Raises
        ------
        LedgerError
            If the database cannot be read.
        """

        def everything(connection: Connection) -> tuple[list[TrialRow], Head]:
            query = sa.select(_TRIALS).where(_TRIALS.c.namespace == namespace).order_by(_TRIALS.c.seq)
            rows = [_row(found) for found in connection.execute(query).mappings()]
            return rows, _head(connection, namespace)

        nothing: tuple[list[TrialRow], Head] = ([], Head(namespace, 0, GENESIS))
        return self._store.reading(_HEADS, everything, nothing)

    def read_head(self, namespace: str) -> Head:
        """Return the head as the store keeps it; the empty one where there is no store.

        Raises
        ------
        LedgerError
            If the database cannot be read.
        """
        return self._store.reading(_HEADS, lambda connection: _head(connection, namespace), Head(namespace, 0, GENESIS))


def _refused(place: str, cause: str) -> LedgerError:
    return LedgerError(
        f"the trial ledger ({place}) refused: {cause}; if it is damaged "
        "restore it from a backup, never delete it: it is the only count of what was tried"
    )


def _head(connection: Connection, namespace: str) -> Head:
    query = sa.select(_HEADS.c.count, _HEADS.c.hash).where(_HEADS.c.namespace == namespace)
    found = connection.execute(query).first()
    return Head(namespace, 0, GENESIS) if found is None else Head(namespace, int(found[0]), str(found[1]))


def _row(found: Any) -> TrialRow:
    values = {name: found[name] for name in _SCALARS}
    try:
        returns = DailyReturns(int(found["first_day_ms"]), np.frombuffer(bytes(found["returns"]), dtype="<f8"))
    except (ValueError, UsageError) as error:
        raise LedgerTamperedError(
            f"{found['namespace']}: row {found['seq']} was changed: its returns cannot be read ({error})"
        ) from error
    return TrialRow(**values, returns=returns)
