"""Open points of the Bybit reference that questions with a key answer (sections 3, 5 and 11); nothing is changed."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

from mlbot_core.execution.broker import Venue
from mlbot_core.execution.probe_bybit import BybitProbe
from mlbot_core.execution.probe_http import Heard
from mlbot_core.execution.probe_questions import Found, Question, told
from mlbot_core.timeframe import DAY_MS

NOT_ON_DEMO: Final = "10032"
_NOBODYS: Final = "mlbot-probe-never-sent"
# Path, parameters beside category and symbol, and the documented calls a second.
_ENDPOINTS: Final[tuple[tuple[str, dict[str, str], int], ...]] = (
    ("/v5/order/realtime", {}, 50),
    ("/v5/order/history", {}, 50),
    ("/v5/execution/list", {}, 50),
    ("/v5/position/list", {}, 50),
    ("/v5/account/wallet-balance", {"accountType": "UNIFIED"}, 50),
    ("/v5/account/info", {}, 50),
    ("/v5/account/fee-rate", {}, 5),
    ("/v5/account/transaction-log", {"accountType": "UNIFIED"}, 25),
)


def _ask(probe: BybitProbe, path: str, **params: str | int) -> Heard:
    """Ask a private question; those about orders and positions name the contract."""
    about = {}
    if path.startswith(("/v5/order", "/v5/execution", "/v5/position", "/v5/account/fee")):
        about = {"category": "linear", "symbol": probe.contract}
    return probe.asker.get(path, **about, **params)


def describe_key(probe: BybitProbe) -> Heard:
    """Ask what the key may do, and whose it is."""
    return probe.asker.get("/v5/user/query-api")


def user_id(heard: Heard) -> str:
    """Return whose key it is, empty where that was not told."""
    return str(heard.data.get("userID") or "") if heard.good and isinstance(heard.data, dict) else ""


def _key(probe: BybitProbe) -> Found:
    heard = describe_key(probe)
    if not heard.good:
        expected = probe.venue is Venue.DEMO and heard.code == NOT_ON_DEMO
        return Found(heard.asked, heard.refusal, "as_expected" if expected else "unknown")
    row: dict[str, Any] = heard.data
    wallet, contract = row["permissions"].get("Wallet") or [], row["permissions"].get("ContractTrade") or []
    bound = [address for address in row.get("ips") or [] if address != "*"]
    sub = str(row.get("parentUid") or "0") != "0"
    text = (
        f"contracts {'+'.join(contract) or 'none'}, wallet {'+'.join(wallet) or 'none'}, read only {row['readOnly']}, "
        f"{len(bound)} bound addresses, {'sub-account' if sub else 'main account'}, expires {row.get('expiredAt')}"
    )
    return told(heard, text, expected="Withdraw" not in wallet)


def _mode(probe: BybitProbe) -> Found:
    heard = _ask(probe, "/v5/account/info")
    if not heard.good:
        return told(heard, "", expected=None)
    mode, status, dcp = (heard.data.get(name) for name in ("marginMode", "unifiedMarginStatus", "dcpStatus"))
    text = f"margin mode {mode}, unified status {status}, disconnect protection {dcp}"
    return told(heard, text, expected=mode == "REGULAR_MARGIN" and int(status) >= 3)


def _one_way(probe: BybitProbe) -> Found:
    heard = _ask(probe, "/v5/position/list")
    rows = heard.data["list"] if heard.good else []
    text = f"{len(rows)} rows, positionIdx {[row['positionIdx'] for row in rows]}"
    return told(heard, text, expected=[int(row["positionIdx"]) for row in rows] == [0])


def _empty_texts(probe: BybitProbe) -> Found:
    heard = _ask(probe, "/v5/position/list")
    row = heard.data["list"][0] if heard.good else {}
    if row and row["side"]:
        return told(heard, "a position is open, so this cannot be seen now", expected=None)
    text = f"side {row.get('side')!r}, size {row.get('size')!r}, liqPrice {row.get('liqPrice')!r}"
    return told(heard, text, expected=row.get("side") == "" and row.get("size") in ("0", "0.000"))


def _wallet(probe: BybitProbe) -> Found:
    heard = _ask(probe, "/v5/account/wallet-balance", accountType="UNIFIED")
    row = heard.data["list"][0] if heard.good else {}
    names = ("totalEquity", "totalWalletBalance", "totalAvailableBalance", "accountMMRate")
    missing = [name for name in names if not isinstance(row.get(name), str)]
    coins = [coin["coin"] for coin in row.get("coin", []) if Decimal(coin["equity"] or 0)]
    return told(heard, f"coins {coins}; not texts: {missing or 'none'}", expected=not missing)


def _fees(probe: BybitProbe) -> Found:
    heard = _ask(probe, "/v5/account/fee-rate")
    if not heard.good:
        expected = probe.venue is Venue.DEMO and heard.code == NOT_ON_DEMO
        return Found(heard.asked, heard.refusal, "as_expected" if expected else "unknown")
    row = heard.data["list"][0]
    taker, maker = Decimal(row["takerFeeRate"]) * 10_000, Decimal(row["makerFeeRate"]) * 10_000
    fees = probe.settings.fees
    text = f"taker {taker.normalize():f} bp, maker {maker.normalize():f} bp; "
    text += f"fees.yaml {fees.taker_bp:g} and {fees.maker_bp:g}"
    # cheaper than believed does no harm
    return told(heard, text, expected=taker <= Decimal(str(fees.taker_bp)) and maker <= Decimal(str(fees.maker_bp)))


def _limits(probe: BybitProbe) -> Found:
    shown, lower = [], []
    for path, params, documented in _ENDPOINTS:
        heard = _ask(probe, path, **params)
        limit = heard.headers.get("x-bapi-limit", "")
        shown.append(f"{path.removeprefix('/v5/')} {limit or '-'}")
        if limit.isdigit() and int(limit) < documented:
            lower.append(path)
    known = any(not text.endswith("-") for text in shown)
    verdict = "unknown" if not known else "differs" if lower else "as_expected"
    return Found("X-Bapi-Limit of each question", ", ".join(shown), verdict)  # type: ignore[arg-type]


def _endpoints(probe: BybitProbe) -> Found:
    refused = {}
    for path, params, _ in _ENDPOINTS:
        heard = _ask(probe, path, **params)
        if not heard.good:
            refused[path] = heard.code or heard.message
    needed = {path for path in refused if path != "/v5/account/fee-rate" or refused[path] != NOT_ON_DEMO}
    text = ", ".join(f"{path} {code}" for path, code in refused.items()) or "all answer"
    return Found(f"{len(_ENDPOINTS)} questions", text, "differs" if needed else "as_expected")


def _unknown_order(probe: BybitProbe) -> Found:
    found = []
    for path in ("/v5/order/realtime", "/v5/order/history", "/v5/execution/list"):
        heard = _ask(probe, path, orderLinkId=_NOBODYS)
        if not heard.good:
            return told(heard, "", expected=None)
        found.append(len(heard.data["list"]))
    return Found("orderLinkId of nobody", f"rows: {found} (realtime, history, executions)", _as(found == [0, 0, 0]))


def _windows(probe: BybitProbe) -> Found:
    now = probe.clock.now_ms()
    said = []
    for path, days in (("/v5/order/history", 8), ("/v5/execution/list", 8), ("/v5/account/transaction-log", 8)):
        more = {"accountType": "UNIFIED"} if path.endswith("log") else {}
        heard = _ask(probe, path, startTime=now - days * DAY_MS, endTime=now, **more)
        said.append((path, "rows" if heard.good else heard.code))
    text = ", ".join(f"{path} {what}" for path, what in said)
    return Found("windows of 8 days", text, _as(all(what == "10001" for _, what in said)))


def _log(probe: BybitProbe) -> Found:
    heard = _ask(probe, "/v5/account/transaction-log", accountType="UNIFIED", limit=5)
    rows = heard.data["list"] if heard.good else []
    if not rows:
        return told(heard, "no rows yet", expected=None)
    sums = [
        Decimal(row["cashFlow"] or 0) + Decimal(row["funding"] or 0) - Decimal(row["fee"] or 0)
        == Decimal(row["change"])
        for row in rows
    ]
    text = f"{sum(sums)} of {len(rows)} rows have change = cashFlow + funding - fee; "
    text += f"types {sorted({row['type'] for row in rows})}"
    return told(heard, text, expected=all(sums))


def _as(expected: bool) -> Any:
    return "as_expected" if expected else "differs"


PRIVATE: Final = (
    Question("key", "What may the key do?", _key, matters=True),
    Question("account_mode", "Is it a unified account in cross margin?", _mode, matters=True),
    Question("position_mode", "Is the contract in one-way mode?", _one_way, matters=True),
    Question("empty_texts", "How does a flat position look?", _empty_texts),
    Question("wallet", "Are the wallet's totals there, as texts?", _wallet, matters=True),
    Question("fee_rate", "What are the fees, and are they told here?", _fees, matters=True),
    Question("rate_limits", "How many calls a second may this user make?", _limits),
    Question("endpoints", "Which questions are refused here (10032 on demo)?", _endpoints, matters=True),
    Question("unknown_order", "Is an order that nobody sent an empty list?", _unknown_order, matters=True),
    Question("windows", "Is a window of more than 7 days an error?", _windows),
    Question("transaction_log", "Does change = cashFlow + funding - fee hold?", _log),
)
