"""What Dagster sees: it loads quickly and quietly, everything explains itself, and the core knows nothing of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlbot_core.config import load_settings
from mlbot_core.config.models import BASE_MODELS, BASELINES, MODEL_NAMES
from mlbot_core.market import CATALOGUE
from mlbot_core.market.quality import QUALITY_CHECKS
from mlbot_core.models import MODEL_TYPES
from mlbot_core.timeframe import Market, Month

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "vectorbt", "catboost", "lightgbm", "pytorch_forecasting", "optuna", "pytorch_lightning", "lightning")

RAW = [f"raw/{series}" for series in CATALOGUE]
MONTHLY = [*RAW, "features/core", "targets/labels", "models/drift"]
TRADED = ["backtests/backtest", "backtests/report"]
TRAINED = [*BASE_MODELS, *BASELINES]
LIVE = ["live/bars", "live/signals", "live/decision"]
AUDIT = ["audit/parity", "audit/shadow"]
PER_MODEL = ["models/forecasts", "models/meta", "models/explanations", "bandit/evaluation", *TRADED]


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    from mlbot_dagster.definitions import defs as loaded

    return loaded


@pytest.fixture(scope="module")
def specs(defs: dg.Definitions) -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def test_definitions_are_whole(defs):
    dg.Definitions.validate_loadable(defs)
    names = {job.name for job in defs.resolve_all_job_defs()} - {"__ASSET_JOB"}
    assert names == {
        "ingest",
        "pull",
        "features_and_targets",
        "data",
        "train",
        "drift",
        "backtest",
        "bandit",
        "report",
        "stack",
        "explain",
        "refresh_recent_bars",
        "repair_gaps",
        "back_up",
        "live_bar",
        "audit_live",
    }


def test_loading_is_light_and_quiet():
    """No heavy library, and no warning of any kind but what the one list of beta features hushes."""
    done = python(
        "import json, sys, mlbot_dagster.definitions\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))",
        "-W",
        "always",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    ours = [line for line in done.stderr.splitlines() if "Warning" in line and str(ROOT / "mlbot") in line]
    assert ours == []
    assert "BetaWarning" not in done.stderr
    assert "PreviewWarning" not in done.stderr
    assert "SupersessionWarning" not in done.stderr


def test_the_list_of_beta_features_hushes_nothing_else():
    """Without the list exactly the listed names warn: nothing unlisted is relied on, nothing is listed in vain."""
    done = python(
        "import re, warnings, dagster\n"
        "from mlbot_dagster import betas\n"
        "betas.silence = lambda: None\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import mlbot_dagster.definitions\n"
        "found = [w for w in caught if issubclass(w.category, (dagster.BetaWarning, dagster.PreviewWarning))]\n"
        "names = {n for n in betas.RELIED_ON for w in found if n in str(w.message)}\n"
        "rest = [str(w.message) for w in found if not any(n in str(w.message) for n in betas.RELIED_ON)]\n"
        "print(sorted(names) == sorted(betas.RELIED_ON), rest)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True []"


def test_every_asset_explains_itself(specs):
    assert set(specs) == {*MONTHLY, *PER_MODEL, *LIVE, *AUDIT}
    for name, spec in specs.items():
        assert spec.description, name
        assert spec.owners, name
        assert spec.kinds, name
        assert spec.group_name == name.split("/")[0], name
    for name in MONTHLY:
        schema = specs[name].metadata.get("dagster/column_schema")
        if name == "features/core":  # told with each materialization, since it depends on the configured set
            continue
        assert schema is not None, name
        assert all(column.description for column in schema.columns), name


def test_every_asset_that_stores_has_blocking_checks(defs, specs):
    checks: dict[str, dict[str, bool]] = {}
    for definition in defs.resolve_asset_graph().assets_defs:
        for check in definition.check_specs:
            checks.setdefault(check.asset_key.to_user_string(), {})[check.name] = check.blocking
            assert check.description, check.name
    for name in RAW:
        assert checks[name] == {n: check.severity == "blocking" for n, check in QUALITY_CHECKS.items()}, name
    for name in ("features/core", "targets/labels"):
        assert checks[name] == dict.fromkeys(("duplicates", "freshness", "lookahead"), True), name
    assert checks["models/forecasts"] == dict.fromkeys(("duplicates", "purge", "coverage"), True)
    assert checks["backtests/backtest"] == {"bookkeeping": True, "criteria": False}
    assert checks["audit/parity"] == {"parity": False}
    assert checks["audit/shadow"] == {"same_bars": False}
    assert checks["models/drift"] == {"drift": False, "ood": False}
    # the report stores nothing; what is live was judged with the months and versions that it rests on
    assert set(checks) == set(specs) - {"backtests/report", *LIVE}


def test_partition_keys_name_market_and_month_or_model(specs):
    settings = load_settings()
    markets = {str(market) for market in settings.intervals.markets}
    keys = specs["raw/price"].partitions_def.get_partition_keys()
    assert "BTC-2h|2024-03-01" in keys
    split = [key.split("|") for key in keys]
    assert {market for market, _ in split} == markets
    months = sorted({month for _, month in split})
    assert months[0] == settings.intervals.history_start.isoformat()
    now = Month.of(int(dg.get_current_timestamp() * 1000)) if hasattr(dg, "get_current_timestamp") else None
    assert all(Market.parse(market) and Month.parse(month).key == month for market, month in split)
    assert len(keys) == len(markets) * len(months)
    assert now is None or months[-1] == now.key
    for name, models in (("models/forecasts", TRAINED), ("models/meta", ["meta"]), *((n, MODEL_NAMES) for n in TRADED)):
        keys = specs[name].partitions_def.get_partition_keys()
        assert set(keys) == {f"{market}|{model}" for market in markets for model in models}, name
    assert set(MODEL_NAMES) == set(MODEL_TYPES) == {*TRAINED, "meta"}
    for name in MONTHLY:
        assert specs[name].partitions_def == specs["raw/price"].partitions_def, name


def test_the_current_month_is_a_partition(specs):
    import datetime as dt

    today = dt.datetime.now(dt.UTC)
    assert f"BTC-2h|{today:%Y-%m}-01" in specs["raw/price"].partitions_def.get_partition_keys()


def test_a_model_rests_on_every_month_of_its_market(defs):
    graph = defs.resolve_asset_graph()
    for parent in ("features/core", "targets/labels"):
        mapped = graph.get_partition_mapping(
            dg.AssetKey(["models", "forecasts"]), dg.AssetKey(parent.split("/"))
        ).get_upstream_mapped_partitions_result_for_partitions(
            graph.get(dg.AssetKey(["models", "forecasts"])).partitions_def.subset_with_partition_keys(
                ["BTC-2h|lightgbm"]
            ),
            graph.get(dg.AssetKey(["models", "forecasts"])).partitions_def,
            graph.get(dg.AssetKey(parent.split("/"))).partitions_def,
        )
        keys = set(mapped.partitions_subset.get_partition_keys())
        assert {key.split("|")[0] for key in keys} == {"BTC-2h"}
        assert "BTC-2h|2020-10-01" in keys


def test_lineage_of_models_runs_partition_by_partition(defs):
    graph = defs.resolve_asset_graph()

    def upstream(child: str, partition: str, parent: str) -> set[str]:
        down, up = (dg.AssetKey(name.split("/")) for name in (child, parent))
        mapped = graph.get_partition_mapping(down, up).get_upstream_mapped_partitions_result_for_partitions(
            graph.get(down).partitions_def.subset_with_partition_keys([partition]),
            graph.get(down).partitions_def,
            graph.get(up).partitions_def,
        )
        return set(mapped.partitions_subset.get_partition_keys())

    stacked = {f"BTC-{tf}|{model}" for tf in ("30m", "1h", "2h", "4h") for model in BASE_MODELS}
    assert upstream("models/meta", "BTC-2h|meta", "models/forecasts") == stacked
    assert upstream("backtests/backtest", "BTC-2h|ridge", "models/forecasts") == {"BTC-2h|ridge"}
    assert upstream("backtests/backtest", "BTC-2h|ridge", "models/meta") == set()
    assert upstream("backtests/backtest", "BTC-2h|meta", "models/forecasts") == set()
    assert upstream("backtests/backtest", "BTC-2h|meta", "models/meta") == {"BTC-2h|meta"}


def test_schedules_wait_to_be_started_and_only_housekeeping_runs_by_itself(defs):
    repository = defs.get_repository_def()
    assert {s.default_status for s in repository.schedule_defs} == {dg.DefaultScheduleStatus.STOPPED}
    running = {s.name for s in repository.sensor_defs if s.default_status == dg.DefaultSensorStatus.RUNNING}
    assert running <= {"end_orphaned_runs"}


def requests_of(defs: dg.Definitions, name: str) -> list[Any]:
    """Return what a schedule asks for at 00:20 on 2025-01-01, each request valid for its job."""
    import datetime as dt

    repository = defs.get_repository_def()
    with dg.DagsterInstance.ephemeral() as instance:
        context: Any = dg.build_schedule_context(
            instance=instance,
            repository_def=repository,
            scheduled_execution_time=dt.datetime(2025, 1, 1, 0, 20, tzinfo=dt.UTC),
        )
        return list(repository.get_schedule_def(name).evaluate_tick(context).run_requests)


def test_the_nightly_refresh_asks_for_the_last_two_months_of_every_market(defs):
    ranges = {
        (r.tags["dagster/asset_partition_range_start"], r.tags["dagster/asset_partition_range_end"])
        for r in requests_of(defs, "refresh_recent_months")
    }
    assert ranges == {
        (f"{market}|2024-12-01", f"{market}|2025-01-01") for market in map(str, load_settings().intervals.markets)
    }


@pytest.mark.parametrize("timeframe", [str(tf) for tf in load_settings().intervals.timeframes])
def test_after_each_bar_the_newest_bars_of_its_markets_are_read_again(defs, timeframe):
    name = f"refresh_newest_bars_{timeframe}"
    asked = [r.run_config["ops"]["read_newest_bars"]["config"]["market"] for r in requests_of(defs, name)]
    assert asked == [f"{symbol}-{timeframe}" for symbol in load_settings().intervals.symbols]
    cron = defs.get_repository_def().get_schedule_def(name).cron_schedule
    expected = {"30m": "2,32 * * * *", "1h": "2 * * * *", "2h": "2 */2 * * *", "4h": "2 */4 * * *"}
    assert cron == expected[timeframe]
    delays = load_settings().intervals.settle_delay_s
    assert max(delays.values()) < 120, "two minutes past the close must be later than every settle delay"


def test_gaps_are_asked_for_again_every_hour_for_every_market(defs):
    asked = [r.run_config["ops"]["fill_open_gaps"]["config"]["market"] for r in requests_of(defs, "repair_gaps_hourly")]
    assert asked == [str(market) for market in load_settings().intervals.markets]


BLOCKED = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("dagster") or name.split(".")[0] == "mlbot_dagster":
            raise ImportError(f"{name} must not be imported by the core")

sys.meta_path.insert(0, Refuse())
import mlbot_core
names = [m.name for m in pkgutil.walk_packages(mlbot_core.__path__, "mlbot_core.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names), sorted(n for n in sys.modules if n.split(".")[0].startswith("dagster")))
"""


def test_the_core_can_be_imported_where_dagster_is_not():
    done = python(BLOCKED)
    assert done.returncode == 0, done.stderr
    count, _, found = done.stdout.strip().partition(" ")
    assert int(count) > 80
    assert found == "[]"


def test_the_import_contracts_hold():
    """Imports inside functions count too: this reads the source, the test before it runs it."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
