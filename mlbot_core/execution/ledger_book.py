"""What the parts of execution agree on through the book: its beginning, marks, flags, plans and what replaces them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlbot_core.decision.state import ERROR, OBSERVED, RiskState, initial_state
from mlbot_core.execution import ledger_questions as questions
from mlbot_core.execution.intents import Intent
from mlbot_core.execution.ledger_folds import FLOW_KINDS, PositionView
from mlbot_core.execution.ledger_mirror import Mirror, PositionFold
from mlbot_core.execution.ledger_plans import PlansLedger
from mlbot_core.execution.ledger_risk import StoredRiskState
from mlbot_core.execution.ledger_rows import execution_of, spell, to_row
from mlbot_core.execution.ledger_schema import (
    ALERTS,
    FILLS,
    FLAGS,
    OPENINGS,
    WALLET_EVENTS,
)
from mlbot_core.execution.ledger_states import DecisionRecord
from mlbot_core.execution.types import ZERO, ExecType, Execution, WalletEvent

COIN: Final = "USDT"


@dataclass(frozen=True)
class Opening:
    """Where the book of a symbol begins: flat, with a balance (USDT); rows up to those numbers came before it."""

    symbol: str
    at_ms: int
    balance: Decimal
    fill_seq: int
    wallet_seq: int


class BookLedger(PlansLedger):
    """The part of the book that holds the others together."""

    def __init__(self, *where: Any, **more: Any) -> None:
        super().__init__(*where, **more)
        # a beginning never changes
        self._openings: dict[str, Opening] = {}
        self._fills: dict[str, Mirror[Execution]] = {}
        self._folds: dict[tuple[str, int], PositionFold] = {}
        self._changes: Mirror[Decimal] = Mirror(
            WALLET_EVENTS, "event_id", lambda row: Decimal(row["change"]), coin=COIN
        )

    # --- where it begins

    def open_book(
        self,
        symbol: str,
        at_ms: int,
        balance: Decimal,
        executions: Sequence[Execution],
        events: Sequence[WalletEvent],
        since_ms: int,
    ) -> Opening | None:
        """Begin the book of a symbol on a flat account, once; return the beginning that stands.

        None where the book holds rows from ``since_ms`` on that are not among those given: somebody saw more, so it is
        not known whether the balance contains them. Look again then.

        Parameters
        ----------
        at_ms
            The exchange's time, UTC ms.
        balance
            Of the wallet, USDT; the events are contained in it.
        executions, events
            All that the exchange tells of ``since_ms`` (UTC) and later: they came before the beginning.
        """
        with self._writing() as connection:
            known = self._opening(connection, symbol)
            if known is not None:
                return known
            for question, name, at, given in (
                (questions.FILLS_AT, "exec_id", "exec_ms", {fill.exec_id for fill in executions}),
                (questions.WALLET_AT, "event_id", "at_ms", {event.event_id for event in events}),
            ):
                rows = self._ask(connection, question, **{at: since_ms})
                if any(row[name] not in given for row in rows):
                    return None
            self._record(connection, executions, "rest")
            for event in events:
                self._add(connection, WALLET_EVENTS, to_row(event), "event_id", "wallet event")
            row = {
                "symbol": symbol,
                "at_ms": at_ms,
                "balance": spell(balance),
                "fill_seq": self._newest(connection, FILLS),
                "wallet_seq": self._newest(connection, WALLET_EVENTS),
            }
            self._insert(connection, OPENINGS, row)
            return self._opening(connection, symbol)

    def opening(self, symbol: str) -> Opening | None:
        """Return where the book of a symbol begins; None before."""
        if symbol not in self._openings:
            found = self._reading(OPENINGS, lambda connection: self._opening(connection, symbol), None)
            if found is None:
                return None
            self._openings[symbol] = found
        return self._openings[symbol]

    def held(self, symbol: str) -> PositionView:
        """Return the position that the executions since the beginning make."""
        begin = self._begin(symbol, "fill_seq")
        fold = self._folds.setdefault((symbol, begin), PositionFold(symbol))
        return fold.of([fill for _, fill in self.fills_after(symbol, begin)])

    def balance(self, symbol: str) -> tuple[Decimal, int] | None:
        """Return the wallet's balance (USDT) that its log makes since the beginning, and the number of its last row.

        None before the beginning.
        """
        opening = self.opening(symbol)
        if opening is None:
            return None
        changes = self._mirrored(self._changes, opening.wallet_seq)
        total = sum((change for _, change in changes), opening.balance)
        return total, changes[-1][0] if changes else opening.wallet_seq

    def fills_after(self, symbol: str, seq: int) -> list[tuple[int, Execution]]:
        """Return executions of a symbol that were written after the row numbered ``seq``, with their numbers."""
        if symbol not in self._fills:
            self._fills.setdefault(symbol, Mirror(FILLS, "exec_id", execution_of, symbol=symbol))
        return self._mirrored(self._fills[symbol], seq)

    def newest_fill(self) -> int:
        """Return the number of the newest row of executions, 0 without one."""
        return self._reading(FILLS, lambda connection: self._newest(connection, FILLS), 0)

    def newest_wallet_event_ms(self) -> int | None:
        """Return the exchange's time of the newest row of the wallet's log, UTC ms; None if there is none."""
        return self._reading(
            WALLET_EVENTS, lambda connection: self._value(connection, questions.NEWEST_WALLET_MS), None
        )

    # --- marks and flags

    def mark(
        self,
        symbol: str,
        events: Iterable[WalletEvent],
        change: Callable[[RiskState | None, float], RiskState],
        *,
        actor: str,
        reason: str = "",
        upto: int | None = None,
        keep: Callable[[RiskState, RiskState], bool] | None = None,
    ) -> StoredRiskState:
        """Write a mark of the account: every deposit and withdrawal enters the state once, whoever saw it first.

        Parameters
        ----------
        events
            Rows of the wallet's log to write down in the same transaction.
        change
            Pure and quick: the state before (None for none) and deposits less withdrawals since then (USD) to the
            state after. Flags (:meth:`set_flags`) are added to what it returns.
        upto
            Number of the newest row of the log that NAV contains; None for all.
        keep
            Whether a state is worth a row, given the one before; None for always. A flow always is.
        """
        with self._writing() as connection:
            for event in events:
                self._add(connection, WALLET_EVENTS, to_row(event), "event_id", "wallet event")
            before = self._risk(connection, symbol)
            contained = self._flow_seq(self._opening(connection, symbol), before)
            flow, newest = self._flows(connection, contained, upto)
            state = change(None if before is None else before.state, float(flow))
            state = state._replace(causes=state.causes | (self._flags(connection, symbol) & OBSERVED))
            if before is not None and not flow and keep is not None and not keep(before.state, state):
                return StoredRiskState(state, before.version, actor, reason, self._clock.now_ms(), before.flow_seq)
            return self._save_risk(
                connection, symbol, state, 0 if before is None else before.version, actor, reason, newest
            )

    def flow_since(self, symbol: str, stored: StoredRiskState | None, upto: int | None) -> tuple[Decimal, int]:
        """Return deposits less withdrawals (USD) that a state does not contain, and the number of the newest row."""

        opening = self.opening(symbol)

        def add(connection: Connection) -> tuple[Decimal, int]:
            return self._flows(connection, self._flow_seq(opening, stored), upto)

        return self._reading(WALLET_EVENTS, add, (ZERO, 0))

    def commit_decision(
        self,
        decision: DecisionRecord,
        intents: Sequence[Intent],
        state: RiskState,
        *,
        after: int,
        flow_seq: int,
        actor: str,
    ) -> StoredRiskState:
        """Write down a decision, its plan and the risk state that it leaves: all or none.

        Parameters
        ----------
        after
            Number of the risk state that it followed from.
        flow_seq
            Number of the newest row of the wallet's log whose deposit or withdrawal the state contains.

        Raises
        ------
        DecisionExistsError, LedgerConflictError
            As :meth:`record_decision`.
        RiskStateConflictError
            If somebody changed the risk state in between: decide anew.
        """
        with self._writing() as connection:
            self._decide(connection, decision, intents)
            kept = state._replace(causes=state.causes | (self._flags(connection, decision.symbol) & OBSERVED))
            return self._save_risk(
                connection, decision.symbol, kept, after, actor, f"decision {decision.decision_id}", flow_seq
            )

    def raise_error(self, symbol: str, actor: str, reason: str) -> StoredRiskState:
        """Halt until a person re-arms; nothing is written where that stands already."""
        with self._writing() as connection:
            before = self._risk(connection, symbol)
            state = initial_state() if before is None else before.state
            if before is not None and state.causes & ERROR:
                return before
            state = state._replace(causes=state.causes | ERROR)
            return self._save_risk(connection, symbol, state, 0 if before is None else before.version, actor, reason)

    def set_flags(self, symbol: str, owner: str, causes: int, reason: str = "") -> bool:
        """Raise and lower the causes that one observer is responsible for; return whether that changed anything.

        Parameters
        ----------
        owner
            Who observes; causes of different owners add up.
        causes
            A set of :data:`mlbot_core.decision.state.OBSERVED`; 0 for all clear.
        """
        with self._writing() as connection:
            known = self._ask(connection, questions.FLAGS_OF_OWNER, symbol=symbol, owner=owner)
            if (int(known[-1]["causes"]) if known else 0) == causes:
                return False
            row = {"symbol": symbol, "owner": owner, "causes": causes, "reason": reason}
            self._insert(connection, FLAGS, row)
            return True

    def flags(self, symbol: str, owner: str | None = None) -> int:
        """Return the set of causes that observers raise now, one's or everybody's."""
        return self._reading(FLAGS, lambda connection: self._flags(connection, symbol, owner), 0)

    def has_alert(self, key: str) -> bool:
        """Return whether an alert was raised under a key."""
        return bool(self._rows(ALERTS, questions.ALERT, alert_key=key))

    # --- stops

    def stopped_after(self, symbol: str, seq: int) -> Execution | None:
        """Return the newest execution after row ``seq`` by which a stop or the exchange itself closed something."""
        found = [fill for _, fill in self.fills_after(symbol, seq) if fill.kind.by_exchange or _by_stop(fill)]
        return found[-1] if found else None

    def stop_between(self, symbol: str, after: int, upto: int) -> Execution | None:
        """Return the newest execution in the rows ``(after, upto]`` by which a stop closed something."""
        found = [fill for seq, fill in self.fills_after(symbol, after) if seq <= upto and _by_stop(fill)]
        return found[-1] if found else None

    # --- inside a transaction

    def _opening(self, connection: Connection, symbol: str) -> Opening | None:
        rows = self._ask(connection, questions.OPENING, symbol=symbol)
        if not rows:
            return None
        row = rows[0]
        return Opening(symbol, int(row["at_ms"]), Decimal(row["balance"]), int(row["fill_seq"]), int(row["wallet_seq"]))

    def _begin(self, symbol: str, name: str) -> int:
        opening = self.opening(symbol)
        return 0 if opening is None else int(getattr(opening, name))

    def _newest(self, connection: Connection, table: sa.Table) -> int:
        return int(self._value(connection, questions.NEWEST[table.name]) or 0)

    def _flow_seq(self, opening: Opening | None, stored: StoredRiskState | None) -> int:
        contained = 0 if opening is None else opening.wallet_seq
        return contained if stored is None else max(contained, stored.flow_seq)

    def _flows(self, connection: Connection, after: int, upto: int | None) -> tuple[Decimal, int]:
        later = self._ask(connection, questions.WALLET_FROM, seq=after + 1)
        rows = [row for row in later if upto is None or int(row["seq"]) <= upto]
        flow = sum(
            (Decimal(row["change"]) for row in rows if row["coin"] == COIN and row["kind"] in FLOW_KINDS),
            ZERO,
        )
        return flow, max((int(row["seq"]) for row in rows), default=after)

    def _flags(self, connection: Connection, symbol: str, owner: str | None = None) -> int:
        newest: dict[str, int] = {}
        for row in self._ask(connection, questions.FLAGS_OF, symbol=symbol):
            newest[row["owner"]] = int(row["causes"])
        raised = 0
        for name, causes in newest.items():
            raised |= causes if owner in (None, name) else 0
        return raised


def _by_stop(fill: Execution) -> bool:
    return bool(fill.stop_type) and fill.kind is ExecType.TRADE
