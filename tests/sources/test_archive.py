"""Recorded data: content against the files themselves, and every way a file can be damaged."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.errors import BadDataError, ConfigError, UsageError
from mlbot_core.market import CATALOGUE
from mlbot_core.market.batch import column
from mlbot_core.sources import open_source
from mlbot_core.sources.archive import _VINTAGES, ArchiveSource, VintageArchiveSource
from mlbot_core.sources.base import CAUSE_AFTER_RECORD, CAUSE_BEFORE_RECORD, CAUSE_NOT_RECORDED
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market, Timeframe

NOW = parse_utc_ms("2026-01-01T00:02:00Z")
END = parse_utc_ms("2025-07-01")
PRICE_START = parse_utc_ms("2020-10-23T08:00:00Z")
DAILY_START = parse_utc_ms("2020-12-23")
M1, M2, M4, MD = (Market.parse(f"BTC-{t}") for t in ("1h", "2h", "4h", "1d"))
DAILY = ("open_interest", "funding_rate", "long_short_ratio", "liquidations", "taker_volume")
MORE_DAILY = (
    "open_interest_stablecoin",
    "open_interest_coin_margin",
    "funding_rate_volume",
    "top_account_ratio",
    "top_position_ratio",
)


def values(batch, name):
    return np.asarray(batch.table.column(name).to_numpy(zero_copy_only=False), dtype=float)


def raw(path, *names):
    table = pq.read_table(path)
    times = [column_ms(table, name) for name in ("ts", "observed_at") if name in table.column_names]
    return (*times, *(np.asarray(table.column(name).to_numpy(), dtype=float) for name in names))


def column_ms(table, name):
    return np.asarray(table.column(name).cast(pa.int64()).to_numpy())


@pytest.fixture
def archive(archive_dir):
    with ArchiveSource(archive_dir, FixedClock(NOW)) as source:
        yield source


@pytest.fixture
def vintages(archive_dir):
    with VintageArchiveSource(archive_dir, FixedClock(NOW)) as source:
        yield source


@pytest.mark.archive
def test_hourly_price_is_the_file(archive, archive_dir):
    batch = archive.fetch("price", M1, 0, END)
    ts, open_, high, low, close, volume = raw(
        archive_dir / "btcusdt_perp_1h.parquet", "open", "high", "low", "close", "volume"
    )
    assert batch.rows == 41_080
    assert np.array_equal(column(batch.table, "ts"), ts)
    for name, expected in (("open", open_), ("high", high), ("low", low), ("close", close), ("volume_coin", volume)):
        assert np.array_equal(values(batch, name), expected)
    np.testing.assert_allclose(values(batch, "volume_usd"), volume * (high + low + close) / 3, rtol=1e-14)
    # first row by hand: 9856.01 BTC at (12961.83 + 12856.00 + 12919.12) / 3
    assert values(batch, "volume_usd")[0] == pytest.approx(9856.01 * 12912.316666666667, rel=1e-12)
    assert set(column(batch.table, "observed_at").tolist()) == {NOW}
    assert not batch.recorded
    assert "volume_usd" in batch.notes[0]


@pytest.mark.archive
@pytest.mark.parametrize(("market", "hours", "first"), [(M2, 2, 8), (M4, 4, 8), (MD, 24, 24)])
def test_longer_price_bars(archive, archive_dir, market, hours, first):
    batch = archive.fetch("price", market, 0, END)
    ts = column(batch.table, "ts")
    day = parse_utc_ms("2020-10-23")
    assert ts.tolist() == list(range(day + first * HOUR_MS, END, hours * HOUR_MS))
    _, open_, high, low, close, volume = raw(
        archive_dir / "btcusdt_perp_1h.parquet", "open", "high", "low", "close", "volume"
    )
    skip = first - 8
    shape = (-1, hours)
    assert np.array_equal(values(batch, "open"), open_[skip:].reshape(shape)[:, 0])
    assert np.array_equal(values(batch, "high"), high[skip:].reshape(shape).max(axis=1))
    assert np.array_equal(values(batch, "low"), low[skip:].reshape(shape).min(axis=1))
    assert np.array_equal(values(batch, "close"), close[skip:].reshape(shape)[:, -1])
    assert values(batch, "volume_coin").sum() == pytest.approx(volume[skip:].sum(), rel=1e-12)
    assert batch.timeframe == market.timeframe
    assert archive.served("price", market).earliest_ms == int(ts[0])
    assert archive.served("price", market).latest_ms == END


@pytest.mark.archive
def test_approximate_turnover_is_close_to_the_recorded_daily_one(archive, archive_dir):
    """Against the exchange's own daily quote volume: median error 0.02 %, 15 of 1651 days beyond 0.2 %."""
    batch = archive.fetch("price", MD, DAILY_START, END)
    _, quote = raw(archive_dir / "coinglass_btc_1d.parquet", "quote_vol")
    error = values(batch, "volume_usd") / quote - 1
    assert len(error) == 1651
    assert np.median(np.abs(error)) < 0.0003
    assert int((np.abs(error) > 0.002).sum()) == 15
    assert np.abs(error).max() < 0.05


