"""What private websockets push, as messages in order; the sockets themselves are elsewhere."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from mlbot_core.emulator.exchange.trade_faults import STREAM_KINDS, TradeFaults

PRIVATE_TOPICS: Final = ("order", "execution", "position", "wallet")
_MESSAGE_KINDS: Final = tuple(kind for kind in STREAM_KINDS if kind != "ws_disconnect")


class Stream:
    """The messages of one connection; each was rendered at the moment that it tells of.

    Nothing is sent for what happened before it subscribed, and nothing is repeated.
    """

    def __init__(self, uid: int, faults: TradeFaults) -> None:
        self.uid = uid
        self.topics: set[str] = set()
        self.closed = False
        self._faults = faults
        self._ready: deque[dict[str, Any]] = deque()
        self._late: list[tuple[int, dict[str, Any]]] = []
        self._held: dict[str, Any] | None = None

    def push(self, topic: str, row: dict[str, Any], ts: int, number: int) -> None:
        """Queue a message if somebody asked for its topic; faults may double, delay, swap or drop it."""
        name = topic if topic in self.topics else f"{topic}.linear"
        if name not in self.topics or self.closed:
            return
        message = {"id": f"{self.uid}_{topic}_{number}", "topic": name, "creationTime": ts, "data": [row]}
        fault = self._faults.select(_MESSAGE_KINDS, f"ws/{topic}", ts)
        if fault is not None:
            self._faults.record(fault, ts, f"ws/{topic}", message=message["id"])
        held, self._held = self._held, None
        if fault is not None and fault.kind == "ws_swap":
            self._held = message
        elif fault is not None and fault.kind == "ws_late":
            self._late.append((ts + round((fault.seconds or 0.0) * 1000), message))
        elif fault is None or fault.kind != "ws_drop":
            self._ready.append(message)
            if fault is not None and fault.kind == "ws_duplicate":
                self._ready.append(json.loads(json.dumps(message)))
        if held is not None:
            self._ready.append(held)
        broken = self._faults.select(("ws_disconnect",), f"ws/{topic}", ts)
        if broken is not None:
            self._faults.record(broken, ts, f"ws/{topic}")
            self.closed = True

    def poll(self, now_ms: int) -> list[dict[str, Any]]:
        """Return the messages that are due, in the order of delivery."""
        due = [message for at, message in self._late if at <= now_ms]
        self._late = [(at, message) for at, message in self._late if at > now_ms]
        messages = [*self._ready, *due]
        self._ready.clear()
        return messages


class Hub:
    """All connections of one account."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.count = 0

    def emit(self, topic: str, row: Callable[[], dict[str, Any]], ts: int) -> None:
        """Render a row once, if anybody listens, and hand it to every connection."""
        self.count += 1
        self.streams = [stream for stream in self.streams if not stream.closed]
        if self.streams:
            made = row()
            for stream in self.streams:
                stream.push(topic, made, ts, self.count)
