"""Live archiving: watches, refreshes, outages that become gaps and are filled again, restatements that are reported."""

from __future__ import annotations

import pytest

from mlbot_core.clock import parse_utc_ms
from mlbot_core.errors import SourceError
from mlbot_core.timeframe import HOUR_MS
from mlbot_core.warehouse import latest, settled
from mlbot_core.warehouse.gaps import open_gaps
from mlbot_core.warehouse.ingest import ingest
from mlbot_core.warehouse.refresh import failures, refresh, refresh_many
from mlbot_core.warehouse.repair import gap_repair
from mlbot_core.warehouse.restatements import restatements
from mlbot_core.warehouse.watches import all_watches

T1 = parse_utc_ms("2025-01-10T00:00:10Z")


def hours(warehouse, tools, first, last, columns="ts, observed_at, known_at, capture"):
    with warehouse.read() as con:
        return con.execute(
            f"SELECT {columns} FROM price WHERE ts >= ? AND ts < ? ORDER BY ts, observed_at", [first, last]
        ).fetchall()


def test_a_refresh_begins_the_watch_and_what_closes_after_it_is_known_when_it_is_seen(warehouse, clock, feed, tools):
    clock.set_ms(T1)
    ingest(warehouse, feed, clock, tools.ask("2025-01"))
    done = refresh(warehouse, feed, clock, tools.ask())
    assert (done.inserted, done.restated) == (0, 0)
    assert [outcome.key.partition for outcome in done.outcomes] == ["BTC-1h|2025-01-01"]
    with warehouse.read() as con:
        (watch,) = all_watches(con)
    assert (watch.since_ms, watch.series, watch.source) == (T1, "price", "feed")
    for hour in range(1, 4):
        clock.set_ms(T1 + hour * HOUR_MS)
        feed.asked.clear()
        done = refresh(warehouse, feed, clock, tools.ask())
        assert done.inserted == 1
        end = parse_utc_ms("2025-01-10T00:00:00Z") + hour * HOUR_MS
        assert feed.asked == [("price", end - 12 * HOUR_MS, end)], "twelve bars, no more"
    # six bars nobody looked at, then an ordinary pull of the month: they are late, which is the truth
    clock.set_ms(T1 + 10 * HOUR_MS)
    ingest(warehouse, feed, clock, tools.ask("2025-01"))
    midnight = parse_utc_ms("2025-01-10T00:00:00Z")
    assert hours(warehouse, tools, midnight - HOUR_MS, midnight) == [(midnight - HOUR_MS, T1, midnight, "backfill")]
    assert hours(warehouse, tools, midnight, midnight + 3 * HOUR_MS) == [
        (midnight + h * HOUR_MS, T1 + (h + 1) * HOUR_MS, T1 + (h + 1) * HOUR_MS, "live") for h in range(3)
    ]
    missed = hours(warehouse, tools, midnight + 3 * HOUR_MS, midnight + 9 * HOUR_MS)
    assert {row[2] for row in missed} == {T1 + 10 * HOUR_MS}
    with warehouse.read() as con:
        read = settled(
            con, "price", source="feed", symbol="BTC", timeframe=tools.HOURLY, start_ms=midnight,
            end_ms=midnight + 10 * HOUR_MS, settle_delay_ms=90_000, known_by_ms=clock.now_ms(),
        )  # fmt: skip
    assert read.table.column("late").to_pylist() == [False] * 3 + [True] * 6 + [False]
    assert read.shares() == {"live": 1.0, "modelled": 0.0, "restated": 0.0, "late": 0.6}


def test_a_frozen_record_is_never_watched(warehouse, clock, tools):
    class Frozen(tools.Feed):
        def served(self, series, market):
            found = super().served(series, market)
            return found and type(found)(found.timeframe, found.earliest_ms, parse_utc_ms("2024-12-01"))

    refresh(warehouse, Frozen(clock), clock, tools.ask())
    with warehouse.read() as con:
        assert all_watches(con) == []
        assert con.execute("SELECT count(*), max(ts) FROM price").fetchone() == (
            12,
            parse_utc_ms("2024-11-30T23:00:00Z"),
        )


