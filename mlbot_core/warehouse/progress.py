"""What of some months is stored already, and what is left to ask for.

A month that was read whole, passed its checks and was old enough when it was last asked for is left alone. Of others
only the part that is missing is asked for, from the first missing bar to the last. Bars that were younger than the
restatement horizon when they were last asked for are asked for again, unless that was within the last day: then this
is the same backfill, started again, and it does not ask twice for what it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt

from mlbot_core.config import QualityConfig
from mlbot_core.market.quality import BLOCKING_CHECKS
from mlbot_core.sources import Served
from mlbot_core.timeframe import DAY_MS, Market, Month
from mlbot_core.warehouse.gaps import fillable
from mlbot_core.warehouse.judge import RAW_CHECKS, expected_opens, partition_name
from mlbot_core.warehouse.partitions import PartitionKey, PartitionOutcome, recorded
from mlbot_core.warehouse.store import Warehouse

_SAME_BACKFILL_MS = DAY_MS
# what asking for missing bars can mend; any other failure is a reason to read the whole month again
_MENDED_BY_BARS = ("gaps", "freshness")
_BEFORE_PLAN = "before the history of plan"


@dataclass(frozen=True)
class Wanted:
    """A part of a month to ask for: ``start_ms <= ts < end_ms``, UTC ms."""

    month: Month
    start_ms: int
    end_ms: int


def what_is_wanted(
    store: Warehouse,
    series: str,
    source: str,
    market: Market,
    served: Served,
    months: Sequence[Month],
    *,
    now_ms: int,
    settle_delay_ms: int,
    quality: QualityConfig,
    identity: str,
) -> tuple[list[Wanted], list[PartitionOutcome]]:
    """Return what to ask for, ascending, and the recorded outcomes of the months that are complete."""
    wanted: list[Wanted] = []
    complete: list[PartitionOutcome] = []
    with store.read() as con:
        for month in months:
            expected = expected_opens(series, served, month, now_ms, settle_delay_ms)
            key = PartitionKey(series, source, partition_name(market, month))
            found = recorded(con, key)
            if found is None:
                wanted.append(Wanted(month, month.start_ms, month.end_ms))
                continue
            outcome, asked_at = found
            if not _usable(outcome, served, identity):
                wanted.append(Wanted(month, month.start_ms, month.end_ms))
                continue
            opens = _to_ask(con, series, source, market, served, month, expected, asked_at, now_ms, quality)
            if len(opens) == 0:
                complete.append(outcome)
            else:
                wanted.append(_window(month, opens, expected, served))
    return wanted, complete


def _usable(outcome: PartitionOutcome, served: Served, identity: str) -> bool:
    """Return whether what is stored of a month is sound as far as it goes."""
    passed = {check.check: check.passed for check in outcome.checks}
    judged = all(check in passed for check in RAW_CHECKS)
    sound = all(passed.get(check, True) for check in BLOCKING_CHECKS if check not in _MENDED_BY_BARS)
    same = outcome.info.get("timeframe") == str(served.timeframe) and outcome.info.get("identity") == identity
    return judged and sound and same


def _to_ask(
    con: duckdb.DuckDBPyConnection,
    series: str,
    source: str,
    market: Market,
    served: Served,
    month: Month,
    expected: npt.NDArray[np.int64],
    asked_at: int,
    now_ms: int,
    quality: QualityConfig,
) -> npt.NDArray[np.int64]:
    """Return the open times that are missing, or were too young when they were last asked for."""
    scope = [market.symbol, source, str(served.timeframe), month.start_ms, month.end_ms]
    rows = con.execute(
        f"SELECT DISTINCT ts FROM {series} WHERE symbol = ? AND source = ? AND timeframe = ? AND ts >= ? AND ts < ?",
        scope,
    ).to_arrow_table()
    ask = ~np.isin(expected, np.asarray(rows.column("ts").to_numpy(), dtype=np.int64))
    gaps = con.execute(
        "SELECT from_ts, to_ts, cause FROM gaps WHERE symbol = ? AND source = ? AND timeframe = ? AND to_ts >= ? "
        "AND from_ts < ? AND series = ? AND filled_at IS NULL",
        [*scope, series],
    ).fetchall()
    for from_ts, to_ts, cause in gaps:
        # what lay before a plan's history is expected now only if the plan has become a longer one
        if not fillable(cause) and not cause.startswith(_BEFORE_PLAN):
            ask &= (expected < from_ts) | (expected > to_ts)
    if now_ms - asked_at > _SAME_BACKFILL_MS:
        ask |= expected + served.timeframe.ms + int(quality.restatement_days * DAY_MS) > asked_at
    return expected[ask]


def _window(month: Month, opens: npt.NDArray[np.int64], expected: npt.NDArray[np.int64], served: Served) -> Wanted:
    """Return the window of the bars to ask for; it reaches the month's end where its last bar is among them."""
    start = month.start_ms if opens[0] == expected[0] else int(opens[0])
    end = month.end_ms if opens[-1] == expected[-1] else int(opens[-1]) + served.timeframe.ms
    return Wanted(month, start, end)
