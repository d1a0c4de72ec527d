"""Scripted failures: which call fails, and how; the same calls in the same order fail the same way every time."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

import numpy as np

from mlbot_core.errors import UsageError

# What happens to the answer as a whole; http_403 and body_10006 are refusals of Bybit's and pass by Coinglass.
TRANSPORT_KINDS: Final = (
    "http_429",
    "body_429",
    "http_403",
    "body_10006",
    "http_500",
    "body_500",
    "html_502",
    "truncated_json",
    "reset",
    "slow",
)
# What happens to the rows inside a good answer.
ROW_KINDS: Final = (
    "duplicate_bars",
    "strings_for_numbers",
    "unparsable",
    "empty_page",
    "gap",
    "restate",
    "late_bars",
    "extra_open_bar",
    "off_grid",
)
KINDS: Final = (*TRANSPORT_KINDS, *ROW_KINDS)

_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "slow": ("seconds",),
    "late_bars": ("seconds",),
    "gap": ("from_ts", "to_ts"),
    "restate": ("from_ts", "to_ts", "factor"),
}
_INTEGERS: Final = ("nth", "count", "from_ts", "to_ts", "active_from_ms", "active_to_ms")
_NUMBERS: Final = ("probability", "factor", "seconds")


@dataclass(frozen=True)
class Fault:
    """One line of a schedule: a match and a kind.

    Parameters
    ----------
    kind
        One of :data:`KINDS`.
    endpoint
        Matches calls whose path contains it; empty matches every call of both halves.
    nth
        Begins with the nth matching call (1 is the first); then ``count`` is 1 unless given.
    probability
        Each matching call is hit with this probability, drawn from the schedule's seed and the line's number.
        Without ``nth`` and ``probability`` every matching call is hit.
    count
        Greatest number of hits; None is without end.
    from_ts, to_ts
        ``gap``, ``restate``: open times of the bars concerned, UTC ms, both inclusive.
    column
        ``restate``: the served field; None is every field but ``time``.
    factor
        ``restate``: multiplies the value. ``duplicate_bars``: the copy's values (default 1.0, an equal copy).
    seconds
        ``slow``: wall seconds before the answer. ``late_bars``: how long after its close a bar stays unpublished.
        ``http_429``: sent as ``Retry-After`` when given.
    text
        ``unparsable``: what stands in place of a number (default ``abc``).
    active_from_ms, active_to_ms
        The line sleeps outside this span of the emulator's clock, UTC ms, ``[from, to)``.

    Raises
    ------
    UsageError
        If the kind is unknown, a value has the wrong type or range, or one that the kind needs is missing.
    """

    kind: str
    endpoint: str = ""
    nth: int | None = None
    probability: float | None = None
    count: int | None = None
    from_ts: int | None = None
    to_ts: int | None = None
    column: str | None = None
    factor: float | None = None
    seconds: float | None = None
    text: str | None = None
    active_from_ms: int | None = None
    active_to_ms: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"fault kind {self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        for name in _INTEGERS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise UsageError(f"fault {self.kind}: {name}={value!r} is not a whole number")
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value)
            ):
                raise UsageError(f"fault {self.kind}: {name}={value!r} is not a finite number")
        for name in ("endpoint", "column", "text"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise UsageError(f"fault {self.kind}: {name}={value!r} is not a text")
        missing = [name for name in _NEEDS.get(self.kind, ()) if getattr(self, name) is None]
        if missing:
            raise UsageError(f"fault {self.kind} needs {', '.join(missing)}")
        self._check_ranges()

    def _check_ranges(self) -> None:
        for name in ("nth", "count"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"fault {self.kind}: {name}={value} must be 1 or more")
        if self.probability is not None and not 0 < self.probability <= 1:
            raise UsageError(f"fault {self.kind}: probability={self.probability} is not in (0, 1]")
        if self.nth is not None and self.probability is not None:
            raise UsageError(f"fault {self.kind}: give nth or probability, not both")
        if self.seconds is not None and self.seconds < 0:
            raise UsageError(f"fault {self.kind}: seconds={self.seconds} is negative")
        if self.from_ts is not None and self.to_ts is not None and self.to_ts < self.from_ts:
            raise UsageError(f"fault {self.kind}: to_ts={self.to_ts} lies before from_ts={self.from_ts}")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Fault:
        """Read one line of a schedule.

        Raises
        ------
        UsageError
            If a name is unknown or ``kind`` is missing, beside what the constructor refuses.
        """
        if not isinstance(raw, Mapping):
            raise UsageError(f"a fault is an object with a kind, found {raw!r}")
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(raw) - known)
        if unknown:
            raise UsageError(f"fault has no {', '.join(unknown)}; it may have {', '.join(sorted(known))}")
        if "kind" not in raw:
            raise UsageError(f"fault without a kind; choose one of {', '.join(KINDS)}")
        return cls(**raw)

    def to_dict(self) -> dict[str, Any]:
        """Return what :meth:`from_dict` reads, without what was left out."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


