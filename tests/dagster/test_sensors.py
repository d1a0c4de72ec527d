"""Each bar is asked for once, shortly before it closes; old bars never."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbot_core.clock import FixedClock, format_utc, parse_utc_ms
from mlbot_core.config import load_settings
from mlbot_core.timeframe import HOUR_MS, MINUTE_MS, Timeframe
from mlbot_dagster import sensors
from mlbot_dagster.sensors import LEAD_MS, LONGEST_WAIT_MS, due_bar

TWO_HOURS = Timeframe(120)
OPEN = parse_utc_ms("2024-03-05T10:00:00Z")
CLOSE = OPEN + 2 * HOUR_MS


def test_the_bar_that_closes_next_is_asked_for_ahead_of_its_close() -> None:
    clock = FixedClock(CLOSE - LEAD_MS - LONGEST_WAIT_MS - 1)
    before = OPEN - 2 * HOUR_MS
    assert due_bar(TWO_HOURS, before, clock) is None
    clock.sleep(0.001)
    assert due_bar(TWO_HOURS, before, clock) == OPEN
    assert clock.now_ms() == CLOSE - LEAD_MS
    assert due_bar(TWO_HOURS, OPEN, clock) is None
    clock.set_ms(CLOSE + MINUTE_MS)
    assert due_bar(TWO_HOURS, OPEN, clock) is None


def test_after_a_silence_only_the_newest_closed_bar_is_asked_for() -> None:
    clock = FixedClock(CLOSE + 30 * MINUTE_MS)
    assert due_bar(TWO_HOURS, OPEN - 40 * HOUR_MS, clock) == OPEN
    assert due_bar(TWO_HOURS, None, clock) == OPEN
    assert due_bar(TWO_HOURS, OPEN, clock) is None


@given(st.lists(st.integers(1, 3 * HOUR_MS), min_size=1, max_size=60), st.sampled_from((30, 60, 120, 240)))
def test_whenever_it_is_looked_at_no_bar_is_asked_for_twice_and_none_is_old(pauses: list[int], minutes: int) -> None:
    timeframe, clock, done = Timeframe(minutes), FixedClock(OPEN), None
    asked = []
    for pause in pauses:
        clock.sleep(pause / 1000)
        bar = due_bar(timeframe, done, clock)
        if bar is not None:
            asked.append(bar)
            done = bar
            age = clock.now_ms() - (bar + timeframe.ms)
            assert -LEAD_MS <= age < timeframe.ms
    assert asked == sorted(set(asked))


@given(st.integers(0, 4_999))
def test_looked_at_every_five_seconds_no_bar_is_missed(phase: int) -> None:
    clock, done, asked = FixedClock(OPEN + phase), OPEN - HOUR_MS // 2, []
    half_hour = Timeframe(30)
    while clock.now_ms() < OPEN + 4 * HOUR_MS:
        bar = due_bar(half_hour, done, clock)
        if bar is not None:
            asked.append(bar)
            done = bar
        clock.sleep(5)
    assert asked == [OPEN + n * half_hour.ms for n in range(len(asked))]
    assert len(asked) >= 8


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("MLBOT_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLBOT_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("home")
def test_a_sensor_asks_for_one_run_for_the_bar_and_remembers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlbot_dagster.definitions import defs

    monkeypatch.setenv("MLBOT_CLOCK", f"fixed:{format_utc(CLOSE - LEAD_MS)}")
    sensor: Any = next(one for one in sensors.build(load_settings()) if one.name == "live_bar_2h")
    with dg.DagsterInstance.ephemeral() as instance:
        context: Any = dg.build_sensor_context(instance=instance, repository_def=defs.get_repository_def())
        first = sensor.evaluate_tick(context)
        (request,) = first.run_requests
        assert request.tags["mlbot/bar"] == "2024-03-05T10:00:00Z"
        assert request.tags["mlbot/market"] == "BTC-2h"
        assert request.tags["dagster/priority"] == "10"
        assert dg.validate_run_config(defs.resolve_job_def("live_bar"), request.run_config)
        again: Any = dg.build_sensor_context(
            instance=instance, cursor=first.cursor, repository_def=defs.get_repository_def()
        )
        assert sensor.evaluate_tick(again).run_requests == []


@pytest.mark.parametrize(("value", "status"), [("1", "RUNNING"), ("", "STOPPED"), ("yes", "STOPPED")])
def test_sensors_are_on_only_where_live_was_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, value: str, status: str
) -> None:
    monkeypatch.setenv("MLBOT_LIVE", value)
    found = {one.default_status for one in sensors.build(load_settings())}
    assert found == {dg.DefaultSensorStatus[status]}
