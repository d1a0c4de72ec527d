"""The book of execution, read by an observer: on a connection that cannot write, each fact once.

Facts are only added to the book, in the order of their numbers, so a reader that remembers the last number of each
table reads a few rows at a time however large the book is. Readers of SQLite in WAL mode and of Postgres hold up no
writer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlbot_core.decision.state import RECONCILE, RiskState, state_from_json
from mlbot_core.errors import MlbotError
from mlbot_core.execution.ledger_folds import (
    AttemptEvent,
    PositionView,
    WalletView,
    fold_positions,
    fold_wallet,
    order_state,
)
from mlbot_core.execution.ledger_rows import Row, execution_of, from_row
from mlbot_core.execution.ledger_schema import (
    ALERTS,
    ATTEMPT_EVENTS,
    ATTEMPTS,
    CLOSINGS,
    DECISIONS,
    DELIVERIES,
    FILLS,
    FLAGS,
    INTENTS,
    OPENINGS,
    ORDERS,
    RISK_STATES,
    WALLET_EVENTS,
)
from mlbot_core.execution.ledger_states import BAR
from mlbot_core.execution.ledger_store import FILE_NAME
from mlbot_core.execution.types import Execution, OrderSnapshot, WalletEvent
from mlbot_core.observability.metrics import Latencies
from mlbot_core.observability.read_only import read_only_engine
from mlbot_core.timeframe import Timeframe

_READ: Final = (
    DECISIONS, INTENTS, CLOSINGS, ATTEMPTS, ATTEMPT_EVENTS, ORDERS, FILLS, WALLET_EVENTS, ALERTS, DELIVERIES,
    OPENINGS, FLAGS,
)  # fmt: skip


class BookReader:
    """Opens the book for reading, or says that there is none.

    Parameters
    ----------
    home
        The product's folder.
    url
        SQLAlchemy URL of Postgres; None for the file of the home.
    """

    def __init__(self, home: Path, url: str | None) -> None:
        # the file is looked for each time: a book can begin later than its observers
        self._file = home / FILE_NAME if url is None else None
        self._engine = read_only_engine(home / FILE_NAME, url)

    @contextmanager
    def connected(self) -> Iterator[Connection | None]:
        """Yield one moment of the book; None where there is none yet."""
        if self._file is not None and not self._file.exists():
            yield None
            return
        with self._engine.connect() as connection:
            if self._file is None:
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            else:
                connection.exec_driver_sql("BEGIN")
            whole = sa.inspect(connection).has_table(DELIVERIES.name)
            yield connection if whole else None


def accounts_of(connection: Connection, venue: str) -> list[str]:
    """Return the accounts of a venue (``<venue>:<id>``) that the book knows, ascending.

    The accounts are stepped through by an index: the table of risk states has a row for every look of the risk watch.
    """
    found: set[str] = set()
    for table in (RISK_STATES, WALLET_EVENTS, DECISIONS, ALERTS):
        last = f"{venue}:"
        while True:
            query = sa.select(sa.func.min(table.c.account)).where(table.c.account > last)
            account = connection.execute(query).scalar()
            if account is None or not str(account).startswith(f"{venue}:"):
                break
            last = str(account)
            found.add(last)
    return sorted(found)


def risk_states(connection: Connection, account: str) -> dict[str, tuple[int, RiskState]]:
    """Return version and newest risk state by symbol."""
    found: dict[str, tuple[int, RiskState]] = {}
    last = ""
    while True:
        mine = RISK_STATES.c.account == account
        query = sa.select(sa.func.min(RISK_STATES.c.symbol)).where(mine, RISK_STATES.c.symbol > last)
        symbol = connection.execute(query).scalar()
        if symbol is None:
            return found
        last = str(symbol)
        newest = (
            sa.select(RISK_STATES.c.version, RISK_STATES.c.state)
            .where(mine, RISK_STATES.c.symbol == last)
            .order_by(RISK_STATES.c.version.desc())
            .limit(1)
        )
        version, state = connection.execute(newest).one()
        found[last] = (int(version), state_from_json(json.loads(state)))


class BookView:
    """What the book of one account says, kept up to date by what was added to it.

    Attributes
    ----------
    positions, wallets
        By symbol and by coin.
    answers, closings, outcomes, fills, decisions, intents, alerts
        Counts; see the metrics of these names.
    """

    def __init__(self, account: str) -> None:
        self.account = account
        self._last = {table.name: 0 for table in _READ}
        self._executions: list[tuple[int, Execution]] = []
        self._begins: dict[str, int] = {}
        self._wallet_events: list[WalletEvent] = []
        self._orders: dict[str, list[OrderSnapshot]] = {}
        self._decided: dict[str, int] = {}
        self._decision_of: dict[str, str] = {}
        self._intent_of: dict[str, str] = {}
        self._first_send: dict[str, int] = {}
        self._acknowledged: set[str] = set()
        self._delivered: set[str] = set()
        self._raised: dict[str, int] = {}
        self._open_intents: set[str] = set()
        self.positions: Mapping[str, PositionView] = {}
        self.wallets: Mapping[str, WalletView] = {}
        self.newest_decision: dict[str, Row] = {}
        self.openings: dict[str, Row] = {}
        self.differences = 0
        self.answers: Counter[str] = Counter()
        self.closings: Counter[str] = Counter()
        self.fills: Counter[tuple[str, str]] = Counter()
        self.decisions: Counter[tuple[str, str]] = Counter()
        self.intents: Counter[tuple[str, str]] = Counter()
        self.alerts: Counter[tuple[str, str]] = Counter()
        self.traded_usd = 0.0
        self.decision_to_ack = Latencies()
        self.send_to_ack = Latencies()
        self.close_to_decision = Latencies()

    @property
    def attempts(self) -> int:
        """Orders begun."""
        return len(self._intent_of)

    @property
    def intents_open(self) -> int:
        """Intents that did not end."""
        return len(self._open_intents)

    @property
    def pending_ms(self) -> list[int]:
        """When the alerts that nobody was told of were raised, UTC ms."""
        return [at for key, at in self._raised.items() if key not in self._delivered]

    def outcomes(self) -> tuple[Counter[str], int]:
        """Return the orders that ended by status, and how many are open."""
        states = [state for state in map(order_state, self._orders.values()) if state is not None]
        ended = Counter(state.status.value for state in states if state.terminal)
        return ended, sum(not state.terminal for state in states)

    def advance(self, connection: Connection) -> None:
        """Read what was added since the last time.

        Raises
        ------
        BookReplacedError
            If a row that was read from it is gone: another book was put in its place.
        """
        new = {table.name: self._added(connection, table) for table in _READ}
        for row in new[DECISIONS.name]:
            self._decision(row)
        for row in new[INTENTS.name]:
            self._decision_of[row["intent_id"]] = row["decision_id"]
            self._open_intents.add(row["intent_id"])
            self.intents[row["symbol"], row["leg"]] += 1
        for row in new[CLOSINGS.name]:
            self._open_intents.discard(row["intent_id"])
            self.closings[row["reason"]] += 1
        for row in new[ATTEMPTS.name]:
            self._intent_of[row["order_link_id"]] = row["intent_id"]
        for row in new[ATTEMPT_EVENTS.name]:
            self._event(row)
        for row in new[ORDERS.name]:
            self._orders.setdefault(row["order_id"], []).append(from_row(OrderSnapshot, row))
        for row in new[FILLS.name]:
            execution = execution_of(row)
            self._executions.append((int(row["seq"]), execution))
            self.fills[row["kind"], row["side"]] += 1
            if execution.kind.moves_position:
                self.traded_usd += float(row["value"])
        self._wallet_events += [from_row(WalletEvent, row) for row in new[WALLET_EVENTS.name]]
        for row in new[ALERTS.name]:
            self._raised[row["alert_key"]] = int(row["recorded_ms"])
            self.alerts[row["level"], row["code"]] += 1
        self._delivered.update(row["alert_key"] for row in new[DELIVERIES.name])
        for row in new[OPENINGS.name]:
            self._begins[row["symbol"]] = int(row["fill_seq"])
            self.openings[row["symbol"]] = row
        self.differences += sum(bool(row["causes"] & RECONCILE) for row in new[FLAGS.name])
        if new[FILLS.name] or new[OPENINGS.name]:
            # what came before the account was opened for a symbol belongs to somebody else
            mine = (one for seq, one in self._executions if seq > self._begins.get(one.symbol, 0))
            self.positions = fold_positions(mine)
        if new[WALLET_EVENTS.name]:
            self.wallets = fold_wallet(self._wallet_events)

    def _added(self, connection: Connection, table: sa.Table) -> list[Row]:
        last = self._last[table.name]
        mine = table.c.account == self.account
        if last and not connection.execute(sa.select(sa.literal(1)).where(table.c.seq == last, mine)).scalar():
            raise BookReplacedError(f"row {last} of {table.name} is gone")
        query = sa.select(table).where(mine, table.c.seq > last).order_by(table.c.seq)
        rows = [dict(row) for row in connection.execute(query).mappings()]
        if rows:
            self._last[table.name] = int(rows[-1]["seq"])
        return rows

    def _decision(self, row: Row) -> None:
        self._decided[row["decision_id"]] = int(row["decided_ms"])
        self.decisions[row["symbol"], row["trigger"]] += 1
        if row["trigger"] == BAR:
            self.newest_decision[row["symbol"]] = row
            close_ms = int(row["ts"]) + Timeframe.parse(row["timeframe"]).ms
            self.close_to_decision.add((int(row["decided_ms"]) - close_ms) / 1000)

    def _event(self, row: Row) -> None:
        link, at = row["order_link_id"], int(row["recorded_ms"])
        self.answers[row["kind"]] += 1
        if row["kind"] == AttemptEvent.SENT.value:
            self._first_send.setdefault(link, at)
        elif row["kind"] == AttemptEvent.ACKNOWLEDGED.value and link not in self._acknowledged:
            self._acknowledged.add(link)
            if link in self._first_send:
                self.send_to_ack.add((at - self._first_send[link]) / 1000)
            decided = self._decided.get(self._decision_of.get(self._intent_of.get(link, ""), ""))
            if decided is not None:
                self.decision_to_ack.add((at - decided) / 1000)


class BookReplacedError(MlbotError):
    """The book is not the one that was read before."""
