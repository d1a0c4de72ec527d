"""The risk state machine: one compiled function for backtest, paper, live and the resident watch.

The state is a set of causes; the most severe active one rules (:data:`mlbot_core.decision.state.CAUSES` is the
table of all of them). ``risk_check`` takes one mark of the account and returns the next state. It is called at every
decision, by the watch every few seconds, and by the simulator at the adverse extreme of every bar.

Deposits and withdrawals are not profit or loss: they scale the day's start and the peak by NAV after over NAV before,
so that a flow alone changes neither the day's return nor the drawdown. (Shifting by the amount would: after a fall
from 100 to 80, a withdrawal of 40 would leave 40 below a peak of 60, a drawdown of 33 % out of 20 %.) Where nothing is
left to scale, because everything was withdrawn or was lost before the deposit, what there was before the flow is judged
by the limits, and what there is afterwards starts anew; active causes stay.
"""

from __future__ import annotations

import math

from numba import njit

from mlbot_core.decision.state import (
    API_DEGRADED,
    DAILY_LOSS,
    DATA_STALE,
    DRAWDOWN,
    DRIFT,
    ERROR,
    FLAT_TODAY,
    HALTED,
    HALTING,
    KILL,
    NORMAL,
    OBSERVED,
    RECONCILE,
    REDUCE_ONLY,
    Limits,
    Observation,
    RiskState,
)
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS

_DAY_MS = DAY_MS
_REDUCING = DATA_STALE | DRIFT | RECONCILE | API_DEGRADED


@njit(cache=True)
def level_of(causes: int) -> int:
    """Return the level that a set of causes asks for."""
    if causes & HALTING:
        return HALTED
    if causes & DAILY_LOSS:
        return FLAT_TODAY
    if causes & _REDUCING:
        return REDUCE_ONLY
    return NORMAL


@njit(cache=True)
def risk_check(state: RiskState, seen: Observation, limits: Limits) -> RiskState:
    """Return the state after one mark of the account.

    A mark older than the newest one is judged at the time of the newest: time never runs backwards. With an unknown
    (NaN) or non-positive mark price or unknown NAV the money limits keep their last verdict, the data count as stale,
    and a flow is kept for the next known NAV. An account that never held anything has nothing to lose: its limits start
    at the first positive NAV.

    Parameters
    ----------
    state
        After the previous mark.
    seen
        The mark; ``flags`` are the causes that others found, each active as long as it is raised, except ``KILL`` and
        ``ERROR``, which stay until a person re-arms.
    limits
        Bounds.
    """
    now = max(seen.ts, state.ts)
    causes = (state.causes & ~OBSERVED) | (seen.flags & (OBSERVED | KILL | ERROR))
    day, day_start, peak, last = state.day, state.day_start_nav, state.peak_nav, state.last_nav
    nav = float(seen.nav)
    flow = state.unmarked_flow + seen.flow
    if not math.isfinite(nav + flow) or not math.isfinite(seen.mark) or seen.mark <= 0.0:
        kept = flow if math.isfinite(flow) else state.unmarked_flow
        return _marked(state, now, day, day_start, peak, last, causes | DATA_STALE, kept)
    judged = nav
    anew = not math.isfinite(peak)
    if not anew and flow != 0.0:
        before = nav - flow
        factor = nav / before if before > 0.0 and nav > 0.0 else math.nan
        if math.isfinite(factor):
            day_start, peak, last = day_start * factor, peak * factor, last * factor
        else:
            judged, anew = before, True
    today = now // _DAY_MS
    if today > day:
        on_time = now - today * _DAY_MS <= limits.day_grace_ms
        day, day_start = today, judged if on_time else max(last, judged)
        causes &= ~DAILY_LOSS
    if math.isfinite(peak):
        peak, last = max(peak, judged), judged
        if judged <= day_start * (1.0 - limits.daily_loss):
            causes |= DAILY_LOSS
        if judged <= peak * (1.0 - limits.max_drawdown):
            causes |= DRAWDOWN
    if anew:
        start = nav if nav > 0.0 else math.nan
        day_start, peak, last = start, start, start
        causes |= 0 if nav > 0.0 else DATA_STALE
    return _marked(state, now, day, day_start, peak, last, causes, 0.0)


