"""The generating process of the synthetic market: one compiled, sequential step per 5-minute bar.

The equations are written out in :class:`mlbot_core.emulator.market.SyntheticMarket`. Everything a step needs is the
state after the previous step and that step's draws, so the values of a bar never depend on how far, or in how many
pieces, the series was generated.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
import numpy.typing as npt

STEP_MS: Final = 300_000
STEPS_PER_WEEK: Final = 2016

# Rows of the array of bars, in order.
COLUMNS: Final = (
    "price_open",
    "price_high",
    "price_low",
    "price_close",
    "turnover",
    "oi_open",
    "oi_high",
    "oi_low",
    "oi_close",
    "funding_open",
    "funding_high",
    "funding_low",
    "funding_close",
    "long_percent",
    "liq_long",
    "liq_short",
    "taker_buy",
    "taker_sell",
    "high_first",
)

# One random stream each; "n" standard normal, "u" uniform in [0, 1).
STREAMS: Final = (
    ("return", "n"),
    ("jump_time", "u"),
    ("jump_size", "n"),
    ("high", "u"),
    ("low", "u"),
    ("path_order", "u"),
    ("slow_volatility", "n"),
    ("latent", "n"),
    ("imbalance", "n"),
    ("turnover", "n"),
    ("open_interest", "n"),
    ("open_interest_high", "u"),
    ("open_interest_low", "u"),
    ("funding", "n"),
    ("funding_high", "u"),
    ("funding_low", "u"),
    ("accounts", "n"),
    ("liquidated_longs", "n"),
    ("liquidated_shorts", "n"),
)

STATE_SIZE: Final = 13

# Volatility: 0.15 % per 5 minutes is 0.52 % an hour, about 49 % a year.
SIGMA: Final = 0.0015
GARCH_ALPHA: Final = 0.06
GARCH_BETA: Final = 0.925
GARCH_CAP: Final = 25.0
SLOW_STD: Final = 0.35
SLOW_DECAY: Final = math.exp(-math.log(2) / (6 * 288))
JUMP_PROBABILITY: Final = 1 / 1440
JUMP_SIGMAS: Final = 7.0
RETURN_CAP: Final = 0.15

# The planted signal: an Ornstein-Uhlenbeck state with a memory of LATENT_HOURS. PLANTED_DRIFT is the drift per bar in
# standard deviations of that bar when the state stands at one.
LATENT_HOURS: Final = 28.0
LATENT_DECAY: Final = math.exp(-1 / (12 * LATENT_HOURS))
PLANTED_DRIFT: Final = 0.036

IMBALANCE_SIGNAL: Final = 0.035
IMBALANCE_NOISE: Final = 0.060
IMBALANCE_RETURN: Final = 0.050
IMBALANCE_CAP: Final = 0.6

TURNOVER: Final = 42e6
TURNOVER_STD: Final = 0.35
TURNOVER_DECAY: Final = math.exp(-math.log(2) / 36)
# Share of the price endpoint's exchange in the taker volume of the three exchanges that are aggregated.
EXCHANGE_SHARE: Final = 0.53

OI_REVERSION: Final = math.log(2) / 2880
OI_NOISE: Final = 6e-4
TREND_DECAY: Final = 1 / 288
FUNDING_BASE: Final = 0.008
FUNDING_TREND: Final = 0.010
FUNDING_REVERSION: Final = 1 / 96
FUNDING_NOISE: Final = 0.0006
FUNDING_CAP: Final = 0.3
ACCOUNTS_BASE: Final = 0.35
ACCOUNTS_REVERSION: Final = math.log(2) / 864
ANCHOR_DECAY: Final = 1 / 12
LIQUIDATION_SCALE: Final = 9e-7
CASCADE_DECAY: Final = 0.7
LIQUIDATION_FLOOR: Final = 500.0


@dataclass(frozen=True)
class Coin:
    """What tells the market of one coin from that of another.

    Parameters
    ----------
    price
        Where it begins, USD.
    open_interest
        Its normal open interest, coins.
    prefix
        Begins the names of its random streams: coins of one seed are independent of each other.
    """

    price: float
    open_interest: float
    prefix: str


COINS: Final[Mapping[str, Coin]] = {
    "BTC": Coin(60_000.0, 500_000.0, ""),
    "ETH": Coin(3_000.0, 5_000_000.0, "ETH/"),
}


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the random generator of one quantity; it depends on nothing but ``seed`` and ``name``."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()),))))


def seasonality() -> npt.NDArray[np.float64]:
    """Return the multiplier of volatility for each 5 minutes of the week that begins with the epoch's Thursday.

    Shape ``(2016,)``, mean square one: busiest around 14:30 UTC, quieter at weekends.
    """
    step = np.arange(STEPS_PER_WEEK)
    hour = (step % 288) / 12
    day = step // 288  # 0 is a Thursday; 2 and 3 are the weekend
    busy = 0.8 + 0.5 * np.exp(-(((hour - 14.5) / 3.0) ** 2)) + 0.15 * np.exp(-(((hour - 1.0) / 2.0) ** 2))
    multiplier = busy * np.where((day == 2) | (day == 3), 0.75, 1.0)
    return np.asarray(multiplier / np.sqrt(np.mean(multiplier**2)), dtype=np.float64)


def initial_state(seed: int, coin: Coin) -> npt.NDArray[np.float64]:
    """Return the state before the first bar; the slow parts are drawn from their stationary laws."""
    rng = stream(seed, f"{coin.prefix}initial")
    slow, latent, accounts = rng.standard_normal(3)
    funding = FUNDING_BASE
    state = (
        coin.price,
        1.0,  # garch, relative to one
        SLOW_STD * slow,
        latent,
        0.0,  # log of turnover
        0.0,  # log of open interest in coins over the normal one
        0.0,  # trend
        coin.price,  # anchor of liquidations
        round(funding, 6),
        ACCOUNTS_BASE + 0.2 * accounts,
        0.0,  # cascade of longs
        0.0,  # cascade of shorts
        round(coin.open_interest * coin.price),
    )
    return np.array(state, dtype=np.float64)


@numba.njit(cache=True)
def _rounded(value: float, decimals: float) -> float:
    return math.floor(value * decimals + 0.5) / decimals


@numba.njit(cache=True)
def generate(
    first_step: int,
    state: npt.NDArray[np.float64],
    draws: npt.NDArray[np.float64],
    season: npt.NDArray[np.float64],
    drift: float,
    coins: float,
) -> npt.NDArray[np.float64]:
    """Generate bars and advance ``state`` in place.

    Parameters
    ----------
    first_step
        Number of the first bar: its open time in ms since the epoch over 300,000.
    state
        Shape ``(STATE_SIZE,)``; changed to the state after the last bar.
    draws
        Shape ``(len(STREAMS), n)``.
    season
        From :func:`seasonality`.
    drift
        ``PLANTED_DRIFT``, or 0.0 for a market without a signal.
    coins
        Normal open interest in coins.

    Returns
    -------
    ndarray
        Shape ``(len(COLUMNS), n)``: prices in USD, turnover, open interest, liquidations and taker volume in USD,
        funding in percent per 8 hours, long accounts in percent, all rounded as they are served.
    """
    n = draws.shape[1]
    out = np.empty((19, n), dtype=np.float64)
    price, garch, slow, latent, busy, oi, trend = state[0], state[1], state[2], state[3], state[4], state[5], state[6]
    anchor, funding, accounts, cascade_l, cascade_s, oi_usd = (
        state[7],
        state[8],
        state[9],
        state[10],
        state[11],
        state[12],
    )
    slow_shock = SLOW_STD * math.sqrt(1.0 - SLOW_DECAY**2)
    latent_shock = math.sqrt(1.0 - LATENT_DECAY**2)
    busy_shock = TURNOVER_STD * math.sqrt(1.0 - TURNOVER_DECAY**2)
    for i in range(n):
        # Latent states move first: the flow of this bar shows the drift of this bar and, by its memory, of the next.
        slow = SLOW_DECAY * slow + slow_shock * draws[6, i]
        latent = LATENT_DECAY * latent + latent_shock * draws[7, i]
        busy = TURNOVER_DECAY * busy + busy_shock * draws[9, i]
        level = SIGMA * season[(first_step + i) % 2016] * math.exp(slow - SLOW_STD**2)
        sigma = level * math.sqrt(garch)

        # Price: a martingale (in simple returns) unless there is drift.
        shock = sigma * draws[0, i]
        if draws[1, i] < JUMP_PROBABILITY:
            shock += JUMP_SIGMAS * sigma * draws[2, i]
        change = min(RETURN_CAP, max(-RETURN_CAP, shock)) + drift * sigma * latent
        new_price = price * (1.0 + change)
        # Extremes of a Brownian bridge from 0 to x with variance v: (x +- sqrt(x^2 - 2 v ln U)) / 2.
        x = math.log1p(change)
        up = 0.5 * (x + math.sqrt(x * x - 2.0 * sigma * sigma * math.log(1.0 - draws[3, i])))
        down = 0.5 * (x - math.sqrt(x * x - 2.0 * sigma * sigma * math.log(1.0 - draws[4, i])))
        open_ = _rounded(price, 10.0)
        close = _rounded(new_price, 10.0)
        high = max(max(open_, close), _rounded(price * math.exp(up), 10.0))
        low = min(min(open_, close), _rounded(price * math.exp(down), 10.0))
        z = min(8.0, max(-8.0, shock / sigma))

        # Liquidations: longs on falls below the anchor (a one-hour average), shorts on rises above it.
        fall = max(0.0, anchor / low - 1.0) / 0.0052
        rise = max(0.0, high / anchor - 1.0) / 0.0052
        new_l = LIQUIDATION_SCALE * min(400.0, fall**2.2) * math.exp(1.1 * draws[17, i])
        new_s = LIQUIDATION_SCALE * min(400.0, rise**2.2) * math.exp(1.1 * draws[18, i])
        cascade_l = CASCADE_DECAY * cascade_l + new_l
        cascade_s = CASCADE_DECAY * cascade_s + new_s
        share_l = new_l + 0.4 * cascade_l
        share_s = new_s + 0.4 * cascade_s
        liq_l = oi_usd * share_l
        liq_s = oi_usd * share_s

        # Open interest in coins: rises with activity and trend, falls by what is liquidated.
        oi += (
            -OI_REVERSION * oi
            + 1.0e-4 * trend
            + 1.5e-4 * (abs(z) - 0.8)
            + 5.0e-5 * latent
            - 4.0 * min(0.01, share_l + share_s)
            + OI_NOISE * draws[10, i]
        )
        new_oi = _rounded(coins * math.exp(oi) * new_price, 1.0)
        oi_high = _rounded(max(oi_usd, new_oi) * (1.0 - 3e-4 * math.log(1.0 - draws[11, i])), 1.0)
        oi_low = _rounded(min(oi_usd, new_oi) * (1.0 + 3e-4 * math.log(1.0 - draws[12, i])), 1.0)

        # Funding reverts to a level set by the trailing trend.
        target = FUNDING_BASE + FUNDING_TREND * trend
        new_funding = funding + FUNDING_REVERSION * (target - funding) + FUNDING_NOISE * draws[13, i]
        new_funding = _rounded(min(FUNDING_CAP, max(-FUNDING_CAP, new_funding)), 1e6)
        fund_high = _rounded(max(funding, new_funding) - 2e-4 * math.log(1.0 - draws[14, i]), 1e6)
        fund_low = _rounded(min(funding, new_funding) + 2e-4 * math.log(1.0 - draws[15, i]), 1e6)

        # Accounts buy dips and sell rallies, and lean a little with the latent state.
        accounts += ACCOUNTS_REVERSION * (ACCOUNTS_BASE - accounts) - 0.006 * z + 0.0006 * latent + 0.007 * draws[16, i]

        # Turnover and taker flow.
        turnover = TURNOVER * math.exp(busy - 0.5 * TURNOVER_STD**2) * (sigma / SIGMA) * (0.4 + 0.75 * abs(z))
        imbalance = IMBALANCE_SIGNAL * latent + IMBALANCE_NOISE * draws[8, i] + IMBALANCE_RETURN * z
        imbalance = min(IMBALANCE_CAP, max(-IMBALANCE_CAP, imbalance))
        taker = turnover / EXCHANGE_SHARE

        out[0, i], out[1, i], out[2, i], out[3, i] = open_, high, low, close
        out[4, i] = _rounded(turnover, 1e4)
        out[5, i], out[6, i], out[7, i], out[8, i] = oi_usd, oi_high, oi_low, new_oi
        out[9, i], out[10, i], out[11, i], out[12, i] = funding, fund_high, fund_low, new_funding
        out[13, i] = _rounded(100.0 / (1.0 + math.exp(-accounts)), 100.0)
        out[14, i] = _rounded(liq_l, 1e5) if liq_l >= LIQUIDATION_FLOOR else 0.0
        out[15, i] = _rounded(liq_s, 1e5) if liq_s >= LIQUIDATION_FLOOR else 0.0
        out[16, i] = _rounded(0.5 * taker * (1.0 + imbalance), 1e4)
        out[17, i] = _rounded(0.5 * taker * (1.0 - imbalance), 1e4)
        out[18, i] = 1.0 if draws[5, i] < 0.5 else 0.0

        # Volatility of the next bar: GARCH, and cascades stir it without a direction.
        surprise = min(16.0 * garch, (shock / level) ** 2)
        garch = (1.0 - GARCH_ALPHA - GARCH_BETA) + GARCH_ALPHA * surprise + GARCH_BETA * garch
        garch = min(GARCH_CAP, garch + 0.05 * min(4.0, (share_l + share_s) / 1e-3))
        trend = (1.0 - TREND_DECAY) * trend + math.sqrt(2.0 * TREND_DECAY) * z
        anchor += ANCHOR_DECAY * (new_price - anchor)
        price, oi_usd, funding = new_price, new_oi, new_funding

    state[:] = np.array(
        [price, garch, slow, latent, busy, oi, trend, anchor, funding, accounts, cascade_l, cascade_s, oi_usd]
    )
    return out
