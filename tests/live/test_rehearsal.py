"""Days of live trading in minutes: real sensors, real servers, the emulator, and servers that are killed on the way.

All processes share one clock, which runs twice as fast as the wall and is moved ahead when a bar's work is done. The
short rehearsal lasts eight bars of two hours; the long one a fortnight, and the first two days of it on all timeframes.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mlbot_core.timeframe import HOUR_MS

sys.path.insert(0, str(Path(__file__).parent))

from rehearsal import CONTRACT, TWO_HOURS, Rehearsal, wait

KILLED = ("webserver", "daemon", "code-server")
AGAIN = 20
# why a live run that is launched once more sends nothing
WHY_NOT = ("exists; nothing to do", "the newest closed 2h bar is", "it may be traded", "is the decision clock")
LAUNCHED = "__typename ... on LaunchRunSuccess { run { id } } ... on PythonError { message }"
REEXECUTE = (
    "mutation ($parent: String!) { launchRunReexecution(reexecutionParams: "
    f"{{parentRunId: $parent, strategy: ALL_STEPS}}) {{ {LAUNCHED} }} }}"
)
LAUNCH = f"mutation ($asked: ExecutionParams!) {{ launchRun(executionParams: $asked) {{ {LAUNCHED} }} }}"
LIVE_RUNS = (
    'query { runsOrError(filter: {pipelineName: "live_bar", statuses: [SUCCESS]}, limit: 1000) '
    "{ ... on Runs { results { runId } } } }"
)
OF_RUN = (
    "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status assetMaterializations "
    "{ assetKey { path } metadataEntries { label ... on TextMetadataEntry { text } "
    "... on IntMetadataEntry { intValue } } } } } }"
)


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
@pytest.mark.timeout(2400)
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
    """Live runs done again, assets materialized by hand, the job for an old bar: no order, and each says why."""
    before = len(rehearsal.truth()["orders"])
    past = bar - 10 * TWO_HOURS.ms
    selector = {"repositoryLocationName": "mlbot", "repositoryName": "__repository__"}
    runs: list[str] = []
    for ts in (bar, past):
        ops = {f"live__{part}": {"config": {"market": "BTC-2h", "ts": ts}} for part in ("bars", "signals", "decision")}
        tags = [{"key": "mlbot/bar", "value": str(ts)}, {"key": "mlbot/live", "value": "1"}]
        asked = {
            "selector": {**selector, "jobName": "live_bar"},
            "runConfigData": json.dumps({"ops": ops}),
            "executionMetadata": {"tags": tags},
        }
        runs.append(launched(rehearsal.ask(LAUNCH, asked=asked)["launchRun"]))
    every = [{"path": ["live", part]} for part in ("bars", "signals", "decision")]
    for assets in (every, every[-1:]):
        by_hand = {"selector": {**selector, "jobName": "__ASSET_JOB", "assetSelection": assets}, "runConfigData": "{}"}
        runs.append(launched(rehearsal.ask(LAUNCH, asked=by_hand)["launchRun"]))
    said = [sent_nothing(rehearsal, run) for run in runs]
    assert WHY_NOT[0] in said[0], said
    assert WHY_NOT[1] in said[1], said
    live = [row["runId"] for row in rehearsal.ask(LIVE_RUNS)["runsOrError"]["results"]]
    assert len(live) >= AGAIN // 2
    for number in range(AGAIN):
        done = rehearsal.ask(REEXECUTE, parent=live[number % len(live)])["launchRunReexecution"]
        said.append(sent_nothing(rehearsal, launched(done)))
    assert len(said) == AGAIN + 4
    assert len(rehearsal.truth()["orders"]) == before
    log = (rehearsal.home / "live" / "logs" / "code-server.log").read_text(encoding="utf-8", errors="replace")
    lines = [line for line in log.splitlines() if runs[0] in line and "live__decision" in line]
    assert any("0 orders" in line and WHY_NOT[0] in line for line in lines), lines


def launched(answer: dict[str, Any]) -> str:
    """Return the id of the run that was begun."""
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["id"])


def sent_nothing(rehearsal: Rehearsal, run: str) -> str:
    """Wait for a run, which must send no order, and return the line that says why."""

    def over() -> dict[str, Any] | None:
        found: dict[str, Any] = rehearsal.ask(OF_RUN, run=run)["runOrError"]
        return found if found["status"] in ("SUCCESS", "FAILURE", "CANCELED") else None

    found = wait(over, 240, f"run {run}")
    assert found["status"] == "SUCCESS", run
    (decision,) = [one for one in found["assetMaterializations"] if one["assetKey"]["path"] == ["live", "decision"]]
    told = {one["label"]: one.get("text", one.get("intValue")) for one in decision["metadataEntries"]}
    assert told["orders sent"] == 0, told
    line = str(told["what happened"])
    assert ": 0 orders: " in line, line
    assert any(why in line for why in WHY_NOT), line
    return line


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
