"""Mutation score: what share of small faults in ``decision``, ``validation`` and ``execution`` the tests notice.

Run from the repository root; the working tree is only read::

    python tests/mutation/run.py --package decision --sample 120 --seed 7 --out build/mutation

A copy of the sources and tests is made under ``--work``. One process imports them and collects the room's quick tests,
once; a fork of it runs all of them under a tracer (which test reaches which line); then every mutant gets a fork of its
own, which swaps the code of the one changed function and runs the tests that reach the changed line, quickest first,
until one fails. What cannot be swapped (a module's constants, defaults, class bodies) is run in a fresh process.
A mutant that outruns its limit of time counts as killed, and is listed as such. Compiled functions run as plain Python
(``NUMBA_DISABLE_JIT``), so a mutant is never hidden by a cached kernel; programs that tests start read the changed
source from the copy. Survivors named in ``equivalent.toml`` change nothing that can be observed; the score is told with
and without them.

What survives that is put before the tests that fail or are too slow as plain Python: they run compiled, in a fresh
process with an empty cache of compiled functions.

Left out: tests marked slow, prove, archive or browser, and tests that need Postgres or an interpreter of their own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import forks
import mutants
from tracer import Tracer

ROOT = Path(__file__).resolve().parents[2]
# where the quick tests of a package lie: its own room, and what tests it from elsewhere
ROOMS = {
    "decision": ("decision", "live_core/test_live_sizing.py"),
    "validation": (
        "validation",
        "backtest/test_backtest_verdict.py",
        "models/test_gate.py",
        "backtest/test_gate_record.py",
    ),
    "execution": ("execution",),
}
NEEDS = {"postgres_url", "oracle_environment"}
# a test that needs more CPU than this as plain Python, under the tracer, is left out
TEST_S = 4.0
# tests that reach a mutant are run up to this much of their former time at first, and all of them if it then survives
FIRST_S = 15.0


class Room:
    """A pytest plugin that keeps the collected tests of one room and runs them in forks."""

    def __init__(self, arguments: argparse.Namespace, package: str, tree: Path) -> None:
        self.arguments, self.package, self.tree = arguments, package, tree
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        self.failed = ""
        self.result: dict[str, Any] = {}

    def forked(self, work: Callable[[], int], wait_s: float, cpu_s: float) -> int | None:
        temporary = self.tree.parent / "tmp"

        def inside() -> int:
            # pytest's own folder of temporary files, made anew for each fork
            next(iter(self.items.values())).config._tmp_path_factory._basetemp = temporary
            return work()

        return forks.in_fork(inside, temporary, wait_s, cpu_s)

    def say(self, text: str) -> None:
        self.out.write(f"{text}\n")

    # -- pytest

    def pytest_sessionstart(self, session: Any) -> None:
        _steady_hypothesis()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed = report.nodeid

    def pytest_runtestloop(self, session: Any) -> bool:
        if session.testsfailed:
            raise session.Failed(f"{session.testsfailed} files could not be collected")
        self.items = {one.nodeid: one for one in session.items if not NEEDS & set(one.fixturenames)}
        started = forks.cpu_s()
        reached, self.slow = self.reach()
        self.say(f"{self.package}: {len(reached)} tests traced in {forks.cpu_s() - started:.0f} s of CPU")
        for name in self.slow:
            self.say(f"  not as plain Python: {name}")
        chosen = self.chosen()
        rows = []
        for count, mutant in enumerate(chosen, 1):
            rows.append(row := self.judged(mutant, reached))
            (self.tree.parent / f"{self.package}-so-far.json").write_text(json.dumps(rows))
            self.say(
                f"{count:4}/{len(chosen)} {row['outcome']:9} {row['cpu_seconds']:5.1f} s  {mutant.line}: {mutant.key}"
            )
        self.result = {
            "package": self.package,
            "tests": len(reached),
            "compiled_only": sorted(self.slow),
            "cpu_seconds": round(forks.cpu_s() - started, 1),
            "rows": rows,
        }
        return True

    # -- which test reaches what

    def reach(self) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Return each passing test's seconds and lines, and of the others the lines until they were ended."""
        kept = self.tree.parent / f"reach-{self.package}.json"
        if self.arguments.keep_reach and kept.exists():
            found = json.loads(kept.read_text())
        else:
            kept.unlink(missing_ok=True)
            self.forked(lambda: self.traced(list(self.items.values()), kept), wait_s=3600, cpu_s=3600)
            found = json.loads(kept.read_text())
        fit = {name: one for name, one in found.items() if one["passed"]}
        return fit, {name: one for name, one in found.items() if name not in fit}

    def traced(self, items: list[Any], to: Path) -> int:
        tracer = Tracer(str(self.tree / "mlbot_core" / self.package) + os.sep)
        found = {}
        for item, following in zip(items, [*items[1:], None], strict=True):
            self.failed = ""
            started = forks.cpu_s()
            protocol = partial(item.config.hook.pytest_runtest_protocol, item=item, nextitem=following)
            tracer.during(protocol, TEST_S)
            seconds = forks.cpu_s() - started
            lines: dict[str, list[int]] = {}
            for name, line in tracer.lines:
                lines.setdefault(str(Path(name).relative_to(self.tree)), []).append(line)
            passed = not self.failed
            found[item.nodeid] = {"passed": passed, "seconds": seconds, "lines": lines}
            to.with_suffix(".part").write_text(json.dumps(found))
        to.with_suffix(".part").rename(to)
        return 0

    # -- which mutants

    def chosen(self) -> list[mutants.Mutant]:
        """Return a sample spread evenly over the package's mutants, or those that a former run names."""
        every: list[mutants.Mutant] = []
        for path in sorted((self.tree / "mlbot_core" / self.package).rglob("*.py")):
            every += mutants.mutants_of(path.read_text(), str(path.relative_to(self.tree)))
        self.say(f"{self.package}: {len(every)} mutants")
        if self.arguments.only:
            named = set(Path(self.arguments.only).read_text().splitlines())
            return [one for one in every if one.key in named]
        size = min(self.arguments.sample, len(every))
        draw = random.Random(self.arguments.seed)
        # one of each of as many equal stretches: every module gets its share
        return [every[int((place + draw.random()) * len(every) / size)] for place in range(size)]

    # -- one mutant

    def judged(self, mutant: mutants.Mutant, reached: dict[str, dict[str, Any]]) -> dict[str, Any]:
        started = forks.cpu_s()
        source = self.tree / mutant.path
        text = source.read_text()

        def reaches(lines: list[int]) -> bool:
            return mutant.line in lines if mutant.function else bool(lines)

        names = [name for name, one in reached.items() if reaches(one["lines"].get(mutant.path, []))]
        names.sort(key=lambda name: reached[name]["seconds"])
        total, first = 0.0, []
        for name in names:
            total += reached[name]["seconds"]
            if total <= FIRST_S or not first:
                first.append(name)
        slow = [name for name, one in self.slow.items() if mutant.path in one["lines"]]
        outcome = "unreached"
        try:
            code = mutants.compiled(text, mutant, source)
            source.write_text(mutants.mutated(text, mutant))
            for some in (first, names[len(first) :]):
                if some and outcome in ("unreached", "survived"):
                    outcome = self.run(mutant, code, some, reached)
            if slow and outcome in ("unreached", "survived"):
                outcome = self.fresh(slow, 1500, compiled=True)
        except SyntaxError:
            outcome = "killed"
        finally:
            source.write_text(text)
        seconds = round(forks.cpu_s() - started, 2)
        return asdict(mutant) | {"key": mutant.key, "outcome": outcome, "tests": len(names), "cpu_seconds": seconds}

    def run(self, mutant: mutants.Mutant, code: CodeType, names: list[str], reached: dict[str, dict[str, Any]]) -> str:
        former = sum(reached[name]["seconds"] for name in names)
        if mutant.function:
            limits = {"wait_s": 60 + 3 * former, "cpu_s": 20 + 2 * former}
            status = self.forked(lambda: self.swapped(mutant, code, names), **limits)
            if status != 3:
                return _outcome(status)
        return self.fresh(names, 120 + 3 * former)

    def fresh(self, names: list[str], wait_s: float, *, compiled: bool = False) -> str:
        """Run tests in a fresh process; compiled functions rest on the changed source only if nothing was kept."""
        cache = self.tree.parent / "compiled"
        shutil.rmtree(cache, ignore_errors=True)
        environment = os.environ | {"NUMBA_DISABLE_JIT": str(int(not compiled)), "NUMBA_CACHE_DIR": str(cache)}
        command = [sys.executable, str(Path(__file__).resolve()), "--child", str(self.tree), *names]
        return _outcome(forks.in_process(command, self.tree, wait_s, environment))

    def swapped(self, mutant: mutants.Mutant, code: CodeType, names: list[str]) -> int:
        """Run in a fork: put the changed code in place and run tests until one fails."""
        path = str(self.tree / mutant.path)
        new = {(one.co_qualname, one.co_firstlineno): one for one in _codes(code)}
        for one in gc.get_objects():
            if isinstance(one, FunctionType) and one.__code__.co_filename == path:
                changed = new.get((one.__code__.co_qualname, one.__code__.co_firstlineno))
                try:
                    if changed is not None and changed != one.__code__:
                        one.__code__ = changed
                except ValueError:
                    # it closes over other names than before
                    return 3
        items = [self.items[name] for name in names]
        for item, following in zip(items, [*items[1:], None], strict=True):
            self.failed = ""
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return 1
        return 0


