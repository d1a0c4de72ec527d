"""Four days of live archiving under a seeded schedule of faults: complete in the end, every incident on one line.

The clock steps from bar to bar. Every hour the newest bars are read again as the schedule does, with a source opened
anew; once a day the open gaps are asked for again; at both ends stands a backfill. The faults: refusals for the rate,
errors inside HTTP 200, HTTP 500 and 502, torn and truncated answers, empty pages, late bars, bars that are missing for
most of a day, restated bars (new and old) and an outage of six hours.
"""

import logging
import re
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import SecretStr

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config import load_settings
from mlbot_core.emulator import CoinglassOptions, EmulatorServer
from mlbot_core.emulator.faults import Fault, FaultSchedule
from mlbot_core.market import CATALOGUE
from mlbot_core.sources.coinglass import CoinglassSource
from mlbot_core.sources.transport import Transport
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market, Month
from mlbot_core.warehouse import Warehouse, latest
from mlbot_core.warehouse.gaps import open_gaps
from mlbot_core.warehouse.ingest import IngestRequest, ingest
from mlbot_core.warehouse.refresh import refresh_many
from mlbot_core.warehouse.repair import gap_repair
from mlbot_core.warehouse.restatements import restatements

CONFIG = Path(__file__).resolve().parents[2] / "config"
KEY = "k3y-that-must-stay-out-of-logs"
MARKET = Market.parse("BTC-1h")
SERIES = ("price", "open_interest", "funding_rate", "long_short_ratio", "order_book", "liquidations", "etf_flows")
HOURLY = SERIES[:-1]
MONTHS = tuple(Month.parse(text) for text in ("2024-11", "2024-12", "2025-01"))
DELAY_MS = 2_000
# 59 seconds into the minute: a refusal for the rate, which waits for the next one, costs a second
START = parse_utc_ms("2025-01-10T00:00:59Z")
MIDNIGHT = parse_utc_ms("2025-01-10")
HOURS = 96
OUTAGE = (30, 36)
LATE = (20, 26)
HOLE = (50, 53)
HOLE_UNTIL = 70
RESTATED = (56, 59)
RESTATED_AT = 60
OLD = parse_utc_ms("2024-12-12T06:00:00Z")
OLD_AT = 80
TRANSPORT = ("http_429", "body_429", "body_500", "http_500", "html_502", "truncated_json", "reset")


def at(hour):
    """Return the instant so many hours after midnight of the first day, UTC ms."""
    return MIDNIGHT + hour * HOUR_MS


def path(series):
    return str(CATALOGUE[series].endpoint)


def schedule():
    # by chance only while one call follows another: then the seed decides which call is hit
    hours = {"active_from_ms": at(1), "active_to_ms": at(HOURS)}
    chance = [
        Fault("http_429", probability=0.01, seconds=0.05, **hours),
        Fault("body_500", probability=0.03, **hours),
        Fault("http_500", probability=0.01, **hours),
        Fault("html_502", probability=0.01, **hours),
        Fault("truncated_json", probability=0.03, **hours),
        Fault("empty_page", endpoint="/api/futures/", probability=0.02, **hours),
    ]
    planned = [
        Fault("reset", active_from_ms=at(OUTAGE[0]), active_to_ms=at(OUTAGE[1])),
        # the first backfill: refused without a word on how long to wait, torn, failing, and without a page of history
        Fault("body_429", endpoint=path("price"), nth=2, count=2),
        Fault("truncated_json", endpoint=path("funding_rate"), nth=1, count=2),
        Fault("body_500", endpoint=path("order_book"), nth=2),
        Fault("empty_page", endpoint=path("open_interest"), nth=2),
        Fault("late_bars", path("liquidations"), seconds=5400, active_from_ms=at(LATE[0]), active_to_ms=at(LATE[1])),
        Fault("gap", path("price"), from_ts=at(HOLE[0]), to_ts=at(HOLE[1] - 1), active_to_ms=at(HOLE_UNTIL)),
        Fault(
            "restate", path("open_interest"), from_ts=at(RESTATED[0]), to_ts=at(RESTATED[1] - 1), factor=1.01,
            active_from_ms=at(RESTATED_AT),
        ),
        Fault(
            "restate", path("funding_rate"), from_ts=OLD, to_ts=OLD + 4 * HOUR_MS, factor=1.5,
            active_from_ms=at(OLD_AT),
        ),
    ]  # fmt: skip
    # an outage comes first: of several faults that hit a call as a whole the first one wins
    return FaultSchedule((*planned, *chance), seed=20260101)


