"""Context and sessions: pandas references, fund flows over weekends, clocks against the time zone database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.features import SettledSeries, build_panel
from mlbot_core.features import kernels_sessions as s
from mlbot_core.features import registry as r
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market, Timeframe

Raw = Callable[[pd.DataFrame, str], np.ndarray]
HOURLY = Market.parse("BTC-1h")


def rank(x: pd.Series, n: int) -> pd.Series:
    return x.rolling(n).rank().sub(1).div(n - 1)


def options(p: pd.DataFrame) -> pd.Series:
    return np.log(p.options_oi_usd / p.close)


def trade_dates(p: pd.DataFrame, n: int, f: Callable[[np.ndarray], float]) -> pd.Series:
    """Of every window the flows of its distinct trade dates, in order."""
    date = (p.ts + HOUR_MS) / HOUR_MS - p.etf_age_h
    out = np.full(len(p), np.nan)
    for i in range(n - 1, len(p)):
        window = slice(i - n + 1, i + 1)
        out[i] = f(p.etf_flow_usd[window][~date[window].duplicated()].to_numpy())
    return pd.Series(out)


def run(flows: np.ndarray) -> float:
    same = np.sign(flows[::-1]) == np.sign(flows[-1])
    return float(np.sign(flows[-1]) * (len(same) if same.all() else int(np.argmin(same))))


REFERENCES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "coinbase_premium_level": lambda p: p.coinbase_premium,
    "coinbase_premium_mean_24": lambda p: p.coinbase_premium.rolling(24).mean(),
    "coinbase_premium_change_8": lambda p: p.coinbase_premium.diff(8),
    "coinbase_price_corr_96": lambda p: np.log(p.close).diff().rolling(96).corr(p.coinbase_premium),
    "margin_level": lambda p: np.log(p.margin_long_coin / p.margin_short_coin),
    "margin_long_change_24": lambda p: np.log(p.margin_long_coin).diff(24),
    "margin_long_change_72": lambda p: np.log(p.margin_long_coin).diff(72),
    "margin_short_change_24": lambda p: np.log(p.margin_short_coin).diff(24),
    "margin_short_change_72": lambda p: np.log(p.margin_short_coin).diff(72),
    "borrow_level": lambda p: p.borrow_rate,
    "borrow_funding_gap": lambda p: p.funding_rate * 1095 - p.borrow_rate * 365,
    "whale_level": lambda p: p.whale_index,
    "whale_change_24": lambda p: p.whale_index.diff(24),
    "fear_greed_level": lambda p: p.fear_greed / 100,
    "fear_greed_change_72": lambda p: p.fear_greed.diff(72) / 100,
    "fear_greed_change_168": lambda p: p.fear_greed.diff(168) / 100,
    "etf_flow_to_oi": lambda p: p.etf_flow_usd / p.oi_usd,
    "etf_flow_sum_168": lambda p: trade_dates(p, 168, np.sum) / p.oi_usd,
    "etf_flow_run_168": lambda p: trade_dates(p, 168, run),
    "etf_flow_age": lambda p: p.etf_age_h / 24,
    "options_to_oi": lambda p: np.log(p.options_oi_usd / p.oi_usd),
    "options_change_24": lambda p: options(p).diff(24),
    "options_change_168": lambda p: options(p).diff(168),
    "mood_price_gap_168": lambda p: rank(p.fear_greed, 168) - rank(p.close, 168),
}


@pytest.fixture(scope="module")
def panel(make_full_panel: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    return make_full_panel(500, seed=45)


def test_every_feature_of_the_family_has_a_reference() -> None:
    assert {f.name for f in r.all_features() if f.family == "context"} == set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
def test_feature_equals_pandas(name: str, panel: pd.DataFrame, raw_values: Raw) -> None:
    expected = REFERENCES[name](panel).to_numpy()[200:]
    got = raw_values(panel, name)[200:]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9)


def test_fund_flows_come_at_noon_and_are_carried_over_the_weekend(raw_values: Raw) -> None:
    """Monday 2023-11-13 to Friday; Friday's flow is known on Saturday noon and is the newest until Tuesday noon."""
    monday = 1_699_833_600_000
    dates = monday + np.array([0, 1, 2, 3, 4, 7], dtype=np.int64) * DAY_MS
    frame = pd.DataFrame({"ts": dates, "known_at": dates + DAY_MS + 12 * HOUR_MS, "flow_usd": [1.0, 2, 3, 4, 5, 6]})
    inputs = {"etf_flows": SettledSeries("etf_flows", Timeframe.parse("1d"), frame)}
    panel = build_panel(inputs, HOURLY, monday, monday + 10 * DAY_MS, 0)
    seen = panel.set_index((panel["ts"] + HOUR_MS - monday) / HOUR_MS)["etf_flow_usd"]  # by hours of the close
    assert np.isnan(seen[35.0])
    assert seen[36.0] == 1.0  # Tuesday 12:00
    assert seen[24 * 5 + 11.0] == 4.0  # Saturday 11:00
    assert seen[24 * 5 + 12.0] == 5.0
    assert seen[24 * 8 + 11.0] == 5.0  # Tuesday 11:00
    assert seen[24 * 8 + 12.0] == 6.0
    age = raw_values(panel, "etf_flow_age")
    assert age[24 * 8 + 10] == pytest.approx(3 + 11 / 24)  # from Friday's close to Tuesday 11:00


