"""The paper exchange in process on a standing clock: which prices an order meets, what is written, what is not told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal

import httpx
import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config.secrets import KeyPair
from mlbot_core.emulator import EmulatorServer, Fault, FaultSchedule
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.exchange import ApiKey, ExchangeOptions
from mlbot_core.emulator.exchange.adapter import InProcess
from mlbot_core.emulator.paper.bybit import LiveBybit
from mlbot_core.emulator.paper.exchange import PaperExchange, Setup
from mlbot_core.execution.broker import Accepted, Ambiguous, DefiniteReject, Next, Venue
from mlbot_core.execution.bybit import BybitBroker
from mlbot_core.execution.types import ExecType, OrderRequest, OrderStatus, OrderType, Side, TimeInForce

NOW = parse_utc_ms("2024-01-06T10:37:21Z")
KEY, SECRET = "canary-paper-key/1+x", "canary-paper-secret/2=y"


class Bench:
    def __init__(self, folder, stack: ExitStack) -> None:
        self.clock = FixedClock(NOW)
        self.folder = folder
        self.stack = stack
        self.bybit = stack.enter_context(
            EmulatorServer(
                seed=7, start_ms=parse_utc_ms("2024-01-01"), clock=self.clock, bybit=BybitOptions(ip_calls=100_000)
            )
        )
        self.start()

    def start(self) -> None:
        live = LiveBybit(self.bybit.url, self.clock, timeout_s=30.0)
        setup = Setup(self.folder, ("BTCUSDT",), ExchangeOptions(keys=(ApiKey(KEY, SECRET),)))
        self.exchange = PaperExchange(setup, live, self.clock)
        self.broker = BybitBroker(
            Venue.PAPER, KeyPair(key=KEY, secret=SECRET), self.clock, adapter=InProcess(self.exchange)
        )
        self.stack.callback(self.broker.close)

    def restart(self) -> None:
        self.exchange.store.close()
        self.start()

    def ask(self) -> Decimal:
        """Return the best price that Bybit shows to buyers now."""
        params = {"category": "linear", "symbol": "BTCUSDT", "limit": 1}
        book = httpx.get(f"{self.bybit.url}/v5/market/orderbook", params=params).json()
        return Decimal(book["result"]["a"][0][0])

    def market(self):
        """Bybit's own market, as the emulator that plays it knows it."""
        return self.bybit.exchange.contracts["BTCUSDT"].quote(self.clock.now_ms())

    def place(self, link: str, side: Side = Side.BUY, qty: str = "0.010", price: Decimal | None = None, **more):
        kind, tif = (OrderType.MARKET, TimeInForce.IOC) if price is None else (OrderType.LIMIT, TimeInForce.GTC)
        request = OrderRequest(link, "BTCUSDT", side, kind, Decimal(qty), price, tif, **more)
        return self.broker.place(request, may_send=lambda: True)

    def fills(self):
        return [e for e in self.broker.executions_since("BTCUSDT", NOW - 60_000) if e.kind is ExecType.TRADE]


@pytest.fixture
def bench(tmp_path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)


def test_an_order_trades_on_prices_observed_after_it_came_not_on_those_that_were_there(bench):
    before = bench.ask()
    bench.clock.sleep(9)  # nobody looked meanwhile
    now = bench.ask()
    assert now != before
    assert isinstance(bench.place("one"), Accepted)
    (fill,) = bench.fills()
    assert fill.price == now
    assert fill.exec_ms == bench.clock.now_ms() >= NOW + 9_000


def test_without_a_new_look_nothing_trades_however_young_the_last_one_is(bench):
    assert bench.exchange.observe()
    bench.bybit.faults.install(FaultSchedule((Fault("http_500"),)))
    bench.clock.sleep(1)
    outcome = bench.place("no-look")
    assert isinstance(outcome, DefiniteReject), outcome
    assert (outcome.code, outcome.then) == (110066, Next.PAUSE)
    # one second old prices may still be shown, older ones may not
    assert bench.broker.ticker("BTCUSDT").last > 0
    bench.clock.sleep(11)
    assert bench.exchange.stale()
    outcome = bench.broker.set_trading_stop("BTCUSDT", Decimal("1000"))
    assert isinstance(outcome, DefiniteReject)
    bench.bybit.faults.install(FaultSchedule())
    assert isinstance(bench.place("again"), Accepted)
    assert len(bench.fills()) == 1


