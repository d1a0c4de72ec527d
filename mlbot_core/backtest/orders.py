"""How an order is filled: slippage, ticks, lots, maintenance margin. Compiled pieces of the simulator's loop."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from numba import njit

# Why a fill happened.
R_TARGET: Final = 1
R_DRIFT: Final = 2
R_TRIM: Final = 3
R_LIQUIDATED: Final = 4
R_STOP: Final = 5
R_RISK: Final = 6
REASONS: Final = {
    R_TARGET: "target",
    R_DRIFT: "drift",
    R_TRIM: "trim",
    R_LIQUIDATED: "bankrupt",
    R_STOP: "stop",
    R_RISK: "risk",
}


class Rules(NamedTuple):
    """How orders are filled; fractions and coins, see :class:`mlbot_core.backtest.simulator.SimulationParams`.

    ``impact`` x sqrt(coins / volume of the bar) is added to ``slippage``: the square-root law of market impact
    (Almgren, Thum, Hauptmann, Li 2005, Direct estimation of equity market impact). ``latency`` and ``maker_bars`` are
    numbers of bars.
    """

    length: int
    delay: int
    settle: int
    fee: float
    maker_fee: float
    slippage: float
    impact: float
    participation: float
    lot: float
    tick: float
    min_notional: float
    stop_distance: float
    cost_round_trip: float
    latency: int
    maker_bars: int


@njit(cache=True)
def bridge(open_: float, close: float, elapsed: int, length: int) -> float:
    """Return the expected price ``elapsed`` into a bar of which open and close are known."""
    if elapsed == length:
        return close
    return open_ + (close - open_) * (elapsed / length)


@njit(cache=True)
def slip_of(amount: float, volume: float, rules: Rules) -> float:
    """Return the slippage of an order as a fraction of the price; an unknown volume has no impact."""
    if rules.impact > 0.0 and volume >= 0.0:
        return rules.slippage + rules.impact * (math.sqrt(amount / volume) if amount < volume else 1.0)
    return rules.slippage


@njit(cache=True)
def on_tick(price: float, side: float, tick: float) -> float:
    """Return the price on the grid of ticks, rounded against the trader."""
    if tick <= 0.0:
        return price
    steps = price / tick
    # a price that is on the grid up to rounding errors stays there
    near = math.floor(steps + 0.5)
    if abs(steps - near) < 1e-6:
        return near * tick
    return (math.ceil(steps) if side > 0 else math.floor(steps)) * tick


@njit(cache=True)
def on_lot(amount: float, lot: float) -> float:
    """Return a signed number of coins rounded towards zero to whole lots."""
    if lot <= 0.0:
        return amount
    steps = abs(amount) / lot
    near = math.floor(steps + 0.5)
    whole = near if abs(steps - near) < 1e-6 else math.floor(steps)
    return math.copysign(whole * lot, amount)


@njit(cache=True)
def maintenance(value: float, tiers: Any) -> tuple[float, float]:
    """Return (rate, deduction in USD) of a position value; ``tiers`` has rows (largest value, rate, deduction)."""
    for row in range(len(tiers)):
        if value <= tiers[row, 0]:
            return tiers[row, 1], tiers[row, 2]
    if len(tiers) == 0:
        return 0.0, 0.0
    return tiers[-1, 1], tiers[-1, 2]


@njit(cache=True)
def liquidation_price(cash: float, held: float, mark: float, tiers: Any) -> float:
    """Return the mark price at which equity equals the maintenance margin, by the tier of the value at that price."""
    at = mark
    for _ in range(len(tiers) + 1):
        # the tier may be another one at the price that it implies: a short grows as it loses
        rate, deduction = maintenance(abs(held) * at, tiers)
        slope = held - abs(held) * rate
        if slope == 0.0:
            return math.nan
        before, at = at, -(cash + deduction) / slope
        if not at > 0.0 or maintenance(abs(held) * at, tiers)[0] == rate or at == before:
            break
    return at


@njit(cache=True)
def settled_at(open_: float, close: float, elapsed: int, length: int, carried: float) -> float:
    """Return the mark price of a settlement: the bridge inside a recorded bar, else the last one known."""
    if elapsed <= 0 or math.isnan(open_) or math.isnan(close):
        return carried
    return bridge(open_, close, elapsed, length)


@njit(cache=True)
def executed(amount: float, mid: float, volume: float, rules: Rules) -> tuple[float, float, float]:
    """Return (price, fee in USD, slippage in USD) of an order of signed coins at a price before slippage."""
    side = 1.0 if amount > 0 else -1.0
    size = abs(amount)
    price = on_tick(mid * (1.0 + side * slip_of(size, volume, rules)), side, rules.tick)
    return price, size * price * rules.fee, size * abs(price - mid)


@njit(cache=True)
def passive_price(buys: bool, asked: float, market: float, tick: float) -> float:
    """Return where a limit order rests that may not cross: at the price asked for, or at the market if that is better.

    On the grid of ticks, rounded away from the market.
    """
    return on_tick(min(asked, market), -1.0, tick) if buys else on_tick(max(asked, market), 1.0, tick)


@njit(cache=True)
def traded_through(buys: bool, limit: float, price: float, tick: float) -> bool:
    """Return whether a price lies beyond a limit by at least a tick: only then is the whole queue before it done.

    A price at the limit itself may have filled others only. Without a grid of ticks any price beyond it will do.
    """
    beyond = limit - price if buys else price - limit
    return beyond > 0.0 and beyond >= tick * (1.0 - 1e-6)


@njit(cache=True)
def same_size(one: float, other: float) -> bool:
    """Return whether two signed numbers of coins differ by rounding errors only."""
    return abs(one - other) <= 1e-9 * max(abs(one), abs(other))


@njit(cache=True)
def at_most(amount: float, volume: float, rules: Rules) -> float:
    """Return as much of an order, signed coins, as its share of a bar's volume lets through; NaN bounds nothing."""
    if math.isfinite(rules.participation) and volume >= 0.0:
        most = on_lot(rules.participation * volume, rules.lot)
        if abs(amount) > most and not same_size(abs(amount), most):
            return math.copysign(most, amount)
    return amount