@pytest.mark.archive
@pytest.mark.parametrize("market", [M1, M4, MD])
def test_settled_funding_stays_at_8h(archive, archive_dir, market):
    batch = archive.fetch("funding_settled", market, 0, END)
    ts, rate = raw(archive_dir / "btcusdt_perp_funding_8h.parquet", "funding_rate")
    assert batch.timeframe == Timeframe.parse("8h")
    assert batch.rows == 6_024
    assert np.array_equal(column(batch.table, "ts"), ts)
    assert np.array_equal(values(batch, "rate"), rate)
    assert values(batch, "rate")[0] == -0.00012359


@pytest.mark.archive
def test_daily_series_units(archive):
    batches = {name: archive.fetch(name, M1, 0, END) for name in DAILY}
    for batch in batches.values():
        assert batch.timeframe == Timeframe.parse("1d")
        assert batch.rows == 1_651
        assert column(batch.table, "ts").tolist() == list(range(DAILY_START, END, DAY_MS))
    first = {name: batch.table.slice(0, 1).to_pylist()[0] for name, batch in batches.items()}
    assert first["open_interest"]["close"] == 8667241125.0
    assert first["open_interest"]["open"] is None
    assert first["funding_rate"]["close"] == pytest.approx(0.0001781609, rel=1e-12)
    # 1.43 longs a short: 143 of 243
    assert first["long_short_ratio"]["long_share"] == pytest.approx(143 / 243, rel=1e-12)
    assert first["long_short_ratio"]["short_share"] == pytest.approx(100 / 243, rel=1e-12)
    assert first["liquidations"]["long_usd"] == 53684695.07304
    assert first["liquidations"]["short_usd"] == 42948190.84783
    assert first["taker_volume"]["buy_usd"] == 8668864343.79262
    assert first["taker_volume"]["sell_usd"] == 8966517634.131882
    later = {name: archive.fetch(name, M1, 0, END).table.slice(0, 1).to_pylist()[0] for name in MORE_DAILY}
    # coins: at 23,800 USD each about 1.8e9 USD
    assert 3e4 < later["open_interest_stablecoin"]["close"] < 3e5
    assert 1e9 < later["open_interest_coin_margin"]["close"] < 1e10
    for name in ("top_account_ratio", "top_position_ratio"):
        assert later[name]["long_share"] + later[name]["short_share"] == pytest.approx(1, rel=1e-12)
    # Coinglass has it since 2023-04-23 only: what is before is no value, not a zero
    assert later["funding_rate_volume"]["ts"] == parse_utc_ms("2023-04-23")
    assert archive.fetch("funding_rate_volume", M1, 0, END).rows == 800
    assert all("not point in time" in archive.served(name, M1).note for name in DAILY)


