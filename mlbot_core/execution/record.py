"""What the book says an account has done: on which days it decided, and when it first traded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from mlbot_core.clock import Clock
from mlbot_core.execution.ledger_schema import DECISIONS, FILLS
from mlbot_core.execution.ledger_states import BAR
from mlbot_core.execution.ledger_store import LedgerStore
from mlbot_core.execution.types import ExecType
from mlbot_core.timeframe import DAY_MS


@dataclass(frozen=True)
class Record:
    """The days (since 1970, UTC) on which an account decided on bars, ascending."""

    account: str
    days: tuple[int, ...]


class RecordBook(LedgerStore):
    """Questions over all accounts of a book; it writes nothing."""

    def records(self, strategy: str, symbol: str, timeframe: str) -> list[Record]:
        """Return the record of every account that decided on bars of a market, by account.

        Parameters
        ----------
        symbol
            As the exchange names it.
        """
        query = (
            sa.select(DECISIONS.c.account, DECISIONS.c.recorded_ms, DECISIONS.c.decided_ms)
            .where(
                DECISIONS.c.strategy == strategy,
                DECISIONS.c.symbol == symbol,
                DECISIONS.c.timeframe == timeframe,
                DECISIONS.c.trigger == BAR,
            )
            .order_by(DECISIONS.c.account)
        )
        nothing: list[Any] = []
        rows = self._reading(DECISIONS, lambda connection: list(connection.execute(query)), nothing)
        days: dict[str, set[int]] = {}
        for account, recorded, decided in rows:
            # a decision that was written on another day than it was made is none of a live record
            if recorded // DAY_MS - decided // DAY_MS in (0, 1):
                days.setdefault(account, set()).add(decided // DAY_MS)
        return [Record(account, tuple(sorted(found))) for account, found in days.items()]

    def first_trade_ms(self) -> int | None:
        """Return when this account traded first, by the exchange's clock, UTC ms; None if it never did."""
        query = sa.select(sa.func.min(FILLS.c.exec_ms)).where(
            FILLS.c.account == self.account, FILLS.c.kind == ExecType.TRADE.value
        )
        return self._reading(FILLS, lambda connection: connection.execute(query).scalar(), None)


def open_record(home: Path, clock: Clock, account: str, environ: Mapping[str, str] | None = None) -> RecordBook:
    """Return the questions over the book of a home, as :func:`mlbot_core.execution.ledger.open_ledger` finds it."""
    env = os.environ if environ is None else environ
    return RecordBook(home, clock, account, url=env.get("MLBOT_PG_URL") or None)