@pytest.fixture
def world(tmp_path):
    """The emulator with its faults, a store, and the way to a source, as each run opens its own."""
    clock = FixedClock(START)
    options = CoinglassOptions(key=KEY, plan="startup", calls_per_minute=6000)
    server = EmulatorServer(clock=clock, options=options, faults=schedule())
    store = Warehouse(tmp_path / "warehouse.duckdb", clock, timeout_s=20)

    @contextmanager
    def source(url=None):
        folder = tmp_path / "ratelimit"
        transport = Transport(url or server.url, SecretStr(KEY), clock, rate_folder=folder, backoff_s=0.01)
        with CoinglassSource("emulator", transport, clock) as opened:
            yield opened

    # the shipped bounds, whatever the user's own environment says
    shipped = load_settings({"MLBOT_CONFIG_DIR": str(CONFIG), "MLBOT_HOME": str(tmp_path)})
    with server:
        yield SimpleNamespace(clock=clock, server=server, store=store, source=source, quality=shipped.intervals.quality)


def request(world, series, months=(), *, resumed=False):
    return IngestRequest(series, MARKET, months, world.quality, DELAY_MS, "run", skip_complete=resumed)


def backfill(world, *, resumed):
    with world.source() as source:
        for name in SERIES:
            ingest(world.store, source, world.clock, request(world, name, MONTHS, resumed=resumed))


def refresh(world):
    with world.source() as source:
        return refresh_many(world.store, source, world.clock, [request(world, name) for name in SERIES], threads=1)


def repair(world):
    with world.source() as source:
        return gap_repair(
            world.store, source, world.clock, [MARKET], quality=world.quality, settle_delay_ms=DELAY_MS, run_id="repair"
        )


def four_days(world):
    """Let four days pass; return how each hour's refresh and each day's repair went."""
    backfill(world, resumed=False)
    refreshed, repaired = {0: refresh(world)}, []
    for hour in range(1, HOURS + 1):
        world.clock.set_ms(START + hour * HOUR_MS)
        refreshed[hour] = refresh(world)
        if hour % 24 == 0:
            repaired += repair(world)
    backfill(world, resumed=True)
    backfill(world, resumed=False)
    return refreshed, repaired


def rows(world, query, *args):
    with world.store.read() as con:
        return con.execute(query, list(args)).fetchall()


def newest(world, series):
    spec = CATALOGUE[series]
    timeframe = spec.native or MARKET.timeframe
    with world.store.read() as con:
        return latest(
            con, series, source="emulator", symbol="BTC", timeframe=timeframe, start_ms=MONTHS[0].start_ms,
            end_ms=MONTHS[-1].end_ms,
        )  # fmt: skip


def values(table, series):
    columns = [column.name for column in CATALOGUE[series].columns if column.field is not None]
    return {name: np.asarray(table.column(name).to_numpy(zero_copy_only=False), dtype=float) for name in columns}


def truth(world, series):
    """Return what a server without faults has, asked for at the end."""
    with EmulatorServer(clock=world.clock, options=world.server.options) as clean, world.source(clean.url) as source:
        return source.fetch(series, MARKET, MONTHS[0].start_ms, world.clock.now_ms() - DELAY_MS)


