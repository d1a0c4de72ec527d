"""Recorded vintages behind the wire of Coinglass: at its clock's time it serves what the real API served then.

A vintage file has one row for every (bar, observed_at) at which a served value was first seen or had changed. An
answer at T holds, for every bar that had been seen by then, the row with the greatest ``observed_at <= T``: the last
row is an open bar and history is restated, exactly as it happened. Only 4h bars were recorded, and which exchanges a
series sums was the recorder's choice: ``exchange`` and ``exchange_list`` must be given, but select nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mlbot_core.clock import Clock
from mlbot_core.emulator.coinglass import CoinglassApi, CoinglassOptions, Refusal, integer, require
from mlbot_core.emulator.endpoints import Endpoint
from mlbot_core.emulator.faults import FaultInjector
from mlbot_core.emulator.market import SyntheticMarket
from mlbot_core.emulator.rows import Row
from mlbot_core.emulator.server import EmulatorServer
from mlbot_core.errors import ConfigError
from mlbot_core.timeframe import Timeframe

FOUR_HOURS: Final = Timeframe.parse("4h")
_LIMIT: Final = 1000

FILES: Final[Mapping[str, str]] = {
    "/api/futures/price/history": "price",
    "/api/futures/open-interest/aggregated-history": "open_interest_aggregated",
    "/api/futures/open-interest/aggregated-stablecoin-history": "open_interest_aggregated_stablecoin",
    "/api/futures/open-interest/aggregated-coin-margin-history": "open_interest_aggregated_coin_margin",
    "/api/futures/funding-rate/oi-weight-history": "funding_rate_oi_weight",
    "/api/futures/global-long-short-account-ratio/history": "global_long_short_account_ratio",
    "/api/futures/top-long-short-position-ratio/history": "top_long_short_position_ratio",
    "/api/futures/liquidation/aggregated-history": "liquidation_aggregated",
    "/api/futures/aggregated-taker-buy-sell-volume/history": "aggregated_taker_buy_sell_volume",
}
# Served as JSON strings in recorded answers; everything else as numbers.
_QUOTED: Final = ("price", "funding_rate_oi_weight")


@dataclass(frozen=True)
class Vintages:
    """The versions of one endpoint's bars, sorted by (ts, observed_at).

    Parameters
    ----------
    ts, observed_at
        int64[n], UTC ms.
    values
        float64[n] by the endpoint's own field names.
    quoted
        Values go over the wire as JSON strings.
    """

    ts: npt.NDArray[np.int64]
    observed_at: npt.NDArray[np.int64]
    values: Mapping[str, npt.NDArray[np.float64]]
    quoted: bool

    @property
    def snapshots(self) -> npt.NDArray[np.int64]:
        """The times at which something new was seen, ascending, UTC ms."""
        return np.unique(self.observed_at)

    def served_at(self, now_ms: int) -> npt.NDArray[np.int64]:
        """Return the rows (positions) that were served at a time: of every bar the newest version seen by then."""
        seen = np.flatnonzero(self.observed_at <= now_ms)
        ts = self.ts[seen]
        return seen[np.append(ts[1:] != ts[:-1], True)] if len(seen) else seen

    def rows(self, now_ms: int, first_ts: int, last_ts: int) -> list[Row]:
        """Return the bars from ``first_ts`` to ``last_ts`` as they were served at a time."""
        at = self.served_at(now_ms)
        at = at[(self.ts[at] >= first_ts) & (self.ts[at] <= last_ts)]
        columns: list[list[Any]] = [self.ts[at].tolist()]
        for data in self.values.values():
            numbers = [int(v) if v.is_integer() else v for v in data[at].tolist()]
            columns.append([str(v) for v in numbers] if self.quoted else numbers)
        names = ("time", *self.values)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def read_vintages(folder: Path) -> dict[str, Vintages]:
    """Return the recorded vintages by the endpoint's path.

    Parameters
    ----------
    folder
        Holds one Parquet file an endpoint (:data:`FILES`).

    Raises
    ------
    ConfigError
        If a file is missing.
    """
    found = {}
    for path, name in FILES.items():
        file = folder / f"{name}.parquet"
        if not file.is_file():
            raise ConfigError(f"{file} is missing; point MLBOT_ARCHIVE_DIR at the folder with the recorded data")
        table = pq.read_table(file).sort_by([("ts", "ascending"), ("observed_at", "ascending")])
        times = [_milliseconds(table.column(column)) for column in ("ts", "observed_at")]
        values = {
            column: np.asarray(table.column(column).to_numpy(), dtype=np.float64)
            for column in table.column_names
            if column not in ("ts", "observed_at")
        }
        found[path] = Vintages(times[0], times[1], values, name in _QUOTED)
    return found


def _milliseconds(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.asarray(column.cast(pa.timestamp("ms", "UTC")).cast(pa.int64()).to_numpy(), dtype=np.int64)


class VintageApi(CoinglassApi):
    """The Coinglass half with recorded answers in place of a synthetic market's; see :class:`CoinglassApi`."""

    def __init__(
        self,
        vintages: Mapping[str, Vintages],
        markets: Mapping[str, SyntheticMarket],
        clock: Clock,
        options: CoinglassOptions,
        faults: FaultInjector,
    ) -> None:
        super().__init__(markets, clock, options, faults)
        self.vintages = vintages

    def _rows(self, endpoint: Endpoint, query: Mapping[str, str], now: int) -> tuple[list[Row], int]:
        recorded = self.vintages.get(endpoint.path)
        if recorded is None:
            raise Refusal(200, "400", f"Nothing of {endpoint.path} was recorded")
        require(endpoint.needs, query)
        if query["interval"] != str(FOUR_HOURS):
            raise Refusal(200, "400", f"The interval '{query['interval']}' is not supported")
        limit = min(_LIMIT, integer(query, "limit", _LIMIT, least=1))
        first = FOUR_HOURS.ceil(integer(query, "start_time", 0))
        last = FOUR_HOURS.floor(min(now, integer(query, "end_time", now)))
        rows = recorded.rows(now, first, last)
        return (rows[:limit] if "start_time" in query else rows[-limit:]), FOUR_HOURS.ms


class VintageServer(EmulatorServer):
    """An emulator whose Coinglass half serves recorded vintages at its clock's time.

    Parameters
    ----------
    folder
        Where the vintages lie.
    clock
        The emulator's present.
    options
        Key, plan and behaviour.
    """

    def __init__(self, folder: Path, clock: Clock, options: CoinglassOptions | None = None) -> None:
        super().__init__(clock=clock, options=options)
        self.api = VintageApi(read_vintages(folder), self.markets, self.clock, self.options, self.faults)
