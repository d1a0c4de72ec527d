"""The Temporal Fusion Transformer as a model: what it learns, what it may not see, bytes, refusals, manners."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlbot_core.config import TFTConfig
from mlbot_core.models.artefact import META, ArtefactError, LibraryMismatchError, read_artefact, write_artefact
from mlbot_core.models.base import FORECAST, FeatureMismatchError, TrainingDataError
from mlbot_core.models.tft import TFTModel

BAR_MS = 7_200_000
T0 = 1_700_006_400_000
HORIZON = 4


def config(**changes: Any) -> TFTConfig:
    base = {
        "horizon": HORIZON,
        "decoder_steps": 2,
        "encoder_length": 8,
        "hidden_size": 8,
        "hidden_continuous_size": 4,
        "attention_heads": 2,
        "max_features": 3,
        "batch_size": 64,
        "block": 8,
        "max_epochs": 1,
    }
    return TFTConfig.model_validate({**base, **changes})


def market(bars: int, seed: int = 0, memory: int = 16, signal_: float = 0.5) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Bars whose returns drift with the sign of the mean of f_0 over the last ``memory`` bars."""
    rng = np.random.default_rng(seed)
    index = pd.Index(T0 + BAR_MS * np.arange(bars, dtype=np.int64), name="ts")
    X = pd.DataFrame(rng.normal(size=(bars, 5)), columns=[f"f_{i}" for i in range(5)], index=index)
    drift = np.sign(X["f_0"].rolling(memory, min_periods=1).mean().to_numpy())
    ret = 0.01 * (rng.normal(size=bars) + signal_ * drift)
    width = np.full(bars, 0.01 * np.sqrt(HORIZON))
    total = np.concatenate([[0.0], np.cumsum(ret)])
    score = np.full(bars, np.nan)
    score[: bars - HORIZON] = (total[HORIZON:-1] - total[: bars - HORIZON]) / width[: bars - HORIZON]
    return X, pd.DataFrame({"label": np.sign(score), "score": score, "width": width, "next_ret": ret}, index=index)


def contents(model: TFTModel, folder: Path) -> dict[str, bytes]:
    model.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


ROWS = np.arange(10, 300)


@pytest.fixture(scope="module")
def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    return market(400, seed=1)


@pytest.fixture(scope="module")
def model(frames: tuple[pd.DataFrame, pd.DataFrame]) -> TFTModel:
    return TFTModel(config()).fit(*frames, ROWS)


# --- what it learns --------------------------------------------------------------------------------------------


def test_it_finds_what_a_single_row_does_not_hold() -> None:
    X, y = market(3600)
    train, test = np.arange(15, 3000), np.arange(3010, 3590)
    changes = {"encoder_length": 16, "decoder_steps": 1, "dropout": 0.0, "learning_rate": 0.01, "max_epochs": 6}
    sequence = TFTModel(config(**changes, patience=6)).fit(X, y, train)
    said = sequence.predict(X, test)["score"].to_numpy()
    came = y["score"].to_numpy()[test]
    found = np.corrcoef(said, came)[0, 1]
    best_of_a_row = max(abs(np.corrcoef(X[name].to_numpy()[test], came)[0, 1]) for name in X.columns)
    assert found > 0.3
    assert found > 1.8 * best_of_a_row
    assert sequence.feature_importance()["feature"][0] == "f_0"
    losses = sequence.training["validation_loss"]
    assert min(losses) < 0.95 * losses[0]
    assert losses[sequence.training["best_epoch"]] == min(losses)


def test_its_quantiles_are_kept_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    bars = 3500
    X = pd.DataFrame({"f": rng.normal(size=bars), "g": rng.normal(size=bars)}, index=T0 + BAR_MS * np.arange(bars))
    # the spread is known from f, and the noise is skewed, without an edge at which a hair would be a tenth of the rows
    score = (0.5 + (X["f"].to_numpy() > 0)) * (rng.gamma(3.0, size=bars) - 3.0) / np.sqrt(3.0)
    y = pd.DataFrame({"label": np.sign(score), "score": score, "width": 0.01, "next_ret": 0.01 * score}, index=X.index)
    changes = {"horizon": 1, "decoder_steps": 1, "encoder_length": 2, "dropout": 0.0, "learning_rate": 0.01}
    fit = TFTModel(config(**changes, batch_size=32, max_epochs=5)).fit(X, y, np.arange(1, 2500))
    test = np.arange(2600, bars)
    quantiles = fit.quantiles(X, test)
    for level in quantiles.columns:
        assert (score[test] < quantiles[level]).mean() == pytest.approx(level, abs=0.06)
    sd = fit.predict(X, test)["score_sd"].to_numpy()
    wide = X["f"].to_numpy()[test] > 0
    assert sd[wide].mean() > 1.8 * sd[~wide].mean()


