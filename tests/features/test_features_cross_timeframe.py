"""Higher bars against pandas resampling, and what happens to one that is used before it closed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.features import kernels_higher as h
from mlbot_core.features import registry as r
from mlbot_core.features import truncation_check
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Timeframe

Raw = Callable[[pd.DataFrame, str], np.ndarray]
MONDAY = 4 * DAY_MS


def resampled(panel: pd.DataFrame, m: int, step: int) -> pd.DataFrame:
    """Whole higher bars only, indexed by their close; missing by the rule: last bar there, three quarters of all."""
    key = (panel["ts"] - MONDAY) // (m * step)
    groups = panel.groupby(key)
    bars = pd.DataFrame(
        {
            "open": groups["open"].apply(lambda x: x.dropna().iloc[0] if x.notna().any() else np.nan),
            "high": groups["high"].max(),
            "low": groups["low"].min(),
            "close": groups["close"].apply(lambda x: x.iloc[-1]),
            "volume_usd": groups["volume_usd"].sum(),
        }
    )
    whole = groups["ts"].count() == m
    good = groups["close"].apply(lambda x: np.isfinite(x.iloc[-1]) and 4 * x.notna().sum() >= 3 * m)
    bars = bars.where(good, np.nan)[whole]
    bars.index = (bars.index + 1) * m * step + MONDAY
    return bars


def as_of(panel: pd.DataFrame, values: pd.Series, step: int) -> np.ndarray:
    """The value of the last higher bar that had closed by each row's close."""
    right = pd.DataFrame({"close_at": values.index.to_numpy(np.int64), "value": values.to_numpy()})
    left = pd.DataFrame({"close_at": panel["ts"].to_numpy() + step})
    return pd.merge_asof(left, right, on="close_at")["value"].to_numpy()


def gains(x: pd.Series) -> pd.Series:
    d = np.log(x).diff()
    return d.rolling(10).sum() / d.abs().rolling(10).sum()


