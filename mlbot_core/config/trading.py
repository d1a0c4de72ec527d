"""``fees.yaml`` and ``risk.yaml``: what trading costs, what the exchange demands, and what is risked at most."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mlbot_core.config.base import Frozen


class FeeTierConfig(Frozen):
    """Fees of one tier.

    Parameters
    ----------
    taker_bp
        Basis points of the traded value.
    maker_bp
        Basis points of the traded value; a negative one is a rebate.
    """

    taker_bp: float = Field(ge=0, lt=100)
    maker_bp: float = Field(gt=-100, lt=100)


class MaintenanceTierConfig(Frozen):
    """Maintenance margin of positions up to a value: value x rate - deduction.

    Parameters
    ----------
    up_to
        Largest position value, USD.
    rate
        Fraction.
    deduction
        USD.
    """

    up_to: float = Field(gt=0)
    rate: float = Field(ge=0, lt=1)
    deduction: float = Field(ge=0)


class InstrumentConfig(Frozen):
    """Rules of one instrument of the exchange.

    Parameters
    ----------
    lot
        Step of the quantity, coins.
    tick
        Step of the price, USD.
    min_notional
        Smallest order value, USD.
    maintenance
        Tiers, ascending by value and, as margin demands grow steadily, without a jump between them.
    """

    lot: float = Field(gt=0)
    tick: float = Field(gt=0)
    min_notional: float = Field(ge=0)
    maintenance: tuple[MaintenanceTierConfig, ...] = ()

    @field_validator("maintenance")
    @classmethod
    def _continuous(cls, tiers: tuple[MaintenanceTierConfig, ...]) -> tuple[MaintenanceTierConfig, ...]:
        for lower, upper in pairwise(tiers):
            if not upper.up_to > lower.up_to:
                raise ValueError(f"tier up to {upper.up_to:g} follows one up to {lower.up_to:g}; they must ascend")
            at = lower.up_to
            below, above = (tier.rate * at - tier.deduction for tier in (lower, upper))
            if abs(above - below) > 1e-6 * at:
                raise ValueError(f"at {at:g} USD the margin jumps from {below:g} to {above:g} USD; check the deduction")
        return tiers


class FeesConfig(Frozen):
    """``fees.yaml``: costs in basis points of the traded value, and the instruments' rules.

    Parameters
    ----------
    tiers, tier
        Fees by tier, and the one that applies.
    taker_bp, maker_bp
        Of the tier, where they are not given.
    slippage_bp
        Half the spread and the latency, per side.
    impact_bp
        Slippage on top of an order as large as the volume of a two-hour bar; it grows with the root of the share.
    participation
        Largest share of a bar's volume that one order takes in that bar; None for no bound.
    maker_bars
        For how many bars a decided order rests as a limit order before the rest of it is taken; 0 takes at once.
    latency_bars
        Whole bars that an order is on its way, on top of its delay in seconds.
    instruments
        Rules by symbol.
    """

    tiers: dict[str, FeeTierConfig] = Field(default_factory=dict)
    tier: str = "vip0"
    taker_bp: float = Field(ge=0, lt=100)
    maker_bp: float = Field(gt=-100, lt=100)
    slippage_bp: float = Field(ge=0, lt=1_000)
    impact_bp: float = Field(default=0.0, ge=0, lt=5_000)
    participation: float | None = Field(default=None, gt=0, le=1)
    maker_bars: int = Field(default=0, ge=0, le=1_000)
    latency_bars: int = Field(default=0, ge=0, le=1_000)
    instruments: dict[str, InstrumentConfig] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _fees_of_the_tier(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("tiers"), dict):
            return values
        chosen = values["tiers"].get(values.get("tier", "vip0"))
        fees = chosen.model_dump() if isinstance(chosen, FeeTierConfig) else chosen
        filled = {}
        for name, field in FeeTierConfig.model_fields.items():
            # a wrong fee is reported where it stands, not once more here
            fee = fees.get(name) if isinstance(fees, dict) else None
            usable = isinstance(fee, int | float) and all(
                getattr(bound, "gt", fee - 1) < fee and getattr(bound, "ge", fee) <= fee < getattr(bound, "lt", fee + 1)
                for bound in field.metadata
            )
            filled[name] = fee if usable else 0.0
        return {**filled, **values}

    @field_validator("tier")
    @classmethod
    def _known_tier(cls, tier: str, info: ValidationInfo) -> str:
        tiers = info.data.get("tiers")
        if tiers and tier not in tiers:
            raise ValueError(f"there is no such tier; choose one of {', '.join(tiers)} or add it to tiers")
        return tier

    @model_validator(mode="after")
    def _one_fee(self) -> FeesConfig:
        of_tier = self.tiers.get(self.tier)
        if of_tier is not None and (of_tier.taker_bp, of_tier.maker_bp) != (self.taker_bp, self.maker_bp):
            raise ValueError(
                f"taker_bp {self.taker_bp:g} and maker_bp {self.maker_bp:g} differ from those of tier {self.tier}, "
                f"{of_tier.taker_bp:g} and {of_tier.maker_bp:g}; drop them, or change the tier"
            )
        return self


class GateConfig(Frozen):
    """What every order is checked against right before it is sent.

    Parameters
    ----------
    max_order_share
        Largest value of an order that adds to a position, fraction of NAV.
    max_orders_per_minute
        Of every kind.
    price_band
        A limit price, and the last price, may be this far from the mark price, fraction of it.
    max_spread_bp
        (ask - bid) / middle, basis points.
    max_clock_offset_ms
        Between this machine and the exchange.
    max_maintenance_rate
        The account's maintenance margin over its margin balance, fraction.
    first_day_max_position
        Instead of ``max_position`` for the first 24 hours of trading on mainnet, fraction of NAV.
    """

    max_order_share: float = Field(default=0.12, gt=0, le=2)
    max_orders_per_minute: int = Field(default=20, ge=1, le=600)
    price_band: float = Field(default=0.02, gt=0, le=0.2)
    max_spread_bp: float = Field(default=20.0, gt=0, le=1_000)
    max_clock_offset_ms: int = Field(default=1_000, ge=1, le=5_000)
    max_maintenance_rate: float = Field(default=0.5, gt=0, lt=1)
    first_day_max_position: float = Field(default=0.02, gt=0, le=1)


class RiskConfig(Frozen):
    """``risk.yaml``: what is risked at most.

    Parameters
    ----------
    max_position
        Cap: largest |position value at mark|, fraction of NAV.
    trim_above
        A position is cut back to the cap above this multiple of it.
    daily_loss_limit
        Loss since the start of the UTC day, fraction of NAV, at which everything is closed until the next.
    max_drawdown
        Loss from the peak, fraction of NAV, at which everything is closed until a person re-arms.
    stop_cost
        What a stop-out at the full cap costs at most, fraction of NAV, before slippage.
    rebalance_band
        An unchanged target is traded again when the position has strayed by more than this share of the cap.
    max_forecast_age
        An older forecast counts as stale data; bars of the decision timeframe.
    stale_after_s
        A mark price, wallet or position that is older counts as unknown, seconds.
    gate
        Bounds of single orders, checked right before they are sent.
    """

    max_position: float = Field(gt=0, le=1)
    trim_above: float = Field(default=1.05, ge=1, le=2)
    daily_loss_limit: float = Field(gt=0, lt=1)
    max_drawdown: float = Field(gt=0, lt=1)
    stop_cost: float = Field(default=0.01, gt=0, lt=1)
    rebalance_band: float = Field(default=0.2, gt=0, le=1)
    max_forecast_age: float = Field(default=1.5, gt=0, le=100)
    stale_after_s: float = Field(default=60.0, gt=0, le=3_600)
    gate: GateConfig = GateConfig()

    @model_validator(mode="after")
    def _stop_within_reach(self) -> RiskConfig:
        if self.stop_distance >= 1:
            raise ValueError(
                f"stop_cost {self.stop_cost:g} at a max_position of {self.max_position:g} would put a long's stop "
                "below zero; it must be smaller than max_position"
            )
        return self

    @property
    def stop_distance(self) -> float:
        """How far the stop lies from the entry, fraction of the entry price."""
        return self.stop_cost / self.max_position
