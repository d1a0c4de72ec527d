"""Requests beside orders: signing, keys, account, limits, pages, and the shapes of the documentation."""

import hashlib
import hmac
import json
import urllib.parse
from decimal import Decimal
from pathlib import Path

import pytest

from mlbot_core.clock import parse_utc_ms
from mlbot_core.emulator.exchange import ApiKey, ExchangeOptions
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, HOUR_MS

T = parse_utc_ms("2024-03-01T09:00:00Z")
BTC = {"category": "linear", "symbol": "BTCUSDT"}
SHAPES = json.loads((Path(__file__).parent / "data" / "bybit_v5_shapes.json").read_text(encoding="utf-8"))


@pytest.fixture
def trader(trade_on):
    return trade_on((T, "60000"), (T + 10_000, "59900"), (T + 20_000, "60200"), (T + 30_000, "60000"))


def code(answer):
    assert answer["result"] == {} or answer["retCode"] == 0
    return answer["retCode"]


KEYS = (
    ApiKey("rich", "rich-secret", withdraw=True, transfer=True),
    ApiKey("reader", "reader-secret", read_only=True),
    ApiKey("no-trade", "no-trade-secret", trade=False),
    ApiKey("bound", "bound-secret", ips=("10.0.0.7",), parent_uid=1),
    ApiKey("expired", "expired-secret", expires_ms=T),
    ApiKey("other", "other-secret", uid=2),
)


# --- who is asking


