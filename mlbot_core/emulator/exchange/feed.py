"""Where the exchange's prices come from: the synthetic market, or a path given point by point."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from mlbot_core.emulator import process
from mlbot_core.emulator.bybit_market import FLOW, FUNDING_MS, INTEREST, STEP, BybitMarket
from mlbot_core.emulator.bybit_snapshot import book_sizes
from mlbot_core.emulator.market import SyntheticMarket
from mlbot_core.errors import UsageError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BOOK_DEPTH: Final = 200
DEFAULT_GRID_MS: Final = 10_000
_OHLC: Final = tuple(process.COLUMNS.index(f"price_{name}") for name in ("open", "high", "low", "close"))
_FUNDING: Final = tuple(process.COLUMNS.index(f"funding_{name}") for name in ("open", "close"))
_HIGH_FIRST: Final = process.COLUMNS.index("high_first")
_TURNOVER: Final = process.COLUMNS.index("turnover")


@dataclass(frozen=True)
class Ticks:
    """The instants at which resting orders, stops and margins are looked at, with the market at each; shape ``(n,)``.

    ``ts`` is UTC ms, ascending; ``last``, ``mark`` and ``index`` are prices in USDT on the tick grid; ``volume`` is
    what was traded since the instant before, coins.
    """

    ts: Ints
    last: Floats
    mark: Floats
    index: Floats
    volume: Floats


class Levels(Sequence[tuple[Decimal, Decimal]]):
    """One side of a book, made level by level as it is looked at.

    Parameters
    ----------
    best, step
        Price of the first level and the way to the next.
    sizes
        Coins on each level, with three decimals.
    """

    def __init__(self, best: Decimal, step: Decimal, sizes: Floats) -> None:
        self._best = best
        self._step = step
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[level] for level in range(*at.indices(len(self)))]
        level = at + len(self) if at < 0 else at
        if not 0 <= level < len(self):
            raise IndexError(f"the book has {len(self)} levels, not {at}")
        return self._best + level * self._step, Decimal(f"{self._sizes[level]:.3f}")


@dataclass(frozen=True)
class Quote:
    """The market of one instant: prices in USDT, and the book, best level first, as (price, coins)."""

    ts: int
    last: Decimal
    mark: Decimal
    index: Decimal
    bids: Sequence[tuple[Decimal, Decimal]]
    asks: Sequence[tuple[Decimal, Decimal]]

    def price(self, by: str) -> Decimal:
        """Return the price that ``LastPrice``, ``MarkPrice`` or ``IndexPrice`` names."""
        return {"LastPrice": self.last, "MarkPrice": self.mark, "IndexPrice": self.index}[by]


class Feed(Protocol):
    """What the exchange has to know of a market. All of it is a function of time: asking twice changes nothing."""

    def ticks(self, after_ms: int, upto_ms: int) -> Ticks:
        """Return the instants in ``(after_ms, upto_ms]``; every funding time in there is one of them."""
        ...

    def quote(self, now_ms: int) -> Quote:
        """Return the market at an instant."""
        ...

    def funding_rate(self, ts: int) -> Decimal:
        """Return the rate that is settled at a funding time, a fraction."""
        ...


class SyntheticFeed:
    """The market that the public endpoints show: last, mark and index price at t are those of the ticker at t.

    Parameters
    ----------
    market
        Must lie over a :class:`mlbot_core.emulator.market.SyntheticMarket`, whose path inside five minutes is known.
    grid_ms
        Distance of the instants of :meth:`ticks`; a divisor of 100 seconds, so that the extremes of every five
        minutes (which the market reaches after 100 and 200 seconds) are among them.

    Raises
    ------
    UsageError
        If the market is another one or the grid does not divide 100 seconds.
    """

    def __init__(self, market: BybitMarket, grid_ms: int = DEFAULT_GRID_MS) -> None:
        if not isinstance(market.underlying, SyntheticMarket):
            raise UsageError(f"a {type(market.underlying).__name__} has no path inside five minutes; use another feed")
        if grid_ms < 100 or 100_000 % grid_ms:
            raise UsageError(f"grid_ms={grid_ms} does not divide 100000")
        self._market = market
        self._base = market.underlying
        self._grid = grid_ms
        self._tick = Decimal(1).scaleb(-market.tick)
        self._quoted: Quote | None = None

    def ticks(self, after_ms: int, upto_ms: int) -> Ticks:
        """Return the instants of the grid in ``(after_ms, upto_ms]``."""
        first = max(after_ms, self._base.start_ms) // self._grid + 1
        ts = np.arange(first, upto_ms // self._grid + 1, dtype=np.int64) * self._grid
        if not len(ts):
            return Ticks(ts, *(np.empty(0) for _ in range(4)))
        last, mark, index, turnover = self._path(ts)
        return Ticks(ts, last, mark, index, turnover * (self._grid / STEP.ms) / last)

    def _path(self, ts: Ints) -> tuple[Floats, Floats, Floats, Floats]:
        """Return last, mark and index price and the turnover of the five minutes around each instant.

        The same lines as :func:`mlbot_core.emulator.market.partial_bar` and the formulas of
        :class:`mlbot_core.emulator.bybit_market.BybitMarket`, for many instants at once.
        """
        whole = self._base.base(int(ts[-1]))
        at = (ts - 1 - self._base.start_ms) // STEP.ms
        low, high = int(at[0]), int(at[-1]) + 1
        bars, at = whole[:, low:high], at - low
        fraction = (ts - self._base.start_ms - (at + low) * STEP.ms) / STEP.ms
        o, h, l_, c = (bars[row][at] for row in _OHLC)
        up = bars[_HIGH_FIRST][at] != 0
        corners = np.stack([o, np.where(up, h, l_), np.where(up, l_, h), c])
        leg = np.minimum((fraction * 3).astype(np.int64), 2)
        here = np.arange(len(ts))
        begin, end = corners[leg, here], corners[leg + 1, here]
        price = np.where(fraction < 1, np.round(begin + (fraction * 3 - leg) * (end - begin), 1), c)
        trade = price * (1 + self._market.spread(ts.astype(np.float64)))
        f_open, f_close = (bars[row][at] for row in _FUNDING)
        funding = np.where(fraction < 1, np.round(f_open + fraction * (f_close - f_open), 6), f_close)
        index = trade / (1 + funding / 100 - INTEREST)
        mark = index * (1 + funding / 100 * (1 - (ts - 1) % FUNDING_MS / FUNDING_MS))
        decimals = self._market.tick
        trade, mark, index = (np.round(values, decimals) for values in (trade, mark, index))
        return trade, mark, index, bars[_TURNOVER][at] * FLOW

    def quote(self, now_ms: int) -> Quote:
        """Return the market at ``now_ms``: the ticker's prices and the book that ``orderbook`` shows."""
        if self._quoted is None or self._quoted.ts != now_ms:
            last, mark, index, _ = self._path(np.array([now_ms], dtype=np.int64))
            sizes = book_sizes(self._base.seed, now_ms, BOOK_DEPTH)
            price = self._decimal(last)
            bids = Levels(price, -self._tick, sizes[0])
            asks = Levels(price + self._tick, self._tick, sizes[1])
            self._quoted = Quote(now_ms, price, self._decimal(mark), self._decimal(index), bids, asks)
        return self._quoted

    def _decimal(self, only: Floats) -> Decimal:
        return Decimal(f"{float(only[0]):.{self._market.tick}f}")

    def funding_rate(self, ts: int) -> Decimal:
        """Return the rate that ``funding/history`` shows for ``ts``."""
        rate = self._market.funding(np.array([ts], dtype=np.int64), ts)[0]
        return Decimal(f"{float(rate):.8f}")


