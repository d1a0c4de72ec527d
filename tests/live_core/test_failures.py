"""A failed run is told to the book without asking the exchange; the next good one takes it back."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config import Settings, load_settings
from mlbot_core.decision.state import DATA_STALE
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_risk import AlertLevel
from mlbot_core.execution.safety import SafetyFiles, folder_of
from mlbot_core.live.failures import note_failed_run, note_good_run
from mlbot_core.timeframe import Market

NOW = parse_utc_ms("2024-05-01T03:00:00Z")
ACCOUNT = "emulator:100001"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"MLBOT_HOME": str(tmp_path)})


@pytest.fixture
def known(settings: Settings) -> None:
    SafetyFiles(folder_of(settings.live_dir, ACCOUNT), ACCOUNT, FixedClock(NOW)).beat("risk-watch")


def fail(settings: Settings, market: str, run: str = "run-1") -> list[str]:
    return note_failed_run(settings, FixedClock(NOW), Market.parse(market), run, "the disk is full", environ={})


@pytest.mark.usefixtures("known")
def test_a_failure_on_the_decision_clock_only_reduces_until_a_run_succeeds(settings: Settings) -> None:
    assert fail(settings, "BTC-2h") == [ACCOUNT]
    fail(settings, "BTC-2h")
    with ExecutionLedger(settings.home, FixedClock(NOW), ACCOUNT) as ledger:
        assert ledger.flags("BTCUSDT") == DATA_STALE
        (alert,) = ledger.pending_alerts()
        assert alert.level is AlertLevel.CRITICAL
        assert "BTC-2h failed, only reducing until a run succeeds: the disk is full" in alert.message
        note_good_run(ledger, "BTCUSDT")
        assert ledger.flags("BTCUSDT") == 0


@pytest.mark.usefixtures("known")
def test_a_failure_of_another_timeframe_is_told_and_changes_nothing(settings: Settings) -> None:
    fail(settings, "BTC-4h")
    with ExecutionLedger(settings.home, FixedClock(NOW), ACCOUNT) as ledger:
        assert ledger.flags("BTCUSDT") == 0
        assert [alert.level for alert in ledger.pending_alerts()] == [AlertLevel.WARNING]


def test_where_no_account_was_ever_opened_nobody_is_told(settings: Settings) -> None:
    assert fail(settings, "BTC-2h") == []
