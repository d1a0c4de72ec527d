"""Returns: how far does the price move over the horizon, in units of what is usual."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.features import elementwise, kernels

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def trailing_sigma(close: Array, window: int) -> Array:
    """Return the standard deviation (ddof = 1) of the last ``window`` one-bar log returns, shape (bars,).

    NaN in the first ``window`` rows, and where the last return is missing or fewer than 80 % of them are present.
    """
    returns = elementwise.diff(elementwise.log(close), 1)
    sigma = np.asarray(kernels.std(returns, window), dtype=np.float64)
    sigma[:window] = np.nan  # the very first return has no close before it: a value would depend on the panel's start
    return sigma


@njit(cache=True)
def volatility_adjusted_return(close: Array, sigma: Array, horizon: int) -> tuple[Array, IntArray]:
    """Return the log return over the next ``horizon`` bars in horizon standard deviations.

    ``log(close[i + horizon] / close[i]) / (sigma[i] * sqrt(horizon))``: volatility scaling as in Moskowitz, Ooi and
    Pedersen (2012), Time series momentum, JFE 104.

    Parameters
    ----------
    close
        USD, shape (bars,); NaN where a bar is missing.
    sigma
        Standard deviation of one-bar log returns known at each bar, shape (bars,).
    horizon
        Bars.

    Returns
    -------
    value
        Standard deviations; NaN where either close is missing or still to come, or ``sigma`` is not positive.
    end
        Row of the bar whose close decides, -1 where the value is unknown.
    """
    value = np.full(close.size, np.nan)
    end = np.full(close.size, -1, dtype=np.int64)
    for i in range(close.size - horizon):
        j = i + horizon
        if np.isfinite(close[i]) and np.isfinite(close[j]) and np.isfinite(sigma[i]) and sigma[i] > 0.0:
            value[i] = math.log(close[j] / close[i]) / (sigma[i] * math.sqrt(horizon))
            end[i] = j
    return value, end
