"""One signed request to Bybit through pybit: once, at its own pace, and with nothing secret left behind.

What pybit does by itself is switched off here, because a broker must not have it (pybit 5.17.0):

- it repeats requests, orders included: ``max_retries=1`` is one attempt (0 would send nothing), ``retry_codes`` is a
  set of one text, because an empty one means pybit's own codes;
- redirects are followed by ``requests``, which would send an order twice: none is followed;
- it stamps with the wall clock and keeps the secret as an attribute that its ``repr`` prints: headers are made here,
  from the injected clock, and pybit never learns the secret;
- its exceptions quote the whole request and carry headers: none of them leaves this module, not even as a context.
"""

from __future__ import annotations

import functools
import http.client
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlbot_core.clock import Clock
from mlbot_core.execution.broker import MaySend
from mlbot_core.execution.bybit_errors import (
    ADDRESS_BANNED,
    BAN_MS,
    RATE_LIMITED,
    RATE_PAUSE_MS,
    Failure,
    Kind,
)
from mlbot_core.execution.bybit_signer import Signer

if TYPE_CHECKING:
    from requests.adapters import BaseAdapter

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 10.0
RECV_WINDOW_MS: Final = 5_000
_LONGEST_WAIT_MS: Final = 5_000
_PYBIT_LOGGERS: Final = ("pybit._http_manager", "pybit.unified_trading")


@dataclass(frozen=True)
class Reply:
    """A good answer: its ``result``, and Bybit's time when it was made, UTC ms."""

    result: Mapping[str, Any]
    server_ms: int


class _GateClosed(Exception):
    """The last question before the bytes was answered with no."""


class _Sending:
    """The one request that this thread is sending."""

    def __init__(self, may_send: MaySend | None) -> None:
        self._may_send = may_send
        self.written = False

    def pass_gate(self) -> None:
        """Go on to write, or raise; a request of which only the head was written is none: its body is signed."""
        if self._may_send is not None and not self._may_send():
            raise _GateClosed
        self.written = True


_SENDING: ContextVar[_Sending | None] = ContextVar("mlbot_sending", default=None)


def _pass_gate() -> None:
    sending = _SENDING.get()
    if sending is not None:
        sending.pass_gate()


@functools.cache
def _transports() -> tuple[Callable[[], BaseAdapter], Callable[[BaseAdapter], BaseAdapter]]:
    """Return the transport over sockets, and the wrapper around any other; both ask at the gate before they write."""
    import requests.adapters
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    class Plain(HTTPConnection):
        def send(self, data: Any) -> None:
            if self.sock is None:
                self.connect()
            _pass_gate()
            super().send(data)

    class Tls(HTTPSConnection):
        def send(self, data: Any) -> None:
            if self.sock is None:
                self.connect()
            _pass_gate()
            super().send(data)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = Tls

    pools = {"http": PlainPool, "https": TlsPool}

    class Sockets(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, **options)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
            manager = super().proxy_manager_for(*args, **options)
            manager.pool_classes_by_scheme = pools
            return manager

    class Wrapped(requests.adapters.BaseAdapter):
        def __init__(self, inner: BaseAdapter) -> None:
            super().__init__()
            self._inner = inner

        def send(self, *args: Any, **options: Any) -> Any:
            _pass_gate()
            return self._inner.send(*args, **options)

        def close(self) -> None:
            self._inner.close()

    return Sockets, Wrapped


