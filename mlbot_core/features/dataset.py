"""From stored series to stored features: read settled input, compute, prove the absence of look-ahead, replace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from mlbot_core.clock import format_utc
from mlbot_core.config import FeatureConfig
from mlbot_core.features.build import build_features
from mlbot_core.features.inputs import series_needed
from mlbot_core.features.panel import SettledSeries, build_panel
from mlbot_core.features.panel_columns import SOURCES, read_margin_ms
from mlbot_core.features.registry import FeatureSet
from mlbot_core.features.sets import configured_set
from mlbot_core.features.truncation import TruncationResult, between, known_at_check, truncation_check
from mlbot_core.market import CATALOGUE, CORE_SERIES
from mlbot_core.provenance import code_version
from mlbot_core.timeframe import DAY_MS, Market, Month
from mlbot_core.warehouse import PartitionKey, PartitionOutcome, Verdict, Warehouse, data_version, record_partition
from mlbot_core.warehouse.ingest import partition_name
from mlbot_core.warehouse.inputs import MarketInputs, Window, contiguous, fingerprint, read_inputs
from mlbot_core.warehouse.windows import replace_window

CODE_ROOMS = ("features",)
FEATURE_CHECKS = ("duplicates", "freshness", "lookahead")
_CUTS_PER_MONTH = 2


@dataclass(frozen=True)
class DatasetRequest:
    """Which months of which market to derive from which source, as known by when.

    Parameters
    ----------
    known_by_ms
        T, and the snapshot S: nothing known or observed later is used, UTC ms.
    """

    source: str
    market: Market
    months: tuple[Month, ...]
    settle_delay_ms: int
    known_by_ms: int
    run_id: str

    @property
    def scope(self) -> dict[str, str]:
        """Columns that identify the rows of a derived table."""
        return {"source": self.source, "symbol": self.market.symbol, "timeframe": str(self.market.timeframe)}

    def window(self, months: tuple[Month, ...], before_bars: int, after_bars: int = 0) -> Window:
        """Return what to read for ``months`` with so many bars around them."""
        step = self.market.timeframe.ms
        return Window(self.source, self.market, months, self.settle_delay_ms, before_bars * step, after_bars * step)


def table_name(features: FeatureSet) -> str:
    """Return the table that holds a feature set."""
    return f"features_{features.name}"


def materialize_features(
    warehouse: Warehouse, request: DatasetRequest, config: FeatureConfig
) -> list[PartitionOutcome]:
    """Compute and store the configured feature set for the requested months.

    Raises
    ------
    MissingDataError, QualityRefusedError
        If the raw input of a month is absent or was found bad.
    """
    features = configured_set(config)
    with warehouse.read() as con:
        names = input_series(con, request, features)
    outcomes: list[PartitionOutcome] = []
    for months in contiguous(request.months):
        window = replace(request.window(months, features.lookback), series=names)
        # bars that are carried into the first rows opened before them
        earlier = replace(window, before_ms=window.before_ms + _carried_ms(names))
        inputs = read_inputs(warehouse, earlier, known_by_ms=request.known_by_ms)
        series = settled_series(inputs)
        panel = make_panel(inputs, window.start_ms, window.end_ms, request.settle_delay_ms, series)
        built = build_features(panel, features)
        built["late"] = panel["late"]
        built = built.loc[built["ts"] >= (first_price(inputs) or 0)].reset_index(drop=True)
        # the checks compute a good deal: they come before the store is opened for writing
        judged = [_judge(month, series, panel, built, features, request) for month in months]
        with warehouse.write() as con:
            for month, checks in zip(months, judged, strict=True):
                rows = _month(built, month)
                table = _arrow(rows, features)
                written = replace_window(
                    con, table_name(features), request.scope, table, start_ms=month.start_ms, end_ms=month.end_ms
                )
                key = PartitionKey("features", request.source, partition_name(request.market, month))
                info = {
                    "feature_set": features.name,
                    "feature_hash": features.hash,
                    "features": len(features.names),
                    "lookback_bars": features.lookback,
                    "series": list(inputs.settled),
                    **provenance(
                        inputs, replace(request.window((month,), features.lookback), series=names), CODE_ROOMS
                    ),
                    "finite_share": _finite_share(rows, features),
                }
                outcome = PartitionOutcome(key, written, data_version(table), checks, info)
                record_partition(con, outcome, now_ms=warehouse.clock.now_ms(), run_id=request.run_id)
                outcomes.append(outcome)
    return outcomes


def input_series(con: duckdb.DuckDBPyConnection, request: DatasetRequest, features: FeatureSet) -> tuple[str, ...]:
    """Return the series that a feature set is made from in a store: the core ones, and what else it needs and is made.

    A series beside the core that was never made for the market leaves its features empty; one that was made for some
    months is required for all that are asked for.
    """
    made = con.execute(
        "SELECT DISTINCT asset FROM partitions WHERE source = ? AND starts_with(partition, ?)",
        [request.source, f"{request.market}|"],
    ).fetchall()
    further = set(series_needed(features)) & {str(row[0]) for row in made}
    return tuple(name for name in CATALOGUE if name in further or name in CORE_SERIES)


def _carried_ms(names: Sequence[str]) -> int:
    return max(SOURCES[name].carry_days for name in names) * DAY_MS


def provenance(inputs: MarketInputs, window: Window, rooms: Sequence[str]) -> dict[str, Any]:
    """Return what a derived month rests on besides its configuration: raw versions, decision delay, code."""
    return {
        "inputs": fingerprint(inputs.versions, window),
        "settle_delay_ms": window.settle_delay_ms,
        "code": code_version(rooms=rooms),
    }


def settled_series(inputs: MarketInputs) -> dict[str, SettledSeries]:
    """Return the inputs in the form the panel takes."""
    return {name: SettledSeries(name, read.timeframe, read.table.to_pandas()) for name, read in inputs.settled.items()}


def make_panel(
    inputs: MarketInputs,
    start_ms: int,
    end_ms: int,
    settle_delay_ms: int,
    series: Mapping[str, SettledSeries] | None = None,
    *,
    keep_late: bool = False,
) -> pd.DataFrame:
    """Return the panel of ``[start_ms, end_ms)`` up to the last stored price bar.

    It always begins at ``start_ms``, with rows of NaN where nothing is stored: how much history a value has behind it
    must not depend on which months are read together.
    """
    price = inputs.settled["price"].table
    last = price.column("ts")[-1].as_py() + inputs.market.timeframe.ms if price.num_rows else start_ms
    chosen = series or settled_series(inputs)
    return build_panel(
        chosen, inputs.market, start_ms, max(start_ms, min(end_ms, last)), settle_delay_ms, keep_late=keep_late
    )


def first_price(inputs: MarketInputs) -> int | None:
    """Return the open time of the first stored price bar that was read, UTC ms; rows before it are nobody's."""
    price = inputs.settled["price"].table
    return int(price.column("ts")[0].as_py()) if price.num_rows else None


