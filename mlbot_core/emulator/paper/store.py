"""The paper account on disk: what is answered was written before, so a process that is killed goes on exactly there.

The state itself is kept, not a journal to replay: looks at the market come every second, so two weeks of them would be
a million points to work through at every start, while an account is a few rows. All of a change is one transaction of
SQLite (WAL, ``synchronous=FULL``), committed before the answer leaves. What was observed when something changed is
kept beside it, for people.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeVar

from mlbot_core.emulator.exchange.account import Account, LogRow
from mlbot_core.emulator.exchange.engine import Engine
from mlbot_core.emulator.exchange.orders import Execution, Order
from mlbot_core.emulator.exchange.position import Position
from mlbot_core.emulator.paper.bybit import Candle
from mlbot_core.emulator.paper.market import Memory, Point
from mlbot_core.errors import MlbotError

Row = dict[str, Any]
T = TypeVar("T")
FILE_NAME: Final = "account.sqlite"
VERSION: Final = 1
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS accounts (uid INTEGER PRIMARY KEY, state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS orders (uid INTEGER, number INTEGER, state TEXT NOT NULL, PRIMARY KEY (uid, number));
CREATE TABLE IF NOT EXISTS executions (uid INTEGER, number INTEGER, state TEXT NOT NULL, PRIMARY KEY (uid, number));
CREATE TABLE IF NOT EXISTS log (uid INTEGER, number INTEGER, state TEXT NOT NULL, PRIMARY KEY (uid, number));
CREATE TABLE IF NOT EXISTS markets (symbol TEXT PRIMARY KEY, state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS observations (
    number INTEGER PRIMARY KEY AUTOINCREMENT, symbol TEXT NOT NULL, at_ms INTEGER NOT NULL, last TEXT NOT NULL,
    mark TEXT NOT NULL, bid TEXT NOT NULL, ask TEXT NOT NULL
);
"""


class PaperStoreError(MlbotError):
    """The paper account on disk cannot be used."""


def spell(item: Any, skip: tuple[str, ...] = ()) -> Row:
    """Return a flat dataclass as plain values, Decimals as texts."""
    row: Row = {}
    for field in dataclasses.fields(item):
        if field.name not in skip:
            value = getattr(item, field.name)
            row[field.name] = str(value) if isinstance(value, Decimal) else value
    return row


def read(kind: type[T], row: Mapping[str, Any], **more: Any) -> T:
    """Return the dataclass that :func:`spell` spelt; ``more`` are fields that were skipped.

    Raises
    ------
    PaperStoreError
        If fields are missing or unknown.
    """
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if set(fields) != {*row, *more}:
        raise PaperStoreError(
            f"a stored {kind.__name__} has other fields than this release knows; go on with the release that wrote it, "
            "or begin a new paper account in another folder"
        )
    values = {
        name: Decimal(value) if fields[name].startswith("Decimal") and value is not None else value
        for name, value in row.items()
    }
    return kind(**values, **more)


