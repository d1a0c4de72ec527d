"""Small compiled arithmetic of the bandit: linear algebra and random numbers whose bits depend on nothing else.

Written out instead of calling BLAS and a generator of numpy: the order of a library's sums and the stream of its
generators change with versions and processors, and the same log must give the same policy bit for bit. The matrices
have a few dozen rows.

Sources
-------
G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (SplitMix64).
M. Wichura, "Algorithm AS 241: The percentage points of the normal distribution", Applied Statistics 37, 1988.
G. Golub and C. Van Loan, "Matrix Computations", 4th edition 2013, algorithm 4.2.1 (Cholesky).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numba import njit

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_TO_UNIT: Final = 2.0**-53
_S11, _S27, _S30, _S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)

# Coefficients of AS 241 (PPND16), highest power first: the centre, the tails and the far tails.
_A: Final = (
    2.5090809287301226727e3,
    3.3430575583588128105e4,
    6.7265770927008700853e4,
    4.5921953931549871457e4,
    1.3731693765509461125e4,
    1.9715909503065514427e3,
    1.3314166789178437745e2,
    3.3871328727963666080e0,
)
_B: Final = (
    5.2264952788528545610e3,
    2.8729085735721942674e4,
    3.9307895800092710610e4,
    2.1213794301586595867e4,
    5.3941960214247511077e3,
    6.8718700749205790830e2,
    4.2313330701600911252e1,
    1.0,
)
_C: Final = (
    7.74545014278341407640e-4,
    2.27238449892691845833e-2,
    2.41780725177450611770e-1,
    1.27045825245236838258e0,
    3.64784832476320460504e0,
    5.76949722146069140550e0,
    4.63033784615654529590e0,
    1.42343711074968357734e0,
)
_D: Final = (
    1.05075007164441684324e-9,
    5.47593808499534494600e-4,
    1.51986665636164571966e-2,
    1.48103976427480074590e-1,
    6.89767334985100004550e-1,
    1.67638483018380384940e0,
    2.05319162663775882187e0,
    1.0,
)
_E: Final = (
    2.01033439929228813265e-7,
    2.71155556874348757815e-5,
    1.24266094738807843860e-3,
    2.65321895265761230930e-2,
    2.96560571828504891230e-1,
    1.78482653991729133580e0,
    5.46378491116411436990e0,
    6.65790464350110377720e0,
)
_F: Final = (
    2.04426310338993978564e-15,
    1.42151175831644588870e-7,
    1.84631831751005468180e-5,
    7.86869131145613259100e-4,
    1.48753612908506148525e-2,
    1.36929880922735805310e-1,
    5.99832206555887937690e-1,
    1.0,
)


@njit(cache=True)
def next_word(state: Any) -> Any:
    """Return 64 random bits and move the generator on; ``state`` is uint64[1]."""
    state[0] = state[0] + _GOLDEN
    z = state[0]
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@njit(cache=True)
def next_uniform(state: Any) -> float:
    """Return a number strictly between 0 and 1 and move the generator on."""
    return (float(next_word(state) >> _S11) + 0.5) * _TO_UNIT


@njit(cache=True)
def _ratio(above: Any, below: Any, x: float) -> float:
    up = 0.0
    down = 0.0
    for i in range(8):
        up = up * x + above[i]
        down = down * x + below[i]
    return up / down


@njit(cache=True)
def normal_quantile(p: float) -> float:
    """Return the standard normal quantile of a probability strictly between 0 and 1 (AS 241, about 16 digits)."""
    q = p - 0.5
    if abs(q) <= 0.425:
        return q * _ratio(_A, _B, 0.180625 - q * q)
    r = math.sqrt(-math.log(min(p, 1.0 - p)))
    value = _ratio(_C, _D, r - 1.6) if r <= 5.0 else _ratio(_E, _F, r - 5.0)
    return -value if q < 0.0 else value


@njit(cache=True)
def cholesky(matrix: Any) -> tuple[Any, bool]:
    """Return the lower triangle L with L Lᵀ = matrix, and whether there is one (all pivots positive and finite)."""
    n = len(matrix)
    lower = np.zeros((n, n))
    for j in range(n):
        pivot = matrix[j, j]
        for k in range(j):
            pivot -= lower[j, k] * lower[j, k]
        if not (pivot > 0.0 and math.isfinite(pivot)):
            return lower, False
        lower[j, j] = math.sqrt(pivot)
        for i in range(j + 1, n):
            total = matrix[i, j]
            for k in range(j):
                total -= lower[i, k] * lower[j, k]
            lower[i, j] = total / lower[j, j]
    return lower, True


@njit(cache=True)
def solve_lower(lower: Any, right: Any) -> Any:
    """Return x with L x = right."""
    n = len(right)
    x = np.empty(n)
    for i in range(n):
        total = right[i]
        for k in range(i):
            total -= lower[i, k] * x[k]
        x[i] = total / lower[i, i]
    return x


@njit(cache=True)
def solve_upper(lower: Any, right: Any) -> Any:
    """Return x with Lᵀ x = right."""
    n = len(right)
    x = np.empty(n)
    for i in range(n - 1, -1, -1):
        total = right[i]
        for k in range(i + 1, n):
            total -= lower[k, i] * x[k]
        x[i] = total / lower[i, i]
    return x


@njit(cache=True)
def added(gram: Any, moment: Any, row: Any, reward: float) -> tuple[Any, Any]:
    """Return gram + row rowᵀ and moment + reward row."""
    n = len(row)
    new_gram = gram.copy()
    new_moment = moment.copy()
    for i in range(n):
        new_moment[i] += reward * row[i]
        for j in range(n):
            new_gram[i, j] += row[i] * row[j]
    return new_gram, new_moment


@njit(cache=True)
def expected(gram: Any, moment: Any, rows: Any) -> tuple[Any, Any, bool]:
    """Return the ridge regression's mean and standard width √(xᵀ A⁻¹ x) of each row, and whether A could be solved."""
    k, n = rows.shape
    mean = np.zeros(k)
    width = np.zeros(k)
    lower, fine = cholesky(gram)
    if not fine:
        return mean, width, False
    theta = solve_upper(lower, solve_lower(lower, moment))
    for a in range(k):
        half = solve_lower(lower, rows[a])
        square = 0.0
        for i in range(n):
            mean[a] += rows[a, i] * theta[i]
            square += half[i] * half[i]
        width[a] = math.sqrt(square)
    return mean, width, True


