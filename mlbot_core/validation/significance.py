"""How sure one may be of a Sharpe ratio, a hit rate or a rank correlation.

Return series are DAILY, 24 hours a day and 365 days a year, flat days included as zeros; Sharpe ratios are annual,
with a risk-free rate of zero, unless a name says ``per_period``. A statistic that the data do not define (a strategy
that never traded, a single day) is NaN, which no criterion accepts; data that cannot be (a NaN return) is an error.

Sources
-------
A. Lo, "The Statistics of Sharpe Ratios", Financial Analysts Journal 58(4), 2002.
E. Mertens, "Comments on variance of the IID estimator in Lo", working paper, University of Basel, 2002.
D. Bailey and M. Lopez de Prado, "The Sharpe Ratio Efficient Frontier", Journal of Risk 15(2), 2012.
D. Bailey and M. Lopez de Prado, "The Deflated Sharpe Ratio", Journal of Portfolio Management 40(5), 2014.
E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
D. Politis and J. Romano, "A circular block-resampling procedure for stationary data", 1992.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.errors import MlbotError

DAYS_PER_YEAR: Final = 365.0
_EULER_MASCHERONI: Final = 0.5772156649015329

# A standard deviation this small beside the mean is rounding noise of a constant series, not risk.
_CONSTANT: Final = 1e-12


class StatisticsError(MlbotError):
    """A statistic was asked of numbers that cannot be; the message names them."""


@dataclass(frozen=True)
class Moments:
    """Sample moments of a return series, one period at a time.

    Parameters
    ----------
    n
        Number of returns.
    mean
        Fraction per period.
    std
        Fraction per period, with n - 1 in the denominator; 0 for a constant series.
    skew, kurtosis
        Third and fourth standardised moments (kurtosis 3 for a normal); NaN for a constant series.
    """

    n: int
    mean: float
    std: float
    skew: float
    kurtosis: float

    @property
    def sharpe_per_period(self) -> float:
        """Mean over standard deviation, not annualised; NaN where there is no risk."""
        return self.mean / self.std if self.std > 0 else math.nan


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Parameters
    ----------
    value, low, high
        The estimate and the interval's ends, in the estimate's own unit; NaN where undefined.
    standard_error
        NaN where the method has none (Wilson, bootstrap).
    level
        Confidence, for instance 0.95.
    n
        Observations behind it.
    """

    value: float
    low: float
    high: float
    standard_error: float
    level: float
    n: int


def moments(returns: npt.ArrayLike) -> Moments:
    """Return the moments of a series of simple returns (fractions).

    Raises
    ------
    StatisticsError
        If a return is NaN or infinite: a day without trading is 0, a day without data must be settled by the caller.
    """
    values = np.asarray(returns, dtype=np.float64)
    if values.ndim != 1:
        raise StatisticsError(f"returns have shape {values.shape}; pass one series, one number a day")
    bad = ~np.isfinite(values)
    if bad.any():
        at = int(np.argmax(bad))
        raise StatisticsError(f"return {at} of {len(values)} is {values[at]}; a day without trading is 0, never NaN")
    n = len(values)
    if n < 2:
        return Moments(n, float(values.mean()) if n else math.nan, 0.0, math.nan, math.nan)
    mean = float(values.mean())
    centred = values - mean
    variance = float(np.mean(centred**2))
    if math.sqrt(variance) <= _CONSTANT * float(np.max(np.abs(values))):
        return Moments(n, mean, 0.0, math.nan, math.nan)
    scaled = centred / math.sqrt(variance)
    return Moments(n, mean, math.sqrt(variance * n / (n - 1)), float(np.mean(scaled**3)), float(np.mean(scaled**4)))


def sharpe_ratio(returns: npt.ArrayLike, periods_per_year: float = DAYS_PER_YEAR) -> float:
    """Return the annual Sharpe ratio of a series of simple returns; NaN for fewer than two or constant returns."""
    return moments(returns).sharpe_per_period * math.sqrt(periods_per_year)


def sharpe_standard_error_per_period(sharpe: float, n: int, skew: float = 0.0, kurtosis: float = 3.0) -> float:
    """Return the standard error of a per-period Sharpe ratio of serially independent returns.

    ``sqrt((1 - skew * SR + (kurtosis - 1) / 4 * SR^2) / (n - 1))`` (Mertens 2002; Bailey and Lopez de Prado 2012,
    eq. 5); with skew 0 and kurtosis 3 it is Lo's (2002). Positive autocorrelation makes the true error larger.

    Parameters
    ----------
    sharpe
        Per period, not annual.
    n
        Number of periods.
    skew, kurtosis
        Of the returns; kurtosis is 3 for a normal.

    Raises
    ------
    StatisticsError
        If the moments cannot belong together (kurtosis < 1 + skew^2).
    """
    if n < 2 or math.isnan(sharpe) or math.isnan(skew) or math.isnan(kurtosis):
        return math.nan
    if kurtosis < (1.0 + skew**2) * (1.0 - 1e-9):
        raise StatisticsError(
            f"kurtosis {kurtosis} with skew {skew}: no distribution has kurtosis < 1 + skew^2; "
            "pass the raw kurtosis (3 for a normal), not the excess"
        )
    return math.sqrt(max(0.0, 1.0 - skew * sharpe + (kurtosis - 1.0) / 4.0 * sharpe**2) / (n - 1))


