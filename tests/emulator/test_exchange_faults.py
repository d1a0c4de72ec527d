"""Trouble on schedule, in process: every kind, what it leaves behind, what the client sees; pybit without sockets."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
import requests
from pybit import _helpers
from pybit.exceptions import FailedRequestError, InvalidRequestError
from pybit.unified_trading import HTTP

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import SyntheticMarket
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.bybit_market import BybitMarket
from mlbot_core.emulator.bybit_public import PublicMarket
from mlbot_core.emulator.exchange import (
    DEFAULT_TRADE_KEY,
    DEFAULT_TRADE_SECRET,
    Exchange,
    ExchangeOptions,
    TradeFault,
    TradeFaultSchedule,
    random_schedule,
)
from mlbot_core.emulator.exchange.adapter import InProcess
from mlbot_core.emulator.exchange.trade_faults import LOST_KINDS, TRADE_KINDS
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, HOUR_MS

T = parse_utc_ms("2024-03-01T09:00:00Z")
START = parse_utc_ms("2024-01-01")
BTC = {"category": "linear", "symbol": "BTCUSDT"}


@pytest.fixture
def trader(trade_on):
    return trade_on((T, "60000"), (T + 10_000, "59900"), (T + 20_000, "60200"))


def install(trader, *lines, seed=0):
    trader.exchange.install_faults(TradeFaultSchedule(tuple(lines), seed))


def links(trader):
    return [row["orderLinkId"] for row in trader.exchange.truth()["accounts"]["100001"]["orders"]]


ANSWERS = {
    "timeout": ("timeout", 0, None),
    "reset": ("reset", 0, None),
    "http_500": ("", 500, 10016),
    "http_502": ("", 502, None),
    "body_10000": ("", 200, 10000),
    "body_10016": ("", 200, 10016),
    "truncated_json": ("", 200, None),
    "body_10006": ("", 200, 10006),
    "body_10018": ("", 200, 10018),
    "http_403": ("", 403, 403),
    "http_429": ("", 429, 429),
    "reject": ("", 200, 110007),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ANSWERS)
def test_each_fault_says_whether_the_request_took_effect(trader, kind, when):
    fault = TradeFault(kind, "order/create", when=when, nth=1, code=110007 if kind == "reject" else None)
    install(trader, fault)
    params = {**BTC, "side": "Buy", "orderType": "Market", "qty": "0.1", "orderLinkId": "hit"}
    answer = trader.send("POST", "/v5/order/create", **params)
    lost, status, code = ANSWERS[kind]
    assert (answer.lost, answer.status) == (lost, status)
    if code is not None:
        assert answer.json()["retCode"] == code
    elif not lost:
        with pytest.raises(ValueError, match=r"Expecting|Unterminated|delimiter"):
            answer.json()
    assert links(trader) == (["hit"] if fault.takes_effect else [])
    assert fault.takes_effect == (kind in LOST_KINDS and (when == "after" or kind == "truncated_json"))
    assert fault.outcome == ("ambiguous" if kind in LOST_KINDS else "definite")
    (entry,) = trader.exchange.faults.log
    assert (entry["takes_effect"], entry["outcome"], entry["link"]) == (fault.takes_effect, fault.outcome, "hit")
    note = trader.exchange.requests[-1]
    assert note["note"] == ("carried out" if fault.takes_effect else "not carried out")
    # the client asks again with the same id
    again = trader.post("/v5/order/create", **params)["retCode"]
    assert again == (110072 if fault.takes_effect else 0)
    assert links(trader) == ["hit"]
    assert trader.position()["size"] == "0.1"


def test_a_lost_answer_to_a_refusal_leaves_nothing(trader):
    install(trader, TradeFault("timeout", "order/create", when="after", nth=1))
    assert trader.send("POST", "/v5/order/create", **BTC, side="Buy", orderType="Market", qty="0.0001").lost
    assert trader.exchange.requests[-1]["note"] == "refused 10001"
    assert links(trader) == []


def test_partial_fill_then_cancel(trader):
    install(trader, TradeFault("partial_fill", "order/create", nth=1, fraction=0.34))
    row = trader.row(trader.ok("Buy", "0.1"))
    assert (row["orderStatus"], row["cumExecQty"], row["leavesQty"]) == ("Cancelled", "0.034", "0")
    install(trader, TradeFault("partial_fill", "order/create", nth=1, fraction=0.5))
    resting = trader.ok("Buy", "0.1", "59950")
    assert trader.row(resting)["orderStatus"] == "New"
    trader.clock.set_ms(T + 10_000)
    row = trader.row(resting)
    assert (row["orderStatus"], row["cumExecQty"], row["avgPrice"]) == ("Cancelled", "0.05", "59950")
    install(trader, TradeFault("partial_fill", "order/create", nth=1, fraction=0.0))
    assert trader.row(trader.ok("Buy", "0.1"))["cumExecQty"] == "0"


def test_an_accepted_order_can_be_rejected_by_the_engine(trader):
    install(trader, TradeFault("engine_reject", "order/create", nth=1))
    row = trader.row(trader.ok("Buy", "0.1", orderLinkId="refused-later"))
    assert (row["orderStatus"], row["cumExecQty"], row["rejectReason"]) == ("Rejected", "0", "EC_NoEnoughQtyToFill")
    assert trader.position()["size"] == "0"
    assert trader.order("Buy", "0.1", orderLinkId="refused-later")["retCode"] == 110072


def test_an_order_can_be_seen_late(trader):
    install(trader, TradeFault("late_visibility", "order/create", nth=1, seconds=3))
    trader.ok("Buy", "0.1", orderLinkId="shy")

    def seen():
        paths = ("/v5/order/realtime", "/v5/order/history", "/v5/execution/list")
        return [len(trader.get(path, **BTC, orderLinkId="shy")["result"]["list"]) for path in paths]

    assert seen() == [0, 0, 0]
    assert trader.position()["size"] == "0.1"
    trader.clock.set_ms(T + 2999)
    assert seen() == [0, 0, 0]
    trader.clock.set_ms(T + 3000)
    assert seen() == [1, 1, 1]


def test_windows(trader):
    def window(kind, **more):
        return TradeFault(kind, active_from_ms=T + 1000, active_to_ms=T + 2000, **more)

    install(trader, window("outage"))
    trader.ok("Buy", "0.1")
    trader.clock.set_ms(T + 1000)
    assert trader.send("GET", "/v5/account/info").lost == "reset"
    assert trader.exchange.handle("GET", "/v5/market/time", {}).lost == "reset"
    trader.clock.set_ms(T + 1500)
    install(trader, window("clock_skew", seconds=7))
    shown = trader.exchange.handle("GET", "/v5/market/time", {}).json()
    assert (shown["time"], shown["result"]["timeNano"]) == (T + 8500, f"{T + 8500}000000")
    assert trader.get("/v5/account/info")["retCode"] == 10002
    install(trader, window("clock_skew", seconds=-2))
    assert trader.get("/v5/account/info")["retCode"] == 10002, "the client is more than a second ahead"
    install(trader, window("rate_burst", limit=2))
    assert [trader.get("/v5/account/info")["retCode"] for _ in range(3)] == [0, 0, 10006]
    trader.clock.set_ms(T + 2000)
    assert trader.get("/v5/account/info")["retCode"] == 0


def test_streams_double_delay_swap_drop_and_end(trader):
    stream = trader.exchange.subscribe(topics=("execution",))
    install(
        trader,
        TradeFault("ws_duplicate", "ws/execution", nth=1),
        TradeFault("ws_swap", "ws/execution", nth=2),
        TradeFault("ws_late", "ws/execution", nth=4, seconds=2),
        TradeFault("ws_drop", "ws/execution", nth=5),
        TradeFault("ws_disconnect", "ws/execution", nth=6),
    )
    for n in range(7):
        trader.ok("Buy", "0.001", orderLinkId=f"n-{n}")

    def told():
        return [message["data"][0]["orderLinkId"] for message in stream.poll(trader.clock.now_ms())]

    assert told() == ["n-0", "n-0", "n-2", "n-1", "n-5"]
    assert stream.closed
    trader.clock.set_ms(T + 2000)
    assert told() == ["n-3"]


def test_the_same_seed_fails_the_same_way(trade_on):
    def run(seed):
        trader = trade_on((T, "60000"))
        install(trader, TradeFault("body_10016", "order/create", when="before", probability=0.4), seed=seed)
        return [trader.order("Buy", "0.001")["retCode"] for _ in range(30)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert 3 < sum(code == 10016 for code in run(1)) < 24


def test_random_schedules():
    kinds = set()
    for seed in range(200):
        schedule = random_schedule(seed, T, T + DAY_MS)
        assert schedule == random_schedule(seed, T, T + DAY_MS)
        assert TradeFaultSchedule.from_json(json.dumps(schedule.to_dict())) == schedule
        kinds |= {fault.kind for fault in schedule.faults}
        assert all(T <= fault.active_from_ms < T + DAY_MS for fault in schedule.faults)
    assert kinds == set(TRADE_KINDS)


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "meteor"},
        {"kind": "clock_skew"},
        {"kind": "reject"},
        {"kind": "timeout", "when": "during"},
        {"kind": "timeout", "nth": 0},
        {"kind": "timeout", "nth": 1, "probability": 0.5},
        {"kind": "timeout", "probability": 2},
        {"kind": "partial_fill", "fraction": 1.5},
        {"kind": "timeout", "seconds": float("nan")},
        {"kind": "timeout", "power": 1},
        {"nth": 1},
    ],
)
def test_lines_that_make_no_sense(line):
    with pytest.raises(UsageError, match="fault"):
        TradeFault.from_dict(line)


@pytest.fixture
def session(monkeypatch):
    """pybit over an exchange in process, on the exchange's clock."""
    clock = FixedClock(START + 5 * DAY_MS)
    market = BybitMarket(SyntheticMarket(7, START))
    public = PublicMarket({"BTCUSDT": market}, BybitOptions())
    exchange = Exchange.synthetic({"BTCUSDT": market}, clock, options=ExchangeOptions(limits="off"), public=public)
    monkeypatch.setattr(_helpers, "generate_timestamp", clock.now_ms)
    made = HTTP(api_key=DEFAULT_TRADE_KEY, api_secret=DEFAULT_TRADE_SECRET, max_retries=1, retry_codes={-1})
    made.endpoint = "http://emulator"
    made.client.mount("http://emulator", InProcess(exchange))
    yield made, exchange, clock
    made.client.close()


