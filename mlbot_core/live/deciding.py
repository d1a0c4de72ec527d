"""Whose forecast decides now: what an operator wants to know before anything else.

Said by ``python -m mlbot_core.live.deciding``.
"""

from __future__ import annotations

import sys

from mlbot_core.clock import Clock, clock_from_env
from mlbot_core.config import Settings, load_settings
from mlbot_core.config.models import META_MODEL
from mlbot_core.errors import MlbotError
from mlbot_core.live.chosen import of_slot
from mlbot_core.models.registry import open_registry
from mlbot_core.models.registry_events import Slot


def decides(settings: Settings, clock: Clock) -> str:
    """Say whose forecast decides now, or what to run so that one can; nothing is loaded.

    Raises
    ------
    RegistryTamperedError, RegistryError
        If the registry cannot be believed or read.
    """
    source, market, kind = settings.intervals.source, settings.decision_market, settings.execution.model
    slot = Slot(source, market.symbol, str(market.timeframe), kind)
    speaking = of_slot(open_registry(settings.home, clock).state(), slot)
    if speaking:
        entry, role = speaking[0]
        return f"{kind} {entry.version[:12]} of {market} decides, a {role}"
    models = "all" if kind == META_MODEL else kind
    return (
        f"nothing will be traded: no {kind} of {market} from {source} is trained, and config/execution.yaml lets no "
        f"other model decide; run: mlbot backfill --interval {market.timeframe}, then mlbot train --interval "
        f"{market.timeframe} --model {models}"
    )


def main() -> int:
    """Print it; what the registry refuses goes to standard error, in one line."""
    try:
        print(decides(load_settings(), clock_from_env()))  # noqa: T201 - a command
    except MlbotError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
