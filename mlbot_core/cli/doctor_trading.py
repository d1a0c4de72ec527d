"""What ``mlbot doctor`` says about the venue where orders go: the findings that also decide about real money."""

from __future__ import annotations

from mlbot_core.cli.doctor import Finding
from mlbot_core.clock import Clock
from mlbot_core.config import Settings
from mlbot_core.execution.broker import Venue
from mlbot_core.execution.preflight import preflight
from mlbot_core.execution.venues import venue_of


def findings(settings: Settings, clock: Clock) -> list[Finding]:
    """Return the findings about the configured venue; none for the emulator, where nothing is at stake."""
    venue = venue_of(settings)
    if venue is Venue.EMULATOR:
        return []
    return [Finding(f"{venue}: {check.name}", check.state, check.text) for check in preflight(settings, clock)]
