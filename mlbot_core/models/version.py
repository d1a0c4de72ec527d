"""A model's version: the hash of everything that decides its bytes. Same version, same bytes."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any, Final

from mlbot_core.models.canonical import canonical_json, sha256_hex
from mlbot_core.provenance import VersionError, code_version

LIBRARIES: Final = ("lightgbm", "numba", "numpy", "pandas", "scipy")

__all__ = ["LIBRARIES", "VersionError", "VersionInputs", "code_version", "library_versions", "model_version"]


@dataclass(frozen=True)
class VersionInputs:
    """Everything a model's version depends on.

    Parameters
    ----------
    code
        :func:`code_version`.
    market
        For instance ``BTC-2h``.
    source
        Where the data came from: ``emulator``, ``archive`` ...
    partitions
        Partition key to the version of the data in it. Being hashes of content they pin every row; the moment of
        the read is left out on purpose, or the same data read twice would make two versions.
    test_start_ms, test_end_ms
        Walk-forward test period by open time of bars, UTC ms; no label known after its end trained anything.
    feature_set
        Hash of the feature set.
    targets, walk_forward
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
    feature_set: str
    targets: Mapping[str, Any]
    walk_forward: Mapping[str, Any]
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


def library_versions(names: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Return the installed versions of libraries and of Python, without importing them.

    Raises
    ------
    importlib.metadata.PackageNotFoundError
        If one is not installed.
    """
    return {"python": platform.python_version()} | {name: version(name) for name in names}
