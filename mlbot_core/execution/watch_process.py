"""What the resident watchers share: they end on a signal, tell what they do in dated lines, and wait by any clock."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Final

from mlbot_core.clock import Clock, format_utc

_STEP_S: Final = 0.1


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


class Teller:
    """Writes one dated line to standard error for each thing that is told."""

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock

    def __call__(self, text: str) -> None:
        """Write a line."""
        sys.stderr.write(f"{format_utc(self._clock.now_ms())} {self._name}[{os.getpid()}] {text}\n")
        sys.stderr.flush()


def wait(stop: threading.Event, clock: Clock, seconds: float) -> None:
    """Wait so many seconds of the clock, no more than as many of the machine's, no less than a tenth; less if stopped.

    A clock that runs fast must not make a watcher spin, nor one that stands still let it sleep for ever.
    """
    begin, give_up = clock.now_ms(), time.monotonic() + seconds
    while not stop.wait(min(_STEP_S, seconds)):
        if clock.now_ms() - begin >= 1000 * seconds or time.monotonic() >= give_up:
            return
