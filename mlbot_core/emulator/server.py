"""The emulator as a running server: uvicorn in a thread on loopback, with a steering wheel under ``/_emulator``."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from mlbot_core.clock import Clock, FixedClock, SharedClock, SystemClock, format_utc, parse_utc_ms
from mlbot_core.emulator import process
from mlbot_core.emulator.bybit_api import BybitApi, BybitOptions
from mlbot_core.emulator.bybit_market import BybitMarket
from mlbot_core.emulator.bybit_public import PublicMarket
from mlbot_core.emulator.coinglass import CoinglassApi, CoinglassOptions, create_app
from mlbot_core.emulator.exchange.control import Control
from mlbot_core.emulator.exchange.exchange import Exchange
from mlbot_core.emulator.exchange.options import ExchangeOptions
from mlbot_core.emulator.exchange.trade_faults import TradeFaultSchedule
from mlbot_core.emulator.exchange.ws import websocket_routes
from mlbot_core.emulator.faults import FaultInjector, FaultSchedule
from mlbot_core.emulator.market import Mode, SyntheticMarket
from mlbot_core.errors import MlbotError, UsageError

DEFAULT_SEED: Final = 20260101
DEFAULT_START_MS: Final = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * 1000
_START_TIMEOUT_S: Final = 10.0
_STOP_TIMEOUT_S: Final = 5.0


class EmulatorError(MlbotError):
    """The emulator did not start or stop."""


class EmulatorServer:
    """A server on 127.0.0.1 over a synthetic market: Coinglass under ``/api``, Bybit under ``/v5``, on one port.

    Parameters
    ----------
    seed, start_ms, mode
        The market; see :class:`mlbot_core.emulator.market.SyntheticMarket`.
    options
        Key, plan and behaviour; see :class:`mlbot_core.emulator.coinglass.CoinglassOptions`.
    bybit
        Behaviour of the other half; see :class:`mlbot_core.emulator.bybit_api.BybitOptions`.
    clock
        The emulator's present; the wall clock by default. Note that limits per minute count this clock's minutes:
        under a clock that stands still the first minute never ends.
    faults
        Schedule to begin with; none by default.
    trading
        Keys, fees and behaviour of the trading side; see
        :class:`mlbot_core.emulator.exchange.exchange.ExchangeOptions`.
    trade_faults
        Schedule of the trading side to begin with.
    port
        0 takes a free one.

    Raises
    ------
    UsageError
        If a value is refused by the market, the options or the schedule.

    Examples
    --------
    >>> from mlbot_core.clock import FixedClock, parse_utc_ms
    >>> with EmulatorServer(clock=FixedClock(parse_utc_ms("2024-02-01"))) as server:
    ...     server.url.startswith("http://127.0.0.1:")
    True
    """

    def __init__(
        self,
        *,
        seed: int = DEFAULT_SEED,
        start_ms: int = DEFAULT_START_MS,
        mode: Mode = "planted",
        options: CoinglassOptions | None = None,
        bybit: BybitOptions | None = None,
        clock: Clock | None = None,
        faults: FaultSchedule | None = None,
        trading: ExchangeOptions | None = None,
        trade_faults: TradeFaultSchedule | None = None,
        port: int = 0,
    ) -> None:
        if not 0 <= port <= 65_535:
            raise UsageError(f"port {port} is not in 0..65535; 0 takes a free one")
        self.clock: Clock = clock if clock is not None else SystemClock()
        # a market that nobody asks for costs nothing: bars are made when they are wanted
        self.markets = {symbol: SyntheticMarket(seed, start_ms, mode, symbol) for symbol in process.COINS}
        self.market = self.markets["BTC"]
        self.faults = FaultInjector(faults if faults is not None else FaultSchedule())
        self.options = options if options is not None else CoinglassOptions()
        self.api = CoinglassApi(self.markets, self.clock, self.options, self.faults)
        self.bybit_options = bybit if bybit is not None else BybitOptions()
        # prices of coins below 10,000 USD are quoted in cents
        ticks = {symbol: 1 if coin.price >= 10_000 else 2 for symbol, coin in process.COINS.items()}
        pairs = {f"{symbol}USDT": BybitMarket(market, ticks[symbol]) for symbol, market in self.markets.items()}
        public = PublicMarket(pairs, self.bybit_options)
        self.exchange = Exchange.synthetic(
            pairs, self.clock, seed=seed, options=trading, public=public, faults=trade_faults
        )
        self.bybit = BybitApi((public,), self.clock, self.bybit_options, self.faults, self.exchange)
        self._port = port
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def key(self) -> str:
        """The API key that the server accepts."""
        return self.options.key

    @property
    def url(self) -> str:
        """Base URL, without a slash at the end.

        Raises
        ------
        EmulatorError
            If the server is not running.
        """
        if self._socket is None:
            raise EmulatorError("the emulator is not running; use it as a context manager or call start()")
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def start(self) -> EmulatorServer:
        """Begin to serve and return when the server answers.

        Raises
        ------
        EmulatorError
            If it runs already, the port is taken, or it does not come up.
        """
        if self._thread is not None:
            raise EmulatorError(f"the emulator is already running at {self.url}")
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", self._port))
        except OSError as error:
            listener.close()
            raise EmulatorError(f"port {self._port} is taken ({error.strerror}); choose another, or 0") from error
        config = uvicorn.Config(
            create_app(self.api, [*self.bybit.routes(), *websocket_routes(self.exchange), *self._admin_routes()]),
            log_config=None,
            log_level="critical",  # a cut connection is a fault that was asked for, not news
            access_log=False,
            lifespan="off",
            ws="websockets-sansio",
            timeout_graceful_shutdown=1,
        )
        self._socket = listener
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="emulator", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.stop()
                raise EmulatorError(f"the emulator did not come up within {_START_TIMEOUT_S:g} s")
            time.sleep(0.002)
        return self

    def stop(self) -> None:
        """Stop serving, cut open connections after a second, and wait for the thread; twice is as good as once.

        Raises
        ------
        EmulatorError
            If the thread does not end.
        """
        server, thread, listener = self._server, self._thread, self._socket
        self._server = self._thread = self._socket = None
        if server is not None and thread is not None:
            server.should_exit = True
            thread.join(_STOP_TIMEOUT_S)
            if thread.is_alive():
                server.force_exit = True
                thread.join(_STOP_TIMEOUT_S)
        if listener is not None:
            listener.close()
        if thread is not None and thread.is_alive():
            raise EmulatorError("the emulator's thread did not end; it ends with the process")

    def __enter__(self) -> EmulatorServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def state(self) -> dict[str, Any]:
        """Return what the server is and how far it has got."""
        now = self.clock.now_ms()
        return {
            "now_ms": now,
            "now": format_utc(now),
            "clock": type(self.clock).__name__,
            "seed": self.market.seed,
            "mode": self.market.mode,
            "start_ms": self.market.start_ms,
            "bars_5m": self.market.generated,
            "plan": self.options.plan,
            "native_2h": self.options.native_2h,
            "calls_per_minute": self.api.calls_per_minute,
        }

    def calls(self) -> dict[str, Any]:
        """Return the number of calls by path and of refusals by code since the start, for both halves."""
        return {
            "total": self.api.calls.total() + self.bybit.calls.total(),
            "by_path": {**self.api.calls, **self.bybit.calls},
            "refused_by_code": dict(self.api.refused + self.bybit.refused),
        }

    def _admin_routes(self) -> list[BaseRoute]:
        return [
            Route("/_emulator/state", self._get_state, methods=["GET"]),
            Route("/_emulator/calls", self._get_calls, methods=["GET"]),
            Route("/_emulator/bybit/requests", self._get_requests, methods=["GET"]),
            Route("/_emulator/coinglass/requests", self._get_coinglass_requests, methods=["GET"]),
            Route("/_emulator/faults", self._faults, methods=["GET", "PUT", "DELETE"]),
            Route("/_emulator/faults/log", self._get_log, methods=["GET"]),
            Route("/_emulator/clock", self._put_clock, methods=["PUT"]),
            *Control(self.exchange).routes(),
        ]

    async def _get_state(self, _request: Request) -> Response:
        return JSONResponse(self.state())

    async def _get_calls(self, _request: Request) -> Response:
        return JSONResponse(self.calls())

    async def _get_requests(self, _request: Request) -> Response:
        """Answer the calls of the Bybit half in order: ``[path, query]`` each."""
        return JSONResponse(list(self.bybit.log))

    async def _get_coinglass_requests(self, _request: Request) -> Response:
        """Answer the calls of the Coinglass half in order: ``path``, ``query``, ``at_ms``, ``elapsed_s`` each."""
        return JSONResponse([asdict(asked) for asked in self.api.log])

    async def _get_log(self, _request: Request) -> Response:
        return JSONResponse(self.faults.log)

    async def _faults(self, request: Request) -> Response:
        if request.method == "PUT":
            try:
                self.faults.install(FaultSchedule.from_json((await request.body()).decode("utf-8", "replace")))
            except UsageError as error:
                return JSONResponse({"error": str(error)}, 400)
        elif request.method == "DELETE":
            self.faults.install(FaultSchedule())
        return JSONResponse(self.faults.schedule.to_dict())

    async def _put_clock(self, request: Request) -> Response:
        """Move a standing clock: ``{"now_ms": 1704067200000}`` or ``{"now": "2024-01-01T00:00:00Z"}``."""
        if not isinstance(self.clock, FixedClock | SharedClock):
            return JSONResponse(
                {"error": f"a {type(self.clock).__name__} cannot be set; use MLBOT_CLOCK=fixed: or file:"}, 409
            )
        try:
            raw = json.loads(await request.body())
            self.clock.set_ms(int(raw["now_ms"]) if "now_ms" in raw else parse_utc_ms(str(raw["now"])))
        except (ValueError, KeyError, TypeError) as error:
            return JSONResponse({"error": f'expected {{"now_ms": number}} or {{"now": ISO time}}: {error}'}, 400)
        return JSONResponse(self.state())
