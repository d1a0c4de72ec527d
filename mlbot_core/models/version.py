"""A model's version: the hash of everything that decides its bytes. Same version, same bytes."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any, Final

from mlbot_core.models.canonical import canonical_json, sha256_hex
from mlbot_core.provenance import VersionError, code_version

LIBRARIES: Final = ("numba", "numpy", "pandas", "scipy")
"""What features, targets and every model rest on."""
MODEL_LIBRARIES: Final[Mapping[str, tuple[str, ...]]] = {
    "lightgbm": ("lightgbm",),
    "catboost": ("catboost",),
    "tft": ("lightning", "pytorch-forecasting", "safetensors", "torch"),
}
"""What a model type rests on beside them."""
OWN_FILES: Final[Mapping[str, tuple[str, ...]]] = {
    "lightgbm": ("models/lightgbm",),
    "catboost": ("models/catboost",),
    "tft": ("models/tft",),
    "ridge": ("models/baselines", "models/linear"),
    "momentum": ("models/baselines", "models/linear"),
    "constant": ("models/baselines", "models/linear"),
    "meta": ("models/meta", "models/linear"),
}
"""Source files of a model type that no other type uses, by the beginning of their path."""

__all__ = ["OWN_FILES", "VersionError", "VersionInputs", "code_of", "code_version", "library_versions", "model_version"]


@dataclass(frozen=True)
class VersionInputs:
    """Everything a model's version depends on.

    Parameters
    ----------
    code
        :func:`code_of` the model type.
    market
        For instance ``BTC-2h``.
    source
        Where the data came from: ``emulator``, ``archive`` ...
    partitions
        Partition key to the version of the data in it. Being hashes of content they pin every row; the moment of
        the read is left out on purpose, or the same data read twice would make two versions.
    test_start_ms, test_end_ms
        Walk-forward test period by open time of bars, UTC ms; no label known after its end trained anything.
    asked_end_ms
        The end of the test period where somebody asked for one, None where it moves on with the data, UTC ms.
    feature_set
        Hash of the feature set.
    targets, walk_forward, weights
        Their sections of ``models.yaml``, as plain JSON values (``model_dump(mode="json")``).
    model_type
        For instance ``lightgbm``.
    params
        Parameters of the model, as plain JSON values.
    seed
        Of the model.
    libraries
        :func:`library_versions`.
    """

    code: str
    market: str
    source: str
    partitions: Mapping[str, str]
    test_start_ms: int
    test_end_ms: int
    asked_end_ms: int | None
    feature_set: str
    targets: Mapping[str, Any]
    walk_forward: Mapping[str, Any]
    weights: Mapping[str, Any]
    model_type: str
    params: Mapping[str, Any]
    seed: int
    libraries: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return plain values, the text that is hashed and that a report may print."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items()}


def model_version(inputs: VersionInputs) -> str:
    """Return the model version, 64 hex digits.

    Raises
    ------
    VersionError
        If something is not a plain JSON value, or a number is NaN or infinite.
    """
    try:
        return sha256_hex(canonical_json(inputs.as_json()))
    except (TypeError, ValueError) as error:
        raise VersionError(f"the model version needs plain JSON values: {error}") from error


def code_of(model_type: str) -> str:
    """Return the version of the code that decides a model's bytes: that of other model types does not count."""
    mine = OWN_FILES.get(model_type, ())
    others = {name for names in OWN_FILES.values() for name in names} - set(mine)
    return code_version(without=sorted(others))


def library_versions(model_type: str) -> dict[str, str]:
    """Return the installed versions of Python and of what a model type rests on, without importing them.

    Raises
    ------
    importlib.metadata.PackageNotFoundError
        If one is not installed.
    """
    names = (*LIBRARIES, *MODEL_LIBRARIES.get(model_type, ()))
    return {"python": platform.python_version()} | {name: version(name) for name in names}
