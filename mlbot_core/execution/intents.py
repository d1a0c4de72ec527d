"""From a target position to intents: what to trade, in which order, at most how much. Pure.

=====================================  =========================================================
held and wanted                        intents
=====================================  =========================================================
the same, or differing by less than    none
the exchange takes
flat, or more of the same side wanted  entry, with the protective stop of the whole position
less of the same side wanted           close (reduce-only)
nothing wanted                         close of everything, however small
the other side wanted                  close of everything, then the entry, which waits for it
=====================================  =========================================================

Quantities are rounded down and the target is bounded by the cap, so that rounding never buys more than was decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from mlbot_core.config.trading import RiskConfig
from mlbot_core.execution.identifiers import IntentKey, Leg
from mlbot_core.execution.rounding import round_qty, round_signed, round_stop, steps_down, steps_up
from mlbot_core.execution.types import (
    ZERO,
    Instrument,
    OrderRefusedError,
    OrderRequest,
    OrderType,
    Side,
    TimeInForce,
    TriggerBy,
)

MOST_SLICES: Final = 50


@dataclass(frozen=True)
class Intent:
    """A wish to trade, made durable before anything is sent.

    Parameters
    ----------
    key
        Names it; see :class:`mlbot_core.execution.identifiers.IntentKey`.
    side, qty
        Coins, positive, on the instrument's grid.
    reduce_only
        True for every close.
    stop_loss
        Trigger price of the whole position's stop, USD; None for a close.
    reference_price
        Price that it was planned at, USD.
    valid_until_ms
        No order for it is begun later, UTC ms.
    after
        Ids of the intents that must be complete before an order for this one may be begun.

    Raises
    ------
    OrderRefusedError
        If a close could open a position or an entry has no stop.
    """

    key: IntentKey
    side: Side
    qty: Decimal
    reduce_only: bool
    stop_loss: Decimal | None
    reference_price: Decimal
    valid_until_ms: int
    after: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        what = f"intent {self.intent_id} ({self.key.leg}, {self.side} {self.qty} {self.key.symbol})"
        for name in ("qty", "reference_price", "stop_loss"):
            value = getattr(self, name)
            if value is not None and not _positive(value):
                raise OrderRefusedError(f"{what}: {name} is {value}; it must be a positive number")
        if (self.key.leg is Leg.CLOSE) != self.reduce_only:
            raise OrderRefusedError(f"{what}: a close is reduce-only and an entry is not")
        if self.reduce_only != (self.stop_loss is None):
            raise OrderRefusedError(f"{what}: an entry carries a stop and a close none, not {self.stop_loss}")

    @property
    def intent_id(self) -> str:
        """The ``orderLinkId`` of its first attempt."""
        return self.key.intent_id

    @property
    def signed_qty(self) -> Decimal:
        """What it adds to the position, coins."""
        return self.qty * self.side.sign


@dataclass(frozen=True)
class PlanRules:
    """Bounds of planning.

    Parameters
    ----------
    max_position
        Cap: largest |position value at mark| / NAV.
    stop_cost
        What a stop-out costs at most before slippage, fraction of NAV.
    stop_distance
        How far the stop lies from the average entry at most, fraction of it.
    max_slice_qty
        Largest single order, coins; None for the exchange's bound.
    participation
        Largest single order as a share of the volume that the planner is given; None for no bound. It gives way to
        the exchange's smallest order and to :data:`MOST_SLICES`.

    Raises
    ------
    OrderRefusedError
        If a bound is out of its range.
    """

    max_position: Decimal
    stop_cost: Decimal
    stop_distance: Decimal
    max_slice_qty: Decimal | None = None
    participation: Decimal | None = None

    def __post_init__(self) -> None:
        for name, upper in (("max_position", 1), ("stop_cost", 1), ("stop_distance", 1), ("participation", 1)):
            value = getattr(self, name)
            if value is not None and not (value.is_finite() and 0 < value <= upper):
                raise OrderRefusedError(f"{name} is {value}; it is a fraction in (0, {upper}], see config/risk.yaml")
        if self.max_slice_qty is not None and not _positive(self.max_slice_qty):
            raise OrderRefusedError(f"max_slice_qty is {self.max_slice_qty}; it is a positive number of coins")


def rules_from_risk(
    risk: RiskConfig, *, participation: float | None = None, max_slice_qty: Decimal | None = None
) -> PlanRules:
    """Return the bounds that ``config/risk.yaml`` sets."""
    cap, cost = Decimal(str(risk.max_position)), Decimal(str(risk.stop_cost))
    share = None if participation is None else Decimal(str(participation))
    return PlanRules(cap, cost, cost / cap, max_slice_qty, share)


@dataclass(frozen=True)
class Situation:
    """What is known when a plan is made.

    Parameters
    ----------
    held
        Position, signed coins.
    entry_price
        Its average entry, USD; None when flat.
    price
        Mark price, USD.
    nav
        Marked equity, USD.
    volume
        Coins that trade in the time of one slice; None unknown.

    Raises
    ------
    OrderRefusedError
        If a number is missing or impossible: nothing is planned on guesses.
    """

    held: Decimal
    entry_price: Decimal | None
    price: Decimal
    nav: Decimal
    volume: Decimal | None = None

    def __post_init__(self) -> None:
        if not self.held.is_finite() or not self.nav.is_finite():
            raise OrderRefusedError(f"position {self.held} and NAV {self.nav} must be known; read the account again")
        if not _positive(self.price):
            raise OrderRefusedError(f"price {self.price} must be positive; read the market again")
        if self.held and not _positive(self.entry_price):
            raise OrderRefusedError(f"a position of {self.held} has the entry price {self.entry_price}; read it again")
        if self.volume is not None and not (self.volume.is_finite() and self.volume >= 0):
            raise OrderRefusedError(f"a volume of {self.volume} is none; leave it out when it is unknown")


@dataclass(frozen=True)
class Ticket:
    """Whose plan it is: strategy, account, decision and until when its orders may be begun (UTC ms)."""

    strategy: str
    account: str
    decision_id: str
    valid_until_ms: int


def goal_from_fraction(fraction: Decimal, situation: Situation, instrument: Instrument, rules: PlanRules) -> Decimal:
    """Return the wanted position in signed coins for a signed fraction of NAV: capped, rounded towards zero.

    Raises
    ------
    OrderRefusedError
        If the fraction is not finite.
    """
    if not fraction.is_finite():
        raise OrderRefusedError(f"target {fraction} of NAV is not a number; decide again")
    if situation.nav <= 0:
        return ZERO
    return bounded_goal(fraction * situation.nav / situation.price, situation, instrument, rules)


def bounded_goal(coins: Decimal, situation: Situation, instrument: Instrument, rules: PlanRules) -> Decimal:
    """Return wanted signed coins, not above the cap of NAV at the mark price and rounded towards zero."""
    if not coins.is_finite():
        raise OrderRefusedError(f"target of {coins} coins is not a number; decide again")
    most = _most_coins(situation, instrument, rules)
    size = min(round_qty(abs(coins), instrument), most)
    return -size if coins < 0 else size


def plan_intents(
    goal: Decimal, situation: Situation, instrument: Instrument, rules: PlanRules, ticket: Ticket
) -> tuple[Intent, ...]:
    """Return the intents that lead from the position to the goal; the table in this module's description.

    Parameters
    ----------
    goal
        Wanted position, signed coins; bounded by the cap here as well.

    Returns
    -------
    tuple
        In the order in which they are carried out; empty when there is nothing to do.

    Raises
    ------
    OrderRefusedError
        If the stop of an entry would already be met, or the exchange's rules contradict each other at this price.
    """
    goal = bounded_goal(goal, situation, instrument, rules)
    held = round_signed(situation.held, instrument)
    if goal and goal * held <= 0 and not _takes(abs(goal), situation.price, instrument):
        goal = ZERO
    turns = goal * held <= 0
    leaving = abs(held) if turns else max(ZERO, abs(held) - abs(goal))
    adding = abs(goal) if turns else max(ZERO, abs(goal) - abs(held))
    if leaving != abs(held) and not _takes(leaving, situation.price, instrument):
        leaving = ZERO
    if not _takes(adding, situation.price, instrument):
        adding = ZERO
    closes: list[Intent] = []
    entries: list[Intent] = []
    if leaving:
        side = Side.of(held).opposite
        closes = [
            Intent(
                _key(ticket, instrument, Leg.CLOSE, number),
                side,
                qty,
                True,
                None,
                situation.price,
                ticket.valid_until_ms,
            )
            for number, qty in enumerate(_slices(leaving, situation, instrument, rules))
        ]
    if adding:
        side = Side.of(goal)
        kept = ZERO if turns else abs(held)
        if _smallest_lots(situation, instrument) * 2 > _largest_lots(instrument):
            raise OrderRefusedError(
                f"{instrument.symbol}: at {situation.price} no order is both worth {instrument.min_notional} and "
                "within the largest; load the instrument from the exchange"
            )
        stop = stop_price(side, kept, adding, situation, instrument, rules)
        waits_for = tuple(intent.intent_id for intent in closes)
        entries = [
            Intent(
                _key(ticket, instrument, Leg.ENTRY, number),
                side,
                qty,
                False,
                stop,
                situation.price,
                ticket.valid_until_ms,
                waits_for,
            )
            for number, qty in enumerate(_slices(adding, situation, instrument, rules))
        ]
    return (*closes, *entries)


def stop_price(
    side: Side, kept: Decimal, adding: Decimal, situation: Situation, instrument: Instrument, rules: PlanRules
) -> Decimal:
    """Return the trigger price of the stop of a whole position after an entry, USD.

    The stop lies ``stop_distance`` of the average entry away, or nearer where a stop-out there would cost more than
    ``stop_cost`` of NAV; it is rounded towards the entry.

    Parameters
    ----------
    kept, adding
        Coins held before on the same side, and bought or sold now at the situation's price.

    Raises
    ------
    OrderRefusedError
        If the price has already passed it.
    """
    total = kept + adding
    before = situation.entry_price if kept else ZERO
    average = (kept * (before or ZERO) + adding * situation.price) / total
    room = min(average * rules.stop_distance, rules.stop_cost * situation.nav / total)
    stop = round_stop(average - side.sign * room, side, instrument)
    if (situation.price - stop) * side.sign <= 0:
        raise OrderRefusedError(
            f"{instrument.symbol}: the stop of {side} {total} at {stop} is already met at a price of "
            f"{situation.price}; close the position instead of adding to it"
        )
    return stop


def market_request(intent: Intent, attempt: int, qty: Decimal, slippage_bp: Decimal | None = None) -> OrderRequest:
    """Return the market order of an attempt (from 0) for a quantity (coins) of an intent."""
    return _request(intent, attempt, qty, OrderType.MARKET, None, TimeInForce.IOC, slippage_bp)


def limit_request(
    intent: Intent, attempt: int, qty: Decimal, price: Decimal, time_in_force: TimeInForce = TimeInForce.POST_ONLY
) -> OrderRequest:
    """Return the limit order of an attempt (from 0) for a quantity (coins) of an intent, at a price on the grid."""
    return _request(intent, attempt, qty, OrderType.LIMIT, price, time_in_force, None)


def _request(
    intent: Intent,
    attempt: int,
    qty: Decimal,
    order_type: OrderType,
    price: Decimal | None,
    time_in_force: TimeInForce,
    slippage_bp: Decimal | None,
) -> OrderRequest:
    return OrderRequest(
        intent.key.order_link_id(attempt),
        intent.key.symbol,
        intent.side,
        order_type,
        qty,
        price,
        time_in_force,
        intent.reduce_only,
        intent.stop_loss,
        TriggerBy.LAST,
        slippage_bp,
    )


def _key(ticket: Ticket, instrument: Instrument, leg: Leg, number: int) -> IntentKey:
    return IntentKey(ticket.strategy, ticket.account, instrument.symbol, ticket.decision_id, leg, number)


def _most_coins(situation: Situation, instrument: Instrument, rules: PlanRules) -> Decimal:
    if situation.nav <= 0:
        return ZERO
    most = steps_down(rules.max_position * situation.nav / situation.price, instrument.lot)
    # the division above is rounded to 28 digits
    return most - instrument.lot if most * situation.price > rules.max_position * situation.nav else most


def _takes(qty: Decimal, price: Decimal, instrument: Instrument) -> bool:
    return qty >= instrument.min_qty and qty * price >= instrument.min_notional and qty > 0


def _slices(qty: Decimal, situation: Situation, instrument: Instrument, rules: PlanRules) -> Sequence[Decimal]:
    """Return nearly equal orders, in whole lots, that add up to ``qty``."""
    lot = instrument.lot
    lots = int(qty / lot)
    hard, smallest = _largest_lots(instrument), _smallest_lots(situation, instrument)
    wanted = [hard]
    if rules.max_slice_qty is not None:
        wanted.append(int(rules.max_slice_qty // lot))
    if rules.participation is not None and situation.volume is not None:
        wanted.append(int(rules.participation * situation.volume // lot))
    soft = max(1, min(wanted))
    # the exchange's largest order must hold; ours may give way to its smallest and to a bounded number of orders
    count = max(-(-lots // hard), min(-(-lots // soft), max(1, lots // smallest), MOST_SLICES))
    each, rest = divmod(lots, count)
    return [(each + (1 if number < rest else 0)) * lot for number in range(count)]


def _positive(value: Decimal | None) -> bool:
    # a NaN that is compared raises
    return value is not None and value.is_finite() and value > 0


def _largest_lots(instrument: Instrument) -> int:
    return int(min(instrument.max_qty, instrument.max_market_qty) // instrument.lot)


def _smallest_lots(situation: Situation, instrument: Instrument) -> int:
    least = max(instrument.min_qty, instrument.min_notional / situation.price)
    lots = int(steps_up(least, instrument.lot) / instrument.lot)
    # the division above is rounded to 28 digits
    return lots + 1 if lots * instrument.lot * situation.price < instrument.min_notional else lots
