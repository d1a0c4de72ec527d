"""Which order comes next for an intent: resting or taking, at which price, how large. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from mlbot_core.config.execution import OrdersConfig
from mlbot_core.execution.checks import largest_addition
from mlbot_core.execution.intents import limit_request, market_request
from mlbot_core.execution.ledger_folds import AttemptState, IntentState
from mlbot_core.execution.rounding import steps_down
from mlbot_core.execution.sending import ExecutionRules, Fresh
from mlbot_core.execution.types import ZERO, OrderRequest, OrderType, Side

# A resting order is looked at this often, at least.
_LOOK_EVERY_MS: Final = 5_000


@dataclass(frozen=True)
class Wish:
    """What an order would be like now.

    Parameters
    ----------
    price
        Of a resting (post-only) order, USD; None to take at once.
    slippage_bp
        How far a market order may go.
    last_chance
        Whether a resting order may not follow the price any more.
    look_again_ms
        When a resting order is to be looked at again, UTC ms.
    """

    price: Decimal | None
    slippage_bp: Decimal
    last_chance: bool
    look_again_ms: int

    def request(self, state: IntentState, qty: Decimal) -> OrderRequest:
        """Return it as the next order of an intent."""
        if self.price is None:
            bound = self.slippage_bp
            return market_request(state.intent, state.next_attempt, qty, bound)
        return limit_request(state.intent, state.next_attempt, qty, self.price)

    def replaces(self, resting: OrderRequest) -> bool:
        """Return whether an order that rests is to be taken back for it: its time is over, or its price is behind."""
        if self.price is None or resting.price is None:
            return self.price is None
        return not self.last_chance and (self.price - resting.price) * resting.side.sign > 0


def wish(state: IntentState, bid: Decimal, ask: Decimal, orders: OrdersConfig, now_ms: int, *, urgent: bool) -> Wish:
    """Return what the next order of an intent should be.

    Maker style rests at the best price and follows it at most ``max_reprices`` times; ``maker_timeout_s`` after the
    first resting order the rest is taken.

    Parameters
    ----------
    urgent
        Take at once, whatever the style.
    """
    slippage = Decimal(str(orders.slippage_bp))
    resting = [a for a in state.attempts if a.request.order_type is OrderType.LIMIT]
    over_ms = (resting[0].begun_ms if resting else now_ms) + round(1000 * orders.maker_timeout_s)
    again = min(over_ms, now_ms + _LOOK_EVERY_MS)
    used_up = len(resting) > orders.max_reprices
    if orders.style == "taker" or urgent or now_ms >= over_ms:
        return Wish(None, slippage, True, now_ms)
    price = bid if state.intent.side is Side.BUY else ask
    if used_up and (state.last is None or _is_over(state.last)):
        return Wish(None, slippage, True, now_ms)
    return Wish(price, slippage, used_up, again)


def _is_over(attempt: AttemptState) -> bool:
    return attempt.over


def wish_qty(state: IntentState, fresh: Fresh, price: Decimal | None, rules: ExecutionRules) -> Decimal:
    """Return how many coins the next order may have: what is left, cut to position or cap; 0 where that is no order."""
    intent, instrument = state.intent, fresh.instrument
    most = instrument.max_market_qty if price is None else instrument.max_qty
    if intent.reduce_only:
        held = fresh.position.size
        room = abs(held) if held * intent.side.sign < 0 else ZERO
        qty = steps_down(min(state.remaining, room, most), instrument.lot)
        return qty if qty >= instrument.min_qty else ZERO
    room = largest_addition(
        intent.side, fresh.account, fresh.quote, limits=rules.risk, max_position=rules.max_position, price=price
    )
    qty = steps_down(min(state.remaining, room, most), instrument.lot)
    # the exchange values a market order at the last price
    value = qty * (fresh.quote.last if price is None else price)
    return qty if qty >= instrument.min_qty and value >= instrument.min_notional else ZERO
