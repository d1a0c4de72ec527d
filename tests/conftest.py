"""Fixtures every room's tests may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# the first example of a test compiles numba code: a deadline an example would measure that, and the machine's load
settings.register_profile("mlbot", deadline=None)
settings.load_profile("mlbot")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def archive_dir() -> Path:
    """The recorded market data, or a skip that says where it was looked for (a failure where it is required)."""
    folder = Path(os.environ.get("MLBOT_ARCHIVE_DIR") or ROOT.parent / "shared" / "data")
    if not (folder / "btcusdt_perp_1h.parquet").exists():
        message = f"no recorded data in {folder}; set MLBOT_ARCHIVE_DIR to run this test"
        if os.environ.get("MLBOT_REQUIRE_ARCHIVE"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
