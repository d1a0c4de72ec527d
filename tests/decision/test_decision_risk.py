"""The risk state machine: each cause's entry and exit by hand, and flows that are neither profit nor loss."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbot_core.clock import parse_utc_ms
from mlbot_core.decision.risk import allowed_target, breach_price, floor_nav, level_of, rearm, risk_check
from mlbot_core.decision.state import (
    CAUSES,
    DAILY_LOSS,
    DATA_STALE,
    DRAWDOWN,
    ERROR,
    FLAT_TODAY,
    HALTED,
    KILL,
    NORMAL,
    RECONCILE,
    REDUCE_ONLY,
    Limits,
    Observation,
    RiskState,
    cause_names,
    initial_state,
    state_from_json,
    state_to_json,
)
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, HOUR_MS, MINUTE_MS

LIMITS = Limits(0.10, 0.105, 0.03, 0.25, 3 * HOUR_MS, 0.02, 5 * MINUTE_MS)
NOON = parse_utc_ms("2025-03-01T12:00:00Z")
MIDNIGHT = parse_utc_ms("2025-03-02")


def mark(ts: int, nav: float, flow: float = 0.0, flags: int = 0, price: float = 100.0) -> Observation:
    return Observation(ts, -1, price, nav, 0.0, flow, flags, 0)


def after(*marks: Observation, state: RiskState | None = None, limits: Limits = LIMITS) -> RiskState:
    state = initial_state() if state is None else state
    for seen in marks:
        state = risk_check(state, seen, limits)
    return state


def test_three_percent_below_the_days_start_is_flat_for_the_rest_of_the_day() -> None:
    state = after(mark(NOON, 10_000.0), mark(NOON + 1, 9_700.01))
    assert level_of(state.causes) == NORMAL
    state = after(mark(NOON + 2, 9_700.0), state=state)
    assert cause_names(state.causes) == ("daily_loss",)
    assert level_of(state.causes) == FLAT_TODAY
    # a recovery changes nothing before midnight
    state = after(mark(NOON + 3, 10_500.0), mark(MIDNIGHT - 1, 10_500.0), state=state)
    assert level_of(state.causes) == FLAT_TODAY
    state = after(mark(MIDNIGHT, 10_500.0), state=state)
    assert (level_of(state.causes), state.day_start_nav) == (NORMAL, 10_500.0)


def test_the_loss_is_measured_from_the_start_of_the_day_not_from_its_high() -> None:
    state = after(mark(NOON, 10_000.0), mark(NOON + 1, 11_000.0), mark(NOON + 2, 10_600.0))
    assert level_of(state.causes) == NORMAL
    assert state.peak_nav == 11_000.0


@pytest.mark.parametrize(
    ("first", "nav", "start"),
    [
        (MIDNIGHT, 9_900.0, 9_900.0),
        (MIDNIGHT + 5 * MINUTE_MS, 9_900.0, 9_900.0),
        (MIDNIGHT + 5 * MINUTE_MS + 1, 9_900.0, 10_000.0),
        (MIDNIGHT + 5 * MINUTE_MS + 1, 10_100.0, 10_100.0),
        (MIDNIGHT + 3 * DAY_MS + HOUR_MS, 9_900.0, 10_000.0),
    ],
)
def test_a_day_starts_at_its_first_mark_or_at_the_higher_of_two_when_that_came_late(
    first: int, nav: float, start: float
) -> None:
    state = after(mark(NOON, 10_000.0), mark(first, nav))
    assert state.day_start_nav == start
    assert state.day == first // DAY_MS


def test_a_loss_over_a_silent_midnight_still_counts() -> None:
    state = after(mark(NOON, 10_000.0), mark(MIDNIGHT + HOUR_MS, 9_700.0))
    assert cause_names(state.causes) == ("daily_loss",)


def test_a_quarter_below_the_peak_halts_until_a_person_re_arms() -> None:
    state = after(mark(NOON, 10_000.0), mark(NOON + DAY_MS, 12_000.0))
    # 2 % a day never touches the daily limit
    nav, ts = 12_000.0, NOON + DAY_MS
    while nav * 0.98 > 9_000.0:
        nav, ts = nav * 0.98, ts + DAY_MS
        state = after(mark(ts, nav), state=state)
        assert level_of(state.causes) == NORMAL, nav
    state = after(mark(ts + DAY_MS, 9_000.0), state=state)
    assert cause_names(state.causes) == ("drawdown",)
    state = after(mark(ts + 8 * DAY_MS, 20_000.0), mark(ts + 9 * DAY_MS, 9_000.0), state=state)
    assert level_of(state.causes) == HALTED
    armed = rearm(after(mark(ts + 10 * DAY_MS, 9_000.0), state=state), ts + 10 * DAY_MS, 9_000.0)
    assert (level_of(armed.causes), armed.peak_nav) == (NORMAL, 9_000.0)
    assert level_of(after(mark(ts + 10 * DAY_MS + 1, 8_900.0), state=armed).causes) == NORMAL


def test_re_arming_needs_a_halt_and_a_nav() -> None:
    state = after(mark(NOON, 10_000.0))
    with pytest.raises(UsageError, match="nothing is halted"):
        rearm(state, NOON, 10_000.0)
    killed = after(mark(NOON, 10_000.0, flags=KILL), state=state)
    with pytest.raises(UsageError, match="nan"):
        rearm(killed, NOON, math.nan)


def test_a_re_arm_does_not_lift_the_days_loss() -> None:
    state = after(mark(NOON, 10_000.0), mark(NOON + 1, 9_600.0, flags=KILL))
    assert cause_names(rearm(state, NOON + 2, 9_600.0).causes) == ("daily_loss",)


def test_kill_and_error_stay_although_nobody_raises_them_any_more() -> None:
    for flag in (KILL, ERROR):
        state = after(mark(NOON, 10_000.0, flags=flag), mark(NOON + DAY_MS, 10_000.0))
        assert level_of(state.causes) == HALTED


@pytest.mark.parametrize("cause", [c for c in CAUSES if c.level == REDUCE_ONLY], ids=lambda c: c.name)
def test_what_others_found_holds_as_long_as_they_say_so(cause) -> None:
    state = after(mark(NOON, 10_000.0, flags=cause.bit))
    assert level_of(state.causes) == REDUCE_ONLY
    assert level_of(after(mark(NOON + 1, 10_000.0), state=state).causes) == NORMAL


@pytest.mark.parametrize(("nav", "price"), [(math.nan, 100.0), (10_000.0, math.nan), (10_000.0, 0.0)])
def test_an_unknown_nav_or_price_reduces_only_and_forgets_no_limit(nav: float, price: float) -> None:
    state = after(mark(NOON, 10_000.0), mark(NOON + 1, 9_600.0))
    blind = after(mark(NOON + 2, nav, price=price), state=state)
    assert blind.causes == DAILY_LOSS | DATA_STALE
    assert blind[1:5] == state[1:5]


def test_the_most_severe_cause_rules() -> None:
    assert level_of(RECONCILE) == REDUCE_ONLY
    assert level_of(RECONCILE | DAILY_LOSS) == FLAT_TODAY
    assert level_of(RECONCILE | DAILY_LOSS | DRAWDOWN) == HALTED
    assert {cause.bit for cause in CAUSES} == {1 << n for n in range(len(CAUSES))}
    assert all(level_of(cause.bit) == cause.level for cause in CAUSES)


def test_a_deposit_and_a_withdrawal_trigger_nothing() -> None:
    # 20 % below the peak: a shift by the amount would read a withdrawal of half as 40 %
    state = after(mark(NOON, 10_000.0), *(mark(NOON + d * DAY_MS, 10_000.0 - 200.0 * d) for d in range(1, 11)))
    ts = NOON + 10 * DAY_MS + 1
    assert state.causes == 0
    state = after(mark(ts, 4_000.0, flow=-4_000.0), state=state)
    assert state.causes == 0
    assert state.peak_nav == pytest.approx(5_000.0)
    state = after(mark(ts + 1, 40_000.0, flow=36_000.0), state=state)
    assert state.causes == 0
    assert state.peak_nav == pytest.approx(50_000.0)
    # the limits are where they were, in percent
    assert after(mark(ts + 2, 37_400.0), state=state).causes == DRAWDOWN | DAILY_LOSS


def test_the_first_deposit_into_an_empty_account_starts_everything() -> None:
    state = after(mark(NOON, 0.0, price=100.0), mark(NOON + 1, 500.0, flow=500.0))
    assert (state.day_start_nav, state.peak_nav) == (500.0, 500.0)
    assert state.causes == 0


def test_an_account_that_holds_nothing_has_lost_nothing() -> None:
    for nav in (0.0, -3.0):
        state = after(mark(NOON, nav), mark(NOON + DAY_MS, nav))
        assert state.causes == DATA_STALE
        assert math.isnan(state.peak_nav)


def test_withdrawing_everything_halts_nothing_and_a_deposit_starts_anew() -> None:
    state = after(mark(NOON, 10_000.0), mark(NOON + 1, 0.0, flow=-10_000.0), mark(NOON + 2, 0.0))
    assert state.causes == DATA_STALE
    state = after(mark(NOON + 3, 2_000.0, flow=2_000.0), mark(NOON + 4, 1_950.0), state=state)
    assert (state.causes, state.peak_nav, state.day_start_nav) == (0, 2_000.0, 2_000.0)


def test_withdrawing_everything_lifts_no_limit_that_was_reached() -> None:
    lost = after(mark(NOON, 10_000.0), mark(NOON + 1, 9_600.0))
    state = after(mark(NOON + 2, 0.0, flow=-9_600.0), mark(NOON + 3, 5_000.0, flow=5_000.0), state=lost)
    assert cause_names(state.causes) == ("daily_loss",)
    assert after(mark(MIDNIGHT, 5_000.0), state=state).causes == 0
    # nor one that was reached together with the withdrawal
    state = after(mark(NOON, 10_000.0), mark(NOON + 1, 0.0, flow=-7_000.0))
    assert state.causes == DAILY_LOSS | DRAWDOWN | DATA_STALE


def test_a_deposit_does_not_hide_a_loss_of_everything_that_came_with_it() -> None:
    state = after(mark(NOON, 10_000.0), mark(NOON + 1, 19_990.0, flow=20_000.0))
    assert state.causes == DAILY_LOSS | DRAWDOWN


def test_a_deposit_and_a_loss_at_one_moment_are_told_apart() -> None:
    state = after(mark(NOON, 10_000.0), mark(NOON + 1, 19_650.0, flow=10_000.0))
    assert state.causes == DAILY_LOSS


def test_a_flow_that_was_reported_without_a_nav_is_not_taken_for_profit_or_loss() -> None:
    for flow in (10_000.0, -5_000.0):
        blind = after(mark(NOON, 10_000.0), mark(NOON + 1, math.nan, flow=flow))
        assert blind.unmarked_flow == flow
        state = after(mark(NOON + 2, 10_000.0 + flow), state=blind)
        assert (state.causes, state.unmarked_flow) == (0, 0.0)
        assert state.peak_nav == pytest.approx(10_000.0 + flow)


def test_a_deposit_that_comes_with_the_re_arming_does_not_halt_again() -> None:
    halted = after(mark(NOON, 10_000.0), mark(NOON + DAY_MS, 7_400.0))
    assert halted.causes & DRAWDOWN
    armed = rearm(halted, NOON + 2 * DAY_MS, 17_400.0, flow=10_000.0)
    state = after(mark(NOON + 2 * DAY_MS + 1, 17_400.0), state=armed)
    assert (level_of(state.causes), state.peak_nav) == (NORMAL, 17_400.0)


def test_whole_numbers_do_for_money() -> None:
    state = risk_check(initial_state(), Observation(NOON, -1, 100, 10_000, 0, 0, 0, 0), LIMITS)
    assert risk_check(state, Observation(NOON + 1, -1, 100, 9_700, 0, 0, 0, 0), LIMITS).causes == DAILY_LOSS


marks = st.lists(
    st.tuples(st.integers(0, 36 * HOUR_MS), st.floats(-0.06, 0.06), st.floats(-0.5, 1.0)), min_size=1, max_size=40
)


@given(marks)
def test_flows_change_no_verdict(steps: list[tuple[int, float, float]]) -> None:
    """The same returns with and without deposits and withdrawals give the same causes at every mark."""
    plain, flowing = initial_state(), initial_state()
    ts, nav, rich = NOON, 10_000.0, 10_000.0
    for wait, change, share in steps:
        ts += wait
        nav, rich = nav * (1 + change), rich * (1 + change)
        flow = rich * share
        rich += flow
        near_limit = any(
            abs(nav / start - bound) < 1e-9
            for start, bound in ((plain.day_start_nav, 0.97), (plain.peak_nav, 0.75))
            if math.isfinite(start)
        )
        if near_limit:
            return
        plain = risk_check(plain, mark(ts, nav), LIMITS)
        flowing = risk_check(flowing, mark(ts, rich, flow=flow), LIMITS)
        assert plain.causes == flowing.causes


@given(st.floats(-1, 1), st.floats(-0.2, 0.2), st.integers(0, 3))
def test_no_level_lets_one_take_more_risk(wanted: float, held: float, level: int) -> None:
    got = allowed_target(level, wanted, held, LIMITS)
    assert abs(got) <= max(LIMITS.max_position, 0.0)
    if level >= FLAT_TODAY:
        assert got == 0.0
    if level == REDUCE_ONLY:
        assert abs(got) <= abs(held)
        assert got * held >= 0.0


@given(st.floats(0.5, 2.0), st.floats(-3.0, 3.0).filter(lambda x: abs(x) > 1e-3), st.floats(0.98, 1.02))
def test_at_the_breach_price_the_limit_is_reached_and_before_it_is_not(
    peak_ratio: float, leverage: float, day_ratio: float
) -> None:
    price, nav = 60_000.0, 10_000.0
    state = after(mark(NOON, nav * max(peak_ratio, 1.0)), mark(NOON + DAY_MS, nav * day_ratio))
    state = state._replace(causes=0)
    position = leverage * nav / price
    at = breach_price(state, nav - position * price, position, LIMITS)

    def causes(p: float) -> int:
        return risk_check(state, mark(NOON + DAY_MS + 1, nav + position * (p - price), price=p), LIMITS).causes

    if not at > 1.0:
        return
    worse, better = at * (1 - math.copysign(1e-6, position)), at * (1 + math.copysign(1e-6, position))
    assert causes(worse) & (DAILY_LOSS | DRAWDOWN)
    assert not causes(better) & (DAILY_LOSS | DRAWDOWN)


def test_time_never_runs_backwards() -> None:
    state = after(mark(MIDNIGHT, 10_000.0), mark(NOON, 9_800.0))
    assert (state.ts, state.day) == (MIDNIGHT, MIDNIGHT // DAY_MS)


@given(
    st.builds(
        RiskState,
        st.integers(-1, 2**53),
        st.integers(-1, 2**31),
        st.floats(allow_nan=True),
        st.floats(allow_infinity=False),
        st.floats(),
        st.integers(0, 255),
        st.sampled_from([-1, 0, 1]),
        st.floats(-1, 1),
        st.sampled_from([-1, 0, 1]),
        st.integers(-1, 2**53),
        st.floats(allow_nan=False),
    )
)
def test_a_state_survives_a_restart_bit_for_bit(state: RiskState) -> None:
    again = state_from_json(state_to_json(state))
    assert [v.hex() if isinstance(v, float) else v for v in again] == [
        v.hex() if isinstance(v, float) else v for v in state
    ]


@pytest.mark.parametrize(
    "damage",
    [
        {"causes": "x"},
        {"causes": 1.5},
        {"causes": 256},
        {"causes": True},
        {"side": 2},
        {"day": "19783"},
        {"peak_nav": None},
        {"peak_nav": 10_000.0},
        {"extra": 1},
    ],
)
def test_a_damaged_state_is_refused_not_guessed_at(damage: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="risk state"):
        state_from_json({**state_to_json(initial_state()), **damage})


def test_the_money_floor_is_the_next_limit_that_is_not_yet_breached() -> None:
    """The day's loss lies at 9,700 and the drawdown at 7,500 (of 10,000); what is breached is no floor any more."""
    state = after(mark(NOON, 10_000.0))
    assert floor_nav(state, LIMITS) == pytest.approx(9_700.0)
    breached = after(mark(NOON + 1, 9_600.0), state=state)
    assert floor_nav(breached, LIMITS) == pytest.approx(7_500.0)
    both = after(mark(NOON + 2, 7_400.0), state=breached)
    assert floor_nav(both, LIMITS) == -math.inf
    assert math.isnan(breach_price(both, 7_400.0 - 10.0 * 100.0, 10.0, LIMITS))
    assert floor_nav(state, LIMITS._replace(daily_loss=math.inf)) == pytest.approx(7_500.0)
    assert floor_nav(state, LIMITS._replace(max_drawdown=math.inf)) == pytest.approx(9_700.0)
    assert floor_nav(initial_state(), LIMITS) == -math.inf
