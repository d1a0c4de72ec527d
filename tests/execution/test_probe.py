"""Probes over sockets: what they find out, what they leave behind (nothing), and what they never tell."""

from __future__ import annotations

import base64
import dataclasses
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from mlbot_core.clock import FixedClock, SystemClock, parse_utc_ms
from mlbot_core.config import load_settings
from mlbot_core.config.secrets import KeyPair
from mlbot_core.emulator import CoinglassOptions, EmulatorServer
from mlbot_core.emulator.exchange import ApiKey, ExchangeOptions
from mlbot_core.errors import ConfigError, UsageError
from mlbot_core.execution.broker import Venue
from mlbot_core.execution.bybit_signer import Signer
from mlbot_core.execution.probe import PROBED, run_probe
from mlbot_core.execution.probe_account import PRIVATE
from mlbot_core.execution.probe_bybit import PUBLIC, BybitProbe
from mlbot_core.execution.probe_coinglass import COINGLASS
from mlbot_core.execution.probe_http import BybitAsker
from mlbot_core.execution.probe_orders import ORDERS
from mlbot_core.execution.probe_questions import put
from mlbot_core.execution.probe_report import ProbeReportError, read_reports, require_fresh
from mlbot_core.execution.safety import SafetyFiles, folder_of

NOW = parse_utc_ms("2026-07-06T10:37:21Z")
START = parse_utc_ms("2026-05-10")
KEY, SECRET = "canary-key/7Zq+Vx", "canary-secret/9mT+pL&w8="
CG_KEY = "canary-coinglass/4+x="
ENVIRON = {
    "MLBOT_EMULATOR_TRADE_KEY": KEY,
    "MLBOT_EMULATOR_TRADE_SECRET": SECRET,
    "MLBOT_CG_API": CG_KEY,
    "MLBOT_BYBIT_KEY": KEY,
    "MLBOT_BYBIT_SECRET": SECRET,
}
TRADE_KEY = ApiKey(KEY, SECRET)


def traces() -> set[str]:
    found = set()
    for secret in (KEY, SECRET, CG_KEY):
        found |= {secret, urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret)}
        found |= {
            encode(secret.encode()).decode().rstrip("=") for encode in (base64.b64encode, base64.urlsafe_b64encode)
        }
        found.add(json.dumps(secret)[1:-1])
    return found


def no_secret(text: str) -> bool:
    return not any(trace in text for trace in traces())


def settings_for(tmp_path, url: str, **execution):
    base = load_settings({"MLBOT_HOME": str(tmp_path)})
    return base.model_copy(
        update={
            "config_dir": tmp_path,
            "emulator_url": url,
            "coinglass_url": url,
            "execution": base.execution.model_copy(update=execution),
        }
    )


@contextmanager
def emulator(key: ApiKey = TRADE_KEY, **more: Any) -> Iterator[tuple[EmulatorServer, FixedClock]]:
    clock = FixedClock(NOW)
    trading = ExchangeOptions(keys=(key,), demo=more.pop("demo", False))
    with EmulatorServer(seed=7, start_ms=START, clock=clock, trading=trading, **more) as server:
        yield server, clock


def verdicts(report) -> dict[str, str]:
    return {item.name: item.verdict for item in report.items}


def test_every_point_is_answered_on_the_emulator_and_nothing_is_left(tmp_path):
    with emulator() as (server, clock):
        settings = settings_for(tmp_path, server.url)
        before = server.exchange.truth()["accounts"]
        report, path = run_probe(settings, clock, "emulator", ENVIRON)
        assert server.exchange.truth()["accounts"] == before, "reading changes nothing"
        assert not any(note["method"] == "POST" for note in server.exchange.requests)
        assert server.exchange.auth.verified > 10, "these keys did sign"
    assert list(verdicts(report)) == [question.name for question in (*PUBLIC, *PRIVATE)]
    assert set(verdicts(report).values()) == {"as_expected"}, report.items
    assert report.account == "emulator:100001"
    text = path.read_text()
    assert no_secret(text)
    assert json.loads(text)["kind"] == "mlbot-probe"
    assert require_fresh(settings.live_dir, "emulator", report.account, NOW + 1) == report
    answers = {item.name: item.answer for item in report.items}
    assert "newest are kept" in answers["kline_truncation"]
    assert "merely described anew" in answers["open_interest_2026_06"]
    assert "percent" in answers["risk_limit_units"]
    assert "order/realtime 50" in answers["rate_limits"]
    assert "taker 5.5 bp" in answers["fee_rate"]


