"""What the documentation points at exists: links, anchors, images, and every command with its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from mlbot_core.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
# what is written for "any of these" or as a place to fill in
PLACEHOLDER = re.compile(r"^[A-Z][A-Z_-]*(\.\.\.)?$")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def prose_of(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", text_of(page))


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """GitHub's anchors of a page's headings; the second of two equal ones gets -1."""
    seen: dict[str, int] = {}
    found = set()
    for heading in HEADING.findall(prose_of(page)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        found.add(slug if not count else f"{slug}-{count}")
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors_of(file)):
            broken.append(target)
    assert not broken


def test_every_page_can_be_reached_from_the_index() -> None:
    """Somebody who starts at docs/index.md finds every page under docs/."""
    reached, waiting = set(), [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        places = [target.partition("#")[0] for target in LINK.findall(prose_of(page)) if not target.startswith("http")]
        waiting += [(page.parent / place).resolve() for place in places if place]
    missing = {name(page) for page in PAGES if page.is_relative_to(ROOT / "docs")} - {name(page) for page in reached}
    assert not missing


def commands_of(page: Path, program: str) -> Iterator[list[str]]:
    """Yield the words of every command line that a page shows, in blocks and in running text."""
    lines: list[str] = []
    for _, language, block in FENCE.findall(text_of(page)):
        if language in ("", "sh", "bash", "shell", "console"):
            lines += block.replace("\\\n", " ").splitlines()
    lines += INLINE.findall(prose_of(page))
    for line in lines:
        bare = re.sub(r"^\s*(\$ )?((\w+=\S+|nice|sudo|nohup|-n \d+) )*", "", line.strip())
        match = re.match(rf"(?:\S*/)?{program}(?= |$)(.*)", bare)
        if match is None:
            continue
        # a comment, another command behind it, or the text of a log line after a colon
        rest = (
            re.split(r"\s#\s|\s+[|&>;]", match[1] + " ")[0] if "|" not in re.sub(r'"[^"]*"', "", match[1]) else match[1]
        )
        yield from alternatives(shlex.split(rest.partition(" #")[0]))


def alternatives(words: list[str]) -> Iterator[list[str]]:
    """``a|b c`` stands for two command lines; a bar inside a quoted name (it holds a dash or capitals) does not."""
    for at, word in enumerate(words):
        if re.fullmatch(r"[a-z-]+(\|[a-z-]+)+", word):
            for one in word.split("|"):
                yield from alternatives([*words[:at], one, *words[at + 1 :]])
            return
    yield words


@cache
def root_command() -> Any:
    return typer.main.get_command(app)


def problem(words: list[str]) -> str | None:
    """Say what mlbot would not understand of a command line, None for nothing."""
    command = root_command()
    path = "mlbot"
    while words and getattr(command, "commands", None):
        if words[0] in command.commands:
            path = f"{path} {words[0]}"
            command = command.commands[words.pop(0)]
        elif words[0].startswith("-") or words[0] in ("...", "COMMAND", "[OPTIONS]"):
            break
        else:
            return f"{path} has no command {words[0]!r}"
    known = {opt: p for p in command.params for opt in (*p.opts, *p.secondary_opts) if p.param_type_name == "option"}
    places = sum(p.nargs if p.nargs > 0 else 99 for p in command.params if p.param_type_name == "argument")
    given = 0
    while words:
        word = words.pop(0)
        option, equals, _ = word.partition("=")
        if option in ("--help", "...", "[OPTIONS]", "COMMAND"):
            continue
        if word.startswith("-"):
            if option not in known:
                return f"{path} has no option {option}"
            if not known[option].is_flag and not equals:
                if not words:
                    continue  # the option alone is spoken of
                value = words.pop(0)
                if re.match(r"--?[a-z]", value):
                    return f"{path} {option} lacks its value"
        else:
            given += 1
    return f"{path} takes {places} arguments, {given} are given" if given > places else None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_mlbot_command_exists_with_its_options(page: Path) -> None:
    wrong = {" ".join(words): said for words in commands_of(page, "mlbot") if (said := problem(list(words)))}
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_make_target_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for words in commands_of(page, "make"):
        asked = [word for word in words if "=" not in word and not word.startswith("-")]
        assert set(asked) <= targets, words


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_script_and_module_that_is_called_exists(page: Path) -> None:
    for words in commands_of(page, r"python3?"):
        if words[:1] == ["-m"]:
            module = words[1].replace(".", "/")
            ours = module.startswith("mlbot_")
            assert not ours or (ROOT / f"{module}.py").exists() or (ROOT / module).is_dir(), words
            paths = words[2:] if words[1] == "pytest" else []
        else:
            paths = words[:1]
        for path in (p.partition("::")[0] for p in paths if p.startswith(("tests/", "docs/", "benchmarks/"))):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("halt --reason", None),
        ("backfill --interval 2h --from 2024-01-01", None),
        ("models list", None),
        ('compare "BTC-2h|lightgbm" "BTC-2h|meta"', None),
        ("up --live", None),
        ("backfil", "mlbot has no command 'backfil'"),
        ("models lst", "mlbot models has no command 'lst'"),
        ("train --optimise", "mlbot train has no option --optimise"),
        ("train --model --optimize", "mlbot train --model lacks its value"),
        ("status everything", "mlbot status takes 0 arguments, 1 are given"),
    ],
)
def test_the_reader_of_commands_sees_mistakes(line: str, wrong: str | None) -> None:
    assert problem(shlex.split(line)) == wrong


def test_commands_are_found_in_blocks_and_in_running_text() -> None:
    found = {" ".join(words) for words in commands_of(ROOT / "README.md", "mlbot")}
    assert {"doctor", "models promote", "db gaps", "up --live", "up --demo"} <= found
    assert sum(1 for page in PAGES for _ in commands_of(page, "mlbot")) > 100
    assert sum(1 for page in PAGES for _ in LINK.findall(prose_of(page))) > 100
