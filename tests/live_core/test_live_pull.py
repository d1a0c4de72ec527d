"""The newest bar comes in before its decision, or the pull says what did not."""

from __future__ import annotations

import pytest

from mlbot_core.clock import parse_utc_ms
from mlbot_core.errors import UsageError
from mlbot_core.market import CORE_SERIES
from mlbot_core.timeframe import HOUR_MS
from mlbot_core.warehouse.gaps import open_gaps

BAR = parse_utc_ms("2024-09-20T00:00:00Z")
CLOSE = BAR + 2 * HOUR_MS
DECISION = CLOSE + 5_000


def known_at(home, series, ts):
    with home.store.read() as con:
        rows = con.execute(
            f"SELECT observed_at, known_at, capture FROM {series} WHERE ts = ? AND timeframe = '2h' ORDER BY 1", [ts]
        )
        return rows.fetchall()


def test_it_waits_for_the_close_and_asks_at_once(home):
    home.at("2024-09-20T01:59:50Z")
    done = home.pull(ts=BAR)
    assert done.complete
    assert done.reads == 1
    assert (done.decision_ms, done.finished_ms) == (DECISION, CLOSE)
    assert {one.series for one in done.arrivals} == set(CORE_SERIES)
    assert known_at(home, "price", BAR) == [(CLOSE, CLOSE, "live")]


def test_a_bar_that_comes_late_is_asked_for_until_the_decision_and_no_longer(home):
    home.at("2024-09-20T02:00:00Z")

    def late(source):
        source.hidden[("taker_volume", BAR)] = CLOSE + 1_200
        source.hidden[("liquidations", BAR)] = CLOSE + 60_000

    done = home.pull(change=late)
    assert done.missing == ("liquidations",)
    assert done.late == ()
    assert done.finished_ms <= DECISION
    assert done.reads >= 4
    (seen,) = known_at(home, "taker_volume", BAR)
    assert CLOSE + 1_200 <= seen[1] <= DECISION
    assert "missing: liquidations" in done.line()
    # what comes after the decision is stored as late, and one ask is enough to say so
    home.at("2024-09-20T02:05:00Z")
    again = home.pull()
    assert again.late == ("liquidations",)
    assert again.missing == ()
    assert again.reads == 1


def test_only_what_is_missing_is_asked_for_again(home):
    home.at("2024-09-20T02:00:00Z")
    asked = []

    def late(source):
        source.hidden[("price", BAR)] = CLOSE + 900
        asked.append(source.asked)

    assert home.pull(change=late).complete
    assert asked[0].count("price") == 3
    assert asked[0].count("liquidations") == 1


def test_a_restated_bar_is_named_and_becomes_a_version(home):
    home.at("2024-09-20T02:00:05Z")
    home.pull()
    home.at("2024-09-20T04:00:05Z")

    def restate(source):
        source.factor[("open_interest", BAR)] = 1.001

    done = home.pull(change=restate)
    assert done.restated == ("open_interest",)
    assert [row[0] for row in known_at(home, "open_interest", BAR)] == [DECISION, DECISION + 2 * HOUR_MS]


def test_a_broken_series_keeps_none_of_the_others_back_and_its_bar_is_a_gap(home):
    home.at("2024-09-20T02:00:05Z")
    done = home.pull(change=lambda source: source.broken.add("taker_volume"))
    assert done.missing == ("taker_volume",)
    (broken,) = [one for one in done.arrivals if one.error]
    assert (broken.series, broken.state) == ("taker_volume", "missing")
    assert "broken here" in done.as_json()["errors"]["taker_volume"]
    assert sum(one.state == "in time" for one in done.arrivals) == len(CORE_SERIES) - 2, (
        "one is broken, settled funding is not served"
    )
    with home.store.read() as con:
        found = {gap.series for gap in open_gaps(con)}
    assert found == {"taker_volume"}


def test_a_long_settle_delay_gives_everything_a_second_look(home):
    delays = {**home.settings.intervals.settle_delay_s, "emulator": 90.0}
    intervals = home.settings.intervals.model_copy(update={"settle_delay_s": delays})
    home.settings = home.settings.model_copy(update={"intervals": intervals})
    home.at("2024-09-20T02:00:00Z")
    asked = []

    def moved(source):
        asked.append(source.asked)
        source.hidden[("price", BAR)] = CLOSE + 5_000

    done = home.pull(change=moved)
    assert done.complete
    assert {name: asked[0].count(name) for name in ("liquidations", "taker_volume")} == {
        "liquidations": 2,
        "taker_volume": 2,
    }
    assert CLOSE + 70_000 <= done.finished_ms <= CLOSE + 90_000


@pytest.mark.parametrize("ts", [BAR + 4 * HOUR_MS, BAR + 1])
def test_a_bar_far_ahead_or_off_the_grid_is_refused(home, ts):
    with pytest.raises(UsageError, match="opens at"):
        home.pull(ts=ts)
