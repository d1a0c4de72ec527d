"""The steering wheel of the trading side, under ``/_emulator/exchange``: for tests and drills, without a key."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from mlbot_core.clock import FixedClock, SharedClock
from mlbot_core.emulator.exchange.auth import EMULATOR_UID
from mlbot_core.emulator.exchange.exchange import Exchange
from mlbot_core.emulator.exchange.settlement import EXCHANGE_TRADES
from mlbot_core.emulator.exchange.trade_faults import TradeFaultSchedule
from mlbot_core.errors import UsageError

Body = dict[str, Any]


class Control:
    """Routes over one exchange.

    ``POST advance`` {ms | to_ms}, ``POST deposit`` and ``POST withdraw`` {amount, coin, uid}, ``POST intervene``
    {kind, qty, price, symbol, uid}, ``GET | PUT | DELETE faults``, ``GET faults/log``, ``GET truth``.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        base = "/_emulator/exchange"
        return [
            Route(f"{base}/truth", self._truth, methods=["GET"]),
            Route(f"{base}/faults", self._faults, methods=["GET", "PUT", "DELETE"]),
            Route(f"{base}/faults/log", self._log, methods=["GET"]),
            Route(f"{base}/advance", self._post(self._advance), methods=["POST"]),
            Route(f"{base}/deposit", self._post(lambda body: self._transfer(body, 1)), methods=["POST"]),
            Route(f"{base}/withdraw", self._post(lambda body: self._transfer(body, -1)), methods=["POST"]),
            Route(f"{base}/intervene", self._post(self._intervene), methods=["POST"]),
        ]

    async def _truth(self, _request: Request) -> Response:
        return JSONResponse(self._exchange.truth())

    async def _log(self, _request: Request) -> Response:
        return JSONResponse(self._exchange.faults.log)

    async def _faults(self, request: Request) -> Response:
        try:
            if request.method == "PUT":
                text = (await request.body()).decode("utf-8", "replace")
                self._exchange.install_faults(TradeFaultSchedule.from_json(text))
            elif request.method == "DELETE":
                self._exchange.install_faults(TradeFaultSchedule())
        except (UsageError, TypeError) as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(self._exchange.faults.schedule.to_dict())

    def _post(self, act: Callable[[Body], Body]) -> Any:
        async def answer(request: Request) -> Response:
            try:
                body = json.loads(await request.body() or b"{}")
                if not isinstance(body, dict):
                    raise UsageError("the body is not an object")
                return JSONResponse(act(body))
            except (UsageError, ValueError, KeyError, TypeError, InvalidOperation) as error:
                return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 400)

        return answer

    def _advance(self, body: Body) -> Body:
        clock = self._exchange.clock
        if not isinstance(clock, FixedClock | SharedClock):
            raise UsageError(f"a {type(clock).__name__} cannot be advanced; use MLBOT_CLOCK=fixed: or file:")
        clock.set_ms(int(body["to_ms"]) if "to_ms" in body else clock.now_ms() + int(body["ms"]))
        self._exchange.advance()
        return {"now_ms": clock.now_ms()}

    def _transfer(self, body: Body, sign: int) -> Body:
        amount = Decimal(str(body["amount"]))
        if amount <= 0:
            raise UsageError(f"amount={amount} must be positive")
        self._exchange.transfer(sign * amount, str(body.get("coin", "USDT")), int(body.get("uid", EMULATOR_UID)))
        return {"amount": str(amount)}

    def _intervene(self, body: Body) -> Body:
        kind = str(body["kind"])
        if kind not in EXCHANGE_TRADES:
            raise UsageError(f"kind={kind!r} is not one of {', '.join(EXCHANGE_TRADES)}")
        price = Decimal(str(body["price"])) if body.get("price") is not None else None
        symbol, uid = str(body.get("symbol", "BTCUSDT")), int(body.get("uid", EMULATOR_UID))
        self._exchange.intervene(kind, Decimal(str(body["qty"])), price, symbol, uid)
        return {"kind": kind}
