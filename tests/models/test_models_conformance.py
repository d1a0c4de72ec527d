"""What every registered model type must do: one suite, each type runs it whole."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from mlbot_core.errors import MlbotError, UsageError
from mlbot_core.models import (
    MODEL_TYPES,
    PROBABILITIES,
    ArtefactError,
    DirectionModel,
    FeatureMismatchError,
    NotFittedError,
    TrainingDataError,
    create_model,
    load_model,
    model_class,
)
from mlbot_core.models.canonical import canonical_json, sha256_hex

Sample = tuple[pd.DataFrame, npt.NDArray[np.int64]]
Make = Callable[..., DirectionModel]

pytestmark = pytest.mark.parametrize("kind", list(MODEL_TYPES))


@pytest.fixture(scope="module")
def fitted(make_model: Make, sample: Sample) -> Callable[[str], DirectionModel]:
    models: dict[str, DirectionModel] = {}

    def get(kind: str) -> DirectionModel:
        if kind not in models:
            models[kind] = make_model(kind).fit(*sample)
        return models[kind]

    return get


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _exact(a: pd.DataFrame, b: pd.DataFrame) -> None:
    assert list(a.columns) == list(b.columns) == list(PROBABILITIES)
    np.testing.assert_array_equal(a.to_numpy().view(np.int64), b.to_numpy().view(np.int64))


# --- bytes -----------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_for_any_number_of_threads(
    kind: str, make_model: Make, sample: Sample, tmp_path: Path
) -> None:
    for name, threads in (("a", 1), ("b", 1), ("c", 2)):
        make_model(kind, threads).fit(*sample).save(tmp_path / name)
    assert _files(tmp_path / "a") == _files(tmp_path / "b") == _files(tmp_path / "c")


def test_another_process_writes_the_same_bytes(
    kind: str, models_config: object, fitted: Callable[[str], DirectionModel], sample: Sample, tmp_path: Path
) -> None:
    fitted(kind).save(tmp_path / "here")
    sample[0].to_parquet(tmp_path / "x.parquet")
    np.save(tmp_path / "y.npy", sample[1])
    (tmp_path / "config.json").write_text(models_config.model_dump_json())  # type: ignore[attr-defined]
    script = (
        "import sys, pathlib, numpy, pandas\n"
        "from mlbot_core.config import ModelsConfig\n"
        "from mlbot_core.models import create_model\n"
        "at = pathlib.Path(sys.argv[1])\n"
        "config = ModelsConfig.model_validate_json((at / 'config.json').read_text())\n"
        "model = create_model(sys.argv[2], config, 1)\n"
        "model.fit(pandas.read_parquet(at / 'x.parquet'), numpy.load(at / 'y.npy')).save(at / 'there')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path), kind], check=True, timeout=120)
    assert _files(tmp_path / "here") == _files(tmp_path / "there")


def test_another_seed_gives_another_model(kind: str, models_config: object, sample: Sample, make_model: Make) -> None:
    section = getattr(models_config, kind)
    other = models_config.model_copy(update={kind: section.model_copy(update={"seed": section.seed + 1})})  # type: ignore[attr-defined]
    a = make_model(kind).fit(*sample).predict_proba(sample[0])
    b = create_model(kind, other, 1).fit(*sample).predict_proba(sample[0])
    assert not np.array_equal(a.to_numpy(), b.to_numpy())


def test_save_and_load_round_trip_exactly(
    kind: str, fitted: Callable[[str], DirectionModel], sample: Sample, folder: Path, tmp_path: Path
) -> None:
    model = fitted(kind)
    model.save(folder)
    loaded = load_model(folder)
    assert type(loaded) is type(model)
    assert loaded.feature_names == model.feature_names == tuple(sample[0].columns)
    _exact(model.predict_proba(sample[0]), loaded.predict_proba(sample[0]))
    pd.testing.assert_frame_equal(model.feature_importance(), loaded.feature_importance())
    loaded.save(tmp_path / "again")
    assert _files(folder) == _files(tmp_path / "again")


def test_no_file_is_a_pickle(kind: str, fitted: Callable[[str], DirectionModel], folder: Path) -> None:
    fitted(kind).save(folder)
    for name, data in _files(folder).items():
        assert not data.startswith(b"\x80"), name
    assert "sha256" in json.loads((folder / "meta.json").read_text())


# --- prediction ------------------------------------------------------------------------------------------------


def test_probabilities_are_probabilities_and_learnt_something(
    kind: str, fitted: Callable[[str], DirectionModel], sample: Sample
) -> None:
    frame, label = sample
    p = fitted(kind).predict_proba(frame)
    assert (p.to_numpy() >= 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-12)
    assert np.mean(p.to_numpy().argmax(axis=1) - 1 == label) > 0.55  # the greatest class alone has about 0.39


def test_one_row_equals_the_batch_bit_for_bit(
    kind: str, fitted: Callable[[str], DirectionModel], sample: Sample
) -> None:
    frame = sample[0].iloc[:60]
    batch = fitted(kind).predict_proba(frame)
    for i in range(len(frame)):
        _exact(batch.iloc[[i]], fitted(kind).predict_proba(frame.iloc[[i]]))


def test_index_is_kept_and_column_order_does_not_matter(
    kind: str, fitted: Callable[[str], DirectionModel], sample: Sample
) -> None:
    frame = sample[0].iloc[:20].set_axis(np.arange(100, 120), axis=0)
    p = fitted(kind).predict_proba(frame)
    assert list(p.index) == list(range(100, 120))
    _exact(p, fitted(kind).predict_proba(frame[frame.columns[::-1]]))


def test_unknown_values_are_handled_and_an_unknown_row_has_no_forecast(
    kind: str, fitted: Callable[[str], DirectionModel], sample: Sample
) -> None:
    frame = sample[0].iloc[:3].copy()
    frame.iloc[0, 1:] = np.nan
    frame.iloc[1, :] = np.nan
    p = fitted(kind).predict_proba(frame)
    assert np.isfinite(p.iloc[[0, 2]].to_numpy()).all()
    assert p.iloc[1].isna().all()


def test_no_rows_no_forecasts(kind: str, fitted: Callable[[str], DirectionModel], sample: Sample) -> None:
    p = fitted(kind).predict_proba(sample[0].iloc[:0])
    assert p.shape == (0, 3)
    assert list(p.columns) == list(PROBABILITIES)


def test_a_class_that_never_occurred_has_probability_zero(
    kind: str, make_model: Make, sample: Sample, folder: Path
) -> None:
    frame, label = sample
    some = label != 0
    model = make_model(kind).fit(frame[some], label[some])
    p = model.predict_proba(frame)
    assert (p["p_neutral"] == 0.0).all()
    np.testing.assert_allclose(p["p_down"] + p["p_up"], 1.0, atol=1e-12)
    model.save(folder)
    _exact(p, load_model(folder).predict_proba(frame))


def test_weights_matter_and_equal_weights_do_not(kind: str, make_model: Make, sample: Sample) -> None:
    frame, label = sample
    plain = make_model(kind).fit(frame, label).predict_proba(frame)
    ones = make_model(kind).fit(frame, label, np.ones(len(frame))).predict_proba(frame)
    np.testing.assert_allclose(plain, ones, atol=1e-9)
    heavy = make_model(kind).fit(frame, label, np.where(label == 1, 5.0, 1.0)).predict_proba(frame)
    assert heavy["p_up"].mean() > plain["p_up"].mean() + 0.1


def test_importance_finds_what_decides(kind: str, fitted: Callable[[str], DirectionModel], sample: Sample) -> None:
    table = fitted(kind).feature_importance()
    assert list(table.columns) == ["feature", "gain", "splits"]
    assert sorted(table["feature"]) == sorted(sample[0].columns)
    assert list(table["feature"][:2]) == ["f_0", "f_1"]
    assert table["gain"].is_monotonic_decreasing
    assert table.set_index("feature").loc["f_7", "splits"] == 0


# --- refusals --------------------------------------------------------------------------------------------------


def test_wrong_columns_are_named(kind: str, fitted: Callable[[str], DirectionModel], sample: Sample) -> None:
    frame, model = sample[0].iloc[:5], fitted(kind)
    with pytest.raises(FeatureMismatchError, match="lacks f_3"):
        model.predict_proba(frame.drop(columns="f_3"))
    with pytest.raises(FeatureMismatchError, match="unknown extra_one"):
        model.predict_proba(frame.assign(extra_one=1.0))
    with pytest.raises(FeatureMismatchError, match="lacks f_3 and has unknown g_3"):
        model.predict_proba(frame.rename(columns={"f_3": "g_3"}))
    with pytest.raises(FeatureMismatchError, match=r"f_2 \(float32\)"):
        model.predict_proba(frame.astype({"f_2": np.float32}))
    with pytest.raises(FeatureMismatchError, match=r"f_2 hold infinities"):
        model.predict_proba(frame.assign(f_2=np.inf))
    with pytest.raises(FeatureMismatchError, match="f_0 appear twice"):
        model.predict_proba(frame.rename(columns={"f_1": "f_0"}))


def test_data_that_cannot_train_is_refused(kind: str, make_model: Make, sample: Sample) -> None:
    frame, label = sample
    with pytest.raises(TrainingDataError, match="no rows"):
        make_model(kind).fit(frame.iloc[:0], label[:0])
    with pytest.raises(TrainingDataError, match="no feature columns"):
        make_model(kind).fit(frame[[]], label)
    with pytest.raises(TrainingDataError, match="all 1500 labels are 1"):
        make_model(kind).fit(frame, np.ones(len(frame)))
    holes = label.astype(float)
    holes[[7, 9]] = np.nan
    with pytest.raises(TrainingDataError, match="2 of 1500 labels are NaN, the first at row 7"):
        make_model(kind).fit(frame, holes)
    with pytest.raises(TrainingDataError, match=r"label 2\.0 at row 0"):
        make_model(kind).fit(frame, np.r_[2, label[1:]])
    with pytest.raises(TrainingDataError, match="labels of shape"):
        make_model(kind).fit(frame, label[:-1])
    for weight, words in ((-1.0, "weight -1.0"), (np.nan, "weight nan"), (0.0, "all 1500 weights are zero")):
        with pytest.raises(TrainingDataError, match=words):
            make_model(kind).fit(frame, label, np.full(len(frame), weight))


def test_an_unfitted_model_says_so(kind: str, make_model: Make, sample: Sample, folder: Path) -> None:
    model = make_model(kind)
    for ask in (
        lambda: model.predict_proba(sample[0]),
        lambda: model.save(folder),
        model.feature_importance,
    ):
        with pytest.raises(NotFittedError, match="fit or load"):
            ask()
    assert not folder.exists()


def test_every_error_is_ours(kind: str) -> None:
    for error in (ArtefactError, FeatureMismatchError, NotFittedError, TrainingDataError):
        assert issubclass(error, MlbotError)
    with pytest.raises(UsageError, match="choose one of lightgbm"):
        model_class("perceptron")
    with pytest.raises(UsageError, match="threads 0"):
        model_class(kind).from_config(None, 0)


# --- damaged artefacts -----------------------------------------------------------------------------------------


def _payload(folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir()) if path.name != "meta.json")


def _edit_meta(folder: Path, reseal: bool, **changes: object) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    meta |= changes
    if reseal:
        meta.pop("sha256")
        meta["sha256"] = sha256_hex(canonical_json(meta))
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("cut", [0, 1, 1000, -1])
def test_a_truncated_payload_is_refused(
    kind: str, cut: int, fitted: Callable[[str], DirectionModel], folder: Path
) -> None:
    fitted(kind).save(folder)
    path = _payload(folder)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ArtefactError, match="changed or truncated"):
        load_model(folder)


def test_one_flipped_bit_anywhere_is_refused(kind: str, fitted: Callable[[str], DirectionModel], folder: Path) -> None:
    fitted(kind).save(folder)
    generator = np.random.default_rng(6)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for at in generator.integers(0, len(whole), 40):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << int(generator.integers(0, 8))
            path.write_bytes(damaged)
            if path.name == "meta.json" and _same_json(bytes(damaged), whole):
                continue  # a blank turned into another blank says the same
            with pytest.raises(ArtefactError):
                load_model(folder)
        path.write_bytes(whole)
    load_model(folder)


def _same_json(a: bytes, b: bytes) -> bool:
    try:
        return bool(json.loads(a) == json.loads(b))
    except ValueError:
        return False


def test_missing_files_are_named(kind: str, fitted: Callable[[str], DirectionModel], folder: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_model(folder)
    fitted(kind).save(folder)
    _payload(folder).unlink()
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_model(folder)


def test_a_meta_that_claims_other_features_is_refused(
    kind: str, fitted: Callable[[str], DirectionModel], sample: Sample, folder: Path
) -> None:
    fitted(kind).save(folder)
    names = [f"g_{i}" for i in range(sample[0].shape[1])]
    _edit_meta(folder, reseal=False, features=names)
    with pytest.raises(ArtefactError, match="SHA-256 does not match"):
        load_model(folder)
    # Even with the seals renewed the payload itself tells.
    for change in ({"features": names}, {"features": names[:-1]}, {"classes": [-1, 1]}, {"classes": [1, 2, 3]}):
        _edit_meta(folder, reseal=True, **{"features": list(sample[0].columns), "classes": [-1, 0, 1], **change})
        with pytest.raises(ArtefactError):
            load_model(folder)


def test_an_unknown_type_or_format_is_refused(kind: str, fitted: Callable[[str], DirectionModel], folder: Path) -> None:
    fitted(kind).save(folder)
    _edit_meta(folder, reseal=True, type="perceptron")
    with pytest.raises(ArtefactError, match="'perceptron'"):
        load_model(folder)
    with pytest.raises(ArtefactError, match="'perceptron'"):
        model_class(kind).load(folder)
    _edit_meta(folder, reseal=True, type=kind, format=99)
    with pytest.raises(ArtefactError, match="format 99"):
        load_model(folder)
    _edit_meta(folder, reseal=True, format=1, files={"../../secret": "0"})
    with pytest.raises(ArtefactError, match="outside its folder"):
        load_model(folder)


def test_a_version_is_written_once(
    kind: str, fitted: Callable[[str], DirectionModel], make_model: Make, sample: Sample, folder: Path
) -> None:
    fitted(kind).save(folder)
    before = _files(folder)
    fitted(kind).save(folder)  # the same again changes nothing
    assert _files(folder) == before
    frame, label = sample
    with pytest.raises(ArtefactError, match="already holds another"):
        make_model(kind).fit(frame.iloc[:800], label[:800]).save(folder)
    assert _files(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_write_that_fails_leaves_nothing(
    kind: str, fitted: Callable[[str], DirectionModel], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ArtefactError, match="No space"):
        fitted(kind).save(folder)
    assert list(folder.parent.iterdir()) == []


def test_two_processes_may_write_the_same_version_at_once(
    kind: str, fitted: Callable[[str], DirectionModel], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rename = fitted(kind), Path.rename

    def other_first(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        model.save(folder)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", other_first)
    model.save(folder)
    load_model(folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
