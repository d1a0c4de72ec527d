"""Bybit's private stream: orders, executions, positions and the wallet, as they change.

It is an accelerator, never the truth: the exchange neither repeats what was missed nor says that something was. So
after every connection the account is caught up by asking (a callback), before the stream counts as up.

``websockets`` is used directly, not pybit's ``WebSocket``: there an exception in a callback, a failed subscription or
an error of an unlisted kind ends the thread for good and nobody is told, reconnecting has no pause, the address can
only be changed in module constants, and the authentication expires after one second of the wall clock.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal, TypeVar

from mlbot_core.clock import Clock
from mlbot_core.config.secrets import KeyPair
from mlbot_core.errors import MlbotError
from mlbot_core.execution import bybit_rows as rows
from mlbot_core.execution.broker import BrokerError, Venue
from mlbot_core.execution.bybit_signer import Signer
from mlbot_core.execution.bybit_venues import LOCAL, stream_url
from mlbot_core.execution.types import Execution, OrderSnapshot, PositionSnapshot, WalletSnapshot

TOPICS: Final = ("order", "execution", "position", "wallet")
PING_S: Final = 15.0
SILENT_S: Final = 40.0
OPEN_S: Final = 10.0
FIRST_PAUSE_S: Final = 0.5
# Bybit allows 500 connections in five minutes.
LONGEST_PAUSE_S: Final = 30.0
# A connection that lasted this long starts the pauses anew.
STEADY_S: Final = 30.0
AUTH_VALID_MS: Final = 10_000
_REMEMBERED: Final = 10_000
_LARGEST_MESSAGE: Final = 4 * 1024 * 1024


class StreamError(BrokerError):
    """A connection of the private stream ended or was refused; the next one is on its way."""


@dataclass(frozen=True)
class StreamUp:
    """Connected, subscribed and caught up; ``connection`` counts from 1, ``at_ms`` is UTC ms."""

    connection: int
    at_ms: int


@dataclass(frozen=True)
class StreamDown:
    """From ``at_ms`` (UTC) on changes may be missed, until the next :class:`StreamUp`."""

    connection: int
    at_ms: int
    reason: str


StreamEvent = OrderSnapshot | Execution | PositionSnapshot | WalletSnapshot | StreamUp | StreamDown
_T = TypeVar("_T")


class Newest:
    """Lets through what is new: each execution once, and no state that an earlier message has overtaken."""

    def __init__(self) -> None:
        self._executions: OrderedDict[str, bool] = OrderedDict()
        self._orders: OrderedDict[str, OrderSnapshot] = OrderedDict()
        self._positions: OrderedDict[str, PositionSnapshot] = OrderedDict()
        self._wallet_ms = -1
        self.dropped = 0

    def passes(self, event: StreamEvent) -> bool:
        """Say whether an event is news, and remember it."""
        news = True
        if isinstance(event, Execution):
            news = event.exec_id not in self._executions
            _remember(self._executions, event.exec_id, True)
        elif isinstance(event, OrderSnapshot):
            news = _newer_order(event, self._orders.get(event.order_id))
            if news:
                _remember(self._orders, event.order_id, event)
        elif isinstance(event, PositionSnapshot):
            before = self._positions.get(event.symbol)
            news = before is None or (
                event != before and (event.seq, event.updated_ms) >= (before.seq, before.updated_ms)
            )
            if news:
                _remember(self._positions, event.symbol, event)
        elif isinstance(event, WalletSnapshot):
            news = event.at_ms >= self._wallet_ms
            self._wallet_ms = max(self._wallet_ms, event.at_ms)
        self.dropped += not news
        return news


def _newer_order(event: OrderSnapshot, before: OrderSnapshot | None) -> bool:
    if before is None:
        return True
    if event == before or (before.terminal and not event.terminal):
        return False
    rank: Callable[[OrderSnapshot], tuple[int, Decimal]] = lambda order: (order.updated_ms, order.filled_qty)  # noqa: E731
    return rank(event) >= rank(before) and event.filled_qty >= before.filled_qty


def _remember(known: OrderedDict[Any, _T], key: Hashable, value: _T) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > _REMEMBERED:
        known.popitem(last=False)


class PrivateStream:
    """The private stream of one account, in a thread of its own.

    Parameters
    ----------
    venue, url
        As of the broker: ``url`` is the emulator's address for requests.
    pair
        API key and secret.
    clock
        Dates events and the authentication. Waiting is done in real seconds: it is about sockets.
    events
        Where everything goes, in the order of arrival, without doubles and without overtaken states.
    catch_up
        Called in the stream's thread after every (re)connection and after a message that could not be read, with the
        reason; it asks the broker for orders, executions, position and wallet. If it raises a
        :class:`~mlbot_core.errors.MlbotError` the connection is given up and made anew.
    ping_s, silent_s
        A ping is sent after the one, and the connection given up after the other without any message or pong, seconds.
    first_pause_s
        Before the first reconnection; doubled up to :data:`LONGEST_PAUSE_S`.
    """

    def __init__(
        self,
        venue: Venue,
        pair: KeyPair,
        clock: Clock,
        events: queue.Queue[StreamEvent],
        catch_up: Callable[[str], None],
        *,
        url: str | None = None,
        ping_s: float = PING_S,
        silent_s: float = SILENT_S,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._url = stream_url(venue, url)
        self._proxy: Literal[True] | None = None if venue in LOCAL else True
        self._signer = Signer(pair)
        self._clock = clock
        self._events = events
        self._catch_up = catch_up
        self._ping_s = ping_s
        self._silent_s = silent_s
        self._first_pause_s = first_pause_s
        self._newest = Newest()
        self._stop = threading.Event()
        self._up = threading.Event()
        self._heard = time.monotonic()
        self._connections = 0
        self._thread = threading.Thread(target=self._run, name="bybit-private-stream", daemon=True)

    def __repr__(self) -> str:
        return f"PrivateStream({self._url}, {self._signer!r})"

    @property
    def healthy(self) -> bool:
        """Whether it is up, its thread lives, and something was heard in time."""
        silent = time.monotonic() - self._heard
        return self._up.is_set() and self._thread.is_alive() and silent <= self._silent_s + self._ping_s

    @property
    def connections(self) -> int:
        """How many connections were tried."""
        return self._connections

    @property
    def dropped(self) -> int:
        """How many doubled or overtaken messages were left out."""
        return self._newest.dropped

    def start(self) -> None:
        """Begin; events come from now on."""
        self._thread.start()

    def wait_until_up(self, timeout_s: float) -> bool:
        """Block until it is up; False if it was not within the time."""
        return self._up.wait(timeout_s)

    def stop(self, timeout_s: float = 10.0) -> None:
        """End it.

        Raises
        ------
        StreamError
            If its thread did not end in time.
        """
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise StreamError(f"the thread of the private stream did not end within {timeout_s:g} s")

    # --- in the thread

    def _run(self) -> None:
        reason = "its thread died"
        try:
            pause_s = self._first_pause_s
            while not self._stop.is_set():
                began = time.monotonic()
                reason = self._connection()
                self._down(reason)
                if time.monotonic() - began >= STEADY_S:
                    pause_s = self._first_pause_s
                self._stop.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            reason = "it was stopped"
        finally:
            # whatever ended it: nobody may go on believing in it
            if self._up.is_set():
                self._down(reason)

    def _down(self, reason: str) -> None:
        self._up.clear()
        self._events.put(StreamDown(self._connections, self._clock.now_ms(), reason))

    def _connection(self) -> str:
        """Make one connection and read it to its end; return why it ended."""
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        # at DEBUG the library logs whole messages, the authentication too
        quiet = logging.getLogger("mlbot_core.execution.bybit_streams.socket")
        quiet.setLevel(logging.WARNING)
        self._connections += 1
        try:
            with connect(
                self._url,
                open_timeout=OPEN_S,
                close_timeout=1.0,
                ping_interval=None,
                max_size=_LARGEST_MESSAGE,
                compression=None,
                proxy=self._proxy,
                logger=quiet,
            ) as socket:
                self._heard = time.monotonic()
                self._introduce(socket)
                self._catch_up("first connection" if self._connections == 1 else "reconnected")
                self._heard = time.monotonic()
                self._up.set()
                self._events.put(StreamUp(self._connections, self._clock.now_ms()))
                self._read(socket)
            return "it was stopped"
        except MlbotError as error:
            return self._signer.scrub(str(error))
        except (WebSocketException, OSError, EOFError) as error:
            return f"{type(error).__name__}: {self._signer.scrub(str(error))}"

    def _introduce(self, socket: Any) -> None:
        expires = self._clock.now_ms() + AUTH_VALID_MS
        signature = self._signer.sign(f"GET/realtime{expires}")
        self._operate(socket, "auth", [self._signer.key, expires, signature])
        self._operate(socket, "subscribe", list(TOPICS))

    def _operate(self, socket: Any, operation: str, args: list[Any]) -> None:
        """Send an operation and wait for its answer; what is pushed before it is an event."""
        socket.send(json.dumps({"op": operation, "args": args}))
        deadline = time.monotonic() + OPEN_S
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = self._message(socket.recv(timeout=left))
            except TimeoutError:
                break
            if message.get("op") != operation:
                self._take(message)
            elif message.get("success") is True:
                return
            else:
                raise StreamError(f"{operation} was refused: {str(message.get('ret_msg'))[:200]}")
        raise StreamError(f"{operation} was not answered within {OPEN_S:g} s")

    def _read(self, socket: Any) -> None:
        """Hand on what comes, until it ends, stays silent for too long, or is to stop."""
        pinged = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            if now - self._heard > self._silent_s:
                raise StreamError(f"nothing was heard for {self._silent_s:g} s, no pong either")
            if now - pinged >= self._ping_s:
                socket.send(json.dumps({"op": "ping"}))
                pinged = now
            try:
                raw = socket.recv(timeout=min(0.25, self._ping_s))
            except TimeoutError:
                continue
            self._heard = time.monotonic()
            try:
                self._take(self._message(raw))
            except rows.RowError as error:
                # something happened and we cannot read what: ask
                self._catch_up(f"unreadable message ({self._signer.scrub(str(error))})")

    def _message(self, raw: str | bytes) -> dict[str, Any]:
        try:
            message = json.loads(raw)
        except (ValueError, RecursionError):
            raise rows.RowError("a message is not JSON") from None
        if not isinstance(message, dict):
            raise rows.RowError("a message is not an object")
        return message

    def _take(self, message: dict[str, Any]) -> None:
        """Hand on the events of a message; pongs and answers have none."""
        topic = str(message.get("topic") or "")
        if not topic:
            return
        data = message.get("data")
        if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
            raise rows.RowError(f"a message of {topic[:40]} has no rows")
        for row in data:
            event = _event(topic.partition(".")[0], row, message)
            if event is not None and self._newest.passes(event):
                self._events.put(event)


def _event(topic: str, row: dict[str, Any], message: dict[str, Any]) -> StreamEvent | None:
    """Return what a row says; None for markets that are not traded here."""
    if row.get("category", "linear") != "linear":
        return None
    if topic == "order":
        return rows.read_order(row)
    if topic == "execution":
        return rows.read_execution(row)
    if topic == "position":
        return rows.read_position(row)
    if topic == "wallet":
        return rows.read_wallet(row, rows.whole(message, "creationTime"))
    raise rows.RowError(f"topic {topic[:40]!r} was not asked for")
