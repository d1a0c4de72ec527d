"""The risk watch: looks at the account every few seconds, whatever the rest of the product does; no models, no Dagster.

A look reads wallet, wallet log, position and prices, takes them into the risk state by the same compiled function as
every decision, flattens where the level asks for it, and beats. What was seen once and would breach a money limit is
looked at a second time before it counts: a wallet that answers nonsense for a moment must not close a position.

==================================  ==================================================================================
what goes wrong                     what happens
==================================  ==================================================================================
the book is locked or broken        the state goes on in memory from the last good look (with what the wallet log says
                                    was paid in or out since); limits hold, and closing goes without the book
two looks on end see nothing        API_DEGRADED; after ``stale_after_s`` also DATA_STALE: nothing is added
it sees nothing for longer          it goes on beating and says for how long: an exchange that answers nobody is not
                                    cured by closing; the dead-man looks with its own key whether it sees more
a look fails by a mistake of ours   it is told and counted, without a beat: if they all fail, the dead-man acts
it ends on a signal                 farewell if nothing is held (or it was told to leave the position), else nothing
==================================  ==================================================================================

Halt marker and risk state are one thing: whichever is found without the other makes the other, compared while the book
is held for writing, as `mlbot resume` does. A state is written when it says something new: causes, day, peak or NAV
moved by more than a ten-thousandth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from mlbot_core.clock import Clock
from mlbot_core.decision.risk import level_of, risk_check
from mlbot_core.decision.state import (
    API_DEGRADED,
    DAILY_LOSS,
    DATA_STALE,
    DRAWDOWN,
    FLAT_TODAY,
    HALTING,
    KILL,
    LEVELS,
    Limits,
    Observation,
    RiskState,
    cause_names,
    initial_state,
)
from mlbot_core.errors import MlbotError
from mlbot_core.execution.broker import Broker, BrokerError
from mlbot_core.execution.flatten import FlattenReport
from mlbot_core.execution.flatten_record import pending_reports, record_pending
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_store import LedgerError
from mlbot_core.execution.marking import Look, look
from mlbot_core.execution.offbook import OffBook
from mlbot_core.execution.risk_closing import Closer, Flatten
from mlbot_core.execution.risk_telling import Crier
from mlbot_core.execution.safety import SafetyFiles, boot_seconds

NAME: Final = "risk-watch"
_MONEY: Final = DAILY_LOSS | DRAWDOWN
# A state is worth a row when peak or NAV moved by more than this, fraction.
WORTH: Final = 1e-4
_CONFIRM_S: Final = 0.3


@dataclass(frozen=True)
class Glance:
    """What one look came to.

    Parameters
    ----------
    seen
        Whether the account was seen.
    by_book
        Whether the book took it.
    level
        Of :data:`mlbot_core.decision.state.LEVELS`, by number; None before anything is known.
    report
        Of a close without the book, if there was one.
    """

    seen: bool
    by_book: bool
    level: int | None
    nav: Decimal | None = None
    position: Decimal | None = None
    report: FlattenReport | None = None


class RiskWatch:
    """One watch; call :meth:`look` every few seconds.

    Parameters
    ----------
    broker
        Asked, and used to close when the book fails.
    ledger
        The book; its timeout should be a second or two.
    files
        Of the account.
    symbol
        As the exchange names it.
    limits
        Bounds.
    stale_after_s
        From when on the account counts as unseen, seconds.
    patience_s
        Longest close without the book within one look, seconds.
    flatten
        Closes by the book; None for never.
    say
        Hears what happens.
    boot_time
        Seconds since boot.
    """

    def __init__(
        self,
        broker: Broker,
        ledger: ExecutionLedger,
        files: SafetyFiles,
        clock: Clock,
        symbol: str,
        limits: Limits,
        *,
        stale_after_s: float = 60.0,
        patience_s: float = 10.0,
        flatten: Flatten | None = None,
        say: Callable[[str], None] | None = None,
        boot_time: Callable[[], float] = boot_seconds,
    ) -> None:
        self._broker = broker
        self._ledger = ledger
        self._files = files
        self._clock = clock
        self._symbol = symbol
        self._limits = limits
        self._stale_after_s = stale_after_s
        self._say: Callable[[str], None] = (lambda _: None) if say is None else say
        self._boot_time = boot_time
        self._last_seen = boot_time()
        self._blind_looks = 0
        self._flags: int | None = None
        self._state: RiskState | None = None
        self._offbook: OffBook | None = None
        self._crier = Crier(symbol, self._say)
        self._closer = Closer(broker, files, clock, symbol, flatten, patience_s, self._say)
        self.failures = 0

    # --- one look

    def look(self) -> Glance:
        """Look once; beat unless the look itself could not be completed.

        Raises
        ------
        Exception
            What was not foreseen; the caller counts it by :meth:`failed` and goes on.
        """
        try:
            looked, by_book = self._see()
        except BrokerError as error:
            glance = self._blind(error)
        else:
            self._sighted()
            glance = self._judge(looked, by_book)
        self._catch_up()
        self._beat(glance)
        return glance

    def failed(self, error: BaseException) -> None:
        """Count a look that was not completed."""
        self.failures += 1
        self._say(f"look failed ({self.failures} so far): {type(error).__name__}: {error}")

    def end(self, *, leave_position: bool = False) -> bool:
        """Say farewell if nothing needs watching any more; return whether it was said."""
        try:
            held = self._broker.position(self._symbol).size
            working = [order for order in self._broker.open_orders(self._symbol) if not order.stop_order_type]
        except MlbotError as error:
            self._say(f"ends without farewell, the account cannot be seen ({error}): the dead-man will act")
            return False
        if (held or working) and not leave_position:
            self._say(
                f"ends without farewell, {held} and {len(working)} open orders are left: the dead-man will close them"
            )
            return False
        why = "flat" if not held and not working else "told to leave the position"
        self._files.farewell(NAME, why=why, position=str(held))
        self._say(f"ends: {why}")
        return True

    def _see(self) -> tuple[Look | OffBook, bool]:
        """Look with the book, and without it where the book refuses."""
        try:
            looked = look(self._ledger, self._broker, self._clock, self._symbol)
            if self._looks_breached(looked.seen):
                self._clock.sleep(_CONFIRM_S)
                looked = look(self._ledger, self._broker, self._clock, self._symbol)
            return looked, True
        except LedgerError as error:
            self._say(f"the book refuses: {error}")
        looked_off = self._without_book()
        if self._looks_breached(looked_off.seen, looked_off.flow):
            self._clock.sleep(_CONFIRM_S)
            looked_off = self._without_book()
        return looked_off, False

    def _without_book(self) -> OffBook:
        self._offbook = OffBook.read(self._broker, self._clock, self._symbol, self._offbook)
        return self._offbook

    def _looks_breached(self, seen: Observation, flow: float = 0.0) -> bool:
        """Whether this look alone would breach a money limit that was not breached before."""
        if self._state is None:
            return False
        after = risk_check(self._state, seen._replace(flow=flow, flags=self._state.causes), self._limits)
        return bool(after.causes & ~self._state.causes & _MONEY)

    # --- judging

    def _judge(self, looked: Look | OffBook, by_book: bool) -> Glance:
        held, nav = looked.position.size, looked.nav
        state: RiskState | None = None
        if by_book and isinstance(looked, Look):
            if looked.upto is None and not held and self._files.halted() is None:
                # the book has not begun and nothing is held: its first decision begins it, and the limits
                return Glance(True, True, None, nav, held)
            try:
                state = self._mark(looked)
                # what was paid since is in the book's state now
                self._offbook = OffBook.after(looked)
            except LedgerError as error:
                self._say(f"the book refuses: {error}")
        if state is None:
            by_book = False
            flow = looked.flow if isinstance(looked, OffBook) else 0.0
            state = self._mark_in_memory(looked.seen._replace(flow=flow))
        else:
            self._state = state
        level = level_of(state.causes)
        self._crier.tell(state)
        report = self._closer.close(state, held) if level >= FLAT_TODAY else None
        return Glance(True, by_book, level, nav, held, report)

    def _mark(self, looked: Look) -> RiskState:
        before_memory = self._state

        def change(state: RiskState | None, flow: float) -> RiskState:
            before = initial_state() if state is None else state
            if before_memory is not None and before_memory.day == before.day:
                # breached while the book was locked
                before = before._replace(causes=before.causes | (before_memory.causes & DAILY_LOSS))
            # marker and state are compared here, where nobody re-arms in between
            after = risk_check(before, looked.seen._replace(flow=flow, flags=self._kill(before)), self._limits)
            self._match_marker(after)
            return after

        return self._ledger.mark(
            self._symbol, (), change, actor=NAME, reason="watch", upto=looked.upto, keep=worth_a_row
        ).state

    def _mark_in_memory(self, seen: Observation) -> RiskState:
        """Go on from the last state of the book; ``seen.flow`` is all that was paid since."""
        base = self._state
        if base is None:
            try:
                stored = self._ledger.load_risk_state(self._symbol)
                base = None if stored is None else stored.state
            except MlbotError as error:
                self._say(f"the risk state cannot be read: {error}")
            base = initial_state() if base is None else base
            self._state = base
        after = risk_check(base, seen._replace(flags=self._kill(base)), self._limits)
        # a flow is contained in each later look again, so peak and day go on from the base; what is breached stays
        self._state = base._replace(causes=base.causes | (after.causes & (_MONEY | HALTING)))
        self._match_marker(after)
        return after

    def _kill(self, before: RiskState) -> int:
        """The flag that a marker raises in a state that does not know of it."""
        return KILL if not before.causes & HALTING and self._files.killed() is not None else 0

    def _match_marker(self, state: RiskState) -> None:
        """Make the marker of a state that is halted."""
        if not state.causes & HALTING or self._files.killed() is not None:
            return
        try:
            self._files.halt(NAME, f"risk state: {', '.join(cause_names(state.causes & HALTING))}", state.ts)
        except OSError as error:
            # closing goes on without it
            self._say(f"THE HALT MARKER COULD NOT BE WRITTEN: {error}")

    # --- not seeing

    def _blind(self, error: BrokerError) -> Glance:
        self._blind_looks += 1
        blind_s = self._blind_s()
        self._say(f"does not see the account ({blind_s:.0f} s, {self._blind_looks} looks): {error}")
        if self._blind_looks >= 2:
            causes = API_DEGRADED | (DATA_STALE if blind_s > self._stale_after_s else 0)
            self._raise_flags(causes, f"the account was not seen for {blind_s:.0f} s")
        return Glance(False, True, None if self._state is None else level_of(self._state.causes))

    def _sighted(self) -> None:
        self._last_seen = self._boot_time()
        self._blind_looks = 0
        self._raise_flags(0, "the account is seen again")

    def _raise_flags(self, causes: int, reason: str) -> None:
        if self._flags == causes:
            return

        def unmarked(state: RiskState | None, flow: float) -> RiskState:
            # the flags are added by the book; a flow waits for the next known NAV
            before = initial_state() if state is None else state
            return before._replace(unmarked_flow=before.unmarked_flow + flow)

        try:
            self._ledger.set_flags(self._symbol, NAME, causes, reason)
            if causes:
                self._state = self._ledger.mark(self._symbol, (), unmarked, actor=NAME, reason=reason).state
                self._crier.tell(self._state)
            self._flags = causes
        except LedgerError as error:
            self._say(f"flags could not be written: {error}")

    def _blind_s(self) -> float:
        return max(0.0, self._boot_time() - self._last_seen)

    # --- telling

    def _catch_up(self) -> None:
        """Write alerts and reports that wait into the book."""
        try:
            self._crier.deliver(self._ledger)
            if pending_reports(self._files):
                record_pending(self._files, self._ledger, self._broker)
        except LedgerError as error:
            self._say(f"{self._crier.waiting} alerts wait for the book: {error}")

    def _beat(self, glance: Glance) -> None:
        state = self._state
        facts: dict[str, Any] = {"blind_s": round(self._blind_s(), 1), "failures": self.failures}
        if state is not None:
            causes = cause_names(state.causes)
            facts |= {"level": LEVELS[level_of(state.causes)], "causes": causes, **_money(state)}
        if glance.seen:
            facts |= {"nav": str(glance.nav), "position": str(glance.position), "by_book": glance.by_book}
        self._files.beat(NAME, **facts)


def worth_a_row(before: RiskState, after: RiskState) -> bool:
    """Return whether a state says something new: anything but time, or peak or NAV by more than :data:`WORTH`."""
    same = before._replace(ts=after.ts, last_nav=after.last_nav, peak_nav=after.peak_nav)
    # repr: a NaN equals itself
    return (
        repr(same) != repr(after)
        or _moved(before.peak_nav, after.peak_nav)
        or _moved(before.last_nav, after.last_nav)
    )  # fmt: skip


def _moved(before: float, after: float) -> bool:
    if not (math.isfinite(before) and math.isfinite(after)):
        return repr(before) != repr(after)
    return abs(after - before) > WORTH * abs(before)


def _money(state: RiskState) -> Mapping[str, float | None]:
    named = {"day_start_nav": state.day_start_nav, "peak_nav": state.peak_nav}
    return {name: value if math.isfinite(value) else None for name, value in named.items()}


if __name__ == "__main__":
    import sys

    from mlbot_core.execution.risk_watch_main import main

    sys.exit(main())
