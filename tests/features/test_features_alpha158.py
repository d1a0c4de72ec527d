"""Alpha158: against pandas on each expression, against pyqlib's own output, and the rules for missing values."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.features import registry as r
from mlbot_core.features import rolling
from mlbot_core.features.alpha158 import WINDOWS

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = Path(__file__).parent / "qlib" / "reference.py"
SET = r.make_feature_set("alpha158", tuple(f for f in r.all_features() if f.family == "alpha158"), 240)
FIELDS = ("open", "high", "low", "close", "volume_usd")
WARM_UP = 60


def in_float32(prices: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The shared columns that Qlib computes in float32, operator by operator, from its float32 store."""
    close, volume = (pd.Series(prices[name].astype(np.float32)) for name in ("close", "volume_usd"))
    growth = close / close.shift(1)
    columns = {
        "q_growth": growth,
        "q_log_volume": np.log(volume + 1),
        "q_log_volume_growth": np.log(volume / volume.shift(1) + 1),
        "q_volume_move": volume - volume.shift(1),
        "q_weighted_move": (growth - 1).abs() * volume,
    }
    assert all(column.dtype == np.float32 for column in columns.values())
    return {name: column.to_numpy().astype(np.float64) for name, column in columns.items()}


def compute(prices: dict[str, np.ndarray], given: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Every column of the set, with some shared columns given."""
    columns = {"ts": np.arange(float(len(prices["close"]))), **prices, **(given or {})}
    for name in SET.order:
        if name not in columns:
            node = r.node(name)
            columns[name] = node.values(*(columns[needed] for needed in node.inputs))
    return {name: columns[name] for name in SET.names}


def by_pandas(p: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every expression of Qlib in plain pandas, window by window where pandas has no function for it."""
    open_, high, low, close, volume = (pd.Series(p[name]) for name in FIELDS)
    vwap = (high + low + close) / 3
    top, bottom, span = np.maximum(open_, close), np.minimum(open_, close), high - low + 1e-12
    out = {
        "kmid": (close - open_) / open_,
        "klen": (high - low) / open_,
        "kmid2": (close - open_) / span,
        "kup": (high - top) / open_,
        "kup2": (high - top) / span,
        "klow": (bottom - low) / open_,
        "klow2": (bottom - low) / span,
        "ksft": (2 * close - high - low) / open_,
        "ksft2": (2 * close - high - low) / span,
        "open0": open_ / close,
        "high0": high / close,
        "low0": low / close,
        "vwap0": vwap / close,
    }
    move, v_move = close.diff(), volume.diff()
    rise, fall, v_rise, v_fall = (x.clip(lower=0) for x in (move, -move, v_move, -v_move))
    weighted = (close / close.shift(1) - 1).abs() * volume
    log_volume, growth, v_growth = np.log(volume + 1), close / close.shift(1), np.log(volume / volume.shift(1) + 1)
    for n in WINDOWS:
        k = np.arange(1.0, n + 1)
        fits = [np.polyfit(k, w, 1) if len(w) == n else (np.nan, np.nan) for w in close.rolling(n)]
        slope, start = (pd.Series(x) for x in zip(*fits, strict=True))
        high_n, low_n = high.rolling(n), low.rolling(n)
        i_max, i_min = (
            x.apply(lambda w, f=f: f(w) + 1, raw=True) for x, f in ((high_n, np.argmax), (low_n, np.argmin))
        )
        total, v_total = rise.rolling(n).sum() + fall.rolling(n).sum(), v_move.abs().rolling(n).sum()
        own = {
            "roc": close.shift(n) / close,
            "ma": close.rolling(n).mean() / close,
            "std": close.rolling(n).std() / close,
            "beta": slope / close,
            "rsqr": close.rolling(n).corr(pd.Series(np.arange(float(len(close))))) ** 2,
            "resi": (close - slope * n - start) / close,
            "max": high_n.max() / close,
            "min": low_n.min() / close,
            "qtlu": close.rolling(n).quantile(0.8) / close,
            "qtld": close.rolling(n).quantile(0.2) / close,
            "rank": close.rolling(n).rank(pct=True),
            "rsv": (close - low_n.min()) / (high_n.max() - low_n.min() + 1e-12),
            "imax": i_max / n,
            "imin": i_min / n,
            "imxd": (i_max - i_min) / n,
            "corr": close.rolling(n).corr(log_volume),
            "cord": growth.rolling(n).corr(v_growth),
            "cntp": (move > 0).rolling(n).mean(),
            "cntn": (move < 0).rolling(n).mean(),
            "cntd": (move > 0).rolling(n).mean() - (move < 0).rolling(n).mean(),
            "sump": rise.rolling(n).sum() / (total + 1e-12),
            "sumn": fall.rolling(n).sum() / (total + 1e-12),
            "sumd": (rise.rolling(n).sum() - fall.rolling(n).sum()) / (total + 1e-12),
            "vma": volume.rolling(n).mean() / (volume + 1e-12),
            "vstd": volume.rolling(n).std() / (volume + 1e-12),
            "wvma": weighted.rolling(n).std() / (weighted.rolling(n).mean() + 1e-12),
            "vsump": v_rise.rolling(n).sum() / (v_total + 1e-12),
            "vsumn": v_fall.rolling(n).sum() / (v_total + 1e-12),
            "vsumd": (v_rise.rolling(n).sum() - v_fall.rolling(n).sum()) / (v_total + 1e-12),
        }
        out |= {f"{name}{n}": values for name, values in own.items()}
    return {f"a158_{name}": values.to_numpy() for name, values in out.items()}


def prices_of(panel: pd.DataFrame) -> dict[str, np.ndarray]:
    return {name: panel[name].to_numpy(np.float64).copy() for name in FIELDS}


def test_every_expression_equals_pandas(make_panel: Callable[..., pd.DataFrame]) -> None:
    prices = prices_of(make_panel(400, seed=71))
    prices["close"] = np.round(prices["close"] / 50) * 50  # ties: ranks, extremes and unchanged closes
    got, expected = compute(prices), by_pandas(prices)
    assert set(got) == set(expected)
    for name, values in expected.items():
        there = np.isfinite(values[WARM_UP:])
        assert there.mean() > 0.95, name
        np.testing.assert_allclose(
            got[name][WARM_UP:][there], values[WARM_UP:][there], rtol=1e-7, atol=1e-9, err_msg=name
        )


def test_names_lookbacks_and_formulas() -> None:
    rows = {str(row["name"]): row for row in map(dict, r_describe())}
    assert len(rows) == 158
    assert all(row["normalise"] == "none" for row in rows.values())
    assert rows["a158_ma60"]["lookback"] == 59
    assert rows["a158_roc60"]["lookback"] == rows["a158_sump60"]["lookback"] == 60
    assert rows["a158_ma5"]["lookback"] == 4
    assert rows["a158_kmid"]["lookback"] == 0
    assert rows["a158_qtlu20"]["definition"] == "Quantile($close, 20, 0.8)/$close"
    assert rows["a158_klen"]["inputs"] == ["open", "high", "low"]
    assert rows["a158_vwap0"]["inputs"] == ["high", "low", "close"]
    assert rows["a158_imxd5"]["inputs"] == ["high", "low"]
    assert rows["a158_wvma5"]["inputs"] == ["close", "volume_usd"]
    assert SET.lookback == 60


def r_describe() -> list[dict[str, object]]:
    return r.describe(SET.features)


@pytest.mark.parametrize(("missing", "answers"), [(2, True), (3, False)])
def test_eighty_percent_of_the_window_must_be_there(missing: int, answers: bool) -> None:
    rng = np.random.default_rng(3)
    close = 100 + rng.normal(size=80).cumsum()
    prices = {"open": close - 0.1, "high": close + 1, "low": close - 1, "close": close, "volume_usd": close**2}
    holed = {name: values.copy() for name, values in prices.items()}
    for values in holed.values():
        values[71 : 71 + missing] = np.nan
    got = compute(holed)
    for name in (
        "ma10",
        "std10",
        "beta10",
        "rsqr10",
        "resi10",
        "max10",
        "rank10",
        "qtlu10",
        "rsv10",
        "imax10",
        "vma10",
    ):
        assert np.isfinite(got[f"a158_{name}"][-1]) == answers, name
        assert np.isnan(got[f"a158_{name}"][72]), name
    if answers:
        window = pd.Series(holed["close"][-10:])
        assert got["a158_ma10"][-1] == pytest.approx(window.mean() / close[-1], rel=1e-12)
        assert got["a158_std10"][-1] == pytest.approx(window.std() / close[-1], rel=1e-12)
        assert got["a158_qtld10"][-1] == pytest.approx(window.quantile(0.2) / close[-1], rel=1e-12)
        at = np.flatnonzero(window.notna())
        assert got["a158_beta10"][-1] == pytest.approx(np.polyfit(at, window.dropna(), 1)[0] / close[-1], rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    x=st.lists(st.sampled_from([1.0, 2.0, 2.5, 3.0, 7.0, np.nan]), min_size=1, max_size=50),
    n=st.integers(2, 12),
)
def test_order_statistics_equal_pandas(x: list[float], n: int) -> None:
    series = pd.Series(x)
    count, rank, high, low = rolling.order_statistics(series.to_numpy(), n)
    windows = series.rolling(n, min_periods=1)
    fits = np.arange(len(x)) >= n - 1
    np.testing.assert_array_equal(np.isnan(count), ~fits)
    np.testing.assert_array_equal(count[fits], windows.count()[fits])
    use = fits & series.notna().to_numpy()
    np.testing.assert_allclose(rank[use], windows.rank(pct=True)[use], rtol=1e-12)
    np.testing.assert_allclose(high[use], windows.quantile(0.8)[use], rtol=1e-12)
    np.testing.assert_allclose(low[use], windows.quantile(0.2)[use], rtol=1e-12)


@pytest.fixture(scope="module")
def qlib_output(archive_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The recorded hourly prices through pyqlib, in its own environment (kept under .cache, which git ignores)."""
    folder = tmp_path_factory.mktemp("qlib")
    raw = pd.read_parquet(archive_dir / "btcusdt_perp_1h.parquet")
    columns = {name: raw[name].to_numpy(np.float64) for name in ("open", "high", "low", "close", "volume")}
    columns["vwap"] = (columns["high"] + columns["low"] + columns["close"]) / 3
    ts = raw["ts"].dt.as_unit("ms").astype("int64").to_numpy()
    np.savez(folder / "prices.npz", ts=ts, **columns)
    done = subprocess.run(
        [sys.executable, str(REFERENCE), "--prices", str(folder / "prices.npz"), "--out", str(folder / "out.npz"),
         "--environment", str(ROOT / ".cache" / "qlib-venv")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["versions"]["qlib"] == "0.9.7"
    assert said["bars"] == len(raw) == 41_080
    output = dict(np.load(folder / "out.npz"))
    np.testing.assert_array_equal(output["ts"], ts)
    return output


def excess(got: np.ndarray, expected: np.ndarray, floor: float) -> np.ndarray:
    """Where two columns differ by more than 1e-4 relative and more than the floor."""
    there = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), ~there)
    apart = np.abs(got[there] - expected[there])
    return apart > 1e-4 * np.abs(expected[there]) + floor


@pytest.mark.archive
@pytest.mark.slow
def test_all_158_columns_equal_pyqlib(qlib_output: dict[str, np.ndarray]) -> None:
    """Beyond the warm-up, from the prices as Qlib's store holds them (float32).

    Qlib rounds to float32 between operators. First with the same five shared columns in float32: every value of every
    column within 1e-4 relative, with a floor of 1e-8 for values that are zero but for rounding. Then
    as the product computes, in float64: all columns but three the same; in CORR, CORD and WVMA, which rest on
    rounded ratios and logs, fewer than 4 % of the values differ by more than 1e-4 relative, none by more than 1e-3.
    """
    assert [f"a158_{name.lower()}" for name in qlib_output["names"]] == list(SET.names)
    stored = qlib_output["prices"].astype(np.float64)
    prices = {name: np.ascontiguousarray(stored[:, at]) for at, name in enumerate((*FIELDS[:4], "vwap", "volume_usd"))}
    prices.pop("vwap")
    expected = qlib_output["values"].astype(np.float64)[WARM_UP:]
    alike, ours = compute(prices, in_float32(prices)), compute(prices)
    for at, name in enumerate(SET.names):
        assert not excess(alike[name][WARM_UP:], expected[:, at], 1e-8).any(), name
        loose = name.startswith(("a158_corr", "a158_cord", "a158_wvma"))
        share = excess(ours[name][WARM_UP:], expected[:, at], 1e-7).mean()
        assert share < (0.04 if loose else 1e-12), (name, share)
        assert np.nanmax(np.abs(ours[name][WARM_UP:] - expected[:, at])) < (1e-3 if loose else np.inf), name
