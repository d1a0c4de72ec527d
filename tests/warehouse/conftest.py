"""A store in a temporary folder and a clock that stands still."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.warehouse import Warehouse


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(parse_utc_ms("2025-01-01T00:00:00Z"))


@pytest.fixture
def warehouse(tmp_path: Path, clock: FixedClock) -> Warehouse:
    return Warehouse(tmp_path / "store" / "test.duckdb", clock, timeout_s=20)
