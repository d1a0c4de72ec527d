"""The key that signs the registry's events and gate records, and what is signed with it.

HMAC-SHA256, from the standard library. A public-key signature would let somebody verify without being able to sign;
here whoever loads a model on a machine is the same person, under the same account, who may promote one there, so it
would protect nothing more and bring a dependency. What a signature does protect against: rows written into the
database by anything else than this code with this key, by accident or on purpose. Whoever may read the key may sign.

The key is 32 random bytes in a file that only its owner may read, made once, when the registry is still empty. Machines
that share a registry share the key: copy the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path
from typing import Final

from mlbot_core.errors import ConfigError

_BYTES: Final = 32
_TEXT: Final = re.compile(rb"[0-9a-f]{64}\n")
_MODE: Final = 0o600


class Signer:
    """Signs and verifies texts with one key; never shows it.

    Parameters
    ----------
    key
        32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self.__key = key

    @property
    def key_id(self) -> str:
        """Names the key without telling it, 12 hex digits."""
        return hmac.new(self.__key, b"mlbot registry key id", hashlib.sha256).hexdigest()[:12]

    def sign(self, what: str, text: str) -> str:
        """Return the signature of a text, 64 hex digits; ``what`` keeps one kind of text from passing as another."""
        return hmac.new(self.__key, f"mlbot {what}\n{text}".encode(), hashlib.sha256).hexdigest()

    def verify(self, what: str, text: str, signature: str) -> bool:
        """Return whether this key signed exactly this text as ``what``."""
        return hmac.compare_digest(self.sign(what, text).encode(), signature.encode())

    def __repr__(self) -> str:
        return f"Signer(key_id={self.key_id!r})"


def read_signer(path: Path) -> Signer | None:
    """Return the signer of a key file, None where there is no file.

    Raises
    ------
    ConfigError
        If others than its owner may read it, it belongs to somebody else, or it does not hold a key. No message holds
        anything of its content.
    """
    try:
        found = path.stat()
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"the registry's key {path} cannot be read ({error.strerror}); run as its owner") from error
    mode = stat.S_IMODE(found.st_mode)
    if mode != _MODE:
        raise ConfigError(
            f"the registry's key {path} has mode {mode:04o}: others may sign with it; run: chmod 600 {path}"
        )
    if found.st_uid != os.geteuid():
        raise ConfigError(f"the registry's key {path} belongs to user {found.st_uid}, not to {os.geteuid()}")
    if not _TEXT.fullmatch(data):
        raise ConfigError(f"the registry's key {path} is damaged ({len(data)} bytes); restore it from a backup")
    return Signer(bytes.fromhex(data.decode("ascii")))


def make_signer(path: Path) -> Signer:
    """Return the signer of a key file that is made if there is none; of many makers at once one wins.

    Raises
    ------
    ConfigError
        As :func:`read_signer`, or if the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # of mode 0600
        try:
            os.write(handle, secrets.token_bytes(_BYTES).hex().encode("ascii") + b"\n")
            os.fsync(handle)
            # where there is a key already, perhaps since a moment ago, that one counts
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            os.close(handle)
            Path(temporary).unlink()
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(f"the registry's key {path} cannot be made ({error.strerror}); check the folder") from error
    signer = read_signer(path)
    if signer is None:
        raise ConfigError(f"the registry's key {path} vanished while it was made; look for what deletes files there")
    return signer
