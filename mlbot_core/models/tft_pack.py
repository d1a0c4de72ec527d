"""From the state of pytorch-forecasting's network to the weights that the compiled loops take."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mlbot_core.models.tft_data import CALENDAR, KNOWN

FloatArray = npt.NDArray[np.float64]
Weights = dict[str, npt.NDArray[np.floating[Any]]]


def variable_names(features: int) -> list[str]:
    """Return the network's own names of its inputs; those of the features may hold what torch does not allow."""
    return [*(f"x{i}" for i in range(features)), KNOWN, *CALENDAR]


def pack(network: Any, features: int, dtype: type[np.floating[Any]]) -> Weights:
    """Return the weights of a network of pytorch-forecasting by the names of :mod:`mlbot_core.models.tft_weights`.

    What depends on no input (without static variables: the contexts and the first states) is computed here, in
    float64, and folded into biases.
    """
    import torch

    state = {name: value.detach().double().numpy() for name, value in network.state_dict().items()}
    out: dict[str, FloatArray] = {}

    def gate(name: str, source: str, norm: str) -> None:
        out[f"{name}.wg"], out[f"{name}.bg"] = state[f"{source}.fc.weight"].T, state[f"{source}.fc.bias"]
        out[f"{name}.nw"], out[f"{name}.nb"] = state[f"{norm}.norm.weight"], state[f"{norm}.norm.bias"]

    def grn(name: str, source: str, context: FloatArray | None = None) -> None:
        out[f"{name}.w1"], out[f"{name}.b1"] = state[f"{source}.fc1.weight"].T, state[f"{source}.fc1.bias"]
        if context is not None:
            out[f"{name}.b1"] = out[f"{name}.b1"] + state[f"{source}.context.weight"] @ context
        out[f"{name}.w2"], out[f"{name}.b2"] = state[f"{source}.fc2.weight"].T, state[f"{source}.fc2.bias"]
        gate(name, f"{source}.gate_norm.glu", f"{source}.gate_norm.add_norm")

    def constant(source: str) -> FloatArray:
        module = getattr(network, source).double()
        with torch.no_grad():
            value = module(torch.zeros(1, network.hparams.hidden_size, dtype=torch.float64))
        return np.asarray(value.numpy()[0])

    def resample(source: str) -> tuple[FloatArray, FloatArray, FloatArray]:
        factor = 2.0 / (1.0 + np.exp(-state[f"{source}.mask"]))
        return factor, state[f"{source}.norm.weight"], state[f"{source}.norm.bias"]

    network.eval()
    context = constant("static_context_variable_selection")
    names = variable_names(features)
    for name, inputs in (("encoder", names), ("decoder", list(CALENDAR))):
        source = f"{name}_variable_selection"
        parts: dict[str, list[FloatArray]] = {}
        for variable in inputs:
            single = f"{source}.single_variable_grns.{variable}"
            own = {
                "pw": state[f"prescalers.{variable}.weight"][:, 0],
                "pb": state[f"prescalers.{variable}.bias"],
                "w1": state[f"{single}.fc1.weight"].T,
                "b1": state[f"{single}.fc1.bias"],
                "w2": state[f"{single}.fc2.weight"].T,
                "b2": state[f"{single}.fc2.bias"],
                "wg": state[f"{single}.gate_norm.glu.fc.weight"].T,
                "bg": state[f"{single}.gate_norm.glu.fc.bias"],
                "nw": state[f"{single}.gate_norm.add_norm.norm.weight"],
                "nb": state[f"{single}.gate_norm.add_norm.norm.bias"],
                **dict(zip(("r_gate", "rw", "rb"), resample(f"{single}.resample_norm"), strict=True)),
            }
            for key, value in own.items():
                parts.setdefault(key, []).append(value)
        out.update({f"{name}.{key}": np.stack(values) for key, values in parts.items()})
        flat = resample(f"{source}.flattened_grn.resample_norm")
        out.update({f"{name}.{key}": v for key, v in zip(("f_gate", "fw", "fb"), flat, strict=True)})
        grn(f"{name}.flat", f"{source}.flattened_grn", context)
        lstm = f"lstm_{name}"
        out[f"{lstm}.wx"], out[f"{lstm}.wh"] = (state[f"{lstm}.weight_{k}_l0"].T for k in ("ih", "hh"))
        out[f"{lstm}.b"] = state[f"{lstm}.bias_ih_l0"] + state[f"{lstm}.bias_hh_l0"]
    out["h0"] = constant("static_context_initial_hidden_lstm")
    out["c0"] = constant("static_context_initial_cell_lstm")
    gate("lstm_gate", "post_lstm_gate_encoder", "post_lstm_add_norm_encoder")
    grn("enrich", "static_enrichment", constant("static_context_enrichment"))
    heads = range(network.hparams.attention_head_size)
    for key, layer in (("q", "q_layers"), ("k", "k_layers")):
        out[f"attention.w{key}"] = np.stack([state[f"multihead_attn.{layer}.{i}.weight"].T for i in heads])
        out[f"attention.b{key}"] = np.stack([state[f"multihead_attn.{layer}.{i}.bias"] for i in heads])
    out["attention.wv"], out["attention.bv"] = (
        state["multihead_attn.v_layer.weight"].T,
        state["multihead_attn.v_layer.bias"],
    )
    out["attention.wo"] = state["multihead_attn.w_h.weight"].T
    gate("attention_gate", "post_attn_gate_norm.glu", "post_attn_gate_norm.add_norm")
    grn("feed", "pos_wise_ff")
    gate("output_gate", "pre_output_gate_norm.glu", "pre_output_gate_norm.add_norm")
    out["wo"], out["bo"] = state["output_layer.weight"].T, state["output_layer.bias"]
    return {name: np.ascontiguousarray(value, dtype=dtype) for name, value in out.items()}
