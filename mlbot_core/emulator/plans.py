"""What each Coinglass plan may ask: the published table of intervals, look-back in days and calls per minute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, Timeframe

# Spellings the API documents; 1w is seven days.
INTERVALS: Final[Mapping[str, Timeframe]] = {
    text: Timeframe.parse("7d" if text == "1w" else text)
    for text in ("1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "1w")
}

_ALL: Final = None


@dataclass(frozen=True)
class Plan:
    """One plan.

    Parameters
    ----------
    name
        ``hobbyist`` ... ``enterprise``.
    calls_per_minute
        Allowed calls of one key per UTC minute.
    days
        Look-back in days by interval; None is everything, an absent interval is refused.
    """

    name: str
    calls_per_minute: int
    days: Mapping[str, int | None]

    def allows(self, interval: str) -> bool:
        """Return whether the plan includes the interval."""
        return interval in self.days

    def earliest_ts(self, interval: str, now_ms: int) -> int | None:
        """Return the open time of the oldest bar the plan serves, UTC ms; None when there is no cut.

        The window counts the open bar: 180 days of 4 h are 1080 rows with it.
        """
        days = self.days[interval]
        if days is None:
            return None
        timeframe = INTERVALS[interval]
        return timeframe.floor(now_ms) + timeframe.ms - days * DAY_MS


def _plan(name: str, calls: int, **days: int | None) -> Plan:
    by_interval: dict[str, int | None] = {key.removeprefix("i"): value for key, value in days.items()}
    return Plan(name, calls, {**by_interval, "1d": _ALL, "1w": _ALL})


PLANS: Final[Mapping[str, Plan]] = {
    plan.name: plan
    for plan in (
        _plan("hobbyist", 30, i4h=180, i6h=360, i8h=360, i12h=360),
        _plan("startup", 80, i30m=90, i1h=180, i2h=180, i4h=180, i6h=360, i8h=360, i12h=360),
        _plan(
            "standard", 300, i1m=6, i3m=20, i5m=30, i15m=90, i30m=180, i1h=360, i2h=360, i4h=360, i6h=360, i8h=360,
            i12h=360,
        ),
        _plan(
            "professional", 1200, i1m=12, i3m=40, i5m=60, i15m=180, i30m=360, i1h=720, i2h=720, i4h=720, i6h=720,
            i8h=720, i12h=720,
        ),
        Plan("enterprise", 6000, dict.fromkeys(INTERVALS, _ALL)),
    )
}  # fmt: skip


def plan_named(name: str) -> Plan:
    """Return a plan by name.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    try:
        return PLANS[name]
    except KeyError:
        raise UsageError(f"plan {name!r} is unknown; choose one of {', '.join(PLANS)}") from None
