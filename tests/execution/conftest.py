"""An account at the emulator's exchange, reached in process or over sockets, for every broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config.execution import OrdersConfig
from mlbot_core.config.secrets import KeyPair
from mlbot_core.config.trading import RiskConfig
from mlbot_core.decision.costs import Costs
from mlbot_core.decision.state import Forecast
from mlbot_core.emulator import EmulatorServer, SyntheticMarket
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.bybit_market import BybitMarket
from mlbot_core.emulator.bybit_public import PublicMarket
from mlbot_core.emulator.exchange import ApiKey, Exchange, ExchangeOptions, TradeFault, TradeFaultSchedule
from mlbot_core.emulator.exchange.adapter import InProcess
from mlbot_core.execution.broker import Venue
from mlbot_core.execution.bybit import BybitBroker
from mlbot_core.execution.executor import Executor
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.safety import Lease, Permit, SafetyFiles
from mlbot_core.execution.sending import ExecutionRules
from mlbot_core.execution.trader import Decided, Trader
from mlbot_core.execution.types import OrderRequest, OrderType, Side, TimeInForce
from mlbot_core.timeframe import Timeframe

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


class Desk:
    """A trader on an account of the emulator's exchange; every part can be thrown away and made anew."""

    def __init__(self, home: Path, exchange: Exchange, clock: FixedClock, connect: Callable[[], BybitBroker]) -> None:
        self.home, self.exchange, self.clock, self.connect = home, exchange, clock, connect
        self.symbol, self.account = "BTCUSDT", "emulator:100001"
        self.timeframe = Timeframe.parse("2h")
        self.orders: dict[str, Any] = {}
        self.risk: dict[str, Any] = {}
        self.costs = Costs(taker=0.00055, maker=0.0002, slippage=0.0001)
        self.files = SafetyFiles(home / "live", self.account, clock)
        self.ledger = ExecutionLedger(home, clock, self.account)
        self.broker = connect()
        self.lease = Lease(10.0, clock)
        self.permit = Permit(self.files, self.lease)

    @property
    def rules(self) -> ExecutionRules:
        risk = RiskConfig(**{"max_position": 0.1, "daily_loss_limit": 0.03, "max_drawdown": 0.25, **self.risk})
        orders = OrdersConfig(**{"participation": None, **self.orders})
        return ExecutionRules("mlbot", orders, risk, Decimal(str(risk.max_position)))

    def trader(self, **more: Any) -> Trader:
        """A new one each time: nothing may be remembered outside of the book."""
        parts = {"ledger": self.ledger, "broker": self.broker, "permit": self.permit, **more}
        return Trader(
            clock=self.clock, rules=self.rules, timeframe=self.timeframe, costs=self.costs, symbol=self.symbol,
            renew=self.lease.renew, halt=self.files, **parts,
        )  # fmt: skip

    def executor(self) -> Executor:
        return Executor(
            self.ledger, self.broker, self.clock, self.permit, self.rules, self.symbol, renew=self.lease.renew
        )

    def to_next_bar(self, after_s: float = 5.0) -> int:
        """Let time pass to shortly after the next close; return the bar that closed."""
        close = self.timeframe.floor(self.clock.now_ms()) + self.timeframe.ms
        self.clock.set_ms(close + round(1000 * after_s))
        return close - self.timeframe.ms

    def decide(self, edge: float, multiplier: float = 0.5, *, bar: int | None = None, **more: Any) -> Decided:
        bar = self.to_next_bar() if bar is None else bar
        trader = more.pop("trader", None) or self.trader()
        made: Decided = trader.decide(bar, Forecast(edge, multiplier, 0), {"model": "made"}, **more)
        return made

    def faults(self, *lines: TradeFault, seed: int = 0) -> None:
        self.exchange.install_faults(TradeFaultSchedule(tuple(lines), seed))

    def truth(self) -> dict[str, Any]:
        found: dict[str, Any] = self.exchange.truth()["accounts"]["100001"]
        return found

    def held(self) -> Decimal:
        row = self.truth()["positions"][self.symbol]
        size = Decimal(row["size"])
        return -size if row["side"] == "Sell" else size

    def stop(self) -> Decimal | None:
        text = self.truth()["positions"][self.symbol]["stopLoss"]
        return Decimal(text) if text else None

    def placed(self) -> list[dict[str, Any]]:
        """Orders of ours at the exchange, oldest first; a stop that hangs on a position is not one."""
        return [row for row in self.truth()["orders"] if row["orderLinkId"]]

    def codes(self) -> list[str]:
        return [alert.code for alert in self.ledger.pending_alerts()]

    def agrees(self) -> None:
        """The book equals the exchange's truth, to the last unit."""
        truth = self.truth()
        assert self.ledger.held(self.symbol).size == self.held()
        balance = self.ledger.balance(self.symbol)
        assert balance is not None
        assert balance[0] == Decimal(truth["wallet"]["USDT"])
        told = {fill.exec_id: fill for fill in self.ledger.executions(self.symbol)}
        assert set(told) == {row["execId"] for row in truth["executions"]}
        for row in truth["executions"]:
            mine = told[row["execId"]]
            assert (mine.qty, mine.price, mine.fee) == tuple(
                Decimal(row[name]) for name in ("execQty", "execPrice", "execFee")
            )
        links = [row["orderLinkId"] for row in self.placed()]
        assert len(links) == len(set(links))


@pytest.fixture
def desk_at(tmp_path: Path, broker_market: BybitMarket) -> Iterator[Callable[[], Desk]]:
    """Each call is a new account on a new exchange, with a book of its own."""
    with ExitStack() as stack:
        count = iter(range(10**6))

        def make() -> Desk:
            clock = FixedClock(TRADING_NOW)
            public = PublicMarket({"BTCUSDT": broker_market}, BybitOptions(ip_calls=10**9))
            exchange = Exchange.synthetic(
                {"BTCUSDT": broker_market}, clock, options=ExchangeOptions(keys=BROKER_KEYS), public=public
            )

            def connect() -> BybitBroker:
                broker = BybitBroker(
                    Venue.EMULATOR, _keys(CANARY_KEY, CANARY_SECRET), clock, adapter=InProcess(exchange)
                )
                stack.callback(broker.close)
                return broker

            made = Desk(tmp_path / str(next(count)), exchange, clock, connect)
            stack.callback(made.ledger.close)
            return made

        yield make


@pytest.fixture
def desk(desk_at: Callable[[], Desk]) -> Desk:
    return desk_at()


@pytest.fixture
def socket_desk(tmp_path: Path) -> Iterator[Desk]:
    """The same over loopback sockets."""
    clock = FixedClock(TRADING_NOW)
    with ExitStack() as stack:
        server = stack.enter_context(
            EmulatorServer(
                seed=7,
                start_ms=MARKET_START,
                clock=clock,
                bybit=BybitOptions(ip_calls=100_000),
                trading=ExchangeOptions(keys=BROKER_KEYS),
            )
        )

        def connect() -> BybitBroker:
            broker = BybitBroker(
                Venue.EMULATOR, _keys(CANARY_KEY, CANARY_SECRET), clock, url=server.url, timeout_s=(2.0, 0.6)
            )
            stack.callback(broker.close)
            return broker

        made = Desk(tmp_path, server.exchange, clock, connect)
        stack.callback(made.ledger.close)
        yield made
