"""A cycle: reconcile, mark the account, do what the risk level demands, carry out what is open.

It may be called at any moment by any process: all that it knows is in the book. It never raises for what the exchange
or the network does; then it says that it was blind, and the flag ``api`` stands in the book until a cycle gets through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Protocol

from mlbot_core.clock import Clock
from mlbot_core.decision.risk import level_of
from mlbot_core.decision.state import (
    API_DEGRADED,
    DAILY_LOSS,
    DRAWDOWN,
    FLAT_TODAY,
    HALTING,
    KILL,
    LEVELS,
    cause_names,
    initial_state,
)
from mlbot_core.execution.broker import Accepted, Broker, BrokerError, Next, VenueRefusedError
from mlbot_core.execution.executor import Executor, Progress
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_book import COIN
from mlbot_core.execution.ledger_folds import LedgerConflictError
from mlbot_core.execution.ledger_risk import AlertLevel, StoredRiskState
from mlbot_core.execution.marking import Look, limits_from_risk, look, mark, warm_up
from mlbot_core.execution.planning import needs_stop, protective_stop
from mlbot_core.execution.reconcile import Reconciliation, reconcile
from mlbot_core.execution.sending import ExecutionRules, PermitLike
from mlbot_core.execution.types import OrderRefusedError, Side
from mlbot_core.timeframe import Timeframe

ACTOR: Final = "trader"
_API: Final = "api"
_BLIND_AGAIN_MS: Final = 2_000
_MONEY: Final = DAILY_LOSS | DRAWDOWN | KILL


class Files(Protocol):
    """The halt marker and the sign of life of this process."""

    def killed(self) -> object | None:
        """Return the halt if what is held is to be closed, None else."""
        ...

    def beat(self, name: str, **facts: Any) -> None:
        """Write a sign of life."""
        ...


@dataclass(frozen=True)
class CycleReport:
    """What a cycle came to.

    Parameters
    ----------
    level
        Of :data:`mlbot_core.decision.state.LEVELS`, by name.
    causes
        Names of the active ones.
    clean
        Whether book and exchange agreed at the end.
    position, target
        Coins held at the end; fraction of NAV that the last decision wanted.
    open, next_ms, sent, notes
        As of :class:`mlbot_core.execution.executor.Progress`.
    blind
        Why the account could not be read; empty where it was.
    """

    level: str
    causes: tuple[str, ...]
    clean: bool
    position: Decimal | None
    target: float
    open: int
    next_ms: int | None
    sent: int
    notes: tuple[str, ...] = ()
    blind: str = ""


class Cycler:
    """Keeps one account and symbol in line.

    Parameters
    ----------
    ledger, broker, clock
        The book, the account and the time.
    permit, renew
        May something be sent; called where a fresh look begins (the lease of this process).
    rules
        How orders are made and what bounds them.
    timeframe
        Of the one decision clock.
    symbol
        As the exchange names it.
    halt
        The halt marker: while it stands, the cause ``kill`` is raised; and where signs of life go.
    """

    def __init__(
        self,
        ledger: ExecutionLedger,
        broker: Broker,
        clock: Clock,
        permit: PermitLike,
        rules: ExecutionRules,
        timeframe: Timeframe,
        symbol: str,
        *,
        renew: Callable[[], None] = lambda: None,
        halt: Files | None = None,
    ) -> None:
        self._ledger = ledger
        self._broker = broker
        self._clock = clock
        self._permit = permit
        self._rules = rules
        self._timeframe = timeframe
        self._symbol = symbol
        self._renew = renew
        self._halt = halt
        self._limits = limits_from_risk(rules.risk, timeframe, rules.max_position)
        self._read_until_ms: int | None = None
        self.executor = Executor(ledger, broker, clock, permit, rules, symbol, renew=renew)
        warm_up(self._limits)

    def cycle(self) -> CycleReport:
        """Reconcile, mark, do what the level demands, carry out what is open."""
        return self._guarded(self._cycle)

    def finish(self, until_ms: int) -> CycleReport:
        """Go on with cycles until nothing is open, or a moment (UTC ms) has come."""
        report = self.cycle()
        while (report.open or report.blind) and report.next_ms is not None and report.next_ms <= until_ms:
            self._clock.sleep(max(0, report.next_ms - self._clock.now_ms()) / 1000)
            report = self.cycle()
        return report

    def flatten(self, trigger: str, reason: str) -> CycleReport:
        """Close everything and report as a cycle does; what forbids new entries is somebody else's to raise."""

        def close() -> CycleReport:
            self._reconcile()
            progress = self.executor.flatten(trigger, reason)
            return self._conclude(progress)

        return self._guarded(close)

    def observe(self) -> Look:
        """Return the account as it is now."""
        return look(self._ledger, self._broker, self._clock, self._symbol, self._read_until_ms)

    # --- one cycle

    def _guarded(self, act: Callable[[], CycleReport]) -> CycleReport:
        self._renew()
        self._beat()
        try:
            return act()
        except BrokerError as error:
            return self._blind(self._degraded(error))
        except LedgerConflictError as error:
            return self._blind(self._conflict(error))
        except OrderRefusedError as error:
            # what has to be done cannot be put into an order
            self._ledger.raise_error(self._symbol, ACTOR, str(error))
            self._alert("no_order", str(error))
            return self._blind(str(error))

    def _cycle(self) -> CycleReport:
        found = self._reconcile()
        stored = self._mark()
        self.executor.cancel_strays(found.strays)
        self._protect(found)
        progress = self._act(stored)
        if progress.sent or found.strays or not found.clean:
            return self._conclude(progress)
        return self._report(stored, progress, found)

    def _conclude(self, progress: Progress) -> CycleReport:
        """Take in what was done."""
        found = self._reconcile()
        self._protect(found)
        return self._report(self._mark(), progress, found)

    def _act(self, stored: StoredRiskState) -> Progress:
        level = level_of(stored.state.causes)
        if level >= FLAT_TODAY:
            return self.executor.flatten("risk", f"{LEVELS[level]}: {', '.join(cause_names(stored.state.causes))}")
        return self.executor.carry_out()

    def _reconcile(self) -> Reconciliation:
        began = self._clock.now_ms()
        found = reconcile(self._ledger, self._broker, self._clock, self._symbol, since_ms=self._read_until_ms)
        self._read_until_ms = began
        # the exchange answered
        self._ledger.set_flags(self._symbol, _API, 0)
        return found

    def _mark(self) -> StoredRiskState:
        looked = self.observe()
        stored = mark(self._ledger, self._symbol, looked, self._limits, actor=ACTOR, flags=self._killed())
        self._tell(stored)
        return stored

    def _tell(self, stored: StoredRiskState) -> None:
        """Raise an alert for each limit that is breached, once a day; the other causes have theirs where they begin."""
        state = stored.state
        for name in cause_names(state.causes & _MONEY):
            key = f"risk/{self._symbol}/{name}/entered/{state.day}"
            if not self._ledger.has_alert(key):
                text = f"{self._symbol}: {name}; the level is {LEVELS[level_of(state.causes)]}, everything is closed"
                self._ledger.raise_alert(AlertLevel.CRITICAL, f"risk_{name}", text, key)

    def _killed(self) -> int:
        """Return the cause of the kill switch; a halt for another cause leaves a marker too, which says nothing new."""
        if self._halt is None or self._halt.killed() is None:
            return 0
        stored = self._ledger.load_risk_state(self._symbol)
        return 0 if stored is not None and stored.state.causes & HALTING else KILL

    def _beat(self) -> None:
        if self._halt is None:
            return
        try:
            self._halt.beat(ACTOR, symbol=self._symbol)
        except OSError as error:
            self._ledger.raise_alert(
                AlertLevel.CRITICAL,
                "no_beat",
                f"the trader's sign of life cannot be written ({error}); look at the disk",
            )

    def _protect(self, found: Reconciliation) -> None:
        """Give a position the stop that it must have."""
        position, risk = found.position, self._rules.risk
        if not needs_stop(position, risk) or self._ledger.opening(self._symbol) is None:
            return
        self._renew()
        position = self._broker.position(self._symbol)
        if not needs_stop(position, risk):
            return
        instrument, quote = self._broker.instrument(self._symbol), self._broker.ticker(self._symbol)
        nav = found.wallet.coin(COIN).equity
        stop = protective_stop(position, nav, risk, instrument)
        what = f"{self._symbol}: {position.size} held with the stop {position.stop_loss}"
        if (quote.last - stop) * Side.of(position.size).sign <= 0:
            self._alert("stop_passed", f"{what}, and the price {quote.last} has passed where it belongs ({stop})")
            self.executor.flatten("stop", f"{what}; the price {quote.last} has passed {stop}")
            return
        outcome = self._broker.set_trading_stop(self._symbol, stop, may_send=self._permit.reduce)
        if isinstance(outcome, Accepted):
            self._alert("stop_mended", f"{what}; it was set to {stop}", AlertLevel.WARNING)
        else:
            self._alert("stop_missing", f"{what}; setting it to {stop} failed ({outcome.name})")

    def _alert(self, code: str, message: str, level: AlertLevel = AlertLevel.CRITICAL) -> None:
        self._ledger.raise_alert(level, code, message, f"{code}/{self._ledger.newest_fill()}")

    def _degraded(self, error: BrokerError) -> str:
        """Write down that the exchange does not answer as it must; return it in words."""
        message = str(error)
        if isinstance(error, VenueRefusedError) and error.then is Next.HALT:
            self._ledger.raise_error(self._symbol, ACTOR, message)
        if self._ledger.set_flags(self._symbol, _API, API_DEGRADED, message[:1_000]):
            self._ledger.raise_alert(AlertLevel.WARNING, "api_degraded", message)
        return message

    def _conflict(self, error: LedgerConflictError) -> str:
        """Halt: book and exchange contradict each other."""
        message = str(error)
        self._ledger.raise_error(self._symbol, ACTOR, message)
        self._ledger.raise_alert(AlertLevel.CRITICAL, "ledger_conflict", message, f"ledger_conflict/{message[:100]}")
        return message

    def _blind(self, why: str) -> CycleReport:
        stored = self._ledger.load_risk_state(self._symbol)
        state = initial_state() if stored is None else stored.state
        causes = state.causes | self._ledger.flags(self._symbol) | self._killed()
        still = len(self._ledger.open_intents(self._symbol))
        again = self._clock.now_ms() + _BLIND_AGAIN_MS
        return CycleReport(
            LEVELS[level_of(causes)], cause_names(causes), False, None, state.target, still, again, 0, (), why
        )

    def _report(self, stored: StoredRiskState, progress: Progress, found: Reconciliation) -> CycleReport:
        state = stored.state
        return CycleReport(
            LEVELS[level_of(state.causes)],
            cause_names(state.causes),
            found.clean,
            found.position.size,
            state.target,
            len(self._ledger.open_intents(self._symbol)),
            progress.next_ms,
            progress.sent,
            tuple(progress.notes),
        )
