"""Windowed kernels about regimes: hidden states, breaks, trends, scaling. All are fitted on their own trailing window.

The rules are those of :mod:`mlbot_core.features.kernels`: every output is computed from exactly its own window, oldest
first; NaN where the window does not fit, its last value is not finite, or fewer than 80 % of its values are.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]

# A state lasts 50 bars on average: about four days at 2h.
_STAY = 0.98
# Half the distance between the means of the two trend states, in standard deviations of one bar.
_DRIFT = 0.15
# Bounds of the relative distance of the two variances from their mean: apart enough to tell, never one of zero.
_APART_MIN = 0.05
_APART_MAX = 0.8


@njit(cache=True)
def _window(x: Array, first: int, last: int, least: int) -> tuple[bool, float, float, float]:
    """Return (usable, mean, variance, fourth central moment over squared variance) of ``x[first : last + 1]``."""
    count = 0
    total = 0.0
    for j in range(first, last + 1):
        if np.isfinite(x[j]):
            total += x[j]
            count += 1
    if count < max(least, 2):
        return False, 0.0, 0.0, 0.0
    mean = total / count
    second = 0.0
    fourth = 0.0
    for j in range(first, last + 1):
        if np.isfinite(x[j]):
            d = (x[j] - mean) * (x[j] - mean)
            second += d
            fourth += d * d
    second /= count
    fourth /= count
    return second > 1e-24, mean, second, fourth / (second * second) if second > 0.0 else 0.0


@njit(cache=True)
def hidden_state(x: Array, number: Array, n: int, refit: int, of_trend: bool) -> Array:
    """Return the filtered probability of the second of two hidden states of a Gaussian Markov chain (Hamilton, 1989).

    The chain is fitted again every ``refit`` bars, where ``number`` (of the bar since the epoch) is a multiple of it,
    by the moments of the ``n`` bars before; the filter starts there from even odds, runs through those ``n`` bars and
    on to the row. With ``of_trend`` the states share the window's variance and lie ``_DRIFT`` deviations below and
    above zero; without, they share the window's mean and their two variances m(1 - d) and m(1 + d) have its mean
    square m and, by d^2 = kurtosis / 3 - 1, its kurtosis. A row rests on ``n + refit - 1`` bars before it.
    """
    out = np.full(x.size, np.nan)
    reach = n + refit - 1
    usable = False
    mean = 0.0
    second = 1.0
    scale = 0.0
    shift = 0.0
    odds = 0.5
    begun = -1
    for i in range(reach, x.size):
        if not np.isfinite(number[i - reach]):
            continue
        start = i - int(number[i] % refit)
        if start != begun:
            begun = start
            usable, mean, second, kurtosis = _window(x, start - n, start - 1, (8 * n + 9) // 10)
            if usable and not of_trend:
                apart = math.sqrt(min(max(kurtosis / 3.0 - 1.0, _APART_MIN), _APART_MAX))
                scale = 0.5 * (1.0 / (1.0 - apart) - 1.0 / (1.0 + apart)) / second
                shift = -0.5 * math.log((1.0 + apart) / (1.0 - apart))
            odds = 0.5
            first = start - n
        else:
            first = i
        if not usable:
            continue
        for j in range(first, i + 1):
            odds = odds * _STAY + (1.0 - odds) * (1.0 - _STAY)
            if np.isfinite(x[j]):
                if of_trend:
                    weight = 2.0 * _DRIFT * x[j] / math.sqrt(second)
                else:
                    weight = shift + scale * (x[j] - mean) * (x[j] - mean)
                lift = math.exp(min(max(weight, -30.0), 30.0))
                odds = odds * lift / (odds * lift + 1.0 - odds)
        if np.isfinite(x[i]):
            out[i] = odds
    return out


@njit(cache=True)
def break_of_mean(x: Array, n: int) -> Array:
    """Return the OLS-CUSUM statistic max |S_k| / (s sqrt(n)), positive where the later mean is the higher one.

    S_k: sum of the first k deviations from the window's mean, s their standard deviation (Ploberger and Krämer, 1992).
    """
    out = np.full(x.size, np.nan)
    for i in range(n - 1, x.size):
        if not np.isfinite(x[i]):
            continue
        usable, mean, second, _ = _window(x, i - n + 1, i, (8 * n + 9) // 10)
        if usable:
            level = 0.0
            furthest = 0.0
            count = 0
            for j in range(i - n + 1, i + 1):
                if np.isfinite(x[j]):
                    level += x[j] - mean
                    count += 1
                    if abs(level) > abs(furthest):
                        furthest = level
            out[i] = -furthest / math.sqrt(second * count)
    return out


@njit(cache=True)
def break_of_variance(x: Array, n: int) -> Array:
    """Return the centred cumulative sum of squares of Inclan and Tiao (1994) at its furthest from zero, and since when.

    D_k = C_k / C_n - k / n with C the running sum of squares.

    Returns
    -------
    Array
        Shape (2, bars): max |D_k| times sqrt(n / 2), positive where the variance is higher after the break (1.36 is
        significant at 5 %); and the share of the window's bars that came after the most likely break.
    """
    out = np.full((2, x.size), np.nan)
    squares = np.zeros(x.size)  # a missing bar adds nothing to either side, so the inner loops need not ask
    there = np.zeros(x.size)
    for i in range(x.size):
        if np.isfinite(x[i]):
            squares[i] = x[i] * x[i]
            there[i] = 1.0
    for i in range(n - 1, x.size):
        if there[i] == 0.0:
            continue
        first = i - n + 1
        total = 0.0
        count = 0.0
        for j in range(first, i + 1):
            total += squares[j]
            count += there[j]
        if 10.0 * count < 8.0 * n or total <= 0.0:
            continue
        of_total = 1.0 / total
        of_count = 1.0 / count
        running = 0.0
        furthest = 0.0
        seen = 0.0
        at = 0.0
        for j in range(first, i + 1):
            running += squares[j] * of_total - there[j] * of_count
            seen += there[j]
            if abs(running) > abs(furthest):
                furthest = running
                at = seen
        out[0, i] = -furthest * math.sqrt(count / 2.0)
        out[1, i] = (count - at) * of_count
    return out


@njit(cache=True)
def page_drift(x: Array, n: int, slack: float) -> Array:
    """Return Page's (1954) upper less lower cumulative sum at the end of the window, over sqrt(n).

    Each sums the values in standard deviations of the window around zero, less ``slack``, and never falls below zero.
    """
    out = np.full(x.size, np.nan)
    for i in range(n - 1, x.size):
        if not np.isfinite(x[i]):
            continue
        usable, _, second, _ = _window(x, i - n + 1, i, (8 * n + 9) // 10)
        if usable:
            up = 0.0
            down = 0.0
            deviation = math.sqrt(second)
            for j in range(i - n + 1, i + 1):
                if np.isfinite(x[j]):
                    z = x[j] / deviation
                    up = max(0.0, up + z - slack)
                    down = max(0.0, down - z - slack)
            out[i] = (up - down) / math.sqrt(n)
    return out


@njit(cache=True)
def trend_correlation(x: Array, n: int) -> Array:
    """Return the correlation of the window's values with time; 0 in a flat window."""
    out = np.full(x.size, np.nan)
    for i in range(n - 1, x.size):
        if not np.isfinite(x[i]):
            continue
        count = 0
        sum_t = 0.0
        sum_x = 0.0
        for j in range(n):
            value = x[i - n + 1 + j]
            if np.isfinite(value):
                count += 1
                sum_t += j
                sum_x += value
        if 10 * count < 8 * n or count < 3:
            continue
        mean_t = sum_t / count
        mean_x = sum_x / count
        tt = 0.0
        tx = 0.0
        xx = 0.0
        for j in range(n):
            value = x[i - n + 1 + j]
            if np.isfinite(value):
                tt += (j - mean_t) * (j - mean_t)
                tx += (j - mean_t) * (value - mean_x)
                xx += (value - mean_x) * (value - mean_x)
        flat = xx <= count * (1e-12 * mean_x) * (1e-12 * mean_x)
        out[i] = 0.0 if flat else min(1.0, max(-1.0, tx / math.sqrt(tt * xx)))
    return out


