"""Seeded synthetic panels, and the recorded data laid out as the warehouse would hand it over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlbot_core.clock import FixedClock
from mlbot_core.features import SettledSeries, build_panel, registry
from mlbot_core.market import CORE_SERIES, SeriesBatch, make_table, series_spec
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market, Month, Timeframe
from mlbot_core.warehouse import PartitionKey, PartitionOutcome, Verdict, Warehouse, append, record_partition
from mlbot_core.warehouse.ingest import RAW_CHECKS, partition_name

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
        return frame["ts"].dt.as_unit("ms").astype("int64").to_numpy()

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


def _walk(rng: np.random.Generator, bars: int, start: float, step: float) -> np.ndarray:
    return start * np.exp(np.cumsum(rng.normal(0, step, bars)))


def full_inputs(bars: int, seed: int, gap_share: float = 0.0, timeframe: str = "1h") -> dict[str, SettledSeries]:
    """Every series of the catalogue: those of the market's pace with their lags and gaps, the daily ones daily."""
    rng = np.random.default_rng(seed + 1_000_003)
    frame_of = Timeframe.parse(timeframe)
    ts = START + np.arange(bars, dtype=np.int64) * frame_of.ms
    days = np.arange(START - 9 * DAY_MS, ts[-1] + 1, DAY_MS)
    eights = np.arange(START - 2 * DAY_MS, ts[-1] + 1, 8 * HOUR_MS)
    sigma = 0.004 * np.exp(np.convolve(rng.normal(0, 0.3, bars + 49), np.ones(50) / 7, mode="valid"))
    close = 30_000 * np.exp(np.cumsum(rng.normal(0, 1, bars) * sigma))
    opened = np.concatenate([[30_000.0], close[:-1]])
    high = np.maximum(opened, close) * np.exp(np.abs(rng.normal(0, 0.5, bars)) * sigma)
    low = np.minimum(opened, close) * np.exp(-np.abs(rng.normal(0, 0.5, bars)) * sigma)
    spot = close * np.exp(rng.normal(0, 4e-4, bars))
    volume = rng.lognormal(18, 0.6, bars)
    total_oi = _walk(rng, bars, 2e10, 0.005)

    def here(name: str, lag_bars: int = 0, **columns: np.ndarray) -> SettledSeries:
        keep = rng.random(bars) >= gap_share
        chosen = {column: values[keep] for column, values in columns.items()}
        return settled(name, timeframe, ts[keep], lag_bars * frame_of.ms, **chosen)

    def bars_of(close_: np.ndarray, width: float) -> dict[str, np.ndarray]:
        spread = np.abs(rng.normal(0, width, (2, bars)))
        return {"close": close_, "high": close_ + spread[0], "low": close_ - spread[1]}

    def sides(first: str, second: str, scale: float, sigma_: float = 0.3) -> dict[str, np.ndarray]:
        return {name: rng.lognormal(np.log(scale), sigma_, bars) for name in (first, second)}

    def depth() -> dict[str, np.ndarray]:
        coins = sides("bids_coin", "asks_coin", 900.0)
        away = rng.uniform(0.003, 0.007, (2, bars))
        return {
            **coins,
            "bids_usd": coins["bids_coin"] * close * (1 - away[0]),
            "asks_usd": coins["asks_coin"] * close * (1 + away[1]),
        }

    def share() -> np.ndarray:
        return 0.5 + 0.3 * np.tanh(np.cumsum(rng.normal(0, 0.05, bars)))

    def flow(name: str, share_of: float) -> SettledSeries:
        part = volume * share_of * rng.uniform(0.8, 1.2, bars)
        buys = part * rng.uniform(0.4, 0.6, bars)
        return here(name, buy_usd=buys, sell_usd=part - buys)

    def funding() -> np.ndarray:
        return 1e-4 + np.cumsum(rng.normal(0, 1e-5, bars))

    trading = days[((days // DAY_MS + 3) % 7) < 5]
    return {
        "price": here(
            "price", open=opened, high=high, low=low, close=close, volume_usd=volume, volume_coin=volume / close
        ),
        "spot_price": here("spot_price", close=spot, volume_usd=volume * rng.uniform(0.1, 0.3, bars)),
        "open_interest": here("open_interest", **bars_of(total_oi, 1e7)),
        "open_interest_pair": here(
            "open_interest_pair",
            close=total_oi * 0.3,
            close_coin=total_oi * 0.3 / close * rng.uniform(0.99, 1.01, bars),
        ),
        "open_interest_stablecoin": here("open_interest_stablecoin", close=_walk(rng, bars, 2e5, 0.004)),
        "open_interest_coin_margin": here("open_interest_coin_margin", close=_walk(rng, bars, 3e9, 0.006)),
        "funding_rate": here("funding_rate", **bars_of(funding(), 1e-5)),
        "funding_rate_pair": here("funding_rate_pair", close=funding()),
        "funding_rate_volume": here("funding_rate_volume", close=funding()),
        "funding_settled": settled("funding_settled", "8h", eights, rate=rng.normal(1e-4, 5e-5, len(eights))),
        "long_short_ratio": here("long_short_ratio", long_share=share()),
        "top_account_ratio": here("top_account_ratio", long_share=share()),
        "top_position_ratio": here("top_position_ratio", long_share=share()),
        "liquidations": here("liquidations", **sides("long_usd", "short_usd", 2e5, 2.0)),
        "liquidations_pair": here("liquidations_pair", **sides("long_usd", "short_usd", 6e4, 2.0)),
        "taker_volume": flow("taker_volume", 3.0),
        "taker_volume_pair": flow("taker_volume_pair", 1.0),
        "taker_volume_spot": flow("taker_volume_spot", 0.2),
        "order_book": here("order_book", 1, **depth()),
        "order_book_aggregated": here("order_book_aggregated", 1, **depth()),
        "coinbase_premium": here("coinbase_premium", premium_rate=rng.normal(0, 3e-4, bars)),
        "bitfinex_margin": here(
            "bitfinex_margin", 1, long_coin=_walk(rng, bars, 6e4, 0.002), short_coin=_walk(rng, bars, 6e2, 0.02)
        ),
        "borrow_rate": here("borrow_rate", rate=_walk(rng, bars, 1e-4, 0.05)),
        "whale_index": here("whale_index", value=rng.normal(0, 50, bars)),
        "fear_greed": settled("fear_greed", "1d", days, value=rng.uniform(10, 90, len(days)).round()),
        "etf_flows": settled(
            "etf_flows", "1d", trading, 12 * HOUR_MS, flow_usd=rng.normal(5e7, 2e8, len(trading)).round()
        ),
        "options_oi": settled("options_oi", "1d", days, oi_usd=_walk(rng, len(days), 2e10, 0.03)),
        "mark_price": here("mark_price", close=close * np.exp(rng.normal(0, 1e-4, bars))),
        "index_price": here("index_price", close=spot * np.exp(rng.normal(0, 1e-4, bars))),
        "premium_index": here("premium_index", close=rng.normal(0, 4e-4, bars)),
    }


@pytest.fixture(scope="session")
def make_full_inputs() -> Callable[..., dict[str, SettledSeries]]:
    return full_inputs


@pytest.fixture(scope="session")
def make_full_panel() -> Callable[..., pd.DataFrame]:
    def make(bars: int, seed: int, gap_share: float = 0.0, timeframe: str = "1h") -> pd.DataFrame:
        inputs = full_inputs(bars, seed, gap_share, timeframe)
        market = Market.parse(f"BTC-{timeframe}")
        return build_panel(inputs, market, START, START + bars * market.timeframe.ms, DELAY)

    return make


@pytest.fixture(scope="session")
def raw_values() -> Callable[[pd.DataFrame, str], np.ndarray]:
    """The value of a declared column on a panel before any normalisation, without the registry's masking."""

    def compute(panel: pd.DataFrame, name: str) -> np.ndarray:
        columns = {column: panel[column].to_numpy(np.float64).copy() for column in registry.panel_inputs(name)}
        for column in registry.dependency_order((name,)):
            node = registry.node(column)
            columns[column] = node.values(*(columns[needed] for needed in node.inputs))
        return columns[name]

    return compute


@pytest.fixture
def fill_store(tmp_path: Path) -> Callable[..., Warehouse]:
    """Settled series as a source would have delivered them, with a good verdict for every month."""

    def fill(inputs: dict[str, SettledSeries], market: Market, observed_at: int | None = None) -> Warehouse:
        """``observed_at`` None: each bar was watched live and seen when it became known; else all seen then."""
        price = inputs["price"]
        now = int(price.ts[-1]) + 40 * DAY_MS
        warehouse = Warehouse(tmp_path / "store.duckdb", FixedClock(now))
        months = Month.span(int(price.ts[0]), int(price.ts[-1]) + 1)
        good = tuple(Verdict(check, True) for check in RAW_CHECKS)
        with warehouse.write() as con:
            for name in CORE_SERIES:
                series = inputs[name]
                seen = series.known_at if observed_at is None else np.full(len(series.ts), observed_at)
                values = {column: series.values(column) for column in series_spec(name).column_names}
                batch = SeriesBatch(
                    name,
                    market.symbol,
                    series.timeframe,
                    "archive",
                    make_table(name, series.ts, seen, values),
                    recorded=observed_at is None,
                    live_since_ms=0 if observed_at is None else None,
                )
                append(con, batch, now_ms=now)
                for month in months:
                    key = PartitionKey(name, "archive", partition_name(market, month))
                    outcome = PartitionOutcome(key, 1, f"{name}-{month}", good, {"timeframe": str(series.timeframe)})
                    record_partition(con, outcome, now_ms=now, run_id="test")
        return warehouse

    return fill
