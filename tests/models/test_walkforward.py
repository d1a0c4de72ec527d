"""Walk-forward training: it finds what is there, finds nothing where nothing is, and refuses to look ahead."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from mlbot_core.config import LightGBMConfig, load_settings
from mlbot_core.models import ArtefactError, FrameError, LeakError, Model, TrainingDataError, WalkForwardResult
from mlbot_core.models import walk_forward as walk
from mlbot_core.models.base import FORECAST
from mlbot_core.models.fold_store import FoldStore
from mlbot_core.models.lightgbm import LightGBMModel
from mlbot_core.validation.significance import wilson_interval

BAR_MS = 7_200_000
START_MS = 1_700_006_400_000


@dataclass(frozen=True)
class MadeFold:
    """A fold by hand; the walk-forward takes anything with these attributes."""

    index: int
    train_idx: npt.NDArray[np.int64]
    test_idx: npt.NDArray[np.int64]
    train_start_ms: int
    train_end_ms: int
    test_start_ms: int
    test_end_ms: int


@dataclass(frozen=True)
class Made:
    """Aligned features and outcomes."""

    X: pd.DataFrame
    y: pd.DataFrame
    horizon: int


def build(n: int, signal: float, seed: int, horizon: int = 6) -> Made:
    """Build ``n`` two-hour bars with 10 features; ``signal`` scales how much f_0 decides the outcome, 0 for none."""
    generator = np.random.default_rng(seed)
    ts = START_MS + BAR_MS * np.arange(n, dtype=np.int64)
    index = pd.Index(ts, name="ts")
    X = pd.DataFrame(generator.normal(size=(n, 10)), columns=[f"f_{i}" for i in range(10)], index=index)
    score = signal * X["f_0"].to_numpy() + generator.normal(size=n)
    label = np.where(score > 0.5, 1.0, np.where(score < -0.5, -1.0, 0.0))
    t1 = ts + BAR_MS * (1 + generator.integers(1, horizon + 1, n))
    label[-horizon:] = score[-horizon:] = np.nan
    y = pd.DataFrame(
        {"label": label, "score": score, "width": 0.01, "next_ret": generator.normal(0, 0.003, n), "t1": t1},
        index=index,
    )
    return Made(X, y, horizon)


def folds_of(data: Made, first: int, test: int) -> list[MadeFold]:
    """Expanding folds of ``test`` rows after ``first`` rows, purged by the labels' ends."""
    ts, t1 = data.X.index.to_numpy(), data.y["t1"].to_numpy()
    folds = []
    for start in range(first, len(ts) - test + 1, test):
        begin = int(ts[start])
        train = np.flatnonzero((ts < begin) & (t1 <= begin))
        span = (int(ts[train[0]]), int(ts[train[-1]]), begin, int(ts[start + test - 1]) + BAR_MS)
        folds.append(MadeFold(len(folds), train, np.arange(start, start + test), *span))
    return folds


@pytest.fixture(scope="module")
def make() -> Callable[[], Model]:
    config = load_settings({"MLBOT_THREADS": "1"}).models.lightgbm
    small = LightGBMConfig.model_validate(
        {**config.model_dump(), "n_estimators": 40, "num_leaves": 7, "min_child_samples": 30}
    )
    return lambda: LightGBMModel(small, 1)


def _run(data: Made, folds: Any, make: Callable[[], Model], **options: Any) -> WalkForwardResult:
    return walk(data.X, data.y, folds, make, model_version="v1", **options)


@pytest.fixture(scope="module")
def planted(make: Callable[[], Model]) -> tuple[Made, list[MadeFold], WalkForwardResult]:
    data = build(2400, 1.0, 31)
    folds = folds_of(data, 1200, 200)
    return data, folds, _run(data, folds, make)


def test_a_planted_signal_is_found(planted: tuple[Made, list[MadeFold], WalkForwardResult]) -> None:
    _, folds, result = planted
    assert len(result.fold_table) == len(folds) == 6
    assert wilson_interval(result.hits, result.directional_rows, 0.99).low > 0.6
    assert (result.fold_table["log_loss"] < result.fold_table["base_log_loss"]).all()
    assert result.importance["feature"][0] == "f_0"
    assert result.importance["gain_share"][0] > 0.3
    assert result.importance["gain_share"].sum() == pytest.approx(1.0)


@pytest.mark.parametrize("seed", [41, 42, 43])
def test_in_noise_nothing_is_found(seed: int, make: Callable[[], Model]) -> None:
    data = build(2400, 0.0, seed)
    result = _run(data, folds_of(data, 1200, 200), make)
    interval = wilson_interval(result.hits, result.directional_rows, 0.99)
    assert interval.low <= 0.5 <= interval.high
    assert result.fold_table["log_loss"].mean() > result.fold_table["base_log_loss"].mean()


