"""What people mistype: exit status 2 and one clear line that names the thing, the value and the next step."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlbot_core.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


Mlbot = Callable[..., Outcome]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "config"
    shutil.copytree(ROOT / "config", folder, ignore=shutil.ignore_patterns("api_keys.yaml"))
    return folder


@pytest.fixture
def mlbot(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Mlbot:
    """Call the entry point in an empty home; a traceback would come out of it as an exception."""
    monkeypatch.setenv("MLBOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLBOT_CONFIG_DIR", str(config))
    monkeypatch.setenv("MLBOT_ARCHIVE_DIR", str(tmp_path / "no-archive"))
    monkeypatch.setenv("MLBOT_CLOCK", "fixed:2024-06-01T00:10:00Z")
    for name in ("MLBOT_SOURCE", "MLBOT_CG_API", "MLBOT_BYBIT_KEY", "MLBOT_BYBIT_SECRET", "MLBOT_PG_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str, **extra: str) -> Outcome:
        for name, value in extra.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["mlbot", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Outcome(0 if code is None else int(code), captured.out, captured.err)

    return run


def refused(done: Outcome, *names: str) -> None:
    assert done.status == 2, done
    assert done.out == ""
    assert "Traceback" not in done.err
    (line,) = done.err.splitlines()
    assert line.startswith("mlbot: ")
    for name in names:
        assert name in line, line


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ("backfill --interval 7x", ("'7x'", "30m, 2h or 1d")),
        ("backfill --interval 6h", ("'6h'", "30m, 1h, 2h, 4h")),
        ("backfill --from yesterday", ("--from 'yesterday'", "2024-03-01")),
        ("backfill --from 2024-02-30", ("--from '2024-02-30'", "2024-03-01")),
        ("backfill --from 2024-05-01 --to 2024-04-01", ("2024-05-01", "2024-04-01", "empty")),
        ("backfill --series tulips", ("'tulips'", "price")),
        ("backfill --symbol DOGE", ("'DOGE'", "BTC", "intervals.yaml")),
        ("backfill --source binance", ("'binance'", "emulator, coinglass")),
        ("backfill --source coinglass", ("key", "MLBOT_CG_API")),
        ("backfill --source archive", ("MLBOT_ARCHIVE_DIR",)),
        ("features list --set core2", ("'core2'", "core")),
        ("features list --family tulips", ("'tulips'", "volatility")),
        ("train --model oracle", ("'oracle'", "lightgbm")),
        ("train --model constant --optimize", ("'constant'", "lightgbm")),
        ("train --from 2024-05-01 --to 2024-04-01", ("2024-05-01", "2024-04-01")),
        ("backtest --model oracle", ("'oracle'", "lightgbm")),
        ("report --interval 7x", ("'7x'",)),
        ("signal --interval 7x", ("'7x'",)),
        ("signal --source binance", ("'binance'", "emulator")),
        ("series fetch tulips", ("'tulips'", "price")),
        ("series fetch --interval 7x", ("'7x'",)),
        ("series fetch --source binance", ("'binance'", "emulator")),
        ("db snapshot june --at yesterday", ("--at 'yesterday'", "2025-06-30")),
        ("db import nowhere", ("nowhere", "mlbot db export")),
        ("models show nope", ("'nope'",)),
        ("models show 123456789abc", ("123456789abc",)),
        ("models promote 123456789abc --why because", ("123456789abc",)),
        ("models retire 123456789abc --why because", ("123456789abc",)),
        ("models compare 123456789abc abcdef123456", ("123456789abc",)),
        ("models rollback --why because", ("0 markets",)),
        ("models explain --model oracle", ("'oracle'", "lightgbm")),
        ("explain nope", ("'nope'",)),
        ("explain 123456789abc", ("123456789abc",)),
        ("replay 123456789abc", ("123456789abc",)),
        ("trials list --namespace tulips", ("'tulips'", "research")),
        ("research table --source emulator --model oracle", ("'oracle'", "lightgbm")),
        ("bandit evaluate --model oracle", ("'oracle'", "lightgbm")),
        ("probe --venue binance", ("'binance'", "emulator")),
        ("up --host 203.0.113.7", ("203.0.113.7", "--host")),
    ],
)
def test_a_mistake_gets_one_line(mlbot: Mlbot, args: str, names: tuple[str, ...]) -> None:
    refused(mlbot(*args.split()), *names)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ("backfil", "backfil"),
        ("models lst", "lst"),
        ("backfill --nope", "--nope"),
        ("backfill --from", "--from"),
        ("up --port 0", "--port"),
        ("up --port many", "--port"),
        ("series fetch --days 0", "--days"),
        ("halt", "--reason"),
        ("trials export", "path"),
    ],
)
def test_a_command_line_that_cannot_be_read_names_what_is_wrong(mlbot: Mlbot, args: str, named: str) -> None:
    done = mlbot(*args.split())
    assert (done.status, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert named in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("variable", "value", "names"),
    [
        ("MLBOT_CLOCK", "sundial", ("'sundial'", "fixed:<ISO time>")),
        ("MLBOT_CLOCK", "fixed:noon", ("'fixed:noon'", "fixed:<ISO time>")),
        ("MLBOT_CLOCK", "file:/nowhere/clock", ("/nowhere/clock", "file:<path>")),
        ("MLBOT_SOURCE", "binance", ("'binance'", "intervals.yaml")),
        ("MLBOT_THREADS", "many", ("MLBOT_THREADS='many'",)),
        ("MLBOT_HOME", "/dev/null/home", ("/dev/null/home", "MLBOT_HOME")),
        ("MLBOT_ARCHIVE_DIR", "/nowhere", ("/nowhere", "MLBOT_ARCHIVE_DIR")),
    ],
)
def test_a_wrong_environment_is_named(mlbot: Mlbot, variable: str, value: str, names: tuple[str, ...]) -> None:
    command = ["backfill", "--source", "archive"] if variable == "MLBOT_ARCHIVE_DIR" else ["backfill", "-i", "4h"]
    refused(mlbot(*command, **{variable: value}), *names)


@pytest.mark.parametrize("command", ["status", "doctor", "features list", "trials list", "models list", "db gaps"])
def test_a_home_that_cannot_be_is_named(mlbot: Mlbot, command: str) -> None:
    done = mlbot(*command.split(), MLBOT_HOME="/dev/null/home")
    assert "Traceback" not in done.err
    if done.status:
        assert "/dev/null/home" in done.err + done.out


def test_a_configuration_of_nowhere_names_every_file(mlbot: Mlbot) -> None:
    done = mlbot("status", MLBOT_CONFIG_DIR="/nowhere")
    assert (done.status, done.out) == (2, "")
    first, *rest = done.err.splitlines()
    assert "things are wrong in the configuration" in first
    assert all("/nowhere/" in line and "MLBOT_CONFIG_DIR" in line for line in rest)


@pytest.mark.parametrize(
    ("file", "old", "new", "names"),
    [
        ("intervals", "symbols: [BTC]", "symbols: [BTC", ("not valid YAML",)),
        ("intervals", "source: emulator", "sauce: emulator", ("sauce", "one of the keys", "source")),
        ("intervals", "timeframes: [30m", "timeframes: [7m", ("7 minutes",)),
        ("risk", "max_position: 0.10", "max_position: 10", ("max_position", "10", "<= 1")),
        ("risk", "max_position: 0.10", "max_position: ten", ("max_position", "'ten'")),
        ("fees", "tier: vip0", "tier: vip9", ("vip9", "vip1")),
        ("execution", "venue: emulator", "venue: binance", ("venue", "'binance'", "paper")),
        ("execution", "model: meta", "model: oracle", ("oracle", "lightgbm")),
        ("models", "set: core", "set: tulips", ("tulips",)),
        ("bandit", "policy: lints", "policy: dice", ("dice", "lints")),
    ],
)
def test_a_wrong_file_is_named_with_what_is_allowed(
    mlbot: Mlbot, config: Path, file: str, old: str, new: str, names: tuple[str, ...]
) -> None:
    path = config / f"{file}.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    done = mlbot("features", "list")
    assert (done.status, done.out) == (2, ""), done
    assert "Traceback" not in done.err
    for name in names:
        assert name in done.err
    assert str(path) in done.err or file == "models"


def test_a_file_that_cannot_be_read_is_named(mlbot: Mlbot, config: Path) -> None:
    path = config / "risk.yaml"
    path.write_bytes(b"max_position: \xff\xfe\n")
    refused(mlbot("status"), str(path))
    path.unlink()
    path.mkdir()
    refused(mlbot("status"), str(path))


def test_keys_that_others_can_read_are_refused_without_showing_them(mlbot: Mlbot, config: Path) -> None:
    path = config / "api_keys.yaml"
    path.write_text("cg_api: canary-5ecret\n")
    path.chmod(0o644)
    done = mlbot("backfill", "--source", "coinglass")
    refused(done, str(path), "chmod 600")
    assert "canary" not in done.err
