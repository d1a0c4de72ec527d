"""A seeded synthetic market of one coin on a 5-minute grid, and its aggregation to longer bars."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from mlbot_core.emulator import process
from mlbot_core.emulator.extras import FAMILIES as EXTRA_FAMILIES
from mlbot_core.emulator.extras import Extras
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, Timeframe

Mode = Literal["planted", "null"]
Rule = Literal["first", "max", "min", "last", "sum"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MODES: Final[tuple[Mode, ...]] = ("planted", "null")
BLOCK: Final = 8640  # bars generated at a time at least: 30 days

_OHLC: Final[tuple[tuple[str, Rule], ...]] = (("open", "first"), ("high", "max"), ("low", "min"), ("close", "last"))

# Per series: (name in a bar, column of the process, rule to a longer bar).
SERIES: Final[Mapping[str, tuple[tuple[str, str, Rule], ...]]] = {
    "price": (*((n, f"price_{n}", r) for n, r in _OHLC), ("turnover", "turnover", "sum")),
    "open_interest": tuple((n, f"oi_{n}", r) for n, r in _OHLC),
    "funding": tuple((n, f"funding_{n}", r) for n, r in _OHLC),
    "accounts": (("long_percent", "long_percent", "last"),),
    "liquidations": (("long", "liq_long", "sum"), ("short", "liq_short", "sum")),
    "taker": (("buy", "taker_buy", "sum"), ("sell", "taker_sell", "sum")),
}

# The same for series beside the core: their family, and (name in a bar, column of the family, rule to a longer bar).
EXTRA_SERIES: Final[Mapping[str, tuple[str, tuple[tuple[str, str, Rule], ...]]]] = {
    "spot": ("spot", (*((n, f"spot_{n}", r) for n, r in _OHLC), ("turnover", "spot_turnover", "sum"))),
    "spot_taker": ("spot", (("buy", "spot_buy", "sum"), ("sell", "spot_sell", "sum"))),
    "oi_pair": ("open_interest", tuple((n, f"pair_{n}", r) for n, r in _OHLC)),
    "oi_stable": ("open_interest", tuple((n, f"stable_{n}", r) for n, r in _OHLC)),
    "oi_coin_margin": ("open_interest", tuple((n, f"coin_margin_{n}", r) for n, r in _OHLC)),
    "funding_pair": ("funding", tuple((n, f"pair_{n}", r) for n, r in _OHLC)),
    "funding_volume": ("funding", tuple((n, f"volume_{n}", r) for n, r in _OHLC)),
    "top_accounts": ("top", (("long_percent", "account_long", "last"),)),
    "top_positions": ("top", (("long_percent", "position_long", "last"),)),
    "liquidations_pair": ("pair_flow", (("long", "pair_liq_long", "sum"), ("short", "pair_liq_short", "sum"))),
    "taker_pair": ("pair_flow", (("buy", "pair_buy", "sum"), ("sell", "pair_sell", "sum"))),
    "depth": ("depth", tuple((n, n, "last") for n in ("bids_usd", "bids_coin", "asks_usd", "asks_coin"))),
    "premium": ("premium", tuple((n, n, "first") for n in ("premium", "premium_rate", "coinbase_price"))),
    "margin": ("margin", (("long", "margin_long", "last"), ("short", "margin_short", "last"))),
    "borrow": ("borrow", (("rate", "interest_rate", "last"),)),
    "whales": ("whales", (("value", "whale_index", "last"),)),
}

_ROW: Final = {name: row for row, name in enumerate(process.COLUMNS)}


@dataclass(frozen=True)
class Bars:
    """Bars of one series.

    Parameters
    ----------
    ts
        Open times, UTC ms, ascending, shape ``(n,)``.
    values
        Columns of shape ``(n,)`` by name.
    open_last
        True when the last bar was still open at ``now``.
    """

    ts: Ints
    values: Mapping[str, Floats]
    open_last: bool


class SyntheticMarket:
    r"""A market that never existed, the same for everybody who names its seed.

    Parameters
    ----------
    seed
        Non-negative. The same seed gives the same bars in every process; ``mode`` does not change the draws.
    start_ms
        Open time of the first bar, UTC ms, at midnight UTC.
    mode
        ``planted`` hides a signal in the taker flow; ``null`` is the same market with its drift set to zero.
    symbol
        A key of :data:`mlbot_core.emulator.process.COINS`; coins of one seed are independent of each other.

    Raises
    ------
    UsageError
        If mode or symbol is unknown, the seed negative or the start not a midnight.

    Notes
    -----
    One step is 5 minutes. :math:`\epsilon, \xi, \eta, \ldots` are independent standard normals, one random stream per
    quantity, and :math:`m` is a hidden Ornstein-Uhlenbeck state with unit variance and a memory of 28 hours:

    .. math::

        m_t      &= e^{-1/336} m_{t-1} + \sqrt{1 - e^{-2/336}}\, \xi_t \\
        \sigma_t &= 0.0015 \cdot season_t \cdot e^{s_t - 0.35^2} \sqrt{g_t} \\
        g_{t+1}  &= 0.015 + 0.06\, g_t z_t^2 + 0.925\, g_t + 0.05 \min(4,\, 1000\, l_t) \\
        r_t      &= \sigma_t \epsilon_t + J_t + k \sigma_t m_t, \qquad P_{t+1} = P_t (1 + r_t)

    with :math:`s` a slow log-volatility (half-life 6 days, standard deviation 0.35), :math:`z_t` the shock of the bar
    in its own standard deviations (capped), :math:`J_t` a normal jump of 7 standard deviations once in five days on
    average, :math:`l_t` the liquidated share of open interest. **The planted signal is** :math:`k` = 0.036 (``null``:
    :math:`k` = 0, and the price is an exact martingale in simple returns). High and low are drawn from the law of the
    extremes of a Brownian bridge from open to close (Karatzas and Shreve, section 4.3.C), each from its marginal.

    What can be observed of the state, in both modes alike:

    - taker imbalance (buy - sell) / (buy + sell) = 0.035 m + 0.060 noise + 0.050 z: the main trace;
    - open interest in coins grows by 5e-5 m per bar beside activity, trend, noise and what is liquidated;
    - the log-odds of long accounts move by +0.0006 m - 0.006 z per bar, reverting over days.

    Without a trace of it: turnover (activity times volatility), funding (reverts over 8 hours to 0.008 + 0.010 x the
    trailing one-day trend, in percent per 8 hours) and liquidations: a share of open interest that grows with the
    power 2.2 of the fall of the low below the one-hour average price (longs; for shorts the rise of the high), times a
    log-normal, feeding a cascade that decays by 0.7 per bar.
    """

    def __init__(self, seed: int, start_ms: int, mode: Mode = "planted", symbol: str = "BTC") -> None:
        if symbol not in process.COINS:
            raise UsageError(f"the synthetic market has no {symbol!r}; choose one of {', '.join(process.COINS)}")
        if mode not in MODES:
            raise UsageError(f"market mode {mode!r} is unknown; choose planted or null")
        if seed < 0:
            raise UsageError(f"market seed {seed} is negative; use 0 or more")
        if start_ms % DAY_MS:
            raise UsageError(f"market start {start_ms} is not a midnight UTC; give a date such as 2024-01-01")
        self.seed = int(seed)
        self.start_ms = int(start_ms)
        self.mode: Mode = mode
        self._drift = process.PLANTED_DRIFT if mode == "planted" else 0.0
        self.symbol = symbol
        coin = process.COINS[symbol]
        self._coins = coin.open_interest
        self._state = process.initial_state(self.seed, coin)
        self._season = process.seasonality()
        self._streams = [(process.stream(self.seed, coin.prefix + name), law) for name, law in process.STREAMS]
        self._bars: Floats = np.empty((len(process.COLUMNS), 0), dtype=np.float64)
        self._lock = threading.Lock()
        self._extras = Extras(self.seed, coin.prefix)
        self._extras_lock = threading.Lock()

    @property
    def generated(self) -> int:
        """Number of 5-minute bars made so far."""
        return int(self._bars.shape[1])

    def base(self, end_ms: int) -> Floats:
        """Return every 5-minute bar opened before ``end_ms``.

        Returns
        -------
        ndarray
            Shape ``(len(process.COLUMNS), n)``, read-only; column ``i`` is the bar opened at
            ``start_ms + i * 300000``. Values of a bar are the same for every ``end_ms`` that includes it.
        """
        wanted = max(0, -(-(end_ms - self.start_ms) // process.STEP_MS))
        if wanted > self.generated:
            with self._lock:
                self._extend(wanted)
        view = self._bars[:, :wanted]
        view.flags.writeable = False
        return view

    def _extend(self, wanted: int) -> None:
        missing = wanted - self.generated
        if missing <= 0:  # somebody else did it while this thread waited for the lock
            return
        count = max(missing, BLOCK)
        draws = np.empty((len(self._streams), count), dtype=np.float64)
        for row, (rng, law) in zip(draws, self._streams, strict=True):
            row[:] = rng.standard_normal(count) if law == "n" else rng.random(count)
        first_step = self.start_ms // process.STEP_MS + self.generated
        made = process.generate(first_step, self._state, draws, self._season, self._drift, self._coins)
        self._bars = np.concatenate([self._bars, made], axis=1)

    def _family(self, family: str, end_ms: int) -> Floats:
        """Return every 5-minute bar of a family beside the core opened before ``end_ms``."""
        wanted = max(0, -(-(end_ms - self.start_ms) // process.STEP_MS))
        with self._extras_lock:
            return self._extras.columns(family, wanted, lambda bars: self.base(self.start_ms + bars * process.STEP_MS))

    def bars(self, series: str, timeframe: Timeframe, first_ts: int, last_ts: int, now_ms: int) -> Bars:
        """Return the bars of ``series`` opened in ``[first_ts, last_ts]`` as they look at ``now_ms``.

        Parameters
        ----------
        series
            A key of :data:`SERIES` or :data:`EXTRA_SERIES`.
        timeframe
            A multiple of 5 minutes.
        first_ts, last_ts
            Bounds on open times, UTC ms, both inclusive; need not lie on the grid.
        now_ms
            The present. The bar that contains it is included as far as it has got; later ones do not exist.

        Raises
        ------
        UsageError
            If the series is unknown or the timeframe is not a multiple of 5 minutes.
        """
        if series not in SERIES and series not in EXTRA_SERIES:
            raise UsageError(f"series {series!r} is unknown; choose one of {', '.join((*SERIES, *EXTRA_SERIES))}")
        if timeframe.ms % process.STEP_MS:
            raise UsageError(f"the synthetic market has 5-minute bars; {timeframe} is not a multiple of them")
        family, spec = EXTRA_SERIES[series] if series in EXTRA_SERIES else ("", SERIES[series])
        first = timeframe.ceil(max(first_ts, self.start_ms))
        last = timeframe.floor(min(last_ts, now_ms - 1))
        if last < first:
            return Bars(np.empty(0, np.int64), {name: np.empty(0) for name, _, _ in spec}, False)
        ts = np.arange(first, last + 1, timeframe.ms, dtype=np.int64)
        end = min(last + timeframe.ms, now_ms)
        whole = self._family(family, end) if family else self.base(end)
        order = EXTRA_FAMILIES[family].columns if family else process.COLUMNS
        rows = [order.index(column) for _, column, _ in spec]
        base = whole[rows, (first - self.start_ms) // process.STEP_MS :]  # a copy
        if end % process.STEP_MS:
            before = whole[:, max(0, whole.shape[1] - 2)]
            fraction = (end % process.STEP_MS) / process.STEP_MS
            if family:
                base[:, -1] = partial_extra(spec, base[:, -1], before[rows], fraction)
            else:
                base[:, -1] = partial_bar(whole[:, -1], before, fraction)[rows]
        edges = np.arange(len(ts), dtype=np.intp) * (timeframe.ms // process.STEP_MS)
        values = {name: _aggregate(column, edges, rule) for column, (name, _, rule) in zip(base, spec, strict=True)}
        return Bars(ts, values, not timeframe.is_closed(last, now_ms))


def partial_extra(spec: tuple[tuple[str, str, Rule], ...], bar: Floats, before: Floats, fraction: float) -> Floats:
    """Return how far a 5-minute bar of a series beside the core has got.

    Sums grow in proportion to time, the rest moves in a straight line from the bar before; extremes are those of the
    line.

    Parameters
    ----------
    spec
        (name, column, rule) of the values.
    bar, before
        The finished bar and the one before it, shape ``(len(spec),)``.
    fraction
        Elapsed share of the bar, strictly between 0 and 1.
    """
    part = np.array(bar)
    ends: list[float] = []
    for i, (_, _, rule) in enumerate(spec):
        if rule == "sum":
            part[i] = round(fraction * float(bar[i]), 4)
        elif rule == "last":
            part[i] = round(float(before[i]) + fraction * float(bar[i] - before[i]), 4)
        if rule in ("first", "last"):
            ends.append(float(part[i]))
    for i, (_, _, rule) in enumerate(spec):
        if rule in ("max", "min"):
            part[i] = max(ends) if rule == "max" else min(ends)
    return part


def partial_bar(bar: Floats, before: Floats, fraction: float) -> Floats:
    """Return how far a 5-minute bar has got.

    The price runs in straight lines from the open over one extreme (after a third of the time), the other (after two
    thirds) to the close; sums grow in proportion to time; the rest moves in a straight line.

    Parameters
    ----------
    bar, before
        The finished bar and the one before it, shape ``(len(process.COLUMNS),)``.
    fraction
        Elapsed share of the bar, strictly between 0 and 1.
    """
    part = np.array(bar)
    o, h, low, c = (float(bar[_ROW[f"price_{name}"]]) for name in ("open", "high", "low", "close"))
    corners = (o, h, low, c) if bar[_ROW["high_first"]] else (o, low, h, c)
    leg = min(2, int(fraction * 3))
    price = corners[leg] + (fraction * 3 - leg) * (corners[leg + 1] - corners[leg])
    seen = (*corners[: leg + 1], price)
    part[_ROW["price_high"]] = round(max(seen), 1)
    part[_ROW["price_low"]] = round(min(seen), 1)
    part[_ROW["price_close"]] = round(price, 1)
    for prefix, decimals in (("oi", 4), ("funding", 6)):
        o, h, low, c = (float(bar[_ROW[f"{prefix}_{name}"]]) for name in ("open", "high", "low", "close"))
        now = o + fraction * (c - o)
        part[_ROW[f"{prefix}_close"]] = round(now, decimals)
        part[_ROW[f"{prefix}_high"]] = round(max(o, now) + fraction * (h - max(o, c)), decimals)
        part[_ROW[f"{prefix}_low"]] = round(min(o, now) - fraction * (min(o, c) - low), decimals)
    share = _ROW["long_percent"]
    part[share] = round(before[share] + fraction * (bar[share] - before[share]), 2)
    for name, decimals in (("turnover", 4), ("liq_long", 5), ("liq_short", 5), ("taker_buy", 4), ("taker_sell", 4)):
        part[_ROW[name]] = round(fraction * float(bar[_ROW[name]]), decimals)
    return part


def _aggregate(column: Floats, edges: npt.NDArray[np.intp], rule: Rule) -> Floats:
    """Combine 5-minute values into bars that begin at ``edges``."""
    if rule == "first":
        return column[edges]
    if rule == "last":
        return column[np.append(edges[1:], len(column)) - 1]
    if rule == "sum":
        return np.add.reduceat(column, edges)
    return (np.maximum if rule == "max" else np.minimum).reduceat(column, edges)