@pytest.mark.archive
def test_range_gaps_and_clock(archive, archive_dir):
    day = parse_utc_ms("2020-10-23")
    batch = archive.fetch("price", M2, day, day + DAY_MS)
    assert column(batch.table, "ts").tolist() == list(range(PRICE_START, day + DAY_MS, 2 * HOUR_MS))
    assert [(g.from_ts, g.to_ts, g.cause) for g in batch.gaps] == [(day, day + 6 * HOUR_MS, CAUSE_BEFORE_RECORD)]
    batch = archive.fetch("price", M1, END - HOUR_MS, END + 3 * HOUR_MS)
    assert batch.rows == 1
    assert [(g.from_ts, g.to_ts, g.cause) for g in batch.gaps] == [(END, END + 2 * HOUR_MS, CAUSE_AFTER_RECORD)]
    # a clock that stands inside the record sees no bar that has not closed
    now = parse_utc_ms("2024-03-01T10:30:00Z")
    with ArchiveSource(archive_dir, FixedClock(now)) as then:
        batch = then.fetch("price", M2, now - DAY_MS, END)
        assert int(column(batch.table, "ts")[-1]) == parse_utc_ms("2024-03-01T08:00:00Z")
        assert batch.gaps == ()
        assert then.fetch("price", M2, now, END).rows == 0


@pytest.mark.archive
@pytest.mark.parametrize("series", [name for name in _VINTAGES if name != "funding_settled"])
def test_vintages_are_every_closed_version_of_the_file(vintages, archive_dir, series):
    recording = _VINTAGES[series]
    spec = [c for c in CATALOGUE[series].columns if c.field]
    ts, observed, *data = raw(archive_dir / recording.file, *[c.field for c in spec])
    closed = observed >= ts + 4 * HOUR_MS
    batch = vintages.fetch(series, M4, 0, END)
    assert batch.recorded
    assert batch.rows == int(closed.sum()) < len(ts)
    assert np.array_equal(column(batch.table, "ts"), ts[closed])
    assert np.array_equal(column(batch.table, "observed_at"), observed[closed])
    for col, expected in zip(spec, data, strict=True):
        assert np.array_equal(values(batch, col.name), expected[closed] * col.scale)


@pytest.mark.archive
def test_vintages_by_hand(vintages):
    batch = vintages.fetch("funding_rate", M4, 0, END)
    first = batch.table.slice(0, 1).to_pylist()[0]
    assert first["ts"] == parse_utc_ms("2024-11-13T20:00:00Z")
    assert first["observed_at"] == parse_utc_ms("2025-05-13T17:25:42Z")
    assert first["open"] == pytest.approx(0.00020235, rel=1e-12)
    taker = vintages.fetch("taker_volume", M4, 0, END)
    # restated again and again: many versions of one bar, each with its own time
    assert taker.rows > 20 * len(np.unique(column(taker.table, "ts")))  # 28,187 versions of about 1,370 bars
    price = vintages.fetch("price", M4, 0, END)
    assert price.table.column("volume_coin").null_count == price.rows
    # the 12:00 bar of the last day was only ever seen open: the record of closed bars ends where it begins
    assert int(column(price.table, "ts")[-1]) == parse_utc_ms("2025-06-30T08:00:00Z")
    assert vintages.served("price", M4).latest_ms == parse_utc_ms("2025-06-30T12:00:00Z")
    settled = vintages.fetch("funding_settled", M4, 0, END)
    assert not settled.recorded
    assert settled.rows == 6_024


@pytest.mark.archive
def test_vintages_seen_after_now_are_hidden(archive_dir):
    now = parse_utc_ms("2025-06-01T00:00:00Z")
    with VintageArchiveSource(archive_dir, FixedClock(now)) as then:
        batch = then.fetch("price", M4, 0, END)
    assert column(batch.table, "observed_at").max() <= now
    # the newest closed bar had not been seen yet: it is a gap, and nothing older is
    assert {g.cause for g in batch.gaps} == {CAUSE_BEFORE_RECORD, CAUSE_NOT_RECORDED}


