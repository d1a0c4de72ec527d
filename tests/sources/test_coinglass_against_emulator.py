"""The client against the emulator, which shares no code with it: agreement between the two means something."""

from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator.coinglass import CoinglassOptions
from mlbot_core.emulator.faults import Fault, FaultSchedule
from mlbot_core.emulator.server import EmulatorServer
from mlbot_core.errors import BadDataError, KeyRejectedError, PlanError, RateLimitedError
from mlbot_core.market import CATALOGUE, CORE_SERIES
from mlbot_core.market.batch import column
from mlbot_core.sources import fetch_many, open_source
from mlbot_core.sources.base import CAUSE_BEFORE_HISTORY, CAUSE_NOT_YET, CAUSE_NOTHING
from mlbot_core.sources.coinglass import CoinglassSource
from mlbot_core.sources.transport import Transport, UnreachableError, UpstreamError
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market, Timeframe

SIX = [name for name in CORE_SERIES if CATALOGUE[name].endpoint]
NOW = parse_utc_ms("2024-04-01T00:07:00Z")
START = parse_utc_ms("2024-01-01")
END = parse_utc_ms("2024-05-01")
NEWEST_END = parse_utc_ms("2024-04-01")


@pytest.fixture
def emulator():
    with EmulatorServer(clock=FixedClock(NOW)) as server:
        yield server


@pytest.fixture
def opened(emulator, settings):
    with open_source("emulator", settings, emulator.clock, base_url=emulator.url) as source:
        yield source


@contextmanager
def emulated(settings, now=NOW, **options):
    """A source over an emulator of its own."""
    with (
        EmulatorServer(clock=FixedClock(now), options=CoinglassOptions(**options)) as server,
        open_source("emulator", settings, server.clock, base_url=server.url) as source,
    ):
        yield source


def plain(emulator, series, interval, start, end):
    """Ask the emulator without our client."""
    spec = CATALOGUE[series]
    params = {name: text.format(symbol="BTC", pair="BTCUSDT") for name, text in spec.params.items()}
    answer = httpx.get(
        f"{emulator.url}{spec.endpoint}",
        params={**params, "interval": interval, "limit": 1000, "start_time": start, "end_time": end},
        headers={"CG-API-KEY": emulator.key},
        trust_env=False,
    )
    return answer.json()["data"]


@pytest.mark.parametrize("interval", ["30m", "1h", "2h", "4h", "1d"])
def test_three_months_of_all_series(emulator, opened, interval):
    market = Market.parse(f"BTC-{interval}")
    batches = fetch_many(opened, SIX, market, START, END)
    expected = market.timeframe.opens_between(START, NEWEST_END)
    for series, batch in batches.items():
        assert np.array_equal(column(batch.table, "ts"), expected), series
        assert batch.gaps == ()
        assert batch.source == "emulator"
        spec = CATALOGUE[series]
        rows = plain(emulator, series, interval, START, int(expected[min(len(expected), 900) - 1]))
        for col in spec.columns:
            if col.field is None:
                continue
            got = batch.table.column(col.name).to_numpy()[: len(rows)]
            assert got.tolist() == [float(str(row[col.field])) * col.scale for row in rows]


def test_native_and_resampled_two_hours_agree(emulator, opened, settings):
    market = Market.parse("BTC-2h")
    with emulated(settings, native_2h=False) as source:
        for series in SIX:
            native = opened.fetch(series, market, START, END)
            made = source.fetch(series, market, START, END)
            assert made.notes == ("2h bars made of 1h bars",)
            assert native.notes == ()
            for name in ("ts", *CATALOGUE[series].column_names):
                a, b = (np.array(t.table.column(name).to_pylist(), dtype=float) for t in (native, made))
                np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=f"{series}.{name}")


@pytest.mark.parametrize("overfull", ["first", "last"])
def test_which_end_is_kept_does_not_matter(settings, overfull):
    with emulated(settings, overfull=overfull) as source:
        batch = source.fetch("price", Market.parse("BTC-30m"), START, END)
    assert np.array_equal(column(batch.table, "ts"), Timeframe(30).opens_between(START, NEWEST_END))


def test_before_the_market_begins(opened):
    batch = opened.fetch("price", Market.parse("BTC-4h"), START - 5 * DAY_MS, START + DAY_MS)
    assert [(g.from_ts, g.to_ts, g.cause) for g in batch.gaps] == [
        (START - 5 * DAY_MS, START - 4 * HOUR_MS, CAUSE_BEFORE_HISTORY)
    ]


