"""Trailing normalisation against slow references, cut anywhere; and the fitted one, which belongs inside a fold."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlbot_core.errors import UsageError
from mlbot_core.features import kernels
from mlbot_core.features import normalise as n
from mlbot_core.features.normalise_fold import FoldScaler, NotFittedError

VALUES = arrays(
    np.float64,
    st.integers(0, 60),
    elements=st.one_of(st.floats(-5, 5, width=16), st.sampled_from([np.nan, np.inf, 0.0, 1.0])),
)


def windows(x: np.ndarray, size: int):
    """Every usable window's finite values and its last value, as the rule says."""
    for i in range(size - 1, len(x)):
        window = x[i - size + 1 : i + 1]
        finite = window[np.isfinite(window)]
        if np.isfinite(x[i]) and 10 * len(finite) >= 8 * size:
            yield i, finite


@settings(max_examples=150, deadline=None)
@given(x=VALUES, size=st.integers(1, 12), share=st.floats(0, 1))
def test_quantiles_equal_numpy(x: np.ndarray, size: int, share: float) -> None:
    got = n.quantiles(x, size, np.array([share]))[0]
    want = np.full(len(x), np.nan)
    for i, finite in windows(x, size):
        want[i] = np.quantile(finite, share)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(x=VALUES, size=st.integers(1, 12))
def test_rank_equals_the_kernel_that_counts(x: np.ndarray, size: int) -> None:
    np.testing.assert_array_equal(n.rank(x, size), kernels.rank(x, size))


@settings(max_examples=100, deadline=None)
@given(x=VALUES, size=st.integers(2, 12), start=st.integers(0, 30))
def test_no_bit_depends_on_where_the_series_is_cut(x: np.ndarray, size: int, start: int) -> None:
    for scale in n.NORMALISERS.values():
        whole = scale(x, size)
        piece = scale(np.ascontiguousarray(x[start:-1]), size)
        np.testing.assert_array_equal(piece[size - 1 :], whole[start:-1][size - 1 :])


def test_robust_and_winsor_by_hand() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    assert n.robust(x, 5)[4] == pytest.approx((100 - 3) / (2 / 1.3489795003921634))
    assert n.scale_robust(x, 5)[4] == n.ZSCORE_CLIP
    assert n.winsorise(x, 5, 0.25)[4] == 4.0
    assert n.winsorise(x, 5, 0.0)[4] == 100.0
    assert n.rank(x, 5)[4] == 1.0
    assert np.isnan(n.robust(x, 5)[:4]).all()


@pytest.mark.parametrize(("last", "want"), [(5.0, 0.0), (6.0, 8.0), (4.0, -8.0)])
def test_a_flat_middle_half_has_no_unit(last: float, want: float) -> None:
    assert n.robust(np.array([5.0, 5.0, 5.0, 5.0, 5.0, last]), 6)[5] == want


def test_work_grows_with_the_logarithm_of_the_window() -> None:
    x = np.random.default_rng(0).normal(size=60_000)

    def seconds(size: int) -> float:
        n.robust(x[: size + 10], size)
        begin = time.process_time()
        n.robust(x, size)
        return time.process_time() - begin

    assert seconds(4000) < 8 * seconds(100), "forty times the window must not cost forty times the work"


def test_outliers_move_the_zscore_of_others_and_not_their_robust_score() -> None:
    x = np.random.default_rng(1).normal(size=400)
    wild = x.copy()
    wild[350] = 1e6
    assert abs(n.scale_zscore(wild, 100)[399]) < 0.2 < abs(n.scale_zscore(x, 100)[399])
    assert n.scale_robust(wild, 100)[399] == pytest.approx(n.scale_robust(x, 100)[399], abs=0.05)


def fold() -> np.ndarray:
    rows = np.random.default_rng(2).normal([0, 10, -3], [1, 5, 0.1], size=(500, 3))
    rows[::50, 1] = np.nan
    return rows


