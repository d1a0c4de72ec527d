"""``mlbot demo``: from a synthetic market to an audited backtest, reproducible, in a home of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from mlbot_core.config.settings import checkout_root

# The demo's present: fixed, so that everybody sees the same market and the same table.
NOW: Final = "2026-01-01T00:10:00Z"
START: Final = "2024-07-01"


def enter() -> Path:
    """Point this process and its children at the demo's home, clock and source; return the home."""
    home = Path(os.environ.get("MLBOT_HOME") or checkout_root() / ".mlbot") / "demo"
    os.environ["MLBOT_HOME"] = str(home)
    os.environ["MLBOT_CLOCK"] = f"fixed:{NOW}"
    os.environ["MLBOT_SOURCE"] = "emulator"
    return home
