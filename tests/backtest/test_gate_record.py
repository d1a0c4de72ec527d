"""From a stored backtest to the gate: what the real code stores is computed again, and nothing stored is trusted."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from mlbot_core.backtest import dataset
from mlbot_core.backtest.gate_record import gate_record, measure, stored_summaries
from mlbot_core.backtest.run import run_backtest
from mlbot_core.backtest.trial import count_and_judge, daily_series
from mlbot_core.backtest.verdict import measured_json, measured_of
from mlbot_core.clock import FixedClock
from mlbot_core.errors import MissingDataError
from mlbot_core.models.gate import GateRefusedError
from mlbot_core.timeframe import Market
from mlbot_core.validation.criteria import Measured
from mlbot_core.validation.trials import DailyReturns
from mlbot_core.warehouse import Warehouse


@pytest.fixture(scope="module")
def result(make_input):
    """Forecasts that see the future: something that passes every bound there is."""
    return run_backtest(make_input(n=12 * 400, skill=3.0))


@pytest.fixture
def bench(registry_bench):
    return registry_bench


@pytest.fixture
def warehouse(bench):
    bench.home.mkdir(parents=True, exist_ok=True)
    return Warehouse(bench.home / "warehouse.duckdb", FixedClock(1_740_000_000_000))


def store(bench, warehouse, entry, result, monkeypatch):
    """Count the result among losers, and store it by the code that stores every backtest."""
    own = daily_series(result)
    for seed in range(20):
        returns = DailyReturns(own.first_day_ms, np.random.default_rng(seed).normal(0, 0.02, len(own.values)))
        bench.ledger.append("research", {"loser": seed}, returns, data_version="d", run_id="r")
    named = dataclasses.replace(result, input=dataclasses.replace(result.input, model_version=entry.version))
    inputs = dict(entry.registration.inputs)
    counted = count_and_judge(named, inputs, bench.ledger, namespace="research", run_id="r")
    model = dataset.StoredModel(entry.version, None, None, inputs)
    monkeypatch.setattr(dataset, "compute", lambda *_: (counted, model))
    request = dataset.BacktestRequest("archive", Market.parse("BTC-2h"), "lightgbm", 5_000, 0, "run")
    dataset.backtest(warehouse, request, result.input.fees, result.input.risk, bench.ledger)
    return counted


@pytest.fixture
def stored(bench, warehouse, result, monkeypatch):
    entry = bench.register()
    return entry, store(bench, warehouse, entry, result, monkeypatch)


def today(result):
    return dataset.conditions_of(result.input.fees, result.input.risk, 5_000)


def edit(warehouse, change):
    """Change the stored summary."""
    with warehouse.write() as con:
        ((text,),) = con.execute("SELECT summary FROM backtests").fetchall()
        summary = json.loads(text)
        change(summary)
        con.execute("UPDATE backtests SET summary = ?", [json.dumps(summary)])


def test_numbers_are_recomputed_from_equity(result):
    for size in ("traded", "unit"):
        metrics = result.metrics[size]
        equity = result.equity
        again = measure(equity["ts"], equity[f"nav_{size}"], metrics.nav_start, metrics.trades)
        assert dataclasses.astuple(again) == pytest.approx(dataclasses.astuple(measured_of(metrics)), rel=1e-12)
    assert Measured.from_json(measured_json(result.metrics)["unit"]) == measured_of(result.metrics["unit"])


def test_measured_numbers_survive_json_with_what_is_undefined():
    odd = Measured(math.nan, math.nan, math.nan, math.inf, 0.0, 3, 0)
    text = json.dumps(odd.as_json(), allow_nan=False)
    again = Measured.from_json(json.loads(text))
    assert (again.days, again.trades, again.max_drawdown) == (3, 0, 0.0)
    assert math.isnan(again.sharpe)
    assert math.isnan(again.mar)


def test_a_stored_backtest_becomes_a_record_that_promotes(bench, warehouse, stored, result):
    entry, counted = stored
    record = gate_record(warehouse, entry, bench.ledger, today(result))
    for size, computed in (("traded", record.traded), ("unit", record.unit)):
        measured = dataclasses.astuple(measured_of(result.metrics[size]))
        assert dataclasses.astuple(computed) == pytest.approx(measured, rel=1e-12)
    assert record.statistics.n_trials == 21
    assert record.statistics.dsr == counted.significance.dsr
    assert record.ledger_head == str(bench.ledger.head("research"))
    assert (record.backtest_start_ms, record.backtest_end_ms) == (result.start_ms, result.end_ms)
    assert record.verdict.outcome == counted.verdict.outcome
    state = bench.registry.promote(record, models_dir=bench.models_dir, ledger=bench.ledger, why="passes")
    assert state.champions == {entry.slot: entry.version}
    assert stored_summaries(warehouse)[entry.version]["measured"]["unit"]["trades"] == record.unit.trades


def test_trials_made_since_the_backtest_count(bench, warehouse, stored, result):
    entry, _ = stored
    before = gate_record(warehouse, entry, bench.ledger, today(result))
    days = np.random.default_rng(99).normal(0.02, 0.01, 400)
    bench.ledger.append("research", {"x": 1}, DailyReturns(1_704_067_200_000, days), data_version="d", run_id="r")
    after = gate_record(warehouse, entry, bench.ledger, today(result))
    assert after.statistics.n_trials == before.statistics.n_trials + 1
    assert after.statistics.dsr < before.statistics.dsr


def test_without_a_backtest_of_that_very_version_the_command_is_named(bench, warehouse, stored, result):
    other = bench.register(2)
    with pytest.raises(MissingDataError, match="mlbot backtest --source archive --symbol BTC --interval 2h"):
        gate_record(warehouse, other, bench.ledger, today(result))
    nothing = Warehouse(bench.home / "none.duckdb", FixedClock(0))
    with pytest.raises(MissingDataError, match="no backtest of model"):
        gate_record(nothing, other, bench.ledger, today(result))
    assert stored_summaries(nothing) == {}


def test_a_better_stored_verdict_helps_nobody(bench, warehouse, stored, result):
    entry, _ = stored
    edit(warehouse, lambda summary: summary["measured"]["unit"].update(sharpe=99.0))
    with pytest.raises(GateRefusedError, match=r"contradicts its own equity at unit size: sharpe is .* stored as 99"):
        gate_record(warehouse, entry, bench.ledger, today(result))


def test_a_stored_end_after_the_equity_makes_no_backtest_younger(bench, warehouse, stored, result):
    entry, _ = stored
    edit(warehouse, lambda summary: summary.update(end_ms=summary["end_ms"] + 86_400_000))
    with pytest.raises(GateRefusedError, match=r"claims to end .*, and its equity ends before"):
        gate_record(warehouse, entry, bench.ledger, today(result))


def test_changed_equity_is_noticed(bench, warehouse, stored, result):
    entry, _ = stored
    with warehouse.write() as con:
        con.execute("UPDATE backtest_equity SET nav_traded = nav_traded * 1.01 WHERE position <> 0")
    with pytest.raises(GateRefusedError, match="was changed after its backtest"):
        gate_record(warehouse, entry, bench.ledger, today(result))


def test_equity_that_was_never_counted_is_refused(bench, warehouse, stored, result):
    """Equity, its hash and the numbers all changed together: the ledger still does not know these returns."""
    from mlbot_core.warehouse import data_version, read_window

    entry, _ = stored
    with warehouse.write() as con:
        con.execute("UPDATE backtest_equity SET nav_unit = nav_unit * (1 + 0.0001 * (ts - 1704067200000) / 86400000)")
        table = read_window(con, "backtest_equity", {"model_version": entry.version})
        table = table.drop_columns(["source", "symbol", "timeframe", "model_type", "model_version"])
        con.execute("UPDATE backtests SET data_version = ?", [data_version(table)])
    frame = table.to_pandas()

    def fit(summary):
        unit = summary["measured"]["unit"]
        unit |= measure(frame["ts"], frame["nav_unit"], 10_000.0, unit["trades"]).as_json()

    edit(warehouse, fit)
    with pytest.raises(GateRefusedError, match="never counted as a trial in the research ledger"):
        gate_record(warehouse, entry, bench.ledger, today(result))


def test_a_number_of_trades_that_the_ledger_contradicts_is_refused(bench, warehouse, stored, result):
    entry, _ = stored
    edit(warehouse, lambda summary: summary["measured"]["unit"].update(trades=5_000))
    with pytest.raises(GateRefusedError, match="claims 5000 trades at unit exposure, the ledger"):
        gate_record(warehouse, entry, bench.ledger, today(result))


@pytest.mark.parametrize("spoil", [lambda s: s.pop("measured"), lambda s: s["measured"].pop("unit")])
def test_what_was_stored_without_the_numbers_has_to_be_made_again(bench, warehouse, stored, spoil, result):
    entry, _ = stored
    edit(warehouse, spoil)
    with pytest.raises(GateRefusedError, match="run: mlbot backtest"):
        gate_record(warehouse, entry, bench.ledger, today(result))


def test_an_honest_backtest_without_skill_is_refused(bench, warehouse, make_input, monkeypatch, result):
    entry = bench.register()
    store(bench, warehouse, entry, run_backtest(make_input(n=12 * 400, skill=0.0)), monkeypatch)
    record = gate_record(warehouse, entry, bench.ledger, today(result))
    assert record.verdict.refused
    with pytest.raises(GateRefusedError, match=r"Sharpe \(unit\)"):
        bench.registry.promote(record, models_dir=bench.models_dir, ledger=bench.ledger, why="hope")
    assert bench.registry.state().champions == {}


def test_a_backtest_without_costs_promotes_nothing(bench, warehouse, stored, result):
    entry, _ = stored
    free = result.input.fees.model_copy(update={"taker_bp": 0.0, "maker_bp": 0.0, "slippage_bp": 0.0})
    tiny = result.input.risk.model_copy(update={"max_position": 0.01})
    for conditions in (
        dataset.conditions_of(free, result.input.risk, 5_000),
        dataset.conditions_of(result.input.fees, tiny, 5_000),
        dataset.conditions_of(result.input.fees, result.input.risk, 0),
    ):
        with pytest.raises(GateRefusedError, match="other fees, limits or delays than today's"):
            gate_record(warehouse, entry, bench.ledger, conditions)
