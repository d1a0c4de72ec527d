"""``mlbot models``: what a person sees, what is refused and how it leaves."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from mlbot_core.backtest.dataset import BACKTESTS_TABLE, EQUITY_TABLE, conditions_of
from mlbot_core.backtest.gate_record import measure, scope_of
from mlbot_core.backtest.metrics import daily_returns
from mlbot_core.cli.main import app
from mlbot_core.config import load_settings
from mlbot_core.errors import MissingDataError, UsageError
from mlbot_core.features.sets import configured_set
from mlbot_core.models.registry import StageError
from mlbot_core.validation.namespaces import namespace_of
from mlbot_core.validation.trials import DailyReturns
from mlbot_core.warehouse import Warehouse, data_version, replace_window

DAY = 86_400_000
START = 1_704_067_200_000
WHY = ("--why", "for a test")


@pytest.fixture
def bench(registry_bench, monkeypatch):
    monkeypatch.setenv("MLBOT_HOME", str(registry_bench.home))
    monkeypatch.setenv("MLBOT_CLOCK", "fixed:2025-03-01T00:00:00Z")
    monkeypatch.delenv("MLBOT_PG_URL", raising=False)
    return registry_bench


def register(bench, seed=1, **changes):
    """Register a version of the feature set that is configured."""
    features = configured_set(load_settings().models.features).hash
    return bench.register(seed, **{"feature_set": features, **changes})


def store_backtest(bench, entry, drift, days=400):
    """Store the equity of daily returns with a mean of ``drift``, and count it among twenty losers."""
    namespace = namespace_of(entry.slot.source, entry.registration.identity)
    losers = [np.random.default_rng(100 + seed).normal(0, 0.02, days) for seed in range(20)]
    own = drift + np.random.default_rng(int(entry.version[:8], 16)).normal(0, 0.01, days)
    ts = START + DAY * np.arange(days, dtype=np.int64)
    nav = {"traded": 10_000 * np.cumprod(1 + own / 10), "unit": 10_000 * np.cumprod(1 + own)}
    table = pa.table({"ts": ts, "nav_traded": nav["traded"], "nav_unit": nav["unit"]})
    measured = {size: measure(ts, values, 10_000.0, 150).as_json() for size, values in nav.items()}
    chosen = load_settings()
    delay = chosen.intervals.settle_delay_ms(entry.slot.source)
    summary = {
        "conditions": conditions_of(chosen.fees, chosen.risk, delay),
        "measured": measured | {"initial_nav": 10_000.0},
        "start_ms": START,
        "end_ms": START + days * DAY,
        "verdict": "whatever was stored",
    }
    # the returns that the ledger knows are those of the stored equity, to the last bit
    returns = DailyReturns(START, daily_returns(ts, nav["unit"], 10_000.0)["ret"].to_numpy())
    for number, values in enumerate([*losers, returns.values]):
        trial = {"loser": number} if number < 20 else {"model": entry.version}
        bench.ledger.append(namespace, trial, DailyReturns(START, values), data_version="d", run_id="r")
    scope = scope_of(entry.slot, entry.version)
    row = pa.table({"created_at": [1], "data_version": [data_version(table)], "summary": [json.dumps(summary)]})
    with Warehouse(bench.home / "warehouse.duckdb", bench.clock).write() as con:
        replace_window(con, EQUITY_TABLE, scope, table)
        replace_window(con, BACKTESTS_TABLE, scope, row)


def invoke(*words):
    return CliRunner().invoke(app, ["models", *words])


def as_json(*words, code=0):
    done = invoke(*words, "--json")
    assert done.exit_code == code, (done.output, done.exception)
    return json.loads(done.stdout)


def test_an_empty_registry_says_what_to_do(bench):
    done = invoke("list")
    assert done.exit_code == 0
    assert "mlbot train" in done.stdout
    assert as_json("list")["models"] == []
    assert not (bench.home / "registry.key").exists()


def test_a_good_candidate_is_promoted_rolled_back_and_retired(bench):
    first, second = register(bench, 1), register(bench, 2)
    store_backtest(bench, first, 0.004)
    store_backtest(bench, second, 0.004)
    done = as_json("promote", first.version, *WHY)
    assert done["promoted"] is True
    assert (done["reason"], done["retired"], done["synthetic"]) == (None, None, False)
    assert all(row["passed"] for row in done["criteria"])
    assert done["n_trials"] == 22

    shown = invoke("promote", second.version[:8], *WHY)
    assert shown.exit_code == 0, shown.output
    assert f"is champion of BTC-2h lightgbm from archive; {first.version[:12]} is retired" in shown.stdout
    assert "FAIL" not in shown.stdout
    listed = {row["model"]: row for row in as_json("list", "--all")["models"]}
    assert (listed[first.version]["stage"], listed[second.version]["stage"]) == ("retired", "champion")
    assert listed[second.version]["why"] == "for a test"
    assert "champion" in invoke("list").stdout
    assert first.version[:12] not in invoke("list").stdout

    assert as_json("rollback", *WHY) == {
        "slot": "BTC-2h lightgbm from archive",
        "champion": first.version,
        "retired": second.version,
    }
    with pytest.raises(UsageError, match="0 markets and model types"):
        raise invoke("rollback", *WHY).exception
    assert "there is no champion" in invoke("retire", first.version, *WHY).stdout
    with pytest.raises(StageError):
        raise invoke("retire", first.version, *WHY).exception


def test_a_refusal_shows_every_criterion_and_leaves_with_one(bench):
    champion, weak = register(bench, 1), register(bench, 2)
    store_backtest(bench, champion, 0.004)
    store_backtest(bench, weak, -0.001)
    as_json("promote", champion.version, *WHY)
    done = invoke("promote", weak.version, *WHY)
    assert done.exit_code == 1
    for criterion in ("Sharpe", "MAR", "max drawdown", "days", "trades", "DSR", "PBO"):
        assert criterion in done.stdout
    for bound in ("> 1.0", ">= 0.5", "< 25%", ">= 365", ">= 100", ">= 0.95", "<= 0.2"):
        assert bound in done.stdout
    assert "FAIL" in done.stdout
    assert "REFUSED: model" in done.stdout
    refused = as_json("promote", weak.version, *WHY, code=1)
    assert refused["promoted"] is False
    assert refused["reason"].startswith("model ")
    assert bench.registry.state().champions == {champion.slot: champion.version}


def test_what_cannot_be_judged_is_refused_by_name(bench):
    entry = register(bench)
    done = invoke("promote", entry.version, *WHY)
    assert isinstance(done.exception, MissingDataError)
    assert "mlbot backtest --source archive --symbol BTC --interval 2h --model lightgbm" in str(done.exception)
    for words in (("promote", "zzzzzzzz", *WHY), ("show", "abc"), ("retire", entry.version, "--why", "  ")):
        assert isinstance(invoke(*words).exception, UsageError)
    assert invoke("promote", entry.version).exit_code == 2  # a reason is asked for


def test_a_model_of_another_feature_set_is_refused(bench):
    entry = register(bench, feature_set="0123456789abcdef")
    store_backtest(bench, entry, 0.004)
    refused = as_json("promote", entry.version, *WHY, code=1)
    assert "was trained on the features 0123456789abcdef" in refused["reason"]
    assert bench.registry.state().champions == {}


def test_a_made_up_market_is_labelled(bench):
    slot = bench.slot(source="emulator")
    entry = register(bench, identity="planted, seed 7", slot=slot)
    store_backtest(bench, entry, 0.004)
    done = invoke("promote", entry.version, *WHY)
    assert done.exit_code == 0, done.output
    assert "SYNTHETIC" in done.stdout
    assert as_json("list")["models"][0]["synthetic"] is True
    assert "(synthetic)" in invoke("list").stdout.replace("\n", " ")


def test_show_tells_everything(bench):
    entry = register(bench)
    store_backtest(bench, entry, 0.004)
    assert as_json("show", entry.version)["gate"] == []
    as_json("promote", entry.version, *WHY)
    found = as_json("show", entry.version)
    assert [row["event"] for row in found["history"]] == ["registered", "gate", "promoted"]
    assert found["gate_record"]["model_version"] == entry.version
    assert found["problems"] == []
    (bench.models_dir / entry.version / "model.txt").write_bytes(b"")
    done = invoke("show", entry.version)
    assert done.exit_code == 0
    assert "cannot be loaded now" in done.stdout
    assert "History" in done.stdout
    secret = (bench.home / "registry.key").read_text().strip()
    assert secret not in done.stdout + json.dumps(found)


def test_compare_shows_what_differs(bench):
    first = register(bench, 1)
    second = register(bench, 2, params={"num_leaves": 31})
    store_backtest(bench, first, 0.004)
    found = as_json("compare", first.version, second.version)
    assert found["values"]["params num_leaves"] == [7, 31]
    assert found["values"]["seed"] == [1, 2]
    assert found["values"]["backtest unit trades"] == [150, None]
    assert found["features_only_in"] == [[], []]
    shown = invoke("compare", first.version[:8], second.version[:8]).stdout
    assert "params num_leaves" in shown
    assert "feature_set" not in shown


def test_rollback_asks_which_one_where_several_could_be_meant(bench):
    slots = [bench.slot(), bench.slot(timeframe="4h")]
    pairs = [[bench.register(10 * n + k, slot=slot) for k in (1, 2)] for n, slot in enumerate(slots)]
    for pair in pairs:
        for entry in pair:
            bench.promote(entry)
    done = invoke("rollback", *WHY)
    assert isinstance(done.exception, UsageError)
    assert "--interval 4h" in str(done.exception)
    assert as_json("rollback", "-i", "4h", *WHY)["champion"] == pairs[1][0].version
    assert bench.registry.state().champions[slots[0]] == pairs[0][1].version
