"""The compiled loop of the simulator: an account, its orders and the decision function, bar after bar.

Inside one bar, from its open to its close
------------------------------------------
1. What was settled up to the open is paid. The open is the first mark: a level that the gap jumped over closes the
   position at the open, and the risk machine sees the account (a new UTC day starts here).
2. Settlements and the pending order happen at their own times, at the price of a Brownian bridge between open and
   close at that moment (its expected value; at the close, the close). An order takes at most its share of the bar's
   volume; what is left waits for the next recorded bar.
   A limit order (``maker_bars``) rests from that time on, at the decision's price or at the market where that is
   better, never crossing. It is filled only where a price goes beyond it by a tick: by the close in the bar in which it
   arrives, as nothing else is certainly after it; by the bar's extreme afterwards. What is left when its bars are over
   is taken.
3. Then the bar's adverse extreme is visited (before the order, where its delay is more than half a bar). Of stop, risk
   limit and liquidation the nearest level is hit first, at its price, worsened by slippage. This is the worst order
   that the bar allows: the extreme comes after the entry (and before a limit order that leaves, and after it once
   more), and of the settlements after the entry a position that was closed so pays what it owes and receives nothing.
   The exit is stamped one millisecond before the close.
4. At the close the account is marked, and the decision function is called as of the decision time. What it wants is
   sent then and filled in the next recorded bar, or ``latency`` recorded bars later. Where it wants nothing new, an
   unfinished order goes on only as far as it would still be allowed.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numba import njit

from mlbot_core.backtest.orders import (
    R_DRIFT,
    R_LIQUIDATED,
    R_RISK,
    R_STOP,
    R_TARGET,
    R_TRIM,
    Rules,
    at_most,
    average_entry,
    bridge,
    executed,
    liquidation_price,
    maintenance,
    nearest_level,
    on_lot,
    passive_price,
    same_size,
    settled_at,
    still_working,
    traded_through,
)
from mlbot_core.backtest.records import (
    BAR_ROWS,
    FILL_COLUMNS,
    GROSS,
    LEVEL,
    MAKER,
    NAV,
    NAV_LOW,
    POSITION,
    write_change,
    write_fill,
    write_payment,
)
from mlbot_core.decision.risk import breach_price, floor_nav, level_of, risk_check
from mlbot_core.decision.state import (
    FLAT_TODAY,
    HOLD,
    NORMAL,
    OBSERVED,
    REBALANCE,
    TARGET,
    TRIM,
    Decision,
    Forecast,
    Limits,
    Observation,
    RiskState,
)
from mlbot_core.decision.step import follow, step

OPEN, HIGH, LOW, CLOSE = range(4)

# What is done inside a bar, and in which order.
_PAY_BEFORE, _FILL, _EXTREME, _PAY_AFTER, _NOTHING = range(5)
_FILL_EARLY: Final = (_PAY_BEFORE, _FILL, _EXTREME, _PAY_AFTER, _NOTHING)
_FILL_LATE: Final = (_EXTREME, _PAY_BEFORE, _FILL, _PAY_AFTER, _NOTHING)
_FILL_LAST: Final = (_EXTREME, _PAY_AFTER, _FILL, _NOTHING, _NOTHING)
_LEAVE: Final = (_PAY_BEFORE, _EXTREME, _FILL, _EXTREME, _PAY_AFTER)


@njit(cache=True)
def _reason(decision: Decision) -> int:
    if decision.action == TARGET:
        return R_TARGET
    if decision.action == REBALANCE:
        return R_DRIFT
    if decision.action == TRIM:
        return R_TRIM
    return R_RISK


@njit(cache=True)
def _on_its_way(transit: Any, target: float) -> bool:
    """Return whether an order on its way asks for this fraction of NAV already."""
    return bool(np.any((transit[:, 0] != 0.0) & (transit[:, 4] == target)))


@njit(cache=True, nogil=True)
def run(
    ts: Any,
    prices: Any,
    marks: Any,
    volume: Any,
    targets: Any,
    forecasts: Any,
    flags: Any,
    flows: Any,
    event_ts: Any,
    event_rate: Any,
    tiers: Any,
    nav0: float,
    state: RiskState,
    limits: Limits,
    rules: Rules,
) -> Any:
    """Run the account over all bars; the arguments are checked by :func:`mlbot_core.backtest.simulator.simulate`.

    Parameters
    ----------
    ts
        int64[n] open times, UTC ms.
    prices, marks
        float64[4, n]: open, high, low, close of the last and of the mark price, USD.
    volume
        float64[n], coins; NaN unknown.
    targets, forecasts
        float64[n] wanted fractions of NAV, or float64[3, n] edge, multiplier, age in ms: the one that
        is not used has length zero.
    flags, flows
        int64[n] causes that others found at each decision; float64[n] deposits less withdrawals at each open, USD.
    event_ts, event_rate
        Settlements.
    tiers
        float64[k, 3]: largest value in USD, maintenance rate, deduction in USD.
    """
    n, m = len(ts), len(event_ts)
    streamed = len(targets) == n
    bars = np.zeros((BAR_ROWS, n))
    most = 4 * n + 4
    fills = np.empty((most, FILL_COLUMNS))
    fill_ts = np.empty(most, np.int64)
    payments = np.empty((m, 4))
    payment_ts = np.empty(m, np.int64)
    changes = np.empty((most, 4), np.int64)
    n_fills = n_payments = n_changes = 0
    dead = -1

    cash, held, entry = nav0, 0.0, math.nan
    last = last_mark = math.nan
    pending, goal, decided_nav = 0, 0.0, nav0
    # a limit order: the price it was asked for, where it rests, and how many bars are left to it
    asked, limit, rests = math.nan, math.nan, 0
    # orders on their way: reason, goal, NAV, price, fraction of NAV
    transit = np.zeros((rules.latency + 1, 5))
    sent = 0
    stopped = 0
    flow = 0.0
    event = 0
    for i in range(n):
        opened, closed = ts[i], ts[i] + rules.length
        if dead >= 0:
            bars[NAV, i] = bars[NAV_LOW, i] = cash
            bars[LEVEL, i] = bars[LEVEL, i - 1]
            continue
        open_, close = prices[OPEN, i], prices[CLOSE, i]
        present = not (math.isnan(open_) or math.isnan(close))
        reference = last
        worst = math.inf
        cash += flows[i]
        flow += flows[i]
        died = False
        while event < m and event_ts[event] <= opened:
            # settlements of a time without rows are owed before anything happens in this bar
            if held != 0.0:
                payment = held * last_mark * event_rate[event]
                cash -= payment
                write_payment(payments[n_payments], bars, i, held, last_mark, event_rate[event], payment)
                payment_ts[n_payments] = event_ts[event]
                n_payments += 1
            event += 1
        if present:
            if held != 0.0:
                bars[GROSS, i] += held * (open_ - reference)
            reference = open_
            marked = cash + held * marks[OPEN, i]
            nav = cash + held * open_
            worst = nav
            value = abs(held) * marks[OPEN, i]
            rate, deduction = maintenance(value, tiers)
            died = held != 0.0 and (marked <= value * rate - deduction or marked <= 0.0)
            if not died:
                before = state.causes
                mark = Observation(opened, -1, marks[OPEN, i], marked, held, flow, before & OBSERVED, 0)
                state = risk_check(state, mark, limits)
                flow = 0.0
                n_changes += write_change(changes[n_changes], opened, i, before, state.causes)
                # what was flat already at the last decision has its order under way, filled at its own time
                flattened = level_of(state.causes) >= FLAT_TODAY and level_of(before) < FLAT_TODAY
                reason = R_RISK if flattened else 0
                if reason == 0 and math.isfinite(rules.stop_distance):
                    stop = entry * (1.0 - math.copysign(rules.stop_distance, held))
                    reason = R_STOP if (open_ - stop) * held <= 0.0 else 0
                if reason != 0 and held != 0.0:
                    price, fee, lost = executed(-held, open_, volume[i], rules)
                    write_fill(fills[n_fills], bars, i, -held, price, open_, fee, lost, reason, nav, 0.0)
                    fill_ts[n_fills] = opened
                    n_fills += 1
                    cash += held * price - fee
                    stopped = int(math.copysign(1.0, held)) if reason == R_STOP else stopped
                    held = 0.0
                    flattened = True
                if flattened:
                    pending = 0
                    transit[:, 0] = 0.0

        fill_at = opened + rules.delay
        # the extreme falls on whichever position is held for the longer part of the bar
        plan = _FILL_EARLY if 2 * rules.delay <= rules.length else _FILL_LATE
        arriving = rests > 0 and math.isnan(limit)
        if present and pending != 0 and rests > 0:
            adds = (goal - held) * (held if held != 0.0 else goal) > 0.0
            plan = _FILL_LAST if arriving else (_FILL_EARLY if adds else _LEAVE)
            # what rests already is filled inside the bar, wherever that is
            fill_at = fill_at if arriving else min(fill_at, closed - 1)
        for act in range(5):
            doing = plan[act]
            if died:
                break
            if doing in (_PAY_BEFORE, _PAY_AFTER):
                until = fill_at if doing == _PAY_BEFORE else closed
                while event < m and event_ts[event] <= until:
                    if held != 0.0:
                        elapsed = event_ts[event] - opened
                        then = settled_at(marks[OPEN, i], marks[CLOSE, i], elapsed, rules.length, last_mark)
                        payment = held * then * event_rate[event]
                        cash -= payment
                        write_payment(payments[n_payments], bars, i, held, then, event_rate[event], payment)
                        payment_ts[n_payments] = event_ts[event]
                        n_payments += 1
                    event += 1
            elif doing == _FILL and present and pending != 0:
                mid = bridge(open_, close, rules.delay, rules.length)
                when, maker = fill_at, 0.0
                amount = 0.0 if same_size(goal, held) else at_most(goal - held, volume[i], rules)
                if rests > 0:
                    rests -= 1
                    buys = goal > held
                    seen_price = prices[LOW if buys else HIGH, i]
                    if arriving:
                        limit = passive_price(buys, asked, mid, rules.tick)
                        when, seen_price = closed, close
                    seen_price = close if math.isnan(seen_price) else seen_price
                    if traded_through(buys, limit, seen_price, rules.tick):
                        mid, maker = limit, 1.0
                    else:
                        amount = 0.0
                if amount != 0.0:
                    price, fee, lost = executed(amount, mid, volume[i], rules)
                    if maker != 0.0:
                        price, fee, lost = mid, abs(amount) * mid * rules.maker_fee, 0.0
                    if held != 0.0:
                        bars[GROSS, i] += held * (mid - reference)
                    reference = mid
                    cash -= amount * price + fee
                    entry = average_entry(entry, held, amount, price)
                    # the whole order ends exactly where it was meant to, without a rounding error
                    held = goal if amount == goal - held else held + amount
                    write_fill(fills[n_fills], bars, i, amount, price, mid, fee, lost, pending, decided_nav, held)
                    fills[n_fills, MAKER] = maker
                    fill_ts[n_fills] = when
                    n_fills += 1
                if same_size(held, goal):
                    pending = 0
            elif doing == _EXTREME and present and held != 0.0:
                sign = 1.0 if held > 0 else -1.0
                side = LOW if held > 0 else HIGH
                extreme = min(open_ * sign, close * sign)
                worst_last = sign * (extreme if math.isnan(prices[side, i]) else min(extreme, prices[side, i] * sign))
                worst_mark = worst_last if math.isnan(marks[side, i]) else marks[side, i]
                level, reason = nearest_level(
                    entry,
                    breach_price(state, cash, held, limits),
                    liquidation_price(cash, held, reference, tiers),
                    worst_last,
                    worst_mark,
                    sign,
                    rules,
                )
                if reason == R_LIQUIDATED:
                    died = True
                elif reason == 0:
                    worst = min(worst, cash + held * worst_last)
                else:
                    # a level that the entry itself jumped over is met where the position was opened
                    at = reference if (reference - level) * sign < 0.0 else level
                    # the mark may meet a level at which nothing was traded
                    at = worst_last if (worst_last - at) * sign > 0.0 else at
                    price, fee, lost = executed(-held, at, volume[i], rules)
                    nav = cash + held * at
                    bars[GROSS, i] += held * (at - reference)
                    reference = at
                    while event < m and event_ts[event] < closed:
                        elapsed = event_ts[event] - opened
                        then = settled_at(marks[OPEN, i], marks[CLOSE, i], elapsed, rules.length, last_mark)
                        payment = held * then * event_rate[event]
                        if payment > 0.0:
                            cash -= payment
                            write_payment(payments[n_payments], bars, i, held, then, event_rate[event], payment)
                            payment_ts[n_payments] = event_ts[event]
                            n_payments += 1
                        event += 1
                    write_fill(fills[n_fills], bars, i, -held, price, at, fee, lost, reason, nav, 0.0)
                    fill_ts[n_fills] = closed - 1
                    n_fills += 1
                    cash += held * price - fee
                    held = 0.0
                    worst = min(worst, cash)
                    pending = 0
                    transit[:, 0] = 0.0
                    before = state.causes
                    seen_nav = cash
                    if reason == R_RISK:
                        # at the level NAV is at the limit, which neither rounding nor the last price talks away
                        seen_nav = min(cash, floor_nav(state, limits))
                    else:
                        stopped = int(sign)
                    mark = Observation(closed - 1, -1, at, seen_nav, 0.0, 0.0, before & OBSERVED, 0)
                    state = risk_check(state, mark, limits)
                    n_changes += write_change(changes[n_changes], closed - 1, i, before, state.causes)

        if present and not died:
            last, last_mark = close, marks[CLOSE, i]
            if held != 0.0:
                bars[GROSS, i] += held * (close - reference)
                reference = close
        nav = cash + held * last if held != 0.0 else cash
        if died or (held != 0.0 and nav <= 0.0):
            # the exchange takes the position over where nothing is left of the account
            at = -cash / held
            bars[GROSS, i] += held * (at - reference)
            write_fill(fills[n_fills], bars, i, -held, at, at, 0.0, 0.0, R_LIQUIDATED, 0.0, 0.0)
            fill_ts[n_fills] = closed
            n_fills += 1
            cash = held = nav = worst = 0.0
            dead = i
            before = state.causes
            state = risk_check(state, Observation(closed, -1, last, 0.0, 0.0, 0.0, before & OBSERVED, 0), limits)
            n_changes += write_change(changes[n_changes], closed, i, before, state.causes)
        bars[NAV, i] = nav
        bars[NAV_LOW, i] = min(nav, worst)
        bars[POSITION, i] = held
        bars[LEVEL, i] = level_of(state.causes)
        if not present or dead >= 0:
            continue

        before = state.causes
        marked = cash + held * marks[CLOSE, i] if held != 0.0 else cash
        seen = Observation(closed + rules.settle, opened, marks[CLOSE, i], marked, held, flow, flags[i], stopped)
        flow = 0.0
        stopped = 0
        if streamed:
            state, decision = follow(state, seen, targets[i], limits)
        else:
            age = int(forecasts[2, i])
            said = Forecast(forecasts[0, i], forecasts[1, i], age)
            state, decision = step(state, seen, said, limits, rules.cost_round_trip)
        n_changes += write_change(changes[n_changes], seen.ts, i, before, state.causes)
        bars[LEVEL, i] = decision.level
        slot = sent % (rules.latency + 1)
        again = rules.latency > 0 and decision.action == TARGET and _on_its_way(transit, decision.target)
        aim = on_lot(decision.target * marked / marks[CLOSE, i], rules.lot)
        transit[slot, 0] = 0.0 if decision.action == HOLD or again else _reason(decision)
        transit[slot, 1], transit[slot, 2], transit[slot, 3], transit[slot, 4] = aim, marked, close, decision.target
        sent += 1
        slot = sent % (rules.latency + 1)
        if transit[slot, 0] != 0.0:
            new = transit[slot, 1]
            if rules.latency > 0 and decision.level != NORMAL:
                # what was sent before the level rose may no longer add to the position
                new = still_working(new, held, aim, 0)
            # wanted again in the same direction, an order keeps its place, its price and what is left of its bars
            if pending == 0 or (new - held) * (goal - held) <= 0.0:
                limit, asked, rests = math.nan, transit[slot, 3], rules.maker_bars
            pending, goal, decided_nav = int(transit[slot, 0]), new, transit[slot, 2]
            rests = 0 if pending == R_RISK else rests
            if same_size(goal, held) or (goal != 0.0 and abs(goal - held) * close < rules.min_notional):
                pending = 0
            transit[slot, 0] = 0.0
        elif pending != 0:
            goal = still_working(goal, held, aim, decision.keep_entries)
            pending = 0 if same_size(goal, held) else pending
    return (
        bars,
        fill_ts[:n_fills].copy(),
        fills[:n_fills].copy(),
        payment_ts[:n_payments].copy(),
        payments[:n_payments].copy(),
        changes[:n_changes].copy(),
        dead,
        state,
    )