def _outcome(status: int | None) -> str:
    return "timeout" if status is None else "survived" if status == 0 else "killed"


def _steady_hypothesis() -> None:
    """Give the same examples every time, and do not look for a smaller one once a test failed."""
    from hypothesis import Phase, settings

    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutation", settings.default, derandomize=True, database=None, phases=phases)
    settings.load_profile("mutation")


def _codes(code: CodeType) -> list[CodeType]:
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return [code, *(found for one in inner for found in _codes(one))]


def _options(tree: Path) -> list[str]:
    marks = "not slow and not prove and not archive and not browser"
    quiet = ["-q", "-m", marks, "-o", "addopts=", "--import-mode=importlib", "--capture=sys", "--timeout=0"]
    return [*quiet, "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={tree}"]


def _prepare(tree: Path) -> None:
    os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
    os.environ["PYTHONPATH"] = str(tree)
    sys.path.insert(0, str(tree))
    os.chdir(tree)


def _child(tree: Path, names: list[str]) -> int:
    """Run tests in a fresh process that imports the changed source."""
    import pytest

    class Steady:
        def pytest_sessionstart(self, session: Any) -> None:
            _steady_hypothesis()

    _prepare(tree)
    sys.dont_write_bytecode = True
    base = f"--basetemp={tree.parent / 'tmp'}"
    return int(pytest.main([*_options(tree), "-x", base, *names], plugins=[Steady()]))


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    equivalent = {one["mutant"]: one["why"] for one in _equivalent()}
    rows = result["rows"]
    killed = [row for row in rows if row["outcome"] in ("killed", "timeout")]
    alive = [row for row in rows if row not in killed]
    same = [row for row in alive if row["key"] in equivalent]
    able = len(rows) - len(same)
    return {
        "package": result["package"],
        "mutants": len(rows),
        "killed": len(killed),
        "timeouts": sum(row["outcome"] == "timeout" for row in rows),
        "equivalent": len(same),
        "survived": len(alive) - len(same),
        "score": round(len(killed) / len(rows), 4) if rows else None,
        "score_without_equivalent": round(len(killed) / able, 4) if able else None,
        "cpu_seconds": result["cpu_seconds"],
    }


