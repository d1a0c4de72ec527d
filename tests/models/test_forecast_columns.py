"""From a mean and a deviation to the barriers: the closed form against a random walk and against itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.models.base import FORECAST
from mlbot_core.models.forecast import _by_images, _by_sines, from_normal, from_probabilities, stays_between
from mlbot_core.targets.direction import triple_barrier


def test_a_classifier_scores_the_barriers() -> None:
    p = np.array([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [np.nan] * 3])
    frame = from_probabilities(p, pd.Index([5, 6, 7]))
    assert list(frame.columns) == list(FORECAST)
    assert list(frame.index) == [5, 6, 7]
    assert frame.iloc[0, 3:].tolist() == pytest.approx([0.3, np.sqrt(0.7 - 0.09)])
    assert frame.iloc[1, 3:].tolist() == [0.0, 0.0]
    assert frame.iloc[2].isna().all()


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.3, 1.0), (-0.8, 0.6), (0.5, 2.0)])
def test_the_probabilities_are_those_of_the_triple_barrier(mean: float, sd: float) -> None:
    """Our own labels on long random walks of many small steps have the frequencies that the closed form says."""
    generator = np.random.default_rng(8)
    paths, steps, width = 1500, 1200, 0.01
    up, down = 0, 0
    widths = np.full(steps + 1, np.nan)  # only the first bar is asked for
    widths[0] = width
    for _ in range(paths):
        walk = np.cumsum(width * (mean / steps + sd / np.sqrt(steps) * generator.normal(size=steps)))
        close = 100.0 * np.exp(np.concatenate([[0.0], walk]))
        label, _, _ = triple_barrier(close, close, close, close, widths, steps)
        up += label[0] == 1
        down += label[0] == -1
    said = from_normal(np.array([mean]), np.array([sd]), pd.RangeIndex(1)).iloc[0]
    # three standard errors, and what a walk of steps misses between them (Broadie, Glasserman, Kou, 1997)
    missed = 0.5826 * sd / np.sqrt(steps)
    for p, count in ((said["p_up"], up), (said["p_down"], down)):
        assert count / paths == pytest.approx(p, abs=3 * np.sqrt(p * (1 - p) / paths) + missed)


@settings(max_examples=200, deadline=None)
@given(st.floats(-4, 4), st.floats(0.4, 0.6))
def test_the_two_series_are_one_function(mean: float, sd: float) -> None:
    drift, spread = np.array([abs(mean)]), np.array([sd])
    assert _by_images(drift, spread)[0] == pytest.approx(_by_sines(drift, spread)[0], abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(st.floats(-1e3, 1e3), st.floats(1e-6, 1e6))
def test_any_mean_and_deviation_give_a_distribution(mean: float, sd: float) -> None:
    frame = from_normal(np.array([mean, -mean]), np.array([sd, sd]), pd.RangeIndex(2))
    p = frame.to_numpy()[:, :3]
    assert np.isfinite(p).all()
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(p[0], p[1, ::-1], atol=1e-12)  # turned round with the sign
    assert (p[0, 2] >= p[0, 0]) == (mean >= 0) or np.isclose(p[0, 2], p[0, 0])


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 3), st.floats(0, 2), st.floats(0.05, 5))
def test_a_greater_mean_or_deviation_leaves_sooner(mean: float, more: float, sd: float) -> None:
    calm, pushed, shaken = stays_between(np.array([mean, mean + more, 0.0]), np.array([sd, sd, sd]))
    assert pushed <= calm + 1e-12
    assert stays_between(np.array([0.0]), np.array([sd + more]))[0] <= shaken + 1e-12


def test_no_forecast_stays_none() -> None:
    assert from_normal(np.array([np.nan]), np.array([np.nan]), pd.RangeIndex(1)).iloc[0].isna().all()
