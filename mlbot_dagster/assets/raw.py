"""Raw series: what was pulled, with every version kept."""

from collections.abc import Iterator

import dagster as dg
import numpy as np
from pydantic import Field

from mlbot_core.config import Settings
from mlbot_core.market import CATALOGUE, SeriesSpec
from mlbot_core.market.quality import QUALITY_CHECKS
from mlbot_core.observability.sparkline import sparkline
from mlbot_core.observability.thumbnails import line_png
from mlbot_core.timeframe import Market, Timeframe
from mlbot_core.warehouse import PartitionOutcome, Warehouse, latest
from mlbot_core.warehouse.ingest import IngestRequest, ingest
from mlbot_dagster import checks, metadata
from mlbot_dagster.partitions import monthly, split_months
from mlbot_dagster.resources import MarketData, WarehouseResource

GROUP = "raw"
CHECKS = tuple(QUALITY_CHECKS)
ADVISORY = tuple(name for name, check in QUALITY_CHECKS.items() if check.severity == "advisory")


class PullConfig(dg.Config):
    """How a pull treats what is stored."""

    skip_complete: bool = Field(
        default=False,
        description="Ask only for months that are not stored in full; by default all is read again, which finds "
        "restated bars.",
    )


def key(series: str) -> dg.AssetKey:
    """Return the asset key of a series."""
    return dg.AssetKey([GROUP, series])


def build(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return one asset a series of the catalogue."""
    return [_asset(spec, settings) for spec in CATALOGUE.values()]


def _asset(spec: SeriesSpec, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        key=key(spec.name),
        group_name=GROUP,
        description=f"{spec.title}. {spec.description}",
        partitions_def=monthly(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        kinds={"duckdb", "python"},
        owners=metadata.OWNERS,
        tags={"mlbot/room": "warehouse"},
        metadata={"dagster/column_schema": _schema(spec), "endpoint": spec.endpoint or "recorded history only"},
        check_specs=checks.specs(key(spec.name), CHECKS, ADVISORY),
    )
    def pull(
        context: dg.AssetExecutionContext, config: PullConfig, warehouse: WarehouseResource, market_data: MarketData
    ) -> Iterator[dg.MaterializeResult]:
        store = warehouse.open(market_data.clock)
        outcomes: list[PartitionOutcome] = []
        source = market_data.open()
        for market, months in split_months(context.partition_keys).items():
            request = IngestRequest(
                spec.name,
                market,
                months,
                market_data.settings.intervals.quality,
                market_data.settle_delay_ms,
                context.run_id,
                market_data.identity,
                config.skip_complete,
            )
            outcomes += ingest(store, source, market_data.clock, request)
        plot = _plot(store, spec, outcomes)
        metadata.describe(context, outcomes, market_data.name, plot=plot)
        yield dg.MaterializeResult(check_results=checks.results(outcomes, CHECKS, ADVISORY))

    return pull


def _schema(spec: SeriesSpec) -> dg.TableSchema:
    bitemporal = (
        ("observed_at", "bigint", "when we first saw this version, UTC ms"),
        ("known_at", "bigint", "from when a decision may use it, UTC ms"),
        ("capture", "string", "live, or backfill when only seen as history"),
    )
    values = [(column.name, "double", column.unit) for column in spec.columns]
    return metadata.schema([*metadata.TIME_COLUMNS, *bitemporal, *values])


def _plot(store: Warehouse, spec: SeriesSpec, outcomes: list[PartitionOutcome]) -> metadata.Plot | None:
    filled = [o for o in outcomes if o.rows and o.info["timeframe"]]
    if not filled:
        return None
    market = Market.parse(filled[-1].key.partition.partition("|")[0])
    stored = Timeframe.parse(str(filled[-1].info["timeframe"]))
    with store.read() as con:
        bars = latest(
            con,
            spec.name,
            source=filled[0].key.source,
            symbol=market.symbol,
            timeframe=stored,
            start_ms=int(filled[0].info["first_ts"]),
            end_ms=int(filled[-1].info["last_ts"]) + 1,
        )
    shown = ["close"] if "close" in spec.column_names else list(spec.column_names[:2])
    values = {name: np.asarray(bars.column(name).to_numpy(), dtype=np.float64) for name in shown}
    unit = next(column.unit for column in spec.columns if column.name == shown[0])
    title = f"{spec.title}, {market.symbol} {stored}"
    caption = f"{title}: {', '.join(shown)} [{unit}]"
    return metadata.Plot(
        sparkline(list(values.values()), caption),
        line_png(np.asarray(bars.column("ts").to_numpy()), values, title, unit),
    )
