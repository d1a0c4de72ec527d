"""The one purge rule, against its definition in plain loops.

Invariants, whatever the labels:

1. a training row is kept if and only if its label is known, shares no instant with a tested label, and does not begin
   within the embargo after one;
2. the order of the training rows is kept.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.errors import UsageError
from mlbot_core.timeframe import HOUR_MS, Timeframe
from mlbot_core.validation.intervals import (
    LabelIntervals,
    check_embargo,
    check_intervals,
    embargo_of,
    labels_for,
    merge,
    overlaps,
    purge,
    settled_by,
)

quick = settings(deadline=None, max_examples=150)


def random_labels(n: int, seed: int, longest: int = 12, spread: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Irregular starts (some shared), labels of 1 to ``longest``."""
    rng = np.random.default_rng(seed)
    t0 = np.cumsum(rng.integers(0, spread, n)).astype(np.int64)
    return t0, t0 + rng.integers(1, longest + 1, n)


@quick
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), embargo=st.integers(0, 15), share=st.floats(0, 1))
def test_purge_is_its_definition(seed: int, n: int, embargo: int, share: float) -> None:
    t0, t1 = random_labels(n, seed)
    rng = np.random.default_rng(seed + 1)
    tested = rng.random(n) < share
    test, train = rng.permutation(np.flatnonzero(tested)), rng.permutation(np.flatnonzero(~tested))
    unknown = train[rng.random(len(train)) < 0.1]
    t1[unknown] = -1
    expected = [
        j
        for j in train
        if t1[j] >= 0
        and not any(t0[j] < t1[i] and t0[i] < t1[j] for i in test)
        and not any(t1[i] <= t0[j] < t1[i] + embargo for i in test)
    ]
    assert purge(train, test, t0, t1, embargo).tolist() == expected


@quick
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), cutoff=st.integers(-5, 200))
def test_settled_by_is_its_definition(seed: int, n: int, cutoff: int) -> None:
    t0, t1 = random_labels(n, seed)
    t1[np.random.default_rng(seed).random(n) < 0.2] = -1
    assert settled_by(t0, t1, cutoff).tolist() == [0 <= end <= cutoff for end in t1]


@quick
@given(seed=st.integers(0, 10**6), n=st.integers(0, 40))
def test_merge_covers_the_same_instants(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    begin = rng.integers(0, 80, n)
    end = begin + rng.integers(1, 10, n)
    low, high = merge(begin, end)
    assert (np.diff(low) > 0).all()
    assert (low[1:] > high[:-1]).all()
    half_hours = np.arange(0, 100, 0.5)
    covered = [any(a < x <= b for a, b in zip(begin, end, strict=True)) for x in half_hours]
    assert [any(a < x <= b for a, b in zip(low, high, strict=True)) for x in half_hours] == covered


def test_labels_that_touch_do_not_overlap() -> None:
    span = np.array([10]), np.array([20])
    assert overlaps(np.array([0, 20, 9, 19]), np.array([10, 30, 11, 21]), *span).tolist() == [False, False, True, True]


def test_intervals_are_read_from_groups_and_arguments() -> None:
    labels = LabelIntervals(np.array([0, 0, 5]), np.array([1, 9, 6]))  # two symbols may share an instant
    pairs = np.column_stack([labels.t0, labels.t1])
    for groups in (pairs, pairs.tolist(), pd.DataFrame(pairs, columns=["t0", "t1"])):
        read = labels_for(None, np.zeros(3), groups=groups)
        assert (read.t0.tolist(), read.t1.tolist()) == ([0, 0, 5], [1, 9, 6])
    assert labels_for(labels) is labels
    assert labels_for(labels, None, [1, 2, 3]) is labels
    # Intervals of the call go before those of the splitter.
    assert len(labels_for(labels, np.zeros((1, 2)), groups=pairs[:1])) == 1
    assert labels.take([2, 2]).t1.tolist() == [6, 6]
    assert repr(labels) == "LabelIntervals(3 rows)"


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: LabelIntervals([1, 2], [3]), "one length"),
        (lambda: LabelIntervals([2, 1], [3, 3]), "sort the rows"),
        (lambda: LabelIntervals([1, 2], [3, 2]), "begins at 2 ends at 2"),
        (lambda: LabelIntervals([1, 2], [3, -1]), "row 1 is unknown"),
        (lambda: LabelIntervals([1.0, 2.0], [3.0, np.nan]), "float64"),
        (lambda: check_intervals([1, 1], [3, 3]), "must ascend"),
        (lambda: LabelIntervals.of_groups([1, 2, 3]), r"shape \(3,\)"),
        (lambda: labels_for(None, np.zeros(3), who="Some"), "Some purges by label interval and was given none"),
        (lambda: labels_for(LabelIntervals([1], [2]), np.zeros(3)), "of 1 rows and is asked to split 3"),
        (lambda: check_embargo(-1), "embargo_ms is -1"),
        (lambda: check_embargo(1.5), "embargo_ms is 1.5"),  # type: ignore[arg-type]
        (lambda: check_embargo(True), "whole number"),
        (lambda: embargo_of(-1, Timeframe(60)), "-1 bars"),
    ],
)
def test_messages_teach(act: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        act()  # type: ignore[operator]


def test_an_embargo_is_given_in_bars_or_ms() -> None:
    assert embargo_of(5, Timeframe.parse("1h")) == 5 * HOUR_MS == check_embargo(np.int64(5 * HOUR_MS))
