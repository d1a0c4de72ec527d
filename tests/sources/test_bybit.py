"""The keyless Bybit source against the emulator's Bybit half, through pybit and real sockets."""

import itertools
import logging
import threading

import httpx
import numpy as np
import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import EmulatorServer, Fault, FaultSchedule
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.errors import BadDataError, ConfigError, RateLimitedError, UsageError
from mlbot_core.market.batch import column
from mlbot_core.market.catalogue import CATALOGUE
from mlbot_core.sources import fetch_many, open_source
from mlbot_core.sources.base import CAUSE_BEFORE_HISTORY, CAUSE_NOT_YET, CAUSE_NOTHING
from mlbot_core.sources.bybit import CAUSE_BEFORE_LISTING, BybitSource
from mlbot_core.sources.bybit_http import BybitClient
from mlbot_core.sources.bybit_pace import CALLS_PER_WINDOW, PAUSE_S, WINDOW_S, Pace
from mlbot_core.sources.transport import RequestRefusedError, UnreachableError, UpstreamError
from mlbot_core.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Market, Timeframe

LISTED = parse_utc_ms("2024-01-01")
NOW = parse_utc_ms("2024-06-01T10:37:21Z")
MONTH = parse_utc_ms("2024-03-01")
SERVED = (
    "price",
    "mark_price",
    "index_price",
    "premium_index",
    "funding_settled",
    "long_short_ratio",
    "open_interest",
    "open_interest_pair",
)
H1 = Market.parse("BTC-1h")
HOUR = Timeframe(60)


def source_of(server, clock=None, *, backoff=0.001, folder=None):
    clock = clock or server.clock
    return BybitSource(BybitClient(server.url, Pace(server.url, clock, folder=folder), backoff_s=backoff), clock)


@pytest.fixture(scope="module")
def emulator():
    with EmulatorServer(seed=7, start_ms=LISTED, clock=FixedClock(NOW)) as running:
        yield running


@pytest.fixture
def source(emulator):
    with source_of(emulator) as opened:
        yield opened


def with_faults(*faults, market=H1, series="price", now=NOW, days=40, **options):
    schedule = FaultSchedule(tuple(Fault(**fault) for fault in faults))
    with (
        EmulatorServer(
            seed=7, start_ms=LISTED, clock=FixedClock(now), faults=schedule, bybit=BybitOptions(**options)
        ) as server,
        source_of(server) as source,
    ):
        return source.fetch(series, market, now - days * DAY_MS, now)


def values(batch, name):
    return np.array(batch.table.column(name).to_pylist(), dtype=float)


def plain(emulator, path, **params):
    """Ask without any of the product's code; rows ascending."""
    query = {"category": "linear", "symbol": "BTCUSDT", **params}
    with httpx.Client(base_url=emulator.url, trust_env=False) as http:
        body = http.get(f"/v5/market/{path}", params=query).json()
    assert body["retCode"] == 0, body
    return body["result"]["list"][::-1]


@pytest.mark.parametrize("symbol", ["BTC", "ETH"])
@pytest.mark.parametrize("interval", ["5m", "30m", "1h", "2h", "4h", "8h", "12h", "1d"])
def test_two_months_of_every_series(source, symbol, interval):
    market = Market.parse(f"{symbol}-{interval}")
    end = MONTH + 10 * DAY_MS
    for series, batch in fetch_many(source, SERVED, market, MONTH, end).items():
        served = source.served(series, market)
        assert batch.timeframe == served.timeframe
        assert served.earliest_ms <= MONTH
        assert np.array_equal(column(batch.table, "ts"), batch.timeframe.opens_between(MONTH, end)), series
        assert batch.gaps == ()
        assert (batch.source, batch.symbol) == ("bybit", symbol)
        assert (column(batch.table, "observed_at") == NOW).all()


