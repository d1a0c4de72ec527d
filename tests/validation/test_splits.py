"""Walk-forward splits.

Invariants, whatever the label intervals:

1. test windows tile the period: every bar in it belongs to exactly one window;
2. no training label interval reaches into the embargo before its test window, let alone the window;
3. unknown labels never train;
4. what the future brings changes no training set.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlbot_core.config import WalkForwardConfig
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Timeframe
from mlbot_core.validation.splits import WalkForward, WalkForwardSplit, early_stopping_split

HOUR = Timeframe.parse("1h")
ORIGIN = 19_700 * DAY_MS


def labels(
    bars: int, seed: int, longest: int = 30, unknown: float = 0.1, missing: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Random intervals of 1 to ``longest`` bars; some unknown, some rows absent."""
    rng = np.random.default_rng(seed)
    t0 = ORIGIN + (np.arange(bars, dtype=np.int64) + 1) * HOUR_MS
    t1 = t0 + rng.integers(1, longest + 1, bars) * HOUR_MS
    t1[rng.random(bars) < unknown] = -1
    keep = rng.random(bars) >= missing
    return t0[keep], t1[keep]


CONFIGS = st.builds(
    lambda train, share, test, embargo: WalkForwardConfig(
        train_days=train, min_train_days=max(1, int(train * share)), test_days=test, embargo_bars=embargo
    ),
    st.integers(1, 30),
    st.floats(0.1, 1.0),
    st.integers(1, 10),
    st.integers(0, 40),
)

CASES = given(
    config=CONFIGS,
    seed=st.integers(0, 100_000),
    start_h=st.integers(0, 40 * 24),
    length_h=st.integers(1, 25 * 24),
    missing=st.sampled_from([0.0, 0.2]),
)


def run(config: WalkForwardConfig, t0: np.ndarray, t1: np.ndarray, start_h: int, length_h: int) -> WalkForwardSplit:
    start = ORIGIN + start_h * HOUR_MS
    return WalkForward(config).split(t0, t1, start, start + length_h * HOUR_MS, HOUR)


@settings(max_examples=150, deadline=None)
@CASES
def test_no_training_label_reaches_its_test_window(
    config: WalkForwardConfig, seed: int, start_h: int, length_h: int, missing: float
) -> None:
    t0, t1 = labels(50 * 24, seed, missing=missing)
    for fold in run(config, t0, t1, start_h, length_h):
        train = fold.train_idx
        assert len(train)
        assert (t1[train] > 0).all()
        assert (t1[train] <= fold.train_end_ms).all()
        assert fold.train_end_ms == fold.test_start_ms - config.embargo_bars * HOUR_MS
        assert (t0[train] - HOUR_MS >= fold.train_start_ms).all()
        assert fold.test_start_ms - fold.train_start_ms == config.train_days * DAY_MS
        assert t1[train].max() < t0[fold.test_idx].min()
        assert not set(train) & set(fold.test_idx)


@settings(max_examples=150, deadline=None)
@CASES
def test_every_allowed_row_trains(
    config: WalkForwardConfig, seed: int, start_h: int, length_h: int, missing: float
) -> None:
    """Purging takes what it must and nothing else."""
    t0, t1 = labels(50 * 24, seed, missing=missing)
    for fold in run(config, t0, t1, start_h, length_h):
        allowed = [
            i for i in range(len(t0)) if 0 < t1[i] <= fold.train_end_ms and t0[i] - HOUR_MS >= fold.train_start_ms
        ]
        assert fold.train_idx.tolist() == allowed


@settings(max_examples=150, deadline=None)
@CASES
def test_windows_tile_the_period(
    config: WalkForwardConfig, seed: int, start_h: int, length_h: int, missing: float
) -> None:
    t0, t1 = labels(50 * 24, seed, missing=missing)
    split = run(config, t0, t1, start_h, length_h)
    start = ORIGIN + start_h * HOUR_MS
    windows = sorted(
        [(f.index, f.test_start_ms, f.test_end_ms) for f in split.folds]
        + [(s.index, s.test_start_ms, s.test_end_ms) for s in split.skipped]
    )
    assert [w[0] for w in windows] == list(range(len(windows)))
    assert windows[0][1] == start
    assert windows[-1][2] == start + length_h * HOUR_MS
    assert all(a[2] == b[1] for a, b in itertools.pairwise(windows))
    assert all(w[2] - w[1] == config.test_days * DAY_MS for w in windows[:-1])
    tested = np.concatenate([f.test_idx for f in split.folds]) if len(split) else np.array([], dtype=np.int64)
    opens = t0 - HOUR_MS
    expected = np.zeros(len(t0), dtype=bool)
    for fold in split:
        expected |= (opens >= fold.test_start_ms) & (opens < fold.test_end_ms)
    assert tested.tolist() == np.flatnonzero(expected).tolist()  # ascending, each once, unknown labels included


@settings(max_examples=100, deadline=None)
@CASES
def test_the_future_changes_no_training_set(
    config: WalkForwardConfig, seed: int, start_h: int, length_h: int, missing: float
) -> None:
    t0, t1 = labels(50 * 24, seed, missing=missing)
    split = run(config, t0, t1, start_h, length_h)
    assume(len(split) > 0)
    rng = np.random.default_rng(seed + 1)
    for fold in split.folds[:3]:
        moved = t1.copy()
        # at the end of training these were unknown or still open: let them end at any later time, or never
        open_then = (t1 < 0) | (t1 > fold.train_end_ms)
        later = np.maximum(t0, fold.train_end_ms) + rng.integers(1, 500, len(t0)) * HOUR_MS
        moved[open_then] = np.where(rng.random(len(t0)) < 0.3, -1, later)[open_then]
        again = {f.index: f for f in run(config, t0, moved, start_h, length_h)}[fold.index]
        np.testing.assert_array_equal(again.train_idx, fold.train_idx)
        cut = t0 <= fold.test_end_ms
        shorter = {f.index: f for f in run(config, t0[cut], t1[cut], start_h, length_h)}[fold.index]
        np.testing.assert_array_equal(shorter.train_idx, fold.train_idx)


