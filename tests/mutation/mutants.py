"""Mutants of a Python source: every small change of its syntax tree that a test should notice.

Not mutated: docstrings, annotations, strings, what is raised (its type and text), logging, ``__repr__`` and
``__str__``, type-checking blocks, and calls that signal processes (a changed process id would hit a stranger).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.MatMult: ast.Add,
}
_UNTOUCHED_FUNCTIONS = frozenset({"__repr__", "__str__"})
_UNTOUCHED_CALLS = frozenset({"kill", "killpg", "debug", "info", "warning", "error", "exception", "warn"})


@dataclass(frozen=True)
class Mutant:
    """One change of one source.

    Attributes
    ----------
    path
        Of the source, relative to the root.
    index
        Its place among the mutants of the source.
    line
        Of the changed node, from 1.
    function
        Qualified name of the outermost function that holds it, or ``""`` at the level of a module or a class.
    change
        What became what, as source text.
    """

    path: str
    index: int
    line: int
    function: str
    change: str

    @property
    def key(self) -> str:
        """What names the mutant also after lines were moved."""
        return f"{self.path}::{self.function or '-'}::{self.change}"


@dataclass(frozen=True)
class _Site:
    """A node that can be changed, and how; ``swap`` puts the changed node in its parent's place and gives it back."""

    node: ast.AST
    function: str
    change: Callable[[], ast.AST]
    put: Callable[[ast.AST], None]


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else f"{text[:87]}..."


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def _copied(node: ast.AST, **changes: object) -> ast.AST:
    fields = {name: getattr(node, name, None) for name in node._fields} | changes
    return ast.copy_location(type(node)(**fields), node)


def _negated(test: ast.expr) -> ast.expr:
    return ast.copy_location(ast.UnaryOp(ast.Not(), test), test)


def _changes(node: ast.AST) -> Iterator[Callable[[], ast.AST]]:
    """Yield what a node may become."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            if (other := _COMPARISONS.get(type(operator))) is not None:
                ops = [*node.ops[:place], other(), *node.ops[place + 1 :]]
                yield lambda ops=ops: _copied(node, ops=ops)
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        if not (_is_text(node.left) or _is_text(node.right)):
            yield lambda: _copied(node, op=_ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.AugAssign) and type(node.op) in _ARITHMETIC:
        yield lambda: _copied(node, op=_ARITHMETIC[type(node.op)]())
        yield lambda: ast.copy_location(ast.Pass(), node)
    elif isinstance(node, ast.BoolOp):
        yield lambda: _copied(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp):
        if isinstance(node.op, ast.Not | ast.Invert) or (
            isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant)
        ):
            yield lambda: node.operand
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield lambda: _copied(node, value=not node.value)
        elif isinstance(node.value, int | float):
            yield lambda: _copied(node, value=node.value + 1)
            if node.value not in (0, 1):
                yield lambda: _copied(node, value=node.value - 1)
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        yield lambda: _copied(node, test=_negated(node.test))
    elif isinstance(node, ast.Return):
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield lambda: _copied(node, value=ast.copy_location(ast.Constant(None), node))
    elif isinstance(node, ast.Raise | ast.Continue | ast.Break) or _has_effect(node):
        yield lambda: ast.copy_location(ast.Pass(), node)


def _has_effect(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call | ast.Await)
    return isinstance(node, ast.Assign) and all(isinstance(at, ast.Attribute | ast.Subscript) for at in node.targets)


def _is_untouched(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        return name in _UNTOUCHED_CALLS
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return _is_untouched(node.value)
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef) and node.name in _UNTOUCHED_FUNCTIONS


def _children(node: ast.AST) -> Iterator[tuple[ast.AST, Callable[[ast.AST], None]]]:
    for name, value in ast.iter_fields(node):
        # a cause is no behaviour, nor is the text of what is raised; an annotation says nothing at run time
        if name in ("annotation", "returns", "decorator_list") or isinstance(node, ast.Raise | ast.Assert):
            continue
        if isinstance(value, ast.AST):
            yield value, lambda new, name=name: setattr(node, name, new)
        elif isinstance(value, list):
            for place, one in enumerate(value):
                if isinstance(one, ast.AST):
                    yield one, lambda new, value=value, place=place: value.__setitem__(place, new)


def _sites(node: ast.AST, names: tuple[str, ...] = (), function: str = "") -> Iterator[_Site]:
    for child, put in _children(node):
        if _is_untouched(child) or _is_text(child):
            continue
        inner, inside = names, function
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = (*names, child.name)
            if not isinstance(child, ast.ClassDef) and not function:
                inside = ".".join(inner)
        # a default is evaluated where the function is defined, not where it is called
        at = "" if isinstance(child, ast.arguments) and function == ".".join(names) else inside
        for change in _changes(child):
            yield _Site(child, at, change, put)
        yield from _sites(child, inner, at)


def mutants_of(source: str, path: str) -> list[Mutant]:
    """Return all mutants of a source, in the order of its syntax tree."""
    found = []
    for index, site in enumerate(_sites(ast.parse(source))):
        change = f"{_text(site.node)} -> {_text(site.change())}"
        found.append(Mutant(path, index, getattr(site.node, "lineno", 0), site.function, change))
    return found


def mutated(source: str, mutant: Mutant) -> str:
    """Return the source with one change; lines stay where they were only in its tree (see :func:`compiled`)."""
    return ast.unparse(_tree(source, mutant))


def compiled(source: str, mutant: Mutant, path: Path) -> CodeType:
    """Return the changed module's code; every node keeps its line."""
    return compile(_tree(source, mutant), str(path), "exec", dont_inherit=True)


def _tree(source: str, mutant: Mutant) -> ast.Module:
    tree = ast.parse(source)
    for index, site in enumerate(_sites(tree)):
        if index == mutant.index:
            site.put(site.change())
            return ast.fix_missing_locations(tree)
    raise LookupError(f"{mutant.path} has no mutant {mutant.index}; was the source changed meanwhile?")