@pytest.mark.parametrize(
    ("series", "path"),
    [
        ("price", "kline"),
        ("mark_price", "mark-price-kline"),
        ("index_price", "index-price-kline"),
        ("premium_index", "premium-index-price-kline"),
    ],
)
def test_candles_are_stored_as_served(emulator, source, series, path):
    end = MONTH + 500 * HOUR_MS
    rows = plain(emulator, path, interval="60", start=MONTH, end=end - 1, limit=1000)
    batch = source.fetch(series, H1, MONTH, end)
    assert column(batch.table, "ts").tolist() == [int(row[0]) for row in rows]
    for index, name in enumerate(("open", "high", "low", "close"), start=1):
        assert values(batch, name).tolist() == [float(row[index]) for row in rows]
    if series == "price":
        assert values(batch, "volume_coin").tolist() == [float(row[5]) for row in rows]
        assert values(batch, "volume_usd").tolist() == [float(row[6]) for row in rows]


def test_a_sample_belongs_to_the_bar_that_ends_with_it(emulator, source):
    """Bybit stamps samples with their moment t: what was measured at t is the close of the bar [t - 1h, t)."""
    rows = plain(emulator, "open-interest", intervalTime="1h", startTime=MONTH + HOUR_MS, endTime=MONTH + 9 * HOUR_MS)
    ratio = plain(emulator, "account-ratio", period="1h", startTime=MONTH + HOUR_MS, endTime=MONTH + 9 * HOUR_MS)
    pair, accounts = (
        source.fetch(s, H1, MONTH, MONTH + 9 * HOUR_MS) for s in ("open_interest_pair", "long_short_ratio")
    )
    closes = (column(pair.table, "ts") + HOUR_MS).tolist()
    assert closes == [int(row["timestamp"]) for row in rows]
    assert values(pair, "close_coin").tolist() == [float(row["singleOpenInterest"]) for row in rows]
    assert (column(accounts.table, "ts") + HOUR_MS).tolist() == [int(row["timestamp"]) for row in ratio]
    assert values(accounts, "long_share").tolist() == [float(row["buyRatio"]) for row in ratio]
    # the market itself: open interest in USD at the end of the five minutes before t
    truth = emulator.market.bars("open_interest", HOUR, MONTH, MONTH + 8 * HOUR_MS, NOW).values["close"] * 0.2
    np.testing.assert_allclose(values(pair, "close"), truth, rtol=0.01)
    mark = source.fetch("mark_price", H1, MONTH, MONTH + 9 * HOUR_MS)
    np.testing.assert_array_equal(values(pair, "close"), values(pair, "close_coin") * values(mark, "close"))


