"""The trading side over real sockets, driven by pybit: HTTP and websockets, faults, drills, the process of its own."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from decimal import Decimal

import httpx
import pybit.unified_trading
import pytest
import requests
from pybit.exceptions import FailedRequestError, InvalidRequestError
from pybit.unified_trading import HTTP, WebSocket

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import EmulatorServer
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.exchange import (
    DEFAULT_TRADE_KEY,
    DEFAULT_TRADE_SECRET,
    ExchangeOptions,
    TradeFault,
    TradeFaultSchedule,
)
from mlbot_core.timeframe import HOUR_MS

START = parse_utc_ms("2024-01-01")
NOW = parse_utc_ms("2024-08-01T10:37:21Z")
BTC = {"category": "linear", "symbol": "BTCUSDT"}
# pybit stamps with the wall clock, the market's stands still
WALL = ExchangeOptions(auth_time="wall", limits="off")


def session_of(url, timeout=10.0):
    session = HTTP(
        api_key=DEFAULT_TRADE_KEY, api_secret=DEFAULT_TRADE_SECRET, max_retries=1, retry_codes={-1}, timeout=timeout
    )
    session.endpoint = url
    session.client.trust_env = False
    return session


@pytest.fixture
def server():
    options = BybitOptions(ip_calls=100_000)
    with EmulatorServer(seed=7, start_ms=START, clock=FixedClock(NOW), bybit=options, trading=WALL) as running:
        yield running


@pytest.fixture
def bybit(server):
    session = session_of(server.url)
    yield session
    session.client.close()


def control(server, what, **body):
    answer = httpx.post(f"{server.url}/_emulator/exchange/{what}", json=body, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


def truth(server):
    return httpx.get(f"{server.url}/_emulator/exchange/truth", trust_env=False, timeout=30).json()


def faults(server, *lines, seed=0):
    schedule = TradeFaultSchedule(tuple(lines), seed).to_dict()
    answer = httpx.put(f"{server.url}/_emulator/exchange/faults", json=schedule, trust_env=False)
    assert answer.status_code == 200, answer.text


def test_pybit_trades(server, bybit):
    """Markets, ticker, candles, balance, leverage, create, amend, cancel, fills, positions, log."""
    (instrument,) = bybit.get_instruments_info(**BTC)["result"]["list"]
    (ticker,) = bybit.get_tickers(**BTC)["result"]["list"]
    assert len(bybit.get_kline(**BTC, interval="120", limit=5)["result"]["list"]) == 5
    (account,) = bybit.get_wallet_balance(accountType="UNIFIED", coin="USDT")["result"]["list"]
    assert account["totalEquity"] == "100000"
    bybit.set_leverage(**BTC, buyLeverage="5", sellLeverage="5")
    with pytest.raises(InvalidRequestError) as refused:
        bybit.set_leverage(**BTC, buyLeverage="5", sellLeverage="5")
    assert refused.value.status_code == 110043

    last, tick = Decimal(ticker["lastPrice"]), Decimal(instrument["priceFilter"]["tickSize"])
    entry = bybit.place_order(
        **BTC, side="Buy", orderType="Market", qty="0.05", orderLinkId="entry-1", stopLoss=str(last * 9 // 10)
    )
    resting = bybit.place_order(**BTC, side="Buy", orderType="Limit", qty="0.01", price=str(last - 100 * tick))
    order_id = resting["result"]["orderId"]
    bybit.amend_order(**BTC, orderId=order_id, price=str(last - 200 * tick))
    (row,) = bybit.get_open_orders(**BTC, orderId=order_id)["result"]["list"]
    assert (Decimal(row["price"]), row["orderStatus"]) == (last - 200 * tick, "New")
    bybit.cancel_order(**BTC, orderId=order_id)
    with pytest.raises(InvalidRequestError) as late:
        bybit.cancel_order(**BTC, orderId=order_id)
    assert late.value.status_code == 110001

    (position,) = bybit.get_positions(**BTC)["result"]["list"]
    assert (position["side"], position["size"], position["leverage"]) == ("Buy", "0.05", "5")
    assert Decimal(position["stopLoss"]) == last * 9 // 10
    fills = bybit.get_executions(**BTC)["result"]["list"]
    assert {row["orderId"] for row in fills} == {entry["result"]["orderId"]}
    assert sum(Decimal(row["execQty"]) for row in fills) == Decimal("0.05")
    bybit.set_trading_stop(**BTC, tpslMode="Full", positionIdx=0, takeProfit=str(last * 11 // 10))
    control(server, "advance", ms=6 * HOUR_MS)  # over the funding of 16:00
    bybit.place_order(**BTC, side="Sell", orderType="Market", qty="0.05", reduceOnly=True)
    history = {row["orderId"]: row["orderStatus"] for row in bybit.get_order_history(**BTC)["result"]["list"]}
    assert (history[order_id], history[entry["result"]["orderId"]]) == ("Cancelled", "Filled")
    types = [row["type"] for row in bybit.get_transaction_log(accountType="UNIFIED")["result"]["list"]]
    assert "SETTLEMENT" in types
    assert bybit.get_fee_rates(**BTC)["result"]["list"][0]["takerFeeRate"] == "0.00055"
    assert bybit.get_api_key_information()["result"]["readOnly"] == 0
    told = truth(server)
    wallet = told["accounts"]["100001"]["wallet"]["USDT"]
    assert wallet == bybit.get_wallet_balance(accountType="UNIFIED")["result"]["list"][0]["totalWalletBalance"]
    assert told["verified"] > 15
    assert DEFAULT_TRADE_SECRET not in json.dumps(told)


def test_a_wrong_secret_and_no_headers(server):
    session = HTTP(api_key=DEFAULT_TRADE_KEY, api_secret="guess", max_retries=1, retry_codes={-1})
    session.endpoint = server.url
    session.client.trust_env = False
    with pytest.raises(InvalidRequestError) as refused:
        session.get_positions(**BTC)
    assert refused.value.status_code == 10004
    assert httpx.get(f"{server.url}/v5/position/list", trust_env=False).status_code == 401


def test_pages_of_pybit_are_signed_as_sent(bybit):
    for n in range(5):
        bybit.place_order(**BTC, side="Buy", orderType="Limit", qty="0.001", price=str(bid(bybit) - n))
    first = bybit.get_open_orders(**BTC, limit=2)["result"]
    second = bybit.get_open_orders(**BTC, limit=2, cursor=first["nextPageCursor"])["result"]
    assert not {row["orderId"] for row in first["list"]} & {row["orderId"] for row in second["list"]}


def bid(bybit):
    return Decimal(bybit.get_tickers(**BTC)["result"]["list"][0]["bid1Price"]) - 50


@pytest.mark.parametrize(
    ("fault", "error", "made"),
    [
        (TradeFault("timeout", "order/create", when="after", seconds=20), requests.exceptions.ReadTimeout, 1),
        (TradeFault("timeout", "order/create", when="before", seconds=20), requests.exceptions.ReadTimeout, 0),
        (TradeFault("reset", "order/create", when="after"), requests.exceptions.ConnectionError, 1),
        (TradeFault("reset", "order/create", when="before"), requests.exceptions.ConnectionError, 0),
        (TradeFault("http_502", "order/create", when="after"), FailedRequestError, 1),
        (TradeFault("truncated_json", "order/create"), FailedRequestError, 1),
        (TradeFault("body_10016", "order/create", when="before"), InvalidRequestError, 0),
        (TradeFault("outage"), requests.exceptions.ConnectionError, 0),
    ],
    ids=lambda value: f"{value.kind}-{value.when}" if isinstance(value, TradeFault) else "",
)
def test_what_a_lost_answer_leaves_behind(server, fault, error, made):
    faults(server, fault)
    session = session_of(server.url, timeout=0.5)
    with pytest.raises(error):
        session.place_order(**BTC, side="Buy", orderType="Market", qty="0.01", orderLinkId="lost-1")
    assert httpx.delete(f"{server.url}/_emulator/exchange/faults", trust_env=False).json()["faults"] == []
    orders = truth(server)["accounts"]["100001"]["orders"]
    assert [row["orderLinkId"] for row in orders] == ["lost-1"] * made
    assert fault.takes_effect == bool(made)
    assert fault.outcome == "ambiguous"
    if made:
        with pytest.raises(InvalidRequestError) as again:
            session.place_order(**BTC, side="Buy", orderType="Market", qty="0.01", orderLinkId="lost-1")
        assert again.value.status_code == 110072


class Awaited(dict):
    """What pybit files only after it has sent a request: over loopback the answer can come first, and would end it."""

    def __missing__(self, key):
        deadline = time.monotonic() + 5
        while key not in self:
            if time.monotonic() > deadline:
                raise KeyError(key)
            time.sleep(0.001)
        return self[key]


@pytest.fixture
def sockets(server, monkeypatch):
    """Open pybit websockets against the emulator; all are closed at the end."""
    base = server.url.replace("http", "ws")
    monkeypatch.setattr(pybit.unified_trading, "PRIVATE_WSS", f"{base}/v5/private")
    monkeypatch.setattr(pybit.unified_trading, "PUBLIC_WSS", f"{base}/v5/public/{{CHANNEL_TYPE}}")
    opened = []

    def open_(kind, **more):
        keys = {"api_key": DEFAULT_TRADE_KEY, "api_secret": DEFAULT_TRADE_SECRET} if kind == "private" else {}
        socket = WebSocket(testnet=False, channel_type=kind, private_auth_expire=10, **keys, **more)
        opened.append(socket)
        socket.subscriptions, socket.callback_directory = Awaited(), Awaited()
        return socket

    yield open_
    for socket in opened:
        socket.exit()


def collect(messages, until, seconds=10.0):
    """Return what arrives until ``until(all so far)``."""
    got, deadline = [], time.monotonic() + seconds
    while not until(got):
        assert time.monotonic() < deadline, f"still waiting after {len(got)} messages"
        try:
            got.append(messages.get(timeout=0.2))
        except queue.Empty:
            continue
    return got


def test_private_streams(server, bybit, sockets):
    messages = queue.Queue()
    socket = sockets("private")
    for stream in (socket.order_stream, socket.execution_stream, socket.position_stream, socket.wallet_stream):
        stream(callback=messages.put)
    time.sleep(0.3)
    bybit.place_order(**BTC, side="Buy", orderType="Market", qty="0.05", orderLinkId="streamed")
    got = collect(messages, lambda seen: any(m["topic"] == "wallet" for m in seen))
    assert got[0]["topic"] == "execution"
    assert {m["topic"] for m in got} == {"order", "execution", "position", "wallet"}
    order = next(m["data"][0] for m in got if m["topic"] == "order")
    assert (order["orderLinkId"], order["orderStatus"], order["cumExecQty"]) == ("streamed", "Filled", "0.05")
    control(server, "advance", ms=6 * HOUR_MS)
    got = collect(messages, lambda seen: any(m["data"][0].get("execType") == "Funding" for m in seen))
    assert got


def test_doubled_swapped_late_and_lost_messages(server, bybit, sockets):
    messages = queue.Queue()
    sockets("private").execution_stream(callback=messages.put)
    time.sleep(0.3)
    faults(
        server,
        TradeFault("ws_duplicate", "ws/execution", nth=1),
        TradeFault("ws_swap", "ws/execution", nth=2),
        TradeFault("ws_drop", "ws/execution", nth=4),
        TradeFault("ws_late", "ws/execution", nth=5, seconds=60),
    )
    links = [f"message-{n}" for n in range(6)]
    for link in links:
        bybit.place_order(**BTC, side="Buy", orderType="Market", qty="0.001", orderLinkId=link)
    got = collect(messages, lambda seen: len(seen) == 5)
    assert [m["data"][0]["orderLinkId"] for m in got] == [links[n] for n in (0, 0, 2, 1, 5)]
    assert got[0]["id"] == got[1]["id"]
    control(server, "advance", ms=61_000)
    (late,) = collect(messages, lambda seen: len(seen) == 1)
    assert late["data"][0]["orderLinkId"] == links[4]


def test_a_cut_stream_reconnects_without_what_it_missed(server, bybit, sockets):
    messages = queue.Queue()
    sockets("private").order_stream(callback=messages.put)
    time.sleep(0.3)
    faults(server, TradeFault("ws_disconnect", "ws/order", nth=1))
    bybit.place_order(**BTC, side="Buy", orderType="Market", qty="0.001", orderLinkId="before-the-cut")
    collect(messages, lambda seen: len(seen) == 1)
    deadline = time.monotonic() + 10
    while not server.exchange.hubs[100001].streams or server.exchange.hubs[100001].streams[-1].closed:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    bybit.place_order(**BTC, side="Buy", orderType="Market", qty="0.001", orderLinkId="after-the-cut")
    (message,) = collect(messages, lambda seen: len(seen) == 1)
    assert message["data"][0]["orderLinkId"] == "after-the-cut"


def test_public_streams(server, bybit, sockets):
    messages = queue.Queue()
    socket = sockets("linear")
    socket.ticker_stream(symbol="BTCUSDT", callback=messages.put)
    socket.orderbook_stream(depth=50, symbol="BTCUSDT", callback=messages.put)
    socket.trade_stream(symbol="BTCUSDT", callback=messages.put)
    socket.kline_stream(interval=5, symbol="BTCUSDT", callback=messages.put)
    kinds = ("tickers", "orderbook", "publicTrade", "kline")
    got = collect(messages, lambda seen: all(any(m["topic"].startswith(kind) for m in seen) for kind in kinds))
    (ticker,) = bybit.get_tickers(**BTC)["result"]["list"]
    shown = next(m["data"] for m in got if m["topic"] == "tickers.BTCUSDT")
    assert {name: shown[name] for name in ticker} == ticker
    book = next(m["data"] for m in got if m["topic"].startswith("orderbook"))
    assert book["b"] == bybit.get_orderbook(**BTC, limit=50)["result"]["b"]
    control(server, "advance", ms=11 * 60_000)
    got = collect(messages, lambda seen: sum(m["topic"].startswith("kline") for m in seen) >= 3)
    bars = [m["data"][0] for m in got if m["topic"].startswith("kline")]
    rows = bybit.get_kline(**BTC, interval="5", limit=3)["result"]["list"][::-1]
    assert [[str(bar["start"]), bar["close"]] for bar in bars] == [[row[0], row[4]] for row in rows]
    assert [bar["confirm"] for bar in bars] == [True, True, False]
    deadline = time.monotonic() + 5
    while True:  # deltas, put together by pybit, become the book of now
        held = [m["data"] for m in got if m["topic"].startswith("orderbook")]
        now = bybit.get_orderbook(**BTC, limit=50)["result"]
        if held and sorted(map(tuple, held[-1]["b"])) == sorted(map(tuple, now["b"])):
            break
        assert time.monotonic() < deadline
        got += collect(messages, lambda seen: bool(seen))


def test_refusals_of_websockets(server):
    import websocket

    def ask(path, *operations):
        connection = websocket.create_connection(server.url.replace("http", "ws") + path, timeout=5)
        try:
            answers = []
            for operation in operations:
                connection.send(operation if isinstance(operation, str) else json.dumps(operation))
                answers.append(json.loads(connection.recv()))
            return answers
        finally:
            connection.close()

    subscribe = {"op": "subscribe", "args": ["order"], "req_id": "7"}
    nobody = {"op": "auth", "args": ["nobody", 1, "x"]}
    ping, wrong, refused = ask("/v5/private", {"op": "ping"}, subscribe, nobody)
    assert (ping["op"], ping["args"]) == ("pong", [str(NOW)])
    assert (wrong["success"], wrong["ret_msg"], wrong["req_id"]) == (False, "Request not authorized", "7")
    assert (refused["success"], refused["ret_msg"]) == (False, "API key is invalid.")
    ping, unknown, torn, depth = ask(
        "/v5/public/linear",
        {"op": "ping", "req_id": "a"},
        {"op": "subscribe", "args": ["weather.BTCUSDT"]},
        "not json",
        {"op": "subscribe", "args": ["orderbook.7.BTCUSDT"]},
    )
    assert (ping["ret_msg"], ping["req_id"]) == ("pong", "a")
    assert [unknown["success"], torn["success"], depth["success"]] == [False] * 3
    assert "weather.BTCUSDT" in unknown["ret_msg"]


def test_the_steering_wheel(server):
    base = f"{server.url}/_emulator/exchange"
    control(server, "deposit", amount="12.5")
    control(server, "withdraw", amount="2.5")
    control(server, "deposit", amount="1", coin="ETH")
    assert truth(server)["accounts"]["100001"]["wallet"] == {"USDT": "100010.00000000", "ETH": "1.00000000"}
    for what, body in (
        ("withdraw", {"amount": "1000000"}),
        ("deposit", {"amount": "-1"}),
        ("deposit", {"amount": "1", "uid": 5}),
        ("intervene", {"kind": "AdlTrade", "qty": "1"}),
        ("intervene", {"kind": "Miracle", "qty": "1"}),
        ("advance", {"ms": -5}),
        ("advance", {}),
    ):
        answer = httpx.post(f"{base}/{what}", json=body, trust_env=False)
        assert answer.status_code == 400, (what, body)
        assert "error" in answer.json()
    wrong = httpx.put(f"{base}/faults", json={"faults": [{"kind": "meteor"}]}, trust_env=False)
    assert wrong.status_code == 400
    assert "meteor" in wrong.json()["error"]


def test_the_process_serves_traders(tmp_path):
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps([{"key": "mine", "secret": "mine-secret", "uid": 9, "ips": ["127.0.0.1"]}]))
    process = subprocess.Popen(
        [
            *(sys.executable, "-W", "error", "-m", "mlbot_core.emulator", "--trade-keys", str(keys)),
            *("--balance", "500", "--trade-time", "wall"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MLBOT_CLOCK": "fixed:2024-03-01T00:00:05Z"},
    )
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        session = HTTP(api_key="mine", api_secret="mine-secret", max_retries=1, retry_codes={-1})
        session.endpoint = url
        session.client.trust_env = False
        (account,) = session.get_wallet_balance(accountType="UNIFIED")["result"]["list"]
        assert account["totalEquity"] == "500"
        assert session.get_api_key_information()["result"]["ips"] == ["127.0.0.1"]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=15)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize("text", ['[{"key": "a", "secret": "hush", "power": 1}]', "hush", '{"hush": 1}', '["hush"]'])
def test_a_wrong_key_file_is_named_but_not_shown(tmp_path, text):
    keys = tmp_path / "keys.json"
    keys.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "mlbot_core.emulator", "--trade-keys", str(keys)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "hush" not in done.stderr
    assert "secret" in done.stderr
