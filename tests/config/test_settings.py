"""Configuration: every wrong value is named, and secrets stay secret."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlbot_core.config import load_api_keys, load_settings
from mlbot_core.config.settings import checkout_root
from mlbot_core.errors import ConfigError, UsageError

CANARY = "canary-4f1d-secret"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "config"
    shutil.copytree(checkout_root() / "config", folder, ignore=shutil.ignore_patterns("api_keys.yaml"))
    return folder


def load(config: Path, **environ: str) -> object:
    return load_settings({"MLBOT_CONFIG_DIR": str(config), "MLBOT_HOME": str(config.parent / "home")} | environ)


def edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text(encoding="utf-8")
    after = change(before)
    assert after != before, "the test's own edit must take"
    path.write_text(after, encoding="utf-8")


def test_what_is_shipped_loads(config: Path) -> None:
    settings = load_settings({"MLBOT_CONFIG_DIR": str(config), "MLBOT_HOME": str(config.parent / "home")})
    assert [str(m) for m in settings.intervals.markets] == ["BTC-30m", "BTC-1h", "BTC-2h", "BTC-4h"]
    assert settings.home == config.parent / "home"
    assert settings.risk.max_position == 0.10
    assert settings.fees.taker_bp == 5.5
    with pytest.raises(Exception, match="frozen"):
        settings.risk.max_position = 1.0  # type: ignore[misc]


def test_the_environment_chooses_source_and_threads(config: Path) -> None:
    settings = load_settings({"MLBOT_CONFIG_DIR": str(config), "MLBOT_SOURCE": "archive", "MLBOT_THREADS": "3"})
    assert settings.intervals.source == "archive"
    assert settings.threads == 3
    with pytest.raises(ConfigError, match="source 'moon' is unknown; choose one of emulator"):
        load(config, MLBOT_SOURCE="moon")
    with pytest.raises(ConfigError, match="MLBOT_THREADS='two'"):
        load(config, MLBOT_THREADS="two")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("risk.yaml", "max_position: 0.10", "max_position: 10", "max_position"),
        ("risk.yaml", "max_position: 0.10", "max_positoin: 0.1", "max_positoin"),
        ("risk.yaml", "price_band: 0.02", "price_band: 2", "gate.price_band"),
        ("execution.yaml", "venue: emulator", "venue: moon", "emulator, paper, demo, testnet, mainnet"),
        ("execution.yaml", "model: meta", "model: oracle", "model 'oracle' is unknown"),
        ("execution.yaml", "lease_s: 10", "lease_s: 20", "must have lost its lease before the dead-man acts"),
        ("execution.yaml", "deadman_after_s: 20", "deadman_after_s: 3", "would halt a healthy trader"),
        ("fees.yaml", "taker_bp: 5.5", "taker_bp: -1", "taker_bp"),
        ("intervals.yaml", "[30m, 1h, 2h, 4h]", "[30m, 7h]", "timeframes.1"),
        ("intervals.yaml", "history_start: 2020-10-01", "history_start: 2020-10-02", "first day of a month"),
        ("intervals.yaml", "  archive: 5\n", "", "settle_delay_s lacks archive"),
        ("models.yaml", "min_train_days: 120", "min_train_days: 9999", "exceeds train_days"),
        ("models.yaml", "num_leaves: 15", "num_leaves: [", "not valid YAML"),
    ],
)
def test_a_wrong_value_is_named(config: Path, file: str, old: str, new: str, message: str) -> None:
    edit(config / file, lambda text: text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load(config)
    assert message in str(caught.value)
    assert file in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_wrong_values_are_named_at_once(config: Path) -> None:
    (config / "risk.yaml").write_text("max_position: 2\ndaily_loss_limit: 0\nmax_drawdown: x\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(config)
    for name in ("max_position", "daily_loss_limit", "max_drawdown"):
        assert name in str(caught.value)


def test_a_missing_or_shapeless_file_says_what_to_do(config: Path) -> None:
    (config / "fees.yaml").write_text("- 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="mapping of names"):
        load(config)
    (config / "fees.yaml").unlink()
    with pytest.raises(ConfigError, match="restore it from the repository"):
        load(config)


def test_an_unconfigured_market_lists_the_configured_ones(config: Path) -> None:
    settings = load_settings({"MLBOT_CONFIG_DIR": str(config)})
    with pytest.raises(UsageError, match="BTC-30m, BTC-1h, BTC-2h, BTC-4h"):
        settings.intervals.market("BTC-12h")


def write_keys(config: Path, text: str, mode: int = 0o600) -> Path:
    path = config / "api_keys.yaml"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def test_keys_have_the_users_shape(config: Path) -> None:
    write_keys(config, f"cg_api: {CANARY}\nbybit:\n  key: k\n  secret: s\nslack_webhook: w\n")
    keys = load_api_keys(config, {})
    assert keys.cg_api.get_secret_value() == CANARY
    assert (keys.bybit.key.get_secret_value(), keys.bybit.secret.get_secret_value()) == ("k", "s")
    assert CANARY not in f"{keys} {keys!r}"
    assert CANARY not in keys.model_dump_json()


def test_the_example_is_a_valid_file_without_keys(config: Path) -> None:
    write_keys(config, (config / "api_keys.example.yaml").read_text(encoding="utf-8"))
    assert load_api_keys(config, {}).cg_api.get_secret_value() == ""


def test_the_environment_wins_and_no_file_means_no_keys(config: Path) -> None:
    assert load_api_keys(config, {}).cg_api.get_secret_value() == ""
    write_keys(config, "cg_api: from-file\nbybit:\n  key: k\n")
    keys = load_api_keys(config, {"MLBOT_CG_API": CANARY, "MLBOT_BYBIT_SECRET": "s2"})
    assert keys.cg_api.get_secret_value() == CANARY
    assert (keys.bybit.key.get_secret_value(), keys.bybit.secret.get_secret_value()) == ("k", "s2")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(config: Path, mode: int) -> None:
    write_keys(config, f"cg_api: {CANARY}\n", mode)
    with pytest.raises(ConfigError, match="chmod 600") as caught:
        load_api_keys(config, {})
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"cg_api: [{CANARY}",
        f"cg_api: {{a: {CANARY}}}\n",
        f"{CANARY}: 1\n",
        f"- {CANARY}\n",
        f"bybit: {CANARY}\n",
        f"cg_api: !!binary {CANARY}\n",
    ],
)
def test_a_malformed_key_file_is_refused_without_quoting_it(config: Path, text: str) -> None:
    write_keys(config, text)
    with pytest.raises(ConfigError, match=r"api_keys\.example\.yaml") as caught:
        load_api_keys(config, {})
    error = caught.value
    assert error.__suppress_context__ or error.__context__ is None, "a chained traceback would print the text"
    assert CANARY not in f"{error} {error.__cause__}"


def test_the_decision_clock_is_a_configured_market(config: Path) -> None:
    environment = {"MLBOT_CONFIG_DIR": str(config)}
    assert str(load_settings(environment).decision_market) == "BTC-2h"
    edit(config / "intervals.yaml", lambda text: text.replace("[30m, 1h, 2h, 4h]", "[1h]"))
    with pytest.raises(
        ConfigError, match=r"decides on BTC-2h, which intervals.yaml does not have; choose among BTC-1h"
    ):
        _ = load_settings(environment).decision_market
