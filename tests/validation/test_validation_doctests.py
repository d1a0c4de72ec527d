"""The examples in the docstrings run and show what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "bootstrap",
    "cpcv",
    "effective_trials",
    "inner_splits",
    "intervals",
    "overfitting",
    "purged",
    "resampling",
    "spa",
    "walk_forward_cv",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"mlbot_core.validation.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
