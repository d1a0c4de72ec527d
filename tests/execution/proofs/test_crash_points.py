"""Dead at every line between a decision and its confirmed fill, then begun anew: nothing twice, nothing lost.

A point is a line and which time it runs, numbered in the order of a run that does not die: see
:class:`crash_forks.Chosen`. A cell is a scenario, a fault of the first request that creates an order, and a point.
Scenarios whose cells may show ``reduce_only`` are in ``crash_desk.MAY_REDUCE``.

Deaths are forks of one run (:mod:`crash_forks`); that a fork leaves what a SIGKILL leaves is shown by killing: the same
points, over sockets, with the exchange in a process of its own, come out the same to the last row of the book.

``make prove`` runs all of it. ``MLBOT_FAULTS=none,timeout/after`` bounds the columns, ``MLBOT_STORIES`` how many more
are told now, ``MLBOT_SHARD=0/2`` takes every second one; what is finished is kept in ``MLBOT_PROOF_DIR``.
``MLBOT_CELL='entry|none|17'`` does one cell again, ``MLBOT_ALONE=1`` gives each point a restart of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mlbot_core.config.secrets import KeyPair
from mlbot_core.config.trading import RiskConfig
from mlbot_core.emulator import EmulatorServer
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.exchange import ApiKey, Exchange, ExchangeOptions, TradeFaultSchedule
from mlbot_core.emulator.exchange.adapter import InProcess
from mlbot_core.execution.broker import Venue
from mlbot_core.execution.bybit import BybitBroker
from mlbot_core.execution.marking import limits_from_risk, warm_up

# Where a run over sockets has lines of its own.
TRANSPORT = {"execution/bybit_venues.py", "execution/bybit_wire.py"}
OUTCOMES = ("exact", "reduce_only", "withheld", "wrong")
SOME_COLUMNS = (
    "timeout/after+late",
    "reset/before",
    "http_502/after",
    "truncated_json/after",
    "body_10016/before+late",
)


class Counting(InProcess):
    """A transport that counts."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self.count = 0

    def send(self, *arguments: Any, **options: Any) -> Any:
        self.count += 1
        return super().send(*arguments, **options)


class Room:
    """Where stories are told: the parts, and a folder in memory."""

    def __init__(self, machinery: Any, folder: Path) -> None:
        self.machinery, self.folder = machinery, folder
        self.desk, self.forks = machinery.part("crash_desk"), machinery.part("crash_forks")
        self._server: EmulatorServer | None = None

    def way(self) -> Any:
        """Return an exchange as it is before anything happened; children get a copy of it by being forked."""
        if self._server is None:
            keys = (ApiKey("key", "secret", uid=self.desk.UID, parent_uid=1),)
            clock = self.desk.SteppedClock(self.desk.NOW)
            # not started: its exchange is asked without sockets
            self._server = EmulatorServer(
                seed=7, start_ms=self.desk.MARKET_START, clock=clock, bybit=BybitOptions(ip_calls=10**9),
                trading=ExchangeOptions(keys=keys, limits="off"),
            )  # fmt: skip
            clock.then = self._server.exchange.advance
            # the market is made once, not in each child
            self._server.exchange.contracts[self.desk.SYMBOL].quote(self.desk.NOW)
        return self.desk.InMemory(self._server.exchange, Counting(self._server.exchange))

    def story(
        self, scenario: Any, fault: str, only: frozenset[Any] | None = None, *, alone: bool = False
    ) -> dict[str, Any]:
        """Tell a story with a death at each of its points, or at some, in a child of its own."""
        home = self.folder / "home"
        home.mkdir()
        way = self.way()

        def tell() -> dict[str, Any]:
            held = self.desk.begin(way, home, scenario)
            way.exchange.faults.log.clear()
            way.exchange.install_faults(TradeFaultSchedule.from_dict({"faults": self.desk.faults()[fault]}))
            forks = self.forks.Forks(
                self.machinery, way.exchange, lambda: way.adapter.count, home,
                lambda copy: self.desk.again(way, copy, scenario, fault, held), only, alone,
            )  # fmt: skip
            self.machinery.forget()
            forks.run(lambda: self.desk.trade(way, home, scenario, fault))
            return {
                "points": forks.points,
                "states": [state.__dict__ for state in forks.states.values()],
                "differing": forks.differing,
                "cpu_s": sum(
                    getattr(resource.getrusage(who), name)
                    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
                    for name in ("ru_utime", "ru_stime")
                ),
            }

        made = self.machinery.in_child(tell)
        shutil.rmtree(home)
        assert not made.error, made.error
        told: dict[str, Any] = made.result
        return told


