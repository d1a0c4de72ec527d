"""``step`` by hand, and a model-based test: no sequence of prices, forecasts, fills and restarts breaks a limit."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlbot_core.clock import parse_utc_ms
from mlbot_core.decision.risk import level_of, rearm, risk_check
from mlbot_core.decision.state import (
    ACTIONS,
    API_DEGRADED,
    DAILY_LOSS,
    DATA_STALE,
    DRIFT,
    FLAT_TODAY,
    HALTED,
    HALTING,
    KILL,
    NORMAL,
    OBSERVED,
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
UP = Forecast(0.004, 1.0, 2_000)
DOWN = Forecast(-0.004, 1.0, 2_000)
WEAK_UP = Forecast(0.001, 1.0, 2_000)
NONE = Forecast(math.nan, 1.0, 2_000)


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
    _, decision, action = decide(initial_state(), seen(0), Forecast(0.0014, 1.0, 0))
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


def test_a_stop_of_the_former_side_does_not_bar_the_reversal_that_was_wanted() -> None:
    state, _, _ = decide(initial_state(), seen(0), UP)
    state, decision, _ = decide(state, seen(1, 0.02), DOWN)
    assert decision.target == -0.10
    # before the reversal was filled the stop closed the long
    state, decision, action = decide(state, seen(2, 0.0, stopped=1), DOWN)
    assert (decision.target, action) == (-0.10, "target")


def test_a_missing_forecast_does_not_lift_the_bar_of_a_stopped_side() -> None:
    state, _, _ = decide(initial_state(), seen(0), UP)
    state, _, _ = decide(state, seen(1, 0.0, stopped=1), UP)
    state, _, _ = decide(state, seen(2), NONE)
    assert decide(state, seen(3), UP)[1].target == 0.0


@pytest.mark.parametrize("refused", [{"flags": DATA_STALE}, {"nav": 10_000.0}])
def test_an_entry_that_was_not_made_must_beat_its_cost_again(refused: dict[str, float]) -> None:
    state, _, _ = decide(initial_state(), seen(0, **refused), UP)  # refused by the level, or not filled
    assert decide(state, seen(1), WEAK_UP)[1].target == 0.0
    # a multiplier of zero enters nothing either
    state, _, _ = decide(initial_state(), seen(0), UP._replace(multiplier=0.0))
    assert decide(state, seen(1), WEAK_UP)[1].target == 0.0


def test_what_is_still_working_is_kept_only_while_it_is_wanted_and_allowed() -> None:
    state, first, _ = decide(initial_state(), seen(0), UP)
    assert first.keep_entries == 0  # a new order replaces what was there
    _, decision, action = decide(state, seen(1, 0.018), UP)
    assert (action, decision.keep_entries) == ("hold", 1)
    for flag in (DATA_STALE, DRIFT, RECONCILE, API_DEGRADED):
        _, decision, action = decide(state, seen(1, 0.018, flags=flag), UP)
        assert (action, decision.keep_entries) == ("hold", 0)
    assert decide(state, seen(1, 0.018, nav=math.nan), UP)[1].keep_entries == 0
    # nothing was filled and nothing is wanted any more: no order is sent, and none may be left
    _, decision, action = decide(state, seen(1, 0.0), NONE)
    assert (decision.target, action, decision.keep_entries) == (0.0, "hold", 0)
    _, decision, action = decide(state, seen(1, 0.0, flags=KILL), UP)
    assert (decision.target, action, decision.keep_entries) == (0.0, "hold", 0)


def test_a_half_sized_position_is_cut_back_to_its_size_not_to_the_cap() -> None:
    state, _, _ = decide(initial_state(), seen(0), UP._replace(multiplier=0.5))
    _, decision, action = decide(state, seen(1, 0.022), UP._replace(multiplier=0.5))  # 11 %
    assert (decision.target, action) == (pytest.approx(0.05), "trim")


def test_reduce_only_sends_no_order_for_what_is_held_already() -> None:
    state, _, _ = decide(initial_state(), seen(0), UP._replace(multiplier=0.3))
    _, decision, action = decide(state, seen(1, 0.0061, flags=RECONCILE), UP)
    assert (decision.target, action) == (pytest.approx(0.0305), "hold")


def test_an_unknown_position_is_not_traded() -> None:
    state, _, _ = decide(initial_state(), seen(0), UP)
    assert decide(state, seen(1, math.nan), DOWN)[2] == "hold"
    assert decide(state, seen(1, math.nan, flags=KILL), DOWN)[2] == "flatten"


def test_a_stop_seen_with_a_bar_that_was_decided_leaves_no_target() -> None:
    state, _, _ = decide(initial_state(), seen(0), UP)
    state, decision, action = decide(state, seen(0, 0.0, stopped=1), UP)
    assert (decision.target, action, decision.keep_entries) == (0.0, "hold", 0)
    assert decide(state, seen(1), UP)[1].target == 0.0


class Account(RuleBasedStateMachine):
    """A small exchange around ``step``: whatever happens to it, no limit is broken by what we ask for.

    1. Targets stay within the cap; flattened means zero; reduce-only means not more, not the other side.
    2. A fill adds to the position only while the last decision allowed it, and never beyond its cap, however long the
       order worked and whatever was raised since.
    3. The money causes are those of an index of flow-free returns, kept apart from the state: once flat today, flat
       until midnight; once halted, halted until re-armed.
    """

    @initialize()
    def open_account(self) -> None:
        self.state = initial_state()
        self.now, self.bar = START, 0
        self.mark, self.cash, self.position = 50_000.0, 10_000.0, 0.0
        self.flow, self.flags = 0.0, 0
        # the exchange's order: the position it leads to, and what the last decision allows to add
        self.goal, self.bound, self.level = 0.0, 0.0, NORMAL
        # the returns, flows taken out
        self.index = self.day_index = self.peak_index = 1.0
        self.last_nav, self.day = math.nan, -1
        self.flat_day, self.halted, self.near = -1, False, False

    @property
    def nav(self) -> float:
        return self.cash + self.position * self.mark

    def observe(self, bar_ts: int = -1, stopped: int = 0, nav: float | None = None) -> Observation:
        nav = self.nav if nav is None else nav
        if math.isfinite(nav):
            self.follow_index(nav)
        out = Observation(self.now, bar_ts, self.mark, nav, self.position, self.reported(), self.flags, stopped)
        self.flow_waiting = 0.0 if math.isfinite(nav) else self.flow_waiting
        return out

    flow_waiting = 0.0

    def reported(self) -> float:
        out, self.flow = self.flow, 0.0
        return out

    def follow_index(self, nav: float) -> None:
        """What the limits are about: the return since the day's start and since the peak, deposits left out."""
        flow = self.flow_waiting + self.flow
        empty = not math.isfinite(self.last_nav)
        if not empty:
            self.index *= (nav - flow) / self.last_nav
        before, day = self.index, self.now // DAY_MS
        if day > self.day:
            late = self.now % DAY_MS > LIMITS.day_grace_ms
            previous = self.previous_index if not empty else before
            self.day, self.day_index = day, max(previous, before) if late and self.day >= 0 else before
        self.peak_index = max(self.peak_index, self.index)
        bounds = (self.day_index * (1 - LIMITS.daily_loss), self.peak_index * (1 - LIMITS.max_drawdown))
        self.near = self.near or any(abs(self.index / bound - 1) < 1e-9 for bound in bounds)
        if not empty and self.index <= bounds[0]:
            self.flat_day = day
        if not empty and self.index <= bounds[1]:
            self.halted = True
        if nav <= 0.0:
            self.last_nav = math.nan
        elif empty:
            self.index = self.day_index = self.peak_index = 1.0
            self.last_nav = nav
        else:
            self.last_nav = nav
        self.previous_index = self.index

    previous_index = 1.0

    @rule(change=st.floats(-0.25, 0.25), minutes=st.integers(0, 90))
    def move(self, change: float, minutes: int) -> None:
        if self.cash + self.position * self.mark * (1 + change) > 100.0 or self.position == 0.0:
            self.mark = min(max(self.mark * (1 + change), 1_000.0), 1_000_000.0)
        self.now += minutes * MINUTE_MS

    @rule(hours=st.integers(1, 80))
    def silence(self, hours: int) -> None:
        self.now += hours * HOUR_MS

    @rule(share=st.floats(0.0, 1.0), slip=st.floats(-0.002, 0.002))
    def fill(self, share: float, slip: float) -> None:
        """The exchange fills a part of what was asked for, at a price of its own."""
        traded = (self.goal - self.position) * share
        before = self.position
        self.cash -= traded * self.mark * (1 + slip) + abs(traded) * self.mark * 0.00055
        self.position = self.goal if share == 1.0 else self.position + traded
        if abs(self.position) > abs(before) * (1 + 1e-9) or self.position * before < 0.0:
            assert self.level == NORMAL
            assert abs(self.position) <= self.bound * (1 + 1e-9)

    @rule(share=st.floats(-0.8, 3.0))
    def deposit(self, share: float) -> None:
        amount = share * min(self.nav, self.cash) if share < 0 else share * self.nav
        self.cash += amount
        self.flow += amount

    @precondition(lambda self: self.position == 0.0)
    @rule(again=st.sampled_from([0.0, 10.0, 20_000.0]))
    def withdraw_everything(self, again: float) -> None:
        self.flow -= self.cash
        self.cash = 0.0
        self.watch()
        self.cash = again
        self.flow += again

    @rule(flags=st.sampled_from([0, 0, DATA_STALE, DRIFT, RECONCILE | API_DEGRADED, KILL]))
    def report(self, flags: int) -> None:
        self.flags = flags

    @rule()
    def restart(self) -> None:
        self.state = state_from_json(json.loads(json.dumps(state_to_json(self.state))))

    @rule()
    def re_arm(self) -> None:
        if self.state.causes & HALTING and not self.flags & KILL and self.nav > 0.0:
            if math.isfinite(self.last_nav):
                # what happened to the day since the last mark happened with the flows taken out
                flow = self.flow_waiting + self.flow
                self.index *= (self.nav - flow) / self.last_nav
            self.state = rearm(self.state, self.now, self.nav, self.reported())
            self.flow_waiting = 0.0
            self.previous_index = self.peak_index = self.index
            self.last_nav = self.nav
            self.halted = False

    @rule()
    def watch(self) -> None:
        self.state = risk_check(self.state, self.observe(), LIMITS)
        self.after_mark()

    @rule()
    def watch_without_an_answer(self) -> None:
        self.flow_waiting += self.flow
        before = self.state
        self.state = risk_check(self.state, self.observe(nav=math.nan), LIMITS)
        assert self.state.causes & ~OBSERVED == (before.causes & ~OBSERVED) | (self.flags & KILL)
        assert level_of(self.state.causes) >= REDUCE_ONLY
        self.after_mark()

    @rule(
        edge=st.floats(-0.05, 0.05),
        multiplier=st.sampled_from([0.0, 0.3, 1.0, 1.0, 2.0]),
        age=st.sampled_from([0, 0, HOUR_MS, 4 * HOUR_MS]),
        stopped=st.booleans(),
        known=st.sampled_from([True, True, True, False]),
    )
    def decide(self, edge: float, multiplier: float, age: int, stopped: bool, known: bool) -> None:
        side = 0
        if stopped and self.position != 0.0:
            side = 1 if self.position > 0 else -1
            self.cash += self.position * self.mark
            self.position = self.goal = 0.0
        self.now += BAR
        self.bar += 1
        forecast = Forecast(edge, multiplier, age)
        if not known:
            self.flow_waiting += self.flow
        seen = self.observe(self.now - BAR, side, None if known else math.nan)
        self.state, decision = step(self.state, seen, forecast, LIMITS, COST)
        held = self.position * self.mark / self.nav if self.nav > 0 else 0.0
        action = ACTIONS[decision.action]
        assert decision.level == level_of(self.state.causes)
        assert decision.entered & decision.cleared == 0
        if decision.level >= FLAT_TODAY:
            assert decision.target == 0.0
            assert (action == "flatten") == (self.position != 0.0)
        if action != "hold":
            assert known or action == "flatten"
            assert abs(decision.target) <= LIMITS.max_position + 1e-12
            if decision.level == REDUCE_ONLY:
                assert decision.target * held >= 0.0
                assert abs(decision.target) <= abs(held) + 1e-12
        if side != 0 and action != "hold":
            assert decision.target * side <= 0.0
        if decision.keep_entries:
            assert decision.level == NORMAL
        # the exchange's side of a decision
        if action != "hold":
            self.goal = decision.target * self.nav / self.mark if decision.target != 0.0 else 0.0
        elif not decision.keep_entries:
            self.cancel_what_adds()
        else:
            most = abs(decision.target) * self.nav / self.mark
            self.goal = math.copysign(min(abs(self.goal), max(most, abs(self.position))), self.goal)
        self.bound = max(LIMITS.max_position * self.nav / self.mark, 0.0)
        self.after_mark()

    def cancel_what_adds(self) -> None:
        if self.goal * self.position < 0.0:
            self.goal = 0.0
        elif abs(self.goal) > abs(self.position):
            self.goal = self.position

    def after_mark(self) -> None:
        self.level = level_of(self.state.causes)
        if self.level >= FLAT_TODAY:
            self.goal = 0.0
        elif self.level == REDUCE_ONLY:
            self.cancel_what_adds()
        self.halted = self.halted or bool(self.state.causes & KILL)
        if self.near:
            return  # a rounding error decides which side of the limit this is on
        assert bool(self.state.causes & HALTING) == self.halted
        assert bool(self.state.causes & DAILY_LOSS) == (self.flat_day == self.day and self.day >= 0)

    @invariant()
    def never_a_target_while_flattened(self) -> None:
        if hasattr(self, "state") and level_of(self.state.causes) >= FLAT_TODAY:
            assert self.goal == 0.0


Account.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_no_sequence_breaks_a_limit = Account.TestCase