def test_the_tables_have_the_promised_shape(planted: tuple[Made, list[MadeFold], WalkForwardResult]) -> None:
    data, folds, result = planted
    f = result.forecasts
    assert list(f.columns) == ["ts", "fold", *FORECAST, "train_end_ms", "model_version"]
    assert f["ts"].dtype == f["fold"].dtype == f["train_end_ms"].dtype == np.int64
    assert f["ts"].is_monotonic_increasing
    assert f["ts"].is_unique
    # Rows whose label is still open are forecast like all others.
    np.testing.assert_array_equal(f["ts"], data.X.index[1200:])
    assert (f["model_version"] == "v1").all()
    assert result.final_model is None
    t = result.fold_table.set_index("fold")
    for fold in folds:
        row = t.loc[fold.index]
        assert row["train_rows"] == len(fold.train_idx)
        assert row["test_rows"] == row["forecast_rows"] == len(fold.test_idx)
        assert row["last_label_ms"] <= row["test_start_ms"] == fold.test_start_ms
        assert row["hit_rate"] == row["hits"] / row["directional_rows"]
        assert (f.loc[f["fold"] == fold.index, "train_end_ms"] == fold.train_end_ms).all()


def test_hit_rate_and_log_loss_by_hand(
    planted: tuple[Made, list[MadeFold], WalkForwardResult], make: Callable[[], Model]
) -> None:
    data, folds, result = planted
    fold = folds[-1]  # its last labels are open
    label = data.y["label"].to_numpy()
    model = make().fit(data.X, data.y, fold.train_idx)
    said = model.predict(data.X, fold.test_idx)
    p = said[["p_down", "p_neutral", "p_up"]].to_numpy()
    got = result.forecasts[result.forecasts["fold"] == fold.index]
    np.testing.assert_array_equal(got[["p_down", "p_neutral", "p_up"]].to_numpy(), p)
    hits = tries = scored = 0
    loss = 0.0
    for (down, neutral, up), truth in zip(p, label[fold.test_idx], strict=True):
        if np.isnan(truth):
            continue
        scored += 1
        loss -= np.log({-1.0: down, 0.0: neutral, 1.0: up}[truth])
        if truth:
            tries += 1
            hits += (up > down) == (truth > 0)
    row = result.fold_table.iloc[-1]
    assert scored == len(fold.test_idx) - data.horizon
    assert (row["hits"], row["directional_rows"]) == (hits, tries)
    assert row["log_loss"] == pytest.approx(loss / scored, rel=1e-12)


def test_what_comes_later_changes_no_earlier_forecast(
    planted: tuple[Made, list[MadeFold], WalkForwardResult], make: Callable[[], Model]
) -> None:
    data, folds, result = planted
    cut = int(folds[2].test_idx[-1]) + 1
    head = dataclasses.replace(data, X=data.X.iloc[:cut], y=data.y.iloc[:cut])
    early = _run(head, folds[:3], make)
    pd.testing.assert_frame_equal(early.forecasts, result.forecasts.iloc[: len(early.forecasts)], check_exact=True)


# --- leaks -----------------------------------------------------------------------------------------------------


def test_a_fold_with_an_unpurged_label_is_refused(make: Callable[[], Model]) -> None:
    data = build(800, 1.0, 51)
    folds = folds_of(data, 500, 100)
    clean = folds[1].train_idx
    late = next(i for i in range(int(folds[1].test_idx[0]) - 1, 0, -1) if i not in clean)
    folds[1] = dataclasses.replace(folds[1], train_idx=np.r_[clean, late])
    fitted: list[int] = []
    with pytest.raises(LeakError, match=r"fold 1: 1 training labels were settled after .* purge the folds"):
        _run(data, folds, make, progress=lambda done, of, row: fitted.append(done))
    assert fitted == []  # refused before anything was trained
    # The boundary: settled exactly when the test begins is known by then; one millisecond later is not.
    last = int(clean[-1])
    folds = folds_of(data, 500, 100)
    for shift, leaks in ((0, False), (1, True)):
        y = data.y.copy()
        y.loc[y.index[last], "t1"] = folds[1].test_start_ms + shift
        edited = dataclasses.replace(data, y=y)
        if leaks:
            with pytest.raises(LeakError, match="fold 1"):
                _run(edited, folds[1:2], make)
        else:
            _run(edited, folds[1:2], make)


