"""The feature matrix: shape, values worked out another way, one row at a time, speed."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from mlbot_core.errors import BadDataError
from mlbot_core.features import build_features, feature_set
from mlbot_core.features import registry as r
from mlbot_core.features.normalise import ZSCORE_CLIP
from mlbot_core.timeframe import HOUR_MS

CORE = feature_set("core", 240)
RAW = r.make_feature_set(
    "raw", tuple(r.Feature(**{**vars(f), "normalise": "none"}) for f in CORE.features), zscore_window=240
)


@pytest.fixture(scope="module")
def panel(make_panel: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    return make_panel(900, seed=5)


@pytest.fixture(scope="module")
def raw(panel: pd.DataFrame) -> pd.DataFrame:
    """Every feature before its z-score."""
    return build_features(panel, RAW)


def test_shape_types_and_no_infinity(make_panel: Callable[..., pd.DataFrame]) -> None:
    panel = make_panel(800, seed=1, gap_share=0.04)
    built = build_features(panel, CORE)
    assert list(built.columns) == ["ts", *CORE.names]
    np.testing.assert_array_equal(built["ts"], panel["ts"])
    assert (built.dtypes.iloc[1:] == np.float64).all()
    assert not np.isinf(built.iloc[:, 1:].to_numpy()).any()
    clipped = [f.name for f in CORE.features if f.normalise == "zscore"]
    assert built[clipped].abs().max().max() <= ZSCORE_CLIP


def test_every_feature_lives_on_complete_data(panel: pd.DataFrame) -> None:
    tail = build_features(panel, CORE).iloc[CORE.lookback :, 1:]
    assert tail.notna().all(axis=None)
    assert (tail.nunique() > 1).all()


def test_zscore_is_trailing_and_equals_pandas(panel: pd.DataFrame, raw: pd.DataFrame) -> None:
    built = build_features(panel, CORE)
    for name in ("ret_4", "oi_level", "taker_activity", "vol_48"):
        rolling = raw[name].rolling(240)
        expected = ((raw[name] - rolling.mean()) / rolling.std()).clip(-8, 8)
        both = expected.notna()
        assert both.sum() > 400
        np.testing.assert_allclose(built.loc[both, name], expected[both], rtol=1e-6, atol=1e-8)


def test_values_against_pandas(panel: pd.DataFrame, raw: pd.DataFrame) -> None:
    """One feature of each family and more, written the obvious way."""
    p = panel
    logc = np.log(p["close"])
    r1 = logc.diff()
    delta, total = p["taker_buy_usd"] - p["taker_sell_usd"], p["taker_buy_usd"] + p["taker_sell_usd"]
    liq = p["liq_long_usd"] + p["liq_short_usd"]
    odds = np.log(p["long_share"] / (1 - p["long_share"]))
    high, low = p["high"].rolling(24).max(), p["low"].rolling(24).min()
    typical = (p["high"] + p["low"] + p["close"]) / 3
    moment = pd.to_datetime(p["ts"] + HOUR_MS, unit="ms", utc=True)
    expected = {
        "ret_12": logc.diff(12),
        "sma_gap_24": np.log(p["close"] / p["close"].rolling(24).mean()),
        "range_place_24": (p["close"] - low) / (high - low),
        "from_high_168": np.log(p["close"] / p["high"].rolling(168).max()),
        "efficiency_24": logc.diff(24) / r1.abs().rolling(24).sum(),
        "autocorr_48": r1.rolling(48).corr(r1.shift()),
        "vol_48": r1.rolling(48).std(),
        "parkinson_24": np.sqrt((np.log(p["high"] / p["low"]) ** 2).rolling(24).mean() / (4 * np.log(2))),
        "skew_96": r1.rolling(96).skew(),
        "jump_share_48": 1 - np.pi / 2 * (r1.abs() * r1.abs().shift()).rolling(48).mean() / (r1**2).rolling(48).mean(),
        "variance_ratio_96": logc.diff(4).rolling(96).var() / (4 * r1.rolling(96).var()) - 1,
        "volume_term": np.log(p["volume_usd"].rolling(12).mean() / p["volume_usd"].rolling(96).mean()),
        "amihud_24": np.log((r1.abs() / p["volume_usd"]).rolling(24).mean()),
        "vwap_gap_24": np.log(
            p["close"] / ((typical * p["volume_usd"]).rolling(24).sum() / p["volume_usd"].rolling(24).sum())
        ),
        "funding_carry_24": p["funding_rate"].rolling(24).mean() * 1095,
        "funding_rank_168": (p["funding_rate"].rolling(168).rank() - 1) / 167,
        "oi_change_24": np.log(p["oi_usd"]).diff(24),
        "oi_turnover_24": np.log(p["oi_usd"] / p["volume_usd"].rolling(24).sum()),
        "taker_imbalance_12": delta.rolling(12).sum() / total.rolling(12).sum(),
        "cvd_change_24": delta.cumsum().diff(24) / total.rolling(168).mean(),
        "kyle_lambda_48": r1.rolling(48).cov(delta / total) / (delta / total).rolling(48).var(),
        "liq_imbalance_24": (p["liq_short_usd"] - p["liq_long_usd"]).rolling(24).sum() / liq.rolling(24).sum(),
        "liq_to_oi_24": liq.rolling(24).sum() / p["oi_usd"],
        "crowd_change_24": odds.diff(24),
        "hour_sin": np.sin(2 * np.pi * moment.dt.hour / 24),
        "weekday_cos": np.cos(2 * np.pi * (moment.dt.dayofweek * 24 + moment.dt.hour) / 168),
        "weekend": (pd.to_datetime(p["ts"], unit="ms", utc=True).dt.dayofweek >= 5).astype(float),
        "to_funding": 8.0 - moment.dt.hour % 8,
    }
    for name, values in expected.items():
        both = values.notna() & raw[name].notna()
        assert both.sum() > 450, name
        np.testing.assert_allclose(raw.loc[both, name], values[both], rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("price", "oi", "expected"), [(1, 1, 2.0), (1, -1, 1.0), (-1, -1, -1.0), (-1, 1, -2.0), (0, 1, 0.0)]
)
def test_price_oi_quadrants(make_panel: Callable[..., pd.DataFrame], price: int, oi: int, expected: float) -> None:
    steps = np.arange(60)
    panel = make_panel(60, seed=1).assign(close=100 + price * steps * 0.1, oi_usd=1e9 * (1 + oi * steps * 0.001))
    quadrant = feature_set("core", 20)
    assert build_features(panel, quadrant)["price_oi_quadrant_24"].iloc[-1] == expected


def test_one_new_row_from_its_lookback_equals_the_batch_bit_for_bit(make_panel: Callable[..., pd.DataFrame]) -> None:
    """The live path: each new bar is computed from ``lookback`` bars before it and itself."""
    panel = make_panel(CORE.lookback + 60, seed=9, gap_share=0.02)
    batch = build_features(panel, CORE)
    for t in range(CORE.lookback, len(panel)):
        live = build_features(panel.iloc[t - CORE.lookback : t + 1], CORE).iloc[-1]
        want = batch.iloc[t].to_numpy(np.float64)
        np.testing.assert_array_equal(live.to_numpy(np.float64), want)


def test_a_missing_bar_spoils_only_the_windows_that_end_on_it(make_panel: Callable[..., pd.DataFrame]) -> None:
    panel = make_panel(800, seed=4)
    hole = 700
    broken = panel.copy()
    broken.loc[hole, [c for c in panel.columns if c not in ("ts", "late")]] = np.nan
    built = build_features(broken, CORE)
    calendar = [f.name for f in CORE.features if r.panel_inputs(f.name) == ["ts"]]
    assert built.loc[hole, [n for n in CORE.names if n not in calendar]].isna().all()
    assert built.loc[hole, calendar].notna().all()
    after = built.loc[hole + 200 :, list(CORE.names)]
    assert after.notna().all(axis=None)


def test_absent_series_leave_their_features_empty_and_the_rest_alone(make_panel: Callable[..., pd.DataFrame]) -> None:
    panel = make_panel(700, seed=2)
    poor = panel.assign(taker_buy_usd=np.nan, taker_sell_usd=np.nan)
    rich, built = build_features(panel, CORE), build_features(poor, CORE)
    for f in CORE.features:
        if "taker_buy_usd" in r.panel_inputs(f.name):
            assert built[f.name].isna().all(), f.name
        else:
            pd.testing.assert_series_equal(built[f.name], rich[f.name])


def test_an_irregular_panel_or_a_missing_column_is_refused(panel: pd.DataFrame) -> None:
    with pytest.raises(BadDataError, match="not a regular grid"):
        build_features(panel.drop(index=5), CORE)
    with pytest.raises(BadDataError, match="lacks 'oi_usd'"):
        build_features(panel.drop(columns="oi_usd"), CORE)


def test_empty_and_one_row_panels(panel: pd.DataFrame) -> None:
    assert len(build_features(panel.iloc[:0], CORE)) == 0
    one = build_features(panel.iloc[:1], CORE)
    assert len(one) == 1
    assert one["body"].notna().all()


@pytest.mark.archive
def test_recorded_hours_take_seconds(archive_panel: pd.DataFrame) -> None:
    """The aim is 3 s warm on one free core; the bound here leaves room for a busy machine."""
    build_features(archive_panel.iloc[:700], CORE)
    begin = time.process_time()
    built = build_features(archive_panel, CORE)
    assert time.process_time() - begin < 6.0
    assert len(built) == len(archive_panel) == 41_080
    share = built[list(CORE.names)].iloc[5000:].notna().mean()
    assert share.min() > 0.98, share.nsmallest(5)
