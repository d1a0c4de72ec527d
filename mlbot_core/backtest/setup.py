"""From the configuration to the parameters of a simulation: at the traded size, and at unit exposure."""

from __future__ import annotations

import math
from typing import Final

from mlbot_core.backtest.params import SimulationParams
from mlbot_core.config import FeesConfig, RiskConfig
from mlbot_core.decision.costs import costs_from_fees
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import HOUR_MS, Market

_BP: Final = 1e-4
# the bar that impact_bp of fees.yaml is about
IMPACT_BAR_MS: Final = 2 * HOUR_MS


def simulation_params(
    market: Market,
    fees: FeesConfig,
    risk: RiskConfig,
    settle_delay_ms: int,
    latency_ms: int,
    *,
    unit: bool,
    initial_nav: float = 10_000.0,
) -> SimulationParams:
    """Return the parameters of one simulation.

    Parameters
    ----------
    market
        What is traded, and its bars.
    fees, risk
        As configured; where ``fees`` names no instrument at all, the exchange's rules do not apply.
    settle_delay_ms, latency_ms
        From a bar's close to its decision, and from there to the fill.
    unit
        False: the traded size, every limit on. True: unit exposure, 100 % of NAV without trim, daily loss limit, halt
        and protective stop; costs and the exchange's rules stay.
    initial_nav
        USD.

    Returns
    -------
    SimulationParams
        The impact of an order is that of the same order in the same market whatever the bars are: volatility and so
        the impact at a whole bar's volume grow with the root of the bar's length (the square-root law).

    Raises
    ------
    UsageError
        If the exchange's rules are configured but not those of this symbol, or the delays do not fit into a bar.
    """
    length = market.timeframe.ms
    costs = costs_from_fees(fees)
    rules = fees.instruments.get(market.symbol)
    if rules is None and fees.instruments:
        raise UsageError(
            f"config/fees.yaml has no rules of {market.symbol}; add its lot, tick and min_notional to instruments "
            f"(there are {', '.join(fees.instruments)})"
        )
    cap = 1.0 if unit else risk.max_position
    return SimulationParams(
        timeframe_ms=length,
        delay_ms=settle_delay_ms + latency_ms,
        settle_ms=settle_delay_ms,
        fee=costs.taker,
        maker_fee=costs.maker,
        maker_bars=fees.maker_bars,
        latency_bars=fees.latency_bars,
        slippage=costs.slippage,
        impact=fees.impact_bp * _BP * math.sqrt(length / IMPACT_BAR_MS),
        participation=math.inf if fees.participation is None else fees.participation,
        cost_round_trip=costs.round_trip,
        initial_nav=initial_nav,
        cap=cap,
        trim_ratio=math.inf if unit else risk.trim_above,
        rebalance_band=risk.rebalance_band * cap,
        daily_loss=math.inf if unit else risk.daily_loss_limit,
        max_drawdown=math.inf if unit else risk.max_drawdown,
        stop_distance=math.inf if unit else risk.stop_distance,
        max_forecast_age_ms=round(risk.max_forecast_age * length),
        lot=rules.lot if rules else 0.0,
        tick=rules.tick if rules else 0.0,
        min_notional=rules.min_notional if rules else 0.0,
        maintenance=tuple((tier.up_to, tier.rate, tier.deduction) for tier in rules.maintenance) if rules else (),
    )
