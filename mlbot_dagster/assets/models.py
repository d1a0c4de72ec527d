"""Models: walk-forward out-of-fold forecasts, one partition a market and model type, and what stacks them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dagster as dg

from mlbot_core.clock import parse_utc_ms
from mlbot_core.config import Settings
from mlbot_core.config.models import META_MODEL
from mlbot_core.observability.sparkline import small_table
from mlbot_core.observability.thumbnails import bar_png, markdown_image
from mlbot_core.warehouse import Warehouse
from mlbot_dagster import checks, metadata
from mlbot_dagster.assets import features, targets
from mlbot_dagster.partitions import (
    TRAINED_MODELS,
    every_model_of_the_symbol,
    of_the_same_market,
    per_model,
    split_models,
)
from mlbot_dagster.resources import MarketData, WarehouseResource

GROUP = "models"
KEY = dg.AssetKey([GROUP, "forecasts"])
META_KEY = dg.AssetKey([GROUP, "meta"])
CHECKS = ("duplicates", "purge", "coverage")

Context = dg.AssetExecutionContext | dg.OpExecutionContext

_COLUMNS = (
    *metadata.TIME_COLUMNS,
    ("model_type", "string", "kind of model"),
    ("model_version", "string", "hash of everything that decides the bytes of the model"),
    ("fold", "bigint", "number of the walk-forward fold that forecast the bar"),
    ("p_down", "double", "probability that the lower barrier is touched first"),
    ("p_neutral", "double", "probability that neither barrier is touched"),
    ("p_up", "double", "probability that the upper barrier is touched first"),
    ("score", "double", "expected log return over the horizon, barrier widths"),
    ("score_sd", "double", "its standard deviation, barrier widths"),
    ("train_end_ms", "bigint", "end of the training window, UTC ms"),
)


class PeriodConfig(dg.Config):
    """Walk-forward test period, ISO dates in UTC; empty: as early as possible, and to the end of what is stored."""

    start: str | None = None
    end: str | None = None


class TrainConfig(PeriodConfig):
    """The period, and whether parameters are searched before it; ``trials`` instead of the configured number."""

    optimize: bool = False
    trials: int | None = None


def build(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the forecast assets."""

    @dg.asset(
        key=KEY,
        group_name=GROUP,
        description=(
            "Out-of-fold forecasts, retrained walk-forward; training labels that reach into a test window are purged. "
            "Also stores the models of all folds and the newest one, and registers its version."
        ),
        deps=[
            dg.AssetDep(features.key(settings), partition_mapping=of_the_same_market()),
            dg.AssetDep(targets.KEY, partition_mapping=of_the_same_market()),
        ],
        partitions_def=per_model(settings, TRAINED_MODELS),
        kinds={"lightgbm", "pytorch", "duckdb"},
        owners=metadata.OWNERS,
        tags={"mlbot/room": "models"},
        metadata={"dagster/column_schema": metadata.schema(_COLUMNS)},
        check_specs=checks.specs(KEY, CHECKS),
    )
    def forecasts(
        context: dg.AssetExecutionContext, config: TrainConfig, warehouse: WarehouseResource, market_data: MarketData
    ) -> Iterator[dg.MaterializeResult]:
        from mlbot_core.models.training import train
        from mlbot_core.research.optimized_training import train_optimized

        store, asked, chosen = warehouse.open(market_data.clock), request(context, config, market_data), market_data
        say = progress(context)
        if config.optimize:
            trained, tuned = train_optimized(store, asked, chosen.settings, config.trials, searching(context), say)
            yield from _shown(context, store, asked, trained, market_data, _search(tuned))
        else:
            trained = train(store, asked, chosen.settings.models, chosen.settings.models_dir, say)
            yield from _shown(context, store, asked, trained, market_data)

    @dg.asset(
        key=META_KEY,
        group_name=GROUP,
        description=(
            "The meta-model: stacks the out-of-fold forecasts of all models and timeframes of the symbol, as of their "
            "close, with their age and disagreement; it never sees a forecast of a bar that its model had trained on."
        ),
        deps=[
            dg.AssetDep(KEY, partition_mapping=every_model_of_the_symbol(settings)),
            dg.AssetDep(targets.KEY, partition_mapping=of_the_same_market()),
        ],
        partitions_def=per_model(settings, [META_MODEL]),
        kinds={"numpy", "duckdb"},
        owners=metadata.OWNERS,
        tags={"mlbot/room": "models"},
        metadata={"dagster/column_schema": metadata.schema(_COLUMNS)},
        check_specs=checks.specs(META_KEY, CHECKS),
    )
    def meta(
        context: dg.AssetExecutionContext, config: PeriodConfig, warehouse: WarehouseResource, market_data: MarketData
    ) -> Iterator[dg.MaterializeResult]:
        from mlbot_core.models.meta_training import base_timeframes, train_meta

        store, asked = warehouse.open(market_data.clock), request(context, config, market_data)
        chosen = market_data.settings
        trained = train_meta(
            store,
            asked,
            chosen.models,
            base_timeframes(chosen.models.meta, chosen.intervals.timeframes),
            chosen.models_dir,
            progress(context),
        )
        yield from _shown(context, store, asked, trained, market_data)

    return [forecasts, meta]