def test_a_series_that_has_ended_is_missing_soon() -> None:
    frame = pd.DataFrame({"ts": [0], "known_at": [DAY_MS], "value": [50.0]})
    inputs = {"fear_greed": SettledSeries("fear_greed", Timeframe.parse("1d"), frame)}
    panel = build_panel(inputs, HOURLY, 0, 10 * DAY_MS, 0)
    held = panel.loc[panel["fear_greed"].notna(), "ts"]
    assert held.iloc[0] == DAY_MS - HOUR_MS
    assert held.iloc[-1] == 3 * DAY_MS


HOURS = st.integers(17_000 * 24 * 2, 24_000 * 24 * 2).map(lambda half: half / 2)  # 2016 to 2035, half hours


def zoned(hours: float, zone: str) -> datetime:
    return datetime.fromtimestamp(hours * 3600, tz=UTC).astimezone(ZoneInfo(zone))


def minutes_inside(close: float, length: float, zone: str, begin: tuple[int, int], end: tuple[int, int]) -> float:
    inside = 0
    for minute in range(int(length * 60)):
        local = zoned(close - length + minute / 60, zone)
        inside += local.weekday() < 5 and begin <= (local.hour, local.minute) < end
    return inside / (length * 60)


@settings(max_examples=60, deadline=None)
@given(close=HOURS, length=st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_sessions_equal_the_time_zone_database(close: float, length: float) -> None:
    args = np.array([close]), np.array([length])
    assert s.session_share(*args, s.ASIA)[0] == pytest.approx(
        minutes_inside(close, length, "Asia/Tokyo", (9, 0), (15, 30))
    )
    assert s.session_share(*args, s.EUROPE)[0] == pytest.approx(
        minutes_inside(close, length, "Europe/London", (8, 0), (16, 30))
    )
    assert s.session_share(*args, s.AMERICA)[0] == pytest.approx(
        minutes_inside(close, length, "America/New_York", (9, 30), (16, 0))
    )


@settings(max_examples=60, deadline=None)
@given(close=HOURS)
def test_cme_weekend_and_new_yorks_open(close: float) -> None:
    inside = 0
    for minute in range(60):
        local = zoned(close - 1 + minute / 60, "America/Chicago")
        hour = local.weekday() * 24 + local.hour
        inside += 4 * 24 + 16 <= hour < 6 * 24 + 17
    assert s.session_share(np.array([close]), np.array([1.0]), s.CME_SHUT)[0] == pytest.approx(inside / 60)
    opened = zoned(close + s.hours_to_open(np.array([close]), s.AMERICA)[0], "America/New_York")
    assert (opened.hour, opened.minute) == (9, 30)
    assert opened.weekday() < 5
    between = [zoned(close + h / 2, "America/New_York") for h in range(1, int(2 * (opened.timestamp() / 3600 - close)))]
    assert not any(t.weekday() < 5 and (t.hour, t.minute) == (9, 30) for t in between)


@settings(max_examples=60, deadline=None)
@given(close=HOURS, months=st.sampled_from([1, 3]))
def test_expiries_are_last_fridays(close: float, months: int) -> None:
    now = datetime.fromtimestamp(close * 3600, tz=UTC)
    expiry = now + timedelta(hours=s.hours_to_expiry(np.array([close]), months)[0])
    assert (expiry.weekday(), expiry.hour, expiry.minute) == (4, 8, 0)
    assert (expiry + timedelta(days=7)).month != expiry.month
    assert expiry.month % months == 0
    assert now < expiry <= now + timedelta(days=36 * months)
    share = s.month_share(np.array([close]))[0]
    first = now.replace(day=1, hour=0, minute=0)
    after = (first + timedelta(days=32)).replace(day=1)
    assert share == pytest.approx((now - first) / (after - first))


@pytest.mark.parametrize("timeframe", ["30m", "1h", "2h", "4h"])
def test_calendar_features_at_every_timeframe(
    timeframe: str, make_full_panel: Callable[..., pd.DataFrame], raw_values: Raw
) -> None:
    panel = make_full_panel(400, seed=1, timeframe=timeframe)
    hours = Timeframe.parse(timeframe).minutes / 60
    close = (panel["ts"] / HOUR_MS + hours).to_numpy()
    np.testing.assert_array_equal(
        raw_values(panel, "session_america")[1:],
        s.session_share(close, np.full(len(close), hours), s.AMERICA)[1:],
    )
    np.testing.assert_array_equal(raw_values(panel, "to_month_expiry")[1:], s.hours_to_expiry(close, 1)[1:] / 24)
    circle = raw_values(panel, "month_sin") ** 2 + raw_values(panel, "month_cos") ** 2
    np.testing.assert_allclose(circle[1:], 1.0, rtol=1e-12)