def test_exact_rows() -> None:
    """Ten days of hours, labels of 3 bars: the last that trains is known 2 bars before the window."""
    t0 = ORIGIN + (np.arange(240, dtype=np.int64) + 1) * HOUR_MS
    t1 = t0 + 3 * HOUR_MS
    config = WalkForwardConfig(train_days=4, min_train_days=3, test_days=2, embargo_bars=2)
    start = ORIGIN + 2 * DAY_MS
    split = WalkForward(config).split(t0, t1, start, ORIGIN + 9 * DAY_MS, HOUR)
    assert [(s.index, s.reason) for s in split.skipped] == [
        (0, "labels reach back 2.0 days, fewer than min_train_days 3")
    ]
    assert [f.index for f in split] == [1, 2, 3]
    first, _, last = split.folds
    assert (first.train_idx[0], first.train_idx[-1]) == (0, 96 - 2 - 3 - 1)
    assert (first.test_idx[0], first.test_idx[-1]) == (96, 143)
    assert first.train_start_ms == ORIGIN
    assert (last.train_idx[0], last.train_idx[-1]) == (4 * 24, 192 - 6)
    assert (last.test_idx[0], last.test_idx[-1]) == (192, 215)  # the rest of the period is one day
    assert split[0] is first
    assert len(split) == 3


def test_as_much_history_as_asked_for_is_enough() -> None:
    """min_train_days equal to train_days is met although purging takes rows."""
    t0, t1 = labels(20 * 24, seed=1, unknown=0.0)
    config = WalkForwardConfig(train_days=10, min_train_days=10, test_days=5, embargo_bars=12)
    split = WalkForward(config).split(t0, t1, ORIGIN + 10 * DAY_MS, ORIGIN + 20 * DAY_MS, HOUR)
    assert len(split) == 2
    assert not split.skipped


def test_windows_without_bars_or_labels_say_so() -> None:
    t0, t1 = labels(5 * 24, seed=1, unknown=0.0)
    config = WalkForwardConfig(train_days=3, min_train_days=1, test_days=3, embargo_bars=0)
    split = WalkForward(config).split(t0, t1, ORIGIN, ORIGIN + 9 * DAY_MS, HOUR)
    assert [(s.index, s.reason) for s in split.skipped] == [
        (0, "no label is known before the test window and its embargo"),
        (2, "no bar opens in the test window"),
    ]
    empty = WalkForward(config).split(t0[:0], t1[:0], ORIGIN, ORIGIN + DAY_MS, HOUR)
    assert len(empty) == 0
    assert len(empty.skipped) == 1


@pytest.mark.parametrize(
    ("t0", "t1", "start", "end", "words"),
    [
        ([1, 2], [3], 0, DAY_MS, "one length"),
        ([2, 1], [3, 3], 0, DAY_MS, "must ascend"),
        ([1, 1], [3, 3], 0, DAY_MS, "must ascend"),
        ([5, 6], [5, 9], 0, DAY_MS, "ends at 5"),
        ([1, 2], [3, 4], DAY_MS, DAY_MS, "is empty"),
        ([1, 2], [3, 4], 5, DAY_MS, "off the 1h grid"),
    ],
)
def test_wrong_input_is_refused(t0: list[int], t1: list[int], start: int, end: int, words: str) -> None:
    config = WalkForwardConfig(train_days=3, min_train_days=1, test_days=3, embargo_bars=0)
    with pytest.raises(UsageError, match=words):
        WalkForward(config).split(np.array(t0), np.array(t1), start, end, HOUR)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 100_000), bars=st.integers(100, 400), share=st.floats(0.05, 0.5))
def test_early_stopping_is_purged(seed: int, bars: int, share: float) -> None:
    t0, t1 = labels(bars, seed, longest=20)
    rng = np.random.default_rng(seed)
    train = np.flatnonzero((t1 > 0) & (rng.random(len(t0)) < 0.9))
    fit, stop = early_stopping_split(train, t0, t1, share)
    assert len(stop) == int(np.ceil(len(train) * share))
    assert stop.tolist() == train[-len(stop) :].tolist()
    assert t1[fit].max() <= t0[stop].min()
    dropped = sorted(set(train) - set(fit) - set(stop))
    assert all(t1[i] > t0[stop[0]] for i in dropped)


@pytest.mark.parametrize(
    ("rows", "share", "words"),
    [
        ([0, 1, 2], 0.0, "between 0 and 1"),
        ([0, 1, 2], 1.0, "between 0 and 1"),
        ([0, 1], 0.5, "too few"),
        ([], 0.5, "too few"),
        ([1, 0], 0.5, "ascending"),
        ([0, 3], 0.5, "are known"),
    ],
)
def test_early_stopping_refuses(rows: list[int], share: float, words: str) -> None:
    t0 = np.arange(1, 5) * HOUR_MS
    t1 = np.array([20 * HOUR_MS] * 3 + [-1])
    with pytest.raises(UsageError, match=words):
        early_stopping_split(np.array(rows, dtype=np.int64), t0, t1, share)