@njit(cache=True)
def _marked(
    state: RiskState,
    ts: int,
    day: int,
    day_start: float,
    peak: float,
    last: float,
    causes: int,
    unmarked_flow: float,
) -> RiskState:
    return RiskState(
        ts,
        day,
        day_start,
        peak,
        last,
        causes,
        state.side,
        state.target,
        state.stopped_side,
        state.decided_bar,
        unmarked_flow,
    )


@njit(cache=True)
def allowed_target(level: int, wanted: float, held: float, limits: Limits) -> float:
    """Return what a level lets one hold instead of what is wanted; fractions of NAV, signed.

    Parameters
    ----------
    wanted
        By the strategy.
    held
        Position value at mark over NAV, now.
    """
    if level >= FLAT_TODAY:
        return 0.0
    capped = min(max(wanted, -limits.max_position), limits.max_position)
    if level == REDUCE_ONLY:
        if held > 0.0:
            return min(max(capped, 0.0), held)
        return max(min(capped, 0.0), held) if held < 0.0 else 0.0
    return capped


@njit(cache=True)
def floor_nav(state: RiskState, limits: Limits) -> float:
    """Return the NAV at which the first money limit that is not yet breached is reached; -inf if there is none."""
    floor = -math.inf
    if not math.isfinite(state.peak_nav):
        return floor
    if math.isfinite(limits.daily_loss) and not state.causes & DAILY_LOSS:
        floor = state.day_start_nav * (1.0 - limits.daily_loss)
    if math.isfinite(limits.max_drawdown) and not state.causes & DRAWDOWN:
        floor = max(floor, state.peak_nav * (1.0 - limits.max_drawdown))
    return floor


@njit(cache=True)
def breach_price(state: RiskState, cash: float, position: float, limits: Limits) -> float:
    """Return the price at which a held position brings NAV to the first money limit; NaN if none does.

    NAV is linear in the price, ``cash + position x price``, so the moment inside a bar follows from where the limit
    lies. A flat account breaches nothing by a price.

    Parameters
    ----------
    cash
        NAV less the position's value at mark, USD.
    position
        Coins, signed, not zero.
    """
    floor = floor_nav(state, limits)
    if position == 0.0 or not math.isfinite(floor):
        return math.nan
    return (floor - cash) / position


def rearm(state: RiskState, ts: int, nav: float, flow: float = 0.0) -> RiskState:
    """Return the state after a person lifted a halt: the peak starts anew at today's NAV.

    Who did it and why is recorded by the caller, next to the state.

    Parameters
    ----------
    nav
        USD, now.
    flow
        Deposits less withdrawals since the last mark, USD, contained in ``nav``; not to be reported again. (A deposit
        that came with the re-arming and was reported afterwards would scale the new peak once more, and halt again.)

    Raises
    ------
    UsageError
        If nothing is halted, or NAV is unknown or not positive.
    """
    if not state.causes & HALTING:
        raise UsageError("nothing is halted, so there is nothing to re-arm; see `mlbot status`")
    if not math.isfinite(nav) or nav <= 0.0 or not math.isfinite(flow):
        raise UsageError(f"cannot re-arm on a NAV of {nav} after a flow of {flow}; wait for a mark of the account")
    before = nav - (state.unmarked_flow + flow)
    day_start = state.day_start_nav * (nav / before) if before > 0.0 else nav
    return state._replace(
        ts=max(ts, state.ts),
        causes=state.causes & ~HALTING,
        day_start_nav=day_start if math.isfinite(day_start) else nav,
        peak_nav=nav,
        last_nav=nav,
        unmarked_flow=0.0,
    )
