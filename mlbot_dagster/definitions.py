"""All of mlbot as Dagster sees it. Heavy libraries are imported inside the assets that use them, never here."""

from __future__ import annotations

import sys

import dagster as dg

from mlbot_core.config import load_settings
from mlbot_dagster import code_server, fitting, housekeeping, jobs, logs, orphans, schedules, sensors, upkeep
from mlbot_dagster.assets import audit, backtests, bandit, drift, explanations, features, live, models, raw, targets
from mlbot_dagster.resources import MarketData, WarehouseResource

_settings = load_settings()
_ROOMS = (raw, features, targets, models, explanations, drift, backtests, bandit, live, audit)

defs = dg.Definitions(
    assets=[asset for room in _ROOMS for asset in room.build(_settings)],
    jobs=[*jobs.build(_settings), *fitting.build(_settings), *upkeep.jobs(), *housekeeping.build_jobs()],
    schedules=[*schedules.build(_settings), *housekeeping.build_schedules(_settings)],
    sensors=[*orphans.build(), *sensors.build(_settings)],
    resources={
        "warehouse": WarehouseResource(database=str(_settings.warehouse_path)),
        "market_data": MarketData(),
        "bar_of_run": live.BarOfRun(),
    },
    loggers={"console": logs.console},
    executor=dg.in_process_executor,
)

# in a process that serves them: the server stays able to see a run die although its database was away for a moment
if "dagster._grpc.server" in sys.modules:
    code_server.look_again()
