"""The weights of a trained Temporal Fusion Transformer: their names, their shapes, and how loops take them.

The names nest as the network does (``encoder.flat.w1``); the graph is that of pytorch-forecasting in evaluation,
without static variables and categories.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

REPRODUCES: Final = "pytorch-forecasting 1.8 TemporalFusionTransformer"
"""The graph that these loops follow; an artefact of another one is refused."""


class Grn(NamedTuple):
    """Gated residual network; weights are (inputs, outputs), a context is folded into ``b1``."""

    w1: FloatArray
    b1: FloatArray
    w2: FloatArray
    b2: FloatArray
    wg: FloatArray
    bg: FloatArray
    nw: FloatArray
    nb: FloatArray


class Gate(NamedTuple):
    """Gated linear unit, skip connection and layer norm."""

    wg: FloatArray
    bg: FloatArray
    nw: FloatArray
    nb: FloatArray


class Selection(NamedTuple):
    """Variable selection: one small network a variable (first axis), and one that weighs them.

    ``r_gate, rw, rb`` belong to the residual of a variable, ``f_gate, fw, fb`` to that of the weights, each resampled
    to the width it is added to.
    """

    pw: FloatArray
    pb: FloatArray
    w1: FloatArray
    b1: FloatArray
    w2: FloatArray
    b2: FloatArray
    wg: FloatArray
    bg: FloatArray
    nw: FloatArray
    nb: FloatArray
    r_gate: FloatArray
    rw: FloatArray
    rb: FloatArray
    f_gate: FloatArray
    fw: FloatArray
    fb: FloatArray
    flat: Grn


class Lstm(NamedTuple):
    """One layer; gates in the order input, forget, cell, output, both biases added up."""

    wx: FloatArray
    wh: FloatArray
    b: FloatArray


class Attention(NamedTuple):
    """Interpretable attention: queries and keys a head (first axis), values shared by all."""

    wq: FloatArray
    bq: FloatArray
    wk: FloatArray
    bk: FloatArray
    wv: FloatArray
    bv: FloatArray
    wo: FloatArray


class Network(NamedTuple):
    """All weights, float64; the nesting is that of the names in the artefact (``encoder.flat.w1``)."""

    encoder: Selection
    decoder: Selection
    h0: FloatArray
    c0: FloatArray
    lstm_encoder: Lstm
    lstm_decoder: Lstm
    lstm_gate: Gate
    enrich: Grn
    attention: Attention
    attention_gate: Gate
    feed: Grn
    output_gate: Gate
    wo: FloatArray
    bo: FloatArray


_NESTED: Final[Mapping[str, Any]] = {
    "encoder": Selection,
    "decoder": Selection,
    "flat": Grn,
    "lstm_encoder": Lstm,
    "lstm_decoder": Lstm,
    "lstm_gate": Gate,
    "enrich": Grn,
    "attention": Attention,
    "attention_gate": Gate,
    "feed": Grn,
    "output_gate": Gate,
}


def network_from(weights: Mapping[str, npt.NDArray[np.floating[Any]]]) -> Network:
    """Return the network of named weights.

    Raises
    ------
    ValueError
        If a name is missing or unknown.
    """
    left = dict(weights)

    def build(kind: Any, prefix: str) -> Any:
        return kind(*(field(name, f"{prefix}{name}") for name in kind._fields))

    def field(name: str, path: str) -> Any:
        if name in _NESTED and path not in left:
            return build(_NESTED[name], f"{path}.")
        if path not in left:
            raise ValueError(f"the weights lack {path}")
        return np.ascontiguousarray(left.pop(path), dtype=np.float64)

    network = cast(Network, build(Network, ""))
    if left:
        raise ValueError(f"the weights hold the unknown {', '.join(sorted(left))}")
    return network


def weight_shapes(
    variables: int, known: int, hidden: int, small: int, heads: int, outputs: int
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight by its name.

    Parameters
    ----------
    variables, known
        Inputs of the encoder and of the decoder.
    hidden, small, heads
        ``hidden_size``, ``hidden_continuous_size`` and ``attention_heads`` of the configuration.
    outputs
        Number of quantiles.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def grn(name: str, inside: int, middle: int, outside: int) -> None:
        shapes.update({f"{name}.w1": (inside, middle), f"{name}.b1": (middle,)})
        shapes.update({f"{name}.w2": (middle, middle), f"{name}.b2": (middle,)})
        gate(name, middle, outside)

    def gate(name: str, inside: int, outside: int) -> None:
        shapes.update({f"{name}.wg": (inside, 2 * outside), f"{name}.bg": (2 * outside,)})
        shapes.update({f"{name}.nw": (outside,), f"{name}.nb": (outside,)})

    for name, v in (("encoder", variables), ("decoder", known)):
        shapes.update({f"{name}.{key}": (v, small) for key in ("pw", "pb", "b1", "b2")})
        shapes.update({f"{name}.{key}": (v, small, small) for key in ("w1", "w2")})
        shapes.update({f"{name}.wg": (v, small, 2 * hidden), f"{name}.bg": (v, 2 * hidden)})
        shapes.update({f"{name}.{key}": (v, hidden) for key in ("nw", "nb", "r_gate", "rw", "rb")})
        shapes.update({f"{name}.{key}": (v,) for key in ("f_gate", "fw", "fb")})
        grn(f"{name}.flat", v * small, min(hidden, v), v)
    for name in ("lstm_encoder", "lstm_decoder"):
        shapes.update({f"{name}.wx": (hidden, 4 * hidden), f"{name}.wh": (hidden, 4 * hidden)})
        shapes[f"{name}.b"] = (4 * hidden,)
    for name in ("lstm_gate", "attention_gate", "output_gate"):
        gate(name, hidden, hidden)
    for name in ("enrich", "feed"):
        grn(name, hidden, hidden, hidden)
    depth = hidden // heads
    shapes.update({f"attention.{key}": (heads, hidden, depth) for key in ("wq", "wk")})
    shapes.update({f"attention.{key}": (heads, depth) for key in ("bq", "bk")})
    shapes.update({"attention.wv": (hidden, depth), "attention.bv": (depth,), "attention.wo": (depth, hidden)})
    shapes.update({"h0": (hidden,), "c0": (hidden,), "wo": (hidden, outputs), "bo": (outputs,)})
    return shapes
