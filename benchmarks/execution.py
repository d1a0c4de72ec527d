"""From a decision to an acknowledged order: in process and over loopback sockets, beside a bare pybit ``place_order``.

Bars alternately open and close a position; the book is a SQLite file on this machine's disk with ``synchronous=FULL``.
``decision`` runs from the call of ``Trader.decide`` to the moment at which the acknowledgement is written down, and
contains the reconciliation before it; ``order`` from the durable attempt to there. What the time went into is measured
around the book's transactions, the requests and (in process) the exchange. ``--json`` makes the last line of stdout one
JSON object; ``--quick`` is a smoke run.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from pybit.unified_trading import HTTP
from pydantic import SecretStr

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config.execution import OrdersConfig
from mlbot_core.config.secrets import KeyPair
from mlbot_core.config.trading import RiskConfig
from mlbot_core.decision.costs import Costs
from mlbot_core.decision.state import Forecast
from mlbot_core.emulator import SyntheticMarket
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.bybit_market import BybitMarket
from mlbot_core.emulator.bybit_public import PublicMarket
from mlbot_core.emulator.exchange import DEFAULT_TRADE_KEY, DEFAULT_TRADE_SECRET, Exchange, ExchangeOptions
from mlbot_core.emulator.exchange.adapter import InProcess
from mlbot_core.execution.broker import Venue
from mlbot_core.execution.bybit import BybitBroker
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.safety import Lease, Permit, SafetyFiles
from mlbot_core.execution.sending import ExecutionRules
from mlbot_core.execution.trader import Trader
from mlbot_core.timeframe import Timeframe

START, NOW = parse_utc_ms("2024-01-01"), parse_utc_ms("2024-01-03T10:30:00Z")
SYMBOL, ACCOUNT = "BTCUSDT", "emulator:100001"
FRAME = Timeframe.parse("2h")
SERVER = """
import sys
from mlbot_core.clock import FixedClock
from mlbot_core.emulator import EmulatorServer
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.exchange import ExchangeOptions

with EmulatorServer(
    seed=7, start_ms=int(sys.argv[1]), clock=FixedClock(int(sys.argv[2])), bybit=BybitOptions(ip_calls=10**9),
    trading=ExchangeOptions(limits="off"),
) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


class Watch:
    """Seconds and calls by part; parts do not overlap but for what is nested on purpose."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def around(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **more: Any) -> Any:
            begun = time.perf_counter()
            try:
                return work(*arguments, **more)
            finally:
                self.seconds[part] += time.perf_counter() - begun
                self.calls[part] += 1

        return timed

    def around_context(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def timed(*arguments: Any, **more: Any) -> Iterator[Any]:
            begun = time.perf_counter()
            try:
                with work(*arguments, **more) as made:
                    yield made
            finally:
                self.seconds[part] += time.perf_counter() - begun
                self.calls[part] += 1

        return timed


class Place:
    """The exchange: in this process, or in one of its own behind sockets."""

    def __init__(self, stack: ExitStack, *, sockets: bool, watch: Watch) -> None:
        self.clock = FixedClock(NOW)
        self.url = ""
        self.more: dict[str, Any]
        if sockets:
            process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(START), str(NOW)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.callback(process.wait)
            assert process.stdin is not None
            assert process.stdout is not None
            stack.callback(process.stdin.close)
            self.url = process.stdout.readline().strip()
            self.more = {"url": self.url}
            return
        market = {SYMBOL: BybitMarket(SyntheticMarket(7, START))}
        public = PublicMarket(market, BybitOptions(ip_calls=10**9))
        self.exchange = Exchange.synthetic(market, self.clock, options=ExchangeOptions(limits="off"), public=public)
        self.exchange.handle = watch.around("exchange", self.exchange.handle)  # type: ignore[method-assign]
        self.more = {"adapter": InProcess(self.exchange)}

    def to(self, now_ms: int) -> None:
        """Let time pass, here and there."""
        self.clock.set_ms(now_ms)
        if self.url:
            body = json.dumps({"to_ms": now_ms}).encode()
            request = urllib.request.Request(f"{self.url}/_emulator/exchange/advance", body, method="POST")
            urllib.request.urlopen(request, timeout=60).read()

    def bare(self) -> HTTP:
        """Return pybit's own session."""
        import pybit._helpers

        session = HTTP(api_key=DEFAULT_TRADE_KEY, api_secret=DEFAULT_TRADE_SECRET, testnet=True)
        # it stamps by the wall, the emulator's clock stands
        pybit._helpers.generate_timestamp = self.clock.now_ms
        session.endpoint = self.url or "http://emulator"
        if not self.url:
            session.client.mount("http://emulator", self.more["adapter"])
        return session


