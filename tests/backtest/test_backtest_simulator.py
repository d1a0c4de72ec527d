"""Hand-computed goldens of the simulator.

Invariants that hold for every run (checked in test_backtest_properties.py):
nav_end = nav_0 + gross - fees - slippage - funding; what happens up to a bar does not depend on later bars.
"""

from __future__ import annotations

import numpy as np
import pytest

from mlbot_core.backtest.roundtrips import round_trips
from mlbot_core.backtest.simulator import SimulationParams
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import HOUR_MS

TF = 2 * HOUR_MS
START = 1_704_067_200_000


def test_fee_and_slippage_of_one_round_trip(make_bars, run_sim):
    bars = make_bars([(100, 100), (100, 110), (110, 121), (121, 121)])
    # Decided flat -> long at close 0 (NAV 1000, price 100: 10 BTC), long -> flat at close 1.
    sim = run_sim(bars, [1.0, 0.0, 0.0, 0.0], fee=0.001, slippage=0.002, initial_nav=1000.0)
    assert len(sim.fills) == 2
    buy, sell = sim.fills.iloc[0], sim.fills.iloc[1]
    # Buy 10 at the open of bar 1, 100 x 1.002; fee 1 per mille of 1002.
    assert (buy["ts"], buy["side"], buy["btc"], buy["mid"]) == (START + TF, 1, 10.0, 100.0)
    assert buy["price"] == pytest.approx(100.2, rel=1e-15)
    assert buy["fee"] == pytest.approx(1.002, rel=1e-15)
    assert buy["slippage"] == pytest.approx(2.0, rel=1e-15)
    # Sell 10 at the open of bar 2, 110 x 0.998 = 109.78; fee 1.0978.
    assert (sell["ts"], sell["side"], sell["btc"], sell["mid"]) == (START + 2 * TF, -1, 10.0, 110.0)
    assert sell["price"] == pytest.approx(109.78, rel=1e-15)
    assert sell["fee"] == pytest.approx(1.0978, rel=1e-15)
    assert sell["slippage"] == pytest.approx(2.2, rel=1e-15)
    # Net: 10 x (109.78 - 100.2) - 1.002 - 1.0978 = 95.8 - 2.0998 = 93.7002
    assert sim.nav[-1] == pytest.approx(1093.7002, rel=1e-14)
    assert sim.gross.sum() == pytest.approx(100.0, rel=1e-14)
    assert list(sim.position) == [0.0, 10.0, 0.0, 0.0]
    assert sim.nav[1] == pytest.approx(1000 + 100 - 2.0 - 1.002, rel=1e-14)
    trip = round_trips(sim, 121.0).iloc[0]
    assert trip["pnl"] == pytest.approx(93.7002, rel=1e-12)
    assert trip["ret"] == pytest.approx(0.0937002, rel=1e-12)
    assert (trip["opened"], trip["closed"], trip["entry"], trip["exit"]) == (START + TF, START + 2 * TF, 100.0, 110.0)


def test_the_fill_is_the_bridge_at_the_moment_of_decision(make_bars, run_sim):
    bars = make_bars([(100, 100), (100, 120), (120, 60)])
    delay = TF // 4
    sim = run_sim(bars, [0.5, 0.0, 0.0], delay_ms=delay, initial_nav=1000.0)
    # A quarter into bar 1: 100 + 20/4 = 105. A quarter into bar 2: 120 - 60/4 = 105.
    assert list(sim.fills["mid"]) == [105.0, 105.0]
    assert list(sim.fills["ts"]) == [START + TF + delay, START + 2 * TF + delay]
    assert (sim.fills["ts"] >= START + TF * (1 + sim.fills["bar"] - 1) + delay).all()
    # 5 BTC: gains 5 x (120 - 105), then loses 5 x (120 - 105).
    assert sim.nav[1] == pytest.approx(1075.0)
    assert sim.nav[2] == pytest.approx(1000.0)


def test_a_delay_of_a_whole_bar_fills_at_its_close(make_bars, run_sim):
    sim = run_sim(make_bars([(100, 100), (100, 130)]), [1.0, 1.0], delay_ms=TF)
    assert sim.fills["mid"].iloc[0] == 130.0


