"""A model version is stable, and every input changes it."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core import provenance
from mlbot_core.config.models import MODEL_NAMES
from mlbot_core.models.canonical import canonical_json, sha256_hex
from mlbot_core.models.version import (
    OWN_FILES,
    VersionError,
    VersionInputs,
    code_of,
    code_version,
    library_versions,
    model_version,
)
from mlbot_core.provenance import AFTER_THE_BYTES, PACKAGE_DIR

INPUTS = VersionInputs(
    code="c0de",
    market="BTC-2h",
    source="archive",
    partitions={"2024-01-01": "a1", "2024-02-01": "b2"},
    test_start_ms=1_700_000_000_000,
    test_end_ms=1_750_000_000_000,
    asked_end_ms=None,
    feature_set="f00d",
    targets={"horizon": 12, "barrier_width": 1.0},
    walk_forward={"train_days": 540},
    weights={"oldest": 1.0},
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
    "asked_end_ms": 1_750_000_000_000,
    "feature_set": "f00e",
    "targets": {"horizon": 12, "barrier_width": 1.5},
    "walk_forward": {"train_days": 541},
    "weights": {"oldest": 0.5},
    "model_type": "catboost",
    "params": {"learning_rate": 0.030000000000000002},
    "seed": 8,
    "libraries": {"lightgbm": "4.7.1"},
}


def test_golden() -> None:
    # Pinned: a change of the canonical form would silently rename every stored model.
    assert canonical_json({"b": [1, 2.5, None, True], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5,null,true]}'
    assert sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert model_version(INPUTS) == "591dcbd2bc5c57a0256a6554c651be488e6880359c7be61dc3e8e55a4d169c47"


def test_code_that_was_edited_since_the_process_started_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_version() == code_version()
    name = next(name for name in provenance._AT_START if name == "models/walkforward.py")
    monkeypatch.setitem(provenance._AT_START, name, "0" * 64)
    with pytest.raises(VersionError, match=r"models/walkforward\.py changed on disk since this process"):
        code_version()
    # a file that decides nothing of this model may change
    assert code_version(without=["models/walkforward"])


def test_what_handles_a_finished_model_is_no_part_of_its_version_and_training_does_not_use_it() -> None:
    code = (
        "import sys, mlbot_core.models.training, mlbot_core.models.meta_training\n"
        "print(*[name for name in sys.modules if name.startswith('mlbot_core.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    used = [name.removeprefix("mlbot_core.").replace(".", "/") for name in done.stdout.split()]
    assert "models/walkforward" in used
    assert [name for name in used if name.startswith(AFTER_THE_BYTES)] == []
    files = [path.relative_to(PACKAGE_DIR).as_posix() for path in PACKAGE_DIR.rglob("*.py")]
    for prefix in AFTER_THE_BYTES:
        assert any(name.startswith(prefix) for name in files), prefix


@pytest.mark.parametrize("model_type", [*MODEL_NAMES])
def test_a_model_type_uses_no_file_that_is_left_out_of_its_version(model_type: str) -> None:
    code = (
        "import sys, mlbot_core.models.training\n"
        "from mlbot_core.models.base import model_class\n"
        f"model_class({model_type!r})\n"
        "print(*[name for name in sys.modules if name.startswith('mlbot_core.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    used = [name.removeprefix("mlbot_core.").replace(".", "/") for name in done.stdout.split()]
    others = {name for names in OWN_FILES.values() for name in names} - set(OWN_FILES[model_type])
    assert [name for name in used if name.startswith(tuple(others))] == []
    assert code_of(model_type) != code_version()


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
    common = {"python", "numba", "numpy", "pandas", "scipy"}
    assert set(library_versions("lightgbm")) == common | {"lightgbm"}
    assert set(library_versions("meta")) == common
    assert "torch" in library_versions("tft")
