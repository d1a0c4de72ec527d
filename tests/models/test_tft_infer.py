"""The compiled loops against the network of pytorch-forecasting, and the training network against the plain one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbot_core.config import TFTConfig
from mlbot_core.models.tft_data import CALENDAR
from mlbot_core.models.tft_infer import forecast_windows, select_bars, toggle_windows
from mlbot_core.models.tft_pack import pack
from mlbot_core.models.tft_process import quiet
from mlbot_core.models.tft_weights import network_from, weight_shapes


def small(**changes: Any) -> TFTConfig:
    base = {
        "horizon": 6,
        "decoder_steps": 3,
        "encoder_length": 5,
        "hidden_size": 8,
        "hidden_continuous_size": 4,
        "attention_heads": 2,
        "max_features": 3,
        "batch_size": 8,
        "block": 4,
    }
    return TFTConfig.model_validate({**base, **changes})


def random_network(config: TFTConfig, features: int, seed: int) -> Any:
    """A network whose every weight is random, in float64: fresh ones have biases of 0 and gates of 1."""
    import torch

    from mlbot_core.models.tft_train import make_network

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(config, features).double().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.4 * torch.randn_like(parameter))
    return network


def random_inputs(config: TFTConfig, features: int, bars: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(bars + config.horizon, features + 1 + len(CALENDAR)))


def theirs(network: Any, inputs: np.ndarray, last: np.ndarray, config: TFTConfig) -> dict[str, np.ndarray]:
    """What pytorch-forecasting says of windows."""
    import torch

    past = last[:, None] + np.arange(1 - config.encoder_length, 1)
    ahead = last[:, None] + config.horizon // config.decoder_steps * np.arange(1, config.decoder_steps + 1)
    n = len(last)
    with torch.no_grad():
        out = network(
            {
                "encoder_cont": torch.from_numpy(inputs[past]),
                "decoder_cont": torch.from_numpy(inputs[ahead]),
                "encoder_cat": torch.zeros(n, config.encoder_length, 0, dtype=torch.int64),
                "decoder_cat": torch.zeros(n, config.decoder_steps, 0, dtype=torch.int64),
                "encoder_lengths": torch.full((n,), config.encoder_length),
                "decoder_lengths": torch.full((n,), config.decoder_steps),
                "target_scale": torch.zeros(n, 2, dtype=torch.float64),
            }
        )
    return {key: out[key].numpy() for key in ("prediction", "encoder_attention", "encoder_variables")}


def mine(network: Any, inputs: np.ndarray, last: np.ndarray, config: TFTConfig) -> tuple[np.ndarray, np.ndarray]:
    past, _ = select_bars(inputs, network.encoder, config.hidden_size)
    ahead, _ = select_bars(np.ascontiguousarray(inputs[:, -len(CALENDAR) :]), network.decoder, config.hidden_size)
    every = config.horizon // config.decoder_steps
    return forecast_windows(past, ahead, last, config.encoder_length, every, config.decoder_steps, 0, network)


@pytest.mark.parametrize(
    ("features", "changes"),
    [
        (3, {}),
        (1, {"decoder_steps": 1, "encoder_length": 1, "attention_heads": 1}),
        (20, {"decoder_steps": 6, "hidden_size": 16, "hidden_continuous_size": 8, "attention_heads": 4}),
        (7, {"encoder_length": 9, "hidden_size": 12, "hidden_continuous_size": 5, "attention_heads": 3}),
    ],
    ids=["three", "least", "default widths", "odd widths"],
)
def test_the_loops_are_the_network_of_pytorch_forecasting(features: int, changes: dict[str, Any]) -> None:
    config = small(**changes)
    network = random_network(config, features, seed=features)
    weights = pack(network, features, np.float64)
    shapes = weight_shapes(
        features + 1 + len(CALENDAR),
        len(CALENDAR),
        config.hidden_size,
        config.hidden_continuous_size,
        config.attention_heads,
        len(config.quantiles),
    )
    assert {name: value.shape for name, value in weights.items()} == shapes
    own = network_from(weights)
    inputs = random_inputs(config, features, 30, seed=1)
    last = np.arange(config.encoder_length - 1, 30, 2)
    said = theirs(network, inputs, last, config)
    quantiles, attention = mine(own, inputs, last, config)
    np.testing.assert_allclose(quantiles, said["prediction"], rtol=0, atol=1e-9)
    assert np.ptp(quantiles) > 0.1
    last_step = said["encoder_attention"][:, -1].mean(axis=1)
    np.testing.assert_allclose(attention[:, : config.encoder_length], last_step, rtol=0, atol=1e-9)
    np.testing.assert_allclose(attention.sum(axis=1), 1.0, atol=1e-12)
    _, selection = select_bars(inputs[last], own.encoder, config.hidden_size)
    np.testing.assert_allclose(selection, said["encoder_variables"][:, -1, 0], rtol=0, atol=1e-9)


def test_training_selects_each_bar_once_and_says_the_same() -> None:
    import torch

    from mlbot_core.models.tft_train import Batches, Rows, make_learner

    config = small()
    network = random_network(config, 3, seed=4).float()
    learner = make_learner(network, config).eval()
    inputs = random_inputs(config, 3, 40, seed=2)
    last = np.array([4, 5, 6, 7, 20, 21, 30, 39])
    rows = Rows(last, np.zeros((len(last), 3)), np.ones((len(last), 3)))
    batch = Batches(inputs, rows, config, shuffle=False).batch(np.arange(len(last)))
    assert len(batch["bars"]) < batch["places"].numel()
    with torch.no_grad():
        shared = learner.quantiles(batch).numpy()
    plain = theirs(network.double(), inputs, last, config)["prediction"]
    np.testing.assert_allclose(shared, plain, rtol=0, atol=1e-5)


def test_nothing_of_the_future_but_its_calendar_reaches_a_batch() -> None:
    from mlbot_core.models.tft_train import Batches, Rows

    config = small()
    inputs = random_inputs(config, 3, 40, seed=2)
    last = np.array([10, 11])
    rows = Rows(last, np.zeros((2, 3)), np.ones((2, 3)))
    later = inputs.copy()
    later[12:, : -len(CALENDAR)] = 1e9
    one, two = (Batches(z, rows, config, False).batch(np.arange(2)) for z in (inputs, later))
    assert all(bool((one[key] == two[key]).all()) for key in ("bars", "places", "target", "weight"))
    assert all(bool((one["x"][key] == two["x"][key]).all()) for key in one["x"])
    np.testing.assert_allclose(one["x"]["decoder_cont"][0, :, -5:].numpy(), inputs[[12, 14, 16], -5:], rtol=1e-6)


def test_batches_hold_each_row_once_in_blocks_and_another_order_each_pass() -> None:
    from mlbot_core.models.tft_train import Batches, Rows

    config = small()
    last = np.arange(10, 47)
    rows = Rows(last, last[:, None] * np.ones((1, 3)), np.ones((len(last), 3)))
    batches = Batches(random_inputs(config, 3, 60, seed=2), rows, config, shuffle=True)
    passes = [[b["target"][:, 0].numpy().astype(int) for b in batches] for _ in range(2)]
    for one in passes:
        assert sorted(np.concatenate(one)) == list(last)
        assert len(one) == len(batches)
        steps = np.diff(np.concatenate(one))
        assert (steps == 1).mean() > 0.5
        assert (steps != 1).any()
    assert not np.array_equal(np.concatenate(passes[0]), np.concatenate(passes[1]))
    again = Batches(random_inputs(config, 3, 60, seed=2), rows, config, shuffle=True)
    np.testing.assert_array_equal(np.concatenate([b["target"][:, 0].numpy() for b in again]), np.concatenate(passes[0]))


@pytest.fixture(scope="module")
def exported() -> Any:
    config = small()
    return config, network_from(pack(random_network(config, 3, seed=9), 3, np.float64))


@given(start=st.integers(4, 40), count=st.integers(1, 20))
def test_a_window_is_the_same_bits_alone_and_among_others(exported: Any, start: int, count: int) -> None:
    config, network = exported
    inputs = random_inputs(config, 3, 61, seed=3)
    last = np.arange(start, start + count)
    together, attention = mine(network, inputs, last, config)
    for at in (0, count - 1):
        lone, own = mine(network, inputs[: last[at] + 1 + config.horizon], last[[at]], config)
        np.testing.assert_array_equal(lone[0], together[at])
        np.testing.assert_array_equal(own[0], attention[at])


def test_features_appear_one_after_the_other(exported: Any) -> None:
    config, network = exported
    inputs = random_inputs(config, 3, 20, seed=5)
    last = np.array([10, 15])
    ahead, _ = select_bars(np.ascontiguousarray(inputs[:, -len(CALENDAR) :]), network.decoder, config.hidden_size)
    order = np.array([[2, 0, 1]])
    got = toggle_windows(inputs, ahead, last, config.encoder_length, 2, 3, order, network)
    shown: list[int] = []
    for step in range(4):
        masked = inputs.copy()
        masked[:, [v for v in range(3) if v not in shown]] = 0.0
        quantiles, _ = mine(network, masked, last, config)
        np.testing.assert_array_equal(got[:, 0, step], quantiles[:, -1])
        shown += [int(order[0, step])] if step < 3 else []


def test_weights_that_lack_or_add_a_name_are_refused() -> None:
    config = small()
    weights = pack(random_network(config, 3, seed=1), 3, np.float32)
    with pytest.raises(ValueError, match=r"lack encoder\.flat\.w1"):
        network_from({k: v for k, v in weights.items() if k != "encoder.flat.w1"})
    with pytest.raises(ValueError, match="unknown more"):
        network_from({**weights, "more": weights["bo"]})
