"""What computes for minutes gives way to the bar that has just closed: a backfill must not delay a decision."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from mlbot_core.live import LIVE_VARIABLE

if TYPE_CHECKING:
    import dagster as dg

LIVE_TAG: Final = "mlbot/live"
_NICENESS: Final = 10


def give_way() -> None:
    """Let every other process go first where there are too few cores; what this one starts later does so too."""
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    if mine < _NICENESS:
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)


def give_way_unless_live(run: dg.DagsterRun | None) -> None:
    """Give way in a run of servers that trade (:data:`mlbot_core.live.LIVE_VARIABLE`) which is no live bar.

    Whoever executes a run within a process of his own keeps that as it is.
    """
    if os.environ.get(LIVE_VARIABLE) == "1" and (run is None or LIVE_TAG not in run.tags):
        give_way()
