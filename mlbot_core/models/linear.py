"""Weighted ridge regression, compiled and without a linear-algebra library: the same bits for any number of threads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

FloatArray = npt.NDArray[np.float64]


@njit(cache=True)
def normal_equations(z: FloatArray, y: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return ``Z' W Z / sum(w)``, shape (features, features), and ``Z' W y / sum(w)``, shape (features,)."""
    rows, size = z.shape
    gram = np.zeros((size, size))
    moment = np.zeros(size)
    total = 0.0
    for i in range(rows):
        total += weight[i]
        for j in range(size):
            scaled = weight[i] * z[i, j]
            if scaled == 0.0:
                continue
            moment[j] += scaled * y[i]
            for k in range(size):
                gram[j, k] += scaled * z[i, k]
    return gram / total, moment / total


@njit(cache=True)
def solve_ridge(gram: FloatArray, moment: FloatArray, penalty: float) -> tuple[FloatArray, float]:
    """Return the coefficients and the effective degrees of freedom ``tr(G (G + penalty)^-1)``.

    Cholesky's method; Hastie, Tibshirani, Friedman (2009), The Elements of Statistical Learning, 3.4.1.

    Parameters
    ----------
    gram, moment
        Of :func:`normal_equations`.
    penalty
        Added to the diagonal, > 0.
    """
    size = len(moment)
    low = np.zeros((size, size))
    for i in range(size):
        for j in range(i + 1):
            value = gram[i, j] + (penalty if i == j else 0.0)
            for k in range(j):
                value -= low[i, k] * low[j, k]
            low[i, j] = np.sqrt(value) if i == j else value / low[j, j]
    coefficient = np.zeros(size)
    for i in range(size):
        value = moment[i]
        for k in range(i):
            value -= low[i, k] * coefficient[k]
        coefficient[i] = value / low[i, i]
    for i in range(size - 1, -1, -1):
        value = coefficient[i]
        for k in range(i + 1, size):
            value -= low[k, i] * coefficient[k]
        coefficient[i] = value / low[i, i]
    # tr((G + penalty)^-1) is the squared length of the rows of the inverse of the triangle
    trace = 0.0
    for column in range(size):
        inverse = np.zeros(size)
        for i in range(column, size):
            value = 1.0 if i == column else 0.0
            for k in range(column, i):
                value -= low[i, k] * inverse[k]
            inverse[i] = value / low[i, i]
            trace += inverse[i] * inverse[i]
    return coefficient, size - penalty * trace
