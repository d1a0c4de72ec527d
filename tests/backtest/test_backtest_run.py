from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from mlbot_core.backtest.portfolio import BookkeepingError, VectorbtView, require_agreement
from mlbot_core.backtest.run import run_backtest
from mlbot_core.backtest.skill import forecast_skill
from mlbot_core.errors import MissingDataError, UsageError
from mlbot_core.timeframe import DAY_MS, HOUR_MS

TF = 2 * HOUR_MS


@pytest.fixture(scope="module")
def data(make_input):
    return make_input()


@pytest.fixture(scope="module")
def result(data):
    return run_backtest(data)


def test_both_sizes_trade_the_same_signs(result):
    traded, unit = result.simulations["traded"], result.simulations["unit"]
    assert len(result.fills) > 10
    np.testing.assert_array_equal(np.sign(traded.position), np.sign(unit.position))
    close = result.equity["close"].to_numpy()
    share = np.abs(traded.position) * close / traded.nav
    assert share.max() <= 0.1 * 1.05 * 1.05
    first = unit.fills.iloc[0]
    assert first["btc"] * close[first["bar"] - 1] == pytest.approx(10_000)
    assert result.fills["btc"].iloc[0] * close[first["bar"] - 1] == pytest.approx(1_000)


def test_delay_is_settle_delay_and_latency(result, data):
    into = (result.fills["ts"] - data.bars["ts"].iloc[0]) % TF
    assert set(into) == {data.settle_delay_ms + data.latency_ms}


def test_frames_belong_together(result, data):
    equity, daily = result.equity, result.daily
    assert list(equity.columns) == ["ts", "nav_traded", "nav_unit", "nav_hold", "close", "position"]
    assert len(equity) == len(data.bars)
    assert (result.start_ms, result.end_ms) == (data.bars["ts"].iloc[0], data.bars["ts"].iloc[-1] + TF)
    assert len(daily) == (result.end_ms - result.start_ms) // DAY_MS
    for name in ("traded", "unit", "hold"):
        growth = float(np.prod(1 + daily[name]))
        assert growth == pytest.approx(equity[f"nav_{name}"].iloc[-1] / 10_000, rel=1e-12)
    hold = result.metrics["hold"]
    price = data.bars["close"].iloc[-1] / data.bars["open"].iloc[1]
    assert hold.waterfall.gross / 10_000 == pytest.approx(price - 1, abs=0.02)
    assert result.vectorbt.trades["count"] == result.metrics["traded"].trades
    assert result.verdict.refused  # 60 days are too few
    assert "days" in result.verdict.outcome


def test_later_data_change_nothing_before(data, result):
    n = 400
    cut_ts = int(data.bars["ts"].iloc[n - 1])
    frames = {name: getattr(data, name) for name in ("bars", "forecasts", "targets", "funding")}
    early = {name: frame[frame["ts"] <= cut_ts].reset_index(drop=True) for name, frame in frames.items()}
    # Labels that are not known yet at the cut.
    early["targets"].loc[n - 12 :, ["label", "t1"]] = np.nan
    cut = run_backtest(dataclasses.replace(data, **early))
    for column in ("nav_traded", "nav_unit", "nav_hold", "position"):
        # The settlement at the very close of the last bar lies beyond the cut of the funding frame.
        np.testing.assert_array_equal(cut.equity[column].iloc[: n - 1], result.equity[column].iloc[: n - 1])


def test_forecasts_that_end_early_leave_one_bar_to_fill(make_input):
    data = make_input()
    short = dataclasses.replace(data, forecasts=data.forecasts.iloc[100:500].reset_index(drop=True))
    result = run_backtest(short)
    assert result.equity["ts"].iloc[0] == data.bars["ts"].iloc[100]
    assert result.equity["ts"].iloc[-1] == data.bars["ts"].iloc[500]
    assert len(result.equity) == 401


def test_a_hole_in_bars_and_forecasts_is_told_and_flat(make_input):
    data = make_input()
    bars = data.bars.drop(index=range(200, 205)).reset_index(drop=True)
    forecasts = data.forecasts.drop(index=range(300, 310)).reset_index(drop=True)
    result = run_backtest(dataclasses.replace(data, bars=bars, forecasts=forecasts))
    assert any(note.startswith("5 of 720 bars are not recorded") for note in result.notes)
    assert any(note.startswith("10 bars have no forecast") for note in result.notes)
    assert (result.equity["position"].iloc[301:310] == 0).all()
    filled = result.fills["bar"]
    assert not filled.between(200, 204).any()


