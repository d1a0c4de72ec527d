"""Volume and liquidity: turnover against its own past, its link with returns, the price of moving the market."""

from __future__ import annotations

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features.registry import Array, feature, intermediate


@intermediate(("volume_usd",))
def log_volume(volume_usd: Array) -> Array:
    """Log of turnover, USD."""
    return e.log(volume_usd)


@feature(
    "volume_log",
    inputs=("log_volume",),
    unit="log USD",
    definition="log of the bar's turnover",
    source="Karpoff (1987), The relation between price changes and trading volume, JFQA 22",
)
def volume_log(log_volume: Array) -> Array:
    """Turnover."""
    return log_volume.copy()


@feature(
    "volume_term",
    inputs=("volume_usd",),
    lookback=95,
    unit="log ratio",
    definition="log of the mean turnover of 12 bars over that of 96 bars",
    source="Gervais, Kaniel, Mingelgrin (2001), The high-volume return premium, JF 56",
)
def volume_term(volume_usd: Array) -> Array:
    """Is turnover rising."""
    return e.log_ratio(k.mean(volume_usd, 12), k.mean(volume_usd, 96))


@feature(
    "volume_season_168",
    inputs=("log_volume",),
    lookback=168,
    unit="log ratio",
    definition="log turnover less that of 168 bars before",
    source="Eross, McGroarty, Urquhart, Wolfe (2019), The intraday dynamics of bitcoin, RIBAF 49",
)
def volume_season(log_volume: Array) -> Array:
    """Turnover against the same place in the cycle (a week at 1h)."""
    return e.diff(log_volume, 168)


@feature(
    "amihud_24",
    inputs=("abs_return", "volume_usd"),
    lookback=23,
    unit="log of (log return per USD)",
    definition="log of the mean of |return| / turnover over 24 bars",
    source="Amihud (2002), Illiquidity and stock returns, JFM 5",
)
def amihud(abs_return: Array, volume_usd: Array) -> Array:
    """Illiquidity."""
    return e.log(k.mean(e.ratio(abs_return, volume_usd), 24))


@feature(
    "volume_move_corr_48",
    inputs=("abs_return", "log_volume"),
    lookback=47,
    unit="correlation",
    definition="correlation of |return| with log turnover over 48 bars",
    source="Karpoff (1987), The relation between price changes and trading volume, JFQA 22",
    normalise="none",
)
def volume_move_corr(abs_return: Array, log_volume: Array) -> Array:
    """Do moves come with turnover."""
    return k.correlation(abs_return, log_volume, 48)


@feature(
    "volume_return_corr_48",
    inputs=("log_return", "log_volume"),
    lookback=47,
    unit="correlation",
    definition="correlation of the signed return with log turnover over 48 bars",
    source="Llorente, Michaely, Saar, Wang (2002), Dynamic volume-return relation, RFS 15",
    normalise="none",
)
def volume_return_corr(log_return: Array, log_volume: Array) -> Array:
    """Does turnover come with rises or falls."""
    return k.correlation(log_return, log_volume, 48)


@feature(
    "signed_volume_24",
    inputs=("log_return", "volume_usd"),
    lookback=23,
    unit="-1 to 1",
    definition="turnover signed by the bar's return over total turnover, 24 bars",
    source="Granville (1963), New Key to Stock Market Profits (on-balance volume)",
    normalise="none",
)
def signed_volume(log_return: Array, volume_usd: Array) -> Array:
    """On-balance volume as a share."""
    return e.ratio(k.total(np.sign(log_return) * volume_usd, 24), k.total(volume_usd, 24))


@feature(
    "vwap_gap_24",
    inputs=("high", "low", "close", "volume_usd"),
    lookback=23,
    unit="log ratio",
    definition="log of close over the turnover-weighted typical price of 24 bars",
    source="Berkowitz, Logue, Noser (1988), The total cost of transactions on the NYSE, JF 43",
)
def vwap_gap(high: Array, low: Array, close: Array, volume_usd: Array) -> Array:
    """Distance from what the last buyers and sellers paid."""
    typical = (high + low + close) / 3.0
    return e.log_ratio(close, e.ratio(k.total(typical * volume_usd, 24), k.total(volume_usd, 24)))
