"""Sorting by fixed networks of compare-exchanges, so that one window after the other is sorted side by side.

A network (Batcher, 1968, Sorting networks and their applications; Knuth, The Art of Computer Programming 3, 5.3.4) is
a list of pairs of wires: each pair puts the lesser of its two values on the first wire. Every window takes the same
steps, whatever its values, which is what the compiler vectorises. Longer windows are merged from shorter sorted ones.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]
Network = npt.NDArray[np.int64]
Wires = list[int]


def sorter(size: int) -> tuple[Network, Wires]:
    """Return a network that sorts ``size`` wires, and the wires in ascending order of what they then hold."""
    pairs: list[tuple[int, int]] = []
    order = _sort(list(range(size)), pairs)
    return _network(pairs), order


def merger(older: Wires, recent: Wires, wanted: Iterable[int] | None = None) -> tuple[Network, Wires]:
    """Return a network that merges two sorted lists: the first on wires 0 ..., the second on those behind it.

    Parameters
    ----------
    older, recent
        Order of the wires of each list, as it was returned for it.
    wanted
        Places (from 0) of the merged order that are needed; steps that only serve others are left out. None: all.

    Returns
    -------
    tuple
        The network, and the wires in ascending order of what they then hold.
    """
    pairs: list[tuple[int, int]] = []
    order = _merge(older, [len(older) + wire for wire in recent], pairs)
    if wanted is not None:
        needed = {order[place] for place in wanted}
        kept = []
        for pair in reversed(pairs):
            if needed.intersection(pair):
                needed.update(pair)
                kept.append(pair)
        pairs = kept[::-1]
    return _network(pairs), order


def _sort(wires: Wires, pairs: list[tuple[int, int]]) -> Wires:
    if len(wires) < 2:
        return wires
    half = len(wires) // 2
    return _merge(_sort(wires[:half], pairs), _sort(wires[half:], pairs), pairs)


def _merge(a: Wires, b: Wires, pairs: list[tuple[int, int]]) -> Wires:
    """Merge by Batcher's odd-even rule, for lists of any two lengths; note the pairs, return the merged order."""
    if not a or not b:
        return a or b
    if len(a) == len(b) == 1:
        pairs.append((a[0], b[0]))
        return [a[0], b[0]]
    even, odd = _merge(a[::2], b[::2], pairs), _merge(a[1::2], b[1::2], pairs)
    order = [even[0]]
    for upper, lower in zip(even[1:], odd, strict=False):
        pairs.append((lower, upper))
        order += [lower, upper]
    done = (len(order) - 1) // 2
    return order + even[1 + done :] + odd[done:]


def _network(pairs: list[tuple[int, int]]) -> Network:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


@njit(cache=True, error_model="numpy")
def apply(network: Network, rows: Array) -> None:
    """Run a network over the rows of a matrix (wires, windows), in place; there must be no NaN."""
    for step in range(network.shape[0]):
        lesser = rows[network[step, 0]]
        greater = rows[network[step, 1]]
        for q in range(lesser.size):
            a = lesser[q]
            b = greater[q]
            lesser[q] = a if a < b else b
            greater[q] = b if a < b else a
