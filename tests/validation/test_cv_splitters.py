"""Cross-validation splitters.

Invariants, whatever the label intervals:

1. no training label shares an instant with a tested one, nor begins within the embargo after one;
2. purging takes nothing else;
3. K-fold tests every row once, combinatorial purged every row as often as it has paths, each path every row once;
4. a walk forward trains on labels settled before its test window, less the embargo, only.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlbot_core.errors import UsageError
from mlbot_core.timeframe import HOUR_MS
from mlbot_core.validation.cpcv import CombinatorialPurged, backtest_paths
from mlbot_core.validation.inner_splits import early_stopping_split, stacking_split, tuning_split
from mlbot_core.validation.intervals import LabelIntervals
from mlbot_core.validation.purged import PurgedKFold
from mlbot_core.validation.walk_forward_cv import WalkForwardCV

quick = settings(deadline=None, max_examples=80)


def regular(n: int, bars: int) -> LabelIntervals:
    t0 = 1_600_000_000_000 + np.arange(n, dtype=np.int64) * HOUR_MS
    return LabelIntervals(t0, t0 + bars * HOUR_MS)


def irregular(n: int, seed: int, longest: int) -> LabelIntervals:
    rng = np.random.default_rng(seed)
    t0 = np.cumsum(rng.integers(0, 4, n)).astype(np.int64)
    return LabelIntervals(t0, t0 + rng.integers(1, longest + 1, n))


def assert_purged(train: np.ndarray, test: np.ndarray, labels: LabelIntervals, embargo: int) -> None:
    """The training rows are all those that may be used, and no others: by comparing every pair."""
    t0, t1 = labels.t0, labels.t1
    others = np.setdiff1d(np.arange(len(labels)), test)
    a0, a1 = t0[others][:, None], t1[others][:, None]
    b0, b1 = t0[test][None, :], t1[test][None, :]
    overlap = (a0 < b1) & (b0 < a1)
    embargoed = (a0 >= b1) & (a0 < b1 + embargo)
    assert train.tolist() == others[~(overlap | embargoed).any(axis=1)].tolist()


def splits_of(cv: PurgedKFold | CombinatorialPurged, n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The splits; examples whose labels are too long to leave anything to train on are put aside."""
    try:
        return list(cv.split(np.zeros((n, 1))))
    except UsageError as error:
        if "training rows overlap" not in str(error):
            raise
    assume(False)
    raise AssertionError("not reached")


# --- invariants for random label intervals ---------------------------------------------------------------------


@quick
@given(
    n=st.integers(20, 120),
    seed=st.integers(0, 10**6),
    longest=st.integers(1, 15),
    folds=st.integers(2, 8),
    embargo=st.integers(0, 10),
)
def test_purged_k_fold(n: int, seed: int, longest: int, folds: int, embargo: int) -> None:
    from sklearn.model_selection import KFold

    labels = irregular(n, seed, longest)
    cv = PurgedKFold(folds, labels, embargo)
    x = np.zeros((n, 1))
    found = splits_of(cv, n)
    assert len(found) == cv.get_n_splits(x) == folds
    for (train, test), (_, expected) in zip(found, KFold(folds).split(x), strict=True):
        assert test.tolist() == expected.tolist()
        assert train.dtype == test.dtype == np.int64
        assert_purged(train, test, labels, embargo)


@quick
@given(
    n=st.integers(20, 120),
    seed=st.integers(0, 10**6),
    longest=st.integers(1, 15),
    shape=st.integers(2, 7).flatmap(lambda f: st.tuples(st.just(f), st.integers(1, f - 1))),
    embargo=st.integers(0, 10),
)
def test_combinatorial_purged(n: int, seed: int, longest: int, shape: tuple[int, int], embargo: int) -> None:
    folds, tested = shape
    labels = irregular(n, seed, longest)
    cv = CombinatorialPurged(folds, tested, labels, embargo)
    found = splits_of(cv, n)
    assert len(found) == cv.get_n_splits() == math.comb(folds, tested)
    times = np.zeros(n, dtype=int)
    for train, test in found:
        assert_purged(train, test, labels, embargo)
        times[test] += 1
    assert (times == cv.n_paths).all()
    # Say in which split each forecast was made: paths hold every row once, from a split that tested it, and together
    # use every (split, row) exactly once.
    paths = cv.recombine([np.full(len(test), k) for k, (_, test) in enumerate(found)])
    rows = cv.recombine([test for _, test in found])
    assert paths.shape == rows.shape == (cv.n_paths, n)
    assert (rows == np.arange(n)).all()
    used = {(int(split), row) for path in paths for row, split in enumerate(path)}
    assert used == {(k, int(row)) for k, (_, test) in enumerate(found) for row in test}


