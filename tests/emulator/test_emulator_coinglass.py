"""The Coinglass half over real sockets: envelope, keys and types of recorded answers, plan gates, ranges, limits."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from mlbot_core.clock import parse_utc_ms
from mlbot_core.emulator.daily import WHOLE
from mlbot_core.emulator.endpoints import ENDPOINTS
from mlbot_core.emulator.plans import PLANS
from mlbot_core.errors import UsageError
from mlbot_core.market.catalogue import CATALOGUE
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Timeframe

PRICE = "/api/futures/price/history"
OI = "/api/futures/open-interest/aggregated-history"
TAKER = "/api/futures/aggregated-taker-buy-sell-volume/history"
FIXTURES = {
    PRICE: "futures_price_history",
    OI: "open_interest_aggregated_history",
    "/api/futures/funding-rate/oi-weight-history": "funding_rate_oi_weight_history",
    "/api/futures/global-long-short-account-ratio/history": "global_long_short_account_ratio_history",
    "/api/futures/liquidation/aggregated-history": "liquidation_aggregated_history",
    TAKER: "aggregated_taker_buy_sell_volume_history",
}


def decimals(value) -> int:
    """Decimals of a served number, quoted or not; one at least, as 0.0 has."""
    exponent = Decimal(str(value)).normalize().as_tuple().exponent
    return max(1, -int(exponent))


def test_it_serves_what_the_catalogue_asks_for(connect) -> None:
    client = connect()
    asked = {spec.endpoint: spec for spec in CATALOGUE.values() if spec.endpoint}
    assert set(asked) == set(ENDPOINTS) | set(WHOLE)
    for path, spec in asked.items():
        params = {k: v.format(symbol="BTC", pair="BTCUSDT") for k, v in spec.params.items()}
        bounds = {} if spec.native else {"interval": "4h", "limit": 3}
        data = client.rows(path, **bounds, **params)
        first = data if isinstance(data, dict) else data[0]
        assert {spec.time_field, *(column.field for column in spec.columns if column.field)} <= set(first)


@pytest.mark.archive
@pytest.mark.parametrize("path", FIXTURES)
def test_keys_types_and_envelope_are_those_of_recorded_answers(connect, archive_dir, path: str) -> None:
    recorded = json.loads((archive_dir / "fixtures" / "coinglass" / f"{FIXTURES[path]}.json").read_text())
    body = connect().get(path, interval="4h", limit=200).json()
    assert list(body) == list(recorded)
    assert {k: v for k, v in body.items() if k != "data"} == {k: v for k, v in recorded.items() if k != "data"}
    for served, real in ((body["data"][:-1], recorded["data"][:-1]), (body["data"][-1:], recorded["data"][-1:])):
        shape = {tuple((name, type(value)) for name, value in row.items()) for row in real}
        assert {tuple((name, type(value)) for name, value in row.items()) for row in served} == shape
    for name, value in recorded["data"][0].items():
        most = max(decimals(row[name]) for row in recorded["data"])
        assert max(decimals(row[name]) for row in body["data"]) <= most, name
        # The same unit: the typical size is within a factor of a hundred of the recorded one.
        if name != "time":
            typical = sorted(abs(float(row[name])) for row in body["data"])[100]
            assert abs(float(value)) / 100 < typical < abs(float(value)) * 100, name


@pytest.mark.parametrize("path", FIXTURES)
def test_rows_ascend_on_the_grid_to_the_open_bar(connect, path: str) -> None:
    client = connect()
    for label in ("30m", "1h", "2h", "4h", "1d"):
        tf = Timeframe.parse(label)
        rows = client.rows(path, interval=label, limit=50)
        last = tf.floor(client.clock.now_ms())
        assert [row["time"] for row in rows] == list(range(last - 49 * tf.ms, last + 1, tf.ms))
        client.clock.sleep(77)
        again = client.rows(path, interval=label, limit=50)
        assert again[:-1] == rows[:-1]
        assert again[-1]["time"] == last
        if path != "/api/futures/global-long-short-account-ratio/history":  # two decimals may stand still for a minute
            assert again[-1] != rows[-1]
        client.clock.set_ms(tf.close_of(last))
        final = client.rows(path, interval=label, start_time=last, end_time=last)
        assert final[0] != rows[-1]
        client.clock.sleep(3 * 86_400 + 1234)
        assert client.rows(path, interval=label, start_time=last, end_time=last) == final


def test_open_interest_is_whole_only_when_closed(connect) -> None:
    rows = connect().rows(OI, interval="4h", limit=100)
    assert all(row["close"] == int(row["close"]) for row in rows[:-1])
    assert rows[-1]["close"] != int(rows[-1]["close"])
    assert rows[-1]["low"] <= rows[-1]["close"] <= rows[-1]["high"]


@pytest.mark.parametrize("label", ["30m", "1h", "2h"])
def test_bounds_are_inclusive(connect, now_ms: int, label: str) -> None:
    client, tf = connect(), Timeframe.parse(label)
    a = tf.floor(now_ms - 20 * DAY_MS)
    b = a + 9 * tf.ms

    def times(**query) -> list[int]:
        return [row["time"] for row in client.rows(PRICE, interval=label, **query)]

    every = list(range(a, b + 1, tf.ms))
    assert times(start_time=a, end_time=b) == every
    assert times(start_time=a + 1, end_time=b - 1) == every[1:-1]
    assert times(start_time=a, end_time=b + tf.ms - 1) == every
    assert times(start_time=b, end_time=a) == []
    assert times(start_time=a, end_time=b, limit=4) == every[:4]
    assert times(end_time=b, limit=4) == every[-4:]
    assert times(start_time=a, limit=4) == every[:4]
    assert times(start_time=now_ms + DAY_MS) == []
    assert times(end_time=now_ms + DAY_MS, limit=1) == [tf.floor(now_ms)]
    assert times(start_time=0, end_time=parse_utc_ms("2023-12-31")) == []
    assert times(start_time=0, limit=1) == [parse_utc_ms("2024-01-01")]


def test_overfull_windows_may_keep_the_other_end(connect, now_ms: int) -> None:
    client = connect(overfull="last")
    a = Timeframe.parse("1h").floor(now_ms - 20 * DAY_MS)
    rows = client.rows(PRICE, interval="1h", start_time=a, end_time=a + 9 * HOUR_MS, limit=4)
    assert [row["time"] for row in rows] == [a + i * HOUR_MS for i in range(6, 10)]


def test_a_thousand_rows_at_most(connect) -> None:
    client = connect()
    assert len(client.rows(PRICE, interval="1h")) == 1000
    assert len(client.rows(PRICE, interval="1h", limit=4500)) == 1000


@pytest.mark.parametrize("key", [None, "", "wrong", "emulator-key "])
def test_the_key_is_needed(connect, key: str | None) -> None:
    client = connect(key=key.strip() if key == "emulator-key " else key)
    if key == "emulator-key ":
        assert client.get(PRICE, interval="1h").json()["code"] == "0"
        return
    for path in (*FIXTURES, "/api/user/account/subscription", "/api/no/such"):
        response = client.get(path, interval="1h")
        assert response.status_code == 401
        assert response.json()["code"] == "401"
        assert "key" in response.json()["msg"]
        assert "data" not in response.json()


def test_a_configured_key(connect) -> None:
    assert connect(key="k2").get(PRICE, interval="1h").status_code == 401
    client = connect(key="emulator-key")
    assert client.server.key == "emulator-key"


@pytest.mark.parametrize("path", FIXTURES)
def test_required_parameters(connect, path: str) -> None:
    client = connect()
    for name in ENDPOINTS[path].needs:
        response = client.get(path, interval="1h", without=name)
        assert response.status_code == 200
        assert response.json() == {"code": "400", "msg": f"Required String parameter '{name}' is not present"}


@pytest.mark.parametrize("path", FIXTURES)
def test_the_wrong_kind_of_symbol(connect, path: str) -> None:
    client = connect()
    wrong = "BTC" if ENDPOINTS[path].symbol == "pair" else "BTCUSDT"
    body = client.get(path, interval="1h", symbol=wrong).json()
    assert body["code"] == "400"
    assert "does not exist" in body["msg"]
    assert "data" not in body


@pytest.mark.parametrize(
    "query",
    [
        {"interval": "h1"},
        {"interval": "7m"},
        {"interval": "1m"},
        {"interval": "1h", "limit": "0"},
        {"interval": "1h", "limit": "-5"},
        {"interval": "1h", "limit": "many"},
        {"interval": "1h", "start_time": "yesterday"},
        {"interval": "1h", "end_time": "1e12"},
        {"interval": "1h", "end_time": "9" * 40},
        {"interval": "1h", "exchange": "Mars"},
    ],
)
def test_wrong_values_are_refused_inside_http_200(connect, query: dict) -> None:
    response = connect().get(PRICE, **query)
    assert (response.status_code, response.json()["code"]) == (200, "400")


def test_exchanges_share_the_flow(connect) -> None:
    client = connect()
    total = client.rows(TAKER, interval="1d", limit=3)
    lists = ("Binance", "okx, Bybit")
    parts = [client.rows(TAKER, interval="1d", limit=3, exchange_list=names) for names in lists]
    for i, row in enumerate(total):
        summed = sum(part[i]["aggregated_buy_volume_usd"] for part in parts)
        assert summed == pytest.approx(row["aggregated_buy_volume_usd"])
    assert client.get(TAKER, interval="1d", exchange_list="Binance,Mars").json()["code"] == "400"
    okx = client.rows(PRICE, interval="1d", limit=3, exchange="OKX", symbol="BTC-USDT-SWAP")
    binance = client.rows(PRICE, interval="1d", limit=3)
    assert [row["close"] for row in okx] == [row["close"] for row in binance]
    assert float(okx[0]["volume_usd"]) == pytest.approx(float(binance[0]["volume_usd"]) * 27 / 53)


@pytest.mark.parametrize("native", [True, False])
def test_two_hours_may_be_missing(connect, native: bool) -> None:
    client = connect(native_2h=native)
    body = client.get(PRICE, interval="2h", limit=3).json()
    assert body["code"] == ("0" if native else "400")
    assert "2h" in body["msg"] or native


@pytest.mark.parametrize("plan", [name for name in PLANS if name != "enterprise"])
def test_plan_gates_and_silent_cuts(connect, plan: str) -> None:
    client = connect(plan=plan, now=parse_utc_ms("2026-06-01T10:37:21Z"))
    now = client.clock.now_ms()
    for label in ("15m", "30m", "1h", "2h", "4h", "6h", "1d"):
        if label not in PLANS[plan].days:
            response = client.get(PRICE, interval=label, limit=3)
            assert response.status_code == 200
            assert response.json() == {
                "code": "403",
                "msg": "The requested interval is not available for your current API plan.",
            }
            continue
        tf = Timeframe.parse(label)
        rows = client.rows(PRICE, interval=label, start_time=parse_utc_ms("2024-01-01"), limit=1000)
        days = PLANS[plan].days[label]
        if days is None:
            assert rows[0]["time"] == parse_utc_ms("2024-01-01")
            continue
        assert rows[0]["time"] == tf.floor(now) + tf.ms - days * DAY_MS
        count = sum(1 for _ in range(rows[0]["time"], tf.floor(now) + 1, tf.ms))
        assert count == days * DAY_MS // tf.ms, "the window counts the open bar"
    assert client.get(PRICE, interval="1m", without="symbol").json()["code"] in ("403", "400")


def test_enterprise_has_no_cut(connect) -> None:
    client = connect(plan="enterprise", now=parse_utc_ms("2026-06-01"))
    assert client.rows(PRICE, interval="30m", start_time=0, limit=2)[0]["time"] == parse_utc_ms("2024-01-01")


def test_subscription_and_discovery(connect) -> None:
    client = connect(plan="professional")
    body = client.get("/api/user/account/subscription").json()
    assert body["code"] == "0"
    assert body["data"]["level"] == "PROFESSIONAL"
    assert body["data"]["expired"] is False
    assert body["data"]["expire_time"] > client.clock.now_ms()
    assert client.rows("/api/futures/supported-coins") == ["BTC", "ETH"]
    assert client.rows("/api/futures/supported-exchanges") == ["Binance", "OKX", "Bybit"]


def test_unknown_paths_and_methods(connect) -> None:
    client = connect()
    response = client.get("/api/futures/openInterest/ohlc-history")
    assert response.status_code == 404
    assert response.json()["code"] == "404"
    assert response.json()["msg"].startswith("Endpoint not found")
    response = client.http.post(PRICE)
    assert (response.status_code, response.json()["code"]) == (405, "405")


def test_calls_are_counted_by_the_clocks_minute(connect) -> None:
    client = connect(plan="hobbyist", now=parse_utc_ms("2024-08-01T10:37:30Z"))
    for used in range(1, 31):
        response = client.get(PRICE, interval="4h", limit=1)
        assert response.status_code == 200
        assert response.headers["API-KEY-MAX-LIMIT"] == "30"
        assert response.headers["API-KEY-USE-LIMIT"] == str(used)
    client.clock.sleep(29)
    response = client.get(PRICE, interval="4h", limit=1)
    assert (response.status_code, response.json()["code"]) == (429, "429")
    assert response.headers["API-KEY-USE-LIMIT"] == "30"
    client.clock.sleep(1)
    response = client.get(PRICE, interval="4h", limit=1)
    assert response.status_code == 200
    assert response.headers["API-KEY-USE-LIMIT"] == "1"


def test_a_native_two_hour_bar_equals_its_hours(connect, now_ms: int) -> None:
    client = connect()
    end = Timeframe.parse("2h").floor(now_ms) - 1
    for path in FIXTURES:
        two = client.rows(path, interval="2h", end_time=end, limit=100)
        one = client.rows(path, interval="1h", end_time=end, limit=200)
        assert [row["time"] for row in two] == [row["time"] for row in one[::2]]
        for row, first, second in zip(two, one[::2], one[1::2], strict=True):
            for name in row:
                a, b, value = float(first[name]), float(second[name]), float(row[name])
                if name in ("time", "open"):
                    assert value == a
                elif name == "high":
                    assert value == max(a, b)
                elif name == "low":
                    assert value == min(a, b)
                elif name == "close" or name.startswith("global_account"):
                    assert value == b
                else:
                    assert value == pytest.approx(a + b, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"plan": "gold"}, "gold"), ({"key": ""}, "key"), ({"calls_per_minute": 0}, "0"), ({"overfull": "x"}, "x")],
)
def test_wrong_options_are_refused(options: dict, named: str) -> None:
    from mlbot_core.emulator import CoinglassOptions

    with pytest.raises(UsageError, match=named):
        CoinglassOptions(**options)
