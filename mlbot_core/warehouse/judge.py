"""The verdicts on a month of one series, from what is stored of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlbot_core.config import QualityConfig
from mlbot_core.market import quality as rules
from mlbot_core.market import quality_values as values_rules
from mlbot_core.market import series_spec
from mlbot_core.sources import Served
from mlbot_core.timeframe import Market, Month
from mlbot_core.warehouse.partitions import PartitionKey, PartitionOutcome, Verdict, data_version
from mlbot_core.warehouse.references import other_prices, settled_funding, typical_price

# Required of every partition by whoever reads it. What else is judged is in QUALITY_CHECKS; of that, too, what failed
# and blocks is refused.
RAW_CHECKS = rules.REQUIRED_CHECKS

_Stamps = npt.NDArray[np.int64]
_Values = npt.NDArray[np.float64]
_FUNDING = ("funding_rate", "funding_rate_pair", "funding_rate_volume")


@dataclass(frozen=True)
class MonthView:
    """What is stored of a month: the newest version of each bar, and the bars before it to look back at.

    Parameters
    ----------
    bars
        ``ts, observed_at, known_at``, then the values: newest versions, ascending.
    before
        The same of as many bars before the month as the rules look back.
    """

    series: str
    source: str
    market: Market
    served: Served
    month: Month
    bars: pa.Table
    before: pa.Table
    versions: int
    repeated: int
    restated: int
    live: int
    latest_restatement_ms: int | None

    @property
    def ts(self) -> _Stamps:
        """Open times of the stored bars, UTC ms."""
        return np.asarray(self.bars.column("ts").to_numpy(), dtype=np.int64)

    def values(self, name: str) -> _Values:
        """Return a column of the month."""
        return np.asarray(self.bars.column(name).to_numpy(), dtype=np.float64)

    def long(self, name: str) -> _Values:
        """Return a column of the month with the bars before it."""
        before = np.asarray(self.before.column(name).to_numpy(), dtype=np.float64)
        return np.concatenate([before, self.values(name)])


def partition_name(market: Market, month: Month) -> str:
    """Return the partition of a monthly asset: ``BTC-2h|2024-03-01``."""
    return f"{market}|{month.key}"


def judge(
    con: duckdb.DuckDBPyConnection,
    series: str,
    source: str,
    market: Market,
    served: Served,
    month: Month,
    *,
    now_ms: int,
    settle_delay_ms: int,
    quality: QualityConfig,
    identity: str,
) -> PartitionOutcome:
    """Check the stored bars of a month against what should be there by now, and say what is stored."""
    bounds = quality.of(source)
    view = _view(con, series, source, market, served, month, bounds.jump_window + 1)
    expected = expected_opens(series, served, month, now_ms, settle_delay_ms)
    first, end = _bounds(served, month)
    required = (
        Verdict("duplicates", view.repeated == 0, {"versions": view.versions, "repeated": view.repeated}),
        _verdict(
            rules.gaps(
                view.ts,
                served.timeframe,
                first,
                end,
                max_missing_share=bounds.max_missing_share,
                max_gap_bars=bounds.max_gap_bars,
                expected=expected,
            )
        ),
        _fresh(view, expected),
        _sane(view),
    )
    info: dict[str, Any] = {
        "timeframe": str(served.timeframe),
        "first_ts": int(view.ts[0]) if len(view.ts) else None,
        "last_ts": int(view.ts[-1]) if len(view.ts) else None,
        "expected_from": int(expected[0]) if len(expected) else None,
        "note": served.note,
        "identity": identity,
        "versions": view.versions,
        "restated_bars": view.restated,
        "live_share": view.live / len(view.ts) if len(view.ts) else 0.0,
        "latest_restatement_ms": view.latest_restatement_ms,
    }
    key = PartitionKey(series, source, partition_name(market, month))
    more = _more(con, view, bounds, identity) if len(view.ts) else ()
    return PartitionOutcome(key, len(view.ts), data_version(view.bars), (*required, *more), info)


def expected_opens(series: str, served: Served, month: Month, now_ms: int, settle_delay_ms: int) -> _Stamps:
    """Return the open times of a month that should be stored by now, UTC ms, ascending."""
    spec = series_spec(series)
    first, end = _bounds(served, month)
    settled_at = now_ms - settle_delay_ms - spec.lag_ms(served.timeframe)
    end = min(end, served.timeframe.last_closed(settled_at) + served.timeframe.ms)
    return spec.expected_opens(served.timeframe, first, max(first, end))


def _bounds(served: Served, month: Month) -> tuple[int, int]:
    first = month.start_ms if served.earliest_ms is None else max(month.start_ms, served.earliest_ms)
    end = month.end_ms if served.latest_ms is None else min(month.end_ms, served.latest_ms)
    return first, max(first, end)


def _view(
    con: duckdb.DuckDBPyConnection, series: str, source: str, market: Market, served: Served, month: Month, back: int
) -> MonthView:
    """Read every version of the month once, and choose the newest of each bar here."""
    names = series_spec(series).column_names
    step = served.timeframe.ms
    found = con.execute(
        f"SELECT ts, observed_at, known_at, capture = 'live' AS live, {', '.join(names)} FROM {series} "
        "WHERE symbol = ? AND source = ? AND timeframe = ? AND ts >= ? AND ts < ?",
        [market.symbol, source, str(served.timeframe), month.start_ms - back * step, month.end_ms],
    ).to_arrow_table()
    ts, observed = (np.asarray(found.column(name).to_numpy(), dtype=np.int64) for name in ("ts", "observed_at"))
    order = np.lexsort((observed, ts))
    ts, observed = ts[order], observed[order]
    newest = np.flatnonzero(np.diff(ts, append=ts[-1:] + 1))
    inside = ts >= month.start_ms
    live = np.asarray(found.column("live").to_numpy(zero_copy_only=False), dtype=np.bool_)[order]
    again = inside[1:] & (np.diff(ts) == 0)
    columns = ["ts", "observed_at", "known_at", *names]
    kept = newest[inside[newest]]
    earlier = newest[~inside[newest]]
    return MonthView(
        series,
        source,
        market,
        served,
        month,
        found.select(columns).take(pa.array(order[kept])),
        found.select(columns).take(pa.array(order[earlier])),
        versions=int(inside.sum()),
        repeated=int((again & (np.diff(observed) == 0)).sum()),
        restated=len(np.unique(ts[1:][again])),
        live=int(live[kept].sum()),
        latest_restatement_ms=int(observed[1:][again].max()) if again.any() else None,
    )


def _fresh(view: MonthView, expected: _Stamps) -> Verdict:
    """Check that the newest bar one can expect is there (for a past month: its last one)."""
    if not len(expected):
        return Verdict("freshness", True, {"note": "nothing can be expected in this month yet"})
    due = int(expected[-1]) + view.served.timeframe.ms
    return _verdict(rules.freshness(int(view.ts[-1]) if len(view.ts) else None, view.served.timeframe, due))


def _sane(view: MonthView) -> Verdict:
    names = ("open", "high", "low", "close")
    if not view.series.endswith("price") or len(view.ts) == 0:
        return Verdict(
            "sanity", True, {"note": f"{len(view.ts)} bars; signs and finiteness were checked before storing"}
        )
    columns = [view.values(name) for name in names]
    found = [rules.ohlc_order(view.ts, *columns), rules.price_jumps(view.ts, columns[3])]
    return _verdict(_worst(found), "sanity")


def _more(con: duckdb.DuckDBPyConnection, view: MonthView, bounds: QualityConfig, identity: str) -> tuple[Verdict, ...]:
    """Return the verdicts that consumers do not require, but obey where they block."""
    spec = series_spec(view.series)
    back = view.before.num_rows
    long_ts = np.concatenate([np.asarray(view.before.column("ts").to_numpy(), dtype=np.int64), view.ts])
    levels = ["close"] if "close" in spec.column_names else [c.name for c in spec.columns if c.resample == "last"]
    jumping = {name: view.long(name) for name in levels}
    moving = [view.values(column.name) for column in spec.columns if column.unit in ("USD", "coin")]
    found = [
        _worst(_units(con, view)),
        _worst(_cross(con, view, bounds, identity)),
        values_rules.jumps(long_ts, jumping, back, window=bounds.jump_window, scale=bounds.jump_scale),
        values_rules.staleness(view.ts, moving, max_run=bounds.max_standstill_bars),
    ]
    if view.series == "funding_settled":
        found.append(values_rules.funding_interval(long_ts, back))
    return tuple(_verdict(result) for result in found)


def _units(con: duckdb.DuckDBPyConnection, view: MonthView) -> list[rules.CheckResult]:
    """Compare magnitudes with what the units of the columns allow."""
    spec = series_spec(view.series)
    units = {column.name: column.unit for column in spec.columns}
    found: list[rules.CheckResult] = []
    if view.series.startswith("funding"):
        name = "rate" if "rate" in units else "close"
        found.append(
            values_rules.magnitude(f"{view.series}.{name}", view.values(name), values_rules.FUNDING, "a period")
        )
    if {"long_share", "short_share"} <= units.keys():
        found.append(values_rules.sum_to_one(view.values("long_share"), view.values("short_share")))
    coins = [name for name, unit in units.items() if unit == "coin"]
    interest = view.series.startswith("open_interest")
    if not coins and not interest:
        return found or [rules.CheckResult("units", True, 0, "no magnitude to judge by")]
    price = typical_price(con, view.source, view.market.symbol, view.month)
    for name in ("close", "close_coin"):
        if not interest or name not in units:
            continue
        if units[name] == "USD":
            scaled = view.values(name)
        elif price is not None:
            scaled = view.values(name) * price
        else:
            continue
        found.append(
            values_rules.magnitude(
                f"{view.series}.{name} [{units[name]}]", scaled, values_rules.OPEN_INTEREST_USD, "USD"
            )
        )
    for name in coins:
        twin = "close" if name == "close_coin" else name.replace("_coin", "_usd")
        if price is not None and units.get(twin) == "USD":
            found.append(values_rules.consistency(name, view.values(twin), view.values(name), price))
    return found or [rules.CheckResult("units", True, 0, "no price is stored to judge by")]


def _cross(
    con: duckdb.DuckDBPyConnection, view: MonthView, bounds: QualityConfig, identity: str
) -> list[rules.CheckResult]:
    """Compare with what other sources store of the same thing."""
    found: list[rules.CheckResult] = []
    if view.series == "price":
        for other in other_prices(con, view.source, view.market.symbol, view.served.timeframe, view.month, identity):
            found.append(
                values_rules.agreement(
                    view.ts,
                    view.values("close"),
                    other.ts,
                    other.close,
                    other.source,
                    max_difference=bounds.max_price_difference,
                    max_share=bounds.max_differing_share,
                )
            )
    elif view.series in _FUNDING:
        for source, rates in settled_funding(con, view.source, view.market.symbol, view.month, identity):
            found.append(
                values_rules.same_magnitude(
                    f"{view.series}.close", view.values("close"), f"funding_settled of {source}", rates
                )
            )
    return found or [rules.CheckResult("cross_source", True, 0, "no second source is stored")]


def _worst(results: Sequence[rules.CheckResult]) -> rules.CheckResult:
    """Return the first that failed; if none did, one that says what all of them saw."""
    failed = next((result for result in results if not result.passed), None)
    if failed is not None or len(results) == 1:
        return failed or results[0]
    detail = "; ".join(result.detail for result in results)
    return replace(results[0], found=sum(result.found for result in results), detail=detail)


def _verdict(result: rules.CheckResult, name: str | None = None) -> Verdict:
    return Verdict(name or result.check, result.passed, {"found": result.found, "detail": result.detail})
