"""Intervals of IPS, SNIPS and DR cover the true value at their stated rate: 1,000 repetitions each."""

from __future__ import annotations

import math

import pytest

from mlbot_core.research.bandit_synthetic import BEHAVIOURS, Behaviour, coverage, sizing_bandit

REPETITIONS = 1_000
LEVELS = (0.8, 0.95)


@pytest.mark.prove
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_intervals_cover_at_their_stated_rate(behaviour: Behaviour):
    """Within what 1,000 repetitions can tell apart (four binomial deviations), with fat-tailed rewards."""
    found = coverage(sizing_bandit(3, tails=5), behaviour, decisions=300, repetitions=REPETITIONS, levels=LEVELS)
    assert {(row.level, row.estimator) for row in found} == {
        (x, name) for x in LEVELS for name in ("IPS", "SNIPS", "DR")
    }
    for row in found:
        level = row.level
        tolerance = 4 * math.sqrt(level * (1 - level) / REPETITIONS)
        assert row.repetitions == REPETITIONS
        assert abs(row.rate - level) < tolerance, f"{row.behaviour} {row.estimator}: {row.rate:.3f} of {level}"
        assert abs(row.bias) < row.width / 20
        assert 5 < row.effective <= 300


def test_clipping_is_seen_to_cost_coverage():
    """Weights that are clipped hard make an interval about something else: why the clipped share is reported."""
    bandit = sizing_bandit(3)
    free, clipped = (
        {row.estimator: row for row in coverage(bandit, "uniform", decisions=300, repetitions=150, max_weight=w)}
        for w in (math.inf, 1.2)
    )
    assert clipped["IPS"].rate < free["IPS"].rate - 0.2
    assert clipped["IPS"].bias < 0
