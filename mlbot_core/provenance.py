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
# what happens to a model after its bytes are made: counting, judging, signing, promoting and loading it. That training
# imports none of it is tested.
AFTER_THE_BYTES: Final = (
    "models/explain",
    "models/gate",
    "models/lift_plot",
    "models/loading",
    "models/registration",
    "models/registry",
    "models/signing",
    "validation/criteria",
    "validation/namespaces",
    "validation/off_policy",
    "validation/sqlstore",
    "validation/trials",
)


class VersionError(MlbotError):
    """A version cannot be computed from what was given."""


def code_version(
    package_dir: Path = PACKAGE_DIR, rooms: Sequence[str] = CODE_ROOMS, without: Sequence[str] = ()
) -> str:
    """Return the hash of the ``*.py`` files of some rooms (by default those that decide a model), 64 hex digits.

    What only handles a finished model (:data:`AFTER_THE_BYTES`) is left out, and files whose path begins with one of
    ``without``.

    It depends on the files' paths inside the package and on their bytes, not on where the package lies.

    Raises
    ------
    VersionError
        If a room has no source files, or this package's own were edited since the process started.
    """
    digests: dict[str, str] = {}
    for room in rooms:
        found = sorted((package_dir / room).rglob("*.py"))
        if not found:
            raise VersionError(f"no source files in {package_dir / room}; is the package installed with its sources?")
        digests |= {
            name: digest
            for name, digest in _digests(package_dir, found).items()
            if not name.startswith((*AFTER_THE_BYTES, *without))
        }
    if package_dir == PACKAGE_DIR:
        edited = sorted(name for name, digest in digests.items() if _AT_START.get(name) != digest)
        if edited:
            raise VersionError(
                f"{', '.join(edited[:3])}{' and more' if len(edited) > 3 else ''} changed on disk since this process "
                "started, so its version would name code that is not the one running; start the command again"
            )
    return hashlib.sha256(json.dumps(digests, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _digests(package_dir: Path, files: Sequence[Path]) -> dict[str, str]:
    """Return each file's path inside the package and the SHA-256 of its bytes."""
    return {path.relative_to(package_dir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# what was on disk when this process began to import: a version must not name what was edited afterwards
_AT_START: Final = _digests(PACKAGE_DIR, list(PACKAGE_DIR.rglob("*.py")))
