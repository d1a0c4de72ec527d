"""The hash of a feature set covers the code behind it: its own kernels and helpers, and nobody else's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlbot_core.features
from mlbot_core.features import feature_set
from mlbot_core.features import registry as r
from mlbot_core.features.identity import code_identity

KERNEL = """
import numpy as np
from numba import njit

@njit
def twice(x):
    return x * FACTOR

FACTOR = 2.0
"""
FAMILY = """
from functools import partial
from mlbot_core.features import toy_kernels as t
from mlbot_core.features import kernels as k
from mlbot_core.timeframe import HOUR_MS

SHIFT = 3
TABLE = {"a": (1, 2)}

def helper(x):
    return x + SHIFT + TABLE["a"][0]

def uses_kernel(x):
    return t.twice(helper(x))

def uses_none(x):
    return x / HOUR_MS

def uses_library(x):
    import talib
    return talib.SMA(x, 5)

def maker(n):
    def inner(x):
        return k.mean(x, n)
    return inner
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A kernel module and a family module beside the real ones."""
    monkeypatch.setattr(mlbot_core.features, "__path__", [*mlbot_core.features.__path__, str(tmp_path)])
    (tmp_path / "toy_kernels.py").write_text(KERNEL)
    (tmp_path / "toy.py").write_text(FAMILY)
    yield tmp_path
    for name in ("toy", "toy_kernels"):
        sys.modules.pop(f"mlbot_core.features.{name}", None)
        vars(mlbot_core.features).pop(name, None)


def identity(folder: Path, function: str, *, family: str = FAMILY, kernel: str = KERNEL) -> dict[str, str]:
    import linecache

    (folder / "toy_kernels.py").write_text(kernel)
    (folder / "toy.py").write_text(family)
    for name in ("toy", "toy_kernels"):
        sys.modules.pop(f"mlbot_core.features.{name}", None)
        vars(mlbot_core.features).pop(name, None)
    linecache.clearcache()
    importlib.invalidate_caches()
    for stale in (folder / "__pycache__").glob("*"):
        stale.unlink()
    module = importlib.import_module("mlbot_core.features.toy")
    return code_identity(getattr(module, function), frozenset({"mlbot_core.features.toy"}))


def test_a_changed_kernel_file_changes_those_that_use_it_and_no_other(toys: Path) -> None:
    changed = KERNEL + "\n\ndef another(x):\n    return x\n"
    assert identity(toys, "uses_kernel") != identity(toys, "uses_kernel", kernel=changed)
    assert identity(toys, "uses_none") == identity(toys, "uses_none", kernel=changed)
    assert identity(toys, "maker") == identity(toys, "maker", kernel=changed)
    assert "mlbot_core.features.toy_kernels" in identity(toys, "uses_kernel")


@pytest.mark.parametrize(
    ("before", "after"),
    [("SHIFT = 3", "SHIFT = 4"), ('"a": (1, 2)', '"a": (1, 3)'), ("return x + SHIFT", "return x - SHIFT")],
)
def test_helpers_and_constants_of_the_own_module_count_where_they_are_used(toys: Path, before: str, after: str) -> None:
    changed = FAMILY.replace(before, after)
    assert changed != FAMILY
    assert identity(toys, "uses_kernel") != identity(toys, "uses_kernel", family=changed)
    assert identity(toys, "uses_none") == identity(toys, "uses_none", family=changed)


def test_constants_of_other_rooms_libraries_and_inner_functions_are_seen(toys: Path) -> None:
    assert identity(toys, "uses_none")["mlbot_core.features.toy.HOUR_MS"] == "3600000"
    assert identity(toys, "uses_library")["talib"][0].isdigit()
    found = identity(toys, "maker")
    assert "mlbot_core.features.kernels" in found, "named by the inner function"


def test_kernel_modules_of_real_features_are_found() -> None:
    homes = frozenset(r.node(name).compute.__module__ for name in feature_set("core", 240).order)
    found = code_identity(r.node("ret_4").compute, homes)
    assert "mlbot_core.features.elementwise" in found
    assert "mlbot_core.features.kernels" not in found
    assert "mlbot_core.features.kernels" in code_identity(r.node("vol_48").compute, homes)
    assert (
        not {"mlbot_core.features.registry", "mlbot_core.features.panel"}
        & code_identity(r.node("vol_48").compute, homes).keys()
    )


def test_every_compute_function_can_be_traced() -> None:
    homes = frozenset(r.node(name).compute.__module__ for name in feature_set("full", 240).order)
    for name in feature_set("full", 240).order:
        compute = r.node(name).compute
        assert any(compute.__module__ in key for key in code_identity(compute, homes)), name
