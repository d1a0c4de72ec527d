"""The document of the risk state machine is what the code does today."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mlbot_core.decision.state import CAUSES, LEVELS

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_risk_table", DOCS / "make_risk_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def test_the_committed_document_is_current(script: ModuleType) -> None:
    committed = (DOCS / "risk.md").read_text(encoding="utf-8")
    assert committed == script.document(), "run `python docs/make_risk_table.py`"


def test_no_level_is_left_downwards_but_by_its_own_rule(script: ModuleType) -> None:
    """What may lower a level, read from the enumeration itself and not from the code behind it."""
    lowers = {
        "REDUCE_ONLY": "every observed cause is lowered",
        "FLAT_TODAY": "first mark of the next UTC day",
        "HALTED": "a person re-arms",
    }
    for level, name in enumerate(LEVELS):
        for event in script.events():
            reached = script.transition(level, event).split(" or ")
            lower = [other for other in reached if other != "refused" and LEVELS.index(other) < level]
            assert bool(lower) == (event.words == lowers.get(name)), (name, event.words, reached)


def test_every_cause_is_entered_and_cleared_somewhere(script: ModuleType) -> None:
    shown = list(script.events())
    for cause in CAUSES:
        entered = [e for e in shown if (state := script.after(0, e)) is not None and state.causes & cause.bit]
        left = [e for e in shown if (state := script.after(cause.bit, e)) is not None and not state.causes & cause.bit]
        assert entered, cause.name
        assert left, cause.name
