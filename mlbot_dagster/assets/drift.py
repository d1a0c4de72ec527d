"""Drift: stored features of each month against what the newest model was trained on."""

from collections.abc import Iterator

import dagster as dg

from mlbot_core.config import Settings
from mlbot_core.observability.sparkline import small_table
from mlbot_core.observability.thumbnails import bar_png
from mlbot_core.warehouse import PartitionOutcome
from mlbot_dagster import checks, metadata
from mlbot_dagster.assets import features, models
from mlbot_dagster.partitions import TRAINED_MODELS, monthly, of_the_same_market, split_months
from mlbot_dagster.resources import MarketData, WarehouseResource

GROUP = "models"
KEY = dg.AssetKey([GROUP, "drift"])
CHECKS = ("drift", "ood")

_COLUMNS = (
    ("feature", "string", "name of the feature"),
    ("psi", "double", "population stability index against the training window"),
    ("ks", "double", "Kolmogorov-Smirnov distance from the training window"),
)


class DriftRunConfig(dg.Config):
    """Which model's training window is compared with."""

    model_type: str = TRAINED_MODELS[0]


def build(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the drift asset."""

    @dg.asset(
        key=KEY,
        group_name=GROUP,
        description=(
            "Population stability index and Kolmogorov-Smirnov distance of every feature, and an out-of-distribution "
            "score of every bar, against the training window of the newest model."
        ),
        deps=[features.key(settings), dg.AssetDep(models.KEY, partition_mapping=of_the_same_market())],
        partitions_def=monthly(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        kinds={"duckdb", "numpy"},
        owners=metadata.OWNERS,
        tags={"mlbot/room": "features"},
        metadata={"dagster/column_schema": metadata.schema(_COLUMNS)},
        # a drifted month is news for the risk state and for people, not a fault of the data
        check_specs=checks.specs(KEY, CHECKS, CHECKS),
    )
    def drift(
        context: dg.AssetExecutionContext,
        config: DriftRunConfig,
        warehouse: WarehouseResource,
        market_data: MarketData,
    ) -> Iterator[dg.MaterializeResult]:
        from mlbot_core.features.dataset import DatasetRequest
        from mlbot_core.features.drift_dataset import materialize_drift

        store = warehouse.open(market_data.clock)
        chosen = market_data.settings.models
        outcomes: list[PartitionOutcome] = []
        for market, months in split_months(context.partition_keys).items():
            request = DatasetRequest(market=market, months=months, **market_data.asked_now(context.run_id))
            outcomes += materialize_drift(store, request, chosen.features, chosen.drift, config.model_type)
        shares = {o.key.partition: float(o.checks[0].detail["share"]) for o in outcomes}
        plot = metadata.Plot(
            small_table(("month", "share of features that drifted"), dict(list(shares.items())[-8:])),
            bar_png(list(shares)[-24:], list(shares.values())[-24:], "share of features that drifted"),
        )
        extra = {key: outcomes[-1].info[key] for key in ("model_version", "train_start", "train_end")}
        metadata.describe(context, outcomes, market_data.name, plot=plot, extra=extra)
        yield dg.MaterializeResult(check_results=checks.results(outcomes, CHECKS, CHECKS))

    return [drift]
