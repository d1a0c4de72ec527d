"""From quantiles to a distribution: order, moments, the chances of the barriers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from mlbot_core.models.forecast import from_normal, stays_between
from mlbot_core.models.tft_quantiles import forecast_columns, moments, probability_below, uncross

LEVELS = np.array([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95])
FINE = np.linspace(0.01, 0.99, 99)

quantile_rows = st.lists(st.floats(-8, 8, allow_nan=False), min_size=7, max_size=7).map(lambda v: np.array([v]))


def test_crossing_quantiles_are_put_in_order() -> None:
    crossed = np.array([[0.3, -0.2, -0.1, 0.1, 0.1, 0.1, 0.05]])
    fixed = uncross(crossed)
    assert (np.diff(fixed) > 0).all()
    np.testing.assert_allclose(fixed, np.sort(crossed), atol=1e-5)
    np.testing.assert_array_equal(uncross(fixed), fixed)


@given(quantile_rows)
def test_any_quantiles_make_a_distribution(quantiles: np.ndarray) -> None:
    p_down, p_neutral, p_up, score, sd = forecast_columns(quantiles, LEVELS)[0]
    assert min(p_down, p_neutral, p_up) >= 0
    assert p_down + p_neutral + p_up == pytest.approx(1.0, abs=1e-12)
    assert sd > 0
    assert quantiles.min() - 20 < score < quantiles.max() + 20
    q = uncross(quantiles)
    grid = np.linspace(-30, 30, 241)
    below = np.array([probability_below(x, q, LEVELS)[0] for x in grid])
    assert (np.diff(below) >= 0).all()
    assert 0 <= below[0] <= below[-1] <= 1
    at = [probability_below(float(x), q, LEVELS)[0] for x in q[0]]
    np.testing.assert_allclose(at, LEVELS, atol=1e-9)


@given(st.floats(-5, 2), st.lists(st.floats(0.05, 2), min_size=6, max_size=6))
def test_a_mirrored_distribution_has_the_mirrored_forecast(start: float, gaps: list[float]) -> None:
    quantiles = np.cumsum([start, *gaps])[None]
    one = forecast_columns(quantiles, LEVELS)[0]
    two = forecast_columns(-quantiles[:, ::-1], LEVELS)[0]
    np.testing.assert_allclose(two, [one[2], one[1], one[0], -one[3], one[4]], atol=1e-5, rtol=1e-4)


def test_moments_are_the_integrals_of_the_stated_quantile_function() -> None:
    q = np.array([[-2.0, -1.1, -0.4, 0.1, 0.9, 1.6, 3.0]])
    z = norm.ppf((np.arange(2_000_000) + 0.5) / 2_000_000)
    at = norm.ppf(LEVELS)
    low, high = (q[0, 1] - q[0, 0]) / (at[1] - at[0]), (q[0, -1] - q[0, -2]) / (at[-1] - at[-2])
    inner = np.interp(z, at, q[0])
    values = np.where(
        z < at[0], q[0, 0] + low * (z - at[0]), np.where(z > at[-1], q[0, -1] + high * (z - at[-1]), inner)
    )
    mean, sd = moments(q, LEVELS)
    assert mean[0] == pytest.approx(values.mean(), abs=1e-5)
    assert sd[0] == pytest.approx(values.std(), abs=1e-4)
    for x in (-4.0, -2.0, -1.0, 0.0, 1.0, 3.0, 5.0):
        assert probability_below(x, q, LEVELS)[0] == pytest.approx((values < x).mean(), abs=1e-5)


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.2, 0.9), (-0.3, 1.3), (0.1, 0.4), (1.5, 0.7), (0.0, 2.0)])
def test_of_a_normal_the_forecast_is_that_of_a_normal(mean: float, sd: float) -> None:
    said = forecast_columns(mean + sd * norm.ppf(LEVELS)[None], LEVELS)[0]
    expected = from_normal(np.array([mean]), np.array([sd]), pd.Index([0])).to_numpy()[0]
    np.testing.assert_allclose(said, expected, atol=1e-9)


def test_without_drift_neutral_is_how_often_a_path_stays_between_the_barriers() -> None:
    # a mixture of two calm normals: what it says must come from its quantiles, not from mean and deviation alone
    quantiles = np.array([norm.ppf(FINE, scale=0.5), norm.ppf(FINE, scale=1.5)])
    grid = np.linspace(-12, 12, 240_001)
    mixed = (norm.cdf(grid, scale=0.5) + norm.cdf(grid, scale=1.5)) / 2
    q = np.interp(FINE, mixed, grid)[None]
    parts = [forecast_columns(row[None], FINE)[0, 1] for row in quantiles]
    said = forecast_columns(q, FINE)[0, 1]
    assert said == pytest.approx(np.mean(parts), abs=0.01)
    mean, sd = moments(q, FINE)
    assert abs(stays_between(mean, sd)[0] - np.mean(parts)) > 0.1
