"""The command line starts without the heavy libraries: who halts at night does not wait for what a backtest needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"numba", "sqlalchemy", "pyarrow", "duckdb", "pandas", "scipy", "httpx", "pybit", "matplotlib", "lightgbm"}


@pytest.mark.parametrize(
    "modules",
    [
        "mlbot_core.cli.main",
        # what `mlbot halt` needs until the marker is written and the orders are out; the book comes afterwards
        "mlbot_core.cli.main, mlbot_core.execution.venues, mlbot_core.execution.safety, mlbot_core.execution.flatten",
    ],
)
def test_nothing_heavy_is_imported(modules: str) -> None:
    code = f"import sys, {modules}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []


def test_completion_finds_commands_and_options() -> None:
    environment = {
        "COMP_WORDS": "mlbot back",
        "COMP_CWORD": "1",
        "_MLBOT_COMPLETE": "complete_bash",
        "HOME": "/nowhere",
    }
    program = Path(sys.executable).parent / "mlbot"
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert set(done.stdout.split()) == {"backfill", "backtest"}
    environment |= {"COMP_WORDS": "mlbot train --opt", "COMP_CWORD": "2"}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == ["--optimize"]
