"""The bench goes on where it was stopped, judges honestly, and finds a pipeline that does not purge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from mlbot_core.clock import FixedClock
from mlbot_core.errors import MissingDataError
from mlbot_core.models.walkforward import LeakError, walk_forward
from mlbot_core.research import bench_path
from mlbot_core.research import null_bench as bench
from mlbot_core.research.bench_config import FEATURES, KINDS, NullBenchConfig
from mlbot_core.research.bench_path import bench_features, prepare, run_path
from mlbot_core.timeframe import Timeframe
from mlbot_core.validation.trials import TrialLedger


@pytest.fixture(scope="module")
def features(small):
    return bench_features(small)


def test_thirty_registered_features_of_price(features):
    assert len(features.names) == len(FEATURES) == 30


def test_a_path_is_reproducible_and_whole(small, features):
    one, two = (run_path(small, "garch", True, 3, features, prepare(small, "garch", 3, features, None)) for _ in "ab")
    assert one.skill == two.skill
    np.testing.assert_array_equal(one.net_daily, two.net_daily)
    assert one.folds == 3  # 1,000 bars of 2h less 40 days, in windows of 20
    assert len(one.net_daily) >= 40


def test_kinds_share_what_they_say_they_share(small, features):
    made = {kind: prepare(small, kind, 1, features, None) for kind in ("garch", "shuffled", "signal-null", "planted")}
    pd.testing.assert_frame_equal(made["garch"].bars, made["shuffled"].bars)
    assert not made["planted"].bars.equals(made["signal-null"].bars)
    assert list(made["planted"].features.columns)[-1] == bench_path.PLANTED
    assert len(made["planted"].features.columns) == len(made["garch"].features.columns) == 31
    with pytest.raises(MissingDataError, match="MLBOT_ARCHIVE_DIR"):
        prepare(small, "bootstrap", 1, features, None)


def test_switching_purging_off_really_leaks(small, features, monkeypatch):
    """The folds that the unpurged bench trains on are refused as leaking once true label times are told."""
    seen = {}

    def spy(x, y, folds, make, **more):
        seen["x"], seen["y"], seen["folds"], seen["make"], seen["more"] = x, y, folds, make, more
        return walk_forward(x, y, folds, make, **more)

    monkeypatch.setattr(bench_path, "walk_forward", spy)
    prepared = prepare(small, "garch", 0, features, None)
    from mlbot_core.targets.build import build_targets
    from mlbot_core.timeframe import Market

    truth = build_targets(prepared.bars, Market.parse("BTC-2h"), small.leak.targets).set_index("ts")
    rows = {}
    for purge in (True, False):
        run_path(small, "garch", purge, 0, features, prepared)
        rows[purge] = [len(fold.train_idx) for fold in seen["folds"]]
    assert all(0 < off - on <= small.leak.targets.horizon for on, off in zip(rows[True], rows[False], strict=True))
    told = seen["y"].assign(t1=truth["tb_t1"].reindex(seen["y"].index).to_numpy())
    with pytest.raises(LeakError, match="settled after the test began"):
        walk_forward(seen["x"], told, seen["folds"], seen["make"], **seen["more"])


def test_it_goes_on_where_it_was(small, tmp_path):
    first = [path for path, new in bench.run_arm(small, "garch", True, 2, tmp_path) if new is not None]
    assert first == [0, 1]
    kept = {file: file.read_bytes() for file in tmp_path.rglob("*.json")}
    again = [path for path, new in bench.run_arm(small, "garch", True, 3, tmp_path) if new is not None]
    assert again == [2]
    assert all(file.read_bytes() == content for file, content in kept.items())


KILLED = """
import sys, json
from pathlib import Path
from mlbot_core.research import null_bench as bench
from mlbot_core.research.bench_config import NullBenchConfig
config = NullBenchConfig.model_validate(json.loads(sys.argv[1]))
for path, new in bench.run_arm(config, "garch", True, 50, Path(sys.argv[2])):
    print(path, flush=True)