def test_one_small_far_order_is_placed_and_cancelled_and_its_id_is_tried_again_next_time(tmp_path):
    with emulator() as (server, clock):
        settings = settings_for(tmp_path, server.url)
        report, _ = run_probe(settings, clock, "emulator", ENVIRON, orders=True)
        found = verdicts(report)
        assert [found[question.name] for question in ORDERS].count("as_expected") == len(ORDERS) - 1
        assert found["link_reuse_later"] == "unknown"
        (order,) = server.exchange.truth()["accounts"]["100001"]["orders"]
        assert (order["orderStatus"], order["timeInForce"], order["qty"]) == ("Cancelled", "PostOnly", "0.001")
        assert Decimal(order["price"]) < Decimal("0.91") * server.exchange.contracts["BTCUSDT"].quote(NOW).last
        assert report.links == (order["orderLinkId"],)
        clock.set_ms(NOW + 3 * 86_400_000)
        again, _ = run_probe(settings, clock, "emulator", ENVIRON, orders=True)
        assert verdicts(again)["link_reuse_later"] == "as_expected"
        truth = server.exchange.truth()["accounts"]["100001"]
        assert len(truth["orders"]) == 2
        assert {row["orderStatus"] for row in truth["orders"]} == {"Cancelled"}
        assert truth["executions"] == []
    assert [r.at_ms for r in read_reports(settings.live_dir, "emulator")] == [report.at_ms, again.at_ms]


def test_what_is_not_as_believed_differs_and_real_money_is_refused_on_it(tmp_path):
    with emulator(dataclasses.replace(TRADE_KEY, withdraw=True)) as (server, clock):
        settings = settings_for(tmp_path, server.url)
        fees = settings.fees.model_copy(update={"taker_bp": 5.0, "tiers": {}})
        coin = fees.instruments["BTC"].model_copy(update={"lot": 0.01})
        fees = fees.model_copy(update={"instruments": {"BTC": coin}})
        settings = settings.model_copy(update={"fees": fees})
        report, _ = run_probe(settings, clock, "emulator", ENVIRON)
    wrong = {name for name, verdict in verdicts(report).items() if verdict == "differs"}
    assert wrong == {"instrument", "fee_rate", "key"}
    assert report.worst == "differs"
    with pytest.raises(ProbeReportError, match="confirm instrument, key, fee_rate"):
        require_fresh(settings.live_dir, "emulator", report.account, NOW + 1)


def test_what_demo_trading_lacks_is_expected_there_only(tmp_path):
    pair = KeyPair(key=SecretStr(KEY), secret=SecretStr(SECRET))
    with emulator(demo=True) as (server, clock):
        settings = settings_for(tmp_path, server.url)
        found = {}
        for venue in (Venue.DEMO, Venue.TESTNET):
            asker = BybitAsker(server.url, Signer(pair), clock, local=True)
            items = put(PRIVATE, BybitProbe(asker, settings, clock, venue), Signer(pair).scrub, lambda _: None)
            asker.close()
            found[venue] = {item.name: item.verdict for item in items}
    assert found[Venue.DEMO]["fee_rate"] == "as_expected"
    assert found[Venue.TESTNET]["fee_rate"] == "unknown"
    assert found[Venue.DEMO]["endpoints"] == "as_expected"


