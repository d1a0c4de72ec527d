"""What `mlbot up --live` runs, in which order, and which account each start trades on an emulator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mlbot_core.cli.live_services import live_set
from mlbot_core.config import Settings, load_settings
from mlbot_core.emulator.exchange.options import keys_of
from mlbot_core.errors import UsageError
from mlbot_core.execution.venues import known_accounts


def settings_of(home: Path, **more: str) -> Settings:
    return load_settings({"MLBOT_HOME": str(home), **more})


def test_what_trades_starts_after_what_it_needs(tmp_path: Path) -> None:
    found = live_set(settings_of(tmp_path), "127.0.0.1", 3000, warm=True)
    names = [service.name for service in found.services]
    assert names == [
        "emulator", "code-server", "webserver", "daemon", "risk-watch", "dead-man", "exporter", "alerts",
    ]  # fmt: skip
    assert found.environment["MLBOT_LIVE"] == "1"
    by_name = {service.name: service for service in found.services}
    assert "--warm" in by_name["code-server"].command
    workspace = yaml.safe_load((tmp_path / "dagster" / "workspace-live.yaml").read_text())
    server = workspace["load_from"][0]["grpc_server"]
    assert str(server["port"]) in by_name["code-server"].command
    assert by_name["code-server"].ready == ("127.0.0.1", server["port"])


def test_each_start_trades_an_account_of_its_own_on_an_emulator(tmp_path: Path) -> None:
    """An emulator forgets: in the book of the account before, its new history would be a contradiction."""
    settings = settings_of(tmp_path)
    uids = []
    for _ in range(3):
        found = live_set(settings, "127.0.0.1", 3000, warm=False)
        uid = int(found.environment["MLBOT_EMULATOR_UID"])
        uids.append(uid)
        assert {key.uid for key in keys_of(found.environment)} == {uid}
        (settings.live_dir / f"emulator_{uid}").mkdir()
        assert known_accounts(settings) == [f"emulator:{uid}"]
        told = json.loads((settings.live_dir / "emulator" / "running.json").read_text())
        assert told == {"url": found.environment["MLBOT_EMULATOR_URL"], "uid": uid}
    assert uids == [uids[0], uids[0] + 1, uids[0] + 2]


def test_an_emulator_that_runs_already_is_used(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, MLBOT_EMULATOR_URL="http://127.0.0.1:1")
    found = live_set(settings, "127.0.0.1", 3000, warm=False)
    assert "emulator" not in [service.name for service in found.services]
    assert "MLBOT_EMULATOR_UID" not in found.environment


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5"])
def test_an_account_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="MLBOT_EMULATOR_UID"):
        keys_of({"MLBOT_EMULATOR_UID": text})
