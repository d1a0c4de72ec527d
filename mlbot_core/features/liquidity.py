"""Liquidity: what it costs to trade and who presses, from prices and turnover alone. Turnover is in USD.

Windows are in bars; 24 and 168 are a day and a week of hourly bars.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features.registry import Array, feature, intermediate

_AMIHUD = "Amihud (2002), Illiquidity and stock returns, JFM 5"
_KARPOFF = "Karpoff (1987), The relation between price changes and trading volume, JFQA 22"
_VPIN = "Easley, Lopez de Prado, O'Hara (2012), Flow toxicity and liquidity in a high-frequency world, RFS 25"


@njit(cache=True)
def _corwin_schultz(high: Array, low: Array) -> Array:
    """Return the high-low spread estimate of each pair of bars, negative ones as 0 (fraction of price)."""
    out = np.full(high.size, np.nan)
    k1 = 3.0 - 2.0 * math.sqrt(2.0)
    for i in range(1, high.size):
        if np.isfinite(high[i] + low[i] + high[i - 1] + low[i - 1]):
            one, before = math.log(high[i] / low[i]), math.log(high[i - 1] / low[i - 1])
            both = math.log(max(high[i], high[i - 1]) / min(low[i], low[i - 1]))
            beta = one * one + before * before
            alpha = (math.sqrt(2.0 * beta) - math.sqrt(beta)) / k1 - math.sqrt(both * both / k1)
            out[i] = max(0.0, 2.0 * (math.exp(alpha) - 1.0) / (1.0 + math.exp(alpha)))
    return out


@njit(cache=True)
def _normal_balance(z: Array) -> Array:
    """Return 2 Phi(z) - 1: the expected balance of buys and sells of a bar whose return is ``z`` deviations."""
    out = np.full(z.size, np.nan)
    for i in range(z.size):
        if np.isfinite(z[i]):
            out[i] = math.erf(z[i] / math.sqrt(2.0))
    return out


@intermediate(("log_return", "volume_usd"))
def signed_turnover(log_return: Array, volume_usd: Array) -> Array:
    """Turnover with the sign of the bar's return, USD."""
    return np.sign(log_return) * volume_usd


@intermediate(("log_return", "volume_usd"))
def signed_root_turnover(log_return: Array, volume_usd: Array) -> Array:
    """Square root of turnover with the sign of the bar's return."""
    return np.sign(log_return) * np.sqrt(e.positive_part(volume_usd))


@intermediate(("high", "low"), lookback=1)
def corwin_schultz_bar(high: Array, low: Array) -> Array:
    """Spread estimate of the last two bars, fraction of price."""
    return _corwin_schultz(high, low)


@intermediate(("high", "low"))
def log_middle(high: Array, low: Array) -> Array:
    """Mean of log high and log low."""
    return 0.5 * (e.log(high) + e.log(low))


@intermediate(("log_return", "volume_usd"), lookback=47)
def bulk_balance(log_return: Array, volume_usd: Array) -> Array:
    """Buys less sells by bulk classification, USD."""
    return _normal_balance(e.ratio(log_return, k.std(log_return, 48))) * volume_usd


@feature(
    "amihud_{n}",
    over=(6, 96, 168),
    inputs=("abs_return", "volume_usd"),
    lookback=lambda n: n - 1,
    unit="log of (log return per USD)",
    definition="log of the mean of |return| / turnover over {n} bars",
    source=_AMIHUD,
)
def amihud(abs_return: Array, volume_usd: Array, n: int) -> Array:
    """Illiquidity."""
    return e.log(k.mean(e.ratio(abs_return, volume_usd), n))


@feature(
    "range_per_volume_{n}",
    over=(24, 168),
    inputs=("log_range", "volume_usd"),
    lookback=lambda n: n - 1,
    unit="log of (log return per USD)",
    definition="log of the mean of log(high/low) / turnover over {n} bars",
    source=_AMIHUD,
)
def range_per_volume(log_range: Array, volume_usd: Array, n: int) -> Array:
    """Illiquidity inside bars."""
    return e.log(k.mean(e.ratio(log_range, volume_usd), n))


@feature(
    "kyle_{n}",
    over=(48, 168),
    inputs=("log_return", "signed_turnover"),
    lookback=lambda n: n - 1,
    unit="log return per 1e9 USD",
    definition="slope of returns on turnover signed by the return, {n} bars",
    source="Kyle (1985), Continuous auctions and insider trading, Econometrica 53",
)
def kyle(log_return: Array, signed_turnover: Array, n: int) -> Array:
    """Price impact, linear."""
    return 1e9 * k.beta(log_return, signed_turnover, n)


