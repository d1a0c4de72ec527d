"""The exchange is the truth: everything that it tells is taken into the book, and what does not fit is named.

==========================  =========================================================================================
difference                  meaning
==========================  =========================================================================================
``opening_*``               the book cannot begin: the account is not flat, has orders, or moves while it is looked at
``position``                the executions since the beginning make another position than the exchange shows
``wallet``                  the log since the beginning makes another balance than the wallet's
``unresolved/…``            nobody can tell yet what became of an order of ours
``stray/…``                 an order of ours is at work for an intent that was given up
``foreign_order/…``         an open order that is not ours
``foreign_fill/…``          a trade of an order that is not ours; named once
``other_coin/…``            the account holds another coin, or
``other_position/…``        a position in another contract: it must be a dedicated one
``status``                  the exchange is liquidating or deleveraging the position
==========================  =========================================================================================

Rows that come late are waited for. What is left raises the flag ``reconcile`` in the book (only reductions from there
on) and an alert, one for each difference; the next reconciliation without any lowers the flag. Executions that the
exchange made by itself are told once, and all but a deleveraging halt trading.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mlbot_core.clock import Clock
from mlbot_core.decision.state import RECONCILE
from mlbot_core.execution.broker import Broker
from mlbot_core.execution.flatten import is_emergency
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_book import COIN, Opening
from mlbot_core.execution.ledger_folds import fold_wallet
from mlbot_core.execution.ledger_risk import AlertLevel
from mlbot_core.execution.marking import OVERLAP_MS, RECONCILER, SAME, pull_wallet_log
from mlbot_core.execution.types import ExecType, OrderSnapshot, PositionSnapshot, WalletSnapshot
from mlbot_core.execution.working import Sight, Working
from mlbot_core.timeframe import DAY_MS

# How long rows that are missing are waited for.
LATE_MS: Final = 12_000
_PAUSES_S: Final = (0.25, 0.5, 1.0, 2.0)
_LATE: Final = ("position", "wallet")
_OPENING_TRIES: Final = 6
_KEY: Final = 128


@dataclass(frozen=True)
class Difference:
    """One thing in which book and exchange differ; ``key`` names it, the same for the same thing."""

    key: str
    message: str


@dataclass(frozen=True)
class Reconciliation:
    """What was found.

    Parameters
    ----------
    differences
        Empty when book and exchange agree.
    position, wallet
        As the exchange shows them.
    strays
        Ids of orders of ours that are at work for intents which were given up.
    """

    differences: tuple[Difference, ...]
    position: PositionSnapshot
    wallet: WalletSnapshot
    strays: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether book and exchange agree."""
        return not self.differences


def reconcile(
    ledger: ExecutionLedger,
    broker: Broker,
    clock: Clock,
    symbol: str,
    *,
    since_ms: int | None = None,
    patience_ms: int = LATE_MS,
) -> Reconciliation:
    """Take in what the exchange tells, compare, and raise or lower the flag; safe to call at any moment.

    Parameters
    ----------
    since_ms
        Rows up to then were read completely by the caller, UTC ms; None where that is not known.
    patience_ms
        How long late rows are waited for; not at all while the flag is up already.

    Raises
    ------
    BrokerError
        If a question stayed without an answer: nothing can be said.
    LedgerConflictError
        If what the exchange tells contradicts the book: halt.
    """
    opening = ledger.opening(symbol)
    if opening is None:
        problem = _open(ledger, broker, clock, symbol)
        if problem is not None:
            found = Reconciliation((problem,), broker.position(symbol), broker.wallet())
            _tell(ledger, symbol, found.differences)
            return found
        opening = ledger.opening(symbol)
        assert opening is not None
    unresolved = _settle(ledger, broker, clock, symbol)
    known = bool(ledger.flags(symbol, RECONCILER))
    if known:
        # what is missing may be older than the overlap
        since_ms = clock.now_ms() - 7 * DAY_MS
    give_up = clock.now_ms() + (0 if known else patience_ms)
    pauses = iter(_PAUSES_S)
    while True:
        found = _compare(ledger, broker, symbol, opening, since_ms, clock.now_ms(), deep=known)
        late = any(difference.key.split("/")[0] in _LATE for difference in found.differences)
        if not late or clock.now_ms() >= give_up:
            break
        clock.sleep(next(pauses, _PAUSES_S[-1]))
    found = Reconciliation((*unresolved, *found.differences), found.position, found.wallet, found.strays)
    _tell(ledger, symbol, found.differences)
    _tell_of_exchange(ledger, symbol, opening)
    return found


