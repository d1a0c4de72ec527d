"""Write docs/reference/ from the code: commands, configuration, series, errors. Usage: python docs/make_reference.py

With ``--check`` nothing is written, and the exit status says whether every page is current. What code cannot say (the
next step at an error, the meaning of an environment variable) is in reference/texts.yaml, which has to be complete.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

import mlbot_core
from mlbot_core.cli.main import app
from mlbot_core.cli.series import describe
from mlbot_core.config.base import allowed_at
from mlbot_core.config.secrets import ApiKeys
from mlbot_core.config.settings import CONFIG_FILES
from mlbot_core.errors import MlbotError
from mlbot_core.market import CATALOGUE, CORE_SERIES

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
FOLDER = DOCS / "reference"
MADE = "<!-- written by docs/make_reference.py from the code; do not edit -->"
VARIABLE = re.compile(r"\bMLBOT_[A-Z]+(?:_[A-Z]+)*\b(?!_)")
# the first that matches the name, then the text, is the unit; what matches nothing has none
UNITS = (
    (r"_s$", r"\bseconds\b", "s"),
    (r"_ms$", r"\bmilliseconds\b", "ms"),
    (r"_bp$", r"\bbasis points\b", "bp"),
    (r"_days$", r"^days\b|\bdays of\b", "days"),
    (r"_bars$|^horizons?$", r"^bars\b|; bars of\b", "bars"),
    (r"^$", r"\bUSD\b", "USD"),
    (
        r"(_|^)share$|_quantile$|^participation$|^subsample$|^rsm$",
        r"\bfraction\b|^share of\b",
        "fraction",
    ),
)


def pages() -> dict[str, str]:
    """Return every page by its file name."""
    texts = yaml.safe_load((FOLDER / "texts.yaml").read_text(encoding="utf-8"))
    return {
        "cli.md": cli_page(),
        "configuration.md": configuration_page(texts["variables"]),
        "series.md": series_page(),
        "errors.md": errors_page(texts["next_steps"]),
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a Markdown table; a bar inside a cell does not end it."""
    drawn = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return drawn + ["| " + " | ".join(" ".join(str(c).replace("|", "\\|").split()) for c in row) + " |" for row in rows]


def plain(text: str) -> str:
    """Return a docstring's text as Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda found: f"`{found[1].rsplit('.', 1)[-1]}`", text)
    return " ".join(text.replace("``", "`").split())


# --- commands -------------------------------------------------------------------------------------------------------


def commands(command: Any, name: str = "mlbot") -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name, groups before their members."""
    yield name, command
    for sub in getattr(command, "commands", {}).values():
        yield from commands(sub, f"{name} {sub.name}")


def cli_page() -> str:
    root = typer.main.get_command(app)
    found = list(commands(root))
    lines = ["# Commands", "", MADE, "", str(root.help), ""]
    lines += [
        "Results go to standard output, progress and mistakes to standard error. With `--json` standard output holds "
        "one JSON document and nothing else. Colours appear on a terminal only; `NO_COLOR=1` turns them off.",
        "",
        "## Exit status",
        "",
        *table(
            ("status", "meaning"),
            (
                (0, "Done."),
                (1, "The work failed, or a check or comparison that was asked for says no."),
                (
                    2,
                    "A mistake in what was asked or configured, named with its remedy; nothing was changed.",
                ),
                (130, "Interrupted with Ctrl-C."),
            ),
        ),
        "",
        "[Every error with its status](errors.md).",
        "",
        "## Completion",
        "",
        "`mlbot --install-completion` makes the Tab key complete commands and options in the shell that it is called "
        "from (bash, zsh, fish, PowerShell); `mlbot --show-completion` prints the script instead.",
        "",
        "## All commands",
        "",
        *table(("command", "what it does"), [(f"[`{name}`](#{anchor(name)})", first(c)) for name, c in found[1:]]),
        "",
    ]
    for name, command in found[1:]:
        lines += [f"### {name}", "", plain(command.help or ""), ""]
        lines += ["```", usage(name, command), "```", ""]
        rows = [parameter(p) for p in command.params if not p.hidden and p.name != "help"]
        if rows:
            lines += [*table(("argument or option", "type", "default", "meaning"), rows), ""]
    return finished(lines)