def sharpe_interval(returns: npt.ArrayLike, level: float = 0.95, periods_per_year: float = DAYS_PER_YEAR) -> Interval:
    """Return the annual Sharpe ratio with its two-sided confidence interval, skew and kurtosis included."""
    m = moments(returns)
    annual = math.sqrt(periods_per_year)
    sharpe = m.sharpe_per_period
    error = sharpe_standard_error_per_period(sharpe, m.n, m.skew, m.kurtosis)
    reach = _two_sided(level) * error
    return Interval(sharpe * annual, (sharpe - reach) * annual, (sharpe + reach) * annual, error * annual, level, m.n)


def psr_from_moments(sharpe: float, benchmark: float, n: int, skew: float = 0.0, kurtosis: float = 3.0) -> float:
    """Return the probability that the true Sharpe ratio exceeds a benchmark (both per period).

    Bailey and Lopez de Prado (2012), eq. 11: ``Phi((SR - SR*) / standard error)``.
    """
    error = sharpe_standard_error_per_period(sharpe, n, skew, kurtosis)
    if math.isnan(error) or math.isnan(benchmark):
        return math.nan
    if error == 0.0:
        return float(sharpe > benchmark)
    return _normal_cdf((sharpe - benchmark) / error)


def probabilistic_sharpe_ratio(
    returns: npt.ArrayLike, benchmark: float = 0.0, periods_per_year: float = DAYS_PER_YEAR
) -> float:
    """Return the probability that the true annual Sharpe ratio exceeds the annual ``benchmark``."""
    m = moments(returns)
    per_period = benchmark / math.sqrt(periods_per_year)
    return psr_from_moments(m.sharpe_per_period, per_period, m.n, m.skew, m.kurtosis)


def expected_maximum_sharpe(n_trials: float, trial_variance: float) -> float:
    """Return the Sharpe ratio to expect of the best of ``n_trials`` skill-less trials.

    Bailey and Lopez de Prado (2014), eq. 1 with mean zero:
    ``sqrt(V) * ((1 - g) Z(1 - 1/N) + g Z(1 - 1/(N e)))``, g the Euler-Mascheroni constant, Z the normal quantile.

    Parameters
    ----------
    n_trials
        Number of independent trials, at least 1; a single trial was not selected, so its benchmark is 0.
    trial_variance
        Variance of the trials' Sharpe ratios; the answer has the unit of its square root (annual in, annual out).

    Raises
    ------
    StatisticsError
        If ``n_trials`` is below 1 or the variance is negative or not finite.
    """
    if not (math.isfinite(n_trials) and n_trials >= 1):
        raise StatisticsError(f"{n_trials} trials; at least the one that is being judged must be counted")
    if not (math.isfinite(trial_variance) and trial_variance >= 0):
        raise StatisticsError(f"variance {trial_variance} of the trials' Sharpe ratios; it must be finite and >= 0")
    if n_trials == 1:
        return 0.0
    best = (1.0 - _EULER_MASCHERONI) * _normal_quantile(1.0 - 1.0 / n_trials)
    best += _EULER_MASCHERONI * _normal_quantile(1.0 - 1.0 / (n_trials * math.e))
    return math.sqrt(trial_variance) * max(0.0, best)


def deflated_sharpe_ratio(
    returns: npt.ArrayLike, n_trials: float, trial_variance: float, periods_per_year: float = DAYS_PER_YEAR
) -> float:
    """Return the probability that the annual Sharpe ratio beats that of the best of N skill-less trials.

    Parameters
    ----------
    returns
        Daily simple returns of the selected trial.
    n_trials
        Number of all trials that were ever evaluated, the selected one included.
    trial_variance
        Variance over the trials of their ANNUAL Sharpe ratios.
    """
    benchmark = expected_maximum_sharpe(n_trials, trial_variance)
    return probabilistic_sharpe_ratio(returns, benchmark, periods_per_year)


def minimum_track_record_length(
    sharpe: float, benchmark: float, skew: float = 0.0, kurtosis: float = 3.0, level: float = 0.95
) -> float:
    """Return how many periods are needed to be ``level`` sure (one-sided) that the Sharpe exceeds the benchmark.

    Bailey and Lopez de Prado (2012), eq. 12. Both Sharpe ratios are PER PERIOD; infinite when the Sharpe ratio does
    not exceed the benchmark, NaN when it is NaN.
    """
    _check_level(level)
    if math.isnan(sharpe) or math.isnan(benchmark) or math.isnan(skew) or math.isnan(kurtosis):
        return math.nan
    if sharpe <= benchmark:
        return math.inf
    # With n = 2 the standard error is the numerator alone.
    numerator = sharpe_standard_error_per_period(sharpe, 2, skew, kurtosis) ** 2
    return 1.0 + numerator * (_normal_quantile(level) / (sharpe - benchmark)) ** 2


