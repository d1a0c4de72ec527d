"""Calls to Bybit's public endpoints through pybit, without a key: pace, retries, and an error for every failure.

pybit's own retries are off: they sleep blindly, lose the code of the error, and one of them fails on a clock that is
ahead of Bybit's. Only GET is used, so repeating a call is always safe.
"""

from __future__ import annotations

import logging
import queue
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from mlbot_core.errors import BadDataError, ConfigError, RateLimitedError, SourceError
from mlbot_core.sources.bybit_pace import Pace
from mlbot_core.sources.transport import RequestRefusedError, UnreachableError, UpstreamError

TIMEOUT_S: Final = (5.0, 20.0)
RETRIES: Final = 3
BACKOFF_S: Final = 0.5
# pybit's exceptions carry HTTP statuses and Bybit's codes in one attribute; the class tells which.
_ADDRESS_REFUSED: Final = frozenset({403, 10018})
_TOO_FAST: Final = frozenset({429, 10006})
_TRANSIENT: Final = frozenset({408, 10000, 10016})
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Reply:
    """A good answer: its ``result``, and Bybit's time when it was made, UTC ms."""

    result: Mapping[str, Any]
    server_ms: int


class _Failure(Exception):
    """One failed attempt: what was wrong, and which error it becomes if it lasts."""

    def __init__(self, problem: str, error: type[SourceError], *, retry: bool = True, limited: bool = False) -> None:
        flat = " ".join(problem.split())
        super().__init__(flat if len(flat) <= 300 else f"{flat[:300]}…")
        self.error = error
        self.retry = retry
        self.limited = limited


