"""Reading the parameters of trading requests: wrong ones are refused as Bybit refuses them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from mlbot_core.emulator.bybit_api import PARAMETER_ERROR, Refusal
from mlbot_core.emulator.exchange.numbers import parse

LINK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,36}\Z")
TRIGGERS: Final = ("LastPrice", "MarkPrice", "IndexPrice")
Params = Mapping[str, Any]


def wrong(what: str) -> Refusal:
    """Return the refusal of a parameter."""
    return Refusal(PARAMETER_ERROR, f"params error: {what}")


def read_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a POST body.

    Raises
    ------
    Refusal
        10001 if it is none.
    """
    try:
        found = json.loads(body or b"{}")
    except ValueError as error:
        raise wrong("request body is not JSON") from error
    if not isinstance(found, dict):
        raise wrong("request body is not an object")
    return found


def choice(params: Params, name: str, allowed: tuple[str, ...], default: str | None = None) -> str:
    """Return one of the allowed texts; without a default it has to be given.

    Raises
    ------
    Refusal
        10001 if it is missing or another one.
    """
    value = params.get(name)
    if value in (None, "") and default is not None:
        return default
    if value not in allowed:
        raise wrong(f"{name} invalid" if value not in (None, "") else f"{name} can not be empty")
    return str(value)


def number(params: Params, name: str) -> Decimal | None:
    """Return a decimal given as a text, or None where nothing was given.

    Raises
    ------
    Refusal
        10001 if it is no text, no plain number or negative.
    """
    raw = params.get(name)
    if raw is None or raw == "":
        return None
    value = parse(raw)
    if value is None or value < 0:
        raise wrong(f"{name} invalid")
    return value


def required_number(params: Params, name: str) -> Decimal:
    """Return :func:`number`, which has to be there.

    Raises
    ------
    Refusal
        10001 if it is not.
    """
    value = number(params, name)
    if value is None:
        raise wrong(f"{name} can not be empty")
    return value


def flag(params: Params, name: str) -> bool:
    """Return a boolean, False where nothing was given.

    Raises
    ------
    Refusal
        10001 if it is something else.
    """
    value = params.get(name, False)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise wrong(f"{name} invalid")
    return value


def integer(params: Params, name: str, default: int, most: int | None = None) -> int:
    """Return a whole number of 0 or more, given as number or text, cut to ``most``.

    Raises
    ------
    Refusal
        10001 if it is something else.
    """
    raw = params.get(name)
    if raw is None or raw == "":
        return default
    text = str(raw)
    if isinstance(raw, bool) or not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise wrong(f"{name} invalid")
    return int(text) if most is None else min(int(text), most)


def linear(params: Params) -> None:
    """Demand ``category=linear``.

    Raises
    ------
    Refusal
        10001 otherwise.
    """
    if params.get("category") != "linear":
        raise wrong("Category is invalid; the emulator has linear only")


def one_way(params: Params) -> None:
    """Demand position index 0, the only one of the one-way mode.

    Raises
    ------
    Refusal
        10001 otherwise.
    """
    if integer(params, "positionIdx", 0) != 0:
        raise Refusal(PARAMETER_ERROR, "position idx not match position mode")


def link_id(params: Params) -> str:
    """Return ``orderLinkId``, empty where there is none.

    Raises
    ------
    Refusal
        10001 if it is too long or has other signs.
    """
    value = params.get("orderLinkId")
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or not LINK_ID.match(value):
        raise wrong("orderLinkId invalid")
    return value


def time_window(params: Params, now_ms: int, most_ms: int, default_ms: int) -> tuple[int, int]:
    """Return ``[startTime, endTime]`` as documented: one bound alone takes the default length from the other.

    Raises
    ------
    Refusal
        10001 if the window is longer than allowed or ends before it begins.
    """
    start = integer(params, "startTime", -1)
    end = integer(params, "endTime", -1)
    if start < 0:
        end = now_ms if end < 0 else end
        return end - default_ms, end
    end = start + default_ms if end < 0 else end
    if end < start or end - start > most_ms:
        raise wrong(f"The time range between startTime and endTime cannot exceed {most_ms // 86_400_000} days")
    return start, end