"""


def test_a_killed_run_leaves_only_whole_paths(small, tmp_path):
    runner = subprocess.Popen(
        [sys.executable, "-c", KILLED, small.model_dump_json(), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    for _ in range(3):
        assert runner.stdout.readline()
    time.sleep(0.05)
    os.kill(runner.pid, signal.SIGKILL)
    runner.stdout.close()
    assert runner.wait(timeout=30) == -signal.SIGKILL
    files = sorted(tmp_path.glob("garch-purged/[0-9]*.json"))
    assert len(files) >= 3
    records = [json.loads(file.read_text()) for file in files]
    fresh = next(result for _, result in bench.run_arm(small, "garch", True, 1, tmp_path / "fresh"))
    assert records[0]["net_daily"] == fresh.net_daily.tolist()
    assert records[0]["skill"]["ic"]["value"] == fresh.skill.ic.value
    assert bench.judge_arm("garch", True, tmp_path, 50).passed is None  # too few to say


def test_another_configuration_or_code_is_another_bench(small):
    base = bench.bench_identity(small, "garch")
    assert bench.bench_identity(small, "shuffled") == base
    assert bench.bench_identity(small.model_copy(update={"alpha": 0.05}), "garch") != base
    assert bench.bench_identity(small.model_copy(update={"planted_ic": 0.2}), "garch") == base
    assert bench.bench_identity(small.model_copy(update={"planted_ic": 0.2}), "planted") != bench.bench_identity(
        small, "planted"
    )
    assert small.identity("garch", bench) != base


def fill(folder, kind, purge, make):
    arm = folder / f"{kind}-{'purged' if purge else 'unpurged'}"
    arm.mkdir(parents=True)
    for path in range(100):
        (arm / f"{path:04d}.json").write_text(json.dumps(make(np.random.default_rng(path))))


def record(rng, shift=0.0, p=None):
    def one(centre):
        return {"value": centre + shift + rng.normal(0, 0.05), "p": float(rng.random()) if p is None else p}

    skill = {name: one(0.5 if name in ("hits", "boundary_hits") else 0.0) for name in bench.MEASURES}
    return {"skill": skill, "net_sharpe": -1.0, "planted_ic": 0.15, "folds": 3}


def test_no_skill_passes(tmp_path):
    fill(tmp_path, "garch", True, record)
    found = bench.judge_arm("garch", True, tmp_path, 100)
    assert found.passed
    assert found.words == "no skill"


def test_a_shifted_mean_fails_and_is_named(tmp_path):
    fill(tmp_path, "garch", False, lambda rng: record(rng, shift=0.04))
    found = bench.judge_arm("garch", False, tmp_path, 100)
    assert found.passed is False
    assert "boundary ic" in found.words


def test_p_values_that_are_not_uniform_fail(tmp_path):
    fill(tmp_path, "garch", True, lambda rng: record(rng, p=float(rng.random() ** 3)))
    assert bench.judge_arm("garch", True, tmp_path, 100).passed is False


@pytest.mark.parametrize(("shift", "passed"), [(0.3, True), (0.1, False)])
def test_the_planted_signal_must_stand_out_in_nine_of_ten(tmp_path, shift, passed):
    fill(tmp_path, "signal-null", True, record)
    fill(tmp_path, "planted", True, lambda rng: record(rng, shift=shift))
    found = bench.judge_arm("planted", True, tmp_path, 100)
    assert found.passed is passed
    assert "of 100 paths have an IC above" in found.words


def test_nothing_run_is_nothing_said(tmp_path):
    with pytest.raises(MissingDataError, match="mlbot null-bench"):
        bench.judge_arm("garch", True, tmp_path, 10)


def test_paths_count_as_null_trials(small, tmp_path):
    ledger = TrialLedger(tmp_path / "home", FixedClock(1))
    for path, result in bench.run_arm(small, "garch", True, 2, tmp_path):
        bench.count(ledger, "b" * 16, "garch", True, path, result)
        bench.count(ledger, "b" * 16, "garch", True, path, result)
    assert ledger.read("null").n_trials == 2
    assert ledger.read("research").n_trials == 0


def test_kinds():
    assert bench.kinds_for(True, True) == KINDS
    assert "bootstrap" not in bench.kinds_for(True, False)
    assert bench.kinds_for(False, True) == ("garch", "bootstrap", "shuffled")


@pytest.mark.archive
def test_recorded_bars_are_put_together(archive_dir):
    hours = pd.read_parquet(archive_dir / "btcusdt_perp_1h.parquet")
    bars = bench.recorded_bars(archive_dir, Timeframe.parse("2h"))
    assert (np.diff(bars["ts"]) == 7_200_000).all()
    assert len(bars) == len(hours) // 2
    assert bars["high"].iloc[0] == hours["high"].iloc[:2].max()
    assert bench.recorded_bars(archive_dir / "nowhere", Timeframe.parse("2h")) is None


PATHS = 24


@pytest.mark.slow
def test_a_pipeline_that_does_not_purge_is_found_and_one_that_does_is_not(tmp_path):
    """The full-sized paths of the command, a quarter as many."""
    config = NullBenchConfig()
    for purge in (True, False):
        for _ in bench.run_arm(config, "garch", purge, PATHS, tmp_path):
            pass
    with_purge, without = (bench.judge_arm("garch", purge, tmp_path, PATHS) for purge in (True, False))
    assert with_purge.passed, with_purge.words
    assert without.passed is False
    boundary = {m.name: m for m in without.measures}
    assert boundary["boundary_ic"].low > 0.0
    assert boundary["boundary_hits"].low > 0.5


@pytest.mark.slow
def test_the_planted_signal_is_found(tmp_path):
    config = NullBenchConfig()
    for kind in ("signal-null", "planted"):
        for _ in bench.run_arm(config, kind, True, PATHS, tmp_path):
            pass
    null, found = (bench.judge_arm(kind, True, tmp_path, PATHS) for kind in ("signal-null", "planted"))
    assert null.passed, null.words
    planted = [
        json.loads(file.read_text())["planted_ic"] for file in sorted((tmp_path / "planted-purged").glob("0*.json"))
    ]
    assert len(planted) == PATHS
    assert np.mean(planted) == pytest.approx(0.15, abs=0.02)
    # so few paths do not settle nine tenths: the mean must be far from zero and most p-values small
    values = {m.name: m for m in found.measures}
    assert values["ic"].low > 0.05
    assert values["ic"].small_share > 0.5
