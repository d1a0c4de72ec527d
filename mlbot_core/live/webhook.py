"""Signals told to somebody else's server: retried, signed where a secret is shared, and without secrets in messages."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import SecretStr

from mlbot_core.clock import Clock
from mlbot_core.errors import MlbotError, UsageError

SIGNATURE: Final = "X-Mlbot-Signature"
TIMESTAMP: Final = "X-Mlbot-Timestamp"
_ATTEMPTS: Final = 4
_TIMEOUT_S: Final = 10.0
_PAUSE_S: Final = 1.0
_SECRET_NAMES: Final = re.compile(r"key|secret|token|password|webhook|authorization", re.IGNORECASE)


class WebhookError(MlbotError):
    """A receiver did not take a message. Nothing else was changed."""


@dataclass(frozen=True)
class Delivered:
    """A message that a receiver took: its HTTP status, and at which attempt."""

    status: int
    attempts: int


def post(url: str | SecretStr, body: Mapping[str, Any], clock: Clock, secret: SecretStr | None = None) -> Delivered:
    """Send a message as JSON.

    With a secret the header ``X-Mlbot-Signature`` holds ``sha256=`` and the HMAC-SHA256 of the timestamp header, a dot
    and the body, as hexadecimal digits.

    Parameters
    ----------
    url
        http or https; it may hold a token, so messages name its host only.
    body
        Plain values; what is named like a secret is left out.
    secret
        Shared with the receiver; None or empty: not signed.

    Raises
    ------
    UsageError
        If the URL is not one.
    WebhookError
        If it was refused, or not taken after all attempts.
    """
    import httpx

    address = url.get_secret_value() if isinstance(url, SecretStr) else url
    where = _host(address)
    text = json.dumps(redacted(body), sort_keys=True, default=str).encode("utf-8")
    headers = {"Content-Type": "application/json", TIMESTAMP: str(clock.now_ms())}
    if secret is not None and secret.get_secret_value():
        headers[SIGNATURE] = signature(secret, headers[TIMESTAMP], text)
    problem = ""
    # redirects are not followed: they would carry a signed message to whoever is named there
    with httpx.Client(timeout=_TIMEOUT_S, follow_redirects=False) as client:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = client.post(address, content=text, headers=headers)
            except httpx.HTTPError as error:
                problem = type(error).__name__
            else:
                if answer.is_success:
                    return Delivered(answer.status_code, attempt)
                problem = f"HTTP {answer.status_code}"
                if answer.status_code < 500 and answer.status_code not in (408, 429):
                    raise WebhookError(f"the receiver at {where} refused the message ({problem}); look at its address")
            if attempt < _ATTEMPTS:
                clock.sleep(_PAUSE_S * 2 ** (attempt - 1))
    raise WebhookError(
        f"the receiver at {where} did not take the message after {_ATTEMPTS} attempts (last: {problem}); send it again "
        "when it answers: the signals are stored"
    )


def signature(secret: SecretStr, timestamp: str, body: bytes) -> str:
    """Return the value of the signature header."""
    digest = hmac.new(secret.get_secret_value().encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"sha256={digest}"


def redacted(value: Any) -> Any:
    """Return plain values without those whose name is that of a secret."""
    if isinstance(value, Mapping):
        return {
            str(name): "(left out)" if _SECRET_NAMES.search(str(name)) else redacted(inner)
            for name, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redacted(inner) for inner in value]
    return value


def _host(address: str) -> str:
    try:
        parts = urllib.parse.urlsplit(address)
        host = parts.hostname
        port = parts.port
    except ValueError:
        host = port = None
        parts = urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        # the text itself may be a token that somebody pasted
        raise UsageError("the webhook address is no http or https URL; write it like https://example.org/hook")
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}"
