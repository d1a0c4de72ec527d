"""Whoever comes from the former bot is told commands that exist, in both languages the same ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mlbot_core.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = {page: (ROOT / "docs" / page).read_text(encoding="utf-8") for page in
         ("from-the-former-bot.md", "from-the-former-bot.ja.md")}  # fmt: skip
FORMER = ("download", "feature", "target", "train", "backtest", "live_signal", "execution", "risk")
FOLDERS = ("data/raw", "data/features", "models", "reports", "signals", "logs")


def commands(text):
    return sorted(set(re.findall(r"`(mlbot [^`]*)`", text)))


ALL = commands(PAGES["from-the-former-bot.md"])


@pytest.mark.parametrize("command", ALL)
def test_every_command_is_understood_with_its_options(command):
    words = shlex.split(command)[1:]
    # an option that is not known ends before help is shown
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0, done.output
    assert "Usage: " in done.output
    assert CliRunner().invoke(app, [*words, "--no-such-option", "--help"]).exit_code == 2


def test_both_languages_name_the_same_commands_files_and_addresses():
    english, japanese = PAGES.values()
    assert len(ALL) >= 20
    assert commands(japanese) == ALL
    # split at the signs: every second piece is code
    codes = [set(page.replace("\n", " ").split("`")[1::2]) for page in PAGES.values()]
    names = [{code for code in found if re.fullmatch(r"[\x20-\x7e]+", code)} for found in codes]
    # the only code with a word of its language in it
    assert names[0] - names[1] == {"docker compose -f deploy/docker-compose.yml run --rm NAME"}
    assert names[1] <= names[0]
    assert english.count("\n## ") == japanese.count("\n## ")


@pytest.mark.parametrize("page", PAGES)
def test_every_former_command_and_folder_has_its_line(page):
    rows = [line for line in PAGES[page].splitlines() if line.startswith("| `")]
    for name in FORMER:
        assert [row for row in rows if row.startswith(f"| `python src/{name}.py ")], name
    assert [row for row in rows if row.startswith("| `docker-compose up downloader`")]
    assert [row for row in rows if "--optimize` |" in row]
    for folder in FOLDERS:
        assert [row for row in rows if row.startswith(f"| `{folder}` |")], folder


@pytest.mark.parametrize("page", PAGES)
def test_services_are_those_of_the_container_file_and_run_what_is_said(page):
    services = yaml.safe_load((ROOT / "deploy/docker-compose.yml").read_text(encoding="utf-8"))["services"]
    once = {name: " ".join(one["command"]) for name, one in services.items() if one.get("profiles") == ["once"]}
    told = dict(re.findall(r"^\| `([a-z]+)` \| `(mlbot [^`]*)` \|", PAGES[page], re.M))
    assert told == once
    named = set(re.findall(r"`([a-z-]+)`", PAGES[page]))
    assert set(services) - {"pod"} <= named


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    paths = set(re.findall(r"`((?:mlbot_core|deploy|config)/[\w./-]+)`", PAGES[page]))
    assert len(paths) >= 6
    assert {path for path in paths if not (ROOT / path).exists()} == set()
