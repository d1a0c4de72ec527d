"""Calibrated probabilities: fitted without a leak, better where the trees are too sure, harmless where they are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import minimize, minimize_scalar

from mlbot_core.config import CalibrationConfig, ModelsConfig
from mlbot_core.models import PROBABILITIES, Model
from mlbot_core.models.calibration import (
    MAX_INVERSE,
    MIN_INVERSE,
    Calibration,
    Scaling,
    fit_scaling,
    fit_temperature,
    hold_out,
    log_frequencies,
    log_softmax,
)
from mlbot_core.models.explain import log_loss
from mlbot_core.models.forecast import fit_touch, from_normal
from mlbot_core.models.tabular import TrainingSample

Make = Callable[..., Model]
BAR = 7_200_000
ON = {"method": "temperature", "share": 0.25, "gap_bars": 12, "min_rows": 100, "refit": True}
# trees that learn every row by heart
SURE = {"n_estimators": 120, "learning_rate": 0.2, "num_leaves": 31, "min_child_samples": 5, "reg_lambda": 0.0}


def rows_of(labels: Any, ts: Any = None, weight: Any = None) -> TrainingSample:
    labels = np.asarray(labels, dtype=np.float64)
    ts = BAR * np.arange(len(labels), dtype=np.int64) if ts is None else np.asarray(ts, dtype=np.int64)
    return TrainingSample(("a",), np.zeros((len(labels), 1)), labels, labels, weight, ts, BAR)


def expected_calibration_error(forecast: pd.DataFrame, label: pd.Series) -> float:
    """Mean distance of probability and frequency over ten bins of equal count (Guo et al. 2017), over all classes."""
    total, count = 0.0, 0
    for name, value in zip(PROBABILITIES, (-1.0, 0.0, 1.0), strict=True):
        p = forecast[name].to_numpy()
        for part in np.array_split(np.argsort(p, kind="stable"), 10):
            total += abs(p[part].sum() - float((label.to_numpy()[part] == value).sum()))
            count += len(part)
    return total / count


# --- does it do what it is for ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_trees_that_are_too_sure_are_corrected_on_rows_they_never_saw(
    seed: int, make_model: Make, sample_of: Any
) -> None:
    train, fresh = sample_of(rows=1500, seed=seed, signal=0.4), sample_of(rows=3000, seed=seed + 100, signal=0.4)
    raw, corrected = (
        make_model(**SURE, calibration={**ON, "method": method}).fit(train.X, train.y).predict(fresh.X)
        for method in ("none", "temperature")
    )
    label = fresh.y["label"]
    assert expected_calibration_error(raw, label) > 0.1  # miscalibrated by construction
    assert expected_calibration_error(corrected, label) < 0.5 * expected_calibration_error(raw, label)
    assert log_loss(corrected, fresh.y) < log_loss(raw, fresh.y) - 0.1
    frequencies = log_frequencies(np.searchsorted((-1, 0, 1), train.y["label"]), np.ones(len(train)), 3)
    base = pd.DataFrame(np.tile(np.exp(frequencies), (len(fresh), 1)), columns=list(PROBABILITIES))
    assert log_loss(corrected, fresh.y) < log_loss(base, fresh.y) + 0.01  # no worse than saying nothing
    np.testing.assert_array_equal(
        np.argsort(raw["p_up"] / raw["p_down"]), np.argsort(corrected["p_up"] / corrected["p_down"])
    )


def test_in_pure_noise_the_forecast_falls_back_to_the_frequencies(make_model: Make, sample_of: Any) -> None:
    train, fresh = sample_of(rows=2000, seed=11, signal=0.0), sample_of(rows=2000, seed=12, signal=0.0)
    model = make_model(**SURE, calibration=ON).fit(train.X, train.y)
    assert model.calibration.inverse < 0.15  # type: ignore[attr-defined]
    frequency = [(train.y["label"] == value).mean() for value in (-1, 0, 1)]
    p = model.predict(fresh.X)[list(PROBABILITIES)]
    assert np.abs(p - frequency).to_numpy().mean() < 0.06


def test_good_probabilities_are_left_nearly_as_they_are(make_model: Make, sample_of: Any) -> None:
    """No harm: with a strong signal and cautious trees the correction is small and costs next to nothing."""
    train, fresh = sample_of(rows=3000, seed=21), sample_of(rows=3000, seed=22)
    loss = {}
    for method in ("none", "temperature"):
        model = make_model(calibration={**ON, "method": method}).fit(train.X, train.y)
        loss[method] = log_loss(model.predict(fresh.X), fresh.y)
    assert loss["temperature"] < loss["none"] + 0.005


def test_without_refit_the_judged_trees_forecast_themselves(make_model: Make, sample_of: Any) -> None:
    sample = sample_of(rows=1200)
    half = make_model(calibration={**ON, "refit": False}).fit(sample.X, sample.y)
    earlier = (
        int(np.flatnonzero(hold_out(rows_of(sample.y["label"]), CalibrationConfig(**ON), classes=True).fit)[-1]) + 1
    )
    alone = make_model(calibration={**ON, "method": "none"}).fit(sample.X.iloc[:earlier], sample.y.iloc[:earlier])
    pd.testing.assert_frame_equal(half.feature_importance(), alone.feature_importance(), check_exact=True)
    whole = make_model(calibration=ON).fit(sample.X, sample.y)
    plain = make_model(calibration={**ON, "method": "none"}).fit(sample.X, sample.y)
    pd.testing.assert_frame_equal(whole.feature_importance(), plain.feature_importance(), check_exact=True)
    assert whole.calibration.inverse == half.calibration.inverse  # type: ignore[attr-defined]


# --- without a leak --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(50, 400),
    share=st.floats(0.1, 0.5),
    gap=st.integers(1, 40),
    holes=st.floats(0, 0.6),
    seed=st.integers(0, 10_000),
)
def test_no_label_that_grew_trees_reaches_into_the_rows_that_judge(
    n: int, share: float, gap: int, holes: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    keep = np.flatnonzero(generator.random(n) >= holes)
    labels = generator.choice([-1.0, 0.0, 1.0], len(keep))
    sample = rows_of(labels, BAR * keep)
    config = CalibrationConfig(method="temperature", share=share, gap_bars=gap, min_rows=20)
    parts = hold_out(sample, config, classes=True)
    if parts.reason:
        assert not parts.fit.any()
        assert not parts.held.any()
        return
    fit, held = sample.open_ms[parts.fit], sample.open_ms[parts.held]
    # a label of a bar is settled at most `gap` bars after that bar's close; the first judged bar's begins at its close
    assert fit.max() + BAR * (1 + gap) <= held.min() + BAR
    assert parts.held.sum() == int(np.ceil(len(keep) * share))
    assert parts.held[-1]  # the latest rows judge
    # not a row more is thrown away than the gap asks for
    dropped = sample.open_ms[~parts.fit & ~parts.held]
    assert (dropped + BAR * gap > held.min()).all()


def test_the_rows_that_judge_do_not_move_the_judged_trees(make_model: Make, sample_of: Any) -> None:
    """Turning every held-out outcome round changes the temperature of the same trees, and nothing else of them."""
    sample = sample_of(rows=1200)
    held = hold_out(rows_of(sample.y["label"]), CalibrationConfig(**ON), classes=True).held
    turned = sample.y.copy()
    turned.loc[held, "label"] *= -1.0
    a, b = (make_model(calibration={**ON, "refit": False}).fit(sample.X, y) for y in (sample.y, turned))
    pd.testing.assert_frame_equal(a.feature_importance(), b.feature_importance(), check_exact=True)
    assert a.calibration.inverse > 0.3  # type: ignore[attr-defined]
    assert b.calibration.inverse == MIN_INVERSE  # type: ignore[attr-defined]


def test_a_gap_shorter_than_the_label_is_refused(models_config: ModelsConfig) -> None:
    short = models_config.model_dump()
    short["lightgbm"]["calibration"] = {**ON, "gap_bars": short["targets"]["horizon"] - 1}
    with pytest.raises(ValidationError, match=r"gap_bars 11 is less than targets\.horizon 12"):
        ModelsConfig.model_validate(short)
    short["lightgbm"]["calibration"]["method"] = "none"
    ModelsConfig.model_validate(short)


# --- when it cannot be done ------------------------------------------------------------------------------------


def test_why_nothing_was_corrected_is_written_into_the_artefact(
    make_model: Make, sample_of: Any, tmp_path: Path
) -> None:
    sample = sample_of(rows=600)
    rare = sample.y.copy()
    rare["label"] = np.where(np.arange(600) < 450, np.abs(rare["label"]), rare["label"])
    weight = np.where(np.arange(600) < 450, 1.0, 0.0)
    cases = {
        "switched off in the configuration": (sample.y, {**ON, "method": "none"}, None),
        "25% of 600 rows are 150, fewer than min_rows 200": (sample.y, {**ON, "min_rows": 200}, None),
        "only 50 rows lie before the gap and the 150 rows held out": (sample.y, {**ON, "gap_bars": 401}, None),
        "label -1 does not occur in the 439 earlier rows": (rare, ON, None),
        "all weights of one of the two parts are zero": (sample.y, ON, weight),
    }
    for number, (reason, (y, config, weights)) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        model = make_model(calibration=config).fit(sample.X, y, None, weights)
        model.save(folder)
        told = json.loads((folder / "meta.json").read_text())["calibration"]
        assert (told["method"], told["reason"], told["inverse"]) == ("none", reason, 1.0)
        assert model.predict(sample.X).notna().all().all()
    folder = tmp_path / "done"
    make_model(calibration=ON).fit(sample.X, sample.y).save(folder)
    told = json.loads((folder / "meta.json").read_text())["calibration"]
    assert (told["method"], told["reason"], told["fit_rows"], told["held_rows"]) == ("temperature", "", 439, 150)
    assert told["log_loss"] <= told["log_loss_raw"]


def test_two_classes_are_calibrated_and_explained_too(make_model: Make, sample_of: Any, tmp_path: Path) -> None:
    sample = sample_of(rows=1000)
    for absent, words in (
        (-1.0, "log(p_up / p_neutral)"),
        (0.0, "log(p_up / p_down)"),
        (1.0, "log(p_neutral / p_down)"),
    ):
        rows = np.flatnonzero(sample.y["label"] != absent)
        model = make_model(calibration=ON).fit(sample.X, sample.y, rows)
        p = model.predict(sample.X)
        name = PROBABILITIES[int(absent) + 1]
        assert (p[name] == 0).all()
        np.testing.assert_allclose(p[list(PROBABILITIES)].sum(axis=1), 1.0, atol=1e-12)
        assert model.explained == words
        above, below = words.removeprefix("log(").removesuffix(")").split(" / ")
        np.testing.assert_allclose(model.explain(sample.X).sum(axis=1), np.log(p[above] / p[below]), atol=1e-9)
        model.save(tmp_path / name)
        again = type(model).load(tmp_path / name)
        np.testing.assert_array_equal(again.predict(sample.X), p)


def test_a_calibration_that_cannot_be_is_refused() -> None:
    good = Calibration("temperature", "", 0.5, (-1.0, -1.1, -1.2), 900, 300, 1.2, 1.0)
    assert Calibration.from_json(json.loads(json.dumps(good.as_json()))) == good
    for change in ({"inverse": -0.5}, {"inverse": float("nan")}, {"method": "magic"}, {"inverse": 3.0}):
        with pytest.raises(ValueError, match="not possible"):
            Calibration.from_json({**good.as_json(), **change})


# --- the arithmetic --------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), sharpness=st.floats(0.2, 5.0), classes=st.integers(2, 3))
def test_the_temperature_is_the_best_one(seed: int, sharpness: float, classes: int) -> None:
    """Against a general minimiser of the same loss, written down independently."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=(400, classes))
    column = np.array([generator.choice(classes, p=np.exp(row)) for row in log_softmax(truth)])
    weight, base = generator.random(400), log_frequencies(column, np.ones(400), classes)
    raw = base + sharpness * truth
    found = fit_temperature(raw, column, weight, base, base, 900)

    def loss(inverse: float) -> float:
        z = base + inverse * (raw - base)
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        return float(-(weight * np.log(p[np.arange(400), column])).sum() / weight.sum())

    best = minimize_scalar(loss, bounds=(MIN_INVERSE, MAX_INVERSE), method="bounded", options={"xatol": 1e-10})
    assert found.inverse == pytest.approx(best.x, abs=1e-5)
    assert found.log_loss == pytest.approx(loss(found.inverse), abs=1e-12)
    assert found.log_loss_raw == pytest.approx(loss(1.0), abs=1e-12)
    np.testing.assert_allclose(found.probabilities(raw).sum(axis=1), 1.0, atol=1e-14)