def _open(ledger: ExecutionLedger, broker: Broker, clock: Clock, symbol: str) -> Difference | None:
    """Begin the book; return why it cannot."""
    seen = "nothing was seen"
    for pause_s in (0.0, *_PAUSES_S, 2.0)[:_OPENING_TRIES]:
        clock.sleep(pause_s)
        wallet, position, orders = broker.wallet(), broker.position(symbol), broker.open_orders(symbol)
        balance = wallet.coin(COIN).wallet_balance
        if not position.flat:
            return Difference(
                f"opening_position/{position.size}",
                f"{symbol}: {position.size} coins are held and the book does not know them; close the position "
                "(`mlbot flatten`, or by hand at the exchange), the book then begins by itself",
            )
        if orders:
            return Difference(
                f"opening_orders/{orders[0].order_id}",
                f"{symbol}: {len(orders)} orders are open and the book does not know them; cancel them "
                "(`mlbot flatten`, or by hand at the exchange), the book then begins by itself",
            )
        since = clock.now_ms() - DAY_MS
        executions, events = broker.executions_since(symbol, since), broker.wallet_events_since(since)
        after, again = broker.wallet(), broker.position(symbol)
        log = fold_wallet(event for event in events if event.coin == COIN).get(COIN)
        if (
            again.flat
            and after.coin(COIN).wallet_balance == balance
            and (log is None or abs(log.balance - balance) <= SAME)
        ):
            if ledger.open_book(symbol, after.at_ms, balance, executions, events, since) is not None:
                return None
            seen = "somebody else saw more"
            continue
        seen = f"balance {balance}, then {after.coin(COIN).wallet_balance}; log {None if log is None else log.balance}"
    return Difference(
        "opening_wallet", f"{symbol}: the account moves while it is looked at, or its log is late ({seen}); look again"
    )


def _settle(ledger: ExecutionLedger, broker: Broker, clock: Clock, symbol: str) -> tuple[Difference, ...]:
    """Look up every order that is not proven over."""
    working = Working(ledger, broker, clock, lambda: False)
    unknown = []
    for state in ledger.open_intents(symbol):
        for attempt in state.attempts:
            if not attempt.over and working.look_up(state, attempt) is Sight.UNKNOWN:
                link = attempt.order_link_id
                unknown.append(Difference(f"unresolved/{link}", f"what became of order {link} cannot be found out yet"))
    return tuple(unknown)


def _compare(
    ledger: ExecutionLedger,
    broker: Broker,
    symbol: str,
    opening: Opening,
    since_ms: int | None,
    now_ms: int,
    *,
    deep: bool,
) -> Reconciliation:
    orders = broker.open_orders(symbol)
    wallet, position, others = broker.wallet(), broker.position(symbol), broker.positions()
    if orders:
        ledger.observe_orders(orders)
    newest = 0 if deep else ledger.newest_execution_ms() or 0
    known = max(newest, opening.at_ms, since_ms or 0)
    executions = broker.executions_since(symbol, known - OVERLAP_MS)
    if executions:
        ledger.record_executions(executions)
    pull_wallet_log(ledger, broker, symbol, since_ms, deep=deep)
    _see_ends(ledger, broker, symbol, now_ms)
    differences: list[Difference] = []
    held = ledger.held(symbol)
    if held.size != position.size:
        differences.append(
            Difference(
                f"position/{held.size}/{position.size}/{ledger.newest_fill()}",
                f"{symbol}: the executions make a position of {held.size}, the exchange shows {position.size}",
            )
        )
    log, coin = ledger.balance(symbol), wallet.coin(COIN)
    if log is not None and abs(log[0] - coin.wallet_balance) > SAME:
        differences.append(
            Difference(
                f"wallet/{log[1]}/{coin.wallet_balance - log[0]}",
                f"{COIN}: the log makes a balance of {log[0]}, the wallet shows {coin.wallet_balance}",
            )
        )
    strays = [order for order in orders if _stray(ledger, order)]
    differences += [
        Difference(f"stray/{order.order_link_id}", f"order {order.order_link_id} is at work for a closed intent")
        for order in strays
    ]
    differences += [
        Difference(
            f"foreign_order/{order.order_id}",
            f"{symbol}: order {order.order_id} ({order.side} {order.qty}) is open and not ours; cancel it, and keep "
            "the account for this program",
        )
        for order in orders
        if _foreign(ledger, order)
    ]
    differences += _foreign_fills(ledger, symbol, opening)
    differences += _account(wallet, others, position, symbol)
    return Reconciliation(tuple(differences), position, wallet, tuple(order.order_link_id for order in strays))