@quick
@given(
    n=st.integers(20, 150),
    seed=st.integers(0, 10**6),
    longest=st.integers(1, 15),
    train_size=st.integers(1, 40),
    test_size=st.integers(1, 30),
    embargo=st.integers(0, 10),
    expanding=st.booleans(),
    reduce_test=st.booleans(),
)
def test_walk_forward(
    n: int,
    seed: int,
    longest: int,
    train_size: int,
    test_size: int,
    embargo: int,
    expanding: bool,
    reduce_test: bool,
) -> None:
    labels = irregular(n, seed, longest)
    cv = WalkForwardCV(train_size, test_size, labels, expanding, embargo, reduce_test)
    x = np.zeros((n, 1))

    def settled(row: int) -> list[int]:
        return [j for j in range(n) if labels.t1[j] <= labels.t0[row] - embargo]

    enough = [row for row in range(n) if len(settled(row)) >= train_size]
    least = 1 if reduce_test else test_size
    if not enough or enough[0] + least > n:
        with pytest.raises(UsageError, match="make no window"):
            cv.get_n_splits(x)
        return
    found = list(cv.split(x))
    assert len(found) == cv.get_n_splits(x)
    tested = np.concatenate([test for _, test in found])
    assert tested.tolist() == list(range(enough[0], enough[0] + len(tested)))
    left = n - enough[0] - len(tested)
    assert left == 0 if reduce_test else 0 <= left < test_size
    for train, test in found:
        usable = settled(int(test[0]))
        assert train.tolist() == (usable if expanding else usable[-train_size:])
        assert len(test) == test_size or (reduce_test and test[-1] == n - 1)
        assert labels.t1[train].max() <= labels.t0[test].min() - embargo


@quick
@given(
    n=st.integers(30, 120),
    seed=st.integers(0, 10**6),
    longest=st.integers(1, 8),
    folds=st.integers(3, 6),
    embargo=st.integers(0, 5),
)
def test_inner_splits_are_purged_and_stay_inside(n: int, seed: int, longest: int, folds: int, embargo: int) -> None:
    rng = np.random.default_rng(seed)
    t0 = np.cumsum(rng.integers(1, 4, n)).astype(np.int64)
    t1 = t0 + rng.integers(1, longest + 1, n)
    rows = np.flatnonzero(rng.random(n) < 0.8)
    t1[np.setdiff1d(np.arange(n), rows)[::2]] = -1  # others may be unknown
    assume(len(rows) >= 2 * folds)

    def check(parts: tuple, times: int, whole: np.ndarray) -> None:
        held = np.concatenate([p.held_idx for p in parts])
        assert sorted(held.tolist()) == sorted(np.repeat(whole, times).tolist())
        for p in parts:
            assert set(p.fit_idx) <= set(rows) - set(p.held_idx)
            a0, a1 = t0[p.fit_idx][:, None], t1[p.fit_idx][:, None]
            b0, b1 = t0[p.held_idx][None, :], t1[p.held_idx][None, :]
            assert not ((a0 < b1 + embargo) & (b0 < a1)).any()

    try:
        check(tuning_split(rows, t0, t1, folds, embargo_ms=embargo), 1, rows)
        check(tuning_split(rows, t0, t1, folds, n_test_folds=2, embargo_ms=embargo), folds - 1, rows)
        check(stacking_split(rows, t0, t1, folds, embargo_ms=embargo), 1, rows)
        past = stacking_split(rows, t0, t1, folds, past_only=True, embargo_ms=embargo)
    except UsageError as error:
        if "use fewer" not in str(error):
            raise
        return
    check(past, 1, np.concatenate(np.array_split(rows, folds)[1:]))
    for p in past:
        assert t1[p.fit_idx].max() <= t0[p.held_idx].min() - embargo