@pytest.mark.parametrize("series", ["open_interest_pair", "long_short_ratio", "price", "mark_price"])
@pytest.mark.parametrize("interval", ["1h", "2h"])
def test_no_bar_before_its_close_and_none_after_it(series, interval):
    """Right before the close a bar is not there, at the close it is, with the value of that moment."""
    market = Market.parse(f"BTC-{interval}")
    close = MONTH + 8 * HOUR_MS
    seen = {}
    for now in (close - 1, close, close + HOUR_MS // 2):
        clock = FixedClock(now)
        with EmulatorServer(seed=7, start_ms=LISTED, clock=clock) as server, source_of(server) as source:
            batch = source.fetch(series, market, MONTH, now + DAY_MS)
            ts = column(batch.table, "ts")
            assert ts[-1] == market.timeframe.floor(now) - market.timeframe.ms
            assert (ts + market.timeframe.ms <= now).all()
            seen[now] = batch.table.drop_columns("observed_at").to_pylist()
    assert seen[close][:-1] == seen[close - 1]
    # what was known at the close does not change when half an hour has passed
    assert seen[close + HOUR_MS // 2] == seen[close]


def test_two_hour_samples_are_the_last_of_their_hours(source):
    for series, names in (("open_interest_pair", ("close", "close_coin")), ("long_short_ratio", ("long_share",))):
        hours = source.fetch(series, H1, MONTH, MONTH + DAY_MS)
        twos = source.fetch(series, Market.parse("BTC-2h"), MONTH, MONTH + DAY_MS)
        assert twos.notes == ("2h bars made of 1h bars",)
        for name in names:
            assert values(twos, name).tolist() == values(hours, name)[1::2].tolist()


def test_funding_is_labelled_by_its_payment(emulator, source):
    rows = plain(emulator, "funding/history", startTime=MONTH, endTime=MONTH + 70 * DAY_MS)
    batch = source.fetch("funding_settled", H1, MONTH, MONTH + 80 * DAY_MS)  # 240 payments: more than one answer
    assert batch.timeframe == Timeframe(480)
    assert batch.rows == 240
    paid = dict(zip(column(batch.table, "ts").tolist(), values(batch, "rate").tolist(), strict=True))
    assert {int(row["fundingRateTimestamp"]): float(row["fundingRate"]) for row in rows}.items() <= paid.items()


def test_before_the_listing(source):
    start = LISTED - 2 * DAY_MS
    for series in SERVED:
        batch = source.fetch(series, H1, start, LISTED + DAY_MS)
        assert batch.gaps[0].cause == CAUSE_BEFORE_LISTING
        assert batch.gaps[0].from_ts == start
        assert batch.gaps[0].to_ts == LISTED - batch.timeframe.ms
        assert source.served(series, H1).earliest_ms == LISTED + (8 * HOUR_MS if series == "funding_settled" else 0)
        assert [gap.cause for gap in batch.gaps[1:]] == ([CAUSE_BEFORE_HISTORY] if series == "funding_settled" else [])
    whole = source.fetch("price", H1, start, LISTED)
    assert whole.rows == 0
    assert [gap.cause for gap in whole.gaps] == [CAUSE_BEFORE_LISTING]


def test_account_ratio_begins_later_than_the_instrument():
    clock = FixedClock(parse_utc_ms("2020-08-01T00:30:00Z"))
    with EmulatorServer(start_ms=parse_utc_ms("2020-03-30"), clock=clock) as server, source_of(server) as source:
        batch = source.fetch("long_short_ratio", H1, parse_utc_ms("2020-03-01"), clock.now_ms())
        assert [gap.cause for gap in batch.gaps] == [CAUSE_BEFORE_LISTING, CAUSE_BEFORE_HISTORY]
        assert column(batch.table, "ts")[0] == parse_utc_ms("2020-07-20")
        assert source.served("long_short_ratio", H1).earliest_ms == parse_utc_ms("2020-07-20")


def test_what_is_not_served(source):
    assert source.served("liquidations", H1) is None
    assert "without a key" in source.why_not("taker_volume", H1)
    with pytest.raises(UsageError, match="serves 5m, 15m, 30m"):
        source.fetch("open_interest", Market.parse("BTC-1m"), MONTH, MONTH + DAY_MS)
    with pytest.raises(UsageError, match="no linear perpetual NOPEUSDT"):
        source.fetch("price", Market.parse("NOPE-1h"), MONTH, MONTH + DAY_MS)
    with pytest.raises(UsageError, match="not in the catalogue"):
        source.served("nothing", H1)


def test_empty_ranges_and_the_future(source):
    assert source.fetch("price", H1, MONTH, MONTH).rows == 0
    assert source.fetch("price", H1, NOW, NOW + DAY_MS).rows == 0
    late = source.fetch("price", H1, NOW - 3 * HOUR_MS, NOW + DAY_MS)
    assert late.rows == 2
    assert late.gaps == ()


def test_chunks_are_the_whole(source):
    bounds = [(MONTH + n * 9 * DAY_MS, MONTH + (n + 1) * 9 * DAY_MS) for n in range(6)]
    chunks = list(source.fetch_chunks("open_interest_pair", H1, bounds))
    whole = source.fetch("open_interest_pair", H1, MONTH, bounds[-1][1])
    assert [int(column(chunk.table, "ts")[0]) for chunk in chunks] == [start for start, _ in bounds]
    assert [row for chunk in chunks for row in chunk.table.to_pylist()] == whole.table.to_pylist()
    stopped = source.fetch_chunks("price", H1, bounds)
    next(stopped)
    stopped.close()
    assert list(source.fetch_chunks("price", H1, [])) == []


def test_a_failing_chunk_comes_after_those_before_it():
    faults = FaultSchedule((Fault("html_502", endpoint="/kline", nth=2, count=1000),))
    with EmulatorServer(start_ms=LISTED, clock=FixedClock(NOW), faults=faults) as server, source_of(server) as source:
        bounds = [(MONTH + n * 40 * DAY_MS, MONTH + (n + 1) * 40 * DAY_MS) for n in range(3)]
        chunks = source.fetch_chunks("price", H1, bounds)
        with pytest.raises(UpstreamError, match="HTTP 502"):
            list(chunks)


def test_windows_hold_what_one_answer_can(settings):
    """No window asks for more bars than an answer holds, neighbours do not overlap, and each is asked for once."""
    with EmulatorServer(start_ms=LISTED, clock=FixedClock(NOW)) as server, source_of(server) as source:
        for series in SERVED:
            source.fetch(series, H1, LISTED, NOW)
        spans = {}
        for path, query in server.bybit.log:
            names = ("start", "end") if "start" in query else ("startTime", "endTime")
            if names[0] not in query:
                continue
            step = 8 * HOUR_MS if "funding" in path else HOUR_MS
            first, last = (int(query[name]) // step for name in names)
            assert last - first + 1 <= int(query["limit"]), (path, query)
            spans.setdefault(path, []).append((first, last))
        for path, found in spans.items():
            # mark prices are wanted by themselves and by two kinds of open interest
            times = 3 if "mark-price" in path else 2 if "open-interest" in path else 1
            assert len(found) == times * len(set(found)), path
            ordered = sorted(set(found))
            assert all(a[1] < b[0] for a, b in itertools.pairwise(ordered)), path


@pytest.mark.parametrize(
    "kind", ["http_500", "body_500", "html_502", "truncated_json", "reset", "http_429", "body_10006"]
)
@pytest.mark.parametrize("series", ["price", "open_interest_pair"])
def test_passing_faults_leave_no_trace(kind, series):
    batch = with_faults({"kind": kind, "nth": 3, "count": 2}, series=series)
    assert batch.table.equals(with_faults(series=series).table)
    assert batch.gaps == ()


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("http_500", UpstreamError, "HTTP 500; 4 attempts failed"),
        ("body_500", UpstreamError, "retCode 10016"),
        ("html_502", UpstreamError, "HTTP 502"),
        ("truncated_json", BadDataError, "not JSON"),
        ("reset", UnreachableError, "ChunkedEncodingError|ConnectionError"),
        ("http_429", RateLimitedError, "HTTP 429"),
        ("body_429", RateLimitedError, "retCode 429"),
        ("body_10006", RateLimitedError, "retCode 10006"),
        ("http_403", RateLimitedError, "No call is made for 10 min"),
        ("unparsable", BadDataError, "turnover is 'abc' at"),
        ("off_grid", BadDataError, "off the 1h grid"),
    ],
)
def test_lasting_faults(kind, error, message):
    with pytest.raises(error, match=message):
        with_faults({"kind": kind, "endpoint": "/kline"})


@pytest.mark.parametrize("series", ["price", "long_short_ratio", "funding_settled", "open_interest"])
def test_an_empty_page_is_asked_for_again(series):
    market = Market.parse("BTC-30m")
    clean = with_faults(market=market, series=series, days=60)
    for nth in (2, 3):  # the first call asks for the instrument
        batch = with_faults({"kind": "empty_page", "nth": nth}, market=market, series=series, days=60)
        assert batch.table.equals(clean.table)
        assert batch.gaps == ()


def test_row_faults():
    clean = with_faults()
    hole = NOW // HOUR_MS * HOUR_MS - 100 * HOUR_MS
    gap = with_faults({"kind": "gap", "from_ts": hole, "to_ts": hole + 2 * HOUR_MS})
    assert [(g.from_ts, g.to_ts, g.cause) for g in gap.gaps] == [(hole, hole + 2 * HOUR_MS, CAUSE_NOTHING)]
    assert gap.rows == clean.rows - 3
    same = with_faults({"kind": "duplicate_bars"})
    assert same.table.equals(clean.table)
    assert same.notes == ("1 identical duplicate rows dropped",)
    with pytest.raises(BadDataError, match="occurs twice"):
        with_faults({"kind": "duplicate_bars", "factor": 1.01})
    assert with_faults({"kind": "extra_open_bar"}).table.equals(clean.table)
    late = with_faults({"kind": "late_bars", "seconds": 3600.0})
    assert [gap.cause for gap in late.gaps] == [CAUSE_NOT_YET]


def test_an_outage_raises_and_is_over_when_it_is_over():
    fault = {"kind": "html_502", "active_from_ms": NOW - HOUR_MS, "active_to_ms": NOW + HOUR_MS}
    with pytest.raises(UpstreamError):
        with_faults(fault)
    assert with_faults(fault, now=NOW + HOUR_MS).gaps == ()


def test_the_servers_time_decides_what_is_open(emulator):
    """A clock of ours that runs ahead must not turn an open bar into a closed one."""
    ahead = FixedClock(NOW + 2 * HOUR_MS)
    with source_of(emulator, ahead) as source:
        batch = source.fetch("price", H1, NOW - DAY_MS, NOW + DAY_MS)
    assert column(batch.table, "ts")[-1] == NOW // HOUR_MS * HOUR_MS - HOUR_MS
    behind = FixedClock(NOW - 3 * HOUR_MS)
    with source_of(emulator, behind) as source:
        batch = source.fetch("price", H1, NOW - DAY_MS, NOW + DAY_MS)
    assert column(batch.table, "ts")[-1] == (NOW - 3 * HOUR_MS) // HOUR_MS * HOUR_MS - HOUR_MS


def test_open_interest_changes_its_meaning_in_mid_history():
    clean = with_faults(series="open_interest_pair")
    since = NOW // HOUR_MS * HOUR_MS - 333 * HOUR_MS
    mixed = with_faults(series="open_interest_pair", both_sides_since_ms=since)
    assert values(mixed, "close_coin").tolist() == values(clean, "close_coin").tolist()
    assert "not given for" in mixed.notes[0]
    assert "0 of them halved" in mixed.notes[0]
    # nothing but openInterest, and no hint at what it means
    alone = with_faults(series="open_interest_pair", both_sides_since_ms=2 * NOW)
    assert values(alone, "close_coin").tolist() == values(clean, "close_coin").tolist()
    assert alone.notes == ("open interest as served: whether it is one side or both was not told",)
    wrong = {"kind": "restate", "endpoint": "/open-interest", "from_ts": 0, "to_ts": NOW, "factor": 1.5}
    with pytest.raises(BadDataError, match="neither one side nor both"):
        with_faults({**wrong, "column": "openInterest"}, series="open_interest_pair")


def test_address_refused_stops_every_process_for_ten_minutes(tmp_path):
    faults = FaultSchedule((Fault("http_403", endpoint="/kline", nth=1),))
    with EmulatorServer(start_ms=LISTED, clock=FixedClock(NOW), faults=faults) as server:
        with source_of(server, folder=tmp_path) as source, pytest.raises(RateLimitedError, match="10 min"):
            source.fetch("price", H1, MONTH, MONTH + 300 * DAY_MS)
        asked = server.calls()["total"]
        with source_of(server, folder=tmp_path) as other, pytest.raises(RateLimitedError, match="another 10 min"):
            other.fetch("price", H1, MONTH, MONTH + DAY_MS)
        assert server.calls()["total"] == asked


def test_nobody_exceeds_the_pace_of_an_address(tmp_path):
    """Two callers with one folder, on a made-up time: never more than Bybit allows in any five seconds."""
    now, lock = [1000.0], threading.Lock()

    def wait(seconds):
        with lock:
            now[0] += seconds

    clock = FixedClock(NOW)
    paces = [Pace("host", clock, folder=tmp_path, monotonic=lambda: now[0], sleep=wait) for _ in range(2)]
    calls = []
    for number in range(700):
        paces[number % 2].acquire()
        calls.append(now[0])
    times = np.array(calls)
    busiest = max(int(np.searchsorted(times, at + WINDOW_S) - index) for index, at in enumerate(times))
    assert 0.75 * CALLS_PER_WINDOW <= busiest <= CALLS_PER_WINDOW + 1
    paces[0].stop()
    with pytest.raises(RateLimitedError, match="HTTP 403"):
        paces[1].acquire()
    now[0] += PAUSE_S + 1
    paces[1].acquire()
    now[0] = 0.0  # a reboot: the file's time means nothing
    Pace("host", clock, folder=tmp_path, monotonic=lambda: now[0], sleep=wait).acquire()


def test_a_mistake_in_the_request_is_not_repeated(emulator):
    with source_of(emulator) as source:
        before = emulator.calls()["total"]
        with pytest.raises(RequestRefusedError, match="retCode 10001"):
            source._client.get("get_kline", symbol="BTCUSDT", interval="7")
        assert emulator.calls()["total"] == before + 1


def test_nobody_listens():
    with (
        BybitSource(
            BybitClient("http://127.0.0.1:9", Pace("x", FixedClock(NOW)), backoff_s=0.0), FixedClock(NOW)
        ) as source,
        pytest.raises(UnreachableError, match="4 attempts failed"),
    ):
        source.served("price", H1)


@pytest.mark.parametrize("url", ["http://api.bybit.com", "api.bybit.com", "ftp://127.0.0.1", "http://[::1", ""])
def test_unusable_urls(url):
    with pytest.raises(ConfigError, match="Bybit URL"):
        BybitClient(url, Pace("x", FixedClock(NOW)))


def test_by_name_with_the_configured_url(emulator, settings):
    configured = settings.model_copy(update={"bybit_url": emulator.url})
    with open_source("bybit", configured, emulator.clock) as source:
        assert source.name == "bybit"
        assert emulator.url in source.served("price", H1).note
        assert source.fetch("price", H1, MONTH, MONTH + DAY_MS).rows == 24
    assert settings.intervals.settle_delay_ms("bybit") == 5000


@pytest.mark.parametrize("symbol", ["BTC", "ETH"])
def test_agrees_with_coinglass(emulator, source, settings, symbol):
    """Two clients, two wire formats, two units, one market: prices within 0.5 %, funding percent against fraction."""
    market, end = Market(symbol, HOUR), MONTH + 30 * DAY_MS
    with open_source("emulator", settings, emulator.clock, base_url=emulator.url) as coinglass:
        theirs = {name: coinglass.fetch(name, market, MONTH, end) for name in ("price", "funding_rate")}
    price = source.fetch("price", market, MONTH, end)
    difference = np.abs(values(price, "close") / values(theirs["price"], "close") - 1)
    assert 0 < difference.max() < 0.005
    paid = source.fetch("funding_settled", market, MONTH + 8 * HOUR_MS, end)
    closes = dict(
        zip(column(theirs["funding_rate"].table, "ts") + HOUR_MS, values(theirs["funding_rate"], "close"), strict=True)
    )
    running = np.array([closes[ts] for ts in column(paid.table, "ts")])
    np.testing.assert_allclose(values(paid, "rate"), running, atol=1e-8)


def test_sessions_leave_the_logging_alone(emulator):
    logger = logging.getLogger("pybit._http_manager")
    handlers = list(logger.handlers)
    with source_of(emulator) as source:
        fetch_many(source, SERVED, H1, MONTH, MONTH + 30 * DAY_MS)
    assert logger.handlers == handlers


def test_every_series_of_the_table_is_in_the_catalogue():
    assert set(SERVED) <= set(CATALOGUE)
    assert MINUTE_MS * 60 == HOUR_MS
