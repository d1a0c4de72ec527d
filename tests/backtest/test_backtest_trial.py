"""A backtest is a trial: counted once, judged among all, and every report says how sure one may be."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from mlbot_core.backtest.report import render_report, summary_row
from mlbot_core.backtest.run import run_backtest, run_unit
from mlbot_core.backtest.significance_block import flat, significance_block
from mlbot_core.backtest.trial import (
    configuration_of,
    count,
    count_and_judge,
    daily_series,
    data_version_of,
    namespace_of,
)
from mlbot_core.clock import FixedClock
from mlbot_core.validation.trials import DailyReturns, Head, LedgerTamperedError, TrialLedger

INPUTS = {
    "code": "c" * 64,
    "feature_set": "f" * 16,
    "model_type": "lightgbm",
    "params": {"num_leaves": 7},
    "targets": {"horizon": 12},
    "walk_forward": {"test_days": 30},
    "test_start_ms": 1_704_067_200_000,
    "test_end_ms": 1_714_435_200_000,
    "partitions": {"features|BTC-2h|2024-01": "v1"},
    "libraries": {"lightgbm": "4"},
}


@pytest.fixture(scope="module")
def result(make_input):
    return run_backtest(make_input(n=12 * 180))


@pytest.fixture
def ledger(tmp_path):
    return TrialLedger(tmp_path, FixedClock(5))


def judged(result, ledger, **changes):
    return count_and_judge(result, INPUTS | changes, ledger, namespace="test", run_id="run")


def test_namespaces_follow_the_data():
    assert [namespace_of(name) for name in ("archive", "archive-vintages", "coinglass", "bybit")] == ["research"] * 4
    assert namespace_of("emulator", "planted, seed 1, from 2024-01-01") == "demo"
    assert namespace_of("emulator", "null, seed 1, from 2024-01-01") == "null"
    assert namespace_of("emulator") == "demo"


def test_a_backtest_is_counted_once_and_named(result, ledger):
    first = judged(result, ledger)
    again = judged(result, ledger)
    history = ledger.read("test")
    assert len(history.rows) == 1
    assert first.significance == again.significance
    assert first.significance.head == history.head
    assert history.rows[0].facts["code"] == "c" * 64
    np.testing.assert_array_equal(history.rows[0].returns.values, result.daily["unit"].to_numpy())


def test_what_a_training_counts_is_what_its_backtest_would(result, ledger):
    unit = run_unit(result.input)
    assert (unit.start_ms, unit.end_ms) == (result.start_ms, result.end_ms)
    assert unit.metrics["unit"] == result.metrics["unit"]
    pd.testing.assert_frame_equal(unit.daily, result.daily[["day", "unit"]], check_exact=True)
    first = count(unit, INPUTS, ledger, namespace="test", run_id="training")
    assert first.new
    assert judged(result, ledger).significance.head == first.row.head
    assert [row.run_id for row in ledger.read("test").rows] == ["training"]
    assert not count(unit, INPUTS, ledger, namespace="test", run_id="again").new


def test_choices_are_the_configuration_and_nothing_else_is(result):
    base = configuration_of(result, INPUTS)
    for choice in ("params", "feature_set", "targets", "walk_forward", "weights", "test_start_ms", "asked_end_ms"):
        assert configuration_of(result, INPUTS | {choice: "other"}) != base
    for other in ("code", "libraries", "partitions", "test_end_ms"):
        assert configuration_of(result, INPUTS | {other: "other"}) == base
    dearer = result.input.fees.model_copy(update={"taker_bp": 6.0})
    costly = dataclasses.replace(result, input=dataclasses.replace(result.input, fees=dearer))
    assert configuration_of(costly, INPUTS) != base
    for limit in ("rebalance_band", "max_forecast_age"):  # they bind at unit exposure too
        risk = result.input.risk.model_copy(update={limit: 0.5 * getattr(result.input.risk, limit)})
        other = dataclasses.replace(result, input=dataclasses.replace(result.input, risk=risk))
        assert configuration_of(other, INPUTS) != base
    json.dumps(base, allow_nan=False)


def test_the_data_version_knows_the_data(result):
    base = data_version_of(result, INPUTS)
    assert data_version_of(result, INPUTS | {"params": 1}) == base
    assert data_version_of(result, INPUTS | {"partitions": {"features|BTC-2h|2024-01": "v2"}}) != base
    # a stacked base that was trained again is no other data: what it changes is counted
    stacked = INPUTS["partitions"] | {"forecasts|BTC-2h|2h_lightgbm": "a" * 64}
    assert data_version_of(result, INPUTS | {"partitions": stacked}) == base
    bars = result.input.bars.copy()
    bars.loc[5, "close"] += 1.0
    moved = dataclasses.replace(result, input=dataclasses.replace(result.input, bars=bars))
    assert data_version_of(moved, INPUTS) != base


def test_a_broken_ledger_judges_nothing(result, ledger):
    judged(result, ledger)
    (ledger.home / "trials.sqlite").unlink()
    with pytest.raises(LedgerTamperedError):
        judged(result, ledger)


@pytest.fixture
def among(result, ledger):
    """The backtest beside thirty losers on the same days."""
    own = daily_series(result)
    for seed in range(30):
        returns = DailyReturns(own.first_day_ms, np.random.default_rng(seed).normal(0, 0.02, len(own.values)))
        ledger.append("test", {"loser": seed}, returns, data_version="d", run_id="r")
    return judged(result, ledger)


def test_the_report_shows_the_block(among):
    page = render_report(among)
    block = significance_block(among)
    assert "<section id='significance'>" in page
    assert block.sentence in page
    assert "N = 31" in page
    assert str(among.significance.head) in page
    assert f"{block.pbo_days:,} common days" in page
    assert "75.0%" in page  # the modelled share
    assert Head.parse(block.ledger_head).count == 31
    row = summary_row(among)
    assert (row["n_trials"], row["dsr"], row["pbo"]) == (31, among.significance.dsr, among.significance.pbo)
    assert row["significance"] == block.sentence


def test_the_flat_block_is_plain(among):
    values = flat(significance_block(among))
    json.dumps(values, allow_nan=False)
    assert values["trials counted (N)"] == 31
    assert {"PSR", "DSR", "PBO", "hit rate low", "break-even cost per side, bp", "share modelled"} <= set(values)
    assert all(isinstance(value, str | int | float) for value in values.values())


def test_not_significant_is_said(make_input, ledger):
    weak = run_backtest(make_input(n=12 * 180, skill=0.0))
    block = significance_block(judged(weak, ledger))
    assert not block.significant
    assert block.sentence.startswith("not significant")
    assert "not significant" in flat(block)["significance"]


def test_a_good_result_alone_is_not_significant_among_many_like_it(result, ledger):
    """The same Sharpe ratio, first as the only trial, then as one of many widely spread ones."""
    alone = judged(result, ledger)
    own = daily_series(result)
    mean = own.values.mean()
    for seed in range(40):
        values = np.random.default_rng(seed).normal(0, own.values.std(), len(own.values)) + mean * (seed % 5 - 2)
        ledger.append("test", {"x": seed}, DailyReturns(own.first_day_ms, values), data_version="d", run_id="r")
    crowd = judged(result, ledger)
    assert alone.significance.dsr == alone.significance.psr
    assert crowd.significance.dsr < alone.significance.dsr
    if not crowd.verdict.significant and alone.verdict.significant:
        assert "41 trials" in significance_block(crowd).sentence


def test_without_a_ledger_the_block_says_so(result):
    block = significance_block(result)
    assert block.ledger_head == ""
    assert block.n_trials == 0
    assert "DSR" not in flat(block)
    assert "No trial ledger was asked" in flat(block)["not evaluated"]
