"""An account at the emulator's exchange, reached in process or over sockets, for every broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config.secrets import KeyPair
from mlbot_core.emulator import EmulatorServer, SyntheticMarket
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.bybit_market import BybitMarket
from mlbot_core.emulator.bybit_public import PublicMarket
from mlbot_core.emulator.exchange import ApiKey, Exchange, ExchangeOptions, TradeFault, TradeFaultSchedule
from mlbot_core.emulator.exchange.adapter import InProcess
from mlbot_core.execution.broker import Venue
from mlbot_core.execution.bybit import BybitBroker
from mlbot_core.execution.types import OrderRequest, OrderType, Side, TimeInForce

MARKET_START = parse_utc_ms("2024-01-01")
TRADING_NOW = parse_utc_ms("2024-01-06T10:37:21Z")
# they hold signs that URL encoding changes, and their base64 ends in padding
CANARY_KEY = "canary-key/7Zq+Vx"
CANARY_SECRET = "canary-secret/9mT+pL&w8="
BROKER_KEYS = (
    ApiKey(CANARY_KEY, CANARY_SECRET, parent_uid=1),
    ApiKey("expired", "expired-secret", expires_ms=TRADING_NOW - 1),
    ApiKey("reader", "reader-secret", read_only=True),
    ApiKey("bound", "bound-secret", ips=("10.0.0.7",)),
)


class BrokerBench:
    """A broker, the exchange behind it, and the clock of both."""

    def __init__(self, exchange: Exchange, clock: FixedClock, connect: Callable[..., BybitBroker], kind: str) -> None:
        self.exchange = exchange
        self.clock = clock
        self.kind = kind
        self.connect = connect
        self.url = ""
        self.symbol = "BTCUSDT"
        self.broker = connect()
        self._count = 0

    def faults(self, *lines: TradeFault, seed: int = 0) -> None:
        self.exchange.install_faults(TradeFaultSchedule(tuple(lines), seed))

    def truth(self) -> dict[str, Any]:
        return self.exchange.truth()["accounts"]["100001"]

    def orders(self, link: str) -> list[dict[str, Any]]:
        return [row for row in self.truth()["orders"] if row["orderLinkId"] == link]

    def posts(self, path: str = "") -> int:
        """How many requests that change something have arrived."""
        return sum(note["method"] == "POST" and path in note["path"] for note in self.exchange.requests)

    def order(self, side: str = "Buy", qty: str = "0.01", price: Decimal | None = None, **more: Any) -> OrderRequest:
        self._count += 1
        limit = price is not None
        return OrderRequest(
            order_link_id=more.pop("link", f"conformance-{self._count}"),
            symbol=self.symbol,
            side=Side(side),
            order_type=OrderType.LIMIT if limit else OrderType.MARKET,
            qty=Decimal(qty),
            price=price,
            time_in_force=more.pop("tif", TimeInForce.GTC if limit else TimeInForce.IOC),
            **more,
        )

    def away(self, side: str = "Buy") -> Decimal:
        """A price that does not trade at once."""
        last = self.broker.ticker(self.symbol).last
        return (last * Decimal("0.97" if side == "Buy" else "1.03")).quantize(Decimal(1))


@pytest.fixture(scope="session")
def broker_market() -> BybitMarket:
    return BybitMarket(SyntheticMarket(7, MARKET_START))


def _keys(name: str, secret: str) -> KeyPair:
    return KeyPair(key=SecretStr(name), secret=SecretStr(secret))


@pytest.fixture
def canaries() -> KeyPair:
    return _keys(CANARY_KEY, CANARY_SECRET)


@pytest.fixture(params=["in_process", "sockets"])
def bench(request: pytest.FixtureRequest, broker_market: BybitMarket) -> Iterator[BrokerBench]:
    """The same account twice: pybit's session over an adapter, and over loopback sockets."""
    clock = FixedClock(TRADING_NOW)
    options = ExchangeOptions(keys=BROKER_KEYS)
    with ExitStack() as stack:
        more: dict[str, Any]
        if request.param == "in_process":
            public = PublicMarket({"BTCUSDT": broker_market}, BybitOptions())
            exchange = Exchange.synthetic({"BTCUSDT": broker_market}, clock, options=options, public=public)
            more = {"adapter": InProcess(exchange)}
        else:
            server = stack.enter_context(
                EmulatorServer(
                    seed=7,
                    start_ms=MARKET_START,
                    clock=clock,
                    bybit=BybitOptions(ip_calls=100_000),
                    trading=options,
                )
            )
            exchange = server.exchange
            more = {"url": server.url, "timeout_s": (2.0, 0.6)}

        def connect(
            key: str = CANARY_KEY, secret: str = CANARY_SECRET, clock: FixedClock = clock, **other: Any
        ) -> BybitBroker:
            broker = BybitBroker(Venue.EMULATOR, _keys(key, secret), clock, **{**more, **other})
            stack.callback(broker.close)
            return broker

        made = BrokerBench(exchange, clock, connect, request.param)
        made.url = more.get("url", "")
        yield made
