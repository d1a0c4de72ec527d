"""Rebuilt indicators against TA-Lib itself, the restart's error, and what a missing bar does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import talib

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features import recursive as rec
from mlbot_core.features import registry as r
from mlbot_core.features import technical as t
from mlbot_core.features import technical_bands as b
from mlbot_core.features import technical_volume as v

BARS = 1600
FORGETS = 1000  # a window so long that the start weighs nothing, for spans up to 30


@pytest.fixture(scope="module")
def bars(make_panel: Callable[..., pd.DataFrame]) -> dict[str, np.ndarray]:
    panel = make_panel(BARS, seed=61)
    return {name: panel[name].to_numpy(np.float64) for name in ("open", "high", "low", "close", "volume_usd")}


def same(got: np.ndarray, expected: np.ndarray, rtol: float = 1e-9, atol: float = 0.0, start: int = FORGETS) -> None:
    assert np.isfinite(got[start:]).all()
    np.testing.assert_allclose(got[start:], expected[start:], rtol=rtol, atol=atol)


def test_averages_equal_talib_given_enough_history(bars: dict[str, np.ndarray]) -> None:
    close = bars["close"]
    for span in (3, 9, 12, 15, 26):
        same(rec.ema(close, span, FORGETS), talib.EMA(close, timeperiod=span))
    for period in (6, 14):
        same(t.relative_strength(close, period, FORGETS - 1), talib.RSI(close, timeperiod=period))
    true_range = e.true_range(bars["high"], bars["low"], close)
    same(rec.wilder(true_range, 14, FORGETS - 1), talib.ATR(bars["high"], bars["low"], close, timeperiod=14))


def test_averages_skip_gaps_and_need_eighty_percent() -> None:
    x = 100 + np.random.default_rng(1).normal(size=400).cumsum()
    holes = x.copy()
    holes[np.random.default_rng(2).random(400) < 0.1] = np.nan
    got = rec.ema(holes, 6)
    for i in range(60, 400):
        window = holes[i - 60 : i + 1]
        if np.isfinite(holes[i]) and 10 * np.isfinite(window).sum() >= 8 * 61:
            expected = pd.Series(window[np.isfinite(window)]).ewm(span=6, adjust=False).mean().iloc[-1]
            assert got[i] == pytest.approx(expected, rel=1e-12)
        else:
            assert np.isnan(got[i])
    assert np.isnan(got[:60]).all()


def raw(bars: dict[str, np.ndarray], name: str) -> np.ndarray:
    columns = {"ts": np.arange(float(BARS)), **bars}
    for needed in r.dependency_order((name,)):
        columns[needed] = r.node(needed).values(*(columns[one] for one in r.node(needed).inputs))
    return columns[name]


def talib_columns(bars: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    open_, high, low, close, volume = (bars[name] for name in ("open", "high", "low", "close", "volume_usd"))
    macd, signal, _ = talib.MACD(close, 12, 26, 9)
    slow_k, slow_d = talib.STOCH(high, low, close, 14, 3, 0, 3, 0)
    fast_rsi, _ = talib.STOCHRSI(close, 14, 14, 3, 0)
    upper, middle, lower = talib.BBANDS(close, 20, 2, 2)
    with np.errstate(all="ignore"):
        return {
            "rsi_6": (talib.RSI(close, 6) - 50) / 50,
            "rsi_28": (talib.RSI(close, 28) - 50) / 50,
            "stoch_rsi_14": fast_rsi / 100,
            "plus_di_14": talib.PLUS_DI(high, low, close, 14) / 100,
            "minus_di_14": talib.MINUS_DI(high, low, close, 14) / 100,
            "dx_14": talib.DX(high, low, close, 14) / 100,
            "adx_14": talib.ADX(high, low, close, 14) / 100,
            "macd": macd / close,
            "macd_signal": signal / close,
            "ppo": talib.PPO(close, 12, 26, 1) / 100,
            "trix_15": talib.TRIX(close, 15) / 100,
            "dema_gap_15": np.log(close / talib.DEMA(close, 15)),
            "tema_gap_15": np.log(close / talib.TEMA(close, 15)),
            "stoch_k": slow_k / 100,
            "stoch_d_gap": (slow_k - slow_d) / 100,
            "cci_14": talib.CCI(high, low, close, 14) / 100,
            "cci_40": talib.CCI(high, low, close, 40) / 100,
            "willr_14": talib.WILLR(high, low, close, 14) / 100,
            "aroon_osc_14": talib.AROONOSC(high, low, 14) / 100,
            "roc_10": talib.ROCP(close, 10),
            "mom_atr_10": talib.MOM(close, 10) / talib.ATR(high, low, close, 14),
            "linreg_angle_14": talib.LINEARREG_ANGLE(100 * np.log(close), 14),
            "linreg_slope_48": talib.LINEARREG_SLOPE(close, 48) / close,
            "tsf_gap_14": np.log(talib.TSF(close, 14) / close),
            "ultosc": (talib.ULTOSC(high, low, close, 7, 14, 28) - 50) / 50,
            "mfi_14": (talib.MFI(high, low, close, volume, 14) - 50) / 50,
            "bb_place_20": (close - lower) / (upper - lower),
            "bb_width_20": np.log((upper - lower) / middle),
            "var_60": np.log(talib.VAR(close, 60) / close**2),
            "natr_7": talib.NATR(high, low, close, 7) / 100,
            "midprice_gap_14": np.log(close / talib.MIDPRICE(high, low, 14)),
            "adosc_10": talib.ADOSC(high, low, close, volume, 3, 10) / talib.SMA(volume, 10),
            "ad_share_20": pd.Series(talib.AD(high, low, close, volume)).diff(20).to_numpy()
            / (20 * talib.SMA(volume, 20)),
            "obv_share_10": pd.Series(talib.OBV(close, volume)).diff(10).to_numpy() / (10 * talib.SMA(volume, 10)),
            "engulfing": talib.CDLENGULFING(open_, high, low, close) / 100,
            "three_outside": talib.CDL3OUTSIDE(open_, high, low, close) / 100,
        }


RESTARTED = {
    "rsi",
    "stoch",
    "plus",
    "minus",
    "dx",
    "adx",
    "macd",
    "ppo",
    "trix",
    "dema",
    "tema",
    "natr",
    "adosc",
    "mom",
}


def test_every_indicator_equals_talib(bars: dict[str, np.ndarray]) -> None:
    """Windowed ones to rounding, restarted ones to what exp(-20) of the start leaves, both against the deviation."""
    expected = talib_columns(bars)
    rebuilt = {f.name for f in r.all_features() if f.family == "technical"}
    assert set(expected) <= rebuilt
    # di_gap is made of plus_di and minus_di
    assert {name.split("_")[0] for name in rebuilt} - {"di"} == {name.split("_")[0] for name in expected}
    for name, values in expected.items():
        scale = float(np.nanstd(values[FORGETS:]))
        restarted = name.split("_")[0] in RESTARTED
        same(raw(bars, name), values, rtol=1e-9, atol=(1e-6 if restarted else 1e-8) * scale)


def test_the_oscillator_of_accumulation_equals_talib_exactly_given_history(bars: dict[str, np.ndarray]) -> None:
    high, low, close, volume = (bars[name] for name in ("high", "low", "close", "volume_usd"))
    got = v.chaikin_oscillator(raw(bars, "money_flow"), 3, 10, FORGETS)
    expected = talib.ADOSC(high, low, close, volume, 3, 10)
    # the running line that TA-Lib carries is of order 1e10 here, and so is its rounding
    same(got, expected, rtol=1e-9, atol=1e-9 * float(np.nanstd(expected)))


def test_a_missing_bar_spoils_its_windows_and_no_more(bars: dict[str, np.ndarray]) -> None:
    close = bars["close"].copy()
    whole = rec.talib_window("ROCP", close, timeperiod=10)
    close[700] = np.nan
    holed = rec.talib_window("ROCP", close, timeperiod=10)
    assert np.isnan(holed[700:711]).all()
    np.testing.assert_array_equal(np.delete(holed, range(700, 711)), np.delete(whole, range(700, 711)))
    patterns = raw({**bars, "close": close}, "engulfing")
    assert np.isnan(patterns[700:703]).all()
    assert np.isfinite(patterns[703:]).all()


def test_bollinger_deviation_is_the_population_one(bars: dict[str, np.ndarray]) -> None:
    close = bars["close"]
    same(b.band_deviation(close, 20), talib.STDDEV(close, 20), rtol=1e-7)
    assert k.std(close, 20)[-1] > b.band_deviation(close, 20)[-1]
