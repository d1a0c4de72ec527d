"""Closes what is held when the risk level asks for it: by the book where that works, without it where it does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Protocol

from mlbot_core.clock import Clock
from mlbot_core.decision.state import RiskState
from mlbot_core.errors import MlbotError
from mlbot_core.execution.broker import Broker, BrokerError
from mlbot_core.execution.flatten import FlattenReport, flatten_now
from mlbot_core.execution.flatten_record import leave_report
from mlbot_core.execution.risk_telling import in_words
from mlbot_core.execution.safety import SafetyFiles


class Flatten(Protocol):
    """Closes everything by the book; returns when it did what it could."""

    def __call__(self, trigger: str, reason: str) -> object:
        """Close."""
        ...


class Closer:
    """Closes one symbol.

    Parameters
    ----------
    by_book
        Asked first; None for never.
    patience_s
        How long it, and then the close without the book, are waited for within one look, seconds.
    """

    def __init__(
        self,
        broker: Broker,
        files: SafetyFiles,
        clock: Clock,
        symbol: str,
        by_book: Flatten | None,
        patience_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._broker = broker
        self._files = files
        self._clock = clock
        self._symbol = symbol
        self._by_book = by_book
        self._patience_s = patience_s
        self._say = say
        self._at_work: threading.Thread | None = None

    def close(self, state: RiskState, held: Decimal) -> FlattenReport | None:
        """Close what is held and cancel what is open; return what was done without the book, None if nothing was."""
        if not held and not self._working():
            return None
        reason = f"{in_words(state.causes)}, held {held}"
        if self._close_by_book(reason) and not self._left():
            return None
        report = flatten_now(
            self._broker,
            self._symbol,
            self._clock,
            trigger="risk",
            reason=reason,
            patience_s=self._patience_s,
            tell=self._say,
        )
        self._say(report.in_words())
        try:
            leave_report(self._files, report)
        except OSError as error:
            self._say(f"the report could not be written ({error}): {report.as_json()}")
        return report

    def _close_by_book(self, reason: str) -> bool:
        """Return whether the book's way came to its end in time; it may wait long for an answer that was lost."""
        close = self._by_book
        if close is None:
            return False
        if self._at_work is not None and self._at_work.is_alive():
            self._say("closing by the book is still at work; closing without it")
            return False
        problems: list[str] = []

        def work() -> None:
            try:
                close("risk", reason)
            except MlbotError as error:
                problems.append(str(error))

        self._say(f"closing by the book: {reason}")
        self._at_work = threading.Thread(target=work, name="close-by-book", daemon=True)
        self._at_work.start()
        self._at_work.join(self._patience_s)
        if problems:
            self._say(f"closing by the book failed: {problems[0]}")
        return not problems and not self._at_work.is_alive()

    def _working(self) -> bool:
        """Whether orders are open that are no stops; unknown counts as yes."""
        try:
            return any(not order.stop_order_type for order in self._broker.open_orders(self._symbol))
        except BrokerError as error:
            self._say(f"open orders cannot be read: {error}")
            return True

    def _left(self) -> bool:
        try:
            return not self._broker.position(self._symbol).flat or self._working()
        except BrokerError as error:
            self._say(f"the position cannot be read: {error}")
            return True