def test_a_fold_that_trains_on_its_test_or_later_is_refused(make: Callable[[], Model]) -> None:
    data = build(800, 1.0, 52)
    fold = folds_of(data, 500, 100)[0]
    for extra in (fold.test_idx[:1], np.array([700])):
        with pytest.raises(LeakError):
            _run(data, [dataclasses.replace(fold, train_idx=np.r_[fold.train_idx, extra])], make)
    # A test that claims to begin later than it does would let unsettled labels through.
    with pytest.raises(LeakError, match="says its test begins at"):
        _run(data, [dataclasses.replace(fold, test_start_ms=fold.test_start_ms + 1)], make)
    # An open label does not train, but its bar in the test's future is a broken fold all the same.
    y = data.y.assign(label=data.y["label"].where(np.arange(len(data.y)) != 700))
    broken = dataclasses.replace(fold, train_idx=np.r_[fold.train_idx, 700])
    with pytest.raises(LeakError, match="not before its first test bar"):
        _run(dataclasses.replace(data, y=y), [broken], make)


def test_a_leak_would_have_been_found_profitable(make: Callable[[], Model]) -> None:
    """The null of this module: a feature that IS the label scores; the same run without it does not."""
    data = build(1400, 0.0, 53)
    cheat = data.X.assign(f_9=data.y["label"].fillna(0.0))
    folds = folds_of(data, 1000, 200)
    honest = _run(data, folds, make)
    cheated = _run(dataclasses.replace(data, X=cheat), folds, make)
    assert cheated.hits / cheated.directional_rows > 0.95
    assert honest.hits / honest.directional_rows < 0.6


# --- rows, weights, models -------------------------------------------------------------------------------------


def test_rows_without_features_or_label_do_not_train_and_have_no_forecast(make: Callable[[], Model]) -> None:
    data = build(800, 1.0, 61)
    X, y = data.X.copy(), data.y.astype({"t1": "float64"})
    X.iloc[10:20] = np.nan
    X.iloc[550:555] = np.nan
    y.loc[y.index[30:35], ["label", "t1"]] = np.nan
    edited = dataclasses.replace(data, X=X, y=y)
    folds = folds_of(data, 500, 100)
    result = _run(edited, folds, make)
    row = result.fold_table.iloc[0]
    assert row["train_rows"] == len(folds[0].train_idx) - 15
    assert row["forecast_rows"] == row["test_rows"] - 5 == 95
    missing = result.forecasts[result.forecasts["p_up"].isna()]
    np.testing.assert_array_equal(missing["ts"], X.index[550:555])
    # They train nothing: another value of their labels changes nothing.
    y.loc[y.index[10:20], "label"] = 1.0
    pd.testing.assert_frame_equal(_run(edited, folds, make).forecasts, result.forecasts, check_exact=True)


