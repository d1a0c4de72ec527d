"""What the network reads: calendar, chosen and scaled features, the grid of bars, the path to the score, the split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbot_core.config import TFTConfig
from mlbot_core.features.registry import all_features
from mlbot_core.models.base import FeatureMismatchError, TrainingDataError
from mlbot_core.models.tft_data import CALENDAR, bar_length, calendar, fit_scaling, grid_places, make_bars, step_targets
from mlbot_core.models.tft_fit import split_rows

BAR_MS = 7_200_000
T0 = 1_700_006_400_000


def config(**changes: Any) -> TFTConfig:
    return TFTConfig.model_validate(
        {"horizon": 4, "decoder_steps": 2, "encoder_length": 3, "max_features": 2, **changes}
    )


def test_the_calendar_is_that_of_the_features() -> None:
    ts = T0 + BAR_MS * np.arange(200, dtype=np.int64)
    declared = {f.name: f for f in all_features()}
    hours = (ts + BAR_MS) / 3_600_000
    made = calendar(ts, BAR_MS)
    for at, name in enumerate(CALENDAR):
        theirs = declared[name].compute(hours)
        expected = theirs / 8 * 2 - 1 if name == "to_funding" else theirs
        np.testing.assert_allclose(made[:, at], expected, atol=1e-9)
    assert np.abs(made).max() <= 1


def test_bars_and_places() -> None:
    ts = T0 + BAR_MS * np.array([0, 1, 3, 4, 10])
    assert bar_length(ts) == BAR_MS
    np.testing.assert_array_equal(grid_places(ts, BAR_MS), [0, 1, 3, 4, 10])
    for odd in (ts + np.array([0, 0, 1, 0, 0]), ts[[0, 2, 1, 3, 4]]):
        with pytest.raises(FeatureMismatchError, match="whole bars of 7200000 ms"):
            grid_places(odd, BAR_MS)
    with pytest.raises(TrainingDataError, match="1 bars"):
        bar_length(ts[:1])


def test_features_are_chosen_by_rank_correlation_without_copies() -> None:
    rng = np.random.default_rng(1)
    score = rng.normal(size=500)
    strong = np.exp(score + rng.normal(size=500))
    weak = -score + 3 * rng.normal(size=500)
    matrix = np.column_stack(
        [
            rng.normal(size=500),
            weak,
            strong,
            strong**3,
            np.full(500, 2.0),
            np.where(np.arange(500) < 300, np.nan, score),
        ]
    )
    scaling = fit_scaling(matrix, score, np.ones(500), config())
    assert list(scaling.chosen) == [1, 2]  # not the copy, the constant, or the mostly unknown
    assert scaling.rank_ic[0] < 0 < scaling.rank_ic[1]
    np.testing.assert_allclose(scaling.center, np.median(matrix[:, [1, 2]], axis=0))
    scaled, known = scaling.apply(matrix)
    assert np.abs(scaled).max() <= 5.0
    assert np.median(np.abs(scaled[:, 0])) == pytest.approx(0.6745, abs=0.08)
    assert (known == 1.0).all()
    matrix[3, 1] = np.nan
    scaled, known = scaling.apply(matrix)
    assert scaled[3, 0] == 0.0
    assert known[3] == 0.5
    with pytest.raises(TrainingDataError, match="none of the 1 features varies"):
        fit_scaling(np.ones((500, 1)), score, np.ones(500), config())


def test_a_row_of_weight_zero_chooses_nothing() -> None:
    rng = np.random.default_rng(2)
    score, matrix = rng.normal(size=400), rng.normal(size=(400, 6))
    matrix[:200, 4] = score[:200]
    weight = np.repeat([0.0, 1.0], 200)
    matrix[200:, 1] += score[200:]
    assert 1 in fit_scaling(matrix, score, weight, config(max_features=1)).chosen
    assert 4 in fit_scaling(matrix, score, 1 - weight, config(max_features=1)).chosen


def test_a_missing_bar_is_absent_or_blank_alike() -> None:
    rng = np.random.default_rng(3)
    ts, matrix = T0 + BAR_MS * np.arange(12, dtype=np.int64), rng.normal(size=(12, 3))
    scaling = fit_scaling(matrix, rng.normal(size=12), np.ones(12), config())
    blank = matrix.copy()
    blank[[4, 5]] = np.nan
    keep = np.setdiff1d(np.arange(12), [4, 5])
    one = make_bars(blank, ts, BAR_MS, scaling, 4)
    two = make_bars(matrix[keep], ts[keep], BAR_MS, scaling, 4)
    np.testing.assert_array_equal(one.inputs, two.inputs)
    np.testing.assert_array_equal(one.known, two.known)
    assert one.inputs.shape == (16, 2 + 1 + 5)
    assert (one.inputs[[4, 5, 12, 13, 14, 15], :3] == 0).all()
    np.testing.assert_array_equal(one.inputs[:, 3:], calendar(T0 + BAR_MS * np.arange(16, dtype=np.int64), BAR_MS))
    usable = one.usable(np.arange(12), config(max_unknown=0.4))
    # two rows of context, the bar itself known, at most one of three bars missing
    np.testing.assert_array_equal(usable, [0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1])


def path_of(bars: int, horizon: int) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    ret, width = rng.normal(size=bars), 1 + rng.random(bars)
    total = np.concatenate([[0], np.cumsum(ret)])
    score = np.full(bars, np.nan)
    score[: bars - horizon] = (total[horizon:-1] - total[: bars - horizon]) / width[: bars - horizon]
    return pd.DataFrame({"score": score, "width": width, "next_ret": ret})


def test_steps_are_the_path_to_the_score() -> None:
    y, places = path_of(40, 4), np.arange(40)
    rows = np.arange(5, 30)
    target, known = step_targets(rows, places, y, config())
    assert known.all()
    np.testing.assert_array_equal(target[:, 1], y["score"].to_numpy()[rows])
    ret, width = y["next_ret"].to_numpy(), y["width"].to_numpy()
    np.testing.assert_allclose(target[:, 0], (ret[rows] + ret[rows + 1]) / width[rows])


def test_only_outcomes_of_rows_and_returns_inside_their_labels_are_read() -> None:
    y, rows = path_of(40, 4), np.array([5, 6, 20])
    target, known = step_targets(rows, np.arange(40), y, config())
    inside = sorted({int(r) + k for r in rows for k in range(4)})
    other = y.copy()
    other.loc[~other.index.isin(rows), ["score", "width"]] = np.nan
    other.loc[~other.index.isin(inside), "next_ret"] = 1e9
    again, still = step_targets(rows, np.arange(40), other, config())
    np.testing.assert_array_equal(target, again)
    np.testing.assert_array_equal(known, still)


def test_a_step_beyond_the_frame_or_over_a_missing_bar_is_unknown() -> None:
    y = path_of(40, 4)
    cut = y.iloc[:21]
    target, known = step_targets(np.array([10, 19, 20]), np.arange(21), cut, config())
    np.testing.assert_array_equal(known, [[True, True], [True, True], [False, True]])
    np.testing.assert_array_equal(target[:, 1], y["score"].to_numpy()[[10, 19, 20]])
    gap = y.copy()
    gap.loc[11, "next_ret"] = np.nan
    _, known = step_targets(np.array([9, 10, 12]), np.arange(40), gap, config())
    np.testing.assert_array_equal(known, [[True, True], [False, True], [True, True]])


def test_a_score_over_another_horizon_is_refused() -> None:
    with pytest.raises(TrainingDataError, match=r"the next 4 returns .* set tft\.horizon"):
        step_targets(np.arange(5, 30), np.arange(40), path_of(40, 6), config())


@given(
    gaps=st.lists(st.integers(1, 4), min_size=2, max_size=200),
    share=st.floats(0.05, 0.9),
    horizon=st.integers(1, 12),
    drop=st.integers(0, 2**32 - 1),
)
def test_no_training_label_reaches_into_the_validation(gaps: list[int], share: float, horizon: int, drop: int) -> None:
    places = np.cumsum([0, *gaps])
    rows = np.flatnonzero(np.random.default_rng(drop).random(len(places)) < 0.8)
    if len(rows) == 0:
        return
    parts = split_rows(rows, places, config(horizon=horizon, decoder_steps=1, validation_share=share))
    assert len(parts.validation) >= 1
    assert parts.validation[-1] == rows[-1]
    assert set(parts.train) <= set(rows[: len(rows) - len(parts.validation)])
    # a label is settled at the close of the bar `horizon` bars later; the first validation label begins at its close
    assert all(places[r] + horizon <= places[parts.validation[0]] for r in parts.train)
    left = [r for r in rows[: len(rows) - len(parts.validation)] if r not in set(parts.train)]
    assert all(places[r] + horizon > places[parts.validation[0]] for r in left)
