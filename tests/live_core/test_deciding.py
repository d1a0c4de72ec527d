"""An operator is told whose forecast decides, or what to run so that one can."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mlbot_core.config import load_settings
from mlbot_core.live.deciding import decides


@pytest.fixture
def settings(registry_bench: Any) -> Any:
    found = load_settings({"MLBOT_HOME": str(registry_bench.home), "MLBOT_SOURCE": "archive"})
    return found.model_copy(update={"execution": found.execution.model_copy(update={"model": "lightgbm"})})


def test_without_a_model_it_says_what_to_run(settings: Any, registry_bench: Any) -> None:
    said = decides(settings, registry_bench.clock)
    assert said.startswith("nothing will be traded: no lightgbm of BTC-2h from archive is trained")
    assert said.endswith("mlbot train --interval 2h --model lightgbm")


def test_a_candidate_decides_until_there_is_a_champion(settings: Any, registry_bench: Any) -> None:
    registry_bench.register(1, slot=registry_bench.slot(timeframe="4h"))
    assert "nothing will be traded" in decides(settings, registry_bench.clock), "of another timeframe"
    entry = registry_bench.register(2)
    assert decides(settings, registry_bench.clock) == f"lightgbm {entry.version[:12]} of BTC-2h decides, a candidate"


def test_as_a_command_it_needs_nothing_but_a_home(tmp_path: Any) -> None:
    command = [sys.executable, "-m", "mlbot_core.live.deciding"]
    done = subprocess.run(command, env={"MLBOT_HOME": str(tmp_path), "PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no meta of BTC-2h from emulator is trained" in done.stdout
    assert "mlbot train --interval 2h --model all" in done.stdout
