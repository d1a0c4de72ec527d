"""What the exchange told: orders, executions, the wallet's log. Each is one row, however often it is told."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.engine import Connection

from mlbot_core.execution import ledger_questions as questions
from mlbot_core.execution.ledger_folds import (
    LedgerConflictError,
    PositionView,
    WalletView,
    fold_positions,
    fold_wallet,
    order_state,
)
from mlbot_core.execution.ledger_intents import IntentsLedger
from mlbot_core.execution.ledger_rows import digest_of, execution_of, from_row, to_row
from mlbot_core.execution.ledger_schema import FILLS, ORDERS, WALLET_EVENTS
from mlbot_core.execution.types import Execution, OrderSnapshot, WalletEvent


class FactsLedger(IntentsLedger):
    """The part of the book that the exchange writes."""

    def observe_order(self, snapshot: OrderSnapshot, source: str = "rest") -> bool:
        """Write down how an order was seen; return whether that was new.

        Parameters
        ----------
        source
            Who told it, for people: ``rest``, ``stream`` ...

        Raises
        ------
        LedgerConflictError
            If it contradicts what is known of this order, or of what was sent under its ``orderLinkId``.
        """
        return bool(self.observe_orders([snapshot], source))

    def observe_orders(self, snapshots: Iterable[OrderSnapshot], source: str = "rest") -> int:
        """As :meth:`observe_order` for many in one transaction; return how many were new."""
        new = 0
        with self._writing() as connection:
            for snapshot in snapshots:
                new += self._observe(connection, snapshot, source)
        return new

    def record_execution(self, execution: Execution, source: str = "rest") -> bool:
        """Write down an execution; return whether it was new.

        Raises
        ------
        LedgerConflictError
            If its ``exec_id`` is in the book with other content, or it does not fit what was sent.
        """
        return bool(self.record_executions([execution], source))

    def record_executions(self, executions: Iterable[Execution], source: str = "rest") -> int:
        """As :meth:`record_execution` for many in one transaction; return how many were new."""
        with self._writing() as connection:
            return self._record(connection, executions, source)

    def record_wallet_event(self, event: WalletEvent) -> bool:
        """Write down a row of the transaction log; return whether it was new.

        Raises
        ------
        LedgerConflictError
            If its id is in the book with other content.
        """
        return bool(self.record_wallet_events([event]))

    def record_wallet_events(self, events: Iterable[WalletEvent]) -> int:
        """As :meth:`record_wallet_event` for many in one transaction; return how many were new."""
        with self._writing() as connection:
            return sum(
                self._add(connection, WALLET_EVENTS, to_row(event), "event_id", "wallet event") for event in events
            )

    def executions(self, symbol: str | None = None) -> list[Execution]:
        """Return the executions in the book, as they were written, of one symbol or all."""
        if symbol is None:
            rows = self._rows(FILLS, questions.FILLS_ALL)
        else:
            rows = self._rows(FILLS, questions.FILLS_OF, symbol=symbol)
        return [execution_of(row) for row in rows]

    def newest_execution_ms(self) -> int | None:
        """Return the exchange's time of the newest execution in the book, UTC ms; None if there is none."""
        return self._reading(FILLS, lambda connection: self._value(connection, questions.NEWEST_FILL_MS), None)

    def wallet_events(self) -> list[WalletEvent]:
        """Return the wallet's log, as it was written."""
        rows = self._rows(WALLET_EVENTS, questions.WALLET_ALL)
        return [from_row(WalletEvent, row) for row in rows]

    def orders(self, *, open_only: bool = False) -> list[OrderSnapshot]:
        """Return the state of every order that was ever seen, or of those that are not over."""
        rows = self._rows(ORDERS, questions.ORDERS_ALL)
        by_id: dict[str, list[OrderSnapshot]] = {}
        for row in rows:
            by_id.setdefault(row["order_id"], []).append(from_row(OrderSnapshot, row))
        states = [state for state in map(order_state, by_id.values()) if state is not None]
        return [state for state in states if not (open_only and state.terminal)]

    def positions_from_fills(self) -> dict[str, PositionView]:
        """Return every symbol's position as the executions in the book make it."""
        return fold_positions(self.executions())

    def wallet_from_events(self) -> dict[str, WalletView]:
        """Return every coin's wallet as its log makes it."""
        return fold_wallet(self.wallet_events())

    def _record(self, connection: Connection, executions: Iterable[Execution], source: str) -> int:
        new = 0
        for execution in executions:
            row = to_row(execution)
            row["exchange_seq"] = row.pop("seq")
            if not self._add(connection, FILLS, {**row, "source": source}, "exec_id", "execution"):
                continue
            new += 1
            if execution.order_link_id:
                self._fits(connection, execution.order_link_id, execution.symbol, execution.side)
                self._settle(connection, execution.order_link_id)
        return new

    def _observe(self, connection: Connection, snapshot: OrderSnapshot, source: str) -> bool:
        row = to_row(snapshot)
        row["digest"] = digest_of(row)
        known = self._ask(connection, questions.ORDER, order_id=snapshot.order_id)
        if any(other["digest"] == row["digest"] for other in known):
            return False
        order_state([*(from_row(OrderSnapshot, other) for other in known), snapshot])
        if snapshot.order_link_id:
            linked = self._ask(connection, questions.ORDERS_OF_LINK, order_link_id=snapshot.order_link_id)
            others = [other for other in linked if other["order_id"] != snapshot.order_id]
            if others:
                raise LedgerConflictError(
                    f"orderLinkId {snapshot.order_link_id} belongs to order {others[0]['order_id']} in the book and to "
                    f"order {snapshot.order_id} now: it was executed twice; halt, and look at both"
                )
            self._fits(connection, snapshot.order_link_id, snapshot.symbol, snapshot.side)
        self._insert(connection, ORDERS, {**row, "source": source})
        if snapshot.order_link_id:
            self._settle(connection, snapshot.order_link_id)
        return True
