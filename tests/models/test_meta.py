"""The meta-model: it joins what was known, leaves the plain mean only for good reasons, and never sees the fold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.config import MetaConfig, load_settings
from mlbot_core.errors import UsageError
from mlbot_core.models import ArtefactError, FeatureMismatchError, NotFittedError, TrainingDataError, load_model
from mlbot_core.models.meta import MetaModel
from mlbot_core.models.meta_training import BaseForecasts, base_timeframes, stack
from mlbot_core.timeframe import HOUR_MS, Market, Timeframe

CONFIG = load_settings({"MLBOT_THREADS": "1"}).models.meta
TWO_HOURS = Timeframe.parse("2h")
START = 1_700_006_400_000


def base(name: str, market: str, ts: list[int], score: list[float]) -> BaseForecasts:
    return BaseForecasts(name, Market.parse(market), "v" * 64, {}, np.array(ts), np.array(score))


def made(
    n: int, seed: int, *, skill: tuple[float, ...] = (0.5, 0.0), holes: float = 0.0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Base forecasts that hold so much of the outcome each, and the outcomes, settled 12 bars later."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=n)
    ts = START + 2 * HOUR_MS * np.arange(n)
    columns: dict[str, np.ndarray] = {}
    for number, share in enumerate(skill):
        score = 0.3 * (share * truth + np.sqrt(1 - share**2) * rng.normal(size=n))
        gone = rng.random(n) < holes
        columns[f"b{number}_score"] = np.where(gone, np.nan, score)
        columns[f"b{number}_age"] = np.where(gone, np.nan, rng.integers(0, 3, n).astype(float))
    index = pd.Index(ts, name="ts")
    y = pd.DataFrame(
        {"label": np.sign(truth), "score": truth, "width": 0.01, "next_ret": 0.0, "t1": ts + 26 * HOUR_MS}, index=index
    )
    return pd.DataFrame(columns, index=index), y


# --- joining ---------------------------------------------------------------------------------------------------


def test_every_bar_gets_the_newest_forecast_that_had_closed() -> None:
    hours = [START + k * HOUR_MS for k in range(0, 24)]
    two, one, four = hours[::2], hours, hours[::4]
    bases = [
        base("2h_a", "BTC-2h", two, [0.1 * k for k in range(12)]),
        base("1h_a", "BTC-1h", one, [float(k) for k in range(24)]),
        base("4h_a", "BTC-4h", four, [10.0 * k for k in range(6)]),
    ]
    grid = np.array(two)
    X = stack(bases, grid, TWO_HOURS, 2)
    assert list(X.columns) == ["2h_a_score", "2h_a_age", "1h_a_score", "1h_a_age", "4h_a_score", "4h_a_age"]
    np.testing.assert_allclose(X["2h_a_score"], [0.1 * k for k in range(12)])
    assert (X["2h_a_age"] == 0).all()
    # the hour that closes with the two-hour bar is the odd one
    np.testing.assert_allclose(X["1h_a_score"], [np.sqrt(2) * (2.0 * k + 1) for k in range(12)])
    assert (X["1h_a_age"] == 0).all()
    # the first four-hour bar closes with the second two-hour bar
    assert X["4h_a_score"].isna().tolist() == [True] + [False] * 11
    np.testing.assert_allclose(X["4h_a_score"][1:], [10.0 * (k // 2) / np.sqrt(2) for k in range(11)])
    # age counts in the bars of the slower of the two
    np.testing.assert_array_equal(X["4h_a_age"][1:], [0.5 * (k % 2) for k in range(11)])


def test_old_forecasts_are_missing_and_unmade_ones_do_not_count() -> None:
    two = [START + 2 * k * HOUR_MS for k in range(8)]
    score = [0.1, np.nan, np.nan, np.nan, 0.5, 0.6, np.nan, 0.8]
    X = stack([base("2h_a", "BTC-2h", two, score)], np.array(two), TWO_HOURS, 2)
    np.testing.assert_array_equal(X["2h_a_score"], [0.1, 0.1, 0.1, np.nan, 0.5, 0.6, 0.6, 0.8])
    np.testing.assert_array_equal(X["2h_a_age"], [0, 1, 2, np.nan, 0, 0, 1, 0])
    nothing = stack([base("2h_a", "BTC-2h", two, [np.nan] * 8)], np.array(two), TWO_HOURS, 2)
    assert nothing.isna().to_numpy().all()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 60))
def test_what_comes_later_changes_no_row(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    bases = []
    for name, step in (("1h_a", 1), ("2h_a", 2), ("4h_a", 4)):
        ts = START + step * HOUR_MS * np.arange(120 // step)
        kept = rng.random(len(ts)) > 0.2
        score = np.where(rng.random(len(ts)) < 0.2, np.nan, rng.normal(size=len(ts)))
        bases.append(base(name, f"BTC-{step}h", ts[kept].tolist(), score[kept].tolist()))
    grid = START + 2 * HOUR_MS * np.arange(60)
    whole = stack(bases, grid, TWO_HOURS, 3)
    known = int(grid[cut - 1]) + 2 * HOUR_MS
    past = [
        replace(b, ts=b.ts[b.ts + b.market.timeframe.ms <= known], score=b.score[b.ts + b.market.timeframe.ms <= known])
        for b in bases
    ]
    pd.testing.assert_frame_equal(stack(past, grid[:cut], TWO_HOURS, 3), whole.iloc[:cut], check_exact=True)


def test_one_drift_shows_as_one_score_on_every_timeframe() -> None:
    """A constant drift is a score that grows with the square root of the bar; stacked, it is the same number."""
    grid = np.array([START + 2 * k * HOUR_MS for k in range(24)])
    bases = []
    for hours in (1, 2, 4):
        ts = START + hours * HOUR_MS * np.arange(48 // hours)
        bases.append(base(f"{hours}h_a", f"BTC-{hours}h", ts.tolist(), [0.1 * np.sqrt(hours)] * len(ts)))
    scores = stack(bases, grid, TWO_HOURS, 2).filter(like="_score").iloc[2:]
    np.testing.assert_allclose(scores, 0.1 * np.sqrt(2))


def test_timeframes_are_the_chosen_ones_or_all() -> None:
    configured = [Timeframe.parse(text) for text in ("1h", "2h")]
    assert base_timeframes(CONFIG, configured) == tuple(configured)
    chosen = CONFIG.model_copy(update={"timeframes": ["4h"]})
    assert base_timeframes(chosen, configured) == (Timeframe.parse("4h"),)


# --- the model -------------------------------------------------------------------------------------------------


def test_the_good_base_is_believed_and_the_other_is_not() -> None:
    X, y = made(3000, 1, skill=(0.6, 0.0))
    model = MetaModel(CONFIG).fit(X, y)
    fresh, outcome = made(3000, 2, skill=(0.6, 0.0))
    said = model.predict(fresh)["score"]
    mean = fresh[["b0_score", "b1_score"]].mean(axis=1)
    assert said.corr(outcome["score"]) > mean.corr(outcome["score"]) + 0.1
    assert model.feature_importance()["feature"][0] == "b0_score"


def test_where_nothing_can_be_learnt_little_is_said() -> None:
    X, y = made(3000, 3, skill=(0.0, 0.0))
    said = MetaModel(CONFIG).fit(X, y).predict(X)["score"]
    assert said.abs().mean() < 0.1 * X["b0_score"].abs().mean()


def test_the_greatest_penalty_is_the_prior() -> None:
    X, y = made(400, 4, skill=(0.9, 0.9), holes=0.3)
    fixed = MetaConfig(models=["lightgbm"], penalties=[1e12])
    model = MetaModel(fixed).fit(X, y)
    assert model.chosen["prior"] == "mean"
    said = model.predict(X)["score"].to_numpy()
    mean = X[["b0_score", "b1_score"]].mean(axis=1).to_numpy()
    np.testing.assert_allclose(said, mean, atol=1e-9)


def test_least_squares_by_hand() -> None:
    """One base, no age, hardly any penalty: the regression through its score, which numpy solves otherwise."""
    X, y = made(500, 5, skill=(0.7,))
    X["b0_age"] = 0.0
    weight = np.random.default_rng(0).random(500) + 0.1
    model = MetaModel(MetaConfig(models=["lightgbm"], penalties=[1e-12])).fit(X, y, weight=weight)
    root = np.sqrt(weight)
    design = np.column_stack([np.ones(500), X["b0_score"]])
    solved = np.linalg.lstsq(design * root[:, None], y["score"].to_numpy() * root, rcond=None)[0]
    np.testing.assert_allclose(model.predict(X)["score"], design @ solved, rtol=1e-6, atol=1e-8)
    miss = y["score"].to_numpy() - design @ solved
    sd = np.sqrt((weight * miss**2).sum() / weight.sum())
    np.testing.assert_allclose(model.predict(X)["score_sd"], sd, rtol=1e-6)


def test_one_row_is_the_same_as_in_the_batch_and_holes_are_not_forecast(tmp_path: Path) -> None:
    X, y = made(800, 6, skill=(0.5, 0.2, 0.1), holes=0.4)
    X.iloc[5] = np.nan
    model = MetaModel(CONFIG).fit(X, y)
    batch = model.predict(X)
    blank = X.isna().all(axis=1)
    assert blank.iloc[5]
    assert batch[blank].isna().to_numpy().all()
    assert batch[~blank].notna().to_numpy().all()
    for row in (0, 17, 799):
        np.testing.assert_array_equal(model.predict(X.iloc[[row]]).to_numpy(), batch.iloc[[row]].to_numpy())
    model.save(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    pd.testing.assert_frame_equal(loaded.predict(X), batch, check_exact=True)
    pd.testing.assert_frame_equal(loaded.feature_importance(), model.feature_importance(), check_exact=True)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "meta.json").read_bytes() == (tmp_path / "m" / "meta.json").read_bytes()


def test_contributions_add_up_to_the_score() -> None:
    X, y = made(600, 7, skill=(0.5, 0.2, 0.1), holes=0.3)
    X.iloc[9] = np.nan
    model = MetaModel(CONFIG).fit(X, y)
    parts = model.explain(X)
    assert list(parts.columns) == [*X.columns, "(base)"]
    np.testing.assert_allclose(parts.sum(axis=1, skipna=False), model.predict(X)["score"], atol=1e-12)
    present = X[X.notna().any(axis=1)]
    for name in ("b0", "b1", "b2"):
        gone = present[f"{name}_score"].isna()
        assert (parts.loc[present.index[gone], f"{name}_score"] == 0.0).all()


def test_later_outcomes_and_rows_that_do_not_train_change_nothing() -> None:
    X, y = made(600, 8)
    rows = np.arange(400)
    first = MetaModel(CONFIG).fit(X, y, rows)
    changed = y.copy()
    changed.iloc[400:, :] = 99.0
    again = MetaModel(CONFIG).fit(X, changed, rows)
    pd.testing.assert_frame_equal(first.predict(X), again.predict(X), check_exact=True)


def test_the_inner_folds_are_purged_by_the_outcomes_own_ends() -> None:
    """Outcomes that all settle at the end overlap everything: nothing is left to choose a penalty on."""
    X, y = made(300, 9)
    with pytest.raises(UsageError, match="overlap the test labels"):
        MetaModel(CONFIG).fit(X, y.assign(t1=int(X.index[-1]) + HOUR_MS))


def test_mistakes_are_named(tmp_path: Path) -> None:
    X, y = made(300, 10)
    model = MetaModel(CONFIG)
    with pytest.raises(NotFittedError):
        model.predict(X)
    with pytest.raises(FeatureMismatchError, match="b1_age"):
        model.fit(X.drop(columns="b1_age"), y)
    with pytest.raises(FeatureMismatchError, match="none at all"):
        model.fit(X[[]], y)
    with pytest.raises(TrainingDataError, match="lack t1"):
        model.fit(X, y.drop(columns="t1"))
    with pytest.raises(TrainingDataError, match="cannot train"):
        model.fit(X, y, np.arange(8))
    with pytest.raises(TrainingDataError, match="not finite"):
        model.fit(X, y.assign(score=np.nan))
    model.fit(X, y)
    with pytest.raises(FeatureMismatchError, match="lacks b1_score"):
        model.predict(X.drop(columns="b1_score"))
    model.save(tmp_path / "m")
    document = json.loads((tmp_path / "m" / "model.json").read_text())
    (tmp_path / "m" / "model.json").write_text(json.dumps({**document, "residual_sd": 0.5}))
    with pytest.raises(ArtefactError, match="changed or truncated"):
        load_model(tmp_path / "m")
