"""Which code made a signal: one hash for the record, and the files behind it for whoever compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mlbot_core.provenance import PACKAGE_DIR, code_version

ROOMS: Final = ("features", "live", "market", "models", "targets", "warehouse")
"""What decides the bits of a feature vector and of a forecast."""
_OF_LIVE: Final = ("asking", "chosen", "code", "rows", "signal_store", "signals", "stacking")
"""Of the live room only these do; the others trade, watch and keep house."""


@dataclass(frozen=True)
class Code:
    """Code of some rooms.

    Parameters
    ----------
    version
        Hash over all files.
    files
        Path inside the package -> SHA-256 of the file.
    """

    version: str
    files: Mapping[str, str]

    def changes(self, other: Mapping[str, str]) -> list[str]:
        """Return, in words, what differs from the files of another version."""
        found = [
            f"{name} changed" for name in sorted(self.files.keys() & other.keys()) if self.files[name] != other[name]
        ]
        found += [f"{name} is new" for name in sorted(self.files.keys() - other.keys())]
        return found + [f"{name} is gone" for name in sorted(other.keys() - self.files.keys())]


def code_now() -> Code:
    """Return the code of this process.

    Raises
    ------
    VersionError
        If a file was edited since the process started.
    """
    paths = [path for room in ROOMS for path in sorted((PACKAGE_DIR / room).rglob("*.py"))]
    others = [path for path in paths if path.parent == PACKAGE_DIR / "live" and path.stem not in _OF_LIVE]
    left_out = [path.relative_to(PACKAGE_DIR).as_posix() for path in others]
    code_version(rooms=ROOMS, without=left_out)  # refuses what was edited under a running process
    files = {
        path.relative_to(PACKAGE_DIR).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path not in others
    }
    return Code(hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(), files)
