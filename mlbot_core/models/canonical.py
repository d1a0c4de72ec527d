"""One spelling for one value: canonical JSON and its hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces and ASCII only; the same value gives the same text on any machine.

    Raises
    ------
    ValueError
        If a number is NaN or infinite.
    TypeError
        If something is not JSON (a path, a numpy number, a set), or a key is not a text.
    """
    _check_keys(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_hex(data: bytes | str) -> str:
    """Return the SHA-256 of bytes or of a text's UTF-8, 64 hex digits."""
    return hashlib.sha256(data.encode("utf-8") if isinstance(data, str) else data).hexdigest()


def _check_keys(value: Any) -> None:
    # json.dumps turns 1 and "1" into the same key, which would let two values share one hash.
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not a text")
            _check_keys(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_keys(inner)
