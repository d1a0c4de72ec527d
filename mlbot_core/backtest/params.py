"""Parameters of one simulation: costs, delays, limits and the exchange's rules, each checked where it enters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from mlbot_core.backtest.orders import Rules
from mlbot_core.decision.state import Limits
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import MINUTE_MS

DAY_GRACE_MS: Final = 5 * MINUTE_MS
NO_AGE: Final = 2**62
MOST_BARS: Final = 10_000


@dataclass(frozen=True)
class SimulationParams:
    """Costs, delays, limits and the exchange's rules of one simulation; what is left out does not apply.

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
    daily_loss, max_drawdown
        Limits of the risk machine, fractions of NAV; infinite for none.
    settle_ms
        From a bar's close to its decision; at most ``delay_ms``.
    cost_round_trip
        What the no-trade band takes entering and leaving to cost, fraction of the traded value.
    max_forecast_age_ms
        With an older forecast one may only reduce.
    impact
        Additional slippage of an order as large as the bar's volume; it grows with the square root of the share.
    participation
        Largest share of a bar's volume that one order takes in that bar; in a bar without volume nothing is filled.
    lot, tick, min_notional
        Steps of quantity (coins) and price (USD), and the smallest order value (USD).
    stop_distance
        Protective stop, fraction of the average entry price; infinite for none.
    maintenance
        Tiers of the maintenance margin: (largest position value in USD, rate, deduction in USD), ascending.
    latency_bars
        Whole recorded bars on top of ``delay_ms`` that an order is on its way.
    maker_bars
        For how many recorded bars, its first one included, a decided order rests as a limit order at the decision's
        price before the rest of it is taken; 0 (the default) takes at once. Stops and limits always take.
    maker_fee
        Of what a limit order filled, fraction of its value; negative for a rebate. It has no slippage.

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
    cap: float = math.inf
    trim_ratio: float = 1.05
    rebalance_band: float = math.inf
    daily_loss: float = math.inf
    max_drawdown: float = math.inf
    settle_ms: int = 0
    cost_round_trip: float = 0.0
    max_forecast_age_ms: int = NO_AGE
    impact: float = 0.0
    participation: float = math.inf
    lot: float = 0.0
    tick: float = 0.0
    min_notional: float = 0.0
    stop_distance: float = math.inf
    maintenance: tuple[tuple[float, float, float], ...] = ()
    latency_bars: int = 0
    maker_bars: int = 0
    maker_fee: float = 0.0

    def __post_init__(self) -> None:
        if self.timeframe_ms <= 0:
            raise UsageError(f"timeframe_ms is {self.timeframe_ms}; a bar must have a positive length")
        if not 0 <= self.delay_ms <= self.timeframe_ms or not 0 <= self.settle_ms <= self.timeframe_ms:
            raise UsageError(
                f"a decision delay of {max(self.delay_ms, self.settle_ms)} ms does not fit into a bar of "
                f"{self.timeframe_ms} ms; lower settle_delay_s in config/intervals.yaml"
            )
        if self.settle_ms > self.delay_ms:
            raise UsageError(
                f"delay_ms is {self.delay_ms} but settle_ms {self.settle_ms}; an order cannot be filled before it is "
                "decided"
            )
        for name in ("fee", "slippage"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise UsageError(f"{name} is {value}; it is a fraction per side in [0, 1)")
        if not -1.0 < self.maker_fee < 1.0:
            raise UsageError(f"maker_fee is {self.maker_fee}; it is a fraction in (-1, 1), negative for a rebate")
        for name in ("latency_bars", "maker_bars"):
            bars = getattr(self, name)
            if not 0 <= bars <= MOST_BARS:
                raise UsageError(f"{name} is {bars}; it is a number of bars between 0 and {MOST_BARS}")
        if not (0 < self.initial_nav < math.inf):
            raise UsageError(f"initial_nav is {self.initial_nav}; it must be a positive amount of USD")
        if not self.cap > 0 or not self.trim_ratio >= 1 or not self.rebalance_band >= 0:
            raise UsageError(
                f"cap {self.cap} must be positive, trim_ratio {self.trim_ratio} at least 1 and "
                f"rebalance_band {self.rebalance_band} not negative"
            )
        for name in ("daily_loss", "max_drawdown", "participation", "stop_distance"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be positive, infinite for no limit")
        for name in ("cost_round_trip", "impact", "lot", "tick", "min_notional"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be zero or positive")
        if not self.slippage + self.impact < 1:
            raise UsageError(
                f"slippage {self.slippage} and impact {self.impact} together must stay below the whole price"
            )
        largest = [tier[0] for tier in self.maintenance]
        if largest != sorted(set(largest)) or any(not 0 <= rate < 1 or off < 0 for _, rate, off in self.maintenance):
            raise UsageError(
                f"maintenance tiers {self.maintenance} must ascend by value, with rates in [0, 1) and deductions >= 0"
            )

    def limits(self) -> Limits:
        """Return the bounds for the decision function."""
        return Limits(
            self.cap,
            self.trim_ratio * self.cap,
            self.daily_loss,
            self.max_drawdown,
            self.max_forecast_age_ms,
            self.rebalance_band,
            DAY_GRACE_MS,
        )

    def rules(self) -> Rules:
        """Return the exchange's side for the loop."""
        return Rules(
            self.timeframe_ms,
            self.delay_ms,
            self.settle_ms,
            self.fee,
            self.maker_fee,
            self.slippage,
            self.impact,
            self.participation,
            self.lot,
            self.tick,
            self.min_notional,
            self.stop_distance,
            self.cost_round_trip,
            int(self.latency_bars),
            int(self.maker_bars),
        )
