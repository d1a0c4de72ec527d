"""Drift: statistics against scipy, scikit-learn and by hand; what moved is found, what did not is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.config import DriftConfig, FeatureConfig, load_settings
from mlbot_core.errors import MissingDataError, QualityRefusedError
from mlbot_core.features import SettledSeries, configured_set
from mlbot_core.features.dataset import DatasetRequest, materialize_features
from mlbot_core.features.drift import (
    feature_drift,
    fit_reference,
    ks_test,
    psi_by_chance,
    row_scores,
    shrunk_covariance,
)
from mlbot_core.features.drift_dataset import (
    DRIFT_TABLE,
    ROWS_TABLE,
    asset_name,
    materialize_drift,
    newest_verdicts,
    training_window,
)
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market, Month
from mlbot_core.warehouse import PartitionKey, Warehouse, read_window, replace_window
from mlbot_core.warehouse.partitions import verdicts

NAMES = ("a", "b", "c", "flat", "gone")


def rows(seed: int, size: int = 2000) -> np.ndarray:
    """Two correlated columns, one fat-tailed, one flat and one that is never known."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=size)
    b = 0.95 * a + np.sqrt(1 - 0.95**2) * rng.normal(size=size)
    return np.column_stack([a, b, rng.standard_t(3, size), np.full(size, 2.0), np.full(size, np.nan)])


@pytest.fixture(scope="module")
def reference():
    return fit_reference(rows(1), NAMES)


def test_no_drift_looks_like_none(reference) -> None:
    found = feature_drift(reference, rows(2)).set_index("feature")
    assert (found.loc[["a", "b", "c"], "psi"] < 0.05).all()
    assert (found.loc[["a", "b", "c"], "psi"] < 2 * found.loc[["a", "b", "c"], "psi_chance"]).all()
    assert (found.loc[["a", "b", "c"], "ks_p"] > 0.001).all()
    assert found.loc["gone", ["psi", "ks", "shift"]].isna().all()
    assert found.loc["flat", "psi"] < 0.01


@pytest.mark.parametrize(
    ("change", "column"),
    [
        (lambda m: m + np.array([1.0, 0, 0, 0, 0]), "a"),  # it moved
        (lambda m: m * [1, 1, 4.0, 1, 1], "c"),  # it spread
        (lambda m: np.where(np.arange(len(m))[:, None] % 2 == [[1, 9, 9, 9, 9]], np.nan, m), "a"),  # its feed stops
        (lambda m: m + np.array([0, 0, 0, 1.0, 0]), "flat"),  # what never moved has moved
    ],
)
def test_what_changed_is_found_and_nothing_else(reference, change: Callable, column: str) -> None:
    psi = feature_drift(reference, change(rows(3))).set_index("feature")["psi"]
    assert psi[column] > 0.25
    assert (psi.drop(index=[column, "gone"]) < 0.1).all()


def test_psi_by_hand() -> None:
    """Ten equal bins; afterwards everything lies in the first."""
    trained = np.arange(1000.0)[:, None]
    moved = np.zeros((1000, 1))
    got = feature_drift(fit_reference(trained, ("x",)), moved)["psi"][0]
    p, q = np.full(10, 100.5) / 1005, (np.r_[1000.0, np.zeros(9)] + 0.5) / 1005
    assert got == pytest.approx(((q - p) * np.log(q / p)).sum())


@settings(max_examples=50, deadline=None)
@given(
    first=st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=40),
    second=st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=40),
)
def test_ks_equals_scipy(first: list[float], second: list[float]) -> None:
    from scipy.stats import ks_2samp

    distance, _ = ks_test(np.sort(first), np.sort(second))
    assert distance == pytest.approx(ks_2samp(first, second).statistic, abs=1e-12)


def test_ks_p_is_uniform_without_drift() -> None:
    rng = np.random.default_rng(5)
    p = [ks_test(np.sort(rng.normal(size=400)), np.sort(rng.normal(size=300)))[1] for _ in range(300)]
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.09


def test_psi_stays_below_its_bound_by_chance_as_often_as_it_says() -> None:
    rng = np.random.default_rng(6)
    reference = fit_reference(rng.normal(size=(3000, 200)), [f"x{i}" for i in range(200)])
    found = feature_drift(reference, rng.normal(size=(400, 200)))
    assert 0.95 < (found["psi"] < found["psi_chance"]).mean() <= 1.0
    assert np.isnan(psi_by_chance(0, 10, 10))