def test_early_stopping_with_an_embargo() -> None:
    labels = regular(100, 3)
    rows = np.arange(10, 90)
    fit, stop = early_stopping_split(rows, labels.t0, labels.t1, 0.25, embargo_ms=4 * HOUR_MS)
    assert stop.tolist() == list(range(70, 90))
    assert fit.tolist() == list(range(10, 70 - 3 - 4 + 1))  # the last label ends four bars before row 70 begins


# --- agreement with skfolio, for labels of one length ----------------------------------------------------------


@pytest.mark.parametrize("n", [60, 61, 97, 240])
@pytest.mark.parametrize(("folds", "tested"), [(3, 2), (5, 2), (6, 3), (6, 5), (10, 8)])
@pytest.mark.parametrize(("bars", "embargo"), [(1, 0), (1, 2), (2, 0), (3, 1), (4, 0)])
def test_combinatorial_equals_skfolio(n: int, folds: int, tested: int, bars: int, embargo: int) -> None:
    from skfolio.model_selection import CombinatorialPurgedCV

    if bars - 1 + embargo >= n // folds - 1:
        pytest.skip("skfolio refuses to purge a whole fold")
    x = np.zeros((n, 1))
    theirs = CombinatorialPurgedCV(folds, tested, purged_size=bars - 1, embargo_size=embargo)
    ours = CombinatorialPurged(folds, tested, regular(n, bars), embargo * HOUR_MS)
    expected = list(theirs.split(x))
    if not all(len(train) for train, _ in expected):
        # They train on nothing, we say so.
        with pytest.raises(UsageError, match="training rows overlap"):
            list(ours.split(x))
        return
    found = list(ours.split(x))
    assert len(found) == len(expected) == ours.get_n_splits() == theirs.n_splits
    for (train, test), (other_train, other_tests) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(train, other_train)
        np.testing.assert_array_equal(test, np.concatenate(other_tests))
    assert ours.n_paths == theirs.n_test_paths
    np.testing.assert_array_equal(ours.test_folds, theirs.test_set_index)
    np.testing.assert_array_equal(backtest_paths(folds, tested), theirs.recombined_paths.T)


@pytest.mark.parametrize("n", [40, 101])
@pytest.mark.parametrize(("train_size", "test_size"), [(10, 5), (20, 7), (1, 1), (33, 3)])
@pytest.mark.parametrize(("bars", "embargo"), [(1, 0), (1, 3), (4, 0), (3, 2)])
@pytest.mark.parametrize("expanding", [False, True])
@pytest.mark.parametrize("reduce_test", [False, True])
def test_walk_forward_equals_skfolio(
    n: int, train_size: int, test_size: int, bars: int, embargo: int, expanding: bool, reduce_test: bool
) -> None:
    from skfolio.model_selection import WalkForward

    x = np.zeros((n, 1))
    theirs = WalkForward(
        test_size=test_size,
        train_size=train_size,
        purged_size=bars - 1 + embargo,
        expand_train=expanding,
        reduce_test=reduce_test,
    )
    ours = WalkForwardCV(train_size, test_size, regular(n, bars), expanding, embargo * HOUR_MS, reduce_test)
    found, expected = list(ours.split(x)), list(theirs.split(x))
    assert len(found) == len(expected) > 0
    for (train, test), (other_train, other_test) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(train, other_train)
        np.testing.assert_array_equal(test, other_test)


# --- in scikit-learn and Optuna --------------------------------------------------------------------------------


def data(n: int = 240, bars: int = 4) -> tuple[np.ndarray, np.ndarray, LabelIntervals]:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(n, 3))
    return x, 0.7 * x[:, 0] + rng.normal(size=n), regular(n, bars)


SPLITTERS = [
    lambda labels: PurgedKFold(4, labels, HOUR_MS),
    lambda labels: CombinatorialPurged(5, 2, labels, HOUR_MS),
    lambda labels: WalkForwardCV(60, 30, labels, embargo_ms=HOUR_MS),
]