def request(context: Context, config: PeriodConfig, market_data: MarketData) -> Any:
    """Return what the core needs to know of a model's run."""
    from mlbot_core.models.training_data import TrainRequest

    ((market, model_type),) = split_models(context.partition_keys)
    return TrainRequest(
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


def progress(context: Context) -> Callable[[int, int, dict[str, Any]], None]:
    """Return what is told of every fold."""

    def say(done: int, total: int, row: dict[str, Any]) -> None:
        # no scores here: whoever sees them has made a trial, and it is counted when all folds are done
        context.log.info(f"fold {done} of {total}: {row['test_rows']} bars")

    return say


def searching(context: Context) -> Callable[[int, int, float, bool], None]:
    """Return what is told of every trial."""

    def say(done: int, total: int, best: float, pruned: bool) -> None:
        context.log.info(
            f"trial {done} of {total}{', given up early' if pruned else ''}: best utility {best:.4f} a year"
        )

    return say


def _search(tuned: Any) -> dict[str, Any]:
    """Return what a search for parameters shows of itself."""
    from mlbot_core.research.tuning_plot import tuning_png

    return {
        "search": dg.MetadataValue.md(markdown_image(tuning_png(tuned), "trials and parameters")),
        "search: period": metadata.span(tuned.start_ms, tuned.end_ms),
        "search: trials": len(tuned.trials),
        "search: given up early": int(tuned.trials["pruned"].sum()),
        "search: yearly utility": tuned.utility,
        "search: yearly utility as configured": tuned.configured_utility,
        "search: parameters": dg.MetadataValue.json(dict(tuned.params)),
        "search: study": tuned.study,
    }


def _shown(
    context: dg.AssetExecutionContext,
    store: Warehouse,
    request: Any,
    trained: Any,
    market_data: MarketData,
    further: Mapping[str, Any] | None = None,
) -> Iterator[dg.MaterializeResult]:
    from mlbot_core.models.registration import register_trained

    entry = register_trained(store, request, trained, market_data.settings.models_dir)
    # forecasts that failed a check are no evidence of anything: no backtest takes them
    trial = _counted(store, request, market_data) if trained.outcome.passed else "not counted: a check failed"
    top = trained.result.importance.head(15)
    gains = list(zip(top["feature"], top["gain_share"], strict=True))
    plot = metadata.Plot(
        small_table(("feature", "share of importance"), {str(f): float(g) for f, g in gains[:8]}),
        bar_png(list(top["feature"]), list(top["gain_share"]), f"{context.partition_key}: share of importance"),
    )
    extra = {
        "model version": trained.version[:12],
        "stage": "not registered" if entry is None else entry.stage,
        "folds": len(trained.split),
        "skipped folds": len(trained.split.skipped),
        "trial": trial,
        "hit rate": trained.result.hits / max(1, trained.result.directional_rows),
        "rank IC, mean of folds": float(trained.result.fold_table["ic"].mean()),
        "fold table": dg.MetadataValue.md(_markdown(trained.result.fold_table)),
        **(further or {}),
    }
    metadata.describe(context, [trained.outcome], market_data.name, plot=plot, extra=extra)
    yield dg.MaterializeResult(check_results=checks.results([trained.outcome], CHECKS))


def _counted(store: Warehouse, request: Any, market_data: MarketData) -> str:
    """Count the trained version in the trial ledger before its scores are shown; say which row it is."""
    from mlbot_core.backtest.dataset import BacktestRequest, count_trained
    from mlbot_core.validation.trials import open_ledger

    asked = BacktestRequest(
        request.source,
        request.market,
        request.model_type,
        request.settle_delay_ms,
        request.known_by_ms,
        request.run_id,
    )
    chosen = market_data.settings
    done = count_trained(store, asked, chosen.fees, chosen.risk, open_ledger(store.path.parent, store.clock))
    return f"number {done.row.seq} of {done.row.namespace}{'' if done.new else ', as before'}"


def _markdown(table: Any) -> str:
    columns = ["fold", "train_rows", "test_rows", "hit_rate", "ic", "log_loss", "base_log_loss"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in table[columns].to_dict("records"):
        cells = (f"{row[name]:.4f}" if isinstance(row[name], float) else str(row[name]) for name in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
