"""A second coin by one word of configuration, and every series of the catalogue, through the real path to the store."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config import Settings, load_settings
from mlbot_core.emulator import EmulatorServer
from mlbot_core.features.dataset import DatasetRequest, materialize_features
from mlbot_core.market import CATALOGUE, CORE_SERIES
from mlbot_core.sources import open_source
from mlbot_core.targets.dataset import materialize_targets
from mlbot_core.timeframe import DAY_MS, Market, Month
from mlbot_core.warehouse import Warehouse, latest
from mlbot_core.warehouse.ingest import IngestRequest, ingest

ROOT = Path(__file__).resolve().parents[2]
NOW = parse_utc_ms("2024-04-20T12:30:00Z")
MONTHS = tuple(Month(2024, month) for month in (1, 2, 3, 4))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The shipped configuration with one word more: ``symbols: [BTC, ETH]``."""
    folder = tmp_path_factory.mktemp("second")
    shutil.copytree(ROOT / "config", folder / "config", ignore=shutil.ignore_patterns("api_keys*"))
    path = folder / "config" / "intervals.yaml"
    text = path.read_text(encoding="utf-8")
    assert "symbols: [BTC]" in text
    path.write_text(text.replace("symbols: [BTC]", "symbols: [BTC, ETH]"), encoding="utf-8")
    return load_settings({"MLBOT_CONFIG_DIR": str(folder / "config"), "MLBOT_HOME": str(folder / "home")})


@pytest.fixture(scope="module")
def store(settings: Settings):
    """Both coins pulled from one emulator, with the outcomes by (symbol, series)."""
    clock = FixedClock(NOW)
    warehouse = Warehouse(settings.home / "warehouse.duckdb", clock)
    emulator, outcomes = settings.intervals.emulator, {}
    with (
        EmulatorServer(seed=emulator.seed, start_ms=emulator.start_ms, mode=emulator.mode, clock=clock) as server,
        open_source("emulator", settings, clock, base_url=server.url) as source,
    ):
        for market in (settings.intervals.market("BTC-4h"), settings.intervals.market("ETH-4h")):
            for series in CATALOGUE:
                request = IngestRequest(
                    series, market, MONTHS, settings.intervals.quality, 2000, "run", emulator.identity
                )
                outcomes[(market.symbol, series)] = ingest(warehouse, source, clock, request)
    return warehouse, outcomes, clock


@pytest.mark.parametrize("symbol", ["BTC", "ETH"])
def test_every_series_of_the_catalogue_is_stored_and_sound(store, symbol):
    warehouse, outcomes, _ = store
    for series, spec in CATALOGUE.items():
        for outcome in outcomes[(symbol, series)]:
            assert outcome.passed, (series, outcome)
        rows = sum(outcome.rows for outcome in outcomes[(symbol, series)])
        about = spec.endpoint is not None and (spec.symbols is None or symbol in spec.symbols)
        assert (rows > 0) == about, series
        if not about:
            continue
        timeframe = spec.native or Market.parse("BTC-4h").timeframe
        with warehouse.read() as con:
            scope = {"source": "emulator", "symbol": symbol, "timeframe": timeframe}
            table = latest(con, series, start_ms=0, end_ms=NOW, **scope)
        ts = np.asarray(table.column("ts").to_numpy())
        due = spec.expected_opens(timeframe, int(ts[0]), NOW - timeframe.ms - spec.lag_ms(timeframe) - 2000 + 1)
        assert np.array_equal(ts, due), series


def test_eth_through_features_and_targets(store, settings):
    warehouse, outcomes, clock = store
    assert all(outcomes[("ETH", series)] for series in CORE_SERIES)
    made = {}
    for symbol in ("BTC", "ETH"):
        request = DatasetRequest("emulator", Market.parse(f"{symbol}-4h"), MONTHS, 2000, clock.now_ms(), "run")
        made[symbol] = materialize_features(warehouse, request, settings.models.features)
        made[symbol] += materialize_targets(warehouse, request, settings.models.targets)
        assert all(outcome.passed for outcome in made[symbol]), made[symbol]
    assert [o.rows for o in made["ETH"]] == [o.rows for o in made["BTC"]]
    assert sum(o.rows for o in made["ETH"]) >= 2 * (NOW - MONTHS[0].start_ms) // (6 * DAY_MS)
    assert {o.version for o in made["ETH"]}.isdisjoint({o.version for o in made["BTC"]}), "another coin, other numbers"


def test_prices_are_those_of_the_coin(store):
    warehouse, _, _ = store
    with warehouse.read() as con:
        levels = [
            np.median(
                latest(
                    con, "price", source="emulator", symbol=symbol, timeframe=Market.parse("BTC-4h").timeframe,
                    start_ms=0, end_ms=NOW,
                ).column("close").to_numpy()
            )
            for symbol in ("BTC", "ETH")
        ]  # fmt: skip
    assert 10_000 < levels[0] < 300_000
    assert 500 < levels[1] < 10_000
