"""Quality rules: what they find, and the sentence they say it with."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.market.quality import duplicates, find_gaps, freshness, gaps, ohlc_order, price_jumps
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Timeframe

H1, H2 = Timeframe(60), Timeframe(120)
ORIGIN = 20_000 * DAY_MS


def stamps(*hours):
    return ORIGIN + np.array(hours, dtype=np.int64) * HOUR_MS


def test_gaps_by_hand():
    ts = stamps(0, 1, 3, 6, 7)
    assert find_gaps(ts, H1, ORIGIN, ORIGIN + 9 * HOUR_MS) == [
        (ORIGIN + 2 * HOUR_MS, ORIGIN + 2 * HOUR_MS, 1),
        (ORIGIN + 4 * HOUR_MS, ORIGIN + 5 * HOUR_MS, 2),
        (ORIGIN + 8 * HOUR_MS, ORIGIN + 8 * HOUR_MS, 1),
    ]
    assert find_gaps(stamps(), H1, ORIGIN, ORIGIN + HOUR_MS) == [(ORIGIN, ORIGIN, 1)]
    assert find_gaps(stamps(), H1, ORIGIN, ORIGIN) == []
    # only whole bars that open inside the stretch are expected
    assert find_gaps(stamps(2), H2, ORIGIN + 1, ORIGIN + 2 * HOUR_MS + 1) == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-5, 60), max_size=60), st.integers(-3 * HOUR_MS, 50 * HOUR_MS), st.integers(0, 50 * HOUR_MS)
)
def test_gaps_are_exactly_the_missing_bars(present, start, length):
    ts = stamps(*present)
    start += ORIGIN
    found = find_gaps(ts, H1, start, start + length)
    bars = [bar for gap in found for bar in range(gap.from_ts, gap.to_ts + 1, HOUR_MS)]
    expected = [int(bar) for bar in H1.opens_between(start, start + length) if bar not in set(ts.tolist())]
    assert bars == expected
    assert sum(gap.bars for gap in found) == len(expected)
    assert all(after.from_ts - before.to_ts > HOUR_MS for before, after in itertools.pairwise(found))


def test_gap_verdict():
    ts = stamps(*[h for h in range(100) if h not in (10, 50, 51)])
    result = gaps(ts, H1, ORIGIN, ORIGIN + 100 * HOUR_MS, max_missing_share=0.03, max_gap_bars=2)
    assert (result.check, result.passed, result.found) == ("gaps", True, 3)
    assert not gaps(ts, H1, ORIGIN, ORIGIN + 100 * HOUR_MS, max_missing_share=0.02, max_gap_bars=2).passed
    assert not gaps(ts, H1, ORIGIN, ORIGIN + 100 * HOUR_MS, max_missing_share=0.03, max_gap_bars=1).passed
    assert not gaps(ts, H1, ORIGIN, ORIGIN + 100 * HOUR_MS).passed
    assert "3 of 100 1h bars missing in 2 gaps; the longest has 2 from 2024-10-06T02:00:00Z" in result.detail
    assert gaps(stamps(0, 1), H1, ORIGIN, ORIGIN + 2 * HOUR_MS).detail == "all 2 1h bars are there"


def test_duplicates():
    assert duplicates(stamps(0, 1, 2)).passed
    assert duplicates(stamps()).passed
    result = duplicates(stamps(0, 1, 1, 1, 2, 2))
    assert (result.passed, result.found) == (False, 3)
    assert "2024-10-04T01:00:00Z" in result.detail


@pytest.mark.parametrize(
    ("newest", "now", "delay", "end", "passed", "late"),
    [
        (4, 5 * HOUR_MS, 0, None, True, 0),
        (4, 6 * HOUR_MS - 1, 0, None, True, 0),
        (4, 6 * HOUR_MS, 0, None, False, 1),
        (4, 6 * HOUR_MS + 89_999, 90_000, None, True, 0),
        (4, 6 * HOUR_MS + 90_000, 90_000, None, False, 1),
        (4, 10 * HOUR_MS, 0, None, False, 5),
        (4, 500 * HOUR_MS, 0, 5 * HOUR_MS, True, 0),
        (4, 500 * HOUR_MS, 0, 6 * HOUR_MS, False, 1),
        (None, 5 * HOUR_MS, 0, None, False, 1),
    ],
)
def test_freshness(newest, now, delay, end, passed, late):
    result = freshness(
        None if newest is None else ORIGIN + newest * HOUR_MS,
        H1,
        ORIGIN + now,
        settle_delay_ms=delay,
        record_end_ms=None if end is None else ORIGIN + end,
    )
    assert (result.passed, result.found) == (passed, late)


def test_ohlc_order():
    ts = stamps(0, 1, 2, 3)
    good = np.array([10.0, 10.0, 10.0, np.nan])
    assert ohlc_order(ts, good, good, good, good).passed
    high = np.array([10.0, 9.0, 10.0, 10.0])
    result = ohlc_order(ts, good, high, good, good)
    assert (result.passed, result.found) == (False, 1)
    assert "2024-10-04T01:00:00Z" in result.detail
    assert "high 9" in result.detail
    low = np.array([10.0, 10.0, 11.0, 10.0])
    assert ohlc_order(ts, good, good, low, good).found == 1


def test_price_jumps():
    ts = stamps(0, 1, 2, 3)
    assert price_jumps(ts, np.array([100.0, 110.0, 90.0, 100.0])).passed
    result = price_jumps(ts, np.array([100.0, 100.0, 1000.0, 100.0]))
    assert (result.passed, result.found) == (False, 2)
    assert "100 to 1000 at 2024-10-04T02:00:00Z" in result.detail
    assert price_jumps(stamps(), np.array([])).passed


@pytest.mark.archive
def test_recorded_prices_pass(archive_dir):
    import pyarrow.parquet as pq

    table = pq.read_table(archive_dir / "btcusdt_perp_1h.parquet")
    ts = np.asarray(table.column("ts").cast("int64").to_numpy())
    open_, high, low, close = (np.asarray(table.column(c).to_numpy()) for c in ("open", "high", "low", "close"))
    assert gaps(ts, H1, int(ts[0]), int(ts[-1]) + 1).passed
    assert duplicates(ts).passed
    assert ohlc_order(ts, open_, high, low, close).passed
    assert price_jumps(ts, close).passed
