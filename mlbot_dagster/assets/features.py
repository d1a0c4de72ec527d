"""The feature table: point in time, z-normalised over a trailing window."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import numpy as np

from mlbot_core.config import Settings
from mlbot_core.market import CATALOGUE, CORE_SERIES
from mlbot_core.observability.sparkline import sparkline
from mlbot_core.observability.thumbnails import line_png
from mlbot_core.warehouse import PartitionOutcome, Warehouse, read_window
from mlbot_dagster import checks, metadata
from mlbot_dagster.assets import raw
from mlbot_dagster.partitions import monthly, split_months
from mlbot_dagster.resources import MarketData, WarehouseResource

GROUP = "features"
CHECKS = ("duplicates", "freshness", "lookahead")


def key(settings: Settings) -> dg.AssetKey:
    """Return the asset key of the feature set that is made and trained on."""
    return dg.AssetKey([GROUP, settings.models.features.set])


def series(settings: Settings) -> tuple[str, ...]:
    """Return the raw series that the chosen set may rest on, by its families: for the lineage, without loading it."""
    sets = settings.models.features.sets
    chosen, core = sets.get(settings.models.features.set), sets.get("core")
    if chosen is not None and core is not None and set(chosen.families) <= {*core.families} and not chosen.include:
        return CORE_SERIES
    return tuple(CATALOGUE)


def build(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the feature asset."""

    @dg.asset(
        key=key(settings),
        group_name=GROUP,
        description=(
            "Features of every bar from what was known at its decision time, z-normalised over a trailing window. "
            "The look-ahead check computes them again on data cut in the middle: nothing may change."
        ),
        deps=[raw.key(name) for name in series(settings)],
        partitions_def=monthly(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        kinds={"duckdb", "numba"},
        owners=metadata.OWNERS,
        tags={"mlbot/room": "features"},
        check_specs=checks.specs(key(settings), CHECKS),
    )
    def features(
        context: dg.AssetExecutionContext, warehouse: WarehouseResource, market_data: MarketData
    ) -> Iterator[dg.MaterializeResult]:
        from mlbot_core.features.dataset import DatasetRequest, materialize_features

        store = warehouse.open(market_data.clock)
        outcomes: list[PartitionOutcome] = []
        for market, months in split_months(context.partition_keys).items():
            request = DatasetRequest(market=market, months=months, **market_data.asked_now(context.run_id))
            outcomes += materialize_features(store, request, market_data.settings.models.features)
        extra: dict[str, Any] = {"dagster/column_schema": _schema(market_data.settings)}
        extra |= {
            name: outcomes[-1].info[name] for name in ("feature_hash", "features", "lookback_bars", "finite_share")
        }
        plot = _plot(store, outcomes, market_data.settings)
        metadata.describe(context, outcomes, market_data.name, plot=plot, extra=extra)
        yield dg.MaterializeResult(check_results=checks.results(outcomes, CHECKS))

    return [features]


def _schema(settings: Settings) -> dg.TableSchema:
    from mlbot_core.features.sets import configured_set

    chosen = configured_set(settings.models.features)
    columns = [
        (f.name, "double", f"{f.definition}; {f.unit}{', trailing z-score' if f.normalise == 'zscore' else ''}")
        for f in chosen.features
    ]
    return metadata.schema([*metadata.TIME_COLUMNS, ("late", "boolean", "known only after its decision"), *columns])


def _plot(store: Warehouse, outcomes: list[PartitionOutcome], settings: Settings) -> metadata.Plot | None:
    from mlbot_core.features.dataset import table_name
    from mlbot_core.features.sets import configured_set

    filled = [o for o in outcomes if o.rows]
    if not filled:
        return None
    chosen = configured_set(settings.models.features)
    market, months = next(iter(split_months(o.key.partition for o in filled).items()))
    scope = {"source": filled[0].key.source, "symbol": market.symbol, "timeframe": str(market.timeframe)}
    with store.read() as con:
        rows = read_window(con, table_name(chosen), scope, start_ms=months[0].start_ms, end_ms=months[-1].end_ms)
    # one of each family, as far as three lines can be told apart
    families = list({f.family: f.name for f in reversed(chosen.features) if f.normalise == "zscore"}.values())[:3]
    values = {name: np.asarray(rows.column(name).to_numpy(), dtype=np.float64) for name in families}
    return metadata.Plot(
        sparkline(list(values.values()), f"{', '.join(values)} of {market}, z-scores"),
        line_png(np.asarray(rows.column("ts").to_numpy()), values, f"Features of {market}", "z-score"),
    )
