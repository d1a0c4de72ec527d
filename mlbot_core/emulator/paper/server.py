"""The paper exchange as a server on loopback: one event loop looks, matches and answers; only looking leaves it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlbot_core.clock import Clock, format_utc
from mlbot_core.emulator.exchange.control import Control
from mlbot_core.emulator.exchange.ws import websocket_routes
from mlbot_core.emulator.paper.bybit import LiveBybit, LiveError
from mlbot_core.emulator.paper.exchange import PaperBrokenError, PaperExchange, Setup
from mlbot_core.emulator.server import EmulatorError

RUNNING_FILE: Final = "running.json"
_LOCK_FILE: Final = "paper.lock"


class PaperServer:
    """One paper exchange; ``run`` serves it until a signal.

    Parameters
    ----------
    setup
        Account and behaviour.
    live
        Where prices come from.
    clock
        This machine's.
    poll_s
        Between two looks at the market, seconds.
    port
        0 for the one that the account had last, or any free one.

    Raises
    ------
    EmulatorError
        If another process serves this folder, or the port is taken.
    """

    def __init__(self, setup: Setup, live: LiveBybit, clock: Clock, *, poll_s: float = 1.0, port: int = 0) -> None:
        self._folder = setup.folder
        self._lock = _lock(setup.folder)
        self._clock = clock
        self._poll_s = poll_s
        self.exchange = PaperExchange(setup, live, clock)
        self._listener = _listen(port, None if port else self.exchange.store.meta().get("port"))
        self.exchange.store.put_meta("port", self._listener.getsockname()[1])
        self._gate = asyncio.Lock()
        self._server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        """Base URL, without a slash at the end."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises
        ------
        PaperBrokenError
            If something could not be written down.
        """
        routes = [
            Route("/v5/{rest:path}", self._answer, methods=["GET", "POST"]),
            Route("/_emulator/state", self._state, methods=["GET"]),
            *websocket_routes(self.exchange),
            *Control(self.exchange).routes(),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes),
            log_config=None,
            log_level="critical",
            access_log=False,
            lifespan="off",
            ws="websockets-sansio",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        poll = asyncio.create_task(self._poll())
        announce = asyncio.create_task(self._announce())
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            for task in (poll, announce):
                task.cancel()
            await asyncio.gather(poll, announce, return_exceptions=True)
        if self.exchange.broken:
            raise PaperBrokenError(f"{self.exchange.broken}; see that the disk has room, then start again")

    def close(self) -> None:
        """Let go of port, file and lock."""
        self._listener.close()
        self.exchange.live.close()
        self.exchange.store.close()
        os.close(self._lock)

    def state(self) -> dict[str, Any]:
        """Return what is served and how live it is."""
        now = self._clock.now_ms()
        return {
            "url": self.url,
            "pid": os.getpid(),
            "now_ms": now,
            "now": format_utc(now),
            "uid": self.exchange.uid,
            "symbols": list(self.exchange.feeds),
            "bybit": self.exchange.live.url,
            "price_age_ms": self.exchange.price_age_ms(),
            "paused": self.exchange.stale(),
        }

    async def _announce(self) -> None:
        """Write down where the exchange is, once it answers."""
        while self._server is None or not self._server.started:
            await asyncio.sleep(0.01)
        path, text = self._folder / RUNNING_FILE, json.dumps(self.state())
        draft = path.with_suffix(".draft")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
        # one line for whoever started it
        os.write(1, (text + "\n").encode())

    async def _poll(self) -> None:
        while True:
            async with self._gate:
                await self._observe()
            await asyncio.sleep(self._poll_s)

    async def _observe(self) -> bool:
        try:
            looks = await asyncio.to_thread(self.exchange.look)
            self.exchange.take(looks)
        except LiveError as error:
            self.exchange.problem = str(error)
            return False
        except PaperBrokenError:
            self._end()
            return False
        return True

    def _end(self) -> None:
        if self._server is not None:
            self._server.should_exit = True

    async def _answer(self, request: Request) -> Response:
        body, method, path = await request.body(), request.method, request.url.path
        address = request.client.host if request.client else ""
        asked = (method, path, dict(request.headers), request.url.query, body, address)
        if self.exchange.needs_price(method, path):
            async with self._gate:
                answer = self.exchange.carry_out(await self._observe(), *asked)
        else:
            answer = self.exchange.carry_out(False, *asked)
        if self.exchange.broken:
            self._end()
        if answer.lost:
            # without a word about what became of it, as a server that fell over
            return Response(status_code=502)
        return Response(answer.body, answer.status, dict(answer.headers))

    async def _state(self, _request: Request) -> Response:
        return JSONResponse(self.state())


def _lock(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK_FILE
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise EmulatorError(
            f"a paper exchange serves {folder} already (see {folder / RUNNING_FILE}); use that one"
        ) from None
    return fd


def _listen(port: int, last: int | None) -> socket.socket:
    """Return a listening socket: clients that know the last port find the exchange again after a restart."""
    for wanted in (port or last or 0, port):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", wanted))
        except OSError as error:
            listener.close()
            if wanted == port:
                raise EmulatorError(f"port {port} is taken ({error.strerror}); choose another, or 0") from error
            continue
        return listener
    raise AssertionError("unreachable")
