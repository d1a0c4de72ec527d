"""Machinery of the long proofs of execution: an exchange in a process of its own, and children that are killed.

A crash point is a line of :mod:`mlbot_core.execution` (or of the store below its book) in the order in which a trade
runs through it. A child process traces itself and sends itself SIGKILL right before the chosen line runs for the chosen
time; nothing is unwound, no buffer is flushed, no lock is given back by anybody but the kernel.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import traceback
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import mlbot_core

ROOT = Path(mlbot_core.__file__).parent
ROOM = "execution/"
STORE = "validation/sqlstore.py"
# A row that is written, and a request that changes something.
EFFECTS = (("_insert", "execution/ledger_store.py"), ("_send", "execution/bybit.py"))


def _digest_of_code() -> str:
    rooms = ("execution", "decision", "emulator", "validation/sqlstore.py")
    paths = [ROOT / room for room in rooms]
    files = sorted(found for path in paths for found in ([path] if path.is_file() else path.rglob("*.py")))
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return whole.hexdigest()[:10]


# of the code that this process has loaded
CODE = _digest_of_code()

EXCHANGE = """
import copy, json, sys
from mlbot_core.clock import FixedClock
from mlbot_core.emulator import EmulatorServer
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.exchange import ApiKey, ExchangeOptions, TradeFaultSchedule

class Clock(FixedClock):
    def back_to(self, now_ms):
        self._now_ms = now_ms

start, now, uid, seed = (int(text) for text in sys.argv[1:5])
clock = Clock(now)
server = EmulatorServer(
    seed=seed, start_ms=start, clock=clock, bybit=BybitOptions(ip_calls=10**9),
    trading=ExchangeOptions(keys=(ApiKey("key", "secret", uid=uid, parent_uid=1),), limits="off"),
)
exchange, kept = server.exchange, {}

def twin(engine):
    # the market and who listens are the same ones, all else is copied
    stay = [engine.contracts, engine.account.rules, exchange.hubs[uid]]
    return copy.deepcopy(engine, {id(one): one for one in stay})