def anchor(heading: str) -> str:
    """Return GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def first(command: Any) -> str:
    return plain((command.help or "").split("\n\n")[0])


def usage(name: str, command: Any) -> str:
    words = [name]
    for p in command.params:
        if p.param_type_name == "argument":
            word = p.name.upper() + ("..." if p.nargs == -1 else "")
            words.append(word if p.required else f"[{word}]")
        elif p.required:
            words.append(f"{p.opts[0]} {p.name.upper()}")
    optional = any(p.param_type_name == "option" and not p.required for p in command.params)
    words += ["[OPTIONS]"] if optional else []
    return " ".join(words + (["COMMAND"] if getattr(command, "commands", None) else []))


def parameter(p: Any) -> tuple[str, str, str, str]:
    names = [p.name.upper()] if p.param_type_name == "argument" else [*p.opts, *p.secondary_opts]
    kind = "switch" if getattr(p, "is_flag", False) else kind_name(p.bare_type())
    bounds = [f"{sign} {value}" for sign, value in ((">=", p.min), ("<=", p.max)) if value is not None]
    kind = f"{kind} {' and '.join(bounds)}".strip() + ("; repeatable" if p.multiple or p.nargs == -1 else "")
    shown = "required" if p.required else "" if p.default in (None, False, "") or callable(p.default) else p.default
    return ", ".join(f"`{name}`" for name in names), kind, f"{shown}", plain(p.help or "")


def kind_name(kind: Any) -> str:
    inner = re.sub(
        r"^list\[(\w+)\]$", r"\1", getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind)
    )
    return {"str": "text", "int": "whole number", "float": "number", "Path": "path"}[inner]


# --- configuration --------------------------------------------------------------------------------------------------


def configuration_page(variables: Mapping[str, str]) -> str:
    lines = ["# Configuration", "", MADE, ""]
    lines += [
        "Every file is in `config/` (another folder: `MLBOT_CONFIG_DIR`) and validated when it is read: an unknown "
        "key, a wrong type or a value out of range is refused before anything starts, and all violations are named at "
        "once. *shipped* is what the repository's file says, *default* what holds where the key is left out.",
        "",
        *(f"* [`{name}.yaml`](#{anchor(name + '.yaml')})" for name in CONFIG_FILES),
        "* [`api_keys.yaml`](#api_keysyaml)",
        "* [environment variables](#environment-variables)",
        "",
    ]
    for name, model in CONFIG_FILES.items():
        values = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text(encoding="utf-8"))
        lines += [f"## {name}.yaml", "", about(model), ""]
        rows = [
            (f"`{path}`", kind, unit, shown(at(values, path)), f"{default}", text)
            for path, kind, unit, default, text in keys(model)
        ]
        lines += [*table(("key", "type and range", "unit", "shipped", "default", "meaning"), rows), ""]
    lines += ["## api_keys.yaml", "", about(ApiKeys), ""]
    lines += [
        "Copy `config/api_keys.example.yaml`, fill in, `chmod 600 config/api_keys.yaml`: a file that others may read "
        "is refused. Environment variables win. No key is ever printed or logged.",
        "",
        *table(("key",), [(f"`{path}`",) for path in secret_keys(ApiKeys)]),
        "",
        "## Environment variables",
        "",
    ]
    used = used_variables()
    if used != set(variables):
        differ = ", ".join(sorted(used ^ set(variables)))
        sys.exit(f"reference/texts.yaml and the variables that the code names differ in: {differ}")
    lines += table(("variable", "meaning"), [(f"`{name}`", text) for name, text in sorted(variables.items())])
    return finished(lines)


def used_variables() -> set[str]:
    """Return every environment variable that a source file names."""
    files = [p for package in ("mlbot_core", "mlbot_dagster") for p in (ROOT / package).rglob("*.py")]
    return {name for path in files for name in VARIABLE.findall(path.read_text(encoding="utf-8"))}


def about(model: type[BaseModel]) -> str:
    """Return what a model says about itself, without its parameters."""
    text = (inspect.getdoc(model) or "").split("\nParameters\n")[0].strip()
    text = plain(re.sub(r"^``\w+\.yaml``(: |\.$)", "", text))
    return text[:1].upper() + text[1:]


def described(model: type[BaseModel]) -> dict[str, str]:
    """Return the meaning of each parameter from the numpydoc section; ``a, b`` share one."""
    section = (inspect.getdoc(model) or "").partition("Parameters\n----------\n")[2]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line and not line.startswith(" "):
            names = [name.strip() for name in line.split(",")]
        elif line.strip():
            found |= {name: f"{found.get(name, '')} {line.strip()}" for name in names}
    return {name: plain(text) for name, text in found.items()}


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str, str]]:
    """Yield path, type, unit, default and meaning of every key, sections dissolved into their keys."""
    texts = described(model)
    for name, field in model.model_fields.items():
        inner, step = nested(field.annotation)
        path = f"{prefix}{name}{step}"
        if inner is not None:
            yield from keys(inner, f"{path}.")
            continue
        if name not in texts:
            sys.exit(f"{model.__name__}.{name} has no meaning: describe it under Parameters of the docstring")
        default = "required" if field.is_required() else shown(field.get_default(call_default_factory=True))
        kind = " ".join(filter(None, (spelled(field.annotation), allowed_range(model, name))))
        unit = unit_of(name, texts[name])
        # a count has no unit, even where its text begins with a share
        unit = "" if unit == "fraction" and kind.startswith("whole number") else unit
        yield path, kind, unit, default, texts[name]


def nested(kind: Any) -> tuple[type[BaseModel] | None, str]:
    """Return the model inside a field and how its place is written: ``.NAME`` of a mapping, ``[]`` of a list."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind, ""
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        inner, step = nested(arguments[1])
        return inner, f".NAME{step}" if inner else ""
    if get_origin(kind) in (list, tuple) and arguments:
        inner, step = nested(arguments[0])
        return inner, f"[]{step}" if inner else ""
    return None, ""


