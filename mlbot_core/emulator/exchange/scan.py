"""Finding, among many instants, the first at which something happens to an account."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mlbot_core.emulator.bybit_market import FUNDING_MS
from mlbot_core.emulator.exchange import stops
from mlbot_core.emulator.exchange.account import SETTLE_COIN, Account
from mlbot_core.emulator.exchange.feed import Floats, Ints, Ticks
from mlbot_core.emulator.exchange.orders import RESTING, Order
from mlbot_core.emulator.exchange.rules import Rules

Flags = npt.NDArray[np.bool_]


def active_symbols(account: Account) -> list[str]:
    """Return the symbols in which time alone can change something, sorted."""
    with_orders = {order.symbol for order in account.open.values()}
    return sorted(with_orders | {symbol for symbol, position in account.positions.items() if position.size})


def first_event(account: Account, ticks: Mapping[str, Ticks], after_ms: int) -> int | None:
    """Return the first instant later than ``after_ms`` at which an order, a stop, funding or the margin is due."""
    found: list[int] = []
    later = {symbol: _later(part, after_ms) for symbol, part in ticks.items()}
    for symbol, part in later.items():
        if len(part.ts) and (hits := np.flatnonzero(_due(account, symbol, part))).size:
            found.append(int(part.ts[hits[0]]))
    held = [symbol for symbol in later if account.positions[symbol].size]
    if held and (ts := _liquidation(account, {symbol: later[symbol] for symbol in held}, after_ms)) is not None:
        found.append(ts)
    return min(found) if found else None


def _later(ticks: Ticks, after_ms: int) -> Ticks:
    begin = int(np.searchsorted(ticks.ts, after_ms, side="right"))
    if not begin:
        return ticks
    return Ticks(ticks.ts[begin:], ticks.last[begin:], ticks.mark[begin:], ticks.index[begin:], ticks.volume[begin:])


def _due(account: Account, symbol: str, ticks: Ticks) -> Flags:
    position = account.positions[symbol]
    due: Flags = (ticks.ts % FUNDING_MS == 0) & bool(position.size)
    for order in account.open.values():
        if order.symbol != symbol:
            continue
        if order.status in RESTING:
            limit = float(order.limit)
            due |= ticks.last <= limit if order.side == "Buy" else ticks.last >= limit
        elif order.trail is not None:
            due |= stops.trailing_hits(position, order, ticks.last)
        else:
            due |= triggered(order, ticks)
    return due


def triggered(order: Order, ticks: Ticks) -> Flags:
    """Return, per instant, whether the price that an order watches has reached its trigger."""
    source = {"LastPrice": ticks.last, "MarkPrice": ticks.mark, "IndexPrice": ticks.index}[order.trigger_by]
    level = float(order.trigger_price or 0)
    return source >= level if order.trigger_direction == 1 else source <= level


def _liquidation(account: Account, ticks: Mapping[str, Ticks], after_ms: int) -> int | None:
    """Return the first instant at which the maintenance margin is not below the margin balance."""
    ts: Ints = np.unique(np.concatenate([part.ts for part in ticks.values()]))
    if not len(ts):
        return None
    balance: Floats = np.full(len(ts), float(account.wallet[SETTLE_COIN]))
    need: Floats = np.zeros(len(ts))
    for symbol, part in ticks.items():
        position = account.positions[symbol]
        at = np.searchsorted(part.ts, ts, side="right") - 1
        mark: Floats = np.empty(len(ts))
        if (before := at < 0).any():  # only where contracts do not share a grid
            mark[before] = float(account.marks_at(after_ms)[symbol])
        mark[~before] = part.mark[at[~before]]
        value = mark * abs(float(position.size))
        profit = value - float(position.entry_value)
        balance += profit if position.size > 0 else -profit
        need += _maintenance(account.rules[symbol], value)
    hits = np.flatnonzero(need >= balance)
    return int(ts[hits[0]]) if hits.size else None


def _maintenance(rules: Rules, value: Floats) -> Floats:
    bounds = np.array([float(tier.up_to) for tier in rules.tiers])
    at = np.minimum(np.searchsorted(bounds, value), len(bounds) - 1)
    rates = np.array([float(tier.rate) for tier in rules.tiers])
    deductions = np.array([float(tier.deduction) for tier in rules.tiers])
    return np.asarray(value * rates[at] - deductions[at])
