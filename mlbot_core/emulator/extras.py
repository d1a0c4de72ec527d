"""Series beside the core of the synthetic market: made on demand from its bars and from random streams of their own.

A family is computed in whole blocks of :data:`BLOCK` bars counted from the market's start, one after the other, so
its values depend neither on how far nor in how many pieces somebody asked; and because its streams are derived from
the seed by the family's name, asking for it changes nothing elsewhere. Nobody asks, nothing is made.

Each family is a function of the market's 5-minute bars and of autoregressive states :math:`x_t = d\\,x_{t-1} +
\\sqrt{1 - d^2}\\,s\\,\\epsilon_t` with standard deviation :math:`s` and decay :math:`d`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numba
import numpy as np
import numpy.typing as npt

from mlbot_core.emulator import process

Floats = npt.NDArray[np.float64]
Rule = Literal["first", "max", "min", "last", "sum"]

BLOCK: Final = 8640  # 30 days
_ROW: Final = {name: row for row, name in enumerate(process.COLUMNS)}
_OHLC: Final[tuple[tuple[str, Rule], ...]] = (("open", "first"), ("high", "max"), ("low", "min"), ("close", "last"))
_HOUR: Final = 12.0  # steps


@numba.njit(cache=True)
def _smooth(before: float, decay: float, shocks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return x_t = decay * x_{t-1} + shocks_t, with x_{-1} = before."""
    out = np.empty_like(shocks)
    value = before
    for i in range(len(shocks)):
        value = decay * value + shocks[i]
        out[i] = value
    return out


@dataclass(frozen=True)
class State:
    """An autoregressive state of a family: standard deviation and half-life in hours."""

    std: float
    hours: float

    @property
    def decay(self) -> float:
        """Share that is left after one step."""
        return math.exp(-math.log(2) / (self.hours * _HOUR))


@dataclass(frozen=True)
class Block:
    """What a family's function sees: one block of the market and of its states.

    Parameters
    ----------
    base
        The market's bars by column name, each of shape ``(BLOCK,)``.
    states
        Autoregressive states by name, each of shape ``(BLOCK,)``.
    uniform
        Draws in [0, 1), two rows, for what lies between a bar's ends.
    before
        The family's values in the bar before the block, by column; empty in the first block.
    """

    base: Mapping[str, Floats]
    states: Mapping[str, Floats]
    uniform: Floats
    before: Mapping[str, float]

    def path(self, prefix: str, close: Floats, spread: Floats | float, decimals: int) -> dict[str, Floats]:
        """Return OHLC columns around ``close``: each opens at the last close, extremes lie beyond by ``spread``."""
        close = np.round(close, decimals)
        first = self.before.get(f"{prefix}_close", float(close[0]))
        opens = np.concatenate([[first], close[:-1]])
        up, down = -np.log1p(-self.uniform) * spread
        return {
            f"{prefix}_open": opens,
            f"{prefix}_high": np.maximum(np.maximum(opens, close), np.round(np.maximum(opens, close) + up, decimals)),
            f"{prefix}_low": np.minimum(np.minimum(opens, close), np.round(np.minimum(opens, close) - down, decimals)),
            f"{prefix}_close": close,
        }


@dataclass(frozen=True)
class Family:
    """Series that are made together.

    Parameters
    ----------
    states
        Autoregressive states by name.
    columns
        Names of the columns that ``make`` returns, in order.
    make
        Values of one block, each of shape ``(BLOCK,)``.
    """

    states: Mapping[str, State]
    columns: tuple[str, ...]
    make: Callable[[Block], dict[str, Floats]]


def _logit(percent: Floats) -> Floats:
    share = percent / 100
    return np.asarray(np.log(share / (1 - share)))


def _percent(odds: Floats) -> Floats:
    return np.asarray(100 / (1 + np.exp(-odds)))


def _spot(block: Block) -> dict[str, Floats]:
    """Spot trades a few basis points below the perpetual; its takers lean like the perpetual's, more weakly."""
    base = block.base
    basis = 3e-4 + block.states["basis"]
    close = base["price_close"] * (1 - basis)
    prices = block.path("spot", close, 0.0, 2)
    for name, pick in (("high", np.maximum), ("low", np.minimum)):
        seen = np.round(base[f"price_{name}"] * (1 - basis), 2)
        prices[f"spot_{name}"] = pick(prices[f"spot_{name}"], seen)
    busy = np.exp(block.states["busy"])
    turnover = 0.16 * base["turnover"] * busy
    taker = base["taker_buy"] + base["taker_sell"]
    lean = np.clip(0.5 * (base["taker_buy"] - base["taker_sell"]) / taker + block.states["lean"], -0.7, 0.7)
    volume = 0.2 * taker * busy
    return {
        **prices,
        "spot_turnover": np.round(turnover, 4),
        "spot_buy": np.round(0.5 * volume * (1 + lean), 4),
        "spot_sell": np.round(0.5 * volume * (1 - lean), 4),
    }


