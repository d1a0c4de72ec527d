"""Regimes of markets: by hand, blind to the future, and what the report says of them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.backtest.measures import money, regime_table
from mlbot_core.backtest.plots_spread import duration, holding_figure, regime_figure
from mlbot_core.backtest.regimes import MIN_VALUES, WINDOW_DAYS, by_regime, daily_regimes
from mlbot_core.timeframe import DAY_MS, HOUR_MS

START = 1_704_067_200_000
TF = 6 * HOUR_MS


def _walk(days: int, seed: int = 0, deviation: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = days * 4
    return START + TF * np.arange(n, dtype=np.int64), 100 * np.exp(np.cumsum(rng.normal(0, deviation / 2, n)))


def _days(n: int, first: int = 0) -> np.ndarray:
    return START + DAY_MS * np.arange(first, first + n, dtype=np.int64)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), day=st.integers(WINDOW_DAYS + MIN_VALUES + 2, 200))
def test_a_days_regime_rests_on_what_closed_before_it(seed: int, day: int) -> None:
    ts, close = _walk(200, seed)
    whole = daily_regimes(ts, close, _days(200))
    before = ts < START + day * DAY_MS
    cut = daily_regimes(ts[before], close[before], _days(day + 1))
    assert cut.iloc[day].to_dict() == whole.iloc[min(day, 199)].to_dict() or day == 200
    assert cut.iloc[day]["volatility"] is not None
    changed = close.copy()
    changed[~before] *= np.exp(np.random.default_rng(seed + 1).normal(0, 0.3, int((~before).sum())))
    other = daily_regimes(ts, changed, _days(day + 1))
    pd.testing.assert_frame_equal(other, cut)


def test_volatility_by_hand() -> None:
    # 100 days of alternating moves of 1 %, then 60 of 3 %, then 60 of 0.5 %
    moves = np.r_[np.full(100, 0.01), np.full(60, 0.03), np.full(60, 0.005)] * np.resize([1.0, -1.0], 220)
    close = 100 * np.exp(np.cumsum(moves))
    ts = _days(220)
    found = daily_regimes(ts, close, ts)
    # the first deviation needs 30 moves, the first rank 60 deviations, and a day counts on the next
    assert found["volatility"].iloc[: WINDOW_DAYS + MIN_VALUES].isna().all()
    assert found["volatility"].iloc[WINDOW_DAYS + MIN_VALUES] is not None
    assert (found["volatility"].iloc[115:160] == "high").all()
    assert (found["volatility"].iloc[195:] == "low").all()
    # moves that cancel out are no trend
    for part in (slice(40, 100), slice(131, 160), slice(195, 220)):
        assert set(found["trend"].iloc[part]) == {"sideways"}


def test_trend_by_hand() -> None:
    rng = np.random.default_rng(2)
    moves = np.r_[rng.normal(0.01, 0.005, 60), rng.normal(-0.01, 0.005, 60)]
    found = daily_regimes(_days(120), 100 * np.exp(np.cumsum(moves)), _days(120))
    assert (found["trend"].iloc[32:61] == "up").all()
    assert (found["trend"].iloc[92:] == "down").all()


def test_days_without_bars_and_nothing_known() -> None:
    ts, close = _walk(150)
    gone = (ts >= START + 120 * DAY_MS) & (ts < START + 123 * DAY_MS)
    found = daily_regimes(ts[~gone], close[~gone], _days(150))
    assert found["volatility"].iloc[121] is not None
    nothing = daily_regimes(ts, np.full(len(ts), math.nan), _days(3))
    assert nothing["trend"].isna().all()
    assert daily_regimes(ts, close, _days(0)).empty
    # days that begin before the record have none
    assert daily_regimes(ts, close, _days(5, -5))["trend"].isna().all()


def test_what_a_regime_was_worth_adds_up() -> None:
    ts, close = _walk(400, 5)
    rng = np.random.default_rng(6)
    days = _days(400)
    daily = pd.DataFrame({"day": days, "unit": rng.normal(0.001, 0.02, 400), "hold": rng.normal(0, 0.02, 400)})
    opened = days[100:300] + 5 * HOUR_MS
    trades = pd.DataFrame({"opened": opened, "closed": opened + DAY_MS, "pnl": rng.normal(0, 1, 200)})
    trades.loc[199, "closed"] = -1
    regimes = daily_regimes(ts, close, days)
    rows = by_regime(regimes, daily, trades)
    for kind in ("volatility", "trend"):
        mine = [row for row in rows if row.kind == kind]
        known = daily[regimes[kind].notna().to_numpy()]
        assert sum(row.days for row in mine) == len(known)
        assert np.prod([1 + row.total_return for row in mine]) == pytest.approx(np.prod(1 + known["unit"]))
        assert sum(row.trades for row in mine) == 199
    figure = regime_figure(rows)
    assert figure is not None
    assert len(figure["data"][0]["y"]) == len(rows) == 6
    assert "volatility high" in regime_table(rows)
    assert by_regime(regimes.assign(volatility=None, trend=None), daily, trades) == ()
    assert regime_figure(()) is None


def test_holding_times_fall_into_doubling_buckets() -> None:
    hours = [0.5, 2, 2.001, 4, 7, 16, 17]
    trades = pd.DataFrame(
        {
            "opened": np.full(7, START),
            "closed": START + (np.array(hours) * HOUR_MS).astype(np.int64),
            "pnl": [1.0, 1.0, -1.0, 1.0, -1.0, 0.0, 5.0],
        }
    )
    drawn = holding_figure(trades, 2 * HOUR_MS)
    assert drawn is not None
    won, lost = drawn[0]["data"]
    assert won["x"] == ["≤ 2h", "≤ 4h", "≤ 8h", "≤ 16h", "≤ 1.3d"]
    assert won["y"] == [2, 1, 0, 0, 1]
    assert lost["y"] == [0, 1, 1, 1, 0]
    assert "half were held for 4h or less, the longest for 17h" in drawn[1]
    assert holding_figure(trades.assign(closed=-1), 2 * HOUR_MS) is None


def test_lengths_and_money_for_people() -> None:
    assert [duration(ms) for ms in (45 * 60_000, 2 * HOUR_MS, 36 * HOUR_MS)] == ["45m", "2h", "1.5d"]
    assert [money(v) for v in (math.nan, 0.0, 1_234.0, 5_250_000.0, 2.5e9)] == ["–", "0", "1.23 k", "5.25 m", "2.5 bn"]
