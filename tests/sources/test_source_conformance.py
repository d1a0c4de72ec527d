"""One suite that every source must pass, one test a series: a source joins with an entry in BENCHES."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config import load_settings
from mlbot_core.emulator import CoinglassOptions, EmulatorServer
from mlbot_core.errors import UsageError
from mlbot_core.market import CATALOGUE, SeriesBatch
from mlbot_core.market.batch import column
from mlbot_core.sources import Source, open_source
from mlbot_core.sources.offers import offered
from mlbot_core.timeframe import DAY_MS, Market, Timeframe

START = parse_utc_ms("2024-01-01")
NOW = parse_utc_ms("2024-03-01T00:07:00Z")
RECORD_END = parse_utc_ms("2025-07-01")


@dataclass(frozen=True)
class Bench:
    """How a source is set up for the suite.

    Parameters
    ----------
    source
        Name in the configuration.
    market
        What is asked for.
    now_ms, start_ms, end_ms
        The present, and the range asked for, UTC ms.
    server
        Options of the emulator that the source reads; None for a source that needs none.
    recorded
        Needs the recorded data.
    """

    source: str
    market: str
    now_ms: int = NOW
    start_ms: int = START + 14 * DAY_MS  # funds report since 2024-01-11
    end_ms: int = START + 35 * DAY_MS
    server: dict[str, object] | None = field(default_factory=dict)
    recorded: bool = False

    @property
    def series(self) -> list[str]:
        spelled = "coinglass" if self.source == "emulator" else self.source
        symbol = Market.parse(self.market).symbol
        about = {name: spec.symbols for name, spec in CATALOGUE.items()}
        has = sorted(offered()[spelled], key=list(CATALOGUE).index)
        return [name for name in has if spelled != "coinglass" or about[name] is None or symbol in about[name]]


PAST = {"now_ms": RECORD_END + DAY_MS, "start_ms": parse_utc_ms("2025-06-01"), "end_ms": parse_utc_ms("2025-06-22")}
BENCHES = {
    "coinglass-1h": Bench("emulator", "BTC-1h"),
    "coinglass-2h": Bench("emulator", "BTC-2h"),
    "coinglass-2h-resampled": Bench("emulator", "BTC-2h", server={"native_2h": False}),
    "coinglass-4h-ETH": Bench("emulator", "ETH-4h"),
    "coinglass-legacy": Bench("emulator", "BTC-30m", server={"legacy_intervals": True, "wrapped": True}),
    "bybit-1h": Bench("bybit", "BTC-1h"),
    "bybit-2h": Bench("bybit", "BTC-2h"),
    "archive-1h": Bench("archive", "BTC-1h", server=None, recorded=True, **PAST),
    "archive-2h": Bench("archive", "BTC-2h", server=None, recorded=True, **PAST),
    "archive-vintages-4h": Bench("archive-vintages", "BTC-4h", server=None, recorded=True, **PAST),
}


def cases():
    for name, bench in BENCHES.items():
        marks = [pytest.mark.archive] if bench.recorded else []
        for series in bench.series:
            yield pytest.param(name, series, marks=marks, id=f"{name}-{series}")


class Setup:
    """Servers and sources of the benches, made once and kept for the module."""

    def __init__(self, environ, archive) -> None:
        self.environ, self.archive = environ, archive
        self.open: dict[str, tuple[Source, FixedClock]] = {}
        self.servers: dict[str, EmulatorServer] = {}

    def __call__(self, name: str) -> tuple[Source, FixedClock]:
        if name not in self.open:
            bench = BENCHES[name]
            clock = FixedClock(bench.now_ms)
            url = None
            if bench.server is not None:
                options = CoinglassOptions(**bench.server)
                self.servers[name] = EmulatorServer(seed=7, start_ms=START, options=options, clock=clock).start()
                url = self.servers[name].url
            recorded = {"MLBOT_ARCHIVE_DIR": str(self.archive())} if bench.recorded else {}
            settings = load_settings(self.environ | recorded)
            self.open[name] = (open_source(bench.source, settings, clock, base_url=url), clock)
        return self.open[name]

    def close(self) -> None:
        for source, _ in self.open.values():
            source.close()
        for server in self.servers.values():
            server.stop()


@pytest.fixture(scope="module")
def opened(tmp_path_factory, request) -> Iterator[Setup]:
    environ = {"MLBOT_HOME": str(tmp_path_factory.mktemp("home"))}
    setup = Setup(environ, lambda: request.getfixturevalue("archive_dir"))
    try:
        yield setup
    finally:
        setup.close()


def values(batch: SeriesBatch, name: str) -> np.ndarray:
    return np.array(batch.table.column(name).to_pylist(), dtype=float)


def same(a: SeriesBatch, b: SeriesBatch) -> bool:
    names = CATALOGUE[a.series].column_names
    equal = np.array_equal(column(a.table, "ts"), column(b.table, "ts"))
    return equal and all(np.array_equal(values(a, n), values(b, n), equal_nan=True) for n in names)


def fetched(source: Source, bench: Bench, series: str, start: int | None = None, end: int | None = None) -> SeriesBatch:
    return source.fetch(
        series,
        Market.parse(bench.market),
        bench.start_ms if start is None else start,
        bench.end_ms if end is None else end,
    )


@pytest.mark.parametrize(("name", "series"), list(cases()))
def test_a_series(opened, name, series):
    bench, spec = BENCHES[name], CATALOGUE[series]
    source, clock = opened(name)
    market = Market.parse(bench.market)
    assert source.why_not(series, market) == ""
    served = source.served(series, market)
    assert served is not None
    assert served.timeframe >= market.timeframe
    assert spec.native is None or served.timeframe == spec.native

    batch = fetched(source, bench, series)
    timeframe, ts = batch.timeframe, column(batch.table, "ts")
    assert (batch.series, batch.symbol, timeframe) == (series, market.symbol, served.timeframe)
    assert batch.table.column_names == ["ts", "observed_at", *spec.column_names]
    assert batch.rows > 0
    assert ts.min() >= bench.start_ms
    assert ts.max() < bench.end_ms
    assert (column(batch.table, "observed_at") <= clock.now_ms()).all()

    # every bar that can be expected is there or is a gap, and none is both
    expected = spec.expected_opens(timeframe, bench.start_ms, bench.end_ms)
    missing = {
        int(at)
        for gap in batch.gaps
        for at in spec.expected_opens(timeframe, gap.from_ts, gap.to_ts + 1)
        if (gap.series, gap.source, gap.timeframe) == (series, source.name, timeframe) and gap.cause
    }
    assert missing == set(expected.tolist()) - set(ts.tolist())
    if not bench.recorded:
        assert missing == set(), "a good server leaves no gap"

    # canonical units: bounds hold, something is served, shares make a whole, highs and lows enclose
    stored = {col.name: values(batch, col.name) for col in spec.columns}
    assert any(np.isfinite(data).any() for data in stored.values())
    for col in spec.columns:
        data = stored[col.name][np.isfinite(stored[col.name])]
        assert (np.abs(data) <= col.limit).all()
        assert col.positive == "no" or (data >= 0).all()
    if spec.parts:
        assert sum(stored[part] for part in spec.parts) == pytest.approx(np.ones(batch.rows), abs=0.011)
    if {"open", "high", "low"} <= stored.keys() and np.isfinite(stored["open"]).all():
        assert (stored["high"] >= np.maximum(stored["open"], stored["close"])).all()
        assert (stored["low"] <= np.minimum(stored["open"], stored["close"])).all()

    # the same again; a part is the part of the whole; the future is empty
    assert same(batch, fetched(source, bench, series))
    middle = int(ts[len(ts) // 2])
    part = fetched(source, bench, series, middle, middle + 5 * timeframe.ms)
    keep = (ts >= middle) & (ts < middle + 5 * timeframe.ms)
    assert np.array_equal(column(part.table, "ts"), ts[keep])
    for column_name in spec.column_names:
        assert np.array_equal(values(part, column_name), stored[column_name][keep], equal_nan=True)
    tomorrow = fetched(source, bench, series, clock.now_ms() + DAY_MS, clock.now_ms() + 30 * DAY_MS)
    assert tomorrow.rows == 0
    assert fetched(source, bench, series, bench.start_ms, bench.start_ms).rows == 0


@pytest.mark.parametrize("name", [name for name, bench in BENCHES.items() if not bench.recorded])
def test_the_newest_bars_are_settled(opened, settings, name):
    """What is taken near the present never changes later and closed long enough ago."""
    bench = BENCHES[name]
    market, clock = Market.parse(bench.market), FixedClock(NOW)
    options = CoinglassOptions(**(bench.server or {}))
    with (
        EmulatorServer(seed=7, start_ms=START, options=options, clock=clock) as server,
        open_source(bench.source, settings, clock, base_url=server.url) as source,
    ):
        first = {series: source.fetch(series, market, NOW - 5 * DAY_MS, NOW) for series in bench.series}
        for series, batch in first.items():
            lag = CATALOGUE[series].lag_ms(batch.timeframe)
            ts = column(batch.table, "ts")
            # an expected bar is taken as soon as it has settled, and not before
            due = CATALOGUE[series].expected_opens(
                batch.timeframe, NOW - 5 * DAY_MS, NOW - lag - batch.timeframe.ms + 1
            )
            assert ts.tolist() == due.tolist(), series
        clock.sleep(3 * DAY_MS / 1000)
        for series, before in first.items():
            after = source.fetch(series, market, NOW - 5 * DAY_MS, int(column(before.table, "ts")[-1]) + 1)
            assert same(before, after), series


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.archive] if b.recorded else []) for n, b in BENCHES.items()]
)
def test_what_is_not_offered_is_refused_by_name(opened, name):
    bench = BENCHES[name]
    source, _ = opened(name)
    market = Market.parse(bench.market)
    absent = [series for series in CATALOGUE if series not in bench.series]
    for series in absent:
        assert source.served(series, market) is None, series
        assert source.why_not(series, market) != "", series
        with pytest.raises(UsageError, match=series):
            fetched(source, bench, series)
    with pytest.raises(UsageError, match="not in the catalogue"):
        source.served("tulip_prices", market)
    unknown = Market("DOGE", Timeframe(60))
    if bench.source != "emulator":  # Coinglass knows its coins itself, and refuses by call
        assert source.served("price", unknown) is None
        assert "DOGE" in source.why_not("price", unknown)


@contextmanager
def hobbyist(settings):
    clock = FixedClock(NOW)
    with (
        EmulatorServer(seed=7, start_ms=START, options=CoinglassOptions(plan="hobbyist"), clock=clock) as server,
        open_source("emulator", settings, clock, base_url=server.url) as source,
    ):
        yield source


def test_a_plan_that_lacks_a_series_is_said_before_any_call(settings):
    market = Market.parse("BTC-4h")
    with hobbyist(settings) as source:
        assert source.served("whale_index", market) is None
        assert source.why_not("whale_index", market) == "whale_index begins with plan STARTUP, this key has HOBBYIST"
        # daily series are in every plan, at whatever pace the market is traded
        assert source.served("etf_flows", Market.parse("BTC-30m")).timeframe == Timeframe(1440)
