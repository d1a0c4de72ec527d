"""Progress is durable: a pull that is cut off and started again asks only for what is not stored."""

from __future__ import annotations

import os
import random
import time

import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.errors import MissingDataError, QualityRefusedError, SourceError, WarehouseError
from mlbot_core.timeframe import HOUR_MS, Month
from mlbot_core.warehouse import Warehouse, read_window, replace_window
from mlbot_core.warehouse.ingest import ingest
from mlbot_core.warehouse.inputs import Window, read_inputs

YEAR = [f"2024-{month:02d}" for month in range(1, 13)]


def test_a_pull_is_stored_stretch_by_stretch_and_what_is_complete_is_not_asked_again(warehouse, clock, feed, tools):
    class Failing(tools.Feed):
        def fetch(self, series, market, start_ms, end_ms):
            if start_ms >= Month.parse("2024-06").start_ms:
                raise SourceError("the feed broke off")
            return super().fetch(series, market, start_ms, end_ms)

    broken = Failing(clock)
    with pytest.raises(SourceError, match="broke off"):
        ingest(warehouse, broken, clock, tools.ask(*YEAR))
    with warehouse.read() as con:
        made = con.execute("SELECT count(*) FROM partitions").fetchone()[0]
    assert made == 5, "five months of hours are one stretch, and it stays"
    outcomes = ingest(warehouse, feed, clock, tools.ask(*YEAR, skip_complete=True))
    assert [o.key.partition for o in outcomes] == [f"BTC-1h|{month}-01" for month in YEAR]
    assert min(start for _, start, _ in feed.asked) == Month.parse("2024-06").start_ms
    feed.asked.clear()
    again = ingest(warehouse, feed, clock, tools.ask(*YEAR, skip_complete=True))
    assert feed.asked == []
    assert [o.version for o in again] == [o.version for o in outcomes]
    assert all(o.passed for o in again)
    ingest(warehouse, feed, clock, tools.ask("2024-03"))
    assert feed.asked == [("price", Month.parse("2024-03").start_ms, Month.parse("2024-04").start_ms)]


def test_a_running_month_is_asked_for_from_its_first_missing_bar_on(warehouse, clock, feed, tools):
    clock.set_ms(parse_utc_ms("2025-01-10T00:00:10Z"))
    ingest(warehouse, feed, clock, tools.ask("2025-01"))
    feed.asked.clear()
    clock.set_ms(parse_utc_ms("2025-01-10T05:00:10Z"))
    ingest(warehouse, feed, clock, tools.ask("2025-01", skip_complete=True))
    assert feed.asked == [("price", parse_utc_ms("2025-01-10T00:00:00Z"), parse_utc_ms("2025-01-10T05:00:00Z"))]


def test_bars_that_were_young_when_last_asked_for_are_asked_for_again_later(warehouse, clock, feed, tools):
    clock.set_ms(parse_utc_ms("2025-02-01T00:00:10Z"))
    ingest(warehouse, feed, clock, tools.ask("2025-01"))
    feed.asked.clear()
    clock.set_ms(parse_utc_ms("2025-02-01T01:00:10Z"))
    ingest(warehouse, feed, clock, tools.ask("2025-01", skip_complete=True))
    assert feed.asked == [], "an hour later it is the same backfill"
    clock.set_ms(parse_utc_ms("2025-02-20T00:00:10Z"))
    feed.changed[parse_utc_ms("2025-01-31T20:00:00Z")] = 49_999.0
    (outcome,) = ingest(warehouse, feed, clock, tools.ask("2025-01", skip_complete=True))
    asked_from = feed.asked[0][1]
    assert parse_utc_ms("2025-01-24T20:00:00Z") < asked_from <= parse_utc_ms("2025-01-25T00:00:00Z")
    assert outcome.info["restated_bars"] == 1
    feed.asked.clear()
    clock.set_ms(parse_utc_ms("2025-03-20T00:00:10Z"))
    ingest(warehouse, feed, clock, tools.ask("2025-01", skip_complete=True))
    assert feed.asked == [], "all of it was settled when it was last asked for"


def test_a_month_that_failed_its_sanity_check_is_read_whole_again(warehouse, clock, feed, tools):
    spike = parse_utc_ms("2024-03-10T05:00:00Z")
    feed.changed[spike] = 500_000.0
    (bad,) = ingest(warehouse, feed, clock, tools.ask("2024-03"))
    assert not bad.passed
    feed.changed.clear()
    feed.asked.clear()
    clock.set_ms(clock.now_ms() + HOUR_MS)
    (good,) = ingest(warehouse, feed, clock, tools.ask("2024-03", skip_complete=True))
    assert feed.asked == [("price", Month.parse("2024-03").start_ms, Month.parse("2024-04").start_ms)]
    assert good.passed


