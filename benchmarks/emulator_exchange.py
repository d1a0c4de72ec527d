"""How fast the trading emulator answers: requests a second in process and over sockets, schedules of 50 bars a second.

One client, one request after the other; every request is signed and verified. ``--json`` makes the last line of
stdout one JSON object; ``--quick`` is a smoke run.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import time
import urllib.parse
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import httpx

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import EmulatorServer, SyntheticMarket
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.bybit_market import BybitMarket
from mlbot_core.emulator.bybit_public import PublicMarket
from mlbot_core.emulator.exchange import (
    DEFAULT_TRADE_KEY,
    DEFAULT_TRADE_SECRET,
    Exchange,
    ExchangeOptions,
    random_schedule,
)
from mlbot_core.timeframe import DAY_MS, HOUR_MS

START = parse_utc_ms("2024-01-01")
NOW = START + 30 * DAY_MS
BTC = {"category": "linear", "symbol": "BTCUSDT"}
BAR_MS = 2 * HOUR_MS
Send = Callable[[str, str, dict[str, str], str, bytes], None]
UNLIMITED = ExchangeOptions(limits="off")


class Client:
    """Signs requests and hands them to a transport."""

    def __init__(self, send: Send, clock: FixedClock) -> None:
        self.send = send
        self.clock = clock
        self.count = 0

    def call(self, method: str, path: str, **params: Any) -> None:
        stamp = str(self.clock.now_ms())
        query = urllib.parse.urlencode(params) if method == "GET" else ""
        body = json.dumps(params) if method == "POST" else ""
        text = stamp + DEFAULT_TRADE_KEY + "5000" + query + body
        headers = {
            "X-BAPI-API-KEY": DEFAULT_TRADE_KEY,
            "X-BAPI-TIMESTAMP": stamp,
            "X-BAPI-RECV-WINDOW": "5000",
            "X-BAPI-SIGN": hmac.new(DEFAULT_TRADE_SECRET.encode(), text.encode(), hashlib.sha256).hexdigest(),
        }
        self.send(method, path, headers, query, body.encode())
        self.count += 1


def requests_of(client: Client) -> dict[str, Callable[[], None]]:
    numbers = iter(range(10**9))
    return {
        "position/list": lambda: client.call("GET", "/v5/position/list", **BTC),
        "wallet-balance": lambda: client.call("GET", "/v5/account/wallet-balance", accountType="UNIFIED"),
        "order/realtime": lambda: client.call("GET", "/v5/order/realtime", **BTC),
        "order/create (market)": lambda: client.call(
            "POST",
            "/v5/order/create",
            **BTC,
            side="Buy" if next(numbers) % 2 else "Sell",
            orderType="Market",
            qty="0.001",
            orderLinkId=f"bench-{next(numbers)}",
        ),
    }


def rate(call: Callable[[], None], count: int) -> float:
    call()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return count / (time.perf_counter() - begin)


def market() -> BybitMarket:
    return BybitMarket(SyntheticMarket(7, START))


def in_process(shared: BybitMarket, seed: int | None = None) -> tuple[Exchange, Client]:
    clock = FixedClock(NOW)
    schedule = random_schedule(seed, NOW, NOW + 50 * BAR_MS) if seed is not None else None
    exchange = Exchange.synthetic(
        {"BTCUSDT": shared},
        clock,
        options=UNLIMITED,
        public=PublicMarket({"BTCUSDT": shared}, BybitOptions()),
        faults=schedule,
    )

    def send(method: str, path: str, headers: dict[str, str], query: str, body: bytes) -> None:
        exchange.handle(method, path, headers, query, body)

    return exchange, Client(send, clock)


def run_schedule(shared: BybitMarket, seed: int, bars: int) -> int:
    """One seeded fault schedule: ten requests a bar, a position with a stop for every other one."""
    exchange, client = in_process(shared, seed)
    for bar in range(bars):
        client.call("GET", "/v5/market/time")
        client.call("GET", "/v5/market/tickers", **BTC)
        client.call("GET", "/v5/account/wallet-balance", accountType="UNIFIED")
        client.call("GET", "/v5/position/list", **BTC)
        client.call("GET", "/v5/order/realtime", **BTC)
        last = exchange.contracts["BTCUSDT"].quote(client.clock.now_ms()).last
        wish: dict[str, Any] = {"side": "Sell", "reduceOnly": True}
        if bar % 2 == 0:
            wish = {"side": "Buy", "stopLoss": str((last * Decimal("0.98")).quantize(Decimal("0.1")))}
        link = f"{seed}-{bar}"
        client.call("POST", "/v5/order/create", **BTC, **wish, orderType="Market", qty="0.1", orderLinkId=link)
        for path in ("/v5/order/realtime", "/v5/order/history", "/v5/execution/list"):
            client.call("GET", path, **BTC, orderLinkId=link)
        client.call("GET", "/v5/position/list", **BTC)
        client.clock.sleep(BAR_MS / 1000)
    exchange.truth()
    return client.count


def over_sockets(count: int) -> dict[str, float]:
    clock = FixedClock(NOW)
    options = BybitOptions(ip_calls=10_000_000)
    server = EmulatorServer(seed=7, start_ms=START, clock=clock, bybit=options, trading=UNLIMITED)
    with server, httpx.Client(base_url=server.url, trust_env=False) as http:

        def send(method: str, path: str, headers: dict[str, str], query: str, body: bytes) -> None:
            url = f"{path}?{query}" if query else path
            answer = http.request(method, url, headers=headers, content=body or None)
            if answer.status_code != 200:
                raise RuntimeError(f"{path}: HTTP {answer.status_code}")

        return {name: rate(call, count) for name, call in requests_of(Client(send, clock)).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="last line of stdout is one JSON object")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    args = parser.parse_args()
    count, schedules, bars = (50, 2, 10) if args.quick else (2000, 20, 50)
    shared = market()
    run_schedule(shared, 0, 2)
    _, client = in_process(shared)
    inside = {name: rate(call, count) for name, call in requests_of(client).items()}
    outside = over_sockets(count)
    begin = time.perf_counter()
    requests = sum(run_schedule(shared, seed, bars) for seed in range(schedules))
    seconds = time.perf_counter() - begin
    print(f"{'request':24}{'in process':>14}{'over sockets':>14}   requests/s")
    for name in inside:
        print(f"{name:24}{inside[name]:14,.0f}{outside[name]:14,.0f}")
    print(f"\n{schedules} fault schedules of {bars} bars in process: {seconds / schedules * 1000:,.0f} ms each")
    print(f"{requests / seconds:,.0f} requests/s, the time that passes between bars included")
    if args.json:
        result = {
            "in_process_per_s": inside,
            "sockets_per_s": outside,
            "schedule_ms": seconds / schedules * 1000,
            "schedule_requests_per_s": requests / seconds,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
