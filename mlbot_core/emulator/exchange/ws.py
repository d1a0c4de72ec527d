"""Websocket endpoints: ``/v5/private`` and ``/v5/public/linear``."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable
from typing import Any, Final

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from mlbot_core.emulator.bybit_api import Refusal
from mlbot_core.emulator.exchange.exchange import Exchange
from mlbot_core.emulator.exchange.streams import PRIVATE_TOPICS, Stream
from mlbot_core.emulator.exchange.ws_public import PublicTopics

PUMP_S: Final = 0.02
IDLE_S: Final = 600.0
GOING_AWAY: Final = 1001
_CATEGORISED: Final = tuple(f"{topic}.linear" for topic in PRIVATE_TOPICS)


class _Connection:
    """What both kinds of connection share: reading operations, pushing what is due, heartbeat, the idle cut."""

    def __init__(self, socket: WebSocket, exchange: Exchange, number: int) -> None:
        self.socket = socket
        self.exchange = exchange
        self.conn_id = f"emulator-{number}"

    async def run(self) -> None:
        """Serve until either side ends it."""
        if self.exchange.is_out():
            await self.socket.close(GOING_AWAY)
            return
        await self.socket.accept()
        pump = asyncio.create_task(self._pump())
        try:
            while not pump.done():
                read = asyncio.create_task(self.socket.receive_text())
                await asyncio.wait({read, pump}, timeout=IDLE_S, return_when=asyncio.FIRST_COMPLETED)
                if not read.done():
                    read.cancel()
                    break
                await self._operate(read.result())
        except WebSocketDisconnect:
            pass
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await pump
            self.end()
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await self.socket.close(GOING_AWAY)

    async def _pump(self) -> None:
        while not self.exchange.is_out():
            for message in self.due():
                await self._send(message)
            if self.cut():
                return
            await asyncio.sleep(PUMP_S)

    async def _send(self, message: dict[str, Any]) -> None:
        await self.socket.send_text(json.dumps(message, separators=(",", ":")))

    async def _operate(self, text: str) -> None:
        try:
            asked = json.loads(text)
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            await self._send({"success": False, "ret_msg": "request is not a JSON object", "conn_id": self.conn_id})
            return
        given = asked.get("args")
        args = given if isinstance(given, list) else []
        operation = str(asked.get("op"))
        if operation == "ping":
            await self._send(self.pong(asked.get("req_id")))
            return
        if operation in ("subscribe", "unsubscribe"):
            wrong = self.topics(operation, [str(arg) for arg in args])
        elif operation == "auth":
            wrong = self.authenticate(args)
        else:
            wrong = f"unknown op {operation}"
        answer = {"success": not wrong, "ret_msg": wrong, "op": operation, "conn_id": self.conn_id}
        await self._send({**answer, "req_id": asked["req_id"]} if "req_id" in asked else answer)

    def due(self) -> list[dict[str, Any]]:
        """Return the messages to push now."""
        raise NotImplementedError

    def cut(self) -> bool:
        """Say whether the server ends the connection now."""
        return False

    def end(self) -> None:
        """Let go of everything."""

    def authenticate(self, _args: list[Any]) -> str:
        """Return what is wrong with an ``auth``, or an empty text."""
        return "auth is not needed here"

    def topics(self, operation: str, names: list[str]) -> str:
        """Subscribe or unsubscribe; return what is wrong, or an empty text."""
        raise NotImplementedError

    def pong(self, req_id: Any) -> dict[str, Any]:
        """Return the answer to a ping."""
        raise NotImplementedError


class _Private(_Connection):
    stream: Stream | None = None

    def due(self) -> list[dict[str, Any]]:
        self.exchange.advance()
        return self.stream.poll(self.exchange.clock.now_ms()) if self.stream is not None else []

    def cut(self) -> bool:
        return self.stream is not None and self.stream.closed

    def end(self) -> None:
        if self.stream is not None:
            self.stream.closed = True

    def authenticate(self, args: list[Any]) -> str:
        address = self.socket.client.host if self.socket.client else ""
        try:
            key = self.exchange.authenticate_stream(args, address)
        except Refusal as refusal:
            return refusal.message
        self.stream = self.exchange.subscribe(key.uid)
        return ""

    def topics(self, operation: str, names: list[str]) -> str:
        if self.stream is None:
            return "Request not authorized"
        unknown = [name for name in names if name not in (*PRIVATE_TOPICS, *_CATEGORISED)]
        if unknown or not names:
            return f"error:handler not found,topic:{','.join(unknown)}"
        if any(name in PRIVATE_TOPICS for name in names) and any(name in _CATEGORISED for name in names):
            return "all-in-one topics and categorised topics cannot be in one request"
        if operation == "subscribe":
            self.stream.topics.update(names)
        else:
            self.stream.topics.difference_update(names)
        return ""

    def pong(self, req_id: Any) -> dict[str, Any]:
        answer = {"op": "pong", "args": [str(self.exchange.server_time())], "conn_id": self.conn_id}
        return {"req_id": req_id, **answer} if req_id is not None else answer


class _Public(_Connection):
    def __init__(self, socket: WebSocket, exchange: Exchange, number: int) -> None:
        super().__init__(socket, exchange, number)
        self._topics = PublicTopics(exchange.public)

    def due(self) -> list[dict[str, Any]]:
        return self._topics.poll(self.exchange.clock.now_ms())

    def topics(self, operation: str, names: list[str]) -> str:
        if operation == "unsubscribe":
            for name in names:
                self._topics.unsubscribe(name)
            return ""
        now = self.exchange.clock.now_ms()
        return next((wrong for name in names if (wrong := self._topics.subscribe(name, now))), "")

    def pong(self, req_id: Any) -> dict[str, Any]:
        answer = {"success": True, "ret_msg": "pong", "conn_id": self.conn_id, "op": "ping"}
        return {"req_id": req_id, **answer} if req_id is not None else answer


def websocket_routes(exchange: Exchange) -> list[BaseRoute]:
    """Return the routes of both kinds of websocket."""
    numbers = itertools.count(1)

    def endpoint(kind: type[_Connection]) -> Callable[[WebSocket], Any]:
        async def serve(socket: WebSocket) -> None:
            await kind(socket, exchange, next(numbers)).run()

        return serve

    return [
        WebSocketRoute("/v5/private", endpoint(_Private)),
        WebSocketRoute("/v5/public/linear", endpoint(_Public)),
    ]
