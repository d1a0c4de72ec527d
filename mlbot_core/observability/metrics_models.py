"""Champions: what the signed registry says of them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Final, get_args

from mlbot_core.clock import Clock
from mlbot_core.config import Settings
from mlbot_core.models.registry import FILE_NAME, open_registry
from mlbot_core.models.registry_state import Stage
from mlbot_core.observability.metrics import Readings, Since

_STAGES: Final[tuple[str, ...]] = get_args(Stage)


class RegistryMetrics:
    """Reads the registry, every event of which is verified; a chain that was tampered with is an error here too."""

    name = "registry"

    def __init__(self, settings: Settings, clock: Clock, environ: Mapping[str, str], every_s: float = 60.0) -> None:
        self.every_s = every_s
        self._shared = bool(environ.get("MLBOT_PG_URL"))
        self._path = settings.home / FILE_NAME
        self._registry = open_registry(settings.home, clock, environ)

    def read(self) -> Readings | None:
        """Return the champions; None where there is no registry.

        Raises
        ------
        RegistryTamperedError, RegistryError
            If it cannot be believed or read.
        """
        if not self._shared and not self._path.exists():
            return None
        state = self._registry.state()
        readings = Readings()
        stages: Counter[str] = Counter(entry.stage for entry in state.models.values())
        for stage in _STAGES:
            readings.put("mlbot_models", float(stages[stage]), stage=stage)
        for slot, version in state.champions.items():
            entry = state.models[version]
            here = {
                "source": slot.source,
                "symbol": slot.symbol,
                "timeframe": slot.timeframe,
                "model_type": slot.model_type,
            }
            readings.put("mlbot_model_champion_age_seconds", Since(entry.registered_ms), **here)
            data_as_of = Since(entry.registration.data_as_of_ms)
            readings.put("mlbot_model_champion_data_age_seconds", data_as_of, **here)
            facts = json.loads(entry.gate.text) if entry.gate is not None else {}
            for metric, fact in (("mlbot_model_champion_dsr", "dsr"), ("mlbot_model_champion_trials", "n_trials")):
                value = facts.get(fact)
                readings.put(metric, math.nan if value is None else float(value), **here)
        return readings