def test_shrunk_covariance_equals_scikit_learn() -> None:
    from sklearn.covariance import ledoit_wolf

    sample = rows(7, 120)[:, :3] @ np.random.default_rng(7).normal(size=(3, 30))
    np.testing.assert_allclose(shrunk_covariance(sample), ledoit_wolf(sample)[0], rtol=1e-9, atol=1e-12)


def test_a_usual_row_is_near_and_an_impossible_combination_is_not(reference) -> None:
    usual = row_scores(reference, rows(8))
    assert 0.4 < np.median(usual.score) < 0.6
    assert np.mean(usual.score > 0.99) < 0.03
    assert np.sqrt(np.mean(usual.distance**2)) == pytest.approx(1.0, abs=0.25)
    # both values are usual, but the two columns never disagree: only the joint distance sees it
    odd = row_scores(reference, np.array([[1.6, -1.6, 0.0, 2.0, np.nan]]))
    assert odd.score[0] > 0.999
    assert odd.outside[0] == 0.0
    wild = row_scores(reference, np.array([[50.0, 50.0, 0.0, 2.0, np.nan]]))
    assert wild.outside[0] == 0.5
    nothing = row_scores(reference, np.full((1, 5), np.nan))
    assert nothing.score[0] == 0.0
    assert np.isnan(nothing.outside[0])


def test_too_little_to_learn_from_is_refused() -> None:
    with pytest.raises(MissingDataError, match="200 are needed"):
        fit_reference(rows(9, 50), NAMES)
    with pytest.raises(MissingDataError, match="known and moves"):
        fit_reference(np.ones((300, 2)), ("a", "b"))


MARKET = Market.parse("BTC-1h")
CONFIG = FeatureConfig(set="price", zscore_window=60)
# two months of hourly training leave chance a good deal of room; what is planted below goes far beyond it
BOUNDS = DriftConfig(max_drifted_share=0.4, max_row_share=0.3)


@pytest.fixture
def store(
    make_inputs: Callable[..., dict[str, SettledSeries]], fill_store: Callable[..., Warehouse]
) -> tuple[Warehouse, DatasetRequest]:
    """Features from mid November to late January, and a registered model that was trained on last year's."""
    inputs = make_inputs(1700, seed=31)
    warehouse = fill_store(inputs, MARKET)
    now = warehouse.clock.now_ms()
    first, last = int(inputs["price"].ts[0]), int(inputs["price"].ts[-1])
    months = tuple(Month.span(first, last))
    request = DatasetRequest("archive", MARKET, months, 5_000, now, "test")
    materialize_features(warehouse, request, CONFIG)
    register(warehouse, request, "v1", configured_set(CONFIG).hash, months[-1].start_ms)
    return warehouse, request


def register(warehouse: Warehouse, request: DatasetRequest, version: str, feature_hash: str, end_ms: int) -> None:
    inputs = {"walk_forward": {"train_days": 90}, "feature_set": feature_hash}
    row = pa.table(
        {
            "created_at": [warehouse.clock.now_ms()],
            "start_ms": [end_ms - DAY_MS],
            "end_ms": [end_ms],
            "inputs": [json.dumps(inputs)],
        }
    )
    with warehouse.write() as con:
        replace_window(con, "models", {**request.scope, "model_type": "lightgbm", "model_version": version}, row)


