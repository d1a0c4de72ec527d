"""Seeded synthetic panels, and the recorded data laid out as the warehouse would hand it over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlbot_core.features import SettledSeries, build_panel
from mlbot_core.market import series_spec
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market, Timeframe

START = 1_700_006_400_000  # 2023-11-15 00:00 UTC, a day's open
DELAY = 5_000


def settled(name: str, timeframe: str, ts: np.ndarray, lag_ms: int = 0, **columns: np.ndarray) -> SettledSeries:
    frame_of = Timeframe.parse(timeframe)
    frame = pd.DataFrame({"ts": np.asarray(ts, np.int64)})
    frame["known_at"] = frame["ts"] + frame_of.ms + lag_ms
    for column in series_spec(name).column_names:
        frame[column] = columns.get(column, np.full(len(frame), np.nan))
    return SettledSeries(name, frame_of, frame)


def synthetic_inputs(bars: int, seed: int, gap_share: float = 0.0) -> dict[str, SettledSeries]:
    """1h prices, OI, taker volume and liquidations, 8h settled funding, daily ratio; some bars missing."""
    rng = np.random.default_rng(seed)
    ts = START + np.arange(bars, dtype=np.int64) * HOUR_MS
    sigma = 0.004 * np.exp(np.convolve(rng.normal(0, 0.3, bars + 49), np.ones(50) / 7, mode="valid"))
    close = 30_000 * np.exp(np.cumsum(rng.normal(0, 1, bars) * sigma))
    open_ = np.concatenate([[30_000.0], close[:-1]])
    high = np.maximum(open_, close) * np.exp(np.abs(rng.normal(0, 0.5, bars)) * sigma)
    low = np.minimum(open_, close) * np.exp(-np.abs(rng.normal(0, 0.5, bars)) * sigma)
    volume = rng.lognormal(18, 0.6, bars)
    oi = 2e10 * np.exp(np.cumsum(rng.normal(0, 0.005, bars)))
    buys = volume * rng.uniform(0.4, 0.6, bars)
    days = np.arange(START - 3 * DAY_MS, ts[-1] + 1, DAY_MS)
    eights = np.arange(START - DAY_MS, ts[-1] + 1, 8 * HOUR_MS)
    keep = [rng.random(bars) >= gap_share for _ in range(4)]

    def pick(at: int, *values: np.ndarray) -> list[np.ndarray]:
        return [value[keep[at]] for value in (ts, *values)]

    p_ts, p_open, p_high, p_low, p_close, p_volume = pick(0, open_, high, low, close, volume)
    o_ts, o_close = pick(1, oi)
    t_ts, t_buy, t_sell = pick(2, buys, volume - buys)
    l_ts, l_long, l_short = pick(3, rng.lognormal(12, 2, bars), rng.lognormal(12, 2, bars))
    return {
        "price": settled("price", "1h", p_ts, open=p_open, high=p_high, low=p_low, close=p_close, volume_usd=p_volume),
        "open_interest": settled("open_interest", "1h", o_ts, close=o_close),
        "taker_volume": settled("taker_volume", "1h", t_ts, buy_usd=t_buy, sell_usd=t_sell),
        "liquidations": settled("liquidations", "1h", l_ts, long_usd=l_long, short_usd=l_short),
        "funding_rate": settled("funding_rate", "1h", ts, close=rng.normal(1e-4, 5e-5, bars)),
        "funding_settled": settled("funding_settled", "8h", eights, rate=rng.normal(1e-4, 5e-5, len(eights))),
        "long_short_ratio": settled(
            "long_short_ratio", "1d", days, lag_ms=60_000, long_share=rng.uniform(0.4, 0.7, len(days))
        ),
    }


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., dict[str, SettledSeries]]:
    return synthetic_inputs


@pytest.fixture(scope="session")
def make_panel() -> Callable[..., pd.DataFrame]:
    def make(bars: int, seed: int, gap_share: float = 0.0) -> pd.DataFrame:
        inputs = synthetic_inputs(bars, seed, gap_share)
        return build_panel(inputs, Market.parse("BTC-1h"), START, START + bars * HOUR_MS, DELAY)

    return make


@pytest.fixture(scope="session")
def archive_inputs(archive_dir: Path) -> dict[str, SettledSeries]:
    """The recorded hourly prices, 8h funding and daily Coinglass series in canonical units."""

    def ms(frame: pd.DataFrame) -> np.ndarray:
        return frame["ts"].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[ms]").astype(np.int64)

    price = pd.read_parquet(archive_dir / "btcusdt_perp_1h.parquet")
    daily = pd.read_parquet(archive_dir / "coinglass_btc_1d.parquet")
    funding = pd.read_parquet(archive_dir / "btcusdt_perp_funding_8h.parquet")
    ohlc = {name: price[name].to_numpy() for name in ("open", "high", "low", "close")}
    day = {name: daily[name].to_numpy() for name in daily.columns if name != "ts"}
    d_ts = ms(daily)
    return {
        "price": settled("price", "1h", ms(price), **ohlc, volume_usd=(price["volume"] * price["close"]).to_numpy()),
        "open_interest": settled("open_interest", "1d", d_ts, close=day["oi_all_exch_usd"]),
        "funding_rate": settled("funding_rate", "1d", d_ts, close=day["funding_oiw_close"] * 0.01),
        "funding_settled": settled("funding_settled", "8h", ms(funding), rate=funding["funding_rate"].to_numpy()),
        "long_short_ratio": settled(
            "long_short_ratio", "1d", d_ts, long_share=day["lsr_global"] / (1 + day["lsr_global"])
        ),
        "liquidations": settled(
            "liquidations", "1d", d_ts, long_usd=day["liq_long_usd"], short_usd=day["liq_short_usd"]
        ),
        "taker_volume": settled(
            "taker_volume", "1d", d_ts, buy_usd=day["taker_buy_usd"], sell_usd=day["taker_sell_usd"]
        ),
    }


@pytest.fixture(scope="session")
def archive_panel(archive_inputs: dict[str, SettledSeries]) -> pd.DataFrame:
    ts = archive_inputs["price"].ts
    return build_panel(archive_inputs, Market.parse("BTC-1h"), int(ts[0]), int(ts[-1]) + HOUR_MS, DELAY)
