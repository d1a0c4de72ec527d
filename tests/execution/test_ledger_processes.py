"""Real processes write at once and are killed at any moment: every transaction is whole, nothing confirmed is lost."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
import sqlalchemy as sa

from mlbot_core.clock import FixedClock
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_folds import IntentStatus

ACCOUNT = "test:1"

# Trades a reversal a bar: decision with two intents, an attempt and its send, an order, two fills. Says what it did
# after each call returned.
WRITER = """
import sys
from decimal import Decimal as D
from pathlib import Path
from mlbot_core.clock import FixedClock
from mlbot_core.execution.identifiers import decision_id
from mlbot_core.execution.intents import PlanRules, Situation, Ticket, market_request, plan_intents
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_intents import DecisionExistsError
from mlbot_core.execution.ledger_states import AttemptError, BAR, DecisionRecord
from mlbot_core.execution.types import Execution, ExecType, Instrument
from mlbot_core.timeframe import HOUR_MS, Timeframe

home, name, start, count, url = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] or None
book = ExecutionLedger(Path(home), FixedClock(0), "test:1", url=url, timeout_s=60)
rules = PlanRules(D("0.10"), D("0.01"), D("0.1"))
btc = Instrument("BTCUSDT", D("0.10"), D("0.001"), D("0.001"), D("1190"), D("500"), D("5"))
print("ready", flush=True)
for bar in range(start, start + count):
    ts = bar * 2 * HOUR_MS
    decision = decision_id("test:1", "BTCUSDT", Timeframe.parse("2h"), ts)
    ticket = Ticket("ml", "test:1", decision, HOUR_MS)
    plan = plan_intents(D("-0.1"), Situation(D("0.15"), D(49000), D(50000), D(100000)), btc, rules, ticket)
    try:
        book.record_decision(DecisionRecord(decision, "ml", "BTCUSDT", BAR, "2h", ts, ts, D("-0.05")), plan)
    except DecisionExistsError:
        continue
    print("decision", decision, name, flush=True)
    close = plan[0]
    request = market_request(close, 0, close.qty)
    book.begin_attempt(close.intent_id, request)
    print("attempt", close.intent_id, name, flush=True)
    fills = [
        Execution(f"{close.intent_id}-{n}", ExecType.TRADE, "x", close.intent_id, "BTCUSDT", close.side, D(qty),
                  D(50000), D(qty) * 50000, D(0), D(0), False, D(0), ts + n)
        for n, qty in enumerate(("0.1", "0.05"))
    ]
    book.record_executions(fills)
    print("fills", close.intent_id, name, flush=True)
print("done", flush=True)
"""


def start(home, name, first=1, count=500, url=""):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(home), str(name), str(first), str(count), url],
        stdout=subprocess.PIPE,
        text=True,
    )


def said_by(writer):
    lines = [line.split() for line in writer.stdout.read().splitlines()]
    writer.stdout.close()
    return {(line[0], line[1]) for line in lines if len(line) == 3}


def check_whole(book, said):
    """Every decision has its plan, every attempt its send, every close both of its fills or none."""
    decisions = {row["decision_id"] for row in book.rows("decisions")}
    for decision in decisions:
        assert [state.intent.key.leg.value for state in book.intents_of(decision)] == ["close", "entry"]
    attempts = [row["order_link_id"] for row in book.rows("attempts")]
    assert len(set(attempts)) == len(attempts)
    assert attempts == [row["order_link_id"] for row in book.rows("attempt_events") if row["kind"] == "sent"]
    filled = {}
    for row in book.rows("fills"):
        filled[row["order_link_id"]] = filled.get(row["order_link_id"], 0) + 1
    assert set(filled.values()) <= {2}
    for link in filled:
        assert book.intent(link).status is IntentStatus.COMPLETE
    closed = [row["intent_id"] for row in book.rows("intent_closings")]
    assert sorted(closed) == sorted(filled)
    stored = {"decision": decisions, "attempt": set(attempts), "fills": set(filled)}
    for what, name in said:
        assert name in stored[what]
    return len(decisions)


def test_two_processes_decide_each_bar_once(tmp_path):
    writers = [start(tmp_path, name, count=8) for name in range(2)]
    said = [said_by(writer) for writer in writers]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert not said[0] & said[1]
    with ExecutionLedger(tmp_path, FixedClock(0), ACCOUNT) as book:
        assert check_whole(book, said[0] | said[1]) == 8
        assert len(book.executions()) == 16


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_every_transaction_whole(tmp_path):
    """Two writers at a time on other bars of one book, killed with SIGKILL at random moments, round after round."""
    rng = np.random.default_rng(11)
    said = set()
    first = 1
    for turn in range(60):
        # a machine that is busy lets them say little before they die
        if turn >= 12 and len(said) > 30:
            break
        writers = [start(tmp_path, name, first) for name in range(2)]
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        time.sleep(float(rng.uniform(0.01, 0.6)))
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
        for writer in writers:
            said |= said_by(writer)
            assert writer.wait(timeout=30) == -signal.SIGKILL
        with ExecutionLedger(tmp_path, FixedClock(0), ACCOUNT) as book:
            check_whole(book, said)
            newest = book.newest_decision("BTCUSDT")
            first = 1 if newest is None else newest.ts // 7_200_000 + 1
    with sqlite3.connect(tmp_path / "execution.sqlite") as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(said) > 30
    # and the book goes on
    last = start(tmp_path, "last", first, 2)
    done = said_by(last)
    assert last.wait(timeout=60) == 0
    assert len(done) == 6


@pytest.fixture
def database(postgres_url):
    """A database of its own: the server is shared with tests that decide later bars of the same account."""
    server = sa.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg2:"), isolation_level="AUTOCOMMIT")
    with server.connect() as con:
        con.execute(sa.text("CREATE DATABASE processes"))
    yield postgres_url.rpartition("/")[0] + "/processes"
    with server.connect() as con:
        con.execute(sa.text("DROP DATABASE processes WITH (FORCE)"))
    server.dispose()


@pytest.mark.slow
def test_the_same_on_postgres(tmp_path, database):
    writers = [start(tmp_path, name, count=6, url=database) for name in range(2)]
    said = [said_by(writer) for writer in writers]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    killed = start(tmp_path, "killed", 7, url=database)
    assert killed.stdout.readline() == "ready\n"
    time.sleep(0.5)
    os.kill(killed.pid, signal.SIGKILL)
    late = said_by(killed)
    assert killed.wait(timeout=30) == -signal.SIGKILL
    assert not (tmp_path / "execution.sqlite").exists()
    book = ExecutionLedger(tmp_path, FixedClock(0), ACCOUNT, url=database)
    assert check_whole(book, said[0] | said[1] | late) >= 6
    assert not said[0] & said[1]
    assert (
        book.positions_from_fills()["BTCUSDT"].size == -len(book.executions()) // 2 * book.executions()[0].qty * 3 / 2
    )