@feature(
    "hasbrouck_{n}",
    over=(48, 168),
    inputs=("log_return", "signed_root_turnover"),
    lookback=lambda n: n - 1,
    unit="log return per square root of 1e9 USD",
    definition="slope of returns on the signed square root of turnover, {n} bars",
    source="Hasbrouck (2009), Trading costs and returns for U.S. equities, JF 64",
)
def hasbrouck(log_return: Array, signed_root_turnover: Array, n: int) -> Array:
    """Price impact, square root."""
    return math.sqrt(1e9) * k.beta(log_return, signed_root_turnover, n)


@feature(
    "roll_spread_{n}",
    over=(48, 168),
    inputs=("log_return",),
    lookback=lambda n: n,
    unit="fraction of price",
    definition="2 sqrt(max(0, -cov(return, return before))), {n} bars",
    source="Roll (1984), A simple implicit measure of the effective bid-ask spread, JF 39",
)
def roll_spread(log_return: Array, n: int) -> Array:
    """Bounce between bid and ask."""
    before = e.lag(log_return, 1)
    deviation = k.std(before, n)
    covariance = k.beta(log_return, before, n) * deviation * deviation
    return 2.0 * np.sqrt(e.positive_part(-covariance))


@feature(
    "corwin_schultz_{n}",
    over=(24, 168),
    inputs=("corwin_schultz_bar",),
    lookback=lambda n: n - 1,
    unit="fraction of price",
    definition="mean of the two-bar high-low spread estimates (negative ones as 0) over {n} bars",
    source="Corwin, Schultz (2012), A simple way to estimate bid-ask spreads from high and low prices, JF 67",
)
def corwin_schultz(corwin_schultz_bar: Array, n: int) -> Array:
    """Spread from highs and lows."""
    return k.mean(corwin_schultz_bar, n)


@feature(
    "abdi_ranaldo_{n}",
    over=(48, 168),
    inputs=("log_close", "log_middle"),
    lookback=lambda n: n,
    unit="fraction of price",
    definition="2 sqrt(max(0, mean of (c' - m')(c' - m))), c' and m' log close and middle of the bar before, {n} bars",
    source="Abdi, Ranaldo (2017), A simple estimation of bid-ask spreads from daily close, high and low, RFS 30",
)
def abdi_ranaldo(log_close: Array, log_middle: Array, n: int) -> Array:
    """Spread from closes against middles."""
    close, middle = e.lag(log_close, 1), e.lag(log_middle, 1)
    return 2.0 * np.sqrt(e.positive_part(k.mean((close - middle) * (close - log_middle), n)))


@feature(
    "pastor_stambaugh_{n}",
    over=(168, 336),
    inputs=("log_return", "signed_turnover"),
    lookback=lambda n: n,
    unit="log return per 1e9 USD",
    definition="slope of returns on the signed turnover of the bar before, {n} bars",
    source="Pastor, Stambaugh (2003), Liquidity risk and expected stock returns, JPE 111",
)
def pastor_stambaugh(log_return: Array, signed_turnover: Array, n: int) -> Array:
    """Reversal after pressed trading."""
    return 1e9 * k.beta(log_return, e.lag(signed_turnover, 1), n)


@feature(
    "bulk_imbalance_{n}",
    over=(6, 24, 96),
    inputs=("bulk_balance", "volume_usd"),
    lookback=lambda n: n - 1,
    unit="-1 to 1",
    definition="buys less sells by bulk classification (2 Phi(return / 48-bar deviation) - 1) over turnover, {n} bars",
    source=_VPIN,
    normalise="none",
)
def bulk_imbalance(bulk_balance: Array, volume_usd: Array, n: int) -> Array:
    """Who presses."""
    return e.ratio(k.total(bulk_balance, n), k.total(volume_usd, n))


@feature(
    "vpin_{n}",
    over=(24, 96),
    inputs=("bulk_balance", "volume_usd"),
    lookback=lambda n: n - 1,
    unit="0 to 1",
    definition="sum of |buys - sells| by bulk classification over turnover, {n} bars",
    source=_VPIN,
)
def vpin(bulk_balance: Array, volume_usd: Array, n: int) -> Array:
    """Toxicity of flow, on time bars."""
    return e.ratio(k.total(np.abs(bulk_balance), n), k.total(volume_usd, n))


@feature(
    "volume_z_{n}",
    over=(24, 168),
    inputs=("log_volume",),
    lookback=lambda n: n - 1,
    unit="standard deviations",
    definition="log turnover less its mean over its deviation, {n} bars",
    source="Gervais, Kaniel, Mingelgrin (2001), The high-volume return premium, JF 56",
    normalise="none",
)
def volume_z(log_volume: Array, n: int) -> Array:
    """Unusual turnover."""
    return k.zscore(log_volume, n)


