"""Signals told to a receiver: retried, signed, and no secret in a message; the command around it."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from mlbot_core.cli.main import app
from mlbot_core.clock import FixedClock, format_utc
from mlbot_core.errors import MissingDataError, UsageError
from mlbot_core.live.webhook import SIGNATURE, TIMESTAMP, WebhookError, post, redacted

SECRET = "canary-shared-secret"
TOKEN = "canary-token-in-the-path"


@dataclass
class Receiver:
    """A server that answers with the given statuses, then with 200."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.got.append((dict(self.headers), body))
            status = made.statuses.pop(0) if made.statuses else 200
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}/{TOKEN}?key={TOKEN}"
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_message_is_signed_with_its_time(receiver):
    clock = FixedClock(1_700_000_000_000)
    done = post(receiver.url, {"b": 1, "a": [1.5, None]}, clock, SecretStr(SECRET))
    assert (done.status, done.attempts) == (200, 1)
    ((headers, body),) = receiver.got
    assert json.loads(body) == {"b": 1, "a": [1.5, None]}
    assert headers[TIMESTAMP] == "1700000000000"
    expected = hmac.new(SECRET.encode(), b"1700000000000." + body, hashlib.sha256).hexdigest()
    assert headers[SIGNATURE] == f"sha256={expected}"


@pytest.mark.parametrize("secret", [None, SecretStr("")])
def test_without_a_secret_it_is_not_signed(receiver, secret):
    post(receiver.url, {}, FixedClock(0), secret)
    assert SIGNATURE not in receiver.got[0][0]


def test_a_receiver_that_stumbles_is_asked_again(receiver):
    receiver.statuses = [500, 429]
    clock = FixedClock(0)
    assert post(receiver.url, {"x": 1}, clock).attempts == 3
    assert clock.now_ms() == 3_000, "1 s, then 2 s"
    assert len({body for _, body in receiver.got}) == 1


@pytest.mark.parametrize(("statuses", "count"), [([500] * 9, 4), ([404], 1), ([302], 1)])
def test_no_message_names_more_than_the_host(receiver, statuses, count):
    receiver.statuses = statuses
    with pytest.raises(WebhookError) as caught:
        post(SecretStr(receiver.url), {}, FixedClock(0), SecretStr(SECRET))
    assert "http://127.0.0.1:" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert len(receiver.got) == count


@pytest.mark.parametrize("address", [TOKEN, f"ftp://host/{TOKEN}", f"https:///{TOKEN}", f"http://[{TOKEN}"])
def test_what_is_no_address_is_not_repeated(address):
    with pytest.raises(UsageError) as caught:
        post(address, {}, FixedClock(0))
    assert TOKEN not in str(caught.value)


def test_what_is_named_like_a_secret_is_left_out():
    made = redacted({"api_key": "x", "inner": [{"slack_webhook": "y", "score": 1.0}]})
    assert made == {"api_key": "(left out)", "inner": [{"slack_webhook": "(left out)", "score": 1.0}]}


@pytest.fixture
def environment(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home.at("2024-09-20T02:00:05Z")
    for name, value in {
        "MLBOT_HOME": str(home.settings.home),
        "MLBOT_CONFIG_DIR": str(home.settings.config_dir),
        "MLBOT_THREADS": "1",
        "MLBOT_EMULATOR_URL": home.url,
        "MLBOT_CLOCK": f"fixed:{format_utc(home.clock.now_ms())}",
        "MLBOT_WEBHOOK_SECRET": SECRET,
    }.items():
        monkeypatch.setenv(name, value)


def test_the_command_pulls_forecasts_and_tells(environment, receiver):
    done = CliRunner().invoke(app, ["signal", "-i", "2h", "--json", "--webhook", receiver.url], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["delivered"] == {"status": 200, "attempts": 1}
    (market,) = told["markets"]
    assert {one["model_type"] for one in market["signals"]} == {"lightgbm", "meta"}
    assert all(one["usable"] for one in market["signals"])
    assert {one["market"] for one in market["pulled"]} == {"BTC-2h", "BTC-4h"}
    ((headers, body),) = receiver.got
    assert SIGNATURE in headers
    assert json.loads(body)["markets"][0]["signals"] == market["signals"]
    assert SECRET not in done.output
    again = CliRunner().invoke(app, ["signal", "-i", "2h"], catch_exceptions=False)
    assert "BTC-2h from emulator, bar 2024-09-20T00:00:00Z" in again.stdout


def test_the_command_names_the_next_one_where_no_model_is(environment, monkeypatch, tmp_path):
    monkeypatch.setenv("MLBOT_HOME", str(tmp_path / "empty"))
    done = CliRunner().invoke(app, ["signal", "-i", "2h"])
    assert isinstance(done.exception, MissingDataError)
    assert "mlbot train --source emulator --symbol BTC --interval 2h" in str(done.exception)


@pytest.mark.parametrize("command", ["explain", "replay"])
def test_an_audit_of_nothing_says_so(environment, command):
    done = CliRunner().invoke(app, [command, "dabcdefgh"])
    assert isinstance(done.exception, UsageError)
    assert "no decision, intent, order or fill" in str(done.exception)
