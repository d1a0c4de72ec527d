"""From what a model says of a bar to what the decision function takes: one way for backtest, paper and live."""

from __future__ import annotations

from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

Numbers = TypeVar("Numbers", float, npt.NDArray[np.float64])

FULL_SIZE: Final = 1.0
"""Share of the cap that a forecast may use, where nothing scales it down."""


def edge_of(score: Numbers, width: Numbers) -> Numbers:
    """Return the expected log return of a long position over the forecast's horizon, before costs.

    Parameters
    ----------
    score
        Expected return in barrier widths (:data:`mlbot_core.models.base.FORECAST`); NaN = no forecast.
    width
        Distance of the barrier at that bar, log return, known at its close.
    """
    return score * width