@pytest.mark.archive
def test_what_is_not_served(archive, vintages):
    m30 = Market.parse("BTC-30m")
    assert archive.served("price", m30) is None
    assert archive.why_not("price", m30) == "archive serves 1h, 2h, 4h, 1d markets, not 30m"
    assert archive.served("price", Market.parse("ETH-1h")) is None
    assert "BTC only" in archive.why_not("price", Market.parse("ETH-1h"))
    assert vintages.served("price", M2) is None
    assert archive.why_not("price", M1) == ""
    with pytest.raises(UsageError, match="not 30m"):
        archive.fetch("price", m30, 0, END)
    with pytest.raises(UsageError, match="not in the catalogue"):
        archive.served("nonsense", M1)


# Damaged files: made here, so that these run without the recorded data.

HOURS = 50
FIRST = parse_utc_ms("2024-01-01")


def price_table(**changed):
    stamps = FIRST + np.arange(HOURS, dtype=np.int64) * HOUR_MS
    data = {
        "ts": pa.array(stamps, pa.timestamp("ms", "UTC")),
        **{name: pa.array(np.full(HOURS, 100.0)) for name in ("open", "high", "low", "close", "volume")},
    }
    return pa.table({**data, **changed})


def made(tmp_path, table):
    pq.write_table(table, tmp_path / "btcusdt_perp_1h.parquet")
    return ArchiveSource(tmp_path, FixedClock(NOW))


def test_made_file_is_read_and_its_holes_are_gaps(tmp_path):
    table = price_table()
    source = made(tmp_path, pa.concat_tables([table.slice(0, 10), table.slice(12)]))
    batch = source.fetch("price", M1, FIRST, FIRST + HOURS * HOUR_MS)
    assert batch.rows == HOURS - 2
    assert [(g.from_ts, g.to_ts, g.cause) for g in batch.gaps] == [
        (FIRST + 10 * HOUR_MS, FIRST + 11 * HOUR_MS, CAUSE_NOT_RECORDED)
    ]


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.99])
def test_truncated_file(tmp_path, keep):
    source = made(tmp_path, price_table())
    path = tmp_path / "btcusdt_perp_1h.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(BadDataError, match=r"btcusdt_perp_1h\.parquet is truncated or corrupt.*restore it"):
        source.fetch("price", M1, FIRST, END)


def test_garbage_inside_the_file(tmp_path):
    rng = np.random.default_rng(1)
    data = {name: pa.array(rng.uniform(1, 2, HOURS)) for name in ("open", "high", "low", "close", "volume")}
    table = price_table(**data)
    path = tmp_path / "btcusdt_perp_1h.parquet"
    pq.write_table(table, path, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[600:640] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(BadDataError, match="truncated or corrupt"):
        ArchiveSource(tmp_path, FixedClock(NOW)).fetch("price", M1, FIRST, END)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="MLBOT_ARCHIVE_DIR") as caught:
        ArchiveSource(tmp_path, FixedClock(NOW)).served("price", M1)
    assert caught.value.exit_code == 2


STAMPS = FIRST + np.arange(HOURS, dtype=np.int64) * HOUR_MS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volume": None}, r"has no column volume \(it has ts, open"),
        ({"ts": pa.array(STAMPS)}, "ts is int64, not a timestamp in UTC"),
        ({"ts": pa.array(STAMPS, pa.timestamp("ms"))}, "not a timestamp in UTC"),
        ({"ts": pa.array([None, *STAMPS[1:].tolist()], pa.timestamp("ms", "UTC"))}, "ts is missing in 1 rows"),
        ({"ts": pa.array(STAMPS[::-1].copy(), pa.timestamp("ms", "UTC"))}, "repeats or precedes"),
        ({"ts": pa.array(np.r_[STAMPS[:1], STAMPS[:-1]], pa.timestamp("ms", "UTC"))}, r"row 1 .*repeats or precedes"),
        ({"ts": pa.array(STAMPS + 1000, pa.timestamp("ms", "UTC"))}, "off the 1h grid"),
        ({"ts": pa.array(STAMPS * 1_000_000 + 1, pa.timestamp("ns", "UTC"))}, "finer than a millisecond"),
        ({"close": pa.array(["1"] * HOURS)}, "close is string, not a number"),
        ({"close": pa.array([None, *[1.0] * (HOURS - 1)])}, "close is nan in row 0"),
        ({"close": pa.array([1.0, float("inf"), *[1.0] * (HOURS - 2)])}, "close is inf in row 1"),
        ({"low": pa.array([-1.0, *[1.0] * (HOURS - 1)])}, r"price.low is -1.0"),
    ],
)
def test_damaged_content(tmp_path, change, message):
    table = price_table(**{name: data for name, data in change.items() if data is not None})
    table = table.drop_columns([name for name, data in change.items() if data is None])
    with pytest.raises(BadDataError, match=message):
        made(tmp_path, table).fetch("price", M1, 0, END)


