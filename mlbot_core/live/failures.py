"""A live run that failed: a person hears of it, and nothing new is entered until one succeeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mlbot_core.clock import Clock
from mlbot_core.config import Settings
from mlbot_core.decision.state import DATA_STALE
from mlbot_core.execution.ledger import ExecutionLedger, open_ledger
from mlbot_core.execution.ledger_risk import AlertLevel
from mlbot_core.execution.venues import known_accounts
from mlbot_core.timeframe import Market

OWNER: Final = "live run"
_LONGEST: Final = 1_000


def note_failed_run(
    settings: Settings,
    clock: Clock,
    market: Market,
    run_id: str,
    reason: str,
    environ: Mapping[str, str] | None = None,
) -> list[str]:
    """Raise an alert for a failed run, and on the decision clock the cause ``data_stale``; return the accounts told.

    It asks no exchange: one that does not answer may be why the run failed.

    Parameters
    ----------
    market
        That the run was for.
    reason
        Why it failed, without secrets.
    """
    told = []
    for account in known_accounts(settings):
        with open_ledger(settings.home, clock, account, environ) as ledger:
            decides = market == settings.decision_market
            level = AlertLevel.CRITICAL if decides else AlertLevel.WARNING
            then = "only reducing until a run succeeds" if decides else "its forecasts are missing"
            ledger.raise_alert(
                level, "live_run_failed", f"run {run_id[:8]} for {market} failed, {then}: {reason[:_LONGEST]}", run_id
            )
            if decides:
                ledger.set_flags(settings.execution.contract, OWNER, DATA_STALE, reason[:_LONGEST])
        told.append(account)
    return told


def note_good_run(ledger: ExecutionLedger, contract: str) -> None:
    """Take back what a failed run had raised."""
    ledger.set_flags(contract, OWNER, 0)
