"""Drills with real processes: trader and risk watch are frozen with a position open, and the dead-man closes it.

Emulator, trader, risk watch and dead-man are processes of their own; they meet over sockets and in the account's folder
only. The trader can be frozen idle, inside a transaction of the book, and between the last check and the bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path

import pytest

from mlbot_core.clock import SystemClock
from mlbot_core.execution.flatten import is_emergency
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.safety import SafetyFiles, folder_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]
ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "emulator:100001"
AFTER_S = 6.0  # longer than the exchange's receive window: what was frozen as long is refused there as well
WINDOW_S = 5.0
D = Decimal

# A trader that holds a position, beats, and freezes itself where it is told to; awake again it tries to buy.
TRADER = """
import os, signal, sys, time
from decimal import Decimal as D
from mlbot_core.clock import SystemClock
from mlbot_core.config import load_settings
from mlbot_core.execution.ledger import open_ledger
from mlbot_core.execution.reconcile import reconcile
from mlbot_core.execution.safety import Lease, Permit, SafetyFiles, folder_of
from mlbot_core.execution.types import OrderRequest, OrderType, Side
from mlbot_core.execution.venues import open_broker

where = sys.argv[1]
settings, clock = load_settings(), SystemClock()
opened = open_broker(settings, clock)
broker, symbol = opened.broker, opened.contract
files = SafetyFiles(folder_of(settings.live_dir, opened.account), opened.account, clock)
lease = Lease(settings.execution.watch.lease_s, clock)
permit = Permit(files, lease)
book = open_ledger(settings.home, clock, opened.account)
reconcile(book, broker, clock, symbol)
lease.renew()
files.beat("trader")
last = broker.ticker(symbol).last
def order(name, qty):
    stop = (broker.ticker(symbol).last * D("0.9")).quantize(D(1))
    return OrderRequest(name, symbol, Side.BUY, OrderType.MARKET, D(qty), stop_loss=stop)
print("entry", broker.place(order("drill-entry", "0.05"), may_send=permit.entry), flush=True)
reconcile(book, broker, clock, symbol)
sys.stdin.readline()
lease.renew()
print("freezing", flush=True)
freeze = lambda: os.kill(os.getpid(), signal.SIGSTOP)
if where == "idle":
    freeze()
    outcome = broker.place(order("drill-late", "0.03"), may_send=permit.entry)
elif where == "transaction":
    with book._writing():
        freeze()
    outcome = broker.place(order("drill-late", "0.03"), may_send=permit.entry)
else:
    asked = []
    def may_send():
        allowed = permit.entry()
        asked.append(allowed)
        if len(asked) == (2 if where == "body" else 1):
            freeze()
        return allowed
    ready = order("drill-late", "0.03")
    broker.instrument(symbol)
    outcome = broker.place(ready, may_send=may_send)