def test_the_ends_of_the_range() -> None:
    column = np.array([0, 1] * 50)
    base = log_frequencies(column, np.ones(100), 2)
    wrong = np.where(np.arange(2) == column[:, None], -1.0, 1.0)
    assert fit_temperature(wrong, column, np.ones(100), base, base, 1).inverse == MIN_INVERSE
    assert fit_temperature(-wrong, column, np.ones(100), base, base, 1).inverse == MAX_INVERSE
    skipped = Calibration.skipped("because", base)
    np.testing.assert_array_equal(skipped.scores(wrong), wrong)


def test_frequencies_are_weighted_and_never_zero() -> None:
    p = np.exp(log_frequencies(np.array([0, 0, 1]), np.array([1.0, 1.0, 4.0]), 3))
    np.testing.assert_allclose(p, np.array([3.0, 5.0, 1.0]) / 9.0)  # each class has half a mean row (1.0) more
    assert p.sum() == pytest.approx(1.0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), sharp=st.floats(0.7, 4.0), narrow=st.floats(0.2, 3.0))
def test_the_scaling_is_the_best_one(seed: int, sharp: float, narrow: float) -> None:
    """Against a general minimiser of the same loss, written down independently."""
    generator = np.random.default_rng(seed)
    truth, sd = generator.normal(size=500), np.exp(0.3 * generator.normal(size=500))
    outcome = 0.2 + truth + sd * generator.normal(size=500)
    weight = generator.random(500)
    found = fit_scaling(0.2 + sharp * truth, narrow * sd, outcome, weight, 0.2, 0.3, 900)

    def loss(parameters: Any) -> float:
        slope, log_factor = parameters
        z = (outcome - 0.2 - slope * sharp * truth) / (np.exp(log_factor) * narrow * sd)
        return float((weight * (log_factor + np.log(narrow * sd) + z * z / 2)).sum() / weight.sum())

    best = minimize(loss, [1.0, 0.0], method="BFGS", options={"gtol": 1e-9})
    assert found.slope == pytest.approx(best.x[0], abs=1e-4)
    assert found.factor == pytest.approx(np.exp(best.x[1]), rel=1e-4)
    assert found.loss == pytest.approx(best.fun, abs=1e-8)
    assert found.loss_raw == pytest.approx(loss([1.0, 0.0]), abs=1e-12)
    assert Scaling.from_json(json.loads(json.dumps(asdict(found)))) == found
    mean, spread = found.apply(np.array([1.3]), np.array([2.0]))
    assert mean[0] == pytest.approx(0.3 + found.slope)  # drawn to the base of the trees that forecast
    assert spread[0] == pytest.approx(2.0 * found.factor)


