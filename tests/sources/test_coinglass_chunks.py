"""Long fetches in stretches that are stored one by one: few calls, nothing lost, nothing asked twice."""

import itertools
import threading

import httpx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import CoinglassOptions, EmulatorServer
from mlbot_core.errors import UsageError
from mlbot_core.market import CATALOGUE
from mlbot_core.market.batch import column
from mlbot_core.sources import open_source
from mlbot_core.sources.base import CAUSE_BEFORE_HISTORY, CAUSE_NOT_YET, CAUSE_NOTHING, CAUSE_PADDING
from mlbot_core.sources.chunks import Chunk, pages_by_chunk, windows_over
from mlbot_core.sources.paging import Page, plan_windows, stitch
from mlbot_core.sources.transport import UpstreamError
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market, Month, Timeframe

PRICE = str(CATALOGUE["price"].endpoint)
ETF = str(CATALOGUE["etf_flows"].endpoint)
LIQUIDATIONS = str(CATALOGUE["liquidations"].endpoint)
HOURLY = Timeframe(60)
H1 = Market.parse("BTC-1h")
NOON = parse_utc_ms("2025-03-10T12:00:00Z")


def months(first, last):
    span = Month.span(Month.parse(first).start_ms, Month.parse(last).end_ms)
    return [(month.start_ms, month.end_ms) for month in span]


def joined(batches, name="ts"):
    return pa.concat_tables([batch.table for batch in batches]).column(name).to_pylist()


@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=12),
    limit=st.integers(2, 30),
    ahead=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_stretch_gets_exactly_its_bars_from_the_fewest_windows(sizes, limit, ahead):
    chunks, at = [], 0
    for bars, hole in sizes:
        first, stop = at + hole, at + hole + bars
        chunks.append(Chunk(first * HOUR_MS, first * HOUR_MS, stop * HOUR_MS))
        at = stop
    windows = windows_over(chunks, HOURLY, limit)
    asked, guard = [], threading.Lock()

    def ask(window):
        with guard:
            asked.append(window)
        ts = window.expected(HOURLY)
        return [Page(ts, ts[:, None].astype(float), 0)]

    for chunk, pages in zip(chunks, pages_by_chunk(chunks, windows, HOURLY, ask, ahead=ahead), strict=True):
        ts = stitch(pages, 1).ts
        mine = ts[(ts >= chunk.begin) & (ts < chunk.stop)]
        assert mine.tolist() == list(range(chunk.first, chunk.stop, HOUR_MS))
    assert sorted(asked, key=lambda w: w.first_ts) == windows
    assert all(window.bars(HOURLY) <= limit for window in windows)
    runs = [list(group) for _, group in itertools.groupby(windows, key=lambda w: _run(chunks, w))]
    for group in runs:
        begin, stop = group[0].first_ts, group[-1].last_ts + HOUR_MS
        assert group == plan_windows(begin, stop, HOURLY, limit), "windows are cut over neighbours together"


def _run(chunks, window):
    """Return the number of the unbroken run of stretches that a window lies in."""
    number, last = -1, None
    for chunk in chunks:
        if not chunk.asks:
            continue
        number += chunk.begin != last
        last = chunk.stop
        if window.first_ts < chunk.stop:
            return number
    raise AssertionError(window)


def test_a_failure_is_raised_when_its_stretch_is_due():
    chunks = [Chunk(i * 10 * HOUR_MS, i * 10 * HOUR_MS, (i + 1) * 10 * HOUR_MS) for i in range(5)]
    windows = windows_over(chunks, HOURLY, 11)

    def ask(window):
        if window.last_ts >= 35 * HOUR_MS:
            raise UpstreamError("enough")
        ts = window.expected(HOURLY)
        return [Page(ts, ts[:, None].astype(float), 0)]

    stream = pages_by_chunk(chunks, windows, HOURLY, ask, ahead=3)
    assert [len(next(stream)) > 0 for _ in range(3)] == [True] * 3
    with pytest.raises(UpstreamError, match="enough"):
        next(stream)