def test_coinglass_is_asked_within_its_limits_and_its_key_stays_secret(tmp_path):
    for plan, native in (("enterprise", True), ("hobbyist", False)):
        options = CoinglassOptions(key=CG_KEY, plan=plan, calls_per_minute=6_000)
        with emulator(options=options) as (server, clock):
            report, path = run_probe(settings_for(tmp_path / plan, server.url), clock, "coinglass", ENVIRON)
            assert server.api.refused["429"] == 0
        found, answers = verdicts(report), {item.name: item.answer for item in report.items}
        assert list(found) == [question.name for question in COINGLASS]
        assert "differs" not in set(found.values()) - {found["calls"]}, report.items
        assert ("native: price/history" in answers["native_2h"]) is native
        assert ("refused: price/history (403)" in answers["native_2h"]) is not native
        assert (report.account, report.orders) == ("", False)
        assert no_secret(path.read_text())


def test_what_must_not_be_asked_is_not(tmp_path):
    settings = settings_for(tmp_path, "http://127.0.0.1:1")
    clock = FixedClock(NOW)
    with pytest.raises(UsageError, match="choose one of emulator, paper, demo"):
        run_probe(settings, clock, "mars", ENVIRON)
    with pytest.raises(UsageError, match="takes no orders"):
        run_probe(settings, clock, "coinglass", ENVIRON, orders=True)
    with pytest.raises(UsageError, match="--yes-real-money"):
        run_probe(settings, clock, "mainnet", ENVIRON, orders=True)
    for venue, text in (("testnet", r"bybit\.key"), ("coinglass", "cg_api"), ("paper", "paper exchange")):
        with pytest.raises(ConfigError, match=text):
            run_probe(settings, clock, venue, {})
    assert not (settings.live_dir / "probes").exists()
    assert {"paper", "coinglass", "mainnet"} <= set(PROBED)


def test_an_order_of_real_money_needs_both_switches_beside_the_word(tmp_path, monkeypatch):
    """Mainnet is played by an emulator here; only its address is moved."""
    from mlbot_core.execution import probe

    with emulator() as (server, clock):
        monkeypatch.setattr(probe, "REST_URLS", {Venue.MAINNET: server.url})
        settings = settings_for(tmp_path, server.url)
        with pytest.raises(ConfigError, match="not switched on"):
            run_probe(settings, clock, "mainnet", ENVIRON, orders=True, real_money=True)
        assert server.exchange.truth()["accounts"]["100001"]["orders"] == []
        # reading needs no switch, and is what the gate asks for
        report, _ = run_probe(settings, clock, "mainnet", ENVIRON)
        assert report.account == "mainnet:100001"
        assert require_fresh(settings.live_dir, "mainnet", "mainnet:100001", NOW + 1)


def test_a_halted_account_gets_no_order(tmp_path):
    with emulator() as (server, clock):
        settings = settings_for(tmp_path, server.url)
        SafetyFiles(folder_of(settings.live_dir, "emulator:100001"), "emulator:100001").halt("ann", "drill", NOW)
        with pytest.raises(UsageError, match="halted by ann"):
            run_probe(settings, clock, "emulator", ENVIRON, orders=True)
        assert server.exchange.truth()["accounts"]["100001"]["orders"] == []


def test_silence_leaves_everything_unknown_and_is_no_reason_to_trade(tmp_path):
    settings = settings_for(tmp_path, "http://127.0.0.1:1")
    report, _ = run_probe(settings, FixedClock(NOW), "emulator", ENVIRON)
    assert set(verdicts(report).values()) <= {"unknown", "differs"}
    assert report.worst != "as_expected"
    with pytest.raises(ProbeReportError, match="does not confirm"):
        require_fresh(settings.live_dir, "emulator", report.account, NOW + 1)


class Parrot(ThreadingHTTPServer):
    """Answers everything alike."""

    def __init__(self, body: bytes, status: int = 200) -> None:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Bapi-Limit", KEY)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = asked
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def parrot(body: Any, status: int = 200) -> Iterator[Parrot]:
    server = Parrot(body if isinstance(body, bytes) else json.dumps(body).encode(), status)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


