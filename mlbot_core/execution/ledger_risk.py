"""The state of the risk machine, and what a person must hear of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.engine import Connection

from mlbot_core.decision.state import RiskState, state_from_json, state_to_json
from mlbot_core.execution import ledger_questions as questions
from mlbot_core.execution.ledger_facts import FactsLedger
from mlbot_core.execution.ledger_rows import canonical
from mlbot_core.execution.ledger_schema import ALERTS, DELIVERIES, RISK_STATES
from mlbot_core.execution.ledger_store import LedgerError
from mlbot_core.execution.types import ExecutionError


class RiskStateConflictError(ExecutionError):
    """Somebody else changed the risk state since it was read: read it again and decide anew."""


class AlertLevel(StrEnum):
    """How urgent."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True)
class StoredRiskState:
    """A risk state, its number (rising from 1), who wrote it, why and when (UTC ms).

    ``flow_seq`` is the number of the newest wallet event whose deposit or withdrawal the state contains.
    """

    state: RiskState
    version: int
    actor: str
    reason: str
    recorded_ms: int
    flow_seq: int = 0


@dataclass(frozen=True)
class Alert:
    """Something that a person must hear of; the same ``key`` is one alert."""

    key: str
    level: AlertLevel
    code: str
    message: str
    raised_ms: int


class RiskLedger(FactsLedger):
    """The part of the book that the risk machine writes."""

    def load_risk_state(self, symbol: str) -> StoredRiskState | None:
        """Return the newest risk state of a symbol; None if there never was one.

        Raises
        ------
        UsageError
            If what is stored cannot be read: it is never guessed at.
        """
        return self._reading(RISK_STATES, lambda connection: self._risk(connection, symbol), None)

    def save_risk_state(
        self, symbol: str, state: RiskState, *, after: int, actor: str, reason: str = ""
    ) -> StoredRiskState:
        """Write down a new risk state that follows from the one numbered ``after`` (0 for the first one).

        Parameters
        ----------
        actor
            Which process or person.
        reason
            Why; a re-arming says who and why here.

        Raises
        ------
        RiskStateConflictError
            If the newest state is not the one that this one follows from.
        """
        with self._writing() as connection:
            return self._save_risk(connection, symbol, state, after, actor, reason)

    def update_risk_state(
        self, symbol: str, change: Callable[[RiskState | None], RiskState], *, actor: str, reason: str = ""
    ) -> StoredRiskState:
        """Read, change and write the risk state with nobody in between; ``change`` is pure and quick."""
        with self._writing() as connection:
            before = self._risk(connection, symbol)
            state = change(None if before is None else before.state)
            return self._save_risk(connection, symbol, state, 0 if before is None else before.version, actor, reason)

    def raise_alert(self, level: AlertLevel, code: str, message: str, key: str | None = None) -> bool:
        """Write down an alert; return whether it was new.

        Parameters
        ----------
        code
            What kind, for counting.
        key
            The same key is the same alert, whatever its message; every call is a new one without.
        """
        if key is not None and not 0 < len(key) <= 128:
            raise LedgerError(f"alert key {key!r} must have 1 to 128 characters")
        with self._writing() as connection:
            number = connection.execute(questions.ALERTS_ALL).scalar_one()
            name = key if key is not None else f"{code[:64]}/{self._clock.now_ms()}/{number}"
            if self._ask(connection, questions.ALERT, alert_key=name):
                return False
            row = {"level": level.value, "code": code[:64], "message": message, "alert_key": name}
            self._insert(connection, ALERTS, row)
            return True

    def pending_alerts(self) -> list[Alert]:
        """Return the alerts that nobody was told of yet, oldest first."""
        rows = self._rows(ALERTS, questions.PENDING_ALERTS)
        return [
            Alert(row["alert_key"], AlertLevel(row["level"]), row["code"], row["message"], int(row["recorded_ms"]))
            for row in rows
        ]

    def alert_delivered(self, key: str) -> bool:
        """Write down that an alert reached a person; return whether that was new.

        Raises
        ------
        LedgerError
            If there is no such alert.
        """
        with self._writing() as connection:
            if not self._ask(connection, questions.ALERT, alert_key=key):
                raise LedgerError(f"no alert {key!r} in the book of {self.account}")
            return self._add(connection, DELIVERIES, {"alert_key": key}, "alert_key", "delivery of alert")

    def _risk(self, connection: Connection, symbol: str) -> StoredRiskState | None:
        found = self._ask(connection, questions.RISK_STATE, symbol=symbol)
        if not found:
            return None
        row = found[0]
        state = state_from_json(json.loads(row["state"]))
        return StoredRiskState(
            state, int(row["version"]), row["actor"], row["reason"], int(row["recorded_ms"]), int(row["flow_seq"])
        )

    def _save_risk(
        self,
        connection: Connection,
        symbol: str,
        state: RiskState,
        after: int,
        actor: str,
        reason: str,
        flow_seq: int | None = None,
    ) -> StoredRiskState:
        newest = self._risk(connection, symbol)
        version = 0 if newest is None else newest.version
        if version != after:
            by = "" if newest is None else f" by {newest.actor}"
            raise RiskStateConflictError(
                f"{self.account} {symbol}: {actor} writes a risk state that follows number {after}, but the newest is "
                f"number {version}{by}; read it again and decide anew"
            )
        contained = (0 if newest is None else newest.flow_seq) if flow_seq is None else flow_seq
        row = {
            "symbol": symbol,
            "version": version + 1,
            "state": canonical(state_to_json(state)),
            "causes": state.causes,
            "flow_seq": contained,
            "actor": actor,
            "reason": reason,
        }
        self._insert(connection, RISK_STATES, row)
        return StoredRiskState(state, version + 1, actor, reason, self._clock.now_ms(), contained)
