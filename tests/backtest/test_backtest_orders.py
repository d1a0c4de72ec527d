"""Orders that are still working, gaps, volumes and marks: where an account could be let do what it may not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlbot_core.backtest import engine
from mlbot_core.backtest.portfolio import require_agreement, vectorbt_view
from mlbot_core.backtest.simulator import Forecasts, Simulation, SimulationParams, simulate
from mlbot_core.decision.state import DATA_STALE, HALTED, KILL, NORMAL, RECONCILE, REDUCE_ONLY
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, HOUR_MS

TF = 2 * HOUR_MS
START = 1_704_067_200_000  # 2024-01-01, midnight UTC
A_DAY = DAY_MS // TF
UP, DOWN, WEAK_UP, WEAK_DOWN, NONE = 0.005, -0.005, 0.0001, -0.0001, math.nan
Bar = tuple[float, float, float, float]


def flat(price: float, n: int = 1) -> list[Bar]:
    return [(price, price, price, price)] * n


def said(*edges: float, **more: Any) -> Forecasts:
    return Forecasts(edges, **more)


def account(
    bars: list[Bar],
    decided: Any,
    *,
    ts: Any = None,
    funding: dict[int, float] | None = None,
    series: dict[str, Any] | None = None,
    **params: Any,
) -> Simulation:
    """Simulate (open, high, low, close) bars under a cap of 10 %, trading free unless said otherwise."""
    events = sorted((funding or {}).items())
    chosen = {"timeframe_ms": TF, "delay_ms": 0, "fee": 0.0, "slippage": 0.0, "cap": 0.1, "cost_round_trip": 0.001}
    return simulate(
        START + TF * np.arange(len(bars)) if ts is None else ts,
        *(np.array(column, dtype=float) for column in zip(*bars, strict=True)),
        decided,
        SimulationParams(**(chosen | params)),
        [t for t, _ in events],
        [r for _, r in events],
        **(series or {}),
    )


def marks(bars: list[Bar]) -> tuple[Any, ...]:
    return tuple(np.array(column, dtype=float) for column in zip(*bars, strict=True))


def test_an_entry_that_still_works_is_cancelled_when_one_may_only_reduce() -> None:
    sim = account(
        flat(100, 6),
        [0.1] * 6,
        participation=0.1,
        series={"volume": [30.0] * 6, "flags": [0, RECONCILE, RECONCILE, 0, 0, 0]},
    )
    assert sim.level.tolist() == [NORMAL, REDUCE_ONLY, REDUCE_ONLY, NORMAL, NORMAL, NORMAL]
    # three coins were bought before it was raised, none while it was
    assert sim.position[1:4].tolist() == pytest.approx([3.0, 3.0, 3.0])


def test_a_reversal_that_still_works_only_closes_when_one_may_only_reduce() -> None:
    sim = account(
        flat(100, 9),
        [0.1, 0.1, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1],
        participation=0.1,
        series={
            "volume": [100.0, 100.0, 100.0, 50.0, 50.0, 50.0, 50.0, 50.0, 50.0],
            "flags": [0, 0, 0, 1, 1, 1, 1, 0, 0],
        },
    )
    assert sim.position.tolist() == pytest.approx([0.0, 10.0, 10.0, 5.0, 0.0, 0.0, 0.0, 0.0, -5.0])


def test_an_entry_that_is_not_wanted_any_more_is_not_filled() -> None:
    volume = [50.0, 0.0, 50.0, 50.0]
    sim = account(flat(100, 4), said(UP, NONE, NONE, NONE), participation=0.5, series={"volume": volume})
    assert sim.fills.empty


def test_a_killed_account_cancels_what_still_works() -> None:
    volume = [50.0, 0.0, 50.0, 50.0]
    sim = account(flat(100, 4), [0.1] * 4, participation=0.5, series={"volume": volume, "flags": [0, KILL, 0, 0]})
    assert sim.fills.empty
    assert sim.level.tolist() == [NORMAL, HALTED, HALTED, HALTED]


def test_an_order_that_works_for_long_stays_within_the_cap() -> None:
    bars = [*flat(100, 2), (100, 300, 100, 300), *flat(300, 4)]
    sim = account(bars, [0.1] * 7, participation=0.1, series={"volume": [10.0] * 7})
    # of ten coins one a bar is bought; at 300 NAV is 10,400, of which a tenth is 3.4667 coins, and no more are bought
    assert sim.position.tolist() == pytest.approx([0.0, 1.0, 2.0, 3.0, 3.46667, 3.46667, 3.46667], rel=1e-5)
    assert sim.fills["reason"].tolist() == ["target"] * 4


@pytest.mark.parametrize("lot", [0.0, 0.001])
def test_in_a_bar_without_volume_nothing_is_filled(lot: float) -> None:
    sim = account(flat(100, 4), [0.1] * 4, participation=0.1, lot=lot, series={"volume": [0.0, 0.0, 0.0, 1_000.0]})
    assert sim.fills["bar"].tolist() == [3]


def test_no_rounding_error_is_traded() -> None:
    # 0.1 x 30 is 3.0000000000000004: three parts of three make nine, and the last is one
    sim = account(flat(100, 8), [0.09] * 8, participation=0.1, series={"volume": [30.0] * 8})
    assert sim.fills["btc"].tolist() == pytest.approx([3.0, 3.0, 3.0])
    # reduce only: what is wanted is what is held, up to a rounding error in sizing it
    flags = [0, 0, DATA_STALE, DATA_STALE, 0]
    sim = account(
        [(p, p, p, p) for p in (0.3, 0.3, 0.7, 0.9, 1.1)], [0.03, 0.03, 0.1, 0.09, 0.02], series={"flags": flags}
    )
    assert (sim.fills["btc"] > 1.0).all()


def test_a_kill_is_executed_after_it_was_decided() -> None:
    bars = [*flat(100, 2), (100, 100, 80, 80), *flat(80)]
    sim = account(bars, [0.1] * 4, delay_ms=TF // 2, settle_ms=2_000, series={"flags": [0, KILL, 0, 0]})
    # the entry was filled half way through bar 1; the way out is half way through bar 2, at 90
    assert sim.fills["ts"].tolist() == [START + TF + TF // 2, START + 2 * TF + TF // 2]
    assert sim.fills["mid"].tolist() == [100.0, 90.0]
    assert sim.fills["reason"].tolist() == ["target", "risk"]


def test_an_order_that_is_decided_two_seconds_after_the_close_is_not_filled_at_it() -> None:
    with pytest.raises(UsageError, match="before it is decided"):
        account(flat(100, 2), [0.1] * 2, settle_ms=2_000)


def test_what_was_settled_in_a_gap_is_paid_before_the_stop_at_its_end() -> None:
    bars = [*flat(100, 2), *flat(50, 2)]
    ts = START + TF * np.array([0, 1, 5, 6])
    funding = {START + 4 * TF: 0.01, START + 5 * TF: 0.02}
    sparse = account(bars, [0.1] * 4, ts=ts, funding=funding, stop_distance=0.2)
    assert sparse.payments["payment"].tolist() == pytest.approx([10 * 100 * 0.01, 10 * 100 * 0.02])
    gone = [(math.nan,) * 4] * 3
    whole = account([*bars[:2], *gone, *bars[2:]], [0.1] * 7, funding=funding, stop_distance=0.2)
    assert sparse.nav[-1] == whole.nav[-1]
    assert sparse.fills["ts"].tolist() == whole.fills["ts"].tolist()


def test_funding_goes_by_the_mark_inside_a_bar_and_over_a_gap_too() -> None:
    bars = [*flat(100, 3), (math.nan,) * 4, *flat(100)]
    mark = marks([*flat(200, 2), (200, 240, 200, 240), *flat(240, 2)])
    funding = {START + 2 * TF + TF // 4: 0.001, START + 4 * TF: 0.001}
    sim = account(bars, [0.1] * 5, cap=3.0, funding=funding, series={"mark": mark})
    held = sim.position[2]
    assert sim.payments["price"].tolist() == [210.0, 240.0]
    assert sim.payments["payment"].tolist() == pytest.approx([held * 0.21, held * 0.24])


def test_a_stop_of_the_former_side_lets_the_reversal_be_entered() -> None:
    # long from bar 1; at the close of bar 1 short is wanted, and bar 2 opens below the stop
    bars = [*flat(100, 2), *flat(90, 3)]
    sim = account(bars, said(UP, DOWN, DOWN, DOWN, DOWN), stop_distance=0.05)
    assert sim.fills["reason"].tolist() == ["target", "stop", "target"]
    assert sim.position[-1] < 0


def test_a_stop_bars_its_own_side_also_for_a_short() -> None:
    bars = [*flat(100, 2), *flat(110, 4)]
    sim = account(bars, said(DOWN, DOWN, DOWN, NONE, DOWN, DOWN), stop_distance=0.05)
    assert sim.fills["reason"].tolist() == ["target", "stop"]
    sim = account(bars, said(DOWN, DOWN, DOWN, WEAK_UP, DOWN, DOWN), stop_distance=0.05)
    assert sim.fills["reason"].tolist() == ["target", "stop", "target"]


@pytest.mark.parametrize("age", [math.nan, math.inf, 1e300, 2 * TF])
def test_a_forecast_of_unknown_age_is_stale(age: float) -> None:
    sim = account(flat(100, 3), said(UP, UP, UP, age_ms=[age] * 3), max_forecast_age_ms=TF)
    assert sim.fills.empty
    assert (sim.level == REDUCE_ONLY).all()


@settings(max_examples=200, deadline=None)
@given(
    price=st.floats(0.5, 90_000.0),
    nav=st.floats(50.0, 1e6),
    share=st.floats(0.5, 2.5),
    sign=st.sampled_from([1.0, -1.0]),
    day=st.booleans(),
)
def test_who_is_closed_at_a_limit_is_flat_by_it(price: float, nav: float, share: float, sign: float, day: bool) -> None:
    worst = price * (1 - 0.6 * sign)
    bars = [*flat(price, 2), (price, max(price, worst), min(price, worst), price), *flat(price, 2)]
    limits = {"daily_loss": 0.03} if day else {"max_drawdown": 0.25}
    sim = account(bars, [sign * share] * 5, cap=3.0, initial_nav=nav, **limits)
    assert sim.fills["reason"].tolist() == ["target", "risk"]
    assert sim.risk_events["entered"].tolist() == ["daily_loss" if day else "drawdown"]
    assert (sim.position[2:] == 0.0).all()


def test_no_exit_is_filled_at_a_price_that_nobody_traded() -> None:
    # the mark falls by 60 %, the last price by 5 %: the limit of 3 % is met, at what there was
    bars = [*flat(100, 2), (100, 100, 95, 98)]
    sim = account(bars, [0.1] * 3, daily_loss=0.03, series={"mark": marks([*flat(100, 2), (100, 100, 40, 98)])})
    assert sim.fills["reason"].tolist() == ["target", "risk"]
    assert sim.fills["mid"].iloc[1] == 95.0
    assert sim.risk_events["entered"].tolist() == ["daily_loss"]


def test_the_tier_of_a_short_is_that_of_its_value_where_it_is_liquidated() -> None:
    # short 10 coins at 100 on 1,000: first tier to 1,500 USD. (2,000 + 325) / (10 x 1.25) = 186, by the first tier 198
    tiers = ((1_500.0, 0.01, 0.0), (1e9, 0.25, 360.0))
    at = (2_000.0 + 360.0) / (10 * 1.25)
    for high, dead in ((at - 0.01, None), (at + 0.01, 2)):
        sim = account(
            [*flat(100, 2), (100, high, 100, 100)], [-1.0] * 3, cap=3.0, initial_nav=1_000.0, maintenance=tiers
        )
        assert sim.bankrupt_bar == dead


def test_an_account_that_is_gone_is_halted() -> None:
    bars = [*flat(100, 2), *flat(260, 2)]
    sim = account(bars, [-1.0] * 4, cap=1.0, max_drawdown=0.25)
    assert sim.bankrupt_bar == 2
    assert sim.level.tolist() == [NORMAL, NORMAL, HALTED, HALTED]
    assert sim.risk_events["entered"].tolist() == ["drawdown"]


def test_a_loss_over_days_without_bars_counts_for_the_day_it_is_seen_on() -> None:
    bars = [*flat(100, 2), *[(math.nan,) * 4] * (3 * A_DAY), *flat(60, A_DAY)]
    sim = account(bars, [0.1] * len(bars), daily_loss=0.03)
    assert sim.fills["reason"].tolist()[:2] == ["target", "risk"]
    assert sim.fills["ts"].iloc[1] == START + (3 * A_DAY + 2) * TF
    # flat for the rest of that day, entered again by the decision right after midnight
    assert sim.fills["ts"].iloc[2] == START + 4 * DAY_MS


def test_the_decision_right_after_midnight_belongs_to_the_new_day() -> None:
    # the limit is met in the last bar of the day; the decision at 00:00:02 starts the next
    bars = [*flat(100, A_DAY - 1), (100, 100, 60, 90), *flat(90, 2)]
    sim = account(bars, [0.1] * len(bars), daily_loss=0.03, delay_ms=5_000, settle_ms=2_000)
    assert sim.risk_events["ts"].tolist() == [START + DAY_MS - 1, START + DAY_MS + 2_000]
    assert sim.fills["reason"].tolist() == ["target", "risk", "target"]
    assert sim.fills["ts"].iloc[2] == START + DAY_MS + 5_000


@pytest.mark.parametrize("flow", [50_000.0, -9_000.0])
def test_flows_are_in_the_books_of_both(flow: float) -> None:
    bars = [(100, 100, 100, 100), (100, 110, 95, 105), (105, 105, 90, 92), (92, 99, 92, 99)]
    flows = np.array([0.0, 0.0, flow, 0.0])
    sim = account(bars, [0.1] * 4, fee=0.001, slippage=0.001, series={"flows": flows})
    expected = 10_000 + np.cumsum(sim.gross - sim.fees - sim.slippage - sim.funding + flows)
    np.testing.assert_allclose(sim.nav, expected, rtol=1e-12)
    require_agreement(vectorbt_view(sim, np.array([b[3] for b in bars])))


def test_withdrawing_everything_is_no_drawdown() -> None:
    flows = np.array([0.0, 0.0, -10_000.0, 0.0, 5_000.0, 0.0])
    sim = account(
        flat(100, 6),
        [0.0, 0.0, 0.0, 0.1, 0.1, 0.1],
        max_drawdown=0.25,
        daily_loss=0.03,
        series={"flows": flows},
    )
    assert sim.level.tolist() == [NORMAL, NORMAL, REDUCE_ONLY, REDUCE_ONLY, NORMAL, NORMAL]
    assert sim.position[-1] == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("series", "says"),
    [
        ({"flows": [0.0, math.nan]}, "flow nan"),
        ({"volume": [1.0, -1.0]}, r"volume -1\.0"),
        ({"volume": [1.0, math.inf]}, "volume inf"),
        ({"flags": [0, 1024]}, "flags 1024"),
        ({"flags": [0, 16]}, "flags 16"),
        ({"flags": [0.0, math.nan]}, "whole numbers"),
        ({"flows": [0.0]}, "2 times but"),
    ],
)
def test_wrong_series_are_named(series: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        account(flat(100, 2), [0.0, 0.0], series=series)


def test_an_impact_that_eats_the_whole_price_is_refused() -> None:
    with pytest.raises(UsageError, match="whole price"):
        account(flat(100, 2), [0.0, 0.0], slippage=0.5, impact=0.5)


def test_inputs_are_left_alone_and_the_loop_is_compiled_once() -> None:
    frame = pd.DataFrame(
        {"ts": START + TF * np.arange(4), "p": [100.0, 101.0, 99.0, 100.0], "t": [0.1, -0.1, 0.1, 0.0]}
    )
    columns = {name: frame[name].to_numpy().copy() for name in frame}
    for values in columns.values():
        values.setflags(write=False)
    params = SimulationParams(timeframe_ms=TF, delay_ms=0, fee=0.0, slippage=0.0)
    prices = (columns["p"],) * 4
    writable = simulate(frame["ts"].to_list(), *prices, frame["t"].to_list(), params)
    before = len(engine.run.signatures)
    frozen = simulate(columns["ts"], *prices, columns["t"], params, mark=prices, volume=columns["p"])
    assert len(engine.run.signatures) == before
    assert frozen.nav.tolist() == writable.nav.tolist()
    assert columns["t"].tolist() == frame["t"].tolist()


def test_every_bar_may_bring_fills_and_changes() -> None:
    n = 300
    bars = [(100, 100, 94, 100)] * n
    flags = np.where(np.arange(n) % 2 == 0, DATA_STALE, 0)
    sim = account(bars, np.resize([0.1, 0.1, -0.1], n), stop_distance=0.05, series={"flags": flags})
    assert len(sim.risk_events) >= n - 1
    assert len(sim.fills) > n // 2
    assert (np.diff(sim.fills["ts"]) >= 0).all()
    require_agreement(vectorbt_view(sim, np.full(n, 100.0)))


moves = st.lists(
    st.tuples(st.floats(-9, 9), st.floats(0, 6), st.floats(0, 6), st.floats(-9, 9)), min_size=3, max_size=40
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=moves, delay=st.sampled_from([0, 5_000, TF]), size=st.sampled_from([0.1, 1.0, 2.0]))
@example(path=[(0.0, 0.0, 0.0, 0.0), (0.0, 5.0, 5.0, -6.0), (3.0, 0.0, 4.0, 0.0)], delay=0, size=1.0)
def test_a_short_is_a_long_in_the_mirror(path: list[tuple[float, ...]], delay: int, size: float) -> None:
    """One entry at 100, held on weak forecasts: prices reflected at 100 give the short what they gave the long."""
    bars, price = flat(100, 2), 100.0
    for gap, up, down, move in path:
        open_ = min(max(price + gap, 20.0), 180.0)
        close = min(max(open_ + move, 20.0), 180.0)
        bars.append((open_, min(max(open_, close) + up, 190.0), max(min(open_, close) - down, 10.0), close))
        price = close
    mirrored = [(200 - o, 200 - low, 200 - h, 200 - c) for o, h, low, c in bars]
    params = {"delay_ms": delay, "cap": size, "daily_loss": 0.03, "max_drawdown": 0.25, "stop_distance": 0.2}
    n = len(bars)
    params |= {"trim_ratio": math.inf}
    long = account(bars, said(UP, *[WEAK_UP] * (n - 1)), **params)
    short = account(mirrored, said(DOWN, *[WEAK_DOWN] * (n - 1)), **params)
    np.testing.assert_allclose(long.nav, short.nav, rtol=1e-9)
    np.testing.assert_allclose(long.nav_low, short.nav_low, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(long.position, -short.position, rtol=1e-9)
    assert long.fills["reason"].tolist() == short.fills["reason"].tolist()
    assert long.level.tolist() == short.level.tolist()
