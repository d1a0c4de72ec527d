"""Days of live trading in minutes: real sensors, real servers, the emulator, and servers that are killed on the way.

All processes share one clock, which runs twice as fast as the wall and is moved ahead when a bar's work is done. The
short rehearsal lasts eight bars of two hours; the long one a fortnight, and the first two days of it on all timeframes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlbot_core.clock import FixedClock, SharedClock, parse_utc_ms
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.timeframe import HOUR_MS, Timeframe

ROOT = Path(__file__).resolve().parents[2]
BEGIN = "2023-09-01"
TRAINED_FROM = "2024-03-01"
NOW = "2024-04-01T00:05:00Z"
SPEED = 2.0
SETTLE_S = 30
# the sensors ask ten seconds before the close and look every five seconds of the wall
AHEAD_MS = 24_000
ACCOUNT = "emulator:100001"
CONTRACT = "BTCUSDT"
TWO_HOURS = Timeframe(120)
KILLED = ("webserver", "daemon", "code-server")


def wait(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.2)
    return found


@dataclass
class Rehearsal:
    """A home that was trained, and everything that trades on it."""

    folder: Path
    timeframes: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def clock(self) -> SharedClock:
        return SharedClock(self.folder / "clock")

    def prepare(self) -> None:
        """Write the configuration, pull the history, train."""
        config = self.folder / "config"
        shutil.copytree(ROOT / "config", config, ignore=shutil.ignore_patterns("api_keys.yaml"))
        self._edit(config / "intervals.yaml", timeframes=list(self.timeframes))
        self._edit(config / "intervals.yaml", "settle_delay_s", emulator=SETTLE_S)
        self._edit(config / "intervals.yaml", "emulator", start=BEGIN, seed=20240101)
        self._edit(config / "intervals.yaml", history_start=BEGIN)
        self._edit(config / "models.yaml", "walk_forward", train_days=120, min_train_days=60, test_days=30, models={})
        self._edit(config / "execution.yaml", model="lightgbm")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLBOT_", "DAGSTER_"))}
        self.environment = kept | {
            "MLBOT_HOME": str(self.home),
            "MLBOT_CONFIG_DIR": str(config),
            "MLBOT_SOURCE": "emulator",
            "MLBOT_CLOCK": f"file:{self.folder / 'clock'}",
        }
        SharedClock.begin(self.folder / "clock", parse_utc_ms(NOW), SPEED)
        intervals = [part for timeframe in self.timeframes for part in ("-i", timeframe)]
        self.mlbot("backfill", "--from", BEGIN, *intervals)
        self.mlbot("train", "-m", "lightgbm", "--from", TRAINED_FROM, *intervals)

    def _edit(self, path: Path, section: str = "", **values: Any) -> None:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        target = content[section] if section else content
        assert set(values) <= set(target), "the test's own edit must take"
        target.update(values)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def mlbot(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mlbot_core.cli.main", *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with (self.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlbot_core.cli.main", "up", "--live", "--port", str(port)],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.port = port
        wait(lambda: "running:" in self.said() or self.process.poll() is not None, 240, "mlbot up --live")
        assert self.process.poll() is None, self.said()
        # a sensor that was never looked at asks for the newest closed bar first; let it
        wait(lambda: self.beats("risk-watch"), 60, "the risk watch")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(90)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                raise

    def said(self) -> str:
        path = self.folder / "up.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def services(self) -> dict[str, dict[str, Any]]:
        rows = json.loads((self.home / "live" / "services.json").read_text(encoding="utf-8"))
        return {row["name"]: row for row in rows}

    def beats(self, name: str) -> Mapping[str, Any] | None:
        path = self.home / "live" / "emulator_100001" / f"beat-{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def kill(self, name: str) -> None:
        before = self.services()[name]["pid"]
        os.kill(before, signal.SIGKILL)
        wait(lambda: self.services().get(name, {}).get("pid") not in (None, before), 90, f"{name} to be started again")

    def book(self) -> ExecutionLedger:
        return ExecutionLedger(self.home, FixedClock(self.clock.now_ms()), ACCOUNT)

    def decided(self) -> int:
        with self.book() as book:
            newest = book.newest_decision(CONTRACT)
        return -1 if newest is None else newest.ts

    def to_next_bar(self) -> int:
        """Move ahead to shortly before the next close, and wait until its bar is decided; return its open time."""
        now = self.clock.now_ms()
        bar = TWO_HOURS.floor(now)
        if self.decided() >= bar:
            bar += TWO_HOURS.ms
        before = bar + TWO_HOURS.ms - AHEAD_MS
        if before > now:
            self.clock.set_ms(before)
        wait(lambda: self.decided() >= bar, 240, f"the decision on {bar}")
        # its orders, and what the run writes down after them
        wait(lambda: not self.open_intents(), 120, "the orders of the decision")
        time.sleep(2)
        return bar

    def open_intents(self) -> int:
        with self.book() as book:
            return len(book.open_intents(CONTRACT))

    def truth(self) -> dict[str, Any]:
        with (self.home / "live" / "logs" / "emulator.log").open(encoding="utf-8") as log:
            url = json.loads(log.readline())["url"]
        with urllib.request.urlopen(f"{url}/_emulator/exchange/truth", timeout=60) as answer:
            found: dict[str, Any] = json.loads(answer.read())["accounts"]["100001"]
        return found

    def ask(self, query: str) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            json.dumps({"query": query}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.loads(answer.read())["data"]
        return found


@pytest.fixture
def rehearse(tmp_path: Path) -> Iterator[Callable[..., Rehearsal]]:
    made: list[Rehearsal] = []

    def begin(*timeframes: str) -> Rehearsal:
        rehearsal = Rehearsal(tmp_path, timeframes)
        rehearsal.prepare()
        made.append(rehearsal)
        rehearsal.start()
        return rehearsal

    yield begin
    for one in made:
        one.stop()


def check_books(rehearsal: Rehearsal, first: int, last: int) -> int:
    """Each bar decided exactly once; book and exchange agree to the last cent; return the number of orders."""
    truth = rehearsal.truth()
    with rehearsal.book() as book:
        bars = [row["ts"] for row in book.rows("decisions") if row["trigger"] == "bar"]
        assert bars == list(range(first, last + 1, TWO_HOURS.ms))
        fills = {fill.exec_id: fill for fill in book.executions(CONTRACT)}
        told = {row["execId"]: row for row in truth["executions"]}
        assert set(fills) == set(told)
        for name, row in told.items():
            assert (fills[name].qty, fills[name].fee) == (Decimal(row["execQty"]), Decimal(row["execFee"])), name
        assert book.held(CONTRACT).size == Decimal(truth["positions"].get(CONTRACT, {}).get("size") or 0) * (
            -1 if truth["positions"].get(CONTRACT, {}).get("side") == "Sell" else 1
        )
        balance = book.balance(CONTRACT)
        assert balance is not None
        assert balance[0] == Decimal(truth["wallet"]["USDT"])
        links = [row["order_link_id"] for row in book.rows("attempts")]
        assert len(links) == len(set(links))
        theirs = [row["orderLinkId"] for row in truth["orders"] if row["orderLinkId"]]
        assert sorted(theirs) == sorted(set(theirs))
        assert set(theirs) <= set(links)
        alerts = {alert.code for alert in book.pending_alerts()}
        assert not {code for code in alerts if code.startswith(("reconcile", "ledger_conflict"))}, alerts
    return len(links)


def check_audit(rehearsal: Rehearsal) -> None:
    """Every order can be explained, every decision comes out the same again."""
    with rehearsal.book() as book:
        orders = [row["order_link_id"] for row in book.rows("attempts")]
        decisions = [row["decision_id"] for row in book.rows("decisions") if row["trigger"] == "bar"]
    for name in orders:
        chain = json.loads(rehearsal.mlbot("explain", name, "--json"))
        assert chain
    for name in decisions:
        rehearsal.mlbot("replay", name)


@pytest.mark.prove
@pytest.mark.timeout(1400)
def test_eight_bars_are_decided_once_each_although_servers_are_killed(rehearse: Callable[..., Rehearsal]) -> None:
    rehearsal = rehearse("2h", "4h")
    first = rehearsal.to_next_bar()
    last = first
    for number in range(7):
        if number in (1, 3, 5):
            rehearsal.kill(KILLED[number // 2])
        last = rehearsal.to_next_bar()
        assert last == first + (number + 1) * TWO_HOURS.ms
    check_books(rehearsal, first, last)
    check_audit(rehearsal)
    again = rehearsal.decided()
    by_hand_sends_nothing(rehearsal, again)


def by_hand_sends_nothing(rehearsal: Rehearsal, bar: int) -> None:
    """Launching the job for a decided bar, and for an old one, sends no order and says why."""
    before = len(rehearsal.truth()["orders"])
    for ts, said in ((bar, "exists"), (bar - 10 * TWO_HOURS.ms, "the newest closed 2h bar is")):
        ops = {
            name: {"config": {"market": "BTC-2h", "ts": ts}}
            for name in ("live__bars", "live__signals", "live__decision")
        }
        config = json.dumps(json.dumps({"ops": ops}))
        selector = '{repositoryLocationName: "mlbot", repositoryName: "__repository__", jobName: "live_bar"}'
        launched = rehearsal.ask(
            f"mutation {{ launchRun(executionParams: {{selector: {selector}, runConfigData: {config}}}) "
            "{ __typename ... on LaunchRunSuccess { run { id } } ... on PythonError { message } } }"
        )["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run = launched["run"]["id"]

        def status(run: str = run) -> str | None:
            found = rehearsal.ask(f'{{ runOrError(runId: "{run}") {{ ... on Run {{ status }} }} }}')["runOrError"][
                "status"
            ]
            return found if found in ("SUCCESS", "FAILURE", "CANCELED") else None

        assert wait(status, 180, "the run by hand") == "SUCCESS"
        log = (rehearsal.home / "live" / "logs" / "code-server.log").read_text(encoding="utf-8", errors="replace")
        lines = [line for line in log.splitlines() if run in line and "live__decision" in line]
        assert any("0 orders" in line and said in line for line in lines), lines
    assert len(rehearsal.truth()["orders"]) == before


@pytest.mark.prove
@pytest.mark.parametrize("days", [int(os.environ.get("MLBOT_REHEARSAL_DAYS", "14"))])
def test_a_fortnight_with_ten_kills(rehearse: Callable[..., Rehearsal], days: int) -> None:
    chance = random.Random(20240401)
    rehearsal = rehearse("2h", "4h")
    first = last = rehearsal.to_next_bar()
    bars = 12 * days
    killed = set(chance.sample(range(1, bars - 1), min(10, bars - 2)))
    began = time.monotonic()
    for number in range(1, bars):
        if number in killed:
            rehearsal.kill(chance.choice(KILLED))
        last = rehearsal.to_next_bar()
        assert last == first + number * TWO_HOURS.ms
    orders = check_books(rehearsal, first, last)
    check_audit(rehearsal)
    print(f"{bars} bars, {orders} orders, 10 kills, {(time.monotonic() - began) / bars:.1f} s a bar")
    assert last - first == (bars - 1) * 2 * HOUR_MS
