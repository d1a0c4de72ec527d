"""A search for parameters as a picture: how the utility rose, and what mattered."""

from __future__ import annotations

import io
from typing import Final

import numpy as np

from mlbot_core.research.tuning import Tuned

_WIDTH: Final = 960
_NOT_PARAMETERS: Final = ("number", "utility", "pruned")


def tuning_png(tuned: Tuned) -> bytes:
    """Return utility by trial with the best so far, and the rank correlation of each numeric parameter with it."""
    from matplotlib.figure import Figure

    table = tuned.trials
    figure = Figure(figsize=(_WIDTH / 100, 3.6), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(table["number"], table["utility"], "o", markersize=4, color="#1f77b4", label="trial")
    left.plot(table["number"], table["utility"].cummax().ffill(), color="#1f77b4", linewidth=1, label="best so far")
    given_up = table.loc[table["pruned"], "number"]
    lowest = float(np.nanmin(table["utility"]))
    left.plot(given_up, np.full(len(given_up), lowest), "x", color="#7f7f7f", label="given up early")
    left.axhline(tuned.configured_utility, color="#7f7f7f", linestyle=":", linewidth=1, label="configured")
    left.set(xlabel="trial", ylabel="yearly net utility, held-out folds")
    left.legend(fontsize=7, frameon=False)
    names = [name for name in table.columns if name not in _NOT_PARAMETERS]
    numeric = table[names].select_dtypes("number")
    ranked = numeric.rank().corrwith(table["utility"].rank()).dropna().sort_values()
    right.barh(list(ranked.index), ranked.to_numpy(), color="#1f77b4")
    right.set(xlabel="rank correlation with the utility", xlim=(-1, 1))
    right.axvline(0.0, color="#7f7f7f", linewidth=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