def test_a_source_that_fetches_ahead_is_used_so_and_closed(warehouse, clock, tools):
    class Ahead(tools.Feed):
        chunk_bars = 800
        closed = 0

        def fetch_chunks(self, series, market, bounds):
            try:
                for start_ms, end_ms in bounds:
                    yield self.fetch(series, market, start_ms, end_ms)
            finally:
                self.closed += 1

    source = Ahead(clock)
    ingest(warehouse, source, clock, tools.ask("2024-01", "2024-02", "2024-03"))
    assert len(source.asked) == 3
    assert source.closed == 1


def test_a_hole_at_the_beginning_of_a_stretch_is_no_listing_date(warehouse, clock, feed, tools):
    march = Month.parse("2024-03")

    class Vague(tools.Feed):
        def fetch(self, series, market, start_ms, end_ms):
            batch = super().fetch(series, market, start_ms, end_ms)
            listing = "before the history that the source serves (plan or listing date)"
            gaps = tuple(type(gap)(**{**gap.__dict__, "cause": listing}) for gap in batch.gaps)
            return type(batch)(**{**batch.__dict__, "gaps": gaps})

    source = Vague(clock)
    source.holes = {march.start_ms, march.start_ms + HOUR_MS}
    ingest(warehouse, source, clock, tools.ask("2024-02"))
    ingest(warehouse, source, clock, tools.ask("2024-03"))
    with warehouse.read() as con:
        assert con.execute("SELECT from_ts, to_ts, cause FROM gaps").fetchall() == [
            (march.start_ms, march.start_ms + HOUR_MS, "source returned nothing")
        ]


@pytest.mark.slow
def test_killed_at_random_it_never_asks_twice_for_what_it_has_and_ends_with_the_same_rows(tmp_path, tools, clock):
    """Each child process is killed with SIGKILL; the windows it asked for are compared with what was stored before."""
    path, log = tmp_path / "killed.duckdb", tmp_path / "asked.log"
    log.touch()
    pulls = kills = 0
    chance = random.Random(7)
    while True:
        with Warehouse(path, clock).read() as con:
            stored = {int(row[0]) for row in con.execute("SELECT ts FROM price").fetchall()}
        lines = len(log.read_text().splitlines())
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _child(path, log, tools)
                code = 0
            finally:
                os._exit(code)
        pulls += 1
        # ever later, so that a busy machine gets to the end as well
        time.sleep(chance.uniform(0.2, 0.7) + 0.04 * pulls)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done == 0:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            kills += 1
        for line in log.read_text().splitlines()[lines:]:
            start, end = map(int, line.split())
            assert not stored & set(range(start, end, HOUR_MS)), "asked again for bars that were stored"
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            break
    assert kills >= 4
    straight = Warehouse(tmp_path / "straight.duckdb", clock)
    ingest(straight, tools.Feed(clock), clock, tools.ask(*YEAR))
    bars = "SELECT * FROM price ORDER BY ALL"
    newest = (
        "SELECT partition, data_version, rows FROM partitions "
        "QUALIFY row_number() OVER (PARTITION BY partition ORDER BY rowid DESC) = 1 ORDER BY 1"
    )
    with straight.read() as one, Warehouse(path, clock).read() as two:
        assert one.execute(bars).fetchall() == two.execute(bars).fetchall()
        assert one.execute(newest).fetchall() == two.execute(newest).fetchall()


def _child(path, log, tools):
    class Slow(tools.Feed):
        chunk_bars = 800

        def fetch(self, series, market, start_ms, end_ms):
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{start_ms} {end_ms}\n")
            time.sleep(0.2)
            return super().fetch(series, market, start_ms, end_ms)

    clock = FixedClock(parse_utc_ms("2025-01-01T00:00:00Z"))
    ingest(Warehouse(path, clock), Slow(clock), clock, tools.ask(*YEAR, skip_complete=True))


# ---- consumers obey the verdicts


def _downstream(store: Warehouse, window: Window, now_ms: int) -> int:
    """Derive a table as any consumer does, launched alone."""
    inputs = read_inputs(store, window, known_by_ms=now_ms)
    table = inputs.settled["price"].table.select(["ts", "close"])
    with store.write() as con:
        return replace_window(con, "derived", {"source": "feed"}, table)


