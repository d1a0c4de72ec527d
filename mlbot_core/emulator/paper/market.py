"""A market that is observed while it happens: its points, its clock, and what is made of one more look at it."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

import numpy as np

from mlbot_core.clock import Clock
from mlbot_core.emulator.bybit_market import FUNDING_MS
from mlbot_core.emulator.exchange.feed import Quote, Ticks
from mlbot_core.emulator.exchange.numbers import ZERO
from mlbot_core.emulator.paper.bybit import Candle, Level, LiveError, Look
from mlbot_core.timeframe import MINUTE_MS

_KEPT: Final = 1_000
# So long the history of funding may take to show a settlement; then the rate that was announced last before it counts.
FUNDING_PATIENCE_MS: Final = 30_000


@dataclass(frozen=True)
class Point:
    """The market at one instant (UTC ms), prices in USDT; ``volume`` was traded since the point before, coins.

    ``bids`` and ``asks`` are empty where only prices are known.
    """

    ts: int
    last: Decimal
    mark: Decimal
    index: Decimal
    volume: Decimal = ZERO
    bids: tuple[Level, ...] = ()
    asks: tuple[Level, ...] = ()


@dataclass(frozen=True)
class Memory:
    """What has to be known of the past to understand the next look: all that a restart needs.

    Parameters
    ----------
    point
        The newest, with its book.
    minute
        The newest candle as it was then; what goes beyond it happened since.
    announced, announced_for
        Funding rate as announced last, a fraction, and the settlement that it was announced for, UTC ms.
    """

    point: Point
    minute: Candle | None
    announced: Decimal
    announced_for: int


class ObservedClock:
    """The time of the newest observation: for the exchange nothing has happened after it.

    Parameters
    ----------
    now_ms
        Start, UTC ms.
    wall
        Passes while something is waited for.
    """

    def __init__(self, now_ms: int, wall: Clock) -> None:
        self._now_ms = now_ms
        self._wall = wall

    def now_ms(self) -> int:
        """Return when the market was observed last, UTC ms."""
        return self._now_ms

    def sleep(self, seconds: float) -> None:
        """Wait; observations move this clock, not waiting."""
        self._wall.sleep(seconds)

    def observed(self, now_ms: int) -> None:
        """Move on to a new observation.

        Raises
        ------
        ValueError
            If it is not later than the last one.
        """
        if now_ms <= self._now_ms:
            raise ValueError(f"an observation of {now_ms} is not later than that of {self._now_ms}")
        self._now_ms = now_ms


class LiveFeed:
    """The points of one symbol; a feed of the exchange.

    Parameters
    ----------
    memory
        Where it goes on.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._points: list[Point] = [memory.point]
        self._stamps: list[int] = [memory.point.ts]
        self._rates: dict[int, Decimal] = {}

    def extend(self, points: Sequence[Point], memory: Memory, rates: dict[int, Decimal]) -> None:
        """Add what was observed, oldest first, and the funding rates settled since."""
        self._points += points
        self._stamps += [point.ts for point in points]
        self._rates |= rates
        self.memory = memory

    def forget(self) -> None:
        """Let go of points that the exchange has passed, but for some."""
        del self._points[:-_KEPT], self._stamps[:-_KEPT]

    def ticks(self, after_ms: int, upto_ms: int) -> Ticks:
        """Return the points and the funding times in ``(after_ms, upto_ms]``; nothing trades at a bare funding time."""
        low, high = bisect.bisect_right(self._stamps, after_ms), bisect.bisect_right(self._stamps, upto_ms)
        own = {point.ts: point for point in self._points[low:high]}
        ts = sorted({*own, *funding_times(after_ms, upto_ms)})
        rows = [self._at(at) for at in ts]
        last, mark, index = (
            np.array([float(getattr(row, name)) for row in rows]) for name in ("last", "mark", "index")
        )
        volume = np.array([float(own[at].volume) if at in own else 0.0 for at in ts])
        return Ticks(np.array(ts, dtype=np.int64), last, mark, index, volume)

    def quote(self, now_ms: int) -> Quote:
        """Return the market of the last point by ``now_ms``; without a book of its own it has the newest one, moved."""
        point = self._at(now_ms)
        if point.bids:
            return Quote(now_ms, point.last, point.mark, point.index, point.bids, point.asks)
        known = next((other for other in reversed(self._before(now_ms)) if other.bids), self.memory.point)
        away = point.last - known.last
        bids, asks = ([(price + away, size) for price, size in side] for side in (known.bids, known.asks))
        return Quote(now_ms, point.last, point.mark, point.index, bids, asks)

    def funding_rate(self, ts: int) -> Decimal:
        """Return the rate that was settled at a funding time; for one to come the announced rate."""
        return self._rates.get(ts, self.memory.announced)

    def _before(self, ts: int) -> list[Point]:
        return self._points[: max(1, bisect.bisect_right(self._stamps, ts))]

    def _at(self, ts: int) -> Point:
        return self._points[max(0, bisect.bisect_right(self._stamps, ts) - 1)]