@njit(cache=True)
def still_working(goal: float, held: float, bound: float, keep_entries: int) -> float:
    """Return the position that an unfinished order may still lead to, after a decision that sends no other.

    Parameters
    ----------
    goal
        That it was sent for, signed coins.
    held
        Signed coins.
    bound
        What the decision allows to hold, signed coins.
    keep_entries
        Of :class:`mlbot_core.decision.state.Decision`: 0 cancels what adds to the position.
    """
    if goal * held < 0.0 and keep_entries == 0:
        return 0.0
    if (goal * held > 0.0 and abs(goal) <= abs(held)) or goal == 0.0:
        return goal
    if keep_entries == 0:
        return held
    most = min(abs(goal), abs(bound))
    return math.copysign(max(most, abs(held)) if goal * held > 0.0 else most, goal)


@njit(cache=True)
def average_entry(entry: float, before: float, amount: float, price: float) -> float:
    """Return the average entry price after a fill: it moves when a position grows and starts anew on a reversal."""
    now = before + amount
    if before == 0.0 or before * now < 0.0:
        return price
    if abs(now) > abs(before):
        return (entry * abs(before) + price * abs(amount)) / abs(now)
    return entry


@njit(cache=True)
def nearest_level(
    entry: float, risk: float, out: float, worst_last: float, worst_mark: float, sign: float, rules: Rules
) -> tuple[float, int]:
    """Return (price, reason) of the level that an adverse move meets first; reason 0 when it meets none.

    The levels of the mark price are met by the mark; where the last price is then is another question.

    Parameters
    ----------
    entry
        Average entry price; the stop lies ``stop_distance`` of it away and watches the last price.
    risk, out
        Mark prices of the risk limit and of liquidation; NaN for none.
    worst_last, worst_mark
        Adverse extremes of the bar.
    sign
        +1 long, -1 short.
    """
    level, reason = math.nan, 0
    if math.isfinite(rules.stop_distance):
        stop = entry * (1.0 - sign * rules.stop_distance)
        if (worst_last - stop) * sign <= 0.0:
            level, reason = stop, R_STOP
    if math.isfinite(risk) and (worst_mark - risk) * sign <= 0.0 and (reason == 0 or (risk - level) * sign > 0.0):
        level, reason = risk, R_RISK
    if math.isfinite(out) and (worst_mark - out) * sign <= 0.0 and (reason == 0 or (out - level) * sign > 0.0):
        level, reason = out, R_LIQUIDATED
    return level, reason
