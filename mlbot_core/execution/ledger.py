"""The book of execution: decisions, intents, orders, fills, wallet, risk; the truth about what we did.

Facts are only added, each under a name of its own; what is said twice is one row, and what contradicts is refused with
both. Everything else (the state of an order, an intent, a position) follows from them, see
:mod:`mlbot_core.execution.ledger_folds`. It is SQLite in WAL mode with ``synchronous=FULL``, so a call that returned
survives a loss of power, or Postgres where ``MLBOT_PG_URL`` is set. The order of a trade:

1. ``record_decision(decision, plan)``: both or neither; a bar is decided once
2. ``begin_attempt(intent_id, request)``, then send, then ``note_answer(...)``
3. ``observe_order``, ``record_execution`` whatever the exchange tells
4. no answer: ask; ``resend`` under the same id; a new attempt only after a proof
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mlbot_core.clock import Clock
from mlbot_core.errors import UsageError
from mlbot_core.execution import ledger_questions as questions
from mlbot_core.execution.ledger_book import BookLedger
from mlbot_core.execution.ledger_rows import Row
from mlbot_core.execution.ledger_schema import TABLES


class ExecutionLedger(BookLedger):
    """The whole book of one account; parameters as of :class:`mlbot_core.execution.ledger_store.LedgerStore`."""

    def rows(self, table: str, after: int = 0, limit: int = 10_000) -> list[Row]:
        """Return rows of a table numbered above ``after``, in their order: for copies, reports and explanations.

        Parameters
        ----------
        table
            A key of :data:`mlbot_core.execution.ledger_schema.TABLES`.
        limit
            At most so many; ask again after the last ``seq``.

        Raises
        ------
        UsageError
            If there is no such table.
        """
        if table not in TABLES:
            raise UsageError(f"the book has no table {table!r}; choose one of {', '.join(TABLES)}")
        source = TABLES[table]
        nothing: list[Row] = []
        question = questions.rows(source, since="seq").limit(limit)
        return self._reading(source, lambda connection: self._ask(connection, question, seq=after + 1), nothing)


def open_ledger(
    home: Path, clock: Clock, account: str, environ: Mapping[str, str] | None = None, *, timeout_s: float = 10.0
) -> ExecutionLedger:
    """Return the book of an account: in Postgres where ``MLBOT_PG_URL`` is set, else in a file of the home."""
    env = os.environ if environ is None else environ
    return ExecutionLedger(home, clock, account, url=env.get("MLBOT_PG_URL") or None, timeout_s=timeout_s)
