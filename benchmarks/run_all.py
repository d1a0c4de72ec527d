"""Run every benchmark, one after another, and write benchmarks/RESULTS.md with machine, versions and what came out.

    python benchmarks/run_all.py [--quick] [--only NAME ...] [--out FILE]

A benchmark is a script of this folder with a ``main``; its last line of output is one JSON object (``--json``). One
that fails or lacks what it compares with says so in the file, and the others go on. What each said last is kept beside
the file (``results/NAME.json``), with its day, its code and how busy the machine was: with ``--only`` some are measured
again, and the file holds the others as they were. With ``--quick`` sizes are small: that shows that everything runs and
measures nothing, which the file then says; nothing of it is kept.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlbot_core.clock import Clock, SystemClock, format_utc

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LIBRARIES = (
    *("numpy", "pandas", "numba", "pyarrow", "duckdb", "scipy", "lightgbm", "catboost", "torch", "pytorch-forecasting"),
    *("vectorbt", "ta-lib", "dagster", "sqlalchemy", "pybit", "arch", "skfolio"),
)
# scripts without --quick, and what makes them small instead
SMALL = {"backfill": ("--months", "1"), "warehouse": ("--rounds", "5")}
_LIMIT_S = 4 * 3600
_LAST_LINES = 12


@dataclass(frozen=True)
class Outcome:
    """What one benchmark said.

    Parameters
    ----------
    name, about
        Of the script, and the first sentence of its description.
    command
        As it was called, from the checkout.
    seconds
        It took, start included.
    table
        What it printed for people.
    measured
        Its JSON object; empty where it failed.
    failure
        Why it did not finish; empty where it did.
    at, code, load
        The day, the commit, and the processes that were runnable in the minute before.
    """

    name: str
    about: str
    command: str
    seconds: float
    table: str
    measured: Mapping[str, Any]
    failure: str
    at: str = ""
    code: str = ""
    load: str = ""


def scripts(folder: Path = HERE) -> list[Path]:
    """Return the benchmarks of a folder by name: the scripts that do something when they are called."""
    found = [path for path in sorted(folder.glob("*.py")) if path.name != Path(__file__).name]
    return [path for path in found if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]


def run(script: Path, *, quick: bool, limit_s: float = _LIMIT_S) -> Outcome:
    """Run one benchmark in a process of its own."""
    source = script.read_text(encoding="utf-8")
    about = (ast.get_docstring(ast.parse(source)) or script.stem).split("\n\n")[0].split("\n")[0]
    options = ["--json"]
    if quick:
        options += ["--quick"] if '"--quick"' in source else SMALL.get(script.stem, ())
    command = [sys.executable, str(script), *options]
    spelled = f"python benchmarks/{script.name} {' '.join(options)}"
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(script.stem, about, spelled, time.perf_counter() - started, "", {}, f"over {limit_s:.0f} s")
    seconds = time.perf_counter() - started
    *shown, last = done.stdout.rstrip().splitlines() or [""]
    try:
        measured = json.loads(last)
    except json.JSONDecodeError:
        measured = None
    if done.returncode or not isinstance(measured, dict):
        said = "\n".join((done.stdout + done.stderr).rstrip().splitlines()[-_LAST_LINES:])
        why = f"exit status {done.returncode}" if done.returncode else "its last line is no JSON object"
        return Outcome(script.stem, about, spelled, seconds, said, {}, why)
    return Outcome(script.stem, about, spelled, seconds, "\n".join(shown).rstrip(), measured, "")


def machine() -> dict[str, str]:
    """Return what the numbers depend on."""
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    total = next((line for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "")
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{int(total.split()[1]) / 2**20:.1f} GiB" if total else "unknown",
        "system": f"{platform.system()} {platform.release()}",
    }


def code() -> str:
    """Return the commit, and whether files were changed since; the results themselves do not count."""
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    status = ["git", "status", "--porcelain", "--", ".", ":!benchmarks/results", ":!benchmarks/RESULTS.md"]
    changed = subprocess.run(status, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return (commit.stdout.strip() or "unknown") + (" with uncommitted changes" if changed else "")


def versions() -> dict[str, str]:
    """Return the releases of everything that is measured; of what is absent, that it is."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed here"
    return found