def test_funding_over_three_settlements(make_bars, run_sim):
    """Long 10 BTC from the open of bar 1; settlements at the closes of bars 3 and 7 and, flat again, of bar 11."""
    closes = [100, 100, 100, 104, 100, 100, 100, 90, 90, 90, 90, 90]
    bars = make_bars([(c, c) for c in closes])
    funding = {
        START: 0.01,  # before anything is held
        START + 4 * TF: 0.001,  # 08:00, the close of bar 3 at 104: 10 x 104 x 0.001 = 1.04 paid
        START + 8 * TF: -0.002,  # 16:00, the close of bar 7 at 90: 10 x 90 x -0.002 = 1.80 received
        START + 12 * TF: 0.005,  # 24:00, flat since the open of bar 9
    }
    target = [1.0] * 8 + [0.0] * 4
    sim = run_sim(bars, target, funding, initial_nav=1000.0)
    assert list(sim.payments["ts"]) == [START + 4 * TF, START + 8 * TF]
    assert list(sim.payments["payment"]) == pytest.approx([1.04, -1.80], rel=1e-14)
    assert list(sim.payments["price"]) == [104.0, 90.0]
    assert sim.funding[3] == pytest.approx(1.04)
    assert sim.funding[7] == pytest.approx(-1.80)
    # The NAV at the close of bar 3 knows of the settlement at that instant.
    assert sim.nav[3] == pytest.approx(1000 + 40 - 1.04)
    assert sim.nav[-1] == pytest.approx(1000 - 100 - 1.04 + 1.80)


def test_a_short_receives_positive_funding(make_bars, run_sim):
    bars = make_bars([(100, 100)] * 6)
    sim = run_sim(bars, [-1.0] * 6, {START + 4 * TF: 0.001}, initial_nav=1000.0)
    assert sim.funding.sum() == pytest.approx(-1.0)
    assert sim.nav[-1] == pytest.approx(1001.0)


def test_who_holds_at_the_settlement_pays_also_inside_a_bar(make_bars, run_sim):
    """Daily bars, settled at 08:00 and 16:00 inside; the order is filled at 12:00."""
    day = 24 * HOUR_MS
    bars = make_bars([(100, 100), (100, 124)], timeframe=day)
    funding = {START + day + 8 * HOUR_MS: 0.01, START + day + 16 * HOUR_MS: 0.01}
    sim = run_sim(bars, [1.0, 1.0], funding, timeframe_ms=day, delay_ms=12 * HOUR_MS, initial_nav=1000.0)
    # Held from 12:00 on: the settlement at 16:00 only, at the bridge 100 + 24 x 16/24 = 116 for 10 BTC.
    assert list(sim.payments["ts"]) == [START + day + 16 * HOUR_MS]
    assert sim.payments["price"].iloc[0] == pytest.approx(116.0)
    assert sim.payments["payment"].iloc[0] == pytest.approx(11.6)


@pytest.mark.parametrize("delay", [0, 5_000])
def test_a_settlement_at_the_close_is_paid_by_the_position_before_the_next_fill(make_bars, run_sim, delay):
    bars = make_bars([(100, 100)] * 6)
    # Flat -> long is decided at the close of bar 3, which is a settlement, and filled after it.
    sim = run_sim(bars, [0, 0, 0, 1.0, 1.0, 1.0], {START + 4 * TF: 0.01}, delay_ms=delay)
    assert len(sim.fills) == 1
    assert len(sim.payments) == 0