# --- what it may not see ---------------------------------------------------------------------------------------


def test_nothing_after_the_last_label_changes_a_byte(frames: Any, model: TFTModel, tmp_path: Path) -> None:
    X, y = (frame.copy() for frame in frames)
    X.iloc[ROWS[-1] + 1 :] = 77.0
    y.iloc[ROWS[-1] + 1 :, [0, 1, 2]] = 99.0
    y.iloc[ROWS[-1] + HORIZON :, 3] = 99.0
    other = TFTModel(config()).fit(X, y, ROWS)
    assert contents(other, tmp_path / "a") == contents(model, tmp_path / "b")


def test_nothing_before_the_context_and_no_other_outcome_changes_a_byte(
    frames: Any, model: TFTModel, tmp_path: Path
) -> None:
    X, y = (frame.copy() for frame in frames)
    X.iloc[: ROWS[0] - model.context_bars] = -5.0
    y.iloc[: ROWS[0]] = np.nan
    y["label"] = 0.0
    other = TFTModel(config()).fit(X, y, ROWS)
    assert contents(other, tmp_path / "a") == contents(model, tmp_path / "b")


def test_outcomes_of_the_validation_choose_the_epoch_and_nothing_else(frames: Any) -> None:
    X, y = frames
    first = ROWS[-round(0.15 * len(ROWS))]
    changed = y.copy()
    flip = -changed.iloc[first + HORIZON : ROWS[-1] + 1, [1, 3]]
    changed.iloc[first + HORIZON : ROWS[-1] + 1, [1, 3]] = flip
    # the path must still lead to the score: with one step only the score is read
    one, two = (TFTModel(config(decoder_steps=1)).fit(X, o, ROWS) for o in (y, changed))
    assert one.training["train_loss"] == two.training["train_loss"]
    assert one.training["validation_loss"] != two.training["validation_loss"]
    np.testing.assert_array_equal(one.predict(X), two.predict(X))  # one epoch: no choice to make


def test_the_future_changes_no_forecast(frames: Any, model: TFTModel) -> None:
    X = frames[0].copy()
    whole = model.predict(X)
    X.iloc[201:] = 1e3
    pd.testing.assert_frame_equal(model.predict(X).iloc[:201], whole.iloc[:201])
    pd.testing.assert_frame_equal(model.predict(X.iloc[:201]), whole.iloc[:201])


# --- rows and bars ---------------------------------------------------------------------------------------------


def test_one_row_with_its_context_is_the_row_of_the_batch(frames: Any, model: TFTModel) -> None:
    X = frames[0]
    whole = model.predict(X)
    assert whole.iloc[: model.context_bars].isna().all(axis=None)
    assert whole.iloc[model.context_bars :].notna().all(axis=None)
    for at in (7, 8, 200, 399):
        alone = model.predict(X.iloc[at - model.context_bars : at + 1]).iloc[[-1]]
        pd.testing.assert_frame_equal(alone, whole.iloc[[at]], check_exact=True)
        pd.testing.assert_frame_equal(model.predict(X, np.array([at])), whole.iloc[[at]], check_exact=True)


def test_missing_bars(frames: Any, model: TFTModel) -> None:
    X = frames[0].iloc[:60]
    gone = [20, 21, 22]
    blank = X.copy()
    blank.iloc[gone] = np.nan
    absent = X.drop(X.index[gone])
    said = model.predict(blank)
    pd.testing.assert_frame_equal(model.predict(absent), said.drop(X.index[gone]), check_exact=True)
    # 2 of 8 bars may be unknown: three are inside the windows that end at 23 .. 27
    known = said["score"].notna().to_numpy()
    np.testing.assert_array_equal(np.flatnonzero(~known[7:]) + 7, [20, 21, 22, 23, 24, 25, 26, 27])


def test_bars_of_another_length_are_refused(frames: Any, model: TFTModel) -> None:
    X = frames[0].iloc[:30]
    with pytest.raises(FeatureMismatchError, match="whole bars of 7200000 ms"):
        model.predict(X.set_axis(T0 + 3_600_000 * np.arange(30)))
    with pytest.raises(FeatureMismatchError, match="must hold open times"):
        model.predict(X.set_axis(pd.to_datetime(X.index, unit="ms")))


