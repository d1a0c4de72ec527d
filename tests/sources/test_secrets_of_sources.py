"""A canary key goes through every way a source can fail and is looked for in everything that comes out."""

import logging
import os
import traceback

import pytest
from pydantic import SecretStr

from mlbot_core.errors import ConfigError, KeyRejectedError, MlbotError
from mlbot_core.market import CATALOGUE
from mlbot_core.sources import open_source
from mlbot_core.sources.coinglass import CoinglassSource
from mlbot_core.sources.ratelimit import bucket_path
from mlbot_core.sources.transport import Transport
from mlbot_core.timeframe import Market

CANARY = "canary-7f3a9c51e2"
PRICE = str(CATALOGUE["price"].endpoint)
MARKET = Market.parse("BTC-1h")
NOON = 1741608000000
HOUR = 3_600_000

FAULTS = [
    {"body": {"code": "401", "msg": "API key $KEY invalid"}},
    {"body": {"code": "401", "msg": "Upgrade plan of $KEY"}},
    {"body": {"code": "403", "msg": "$KEY: not available for your current API plan"}},
    {"body": {"code": "400", "msg": "bad interval for $KEY"}},
    {"body": {"code": "400", "msg": "pair does not exist, said $KEY"}},
    {"body": {"code": "$KEY", "msg": None}},
    {"body": {"code": "500", "msg": "Server Error for $KEY"}},
    {"body": {"code": "429", "msg": "$KEY is too fast"}, "status": 429, "headers": {"Retry-After": "0"}},
    {"body": b'{"code":"0","data":[{"time":"$KEY'},
    {"body": {"code": "0", "data": "$KEY"}},
    {"body": b"<html>$KEY</html>", "status": 502},
    {"body": b"<html>$KEY</html>", "status": 404},
    {"break_with": "reset"},
    {"break_with": "short", "body": {"data": "$KEY"}},
    {"body": {"code": "0", "data": [{"time": "$KEY"}]}},
    {"body": {"code": "0", "data": ["$KEY"]}},
    {"body": {"code": "0", "data": [{"time": NOON - HOUR, "open": "$KEY"}]}},
]


def everything(error):
    """The error as any log or crash page may show it, local variables of every frame but the test's included."""
    shown = [str(error), repr(error)]
    error = error.with_traceback(error.__traceback__.tb_next)
    while error is not None:
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
        shown += ["".join(trace.format()), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return "\n".join(shown)


@pytest.mark.parametrize("fault", FAULTS, ids=range(len(FAULTS)))
def test_key_is_in_no_error_and_no_log(fault, server, clock, reply, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    server.always[PRICE] = reply(**fault)
    secret = SecretStr(CANARY)
    transport = Transport(server.url, secret, clock, sleep=lambda _: None)
    monkeypatch.setattr(transport.limiter, "_sleep", lambda _: None)
    with CoinglassSource("coinglass", transport, clock) as source:
        with pytest.raises(MlbotError) as caught:
            source.fetch("price", MARKET, NOON - 24 * HOUR, NOON)
        assert CANARY in {headers["CG-API-KEY"] for _, _, headers in server.requests}
        assert CANARY not in everything(caught.value)
        assert CANARY not in caplog.text
        assert CANARY not in repr(source) + str(source) + repr(transport) + repr(transport.limiter)


@pytest.mark.parametrize("key", [f"{CANARY}\n", f"{CANARY} x", f"{CANARY}é", f"\t{CANARY}"])
def test_key_that_fits_no_header_is_refused_without_being_shown(key, clock):
    with pytest.raises(KeyRejectedError) as caught:
        Transport("https://example.invalid", SecretStr(key), clock)
    assert CANARY not in everything(caught.value)


def test_rate_file_is_named_by_a_hash(tmp_path, server, clock):
    path = bucket_path(tmp_path, "host", CANARY)
    assert CANARY not in path.name
    with CoinglassSource(
        "coinglass", Transport(server.url, SecretStr(CANARY), clock, rate_folder=tmp_path), clock
    ) as source:
        source.fetch("price", MARKET, NOON - 24 * HOUR, NOON)
    (file,) = tmp_path.iterdir()
    assert CANARY not in file.name + file.read_text()


@pytest.mark.parametrize("url", ["http://example.com", "ftp://127.0.0.1", "127.0.0.1:80", "", "http://"])
def test_key_is_not_sent_in_the_clear_or_nowhere(url, clock):
    with pytest.raises(ConfigError, match="Coinglass URL"):
        Transport(url, SecretStr(CANARY), clock)


def test_users_key_never_goes_to_the_emulator(server, clock, settings, monkeypatch):
    monkeypatch.setenv("MLBOT_CG_API", CANARY)
    with open_source("emulator", settings, clock, base_url=server.url) as source:
        source.fetch("price", MARKET, NOON - 24 * HOUR, NOON)
    assert CANARY not in {headers["CG-API-KEY"] for _, _, headers in server.requests}
    assert os.environ["MLBOT_CG_API"] == CANARY


def test_no_key_is_a_configuration_error(clock, settings, monkeypatch):
    monkeypatch.delenv("MLBOT_CG_API", raising=False)
    with pytest.raises(ConfigError, match=r"config/api_keys\.yaml.*MLBOT_CG_API") as caught:
        open_source("coinglass", settings, clock)
    assert caught.value.exit_code == 2


def test_key_of_the_environment_is_used(server, clock, settings, monkeypatch):
    monkeypatch.setenv("MLBOT_CG_API", CANARY)
    with open_source("coinglass", settings, clock, base_url=server.url) as source:
        assert source.fetch("price", MARKET, NOON - 24 * HOUR, NOON).rows == 24
    assert {headers["CG-API-KEY"] for _, _, headers in server.requests} == {CANARY}