@pytest.mark.parametrize(
    ("shift", "window", "wanted"),
    [(0, "5000", 0), (-5000, "5000", 0), (-5001, "5000", 10002), (999, "5000", 0), (1000, "60000", 10002)],
)
def test_the_receive_window(trader, shift, window, wanted):
    stamp = str(T + shift)
    text = stamp + trader.key + window
    signature = hmac.new(trader.secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    headers = {"X-BAPI-API-KEY": trader.key, "X-BAPI-TIMESTAMP": stamp, "X-BAPI-SIGN": signature}
    answer = trader.exchange.handle("GET", "/v5/account/info", {**headers, "X-BAPI-RECV-WINDOW": window}).json()
    assert answer["retCode"] == wanted
    if wanted:
        assert f"req_timestamp[{stamp}],server_timestamp[{T}]" in answer["retMsg"]


def test_the_signature_covers_everything(trader):
    verified = trader.exchange.auth.verified
    stamp = str(T)
    signed = hmac.new(trader.secret.encode(), f"{stamp}{trader.key}5000a=1".encode(), hashlib.sha256).hexdigest()
    headers = {
        "x-bapi-api-key": trader.key,
        "x-bapi-timestamp": stamp,
        "x-bapi-recv-window": "5000",
        "x-bapi-sign": signed,
    }
    ask = trader.exchange.handle
    assert ask("GET", "/v5/account/info", headers, "a=1").json()["retCode"] == 0
    assert trader.exchange.auth.verified == verified + 1
    assert ask("GET", "/v5/account/info", headers, "a=2").json()["retCode"] == 10004
    assert ask("GET", "/v5/account/info", {**headers, "x-bapi-recv-window": "5001"}, "a=1").json()["retCode"] == 10004
    assert ask("GET", "/v5/account/info", {**headers, "x-bapi-api-key": "nobody"}, "a=1").json()["retCode"] == 10003
    assert ask("GET", "/v5/account/info", {}, "a=1").status == 401
    assert ask("GET", "/v5/account/info", headers, "a=1", b"{}").status == 403
    assert ask("GET", "/v5/account/nothing", headers, "a=1").status == 404
    assert trader.exchange.auth.verified == verified + 1
    assert trader.secret not in json.dumps(trader.exchange.truth())


def test_what_keys_may_do(trade_on):
    trader = trade_on((T, "60000"), options=ExchangeOptions(keys=KEYS, limits="off"))

    def as_(name, method="GET", path="/v5/account/info", **more):
        trader.key, trader.secret = name, f"{name}-secret"
        return trader.send(method, path, **more).json()

    assert as_("reader")["retCode"] == 0
    assert as_("reader", "POST", "/v5/order/cancel-all", **BTC)["retCode"] == 10005
    assert as_("no-trade", "POST", "/v5/order/cancel-all", **BTC)["retCode"] == 10005
    assert as_("bound", address="10.0.0.7")["retCode"] == 0
    assert as_("bound", address="10.0.0.8")["retCode"] == 10010
    assert as_("expired")["retCode"] == 33004
    described = as_("rich", path="/v5/user/query-api")["result"]
    assert described["permissions"]["Wallet"] == ["AccountTransfer", "SubMemberTransfer", "Withdraw"]
    assert (described["isMaster"], described["parentUid"], described["secret"]) == (True, "0", "")
    described = as_("bound", path="/v5/user/query-api", address="10.0.0.7")["result"]
    assert (described["ips"], described["isMaster"], described["parentUid"]) == (["10.0.0.7"], False, "1")
    assert as_("reader", path="/v5/user/query-api")["result"]["readOnly"] == 1
    as_("other", "POST", "/v5/order/create", **BTC, side="Buy", orderType="Market", qty="0.1")
    accounts = trader.exchange.truth()["accounts"]
    assert {uid: account["positions"]["BTCUSDT"]["size"] for uid, account in accounts.items()} == {
        "100001": "0",
        "2": "0.1",
    }
    assert "rich-secret" not in repr(KEYS[0])


def test_keys_that_cannot_be(trade_on):
    with pytest.raises(UsageError, match="needs a key and a secret"):
        ApiKey("a", "")
    with pytest.raises(UsageError, match="same name"):
        trade_on((T, "60000"), options=ExchangeOptions(keys=(ApiKey("a", "b"), ApiKey("a", "c"))))
    with pytest.raises(UsageError, match="at least one"):
        ExchangeOptions(keys=())


# --- account


def test_leverage_and_modes(trader):
    def leverage(buy, sell=None):
        return code(trader.post("/v5/position/set-leverage", **BTC, buyLeverage=buy, sellLeverage=sell or buy))

    assert [leverage("10"), leverage("5", "6"), leverage("101"), leverage("0.5"), leverage("20")] == [
        110043,
        10001,
        10001,
        10001,
        0,
    ]
    assert trader.position()["leverage"] == "20"
    mode = {"category": "linear", "symbol": "BTCUSDT"}
    assert code(trader.post("/v5/position/switch-mode", **mode, mode=0)) == 110025
    trader.ok("Buy", "30")
    assert leverage("1") == 110044
    assert code(trader.order("Buy", "5")) == 110007
    assert code(trader.post("/v5/position/switch-mode", **mode, mode=3)) == 110024
    assert code(trader.post("/v5/account/set-margin-mode", setMarginMode="REGULAR_MARGIN")) == 110026
    assert code(trader.post("/v5/account/set-margin-mode", setMarginMode="ISOLATED_MARGIN")) == 110073


def test_leverage_is_bound_by_the_risk_tier(trade_on):
    options = ExchangeOptions(limits="off", balance=Decimal(10_000_000))
    trader = trade_on((T, "60000"), options=options)
    trader.post("/v5/position/set-leverage", **BTC, buyLeverage="100", sellLeverage="100")
    assert code(trader.order("Buy", "34")) == 110090
    trader.ok("Buy", "33")
    assert code(trader.order("Buy", "1")) == 110090
    trader.post("/v5/position/set-leverage", **BTC, buyLeverage="50", sellLeverage="50")
    trader.ok("Buy", "10")
    answer = trader.post("/v5/position/set-leverage", **BTC, buyLeverage="100", sellLeverage="100")
    assert code(answer) == 110013


def test_demo_lacks_some(trade_on):
    trader = trade_on((T, "60000"), options=ExchangeOptions(limits="off", demo=True))
    assert code(trader.get("/v5/account/fee-rate", **BTC)) == 10032
    trader = trade_on((T, "60000"))
    (row,) = trader.get("/v5/account/fee-rate", **BTC)["result"]["list"]
    assert (row["takerFeeRate"], row["makerFeeRate"]) == ("0.00055", "0.0002")
    assert code(trader.post("/v5/order/disconnected-cancel-all", product="DERIVATIVES", timeWindow=10)) == 10005


def test_rate_limits(trade_on):
    trader = trade_on((T, "60000"), options=ExchangeOptions())
    answers = [trader.send("POST", "/v5/order/cancel-all", **BTC) for _ in range(11)]
    assert [answer.json()["retCode"] for answer in answers] == [0] * 10 + [10006]
    assert answers[0].headers["X-Bapi-Limit"] == "10"
    assert [answer.headers["X-Bapi-Limit-Status"] for answer in answers] == [str(n) for n in range(9, -1, -1)] + ["0"]
    assert answers[0].headers["X-Bapi-Limit-Reset-Timestamp"] == str(T)
    assert answers[-1].headers["X-Bapi-Limit-Reset-Timestamp"] == str(T + 1000)
    assert trader.post("/v5/order/amend", **BTC, orderId="x")["retCode"] == 110001, "each path counts for itself"
    trader.clock.set_ms(T + 1000)
    assert trader.post("/v5/order/cancel-all", **BTC)["retCode"] == 0


# --- reading


def test_public_answers_of_a_feed_alone(trader):
    def ask(what, **params):
        query = urllib.parse.urlencode({"category": "linear", **params})
        return trader.exchange.handle("GET", f"/v5/market/{what}", {}, query).json()

    (ticker,) = ask("tickers", symbol="BTCUSDT")["result"]["list"]
    assert (ticker["lastPrice"], ticker["bid1Price"], ticker["ask1Price"]) == ("60000", "60000", "60000.1")
    assert int(ticker["nextFundingTime"]) == T + 7 * HOUR_MS
    assert ask("orderbook", symbol="BTCUSDT", limit=3)["result"]["a"] == [["60000.1", "1000"]]
    band = ask("price-limit", symbol="BTCUSDT")["result"]
    assert (band["buyLmt"], band["sellLmt"]) == ("60600", "59400")
    assert ask("instruments-info", symbol="BTCUSDT")["result"]["list"][0]["lotSizeFilter"]["qtyStep"] == "0.001"
    assert ask("instruments-info", status="PreLaunch")["result"]["list"] == []
    assert len(ask("risk-limit", symbol="BTCUSDT")["result"]["list"]) == 9
    assert ask("time")["result"]["timeSecond"] == str(T // 1000)
    assert [ask("tickers", symbol="XUSDT")["retCode"], ask("orderbook")["retCode"]] == [10001, 10001]
    assert ask("kline", symbol="BTCUSDT")["retCode"] == 10017


def test_pages(trader):
    orders = [trader.ok("Buy", "0.001", f"{59000 + n}") for n in range(7)]
    seen, cursor = [], ""
    while True:
        more = {"cursor": cursor} if cursor else {}
        result = trader.get("/v5/order/realtime", **BTC, limit=3, **more)["result"]
        seen += [row["orderId"] for row in result["list"]]
        cursor = result["nextPageCursor"]
        if not cursor:
            break
        assert "%" in cursor
    assert seen == orders[::-1]
    assert code(trader.get("/v5/order/realtime", **BTC, cursor="nonsense")) == 10001
    assert code(trader.get("/v5/order/realtime", category="linear")) == 10001


def test_how_long_orders_are_remembered(trader):
    cancelled = trader.ok("Buy", "0.1", "59500")
    trader.post("/v5/order/cancel", **BTC, orderId=cancelled)
    filled = trader.ok("Buy", "0.1")

    def known(**window):
        return [row["orderId"] for row in trader.get("/v5/order/history", **BTC, **window)["result"]["list"]]

    assert known() == [filled, cancelled]
    assert known(orderStatus="Filled") == [filled]
    trader.clock.set_ms(T + DAY_MS + 1)
    assert known() == [filled]
    trader.clock.set_ms(T + 8 * DAY_MS)
    assert known() == []
    assert known(startTime=T, endTime=T + DAY_MS) == [filled]
    assert code(trader.get("/v5/order/history", **BTC, startTime=T, endTime=T + 8 * DAY_MS)) == 10001


def test_the_log_has_windows_and_filters(trader):
    trader.ok("Buy", "0.1")
    path = "/v5/account/transaction-log"
    rows = trader.get(path, accountType="UNIFIED", currency="USDT")["result"]["list"]
    assert [row["type"] for row in rows] == ["TRADE", "TRANSFER_IN"]
    assert [row["type"] for row in trader.get(path, type="TRADE")["result"]["list"]] == ["TRADE"]
    assert [row["type"] for row in trader.get(path, category="linear")["result"]["list"]] == ["TRADE"]
    trader.clock.set_ms(T + 2 * DAY_MS)
    types = {row["type"] for row in trader.get(path)["result"]["list"]}
    assert types == {"SETTLEMENT"}
    bounds = {"startTime": T, "endTime": T + HOUR_MS}
    assert len(trader.get(path, **bounds)["result"]["list"]) == 2


def check(ours, shape, where=""):
    if isinstance(shape, dict):
        assert isinstance(ours, dict), where
        if where.endswith("cumFeeDetail"):
            return
        for name, kind in shape.items():
            assert name in ours, f"{where}/{name} is missing"
            check(ours[name], kind, f"{where}/{name}")
    elif isinstance(shape, list):
        assert isinstance(ours, list), where
        for item in ours:
            check(item, shape[0] if shape else item, f"{where}[]")
    elif isinstance(shape, str):
        assert type(ours).__name__ == shape, f"{where}: {ours!r} is no {shape}"


# Fields whose names differ between the documentation's sample and its own table, or that only other products have.
ODD = {"position/position": ("mmrSysUpdateTime",)}


@pytest.mark.parametrize(
    ("sample", "path", "params"),
    [
        ("order/open-order", "/v5/order/realtime", BTC),
        ("order/order-list", "/v5/order/history", BTC),
        ("order/execution", "/v5/execution/list", BTC),
        ("position/position", "/v5/position/list", BTC),
        ("account/wallet-balance", "/v5/account/wallet-balance", {"accountType": "UNIFIED"}),
        ("account/transaction-log", "/v5/account/transaction-log", {}),
        ("account/fee-rate", "/v5/account/fee-rate", BTC),
        ("account/account-info", "/v5/account/info", {}),
        ("user/apikey-info", "/v5/user/query-api", {}),
    ],
)
def test_shapes_of_answers(trader, sample, path, params):
    trader.ok("Buy", "0.1", stopLoss="59000")
    trader.ok("Buy", "0.1", "59500")
    answer = trader.get(path, **params)
    assert list(answer) == ["retCode", "retMsg", "result", "retExtInfo", "time"]
    shape = json.loads(json.dumps(SHAPES[sample]))
    for name in ODD.get(sample, ()):
        del shape["result"]["list"][0][name]
    check(answer, shape)
    assert answer["result"].get("list", [1]), "an empty list shows no shape"


def test_shapes_of_messages(trader):
    stream = trader.exchange.subscribe(topics=("order", "execution", "position", "wallet"))
    trader.ok("Buy", "0.1", stopLoss="59000")
    messages = stream.poll(T)
    assert {message["topic"] for message in messages} == {"order", "execution", "position", "wallet"}
    for message in messages:
        check(message, SHAPES[f"websocket/private/{message['topic']}"])


def test_messages_tell_the_story_in_order(trader):
    before = trader.exchange.subscribe(topics=("order.linear", "execution.linear"))
    trader.ok("Buy", "0.1", orderLinkId="story")
    after = trader.exchange.subscribe(topics=("order",))
    assert after.poll(T) == [], "nothing is repeated"
    told = [(message["topic"], message["data"][0].get("orderStatus")) for message in before.poll(T)]
    assert told == [("execution.linear", None), ("order.linear", "Filled")]
    numbers = [int(message["id"].split("_")[-1]) for message in before.poll(T)]
    assert numbers == sorted(numbers)
