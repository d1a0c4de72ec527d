"""The trading part of ``mlbot status``: from files and the book, without asking the exchange."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mlbot_core.cli import output
from mlbot_core.clock import Clock, format_utc
from mlbot_core.config import Settings
from mlbot_core.errors import MlbotError

if TYPE_CHECKING:
    from mlbot_core.decision.state import RiskState
    from mlbot_core.execution.ledger import ExecutionLedger
    from mlbot_core.execution.safety import Heartbeat

_WATCHERS = ("risk-watch", "dead-man", "trader")


def collect(settings: Settings, clock: Clock) -> dict[str, Any]:
    """Return the state of every account of the configured venue as plain values."""
    from mlbot_core.execution.venues import known_accounts

    execution = settings.execution
    return {
        "venue": execution.venue,
        "contract": execution.contract,
        "accounts": [_account(settings, clock, account) for account in known_accounts(settings)],
    }


def draw(console: Console, found: Mapping[str, Any]) -> None:
    """Print it for a person."""
    if not found["accounts"]:
        console.print(f"trading: venue {found['venue']}, {found['contract']}; no account was live here yet")
    for account in found["accounts"]:
        rows = [(name, text) for name, text in _lines(account) if text]
        console.print(output.table(f"Trading {account['account']}, {found['contract']}", ("what", "state"), rows))


def _account(settings: Settings, clock: Clock, account: str) -> dict[str, Any]:
    from mlbot_core.execution.flatten_record import pending_reports
    from mlbot_core.execution.ledger import open_ledger
    from mlbot_core.execution.safety import SafetyFiles

    files = SafetyFiles.of(settings.live_dir, account, clock)
    halt = files.halted()
    watch = files.heartbeat("risk-watch")
    made: dict[str, Any] = {
        "account": account,
        "halt": None if halt is None else dict(halt.__dict__),
        "heartbeats": {name: _beat(files.heartbeat(name), clock) for name in _WATCHERS},
        "not_recorded": len(pending_reports(files)),
        "nav": _number(watch, "nav"),
        "position": None if watch is None else watch.facts.get("position"),
    }
    try:
        with open_ledger(settings.home, clock, account, timeout_s=1.0) as ledger:
            made |= _book(settings, ledger, made["nav"])
    except MlbotError as error:
        made["book"] = str(error)
    return made


def _book(settings: Settings, ledger: ExecutionLedger, nav: float | None) -> dict[str, Any]:
    from mlbot_core.decision.risk import level_of
    from mlbot_core.decision.state import CAUSES, LEVELS

    contract = settings.execution.contract
    stored = ledger.load_risk_state(contract)
    found: dict[str, Any] = {
        "open_intents": [
            {"id": state.intent.intent_id, "side": str(state.intent.side), "left": str(state.remaining)}
            for state in ledger.open_intents(contract)
        ],
        "pending_alerts": len(ledger.pending_alerts()),
        "level": None,
        "causes": [],
        "limits": {},
    }
    if stored is None:
        return found
    state = stored.state
    active = [cause for cause in CAUSES if state.causes & cause.bit]
    found["level"] = LEVELS[level_of(state.causes)]
    found["causes"] = [{"name": cause.name, "meaning": cause.entered, "ends": cause.cleared} for cause in active]
    found["limits"] = _distances(settings, state, state.last_nav if nav is None else nav)
    return found


def _distances(settings: Settings, state: RiskState, nav: float) -> dict[str, Any]:
    """How far NAV is above each money limit, USD and fraction of NAV."""
    risk = settings.risk
    bounds = {
        "day's loss": state.day_start_nav * (1 - risk.daily_loss_limit),
        "drawdown": state.peak_nav * (1 - risk.max_drawdown),
    }
    return {
        name: {"at_nav": bound, "distance": nav - bound, "share": (nav - bound) / nav if nav > 0 else math.nan}
        for name, bound in bounds.items()
        if math.isfinite(bound) and math.isfinite(nav)
    }


def _beat(beat: Heartbeat | None, clock: Clock) -> dict[str, Any] | None:
    if beat is None:
        return None
    return {
        "age_s": (clock.now_ms() - beat.at_ms) / 1000,
        "pid": beat.pid,
        "runs": beat.still_runs(),
        "farewell": beat.farewell,
        "facts": dict(beat.facts),
    }


def _number(beat: Heartbeat | None, name: str) -> float | None:
    try:
        return None if beat is None else float(beat.facts[name])
    except (KeyError, TypeError, ValueError):
        return None


def _lines(account: Mapping[str, Any]) -> list[tuple[str, str]]:
    halt = account["halt"]
    lines = [("halt", "none")]
    if halt is not None:
        kept = ", keeping the position" if halt["keep_position"] else ""
        when = f" at {format_utc(halt['at_ms'])}" if halt["at_ms"] else ""
        lines = [("halt", f"HALTED by {halt['actor']}{when}{kept}: {halt['reason']}")]
    if "book" in account:
        lines.append(("book", account["book"]))
    else:
        lines.append(("risk level", account["level"] or "no mark of the account yet"))
        lines += [(f"  {cause['name']}", f"{cause['meaning']}; ends {cause['ends']}") for cause in account["causes"]]
    nav = account["nav"]
    lines.append(("NAV", "unknown, the risk watch has not told" if nav is None else f"{nav:,.2f} USD"))
    lines.append(("position", str(account["position"] or "unknown")))
    lines += [
        (f"  to the {name}", f"{limit['distance']:,.2f} USD ({limit['share']:.2%} of NAV), at {limit['at_nav']:,.2f}")
        for name, limit in account.get("limits", {}).items()
    ]
    intents = account.get("open_intents", [])
    lines.append(("open intents", ", ".join(f"{one['side']} {one['left']}" for one in intents) or "none"))
    lines += [(name, _beat_words(beat)) for name, beat in account["heartbeats"].items()]
    waiting = account["not_recorded"]
    lines.append(("not in the book", f"{waiting} emergency closes wait for the book" if waiting else ""))
    return lines


def _beat_words(beat: Mapping[str, Any] | None) -> str:
    if beat is None:
        return "no sign of life"
    if beat["farewell"]:
        return f"ended on purpose {beat['age_s']:.0f} s ago ({beat['facts'].get('why', 'no reason told')})"
    state = "runs" if beat["runs"] else "ITS PROCESS IS GONE"
    blind = float(beat["facts"].get("blind_s") or 0.0)
    seen = f"; HAS NOT SEEN THE ACCOUNT FOR {blind:.0f} s" if blind > 10 else ""
    armed = {True: "; armed", False: "; not armed"}.get(beat["facts"].get("armed"), "")
    return f"last beat {beat['age_s']:.0f} s ago, process {beat['pid']} {state}{seen}{armed}"