def _window(tools, *months: str) -> Window:
    return Window("feed", tools.MARKET, tuple(map(Month.parse, months)), tools.DELAY_MS, series=("price",))


def test_a_consumer_launched_alone_on_a_failed_or_unchecked_month_is_refused(warehouse, clock, feed, tools):
    now = clock.now_ms()
    with pytest.raises(MissingDataError):
        _downstream(warehouse, _window(tools, "2024-03"), now)
    ingest(warehouse, feed, clock, tools.ask("2024-03"))
    assert _downstream(warehouse, _window(tools, "2024-03"), now) == 31 * 24
    feed.changed[parse_utc_ms("2024-04-10T05:00:00Z")] = 500_000.0
    (april,) = ingest(warehouse, feed, clock, tools.ask("2024-04"))
    assert not april.passed
    with pytest.raises(QualityRefusedError, match=r"BTC-1h\|2024-04-01: sanity failed"):
        _downstream(warehouse, _window(tools, "2024-03", "2024-04"), now)
    with warehouse.read() as con:
        assert read_window(con, "derived", {"source": "feed"}).num_rows == 31 * 24, "nothing of it was stored"
    with warehouse.write() as con:
        con.execute("DELETE FROM quality WHERE partition = 'BTC-1h|2024-03-01' AND check_name = 'gaps'")
    with pytest.raises(QualityRefusedError, match="gaps was never run"):
        _downstream(warehouse, _window(tools, "2024-03"), now)


def test_a_wrong_unit_refuses_consumers_although_no_caller_names_that_check(warehouse, clock, feed, tools):
    ingest(warehouse, feed, clock, tools.ask("2024-03"))
    feed.scale = 1e-5  # coins where USD should be
    (wrong,) = ingest(warehouse, feed, clock, tools.ask("2024-03", series="open_interest"))
    units = next(check for check in wrong.checks if check.check == "units")
    assert not units.passed
    assert "plausible is" in units.detail["detail"]
    assert not wrong.passed
    window = Window("feed", tools.MARKET, (Month.parse("2024-03"),), tools.DELAY_MS, series=("price", "open_interest"))
    with pytest.raises(QualityRefusedError, match="units failed"):
        _downstream(warehouse, window, clock.now_ms())


def test_another_source_that_disagrees_is_refused_and_single_wide_bars_are_not(warehouse, clock, feed, tools):
    ingest(warehouse, feed, clock, tools.ask("2024-03"))
    other = tools.Feed(clock, name="other")
    other.changed[parse_utc_ms("2024-03-10T05:00:00Z")] = 51_500.0
    (near,) = ingest(warehouse, other, clock, tools.ask("2024-03"))
    verdict = next(check for check in near.checks if check.check == "cross_source")
    assert verdict.passed
    assert verdict.detail["found"] == 1
    third = tools.Feed(clock, name="third")
    third.scale = 1.02
    (far,) = ingest(warehouse, third, clock, tools.ask("2024-03"))
    assert not next(check for check in far.checks if check.check == "cross_source").passed
    synthetic = tools.Feed(clock, name="made_up")
    synthetic.scale = 1.02
    (apart,) = ingest(warehouse, synthetic, clock, tools.ask("2024-03", identity="seed 1"))
    assert next(check for check in apart.checks if check.check == "cross_source").passed, (
        "made-up markets are their own"
    )


def test_bounds_may_differ_by_source(warehouse, clock, feed, tools):
    first = Month.parse("2024-03").start_ms
    feed.holes = {first + hour * HOUR_MS for hour in range(100, 130)}
    (strict,) = ingest(warehouse, feed, clock, tools.ask("2024-03"))
    assert not strict.passed
    loose = tools.QUALITY.model_validate(
        {**tools.QUALITY.model_dump(), "sources": {"feed": {"max_gap_bars": 48, "max_missing_share": 0.1}}}
    )
    request = tools.ask("2024-03")
    request = type(request)(**{**request.__dict__, "quality": loose})
    assert ingest(warehouse, feed, clock, request)[0].passed


def test_two_markets_do_not_mix(warehouse, clock, feed, tools):
    ingest(warehouse, feed, clock, tools.ask("2024-03", identity="seed 1"))
    with pytest.raises(WarehouseError, match="another market"):
        ingest(warehouse, feed, clock, tools.ask("2024-04", identity="seed 2"))