@dataclass(frozen=True)
class FaultSchedule:
    """The faults of a run and the seed of their chances.

    Parameters
    ----------
    faults
        Lines, in order. Of several whole-answer faults that hit one call the first wins; ``slow`` and row faults
        add up.
    seed
        Non-negative.
    """

    faults: tuple[Fault, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise UsageError(f"fault schedule: seed={self.seed!r} is not a whole number of 0 or more")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> FaultSchedule:
        """Read ``{"seed": 0, "faults": [{"kind": ...}, ...]}``.

        Raises
        ------
        UsageError
            If the shape is another one or a line is refused; the message names the line.
        """
        if not isinstance(raw, Mapping) or set(raw) - {"seed", "faults"} or not isinstance(raw.get("faults", []), list):
            raise UsageError('a fault schedule is {"seed": number, "faults": [...]}')
        faults = []
        for number, line in enumerate(raw.get("faults", []), start=1):
            try:
                faults.append(Fault.from_dict(line))
            except UsageError as error:
                raise UsageError(f"fault schedule, line {number}: {error}") from error
        return cls(tuple(faults), raw.get("seed", 0))

    def to_dict(self) -> dict[str, Any]:
        """Return what :meth:`from_dict` reads."""
        return {"seed": self.seed, "faults": [fault.to_dict() for fault in self.faults]}

    @classmethod
    def from_json(cls, text: str) -> FaultSchedule:
        """Read :meth:`to_json`'s text.

        Raises
        ------
        UsageError
            If it is not JSON or not a schedule.
        """
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"fault schedule is not JSON: {error}") from error
        return cls.from_dict(raw)

    def to_json(self) -> str:
        """Return the schedule as JSON."""
        return json.dumps(self.to_dict())


@dataclass
class _Line:
    """A fault with its running counts."""

    fault: Fault
    rng: np.random.Generator
    matched: int = 0
    hits: int = 0

    def hit(self, path: str, now_ms: int) -> bool:
        fault = self.fault
        if fault.endpoint not in path:
            return False
        if fault.active_from_ms is not None and now_ms < fault.active_from_ms:
            return False
        if fault.active_to_ms is not None and now_ms >= fault.active_to_ms:
            return False
        self.matched += 1
        # One draw per matching call, hit or not, so that the count limit does not shift later draws.
        drawn = fault.probability is None or self.rng.random() < fault.probability
        limit = fault.count if fault.count is not None else (1 if fault.nth is not None else None)
        if (
            not drawn
            or (fault.nth is not None and self.matched < fault.nth)
            or (limit is not None and self.hits >= limit)
        ):
            return False
        self.hits += 1
        return True


@dataclass
class FaultInjector:
    """Decides for each call which faults hit it, and keeps the log."""

    schedule: FaultSchedule = field(default_factory=FaultSchedule)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._log: list[dict[str, Any]] = []
        self.install(self.schedule)

    def install(self, schedule: FaultSchedule) -> None:
        """Replace the schedule; counts begin anew, the log goes on."""
        with self._lock:
            self.schedule = schedule
            self._lines = [
                _Line(fault, np.random.default_rng(np.random.SeedSequence(schedule.seed, spawn_key=(number,))))
                for number, fault in enumerate(schedule.faults)
            ]

    def select(self, path: str, now_ms: int) -> list[Fault]:
        """Return the faults that hit this call, in the schedule's order, and count them."""
        with self._lock:
            return [line.fault for line in self._lines if line.hit(path, now_ms)]

    def record(self, fault: Fault, path: str, query: Mapping[str, str], now_ms: int, call: int) -> None:
        """Write one injected fault to the log: when, on which call, what."""
        with self._lock:
            self._log.append(
                {"at_ms": now_ms, "call": call, "path": path, "query": dict(query), "fault": fault.to_dict()}
            )

    @property
    def log(self) -> list[dict[str, Any]]:
        """Every injected fault so far, oldest first; row faults that changed nothing are not in it."""
        with self._lock:
            return list(self._log)
