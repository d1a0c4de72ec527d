"""Carries intents out: close before entry, one order at a time for each, proven over before the next one.

Nothing is remembered outside of the book: whoever opens it goes on where the last one was stopped, at any line.

==========================  =======================================================================================
an intent is                when
==========================  =======================================================================================
taken back at the exchange  a later decision replaced it, its time ran out, or the risk level forbids entries;
                            it is closed when its order is proven over
begun                       nothing of it is at the exchange; entries wait until all closes before them are complete
                            and nothing that was taken back is unproven; slices keep their distance in time
sent again, same id         its order was looked for everywhere and is not there
given up                    its attempts are used up, what is left is no order, or its stop was hit
==========================  =======================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final

from mlbot_core.clock import Clock
from mlbot_core.decision.state import NORMAL
from mlbot_core.execution.broker import Broker
from mlbot_core.execution.identifiers import Leg
from mlbot_core.execution.intents import Intent
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_folds import AttemptState, Closing, IntentState
from mlbot_core.execution.ledger_risk import AlertLevel
from mlbot_core.execution.ledger_states import AttemptError
from mlbot_core.execution.planning import flatten_plan
from mlbot_core.execution.pricing import Wish, wish, wish_qty
from mlbot_core.execution.sending import ExecutionRules, Fresh, PermitLike, Sender, Sent, Then
from mlbot_core.execution.turns import Turns
from mlbot_core.execution.types import ZERO, OrderRefusedError, OrderType
from mlbot_core.execution.working import Sight, Working

_LOOK_AGAIN_MS: Final = 2_000
_SHORT_WAIT_MS: Final = 3_000
_LONG_WAIT_MS: Final = 20_000


@dataclass
class Progress:
    """What one pass came to.

    Parameters
    ----------
    open
        Intents that are not closed.
    next_ms
        When it is worth coming back, UTC ms; None where only a new decision or a person helps.
    sent
        Orders that were sent.
    notes
        Why something was not done, for people.
    """

    open: int = 0
    next_ms: int | None = None
    sent: int = 0
    notes: list[str] = field(default_factory=list)

    def wait(self, at_ms: int | None, why: str = "") -> None:
        """Come back at a moment, or earlier where something else asks for it."""
        if at_ms is not None:
            self.next_ms = at_ms if self.next_ms is None else min(self.next_ms, at_ms)
        if why and why not in self.notes:
            self.notes.append(why)


class Executor:
    """Carries out the intents of one symbol.

    Parameters
    ----------
    ledger, broker, clock
        The book, the account and the time.
    permit
        Asked before each send, and again right before its bytes are written.
    rules
        How orders are made.
    symbol
        As the exchange names it.
    renew
        Called where a fresh look begins (the lease of this process).
    """

    def __init__(
        self,
        ledger: ExecutionLedger,
        broker: Broker,
        clock: Clock,
        permit: PermitLike,
        rules: ExecutionRules,
        symbol: str,
        *,
        renew: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._broker = broker
        self._clock = clock
        self._permit = permit
        self._rules = rules
        self._turns = Turns(ledger, clock, rules.orders, symbol)
        self._symbol = symbol
        self._sender = Sender(ledger, broker, clock, permit, renew, rules, symbol)
        self._renew = renew
        self.working = Working(ledger, broker, clock, permit.reduce)

    def carry_out(self, symbol: str | None = None) -> Progress:
        """Bring every open intent as far as it goes now; safe to call at any moment, by anybody.

        Raises
        ------
        BrokerError
            If a question stayed without an answer; call again.
        LedgerConflictError
            If book and exchange contradict each other: halt.
        """
        assert symbol in (None, self._symbol)
        progress, before = Progress(), self._sender.count
        self._renew()
        # a halt that stands forbids entries before it has reached the risk level; without a lease nothing is known
        halted = self._permit.reduce() and not self._permit.entry()
        stale = self._turns.stale(entries=self._sender.level() == NORMAL and not halted)
        for state, _ in stale.values():
            last = state.last
            if last is not None and last.order is not None and not last.over:
                # at once, all of them; the proof comes below
                self._renew()
                self.working.ask_to_cancel(self._symbol, last.order_link_id)
        self._advance_all(stale, progress, reduce_only=True)
        unproven = [state for state, why in stale.values() if not self._withdraw(state, why, progress)]
        if unproven:
            progress.wait(self._clock.now_ms() + _LOOK_AGAIN_MS, "an order that was taken back is not proven over")
        else:
            self._advance_all(stale, progress, reduce_only=False)
        progress.open = len(self._ledger.open_intents(self._symbol))
        progress.sent = self._sender.count - before
        return progress

    def flatten(self, trigger: str, reason: str) -> Progress:
        """Close everything: durable first, then entries are taken back and the position is closed, reduce-only.

        Calling it again goes on with what is open and adds nothing. It is done when nothing is held and nothing open.

        Parameters
        ----------
        trigger
            Who asks for it: ``risk``, ``person`` ...
        reason
            For people.
        """
        self._renew()
        position = self._broker.position(self._symbol)
        replaced = self._ledger.replaced(self._symbol)
        going = [s for s in self._ledger.open_intents(self._symbol) if s.intent.intent_id not in replaced]
        closing = sum(
            (s.remaining for s in going if s.intent.reduce_only and s.intent.side.sign * position.size < 0), ZERO
        )
        if abs(position.size) > closing or any(not s.intent.reduce_only for s in going):
            instrument, quote = self._broker.instrument(self._symbol), self._broker.ticker(self._symbol)
            self._ledger.plan_flatten(
                self._symbol,
                trigger,
                self._clock.now_ms(),
                lambda at: flatten_plan(
                    self._rules.strategy, self._ledger.account, instrument, position, quote.mark, trigger, reason, at
                ),
            )
        return self.carry_out()

    def cancel_strays(self, links: tuple[str, ...]) -> None:
        """Take back orders of ours that belong to intents which were given up."""
        for link in links:
            self._renew()
            self.working.ask_to_cancel(self._symbol, link)
            found = self._ledger.attempt(link)
            if found is not None:
                self.working.cancel(*found)

    # --- what is not to go on

    def _withdraw(self, state: IntentState, why: Closing, progress: Progress) -> bool:
        """Close an intent after its order is proven over; return whether that was so."""
        state = self._ledger.intent(state.intent.intent_id)
        last = state.last
        if state.closing is not None:
            return True
        if last is not None and not last.over:
            self._renew()
            sight = self.working.cancel(state, last)
            ready = self.working.give_up(last) if sight is Sight.ABSENT else None
            if sight is Sight.ABSENT and ready is not None:
                progress.wait(ready, f"order {last.order_link_id} may still arrive")
                return False
            if sight in (Sight.OPEN, Sight.UNKNOWN):
                progress.wait(self._clock.now_ms() + _LOOK_AGAIN_MS, f"order {last.order_link_id} is {sight}")
                return False
        self._close(state, why, progress)
        return True

    def _close(self, state: IntentState, why: Closing, progress: Progress, detail: str = "") -> None:
        if why in (Closing.REFUSED, Closing.EXPIRED) and state.remaining:
            # nothing is given up in silence; first, because a closed intent is not looked at again
            intent = state.intent
            self._ledger.raise_alert(
                AlertLevel.WARNING,
                f"intent_{why.value}",
                f"{intent.key.leg} {intent.side} {intent.qty} {self._symbol} of decision {intent.key.decision_id}: "
                f"{state.remaining} is not traded ({why.value}; {detail})",
                f"intent_{why.value}/{intent.intent_id}",
            )
        try:
            self._ledger.close_intent(state.intent.intent_id, why, detail)
        except AttemptError as error:
            # another process has begun an order for it since
            progress.wait(self._clock.now_ms() + _LOOK_AGAIN_MS, str(error))

    # --- what goes on

    def _advance_all(self, stale: Collection[str], progress: Progress, *, reduce_only: bool) -> None:
        seen, siblings = set(stale), dict[str, list[IntentState]]()
        while True:
            # an intent may have been followed by another one meanwhile
            waiting = [
                state
                for state in self._ledger.open_intents(self._symbol)
                if state.intent.reduce_only == reduce_only and state.intent.intent_id not in seen
            ]
            if not waiting:
                return
            for state in waiting:
                seen.add(state.intent.intent_id)
                due = self._turns.waits_until(state, siblings)
                if due is not None:
                    progress.wait(due)
                    continue
                before = self._sender.count
                self._advance(state.intent.intent_id, progress)
                if self._sender.count != before:
                    siblings.clear()

    def _advance(self, intent_id: str, progress: Progress) -> None:
        for _ in range(4 * self._budget()):
            state = self._ledger.intent(intent_id)
            if state.closing is not None:
                return
            last = state.last
            if last is not None and not last.proven:
                if not self._mind(state, last, progress):
                    return
                continue
            if not self._begin(state, progress):
                return
        progress.wait(self._clock.now_ms() + _LOOK_AGAIN_MS, f"intent {intent_id} takes more than one pass")

    def _mind(self, state: IntentState, last: AttemptState, progress: Progress) -> bool:
        """Look after an order that is on its way; return whether there is more to do for its intent now."""
        sight = self.working.follow(state, last)
        now = self._clock.now_ms()
        if sight is Sight.OVER:
            return True
        if sight is Sight.UNKNOWN:
            progress.wait(now + _LOOK_AGAIN_MS, f"what became of order {last.order_link_id} is not known yet")
            return False
        if sight is Sight.ABSENT:
            return self._again(state, last, progress)
        if last.request.order_type is OrderType.MARKET:
            progress.wait(now + _LOOK_AGAIN_MS, f"market order {last.order_link_id} is not over yet")
            return False
        quote = self._broker.ticker(self._symbol)
        wanted = self._wish(state, quote.bid, quote.ask)
        if not wanted.replaces(last.request):
            progress.wait(wanted.look_again_ms)
            return False
        sight = self.working.cancel(state, last)
        if sight is not Sight.OVER:
            progress.wait(now + _LOOK_AGAIN_MS, f"order {last.order_link_id} is {sight} after its cancel")
        return sight is Sight.OVER

    def _again(self, state: IntentState, last: AttemptState, progress: Progress) -> bool:
        """Send an order that never arrived once more under its id, or give it up."""
        fresh = self._sender.look()
        fits = not last.answered and self._clock.now_ms() <= state.intent.valid_until_ms
        if state.intent.reduce_only:
            fits = fits and fresh.position.size * state.intent.side.sign < 0
        else:
            if fresh.position.size != self._ledger.held(self._symbol).size:
                # something has traded that the book does not know: it may be this order
                progress.wait(self._clock.now_ms() + _LOOK_AGAIN_MS, "the position is not the book's; reconcile first")
                return False
            qty = wish_qty(state, fresh, last.request.price, self._rules)
            fits = fits and self._forbidden(state, fresh) is None and last.request.qty <= qty
        if fits:
            # also at a price that is behind: what the exchange says of it is the proof that the next order needs
            return self._after(self._sender.send(state, last.request, fresh, again=True), state, progress)
        ready, now = self.working.give_up(last), self._clock.now_ms()
        if ready is not None:
            if ready - now > _LONG_WAIT_MS:
                progress.wait(ready, f"order {last.order_link_id} may still arrive")
                return False
            self._clock.sleep((ready - now) / 1000)
            return True
        # absent and unproven: no other order of this intent may follow it
        state = self._ledger.intent(state.intent.intent_id)
        if state.intent.reduce_only and fresh.position.size * state.intent.side.sign >= 0:
            self._close(state, Closing.FLAT, progress)
        elif now > state.intent.valid_until_ms or state.closing is not None:
            self._close(state, Closing.EXPIRED, progress, "its order never arrived")
        else:
            self._ledger.go_on_as(state.intent.intent_id, self._successor(state))
            progress.wait(now)
        return False

    def _successor(self, state: IntentState) -> Intent:
        """Return the intent that goes on for one whose order can neither be proven nor sent again."""
        key = state.intent.key
        taken = [s.intent.key.slice for s in self._ledger.intents_of(key.decision_id) if s.intent.key.leg is key.leg]
        return replace(state.intent, key=replace(key, slice=max(taken) + 1), qty=state.remaining)

    def _begin(self, state: IntentState, progress: Progress) -> bool:
        """Begin the next order of an intent; return whether there is more to do for it now."""
        intent = state.intent
        for before in intent.after:
            other = self._ledger.intent(before)
            if not other.complete:
                if other.closing is not None:
                    self._close(state, Closing.SUPERSEDED, progress, f"close {before} was given up")
                return False
        # being asked to wait is no order, but does not go on for ever either
        orders = sum(attempt.order is not None for attempt in state.attempts)
        used_up = orders >= self._budget() or state.next_attempt >= 4 * self._budget()
        if used_up and self._turns.by_bar(state):
            self._close(state, Closing.REFUSED, progress, f"{state.next_attempt} orders did not complete it")
            return False
        fresh = self._sender.look()
        held = fresh.position.size
        if intent.reduce_only and held * intent.side.sign >= 0:
            self._close(state, Closing.FLAT if intent.key.leg is Leg.CLOSE else Closing.CAPPED, progress)
            return False
        if not intent.reduce_only and state.filled_qty and not held:
            # its stop, or somebody, has closed what it bought; the next reconciliation tells
            progress.wait(self._clock.now_ms() + _LOOK_AGAIN_MS, f"what {intent.intent_id} bought is gone")
            return False
        why = self._forbidden(state, fresh)
        if why is not None:
            self._close(state, Closing.REFUSED, progress, why)
            return False
        wanted = self._wish(state, fresh.quote.bid, fresh.quote.ask)
        qty = wish_qty(state, fresh, wanted.price, self._rules)
        if not qty:
            self._close(state, Closing.CAPPED, progress, f"{state.remaining} coins are left, which is no order now")
            return False
        try:
            request = wanted.request(state, qty)
        except OrderRefusedError as error:
            self._close(state, Closing.REFUSED, progress, str(error))
            return False
        return self._after(self._sender.send(state, request, fresh), state, progress)

    def _after(self, sent: Sent, state: IntentState, progress: Progress) -> bool:
        """Return whether there is more to do for the intent now."""
        if sent.then is Then.LOOK:
            return True
        if sent.then is Then.NEVER:
            self._close(self._ledger.intent(state.intent.intent_id), Closing.REFUSED, progress, sent.reason)
            return False
        now = self._clock.now_ms()
        if sent.then is Then.AGAIN and sent.retry_ms is not None and sent.retry_ms - now <= _SHORT_WAIT_MS:
            self._clock.sleep(max(0, sent.retry_ms - now) / 1000)
            return True
        progress.wait(sent.retry_ms if sent.retry_ms is not None else now + _LOOK_AGAIN_MS, sent.reason)
        return False

    def _forbidden(self, state: IntentState, fresh: Fresh) -> str | None:
        """Return why an entry must not be begun on this look."""
        intent = state.intent
        if intent.reduce_only:
            return None
        if fresh.position.size * intent.side.sign < 0:
            return f"{fresh.position.size} is held on the other side; close it first"
        assert intent.stop_loss is not None
        if (fresh.quote.last - intent.stop_loss) * intent.side.sign <= 0:
            return f"the price {fresh.quote.last} has passed its stop {intent.stop_loss}"
        return None

    def _wish(self, state: IntentState, bid: Decimal, ask: Decimal) -> Wish:
        urgent = not self._turns.by_bar(state) or self._sender.level() != NORMAL
        return wish(state, bid, ask, self._rules.orders, self._clock.now_ms(), urgent=urgent)

    def _budget(self) -> int:
        orders = self._rules.orders
        return orders.max_attempts + (orders.max_reprices + 1 if orders.style == "maker" else 0)
