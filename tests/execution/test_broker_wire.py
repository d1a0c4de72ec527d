"""One request, once: answers that are none, redirects, lost connections, and what they mean; rules, rows, venues."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import closing
from dataclasses import replace
from decimal import Decimal

import pytest
from pydantic import SecretStr

from mlbot_core.clock import FixedClock
from mlbot_core.config.secrets import KeyPair
from mlbot_core.errors import ConfigError
from mlbot_core.execution import bybit_rows as rows
from mlbot_core.execution.broker import (
    Accepted,
    Ambiguous,
    DefiniteReject,
    Next,
    Venue,
    VenueUnreachableError,
    plain,
    rule_violation,
)
from mlbot_core.execution.bybit import BybitBroker
from mlbot_core.execution.bybit_errors import DEFINITE, Failure, Kind, judge, may_ask_again
from mlbot_core.execution.bybit_signer import Signer
from mlbot_core.execution.bybit_venues import REST_URLS, STREAM_URLS, base_url, stream_url
from mlbot_core.execution.bybit_wire import Wire
from mlbot_core.execution.types import Instrument, OrderRequest, OrderType, Side, TimeInForce

NOW = 1_700_000_000_000
ORDER = OrderRequest("an-order", "BTCUSDT", Side.SELL, OrderType.MARKET, Decimal("0.01"), reduce_only=True)
INSTRUMENT = {
    "symbol": "BTCUSDT",
    "status": "Trading",
    "priceFilter": {"tickSize": "0.10"},
    "lotSizeFilter": {
        "qtyStep": "0.001",
        "minOrderQty": "0.002",
        "maxOrderQty": "100",
        "maxMktOrderQty": "50",
        "minNotionalValue": "5",
    },
}


def envelope(result, code=0, message="OK", **more):
    return json.dumps({"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": NOW, **more})


def answer(body, status="200 OK", headers=""):
    raw = body if isinstance(body, bytes) else body.encode()
    # this server reads one request a connection, and says so
    fixed = f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {len(raw)}\r\n"
    return f"HTTP/1.1 {status}\r\n{fixed}{headers}\r\n".encode() + raw


class Raw:
    """A server that reads whole requests and writes bytes, whatever they are."""

    def __init__(self, say, tls=None):
        self.say = say
        self.tls = tls
        self.handshakes = 0
        self.requests = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.settimeout(5)
            if self.tls is not None:
                try:
                    connection = self.tls.wrap_socket(connection, server_side=True)
                except OSError:
                    connection.close()
                    continue
                self.handshakes += 1
            with connection:
                data = b""
                while b"\r\n\r\n" not in data:
                    part = connection.recv(65536)
                    if not part:
                        break
                    data += part
                head, _, body = data.partition(b"\r\n\r\n")
                lengths = [
                    int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
                ]
                while lengths and len(body) < lengths[0]:
                    part = connection.recv(65536)
                    if not part:
                        break
                    body += part
                if not head or (lengths and len(body) < lengths[0]):
                    continue  # no server acts on a part of a request
                method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
                self.requests.append((method, path, body))
                said = self.say(method, path)
                if said:
                    connection.sendall(said)

    def close(self):
        # wakes accept, which a close alone does not
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)

    @property
    def posts(self):
        return [path for method, path, _ in self.requests if method == "POST"]


@pytest.fixture
def against(canaries):
    """A broker against a server that answers every POST with the given bytes, and knows its instrument."""
    servers, brokers = [], []

    def make(said, gets=None):
        def say(method, path):
            if method == "POST":
                return said(path) if callable(said) else said
            if gets is not None:
                return gets
            return answer(envelope({"list": [INSTRUMENT]}))

        server = Raw(say)
        servers.append(server)
        broker = BybitBroker(Venue.EMULATOR, canaries, FixedClock(NOW), url=server.url, timeout_s=(1, 0.5))
        brokers.append(broker)
        return broker, server

    yield make
    for broker in brokers:
        broker.close()
    for server in servers:
        server.close()


NONSENSE = {
    "nothing at all": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "not HTTP": b"hello\r\n\r\n",
    "cut body": answer(envelope({"orderId": "1"}))[:-20],
    "empty body": answer(""),
    "not JSON": answer("<html></html>"),
    "not UTF-8": answer(
        envelope({"orderId": "1", "orderLinkId": "an-order"}, message="?").encode().replace(b"?", b"\xff")
    ),
    "a list": answer("[1, 2]"),
    "a number": answer("7"),
    "no code": answer(json.dumps({"result": {"orderId": "1", "orderLinkId": "an-order"}, "time": NOW})),
    "code as text": answer(envelope({}, "10001")),
    "code true": answer(envelope({"orderId": "1", "orderLinkId": "an-order"}, True)),
    "code null": answer(envelope({"orderId": "1", "orderLinkId": "an-order"}, None)),
    "no result": answer(json.dumps({"retCode": 0, "retMsg": "OK", "time": NOW})),
    "result null": answer(envelope(None)),
    "another order": answer(envelope({"orderId": "1", "orderLinkId": "somebody-else"})),
    "no order": answer(envelope({})),
    "wrong length of gzip": answer(b"\x1f\x8bnonsense", headers="Content-Encoding: gzip\r\n"),
    "HTTP 500": answer("oops", "500 Internal Server Error"),
    "HTTP 302": answer("", "302 Found", "Location: /v5/order/create\r\n"),
    "HTTP 307": answer("", "307 Temporary Redirect", "Location: /v5/order/create\r\n"),
    "HTTP 408": answer("", "408 Request Timeout"),
    "HTTP 418": answer("", "418 I am a teapot"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_what_is_no_answer_is_ambiguous_and_nothing_is_repeated(against, name):
    broker, server = against(NONSENSE[name])
    outcome = broker.place(ORDER, may_send=lambda: True)
    assert isinstance(outcome, Ambiguous), outcome
    assert server.posts == ["/v5/order/create"]


def test_a_good_answer(against):
    broker, server = against(answer(envelope({"orderId": "7", "orderLinkId": "an-order"})))
    assert broker.place(ORDER, may_send=lambda: True) == Accepted("7", "an-order", NOW)
    (body,) = [json.loads(body) for method, _, body in server.requests if method == "POST"]
    assert body == {
        "category": "linear",
        "symbol": "BTCUSDT",
        "side": "Sell",
        "orderType": "Market",
        "qty": "0.01",
        "timeInForce": "IOC",
        "positionIdx": 0,
        "orderLinkId": "an-order",
        "reduceOnly": True,
    }


def test_every_number_is_sent_as_text(against):
    broker, server = against(answer(envelope({"orderId": "7", "orderLinkId": "x"})))
    order = OrderRequest(
        "x",
        "BTCUSDT",
        Side.BUY,
        OrderType.LIMIT,
        Decimal("1E+1"),
        price=Decimal("6.00000E+4"),
        stop_loss=Decimal("59000.1"),
        time_in_force=TimeInForce.POST_ONLY,
        slippage_bp=Decimal("12.5"),
    )
    assert isinstance(broker.place(order, may_send=lambda: True), Accepted)
    text = server.requests[-1][2].decode()
    body = json.loads(text, parse_float=lambda raw: pytest.fail(f"a float was sent: {raw}"))
    assert {name: body[name] for name in ("qty", "price", "stopLoss", "slTriggerBy", "slippageTolerance")} == {
        "qty": "10",
        "price": "60000.0",
        "stopLoss": "59000.1",
        "slTriggerBy": "LastPrice",
        "slippageTolerance": "0.125",
    }


def test_an_answer_that_echoes_the_key_is_not_logged(against, canaries, caplog):
    """At DEBUG pybit logs the whole text of a bad answer."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("pybit._http_manager").setLevel(logging.DEBUG)
    broker, _ = against(answer(f"who is {canaries.key.get_secret_value()}?", "500 Internal Server Error"))
    assert isinstance(broker.place(ORDER, may_send=lambda: True), Ambiguous)
    assert caplog.records
    assert "canary" not in caplog.text