def test_pybit_in_process(session):
    bybit, exchange, clock = session
    assert len(bybit.get_kline(**BTC, interval="60", limit=3)["result"]["list"]) == 3
    order = bybit.place_order(**BTC, side="Buy", orderType="Market", qty="0.1", orderLinkId="in-process")
    clock.sleep(9 * 3600)
    (row,) = bybit.get_order_history(**BTC, orderLinkId="in-process")["result"]["list"]
    assert (row["orderId"], row["orderStatus"]) == (order["result"]["orderId"], "Filled")
    kinds = [row["execType"] for row in bybit.get_executions(**BTC)["result"]["list"]]
    assert kinds[0] == "Funding"
    for fault, error in (
        (TradeFault("timeout", "order/create"), requests.exceptions.ReadTimeout),
        (TradeFault("reset", "order/create"), requests.exceptions.ConnectionError),
        (TradeFault("http_502", "order/create"), FailedRequestError),
        (TradeFault("body_10006", "order/create"), InvalidRequestError),
    ):
        exchange.install_faults(TradeFaultSchedule((fault,)))
        with pytest.raises(error):
            bybit.place_order(**BTC, side="Sell", orderType="Market", qty="0.01")
    assert exchange.auth.verified == 7


def test_liquidation_on_the_synthetic_market_takes_all_and_no_more(session):
    """Whatever the market does, hundredfold leverage ends in a takeover that leaves the wallet at zero or above."""
    bybit, exchange, clock = session
    exchange.transfer(Decimal("-99000"))
    bybit.set_leverage(**BTC, buyLeverage="100", sellLeverage="100")
    bybit.place_order(**BTC, side="Buy", orderType="Market", qty="0.9")
    for _ in range(100):
        clock.sleep(HOUR_MS / 1000)
        account = exchange.truth()["accounts"]["100001"]
        if account["executions"][-1]["execType"] == "BustTrade":
            break
    else:
        pytest.fail("this market never took it; choose another day")
    assert 0 <= Decimal(account["wallet"]["USDT"]) < 1
    assert account["positions"]["BTCUSDT"]["size"] == "0"
    assert account["transaction_log"][-1]["type"] == "LIQUIDATION"
