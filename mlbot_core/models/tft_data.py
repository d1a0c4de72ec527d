"""What the Temporal Fusion Transformer reads: bars on a regular grid, the calendar, chosen and scaled features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.config import TFTConfig
from mlbot_core.models.base import FeatureMismatchError, TrainingDataError
from mlbot_core.timeframe import HOUR_MS

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

CALENDAR: Final = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos", "to_funding")
"""Known in advance, of every bar of the past and of the horizon; all of its close, between -1 and 1."""
KNOWN: Final = "known"
"""Encoder input: the share of the chosen features that are known in a bar; 0 in a missing bar."""

_FUNDING_HOURS: Final = 8.0  # settlements at 00:00, 08:00 and 16:00 UTC
_WEEK_HOURS: Final = 168.0
_MONDAY: Final = 96.0  # 1970-01-01 was a Thursday; the first Monday came four days later
_MIN_KNOWN: Final = 0.5  # a feature that is unknown in more of the training rows is not chosen
_IQR_OF_NORMAL: Final = 1.3489795003921634
_RETURN_TOLERANCE: Final = 1e-6


def calendar(open_ms: IntArray, bar_ms: int) -> FloatArray:
    """Return the calendar of bars, shape (bars, 5), in the order of :data:`CALENDAR`.

    Parameters
    ----------
    open_ms
        Open times, UTC ms.
    bar_ms
        Length of a bar, ms.
    """
    hours = (open_ms + bar_ms) / HOUR_MS
    day, week = (2.0 * math.pi * (part / whole) for part, whole in ((hours, 24.0), (hours - _MONDAY, _WEEK_HOURS)))
    to_funding = _FUNDING_HOURS - hours % _FUNDING_HOURS
    columns = (np.sin(day), np.cos(day), np.sin(week), np.cos(week), to_funding / _FUNDING_HOURS * 2.0 - 1.0)
    return np.column_stack(columns)


def bar_length(open_ms: IntArray) -> int:
    """Return the length of a bar, ms: the greatest that all distances are multiples of.

    Raises
    ------
    TrainingDataError
        If there are fewer than two bars.
    """
    if len(open_ms) < 2:
        raise TrainingDataError(f"{len(open_ms)} bars: no sequence to learn from; train on a longer range")
    return int(np.gcd.reduce(np.diff(open_ms)))


def grid_places(open_ms: IntArray, bar_ms: int) -> IntArray:
    """Return how many bars each row is after the first one.

    Raises
    ------
    FeatureMismatchError
        If the rows do not ascend by whole bars.
    """
    away = open_ms - open_ms[:1]
    if (away % bar_ms).any() or (np.diff(away) <= 0).any():
        raise FeatureMismatchError(
            f"the index does not ascend by whole bars of {bar_ms} ms, the bars the model was trained on; "
            "it must hold open times in UTC ms of one timeframe"
        )
    return np.asarray(away // bar_ms, dtype=np.int64)


@dataclass(frozen=True)
class Scaling:
    """Which features the network reads, and how they are scaled; fitted on training rows alone.

    Parameters
    ----------
    chosen
        Positions among the columns of the model, ascending.
    center, scale
        Median and interquartile range over 1.349 (a standard deviation where that is 0), one a chosen feature.
    rank_ic
        Rank correlation of each chosen feature with the score, in the training rows.
    clip
        Scaled values are cut at plus and minus this.
    """

    chosen: IntArray
    center: FloatArray
    scale: FloatArray
    rank_ic: FloatArray
    clip: float

    def apply(self, matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return scaled features, shape (rows, chosen), 0 (the median) where unknown; and the share that is known."""
        part = matrix[:, self.chosen]
        known = ~np.isnan(part)
        scaled = np.clip((part - self.center) / self.scale, -self.clip, self.clip)
        return np.where(known, scaled, 0.0), known.mean(axis=1)


def fit_scaling(matrix: FloatArray, score: FloatArray, weight: FloatArray, config: TFTConfig) -> Scaling:
    """Choose features by their absolute rank correlation with the score, the strongest first, and scale them.

    A feature is passed over if it is constant, mostly unknown, or correlates in rank with one that was chosen before
    by more than ``config.max_correlation``. Ties go to the earlier column.

    Parameters
    ----------
    matrix
        Training rows, shape (rows, features); NaN is unknown and counts as a middle rank.
    score, weight
        Shape (rows,).

    Raises
    ------
    TrainingDataError
        If no feature is left.
    """
    ranks = _ranks(matrix)
    target = _ranks(score[:, None])[:, 0]
    # Sums along an axis and not matrix products: their order does not depend on a library's number of threads.
    spread = np.sqrt((weight[:, None] * ranks * ranks).sum(axis=0))
    enough = (~np.isnan(matrix)).mean(axis=0) >= _MIN_KNOWN
    usable = enough & (spread > 0.0)
    safe = np.where(usable, spread, 1.0)
    ic = (weight[:, None] * ranks * target[:, None]).sum(axis=0)
    ic = np.where(usable, ic / safe / math.sqrt(float((weight * target * target).sum())), 0.0)
    unit = ranks * np.sqrt(weight)[:, None] / safe
    chosen: list[int] = []
    for at in np.argsort(-np.abs(ic), kind="stable"):
        if len(chosen) == config.max_features:
            break
        if not usable[at]:
            continue
        if chosen and np.abs((unit[:, chosen] * unit[:, [at]]).sum(axis=0)).max() > config.max_correlation:
            continue
        chosen.append(int(at))
    if not chosen:
        raise TrainingDataError(
            f"none of the {matrix.shape[1]} features varies and is known in at least half of the {len(matrix)} "
            "training rows; check the feature set and the range"
        )
    places = np.array(sorted(chosen), dtype=np.int64)
    part = matrix[:, places]
    low, center, high = np.nanquantile(part, [0.25, 0.5, 0.75], axis=0)
    scale = (high - low) / _IQR_OF_NORMAL
    scale = np.where(scale > 0.0, scale, np.nanstd(part, axis=0))
    return Scaling(places, center, scale, ic[places], config.clip)


