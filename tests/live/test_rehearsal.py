"""Days of live trading in minutes: real sensors, real servers, the emulator, and servers that are killed on the way.

All processes share one clock, which runs twice as fast as the wall and is moved ahead when a bar's work is done. The
short rehearsal lasts eight bars of two hours, the long one a fortnight, another two days on four timeframes. With
``MLBOT_REHEARSAL_DIR`` a rehearsal leaves its home in that empty folder, so that one can look at it afterwards.
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
from scipy.stats import binom

from mlbot_core.clock import FixedClock, format_utc
from mlbot_core.config import load_settings
from mlbot_core.live.parity import parity
from mlbot_core.live.parity_plot import parity_png
from mlbot_core.timeframe import DAY_MS, Timeframe
from mlbot_core.warehouse import Warehouse

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
RUNS_OF = (
    "query ($tags: [ExecutionTag!]) { runsOrError(filter: {tags: $tags}, limit: 10) "
    "{ ... on Runs { results { status } } } }"
)
OF_RUN = (
    "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status assetMaterializations "
    "{ assetKey { path } metadataEntries { label ... on TextMetadataEntry { text } "
    "... on IntMetadataEntry { intValue } } } } } }"
)


@pytest.fixture
def rehearse(tmp_path: Path) -> Iterator[Callable[..., Rehearsal]]:
    made: list[Rehearsal] = []
    kept = os.environ.get("MLBOT_REHEARSAL_DIR")
    folder = Path(kept) if kept else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    assert not any(folder.iterdir()), f"{folder} is not empty"

    def begin(*timeframes: str) -> Rehearsal:
        rehearsal = Rehearsal(folder, timeframes)
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
    # while the last bar may still be traded
    by_hand_sends_nothing(rehearsal, last)
    check_books(rehearsal, first, last)
    check_audit(rehearsal)


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


def metadata_of(rehearsal: Rehearsal, run: str, asset: list[str]) -> dict[str, Any]:
    """Wait for a run, which must succeed, and return what it told of an asset."""

    def over() -> dict[str, Any] | None:
        found: dict[str, Any] = rehearsal.ask(OF_RUN, run=run)["runOrError"]
        return found if found["status"] in ("SUCCESS", "FAILURE", "CANCELED") else None

    found = wait(over, 240, f"run {run}")
    assert found["status"] == "SUCCESS", run
    (made,) = [one for one in found["assetMaterializations"] if one["assetKey"]["path"] == asset]
    return {one["label"]: one.get("text", one.get("intValue")) for one in made["metadataEntries"]}


def sent_nothing(rehearsal: Rehearsal, run: str) -> str:
    """Wait for a run, which must send no order, and return the line that says why."""
    told = metadata_of(rehearsal, run, ["live", "decision"])
    assert told["orders sent"] == 0, told
    line = str(told["what happened"])
    assert ": 0 orders: " in line, line
    assert any(why in line for why in WHY_NOT), line
    return line


@pytest.mark.prove
@pytest.mark.timeout(0)
@pytest.mark.parametrize("days", [int(os.environ.get("MLBOT_REHEARSAL_DAYS", "14"))])
def test_a_fortnight_in_which_every_server_is_killed_ten_times(rehearse: Callable[..., Rehearsal], days: int) -> None:
    rehearsal = rehearse("2h", "4h")
    bars = 12 * days
    deaths = Deaths(rehearsal, bars)
    memory: list[dict[str, float]] = []
    began = time.monotonic()
    first = last = rehearsal.to_next_bar()
    for number in range(1, bars):
        last = rehearsal.to_next_bar(deaths.at(number))
        assert last == first + number * TWO_HOURS.ms
        memory.append(rehearsal.resident())
        note_down(rehearsal, first, last, memory)
    print(f"{bars} bars, kills: {deaths.count}, {(time.monotonic() - began) / bars:.1f} s a bar")
    # while the last bar may still be traded
    by_hand_sends_nothing(rehearsal, last)
    orders = check_books(rehearsal, first, last)
    print(f"{orders} orders; book and exchange agree")
    check_audit(rehearsal)
    check_parity(rehearsal, first, last)


class Deaths:
    """Each server killed ten times, in random bars, within twenty seconds around their close."""

    def __init__(self, rehearsal: Rehearsal, bars: int) -> None:
        self._rehearsal = rehearsal
        self._chance = random.Random(20240401)
        times = min(10, (bars - 2) // len(KILLED))
        names = list(KILLED) * times
        self._chance.shuffle(names)
        self._when = dict(zip(self._chance.sample(range(1, bars), len(names)), names, strict=True))
        self.count: dict[str, int] = dict.fromkeys(KILLED, 0)

    def at(self, number: int) -> Callable[[], None]:
        """Return what is to be done while bar ``number`` closes and is decided."""
        name = self._when.get(number)
        if name is None:
            return lambda: None

        def kill() -> None:
            time.sleep(self._chance.uniform(0.0, 20.0))
            self._rehearsal.kill(name)
            self.count[name] += 1

        return kill


def note_down(rehearsal: Rehearsal, first: int, last: int, memory: list[dict[str, float]]) -> None:
    """Keep what only this process knows, so that the checks can be made again on the folder."""
    told = {"first": first, "last": last, "port": rehearsal.port, "memory_mib": memory}
    (rehearsal.folder / "progress.json").write_text(json.dumps(told), encoding="utf-8")


def check_parity(rehearsal: Rehearsal, first: int, last: int) -> None:
    """Every whole day has its certificate by the nightly job; the whole time is simulated again as one."""
    selector = {"repositoryLocationName": "mlbot", "repositoryName": "__repository__"}
    begin, end = -(-(first + TWO_HOURS.ms) // DAY_MS) * DAY_MS, (last + TWO_HOURS.ms) // DAY_MS * DAY_MS
    for day in range(begin, end, DAY_MS):
        ops = {"audit__parity": {"config": {"day": format_utc(day)[:10]}}}
        asked = {"selector": {**selector, "jobName": "audit_live"}, "runConfigData": json.dumps({"ops": ops})}
        run = launched(rehearsal.ask(LAUNCH, asked=asked)["launchRun"])
        told = metadata_of(rehearsal, run, ["audit", "parity"])
        print(told["what came out"])
    settings = load_settings(rehearsal.environment)
    clock = FixedClock(rehearsal.clock.now_ms())
    store = Warehouse(rehearsal.home / "warehouse.duckdb", clock)
    with rehearsal.book() as book:
        found = parity(
            store, settings, book, "emulator", settings.decision_market, CONTRACT,
            first + TWO_HOURS.ms, last + TWO_HOURS.ms + 1,
        )  # fmt: skip
    (rehearsal.folder / "parity.json").write_text(json.dumps(found.as_json(), indent=1), encoding="utf-8")
    (rehearsal.folder / "parity.png").write_bytes(parity_png(found))
    print(json.dumps(found.as_json(), indent=1))
    assert found.decisions["identical"].all()
    assert found.bars["position_ok"].all()
    assert not found.undecided
    filled = found.bars.loc[found.bars["live_qty"] != 0.0]
    outside = int((~filled["price_ok"]).sum())
    # of prices that follow the model one in a hundred lies outside of a 99 % band
    assert outside <= binom.ppf(0.999, max(len(filled), 1), 0.01), f"{outside} of {len(filled)} prices outside"


@pytest.mark.prove
@pytest.mark.timeout(0)
@pytest.mark.parametrize("bars", [int(os.environ.get("MLBOT_REHEARSAL_BARS", "96"))])
def test_two_days_of_four_timeframes(rehearse: Callable[..., Rehearsal], bars: int) -> None:
    """Every close of 30 m on; each timeframe's bar has one run and its signals, the decision clock's one decision."""
    frames = [Timeframe.parse(text) for text in ("30m", "1h", "2h", "4h")]
    rehearsal = rehearse(*map(str, frames))
    first = frames[0].floor(rehearsal.clock.now_ms()) + frames[0].ms
    closed: list[tuple[str, int]] = []
    for number in range(bars):
        close = first + number * frames[0].ms
        rehearsal.clock.set_ms(max(rehearsal.clock.now_ms(), close - rehearsal.ahead_ms))
        due = [(str(frame), close - frame.ms) for frame in frames if close % frame.ms == 0]
        wait(lambda due=due: all(runs_of(rehearsal, *one) for one in due), 600, f"the runs of {due}")
        wait(lambda: not rehearsal.open_intents(), 120, "the orders of the decision")
        closed += due
    for one in closed:
        assert runs_of(rehearsal, *one) == 1, one
    store = Warehouse(rehearsal.home / "warehouse.duckdb", FixedClock(rehearsal.clock.now_ms()))
    with store.read() as con:
        spoken = con.execute("SELECT timeframe, ts, count(*), bool_or(late) FROM signals GROUP BY ALL").fetchall()
    told = {(frame, ts): (count, late) for frame, ts, count, late in spoken}
    assert {one: told.get(one) for one in closed} == dict.fromkeys(closed, (1, False))
    decided = [ts for frame, ts in closed if frame == str(TWO_HOURS)]
    orders = check_books(rehearsal, decided[0], decided[-1])
    check_audit(rehearsal)
    print(f"{len(closed)} bars of {len(frames)} timeframes, {len(decided)} decisions, {orders} orders")


def runs_of(rehearsal: Rehearsal, timeframe: str, ts: int) -> int:
    """Return how many runs of a bar succeeded; none may have failed."""
    tags = [{"key": "mlbot/market", "value": f"BTC-{timeframe}"}, {"key": "mlbot/bar", "value": format_utc(ts)}]
    found = [row["status"] for row in rehearsal.ask(RUNS_OF, tags=tags)["runsOrError"]["results"]]
    assert not set(found) & {"FAILURE", "CANCELED"}, (timeframe, format_utc(ts), found)
    return found.count("SUCCESS")
