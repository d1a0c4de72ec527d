"""From the panel to the feature matrix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.errors import BadDataError
from mlbot_core.features import kernels
from mlbot_core.features.registry import ZSCORE_CLIP, FeatureSet, node, warm_up


def build_features(panel: pd.DataFrame, feature_set: FeatureSet) -> pd.DataFrame:
    """Compute a feature set on every row of a panel.

    Shared columns are computed once, in dependency order. A row depends on itself and ``feature_set.lookback`` rows
    before it, on nothing else: computed from those alone it is the same bit for bit. The rows that have less than a
    feature's own lookback before them are NaN in it, so no value depends on where the panel happens to start.

    Parameters
    ----------
    panel
        As :func:`mlbot_core.features.panel.build_panel` makes it: a regular grid, one row a bar.
    feature_set
        What to compute.

    Returns
    -------
    pd.DataFrame
        ``ts`` (int64, UTC ms) and one float64 column a feature, in the set's order, with the panel's rows. NaN where
        an input is missing or the history is too short; never infinite.

    Raises
    ------
    BadDataError
        If the panel lacks a column or its ``ts`` is not a regular ascending grid.
    """
    ts = panel["ts"].to_numpy(dtype=np.int64)
    steps = np.diff(ts)
    if len(steps) and (steps[0] <= 0 or (steps != steps[0]).any()):
        bad = int(ts[1:][(steps != steps[0]) | (steps <= 0)][0])
        raise BadDataError(f"the panel is not a regular grid at bar {bad}; missing bars must be rows of NaN")
    columns: dict[str, npt.NDArray[np.float64]] = {}

    def column(name: str) -> npt.NDArray[np.float64]:
        if name not in columns:
            if name not in panel.columns:
                raise BadDataError(f"the panel lacks {name!r}, which feature set {feature_set.name!r} needs")
            columns[name] = np.ascontiguousarray(panel[name].to_numpy(dtype=np.float64))
        return columns[name]

    for name in feature_set.order:
        this = node(name)
        columns[name] = this.values(*(column(other) for other in this.inputs))
    out: dict[str, npt.NDArray[np.generic]] = {"ts": ts}
    for feature in feature_set.features:
        values = columns[feature.name]
        if feature.normalise == "zscore":
            values = np.clip(kernels.zscore(values, feature_set.zscore_window), -ZSCORE_CLIP, ZSCORE_CLIP)
        values = np.where(np.isfinite(values), values, np.nan)
        values[: warm_up(feature, feature_set.zscore_window)] = np.nan
        out[feature.name] = values
    return pd.DataFrame(out)
