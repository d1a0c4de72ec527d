"""What is in use is trained, stacked, traded and compared again when it is time; backups are made by a job."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from mlbot_core.clock import FixedClock, format_utc, parse_utc_ms
from mlbot_core.config import load_settings
from mlbot_core.timeframe import DAY_MS
from mlbot_core.warehouse import Warehouse

NOW = parse_utc_ms("2025-01-04T03:10:00Z")
TRAINED = (("2h", "lightgbm", 10), ("2h", "tft", 10), ("4h", "tft", 95), ("1h", "ridge", 50), ("2h", "meta", 40))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("MLBOT_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLBOT_HOME", str(tmp_path))
    monkeypatch.setenv("MLBOT_CLOCK", f"fixed:{format_utc(NOW)}")
    names = ("source", "symbol", "timeframe", "model_type", "created_at")
    rows = [("emulator", "BTC", timeframe, model, NOW - days * DAY_MS) for timeframe, model, days in TRAINED]
    with Warehouse(tmp_path / "warehouse.duckdb", FixedClock(NOW)).write() as con:
        con.register("made", pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)}))
        con.execute("CREATE TABLE models AS SELECT * FROM made")
    return tmp_path


def requests_of(name: str) -> list[dg.RunRequest]:
    """Return what a schedule asks for, each under a key of its own."""
    from mlbot_dagster import housekeeping

    schedules: dict[str, Any] = {one.name: one for one in housekeeping.build_schedules(load_settings())}
    with dg.DagsterInstance.ephemeral() as instance:
        at = dt.datetime.fromtimestamp(NOW / 1000, tz=dt.UTC)
        context: Any = dg.build_schedule_context(instance=instance, scheduled_execution_time=at)
        requests = list(schedules[name](context))
    keys = [request.run_key for request in requests]
    assert len(set(keys)) == len(keys)
    return requests


def asked(name: str) -> set[str]:
    return {request.partition_key for request in requests_of(name)}


@pytest.mark.usefixtures("home")
def test_what_is_due_is_trained_and_what_is_in_use_walks_forward() -> None:
    assert asked("retrain_when_due") == {"BTC-4h|tft", "BTC-1h|ridge"}
    assert asked("walk_forward_weekly") == {"BTC-2h|lightgbm", "BTC-2h|tft", "BTC-4h|tft", "BTC-1h|ridge"}
    assert asked("stack_weekly") == {"BTC-2h|meta"}
    assert asked("backtest_weekly") == asked("walk_forward_weekly") | {"BTC-2h|meta"}
    assert asked("drift_daily") == {f"BTC-{timeframe}|2025-01-01" for timeframe in ("1h", "2h", "4h")}


def test_every_partition_that_is_asked_for_exists(home: Path) -> None:
    from mlbot_dagster.definitions import defs

    for schedule, job in (("walk_forward_weekly", "train"), ("stack_weekly", "stack"), ("backtest_weekly", "backtest")):
        partitions = defs.resolve_job_def(job).partitions_def
        assert partitions is not None
        assert asked(schedule) <= set(partitions.get_partition_keys())


@pytest.mark.usefixtures("home")
def test_each_night_the_last_whole_day_is_audited() -> None:
    from mlbot_dagster.definitions import defs

    (request,) = requests_of("audit_daily")
    assert request.run_config == {"ops": {"audit__parity": {"config": {"day": "2025-01-03"}}}}
    job = defs.resolve_job_def("audit_live")
    assert dg.validate_run_config(job, request.run_config)
    # live bars do not wait for it, and it sends nothing: it is no part of a live run
    assert not {key.path[0] for key in job.asset_layer.executable_asset_keys} - {"audit"}
    assert {key.path[0] for key in defs.resolve_job_def("live_bar").asset_layer.executable_asset_keys} == {"live"}


def test_a_backup_is_a_run_like_any_other(home: Path) -> None:
    from mlbot_dagster import housekeeping
    from mlbot_dagster.resources import MarketData

    job = next(one for one in housekeeping.build_jobs() if one.name == "back_up")
    done = job.execute_in_process(resources={"market_data": MarketData()})
    assert done.success
    assert (home / "backups" / "2025-01-04" / "warehouse" / "models.parquet").exists()
