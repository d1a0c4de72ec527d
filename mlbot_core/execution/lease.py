"""The right to send: for a while only, and not while trading is halted. In memory of one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from mlbot_core.clock import Clock, format_utc
from mlbot_core.errors import UsageError


class HaltLike(Protocol):
    """Who halted trading, why and when (UTC ms, 0 unknown)."""

    @property
    def actor(self) -> str:
        """Who."""
        ...

    @property
    def reason(self) -> str:
        """Why."""
        ...

    @property
    def at_ms(self) -> int:
        """When."""
        ...


class MarkerLike(Protocol):
    """Says whether a halt stands; never raises."""

    def halted(self) -> HaltLike | None:
        """Return the halt that stands, None if there is none."""
        ...


def boot_seconds() -> float:
    """Return seconds since boot, those asleep included."""
    # macOS has no CLOCK_BOOTTIME; its monotonic clock is the nearest
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """The right of one process to send, for a while: a process that was frozen or asleep wakes without it.

    It runs out by the machine's time (sleep included) and by the injected clock, whichever is sooner, and is invalid
    before the first renewal and when the clock was set back. Renew it where a cycle begins with a fresh look, never
    right before a send.

    Parameters
    ----------
    seconds
        How long a renewal holds.
    clock
        The product's.
    boot_time
        Seconds since boot.

    Raises
    ------
    UsageError
        If it would hold no time at all.
    """

    def __init__(self, seconds: float, clock: Clock, boot_time: Callable[[], float] = boot_seconds) -> None:
        if not seconds > 0:
            raise UsageError(f"a lease of {seconds} s is none; see watch.lease_s of config/execution.yaml")
        self.seconds = seconds
        self._clock = clock
        self._boot_time = boot_time
        self._renewed: tuple[float, int] | None = None

    def renew(self) -> None:
        """Begin anew."""
        self._renewed = (self._boot_time(), self._clock.now_ms())

    def drop(self) -> None:
        """Give it up: nothing is sent until it is renewed."""
        self._renewed = None

    def valid(self) -> bool:
        """Whether it holds now."""
        renewed = self._renewed
        if renewed is None:
            return False
        elapsed_s, elapsed_ms = self._boot_time() - renewed[0], self._clock.now_ms() - renewed[1]
        return 0 <= elapsed_s <= self.seconds and 0 <= elapsed_ms <= 1000 * self.seconds


class Permit:
    """The last question before the bytes of a request are written: no halt, and a lease that holds."""

    def __init__(self, files: MarkerLike, lease: Lease) -> None:
        self._files = files
        self._lease = lease

    def entry(self) -> bool:
        """Whether an order that opens or adds may be sent."""
        return self.why_not(False) is None

    def reduce(self) -> bool:
        """Whether a cancel or a reduce-only order may be sent: a halt does not forbid a way out."""
        return self.why_not(True) is None

    def why_not(self, reduce_only: bool) -> str | None:
        """Return what forbids to send, for people; None if nothing does."""
        if not self._lease.valid():
            return f"the lease of {self._lease.seconds:g} s ran out: this process was frozen, asleep or too slow"
        halt = None if reduce_only else self._files.halted()
        if halt is None:
            return None
        when = f" at {format_utc(halt.at_ms)}" if halt.at_ms else ""
        return f"trading is halted by {halt.actor}{when}: {halt.reason}"
