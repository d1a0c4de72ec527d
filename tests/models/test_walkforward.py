"""Walk-forward training: it finds what is there, finds nothing where nothing is, and refuses to look ahead."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlbot_core.models import DirectionModel, FrameError, LeakError, TrainingDataError, WalkForwardResult, walk_forward
from mlbot_core.validation.significance import wilson_interval

Make = Callable[..., DirectionModel]


def _run(data: Any, folds: Any, make_model: Make, **options: Any) -> WalkForwardResult:
    return walk_forward(data.features, data.targets, folds, make_model, model_version="v1", **options)


@pytest.fixture(scope="module")
def planted(made: Any, make_folds: Any, make_model: Make) -> tuple[Any, list[Any], WalkForwardResult]:
    data = made(2400, 1.0, 31)
    folds = make_folds(data, 1200, 200)
    return data, folds, _run(data, folds, make_model)


def test_a_planted_signal_is_found(planted: tuple[Any, list[Any], WalkForwardResult]) -> None:
    _, folds, result = planted
    assert len(result.fold_table) == len(folds) == 6
    assert wilson_interval(result.hits, result.directional_rows, 0.99).low > 0.6
    assert (result.fold_table["log_loss"] < result.fold_table["base_log_loss"]).all()
    assert result.importance["feature"][0] == "f_0"
    assert result.importance["gain_share"][0] > 0.3
    assert result.importance["gain_share"].sum() == pytest.approx(1.0)


@pytest.mark.parametrize("seed", [41, 42, 43])
def test_in_noise_nothing_is_found(seed: int, made: Any, make_folds: Any, make_model: Make) -> None:
    data = made(2400, 0.0, seed)
    result = _run(data, make_folds(data, 1200, 200), make_model)
    interval = wilson_interval(result.hits, result.directional_rows, 0.99)
    assert interval.low <= 0.5 <= interval.high
    assert result.fold_table["log_loss"].mean() > result.fold_table["base_log_loss"].mean()


def test_the_tables_have_the_promised_shape(planted: tuple[Any, list[Any], WalkForwardResult]) -> None:
    data, folds, result = planted
    f = result.forecasts
    assert list(f.columns) == ["ts", "fold", "p_down", "p_neutral", "p_up", "train_end_ms", "model_version"]
    assert f["ts"].dtype == f["fold"].dtype == f["train_end_ms"].dtype == np.int64
    assert f["ts"].is_monotonic_increasing
    assert f["ts"].is_unique
    # Rows whose label is still open are forecast like all others.
    np.testing.assert_array_equal(f["ts"], data.features["ts"].iloc[1200:])
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


def test_hit_rate_and_log_loss_by_hand(planted: tuple[Any, list[Any], WalkForwardResult], make_model: Make) -> None:
    data, folds, result = planted
    fold = folds[-1]  # its last labels are open
    names = [c for c in data.features.columns if c != "ts"]
    label = data.targets["tb_label"].to_numpy()
    model = make_model().fit(data.features.iloc[fold.train_idx][names], label[fold.train_idx])
    p = model.predict_proba(data.features.iloc[fold.test_idx][names]).to_numpy()
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
    planted: tuple[Any, list[Any], WalkForwardResult], make_model: Make
) -> None:
    data, folds, result = planted
    cut = int(folds[2].test_idx[-1]) + 1
    head = dataclasses.replace(data, features=data.features.iloc[:cut], targets=data.targets.iloc[:cut])
    early = _run(head, folds[:3], make_model)
    pd.testing.assert_frame_equal(early.forecasts, result.forecasts.iloc[: len(early.forecasts)], check_exact=True)


# --- leaks -----------------------------------------------------------------------------------------------------


def test_a_fold_with_an_unpurged_label_is_refused(made: Any, make_folds: Any, make_model: Make) -> None:
    data = made(800, 1.0, 51)
    folds = make_folds(data, 500, 100)
    clean = folds[1].train_idx
    late = next(i for i in range(int(folds[1].test_idx[0]) - 1, 0, -1) if i not in clean)
    folds[1] = dataclasses.replace(folds[1], train_idx=np.r_[clean, late])
    fitted: list[int] = []
    with pytest.raises(LeakError, match=r"fold 1: 1 training labels were settled after .* purge the folds"):
        _run(data, folds, make_model, progress=lambda done, of, row: fitted.append(done))
    assert fitted == []  # refused before anything was trained
    # The boundary: settled exactly when the test begins is known by then; one millisecond later is not.
    last = int(clean[-1])
    folds = make_folds(data, 500, 100)
    for shift, leaks in ((0, False), (1, True)):
        targets = data.targets.copy()
        targets.loc[last, "tb_t1"] = folds[1].test_start_ms + shift
        edited = dataclasses.replace(data, targets=targets)
        if leaks:
            with pytest.raises(LeakError, match="fold 1"):
                _run(edited, folds[1:2], make_model)
        else:
            _run(edited, folds[1:2], make_model)


def test_a_fold_that_trains_on_its_test_or_later_is_refused(made: Any, make_folds: Any, make_model: Make) -> None:
    data = made(800, 1.0, 52)
    fold = make_folds(data, 500, 100)[0]
    for extra in (fold.test_idx[:1], np.array([700])):
        with pytest.raises(LeakError):
            _run(data, [dataclasses.replace(fold, train_idx=np.r_[fold.train_idx, extra])], make_model)
    # A test that claims to begin later than it does would let unsettled labels through.
    with pytest.raises(LeakError, match="says its test begins at"):
        _run(data, [dataclasses.replace(fold, test_start_ms=fold.test_start_ms + 1)], make_model)
    # An open label does not train, but its bar in the test's future is a broken fold all the same.
    targets = data.targets.assign(tb_label=data.targets["tb_label"].where(data.targets.index != 700))
    broken = dataclasses.replace(fold, train_idx=np.r_[fold.train_idx, 700])
    with pytest.raises(LeakError, match="not before its first test bar"):
        _run(dataclasses.replace(data, targets=targets), [broken], make_model)


def test_a_leak_would_have_been_found_profitable(made: Any, make_folds: Any, make_model: Make) -> None:
    """The null of this module: a feature that IS the label scores; the same run without it does not."""
    data = made(1400, 0.0, 53)
    cheat = data.features.assign(f_9=data.targets["tb_label"].fillna(0.0))
    folds = make_folds(data, 1000, 200)
    honest = _run(data, folds, make_model)
    cheated = _run(dataclasses.replace(data, features=cheat), folds, make_model)
    assert cheated.hits / cheated.directional_rows > 0.95
    assert honest.hits / honest.directional_rows < 0.6


# --- rows, weights, models -------------------------------------------------------------------------------------


def test_rows_without_features_or_label_do_not_train_and_have_no_forecast(
    made: Any, make_folds: Any, make_model: Make
) -> None:
    data = made(800, 1.0, 61)
    names = [c for c in data.features.columns if c != "ts"]
    features, targets = data.features.copy(), data.targets.copy()
    features.loc[10:19, names] = np.nan
    features.loc[550:554, names] = np.nan
    targets.loc[30:34, ["tb_label", "tb_t1"]] = np.nan
    edited = dataclasses.replace(data, features=features, targets=targets)
    folds = make_folds(data, 500, 100)
    result = _run(edited, folds, make_model)
    row = result.fold_table.iloc[0]
    assert row["train_rows"] == len(folds[0].train_idx) - 15
    assert row["forecast_rows"] == row["test_rows"] - 5 == 95
    missing = result.forecasts[result.forecasts["p_up"].isna()]
    np.testing.assert_array_equal(missing["ts"], features["ts"].iloc[550:555])
    # They train nothing: another value of their labels changes nothing.
    targets.loc[10:19, "tb_label"] = 1.0
    pd.testing.assert_frame_equal(_run(edited, folds, make_model).forecasts, result.forecasts, check_exact=True)


def test_weights_go_with_their_rows(made: Any, make_folds: Any, make_model: Make) -> None:
    data = made(800, 0.0, 62)
    folds = make_folds(data, 500, 100)
    weight = np.where(data.targets["tb_label"] == 1, 6.0, 1.0)
    plain, heavy = _run(data, folds, make_model), _run(data, folds, make_model, weights=weight)
    assert heavy.forecasts["p_up"].mean() > plain.forecasts["p_up"].mean() + 0.1
    with pytest.raises(TrainingDataError, match="weights of shape"):
        _run(data, folds, make_model, weights=weight[:-1])
    # Made per fold, from the rows that train it and no others.
    asked: list[np.ndarray] = []

    def per_fold(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return weight[rows]

    again = _run(data, folds, make_model, weights=per_fold)
    pd.testing.assert_frame_equal(again.forecasts, heavy.forecasts, check_exact=True)
    for rows, fold in zip(asked, folds, strict=True):
        np.testing.assert_array_equal(rows, fold.train_idx)
    with pytest.raises(TrainingDataError, match=r"fold 0 .*weights of shape"):
        _run(data, folds, make_model, weights=lambda rows: np.ones(3))


def test_final_model_progress_and_fold_models(made: Any, make_folds: Any, make_model: Make) -> None:
    data = made(800, 1.0, 63)
    folds = make_folds(data, 500, 100)
    steps: list[tuple[int, int, int]] = []
    models: dict[int, DirectionModel] = {}
    result = _run(
        data,
        folds,
        make_model,
        progress=lambda done, of, row: steps.append((done, of, row["fold"])),
        on_model=models.__setitem__,
        final_idx=np.arange(800),
        feature_names=["f_0", "f_1"],
    )
    assert steps == [(1, 3, 0), (2, 3, 1), (3, 3, 2)]
    assert result.final_model is not None
    assert result.final_model.feature_names == ("f_0", "f_1")
    x = data.features[["f_0", "f_1"]]
    label = data.targets["tb_label"].to_numpy()
    expected = make_model().fit(x[~np.isnan(label)], label[~np.isnan(label)]).predict_proba(x)
    pd.testing.assert_frame_equal(result.final_model.predict_proba(x), expected, check_exact=True)
    for fold in folds:
        p = models[fold.index].predict_proba(x.iloc[fold.test_idx]).to_numpy()
        got = result.forecasts.loc[result.forecasts["fold"] == fold.index, ["p_down", "p_neutral", "p_up"]]
        np.testing.assert_array_equal(got.to_numpy(), p)


def test_inputs_that_do_not_fit_are_refused(made: Any, make_folds: Any, make_model: Make) -> None:
    data = made(800, 1.0, 64)
    folds = make_folds(data, 500, 100)

    def refused(error: type[Exception], words: str, folds: Any = folds, **change: Any) -> None:
        with pytest.raises(error, match=words):
            _run(dataclasses.replace(data, **change), folds, make_model)

    refused(TrainingDataError, "no folds", folds=[])
    refused(FrameError, "lack the columns tb_label", targets=data.targets.drop(columns="tb_label"))
    refused(FrameError, "do not hold the same bars", targets=data.targets.iloc[1:])
    twice = {"features": data.features.iloc[[0, 0, 1]], "targets": data.targets.iloc[[0, 0, 1]]}
    refused(FrameError, "repeated or out of order", **twice)
    refused(FrameError, "which is not after it", targets=data.targets.assign(tb_t1=np.nan))
    refused(FrameError, "tests bars that were tested before", folds=[folds[0], folds[0]])
    refused(FrameError, r"test rows 900\.\.900", folds=[dataclasses.replace(folds[0], test_idx=np.array([900]))])
    refused(FrameError, "tests no rows", folds=[dataclasses.replace(folds[0], test_idx=np.array([], dtype=np.int64))])
    refused(
        TrainingDataError,
        "fold 0: none of the 0 training rows",
        folds=[dataclasses.replace(folds[0], train_idx=np.array([], dtype=np.int64))],
    )
    flat = data.targets.assign(tb_label=data.targets["tb_label"].where(data.targets["tb_label"].isna(), 1.0))
    refused(TrainingDataError, r"fold 0 \(test from 2023-.*\): all \d+ labels are 1", targets=flat)
