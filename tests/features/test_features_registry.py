"""The registry: order, warm-up, hash, description."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from mlbot_core.errors import UsageError
from mlbot_core.features import PANEL_COLUMNS, describe, feature_set
from mlbot_core.features import registry as r


def test_core_holds_at_least_45_features_of_every_family() -> None:
    core = feature_set("core", 240)
    assert len(core.names) == len(set(core.names)) >= 45
    families = {f.family for f in core.features}
    assert families == {"price", "volatility", "volume", "derivatives", "flow", "positioning", "calendar"}
    assert sum(f.normalise == "zscore" for f in core.features) >= 30


def test_the_price_set_needs_nothing_but_price_bars() -> None:
    columns = {name for f in feature_set("price", 240).features for name in r.panel_inputs(f.name)}
    assert columns <= {"ts", "open", "high", "low", "close", "volume_usd", "funding_rate"}


def test_order_puts_every_column_after_its_inputs() -> None:
    order = feature_set("core", 240).order
    for position, name in enumerate(order):
        for needed in r.node(name).inputs:
            assert needed in PANEL_COLUMNS or needed in order[:position]


def test_lookback_adds_up_along_the_inputs() -> None:
    assert r.total_lookback("close") == 0
    assert r.total_lookback("log_return") == 1
    assert r.total_lookback("vol_48") == 48  # 48 returns need 49 closes
    assert r.total_lookback("macd_hist") == 260 + 90
    core = feature_set("core", 240)
    assert core.lookback == 350 + 239
    assert feature_set("core", 100).lookback == max(271, 350 + 99)


def test_hash_changes_with_window_members_and_code() -> None:
    core = feature_set("core", 240)
    assert core.hash != feature_set("core", 241).hash
    assert core.hash != feature_set("price", 240).hash
    assert core.hash != r.make_feature_set("core", core.features[1:], 240).hash
    changed = dataclasses.replace(core.features[0], normalise="none")
    assert core.hash != r.make_feature_set("core", (changed, *core.features[1:]), 240).hash


def test_hash_is_the_same_in_another_process() -> None:
    code = "from mlbot_core.features import feature_set; print(feature_set('core', 240).hash)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == feature_set("core", 240).hash


def test_every_feature_is_described() -> None:
    rows = describe()
    assert [row["name"] for row in rows] == [f.name for f in r.all_features()]
    for row in rows:
        assert row["unit"], row
        assert row["definition"], row
        assert row["source"], row
        assert row["inputs"], row
        assert "{" not in f"{row['name']}{row['definition']}"
        assert "http" not in str(row["source"])


def test_calendar_is_not_normalised() -> None:
    calendar = {f.name: f.normalise for f in feature_set("core", 240).features if f.family == "calendar"}
    assert {name for name, rule in calendar.items() if rule == "zscore"} == {"funding_due"}


def test_unknown_sets_and_windows_are_refused() -> None:
    with pytest.raises(UsageError, match="choose one of core, price"):
        feature_set("cores", 240)
    with pytest.raises(UsageError, match="at least 2"):
        feature_set("core", 1)


@pytest.mark.parametrize(
    ("name", "inputs", "lookback", "words"),
    [
        ("ret_1", ("close",), 0, "declared twice"),
        ("close", ("open",), 0, "declared twice"),
        ("new", ("nothing",), 0, "needs nothing"),
        ("new", ("close",), -1, "never reads ahead"),
    ],
)
def test_a_wrong_declaration_is_refused(name: str, inputs: tuple[str, ...], lookback: int, words: str) -> None:
    declare = r.feature(name, inputs=inputs, lookback=lookback, unit="u", definition="d", source="s")
    with pytest.raises(UsageError, match=words):
        declare(lambda x: x)
    assert "new" not in {f.name for f in r.all_features()}
