"""Which venue, with which key, under which name; and never real money by accident."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from mlbot_core.clock import FixedClock, SystemClock
from mlbot_core.config import load_settings
from mlbot_core.config.execution import VenueName
from mlbot_core.emulator import EmulatorServer
from mlbot_core.emulator.exchange import ApiKey, ExchangeOptions
from mlbot_core.emulator.exchange.options import default_keys, keys_of
from mlbot_core.errors import ConfigError, UsageError
from mlbot_core.execution.broker import Venue, VenueRefusedError, VenueUnreachableError
from mlbot_core.execution.venues import (
    key_pair,
    local_url,
    missing_switches,
    open_broker,
    paper_command,
    paper_folder,
    require_switches,
)
from mlbot_core.models import loading

CANARIES = ("canary-bybit-key/1", "canary-bybit-secret/2", "canary-deadman-key/3", "canary-deadman-secret/4")
KEYS = dict(
    zip(
        ("MLBOT_BYBIT_KEY", "MLBOT_BYBIT_SECRET", "MLBOT_DEADMAN_KEY", "MLBOT_DEADMAN_SECRET"),
        CANARIES,
        strict=True,
    )
)


def settings_for(tmp_path, venue="emulator", **execution):
    base = load_settings({"MLBOT_HOME": str(tmp_path)})
    changed = base.execution.model_copy(update={"venue": venue, **execution})
    # no keys file of whoever runs this
    return base.model_copy(update={"execution": changed, "config_dir": tmp_path})


def test_the_three_lists_of_venues_are_one():
    assert {venue.value for venue in Venue} == set(get_args(VenueName)) == set(loading.VENUES)


def test_a_running_emulator_is_opened_with_two_keys_of_one_account(tmp_path):
    clock = FixedClock(1_704_535_200_000)
    with EmulatorServer(seed=7, clock=clock) as server:
        settings = settings_for(tmp_path).model_copy(update={"emulator_url": server.url})
        with open_broker(settings, clock, {}) as trader, open_broker(settings, clock, {}, role="deadman") as deadman:
            assert trader.account == deadman.account == "emulator:100001"
            assert trader.key.fingerprint != deadman.key.fingerprint
            assert (trader.venue, trader.contract, trader.url) == (Venue.EMULATOR, "BTCUSDT", server.url)
            assert trader.broker.check_clock().offset_ms == 0
            assert deadman.broker.wallet().total_equity == 100_000
        assert server.exchange.auth.verified >= 2
        with pytest.raises(VenueRefusedError, match="key"):
            open_broker(settings, clock, {"MLBOT_EMULATOR_TRADE_KEY": "another"})
        with pytest.raises(UsageError, match="role 'boss'"):
            open_broker(settings, clock, {}, role="boss")  # type: ignore[arg-type]


def test_users_keys_never_go_to_a_local_venue(tmp_path):
    asked: list[str] = []
    with EmulatorServer(seed=7, trading=ExchangeOptions(keys=(ApiKey(*CANARIES[:2]),))) as server:
        check = server.exchange.auth.check
        server.exchange.auth.check = lambda headers, *rest: asked.append(str(headers)) or check(headers, *rest)
        settings = settings_for(tmp_path).model_copy(update={"emulator_url": server.url})
        # the emulator would let this key in, but it is not offered
        with pytest.raises(VenueRefusedError):
            open_broker(settings, SystemClock(), KEYS)
    assert asked
    assert not any(canary in text for text in asked for canary in CANARIES)


def test_what_does_not_run_is_named_with_the_way_to_start_it(tmp_path):
    with pytest.raises(ConfigError, match="mlbot up"):
        open_broker(settings_for(tmp_path), SystemClock(), {})
    paper = settings_for(tmp_path, "paper")
    with pytest.raises(ConfigError, match=r"mlbot_core\.emulator\.paper --folder"):
        open_broker(paper, SystemClock(), {})
    path = paper_folder(paper) / "running.json"
    path.parent.mkdir(parents=True)
    for wrong in ("", "{}", "[1]", "null"):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match="start that again"):
            local_url(paper, {}, Venue.PAPER)
    path.write_text(json.dumps({"url": "http://127.0.0.1:1"}))
    assert local_url(paper, {}, Venue.PAPER) == "http://127.0.0.1:1"
    assert local_url(paper, {"MLBOT_PAPER_URL": "http://127.0.0.1:2"}, Venue.PAPER) == "http://127.0.0.1:2"
    with pytest.raises(VenueUnreachableError, match="nothing was changed"):
        open_broker(paper, FixedClock(0), {})
    path.write_text(json.dumps({"url": "http://example.com"}))
    with pytest.raises(ConfigError, match=r"must be http://127\.0\.0\.1"):
        open_broker(paper, SystemClock(), {})
    moved = paper.model_copy(update={"bybit_url": "http://127.0.0.1:9"})
    assert paper_command(moved)[-4:] == ["--symbol", "BTCUSDT", "--bybit", "http://127.0.0.1:9"]


@pytest.mark.parametrize("switch", [False, True])
@pytest.mark.parametrize("variable", [None, "", "no", "YES", "1", "yes"])
def test_mainnet_needs_both_switches(tmp_path, switch, variable):
    settings = settings_for(tmp_path, "mainnet", mainnet=switch)
    environ = {**KEYS, **({} if variable is None else {"MLBOT_MAINNET": variable})}
    allowed = switch and variable == "yes"
    assert (missing_switches(settings, environ) == []) is allowed
    if allowed:
        require_switches(settings, environ)
        return
    with pytest.raises(ConfigError, match="not switched on") as caught:
        open_broker(settings, SystemClock(), environ)
    assert ("mainnet: true" in str(caught.value)) is not switch
    assert ("MLBOT_MAINNET=yes" in str(caught.value)) is (variable != "yes")
    assert not any(canary in repr(caught.getrepr(style="long")) for canary in CANARIES)


def test_other_venues_need_no_switch_but_a_key_of_the_role(tmp_path):
    for venue in ("demo", "testnet"):
        settings = settings_for(tmp_path, venue)
        assert missing_switches(settings, {}) == []
        with pytest.raises(ConfigError, match=r"bybit\.key and bybit\.secret"):
            open_broker(settings, SystemClock(), {})
        only_trader = {name: KEYS[name] for name in ("MLBOT_BYBIT_KEY", "MLBOT_BYBIT_SECRET")}
        with pytest.raises(ConfigError, match=r"deadman\.key and deadman\.secret") as caught:
            open_broker(settings, SystemClock(), only_trader, role="deadman")
        assert not any(canary in str(caught.value) for canary in CANARIES)
        for role, key in (("trader", CANARIES[0]), ("deadman", CANARIES[2])):
            pair = key_pair(settings, KEYS, Venue(venue), role)
            assert pair.key.get_secret_value() == key
            assert not any(canary in repr(pair) for canary in CANARIES)


def test_local_keys_are_the_ones_the_emulator_documents():
    for environ in ({}, {"MLBOT_EMULATOR_TRADE_KEY": "a", "MLBOT_EMULATOR_DEADMAN_SECRET": "b"}):
        accepted = {(key.key, key.secret) for key in keys_of(environ)}
        for role in ("trader", "deadman"):
            pair = key_pair(load_settings({}), environ, Venue.EMULATOR, role)
            assert (pair.key.get_secret_value(), pair.secret.get_secret_value()) in accepted
    assert len({key.uid for key in default_keys()}) == 1