def test_weights_go_with_their_rows(make: Callable[[], Model]) -> None:
    data = build(800, 0.0, 62)
    folds = folds_of(data, 500, 100)
    weight = np.where(data.y["label"] == 1, 6.0, 1.0)
    asked: list[np.ndarray] = []

    def per_fold(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return weight[rows]

    plain, heavy = _run(data, folds, make), _run(data, folds, make, weights=per_fold)
    assert heavy.forecasts["p_up"].mean() > plain.forecasts["p_up"].mean() + 0.1
    # asked per fold, of the rows that train it and no others
    for rows, fold in zip(asked, folds, strict=True):
        np.testing.assert_array_equal(rows, fold.train_idx)
    with pytest.raises(TrainingDataError, match=r"fold 0 .*weights of shape"):
        _run(data, folds, make, weights=lambda rows: np.ones(3))


def test_final_model_and_progress(make: Callable[[], Model]) -> None:
    data = build(800, 1.0, 63)
    folds = folds_of(data, 500, 100)
    steps: list[tuple[int, int, int]] = []
    result = _run(
        data,
        folds,
        make,
        progress=lambda done, of, row: steps.append((done, of, row["fold"])),
        final_idx=np.arange(800),
    )
    assert steps == [(1, 3, 0), (2, 3, 1), (3, 3, 2)]
    assert result.final_model is not None
    expected = make().fit(data.X, data.y, np.flatnonzero(data.y["label"].notna())).predict(data.X)
    pd.testing.assert_frame_equal(result.final_model.predict(data.X), expected, check_exact=True)


@pytest.mark.parametrize("jobs", [2, 8])
def test_folds_side_by_side_give_the_same(make: Callable[[], Model], jobs: int) -> None:
    data = build(800, 1.0, 65)
    folds = folds_of(data, 300, 100)
    one, many = _run(data, folds, make), _run(data, folds, make, jobs=jobs)
    pd.testing.assert_frame_equal(one.forecasts, many.forecasts, check_exact=True)
    pd.testing.assert_frame_equal(one.fold_table, many.fold_table, check_exact=True)
    pd.testing.assert_frame_equal(one.importance, many.importance, check_exact=True)
    flat = data.y.assign(label=data.y["label"].where(data.y["label"].isna(), 1.0))
    with pytest.raises(TrainingDataError, match="labels are 1"):
        _run(dataclasses.replace(data, y=flat), folds, make, jobs=jobs)


def test_a_run_that_stopped_goes_on_after_the_folds_it_had(make: Callable[[], Model], tmp_path: Path) -> None:
    data = build(800, 1.0, 66)
    folds = folds_of(data, 400, 100)
    store = FoldStore(tmp_path, "v1")
    fitted: list[int] = []

    class Counting(LightGBMModel):
        def fit(self, *args: Any, **options: Any) -> Any:
            fitted.append(1)
            return super().fit(*args, **options)

    def counting() -> Model:
        model = make()
        model.__class__ = Counting
        return model

    class Killed(Exception):
        pass

    def stop(done: int, of: int, row: dict[str, Any]) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        _run(data, folds, counting, store=store, progress=stop, final_idx=np.arange(700))
    assert len(fitted) == 2
    resumed = _run(data, folds, counting, store=store, final_idx=np.arange(700))
    assert len(fitted) == 5  # two folds more and the final model
    fresh = _run(data, folds, make, store=FoldStore(tmp_path / "other", "v1"), final_idx=np.arange(700))
    pd.testing.assert_frame_equal(resumed.forecasts, fresh.forecasts, check_exact=True)
    for fold in (None, 0, 1, 2, 3):
        here, there = store.path(fold), FoldStore(tmp_path / "other", "v1").path(fold)
        assert {p.name: p.read_bytes() for p in here.iterdir()} == {p.name: p.read_bytes() for p in there.iterdir()}
    # a fold that was damaged meanwhile is not used, and nothing of the run is stored over it
    (store.path(1) / "model.txt").write_bytes(b"tree")
    with pytest.raises(ArtefactError, match="changed or truncated"):
        _run(data, folds, make, store=store)
    shutil.rmtree(store.path(1))
    pd.testing.assert_frame_equal(_run(data, folds, make, store=store).forecasts, fresh.forecasts, check_exact=True)


def test_a_model_is_handed_nothing_after_its_rows(make: Callable[[], Model]) -> None:
    data = build(800, 1.0, 67)
    folds = folds_of(data, 500, 100)
    seen: list[tuple[str, int, int]] = []

    class Watching(LightGBMModel):
        context_bars = 7

        def fit(self, X: pd.DataFrame, y: pd.DataFrame, rows: Any = None, weight: Any = None) -> Any:
            seen.append(("fit", int(X.index[0]), int(X.index[-1])))
            assert X.index.equals(y.index)
            return super().fit(X, y, rows, weight)

        def predict(self, X: pd.DataFrame, rows: Any = None) -> pd.DataFrame:
            seen.append(("predict", int(X.index[0]), int(X.index[-1])))
            return super().predict(X, rows)

    def watching() -> Model:
        model = make()
        model.__class__ = Watching
        return model

    _run(data, folds, watching)
    ts = data.X.index
    for fold, (fit, predict) in zip(folds, zip(seen[::2], seen[1::2], strict=True), strict=True):
        assert fit == ("fit", ts[max(0, fold.train_idx[0] - 7)], ts[fold.train_idx[-1]])
        assert predict == ("predict", ts[fold.test_idx[0] - 7], ts[fold.test_idx[-1]])


def test_inputs_that_do_not_fit_are_refused(make: Callable[[], Model]) -> None:
    data = build(800, 1.0, 64)
    folds = folds_of(data, 500, 100)

    def refused(error: type[Exception], words: str, folds: Any = folds, **change: Any) -> None:
        with pytest.raises(error, match=words):
            _run(dataclasses.replace(data, **change), folds, make)

    refused(TrainingDataError, "no folds", folds=[])
    refused(FrameError, "lack the columns label", y=data.y.drop(columns="label"))
    refused(FrameError, "do not hold the same bars", y=data.y.iloc[1:])
    twice = {"X": data.X.iloc[[0, 0, 1]], "y": data.y.iloc[[0, 0, 1]]}
    refused(FrameError, "repeated or out of order", **twice)
    refused(FrameError, "which is not after it", y=data.y.assign(t1=np.nan))
    refused(FrameError, "tests bars that were tested before", folds=[folds[0], folds[0]])
    refused(FrameError, r"test rows 900\.\.900", folds=[dataclasses.replace(folds[0], test_idx=np.array([900]))])
    refused(FrameError, "tests no rows", folds=[dataclasses.replace(folds[0], test_idx=np.array([], dtype=np.int64))])
    refused(
        TrainingDataError,
        "fold 0: none of the 0 training rows",
        folds=[dataclasses.replace(folds[0], train_idx=np.array([], dtype=np.int64))],
    )
    flat = data.y.assign(label=data.y["label"].where(data.y["label"].isna(), 1.0))
    refused(TrainingDataError, r"fold 0 \(test from 2023-.*\): all \d+ labels are 1", y=flat)