def test_standard_equals_the_textbook() -> None:
    rows = fold()
    got = FoldScaler("standard", winsor=0.0).fit_transform(rows)
    np.testing.assert_allclose(got, (rows - np.nanmean(rows, axis=0)) / np.nanstd(rows, axis=0, ddof=1), atol=1e-10)


def test_quantile_equals_scikit_learn() -> None:
    from sklearn.preprocessing import QuantileTransformer

    rows = fold()[:, [0, 2]]
    test = np.random.default_rng(3).normal([0, -3], [1, 0.1], size=(100, 2))
    want = QuantileTransformer(n_quantiles=257, subsample=None).fit(rows).transform(test)
    np.testing.assert_allclose(FoldScaler("quantile", winsor=0.0).fit(rows).transform(test), want, atol=1e-12)


@pytest.mark.parametrize("kind", ["standard", "robust", "quantile"])
def test_the_state_is_json_and_keeps_every_bit(kind: str) -> None:
    rows = fold()
    scaler = FoldScaler(kind, winsor=0.01).fit(rows)
    again = FoldScaler.from_json(scaler.to_json())
    np.testing.assert_array_equal(again.transform(rows), scaler.transform(rows))
    assert again.to_json() == scaler.to_json()


@pytest.mark.parametrize("kind", ["standard", "robust", "quantile"])
def test_test_rows_teach_nothing_and_are_held_to_the_training_quantiles(kind: str) -> None:
    rows = fold()
    scaler = FoldScaler(kind, winsor=0.01).fit(rows)
    before = scaler.to_json()
    wild = np.full((1, 3), 1e9)
    top = scaler.transform(np.nanquantile(rows, 0.99, axis=0)[None])
    np.testing.assert_allclose(scaler.transform(wild), top, rtol=1e-9)
    assert scaler.to_json() == before
    assert np.isnan(scaler.transform(np.full((1, 3), np.nan))).all()


def test_flat_and_unknown_columns_say_nothing() -> None:
    rows = np.column_stack([np.full(20, 7.0), np.full(20, np.nan)])
    probe = np.array([[7.0, 1.0], [9.0, 2.0]])
    assert (FoldScaler("standard").fit(rows).transform(probe) == 0).all()
    assert (FoldScaler("quantile").fit(rows).transform(probe) == 0.5).all()


def test_it_works_inside_scikit_learn() -> None:
    from sklearn.base import clone
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import TimeSeriesSplit, cross_val_score
    from sklearn.pipeline import make_pipeline

    rows = np.nan_to_num(fold())
    target = rows[:, 0] + 0.1 * rows[:, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = cross_val_score(make_pipeline(FoldScaler("robust"), Ridge()), rows, target, cv=TimeSeriesSplit(3))
    assert (scores > 0.8).all()
    copy = clone(FoldScaler("quantile", winsor=0.02).fit(rows))
    assert copy.get_params() == {"kind": "quantile", "winsor": 0.02}
    assert not hasattr(copy, "state_")


def test_frames_are_taken_too() -> None:
    rows = pd.DataFrame(fold(), columns=["a", "b", "c"])
    np.testing.assert_array_equal(FoldScaler().fit_transform(rows), FoldScaler().fit_transform(rows.to_numpy()))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(NotFittedError, match="call fit"):
        FoldScaler().transform(fold())
    with pytest.raises(NotFittedError, match="no state"):
        FoldScaler().to_json()
    with pytest.raises(UsageError, match="choose one of standard, robust, quantile"):
        FoldScaler("minmax").fit(fold())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"below 0\.5"):
        FoldScaler(winsor=0.5).fit(fold())
    with pytest.raises(UsageError, match="2 columns were given"):
        FoldScaler().fit(fold()).transform(fold()[:, :2])
    with pytest.raises(UsageError, match="no rows"):
        FoldScaler().fit(np.empty((0, 2)))
    with pytest.raises(UsageError, match="not the state"):
        FoldScaler.from_json("{}")
    with pytest.raises(UsageError, match="no parameter 'size'"):
        FoldScaler().set_params(size=1)
