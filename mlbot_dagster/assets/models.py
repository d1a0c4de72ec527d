"""Models: walk-forward out-of-fold forecasts, one partition a market and model type."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from mlbot_core.clock import parse_utc_ms
from mlbot_core.config import Settings
from mlbot_core.observability.sparkline import small_table
from mlbot_core.observability.thumbnails import bar_png
from mlbot_dagster import checks, metadata
from mlbot_dagster.assets import features, targets
from mlbot_dagster.partitions import all_months_of_the_market, per_model, split_models
from mlbot_dagster.resources import MarketData, WarehouseResource

GROUP = "models"
KEY = dg.AssetKey([GROUP, "forecasts"])
CHECKS = ("duplicates", "purge", "coverage")


class TrainConfig(dg.Config):
    """Walk-forward test period, ISO dates in UTC; empty: as early as possible, and to the end of what is stored."""

    start: str | None = None
    end: str | None = None


def build(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the forecast asset."""

    @dg.asset(
        key=KEY,
        group_name=GROUP,
        description=(
            "Out-of-fold forecasts of the direction model, retrained walk-forward; training labels that reach into a "
            "test window are purged. Also stores the newest model and registers its version."
        ),
        deps=[
            dg.AssetDep(features.key(settings), partition_mapping=all_months_of_the_market()),
            dg.AssetDep(targets.KEY, partition_mapping=all_months_of_the_market()),
        ],
        partitions_def=per_model(settings),
        kinds={"lightgbm", "duckdb"},
        owners=metadata.OWNERS,
        tags={"mlbot/room": "models"},
        check_specs=checks.specs(KEY, CHECKS),
    )
    def forecasts(
        context: dg.AssetExecutionContext, config: TrainConfig, warehouse: WarehouseResource, market_data: MarketData
    ) -> Iterator[dg.MaterializeResult]:
        from mlbot_core.models.training import TrainRequest, train

        ((market, model_type),) = split_models(context.partition_keys)
        request = TrainRequest(
            market_data.name,
            market,
            model_type,
            None if config.start is None else parse_utc_ms(config.start),
            None if config.end is None else parse_utc_ms(config.end),
            market_data.settle_delay_ms,
            market_data.clock.now_ms(),
            market_data.settings.threads,
            context.run_id,
        )

        def progress(done: int, total: int, row: dict[str, Any]) -> None:
            context.log.info(f"fold {done} of {total}: {row['test_rows']} bars, hit rate {row['hit_rate']:.3f}")

        trained = train(
            warehouse.open(market_data.clock),
            request,
            market_data.settings.models,
            market_data.settings.models_dir,
            progress,
        )
        table = trained.result.fold_table
        top = trained.result.importance.head(15)
        gains = list(zip(top["feature"], top["gain_share"], strict=True))
        plot = metadata.Plot(
            small_table(("feature", "share of gain"), {str(f): float(g) for f, g in gains[:8]}),
            bar_png(list(top["feature"]), list(top["gain_share"]), f"{context.partition_key}: share of gain"),
        )
        extra = {
            "model version": trained.version[:12],
            "folds": len(trained.split),
            "skipped folds": len(trained.split.skipped),
            "hit rate": trained.result.hits / max(1, trained.result.directional_rows),
            "fold table": dg.MetadataValue.md(_markdown(table)),
        }
        metadata.describe(context, [trained.outcome], market_data.name, plot=plot, extra=extra)
        yield dg.MaterializeResult(check_results=checks.results([trained.outcome], CHECKS))

    return [forecasts]


def _markdown(table: Any) -> str:
    columns = ["fold", "train_rows", "test_rows", "hit_rate", "log_loss", "base_log_loss"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in table[columns].to_dict("records"):
        cells = (f"{row[name]:.4f}" if isinstance(row[name], float) else str(row[name]) for name in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
