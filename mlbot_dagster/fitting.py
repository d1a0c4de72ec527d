"""The heavy half of training by itself: fit the folds of one market and model, which may happen on another machine.

``train`` finds folds that were fitted already and fits none of them again, so a training is shared by two: this job,
in a pod (:mod:`mlbot_dagster.pods`), leaves models in the folder that all see, and ``train`` beside the warehouse
stores forecasts, registers the version and counts the trial.

A pod has no store to read: the variable :data:`EXPORTS` names the folder where ``mlbot db export`` put copies, of which
the newest is loaded into the pod's own home, which ends with it. Where the variable is not set, which is everywhere but
on a cluster, there is no such job.
"""

import os
from pathlib import Path
from typing import Final

import dagster as dg

from mlbot_core.config import Settings
from mlbot_core.errors import MissingDataError, UsageError
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.backup import MANIFEST, import_store
from mlbot_dagster import pods
from mlbot_dagster.assets import models
from mlbot_dagster.partitions import TRAINED_MODELS, per_model, split_models
from mlbot_dagster.resources import MarketData, WarehouseResource

JOB: Final = "fit"
EXPORTS: Final = "MLBOT_EXPORTS"
# A machine that went away is no reason to stop: what it had fitted is kept. An error of ours would come again.
_AGAIN: Final = {
    "dagster/max_retries": "2",
    "dagster/retry_strategy": "ALL_STEPS",
    "dagster/retry_on_asset_or_op_failure": "false",
}


@dg.op(description="Fit the folds of a market and model, or find them fitted; nothing but their models is kept.")
def fit_folds(
    context: dg.OpExecutionContext, config: models.TrainConfig, warehouse: WarehouseResource, market_data: MarketData
) -> None:
    """Fit, and say what was fitted."""
    from mlbot_core.models.training import train
    from mlbot_core.research.optimized_training import train_optimized

    store, chosen = warehouse.open(market_data.clock), market_data.settings
    context.log.info(f"loaded {load_newest(store, Path(os.environ[EXPORTS]))}")
    asked, say = models.request(context, config, market_data), models.progress(context)
    if config.optimize:
        trained, _ = train_optimized(store, asked, chosen, config.trials, models.searching(context), say)
    else:
        trained = train(store, asked, chosen.models, chosen.models_dir, say)
    context.log.info(f"version {trained.version[:12]}: {len(trained.split)} folds; train stores what they forecast")


def load_newest(store: Warehouse, exports: Path) -> Path:
    """Load the newest export into a home that holds nothing yet; return its folder.

    Parameters
    ----------
    exports
        A folder of exports whose names sort by time, like ``2025-06-30``.

    Raises
    ------
    UsageError
        If the home has a store: the run was not sent to a pod, and this is the owner's home.
    MissingDataError
        If there is no export.
    """
    if store.path.exists():
        raise UsageError(
            f"there is a store at {store.path}: {JOB} runs in a pod, whose home is empty, and here it would replace "
            f"forecasts; run it with its tag {pods.TAG} under PodRunLauncher, or `train` instead"
        )
    # an export appears whole or not at all: one that is being written has no such name yet
    whole = sorted(path.parent for path in exports.glob(f"*/{MANIFEST}") if ".partial-" not in path.parent.name)
    if not whole:
        raise MissingDataError(f"there is no export in {exports}; write one: mlbot db export {exports}/2025-06-30")
    import_store(store, whole[-1])
    return whole[-1]


def build(settings: Settings) -> list[dg.JobDefinition]:
    """Return the job, one partition a market and model type, each of which asks for a pod of its model's kind."""
    if not os.environ.get(EXPORTS):
        return []

    def tags(key: str) -> dict[str, str]:
        ((_, model),) = split_models([key])
        return {pods.TAG: model, **_AGAIN}

    @dg.job(
        name=JOB,
        description="Fit the folds of a model in a pod of its own; then run `train`, which finds them.",
        config=dg.PartitionedConfig(
            partitions_def=per_model(settings, TRAINED_MODELS),
            run_config_for_partition_key_fn=lambda _: {},
            tags_for_partition_key_fn=tags,
        ),
        executor_def=dg.in_process_executor,
    )
    def fit() -> None:
        fit_folds()

    return [fit]
