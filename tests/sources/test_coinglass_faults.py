"""Every way an answer can be wrong: what is retried, what is refused, and what the error says."""

import socket

import pytest
from pydantic import SecretStr

from mlbot_core.clock import parse_utc_ms
from mlbot_core.errors import (
    BadDataError,
    KeyRejectedError,
    PlanError,
    RateLimitedError,
    SourceError,
)
from mlbot_core.market import CATALOGUE, CORE_SERIES
from mlbot_core.market.batch import column
from mlbot_core.sources import fetch_many
from mlbot_core.sources.coinglass import CoinglassSource
from mlbot_core.sources.transport import RequestRefusedError, Transport, UnreachableError, UpstreamError
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market

PRICE = str(CATALOGUE["price"].endpoint)
OI = str(CATALOGUE["open_interest"].endpoint)
LIQUIDATIONS = str(CATALOGUE["liquidations"].endpoint)
SIX = [name for name in CORE_SERIES if CATALOGUE[name].endpoint]
H1 = Market.parse("BTC-1h")
START = parse_utc_ms("2025-03-09T00:00:00Z")
NOON = parse_utc_ms("2025-03-10T12:00:00Z")


PERMANENT = [
    (200, "401", "Upgrade plan", PlanError),
    (401, "401", "Upgrade plan", PlanError),
    (200, "403", "The requested interval is not available for your current API plan.", PlanError),
    (403, None, None, PlanError),
    (200, "401", "API key invalid", KeyRejectedError),
    (401, None, None, KeyRejectedError),
    (400, "400", "API key missing.", KeyRejectedError),
    (200, "400", "Required String parameter 'symbol' is not present", RequestRefusedError),
    (400, "400", "The requested pair does not exist on the exchange", RequestRefusedError),
    (200, "1", "something else", RequestRefusedError),
    (404, "404", "Endpoint not found", RequestRefusedError),
    (422, "422", "unprocessable", RequestRefusedError),
    (405, None, None, RequestRefusedError),
    (302, None, None, RequestRefusedError),
]


@pytest.mark.parametrize(("status", "code", "msg", "error"), PERMANENT)
def test_permanent_errors_are_not_repeated(status, code, msg, error, source, server, reply, slept):
    body = b"<html>edge</html>" if code is None else {"code": code, "msg": msg}
    server.always[PRICE] = reply(body, status=status)
    with pytest.raises(error, match=PRICE) as caught:
        source.fetch("price", H1, START, NOON)
    assert type(caught.value) is error
    assert len(server.calls(PRICE)) == 1
    assert slept == []


TRANSIENT = [
    {"body": {"code": "500", "msg": "Server Error"}},
    {"body": {"code": "50001", "msg": "Server Error"}},
    {"body": b"<html>bad gateway</html>", "status": 502},
    {"body": {"code": "0", "data": []}, "status": 503},
    {"body": {"code": "408", "msg": "timeout"}, "status": 408},
    {"break_with": "reset"},
    {"body": {"code": "0", "data": []}, "break_with": "short"},
    {"body": b'{"code":"0","data":[{"time":17412'},
    {"body": b"\xff\xfe\x00"},
    {"body": b"[" * 100_000},
    {"body": {"code": "0", "data": None}},
    {"body": {"code": "0", "data": {"list": []}}},
    {"body": [1, 2]},
]


@pytest.mark.parametrize("fault", TRANSIENT, ids=range(len(TRANSIENT)))
def test_transient_faults_are_retried_with_growing_pauses(fault, source, server, reply, slept):
    server.script[PRICE].extend([reply(**fault)] * 3)
    batch = source.fetch("price", H1, START, NOON)
    assert batch.rows == 36
    assert batch.gaps == ()
    assert len(slept) == 3
    assert slept[0] < slept[1] < slept[2]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"body": b'{"code":"0","data":[{"time":17412'}, BadDataError),
        ({"body": {"code": "0", "data": None}}, BadDataError),
        ({"break_with": "reset"}, UnreachableError),
        ({"break_with": "short", "body": {"code": "0"}}, UnreachableError),
    ],
)
def test_lasting_faults_end_in_a_named_error(fault, error, source, server, reply):
    server.always[PRICE] = reply(**fault)
    with pytest.raises(error, match=r"price/history.*4 attempts failed"):
        source.fetch("price", H1, START, NOON)
    assert len(server.calls(PRICE)) == 4


def test_lasting_server_errors_halve_the_limit_then_fail(source, server, reply):
    server.always[PRICE] = reply({"code": "500", "msg": "Server Error"})
    with pytest.raises(UpstreamError, match="code 500, Server Error; 4 attempts failed"):
        source.fetch("price", H1, START, NOON)
    limits = [int(p["limit"]) for p in server.calls(PRICE)]
    assert limits[:4] == [38] * 4
    assert limits[4:] == [21] * 4