def _equivalent() -> list[dict[str, str]]:
    return tomllib.loads(Path(__file__).with_name("equivalent.toml").read_text())["equivalent"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", choices=tuple(ROOMS), required=True)
    parser.add_argument("--sample", type=int, default=120, help="mutants, spread evenly over the package (120)")
    parser.add_argument("--seed", type=int, default=7, help="of the sample (7)")
    parser.add_argument("--only", help="a file of mutants' names, one a line, instead of a sample")
    parser.add_argument("--keep-reach", action="store_true", help="use the former run's map of tests to lines")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "mutation", help="folder of the copy")
    parser.add_argument("--out", type=Path, help="folder of the results (that of the copy)")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    if sys.argv[1:2] == ["--child"]:
        return _child(Path(sys.argv[2]), sys.argv[3:])
    arguments = parser.parse_args()
    tree = (arguments.work / "tree").resolve()
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in tracked:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    forks.adopt()
    _prepare(tree)
    import pytest

    room = Room(arguments, arguments.package, tree)
    pytest.main([*_options(tree), *(f"tests/{one}" for one in ROOMS[arguments.package])], plugins=[room])
    if not room.result:
        print("the tests could not be collected", file=sys.stderr)
        return 2
    summary = _summary(room.result)
    out = arguments.out or arguments.work
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{arguments.package}.json").write_text(json.dumps(room.result | {"summary": summary}, indent=1))
    for row in room.result["rows"]:
        if row["outcome"] not in ("killed", "timeout"):
            print(f"{row['outcome']:9} {row['path']}:{row['line']} {row['function']}: {row['change']}")
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
