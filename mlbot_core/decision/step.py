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
    after = risk_check(state, seen, limits)
    level = level_of(after.causes)
    entered = after.causes & ~state.causes
    cleared = state.causes & ~after.causes
    known = math.isfinite(seen.nav) and math.isfinite(seen.mark) and seen.mark > 0.0 and seen.nav > 0.0
    if not known or seen.bar_ts <= state.decided_bar:
        # nothing can be sized, or it was: a level that flattens still says so
        flat = level >= FLAT_TODAY and seen.position != 0.0
        target = 0.0 if level >= FLAT_TODAY else state.target
        after = RiskState(
            after.ts,
            after.day,
            after.day_start_nav,
            after.peak_nav,
            after.last_nav,
            after.causes,
            0 if level >= FLAT_TODAY else state.side,
            target,
            after.stopped_side,
            max(state.decided_bar, seen.bar_ts) if known else state.decided_bar,
        )
        return after, Decision(target, FLATTEN if flat else HOLD, level, entered, cleared)

    held = seen.position * seen.mark / seen.nav
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
    if level >= FLAT_TODAY:
        side = 0
    multiplier = min(max(forecast.multiplier, 0.0), 1.0) if math.isfinite(forecast.multiplier) else 0.0
    wanted = side * limits.max_position * multiplier
    target = allowed_target(level, wanted, held, limits)

    action = HOLD
    kept = target
    if level >= FLAT_TODAY:
        action = FLATTEN if seen.position != 0.0 else HOLD
    elif wanted == state.target and held * wanted >= 0.0 and (wanted != 0.0) == (seen.position != 0.0):
        # unchanged: the position drifts with price and NAV between the bounds of trim and rebalancing
        target = wanted
        kept = wanted
        if abs(held) > limits.trim_above:
            target = math.copysign(limits.max_position, held)
            action = TRIM
        elif abs(held - wanted) > limits.rebalance_band and (level == NORMAL or abs(held) > abs(wanted)):
            action = REBALANCE
    elif target != 0.0 or seen.position != 0.0:
        action = TARGET
    after = RiskState(
        after.ts,
        after.day,
        after.day_start_nav,
        after.peak_nav,
        after.last_nav,
        after.causes,
        side,
        kept,
        stopped_side,
        seen.bar_ts,
    )
    return after, Decision(target, action, level, entered, cleared)
