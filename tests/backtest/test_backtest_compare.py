"""``mlbot compare`` and ``mlbot report --open``, on backtests in a store of their own."""

from __future__ import annotations

import dataclasses
import json
import stat

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from mlbot_core.backtest.comparison import compare, configuration_changes, find_backtest
from mlbot_core.backtest.dataset import BACKTESTS_TABLE, EQUITY_TABLE
from mlbot_core.backtest.report import summary_row
from mlbot_core.backtest.run import run_backtest
from mlbot_core.backtest.trial import count_and_judge
from mlbot_core.cli import browser, output
from mlbot_core.cli.main import app
from mlbot_core.clock import FixedClock
from mlbot_core.errors import MissingDataError, UsageError
from mlbot_core.timeframe import DAY_MS
from mlbot_core.validation.significance import sharpe_ratio
from mlbot_core.validation.trials import open_ledger
from mlbot_core.warehouse import Warehouse, replace_window

NOW = 1_735_689_600_000
VERSIONS = ("aaaa1111" * 8, "aaaa2222" * 8)


@pytest.fixture(scope="module")
def results(make_input):
    """Two models of one market: other forecasts, and other fees."""
    first = make_input(n=12 * 100, skill=0.4, model_version=VERSIONS[0])
    second = make_input(n=12 * 120, skill=0.0, model_version=VERSIONS[1], model_type="catboost")
    fees = second.fees.model_copy(update={"maker_bars": 1})
    return [run_backtest(data) for data in (first, dataclasses.replace(second, fees=fees))]


