"""A store in a temporary folder and a clock that stands still."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config import QualityConfig
from mlbot_core.errors import SourceError
from mlbot_core.market import SeriesBatch, make_table
from mlbot_core.sources import Served
from mlbot_core.sources.base import CAUSE_BEFORE_HISTORY, CAUSE_NOTHING, SourceBase, gap_records
from mlbot_core.timeframe import Market, Month, Timeframe
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.ingest import IngestRequest


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(parse_utc_ms("2025-01-01T00:00:00Z"))


@pytest.fixture
def warehouse(tmp_path: Path, clock: FixedClock) -> Warehouse:
    return Warehouse(tmp_path / "store" / "test.duckdb", clock, timeout_s=20)


HOURLY = Timeframe(60)
MARKET = Market("BTC", HOURLY)
QUALITY = QualityConfig(max_missing_share=0.02, max_gap_bars=24)
DELAY_MS = 2_000


class Feed(SourceBase):
    """A source of hourly prices and settled funding whose answers a test can change, and which counts what is asked.

    It has a bar for every hour from ``first`` to the clock's present, except those in ``holes``; ``changed`` replaces
    closes. It is a source like any other: what it serves becomes batches through the catalogue's own checks.
    """

    def __init__(self, clock: FixedClock, first: str = "2024-01-01", name: str = "feed") -> None:
        self.clock, self.name, self.first_ms = clock, name, parse_utc_ms(first)
        self.holes: set[int] = set()
        self.changed: dict[int, float] = {}
        self.asked: list[tuple[str, int, int]] = []
        self.failure: SourceError | None = None
        self.scale = 1.0

    def served(self, series: str, market: Market) -> Served | None:
        known = series in ("price", "funding_settled", "open_interest") and market == MARKET
        return Served(HOURLY, self.first_ms, None) if known else None

    def why_not(self, series: str, market: Market) -> str:
        return "" if self.served(series, market) else "the feed has none"

    def close_of(self, ts: int) -> float:
        return self.changed.get(ts, 50_000.0 + 3_000.0 * math.sin(ts / 4.1e8) + 40.0 * math.sin(ts / 7.3e6))

    def fetch(self, series: str, market: Market, start_ms: int, end_ms: int) -> SeriesBatch:
        self.asked.append((series, start_ms, end_ms))
        if self.failure is not None:
            raise self.failure
        now = self.clock.now_ms()
        stop = min(end_ms, HOURLY.floor(now))
        every = HOURLY.opens_between(max(start_ms, self.first_ms), max(stop, self.first_ms))
        ts = np.array([t for t in every.tolist() if t not in self.holes], dtype=np.int64)
        close = np.array([self.close_of(t) for t in ts.tolist()]) * self.scale
        if series == "price":
            values = {"open": close, "high": close * 1.001, "low": close * 0.999, "close": close}
        elif series == "open_interest":
            values = {name: close * 3e5 for name in ("open", "high", "low", "close")}
        else:
            values = {"rate": np.full(len(ts), 1e-4) * np.sign(np.sin(ts / 1e8))}
        bounds = [
            (start_ms, max(start_ms, self.first_ms), CAUSE_BEFORE_HISTORY),
            (max(start_ms, self.first_ms), stop, CAUSE_NOTHING),
        ]
        gaps = gap_records(series, market.symbol, HOURLY, self.name, ts, bounds)
        table = make_table(series, ts, now, values)
        return SeriesBatch(series, market.symbol, HOURLY, self.name, table, gaps)


def ask(*months: str, series: str = "price", **changes: object) -> IngestRequest:
    """Return a request for hourly bars."""
    over = tuple(Month.parse(month) for month in months)
    return IngestRequest(series, MARKET, over, QUALITY, DELAY_MS, "run", **changes)  # type: ignore[arg-type]


def everything(store: Warehouse) -> dict[str, list[tuple[object, ...]]]:
    """Return every row of every table that is not about runs."""
    with store.read() as con:
        names = [row[0] for row in con.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()]
        return {name: con.execute(f"SELECT * FROM {name} ORDER BY ALL").fetchall() for name in names}


@pytest.fixture
def feed(clock: FixedClock) -> Feed:
    clock.set_ms(parse_utc_ms("2025-01-01T00:00:00Z"))
    return Feed(clock)


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """What the tests of this room share."""
    return SimpleNamespace(
        Feed=Feed, ask=ask, everything=everything, MARKET=MARKET, HOURLY=HOURLY, QUALITY=QUALITY, DELAY_MS=DELAY_MS
    )
