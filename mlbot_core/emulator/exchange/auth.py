"""Who is calling, and may they: API keys, signatures, the receive window, rate limits."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from mlbot_core.clock import format_utc
from mlbot_core.emulator.bybit_api import RATE_LIMITED, Refusal
from mlbot_core.errors import UsageError

DEFAULT_RECV_WINDOW_MS: Final = 5000
# A timestamp may lie this far ahead of the server's time.
AHEAD_MS: Final = 1000
_DAY_MS: Final = 86_400_000
EMULATOR_UID: Final = 100_001

# Calls per rolling second, user and path; other private paths have the default.
LIMITS: Final[Mapping[str, int]] = {
    "/v5/order/create": 10,
    "/v5/order/amend": 10,
    "/v5/order/cancel": 10,
    "/v5/order/cancel-all": 10,
    "/v5/position/set-leverage": 10,
    "/v5/position/switch-mode": 10,
    "/v5/position/trading-stop": 10,
    "/v5/account/fee-rate": 5,
    "/v5/account/transaction-log": 25,
    "/v5/user/query-api": 10,
}
DEFAULT_LIMIT: Final = 50


@dataclass(frozen=True)
class ApiKey:
    """A key of one user.

    Parameters
    ----------
    key, secret
        The secret signs; it is never shown, not even by ``repr``.
    uid
        The (sub-)account that it belongs to.
    parent_uid
        0 for a master account.
    read_only
        Whether it may only look.
    trade, withdraw, transfer
        What else it may do.
    ips
        Addresses it is bound to; none means any.
    expires_ms
        UTC ms after which it is refused.

    Raises
    ------
    UsageError
        If key or secret is empty.
    """

    key: str
    secret: str = field(repr=False)
    uid: int = EMULATOR_UID
    parent_uid: int = 0
    read_only: bool = False
    trade: bool = True
    withdraw: bool = False
    transfer: bool = False
    ips: tuple[str, ...] = ()
    expires_ms: int | None = None
    note: str = "emulator"

    def __post_init__(self) -> None:
        if not self.key or not self.secret:
            raise UsageError("an API key of the emulator needs a key and a secret; neither may be empty")

    def row(self, now_ms: int) -> dict[str, Any]:
        """Return it as ``user/query-api`` describes it."""
        wallet = ["AccountTransfer", "SubMemberTransfer"] if self.transfer else []
        expires = format_utc(self.expires_ms) if self.expires_ms is not None else "1970-01-01T00:00:00Z"
        left = (self.expires_ms - now_ms) // _DAY_MS if self.expires_ms is not None else -2
        empty: dict[str, list[str]] = {
            name: []
            for name in (
                "CopyTrading",
                "BlockTrade",
                "NFT",
                "Affiliate",
                "Earn",
                "FiatP2P",
                "FiatConvertBroker",
                "FiatGlobalPay",
                "FiatBitPay",
                "BitCard",
                "ByXPost",
                "Spot",
                "Options",
                "Exchange",
            )
        }
        return {
            "id": str(self.uid),
            "note": self.note,
            "apiKey": self.key,
            "readOnly": int(self.read_only),
            "secret": "",
            "permissions": {
                "ContractTrade": ["Order", "Position"] if self.trade else [],
                "Derivatives": ["DerivativesTrade"] if self.trade else [],
                "Wallet": wallet + (["Withdraw"] if self.withdraw else []),
                **empty,
            },
            "ips": list(self.ips) or ["*"],
            "type": 1,
            "deadlineDay": left,
            "expiredAt": expires,
            "createdAt": "2025-01-01T00:00:00Z",
            "unified": 0,
            "uta": 1,
            "userID": self.uid,
            "inviterID": 0,
            "vipLevel": "No VIP",
            "mktMakerLevel": "0",
            "affiliateID": 0,
            "rsaPublicKey": "",
            "isMaster": self.parent_uid == 0,
            "parentUid": str(self.parent_uid),
            "kycLevel": "LEVEL_DEFAULT",
            "kycRegion": "",
            "userIDInt64": str(self.uid),
            "inviterIDInt64": "0",
            "affiliateIDInt64": "0",
        }


def read_keys(text: str) -> tuple[ApiKey, ...]:
    """Return the keys of a JSON list of objects; no part of the text is ever in an error message.

    Raises
    ------
    UsageError
        If it is not such a list.
    """
    try:
        rows = json.loads(text)
        keys = tuple(ApiKey(**{**row, "ips": tuple(row.get("ips", ()))}) for row in rows)
    except (ValueError, TypeError, AttributeError) as error:
        known = ", ".join(entry.name for entry in fields(ApiKey))
        raise UsageError(f"the API keys are not a JSON list of objects with {known} ({type(error).__name__})") from None
    return keys


def sign(secret: str, message: str) -> str:
    """Return the HMAC-SHA256 of a message, lower-case hex."""
    return hmac.new(secret.encode(), message.encode(), hashlib.sha256).hexdigest()


class Authenticator:
    """Checks the four headers of a request.

    Parameters
    ----------
    keys
        Every key that exists.
    """

    def __init__(self, keys: tuple[ApiKey, ...]) -> None:
        self._keys = {key.key: key for key in keys}
        if len(self._keys) != len(keys):
            raise UsageError("two API keys of the emulator have the same name")
        self.verified = 0

    def known(self, key: str) -> ApiKey | None:
        """Return a key by its name."""
        return self._keys.get(key)

    def check(self, headers: Mapping[str, str], payload: str, address: str, now_ms: int) -> ApiKey:
        """Return the key that signed a request.

        Parameters
        ----------
        headers
            With lower-case names.
        payload
            The raw query of a GET, the raw body of a POST.
        address
            Where the request came from.
        now_ms
            The server's time, UTC ms.

        Raises
        ------
        Refusal
            HTTP 401 without authentication; 10003, 33004, 10010, 10002 or 10004.
        """
        name, stamp = headers.get("x-bapi-api-key", ""), headers.get("x-bapi-timestamp", "")
        signature = headers.get("x-bapi-sign", "")
        if not name or not stamp or not signature:
            raise Refusal(10003, "API key is missing", status=401)
        key = self._admitted(name, address, now_ms)
        window_text = headers.get("x-bapi-recv-window", "") or str(DEFAULT_RECV_WINDOW_MS)
        if not (stamp.isdigit() and window_text.isdigit()):
            raise Refusal(10001, "params error: timestamp or recv_window invalid")
        if not now_ms - int(window_text) <= int(stamp) < now_ms + AHEAD_MS:
            raise Refusal(
                10002,
                "invalid request, please check your server timestamp or recv_window param. "
                f"req_timestamp[{stamp}],server_timestamp[{now_ms}],recv_window[{window_text}]",
            )
        given = headers.get("x-bapi-recv-window", "")
        if not hmac.compare_digest(sign(key.secret, stamp + name + given + payload), signature):
            raise Refusal(10004, "Error sign, please check your signature generation algorithm.")
        self.verified += 1
        return key

    def check_stream(self, args: object, address: str, now_ms: int) -> ApiKey:
        """Return the key that signed the ``auth`` operation of a websocket: ``[key, expires, signature]``.

        Raises
        ------
        Refusal
            As :meth:`check`.
        """
        if not isinstance(args, list) or len(args) != 3:
            raise Refusal(10001, "params error: auth needs key, expires and signature")
        name, expires, signature = (str(arg) for arg in args)
        key = self._admitted(name, address, now_ms)
        if not expires.isdigit() or int(expires) < now_ms:
            raise Refusal(10004, "Params Error: expires is in the past")
        if not hmac.compare_digest(sign(key.secret, f"GET/realtime{expires}"), signature):
            raise Refusal(10004, "Error sign, please check your signature generation algorithm.")
        self.verified += 1
        return key

    def _admitted(self, name: str, address: str, now_ms: int) -> ApiKey:
        key = self._keys.get(name)
        if key is None:
            raise Refusal(10003, "API key is invalid.")
        if key.expires_ms is not None and now_ms >= key.expires_ms:
            raise Refusal(33004, "Your api key has expired.")
        if key.ips and address not in key.ips:
            raise Refusal(10010, "Unmatched IP, please check your API key's bound IP addresses.")
        return key


LimitClock = Literal["exchange", "wall", "off"]


class RateLimiter:
    """Calls per rolling second, user and path."""

    def __init__(self) -> None:
        self._recent: dict[tuple[int, str], deque[int]] = {}

    def count(self, uid: int, path: str, now_ms: int, override: int | None = None) -> dict[str, str]:
        """Count a call and return its headers: limit, what is left of it, and when it is whole again.

        Raises
        ------
        Refusal
            10006 if the second is full.
        """
        limit = LIMITS.get(path, DEFAULT_LIMIT) if override is None else override
        recent = self._recent.setdefault((uid, path), deque())
        while recent and now_ms - recent[0] >= 1000:
            recent.popleft()
        if len(recent) >= limit:
            reset = (recent[0] if recent else now_ms) + 1000
            raise RateRefusal(limit, reset)
        recent.append(now_ms)
        return limit_headers(limit, limit - len(recent), now_ms)


def limit_headers(limit: int, left: int, reset_ms: int) -> dict[str, str]:
    """Return the three headers of a rate limit."""
    return {
        "X-Bapi-Limit": str(limit),
        "X-Bapi-Limit-Status": str(left),
        "X-Bapi-Limit-Reset-Timestamp": str(reset_ms),
    }


class RateRefusal(Refusal):
    """10006, with the headers that say when to come back."""

    def __init__(self, limit: int, reset_ms: int) -> None:
        super().__init__(RATE_LIMITED, "Too many visits. Exceeded the API Rate Limit.")
        self.headers = limit_headers(limit, 0, reset_ms)