def references(panel: pd.DataFrame, m: int, step: int) -> dict[str, np.ndarray]:
    bars = resampled(panel, m, step)
    close = panel["close"].to_numpy()

    def at(values: pd.Series) -> np.ndarray:
        return as_of(panel, values, step)

    low, high = bars["low"].rolling(10).min(), bars["high"].rolling(10).max()
    squares = np.log(panel["close"]).diff() ** 2
    grouped = squares.groupby((panel["ts"] - MONDAY) // (m * step)).sum()
    grouped.index = (grouped.index + 1) * m * step + MONDAY
    usual = np.sqrt(grouped.reindex(bars.index).rolling(10).mean())
    width = np.log(bars["high"] / bars["low"])
    return {
        f"higher_ret_{m}": at(np.log(bars["close"]).diff()),
        f"higher_forming_{m}": np.log(close / at(bars["close"])),
        f"higher_place_{m}": (close - at(bars["low"])) / (at(bars["high"]) - at(bars["low"])),
        f"higher_body_{m}": at((bars["close"] - bars["open"]) / (bars["high"] - bars["low"])),
        f"higher_sma_gap_{m}": np.log(close / at(bars["close"].rolling(10).mean())),
        f"higher_range_place_{m}": (close - at(low)) / (at(high) - at(low)),
        f"higher_rsi_{m}": at(gains(bars["close"])),
        f"higher_vol_ratio_{m}": np.log(at(np.log(bars["close"]).diff().rolling(10).std()) / at(usual)),
        f"higher_range_{m}": np.log(at(width / width.rolling(10).mean())),
        f"higher_volume_{m}": np.log(at(bars["volume_usd"] / bars["volume_usd"].rolling(10).mean())),
    }


def declared() -> set[str]:
    return {f.name for f in r.all_features() if f.family == "cross_timeframe"}


@pytest.mark.parametrize("timeframe", ["30m", "1h", "2h", "4h"])
@pytest.mark.parametrize("m", [4, 12, 24, 84])
def test_features_equal_pandas_resampling(
    m: int, timeframe: str, make_full_panel: Callable[..., pd.DataFrame], raw_values: Raw
) -> None:
    panel = make_full_panel(700, seed=51, timeframe=timeframe)
    expected = references(panel, m, Timeframe.parse(timeframe).ms)
    compared = 0
    for name in sorted(declared() & expected.keys()):
        start = r.total_lookback(name)
        got = raw_values(panel, name)
        assert np.isfinite(got[start:]).all(), name
        np.testing.assert_allclose(got[start:], expected[name][start:], rtol=1e-7, atol=1e-10, err_msg=name)
        compared += 1
    assert compared == sum(name.endswith(f"_{m}") for name in declared())


def test_agreement_is_the_mean_of_signs(make_full_panel: Callable[..., pd.DataFrame], raw_values: Raw) -> None:
    panel = make_full_panel(500, seed=52)
    signs = np.mean([np.sign(raw_values(panel, f"higher_rsi_{m}")) for m in (4, 12, 24)], axis=0)
    np.testing.assert_allclose(raw_values(panel, "higher_agreement"), signs, atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    m=st.sampled_from([2, 3, 4, 12, 28]),
    hours=st.sampled_from([1, 2, 4]),
    first=st.integers(0, 500),
    gaps=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_a_higher_bar_is_rebuilt_from_its_own_rows_alone(
    seed: int, m: int, hours: int, first: int, gaps: float
) -> None:
    """Any multiple, any phase of the first row, any gaps; bars lie on Mondays."""
    rng = np.random.default_rng(seed)
    step = hours * HOUR_MS
    ts = (10_000 + first + np.arange(6 * m + 7)) * step
    x = rng.normal(size=len(ts))
    x[rng.random(len(ts)) < gaps] = np.nan
    end = h.ends(ts.astype(np.float64), m)
    for how, f in (
        (h.LAST, lambda w: w[-1]),
        (h.FIRST, lambda w: w[np.isfinite(w)][0]),
        (h.MAX, np.nanmax),
        (h.MIN, np.nanmin),
        (h.SUM, np.nansum),
    ):
        got = h.bar(x, end, m, how)
        for i in range(len(ts)):
            # the close of the last higher bar that has closed by the row's close, counted from a Monday
            closed = (ts[i] + step - MONDAY) // (m * step) * m * step + MONDAY
            last = i - (ts[i] + step - closed) // step
            if i < h.reach(m):
                assert end[i] == -1
                assert np.isnan(got[i])
                continue
            assert end[i] == last
            window = x[last - m + 1 : last + 1]
            good = np.isfinite(window[-1]) and 4 * np.isfinite(window).sum() >= 3 * m
            np.testing.assert_allclose(got[i], f(window) if good else np.nan, rtol=1e-12)


def test_a_week_of_two_hours_begins_on_monday(make_full_panel: Callable[..., pd.DataFrame], raw_values: Raw) -> None:
    panel = make_full_panel(400, seed=53, timeframe="2h")
    closed = np.flatnonzero(raw_values(panel, "higher_forming_84") == 0.0)
    closes = pd.to_datetime(panel["ts"].to_numpy()[closed] + 2 * HOUR_MS, unit="ms")
    assert len(closes) >= 2
    assert (closes.dayofweek == 0).all()
    assert (closes.hour == 0).all()


def test_a_higher_bar_joined_at_its_open_is_caught(make_full_panel: Callable[..., pd.DataFrame]) -> None:
    """Planted leak: rows inside a higher bar see its final values."""
    panel = make_full_panel(600, seed=54)

    def leaky(piece: pd.DataFrame) -> pd.DataFrame:
        bars = piece.groupby(piece["ts"] // (24 * HOUR_MS))["close"].last()
        joined = (piece["ts"] // (24 * HOUR_MS)).map(bars)
        end = h.ends(piece["ts"].to_numpy(np.float64), 24)
        honest = h.bar(piece["close"].to_numpy(np.float64), end, 24, h.LAST)
        return pd.DataFrame({"ts": piece["ts"], "honest": honest, "leaky": np.log(joined / piece["close"])})

    result = truncation_check(leaky, panel, [211, 307, 401, 550], lookback=h.reach(24))
    assert not result.passed
    assert result.columns == ("leaky",)
    assert {v.cut for v in result.violations} >= {"end"}


def test_future_rows_never_reach_a_row(make_full_panel: Callable[..., pd.DataFrame], raw_values: Raw) -> None:
    """Everything after a row is replaced by nonsense: the row stays."""
    panel = make_full_panel(500, seed=55)
    cut = 417
    nonsense = panel.copy()
    for column in ("open", "high", "low", "close", "volume_usd"):
        nonsense.loc[cut + 1 :, column] = panel[column].to_numpy()[cut + 1 :] * 7.0
    for name in sorted(declared()):
        np.testing.assert_array_equal(
            raw_values(nonsense, name)[: cut + 1], raw_values(panel, name)[: cut + 1], err_msg=name
        )