def test_a_scaling_that_cannot_be_is_refused() -> None:
    good = asdict(Scaling("scale", "", 0.1, 0.5, 1.5, 900, 300, 1.2, 1.0))
    for change in ({"slope": -0.5}, {"factor": 0.0}, {"method": "magic"}, {"base": float("nan")}):
        with pytest.raises(ValueError, match="not possible"):
            Scaling.from_json({**good, **change})


def test_a_regression_that_is_too_sure_is_corrected(make_model: Make, sample_of: Any, tmp_path: Path) -> None:
    train, fresh = sample_of(rows=1500, seed=31, signal=0.3), sample_of(rows=3000, seed=32, signal=0.3)
    sure = {"iterations": 150, "learning_rate": 0.2, "depth": 6, "l2_leaf_reg": 1.0}
    loss, spread = {}, {}
    for method in ("none", "scale"):
        model = make_model("catboost", **sure, calibration={**ON, "method": method}).fit(train.X, train.y)
        forecast = model.predict(fresh.X)
        z = (fresh.y["score"] - forecast["score"]) / forecast["score_sd"]
        loss[method], spread[method] = (np.log(forecast["score_sd"]) + z * z / 2).mean(), z.std()
    assert spread["none"] > 1.3  # miscalibrated by construction
    assert spread["scale"] == pytest.approx(1.0, abs=0.12)
    assert loss["scale"] < loss["none"] - 0.1
    model.save(tmp_path / "m")
    told = json.loads((tmp_path / "m" / "meta.json").read_text())["calibration"]
    assert (told["method"], told["reason"], told["held_rows"]) == ("scale", "", 375)
    assert told["slope"] < 0.8 < 1.2 < told["factor"]
    few = make_model("catboost", calibration={**ON, "method": "scale"}).fit(train.X.iloc[:300], train.y.iloc[:300])
    assert few.scaling.reason == "25% of 300 rows are 75, fewer than min_rows 100"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "wrong"), [("lightgbm", "scale"), ("catboost", "temperature")])
def test_a_correction_of_the_other_kind_is_refused(name: str, wrong: str, models_config: ModelsConfig) -> None:
    section = getattr(models_config, name)
    with pytest.raises(ValidationError, match=f"calibration.method {wrong} is for"):
        type(section).model_validate({**section.model_dump(), "calibration": {**ON, "method": wrong}})


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.95))
def test_neutral_is_as_frequent_as_it_was(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    mean, sd = 0.3 * generator.normal(size=400), np.exp(0.2 * generator.normal(size=400))
    label = np.where(generator.random(400) < share, 0.0, generator.choice([-1.0, 1.0], 400))
    weight = generator.random(400)
    label[:20] = np.nan
    touch = fit_touch(mean, sd, label, weight)
    p = from_normal(mean, sd, pd.RangeIndex(400), touch)
    known = slice(20, None)
    wanted = np.average(label[known] == 0, weights=weight[known])
    assert np.average(p["p_neutral"][known], weights=weight[known]) == pytest.approx(wanted, abs=1e-6)
    assert fit_touch(mean, sd, np.full(400, np.nan), weight) == 1.0
