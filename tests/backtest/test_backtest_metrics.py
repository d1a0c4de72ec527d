from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.backtest.metrics import (
    annual_growth,
    compute_metrics,
    daily_returns,
    max_drawdown,
    monthly_returns,
    rolling_sharpe,
    sortino_ratio,
)
from mlbot_core.timeframe import DAY_MS, HOUR_MS

TF = 2 * HOUR_MS
START = 1_704_067_200_000
RETURNS = st.lists(st.floats(-0.2, 0.2), min_size=30, max_size=200).map(np.array)


def test_daily_returns_cover_every_utc_day():
    # Two bars on day 0, none on day 1, one on day 2 that opens at 22:00 and closes at midnight.
    ts = np.array([START, START + 22 * HOUR_MS, START + 2 * DAY_MS + 22 * HOUR_MS])
    daily = daily_returns(ts, np.array([101.0, 110.0, 99.0]), 100.0)
    assert list(daily["day"]) == [START, START + DAY_MS, START + 2 * DAY_MS]
    assert list(daily["ret"]) == pytest.approx([0.1, 0.0, -0.1])
    assert list(daily["nav"]) == [110.0, 110.0, 99.0]


def test_nothing_left_is_a_loss_of_everything_once():
    ts = START + DAY_MS * np.arange(3)
    assert list(daily_returns(ts, np.array([100.0, 0.0, 0.0]), 100.0)["ret"]) == [0.0, -1.0, 0.0]


@pytest.mark.parametrize(
    ("nav", "depth", "days", "recovered"),
    [
        ([110, 99, 121], 0.1, 2, True),
        ([110, 99, 88, 100], 0.2, 3, False),
        ([90, 100, 80, 100, 60], 0.4, 1, False),  # from the last touch of the peak
        ([100, 100], 0.0, 0, True),
        ([101, 102], 0.0, 0, True),
        ([80], 0.2, 1, False),  # the NAV before the first day counts as a peak
        ([], 0.0, 0, True),
    ],
)
def test_drawdown(nav, depth, days, recovered):
    fall = max_drawdown(np.array(nav, dtype=float), 100.0)
    assert fall.depth == pytest.approx(depth)
    assert (fall.days, fall.recovered) == (days, recovered)


@settings(max_examples=50, deadline=None)
@given(returns=RETURNS)
def test_ratios_agree_with_vectorbt(returns):
    import vectorbt as vbt

    index = pd.date_range("2024-01-01", periods=len(returns), freq="D")
    accessor = pd.Series(returns, index=index).vbt.returns(freq="1D", year_freq="365 days")
    assert vbt.__version__.startswith("1.2")
    nav = 100 * np.cumprod(1 + returns)
    # vectorbt takes the first day's close as the first peak; a flat day before it makes that the first NAV.
    before = pd.Series(np.r_[0.0, returns], index=pd.date_range("2023-12-31", periods=len(returns) + 1, freq="D"))
    theirs = before.vbt.returns(freq="1D", year_freq="365 days").max_drawdown()
    assert max_drawdown(nav, 100.0).depth == pytest.approx(-theirs, abs=1e-12)
    assert annual_growth(100.0, nav[-1], len(returns)) == pytest.approx(accessor.annualized(), rel=1e-9, abs=1e-12)
    ours = sortino_ratio(returns)
    if math.isnan(ours):
        assert not (returns < 0).any() or math.sqrt(np.mean(np.minimum(returns, 0) ** 2)) == 0
    else:
        assert ours == pytest.approx(accessor.sortino_ratio(), rel=1e-9)
    window = 20
    theirs = accessor.rolling_sharpe_ratio(window, minp=window).to_numpy()
    mine = rolling_sharpe(returns, window)
    both = np.isfinite(mine) & np.isfinite(theirs)
    moving = np.array([np.ptp(returns[max(0, i - window + 1) : i + 1]) > 1e-6 for i in range(len(returns))])
    np.testing.assert_allclose(mine[both & moving], theirs[both & moving], rtol=1e-5, atol=1e-6)


def test_growth_edges():
    assert math.isnan(annual_growth(1.0, 1.0, 0))
    assert annual_growth(1.0, 0.0, 10) == -1.0
    assert annual_growth(1.0, 2.0, 365) == pytest.approx(1.0)
    assert annual_growth(1.0, 10.0, 1) == math.inf


