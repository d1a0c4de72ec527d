"""Series beside the core: wire types, what moves and what never does, plans, coins, and no change to what was there."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from mlbot_core.clock import parse_utc_ms
from mlbot_core.emulator import SyntheticMarket
from mlbot_core.emulator.endpoints import DEPTH_RANGES, ENDPOINTS
from mlbot_core.emulator.market import EXTRA_SERIES, SERIES
from mlbot_core.market.trading_days import is_us_trading_day
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Timeframe

START = parse_utc_ms("2024-01-01")
PAIR = {"exchange": "Binance", "symbol": "BTCUSDT"}
LISTED = {"exchange_list": "Binance,OKX,Bybit", "symbol": "BTC"}
OHLC_S = dict.fromkeys(("open", "high", "low", "close"), str)
OHLC_N = dict.fromkeys(("open", "high", "low", "close"), float)
DEPTH = {"bids_usd": float, "bids_quantity": float, "asks_usd": float, "asks_quantity": float}

# path: (parameters, {field: JSON type}, in the order of the wire, by the reference)
WIRE = {
    "/api/spot/price/history": (PAIR, {"time": int, **OHLC_N, "volume_usd": float}),
    "/api/futures/open-interest/history": ({**PAIR, "unit": "usd"}, {"time": int, **OHLC_S}),
    "/api/futures/open-interest/aggregated-stablecoin-history": (LISTED, {"time": int, **OHLC_N}),
    "/api/futures/open-interest/aggregated-coin-margin-history": (
        LISTED,
        {"time": int, **dict.fromkeys(("open", "high", "low", "close"), int)},
    ),
    "/api/futures/funding-rate/history": (PAIR, {"time": int, **OHLC_S}),
    "/api/futures/funding-rate/vol-weight-history": ({"symbol": "BTC"}, {"time": int, **OHLC_S}),
    "/api/futures/top-long-short-account-ratio/history": (
        PAIR,
        {
            "time": int,
            "top_account_long_percent": float,
            "top_account_short_percent": float,
            "top_account_long_short_ratio": float,
        },
    ),
    "/api/futures/top-long-short-position-ratio/history": (
        PAIR,
        {
            "time": int,
            "top_position_long_percent": float,
            "top_position_short_percent": float,
            "top_position_long_short_ratio": float,
        },
    ),
    "/api/futures/liquidation/history": (
        PAIR,
        {"time": int, "long_liquidation_usd": str, "short_liquidation_usd": str},
    ),
    "/api/futures/v2/taker-buy-sell-volume/history": (
        PAIR,
        {"time": int, "taker_buy_volume_usd": str, "taker_sell_volume_usd": str},
    ),
    "/api/spot/aggregated-taker-buy-sell-volume/history": (
        {**LISTED, "unit": "usd"},
        {"time": int, "aggregated_buy_volume_usd": float, "aggregated_sell_volume_usd": float},
    ),
    "/api/futures/orderbook/ask-bids-history": ({**PAIR, "range": "1"}, {**DEPTH, "time": int}),
    "/api/futures/orderbook/aggregated-ask-bids-history": (
        {**LISTED, "range": "1"},
        {**{f"aggregated_{name}": kind for name, kind in DEPTH.items()}, "time": int},
    ),
    "/api/coinbase-premium-index": (
        {},
        {"time": int, "premium": float, "premium_rate": float, "coinbase_price": float},
    ),
    "/api/bitfinex-margin-long-short": (
        {"symbol": "BTC"},
        {"time": int, "long_quantity": float, "short_quantity": float},
    ),
    "/api/borrow-interest-rate/history": (
        {"exchange": "Binance", "symbol": "BTC"},
        {"time": int, "interest_rate": float},
    ),
    "/api/futures/whale-index/history": (PAIR, {"time": int, "whale_index_value": float}),
}
SECONDS = {"/api/coinbase-premium-index", "/api/bitfinex-margin-long-short", "/api/borrow-interest-rate/history"}
FIXTURES = {
    "/api/futures/open-interest/aggregated-stablecoin-history": "open_interest_aggregated_stablecoin_history",
    "/api/futures/open-interest/aggregated-coin-margin-history": "open_interest_aggregated_coin_margin_history",
    "/api/futures/funding-rate/history": "funding_rate_history_binance",
    "/api/futures/top-long-short-account-ratio/history": "top_long_short_account_ratio_history",
    "/api/futures/top-long-short-position-ratio/history": "top_long_short_position_ratio_history",
}


def test_the_core_has_not_changed_by_a_bit() -> None:
    """Series beside it, and other coins, draw from streams of their own; the hash is of the market before they came."""
    market = SyntheticMarket(20260101, START)
    for series in EXTRA_SERIES:
        market.bars(series, Timeframe(60), START, START + 3 * DAY_MS, START + 3 * DAY_MS)
    bars = market.base(START + 400 * DAY_MS)
    assert hashlib.sha256(bars.tobytes()).hexdigest().startswith("e06cfcee3894bb9409680d03")


def test_core_answers_make_nothing_else() -> None:
    market = SyntheticMarket(7, START)
    for series in SERIES:
        market.bars(series, Timeframe(60), START, START + DAY_MS, START + DAY_MS)
    assert market._extras._made == {}


@pytest.mark.parametrize("symbol", ["BTC", "ETH"])
@pytest.mark.parametrize("series", EXTRA_SERIES)
def test_values_do_not_depend_on_the_way_there(symbol: str, series: str) -> None:
    tf, now = Timeframe(30), START + 70 * DAY_MS + 12_345_678
    once, piecewise = SyntheticMarket(7, START, "planted", symbol), SyntheticMarket(7, START, "planted", symbol)
    whole = once.bars(series, tf, START, now, now)
    for day in (1, 2, 31, 44, 61):
        piecewise.bars(series, Timeframe(240), START, START + day * DAY_MS, START + day * DAY_MS)
    again = piecewise.bars(series, tf, START, now, now)
    for name, data in whole.values.items():
        assert np.isfinite(data).all()
        assert np.array_equal(data, again.values[name])
    if "high" in whole.values:
        o, h, low, c = (whole.values[name] for name in ("open", "high", "low", "close"))
        assert (h >= np.maximum(o, c)).all()
        assert (low <= np.minimum(o, c)).all()
        assert np.array_equal(o[1:], c[:-1]), "each bar opens where the last one closed"


def test_coins_are_independent() -> None:
    btc, eth = (SyntheticMarket(7, START, "null", symbol) for symbol in ("BTC", "ETH"))
    end = START + 120 * DAY_MS
    moves = []
    for market, low, high in ((btc, 1e4, 1e6), (eth, 5e2, 2e4)):
        close = market.bars("price", Timeframe(60), START, end, end).values["close"]
        assert low < close.min() < close.max() < high
        moves.append(np.diff(np.log(close)))
    assert abs(float(np.corrcoef(*moves)[0, 1])) < 0.08


@pytest.mark.parametrize("path", WIRE)
def test_types_keys_and_times(connect, path: str) -> None:
    client = connect()
    params, shape = WIRE[path]
    rows = client.rows(path, interval="4h", limit=50, **params)
    last = Timeframe(240).floor(client.clock.now_ms())
    unit = 1000 if path in SECONDS else 1
    assert [row["time"] * unit for row in rows] == list(range(last - 49 * 4 * HOUR_MS, last + 1, 4 * HOUR_MS))
    for row in rows[:-1]:
        assert [(name, type(value)) for name, value in row.items()] == list(shape.items())
    open_bar = {name: type(value) for name, value in rows[-1].items()}
    # quoted and unquoted numbers side by side in the open bar, as has been documented
    mixed = {"close": float} if path.endswith("vol-weight-history") else {}
    assert open_bar == {**shape, **mixed}


@pytest.mark.archive
@pytest.mark.parametrize("path", FIXTURES)
def test_answers_look_like_recorded_ones(connect, archive_dir, path: str) -> None:
    recorded = json.loads((archive_dir / "fixtures" / "coinglass" / f"{FIXTURES[path]}.json").read_text())
    body = connect().get(path, interval="8h", limit=100, **WIRE[path][0]).json()
    assert {k: v for k, v in body.items() if k != "data"} == {k: v for k, v in recorded.items() if k != "data"}
    shapes = [[(name, type(value)) for name, value in row.items()] for row in (recorded["data"][0], body["data"][0])]
    assert shapes[0] == shapes[1]
    for name, value in recorded["data"][0].items():
        if name != "time":  # the same unit: coins are not USD, percents are not fractions
            typical = sorted(abs(float(row[name])) for row in body["data"])[50]
            assert abs(float(value)) / 30 < typical < abs(float(value)) * 30, name


@pytest.mark.parametrize("path", [path for path in ENDPOINTS if ENDPOINTS[path].moving])
def test_the_newest_closed_bar_of_a_moving_series_moves_once(connect, path: str) -> None:
    client = connect()
    params, shape = WIRE[path]
    fields = [name for name in shape if name != "time"]
    before = client.rows(path, interval="1h", limit=4, **params)
    client.clock.set_ms(Timeframe(60).ceil(client.clock.now_ms()))
    after = client.rows(path, interval="1h", limit=5, **params)
    at = next(i for i, row in enumerate(after) if row["time"] == before[2]["time"])
    for name in fields:
        assert 1.01 < before[2][name] / after[at][name] < 1.07
    client.clock.sleep(3600)
    final = client.rows(path, interval="1h", limit=6, **params)
    assert {row["time"]: row for row in final}[before[2]["time"]] == after[at]


def test_depth_grows_with_its_range_and_thins_when_restless(connect) -> None:
    client = connect()
    path = "/api/futures/orderbook/ask-bids-history"
    sizes = [client.rows(path, interval="1h", limit=1, **PAIR, range=text)[0]["bids_usd"] for text in DEPTH_RANGES]
    assert sizes == sorted(sizes)
    assert client.get(path, interval="1h", **PAIR, range="7").json()["code"] == "400"
    market = SyntheticMarket(7, START)
    end = START + 150 * DAY_MS
    book = market.bars("depth", Timeframe(5), START, end, end).values
    price = market.bars("price", Timeframe(5), START, end, end).values
    spread = np.log(price["high"] / price["low"])
    assert float(np.corrcoef(spread, np.log(book["bids_usd"]))[0, 1]) < -0.2


def test_plans_and_parameters(connect) -> None:
    whale = "/api/futures/whale-index/history"
    poor, rich = connect(plan="hobbyist"), connect(plan="startup")
    response = poor.get(whale, interval="4h", **PAIR)
    assert (response.status_code, response.json()) == (200, {"code": "401", "msg": "Upgrade plan"})
    assert rich.rows(whale, interval="4h", limit=1, **PAIR)
    for path in (p for p, (params, _) in WIRE.items() if "exchange_list" in params):
        without = {k: v for k, v in WIRE[path][0].items() if k != "exchange_list"}
        body = rich.get(path, interval="4h", **without).json()
        assert body == {"code": "400", "msg": "Required String parameter 'exchange_list' is not present"}
    assert (
        rich.get("/api/borrow-interest-rate/history", interval="4h", exchange="Nyse", symbol="BTC").json()["code"]
        == "400"
    )


def test_fear_and_greed(connect) -> None:
    path = "/api/index/fear-greed-history"
    data = connect().rows(path)
    assert list(data) == ["data_list", "price_list", "time_list"]
    assert len({len(values) for values in data.values()}) == 1
    stamps = np.array(data["time_list"])
    assert (np.abs(stamps % DAY_MS - 20 * 60_000) <= 1000).all()
    assert len(np.unique(stamps % DAY_MS)) > 100, "stamps are jittered"
    assert (np.diff(stamps // DAY_MS) == 1).all()
    assert all(isinstance(value, int) and 0 <= value <= 100 for value in data["data_list"])
    assert np.std(data["data_list"]) > 5
    assert connect(wrapped=True).rows(path) == [data]


def test_etf_flows(connect) -> None:
    path = "/api/etf/bitcoin/flow-history"
    client = connect(now=parse_utc_ms("2024-07-09T15:00:00Z"))
    rows = client.rows(path)
    days = np.array([row["timestamp"] for row in rows])
    assert days[0] == parse_utc_ms("2024-01-11")
    every = np.arange(days[0], days[-1] + 1, DAY_MS)
    assert np.array_equal(days, every[is_us_trading_day(every)])
    assert parse_utc_ms("2024-07-04") not in days
    assert "price_usd" not in rows[0]
    today = rows[-1]
    assert (today["timestamp"], today["flow_usd"]) == (parse_utc_ms("2024-07-09"), 0)
    assert {fund["flow_usd"] for fund in today["etf_flows"]} == {None}
    for row in rows[:-1]:
        assert row["flow_usd"] == sum(fund["flow_usd"] for fund in row["etf_flows"])
    client.clock.set_ms(parse_utc_ms("2024-07-10T06:00:00Z"))
    partly = next(row for row in client.rows(path) if row["timestamp"] == today["timestamp"])
    assert {fund["flow_usd"] is None for fund in partly["etf_flows"]} == {True, False}
    client.clock.set_ms(parse_utc_ms("2024-07-10T12:00:00Z"))
    final = next(row for row in client.rows(path) if row["timestamp"] == today["timestamp"])
    assert None not in {fund["flow_usd"] for fund in final["etf_flows"]}
    client.clock.sleep(5 * 86_400)
    assert next(row for row in client.rows(path) if row["timestamp"] == today["timestamp"]) == final


def test_options(connect) -> None:
    path = "/api/option/exchange-oi-history"
    client = connect()
    (data,) = client.rows(path, symbol="BTC", unit="USD", range="all")
    assert list(data) == ["time_list", "price_list", "data_map"]
    assert {len(values) for values in (data["time_list"], data["price_list"], *data["data_map"].values())} == {
        len(data["time_list"])
    }
    assert data["time_list"][-1] == client.clock.now_ms(), "the last point is stamped now"
    assert all(ts % DAY_MS == 0 for ts in data["time_list"][:-1])
    assert data["data_map"]["Bybit"][:5] == [None] * 5
    (short,) = client.rows(path, symbol="BTC", unit="USD", range="4h")
    assert len(short["time_list"]) == 31
    (coins,) = client.rows(path, symbol="BTC", unit="BTC", range="all")
    held = data["data_map"]["Deribit"][50] / coins["data_map"]["Deribit"][50]
    assert held == pytest.approx(data["price_list"][50], rel=1e-6)
    for wrong in ({"unit": "EUR", "range": "all"}, {"unit": "USD", "range": "2h"}, {"unit": "USD"}):
        assert client.get(path, symbol="BTC", **wrong).json()["code"] == "400"
    assert client.get(path, symbol="DOGE", unit="USD", range="all").json()["code"] == "400"


def test_legacy_spelling(connect) -> None:
    client = connect(legacy_intervals=True)
    path = "/api/futures/v2/taker-buy-sell-volume/history"
    assert client.get(path, interval="1h", **PAIR).json()["code"] == "400"
    assert "interval" in client.get(path, interval="1h", **PAIR).json()["msg"]
    assert client.rows(path, interval="h1", limit=2, **PAIR)