def test_a_check_that_breaks_sends_nothing(against):
    broker, server = against(answer(envelope({"orderId": "7", "orderLinkId": "an-order"})))

    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broker.place(ORDER, may_send=broken)
    assert server.posts == []
    assert isinstance(broker.place(ORDER, may_send=lambda: True), Accepted)


def test_a_connection_that_never_came_about_is_no_order(canaries):
    """Refused before any byte: for certain nothing was sent, however the network failed."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    broker = BybitBroker(Venue.EMULATOR, canaries, FixedClock(NOW), url=f"http://127.0.0.1:{port}")
    outcome = broker.cancel("BTCUSDT", "x")
    assert isinstance(outcome, DefiniteReject)
    assert (outcome.name, outcome.then) == ("not_connected", Next.WAIT)
    with pytest.raises(VenueUnreachableError, match="4 attempts"):
        broker.wallet()


@pytest.mark.parametrize("name", ["not JSON", "nothing at all", "a list", "HTTP 500"])
def test_questions_without_an_answer(against, name):
    broker, server = against(b"", gets=NONSENSE[name])
    with pytest.raises(VenueUnreachableError):
        broker.wallet()
    assert len(server.requests) == 4


@pytest.mark.parametrize("result", [{}, {"list": {}}, {"list": [1]}, {"list": [{"totalEquity": 1.5, "coin": []}]}])
def test_rows_that_are_not_as_documented(against, result):
    broker, _ = against(b"", gets=answer(envelope(result)))
    with pytest.raises(rows.RowError):
        broker.wallet()


# --- the connection that carries real money


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 and its key, made here."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, made = folder / "key.pem", folder / "certificate.pem"
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([program, "req", *options, *names, "-keyout", key, "-out", made], check=True, capture_output=True)
    return made, key


def test_over_tls_the_gate_is_asked_when_the_connection_stands(certificate, canaries):
    """After the handshake, before the head, and again before the body; without leave not one byte arrives."""
    made, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    good = answer(envelope({"orderId": "7", "orderLinkId": "an-order"}))
    server = Raw(lambda method, path: good, context)
    url = server.url.replace("http:", "https:")
    wire = Wire(url, Signer(canaries), FixedClock(NOW), timeout_s=(2, 2), authorities=made)
    try:
        handshakes = []

        def ask(answer):
            # the client's half of a handshake may end a moment before the server's
            deadline = time.monotonic() + 2
            while not server.handshakes and time.monotonic() < deadline:
                time.sleep(0.01)
            handshakes.append(server.handshakes)
            return answer

        refused = wire.call("place_order", {"qty": "1"}, lambda: ask(False))
        assert (refused.kind, refused.written) == (Kind.GATE, False)
        leave = iter([True, False])
        assert wire.call("place_order", {"qty": "1"}, lambda: ask(next(leave))).kind is Kind.GATE
        reply = wire.call("place_order", {"qty": "1"}, lambda: ask(True))
        assert reply.result == {"orderId": "7", "orderLinkId": "an-order"}
        assert [body for _, _, body in server.requests if body] == [b'{"qty": "1"}']
        assert handshakes == sorted(handshakes)
        assert handshakes[0] == 1, "the connection stood when leave was asked for the first time"
        assert len(handshakes) == 5
    finally:
        wire.close()
        server.close()


def test_a_certificate_of_somebody_else_is_no_connection(certificate, canaries):
    made, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    server = Raw(lambda method, path: b"", context)
    wire = Wire(server.url.replace("http:", "https:"), Signer(canaries), FixedClock(NOW), timeout_s=(2, 2))
    try:
        failed = wire.call("place_order", {"qty": "1"})
        assert (failed.kind, failed.written) == (Kind.NETWORK, False)
        assert server.requests == []
    finally:
        wire.close()
        server.close()


# --- judging


@pytest.mark.parametrize("code", sorted(DEFINITE))
def test_listed_codes(code):
    outcome = judge(Failure(Kind.VENUE, code, "why"), NOW)
    assert isinstance(outcome, DefiniteReject)
    assert (outcome.code, outcome.name, outcome.then) == (code, *DEFINITE[code])
    assert (outcome.retry_at_ms is not None) == (outcome.then is Next.WAIT)


@pytest.mark.parametrize("code", [110043, 34040, 110025, 110026])
def test_things_are_as_asked(code):
    assert judge(Failure(Kind.VENUE, code, "not modified"), NOW) == Accepted(unchanged=True)


@pytest.mark.parametrize("code", [429, 10000, 10014, 10016, 10429, 40004, 170146, 170147, 3400214, 110072, 5, 987654])
def test_codes_that_leave_it_open(code):
    outcome = judge(Failure(Kind.VENUE, code, "why"), NOW)
    assert isinstance(outcome, Ambiguous)
    assert outcome.must_exist == (code == 110072)


def test_when_to_come_back():
    told = judge(Failure(Kind.VENUE, 10006, "", retry_at_ms=NOW + 700), NOW)
    past = judge(Failure(Kind.VENUE, 10006, "", retry_at_ms=NOW - 700), NOW)
    silent = judge(Failure(Kind.VENUE, 10006, ""), NOW)
    banned = judge(Failure(Kind.HTTP, 403, ""), NOW)
    assert [outcome.retry_at_ms - NOW for outcome in (told, past, silent, banned)] == [700, 0, 2_000, 600_000]


def test_what_may_be_asked_again():
    again = [Failure(Kind.NETWORK, 0, ""), Failure(Kind.UNPARSABLE, 0, ""), Failure(Kind.HTTP, 502, "")]
    never = [Failure(Kind.HTTP, 403, ""), Failure(Kind.VENUE, 10003, ""), Failure(Kind.BANNED, 0, "")]
    assert all(map(may_ask_again, again))
    assert not any(map(may_ask_again, never))


# --- rules and rows


def test_rules_of_an_order():
    rules = Instrument(
        "BTCUSDT", Decimal("0.5"), Decimal("0.01"), Decimal("0.02"), Decimal(10), Decimal(5), Decimal(100)
    )

    def name(**more):
        order = OrderRequest("x", "BTCUSDT", Side.BUY, OrderType.LIMIT, Decimal(1), price=Decimal(1000))
        found = rule_violation(replace(order, **more), rules, more.pop("last", None))
        return None if found is None else found.name

    market = {"order_type": OrderType.MARKET, "price": None}
    assert name() is None
    assert name(qty=Decimal("0.01")) == "min_qty"
    assert name(qty=Decimal("0.015")) == "lot"
    assert name(qty=Decimal("10.01")) == "max_qty"
    assert name(qty=Decimal("5.01"), **market) == "max_qty"
    assert name(price=Decimal("1000.25")) == "tick"
    assert name(stop_loss=Decimal("900.25")) == "tick"
    assert name(qty=Decimal("0.09")) == "min_notional"
    assert name(qty=Decimal("0.1")) is None
    assert name(qty=Decimal("0.09"), reduce_only=True) is None
    assert name(**market) == "no_price"
    assert name(reduce_only=True, **market) is None


@pytest.mark.parametrize(("value", "text"), [("1E-8", "0.00000001"), ("1E+3", "1000"), ("0.10", "0.10")])
def test_plain(value, text):
    assert plain(Decimal(value)) == text


def test_plain_refuses():
    with pytest.raises(TypeError, match="float"):
        plain(0.1)
    with pytest.raises(ValueError, match="not a number"):
        plain(Decimal("NaN"))


@pytest.mark.parametrize("raw", [1.5, True, "1,5", "NaN", "Infinity", "0" * 65, [], "abc"])
def test_numbers_that_are_none(raw):
    with pytest.raises(rows.RowError):
        rows.optional({"x": raw}, "x")


def test_an_instrument_that_does_not_trade_and_one_that_is_broken():
    with pytest.raises(rows.SymbolNotTradingError, match="Settling"):
        rows.read_instrument({**INSTRUMENT, "status": "Settling"})
    with pytest.raises(rows.RowError, match="lot"):
        rows.read_instrument({**INSTRUMENT, "lotSizeFilter": {**INSTRUMENT["lotSizeFilter"], "qtyStep": "0"}})


def test_hedge_mode_is_refused():
    with pytest.raises(rows.PositionModeError, match="one-way"):
        rows.read_position({"symbol": "BTCUSDT", "positionIdx": 1, "size": "0", "side": ""})


# --- venues


def test_addresses_belong_to_venues(canaries):
    for venue in (Venue.DEMO, Venue.TESTNET, Venue.MAINNET):
        made = BybitBroker(venue, canaries, FixedClock(NOW), allow_mainnet=True)
        assert made._wire.url == REST_URLS[venue]
        assert stream_url(venue) == STREAM_URLS[venue]
        with pytest.raises(ConfigError, match="cannot be given"):
            BybitBroker(venue, canaries, FixedClock(NOW), url="http://127.0.0.1:1", allow_mainnet=True)
    assert len({*REST_URLS.values()}) == 3
    with pytest.raises(ConfigError, match="real money"):
        BybitBroker(Venue.MAINNET, canaries, FixedClock(NOW))
    for url in (None, "http://example.com", "ftp://127.0.0.1", "127.0.0.1:80", "http://127.0.0.1.example.com"):
        with pytest.raises(ConfigError, match="must be http"):
            base_url(Venue.EMULATOR, url, in_process=False, allow_mainnet=False)
    with pytest.raises(ConfigError, match=r"bybit\.secret"):
        BybitBroker(Venue.DEMO, KeyPair(key=SecretStr("only-a-key")), FixedClock(NOW))