def _judge(
    month: Month,
    series: Mapping[str, SettledSeries],
    panel: pd.DataFrame,
    built: pd.DataFrame,
    features: FeatureSet,
    request: DatasetRequest,
) -> tuple[Verdict, ...]:
    rows = _month(built, month)
    ts = rows["ts"].to_numpy(dtype=np.int64)
    repeated = len(ts) - len(np.unique(ts))
    return (
        Verdict("duplicates", repeated == 0, {"rows": len(ts), "repeated": repeated}),
        _covers(month, ts, series["price"], request),
        _lookahead(month, series, panel, features, request),
    )


def _covers(month: Month, ts: np.ndarray, prices: SettledSeries, request: DatasetRequest) -> Verdict:
    """Check that the newest stored price bar of the month has its row."""
    price = prices.ts
    price = price[(price >= month.start_ms) & (price < month.end_ms)]
    if len(price) == 0:
        # whether there ought to be one is the price's own freshness check, which has passed or we were not here
        return Verdict("freshness", True, {"note": f"{request.source} has no price bar of {request.market} in {month}"})
    passed = len(ts) > 0 and int(ts[-1]) >= int(price[-1])
    newest = format_utc(int(ts[-1])) if len(ts) else "none"
    return Verdict("freshness", passed, {"newest_row": newest, "newest_price": format_utc(int(price[-1]))})


