"""The nightly audit as Dagster shows it: a certificate of a day that was traded, and none of one that was not."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from mlbot_core.clock import format_utc
from mlbot_core.errors import UsageError
from mlbot_core.live.parity import Parity
from mlbot_core.live.parity_day import NOTHING_TRADED, ParityDay, certify_day, day_of, without_handed_over
from mlbot_core.timeframe import DAY_MS, HOUR_MS


@pytest.fixture
def materialize(home: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Materialize an asset of the audit as its job does, at the home's time; return metadata and checks."""
    for name in [name for name in os.environ if name.startswith(("MLBOT_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLBOT_HOME", str(home.settings.home))
    monkeypatch.setenv("MLBOT_CONFIG_DIR", str(home.settings.config_dir))
    monkeypatch.setenv("MLBOT_SOURCE", "emulator")

    def run(name: str, **config: Any) -> tuple[dict[str, Any], dict[str, bool]]:
        from mlbot_dagster.assets import audit
        from mlbot_dagster.resources import MarketData, WarehouseResource

        monkeypatch.setenv("MLBOT_CLOCK", f"fixed:{format_utc(home.clock.now_ms())}")
        assets = audit.build(home.settings)
        key = dg.AssetKey(["audit", name])
        done = dg.materialize(
            assets,
            selection=[key],
            resources={
                "warehouse": WarehouseResource(database=str(home.settings.warehouse_path)),
                "market_data": MarketData(),
            },
            run_config={"ops": {f"audit__{name}": {"config": config}}},
        )
        assert done.success
        (event,) = done.asset_materializations_for_node(f"audit__{name}")
        checks = {one.check_name: one.passed for one in done.get_asset_check_evaluations()}
        return {key: value.value for key, value in event.metadata.items()}, checks

    return run


def test_a_day_without_trading_is_not_called_parity(home, materialize):
    shown, checks = materialize("parity")
    assert checks == {"parity": True}
    assert (shown["outcome"], shown["accounts"]) == (NOTHING_TRADED, 0)
    assert shown["day"] == "2024-09-19"
    assert NOTHING_TRADED in shown["what came out"]
    assert "parity:" not in shown["what came out"].replace(NOTHING_TRADED, "")
    with pytest.raises(UsageError, match="the last one is 2024-09-19"):
        day_of("2024-09-20", home.clock)
    with pytest.raises(UsageError, match="is no day"):
        day_of("yesterday", home.clock)


def test_without_challengers_the_shadow_says_so(materialize):
    shown, checks = materialize("shadow", days=3)
    assert checks == {"same_bars": True}
    assert shown["challengers"] == 0
    assert "no challenger forecast in the last 3 days" in shown["what came out"]


def test_a_bar_that_the_next_account_decided_is_not_missing(tools):
    bars = pd.DataFrame({"ts": [0, HOUR_MS]}).assign(position_ok=True, price_ok=True)
    nothing = pd.DataFrame({"ts": [], "identical": []})
    first = Parity(tools.TWO, 0, DAY_MS, 0, nothing, bars, {}, (2 * HOUR_MS, 3 * HOUR_MS, 4 * HOUR_MS), ())
    second = replace(first, bars=bars.assign(ts=[3 * HOUR_MS, 4 * HOUR_MS]), undecided=())
    found = ParityDay(tools.TWO, 0, without_handed_over({"emulator:1": first, "emulator:2": second}))
    assert found.accounts["emulator:1"].undecided == (2 * HOUR_MS,)
    assert found.findings == ("emulator:1: 1 bars were not decided, the first 1970-01-01T02:00:00Z",)
    assert found.outcome == "no parity"
    alone = ParityDay(tools.TWO, 0, without_handed_over({"emulator:2": second}))
    assert (alone.outcome, alone.passed) == ("parity", True)
    assert alone.line().startswith("BTC-2h 1970-01-01: parity: 2 decided bars of emulator:2")


@pytest.mark.slow
def test_a_traded_day_shows_each_fill_and_fails_when_a_bar_was_not_decided(day, tools, materialize):
    shown, checks = materialize("parity")
    # eleven bars were decided, and the one that closed at 24 o'clock is the next day's
    assert checks == {"parity": True}, shown["what came out"]
    assert shown["outcome"] == "parity"
    assert shown["day"] == "2024-09-20"
    rows = [record.data for record in shown[f"fills of {tools.ACCOUNT}"].records]
    filled = [row for row in rows if row["live_qty"]]
    assert len(filled) >= 5
    for row in filled:
        assert row["within"]
        assert row["live_fee"] > 0
        assert abs(row["fee_difference"]) <= max(0.01, 0.005 * row["fee"])
        assert abs(row["price_bp"]) <= row["band_bp"]
    assert any(row["live_funding"] for row in rows)
    assert f"plot of {tools.ACCOUNT}" in shown
    # a bar that nobody decided fails the check
    later = certify_day(day.home.store, day.home.settings, tools.SOURCE, tools.NOW // DAY_MS * DAY_MS)
    assert later.passed
    skip_one(day, tools)
    shown, checks = materialize("parity", day="2024-09-21")
    assert checks == {"parity": False}
    assert "bars were not decided" in shown["findings"]


def skip_one(day: Any, tools: Any) -> None:
    """Decide only one bar of the next day."""
    from mlbot_core.decision.state import Forecast

    home = day.home
    home.at("2024-09-21T02:00:05Z")
    home.pull(tools.TWO)
    home.clock.sleep(1.2)
    day.trader.decide(tools.TWO.timeframe.last_closed(home.clock.now_ms()), Forecast(0.0, 1.0, 0), {})
    home.at("2024-09-22T00:00:30Z")
    home.pull(tools.TWO)
