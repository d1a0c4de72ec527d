"""Private endpoints about positions, wallet, margins, fees and the key."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

from mlbot_core.emulator.bybit_api import Refusal
from mlbot_core.emulator.exchange import stops
from mlbot_core.emulator.exchange.account import LogRow
from mlbot_core.emulator.exchange.context import WEEK_MS, Context, Handlers, page
from mlbot_core.emulator.exchange.entry import check_levels
from mlbot_core.emulator.exchange.numbers import is_multiple, text
from mlbot_core.emulator.exchange.params import (
    TRIGGERS,
    choice,
    integer,
    linear,
    number,
    one_way,
    required_number,
    time_window,
    wrong,
)
from mlbot_core.emulator.exchange.rows import position_row, wallet_row
from mlbot_core.emulator.exchange.settlement import side_of, tell_position
from mlbot_core.timeframe import DAY_MS

Result = dict[str, Any]
MAX_PARTIAL_STOPS: Final = 20
_STEP_OF_LEVERAGE: Final = Decimal("0.01")


def positions(context: Context) -> Result:
    """List positions: the row of a named symbol even when flat, otherwise only open ones."""
    symbols = context.symbols()
    named = bool(context.params.get("symbol"))
    account, marks = context.engine.account, context.engine.marks(context.now_ms)
    held = [account.positions[name] for name in sorted(symbols)]
    listed = [position_row(account, p, marks[p.symbol]) for p in held if named or p.size]
    return {"list": listed, "nextPageCursor": "", "category": "linear"}


def set_leverage(context: Context) -> Result:
    """Change the leverage of a symbol; both sides are one in one-way mode."""
    symbol = context.symbol()
    contract, account = context.engine.contracts[symbol], context.engine.account
    buy, sell = required_number(context.params, "buyLeverage"), required_number(context.params, "sellLeverage")
    if buy != sell:
        raise wrong("buy leverage not equal sell leverage")
    if not 1 <= buy <= contract.rules.max_leverage or not is_multiple(buy, _STEP_OF_LEVERAGE):
        raise wrong("leverage invalid")
    position = account.positions[symbol]
    if buy == position.leverage:
        raise Refusal(110043, "leverage not modified")
    marks = context.engine.marks(context.now_ms)
    tier = contract.rules.tier(abs(position.size) * marks[symbol])
    if tier is None or buy > tier.max_leverage:
        raise Refusal(110013, "cannot set leverage due to risk limit level")
    before, position.leverage = position.leverage, buy
    margin = account.margin(marks)
    if buy < before and margin.balance < margin.initial:
        position.leverage = before
        raise Refusal(110044, "Available margin is insufficient.")
    tell_position(account, position, context.now_ms)
    return {}


def switch_mode(context: Context) -> Result:
    """Keep the one-way mode: asking for it changes nothing, the hedge mode is not offered."""
    linear(context.params)
    if not context.params.get("symbol") and not context.params.get("coin"):
        raise wrong("symbol or coin is required")
    mode = integer(context.params, "mode", -1) if context.params.get("mode") is not None else -1
    if mode == 0:
        raise Refusal(110025, "Position mode is not modified")
    if mode != 3:
        raise wrong("mode invalid")
    account = context.engine.account
    if any(position.size for position in account.positions.values()):
        raise Refusal(110024, "You have an existing position, so position mode cannot be switched")
    if account.open:
        raise Refusal(110028, "You have existing open orders, so position mode cannot be switched")
    raise Refusal(110029, "Hedge mode is not supported for this symbol.")


def trading_stop(context: Context) -> Result:
    """Set, change or take away the stops of a position."""
    symbol = context.symbol()
    params, engine = context.params, context.engine
    one_way(params)
    mode = choice(params, "tpslMode", ("Full", "Partial"), "Full")
    account, contract, position = engine.account, engine.contracts[symbol], engine.account.positions[symbol]
    if not position.size:
        raise Refusal(10001, "can not set tp/sl/ts for zero position")
    quote = context.quote(symbol)
    take, stop = number(params, "takeProfit"), number(params, "stopLoss")
    tp_by = choice(params, "tpTriggerBy", TRIGGERS, "LastPrice")
    sl_by = choice(params, "slTriggerBy", TRIGGERS, "LastPrice")
    side = side_of(position)
    check_levels(side, take or None, None, quote.price(tp_by), contract)
    check_levels(side, None, stop or None, quote.price(sl_by), contract)
    if mode == "Partial":
        _partial(context, (("Take", take, tp_by, "tp"), ("Stop", stop, sl_by, "sl")))
        return {}
    wishes = _whole(context, take, stop, tp_by, sl_by)
    if not wishes:
        raise Refusal(34040, "not modified")
    for wish in wishes:
        if wish.price:
            stops.place(account, position, wish, context.now_ms, quote.last)
            continue
        gone = stops.standing(account, symbol, wish.kind)
        if gone is not None:
            gone.cancel("CancelByUser", "EC_PerCancelRequest")
            account.changed(gone, context.now_ms)
    tell_position(account, position, context.now_ms)
    return {}


def _whole(
    context: Context, take: Decimal | None, stop: Decimal | None, tp_by: str, sl_by: str
) -> list[stops.StopWish]:
    """Return what changes of the whole-position stops."""
    symbol, params = context.symbol(), context.params
    contract, account = context.engine.contracts[symbol], context.engine.account
    trail, active = number(params, "trailingStop"), number(params, "activePrice") or None
    if trail and not is_multiple(trail, contract.rules.tick):
        raise wrong("trailingStop invalid")
    wishes = []
    for kind, level, by in (
        ("TakeProfit", take, tp_by),
        ("StopLoss", stop, sl_by),
        ("TrailingStop", trail, "LastPrice"),
    ):
        if level is None:
            continue
        old = stops.standing(account, symbol, kind)
        if old is None:
            same = not level
        elif kind == "TrailingStop":
            same = (old.trail, old.active_price) == (level, active)
        else:
            same = (old.trigger_price, old.trigger_by) == (level, by)
        if not same:
            wishes.append(stops.StopWish(kind, level, by, active_price=active if kind == "TrailingStop" else None))
    return wishes


def _partial(context: Context, wanted: tuple[tuple[str, Decimal | None, str, str], ...]) -> None:
    """Set stops for a part of the position."""
    symbol, params = context.symbol(), context.params
    account, contract = context.engine.account, context.engine.contracts[symbol]
    position, wishes = account.positions[symbol], []
    for name, level, by, prefix in wanted:
        if not level:
            continue
        qty = required_number(params, f"{prefix}Size")
        if not qty or qty > abs(position.size) or not is_multiple(qty, contract.rules.step):
            raise wrong(f"{prefix}Size invalid")
        limit = None
        if choice(params, f"{prefix}OrderType", ("Market", "Limit"), "Market") == "Limit":
            limit = required_number(params, f"{prefix}LimitPrice")
        kind = "PartialTakeProfit" if name == "Take" else "PartialStopLoss"
        wishes.append(stops.StopWish(kind, level, by, qty=qty, limit=limit))
    if not wishes:
        raise Refusal(34040, "not modified")
    standing = [order for order in stops.on_position(account, symbol) if not order.whole]
    if len(standing) + len(wishes) > MAX_PARTIAL_STOPS:
        raise Refusal(110061, "Not allowed to have more than 20 TP/SLs under Partial tpSlMode")
    for wish in wishes:
        stops.place(account, position, wish, context.now_ms, context.quote(symbol).last)
    tell_position(account, position, context.now_ms)


def wallet_balance(context: Context) -> Result:
    """Return the account and its coins."""
    if context.params.get("accountType") != "UNIFIED":
        raise wrong("accountType only support UNIFIED.")
    asked = context.params.get("coin")
    coins = frozenset(str(asked).split(",")) if asked else None
    account, marks = context.engine.account, context.engine.marks(context.now_ms)
    return {"list": [wallet_row(account, marks, coins)]}


def account_info(context: Context) -> Result:
    """Return the margin mode and status."""
    return {
        "marginMode": "REGULAR_MARGIN",
        "updatedTime": str(context.now_ms),
        "unifiedMarginStatus": 5,
        "dcpStatus": "OFF",
        "timeWindow": 10,
        "smpGroup": 0,
        "isMasterTrader": False,
        "spotHedgingStatus": "OFF",
    }


def set_margin_mode(context: Context) -> Result:
    """Keep cross margin, the only mode here."""
    mode = choice(context.params, "setMarginMode", ("ISOLATED_MARGIN", "REGULAR_MARGIN", "PORTFOLIO_MARGIN"))
    if mode == "REGULAR_MARGIN":
        raise Refusal(110026, "Cross/isolated margin mode has not been modified.")
    raise Refusal(110073, "Set margin mode failed")


def fee_rate(context: Context) -> Result:
    """Return the fees."""
    symbols = [context.symbol()] if context.params.get("symbol") else sorted(context.engine.contracts)
    linear(context.params)
    account = context.engine.account
    rates = {"takerFeeRate": text(account.taker), "makerFeeRate": text(account.maker)}
    return {"category": "linear", "list": [{"symbol": name, "baseCoin": "", **rates} for name in symbols]}


def transaction_log(context: Context) -> Result:
    """List the changes of the wallets, newest first."""
    params, account = context.params, context.engine.account
    if params.get("accountType") not in (None, "", "UNIFIED"):
        raise wrong("accountType only support UNIFIED.")
    start, end = time_window(params, context.now_ms, WEEK_MS, DAY_MS)

    def listed(row: LogRow) -> bool:
        return (
            start <= row.ts <= end
            and params.get("currency") in (None, "", row.coin)
            and params.get("type") in (None, "", row.kind)
            and (not params.get("category") or bool(row.symbol))
            and (not params.get("baseCoin") or row.symbol == f"{params['baseCoin']}USDT")
        )

    rows, cursor = page(context, [row for row in account.log if listed(row)], lambda row: row.number, 20, 50)
    return {"nextPageCursor": cursor, "list": [row.row(account.uid) for row in rows]}


def query_api(context: Context) -> Result:
    """Describe the key that asks."""
    return context.key.row(context.now_ms)


def disconnect_protection(_context: Context) -> Result:
    """Refuse: an account manager has to enable it."""
    raise Refusal(10005, "Permission denied, please check your API key permissions.")


HANDLERS: Final[Handlers] = {
    ("GET", "/v5/position/list"): positions,
    ("POST", "/v5/position/set-leverage"): set_leverage,
    ("POST", "/v5/position/switch-mode"): switch_mode,
    ("POST", "/v5/position/trading-stop"): trading_stop,
    ("GET", "/v5/account/wallet-balance"): wallet_balance,
    ("GET", "/v5/account/info"): account_info,
    ("POST", "/v5/account/set-margin-mode"): set_margin_mode,
    ("GET", "/v5/account/fee-rate"): fee_rate,
    ("GET", "/v5/account/transaction-log"): transaction_log,
    ("GET", "/v5/user/query-api"): query_api,
    ("POST", "/v5/order/disconnected-cancel-all"): disconnect_protection,
}
