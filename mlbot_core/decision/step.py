"""``step``: the one decision function of backtest, paper and live trading; pure and compiled.

It is called once a bar, after the bar's decision time, with the forecast of that bar. It

1. marks the account (:func:`mlbot_core.decision.risk.risk_check`),
2. decides the side by the cost-aware no-trade band (:func:`mlbot_core.decision.sizing.next_side`),
3. sizes it, and bounds the size by what the risk level allows,
4. says whether an order is needed at all.

A bar that was decided already is not decided again: the same state and target come back with the action ``hold``.

The side that counts as held is that of the position itself, not the one that was last wanted: an entry that was
refused, rejected or not filled has paid no cost yet, so it must beat its cost again.
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
    held_side = 1 if seen.position > 0.0 else (-1 if seen.position < 0.0 else 0)
    side = next_side(held_side, forecast.edge, cost_round_trip)
    stopped_side = seen.stopped if seen.stopped != 0 else state.stopped_side
    if stopped_side != 0:
        # a stop is not argued with: the side stays barred until a forecast has left it, which a missing one has not
        if side == stopped_side:
            side = 0
        elif math.isfinite(forecast.edge):
            stopped_side = 0
    multiplier = min(max(forecast.multiplier, 0.0), 1.0) if math.isfinite(forecast.multiplier) else 0.0
    return _bounded(state, seen, side * limits.max_position * multiplier, stopped_side, limits)


@njit(cache=True)
def follow(state: RiskState, seen: Observation, wanted: float, limits: Limits) -> tuple[RiskState, Decision]:
    """Return the next state and what to hold when somebody else names the target: buy and hold, a stream of targets.

    Parameters
    ----------
    wanted
        Signed fraction of NAV; NaN for no wish, the former one stands. A stop is not remembered here: whoever names
        the target decides on entering again.
    """
    capped = min(max(wanted, -limits.max_position), limits.max_position)
    goal = capped if math.isfinite(wanted) else state.target
    return _bounded(state, seen, goal, 0, limits)


@njit(cache=True)
def _bounded(
    state: RiskState, seen: Observation, wanted: float, stopped_side: int, limits: Limits
) -> tuple[RiskState, Decision]:
    """Mark the account, bound what is wanted by what the level allows, and say whether that takes an order."""
    after = risk_check(state, seen, limits)
    level = level_of(after.causes)
    entered = after.causes & ~state.causes
    cleared = state.causes & ~after.causes
    known = math.isfinite(seen.nav + seen.position) and math.isfinite(seen.mark) and seen.mark > 0.0 and seen.nav > 0.0
    action = HOLD
    if level >= FLAT_TODAY and seen.position != 0.0:
        action = FLATTEN
    if not known or seen.bar_ts <= state.decided_bar:
        # nothing can be sized, or it was already; a level that flattens says so all the same
        kept = 0.0 if level >= FLAT_TODAY or seen.stopped != 0 else state.target
        decided = max(state.decided_bar, seen.bar_ts) if known else state.decided_bar
        barred = seen.stopped if seen.stopped != 0 else state.stopped_side
        keep = 1 if known and level == NORMAL and seen.stopped == 0 else 0
        return _with_decision(after, kept, barred, decided), Decision(kept, action, level, entered, cleared, keep)

    held = seen.position * seen.mark / seen.nav
    target = allowed_target(level, wanted, held, limits)
    kept = target
    keep = 0
    if level < FLAT_TODAY:
        same = wanted == state.target and held * wanted >= 0.0 and (wanted != 0.0) == (seen.position != 0.0)
        if same:
            # the position drifts with price and NAV between the bounds of trimming and rebalancing
            target = wanted
            kept = wanted
            strayed = abs(held - wanted) > limits.rebalance_band
            if abs(held) > limits.trim_above:
                target = wanted if strayed else math.copysign(limits.max_position, held)
                action = TRIM
            elif strayed and (level == NORMAL or abs(held) > abs(wanted)):
                action = REBALANCE
            elif level == NORMAL:
                keep = 1
        elif target != held:
            action = TARGET
    return (
        _with_decision(after, kept, stopped_side, seen.bar_ts),
        Decision(target, action, level, entered, cleared, keep),
    )


@njit(cache=True)
def _with_decision(state: RiskState, target: float, stopped_side: int, decided_bar: int) -> RiskState:
    return RiskState(
        state.ts,
        state.day,
        state.day_start_nav,
        state.peak_nav,
        state.last_nav,
        state.causes,
        1 if target > 0.0 else (-1 if target < 0.0 else 0),
        target,
        stopped_side,
        decided_bar,
        state.unmarked_flow,
    )