@dataclass(frozen=True)
class Point:
    """One step of a given path: prices hold from ``ts`` (UTC ms) until the next point; volume in coins.

    ``bids`` and ``asks`` are the book where it is known, best level first, as (price, coins).
    """

    ts: int
    last: str
    mark: str | None = None
    index: str | None = None
    volume: str = "1000"
    bids: tuple[tuple[str, str], ...] = ()
    asks: tuple[tuple[str, str], ...] = ()


class PathFeed:
    """Prices given point by point, for hand-computed examples and for markets that are observed while they happen.

    Parameters
    ----------
    points
        Ascending in time, at least one; more may be appended.
    tick
        Price grid.
    funding
        Rate by funding time; ``rate`` at all others.
    rate
        A fraction, such as ``0.0001``.
    sizes
        Coins on each level of both sides of the book, best first; bids begin at the last price, asks one tick above.
        Points with a book of their own show that instead.

    Raises
    ------
    UsageError
        If there is no point, or one is not later than the one before it.
    """

    def __init__(
        self,
        points: Sequence[Point],
        *,
        tick: str = "0.1",
        funding: Mapping[int, str] | None = None,
        rate: str = "0.0001",
        sizes: Sequence[str] = ("1000",),
    ) -> None:
        if not points:
            raise UsageError("a price path needs at least one point")
        self._tick = Decimal(tick)
        self._funding = {ts: Decimal(value) for ts, value in (funding or {}).items()}
        self._rate = Decimal(rate)
        self._sizes = [Decimal(size) for size in sizes]
        self._ts: list[int] = []
        self._rows: list[tuple[Decimal, Decimal, Decimal, Decimal]] = []
        self._books: list[tuple[tuple[tuple[str, str], ...], ...]] = []
        for point in points:
            self.append(point)

    def append(self, point: Point) -> None:
        """Add what happened next, before the exchange's clock moves past it: what it has passed it does not see again.

        Raises
        ------
        UsageError
            If it is not later than the last point.
        """
        if self._ts and point.ts <= self._ts[-1]:
            raise UsageError(f"the point at {point.ts} is not later than the one at {self._ts[-1]}")
        last = Decimal(point.last)
        mark = last if point.mark is None else Decimal(point.mark)
        index = last if point.index is None else Decimal(point.index)
        self._ts.append(point.ts)
        self._rows.append((last, mark, index, Decimal(point.volume)))
        self._books.append((point.bids, point.asks))

    def set_funding(self, ts: int, rate: str) -> None:
        """Note the rate that is settled at a funding time, before that time is reached."""
        self._funding[ts] = Decimal(rate)

    def _number(self, ts: int) -> int:
        return max(0, bisect.bisect_right(self._ts, ts) - 1)

    def ticks(self, after_ms: int, upto_ms: int) -> Ticks:
        """Return the points and funding times in ``(after_ms, upto_ms]``; nothing is traded at a bare funding time."""
        own = self._ts[bisect.bisect_right(self._ts, after_ms) : bisect.bisect_right(self._ts, upto_ms)]
        funding = range(math.floor(after_ms / FUNDING_MS) * FUNDING_MS + FUNDING_MS, upto_ms + 1, FUNDING_MS)
        ts = sorted({*own, *funding})
        given = set(own)
        rows = [self._rows[self._number(at)] for at in ts]
        last, mark, index = (np.array([float(row[i]) for row in rows]) for i in range(3))
        volume = np.array([float(row[3]) if at in given else 0.0 for at, row in zip(ts, rows, strict=True)])
        return Ticks(np.array(ts, dtype=np.int64), last, mark, index, volume)

    def quote(self, now_ms: int) -> Quote:
        """Return the prices and the book of the last point by ``now_ms``."""
        number = self._number(now_ms)
        last, mark, index, _ = self._rows[number]
        if all(known := self._books[number]):
            book = [[(Decimal(price), Decimal(size)) for price, size in side] for side in known]
            return Quote(now_ms, last, mark, index, *book)
        bids = [(last - n * self._tick, size) for n, size in enumerate(self._sizes)]
        asks = [(last + (n + 1) * self._tick, size) for n, size in enumerate(self._sizes)]
        return Quote(now_ms, last, mark, index, bids, asks)

    def funding_rate(self, ts: int) -> Decimal:
        """Return the given rate."""
        return self._funding.get(ts, self._rate)
