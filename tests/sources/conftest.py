"""A real HTTP server on loopback that speaks Coinglass v4 over a known truth, and misbehaves on demand."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from pydantic import SecretStr

from mlbot_core.clock import Clock, FixedClock, parse_utc_ms
from mlbot_core.config import Settings, load_settings
from mlbot_core.market.catalogue import CATALOGUE
from mlbot_core.sources.coinglass import CoinglassSource
from mlbot_core.sources.transport import Transport
from mlbot_core.timeframe import Timeframe

SUBSCRIPTION = "/api/user/account/subscription"


@dataclass(frozen=True)
class Reply:
    """One scripted answer: JSON-able body or raw bytes; ``break_with`` tears the connection instead."""

    body: object = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    break_with: str = ""


def truth(series: str, ts: int) -> dict[str, object]:
    """The row that the server has for a bar: a function of its time alone, so every test knows it."""
    n = ts // 60_000
    if series in ("price", "open_interest"):
        base = 1000 + n % 977
        row: dict[str, object] = {"open": base, "high": base + 5, "low": str(base - 5), "close": str(base + 1)}
        return {**row, "volume_usd": str(n % 31 + 0.5)} if series == "price" else row
    if series == "funding_rate":
        return {"open": 0.01, "high": "0.06", "low": "-0.06", "close": round((n % 11 - 5) / 100, 2)}
    if series == "long_short_ratio":
        return {"global_account_long_percent": 40 + n % 20, "global_account_short_percent": 60 - n % 20}
    names = [column.field for column in CATALOGUE[series].columns]
    return {str(name): float(n % 101 + index) for index, name in enumerate(names)}


class _TearingServer(ThreadingHTTPServer):
    """Closes torn connections without the polite goodbye, so that the client sees a reset."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.torn: set[object] = set()

    def shutdown_request(self, request: object) -> None:
        if request in self.torn:
            self.close_request(request)
        else:
            super().shutdown_request(request)


class ScriptedServer:
    """Coinglass over :func:`truth`, up to ``clock`` (the open bar included), with a queue of replies per path."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.level = "ENTERPRISE"
        self.headers = {"API-KEY-MAX-LIMIT": "60000", "API-KEY-USE-LIMIT": "1"}
        self.script: dict[str, deque[Reply]] = defaultdict(deque)
        self.always: dict[str, Reply] = {}
        self.requests: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self.edit: Callable[[str, list[dict[str, object]]], list[dict[str, object]]] = lambda _path, rows: rows
        self.refuse_intervals: set[str] = {"2h", "h2"}
        self.earliest_ms = 0
        self.max_rows = 1000
        self.inclusive = (True, True)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body in one packet: no wait for an acknowledgement

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                outer.respond(self, url.path, dict(parse_qsl(url.query)))

            def log_message(self, *args: object) -> None:
                pass

        self._http = _TearingServer(Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def calls(self, path: str) -> list[dict[str, str]]:
        return [params for called, params, _ in self.requests if called == path]

    def respond(self, handler: BaseHTTPRequestHandler, path: str, params: dict[str, str]) -> None:
        self.requests.append((path, params, dict(handler.headers)))
        if self.script[path]:
            reply = self.script[path].popleft()
        elif path in self.always:
            reply = self.always[path]
        else:
            reply = self.answer(path, params)
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        body = body.replace(b"$KEY", handler.headers.get("CG-API-KEY", "").encode())
        if reply.break_with == "reset":
            linger = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._http.torn.add(handler.connection)
            handler.close_connection = True
            return
        handler.send_response(reply.status)
        for name, value in {**self.headers, **reply.headers}.items():
            handler.send_header(name, value)
        length = len(body) * (2 if reply.break_with == "short" else 1)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(body)
        if reply.break_with == "short":
            handler.close_connection = True

    def answer(self, path: str, params: dict[str, str]) -> Reply:
        if path == SUBSCRIPTION:
            return Reply({"code": "0", "data": {"level": self.level, "expire_time": 1893456000000, "expired": False}})
        series = next((name for name, spec in CATALOGUE.items() if spec.endpoint == path), None)
        if series is None:
            return Reply({"code": "404", "msg": "Endpoint not found"}, status=404)
        if params["interval"] in self.refuse_intervals:
            return Reply({"code": "400", "msg": f"interval {params['interval']} is not supported"})
        interval = params["interval"]
        text = interval if interval[0].isdigit() else f"{interval[1:]}{interval[0]}"
        timeframe = Timeframe.parse(text)
        newest = timeframe.floor(self.clock.now_ms())
        limit = min(int(params["limit"]), self.max_rows)
        first = int(params.get("start_time", newest - (limit - 1) * timeframe.ms))
        last = min(int(params.get("end_time", newest)), newest)
        stamps = [ts for ts in range(timeframe.ceil(max(first, self.earliest_ms)), last + 1, timeframe.ms)]
        stamps = [ts for ts in stamps if (self.inclusive[0] or ts > first) and (self.inclusive[1] or ts < last)]
        rows = [{"time": ts, **truth(series, ts)} for ts in stamps[:limit]]
        return Reply({"code": "0", "msg": "success", "data": self.edit(path, rows)})


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(parse_utc_ms("2025-03-10T12:10:00Z"))


@pytest.fixture
def server(clock: FixedClock) -> Iterator[ScriptedServer]:
    running = ScriptedServer(clock)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def reply() -> type[Reply]:
    return Reply


@pytest.fixture
def row_of() -> Callable[[str, int], dict[str, object]]:
    return truth


@pytest.fixture
def slept() -> list[float]:
    """Pauses before retries, in seconds."""
    return []


@pytest.fixture
def source(server: ScriptedServer, clock: FixedClock, slept: list[float]) -> Iterator[CoinglassSource]:
    transport = Transport(server.url, SecretStr("test-key"), clock, sleep=slept.append)
    with CoinglassSource("coinglass", transport, clock) as opened:
        yield opened


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The shipped configuration with its home in a temporary folder and no API keys."""
    config = tmp_path / "config"
    shutil.copytree(Path(__file__).resolve().parents[2] / "config", config, ignore=shutil.ignore_patterns("api_keys*"))
    return load_settings({"MLBOT_CONFIG_DIR": str(config), "MLBOT_HOME": str(tmp_path / "home")})
