"""A key pair that signs requests and streams and never shows itself."""

from __future__ import annotations

import base64
import hashlib
import hmac
import urllib.parse
from typing import Final

from mlbot_core.config.secrets import KeyPair
from mlbot_core.errors import ConfigError

_LONGEST_MESSAGE: Final = 300
_SHORTEST_SECRET: Final = 4


class Signer:
    """A key pair that signs and never shows itself.

    Parameters
    ----------
    pair
        Key and secret.

    Raises
    ------
    ConfigError
        If either is missing.
    """

    def __init__(self, pair: KeyPair) -> None:
        if not pair.key.get_secret_value() or not pair.secret.get_secret_value():
            raise ConfigError("trading needs bybit.key and bybit.secret in api_keys.yaml (or MLBOT_BYBIT_KEY, _SECRET)")
        self._pair = pair
        self._traces = tuple(sorted(_traces(pair), key=len, reverse=True))

    def __repr__(self) -> str:
        return f"Signer({self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the key's SHA-256: names a key without showing it."""
        return hashlib.sha256(self._pair.key.get_secret_value().encode()).hexdigest()[:16]

    @property
    def key(self) -> str:
        """The key, for a header."""
        return self._pair.key.get_secret_value()

    def sign(self, message: str) -> str:
        """Return the HMAC-SHA256 of a message, lower-case hex."""
        return hmac.new(self._pair.secret.get_secret_value().encode(), message.encode(), hashlib.sha256).hexdigest()

    def headers(self, payload: str, now_ms: int, window_ms: int) -> dict[str, str]:
        """Return the headers that sign a request: raw query of a GET, raw body of a POST."""
        stamp, window = str(now_ms), str(window_ms)
        return {
            "Content-Type": "application/json",
            "X-BAPI-API-KEY": self.key,
            "X-BAPI-SIGN": self.sign(stamp + self.key + window + payload),
            "X-BAPI-SIGN-TYPE": "2",
            "X-BAPI-TIMESTAMP": stamp,
            "X-BAPI-RECV-WINDOW": window,
        }

    def scrub(self, text: str) -> str:
        """Return a text in one line, cut, without key or secret in plain, URL-encoded or base64 form."""
        flat = " ".join(text.split())
        for trace in self._traces:
            flat = flat.replace(trace, "***")
        return flat if len(flat) <= _LONGEST_MESSAGE else f"{flat[:_LONGEST_MESSAGE]}…"


def _traces(pair: KeyPair) -> set[str]:
    found: set[str] = set()
    for secret in (pair.key.get_secret_value(), pair.secret.get_secret_value()):
        raw = secret.encode()
        found |= {secret, urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret)}
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(raw).decode().rstrip("="))
    return {trace for trace in found if len(trace) >= _SHORTEST_SECRET}