def _see_ends(ledger: ExecutionLedger, broker: Broker, symbol: str, now_ms: int) -> None:
    """Take in the ends of orders whose intents were completed or given up before they could be seen."""
    for link in ledger.unseen_ends(symbol, now_ms - DAY_MS):
        snapshot = broker.order(symbol, link)
        if snapshot is not None:
            ledger.observe_order(snapshot)


def _stray(ledger: ExecutionLedger, order: OrderSnapshot) -> bool:
    found = ledger.attempt(order.order_link_id) if order.order_link_id else None
    return found is not None and found[0].closing is not None and not found[1].over


def _foreign(ledger: ExecutionLedger, order: OrderSnapshot) -> bool:
    if is_emergency(order.order_link_id):
        return False
    if order.order_link_id:
        return ledger.attempt(order.order_link_id) is None
    # stops that hang on a position have no id of ours
    return not (order.reduce_only and order.stop_order_type not in ("", "Stop"))


def _foreign_fills(ledger: ExecutionLedger, symbol: str, opening: Opening) -> Iterable[Difference]:
    told: dict[str, Difference] = {}
    own = ledger.own_links()
    for _, fill in ledger.fills_after(symbol, opening.fill_seq):
        name = fill.order_id or fill.exec_id
        if fill.kind not in (ExecType.TRADE, ExecType.BLOCK_TRADE, ExecType.MOVE_POSITION) or name in told:
            continue
        ours = fill.stop_type or is_emergency(fill.order_link_id)
        if ours or fill.order_link_id in own:
            continue
        key = f"foreign_fill/{name}"
        if not ledger.has_alert(_alert_key(key)):
            told[name] = Difference(
                key,
                f"{symbol}: order {name} ({fill.side} {fill.qty} at {fill.price}) traded and is not ours; keep the "
                "account for this program",
            )
    return told.values()


def _account(
    wallet: WalletSnapshot, others: tuple[PositionSnapshot, ...], position: PositionSnapshot, symbol: str
) -> Iterable[Difference]:
    for coin in wallet.coins:
        if coin.coin != COIN and (coin.wallet_balance or coin.equity):
            yield Difference(
                f"other_coin/{coin.coin}",
                f"the account holds {coin.wallet_balance} {coin.coin}; it must hold nothing but {COIN}: move it away",
            )
    for other in others:
        if other.symbol != symbol:
            yield Difference(
                f"other_position/{other.symbol}",
                f"the account holds {other.size} {other.symbol}; only {symbol} is traded here: close it",
            )
    if position.status not in ("", "Normal"):
        yield Difference(
            f"status/{position.status}", f"{symbol}: the exchange says {position.status} of the position; look at it"
        )


def _tell(ledger: ExecutionLedger, symbol: str, differences: Iterable[Difference]) -> None:
    found = list(differences)
    # alerts first: a flag without one would not be explained
    for difference in found:
        ledger.raise_alert(AlertLevel.CRITICAL, RECONCILER, difference.message, _alert_key(difference.key))
    reason = "; ".join(difference.message for difference in found)[:1_000]
    ledger.set_flags(symbol, RECONCILER, RECONCILE if found else 0, reason)


def _tell_of_exchange(ledger: ExecutionLedger, symbol: str, opening: Opening) -> None:
    for _, fill in ledger.fills_after(symbol, opening.fill_seq):
        if not fill.kind.by_exchange:
            continue
        key = f"by_exchange/{fill.exec_id}"
        if ledger.has_alert(key):
            continue
        message = f"{symbol}: the exchange itself traded {fill.side} {fill.qty} at {fill.price} ({fill.kind})"
        if fill.kind is not ExecType.ADL_TRADE:
            # before the alert: it says that this was done
            ledger.raise_error(symbol, "reconcile", message)
            message += "; trading is halted until a person re-arms it"
        ledger.raise_alert(AlertLevel.CRITICAL, "by_exchange", message, key)


def _alert_key(key: str) -> str:
    return f"{RECONCILER}/{key}"[:_KEY]