@pytest.mark.parametrize(("plan", "interval", "days"), [("startup", "30m", 90), ("hobbyist", "4h", 180)])
def test_plan_depth(settings, plan, interval, days):
    now = parse_utc_ms("2024-12-01T00:07:00Z")
    market = Market.parse(f"BTC-{interval}")
    with emulated(settings, now, plan=plan) as source:
        batch = source.fetch("price", market, now - 200 * DAY_MS, now)
        assert batch.rows == days * DAY_MS // market.timeframe.ms - 1
        assert source.served("price", market).earliest_ms == int(column(batch.table, "ts")[0])
        assert [plan.upper() in gap.cause for gap in batch.gaps] == [True]
        with pytest.raises(PlanError, match=plan.upper()):
            source.fetch("price", Market.parse("BTC-15m"), now - DAY_MS, now)


def test_wrong_key(emulator):
    transport = Transport(emulator.url, SecretStr("wrong-key"), emulator.clock)
    with CoinglassSource("emulator", transport, emulator.clock) as source, pytest.raises(KeyRejectedError):
        source.fetch("price", Market.parse("BTC-4h"), START, END)


H4 = Market.parse("BTC-4h")
HOLE = START + 10 * 4 * HOUR_MS


def fetch_with(settings, *faults, series="price", backoff=0.001):
    endpoint = str(CATALOGUE[series].endpoint)
    lines = tuple(Fault(**{"endpoint": endpoint, **fault}) for fault in faults)
    with EmulatorServer(clock=FixedClock(NOW), faults=FaultSchedule(lines)) as server:
        transport = Transport(server.url, SecretStr(server.key), server.clock, backoff_s=backoff)
        with CoinglassSource("emulator", transport, server.clock) as source:
            return source.fetch(series, H4, START, END)


@pytest.mark.parametrize("kind", ["http_500", "body_500", "html_502", "truncated_json", "reset", "empty_page"])
def test_passing_faults_leave_no_trace(settings, kind):
    clean = fetch_with(settings)
    batch = fetch_with(settings, {"kind": kind, "nth": 1})
    assert batch.table.equals(clean.table)
    assert batch.gaps == ()


@pytest.mark.parametrize("kind", ["http_429", "body_429"])
def test_rate_refusals(settings, kind, monkeypatch):
    monkeypatch.setattr("mlbot_core.sources.ratelimit.RateLimiter.seconds_to_minute", lambda _: 0.05)
    assert fetch_with(settings, {"kind": kind, "nth": 1, "count": 3}).rows == 546
    with pytest.raises(RateLimitedError):
        fetch_with(settings, {"kind": kind})


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("body_500", UpstreamError, "Server Error"),
        ("html_502", UpstreamError, "HTTP 502"),
        ("truncated_json", BadDataError, "not JSON"),
        ("reset", UnreachableError, "cannot be reached"),
        ("unparsable", BadDataError, "volume_usd is 'abc' at bar"),
        ("off_grid", BadDataError, "off the 4h grid"),
    ],
)
def test_lasting_faults(settings, kind, error, message):
    with pytest.raises(error, match=message):
        fetch_with(settings, {"kind": kind})


def test_row_faults(settings):
    clean = fetch_with(settings)
    same = fetch_with(settings, {"kind": "duplicate_bars"})
    assert same.table.equals(clean.table)
    assert same.notes == ("1 identical duplicate rows dropped",)
    with pytest.raises(BadDataError, match="twice with different values"):
        fetch_with(settings, {"kind": "duplicate_bars", "factor": 1.01})
    assert fetch_with(settings, {"kind": "strings_for_numbers"}).table.equals(clean.table)
    assert fetch_with(settings, {"kind": "extra_open_bar"}).table.equals(clean.table)
    gap = fetch_with(settings, {"kind": "gap", "from_ts": HOLE, "to_ts": HOLE + 8 * HOUR_MS})
    assert [(g.from_ts, g.to_ts, g.cause) for g in gap.gaps] == [(HOLE, HOLE + 8 * HOUR_MS, CAUSE_NOTHING)]
    assert gap.rows == clean.rows - 3
    late = fetch_with(settings, {"kind": "late_bars", "seconds": 600.0})
    assert [(g.from_ts, g.cause) for g in late.gaps] == [(NEWEST_END - 4 * HOUR_MS, CAUSE_NOT_YET)]


def test_restated_bar_is_another_version(settings):
    clean = fetch_with(settings, series="open_interest")
    restated = fetch_with(
        settings,
        {"kind": "restate", "from_ts": HOLE, "to_ts": HOLE, "factor": 1.01, "column": "close"},
        series="open_interest",
    )
    a, b = (np.array(batch.table.column("close").to_pylist()) for batch in (clean, restated))
    changed = np.flatnonzero(a != b)
    assert column(clean.table, "ts")[changed].tolist() == [HOLE]
    assert b[changed] == pytest.approx(a[changed] * 1.01, rel=1e-6)