def _open_interest(block: Block) -> dict[str, Floats]:
    """Open interest of one pair (USD), of stablecoin margin (coins) and of coin margin (whole hundreds of USD)."""
    base = block.base
    total, price = base["oi_close"], base["price_close"]
    stable = 0.82 + block.states["margin"]
    pair = np.round(total * (0.17 + block.states["share"]), 0)
    coins = total * stable * 0.4 / price
    hundreds = np.round(total * (1 - stable) * 0.4 / 100, 0)
    inverse = block.path("coin_margin", hundreds, 2e-4 * hundreds, 0)
    return {
        **block.path("pair", pair, 2e-4 * pair, 0),
        **block.path("stable", coins, 2e-4 * coins, 2),
        **inverse,
    }


def _funding(block: Block) -> dict[str, Floats]:
    """The pair's and the volume-weighted running rate in percent: the OI-weighted one with a wander of their own."""
    close = block.base["funding_close"]
    return {
        **block.path("pair", close + block.states["pair"], 2e-4, 6),
        **block.path("volume", 1.1 * close + block.states["volume"], 2e-4, 6),
    }


def _top(block: Block) -> dict[str, Floats]:
    """Top traders' accounts follow all accounts; their positions follow them half, and lean the other way."""
    odds = _logit(block.base["long_percent"])
    return {
        "account_long": np.round(_percent(odds + 0.15 + block.states["account"]), 2),
        "position_long": np.round(_percent(0.5 - 0.3 * odds + block.states["position"]), 2),
    }


def _pair_flow(block: Block) -> dict[str, Floats]:
    """Liquidations and taker volume of one exchange's pair; the aggregate's values are shared out."""
    base = block.base
    share = 0.45 + 0.15 * np.tanh(block.states["share"])
    taker = process.EXCHANGE_SHARE * (base["taker_buy"] + base["taker_sell"])
    lean = (base["taker_buy"] - base["taker_sell"]) / (base["taker_buy"] + base["taker_sell"])
    lean = np.clip(lean + block.states["lean"], -0.7, 0.7)
    return {
        "pair_liq_long": np.round(base["liq_long"] * share, 5),
        "pair_liq_short": np.round(base["liq_short"] * share, 5),
        "pair_buy": np.round(0.5 * taker * (1 + lean), 4),
        "pair_sell": np.round(0.5 * taker * (1 - lean), 4),
    }


def _depth(block: Block) -> dict[str, Floats]:
    """Resting orders within 1 % of the middle: fewer when the last hours were restless, and on the side just hit."""
    base = block.base
    restless = np.abs(np.log(base["price_high"] / base["price_low"])) / (2 * process.SIGMA)
    calm = np.exp(-0.35 * np.minimum(3.0, np.log1p(restless)) + block.states["supply"])
    move = np.clip(np.log(base["price_close"] / base["price_open"]) / process.SIGMA, -4, 4)
    bids = 160e6 * calm * np.exp(block.states["bids"] + 0.05 * move)
    asks = 160e6 * calm * np.exp(block.states["asks"] - 0.05 * move)
    price = base["price_close"]
    return {
        "bids_usd": np.round(bids, 2),
        "bids_coin": np.round(bids / price * 1.005, 4),
        "asks_usd": np.round(asks, 2),
        "asks_coin": np.round(asks / price * 0.995, 4),
    }


def _premium(block: Block) -> dict[str, Floats]:
    """Coinbase minus Binance in USD and in percent, sampled at the bar's open."""
    price = block.base["price_open"]
    usd = np.round(price * block.states["premium"], 2)
    return {"premium": usd, "premium_rate": np.round(100 * usd / price, 4), "coinbase_price": np.round(price + usd, 2)}


def _margin(block: Block) -> dict[str, Floats]:
    """Margin longs and shorts in coins: large longs that wander for weeks, small shorts."""
    return {
        "margin_long": np.round(52_000 * np.exp(block.states["long"]), 4),
        "margin_short": np.round(450 * np.exp(block.states["short"]), 4),
    }


def _borrow(block: Block) -> dict[str, Floats]:
    """Interest per day in percent."""
    return {"interest_rate": np.round(0.003 * np.exp(block.states["rate"]), 6)}


