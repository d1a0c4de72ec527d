"""The risk watch as a process: ``python -m mlbot_core.execution.risk_watch``."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Mapping, Sequence
from decimal import Decimal

from mlbot_core.clock import Clock, SystemClock, clock_from_env
from mlbot_core.config import Settings, load_settings
from mlbot_core.config.execution import WatchConfig
from mlbot_core.errors import MlbotError
from mlbot_core.execution.broker import BrokerError
from mlbot_core.execution.executor import Executor
from mlbot_core.execution.ledger import ExecutionLedger, open_ledger
from mlbot_core.execution.marking import limits_from_risk, warm_up
from mlbot_core.execution.risk_watch import NAME, RiskWatch
from mlbot_core.execution.safety import Lease, Permit, SafetyFiles, boot_seconds
from mlbot_core.execution.sending import ExecutionRules
from mlbot_core.execution.venues import OpenedVenue, known_accounts, open_broker
from mlbot_core.execution.watch_process import Teller, stop_on_signals, wait

# A locked book must not keep the watch from looking.
_BOOK_TIMEOUT_S = 1.0


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Watch until a signal; return the exit code: 0 after a signal, 1 if it fails, 2 for a wrong configuration."""
    parser = argparse.ArgumentParser(prog="python -m mlbot_core.execution.risk_watch", description="The risk watch.")
    parser.add_argument(
        "--leave-position",
        action="store_true",
        help="end with a farewell even when a position is left; the dead-man then leaves it alone",
    )
    args = parser.parse_args(argv)
    stop = stop_on_signals()
    say = Teller(NAME, SystemClock())
    try:
        settings, clock = load_settings(environ), clock_from_env()
        say = Teller(NAME, clock)
        return run(settings, clock, environ, stop, say, leave_position=args.leave_position)
    except MlbotError as error:
        say(str(error))
        return error.exit_code


def run(
    settings: Settings,
    clock: Clock,
    environ: Mapping[str, str] | None,
    stop: threading.Event,
    say: Teller,
    *,
    leave_position: bool = False,
) -> int:
    """Watch the configured account until ``stop`` is set; return the exit code.

    Raises
    ------
    ConfigError
        If the venue cannot be opened as configured.
    """
    watch = settings.execution.watch
    limits = limits_from_risk(settings.risk, settings.execution.timeframe)
    warm_up(limits)
    opened = _open(settings, clock, environ, stop, say)
    if opened is None:
        return 0
    with (
        opened,
        open_ledger(settings.home, clock, opened.account, environ, timeout_s=_BOOK_TIMEOUT_S) as ledger,
    ):
        files = SafetyFiles.of(settings.live_dir, opened.account, clock)
        watcher = RiskWatch(
            opened.broker,
            ledger,
            files,
            clock,
            opened.contract,
            limits,
            stale_after_s=settings.risk.stale_after_s,
            patience_s=watch.deadman_after_s / 4,
            flatten=_executor(settings, clock, opened, ledger, files).flatten,
            say=say,
        )
        say(
            f"watches {opened.account} {opened.contract} every {watch.every_s:g} s: day's loss "
            f"{limits.daily_loss:g}, drawdown {limits.max_drawdown:g} of NAV"
        )
        while not stop.is_set():
            try:
                watcher.look()
            except Exception as error:  # noqa: BLE001 - it must outlive its own mistakes, which the missing beat tells of
                watcher.failed(error)
            wait(stop, clock, watch.every_s)
        watcher.end(leave_position=leave_position)
    return 0


def watch_timeouts(watch: WatchConfig) -> tuple[float, float]:
    """Return the timeouts (connect, read; seconds) with which three attempts at a question fail before it is missed."""
    each = min(3.0, watch.deadman_after_s / 8)
    return each, each


def _open(
    settings: Settings, clock: Clock, environ: Mapping[str, str] | None, stop: threading.Event, say: Teller
) -> OpenedVenue | None:
    """Open the account; while it does not answer, say so in the heartbeat if it is clear whose that is."""
    watch, begun = settings.execution.watch, boot_seconds()
    while not stop.is_set():
        try:
            return open_broker(settings, clock, environ, timeout_s=watch_timeouts(watch))
        except BrokerError as error:
            say(f"cannot reach the account yet: {error}")
        accounts = known_accounts(settings)
        if len(accounts) == 1:
            try:
                SafetyFiles.of(settings.live_dir, accounts[0], clock).beat(
                    NAME, blind_s=round(boot_seconds() - begun, 1), failures=0
                )
            except OSError as error:
                say(f"the heartbeat could not be written: {error}")
        wait(stop, clock, watch.every_s)
    return None


def _executor(
    settings: Settings, clock: Clock, opened: OpenedVenue, ledger: ExecutionLedger, files: SafetyFiles
) -> Executor:
    lease = Lease(settings.execution.watch.lease_s, clock)
    rules = ExecutionRules(
        settings.execution.strategy,
        settings.execution.orders,
        settings.risk,
        Decimal(str(settings.risk.max_position)),
    )
    return Executor(ledger, opened.broker, clock, Permit(files, lease), rules, opened.contract, renew=lease.renew)
