"""What models rest on and whether they still hold: importance, lift and drift of forecasts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.errors import UsageError
from mlbot_core.models.base import FORECAST
from mlbot_core.models.explain import (
    DRIFT_COLUMNS,
    _block_order,
    forecast_drift,
    lift_table,
    log_loss,
    permutation_importance,
    rank_ic,
)
from mlbot_core.models.forecast import from_normal

DAY = 86_400_000


# --- permutation -----------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(n=st.integers(2, 300), block=st.integers(1, 60), seed=st.integers(0, 1000))
def test_blocks_change_places_whole(n: int, block: int, seed: int) -> None:
    order = _block_order(n, block, np.random.default_rng(seed))
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    cuts = np.flatnonzero(np.diff(order) != 1) + 1
    lengths = np.diff(np.r_[0, cuts, n])
    # only the first and the last block of the series may be shorter, and blocks that stayed neighbours look longer
    assert (lengths < block).sum() <= 2


def test_importance_is_the_loss_of_skill_and_repeats_itself(make_model: Any, sample_of: Any) -> None:
    sample, fresh = sample_of(rows=1200), sample_of(rows=900, seed=9)
    model = make_model("ridge").fit(sample.X, sample.y)
    rows = np.arange(100, 900)
    table = permutation_importance(model, fresh.X, fresh.y, rows, seed=1, repeats=4, block_bars=24)
    assert table["metric"].unique().tolist() == ["rank_ic"]
    assert table["base"].iloc[0] == rank_ic(model.predict(fresh.X, rows), fresh.y.iloc[rows])
    assert (table["sd"].iloc[:2] > 0).all()
    pd.testing.assert_frame_equal(
        table, permutation_importance(model, fresh.X, fresh.y, rows, seed=1, repeats=4, block_bars=24)
    )
    other = permutation_importance(model, fresh.X, fresh.y, rows, seed=2, repeats=4, block_bars=24)
    assert not np.array_equal(other["importance"], table["importance"])
    # what is left is as if the feature had been drawn anew
    kept = fresh.X.assign(f_0=np.random.default_rng(77).normal(size=len(fresh)))
    alone = rank_ic(model.predict(kept, rows), fresh.y.iloc[rows])
    assert table["importance"].iloc[0] == pytest.approx(table["base"].iloc[0] - alone, abs=0.08)


def test_single_bars_would_make_a_slow_feature_look_surer_than_it_is(make_model: Any) -> None:
    """Forty regimes of fifty bars are forty tries and not two thousand: only whole blocks show that."""
    generator = np.random.default_rng(4)
    n = 2000
    index = pd.Index(DAY // 12 * np.arange(n, dtype=np.int64), name="ts")
    slow = np.repeat(generator.normal(size=n // 50), 50)
    score = slow + generator.normal(size=n)
    X = pd.DataFrame({"slow": slow, "fast": generator.normal(size=n)}, index=index)
    y = pd.DataFrame({"label": np.sign(score), "score": score, "width": 0.01, "next_ret": 0.0}, index=index)
    model = make_model("ridge").fit(X, y)
    singles, blocks = (
        permutation_importance(model, X, y, repeats=12, block_bars=size).set_index("feature") for size in (1, 50)
    )
    assert blocks.loc["slow", "importance"] == pytest.approx(singles.loc["slow", "importance"], abs=0.15)
    assert blocks.loc["slow", "sd"] > 3 * singles.loc["slow", "sd"]


def test_what_cannot_be_measured_is_refused(make_model: Any, sample_of: Any) -> None:
    sample = sample_of(rows=400)
    model = make_model("ridge").fit(sample.X, sample.y)
    for words, options in (
        ("at least 1 repeat", {"repeats": 0}),
        ("at least 1 repeat", {"block_bars": 0}),
        ("400 bars do not hold two blocks of 201", {"block_bars": 201}),
        ("rank_ic is not defined on these 2 rows", {"rows": np.array([3, 4])}),
    ):
        with pytest.raises(UsageError, match=words):
            permutation_importance(model, sample.X, sample.y, **options)
    with pytest.raises(UsageError, match="log_loss is not defined"):
        permutation_importance(model, sample.X, sample.y.assign(label=np.nan), metric="log_loss")


def test_metrics_against_numbers_by_hand() -> None:
    forecast = pd.DataFrame(
        {"p_down": [0.2, 0.5], "p_neutral": [0.3, 0.25], "p_up": [0.5, 0.25], "score": [0.3, -0.25]}
    )
    outcome = pd.DataFrame({"label": [1.0, 0.0], "score": [1.0, 0.1]})
    assert log_loss(forecast, outcome) == pytest.approx(-(np.log(0.5) + np.log(0.25)) / 2)
    assert log_loss(forecast, outcome.assign(label=[1.0, np.nan])) == pytest.approx(-np.log(0.5))
    assert np.isnan(log_loss(forecast, outcome.assign(label=np.nan)))
    assert np.isnan(rank_ic(forecast, outcome))  # two rows have no correlation worth the name


# --- lift ------------------------------------------------------------------------------------------------------


def test_lift_of_a_skilful_and_of_an_empty_forecast() -> None:
    generator = np.random.default_rng(3)
    said, noise = generator.normal(size=5000), generator.normal(size=5000)
    good = lift_table(pd.DataFrame({"score": said}), pd.DataFrame({"score": 0.5 * said + noise}))
    assert good["n"].tolist() == [500] * 10
    assert good["forecast"].is_monotonic_increasing
    assert good["realised"].iloc[-1] > 0.6
    assert good["realised"].iloc[0] < -0.6
    assert ((good["low"] < 0.5 * good["forecast"]) & (0.5 * good["forecast"] < good["high"])).sum() >= 8
    assert good["hit_rate"].iloc[-1] > 0.7
    empty = lift_table(pd.DataFrame({"score": said}), pd.DataFrame({"score": noise}))
    assert ((empty["low"] < 0) & (empty["high"] > 0)).sum() >= 8
    # outcomes that share their bars twelve to one are worth a twelfth of the rows
    shared = lift_table(pd.DataFrame({"score": said}), pd.DataFrame({"score": noise}), overlap=12.0)
    np.testing.assert_allclose(shared["high"] - shared["low"], (empty["high"] - empty["low"]) * np.sqrt(12))
    np.testing.assert_array_equal(shared["realised"], empty["realised"])


def test_lift_of_ties_holes_and_nothing() -> None:
    same = lift_table(pd.DataFrame({"score": [0.1] * 5}), pd.DataFrame({"score": [1.0, 2.0, 3.0, np.nan, 6.0]}))
    assert same[["n", "forecast", "realised"]].to_numpy().tolist() == [[4.0, 0.1, 3.0]]
    none = lift_table(pd.DataFrame({"score": [np.nan]}), pd.DataFrame({"score": [1.0]}))
    assert len(none) == 0
    assert "hit_rate" in none
    one = lift_table(pd.DataFrame({"score": [0.1]}), pd.DataFrame({"score": [1.0]}))
    assert np.isnan(one["low"].iloc[0])
    for words in ({"bins": 0}, {"overlap": 0.5}):
        with pytest.raises(UsageError, match="lift table takes"):
            lift_table(pd.DataFrame({"score": [0.1]}), pd.DataFrame({"score": [1.0]}), **words)
    with pytest.raises(UsageError, match="as many outcomes"):
        lift_table(pd.DataFrame({"score": [0.1]}), pd.DataFrame({"score": []}))


# --- drift -----------------------------------------------------------------------------------------------------


def forecasts(shift: float = 0.0, folds: int = 4, rows: int = 360) -> pd.DataFrame:
    generator = np.random.default_rng(2)
    n = folds * rows
    mean = generator.normal(0, 0.1, n) + np.where(np.arange(n) >= (folds - 1) * rows, shift, 0.0)
    frame = from_normal(mean, np.exp(generator.normal(0, 0.1, n)), pd.RangeIndex(n))
    frame.insert(0, "ts", 1_704_067_200_000 + DAY // 12 * np.arange(n, dtype=np.int64))
    frame.insert(1, "fold", np.repeat(np.arange(folds), rows))
    return frame


def test_forecasts_that_moved_are_seen_and_others_are_not() -> None:
    table = forecast_drift(forecasts(shift=0.2))
    assert list(table.columns) == list(DRIFT_COLUMNS)
    assert len(table) == 4 * len(FORECAST)
    psi = table.pivot(index="period", columns="column", values="psi")
    assert psi.loc["0"].isna().all()  # nothing before it
    assert (psi.loc[["1", "2"]] < 0.1).all().all()
    assert psi.loc["3", "score"] > 0.25
    assert psi.loc["3", "score_sd"] < 0.1
    assert table.set_index(["period", "column"]).loc[("3", "score"), "shift"] == pytest.approx(2.0, abs=0.3)
    assert table.groupby("period", sort=False)["earlier_rows"].first().tolist() == [0, 360, 720, 1080]


def test_drift_looks_back_only_and_the_order_of_rows_does_not_matter() -> None:
    whole = forecasts(shift=0.2)
    early = forecast_drift(whole[whole["fold"] < 3])
    again = forecast_drift(whole.sample(frac=1.0, random_state=1))
    pd.testing.assert_frame_equal(again[again["period"] != "3"].reset_index(drop=True), early)


def test_drift_by_month_with_holes_and_constants() -> None:
    frame = forecasts()
    frame.loc[frame.index[-200:], list(FORECAST)] = np.nan
    frame["p_neutral"] = 0.4
    table = forecast_drift(frame, "month")
    assert table["period"].unique().tolist() == ["2024-01", "2024-02", "2024-03", "2024-04"]
    by = table.set_index(["period", "column"])
    assert by.loc[("2024-04", "score"), "missing"] > 0.5
    assert by.loc[(slice(None), "p_neutral"), "psi"].isna().all()
