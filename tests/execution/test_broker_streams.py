"""The private stream over real sockets: types, cuts and catching up, doubled and overtaken messages, silence."""

from __future__ import annotations

import json
import queue
import threading
import time
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from websockets.sync.server import serve

from mlbot_core.clock import FixedClock
from mlbot_core.config.secrets import KeyPair
from mlbot_core.emulator.exchange import TradeFault
from mlbot_core.errors import ConfigError
from mlbot_core.execution.broker import Accepted, Venue, VenueUnreachableError
from mlbot_core.execution.bybit_streams import Newest, PrivateStream, StreamDown, StreamUp
from mlbot_core.execution.types import (
    ExecType,
    Execution,
    OrderSnapshot,
    OrderStatus,
    OrderType,
    PositionSnapshot,
    Side,
    TimeInForce,
    WalletSnapshot,
)

sockets = pytest.mark.parametrize("bench", ["sockets"], indirect=True)
NOW = 1_700_000_000_000


@pytest.fixture
def listen(canaries):
    """Start streams; all are stopped at the end."""
    streams = []

    def make(url, clock, catch_up=lambda _reason: None, pair=canaries, **more):
        events = queue.Queue()
        stream = PrivateStream(Venue.EMULATOR, pair, clock, events, catch_up, url=url, first_pause_s=0.05, **more)
        streams.append(stream)
        stream.start()
        return stream, events

    yield make
    for stream in streams:
        stream.stop()


def gather(events, enough, seconds=8.0):
    got = []
    deadline = time.monotonic() + seconds
    while not enough(got):
        assert time.monotonic() < deadline, got
        try:
            got.append(events.get(timeout=0.1))
        except queue.Empty:
            continue
    return got


def links(got):
    return [event.order_link_id for event in got if isinstance(event, Execution)]


def place(bench, link, qty="0.01"):
    assert isinstance(bench.broker.place(bench.order("Buy", qty, link=link), may_send=lambda: True), Accepted)


@sockets
def test_events_are_types(bench, listen):
    stream, events = listen(bench.url, bench.clock)
    assert stream.wait_until_up(5)
    assert stream.healthy
    place(bench, "streamed", "0.05")
    kinds = (OrderSnapshot, Execution, PositionSnapshot, WalletSnapshot)
    got = gather(events, lambda seen: all(any(isinstance(event, kind) for event in seen) for kind in kinds))
    assert isinstance(got[0], StreamUp)
    order = [event for event in got if isinstance(event, OrderSnapshot)][-1]
    assert (order.order_link_id, order.status, order.filled_qty) == ("streamed", OrderStatus.FILLED, Decimal("0.05"))
    assert order == bench.broker.order("BTCUSDT", "streamed")
    streamed = [event for event in got if isinstance(event, Execution)]
    assert streamed == list(bench.broker.executions_since("BTCUSDT", bench.clock.now_ms() - 1000))
    position = [event for event in got if isinstance(event, PositionSnapshot)][-1]
    assert (position.size, position.average_price) == (Decimal("0.05"), order.average_price)
    stream.stop()
    assert not stream.healthy
    assert isinstance(gather(events, lambda seen: any(isinstance(e, StreamDown) for e in seen))[-1], StreamDown)


@sockets
def test_a_cut_stream_comes_back_and_catches_up(bench, listen):
    """What happened while nobody listened is found by asking; together nothing is missing and nothing is twice."""
    known, reasons = {}, []

    def catch_up(reason):
        reasons.append(reason)
        if reason == "reconnected":
            place(bench, "in-the-gap")  # nobody is told of it
        for row in bench.broker.executions_since("BTCUSDT", bench.clock.now_ms() - 3_600_000):
            known[row.exec_id] = row

    stream, events = listen(bench.url, bench.clock, catch_up)
    assert stream.wait_until_up(5)
    bench.faults(TradeFault("ws_disconnect", "ws/execution", nth=2))
    for n in range(4):
        place(bench, f"n-{n}")
    got = gather(events, lambda seen: sum(isinstance(event, StreamUp) for event in seen) == 2)
    place(bench, "afterwards")
    got += gather(events, lambda seen: "afterwards" in links(seen))
    states = [type(event) for event in got if isinstance(event, StreamUp | StreamDown)]
    assert states == [StreamUp, StreamDown, StreamUp]
    assert reasons == ["first connection", "reconnected"]
    streamed = {event.exec_id: event for event in got if isinstance(event, Execution)}
    assert set(links(got)) < {"n-0", "n-1", "n-2", "n-3", "in-the-gap", "afterwards"}, "the stream alone misses some"
    truth = [row["execId"] for row in bench.truth()["executions"]]
    assert sorted(known | streamed) == sorted(truth)
    assert len(truth) == len(set(truth))


