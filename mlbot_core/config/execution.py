"""``execution.yaml``: where and how decisions become orders, and who watches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mlbot_core.config.base import Frozen, TimeframeField
from mlbot_core.config.models import META_MODEL, MODEL_NAMES
from mlbot_core.timeframe import Timeframe

VenueName = Literal["emulator", "paper", "demo", "testnet", "mainnet"]


class OrdersConfig(Frozen):
    """How an intent becomes orders.

    Parameters
    ----------
    style
        ``taker``: market orders at once; ``maker``: a post-only limit order first, what is left is taken.
    maker_timeout_s
        How long a maker order rests at most, seconds.
    max_reprices
        How often it follows the price until then.
    slippage_bp
        How far a market order may go from the price, basis points.
    max_attempts
        Orders for one intent, each after the one before is proven over.
    valid_share
        An intent, and the bar it rests on, expire after this share of the bar.
    participation
        Largest slice, share of the volume that trades in a slice's time; None for no bound.
    slice_every_s
        Time of a slice, seconds.
    """

    style: Literal["taker", "maker"] = "taker"
    maker_timeout_s: float = Field(default=60.0, gt=0, le=3_600)
    max_reprices: int = Field(default=3, ge=0, le=50)
    slippage_bp: float = Field(default=50.0, gt=0, le=1_000)
    max_attempts: int = Field(default=5, ge=1, le=20)
    valid_share: float = Field(default=0.1, gt=0, le=0.5)
    participation: float | None = Field(default=0.05, gt=0, le=1)
    slice_every_s: float = Field(default=10.0, ge=1, le=3_600)


class WatchConfig(Frozen):
    """Who watches, and how patiently.

    Parameters
    ----------
    every_s
        The risk watch looks at wallet, position and mark this often, seconds.
    deadman_after_s
        Without a heartbeat of the risk watch for so long the dead-man cancels, closes and halts, seconds.
    lease_s
        A process that did not renew its lease for so long sends nothing, seconds.
    """

    every_s: float = Field(default=2.0, gt=0, le=5)
    deadman_after_s: float = Field(default=20.0, gt=0, le=600)
    lease_s: float = Field(default=10.0, gt=0, le=120)

    @model_validator(mode="after")
    def _patient(self) -> WatchConfig:
        if self.deadman_after_s < 2 * self.every_s:
            raise ValueError(
                f"deadman_after_s {self.deadman_after_s:g} is shorter than two looks of the risk watch "
                f"({self.every_s:g} s each): the dead-man would halt a healthy trader"
            )
        if self.lease_s >= self.deadman_after_s:
            raise ValueError(
                f"lease_s {self.lease_s:g} must be shorter than deadman_after_s {self.deadman_after_s:g}: a trader "
                "that froze must have lost its lease before the dead-man acts for it"
            )
        return self


class ExecutionConfig(Frozen):
    """Where and how decisions become orders.

    Parameters
    ----------
    venue
        Where orders go.
    mainnet
        One of the conditions of trading real money.
    symbol
        Of ``intervals.yaml``.
    strategy
        Part of every order's id.
    timeframe
        The one decision clock.
    model
        Whose forecast decides.
    wait_for_others_s
        How long a decision waits for forecasts of other timeframes that close at the same moment, seconds.
    """

    venue: VenueName = "emulator"
    mainnet: bool = False
    symbol: str = Field(default="BTC", min_length=1)
    strategy: str = Field(default="mlbot", pattern=r"^[A-Za-z0-9_-]{1,32}$")
    timeframe: TimeframeField = Timeframe.parse("2h")
    model: str = META_MODEL
    wait_for_others_s: float = Field(default=20.0, ge=0, le=600)
    orders: OrdersConfig = OrdersConfig()
    watch: WatchConfig = WatchConfig()

    @model_validator(mode="after")
    def _known_model(self) -> ExecutionConfig:
        if self.model not in MODEL_NAMES:
            raise ValueError(f"model {self.model!r} is unknown; choose one of {', '.join(MODEL_NAMES)}")
        return self

    @property
    def contract(self) -> str:
        """The symbol as the exchange names it."""
        return f"{self.symbol}USDT"
