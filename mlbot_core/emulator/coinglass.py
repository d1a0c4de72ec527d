"""The Coinglass v4 half of the emulator: an ASGI application with the API's wire format over a synthetic market."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from mlbot_core.clock import Clock
from mlbot_core.emulator.corrupt import corrupt
from mlbot_core.emulator.daily import WHOLE
from mlbot_core.emulator.endpoints import DEPTH_RANGES, ENDPOINTS, Endpoint
from mlbot_core.emulator.faults import ROW_KINDS, Fault, FaultInjector
from mlbot_core.emulator.market import SyntheticMarket
from mlbot_core.emulator.plans import INTERVALS, PLANS, plan_named
from mlbot_core.emulator.rows import EXCHANGES, PAIRS, SPOT_PAIRS, Row
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, MINUTE_MS

DEFAULT_KEY: Final = "emulator-key"
MAX_LIMIT: Final = 1000
MIN_STEP: Final = INTERVALS["5m"].ms
_REMEMBERED_CALLS: Final = 100_000

SUBSCRIPTION: Final = "/api/user/account/subscription"
COINS: Final = "/api/futures/supported-coins"
SUPPORTED_EXCHANGES: Final = "/api/futures/supported-exchanges"


@dataclass(frozen=True)
class CoinglassOptions:
    """How the server behaves towards its clients.

    Parameters
    ----------
    key
        The one API key that is accepted. It opens nothing but this emulator.
    plan
        Limits of intervals, history and calls: a name of :data:`mlbot_core.emulator.plans.PLANS`.
    native_2h
        False refuses ``interval=2h`` as an unknown interval: the documentation contradicts itself on it.
    calls_per_minute
        Overrides the plan's limit.
    overfull
        Which end is kept when more than ``limit`` bars lie between both bounds; the real API does not document it.
    legacy_intervals
        True knows intervals by their old spelling only (``h1`` for ``1h``), as single endpoints do.
    wrapped
        True answers with a list holding one object where live answers hold the object itself, as the documentation
        says.

    Raises
    ------
    UsageError
        If the plan is unknown, the key empty or the limit below one.
    """

    key: str = DEFAULT_KEY
    plan: str = "enterprise"
    native_2h: bool = True
    calls_per_minute: int | None = None
    overfull: Literal["first", "last"] = "first"
    legacy_intervals: bool = False
    wrapped: bool = False

    def __post_init__(self) -> None:
        plan_named(self.plan)
        if not self.key:
            raise UsageError("the emulator's key is empty; give one or leave it out")
        if self.calls_per_minute is not None and self.calls_per_minute < 1:
            raise UsageError(f"calls_per_minute={self.calls_per_minute} must be 1 or more")
        if self.overfull not in ("first", "last"):
            raise UsageError(f"overfull={self.overfull!r} must be first or last")


class Refusal(Exception):
    """An answer other than data: HTTP status, code and message."""

    def __init__(self, status: int, code: str, msg: str) -> None:
        super().__init__(msg)
        self.status = status
        self.body = {"code": code, "msg": msg}


@dataclass(frozen=True)
class Asked:
    """One call as it arrived.

    Parameters
    ----------
    path, query
        What was asked for; bounds are texts with UTC ms.
    at_ms
        The emulator's present, UTC ms.
    elapsed_s
        Wall seconds since the server was made, for clocks that stand still.
    """

    path: str
    query: Mapping[str, str]
    at_ms: int
    elapsed_s: float


class _CutOff(Response):
    """Announces the whole body, sends half of it and closes the connection."""

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = bytes(self.body)
        await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})


class CoinglassApi:
    """The endpoints and their state: calls of the running minute, call counts.

    Parameters
    ----------
    markets
        Where the numbers come from, by coin; the first one stands for the whole market.
    clock
        Decides which bar is open, which minute is running and how deep the plan reaches.
    options
        Behaviour towards clients.
    faults
        Asked at every call under ``/api``.
    """

    def __init__(
        self,
        markets: Mapping[str, SyntheticMarket],
        clock: Clock,
        options: CoinglassOptions,
        faults: FaultInjector,
    ) -> None:
        self.markets = markets
        self.clock = clock
        self.options = options
        self.faults = faults
        self.calls: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.log: deque[Asked] = deque(maxlen=_REMEMBERED_CALLS)
        self._plan = plan_named(options.plan)
        self.calls_per_minute = options.calls_per_minute or self._plan.calls_per_minute
        self._minute = (-1, -1)
        self._started = time.monotonic()
        self._used = 0

    def routes(self) -> list[BaseRoute]:
        """Return one route that answers everything under ``/api``."""
        return [Route("/api/{rest:path}", self.answer, methods=["GET", "POST", "PUT", "DELETE", "PATCH"])]

    async def answer(self, request: Request) -> Response:
        """Answer one call: faults first, then refusals, then data."""
        path, query, now = request.url.path, dict(request.query_params), self.clock.now_ms()
        self.calls[path] += 1
        self.log.append(Asked(path, query, now, round(time.monotonic() - self._started, 4)))
        call = self.calls.total()
        hits = self.faults.select(path, now)
        for fault in hits:
            if fault.kind == "slow":
                self.faults.record(fault, path, query, now, call)
                await asyncio.sleep(fault.seconds or 0.0)
        status, body = 200, {}
        try:
            self._authorise(request, now)
            self._transport_refusal(hits, path, query, now, call)
            body = self._body(request.method, path, query, now, [f for f in hits if f.kind in ROW_KINDS], call)
        except Refusal as refusal:
            status, body = refusal.status, refusal.body
            self.refused[refusal.body["code"]] += 1
        return self._respond(status, body, hits, path, query, now, call)

    def _authorise(self, request: Request, now: int) -> None:
        given = request.headers.get("CG-API-KEY")
        if given is None:
            raise Refusal(401, "401", "API key missing.")
        if not hmac.compare_digest(given.encode(), self.options.key.encode()):
            raise Refusal(401, "401", "API key invalid.")
        # a clock that stands still must not make the minute last for ever: real minutes end it too
        minute = (now // MINUTE_MS, int(time.monotonic() - self._started) // 60)
        if minute != self._minute:
            self._minute, self._used = minute, 0
        if self._used >= self.calls_per_minute:
            raise Refusal(429, "429", "Too Many Requests")
        self._used += 1

    def _transport_refusal(self, hits: list[Fault], path: str, query: Mapping[str, str], now: int, call: int) -> None:
        answers = {
            "http_429": (429, "429", "Too Many Requests"),
            "body_429": (200, "429", "Too Many Requests"),
            "http_500": (500, "500", "Server Error"),
            "body_500": (200, "500", "Server Error"),
        }
        for fault in hits:
            if fault.kind in answers:
                self.faults.record(fault, path, query, now, call)
                raise Refusal(*answers[fault.kind])
            if fault.kind in ("html_502", "truncated_json", "reset"):
                return  # decided when the answer is written

    def _body(
        self, method: str, path: str, query: Mapping[str, str], now: int, row_faults: list[Fault], call: int
    ) -> dict[str, Any]:
        if method != "GET":
            raise Refusal(405, "405", f"Request method '{method}' is not supported")
        if path == SUBSCRIPTION:
            level = {"level": self.options.plan.upper(), "expire_time": now - now % DAY_MS + 365 * DAY_MS}
            return _success({**level, "expired": False})
        if path == COINS:
            return _success(list(self.markets))
        if path == SUPPORTED_EXCHANGES:
            return _success(list(EXCHANGES))
        if path in WHOLE:
            data = self._whole(path, query, now)
            for fault in row_faults:
                if fault.kind == "empty_page":
                    self.faults.record(fault, path, query, now, call)
                    data = []
            return _success(data)
        endpoint = ENDPOINTS.get(path)
        if endpoint is None:
            raise Refusal(404, "404", f"Endpoint not found: {path}")
        rows, step = self._rows(endpoint, query, now)
        for fault in row_faults:
            changed = corrupt(rows, fault, step, now)
            if changed != rows:
                self.faults.record(fault, path, query, now, call)
            rows = changed
        return _success(endpoint.finish(rows, step, now))

    def _whole(self, path: str, query: Mapping[str, str], now: int) -> Any:
        whole = WHOLE[path]
        require(whole.needs, query)
        coin = query["symbol"] if "symbol" in whole.needs else next(iter(self.markets))
        if coin not in self.markets:
            raise Refusal(200, "400", f"The requested symbol does not exist: {coin[:40]}")
        try:
            data = whole.build(self.markets[coin], query, now)
        except ValueError as error:
            raise Refusal(200, "400", f"Parameter is invalid: {str(error)[:80]}") from error
        return [data] if self.options.wrapped and isinstance(data, dict) else data

    def _rows(self, endpoint: Endpoint, query: Mapping[str, str], now: int) -> tuple[list[Row], int]:
        if list(PLANS).index(self.options.plan) < list(PLANS).index(endpoint.plan):
            raise Refusal(200, "401", "Upgrade plan")
        interval = _spelled(query.get("interval", ""), self.options.legacy_intervals)
        # The plan is looked at before anything else about the interval, and before the other parameters.
        if interval in INTERVALS and not self._plan.allows(interval):
            raise Refusal(200, "403", "The requested interval is not available for your current API plan.")
        require(endpoint.needs, query)
        served = interval in INTERVALS and INTERVALS[interval].ms >= MIN_STEP
        if not served or (interval == "2h" and not self.options.native_2h):
            raise Refusal(200, "400", f"The interval '{interval}' is not supported")
        if query.get("unit", "usd") != "usd":
            raise Refusal(200, "400", f"The unit '{query['unit']}' is not supported by the emulator, only usd")
        market, share = self._market(endpoint, query)
        timeframe = INTERVALS[interval]
        limit = min(MAX_LIMIT, integer(query, "limit", MAX_LIMIT, least=1))
        start = integer(query, "start_time", None)
        end = min(now, integer(query, "end_time", now))
        earliest = self._plan.earliest_ts(interval, now)
        floor = market.start_ms if earliest is None else max(earliest, market.start_ms)
        first = timeframe.ceil(floor if start is None else max(floor, start))
        last = timeframe.floor(end)
        if start is None or (self.options.overfull == "last" and "end_time" in query):
            first = max(first, last - (limit - 1) * timeframe.ms)
        else:
            last = min(last, first + (limit - 1) * timeframe.ms)
        return endpoint.build(market.bars(endpoint.series, timeframe, first, last, now), share), timeframe.ms

    def _market(self, endpoint: Endpoint, query: Mapping[str, str]) -> tuple[SyntheticMarket, float]:
        """Return the coin's market and the factor on the flow; refuses an unknown exchange and the wrong symbol."""
        coin, share = next(iter(self.markets)), 1.0
        if endpoint.symbol in ("pair", "spot"):
            coin, share = self._pair(PAIRS if endpoint.symbol == "pair" else SPOT_PAIRS, query)
        elif endpoint.symbol == "coin":
            coin = query["symbol"]
            if coin not in self.markets:
                raise Refusal(200, "400", f"The requested symbol does not exist: {coin[:40]}")
            if "exchange" in endpoint.needs and _exchange(query["exchange"]) is None:
                raise Refusal(200, "400", f"Unknown exchange: {query['exchange'][:40]}")
        if "exchange_list" in endpoint.needs:
            names = {_exchange(name) for name in query["exchange_list"].split(",")}
            if None in names:
                raise Refusal(200, "400", f"Unknown exchange in exchange_list: {query['exchange_list'][:80]}")
            share = sum(EXCHANGES[name] for name in names if name is not None) / 100
        if endpoint.ranged:
            width = query.get("range", "1")
            if width not in DEPTH_RANGES:
                raise Refusal(200, "400", f"Parameter 'range' is invalid: {width[:40]}")
            share *= DEPTH_RANGES[width]
        return self.markets[coin], share

    def _pair(self, pairs: Mapping[str, str], query: Mapping[str, str]) -> tuple[str, float]:
        exchange = _exchange(query["exchange"])
        for coin in self.markets if exchange is not None else ():
            if query["symbol"] == pairs[str(exchange)].format(coin=coin):
                return coin, EXCHANGES[str(exchange)] / EXCHANGES["Binance"]
        raise Refusal(200, "400", "The requested pair does not exist on the exchange.")

    def _respond(
        self,
        status: int,
        body: Mapping[str, Any],
        hits: list[Fault],
        path: str,
        query: Mapping[str, str],
        now: int,
        call: int,
    ) -> Response:
        headers = {"API-KEY-MAX-LIMIT": str(self.calls_per_minute), "API-KEY-USE-LIMIT": str(self._used)}
        waits = [f.seconds for f in hits if f.kind == "http_429" and f.seconds is not None]
        if status == 429 and waits:
            headers["Retry-After"] = f"{waits[0]:g}"
        text = json.dumps(body, separators=(",", ":"))
        first = next((f for f in hits if f.kind in ("html_502", "truncated_json", "reset")), None)
        if first is None or status != 200 or body.get("code") != "0":
            return Response(text, status, headers, media_type="application/json")
        self.faults.record(first, path, query, now, call)
        if first.kind == "html_502":
            page = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
            return Response(page, 502, headers, media_type="text/html")
        if first.kind == "truncated_json":
            return Response(text[: max(1, len(text) * 3 // 5)], 200, headers, media_type="application/json")
        return _CutOff(text, 200, headers, media_type="application/json")


def _success(data: Any) -> dict[str, Any]:
    return {"code": "0", "msg": "success", "data": data}


def integer(query: Mapping[str, str], name: str, default: Any, least: int = 0) -> Any:
    """Return a whole number of the query, ``default`` where it is absent; raises :class:`Refusal` for anything else."""
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or not least <= int(text) <= 10**15:
        raise Refusal(200, "400", f"Parameter '{name}' is invalid: {text[:40]}")
    return int(text)


def _exchange(text: str) -> str | None:
    """Return an exchange by its name in any case; None if there is none."""
    return next((name for name in EXCHANGES if name.lower() == text.strip().lower()), None)


def require(names: tuple[str, ...], query: Mapping[str, str]) -> None:
    """Raise :class:`Refusal`, as the API words it, where a parameter is absent or empty."""
    for name in names:
        if not query.get(name):
            raise Refusal(200, "400", f"Required String parameter '{name}' is not present")


def _spelled(interval: str, legacy: bool) -> str:
    """Return the interval as documented; a text that is none where the spelling is the wrong one."""
    if not legacy:
        return interval
    return f"{interval[1:]}{interval[0]}" if interval[:1].isalpha() else f"({interval})"


def create_app(api: CoinglassApi, extra: list[BaseRoute] | None = None) -> Starlette:
    """Return the ASGI application of ``api``, with further routes beside it."""
    return Starlette(routes=[*api.routes(), *(extra or [])])
