"""Search parameters before the first test window, then walk forward with the best of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from mlbot_core.config import Settings
from mlbot_core.models.base import model_class
from mlbot_core.models.training import TrainOutcome, train_on
from mlbot_core.models.training_data import TrainRequest, load_training_set, period_to_test
from mlbot_core.models.walkforward import Progress
from mlbot_core.research.tuning import Progress as TuningProgress
from mlbot_core.research.tuning import Tuned, tune
from mlbot_core.validation.namespaces import namespace_of
from mlbot_core.validation.trials import open_ledger
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.references import stored_identity

# rows before the first test window that are lost to the embargo and to labels that are still open
_MARGIN_DAYS: Final = 10


def train_optimized(
    warehouse: Warehouse,
    request: TrainRequest,
    settings: Settings,
    trials: int | None = None,
    tuning_progress: TuningProgress | None = None,
    progress: Progress | None = None,
) -> tuple[TrainOutcome, Tuned]:
    """Search, then train; every trial is counted in the ledger of the warehouse's home.

    Parameters
    ----------
    trials
        Parameter sets to try instead of ``tuning.trials``; those of an earlier search of the same data count.

    Raises
    ------
    UsageError
        If the model type cannot be tuned.
    MissingDataError, QualityRefusedError, LeakError, LedgerTamperedError
        As :func:`mlbot_core.research.tuning.tune` and :func:`mlbot_core.models.training.train`.
    """
    home: Path = warehouse.path.parent
    models = settings.models
    data = load_training_set(warehouse, request, models, model_class(request.model_type).target)
    # what is searched on lies before the first test window: without a start asked for it leaves room for both
    days = max(models.walk_forward.of(request.model_type).min_train_days, models.tuning.min_days + _MARGIN_DAYS)
    start_ms, _ = period_to_test(data, request, days)
    request = replace(request, start_ms=start_ms)
    with warehouse.read() as con:
        namespace = namespace_of(request.source, stored_identity(con, request.source) or "")
    tuned = tune(
        data,
        request,
        models,
        settings.fees,
        open_ledger(home, warehouse.clock),
        home,
        start_ms,
        namespace=namespace,
        trials=trials,
        progress=tuning_progress,
    )
    return train_on(warehouse, request, tuned.models, data, settings.models_dir, progress), tuned
