"""Features are declared, not listed by hand: the registry knows their inputs, order, warm-up, hash and description.

A family is a module of this package. There ``@intermediate`` declares a column that several features share and
``@feature`` a feature; both are pure functions of arrays, one value a bar. ``lookback`` is how many bars before the
current one the function itself reaches back in its inputs; the registry adds what the inputs need.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from mlbot_core.errors import UsageError
from mlbot_core.features import elementwise, kernels
from mlbot_core.features.panel import AGE_COLUMNS, VALUE_COLUMNS

Array = npt.NDArray[np.float64]
Normalise = Literal["zscore", "none"]

ZSCORE_CLIP: Final = 8.0
"""Trailing z-scores are clipped to this many standard deviations either way, so that one crash bar or one corrupt
value cannot dominate a split; a genuine 8-sigma bar still stands out as one."""

_PANEL: Final = ("ts", *VALUE_COLUMNS, *AGE_COLUMNS)


@dataclass(frozen=True)
class Node:
    """A column computed from others.

    Parameters
    ----------
    name
        Column name.
    inputs
        Panel columns or intermediates, in the order of the function's arguments.
    lookback
        Bars before the current one that the function reads of its inputs.
    compute
        ``compute(*inputs) -> values``, all float64 of one length.
    """

    name: str
    inputs: tuple[str, ...]
    lookback: int
    compute: Callable[..., Array]
    parameter: int | None = None

    def values(self, *inputs: Array) -> Array:
        """Compute the column."""
        return self.compute(*inputs) if self.parameter is None else self.compute(*inputs, self.parameter)

    def identity(self) -> dict[str, object]:
        """Return what makes this column what it is, its code included."""
        return {
            "name": self.name,
            "inputs": list(self.inputs),
            "lookback": self.lookback,
            "parameter": self.parameter,
            "code": inspect.getsource(self.compute),
        }


@dataclass(frozen=True)
class Feature(Node):
    """A node that models see, with what people need to know about it."""

    family: str = ""
    unit: str = ""
    definition: str = ""
    source: str = ""
    normalise: Normalise = "zscore"


@dataclass(frozen=True)
class FeatureSet:
    """A named, hashed list of features.

    Parameters
    ----------
    name, features
        What it is called and holds, in column order.
    zscore_window
        Bars of the trailing window of the features whose ``normalise`` is ``zscore``.
    hash
        16 hexadecimal digits over every definition, the code behind it, the window and the clip: another hash is
        another feature set.
    lookback
        Bars before the current one that the slowest feature needs, its z-score included. A row can be computed from
        these and its own bar alone.
    """

    name: str
    features: tuple[Feature, ...]
    zscore_window: int
    hash: str
    lookback: int
    order: tuple[str, ...] = field(repr=False, default=())

    @property
    def names(self) -> tuple[str, ...]:
        """Column names, in order."""
        return tuple(feature.name for feature in self.features)


_NODES: Final[dict[str, Node]] = {}

_SETS: Final[Mapping[str, tuple[str, ...]]] = {
    "core": ("price", "volatility", "volume", "derivatives", "flow", "positioning", "calendar"),
    "price": ("price", "volatility", "volume", "calendar"),
}


def intermediate(inputs: tuple[str, ...], lookback: int = 0) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Declare a shared column, named like the function."""

    def declare(compute: Callable[..., Array]) -> Callable[..., Array]:
        _add(Node(getattr(compute, "__name__", repr(compute)), inputs, lookback, compute))
        return compute

    return declare