@sockets
def test_doubled_and_overtaken_messages(bench, listen):
    stream, events = listen(bench.url, bench.clock)
    assert stream.wait_until_up(5)
    bench.faults(
        TradeFault("ws_duplicate", "ws/execution", nth=1),
        TradeFault("ws_late", "ws/execution", nth=2, seconds=60),
        TradeFault("ws_swap", "ws/execution", nth=3),
        TradeFault("ws_duplicate", "ws/order", nth=1),
        TradeFault("ws_late", "ws/order", nth=3, seconds=60),
    )
    for n in range(4):
        place(bench, f"m-{n}")
    placed = bench.broker.place(bench.order("Buy", "0.01", bench.away(), link="cancelled"), may_send=lambda: True)
    assert isinstance(placed, Accepted)
    bench.broker.cancel("BTCUSDT", "cancelled")
    got = gather(events, lambda seen: sum(isinstance(e, OrderSnapshot) and e.terminal for e in seen) == 4)
    bench.clock.sleep(61)
    got += gather(events, lambda seen: "m-1" in links(seen) and any(isinstance(e, OrderSnapshot) for e in seen))
    assert links(got) == ["m-0", "m-2", "m-3", "m-1"]
    assert stream.dropped == 4, "two doubles, and a position that said nothing new when an order came and went"
    states = [event for event in got if isinstance(event, OrderSnapshot)]
    last = {event.order_link_id: event.status for event in states}
    assert last == {**{f"m-{n}": OrderStatus.FILLED for n in range(4)}, "cancelled": OrderStatus.CANCELLED}


@sockets
def test_an_outage_and_a_failing_catch_up(bench, listen):
    """It is up only when the account is caught up; until then it goes on trying."""
    failures = iter([True, True, False])

    def catch_up(_reason):
        if next(failures):
            raise VenueUnreachableError("not yet")

    now = bench.clock.now_ms()
    bench.faults(TradeFault("outage", active_from_ms=now, active_to_ms=now + 1000))
    stream, events = listen(bench.url, bench.clock, catch_up)
    gather(events, lambda seen: len(seen) >= 2)
    assert not stream.healthy
    bench.faults()
    assert stream.wait_until_up(8)
    got = gather(events, lambda seen: any(isinstance(event, StreamUp) for event in seen))
    assert ["not yet" in event.reason for event in got if isinstance(event, StreamDown)][-2:] == [True, True]
    assert stream.connections >= 4


@sockets
def test_a_refused_key(bench, listen):
    wrong = KeyPair(key=SecretStr("canary-key/7Zq+Vx"), secret=SecretStr("guess-guess"))
    stream, events = listen(bench.url, bench.clock, pair=wrong)
    (event,) = gather(events, lambda seen: len(seen) == 1)
    assert isinstance(event, StreamDown)
    assert "auth was refused" in event.reason
    assert "canary" not in repr(stream) + event.reason
    assert not stream.wait_until_up(0.1)


@pytest.fixture
def speaker():
    """A server that says what it is told to: ``script(socket, message)`` for each message."""
    servers = []

    def make(script):
        def handle(socket):
            for raw in socket:
                message = json.loads(raw)
                if message["op"] in ("auth", "subscribe"):
                    socket.send(json.dumps({"success": True, "ret_msg": "", "op": message["op"]}))
                script(socket, message)

        server = serve(handle, "127.0.0.1", 0)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.socket.getsockname()[1]}"

    yield make
    for server, thread in servers:
        server.shutdown()
        thread.join(5)


