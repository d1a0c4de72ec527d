"""From the panel to the feature matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from numba import njit

from mlbot_core.errors import BadDataError
from mlbot_core.features.normalise import NORMALISERS
from mlbot_core.features.registry import Feature, FeatureSet, Table, node, warm_up

FloatArray = npt.NDArray[np.float64]


def build_features(panel: pd.DataFrame, feature_set: FeatureSet, *, last: int | None = None) -> pd.DataFrame:
    """Compute a feature set on every row of a panel, or on its last rows only.

    Shared columns are computed once, in dependency order, and dropped when nothing needs them any more. A row depends
    on itself and ``feature_set.lookback`` rows before it, on nothing else. The rows that have less than a feature's
    own lookback before them are NaN in it, so no value depends on where the panel happens to start.

    Parameters
    ----------
    panel
        As :func:`mlbot_core.features.panel.build_panel` makes it: a regular grid, one row a bar.
    feature_set
        What to compute.
    last
        How many rows at the end to compute; each column is then computed on the stretch that these rows need of it
        and no further back. None: every row.

    Returns
    -------
    pd.DataFrame
        ``ts`` (int64, UTC ms) and one float64 column a feature, in the set's order, with the panel's (last) rows. NaN
        where an input is missing or the history is too short; never infinite.

    Raises
    ------
    BadDataError
        If the panel lacks a column or its ``ts`` is not a regular ascending grid.
    """
    ts = panel["ts"].to_numpy(dtype=np.int64)
    inputs = {other for name in feature_set.order for other in node(name).inputs}.intersection(panel.columns)
    # copies, because a frame lends read-only arrays, for which every kernel would be compiled a second time
    columns = {name: panel[name].to_numpy(dtype=np.float64, copy=True) for name in inputs}
    matrix = feature_matrix(ts, columns, feature_set, last)
    built = pd.DataFrame(matrix, columns=list(feature_set.names), copy=False)
    built.insert(0, "ts", ts[len(ts) - len(matrix) :])
    return built


def feature_matrix(
    ts: npt.NDArray[np.int64], panel: Mapping[str, FloatArray], feature_set: FeatureSet, last: int | None = None
) -> FloatArray:
    """Return what :func:`build_features` does without a frame around it: shape (rows, features), column-major.

    Parameters
    ----------
    ts
        Open times of the panel's rows, UTC ms.
    panel
        The panel's columns by name, ``ts`` among them, float64, shape (bars,).
    """
    _check_grid(ts)
    bars = len(ts)
    rows = bars if last is None else min(last, bars)
    needed = _needed_rows(feature_set, rows, bars, whole=last is None)
    uses = Counter(name for column in feature_set.order for name in node(column).inputs)
    wanted = {f.name: (at, f) for at, f in enumerate(feature_set.features)}
    out = np.empty((len(wanted), rows))
    columns: dict[str, FloatArray] = {}
    filled: set[str] = set()

    def stretch(name: str, length: int) -> FloatArray:
        if name not in columns:
            if name not in panel:
                raise BadDataError(f"the panel lacks {name!r}, which feature set {feature_set.name!r} needs")
            columns[name] = np.ascontiguousarray(panel[name])
        return columns[name][max(0, len(columns[name]) - length) :]

    for name in feature_set.order:
        if name in filled:
            continue
        this = node(name)
        inputs = [stretch(other, needed[name] + this.lookback) for other in this.inputs]
        table = this if isinstance(this, Table) and len(inputs[0]) == rows else None
        places = None if table is None else _places(table, wanted, uses)
        if table is not None and places is not None:
            table.compute(out, places, *inputs)
            filled.update(table.columns)
            done = [wanted[column] for column in table.columns if column in wanted]
        else:
            values = this.values(*inputs)
            if uses[name]:
                columns[name] = values
            done = [wanted[name]] if name in wanted else []
        for other in this.inputs:
            uses[other] -= 1
            if uses[other] == 0:
                columns.pop(other, None)
        for at, feature in done:
            raw = out[at] if places is not None else values
            early = warm_up(feature, feature_set.zscore_window) - (bars - rows)
            finish(_scaled(raw, feature, feature_set.zscore_window, rows), max(0, early), out[at])
    return out.T


def _places(
    table: Table, wanted: Mapping[str, tuple[int, Feature]], uses: Mapping[str, int]
) -> npt.NDArray[np.int64] | None:
    """Return which row of the outcome each column of a table can fill at once, -1 for none.

    None if some column is scaled or is needed by another one.
    """
    found = [wanted.get(column) for column in table.columns]
    chosen = [column for column, one in zip(table.columns, found, strict=True) if one is not None]
    plain = all(one is None or one[1].normalise not in NORMALISERS for one in found)
    if not plain or uses[table.name] != len(chosen) or any(uses.get(column, 0) for column in chosen):
        return None
    return np.array([-1 if one is None else one[0] for one in found], dtype=np.int64)


def _scaled(values: FloatArray, feature: Feature, window: int, rows: int) -> FloatArray:
    """Return the last rows of a feature, normalised as it asks for."""
    scale = NORMALISERS.get(feature.normalise)
    if scale is not None:
        values = scale(np.ascontiguousarray(values[max(0, len(values) - rows - window + 1) :]), window)
    return values[len(values) - rows :]


@njit(cache=True)
def finish(values: FloatArray, early: int, out: FloatArray) -> None:
    """Copy values (onto themselves, perhaps): NaN where not finite, and in the first ``early`` of them."""
    for i in range(out.size):
        out[i] = values[i] if values[i] - values[i] == 0.0 else np.nan
    out[: min(early, out.size)] = np.nan


def _needed_rows(feature_set: FeatureSet, rows: int, bars: int, *, whole: bool) -> dict[str, int]:
    """Return how many rows at its end each column must deliver, for the columns after it and for the outcome."""
    if whole:
        return dict.fromkeys(feature_set.order, bars)
    needed: dict[str, int] = {}
    for feature in feature_set.features:
        own = rows + (feature_set.zscore_window - 1 if feature.normalise in NORMALISERS else 0)
        needed[feature.name] = max(own, needed.get(feature.name, 0))
    for name in reversed(feature_set.order):
        this = node(name)
        for other in this.inputs:
            needed[other] = max(needed.get(other, 0), needed[name] + this.lookback)
    return needed


def _check_grid(ts: npt.NDArray[np.int64]) -> None:
    steps = np.diff(ts)
    if len(steps) and (steps[0] <= 0 or (steps != steps[0]).any()):
        bad = int(ts[1:][(steps != steps[0]) | (steps <= 0)][0])
        raise BadDataError(f"the panel is not a regular grid at bar {bad}; missing bars must be rows of NaN")
