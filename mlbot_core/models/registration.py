"""A trained model enters the registry as a candidate."""

from __future__ import annotations

from pathlib import Path

from mlbot_core.models.registry import open_registry
from mlbot_core.models.registry_events import Slot
from mlbot_core.models.registry_state import Entry
from mlbot_core.models.training import TrainOutcome
from mlbot_core.models.training_data import TrainRequest
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.references import stored_identity


def register_trained(
    warehouse: Warehouse, request: TrainRequest, trained: TrainOutcome, models_dir: Path
) -> Entry | None:
    """Register a trained version; one that is there already stays as it is.

    Returns
    -------
    Entry or None
        None where nothing was trained for what comes after the data: such a version cannot be loaded.

    Raises
    ------
    RegistryTamperedError
        If the registry was tampered with: nothing is added to it.
    """
    if trained.result.final_model is None:
        return None
    with warehouse.read() as con:
        identity = stored_identity(con, request.source) or ""
    return open_registry(warehouse.path.parent, warehouse.clock).register(
        trained.version,
        slot=Slot(**request.scope),
        identity=identity,
        start_ms=trained.period[0],
        end_ms=trained.period[1],
        data_as_of_ms=request.known_by_ms,
        inputs=dict(trained.inputs),
        models_dir=models_dir,
        run_id=request.run_id,
    )
