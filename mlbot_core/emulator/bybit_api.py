"""The Bybit v5 half of the emulator: envelope, IP limit and faults; groups of endpoints are plugged in.

A group is an object with ``handlers``: a mapping of (method, path) to a function from a :class:`Call` to ``result``.
The public market data is one (:mod:`mlbot_core.emulator.bybit_public`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from mlbot_core.clock import Clock
from mlbot_core.emulator.faults import ROW_KINDS, Fault, FaultInjector
from mlbot_core.errors import UsageError

IP_WINDOW_S: Final = 5.0
PARAMETER_ERROR: Final = 10001
RATE_LIMITED: Final = 10006
SERVER_ERROR: Final = 10016
_REMEMBERED_CALLS: Final = 100_000


@dataclass(frozen=True)
class BybitOptions:
    """How the server behaves towards its clients.

    Parameters
    ----------
    ip_calls
        Calls allowed in five seconds from one address; the next is answered with HTTP 403.
    ban_s
        How long everything is answered with HTTP 403 after that, wall seconds; Bybit lifts it after ten minutes.
    both_sides_since_ms
        Samples of open interest from this instant on (UTC ms) carry ``singleOpenInterest``, and ``openInterest`` as
        the sum of both sides; older ones carry ``openInterest`` alone, one side. Whether Bybit's own history changes
        its meaning like this is not documented.
    overfull
        Which end is kept when more candles than ``limit`` lie between both bounds; Bybit does not document it.

    Raises
    ------
    UsageError
        If a limit is below one or ``overfull`` is neither first nor last.
    """

    ip_calls: int = 600
    ban_s: float = 600.0
    both_sides_since_ms: int = 0
    overfull: Literal["first", "last"] = "last"

    def __post_init__(self) -> None:
        if self.ip_calls < 1:
            raise UsageError(f"ip_calls={self.ip_calls} must be 1 or more")
        if self.overfull not in ("first", "last"):
            raise UsageError(f"overfull={self.overfull!r} must be first or last")


class Refusal(Exception):
    """An answer other than a result: HTTP status, ``retCode`` and ``retMsg``."""

    def __init__(self, code: int, message: str, *, status: int = 200) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Call:
    """One request as a handler sees it.

    Parameters
    ----------
    query
        Decoded query parameters.
    now_ms
        The emulator's present, UTC ms.
    faults
        Faults that act on rows, for this call.
    record
        To be told which of them changed something.
    body, headers
        Raw body and lower-case headers, for endpoints that take orders.
    """

    query: Mapping[str, str]
    now_ms: int
    faults: tuple[Fault, ...] = ()
    record: Callable[[Fault], None] = lambda _fault: None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Call], dict[str, Any]]


class Group(Protocol):
    """Endpoints that belong together."""

    @property
    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """Handlers by method and path."""
        ...


class Exchange(Protocol):
    """The trading side, as far as this module knows it; see :mod:`mlbot_core.emulator.exchange`."""

    def owns(self, path: str) -> bool:
        """Say whether it answers a path."""
        ...

    def is_out(self) -> bool:
        """Say whether nothing answers now."""
        ...

    def handle(
        self, method: str, path: str, headers: Mapping[str, str], query: str, body: bytes, address: str
    ) -> TradeAnswer:
        """Answer one request."""
        ...


class TradeAnswer(Protocol):
    """What the trading side answers: HTTP status, headers and body, or nothing, after some silence."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """HTTP headers."""
        ...

    @property
    def body(self) -> bytes:
        """Body."""
        ...

    @property
    def lost(self) -> str:
        """``timeout`` or ``reset`` when nothing is sent."""
        ...

    @property
    def silence_s(self) -> float:
        """How long a timeout stays silent, wall seconds."""
        ...


class _Silence(Response):
    """Sends nothing: waits, or until the client gives up, and cuts the connection."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def __call__(self, _scope: Scope, receive: Receive, _send: Send) -> None:
        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(gone(), self._seconds)
        # uvicorn's request cycle is the owner of ``receive``; only its transport can end a connection without a word
        transport = getattr(getattr(receive, "__self__", None), "transport", None)
        if transport is not None:
            transport.abort()
            await gone()


class _CutOff(Response):
    """Announces the whole body, sends half of it and closes the connection."""

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = bytes(self.body)
        await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})


# What a whole-answer fault says in place of a result. Bybit's error bodies arrive with HTTP 200, but for these.
_ANSWERS: Final[Mapping[str, tuple[int, int, str]]] = {
    "http_429": (429, 429, "System level frequency protection."),
    "body_429": (200, 429, "System level frequency protection."),
    "http_403": (403, 403, "access too frequent"),
    "body_10006": (200, RATE_LIMITED, "Too many visits. Exceeded the API Rate Limit."),
    "http_500": (500, SERVER_ERROR, "Internal server error"),
    "body_500": (200, SERVER_ERROR, "Internal server error"),
}
_TORN: Final = ("html_502", "truncated_json", "reset")