def spelled(kind: Any) -> str:
    """Return a type as a writer of YAML would say it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is dict:
        return f"mapping to {spelled(arguments[1])}"
    if origin in (list, tuple):
        return f"list of {spelled(arguments[0])}"
    if type(None) in arguments:
        return " or ".join(spelled(a) for a in arguments if a is not type(None)) + " or null"
    if hasattr(kind, "__metadata__"):
        return spelled(arguments[0])
    if arguments:
        return " or ".join(dict.fromkeys(spelled(a) for a in arguments))
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "date": "date"}
    return names.get(kind.__name__, kind.__name__.lower())


def allowed_range(model: type[BaseModel], name: str) -> str:
    text = allowed_at(model, (name,))
    return text if text.startswith(("<", ">")) else ""


def unit_of(name: str, text: str) -> str:
    for by_name, _, unit in UNITS:
        if re.search(by_name, name):
            return unit
    return next((unit for _, by_text, unit in UNITS if re.search(by_text, text, re.IGNORECASE)), "")


def at(values: Any, path: str) -> Any:
    """Return what a file holds at a path, PydanticUndefined where it has nothing or several things."""
    for part in path.split("."):
        if part == "NAME" or part.endswith("[]") or not isinstance(values, dict) or part not in values:
            return PydanticUndefined
        values = values[part]
    return values


def shown(value: Any) -> str:
    """Return a value as YAML writes it."""
    if value is PydanticUndefined:
        return ""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {shown(v)}" for name, v in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value)


def secret_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner, _ = nested(field.annotation)
        if inner is not None and inner is not SecretStr:
            yield from secret_keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


# --- series ---------------------------------------------------------------------------------------------------------


def series_page() -> str:
    rows = [describe(spec) for spec in CATALOGUE.values()]
    lines = ["# Series", "", MADE, ""]
    lines += [
        f"{len(rows)} series of market data, each stored point in time in the unit below, whatever unit its endpoint "
        f"serves. The core ones ({', '.join(f'`{name}`' for name in CORE_SERIES)}) are always pulled, others when the "
        "feature set or `mlbot backfill --series` asks for them. `mlbot series list --json` prints this for programs, "
        "`mlbot series fetch` asks a source what it really serves.",
        "",
        *table(
            ("series", "what it is", "sources", "plan"),
            [
                (f"[`{r['name']}`](#{anchor(r['name'])})", r["title"], ", ".join(r["sources"]), r["plan"] or "")
                for r in rows
            ],
        ),
        "",
    ]
    for row in rows:
        facts = [("sources", ", ".join(row["sources"]))]
        if row["endpoint"]:
            asked = "&".join(f"{k}={v}" for k, v in row["params"].items())
            facts.append(("Coinglass endpoint", f"`{row['endpoint']}`" + (f" with `{asked}`" if asked else "")))
            facts.append(("smallest plan", row["plan"]))
        facts.append(("bars", row["native_timeframe"] or "any configured timeframe"))
        facts.append(("known", settles(row)))
        if row["symbols"]:
            facts.append(("symbols", ", ".join(row["symbols"])))
        if row["sparse"] != "no":
            facts.append(("only on", row["sparse"].replace("_", " ")))
        lines += [f"## {row['name']}", "", plain(row["description"]), ""]
        lines += [plain(row["caveat"]), ""] if row["caveat"] else []
        lines += [*table(("", ""), facts), ""]
        columns = [
            (f"`{c['name']}`", c["unit"], f"`{c['field']}`" if c["field"] else "", f"{c['scale']:g}", c["resample"])
            for c in row["columns"]
        ]
        lines += [*table(("column", "unit", "field of the endpoint", "times", "resampled by"), columns), ""]
    return finished(lines)


def settles(row: Mapping[str, Any]) -> str:
    if row["publication_lag_ms"]:
        return f"{row['publication_lag_ms'] / 3_600_000:g} h after the close"
    late = row["unsettled_rows"] - 1
    return "at the close" if late <= 0 else f"{late} bar after the close: the newest rows may still move"


# --- errors ---------------------------------------------------------------------------------------------------------


def errors() -> list[type[MlbotError]]:
    """Return every error class of the core that a person may meet, parents before children."""
    for module in pkgutil.walk_packages(mlbot_core.__path__, "mlbot_core."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type[MlbotError]] = []

    def visit(kind: type[MlbotError]) -> None:
        found.append(kind)
        for child in sorted(kind.__subclasses__(), key=lambda c: (c.__name__, c.__module__)):
            if child.__module__.startswith("mlbot_core.") and not child.__name__.startswith("_"):
                visit(child)

    visit(MlbotError)
    return found[1:]


def room(kind: type[MlbotError]) -> str:
    return kind.__module__.removeprefix("mlbot_core.").split(".")[0]


def errors_page(steps: Mapping[str, str]) -> str:
    found = errors()
    names = [f"{room(kind)}.{kind.__name__}" for kind in found]
    if set(names) != set(steps):
        sys.exit(f"reference/texts.yaml and the errors differ in: {', '.join(sorted(set(names) ^ set(steps)))}")
    lines = ["# Errors", "", MADE, ""]
    lines += [
        "Everything that goes wrong on purpose is one of these. On the command line it is one line, `mlbot: ...`, that "
        "names the thing, the value and the next step, and no traceback; in the Dagster UI it is the failure of a "
        "step. A traceback is a defect of mlbot: please report it. Alerts are in the [runbook](../runbook.md).",
        "",
        *table(
            ("error", "is a", "status", "what it means", "what to do"),
            [
                (
                    f"`{kind.__name__}` ({room(kind)})" if room(kind) != "errors" else f"`{kind.__name__}`",
                    "" if kind.__bases__[0] is MlbotError else f"`{kind.__bases__[0].__name__}`",
                    kind.exit_code,
                    plain((inspect.getdoc(kind) or "").split("\n\n")[0]),
                    steps[name],
                )
                for kind, name in zip(found, names, strict=True)
            ],
        ),
    ]
    return finished(lines)


def finished(lines: Sequence[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not current")
    check = parser.parse_args().check
    made = pages()
    stale = [n for n, t in made.items() if not (FOLDER / n).exists() or (FOLDER / n).read_text(encoding="utf-8") != t]
    if check:
        sys.exit(f"not current: {', '.join(stale)}; run: python docs/make_reference.py" if stale else 0)
    for name in stale:
        (FOLDER / name).write_text(made[name], encoding="utf-8")
        print(f"wrote docs/reference/{name}")


if __name__ == "__main__":
    main()
