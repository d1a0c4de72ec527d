"""What one instrument of Bybit looks like, derived from the synthetic market that the Coinglass half shows too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from mlbot_core.emulator.market import Bars
from mlbot_core.emulator.rows import EXCHANGES
from mlbot_core.timeframe import HOUR_MS, MINUTE_MS, Timeframe

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Kind = Literal["trade", "mark", "index", "premium"]

FUNDING_MS: Final = 8 * HOUR_MS
STEP: Final = Timeframe(5)
# Bybit's part of turnover and open interest, as the Coinglass half counts it; the price series is that of Binance.
SHARE: Final = EXCHANGES["Bybit"] / 100
FLOW: Final = EXCHANGES["Bybit"] / EXCHANGES["Binance"]
# How far Bybit's trades may lie from the price that the Coinglass half shows: 5 bp, well below a real basis scare.
_SPREAD: Final = 5e-4
# The funding rate is the premium index plus interest while the premium stays within 5 bp of it.
INTEREST: Final = 1e-4
_OHLC: Final = ("open", "high", "low", "close")


class Underlying(Protocol):
    """The part of :class:`mlbot_core.emulator.market.SyntheticMarket` that is needed here."""

    seed: int
    start_ms: int

    def bars(self, series: str, timeframe: Timeframe, first_ts: int, last_ts: int, now_ms: int) -> Bars:
        """Return the bars of a series opened in ``[first_ts, last_ts]`` as they look at ``now_ms``."""
        ...


@dataclass(frozen=True)
class Candles:
    """Candles of one kind: open times (UTC ms, ascending) and columns of the same length, prices in USD.

    ``values`` holds open, high, low, close, for trades also volume (coins) and turnover (USD).
    """

    ts: Ints
    values: Mapping[str, Floats]


class BybitMarket:
    r"""A linear perpetual over a synthetic market: a pure function of it and of time.

    Parameters
    ----------
    underlying
        Where prices, turnover, open interest, funding and account shares come from.
    tick
        Decimals of prices.

    Notes
    -----
    With :math:`P` the price of the Coinglass half, :math:`f` its funding (a fraction per 8 hours) and :math:`\tau` the
    share of the funding interval still to run:

    .. math::

        trade_t   &= P_t (1 + d_t), \qquad |d_t| \le 0.0005 \\
        premium_t &= f_t - 0.0001, \qquad index_t = trade_t / (1 + premium_t) \\
        mark_t    &= index_t (1 + f_t \tau_t)

    The last line is the first of the three prices of which Bybit takes the median (help centre, "Mark price
    calculation"). :math:`d` is a sum of two sine waves whose phases come from the seed. Open interest is Bybit's
    share of the Coinglass half's, in coins at the trade price; samples of it and of the account ratio at time t are
    what the bars that end at t close with.
    """

    def __init__(self, underlying: Underlying, tick: int = 1) -> None:
        self.underlying = underlying
        self.tick = tick
        self._phase = np.random.default_rng(np.random.SeedSequence(underlying.seed, spawn_key=(0xB7B17,))).random(2)

    @property
    def launch_ms(self) -> int:
        """When the instrument was listed, UTC ms: the first bar of the market."""
        return self.underlying.start_ms

    def candles(self, kind: Kind, timeframe: Timeframe, first_ts: int, last_ts: int, now_ms: int) -> Candles:
        """Return the candles opened in ``[first_ts, last_ts]`` as they look at ``now_ms``, the open one included.

        Parameters
        ----------
        kind
            ``trade``, ``mark``, ``index`` or ``premium`` (a fraction).
        timeframe
            Any length from one minute; below five minutes and off its multiples, bars follow the straight lines
            that the market draws inside five minutes.
        """
        first = timeframe.ceil(max(first_ts, self.launch_ms))
        last = timeframe.floor(min(last_ts, now_ms - 1))
        if last < first:
            return Candles(np.empty(0, np.int64), {name: np.empty(0) for name in (*_OHLC, "volume", "turnover")})
        if timeframe.ms % STEP.ms == 0:
            base, step = self._base(kind, first, last + timeframe.ms - 1, now_ms), STEP
        else:
            # minutes that are over must not change any more: they are cut from whole five minutes
            whole = self._base(kind, STEP.floor(first), last + timeframe.ms - 1, STEP.ceil(now_ms))
            base, step = _minutes(whole, now_ms), Timeframe(1)
            inside = (base.ts >= first) & (base.ts < last + timeframe.ms)
            base = Candles(base.ts[inside], {name: column[inside] for name, column in base.values.items()})
        return self._rounded(kind, _longer(base, step, timeframe))

    def _base(self, kind: Kind, first_ts: int, last_ts: int, now_ms: int) -> Candles:
        """Return 5-minute candles, unrounded; the last may be open."""
        price = self.underlying.bars("price", STEP, first_ts, last_ts, now_ms)
        ts, begin = price.ts, price.ts.astype(np.float64)
        end = np.minimum(begin + STEP.ms, float(now_ms))
        spread = (self.spread(begin), self.spread(end))
        trade = {
            "open": price.values["open"] * (1 + spread[0]),
            "high": price.values["high"] * (1 + np.maximum(*spread)),
            "low": price.values["low"] * (1 + np.minimum(*spread)),
            "close": price.values["close"] * (1 + spread[1]),
        }
        if kind == "trade":
            turnover = price.values["turnover"] * FLOW
            typical = (trade["high"] + trade["low"] + trade["close"]) / 3
            return Candles(ts, {**trade, "volume": turnover / typical, "turnover": turnover})
        funding = self.underlying.bars("funding", STEP, first_ts, last_ts, now_ms).values
        premium = {name: funding[name] / 100 - INTEREST for name in _OHLC}
        if kind == "premium":
            return Candles(ts, premium)
        index = {name: trade[name] / (1 + premium["open" if name == "open" else "close"]) for name in _OHLC}
        if kind == "mark":
            left = {"open": 1 - begin % FUNDING_MS / FUNDING_MS, "close": 1 - (end - 1) % FUNDING_MS / FUNDING_MS}
            for name in _OHLC:
                at = "open" if name == "open" else "close"
                index[name] = index[name] * (1 + funding[at] / 100 * left[at])
        index["high"] = np.maximum.reduce([index[name] for name in _OHLC])
        index["low"] = np.minimum.reduce([index[name] for name in _OHLC])
        return Candles(ts, index)

    def spread(self, ms: Floats) -> Floats:
        """Return how far Bybit's trades lie from the other half's price at each instant (ms), a fraction."""
        slow, fast = (
            np.sin(2 * math.pi * (ms / (hours * HOUR_MS) + phase))
            for hours, phase in zip((37.0, 1.7), self._phase, strict=True)
        )
        return np.asarray(_SPREAD * (0.7 * slow + 0.3 * fast), dtype=np.float64)

    def _rounded(self, kind: Kind, candles: Candles) -> Candles:
        decimals = 6 if kind == "premium" else self.tick
        values = {name: np.round(column, decimals) for name, column in candles.values.items() if name in _OHLC}
        if kind == "trade":
            values |= {
                "volume": np.round(candles.values["volume"], 3),
                "turnover": np.round(candles.values["turnover"], 4),
            }
        return Candles(candles.ts, values)

    def open_interest(self, stamps: Ints, now_ms: int) -> Floats:
        """Return one side's open interest at each instant, in coins; ``stamps`` on 5 minutes, ascending, up to now."""
        usd = self._closing("open_interest", "close", stamps, now_ms)
        trade = self._base("trade", int(stamps[0]) - STEP.ms, int(stamps[-1]) - 1, now_ms)
        close = trade.values["close"][np.searchsorted(trade.ts, stamps - STEP.ms)]
        return np.round(usd * SHARE / close, 3)

    def long_share(self, stamps: Ints, now_ms: int) -> Floats:
        """Return the share of accounts that are net long at each instant; stamps as for open interest."""
        return np.round(self._closing("accounts", "long_percent", stamps, now_ms) / 100, 4)

    def funding(self, stamps: Ints, now_ms: int) -> Floats:
        """Return the rate that was settled at each instant, as a fraction; stamps on the funding interval."""
        return np.round(self._closing("funding", "close", stamps, now_ms) / 100, 8)

    def _closing(self, series: str, column: str, stamps: Ints, now_ms: int) -> Floats:
        """Return what the 5-minute bars that end at the stamps close with."""
        bars = self.underlying.bars(series, STEP, int(stamps[0]) - STEP.ms, int(stamps[-1]) - 1, now_ms)
        return np.asarray(bars.values[column][np.searchsorted(bars.ts, stamps - STEP.ms)], dtype=np.float64)


def _longer(base: Candles, step: Timeframe, timeframe: Timeframe) -> Candles:
    """Combine candles of ``step`` into longer ones; the first begins on the grid, the last may be cut short."""
    if step == timeframe or len(base.ts) == 0:
        return base
    edges = np.flatnonzero(np.r_[True, base.ts[1:] // timeframe.ms != base.ts[:-1] // timeframe.ms])
    ends = np.append(edges[1:], len(base.ts)) - 1
    values = {
        "open": base.values["open"][edges],
        "high": np.maximum.reduceat(base.values["high"], edges),
        "low": np.minimum.reduceat(base.values["low"], edges),
        "close": base.values["close"][ends],
    }
    values |= {n: np.add.reduceat(base.values[n], edges) for n in ("volume", "turnover") if n in base.values}
    return Candles(base.ts[edges] // timeframe.ms * timeframe.ms, values)


def _minutes(base: Candles, now_ms: int) -> Candles:
    """Cut 5-minute candles into minutes: straight lines from the open over low and high (or high and low) to the close.

    The nearer extreme comes first. Flows are spread evenly. Minutes that have not begun by ``now_ms`` are left out, the
    one that contains it runs straight from its open.
    """
    o, h, low, c = (base.values[name] for name in _OHLC)
    up = h - o < o - low
    corners = np.stack([o, np.where(up, h, low), np.where(up, low, h), c])  # at 0, 5/3, 10/3 and 5 minutes
    edge = np.arange(6) * 3 / 5  # the minutes' edges, in legs
    leg = np.minimum(edge.astype(np.int64), 2)
    path = corners[leg] + (edge - leg)[:, None] * (corners[leg + 1] - corners[leg])  # (6, n)
    high, low_ = np.maximum(path[:-1], path[1:]), np.minimum(path[:-1], path[1:])
    for minute, corner in ((1, 1), (3, 2)):  # 5/3 lies in the second minute, 10/3 in the fourth
        high[minute] = np.maximum(high[minute], corners[corner])
        low_[minute] = np.minimum(low_[minute], corners[corner])
    values = {"open": path[:-1], "high": high, "low": low_, "close": path[1:]}
    values |= {n: np.tile(base.values[n] / 5, (5, 1)) for n in ("volume", "turnover") if n in base.values}
    ts = (base.ts[None, :] + np.arange(5)[:, None] * MINUTE_MS).T.ravel()
    begun = ts < now_ms
    made = Candles(ts[begun], {name: column.T.ravel()[begun] for name, column in values.items()})
    part = (now_ms - int(made.ts[-1])) / MINUTE_MS
    if part < 1:
        o, c = made.values["open"][-1], made.values["close"][-1]
        now = o + part * (c - o)
        last = {"high": max(o, now), "low": min(o, now), "close": now}
        last |= {name: part * made.values[name][-1] for name in ("volume", "turnover") if name in made.values}
        for name, value in last.items():
            made.values[name][-1] = value
    return made
