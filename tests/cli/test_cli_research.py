"""``mlbot trials`` and ``mlbot null-bench``: what they refuse and how they leave."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from typer.testing import CliRunner

from mlbot_core.cli.main import app
from mlbot_core.clock import FixedClock
from mlbot_core.errors import UsageError
from mlbot_core.validation.trials import DailyReturns, TrialLedger


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MLBOT_HOME", str(tmp_path))
    monkeypatch.delenv("MLBOT_PG_URL", raising=False)
    ledger = TrialLedger(tmp_path, FixedClock(1_750_000_000_000))
    for x in range(3):
        returns = DailyReturns(0, np.random.default_rng(x).normal(0, 0.01, 50))
        ledger.append("research", {"market": "BTC-2h", "x": x}, returns, data_version="d", run_id="run")
    return tmp_path


def invoke(*words):
    return CliRunner().invoke(app, list(words))


def test_list_names_n_and_the_head(home):
    done = invoke("trials", "list", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["n_trials"] == 3
    assert found["head"].startswith("research:3:")
    assert {row["market"] for row in found["trials"]} == {"BTC-2h"}
    assert "N = 3" in invoke("trials", "list").stdout


def test_verify_is_sound_until_it_is_not(home):
    assert invoke("trials", "verify").exit_code == 0
    lost = invoke("trials", "verify", "--json", "--head", "research:4:" + "a" * 64)
    assert lost.exit_code == 1
    assert "row 4 cut off" in lost.stdout
    with closing(sqlite3.connect(home / "trials.sqlite")) as con, con:
        con.execute("UPDATE trials SET run_id = 'me' WHERE seq = 2")
    broken = invoke("trials", "verify", "--json")
    assert broken.exit_code == 1
    assert "row 2" in broken.stdout


def test_export_writes_the_file(home, tmp_path):
    import pyarrow.parquet as pq

    assert invoke("trials", "export", str(tmp_path / "out.parquet")).exit_code == 0
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 3


def test_mistakes_are_usage_errors(home):
    for words in (("trials", "list", "-n", "prod"), ("null-bench", "--kind", "magic")):
        assert isinstance(invoke(*words).exception, UsageError)
    nothing = invoke("null-bench", "--no-purge", "--kind", "planted")
    assert isinstance(nothing.exception, UsageError)


def test_the_bench_keeps_its_paths_and_says_when_it_cannot_judge(home, monkeypatch):
    monkeypatch.setenv("MLBOT_ARCHIVE_DIR", str(home / "nowhere"))
    done = invoke("null-bench", "--paths", "1", "--kind", "garch", "--json")
    assert done.exit_code == 0, done.output
    (arm,) = json.loads(done.stdout)["arms"]
    assert arm["passed"] is None
    assert len(list((home / "null-bench").glob("*/garch-purged/0000.json"))) == 1
    assert TrialLedger(home, FixedClock(0)).read("null").n_trials == 1