def feature(
    name: str,
    *,
    inputs: tuple[str, ...],
    unit: str,
    definition: str,
    source: str,
    lookback: int | Callable[[int], int] = 0,
    over: tuple[int, ...] = (),
    normalise: Normalise = "zscore",
) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Declare a feature, or one for each number in ``over``.

    Parameters
    ----------
    name, definition
        May hold ``{n}``, which stands for the number.
    inputs
        Panel columns or intermediates, handed over in this order.
    unit, source
        Of the raw value, before normalisation; the paper or book that it comes from.
    lookback
        Bars before the current one that the function reaches back, or a function of the number.
    over
        Numbers, usually windows in bars; each is passed as the last argument.
    normalise
        ``zscore``: what models see is the trailing z-score, clipped at ``ZSCORE_CLIP``; ``none``: the value itself.
    """

    def declare(compute: Callable[..., Array]) -> Callable[..., Array]:
        for n in over or (None,):
            reach = lookback if isinstance(lookback, int) else lookback(0 if n is None else n)
            text = {"n": n}
            _add(
                Feature(
                    name=name.format(**text),
                    inputs=inputs,
                    lookback=reach,
                    compute=compute,
                    parameter=n,
                    family=compute.__module__.rpartition(".")[2],
                    unit=unit,
                    definition=definition.format(**text),
                    source=source,
                    normalise=normalise,
                )
            )
        return compute

    return declare


def _add(node: Node) -> None:
    if node.name in _NODES or node.name in _PANEL:
        raise UsageError(f"feature column {node.name!r} is declared twice; choose another name")
    unknown = [name for name in node.inputs if name not in _NODES and name not in _PANEL]
    if unknown:
        raise UsageError(f"feature {node.name!r} needs {', '.join(unknown)}, which neither panel nor registry has yet")
    if node.lookback < 0:
        raise UsageError(f"feature {node.name!r} has lookback {node.lookback}; a feature never reads ahead")
    _NODES[node.name] = node


def node(name: str) -> Node:
    """Return a declared feature or intermediate by name."""
    return _NODES[name]


def total_lookback(name: str) -> int:
    """Return the bars before the current one that a column needs of the panel, its inputs' needs included."""
    if name in _PANEL:
        return 0
    this = _NODES[name]
    return this.lookback + max((total_lookback(other) for other in this.inputs), default=0)


def warm_up(feature: Feature, zscore_window: int) -> int:
    """Return the bars before the current one that a feature needs, its z-score included."""
    return total_lookback(feature.name) + (zscore_window - 1 if feature.normalise == "zscore" else 0)


def dependency_order(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return every declared column that ``names`` need, themselves included, each after its inputs."""
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in _PANEL or name in order:
            return
        for other in _NODES[name].inputs:
            visit(other)
        order[name] = None

    for name in names:
        visit(name)
    return tuple(order)


def make_feature_set(name: str, features: tuple[Feature, ...], zscore_window: int) -> FeatureSet:
    """Return a feature set of the given features, with its order, lookback and hash computed."""
    order = dependency_order(tuple(feature.name for feature in features))
    identity = {
        "name": name,
        "zscore_window": zscore_window,
        "zscore_clip": ZSCORE_CLIP,
        "columns": [_NODES[column].identity() for column in order],
        "normalise": {feature.name: feature.normalise for feature in features},
        "library": [inspect.getsource(kernels), inspect.getsource(elementwise)],
    }
    reach = max((warm_up(f, zscore_window) for f in features), default=0)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return FeatureSet(name, features, zscore_window, digest, reach, order)


@cache
def feature_set(name: str, zscore_window: int) -> FeatureSet:
    """Return the named feature set.

    Parameters
    ----------
    name
        ``core`` (everything) or ``price`` (what needs nothing but price bars).
    zscore_window
        Bars of the trailing z-score, at least 2.

    Raises
    ------
    UsageError
        If there is no set of that name or the window is too short.
    """
    if name not in _SETS:
        raise UsageError(f"feature set {name!r} is unknown; choose one of {', '.join(_SETS)}")
    if zscore_window < 2:
        raise UsageError(f"a z-score over {zscore_window} bars has no deviation; use at least 2")
    return make_feature_set(name, tuple(f for f in all_features() if f.family in _SETS[name]), zscore_window)


def all_features() -> tuple[Feature, ...]:
    """Return every declared feature in the order of declaration."""
    return tuple(node for node in _NODES.values() if isinstance(node, Feature))


def describe() -> list[dict[str, object]]:
    """Return one row a feature for documentation and metadata; ``lookback`` is in bars, without the z-score's."""
    return [
        {
            "name": f.name,
            "family": f.family,
            "unit": f.unit,
            "definition": f.definition,
            "source": f.source,
            "inputs": panel_inputs(f.name),
            "lookback": total_lookback(f.name),
            "normalise": f.normalise,
        }
        for f in all_features()
    ]


def panel_inputs(name: str) -> list[str]:
    """Return the panel columns that a declared column rests on, directly or through others."""
    needed = {name for column in dependency_order((name,)) for name in _NODES[column].inputs if name in _PANEL}
    return [name for name in _PANEL if name in needed]
