"""The newest bars read again and gaps filled, through Dagster: the store changes and the assets' pages show it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlbot_core.clock import FixedClock, format_utc, parse_utc_ms
from mlbot_core.emulator import EmulatorServer
from mlbot_core.emulator.faults import Fault, FaultSchedule
from mlbot_core.market import CATALOGUE
from mlbot_core.timeframe import HOUR_MS
from mlbot_core.warehouse import Warehouse

NOW = parse_utc_ms("2024-03-05T12:02:00Z")
MARKET = "BTC-1h"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("MLBOT_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLBOT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


def run(home: Path, instance: dg.DagsterInstance, job: str, op: str, monkeypatch: Any, now: int) -> Any:
    """Run one of the jobs at a time against a store of its own."""
    from mlbot_core.config import load_settings
    from mlbot_dagster import upkeep
    from mlbot_dagster.resources import MarketData, WarehouseResource

    monkeypatch.setenv("MLBOT_CLOCK", f"fixed:{format_utc(now)}")
    found = next(one for one in upkeep.jobs() if one.name == job)
    assert load_settings().warehouse_path == home / "warehouse.duckdb"
    return found.execute_in_process(
        run_config={"ops": {op: {"config": {"market": MARKET}}}},
        instance=instance,
        resources={
            "warehouse": WarehouseResource(database=str(home / "warehouse.duckdb")),
            "market_data": MarketData(source="emulator"),
        },
        raise_on_error=False,
    )


def query(home: Path, sql: str) -> list[tuple[Any, ...]]:
    with Warehouse(home / "warehouse.duckdb", FixedClock(NOW)).read() as con:
        return con.execute(sql).fetchall()


def test_a_refresh_stores_the_newest_bars_of_every_series_and_begins_the_watch(home, instance, monkeypatch):
    done = run(home, instance, "refresh_recent_bars", "read_newest_bars", monkeypatch, NOW)
    assert done.success
    last = NOW // HOUR_MS * HOUR_MS - HOUR_MS
    assert query(home, "SELECT count(*), max(ts) FROM price") == [(12, last)]
    watched = {series for (series,) in query(home, "SELECT DISTINCT series FROM watches")}
    assert {"price", "open_interest", "whale_index", "fear_greed"} <= watched
    assert watched <= set(CATALOGUE)
    # the page of the asset shows the month and its checks
    key = dg.AssetKey(["raw", "price"])
    assert instance.get_materialized_partitions(key) == {f"{MARKET}|2024-03-01"}
    for name in ("duplicates", "sanity"):
        (record,) = instance.event_log_storage.get_asset_check_execution_history(dg.AssetCheckKey(key, name), limit=5)
        assert record.event.dagster_event.event_specific_data.passed

    later = NOW + 3 * HOUR_MS
    assert run(home, instance, "refresh_recent_bars", "read_newest_bars", monkeypatch, later).success
    assert query(home, "SELECT count(*) FROM price") == [(15,)]
    live = query(home, f"SELECT capture, known_at, observed_at FROM price WHERE ts > {last}")
    assert [row[0] for row in live] == ["live"] * 3
    assert all(known == seen for _, known, seen in live)


def test_a_failing_series_fails_the_run_and_keeps_the_others_from_nothing(home, instance, monkeypatch):
    broken = Fault("body_500", endpoint="/api/futures/open-interest/aggregated-history")
    with EmulatorServer(clock=FixedClock(NOW), faults=FaultSchedule((broken,))) as server:
        monkeypatch.setenv("MLBOT_EMULATOR_URL", server.url)
        done = run(home, instance, "refresh_recent_bars", "read_newest_bars", monkeypatch, NOW)
    assert not done.success
    failure = next(event for event in done.all_events if event.is_step_failure)
    assert "1 of 30 series failed, first open_interest" in failure.step_failure_data.error.message
    assert query(home, "SELECT count(*) FROM price") == [(12,)]
    assert query(home, "SELECT count(*) FROM open_interest") == [(0,)]


def test_an_outage_leaves_gaps_that_the_repair_fills(home, instance, monkeypatch):
    assert run(home, instance, "refresh_recent_bars", "read_newest_bars", monkeypatch, NOW).success
    outage = FaultSchedule((Fault("http_500"),))
    later = NOW + 3 * HOUR_MS
    with EmulatorServer(clock=FixedClock(later), faults=outage) as server:
        monkeypatch.setenv("MLBOT_EMULATOR_URL", server.url)
        assert not run(home, instance, "refresh_recent_bars", "read_newest_bars", monkeypatch, later).success
    monkeypatch.delenv("MLBOT_EMULATOR_URL")
    open_gaps = "SELECT count(*) FROM gaps WHERE series = 'price' AND filled_at IS NULL AND cause LIKE '%fail%'"
    assert query(home, open_gaps)[0][0] >= 1
    assert run(home, instance, "repair_gaps", "fill_open_gaps", monkeypatch, later + HOUR_MS).success
    assert query(home, open_gaps) == [(0,)]
    first = NOW // HOUR_MS * HOUR_MS
    assert query(home, f"SELECT count(*) FROM price WHERE ts >= {first}")[0][0] >= 3
