"""The gate: every order is measured once more against the live account right before it is sent. Pure.

The first rule that an order breaks refuses it, in this order; what is unknown (None, NaN, infinite) breaks a rule.

==================  ======================================================================  ===============
rule                refused when                                                            reduce-only too
==================  ======================================================================  ===============
``level``           the risk level is not NORMAL                                            no
``stale_price``     the prices are of another symbol, unknown, or older than                no
                    ``stale_after_s`` (or from the future by more than the clocks may
                    differ)
``stale_account``   position or NAV are unknown, NAV is not positive, or they are as old    yes, but for NAV
``clock``           this machine's clock is more than ``max_clock_offset_ms`` off           no
``order_rate``      ``max_orders_per_minute`` orders were sent within the last minute       at twice as many
``order_size``      it is worth more than ``max_order_share`` of NAV                        no
``position_cap``    the position it leads to would be worth more than the cap of NAV        no
``price_band``      its limit price, or the last price, is further than ``price_band``      no
                    from the mark price
``spread``          (ask - bid) / middle is above ``max_spread_bp``, or bid is above ask    no
``maintenance``     the account's maintenance margin rate is above                          no
                    ``max_maintenance_rate``
==================  ======================================================================  ===============

A way out is never shut by a cap, a spread, a band, a price or a clock: the exchange bounds a reduce-only order by the
position. What is left for it is that its size rests on a fresh look at the position, and that a loop gone wild ends;
entries cannot use that allowance up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from mlbot_core.config.trading import RiskConfig
from mlbot_core.decision.state import LEVELS, NORMAL
from mlbot_core.execution.broker import Ticker
from mlbot_core.execution.types import ZERO, OrderRequest, Side

MINUTE_MS: Final = 60_000
RULES: Final = (
    "level",
    "stale_price",
    "stale_account",
    "clock",
    "order_rate",
    "order_size",
    "position_cap",
    "price_band",
    "spread",
    "maintenance",
)


@dataclass(frozen=True)
class Account:
    """The account as it was just seen.

    Parameters
    ----------
    nav
        Marked equity, USD.
    position
        Signed coins.
    maintenance_rate
        Maintenance margin over margin balance, fraction; None unknown.
    at_ms
        When the older of the two was read, UTC ms.
    """

    nav: Decimal
    position: Decimal
    maintenance_rate: Decimal | None
    at_ms: int


@dataclass(frozen=True)
class Refusal:
    """The rule that an order breaks (one of :data:`RULES`), and how, for people."""

    name: str
    reason: str


def check_order(
    request: OrderRequest,
    account: Account,
    quote: Ticker,
    *,
    risk_level: int,
    limits: RiskConfig,
    clock_offset_ms: int | None,
    recent_orders_ms: Sequence[int],
    now_ms: int,
    max_position: Decimal,
) -> Refusal | None:
    """Return the first rule that an order breaks, None if it may be sent; the table in this module's description.

    Parameters
    ----------
    request
        As it would be sent.
    account, quote
        Read for this order.
    risk_level
        Of :data:`mlbot_core.decision.state.LEVELS`, by number.
    limits
        ``risk.yaml``.
    clock_offset_ms
        How far this machine's clock is ahead of the exchange's; None unknown.
    recent_orders_ms
        When orders of every kind were sent, UTC ms, at least those of the last minute.
    now_ms
        UTC ms.
    max_position
        Cap, fraction of NAV; the smaller of it and that of ``limits`` holds.
    """
    if request.reduce_only:
        return (
            _stale_account(account, limits, now_ms, nav_matters=False)
            or _order_rate(recent_orders_ms, 2 * limits.gate.max_orders_per_minute, now_ms)
        )  # fmt: skip
    return (
        _level(risk_level)
        or _stale_price(request, quote, limits, now_ms)
        or _stale_account(account, limits, now_ms, nav_matters=True)
        or _clock(clock_offset_ms, limits)
        or _order_rate(recent_orders_ms, limits.gate.max_orders_per_minute, now_ms)
        or _order_size(request, account, quote, limits)
        or _position_cap(request, account, quote, limits, max_position)
        or _price_band(request, quote, limits)
        or _spread(quote, limits)
        or _maintenance(account, limits)
    )


def largest_addition(
    side: Side,
    account: Account,
    quote: Ticker,
    *,
    limits: RiskConfig,
    max_position: Decimal,
    price: Decimal | None = None,
) -> Decimal:
    """Return how many coins an order of this side may have by the size and the cap, not rounded to lots; 0 for none.

    Prices move between planning and sending: an order that was planned at the cap is cut to this, rounded down,
    rather than refused.

    Parameters
    ----------
    price
        Its limit price, USD; None for a market order.
    """
    valued = _value_price(price, quote)
    if valued is None or not _positive(account.nav) or not _finite(account.position):
        return ZERO
    cap = _cap(limits, max_position)
    if cap is None:
        return ZERO
    share = _decimal(limits.gate.max_order_share) * account.nav / valued
    held = account.position * side.sign
    room = cap * account.nav / valued - held
    return max(ZERO, min(share, room))


def _level(risk_level: int) -> Refusal | None:
    if risk_level == NORMAL:
        return None
    name = LEVELS[risk_level] if 0 <= risk_level < len(LEVELS) else str(risk_level)
    return Refusal("level", f"the risk level is {name}; only orders that reduce are sent, see `mlbot status`")


def _stale_price(request: OrderRequest, quote: Ticker, limits: RiskConfig, now_ms: int) -> Refusal | None:
    if quote.symbol != request.symbol:
        return Refusal("stale_price", f"the prices are of {quote.symbol}, the order is for {request.symbol}")
    for name in ("bid", "ask", "last", "mark"):
        if not _positive(getattr(quote, name)):
            return Refusal("stale_price", f"the {name} price of {quote.symbol} is {getattr(quote, name)}: unknown")
    return _age("stale_price", f"the prices of {quote.symbol}", quote.at_ms, limits, now_ms)


def _stale_account(account: Account, limits: RiskConfig, now_ms: int, *, nav_matters: bool) -> Refusal | None:
    if not _finite(account.position):
        return Refusal("stale_account", f"the position is {account.position}: unknown; read it again")
    if nav_matters and not _positive(account.nav):
        return Refusal("stale_account", f"NAV is {account.nav}; it must be known and positive")
    return _age("stale_account", "position and NAV", account.at_ms, limits, now_ms)


def _age(rule: str, what: str, at_ms: int, limits: RiskConfig, now_ms: int) -> Refusal | None:
    age = now_ms - at_ms
    if age > 1000 * limits.stale_after_s:
        return Refusal(
            rule, f"{what} are {age / 1000:.1f} s old, more than {limits.stale_after_s:g} s; read them again"
        )
    if -age > limits.gate.max_clock_offset_ms:
        return Refusal(rule, f"{what} are from {-age / 1000:.1f} s in the future; look at the clocks")
    return None


def _clock(offset_ms: int | None, limits: RiskConfig) -> Refusal | None:
    most = limits.gate.max_clock_offset_ms
    if offset_ms is None:
        return Refusal("clock", "how far this machine's clock is off is unknown; measure it first")
    # written so that a NaN is refused
    if abs(offset_ms) <= most:
        return None
    return Refusal(
        "clock", f"this machine's clock is {offset_ms:+} ms off the exchange's, more than {most}; set it (NTP)"
    )


def _order_rate(recent_ms: Sequence[int], most: int, now_ms: int) -> Refusal | None:
    # those from the future count: the clock was set back
    count = sum(at > now_ms - MINUTE_MS for at in recent_ms)
    if count < most:
        return None
    return Refusal("order_rate", f"{count} orders were sent within the last minute, {most} are allowed; wait")


def _order_size(request: OrderRequest, account: Account, quote: Ticker, limits: RiskConfig) -> Refusal | None:
    price = _value_price(request.price, quote)
    assert price is not None
    value, most = request.qty * price, _decimal(limits.gate.max_order_share) * account.nav
    if value <= most:
        return None
    return Refusal("order_size", f"the order is worth {value:.2f} USD, more than {most:.2f}; plan smaller orders")


def _position_cap(
    request: OrderRequest, account: Account, quote: Ticker, limits: RiskConfig, max_position: Decimal
) -> Refusal | None:
    cap = _cap(limits, max_position)
    if cap is None:
        return Refusal("position_cap", f"the cap is {max_position}: unknown; see max_position of config/risk.yaml")
    price = _value_price(request.price, quote)
    assert price is not None
    after = abs(account.position + request.qty * request.side.sign)
    value, most = after * price, cap * account.nav
    if value <= most:
        return None
    return Refusal(
        "position_cap",
        f"a position of {after} coins is worth {value:.2f} USD, more than the cap of {most:.2f}; cut the order",
    )


def _price_band(request: OrderRequest, quote: Ticker, limits: RiskConfig) -> Refusal | None:
    most = _decimal(limits.gate.price_band) * quote.mark
    for name, price in (("limit", request.price), ("last", quote.last)):
        if price is not None and not abs(price - quote.mark) <= most:
            return Refusal(
                "price_band",
                f"the {name} price {price} is further than {limits.gate.price_band:g} from the mark price {quote.mark}",
            )
    return None


def _spread(quote: Ticker, limits: RiskConfig) -> Refusal | None:
    spread_bp = quote.spread * 10_000
    if quote.bid <= quote.ask and spread_bp <= _decimal(limits.gate.max_spread_bp):
        return None
    return Refusal(
        "spread",
        f"bid {quote.bid} and ask {quote.ask} are {spread_bp:.1f} bp apart; allowed are {limits.gate.max_spread_bp:g}",
    )


def _maintenance(account: Account, limits: RiskConfig) -> Refusal | None:
    rate, most = account.maintenance_rate, _decimal(limits.gate.max_maintenance_rate)
    if rate is not None and _finite(rate) and rate <= most:
        return None
    shown = "unknown" if rate is None else f"{rate}"
    return Refusal("maintenance", f"the account's maintenance margin rate is {shown}, at most {most} is allowed")


def _value_price(price: Decimal | None, quote: Ticker) -> Decimal | None:
    """The price that values an order: the mark, or its own limit where that is higher."""
    if not _positive(quote.mark) or (price is not None and not _positive(price)):
        return None
    return quote.mark if price is None else max(quote.mark, price)


def _cap(limits: RiskConfig, max_position: Decimal) -> Decimal | None:
    return min(max_position, _decimal(limits.max_position)) if _positive(max_position) else None


def _decimal(value: float) -> Decimal:
    return Decimal(str(value))


def _finite(value: object) -> bool:
    return isinstance(value, Decimal) and value.is_finite()


def _positive(value: object) -> bool:
    return isinstance(value, Decimal) and value.is_finite() and value > 0
