"""A training that is killed goes on after the folds it had finished, and ends as an undisturbed one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlbot_core.clock import SystemClock
from mlbot_core.timeframe import Month
from mlbot_core.validation.trials import TrialLedger
from mlbot_core.warehouse import Warehouse

ROOT = Path(__file__).resolve().parents[2]
MARKET = "BTC-4h"
# the least number of folds of each, and what it stacks
MODELS = {"lightgbm": (12, ()), "catboost": (12, ()), "ridge": (12, ()), "tft": (8, ()), "meta": (12, ("ridge",))}
JOBS = {"meta": "stack"}
SCHEDULE = {
    "train_days": 150,
    "min_train_days": 90,
    "test_days": 10,
    "embargo_bars": 12,
    "models": {"tft": {"test_days": 20}, "meta": {"min_train_days": 60}},
}
SMALL_TFT = {
    "encoder_length": 6,
    "hidden_size": 8,
    "hidden_continuous_size": 4,
    "attention_heads": 2,
    "max_features": 6,
    "max_samples": 500,
    "max_epochs": 2,
}
MONTHS = Month.span(Month(2024, 1).start_ms, Month(2024, 10).end_ms)

pytestmark = pytest.mark.slow


def environment(home: Path, config: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLBOT_", "DAGSTER_"))}
    return {
        **kept,
        "MLBOT_HOME": str(home),
        "MLBOT_CONFIG_DIR": str(config),
        "MLBOT_CLOCK": "fixed:2024-11-03T00:10:00Z",
        "MLBOT_THREADS": "2",
        "OMP_NUM_THREADS": "1",
    }


def launching(home: Path, config: Path, plan: list[dict[str, Any]]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "mlbot_dagster.launch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(home, config),
        cwd=ROOT,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(plan))
    process.stdin.close()
    return process


def finish(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    events = [json.loads(line) for line in process.stdout.read().splitlines()]
    assert process.wait(timeout=300) == 0, [event for event in events if event["event"] == "end"]


def plan(job: str, first: str, last: str | None = None) -> dict[str, Any]:
    return {"job": job, "title": job, "first": first, "last": last or first, "source": "emulator"}


def models(home: Path) -> dict[str, str]:
    files = sorted(path for path in (home / "models").rglob("*") if path.is_file())
    return {str(f.relative_to(home)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def folds(home: Path) -> list[Path]:
    return [path for path in (home / "models").glob("folds/*/*/meta.json") if not path.parent.name.endswith(".part")]


def counted(home: Path) -> int:
    return TrialLedger(home, SystemClock()).read("demo").n_trials


def forecasts(home: Path) -> str:
    with Warehouse(home / "warehouse.duckdb", SystemClock()).read() as con:
        return repr(con.execute("SELECT * FROM forecasts ORDER BY ALL").fetchall())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home with features and targets, and its configuration."""
    folder = tmp_path_factory.mktemp("resume")
    home, config = folder / "home", folder / "config"
    shutil.copytree(ROOT / "config", config, ignore=shutil.ignore_patterns("api_keys.yaml"))
    chosen = yaml.safe_load((config / "models.yaml").read_text())
    chosen["walk_forward"] = SCHEDULE
    chosen["tft"] |= SMALL_TFT
    chosen["meta"]["models"] = ["ridge"]
    chosen["features"]["zscore_window"] = 60
    (config / "models.yaml").write_text(yaml.safe_dump(chosen))
    finish(launching(home, config, [plan("data", f"{MARKET}|{MONTHS[0].key}", f"{MARKET}|{MONTHS[-1].key}")]))
    return home, config


# the transformer's folds take minutes
@pytest.mark.parametrize("model", [pytest.param(m, marks=[pytest.mark.prove] if m == "tft" else []) for m in MODELS])
def test_killed_and_resumed_is_the_same(made: tuple[Path, Path], tmp_path: Path, model: str) -> None:
    home, config = made
    least, bases = MODELS[model]
    begun_with, clean, killed = tmp_path / "begun", tmp_path / "clean", tmp_path / "killed"
    shutil.copytree(home, begun_with)
    if bases:
        finish(launching(begun_with, config, [plan("train", f"{MARKET}|{base}") for base in bases]))
    for copy in (clean, killed):
        shutil.copytree(begun_with, copy)
    run = [plan(JOBS.get(model, "train"), f"{MARKET}|{model}")]
    finish(launching(clean, config, run))
    whole = models(clean)
    assert len(folds(clean)) - len(folds(begun_with)) >= least

    process = launching(killed, config, run)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if len(folds(killed)) - len(folds(begun_with)) >= 3:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    begun = {name: text for name, text in models(killed).items() if not Path(name).parts[-2].endswith(".part")}
    assert begun.items() <= whole.items(), "what a killed run leaves is whole"
    finish(launching(killed, config, run))
    resumed = {name: text for name, text in models(killed).items() if not Path(name).parts[-2].endswith(".part")}
    assert resumed == whole
    assert forecasts(killed) == forecasts(clean)
    assert counted(killed) == counted(clean) == 1 + len(bases)
