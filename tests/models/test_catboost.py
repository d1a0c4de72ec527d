"""The regression with uncertainty: it tells apart what is noisy, it says when it guesses, its bytes are its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from mlbot_core.config import CatBoostConfig
from mlbot_core.models import FeatureMismatchError, Model, TrainingDataError, load_model
from mlbot_core.models.artefact import read_artefact, write_artefact

Make = Callable[..., Model]


def noisy(seed: int, rows: int = 3000) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """The first feature is the mean, the second decides how wide the outcome scatters, the third nothing."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 3))
    sd = np.exp(0.6 * x[:, 1])
    score = 0.5 * x[:, 0] + sd * generator.normal(size=rows)
    index = pd.Index(7_200_000 * np.arange(rows, dtype=np.int64), name="ts")
    y = pd.DataFrame({"label": np.sign(score), "score": score, "width": 0.01, "next_ret": 0.0}, index=index)
    return pd.DataFrame(x, columns=["mean", "spread", "none"], index=index), y, sd


@pytest.fixture(scope="module")
def trained(make_model: Make) -> Model:
    X, y, _ = noisy(1)
    return make_model("catboost", iterations=200, learning_rate=0.05).fit(X, y)


def test_the_deviation_follows_the_noise_and_is_honest(trained: Model) -> None:
    X, y, sd = noisy(2)
    forecast = trained.predict(X)
    assert np.corrcoef(np.log(forecast["score_sd"]), np.log(sd))[0, 1] > 0.9
    z = (y["score"] - forecast["score"]) / forecast["score_sd"]
    assert z.std() == pytest.approx(1.0, abs=0.12)
    # 90 % of what happens lies inside the 90 % interval, in calm rows as in wild ones
    for part in (sd < 0.7, sd > 1.5):
        assert np.mean(np.abs(z[part]) < 1.6449) == pytest.approx(0.9, abs=0.05)
    importance = trained.feature_importance()
    assert set(importance["feature"][:2]) == {"mean", "spread"}
    assert importance["gain"].sum() == pytest.approx(100.0)
    assert importance["splits"].sum() > 200
    # the contributions explain the mean, so the spread has next to none
    parts = trained.explain(X).abs().mean()
    assert parts["mean"] > 5 * parts["spread"]


def test_virtual_ensembles_add_what_the_model_does_not_know(make_model: Make) -> None:
    X, y, _ = noisy(3, 600)
    without, few = (
        make_model("catboost", virtual_ensembles=n, langevin=True, iterations=100).fit(X, y).predict(X) for n in (0, 10)
    )
    np.testing.assert_array_equal(without["score"], few["score"])
    assert (few["score_sd"] >= without["score_sd"]).all()
    assert (few["score_sd"] > without["score_sd"]).mean() > 0.9


def test_too_few_trees_for_the_ensembles_are_refused(models_config: Any) -> None:
    section = models_config.catboost.model_dump()
    with pytest.raises(ValidationError, match="iterations 19 are too few for 10 virtual ensembles"):
        CatBoostConfig.model_validate({**section, "iterations": 19})


def test_the_file_holds_no_time_no_identifier_and_no_thread_count(make_model: Make, tmp_path: Path) -> None:
    X, y, _ = noisy(4, 500)
    for name, threads in (("a", 1), ("b", 3)):
        make_model("catboost", threads).fit(X, y).save(tmp_path / name)
        time.sleep(1.1)  # CatBoost notes the second in which it finished
    blob = (tmp_path / "a" / "model.cbm").read_bytes()
    assert blob == (tmp_path / "b" / "model.cbm").read_bytes()
    for word in (b"model_guid", b"train_finish_time", b"thread_count", b"output_options"):
        assert word not in blob


def test_full_samples_and_features_work_too(make_model: Make) -> None:
    X, y, _ = noisy(5, 500)
    forecast = make_model("catboost", subsample=1.0, rsm=1.0).fit(X, y).predict(X)
    assert np.isfinite(forecast).all().all()


def test_features_that_never_move_are_refused_in_our_words(make_model: Make) -> None:
    X, y, _ = noisy(6, 300)
    with pytest.raises(TrainingDataError, match="catboost cannot learn from these 300 rows"):
        make_model("catboost").fit(X * 0.0, y)


def test_a_payload_that_is_no_model_is_refused(trained: Model, tmp_path: Path) -> None:
    trained.save(tmp_path / "good")
    meta, payload = read_artefact(tmp_path / "good")
    own = {k: v for k, v in meta.items() if k not in ("files", "format")}
    for name, junk in (("empty", b""), ("junk", b"CBM1" + bytes(64)), ("cut", payload["model.cbm"][:-100])):
        write_artefact(tmp_path / name, {"model.cbm": junk}, own)
        with pytest.raises(Exception, match="not a usable model") as caught:
            load_model(tmp_path / name)
        assert type(caught.value).__name__ == "ArtefactError"
    names = {"features": ["a", "b", "c"]}
    write_artefact(tmp_path / "names", payload, own | names)
    with pytest.raises(Exception, match="or other names"):
        load_model(tmp_path / "names")
    assert json.loads((tmp_path / "good" / "meta.json").read_text())["libraries"].keys() == {"catboost", "python"}
    with pytest.raises(FeatureMismatchError):
        load_model(tmp_path / "good").predict(noisy(7, 10)[0].rename(columns={"none": "nothing"}))
