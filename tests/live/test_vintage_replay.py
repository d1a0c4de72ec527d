"""Recorded history replayed through the real client: afterwards the store knows what was known when, exactly.

The emulator serves every snapshot of the recorded Coinglass series at the moment it was taken; the client pulls it over
a socket, the warehouse keeps the versions. ``as_of(T)`` must then equal the record at any T.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mlbot_core.clock import FixedClock
from mlbot_core.config import load_settings
from mlbot_core.emulator.coinglass import CoinglassOptions
from mlbot_core.emulator.vintages import FOUR_HOURS, Vintages, VintageServer, read_vintages
from mlbot_core.market import series_spec
from mlbot_core.sources import open_source
from mlbot_core.timeframe import Market, Month
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.bitemporal import as_of
from mlbot_core.warehouse.ingest import IngestRequest, ingest
from mlbot_core.warehouse.refresh import refresh

MARKET = Market("BTC", FOUR_HOURS)
SERIES = {
    "price": "/api/futures/price/history",
    "open_interest": "/api/futures/open-interest/aggregated-history",
    "open_interest_stablecoin": "/api/futures/open-interest/aggregated-stablecoin-history",
    "open_interest_coin_margin": "/api/futures/open-interest/aggregated-coin-margin-history",
    "funding_rate": "/api/futures/funding-rate/oi-weight-history",
    "long_short_ratio": "/api/futures/global-long-short-account-ratio/history",
    "top_position_ratio": "/api/futures/top-long-short-position-ratio/history",
    "liquidations": "/api/futures/liquidation/aggregated-history",
    "taker_volume": "/api/futures/aggregated-taker-buy-sell-volume/history",
}


def truth(recorded: Vintages, times: npt.NDArray[np.int64], at_ms: int) -> dict[int, int]:
    """Return {bar: row} of what the record says was known at a time: of bars that had been looked at closed by then.

    A row is written only where a value changed, so a bar has been seen closed when anybody looked after its close,
    whether or not that wrote a row for it.
    """
    newest = times[np.searchsorted(times, at_ms, side="right") - 1]
    rows = recorded.served_at(at_ms)
    return {int(recorded.ts[row]): int(row) for row in rows if recorded.ts[row] + FOUR_HOURS.ms <= newest}


@pytest.mark.slow
@pytest.mark.archive
def test_as_of_equals_the_record_at_200_random_times(archive_dir: Path, tmp_path: Path) -> None:
    recorded = {name: read_vintages(archive_dir / "coinglass_4h")[path] for name, path in SERIES.items()}
    times = np.unique(np.concatenate([one.snapshots for one in recorded.values()]))
    clock = FixedClock(int(times[0]))
    settings = load_settings().model_copy(update={"home": tmp_path})
    store = Warehouse(tmp_path / "warehouse.duckdb", clock)
    options = CoinglassOptions(calls_per_minute=100_000)
    with (
        VintageServer(archive_dir / "coinglass_4h", clock, options) as server,
        open_source("emulator", settings, clock, base_url=server.url) as source,
    ):
        for now in times.tolist():
            clock.set_ms(now)
            for name, one in recorded.items():
                if one.snapshots[0] > now:
                    continue
                months = tuple(Month.span(int(one.ts[0]), now))
                request = IngestRequest(name, MARKET, months, settings.intervals.quality, 0, "replay")
                # the refresh begins to watch, the pull reads all of history again: whatever was restated is seen
                refresh(store, source, clock, request)
                ingest(store, source, clock, request)

    rng = np.random.default_rng(20250630)
    compared = 0
    with store.read() as con:
        for at_ms in rng.integers(times[0], times[-1], 200, endpoint=True).tolist():
            for name, one in recorded.items():
                if at_ms < one.snapshots[0]:
                    continue
                expected = truth(one, times, at_ms)
                known = as_of(
                    con, name, source="emulator", symbol="BTC", timeframe=FOUR_HOURS,
                    start_ms=int(one.ts[0]), end_ms=int(one.ts[-1]) + 1, known_by_ms=at_ms,
                )  # fmt: skip
                stamps = known.column("ts").to_pylist()
                assert stamps == sorted(expected), (name, at_ms)
                rows = [expected[ts] for ts in stamps]
                for column in series_spec(name).columns:
                    if column.field is None:
                        continue
                    served = one.values[column.field][rows] * column.scale
                    got = known.column(column.name).to_numpy()
                    np.testing.assert_array_equal(got, served, err_msg=f"{name}.{column.name} at {at_ms}")
                compared += len(rows)
    assert compared > 1_000_000
