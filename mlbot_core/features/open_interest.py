"""Open interest in coins, by margin and venue: growth without the price in it, mix, unwinding, who is adding."""

from __future__ import annotations

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features.registry import Array, feature, intermediate

_HONG_YOGO = "Hong, Yogo (2012), What does futures market interest tell us, JFE 105"
_BESSEMBINDER = "Bessembinder, Seguin (1993), Price volatility, trading volume, and market depth, JFQA 28"
_SPIRAL = "Brunnermeier, Pedersen (2009), Market liquidity and funding liquidity, RFS 22"
_MURPHY = "Murphy (1999), Technical Analysis of the Financial Markets, ch. 7"
_INVERSE = "Alexander, Choi, Park, Sohn (2020), BitMEX bitcoin derivatives, Journal of Futures Markets 40"


@intermediate(("oi_usd", "close"))
def log_oi_coin(oi_usd: Array, close: Array) -> Array:
    """Log of open interest in coins: USD over the price, so that a rise of the price alone is no growth."""
    return e.log_ratio(oi_usd, close)


@intermediate(("log_oi_coin",), lookback=1)
def oi_coin_step(log_oi_coin: Array) -> Array:
    """One-bar log change of open interest in coins."""
    return e.diff(log_oi_coin, 1)


@intermediate(("oi_pair_coin", "oi_pair_usd", "close"))
def log_oi_pair_coin(oi_pair_coin: Array, oi_pair_usd: Array, close: Array) -> Array:
    """Log of the pair's open interest in coins: the venue's own count, else the served USD over the price."""
    return e.log(np.where(np.isfinite(oi_pair_coin), oi_pair_coin, e.ratio(oi_pair_usd, close)))


@intermediate(("oi_stable_coin", "oi_coinm_usd", "close"))
def coin_margin_odds(oi_stable_coin: Array, oi_coinm_usd: Array, close: Array) -> Array:
    """Log of coin-margined over stablecoin-margined open interest, both in coins."""
    return e.log_ratio(oi_coinm_usd, oi_stable_coin * close)


@feature(
    "oi_coin_change_{n}",
    over=(4, 24, 72),
    inputs=("log_oi_coin",),
    lookback=lambda n: n,
    unit="log change",
    definition="log change over {n} bars of open interest in coins",
    source=_HONG_YOGO,
)
def oi_coin_change(log_oi_coin: Array, n: int) -> Array:
    """Growth of positions, the price's own move taken out."""
    return e.diff(log_oi_coin, n)


@feature(
    "oi_coin_rank_168",
    inputs=("log_oi_coin",),
    lookback=167,
    unit="0 to 1",
    definition="rank of open interest in coins among 168 bars",
    source=_HONG_YOGO,
    normalise="none",
)
def oi_coin_rank(log_oi_coin: Array) -> Array:
    """How crowded the market is."""
    return k.rank(log_oi_coin, 168)


@feature(
    "oi_unwound_168",
    inputs=("log_oi_coin",),
    lookback=167,
    unit="log ratio",
    definition="log of open interest in coins over its highest of 168 bars",
    source=_SPIRAL,
)
def oi_unwound(log_oi_coin: Array) -> Array:
    """How much has been unwound since the peak."""
    return log_oi_coin - k.highest(log_oi_coin, 168)


@feature(
    "oi_flush_24",
    inputs=("oi_coin_step",),
    lookback=167,
    unit="standard deviations",
    definition="lowest one-bar log change of open interest in coins of 24 bars, in 168-bar standard deviations",
    source=_SPIRAL,
)
def oi_flush(oi_coin_step: Array) -> Array:
    """Was there a wash-out lately."""
    return e.ratio(k.lowest(oi_coin_step, 24), k.std(oi_coin_step, 168))


@feature(
    "oi_range",
    inputs=("oi_high_usd", "oi_low_usd"),
    unit="log ratio",
    definition="log of highest over lowest open interest inside the bar",
    source=_BESSEMBINDER,
)
def oi_range(oi_high_usd: Array, oi_low_usd: Array) -> Array:
    """Opening and closing inside the bar."""
    return e.log_ratio(oi_high_usd, oi_low_usd)


