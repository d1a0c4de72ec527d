"""Training of the Temporal Fusion Transformer: the network of pytorch-forecasting in Lightning's loop.

The network selects variables bar by bar, and neighbouring windows share almost all of their bars. A batch is made of
blocks of successive rows, and each of its bars goes through the selection once: the same sums as bar by bar in every
window (with one dropout mask a bar instead of one a bar and window), in a tenth of the time.

Torch trains on one thread: its matrices are too small to share, and so the bytes do not depend on a number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlbot_core.config import TFTConfig
from mlbot_core.models.base import TrainingDataError
from mlbot_core.models.tft_data import CALENDAR
from mlbot_core.models.tft_pack import Weights, pack, variable_names
from mlbot_core.models.tft_process import ONE_AT_A_TIME, interruptible, quiet, torch_state

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_PROBE_ROWS: Final = 32


@dataclass(frozen=True)
class Rows:
    """Windows to train or validate on.

    Parameters
    ----------
    last
        Last bar of each window's encoder, ascending, shape (rows,).
    target
        Barrier widths at each decoder step, shape (rows, steps).
    weight
        Of each step, 0 where it is unknown, shape (rows, steps).
    """

    last: IntArray
    target: FloatArray
    weight: FloatArray


@dataclass(frozen=True)
class Trained:
    """Result of a training.

    Parameters
    ----------
    weights
        float32, by the names of :mod:`mlbot_core.models.tft_weights`.
    train_loss, val_loss
        Mean quantile loss of each epoch, barrier widths; of all steps in training, of the score in validation.
    best_epoch
        Number of the epoch whose weights these are, from 0.
    device
        ``cpu`` or ``cuda``.
    probe
        Quantiles of the score of the first rows of the validation by the trained network, shape (rows, levels).
    """

    weights: Weights
    train_loss: list[float]
    val_loss: list[float]
    best_epoch: int
    device: str
    probe: FloatArray


class Batches:
    """One pass over rows as batches of tensors; every training pass in another order, by the seed.

    Parameters
    ----------
    inputs
        Of every bar, shape (bars, variables), the calendar last; the horizon after the last row included.
    rows
        See :class:`Rows`.
    config
        Lengths, batch and block.
    shuffle
        Blocks in random order; in time otherwise.
    """

    def __init__(self, inputs: FloatArray, rows: Rows, config: TFTConfig, shuffle: bool) -> None:
        self._inputs = inputs.astype(np.float32)
        self._rows = rows
        self._config = config
        self._shuffle = shuffle
        self._passes = 0

    def __len__(self) -> int:
        return -(-len(self._rows.last) // self._config.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order = self._order()
        for begin in range(0, len(order), self._config.batch_size):
            yield self.batch(order[begin : begin + self._config.batch_size])

    def _order(self) -> IntArray:
        count, block = len(self._rows.last), self._config.block
        if not self._shuffle:
            return np.arange(count)
        generator = np.random.default_rng([self._config.seed, self._passes])
        self._passes += 1
        cuts = np.arange(int(generator.integers(1, block + 1)), count, block)
        blocks = np.split(np.arange(count), cuts)
        return np.concatenate([blocks[i] for i in generator.permutation(len(blocks))])

    def batch(self, at: IntArray) -> dict[str, Any]:
        """Return the tensors of some rows: what the network takes, each bar once, targets and weights."""
        import torch

        config, last = self._config, self._rows.last[at]
        length, steps = config.encoder_length, config.decoder_steps
        windows = last[:, None] + np.arange(1 - length, 1)
        bars, places = np.unique(windows, return_inverse=True)
        ahead = last[:, None] + config.horizon // steps * np.arange(1, steps + 1)
        known = np.zeros((len(at), steps, self._inputs.shape[1]), dtype=np.float32)
        known[..., -len(CALENDAR) :] = self._inputs[ahead][..., -len(CALENDAR) :]  # of the future nothing else is known
        return {
            "x": {
                # only its shape is read: the selection takes the bars instead
                "encoder_cont": torch.zeros(len(at), length, self._inputs.shape[1]),
                "decoder_cont": torch.from_numpy(known),
                "encoder_cat": torch.zeros(len(at), length, 0, dtype=torch.int64),
                "decoder_cat": torch.zeros(len(at), steps, 0, dtype=torch.int64),
                "encoder_lengths": torch.full((len(at),), length),
                "decoder_lengths": torch.full((len(at),), steps),
                "target_scale": torch.tensor([[0.0, 1.0]]).repeat(len(at), 1),
            },
            "bars": torch.from_numpy(self._inputs[bars]),
            "places": torch.from_numpy(places.reshape(windows.shape)),
            "target": torch.from_numpy(self._rows.target[at].astype(np.float32)),
            "weight": torch.from_numpy(self._rows.weight[at].astype(np.float32)),
        }


def make_network(config: TFTConfig, features: int) -> Any:
    """Return an untrained network of pytorch-forecasting, its weights drawn by torch's random state.

    Parameters
    ----------
    features
        Number of chosen features; the share known and the calendar come on top.
    """
    from pytorch_forecasting.metrics import QuantileLoss  # type: ignore[import-untyped]
    from pytorch_forecasting.models import TemporalFusionTransformer  # type: ignore[import-untyped]
    from torch import nn

    inputs = variable_names(features)
    network = TemporalFusionTransformer(
        hidden_size=config.hidden_size,
        hidden_continuous_size=config.hidden_continuous_size,
        attention_head_size=config.attention_heads,
        lstm_layers=1,
        dropout=config.dropout,
        output_size=len(config.quantiles),
        loss=QuantileLoss(quantiles=list(config.quantiles)),
        logging_metrics=nn.ModuleList([]),
        max_encoder_length=config.encoder_length,
        time_varying_reals_encoder=inputs,
        time_varying_reals_decoder=list(CALENDAR),
        x_reals=inputs,
    )
    # Targets are in barrier widths already; the library would scale outputs back by a fitted normaliser.
    network.transform_output = lambda prediction, target_scale, loss=None: prediction  # noqa: ARG005
    return network


def train_network(inputs: FloatArray, train: Rows, validation: Rows, features: int, config: TFTConfig) -> Trained:
    """Train until the validation stops getting better; return the best epoch's weights.

    Parameters
    ----------
    inputs
        As in :class:`Batches`.
    train, validation
        No label of ``train`` may reach into the first window end of ``validation``.
    features
        Number of chosen features among the inputs.

    Raises
    ------
    TrainingDataError
        If the loss is not a number.
    KeyboardInterrupt
        If the user interrupts.
    """
    import torch

    cuda = config.device == "auto" and torch.cuda.is_available()
    with ONE_AT_A_TIME, quiet(), torch_state(cuda):
        import lightning.pytorch as lightning

        torch.manual_seed(config.seed)
        learner = make_learner(make_network(config, features), config)
        best = _make_keeper()
        stop = lightning.callbacks.EarlyStopping("val_loss", patience=config.patience, mode="min")
        trainer = lightning.Trainer(
            accelerator="gpu" if cuda else "cpu",
            devices=1,
            max_epochs=config.max_epochs,
            gradient_clip_val=config.gradient_clip,
            deterministic="warn" if cuda else True,
            callbacks=[best, stop],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        with interruptible(best):
            trainer.fit(learner, Batches(inputs, train, config, True), Batches(inputs, validation, config, False))
        if best.state is None:
            raise TrainingDataError(
                f"the network's loss is not a number after {len(best.history)} epochs; lower tft.learning_rate in "
                "config/models.yaml"
            )
        learner.cpu().eval().network.load_state_dict(best.state)
        probe = Batches(inputs, validation, config, False).batch(np.arange(min(_PROBE_ROWS, len(validation.last))))
        with torch.no_grad():
            said = learner.quantiles(probe)[:, -1].numpy().astype(np.float64)
        weights = pack(learner.network, features, np.float32)
    device = "cuda" if cuda else "cpu"
    return Trained(weights, learner.train_losses, best.history, best.epoch, device, said)


def make_learner(network: Any, config: TFTConfig) -> Any:
    """Return the Lightning module that trains a network of :func:`make_network` on batches of :class:`Batches`."""
    import lightning.pytorch as lightning
    import torch

    class OncePerBar(torch.nn.Module):
        """Selects the variables of each bar of a batch once and hands every window its bars."""

        def __init__(self, selection: Any, names: list[str]) -> None:
            super().__init__()
            self.selection = selection
            self.names = names
            self.bars: Any = None
            self.places: Any = None

        def forward(self, x: dict[str, Any], context: Any) -> tuple[Any, Any]:  # noqa: ARG002
            columns = {name: self.bars[None, :, i, None] for i, name in enumerate(self.names)}
            out, weights = self.selection(columns, context[:1, :1].expand(1, len(self.bars), -1))
            return torch.nn.functional.embedding(self.places, out[0]), weights[0][self.places]

    class Learner(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.levels: torch.Tensor
            self.register_buffer("levels", torch.tensor(config.quantiles), persistent=False)
            self.train_losses: list[float] = []
            self._train = [0.0, 0]
            self._validation = [0.0, 0.0]

        def quantiles(self, batch: dict[str, Any]) -> Any:
            selection = self.network.encoder_variable_selection
            shared = OncePerBar(selection, list(self.network.hparams.x_reals))
            shared.bars, shared.places = batch["bars"], batch["places"]
            self.network.encoder_variable_selection = shared
            try:
                return self.network(batch["x"])["prediction"]
            finally:
                self.network.encoder_variable_selection = selection

        def losses(self, batch: dict[str, Any]) -> Any:
            error = batch["target"][..., None] - self.quantiles(batch)
            return torch.maximum(self.levels * error, (self.levels - 1) * error).mean(dim=-1)

        def training_step(self, batch: dict[str, Any], _: int) -> Any:
            loss = (self.losses(batch) * batch["weight"]).mean()
            self._train[0] += float(loss.detach()) * len(batch["target"])
            self._train[1] += len(batch["target"])
            return loss

        def on_train_epoch_end(self) -> None:
            self.train_losses.append(self._train[0] / self._train[1])
            self._train = [0.0, 0]

        def validation_step(self, batch: dict[str, Any], _: int) -> None:
            weight = batch["weight"][:, -1].double()
            self._validation[0] += float((self.losses(batch)[:, -1].double() * weight).sum())
            self._validation[1] += float(weight.sum())

        def on_validation_epoch_end(self) -> None:
            value = self._validation[0] / self._validation[1]
            self._validation = [0.0, 0.0]
            self.log("val_loss", torch.tensor(value, dtype=torch.float64))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(
                self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
            )

    return Learner()


def _make_keeper() -> Any:
    import lightning.pytorch as lightning

    class KeepBest(lightning.Callback):
        """Keeps the best epoch's weights in memory: Lightning's own checkpoints are pickles on disk."""

        def __init__(self) -> None:
            self.state: dict[str, Any] | None = None
            self.epoch = -1
            self.history: list[float] = []
            self.interrupted = False

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            loss = float(trainer.callback_metrics["val_loss"])
            if np.isfinite(loss) and loss < min(self.history, default=np.inf):
                self.epoch = len(self.history)
                self.state = {k: v.detach().cpu().clone() for k, v in pl_module.network.state_dict().items()}
            self.history.append(loss)

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
            self.interrupted = isinstance(exception, KeyboardInterrupt)

    return KeepBest()