class PaperStore:
    """One file; one process at a time uses it.

    Parameters
    ----------
    folder
        Made where absent.

    Raises
    ------
    PaperStoreError
        If the file cannot be opened or is of another version.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE_NAME
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)
        except sqlite3.Error as error:
            raise PaperStoreError(
                f"{self.path} cannot be opened ({error}); restore it, or choose another folder"
            ) from error
        self._orders: dict[int, int] = {}
        self._open: dict[int, set[str]] = {}
        self._executions: dict[int, int] = {}
        self._log: dict[int, int] = {}

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def meta(self) -> dict[str, Any]:
        """Return what was written once: version, seed, user id, symbols, instruments; empty for a new file.

        Raises
        ------
        PaperStoreError
            If it is of another version.
        """
        found = {name: json.loads(value) for name, value in self._db.execute("SELECT name, value FROM meta")}
        if found and found.get("version") != VERSION:
            raise PaperStoreError(
                f"{self.path} is of version {found.get('version')}, this release writes {VERSION}; "
                "choose another folder"
            )
        return found

    def begin(self, values: Mapping[str, Any]) -> None:
        """Write down what a new account is."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for name, value in {"version": VERSION, **values}.items():
                self.put_meta(name, value)

    def put_meta(self, name: str, value: Any) -> None:
        """Write down one value."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

    def memories(self) -> dict[str, Memory]:
        """Return what is known of each market; none in a new file."""
        return {symbol: _memory(json.loads(state)) for symbol, state in self._db.execute("SELECT * FROM markets")}

    def commit(self, engines: Mapping[int, Engine], memories: Mapping[str, Memory]) -> bool:
        """Write what has changed since the last commit, all of it or nothing; return whether an account changed.

        Raises
        ------
        sqlite3.Error
            If it could not be written: what is in memory must not be told to anybody then.
        """
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            changed = [self._write_account(uid, engine) for uid, engine in engines.items()]
            for symbol, memory in memories.items():
                state = json.dumps(_plain(memory), separators=(",", ":"))
                self._db.execute("INSERT OR REPLACE INTO markets VALUES (?, ?)", (symbol, state))
                if any(changed):
                    point = memory.point
                    prices = (str(price) for price in (point.last, point.mark, point.bids[0][0], point.asks[0][0]))
                    self._db.execute(
                        "INSERT INTO observations (symbol, at_ms, last, mark, bid, ask) VALUES (?, ?, ?, ?, ?, ?)",
                        (symbol, point.ts, *prices),
                    )
        for uid, engine in engines.items():
            self._note(uid, engine.account)
        return any(changed)

    def _write_account(self, uid: int, engine: Engine) -> bool:
        account = engine.account
        state = {
            "now_ms": engine.now_ms,
            "wallet": {coin: str(amount) for coin, amount in account.wallet.items()},
            "numbers": account.numbers,
            "positions": {symbol: spell(position) for symbol, position in account.positions.items()},
            "open": list(account.open),
        }
        self._db.execute("INSERT OR REPLACE INTO accounts VALUES (?, ?)", (uid, json.dumps(state)))
        known, touched = self._orders.get(uid, 0), {*self._open.get(uid, ()), *account.open}
        for order in reversed(account.orders.values()):
            if order.number <= known:
                break
            touched.add(order.order_id)
        orders = [(order.number, spell(order)) for order in map(account.orders.__getitem__, touched)]
        executions = account.executions[self._executions.get(uid, 0) :]
        rows = account.log[self._log.get(uid, 0) :]
        self._put("orders", uid, orders)
        start = self._executions.get(uid, 0) + 1
        self._put("executions", uid, ((n, _execution_row(e)) for n, e in enumerate(executions, start)))
        self._put("log", uid, ((row.number, spell(row)) for row in rows))
        closed = self._open.get(uid, set()) - set(account.open)
        return bool(executions or rows or closed or any(order.number > known for order in account.open.values()))

    def _put(self, table: str, uid: int, rows: Iterable[tuple[int, Row]]) -> None:
        self._db.executemany(
            f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)",  # a name from this module
            ((uid, number, json.dumps(row, separators=(",", ":"))) for number, row in rows),
        )

    def _note(self, uid: int, account: Account) -> None:
        self._orders[uid] = account.numbers["order"]
        self._open[uid] = set(account.open)
        self._executions[uid] = len(account.executions)
        self._log[uid] = len(account.log)

    def restore(self, engines: Mapping[int, Engine]) -> None:
        """Fill empty accounts with what was written.

        Raises
        ------
        PaperStoreError
            If an account is missing or cannot be read.
        """
        stored = {uid: json.loads(state) for uid, state in self._db.execute("SELECT * FROM accounts")}
        for uid, engine in engines.items():
            if uid not in stored:
                raise PaperStoreError(f"{self.path} has no account {uid}; restore it, or choose another folder")
            self._fill(uid, engine, stored[uid])
            self._note(uid, engine.account)

    def _fill(self, uid: int, engine: Engine, state: Row) -> None:
        account = engine.account
        engine.now_ms = int(state["now_ms"])
        account.wallet.update({coin: Decimal(amount) for coin, amount in state["wallet"].items()})
        account.numbers.update(state["numbers"])
        for symbol, row in state["positions"].items():
            account.positions[symbol] = read(Position, row)
        for row in self._rows("orders", uid):
            order = read(Order, row)
            account.orders[order.order_id] = order
            if order.link_id:
                account.links[order.link_id] = order.order_id
        account.open.update({order_id: account.orders[order_id] for order_id in state["open"]})
        for row in self._rows("executions", uid):
            order_id = row.pop("order_id")
            account.executions.append(read(Execution, row, order=account.orders[order_id] if order_id else None))
        account.log += [read(LogRow, row) for row in self._rows("log", uid)]

    def _rows(self, table: str, uid: int) -> list[Row]:
        query = f"SELECT state FROM {table} WHERE uid = ? ORDER BY number"  # a name from this module
        return [json.loads(state) for (state,) in self._db.execute(query, (uid,))]


def _execution_row(execution: Execution) -> Row:
    return {**spell(execution, ("order",)), "order_id": execution.order.order_id if execution.order else ""}


def _plain(memory: Memory) -> Row:
    levels = {
        side: [[str(price), str(size)] for price, size in getattr(memory.point, side)] for side in ("bids", "asks")
    }
    return {
        "point": {**spell(memory.point, ("bids", "asks")), **levels},
        "minute": None if memory.minute is None else spell(memory.minute),
        "announced": str(memory.announced),
        "announced_for": memory.announced_for,
    }


def _memory(row: Row) -> Memory:
    point = dict(row["point"])
    sides = {
        side: tuple((Decimal(price), Decimal(size)) for price, size in point.pop(side)) for side in ("bids", "asks")
    }
    minute = None if row["minute"] is None else read(Candle, row["minute"])
    return Memory(read(Point, point, **sides), minute, Decimal(row["announced"]), int(row["announced_for"]))