class BybitClient:
    """Sessions of pybit to one host, for several threads.

    Parameters
    ----------
    base_url
        Scheme and host; plain http is accepted on the loopback interface only.
    pace
        Waits for the right to call.
    retries
        How often a call that failed is repeated.
    backoff_s
        First pause before a retry, seconds; doubled each time.
    sleep
        Real seconds between retries; replaced in tests.

    Raises
    ------
    ConfigError
        If the URL is unusable.
    """

    def __init__(
        self,
        base_url: str,
        pace: Pace,
        *,
        retries: int = RETRIES,
        backoff_s: float = BACKOFF_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._loopback = _checked_host(self.base_url) in _LOOPBACK
        self._pace = pace
        self._retries = retries
        self._backoff_s = backoff_s
        self._sleep = sleep
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __repr__(self) -> str:
        return f"BybitClient({self.base_url})"

    def close(self) -> None:
        """Close the connections that are not in use."""
        while not self._idle.empty():
            self._idle.get_nowait().client.close()

    def get(self, method: str, **params: str | int) -> Reply:
        """Make one call.

        Parameters
        ----------
        method
            Name of pybit's method, such as ``get_kline``.
        params
            Its parameters, except ``category``, which is ``linear``.

        Raises
        ------
        RequestRefusedError
            At once, if Bybit refused the request itself.
        RateLimitedError
            At once for HTTP 403, which stops all callers of this machine for ten minutes; for 10006 and 429 after
            three waits.
        UpstreamError, BadDataError, UnreachableError
            If Bybit failed, sent what is not an answer, or could not be reached, four times in a row.
        """
        attempt = 0
        while True:
            self._pace.acquire()
            try:
                return self._once(method, {"category": "linear", **params})
            except _Failure as failure:
                what = f"Bybit {method} ({_describe(params)}): {failure}"
                if failure.error is RateLimitedError and not failure.limited:
                    self._pace.stop()
                    raise RateLimitedError(
                        f"{what}. Either too many calls were made from this address, or it lies where Bybit does not "
                        "serve (USA, mainland China). No call is made for 10 min; run the command again then: it goes "
                        "on where it stopped"
                    ) from None
                if not failure.retry:
                    raise failure.error(f"{what}; it was not repeated") from None
                if attempt >= self._retries:
                    raise failure.error(
                        f"{what}; {attempt + 1} attempts failed, what was stored stays as it is"
                    ) from None
                # a refusal for the rate needs seconds; anything else may be over at once
                pause = self._backoff_s * 2**attempt * (4 if failure.limited else 1)
            self._sleep(pause * random.uniform(0.75, 1.25))
            attempt += 1

    def _once(self, method: str, params: dict[str, Any]) -> Reply:
        import requests
        from pybit.exceptions import FailedRequestError, InvalidRequestError

        with self._session() as session:
            try:
                answer = getattr(session, method)(**params)
            except InvalidRequestError as error:
                raise _refused(error.status_code, str(error.message)) from None
            except FailedRequestError as error:
                if error.request == "JSON decoding":
                    raise _Failure("the body is not JSON", BadDataError) from None
                raise _failed(error.status_code) from None
            except requests.exceptions.RequestException as error:
                # what lies at the bottom of it, without the whole request that the outer layers quote
                reason = getattr(error.args[0], "reason", error) if error.args else error
                raise _Failure(f"{type(error).__name__}: {reason}", UnreachableError) from None
            except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
                # pybit looks into a body before it knows what it is
                raise _Failure(f"the body is no answer of Bybit ({type(error).__name__})", BadDataError) from None
        return _checked(answer)

    @contextmanager
    def _session(self) -> Iterator[Any]:
        """Lend one pybit session; requests' sessions are not made for several threads at once."""
        try:
            session = self._idle.get_nowait()
        except queue.Empty:
            session = self._open()
        try:
            yield session
        finally:
            self._idle.put(session)

    def _open(self) -> Any:
        from pybit.unified_trading import HTTP

        logger = logging.getLogger("pybit._http_manager")
        handlers = list(logger.handlers)
        session = HTTP(
            # one attempt; an empty set of codes would mean pybit's default ones, and any number may be one of Bybit's
            max_retries=1,
            retry_codes={"none"},
            force_retry=False,
            timeout=TIMEOUT_S,
        )
        # where nobody configured logging, each session adds a handler that repeats every line once more
        logger.handlers = handlers
        session.endpoint = self.base_url
        session.client.max_redirects = 0
        session.client.hooks["response"].append(_require_utf8)
        # a proxy from the environment must not stand between us and a local server
        session.client.trust_env = not self._loopback
        return session


def _require_utf8(response: Any, **_: Any) -> None:
    """Refuse a body that is no text: the HTTP library would guess an encoding and pybit would take the result."""
    try:
        response.content.decode("utf-8")
    except UnicodeDecodeError:
        raise _Failure(f"the body of {len(response.content)} bytes is not UTF-8", BadDataError) from None


def _refused(code: Any, message: str) -> _Failure:
    """Judge a ``retCode`` other than 0."""
    problem = f"retCode {code!r}, {message or 'no message'}"
    if not isinstance(code, int) or isinstance(code, bool):
        return _Failure(problem, BadDataError)
    if code in _ADDRESS_REFUSED:
        return _Failure(problem, RateLimitedError)
    if code in _TOO_FAST:
        return _Failure(problem, RateLimitedError, limited=True)
    if code in _TRANSIENT:
        return _Failure(problem, UpstreamError)
    return _Failure(problem, RequestRefusedError, retry=False)


def _failed(status: Any) -> _Failure:
    """Judge an HTTP status other than 200."""
    problem = f"HTTP {status}"
    if status in _ADDRESS_REFUSED:
        return _Failure(problem, RateLimitedError)
    if status in _TOO_FAST:
        return _Failure(problem, RateLimitedError, limited=True)
    if status in _TRANSIENT or (isinstance(status, int) and status >= 500):
        return _Failure(problem, UpstreamError)
    return _Failure(problem, RequestRefusedError, retry=False)


def _checked(answer: Any) -> Reply:
    """Take ``result`` and ``time`` out of the envelope that pybit let pass."""
    code = answer.get("retCode")
    if not isinstance(code, int) or isinstance(code, bool) or code != 0:
        raise _Failure(f"retCode is {code!r}, not 0", BadDataError)
    result, at = answer.get("result"), answer.get("time")
    if not isinstance(result, dict):
        raise _Failure(f"result is {type(result).__name__}, not an object", BadDataError)
    if not isinstance(at, int) or isinstance(at, bool) or not 10**12 < at < 10**13:
        raise _Failure(f"time is {str(at)[:40]!r}, not a time in ms", BadDataError)
    return Reply(result, at)


def _checked_host(base_url: str) -> str:
    try:
        parts = urlsplit(base_url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        raise ConfigError(f"Bybit URL {base_url!r} is not a URL; use https://host[:port]") from None
    if parts.scheme not in ("https", "http") or not host:
        raise ConfigError(f"Bybit URL {base_url!r} has no scheme or host; use https://host[:port]")
    if parts.scheme == "http" and host not in _LOOPBACK:
        raise ConfigError(f"Bybit URL {base_url!r} would let anybody on the way change the prices; use https")
    return host


def _describe(params: Mapping[str, str | int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in params.items())
