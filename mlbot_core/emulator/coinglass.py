"""The Coinglass v4 half of the emulator: an ASGI application with the API's wire format over a synthetic market."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections import Counter
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
from mlbot_core.emulator.faults import ROW_KINDS, Fault, FaultInjector
from mlbot_core.emulator.market import SyntheticMarket
from mlbot_core.emulator.plans import INTERVALS, plan_named
from mlbot_core.emulator.rows import COIN, ENDPOINTS, EXCHANGES, PAIRS, Endpoint, Row
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, MINUTE_MS

DEFAULT_KEY: Final = "emulator-key"
MAX_LIMIT: Final = 1000
MIN_STEP: Final = INTERVALS["5m"].ms

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

    def __post_init__(self) -> None:
        plan_named(self.plan)
        if not self.key:
            raise UsageError("the emulator's key is empty; give one or leave it out")
        if self.calls_per_minute is not None and self.calls_per_minute < 1:
            raise UsageError(f"calls_per_minute={self.calls_per_minute} must be 1 or more")
        if self.overfull not in ("first", "last"):
            raise UsageError(f"overfull={self.overfull!r} must be first or last")


class _Refusal(Exception):
    """An answer other than data: HTTP status, code and message."""

    def __init__(self, status: int, code: str, msg: str) -> None:
        super().__init__(msg)
        self.status = status
        self.body = {"code": code, "msg": msg}


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
    market
        Where the numbers come from.
    clock
        Decides which bar is open, which minute is running and how deep the plan reaches.
    options
        Behaviour towards clients.
    faults
        Asked at every call under ``/api``.
    """

    def __init__(self, market: SyntheticMarket, clock: Clock, options: CoinglassOptions, faults: FaultInjector) -> None:
        self.market = market
        self.clock = clock
        self.options = options
        self.faults = faults
        self.calls: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
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
        except _Refusal as refusal:
            status, body = refusal.status, refusal.body
            self.refused[refusal.body["code"]] += 1
        return self._respond(status, body, hits, path, query, now, call)

    def _authorise(self, request: Request, now: int) -> None:
        given = request.headers.get("CG-API-KEY")
        if given is None:
            raise _Refusal(401, "401", "API key missing.")
        if not hmac.compare_digest(given.encode(), self.options.key.encode()):
            raise _Refusal(401, "401", "API key invalid.")
        # a clock that stands still must not make the minute last for ever: real minutes end it too
        minute = (now // MINUTE_MS, int(time.monotonic() - self._started) // 60)
        if minute != self._minute:
            self._minute, self._used = minute, 0
        if self._used >= self.calls_per_minute:
            raise _Refusal(429, "429", "Too Many Requests")
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
                raise _Refusal(*answers[fault.kind])
            if fault.kind in ("html_502", "truncated_json", "reset"):
                return  # decided when the answer is written

    def _body(
        self, method: str, path: str, query: Mapping[str, str], now: int, row_faults: list[Fault], call: int
    ) -> dict[str, Any]:
        if method != "GET":
            raise _Refusal(405, "405", f"Request method '{method}' is not supported")
        if path == SUBSCRIPTION:
            level = {"level": self.options.plan.upper(), "expire_time": now - now % DAY_MS + 365 * DAY_MS}
            return _success({**level, "expired": False})
        if path == COINS:
            return _success([COIN])
        if path == SUPPORTED_EXCHANGES:
            return _success(list(EXCHANGES))
        endpoint = ENDPOINTS.get(path)
        if endpoint is None:
            raise _Refusal(404, "404", f"Endpoint not found: {path}")
        rows, step = self._rows(endpoint, query, now)
        for fault in row_faults:
            changed = corrupt(rows, fault, step, now)
            if changed != rows:
                self.faults.record(fault, path, query, now, call)
            rows = changed
        return _success(rows)

    def _rows(self, endpoint: Endpoint, query: Mapping[str, str], now: int) -> tuple[list[Row], int]:
        interval = query.get("interval", "")
        # The plan is looked at before anything else about the interval, and before the other parameters.
        if interval in INTERVALS and not self._plan.allows(interval):
            raise _Refusal(200, "403", "The requested interval is not available for your current API plan.")
        for name in endpoint.needs:
            if not query.get(name):
                raise _Refusal(200, "400", f"Required String parameter '{name}' is not present")
        served = interval in INTERVALS and INTERVALS[interval].ms >= MIN_STEP
        if not served or (interval == "2h" and not self.options.native_2h):
            raise _Refusal(200, "400", f"The interval '{interval}' is not supported")
        if query.get("unit", "usd") != "usd":
            raise _Refusal(200, "400", f"The unit '{query['unit']}' is not supported by the emulator, only usd")
        share = _share(endpoint, query)
        timeframe = INTERVALS[interval]
        limit = min(MAX_LIMIT, _integer(query, "limit", MAX_LIMIT, least=1))
        start = _integer(query, "start_time", None)
        end = min(now, _integer(query, "end_time", now))
        earliest = self._plan.earliest_ts(interval, now)
        floor = self.market.start_ms if earliest is None else max(earliest, self.market.start_ms)
        first = timeframe.ceil(floor if start is None else max(floor, start))
        last = timeframe.floor(end)
        if start is None or (self.options.overfull == "last" and "end_time" in query):
            first = max(first, last - (limit - 1) * timeframe.ms)
        else:
            last = min(last, first + (limit - 1) * timeframe.ms)
        return endpoint.build(self.market.bars(endpoint.series, timeframe, first, last, now), share), timeframe.ms

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


def _integer(query: Mapping[str, str], name: str, default: Any, least: int = 0) -> Any:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or not least <= int(text) <= 10**15:
        raise _Refusal(200, "400", f"Parameter '{name}' is invalid: {text[:40]}")
    return int(text)


def _share(endpoint: Endpoint, query: Mapping[str, str]) -> float:
    """Return the factor on the flow; refuses an unknown exchange and the wrong kind of symbol."""
    known = {name.lower(): name for name in EXCHANGES}
    if endpoint.symbol == "pair":
        exchange = known.get(query["exchange"].lower())
        if exchange is None or query["symbol"] != PAIRS[exchange]:
            raise _Refusal(200, "400", "The requested pair does not exist on the exchange.")
        return EXCHANGES[exchange] / EXCHANGES["Binance"]
    if query["symbol"] != COIN:
        raise _Refusal(200, "400", f"The requested symbol does not exist: {query['symbol'][:40]}")
    if "exchange_list" not in endpoint.needs:
        return 1.0
    names = {known.get(name.strip().lower()) for name in query["exchange_list"].split(",")}
    if None in names:
        raise _Refusal(200, "400", f"Unknown exchange in exchange_list: {query['exchange_list'][:80]}")
    return sum(EXCHANGES[name] for name in names if name is not None) / 100


def create_app(api: CoinglassApi, extra: list[BaseRoute] | None = None) -> Starlette:
    """Return the ASGI application of ``api``, with further routes beside it."""
    return Starlette(routes=[*api.routes(), *(extra or [])])
