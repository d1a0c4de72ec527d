"""What holds whatever is asked: random requests at random times on the synthetic market.

Invariants, after every sequence:
1. the wallet is the sum of its log, and every row's balance is the sum up to it;
2. the position is the sum of the fills, its realised profit the sum of cash flows, fees and funding;
3. no fill is worse than its order's limit, and no order fills more than it asked for;
4. a reduce-only order never opens or grows a position;
5. an orderLinkId belongs to one order;
6. the state does not depend on how often it was looked at;
7. the messages of the streams, put together, are the state.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import SyntheticMarket
from mlbot_core.emulator.bybit_market import BybitMarket
from mlbot_core.emulator.exchange import (
    DEFAULT_TRADE_KEY,
    DEFAULT_TRADE_SECRET,
    Exchange,
    ExchangeOptions,
    random_schedule,
)
from mlbot_core.timeframe import DAY_MS, HOUR_MS, MINUTE_MS

START = parse_utc_ms("2024-01-01")
MARKET = BybitMarket(SyntheticMarket(11, START))
BTC = {"category": "linear", "symbol": "BTCUSDT"}
TOPICS = ("order", "execution", "position", "wallet")

qty = st.sampled_from(("0.001", "0.02", "0.3", "2", "7.5", "25"))
away = st.integers(-90, 90)
create = st.fixed_dictionaries(
    {
        "what": st.just("create"),
        "side": st.sampled_from(("Buy", "Sell")),
        "qty": qty,
        "limit": st.none() | away,
        "tif": st.sampled_from(("GTC", "IOC", "FOK", "PostOnly")),
        "reduce": st.booleans(),
        "trigger": st.none() | st.sampled_from((-40, -8, 8, 40)),
        "stop": st.none() | st.sampled_from((20, 60)),
        "link": st.none() | st.integers(0, 5),
    }
)
simple = st.sampled_from(("cancel_all", "trail", "stop", "leverage", "deposit"))
other = st.fixed_dictionaries({"what": simple, "size": st.integers(1, 60)})
naming = st.fixed_dictionaries(
    {"what": st.sampled_from(("cancel", "amend")), "which": st.integers(0, 3), "limit": away}
)
step = st.tuples(create | naming | other, st.sampled_from((0, 700, 11_000, 9 * MINUTE_MS, HOUR_MS, 7 * HOUR_MS)))


class Driver:
    """Turns drawn steps into requests; prices are basis points around the last price."""

    def __init__(self, balance: str, look_each_ms: int | None = None, faults: int | None = None) -> None:
        self.clock = FixedClock(START + 3 * DAY_MS)
        schedule = None
        if faults is not None:
            schedule = random_schedule(faults, self.clock.now_ms(), self.clock.now_ms() + DAY_MS, 8)
        options = ExchangeOptions(limits="off", balance=Decimal(balance))
        self.exchange = Exchange.synthetic({"BTCUSDT": MARKET}, self.clock, seed=3, options=options, faults=schedule)
        self.look = look_each_ms
        self.stream = self.exchange.subscribe(topics=TOPICS)
        self.known: list[str] = []
        if balance == "3000":
            self.post("/v5/position/set-leverage", buyLeverage="100", sellLeverage="100")

    def post(self, path: str, **params: object) -> dict:
        stamp, body = str(self.exchange.server_time()), json.dumps({**BTC, **params})
        text = stamp + DEFAULT_TRADE_KEY + "5000" + body
        headers = {
            "X-BAPI-API-KEY": DEFAULT_TRADE_KEY,
            "X-BAPI-TIMESTAMP": stamp,
            "X-BAPI-RECV-WINDOW": "5000",
            "X-BAPI-SIGN": hmac.new(DEFAULT_TRADE_SECRET.encode(), text.encode(), hashlib.sha256).hexdigest(),
        }
        answer = self.exchange.handle("POST", path, headers, body=body.encode())
        try:
            return answer.json()
        except ValueError:
            return {"retCode": -1, "result": {}}

    def price(self, points: int) -> str:
        last = self.exchange.contracts["BTCUSDT"].quote(self.clock.now_ms()).last
        return f"{(last * (1 + Decimal(points) / 10_000)).quantize(Decimal('0.1')):f}"

    def do(self, wish: dict) -> None:
        what = wish["what"]
        if what == "create":
            params = {"side": wish["side"], "qty": wish["qty"], "orderType": "Market"}
            if wish["limit"] is not None:
                params |= {"orderType": "Limit", "price": self.price(wish["limit"]), "timeInForce": wish["tif"]}
            if wish["trigger"] is not None:
                direction = 1 if wish["trigger"] > 0 else 2
                params |= {"triggerPrice": self.price(wish["trigger"]), "triggerDirection": direction}
            if wish["reduce"]:
                params["reduceOnly"] = True
            elif wish["stop"] is not None:
                low = wish["side"] == "Buy"
                params["stopLoss"] = self.price(-200 - wish["stop"] if low else 200 + wish["stop"])
            if wish["link"] is not None:
                params["orderLinkId"] = f"link-{wish['link']}"
            answer = self.post("/v5/order/create", **params)
            if answer["retCode"] == 0 and answer["result"]:
                self.known.append(answer["result"]["orderId"])
        elif what in ("cancel", "amend") and self.known:
            order = self.known[-1 - wish["which"] % len(self.known)]
            more = {"price": self.price(wish["limit"])} if what == "amend" else {}
            self.post(f"/v5/order/{what}", orderId=order, **more)
        elif what == "cancel_all":
            self.post("/v5/order/cancel-all")
        elif what == "trail":
            self.post("/v5/position/trading-stop", tpslMode="Full", positionIdx=0, trailingStop=str(wish["size"]))
        elif what == "stop":
            side = self.exchange.truth()["accounts"]["100001"]["positions"]["BTCUSDT"]["side"]
            level = self.price(-wish["size"] if side == "Buy" else wish["size"])
            self.post("/v5/position/trading-stop", tpslMode="Full", positionIdx=0, stopLoss=level)
        elif what == "leverage":
            leverage = str(wish["size"])
            self.post("/v5/position/set-leverage", buyLeverage=leverage, sellLeverage=leverage)
        elif what == "deposit":
            self.exchange.transfer(Decimal(wish["size"]))

    def wait(self, ms: int) -> None:
        until = self.clock.now_ms() + ms
        while self.look is not None and self.clock.now_ms() + self.look < until:
            self.clock.sleep(self.look / 1000)
            self.exchange.advance()
        self.clock.set_ms(until)

    def run(self, steps: list) -> dict:
        for wish, ms in steps:
            self.do(wish)
            self.wait(ms)
        truth = self.exchange.truth()
        return {name: truth[name] for name in ("accounts",)}["accounts"]["100001"]


def check(truth: dict) -> None:
    total = Counter()
    for row in truth["transaction_log"]:
        parts = [Decimal(row[name] or 0) for name in ("cashFlow", "funding", "fee")]
        assert Decimal(row["change"]) == parts[0] + parts[1] - parts[2]
        total[row["currency"]] += Decimal(row["change"])
        assert Decimal(row["cashBalance"]) == total[row["currency"]]
    assert {coin: Decimal(amount) for coin, amount in truth["wallet"].items()} == total

    fills = [row for row in truth["executions"] if row["execType"] != "Funding"]
    size, sizes = Decimal(0), {}
    for row in fills:
        before, sign = size, 1 if row["side"] == "Buy" else -1
        size += sign * Decimal(row["execQty"])
        sizes[row["execId"]] = (before, size)
    position = truth["positions"]["BTCUSDT"]
    held = Decimal(position["size"]) * (-1 if position["side"] == "Sell" else 1)
    assert held == size
    booked = sum((Decimal(row["change"]) for row in truth["transaction_log"] if row["symbol"]), Decimal(0))
    assert Decimal(position["cumRealisedPnl"]) == booked

    orders = {row["orderId"]: row for row in truth["orders"]}
    filled = Counter()
    for row in fills:
        if row["execType"] != "Trade":
            continue
        order = orders[row["orderId"]]
        filled[row["orderId"]] += Decimal(row["execQty"])
        sign = 1 if row["side"] == "Buy" else -1
        assert sign * Decimal(row["execPrice"]) <= sign * Decimal(row["orderPrice"])
        if order["reduceOnly"]:
            before, after = sizes[row["execId"]]
            assert abs(after) < abs(before)
            assert after * before >= 0
    for order_id, order in orders.items():
        assert filled[order_id] == Decimal(order["cumExecQty"]) <= Decimal(order["qty"])
    links = Counter(order["orderLinkId"] for order in orders.values() if order["orderLinkId"])
    assert not links or max(links.values()) == 1
    stops = [o for o in orders.values() if o["orderStatus"] == "Untriggered" and o["stopOrderType"] in ("StopLoss",)]
    assert len(stops) <= 1
    assert not stops or Decimal(stops[0]["qty"]) == abs(held) > 0


@settings(max_examples=60)
@given(st.lists(step, min_size=1, max_size=14), st.sampled_from(("100000", "3000")))
def test_books_always_balance(steps, balance):
    driver = Driver(balance)
    truth = driver.run(steps)
    check(truth)
    # what the streams told is what there is
    orders, executions, wallet = {}, [], None
    for message in driver.stream.poll(driver.clock.now_ms()):
        (row,) = message["data"]
        if message["topic"] == "order":
            orders[row["orderId"]] = row["orderStatus"]
        elif message["topic"] == "execution":
            executions.append(row["execId"])
        elif message["topic"] == "wallet":
            wallet = {coin["coin"]: coin["walletBalance"] for coin in row["coin"]}
    assert executions == [row["execId"] for row in truth["executions"]]
    assert orders == {row["orderId"]: row["orderStatus"] for row in truth["orders"]}
    assert wallet is None or Decimal(wallet["USDT"]) == Decimal(truth["wallet"]["USDT"])


@settings(max_examples=25)
@given(st.lists(step, min_size=1, max_size=10), st.sampled_from((7_000, 61_000, 333_333)))
def test_looking_changes_nothing(steps, each_ms):
    assert Driver("20000", each_ms).run(steps) == Driver("20000").run(steps)


@settings(max_examples=40)
@given(st.lists(step, min_size=1, max_size=14), st.integers(0, 10_000))
def test_faults_lose_answers_not_money(steps, seed):
    driver = Driver("20000", faults=seed)
    check(driver.run(steps))
    again = Driver("20000", faults=seed)
    assert again.run(steps) == Driver("20000", faults=seed).run(steps)
    for entry in driver.exchange.faults.log:
        assert entry["outcome"] in ("definite", "ambiguous")
