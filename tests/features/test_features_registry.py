"""The registry: order, warm-up, hash, description."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from mlbot_core.config import FeatureConfig, FeatureSetConfig, load_settings
from mlbot_core.errors import ConfigError, UsageError
from mlbot_core.features import PANEL_COLUMNS, configured_set, describe, families, feature_set
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
    with pytest.raises(UsageError, match=r"'cores' is unknown; choose one of .*core.*price"):
        feature_set("cores", 240)
    with pytest.raises(UsageError, match="at least 2"):
        feature_set("core", 1)


def test_the_full_set_holds_every_feature_of_every_family_and_at_least_300() -> None:
    full = feature_set("full", 240)
    assert full.names == tuple(f.name for f in r.all_features())
    assert len(set(full.names)) == len(full.names) >= 300
    assert {f.family for f in full.features} == set(families())


def test_a_set_is_families_with_names_added_taken_out_and_scaled_otherwise() -> None:
    volume = {f.name for f in r.all_features() if f.family == "volume"}
    sets = {
        "mine": FeatureSetConfig(families=("volume",), include=("ret_4", "hour_sin"), exclude=("amihud_24",)),
        "ranked": FeatureSetConfig(families=("volume",), normalise="rank"),
    }
    mine = feature_set("mine", 240, sets)
    assert set(mine.names) == (volume | {"ret_4", "hour_sin"}) - {"amihud_24"}
    ranked = feature_set("ranked", 240, sets)
    as_declared = {f.name: f.normalise for f in r.all_features()}
    assert {f.normalise for f in ranked.features if as_declared[f.name] == "zscore"} == {"rank"}
    assert all(f.normalise == as_declared[f.name] for f in ranked.features if as_declared[f.name] != "zscore")
    assert ranked.hash != feature_set("ranked", 240, {"ranked": FeatureSetConfig(families=("volume",))}).hash


def test_every_mistake_in_the_definitions_is_listed_at_once() -> None:
    sets = {
        "a": FeatureSetConfig(families=("prices", "volume"), include=("ret_5000",)),
        "b": FeatureSetConfig(families=("volume",), exclude=("nonsense",)),
        "c": FeatureSetConfig(include=("ret_4",), exclude=("ret_4",)),
        "d": FeatureSetConfig(),
    }
    with pytest.raises(ConfigError) as caught:
        feature_set("a", 240, sets)
    for words in (
        "a: there is no family 'prices'",
        "a: include names 'ret_5000'",
        "b: exclude names 'nonsense'",
        "c: 'ret_4' is both included and excluded",
        "d: it holds no feature",
        "families are ",
    ):
        assert words in str(caught.value)


def test_the_configuration_chooses_the_set_and_defines_its_own() -> None:
    config = load_settings().models.features
    assert configured_set(config).name == config.set
    assert configured_set(config, "price") == feature_set("price", config.zscore_window)
    assert configured_set(FeatureConfig(set="core", zscore_window=60)).names == feature_set("core", 60).names
    own = FeatureConfig(set="tiny", zscore_window=60, sets={"tiny": FeatureSetConfig(include=("ret_4",))})
    assert configured_set(own).names == ("ret_4",)
    with pytest.raises(UsageError, match="choose one of tiny"):
        configured_set(own, "core")


@pytest.mark.parametrize(
    ("name", "inputs", "lookback", "words"),
    [
        ("ret_1", ("close",), 0, "declared twice"),
        ("close", ("open",), 0, "declared twice"),
        ("new", ("nothing",), 0, "needs nothing"),
        ("new", ("close",), -1, "never reads ahead"),
        ("New", ("close",), 0, "cannot name a column"),
    ],
)
def test_a_wrong_declaration_is_refused(name: str, inputs: tuple[str, ...], lookback: int, words: str) -> None:
    declare = r.feature(name, inputs=inputs, lookback=lookback, unit="u", definition="d", source="s")
    with pytest.raises(UsageError, match=words):
        declare(lambda x: x)
    assert "new" not in {f.name for f in r.all_features()}
