"""What sources changed after they had served it: how many bars, how far back, by how much, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb

from mlbot_core.clock import format_utc
from mlbot_core.market import CATALOGUE, series_spec
from mlbot_core.timeframe import HOUR_MS, Timeframe

_QUANTILES = (0.5, 0.9, 0.99, 1.0)
_WAVES = 5


@dataclass(frozen=True)
class Restatements:
    """Restatements of one series of one source.

    Parameters
    ----------
    bars, restated_bars, versions
        Bars stored, how many of them have more than one version, and how many later versions there are.
    first_ts, last_ts
        Open times of the oldest and the newest restated bar, UTC ms.
    median_age_ms, greatest_age_ms
        How long after its close a bar was changed.
    change
        Relative change of the column that changed most, |new / old - 1|, at quantiles 0.5, 0.9, 0.99 and 1; versions
        whose old values are all zero or missing are not counted here.
    first_seen_ms, last_seen_ms
        When the first and the last change was seen, UTC ms.
    waves
        The days on which most was changed: day and versions.
    """

    series: str
    source: str
    symbol: str
    timeframe: str
    bars: int
    restated_bars: int
    versions: int
    first_ts: int
    last_ts: int
    median_age_ms: float
    greatest_age_ms: int
    change: dict[str, float | None]
    first_seen_ms: int
    last_seen_ms: int
    waves: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float:
        """Share of the bars that were restated."""
        return self.restated_bars / self.bars if self.bars else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return plain values, times as text and ages in hours."""
        return {
            "series": self.series,
            "source": self.source,
            "symbol": self.symbol,
            "timeframe": self.timeframe,
            "bars": self.bars,
            "restated_bars": self.restated_bars,
            "restated_share": self.share,
            "later_versions": self.versions,
            "oldest_bar": format_utc(self.first_ts),
            "newest_bar": format_utc(self.last_ts),
            "median_age_hours": self.median_age_ms / HOUR_MS,
            "greatest_age_hours": self.greatest_age_ms / HOUR_MS,
            "relative_change": self.change,
            "first_seen": format_utc(self.first_seen_ms),
            "last_seen": format_utc(self.last_seen_ms),
            "largest_waves": [{"day": day, "versions": count} for day, count in self.waves],
        }


def restatements(con: duckdb.DuckDBPyConnection, series: str | None = None) -> list[Restatements]:
    """Return the restatements of every series that has some, or of one, by source, symbol and timeframe."""
    names = list(CATALOGUE) if series is None else [series_spec(series).name]
    return [found for name in names for found in _of(con, name)]


def _of(con: duckdb.DuckDBPyConnection, series: str) -> list[Restatements]:
    columns = series_spec(series).column_names
    scope = "symbol, source, timeframe"
    earlier = ", ".join(f"lag({name}) OVER versions AS old_{name}" for name in columns)
    by_column = ", ".join(
        f"CASE WHEN old_{name} <> 0 THEN abs({name} / old_{name} - 1) WHEN old_{name} = {name} THEN 0 END"
        for name in columns
    )
    changes = f"""
        WITH several AS (
            SELECT {scope}, ts FROM {series} GROUP BY ALL HAVING count(*) > 1
        ), ordered AS (
            SELECT {scope}, ts, observed_at, {", ".join(columns)}, lag(observed_at) OVER versions AS before, {earlier}
            FROM {series} SEMI JOIN several USING ({scope}, ts)
            WINDOW versions AS (PARTITION BY {scope}, ts ORDER BY observed_at)
        )
        SELECT {scope}, ts, observed_at, greatest({by_column}, NULL) AS change FROM ordered WHERE before IS NOT NULL
    """
    rows = con.execute(
        f"""
        WITH change AS ({changes}), stored AS (
            SELECT {scope}, count(DISTINCT ts) AS bars FROM {series} GROUP BY ALL
        )
        SELECT source, symbol, timeframe, any_value(bars), count(DISTINCT ts), count(*), min(ts), max(ts),
               median(observed_at - ts), max(observed_at - ts), quantile_cont(change, {list(_QUANTILES)}),
               min(observed_at), max(observed_at)
        FROM change JOIN stored USING ({scope}) GROUP BY source, symbol, timeframe ORDER BY ALL
        """
    ).fetchall()
    if not rows:
        return []
    days = con.execute(
        f"""
        SELECT source, symbol, timeframe, strftime(make_timestamp(observed_at * 1000), '%Y-%m-%d') AS day, count(*) AS n
        FROM ({changes}) GROUP BY ALL ORDER BY n DESC, day
        """
    ).fetchall()
    waves: dict[tuple[str, str, str], list[tuple[str, int]]] = {}
    for source, symbol, timeframe, day, count in days:
        waves.setdefault((source, symbol, timeframe), []).append((str(day), int(count)))
    found = []
    for source, symbol, timeframe, bars, restated, versions, low, high, middle, far, change, first, last in rows:
        step = Timeframe.parse(timeframe).ms
        sizes = change if change is not None else [None] * len(_QUANTILES)
        found.append(
            Restatements(
                series,
                source,
                symbol,
                timeframe,
                int(bars),
                int(restated),
                int(versions),
                int(low),
                int(high),
                float(middle) - step,
                int(far) - step,
                {f"{q:g}": None if size is None else float(size) for q, size in zip(_QUANTILES, sizes, strict=True)},
                int(first),
                int(last),
                tuple(waves.get((source, symbol, timeframe), [])[:_WAVES]),
            )
        )
    return found
