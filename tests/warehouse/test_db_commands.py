"""``mlbot db``: what each command prints, as a person and as a program reads it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mlbot_core.clock import parse_utc_ms
from mlbot_core.timeframe import HOUR_MS
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.ingest import ingest
from mlbot_core.warehouse.refresh import refresh


@pytest.fixture
def run(tmp_path, monkeypatch, clock, tools):
    from mlbot_core.cli.main import app

    home = tmp_path / "home"
    monkeypatch.setenv("MLBOT_HOME", str(home))
    monkeypatch.setenv("MLBOT_CLOCK", "fixed:2025-01-02T00:00:00Z")
    store, feed = Warehouse(home / "warehouse.duckdb", clock), tools.Feed(clock)
    feed.holes = {parse_utc_ms("2024-03-10") + hour * HOUR_MS for hour in range(3)}
    ingest(store, feed, clock, tools.ask("2024-03"))
    feed.changed[parse_utc_ms("2024-03-11")] = 50_123.0
    clock.set_ms(clock.now_ms() + HOUR_MS)
    ingest(store, feed, clock, tools.ask("2024-03"))
    refresh(store, feed, clock, tools.ask())

    def call(*words: str, code: int = 0):
        result = CliRunner().invoke(app, ["db", *words])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if "--json" in words else result.stdout

    return call


def test_gaps_restatements_and_watches(run):
    (gap,) = run("gaps", "--json")
    assert (gap["bars"], gap["from"], gap["cause"], gap["may_be_filled"]) == (
        3,
        "2024-03-10T00:00:00Z",
        "source returned nothing",
        True,
    )
    assert "may be filled" in run("gaps")
    (changed,) = run("restatements", "--json")
    assert (changed["series"], changed["restated_bars"], changed["bars"]) == ("price", 1, 744 - 3 + 12)
    assert "Restated bars" in run("restatements", "--series", "price")
    (watch,) = run("watches", "--json")
    assert watch == {"source": "feed", "market": "BTC-1h", "series": "price", "since": "2025-01-01T01:00:00Z"}


def test_backup_and_upkeep(run, tmp_path, monkeypatch):
    assert all(rule["passed"] for rule in run("check", "--json"))
    assert "no version is stored twice" in run("check")
    made = run("snapshot", "paper", "--json")
    assert run("snapshots", "--json") == [made]
    assert made["rows"] == 744 - 3 + 1 + 12
    exported = run("export", str(tmp_path / "backup"), "--json")
    assert exported["rows"] > 750
    assert run("compact", "--json")["rows"] == exported["rows"]
    monkeypatch.setenv("MLBOT_HOME", str(tmp_path / "second"))
    loaded = run("import", str(tmp_path / "backup"), "--json")
    assert loaded["added"]["price"] == 744 - 3 + 1 + 12
    assert run("import", str(tmp_path / "backup"), "--json") == {
        "added": {}, "kept": [], "merged": True, "unchecked": [],
    }  # fmt: skip
    with Warehouse(tmp_path / "second" / "warehouse.duckdb", _Clock()).write() as con:
        con.execute("UPDATE price SET known_at = 0")
    assert any(not rule["passed"] for rule in run("check", "--json", code=1))


class _Clock:
    def now_ms(self) -> int:
        return parse_utc_ms("2025-01-03")

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody waits here")
