"""A champion speaks, a challenger forecasts beside it in shadow; two processes at once write one row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlbot_core.clock import format_utc
from mlbot_core.live.observation import forecast_to_decide
from mlbot_core.live.signal_store import TABLE
from mlbot_core.models.gate import GateRecord
from mlbot_core.models.registration import register_trained
from mlbot_core.models.registry import open_registry
from mlbot_core.models.registry_events import Slot
from mlbot_core.models.training import train
from mlbot_core.validation.criteria import Measured, Statistics
from mlbot_core.validation.namespaces import namespace_of
from mlbot_core.validation.trials import DailyReturns, open_ledger

ROOT = Path(__file__).resolve().parents[2]


def promote(home: Any, entry: Any) -> None:
    """Promote with a record that passes, with a head that the ledger of trials really holds."""
    ledger = open_ledger(home.settings.home, home.clock)
    namespace = namespace_of(entry.slot.source, entry.registration.identity)
    returns = DailyReturns(0, np.random.default_rng(3).normal(0.001, 0.01, 400))
    row = ledger.append(namespace, {"model": entry.version}, returns, data_version="d", run_id="r").row
    good = Measured(1.5, 0.4, 2.6, 0.9, 0.1, 400, 150)
    record = GateRecord(
        registration=entry.registration, traded=good, unit=good, statistics=Statistics(0.97, 0.1, 40),
        ledger_head=str(row.head), backtest_start_ms=entry.registration.start_ms,
        backtest_end_ms=entry.registration.end_ms, backtest_version="b" * 16, conditions="c" * 16,
        made_at_ms=home.clock.now_ms(),
    )  # fmt: skip
    registry = open_registry(home.settings.home, home.clock)
    registry.promote(record, models_dir=home.settings.models_dir, ledger=ledger, why="it passed")


@pytest.mark.slow
def test_a_challenger_forecasts_in_shadow_and_never_speaks(home, tools):
    registry = open_registry(home.settings.home, home.clock)
    (first,) = [
        one for one in registry.state().models.values() if one.slot == Slot("emulator", "BTC", "2h", "lightgbm")
    ]
    promote(home, first)
    smaller = home.settings.models.lightgbm.model_copy(update={"n_estimators": 10})
    models = home.settings.models.model_copy(update={"lightgbm": smaller})
    request = tools.train_request(home, tools.TWO, "lightgbm")
    trained = train(home.store, request, models, home.settings.models_dir)
    second = register_trained(home.store, request, trained, home.settings.models_dir)
    home.at("2024-09-20T02:00:05Z")
    home.pull()
    told = home.forecast(wait_s=0.0)
    mine = {one.key.model_version: one for one in told.signals if one.key.model_type == "lightgbm"}
    assert {version: (one.role, one.shadow) for version, one in mine.items()} == {
        first.version: ("champion", False),
        second.version: ("challenger", True),
    }
    assert mine[first.version].forecast != mine[second.version].forecast
    assert told.speaking["lightgbm"] == first.version
    said = forecast_to_decide(home.store, home.settings, told, "lightgbm")
    assert said.signal.key.model_version == first.version
    assert said.forecast.edge == mine[first.version].edge
    # once it is retired, nobody of it speaks, whatever is stored
    registry.retire(first.version, why="a test")
    again = home.forecast(wait_s=0.0)
    assert again.speaking["lightgbm"] == second.version
    assert forecast_to_decide(home.store, home.settings, again, "lightgbm").forecast.edge == mine[second.version].edge


_PROCESS = """
import json, sys
from mlbot_core.clock import clock_from_env
from mlbot_core.config import load_settings
from mlbot_core.live.signals import forecast_newest
from mlbot_core.timeframe import Market
from mlbot_core.warehouse import Warehouse

settings, clock = load_settings(), clock_from_env()
sys.stdin.readline()
store, market = Warehouse(settings.warehouse_path, clock), Market.parse("BTC-2h")
told = forecast_newest(store, settings, "emulator", market, run_id=sys.argv[1], wait_s=0.0)
print(json.dumps({"made": told.made, "digests": [one.digest for one in told.signals]}))
"""


@pytest.mark.slow
def test_two_processes_at_once_write_each_signal_once(home):
    home.at("2024-09-20T02:00:05Z")
    home.pull()
    environment = {
        **os.environ,
        "MLBOT_HOME": str(home.settings.home),
        "MLBOT_CONFIG_DIR": str(home.settings.config_dir),
        "MLBOT_CLOCK": f"fixed:{format_utc(home.clock.now_ms())}",
        "MLBOT_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, f"run-{n}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment, cwd=ROOT, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    for one in started:
        one.stdin.write("go\n")
        one.stdin.flush()
    ends = [json.loads(one.communicate(timeout=180)[0]) for one in started]
    assert ends[0]["digests"] == ends[1]["digests"]
    assert sum(end["made"] for end in ends) == len(ends[0]["digests"]) == 2
    with home.store.read() as con:
        (count,) = con.execute(f"SELECT count(*) FROM {TABLE}").fetchone()
    assert count == 2