def test_metrics_by_hand(make_bars, run_sim):
    """Two days of 2 h bars: long at 100 on the first day to 110, short at 110 on the second to 99."""
    bars = make_bars([(100, 100)] * 11 + [(100, 110)] + [(110, 110)] * 11 + [(110, 99)])
    target = [1.0] * 11 + [-1.0] * 12 + [-1.0]
    sim = run_sim(bars, target, initial_nav=1000.0, fee=0.001)
    m = compute_metrics(sim, bars.close)
    # 10 BTC; fee 1. Decided at the close of bar 11 (110, NAV 1099): -9.9909.. BTC, sold 19.9909.. at 110.
    short = 1099.0 / 110
    fee2 = (10 + short) * 110 * 0.001
    assert m.days == 2
    assert m.waterfall.fees == pytest.approx(1.0 + fee2)
    assert m.waterfall.gross == pytest.approx(100 + 0.0 + 11 * short)
    assert m.nav_end == pytest.approx(1000 + 100 + 11 * short - 1 - fee2)
    assert m.total_return == pytest.approx(m.nav_end / 1000 - 1)
    assert (m.trades, m.open_trades) == (1, 1)
    assert m.trade_hits.value == 1.0
    traded = 1000 + (10 + short) * 110
    assert m.traded_value == pytest.approx(traded)
    assert m.break_even_bp == pytest.approx((100 + 11 * short) / traded * 1e4)
    assert m.turnover_per_year == pytest.approx((1.0 + (10 + short) * 110 / 1099) * 365 / 2)
    assert m.time_in_market == pytest.approx(23 / 24)
    assert math.isnan(m.profit_factor)  # nothing was lost


def test_break_even_costs_leave_nothing(random_bars, run_sim):
    """A run charged exactly its break-even cost ends where it began (sizes fixed: tiny positions)."""
    bars = random_bars(400, 5)
    target = np.repeat(np.random.default_rng(1).choice([-1e-4, 0.0, 1e-4], 100), 4)
    free = compute_metrics(run_sim(bars, target), bars.close)
    cost = abs(free.break_even_bp) / 1e4
    charged = compute_metrics(run_sim(bars, target, fee=cost), bars.close)
    expected = free.waterfall.gross - abs(free.waterfall.gross)
    assert charged.waterfall.net == pytest.approx(expected, abs=2e-4 * abs(free.waterfall.gross))


def test_no_trades_one_day_and_nothing_at_all(make_bars, run_sim):
    still = make_bars([(100, 101)] * 24)
    m = compute_metrics(run_sim(still, [0.0] * 24), still.close)
    assert (m.days, m.trades, m.total_return, m.drawdown.depth) == (2, 0, 0.0, 0.0)
    for value in (m.sharpe.value, m.sharpe.low, m.sortino, m.mar, m.profit_factor, m.break_even_bp, m.trade_hits.value):
        assert math.isnan(value)
    day = make_bars([(100, 101)] * 12)
    m = compute_metrics(run_sim(day, [1.0] * 12), day.close)
    assert m.days == 1
    assert math.isnan(m.sharpe.value)
    assert math.isnan(m.volatility)
    gone = make_bars([None] * 24)
    m = compute_metrics(run_sim(gone, [1.0] * 24), gone.close)
    assert (m.days, m.trades, m.nav_end) == (2, 0, 10_000.0)
    empty = make_bars([])
    m = compute_metrics(run_sim(empty, []), empty.close)
    assert m.days == 0
    assert math.isnan(m.cagr)


def test_monthly_returns_compound_and_leave_gaps():
    days = pd.date_range("2023-12-30", periods=4, freq="D", tz="UTC")
    daily = pd.DataFrame({"day": days.as_unit("ms").astype("int64"), "ret": [0.1, 0.1, -0.5, 0.2]})
    table = monthly_returns(daily)
    assert list(table.index) == [2023, 2024]
    assert table.loc[2023, 12] == pytest.approx(0.21)
    assert table.loc[2024, 1] == pytest.approx(-0.4)
    assert table.loc[2024, "year"] == pytest.approx(-0.4)
    assert math.isnan(table.loc[2023, 1])
    assert monthly_returns(daily.iloc[:0]).empty
