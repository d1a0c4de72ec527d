"""Explanations: what the newest models rest on, and whether their forecasts still hold."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from mlbot_core.config import Settings
from mlbot_core.config.models import META_MODEL
from mlbot_core.observability.sparkline import small_table
from mlbot_core.observability.thumbnails import bar_png, markdown_image
from mlbot_dagster import checks, metadata
from mlbot_dagster.assets import models
from mlbot_dagster.partitions import TRAINED_MODELS, per_model, split_models, the_same_model
from mlbot_dagster.resources import MarketData, WarehouseResource

KEY = dg.AssetKey([models.GROUP, "explanations"])
CHECKS = ("forecast_drift",)

_COLUMNS = (
    ("feature", "string", "name of the feature"),
    ("gain_share", "double", "share of the training gain, mean over all folds"),
    ("permutation", "double", "skill that is lost when the feature is shuffled in time, out of fold"),
    ("permutation_sd", "double", "its standard deviation over the newest folds"),
    ("contribution", "double", "mean absolute contribution to a forecast, out of fold"),
)


def build(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the explanation asset."""

    @dg.asset(
        key=KEY,
        group_name=models.GROUP,
        description=(
            "Permutation importance and contributions of every feature on bars that trained nothing, the lift of the "
            "forecasts over what came of them, and the drift of their distribution from fold to fold."
        ),
        deps=[
            dg.AssetDep(models.KEY, partition_mapping=the_same_model(TRAINED_MODELS)),
            dg.AssetDep(models.META_KEY, partition_mapping=the_same_model([META_MODEL])),
        ],
        partitions_def=per_model(settings),
        kinds={"duckdb", "numpy"},
        owners=metadata.OWNERS,
        tags={"mlbot/room": "models"},
        metadata={"dagster/column_schema": metadata.schema(_COLUMNS)},
        # forecasts that drifted are news for people, not a fault of the data
        check_specs=checks.specs(KEY, CHECKS, CHECKS),
    )
    def explanations(
        context: dg.AssetExecutionContext, warehouse: WarehouseResource, market_data: MarketData
    ) -> Iterator[dg.MaterializeResult]:
        from mlbot_core.models.explanations import explain_newest
        from mlbot_core.models.lift_plot import lift_png

        ((market, model_type),) = split_models(context.partition_keys)
        request = models.request(context, models.PeriodConfig(), market_data)
        done = explain_newest(warehouse.open(market_data.clock), request, market_data.settings)
        top = done.features.head(15)
        title = f"{market} {model_type}: loss of skill when shuffled ({done.metric})"
        plot = metadata.Plot(_glance(done.features), bar_png(list(top["feature"]), list(top["permutation"]), title))
        extra = {
            "lift": dg.MetadataValue.md(markdown_image(lift_png(done.lift, f"{market} {model_type}"), "lift")),
            "model version": str(done.outcome.info["model_version"])[:12],
            "folds": str(done.outcome.info["folds"]),
        }
        metadata.describe(context, [done.outcome], market_data.name, plot=plot, extra=extra)
        yield dg.MaterializeResult(check_results=checks.results([done.outcome], CHECKS, CHECKS))

    return [explanations]


def _glance(features: Any) -> str:
    rows = features.head(8)
    values = {str(f): float(v) for f, v in zip(rows["feature"], rows["permutation"], strict=True)}
    return small_table(("feature", "loss of skill when shuffled"), values)
