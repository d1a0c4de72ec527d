"""A model version is stable, and every input changes it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.models.canonical import canonical_json, sha256_hex
from mlbot_core.models.version import VersionError, VersionInputs, code_version, library_versions, model_version

INPUTS = VersionInputs(
    code="c0de",
    market="BTC-2h",
    source="archive",
    partitions={"2024-01-01": "a1", "2024-02-01": "b2"},
    test_start_ms=1_700_000_000_000,
    test_end_ms=1_750_000_000_000,
    feature_set="f00d",
    targets={"horizon": 12, "barrier_width": 1.0},
    walk_forward={"train_days": 540},
    model_type="lightgbm",
    params={"learning_rate": 0.03},
    seed=7,
    libraries={"lightgbm": "4.7.0"},
)

OTHER: dict[str, Any] = {
    "code": "c0df",
    "market": "BTC-4h",
    "source": "emulator",
    "partitions": {"2024-01-01": "a1", "2024-02-01": "b3"},
    "test_start_ms": 1_700_000_000_001,
    "test_end_ms": 1_750_000_000_001,
    "feature_set": "f00e",
    "targets": {"horizon": 12, "barrier_width": 1.5},
    "walk_forward": {"train_days": 541},
    "model_type": "catboost",
    "params": {"learning_rate": 0.030000000000000002},
    "seed": 8,
    "libraries": {"lightgbm": "4.7.1"},
}


def test_golden() -> None:
    # Pinned: a change of the canonical form would silently rename every stored model.
    assert canonical_json({"b": [1, 2.5, None, True], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5,null,true]}'
    assert sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert model_version(INPUTS) == "4b7bbde327f55047df3f778941cecc1cb19dcd640e510363e6d059265f788e74"


def test_order_of_keys_does_not_matter() -> None:
    turned = dataclasses.replace(INPUTS, partitions=dict(reversed(INPUTS.partitions.items())))
    assert model_version(turned) == model_version(INPUTS)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(VersionInputs)])
def test_every_input_matters(name: str) -> None:
    assert model_version(dataclasses.replace(INPUTS, **{name: OTHER[name]})) != model_version(INPUTS)


def test_moving_a_value_between_partitions_matters() -> None:
    swapped = dataclasses.replace(INPUTS, partitions={"2024-01-01": "b2", "2024-02-01": "a1"})
    assert model_version(swapped) != model_version(INPUTS)


@pytest.mark.parametrize("value", [math.nan, math.inf, {1: 2}, Path("x"), {1, 2}])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(VersionError, match="plain JSON"):
        model_version(dataclasses.replace(INPUTS, params={"x": value}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100)
@given(json_values, json_values)
def test_different_values_have_different_texts(a: Any, b: Any) -> None:
    import json

    assert json.loads(canonical_json(a)) == a
    if canonical_json(a) == canonical_json(b):
        assert a == b


def test_code_version_reads_sources_and_nothing_else(tmp_path: Path) -> None:
    for base in (tmp_path / "a", tmp_path / "elsewhere" / "b"):
        for room in ("features", "models"):
            (base / room / "deep").mkdir(parents=True)
            (base / room / "__init__.py").write_text("")
            (base / room / "deep" / "x.py").write_text(f"{room} = 1\n")
    rooms = ("features", "models")
    first = code_version(tmp_path / "a", rooms)
    assert first == code_version(tmp_path / "elsewhere" / "b", rooms)
    (tmp_path / "a" / "models" / "__pycache__").mkdir()
    (tmp_path / "a" / "models" / "__pycache__" / "x.pyc").write_bytes(b"1")
    (tmp_path / "a" / "models" / "notes.txt").write_text("1")
    assert code_version(tmp_path / "a", rooms) == first
    (tmp_path / "a" / "models" / "deep" / "x.py").write_text("models = 2\n")
    changed = code_version(tmp_path / "a", rooms)
    assert changed != first
    (tmp_path / "a" / "models" / "deep" / "x.py").rename(tmp_path / "a" / "models" / "deep" / "y.py")
    assert code_version(tmp_path / "a", rooms) not in (first, changed)
    with pytest.raises(VersionError, match="no source files"):
        code_version(tmp_path / "a", ("targets",))


def test_of_this_package() -> None:
    assert len(code_version()) == 64
    assert set(library_versions()) == {"python", "lightgbm", "numba", "numpy", "pandas", "scipy"}
