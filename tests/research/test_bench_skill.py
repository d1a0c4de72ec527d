"""The p-values of the bench are uniform without skill, however labels overlap and forecasts persist."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlbot_core.research.bench_skill import block_p_value, measure

HORIZON, WINDOW, WINDOWS = 12, 120, 12
N = WINDOW * WINDOWS


def overlapping(rng, persistence):
    """Forecasts that persist, made of the past of the very walk whose overlapping future they forecast."""
    steps = rng.standard_t(5, N + HORIZON + 50)
    walk = np.cumsum(steps)
    at = np.arange(50, 50 + N)
    outcome = (walk[at + HORIZON] - walk[at]) / 4.0
    forecast = walk[at] - walk[at - persistence]
    return forecast, outcome


def p_values(persistence, measure_name, paths=400):
    found = []
    fold, place = np.repeat(np.arange(WINDOWS), WINDOW), np.tile(np.arange(WINDOW), WINDOWS)
    for seed in range(paths):
        forecast, outcome = overlapping(np.random.default_rng(seed), persistence)
        daily = np.random.default_rng(10_000 + seed).normal(0, 0.01, 120)
        skill = measure(forecast, outcome, np.sign(outcome), fold, place, 6, daily)
        found.append(getattr(skill, measure_name))
    return np.array([one.value for one in found]), np.array([one.p for one in found])


@pytest.mark.parametrize("persistence", [1, 40])
@pytest.mark.parametrize("name", ["boundary_ic", "ic", "hits", "gross_sharpe"])
def test_p_values_are_uniform_without_skill(persistence, name):
    from scipy.stats import kstest

    values, p = p_values(persistence, name)
    assert kstest(p, "uniform").pvalue > 0.001
    assert 0.02 < (p < 0.05).mean() < 0.09
    centre = 0.5 if name == "hits" else 0.0
    assert abs(values.mean() - centre) < 4 * values.std() / math.sqrt(len(values))


def test_a_naive_test_is_not_uniform():
    """What the blocks are for: taken as independent, persistent forecasts of overlapping labels look skilful."""
    from scipy.stats import ttest_1samp

    p = []
    for seed in range(200):
        forecast, outcome = overlapping(np.random.default_rng(seed), 40)
        p.append(ttest_1samp(forecast * outcome, 0.0).pvalue)
    assert (np.array(p) < 0.05).mean() > 0.3


def test_skill_is_found_and_signed():
    rng = np.random.default_rng(1)
    outcome = rng.normal(size=N)
    fold, place = np.repeat(np.arange(WINDOWS), WINDOW), np.tile(np.arange(WINDOW), WINDOWS)
    for sign in (1.0, -1.0):
        forecast = sign * (0.3 * outcome + rng.normal(size=N))
        skill = measure(forecast, outcome, np.sign(outcome), fold, place, 6, rng.normal(0, 1, 50))
        assert sign * skill.ic.value > 0.2
        assert skill.ic.p < 0.001
        assert sign * (skill.hits.value - 0.5) > 0.05


def test_only_the_first_bars_count_at_a_boundary():
    fold, place = np.repeat(np.arange(WINDOWS), WINDOW), np.tile(np.arange(WINDOW), WINDOWS)
    rng = np.random.default_rng(2)
    outcome, forecast = rng.normal(size=N), rng.normal(size=N)
    near = place < 6
    forecast[near] = outcome[near]
    skill = measure(forecast, outcome, np.sign(outcome), fold, place, 6, np.zeros(50))
    assert skill.boundary_ic.value == pytest.approx(1.0)
    assert skill.boundary_hits.value == 1.0
    assert abs(skill.ic.value) < 0.2


def test_what_is_undefined_is_nan():
    empty = np.full(10, np.nan)
    skill = measure(empty, empty, empty, np.zeros(10, int), np.arange(10), 3, np.zeros(5))
    assert all(math.isnan(one.value) for one in (skill.ic, skill.hits, skill.boundary_ic, skill.gross_sharpe))
    assert math.isnan(block_p_value(np.ones(4), np.array([0, 0, 1, 1])))
    assert math.isnan(block_p_value(np.array([]), np.array([], int)))