def keep(one: Outcome, folder: Path) -> None:
    """Store what a benchmark said, in place of what it said before."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(one), indent=1, sort_keys=True)
    (folder / f"{one.name}.json").write_text(text + "\n", encoding="utf-8")


def kept(folder: Path, names: Sequence[str]) -> list[Outcome]:
    """Return what these benchmarks said last; one that was never run is left out."""
    paths = [folder / f"{name}.json" for name in names]
    return [Outcome(**json.loads(path.read_text(encoding="utf-8"))) for path in paths if path.exists()]


def document(outcomes: Sequence[Outcome], of: Mapping[str, str], on: Mapping[str, str], *, quick: bool) -> str:
    """Return RESULTS.md."""
    lines = ["# Benchmarks", "", "Written by `benchmarks/run_all.py` (`make bench`).", ""]
    if quick:
        lines += ["**A smoke run with small sizes: it shows that everything runs. The numbers mean nothing.**", ""]
    lines += ["Ratios are of runs side by side in the same process group, on the machine below.", ""]
    lines += ["| machine | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in on.items()), ""]
    lines += ["| library | release |", "|---|---|", *(f"| {name} | {value} |" for name, value in of.items()), ""]
    lines += ["Load: runnable processes in the minute before; on a machine that was busy the seconds are too long.", ""]
    lines += ["| benchmark | what it measures | day | code | load | took | state |", "|---|---|---|---|---:|---:|---|"]
    for one in outcomes:
        state = f"**failed: {_cell(one.failure)}**" if one.failure else "done"
        where = f"{one.at} | {one.code} | {one.load}"
        lines.append(f"| [{one.name}](#{one.name}) | {_cell(one.about)} | {where} | {one.seconds:,.0f} s | {state} |")
    for one in outcomes:
        lines += ["", f"## {one.name}", "", one.about, "", f"`{one.command}`", ""]
        if one.failure:
            lines += [f"**Not measured: {one.failure}.** Its last words:", ""]
        if one.table:
            lines += ["```", one.table, "```", ""]
        scalars, tables = _split(one.measured)
        if scalars:
            lines += ["| measured | value |", "|---|---:|"]
            lines += [f"| {_cell(name)} | {_number(value)} |" for name, value in scalars.items()]
        absent = [name for name, value in scalars.items() if value is None]
        if absent:
            lines += ["", f"Not measured here: {', '.join(absent)}; the text above says why."]
        for name, rows in tables.items():
            columns = list(dict.fromkeys(key for row in rows for key in row))
            lines += ["", f"{name}:", "", "| " + " | ".join(map(_cell, columns)) + " |", "|" + "---|" * len(columns)]
            lines += ["| " + " | ".join(_number(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines).rstrip() + "\n"


def _split(measured: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Mapping[str, Any]]]]:
    """Return the numbers by their dotted names, and the lists of rows, which are tables of their own."""
    scalars: dict[str, Any] = {}
    tables: dict[str, list[Mapping[str, Any]]] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                visit(f"{name}.{key}" if name else str(key), inner)
        elif isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            tables[name] = value
        else:
            scalars[name] = value

    visit("", measured)
    return scalars, tables


def _number(value: Any) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _cell(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def main(clock: Clock | None = None) -> int:
    """Return 0 if every benchmark ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and run none")
    options = parser.parse_args()
    found = {script.stem: script for script in scripts()}
    unknown = [name for name in options.only or [] if name not in found]
    if unknown:
        parser.error(f"benchmark {unknown[0]!r} is unknown; choose among {', '.join(found)}")
    if options.list:
        print("\n".join(found))
        return 0
    at, on, folder = format_utc((clock or SystemClock()).now_ms())[:10], machine(), options.out.parent / "results"
    outcomes: list[Outcome] = []
    for name in options.only or list(found):
        print(f"{name} ...", flush=True)
        load = f"{os.getloadavg()[0]:.1f}"
        one = replace(run(found[name], quick=options.quick), at=at, code=code(), load=load)
        print(one.table)
        print(f"{name}: {one.failure or 'done'} in {one.seconds:,.1f} s", flush=True)
        # after each one: a run that is stopped keeps what it has
        outcomes.append(one)
        if not options.quick:
            keep(one, folder)
        shown = outcomes if options.quick else kept(folder, list(found))
        options.out.write_text(document(shown, versions(), on, quick=options.quick), encoding="utf-8")
    print(f"written: {options.out}")
    return 1 if any(one.failure for one in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
