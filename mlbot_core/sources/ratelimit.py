"""One token bucket a key, shared by threads and, through a small locked file, by processes.

The bucket refills at 80 % of what the key may do per minute and holds the other 20 % as burst, so that no 60
seconds see more calls than allowed wherever the server's window begins. The allowance is learnt from the
``API-KEY-MAX-LIMIT`` header of any answer; ``API-KEY-USE-LIMIT`` tells of callers outside this machine.

Pacing uses the monotonic clock, never the injected one: a clock that stands still must not stop the calls, and a
fast one must not flood a real server.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

from mlbot_core.clock import Clock
from mlbot_core.timeframe import MINUTE_MS

MAX_HEADER: Final = "API-KEY-MAX-LIMIT"
USE_HEADER: Final = "API-KEY-USE-LIMIT"
# The smallest plan's allowance: right until the first answer tells the true one.
DEFAULT_PER_MINUTE: Final = 30
PACE: Final = 0.8
_POLL_S: Final = 0.25
_LONGEST_WAIT_S: Final = 120.0
# A record always has this many bytes, so that one write replaces it: a process that is killed leaves the old record
# or the new one, never an empty file, which would read as a full bucket.
_RECORD_BYTES: Final = 192
# A header that allows more than anybody sells is a mistake (and would not fit the record).
_MOST_PER_MINUTE: Final = 1_000_000


@dataclass
class BucketState:
    """What callers share: tokens left, when they were counted and until when all wait (monotonic seconds)."""

    tokens: float
    at: float
    per_minute: int
    closed_until: float = 0.0


class RateLimiter:
    """Paces the calls of one key.

    Parameters
    ----------
    clock
        Tells where in the minute we are, for waits to the next one.
    per_minute
        Allowance until a header tells it.
    path
        File that processes share; None keeps the bucket in this process.
    monotonic, sleep
        Seconds that never run backwards, and a pause of that kind; replaced in tests.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        per_minute: int = DEFAULT_PER_MINUTE,
        path: Path | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._path = path
        self._monotonic = monotonic
        self._sleep = sleep
        self._lock = threading.Lock()
        self._state = _full(per_minute, monotonic())
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def per_minute(self) -> int:
        """Calls per minute the key is allowed, as far as known."""
        with self._shared() as state:
            return state.per_minute

    def acquire(self) -> float:
        """Wait for the right to make one call and take it; return the seconds waited."""
        waited = 0.0
        with self._shared() as state:
            state.tokens -= 1
            pause = max(0.0, -state.tokens / _rate(state.per_minute), state.closed_until - self._monotonic())
        while pause > 0:
            self._sleep(pause)
            waited += pause
            # somebody may have learnt meanwhile that nobody may call
            with self._shared() as state:
                pause = max(0.0, state.closed_until - self._monotonic())
        return waited

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take the allowance and the use of the running minute from an answer's headers, where they are given."""
        allowed = _count(headers.get(MAX_HEADER))
        used = _count(headers.get(USE_HEADER))
        with self._shared() as state:
            if allowed is not None and 0 < allowed <= _MOST_PER_MINUTE and allowed != state.per_minute:
                # calls already paced at the old rate stay counted; only the room for a burst changes
                state.tokens += _burst(allowed) - _burst(state.per_minute)
                state.per_minute = allowed
            if allowed is not None and allowed > 1 and used is not None and used >= allowed - 1:
                state.closed_until = max(state.closed_until, self._monotonic() + self.seconds_to_minute())

    def wait_out(self, attempt: int, retry_after_s: float | None = None) -> float:
        """Let the running minute end after a refusal for the rate of calls; return the seconds waited.

        The first time the wait ends when the injected clock enters the next minute or as much real time has
        passed, whichever is sooner; later times it is real time, in case the server does not follow our clock.

        Parameters
        ----------
        attempt
            0 for the first refusal of a call.
        retry_after_s
            The server's own word on how long to wait, seconds.
        """
        jitter = random.uniform(0.05, 0.5)
        began = self._monotonic()
        boundary = self._clock.now_ms() // MINUTE_MS * MINUTE_MS + MINUTE_MS
        limit = self.seconds_to_minute() if retry_after_s is None else min(max(retry_after_s, 0.0), _LONGEST_WAIT_S)
        deadline = began + limit
        with self._shared() as state:
            state.tokens = min(state.tokens, 0.0)
            if attempt > 0:
                state.closed_until = max(state.closed_until, deadline)
        while (left := deadline - self._monotonic()) > 0:
            if attempt == 0 and retry_after_s is None and self._clock.now_ms() >= boundary:
                break
            self._sleep(min(left, _POLL_S))
        self._sleep(jitter)
        return self._monotonic() - began

    def seconds_to_minute(self) -> float:
        """Return the seconds to the next UTC minute by the injected clock, in (0, 60]."""
        return (MINUTE_MS - self._clock.now_ms() % MINUTE_MS) / 1000

    @contextmanager
    def _shared(self) -> Iterator[BucketState]:
        """Yield the state, refilled to this moment, under the lock of all threads and processes; keep changes."""
        with self._lock:
            if self._path is None:
                _refill(self._state, self._monotonic())
                yield self._state
                return
            # opened anew each time, which costs microseconds: a file that somebody removed is then made again
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                now = self._monotonic()
                state = _decode(os.pread(file, _RECORD_BYTES, 0)) or _full(self._state.per_minute, now)
                _refill(state, now)
                before = replace(state)
                try:
                    yield state
                finally:
                    # what only time has changed is worked out anew by the next reader
                    if state != before:
                        os.pwrite(file, _encode(state), 0)
            finally:
                os.close(file)


def bucket_path(folder: Path, host: str, key: str) -> Path:
    """Return the file that all callers with one key at one host share; it is named by a hash, never by the key."""
    digest = hashlib.sha256(f"{host}\n{key}".encode()).hexdigest()[:24]
    return folder / f"rate-{digest}.json"


def _burst(per_minute: int) -> float:
    return max(1.0, per_minute - per_minute * PACE)


def _rate(per_minute: int) -> float:
    """Tokens per second."""
    return per_minute * PACE / 60


def _full(per_minute: int, now: float) -> BucketState:
    return BucketState(tokens=_burst(per_minute), at=now, per_minute=per_minute)


def _refill(state: BucketState, now: float) -> None:
    # after a reboot the file's times lie in the future of the monotonic clock: they mean nothing then
    if state.at > now:
        state.at, state.closed_until = now, 0.0
    state.closed_until = min(state.closed_until, now + _LONGEST_WAIT_S)
    state.tokens = min(_burst(state.per_minute), state.tokens + (now - state.at) * _rate(state.per_minute))
    state.at = now


def _encode(state: BucketState) -> bytes:
    return json.dumps(asdict(state)).encode("ascii").ljust(_RECORD_BYTES - 1) + b"\n"


def _decode(record: bytes) -> BucketState | None:
    """Read a shared state; None if there is none or it is damaged (a bucket is then full)."""
    try:
        raw = json.loads(record)
        state = BucketState(**{field.name: raw[field.name] for field in fields(BucketState)})
    except (ValueError, TypeError, KeyError):
        return None
    numbers = (state.tokens, state.at, state.per_minute, state.closed_until)
    usable = all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers) and state.per_minute >= 1
    return state if usable else None


def _count(text: str | None) -> int | None:
    try:
        return None if text is None else int(float(text))
    except (ValueError, OverflowError):
        return None
