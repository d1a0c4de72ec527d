"""The Bybit half, driven by pybit itself over real sockets: wire format, bounds, pages, errors, limits, faults."""

import json
import urllib.parse

import httpx
import numpy as np
import pytest
import requests
from pybit.exceptions import FailedRequestError, InvalidRequestError
from pybit.unified_trading import HTTP

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import EmulatorServer, Fault, FaultSchedule
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe

START = parse_utc_ms("2024-01-01")
NOW = parse_utc_ms("2024-08-01T10:37:21Z")
BTC = {"category": "linear", "symbol": "BTCUSDT"}
INTERVALS = {"1": 1, "3": 3, "5": 5, "15": 15, "30": 30, "60": 60, "120": 120, "240": 240, "360": 360, "720": 720}
INTERVALS |= {"D": 1440}
KLINES = ("get_kline", "get_mark_price_kline", "get_index_price_kline", "get_premium_index_price_kline")


def session_of(server):
    session = HTTP(max_retries=1, retry_codes={-1}, timeout=10)
    session.endpoint = server.url
    session.client.trust_env = False
    return session


@pytest.fixture(scope="module")
def server():
    with EmulatorServer(seed=7, start_ms=START, clock=FixedClock(NOW), bybit=BybitOptions(ip_calls=100_000)) as running:
        yield running


@pytest.fixture(scope="module")
def bybit(server):
    session = session_of(server)
    yield session
    session.client.close()


def opens(answer):
    return [int(row[0]) for row in answer["result"]["list"]]


