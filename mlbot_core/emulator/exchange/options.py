"""How the exchange behaves, and what it answers with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal

from mlbot_core.emulator.exchange.auth import EMULATOR_UID, ApiKey, LimitClock
from mlbot_core.emulator.exchange.rules import MAKER_FEE, TAKER_FEE
from mlbot_core.errors import UsageError

# They open nothing but the emulator.
DEFAULT_TRADE_KEY: Final = "emulator-trade-key"
DEFAULT_TRADE_SECRET: Final = "emulator-trade-secret"
# A second key of the same account.
DEFAULT_DEADMAN_KEY: Final = "emulator-deadman-key"
DEFAULT_DEADMAN_SECRET: Final = "emulator-deadman-secret"


def default_keys() -> tuple[ApiKey, ...]:
    """Return the keys that the emulator accepts when none is configured: two of one account."""
    return ApiKey(DEFAULT_TRADE_KEY, DEFAULT_TRADE_SECRET), ApiKey(DEFAULT_DEADMAN_KEY, DEFAULT_DEADMAN_SECRET)


def keys_of(environ: Mapping[str, str]) -> tuple[ApiKey, ...]:
    """Return :func:`default_keys` with what ``MLBOT_EMULATOR_{TRADE,DEADMAN}_{KEY,SECRET}`` and ``MLBOT_EMULATOR_UID``
    (the account) say instead.

    Raises
    ------
    UsageError
        If the account is no positive whole number.
    """
    uid = environ.get("MLBOT_EMULATOR_UID") or str(EMULATOR_UID)
    if not uid.isascii() or not uid.isdigit() or int(uid) < 1:
        raise UsageError(f"MLBOT_EMULATOR_UID={uid!r} is no account; give a positive whole number")
    return tuple(
        ApiKey(
            environ.get(f"MLBOT_EMULATOR_{role}_KEY") or default.key,
            environ.get(f"MLBOT_EMULATOR_{role}_SECRET") or default.secret,
            uid=int(uid),
        )
        for role, default in zip(("TRADE", "DEADMAN"), default_keys(), strict=True)
    )


@dataclass(frozen=True)
class ExchangeOptions:
    """How the exchange behaves.

    Parameters
    ----------
    keys
        API keys; accounts are those of their uids.
    balance
        USDT in every account at the beginning.
    taker, maker
        Fees, fractions.
    auth_time
        What timestamps of requests are compared with: the exchange's clock, or the wall's (for clients that cannot be
        given another clock while the market's stands still or runs faster).
    limits
        Which clock the seconds of the rate limits belong to; ``off`` counts nothing.
    demo
        Refuse what demo trading lacks with 10032.

    Raises
    ------
    UsageError
        If there is no key or the balance is negative.
    """

    keys: tuple[ApiKey, ...] = field(default_factory=default_keys)
    balance: Decimal = Decimal(100_000)
    taker: Decimal = TAKER_FEE
    maker: Decimal = MAKER_FEE
    auth_time: Literal["exchange", "wall"] = "exchange"
    limits: LimitClock = "exchange"
    demo: bool = False

    def __post_init__(self) -> None:
        if not self.keys:
            raise UsageError("the exchange needs at least one API key")
        if self.balance < 0:
            raise UsageError(f"balance={self.balance} is negative")


@dataclass(frozen=True)
class Answer:
    """What comes back: HTTP status, headers, body; or nothing (``lost``), after ``silence_s`` wall seconds."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    lost: Literal["", "timeout", "reset"] = ""
    silence_s: float = 0.0

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)
