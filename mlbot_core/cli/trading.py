"""``mlbot halt``, ``flatten`` and ``resume``: orders first, records afterwards; halt and flatten wait for no lock."""

from __future__ import annotations

import getpass
import os
import socket
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlbot_core.cli import output
from mlbot_core.clock import Clock, clock_from_env
from mlbot_core.config import Settings, load_settings
from mlbot_core.errors import MlbotError, UsageError

if TYPE_CHECKING:
    from mlbot_core.decision.state import RiskState
    from mlbot_core.execution.flatten import FlattenReport
    from mlbot_core.execution.safety import Halt, SafetyFiles
    from mlbot_core.execution.venues import OpenedVenue

_TIMEOUT_S = (3.0, 5.0)
# What was on its way when the marker was made has arrived after the exchange's receive window.
_HALT_CONFIRM_S = 2.0

Reason = Annotated[str, typer.Option("--reason", help="Why; kept with who and when.")]
RecordWait = Annotated[
    float, typer.Option(min=0, help="Longest wait for the book AFTER everything was done, seconds; then it is left.")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, progress to standard error.")]


class NotDoneError(MlbotError):
    """Something is left to do, and the message says what."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(halt)
    app.command()(flatten)
    app.command()(resume)


def halt(
    reason: Reason,
    keep_position: Annotated[
        bool, typer.Option("--keep-position", help="Open nothing more and cancel entries, but keep what is held.")
    ] = False,
    record_wait: RecordWait = 10.0,
    as_json: Json = False,
) -> None:
    """Stop trading now: nothing more is opened, orders are cancelled, the position is closed. Until `mlbot resume`."""
    from mlbot_core.execution.venues import known_accounts, open_broker

    settings, clock = load_settings(), clock_from_env()
    actor, console = _person(), output.console(to_stderr=True)
    halted: dict[str, Halt] = {}
    # the marker needs no exchange; which account it is for is known from the last time it was opened
    for account in known_accounts(settings):
        halted[account] = _files(settings, clock, account).halt(
            actor, reason, clock.now_ms(), keep_position=keep_position
        )
        console.print(f"{account}: halted", markup=False)
    try:
        opened = open_broker(settings, clock, timeout_s=_TIMEOUT_S)
    except MlbotError as error:
        if not halted:
            raise
        raise NotDoneError(
            f"{', '.join(halted)}: nothing more will be opened, but orders and position are as they were, because the "
            f"account cannot be reached: {error}; run mlbot halt again, or close it at the exchange"
        ) from error
    with opened:
        files = _files(settings, clock, opened.account)
        standing = files.halt(actor, reason, clock.now_ms(), keep_position=keep_position)
        found: dict[str, Any] = {"account": opened.account, "halt": standing.__dict__}
        if keep_position:
            found |= _cancel_entries(opened)
        else:
            found |= _flatten(settings, clock, opened, files, "halt", reason, record_wait, _HALT_CONFIRM_S)
    _finish(found, as_json)


def flatten(reason: Reason = "asked for by a person", record_wait: RecordWait = 10.0, as_json: Json = False) -> None:
    """Close the position and cancel all orders now; trading goes on with the next decision (see `mlbot halt`)."""
    from mlbot_core.execution.venues import open_broker

    settings, clock = load_settings(), clock_from_env()
    with open_broker(settings, clock, timeout_s=_TIMEOUT_S) as opened:
        files = _files(settings, clock, opened.account)
        found = {"account": opened.account}
        found |= _flatten(settings, clock, opened, files, "flatten", f"{_person()}: {reason}", record_wait, 0.5)
    _finish(found, as_json)


def resume(reason: Reason, as_json: Json = False) -> None:
    """Trade again after a halt; refused while book and exchange differ. The drawdown counts anew from today's NAV."""
    from mlbot_core.decision.risk import level_of, rearm
    from mlbot_core.decision.state import HALTING, KILL, LEVELS, OBSERVED, cause_names, initial_state
    from mlbot_core.execution.ledger import open_ledger
    from mlbot_core.execution.ledger_risk import AlertLevel
    from mlbot_core.execution.marking import look
    from mlbot_core.execution.reconcile import reconcile
    from mlbot_core.execution.venues import open_broker

    settings, clock = load_settings(), clock_from_env()
    actor = _person()
    with open_broker(settings, clock, timeout_s=_TIMEOUT_S) as opened:
        files = _files(settings, clock, opened.account)
        with open_ledger(settings.home, clock, opened.account) as ledger:
            stored = ledger.load_risk_state(opened.contract)
            before = 0 if stored is None else stored.state.causes
            halted = files.halted()
            if halted is None and not before & HALTING:
                raise UsageError(f"{opened.account} is not halted, so there is nothing to resume; see mlbot status")
            compared = reconcile(ledger, opened.broker, clock, opened.contract)
            if not compared.clean:
                told = "; ".join(difference.message for difference in compared.differences)
                raise NotDoneError(f"{opened.account} stays halted, what is held is not explained: {told}")
            looked = look(ledger, opened.broker, clock, opened.contract)

            def rearmed(state: RiskState | None, flow: float) -> RiskState:
                known = initial_state() if state is None else state
                standing = files.halted()
                if standing is not None and not standing.keep_position and not known.causes & HALTING:
                    known = known._replace(causes=known.causes | KILL)
                if known.causes & HALTING:
                    known = rearm(known, clock.now_ms(), float(looked.nav), flow)
                else:
                    known = known._replace(unmarked_flow=known.unmarked_flow + flow)
                # what observers still raise, the book adds again
                known = known._replace(causes=known.causes & ~OBSERVED)
                # here, where the risk watch cannot compare marker and state in between
                files.clear_halt(actor, reason)
                return known

            after = ledger.mark(
                opened.contract, (), rearmed, actor=actor[:64], reason=f"resume: {reason}", upto=looked.upto
            )
            was = "" if halted is None else f" (halted by {halted.actor}: {halted.reason})"
            ledger.raise_alert(AlertLevel.WARNING, "resume", f"{actor} resumed trading: {reason}{was}")
    left = cause_names(after.state.causes)
    found = {
        "account": opened.account,
        "nav": str(looked.nav),
        "level": LEVELS[level_of(after.state.causes)],
        "causes": list(left),
        "cleared": list(cause_names(before & ~after.state.causes)),
    }
    if as_json:
        output.emit_json(found)
        return
    still = f"; still active: {', '.join(left)}" if left else ""
    output.console().print(
        f"{opened.account}: resumed at a NAV of {looked.nav:.2f} USD; level {found['level']}{still}", markup=False
    )


def _person() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _files(settings: Settings, clock: Clock, account: str) -> SafetyFiles:
    from mlbot_core.execution.safety import SafetyFiles

    return SafetyFiles.of(settings.live_dir, account, clock)


def _flatten(
    settings: Settings,
    clock: Clock,
    opened: OpenedVenue,
    files: SafetyFiles,
    trigger: str,
    reason: str,
    record_wait: float,
    confirm_s: float,
) -> dict[str, Any]:
    from mlbot_core.execution.flatten import flatten_now

    console = output.console(to_stderr=True)
    report = flatten_now(
        opened.broker,
        opened.contract,
        clock,
        trigger=trigger,
        reason=reason,
        confirm_s=confirm_s,
        tell=lambda text: console.print(text, markup=False, soft_wrap=True),
    )
    console.print(report.in_words(), markup=False, soft_wrap=True)
    found = {"report": report.as_json(), "in_words": report.in_words(), "done": report.done}
    return found | _record(settings, clock, opened, files, report, record_wait)


def _record(
    settings: Settings,
    clock: Clock,
    opened: OpenedVenue,
    files: SafetyFiles,
    report: FlattenReport,
    record_wait: float,
) -> dict[str, Any]:
    """Put what was done into the book if it is free in time; the risk watch does it later otherwise."""
    from mlbot_core.execution.flatten_record import Recorder, leave_report, pending_reports
    from mlbot_core.execution.ledger import open_ledger

    leave_report(files, report)
    recorder = Recorder(
        files, lambda: open_ledger(settings.home, clock, opened.account, timeout_s=0.5), opened.broker, 0.2
    )
    recorder.start()
    recorded = recorder.wait(record_wait)
    recorder.close()
    return {
        "recorded": recorded,
        "not_recorded": "" if recorded else recorder.problem or "the book is held by somebody",
        "waiting": [str(path) for path in pending_reports(files)],
    }


def _cancel_entries(opened: OpenedVenue) -> dict[str, Any]:
    from mlbot_core.execution.broker import Accepted, BrokerError

    outcome = opened.broker.cancel_all(opened.contract, keep_stops=True)
    done = isinstance(outcome, Accepted)
    words = "orders are cancelled" if done else f"ORDERS ARE PERHAPS NOT CANCELLED ({outcome})"
    try:
        held = f"{opened.broker.position(opened.contract).size} is kept with its stop"
    except BrokerError as error:
        held = f"what is held could not be read ({error})"
    return {"done": done, "in_words": f"{opened.contract}: {words}; {held}", "recorded": True}


def _finish(found: dict[str, Any], as_json: bool) -> None:
    """Say what came of it and leave with 1 if something is left to do."""
    if as_json:
        output.emit_json(found)
    else:
        console = output.console()
        halt = found.get("halt")
        if halt is not None:
            console.print(f"{found['account']}: HALTED by {halt['actor']}: {halt['reason']}", markup=False)
        console.print(found["in_words"], markup=False, soft_wrap=True)
        if not found["recorded"]:
            console.print(
                f"Not in the book yet ({found['not_recorded']}): the risk watch records it as soon as it can.",
                markup=False,
                soft_wrap=True,
            )
        if halt is not None:
            console.print("Trading goes on after: mlbot resume --reason ...", markup=False)
    if not found["done"]:
        raise typer.Exit(1)
