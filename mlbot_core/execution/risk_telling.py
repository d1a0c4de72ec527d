"""Tells a person of causes that come and go: at once in a line, and as alerts in the book as soon as it takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mlbot_core.decision.risk import level_of
from mlbot_core.decision.state import FLAT_TODAY, LEVELS, RiskState, cause_names
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_risk import AlertLevel

_MOST_WAITING: Final = 200


class Crier:
    """Remembers what it told of and what waits for the book."""

    def __init__(self, symbol: str, say: Callable[[str], None]) -> None:
        self._symbol = symbol
        self._say = say
        self._told: int | None = None
        self._waiting: list[tuple[AlertLevel, str, str, str]] = []

    @property
    def waiting(self) -> int:
        """How many alerts are not in the book yet."""
        return len(self._waiting)

    def tell(self, state: RiskState) -> None:
        """Tell what changed since the last state; what is active at the beginning is told again (it is one alert)."""
        before, self._told = self._told, state.causes
        level = level_of(state.causes)
        if before is None:
            self._say(f"level {in_words(state.causes)}")
            before = 0
        for word, causes in (("entered", state.causes & ~before), ("cleared", before & ~state.causes)):
            for name in cause_names(causes):
                text = f"{self._symbol}: {name} {word}; the level is {in_words(state.causes)}"
                self._say(text)
                urgent = AlertLevel.WARNING if level < FLAT_TODAY else AlertLevel.CRITICAL
                urgent = AlertLevel.INFO if word == "cleared" else urgent
                # a watch that begins anew on an active cause raises no second alert on that day
                key = f"risk/{self._symbol}/{name}/{word}/{state.day if before == 0 else state.ts}"
                self._waiting = [*self._waiting, (urgent, f"risk_{name}", text, key)][-_MOST_WAITING:]

    def deliver(self, ledger: ExecutionLedger) -> None:
        """Put what waits into the book.

        Raises
        ------
        LedgerError
            If the book refuses; the rest goes on waiting.
        """
        while self._waiting:
            ledger.raise_alert(*self._waiting[0])
            del self._waiting[0]


def in_words(causes: int) -> str:
    """Return the level of a set of causes, and the causes in brackets."""
    names = cause_names(causes)
    level = LEVELS[level_of(causes)]
    return f"{level} ({', '.join(names)})" if names else level