def test_a_server_that_cannot_take_large_limits_is_read_in_halves(source, server, reply, slept):
    real = server.answer

    def choke(path, params):
        if int(params.get("limit", 0)) > 600:
            return reply({"code": "500", "msg": "Server Error"})
        return real(path, params)

    server.answer = choke
    start = NOON - 2500 * HOUR_MS
    batch = source.fetch("price", H1, start, NOON)
    assert column(batch.table, "ts").tolist() == list(range(start, NOON, HOUR_MS))
    # the lesson is kept: only the first window was tried whole
    assert len([p for p in server.calls(PRICE) if int(p["limit"]) > 600]) == 4


def test_nobody_listening(clock, slept):
    with socket.socket() as held:
        # bound but not listening: nobody else can take the port meanwhile
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        transport = Transport(url, SecretStr("test-key"), clock, sleep=slept.append)
        source = CoinglassSource("coinglass", transport, clock)
        with source, pytest.raises(UnreachableError, match=r"ConnectError.*cannot be reached"):
            source.fetch("price", H1, START, NOON)
    assert len(slept) == 3


BAD_ROWS = [
    ("close", "NaN", r"close is 'NaN' at bar 2025-03-09T03:00:00Z"),
    ("close", "Infinity", "close is 'Infinity'"),
    ("close", float("nan"), "close is 'nan'"),
    ("close", "1e999", "close is '1e999'"),
    ("close", "abc", "close is 'abc'"),
    ("close", "1_0", "close is '1_0'"),
    ("close", None, "close is 'None'"),
    ("close", True, "close is 'True'"),
    ("close", [1], "close is"),
    ("close", "-5", r"price.close is -5.0"),
    ("open", 0, r"price.open is 0.0"),
    ("time", START + 3 * HOUR_MS + 1, "off the 1h grid"),
    ("time", "soon", "time is 'soon'"),
    ("time", None, "time is 'None'"),
    ("time", 1e300, "beyond the year 9999"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_ROWS)
def test_bad_values_are_refused_by_name(name, value, message, source, server):
    server.edit = lambda _, rows: [{**row, name: value} if i == 3 else row for i, row in enumerate(rows)]
    with pytest.raises(BadDataError, match=message):
        source.fetch("price", H1, START, NOON)
    assert len(server.calls(PRICE)) == 1


def test_missing_field_and_row_that_is_no_object(source, server):
    server.edit = lambda _, rows: [{k: v for k, v in row.items() if k != "volume_usd"} for row in rows]
    with pytest.raises(BadDataError, match=r"price/history: field 'volume_usd' is missing at bar 2025-03-09T00:00:00Z"):
        source.fetch("price", H1, START, NOON)
    server.edit = lambda _, rows: [[1, 2, 3]]
    with pytest.raises(BadDataError, match="not an object"):
        source.fetch("price", H1, START, NOON)


def test_nonsense_in_the_open_bar_is_ignored(source, server):
    server.edit = lambda _, rows: [*rows, {"time": NOON, "open": None, "close": "NaN"}]
    assert source.fetch("price", H1, START, NOON + DAY_MS).rows == 36


def test_duplicates(source, server):
    server.edit = lambda _, rows: [*rows[:5], rows[4], *rows[5:]]
    batch = source.fetch("price", H1, START, NOON)
    assert batch.rows == 36
    assert batch.notes == ("1 identical duplicate rows dropped",)
    server.edit = lambda _, rows: [*rows[:5], {**rows[4], "volume_usd": 1}, *rows[5:]]
    with pytest.raises(BadDataError, match="2025-03-09T04:00:00Z occurs twice with different values"):
        source.fetch("price", H1, START, NOON)


def test_rows_out_of_order_are_sorted_and_noted(source, server):
    server.edit = lambda _, rows: rows[::-1]
    batch = source.fetch("price", H1, START, NOON)
    assert column(batch.table, "ts").tolist() == list(range(START, NOON, HOUR_MS))
    assert batch.notes == ("rows were out of order",)


def test_429_waits_for_the_minute_and_goes_on(source, server, reply, clock, slept):
    source.subscription()
    clock.set_ms(NOON + HOUR_MS - 100)
    server.script[PRICE].extend([reply(status=429, body=b""), reply({"code": "429", "msg": "Too Many Requests"})])
    assert source.fetch("price", H1, START, NOON).rows == 36
    assert len(server.calls(PRICE)) == 3
    assert slept == []


def test_429_for_ever_is_an_error(source, server, reply):
    source.subscription()
    server.always[PRICE] = reply(status=429, body={"code": "429", "msg": "slow"}, headers={"Retry-After": "0"})
    with pytest.raises(RateLimitedError, match="still refused after 3 waits"):
        source.fetch("price", H1, START, NOON)
    assert len(server.calls(PRICE)) == 4


def test_fetch_many_is_the_same_as_one_by_one(source, server):
    together = fetch_many(source, SIX, H1, START, NOON)
    assert list(together) == SIX
    for name, batch in together.items():
        assert batch.table.equals(source.fetch(name, H1, START, NOON).table)


def test_fetch_many_raises_the_failure(source, server, reply):
    server.always[OI] = reply({"code": "401", "msg": "Upgrade plan"})
    with pytest.raises(PlanError, match="aggregated-history"):
        fetch_many(source, SIX, H1, START, NOON)


def test_errors_are_source_errors():
    assert all(issubclass(e, SourceError) for e in (RequestRefusedError, UnreachableError, UpstreamError))
