"""What each Coinglass plan serves: calls per minute, finest interval, depth of history.

Source: the plan table of the Coinglass API documentation ("Intervals" and pricing pages, v4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mlbot_core.timeframe import DAY_MS, Timeframe

# As written in requests; 2h is missing on purpose: whether an endpoint takes it is probed.
INTERVALS: Final = ("1m", "3m", "5m", "15m", "30m", "1h", "4h", "6h", "8h", "12h", "1d")


@dataclass(frozen=True)
class Plan:
    """The limits of one plan.

    Parameters
    ----------
    level
        Its name in capitals, as ``/api/user/account/subscription`` writes it.
    per_minute
        Calls allowed per minute; None when unknown or by contract.
    days
        Days of history per interval, None for all of it; an interval that is not there is refused.
        None as a whole: no limit is known, none is applied.
    """

    level: str
    per_minute: int | None
    days: Mapping[str, int | None] | None

    def allows(self, timeframe: Timeframe) -> bool:
        """Return whether bars of this length are in the plan."""
        return self.days is None or str(timeframe) in self.days

    def depth_days(self, timeframe: Timeframe) -> int | None:
        """Return the days of history at this interval; None when there is no limit."""
        return None if self.days is None else self.days.get(str(timeframe))

    def earliest_ms(self, timeframe: Timeframe, now_ms: int) -> int | None:
        """Return the first bar the plan serves at ``now_ms``; None when there is no limit.

        The depth counts the open bar: 180 days at 4h are exactly 1080 rows, the open one included.
        """
        days = self.depth_days(timeframe)
        if days is None:
            return None
        return timeframe.floor(now_ms) - (days * DAY_MS // timeframe.ms - 1) * timeframe.ms

    def includes(self, smallest: str) -> bool:
        """Return whether the plan is ``smallest`` or a bigger one; an unknown plan is taken to include everything."""
        levels = list(PLANS)
        return self.level not in PLANS or levels.index(self.level) >= levels.index(smallest.upper())

    @property
    def finest(self) -> str:
        """The shortest interval in the plan, or ``any``."""
        if self.days is None:
            return "any"
        return str(min(Timeframe.parse(interval) for interval in self.days))


_MINUTES: Final = ("1m", "3m", "5m", "15m", "30m")
_HOURS: Final = ("1h", "2h", "4h")
_LONG: Final = ("6h", "8h", "12h")


def _plan(level: str, per_minute: int, minutes: tuple[int, ...], hours: tuple[int, ...], long: int) -> Plan:
    """Build a plan; ``minutes`` and ``hours`` list the depths of the coarsest intervals of their kind."""
    days: dict[str, int | None] = dict(zip(_MINUTES[len(_MINUTES) - len(minutes) :], minutes, strict=True))
    days |= zip(_HOURS[len(_HOURS) - len(hours) :], hours, strict=True)
    return Plan(level, per_minute, {**days, **dict.fromkeys(_LONG, long), "1d": None})


PLANS: Final[Mapping[str, Plan]] = {
    plan.level: plan
    for plan in (
        _plan("HOBBYIST", 30, (), (180,), 360),
        _plan("STARTUP", 80, (90,), (180, 180, 180), 360),
        _plan("STANDARD", 300, (6, 20, 30, 90, 180), (360, 360, 360), 360),
        _plan("PROFESSIONAL", 1200, (12, 40, 60, 180, 360), (720, 720, 720), 720),
        Plan("ENTERPRISE", None, None),
    )
}


def plan_of(level: str) -> Plan:
    """Return the plan of a level as the API names it; an unknown level has no known limits."""
    name = level.strip().upper()
    return PLANS.get(name, Plan(name or "UNKNOWN", None, None))