def test_silence_is_noticed(listen, speaker):
    """A connection that stands but says nothing is given up; pongs keep it."""
    mute = speaker(lambda socket, message: None)
    stream, events = listen(mute, FixedClock(NOW), ping_s=0.1, silent_s=0.4)
    got = gather(events, lambda seen: sum(isinstance(event, StreamUp) for event in seen) == 2)
    assert "nothing was heard" in got[1].reason
    assert stream.connections >= 2

    def pong(socket, message):
        if message["op"] == "ping":
            socket.send(json.dumps({"op": "pong", "args": ["1"], "conn_id": "x"}))

    lively, more = listen(speaker(pong), FixedClock(NOW), ping_s=0.1, silent_s=0.5)
    assert lively.wait_until_up(5)
    time.sleep(1.5)
    assert (lively.connections, lively.healthy) == (1, True)
    assert more.qsize() == 1


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        '{"topic": "order", "data": {}}',
        '{"topic": "order", "data": [{"orderId": "1"}]}',
        '{"topic": "execution", "data": [{"category": "linear", "execType": "Miracle"}]}',
        '{"topic": "weather", "data": [{}]}',
    ],
)
def test_a_message_that_cannot_be_read_is_caught_up(listen, speaker, text):
    reasons = queue.Queue()
    spoken = threading.Event()

    def script(socket, message):
        if message["op"] == "ping" and not spoken.is_set():
            spoken.set()
            socket.send(text)

    stream, _ = listen(speaker(script), FixedClock(NOW), reasons.put, ping_s=0.1, silent_s=5)
    assert reasons.get(timeout=5) == "first connection"
    assert "unreadable message" in reasons.get(timeout=5)
    assert stream.healthy


def test_it_needs_keys_and_an_address_of_the_emulator(canaries):
    def make(pair, url):
        return PrivateStream(Venue.EMULATOR, pair, FixedClock(NOW), queue.Queue(), lambda _: None, url=url)

    with pytest.raises(ConfigError, match=r"bybit\.key"):
        make(KeyPair(), "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="must be http"):
        make(canaries, "http://example.com")


BASE = OrderSnapshot(
    order_id="o",
    order_link_id="l",
    symbol="BTCUSDT",
    side=Side.BUY,
    order_type=OrderType.LIMIT,
    status=OrderStatus.NEW,
    qty=Decimal(3),
    filled_qty=Decimal(0),
    filled_value=Decimal(0),
    fee=Decimal(0),
    price=Decimal(10),
    time_in_force=TimeInForce.GTC,
    reduce_only=False,
    created_ms=NOW,
    updated_ms=NOW,
)
LIFE = (
    BASE,
    replace(BASE, status=OrderStatus.PARTIALLY_FILLED, filled_qty=Decimal(1), updated_ms=NOW + 1),
    # within the same millisecond
    replace(BASE, status=OrderStatus.PARTIALLY_FILLED, filled_qty=Decimal(2), updated_ms=NOW + 1),
    replace(BASE, status=OrderStatus.CANCELLED, filled_qty=Decimal(2), updated_ms=NOW + 5),
)
FILLS = tuple(
    Execution(
        exec_id=f"e{n}",
        kind=ExecType.TRADE,
        order_id="o",
        order_link_id="l",
        symbol="BTCUSDT",
        side=Side.BUY,
        qty=Decimal(1),
        price=Decimal(10),
        value=Decimal(10),
        fee=Decimal(0),
        fee_rate=Decimal(0),
        is_maker=True,
        closed_qty=Decimal(0),
        exec_ms=NOW + n,
    )
    for n in range(2)
)


@settings(max_examples=150)
@given(st.permutations([*LIFE, *FILLS]), st.lists(st.sampled_from([*LIFE, *FILLS]), max_size=6))
def test_in_any_order_and_number_the_last_word_is_the_same(arrival, again):
    newest = Newest()
    passed = [event for event in [*arrival, *again] if newest.passes(event)]
    states = [event for event in passed if isinstance(event, OrderSnapshot)]
    assert states[-1] == LIFE[-1]
    fills = [state.filled_qty for state in states]
    assert fills == sorted(fills)
    assert sorted(event.exec_id for event in passed if isinstance(event, Execution)) == ["e0", "e1"]
    assert newest.dropped == len(arrival) + len(again) - len(passed)
