"""Raw questions of a probe: what exactly came back, with status, code and headers; never raises for it."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from mlbot_core.clock import Clock
from mlbot_core.execution.bybit_signer import Signer

_WINDOW_MS: Final = 5_000
_TIMEOUT_S: Final = 20.0
# Until the server tells how often it may be asked.
_FIRST_LIMIT: Final = 28


@dataclass(frozen=True)
class Heard:
    """One answer.

    Parameters
    ----------
    asked
        Path and parameters, without anything secret.
    status
        HTTP; 0 where nothing came back.
    code, message
        Of the envelope, as texts; ``message`` names the network's failure where there is no envelope.
    data
        ``result`` of Bybit, ``data`` of Coinglass.
    headers
        With lower-case names.
    sent_ms, heard_ms
        UTC ms of our clock.
    server_ms
        The server's time where it tells.
    """

    asked: str
    status: int
    code: str
    message: str
    data: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    sent_ms: int = 0
    heard_ms: int = 0
    server_ms: int | None = None

    @property
    def good(self) -> bool:
        """Whether it is a success by the envelope."""
        return self.status == 200 and self.code == "0"

    @property
    def refusal(self) -> str:
        """What came back in place of data, for a person."""
        return f"HTTP {self.status}, code {self.code or 'none'}: {self.message}" if self.status else self.message


class Asker:
    """Asks a server whose answers are envelopes.

    Parameters
    ----------
    url
        Scheme and host.
    signer
        Knows what must never be repeated.
    clock
        Stamps.
    local
        No proxy of the environment lies in between.
    """

    _code, _message, _data = "code", "msg", "data"

    def __init__(self, url: str, signer: Signer, clock: Clock, *, local: bool) -> None:
        self.url = url.rstrip("/")
        self._signer = signer
        self._clock = clock
        self._refused = False
        self._http = httpx.Client(base_url=self.url, timeout=_TIMEOUT_S, trust_env=not local)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url}, {self._signer!r})"

    def close(self) -> None:
        """Let go of connections."""
        self._http.close()

    def get(self, path: str, **params: str | int) -> Heard:
        """Ask for a path."""
        query = urllib.parse.urlencode(sorted((name, str(value)) for name, value in params.items()))
        return self._send(path, query)

    def _headers(self, _payload: str) -> dict[str, str]:
        raise NotImplementedError

    def _send(self, path: str, query: str) -> Heard:
        asked = self._signer.scrub(f"GET {path}{'?' if query else ''}{query}")
        sent = self._clock.now_ms()
        if self._refused:
            return Heard(asked, 0, "", "not asked: this address was refused before (HTTP 403)", None, sent_ms=sent)
        try:
            response = self._http.get(f"{path}?{query}" if query else path, headers=self._headers(query))
            status, headers = response.status_code, {name.lower(): value for name, value in response.headers.items()}
        except httpx.HTTPError as error:
            return Heard(asked, 0, "", f"no answer ({type(error).__name__})", None, sent_ms=sent)
        heard = self._clock.now_ms()
        # calls made after a refusal of the address prolong it
        self._refused = status == 403
        try:
            envelope = response.json()
        except ValueError:
            envelope = None
        if not isinstance(envelope, dict):
            return Heard(asked, status, "", "no JSON object", None, headers, sent, heard)
        message = self._signer.scrub(str(envelope.get(self._message) or ""))
        server = envelope.get("time")
        return Heard(
            asked,
            status,
            self._signer.scrub(str(envelope.get(self._code, ""))),
            message,
            envelope.get(self._data),
            headers,
            sent,
            heard,
            server if isinstance(server, int) else None,
        )


class BybitAsker(Asker):
    """Signs every question, the public ones too, as Bybit allows."""

    _code, _message, _data = "retCode", "retMsg", "result"

    def _headers(self, _payload: str) -> dict[str, str]:
        return self._signer.headers(_payload, self._clock.now_ms(), _WINDOW_MS)


class CoinglassAsker(Asker):
    """Keeps to three quarters of the calls per minute that the key may make."""

    def __init__(self, url: str, signer: Signer, clock: Clock, *, local: bool) -> None:
        super().__init__(url, signer, clock, local=local)
        self._limit = _FIRST_LIMIT
        self._next_ms = 0

    def _headers(self, _payload: str) -> dict[str, str]:
        return {"CG-API-KEY": self._signer.key, "accept": "application/json"}

    def _send(self, path: str, query: str) -> Heard:
        self._clock.sleep(max(0, self._next_ms - self._clock.now_ms()) / 1000)
        heard = super()._send(path, query)
        allowed = heard.headers.get("api-key-max-limit", "")
        if allowed.isascii() and allowed.isdigit() and int(allowed) > 0:
            self._limit = int(allowed)
        self._next_ms = heard.sent_ms + 80_000 // self._limit
        return heard
