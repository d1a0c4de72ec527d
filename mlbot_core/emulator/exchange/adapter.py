"""pybit without sockets: a transport for ``requests`` that hands every call to an :class:`Exchange`.

``session.client.mount("http://emulator", InProcess(exchange))`` and ``session.endpoint = "http://emulator"``: the
client signs, sends and parses as ever, and lost answers reach it as the exceptions that sockets would raise.
"""

from __future__ import annotations

import urllib.parse
from typing import Any

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from mlbot_core.emulator.exchange.exchange import Exchange


class InProcess(BaseAdapter):
    """The transport.

    Parameters
    ----------
    exchange
        Asked for every request.
    """

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._exchange = exchange

    def send(self, request: requests.PreparedRequest, *_args: Any, **_options: Any) -> requests.Response:
        """Answer one prepared request.

        Raises
        ------
        requests.exceptions.ReadTimeout
            Where a fault keeps silent; nothing is waited for.
        requests.exceptions.ConnectionError
            Where a fault cuts the connection.
        """
        parts = urllib.parse.urlsplit(request.url or "")
        path, query = str(parts.path), str(parts.query)
        body = request.body or b""
        answer = self._exchange.handle(
            request.method or "GET",
            path,
            {name: str(value) for name, value in request.headers.items()},
            query,
            body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else b"",
        )
        if answer.lost == "timeout":
            raise requests.exceptions.ReadTimeout("read timed out", request=request)
        if answer.lost:
            raise requests.exceptions.ConnectionError("connection reset by peer", request=request)
        response = requests.Response()
        response.status_code = answer.status
        response.headers = CaseInsensitiveDict(answer.headers)
        response._content = answer.body
        response.encoding = "utf-8"
        response.url = request.url or ""
        response.request = request
        return response

    def close(self) -> None:
        """Nothing is held."""
