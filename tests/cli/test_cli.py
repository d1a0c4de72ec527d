"""The ``mlbot`` command as a person meets it: real processes, exit codes, one clear line for a mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("up", "backfill", "features", "train", "backtest", "report", "status", "doctor", "demo")
CANARY = "canary-5ecret-key-0123456789abcdef"

Mlbot = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A copy of the shipped configuration without anybody's keys."""
    folder = tmp_path / "config"
    shutil.copytree(ROOT / "config", folder, ignore=shutil.ignore_patterns("api_keys.yaml"))
    return folder


@pytest.fixture
def mlbot(tmp_path: Path, config: Path) -> Mlbot:
    """Run the command in an empty home and return what came of it."""

    def run(*args: str, **extra: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLBOT_", "DAGSTER_"))}
        return subprocess.run(
            [sys.executable, "-m", "mlbot_core.cli.main", *args],
            capture_output=True,
            text=True,
            # a folder without dagster.yaml or config: the command must not depend on where it is called
            cwd=tmp_path,
            env={
                **kept,
                "PYTHONPATH": str(ROOT),
                "MLBOT_HOME": str(tmp_path / "home"),
                "MLBOT_CONFIG_DIR": str(config),
                "MLBOT_ARCHIVE_DIR": str(tmp_path / "no-archive"),
                "MLBOT_CLOCK": "fixed:2024-06-01T00:10:00Z",
                **extra,
            },
            timeout=120,
            check=False,
        )

    return run


def assert_refused(done: subprocess.CompletedProcess[str], *names: str) -> None:
    """Exit code 2 and exactly one line on standard error, which names the thing."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("mlbot: ")
    for name in names:
        assert name in line


def test_help_lists_every_command_with_a_line_about_it(mlbot):
    done = mlbot("--help")
    assert done.returncode == 0
    listed = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith("  ")}
    for command in COMMANDS:
        assert len(listed[command]) >= 4, command
    assert "Exit status" in done.stdout
    assert mlbot("--version").stdout.startswith("mlbot 0.")


def test_help_of_a_command_names_its_options(mlbot):
    done = mlbot("backfill", "--help")
    assert done.returncode == 0
    for option in ("--interval", "--source", "--json"):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (("backfill", "--interval", "7x"), ("interval '7x'", "30m, 2h or 1d")),
        (("train", "-i", "6h"), ("interval '6h'", "30m, 1h, 2h, 4h")),
        (("backfill", "--from", "yesterday"), ("--from 'yesterday'", "2024-03-01")),
        (("train", "--to", "2024-13-01"), ("--to '2024-13-01'", "2024-03-01")),
        (("backfill", "--from", "1999-01-01"), ("--from '1999-01-01'", "2020-10-01", "history_start")),
        (("backfill", "--to", "2031-01-01"), ("--to '2031-01-01'", "future")),
        (("backfill", "--from", "2024-05-01", "--to", "2024-05-01"), ("2024-05-01", "empty")),
        (("backfill", "--source", "binance"), ("source 'binance'", "emulator, coinglass, bybit, archive")),
        (("train", "--model", "oracle"), ("model 'oracle'", "lightgbm")),
        (("backfill", "--symbol", "DOGE"), ("symbol 'DOGE'", "BTC")),
        (("backfill", "--source", "coinglass"), ("API key", "api_keys.yaml", "MLBOT_CG_API")),
        (("backfill", "--source", "archive"), ("btcusdt_perp_1h.parquet", "MLBOT_ARCHIVE_DIR")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) and value[0] in COMMANDS else "",
)
def test_a_mistake_gets_one_line_and_exit_code_2(mlbot, args, names):
    assert_refused(mlbot(*args), *names)


@pytest.mark.parametrize(
    "args", [("backfill", "--nope"), ("frobnicate",), ("backfill", "--from"), ("up", "--port", "0")]
)
def test_an_unknown_command_or_option_gets_exit_code_2_and_no_traceback(mlbot, args):
    done = mlbot(*args)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert next(arg for arg in reversed(args) if not arg.isdigit()) in done.stderr


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ({"MLBOT_CLOCK": "sundial"}, ("MLBOT_CLOCK='sundial'", "fixed:<ISO time>")),
        ({"MLBOT_SOURCE": "binance"}, ("'binance'", "intervals.yaml")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_environment_is_named(mlbot, extra, names):
    assert_refused(mlbot("backfill", **extra), *names)


def test_everything_that_is_wrong_in_the_configuration_is_said_at_once(mlbot):
    done = mlbot("backfill", MLBOT_CONFIG_DIR="/nowhere")
    assert done.returncode == 2
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    files = sorted(path.stem for path in (ROOT / "config").glob("*.yaml") if not path.stem.startswith("api_keys"))
    assert first == f"mlbot: {len(files)} things are wrong in the configuration:"
    rest.sort()
    for name, line in zip(files, rest, strict=True):
        assert line.strip().startswith(f"/nowhere/{name}.yaml is missing; restore it"), line


def test_a_wrong_value_in_a_file_is_named(mlbot, config):
    path = config / "intervals.yaml"
    path.write_text(path.read_text().replace("timeframes: [30m", "timeframes: [7m"))
    assert_refused(mlbot("backfill"), str(path), "timeframes", "7 minutes")
    path.write_text("symbols: [BTC\n")
    assert_refused(mlbot("status"), str(path), "not valid YAML")


def test_status_and_doctor_of_an_empty_home_are_json(mlbot, tmp_path):
    done = mlbot("status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    state = json.loads(done.stdout)
    assert state["home"] == str(tmp_path / "home")
    assert state["partitions"] == []
    assert state["up"] is None
    assert not (tmp_path / "home" / "warehouse.duckdb").exists(), "looking makes nothing"

    done = mlbot("doctor", "--json")
    assert "Traceback" not in done.stderr
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert {"python", "packages", "disk", "clock", "keys", "store"} <= set(findings)
    assert {finding["state"] for finding in findings.values()} <= {"ok", "note", "bad"}
    assert findings["source emulator"]["state"] == "ok"
    assert "SYNTHETIC" in findings["source emulator"]["text"]
    assert done.returncode == (1 if any(f["state"] == "bad" for f in findings.values()) else 0)


def test_status_of_an_empty_home_says_what_to_do(mlbot):
    done = mlbot("status")
    assert done.returncode == 0
    assert "mlbot backfill" in done.stdout


def test_what_rests_on_nothing_says_which_command_makes_it(mlbot):
    done = mlbot("train", "--interval", "4h", "--json")
    assert done.returncode == 1
    (run,) = json.loads(done.stdout)["runs"]
    assert run["success"] is False
    assert run["errors"] == [
        "no features of BTC-4h from emulator are stored; run: mlbot backfill --source emulator --interval 4h"
    ]
    assert "Traceback" not in done.stdout


def write_keys(config: Path, mode: int) -> Path:
    path = config / "api_keys.yaml"
    path.write_text(f'cg_api: "{CANARY}"\nbybit:\n  key: "{CANARY}-k"\n  secret: "{CANARY}-s"\nslack_webhook: ""\n')
    path.chmod(mode)
    return path


def test_keys_that_others_may_read_are_refused(mlbot, config):
    path = write_keys(config, 0o644)
    done = mlbot("backfill", "--source", "coinglass")
    assert_refused(done, str(path), "0644", f"chmod 600 {path}")
    assert CANARY not in done.stderr


@pytest.mark.parametrize("command", [("status",), ("doctor", "--json")])
def test_no_key_is_ever_shown(mlbot, config, command, tmp_path):
    write_keys(config, 0o600)
    # the client is sent to a closed port of this machine: what it says of that must not hold the key either
    done = mlbot(*command, MLBOT_COINGLASS_URL="http://127.0.0.1:9")
    assert done.returncode in (0, 1)
    assert CANARY not in done.stdout + done.stderr
    assert_no_file_holds_the_key(tmp_path / "home")


@pytest.mark.slow
def test_no_key_of_a_failed_pull_is_shown_or_written(mlbot, config, tmp_path):
    write_keys(config, 0o600)
    done = mlbot(
        "backfill",
        "--source",
        "coinglass",
        "--interval",
        "4h",
        "--from",
        "2024-05-01",
        MLBOT_COINGLASS_URL="http://127.0.0.1:9",
    )
    assert done.returncode == 1
    assert "cannot be reached" in done.stdout
    assert CANARY not in done.stdout + done.stderr
    assert_no_file_holds_the_key(tmp_path / "home")


def test_a_broken_key_file_is_named_without_its_content(mlbot, config):
    path = write_keys(config, 0o600)
    path.write_text(f'cg_api: "{CANARY}\nbybit: [')
    path.chmod(0o600)
    done = mlbot("backfill", "--source", "coinglass")
    assert_refused(done, str(path), "not valid YAML")
    assert CANARY not in done.stderr


def assert_no_file_holds_the_key(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            assert CANARY.encode() not in file.read_bytes(), file
