"""Which lines of one package a test reaches, and the end of a test that takes too long."""

from __future__ import annotations

import signal
import sys
import threading
from types import CodeType, FrameType
from typing import Any

# a frame that showed no new line for so long, and a function called so often, are traced no further
_IDLE_LINES = 300
_MANY_CALLS = 200


class TooSlow(BaseException):
    """A test used up its CPU time."""


class Tracer:
    """Which lines of one package a test reaches; a frame in a long loop is let go once it shows nothing new."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.lines: set[tuple[str, int]] = set()
        self.calls: dict[CodeType, int] = {}

    def _all_of(self, code: CodeType) -> None:
        """Count a whole function as reached: what else a long loop may reach is not looked at."""
        self.lines.update((code.co_filename, line) for _, _, line in code.co_lines() if line is not None)

    def called(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(self.folder):
            return None
        calls = self.calls[code] = self.calls.get(code, 0) + 1
        if calls >= _MANY_CALLS:
            if calls == _MANY_CALLS:
                self._all_of(code)
            return None
        lines, name, idle = self.lines, code.co_filename, 0
        lines.add((name, code.co_firstlineno))

        def stepped(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal idle
            if event == "line":
                at = (name, frame.f_lineno)
                idle = idle + 1 if at in lines else 0
                lines.add(at)
                if idle > _IDLE_LINES:
                    self._all_of(code)
                    frame.f_trace_lines = False
            return stepped

        return stepped

    def during(self, work: Any, cpu_s: float) -> None:
        """Trace some work, in all its threads, and end it once it used up its CPU time."""
        self.lines, self.calls = set(), {}
        signal.signal(signal.SIGVTALRM, _stop)
        signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s)
        threading.settrace(self.called)
        sys.settrace(self.called)
        try:
            work()
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooSlow
