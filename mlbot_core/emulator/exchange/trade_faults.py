"""Scripted trouble for traders: what goes wrong with which request, and whether the request took effect."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np

from mlbot_core.errors import UsageError

# The answer is lost or spoilt; ``when`` says whether the request was carried out before.
LOST_KINDS: Final = ("timeout", "reset", "http_500", "http_502", "body_10000", "body_10016", "truncated_json")
# The request is refused before anything happens.
REFUSED_KINDS: Final = ("body_10006", "body_10018", "http_403", "http_429", "reject")
# The order is accepted, and then this happens to it.
ORDER_KINDS: Final = ("engine_reject", "partial_fill", "late_visibility")
# For a while everything is different.
WINDOW_KINDS: Final = ("outage", "clock_skew", "rate_burst")
# What happens to messages of the private streams.
STREAM_KINDS: Final = ("ws_duplicate", "ws_late", "ws_swap", "ws_drop", "ws_disconnect")
TRADE_KINDS: Final = (*LOST_KINDS, *REFUSED_KINDS, *ORDER_KINDS, *WINDOW_KINDS, *STREAM_KINDS)

_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "clock_skew": ("seconds",),
    "rate_burst": ("limit",),
    "late_visibility": ("seconds",),
    "ws_late": ("seconds",),
    "reject": ("code",),
}
_DEFAULT_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class TradeFault:
    """One line of a schedule.

    Parameters
    ----------
    kind
        One of :data:`TRADE_KINDS`.
    endpoint
        Part of the path (of the topic, for streams) that it acts on; empty means all private ones.
    when
        ``before`` or ``after`` the request was carried out, for lost answers.
    nth, probability, count
        The n-th matching call, or each with a chance; at most ``count`` times (once for ``nth``).
    active_from_ms, active_to_ms
        Sleeps outside of this span of the exchange's clock, UTC ms, ``[from, to)``.
    seconds
        ``timeout``: how long the connection stays silent, wall seconds (default 30); ``late_visibility`` and
        ``ws_late``: delay, exchange seconds; ``clock_skew``: how far the server's clock is ahead (negative: behind).
    fraction
        ``partial_fill``: share of the order that is filled before the rest is cancelled (default one half).
    code, message
        ``reject``: the ``retCode`` and ``retMsg``.
    limit
        ``rate_burst``: calls per second.

    Raises
    ------
    UsageError
        If a value is missing, unknown or out of range.
    """

    kind: str
    endpoint: str = ""
    when: str = "after"
    nth: int | None = None
    probability: float | None = None
    count: int | None = None
    active_from_ms: int | None = None
    active_to_ms: int | None = None
    seconds: float | None = None
    fraction: float | None = None
    code: int | None = None
    message: str = ""
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in TRADE_KINDS:
            raise UsageError(f"trade fault kind {self.kind!r} is unknown; choose one of {', '.join(TRADE_KINDS)}")
        if self.when not in ("before", "after"):
            raise UsageError(f"trade fault {self.kind}: when={self.when!r} must be before or after")
        missing = [name for name in _NEEDS.get(self.kind, ()) if getattr(self, name) is None]
        if missing:
            raise UsageError(f"trade fault {self.kind} needs {', '.join(missing)}")
        for name in ("nth", "count", "code", "limit", "active_from_ms", "active_to_ms"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise UsageError(f"trade fault {self.kind}: {name}={value!r} is not a whole number of 0 or more")
        for name in ("nth", "count"):
            if getattr(self, name) == 0:
                raise UsageError(f"trade fault {self.kind}: {name}=0 must be 1 or more")
        for name in ("probability", "seconds", "fraction"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not math.isfinite(float(value))):
                raise UsageError(f"trade fault {self.kind}: {name}={value!r} is not a finite number")
        if self.probability is not None and (not 0 < self.probability <= 1 or self.nth is not None):
            raise UsageError(f"trade fault {self.kind}: probability={self.probability} must be in (0, 1], without nth")
        if self.fraction is not None and not 0 <= self.fraction <= 1:
            raise UsageError(f"trade fault {self.kind}: fraction={self.fraction} is not in [0, 1]")

    @property
    def takes_effect(self) -> bool:
        """Whether a request that it hits is carried out all the same."""
        if self.kind == "truncated_json":
            return True
        if self.kind in LOST_KINDS:
            return self.when == "after"
        return self.kind not in (*REFUSED_KINDS, "outage")

    @property
    def outcome(self) -> str:
        """``ambiguous`` when the client cannot tell from the answer what happened, else ``definite``."""
        return "ambiguous" if self.kind in (*LOST_KINDS, "outage") else "definite"

    @property
    def silence_s(self) -> float:
        """How long a timeout stays silent, wall seconds."""
        return _DEFAULT_TIMEOUT_S if self.seconds is None else self.seconds

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TradeFault:
        """Read one line.

        Raises
        ------
        UsageError
            If a name is unknown or a value refused.
        """
        known = {entry.name for entry in fields(cls)}
        if not isinstance(raw, Mapping) or set(raw) - known or "kind" not in raw:
            raise UsageError(f"a trade fault is an object with a kind and may have {', '.join(sorted(known))}")
        return cls(**raw)

    def to_dict(self) -> dict[str, Any]:
        """Return what :meth:`from_dict` reads, without what was left out."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


