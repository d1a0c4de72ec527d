"""The reference pages are what the code says today."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_committed_pages_are_current(script: ModuleType) -> None:
    made = script.pages()
    assert set(made) == {path.name for path in (DOCS / "reference").glob("*.md")}
    for name, text in made.items():
        committed = (DOCS / "reference" / name).read_text(encoding="utf-8")
        assert committed == text, f"{name}: run `python docs/make_reference.py`"


def test_a_new_error_or_variable_without_a_text_stops_the_script(script: ModuleType, monkeypatch) -> None:
    from mlbot_core.errors import MlbotError

    class NewlyMadeError(MlbotError):
        """Something new."""

    monkeypatch.setattr(NewlyMadeError, "__module__", "mlbot_core.errors")
    known = script.errors()
    assert NewlyMadeError in known
    steps = {f"{script.room(kind)}.{kind.__name__}": "do it" for kind in known if kind is not NewlyMadeError}
    with pytest.raises(SystemExit, match=r"errors\.NewlyMadeError"):
        script.errors_page(steps)
    with pytest.raises(SystemExit, match="MLBOT_HOME"):
        script.configuration_page({name: "text" for name in script.used_variables() - {"MLBOT_HOME"}})


def test_every_key_of_the_shipped_files_is_on_the_page(script: ModuleType) -> None:
    """Read from the files themselves: what somebody finds there is explained."""
    import yaml

    page = (DOCS / "reference" / "configuration.md").read_text(encoding="utf-8")

    def leaves(value: object, model: object, path: str) -> list[str]:
        if not isinstance(value, dict) or path in ("settle_delay_s",):
            return [path]
        fields = getattr(model, "model_fields", None)
        found = []
        for name, inner in value.items():
            step = name if fields else "NAME"
            kind = fields[name].annotation if fields else (script.get_args(model) or (None, None))[1]
            place = f"{path}.{step}" if path else step
            found += leaves(inner, kind, place)
        return found

    for name, model in script.CONFIG_FILES.items():
        values = yaml.safe_load((DOCS.parent / "config" / f"{name}.yaml").read_text(encoding="utf-8"))
        for path in leaves(values, model, ""):
            assert f"`{path}`" in page or f"`{path}[]." in page or f"`{path}." in page, (name, path)