def _whales(block: Block) -> dict[str, Floats]:
    """An index without bounds that leans with the taker flow of large trades."""
    buy, sell = block.base["taker_buy"], block.base["taker_sell"]
    return {"whale_index": np.round(60 * block.states["index"] + 40 * (buy - sell) / (buy + sell), 4)}


def _ohlc(prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}_{name}" for name, _ in _OHLC)


FAMILIES: Final[Mapping[str, Family]] = {
    "spot": Family(
        {"basis": State(2e-4, 6), "busy": State(0.25, 4), "lean": State(0.05, 0.5)},
        (*_ohlc("spot"), "spot_turnover", "spot_buy", "spot_sell"),
        _spot,
    ),
    "open_interest": Family(
        {"margin": State(0.02, 200), "share": State(0.01, 100)},
        (*_ohlc("pair"), *_ohlc("stable"), *_ohlc("coin_margin")),
        _open_interest,
    ),
    "funding": Family(
        {"pair": State(0.0015, 8), "volume": State(0.001, 8)}, (*_ohlc("pair"), *_ohlc("volume")), _funding
    ),
    "top": Family({"account": State(0.05, 12), "position": State(0.1, 48)}, ("account_long", "position_long"), _top),
    "pair_flow": Family(
        {"share": State(0.6, 6), "lean": State(0.02, 0.5)},
        ("pair_liq_long", "pair_liq_short", "pair_buy", "pair_sell"),
        _pair_flow,
    ),
    "depth": Family(
        {"supply": State(0.2, 48), "bids": State(0.15, 1), "asks": State(0.15, 1)},
        ("bids_usd", "bids_coin", "asks_usd", "asks_coin"),
        _depth,
    ),
    "premium": Family({"premium": State(4e-4, 4)}, ("premium", "premium_rate", "coinbase_price"), _premium),
    "margin": Family({"long": State(0.2, 400), "short": State(0.4, 100)}, ("margin_long", "margin_short"), _margin),
    "borrow": Family({"rate": State(0.4, 48)}, ("interest_rate",), _borrow),
    "whales": Family({"index": State(1.0, 12)}, ("whale_index",), _whales),
}


class Extras:
    """The families of one market, each grown block by block when it is asked for.

    Parameters
    ----------
    seed
        The market's seed.
    prefix
        The market's prefix of stream names; empty for the first coin.
    """

    def __init__(self, seed: int, prefix: str = "") -> None:
        self._seed = seed
        self._prefix = prefix
        self._streams: dict[str, np.random.Generator] = {}
        self._last: dict[str, float] = {}
        self._made: dict[str, Floats] = {}

    def columns(self, family: str, wanted: int, base: Callable[[int], Floats]) -> Floats:
        """Return a family's first ``wanted`` bars; the caller keeps threads apart.

        Parameters
        ----------
        base
            Returns the market's first so many bars.

        Returns
        -------
        ndarray
            Shape ``(len(columns), wanted)`` in the order of ``FAMILIES[family].columns``.
        """
        spec = FAMILIES[family]
        made = self._made.get(family, np.empty((len(spec.columns), 0)))
        blocks = [made]
        have = made.shape[1]
        while have < wanted:
            blocks.append(self._block(family, spec, base(have + BLOCK)[:, have:], blocks[-1]))
            have += BLOCK
        if len(blocks) > 1:
            self._made[family] = made = np.concatenate(blocks, axis=1)
        return made[:, :wanted]

    def _block(self, family: str, spec: Family, base: Floats, previous: Floats) -> Floats:
        states = {}
        for name, state in spec.states.items():
            key = f"{self._prefix}{family}/{name}"
            rng = self._stream(key)
            if key not in self._last:
                self._last[key] = state.std * float(rng.standard_normal())
            shocks = state.std * math.sqrt(1 - state.decay**2) * rng.standard_normal(BLOCK)
            states[name] = _smooth(self._last[key], state.decay, shocks)
            self._last[key] = float(states[name][-1])
        uniform = self._stream(f"{self._prefix}{family}/uniform").random((2, BLOCK))
        before = dict(zip(spec.columns, previous[:, -1].tolist(), strict=True)) if previous.shape[1] else {}
        named = {name: base[row] for name, row in _ROW.items()}
        values = spec.make(Block(named, states, uniform, before))
        return np.stack([values[name] for name in spec.columns])

    def _stream(self, key: str) -> np.random.Generator:
        if key not in self._streams:
            self._streams[key] = process.stream(self._seed, key)
        return self._streams[key]
