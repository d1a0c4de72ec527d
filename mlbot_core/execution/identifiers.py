"""Names that are the same whoever makes them, and whenever: of a decision, an intent and each order for it."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Final

from mlbot_core.errors import UsageError
from mlbot_core.execution.types import LINK_ID
from mlbot_core.timeframe import Timeframe

_PREFIX: Final = {"decision": "d", "event": "e", "order": "m"}
_BYTES: Final = 20


class Leg(StrEnum):
    """What an intent does to the position."""

    CLOSE = "close"
    ENTRY = "entry"


def _name(kind: str, *parts: str | int) -> str:
    # each part with its length, so that no two lists of parts are spelt alike
    spelt = "".join(f"{len(str(part))}:{part}" for part in (kind, *parts))
    digest = hashlib.sha256(spelt.encode("utf-8")).digest()[:_BYTES]
    return f"{_PREFIX[kind]}{base64.b32encode(digest).decode('ascii').lower()}"


def decision_id(account: str, symbol: str, timeframe: Timeframe, bar_ts: int) -> str:
    """Return the name of the decision on a bar: 33 characters.

    Parameters
    ----------
    account
        Which account, for example ``testnet:1234``.
    symbol
        As the exchange names it.
    timeframe
        Of the decision clock.
    bar_ts
        Open time of the bar, UTC ms.

    Raises
    ------
    UsageError
        If the account or symbol is empty, or the bar does not open on the timeframe's grid.
    """
    _named(account=account, symbol=symbol)
    if bar_ts < 0 or timeframe.floor(bar_ts) != bar_ts:
        raise UsageError(f"no {timeframe} bar opens at {bar_ts}; give the open time of a bar, UTC ms")
    return _name("decision", account, symbol, timeframe.minutes, bar_ts)


def event_decision_id(account: str, symbol: str, trigger: str, at_ms: int) -> str:
    """Return the name of a decision that no bar asked for (a risk limit, a person): 33 characters.

    Raises
    ------
    UsageError
        If the account, symbol or trigger is empty, or the time negative.
    """
    _named(account=account, symbol=symbol, trigger=trigger)
    if at_ms < 0:
        raise UsageError(f"the time {at_ms} lies before 1970; give UTC ms")
    return _name("event", account, symbol, trigger, at_ms)


@dataclass(frozen=True)
class IntentKey:
    """What makes an intent this one and no other.

    Parameters
    ----------
    strategy, account, symbol
        Who trades what, where.
    decision_id
        Of the decision that it carries out.
    leg
        Closing comes before entering.
    slice
        Number within the leg, from 0.

    Raises
    ------
    UsageError
        If a name is empty or the slice negative.
    """

    strategy: str
    account: str
    symbol: str
    decision_id: str
    leg: Leg
    slice: int

    def __post_init__(self) -> None:
        _named(strategy=self.strategy, account=self.account, symbol=self.symbol, decision_id=self.decision_id)
        if self.slice < 0:
            raise UsageError(f"slice is {self.slice}; slices are counted from 0")

    @cached_property
    def intent_id(self) -> str:
        """The intent's name: the ``orderLinkId`` of its first attempt."""
        return self.order_link_id(0)

    def order_link_id(self, attempt: int) -> str:
        """Return the ``orderLinkId`` of an attempt (from 0): 33 characters of the exchange's alphabet.

        Raises
        ------
        UsageError
            If the attempt is negative.
        """
        if attempt < 0:
            raise UsageError(f"attempt is {attempt}; attempts are counted from 0")
        parts = (self.strategy, self.account, self.symbol, self.decision_id, self.leg.value, self.slice, attempt)
        return _name("order", *parts)


def is_ours(order_link_id: str) -> bool:
    """Return whether an ``orderLinkId`` has the form of ours; whether it is one, the ledger knows."""
    return (
        LINK_ID.fullmatch(order_link_id) is not None
        and order_link_id.startswith(_PREFIX["order"])
        and len(order_link_id) == 1 + len(base64.b32encode(bytes(_BYTES)))
    )


def _named(**names: str) -> None:
    for name, value in names.items():
        if not value:
            raise UsageError(f"{name} is empty; an id needs it")