@pytest.mark.parametrize(
    ("changes", "rows", "match"),
    [
        ({}, np.arange(10, 40), "can train and"),
        ({"horizon": 6, "decoder_steps": 3}, ROWS, "set tft.horizon"),
        ({"learning_rate": 1e30, "gradient_clip": 1e30}, ROWS, "lower tft.learning_rate"),
    ],
    ids=["few rows", "another horizon", "diverged"],
)
def test_what_cannot_train_says_why(frames: Any, changes: dict[str, Any], rows: np.ndarray, match: str) -> None:
    with pytest.raises(TrainingDataError, match=match):
        TFTModel(config(**changes)).fit(*frames, rows)


# --- explanations ----------------------------------------------------------------------------------------------


def test_explanations(frames: Any, model: TFTModel) -> None:
    X = frames[0]
    rows = np.array([3, 50, 60, 399])
    said, parts = model.predict(X, rows), model.explain(X, rows)
    assert list(parts.columns) == [*X.columns, "(base)"]
    np.testing.assert_allclose(parts.sum(axis=1, skipna=False), said["score"], atol=1e-12)
    assert parts.iloc[0].isna().all()
    table = model.feature_importance().set_index("feature")
    unread = table.index[table["splits"] == 0]
    assert len(unread) == 2
    assert (parts.iloc[1:][unread] == 0).all(axis=None)
    assert (parts.iloc[1:][table.index[table["splits"] == 1]] != 0).all(axis=None)
    assert 0 < table["gain"].sum() < 1
    attention = model.attention(X, rows)
    assert list(attention.columns) == [*range(-7, 1), 2]
    np.testing.assert_allclose(attention.iloc[1:].sum(axis=1), 1.0, atol=1e-12)
    assert attention.iloc[0].isna().all()


def test_a_feature_at_its_median_adds_nothing(frames: Any, model: TFTModel) -> None:
    X = frames[0].iloc[:20].copy()
    name = model.feature_importance()["feature"][0]
    X[name] = np.nan  # unknown counts as the median
    known = model.explain(X, np.array([19]))
    assert known[name].iloc[0] == 0.0


# --- bytes, other processes, other releases --------------------------------------------------------------------

