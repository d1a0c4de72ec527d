"""The no-trade band: a table of every transition, and invariants over random forecasts.

Invariants: a target is -cap, 0 or +cap; the past alone decides it; mirrored forecasts give mirrored targets; no
entry without an edge above the cost; nothing is held on a missing forecast or against the edge.
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


def _from_edges(edges: list[float], width: float = 0.01) -> tuple[Series, Series, Series]:
    """Forecasts with these edges: p_up - p_down = edge / width around one half."""
    lean = np.array(edges) / width
    return 0.5 - lean / 2, 0.5 + lean / 2, np.full(len(edges), width)


@st.composite
def forecasts(draw: st.DrawFn) -> tuple[Series, Series, Series]:
    n = draw(st.integers(0, 60))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    p = generator.dirichlet([draw(st.floats(0.2, 5))] * 3, n)
    width = np.abs(generator.normal(0.005, 0.005, n))
    holes = draw(st.floats(0, 0.5))
    p[generator.random(n) < holes] = math.nan
    width[generator.random(n) < holes / 4] = math.nan
    return p[:, 0].copy(), p[:, 2].copy(), width


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
    ],
)
def test_every_transition(side: int, edge: float, expected: dict[int, int]) -> None:
    down, up, width = _from_edges([edge])
    assert next_side(side, down[0], up[0], width[0], COST) == expected[side]


def test_an_edge_equal_to_the_cost_is_no_reason_to_trade() -> None:
    # Exact in binary: edge = 0.5 * 0.25 = 0.125.
    assert next_side(0, 0.0, 0.5, 0.25, 0.125) == 0
    assert next_side(0, 0.5, 0.0, 0.25, 0.125) == 0
    assert next_side(0, 0.0, 0.5, 0.25, np.nextafter(0.125, 0.0)) == 1


def test_a_story_by_hand() -> None:
    edges = [0.001, 0.002, 0.001, 0.0001, -0.0001, -0.001, -0.002, -0.001, 0.003, math.nan, 0.001, 0.002]
    want = [0.0, 0.1, 0.1, 0.1, 0.0, 0.0, -0.1, -0.1, 0.1, 0.0, 0.0, 0.1]
    np.testing.assert_array_equal(target_positions(*_from_edges(edges), COST, 0.1), want)


def test_neutral_probability_shrinks_the_edge() -> None:
    # 60 % against 40 % is an edge of 0.2 widths; with most of it neutral, 15 % against 10 % is 0.05.
    width = np.array([0.01, 0.01])
    np.testing.assert_array_equal(target_positions([0.4, 0.10], [0.6, 0.15], width, 0.0019, 0.1)[:1], [0.1])
    np.testing.assert_array_equal(target_positions([0.10], [0.15], width[:1], 0.0019, 0.1), [0.0])


@quick
@given(forecasts(), st.floats(0, 0.02), st.floats(0.001, 1.0))
def test_a_target_is_the_cap_or_nothing(f: tuple[Series, Series, Series], cost: float, cap: float) -> None:
    target = target_positions(*f, cost, cap)
    assert target.dtype == np.float64
    assert target.shape == f[0].shape
    assert set(target) <= {-cap, 0.0, cap}
    assert not np.signbit(target[target == 0]).any()


@quick
@given(forecasts(), st.floats(0, 0.02), st.integers(0, 60))
def test_a_prefix_gives_the_prefix(f: tuple[Series, Series, Series], cost: float, cut: int) -> None:
    whole = target_positions(*f, cost, 0.1)
    np.testing.assert_array_equal(target_positions(*(a[:cut] for a in f), cost, 0.1), whole[:cut])


@quick
@given(forecasts(), st.floats(0, 0.02))
def test_mirrored_forecasts_give_mirrored_targets(f: tuple[Series, Series, Series], cost: float) -> None:
    down, up, width = f
    np.testing.assert_array_equal(
        target_positions(up, down, width, cost, 0.1), -target_positions(down, up, width, cost, 0.1)
    )


@quick
@given(forecasts())
def test_no_trade_when_the_cost_exceeds_every_edge(f: tuple[Series, Series, Series]) -> None:
    edge = np.abs((f[1] - f[0]) * f[2])
    worst = float(np.nanmax(edge)) if np.isfinite(edge).any() else 0.0
    assert not target_positions(*f, worst, 0.1).any()


@quick
@given(forecasts(), st.floats(0, 0.02))
def test_entries_pay_and_nothing_is_held_blind_or_against_the_edge(
    f: tuple[Series, Series, Series], cost: float
) -> None:
    side = np.sign(target_positions(*f, cost, 0.1))
    edge = (f[1] - f[0]) * f[2]
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
@given(forecasts(), st.floats(0, 0.02))
def test_stepping_bar_by_bar_is_the_same(f: tuple[Series, Series, Series], cost: float) -> None:
    side, stepped = 0, []
    for down, up, width in zip(*f, strict=True):
        side = next_side(side, down, up, width, cost)
        stepped.append(side * 0.1)
    np.testing.assert_array_equal(target_positions(*f, cost, 0.1), stepped)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"p_up": [0.5, 0.5]}, "one length"),
        ({"p_up": [1.2]}, r"p_up\[0\] is 1\.2"),
        ({"p_down": [-0.1]}, r"p_down\[0\] is -0\.1"),
        ({"width": [-0.01]}, r"width\[0\]"),
        ({"cost_round_trip": -0.001}, "cost_round_trip -0.001"),
        ({"cost_round_trip": math.nan}, "cost_round_trip nan"),
        ({"max_position": 0.0}, r"max_position 0\.0"),
        ({"max_position": 1.5}, r"max_position 1\.5"),
        ({"max_position": math.nan}, "max_position nan"),
    ],
)
def test_inputs_that_cannot_be_are_refused(change: dict[str, object], words: str) -> None:
    good = {"p_down": [0.3], "p_up": [0.4], "width": [0.01], "cost_round_trip": COST, "max_position": 0.1}
    with pytest.raises(UsageError, match=words):
        target_positions(**{**good, **change})  # type: ignore[arg-type]
