"""The search for parameters: it uses the past only, counts every trial, survives a kill, and judges by money."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from mlbot_core.clock import FixedClock
from mlbot_core.config import FeesConfig, ModelsConfig, load_settings
from mlbot_core.config.tuning import RangeConfig
from mlbot_core.errors import MissingDataError, UsageError
from mlbot_core.models.training_data import TrainingSet, TrainRequest
from mlbot_core.research.tuning import Tuned, net_daily_returns, tune, yearly_utility
from mlbot_core.research.tuning_plot import tuning_png
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market
from mlbot_core.validation.trials import TrialLedger

MARKET = Market.parse("BTC-4h")
BAR = 4 * HOUR_MS
START = 1_600_041_600_000 - 1_600_041_600_000 % DAY_MS
FEES = FeesConfig(taker_bp=5.5, maker_bp=2.0, slippage_bp=2.0)
REQUEST = TrainRequest("archive", MARKET, "ridge", None, None, 0, 0, 1, "run")


def market(days: int, seed: int, signal_sd: float = 0.004) -> TrainingSet:
    """A market whose next twelve bars lean with a slow feature; 5 % of the rows have no features."""
    rng = np.random.default_rng(seed)
    n, horizon = 6 * days, 12
    ts = START + BAR * np.arange(n, dtype=np.int64)
    slow = np.zeros(n)
    for i in range(1, n):
        slow[i] = 0.95 * slow[i - 1] + np.sqrt(1 - 0.95**2) * rng.normal()
    move = np.r_[signal_sd * slow[:-1], 0.0] + 0.01 * rng.normal(size=n)
    ahead = np.full(n, np.nan)
    ahead[: n - horizon] = [move[i : i + horizon].sum() for i in range(n - horizon)]
    index = pd.Index(ts, name="ts")
    X = pd.DataFrame(rng.normal(size=(n, 6)), columns=[f"f_{i}" for i in range(6)], index=index)
    X["f_0"] = slow
    usable = rng.random(n) > 0.05
    X[~usable] = np.nan
    width = 0.01 * np.sqrt(horizon)
    y = pd.DataFrame(
        {
            "label": np.sign(ahead) * (np.abs(ahead) > width),
            "score": ahead / width,
            "width": width,
            "next_ret": move,
            "t1": np.where(np.isnan(ahead), -1, ts + BAR * (1 + horizon)),
        },
        index=index,
    )
    return TrainingSet(X, y, ts + BAR, usable, {"features": "v1"}, "f00d")


def configured(**change: Any) -> ModelsConfig:
    models = load_settings({"MLBOT_THREADS": "1"}).models
    return models.model_copy(update={"tuning": models.tuning.model_copy(update=change)})


def search(home: Path, data: TrainingSet, test_day: int, trials: int, models: ModelsConfig | None = None) -> Tuned:
    ledger = TrialLedger(home, FixedClock(START + 900 * DAY_MS))
    chosen = models or configured(startup_trials=4)
    first = START + test_day * DAY_MS
    return tune(data, REQUEST, chosen, FEES, ledger, home, first, namespace="test", trials=trials)


def counted(home: Path) -> int:
    return TrialLedger(home, FixedClock(START)).read("test").n_trials


# --- what a trial is worth -------------------------------------------------------------------------------------


def test_money_by_hand() -> None:
    day = START
    held_from = np.array([day, day + 12 * HOUR_MS, day + DAY_MS, day + DAY_MS + 12 * HOUR_MS])
    position = np.array([1.0, 1.0, -1.0, 0.0])
    moves = np.log([1.01, 0.98, 0.97, 1.5])
    net = net_daily_returns(held_from, position, moves, 0.001)
    # enter 0.1 %; hold; reverse pays 0.2 %; leave pays 0.1 %
    assert net.tolist() == pytest.approx([(1.01 - 0.001) * 0.98 - 1, (1 + 0.03 - 0.002) * (1 - 0.001) - 1])
    assert yearly_utility(net, 0.0) == pytest.approx(365 * net.mean())
    assert yearly_utility(net, 2.0) == pytest.approx(365 * (net.mean() - net.to_numpy().var()))


def test_the_last_position_is_paid_for_and_an_unknown_move_is_none() -> None:
    net = net_daily_returns(np.array([START, START + BAR]), np.array([1.0, 1.0]), np.array([np.nan, 0.0]), 0.001)
    assert net.tolist() == pytest.approx([(1 - 0.001) ** 2 - 1])


# --- the search ------------------------------------------------------------------------------------------------


def test_it_finds_better_than_what_is_configured_and_plots_itself(tmp_path: Path) -> None:
    models = configured(startup_trials=4)
    spoilt = models.model_copy(update={"ridge": models.ridge.model_copy(update={"penalty": 1000.0})})
    tuned = search(tmp_path, market(500, 1), 450, 10, spoilt)
    assert tuned.trials["penalty"][0] == 1000.0
    assert tuned.configured_utility == tuned.trials["utility"][0]
    assert tuned.utility > tuned.configured_utility + 0.05
    assert tuned.models.ridge.penalty == tuned.params["penalty"] < 500
    assert tuned.models.lightgbm == spoilt.lightgbm
    assert tuning_png(tuned).startswith(b"\x89PNG")


def test_every_trial_is_counted_once_however_often_it_is_run(tmp_path: Path) -> None:
    data = market(400, 2)
    first = search(tmp_path, data, 300, 5)
    assert counted(tmp_path) == 5
    again = search(tmp_path, data, 300, 5)
    pd.testing.assert_frame_equal(first.trials, again.trials)
    assert counted(tmp_path) == 5
    assert search(tmp_path, data, 300, 7).trials.iloc[:5].equals(first.trials)
    assert counted(tmp_path) == 7
    # other fees are another question: another study, and trials of their own
    other = TrialLedger(tmp_path, FixedClock(START))
    cheap = FEES.model_copy(update={"taker_bp": 1.0})
    found = tune(data, REQUEST, configured(), cheap, other, tmp_path, START + 300 * DAY_MS, namespace="test", trials=2)
    assert found.study != first.study
    assert counted(tmp_path) == 9


def test_what_was_given_up_early_is_counted_too(tmp_path: Path) -> None:
    tuned = search(tmp_path, market(500, 3), 450, 16, configured(startup_trials=3))
    given_up = tuned.trials["pruned"]
    assert given_up.any()
    assert tuned.trials.loc[given_up, "utility"].isna().all()
    assert counted(tmp_path) == 16


def test_nothing_after_the_first_test_window_is_looked_at(tmp_path: Path) -> None:
    data = market(500, 4)
    test_day = 300
    cutoff = START + test_day * DAY_MS
    X, y = data.X.copy(), data.y.copy()
    unknown = y["t1"].to_numpy() > cutoff - 12 * BAR
    y.loc[unknown, ["label", "score"]] = 7.0
    y.loc[y.index >= cutoff, ["next_ret", "width"]] = 0.5
    X.loc[X.index >= cutoff] = -3.0
    spoilt = TrainingSet(X, y, data.t0, data.usable, data.partitions, data.feature_set)
    clean, other = search(tmp_path / "a", data, test_day, 4), search(tmp_path / "b", spoilt, test_day, 4)
    pd.testing.assert_frame_equal(clean.trials, other.trials)
    assert clean.end_ms <= cutoff - 12 * BAR


def test_a_killed_search_goes_on_and_proposes_what_it_would_have(tmp_path: Path) -> None:
    """Real processes: killed twice at once after some trials, the study ends as an undisturbed one."""
    script = (
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_tuning as t\n"
        "t.search(pathlib.Path(sys.argv[1]), t.market(400, 5), 300, 12)\n"
    )
    home = tmp_path / "killed"
    for wanted in (2, 6):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(home)], env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if (home / "trials.sqlite").exists() and counted_quietly(home) >= wanted:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert counted(home) >= 6
    resumed = search(home, market(400, 5), 300, 12)
    undisturbed = search(tmp_path / "whole", market(400, 5), 300, 12)
    pd.testing.assert_frame_equal(resumed.trials, undisturbed.trials)
    assert counted(home) == counted(tmp_path / "whole") == 12


@pytest.mark.slow
def test_a_study_in_postgres_has_a_schema_of_its_own_and_goes_on(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = market(400, 2)
    in_files = search(tmp_path / "files", data, 300, 4)
    # as hosts hand it out, not as SQLAlchemy wants it
    monkeypatch.setenv("MLBOT_PG_URL", postgres_url.replace("postgresql://", "postgres://"))
    engine = sa.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg2:"), poolclass=sa.NullPool)

    def asked(query: str) -> list[Any]:
        with engine.connect() as connection:
            return [row[0] for row in connection.execute(sa.text(query))]

    others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    before = asked(others)[0]
    search(tmp_path / "one", data, 300, 2)
    # another machine shares the database and nothing else
    tuned = search(tmp_path / "two", data, 300, 4)
    pd.testing.assert_frame_equal(tuned.trials, in_files.trials)
    assert tuned.study == in_files.study
    assert [counted(tmp_path / home) for home in ("one", "two")] == [2, 2]
    assert asked("SELECT table_schema FROM information_schema.tables WHERE table_name = 'studies'") == ["optuna"]
    assert asked("SELECT count(*) FROM optuna.studies") == [1]
    assert not (tmp_path / "two" / "optuna.sqlite").exists()
    deadline = time.monotonic() + 10
    while asked(others)[0] > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert asked(others)[0] <= before, "connections are left open"


def counted_quietly(home: Path) -> int:
    try:
        return counted(home)
    except Exception:  # noqa: BLE001 - the file is just being made by the other process
        return 0


def test_other_data_is_another_study_but_not_another_trial(tmp_path: Path) -> None:
    data = market(400, 2)
    first = search(tmp_path, data, 300, 3)
    changed = TrainingSet(data.X * 0.5 + 0.1, data.y, data.t0, data.usable, {"features": "v2"}, data.feature_set)
    other = search(tmp_path, changed, 300, 3)
    assert other.study != first.study
    history = TrialLedger(tmp_path, FixedClock(START)).read("test")
    assert len({row.data_version for row in history.rows}) == 2
    assert history.n_configurations == len({str(p) for t in (first, other) for p in t.trials["penalty"]})


def test_without_the_next_bars_return_nothing_can_be_judged(tmp_path: Path) -> None:
    data = market(400, 2)
    blind = TrainingSet(data.X, data.y.assign(next_ret=np.nan), data.t0, data.usable, data.partitions, data.feature_set)
    with pytest.raises(MissingDataError, match=r"add 1 to targets\.horizons"):
        search(tmp_path, blind, 300, 2)


# --- mistakes --------------------------------------------------------------------------------------------------


def test_mistakes_are_named(tmp_path: Path) -> None:
    data = market(400, 6)
    with pytest.raises(MissingDataError, match=r"148 days lie before the first test window.*min_days 180"):
        search(tmp_path, data, 152, 2)
    with pytest.raises(UsageError, match="'ridge' has no search space"):
        search(tmp_path, data, 300, 2, configured(space={}))
    wrong = {"ridge": {"alpha": RangeConfig(low=0.1, high=1.0)}}
    with pytest.raises(UsageError, match="names alpha, which ridge does not have"):
        search(tmp_path, data, 300, 2, configured(space=wrong))
    assert not (tmp_path / "trials.sqlite").exists()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"low": 1.0, "high": 1.0}, "must be less than high"),
        ({"low": 1.0}, "must be less than high|valid number"),
        ({"low": 0.0, "high": 1.0, "log": True}, "searched in the logarithm"),
        ({"low": 1.0, "high": 2.5, "whole": True}, "must be whole"),
        ({"low": 1.0, "choices": [1, 2]}, "either choices or low and high"),
    ],
)
def test_a_range_that_cannot_be_is_refused(section: dict[str, Any], says: str) -> None:
    with pytest.raises((ValidationError, TypeError), match=says):
        RangeConfig.model_validate(section)


def test_every_space_names_parameters_of_its_model() -> None:
    models = load_settings({"MLBOT_THREADS": "1"}).models
    for model, space in models.tuning.space.items():
        for name in space:
            assert hasattr(getattr(models, model), name), (model, name)
