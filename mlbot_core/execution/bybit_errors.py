"""What each answer of Bybit to a request means: carried out, refused for certain, or unknown.

Codes and actions are those of Bybit's error list (docs v5/error). A code that is not listed here is taken for unknown:
whether the request was carried out is then found out by asking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mlbot_core.execution.broker import Accepted, Ambiguous, DefiniteReject, Next, refused

# Bybit lifts the ban of an address by itself after ten minutes.
BAN_MS: Final = 600_000
# 10006 without a header that says when.
RATE_PAUSE_MS: Final = 2_000
RATE_LIMITED: Final = 10006
ADDRESS_BANNED: Final = 10018
DUPLICATE_LINK_ID: Final = 110072
CLOCK_CODES: Final = frozenset({-1, 10002})


class Kind(StrEnum):
    """In which way a request failed."""

    VENUE = "venue"
    HTTP = "http"
    NETWORK = "network"
    UNPARSABLE = "unparsable"
    GATE = "gate"
    BANNED = "banned"


@dataclass(frozen=True)
class Failure:
    """One request that was not answered with success, without anything secret.

    Parameters
    ----------
    code
        ``retCode`` (``venue``) or HTTP status (``http``), else 0.
    written
        Whether any byte of the request may have left.
    retry_at_ms
        When the exchange said that it would listen again, UTC ms.
    """

    kind: Kind
    code: int
    message: str
    written: bool = True
    retry_at_ms: int | None = None


_Meaning = tuple[str, Next]
# Nothing was done, for certain.
DEFINITE: Final[Mapping[int, _Meaning]] = {
    -1: ("expired", Next.CLOCK),
    10001: ("parameters", Next.REFRESH),
    10002: ("timestamp", Next.CLOCK),
    10003: ("key_invalid", Next.HALT),
    10004: ("signature", Next.HALT),
    10005: ("permission", Next.HALT),
    10006: ("rate_limit", Next.WAIT),
    10007: ("authentication", Next.HALT),
    10008: ("account_banned", Next.HALT),
    10009: ("region_banned", Next.HALT),
    10010: ("address_not_bound", Next.HALT),
    10017: ("route", Next.HALT),
    10018: ("address_rate_limit", Next.WAIT),
    10024: ("compliance", Next.HALT),
    10027: ("trading_banned", Next.HALT),
    10028: ("not_unified", Next.HALT),
    10029: ("symbol_not_whitelisted", Next.HALT),
    10032: ("not_on_demo", Next.ORDER),
    33004: ("key_expired", Next.HALT),
    -2015: ("key_expired", Next.HALT),
    30208: ("price_band", Next.REFRESH),
    30209: ("price_band", Next.REFRESH),
    110001: ("order_not_open", Next.LOOK),
    110003: ("price_band", Next.REFRESH),
    110004: ("balance", Next.REFRESH),
    110006: ("balance", Next.REFRESH),
    110007: ("balance", Next.REFRESH),
    110008: ("order_completed", Next.LOOK),
    110009: ("too_many_stops", Next.ORDER),
    110010: ("order_cancelled", Next.LOOK),
    110011: ("would_liquidate", Next.HALT),
    110012: ("balance", Next.REFRESH),
    110013: ("risk_limit", Next.ORDER),
    110017: ("nothing_to_reduce", Next.LOOK),
    110020: ("too_many_orders", Next.ORDER),
    110021: ("open_interest_cap", Next.PAUSE),
    110022: ("contract_reduce_only", Next.PAUSE),
    110023: ("contract_reduce_only", Next.PAUSE),
    110024: ("position_mode", Next.HALT),
    110028: ("position_mode", Next.HALT),
    110029: ("position_mode", Next.HALT),
    110036: ("leverage", Next.ORDER),
    110038: ("leverage", Next.ORDER),
    110039: ("would_liquidate", Next.HALT),
    110040: ("would_liquidate", Next.HALT),
    110042: ("contract_reduce_only", Next.PAUSE),
    110044: ("balance", Next.REFRESH),
    110045: ("balance", Next.REFRESH),
    110046: ("would_liquidate", Next.HALT),
    110051: ("balance", Next.REFRESH),
    110052: ("balance", Next.REFRESH),
    110053: ("balance", Next.REFRESH),
    110059: ("stop_of_partial_fill", Next.ORDER),
    110063: ("settlement", Next.PAUSE),
    110064: ("below_filled", Next.LOOK),
    110066: ("trading_not_allowed", Next.PAUSE),
    110074: ("contract_not_live", Next.PAUSE),
    110079: ("order_processing", Next.WAIT),
    110086: ("risk_limit", Next.ORDER),
    110089: ("risk_limit", Next.ORDER),
    110090: ("risk_limit", Next.ORDER),
    110092: ("trigger_side", Next.REFRESH),
    110093: ("trigger_side", Next.REFRESH),
    110094: ("min_notional", Next.REFRESH),
    110108: ("slippage_bound", Next.ORDER),
    110109: ("slippage_bound", Next.ORDER),
    110118: ("no_liquidity", Next.WAIT),
    110120: ("price_band", Next.REFRESH),
    110121: ("price_band", Next.REFRESH),
    110123: ("terms", Next.HALT),
    110124: ("terms", Next.HALT),
    110125: ("terms", Next.HALT),
}
# The request may have been carried out.
AMBIGUOUS: Final[Mapping[int, str]] = {
    429: "overloaded",
    10000: "server_timeout",
    10014: "duplicate_request",
    10016: "server_error",
    10429: "overloaded",
    40004: "being_modified",
    170146: "creation_timeout",
    170147: "cancellation_timeout",
    3400214: "server_error",
}
# Things are as asked already.
UNCHANGED: Final = frozenset({110025, 110026, 110043, 34040})
_HTTP: Final[Mapping[int, _Meaning]] = {
    400: ("http_400", Next.HALT),
    401: ("http_401", Next.HALT),
    403: ("http_403", Next.WAIT),
    404: ("http_404", Next.HALT),
    405: ("http_405", Next.HALT),
}


def judge(failure: Failure, now_ms: int) -> Accepted | DefiniteReject | Ambiguous:
    """Return what a failed request means.

    Parameters
    ----------
    now_ms
        Our time, UTC ms: waiting counts from it.
    """
    code, message = failure.code, failure.message
    if failure.kind is Kind.GATE:
        return refused("may_not_send", message, Next.LOOK)
    if failure.kind is Kind.BANNED:
        return refused("address_banned", message, Next.WAIT, failure.retry_at_ms)
    if failure.kind is Kind.NETWORK and not failure.written:
        return refused("not_connected", message, Next.WAIT, now_ms + RATE_PAUSE_MS)
    if failure.kind is Kind.HTTP:
        if code not in _HTTP:
            return Ambiguous(f"http_{code}", f"HTTP {code}: {message}", code)
        name, then = _HTTP[code]
        retry = now_ms + BAN_MS if then is Next.WAIT else None
        return DefiniteReject(code, name, f"HTTP {code}: {message}", then, retry)
    if failure.kind is not Kind.VENUE:
        return Ambiguous(str(failure.kind), message)
    reason = f"retCode {code}: {message}"
    if code in UNCHANGED:
        return Accepted(unchanged=True)
    if code == DUPLICATE_LINK_ID:
        return Ambiguous("duplicate_link_id", reason, code, must_exist=True)
    if code in DEFINITE:
        name, then = DEFINITE[code]
        return DefiniteReject(code, name, reason, then, _retry_at(failure, then, now_ms))
    return Ambiguous(AMBIGUOUS.get(code, "unlisted_code"), reason, code)


def _retry_at(failure: Failure, then: Next, now_ms: int) -> int | None:
    if then is not Next.WAIT:
        return None
    if failure.code == ADDRESS_BANNED:
        return now_ms + BAN_MS
    return max(failure.retry_at_ms or 0, now_ms) if failure.retry_at_ms is not None else now_ms + RATE_PAUSE_MS


def may_ask_again(failure: Failure) -> bool:
    """Say whether a question (never a request that changes something) may be repeated after this failure."""
    if failure.kind in (Kind.NETWORK, Kind.UNPARSABLE):
        return True
    if failure.kind is Kind.HTTP:
        return failure.code in (408, 429) or failure.code >= 500
    return failure.kind is Kind.VENUE and failure.code in (429, 10000, 10006, 10016, 10429, 3400214)
