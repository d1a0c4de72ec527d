"""One order on its way: a fresh look, the gate, the durable attempt, the send, and what the answer means.

The order of steps: position, wallet and prices are read; the gate measures the order against them; the attempt is
written down; the bytes are written if the permit still holds and the look is still fresh. An order that was held up in
between, by a frozen process for instance, is not sent any more: what rests on an old look never goes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final, Protocol

from mlbot_core.clock import Clock
from mlbot_core.config.execution import OrdersConfig
from mlbot_core.config.trading import RiskConfig
from mlbot_core.decision.risk import level_of
from mlbot_core.decision.state import NORMAL
from mlbot_core.execution.broker import (
    Accepted,
    Broker,
    ClockCheck,
    DefiniteReject,
    Next,
    Ticker,
    VenueClockError,
)
from mlbot_core.execution.checks import MINUTE_MS, Account, check_order
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_book import COIN
from mlbot_core.execution.ledger_folds import AttemptEvent, IntentState
from mlbot_core.execution.ledger_risk import AlertLevel
from mlbot_core.execution.ledger_states import AttemptError
from mlbot_core.execution.types import Instrument, OrderRequest, PositionSnapshot

# Between the fresh look and the bytes of an order.
SEND_WITHIN_MS: Final = 5_000
_CLOCK_VALID_MS: Final = MINUTE_MS


class PermitLike(Protocol):
    """May an order be sent right now."""

    def entry(self) -> bool:
        """Whether one that opens or adds may."""
        ...

    def reduce(self) -> bool:
        """Whether one that only reduces, or a cancel, may."""
        ...


@dataclass(frozen=True)
class ExecutionRules:
    """How orders are made and what bounds them: settings, never arguments of a run.

    Parameters
    ----------
    strategy
        Part of every id.
    max_position
        Cap, fraction of NAV; the smaller of it and that of ``risk`` holds.
    """

    strategy: str
    orders: OrdersConfig
    risk: RiskConfig
    max_position: Decimal


@dataclass(frozen=True)
class Fresh:
    """A look that an order rests on."""

    account: Account
    position: PositionSnapshot
    quote: Ticker
    instrument: Instrument
    at_ms: int


class Then(StrEnum):
    """What comes after a send, or after one that was not made."""

    LOOK = "look"
    """Look what became of the order."""
    AGAIN = "again"
    """Nothing happened; try anew with a fresh look."""
    LATER = "later"
    """Nothing can be sent now; come back."""
    NEVER = "never"
    """Nothing more is to be tried for this intent."""


@dataclass(frozen=True)
class Sent:
    """What came of it: when to come back (UTC ms), and why in words."""

    then: Then
    retry_ms: int | None = None
    reason: str = ""


class Sender:
    """Sends orders of intents.

    Parameters
    ----------
    renew
        Called where a fresh look begins: the process's lease.
    """

    def __init__(
        self,
        ledger: ExecutionLedger,
        broker: Broker,
        clock: Clock,
        permit: PermitLike,
        renew: Callable[[], None],
        rules: ExecutionRules,
        symbol: str,
    ) -> None:
        self._ledger = ledger
        self._broker = broker
        self._clock = clock
        self._permit = permit
        self._renew = renew
        self._rules = rules
        self._symbol = symbol
        self._clock_check: ClockCheck | None = None
        self.count = 0

    def look(self) -> Fresh:
        """Read everything that an order rests on.

        Raises
        ------
        BrokerError
            If a question stayed without an answer.
        """
        self._renew()
        at = self._clock.now_ms()
        instrument = self._broker.instrument(self._symbol)
        wallet, position = self._broker.wallet(), self._broker.position(self._symbol)
        quote = self._broker.ticker(self._symbol)
        account = Account(wallet.coin(COIN).equity, position.size, wallet.maintenance_margin_rate, at)
        return Fresh(account, position, quote, instrument, at)

    def level(self) -> int:
        """Return the risk level as the book has it now, whoever wrote it last."""
        stored = self._ledger.load_risk_state(self._symbol)
        return NORMAL if stored is None else level_of(stored.state.causes)

    def send(self, state: IntentState, request: OrderRequest, fresh: Fresh, *, again: bool = False) -> Sent:
        """Send an order of an intent once, if gate and permit let it through.

        Parameters
        ----------
        again
            It was begun before and never arrived: the same goes out under the same id.
        """
        gate = self._gate(request, fresh)
        if gate is not None:
            return gate
        try:
            if again:
                request = self._ledger.resend(request.order_link_id)
            else:
                self._ledger.begin_attempt(state.intent.intent_id, request)
        except AttemptError as error:
            # somebody else carries it out, or its time has come
            return Sent(Then.LATER, None, str(error))
        allowed = self._permit.reduce if request.reduce_only else self._permit.entry
        self.count += 1
        outcome = self._broker.place(
            request, may_send=lambda: allowed() and 0 <= self._clock.now_ms() - fresh.at_ms <= SEND_WITHIN_MS
        )
        if isinstance(outcome, Accepted):
            self._note(request, AttemptEvent.ACKNOWLEDGED, None, outcome.order_id)
            return Sent(Then.LOOK)
        if isinstance(outcome, DefiniteReject):
            self._note(request, AttemptEvent.REFUSED, outcome.code, f"{outcome.name}: {outcome.reason}")
            return self._refused(state, request, outcome)
        if outcome.must_exist:
            # the exchange has an order under this id, and the id is ours alone
            self._note(request, AttemptEvent.ACKNOWLEDGED, outcome.code, outcome.reason)
            return Sent(Then.LOOK, None, outcome.reason)
        self._note(request, AttemptEvent.AMBIGUOUS, outcome.code, f"{outcome.name}: {outcome.reason}")
        return Sent(Then.LOOK, None, outcome.reason)

    def _gate(self, request: OrderRequest, fresh: Fresh) -> Sent | None:
        now = self._clock.now_ms()
        allowed = self._permit.reduce() if request.reduce_only else self._permit.entry()
        if not allowed:
            return Sent(Then.LATER, None, "the permit to send is not given: a halt, or a lease that ran out")
        offset = None if request.reduce_only else self._offset_ms(now)
        refusal = check_order(
            request,
            fresh.account,
            fresh.quote,
            risk_level=self.level(),
            limits=self._rules.risk,
            clock_offset_ms=offset,
            recent_orders_ms=self._ledger.sends_since(now - MINUTE_MS),
            now_ms=self._clock.now_ms(),
            max_position=self._rules.max_position,
        )
        if refusal is None:
            return None
        if refusal.name in ("order_size", "position_cap"):
            self._tell(refusal.name, f"{request.side} {request.qty} {request.symbol}: {refusal.reason}", request)
            return Sent(Then.NEVER, None, refusal.reason)
        wait_ms = MINUTE_MS // 10 if refusal.name == "order_rate" else 2_000
        return Sent(Then.LATER, now + wait_ms, f"{refusal.name}: {refusal.reason}")

    def _refused(self, state: IntentState, request: OrderRequest, reject: DefiniteReject) -> Sent:
        """Say what a definite refusal means: nothing was done at the exchange."""
        now, reason = self._clock.now_ms(), f"{reject.name}: {reject.reason}"
        match reject.then:
            case Next.HALT:
                self._ledger.raise_error(self._symbol, "executor", reason)
                self._tell(f"halt_{reject.name}", f"{reason}; trading is halted until a person re-arms it", request)
                return Sent(Then.LATER, None, reason)
            case Next.WAIT:
                return Sent(Then.AGAIN, max(reject.retry_at_ms or 0, now + 1_000), reason)
            case Next.CLOCK:
                self._clock_check = None
                return Sent(Then.LATER, now + 2_000, reason)
            case Next.PAUSE:
                return Sent(Then.LATER, now + 30_000, reason)
            case Next.LOOK if reject.name == "may_not_send":
                return Sent(Then.LATER, None, reason)
            case Next.ORDER if not request.reduce_only:
                self._tell(
                    f"refused_{reject.name}", f"{request.side} {request.qty} {request.symbol}: {reason}", request
                )
                return Sent(Then.NEVER, None, reason)
        if not request.reduce_only and state.next_attempt + 1 >= self._rules.orders.max_attempts:
            return Sent(Then.NEVER, None, reason)
        return Sent(Then.AGAIN, now + 500 * (state.next_attempt + 1), reason)

    def _offset_ms(self, now: int) -> int | None:
        known = self._clock_check
        if known is None or not 0 <= now - known.measured_ms < _CLOCK_VALID_MS:
            self._clock_check = None
            try:
                self._clock_check = self._broker.check_clock()
            except VenueClockError:
                return None
        return None if self._clock_check is None else self._clock_check.offset_ms

    def _note(self, request: OrderRequest, event: AttemptEvent, code: int | None, detail: str) -> None:
        self._ledger.note_answer(request.order_link_id, event, code or None, detail)

    def _tell(self, code: str, message: str, request: OrderRequest) -> None:
        self._ledger.raise_alert(AlertLevel.WARNING, code, message, f"{code[:60]}/{request.order_link_id}")
