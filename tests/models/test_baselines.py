"""The baselines against arithmetic written down elsewhere: scikit-learn's ridge, the sign of a return, plain counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.features import build_features
from mlbot_core.features.registry import all_features, make_feature_set
from mlbot_core.features.sets import configured_set
from mlbot_core.models import PROBABILITIES, FeatureMismatchError, Model
from mlbot_core.models.linear import normal_equations, solve_ridge
from mlbot_core.timeframe import HOUR_MS

Make = Callable[..., Model]


def frame(values: np.ndarray, *names: str) -> pd.DataFrame:
    index = pd.Index(HOUR_MS * np.arange(len(values), dtype=np.int64), name="ts")
    return pd.DataFrame(values, columns=list(names) or [f"x{i}" for i in range(values.shape[1])], index=index)


def outcomes(score: np.ndarray) -> pd.DataFrame:
    index = pd.Index(HOUR_MS * np.arange(len(score), dtype=np.int64), name="ts")
    return pd.DataFrame({"label": np.sign(score), "score": score, "width": 0.01, "next_ret": 0.0}, index=index)


# --- ridge -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 12), penalty=st.floats(0.01, 20), weighted=st.booleans())
def test_ridge_equals_scikit_learn(seed: int, size: int, penalty: float, weighted: bool) -> None:
    from sklearn.linear_model import Ridge

    from mlbot_core.config import RidgeConfig
    from mlbot_core.models.baselines import RidgeModel

    generator = np.random.default_rng(seed)
    x = generator.normal(2.0, 3.0, size=(200, size))
    score = x @ generator.normal(size=size) + generator.normal(size=200)
    weight = generator.random(200) + 0.1 if weighted else np.ones(200)
    model = RidgeModel(RidgeConfig(penalty=penalty)).fit(frame(x), outcomes(score), None, weight if weighted else None)
    mean = np.average(x, axis=0, weights=weight)
    z = (x - mean) / np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight))
    theirs = Ridge(alpha=penalty * weight.sum()).fit(z, score, sample_weight=weight)
    forecast = model.predict(frame(x))
    np.testing.assert_allclose(forecast["score"], theirs.predict(z), rtol=1e-8, atol=1e-8)
    gains = model.feature_importance().set_index("feature")["gain"]
    np.testing.assert_allclose(gains[[f"x{i}" for i in range(size)]], np.abs(theirs.coef_), rtol=1e-7, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 15), penalty=st.floats(0.001, 50))
def test_the_solution_and_its_degrees_of_freedom(seed: int, size: int, penalty: float) -> None:
    generator = np.random.default_rng(seed)
    z, y, w = generator.normal(size=(60, size)), generator.normal(size=60), generator.random(60)
    gram, moment = normal_equations(z, y, w)
    np.testing.assert_allclose(gram, (z.T * w) @ z / w.sum(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moment, (z.T * w) @ y / w.sum(), rtol=1e-10, atol=1e-12)
    coefficient, freedom = solve_ridge(gram, moment, penalty)
    whole = gram + penalty * np.eye(size)
    np.testing.assert_allclose(coefficient, np.linalg.solve(whole, moment), rtol=1e-7, atol=1e-10)
    assert freedom == pytest.approx(float(np.trace(gram @ np.linalg.inv(whole))), rel=1e-7, abs=1e-9)


def test_ridge_knows_how_little_it_knows(make_model: Make) -> None:
    """The deviation is that of forecasts of new rows, even with nearly as many features as rows."""
    generator = np.random.default_rng(3)
    x, score = generator.normal(size=(150, 60)), generator.normal(size=150)
    model = make_model("ridge", penalty=0.05).fit(frame(x), outcomes(score))
    fresh, came = generator.normal(size=(4000, 60)), generator.normal(size=4000)
    forecast = model.predict(frame(fresh))
    in_sample = np.std(score - model.predict(frame(x))["score"])
    out_of_sample = np.sqrt(np.mean((came - forecast["score"]) ** 2))
    assert in_sample < 0.85
    assert forecast["score_sd"].iloc[0] == pytest.approx(1.0, abs=0.15)  # the noise itself
    assert in_sample < forecast["score_sd"].iloc[0] < out_of_sample * 1.05


def test_features_that_say_nothing_count_for_nothing(make_model: Make) -> None:
    generator = np.random.default_rng(4)
    x = generator.normal(size=(300, 4))
    x[:, 1], x[:, 2] = np.nan, 1234.5678  # never known, never moving
    score = x[:, 0] + 0.1 * generator.normal(size=300)
    model = make_model("ridge").fit(frame(x), outcomes(score))
    table = model.feature_importance().set_index("feature")
    assert table.loc["x1", ["gain", "splits"]].tolist() == table.loc["x2", ["gain", "splits"]].tolist() == [0, 0]
    # a value it has never seen there still says nothing
    odd = x.copy()
    odd[:, 1], odd[:, 2] = 5.0, -9.0
    np.testing.assert_array_equal(model.predict(frame(odd)), model.predict(frame(x)))
    # an unknown value counts as the training mean
    hole, mean = x.copy(), x.copy()
    hole[:, 0], mean[:, 0] = np.nan, x[:, 0].mean()
    np.testing.assert_allclose(model.predict(frame(hole)), model.predict(frame(mean)), atol=1e-12)


def test_the_training_window_alone_scales_the_features(make_model: Make) -> None:
    generator = np.random.default_rng(5)
    x, score = generator.normal(size=(400, 3)), generator.normal(size=400)
    rows = np.arange(200)
    wild = x.copy()
    wild[200:] *= 1e6
    a, b = (make_model("ridge").fit(frame(v), outcomes(score), rows) for v in (x, wild))
    np.testing.assert_array_equal(a.predict(frame(x)), b.predict(frame(x)))


# --- momentum --------------------------------------------------------------------------------------------------


def test_momentum_follows_the_trend_of_real_features_whatever_came_of_it(make_model: Make, models_config: Any) -> None:
    """On the configured feature set: its signal has the sign of the trailing return, in falling and rising markets."""
    generator = np.random.default_rng(6)
    n = 1500
    close = 30_000 * np.exp(np.cumsum(generator.normal(0, 0.006, n)))
    panel = pd.DataFrame({"ts": 2 * HOUR_MS * np.arange(200_000, 200_000 + n), "open": close, "close": close})
    panel["high"], panel["low"], panel["volume_usd"] = close * 1.001, close * 0.999, 1e9
    (signal,) = models_config.momentum.signals
    assert signal in configured_set(models_config.features).names
    features = make_feature_set("one", [f for f in all_features() if f.name == signal], 240)
    lookback = int(signal.rpartition("_")[2])
    values = build_features(panel, features)[signal].to_numpy()
    X = frame(np.column_stack([values, generator.normal(size=n)]), signal, "other")
    score = -np.nan_to_num(values) + 0.1 * generator.normal(size=n)  # the trend always turns: the rule loses
    strength = models_config.momentum.strength
    forecast = make_model("momentum").fit(X, outcomes(score)).predict(X)
    trailing = np.full(n, np.nan)
    trailing[lookback:] = np.log(close[lookback:] / close[:-lookback])
    known = np.isfinite(values)
    assert known.sum() > 1000
    np.testing.assert_array_equal(forecast["score"][known], strength * np.sign(trailing[known]))
    assert (forecast["score"][~known] == 0).all()  # an unknown trend is no trend
    residual = score - forecast["score"]
    np.testing.assert_allclose(forecast["score_sd"], np.sqrt(np.mean(residual**2)))


def test_several_signals_vote(make_model: Make) -> None:
    x = np.array([[1.0, 2.0], [1.0, -2.0], [-1.0, -2.0], [np.nan, 2.0], [0.0, 0.0]])
    model = make_model("momentum", signals=["x0", "x1"], strength=0.3)
    forecast = model.fit(frame(x), outcomes(np.arange(5.0))).predict(frame(x))
    np.testing.assert_allclose(forecast["score"], [0.3, 0.0, -0.3, 0.15, 0.0])
    np.testing.assert_allclose(model.explain(frame(x)).sum(axis=1), forecast["score"])
    assert model.feature_importance()["gain"].tolist() == [0.15, 0.15]


def test_momentum_without_its_signal_is_refused(make_model: Make) -> None:
    x = frame(np.ones((30, 2)))
    with pytest.raises(FeatureMismatchError, match=r"lacks efficiency_24; train it on a set .* momentum\.signals"):
        make_model("momentum").fit(x, outcomes(np.arange(30.0)))


# --- constant --------------------------------------------------------------------------------------------------


def test_the_constant_says_the_training_frequencies(make_model: Make) -> None:
    x, label = frame(np.ones((1000, 1))), np.repeat([-1.0, 0.0, 1.0], [200, 300, 500])
    y = outcomes(label).assign(label=label)
    p = make_model("constant").fit(x, y).predict(x)
    assert len(p.drop_duplicates()) == 1
    np.testing.assert_allclose(p.iloc[0][list(PROBABILITIES)], [0.2, 0.3, 0.5], atol=0.001)
    assert p["score"].iloc[0] == pytest.approx(0.3, abs=0.002)
    rows = np.flatnonzero(label >= 0)
    p = make_model("constant").fit(x, y, rows).predict(x)
    np.testing.assert_allclose(p.iloc[0][list(PROBABILITIES)], [0.0, 0.375, 0.625], atol=0.001)
    assert p["p_down"].iloc[0] > 0  # what has not happened yet is not impossible
