"""Flows, tails, drawdown lengths and capacity: by hand, and against vectorbt's own functions."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.backtest.capacity import capacities
from mlbot_core.backtest.metrics import (
    bar_growth,
    calmar_ratio,
    compute_metrics,
    daily_returns,
    longest_drawdown,
    max_drawdown,
    tail_ratio,
)
from mlbot_core.backtest.simulator import SimulationParams, simulate
from mlbot_core.backtest.sweep import sweep
from mlbot_core.timeframe import DAY_MS, HOUR_MS
from mlbot_core.validation.significance import sharpe_ratio

TF = 2 * HOUR_MS
START = 1_704_067_200_000
A_DAY = DAY_MS // TF
RETURNS = st.lists(st.floats(-0.2, 0.2), min_size=30, max_size=200).map(np.array)


def _sim(prices, target, flows=None, volume=None, **params):
    p = np.array(prices, dtype=float)
    chosen = {"timeframe_ms": TF, "delay_ms": 0, "fee": 0.0, "slippage": 0.0, "initial_nav": 1_000.0, **params}
    more = {} if flows is None else {"flows": flows}
    more |= {} if volume is None else {"volume": volume}
    sim = simulate(START + TF * np.arange(len(p)), p, p, p, p, target, SimulationParams(**chosen), **more)
    return sim, p


def test_a_deposit_is_no_return_and_a_withdrawal_no_loss():
    # 10 coins from bar 1 at 100; day 1 opens with a deposit of 9,000, day 2 with a withdrawal of 5,000
    prices = [100.0] * A_DAY + [110.0] * A_DAY + [121.0] * A_DAY
    flows = np.zeros(len(prices))
    flows[A_DAY], flows[2 * A_DAY] = 9_000.0, -5_000.0
    sim, close = _sim(prices, [1.0, *[math.nan] * (len(prices) - 1)], flows, cap=3.0)
    daily = daily_returns(sim.ts, sim.nav, 1_000.0, sim.flows)
    # 1,000; then 10,000 earn 100; then 10,100 - 5,000 = 5,100 earn 110
    assert daily["nav"].tolist() == pytest.approx([1_000.0, 10_100.0, 5_210.0])
    assert daily["ret"].tolist() == pytest.approx([0.0, 100 / 10_000, 110 / 5_100])
    m = compute_metrics(sim, close)
    assert m.total_return == pytest.approx(1.01 * (1 + 110 / 5_100) - 1)
    assert (m.flows, m.nav_end) == (4_000.0, pytest.approx(5_210.0))
    assert m.waterfall.net == pytest.approx(210.0)
    assert m.waterfall.net == pytest.approx(m.waterfall.gross)
    assert (m.drawdown.depth, m.drawdown_intrabar) == (0.0, 0.0)
    row = sweep(lambda _: sim, [sim.params]).iloc[0]
    assert row["net_return"] == pytest.approx(m.total_return)


def test_withdrawing_everything_stops_growth_and_losing_everything_ends_it():
    nav = np.array([100.0, 110.0, 0.0, 0.0, 50.0, 55.0])
    flows = np.array([0.0, 0.0, -110.0, 0.0, 50.0, 0.0])
    assert bar_growth(nav, 100.0, flows).tolist() == pytest.approx([1.0, 1.1, 1.1, 1.1, 1.1, 1.21])
    lost = np.array([100.0, 0.0, 50.0, 60.0])
    assert bar_growth(lost, 100.0, np.array([0.0, 0.0, 50.0, 0.0])).tolist() == [1.0, 0.0, 0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    flows=st.lists(st.sampled_from([0.0, 0.0, 0.0, 500.0, -300.0]), min_size=48, max_size=48),
)
def test_an_account_with_flows_grows_like_one_without(seed, flows):
    """All-in all the time and free of charge, growth is that of the price, whatever is paid in and out."""
    prices = 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.01, 48)))
    moved = np.array(flows)
    params = {"rebalance_band": 0.0, "cap": 1.0}
    # without flows, and with flows of the same fraction of whatever there is
    plain, _ = _sim(prices, np.zeros(48), **params)
    held, _ = _sim(prices, np.zeros(48), moved + 1_000.0 * (np.arange(48) == 0), **params)
    for sim in (plain, held):
        assert bar_growth(sim.nav, 1_000.0, sim.flows) == pytest.approx(np.ones(48))
    half, close = _sim(prices, np.full(48, 0.5), moved + 50_000.0 * (np.arange(48) == 0), **params)
    growth = bar_growth(half.nav, 1_000.0, half.flows)
    # of each bar: the position carried in at the open, over the NAV with the flow
    before = np.r_[1_000.0, half.nav[:-1]] + half.flows
    earned = half.gross / before
    assert growth == pytest.approx(np.cumprod(1 + earned))
    assert np.prod(1 + daily_returns(half.ts, half.nav, 1_000.0, half.flows)["ret"]) == pytest.approx(growth[-1])
    assert compute_metrics(half, close).total_return == pytest.approx(growth[-1] - 1)


@settings(max_examples=50, deadline=None)
@given(returns=RETURNS)
def test_ratios_and_lengths_agree_with_vectorbt(returns):
    import vectorbt  # noqa: F401 - registers the accessor

    index = pd.date_range("2024-01-01", periods=len(returns), freq="D")
    accessor = pd.Series(returns, index=index).vbt.returns(freq="1D", year_freq="365 days")
    if np.abs(np.percentile(returns, 5)) > 0:
        assert tail_ratio(returns) == pytest.approx(accessor.tail_ratio(), rel=1e-9)
    else:
        assert math.isnan(tail_ratio(returns))
    if np.ptp(returns) > 1e-6:
        assert sharpe_ratio(returns) == pytest.approx(accessor.sharpe_ratio(), rel=1e-9, abs=1e-12)
    before = pd.Series(np.r_[0.0, returns], index=pd.date_range("2023-12-31", periods=len(returns) + 1, freq="D"))
    fall = before.vbt.returns(freq="1D", year_freq="365 days").max_drawdown()
    if fall < -1e-9:
        assert calmar_ratio(returns) == pytest.approx(accessor.annualized() / -fall, rel=1e-9, abs=1e-12)
    growth = np.cumprod(1 + returns)
    path = pd.Series(np.r_[1.0, growth], index=before.index)
    theirs = path.vbt.drawdowns
    if theirs.count():
        records = theirs.records_readable
        # vectorbt's drawdown starts at the peak and ends at the recovery, or at the last day
        lengths = (records["End Timestamp"] - records["Peak Timestamp"]).dt.days
        assert longest_drawdown(growth) == int(lengths.max())
    else:
        assert longest_drawdown(growth) == 0
    assert longest_drawdown(growth) >= max_drawdown(growth, 1.0).days


def test_calmar_looks_at_the_last_three_years_only():
    crash = np.r_[[-0.5], np.full(1_000, 0.0005), [-0.1], np.full(1_000, 0.001)]
    recent = crash[-1_095:]
    growth = np.cumprod(1 + recent)
    assert calmar_ratio(crash) == pytest.approx((growth[-1] ** (365 / 1_095) - 1) / 0.1)
    assert math.isnan(calmar_ratio(np.full(10, 0.01)))
    assert math.isnan(calmar_ratio(np.array([])))


def test_tails_by_hand():
    returns = np.r_[np.full(10, -0.02), np.zeros(80), np.full(10, 0.03)]
    assert tail_ratio(returns) == pytest.approx(1.5)
    assert math.isnan(tail_ratio(np.zeros(100)))
    assert math.isnan(tail_ratio(np.array([])))


def test_capacity_by_hand():
    # 1,000 USD at 100: 10 % of NAV is one coin in a bar of 200 coins; then 60 % the other way in one of 40 coins
    prices = [100.0] * 4
    volume = np.array([9.0, 200.0, 40.0, 9.0])
    sim, _ = _sim(prices, [0.1, -0.5, math.nan, math.nan], volume=volume)
    one, five, ten = capacities(sim, volume)
    # orders of 0.1 of NAV against 20,000 USD and of 0.6 of NAV against 4,000 USD: a bar each at 200,000 and at 6,667
    assert (one.share, five.share, ten.share) == (0.01, 0.05, 0.10)
    assert (one.nav, five.nav, ten.nav) == pytest.approx((4_000 / 60, 4_000 / 12, 4_000 / 6))
    assert one.nav_every == one.nav
    assert one.orders == 2
    # at that NAV the larger order is one per cent of its bar
    at_capacity, _ = _sim(prices, [0.1, -0.5, math.nan, math.nan], volume=volume, initial_nav=one.nav)
    assert (at_capacity.fills["btc"] / volume[at_capacity.fills["bar"]]).max() == pytest.approx(0.01)


def test_an_order_in_parts_is_one_and_all_but_the_strictest_twentieth_count():
    volume = np.full(8, 5.0)
    parts, _ = _sim([100.0] * 8, [0.1, *[math.nan] * 7], volume=volume, participation=0.1, cap=0.2)
    assert len(parts.fills) == 2
    (one, *_) = capacities(parts, volume)
    assert one.orders == 1
    # 100 USD of 1,000 in bars of 500
    assert one.nav == pytest.approx(0.01 * 500 / 0.1)
    many, _ = _sim([100.0] * 200, np.tile([0.1, 0.0], 100), volume=np.full(200, 100.0))
    volumes = np.full(200, 100.0)
    volumes[50] = 1.0
    usual, *_ = capacities(many, volumes)
    assert usual.nav == pytest.approx(0.01 * 10_000 / 0.1)
    assert usual.nav_every == pytest.approx(0.01 * 100 / 0.1)


def test_without_a_known_volume_there_is_no_capacity():
    sim, close = _sim([100.0] * 4, [0.1, 0.0, 0.0, 0.0])
    for volume in (None, np.full(4, math.nan)):
        assert all(math.isnan(c.nav) and c.orders == 0 for c in compute_metrics(sim, close, volume).capacities)


def test_limit_orders_and_holding_times_are_counted():
    bars = [100.0, 99.0, 98.0, 98.0, 98.0, 97.0, 97.0]
    target = [0.1, math.nan, math.nan, 0.0, 0.0, 0.0, 0.0]
    sim, close = _sim(bars, target, maker_bars=2, maker_fee=0.0001, fee=0.001)
    m = compute_metrics(sim, close)
    # in through the limit at 99; the way out never gets beyond its price in its bars, and takes
    assert sim.fills["maker"].tolist() == [True, False]
    traded = sim.fills["btc"] * sim.fills["mid"]
    assert m.maker_share == pytest.approx(traded[sim.fills["maker"]].sum() / traded.sum())
    assert m.median_holding_ms == float(sim.fills["ts"].iloc[1] - sim.fills["ts"].iloc[0])