class Wire:
    """Sends requests; never raises for what the exchange or the network does.

    Safe for several threads: each request borrows a session of its own.

    Parameters
    ----------
    url
        Scheme and host.
    signer
        Key pair.
    clock
        Stamps requests, and passes while the rate limit is waited for.
    adapter
        A transport of ``requests`` in place of sockets.
    timeout_s
        For connecting, and for each wait for bytes of the answer, seconds.
    use_environment
        Whether proxies of the environment apply; never for an emulator. Its certificates do not: pybit sends in a way
        in which ``requests`` does not look at ``REQUESTS_CA_BUNDLE``.
    authorities
        File of the certificate authorities to trust in place of the public ones.
    """

    def __init__(
        self,
        url: str,
        signer: Signer,
        clock: Clock,
        *,
        adapter: BaseAdapter | None = None,
        timeout_s: tuple[float, float] = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
        use_environment: bool = False,
        authorities: Path | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._signer = signer
        self._clock = clock
        self._adapter = adapter
        self._timeout_s = timeout_s
        self._use_environment = use_environment
        self._authorities = authorities
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._not_before: dict[str, int] = {}
        self._banned_until_ms = 0

    def __repr__(self) -> str:
        return f"Wire({self.url}, {self._signer!r})"

    def close(self) -> None:
        """Close the connections that are not in use."""
        while not self._idle.empty():
            self._idle.get_nowait().client.close()

    def call(self, method: str, params: Mapping[str, Any], may_send: MaySend | None = None) -> Reply | Failure:
        """Make one request, once.

        Parameters
        ----------
        method
            Name of pybit's method.
        params
            Numbers as texts.
        may_send
            Asked right before the head, and again right before the body is written.
        """
        failure = self._wait_for_turn(method)
        if failure is not None:
            return failure
        session = self._borrow()
        sending = _Sending(may_send)
        token = _SENDING.set(sending)
        try:
            made = self._attempt(session, method, dict(params), sending)
        finally:
            _SENDING.reset(token)
            self._idle.put(session)
        if isinstance(made, Failure):
            self._learn(method, made)
        return made

    def _attempt(self, session: Any, method: str, params: dict[str, Any], sending: _Sending) -> Reply | Failure:
        import requests
        import urllib3.exceptions
        from pybit.exceptions import FailedRequestError, InvalidRequestError

        try:
            answer, _, headers = getattr(session, method)(**params)
        except _GateClosed:
            return Failure(Kind.GATE, 0, "the check right before sending said no", written=False)
        except InvalidRequestError as error:
            return self._refused(method, error.status_code, error.message, error.resp_headers)
        except FailedRequestError as error:
            if error.request == "JSON decoding":
                return Failure(Kind.UNPARSABLE, 0, "the answer is not JSON")
            if not isinstance(error.status_code, int):
                return Failure(Kind.UNPARSABLE, 0, "the answer has no status")
            return Failure(Kind.HTTP, error.status_code, str(error.message))
        except (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
        ) as error:
            # only the kind: the text may quote the request
            return Failure(Kind.NETWORK, 0, type(error).__name__, written=sending.written)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            # pybit looks into a body before it knows what it is
            return Failure(Kind.UNPARSABLE, 0, type(error).__name__, written=sending.written)
        self._note_limit(method, headers)
        return self._checked(answer)

    def _refused(self, method: str, code: Any, message: Any, headers: Any) -> Failure:
        self._note_limit(method, headers)
        if not isinstance(code, int) or isinstance(code, bool):
            return Failure(Kind.UNPARSABLE, 0, "retCode is not a number")
        reset = _header(headers, "X-Bapi-Limit-Reset-Timestamp") if code == RATE_LIMITED else None
        return Failure(Kind.VENUE, code, self._signer.scrub(str(message)), retry_at_ms=reset)

    def _checked(self, answer: Any) -> Reply | Failure:
        """Take ``result`` and ``time`` out of the envelope that pybit let pass."""
        if not isinstance(answer, dict):
            return Failure(Kind.UNPARSABLE, 0, "the answer is not an object")
        code, result, at = answer.get("retCode"), answer.get("result"), answer.get("time")
        if isinstance(code, bool) or code != 0:
            return Failure(Kind.UNPARSABLE, 0, "retCode is not 0 and not a refusal")
        if not isinstance(result, dict) or not isinstance(at, int) or isinstance(at, bool):
            return Failure(Kind.UNPARSABLE, 0, "the answer has no result or no time")
        return Reply(result, at)

    # --- pace

    def _wait_for_turn(self, method: str) -> Failure | None:
        with self._lock:
            now = self._clock.now_ms()
            if now < self._banned_until_ms:
                left = (self._banned_until_ms - now + 59_999) // 60_000
                message = f"this address was refused (HTTP 403 or 10018); no call for {left} more min"
                return Failure(Kind.BANNED, 0, message, written=False, retry_at_ms=self._banned_until_ms)
            wait_ms = min(self._not_before.get(method, 0) - now, _LONGEST_WAIT_MS)
        if wait_ms > 0:
            self._clock.sleep(wait_ms / 1000)
        return None

    def _note_limit(self, method: str, headers: Any) -> None:
        """Keep away from an endpoint whose second is used up."""
        left = _header(headers, "X-Bapi-Limit-Status")
        if left is None or left > 0:
            return
        now = self._clock.now_ms()
        reset = _header(headers, "X-Bapi-Limit-Reset-Timestamp") or 0
        # the header names the present where nothing was exceeded yet; the second is a rolling one
        with self._lock:
            self._not_before[method] = reset if reset > now else now + 1_000

    def _learn(self, method: str, failure: Failure) -> None:
        now = self._clock.now_ms()
        with self._lock:
            if (failure.kind is Kind.HTTP and failure.code == 403) or (
                failure.kind is Kind.VENUE and failure.code == ADDRESS_BANNED
            ):
                self._banned_until_ms = now + BAN_MS
            elif failure.kind is Kind.VENUE and failure.code == RATE_LIMITED:
                self._not_before[method] = max(failure.retry_at_ms or now + RATE_PAUSE_MS, now)

    # --- sessions

    def _borrow(self) -> Any:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self._open()

    def _open(self) -> Any:
        from pybit.unified_trading import HTTP

        signer, clock = self._signer, self._clock

        class Session(HTTP):
            """pybit without a secret."""

            def __repr__(self) -> str:
                return f"Session({signer!r})"

            def _prepare_headers(
                self, payload: str, recv_window: int, content_type: str = "application/json"
            ) -> dict[str, str]:
                return {**signer.headers(payload, clock.now_ms(), recv_window), "Content-Type": content_type}

        loggers = [logging.getLogger(name) for name in _PYBIT_LOGGERS]
        handlers = [list(logger.handlers) for logger in loggers]
        session = Session(
            max_retries=1,
            retry_codes={"none"},
            force_retry=False,
            log_requests=False,
            timeout=self._timeout_s,
            recv_window=RECV_WINDOW_MS,
            return_response_headers=True,
        )
        for logger, before in zip(loggers, handlers, strict=True):
            # where nobody configured logging, each session would add a handler; at DEBUG whole answers are logged
            logger.handlers = before
            logger.setLevel(logging.WARNING)
        session.endpoint = self.url
        session.client.max_redirects = 0
        session.client.trust_env = self._use_environment
        session.client.verify = True if self._authorities is None else str(self._authorities)
        session.client.hooks["response"].append(_require_utf8)
        sockets, wrapped = _transports()
        for scheme in ("http://", "https://"):
            session.client.mount(scheme, sockets() if self._adapter is None else wrapped(self._adapter))
        return session


def _require_utf8(response: Any, **_: Any) -> None:
    """Refuse a body that is no text: ``requests`` would guess an encoding, and pybit would take the result."""
    response.content.decode("utf-8")


def _header(headers: Any, name: str) -> int | None:
    text = str((headers or {}).get(name, ""))
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None
