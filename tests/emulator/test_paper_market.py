"""What the paper exchange makes of looks at a market: only what happened since the look before, and nothing old."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import EmulatorServer
from mlbot_core.emulator.exchange import ApiKey, ExchangeOptions
from mlbot_core.emulator.paper.bybit import Candle, LiveBybit, LiveError, Look
from mlbot_core.emulator.paper.exchange import PaperExchange, Setup
from mlbot_core.emulator.paper.market import LiveFeed, Memory, Point, understand
from mlbot_core.emulator.paper.rules import live_rules
from mlbot_core.emulator.paper.store import PaperStoreError

MINUTE = 60_000
T0 = parse_utc_ms("2024-05-01T10:00:00Z")
D = Decimal


def look(now: int, last: str, candles: list[Candle], **more) -> Look:
    price = D(last)
    values = {
        "symbol": "BTCUSDT",
        "server_ms": now,
        "last": price,
        "mark": price,
        "index": price,
        "bids": ((price - D("0.1"), D(1)),),
        "asks": ((price + D("0.1"), D(1)),),
        "funding_rate": D("0.0001"),
        "next_funding_ms": parse_utc_ms("2024-05-01T16:00:00Z"),
        "candles": tuple(candles),
        "marks": (),
        "settled": {},
    }
    return Look(**{**values, **more})


def candle(ts: int, open_: str, high: str, low: str, close: str, volume: str = "0") -> Candle:
    return Candle(ts, *map(D, (open_, high, low, close, volume)))


def after(now: int, made: Look) -> Memory:
    return understand(None, made, now)[1]


def test_an_extreme_counts_once_and_only_since_the_look_before():
    # the wick to 90 was there at the first look; the one to 120 was not
    before = after(T0 + 20_000, look(T0 + 20_000, "100", [candle(T0, "100", "101", "90", "100", "5")]))
    second = look(T0 + 22_000, "102", [candle(T0, "100", "120", "90", "102", "9")])
    points, memory, _ = understand(before, second, T0 + 22_000)
    assert [(p.last, p.volume) for p in points] == [(D(120), D(4)), (D(102), D(0))]
    assert T0 + 20_000 < points[0].ts < points[1].ts == T0 + 22_000
    third = look(T0 + 24_000, "101", [candle(T0, "100", "120", "90", "101", "10")])
    points, _, _ = understand(memory, third, T0 + 24_000)
    assert [(p.last, p.volume) for p in points] == [(D(101), D(1))]


def test_a_gap_is_filled_minute_by_minute_with_the_mark_price_of_each():
    before = after(T0 + 30_000, look(T0 + 30_000, "100", [candle(T0, "100", "100", "100", "100", "1")]))
    candles = [
        candle(T0, "100", "104", "99", "103", "4"),
        candle(T0 + MINUTE, "103", "110", "80", "105", "9"),
        candle(T0 + 2 * MINUTE, "105", "106", "105", "106", "2"),
    ]
    marks = (candle(T0 + MINUTE, "103", "109", "85", "104"),)
    made = look(T0 + 150_000, "106", candles, marks=marks)
    points, memory, _ = understand(before, made, T0 + 150_000)
    # the nearer extreme first, the close of each whole minute, then the present
    assert [str(p.last) for p in points] == ["99", "104", "103", "110", "80", "105", "106"]
    assert [str(p.mark) for p in points[3:6]] == ["109", "85", "104"]
    assert [p.volume for p in points] == [1, 1, 1, 3, 3, 3, 2]
    assert all(a.ts < b.ts for a, b in pairwise(points))
    assert points[2].ts < T0 + MINUTE <= points[3].ts
    feed = LiveFeed(before)
    feed.extend(points, memory, {})
    # without a book of its own a point has the newest one before it, moved with the price
    assert feed.quote(points[4].ts).asks == [(D("80.1"), D(1))]
    assert feed.ticks(before.point.ts, T0 + 150_000).last.tolist() == [99, 104, 103, 110, 80, 105, 106]


def test_the_minute_in_which_observation_began_tells_nothing_about_what_came_after():
    before = replace(after(T0 + 30_000, look(T0 + 30_000, "100", [])), minute=None)
    points, _, _ = understand(
        before, look(T0 + 31_000, "100", [candle(T0, "100", "150", "50", "100", "99")]), T0 + 31_000
    )
    assert [(p.last, p.volume) for p in points] == [(D(100), D(0))]


def test_funding_waits_for_the_settled_rate_and_falls_back_on_the_announced_one():
    settle = parse_utc_ms("2024-05-01T16:00:00Z")
    before = after(settle - 1_000, look(settle - 1_000, "100", [], funding_rate=D("0.0003"), next_funding_ms=settle))
    with pytest.raises(LiveError, match="not known yet"):
        understand(before, look(settle + 1_000, "100", []), settle + 1_000)
    known = look(settle + 2_000, "100", [], settled={settle: D("0.0007")})
    points, memory, rates = understand(before, known, settle + 2_000)
    feed = LiveFeed(before)
    feed.extend(points, memory, rates)
    assert feed.funding_rate(settle) == D("0.0007")
    assert settle in feed.ticks(settle - 1_000, settle + 2_000).ts.tolist()
    late = settle + 31_000
    assert understand(before, look(late, "100", []), late)[2] == {settle: D("0.0003")}
    # announced for another settlement: not a rate of this one
    other = replace(before, announced_for=settle + 1)
    with pytest.raises(LiveError, match="not known yet"):
        understand(other, look(late, "100", []), late)


prices = st.integers(1, 2_000).map(D)


@given(st.lists(st.tuples(prices, prices, prices, prices, st.integers(0, 50)), min_size=1, max_size=5), st.data())
def test_points_follow_each_other_within_the_candles_and_volume_is_kept(rows, data):
    """Invariants: stamps rise strictly between the looks; every price is one of the candles'; no coin is lost."""
    start = T0 + data.draw(st.integers(0, MINUTE - 1))
    candles = [
        Candle(T0 + n * MINUTE, o, max(o, h, low, c), min(o, h, low, c), c, D(v))
        for n, (o, h, low, c, v) in enumerate(rows)
    ]
    now = max(start + 1, candles[-1].ts + data.draw(st.integers(1, MINUTE - 1)))
    first = replace(candles[0], high=candles[0].open, low=candles[0].open, close=candles[0].open, volume=D(0))
    before = after(start, look(start, str(candles[0].open), [first]))
    points, memory, _ = understand(before, look(now, str(candles[-1].close), candles), now)
    stamps = [start, *(p.ts for p in points)]
    assert all(a < b for a, b in pairwise(stamps))
    assert points[-1].ts == now == memory.point.ts
    for point in points:
        assert any(c.low <= point.last <= c.high for c in candles)
    total = sum((c.volume for c in candles), D(0))
    assert abs(sum((p.volume for p in points), D(0)) - total) < D("1e-20")


