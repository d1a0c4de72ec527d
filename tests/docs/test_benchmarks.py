"""The writer of benchmarks/RESULTS.md, on real processes: a good one, one that fails, one that says nothing."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_all", ROOT / "benchmarks" / "run_all.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


GOOD = '''"""How fast one adds."""
import argparse, json
parser = argparse.ArgumentParser()
parser.add_argument("--json", action="store_true")
parser.add_argument("--quick", action="store_true")
quick = parser.parse_args().quick
if __name__ == "__main__":
    print("adds | 2 x")
    print("other: not installed here")
    sides = {"here_s": 1234.5}
    print(json.dumps({"quick": quick, "ratio": 2.0, "other_s": None, "sides": sides, "rows": [{"n": 1000000}]}))
'''
BAD = '"""Fails."""\nif __name__ == "__main__":\n    raise SystemExit("no such library: tulips")\n'
MUTE = '"""Says nothing for programs."""\nif __name__ == "__main__":\n    print("a table")\n'


def test_every_outcome_is_in_the_file(script: ModuleType, tmp_path: Path) -> None:
    for name, source in (("good", GOOD), ("bad", BAD), ("mute", MUTE), ("shared", "x = 1\n")):
        (tmp_path / f"{name}.py").write_text(source)
    found = script.scripts(tmp_path)
    assert [path.stem for path in found] == ["bad", "good", "mute"]
    bad, good, mute = (script.run(path, quick=True) for path in found)
    assert (good.failure, good.measured["ratio"], good.measured["quick"]) == ("", 2.0, True)
    assert bad.failure == "exit status 1"
    assert mute.failure == "its last line is no JSON object"
    text = script.document(
        [bad, good, mute], {"numpy": "2", "tulips": "not installed here"}, {"cores": "2"}, quick=True
    )
    assert "numbers mean nothing" in text
    assert "| tulips | not installed here |" in text
    assert "**failed: exit status 1**" in text
    assert "no such library: tulips" in text
    assert "| ratio | 2 |" in text
    assert "| sides.here_s | 1,234 |" in text or "| sides.here_s | 1,235 |" in text
    assert "| other_s | not measured |" in text
    assert "Not measured here: other_s" in text
    assert "| 1,000,000 |" in text
    assert "adds | 2 x" in text
    for name in ("bad", "good", "mute"):
        assert f"[{name}](#{name})" in text
        assert f"\n## {name}\n" in text


def test_what_was_measured_before_stays_beside_what_is_measured_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text(GOOD)
    out = tmp_path / "RESULTS.md"
    known = script.scripts
    monkeypatch.setattr(script, "scripts", lambda: known(tmp_path))

    def measure(day: str, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["run_all.py", "--out", str(out), *options])
        assert script.main(FixedClock(parse_utc_ms(day))) == 0
        return out.read_text()

    measure("2026-01-01")
    text = measure("2026-02-02", "--only", "second")
    assert "| [first](#first) | How fast one adds. | 2026-01-01 |" in text
    assert "| [second](#second) | How fast one adds. | 2026-02-02 |" in text
    before = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    text = measure("2026-03-03", "--quick", "--only", "first")
    assert "numbers mean nothing" in text
    assert "[second]" not in text
    assert {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()} == before


def test_every_benchmark_can_be_run_small_and_gives_json(script: ModuleType) -> None:
    names = [path.stem for path in script.scripts()]
    assert {"backtest", "features", "training", "warehouse", "ingest", "validation"} <= set(names)
    for path in script.scripts():
        source = path.read_text(encoding="utf-8")
        assert '"--json"' in source, path.name
        assert '"--quick"' in source or path.stem in script.SMALL, path.name


def test_machine_and_versions_name_what_numbers_depend_on(script: ModuleType) -> None:
    on, of = script.machine(), script.versions()
    assert int(on["cores"]) > 0
    assert re.fullmatch(r"[\d.]+ GiB|unknown", on["memory"])
    assert re.match(r"\d+\.\d+", of["numpy"])
    assert of["python"] == ".".join(map(str, sys.version_info[:3]))


def test_make_bench_calls_it() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "benchmarks/run_all.py" in makefile
