"""What a period earned, from fills and marks: by hand, and nothing of the account is lost or counted twice."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlbot_core.decision.bandit_periods import Flow, Look, earned


def test_a_long_period_by_hand():
    """Two coins at 100; worth 110 once; a sale of five at 105 closes them and opens a short of three."""
    looks = [
        Look(110.0, [Flow(2.0, 100.0, 0.2, 1)]),
        Look(107.0, [Flow(0.0, 107.0, 0.4, 1), Flow(0.0, 107.0, 9.0, -1)]),
        Look(90.0, [Flow(-5.0, 105.0, 0.5, -1)]),
    ]
    growth, fall = earned(1, 0.0, 100.0, 1_000.0, looks)
    assert growth == pytest.approx(math.log(1 + (2 * 5 - 0.2 - 0.4 - 0.5 * 2 / 5) / 1_000))
    assert fall == pytest.approx(1 - (1_009.2 / 1_019.8))


def test_what_the_period_before_left_is_not_its_own():
    """It begins with two coins on the other side, which the first three fifths of its fee do not belong to."""
    growth, _ = earned(-1, 2.0, 107.0, 1_000.0, [Look(90.0, [Flow(-5.0, 105.0, 0.5, -1)])])
    assert growth == pytest.approx(math.log(1 + (3 * 15 - 0.5 * 3 / 5) / 1_000))


def test_coins_on_its_side_count_from_the_first_mark_and_an_unknown_mark_is_passed_over():
    growth, fall = earned(1, 2.0, 100.0, 1_000.0, [Look(math.nan, []), Look(104.0, [])])
    assert (growth, fall) == (pytest.approx(math.log(1.008)), 0.0)
    assert earned(1, 0.0, 100.0, math.nan, [Look(1.0, [])]) is None
    assert earned(0, 0.0, 100.0, 1.0, []) is None
    assert earned(1, 0.0, 100.0, 1_000.0, [Look(math.nan, [])]) == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_both_sides_of_an_account_make_its_result(seed):
    rng = np.random.default_rng(seed)
    coins, cash, looks, mark = 0.0, 0.0, [], 100.0
    for _ in range(30):
        flows = []
        for _ in range(int(rng.integers(0, 3))):
            mark *= float(np.exp(0.01 * rng.standard_normal()))
            quantity, fee = float(rng.normal()), float(rng.uniform(0, 0.1))
            flows.append(Flow(quantity, mark, fee, 1 if quantity > 0 else -1))
            cash -= quantity * mark + fee
            coins += quantity
        looks.append(Look(mark, flows))
    parts = [1e4 * (math.exp(earned(side, 0.0, 100.0, 1e4, looks)[0]) - 1) for side in (-1, 1)]
    assert sum(parts) == pytest.approx(cash + coins * mark, abs=1e-6)