def measure(bars: int, *, sockets: bool) -> dict[str, Any]:
    """Trade some bars and time them."""
    watch = Watch()
    with ExitStack() as stack:
        place = Place(stack, sockets=sockets, watch=watch)
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlbot-bench-")))
        ledger = stack.enter_context(ExecutionLedger(home, place.clock, ACCOUNT))
        pair = KeyPair(key=SecretStr(DEFAULT_TRADE_KEY), secret=SecretStr(DEFAULT_TRADE_SECRET))
        broker = BybitBroker(Venue.EMULATOR, pair, place.clock, **place.more)
        stack.callback(broker.close)
        risk = RiskConfig(max_position=0.1, daily_loss_limit=0.5, max_drawdown=0.9)
        lease = Lease(600.0, place.clock)
        files = SafetyFiles(home / "live", ACCOUNT, place.clock)
        trader = Trader(
            ledger, broker, place.clock, Permit(files, lease),
            ExecutionRules("mlbot", OrdersConfig(participation=None), risk, Decimal(str(risk.max_position))), FRAME,
            Costs(taker=0.00055, maker=0.0002, slippage=0.0001), SYMBOL, renew=lease.renew, halt=files,
        )  # fmt: skip
        moments: dict[str, float] = {}
        parts_at_ack: dict[str, dict[str, float]] = {}

        def begun(work: Callable[..., Any]) -> Callable[..., Any]:
            def noted(*arguments: Any, **more: Any) -> Any:
                moments.setdefault("order", time.perf_counter())
                return work(*arguments, **more)

            return noted

        def answered(work: Callable[..., Any]) -> Callable[..., Any]:
            def noted(*arguments: Any, **more: Any) -> Any:
                made = work(*arguments, **more)
                if "acknowledged" not in moments:
                    moments["acknowledged"] = time.perf_counter()
                    parts_at_ack["seconds"], parts_at_ack["calls"] = dict(watch.seconds), dict(watch.calls)
                return made

            return noted

        parts: dict[str, Any] = {"_reading": watch.around("ledger reads", ledger._reading)}
        parts["_writing"] = watch.around_context("ledger writes", ledger._writing)
        parts["begin_attempt"], parts["note_answer"] = begun(ledger.begin_attempt), answered(ledger.note_answer)
        for name, work in parts.items():
            setattr(ledger, name, work)
        broker._wire.call = watch.around("requests", broker._wire.call)  # type: ignore[method-assign]
        rows: list[dict[str, float]] = []
        for bar in range(bars + 2):
            place.to(FRAME.floor(place.clock.now_ms()) + FRAME.ms + 5_000)
            watch.seconds.clear()
            watch.calls.clear()
            moments.clear()
            start = time.perf_counter()
            made = trader.decide(FRAME.last_closed(place.clock.now_ms()), Forecast((0.01, math.nan)[bar % 2], 0.5, 0))
            end = time.perf_counter()
            assert made.cycle is not None, made
            assert made.cycle.clean, made
            assert not made.cycle.open, made
            spent, calls = parts_at_ack["seconds"], parts_at_ack["calls"]
            row = {
                "decision": moments["acknowledged"] - start,
                "order": moments["acknowledged"] - moments["order"],
                "to confirmed fill": end - start,
                **{f"of it {name}": value for name, value in spent.items()},
                **{f"{name} count": float(value) for name, value in calls.items()},
            }
            row["of it own code"] = row["decision"] - sum(
                spent.get(name, 0.0) for name in ("ledger reads", "ledger writes", "requests")
            )
            # the first two load libraries and compile
            if bar >= 2:
                rows.append(row)
        session, bare = place.bare(), []
        for number in range(bars + 2):
            start = time.perf_counter()
            session.place_order(
                category="linear", symbol=SYMBOL, side="Buy" if number % 2 else "Sell", orderType="Market", qty="0.001",
                orderLinkId=f"bare-{number}",
            )  # fmt: skip
            if number >= 2:
                bare.append(time.perf_counter() - start)
    made_rows = {name: [row.get(name, 0.0) for row in rows] for name in rows[0]}
    made_rows["bare pybit place_order"] = bare
    return {
        name: {"median": float(np.median(values)), "p99": float(np.percentile(values, 99))}
        for name, values in made_rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="last line of stdout is one JSON object")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--bars", type=int, default=200, help="how many decisions are measured")
    args = parser.parse_args()
    bars = 6 if args.quick else args.bars
    result: dict[str, Any] = {"bars": bars}
    for place, sockets in (("in process", False), ("sockets", True)):
        made = measure(bars, sockets=sockets)
        bare = made["bare pybit place_order"]["median"]
        result[place] = {
            **made,
            "order / bare": made["order"]["median"] / bare,
            "decision / bare": made["decision"]["median"] / bare,
        }
        print(f"\n{place}, {bars} decisions{'':<14}{'median':>12}{'p99':>12}")
        for name, value in made.items():
            count = name.endswith("count")
            shown = [f"{value[key]:.0f}" if count else f"{1000 * value[key]:.2f} ms" for key in ("median", "p99")]
            print(f"  {name:<36}{shown[0]:>12}{shown[1]:>12}")
        order, decision = (result[place][f"{name} / bare"] for name in ("order", "decision"))
        print(f"  order / bare pybit {order:.1f}, decision / bare pybit {decision:.1f}")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
