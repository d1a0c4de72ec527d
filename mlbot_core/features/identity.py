"""What code a column rests on, found by following names, so that no change of it is invisible.

From a compute function its own source is taken, and everything that its code names: helpers and constants of its own
module, of another family or of another room one by one; a module whole, and if it belongs to this room (the kernel
modules) with the modules of this room that it imports in turn. So a changed or new kernel file changes the hash of the
feature sets whose functions name it, and of no other. Libraries outside enter with their version.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from mlbot_core.errors import UsageError

_PACKAGE: Final = "mlbot_core"
_ROOM: Final = "mlbot_core.features"
# they declare, lay out or run features but compute none
_NOT_KERNELS: Final = frozenset({f"{_ROOM}.{name}" for name in ("registry", "panel", "identity", "sets")} | {_ROOM})
_DISTRIBUTIONS: Final = {"talib": "ta-lib", "sklearn": "scikit-learn"}
_PLAIN: Final = (bool, int, float, str, bytes, type(None))


def code_identity(compute: Callable[..., Any], families: frozenset[str]) -> dict[str, str]:
    """Return everything that decides what ``compute`` yields: name of a function, module, constant or library -> text.

    Parameters
    ----------
    families
        Names of the modules in which features are declared: of a function in one of them only what it names
        is taken, not the whole module.
    """
    trace = _Trace(families)
    trace.function(compute)
    return dict(sorted(trace.found.items()))


class _Trace:
    def __init__(self, families: frozenset[str]) -> None:
        self.families = families
        self.found: dict[str, str] = {}

    def function(self, given: Callable[..., Any]) -> None:
        if isinstance(given, type):
            self.found[f"{given.__module__}.{given.__qualname__}"] = _source(given)
            return
        plain = _plain_function(given, self)
        if plain is None:
            return
        key = f"{plain.__module__}.{plain.__qualname__}"
        if key in self.found:
            return
        self.found[key] = _source(plain)
        names, imports = _names(plain.__code__)
        for name in sorted(names & plain.__globals__.keys()):
            self.value(plain.__module__, name, plain.__globals__[name])
        for name, cell in zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True):
            self.value(key, name, cell.cell_contents)
        for name in sorted(imports):
            self.module(importlib.import_module(name))

    def value(self, owner: str, name: str, value: Any) -> None:
        if isinstance(value, ModuleType):
            self.module(value)
        elif isinstance(value, _PLAIN):
            self.found[f"{owner}.{name}"] = repr(value)
        elif isinstance(value, (tuple, list, frozenset, set)):
            for position, item in enumerate(sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value):
                self.value(owner, f"{name}[{position}]", item)
        elif isinstance(value, dict):
            for key, item in value.items():
                self.value(owner, f"{name}[{key!r}]", item)
        elif hasattr(value, "tobytes"):
            self.found[f"{owner}.{name}"] = hashlib.sha256(value.tobytes()).hexdigest()
        else:
            module = str(getattr(value, "__module__", "") or "")
            ours = module.startswith(f"{_PACKAGE}.")
            if module == owner or module in self.families or (ours and not module.startswith(f"{_ROOM}.")):
                self.function(value)
            elif module in sys.modules:
                self.module(sys.modules[module])

    def module(self, module: ModuleType) -> None:
        name = module.__name__
        top = name.partition(".")[0]
        if name in self.found or name in _NOT_KERNELS:
            return
        if top != _PACKAGE:
            self.library(top)
            return
        self.found[name] = _source(module)
        if name.startswith(f"{_ROOM}."):
            for other in _imported(module):
                self.module(other)

    def library(self, top: str) -> None:
        if top in sys.stdlib_module_names or top in {"numpy", "numba"}:  # these are in every model's version
            return
        try:
            self.found[top] = version(_DISTRIBUTIONS.get(top, top))
        except PackageNotFoundError:
            self.found[top] = "of no installed distribution"


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except OSError as error:
        raise UsageError(
            f"the source of {getattr(thing, '__qualname__', thing.__name__)} cannot be read ({error}): it was changed "
            "or removed since this process began; start it again"
        ) from error


def _plain_function(given: Any, trace: _Trace) -> FunctionType | None:
    """Return the Python function beneath a compiled, wrapped or partly applied one."""
    while not isinstance(given, FunctionType):
        if isinstance(given, functools.partial):
            trace.value("partial", repr(given.args), [*given.args, given.keywords])
            given = given.func
        elif hasattr(given, "py_func"):
            given = given.py_func
        elif hasattr(given, "__wrapped__"):
            given = given.__wrapped__
        else:
            return None
    return given


def _names(code: CodeType) -> tuple[set[str], set[str]]:
    """Return the names that a function's code reads and the modules that it imports, inner functions included."""
    names = set(code.co_names)
    imports = {str(step.argval) for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME"}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            inner_names, inner_imports = _names(inner)
            names |= inner_names
            imports |= inner_imports
    return names, imports


def _imported(module: ModuleType) -> Iterator[ModuleType]:
    """Yield the modules of this room that a module took something from."""
    for value in vars(module).values():
        name = value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", "") or "")
        if name.startswith(f"{_ROOM}.") and name != module.__name__ and name in sys.modules:
            yield sys.modules[name]
