"""What a Coinglass answer means: HTTP status, ``code`` and ``msg`` are judged together, never one alone.

Errors are routinely delivered inside HTTP 200, the same code stands for several mistakes, and the message is the
only thing that tells them apart (Coinglass reference, section 1.1).
"""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass
from typing import Any, Final


class Outcome(enum.Enum):
    """What to do with an answer."""

    OK = "ok"
    TRANSIENT = "transient"
    MALFORMED = "malformed"
    RATE_LIMITED = "rate limited"
    KEY_REJECTED = "key rejected"
    NOT_IN_PLAN = "not in plan"
    BAD_INTERVAL = "bad interval"
    REFUSED = "refused"


@dataclass(frozen=True)
class Envelope:
    """An answer, judged.

    Parameters
    ----------
    outcome
        What to do with it.
    status, code, msg
        HTTP status, body code as text (None where there is none) and message, as received.
    data
        The payload of an answer that is OK, else None.
    """

    outcome: Outcome
    status: int
    code: str | None
    msg: str
    data: Any = None


_TRANSIENT_CODES: Final = frozenset({"408", "500", "502", "503", "504", "50001"})
_KEY: Final = re.compile(r"\b(api[ _-]?key|apikey|key|secret)\b")
_PLAN: Final = re.compile(r"\b(upgrade|plan|subscription)\b")
_RATE: Final = re.compile(r"too many requests|rate limit")
_INTERVAL: Final = re.compile(r"\binterval\b")


def read_envelope(status: int, body: bytes, container: type | tuple[type, ...]) -> Envelope:
    """Judge one answer.

    Parameters
    ----------
    status
        HTTP status.
    body
        The body as received.
    container
        Type that ``data`` must have in a successful answer: ``list`` or ``dict``, or either.
    """
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        return _without_json(status, f"the body is not JSON ({type(error).__name__} in {len(body)} bytes)")
    if not isinstance(parsed, dict) or "code" not in parsed:
        return _without_json(status, "the body is not a {code, msg, data} object")
    code = str(parsed["code"])
    message = parsed.get("msg", parsed.get("message"))
    msg = "" if message is None else str(message)
    outcome = classify(status, code, msg)
    if outcome is not Outcome.OK:
        return Envelope(outcome, status, code, msg)
    data = parsed.get("data")
    if not isinstance(data, container):
        wanted = " or ".join(t.__name__ for t in (container if isinstance(container, tuple) else (container,)))
        return Envelope(Outcome.MALFORMED, status, code, f"data is {type(data).__name__}, not {wanted}")
    return Envelope(Outcome.OK, status, code, msg, data)


def _without_json(status: int, problem: str) -> Envelope:
    outcome = Outcome.MALFORMED if status == 200 else classify(status, None, "")
    return Envelope(outcome, status, None, problem)


def classify(status: int, code: str | None, msg: str) -> Outcome:
    """Return what an answer means from HTTP status, ``str(code)`` and message together."""
    text = msg.lower()
    # an error status wins over a missing or contradictory code, an error code over HTTP 200
    effective = str(status) if code is None or (code == "0" and status != 200) else code
    if "429" in (effective, str(status)) or _RATE.search(text):
        return Outcome.RATE_LIMITED
    if status == 200 and effective == "0":
        return Outcome.OK
    if status >= 500 or status == 408 or effective in _TRANSIENT_CODES:
        return Outcome.TRANSIENT
    # "Upgrade plan" comes as 401 too: a plan that lacks the endpoint and a dead key differ only in their message
    if _PLAN.search(text):
        return Outcome.NOT_IN_PLAN
    if _KEY.search(text):
        return Outcome.KEY_REJECTED
    if "401" in (effective, str(status)):
        return Outcome.KEY_REJECTED
    if "403" in (effective, str(status)):
        return Outcome.NOT_IN_PLAN
    if _INTERVAL.search(text):
        return Outcome.BAD_INTERVAL
    return Outcome.REFUSED
