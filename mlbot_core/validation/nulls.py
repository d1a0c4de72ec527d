"""Markets without skill to find, and one with a known amount of it.

Three nulls, each made so that NO forecast from the past can be right on average:

- :func:`garch_bars`: a random walk whose volatility clusters. Returns are symmetric, so the log price is a martingale.
- :func:`bootstrap_bars`: recorded bars drawn again by the stationary bootstrap (Politis and Romano 1994): blocks of
  random length keep volatility clustering and the shape of real bars. Blocks also keep whatever real predictability
  there is inside them, which would be skill and no null; therefore each bar is mirrored (its logs negated) by a fair
  coin, the wild bootstrap's way (Wu 1986; Mammen 1993): every conditional mean becomes zero, and sizes stay.
- :func:`rotate_targets`: the labels of a market shifted along the features, the end wrapped round to the beginning, by
  more than any feature looks back. Their order, overlap and persistence stay (a plain permutation would destroy just
  what makes an unpurged split leak); every link to the features is cut.

The signal: :func:`planted_signal` is a column, and ``garch_bars`` with a ``tilt`` of ``k`` times the signal of the bar
BEFORE moves the drift by it; :func:`tilt_for_ic` gives the ``k`` for a wanted correlation with a horizon's return.

Everything is a pure function of its arguments and seed.

Sources
-------
T. Bollerslev, "Generalized autoregressive conditional heteroskedasticity", Journal of Econometrics 31, 1986; with
Student-t innovations: "A conditionally heteroskedastic time series model ...", Review of Economics and Statistics 69,
1987.
D. Politis and J. Romano, "The stationary bootstrap", Journal of the American Statistical Association 89, 1994.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from numba import njit

from mlbot_core.errors import UsageError
from mlbot_core.timeframe import Timeframe

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Shape = Literal["normal", "flag"]

FIRST_PRICE: Final = 40_000.0


@dataclass(frozen=True)
class GarchParams:
    """GARCH(1,1) with standardised Student-t innovations, on steps finer than a bar.

    ``r = sqrt(h) (e + drift)``, ``h' = omega + alpha h e^2 + beta h``, with ``omega`` set so that the variance of a bar
    is ``bar_volatility`` squared.

    Parameters
    ----------
    bar_volatility
        Standard deviation of one bar's log return.
    alpha, beta
        Reaction and persistence, per step; their sum is below 1.
    degrees
        Of freedom of the innovations, above 2 (variance exists); 5 gives bars fat tails like Bitcoin's.
    steps
        Steps a bar; high and low are the extremes over them.
    """

    bar_volatility: float = 0.008
    alpha: float = 0.04
    beta: float = 0.95
    degrees: float = 5.0
    steps: int = 6

    def __post_init__(self) -> None:
        if not (self.bar_volatility > 0 and self.alpha >= 0 and self.beta >= 0 and self.alpha + self.beta < 1):
            raise UsageError(
                f"GARCH with volatility {self.bar_volatility}, alpha {self.alpha}, beta {self.beta} has no stationary "
                "variance; use a positive volatility and alpha + beta < 1"
            )
        if self.degrees <= 2 or self.steps < 1:
            raise UsageError(f"{self.degrees} degrees of freedom and {self.steps} steps: use more than 2, at least 1")


@njit(cache=True)
def _garch_log_path(shocks: Any, drift: Any, omega: float, alpha: float, beta: float) -> Any:
    n, steps = shocks.shape
    out = np.empty((n, steps))
    h = omega / (1.0 - alpha - beta)
    level = 0.0
    for i in range(n):
        for s in range(steps):
            e = shocks[i, s]
            level += math.sqrt(h) * (e + drift[i])
            out[i, s] = level
            h = omega + alpha * h * e * e + beta * h
    return out


def garch_bars(
    n: int,
    params: GarchParams,
    timeframe: Timeframe,
    *,
    seed: int,
    start_ms: int = 0,
    tilt: npt.ArrayLike | None = None,
) -> pd.DataFrame:
    """Return bars of a random walk with volatility clustering.

    Parameters
    ----------
    n
        Bars.
    params
        See :class:`GarchParams`.
    timeframe, start_ms
        Of the bars; the first opens at ``start_ms`` (UTC ms).
    seed
        Same seed, same bars; the tilt changes no draw.
    tilt
        Drift of each bar's log return in its own standard deviations, shape (n,); None for none.

    Returns
    -------
    pd.DataFrame
        ``ts`` (int64), ``open, high, low, close`` (USD); a bar opens at the close before.
    """
    if n < 1 or start_ms % timeframe.ms:
        raise UsageError(f"{n} bars from {start_ms}: ask for at least one, from an open time on the {timeframe} grid")
    lean = np.zeros(n) if tilt is None else np.asarray(tilt, dtype=np.float64)
    if lean.shape != (n,) or not np.isfinite(lean).all():
        raise UsageError(f"a tilt of shape {lean.shape} for {n} bars; give one finite number a bar")
    shocks = np.random.default_rng(seed).standard_t(params.degrees, size=(n, params.steps))
    shocks *= math.sqrt((params.degrees - 2.0) / params.degrees)
    omega = params.bar_volatility**2 / params.steps * (1.0 - params.alpha - params.beta)
    path = _garch_log_path(shocks, lean / math.sqrt(params.steps), omega, params.alpha, params.beta)
    close = path[:, -1]
    open_ = np.r_[0.0, close[:-1]]
    high, low = np.maximum(open_, path.max(axis=1)), np.minimum(open_, path.min(axis=1))
    return _frame(open_, high, low, close, timeframe, start_ms)


def bootstrap_bars(
    bars: pd.DataFrame, index: IntArray, timeframe: Timeframe, *, seed: int, start_ms: int = 0
) -> pd.DataFrame:
    """Return recorded bars drawn again, each mirrored by a fair coin, and chained to one price path.

    Parameters
    ----------
    bars
        ``open, high, low, close`` (USD), without gaps, at least two rows.
    index
        Rows to draw, shape (n,), from 1 on (row 0 has no close before it): a stationary bootstrap's.
    timeframe, start_ms
        Of the bars that are made; the first opens at ``start_ms`` (UTC ms).
    seed
        Of the coins.

    Returns
    -------
    pd.DataFrame
        As :func:`garch_bars`; the jump from close to open is the drawn bar's own.

    Raises
    ------
    UsageError
        If a price is missing or not positive, or a row lies outside.
    """
    logs = {name: np.log(bars[name].to_numpy(dtype=np.float64)) for name in ("open", "high", "low", "close")}
    if len(bars) < 2 or not all(np.isfinite(values).all() for values in logs.values()):
        raise UsageError(f"{len(bars)} bars to draw from, which must be at least 2 and complete; leave gaps out first")
    if len(index) == 0 or index.min() < 1 or index.max() >= len(bars):
        raise UsageError(f"rows to draw must lie in 1..{len(bars) - 1}; row 0 has no close before it")
    before = np.r_[np.nan, logs["close"][:-1]][index]
    gap, up, down, move = (logs[name][index] - before for name in ("open", "high", "low", "close"))
    mirrored = np.random.default_rng(seed).random(len(index)) < 0.5
    sign = np.where(mirrored, -1.0, 1.0)
    close = np.cumsum(sign * move)
    base = np.r_[0.0, close[:-1]]
    high, low = np.where(mirrored, -down, up), np.where(mirrored, -up, down)
    return _frame(base + sign * gap, base + high, base + low, close, timeframe, start_ms)


def rotate_targets(targets: pd.DataFrame, rows: npt.NDArray[np.bool_], offset: int) -> pd.DataFrame:
    """Return targets whose labels are those of rows ``offset`` further on, wrapping round.

    Durations go with the labels (``tb_t1 - t0`` is that of the row the label came from), so that overlap and
    persistence stay as they were.

    Parameters
    ----------
    targets
        As :func:`mlbot_core.targets.build.build_targets` makes them.
    rows
        Which rows take part, shape (rows,); all of them must have labels. The others lose theirs.
    offset
        In rows; to cut every link keep it, and what is left to wrap round, above the features' lookback.

    Raises
    ------
    UsageError
        If a row that takes part has no label, or the offset is not between 1 and their number less 1.
    """
    chosen = np.flatnonzero(rows)
    if not 1 <= offset < len(chosen):
        raise UsageError(f"cannot rotate {len(chosen)} labels by {offset}; give an offset from 1 to one less")
    if (targets["tb_t1"].to_numpy()[chosen] < 0).any():
        raise UsageError("a row that takes part has no label; choose labelled rows only")
    taken = np.roll(chosen, -offset)
    out = targets.copy()
    out[["tb_label", "tb_ret", "tb_width", "var_ret"]] = np.nan
    out[["tb_t1", "var_t1"]] = np.int64(-1)
    start = targets["t0"].to_numpy(dtype=np.int64)
    for name in ("tb_label", "tb_ret", "tb_width", "var_ret"):
        values = np.full(len(out), np.nan)
        values[chosen] = targets[name].to_numpy(dtype=np.float64)[taken]
        out[name] = values
    for name in ("tb_t1", "var_t1"):
        moved = np.full(len(out), -1, dtype=np.int64)
        ends = targets[name].to_numpy(dtype=np.int64)[taken]
        moved[chosen] = np.where(ends >= 0, start[chosen] + ends - start[taken], -1)
        out[name] = moved
    return out


def planted_signal(n: int, half_life: float, *, seed: int, shape: Shape = "normal") -> FloatArray:
    """Return a stationary series with mean zero, unit variance and autocorrelation ``phi^lag``, shape (n,).

    Parameters
    ----------
    half_life
        Bars after which the autocorrelation is one half; 0 for white noise.
    shape
        ``normal``: a first-order autoregression; ``flag``: a Markov chain on -1 and 1.
    """
    from scipy.signal import lfilter

    phi = memory(half_life)
    rng = np.random.default_rng(seed)
    if shape == "flag":
        turns = np.where(rng.random(n) < (1.0 - phi) / 2.0, -1.0, 1.0)
        turns[0] = 1.0 if rng.random() < 0.5 else -1.0
        return np.asarray(np.cumprod(turns), dtype=np.float64)
    noise = rng.standard_normal(n)
    noise[1:] *= math.sqrt(1.0 - phi**2)
    return np.asarray(lfilter([1.0], [1.0, -phi], noise), dtype=np.float64)


def memory(half_life: float) -> float:
    """Return the autoregressive coefficient of a half-life in bars; 0 for 0."""
    if half_life < 0:
        raise UsageError(f"a half-life of {half_life} bars is negative; use 0 for white noise")
    return 0.0 if half_life == 0 else 0.5 ** (1.0 / half_life)


def tilt_for_ic(ic: float, horizon: int, half_life: float) -> float:
    """Return ``k`` such that a drift of ``k * signal`` standard deviations a bar correlates by ``ic``.

    With the return over the ``horizon`` bars after the signal. For a signal of unit variance and autocorrelation
    ``phi^lag``, ``cov = k S`` with ``S = sum(phi^j, j < horizon)``, and the variance of the horizon's return is
    ``horizon + k^2 D`` with ``D = sum over i, j < horizon of phi^|i - j|``; solved for ``k``.

    Raises
    ------
    UsageError
        If no drift reaches that correlation.
    """
    phi = memory(half_life)
    lags = np.arange(horizon)
    reach = float((phi**lags).sum())
    spread = float((phi ** np.abs(lags[:, None] - lags[None, :])).sum())
    left = reach**2 - ic**2 * spread
    if not 0 <= ic < 1 or left <= 0:
        raise UsageError(f"no drift with half-life {half_life} gives a correlation of {ic} over {horizon} bars")
    return ic * math.sqrt(horizon / left)


def _frame(
    open_: FloatArray, high: FloatArray, low: FloatArray, close: FloatArray, timeframe: Timeframe, start_ms: int
) -> pd.DataFrame:
    ts = start_ms + timeframe.ms * np.arange(len(close), dtype=np.int64)
    logs = {"open": open_, "high": np.fmax(high, np.fmax(open_, close)), "low": np.fmin(low, np.fmin(open_, close))}
    prices = {name: FIRST_PRICE * np.exp(values) for name, values in {**logs, "close": close}.items()}
    return pd.DataFrame({"ts": ts, **prices})