def funding_times(after_ms: int, upto_ms: int) -> tuple[int, ...]:
    """Return the settlements in ``(after_ms, upto_ms]``, UTC ms."""
    return tuple(range(after_ms // FUNDING_MS * FUNDING_MS + FUNDING_MS, upto_ms + 1, FUNDING_MS))


def understand(memory: Memory | None, look: Look, now_ms: int) -> tuple[list[Point], Memory, dict[int, Decimal]]:
    """Return the points that a look adds, what is to be remembered, and the funding rates settled since the last.

    Between two looks the candles tell how far the price went: an extreme that was not there at the look before was
    reached since, in the order "nearer first". Every point is stamped later than the look before.

    Parameters
    ----------
    memory
        After the look before; None at the first one.
    now_ms
        When the look ended, UTC ms, later than the last point.

    Raises
    ------
    LiveError
        If a settlement has passed whose rate is not known yet.
    """
    current = look.candles[-1] if look.candles else None
    final = Point(now_ms, look.last, look.mark, look.index, ZERO, look.bids, look.asks)
    after = Memory(final, current, look.funding_rate, look.next_funding_ms)
    if memory is None:
        return [final], after, {}
    rates = {ts: _rate(memory, look, ts, now_ms) for ts in funding_times(memory.point.ts, now_ms)}
    marks = {candle.ts: candle for candle in look.marks}
    points: list[Point] = []
    traded = ZERO
    for candle in look.candles:
        if candle.ts + MINUTE_MS <= memory.point.ts:
            continue
        made, volume = _inside(
            memory, candle, marks.get(candle.ts), points[-1] if points else memory.point, now_ms, look
        )
        points += made
        traded += volume
    return [*points, replace(final, volume=traded)], after, rates


def _rate(memory: Memory, look: Look, ts: int, now_ms: int) -> Decimal:
    if ts in look.settled:
        return look.settled[ts]
    if now_ms - ts >= FUNDING_PATIENCE_MS and memory.announced_for == ts:
        return memory.announced
    raise LiveError(f"{look.symbol}: the funding rate settled at {ts} is not known yet; nothing trades until it is")


def _inside(
    memory: Memory, candle: Candle, mark: Candle | None, before: Point, now_ms: int, look: Look
) -> tuple[list[Point], Decimal]:
    """Return the points that one candle adds before the present, and the coins that were traded in it since.

    The coins are shared among the points; where there is none they are returned for the present.
    """
    known = memory.minute if memory.minute is not None and memory.minute.ts == candle.ts else None
    whole = candle.ts > memory.point.ts
    if known is None and not whole:
        return [], ZERO  # the minute in which observation began: what happened before cannot be told apart
    volume = max(ZERO, candle.volume - (known.volume if known else ZERO))
    over = candle.ts + MINUTE_MS <= now_ms
    towards = candle.close if over else look.last
    low, high = min(before.last, towards), max(before.last, towards)
    prices: list[tuple[Decimal, str]] = []
    if candle.high > high and (known is None or candle.high > known.high):
        prices.append((candle.high, "high"))
    if candle.low < low and (known is None or candle.low < known.low):
        prices.append((candle.low, "low"))
    prices.sort(key=lambda pair: abs(pair[0] - before.last))
    if over:
        prices.append((candle.close, "close"))
    begin = max(before.ts, candle.ts - 1)
    end = min(now_ms, candle.ts + MINUTE_MS)
    if not prices or end - begin <= len(prices):
        return [], volume
    share = volume / len(prices)
    points = []
    for number, (price, name) in enumerate(prices, start=1):
        at = begin + (end - begin) * number // (len(prices) + 1)
        worth = getattr(mark, name) if mark is not None else before.mark
        points.append(Point(at, price, worth, worth if mark is not None else before.index, share))
    return points, ZERO
