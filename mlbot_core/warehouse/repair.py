"""Open gaps that may be filled, asked for again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from mlbot_core.clock import Clock
from mlbot_core.config import QualityConfig
from mlbot_core.errors import SourceError
from mlbot_core.sources import Source
from mlbot_core.timeframe import DAY_MS, Market, Month, Timeframe
from mlbot_core.warehouse.bitemporal import append
from mlbot_core.warehouse.gaps import OpenGap, named_causes, open_gaps
from mlbot_core.warehouse.incidents import incidents, tell
from mlbot_core.warehouse.ingest import IngestRequest, record_months, require_same_market
from mlbot_core.warehouse.partitions import PartitionOutcome
from mlbot_core.warehouse.store import Warehouse

_LOG = logging.getLogger(__name__)

# Gaps that are nearer to each other than this are asked for in one call.
_TOGETHER_MS = 2 * DAY_MS
_MOST_BARS = 4_000


@dataclass(frozen=True)
class Repaired:
    """What asking for the open gaps of one series of one market came to.

    Parameters
    ----------
    asked_bars, filled_bars
        Bars that were missing and may be filled, and how many of them are stored now.
    windows
        How many stretches were asked for.
    outcomes
        The months that were judged again, ascending.
    error
        Why the source did not deliver all of it; empty where it did.
    """

    series: str
    market: Market
    asked_bars: int
    filled_bars: int
    windows: int
    outcomes: tuple[PartitionOutcome, ...]
    error: str = ""


def gap_repair(
    store: Warehouse,
    source: Source,
    clock: Clock,
    markets: Sequence[Market],
    *,
    quality: QualityConfig,
    settle_delay_ms: int,
    run_id: str,
    identity: str = "",
    series: Sequence[str] | None = None,
) -> list[Repaired]:
    """Ask again for the bars that are missing, and only for those; store, judge and record what came.

    Gaps before a listing or a plan's history, and those of frozen records, are left alone. A series that fails keeps
    the others from nothing.

    Parameters
    ----------
    series
        Names in the catalogue; by default every one that has an open gap.

    Raises
    ------
    WarehouseError
        If the store holds another market under this source's name.
    """
    with store.read() as con:
        every = open_gaps(con, source=source.name)
    gaps: dict[tuple[str, Timeframe], list[OpenGap]] = {}
    for gap in every:
        if gap.fillable and (series is None or gap.series in series):
            gaps.setdefault((gap.series, gap.timeframe), []).append(gap)
    done = []
    for market in markets:
        for (name, timeframe), mine in gaps.items():
            mine = [gap for gap in mine if gap.symbol == market.symbol]
            served = source.served(name, market)
            if not mine or served is None or served.timeframe != timeframe:
                continue
            request = IngestRequest(name, market, (), quality, settle_delay_ms, run_id, identity)
            done.append(_repair(store, source, clock, request, mine))
    return done


def _repair(store: Warehouse, source: Source, clock: Clock, request: IngestRequest, gaps: list[OpenGap]) -> Repaired:
    served = source.served(request.series, request.market)
    assert served is not None
    settled = served.timeframe.floor(clock.now_ms() - request.settle_delay_ms)
    windows = [(a, min(b, settled)) for a, b in _windows(gaps) if a < settled]
    asked = sum(gap.bars for gap in gaps if gap.from_ts < settled)
    outcomes: dict[Month, PartitionOutcome] = {}
    filled, error = 0, ""
    for start_ms, end_ms in windows:
        try:
            batch = source.fetch(request.series, request.market, start_ms, end_ms)
        except SourceError as failure:
            error = str(failure)
            break
        with store.write() as con:
            require_same_market(con, source.name, request.identity)
            before = _missing_bars(con, source.name, request, served.timeframe)
            now_ms = clock.now_ms()
            appended = append(con, named_causes(con, batch), now_ms=now_ms)
            filled += before - _missing_bars(con, source.name, request, served.timeframe)
            months = Month.span(start_ms, end_ms)
            for month, outcome in zip(
                months,
                record_months(con, source.name, served, months, now_ms, request, appended, batch.notes),
                strict=True,
            ):
                outcomes[month] = outcome
            lines = incidents(con, batch, appended, start_ms=start_ms, end_ms=end_ms, now_ms=now_ms, missing=False)
        tell(lines)
    if error:
        _LOG.warning("%s %s from %s: gaps were not repaired: %s", request.series, request.market, source.name, error)
    ordered = tuple(outcomes[month] for month in sorted(outcomes))
    return Repaired(request.series, request.market, asked, filled, len(windows), ordered, error)


def _windows(gaps: Sequence[OpenGap]) -> list[tuple[int, int]]:
    """Return stretches ``[start, end)`` that hold the gaps: near ones together, none of more bars than one call."""
    windows: list[tuple[int, int]] = []
    for gap in sorted(gaps, key=lambda gap: gap.from_ts):
        end = gap.to_ts + gap.timeframe.ms
        near = bool(windows) and gap.from_ts - windows[-1][1] <= _TOGETHER_MS
        if near and end - windows[-1][0] <= _MOST_BARS * gap.timeframe.ms:
            windows[-1] = (windows[-1][0], end)
            continue
        longest = _MOST_BARS * gap.timeframe.ms
        windows += [(start, min(start + longest, end)) for start in range(gap.from_ts, end, longest)]
    return windows


def _missing_bars(con: duckdb.DuckDBPyConnection, source: str, request: IngestRequest, timeframe: Timeframe) -> int:
    """Return how many bars are missing of the recorded gaps of a series that may be filled."""
    found = open_gaps(con, source=source, series=request.series, symbol=request.market.symbol, timeframe=timeframe)
    return sum(gap.bars for gap in found if gap.fillable)
