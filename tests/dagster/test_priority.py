"""Live bars go before everything that computes for minutes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import os, sys
import dagster as dg
from mlbot_dagster.resources import MarketData

@dg.op(required_resource_keys={"market_data"})
def look() -> None:
    print("niceness", os.getpriority(os.PRIO_PROCESS, 0))

@dg.job(resource_defs={"market_data": MarketData()}, executor_def=dg.in_process_executor)
def looking() -> None:
    look()

assert looking.execute_in_process(tags=dict(tag.split("=") for tag in sys.argv[1:])).success
"""
LAUNCH = """
import json, os, sys
from mlbot_dagster import launch
launch.execute = lambda plan, emit: emit({"niceness": os.getpriority(os.PRIO_PROCESS, 0)}) or True
sys.exit(launch.main())
"""


def ran(tmp_path: Path, script: str, *arguments: str, nice: int = 0, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "MLBOT_LIVE"}
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.nice({nice})\n{script}", *arguments],
        env={**environment, "MLBOT_HOME": str(tmp_path), **variables},
        input="[]", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("variables", "tags", "expected"),
    [
        ({"MLBOT_LIVE": "1"}, ["mlbot/batch=1"], 10),
        ({"MLBOT_LIVE": "1"}, [], 10),
        ({"MLBOT_LIVE": "1"}, ["mlbot/live=1"], 0),
        ({}, ["mlbot/batch=1"], 0),
    ],
)
def test_a_run_of_the_servers_gives_way_unless_it_is_a_live_bar(
    tmp_path: Path, variables: dict[str, str], tags: list[str], expected: int
) -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert f"niceness {max(before, expected)}\n" in ran(tmp_path, RUN, *tags, **variables)


def test_who_already_stands_behind_stays_there(tmp_path: Path) -> None:
    assert "niceness 15\n" in ran(tmp_path, RUN, nice=15 - os.getpriority(os.PRIO_PROCESS, 0), MLBOT_LIVE="1")


def test_a_command_gives_way(tmp_path: Path) -> None:
    assert '{"niceness": 10}' in ran(tmp_path, LAUNCH)
