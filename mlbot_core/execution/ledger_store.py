"""Where the book of execution lies: ``<home>/execution.sqlite`` or Postgres, and the one way of writing a fact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlbot_core.clock import Clock
from mlbot_core.errors import UsageError
from mlbot_core.execution.ledger_folds import LedgerConflictError
from mlbot_core.execution.ledger_kept import KeptStore
from mlbot_core.execution.ledger_mirror import Mirror
from mlbot_core.execution.ledger_questions import NAMED, Question
from mlbot_core.execution.ledger_schema import METADATA
from mlbot_core.execution.types import ExecutionError
from mlbot_core.validation.sqlstore import SqlStore

T = TypeVar("T")
F = TypeVar("F")
Row = dict[str, Any]

FILE_NAME: Final = "execution.sqlite"
_LOCK: Final = "mlbot execution"
# what the book adds to a fact by itself: no part of whether two facts are the same
_OURS: Final = frozenset(("seq", "account", "recorded_ms", "source", "exchange_seq"))


class LedgerError(ExecutionError):
    """The book could not be opened, read or written."""


class LedgerStore:
    """The book of one account; other accounts may lie in the same database.

    Writers wait for each other, readers for nobody (WAL). Every public call is one short transaction. A store is not
    to be carried over a fork: open it anew there.

    Parameters
    ----------
    home
        The product's folder; the file lies in it.
    clock
        Says when a row was written.
    account
        Whose book, for example ``testnet:1234``.
    url
        SQLAlchemy URL of Postgres; None for the file.
    timeout_s
        Longest wait for other writers, seconds.

    Raises
    ------
    UsageError
        If the account is empty or longer than 64 characters.
    """

    def __init__(
        self, home: Path, clock: Clock, account: str, *, url: str | None = None, timeout_s: float = 10.0
    ) -> None:
        if not account or len(account) > 64:
            raise UsageError(f"account {account!r} must be a name of 1 to 64 characters, for example testnet:1234")
        self.account = account
        self._clock = clock
        self._path = home / FILE_NAME
        self._url = url
        self._making = SqlStore(self._path, url, timeout_s, METADATA, _refused)
        # creating asks for every table, which later writes need not
        self._made = KeptStore(self._path, url, timeout_s, sa.MetaData(), _refused)
        self._exists = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; the store may be used again."""
        self._made.let_go()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        if not self._exists and self._url is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        with (self._made if self._exists else self._making).transaction(_LOCK) as connection:
            yield connection
        self._exists = True

    def _reading(self, table: sa.Table, query: Callable[[Connection], T], nothing: T) -> T:
        return self._made.reading(table, query, nothing)

    def _rows(self, table: sa.Table, question: Question, **asked: Any) -> list[Row]:
        nothing: list[Row] = []
        return self._reading(table, lambda connection: self._ask(connection, question, **asked), nothing)

    def _mirrored(self, mirror: Mirror[F], after: int) -> list[tuple[int, F]]:
        return mirror.after(after, lambda question, **asked: self._rows(mirror.table, question, **asked))

    def _add(self, connection: Connection, table: sa.Table, values: Mapping[str, Any], name: str, what: str) -> bool:
        """Write a fact once; return whether it was new.

        Parameters
        ----------
        name
            The column that names it within the account.
        what
            The same for people.

        Raises
        ------
        LedgerConflictError
            If another fact has that name.
        """
        known = self._ask(connection, NAMED[table.name, name], **{name: values[name]})
        if known:
            found = known[0]
            differing = [key for key in values if key not in _OURS and found[key] != values[key]]
            if differing:
                stored = ", ".join(f"{key} {found[key]!r}" for key in differing)
                told = ", ".join(f"{key} {values[key]!r}" for key in differing)
                raise LedgerConflictError(
                    f"{what} {values[name]} is in the book with {stored} and was now told with {told}; "
                    "nothing was changed: halt, and find out which is true"
                )
            return False
        self._insert(connection, table, values)
        return True

    def _insert(self, connection: Connection, table: sa.Table, values: Mapping[str, Any]) -> None:
        row = {**values, "account": self.account, "recorded_ms": self._clock.now_ms()}
        connection.execute(sa.insert(table), row)

    def _ask(self, connection: Connection, question: Question, **asked: Any) -> list[Row]:
        found = connection.execute(question, {"account": self.account, **asked})
        names = tuple(found.keys())
        return [dict(zip(names, row, strict=True)) for row in found]

    def _value(self, connection: Connection, question: Question, **asked: Any) -> Any:
        return connection.execute(question, {"account": self.account, **asked}).scalar()


def _refused(place: str, cause: str) -> LedgerError:
    return LedgerError(
        f"the book of execution ({place}) refused: {cause}; nothing was sent on it: see that the disk has room and "
        "nobody holds it, and if it is damaged restore it from a backup and reconcile with the exchange"
    )
