"""Rules about values, and the table that says which of them block."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as bounded
from hypothesis import strategies as st

from mlbot_core.market.quality import BLOCKING_CHECKS, QUALITY_CHECKS, REQUIRED_CHECKS, find_gaps, freshness, gaps
from mlbot_core.market.quality_values import (
    FUNDING,
    OPEN_INTEREST_USD,
    agreement,
    consistency,
    funding_interval,
    jumps,
    magnitude,
    same_magnitude,
    staleness,
    sum_to_one,
)
from mlbot_core.timeframe import HOUR_MS, Timeframe

H1 = Timeframe(60)
ORIGIN = 1_728_000_000_000


def walk(n: int, seed: int = 0) -> np.ndarray:
    return 60_000 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.005, n)))


def hours(n: int) -> np.ndarray:
    return ORIGIN + np.arange(n, dtype=np.int64) * HOUR_MS


def test_the_table_of_checks_is_what_consumers_go_by():
    assert REQUIRED_CHECKS == ("duplicates", "gaps", "freshness", "sanity")
    assert set(REQUIRED_CHECKS) < set(BLOCKING_CHECKS) < set(QUALITY_CHECKS)
    assert {name for name in QUALITY_CHECKS if name not in BLOCKING_CHECKS} == {
        "jumps",
        "staleness",
        "funding_interval",
    }
    assert all(check.description.endswith(".") for check in QUALITY_CHECKS.values())


def test_a_series_with_bars_on_some_days_only_misses_none_on_others():
    days = Timeframe(1440)
    opens = days.opens_between(0, 7 * 86_400_000)
    expected = opens[:5]
    assert find_gaps(opens[:4], days, 0, 7 * 86_400_000, expected=expected) == [(opens[4], opens[4], 1)]
    assert gaps(opens[:5], days, 0, 7 * 86_400_000, expected=expected).passed
    assert freshness(int(opens[4]), days, int(opens[4]) + days.ms).passed


def obvious_outliers(values: np.ndarray, first: int, window: int, scale: float) -> list[int]:
    """Return what the rule's definition says, bar by bar."""
    found = []
    changes = [abs(np.log(b / a)) for a, b in pairwise(values)]
    for bar in range(max(first, window + 1), len(values)):
        before = changes[bar - 1 - window : bar - 1]
        sigma = 1.4826 * np.median(before)
        if sigma > 0 and changes[bar - 1] > scale * sigma and changes[bar - 1] > 3 * np.mean(before):
            found.append(bar)
    return found


@bounded(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(21, 120), st.integers(0, 140), st.lists(st.integers(1, 139), max_size=4))
def test_jumps_are_what_the_definition_says(seed, window, first, at):
    values = walk(140, seed)
    for position in at:
        values[position:] *= 1.4
    result = jumps(hours(140), {"close": values}, first, window=window, scale=8.0)
    expected = obvious_outliers(values, first, window, 8.0)
    assert result.found == len(expected)
    assert result.passed == (not expected)


def test_a_jump_is_named_and_what_stands_still_or_is_short_is_not_judged():
    values = walk(400)
    values[350:] *= 1.5
    result = jumps(hours(400), {"close": values}, 200, window=200, scale=30)
    assert (result.passed, result.found) == (False, 1)
    assert "2024-10-18T14:00:00Z" in result.detail
    assert jumps(hours(400), {"close": values}, 360, window=200, scale=30).passed, "it lies before the month"
    assert jumps(hours(400), {"rate": np.r_[np.full(399, 1e-4), 2e-4]}, 0, window=200, scale=30).passed
    assert jumps(hours(5), {"close": values[:5]}, 0, window=200, scale=30).passed
    holes = values.copy()
    holes[::9] = np.nan
    assert jumps(hours(400), {"close": holes}, 200, window=200, scale=30).found == 1, "missing bars hide no others"


def test_staleness():
    values = walk(100)
    assert staleness(hours(100), [values], max_run=3).passed
    values[50:60] = values[50]
    result = staleness(hours(100), [values], max_run=8)
    assert (result.passed, result.found) == (False, 9)
    assert staleness(hours(100), [values], max_run=9).passed
    assert staleness(hours(100), [values, walk(100, 1)], max_run=3).passed, "another column moves"
    assert staleness(hours(0), [], max_run=3).passed


