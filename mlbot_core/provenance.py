"""What code made a thing: a hash of source files, so that a change of code is never invisible."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mlbot_core.errors import MlbotError

PACKAGE_DIR: Final = Path(__file__).resolve().parent
CODE_ROOMS: Final = ("features", "targets", "validation", "models")


class VersionError(MlbotError):
    """A version cannot be computed from what was given."""


def code_version(package_dir: Path = PACKAGE_DIR, rooms: Sequence[str] = CODE_ROOMS) -> str:
    """Return the hash of the ``*.py`` files of some rooms (by default those that decide a model), 64 hex digits.

    It depends on the files' paths inside the package and on their bytes, not on where the package lies.

    Raises
    ------
    VersionError
        If a room has no source files.
    """
    digests: dict[str, str] = {}
    for room in rooms:
        found = sorted((package_dir / room).rglob("*.py"))
        if not found:
            raise VersionError(f"no source files in {package_dir / room}; is the package installed with its sources?")
        digests |= {p.relative_to(package_dir).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}
    return hashlib.sha256(json.dumps(digests, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
