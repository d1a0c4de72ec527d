"""Markets, servers and clients of the emulator's tests."""

from __future__ import annotations

import hashlib
import hmac
import json
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final

import httpx
import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import CoinglassOptions, EmulatorServer, SyntheticMarket
from mlbot_core.emulator.exchange import (
    DEFAULT_TRADE_KEY,
    DEFAULT_TRADE_SECRET,
    Answer,
    Exchange,
    ExchangeOptions,
    PathFeed,
    Point,
)

START = parse_utc_ms("2024-01-01")
NOW = parse_utc_ms("2024-08-01T10:37:21Z")


@pytest.fixture(scope="session")
def start_ms() -> int:
    return START


@pytest.fixture(scope="session")
def now_ms() -> int:
    return NOW


@pytest.fixture(scope="session")
def planted() -> SyntheticMarket:
    return SyntheticMarket(7, START, "planted")


PARAMS: Final[dict[str, dict[str, str]]] = {
    "/api/futures/price/history": {"exchange": "Binance", "symbol": "BTCUSDT"},
    "/api/futures/open-interest/aggregated-history": {"symbol": "BTC", "unit": "usd"},
    "/api/futures/funding-rate/oi-weight-history": {"symbol": "BTC"},
    "/api/futures/global-long-short-account-ratio/history": {"exchange": "Binance", "symbol": "BTCUSDT"},
    "/api/futures/liquidation/aggregated-history": {"exchange_list": "Binance,OKX,Bybit", "symbol": "BTC"},
    "/api/futures/aggregated-taker-buy-sell-volume/history": {
        "exchange_list": "Binance,OKX,Bybit",
        "symbol": "BTC",
        "unit": "usd",
    },
}


class Client:
    """A bare HTTP client: it knows the header and the parameters, nothing else."""

    def __init__(self, server: EmulatorServer, http: httpx.Client, clock: FixedClock) -> None:
        self.server = server
        self.http = http
        self.clock = clock
        self.params = PARAMS

    def get(self, path: str, *, without: str | None = None, **query: Any) -> httpx.Response:
        params = {**PARAMS.get(path, {}), **query}
        params.pop(without or "", None)
        return self.http.get(path, params=params)

    def rows(self, path: str, **query: Any) -> list[dict[str, Any]]:
        response = self.get(path, **query)
        body = response.json()
        assert response.status_code == 200, body
        assert body["code"] == "0", body
        return body["data"]

    def put(self, path: str, body: Any) -> httpx.Response:
        return self.http.put(path, json=body)


Connect = Callable[..., Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Start a server with the given options and hand out a client of it; all are stopped at the end."""
    with ExitStack() as stack:

        def make(*, now: int = NOW, seed: int = 7, key: str | None = "emulator-key", **options: Any) -> Client:
            clock = FixedClock(now)
            faults = options.pop("faults", None)
            server = stack.enter_context(
                EmulatorServer(
                    seed=seed, start_ms=START, options=CoinglassOptions(**options), clock=clock, faults=faults
                )
            )
            headers = {"accept": "application/json", **({"CG-API-KEY": key} if key is not None else {})}
            http = stack.enter_context(httpx.Client(base_url=server.url, headers=headers, timeout=20, trust_env=False))
            return Client(server, http, clock)

        yield make


class Trader:
    """A signing client of an exchange in process: it knows the headers, nothing else."""

    def __init__(self, exchange: Exchange, key: str = DEFAULT_TRADE_KEY, secret: str = DEFAULT_TRADE_SECRET) -> None:
        self.exchange = exchange
        self.clock = exchange.clock
        self.key = key
        self.secret = secret

    def send(self, method: str, path: str, address: str = "127.0.0.1", window: str = "5000", **params: Any) -> Answer:
        stamp = str(self.exchange.clock.now_ms())
        query = urllib.parse.urlencode(params) if method == "GET" else ""
        body = "" if method == "GET" else json.dumps(params)
        signature = hmac.new(
            self.secret.encode(), (stamp + self.key + window + query + body).encode(), hashlib.sha256
        ).hexdigest()
        headers = {
            "X-BAPI-API-KEY": self.key,
            "X-BAPI-TIMESTAMP": stamp,
            "X-BAPI-RECV-WINDOW": window,
            "X-BAPI-SIGN": signature,
        }
        return self.exchange.handle(method, path, headers, query, body.encode(), address)

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        return self.send("GET", path, **params).json()

    def post(self, path: str, **params: Any) -> dict[str, Any]:
        return self.send("POST", path, **params).json()

    def order(self, side: str, qty: str, price: str | None = None, **more: Any) -> dict[str, Any]:
        """Create an order: a limit order where there is a price, else a market order."""
        params = {"category": "linear", "symbol": "BTCUSDT", "side": side, "qty": qty, **more}
        params |= {"orderType": "Market"} if price is None else {"orderType": "Limit", "price": price}
        return self.post("/v5/order/create", **params)

    def ok(self, side: str, qty: str, price: str | None = None, **more: Any) -> str:
        """Create an order that has to be accepted; returns its id."""
        answer = self.order(side, qty, price, **more)
        assert answer["retCode"] == 0, answer
        return answer["result"]["orderId"]

    def row(self, order_id: str) -> dict[str, Any]:
        (row,) = self.get("/v5/order/realtime", category="linear", orderId=order_id)["result"]["list"]
        return row

    def open_orders(self) -> list[dict[str, Any]]:
        return self.get("/v5/order/realtime", category="linear", symbol="BTCUSDT", limit=50)["result"]["list"]

    def position(self) -> dict[str, Any]:
        (row,) = self.get("/v5/position/list", category="linear", symbol="BTCUSDT")["result"]["list"]
        return row

    def wallet(self) -> dict[str, Any]:
        (row,) = self.get("/v5/account/wallet-balance", accountType="UNIFIED")["result"]["list"]
        return row

    def log(self) -> list[dict[str, Any]]:
        return self.exchange.truth()["accounts"]["100001"]["transaction_log"]

    def fills(self) -> list[dict[str, Any]]:
        return self.exchange.truth()["accounts"]["100001"]["executions"]


TradeOn = Callable[..., Trader]


@pytest.fixture
def trade_on() -> TradeOn:
    """Make an exchange over a price path ``[(ts, last[, mark]), ...]`` and hand out a trader on it."""

    def make(*points: tuple[Any, ...], options: ExchangeOptions | None = None, **feed: Any) -> Trader:
        path = PathFeed([Point(*point) for point in points], **feed)
        clock = FixedClock(points[0][0])
        limits = options if options is not None else ExchangeOptions(limits="off")
        return Trader(Exchange({"BTCUSDT": path}, clock, seed=7, options=limits))

    return make