@pytest.mark.parametrize(
    ("coins", "price", "passed"),
    [(3e5, 60_000.0, True), (3e5, 1.0, False), (3e5 * 60_000, 60_000.0, False), (6e6, 3_000.0, True)],
)
def test_open_interest_in_the_wrong_unit_is_seen_by_its_magnitude(coins, price, passed):
    values = np.full(50, coins) * price
    assert magnitude("oi", values, OPEN_INTEREST_USD, "USD").passed is passed


def test_funding_in_percent_is_seen_by_its_magnitude():
    fraction = np.array([1e-4, -5e-5, 8e-4, 0.0, np.nan])
    assert magnitude("funding", fraction, FUNDING, "a period").passed
    assert not magnitude("funding", fraction * 100, FUNDING, "a period").passed
    assert magnitude("funding", np.array([np.nan, 0.0]), FUNDING, "a period").passed
    many = np.tile(fraction, 5)
    assert same_magnitude("running", many, "settled", many * 0.7).passed
    assert not same_magnitude("running", many * 100, "settled", many).passed
    assert same_magnitude("running", many[:3], "settled", many).passed, "too few to judge"


def test_values_in_usd_and_coins_agree_and_shares_add_up():
    coins = np.array([10.0, 20.0, np.nan])
    assert consistency("volume", coins * 61_000, coins, 60_000).passed
    assert not consistency("volume", coins, coins, 60_000).passed
    assert consistency("volume", coins * np.nan, coins, 60_000).passed
    assert sum_to_one(np.array([0.6, 0.3]), np.array([0.4, 0.7])).passed
    assert sum_to_one(np.array([60.0, 0.3]), np.array([40.0, 0.7])).found == 1


def test_sources_agree_but_for_single_bars_and_a_shifted_clock_is_no_agreement():
    close = walk(500)
    ts = hours(500)
    bound = {"max_difference": 0.005, "max_share": 0.02}
    near = close * (1 + np.random.default_rng(1).normal(0, 2e-4, 500))
    assert agreement(ts, close, ts, near, "bybit", **bound).passed
    wide = near.copy()
    wide[7] *= 1.02
    result = agreement(ts, close, ts, wide, "bybit", **bound)
    assert (result.passed, result.found) == (True, 1)
    assert not agreement(ts, close, ts, near * 1.01, "bybit", **bound).passed
    late = agreement(ts[1:], close[1:], ts[1:], close[:-1], "bybit", max_difference=0.5, max_share=0.02)
    assert not late.passed
    assert "one bar apart" in late.detail
    assert agreement(ts[:3], close[:3], ts, near, "bybit", **bound).passed, "too few to judge"


def test_a_new_settlement_interval_is_reported_and_a_missing_settlement_is_not():
    eight = ORIGIN + np.arange(90, dtype=np.int64) * 8 * HOUR_MS
    assert funding_interval(eight, 0).passed
    assert funding_interval(np.delete(eight, 40), 0).passed
    four = eight[-1] + np.arange(1, 40, dtype=np.int64) * 4 * HOUR_MS
    result = funding_interval(np.r_[eight, four], 0)
    assert (result.passed, result.found) == (False, 1)
    assert "every 8 h to every 4 h" in result.detail
    assert funding_interval(np.r_[eight, four], 95).passed, "it changed before the month"
    assert funding_interval(eight[:2], 0).passed


@pytest.mark.archive
def test_recorded_months_have_plausible_units_and_few_jumps(archive_dir):
    import pyarrow.parquet as pq

    daily = pq.read_table(archive_dir / "coinglass_btc_1d.parquet")
    price = daily.column("close").to_numpy()
    assert magnitude("oi", daily.column("oi_all_exch_usd").to_numpy(), OPEN_INTEREST_USD, "USD").passed
    coins = daily.column("oi_stable_coin").to_numpy()
    assert not magnitude("oi", coins, OPEN_INTEREST_USD, "USD").passed
    assert magnitude("oi", coins * price, OPEN_INTEREST_USD, "USD").passed
    percent = daily.column("funding_oiw_close").to_numpy()
    assert magnitude("funding", percent / 100, FUNDING, "a period").passed
    assert not magnitude("funding", percent, FUNDING, "a period").passed
    hourly = pq.read_table(archive_dir / "btcusdt_perp_1h.parquet").column("close").to_numpy()
    found = jumps(hours(len(hourly)), {"close": hourly}, 0, window=200, scale=30).found
    assert 0 < found <= 3
