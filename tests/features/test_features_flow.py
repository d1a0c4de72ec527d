"""Order flow and liquidations against naive references, and what a longer bar's total does to sums over rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.features import SettledSeries, build_panel
from mlbot_core.features import kernels_events as v
from mlbot_core.features import registry as r
from mlbot_core.market import series_spec
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market, Timeframe

Raw = Callable[[pd.DataFrame, str], np.ndarray]
HOURLY = Market.parse("BTC-1h")


def delta(p: pd.DataFrame, prefix: str = "taker") -> pd.Series:
    return p[f"{prefix}_buy_usd"] - p[f"{prefix}_sell_usd"]


def both(p: pd.DataFrame, prefix: str = "taker") -> pd.Series:
    return p[f"{prefix}_buy_usd"] + p[f"{prefix}_sell_usd"]


def imbalance(p: pd.DataFrame, prefix: str, n: int) -> pd.Series:
    return delta(p, prefix).rolling(n).sum() / both(p, prefix).rolling(n).sum()


def ret(p: pd.DataFrame) -> pd.Series:
    return np.log(p.close).diff()


def liq(p: pd.DataFrame) -> pd.Series:
    return p.liq_long_usd + p.liq_short_usd


def place_of(window: np.ndarray) -> float:
    path = np.concatenate([[0.0], np.cumsum(window[np.isfinite(window)])])
    return float((path[-1] - path.min()) / np.ptp(path)) if np.ptp(path) else np.nan


def by_window(x: pd.Series, n: int, f: Callable[[np.ndarray], float]) -> pd.Series:
    return x.rolling(n).apply(f, raw=True)


def price_place(p: pd.DataFrame) -> pd.Series:
    x = np.log(p.close).rolling(49)
    return (np.log(p.close) - x.min()) / (x.max() - x.min())


def run_of(window: np.ndarray) -> float:
    signs = np.sign(window)[::-1]
    length = 0
    while length < len(signs) and signs[length] == signs[0] != 0:
        length += 1
    return float(signs[0] * length / len(signs))


def since(x: pd.Series, n: int) -> pd.Series:
    return by_window(x, n, lambda w: float(np.argmax(w[::-1]))) / (n - 1)


def rebound(p: pd.DataFrame) -> pd.Series:
    ago = by_window(liq(p), 96, lambda w: float(np.argmax(w[::-1])))
    logs = np.log(p.close).to_numpy()
    return pd.Series([logs[i] - logs[i - int(a)] if np.isfinite(a) else np.nan for i, a in enumerate(ago)])


def pair_liq(p: pd.DataFrame, n: int) -> pd.Series:
    longs, shorts = p.liq_pair_long_usd.rolling(n).sum(), p.liq_pair_short_usd.rolling(n).sum()
    return (shorts - longs) / (shorts + longs)


REFERENCES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "spot_imbalance_1": lambda p: imbalance(p, "taker_spot", 1),
    "spot_imbalance_12": lambda p: imbalance(p, "taker_spot", 12),
    "spot_imbalance_48": lambda p: imbalance(p, "taker_spot", 48),
    "spot_perp_gap_24": lambda p: imbalance(p, "taker_spot", 24) - imbalance(p, "taker", 24),
    "spot_cvd_place_96": lambda p: by_window(delta(p, "taker_spot"), 96, place_of),
    "pair_imbalance_1": lambda p: imbalance(p, "taker_pair", 1),
    "pair_imbalance_12": lambda p: imbalance(p, "taker_pair", 12),
    "pair_flow_share_24": lambda p: np.log(both(p, "taker_pair").rolling(24).sum() / both(p).rolling(24).sum()),
    "cvd_place_48": lambda p: by_window(delta(p), 48, place_of),
    "cvd_place_168": lambda p: by_window(delta(p), 168, place_of),
    "cvd_price_divergence_48": lambda p: by_window(delta(p), 48, place_of) - price_place(p),
    "flow_toxicity_48": lambda p: delta(p).abs().rolling(48).sum() / both(p).rolling(48).sum(),
    "flow_run_24": lambda p: by_window(delta(p), 24, run_of),
    "flow_lead_corr_48": lambda p: ret(p).rolling(48).corr(delta(p).shift()),
    "liq_to_volume_24": lambda p: liq(p).rolling(24).sum() / both(p).rolling(24).sum(),
    "liq_burst_6": lambda p: np.log((liq(p).rolling(6).mean() + 1) / (liq(p).rolling(168).mean() + 1)),
    "liq_cluster_48": lambda p: (
        (liq(p) > 3 * liq(p).rolling(168).mean())
        .astype(float)
        .where(liq(p).rolling(168).mean().notna())
        .rolling(48)
        .mean()
    ),
    "liq_concentration_48": lambda p: (liq(p) ** 2).rolling(48).sum() / liq(p).rolling(48).sum() ** 2,
    "liq_rebound_96": rebound,
    "since_long_flush_168": lambda p: since(p.liq_long_usd, 168),
    "since_short_squeeze_168": lambda p: since(p.liq_short_usd, 168),
    "liq_pair_imbalance_1": lambda p: pair_liq(p, 1),
    "liq_pair_imbalance_24": lambda p: pair_liq(p, 24),
    "liq_pair_share_24": lambda p: np.log(
        ((p.liq_pair_long_usd + p.liq_pair_short_usd).rolling(24).sum() + 1) / (liq(p).rolling(24).sum() + 1)
    ),
}


@pytest.fixture(scope="module")
def panel(make_full_panel: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    return make_full_panel(700, seed=43)


def test_every_feature_of_the_family_has_a_reference() -> None:
    assert {f.name for f in r.all_features() if f.family == "orderflow"} == set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
def test_feature_equals_its_reference(name: str, panel: pd.DataFrame, raw_values: Raw) -> None:
    expected = REFERENCES[name](panel).to_numpy()[300:]
    got = raw_values(panel, name)[300:]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-10)


VALUES = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, np.nan]), min_size=1, max_size=40).map(np.array)


def usable(x: np.ndarray, i: int, n: int) -> bool:
    window = x[max(0, i - n + 1) : i + 1]
    return i >= n - 1 and np.isfinite(x[i]) and 10 * np.isfinite(window).sum() >= 8 * n


@settings(max_examples=100, deadline=None)
@given(x=VALUES, n=st.integers(2, 10))
def test_cumulation_runs_and_concentration_with_gaps(x: np.ndarray, n: int) -> None:
    place, run, even = v.cumulative_place(x, n), v.run_share(x, n), v.concentration(np.abs(x), n)
    for i in range(len(x)):
        window = x[max(0, i - n + 1) : i + 1]
        there = usable(x, i, n)
        np.testing.assert_allclose(place[i], place_of(window) if there else np.nan, atol=1e-12)
        np.testing.assert_allclose(run[i], run_of(window) if i >= n - 1 and np.isfinite(x[i]) else np.nan)
        sizes = np.abs(window[np.isfinite(window)])
        expected = (sizes**2).sum() / sizes.sum() ** 2 if there and sizes.sum() else np.nan
        np.testing.assert_allclose(even[i], expected, rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(1, 6), st.sampled_from([-2.0, 0.0, 1.0, 5.0])), min_size=1, max_size=10),
    n=st.integers(1, 12),
)
def test_what_is_carried_counts_once(spans: list[tuple[int, float]], n: int) -> None:
    """Observations carried over spans of rows, neighbours of equal value included."""
    x = np.concatenate([np.full(rows, value) for rows, value in spans])
    identity = np.concatenate([np.full(rows, float(at)) for at, (rows, _) in enumerate(spans)])
    total, run = v.distinct_total(x, identity, n), v.distinct_run(x, identity, n)
    for i in range(n - 1, len(x)):
        seen = list(dict.fromkeys(identity[i - n + 1 : i + 1]))
        values = [spans[int(at)][1] for at in seen]
        assert total[i] == pytest.approx(sum(values))
        length = 0
        while length < len(values) and np.sign(values[-1 - length]) == np.sign(values[-1]):
            length += 1
        assert run[i] == np.sign(values[-1]) * length
    assert np.isnan(total[: n - 1]).all()


def constant(series: str, timeframe: str, days: int, **per_day: float) -> SettledSeries:
    """A series whose daily totals are the same every day, stored at any timeframe."""
    frame_of = Timeframe.parse(timeframe)
    ts = np.arange(0, days * DAY_MS, frame_of.ms, dtype=np.int64)
    frame = pd.DataFrame({"ts": ts, "known_at": ts + frame_of.ms})
    for column in series_spec(series).column_names:
        share = frame_of.ms / DAY_MS if column.endswith("_usd") and series != "open_interest" else 1.0
        frame[column] = per_day.get(column, 30_000.0) * share
    return SettledSeries(series, frame_of, frame)


@pytest.mark.parametrize("stored", ["1h", "4h", "8h", "1d"])
def test_a_longer_bars_total_is_never_counted_twice(stored: str, raw_values: Raw) -> None:
    """Liquidations of 24 M USD a day over 24 hourly rows are 24 M USD, however they were stored."""
    inputs = {
        "price": constant("price", "1h", 12),
        "open_interest": constant("open_interest", "1h", 12, close=1e9),
        "liquidations": constant("liquidations", stored, 12, long_usd=18e6, short_usd=6e6),
        "taker_volume": constant("taker_volume", stored, 12, buy_usd=3e9, sell_usd=2e9),
    }
    panel = build_panel(inputs, HOURLY, 0, 12 * DAY_MS, 0)
    last = {
        name: raw_values(panel, name)[-1]
        for name in ("liq_to_oi_24", "liq_to_volume_24", "liq_imbalance_24", "liq_burst_6", "taker_imbalance_12")
    }
    assert last["liq_to_oi_24"] == pytest.approx(24e6 / 1e9)
    assert last["liq_to_volume_24"] == pytest.approx(24e6 / 5e9)
    assert last["liq_imbalance_24"] == pytest.approx(-0.5)
    assert last["liq_burst_6"] == pytest.approx(0.0, abs=1e-12)
    assert last["taker_imbalance_12"] == pytest.approx(0.2)
    assert panel["liq_long_usd"].iloc[-1] == pytest.approx(18e6 / 24)
    assert panel["liq_age_h"].iloc[-1] == 0.0
    assert HOUR_MS * 24 == DAY_MS
