"""Regime features against naive references written from the papers, and on paths whose regime is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.features import kernels_regime as k
from mlbot_core.features import registry as r
from mlbot_core.timeframe import HOUR_MS

Raw = Callable[[pd.DataFrame, str], np.ndarray]


def returns(p: pd.DataFrame) -> pd.Series:
    return np.log(p["close"]).diff()


def by_window(x: pd.Series, n: int, f: Callable[[np.ndarray], float]) -> np.ndarray:
    return x.rolling(n).apply(f, raw=True).to_numpy()


def mean_break(w: np.ndarray) -> float:
    path = np.cumsum(w - w.mean())
    return float(-path[np.argmax(np.abs(path))] / (w.std() * math.sqrt(len(w))))


def icss(w: np.ndarray) -> np.ndarray:
    share = np.cumsum(w**2) / np.sum(w**2)
    return share - np.arange(1, len(w) + 1) / len(w)


def page(w: np.ndarray) -> float:
    up = down = 0.0
    for z in w / w.std():
        up, down = max(0.0, up + z - 0.25), max(0.0, down - z - 0.25)
    return (up - down) / math.sqrt(len(w))


def trend(w: np.ndarray) -> float:
    return float(np.corrcoef(np.arange(len(w)), w)[0, 1])


def t_of(w: np.ndarray) -> float:
    rho = trend(w)
    t = rho * math.sqrt((len(w) - 2) / (1 - rho**2))
    return math.copysign(math.log1p(abs(t)), t)


def scan(p: pd.DataFrame) -> np.ndarray:
    logs = np.log(p["close"])
    each = np.stack([by_window(logs, n, t_of) for n in (48, 96, 192)])
    return np.take_along_axis(each, np.abs(each).argmax(axis=0)[None], axis=0)[0]


def hurst(p: pd.DataFrame) -> np.ndarray:
    lags = np.array([1, 2, 4, 8, 16])
    moves = np.stack([np.log(p["close"]).diff(n).abs().rolling(240).mean() for n in lags])
    return np.array([np.polyfit(np.log(lags), np.log(m), 1)[0] - 0.5 for m in moves.T])


def lo_mackinlay(w: np.ndarray) -> float:
    """The last 240 of 247 returns, autocorrelations about zero; q = 8."""
    now, squares = w[7:], np.sum(w[7:] ** 2)
    ratio = variance = 0.0
    for j in range(1, 8):
        before = w[7 - j : len(w) - j]
        weight = 2 * (8 - j) / 8
        ratio += weight * np.sum(now * before) / squares
        variance += weight**2 * np.sum(now**2 * before**2) / squares**2
    return float(ratio / math.sqrt(variance))


def entropy(w: np.ndarray) -> float:
    counts: dict[tuple[int, ...], int] = {}
    for a, b, c in zip(w, w[1:], w[2:], strict=False):
        order = tuple(np.argsort([a, b, c], kind="stable"))
        counts[order] = counts.get(order, 0) + 1
    shares = np.array(list(counts.values())) / sum(counts.values())
    return float(-(shares * np.log(shares)).sum() / math.log(6))


def efficiency(p: pd.DataFrame, n: int) -> pd.Series:
    return np.log(p["close"]).diff(n).abs() / returns(p).abs().rolling(n).sum()


def rank(x: pd.Series, n: int) -> pd.Series:
    return x.rolling(n).rank().sub(1).div(n - 1)


def reversion(p: pd.DataFrame) -> pd.Series:
    before = np.log(p["close"]).shift()
    return -returns(p).rolling(96).cov(before) / before.rolling(96).var()


def hidden(p: pd.DataFrame, of_trend: bool) -> np.ndarray:
    """Hamilton's filter, one row at a time and straight from its definition."""
    x = returns(p).to_numpy()
    number = p["ts"].to_numpy() // HOUR_MS
    out = np.full(len(x), np.nan)
    stay = np.array([[0.98, 0.02], [0.02, 0.98]])
    for i in range(540, len(x)):
        start = i - int(number[i] % 24)
        fit = x[start - 240 : start]
        centre, m = fit.mean(), fit.var()
        if of_trend:
            centres, variances = np.array([-0.15, 0.15]) * math.sqrt(m), np.array([m, m])
        else:
            kurtosis = np.mean((fit - centre) ** 4) / m**2
            d = math.sqrt(min(max(kurtosis / 3 - 1, 0.05), 0.8))
            centres, variances = np.array([centre, centre]), np.array([m * (1 - d), m * (1 + d)])
        state = np.array([0.5, 0.5])
        for value in x[start - 240 : i + 1]:
            likelihood = np.exp(-0.5 * (value - centres) ** 2 / variances) / np.sqrt(variances)
            state = (stay.T @ state) * likelihood
            state /= state.sum()
        out[i] = state[1]
    return out


REFERENCES: dict[str, Callable[[pd.DataFrame], np.ndarray | pd.Series]] = {
    "regime_volatile": lambda p: hidden(p, False),
    "regime_bull": lambda p: hidden(p, True),
    "regime_vol_rank_480": lambda p: rank(returns(p).rolling(48).std(), 480),
    "regime_mean_break_96": lambda p: by_window(returns(p), 96, mean_break),
    "regime_vol_break_240": lambda p: by_window(
        returns(p), 240, lambda w: -icss(w)[np.argmax(np.abs(icss(w)))] * math.sqrt(len(w) / 2)
    ),
    "regime_vol_break_age_240": lambda p: by_window(
        returns(p), 240, lambda w: 1 - (np.argmax(np.abs(icss(w))) + 1) / len(w)
    ),
    "regime_page_96": lambda p: by_window(returns(p), 96, page),
    "regime_trend_fit_192": lambda p: by_window(np.log(p["close"]), 192, lambda w: trend(w) * abs(trend(w))),
    "regime_trend_scan": scan,
    "regime_hurst_240": hurst,
    "regime_variance_ratio_z_240": lambda p: by_window(returns(p), 247, lo_mackinlay),
    "regime_efficiency_96": lambda p: efficiency(p, 96),
    "regime_efficiency_240": lambda p: efficiency(p, 240),
    "regime_entropy_96": lambda p: by_window(p["close"], 98, entropy),
    "regime_reversion_96": reversion,
}