_THERE = """
import sys, pathlib
import numpy as np, pandas as pd
from mlbot_core.config import TFTConfig
from mlbot_core.models import load_model
at = pathlib.Path(sys.argv[1])
X = pd.read_parquet(at / "x.parquet")
said = load_model(at / "model").predict(X)
said.to_parquet(at / "said.parquet")
heavy = {"torch", "lightning", "pytorch_lightning", "pytorch_forecasting", "sklearn"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""

_TRAIN = """
import sys, pathlib, torch
import numpy as np, pandas as pd
from mlbot_core.config import TFTConfig
from mlbot_core.models.tft import TFTModel
at = pathlib.Path(sys.argv[1])
torch.manual_seed(123)
X, y = pd.read_parquet(at / "x.parquet"), pd.read_parquet(at / "y.parquet")
config = TFTConfig.model_validate_json((at / "config.json").read_text())
TFTModel(config, threads=2).fit(X, y, np.arange(10, 300)).save(at / "there")
"""


def run(script: str, at: Path, **env: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script, str(at)], env={**os.environ, **env}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_another_process_trains_the_same_bytes(frames: Any, model: TFTModel, tmp_path: Path) -> None:
    for name, frame in zip("xy", frames, strict=True):
        frame.to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "config.json").write_text(config().model_dump_json())
    run(_TRAIN, tmp_path, OMP_NUM_THREADS="2", PYTHONHASHSEED="5")
    there = {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    assert there == contents(model, tmp_path / "here")


def test_a_forecast_needs_neither_torch_nor_what_trained_it(frames: Any, model: TFTModel, tmp_path: Path) -> None:
    frames[0].to_parquet(tmp_path / "x.parquet")
    model.save(tmp_path / "model")
    run(_THERE, tmp_path)
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "said.parquet"), model.predict(frames[0]), check_exact=True
    )


@pytest.fixture
def reseal(model: TFTModel, tmp_path: Path) -> Callable[..., Path]:
    """Return an artefact whose meta or weights were changed and sealed again."""
    from safetensors.numpy import load, save

    def change(meta: dict[str, Any] | None = None, drop: str | None = None, cut: str | None = None) -> Path:
        model.save(tmp_path / "good")
        kept, payload = read_artefact(tmp_path / "good")
        arrays = load(payload["weights.safetensors"])
        if drop:
            del arrays[drop]
        if cut:
            arrays[cut] = np.ascontiguousarray(arrays[cut][1:])
        rest = {k: v for k, v in kept.items() if k not in ("format", "files")}
        write_artefact(tmp_path / "bad", {"weights.safetensors": save(arrays)}, {**rest, **(meta or {})})
        return tmp_path / "bad"

    return change


def test_an_artefact_of_another_release_is_refused(reseal: Callable[..., Path], model: TFTModel) -> None:
    for name in ("torch", "pytorch-forecasting"):
        libraries = {**model._trained_with, name: "0.1"}
        folder = reseal(meta={"libraries": libraries})
        with pytest.raises(LibraryMismatchError, match=rf"{name} 0\.1"):
            TFTModel.load(folder)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"meta": {"architecture": "another"}}, "holds a network like 'another'"),
        ({"drop": "encoder.flat.w1"}, r"disagree on encoder\.flat\.w1"),
        ({"cut": "bo"}, "disagree on bo"),
        ({"cut": "scaling.center"}, "the number of features"),
        ({"meta": {"features": ["f_1", "f_0", "f_2", "f_3", "f_4"]}}, "other features"),
        ({"meta": {"params": {"hidden_size": 5}}}, "not a usable model"),
    ],
)
def test_an_artefact_that_contradicts_itself_is_refused(
    reseal: Callable[..., Path], change: dict[str, Any], match: str
) -> None:
    with pytest.raises(ArtefactError, match=match):
        TFTModel.load(reseal(**change))


def test_the_artefact_says_what_was_read(model: TFTModel, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"weights.safetensors", META}
    meta = json.loads((tmp_path / "m" / META).read_text())
    table = model.feature_importance()
    assert sorted(meta["chosen"]) == sorted(table.loc[table["splits"] == 1, "feature"])
    assert meta["training"]["rows"] + meta["training"]["validation_rows"] + meta["training"]["left_out"] == len(ROWS)
    assert meta["bar_ms"] == BAR_MS


# --- manners ---------------------------------------------------------------------------------------------------


def state_of_the_process() -> dict[str, Any]:
    import torch

    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "random": (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()),  # noqa: NPY002
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "environment": dict(os.environ),
        "logs": [logging.getLogger(n).level for n in ("", "lightning.pytorch", "lightning.fabric")],
        "filters": list(warnings.filters),
    }


def test_training_leaves_the_process_as_it_was(
    frames: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = state_of_the_process()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        fit = TFTModel(config()).fit(*frames, ROWS)
        fit.predict(frames[0])
    assert state_of_the_process() == before
    assert [str(w.message) for w in heard] == []
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_gets_through(frames: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlbot_core.models import tft_train

    seen = []
    whole = tft_train.Batches.batch

    def interrupted(self: Any, at: Any) -> Any:
        seen.append(len(at))
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        return whole(self, at)

    # importing the libraries for the first time draws random numbers and sets variables of its own
    TFTModel(config()).fit(*frames, ROWS)
    # a process that a shell starts in the background ignores Ctrl-C from birth
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(tft_train.Batches, "batch", interrupted)
    before = state_of_the_process()
    with pytest.raises(KeyboardInterrupt):
        TFTModel(config()).fit(*frames, ROWS)
    assert len(seen) == 2
    assert state_of_the_process() == before
    monkeypatch.undo()
    signal.signal(signal.SIGINT, handler)
    TFTModel(config()).fit(*frames, ROWS)  # and the next training is not locked out


def test_two_threads_train_one_after_the_other(frames: Any, model: TFTModel, tmp_path: Path) -> None:
    made: list[TFTModel] = []
    workers = [threading.Thread(target=lambda: made.append(TFTModel(config()).fit(*frames, ROWS))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    expected = contents(model, tmp_path / "model")
    assert [contents(one, tmp_path / str(i)) for i, one in enumerate(made)] == [expected, expected]


def test_columns_of_the_forecast(frames: Any, model: TFTModel) -> None:
    said = model.predict(frames[0], np.array([], dtype=np.int64))
    assert list(said.columns) == list(FORECAST)
    assert len(said) == 0
    assert len(model.explain(frames[0], np.array([], dtype=np.int64))) == 0
