"""One new bar from its lookback: what a live decision sees, and what its replay must see again, bit for bit.

The work is in the lookback and not in the history: the store is asked for the bars of the window only, the panel has
that window's rows, and every column is computed on the stretch that the last row needs of it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pandas as pd

from mlbot_core.clock import format_utc
from mlbot_core.errors import MissingDataError, QualityRefusedError, WarehouseError
from mlbot_core.features.build import build_features
from mlbot_core.features.inputs import series_needed
from mlbot_core.features.panel import SettledSeries, build_panel
from mlbot_core.features.panel_columns import read_margin_ms
from mlbot_core.features.registry import FeatureSet
from mlbot_core.market import CORE_SERIES
from mlbot_core.market.quality import BLOCKING_CHECKS
from mlbot_core.timeframe import Market, Month, Timeframe
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.ingest import RAW_CHECKS, partition_name
from mlbot_core.warehouse.read_many import Stretch, settled_many


@dataclass(frozen=True)
class Decision:
    """The moment a row is for.

    Parameters
    ----------
    source, market
        Where the bars come from and which.
    ts
        Open time of the newest bar, UTC ms.
    settle_delay_ms
        From its close to the decision.
    snapshot_ms
        S: rows observed after it do not exist. None: the decision time itself, as in life and in its replay; a later
        one also sees history that was only loaded afterwards.
    """

    source: str
    market: Market
    ts: int
    settle_delay_ms: int
    snapshot_ms: int | None = None

    @property
    def known_by_ms(self) -> int:
        """T: nothing that became known after it is used, UTC ms."""
        return self.ts + self.market.timeframe.ms + self.settle_delay_ms


@dataclass(frozen=True)
class LiveRow:
    """Features of one bar and what they rest on.

    Parameters
    ----------
    rows
        ``ts`` and one float64 column a feature; the decision's bar last.
    late
        Whether a value of the decision's own bar was not known in time: nothing should be decided on such a row.
    feature_hash
        Of the feature set.
    versions
        ``series|partition`` -> data version of every raw month that was read.
    """

    rows: pd.DataFrame
    late: bool
    feature_hash: str
    versions: Mapping[str, str]


def live_row(warehouse: Warehouse, decision: Decision, features: FeatureSet, *, rows: int = 1) -> LiveRow:
    """Read the lookback of one bar from the store as it was at the decision, and compute its features.

    Parameters
    ----------
    rows
        How many rows to return, the decision's bar and those before it.

    Raises
    ------
    MissingDataError
        If the month of the bar was never made for a series, or its price is not stored.
    QualityRefusedError
        If a month in the window failed a check or was never checked.
    """
    start_ms = decision.ts - (features.lookback + rows - 1) * decision.market.timeframe.ms
    with warehouse.read() as con:
        series, versions = read_lookback(con, decision, _series_of(features), start_ms)
    price = series.get("price")
    if price is None or len(price.ts) == 0 or int(price.ts[-1]) != decision.ts:
        newest = format_utc(int(price.ts[-1])) if price is not None and len(price.ts) else "none"
        raise MissingDataError(
            f"{decision.source} has no price bar of {decision.market} at {format_utc(decision.ts)} that was known by "
            f"{format_utc(decision.known_by_ms)} (newest in the window: {newest}); ingest it first"
        )
    built, late = latest_rows(series, decision, features, rows)
    return LiveRow(built, late, features.hash, versions)


def latest_rows(
    series: Mapping[str, SettledSeries], decision: Decision, features: FeatureSet, rows: int = 1
) -> tuple[pd.DataFrame, bool]:
    """Compute the last rows up to the decision's bar from settled series that hold (at least) the lookback.

    Returns
    -------
    tuple
        ``ts`` and one float64 column a feature; and whether a value of the last bar came late.
    """
    step = decision.market.timeframe.ms
    start_ms = decision.ts - (features.lookback + rows - 1) * step
    panel = build_panel(series, decision.market, start_ms, decision.ts + step, decision.settle_delay_ms)
    return build_features(panel, features, last=rows), bool(panel["late"].iloc[-1])


_NEEDED: dict[str, tuple[str, ...]] = {}


def _series_of(features: FeatureSet) -> tuple[str, ...]:
    """Return the series of a feature set; walking hundreds of definitions again for every bar would be felt."""
    if features.hash not in _NEEDED:
        _NEEDED[features.hash] = series_needed(features)
    return _NEEDED[features.hash]


def read_lookback(
    con: duckdb.DuckDBPyConnection,
    decision: Decision,
    names: Sequence[str],
    start_ms: int,
    *,
    forgiven: Collection[str] = (),
) -> tuple[dict[str, SettledSeries], dict[str, str]]:
    """Read the settled bars of some series from ``start_ms`` to the decision's bar, as known at the decision.

    Parameters
    ----------
    forgiven
        Checks that may have failed: who judges the freshness of each series itself has no use for a verdict on it.

    Returns
    -------
    tuple
        The series by name (one that the source does not serve is absent), and the data version of every month read.

    Raises
    ------
    MissingDataError
        If the month of the bar was never made for a series that every source makes, or that was made before.
    QualityRefusedError
        If a month in the window failed a check or was never checked.
    """
    end_ms = decision.ts + decision.market.timeframe.ms
    stored, versions = _stored_timeframes(con, decision, names, start_ms, end_ms, forgiven)
    return read_stored(con, decision, stored, start_ms), versions


def read_stored(
    con: duckdb.DuckDBPyConnection, decision: Decision, stored: Mapping[str, Timeframe], start_ms: int
) -> dict[str, SettledSeries]:
    """Read series whose stored timeframes are known as :func:`read_lookback` does, without asking what checks said."""
    own, delay = decision.market.timeframe, decision.settle_delay_ms
    end_ms = decision.ts + own.ms
    wanted = [
        Stretch(name, timeframe, start_ms - read_margin_ms(name, timeframe, own, delay), end_ms)
        for name, timeframe in stored.items()
    ]
    found = settled_many(
        con,
        wanted,
        source=decision.source,
        symbol=decision.market.symbol,
        settle_delay_ms=delay,
        known_by_ms=decision.known_by_ms,
        snapshot_ms=decision.snapshot_ms,
    )
    return {name: SettledSeries(name, stored[name], columns) for name, columns in found.items()}


def _stored_timeframes(
    con: duckdb.DuckDBPyConnection,
    decision: Decision,
    names: Sequence[str],
    start_ms: int,
    end_ms: int,
    forgiven: Collection[str],
) -> tuple[dict[str, Timeframe], dict[str, str]]:
    """Check the raw months in the window, all series in two queries; return at which timeframe each is stored."""
    months = [partition_name(decision.market, month) for month in Month.span(start_ms, end_ms)]
    own = partition_name(decision.market, Month.of(decision.ts))
    made = con.execute(
        """
        SELECT asset, partition, data_version, info FROM partitions
        WHERE source = ? AND partition IN (SELECT unnest(?)) AND asset IN (SELECT unnest(?))
        QUALIFY row_number() OVER (PARTITION BY asset, partition ORDER BY written_at DESC, rowid DESC) = 1
        """,
        [decision.source, months, list(names)],
    ).fetchall()
    versions = {f"{asset}|{partition}": str(version) for asset, partition, version, _ in made}
    begun = {str(asset) for asset, *_ in made} | set(CORE_SERIES)
    absent = [name for name in names if name in begun and f"{name}|{own}" not in versions]
    if absent:
        raise MissingDataError(
            f"{decision.source} has no data of {', '.join(absent)} for {own}; materialize it first (mlbot backfill)"
        )
    _require_good(con, decision, months, versions, forgiven)
    stored: dict[str, set[str]] = {name: set() for name in names}
    for asset, _, _, info in made:
        timeframe = json.loads(info).get("timeframe")
        if timeframe is not None:
            stored[str(asset)].add(str(timeframe))
    mixed = [f"{name} at {sorted(found)}" for name, found in stored.items() if len(found) > 1]
    if mixed:
        raise WarehouseError(
            f"{decision.market} from {decision.source} is stored at several timeframes: {'; '.join(mixed)}; "
            "materialize all its months again so that each series has one"
        )
    return {name: Timeframe.parse(found.pop()) for name, found in stored.items() if found}, versions


def _require_good(
    con: duckdb.DuckDBPyConnection,
    decision: Decision,
    months: Sequence[str],
    versions: Mapping[str, str],
    forgiven: Collection[str],
) -> None:
    found = con.execute(
        """
        SELECT asset || '|' || partition, data_version, check_name, passed FROM quality
        WHERE source = ? AND partition IN (SELECT unnest(?)) AND check_name IN (SELECT unnest(?))
        QUALIFY row_number() OVER (
            PARTITION BY asset, partition, data_version, check_name ORDER BY checked_at DESC, rowid DESC
        ) = 1
        """,
        [decision.source, list(months), list({*RAW_CHECKS, *BLOCKING_CHECKS})],
    ).fetchall()
    outcome = {(str(key), str(version), str(check)): bool(passed) for key, version, check, passed in found}
    bad = [
        f"{key}: {check} {'was never run' if (key, version, check) not in outcome else 'failed'}"
        for key, version in versions.items()
        for check in dict.fromkeys((*RAW_CHECKS, *BLOCKING_CHECKS))
        if check not in forgiven and not outcome.get((key, version, check), check not in RAW_CHECKS)
    ]
    if bad:
        raise QualityRefusedError(
            f"{decision.market} from {decision.source} is not fit for use: {'; '.join(bad[:3])}"
            f"{f' and {len(bad) - 3} more' if len(bad) > 3 else ''}; repair the source or its bounds in "
            "config/intervals.yaml and materialize it again"
        )


def same_bits(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    """Return whether two feature frames are equal bit for bit (a missing value equals a missing value)."""
    if list(a.columns) != list(b.columns) or len(a) != len(b):
        return False
    x, y = (np.ascontiguousarray(f.to_numpy(dtype=np.float64)) for f in (a, b))
    return bool(((x.view(np.int64) == y.view(np.int64)) | (np.isnan(x) & np.isnan(y))).all())
