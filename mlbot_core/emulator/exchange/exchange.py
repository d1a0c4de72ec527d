"""The exchange as an object: requests in, answers out, no sockets; servers and in-process clients share it."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections import deque
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

from mlbot_core.clock import Clock, SystemClock
from mlbot_core.emulator.bybit_api import Call, Group, Refusal
from mlbot_core.emulator.bybit_market import BybitMarket
from mlbot_core.emulator.exchange import rest_account, rest_orders
from mlbot_core.emulator.exchange.account import SETTLE_COIN, Account
from mlbot_core.emulator.exchange.auth import EMULATOR_UID, ApiKey, Authenticator, RateLimiter, RateRefusal
from mlbot_core.emulator.exchange.context import Context
from mlbot_core.emulator.exchange.contract import Contract
from mlbot_core.emulator.exchange.engine import Engine
from mlbot_core.emulator.exchange.feed import Feed, SyntheticFeed
from mlbot_core.emulator.exchange.feed_public import FeedPublic
from mlbot_core.emulator.exchange.options import Answer, ExchangeOptions
from mlbot_core.emulator.exchange.params import read_body
from mlbot_core.emulator.exchange.rules import rules_of
from mlbot_core.emulator.exchange.settlement import close_by_exchange, tell_wallet
from mlbot_core.emulator.exchange.streams import Hub, Stream
from mlbot_core.emulator.exchange.trade_faults import (
    LOST_KINDS,
    ORDER_KINDS,
    REFUSED_KINDS,
    TradeFault,
    TradeFaults,
    TradeFaultSchedule,
)
from mlbot_core.errors import UsageError

_REMEMBERED: Final = 200_000
_PUBLIC: Final = "/v5/market/"
# Not offered in demo trading.
_NOT_ON_DEMO: Final = ("/v5/account/fee-rate", "/v5/order/disconnected-cancel-all")
_REFUSALS: Final[Mapping[str, tuple[int, int, str]]] = {
    "body_10006": (200, 10006, "Too many visits. Exceeded the API Rate Limit."),
    "body_10018": (200, 10018, "Exceeded the IP Rate Limit."),
    "http_403": (403, 403, "access too frequent"),
    "http_429": (429, 429, "System level frequency protection."),
}
_SPOILT: Final[Mapping[str, tuple[int, int, str]]] = {
    "http_500": (500, 10016, "Internal server error"),
    "body_10000": (200, 10000, "Server Timeout"),
    "body_10016": (200, 10016, "Server error."),
}


class Exchange:
    """Bybit v5 for linear contracts in one-way mode and cross margin, over a market that is a function of time.

    The same requests at the same times of the clock give the same state, however often it is looked at in between.

    Parameters
    ----------
    feeds
        Market by symbol.
    clock
        Its present.
    seed
        Of order and execution ids.
    options
        Keys, fees, behaviour.
    public
        Public endpoints; by default those that a feed alone can answer.
    faults
        Schedule to begin with.
    """

    def __init__(
        self,
        feeds: Mapping[str, Feed],
        clock: Clock,
        *,
        seed: int = 0,
        options: ExchangeOptions | None = None,
        public: Group | None = None,
        faults: TradeFaultSchedule | None = None,
    ) -> None:
        self.clock = clock
        self.options = options if options is not None else ExchangeOptions()
        self.faults = TradeFaults(faults)
        self.contracts = {symbol: Contract(rules_of(symbol), feed) for symbol, feed in feeds.items()}
        self.auth = Authenticator(self.options.keys)
        self.requests: deque[dict[str, Any]] = deque(maxlen=_REMEMBERED)
        self.lock = threading.RLock()
        self._limiter = RateLimiter()
        self._wall = SystemClock()
        self.public = (public if public is not None else FeedPublic(self.contracts)).handlers
        self._handlers = {**rest_orders.HANDLERS, **rest_account.HANDLERS}
        self._paths = {path for _, path in self._handlers}
        self.engines: dict[int, Engine] = {}
        self.hubs: dict[int, Hub] = {}
        now = clock.now_ms()
        for uid in sorted({key.uid for key in self.options.keys}):
            rules = {symbol: contract.rules for symbol, contract in self.contracts.items()}
            account = Account(uid, rules, seed, self.options.taker, self.options.maker)
            self.hubs[uid] = Hub()
            account.emit = self.hubs[uid].emit
            self.engines[uid] = Engine(account, self.contracts, now)
            if self.options.balance:
                account.post("TRANSFER_IN", SETTLE_COIN, now, cash_flow=self.options.balance)

    @classmethod
    def synthetic(cls, markets: Mapping[str, BybitMarket], clock: Clock, **more: Any) -> Exchange:
        """Return an exchange over synthetic markets by symbol; ``more`` as for the class."""
        return cls({symbol: SyntheticFeed(market) for symbol, market in markets.items()}, clock, **more)

    def owns(self, path: str) -> bool:
        """Say whether a path is one of this object alone: the private ones, and the time (whose skew it knows)."""
        return path in self._paths or path == "/v5/market/time"

    def is_out(self) -> bool:
        """Say whether an outage is on."""
        return self.faults.window("outage", self.clock.now_ms()) is not None

    def server_time(self) -> int:
        """Return the time that the server shows, UTC ms: the clock's, and the skew of a fault."""
        now = self.clock.now_ms()
        return now + self.faults.skew_ms(now)

    def advance(self) -> None:
        """Let every account catch up with the clock."""
        with self.lock:
            now = self.clock.now_ms()
            for engine in self.engines.values():
                engine.advance(now)

    def handle(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        query: str = "",
        body: bytes = b"",
        address: str = "127.0.0.1",
    ) -> Answer:
        """Answer one request.

        Parameters
        ----------
        headers
            In any case of letters.
        query
            Raw, as signed.
        address
            Of the client, for keys that are bound to one.
        """
        with self.lock:
            now = self.clock.now_ms()
            if (fault := self.faults.window("outage", now)) is not None:
                self._note(method, path, now, "lost", fault)
                return Answer(0, {}, b"", "reset")
            if path.startswith(_PUBLIC):
                return self._answer_public(method, path, query)
            return self._answer_private(
                method, path, {name.lower(): value for name, value in headers.items()}, query, body, address
            )

    def _answer_public(self, method: str, path: str, query: str) -> Answer:
        now = self.server_time()
        handler = self.public.get((method, path))
        try:
            if handler is None:
                raise Refusal(10017, "Route not found.", status=404)
            at = now if path == "/v5/market/time" else self.clock.now_ms()
            return self._respond(200, 0, "OK", handler(Call(dict(urllib.parse.parse_qsl(query)), at)), {})
        except Refusal as refusal:
            return self._respond(refusal.status, refusal.code, refusal.message, {}, {})

    def _answer_private(
        self, method: str, path: str, headers: Mapping[str, str], query: str, body: bytes, address: str
    ) -> Answer:
        now = self.clock.now_ms()
        limits: dict[str, str] = {}
        fault: TradeFault | None = None
        link, result, note = "", {}, "OK"
        try:
            handler = self._handlers.get((method, path))
            if handler is None:
                raise Refusal(10017, "Route not found.", status=404)
            if method == "GET" and body.strip():
                raise Refusal(403, "Forbidden: GET request with a body", status=403)
            key = self._authenticate(method, path, headers, query, body, address)
            limits = self._limit(key.uid, path, now)
            params = dict(urllib.parse.parse_qsl(query)) if method == "GET" else read_body(body)
            link = str(params.get("orderLinkId") or "")
            fault = self.faults.select((*LOST_KINDS, *REFUSED_KINDS), path, now)
            if fault is not None and not fault.takes_effect:
                return self._spoil(fault, method, path, now, link, "not carried out", None)
            accident = self.faults.select(ORDER_KINDS, path, now) if path == "/v5/order/create" else None
            engine = self.engines[key.uid]
            engine.advance(now)
            result = handler(Context(key, engine, params, now, accident))
            if accident is not None:
                self.faults.record(accident, now, path, link=link)
            answer = self._respond(200, 0, self._message(path), result, limits)
            note = "carried out"
        except Refusal as refusal:
            note = f"refused {refusal.code}"
            extra = refusal.headers if isinstance(refusal, RateRefusal) else {}
            answer = self._respond(refusal.status, refusal.code, refusal.message, {}, {**limits, **extra})
        if fault is not None:
            return self._spoil(fault, method, path, now, link, note, answer)
        self._note(method, path, now, note, None, link)
        return answer

    def _authenticate(
        self, method: str, path: str, headers: Mapping[str, str], query: str, body: bytes, address: str
    ) -> ApiKey:
        wall = self.options.auth_time == "wall"
        now = self._wall.now_ms() + self.faults.skew_ms(self.clock.now_ms()) if wall else self.server_time()
        payload = query if method == "GET" else body.decode("utf-8", "replace")
        key = self.auth.check(headers, payload, address, now)
        if method == "POST" and (key.read_only or not key.trade):
            raise Refusal(10005, "Permission denied, please check your API key permissions.")
        if self.options.demo and path in _NOT_ON_DEMO:
            raise Refusal(10032, "Demo trading are not supported.")
        return key

    def _limit(self, uid: int, path: str, now: int) -> dict[str, str]:
        burst = self.faults.window("rate_burst", now)
        if self.options.limits == "off" and burst is None:
            return {}
        at = self._wall.now_ms() if self.options.limits == "wall" else now
        return self._limiter.count(uid, path, at, burst.limit if burst is not None else None)

    def _message(self, path: str) -> str:
        return "" if path == "/v5/user/query-api" else "OK"

    def _respond(self, status: int, code: int, message: str, result: Any, headers: Mapping[str, str]) -> Answer:
        now = self.server_time()
        body = {"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": now}
        sent = {"Content-Type": "application/json", "Timenow": str(now), **headers}
        return Answer(status, sent, json.dumps(body, separators=(",", ":")).encode())

    def _spoil(
        self, fault: TradeFault, method: str, path: str, now: int, link: str, note: str, answer: Answer | None
    ) -> Answer:
        """Return what a fault makes of an answer (None: there is none, nothing was done)."""
        self.faults.record(fault, now, path, link=link, note=note)
        self._note(method, path, now, note, fault, link)
        if fault.kind in ("timeout", "reset"):
            return Answer(0, {}, b"", "timeout" if fault.kind == "timeout" else "reset", fault.silence_s)
        if fault.kind == "http_502":
            page = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
            return Answer(502, {"Content-Type": "text/html"}, page)
        if fault.kind == "truncated_json" and answer is not None:
            return Answer(answer.status, answer.headers, answer.body[: max(1, len(answer.body) * 3 // 5)])
        if fault.kind == "reject":
            return self._respond(200, fault.code or 0, fault.message or "rejected", {}, {})
        status, code, message = {**_REFUSALS, **_SPOILT}[fault.kind]
        late = RateRefusal(0, now + 1000).headers if code == 10006 else {}
        return self._respond(status, code, message, {}, late)

    def _note(self, method: str, path: str, now: int, note: str, fault: TradeFault | None, link: str = "") -> None:
        self.requests.append(
            {
                "at_ms": now,
                "method": method,
                "path": path,
                "link": link,
                "note": note,
                "fault": fault.kind if fault is not None else "",
            }
        )

    def authenticate_stream(self, args: object, address: str) -> ApiKey:
        """Return the key of a websocket's ``auth`` operation.

        Raises
        ------
        Refusal
            If it is not to be let in.
        """
        wall = self.options.auth_time == "wall"
        return self.auth.check_stream(args, address, self._wall.now_ms() if wall else self.server_time())

    def install_faults(self, schedule: TradeFaultSchedule) -> None:
        """Replace the schedule of faults."""
        with self.lock:
            self.faults.install(schedule)

    def subscribe(self, uid: int = EMULATOR_UID, topics: tuple[str, ...] = ()) -> Stream:
        """Return a private stream of an account with some topics."""
        with self.lock:
            stream = Stream(uid, self.faults)
            stream.topics.update(topics)
            self.hubs[uid].streams.append(stream)
            return stream

    def transfer(self, amount: Decimal, coin: str = SETTLE_COIN, uid: int = EMULATOR_UID) -> None:
        """Pay in (or out, when negative) now.

        Raises
        ------
        UsageError
            If the account is unknown or would have less than nothing.
        """
        self._change(
            uid,
            lambda engine, now: engine.account.post(
                "TRANSFER_IN" if amount > 0 else "TRANSFER_OUT", coin, now, cash_flow=amount
            ),
            lambda engine: engine.account.wallet.get(coin, Decimal(0)) + amount >= 0 and amount != 0,
            f"{amount} {coin}",
        )

    def intervene(self, kind: str, qty: Decimal, price: Decimal | None, symbol: str, uid: int = EMULATOR_UID) -> None:
        """Close a part of a position as the exchange does: ``AdlTrade``, ``Settle``, ``Delivery`` or ``BustTrade``.

        Without a price it happens at mark.

        Raises
        ------
        UsageError
            If there is no such account or not that much of a position.
        """

        def close(engine: Engine, now: int) -> None:
            mark = self.contracts[symbol].quote(now).mark
            position = engine.account.positions[symbol]
            close_by_exchange(engine.account, position, qty, mark if price is None else price, mark, now, kind=kind)

        self._change(
            uid,
            close,
            lambda engine: symbol in engine.account.positions and 0 < qty <= abs(engine.account.positions[symbol].size),
            f"{kind} of {qty} {symbol}",
        )

    def _change(
        self, uid: int, change: Callable[[Engine, int], Any], possible: Callable[[Engine], bool], what: str
    ) -> None:
        with self.lock:
            engine, now = self.engines.get(uid), self.clock.now_ms()
            if engine is None:
                raise UsageError(f"there is no account {uid}; there are {', '.join(map(str, self.engines))}")
            engine.advance(now)
            if not possible(engine):
                raise UsageError(f"{what} is not possible on account {uid} now")
            change(engine, now)
            tell_wallet(engine.account, now)

    def truth(self) -> dict[str, Any]:
        """Return everything: accounts with orders, executions, wallets, positions, logs; requests; what faults did."""
        with self.lock:
            self.advance()
            now = self.clock.now_ms()
            return {
                "now_ms": now,
                "accounts": {str(uid): self._account_truth(engine, now) for uid, engine in self.engines.items()},
                "requests": list(self.requests),
                "faults": list(self.faults.log),
                "verified": self.auth.verified,
            }

    def _account_truth(self, engine: Engine, now: int) -> dict[str, Any]:
        account = engine.account
        marks = engine.marks(now)
        held = {p.symbol: rest_account.position_row(account, p, marks[p.symbol]) for p in account.positions.values()}
        return {
            "wallet": {coin: str(amount) for coin, amount in account.wallet.items()},
            "balance": rest_account.wallet_row(account, marks),
            "positions": held,
            "orders": [order.row() for order in account.orders.values()],
            "executions": [execution.row() for execution in account.executions],
            "transaction_log": [row.row(account.uid) for row in account.log],
        }