def test_a_missing_bar_lets_the_order_wait_and_is_paid_at_the_last_close(make_bars, run_sim):
    bars = make_bars([(100, 100), None, None, (110, 112), (112, 112), None, (120, 120)])
    delay = TF // 2
    target = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    funding = {START + 6 * TF: 0.01}
    sim = run_sim(bars, target, funding, delay_ms=delay, initial_nav=1000.0)
    # Decided at 100 (10 BTC), filled half way through bar 3 at 111; targets in missing bars are not seen.
    assert len(sim.fills) == 1
    assert sim.fills["bar"].iloc[0] == 3
    assert sim.fills["mid"].iloc[0] == 111.0
    assert sim.fills["btc"].iloc[0] == 10.0
    # Bar 5 is missing; its close is a settlement, paid at the last close, 112.
    assert sim.payments["price"].iloc[0] == 112.0
    assert sim.nav[5] == pytest.approx(1010 - 11.2)
    assert sim.nav[6] == pytest.approx(1090 - 11.2)


def test_absent_rows_are_missing_bars_too(make_bars, run_sim):
    full = make_bars([(100, 100), (100, 101), None, None, (105, 106)])
    keep = [0, 1, 4]
    cut = type(full)(*(getattr(full, name)[keep] for name in ("ts", "open", "high", "low", "close")))
    funding = {START + 3 * TF: 0.01, START + 4 * TF: 0.02}
    whole = run_sim(full, [1.0, -1.0, 0.0, 0.0, 0.0], funding, fee=0.001)
    sparse = run_sim(cut, [1.0, -1.0, 0.0], funding, fee=0.001)
    assert whole.nav[-1] == pytest.approx(sparse.nav[-1], rel=1e-14)
    assert list(whole.payments["ts"]) == list(sparse.payments["ts"])


def test_trimming_above_the_cap(make_bars, run_sim):
    """Short 10 % of 1000 at 100: 1 BTC. At 104 the share is 104/996 = 10.44 %, at 106 106/994 = 10.66 % > 10.5 %."""
    bars = make_bars([(100, 100), (100, 104), (104, 106), (106, 106), (106, 106)])
    sim = run_sim(bars, [-0.1] * 5, initial_nav=1000.0, cap=0.1)
    assert list(sim.fills["reason"]) == ["target", "trim"]
    trim = sim.fills.iloc[1]
    assert trim["bar"] == 3
    # Back to 10 % of 994 at 106.
    assert trim["btc"] == pytest.approx(1.0 - 99.4 / 106)
    assert trim["side"] == 1
    assert sim.position[-1] == pytest.approx(-99.4 / 106)


def test_size_comes_from_the_nav_at_the_decision(make_bars, run_sim):
    """Long 10 BTC from 100 to 120, less 1.00 of fee and 1.20 of funding: NAV 1197.80 at 120 is 9.98166.. BTC."""
    bars = make_bars([(100, 100), (100, 100), (100, 100), (100, 120), (120, 120), (120, 120)])
    sim = run_sim(bars, [1, 1, 1, -1, -1, -1], {START + 4 * TF: 0.001}, fee=0.001, initial_nav=1000.0)
    assert sim.nav[3] == pytest.approx(1000 + 200 - 1.0 - 1.2)
    assert sim.position[-1] == pytest.approx(-1197.8 / 120)
    assert sim.fills["nav"].iloc[1] == pytest.approx(1197.8)


def test_no_cap_no_trim(make_bars, run_sim):
    bars = make_bars([(100, 100), (100, 150), (150, 150)])
    assert len(run_sim(bars, [-1.0] * 3).fills) == 1


def test_the_rebalance_band_trades_an_unchanged_target(make_bars, run_sim):
    bars = make_bars([(100, 100), (100, 120), (120, 120)])
    sim = run_sim(bars, [0.5] * 3, initial_nav=1000.0, rebalance_band=0.04)
    # 5 BTC: 600/1100 = 54.5 %, more than 4 points above 50 %.
    assert list(sim.fills["reason"]) == ["target", "drift"]
    assert sim.position[-1] == pytest.approx(550 / 120)
    assert len(run_sim(bars, [0.5] * 3, initial_nav=1000.0, rebalance_band=0.05).fills) == 1


def test_an_unchanged_target_is_not_traded_and_nan_is_no_decision(make_bars, run_sim):
    bars = make_bars([(100, 100), (100, 120), (120, 90), (90, 90)])
    sim = run_sim(bars, [0.5, np.nan, 0.5, np.nan])
    assert len(sim.fills) == 1