def test_months_in_stretches_are_the_same_bars_in_fewer_calls(source, server):
    bounds = months("2024-09", "2025-03")
    batches = list(source.fetch_chunks("price", H1, bounds))
    calls = server.calls(PRICE)
    bars = (NOON - bounds[0][0]) // HOUR_MS
    assert len(calls) == -(-bars // 995), "one call for every 995 bars, not one or two a month"
    server.requests.clear()
    whole = source.fetch("price", H1, bounds[0][0], bounds[-1][1])
    assert joined(batches) == joined([whole]) == list(range(bounds[0][0], NOON, HOUR_MS))
    assert joined(batches, "close") == joined([whole], "close")
    for (start, end), batch in zip(bounds, batches, strict=True):
        assert column(batch.table, "ts").tolist() == list(range(start, min(end, NOON), HOUR_MS))
        assert batch.gaps == ()


def test_what_was_yielded_is_all_that_a_stop_costs(source, server):
    bounds = months("2024-01", "2025-02")
    stream = source.fetch_chunks("price", H1, bounds)
    for _ in range(3):
        next(stream)
    stream.close()
    # three months are 2184 bars: three windows, and no more than two were under way beyond them
    assert 3 <= len(server.calls(PRICE)) <= 5
    before = len(server.calls(PRICE))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("coinglass-window")]
    rest = list(source.fetch_chunks("price", H1, bounds[3:]))
    again = server.calls(PRICE)[before:]
    assert min(int(params["start_time"]) for params in again) == bounds[3][0]
    assert joined(rest)[0] == bounds[3][0]


def test_a_whole_history_is_asked_for_once(settings):
    clock = FixedClock(parse_utc_ms("2024-07-10T12:10:00Z"))
    with (
        EmulatorServer(clock=clock) as server,
        open_source("emulator", settings, clock, base_url=server.url) as source,
    ):
        batches = list(source.fetch_chunks("etf_flows", H1, months("2024-02", "2024-07")))
        assert server.api.calls[ETF] == 1
        whole = source.fetch("etf_flows", H1, Month.parse("2024-02").start_ms, clock.now_ms())
        assert joined(batches) == joined([whole])
        tomorrow = (clock.now_ms() + DAY_MS, clock.now_ms() + 2 * DAY_MS)
        (nothing,) = source.fetch_chunks("etf_flows", H1, [tomorrow])
        assert nothing.rows == 0
        assert server.api.calls[ETF] == 2, "nothing closed yet costs nothing"


def test_the_plans_cut_is_said_in_every_stretch_and_costs_no_call(source, server):
    server.level = "STARTUP"
    first = NOON - (180 * 24 - 1) * HOUR_MS
    batches = list(source.fetch_chunks("price", H1, months("2024-07", "2025-03")))
    gaps = [(gap.from_ts, gap.to_ts) for batch in batches for gap in batch.gaps]
    assert gaps[-1][1] == first - HOUR_MS
    assert all("before the history of plan STARTUP (180 days at 1h)" in g.cause for b in batches for g in b.gaps)
    assert batches[0].rows == 0
    assert batches[0].notes[0].startswith("asked from 2024-07-01T00:00:00Z, nothing served before 2024-08-01T00:00:00Z")
    assert "served from 2024-09-11T13:00:00Z on: before the history of plan STARTUP" in batches[2].notes[0]
    assert min(int(params["start_time"]) for params in server.calls(PRICE)) == first
    assert joined(batches) == list(range(first, NOON, HOUR_MS))