class BybitApi:
    """What all groups share, and the state of the server: calls, refusals, the IP limit.

    Parameters
    ----------
    groups
        Endpoints.
    clock
        The present of the market; the IP limit counts wall seconds.
    options
        Behaviour towards clients.
    faults
        Asked at every call.
    exchange
        The trading side; without one there are only public endpoints.
    """

    def __init__(
        self,
        groups: tuple[Group, ...],
        clock: Clock,
        options: BybitOptions,
        faults: FaultInjector,
        exchange: Exchange | None = None,
    ) -> None:
        self.exchange = exchange
        self.clock = clock
        self.options = options
        self.faults = faults
        self.calls: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.log: deque[tuple[str, dict[str, str]]] = deque(maxlen=_REMEMBERED_CALLS)
        self._handlers = {key: handler for group in groups for key, handler in group.handlers.items()}
        self._paths = {path for _, path in self._handlers}
        self._recent: deque[float] = deque()
        self._banned_until = 0.0

    def routes(self) -> list[BaseRoute]:
        """Return one route that answers everything under ``/v5``."""
        return [Route("/v5/{rest:path}", self.answer, methods=["GET", "POST"])]

    async def answer(self, request: Request) -> Response:
        """Answer one call: the IP limit first, then faults, then the endpoint."""
        path, query, now = request.url.path, dict(request.query_params), self.clock.now_ms()
        self.calls[path] += 1
        self.log.append((path, query))
        number = self.calls.total()
        hits = self.faults.select(path, now)

        def record(fault: Fault) -> None:
            self.faults.record(fault, path, query, now, number)

        for fault in hits:
            if fault.kind == "slow":
                record(fault)
                await asyncio.sleep(fault.seconds or 0.0)
        try:
            self._count_ip()
            self._scripted_refusal(hits, record)
            if self.exchange is not None and (self.exchange.owns(path) or self.exchange.is_out()):
                return await self._trade(self.exchange, request)
            call = Call(
                query,
                now,
                tuple(fault for fault in hits if fault.kind in ROW_KINDS),
                record,
                await request.body(),
                dict(request.headers),
            )
            result = self._handler(request.method, path)(call)
        except Refusal as refusal:
            self.refused[str(refusal.code)] += 1
            return self._respond(refusal.status, refusal.code, refusal.message, {}, now)
        torn = next((fault for fault in hits if fault.kind in _TORN), None)
        response = self._respond(200, 0, "OK", result, now)
        return response if torn is None else self._torn(torn, response, record)

    async def _trade(self, exchange: Exchange, request: Request) -> Response:
        address = request.client.host if request.client else ""
        answer = exchange.handle(
            request.method,
            request.url.path,
            dict(request.headers),
            request.url.query,
            await request.body(),
            address,
        )
        if answer.lost:
            return _Silence(answer.silence_s if answer.lost == "timeout" else 0.0)
        return Response(answer.body, answer.status, dict(answer.headers))

    def _handler(self, method: str, path: str) -> Handler:
        handler = self._handlers.get((method, path))
        if handler is not None:
            return handler
        if path in self._paths:
            raise Refusal(PARAMETER_ERROR, f"Request method '{method}' is not supported", status=405)
        raise Refusal(10017, "Route not found.", status=404)

    def _count_ip(self) -> None:
        now = time.monotonic()
        while self._recent and now - self._recent[0] >= IP_WINDOW_S:
            self._recent.popleft()
        if now < self._banned_until:
            raise Refusal(403, "access too frequent", status=403)
        if len(self._recent) >= self.options.ip_calls:
            self._banned_until = now + self.options.ban_s
            raise Refusal(403, "access too frequent", status=403)
        self._recent.append(now)

    def _scripted_refusal(self, hits: list[Fault], record: Callable[[Fault], None]) -> None:
        for fault in hits:
            if fault.kind in _ANSWERS:
                record(fault)
                status, code, message = _ANSWERS[fault.kind]
                raise Refusal(code, message, status=status)
            if fault.kind in _TORN:
                return  # decided when the answer is written

    def _respond(self, status: int, code: int, message: str, result: Mapping[str, Any], now: int) -> Response:
        headers = {"Timenow": str(now)}
        if code == RATE_LIMITED:
            headers |= {"X-Bapi-Limit-Status": "0", "X-Bapi-Limit-Reset-Timestamp": str(now + 1000)}
        body = {"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": now}
        return Response(json.dumps(body, separators=(",", ":")), status, headers, media_type="application/json")

    def _torn(self, fault: Fault, response: Response, record: Callable[[Fault], None]) -> Response:
        record(fault)
        text = bytes(response.body)
        if fault.kind == "html_502":
            page = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
            return Response(page, 502, media_type="text/html")
        if fault.kind == "truncated_json":
            return Response(text[: max(1, len(text) * 3 // 5)], 200, media_type="application/json")
        return _CutOff(text, 200, media_type="application/json")
