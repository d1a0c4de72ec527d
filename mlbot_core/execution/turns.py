"""Which open intents may go on now, which are taken back, and whose turn has not come. Reads the book only."""

from __future__ import annotations

from typing import Final

from mlbot_core.clock import Clock
from mlbot_core.config.execution import OrdersConfig
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_folds import Closing, IntentState
from mlbot_core.execution.ledger_states import BAR, DecisionRecord

# Number of the newest execution that a decision knew, in its details.
FILLS_SEQ: Final = "fills_seq"


class Turns:
    """Says it for the intents of one symbol."""

    def __init__(self, ledger: ExecutionLedger, clock: Clock, orders: OrdersConfig, symbol: str) -> None:
        self._ledger = ledger
        self._clock = clock
        self._orders = orders
        self._symbol = symbol
        # a decision never changes
        self._decisions: dict[str, DecisionRecord | None] = {}

    def stale(self, *, entries: bool) -> dict[str, tuple[IntentState, Closing]]:
        """Return the open intents that must not go on, by id, with the reason to close them for.

        Parameters
        ----------
        entries
            Whether the risk level allows them.
        """
        now, replaced = self._clock.now_ms(), self._ledger.replaced(self._symbol)
        found: dict[str, tuple[IntentState, Closing]] = {}
        stopped: dict[int, bool] = {}
        for state in self._ledger.open_intents(self._symbol):
            intent, why = state.intent, None
            if intent.intent_id in replaced:
                why = Closing.SUPERSEDED
            elif now > intent.valid_until_ms:
                why = Closing.EXPIRED
            elif not intent.reduce_only and not entries:
                why = Closing.HALTED
            elif not intent.reduce_only and self._stopped(state, stopped):
                why = Closing.SUPERSEDED
            if why is not None:
                found[intent.intent_id] = (state, why)
        return found

    def by_bar(self, state: IntentState) -> bool:
        """Whether the decision on a bar asked for an intent, not a risk limit or a person."""
        decision = self._decision(state)
        return decision is None or decision.trigger == BAR

    def waits_until(self, state: IntentState, siblings: dict[str, list[IntentState]]) -> int | None:
        """Return until when (UTC ms) a slice waits for the one before it; None if it does not.

        Parameters
        ----------
        siblings
            Intents by decision, filled here; clear it whenever an order was begun.
        """
        key = state.intent.key
        if key.slice == 0 or state.attempts or not self.by_bar(state):
            return None
        if key.decision_id not in siblings:
            siblings[key.decision_id] = self._ledger.intents_of(key.decision_id)
        every_ms, now = round(1000 * self._orders.slice_every_s), self._clock.now_ms()
        for other in siblings[key.decision_id]:
            if other.intent.key.leg is key.leg and other.intent.key.slice == key.slice - 1:
                if not other.attempts:
                    return None if other.closing is not None else now + every_ms
                due = other.attempts[0].begun_ms + every_ms
                return due if due > now else None
        return None

    def _stopped(self, state: IntentState, known: dict[int, bool]) -> bool:
        """Whether the position was closed by its stop, or by the exchange, since the intent was planned."""
        decision = self._decision(state)
        since = None if decision is None else decision.details.get(FILLS_SEQ)
        if not isinstance(since, int):
            return False
        if since not in known:
            known[since] = self._ledger.stopped_after(self._symbol, since) is not None
        return known[since]

    def _decision(self, state: IntentState) -> DecisionRecord | None:
        name = state.intent.key.decision_id
        if name not in self._decisions:
            self._decisions[name] = self._ledger.decision(name)
        return self._decisions[name]
