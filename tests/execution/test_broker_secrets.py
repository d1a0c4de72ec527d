"""Canaries: key, secret and signatures in nothing that is kept, shown or raised, whatever goes wrong."""

from __future__ import annotations

import base64
import logging
import queue
import time
import traceback
import urllib.parse

import pytest
from requests.exceptions import ReadTimeout

from mlbot_core.emulator.exchange import TradeFault
from mlbot_core.emulator.exchange.trade_faults import LOST_KINDS
from mlbot_core.execution.broker import Accepted, BrokerError, Venue
from mlbot_core.execution.bybit_signer import Signer
from mlbot_core.execution.bybit_streams import PrivateStream


def forms(pair, signatures=()):
    """Every way in which a secret could be spelled: plain, URL-encoded, base64 at each of its three alignments."""
    found = set(signatures)
    for secret in (pair.key.get_secret_value(), pair.secret.get_secret_value()):
        found |= {
            secret,
            urllib.parse.quote(secret),
            urllib.parse.quote(secret, safe=""),
            urllib.parse.quote_plus(secret),
        }
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            for lead in range(3):
                # only what depends on nothing but the secret
                whole = encode(b"\0" * lead + secret.encode()).decode().rstrip("=")
                found.add(whole[(0, 2, 3)[lead] : len(whole) - 2])
    return found


def told(error):
    """All that an error could show: itself, everything behind it, local variables of its frames included."""
    # without the frame of the test, which knows the canaries
    inner = error.__traceback__.tb_next
    assert inner is not None
    shown = traceback.TracebackException(type(error), error, inner, capture_locals=True)
    behind = []
    at = error
    while at is not None:
        behind.append(f"{at!r} {at.args!r} {vars(at)!r}")
        at = at.__cause__ or at.__context__
    return "".join(shown.format()) + "\n".join(behind)


def test_nothing_secret_is_kept_shown_or_raised(bench, canaries, caplog, capfd, monkeypatch):
    signatures, shown = [], []
    sign = Signer.sign
    monkeypatch.setattr(Signer, "sign", lambda self, text: (signatures.append(sign(self, text)), signatures[-1])[1])
    caplog.set_level(logging.DEBUG)
    for name in ("pybit._http_manager", "urllib3", "websockets", "websockets.client", "asyncio", "requests"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    verified = bench.exchange.auth.verified
    broker = bench.broker
    assert isinstance(broker.place(bench.order(link="fine"), may_send=lambda: True), Accepted)
    for number, kind in enumerate((*LOST_KINDS, "http_403", "reject")):
        bench.faults(TradeFault(kind, "order/", code=110007 if kind == "reject" else None, seconds=0.8))
        shown.append(repr(broker.place(bench.order(link=f"bad-{number}"), may_send=lambda: True)))
        shown.append(repr(broker.cancel("BTCUSDT", f"bad-{number}")))
        if kind == "http_403":
            bench.clock.sleep(601)
    for kind in (*LOST_KINDS, "reject"):
        code = 10003 if kind == "reject" else None
        message = f"invalid {canaries.key.get_secret_value()} {canaries.secret.get_secret_value()}"
        bench.faults(TradeFault(kind, "wallet-balance", code=code, message=message, seconds=0.8))
        with pytest.raises(BrokerError) as failed:
            broker.wallet()
        shown.append(told(failed.value))
        assert failed.value.__context__ is None
        assert failed.value.__cause__ is None
    assert "invalid *** ***" in shown[-1]
    bench.faults()
    shown += [repr(broker), repr(broker.api_key_info()), repr(broker._wire), repr(broker._signer)]
    session = broker._wire._borrow()
    shown += [
        repr(session),
        repr(vars(session)),
        repr(vars(broker)),
        repr(vars(broker._wire)),
        repr(session.client.headers),
    ]
    if bench.kind == "sockets":
        events = queue.Queue()
        stream = PrivateStream(Venue.EMULATOR, canaries, bench.clock, events, lambda _: None, url=bench.url)
        stream.start()
        assert stream.wait_until_up(5)
        shown += [repr(stream), repr(vars(stream))]
        broker.place(bench.order(link="streamed"), may_send=lambda: True)
        time.sleep(0.2)
        stream.stop()
        shown += [repr(events.get()) for _ in range(events.qsize())]
    out, err = capfd.readouterr()
    logged = "\n".join(f"{record.getMessage()} {record.__dict__!r}" for record in caplog.records)
    everything = "\n".join([*shown, logged, caplog.text, out, err])
    found = [form for form in forms(canaries, signatures) if form in everything]
    assert found == []
    # the canaries were really used, and the search really finds
    assert bench.exchange.auth.verified > verified + 30
    assert len(set(signatures)) > 30
    for secret in (canaries.key.get_secret_value(), canaries.secret.get_secret_value()):
        for lead in (b"", b"a", b"ab"):
            spoilt = base64.b64encode(lead + secret.encode() + b"tail").decode()
            assert any(form in spoilt for form in forms(canaries))
        assert any(form in urllib.parse.urlencode({"q": secret}) for form in forms(canaries))


@pytest.mark.parametrize("bench", ["sockets"], indirect=True)
def test_pybit_alone_would_tell(bench, canaries):
    """Why all this: the same failure through pybit as it comes holds the key in the exception."""
    from pybit.unified_trading import HTTP

    bench.faults(TradeFault("timeout", "order/create", seconds=0.8))
    key, secret = canaries.key.get_secret_value(), canaries.secret.get_secret_value()
    naive = HTTP(api_key=key, api_secret=secret, timeout=0.3, max_retries=1)
    naive.endpoint = bench.url
    naive.client.trust_env = False
    monkey = bench.clock.now_ms()
    from pybit import _helpers

    before = _helpers.generate_timestamp
    _helpers.generate_timestamp = lambda: monkey
    try:
        with pytest.raises(ReadTimeout) as failed:
            naive.place_order(category="linear", symbol="BTCUSDT", side="Buy", orderType="Market", qty="0.01")
    finally:
        _helpers.generate_timestamp = before
        naive.client.close()
    assert key in repr(failed.value.request.headers)
    assert secret in repr(naive)


def test_scrubbing(canaries):
    signer = Signer(canaries)
    for form in (
        canaries.secret.get_secret_value(),
        urllib.parse.quote(canaries.secret.get_secret_value(), safe=""),
        base64.b64encode(canaries.key.get_secret_value().encode()).decode(),
    ):
        assert signer.scrub(f"a {form}\nb")[:5] == "a ***"
    assert len(signer.scrub("x" * 1000)) == 301