def wilson_interval(hits: int, n: int, level: float = 0.95) -> Interval:
    """Return a hit rate (fraction) with Wilson's score interval; all NaN for n = 0.

    Raises
    ------
    StatisticsError
        If hits are not between 0 and n.
    """
    if not 0 <= hits <= n:
        raise StatisticsError(f"{hits} hits of {n}; hits must lie between 0 and the number of tries")
    z = _two_sided(level)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, math.nan, level, 0)
    rate = hits / n
    shrink = 1.0 + z**2 / n
    centre = (rate + z**2 / (2 * n)) / shrink
    reach = z / shrink * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    # At the edges the ends are exactly 0 and 1; rounding must not push them inside or beyond.
    low = 0.0 if hits == 0 else centre - reach
    high = 1.0 if hits == n else centre + reach
    return Interval(rate, low, high, math.nan, level, n)


def information_coefficient(
    forecast: npt.ArrayLike,
    outcome: npt.ArrayLike,
    *,
    block_length: int,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return Spearman's rank correlation of forecasts and outcomes with a circular block bootstrap interval.

    Blocks keep the dependence that overlapping labels and slow forecasts bring; pairs with a NaN are left out before.

    Parameters
    ----------
    forecast, outcome
        Same length, in time order.
    block_length
        Pairs a block; at least twice the label's horizon in bars.
    n_resamples
        Resamples of the percentile interval.
    seed
        Same seed, same interval.
    level
        Two-sided confidence.

    Returns
    -------
    Interval
        NaN value where either side is constant; NaN ends where there are fewer than two blocks of pairs.

    Raises
    ------
    StatisticsError
        If lengths differ, or ``block_length`` or ``n_resamples`` is below 1.
    """
    _check_level(level)
    x, y = np.asarray(forecast, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise StatisticsError(f"{x.shape} forecasts against {y.shape} outcomes; pass two series of the same length")
    if block_length < 1 or n_resamples < 1:
        raise StatisticsError(f"block_length {block_length} and n_resamples {n_resamples} must be at least 1")
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    n = len(x)
    if n < 2:
        return Interval(math.nan, math.nan, math.nan, math.nan, level, n)
    # Dense codes once: a resample is then ranked by counting, without sorting.
    xu, xc = np.unique(x, return_inverse=True)
    yu, yc = np.unique(y, return_inverse=True)
    xc, yc = xc.astype(np.int64), yc.astype(np.int64)
    value = float(_spearman(xc, yc, np.arange(n, dtype=np.int64), len(xu), len(yu)))
    if math.isnan(value) or n < 2 * block_length:
        return Interval(value, math.nan, math.nan, math.nan, level, n)
    generator = np.random.default_rng(seed)
    blocks = -(-n // block_length)
    offsets = np.arange(block_length, dtype=np.int64)
    resampled = np.empty(n_resamples, dtype=np.float64)
    for i in range(n_resamples):
        starts = generator.integers(0, n, size=blocks)
        index = ((starts[:, None] + offsets).ravel() % n)[:n]
        resampled[i] = _spearman(xc, yc, index, len(xu), len(yu))
    resampled = resampled[~np.isnan(resampled)]
    if len(resampled) == 0:
        return Interval(value, math.nan, math.nan, math.nan, level, n)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), math.nan, level, n)


@njit(cache=True)
def _spearman(xc: Any, yc: Any, index: Any, nx: int, ny: int) -> float:
    """Pearson correlation of the mid-ranks of the pairs at ``index``; codes are dense ranks from 0."""
    n = len(index)
    x_rank, y_rank = np.zeros(nx), np.zeros(ny)
    for i in index:
        x_rank[xc[i]] += 1.0
        y_rank[yc[i]] += 1.0
    below = 0.0
    for k in range(nx):
        count = x_rank[k]
        x_rank[k] = below + (count + 1.0) / 2.0
        below += count
    below = 0.0
    for k in range(ny):
        count = y_rank[k]
        y_rank[k] = below + (count + 1.0) / 2.0
        below += count
    middle = (n + 1.0) / 2.0
    xx, yy, xy = 0.0, 0.0, 0.0
    for i in index:
        dx, dy = x_rank[xc[i]] - middle, y_rank[yc[i]] - middle
        xx += dx * dx
        yy += dy * dy
        xy += dx * dy
    if xx == 0.0 or yy == 0.0:
        return np.nan
    return xy / math.sqrt(xx) / math.sqrt(yy)


def _normal_cdf(z: float) -> float:
    from scipy.special import ndtr

    return float(ndtr(z))


def _normal_quantile(p: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(p))


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise StatisticsError(f"confidence level {level} is not between 0 and 1; for example 0.95")


def _two_sided(level: float) -> float:
    _check_level(level)
    return _normal_quantile((1.0 + level) / 2.0)