@pytest.mark.slow
def test_four_days_of_faults_end_complete_with_a_log_that_can_be_read(world, caplog, capsys):
    caplog.set_level(logging.INFO, logger="mlbot_core")
    refreshed, repaired = four_days(world)

    complete_and_true(world)
    outage_is_told(world, refreshed)
    hole_was_repaired(world, repaired)
    restatements_are_versions(world)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("mlbot_core")]
    log_is_readable(world, caplog, lines)
    with capsys.disabled():
        kinds = Counter(entry["fault"]["kind"] for entry in world.server.faults.log)
        print(f"\n{HOURS} hours, {world.server.calls()['total']} calls, faults {dict(kinds)}: {len(lines)} log lines")


def complete_and_true(world):
    """Every bar is there; the newest version of each is the truth, restated where the server restates."""
    for series in SERIES:
        table, wanted = newest(world, series), truth(world, series)
        ts = table.column("ts").to_numpy()
        assert ts.tolist() == wanted.table.column("ts").to_pylist(), series
        restated = {"open_interest": (at(RESTATED[0]), at(RESTATED[1] - 1), 1.01)}
        restated["funding_rate"] = (OLD, OLD + 4 * HOUR_MS, 1.5)
        first, last, factor = restated.get(series, (0, -1, 1.0))
        inside = (ts >= first) & (ts <= last)
        for name, clean in values(wanted.table, series).items():
            stored = values(table, series)[name]
            assert np.array_equal(stored[~inside], clean[~inside]), f"{series}.{name}"
            np.testing.assert_allclose(stored[inside], clean[inside] * factor, rtol=1e-6, atol=1e-9)
    with world.store.read() as con:
        assert [gap for gap in open_gaps(con) if gap.fillable] == []
    failed = rows(
        world,
        "SELECT asset, partition, check_name, detail FROM quality WHERE NOT passed AND checked_at = ?",
        world.clock.now_ms(),
    )
    assert failed == []


def outage_is_told(world, refreshed):
    down = [hour for hour, done in refreshed.items() if all(one.error for one in done)]
    assert down == list(range(*OUTAGE))
    for series in HOURLY:
        lag = CATALOGUE[series].lag_ms(MARKET.timeframe)
        first = at(OUTAGE[0] - 1) - lag
        found = rows(
            world,
            "SELECT from_ts, to_ts, found_at, filled_at FROM gaps WHERE series = ? AND cause LIKE 'source failed%' "
            "ORDER BY from_ts",
            series,
        )
        back = START + OUTAGE[1] * HOUR_MS
        assert found == [
            (first + i * HOUR_MS, first + i * HOUR_MS, START + (OUTAGE[0] + i) * HOUR_MS, back) for i in range(6)
        ], series
        causes = rows(world, "SELECT DISTINCT cause FROM gaps WHERE series = ? AND cause LIKE 'source f%'", series)
        assert causes == [("source failed (UnreachableError)",)]
        known = rows(
            world,
            f"SELECT DISTINCT min(known_at), min(observed_at), any_value(capture) FROM {series} "
            "WHERE ts >= ? AND ts < ? GROUP BY ts",
            first,
            first + 6 * HOUR_MS,
        )
        assert known == [(back, back, "live")], "a decision of that time did not have it"
    assert rows(world, "SELECT * FROM gaps WHERE series = 'etf_flows'") == [], "a weekend is no outage"


def hole_was_repaired(world, repaired):
    found = rows(
        world,
        "SELECT from_ts, to_ts, cause, found_at, filled_at FROM gaps WHERE series = 'price' AND from_ts >= ? "
        "AND to_ts < ? ORDER BY from_ts",
        at(HOLE[0]),
        at(HOLE[1]),
    )
    assert [(row[0], row[1]) for row in found] == [(at(h), at(h)) for h in range(*HOLE)]
    # two bars may be late; a third one is missing
    assert [row[2] for row in found] == ["closed but not served yet"] * 2 + ["source returned nothing"]
    # too old for a refresh by then: the daily repair after the hole was mended brought them
    assert {row[4] for row in found} == {START + 72 * HOUR_MS}
    mended = [one for one in repaired if one.series == "price" and one.filled_bars]
    assert [(one.asked_bars, one.filled_bars, one.error) for one in mended] == [(3, 3, "")]
    late = rows(
        world,
        "SELECT from_ts, to_ts, filled_at FROM gaps WHERE series = 'liquidations' AND to_ts >= ? AND from_ts < ? "
        "AND cause = 'closed but not served yet'",
        at(LATE[0] - 1),
        at(LATE[1] - 1),
    )
    told = {ts for first, last, _ in late for ts in range(first, last + 1, HOUR_MS)}
    assert told >= {at(h) for h in range(LATE[0] - 1, LATE[1] - 1)}
    assert all(filled_at is not None for *_, filled_at in late)