@njit(cache=True)
def strongest(a: Array, b: Array, c: Array) -> Array:
    """Return at every bar the value of greatest magnitude of three; NaN where one is not finite."""
    out = np.full(a.size, np.nan)
    for i in range(a.size):
        if np.isfinite(a[i]) and np.isfinite(b[i]) and np.isfinite(c[i]):
            best = a[i]
            if abs(b[i]) > abs(best):
                best = b[i]
            if abs(c[i]) > abs(best):
                best = c[i]
            out[i] = best
    return out


@njit(cache=True)
def t_statistic(correlation: Array, n: int) -> Array:
    """Return sign(r) log(1 + |t|) of the t-statistic r sqrt((n - 2) / (1 - r^2)) of a correlation over ``n`` bars."""
    out = np.full(correlation.size, np.nan)
    for i in range(correlation.size):
        r = correlation[i]
        if np.isfinite(r):
            t = abs(r) * math.sqrt((n - 2.0) / max(1.0 - r * r, 1e-12))
            out[i] = math.copysign(math.log1p(t), r)
    return out


@njit(cache=True)
def permutation_entropy(x: Array, n: int) -> Array:
    """Return the entropy of the orders of three consecutive values over the window's ``n`` triples, 0 to 1.

    Bandt and Pompe (2002); equal values count as rising. 1: every order is as frequent (noise); low: few orders
    (a trend). A row rests on ``n + 1`` bars before it.
    """
    code = np.full(x.size, -1, dtype=np.int64)
    for i in range(2, x.size):
        if np.isfinite(x[i]) and np.isfinite(x[i - 1]) and np.isfinite(x[i - 2]):
            a = x[i - 2] <= x[i - 1]
            b = x[i - 1] <= x[i]
            c = x[i - 2] <= x[i]
            if a and b:
                code[i] = 0
            elif a and c:
                code[i] = 1
            elif a:
                code[i] = 2
            elif b and c:
                code[i] = 3
            elif b:
                code[i] = 4
            else:
                code[i] = 5
    out = np.full(x.size, np.nan)
    times = np.zeros(6, dtype=np.int64)  # integers, hence exact: what leaves the window is counted off
    count = 0
    for i in range(2, x.size):
        if code[i] >= 0:
            times[code[i]] += 1
            count += 1
        if i - n >= 2 and code[i - n] >= 0:
            times[code[i - n]] -= 1
            count -= 1
        if i >= n + 1 and code[i] >= 0 and 10 * count >= 8 * n:
            entropy = 0.0
            for k in range(6):
                if times[k] > 0:
                    p = times[k] / count
                    entropy -= p * math.log(p)
            out[i] = entropy / math.log(6.0)
    return out


@njit(cache=True)
def log_log_slope(x: Array, moves: Array, lags: Array) -> Array:
    """Return the least-squares slope of log ``moves`` (one row a lag) on log ``lags``; NaN where one is not positive.

    ``x`` only says where there is a value at all.
    """
    out = np.full(x.size, np.nan)
    count = lags.size
    centre = 0.0
    for k in range(count):
        centre += math.log(lags[k])
    centre /= count
    square = 0.0
    for k in range(count):
        square += (math.log(lags[k]) - centre) ** 2
    for i in range(x.size):
        total = 0.0
        whole = np.isfinite(x[i])
        for k in range(count):
            if whole and np.isfinite(moves[k, i]) and moves[k, i] > 0.0:
                total += (math.log(lags[k]) - centre) * math.log(moves[k, i])
            else:
                whole = False
        if whole:
            out[i] = total / square
    return out
