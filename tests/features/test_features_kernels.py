"""Kernels against pandas and numpy on each window by itself, and the rules for missing values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features import smoothing

VALUES = st.one_of(
    st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 3)),
    st.just(math.nan),
    st.sampled_from([0.0, 1.0, 5.0]),
)
SERIES = st.lists(VALUES, min_size=0, max_size=60).map(lambda v: np.array(v, dtype=np.float64))
WINDOW = st.integers(3, 15)


def by_window(x: np.ndarray, n: int, f: Callable[[np.ndarray], float], least: int = 1) -> np.ndarray:
    """The rule for missing values spelled out; ``f`` sees the window with its NaN."""
    out = np.full(len(x), np.nan)
    for i in range(n - 1, len(x)):
        window = x[i - n + 1 : i + 1]
        finite = np.isfinite(window).sum()
        if np.isfinite(x[i]) and 10 * finite >= 8 * n and finite >= least:
            out[i] = f(window)
    return out


def clean(f: Callable[[np.ndarray], float]) -> Callable[[np.ndarray], float]:
    return lambda window: f(window[np.isfinite(window)])


def flat(window: np.ndarray) -> bool:
    return np.ptp(window) == 0


def z(window: np.ndarray) -> float:
    return 0.0 if flat(window) else (window[-1] - window.mean()) / window.std(ddof=1)


def least_squares(window: np.ndarray) -> float:
    at = np.flatnonzero(np.isfinite(window))
    return float(np.polyfit(at, window[at], 1)[0])


REFERENCES = {
    "total": (k.total, clean(np.sum), 1),
    "mean": (k.mean, clean(np.mean), 1),
    "std": (k.std, clean(lambda w: w.std(ddof=1)), 2),
    "zscore": (k.zscore, clean(z), 2),
    "highest": (k.highest, clean(np.max), 1),
    "lowest": (k.lowest, clean(np.min), 1),
    "since_highest": (k.since_highest, lambda w: float(np.nanargmax(w[::-1])), 1),
    "since_lowest": (k.since_lowest, lambda w: float(np.nanargmin(w[::-1])), 1),
    "rank": (k.rank, clean(lambda w: (rankdata(w)[-1] - 1) / (len(w) - 1)), 2),
    "slope": (k.slope, least_squares, 2),
}


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=60, deadline=None)
@given(x=SERIES, n=WINDOW)
def test_kernel_equals_numpy_on_its_window(name: str, x: np.ndarray, n: int) -> None:
    kernel, reference, least = REFERENCES[name]
    scale = np.nanmax(np.abs(x)) if np.isfinite(x).any() else 1.0
    # a z-score has no unit, and in a window that is almost flat its last digits are lost in any arithmetic
    atol = 1e-6 if name == "zscore" else 1e-9 * max(scale, 1.0)
    np.testing.assert_allclose(kernel(x, n), by_window(x, n, reference, least), rtol=1e-7, atol=atol)


@settings(max_examples=60, deadline=None)
@given(x=SERIES, n=WINDOW)
def test_skew_equals_pandas(x: np.ndarray, n: int) -> None:
    expected = by_window(x, n, lambda w: float(pd.Series(w[np.isfinite(w)]).skew()), 3)
    np.testing.assert_allclose(k.skew(x, n), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=WINDOW, holes=st.floats(0, 0.2))
def test_correlation_and_beta_equal_numpy_on_common_values(seed: int, n: int, holes: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=50), rng.normal(size=50)
    x[rng.random(50) < holes] = np.nan
    y[rng.random(50) < holes] = np.nan
    pair = np.where(np.isfinite(x) & np.isfinite(y), np.arange(50.0), np.nan)

    def over(f: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
        return by_window(pair, n, clean(lambda at: f(x[at.astype(int)], y[at.astype(int)])), 3)

    np.testing.assert_allclose(
        k.correlation(x, y, n), over(lambda a, b: np.corrcoef(a, b)[0, 1]), rtol=1e-7, atol=1e-10
    )
    np.testing.assert_allclose(k.beta(y, x, n), over(lambda a, b: np.polyfit(a, b, 1)[0]), rtol=1e-6, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), span=st.integers(2, 6), holes=st.floats(0, 0.15))
def test_ema_equals_pandas_restarted_on_its_window(seed: int, span: int, holes: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=smoothing.ema_window(span) + 20).cumsum()
    x[rng.random(len(x)) < holes] = np.nan
    expected = by_window(
        x,
        smoothing.ema_window(span),
        clean(lambda w: pd.Series(w).ewm(span=span, adjust=False).mean().iloc[-1]),
    )
    np.testing.assert_allclose(smoothing.ema(x, span), expected, rtol=1e-10, atol=1e-10)


def test_a_restart_ten_spans_back_is_as_good_as_none() -> None:
    x = 100 + np.random.default_rng(3).normal(size=600).cumsum()
    endless = pd.Series(x).ewm(span=12, adjust=False).mean().to_numpy()
    np.testing.assert_allclose(smoothing.ema(x, 12)[400:], endless[400:], rtol=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), period=st.integers(2, 5))
def test_wilder_and_rsi_equal_the_textbook_recursion(seed: int, period: int) -> None:
    n = smoothing.wilder_window(period)
    close = 100 + np.random.default_rng(seed).normal(size=n + 10).cumsum()
    change = np.diff(close, prepend=np.nan)

    def smooth(window: np.ndarray) -> float:
        state = window[:period].mean()
        for value in window[period:]:
            state = (state * (period - 1) + value) / period
        return float(state)

    np.testing.assert_allclose(smoothing.wilder(close, period), by_window(close, n, smooth), rtol=1e-9)
    gain, loss = np.clip(change, 0, None), np.clip(-change, 0, None)
    up, down = by_window(gain, n, smooth), by_window(loss, n, smooth)
    # the very first change does not exist, so the first window that ends with a value holds one change less
    np.testing.assert_allclose(smoothing.rsi(close, period)[n:], (100 - 100 / (1 + up / down))[n:], rtol=1e-9)


def test_rsi_of_a_still_a_rising_and_a_falling_price() -> None:
    bars = smoothing.wilder_window(14) + 1
    rising = np.arange(1.0, bars + 1)
    assert smoothing.rsi(np.full(bars, 7.0), 14)[-1] == 50.0
    assert smoothing.rsi(rising, 14)[-1] == 100.0
    assert smoothing.rsi(rising[::-1].copy(), 14)[-1] == 0.0


def test_a_flat_window_has_no_deviation_despite_rounding() -> None:
    flat_series = np.full(300, 0.1 + 0.2)
    assert (k.zscore(flat_series, 240)[239:] == 0.0).all()
    assert (k.std(flat_series, 240)[239:] == 0.0).all()
    assert np.isnan(k.correlation(flat_series, np.arange(300.0), 50)).all()


@pytest.mark.parametrize(("missing", "answers"), [(2, True), (3, False)])
def test_eighty_percent_of_the_window_must_be_there(missing: int, answers: bool) -> None:
    x = np.arange(10.0)
    x[:missing] = np.nan
    for kernel, _, _ in REFERENCES.values():
        assert np.isfinite(kernel(x, 10)[-1]) == answers


def test_no_answer_where_the_last_value_is_missing_or_infinite() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        x = np.arange(30.0)
        x[20] = bad
        for name, (kernel, _, _) in REFERENCES.items():
            out = kernel(x, 10)
            assert np.isnan(out[20]), name
            assert np.isfinite(out[21:]).all(), name


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(2, 40), start=st.integers(0, 700), cut=st.integers(0, 700))
def test_a_window_is_the_same_bit_for_bit_wherever_the_series_is_cut(seed: int, n: int, start: int, cut: int) -> None:
    """The blocks of the moment kernels must not show: 1,400 outputs span three of them."""
    rng = np.random.default_rng(seed)
    x = rng.lognormal(0, 3, 1400)
    x[rng.random(1400) < 0.05] = np.nan
    end = 1400 - cut
    for kernel in (k.mean, k.std, k.zscore, k.skew, k.total, k.slope):
        full, piece = kernel(x, n)[start + n - 1 : end], kernel(x[start:end].copy(), n)[n - 1 :]
        np.testing.assert_array_equal(full.view(np.int64)[~np.isnan(full)], piece.view(np.int64)[~np.isnan(piece)])
        np.testing.assert_array_equal(np.isnan(full), np.isnan(piece))


@settings(max_examples=60, deadline=None)
@given(a=SERIES)
def test_elementwise_never_yields_an_infinity(a: np.ndarray) -> None:
    b = a[::-1].copy()
    with np.errstate(all="ignore"):
        expected_log = np.where(a > 0, np.log(np.where(a > 0, a, 1.0)), np.nan)
        expected_ratio = np.where(b != 0, a / b, np.nan)
    np.testing.assert_allclose(e.log(a), expected_log)
    np.testing.assert_allclose(e.ratio(a, b), expected_ratio)
    np.testing.assert_allclose(e.positive_part(a), np.where(np.isnan(a), np.nan, np.maximum(a, 0)))
    np.testing.assert_allclose(e.diff(a, 2), pd.Series(a, dtype=float).diff(2).to_numpy())
    assert not np.isinf(e.log_ratio(a, b)).any()


def test_bar_variances_by_hand() -> None:
    one = [np.array([v]) for v in (100.0, 110.0, 95.0, 105.0)]
    high_low, body = math.log(110 / 95), math.log(105 / 100)
    assert e.garman_klass(*one)[0] == pytest.approx(0.5 * high_low**2 - (2 * math.log(2) - 1) * body**2)
    expected = math.log(110 / 105) * math.log(110 / 100) + math.log(95 / 105) * math.log(95 / 100)
    assert e.rogers_satchell(*one)[0] == pytest.approx(expected)
    high, low, close = np.array([10.0, 9.0]), np.array([8.0, 8.5]), np.array([9.5, 8.7])
    np.testing.assert_allclose(e.true_range(high, low, close), [np.nan, 1.0])
