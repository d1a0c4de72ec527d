"""Goldens, computed by hand, of limit orders, latency in bars, and of a risk state that is carried into a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mlbot_core.backtest.portfolio import require_agreement, vectorbt_view
from mlbot_core.backtest.simulator import Forecasts, Simulation, SimulationParams, simulate
from mlbot_core.decision.risk import rearm
from mlbot_core.decision.state import HALTED, KILL, NORMAL, RECONCILE, state_from_json, state_to_json
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, HOUR_MS

TF = 2 * HOUR_MS
START = 1_704_067_200_000  # 2024-01-01, midnight UTC
A_DAY = DAY_MS // TF
Bar = tuple[float, float, float, float]


def flat(price: float, n: int = 1) -> list[Bar]:
    return [(price, price, price, price)] * n


def account(
    bars: list[Bar], decided: Any, *, ts: Any = None, series: dict[str, Any] | None = None, **params: Any
) -> Simulation:
    """Simulate (open, high, low, close) bars under a cap of 10 %: takers pay 10 bp and slip 20, makers pay 2 bp."""
    chosen = {"timeframe_ms": TF, "delay_ms": 0, "fee": 0.001, "slippage": 0.002, "maker_fee": 0.0002, "cap": 0.1}
    sim = simulate(
        START + TF * np.arange(len(bars)) if ts is None else ts,
        *(np.array(column, dtype=float) for column in zip(*bars, strict=True)),
        decided,
        SimulationParams(**(chosen | params)),
        **(series or {}),
    )
    expected = sim.params.initial_nav + np.cumsum(sim.gross - sim.fees - sim.slippage - sim.funding + sim.flows)
    np.testing.assert_allclose(sim.nav, expected, rtol=1e-12)
    require_agreement(vectorbt_view(sim, np.array([bar[3] for bar in bars])))
    return sim


def test_a_limit_order_is_filled_at_its_price_without_slippage_where_the_close_went_through() -> None:
    # 10 coins wanted at 100; the bar in which the order arrives closes at 99
    sim = account([*flat(100), (100, 100, 99, 99), *flat(99)], [0.1] * 3, maker_bars=1, tick=0.1)
    fill = sim.fills.iloc[0]
    assert (fill["price"], fill["mid"], fill["btc"], fill["slippage"], fill["maker"]) == (100.0, 100.0, 10.0, 0.0, True)
    assert fill["fee"] == pytest.approx(10 * 100 * 0.0002)
    # only the close of that bar is certainly after the order
    assert fill["ts"] == START + 2 * TF
    # a coin lower at once: adverse selection is in the price that fills
    assert sim.nav[1] == pytest.approx(10_000 - 10 * 1.0 - 0.2)


def test_a_price_that_touches_the_limit_or_goes_through_before_the_close_fills_nothing() -> None:
    touched = account([*flat(100), (100, 101, 99, 100), *flat(100)], [0.1, math.nan, math.nan], maker_bars=1, tick=0.1)
    # in its bar the order saw 100, its own price; afterwards the rest is taken, all of it
    assert touched.fills["maker"].tolist() == [False]
    assert (touched.fills["ts"].iloc[0], touched.fills["mid"].iloc[0]) == (START + 2 * TF, 100.0)
    assert touched.fills["price"].iloc[0] == pytest.approx(100.2)


def test_the_extreme_of_a_later_bar_fills_only_a_tick_beyond_the_limit() -> None:
    def second(low: float) -> list[bool]:
        bars = [*flat(100, 2), (100.5, 101, low, 101), *flat(101)]
        return account(bars, [0.1, math.nan, math.nan, math.nan], maker_bars=2, tick=0.5).fills["maker"].tolist()

    assert second(100.0) == [False]
    assert second(99.75) == [False]
    assert second(99.5) == [True]


def test_the_order_never_crosses_and_is_rounded_away_from_the_market() -> None:
    # decided at 100.07, the market is at 99.93 when it arrives: it rests at 99.9 (buy) or 100.1 (sell)
    bars = [(100.07, 100.07, 100.07, 100.07), (99.93, 99.93, 99, 99), *flat(99)]
    assert account(bars, [0.1] * 3, maker_bars=1, tick=0.1).fills["price"].iloc[0] == pytest.approx(99.9)
    bars = [(100.07, 100.07, 100.07, 100.07), (99.93, 101, 99.93, 101), *flat(101)]
    assert account(bars, [-0.1] * 3, maker_bars=1, tick=0.1).fills["price"].iloc[0] == pytest.approx(100.1)


def test_what_a_limit_order_has_not_got_in_its_bars_is_taken() -> None:
    # 10 coins, of which 3 a bar: closes through the limit twice, then it is over
    bars = [*flat(100), (100, 100, 99, 99), (99, 99, 98, 98), (98, 98, 98, 98), *flat(98, 2)]
    wanted = [0.1, *[math.nan] * 5]
    sim = account(bars, wanted, maker_bars=2, participation=0.1, series={"volume": [30.0] * 6})
    assert sim.fills["maker"].tolist() == [True, True, False, False]
    assert sim.fills["btc"].tolist() == pytest.approx([3.0, 3.0, 3.0, 1.0])
    assert sim.fills["mid"].tolist() == pytest.approx([100.0, 100.0, 98.0, 98.0])
    assert sim.fees.sum() == pytest.approx(6 * 100 * 0.0002 + 4 * 98 * 1.002 * 0.001)


def test_an_order_that_is_wanted_again_keeps_its_place_and_its_time() -> None:
    # flat and wanting long, the decision asks anew at every close: 100, 101, 102; the order stays at 100 for two bars
    bars = [*flat(100), *flat(101), *flat(102), *flat(103)]
    sim = account(bars, Forecasts([0.01] * 4), maker_bars=2, cost_round_trip=0.001)
    assert sim.fills["maker"].tolist() == [False]
    assert sim.fills["bar"].tolist() == [3]
    # while it is the other side that is wanted now, the order is a new one
    turned = account([*flat(100, 3), (100, 102, 100, 102), *flat(102)], [0.1, -0.1, -0.1, -0.1, -0.1], maker_bars=2)
    assert (turned.fills["side"].tolist(), turned.fills["maker"].tolist()) == ([-1], [True])


def test_stops_limits_and_a_kill_take_at_once() -> None:
    bars = [*flat(100), (100, 100, 99, 99), (99, 99, 90, 95), *flat(95)]
    stopped = account(bars, [0.1, math.nan, 0.1, 0.1], maker_bars=1, stop_distance=0.05)
    assert stopped.fills["reason"].tolist()[:2] == ["target", "stop"]
    assert stopped.fills["maker"].tolist()[:2] == [True, False]
    bars = [*flat(100), (100, 100, 99, 99), *flat(99, 3)]
    killed = account(bars, [0.1] * 5, maker_bars=3, series={"flags": [0, 0, KILL, 0, 0]})
    assert killed.fills["reason"].tolist() == ["target", "risk"]
    assert killed.fills["maker"].tolist() == [True, False]
    assert killed.fills["ts"].iloc[1] == START + 3 * TF


def test_before_a_limit_order_that_leaves_the_worst_comes_first() -> None:
    # long at 100 (stop at 95); to leave a limit rests at 100, and one bar goes to 94 and to 102: the stop is met first
    bars = [*flat(100), (100, 100, 99, 99), *flat(99, 2), (99, 102, 94, 100), *flat(100)]
    wanted = [0.1, math.nan, 0.0, 0.0, 0.0, 0.0]
    both = account(bars, wanted, maker_bars=3, stop_distance=0.05)
    assert both.fills["reason"].tolist() == ["target", "stop"]
    spared = account([*bars[:4], (99, 102, 96, 100), *flat(100)], wanted, maker_bars=3, stop_distance=0.05)
    assert spared.fills["maker"].tolist() == [True, True]
    assert spared.fills["price"].iloc[1] == 99.0
    # a limit that turned the position around is itself exposed to the rest of the bar: short at 99, stop at 103.95
    turned = account(
        [*bars[:4], (99, 104, 96, 100), *flat(100)],
        [0.1, math.nan, -0.1, *[math.nan] * 3],
        **{"maker_bars": 3, "stop_distance": 0.05},
    )
    assert turned.fills["reason"].tolist() == ["target", "target", "stop"]
    assert turned.fills["mid"].iloc[2] == pytest.approx(99 * 1.05)


def test_a_limit_order_is_cancelled_when_one_may_only_reduce() -> None:
    bars = [*flat(100, 3), (100, 100, 98, 98), *flat(98)]
    sim = account(bars, [0.1, 0.1, 0.1, 0.1, 0.1], maker_bars=9, series={"flags": [0, 0, RECONCILE, RECONCILE, 0]})
    assert sim.fills.empty


def test_a_rebate_is_paid_to_the_maker() -> None:
    sim = account([*flat(100), (100, 100, 99, 99), *flat(99)], [0.1] * 3, maker_bars=1, maker_fee=-0.0001)
    assert sim.fees.sum() == pytest.approx(-0.1)


@pytest.mark.parametrize("bars", [0, 1, 3])
def test_an_order_is_on_its_way_for_so_many_recorded_bars(bars: int) -> None:
    prices = [100.0, 101.0, 102.0, 103.0, 104.0, 105.0]
    sim = account([(p, p, p, p) for p in prices], Forecasts([0.01] * 6), latency_bars=bars, cost_round_trip=0.001)
    # decided at 100 for 10 coins and not sent a second time while it is on its way
    assert sim.fills["bar"].tolist() == [1 + bars]
    assert sim.fills["mid"].tolist() == [101.0 + bars]
    assert sim.fills["btc"].tolist() == pytest.approx([10.0])
    assert sim.fills["nav"].tolist() == [10_000.0]


def test_orders_arrive_in_the_order_in_which_they_were_sent() -> None:
    sim = account(flat(100, 8), [0.1, -0.1, 0.0, *[math.nan] * 5], latency_bars=2, slippage=0.0, fee=0.0)
    # the decision sees positions, not orders on their way: at the close of bar 2 there is nothing to close yet
    assert sim.position.tolist() == pytest.approx([0, 0, 0, 10.0, -10.0, -10.0, 0, 0])


def test_what_is_on_its_way_when_the_level_rises_adds_nothing() -> None:
    kept = account(flat(100, 6), [0.1, *[math.nan] * 5], latency_bars=2)
    assert kept.fills["bar"].tolist() == [3]
    stale = account(flat(100, 6), [0.1, *[math.nan] * 5], latency_bars=2, series={"flags": [0, 0, RECONCILE, 0, 0, 0]})
    assert stale.fills.empty
    # a loss that flattens takes the orders on their way with it
    bars = [*flat(100, 3), (100, 100, 60, 90), *flat(90, 4)]
    lost = account(bars, [0.1, math.nan, 0.05, *[math.nan] * 5], latency_bars=1, daily_loss=0.03)
    assert lost.fills["reason"].tolist() == ["target", "risk"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"maker_bars": -1}, "maker_bars is -1"),
        ({"latency_bars": 20_000}, "latency_bars is 20000"),
        ({"maker_fee": -1.0}, r"maker_fee is -1\.0"),
    ],
)
def test_wrong_orders_are_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        account(flat(100), [0.0], **wrong)


def test_a_halt_is_carried_over_a_restart_and_ends_where_a_person_rearms() -> None:
    # short 10 coins at 100, the open at 360 takes 2,600 of 10,000: halted at 7,400
    free = {"fee": 0.0, "slippage": 0.0, "daily_loss": 0.03, "max_drawdown": 0.25}
    first = account([*flat(100, 2), *flat(360, 2)], [-0.1] * 4, **free)
    assert first.level[-1] == HALTED
    nav = float(first.nav[-1])
    assert nav == pytest.approx(7_400.0)
    stored = state_from_json(state_to_json(first.final_state))
    later = START + 10 * DAY_MS + TF * np.arange(6)
    again = {"ts": later, "initial_nav": nav} | free
    still = account(flat(360, 6), [-0.1] * 6, series={"state": stored}, **again)
    assert still.fills.empty
    assert (still.level == HALTED).all()
    armed = rearm(stored, int(later[0]) - 1, nav)
    # a quarter below the NEW peak is 5,550: short 740 / 100 = 7.4 coins, which lose 1,850 at 350
    bars = [*flat(100, 2), *flat(340), *flat(100, A_DAY)]
    other_days = START + 10 * DAY_MS + TF * np.arange(len(bars))
    rearmed = account(bars, [-0.1] * len(bars), series={"state": armed}, **(again | {"ts": other_days}))
    assert rearmed.level[0] == NORMAL
    assert rearmed.fills["btc"].iloc[0] == pytest.approx(7.4)
    # 7.4 x 240 = 1,776 lost: a bad day, and not yet a quarter of the new peak
    assert rearmed.nav[2] == pytest.approx(7_400 - 1_776)
    assert rearmed.risk_events["entered"].tolist() == ["", "daily_loss", ""]
    assert set(rearmed.risk_events["cleared"]) == {"daily_loss", ""}
    halted = account(
        [*flat(100, 2), *flat(350), *flat(100)], [-0.1] * 4, series={"state": armed}, **(again | {"ts": later[:4]})
    )
    assert halted.risk_events["entered"].tolist() == ["", "daily_loss,drawdown"]
    assert halted.nav[-1] == pytest.approx(5_550.0)


def test_funding_over_three_settlements_of_one_position() -> None:
    # 10 coins from 00:00 to 24:00+; paid at the mark of 08:00, 16:00 and 24:00: 100, 110 and 90
    closes = [100, 100, 100, 100, 110, 110, 110, 110, 90, 90, 90, 90, 90]
    bars = [(100.0, 100.0, 100.0, 100.0), *[(c, c, c, c) for c in map(float, closes)]]
    ts = START - TF + TF * np.arange(len(bars))
    sim = simulate(
        ts,
        *(np.array(column) for column in zip(*bars, strict=True)),
        [0.1] * len(bars),
        SimulationParams(timeframe_ms=TF, delay_ms=0, fee=0.0, slippage=0.0, cap=0.2),
        [START + 8 * HOUR_MS, START + 16 * HOUR_MS, START + 24 * HOUR_MS],
        [0.0001, -0.0003, 0.0002],
    )
    assert sim.payments["payment"].tolist() == pytest.approx([0.10, -0.33, 0.18])
    assert sim.payments["ts"].tolist() == [START + 8 * HOUR_MS, START + 16 * HOUR_MS, START + 24 * HOUR_MS]
    assert sim.nav[-1] == pytest.approx(10_000 - 10 * 10 - 0.10 + 0.33 - 0.18)


@pytest.mark.parametrize("rate", [0.01, -0.01])
def test_a_stop_while_a_limit_order_arrives_is_before_the_settlement_at_the_close(rate: float) -> None:
    # taken at 100 at the close of bar 2, stop at 95; the order to leave arrives in bar 3, which falls to 94 and is
    # settled at its close, when nothing is held any more
    bars = [*flat(100, 3), (100, 100, 94, 100), *flat(100)]
    params = SimulationParams(
        timeframe_ms=TF, delay_ms=TF, fee=0.0, slippage=0.0, cap=0.1, stop_distance=0.05, maker_bars=1
    )
    sim = simulate(
        START + TF * np.arange(5),
        *(np.array(column, dtype=float) for column in zip(*bars, strict=True)),
        [0.1, math.nan, 0.0, 0.0, 0.0],
        params,
        [START + 4 * TF],
        [rate],
    )
    assert sim.fills["reason"].tolist() == ["target", "stop"]
    assert sim.fills["ts"].tolist() == [START + 3 * TF, START + 4 * TF - 1]
    assert sim.payments.empty
    assert sim.nav[-1] == pytest.approx(10_000 - 10 * 5)
