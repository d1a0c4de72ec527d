"""How the ends of runs are told to people."""

from __future__ import annotations

import io

import pytest
import typer
from rich.console import Console

from mlbot_core.cli import output
from mlbot_core.cli.launcher import RunResult

GOOD = RunResult("BTC-2h", "run-1", True, 3.0, 1.0, [], [], ["raw/price: jumps: [2] bars far out"])
BAD = RunResult("BTC-4h", "run-2", False, 2.0, 1.0, ["no data"], ["raw/price: gaps: 30 bars missing"], [])


def test_a_run_says_what_failed_and_what_is_only_worth_knowing() -> None:
    written = io.StringIO()
    output.draw_runs(Console(file=written, width=200, highlight=False), [GOOD, BAD], done=True)
    assert written.getvalue().splitlines() == [
        "BTC-2h: done in 3.0 s (2.0 s of it Dagster's); run run-1",
        "BTC-2h: advisory: raw/price: jumps: [2] bars far out",
        "BTC-4h: FAILED: no data",
        "BTC-4h: check failed: raw/price: gaps: 30 bars missing",
    ]


def test_a_run_that_failed_leaves_with_one() -> None:
    output.require_success([GOOD])
    with pytest.raises(typer.Exit) as left:
        output.require_success([GOOD, BAD])
    assert left.value.exit_code == 1