def restatements_are_versions(world):
    with world.store.read() as con:
        reports = {report.series: report for report in restatements(con)}
    assert set(reports) == {"open_interest", "funding_rate"}, "nothing else was ever changed"
    recent, old = reports["open_interest"], reports["funding_rate"]
    assert (recent.restated_bars, recent.first_ts, recent.last_ts) == (3, at(RESTATED[0]), at(RESTATED[1] - 1))
    assert recent.change["0.5"] == pytest.approx(0.01, rel=0.01)
    assert recent.first_seen_ms == recent.last_seen_ms == START + RESTATED_AT * HOUR_MS
    assert (old.restated_bars, old.first_ts, old.last_ts) == (5, OLD, OLD + 4 * HOUR_MS)
    assert old.greatest_age_ms > 30 * DAY_MS
    versions = rows(
        world, "SELECT count(*) FROM open_interest WHERE ts >= ? AND ts < ?", at(RESTATED[0]), at(RESTATED[1])
    )
    assert versions == [(6,)], "both versions are kept"


def log_is_readable(world, caplog, lines):
    text = "\n".join(lines)
    assert KEY not in text
    assert KEY not in caplog.text
    assert "Traceback" not in caplog.text
    assert all(record.exc_info is None for record in caplog.records)
    assert all("\n" not in line and len(line) < 700 for line in lines)

    # every call that failed and was answered in the end is one line, which counts its failed attempts
    injected = [entry for entry in world.server.faults.log if entry["fault"]["kind"] in TRANSPORT]
    outside = [entry for entry in injected if not at(OUTAGE[0]) <= entry["at_ms"] < at(OUTAGE[1])]
    told = [int(match[1]) for line in lines if (match := re.search(r"answered after (\d+) failed attempts", line))]
    assert sum(told) == len(outside)
    for words in ("HTTP 429", "code 429", "code 500", "HTTP 502", "not JSON"):
        assert words in text, words
    # an outage is one line a refresh, however many series it meets
    down = [line for line in lines if "were not delivered" in line]
    assert len(down) == OUTAGE[1] - OUTAGE[0]
    assert all(line.startswith("BTC-1h of emulator: 7 of 7 series were not delivered") for line in down)
    assert all("cannot be reached" in line for line in down)
    # empty pages that healed, bars that are missing, back, or changed
    healed = [line for line in lines if "asked again, they are there" in line]
    assert any("open-interest" in line for line in healed)
    assert sum("price BTC-1h from emulator: missing 1 bar" in line for line in lines) >= HOLE[1] - HOLE[0]
    late = [line for line in lines if line.startswith("liquidations BTC-1h from emulator: missing 1 bar")]
    assert len(late) == LATE[1] - LATE[0], late
    filled = [line for line in lines if line.startswith("price BTC-1h from emulator: filled")]
    assert sum("(source failed (UnreachableError))" in line for line in filled) == 6
    assert sum("(closed but not served yet)" in line or "(source returned nothing)" in line for line in filled) >= 3
    changed = [line for line in lines if "restated" in line]
    assert changed == [
        "open_interest BTC-1h from emulator: 3 stored bars were restated; both versions are kept",
        "funding_rate BTC-1h from emulator: 5 stored bars were restated; both versions are kept",
    ]
