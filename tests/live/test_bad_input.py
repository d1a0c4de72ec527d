"""Whatever a source sends: a clear error or a record of it, and what was stored before stays as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config import FeatureConfig, QualityConfig
from mlbot_core.emulator.faults import Fault, FaultSchedule
from mlbot_core.emulator.server import EmulatorServer
from mlbot_core.errors import BadDataError, MissingDataError, QualityRefusedError, RateLimitedError, SourceError
from mlbot_core.features.dataset import DatasetRequest, materialize_features
from mlbot_core.market import CATALOGUE, CORE_SERIES
from mlbot_core.sources.archive import ArchiveSource
from mlbot_core.sources.coinglass import CoinglassSource
from mlbot_core.sources.transport import Transport, UnreachableError, UpstreamError
from mlbot_core.timeframe import HOUR_MS, Market, Month
from mlbot_core.warehouse import PartitionOutcome, Warehouse, latest, settled
from mlbot_core.warehouse.ingest import IngestRequest, ingest

MARKET = Market.parse("BTC-4h")
STEP = MARKET.timeframe.ms
FEB, MAR, APR = (Month(2024, number) for number in (2, 3, 4))
NOW = parse_utc_ms("2024-05-01T00:10:00Z")
DELAY_MS = 2000
QUALITY = QualityConfig(max_missing_share=0.02, max_gap_bars=24)
SERVED = [name for name in CORE_SERIES if CATALOGUE[name].endpoint]
PRICE = str(CATALOGUE["price"].endpoint)
FEATURES = FeatureConfig(set="core", zscore_window=60)


@dataclass
class Bench:
    """An emulator that misbehaves on demand, the client, and a store."""

    server: EmulatorServer
    source: CoinglassSource
    store: Warehouse
    clock: FixedClock
    pulls: int = field(default=0)

    def faults(self, *lines: Fault, seed: int = 0) -> None:
        self.server.faults.install(FaultSchedule(lines, seed))

    def pull(self, *months: Month, series: str = "price") -> list[PartitionOutcome]:
        self.pulls += 1
        request = IngestRequest(series, MARKET, months, QUALITY, DELAY_MS, f"pull-{self.pulls}")
        return ingest(self.store, self.source, self.clock, request)

    def features(self, month: Month) -> PartitionOutcome:
        request = DatasetRequest("emulator", MARKET, (month,), DELAY_MS, self.clock.now_ms(), "features")
        (outcome,) = materialize_features(self.store, request, FEATURES)
        return outcome

    def bars(self, month: Month, series: str = "price", kind: str = "latest") -> pa.Table:
        bounds = {"start_ms": month.start_ms, "end_ms": month.end_ms}
        where: dict[str, Any] = {"source": "emulator", "symbol": "BTC", "timeframe": MARKET.timeframe, **bounds}
        with self.store.read() as con:
            if kind == "latest":
                return latest(con, series, **where)
            return settled(con, series, settle_delay_ms=DELAY_MS, known_by_ms=self.clock.now_ms(), **where).table

    def gaps(self) -> list[tuple[str, int, int, int | None]]:
        with self.store.read() as con:
            return con.execute("SELECT series, from_ts, to_ts, filled_at FROM gaps ORDER BY ALL").fetchall()


def everything(store: Warehouse) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table."""
    with store.read() as con:
        names = [row[0] for row in con.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()]
        return {name: con.execute(f"SELECT * FROM {name} ORDER BY ALL").fetchall() for name in names}