@pytest.fixture(scope="module")
def panel(make_full_panel: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    return make_full_panel(640, seed=61)


def test_every_feature_of_the_family_has_a_reference() -> None:
    assert {f.name for f in r.all_features() if f.family == "regime"} == set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
def test_feature_equals_its_reference(name: str, panel: pd.DataFrame, raw_values: Raw) -> None:
    expected = np.asarray(REFERENCES[name](panel))[540:]
    got = raw_values(panel, name)[540:]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


def of_path(x: np.ndarray) -> pd.DataFrame:
    close = 100 * np.exp(np.cumsum(x))
    return pd.DataFrame({"ts": np.arange(len(x)) * float(HOUR_MS), "close": close})


def test_the_hidden_states_find_a_storm_and_a_trend(raw_values: Raw) -> None:
    rng = np.random.default_rng(1)
    storm = (np.arange(3000) // 150) % 2 == 1
    values = raw_values(of_path(rng.normal(0, 1, 3000) * np.where(storm, 0.012, 0.004)), "regime_volatile")
    settled = (np.arange(3000) % 150 >= 30) & np.isfinite(values)
    assert np.mean((values > 0.5)[settled] == storm[settled]) > 0.9
    up = (np.arange(3000) // 200) % 2 == 1
    values = raw_values(of_path(rng.normal(0, 0.004, 3000) + np.where(up, 0.0012, -0.0012)), "regime_bull")
    settled = (np.arange(3000) % 200 >= 60) & np.isfinite(values)
    assert np.mean((values > 0.5)[settled] == up[settled]) > 0.85


def test_breaks_are_found_and_dated(raw_values: Raw) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1, 600) * np.where(np.arange(600) < 500, 0.003, 0.012)
    assert raw_values(of_path(x), "regime_vol_break_240")[-1] > 1.36
    assert raw_values(of_path(x), "regime_vol_break_age_240")[-1] == pytest.approx(100 / 240, abs=0.05)
    x = rng.normal(0, 0.004, 600) + np.where(np.arange(600) < 550, 0.0, 0.008)
    assert raw_values(of_path(x), "regime_mean_break_96")[-1] > 1.36
    assert raw_values(of_path(x), "regime_page_96")[-1] > 3
    assert raw_values(of_path(-x), "regime_page_96")[-1] < -3


def test_scaling_tells_trends_from_noise_from_reversion(raw_values: Raw) -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.005, 900)
    persistent = pd.Series(noise).ewm(alpha=0.2).mean().to_numpy()
    reverting = np.diff(rng.normal(0, 0.005, 901))
    for name in ("regime_hurst_240", "regime_variance_ratio_z_240"):
        values = [np.nanmean(raw_values(of_path(x), name)) for x in (reverting, noise, persistent)]
        assert values[0] < values[1] < values[2], name
        assert abs(values[1]) < min(-values[0], values[2]), name
    speeds = [np.nanmean(raw_values(of_path(x), "regime_reversion_96")) for x in (persistent, noise, reverting)]
    assert speeds[2] > max(speeds[:2])


def test_entropy_knows_all_six_orders(raw_values: Raw) -> None:
    rising = of_path(np.full(200, 0.001))
    assert raw_values(rising, "regime_entropy_96")[-1] == 0.0
    x = np.array([v for order in itertools.permutations([1.0, 2.0, 3.0]) for v in order])
    values = k.permutation_entropy(np.tile(x, 20), 36)
    assert np.isfinite(values[37:]).all()
    assert np.isnan(values[:37]).all()
    assert raw_values(of_path(np.random.default_rng(4).normal(0, 0.01, 400)), "regime_entropy_96")[-1] > 0.9


FINITE = ("regime_volatile", "regime_bull", "regime_efficiency_96", "regime_entropy_96", "regime_vol_break_age_240")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 0.2), gaps=st.sampled_from([0.0, 0.03, 0.3]))
def test_shares_and_probabilities_stay_in_bounds(raw_values: Raw, seed: int, scale: float, gaps: float) -> None:
    rng = np.random.default_rng(seed)
    panel = of_path(np.clip(rng.standard_t(2, 400) * scale, -0.5, 0.5))
    panel.loc[rng.random(400) < gaps, "close"] = np.nan
    for name in FINITE:
        values = raw_values(panel, name)
        there = values[np.isfinite(values)]
        assert ((there >= 0) & (there <= 1 + 1e-12)).all(), name
        assert gaps == 0.3 or len(there) > 0, name


@pytest.mark.parametrize("name", REFERENCES)
def test_a_price_that_stands_still_is_no_error(name: str, raw_values: Raw) -> None:
    values = raw_values(of_path(np.zeros(700)), name)
    assert not np.isinf(values).any()


def test_scale_of_the_price_does_not_matter(panel: pd.DataFrame, raw_values: Raw) -> None:
    dearer = panel.assign(close=panel["close"] * 1024.0)
    for name in REFERENCES:
        np.testing.assert_allclose(
            raw_values(dearer, name)[540:], raw_values(panel, name)[540:], rtol=1e-6, atol=1e-7, err_msg=name
        )
