"""What every configured model has in common, and how its violations are reported: all of them, each with its range."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from mlbot_core.errors import UsageError
from mlbot_core.timeframe import Timeframe

_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def _timeframe(value: Any) -> Timeframe:
    if isinstance(value, Timeframe):
        return value
    try:
        return Timeframe.parse(str(value))
    except UsageError as error:
        raise ValueError(str(error)) from error


TimeframeField = Annotated[Timeframe, BeforeValidator(_timeframe)]


class Frozen(BaseModel):
    """A model that cannot change after it was read and refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


def read_yaml(path: Path, model: type[BaseModel], overrides: Mapping[str, Any] | None = None) -> tuple[Any, list[str]]:
    """Return the model that a file holds and what is wrong with it: the one is None or the other empty.

    Parameters
    ----------
    path
        YAML file with a mapping of names to values.
    model
        To validate it by.
    overrides
        Values that replace those of the file.

    Returns
    -------
    tuple
        The model or None, and one sentence a violation: file, field, value, what is wrong, and what is allowed.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, [f"{path} is missing; restore it from the repository or point MLBOT_CONFIG_DIR at your own"]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        return None, [f"{path} cannot be read ({why}); restore it from the repository or mend its permissions"]
    except yaml.YAMLError as error:
        return None, [f"{path} is not valid YAML: {' '.join(str(error).split())}"]
    if not isinstance(raw, dict):
        return None, [f"{path} must hold a mapping of names to values, found {type(raw).__name__}"]
    try:
        return model.model_validate({**raw, **(overrides or {})}), []
    except ValidationError as error:
        return None, [f"{path}: {sentence}" for sentence in violations(model, error)]


def violations(model: type[BaseModel], error: ValidationError) -> list[str]:
    """Return one sentence a violation: field, value, what is wrong, and what is allowed there."""
    sentences = []
    for found in error.errors(include_url=False):
        place = ".".join(map(str, found["loc"])) or "file"
        # a missing key or a whole file has no value of its own to show
        shown = "" if found["type"] == "missing" or not found["loc"] else f" is {found['input']!r}"
        allowed = allowed_at(model, found["loc"])
        sentences.append(f"{place}{shown}: {found['msg']}" + (f" (allowed: {allowed})" if allowed else ""))
    return sentences


def allowed_at(model: Any, loc: tuple[int | str, ...]) -> str:
    """Return what a field may hold, in words: its bounds, its choices, or the keys that are known; empty for anything.

    Parameters
    ----------
    model
        Where the path begins.
    loc
        Path of the field, as pydantic reports it.
    """
    kind: Any = model
    hints: tuple[Any, ...] = ()
    for part in loc:
        hints = ()
        arguments = get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(part))
            if field is None:
                return "one of the keys " + ", ".join(kind.model_fields)
            kind, hints = field.annotation, tuple(field.metadata)
        elif get_origin(kind) is dict:
            kind = arguments[1]
        elif get_origin(kind) in (list, tuple) and isinstance(part, int):
            kind = arguments[0] if get_origin(kind) is list or arguments[-1] is Ellipsis else arguments[part]
        else:
            return ""
        if get_origin(kind) is Annotated:
            inner, *own = get_args(kind)
            kind, hints = inner, (*hints, *(hint for o in own for hint in getattr(o, "metadata", [o])))
        optional = [k for k in get_args(kind) if k is not type(None)]
        if type(None) in get_args(kind) and len(optional) == 1:
            kind = optional[0]
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    bounds = [f"{sign} {getattr(hint, name):g}" for hint in hints for name, sign in _BOUNDS if hasattr(hint, name)]
    return " and ".join(bounds)