def verdict(outcome: PartitionOutcome, check: str) -> bool:
    return next(c.passed for c in outcome.checks if c.check == check)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench whose store holds February."""
    clock = FixedClock(NOW)
    with EmulatorServer(clock=clock) as server:
        transport = Transport(server.url, SecretStr(server.key), clock, backoff_s=0.0)
        with CoinglassSource("emulator", transport, clock) as source:
            made = Bench(server, source, Warehouse(tmp_path / "store.duckdb", clock, timeout_s=20), clock)
            made.pull(FEB)
            yield made


@pytest.mark.parametrize(
    ("fault", "error", "names"),
    [
        (Fault("truncated_json"), BadDataError, r"price/history.*not JSON.*nothing of it was stored"),
        (Fault("html_502"), UpstreamError, r"price/history.*502.*stays as it is"),
        (Fault("http_500"), UpstreamError, r"price/history.*500.*stays as it is"),
        (Fault("body_500"), UpstreamError, r"price/history.*code 500.*stays as it is"),
        (Fault("reset"), UnreachableError, r"price/history.*stays as it is"),
        (Fault("http_429", seconds=0.0), RateLimitedError, r"price/history.*429.*try again later"),
        (
            Fault("duplicate_bars", factor=1.01),
            BadDataError,
            r"price/history: bar 2024-0\S+ occurs twice with different",
        ),
        (
            Fault("unparsable"),
            BadDataError,
            r"price/history: volume_usd is 'abc' at bar 2024-0\S+, not a finite number",
        ),
        (Fault("unparsable", text="NaN", column="close"), BadDataError, r"close is 'NaN' at bar 2024-0"),
        (Fault("unparsable", text="1_000", column="high"), BadDataError, r"high is '1_000' at bar 2024-0"),
        (Fault("unparsable", text="", column="low"), BadDataError, r"low is '' at bar 2024-0"),
        (Fault("unparsable", text="-7", column="open"), BadDataError, r"price.open is -7.0 USD at bar"),
        (Fault("off_grid"), BadDataError, r"price/history: time '\d+' .* is off the 4h grid"),
    ],
    ids=lambda value: value.kind + (value.text or "") if isinstance(value, Fault) else "",
)
def test_what_cannot_be_trusted_is_refused_by_name(bench, fault, error, names):
    before = everything(bench.store)
    bench.faults(fault)
    with pytest.raises(error, match=names):
        bench.pull(FEB, MAR)
    assert issubclass(error, SourceError)
    assert bench.server.faults.log, "the fault did happen"
    assert everything(bench.store) == before
    bench.faults()
    first, second = bench.pull(FEB, MAR)
    assert (first.rows, second.rows) == (29 * 6, 31 * 6)
    assert first.passed
    assert second.passed


@pytest.mark.parametrize(
    "lines",
    [
        (Fault("duplicate_bars"),),
        (Fault("strings_for_numbers"),),
        (Fault("truncated_json", nth=1, count=3),),
        (Fault("reset", nth=1, count=2), Fault("http_500", nth=3, count=1)),
        (Fault("http_429", nth=1, count=2, seconds=0.0),),
        (Fault("empty_page", nth=1),),
        (Fault("http_429", nth=2, count=2, seconds=0.0), Fault("truncated_json", nth=1, count=2)),
    ],
    ids=lambda lines: "+".join(f"{line.kind}-{line.count or line.probability or 'all'}" for line in lines),
)
def test_what_can_be_mended_gives_the_same_bars(bench, tmp_path, lines):
    bench.pull(MAR)
    clean = bench.bars(MAR)
    again = Bench(bench.server, bench.source, Warehouse(tmp_path / "again.duckdb", bench.clock), bench.clock)
    bench.faults(*lines, seed=4)
    (outcome,) = again.pull(MAR)
    assert bench.server.faults.log, "the fault did happen"
    assert outcome.passed
    assert again.bars(MAR).equals(clean)
    assert again.gaps() == []


def test_a_storm_of_refusals_delays_all_series_and_spoils_none(bench, tmp_path):
    bench.faults(Fault("http_429", probability=0.3, seconds=0.0), seed=1)
    storm = {series: bench.pull(MAR, series=series)[0] for series in SERVED}
    assert len(bench.server.faults.log) >= 3
    bench.faults()
    calm = Bench(bench.server, bench.source, Warehouse(tmp_path / "calm.duckdb", bench.clock), bench.clock)
    for series, outcome in storm.items():
        assert outcome.passed
        assert outcome.version == calm.pull(MAR, series=series)[0].version, series


def test_an_open_bar_is_never_stored_and_comes_when_it_has_closed(tmp_path):
    middle = parse_utc_ms("2024-03-10T05:00:00Z")  # the bar of 04:00 is open
    clock = FixedClock(middle)
    with EmulatorServer(clock=clock) as server:
        transport = Transport(server.url, SecretStr(server.key), clock, backoff_s=0.0)
        with CoinglassSource("emulator", transport, clock) as source:
            bench = Bench(server, source, Warehouse(tmp_path / "store.duckdb", clock), clock)
            for line in ((), (Fault("extra_open_bar"),)):
                bench.faults(*line)
                (outcome,) = bench.pull(MAR)
                stamps = bench.bars(MAR).column("ts").to_pylist()
                assert stamps[-1] == parse_utc_ms("2024-03-10T00:00:00Z")
                assert outcome.passed, "and it is not missed either"
            before = bench.bars(MAR)
            bench.faults()
            clock.set_ms(parse_utc_ms("2024-03-10T08:00:10Z"))
            (outcome,) = bench.pull(MAR)
            assert outcome.info["restated_in_stretch"] == 0
            after = bench.bars(MAR)
            assert after.num_rows == before.num_rows + 1
            assert after.slice(0, before.num_rows).equals(before)


def test_a_short_gap_is_a_row_and_tolerated(bench):
    first = MAR.start_ms + 40 * STEP
    bench.faults(Fault("gap", from_ts=first, to_ts=first + 2 * STEP))
    (outcome,) = bench.pull(MAR)
    assert outcome.passed
    assert outcome.rows == 31 * 6 - 3
    assert bench.gaps() == [("price", first, first + 2 * STEP, None)]
    for series in CORE_SERIES:
        for month in (FEB, MAR):
            bench.pull(month, series=series) if series != "price" else None
    built = bench.features(MAR)
    assert built.passed
    assert built.rows == 31 * 6, "a missing bar has its row, with missing values"


def test_a_long_gap_blocks_until_it_is_filled(bench):
    for series in CORE_SERIES:
        if series != "price":
            bench.pull(FEB, MAR, series=series)
    first, last = MAR.start_ms + 40 * STEP, MAR.start_ms + 69 * STEP
    before = bench.bars(FEB)
    bench.faults(Fault("gap", endpoint=PRICE, from_ts=first, to_ts=last))
    february, march = bench.pull(FEB, MAR)
    assert february.passed
    assert not verdict(march, "gaps")
    assert bench.gaps() == [("price", first, last, None)]
    stored = everything(bench.store)
    with pytest.raises(QualityRefusedError, match=r"price from emulator .*BTC-4h\|2024-03-01: gaps failed .*30 of 186"):
        bench.features(MAR)
    assert everything(bench.store) == stored
    assert bench.features(FEB).passed, "the month before it is not touched by it"

    bench.clock.set_ms(NOW + HOUR_MS)
    bench.faults()
    february, march = bench.pull(FEB, MAR)
    assert march.passed
    assert march.info["appended_in_stretch"] == 30
    assert bench.gaps() == [("price", first, last, NOW + HOUR_MS)]
    assert bench.bars(FEB).equals(before)
    assert bench.features(MAR).passed


def test_a_restated_bar_is_a_new_version_that_rewrites_no_past(bench):
    for series in CORE_SERIES:
        bench.pull(FEB, MAR, series=series)
    features = bench.features(MAR)
    was, known = bench.bars(MAR), bench.bars(MAR, kind="settled")
    rows = everything(bench.store)["price"]
    first, last = MAR.start_ms + 50 * STEP, MAR.start_ms + 53 * STEP
    bench.clock.set_ms(NOW + HOUR_MS)
    bench.faults(Fault("restate", endpoint=PRICE, from_ts=first, to_ts=last, factor=1.05))
    _, march = bench.pull(FEB, MAR)
    assert march.info["restated_in_stretch"] == 4
    assert march.info["appended_in_stretch"] == 4
    after = everything(bench.store)["price"]
    assert len(after) == len(rows) + 4
    assert set(rows) < set(after), "no stored row was changed"
    now = bench.bars(MAR).column("close").to_numpy()
    expected = was.column("close").to_numpy().copy()
    expected[50:54] *= 1.05
    np.testing.assert_allclose(now, expected, rtol=1e-7)
    assert not np.array_equal(now, was.column("close").to_numpy())
    still = bench.bars(MAR, kind="settled")
    assert still.drop_columns("versions").equals(known.drop_columns("versions"))
    assert [v for v in still.column("versions").to_pylist() if v > 1] == [2] * 4
    again = bench.features(MAR)
    assert again.version == features.version, "features of the past are what they were"
    # the same answer a third time adds nothing
    bench.clock.set_ms(NOW + 2 * HOUR_MS)
    assert bench.pull(FEB, MAR)[1].info["appended_in_stretch"] == 0


def test_an_empty_answer_removes_nothing_and_is_no_month(bench):
    bench.pull(MAR)
    before = everything(bench.store)["price"]
    bench.faults(Fault("empty_page"))
    (march,) = bench.pull(MAR)
    assert everything(bench.store)["price"] == before
    assert march.passed, "what is judged is what is stored"
    (april,) = bench.pull(APR)
    assert april.rows == 0
    assert not april.passed
    # that the source left March out is recorded too, and nothing is open there: every bar of it is stored
    assert bench.gaps() == [
        ("price", MAR.start_ms, MAR.end_ms - STEP, NOW),
        ("price", APR.start_ms, APR.end_ms - STEP, None),
    ]
    for series in CORE_SERIES:
        if series != "price":
            bench.pull(APR, series=series)
    with pytest.raises(QualityRefusedError, match=r"BTC-4h\|2024-04-01: gaps failed"):
        bench.features(APR)


def test_a_month_that_was_never_pulled_is_refused(bench):
    with pytest.raises(MissingDataError, match=r"has no data for BTC-4h\|2024-03-01; materialize it first"):
        bench.features(MAR)


def test_two_runs_that_saw_the_same_bars_may_store_them_in_either_order(bench):
    """One pulls, then the other pulls AND stores, then the first stores: the same values, seen a moment earlier."""

    class Overtaken(CoinglassSource):
        def fetch_chunks(self, *args: Any) -> Any:
            for batch in list(bench.source.fetch_chunks(*args)):
                bench.clock.set_ms(bench.clock.now_ms() + 5_000)
                bench.pull(MAR)
                yield batch

    slow = Overtaken("emulator", Transport(bench.server.url, SecretStr(bench.server.key), bench.clock), bench.clock)
    with slow:
        request = IngestRequest("price", MARKET, (MAR,), QUALITY, DELAY_MS, "overtaken")
        (outcome,) = ingest(bench.store, slow, bench.clock, request)
    assert outcome.passed
    assert outcome.info["appended_in_stretch"] == 0
    assert len(everything(bench.store)["price"]) == (29 + 31) * 6


# ---- recorded files


def archive(folder: Path, start: str = "2024-01-01", days: int = 121) -> Path:
    """Make a small archive in the layout of the recorded data."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)

    def stamps(hours: int) -> pa.Array:
        first = parse_utc_ms(start)
        return pa.array(np.arange(first, first + days * 24 * HOUR_MS, hours * HOUR_MS), pa.timestamp("ms", "UTC"))

    n = days * 24
    close = 60_000 * np.exp(np.cumsum(rng.normal(0, 0.005, n)))
    open_ = np.concatenate([[60_000.0], close[:-1]])
    hourly = {
        "open": open_,
        "high": np.maximum(open_, close) * 1.002,
        "low": np.minimum(open_, close) * 0.998,
        "close": close,
        "volume": rng.uniform(100, 1000, n),
    }
    # magnitudes as recorded ones have, percent for funding: the check of units looks at them
    daily = {
        "oi_all_exch_usd": 3e10,
        "funding_oiw_close": 0.01,
        "lsr_global": 1.2,
        "liq_long_usd": 5e7,
        "liq_short_usd": 4e7,
        "taker_buy_usd": 1e10,
        "taker_sell_usd": 1e10,
    }
    pq.write_table(pa.table({"ts": stamps(1), **hourly}), folder / "btcusdt_perp_1h.parquet")
    pq.write_table(
        pa.table({"ts": stamps(8), "funding_rate": rng.normal(0, 1e-4, days * 3)}),
        folder / "btcusdt_perp_funding_8h.parquet",
    )
    values = {name: size * rng.uniform(0.5, 2.0, days) for name, size in daily.items()}
    pq.write_table(pa.table({"ts": stamps(24), **values}), folder / "coinglass_btc_1d.parquet")
    return folder


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _zeros(data: bytes) -> bytes:
    """A file whose length was reserved and whose second half was never written."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def _garbled(data: bytes) -> bytes:
    """A footer that has been written over."""
    return data[:-200] + bytes(b ^ 0x5A for b in data[-200:-8]) + data[-8:]


@pytest.mark.parametrize(
    "damage", [_half, _zeros, _garbled, lambda data: b""], ids=["half", "zeros", "footer", "empty"]
)
def test_a_damaged_recording_is_named_and_nothing_changes(tmp_path, damage):
    folder = archive(tmp_path / "archive")
    clock = FixedClock(NOW)
    store = Warehouse(tmp_path / "store.duckdb", clock)
    request = IngestRequest("price", MARKET, (FEB,), QUALITY, DELAY_MS, "good")
    with ArchiveSource(folder, clock) as source:
        assert ingest(store, source, clock, request)[0].passed
    before = everything(store)
    file = folder / "btcusdt_perp_1h.parquet"
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    clock.set_ms(NOW + HOUR_MS)
    wider = IngestRequest("price", MARKET, (FEB, MAR), QUALITY, DELAY_MS, "bad")
    with (
        ArchiveSource(folder, clock) as source,
        pytest.raises(BadDataError, match=r"btcusdt_perp_1h.parquet is trunca"),
    ):
        ingest(store, source, clock, wider)
    assert everything(store) == before
    file.write_bytes(whole)
    with ArchiveSource(folder, clock) as source:
        assert all(outcome.passed for outcome in ingest(store, source, clock, wider))


def test_a_recording_with_impossible_values_is_named_and_nothing_changes(tmp_path):
    folder = archive(tmp_path / "archive")
    file = folder / "btcusdt_perp_1h.parquet"
    clock, good = FixedClock(NOW), pq.read_table(file)
    store = Warehouse(tmp_path / "store.duckdb", clock)
    request = IngestRequest("price", MARKET, (FEB,), QUALITY, DELAY_MS, "good")
    with ArchiveSource(folder, clock) as source:
        ingest(store, source, clock, request)
    before = everything(store)
    close = good.column("close").to_numpy().copy()
    close[1000] = -close[1000]
    repeated = pa.concat_tables([good.slice(0, 900), good.slice(899)])
    for table, names in (
        (good.set_column(4, "close", pa.array(close)), r"price.close is -"),
        (repeated, r"btcusdt_perp_1h.parquet: row 900 .*repeats"),
        (good.drop_columns("close"), r"btcusdt_perp_1h.parquet has no column close"),
        (good.set_column(4, "close", pa.array([str(x) for x in close])), r"close is string, not a number"),
    ):
        pq.write_table(table, file)
        with ArchiveSource(folder, clock) as source, pytest.raises(BadDataError, match=names):
            ingest(store, source, clock, request)
        assert everything(store) == before


# ---- through real launching processes


def _clock_and(server: EmulatorServer) -> dict[str, str]:
    return {"MLBOT_CLOCK": "fixed:2024-05-01T00:10:00Z", "MLBOT_EMULATOR_URL": server.url}


@pytest.mark.slow
def test_a_run_over_three_months_fails_if_one_of_them_is_bad(make_home, tools):
    first = MAR.start_ms + 40 * STEP
    with EmulatorServer(clock=FixedClock(NOW)) as server:
        home = make_home("home", **_clock_and(server))
        server.faults.install(FaultSchedule((Fault("gap", endpoint=PRICE, from_ts=first, to_ts=first + 29 * STEP),)))
        whole, alone, before, never = home.run(
            [
                tools.data_run("BTC-4h", "2024-02", "2024-04"),
                tools.data_run("BTC-4h", "2024-03", job="features_and_targets"),
                tools.data_run("BTC-4h", "2024-02", job="features_and_targets"),
                tools.data_run("BTC-4h", "2023-11", job="features_and_targets"),
            ]
        )
        # the verdict of the month in the middle is neither hidden by the last one's nor by the first one's
        assert not whole["success"]
        assert len(whole["failed_checks"]) == 1
        assert whole["failed_checks"][0].startswith("raw/price: gaps: BTC-4h|2024-03-01: ")
        assert "30 of 186 4h bars missing" in whole["failed_checks"][0]
        ran = {e["step"] for e in home.events("run") if e["run"] == 0 and e["event"] == "step_success"}
        assert ran == {f"raw__{series}" for series in CORE_SERIES if series != "price"}, "what rests on it was not made"
        # launched on its own, past Dagster's blocking check, the code itself refuses
        assert not alone["success"]
        assert any(
            "price from emulator is not fit for use: BTC-4h|2024-03-01: gaps failed" in e for e in alone["errors"]
        )
        # the features of the month before do not need it; its last labels would
        done = {e["step"] for e in home.events("run") if e["run"] == 2 and e["event"] == "step_success"}
        assert done == {"features__core"}
        assert "BTC-4h|2024-03-01: gaps failed" in before["errors"][0]
        assert not never["success"]
        assert any("has no data for BTC-4h|2023-11-01; materialize it first" in e for e in never["errors"])
        derived = {key for key in tools.recorded(home) if key[0] in tools.DERIVED}
        assert derived == {("features", "BTC-4h|2024-02-01")}

        months = [FEB, MAR, APR]
        stored = tools.contents(home, "BTC-4h", months)
        server.faults.install(FaultSchedule((Fault("truncated_json", endpoint=PRICE),)))
        (cut,) = home.run([tools.data_run("BTC-4h", "2024-02", "2024-04")], "cut")
        assert not cut["success"]
        assert len(cut["errors"]) == 1
        assert "/api/futures/price/history" in cut["errors"][0]
        assert "nothing of it was stored" in cut["errors"][0]
        assert tools.contents(home, "BTC-4h", months) == stored

        server.faults.install(FaultSchedule())
        (mended,) = home.run([tools.data_run("BTC-4h", "2024-02", "2024-04")], "mended")
        assert mended["success"], mended
        assert not mended["failed_checks"]


@pytest.mark.slow
def test_a_half_written_archive_stops_the_run_and_keeps_the_store(make_home, tools, tmp_path):
    folder = archive(tmp_path / "archive")
    home = make_home("home", MLBOT_CLOCK="fixed:2024-05-01T00:10:00Z", MLBOT_ARCHIVE_DIR=str(folder))
    plan = [tools.data_run("BTC-4h", "2024-02", "2024-03", source="archive")]
    (good,) = home.run(plan)
    assert good["success"], good
    months = [FEB, MAR]
    stored = tools.contents(home, "BTC-4h", months, "archive")
    assert stored["targets", "BTC-4h|2024-03-01"].rows == 31 * 6
    file = folder / "btcusdt_perp_1h.parquet"
    file.write_bytes(_half(file.read_bytes()))
    (bad,) = home.run(plan, "bad")
    assert not bad["success"]
    (error,) = bad["errors"]
    assert str(file) in error
    assert "truncated or corrupt" in error
    assert tools.contents(home, "BTC-4h", months, "archive") == stored
    text = home.log("bad").read_text()
    assert "truncated or corrupt" in text
    assert "Traceback" not in json.dumps(bad)