class Killings:
    """The same by SIGKILL, over sockets: each cell is a process that is killed, and one that is begun anew."""

    def __init__(self, room: Room, exchange: Any) -> None:
        self.machinery, self.desk, self.folder, self.exchange = room.machinery, room.desk, room.folder, exchange
        self.way = room.desk.OverSockets(room.machinery, exchange.url)
        self.chosen = room.forks.Chosen
        self._held: dict[str, str] = {}
        exchange.save("empty")

    def _again(self, scenario: Any, fault: str) -> tuple[Path, str]:
        begun, home = self.folder / f"begin-{scenario.name}", self.folder / "killed"
        if scenario.name not in self._held:
            begun.mkdir()
            self.exchange.load("empty", [])
            made = self.machinery.in_child(partial(self.desk.begin, self.way, begun, scenario))
            assert not made.error, made.error
            self._held[scenario.name] = made.result
            self.exchange.save(scenario.name)
        shutil.copytree(begun, home)
        self.exchange.load(scenario.name, self.desk.faults()[fault])
        return home, self._held[scenario.name]

    def points(self, scenario: Any, fault: str) -> dict[Any, Any]:
        """Trace a run that is not killed; return its points by file, line and effects before them."""
        home, _ = self._again(scenario, fault)
        made = self.machinery.in_child(partial(self.desk.trade, self.way, home, scenario, fault), trace=True)
        shutil.rmtree(home)
        assert not made.error, made.error
        chosen = self.chosen()
        points = [point for point in made.points if chosen(point.file, point.line, point.hit, point.after)]
        return {(point.file, point.line, point.after): point for point in points}

    def cell(self, scenario: Any, fault: str, point: Any) -> dict[str, Any]:
        """Kill at a point, begin anew, judge."""
        home, held = self._again(scenario, fault)
        died = self.machinery.in_child(partial(self.desk.trade, self.way, home, scenario, fault), kill_at=point)
        assert died.killed, f"{point} was not reached: {died.error}"
        came = self.machinery.in_child(partial(self.desk.again, self.way, home, scenario, fault, held))
        shutil.rmtree(home)
        assert not came.error, came.error
        result: dict[str, Any] = came.result
        return result


