"""Clocks, bar intervals and months."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbot_core.clock import FixedClock, ScaledClock, SharedClock, SystemClock, clock_from_env, format_utc, parse_utc_ms
from mlbot_core.errors import ConfigError, UsageError
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market, Month, Timeframe

instants = st.integers(0, 4_000_000_000_000)
timeframes = st.sampled_from(["5m", "30m", "1h", "2h", "4h", "12h", "1d"]).map(Timeframe.parse)


def test_the_clock_comes_from_the_environment() -> None:
    assert isinstance(clock_from_env("system"), SystemClock)
    assert clock_from_env("fixed:2026-01-01T00:10:00Z").now_ms() == 1_767_226_200_000
    scaled = clock_from_env("scaled:2026-01-01:600")
    assert isinstance(scaled, ScaledClock)
    assert 0 <= scaled.now_ms() - 1_767_225_600_000 < 600_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fixed",
        "fixed:yesterday",
        "scaled:2026-01-01",
        "scaled:2026-01-01:0",
        "system:1",
        "file:",
        "file:/nowhere/clock",
    ],
)
def test_a_wrong_clock_is_named_with_the_right_forms(text: str) -> None:
    with pytest.raises(ConfigError, match="system, fixed:<ISO time>, scaled"):
        clock_from_env(text)


def test_a_fixed_clock_moves_only_forward_and_sleeping_moves_it() -> None:
    clock = FixedClock(1000)
    clock.sleep(2.5)
    assert clock.now_ms() == 3500
    clock.set_ms(4000)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.set_ms(3999)
    assert clock.now_ms() == 4000


def test_processes_share_the_clock_of_a_file_and_its_moves(tmp_path: Path) -> None:
    start = parse_utc_ms("2024-03-01")
    clock = SharedClock.begin(tmp_path / "clock", start)
    code = "from mlbot_core.clock import clock_from_env; print(clock_from_env().now_ms())"
    environment = {"MLBOT_CLOCK": f"file:{tmp_path / 'clock'}"}

    def other() -> int:
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert start <= other() <= clock.now_ms()
    clock.set_ms(start + DAY_MS)
    assert start + DAY_MS <= other() <= clock.now_ms() < start + DAY_MS + HOUR_MS
    with pytest.raises(ValueError, match="cannot go back"):
        clock.set_ms(start)


def test_a_sleeper_wakes_when_the_shared_clock_is_moved_past_its_end(tmp_path: Path) -> None:
    clock = SharedClock.begin(tmp_path / "clock", 1_000_000)
    reader = SharedClock(tmp_path / "clock")
    sleeper = threading.Thread(target=reader.sleep, args=(3600.0,), daemon=True)
    sleeper.start()
    # moved again and again: nobody knows when the thread reads the time that it counts from
    for hours in range(2, 400, 2):
        clock.set_ms(1_000_000 + hours * HOUR_MS)
        sleeper.join(0.05)
        if not sleeper.is_alive():
            break
    assert not sleeper.is_alive()
    fast = SharedClock.begin(tmp_path / "fast", 0, speed=1000)
    begun = time.monotonic()
    fast.sleep(20)
    assert fast.now_ms() >= 20_000
    assert time.monotonic() - begun < 10


@given(instants)
def test_utc_texts_round_trip(ms: int) -> None:
    assert parse_utc_ms(format_utc(ms)) == ms
    assert parse_utc_ms(datetime.fromtimestamp(ms / 1000, tz=UTC).date().isoformat()) == ms // DAY_MS * DAY_MS


def test_an_offset_is_respected() -> None:
    assert parse_utc_ms("2025-01-01T09:00:00+09:00") == parse_utc_ms("2025-01-01")


@pytest.mark.parametrize(("text", "minutes"), [("30m", 30), ("1h", 60), ("2h", 120), ("120m", 120), ("1d", 1440)])
def test_intervals_parse_and_print_in_the_longest_unit(text: str, minutes: int) -> None:
    timeframe = Timeframe.parse(text)
    assert timeframe.minutes == minutes
    assert Timeframe.parse(str(timeframe)) == timeframe


@pytest.mark.parametrize("text", ["", "h", "0h", "-1h", "7h", "1w", "2 h", "1.5h", "h1", "36h"])
def test_other_intervals_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"for example 30m|use 30m"):
        Timeframe.parse(text)


@given(timeframes, instants)
def test_a_bar_contains_its_instants_and_closes_where_the_next_opens(timeframe: Timeframe, ms: int) -> None:
    ts = timeframe.floor(ms)
    assert ts <= ms < timeframe.close_of(ts)
    assert timeframe.ceil(ms) in (ts, ts + timeframe.ms)
    assert not timeframe.is_closed(ts, ms)
    last = timeframe.last_closed(ms)
    assert timeframe.is_closed(last, ms)
    assert not timeframe.is_closed(last + timeframe.ms, ms)


@given(timeframes, instants, st.integers(0, 40 * HOUR_MS))
def test_opens_between_is_every_grid_point_of_the_half_open_stretch(
    timeframe: Timeframe, start: int, length: int
) -> None:
    opens = timeframe.opens_between(start, start + length)
    assert (opens % timeframe.ms == 0).all()
    assert ((opens >= start) & (opens < start + length)).all()
    assert (np.diff(opens) == timeframe.ms).all()
    assert timeframe.ceil(start) not in set(opens) or opens[0] == timeframe.ceil(start)
    assert len(opens) == max(0, -(-(start + length) // timeframe.ms) - -(-start // timeframe.ms))


@given(instants)
def test_months_tile_time(ms: int) -> None:
    month = Month.of(ms)
    assert month.start_ms <= ms < month.end_ms
    assert month.next().start_ms == month.end_ms
    assert Month.parse(month.key) == Month.parse(str(month)) == month


@given(instants, st.integers(1, 400 * DAY_MS))
def test_a_span_of_months_covers_its_stretch_exactly(start: int, length: int) -> None:
    months = Month.span(start, start + length)
    assert months[0] == Month.of(start)
    assert months[-1] == Month.of(start + length - 1)
    assert all(a.next() == b for a, b in itertools.pairwise(months))


def test_markets_parse() -> None:
    assert str(Market.parse("btc-120m")) == "BTC-2h"
    for text in ("BTC", "-2h", "B/C-2h", "BTC-2x"):
        with pytest.raises(UsageError):
            Market.parse(text)
    with pytest.raises(UsageError, match="for example 2024-03"):
        Month.parse("2024-3")