print("late", type(outcome).__name__, getattr(outcome, "name", ""), getattr(outcome, "code", ""), flush=True)
print("again", broker.place(order("drill-again", "0.03"), may_send=permit.entry).name, flush=True)
lease.renew()
print("renewed", broker.place(order("drill-renewed", "0.03"), may_send=permit.entry).name, flush=True)
"""


class Scene:
    """The processes of one drill."""

    def __init__(self, tmp_path: Path, stack: ExitStack, after_s: float) -> None:
        self.stack = stack
        self.home = tmp_path / "home"
        config = tmp_path / "config"
        shutil.copytree(ROOT / "config", config, ignore=shutil.ignore_patterns("api_keys.yaml"))
        text = (config / "execution.yaml").read_text()
        for name, value in (("every_s", 1), ("deadman_after_s", after_s), ("lease_s", 3)):
            line = next(line for line in text.splitlines() if line.strip().startswith(f"{name}:"))
            text = text.replace(line, f"  {name}: {value}")
        (config / "execution.yaml").write_text(text)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLBOT_", "DAGSTER_"))}
        self.environ = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "MLBOT_HOME": str(self.home),
            "MLBOT_CONFIG_DIR": str(config),
        }
        self.logs = tmp_path
        emulator = self.run("emulator", "-m", "mlbot_core.emulator", "--start", "2026-01-01", "--ip-calls", "100000")
        ready = json.loads(emulator.stdout.readline())
        self.url = ready["url"]
        self.environ["MLBOT_EMULATOR_URL"] = self.url
        self.files = SafetyFiles(folder_of(self.home / "live", ACCOUNT), ACCOUNT)

    def run(self, name: str, *args: str) -> subprocess.Popen[str]:
        log = self.stack.enter_context((self.logs / f"{name}.log").open("a"))
        child = subprocess.Popen(
            [sys.executable, *args],
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

        def end() -> None:
            if child.poll() is None:
                child.send_signal(signal.SIGCONT)
                child.kill()
            child.communicate(timeout=20)

        self.stack.callback(end)
        return child

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text()

    def until(self, what, seconds: float, said: str) -> float:
        begun = time.monotonic()
        while not what():
            assert time.monotonic() - begun < seconds, f"{said} not within {seconds} s\n{self.every_log()}"
            time.sleep(0.05)
        return time.monotonic() - begun

    def every_log(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.logs.glob("*.log")))

    def truth(self):
        with urllib.request.urlopen(f"{self.url}/_emulator/exchange/truth", timeout=20) as answer:
            return json.load(answer)

    def held(self) -> Decimal:
        row = self.truth()["accounts"]["100001"]["positions"].get("BTCUSDT")
        return D(row["size"]) if row else D(0)

    def requests(self, link: str) -> list[str]:
        return [note["note"] for note in self.truth()["requests"] if note["link"] == link]

    def start(self, where: str, *more: str):
        # all at once: most of a drill is their start
        trader = self.run("trader", "-c", TRADER, where)
        watch = self.run("watch", "-m", "mlbot_core.execution.risk_watch")
        deadman = self.run("deadman", "-m", "mlbot_core.execution.deadman", *more)
        assert trader.stdout.readline().startswith("entry Accepted"), self.every_log()
        self.until(lambda: D(str(beat_of(self, "risk-watch", "position") or 0)) > 0, 60, "the position seen")
        self.until(lambda: beat_of(self, "dead-man", "armed"), 60, "armed")
        assert self.held() == D("0.05")
        return trader, watch, deadman

    def freeze(self, trader, watch) -> float:
        trader.stdin.write("\n")
        trader.stdin.flush()
        assert trader.stdout.readline() == "freezing\n"
        self.until(lambda: state_of(trader.pid) == "T", 20, "the trader frozen")
        os.kill(watch.pid, signal.SIGSTOP)
        return time.monotonic()

    def book(self) -> ExecutionLedger:
        return ExecutionLedger(self.home, SystemClock(), ACCOUNT, timeout_s=5)


def beat_of(scene: Scene, name: str, fact: str):
    beat = scene.files.heartbeat(name)
    return None if beat is None else beat.facts.get(fact)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def scene(tmp_path, request):
    with ExitStack() as stack:
        yield Scene(tmp_path, stack, getattr(request, "param", AFTER_S))


@pytest.mark.parametrize(
    ("where", "fencing"),
    [*((where, True) for where in ("idle", "transaction", "body")),
     *((where, False) for where in ("idle", "transaction", "head", "body"))],
)  # fmt: skip
def test_the_drill(scene, where, fencing):
    trader, watch, deadman = scene.start(where, *([] if fencing else ["--no-fence"]))
    frozen = scene.freeze(trader, watch)
    scene.until(lambda: scene.files.halted() is not None, AFTER_S + 5, "halted")
    scene.until(lambda: scene.held() == 0, AFTER_S + 5, "flat")
    took = time.monotonic() - frozen
    print(f"{where}, fencing {fencing}: flat {took:.1f} s after the freeze (N = {AFTER_S:g} s)")
    assert took < AFTER_S + 5
    assert scene.files.halted().actor == "dead-man"
    links = [row["orderLinkId"] for row in scene.truth()["accounts"]["100001"]["orders"] if row["orderLinkId"]]
    assert [link for link in links if not is_emergency(link)] == ["drill-entry"]
    time.sleep(max(0.0, frozen + WINDOW_S + 0.5 - time.monotonic()))
    for child in (trader, watch):
        if child.poll() is None:
            child.send_signal(signal.SIGCONT)
    said, _ = trader.communicate(timeout=60)
    if fencing:
        assert said == ""
        assert trader.returncode == -signal.SIGKILL
        assert watch.wait(timeout=20) == -signal.SIGKILL
        assert scene.requests("drill-late") == []
    else:
        lines = said.splitlines()
        late = {
            # the lease ran out while it was frozen
            "idle": "late DefiniteReject may_not_send 0",
            "transaction": "late DefiniteReject may_not_send 0",
            # the head went out after the first check; the body was held back by the second
            "head": "late DefiniteReject may_not_send 0",
            # the bytes were past the last check: they arrive after the receive window
            "body": "late DefiniteReject timestamp 10002",
        }
        assert lines == [late[where], "again may_not_send", "renewed may_not_send"], scene.every_log()
        assert watch.poll() is None
        if where == "body":
            # the exchange noted that the request came and refused it before it looked at the order
            refused = [note for note in scene.truth()["requests"] if note["note"] == "refused 10002"]
            assert len(refused) == 1
            assert refused[0]["path"] == "/v5/order/create"
        assert scene.requests("drill-late") == scene.requests("drill-again") == scene.requests("drill-renewed") == []
    time.sleep(2)
    assert scene.held() == 0
    truth = scene.truth()["accounts"]["100001"]
    assert [row["orderLinkId"] for row in truth["orders"] if row["orderLinkId"]] == links
    # the book is free now, whoever held it: it knows
    scene.until(lambda: not list((scene.files.folder / "unrecorded").glob("flat-*.json")), 30, "recorded")
    with scene.book() as book:
        assert "flatten" in {alert.code for alert in book.pending_alerts()}
        assert book.held("BTCUSDT").size == 0
        assert book.load_risk_state("BTCUSDT").state.causes & 64
    deadman.send_signal(signal.SIGTERM)
    assert deadman.wait(timeout=30) == 0


def test_a_book_that_stays_locked_keeps_nobody_from_closing(scene):
    """The trader stays frozen inside its transaction: flat all the same, recorded only when it lets go."""
    trader, watch, _ = scene.start("transaction", "--no-fence")
    frozen = scene.freeze(trader, watch)
    scene.until(lambda: scene.held() == 0, AFTER_S + 5, "flat")
    assert time.monotonic() - frozen < AFTER_S + 5
    time.sleep(3)
    assert list((scene.files.folder / "unrecorded").glob("flat-*.json"))
    trader.send_signal(signal.SIGCONT)
    trader.communicate(timeout=60)
    scene.until(lambda: not list((scene.files.folder / "unrecorded").glob("flat-*.json")), 30, "recorded")


def test_the_kill_switch_waits_for_no_lock(scene):
    """`mlbot halt` while the book is held by a frozen process: flat first, recorded once the lock is gone."""
    trader, watch, deadman = scene.start("transaction")
    # only the command is to act
    deadman.send_signal(signal.SIGTERM)
    deadman.wait(timeout=30)
    scene.freeze(trader, watch)
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "mlbot_core.cli.main", "halt", "--reason", "a drill", "--record-wait", "1", "--json"],
        env=scene.environ, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["report"]["flat"]
    assert not found["recorded"]
    assert found["waiting"]
    assert scene.held() == 0
    print(f"halt: {found['in_words']}; the command took {time.monotonic() - begun:.1f} s")
    assert scene.files.halted().reason == "a drill"
    trader.send_signal(signal.SIGCONT)
    trader.communicate(timeout=60)
    watch.send_signal(signal.SIGCONT)
    scene.until(lambda: not list((scene.files.folder / "unrecorded").glob("flat-*.json")), 30, "recorded by the watch")
    with scene.book() as book:
        assert book.newest_decision("BTCUSDT", "emergency-halt") is not None
        assert book.load_risk_state("BTCUSDT").state.causes & 64
        assert book.held("BTCUSDT").size == 0


# longer than a busy machine takes to start the watch again
@pytest.mark.parametrize("scene", [60.0], indirect=True)
def test_a_watch_that_was_killed_goes_on_in_its_state(scene):
    """kill -9 and a new process within the dead-man's patience: nothing is closed, day and peak go on."""
    trader, watch, deadman = scene.start("idle")
    scene.until(lambda: beat_of(scene, "risk-watch", "peak_nav"), 30, "a mark")
    with scene.book() as book:
        before = book.load_risk_state("BTCUSDT").state
    watch.kill()
    watch.wait(timeout=20)
    again = scene.run("watch", "-m", "mlbot_core.execution.risk_watch")
    scene.until(lambda: scene.files.heartbeat("risk-watch").pid == again.pid, 30, "the new watch's beat")
    with scene.book() as book:
        after = book.load_risk_state("BTCUSDT").state
    assert (after.day, after.day_start_nav, after.causes) == (before.day, before.day_start_nav, before.causes)
    assert after.peak_nav >= before.peak_nav
    again.send_signal(signal.SIGTERM)
    assert again.wait(timeout=30) == 0
    assert "without farewell" in scene.log("watch")
    assert scene.held() == D("0.05")
    assert scene.files.halted() is None
    assert beat_of(scene, "dead-man", "armed")
    assert trader.poll() is None
    assert deadman.poll() is None
