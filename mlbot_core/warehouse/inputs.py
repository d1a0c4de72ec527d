"""Checked, settled input of a market: what features, targets, training and backtest read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from mlbot_core.errors import MissingDataError, WarehouseError
from mlbot_core.market import CATALOGUE, CORE_SERIES
from mlbot_core.timeframe import DAY_MS, Market, Month, Timeframe
from mlbot_core.warehouse.bitemporal import Settled, settled
from mlbot_core.warehouse.ingest import RAW_CHECKS, partition_name
from mlbot_core.warehouse.partitions import Accepted, require_many
from mlbot_core.warehouse.store import Warehouse

# an as-of join needs the bar before the window, which for daily series is up to two days back
COARSE_MARGIN_MS = 3 * DAY_MS


@dataclass(frozen=True)
class MarketInputs:
    """Settled series of one market.

    Parameters
    ----------
    settled
        By series name; a series that the source does not serve is absent.
    versions
        ``series|partition`` -> data version of every raw partition that was read.
    snapshot_ms
        S: nothing observed after it was looked at.
    notes
        What the source says about its data (approximations, vintages), each once.
    """

    market: Market
    source: str
    settled: Mapping[str, Settled]
    versions: Mapping[str, str]
    snapshot_ms: int
    notes: tuple[str, ...] = ()

    def shares(self) -> dict[str, float]:
        """Return the live, modelled, restated and late shares over all rows of all series."""
        rows = {name: series.table.num_rows for name, series in self.settled.items()}
        total = sum(rows.values())
        sums = {"live": 0.0, "modelled": 0.0, "restated": 0.0, "late": 0.0}
        for name, series in self.settled.items():
            for kind, share in series.shares().items():
                sums[kind] += share * rows[name]
        return {kind: value / total if total else 0.0 for kind, value in sums.items()}


@dataclass(frozen=True)
class Window:
    """Which inputs to read: requested months, with so much more before and after.

    Parameters
    ----------
    before_ms, after_ms
        How far the reading reaches beyond the months, ms.
    series
        Names in the catalogue; those that features are made of by default.
    """

    source: str
    market: Market
    months: tuple[Month, ...]
    settle_delay_ms: int
    before_ms: int = 0
    after_ms: int = 0
    series: tuple[str, ...] = CORE_SERIES

    @property
    def start_ms(self) -> int:
        """First open time read, UTC ms."""
        return min(self.months).start_ms - self.before_ms

    @property
    def end_ms(self) -> int:
        """End of what is read, UTC ms, exclusive."""
        return max(self.months).end_ms + self.after_ms


def read_inputs(
    warehouse: Warehouse, window: Window, *, known_by_ms: int, snapshot_ms: int | None = None
) -> MarketInputs:
    """Read the settled series of a window, refusing what failed its checks.

    The requested months must have been made; months around them are read as far as they exist, and must be good too.
    ``known_by_ms`` is T; ``snapshot_ms`` is S (default: T), for example that of a named snapshot.

    Raises
    ------
    MissingDataError
        If a requested month of a series was never made.
    QualityRefusedError
        If a month that would be read failed a check or was never checked.
    """
    read: dict[str, Settled] = {}
    versions: dict[str, str] = {}
    notes: dict[str, None] = {}
    around = [partition_name(window.market, month) for month in Month.span(window.start_ms, window.end_ms)]
    requested = [partition_name(window.market, month) for month in window.months]
    with warehouse.read() as con:
        accepted = require_many(con, dict.fromkeys(window.series, around), window.source, requested, RAW_CHECKS)
        for series in window.series:
            timeframe = _stored_timeframe(window, series, accepted[series], versions, notes)
            if timeframe is None:
                continue
            read[series] = settled(
                con,
                series,
                source=window.source,
                symbol=window.market.symbol,
                timeframe=timeframe,
                start_ms=window.start_ms - (COARSE_MARGIN_MS if timeframe != window.market.timeframe else 0),
                end_ms=window.end_ms,
                settle_delay_ms=window.settle_delay_ms,
                known_by_ms=known_by_ms,
                snapshot_ms=snapshot_ms,
            )
    if "price" in window.series and not read.get("price"):
        raise MissingDataError(
            f"{window.source} serves no prices for {window.market}; choose another interval or source"
        )
    seen = known_by_ms if snapshot_ms is None else snapshot_ms
    return MarketInputs(window.market, window.source, read, versions, seen, tuple(notes))


def _stored_timeframe(
    window: Window, series: str, accepted: Mapping[str, Accepted], versions: dict[str, str], notes: dict[str, None]
) -> Timeframe | None:
    """Return the timeframe that the rows of a series are stored at; write down its versions and notes."""
    versions.update({f"{series}|{name}": part.version for name, part in accepted.items()})
    notes.update(dict.fromkeys(f"{series}: {part.info['note']}" for part in accepted.values() if part.info.get("note")))
    stored = {part.info.get("timeframe") for part in accepted.values()} - {None}
    if len(stored) > 1:
        raise WarehouseError(
            f"{series} of {window.market} from {window.source} is stored at {sorted(map(str, stored))}; "
            "materialize all its months again so that they have one timeframe"
        )
    return Timeframe.parse(str(stored.pop())) if stored else None


def fingerprint(versions: Mapping[str, str], window: Window) -> str:
    """Return a short hash of the raw data versions (``series|partition`` -> version) that lie in a window.

    Stored with what was derived from them: when it differs later, the derived months rest on data that has changed,
    or on months that were not there yet.
    """
    names = {partition_name(window.market, month) for month in Month.span(window.start_ms, window.end_ms)}
    wanted = set(window.series)
    used = {
        key: version
        for key, version in versions.items()
        if key.partition("|")[0] in wanted and key.partition("|")[2] in names
    }
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:16]


def current_versions(con: duckdb.DuckDBPyConnection, source: str, market: Market) -> dict[str, str]:
    """Return the newest data version of every raw partition of a market, by ``series|partition``."""
    rows = con.execute(
        """
        SELECT asset || '|' || partition, data_version FROM partitions
        WHERE source = ? AND starts_with(partition, ?) AND asset IN (SELECT unnest(?))
        QUALIFY row_number() OVER (PARTITION BY asset, partition ORDER BY written_at DESC, rowid DESC) = 1
        """,
        [source, f"{market}|", list(CATALOGUE)],
    ).fetchall()
    return {str(key): str(version) for key, version in rows}


def contiguous(months: Sequence[Month]) -> list[tuple[Month, ...]]:
    """Group months into unbroken stretches, ascending."""
    groups: list[list[Month]] = []
    for month in sorted(set(months)):
        if groups and groups[-1][-1].next() == month:
            groups[-1].append(month)
        else:
            groups.append([month])
    return [tuple(group) for group in groups]
