"""Model artefacts on disk: a folder that appears whole or not at all, and is never changed afterwards.

A folder holds the payload files and ``meta.json``; the meta names every payload with its SHA-256 and carries the
SHA-256 of itself, so a truncated, edited or swapped file is noticed before anything of it is used.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from mlbot_core.errors import MlbotError
from mlbot_core.models.canonical import canonical_json, sha256_hex

META: Final = "meta.json"
FORMAT: Final = 1


class ArtefactError(MlbotError):
    """A stored model is missing, damaged or not the one that was asked for. It is not used."""


class LibraryMismatchError(ArtefactError):
    """A stored model was trained with another release of its library. It is not used."""


def write_artefact(folder: Path, payload: Mapping[str, bytes], meta: Mapping[str, Any]) -> None:
    """Write a model into ``folder``, all or nothing, flushed to the disk.

    Writing the same model again changes nothing. A process that is killed midway leaves at most a hidden temporary
    folder beside it.

    Parameters
    ----------
    folder
        Must not exist, or hold this very model.
    payload
        File name to content.
    meta
        JSON values that describe the model.

    Raises
    ------
    ArtefactError
        If the folder holds something else already (a model version is immutable), or the disk refuses.
    """
    content = {"format": FORMAT, "files": {name: sha256_hex(data) for name, data in payload.items()}, **meta}
    text = json.dumps({**content, "sha256": sha256_hex(canonical_json(content))}, sort_keys=True, indent=1) + "\n"
    files = {**payload, META: text.encode("utf-8")}
    try:
        _write_folder(folder, files)
    except OSError as error:
        raise ArtefactError(
            f"the model cannot be written to {folder} ({error.strerror}); nothing was stored there: "
            "check space and permissions, then train again"
        ) from error


def read_artefact(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the meta and the payload of a model after all hashes were verified.

    Raises
    ------
    ArtefactError
        If a file is missing, truncated or changed, or the format is not one this code knows.
    """
    meta = _read_meta(folder)
    payload: dict[str, bytes] = {}
    for name, digest in meta["files"].items():
        if Path(name).name != name:
            raise ArtefactError(f"{folder / META} names the file {name!r} outside its folder; train the model again")
        data = _read(folder / name)
        if sha256_hex(data) != digest:
            raise ArtefactError(
                f"{folder / name} was changed or truncated after it was written ({len(data)} bytes, SHA-256 "
                f"{sha256_hex(data)[:12]}.. instead of {str(digest)[:12]}..); delete {folder} and train the model again"
            )
        payload[name] = data
    return meta, payload


def open_artefact(folder: Path, model_type: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return meta and payload of a model of one type; see :func:`read_artefact`.

    Raises
    ------
    ArtefactError
        If it is missing, damaged or of another type.
    """
    meta, payload = read_artefact(folder)
    if meta.get("type") != model_type:
        raise ArtefactError(f"{folder} holds a {meta.get('type')!r} model, not {model_type!r}; load it as what it is")
    return meta, payload


def check_libraries(folder: Path, meta: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse a model that another release of a library trained: its forecasts here were never measured.

    Parameters
    ----------
    folder
        For the message.
    meta
        Of the artefact; ``libraries`` holds name to version.
    names
        Installed packages that must be the same release.

    Raises
    ------
    LibraryMismatchError
        Naming both versions.
    ArtefactError
        If the meta does not say what trained it.
    """
    trained = meta.get("libraries")
    for name in names:
        if not isinstance(trained, dict) or name not in trained:
            raise ArtefactError(f"{folder} does not say which {name} trained it; train the model again")
        here = version(name)
        if trained[name] != here:
            raise LibraryMismatchError(
                f"{folder} was trained with {name} {trained[name]}, this environment has {name} {here}, which may "
                f"forecast otherwise; train the model again, or run it where {name} {trained[name]} is installed"
            )


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        _same_or_refuse(folder, files)
        return
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        for name, data in files.items():
            with (temporary / name).open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
        temporary.chmod(0o755)  # mkdtemp makes it private; other users of the machine may read a model
        _fsync_folder(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            _same_or_refuse(folder, files)  # another process was first
            return
        _fsync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    again = f"delete {folder} and train the model again"
    try:
        meta = json.loads(_read(path))
    except ValueError as error:
        raise ArtefactError(f"{path} is not JSON ({error}); {again}") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("files"), dict):
        raise ArtefactError(f"{path} does not describe a model; {again}")
    digest = meta.pop("sha256", None)
    if digest != sha256_hex(canonical_json(meta)):
        raise ArtefactError(f"{path} was changed after it was written: its SHA-256 does not match; {again}")
    if meta.get("format") != FORMAT:
        raise ArtefactError(f"{path} has format {meta.get('format')!r}, this code reads {FORMAT}; {again}")
    return meta


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read ({error.strerror}); train the model again") from error


def _same_or_refuse(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != data:
            raise ArtefactError(
                f"{folder} already holds another or a damaged model ({name} differs); a version is immutable: "
                "delete the folder to train it again, or save under another version"
            )


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
