"""``step``: the one decision function of backtest, paper and live trading; pure and compiled.

It is called once a bar, after the bar's decision time, with the forecast of that bar. It

1. marks the account (:func:`mlbot_core.decision.risk.risk_check`),
2. decides the side by the cost-aware no-trade band (:func:`mlbot_core.decision.sizing.next_side`),
3. sizes it, and bounds the size by what the risk level allows,
4. says whether an order is needed at all.

A bar that was decided already is not decided again: the same state and target come back with the action ``hold``.
"""

from __future__ import annotations

import math

from numba import njit

from mlbot_core.decision.risk import allowed_target, level_of, risk_check
from mlbot_core.decision.sizing import next_side
from mlbot_core.decision.state import (
    DATA_STALE,
    FLAT_TODAY,
    FLATTEN,
    HOLD,
    NORMAL,
    REBALANCE,
    TARGET,
    TRIM,
    Decision,
    Forecast,
    Limits,
    Observation,
    RiskState,
)


@njit(cache=True)
def step(
    state: RiskState, seen: Observation, forecast: Forecast, limits: Limits, cost_round_trip: float
) -> tuple[RiskState, Decision]:
    """Return the next state and what to hold.

    Parameters
    ----------
    state
        After the previous call of ``step`` or ``risk_check``.
    seen
        The account at the decision time; ``bar_ts`` names the decided bar.
    forecast
        Of that bar, or the newest one with its age.
    limits
        Bounds; a forecast older than ``max_forecast_age_ms`` counts as stale data.
    cost_round_trip
        Of entering and leaving, fraction of the traded value.
    """
    flags = seen.flags | (DATA_STALE if forecast.age_ms > limits.max_forecast_age_ms else 0)
    seen = Observation(seen.ts, seen.bar_ts, seen.mark, seen.nav, seen.position, seen.flow, flags, seen.stopped)
    stopped_side = state.side if seen.stopped != 0 and state.side != 0 else state.stopped_side
    side = next_side(
        0 if seen.stopped != 0 else state.side, forecast.p_down, forecast.p_up, forecast.width, cost_round_trip
    )
    if stopped_side != 0:
        # a stop is not argued with: the side stays barred until the forecast itself has left it
        if side == stopped_side:
            side = 0
        else:
            stopped_side = 0
    multiplier = min(max(forecast.multiplier, 0.0), 1.0) if math.isfinite(forecast.multiplier) else 0.0
    return _bounded(state, seen, side, side * limits.max_position * multiplier, stopped_side, limits)


@njit(cache=True)
def follow(state: RiskState, seen: Observation, wanted: float, limits: Limits) -> tuple[RiskState, Decision]:
    """Return the next state and what to hold when somebody else names the target: buy and hold, a stream of targets.

    Parameters
    ----------
    wanted
        Signed fraction of NAV; NaN for no wish, the former one stands.
    """
    capped = min(max(wanted, -limits.max_position), limits.max_position)
    goal = capped if math.isfinite(wanted) else state.target
    side = 1 if goal > 0.0 else (-1 if goal < 0.0 else 0)
    return _bounded(state, seen, side, goal, 0, limits)


@njit(cache=True)
def _bounded(
    state: RiskState, seen: Observation, side: int, wanted: float, stopped_side: int, limits: Limits
) -> tuple[RiskState, Decision]:
    """Mark the account, bound what is wanted by what the level allows, and say whether that takes an order."""
    after = risk_check(state, seen, limits)
    level = level_of(after.causes)
    entered = after.causes & ~state.causes
    cleared = state.causes & ~after.causes
    known = math.isfinite(seen.nav) and math.isfinite(seen.mark) and seen.mark > 0.0 and seen.nav > 0.0
    action = HOLD
    if level >= FLAT_TODAY and seen.position != 0.0:
        action = FLATTEN
    if not known or seen.bar_ts <= state.decided_bar:
        # nothing can be sized, or it was already; a level that flattens says so all the same
        flat = level >= FLAT_TODAY
        kept = 0.0 if flat else state.target
        decided = max(state.decided_bar, seen.bar_ts) if known else state.decided_bar
        stopped = seen.stopped != 0 and state.side != 0
        barred = state.side if stopped else state.stopped_side
        after = _with_decision(after, 0 if flat or stopped else state.side, kept, barred, decided)
        return after, Decision(kept, action, level, entered, cleared)

    held = seen.position * seen.mark / seen.nav
    target = allowed_target(level, wanted, held, limits)
    kept = target
    if level < FLAT_TODAY:
        same = wanted == state.target and held * wanted >= 0.0 and (wanted != 0.0) == (seen.position != 0.0)
        if same:
            # the position drifts with price and NAV between the bounds of trimming and rebalancing
            target = wanted
            kept = wanted
            if abs(held) > limits.trim_above:
                target = math.copysign(limits.max_position, held)
                action = TRIM
            elif abs(held - wanted) > limits.rebalance_band and (level == NORMAL or abs(held) > abs(wanted)):
                action = REBALANCE
        elif target != 0.0 or seen.position != 0.0:
            action = TARGET
    after = _with_decision(after, side if level < FLAT_TODAY else 0, kept, stopped_side, seen.bar_ts)
    return after, Decision(target, action, level, entered, cleared)


@njit(cache=True)
def _with_decision(state: RiskState, side: int, target: float, stopped_side: int, decided_bar: int) -> RiskState:
    return RiskState(
        state.ts,
        state.day,
        state.day_start_nav,
        state.peak_nav,
        state.last_nav,
        state.causes,
        side,
        target,
        stopped_side,
        decided_bar,
    )
