"""One injected clock: every ``now`` in the product comes from here, so time can be replayed.

``MLBOT_CLOCK`` chooses it for a whole process tree: ``system`` (the default),
``fixed:2026-01-01T00:02:00Z`` (time stands still) or ``scaled:2026-01-01T00:00:00Z:600``
(starts there, 600 times faster than the wall).
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import Protocol

from mlbot_core.errors import ConfigError


class Clock(Protocol):
    """What the product knows about time."""

    def now_ms(self) -> int:
        """Return the current UTC time in milliseconds since the epoch."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` of this clock's time pass."""
        ...


class SystemClock:
    """The wall clock."""

    def now_ms(self) -> int:
        """Return the current UTC time in milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def sleep(self, seconds: float) -> None:
        """Block for ``seconds``."""
        time.sleep(max(0.0, seconds))


class FixedClock:
    """A clock that moves only when told to; sleeping moves it at once.

    Parameters
    ----------
    now_ms
        Start, UTC ms.
    """

    def __init__(self, now_ms: int) -> None:
        self._now_ms = int(now_ms)

    def now_ms(self) -> int:
        """Return the time the clock was last set to, UTC ms."""
        return self._now_ms

    def sleep(self, seconds: float) -> None:
        """Advance by ``seconds`` without waiting."""
        self._now_ms += int(max(0.0, seconds) * 1000)

    def set_ms(self, now_ms: int) -> None:
        """Move to ``now_ms``; time never runs backwards.

        Raises
        ------
        ValueError
            If ``now_ms`` lies before the present of this clock.
        """
        if now_ms < self._now_ms:
            raise ValueError(f"the clock stands at {self._now_ms} and cannot go back to {now_ms}")
        self._now_ms = int(now_ms)


class ScaledClock:
    """A clock that starts at a given instant and runs ``speed`` times as fast as the wall.

    Parameters
    ----------
    start_ms
        Start, UTC ms.
    speed
        Seconds of this clock per second of the wall; positive.
    """

    def __init__(self, start_ms: int, speed: float) -> None:
        if not speed > 0:
            raise ValueError(f"speed must be positive, got {speed}")
        self._start_ms = int(start_ms)
        self._speed = float(speed)
        self._origin = time.monotonic()

    def now_ms(self) -> int:
        """Return the current scaled UTC time in milliseconds since the epoch."""
        return self._start_ms + int((time.monotonic() - self._origin) * 1000 * self._speed)

    def sleep(self, seconds: float) -> None:
        """Block until ``seconds`` of scaled time have passed."""
        time.sleep(max(0.0, seconds) / self._speed)


def parse_utc_ms(text: str) -> int:
    """Return UTC ms of an ISO date or date-time (``2025-06-30`` or ``2025-06-30T12:00:00Z``).

    A text without an offset is read as UTC.

    Raises
    ------
    ValueError
        If the text is not an ISO 8601 date or date-time.
    """
    moment = datetime.fromisoformat(text.strip())
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return int(moment.timestamp()) * 1000 + moment.microsecond // 1000


def format_utc(ms: int) -> str:
    """Return ``2025-06-30T12:00:00Z`` for UTC ms (milliseconds shown only where there are some)."""
    moment = datetime.fromtimestamp(ms / 1000, tz=UTC)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{ms % 1000:03d}Z" if ms % 1000 else f"{text}Z"


def clock_from_env(value: str | None = None) -> Clock:
    """Return the clock that ``MLBOT_CLOCK`` (or ``value``) asks for.

    Raises
    ------
    ConfigError
        If the value is not one of the three forms in this module's description.
    """
    text = os.environ.get("MLBOT_CLOCK", "system") if value is None else value
    kind, _, rest = text.partition(":")
    try:
        if kind == "system" and not rest:
            return SystemClock()
        if kind == "fixed":
            return FixedClock(parse_utc_ms(rest))
        if kind == "scaled":
            start, _, speed = rest.rpartition(":")
            return ScaledClock(parse_utc_ms(start), float(speed))
    except ValueError as error:
        raise ConfigError(
            f"MLBOT_CLOCK={text!r}: {error}; use system, fixed:<ISO time> or scaled:<ISO time>:<speed>"
        ) from error
    raise ConfigError(f"MLBOT_CLOCK={text!r} is not a clock; use system, fixed:<ISO time> or scaled:<ISO time>:<speed>")
