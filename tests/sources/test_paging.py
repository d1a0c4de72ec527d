"""Cutting and joining: every bar is asked for, no window is too long, and what comes back is the truth again."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.sources.paging import (
    Page,
    Stitched,
    Window,
    halve,
    lacks_bars,
    leading_zeros,
    plan_windows,
    stitch,
)
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Timeframe

H1 = Timeframe(60)
TIMEFRAMES = st.sampled_from([Timeframe(m) for m in (30, 60, 120, 240, 1440)])


@st.composite
def plans(draw):
    timeframe = draw(TIMEFRAMES)
    start = draw(st.integers(0, 10**12))
    length = draw(st.integers(-2 * timeframe.ms, 400 * timeframe.ms))
    limit = draw(st.integers(2, 60))
    return timeframe, start, start + length, limit, draw(st.integers(0, min(3, limit - 1)))


@settings(max_examples=200, deadline=None)
@given(plans())
def test_every_bar_is_covered_and_no_window_is_too_long(plan):
    timeframe, start, end, limit, overlap = plan
    windows = plan_windows(start, end, timeframe, limit, overlap)
    expected = timeframe.opens_between(start, end)
    if len(expected) == 0:
        assert windows == []
        return
    covered = np.concatenate([window.expected(timeframe) for window in windows])
    assert np.array_equal(np.unique(covered), expected)
    assert all(1 <= window.bars(timeframe) <= limit for window in windows)
    for before, after in itertools.pairwise(windows):
        assert (before.last_ts - after.first_ts) // timeframe.ms + 1 == overlap
        assert after.last_ts > before.last_ts


def test_exact_windows():
    assert plan_windows(0, 10 * HOUR_MS, H1, 10) == [Window(0, 9 * HOUR_MS)]
    assert plan_windows(1, 11 * HOUR_MS + 1, H1, 10) == [
        Window(HOUR_MS, 10 * HOUR_MS),
        Window(10 * HOUR_MS, 11 * HOUR_MS),
    ]
    assert plan_windows(0, 0, H1) == []
    with pytest.raises(ValueError, match="cannot overlap"):
        plan_windows(0, HOUR_MS, H1, 1)


@settings(max_examples=200, deadline=None)
@given(plans(), st.randoms(use_true_random=False), st.sampled_from(["ii", "ie", "ei"]))
def test_stitched_pages_are_the_truth(plan, random, bounds):
    """Whatever the page size and whichever bound is exclusive; pages may arrive in any order."""
    timeframe, start, end, limit, _ = plan
    expected = timeframe.opens_between(start, end)
    # one spare bar at each end, as an exclusive bound loses the outermost one
    windows = plan_windows(start - timeframe.ms, end + timeframe.ms, timeframe, limit, overlap=1)
    pages = []
    for window in windows:
        ts = window.expected(timeframe)
        ts = ts[(0 if bounds[0] == "i" else 1) : (len(ts) if bounds[1] == "i" else len(ts) - 1)]
        pages.append(Page(ts, (ts * 3 + 1).astype(float)[:, None], 7))
    random.shuffle(pages)
    joined = stitch(pages, 1)
    joined = joined.select(np.isin(joined.ts, expected))
    assert np.array_equal(joined.ts, expected)
    assert np.array_equal(joined.values[:, 0], expected * 3 + 1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.lists(st.integers(0, 20), unique=True, min_size=0, max_size=20)), max_size=8
    )
)
def test_newest_fetch_wins(fetches):
    pages = []
    expected = {}
    for turn, (observed, bars) in enumerate(fetches):
        ts = np.array(sorted(bars), dtype=np.int64) * HOUR_MS
        pages.append(Page(ts, np.full((len(ts), 2), float(turn)), observed))
        for stamp in ts.tolist():
            if stamp not in expected or observed >= expected[stamp][0]:
                expected[stamp] = (observed, turn)
    joined = stitch(pages, 2)
    assert joined.ts.tolist() == sorted(expected)
    assert joined.values.shape == (len(expected), 2)
    assert [(int(o), int(v[0])) for o, v in zip(joined.observed_at, joined.values, strict=True)] == [
        expected[int(ts)] for ts in joined.ts
    ]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2000))
def test_halves_cover_the_window(bars):
    window = Window(0, (bars - 1) * HOUR_MS)
    halves = halve(window, H1)
    covered = np.unique(np.concatenate([half.expected(H1) for half in halves]))
    assert np.array_equal(covered, window.expected(H1))
    assert len(halves) == (1 if bars <= 4 else 2)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
def test_holes_are_seen(bars, lost):
    window = Window(0, (bars - 1) * HOUR_MS)
    ts = np.array([i * HOUR_MS for i in range(bars) if i not in lost], dtype=np.int64)
    page = Page(ts, np.zeros((len(ts), 1)), 0)
    assert lacks_bars(page, window, H1) == bool(lost & set(range(bars)))


@pytest.mark.parametrize(
    ("head", "expected"), [(0, 0), (1, 0), (23, 0), (24, 24), (30, 30)], ids=["none", "1h", "23h", "24h", "30h"]
)
def test_zeros_at_the_head_are_padding_from_a_day_on(head, expected):
    values = np.r_[np.zeros((head, 2)), [[0.0, 1.0]], np.zeros((40, 2))]
    ts = np.arange(len(values)) * HOUR_MS
    assert leading_zeros(Stitched(ts, values, ts), DAY_MS, H1) == expected


def test_all_zeros_and_no_rows():
    ts = np.arange(48) * HOUR_MS
    assert leading_zeros(Stitched(ts, np.zeros((48, 2)), ts), DAY_MS, H1) == 48
    assert leading_zeros(stitch([], 2), DAY_MS, H1) == 0