@pytest.mark.parametrize("make", SPLITTERS)
def test_cross_val_score(make: object) -> None:
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import cross_val_score

    x, y, labels = data()
    cv = make(labels)  # type: ignore[operator]
    scores = cross_val_score(Ridge(), x, y, cv=cv)
    by_hand = [Ridge().fit(x[train], y[train]).score(x[test], y[test]) for train, test in cv.split(x)]
    np.testing.assert_allclose(scores, by_hand, rtol=1e-12)
    # The same with the intervals handed over by scikit-learn.
    groups = np.column_stack([labels.t0, labels.t1])
    late = make(None)  # type: ignore[operator]
    np.testing.assert_array_equal(cross_val_score(Ridge(), x, y, cv=late, groups=groups), scores)
    with pytest.raises(UsageError, match="was given none"):
        cross_val_score(Ridge(), x, y, cv=late, error_score="raise")


def test_grid_search_chooses_by_purged_folds() -> None:
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    x, y, labels = data()
    search = GridSearchCV(Ridge(), {"alpha": [1e-3, 1e6]}, cv=PurgedKFold(4, labels)).fit(x, y)
    assert search.best_params_ == {"alpha": 1e-3}
    assert search.n_splits_ == 4


def test_optuna_objective() -> None:
    import optuna
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import cross_val_score

    x, y, labels = data()
    cv = CombinatorialPurged(5, 2, labels)

    def objective(trial: optuna.Trial) -> float:
        model = Ridge(alpha=trial.suggest_float("alpha", 1e-3, 1e6, log=True))
        return float(cross_val_score(model, x, y, cv=cv).mean())

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=1))
        study.optimize(objective, n_trials=15)
    finally:
        optuna.logging.set_verbosity(before)
    assert study.best_value > 0.2
    assert study.best_value == objective(optuna.trial.FixedTrial(study.best_params))


# --- what cannot be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: PurgedKFold(1), "n_splits is 1"),
        (lambda: PurgedKFold(3, embargo_ms=-5), "embargo_ms is -5"),
        (lambda: list(PurgedKFold(3, regular(2, 1)).split(np.zeros(2))), "2 rows cannot make 3 folds"),
        (lambda: list(PurgedKFold(2, regular(6, 9)).split(np.zeros(6))), "split 0: all 3 training rows overlap"),
        (lambda: CombinatorialPurged(1, 1), "n_folds is 1"),
        (lambda: CombinatorialPurged(4, 4), "n_test_folds is 4 of 4"),
        (lambda: CombinatorialPurged(4, 0), "n_test_folds is 0 of 4"),
        (lambda: CombinatorialPurged(30, 15), "155,117,520 splits"),
        (lambda: CombinatorialPurged(4, 2).recombine([[1]] * 5), "5 outputs for 6 splits"),
        (lambda: CombinatorialPurged(3, 2).recombine([[1] * 4, [1] * 5, [1] * 3]), "output 1 has 5 rows"),
        (lambda: CombinatorialPurged(3, 2).recombine([[1], [1], [1]]), "1 rows cannot make 3 folds"),
        (lambda: WalkForwardCV(0, 1), "train_size is 0"),
        (lambda: WalkForwardCV(1, 2.5), "test_size is 2.5"),  # type: ignore[arg-type]
        (lambda: WalkForwardCV(5, 5).get_n_splits(), "was given none"),
        (lambda: WalkForwardCV(5, 5, regular(9, 1)).get_n_splits(), "make no window"),
        (lambda: tuning_split(np.array([1, 0]), np.arange(3), np.arange(3) + 1), "ascending"),
        (lambda: stacking_split(np.arange(3), np.arange(3), np.arange(3) + 1, 5, past_only=True), "cannot make 5"),
        (
            lambda: stacking_split(np.arange(6), np.arange(6), np.arange(6) + 4, 3, past_only=True),
            "no label is settled",
        ),
    ],
)
def test_messages_teach(act: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        act()  # type: ignore[operator]


def test_paths_keep_further_axes() -> None:
    cv = CombinatorialPurged(3, 2, regular(9, 1))
    outputs = [np.column_stack([test, -test]) for _, test in cv.split(np.zeros(9))]
    paths = cv.recombine(outputs)
    assert paths.shape == (2, 9, 2)
    assert (paths[:, :, 0] == np.arange(9)).all()
    assert (paths[:, :, 1] == -np.arange(9)).all()