def test_a_six_hour_outage_becomes_gap_rows_that_are_filled_when_the_source_answers(warehouse, clock, feed, tools):
    clock.set_ms(T1)
    ingest(warehouse, feed, clock, tools.ask("2025-01"))
    refresh(warehouse, feed, clock, tools.ask())
    feed.failure = SourceError("no answer")
    for hour in range(1, 7):
        clock.set_ms(T1 + hour * HOUR_MS)
        with pytest.raises(SourceError, match="no answer"):
            refresh(warehouse, feed, clock, tools.ask())
    midnight = parse_utc_ms("2025-01-10T00:00:00Z")
    with warehouse.read() as con:
        (gap,) = open_gaps(con)
    assert (gap.from_ts, gap.to_ts, gap.bars) == (midnight, midnight + 5 * HOUR_MS, 6)
    assert (gap.cause, gap.fillable, gap.found_at) == ("source failed (SourceError)", True, T1 + HOUR_MS)
    feed.failure = None
    clock.set_ms(T1 + 7 * HOUR_MS)
    refresh(warehouse, feed, clock, tools.ask())
    with warehouse.read() as con:
        assert open_gaps(con) == []
        filled = con.execute("SELECT count(*), count(filled_at), min(filled_at) FROM gaps").fetchone()
    assert filled == (6, 6, T1 + 7 * HOUR_MS)


def test_one_series_that_fails_keeps_no_other_back(warehouse, clock, tools):
    class Half(tools.Feed):
        def fetch(self, series, market, start_ms, end_ms):
            if series == "open_interest":
                raise SourceError("no open interest today")
            return super().fetch(series, market, start_ms, end_ms)

    requests = [tools.ask(series=name) for name in ("price", "open_interest", "funding_settled", "fear_greed")]
    done = refresh_many(warehouse, Half(clock), clock, requests)
    assert [one.inserted for one in done] == [12, 0, 12, 0]
    assert failures(done) == {"open_interest": "no open interest today"}


def test_repair_asks_for_missing_bars_only_and_leaves_what_never_was(warehouse, clock, feed, tools):
    feed.first_ms = parse_utc_ms("2024-03-02")
    start = parse_utc_ms("2024-03-10")
    feed.holes = {start + hour * HOUR_MS for hour in (0, 1, 2, 30)} | {parse_utc_ms("2024-03-25")}
    (before,) = ingest(warehouse, feed, clock, tools.ask("2024-03"))
    assert before.info["expected_from"] == feed.first_ms
    feed.holes = {start}
    feed.asked.clear()
    clock.set_ms(clock.now_ms() + HOUR_MS)
    bounds = {"quality": tools.QUALITY, "settle_delay_ms": tools.DELAY_MS, "run_id": "repair"}
    (done,) = gap_repair(warehouse, feed, clock, [tools.MARKET], **bounds)
    assert feed.asked == [
        ("price", start, start + 31 * HOUR_MS),
        ("price", parse_utc_ms("2024-03-25"), parse_utc_ms("2024-03-25T01:00:00Z")),
    ]
    assert (done.asked_bars, done.filled_bars, done.windows, done.error) == (5, 4, 2, "")
    (outcome,) = done.outcomes
    assert outcome.rows == before.rows + 4
    with warehouse.read() as con:
        left = open_gaps(con)
        assert [(gap.from_ts, gap.bars, gap.fillable) for gap in left] == [
            (parse_utc_ms("2024-03-01"), 24, False),
            (start, 1, True),
        ]
    feed.failure = SourceError("no answer")
    (failed,) = gap_repair(warehouse, feed, clock, [tools.MARKET], **bounds)
    assert (failed.filled_bars, failed.error) == (0, "no answer")


def test_restatements_are_counted_dated_and_measured(warehouse, clock, feed, tools):
    (first,) = ingest(warehouse, feed, clock, tools.ask("2024-03"))
    start = parse_utc_ms("2024-03-10")
    for index, factor in enumerate((1.001, 1.002, 1.01)):
        feed.changed[start + index * HOUR_MS] = feed.close_of(start + index * HOUR_MS) * factor
    seen = parse_utc_ms("2025-01-03T00:00:00Z")
    clock.set_ms(seen)
    (again,) = ingest(warehouse, feed, clock, tools.ask("2024-03"))
    assert again.info["restated_bars"] == 3
    assert again.info["latest_restatement_ms"] == seen
    assert again.version != first.version
    with warehouse.read() as con:
        (found,) = restatements(con)
        assert restatements(con, "open_interest") == []
        bars = latest(
            con, "price", source="feed", symbol="BTC", timeframe=tools.HOURLY, start_ms=start, end_ms=start + HOUR_MS
        )
    assert bars.column("close").to_pylist() == [feed.changed[start]]
    assert (found.bars, found.restated_bars, found.versions) == (31 * 24, 3, 3)
    assert (found.first_ts, found.last_ts) == (start, start + 2 * HOUR_MS)
    assert found.greatest_age_ms == seen - start - HOUR_MS
    assert found.change["1"] == pytest.approx(0.01)
    assert found.change["0.5"] == pytest.approx(0.002)
    assert found.waves == (("2025-01-03", 3),)
    assert found.as_json()["largest_waves"] == [{"day": "2025-01-03", "versions": 3}]
