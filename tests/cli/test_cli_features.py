"""``mlbot features list``: what the registry says, for people and for programs."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mlbot_core.cli.main import app
from mlbot_core.errors import UsageError
from mlbot_core.features import feature_set

RUN = CliRunner()


def test_json_is_the_set_of_the_configuration() -> None:
    result = RUN.invoke(app, ["features", "list", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    core = feature_set("core", found["zscore_window"])
    assert found["set"] == "core"
    assert found["hash"] == core.hash
    assert found["lookback"] == core.lookback
    assert [row["name"] for row in found["features"]] == list(core.names)
    assert {"name", "family", "unit", "definition", "source", "inputs", "lookback", "normalise"} == set(
        found["features"][0]
    )
    assert found["sets"]["core"] == len(core.names) < found["sets"]["full"]
    assert "price" in found["series"]


def test_one_family_of_another_set() -> None:
    found = json.loads(RUN.invoke(app, ["features", "list", "--set", "full", "--family", "flow", "--json"]).stdout)
    assert found["set"] == "full"
    assert {row["family"] for row in found["features"]} == {"flow"}


def test_the_table_names_every_feature() -> None:
    text = RUN.invoke(app, ["features", "list", "--set", "price", "--family", "calendar"]).stdout
    assert "feature set price" in text
    for name in (f.name for f in feature_set("price", 240).features if f.family == "calendar"):
        assert name in text


def test_a_wrong_name_is_a_mistake_that_says_what_there_is() -> None:
    with pytest.raises(UsageError, match="choose one of"):
        RUN.invoke(app, ["features", "list", "--set", "nope"], catch_exceptions=False)
    with pytest.raises(UsageError, match="has no family 'nope'"):
        RUN.invoke(app, ["features", "list", "--family", "nope"], catch_exceptions=False)


def test_without_a_command_it_still_makes_features() -> None:
    with pytest.raises(UsageError, match="540 minutes"):
        RUN.invoke(app, ["features", "--interval", "9h"], catch_exceptions=False)
