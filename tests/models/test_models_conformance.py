"""What every registered model type must do: one suite, each type runs it whole.

A test that takes ``kind`` runs once for each type of ``MODEL_TYPES``; ``KINDS`` in conftest.py says what is particular
to one (a small configuration, whether it draws, whether it is slow).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlbot_core.errors import MlbotError, UsageError
from mlbot_core.models import (
    MODEL_TYPES,
    PROBABILITIES,
    ArtefactError,
    FeatureMismatchError,
    LibraryMismatchError,
    Model,
    NotFittedError,
    TrainingDataError,
    load_model,
    model_class,
)
from mlbot_core.models.base import BASE_COLUMN, FORECAST
from mlbot_core.models.canonical import canonical_json, sha256_hex
from mlbot_core.models.explain import permutation_importance, rank_ic

Make = Callable[..., Model]


def bytes_of(model: Model, folder: Path) -> dict[str, bytes]:
    model.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def close(a: pd.DataFrame, b: pd.DataFrame, tolerance: float) -> None:
    assert list(a.columns) == list(b.columns) == list(FORECAST)
    np.testing.assert_array_equal(a.index, b.index)
    if tolerance:
        np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), rtol=0, atol=tolerance)
    else:
        np.testing.assert_array_equal(a.to_numpy(), b.to_numpy())


def raw_output(model: Model, forecast: pd.DataFrame) -> pd.Series:
    """What the model says it explains, from its forecast."""
    if model.explained.startswith("score"):
        return forecast["score"]
    above, below = model.explained.removeprefix("log(").removesuffix(")").split(" / ")
    return np.log(forecast[above] / forecast[below])


# --- bytes -----------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes(kind: Any, make_model: Make, sample_for: Any, tmp_path: Path) -> None:
    sample = sample_for(kind)
    runs = [("a", 1), ("b", 1)] + ([("c", 2)] if kind.any_threads else [])
    made = [bytes_of(make_model(kind.name, threads).fit(sample.X, sample.y), tmp_path / n) for n, threads in runs]
    assert all(other == made[0] for other in made)


def test_another_process_writes_the_same_bytes(
    kind: Any, fitted: Any, sample_for: Any, fit_elsewhere: Any, files: Any, tmp_path: Path
) -> None:
    there = fit_elsewhere(kind, sample_for(kind))
    assert files(there) == bytes_of(fitted(kind), tmp_path / "here")


def test_the_seed_decides_where_something_is_drawn_and_nothing_else(
    kind: Any, make_model: Make, fitted: Any, sample_for: Any, models_config: Any
) -> None:
    sample = sample_for(kind)
    seed = getattr(models_config, kind.name).seed
    other = make_model(kind.name, seed=seed + 1).fit(sample.X, sample.y).predict(sample.X)
    same = np.array_equal(other.to_numpy(), fitted(kind).predict(sample.X).to_numpy(), equal_nan=True)
    assert same is not kind.draws


def test_nothing_is_left_in_the_working_folder(
    kind: Any, make_model: Make, sample_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sample = sample_for(kind)
    model = make_model(kind.name).fit(sample.X, sample.y)
    model.predict(sample.X)
    model.explain(sample.X.iloc[:50])
    model.feature_importance()
    assert list(tmp_path.iterdir()) == []


def test_save_and_load_round_trip_exactly(
    kind: Any, fitted: Any, sample_for: Any, folder: Path, tmp_path: Path
) -> None:
    model, X = fitted(kind), sample_for(kind).X
    before = bytes_of(model, folder)
    loaded = load_model(folder)
    assert type(loaded) is type(model) is model_class(kind.name)
    assert (loaded.model_type, loaded.target, loaded.context_bars) == (kind.name, model.target, model.context_bars)
    assert loaded.feature_names == model.feature_names == tuple(X.columns)
    close(model.predict(X), loaded.predict(X), 0.0)
    pd.testing.assert_frame_equal(model.explain(X.iloc[:60]), loaded.explain(X.iloc[:60]), check_exact=True)
    pd.testing.assert_frame_equal(model.feature_importance(), loaded.feature_importance(), check_exact=True)
    assert bytes_of(loaded, tmp_path / "again") == before
    model.save(folder)  # the same model again is no change


def test_no_file_is_a_pickle(kind: Any, fitted: Any, folder: Path) -> None:
    for name, data in bytes_of(fitted(kind), folder).items():
        assert not data.startswith(b"\x80"), name
        assert Path(name).suffix in (".json", ".txt", ".cbm", ".safetensors"), name
    assert "sha256" in json.loads((folder / "meta.json").read_text())


# --- forecasts -------------------------------------------------------------------------------------------------


def test_a_forecast_is_a_distribution_and_has_skill(kind: Any, fitted: Any, sample_of: Any) -> None:
    model = fitted(kind)
    fresh = sample_of(kind.columns, kind.rows, seed=6)
    forecast = model.predict(fresh.X)
    assert list(forecast.columns) == list(FORECAST)
    known = forecast.iloc[model.context_bars :]
    p = known[list(PROBABILITIES)].to_numpy()
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-12)
    assert np.isfinite(known.to_numpy()).all()
    assert (known["score_sd"] > 0).all()
    if kind.skill:
        assert rank_ic(forecast, fresh.y) > kind.skill
        # up and down agree with the score
        assert np.corrcoef(known["p_up"] - known["p_down"], known["score"])[0, 1] > 0.9


def test_one_row_equals_the_batch(kind: Any, fitted: Any, sample_for: Any) -> None:
    model, X = fitted(kind), sample_for(kind).X
    context = model.context_bars
    batch = model.predict(X)
    for i in range(context, context + (60 if context == 0 else 12)):
        window = X.iloc[i - context : i + 1]
        close(model.predict(window, np.array([context])), batch.iloc[[i]], kind.tolerance)


def test_a_row_without_its_context_has_no_forecast(kind: Any, fitted: Any, sample_for: Any) -> None:
    model, X = fitted(kind), sample_for(kind).X
    context = model.context_bars
    forecast = model.predict(X.iloc[: context + 1])
    assert forecast.iloc[:context].isna().all().all()
    assert forecast.iloc[context].notna().all()


def test_rows_pick_from_the_batch(kind: Any, fitted: Any, sample_for: Any) -> None:
    model, X = fitted(kind), sample_for(kind).X.iloc[:200]
    rows = np.array([model.context_bars, 120, 121, 199])
    close(model.predict(X, rows), model.predict(X).iloc[rows], kind.tolerance)
    np.testing.assert_array_equal(model.explain(X, rows).index, X.index[rows])
    empty = model.predict(X, np.array([], dtype=np.int64))
    assert list(empty.columns) == list(FORECAST)
    assert len(empty) == 0
    for wrong in ([3, 2], [5, 5], [200], [-1]):
        with pytest.raises(UsageError, match="ascending positions"):
            model.predict(X, np.array(wrong))


def test_the_order_of_columns_does_not_matter(kind: Any, fitted: Any, sample_for: Any) -> None:
    model, X = fitted(kind), sample_for(kind).X.iloc[:150]
    close(model.predict(X), model.predict(X[X.columns[::-1]]), 0.0)
    assert list(model.explain(X[X.columns[::-1]]).columns) == [*X.columns, BASE_COLUMN]


def test_unknown_values_are_handled_and_an_unknown_row_has_no_forecast(kind: Any, fitted: Any, sample_for: Any) -> None:
    model = fitted(kind)
    X = sample_for(kind).X.iloc[: model.context_bars + 3].copy()
    X.iloc[-3, 1:] = np.nan
    X.iloc[-2, :] = np.nan
    forecast = model.predict(X)
    assert forecast.iloc[-3].notna().all()
    assert forecast.iloc[-2].isna().all()
    assert forecast.iloc[-1].notna().all()
    assert model.explain(X).iloc[-2].isna().all()


# --- what trains -----------------------------------------------------------------------------------------------


def test_outcomes_of_other_rows_and_all_of_the_future_do_not_matter(
    kind: Any, make_model: Make, sample_for: Any, tmp_path: Path
) -> None:
    """The canary: nothing that was not known to the training rows may move a byte."""
    sample = sample_for(kind)
    last = int(0.7 * len(sample))
    rows = np.setdiff1d(np.arange(50, last), np.arange(300, 320))
    expected = bytes_of(make_model(kind.name).fit(sample.X, sample.y, rows), tmp_path / "expected")
    others = np.setdiff1d(np.arange(len(sample)), rows)
    generator = np.random.default_rng(1)
    for name, junk in (("nan", np.nan), ("noise", None)):
        X, y = sample.X.copy(), sample.y.copy()
        for column in ("label", "score", "next_ret"):
            values = y[column].to_numpy(copy=True)
            values[others] = generator.choice([-1.0, 0.0, 1.0], len(others)) if junk is None else junk
            y[column] = values
        X.iloc[last:] = generator.normal(size=X.iloc[last:].shape)
        assert bytes_of(make_model(kind.name).fit(X, y, rows), tmp_path / name) == expected
    # nor does it matter whether the future is there at all
    cut = sample.head(last)
    assert bytes_of(make_model(kind.name).fit(cut.X, cut.y, rows), tmp_path / "cut") == expected


def test_training_rows_do_matter(kind: Any, make_model: Make, sample_for: Any, tmp_path: Path) -> None:
    """The canary can sing: the same change inside the training rows is seen."""
    sample = sample_for(kind)
    rows = np.arange(int(0.7 * len(sample)))
    y = sample.y.copy()
    turned = y.iloc[rows[-200:]][["label", "score"]]
    y.loc[turned.index, ["label", "score"]] = 1.0 + turned.abs()
    y["label"] = y["label"].clip(-1, 1)
    a = bytes_of(make_model(kind.name).fit(sample.X, sample.y, rows), tmp_path / "a")
    assert bytes_of(make_model(kind.name).fit(sample.X, y, rows), tmp_path / "b") != a


def test_weights_matter_and_equal_weights_do_not(kind: Any, make_model: Make, sample_for: Any, fitted: Any) -> None:
    sample = sample_for(kind)
    plain = fitted(kind).predict(sample.X)
    ones = make_model(kind.name).fit(sample.X, sample.y, None, np.ones(len(sample))).predict(sample.X)
    np.testing.assert_allclose(plain, ones, atol=max(1e-9, kind.tolerance))
    weight = np.where(sample.y["label"] == 1, 6.0, 1.0)
    heavy = make_model(kind.name).fit(sample.X, sample.y, None, weight).predict(sample.X)
    assert not np.allclose(plain, heavy, atol=1e-3, equal_nan=True)
    if kind.learns or kind.name == "constant":
        assert heavy["score"].mean() > plain["score"].mean() + 0.1
        assert heavy["p_up"].mean() > plain["p_up"].mean() + 0.05


# --- explanations ----------------------------------------------------------------------------------------------


def test_importance_finds_what_decides(kind: Any, fitted: Any, sample_for: Any) -> None:
    table = fitted(kind).feature_importance()
    assert list(table.columns) == ["feature", "gain", "splits"]
    assert sorted(table["feature"]) == sorted(sample_for(kind).X.columns)
    assert table["gain"].is_monotonic_decreasing
    assert (table["gain"] >= 0).all()
    if kind.learns:
        assert list(table["feature"][:2]) == list(kind.columns[:2])
    assert table.set_index("feature").loc[kind.columns[-1], "gain"] == 0


def test_permutation_importance_finds_what_decides(kind: Any, fitted: Any, sample_of: Any) -> None:
    fresh = sample_of(kind.columns, kind.rows, seed=8)
    rows = np.arange(fitted(kind).context_bars, len(fresh))
    table = permutation_importance(fitted(kind), fresh.X, fresh.y, rows, repeats=2, seed=3, **_metric(kind))
    assert sorted(table["feature"]) == sorted(kind.columns)
    gain = table.set_index("feature")["importance"]
    if kind.learns:
        assert list(table["feature"][:2]) == list(kind.columns[:2])
        assert gain.iloc[1] > 5 * gain.iloc[2:].abs().max()
    elif kind.skill:
        assert gain[kind.columns[0]] > 0.1
        assert (gain.drop(kind.columns[0]) == 0).all()
    else:
        assert (gain == 0).all()
    assert gain[kind.columns[-1]] == 0


def _metric(kind: Any) -> dict[str, str]:
    # a constant has no rank correlation, and the loss of a rule is not what it is about
    return {"metric": "rank_ic"} if kind.name == "momentum" else {}


def test_contributions_add_up_to_what_is_explained(kind: Any, fitted: Any, sample_for: Any) -> None:
    model, X = fitted(kind), sample_for(kind).X.iloc[:120]
    parts = model.explain(X)
    assert list(parts.columns) == [*model.feature_names, BASE_COLUMN]
    np.testing.assert_array_equal(parts.index, X.index)
    expected = raw_output(model, model.predict(X))
    np.testing.assert_allclose(parts.sum(axis=1, skipna=False), expected, rtol=0, atol=max(1e-9, kind.tolerance))
    known = parts.iloc[model.context_bars :]
    assert (known[kind.columns[-1]] == 0).all()
    if kind.skill:
        assert known[list(kind.columns)].abs().mean().idxmax() == kind.columns[0]
        assert np.corrcoef(known[kind.columns[0]], X[kind.columns[0]].iloc[model.context_bars :])[0, 1] > 0.5


# --- refusals --------------------------------------------------------------------------------------------------


def test_wrong_columns_are_named(kind: Any, fitted: Any, sample_for: Any) -> None:
    model, X = fitted(kind), sample_for(kind).X.iloc[:100]
    third, fourth = kind.columns[2], kind.columns[3]
    for ask in (model.predict, model.explain):
        with pytest.raises(FeatureMismatchError, match=f"lacks {fourth}"):
            ask(X.drop(columns=fourth))
        with pytest.raises(FeatureMismatchError, match="unknown extra_one"):
            ask(X.assign(extra_one=1.0))
        with pytest.raises(FeatureMismatchError, match=f"lacks {fourth} and has unknown g_3"):
            ask(X.rename(columns={fourth: "g_3"}))
        with pytest.raises(FeatureMismatchError, match=rf"{third} \(float32\)"):
            ask(X.astype({third: np.float32}))
        with pytest.raises(FeatureMismatchError, match=rf"{third} hold infinities"):
            ask(X.assign(**{third: np.inf}))
        with pytest.raises(FeatureMismatchError, match=f"{third} appear twice"):
            ask(X.rename(columns={fourth: third}))


def test_data_that_cannot_train_is_refused(kind: Any, make_model: Make, sample_for: Any) -> None:
    sample = sample_for(kind)
    X, y, n = sample.X, sample.y, len(sample)
    target = model_class(kind.name).target

    def refused(words: str, *data: Any, error: type[Exception] = TrainingDataError) -> None:
        with pytest.raises(error, match=words):
            make_model(kind.name).fit(*data)

    refused("no rows", X.iloc[:0], y.iloc[:0])
    refused("no rows", X, y, np.array([], dtype=np.int64))
    refused(f"all {n} .* are 1", X, y.assign(label=1.0, score=1.0))
    holes = y.copy()
    holes.iloc[[7, 9], [0, 1]] = np.nan
    refused(f"2 of {n} .*, the first at row 7", X, holes)
    for weight, words in ((-1.0, "weight -1.0"), (np.nan, "weight nan"), (0.0, f"all {n} weights are zero")):
        refused(words, X, y, None, np.full(n, weight))
    refused("weights of shape", X, y, None, np.ones(n - 1))
    refused("ascending positions", X, y, np.array([3, 2]), error=UsageError)
    refused(f"lack the column {target}", X, y.drop(columns=target))
    refused("not on the same bars", X, y.iloc[1:])
    refused(f"{kind.columns[2]} hold infinities", X.assign(**{kind.columns[2]: np.inf}), y, error=FeatureMismatchError)
    if target == "label":
        refused(r"label 2\.0 at row 0", X, y.assign(label=np.r_[2.0, y["label"].to_numpy()[1:]]))
    with pytest.raises(MlbotError, match=r"no feature columns|do not fit"):
        make_model(kind.name).fit(X[[]], y)


def test_a_refused_fit_leaves_no_model(kind: Any, make_model: Make, sample_for: Any, folder: Path) -> None:
    sample = sample_for(kind)
    model = make_model(kind.name)
    with pytest.raises(TrainingDataError):
        model.fit(sample.X, sample.y.assign(label=np.nan, score=np.nan))
    for ask in (
        lambda: model.predict(sample.X),
        lambda: model.explain(sample.X),
        lambda: model.save(folder),
        model.feature_importance,
    ):
        with pytest.raises(NotFittedError, match="fit or load"):
            ask()
    assert not folder.exists()


def test_threads_below_one_are_refused(kind: Any, models_config: Any) -> None:
    with pytest.raises(UsageError, match="threads 0"):
        model_class(kind.name).from_config(getattr(models_config, kind.name), 0)


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    for error in (ArtefactError, FeatureMismatchError, NotFittedError, TrainingDataError):
        assert issubclass(error, MlbotError)
    with pytest.raises(UsageError, match=", ".join(MODEL_TYPES)):
        model_class("perceptron")


# --- damaged and foreign artefacts -----------------------------------------------------------------------------


def payload_of(folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir()) if path.name != "meta.json")


def edit_meta(folder: Path, reseal: bool, **changes: object) -> None:
    meta = json.loads((folder / "meta.json").read_text()) | changes
    if reseal:
        meta.pop("sha256")
        meta["sha256"] = sha256_hex(canonical_json(meta))
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("cut", [0, 1, 60, -1])
def test_a_truncated_payload_is_refused(kind: Any, cut: int, fitted: Any, folder: Path) -> None:
    fitted(kind).save(folder)
    path = payload_of(folder)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ArtefactError, match="changed or truncated"):
        load_model(folder)


def test_one_flipped_bit_anywhere_is_refused(kind: Any, fitted: Any, folder: Path) -> None:
    fitted(kind).save(folder)
    generator = np.random.default_rng(6)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for at in generator.integers(0, len(whole), 40):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << int(generator.integers(0, 8))
            path.write_bytes(damaged)
            if path.name == "meta.json" and same_json(bytes(damaged), whole):
                continue  # a blank turned into another blank says the same
            with pytest.raises(ArtefactError):
                load_model(folder)
        path.write_bytes(whole)
    load_model(folder)


def same_json(a: bytes, b: bytes) -> bool:
    try:
        return bool(json.loads(a) == json.loads(b))
    except ValueError:
        return False


def test_missing_files_are_named(kind: Any, fitted: Any, folder: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_model(folder)
    fitted(kind).save(folder)
    payload_of(folder).unlink()
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_model(folder)


def test_a_meta_that_claims_other_features_is_refused(kind: Any, fitted: Any, folder: Path) -> None:
    fitted(kind).save(folder)
    names = [f"g_{i}" for i in range(len(kind.columns))]
    edit_meta(folder, reseal=False, features=names)
    with pytest.raises(ArtefactError, match="SHA-256 does not match"):
        load_model(folder)
    # Even with the seals renewed the payload itself tells.
    for features in (names, names[:-1], list(kind.columns)[:-1]):
        edit_meta(folder, reseal=True, features=features)
        with pytest.raises(ArtefactError):
            load_model(folder)


def test_a_model_of_another_type_is_not_taken_for_this_one(kind: Any, fitted: Any, folder: Path) -> None:
    fitted(kind).save(folder)
    other = next(name for name in MODEL_TYPES if name != kind.name)
    with pytest.raises(ArtefactError, match=f"holds a '{kind.name}' model, not '{other}'"):
        model_class(other).load(folder)
    edit_meta(folder, reseal=True, type="perceptron")
    with pytest.raises(ArtefactError, match="of type 'perceptron'"):
        load_model(folder)


def test_a_model_of_another_library_release_is_refused_with_both_versions(
    kind: Any, fitted: Any, folder: Path, files: Any
) -> None:
    fitted(kind).save(folder)
    before = files(folder)
    libraries = json.loads((folder / "meta.json").read_text())["libraries"]
    own = {name: version for name, version in libraries.items() if name != "python"}
    assert own
    refused = []
    for name, version in own.items():
        edit_meta(folder, reseal=True, libraries={**libraries, name: "0.0.1"})
        try:
            load_model(folder)
        except LibraryMismatchError as error:
            refused.append(name)
            assert all(word in str(error) for word in (name, "0.0.1", version, "train the model again"))  # noqa: PT017
    assert refused
    edit_meta(folder, reseal=True, libraries={"python": libraries.get("python", "3")})
    with pytest.raises(ArtefactError, match="does not say which"):
        load_model(folder)
    for name, data in before.items():
        (folder / name).write_bytes(data)
    load_model(folder)