@pytest.fixture
def room(machinery: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    # what a child needs is loaded before it is made
    BybitBroker(
        Venue.EMULATOR, KeyPair(key=SecretStr("key"), secret=SecretStr("secret")), None, url="http://127.0.0.1:9"
    )  # type: ignore[arg-type]
    machinery.share_compiled_statements(monkeypatch)
    with tempfile.TemporaryDirectory(dir=base, prefix="mlbot-crash-") as folder:
        made = Room(machinery, Path(folder))
        warm_up(
            limits_from_risk(RiskConfig(max_position=0.1, daily_loss_limit=0.03, max_drawdown=0.25), made.desk.FRAME)
        )
        yield made


def table(stories: list[tuple[str, dict[str, Any]]]) -> str:
    """Return points x faults by scenario: cells and what came of them."""
    lines = [f"{'scenario':<10}{'fault':<26}{'points':>8}{'states':>8}{'restarts':>10}"
             + "".join(f"{name:>13}" for name in OUTCOMES) + f"{'most cycles':>13}"]  # fmt: skip
    whole: Counter[str] = Counter()
    for story, told in sorted(stories):
        scenario, fault = story.split("|")
        count = Counter(points=told["points"], states=len(told["states"]))
        for state in told["states"]:
            count[state["result"]["outcome"]] += state["points"]
            count["restarts"] += state["restarts"]
        count["wrong"] += len(told["differing"])
        whole.update(count)
        most = max((state["result"].get("more_cycles", 0) for state in told["states"]), default=0)
        lines.append(f"{scenario:<10}{fault:<26}{_numbers(count)}{most + 1:>13}")
    lines.append(f"{'all':<36}{_numbers(whole)}")
    return "\n".join(lines)


def _numbers(count: Counter[str]) -> str:
    head = f"{count['points']:>8}{count['states']:>8}{count['restarts']:>10}"
    return head + "".join(f"{count[name]:>13}" for name in OUTCOMES)


def _problems(story: str, told: dict[str, Any]) -> list[str]:
    fault, found = (
        story.split("|")[1],
        [f"{story}: the same state, and not the same: {one}" for one in told["differing"]],
    )
    may = fault != "none"
    for state in told["states"]:
        result = state["result"]
        if result["outcome"] == "wrong" or (result["outcome"] != "exact" and not may):
            found.append(f"{story}|{state['number']} {state['first']} ({state['points']} points): {result}")
    return found


def test_deaths_at_some_lines(room: Room) -> None:
    """Points spread over two scenarios."""
    for scenario, fault in ((room.desk.SCENARIOS[0], "reset/after+late"), (room.desk.SCENARIOS[1], "none")):
        told = room.story(scenario, fault, frozenset(range(11, 10_000, 240)))
        assert len(told["states"]) >= 3
        assert len(told["points"]) > 1_000
        assert not _problems(f"{scenario.name}|{fault}", told)


def _same_points(told: dict[str, Any], theirs: dict[Any, Any]) -> set[Any]:
    """See that a run in memory has the points of one over sockets but for the transport; return those that it lacks."""
    mine = [(file, line, after) for file, line, _, after in told["points"]]
    lacking, more = theirs.keys() - set(mine), set(mine) - theirs.keys()
    assert [key for key in mine if key not in more] == [key for key in theirs if key not in lacking]
    strange = {key for key in lacking | more if key[0] not in TRANSPORT}
    assert not strange, (strange & lacking, strange & more)
    return lacking


@pytest.mark.prove
@pytest.mark.timeout(0)
def test_a_fork_is_a_death(room: Room, exchange_process: Any) -> None:
    """Processes that are really killed, over sockets, leave what the forks leave: verdicts and rows are equal.

    ``MLBOT_KILLS`` says how many (20), spread over all scenarios and some faults, ``MLBOT_KILL_SEED`` which.
    """
    kills, seed = int(os.environ.get("MLBOT_KILLS", "20")), int(os.environ.get("MLBOT_KILL_SEED", "0"))
    killings = Killings(room, exchange_process(room.desk.MARKET_START, room.desk.NOW, room.desk.UID))
    scenarios, done, began = room.desk.SCENARIOS, 0, time.monotonic()
    each = max(1, kills // (2 * len(scenarios)))
    for turn in range(2 * len(scenarios)):
        scenario = scenarios[turn % len(scenarios)]
        fault = "none" if turn < len(scenarios) else SOME_COLUMNS[(turn + seed) % len(SOME_COLUMNS)]
        theirs = killings.points(scenario, fault)
        common = [key for key in theirs if key[0] not in TRANSPORT]
        chosen = {common[(7919 * (each * (turn + 10 * seed) + n) + 13) % len(common)] for n in range(each)}
        told = room.story(scenario, fault, frozenset(chosen), alone=True)
        _same_points(told, theirs)
        forked = {}
        for state in told["states"]:
            file, line, _, after = told["points"][state["number"]]
            forked[file, line, after] = state["result"]
        assert forked.keys() == chosen
        for key, result in forked.items():
            assert killings.cell(scenario, fault, theirs[key]) == result, f"{scenario.name}|{fault}|{theirs[key]}"
            done += 1
        assert not _problems(f"{scenario.name}|{fault}", told)
    print(f"\n{done} deaths by SIGKILL came out as their forks did, in {time.monotonic() - began:.0f} s")
    assert done >= min(kills, 2 * len(scenarios))


@pytest.mark.prove
@pytest.mark.timeout(0)
def test_dead_at_the_lines_of_the_sockets(room: Room, exchange_process: Any, proofs: Any) -> None:
    """Lines that run over sockets only, the last of them right before the bytes: killed one by one."""
    done = proofs.cells("crash_sockets")
    killings = Killings(room, exchange_process(room.desk.MARKET_START, room.desk.NOW, room.desk.UID))
    for fault in ("none", *SOME_COLUMNS[:2]):
        for scenario in room.desk.SCENARIOS:
            theirs = killings.points(scenario, fault)
            for key in _same_points(room.story(scenario, fault, frozenset()), theirs):
                cell = f"{scenario.name}|{fault}|{theirs[key]}"
                if not done.has(cell):
                    done.add(cell, killings.cell(scenario, fault, theirs[key]))
    outcomes = Counter((cell.split("|")[1] == "none", result["outcome"]) for cell, result in done.items())
    print(f"\n{len(done.items())} cells killed at lines of the sockets, by whether there was no fault: {outcomes}")
    wrong = [one for one in done.items() if one[1]["outcome"] == "wrong"]
    assert not wrong, wrong[0]
    assert set(outcomes) <= {(True, "exact"), *((False, word) for word in OUTCOMES)}


@pytest.mark.prove
@pytest.mark.timeout(0)
def test_dead_at_every_line(room: Room, proofs: Any) -> None:
    """Every point under every fault; a story that is wrong does not stop the others."""
    alone = bool(os.environ.get("MLBOT_ALONE"))
    done = proofs.cells("crash_alone" if alone else "crash_points")
    columns = os.environ.get("MLBOT_FAULTS", ",".join(room.desk.faults())).split(",")
    scenarios = {scenario.name: scenario for scenario in room.desk.SCENARIOS}
    if cell := os.environ.get("MLBOT_CELL"):
        name, fault, number = cell.split("|")
        told = room.story(scenarios[name], fault, frozenset([int(number.split()[0])]))
        print(f"\n{json.dumps(told['states'], indent=1)}")
        assert not _problems(f"{name}|{fault}", told)
        return
    shard, _, shards = os.environ.get("MLBOT_SHARD", "0/1").partition("/")
    places = [(name, fault) for name in scenarios for fault in columns]
    # a part of them is a fair sample, the column without a fault comes first
    places.sort(key=lambda one: (one[1] != "none", hashlib.blake2b("|".join(one).encode()).digest()))
    left = int(os.environ.get("MLBOT_STORIES", "1000000"))
    for place, (name, fault) in enumerate(places):
        story = f"{name}|{fault}"
        if place % int(shards) != int(shard) or done.has(story) or left <= 0:
            continue
        left -= 1
        began = time.monotonic()
        told = room.story(scenarios[name], fault, alone=alone)
        done.add(story, {**told, "points": len(told["points"]), "wall_s": round(time.monotonic() - began, 1)})
        for problem in _problems(story, told):
            done.note_failure(story, problem)
            print(f"\nWRONG {problem}", flush=True)
        (proofs.folder / f"{done.path.stem}.txt").write_text(table(done.items()) + "\n")
    print(f"\n{len(done.items())} stories\n{table(done.items())}")
    problems = [problem for story, told in done.items() for problem in _problems(story, told)]
    assert not problems, f"{len(problems)} problems; the first:\n{problems[0]}"
    assert done.items()