def test_envelope_and_time(bybit):
    answer = bybit.get_server_time()
    assert list(answer) == ["retCode", "retMsg", "result", "retExtInfo", "time"]
    assert (answer["retCode"], answer["retMsg"], answer["retExtInfo"], answer["time"]) == (0, "OK", {}, NOW)
    assert answer["result"] == {"timeSecond": str(NOW // 1000), "timeNano": f"{NOW}000000"}


@pytest.mark.parametrize("method", KLINES)
@pytest.mark.parametrize("interval", INTERVALS)
def test_klines_newest_first_with_the_open_bar(bybit, method, interval):
    timeframe = Timeframe(INTERVALS[interval])
    result = getattr(bybit, method)(**BTC, interval=interval, limit=7)["result"]
    assert (result["symbol"], result["category"]) == ("BTCUSDT", "linear")
    rows = result["list"]
    assert [int(row[0]) for row in rows] == [timeframe.floor(NOW) - n * timeframe.ms for n in range(7)]
    assert all(isinstance(value, str) for row in rows for value in row)
    assert {len(row) for row in rows} == {7 if method == "get_kline" else 5}
    for _, open_, high, low, close, *flows in ([float(value) for value in row] for row in rows):
        assert low <= min(open_, close) <= max(open_, close) <= high
        assert not flows or low * flows[0] * 0.999 <= flows[1] <= high * flows[0] * 1.001


def test_bounds_of_klines(bybit):
    """A start inside a bar returns that bar, an end keeps bars open by then, a start alone returns the oldest."""

    def ask(**params):
        return opens(bybit.get_kline(**BTC, interval="60", **params))

    assert ask(start=START + 90 * MINUTE_MS, end=START + 4 * HOUR_MS) == [START + n * HOUR_MS for n in (4, 3, 2, 1)]
    assert ask(start=START, end=START + 2 * HOUR_MS + 1) == [START + n * HOUR_MS for n in (2, 1, 0)]
    assert ask(start=9999, limit=1) == [START]
    assert ask(start=START + 5 * HOUR_MS, limit=2) == [START + 6 * HOUR_MS, START + 5 * HOUR_MS]
    assert ask(end=START + 5 * HOUR_MS, limit=2) == [START + 5 * HOUR_MS, START + 4 * HOUR_MS]
    assert ask(start=NOW + DAY_MS, end=NOW + 2 * DAY_MS) == []
    assert ask(end=START - 1) == []
    assert len(ask()) == 200
    assert len(ask(limit=5000)) == 1000


@pytest.mark.parametrize("overfull", ["first", "last"])
def test_which_end_an_overfull_answer_keeps(overfull):
    with EmulatorServer(start_ms=START, clock=FixedClock(NOW), bybit=BybitOptions(overfull=overfull)) as server:
        got = opens(session_of(server).get_kline(**BTC, interval="60", start=START, end=START + 9 * HOUR_MS, limit=3))
    kept = (2, 1, 0) if overfull == "first" else (9, 8, 7)
    assert got == [START + n * HOUR_MS for n in kept]


@pytest.mark.parametrize("method", KLINES)
def test_longer_bars_are_made_of_shorter_ones(bybit, method):
    end = START + 3 * DAY_MS
    call = getattr(bybit, method)
    minutes = np.array(
        call(**BTC, interval="1", start=START, end=START + 999 * MINUTE_MS, limit=1000)["result"]["list"]
    )
    fives = np.array(call(**BTC, interval="5", start=START, end=end - 1, limit=1000)["result"]["list"])
    hours = np.array(call(**BTC, interval="60", start=START, end=end - 1, limit=1000)["result"]["list"])
    for longer, shorter in ((fives, minutes), (hours, fives)):
        step = int(longer[0, 0]) - int(longer[1, 0])
        for row in longer[::-1][: 900 * MINUTE_MS // step].astype(float):
            part = shorter[shorter[:, 0].astype(np.int64) // step * step == int(row[0])][::-1].astype(float)
            assert row[1] == part[0, 1]
            assert row[2] == part[:, 2].max()
            assert row[3] == part[:, 3].min()
            assert row[4] == part[-1, 4]
            if method == "get_kline":
                assert row[5:] == pytest.approx(part[:, 5:].sum(axis=0), abs=0.01)


def test_closed_bars_do_not_change_with_time(server, bybit):
    later = server.clock.now_ms() + 3 * HOUR_MS
    with EmulatorServer(seed=7, start_ms=START, clock=FixedClock(later)) as other:
        for interval in ("1", "3", "5", "60"):
            timeframe = Timeframe(INTERVALS[interval])
            bounds = {"start": NOW - 20 * timeframe.ms, "end": timeframe.floor(NOW) - timeframe.ms}
            first = bybit.get_kline(**BTC, interval=interval, **bounds)["result"]["list"]
            assert session_of(other).get_kline(**BTC, interval=interval, **bounds)["result"]["list"] == first
            assert len(first) == 20


def test_five_years_of_hours_quickly_and_both_coins():
    start, now = parse_utc_ms("2020-03-01"), parse_utc_ms("2025-03-01T00:30:00Z")
    with EmulatorServer(start_ms=start, clock=FixedClock(now)) as server:
        session = session_of(server)
        for symbol, at in (("BTCUSDT", 60_000), ("ETHUSDT", 3_000)):
            first = session.get_kline(category="linear", symbol=symbol, interval="60", start=start, limit=1)
            assert float(first["result"]["list"][0][1]) == pytest.approx(at, rel=1e-3)
        seen = []
        for page in range(44):
            bounds = {"start": start + page * 1000 * HOUR_MS, "end": start + (page * 1000 + 999) * HOUR_MS}
            seen += opens(session.get_kline(**BTC, interval="60", limit=1000, **bounds))[::-1]
    assert seen == list(range(start, now, HOUR_MS))


@pytest.mark.parametrize("symbol", ["BTC", "ETH"])
def test_agrees_with_the_market_that_the_coinglass_half_shows(server, bybit, symbol):
    market = server.markets[symbol]
    rows = np.array(
        bybit.get_kline(category="linear", symbol=f"{symbol}USDT", interval="60", limit=1000)["result"]["list"]
    )[::-1].astype(float)
    bars = market.bars("price", Timeframe(60), int(rows[0, 0]), int(rows[-1, 0]), NOW)
    for index, name in enumerate(("open", "high", "low", "close"), start=1):
        difference = np.abs(rows[:, index] / bars.values[name] - 1)
        assert difference.max() < 0.001
        assert difference.max() > 0  # two venues, not one twice
    mark, index_, premium = (
        np.array(
            getattr(bybit, name)(category="linear", symbol=f"{symbol}USDT", interval="60", limit=1000)["result"]["list"]
        ).astype(float)[::-1]
        for name in KLINES[1:]
    )
    assert np.abs(mark[:, 4] / rows[:, 4] - 1).max() < 0.01
    np.testing.assert_allclose(rows[:, 4] / index_[:, 4] - 1, premium[:, 4], atol=1e-5)


def test_funding_history(bybit):
    def ask(**params):
        return bybit.get_funding_rate_history(**BTC, **params)["result"]["list"]

    newest = NOW // (8 * HOUR_MS) * 8 * HOUR_MS
    rows = ask()
    assert [int(row["fundingRateTimestamp"]) for row in rows] == [newest - n * 8 * HOUR_MS for n in range(200)]
    assert all(row["symbol"] == "BTCUSDT" and abs(float(row["fundingRate"])) < 0.00375 for row in rows)
    assert ask(endTime=newest - 1, limit=1) == [rows[1]]
    assert ask(startTime=newest - 8 * HOUR_MS, endTime=newest) == rows[:2]
    with pytest.raises(InvalidRequestError) as raised:
        ask(startTime=newest)
    assert raised.value.status_code == 10001


@pytest.mark.parametrize(
    ("method", "name", "default", "most"),
    [("get_open_interest", "intervalTime", 50, 200), ("get_long_short_ratio", "period", 50, 500)],
)
def test_samples_by_bounds_and_by_cursor(bybit, method, name, default, most):
    call = getattr(bybit, method)
    newest = NOW // HOUR_MS * HOUR_MS
    whole = call(**BTC, **{name: "1h"}, limit=most)["result"]
    stamps = [int(row["timestamp"]) for row in whole["list"]]
    assert stamps == [newest - n * HOUR_MS for n in range(most)]
    assert len(call(**BTC, **{name: "1h"})["result"]["list"]) == default
    bounded = call(**BTC, **{name: "1h"}, startTime=stamps[9], endTime=stamps[3])["result"]
    assert bounded["list"] == whole["list"][3:10]
    assert bounded["nextPageCursor"] == ""
    # by cursor, the same rows; the cursor is percent-encoded and handed back as it is
    pages, cursor = [], None
    while cursor != "":
        answer = call(**BTC, **{name: "1h"}, startTime=stamps[99], endTime=newest, limit=30, cursor=cursor)["result"]
        pages += answer["list"]
        cursor = answer["nextPageCursor"]
        assert cursor == urllib.parse.quote(urllib.parse.unquote(cursor), safe="")
    assert pages == whole["list"][:100]
    with pytest.raises(InvalidRequestError, match="cursor"):
        call(**BTC, **{name: "1h"}, cursor="elsewhere")
    with pytest.raises(InvalidRequestError):
        call(**BTC, **{name: "2h"})


def test_open_interest_of_one_side_and_of_both(bybit):
    rows = bybit.get_open_interest(**BTC, intervalTime="5min", limit=200)["result"]["list"]
    assert all(float(row["openInterest"]) == 2 * float(row["singleOpenInterest"]) for row in rows)
    since = NOW // HOUR_MS * HOUR_MS - 5 * HOUR_MS
    options = BybitOptions(both_sides_since_ms=since)
    with EmulatorServer(seed=7, start_ms=START, clock=FixedClock(NOW), bybit=options) as server:
        mixed = session_of(server).get_open_interest(**BTC, intervalTime="1h", limit=10)["result"]["list"]
    assert ["singleOpenInterest" in row for row in mixed] == [True] * 6 + [False] * 4
    single = [float(row.get("singleOpenInterest", row["openInterest"])) for row in mixed]
    assert max(single) / min(single) < 1.1


def test_shares_of_accounts(bybit):
    rows = bybit.get_long_short_ratio(**BTC, period="1d", limit=100)["result"]["list"]
    assert set(rows[0]) == {"symbol", "buyRatio", "sellRatio", "timestamp"}
    assert all(float(row["buyRatio"]) + float(row["sellRatio"]) == pytest.approx(1) for row in rows)


def test_instruments(bybit):
    everything = bybit.get_instruments_info(category="linear")["result"]
    assert [row["symbol"] for row in everything["list"]] == ["BTCUSDT", "ETHUSDT"]
    page = bybit.get_instruments_info(category="linear", limit=1)["result"]
    rest = bybit.get_instruments_info(category="linear", limit=1, cursor=page["nextPageCursor"])["result"]
    assert page["list"] + rest["list"] == everything["list"]
    assert rest["nextPageCursor"] == ""
    (btc,) = bybit.get_instruments_info(**BTC)["result"]["list"]
    assert btc["launchTime"] == str(START)
    assert (btc["status"], btc["fundingInterval"], btc["settleCoin"]) == ("Trading", 480, "USDT")
    assert btc["lotSizeFilter"]["qtyStep"] == "0.001"
    assert btc["lotSizeFilter"]["minNotionalValue"] == "5"


def test_this_moment(bybit):
    (ticker,) = bybit.get_tickers(**BTC)["result"]["list"]
    last = float(bybit.get_kline(**BTC, interval="5", limit=1)["result"]["list"][0][4])
    assert float(ticker["lastPrice"]) == last
    assert float(ticker["openInterest"]) == pytest.approx(2 * float(ticker["singleOpenInterest"]))
    assert int(ticker["nextFundingTime"]) - NOW < 8 * HOUR_MS
    day = np.array(bybit.get_kline(**BTC, interval="5", limit=288)["result"]["list"]).astype(float)
    assert float(ticker["highPrice24h"]) == day[:, 2].max()
    assert len(bybit.get_tickers(category="linear")["result"]["list"]) == 2
    book = bybit.get_orderbook(**BTC, limit=25)["result"]
    bids, asks = ([float(price) for price, _ in book[side]] for side in "ba")
    assert bids == sorted(bids, reverse=True)
    assert asks == sorted(asks)
    assert bids[0] < asks[0]
    assert len(bids) == 25
    trades = bybit.get_public_trade_history(**BTC, limit=10)["result"]["list"]
    assert [int(row["time"]) for row in trades] == sorted((int(row["time"]) for row in trades), reverse=True)
    limits = bybit.get_price_limit(**BTC)["result"]
    assert float(limits["sellLmt"]) < float(ticker["markPrice"]) < float(limits["buyLmt"])
    tiers = bybit.get_risk_limit(**BTC)["result"]["list"]
    assert [tier["id"] for tier in tiers] == list(range(1, len(tiers) + 1))
    # margins in percent, as in the documentation's sample
    assert float(tiers[0]["initialMargin"]) * float(tiers[0]["maxLeverage"]) == pytest.approx(100)


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("get_kline", {"category": "linear", "interval": "60"}, 10001),
        ("get_kline", {**BTC}, 10001),
        ("get_kline", {**BTC, "interval": "2h"}, 10001),
        ("get_kline", {**BTC, "interval": "60", "start": "soon"}, 10001),
        ("get_kline", {**BTC, "interval": "60", "limit": 0}, 10001),
        ("get_kline", {"category": "linear", "symbol": "NOPEUSDT", "interval": "60"}, 10001),
        ("get_kline", {"category": "spot", "symbol": "BTCUSDT", "interval": "60"}, 10001),
        ("get_instruments_info", {"category": "linear", "symbol": "NOPEUSDT"}, 10001),
    ],
)
def test_mistakes_come_as_codes_inside_http_200(bybit, method, params, code):
    with pytest.raises(InvalidRequestError) as raised:
        getattr(bybit, method)(**params)
    assert raised.value.status_code == code


def test_unknown_routes_and_methods(server):
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        assert http.get("/v5/market/nothing").status_code == 404
        assert http.get("/v5/market/nothing").json()["retCode"] == 10017
        assert http.post("/v5/market/kline").status_code == 405


def test_address_limit_bans_everything_for_a_while():
    with EmulatorServer(clock=FixedClock(NOW), start_ms=START, bybit=BybitOptions(ip_calls=5, ban_s=0.6)) as server:
        session = session_of(server)
        for _ in range(5):
            session.get_server_time()
        for _ in range(2):
            with pytest.raises(FailedRequestError) as raised:
                session.get_server_time()
            assert raised.value.status_code == 403
        assert server.calls()["refused_by_code"] == {"403": 2}


@pytest.mark.parametrize(
    ("kind", "error", "status"),
    [
        ("http_429", FailedRequestError, 429),
        ("body_429", InvalidRequestError, 429),
        ("http_403", FailedRequestError, 403),
        ("body_10006", InvalidRequestError, 10006),
        ("http_500", FailedRequestError, 500),
        ("body_500", InvalidRequestError, 10016),
        ("html_502", FailedRequestError, 502),
        ("truncated_json", FailedRequestError, 409),
        ("reset", requests.exceptions.RequestException, None),
    ],
)
def test_faults_as_pybit_reports_them(kind, error, status):
    faults = FaultSchedule((Fault(kind, endpoint="/kline", nth=2),))
    with EmulatorServer(clock=FixedClock(NOW), start_ms=START, faults=faults) as server:
        session = session_of(server)
        good = session.get_kline(**BTC, interval="60", limit=5)
        with pytest.raises(error) as raised:
            session.get_kline(**BTC, interval="60", limit=5)
        assert status is None or raised.value.status_code == status
        if kind == "body_10006":
            assert int(raised.value.resp_headers["X-Bapi-Limit-Reset-Timestamp"]) > NOW
        assert session.get_kline(**BTC, interval="60", limit=5) == good
        assert [entry["fault"]["kind"] for entry in server.faults.log] == [kind]


def test_row_faults():
    faults = FaultSchedule(
        (
            Fault("empty_page", endpoint="/kline", nth=1),
            Fault("restate", endpoint="/open-interest", from_ts=0, to_ts=NOW, column="openInterest", factor=1.5),
            Fault("gap", endpoint="/funding", from_ts=0, to_ts=NOW),
        )
    )
    with EmulatorServer(clock=FixedClock(NOW), start_ms=START, faults=faults) as server:
        session = session_of(server)
        assert opens(session.get_kline(**BTC, interval="60", limit=5)) == []
        assert len(opens(session.get_kline(**BTC, interval="60", limit=5))) == 5
        (row,) = session.get_open_interest(**BTC, intervalTime="1h", limit=1)["result"]["list"]
        assert float(row["openInterest"]) == pytest.approx(3 * float(row["singleOpenInterest"]))
        assert session.get_funding_rate_history(**BTC)["result"]["list"] == []


def test_calls_are_remembered(server, bybit):
    bybit.get_kline(**BTC, interval="60", start=START, end=START, limit=3)
    log = json.loads(httpx.get(f"{server.url}/_emulator/bybit/requests", trust_env=False).content)
    assert log[-1] == [
        "/v5/market/kline",
        {**BTC, "interval": "60", "start": str(START), "end": str(START), "limit": "3"},
    ]