LOUD = {"symbol": f"{KEY} {SECRET}", "openInterest": SECRET, "apiKey": KEY, "level": CG_KEY, "userID": "7", "id": KEY}


@pytest.mark.parametrize("venue", ["emulator", "coinglass"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        {"retCode": 0, "code": "0", "result": None, "data": None, "time": 1},
        {"retCode": 0, "code": "0", "result": {"list": [[]]}, "data": [[]], "time": "x"},
        {"retCode": 0, "code": "0", "result": {"list": [LOUD], **LOUD}, "data": [LOUD], "time": 1},
        {"retCode": 0, "code": "0", "result": LOUD, "data": LOUD, "time": NOW},
        {"retCode": 10003, "code": "401", "retMsg": f"no {KEY} {SECRET}", "msg": f"key {CG_KEY}", "result": {}},
    ],
    ids=range(9),
)
def test_whatever_comes_back_a_report_is_made_and_tells_no_secret(tmp_path, venue, body):
    with parrot(body) as server:
        settings = settings_for(tmp_path, server.url)
        report, path = run_probe(settings, FixedClock(NOW), venue, ENVIRON)
        assert len(server.asked) > 10
    assert no_secret(path.read_text())
    assert report.worst != "as_expected"
    assert {item.name for item in report.items} >= {"clock" if venue == "emulator" else "plan"}


def test_after_a_refusal_of_the_address_nothing_more_is_asked(tmp_path):
    with parrot(b"forbidden", 403) as server:
        report, _ = run_probe(settings_for(tmp_path, server.url), FixedClock(NOW), "emulator", ENVIRON)
        assert len(server.asked) == 1
    assert "unknown" in set(verdicts(report).values())


# --- the commands


@pytest.fixture
def shell(tmp_path, monkeypatch):
    with EmulatorServer(seed=7, start_ms=parse_utc_ms("2026-05-10"), clock=SystemClock()) as server:
        for name, value in {"MLBOT_HOME": str(tmp_path), "MLBOT_EMULATOR_URL": server.url}.items():
            monkeypatch.setenv(name, value)
        yield server


def test_the_command_prints_a_table_or_json_and_says_by_its_status_what_differs(shell):
    from mlbot_core.cli.main import app

    good = CliRunner().invoke(app, ["probe", "--json"])
    assert good.exit_code == 0, good.output
    document = json.loads(good.stdout)
    assert document["venue"] == "emulator"
    assert not document["orders"]
    shell.exchange.options = dataclasses.replace(shell.exchange.options)
    for engine in shell.exchange.engines.values():
        engine.account.taker = Decimal("0.01")
    worse = CliRunner().invoke(app, ["probe", "--venue", "emulator"])
    assert worse.exit_code == 1
    assert "fee_rate" in worse.stdout
    assert "report:" in worse.stdout
    wrong = CliRunner().invoke(app, ["probe", "--venue", "mainnet", "--orders"])
    assert isinstance(wrong.exception, UsageError)


def test_doctor_shows_the_findings_of_the_venue(tmp_path):
    from mlbot_core.cli.doctor_trading import findings

    settings = settings_for(tmp_path, "http://127.0.0.1:1")
    assert findings(settings, SystemClock()) == []
    paper = settings_for(tmp_path, "http://127.0.0.1:1", venue="paper")
    found = findings(paper, SystemClock())
    assert found[0].name == "paper: account"
    assert all(one.state == "bad" for one in found)
    assert "mlbot up --live" in found[0].text
    mainnet = findings(settings_for(tmp_path, "http://127.0.0.1:1", venue="mainnet"), SystemClock())
    assert {one.name for one in mainnet} >= {"mainnet: switches", "mainnet: champion", "mainnet: record"}
    assert not [one for one in mainnet if one.state == "ok"]
