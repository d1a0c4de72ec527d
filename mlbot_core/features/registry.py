"""Features are declared, not listed by hand: the registry knows their inputs, order, warm-up, hash and description.

A family is a module of this package. There ``@intermediate`` declares a column that several features share and
``@feature`` a feature; both are pure functions of arrays, one value a bar. ``lookback`` is how many bars before the
current one the function itself reaches back in its inputs; the registry adds what the inputs need.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlbot_core.errors import UsageError
from mlbot_core.features.identity import code_identity
from mlbot_core.features.normalise import NORMALISERS, Normalise
from mlbot_core.features.panel import AGE_COLUMNS, VALUE_COLUMNS

Array = npt.NDArray[np.float64]

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
    compute: Callable[..., Any]
    parameter: int | None = None

    def values(self, *inputs: Array) -> Array:
        """Compute the column."""
        given = inputs if self.parameter is None else (*inputs, self.parameter)
        values: Array = self.compute(*given)
        return values

    def identity(self) -> dict[str, object]:
        """Return what makes this column what it is; its code is named here and hashed by :func:`make_feature_set`."""
        return {
            "name": self.name,
            "inputs": list(self.inputs),
            "lookback": self.lookback,
            "parameter": self.parameter,
            "code": f"{self.compute.__module__}.{self.compute.__qualname__}",
        }


@dataclass(frozen=True)
class Table(Node):
    """Several features that one pass computes together, because they share what it works out.

    ``compute(into, at, *inputs)`` fills the rows ``at[0], at[1], ...`` of ``into``, shape (rows, bars), one for each of
    ``columns``; a row of -1 is not wanted. Each column's own lookback is its feature's, the table has none.
    """

    columns: tuple[str, ...] = ()

    def values(self, *inputs: Array) -> Array:
        """Compute every column, shape (bars, columns)."""
        into = np.empty((len(self.columns), len(inputs[0])))
        self.compute(into, np.arange(len(self.columns)), *inputs)
        return into.T

    def identity(self) -> dict[str, object]:
        """Return what makes this table what it is."""
        return {**super().identity(), "columns": list(self.columns)}


@dataclass(frozen=True)
class Feature(Node):
    """A node that models see, with what people need to know about it."""

    family: str = ""
    unit: str = ""
    definition: str = ""
    source: str = ""
    normalise: Normalise = "zscore"


@dataclass(frozen=True)
class TableFeature(Feature):
    """A feature that is one column (``parameter``) of a table, its only input.

    Parameters
    ----------
    reads
        Panel columns and intermediates that this column of the table rests on; the others are for other columns.
    """

    reads: tuple[str, ...] = ()

    def values(self, *inputs: Array) -> Array:
        """Take the column out of the table."""
        return inputs[0][:, self.parameter]


@dataclass(frozen=True)
class FeatureSet:
    """A named, hashed list of features.

    Parameters
    ----------
    name, features
        What it is called and holds, in column order.
    zscore_window
        Bars of the trailing window of the features that are normalised.
    hash
        16 hexadecimal digits over every definition, the code behind it (its kernel modules included) and the window:
        another hash is another feature set.
    lookback
        Bars before the current one that the slowest feature needs, its normalisation included. A row can be computed
        from these and its own bar alone.
    order
        Every column to compute, each after its inputs.
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
_TABLE_OF: Final[dict[str, tuple[str, int]]] = {}
_NAME: Final = re.compile(r"^[a-z][a-z0-9_]*$")


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
    family: str | None = None,
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
        What models see: ``zscore``, ``rank``, ``robust`` or ``winsor`` of a trailing window, as
        :mod:`mlbot_core.features.normalise` says; ``none``: the value itself.
    family
        By default the module's name; families that fill several modules say it.
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
                    family=family or compute.__module__.rpartition(".")[2],
                    unit=unit,
                    definition=definition.format(**text),
                    source=source,
                    normalise=normalise,
                )
            )
        return compute

    return declare


def table(
    name: str, *, inputs: tuple[str, ...], columns: tuple[str, ...]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare a :class:`Table`; each of its columns is then declared with :func:`table_feature`."""

    def declare(compute: Callable[..., None]) -> Callable[..., None]:
        _add(Table(name, inputs, 0, compute, columns=columns))
        _TABLE_OF.update({column: (name, at) for at, column in enumerate(columns)})
        return compute

    return declare


def table_feature(
    name: str,
    *,
    unit: str,
    definition: str,
    source: str,
    family: str,
    lookback: int = 0,
    reads: tuple[str, ...] | None = None,
) -> None:
    """Declare a feature that a table fills, with the meaning of :func:`feature`; it is not normalised.

    ``reads``: what this column rests on, by default all inputs of the table.

    Raises
    ------
    UsageError
        If no table has a column of that name.
    """
    if name not in _TABLE_OF:
        raise UsageError(f"feature {name!r} is a column of no table; declare the table before it")
    home, at = _TABLE_OF[name]
    _add(
        TableFeature(
            name=name,
            inputs=(home,),
            lookback=lookback,
            compute=_NODES[home].compute,
            parameter=at,
            family=family,
            unit=unit,
            definition=definition,
            source=source,
            normalise="none",
            reads=_NODES[home].inputs if reads is None else reads,
        )
    )


def _add(node: Node) -> None:
    if not _NAME.match(node.name):
        raise UsageError(
            f"feature column {node.name!r} cannot name a column of the store; use lower-case letters, digits and _"
        )
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


@cache
def total_lookback(name: str) -> int:
    """Return the bars before the current one that a column needs of the panel, its inputs' needs included."""
    if name in _PANEL:
        return 0
    this = _NODES[name]
    return this.lookback + max((total_lookback(other) for other in this.inputs), default=0)


def warm_up(feature: Feature, zscore_window: int) -> int:
    """Return the bars before the current one that a feature needs, its normalisation included."""
    return total_lookback(feature.name) + (zscore_window - 1 if feature.normalise in NORMALISERS else 0)


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
    homes = frozenset(this.compute.__module__ for this in _NODES.values())
    code: dict[str, str] = {}
    for compute in dict.fromkeys(_NODES[column].compute for column in order):
        code |= code_identity(compute, homes)
    for kind in sorted({feature.normalise for feature in features} & NORMALISERS.keys()):
        code |= code_identity(NORMALISERS[kind], homes)
    identity = {
        "name": name,
        "zscore_window": zscore_window,
        "columns": [_NODES[column].identity() for column in order],
        "normalise": {feature.name: feature.normalise for feature in features},
        "code": {what: hashlib.sha256(text.encode()).hexdigest() for what, text in code.items()},
    }
    reach = max((warm_up(f, zscore_window) for f in features), default=0)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return FeatureSet(name, features, zscore_window, digest, reach, order)


def all_features() -> tuple[Feature, ...]:
    """Return every declared feature in the order of declaration."""
    return tuple(node for node in _NODES.values() if isinstance(node, Feature))


def describe(features: Iterable[Feature] | None = None) -> list[dict[str, object]]:
    """Return one row a feature (by default every one) for documentation and metadata.

    ``lookback`` is in bars and without the normalisation's.
    """
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
        for f in (all_features() if features is None else features)
    ]


def panel_inputs(name: str) -> list[str]:
    """Return the panel columns that a declared column rests on, directly or through others."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            this = _NODES.get(one)
            if this is not None:
                waiting.extend(this.reads if isinstance(this, TableFeature) else this.inputs)
    return [column for column in _PANEL if column in seen]
