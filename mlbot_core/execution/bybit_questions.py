"""Questions to Bybit: nothing here changes anything, so each may be asked again where that may help."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from mlbot_core.clock import Clock
from mlbot_core.config.secrets import KeyPair
from mlbot_core.execution import bybit_rows as rows
from mlbot_core.execution.broker import (
    ApiKeyInfo,
    BrokerError,
    ClockCheck,
    DefiniteReject,
    Next,
    Ticker,
    Venue,
    VenueClockError,
    VenueRefusedError,
    VenueUnreachableError,
)
from mlbot_core.execution.bybit_errors import CLOCK_CODES, Failure, Kind, judge, may_ask_again
from mlbot_core.execution.bybit_signer import Signer
from mlbot_core.execution.bybit_venues import LOCAL, base_url
from mlbot_core.execution.bybit_wire import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Reply, Wire
from mlbot_core.execution.types import (
    Execution,
    Instrument,
    OrderSnapshot,
    PositionSnapshot,
    WalletEvent,
    WalletSnapshot,
)
from mlbot_core.timeframe import DAY_MS

if TYPE_CHECKING:
    from requests.adapters import BaseAdapter

CLOCK_BOUND_MS: Final = 500
INSTRUMENT_VALID_MS: Final = DAY_MS
ATTEMPTS: Final = 4
WEEK_MS: Final = 7 * DAY_MS
# Room for the difference of clocks at the edges of windows.
SLACK_MS: Final = 60_000
LINEAR: Final = {"category": "linear"}
_PAGES: Final = 1_000


class BybitQuestions:
    """What an account and its market look like; see :class:`mlbot_core.execution.bybit.BybitBroker`."""

    def __init__(
        self,
        venue: Venue,
        pair: KeyPair,
        clock: Clock,
        *,
        url: str | None = None,
        adapter: BaseAdapter | None = None,
        allow_mainnet: bool = False,
        clock_bound_ms: int = CLOCK_BOUND_MS,
        timeout_s: tuple[float, float] = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
    ) -> None:
        self._venue = venue
        self._clock = clock
        self._signer = Signer(pair)
        self._bound_ms = clock_bound_ms
        base = base_url(venue, url, in_process=adapter is not None, allow_mainnet=allow_mainnet)
        self._wire = Wire(
            base,
            self._signer,
            clock,
            adapter=adapter,
            timeout_s=timeout_s,
            use_environment=venue not in LOCAL,
        )
        self._lock = threading.Lock()
        self._checked: ClockCheck | None = None
        self._instruments: dict[str, tuple[int, Instrument]] = {}
        self._last: dict[str, tuple[int, Decimal]] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._venue}, {self._signer!r})"

    @property
    def venue(self) -> Venue:
        """Where orders go."""
        return self._venue

    def close(self) -> None:
        """Let go of connections."""
        self._wire.close()

    # --- questions

    def _ask(self, method: str, params: Mapping[str, Any] | None = None, *, attempts: int = ATTEMPTS) -> Reply:
        """Ask, and ask again where that may help.

        Raises
        ------
        VenueUnreachableError, VenueClockError, VenueRefusedError
            When there is no answer after all attempts; a clock that is off; a refusal.
        """
        pause_s = 0.5
        attempt = 1
        while True:
            made = self._wire.call(method, params or {})
            if isinstance(made, Reply):
                return made
            if not may_ask_again(made) or attempt >= attempts:
                raise self._question_error(method, made, attempt)
            self._clock.sleep(pause_s)
            pause_s *= 2
            attempt += 1

    def _question_error(self, method: str, failure: Failure, attempts: int) -> BrokerError:
        what = f"{self._venue} {method}"
        verdict = judge(failure, self._clock.now_ms())
        if failure.kind is Kind.VENUE and failure.code in CLOCK_CODES:
            self._forget_clock()
            return VenueClockError(
                f"{what}: retCode {failure.code}, {failure.message}; set this machine's clock (NTP) and ask again"
            )
        if isinstance(verdict, DefiniteReject) and verdict.then is not Next.WAIT:
            return VenueRefusedError(
                f"{what}: {verdict.name}, {verdict.reason}; next: {verdict.then}", code=verdict.code, then=verdict.then
            )
        reason = getattr(verdict, "reason", failure.message)
        return VenueUnreachableError(f"{what}: {reason} ({attempts} attempts); nothing was changed, ask again later")

    def _only_row(self, method: str, params: Mapping[str, Any]) -> tuple[rows.Row, int]:
        reply = self._ask(method, params)
        found = rows.rows_of(reply.result)
        if len(found) != 1:
            raise rows.RowError(f"{self._venue} {method}: {len(found)} rows where there must be one")
        return found[0], reply.server_ms

    def _pages(self, method: str, params: Mapping[str, Any], *, attempts: int = ATTEMPTS) -> list[rows.Row]:
        """Return all rows of all pages."""
        found: list[rows.Row] = []
        cursor = ""
        for _ in range(_PAGES):
            reply = self._ask(method, {**params, "cursor": cursor} if cursor else params, attempts=attempts)
            found += rows.rows_of(reply.result)
            following = rows.word(reply.result, "nextPageCursor", "")
            if not following:
                return found
            if following == cursor:
                raise rows.RowError(f"{self._venue} {method}: a page names itself as the next one")
            cursor = following
        raise rows.RowError(f"{self._venue} {method}: more than {_PAGES} pages; ask for less at once")

    def _since(
        self, method: str, since_ms: int, span_ms: int, params: Mapping[str, Any], *, attempts: int = ATTEMPTS
    ) -> list[rows.Row]:
        """Return rows from an instant to now, in windows as long as Bybit allows."""
        found: list[rows.Row] = []
        start = since_ms
        while self._clock.now_ms() - start >= span_ms - SLACK_MS:
            window = {"startTime": start, "endTime": start + span_ms}
            found += self._pages(method, {**params, **window}, attempts=attempts)
            start += span_ms
        # the last window is open: its end is the exchange's present, not ours
        return found + self._pages(method, {**params, "startTime": start}, attempts=attempts)

    def check_clock(self) -> ClockCheck:
        """Measure the clocks with the quickest of three questions.

        Raises
        ------
        VenueClockError
            If even that one took so long that the bound could be hidden in it.
        VenueUnreachableError, VenueRefusedError
            As any question.
        """
        best: ClockCheck | None = None
        for _ in range(3):
            before = self._clock.now_ms()
            reply = self._ask("get_server_time")
            after = self._clock.now_ms()
            middle = (before + after) // 2
            made = ClockCheck(middle - reply.server_ms, after - before, after)
            best = made if best is None or made.round_trip_ms < best.round_trip_ms else best
            if best.round_trip_ms <= self._bound_ms // 2:
                break
        assert best is not None
        with self._lock:
            self._checked = best
        if best.round_trip_ms // 2 > self._bound_ms:
            self._forget_clock()
            raise VenueClockError(
                f"{self._venue}: a question for the time took {best.round_trip_ms} ms, too long to tell whether the "
                f"clocks differ by less than {self._bound_ms} ms; look at the network"
            )
        return best

    def instrument(self, symbol: str) -> Instrument:
        """Return the rules of an instrument that trades; read at most once a day and after a refusal that doubts them.

        Raises
        ------
        BrokerError
            One of its kinds; :class:`~mlbot_core.execution.bybit_rows.SymbolNotTradingError` where it does not trade.
        """
        with self._lock:
            at, known = self._instruments.get(symbol, (0, None))
        now = self._clock.now_ms()
        if known is not None and now - at < INSTRUMENT_VALID_MS:
            return known
        row, _ = self._only_row("get_instruments_info", {**LINEAR, "symbol": symbol})
        read = rows.read_instrument(row)
        with self._lock:
            self._instruments[symbol] = (now, read)
        return read

    def ticker(self, symbol: str) -> Ticker:
        """Return prices of now; ``at_ms`` is the exchange's time of the answer."""
        row, at = self._only_row("get_tickers", {**LINEAR, "symbol": symbol})
        read = rows.read_ticker(row, at)
        with self._lock:
            self._last[symbol] = (self._clock.now_ms(), read.last)
        return read

    def position(self, symbol: str) -> PositionSnapshot:
        """Return the position, also when flat."""
        reply = self._ask("get_positions", {**LINEAR, "symbol": symbol})
        found = [rows.read_position(row) for row in rows.rows_of(reply.result)]
        if len(found) != 1:
            raise rows.RowError(f"{self._venue}: {len(found)} positions in {symbol} where there must be one")
        return found[0]

    def positions(self) -> tuple[PositionSnapshot, ...]:
        """Return every position that settles in USDT and is not flat."""
        found = self._pages("get_positions", {**LINEAR, "settleCoin": "USDT", "limit": 200})
        return tuple(position for position in map(rows.read_position, found) if not position.flat)

    def wallet(self) -> WalletSnapshot:
        """Return the account."""
        row, at = self._only_row("get_wallet_balance", {"accountType": "UNIFIED"})
        return rows.read_wallet(row, at)

    def open_orders(self, symbol: str) -> tuple[OrderSnapshot, ...]:
        """Return all open orders, stops included, oldest first."""
        listed = self._pages("get_open_orders", {**LINEAR, "symbol": symbol, "limit": 50})
        # newest first on the wire, also within a millisecond
        found = [rows.read_order(row) for row in reversed(listed)]
        unique = {order.order_id: order for order in found if not order.terminal}
        return tuple(sorted(unique.values(), key=lambda order: order.created_ms))

    def order(self, symbol: str, order_link_id: str) -> OrderSnapshot | None:
        """Return one order of the last week whatever its state: the open and recent ones, then the history."""
        return self._order(symbol, order_link_id, None, ATTEMPTS)

    def _order(self, symbol: str, order_link_id: str, around_ms: int | None, attempts: int) -> OrderSnapshot | None:
        window = {} if around_ms is None else {"startTime": around_ms - SLACK_MS}
        named = {**LINEAR, "symbol": symbol, "orderLinkId": order_link_id}
        for method, more in (("get_open_orders", {}), ("get_order_history", window)):
            reply = self._ask(method, {**named, **more}, attempts=attempts)
            found = [rows.read_order(row) for row in rows.rows_of(reply.result)]
            if any(order.order_link_id != order_link_id for order in found) or len(found) > 1:
                raise rows.RowError(f"{self._venue} {method}: not the one order {order_link_id} that was asked for")
            if found:
                return found[0]
        return None

    def executions_since(self, symbol: str, since_ms: int) -> tuple[Execution, ...]:
        """Return the executions of all kinds from ``since_ms`` (UTC) to now, oldest first, each once."""
        return executions_of(
            self._since("get_executions", since_ms, WEEK_MS, {**LINEAR, "symbol": symbol, "limit": 100})
        )

    def wallet_events_since(self, since_ms: int) -> tuple[WalletEvent, ...]:
        """Return the transaction log from ``since_ms`` (UTC) to now, oldest first, each once."""
        found = self._since("get_transaction_log", since_ms, DAY_MS, {"accountType": "UNIFIED", "limit": 50})
        # newest first on the wire, also within a millisecond
        unique = {event.event_id: event for event in map(rows.read_wallet_event, reversed(found))}
        return tuple(sorted(unique.values(), key=lambda event: event.at_ms))

    def api_key_info(self) -> ApiKeyInfo:
        """Return what the key may do."""
        return rows.read_key_info(self._ask("get_api_key_information").result, self._signer.fingerprint)

    def _forget_clock(self) -> None:
        with self._lock:
            self._checked = None


def executions_of(found: list[rows.Row]) -> tuple[Execution, ...]:
    """Return executions from rows, oldest first, each once."""
    unique = {execution.exec_id: execution for execution in map(rows.read_execution, reversed(found))}
    return tuple(sorted(unique.values(), key=lambda execution: (execution.exec_ms, execution.seq)))
