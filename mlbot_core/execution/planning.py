"""Plans that no bar asked for: closing everything, and the stop that protects what is held. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from mlbot_core.config.trading import RiskConfig
from mlbot_core.execution.identifiers import event_decision_id
from mlbot_core.execution.intents import Intent, PlanRules, Situation, Ticket, plan_intents
from mlbot_core.execution.ledger_states import DecisionRecord
from mlbot_core.execution.rounding import round_stop
from mlbot_core.execution.types import ZERO, Instrument, OrderRefusedError, PositionSnapshot, Side
from mlbot_core.timeframe import DAY_MS

# A stop this much further away than it has to be is set anew; nearer ones are left alone.
STOP_TOLERANCE: Final = Decimal("1.1")
_ONE: Final = Decimal(1)


def flatten_plan(
    strategy: str,
    account: str,
    instrument: Instrument,
    position: PositionSnapshot,
    mark: Decimal,
    trigger: str,
    reason: str,
    at_ms: int,
) -> tuple[DecisionRecord, tuple[Intent, ...]]:
    """Return a decision to hold nothing, and the reduce-only intents for it.

    Parameters
    ----------
    mark
        Mark price, USD.
    at_ms
        The moment that names it, UTC ms.
    """
    symbol = instrument.symbol
    name = event_decision_id(account, symbol, trigger, at_ms)
    details = {"reason": reason, "held": str(position.size), "mark": str(mark), "replaces": "all"}
    record = DecisionRecord(name, strategy, symbol, trigger, "", at_ms, at_ms, ZERO, details)
    if position.flat:
        return record, ()
    # a way out has no time limit of its own: what is open is gone on with until it is flat
    ticket = Ticket(strategy, account, name, at_ms + DAY_MS)
    situation = Situation(position.size, position.average_price, mark, ZERO)
    return record, plan_intents(ZERO, situation, instrument, PlanRules(_ONE, _ONE, _ONE), ticket)


def protective_stop(position: PositionSnapshot, nav: Decimal, risk: RiskConfig, instrument: Instrument) -> Decimal:
    """Return where the stop of a whole position belongs, USD: the nearer of distance and cost, as for an entry.

    Raises
    ------
    OrderRefusedError
        If nothing is held or its entry price is unknown.
    """
    if position.flat or position.average_price is None:
        raise OrderRefusedError(f"{position.symbol}: {position.size} at {position.average_price} takes no stop")
    average, size = position.average_price, abs(position.size)
    distance = average * Decimal(str(risk.stop_distance))
    cost = Decimal(str(risk.stop_cost)) * nav / size
    side = Side.of(position.size)
    # after a loss of NAV the cost alone could move the stop to the price: never nearer than half the distance
    room = min(distance, max(cost, distance / 2))
    return round_stop(average - side.sign * room, side, instrument)


def needs_stop(position: PositionSnapshot, risk: RiskConfig) -> bool:
    """Return whether a position has no stop, or one that is further away than it has to be."""
    if position.flat:
        return False
    if position.stop_loss is None:
        return True
    if position.average_price is None:
        return False
    distance = (position.average_price - position.stop_loss) * Side.of(position.size).sign
    return distance > position.average_price * Decimal(str(risk.stop_distance)) * STOP_TOLERANCE