def test_bankruptcy_ends_the_run_with_nothing_owed(make_bars, run_sim):
    """Short 100 % at 100; the high of bar 2 is 250: the account is taken over at 200, where NAV is zero."""
    bars = make_bars([(100, 100), (100, 100), (100, 120), (120, 50), (50, 50)])
    bars.high[2] = 250.0
    sim = run_sim(bars, [-1.0, -1.0, -1.0, -1.0, 1.0], {START + 4 * TF: 0.01}, initial_nav=1000.0)
    assert sim.bankrupt
    assert sim.bankrupt_bar == 2
    assert list(sim.nav) == [1000.0, 1000.0, 0.0, 0.0, 0.0]
    assert list(sim.fills["reason"]) == ["target", "bankrupt"]
    assert sim.fills["price"].iloc[1] == pytest.approx(200.0)
    assert len(sim.payments) == 0
    assert sim.gross.sum() == pytest.approx(-1000.0)


def test_the_low_of_a_bar_is_seen_by_a_long(make_bars, run_sim):
    bars = make_bars([(100, 100), (100, 101)])
    bars.low[1] = 80.0
    sim = run_sim(bars, [1.0, 1.0], initial_nav=1000.0)
    assert sim.nav_low[1] == pytest.approx(800.0)
    assert sim.nav[1] == pytest.approx(1010.0)


def test_a_reversal_is_one_fill_and_two_round_trips(make_bars, run_sim):
    bars = make_bars([(100, 100), (100, 110), (110, 99), (99, 99)])
    sim = run_sim(bars, [1.0, -1.0, 0.0, 0.0], fee=0.001, initial_nav=1000.0)
    assert list(sim.fills["side"]) == [1, -1, 1]
    trips = round_trips(sim, 99.0)
    assert list(trips["side"]) == [1, -1]
    assert (trips["closed"] > 0).all()
    assert trips["pnl"].sum() == pytest.approx(sim.nav[-1] - 1000.0, rel=1e-12)
    assert trips["fees"].sum() == pytest.approx(sim.fees.sum(), rel=1e-12)


def test_no_bars_and_all_nan_do_nothing(make_bars, run_sim):
    assert len(run_sim(make_bars([]), []).nav) == 0
    sim = run_sim(make_bars([None] * 5), [1.0] * 5, {START + 4 * TF: 0.01}, initial_nav=1000.0)
    assert list(sim.nav) == [1000.0] * 5
    assert len(sim.fills) == len(sim.payments) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delay_ms": TF + 1}, "does not fit"),
        ({"delay_ms": -1}, "does not fit"),
        ({"fee": -0.1}, "fee is -0.1"),
        ({"slippage": 1.0}, "slippage is 1.0"),
        ({"initial_nav": 0.0}, "initial_nav is 0.0"),
        ({"timeframe_ms": 0}, "positive length"),
        ({"cap": 0.0}, "cap 0.0"),
    ],
)
def test_wrong_parameters_are_named(changes, message):
    with pytest.raises(UsageError, match=message):
        SimulationParams(**{"timeframe_ms": TF, "delay_ms": 0, "fee": 0.0, "slippage": 0.0, **changes})


def test_wrong_data_are_named(make_bars, run_sim):
    bars = make_bars([(100, 100), (100, 100)])
    with pytest.raises(UsageError, match=r"target 0\.5 .* exceeds the cap"):
        run_sim(bars, [0.0, 0.5], cap=0.1)
    with pytest.raises(UsageError, match="2 times but"):
        run_sim(bars, [0.0])
    bars.ts[1] = bars.ts[0]
    with pytest.raises(UsageError, match="overlaps"):
        run_sim(bars, [0.0, 0.0])
    zero = make_bars([(100, 100), (100, 0)])
    with pytest.raises(UsageError, match=r"price 0\.0"):
        run_sim(zero, [0.0, 0.0])
    with pytest.raises(UsageError, match="funding rate nan"):
        run_sim(make_bars([(1, 1)]), [0.0], {START: float("nan")})