def test_a_month_is_stored_and_judged(store: tuple[Warehouse, DatasetRequest]) -> None:
    warehouse, request = store
    outcomes = materialize_drift(warehouse, request, CONFIG, BOUNDS, "lightgbm")
    assert [o.key.asset for o in outcomes] == ["drift_lightgbm"] * len(request.months)
    assert all(o.passed for o in outcomes), [o.checks for o in outcomes]
    names = configured_set(CONFIG).names
    with warehouse.read() as con:
        by_feature = read_window(con, DRIFT_TABLE, request.scope).to_pandas()
        by_row = read_window(con, ROWS_TABLE, request.scope).to_pandas()
        window = training_window(con, "archive", MARKET, "lightgbm")
        month, found = newest_verdicts(con, "archive", MARKET, "lightgbm")
        features = read_window(con, "features_price", request.scope)
    assert len(by_feature) == len(names) * len(request.months)
    assert 0 <= features.num_rows - len(by_row) < 450, "all but the warm-up"
    assert (window.model_version, window.end_ms) == ("v1", request.months[-1].start_ms)
    assert month == request.months[-1]
    assert set(found) == {"drift", "ood"}
    assert by_row["score"].between(0, 1).all()
    again = materialize_drift(warehouse, request, CONFIG, BOUNDS, "lightgbm")
    assert [o.version for o in again] == [o.version for o in outcomes]
    with warehouse.read() as con:
        assert read_window(con, DRIFT_TABLE, request.scope).num_rows == len(by_feature), "replaced, not added"


def test_a_month_that_is_different_fails_and_says_where(store: tuple[Warehouse, DatasetRequest]) -> None:
    warehouse, request = store
    last = request.months[-1]
    names = configured_set(CONFIG).names
    with warehouse.write() as con:
        changes = ", ".join(f"{name} = {name} * 5 + 3" for name in names[: len(names) // 2])
        con.execute(f"UPDATE features_price SET {changes} WHERE ts >= {last.start_ms}")
    outcome = materialize_drift(warehouse, request, CONFIG, BOUNDS, "lightgbm")[-1]
    assert not outcome.passed
    with warehouse.read() as con:
        _, found = verdicts(con, PartitionKey(asset_name("lightgbm"), "archive", f"{MARKET}|{last.key}"))
    assert not found["drift"].passed
    assert not found["ood"].passed
    assert set(found["drift"].detail["worst"]) <= set(names[: len(names) // 2])


def test_a_model_of_other_features_or_none_is_refused(store: tuple[Warehouse, DatasetRequest]) -> None:
    warehouse, request = store
    with pytest.raises(MissingDataError, match="no catboost model"):
        materialize_drift(warehouse, request, CONFIG, BOUNDS, "catboost")
    register(warehouse, request, "v2", "0000", request.months[-1].end_ms)
    with pytest.raises(MissingDataError, match="reads feature set 0000"):
        materialize_drift(warehouse, request, CONFIG, BOUNDS, "lightgbm", "v2")
    with warehouse.write() as con:
        con.execute("UPDATE quality SET passed = false WHERE asset = 'features' AND check_name = 'lookahead'")
    with pytest.raises(QualityRefusedError, match="features from archive is not fit"):
        materialize_drift(warehouse, request, CONFIG, BOUNDS, "lightgbm", "v1")


def test_a_short_month_is_not_judged(store: tuple[Warehouse, DatasetRequest]) -> None:
    warehouse, request = store
    strict = DriftConfig(max_drifted_share=1e-9, psi_alarm=1e-9, max_row_share=1e-9, min_rows=100_000)
    outcome = materialize_drift(warehouse, request, CONFIG, strict, "lightgbm")[-1]
    assert outcome.passed
    assert "too few to judge" in outcome.checks[0].detail["note"]


@pytest.mark.archive
def test_recorded_months_after_two_years_of_training(archive_panel: pd.DataFrame, archive_dir: Path) -> None:
    """Real features: a month of the training window is at home in it; a made-up crash of the feed is not."""
    from mlbot_core.features import build_features, feature_set

    names = feature_set("price", load_settings().models.features.zscore_window)
    built = build_features(archive_panel.iloc[-24_000:].reset_index(drop=True), names)
    matrix = built[list(names.names)].to_numpy()[600:]
    reference = fit_reference(matrix[:17_000], names.names)
    inside, after = matrix[8_000:8_720], matrix[17_500:18_220]
    assert (row_scores(reference, inside).score >= 0.999).mean() < 0.01
    assert (row_scores(reference, after).score >= 0.999).mean() < 0.05
    wrecked = after.copy()
    wrecked[:, ::2] *= 6
    assert (row_scores(reference, wrecked).score >= 0.999).mean() > 0.5
    assert (feature_drift(reference, wrecked)["psi"][::2] > 0.25).mean() > 0.8
    assert np.diff(built["ts"]).max() == HOUR_MS
