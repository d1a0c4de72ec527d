"""The pace of calls to Bybit from one machine: its limit counts addresses, so all threads and processes share it.

Bybit allows 600 requests in five seconds per address over all hosts; a breach is HTTP 403 for everything, and calls
made meanwhile prolong it: stop for at least ten minutes (https://bybit-exchange.github.io/docs/v5/rate-limit).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mlbot_core.clock import Clock
from mlbot_core.errors import RateLimitedError
from mlbot_core.sources.ratelimit import RateLimiter

WINDOW_S: Final = 5.0
# Below Bybit's 600: other programs of this address call too, and calls bunch up on their way.
CALLS_PER_WINDOW: Final = 480
PAUSE_S: Final = 600.0
# The limiter counts per minute; on a clock that runs twelve times as fast its minute is Bybit's five seconds.
_SPEED: Final = 60.0 / WINDOW_S


class Pace:
    """Waits for the right to call, and stops everybody after a refusal.

    Parameters
    ----------
    host
        Host whose callers share the limit.
    clock
        The injected clock, for the limiter; pacing itself counts real seconds.
    folder
        Where processes share the pace; None paces this object alone.
    monotonic, sleep
        Seconds that never run backwards, and a pause of that kind; replaced in tests.
    """

    def __init__(
        self,
        host: str,
        clock: Clock,
        *,
        folder: Path | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._host = host
        self._monotonic = monotonic
        self._until = 0.0
        self._file: Path | None = None
        shared: Path | None = None
        if folder is not None:
            digest = hashlib.sha256(host.encode()).hexdigest()[:24]
            shared, self._file = folder / f"rate-{digest}.json", folder / f"stop-{digest}.txt"
        self._limiter = RateLimiter(
            clock,
            per_minute=CALLS_PER_WINDOW,
            path=shared,
            monotonic=lambda: monotonic() * _SPEED,
            sleep=lambda seconds: sleep(seconds / _SPEED),
        )

    def acquire(self) -> None:
        """Wait for the right to make one call and take it.

        Raises
        ------
        RateLimitedError
            If this address was refused less than ten minutes ago, by whichever process.
        """
        self._refuse_if_stopped()
        self._limiter.acquire()
        self._refuse_if_stopped()

    def stop(self) -> None:
        """Let nobody call for ten minutes: the address was refused."""
        self._until = self._monotonic() + PAUSE_S
        if self._file is not None:
            self._file.write_text(repr(self._until), encoding="ascii")

    def _refuse_if_stopped(self) -> None:
        left = self._seconds_left()
        if left > 0:
            raise RateLimitedError(
                f"{self._host} refused this machine's address (HTTP 403); no call is made for another "
                f"{math.ceil(left / 60)} min so that the ban lifts. Run the command again then: what is stored stays"
            )

    def _seconds_left(self) -> float:
        until = self._until
        if self._file is not None:
            # nobody was refused yet, or a crash tore the file: the next refusal writes it again
            with contextlib.suppress(FileNotFoundError, ValueError):
                until = max(until, float(self._file.read_text(encoding="ascii")))
        left = until - self._monotonic()
        # after a reboot the monotonic clock begins anew and an old file means nothing
        return left if left <= PAUSE_S else 0.0