def test_stretches_before_a_listing_are_told_from_holes_by_what_follows(source, server):
    listed, hole = parse_utc_ms("2024-11-20T05:00:00Z"), parse_utc_ms("2025-01-01")
    server.earliest_ms = listed
    server.edit = lambda _, rows: [row for row in rows if not hole <= row["time"] < hole + 31 * DAY_MS]
    batches = list(source.fetch_chunks("price", H1, months("2024-09", "2025-03")))
    causes = {gap.from_ts: gap.cause for batch in batches for gap in batch.gaps}
    starts = [start for start, _ in months("2024-09", "2024-11")]
    assert causes == {**dict.fromkeys(starts, CAUSE_BEFORE_HISTORY), hole: CAUSE_NOTHING}
    server.edit = lambda _, __: []
    batches = list(source.fetch_chunks("price", H1, months("2024-09", "2024-10")))
    assert [gap.cause for batch in batches for gap in batch.gaps] == [CAUSE_NOTHING] * 2, "nothing tells otherwise"


def test_a_month_that_has_just_begun_waits_for_its_first_bar(source, server, clock):
    start = parse_utc_ms("2025-04-01")
    clock.set_ms(start + HOUR_MS + 60_000)
    server.edit = lambda _, rows: [row for row in rows if row["time"] < start]
    batches = list(source.fetch_chunks("price", H1, months("2025-03", "2025-04")))
    assert [(gap.from_ts, gap.cause) for batch in batches for gap in batch.gaps] == [(start, CAUSE_NOT_YET)]


def test_zeros_are_padding_only_before_the_series_has_begun(source, server):
    zeros = {"aggregated_long_liquidation_usd": 0, "aggregated_short_liquidation_usd": "0"}
    begins, quiet = parse_utc_ms("2024-11-03T07:00:00Z"), parse_utc_ms("2025-01-01")
    server.edit = lambda _, rows: [
        {**row, **zeros} if row["time"] < begins or quiet <= row["time"] < quiet + 2 * DAY_MS else row for row in rows
    ]
    batches = list(source.fetch_chunks("liquidations", H1, months("2024-10", "2025-01")))
    assert [(gap.from_ts, gap.cause) for batch in batches for gap in batch.gaps] == [
        (parse_utc_ms("2024-10-01"), CAUSE_PADDING),
        (parse_utc_ms("2024-11-01"), CAUSE_PADDING),
    ]
    assert joined(batches) == list(range(begins, parse_utc_ms("2025-02-01"), HOUR_MS))
    assert batches[-1].table.column("long_usd").to_pylist()[:48] == [0.0] * 48, "two quiet days are values"


def test_two_hours_made_of_one_hour_share_windows_too(source, server):
    market = Market.parse("BTC-2h")
    bounds = months("2024-12", "2025-03")
    batches = list(source.fetch_chunks("price", market, bounds))
    assert joined(batches) == list(range(bounds[0][0], NOON, 2 * HOUR_MS))
    hourly = [params for params in server.calls(PRICE) if params["interval"] == "1h"]
    assert len(hourly) == -(-((NOON - bounds[0][0]) // HOUR_MS) // 995)


def test_what_cannot_be_is_refused_before_the_first_call(source, server):
    with pytest.raises(UsageError, match="no endpoint"):
        next(source.fetch_chunks("funding_settled", H1, [(0, NOON)]))
    assert server.calls(PRICE) == []


def test_the_emulator_remembers_every_call(settings):
    clock = FixedClock(parse_utc_ms("2024-07-10T12:10:00Z"))
    with (
        EmulatorServer(clock=clock, options=CoinglassOptions(plan="startup")) as server,
        open_source("emulator", settings, clock, base_url=server.url) as source,
    ):
        source.fetch("price", H1, clock.now_ms() - DAY_MS, clock.now_ms())
        told = httpx.get(f"{server.url}/_emulator/coinglass/requests", trust_env=False).json()
    assert [asked["path"] for asked in told] == ["/api/user/account/subscription", PRICE]
    query = told[1]["query"]
    assert (query["interval"], query["symbol"]) == ("1h", "BTCUSDT")
    asked = np.arange(int(query["start_time"]), int(query["end_time"]) + 1, HOUR_MS)
    assert len(asked) == 23
    assert told[1]["at_ms"] == clock.now_ms()
    assert 0 <= told[0]["elapsed_s"] <= told[1]["elapsed_s"] < 60
