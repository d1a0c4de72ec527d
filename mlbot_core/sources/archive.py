"""Recorded market data: hourly price, settled funding and daily Coinglass series, and 4h Coinglass vintages.

Nothing here is live: both sources have an end, and :class:`~mlbot_core.sources.base.Served` says where it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from mlbot_core.clock import Clock
from mlbot_core.errors import UsageError
from mlbot_core.market.batch import SeriesBatch, column, empty_table, make_table
from mlbot_core.market.catalogue import series_spec
from mlbot_core.market.resample import resample
from mlbot_core.sources.base import (
    CAUSE_AFTER_RECORD,
    CAUSE_BEFORE_RECORD,
    CAUSE_NOT_RECORDED,
    Served,
    SourceBase,
    gap_records,
)
from mlbot_core.sources.recorded import Recorded, read_recorded
from mlbot_core.sources.rows import served_columns
from mlbot_core.timeframe import DAY_MS, Market, Timeframe

_Values = Mapping[str, npt.NDArray[np.float64]]

SYMBOL: Final = "BTC"
_1H, _2H, _4H, _8H, _1D = (Timeframe(minutes) for minutes in (60, 120, 240, 480, 1440))

_VINTAGE_FILES: Final[Mapping[str, str]] = {
    "price": "price.parquet",
    "open_interest": "open_interest_aggregated.parquet",
    "funding_rate": "funding_rate_oi_weight.parquet",
    "long_short_ratio": "global_long_short_account_ratio.parquet",
    "liquidations": "liquidation_aggregated.parquet",
    "taker_volume": "aggregated_taker_buy_sell_volume.parquet",
    "open_interest_stablecoin": "open_interest_aggregated_stablecoin.parquet",
    "open_interest_coin_margin": "open_interest_aggregated_coin_margin.parquet",
    "top_position_ratio": "top_long_short_position_ratio.parquet",
}
# Recorded from a single exchange where the catalogue asks for three.
_BINANCE_ONLY: Final = frozenset(
    {"liquidations", "taker_volume", "open_interest_stablecoin", "open_interest_coin_margin"}
)


@dataclass(frozen=True)
class Recording:
    """How one series is kept in a file.

    Parameters
    ----------
    file
        Name below the archive's folder.
    timeframe
        Length of the file's bars.
    columns
        The file's columns that are read.
    convert
        Makes the catalogue's columns, in canonical units, of the file's.
    versions
        Whether the file keeps every version with the time at which it was seen.
    resampled
        Whether longer bars are made of it for markets of a longer timeframe.
    note
        What a user of the rows should know.
    begins_late
        Whether the columns begin later than the file.
    lag_ms
        How long after its close a bar is taken to have been known; None: as the catalogue says.
    """

    file: str
    timeframe: Timeframe
    columns: tuple[str, ...]
    convert: Callable[[_Values], _Values]
    versions: bool = False
    resampled: bool = False
    note: str = ""
    begins_late: bool = False
    lag_ms: int | None = None


def _price(raw: _Values) -> _Values:
    typical = (raw["high"] + raw["low"] + raw["close"]) / 3
    prices = {name: raw[name] for name in ("open", "high", "low", "close")}
    return {**prices, "volume_coin": raw["volume"], "volume_usd": raw["volume"] * typical}


def _shares(column: str) -> Callable[[_Values], _Values]:
    def convert(raw: _Values) -> _Values:
        ratio = raw[column]
        return {"long_share": ratio / (1 + ratio), "short_share": 1 / (1 + ratio)}

    return convert


def _renamed(scale: float = 1.0, **names: str) -> Callable[[_Values], _Values]:
    def convert(raw: _Values) -> _Values:
        return {stored: raw[recorded] * scale for stored, recorded in names.items()}

    return convert


def _vintage(series: str) -> Recording:
    columns = served_columns(series_spec(series))
    fields = tuple(str(col.field) for col in columns)

    def convert(raw: _Values) -> _Values:
        return {col.name: raw[field] * col.scale for col, field in zip(columns, fields, strict=True)}

    note = "every version that was served; true observation times from 2025-05-14 on, earlier bars only as history"
    if series in _BINANCE_ONLY:
        note += "; Binance only"
    return Recording(f"coinglass_4h/{_VINTAGE_FILES[series]}", _4H, fields, convert, versions=True, note=note)


_DAILY_FILE: Final = "coinglass_btc_1d.parquet"
# A later vintage holds what was known some time after the close, nobody recorded when: a full day is granted.
_DAILY_LAG_MS: Final = DAY_MS
_LATER: Final = "daily, a single later vintage: not point in time, taken as known one day after its close"


def _daily_close(column: str, scale: float = 1.0, *, begins_late: bool = False) -> Recording:
    return Recording(
        _DAILY_FILE,
        _1D,
        (column,),
        _renamed(scale, close=column),
        note=f"{_LATER}; close only",
        begins_late=begins_late,
        lag_ms=_DAILY_LAG_MS,
    )


def _daily_shares(column: str) -> Recording:
    note = f"{_LATER}; shares from the rounded ratio, a snapshot at the day's open"
    return Recording(_DAILY_FILE, _1D, (column,), _shares(column), note=note, lag_ms=_DAILY_LAG_MS)


_FUNDING_SETTLED: Final = Recording(
    "btcusdt_perp_funding_8h.parquet", _8H, ("funding_rate",), _renamed(rate="funding_rate")
)

_ARCHIVE: Final[Mapping[str, Recording]] = {
    "price": Recording(
        "btcusdt_perp_1h.parquet",
        _1H,
        ("open", "high", "low", "close", "volume"),
        _price,
        resampled=True,
        note="volume_usd is volume_coin x (high + low + close) / 3 of each hour: the turnover was not recorded",
    ),
    "funding_settled": _FUNDING_SETTLED,
    "open_interest": _daily_close("oi_all_exch_usd"),
    "funding_rate": _daily_close("funding_oiw_close", 0.01),
    "long_short_ratio": _daily_shares("lsr_global"),
    "top_account_ratio": _daily_shares("lsr_top_accounts"),
    "top_position_ratio": _daily_shares("lsr_top_positions"),
    "open_interest_stablecoin": _daily_close("oi_stable_coin"),
    "open_interest_coin_margin": _daily_close("oi_coinm_usd"),
    "funding_rate_volume": _daily_close("funding_volw_close", 0.01, begins_late=True),
    "liquidations": Recording(
        _DAILY_FILE,
        _1D,
        ("liq_long_usd", "liq_short_usd"),
        _renamed(long_usd="liq_long_usd", short_usd="liq_short_usd"),
        note=_LATER,
        lag_ms=_DAILY_LAG_MS,
    ),
    "taker_volume": Recording(
        _DAILY_FILE,
        _1D,
        ("taker_buy_usd", "taker_sell_usd"),
        _renamed(buy_usd="taker_buy_usd", sell_usd="taker_sell_usd"),
        note=_LATER,
        lag_ms=_DAILY_LAG_MS,
    ),
}

_VINTAGES: Final[Mapping[str, Recording]] = {
    **{series: _vintage(series) for series in _VINTAGE_FILES},
    "funding_settled": _FUNDING_SETTLED,
}


class RecordedSource(SourceBase):
    """A source over files of one symbol; see its two kinds below.

    Parameters
    ----------
    folder
        The archive's folder.
    clock
        Tells when this fetch happens, and hides what had not happened by then.
    """

    name = ""
    _recordings: Mapping[str, Recording]
    _markets: tuple[Timeframe, ...]

    @classmethod
    def offers(cls) -> frozenset[str]:
        """Return the series that this kind of source has."""
        return frozenset(cls._recordings)

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._files: dict[str, Recorded] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._folder)!r})"

    def why_not(self, series: str, market: Market) -> str:
        """Return why a series is not served for a market; empty if it is."""
        series_spec(series)
        if market.symbol != SYMBOL:
            return f"{self.name} has {SYMBOL} only, not {market.symbol}"
        if market.timeframe not in self._markets:
            served = ", ".join(str(timeframe) for timeframe in self._markets)
            return f"{self.name} serves {served} markets, not {market.timeframe}"
        return "" if series in self._recordings else f"{self.name} has no {series}"

    def served(self, series: str, market: Market) -> Served | None:
        """Return timeframe and extent of the record of a series; None if there is none (see :meth:`why_not`).

        Raises
        ------
        ConfigError, BadDataError
            If the file is missing or unusable.
        """
        if self.why_not(series, market):
            return None
        record = self._record(series)
        timeframe = self._timeframe(series, market)
        end = timeframe.floor(record.end_ms)
        return Served(timeframe, timeframe.ceil(record.earliest_ms), end, self._recordings[series].note)

    def fetch(self, series: str, market: Market, start_ms: int, end_ms: int) -> SeriesBatch:
        """Return the recorded bars with ``start_ms <= ts < end_ms`` that had closed, and been seen, by now.

        Raises
        ------
        UsageError
            If there is no such record.
        ConfigError, BadDataError
            If the file is missing or unusable.
        """
        if reason := self.why_not(series, market):
            raise UsageError(f"{series} {market}: {reason}")
        recording, record = self._recordings[series], self._record(series)
        target, now = self._timeframe(series, market), self._clock.now_ms()
        first, stop = target.ceil(start_ms), min(target.ceil(end_ms), target.floor(now))
        if stop <= first:
            return SeriesBatch(series, market.symbol, target, self.name, empty_table(series))
        keep = (record.ts >= first) & (record.ts < stop)
        observed = np.full(len(record.ts), now, dtype=np.int64)
        if record.observed_at is not None:
            observed = record.observed_at
            keep &= observed <= now
        values = {name: data[keep] for name, data in recording.convert(record.values).items()}
        table = make_table(series, record.ts[keep], observed[keep], values)
        table = resample(table, series, record.timeframe, target)
        begin = min(max(first, target.ceil(record.earliest_ms)), stop)
        last = max(min(stop, target.floor(record.end_ms)), begin)
        bounds = (
            (first, begin, CAUSE_BEFORE_RECORD),
            (begin, last, CAUSE_NOT_RECORDED),
            (last, stop, CAUSE_AFTER_RECORD),
        )
        gaps = gap_records(series, market.symbol, target, self.name, column(table, "ts"), bounds)
        notes = (recording.note,) if recording.note else ()
        # whoever recorded versions watched live from the first snapshot on; bars before it were history already
        watched = int(record.observed_at.min()) if record.observed_at is not None and len(record.ts) else None
        return SeriesBatch(
            series,
            market.symbol,
            target,
            self.name,
            table,
            gaps,
            recorded=recording.versions,
            live_since_ms=watched,
            notes=notes,
            publication_lag_ms=recording.lag_ms,
        )

    def _timeframe(self, series: str, market: Market) -> Timeframe:
        """Return the timeframe of the rows: the market's where longer bars are made for it, else the record's."""
        recording = self._recordings[series]
        return max(market.timeframe, recording.timeframe) if recording.resampled else recording.timeframe

    def _record(self, series: str) -> Recorded:
        recording = self._recordings[series]
        with self._lock:
            if series not in self._files:
                record = read_recorded(
                    self._folder / recording.file,
                    recording.timeframe,
                    recording.columns,
                    versions=recording.versions,
                    begins_late=recording.begins_late,
                )
                self._files[series] = record.closed()
            return self._files[series]


class ArchiveSource(RecordedSource):
    """Hourly price (longer markets resampled), settled funding every 8 h, and daily Coinglass series.

    ``observed_at`` is the moment of the fetch: when these values were first seen was not recorded.
    """

    name = "archive"
    _recordings = _ARCHIVE
    _markets = (_1H, _2H, _4H, _1D)


class VintageArchiveSource(RecordedSource):
    """4h Coinglass series with every version that was served and the time at which it was seen."""

    name = "archive-vintages"
    _recordings = _VINTAGES
    _markets = (_4H,)
