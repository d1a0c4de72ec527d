"""The target table: labels with the interval of time each answer rests on."""

from collections.abc import Iterator

import dagster as dg

from mlbot_core.config import Settings
from mlbot_core.observability.sparkline import small_table
from mlbot_core.observability.thumbnails import bar_png
from mlbot_core.warehouse import PartitionOutcome
from mlbot_dagster import checks, metadata
from mlbot_dagster.assets import raw
from mlbot_dagster.partitions import monthly, split_months
from mlbot_dagster.resources import MarketData, WarehouseResource

GROUP = "targets"
KEY = dg.AssetKey([GROUP, "labels"])
CHECKS = ("duplicates", "freshness", "lookahead")

_SQL_TYPES = {"int64": "bigint", "float64": "double"}
# of the main targets; which others there are follows from the configuration and is told with each materialization
_COLUMNS = (
    ("t0", "bigint", "start of the label interval: the bar's close, UTC ms"),
    ("tb_label", "double", "triple barrier: 1 up, -1 down, 0 neither; null unknown yet"),
    ("tb_t1", "bigint", "when the label is known, UTC ms; -1 unknown yet"),
    ("tb_ret", "double", "log return to the touch or the vertical barrier"),
    ("tb_width", "double", "log distance of the barriers"),
    ("sigma", "double", "trailing standard deviation of one-bar log returns"),
    ("var_ret", "double", "forward log return in horizon standard deviations"),
    ("var_t1", "bigint", "when that is known, UTC ms; -1 unknown yet"),
)


def build(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the target asset."""

    @dg.asset(
        key=KEY,
        group_name=GROUP,
        description=(
            "Triple-barrier direction (up, down, neutral) and volatility-adjusted forward return of every bar. "
            "The last bars' labels are unknown until the following bars exist; make the month again then."
        ),
        deps=[raw.key("price")],
        partitions_def=monthly(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        kinds={"duckdb", "numba"},
        owners=metadata.OWNERS,
        tags={"mlbot/room": "targets"},
        metadata={"dagster/column_schema": metadata.schema([*metadata.TIME_COLUMNS, *_COLUMNS])},
        check_specs=checks.specs(KEY, CHECKS),
    )
    def labels(
        context: dg.AssetExecutionContext, warehouse: WarehouseResource, market_data: MarketData
    ) -> Iterator[dg.MaterializeResult]:
        from mlbot_core.features.dataset import DatasetRequest
        from mlbot_core.targets.build import describe_targets
        from mlbot_core.targets.dataset import materialize_targets

        store = warehouse.open(market_data.clock)
        outcomes: list[PartitionOutcome] = []
        for market, months in split_months(context.partition_keys).items():
            request = DatasetRequest(market=market, months=months, **market_data.asked_now(context.run_id))
            outcomes += materialize_targets(store, request, market_data.settings.models.targets)
        shares = _class_balance(outcomes)
        plot = None
        if shares:
            plot = metadata.Plot(
                small_table(("label", "share"), shares),
                bar_png(list(shares), list(shares.values()), "share of labels"),
            )
        described = describe_targets(market_data.settings.models.targets)
        columns = [(row["name"], _SQL_TYPES[row["type"]], row["definition"]) for row in described]
        extra = {
            "dagster/column_schema": metadata.schema(columns),
            "unknown labels": sum(int(o.info["unknown_labels"]) for o in outcomes),
            **{f"share {name}": share for name, share in shares.items()},
        }
        metadata.describe(context, outcomes, market_data.name, plot=plot, extra=extra)
        yield dg.MaterializeResult(check_results=checks.results(outcomes, CHECKS))

    return [labels]


def _class_balance(outcomes: list[PartitionOutcome]) -> dict[str, float]:
    rows = sum(o.rows for o in outcomes)
    if not rows:
        return {}
    names = outcomes[0].info["classes"]
    return {name: sum(o.info["classes"][name] * o.rows for o in outcomes) / rows for name in names}