with server:
    print(json.dumps({"url": server.url}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        with exchange.lock:
            if asked["do"] == "save":
                # what was taken from the book at this instant is missing from it
                taken = {name: (dict(one._taken), one._taken_ms) for name, one in exchange.contracts.items()}
                kept[asked["name"]] = (clock.now_ms(), twin(exchange.engines[uid]), taken)
            else:
                at, engine, taken = kept[asked["name"]]
                clock.back_to(at)
                for name, one in exchange.contracts.items():
                    one._taken, one._taken_ms = dict(taken[name][0]), taken[name][1]
                exchange.engines[uid] = twin(engine)
                exchange.requests.clear()
                exchange.faults.log.clear()
                exchange.install_faults(TradeFaultSchedule.from_dict({"faults": asked["faults"]}))
        print(json.dumps({"now_ms": clock.now_ms()}), flush=True)
"""


class ExchangeProcess:
    """An emulator's exchange in its own process: its account can be saved and brought back, its clock with it."""

    def __init__(self, start_ms: int, now_ms: int, uid: int, seed: int = 7) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", EXCHANGE, *(str(value) for value in (start_ms, now_ms, uid, seed))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.url = str(self._told()["url"])
        self.uid = uid

    def save(self, name: str) -> None:
        """Keep account and time under a name."""
        self._ask({"do": "save", "name": name})

    def load(self, name: str, faults: list[dict[str, Any]]) -> None:
        """Make account and time what they were, with these faults ahead."""
        self._ask({"do": "load", "name": name, "faults": faults})

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._told()

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the exchange's process has ended"
        told: dict[str, Any] = json.loads(line)
        return told


class ExchangeClock:
    """The exchange's clock as its only client keeps it: sleeping moves both."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._now_ms = 0
        self._advance(0)

    def now_ms(self) -> int:
        return self._now_ms

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self._advance(max(1, int(seconds * 1000)))

    def _advance(self, ms: int) -> None:
        self._now_ms = int(control(self._url, "POST", "advance", {"ms": ms})["now_ms"])


def part(name: str) -> Any:
    """Return a module that lies next to this one; tests do not import each other."""
    whole = f"mlbot_proofs_{name}"
    if whole not in sys.modules:
        spec = importlib.util.spec_from_file_location(whole, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[whole] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[whole])
    return sys.modules[whole]


def share_compiled_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every store of this process, and of those forked from it, use the statements that one has compiled.

    Compiling is more than a third of a new trader's first cycle. What is compiled depends on tables alone.
    """
    compiled: dict[str, Any] = {}
    connect = sa.create_engine

    def create(url: Any, **options: Any) -> Any:
        engine = connect(url, **options)
        if engine.dialect.name == "sqlite":
            # a dialect is part of each statement's key
            first = compiled.setdefault("engine", engine)
            engine.dialect = engine.pool._dialect = first.dialect
            engine._compiled_cache = first._compiled_cache
        return engine

    monkeypatch.setattr(sa, "create_engine", create)


def forget() -> None:
    """Empty the caches of the room's functions, as they are in a process that begins."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mlbot_core.execution"):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def control(url: str, method: str, path: str, body: object = None) -> Any:
    """Turn the exchange's steering wheel."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/_emulator/exchange/{path}", data, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


@dataclass(frozen=True)
class Point:
    """A line, which time that it runs, and how much had been written or sent by then."""

    file: str
    line: int
    hit: int = 1
    after: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.hit}"


@dataclass
class Child:
    """How a child ended: killed at its point, or with what its work returned, or with a traceback."""

    killed: bool = False
    result: Any = None
    error: str = ""
    points: list[Point] = field(default_factory=list)


def in_child(work: Callable[[], Any], *, kill_at: Point | None = None, trace: bool = False) -> Child:
    """Run ``work`` in a forked child; its result has to be JSON. With ``trace`` its lines are returned in order."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        said: dict[str, Any] = {}
        try:
            ran: list[tuple[str, int, int, int]] = []
            if trace or kill_at is not None:
                sys.settrace(_tracer(ran, kill_at))
            try:
                said["result"] = work()
            finally:
                sys.settrace(None)
            said["lines"] = ran if trace else []
        except BaseException:  # noqa: BLE001 - told to the parent, whatever it is
            said["error"] = traceback.format_exc()
        with os.fdopen(writing, "w") as out:
            json.dump(said, out)
            out.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as into:
        text = into.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"a child died of signal {os.WTERMSIG(status)}"
        return Child(killed=True)
    told = json.loads(text)
    return Child(False, told.get("result"), told.get("error", ""), [Point(*line) for line in told.get("lines", ())])


def _tracer(ran: list[tuple[str, int, int, int]], kill_at: Point | None) -> Any:
    effects = 0
    start = len(str(ROOT)) + 1
    counts: Counter[tuple[str, int]] = Counter()
    room, store = str(ROOT / ROOM) + os.sep, str(ROOT / STORE)
    only = None if kill_at is None else str(ROOT / kill_at.file)

    def lines(frame: Any, event: str, _argument: Any) -> Any:
        if event == "line":
            place = (frame.f_code.co_filename[start:], frame.f_lineno)
            counts[place] += 1
            if kill_at is None:
                ran.append((*place, counts[place], effects))
            elif place == (kill_at.file, kill_at.line) and counts[place] == kill_at.hit:
                os.kill(os.getpid(), signal.SIGKILL)
        return lines

    def calls(frame: Any, _event: str, _argument: Any) -> Any:
        nonlocal effects
        name = frame.f_code.co_filename
        if (frame.f_code.co_name, name[start:]) in EFFECTS:
            effects += 1
        if only is not None:
            return lines if name == only else None
        return lines if name.startswith(room) or name == store else None

    return calls


class Cells:
    """What a long proof has finished, one JSON line each, so that a stopped one goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._done: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self._done[row["cell"]] = row["result"]

    def has(self, cell: str) -> bool:
        return cell in self._done

    def add(self, cell: str, result: dict[str, Any]) -> None:
        self._done[cell] = result
        self._append(self.path, {"cell": cell, "result": result})

    def note_failure(self, cell: str, why: str) -> None:
        self._append(self.path.with_suffix(".failures.jsonl"), {"cell": cell, "why": why})

    def results(self) -> list[dict[str, Any]]:
        return list(self._done.values())

    def items(self) -> list[tuple[str, dict[str, Any]]]:
        return list(self._done.items())

    @staticmethod
    def _append(path: Path, row: dict[str, Any]) -> None:
        with path.open("a") as out:
            out.write(json.dumps(row) + "\n")


class Proofs:
    """A folder for them: ``MLBOT_PROOF_DIR``, or a fresh one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def cells(self, name: str) -> Cells:
        """Return what was finished on the code as it is: other code has to prove itself anew."""
        shard = os.environ.get("MLBOT_SHARD", "0/1").replace("/", "-of-")
        return Cells(self.folder / f"{name}.{CODE}.{shard}.jsonl")


@pytest.fixture
def proofs(tmp_path: Path) -> Proofs:
    return Proofs(Path(os.environ.get("MLBOT_PROOF_DIR") or tmp_path / "proofs"))


@pytest.fixture
def machinery() -> Any:
    """This module: children, points and clocks of an exchange."""
    return sys.modules[__name__]


@pytest.fixture
def exchange_process() -> Iterator[Callable[..., ExchangeProcess]]:
    """Starts exchanges and stops them in the end."""
    started: list[ExchangeProcess] = []

    def start(*arguments: Any, **more: Any) -> ExchangeProcess:
        started.append(ExchangeProcess(*arguments, **more))
        return started[-1]

    yield start
    for one in started:
        one.stop()
