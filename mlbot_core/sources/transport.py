"""Calls to Coinglass over HTTP: key, pace, retries, and an error for every way an answer can fail.

The key is put on a request at the moment it is sent and is cut out of every text that comes from outside.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx
from pydantic import SecretStr

from mlbot_core.clock import Clock
from mlbot_core.errors import (
    BadDataError,
    ConfigError,
    KeyRejectedError,
    PlanError,
    RateLimitedError,
    SourceError,
)
from mlbot_core.sources.envelope import Envelope, Outcome, read_envelope
from mlbot_core.sources.ratelimit import RateLimiter, bucket_path

_LOG = logging.getLogger(__name__)

KEY_HEADER: Final = "CG-API-KEY"
TIMEOUT: Final = httpx.Timeout(15.0, connect=5.0)
RETRIES: Final = 3
BACKOFF_S: Final = 0.5


class RequestRefusedError(SourceError):
    """The server refused the request itself: wrong parameter, path or pair. Never retried."""


class IntervalRefusedError(RequestRefusedError):
    """The endpoint does not know the interval as it was spelled."""


class UpstreamError(SourceError):
    """The server went on failing (5xx, or code 500 inside HTTP 200); a smaller ``limit`` may help."""


class UnreachableError(SourceError):
    """No connection, or none that lasted for a whole answer."""


@dataclass(frozen=True)
class Answer:
    """A successful answer: payload, and the injected clock's time before the call and after it, UTC ms."""

    data: Any
    asked_at: int
    received_at: int


class _HeaderKey(httpx.Auth):
    """Adds the key to a request as it leaves, so that no request or client that is still around holds it."""

    def __init__(self, key: SecretStr) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers[KEY_HEADER] = self._key.get_secret_value()
        yield request


class Transport:
    """One connection pool to one host with one key.

    Parameters
    ----------
    base_url
        Scheme and host; plain http is accepted on the loopback interface only.
    key
        The API key.
    clock
        The injected clock.
    rate_folder
        Where processes share the pace of a key; None paces this object alone.
    backoff_s
        First pause before a retry, seconds; doubled each time.
    sleep
        Real seconds between retries; replaced in tests.

    Raises
    ------
    ConfigError
        If the URL is unusable or would send the key in the clear.
    KeyRejectedError
        If the key cannot be a header's value.
    """

    def __init__(
        self,
        base_url: str,
        key: SecretStr,
        clock: Clock,
        *,
        rate_folder: Path | None = None,
        backoff_s: float = BACKOFF_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        url = _checked_url(base_url)
        self.base_url = str(url).rstrip("/")
        if not _fits_header(key):
            # the HTTP library's own complaint would quote the key
            raise KeyRejectedError("the Coinglass API key has characters no key has (spaces, line ends); copy it again")
        self._key = key
        self._clock = clock
        self._backoff_s = backoff_s
        self._sleep = sleep
        path = None if rate_folder is None else bucket_path(rate_folder, url.host, key.get_secret_value())
        self.limiter = RateLimiter(clock, path=path)
        self._client = httpx.Client(
            base_url=url,
            auth=_HeaderKey(key),
            timeout=TIMEOUT,
            headers={"accept": "application/json"},
            # a proxy from the environment must not stand between us and a local server
            trust_env=not _is_loopback(url.host),
        )

    def __repr__(self) -> str:
        return f"Transport({self.base_url})"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str, params: Mapping[str, str | int], container: type | tuple[type, ...] = list) -> Answer:
        """Make one call, retried as the error map of the reference says.

        Parameters
        ----------
        path
            Endpoint, from ``/api``.
        params
            Query parameters.
        container
            Type that ``data`` must have.

        Raises
        ------
        PlanError, KeyRejectedError, RequestRefusedError
            At once.
        RateLimitedError
            If refused for the rate after three waits for the next minute.
        UpstreamError, BadDataError, UnreachableError
            If the server failed, sent what is not an answer, or could not be reached, four times in a row.
        """
        failures = refusals = 0
        began = time.monotonic()
        problems: list[str] = []
        while True:
            self.limiter.acquire()
            asked_at = self._clock.now_ms()
            retry_after: float | None = None
            problem: str
            try:
                response = self._client.get(path, params=dict(params))
            except httpx.RequestError as error:
                envelope = None
                problem = self._without_key(f"{type(error).__name__}: {error}".encode()).decode()
            else:
                self.limiter.learn(response.headers)
                retry_after = _seconds(response.headers.get("retry-after"))
                envelope = read_envelope(response.status_code, self._without_key(response.content), container)
                if envelope.outcome is Outcome.OK:
                    if problems:
                        _report(path, params, problems, time.monotonic() - began)
                    return Answer(envelope.data, asked_at, max(asked_at, self._clock.now_ms()))
                problem = f"HTTP {envelope.status}, code {envelope.code}, {envelope.msg or 'no message'}"
            problems.append(_one_line(problem))
            what = f"Coinglass {path} ({_describe(params)}): {problems[-1]}"
            if envelope is not None and envelope.outcome is Outcome.RATE_LIMITED:
                if refusals >= RETRIES:
                    _fail(RateLimitedError(f"{what}; still refused after {refusals} waits, try again later"))
                self.limiter.wait_out(refusals, retry_after)
                refusals += 1
                continue
            _raise_if_permanent(envelope, what)
            if failures >= RETRIES:
                _raise_exhausted(envelope, f"{what}; {failures + 1} attempts failed")
            self._sleep(self._backoff_s * 2**failures * random.uniform(0.75, 1.25))
            failures += 1

    def _without_key(self, text: bytes) -> bytes:
        """Cut the key out of what came from outside: a server may quote it in its answer."""
        return text.replace(self._key.get_secret_value().encode(), b"***")


