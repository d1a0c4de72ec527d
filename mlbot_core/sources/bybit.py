"""Bybit's public history of linear perpetuals, without a key: the way to years of intraday data for anybody.

Endpoints and units: https://bybit-exchange.github.io/docs/v5/market and the notes in this package's ``bybit_*``
modules. The emulator's Bybit half is read through this very class.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlbot_core.clock import Clock, parse_utc_ms
from mlbot_core.errors import BadDataError, UsageError
from mlbot_core.market.batch import SeriesBatch, column, empty_table, make_table
from mlbot_core.market.catalogue import series_spec
from mlbot_core.market.resample import resample
from mlbot_core.sources import bybit_feeds as feeds
from mlbot_core.sources.base import (
    CAUSE_BEFORE_HISTORY,
    CAUSE_NOT_YET,
    CAUSE_NOTHING,
    Served,
    SourceBase,
    gap_records,
)
from mlbot_core.sources.bybit_feeds import Feed, Fetcher
from mlbot_core.sources.bybit_http import BybitClient
from mlbot_core.sources.bybit_rows import FUNDING, one_side
from mlbot_core.sources.paging import Stitched
from mlbot_core.sources.transport import RequestRefusedError
from mlbot_core.timeframe import Market, Timeframe

BYBIT_URL: Final = "https://api.bybit.com"
CAUSE_BEFORE_LISTING: Final = "before listing"
# Documented beginning of the account ratio, for every instrument.
RATIO_SINCE_MS: Final = parse_utc_ms("2020-07-20")
_LATE_BARS: Final = 2
_AHEAD: Final = 2

_OHLC: Final = ("open", "high", "low", "close")
_VALUED: Final = (
    "one side, in USD at Bybit's mark price of that moment; sampled at the bar's close, which is all there is"
)


@dataclass(frozen=True)
class _Series:
    """How a series of the catalogue comes from Bybit.

    Parameters
    ----------
    feed
        Its endpoint; None for settled funding, which is no bar by itself.
    names
        Columns in the order of the feed's values; empty where they have to be worked out.
    note
        What a user of the rows should know.
    """

    feed: Feed | None
    names: tuple[str, ...] = ()
    note: str = ""


_SERIES: Final[Mapping[str, _Series]] = {
    "price": _Series(feeds.PRICE, (*_OHLC, "volume_usd", "volume_coin"), "traded on Bybit"),
    "mark_price": _Series(feeds.MARK, _OHLC),
    "index_price": _Series(feeds.INDEX, _OHLC),
    "premium_index": _Series(feeds.PREMIUM, _OHLC),
    "long_short_ratio": _Series(feeds.ACCOUNTS, ("long_share", "short_share"), "accounts of Bybit alone"),
    "open_interest": _Series(feeds.OPEN_INTEREST, (), f"Bybit alone; {_VALUED}"),
    "open_interest_pair": _Series(feeds.OPEN_INTEREST, (), _VALUED),
    "funding_settled": _Series(None, ("rate",), "bar ts holds the payment at ts"),
}


@dataclass(frozen=True)
class _Range:
    """The bars of one request: ``[first, stop)`` on the target's grid, asked for from ``begin`` on the base's."""

    base: Timeframe
    target: Timeframe
    first: int
    begin: int
    stop: int
    launch: int


class BybitSource(SourceBase):
    """Bybit v5, or a server that speaks like it.

    Parameters
    ----------
    client
        The calls; closed with this source.
    clock
        Tells which bars are closed.
    """

    name = "bybit"
    # bars worth fetching before they are stored: what a crash may cost, at four calls of klines
    chunk_bars = 4000

    def __init__(self, client: BybitClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._fetcher = Fetcher(client, clock)
        self._lock = threading.Lock()
        self._launch: dict[str, int | str] = {}

    def __repr__(self) -> str:
        return f"BybitSource({self._client!r})"

    def close(self) -> None:
        """End the threads and close the connections."""
        self._fetcher.close()
        self._client.close()

    @classmethod
    def offers(cls) -> frozenset[str]:
        """Return the series that Bybit has without a key."""
        return frozenset(_SERIES)

    def served(self, series: str, market: Market) -> Served | None:
        """Return what Bybit has of a series: from its listing on; None if nothing (see :meth:`why_not`)."""
        if self.why_not(series, market):
            return None
        target = _target(series, market.timeframe)
        earliest = self._earliest(series, market.symbol)
        notes = [_SERIES[series].note, "" if self._client.base_url == BYBIT_URL else f"from {self._client.base_url}"]
        return Served(target, target.ceil(earliest), None, "; ".join(note for note in notes if note))

    def why_not(self, series: str, market: Market) -> str:
        """Return why a series is not served for a market; empty if it is."""
        if reason := _not_offered(series, market):
            return reason
        launch = self._launched(_pair(market.symbol))
        return launch if isinstance(launch, str) else ""

    def fetch(self, series: str, market: Market, start_ms: int, end_ms: int) -> SeriesBatch:
        """Return the closed bars with ``start_ms <= ts < end_ms``; what is missing is in ``gaps``.

        Raises
        ------
        UsageError
            If Bybit has no such series, interval or instrument.
        SourceError
            If it did not deliver; the subclass says how. After HTTP 403 no process of this machine calls for 10 min.
        """
        if reason := self.why_not(series, market):
            raise UsageError(f"{series} {market}: {reason}")
        asked = self._range(series, market, start_ms, end_ms)
        if asked.stop <= asked.first:
            return SeriesBatch(series, market.symbol, asked.target, self.name, empty_table(series))
        table, notes = self._table(series, _pair(market.symbol), asked)
        table = resample(table, series, asked.base, asked.target)
        if asked.base != asked.target:
            notes.append(f"{asked.target} bars made of {asked.base} bars")
        bounds = self._causes(column(table, "ts"), asked)
        gaps = gap_records(series, market.symbol, asked.target, self.name, column(table, "ts"), bounds)
        return SeriesBatch(
            series,
            market.symbol,
            asked.target,
            self.name,
            table,
            gaps,
            notes=tuple(notes),
            publication_lag_ms=0,
        )

    def fetch_chunks(self, series: str, market: Market, bounds: Iterable[tuple[int, int]]) -> Iterator[SeriesBatch]:
        """Yield one batch for each ``(start_ms, end_ms)``, in order, while the next ones are already on their way.

        Parameters
        ----------
        bounds
            Stretches that the caller stores one by one, about :attr:`chunk_bars` long, so that a crash loses little.

        Raises
        ------
        UsageError, SourceError
            As :meth:`fetch`, when the stretch that failed is due; those before it have been yielded.
        """
        waiting = iter(bounds)
        with ThreadPoolExecutor(_AHEAD, thread_name_prefix="bybit-chunk") as pool:
            under_way: deque[Future[SeriesBatch]] = deque()
            try:
                while True:
                    while len(under_way) < _AHEAD and (bound := next(waiting, None)) is not None:
                        under_way.append(pool.submit(self.fetch, series, market, *bound))
                    if not under_way:
                        return
                    yield under_way.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _range(self, series: str, market: Market, start_ms: int, end_ms: int) -> _Range:
        target = _target(series, market.timeframe)
        base = _base(series, target)
        first = target.ceil(start_ms)
        stop = max(first, min(target.ceil(end_ms), target.floor(self._clock.now_ms())))
        begin = min(max(first, base.floor(self._earliest(series, market.symbol))), stop)
        return _Range(base, target, first, begin, stop, self._listed(market.symbol))

    def _table(self, series: str, pair: str, asked: _Range) -> tuple[pa.Table, list[str]]:
        how, base, begin, stop = _SERIES[series], asked.base, asked.begin, asked.stop
        if how.feed is None:
            bars, notes = self._fetcher.funding(pair, begin, stop)
        else:
            bars, notes = self._fetcher.bars(how.feed, pair, base, begin, stop)
        if how.feed is feeds.OPEN_INTEREST:
            return self._valued(series, pair, asked, bars, notes)
        values = {name: bars.values[:, index] for index, name in enumerate(how.names)}
        return make_table(series, bars.ts, bars.observed_at, values), notes

    def _valued(
        self, series: str, pair: str, asked: _Range, coins: Stitched, notes: list[str]
    ) -> tuple[pa.Table, list[str]]:
        """Return open interest in USD (and coins): each sample times the mark price at which its bar closes."""
        marks, more = self._fetcher.bars(feeds.MARK, pair, asked.base, asked.begin, asked.stop)
        single, note = one_side(coins.values[:, 0], coins.values[:, 1])
        notes = [*notes, *more, *([note] if note else [])]
        at = np.minimum(np.searchsorted(marks.ts, coins.ts), max(len(marks.ts) - 1, 0))
        priced = marks.ts[at] == coins.ts if len(marks.ts) else np.zeros(len(coins.ts), dtype=np.bool_)
        mark = np.full(len(coins.ts), np.nan)
        mark[priced] = marks.values[at[priced], 3]
        observed = coins.observed_at.copy()
        observed[priced] = np.maximum(observed[priced], marks.observed_at[at[priced]])
        if not priced.all():
            notes.append(f"{int((~priced).sum())} samples of open interest have no mark price")
        values = {"close": single * mark}
        if series == "open_interest":
            return make_table(series, coins.ts[priced], observed[priced], {"close": values["close"][priced]}), notes
        return make_table(series, coins.ts, observed, {**values, "close_coin": single}), notes

    def _launched(self, pair: str) -> int | str:
        """Return when an instrument was listed, UTC ms, or why it is not there; asked once."""
        with self._lock:
            if pair not in self._launch:
                self._launch[pair] = self._ask_launch(pair)
            return self._launch[pair]

    def _ask_launch(self, pair: str) -> int | str:
        absent = f"Bybit lists no linear perpetual {pair}"
        try:
            listed = self._client.get("get_instruments_info", symbol=pair).result.get("list")
        except RequestRefusedError as error:
            return f"{absent} ({error})"
        if not isinstance(listed, list):
            raise BadDataError(f"Bybit get_instruments_info: list is {type(listed).__name__}, not an array")
        found = next((row for row in listed if isinstance(row, dict) and row.get("symbol") == pair), None)
        if found is None:
            return absent
        launch = found.get("launchTime")
        if not isinstance(launch, str) or not (launch.isascii() and launch.isdigit() and len(launch) == 13):
            raise BadDataError(
                f"Bybit get_instruments_info: launchTime of {pair} is {str(launch)[:40]!r}, no time in ms"
            )
        return int(launch)

    def _listed(self, symbol: str) -> int:
        launch = self._launched(_pair(symbol))
        if isinstance(launch, str):
            raise UsageError(launch)
        return launch

    def _earliest(self, series: str, symbol: str) -> int:
        launch, feed = self._listed(symbol), _SERIES[series].feed
        if feed is None:
            return FUNDING.floor(launch) + FUNDING.ms  # nothing is paid at the listing itself
        return max(launch, RATIO_SINCE_MS) if feed is feeds.ACCOUNTS else launch

    def _causes(self, ts: npt.NDArray[np.int64], asked: _Range) -> Iterator[tuple[int, int, str]]:
        """Cut [first, stop) into stretches with the cause that a bar missing there has."""
        target, stop = asked.target, asked.stop
        listed = min(max(asked.first, target.ceil(asked.launch)), stop)
        begin = max(listed, min(target.ceil(asked.begin), stop))
        yield asked.first, listed, CAUSE_BEFORE_LISTING
        yield listed, begin, CAUSE_BEFORE_HISTORY
        if len(ts) == 0:
            yield begin, stop, CAUSE_NOTHING
            return
        head, tail = int(ts[0]), int(ts[-1]) + target.ms
        # without bars from the listing's day on, history begins later than the instrument
        yield begin, head, CAUSE_BEFORE_HISTORY if begin == target.ceil(asked.launch) else CAUSE_NOTHING
        yield max(begin, head), tail, CAUSE_NOTHING
        newest = target.floor(self._clock.now_ms())
        late = stop >= newest and stop - tail <= _LATE_BARS * target.ms
        yield tail, stop, CAUSE_NOT_YET if late else CAUSE_NOTHING


def _pair(symbol: str) -> str:
    return f"{symbol}USDT"


def _target(series: str, timeframe: Timeframe) -> Timeframe:
    """Return the timeframe of the rows: settled funding has its own."""
    return FUNDING if _SERIES[series].feed is None else timeframe


def _base(series: str, target: Timeframe) -> Timeframe:
    feed = _SERIES[series].feed
    base = FUNDING if feed is None else feed.base(target)
    if base is None:
        raise UsageError(f"Bybit has no bars that {target} could be made of for {series}")
    return base


def _not_offered(series: str, market: Market) -> str:
    series_spec(series)
    how = _SERIES.get(series)
    if how is None:
        return f"Bybit serves no {series} without a key"
    if how.feed is not None and how.feed.base(market.timeframe) is None:
        served = ", ".join(str(timeframe) for timeframe in how.feed.intervals)
        return f"Bybit has no {market.timeframe} bars of {series}; it serves {served} and what can be made of them"
    return ""