@feature(
    "oi_price_beta_96",
    inputs=("oi_coin_step", "log_return"),
    lookback=95,
    unit="elasticity",
    definition="slope of the log change of open interest in coins on the return of the same bar over 96 bars",
    source=_HONG_YOGO,
    normalise="none",
)
def oi_price_beta(oi_coin_step: Array, log_return: Array) -> Array:
    """Do rises bring positions in (above zero) or close them."""
    return k.beta(oi_coin_step, log_return, 96)


@feature(
    "oi_opening_side_48",
    inputs=("oi_coin_step", "log_return"),
    lookback=47,
    unit="-1 to 1",
    definition="among 48 bars, share of up bars less share of down bars in which open interest in coins grew",
    source=_MURPHY,
    normalise="none",
)
def oi_opening_side(oi_coin_step: Array, log_return: Array) -> Array:
    """New longs against new shorts."""
    both = np.isfinite(oi_coin_step) & np.isfinite(log_return)
    return k.mean(np.where(both, np.sign(log_return) * (oi_coin_step > 0.0), np.nan), 48)


@feature(
    "oi_closing_side_48",
    inputs=("oi_coin_step", "log_return"),
    lookback=47,
    unit="-1 to 1",
    definition="among 48 bars, share of up bars less share of down bars in which open interest in coins fell",
    source=_MURPHY,
    normalise="none",
)
def oi_closing_side(oi_coin_step: Array, log_return: Array) -> Array:
    """Covered shorts against closed longs."""
    both = np.isfinite(oi_coin_step) & np.isfinite(log_return)
    return k.mean(np.where(both, np.sign(log_return) * (oi_coin_step < 0.0), np.nan), 48)


@feature(
    "oi_pair_share",
    inputs=("log_oi_pair_coin", "log_oi_coin"),
    unit="log ratio",
    definition="log of the pair's open interest over that of all exchanges, both in coins",
    source=_INVERSE,
)
def oi_pair_share(log_oi_pair_coin: Array, log_oi_coin: Array) -> Array:
    """Is the position building here or elsewhere."""
    return log_oi_pair_coin - log_oi_coin


@feature(
    "oi_pair_change_{n}",
    over=(4, 24),
    inputs=("log_oi_pair_coin",),
    lookback=lambda n: n,
    unit="log change",
    definition="log change over {n} bars of the pair's open interest in coins",
    source=_HONG_YOGO,
)
def oi_pair_change(log_oi_pair_coin: Array, n: int) -> Array:
    """Growth of positions in the traded contract."""
    return e.diff(log_oi_pair_coin, n)


@feature(
    "oi_coin_margin_odds",
    inputs=("coin_margin_odds",),
    unit="log ratio",
    definition="log of coin-margined over stablecoin-margined open interest, both in coins",
    source=_INVERSE,
)
def oi_coin_margin_odds(coin_margin_odds: Array) -> Array:
    """Collateral that falls with the price makes falls steeper."""
    return coin_margin_odds.copy()


@feature(
    "oi_coin_margin_shift_24",
    inputs=("coin_margin_odds",),
    lookback=24,
    unit="log ratio",
    definition="change over 24 bars of the log of coin-margined over stablecoin-margined open interest",
    source=_INVERSE,
)
def oi_coin_margin_shift(coin_margin_odds: Array) -> Array:
    """Which collateral is growing."""
    return e.diff(coin_margin_odds, 24)


@feature(
    "oi_to_spot_volume_24",
    inputs=("oi_usd", "spot_volume_usd"),
    lookback=23,
    unit="log ratio",
    definition="log of open interest over the spot turnover of 24 bars on Binance",
    source=_SPIRAL,
)
def oi_to_spot_volume(oi_usd: Array, spot_volume_usd: Array) -> Array:
    """Leverage against the cash market that has to absorb it."""
    return e.log_ratio(oi_usd, k.total(spot_volume_usd, 24))