def _report(path: str, params: Mapping[str, str | int], problems: list[str], seconds: float) -> None:
    """Write one line for a call that was answered in the end; one that was not ends in an error that says it."""
    counts = {problem: problems.count(problem) for problem in problems}
    told = "; ".join(problem if count == 1 else f"{count} times {problem}" for problem, count in counts.items())
    _LOG.warning(
        "Coinglass %s (%s): answered after %d failed attempts and %.1f s: %s",
        path, _describe(params), len(problems), seconds, told,
    )  # fmt: skip


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 300 else f"{flat[:300]}…"


def _fail(error: SourceError) -> NoReturn:
    # the cause is in the message; the HTTP library's exception would carry the request and its headers along
    raise error from None


def _raise_if_permanent(envelope: Envelope | None, what: str) -> None:
    if envelope is None:
        return
    if envelope.outcome is Outcome.NOT_IN_PLAN:
        _fail(PlanError(f"{what}; this key's plan does not include it: choose a longer interval or another plan"))
    if envelope.outcome is Outcome.KEY_REJECTED:
        _fail(KeyRejectedError(f"{what}; check cg_api in config/api_keys.yaml (or MLBOT_CG_API)"))
    if envelope.outcome is Outcome.BAD_INTERVAL:
        _fail(IntervalRefusedError(f"{what}; the endpoint does not know this interval"))
    if envelope.outcome is Outcome.REFUSED:
        _fail(RequestRefusedError(f"{what}; the request is wrong or the endpoint has moved: it was not repeated"))


def _raise_exhausted(envelope: Envelope | None, what: str) -> NoReturn:
    if envelope is None:
        _fail(UnreachableError(f"{what}; the server cannot be reached, what was stored stays as it is"))
    if envelope.outcome is Outcome.MALFORMED:
        _fail(BadDataError(f"{what}; nothing of it was stored"))
    _fail(UpstreamError(f"{what}; the server is failing, what was stored stays as it is"))


def _checked_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError):
        raise ConfigError(f"Coinglass URL {base_url!r} is not a URL; use https://host[:port]") from None
    if url.scheme not in ("https", "http") or not url.host:
        raise ConfigError(f"Coinglass URL {base_url!r} has no scheme or host; use https://host[:port]")
    if url.scheme == "http" and not _is_loopback(url.host):
        raise ConfigError(f"Coinglass URL {base_url!r} would send the key unencrypted; use https")
    return url


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _fits_header(key: SecretStr) -> bool:
    text = key.get_secret_value()
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _describe(params: Mapping[str, str | int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in params.items())


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
