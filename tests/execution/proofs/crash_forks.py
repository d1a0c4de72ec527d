"""Deaths at every line of one run: the restarted world is a fork of the process at that line.

What a SIGKILL leaves behind is the files as they are, the exchange, and the time: locks are given back by the kernel,
memory is gone. So before a line runs, the process forks; the child takes a byte-for-byte copy of the folder, keeps the
exchange (which lives in this process and is no part of what dies), makes a new trader that knows nothing, and judges
what comes of it. Nothing of the trader that "died" runs again in the child: its stack is never gone back to.

Two lines between which neither a byte of the folder nor anything at the exchange nor the time has changed leave the
same world behind, and a restart is a function of that world. Such lines share one restart: a *state*. That they may is
itself put to the test: a state of more than :data:`TWICE` lines is restarted from a second one too, and has to come
out the same to the last row of the book.
"""

from __future__ import annotations

import contextvars
import gc
import hashlib
import io
import os
import pickle
import shutil
import sys
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A state with more points than that is restarted from two of them.
TWICE = 5
LEADING = frozenset(
    f"execution/{name}.py" for name in ("trader", "cycle", "executor", "sending", "working", "reconcile", "bybit")
)
ANSWERED = frozenset(f"execution/{name}.py" for name in ("sending", "working", "cycle"))


class Chosen:
    """Which lines of a run are crash points, told one after the other in its order.

    A line counts the first time that it runs; those of the parts in :data:`LEADING` count again each time they run
    after something more was written or sent, and all lines of the wire while a request that changes something is on
    its way. What is left out runs in a state of book and exchange in which the same line ran before.
    """

    def __init__(self) -> None:
        self._seen: set[tuple[str, int, int]] = set()
        self._sending = False

    def __call__(self, file: str, line: int, hit: int, after: int) -> bool:
        if file == "execution/bybit.py":
            self._sending = True
        elif file in ANSWERED:
            self._sending = False
        leading = file in LEADING or (self._sending and file == "execution/bybit_wire.py")
        state = (file, line, after)
        chosen = hit == 1 or (leading and state not in self._seen)
        self._seen.add(state)
        return chosen


class _Frozen(pickle.Pickler):
    """Spells what an exchange is made of; the market, which nothing changes, and who listens are left out."""

    def __init__(self, out: io.BytesIO, left_out: list[Any]) -> None:
        super().__init__(out, protocol=5)
        self._left_out = {id(one) for one in left_out}

    def persistent_id(self, value: Any) -> str | None:
        if id(value) in self._left_out:
            return "left out"
        if isinstance(value, types.MethodType | types.FunctionType | types.BuiltinMethodType):
            return value.__qualname__
        return None


def account_digest(exchange: Any) -> bytes:
    """Return a digest of everything that an answer of the exchange may depend on, the market and the time left out."""
    spelt = io.BytesIO()
    left_out = [*exchange.hubs.values(), exchange.contracts]
    for contract in exchange.contracts.values():
        left_out += [contract.feed, contract.rules]
    pickler = _Frozen(spelt, left_out)
    taken = [(name, one._taken, one._taken_ms) for name, one in sorted(exchange.contracts.items())]
    engines = [(uid, engine.now_ms, engine.account.__dict__) for uid, engine in sorted(exchange.engines.items())]
    limiter = exchange._limiter.__dict__
    pickler.dump(
        [engines, taken, limiter, exchange.faults.schedule, [line.__dict__ for line in exchange.faults._lines]]
    )
    return hashlib.blake2b(spelt.getvalue(), digest_size=16).digest()


def folder_digest(folder: Path) -> bytes:
    """Return a digest of every name and byte in a folder."""
    whole = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*")):
        whole.update(path.relative_to(folder).as_posix().encode() + b"\0")
        if path.is_file():
            content = path.read_bytes()
            whole.update(len(content).to_bytes(8, "big") + content)
    return whole.digest()


@dataclass
class State:
    """A world that deaths leave behind: the first of its points, how many there are, and what came of the restart."""

    first: str
    number: int
    result: dict[str, Any]
    points: int = 1
    restarts: int = 1


@dataclass
class Forks:
    """Forks at the crash points of a run.

    Parameters
    ----------
    machinery
        The conftest's.
    exchange
        That of this process.
    requests
        How many requests have reached it.
    home
        The folder of the trader that dies.
    restart
        What the child does in a folder of its own; returns JSON.
    only
        The points to fork at, by number or by (file, line, effects before it); all of them by default.
    alone
        Every point gets a restart of its own.
    """

    machinery: Any
    exchange: Any
    requests: Callable[[], int]
    home: Path
    restart: Callable[[Path], dict[str, Any]]
    only: frozenset[Any] | None = None
    alone: bool = False
    states: dict[bytes, State] = field(default_factory=dict)
    points: list[tuple[str, int, int, int]] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    _asked: tuple[int, int] = (-1, -1)
    _account: bytes = b""

    def run(self, work: Callable[[], Any]) -> Any:
        """Do the work, with a fork before each chosen line."""
        sys.settrace(self._tracer())
        try:
            return work()
        finally:
            sys.settrace(None)

    def _tracer(self) -> Any:
        effects = 0
        start = len(str(self.machinery.ROOT)) + 1
        room = str(self.machinery.ROOT / self.machinery.ROOM) + os.sep
        store = str(self.machinery.ROOT / self.machinery.STORE)
        counts: Counter[tuple[str, int]] = Counter()
        chosen = Chosen()

        def lines(frame: Any, event: str, _argument: Any) -> Any:
            if event == "line":
                place = (frame.f_code.co_filename[start:], frame.f_lineno)
                counts[place] += 1
                if chosen(*place, counts[place], effects):
                    self.points.append((*place, counts[place], effects))
                    self._die(len(self.points) - 1)
            return lines

        def calls(frame: Any, _event: str, _argument: Any) -> Any:
            nonlocal effects
            name = frame.f_code.co_filename
            if not name.startswith(room) and name != store:
                return None
            if (frame.f_code.co_name, name[start:]) in self.machinery.EFFECTS:
                effects += 1
            return lines

        return calls

    def _die(self, number: int) -> None:
        file, line, hit, after = self.points[number]
        if self.only is not None and number not in self.only and (file, line, after) not in self.only:
            return
        name = f"{file}:{line}:{hit}"
        key = b"%d" % number if self.alone else self._world()
        state = self.states.get(key)
        if state is None:
            self.states[key] = State(name, number, self._child())
            return
        state.points += 1
        if state.points == 1 + TWICE:
            state.restarts += 1
            result = self._child()
            if result != state.result:
                self.differing.append(f"{state.first} and {name}: {state.result} and {result}")

    def _world(self) -> bytes:
        asked = (self.requests(), self.exchange.clock.now_ms())
        if asked != self._asked:
            self._asked, self._account = asked, account_digest(self.exchange)
        return folder_digest(self.home) + self._account + asked[1].to_bytes(8, "big")

    def _child(self) -> dict[str, Any]:
        copy = self.home.with_name("cell")
        shutil.copytree(self.home, copy)
        try:
            made = self.machinery.in_child(lambda: _alone(lambda: self.restart(copy)))
        finally:
            shutil.rmtree(copy)
        if made.error:
            return {"outcome": "wrong", "wrong": [made.error], "more_cycles": 0}
        found: dict[str, Any] = made.result
        return found


def _alone(work: Callable[[], Any]) -> Any:
    """Do work without anything of the process that was forked: not its context, and none of its objects ends here."""
    gc.freeze()
    return contextvars.Context().run(work)