def _lookahead(
    month: Month,
    series: Mapping[str, SettledSeries],
    panel: pd.DataFrame,
    features: FeatureSet,
    request: DatasetRequest,
) -> Verdict:
    """Cut the data inside the month and compute again: nothing may change, bit for bit."""
    ts = panel["ts"].to_numpy(dtype=np.int64)
    inside = np.flatnonzero((ts >= month.start_ms) & (ts < month.end_ms))
    if len(inside) == 0:
        return Verdict("lookahead", True, {"note": "no rows"})
    first = max(0, int(inside[0]) - features.lookback)
    piece = panel.iloc[first : int(inside[-1]) + 1].reset_index(drop=True)
    # fixed by the month and not by chance, so that a verdict can be repeated
    shares = (np.arange(_CUTS_PER_MONTH) + 0.5) / _CUTS_PER_MONTH
    cuts = [int(inside[int(share * (len(inside) - 1))]) - first for share in shares]
    result = truncation_check(partial(build_features, feature_set=features), piece, cuts, lookback=features.lookback)
    # late rows are where knowledge and time disagree, so they are looked at first
    tardy = inside[panel["late"].to_numpy(dtype=np.bool_)[inside]]
    chosen = np.unique(np.concatenate([tardy[:3], inside[[0, len(inside) // 2, -1]]]))
    known = _known_at(ts[inside], ts[chosen], series, request)
    detail = {
        "cuts": result.cuts + known.cuts,
        "values_compared": result.compared + known.compared,
        "violations": result.violation_count + known.violation_count,
        "columns": list(dict.fromkeys(result.columns + known.columns)),
        "late_rows": len(tardy),
    }
    return Verdict("lookahead", result.passed and known.passed, detail)


def _known_at(
    ts: np.ndarray, chosen: np.ndarray, series: Mapping[str, SettledSeries], request: DatasetRequest
) -> TruncationResult:
    start, end = int(ts[0]), int(ts[-1]) + request.market.timeframe.ms
    own = request.market.timeframe
    pieces = {
        name: between(one, start - read_margin_ms(name, one.timeframe, own, request.settle_delay_ms), end)
        for name, one in series.items()
    }

    def build(some: Mapping[str, SettledSeries]) -> pd.DataFrame:
        return build_panel(some, request.market, start, end, request.settle_delay_ms).drop(columns="late")

    # every window rests on rows that pass here: forgetting what a row could not know leaves the row as it is
    return known_at_check(build, pieces, request.market, request.settle_delay_ms, chosen)


def _month(frame: pd.DataFrame, month: Month) -> pd.DataFrame:
    return frame.loc[(frame["ts"] >= month.start_ms) & (frame["ts"] < month.end_ms)].reset_index(drop=True)


def _arrow(rows: pd.DataFrame, features: FeatureSet) -> pa.Table:
    table = pa.table(
        {
            "ts": pa.array(rows["ts"].to_numpy(dtype=np.int64)),
            "late": pa.array(rows["late"].to_numpy(dtype=np.bool_)),
            **{name: pa.array(rows[name].to_numpy(dtype=np.float64), from_pandas=True) for name in features.names},
        }
    )
    return table.append_column("feature_hash", pa.array([features.hash] * len(rows), pa.string()))


def _finite_share(rows: pd.DataFrame, features: FeatureSet) -> float:
    values = rows[list(features.names)].to_numpy(dtype=np.float64)
    return float(np.isfinite(values).mean()) if values.size else 0.0