@feature(
    "volume_rank_{n}",
    over=(168, 720),
    inputs=("volume_usd",),
    lookback=lambda n: n - 1,
    unit="0 to 1",
    definition="rank of the turnover among {n} bars",
    source="Gervais, Kaniel, Mingelgrin (2001), The high-volume return premium, JF 56",
    normalise="none",
)
def volume_rank(volume_usd: Array, n: int) -> Array:
    """Place among past turnover."""
    return k.rank(volume_usd, n)


@feature(
    "turnover_{n}",
    over=(24, 168),
    inputs=("volume_usd",),
    lookback=lambda n: n - 1,
    unit="log USD",
    definition="log of the mean turnover of {n} bars",
    source=_KARPOFF,
)
def turnover(volume_usd: Array, n: int) -> Array:
    """Level of turnover."""
    return e.log(k.mean(volume_usd, n))


@feature(
    "turnover_term_{n}",
    over=(24, 168),
    inputs=("volume_usd",),
    lookback=lambda n: 4 * n - 1,
    unit="log ratio",
    definition="log of the mean turnover of {n} bars over that of four times as many",
    source=_KARPOFF,
)
def turnover_term(volume_usd: Array, n: int) -> Array:
    """Is turnover rising."""
    return e.log_ratio(k.mean(volume_usd, n), k.mean(volume_usd, 4 * n))


@feature(
    "turnover_trend_{n}",
    over=(48,),
    inputs=("log_volume",),
    lookback=lambda n: n - 1,
    unit="log USD per bar",
    definition="slope of the least-squares line through log turnover of {n} bars",
    source=_KARPOFF,
)
def turnover_trend(log_volume: Array, n: int) -> Array:
    """Trend of turnover."""
    return k.slope(log_volume, n)


@feature(
    "turnover_cv_{n}",
    over=(24, 168),
    inputs=("volume_usd",),
    lookback=lambda n: n - 1,
    unit="ratio",
    definition="standard deviation over mean of turnover, {n} bars",
    source="Chordia, Subrahmanyam, Anshuman (2001), Trading activity and expected stock returns, JFE 59",
)
def turnover_cv(volume_usd: Array, n: int) -> Array:
    """Unsteadiness of turnover."""
    return e.ratio(k.std(volume_usd, n), k.mean(volume_usd, n))


@feature(
    "turnover_peak_{n}",
    over=(24,),
    inputs=("volume_usd",),
    lookback=lambda n: n - 1,
    unit="fraction",
    definition="largest turnover of {n} bars as a share of their sum",
    source=_KARPOFF,
    normalise="none",
)
def turnover_peak(volume_usd: Array, n: int) -> Array:
    """How much one bar made of the turnover."""
    return e.ratio(k.highest(volume_usd, n), k.total(volume_usd, n))


@feature(
    "turnover_autocorr_{n}",
    over=(168,),
    inputs=("log_volume",),
    lookback=lambda n: n,
    unit="correlation",
    definition="correlation of log turnover with that of the bar before, {n} bars",
    source=_KARPOFF,
    normalise="none",
)
def turnover_autocorr(log_volume: Array, n: int) -> Array:
    """Does turnover persist."""
    return k.correlation(log_volume, e.lag(log_volume, 1), n)


@feature(
    "volume_ret_{n}",
    over=(24, 96),
    inputs=("log_return", "volume_usd"),
    lookback=lambda n: n - 1,
    unit="log return per bar",
    definition="turnover-weighted mean of one-bar returns less their plain mean, {n} bars",
    source="Llorente, Michaely, Saar, Wang (2002), Dynamic volume-return relation, RFS 15",
)
def volume_ret(log_return: Array, volume_usd: Array, n: int) -> Array:
    """Did the busy bars rise."""
    weighted = e.ratio(k.total(log_return * volume_usd, n), k.total(volume_usd, n))
    return weighted - k.mean(log_return, n)


@feature(
    "vwap_gap_{n}",
    over=(96, 168),
    inputs=("q_vwap", "close", "volume_usd"),
    lookback=lambda n: n - 1,
    unit="log ratio",
    definition="log of close over the turnover-weighted typical price of {n} bars",
    source="Berkowitz, Logue, Noser (1988), The total cost of transactions on the NYSE, JF 43",
)
def vwap_gap(typical: Array, close: Array, volume_usd: Array, n: int) -> Array:
    """Distance from what the last buyers and sellers paid."""
    return e.log_ratio(close, e.ratio(k.total(typical * volume_usd, n), k.total(volume_usd, n)))
