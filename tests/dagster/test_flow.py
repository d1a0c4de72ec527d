"""The whole flow, small: from the emulator to a report through the launching process, recorded and repeatable."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import yaml

from mlbot_core.clock import SystemClock
from mlbot_core.market import CORE_SERIES
from mlbot_core.market.quality import QUALITY_CHECKS
from mlbot_core.timeframe import Month
from mlbot_core.validation.trials import TrialLedger
from mlbot_core.warehouse import Warehouse

ROOT = Path(__file__).resolve().parents[2]
MARKET, MODEL, META = "BTC-4h", "BTC-4h|lightgbm", "BTC-4h|meta"
MONTHS = Month.span(Month(2024, 1).start_ms, Month(2024, 10).end_ms)
BARS = (MONTHS[-1].end_ms - MONTHS[0].start_ms) // (4 * 3_600_000)
DATA = {
    "job": "data",
    "title": "data",
    "first": f"{MARKET}|{MONTHS[0].key}",
    "last": f"{MARKET}|{MONTHS[-1].key}",
    "source": "emulator",
}
DRIFT = {**DATA, "job": "drift", "title": "drift", "first": DATA["last"]}


def research(job: str, model: str) -> dict[str, Any]:
    return {"job": job, "title": f"{job} {model}", "first": model, "last": model, "source": "emulator"}


TRAINED = [research("train", MODEL), research("stack", META)]
TRADED = [research("backtest", MODEL), research("backtest", META)]
EXPLAINED = [research("explain", MODEL), research("explain", META)]
RESEARCH = [*TRAINED, *TRADED]
SMALL = {
    "walk_forward": {
        "train_days": 150,
        "min_train_days": 90,
        "test_days": 30,
        "embargo_bars": 12,
        "models": {"meta": {"min_train_days": 60}},
    },
}


@dataclass(frozen=True)
class Flow:
    """A home and how the runs of its plan ended."""

    home: Path
    ends: list[dict[str, Any]]
    environment: dict[str, str]

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with Warehouse(self.home / "warehouse.duckdb", SystemClock()).read() as con:
            return con.execute(sql).fetchall()

    def forecasts(self) -> str:
        """Return a hash of every bit of the stored forecasts."""
        return hashlib.sha256(repr(self.query("SELECT * FROM forecasts ORDER BY ALL")).encode()).hexdigest()

    def models(self) -> dict[str, str]:
        """Return a hash of each file of each stored model."""
        files = sorted(path for path in (self.home / "models").rglob("*") if path.is_file())
        return {str(f.relative_to(self.home)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def launch(folder: Path, plan: list[dict[str, Any]]) -> Flow:
    """Run a plan on a home below the folder with a small configuration, in a process of its own."""
    home, config = folder / "home", folder / "config"
    if not config.exists():
        shutil.copytree(ROOT / "config", config, ignore=shutil.ignore_patterns("api_keys.yaml"))
        models = yaml.safe_load((config / "models.yaml").read_text())
        models |= SMALL
        models["features"]["zscore_window"] = 60
        models["lightgbm"]["n_estimators"] = 20
        (config / "models.yaml").write_text(yaml.safe_dump(models))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLBOT_", "DAGSTER_"))}
    environment = {
        **kept,
        "MLBOT_HOME": str(home),
        "MLBOT_CONFIG_DIR": str(config),
        "MLBOT_CLOCK": "fixed:2024-11-03T00:10:00Z",
        "MLBOT_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "mlbot_dagster.launch"],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=280,
        check=False,
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    ends = [event for event in events if event["event"] == "end"]
    assert [end["success"] for end in ends] == [True] * len(plan), (ends, done.stderr[-3000:])
    assert done.returncode == 0
    return Flow(home, ends, environment)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """Data, then research, then the drift of the last month."""
    return launch(tmp_path_factory.mktemp("flow"), [DATA, *RESEARCH, *EXPLAINED, DRIFT])


@pytest.fixture
def instance(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("MLBOT_HOME", "MLBOT_CONFIG_DIR"):
        monkeypatch.setenv(name, flow.environment[name])
    with dg.DagsterInstance.from_config(str(flow.home / "dagster")) as opened:
        yield opened


def test_every_partition_is_materialized_in_the_eyes_of_dagster(instance):
    months = {f"{MARKET}|{month.key}" for month in MONTHS}
    for key in [*(["raw", series] for series in CORE_SERIES), ["features", "core"], ["targets", "labels"]]:
        assert instance.get_materialized_partitions(dg.AssetKey(key)) == months, key
    assert instance.get_materialized_partitions(dg.AssetKey(["models", "forecasts"])) == {MODEL}
    assert instance.get_materialized_partitions(dg.AssetKey(["models", "meta"])) == {META}
    for key in (["backtests", "backtest"], ["backtests", "report"]):
        assert instance.get_materialized_partitions(dg.AssetKey(key)) == {MODEL, META}, key
    assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.SUCCESS}
    assert {run.tags["mlbot/launched_by"] for run in instance.get_runs()} == {"cli"}


def materializations(instance: Any, name: str) -> dict[str, dict[str, Any]]:
    """Return the newest metadata of each partition of an asset."""
    records = instance.fetch_materializations(dg.AssetKey(name.split("/")), limit=100, ascending=True).records
    return {record.partition_key: dict(record.asset_materialization.metadata) for record in records}


def test_every_materialization_shows_rows_and_source_and_the_asset_a_plot(instance):
    rows = {"raw/price": BARS, "features/core": BARS, "targets/labels": BARS, "raw/funding_settled": 0}
    for name, count in rows.items():
        shown = materializations(instance, name)
        assert len(shown) == len(MONTHS), name
        assert sum(month["dagster/row_count"].value for month in shown.values()) == count, name
        assert shown[f"{MARKET}|2024-02-01"]["dagster/row_count"].value == (29 * 6 if count else 0), name
        for month in shown.values():
            assert "SYNTHETIC" in month["source"].value, name
        assert any("plot" in month for month in shown.values()) == bool(count), name
    (shown,) = materializations(instance, "models/forecasts").values()
    assert "plot" in shown
    assert shown["folds"].value >= 4
    for explained in materializations(instance, "models/explanations").values():
        assert "lift" in explained
    reports = materializations(instance, "backtests/report").values()
    assert [Path(shown["report"].value).exists() for shown in reports] == [True, True]


def test_the_features_are_at_least_forty_and_each_is_described(instance):
    shown = materializations(instance, "features/core").values()
    (schema,) = [month["dagster/column_schema"].value for month in shown if "dagster/column_schema" in month][:1]
    described = [column for column in schema.columns if column.type == "double"]
    assert len(described) >= 40
    assert all(column.description for column in described)


def test_every_blocking_check_was_evaluated_and_passed(flow, instance):
    from mlbot_dagster.definitions import defs

    evaluated = 0
    for definition in defs.resolve_asset_graph().assets_defs:
        for check in definition.check_specs:
            if check.asset_key.path[0] == "raw" and check.asset_key.path[1] not in CORE_SERIES:
                continue
            if check.asset_key.path[0] in ("bandit", "audit"):
                # sizes are learned, and live trading is audited, in jobs of their own
                continue
            record, *_ = instance.event_log_storage.get_asset_check_execution_history(check.key, limit=1)
            evaluation = record.event.dagster_event.event_specific_data
            assert evaluation.passed or not check.blocking, (check.key, evaluation.description)
            evaluated += 1
    assert evaluated == len(CORE_SERIES) * len(QUALITY_CHECKS) + 3 + 3 + 3 + 3 + 1 + 2 + 2
    verdicts = flow.query("SELECT check_name, count(*) FROM quality WHERE NOT passed GROUP BY 1")
    advisory = {"criteria", "drift", "forecast_drift", "ood"}
    assert {name for name, _ in verdicts} <= advisory, "a short demo may miss these on 900 training rows, nothing else"


def test_what_models_rest_on_is_measured_on_bars_that_trained_nothing(flow):
    rows = flow.query(
        "SELECT model_type, count(*), count(permutation), count(contribution) FROM explanations GROUP BY 1"
    )
    assert {name: counts for name, *counts in rows}["lightgbm"] == [88, 88, 88]
    (lift,) = flow.query("SELECT sum(n) FROM forecast_lift WHERE model_type = 'lightgbm'")
    (known,) = flow.query(
        "SELECT count(*) FROM forecasts f JOIN targets t USING (ts) "
        "WHERE f.model_type = 'lightgbm' AND t.var_ret IS NOT NULL AND NOT isnan(t.var_ret)"
    )
    assert lift == known
    drift = flow.query("SELECT DISTINCT period FROM forecast_drift WHERE model_type = 'lightgbm' AND output = 'score'")
    assert len(drift) == len(flow.query("SELECT DISTINCT fold FROM forecasts WHERE model_type = 'lightgbm'"))


def test_forecasts_are_out_of_fold_probabilities_of_every_bar_of_the_test_period(flow):
    rows = flow.query(
        "SELECT ts, fold, p_down, p_neutral, p_up FROM forecasts WHERE model_type = 'lightgbm' ORDER BY ts"
    )
    values = np.array([row[2:] for row in rows], dtype=float)
    assert len({row[0] for row in rows}) == len(rows)
    assert len({row[1] for row in rows}) >= 4
    np.testing.assert_allclose(values.sum(axis=1), 1.0, rtol=1e-9)
    assert (values > 0).all()
    steps = np.diff([row[0] for row in rows])
    assert (steps == 4 * 3_600_000).all()
    assert flow.query("SELECT model_type FROM models ORDER BY 1") == [("lightgbm",), ("meta",)]


def test_the_meta_model_forecasts_after_its_own_training_history_only(flow):
    base, meta = (
        flow.query(f"SELECT min(ts), max(ts), count(*), count(score) FROM forecasts WHERE model_type = '{name}'")[0]
        for name in ("lightgbm", "meta")
    )
    assert meta[0] >= base[0] + 60 * 86_400_000
    assert meta[1] == base[1]
    assert meta[2] == meta[3] == (meta[1] - meta[0]) // (4 * 3_600_000) + 1
    late = flow.query("SELECT count(*) FROM forecasts WHERE train_end_ms > ts")
    assert late == [(0,)]


def loaded_from_elsewhere(html: str) -> list[str]:
    """Return what a browser would fetch to show the page; the inside of scripts is no markup."""
    found: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag in ("script", "img", "link", "iframe"):
                found.extend(v for k, v in attrs if k in ("src", "href") and v and not v.startswith("data:"))

    Tags().feed(html)
    return found


def test_the_backtest_is_stored_and_reported(flow):
    ((summary,),) = flow.query("SELECT summary FROM backtests WHERE model_type = 'lightgbm'")
    told = json.loads(summary)
    assert told["synthetic"] is True
    assert told["timeframe"] == "4h"
    assert told["bars"] > 500
    (equity,) = flow.query("SELECT count(*) FROM backtest_equity WHERE model_type = 'lightgbm'")
    assert equity[0] > 500
    assert len(list((flow.home / "reports").glob("*.html"))) == 2
    (report,) = (flow.home / "reports").glob("BTC-4h-lightgbm-emulator-*.html")
    html = report.read_text()
    assert "SYNTHETIC" in html
    assert told["model_version"][:12] in html
    assert loaded_from_elsewhere(html) == []


def test_a_configuration_is_counted_when_it_is_trained_and_its_backtest_counts_nothing_more(flow):
    trained = [end["run_id"] for end in flow.ends if end["title"].startswith(("train", "stack"))]
    history = TrialLedger(flow.home, SystemClock()).read("demo")
    assert [row.run_id for row in history.rows] == trained
    assert history.n_trials == 2
    versions = {row.facts["model_version"] for row in history.rows}
    assert versions == {version for (version,) in flow.query("SELECT model_version FROM backtests")}


def test_again_gives_the_same_version_and_the_same_bytes(flow):
    version, forecasts, models = (
        flow.query("SELECT model_version FROM models ORDER BY 1"),
        flow.forecasts(),
        flow.models(),
    )
    assert models
    again = launch(flow.home.parent, RESEARCH)
    assert again.query("SELECT model_version FROM models ORDER BY 1") == version
    assert again.forecasts() == forecasts
    assert again.models() == models
    assert TrialLedger(flow.home, SystemClock()).read("demo").n_trials == 2


@pytest.mark.slow
def test_elsewhere_gives_the_same_version_and_the_same_bytes(flow, tmp_path):
    other = launch(tmp_path, [DATA, *RESEARCH])
    assert other.query("SELECT model_version FROM models ORDER BY 1") == flow.query(
        "SELECT model_version FROM models ORDER BY 1"
    )
    assert other.forecasts() == flow.forecasts()
    assert other.models() == flow.models()
    for table in ("features_core", "targets", "backtest_equity"):
        mine, theirs = (one.query(f"SELECT * FROM {table} ORDER BY ALL") for one in (flow, other))
        assert repr(mine) == repr(theirs), table