@pytest.fixture(scope="module")
def home(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    clock = FixedClock(NOW)
    warehouse = Warehouse(folder / "warehouse.duckdb", clock)
    ledger = open_ledger(folder, clock, {})
    for at, result in enumerate(results):
        scope = {"source": "archive", "symbol": "BTC", "timeframe": "2h", "model_type": result.input.model_type}
        scope["model_version"] = result.input.model_version
        row = pa.table(
            {
                "created_at": pa.array([NOW + at], pa.int64()),
                "data_version": ["d"],
                "summary": [json.dumps(summary_row(result), sort_keys=True)],
                "run_id": ["r"],
            }
        )
        equity = pa.Table.from_pandas(result.equity, preserve_index=False).replace_schema_metadata(None)
        with warehouse.write() as con:
            replace_window(con, EQUITY_TABLE, scope, equity)
            replace_window(con, BACKTESTS_TABLE, scope, row)
        inputs = {"market": "BTC-2h", "params": {"learning_rate": 0.1 * (1 + at)}, "feature_set": "same"}
        count_and_judge(result, inputs, ledger, namespace="research", run_id="r")
    return folder


def _invoke(monkeypatch, home, *arguments):
    for name, value in {"MLBOT_HOME": str(home), "MLBOT_SOURCE": "archive", "MLBOT_CLOCK": f"fixed:{NOW}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLBOT_CLOCK", "fixed:2025-01-01T00:00:00Z")
    monkeypatch.delenv("MLBOT_PG_URL", raising=False)
    return CliRunner().invoke(app, ["compare", *arguments])


def _pair(home):
    with Warehouse(home / "warehouse.duckdb", FixedClock(NOW)).read() as con:
        return [find_backtest(con, version[:6], "archive") for version in VERSIONS]


def test_what_is_compared_are_the_common_days_of_what_was_stored(results, home):
    one, other = _pair(home)
    assert one.title == "BTC-2h lightgbm aaaa1111aaaa"
    np.testing.assert_allclose(one.daily["unit"], results[0].daily["unit"], atol=1e-15)
    found = compare(one, other)
    assert found.days == 100
    assert found.last_day_ms - found.first_day_ms == 99 * DAY_MS
    theirs = results[1].daily["unit"].to_numpy()[:100]
    mine = results[0].daily["unit"].to_numpy()
    assert found.metrics["Sharpe"] == pytest.approx((sharpe_ratio(mine), sharpe_ratio(theirs)))
    assert found.metrics["total return"][0] == pytest.approx(results[0].metrics["unit"].total_return)
    assert found.metrics["max drawdown"][0] == pytest.approx(results[0].metrics["unit"].drawdown.depth)
    assert found.difference.value == pytest.approx(365 * (theirs - mine).mean())
    assert found.difference.low < found.difference.value < found.difference.high
    assert found.correlation == pytest.approx(np.corrcoef(mine, theirs)[0, 1])
    # turned around, everything is
    back = compare(other, one)
    assert back.difference.value == pytest.approx(-found.difference.value)
    assert back.metrics["MAR"] == found.metrics["MAR"][::-1]
    assert compare(one, other, "traded").size == "traded"


def test_pairing_finds_a_small_constant_edge_that_two_intervals_would_not():
    rng = np.random.default_rng(4)
    base = rng.normal(0.0, 0.03, 400)
    days = 1_704_067_200_000 + DAY_MS * np.arange(400)
    stored = _stored(days, base), _stored(days, base + rng.normal(0.0005, 0.002, 400))
    found = compare(*stored)
    assert found.difference.low > 0
    assert "the second (B) earned more" in found.sentence
    same = compare(stored[0], stored[0])
    assert (same.difference.value, same.sentence) == (0.0, "too few common days that moved to tell")
    assert same.correlation == pytest.approx(1.0)
    unlike = _stored(days, rng.normal(0.0, 0.03, 400))
    assert compare(stored[0], unlike).sentence.startswith("not shown to differ")


def _stored(days, returns):
    from mlbot_core.backtest.comparison import StoredBacktest
    from mlbot_core.timeframe import Market

    daily = pd.DataFrame({"day": days, "unit": returns, "traded": returns / 10, "hold": returns})
    return StoredBacktest("archive", Market.parse("BTC-2h"), "lightgbm", "f" * 64, NOW, {}, daily)


def test_days_that_are_not_shared_and_sizes_that_are_none_are_refused():
    days = 1_704_067_200_000 + DAY_MS * np.arange(40)
    one, later = _stored(days, np.zeros(40)), _stored(days + 40 * DAY_MS, np.zeros(40))
    with pytest.raises(UsageError, match="share no day"):
        compare(one, later)
    with pytest.raises(UsageError, match="size 'double' is unknown"):
        compare(one, one, "double")


def test_a_backtest_is_found_by_market_and_by_a_unique_prefix(home):
    with Warehouse(home / "warehouse.duckdb", FixedClock(NOW)).read() as con:
        assert find_backtest(con, "BTC-2h|catboost", "archive").model_version == VERSIONS[1]
        with pytest.raises(UsageError, match="fits several backtests: aaaa1111aaaa"):
            find_backtest(con, "aaaa", "archive")
        with pytest.raises(UsageError, match="too short"):
            find_backtest(con, "aaa", "archive")
        with pytest.raises(MissingDataError, match="mlbot status"):
            find_backtest(con, "BTC-2h|lightgbm", "emulator")
        with pytest.raises(MissingDataError, match="bbbb"):
            find_backtest(con, "bbbb", "archive")


def test_configurations_differ_by_their_flat_names():
    one = {"a": {"b": 1, "c": [1, 2]}, "d": 1, "e": 5}
    other = {"a": {"b": 2, "c": [1, 2]}, "d": 1, "f": None}
    assert configuration_changes(one, other) == {"a.b": (1, 2), "e": (5, None)}


def test_the_command_prints_tables_and_json(monkeypatch, home):
    shown = _invoke(monkeypatch, home, "BTC-2h|lightgbm", VERSIONS[1][:8])
    assert shown.exit_code == 0, shown.output
    for text in ("A: BTC-2h lightgbm aaaa1111aaaa", "(SYNTHETIC)", "The 100 common days", "Sharpe", "tail ratio"):
        assert text in shown.output
    assert "fees.maker_bars" in shown.output
    assert "params.learning_rate" in shown.output
    assert "feature_set" not in shown.output
    done = _invoke(monkeypatch, home, "BTC-2h|lightgbm", VERSIONS[1][:8], "--json", "--size", "traded")
    document = json.loads(done.output)
    assert document["common"] == {"first_day": "2024-01-01T00:00:00Z", "last_day": "2024-04-09T00:00:00Z", "days": 100}
    assert document["configuration"]["fees.maker_bars"] == [0, 1]
    assert document["size"] == "traded"
    assert document["difference"]["low"] < document["difference"]["annual"] < document["difference"]["high"]
    assert [side["model_version"] for side in document["backtests"]] == list(VERSIONS)


def test_a_report_is_opened_in_the_browser_that_there_is(monkeypatch, tmp_path):
    report = tmp_path / "a report.html"
    report.write_text("<p>", encoding="utf-8")
    asked = tmp_path / "asked"
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" > {asked}\n', encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr("webbrowser._tryorder", None)
    monkeypatch.setenv("BROWSER", f"{script} %s")
    assert browser.open_files([report], output.console())
    assert asked.read_text(encoding="utf-8").strip() == report.as_uri()
    monkeypatch.setattr("webbrowser._tryorder", None)
    monkeypatch.setenv("BROWSER", str(tmp_path / "none %s"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DISPLAY", raising=False)
    assert not browser.open_files([report], output.console())
