"""From checked frames to a fitted network: which rows train and which judge, targets, weights, importance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.config import TFTConfig
from mlbot_core.models.base import ModelError, TrainingDataError, blank_rows
from mlbot_core.models.tft_data import CALENDAR, Scaling, bar_length, fit_scaling, grid_places, make_bars, step_targets
from mlbot_core.models.tft_infer import forecast_windows, select_bars
from mlbot_core.models.tft_weights import Network, network_from

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_MIN_TRAIN: Final = 32
_MIN_VALIDATION: Final = 8
_EXPORT_TOLERANCE: Final = 1e-3  # float32 against float64, barrier widths


class ExportError(ModelError):
    """The exported network does not forecast what the trained one does."""


@dataclass(frozen=True)
class Fitted:
    """Everything a forecast rests on.

    Parameters
    ----------
    scaling
        Chosen features and their scales.
    bar_ms
        Length of a bar, ms.
    weights
        float32, by name; see :mod:`mlbot_core.models.tft_weights`.
    network
        The same, for the compiled loops.
    importance
        Mean weight of each chosen feature in the encoder's selection, over the training rows.
    training
        What a person wants to know of the training; JSON values.
    """

    scaling: Scaling
    bar_ms: int
    weights: dict[str, npt.NDArray[np.floating[Any]]]
    network: Network
    importance: FloatArray
    training: dict[str, Any]


@dataclass(frozen=True)
class Split:
    """Positions of the rows that train and of those that decide when to stop."""

    train: IntArray
    validation: IntArray


def split_rows(rows: IntArray, places: IntArray, config: TFTConfig) -> Split:
    """Return the latest rows for validation and, before them, those whose label is settled when it begins.

    The label of a row is settled at the close of the bar ``horizon`` bars later. A row trains if that is no later than
    the close of the first validation row, from which on the labels of the validation look.

    Parameters
    ----------
    rows
        Positions, ascending.
    places
        Bar of each row of the frame.
    """
    held = min(max(1, round(config.validation_share * len(rows))), len(rows))
    validation = rows[len(rows) - held :]
    train = rows[: len(rows) - held]
    if len(train):
        train = train[places[train] + config.horizon <= places[validation[0]]]
    return Split(train, validation)


def fit_network(
    matrix: FloatArray,
    open_ms: IntArray,
    y: pd.DataFrame,
    rows: IntArray,
    weight: FloatArray,
    config: TFTConfig,
) -> Fitted:
    """Train on rows of a checked frame.

    Rows without enough context, without any feature or with weight 0 are left out, then all but the last
    ``max_samples``. Features are chosen and scaled on the rows that train, not on those that validate.

    Parameters
    ----------
    matrix, open_ms
        All rows of the frame; those outside of ``rows`` are context.
    y
        Outcomes of the frame. Read are those of ``rows``, and ``next_ret`` inside their label intervals.
    rows, weight
        Positions, ascending, and a number >= 0 for each.

    Raises
    ------
    TrainingDataError
        If too few rows are left, nothing varies, or the score is not the return over the horizon.
    FeatureMismatchError
        If the bars are not regular.
    """
    from mlbot_core.models.tft_train import Rows, train_network

    bar_ms = bar_length(open_ms)
    places = grid_places(open_ms, bar_ms)
    fit = (rows >= config.encoder_length - 1) & (weight > 0.0) & ~blank_rows(matrix[rows])
    given = len(rows)
    rows, weight = rows[fit][-config.max_samples :], weight[fit][-config.max_samples :]
    parts = split_rows(rows, places, config)
    _require(parts, given, config)
    weights = np.zeros(len(matrix))
    weights[rows] = weight
    score = y["score"].to_numpy(dtype=np.float64)
    scaling = fit_scaling(matrix[parts.train], score[parts.train], weights[parts.train], config)
    bars = make_bars(matrix, open_ms, bar_ms, scaling, config.horizon)
    parts = Split(*(part[bars.usable(part, config)] for part in (parts.train, parts.validation)))
    _require(parts, given, config)

    def made(part: IntArray) -> Rows:
        target, known = step_targets(part, places, y, config)
        own = known * weights[part][:, None]
        return Rows(places[part], target, own / own.mean())

    train, validation = made(parts.train), made(parts.validation)
    features = len(scaling.chosen)
    trained = train_network(bars.inputs, train, validation, features, config)
    network = network_from(trained.weights)
    _check_export(bars.inputs, validation.last, network, trained.probe, config)
    _, selection = select_bars(bars.inputs[places[parts.train]], network.encoder, config.hidden_size)
    training = {
        "rows": len(parts.train),
        "validation_rows": len(parts.validation),
        "left_out": given - len(parts.train) - len(parts.validation),
        "epochs": len(trained.val_loss),
        "best_epoch": trained.best_epoch,
        "train_loss": trained.train_loss,
        "validation_loss": trained.val_loss,
        "device": trained.device,
    }
    return Fitted(scaling, bar_ms, trained.weights, network, selection.mean(axis=0)[:features], training)


def forecast_bars(
    inputs: FloatArray, last: IntArray, network: Network, config: TFTConfig
) -> tuple[FloatArray, FloatArray]:
    """Return quantiles of the score, shape (rows, levels), and the attention of the last decoder step.

    Parameters
    ----------
    inputs
        Of every bar, as :func:`mlbot_core.models.tft_data.make_bars` lays them out.
    last
        Last bar of each window.
    """
    past, _ = select_bars(inputs, network.encoder, config.hidden_size)
    every, steps = config.horizon // config.decoder_steps, config.decoder_steps
    ahead = future_bars(inputs, network, config)
    quantiles, attention = forecast_windows(past, ahead, last, config.encoder_length, every, steps, steps - 1, network)
    return quantiles[:, 0], attention


def future_bars(inputs: FloatArray, network: Network, config: TFTConfig) -> FloatArray:
    """Return what the decoder makes of each bar's calendar, shape (bars, hidden)."""
    return select_bars(np.ascontiguousarray(inputs[:, -len(CALENDAR) :]), network.decoder, config.hidden_size)[0]


def _require(parts: Split, given: int, config: TFTConfig) -> None:
    if len(parts.train) < _MIN_TRAIN or len(parts.validation) < _MIN_VALIDATION:
        raise TrainingDataError(
            f"of {given} rows, {len(parts.train)} can train and {len(parts.validation)} validate; {_MIN_TRAIN} and "
            f"{_MIN_VALIDATION} are needed, each with {config.encoder_length} bars of context, of which at most "
            f"{config.max_unknown:.0%} are missing, and {config.horizon} bars between the two: train on a longer range"
        )


def _check_export(inputs: FloatArray, last: IntArray, network: Network, probe: FloatArray, config: TFTConfig) -> None:
    mine, _ = forecast_bars(inputs, last[: len(probe)], network, config)
    off = float(np.abs(mine - probe).max())
    if not off <= _EXPORT_TOLERANCE:
        raise ExportError(
            f"the exported network differs from the trained one by {off:.3g} barrier widths; the installed "
            "pytorch-forecasting builds another graph than mlbot_core/models/tft_infer.py; install the pinned release"
        )
