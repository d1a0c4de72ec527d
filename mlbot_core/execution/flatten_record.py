"""What an emergency close did goes into the book afterwards: left as a file first, recorded when the book is free.

The file is what makes it safe to record late: the process that closed may end, the book may be held for hours by one
that was frozen inside a transaction. Whoever comes next (the command, the dead-man, the risk watch) records what lies
there; recording it twice is the same as once.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from mlbot_core.decision.state import HALTING, KILL, RiskState, initial_state
from mlbot_core.errors import MlbotError
from mlbot_core.execution.broker import Broker, BrokerError
from mlbot_core.execution.flatten import EmergencyOrder, FlattenReport
from mlbot_core.execution.identifiers import event_decision_id
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_folds import LedgerConflictError
from mlbot_core.execution.ledger_intents import DecisionExistsError
from mlbot_core.execution.ledger_risk import AlertLevel
from mlbot_core.execution.ledger_states import DecisionRecord
from mlbot_core.execution.marking import OVERLAP_MS
from mlbot_core.execution.safety import Halt, SafetyFiles
from mlbot_core.execution.types import ZERO, ExecutionError, Side

_FOLDER: Final = "unrecorded"
# The exchange's clock may differ from ours by a second; what is read twice is one row.
_SLACK_MS: Final = 5_000


def leave_report(files: SafetyFiles, report: FlattenReport) -> Path:
    """Write a report to a file of the account's folder, where :func:`record_pending` finds it; return its path.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    folder = files.folder / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report.run}.json"
    draft = folder / f".{report.run}-{os.getpid()}"
    with draft.open("wb") as file:
        file.write(json.dumps(report.as_json()).encode("ascii"))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return path


def pending_reports(files: SafetyFiles) -> list[Path]:
    """Return the reports that are not in the book yet, by name."""
    return sorted((files.folder / _FOLDER).glob("flat-*.json"))


def record_pending(files: SafetyFiles, ledger: ExecutionLedger, broker: Broker | None) -> list[str]:
    """Record every report that waits; return the names of the runs that are in the book now.

    Raises
    ------
    LedgerError
        If the book refuses; what was not recorded goes on waiting.
    """
    done = []
    for path in pending_reports(files):
        try:
            report = report_from_json(json.loads(path.read_bytes()))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
            ledger.raise_alert(
                AlertLevel.CRITICAL,
                "flatten_unreadable",
                f"the report {path} of an emergency close cannot be read ({type(error).__name__}); look at it, and "
                "reconcile with the exchange",
                key=f"flatten-unreadable/{path.stem}"[:128],
            )
            path.replace(path.with_suffix(".unreadable"))
            continue
        record_flattening(ledger, report, broker, files.killed())
        path.unlink(missing_ok=True)
        done.append(report.run)
    return done


def record_flattening(
    ledger: ExecutionLedger, report: FlattenReport, broker: Broker | None = None, halt: Halt | None = None
) -> None:
    """Put an emergency close into the book; the same report twice is the same as once.

    A decision without intents (nothing was planned), an alert, what the exchange tells of its orders and fills, and,
    while trading is halted, the cause KILL in the risk state.

    Parameters
    ----------
    broker
        Asked for orders and fills; without an answer (or None) the next reconciliation brings them.
    halt
        The halt that stands.

    Raises
    ------
    LedgerError
        If the book refuses.
    """
    trigger = f"emergency-{report.trigger}"
    name = event_decision_id(ledger.account, report.symbol, trigger, report.started_ms)
    details = {name: value for name, value in report.as_json().items() if name != "symbol"}
    if ledger.decision(name) is None:
        decision = DecisionRecord(
            name, "emergency", report.symbol, trigger, "", report.started_ms, report.ended_ms, ZERO, details
        )
        # another run of the same trigger began later and was recorded first: the alert below tells of this one
        with contextlib.suppress(DecisionExistsError):
            ledger.record_decision(decision)
    ledger.raise_alert(
        AlertLevel.CRITICAL,
        "flatten",
        f"{report.reason}: {report.in_words()}",
        key=f"flatten/{report.run}",
    )
    if broker is not None:
        _record_facts(ledger, report, broker)
    if halt is not None:
        note_halt(ledger, report.symbol, halt)


def note_halt(ledger: ExecutionLedger, symbol: str, halt: Halt) -> bool:
    """Make sure that the risk state knows of a halt; return whether it had to be told.

    Raises
    ------
    LedgerError
        If the book refuses.
    """
    stored = ledger.load_risk_state(symbol)
    if stored is not None and stored.state.causes & HALTING:
        return False

    def killed(state: RiskState | None) -> RiskState:
        before = initial_state() if state is None else state
        return before._replace(causes=before.causes | KILL)

    ledger.update_risk_state(symbol, killed, actor=halt.actor[:64], reason=halt.reason)
    return True


def report_from_json(values: Mapping[str, Any]) -> FlattenReport:
    """Return the report that :meth:`FlattenReport.as_json` wrote.

    Raises
    ------
    KeyError, TypeError, ValueError, ArithmeticError
        If it is none.
    """
    orders = tuple(
        EmergencyOrder(**{**order, "side": Side(order["side"]), "qty": Decimal(order["qty"])})
        for order in values["orders"]
    )
    held, left = (None if values[name] is None else Decimal(values[name]) for name in ("held", "left"))
    plain = {**values, "held": held, "left": left, "orders": orders, "notes": tuple(values["notes"])}
    return FlattenReport(**plain)


class Recorder:
    """Records what waits from a thread of its own, again and again: whoever closes a position never waits for the book.

    Parameters
    ----------
    files
        Of the account.
    ledger
        Opens the book; called in the thread.
    broker
        Asked for orders and fills.
    pause_s
        Between attempts, seconds.
    """

    def __init__(
        self,
        files: SafetyFiles,
        ledger: Callable[[], ExecutionLedger],
        broker: Broker | None,
        pause_s: float = 0.5,
    ) -> None:
        self._files = files
        self._open = ledger
        self._broker = broker
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._idle = threading.Event()
        self._thread: threading.Thread | None = None
        self.problem: str | None = None

    def start(self) -> None:
        """Begin, or go on if it had ended."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._idle.clear()
        # a daemon: a book that is locked for good must not keep the process
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait until everything is recorded, at most so long; return whether it is."""
        return self._idle.wait(seconds)

    def close(self) -> None:
        """Let the thread end after its present attempt."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._open() as ledger:
                    record_pending(self._files, ledger, self._broker)
                self.problem = None
                if not pending_reports(self._files):
                    self._idle.set()
                    return
            except (MlbotError, OSError) as error:
                self.problem = str(error)
            self._stop.wait(self._pause_s)


def _record_facts(ledger: ExecutionLedger, report: FlattenReport, broker: Broker) -> None:
    try:
        found = [broker.order(report.symbol, order.order_link_id) for order in report.orders]
        # reconciliation goes on from the newest row of the book: there must be no gap before the ones of this close
        known = ledger.newest_execution_ms()
        since = report.started_ms - _SLACK_MS if known is None else min(known, report.started_ms) - OVERLAP_MS
        executions = broker.executions_since(report.symbol, since)
    except (BrokerError, ExecutionError):
        # the exchange keeps them: the next reconciliation reads them
        return
    try:
        ledger.observe_orders([order for order in found if order is not None], "emergency")
        ledger.record_executions(executions, "emergency")
    except LedgerConflictError as error:
        ledger.raise_alert(
            AlertLevel.CRITICAL,
            "flatten_conflict",
            f"what the exchange tells of an emergency close contradicts the book: {error}",
            key=f"flatten-conflict/{report.run}",
        )
