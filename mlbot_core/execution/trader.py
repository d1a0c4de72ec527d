"""The trader: a decision once a bar, and cycles in between. All of its state is in the book.

A trader can be thrown away at any instant, and several may work on one book: what one of them began another goes on
with. A decision, its plan and the risk state that it leaves are one transaction of the book; nothing is sent before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from mlbot_core.clock import Clock, format_utc
from mlbot_core.decision.costs import Costs
from mlbot_core.decision.state import DATA_STALE, DRIFT, HOLD, Decision, Forecast, initial_state
from mlbot_core.execution import evidence
from mlbot_core.execution.broker import Broker, BrokerError
from mlbot_core.execution.cycle import ACTOR, Cycler, CycleReport, Files
from mlbot_core.execution.identifiers import decision_id
from mlbot_core.execution.intents import (
    Intent,
    Situation,
    Ticket,
    goal_from_fraction,
    plan_intents,
    rules_from_risk,
)
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_folds import LedgerConflictError
from mlbot_core.execution.ledger_intents import DecisionExistsError
from mlbot_core.execution.ledger_plans import ALL, ENTRIES, NONE, REPLACES
from mlbot_core.execution.ledger_risk import AlertLevel, RiskStateConflictError, StoredRiskState
from mlbot_core.execution.ledger_states import BAR, DecisionRecord
from mlbot_core.execution.marking import Look
from mlbot_core.execution.sending import ExecutionRules, PermitLike
from mlbot_core.execution.turns import FILLS_SEQ
from mlbot_core.execution.types import OrderRefusedError
from mlbot_core.timeframe import Timeframe

_DATA: Final = "data"
_TRIES: Final = 5


class Status(StrEnum):
    """What a call of :meth:`Trader.decide` came to: a new decision, nothing to do (``reason`` says why), or blind (the
    account could not be read: ask again)."""

    DECIDED = "decided"
    NOTHING = "nothing"
    BLIND = "blind"


@dataclass(frozen=True)
class Decided:
    """What a call of :meth:`Trader.decide` came to; ``cycle`` is the first pass over its plan."""

    status: Status
    reason: str
    decision_id: str = ""
    decision: Decision | None = None
    intents: tuple[Intent, ...] = ()
    cycle: CycleReport | None = None


class Trader(Cycler):
    """Decides and carries out for one account and symbol.

    Everything that limits comes from settings given here, nothing from the arguments of a run. Parameters are those of
    :class:`mlbot_core.execution.cycle.Cycler` and ``costs``: what a forecast must beat.
    """

    def __init__(
        self,
        ledger: ExecutionLedger,
        broker: Broker,
        clock: Clock,
        permit: PermitLike,
        rules: ExecutionRules,
        timeframe: Timeframe,
        costs: Costs,
        symbol: str,
        *,
        renew: Callable[[], None] = lambda: None,
        halt: Files | None = None,
    ) -> None:
        super().__init__(ledger, broker, clock, permit, rules, timeframe, symbol, renew=renew, halt=halt)
        self._costs = costs

    def decide(
        self,
        bar_ts: int,
        forecast: Forecast,
        details: Mapping[str, Any] | None = None,
        *,
        flags: int = 0,
        bar_volume: float | None = None,
    ) -> Decided:
        """Decide on a bar and begin to carry it out; a bar that must not be decided (again) is a no-op that says so.

        Parameters
        ----------
        bar_ts
            Open time of the bar, UTC ms.
        forecast
            Of that bar.
        details
            Plain JSON to be kept with the decision: model version, features ...
        flags
            ``DATA_STALE`` and ``DRIFT`` where the inputs are such; they stand until the next call.
        bar_volume
            Coins that traded in the bar, for slices; None unknown.
        """
        refusal = self._refuses(bar_ts)
        if refusal is not None:
            return Decided(Status.NOTHING, refusal)
        try:
            self._ledger.set_flags(self._symbol, _DATA, flags & (DATA_STALE | DRIFT))
            before = self.cycle()
            if before.blind:
                return Decided(Status.BLIND, before.blind)
            if self._ledger.opening(self._symbol) is None:
                return Decided(Status.BLIND, "the book has not begun; see the alerts for what to do first")
            if before.open:
                self._make_room(bar_ts, forecast)
            for _ in range(_TRIES):
                try:
                    made = self._commit(bar_ts, forecast, details or {}, bar_volume)
                    break
                except DecisionExistsError as error:
                    return Decided(Status.NOTHING, str(error))
                except RiskStateConflictError:
                    # the watch marked the account meanwhile: look again
                    continue
            else:
                return Decided(Status.BLIND, "others kept changing the risk state; ask again")
        except BrokerError as error:
            return Decided(Status.BLIND, self._degraded(error))
        except LedgerConflictError as error:
            return Decided(Status.BLIND, self._conflict(error))
        record, decision, intents, stored = made
        self._tell(stored)
        done = self._guarded(lambda: self._conclude(self._act(stored)))
        return Decided(Status.DECIDED, "", record.decision_id, decision, intents, done)

    def _refuses(self, bar_ts: int) -> str | None:
        now, frame = self._clock.now_ms(), self._timeframe
        newest = frame.last_closed(now)
        if bar_ts != newest:
            return (
                f"bar {format_utc(bar_ts)} is not decided: the newest closed {frame} bar is {format_utc(newest)}; "
                "nothing to do"
            )
        age, most = now - frame.close_of(bar_ts), round(self._rules.orders.valid_share * frame.ms)
        if age > most:
            return (
                f"bar {format_utc(bar_ts)} closed {age / 1000:.0f} s ago, more than the {most / 1000:.0f} s within "
                "which it may be traded; nothing to do"
            )
        known = self._ledger.newest_decision(self._symbol, BAR)
        if known is not None and known.ts >= bar_ts:
            return (
                f"bar {format_utc(bar_ts)} is not decided: decision {known.decision_id} on {format_utc(known.ts)} "
                "exists; nothing to do"
            )
        return None

    def _make_room(self, bar_ts: int, forecast: Forecast) -> None:
        """Take back what the coming decision will replace, so that the position stands still while it is made."""
        _, _, decision, _ = self._step(bar_ts, forecast)
        replaces = _replaces(decision)
        for state in self._ledger.open_intents(self._symbol):
            last = state.last
            if last is None or last.over or replaces == NONE or (replaces == ENTRIES and state.intent.reduce_only):
                continue
            self._renew()
            self.executor.working.cancel(state, last)
        self._reconcile()

    def _step(self, bar_ts: int, forecast: Forecast) -> tuple[Look, evidence.Evidence, Decision, dict[str, Any]]:
        looked = self.observe()
        stored = self._ledger.load_risk_state(self._symbol)
        flow, flow_seq = self._ledger.flow_since(self._symbol, stored, looked.upto)
        fills = self._ledger.newest_fill()
        newest = self._ledger.newest_decision(self._symbol, BAR)
        opening = self._ledger.opening(self._symbol)
        since = 0 if opening is None else opening.fill_seq
        if newest is not None and isinstance(newest.details.get(FILLS_SEQ), int):
            since = max(since, newest.details[FILLS_SEQ])
        stop = self._ledger.stop_between(self._symbol, since, fills)
        stopped = 0 if stop is None else -stop.side.sign
        state = initial_state() if stored is None else stored.state
        flags = self._ledger.flags(self._symbol) | self._killed()
        seen = looked.seen._replace(bar_ts=bar_ts, flow=float(flow), flags=flags, stopped=stopped)
        basis = evidence.Evidence(state, seen, forecast, self._limits, self._costs.round_trip)
        after, decision = basis.decide()
        more = {
            **evidence.record(basis, after, decision),
            "version": 0 if stored is None else stored.version,
            "flow_seq": flow_seq,
            FILLS_SEQ: fills,
            REPLACES: _replaces(decision),
        }
        return looked, basis, decision, more

    def _commit(
        self, bar_ts: int, forecast: Forecast, details: Mapping[str, Any], bar_volume: float | None
    ) -> tuple[DecisionRecord, Decision, tuple[Intent, ...], StoredRiskState]:
        looked, basis, decision, more = self._step(bar_ts, forecast)
        name = decision_id(self._ledger.account, self._symbol, self._timeframe, bar_ts)
        intents, problem = self._plan(bar_ts, name, looked, decision, bar_volume)
        now = self._clock.now_ms()
        record = DecisionRecord(
            name,
            self._rules.strategy,
            self._symbol,
            BAR,
            str(self._timeframe),
            bar_ts,
            now,
            Decimal(repr(float(decision.target))),
            {**more, "caller": dict(details), "not_planned": problem},
        )
        after, _ = basis.decide()
        stored = self._ledger.commit_decision(
            record, intents, after, after=more["version"], flow_seq=more["flow_seq"], actor=ACTOR
        )
        if problem:
            self._ledger.raise_alert(AlertLevel.WARNING, "not_planned", problem, f"not_planned/{name}")
        return record, decision, intents, stored

    def _plan(
        self, bar_ts: int, name: str, looked: Look, decision: Decision, bar_volume: float | None
    ) -> tuple[tuple[Intent, ...], str]:
        if decision.action == HOLD:
            return (), ""
        orders, position = self._rules.orders, looked.position
        close_ms = self._timeframe.close_of(bar_ts)
        ticket = Ticket(
            self._rules.strategy,
            self._ledger.account,
            name,
            close_ms + round(orders.valid_share * self._timeframe.ms),
        )
        try:
            volume = None
            if bar_volume is not None:
                volume = Decimal(repr(bar_volume)) * round(1000 * orders.slice_every_s) / self._timeframe.ms
            risk = self._rules.risk.model_copy(update={"max_position": self._limits.max_position})
            rules = rules_from_risk(risk, participation=orders.participation)
            situation = Situation(position.size, position.average_price, looked.ticker.mark, looked.nav, volume)
            instrument = self._broker.instrument(self._symbol)
            goal = goal_from_fraction(Decimal(repr(float(decision.target))), situation, instrument, rules)
            return plan_intents(goal, situation, instrument, rules, ticket), ""
        except OrderRefusedError as error:
            return (), str(error)


def _replaces(decision: Decision) -> str:
    if decision.action != HOLD:
        return ALL
    return NONE if decision.keep_entries else ENTRIES
