"""One injected clock: every ``now`` in the product comes from here, so time can be replayed.

``MLBOT_CLOCK`` chooses it for a whole process tree: ``system`` (the default),
``fixed:2026-01-01T00:02:00Z`` (time stands still), ``scaled:2026-01-01T00:00:00Z:600``
(starts there in each process, 600 times faster than the wall) or ``file:PATH`` (the present that a
file names, the same for all processes that read it; whoever rehearses days in minutes moves it).
"""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from mlbot_core.errors import ConfigError

_FORMS = "system, fixed:<ISO time>, scaled:<ISO time>:<speed> or file:<path>"


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


class SharedClock:
    """A clock that many processes read from one file, so that they agree, and that one of them may move forward.

    Between moves it runs ``speed`` times as fast as the wall. Sleeping ends early when the clock is moved past the end.

    Parameters
    ----------
    path
        Written by :meth:`begin`.

    Raises
    ------
    ValueError
        If the file is missing or is no clock.
    """

    _LOOK_S = 0.02

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._look()

    @classmethod
    def begin(cls, path: Path, now_ms: int, speed: float = 1.0) -> SharedClock:
        """Write the file and return its clock.

        Raises
        ------
        ValueError
            If the speed is not positive.
        """
        if not speed > 0:
            raise ValueError(f"speed must be positive, got {speed}")
        _write_clock(path, now_ms, time.time_ns(), speed)
        return cls(path)

    def now_ms(self) -> int:
        """Return the present of the file, UTC ms."""
        self._look()
        return self._start_ms + int((time.time_ns() - self._origin_ns) * self._speed) // 1_000_000

    def sleep(self, seconds: float) -> None:
        """Block until ``seconds`` of this clock have passed, or were skipped."""
        until = self.now_ms() + max(0.0, seconds) * 1000
        while (left := until - self.now_ms()) > 0:
            time.sleep(min(left / 1000 / self._speed, self._LOOK_S))

    def set_ms(self, now_ms: int) -> None:
        """Move everybody's present to ``now_ms``; time never runs backwards.

        Raises
        ------
        ValueError
            If ``now_ms`` lies before the present.
        """
        present = self.now_ms()
        if now_ms < present:
            raise ValueError(f"the clock stands at {present} and cannot go back to {now_ms}")
        _write_clock(self._path, now_ms, time.time_ns(), self._speed)

    def _look(self) -> None:
        try:
            found = self._path.stat()
            stamp = (found.st_ino, found.st_mtime_ns)
            if stamp != self._stamp:
                read = json.loads(self._path.read_text(encoding="utf-8"))
                self._start_ms, self._origin_ns = int(read["now_ms"]), int(read["wall_ns"])
                self._speed = float(read["speed"])
                self._stamp = stamp
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self._path} holds no clock ({type(error).__name__})") from error


def _write_clock(path: Path, now_ms: int, wall_ns: int, speed: float) -> None:
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(json.dumps({"now_ms": now_ms, "wall_ns": wall_ns, "speed": speed}), encoding="utf-8")
    new.replace(path)


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
        If the value is not one of the four forms in this module's description.
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
        if kind == "file" and rest:
            return SharedClock(Path(rest))
    except ValueError as error:
        raise ConfigError(f"MLBOT_CLOCK={text!r}: {error}; use {_FORMS}") from error
    raise ConfigError(f"MLBOT_CLOCK={text!r} is not a clock; use {_FORMS}")