def _ranks(values: FloatArray) -> FloatArray:
    """Return mean ranks less their middle, per column; 0 where unknown."""
    ranks = pd.DataFrame(values).rank().to_numpy(dtype=np.float64)
    known = ~np.isnan(ranks)
    middle = (known.sum(axis=0) + 1) / 2.0
    return np.where(known, ranks - middle, 0.0)


@dataclass(frozen=True)
class Bars:
    """Network inputs of every bar of a frame's span, missing bars included, and of the horizon after it.

    Parameters
    ----------
    inputs
        Shape (span + horizon, chosen + 1 + 5): scaled features, share known, calendar. Everything but the calendar
        is 0 in missing bars and after the frame.
    known
        Share of the chosen features known in each bar, shape (span,).
    places
        Bar of each row of the frame, shape (rows,).
    """

    inputs: FloatArray
    known: FloatArray
    places: IntArray

    def usable(self, rows: IntArray, config: TFTConfig) -> npt.NDArray[np.bool_]:
        """Return which rows have a forecast: a known bar, enough rows before it and few unknown bars among them."""
        length = config.encoder_length
        gone = np.concatenate([[0], np.cumsum(self.known <= 0.0)])
        at = self.places[rows]
        begin = np.maximum(at - length + 1, 0)
        unknown = gone[at + 1] - gone[begin]
        enough = (rows >= length - 1) & (unknown <= config.max_unknown * length)
        return np.asarray(enough & (self.known[at] > 0.0))


def make_bars(matrix: FloatArray, open_ms: IntArray, bar_ms: int, scaling: Scaling, horizon: int) -> Bars:
    """Lay the rows of a frame out on the grid of its bars.

    Raises
    ------
    FeatureMismatchError
        If the rows do not ascend by whole bars.
    """
    places = grid_places(open_ms, bar_ms)
    span = int(places[-1]) + 1 if len(places) else 0
    scaled, share = scaling.apply(matrix)
    width = scaled.shape[1]
    inputs = np.zeros((span + horizon, width + 1 + len(CALENDAR)))
    inputs[places, :width] = scaled
    inputs[places, width] = share
    if span:
        inputs[:, width + 1 :] = calendar(open_ms[0] + bar_ms * np.arange(span + horizon, dtype=np.int64), bar_ms)
    known = np.zeros(span)
    known[places] = share
    return Bars(inputs, known, places)


def step_targets(
    rows: IntArray, places: IntArray, y: pd.DataFrame, config: TFTConfig
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return the cumulative log return at each decoder step in barrier widths, and which of them are known.

    The last step is the score. The steps before it add up ``next_ret`` of the bars from the row on, all of which lie
    inside the row's label interval; a step that needs a bar that is not there is unknown.

    Parameters
    ----------
    rows
        Positions, shape (n,).
    places
        Bar of each row of the frame.
    y
        Outcomes of the frame.

    Returns
    -------
    target, known
        Shape (n, decoder_steps).

    Raises
    ------
    TrainingDataError
        If the score is not the return over ``config.horizon`` bars.
    """
    score, width = (y[name].to_numpy(dtype=np.float64)[rows] for name in ("score", "width"))
    steps = config.decoder_steps
    target = np.zeros((len(rows), steps))
    target[:, -1] = score
    known = np.ones((len(rows), steps), dtype=np.bool_)
    if steps == 1:
        return target, known
    ahead = np.full(int(places[-1]) + 1 + config.horizon, np.nan)
    ahead[places] = y["next_ret"].to_numpy(dtype=np.float64)
    path = ahead[places[rows][:, None] + np.arange(config.horizon)]
    returns = np.cumsum(path, axis=1) / width[:, None]
    _check_horizon(rows, returns[:, -1], score, config)
    every = config.horizon // steps
    target[:, :-1] = returns[:, every - 1 :: every][:, :-1]
    known[:, :-1] = np.isfinite(target[:, :-1])
    return np.where(known, target, 0.0), known


def _check_horizon(rows: IntArray, end: FloatArray, score: FloatArray, config: TFTConfig) -> None:
    off = np.abs(end - score) > _RETURN_TOLERANCE * (1.0 + np.abs(score))  # false where unknown
    if off.any():
        at = int(np.argmax(off))
        raise TrainingDataError(
            f"row {rows[at]}: the next {config.horizon} returns add up to {end[at]:.6g} barrier widths, its score is "
            f"{score[at]:.6g} ({int(off.sum())} such rows); set tft.horizon in config/models.yaml to targets.horizon"
        )