@njit(cache=True)
def sampled_shares(gram: Any, moment: Any, rows: Any, scale: float, draws: int, seed: Any) -> tuple[Any, bool]:
    """Return in which share of ``draws`` samples of the posterior N(A⁻¹ b, scale² A⁻¹) each row is the best.

    Of equals the first row is the best. The second value is whether A could be solved and every score was finite.
    """
    k, n = rows.shape
    shares = np.zeros(k)
    lower, fine = cholesky(gram)
    if not fine:
        return shares, False
    theta = solve_upper(lower, solve_lower(lower, moment))
    state = np.empty(1, np.uint64)
    state[0] = seed
    normal = np.empty(n)
    for _ in range(draws):
        for i in range(n):
            normal[i] = normal_quantile(next_uniform(state))
        noise = solve_upper(lower, normal)
        best, top = 0, -math.inf
        for a in range(k):
            score = 0.0
            for i in range(n):
                score += rows[a, i] * (theta[i] + scale * noise[i])
            if not math.isfinite(score):
                return np.zeros(k), False
            if score > top:
                best, top = a, score
        shares[best] += 1.0
    return shares / draws, True


@njit(cache=True)
def drawn(probabilities: Any, seed: Any) -> int:
    """Return an index drawn with these probabilities, which sum to 1."""
    state = np.empty(1, np.uint64)
    state[0] = seed
    left = next_uniform(state)
    last = 0
    for a in range(len(probabilities)):
        if probabilities[a] > 0.0:
            last = a
            left -= probabilities[a]
            if left < 0.0:
                return a
    return last