@dataclass(frozen=True)
class TradeFaultSchedule:
    """Lines and the seed of their chances. The first line that hits a request decides it."""

    faults: tuple[TradeFault, ...] = ()
    seed: int = 0

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TradeFaultSchedule:
        """Read ``{"seed": 0, "faults": [{"kind": ...}, ...]}``.

        Raises
        ------
        UsageError
            If the shape is another one or a line is refused.
        """
        if not isinstance(raw, Mapping) or set(raw) - {"seed", "faults"} or not isinstance(raw.get("faults", []), list):
            raise UsageError('a trade fault schedule is {"seed": number, "faults": [...]}')
        seed = raw.get("seed", 0)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise UsageError(f"trade fault schedule: seed={seed!r} is not a whole number of 0 or more")
        return cls(tuple(TradeFault.from_dict(line) for line in raw.get("faults", [])), seed)

    @classmethod
    def from_json(cls, text: str) -> TradeFaultSchedule:
        """Read a schedule from JSON.

        Raises
        ------
        UsageError
            If it is not JSON or not a schedule.
        """
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise UsageError(f"trade fault schedule is not JSON: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return what :meth:`from_dict` reads."""
        return {"seed": self.seed, "faults": [fault.to_dict() for fault in self.faults]}


def random_schedule(seed: int, from_ms: int, to_ms: int, lines: int = 6) -> TradeFaultSchedule:
    """Return a schedule of ``lines`` random faults of all kinds in ``[from_ms, to_ms)``; the same for the same seed.

    Chances and counts are small and windows short, so that a careful client always gets through in the end.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0xFA17,)))
    endpoints = ("order/create", "order/create", "order/cancel", "order/amend", "order/realtime", "position/", "")
    made = []
    for _ in range(lines):
        kind = str(rng.choice(TRADE_KINDS))
        begin = int(rng.integers(from_ms, to_ms))
        length = int(rng.integers(1, 20)) * 1000 if kind in WINDOW_KINDS else int(rng.integers(1, 8)) * 3_600_000
        made.append(
            TradeFault(
                kind=kind,
                endpoint="" if kind in (*WINDOW_KINDS, *STREAM_KINDS) else str(rng.choice(endpoints)),
                when=str(rng.choice(("before", "after"))),
                probability=None if kind in WINDOW_KINDS else round(float(rng.uniform(0.1, 0.7)), 3),
                count=None if kind in WINDOW_KINDS else int(rng.integers(1, 5)),
                active_from_ms=begin,
                active_to_ms=begin + length,
                seconds=_random_seconds(kind, rng),
                fraction=round(float(rng.uniform(0.0, 0.9)), 2) if kind == "partial_fill" else None,
                code=int(rng.choice((110007, 110017, 110003))) if kind == "reject" else None,
                limit=int(rng.integers(1, 4)) if kind == "rate_burst" else None,
            )
        )
    return TradeFaultSchedule(tuple(made), seed)


def _random_seconds(kind: str, rng: np.random.Generator) -> float | None:
    if kind == "clock_skew":
        return round(float(rng.uniform(-20, 20)), 3)
    return round(float(rng.uniform(0.5, 5)), 3) if kind in ("late_visibility", "ws_late", "timeout") else None


class _Line:
    """A fault with its running counts."""

    def __init__(self, fault: TradeFault, rng: np.random.Generator) -> None:
        self.fault = fault
        self._rng = rng
        self._matched = 0
        self._hits = 0

    def active(self, now_ms: int) -> bool:
        fault = self.fault
        return (fault.active_from_ms is None or now_ms >= fault.active_from_ms) and (
            fault.active_to_ms is None or now_ms < fault.active_to_ms
        )

    def hit(self, where: str, now_ms: int) -> bool:
        fault = self.fault
        if fault.endpoint not in where or not self.active(now_ms):
            return False
        self._matched += 1
        # one draw per matching call, hit or not: the count limit does not shift later draws
        drawn = fault.probability is None or self._rng.random() < fault.probability
        most = fault.count if fault.count is not None else (1 if fault.nth is not None else None)
        if not drawn or (fault.nth is not None and self._matched < fault.nth):
            return False
        if most is not None and self._hits >= most:
            return False
        self._hits += 1
        return True


class TradeFaults:
    """A schedule at work, and the log of what it did."""

    def __init__(self, schedule: TradeFaultSchedule | None = None) -> None:
        self.log: list[dict[str, Any]] = []
        self.install(schedule if schedule is not None else TradeFaultSchedule())

    def install(self, schedule: TradeFaultSchedule) -> None:
        """Replace the schedule; counts begin anew, the log goes on."""
        self.schedule = schedule
        self._lines = [
            _Line(fault, np.random.default_rng(np.random.SeedSequence(schedule.seed, spawn_key=(number,))))
            for number, fault in enumerate(schedule.faults)
        ]

    def window(self, kind: str, now_ms: int) -> TradeFault | None:
        """Return the window fault of a kind that is open now."""
        return next((line.fault for line in self._lines if line.fault.kind == kind and line.active(now_ms)), None)

    def skew_ms(self, now_ms: int) -> int:
        """Return how far the server's clock is ahead of the exchange's, ms."""
        fault = self.window("clock_skew", now_ms)
        return 0 if fault is None else round((fault.seconds or 0.0) * 1000)

    def select(self, kinds: tuple[str, ...], where: str, now_ms: int) -> TradeFault | None:
        """Return the first fault of these kinds that hits, and count it; every line that matches draws once."""
        hits = [line.fault for line in self._lines if line.fault.kind in kinds and line.hit(where, now_ms)]
        return hits[0] if hits else None

    def record(self, fault: TradeFault, now_ms: int, where: str, **more: Any) -> None:
        """Write what was done to the log: when, where, and whether the request took effect."""
        self.log.append(
            {
                "at_ms": now_ms,
                "where": where,
                "fault": fault.to_dict(),
                "takes_effect": fault.takes_effect,
                "outcome": fault.outcome,
                **more,
            }
        )