def test_rules_and_units_of_tiers_are_bybits_own():
    row = {
        "symbol": "BTCUSDT",
        "baseCoin": "BTC",
        "fundingInterval": 480,
        "lotSizeFilter": {"qtyStep": "0.002", "maxOrderQty": "9", "maxMktOrderQty": "8", "minNotionalValue": "7"},
        "priceFilter": {"tickSize": "0.50", "minPrice": "0.5", "maxPrice": "99"},
        "leverageFilter": {"maxLeverage": "50"},
        "riskParameters": {"priceLimitRatioX": "0.02"},
    }
    tier = {"riskLimitValue": "1000", "maxLeverage": "50", "mmDeduction": ""}
    for initial, maintenance in (("2", "1"), ("0.02", "0.01")):
        rules = live_rules(row, [{**tier, "initialMargin": initial, "maintenanceMargin": maintenance}])
        assert rules.tiers[0].rate == D("0.01")
    assert (rules.step, rules.tick, rules.band) == (D("0.002"), D("0.5"), D("0.02"))
    with pytest.raises(LiveError, match="every 240 minutes"):
        live_rules({**row, "fundingInterval": 240}, [tier])
    with pytest.raises(LiveError, match="cannot be read"):
        live_rules({**row, "lotSizeFilter": {}}, [tier])


@pytest.fixture
def bybit():
    clock = FixedClock(parse_utc_ms("2024-01-06T10:37:21Z"))
    with EmulatorServer(seed=7, start_ms=parse_utc_ms("2024-01-01"), clock=clock) as server:
        yield server, clock


def test_old_wrong_and_missing_answers_are_no_prices(bybit):
    server, clock = bybit
    live = LiveBybit(server.url, clock, timeout_s=1.0)
    assert live.look("BTCUSDT", None).last > 0
    ahead = LiveBybit(server.url, FixedClock(clock.now_ms() + 10_001), timeout_s=1.0)
    with pytest.raises(LiveError, match=r"10\.0 s old"):
        ahead.look("BTCUSDT", None)
    behind = LiveBybit(server.url, FixedClock(clock.now_ms() - 5_001), timeout_s=1.0)
    with pytest.raises(LiveError, match="ahead of this machine's clock"):
        behind.look("BTCUSDT", None)
    with pytest.raises(LiveError, match="retCode 10001"):
        live.look("DOGEUSDT", None)
    with pytest.raises(LiveError, match="no usable answer"):
        LiveBybit("http://127.0.0.1:1", clock).look("BTCUSDT", None)
    server.bybit.options = replace(server.bybit.options, ip_calls=1)
    with pytest.raises(LiveError, match="HTTP 403"):
        live.look("BTCUSDT", None)
    asked = server.bybit.calls.total()
    with pytest.raises(LiveError, match="after ten minutes"):
        live.look("BTCUSDT", None)
    assert server.bybit.calls.total() == asked


def test_an_account_belongs_to_its_symbols_and_its_release(bybit, tmp_path):
    server, clock = bybit
    options = ExchangeOptions(keys=(ApiKey("k", "s"),))

    def open_(*symbols: str) -> PaperExchange:
        return PaperExchange(Setup(tmp_path, symbols, options), LiveBybit(server.url, clock), clock)

    first = open_("BTCUSDT")
    uid, truth = first.uid, first.truth()["accounts"]
    assert truth[str(uid)]["wallet"] == {"USDT": "100000.00000000"}
    first.store.close()
    again = open_("BTCUSDT")
    assert (again.uid, again.truth()["accounts"]) == (uid, truth)
    again.store.close()
    with pytest.raises(PaperStoreError, match="not of ETHUSDT"):
        open_("ETHUSDT")
    again = open_("BTCUSDT")
    again.store.put_meta("version", 99)
    again.store.close()
    with pytest.raises(PaperStoreError, match="version 99"):
        open_("BTCUSDT")


def test_fields_of_another_release_are_not_guessed_at():
    from mlbot_core.emulator.paper.store import read, spell

    point = Point(1, D("1.50"), D(2), D(3))
    row = spell(point, ("bids", "asks"))
    assert read(Point, row, bids=(), asks=()) == point
    assert str(read(Point, row, bids=(), asks=()).last) == "1.50"
    for wrong in ({**row, "more": 1}, {name: value for name, value in row.items() if name != "mark"}):
        with pytest.raises(PaperStoreError, match="other fields"):
            read(Point, wrong, bids=(), asks=())