def test_without_funding_it_says_so(make_input):
    data = make_input()
    result = run_backtest(dataclasses.replace(data, funding=data.funding.iloc[:0]))
    assert result.metrics["traded"].waterfall.funding == 0
    assert any("No funding is recorded" in note for note in result.notes)


def test_bad_input_is_named(data):
    with pytest.raises(MissingDataError, match=r"mlbot train --interval 2h --model lightgbm"):
        run_backtest(dataclasses.replace(data, forecasts=data.forecasts.iloc[:0]))
    with pytest.raises(UsageError, match="funding of BTC-2h lack the columns rate"):
        run_backtest(dataclasses.replace(data, funding=data.funding.drop(columns="rate")))
    twice = pd.concat([data.bars.iloc[:2], data.bars.iloc[1:]]).reset_index(drop=True)
    with pytest.raises(UsageError, match="bars of BTC-2h: 2024-01-01T02:00:00Z is duplicated"):
        run_backtest(dataclasses.replace(data, bars=twice))
    with pytest.raises(MissingDataError, match="no recorded price of BTC-2h"):
        run_backtest(dataclasses.replace(data, bars=data.bars.iloc[:0]))


def test_books_that_differ_are_refused():
    with pytest.raises(BookkeepingError, match=r"differ by 1\.000e-06"):
        require_agreement(VectorbtView(np.array([1.0]), 1e-6, {}))
    with pytest.raises(BookkeepingError):
        require_agreement(VectorbtView(np.array([1.0]), math.nan, {}))


def test_skill_by_hand():
    ts = TF * np.arange(6)
    p_up = np.array([0.6, 0.6, 0.1, 0.1, 0.3, np.nan])
    p_down = np.array([0.1, 0.1, 0.6, 0.6, 0.3, np.nan])
    said = {"p_up": p_up, "p_down": p_down, "p_neutral": 1 - p_up - p_down, "score": p_up - p_down}
    forecasts = pd.DataFrame({"ts": ts, **said})
    label = [1.0, -1.0, -1.0, 0.0, 1.0, 1.0]
    targets = pd.DataFrame({"ts": ts, "t1": ts + 2 * TF, "label": label})
    skill = forecast_skill(forecasts, targets, TF)
    # Asked: bars 0, 1, 2 (label touched and a lean); right: 0 and 2. Bar 4 leans nowhere, bar 5 has no forecast.
    assert skill.n == 5
    assert skill.hits.n == 3
    assert skill.hits.value == pytest.approx(2 / 3)
    assert skill.hits.low < 2 / 3 < skill.hits.high
    assert skill.base_rate == pytest.approx(2 / 3)
    p = [0.6, 0.1, 0.6, 0.3, 0.3]
    assert skill.log_loss == pytest.approx(-np.mean(np.log(p)))
    shares = np.array([2, 2, 1]) / 5
    assert skill.base_log_loss == pytest.approx(-(shares * np.log(shares)).sum())
    assert skill.calibration["n"].sum() == 10


def test_overlapping_labels_count_once():
    n = 1200
    ts = TF * np.arange(n)
    rng = np.random.default_rng(0)
    p_up = rng.uniform(0.1, 0.6, n)
    forecasts = pd.DataFrame({"ts": ts, "p_up": p_up, "p_down": 0.7 - p_up, "p_neutral": 0.3, "score": 2 * p_up - 0.7})
    label = rng.choice([-1.0, 1.0], n)
    apart = pd.DataFrame({"ts": ts, "t1": ts + 2 * TF, "label": label})
    lapping = apart.assign(t1=ts + 13 * TF)
    one, twelve = (forecast_skill(forecasts, targets, TF) for targets in (apart, lapping))
    assert one.hits.value == twelve.hits.value
    assert one.hits.n == n
    assert twelve.hits.n == pytest.approx(n / 12, abs=2)
    assert (twelve.hits.high - twelve.hits.low) > 3 * (one.hits.high - one.hits.low)


def test_no_labels_is_no_skill(data):
    unknown = data.targets.assign(label=np.nan, t1=np.nan)
    skill = forecast_skill(data.forecasts, unknown, TF)
    assert skill.n == 0
    assert math.isnan(skill.hits.value)
    assert math.isnan(skill.log_loss)
    assert skill.calibration.empty