def test_empty_file(tmp_path):
    with pytest.raises(BadDataError, match="has no rows"):
        made(tmp_path, price_table().slice(0, 0)).fetch("price", M1, 0, END)


def test_nanoseconds_and_whole_numbers_are_fine(tmp_path):
    changed = {
        "ts": pa.array(STAMPS * 1_000_000, pa.timestamp("ns", "UTC")),
        "close": pa.array(np.full(HOURS, 100)),
    }
    batch = made(tmp_path, price_table(**changed)).fetch("price", M1, 0, END)
    assert np.array_equal(column(batch.table, "ts"), STAMPS)


def test_versions_must_be_sorted_and_unique(tmp_path):
    folder = tmp_path / "coinglass_4h"
    folder.mkdir()
    bars = [FIRST, FIRST, FIRST + 4 * HOUR_MS]
    seen = [FIRST + DAY_MS, FIRST + 2 * DAY_MS, FIRST + DAY_MS]

    def write(observed):
        table = pa.table(
            {
                "ts": pa.array(bars, pa.timestamp("ms", "UTC")),
                "observed_at": pa.array(observed, pa.timestamp("ms", "UTC")),
                "aggregated_long_liquidation_usd": [1.0, 2.0, 3.0],
                "aggregated_short_liquidation_usd": [1.0, 2.0, 3.0],
            }
        )
        pq.write_table(table, folder / "liquidation_aggregated.parquet")
        return VintageArchiveSource(tmp_path, FixedClock(NOW)).fetch("liquidations", M4, 0, END)

    assert write(seen).rows == 3
    with pytest.raises(BadDataError, match="sorted by ts, observed_at and unique"):
        write([seen[1], seen[0], seen[2]])
    with pytest.raises(BadDataError, match="repeats or precedes"):
        write([seen[0], seen[0], seen[2]])


def test_both_are_opened_by_name(settings, tmp_path):
    copied = settings.model_copy(update={"archive_dir": tmp_path})
    clock = FixedClock(NOW)
    with open_source("archive", copied, clock) as source:
        assert (source.name, type(source)) == ("archive", ArchiveSource)
    with open_source("archive-vintages", copied, clock) as source:
        assert (source.name, type(source)) == ("archive-vintages", VintageArchiveSource)
    with pytest.raises(UsageError, match="unknown"):
        open_source("elsewhere", copied, clock)
    with pytest.raises(ConfigError, match="start the emulator"):
        open_source("emulator", copied, clock)


@pytest.mark.archive
def test_truncated_copy_of_a_recorded_file(archive_dir, tmp_path):
    shutil.copytree(archive_dir / "coinglass_4h", tmp_path / "coinglass_4h")
    path = tmp_path / "coinglass_4h" / "price.parquet"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1000])
    source = VintageArchiveSource(tmp_path, FixedClock(NOW))
    with pytest.raises(BadDataError, match=r"price\.parquet is truncated or corrupt"):
        source.fetch("price", M4, 0, END)
    assert source.fetch("open_interest", M4, 0, END).rows > 1000
