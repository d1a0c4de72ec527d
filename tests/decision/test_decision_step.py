"""``step`` by hand, and a model-based test: no sequence of prices, forecasts, fills and restarts breaks a limit."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlbot_core.clock import parse_utc_ms
from mlbot_core.decision.risk import level_of, rearm, risk_check
from mlbot_core.decision.state import (
    ACTIONS,
    API_DEGRADED,
    DATA_STALE,
    DRIFT,
    FLAT_TODAY,
    HALTED,
    HALTING,
    KILL,
    NORMAL,
    RECONCILE,
    REDUCE_ONLY,
    Decision,
    Forecast,
    Limits,
    Observation,
    RiskState,
    initial_state,
    state_from_json,
    state_to_json,
)
from mlbot_core.decision.step import follow, step
from mlbot_core.timeframe import DAY_MS, HOUR_MS, MINUTE_MS

BAR = 2 * HOUR_MS
LIMITS = Limits(0.10, 0.105, 0.03, 0.25, 3 * HOUR_MS, 0.02, 5 * MINUTE_MS)
COST = 0.0015
START = parse_utc_ms("2025-03-01")
UP = Forecast(0.2, 0.6, 0.01, 1.0, 2_000)
DOWN = Forecast(0.6, 0.2, 0.01, 1.0, 2_000)
WEAK_UP = Forecast(0.3, 0.4, 0.01, 1.0, 2_000)
NONE = Forecast(math.nan, math.nan, math.nan, 1.0, 2_000)


def seen(
    bar: int, position: float = 0.0, nav: float = 10_000.0, mark: float = 50_000.0, flags: int = 0, stopped: int = 0
) -> Observation:
    opened = START + bar * BAR
    return Observation(opened + BAR + 2_000, opened, mark, nav, position, 0.0, flags, stopped)


def decide(state: RiskState, observation: Observation, forecast: Forecast) -> tuple[RiskState, Decision, str]:
    state, decision = step(state, observation, forecast, LIMITS, COST)
    return state, decision, ACTIONS[decision.action]


def test_enters_holds_in_the_band_and_reverses() -> None:
    state, decision, action = decide(initial_state(), seen(0), UP)
    assert (decision.target, action, decision.level) == (0.10, "target", NORMAL)
    state, decision, action = decide(state, seen(1, 0.02), WEAK_UP)
    assert (decision.target, action) == (0.10, "hold")
    state, decision, action = decide(state, seen(2, 0.02), DOWN)
    assert (decision.target, action) == (-0.10, "target")
    state, decision, action = decide(state, seen(3, -0.02), NONE)
    assert (decision.target, action) == (0.0, "target")


def test_a_forecast_that_does_not_beat_its_cost_opens_nothing() -> None:
    _, decision, action = decide(initial_state(), seen(0), Forecast(0.3, 0.44, 0.01, 1.0, 0))
    assert (decision.target, action) == (0.0, "hold")


def test_the_multiplier_sizes_within_the_cap_and_never_beyond() -> None:
    for multiplier, target in ((0.5, 0.05), (1.0, 0.10), (7.0, 0.10), (-1.0, 0.0), (math.nan, 0.0)):
        _, decision, _ = decide(initial_state(), seen(0), UP._replace(multiplier=multiplier))
        assert decision.target == pytest.approx(target)


def test_a_grown_position_is_trimmed_above_ten_and_a_half_percent() -> None:
    state, _, _ = decide(initial_state(), seen(0), UP)
    kept, decision, action = decide(state, seen(1, 0.02, mark=52_400.0), UP)
    assert action == "hold"  # 10.48 %
    kept, decision, action = decide(state, seen(1, 0.02, mark=52_600.0), UP)
    assert (decision.target, action) == (0.10, "trim")
    assert decide(kept, seen(2, 0.019), UP)[2] == "hold"


def test_a_position_that_fell_short_is_traded_again_beyond_the_band() -> None:
    state, _, _ = decide(initial_state(), seen(0), UP)
    assert decide(state, seen(1, 0.0161), UP)[2] == "hold"
    assert decide(state, seen(1, 0.0159), UP)[2] == "rebalance"
    assert decide(state, seen(1, 0.0), UP)[2] == "target"


def test_reduce_only_holds_reduces_and_opens_nothing() -> None:
    for flag in (DATA_STALE, DRIFT, RECONCILE, API_DEGRADED):
        _, decision, action = decide(initial_state(), seen(0, flags=flag), UP)
        assert (decision.target, action, decision.level) == (0.0, "hold", REDUCE_ONLY)
        assert decision.entered == flag
        state, _, _ = decide(initial_state(), seen(0), UP)
        held, decision, action = decide(state, seen(1, 0.02, flags=flag), UP)
        assert action == "hold"
        _, decision, action = decide(held, seen(2, 0.02, flags=flag), DOWN)
        assert (decision.target, action) == (0.0, "target")
        _, decision, action = decide(held, seen(2, 0.02), UP)
        assert (action, decision.cleared) == ("hold", flag)


def test_an_entry_that_was_refused_is_made_when_the_cause_clears() -> None:
    state, _, _ = decide(initial_state(), seen(0, flags=DATA_STALE), UP)
    _, decision, action = decide(state, seen(1), UP)
    assert (decision.target, action) == (0.10, "target")


def test_an_old_forecast_is_stale_data() -> None:
    _, decision, _ = decide(initial_state(), seen(0), UP._replace(age_ms=3 * HOUR_MS + 1))
    assert (decision.target, decision.entered) == (0.0, DATA_STALE)


def test_a_three_percent_day_flattens_and_stays_flat_until_midnight() -> None:
    state, _, _ = decide(initial_state(), seen(0), UP)
    state, decision, action = decide(state, seen(1, 0.2, nav=9_700.0), UP)
    assert (decision.target, action, decision.level) == (0.0, "flatten", FLAT_TODAY)
    for bar in range(2, 11):
        state, decision, action = decide(state, seen(bar, 0.0, nav=9_700.0), UP)
        assert (decision.target, action, decision.level) == (0.0, "hold", FLAT_TODAY)
    # the bar that closes at midnight is decided two seconds into the new day
    state, decision, action = decide(state, seen(11, 0.0, nav=9_700.0), UP)
    assert (decision.target, action, decision.level) == (0.10, "target", NORMAL)


def test_a_halt_flattens_again_and_again_until_it_is_flat() -> None:
    state, _, _ = decide(initial_state(), seen(0), UP)
    for bar in (1, 2):
        state, decision, action = decide(state, seen(bar, 0.02, flags=KILL), UP)
        assert (decision.target, action, decision.level) == (0.0, "flatten", HALTED)


def test_a_stopped_side_is_barred_until_the_forecast_has_left_it() -> None:
    state, _, _ = decide(initial_state(), seen(0), UP)
    state, decision, action = decide(state, seen(1, 0.0, stopped=1), UP)
    assert (decision.target, action) == (0.0, "hold")
    state, decision, action = decide(state, seen(2), UP)
    assert (decision.target, action) == (0.0, "hold")
    state, decision, action = decide(state, seen(3), WEAK_UP)
    assert action == "hold"
    state, decision, action = decide(state, seen(4), UP)
    assert (decision.target, action) == (0.10, "target")


def test_a_stop_does_not_bar_the_other_side() -> None:
    state, _, _ = decide(initial_state(), seen(0), UP)
    _, decision, action = decide(state, seen(1, 0.0, stopped=1), DOWN)
    assert (decision.target, action) == (-0.10, "target")


def test_a_bar_is_decided_once() -> None:
    state, first, _ = decide(initial_state(), seen(0), UP)
    again, second, action = decide(state, seen(0, 0.02), DOWN)
    assert (second.target, action) == (first.target, "hold")
    assert again == state
    # nor is an older one
    assert decide(state, seen(-1, 0.02), DOWN)[2] == "hold"


def test_without_a_nav_nothing_is_sized_and_the_bar_may_still_be_decided() -> None:
    state, _, _ = decide(initial_state(), seen(0), UP)
    blind, decision, action = decide(state, seen(1, 0.02, nav=math.nan), DOWN)
    assert (action, decision.level) == ("hold", REDUCE_ONLY)
    assert decide(blind, seen(1, 0.02), DOWN)[2] == "target"


def test_a_stop_that_was_seen_without_a_nav_is_not_forgotten() -> None:
    state, _, _ = decide(initial_state(), seen(0), UP)
    state, _, _ = decide(state, seen(1, 0.0, nav=math.nan, stopped=1), UP)
    assert decide(state, seen(2), UP)[1].target == 0.0


def test_follow_takes_a_named_target_under_the_same_limits() -> None:
    state, decision = follow(initial_state(), seen(0), 1.0, LIMITS)
    assert (decision.target, ACTIONS[decision.action]) == (0.10, "target")
    _, decision = follow(state, seen(1, 0.02), 1.0, LIMITS)
    assert ACTIONS[decision.action] == "hold"
    off = math.inf
    unit = LIMITS._replace(max_position=1.0, trim_above=off, daily_loss=off, max_drawdown=off, rebalance_band=off)
    state, decision = follow(initial_state(), seen(0), 1.0, unit)
    assert decision.target == 1.0
    state, decision = follow(state, seen(1, 0.2, nav=5_000.0), math.nan, unit)
    assert (decision.target, ACTIONS[decision.action], decision.level) == (1.0, "hold", NORMAL)


class Account(RuleBasedStateMachine):
    """A small exchange around ``step``: whatever happens to it, no limit is broken by what we ask for."""

    @initialize()
    def open_account(self) -> None:
        self.state = initial_state()
        self.now, self.bar = START, 0
        self.mark, self.cash, self.position = 50_000.0, 10_000.0, 0.0
        self.flow, self.target, self.flags = 0.0, 0.0, 0
        self.day_level = NORMAL
        self.flat_day = -1
        self.halted = False

    @property
    def nav(self) -> float:
        return self.cash + self.position * self.mark

    def observe(self, bar_ts: int = -1, stopped: int = 0) -> Observation:
        out = Observation(self.now, bar_ts, self.mark, self.nav, self.position, self.flow, self.flags, stopped)
        self.flow = 0.0
        return out

    @rule(change=st.floats(-0.25, 0.25), minutes=st.integers(0, 90))
    def move(self, change: float, minutes: int) -> None:
        if self.cash + self.position * self.mark * (1 + change) > 100.0:
            self.mark *= 1 + change
        self.now += minutes * MINUTE_MS

    @rule(share=st.floats(0.0, 1.0), slip=st.floats(-0.002, 0.002))
    def fill(self, share: float, slip: float) -> None:
        """The exchange fills a part of what was asked for, at a price of its own."""
        wanted = self.target * self.nav / self.mark - self.position
        traded = wanted * share
        self.cash -= traded * self.mark * (1 + slip) + abs(traded) * self.mark * 0.00055
        self.position += traded

    @rule(share=st.floats(-0.8, 3.0))
    def deposit(self, share: float) -> None:
        amount = share * min(self.nav, self.cash) if share < 0 else share * self.nav
        self.cash += amount
        self.flow += amount

    @rule(flags=st.sampled_from([0, DATA_STALE, DRIFT, RECONCILE | API_DEGRADED, KILL]))
    def report(self, flags: int) -> None:
        self.flags = flags

    @rule()
    def restart(self) -> None:
        self.state = state_from_json(json.loads(json.dumps(state_to_json(self.state))))

    @rule()
    def re_arm(self) -> None:
        if self.state.causes & HALTING and not self.flags & KILL:
            self.state = rearm(self.state, self.now, self.nav)
            self.halted = False

    @rule()
    def watch(self) -> None:
        before = self.state
        self.state = risk_check(self.state, self.observe(), LIMITS)
        self.after_mark(before)
        if level_of(self.state.causes) >= FLAT_TODAY:
            self.target = 0.0

    @rule(
        p_up=st.floats(0.0, 1.0),
        share=st.floats(0.0, 1.0),
        width=st.floats(0.0, 0.05),
        multiplier=st.floats(0.0, 2.0),
        age=st.integers(0, 6 * HOUR_MS),
        stopped=st.booleans(),
    )
    def decide(self, p_up: float, share: float, width: float, multiplier: float, age: int, stopped: bool) -> None:
        if stopped:
            self.cash += self.position * self.mark
            self.position = 0.0
        self.now += BAR
        self.bar += 1
        held = self.position * self.mark / self.nav
        before = self.state
        forecast = Forecast((1 - p_up) * share, p_up, width, multiplier, age)
        self.state, decision = step(self.state, self.observe(self.now - BAR, int(stopped)), forecast, LIMITS, COST)
        self.after_mark(before)
        assert decision.level == level_of(self.state.causes)
        assert abs(decision.target) <= LIMITS.max_position + 1e-12
        if decision.level >= FLAT_TODAY:
            assert decision.target == 0.0
            assert (ACTIONS[decision.action] == "flatten") == (self.position != 0.0)
        if decision.level == REDUCE_ONLY and ACTIONS[decision.action] != "hold":
            assert decision.target * held >= 0.0
            assert abs(decision.target) <= abs(held) + 1e-12
        if ACTIONS[decision.action] != "hold":
            self.target = decision.target
        assert decision.entered & decision.cleared == 0

    def after_mark(self, before: RiskState) -> None:
        """The machine's own books, kept apart from the state: once flat today or halted, it stays so."""
        day = self.now // DAY_MS
        level = level_of(self.state.causes)
        if self.halted:
            assert level == HALTED
        if self.flat_day == day:
            assert level >= FLAT_TODAY
        if self.nav <= self.state.day_start_nav * (1 - LIMITS.daily_loss):
            self.flat_day = day
            assert level >= FLAT_TODAY
        if self.state.causes & HALTING:
            self.halted = True
        assert self.state.peak_nav >= self.nav - 1e-9
        assert self.state.ts >= before.ts

    @invariant()
    def never_a_target_while_flattened(self) -> None:
        if hasattr(self, "state") and level_of(self.state.causes) >= FLAT_TODAY:
            assert self.state.target == 0.0 or self.target == 0.0


Account.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_no_sequence_breaks_a_limit = Account.TestCase
