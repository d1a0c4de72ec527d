"""Facts that were read from the book stay read: only what was added since is asked for.

It holds because rows are only ever added, and because one writer at a time takes numbers and commits (``BEGIN
IMMEDIATE``, or the advisory lock): a row that appears later has a higher number than all that were seen before. The
newest known row is asked for again each time; where it is not the same any more, the book was exchanged for another one
(a backup, a new home) and everything is read anew.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from mlbot_core.execution.ledger_folds import PositionView, fold_key, fold_positions
from mlbot_core.execution.ledger_questions import rows
from mlbot_core.execution.types import Execution

T = TypeVar("T")
Row = dict[str, Any]


class Mirror(Generic[T]):
    """The facts of a table in the order of their numbers; safe for several threads.

    Parameters
    ----------
    table
        Whose rows are only added.
    name
        The column that names a fact.
    make
        From a row to what is kept of it.
    equal
        Which rows: values by column.
    """

    def __init__(self, table: sa.Table, name: str, make: Callable[[Row], T], **equal: Any) -> None:
        self.table = table
        self._name = name
        self._make = make
        self._equal = equal
        self._question = rows(table, *equal, since="seq")
        self._lock = threading.Lock()
        self._newest: tuple[int, str] | None = None
        self._numbers: list[int] = []
        self._facts: list[T] = []

    def after(self, number: int, ask: Callable[..., list[Row]]) -> list[tuple[int, T]]:
        """Return facts numbered above ``number``, with their numbers.

        Parameters
        ----------
        ask
            From a question, and what it is asked with, to rows in the order of their numbers.
        """
        with self._lock:
            found = self._ask(ask)
            if self._newest is not None:
                if not found or (int(found[0]["seq"]), found[0][self._name]) != self._newest:
                    self._newest, self._numbers, self._facts = None, [], []
                    found = self._ask(ask)
                else:
                    found = found[1:]
            # all of them are made before any is kept: one that cannot be read is found again the next time
            made = [self._make(row) for row in found]
            self._facts += made
            self._numbers += [int(row["seq"]) for row in found]
            if found:
                self._newest = (int(found[-1]["seq"]), found[-1][self._name])
            begin = bisect_right(self._numbers, number)
            return list(zip(self._numbers[begin:], self._facts[begin:], strict=True))

    def _ask(self, ask: Callable[..., list[Row]]) -> list[Row]:
        since = 0 if self._newest is None else self._newest[0]
        return ask(self._question, **self._equal, seq=since)


class PositionFold:
    """The position that executions make, gone on with where only later ones were added."""

    def __init__(self, symbol: str) -> None:
        self._symbol = symbol
        self._taken: tuple[Execution, ...] = ()
        self._view = PositionView(symbol)

    def of(self, fills: list[Execution]) -> PositionView:
        """Return the position of all of ``fills``, which are in the order in which they were written."""
        known = len(self._taken)
        new = fills[known:]
        goes_on = known <= len(fills) and all(mine is theirs for mine, theirs in zip(self._taken, fills, strict=False))
        # the exchange's order counts: one that was told late belongs before others
        if not goes_on or (self._taken and new and min(map(fold_key, new)) < max(map(fold_key, self._taken))):
            view = fold_positions(fills).get(self._symbol, PositionView(self._symbol))
        else:
            view = fold_positions(new, {self._symbol: self._view}).get(self._symbol, self._view)
        # one assignment each: another thread at worst folds everything anew
        self._taken, self._view = tuple(fills), view
        return view
