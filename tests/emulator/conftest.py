"""Markets, servers and clients of the emulator's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final

import httpx
import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import CoinglassOptions, EmulatorServer, SyntheticMarket

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
