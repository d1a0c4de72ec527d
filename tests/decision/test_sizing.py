"""The no-trade band: a table of every transition, and invariants over random edges.

Invariants: a target is -cap, 0 or +cap; the past alone decides it; mirrored edges give mirrored targets; no entry
without an edge above the cost; nothing is held on a missing forecast or against the edge.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.decision import next_side, target_positions
from mlbot_core.errors import UsageError

quick = settings(deadline=None, max_examples=150)
COST = 0.0015
Series = npt.NDArray[np.float64]


@st.composite
def edges(draw: st.DrawFn) -> Series:
    n = draw(st.integers(0, 60))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    edge = generator.normal(0.0, draw(st.floats(0.0002, 0.01)), n)
    edge[generator.random(n) < draw(st.floats(0, 0.5))] = math.nan
    return edge


@pytest.mark.parametrize("side", [-1, 0, 1])
@pytest.mark.parametrize(
    ("edge", "expected"),
    [
        (0.0016, {-1: 1, 0: 1, 1: 1}),
        (0.0014, {-1: 0, 0: 0, 1: 1}),
        (0.0, {-1: -1, 0: 0, 1: 1}),
        (-0.0014, {-1: -1, 0: 0, 1: 0}),
        (-0.0016, {-1: -1, 0: -1, 1: -1}),
        (math.nan, {-1: 0, 0: 0, 1: 0}),
        (math.inf, {-1: 0, 0: 0, 1: 0}),
    ],
)
def test_every_transition(side: int, edge: float, expected: dict[int, int]) -> None:
    assert next_side(side, edge, COST) == expected[side]


def test_an_edge_equal_to_the_cost_is_no_reason_to_trade() -> None:
    assert next_side(0, 0.125, 0.125) == 0
    assert next_side(0, -0.125, 0.125) == 0
    assert next_side(0, 0.125, np.nextafter(0.125, 0.0)) == 1


def test_a_story_by_hand() -> None:
    edge = [0.001, 0.002, 0.001, 0.0001, -0.0001, -0.001, -0.002, -0.001, 0.003, math.nan, 0.001, 0.002]
    want = [0.0, 0.1, 0.1, 0.1, 0.0, 0.0, -0.1, -0.1, 0.1, 0.0, 0.0, 0.1]
    np.testing.assert_array_equal(target_positions(edge, COST, 0.1), want)


@quick
@given(edges(), st.floats(0, 0.02), st.floats(0.001, 1.0))
def test_a_target_is_the_cap_or_nothing(edge: Series, cost: float, cap: float) -> None:
    target = target_positions(edge, cost, cap)
    assert target.dtype == np.float64
    assert target.shape == edge.shape
    assert set(target) <= {-cap, 0.0, cap}
    assert not np.signbit(target[target == 0]).any()


@quick
@given(edges(), st.floats(0, 0.02), st.integers(0, 60))
def test_a_prefix_gives_the_prefix(edge: Series, cost: float, cut: int) -> None:
    np.testing.assert_array_equal(target_positions(edge[:cut], cost, 0.1), target_positions(edge, cost, 0.1)[:cut])


@quick
@given(edges(), st.floats(0, 0.02))
def test_mirrored_edges_give_mirrored_targets(edge: Series, cost: float) -> None:
    np.testing.assert_array_equal(target_positions(-edge, cost, 0.1), -target_positions(edge, cost, 0.1))


@quick
@given(edges())
def test_no_trade_when_the_cost_exceeds_every_edge(edge: Series) -> None:
    worst = float(np.nanmax(np.abs(edge))) if np.isfinite(edge).any() else 0.0
    assert not target_positions(edge, worst, 0.1).any()


@quick
@given(edges(), st.floats(0, 0.02))
def test_entries_pay_and_nothing_is_held_blind_or_against_the_edge(edge: Series, cost: float) -> None:
    side = np.sign(target_positions(edge, cost, 0.1))
    before = np.r_[0.0, side[:-1]]
    entered = (side != 0) & (side != before)
    assert (np.abs(edge[entered]) > cost).all()
    assert (np.sign(edge[entered]) == side[entered]).all()
    assert (side[np.isnan(edge)] == 0).all()
    assert not (side * np.nan_to_num(edge) < 0).any()
    # A position is given up only for a reason: the edge changed sides or is missing.
    left = (before != 0) & (side == 0)
    assert (np.isnan(edge[left]) | (before[left] * edge[left] < 0)).all()


@quick
@given(edges(), st.floats(0, 0.02))
def test_stepping_bar_by_bar_is_the_same(edge: Series, cost: float) -> None:
    side, stepped = 0, []
    for value in edge:
        side = next_side(side, value, cost)
        stepped.append(side * 0.1)
    np.testing.assert_array_equal(target_positions(edge, cost, 0.1), stepped)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edge": [[0.5, 0.5]]}, "one series"),
        ({"cost_round_trip": -0.001}, "cost_round_trip -0.001"),
        ({"cost_round_trip": math.nan}, "cost_round_trip nan"),
        ({"max_position": 0.0}, r"max_position 0\.0"),
        ({"max_position": 1.5}, r"max_position 1\.5"),
        ({"max_position": math.nan}, "max_position nan"),
    ],
)
def test_inputs_that_cannot_be_are_refused(change: dict[str, object], words: str) -> None:
    good = {"edge": [0.003], "cost_round_trip": COST, "max_position": 0.1}
    with pytest.raises(UsageError, match=words):
        target_positions(**{**good, **change})  # type: ignore[arg-type]
