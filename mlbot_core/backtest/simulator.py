"""What a stream of target positions would have earned: one compiled loop over bars, after costs and funding.

Time inside one bar
-------------------
* A target is decided from the forecast of bar ``i`` at its close plus ``delay_ms`` (settle delay and latency). The
  order is sized in BTC with the NAV at that close, and filled in the next present bar at
  ``open + (close - open) * delay / timeframe``: the expected price, at the moment of decision, of a Brownian bridge
  between the open and the close. So nothing is filled before it was decided; slippage worsens the price.
* A settlement at ``s`` belongs to the bar with ``open < s <= close``; whoever holds the position at that instant pays.
  The price is that of the bridge at ``s`` (the close itself when ``s`` is the close); where no bar was recorded, the
  last close before. Last stands in for mark, because no mark price is recorded. NAV at a close includes a settlement
  at that very instant, so the decision after it knows of it.
* A bar with NaN open or close, or absent altogether, is missing: nothing is decided or filled in it, the position is
  carried at its last close, funding is still paid, and an order waits for the next present bar.
* When NAV at the adverse extreme of a bar is zero or less the account is bankrupt: the exchange takes the position over
  at the price where NAV is zero, and nothing happens afterwards.

Accounting: ``nav_end = nav_0 + gross - fees - slippage - funding``, where gross is earned at bridge prices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from numba import njit

from mlbot_core.clock import format_utc
from mlbot_core.errors import UsageError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

TARGET_CHANGED: Final = 1
DRIFT: Final = 2
TRIM: Final = 3
BANKRUPT: Final = 4
REASONS: Final = {TARGET_CHANGED: "target", DRIFT: "drift", TRIM: "trim", BANKRUPT: "bankrupt"}


@dataclass(frozen=True)
class SimulationParams:
    """Costs, delays and limits of one simulation.

    Parameters
    ----------
    timeframe_ms
        Length of a bar.
    delay_ms
        From a bar's close to the fill of what was decided on it; at most one bar.
    fee, slippage
        Fractions of the traded value and of the price, per side.
    initial_nav
        USD.
    cap
        Largest |position value| / NAV that is allowed; infinite for no limit.
    trim_ratio
        The position is cut back to ``cap`` once it exceeds ``trim_ratio x cap`` at a close.
    rebalance_band
        Trade an unchanged target when |actual - target| fraction of NAV exceeds this; infinite (the default) for
        never: the position then drifts with price and NAV until the target changes or the cap trims it.

    Raises
    ------
    UsageError
        If a value is out of its range.
    """

    timeframe_ms: int
    delay_ms: int
    fee: float
    slippage: float
    initial_nav: float = 10_000.0
    cap: float = float("inf")
    trim_ratio: float = 1.05
    rebalance_band: float = float("inf")

    def __post_init__(self) -> None:
        if self.timeframe_ms <= 0:
            raise UsageError(f"timeframe_ms is {self.timeframe_ms}; a bar must have a positive length")
        if not 0 <= self.delay_ms <= self.timeframe_ms:
            raise UsageError(
                f"a decision delay of {self.delay_ms} ms does not fit into a bar of {self.timeframe_ms} ms; "
                "lower settle_delay_s in config/intervals.yaml"
            )
        for name, low, high in (("fee", 0.0, 1.0), ("slippage", 0.0, 1.0)):
            value = getattr(self, name)
            if not low <= value < high:
                raise UsageError(f"{name} is {value}; it is a fraction per side in [0, 1)")
        if not (0 < self.initial_nav < float("inf")):
            raise UsageError(f"initial_nav is {self.initial_nav}; it must be a positive amount of USD")
        if not self.cap > 0 or not self.trim_ratio >= 1 or not self.rebalance_band >= 0:
            raise UsageError(
                f"cap {self.cap} must be positive, trim_ratio {self.trim_ratio} at least 1 and "
                f"rebalance_band {self.rebalance_band} not negative"
            )


@dataclass(frozen=True)
class Simulation:
    """What happened.

    Parameters
    ----------
    ts
        int64[n], open times of the bars, UTC ms.
    nav, nav_low
        float64[n], USD at each bar's close and at its adverse extreme.
    position
        float64[n], BTC held at the close, signed.
    gross, fees, slippage, funding
        float64[n], USD within each bar; costs and payments positive when paid.
    fills
        One row a fill: ``ts`` (when, UTC ms), ``bar`` (row of the bar), ``side`` (+1, -1), ``btc``, ``price`` (USD,
        slippage included), ``mid`` (USD, before slippage), ``fee``, ``slippage`` (USD), ``reason`` (target, drift,
        trim, bankrupt), ``nav`` (USD, at the decision; 0 for bankrupt), ``position`` (BTC, signed, after the fill).
    payments
        One row a settlement with a position: ``ts``, ``btc``, ``price``, ``rate``, ``payment`` (USD, positive = paid).
    bankrupt_bar
        Row of the bar in which NAV was used up; None if it never was.
    params
        The parameters of the run.
    """

    ts: IntArray
    nav: FloatArray
    nav_low: FloatArray
    position: FloatArray
    gross: FloatArray
    fees: FloatArray
    slippage: FloatArray
    funding: FloatArray
    fills: pd.DataFrame
    payments: pd.DataFrame
    bankrupt_bar: int | None
    params: SimulationParams

    @property
    def bankrupt(self) -> bool:
        """Whether NAV was used up."""
        return self.bankrupt_bar is not None


@njit(cache=True)
def _bridge(open_: float, close: float, elapsed: int, length: int) -> float:
    """Return the expected price ``elapsed`` into a bar of which open and close are known."""
    if elapsed == length:
        return close
    return open_ + (close - open_) * (elapsed / length)


@njit(cache=True)
def _loop(
    ts: IntArray,
    open_: FloatArray,
    high: FloatArray,
    low: FloatArray,
    close: FloatArray,
    target: FloatArray,
    length: int,
    delay: int,
    fee: float,
    slip: float,
    event_ts: IntArray,
    event_rate: FloatArray,
    nav0: float,
    cap: float,
    trim_ratio: float,
    band: float,
) -> Any:
    n = len(ts)
    m = len(event_ts)
    bars = np.zeros((7, n))  # nav, nav_low, position, gross, fees, slippage, funding
    fills = np.zeros((n + 1, 10))  # bar, side, btc, price, mid, fee, slippage, reason, nav at decision, position after
    fill_ts = np.zeros(n + 1, np.int64)
    payments = np.zeros((m, 4))  # btc, price, rate, payment
    payment_ts = np.zeros(m, np.int64)
    n_fills = 0
    n_payments = 0
    bankrupt_bar = -1

    cash = nav0
    held = 0.0
    mark = np.nan  # last known close
    pending = 0
    goal = 0.0
    decided_nav = nav0
    acted_target = 0.0
    event = 0
    for i in range(n):
        opened = ts[i]
        closed = opened + length
        if bankrupt_bar >= 0:
            bars[0, i] = cash
            bars[1, i] = cash
            continue
        present = not (np.isnan(open_[i]) or np.isnan(close[i]))
        reference = mark
        fill_at = opened + delay
        filled = False
        while True:
            before_fill = event < m and event_ts[event] <= fill_at
            if not filled and not before_fill:
                filled = True
                if present and pending != 0:
                    mid = _bridge(open_[i], close[i], delay, length)
                    amount = goal - held
                    side = 1.0 if amount > 0 else -1.0
                    price = mid * (1.0 + side * slip)
                    paid = abs(amount) * price * fee
                    lost = abs(amount) * mid * slip
                    if held != 0.0:
                        bars[3, i] += held * (mid - reference)
                    reference = mid
                    cash -= amount * price + paid
                    held = goal
                    bars[4, i] += paid
                    bars[5, i] += lost
                    fill_ts[n_fills] = fill_at
                    fills[n_fills] = np.array(
                        [float(i), side, abs(amount), price, mid, paid, lost, float(pending), decided_nav, goal]
                    )
                    n_fills += 1
                    pending = 0
            if event >= m or event_ts[event] > closed:
                break
            if held != 0.0:
                inside = present and event_ts[event] > opened
                at = _bridge(open_[i], close[i], event_ts[event] - opened, length) if inside else mark
                payment = held * at * event_rate[event]
                cash -= payment
                bars[6, i] += payment
                payment_ts[n_payments] = event_ts[event]
                payments[n_payments] = np.array([held, at, event_rate[event], payment])
                n_payments += 1
            event += 1

        if present:
            mark = close[i]
            if held != 0.0:
                bars[3, i] += held * (close[i] - reference)
        nav = cash + held * mark if held != 0.0 else cash
        worst = nav
        if present and held != 0.0:
            adverse = min(open_[i], close[i]) if held > 0 else max(open_[i], close[i])
            if held > 0 and low[i] < adverse:
                adverse = low[i]
            if held < 0 and high[i] > adverse:
                adverse = high[i]
            worst = cash + held * adverse
        if worst <= 0.0 or nav <= 0.0:
            bankrupt_bar = i
            pending = 0
            if held != 0.0:
                at = -cash / held
                bars[3, i] += held * (at - mark)
                fill_ts[n_fills] = closed
                fills[n_fills] = np.array(
                    [float(i), -1.0 if held > 0 else 1.0, abs(held), at, at, 0.0, 0.0, float(BANKRUPT), 0.0, 0.0]
                )
                n_fills += 1
                cash = 0.0
                held = 0.0
            nav = cash
            worst = cash
        bars[0, i] = nav
        bars[1, i] = min(nav, worst)
        bars[2, i] = held
        if not present or bankrupt_bar >= 0:
            continue

        fraction = held * close[i] / nav
        wanted = target[i]
        if not np.isnan(wanted) and wanted != acted_target:
            pending = TARGET_CHANGED
            goal = wanted * nav / close[i]
            acted_target = wanted
        elif not np.isnan(wanted) and abs(fraction - wanted) > band:
            pending = DRIFT
            goal = wanted * nav / close[i]
        elif abs(fraction) > trim_ratio * cap:
            pending = TRIM
            goal = np.sign(held) * cap * nav / close[i]
        if pending != 0:
            decided_nav = nav
            if goal == held:
                pending = 0
    return bars, fill_ts[:n_fills], fills[:n_fills], payment_ts[:n_payments], payments[:n_payments], bankrupt_bar


def simulate(
    ts: IntArray,
    open_: FloatArray,
    high: FloatArray,
    low: FloatArray,
    close: FloatArray,
    target: FloatArray,
    params: SimulationParams,
    funding_ts: IntArray | None = None,
    funding_rate: FloatArray | None = None,
) -> Simulation:
    """Trade a stream of target positions over bars.

    Parameters
    ----------
    ts
        int64[n], open times, UTC ms, strictly ascending; bars may be absent.
    open_, high, low, close
        float64[n], USD; NaN = missing.
    target
        float64[n], signed fraction of NAV decided from the forecast of that bar; NaN = no decision, the former
        target stands.
    params
        Costs, delays and limits.
    funding_ts, funding_rate
        Settlements: UTC ms, strictly ascending, and the fraction of position value that longs pay to shorts.

    Raises
    ------
    UsageError
        If lengths differ, times are not ascending, a price is not positive or a target is infinite or above the cap.
    """
    times = np.ascontiguousarray(ts, dtype=np.int64)
    prices = tuple(np.ascontiguousarray(values, dtype=np.float64) for values in (open_, high, low, close))
    wanted = np.ascontiguousarray(target, dtype=np.float64)
    events = np.ascontiguousarray(funding_ts if funding_ts is not None else [], dtype=np.int64)
    rates = np.ascontiguousarray(funding_rate if funding_rate is not None else [], dtype=np.float64)
    _check(times, prices, wanted, events, rates, params)
    bars, fill_ts, fills, payment_ts, payments, bankrupt_bar = _loop(
        times,
        prices[0],
        prices[1],
        prices[2],
        prices[3],
        wanted,
        params.timeframe_ms,
        params.delay_ms,
        params.fee,
        params.slippage,
        events,
        rates,
        params.initial_nav,
        params.cap,
        params.trim_ratio,
        params.rebalance_band,
    )
    return Simulation(
        ts=times,
        nav=bars[0],
        nav_low=bars[1],
        position=bars[2],
        gross=bars[3],
        fees=bars[4],
        slippage=bars[5],
        funding=bars[6],
        fills=pd.DataFrame(
            {
                "ts": fill_ts,
                "bar": fills[:, 0].astype(np.int64),
                "side": fills[:, 1].astype(np.int64),
                "btc": fills[:, 2],
                "price": fills[:, 3],
                "mid": fills[:, 4],
                "fee": fills[:, 5],
                "slippage": fills[:, 6],
                "reason": pd.Series([REASONS[int(code)] for code in fills[:, 7]], dtype="str"),
                "nav": fills[:, 8],
                "position": fills[:, 9],
            }
        ),
        payments=pd.DataFrame(
            {
                "ts": payment_ts,
                "btc": payments[:, 0],
                "price": payments[:, 1],
                "rate": payments[:, 2],
                "payment": payments[:, 3],
            }
        ),
        bankrupt_bar=int(bankrupt_bar) if bankrupt_bar >= 0 else None,
        params=params,
    )


def _check(
    ts: IntArray,
    prices: tuple[FloatArray, ...],
    target: FloatArray,
    events: IntArray,
    rates: FloatArray,
    params: SimulationParams,
) -> None:
    if any(len(values) != len(ts) for values in (*prices, target)):
        raise UsageError(f"bars have {len(ts)} times but prices {[len(v) for v in prices]} and {len(target)} targets")
    step = np.diff(ts)
    if len(step) and step.min() < params.timeframe_ms:
        at = int(ts[1:][step < params.timeframe_ms][0])
        raise UsageError(f"bar {format_utc(at)} overlaps the bar before it; bars must ascend, one a timeframe")
    for values in prices:
        bad = ~np.isnan(values) & ((values <= 0) | np.isinf(values))
        if bad.any():
            at = int(np.argmax(bad))
            raise UsageError(f"price {values[at]} at bar {format_utc(int(ts[at]))} is not a positive number of USD")
    wrong = np.abs(target) > params.cap * (1 + 1e-9)
    if wrong.any() or np.isinf(target).any():
        at = int(np.argmax(wrong | np.isinf(target)))
        raise UsageError(
            f"target {target[at]} at bar {format_utc(int(ts[at]))} exceeds the cap of {params.cap} of NAV; "
            "size positions with the same max_position as the simulation"
        )
    if len(events) != len(rates) or (len(events) > 1 and np.diff(events).min() <= 0):
        raise UsageError(
            f"funding has {len(events)} times and {len(rates)} rates; times must ascend, one rate a settlement"
        )
    if not np.isfinite(rates).all():
        at = int(np.argmax(~np.isfinite(rates)))
        raise UsageError(f"funding rate {rates[at]} at {format_utc(int(events[at]))} is not a number; drop the row")