def test_a_stop_is_hit_by_what_happened_while_the_process_was_away(bench):
    entry = bench.market().asks[0][0]
    stop = (entry * Decimal("0.999")).quantize(Decimal("0.1"))
    assert isinstance(bench.place("entry", stop_loss=stop), Accepted)
    lows = []
    for _ in range(600):
        bench.clock.sleep(60)
        lows.append(bench.market().last)
        if lows[-1] < stop * Decimal("0.999"):
            break
    assert lows[-1] < stop, "this market falls that far"
    hit = bench.clock.now_ms()
    bench.clock.sleep(600)
    bench.restart()
    assert not bench.broker.position("BTCUSDT").flat, "nothing was observed yet"
    assert bench.exchange.observe()
    assert bench.broker.position("BTCUSDT").flat
    closing = bench.fills()[-1]
    assert closing.side is Side.SELL
    assert NOW < closing.exec_ms <= hit
    assert closing.price <= stop
    assert closing.price >= stop * Decimal("0.99"), "a stop's market order stays within its cap"


def test_funding_is_settled_at_bybits_rate_across_a_restart(bench):
    assert isinstance(bench.place("entry"), Accepted)
    settle = parse_utc_ms("2024-01-06T16:00:00Z")
    bench.clock.set_ms(settle + 120_000)
    bench.restart()
    assert bench.exchange.observe()
    paid = [e for e in bench.broker.executions_since("BTCUSDT", NOW) if e.kind is ExecType.FUNDING]
    rate = bench.bybit.exchange.contracts["BTCUSDT"].feed.funding_rate(settle)
    assert [e.exec_ms for e in paid] == [settle]
    assert paid[0].fee == (paid[0].value * rate).quantize(Decimal("1e-8"))
    # the mark price of that minute, not of the moment of the restart
    mark = bench.bybit.exchange.contracts["BTCUSDT"].quote(settle).mark
    assert abs(paid[0].price / mark - 1) < Decimal("0.002")


def test_every_state_comes_back_exactly(bench):
    last = bench.market().last
    near, far = ((last * Decimal(share)).quantize(Decimal(1)) for share in ("0.9999", "0.99"))
    assert isinstance(bench.place("entry", stop_loss=(last * Decimal("0.95")).quantize(Decimal(1))), Accepted)
    assert isinstance(bench.place("near", price=near), Accepted)
    assert isinstance(bench.place("far", price=far), Accepted)
    assert isinstance(bench.place("gone", price=far), Accepted)
    assert isinstance(bench.broker.cancel("BTCUSDT", "gone"), Accepted)
    assert isinstance(bench.broker.set_leverage("BTCUSDT", Decimal(7)), Accepted)
    for _ in range(20):
        bench.clock.sleep(20)
        assert bench.exchange.observe()
        before = bench.exchange.truth()["accounts"]
        bench.restart()
        assert bench.exchange.truth()["accounts"] == before
    (account,) = before.values()
    assert len(account["executions"]) > 1, "the resting order was filled on the way"
    assert bench.broker.order("BTCUSDT", "far").status is OrderStatus.NEW


def test_what_cannot_be_written_is_not_told_and_did_not_happen(bench):
    far = (bench.market().last * Decimal("0.99")).quantize(Decimal(1))
    assert isinstance(bench.place("kept", price=far), Accepted)
    truth = bench.exchange.truth()["accounts"]
    for act in (lambda: bench.place("lost"), lambda: bench.broker.cancel("BTCUSDT", "kept")):
        bench.exchange.store._db.execute("PRAGMA query_only = ON")  # as a full disk would
        assert isinstance(act(), Ambiguous)
        assert "could not be written" in bench.exchange.broken
        assert bench.exchange.is_out()
        assert isinstance(bench.broker.cancel("BTCUSDT", "kept"), Ambiguous), "nothing is answered any more"
        bench.restart()
        assert bench.exchange.truth()["accounts"] == truth
    assert bench.broker.order("BTCUSDT", "lost") is None
    assert bench.broker.order("BTCUSDT", "kept").status is OrderStatus.NEW


def test_no_secret_is_on_the_disk_and_these_keys_did_sign(bench):
    assert isinstance(bench.place("entry"), Accepted)
    bench.exchange.store.close()
    content = b"".join(path.read_bytes() for path in bench.folder.iterdir() if path.is_file())
    assert content
    assert KEY.encode() not in content
    assert SECRET.encode() not in content
    assert bench.exchange.auth.verified > 0
