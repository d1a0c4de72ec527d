"""One unified account: coins, positions, margins, and a log row for every change of a wallet."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from mlbot_core.emulator.exchange.numbers import ZERO, money, optional, text
from mlbot_core.emulator.exchange.orders import RESTING, Execution, Order, Side
from mlbot_core.emulator.exchange.position import Position
from mlbot_core.emulator.exchange.rules import MAKER_FEE, TAKER_FEE, Rules

Row = dict[str, Any]
SETTLE_COIN: Final = "USDT"


@dataclass(frozen=True)
class LogRow:
    """One change of a wallet: ``change = cash_flow + funding - fee`` and what was there afterwards."""

    number: int
    kind: str
    coin: str
    ts: int
    cash_flow: Decimal
    funding: Decimal
    fee: Decimal
    change: Decimal
    balance: Decimal
    symbol: str = ""
    side: str = "None"
    qty: Decimal = ZERO
    size: Decimal = ZERO
    price: Decimal | None = None
    rate: Decimal | None = None
    trade_id: str = ""
    order_id: str = ""
    link_id: str = ""

    def row(self, uid: int) -> Row:
        """Return it as ``transaction-log`` lists it."""
        return {
            "transSubType": "",
            "id": f"{uid}_{self.symbol or self.coin}_{self.number}",
            "symbol": self.symbol,
            "side": self.side,
            "funding": text(self.funding) if self.kind == "SETTLEMENT" else "",
            "orderLinkId": self.link_id,
            "orderId": self.order_id,
            "fee": text(self.fee),
            "change": text(self.change),
            "cashFlow": text(self.cash_flow),
            "transactionTime": str(self.ts),
            "type": self.kind,
            "feeRate": optional(self.rate),
            "bonusChange": "",
            "size": text(self.size),
            "qty": text(self.qty),
            "cashBalance": text(self.balance),
            "currency": self.coin,
            "category": "linear" if self.symbol else "",
            "tradePrice": optional(self.price),
            "tradeId": self.trade_id,
            "extraFees": "",
        }


@dataclass(frozen=True)
class Margin:
    """The account at given mark prices, USDT: balance = wallet + unrealised profit."""

    wallet: Decimal
    unrealised: Decimal
    position_im: Decimal
    order_im: Decimal
    maintenance: Decimal

    @property
    def balance(self) -> Decimal:
        """Margin balance."""
        return self.wallet + self.unrealised

    @property
    def initial(self) -> Decimal:
        """Initial margin of positions and orders."""
        return self.position_im + self.order_im

    @property
    def available(self) -> Decimal:
        """What is free for new orders; never negative."""
        return max(ZERO, self.balance - self.initial)


Emit = Callable[[str, Callable[[], Row], int], None]


class Account:
    """The state of one user, without any rule of matching.

    Parameters
    ----------
    uid
        User id.
    rules
        Contracts by symbol.
    seed
        Ids of orders and executions are made of it, the uid and a count.
    taker, maker
        Fees, fractions of value.
    """

    def __init__(
        self,
        uid: int,
        rules: Mapping[str, Rules],
        seed: int,
        taker: Decimal = TAKER_FEE,
        maker: Decimal = MAKER_FEE,
    ) -> None:
        self.uid = uid
        self.rules = rules
        self.taker = taker
        self.maker = maker
        self.wallet: dict[str, Decimal] = {SETTLE_COIN: ZERO}
        self.log: list[LogRow] = []
        self.positions = {symbol: Position(symbol) for symbol in rules}
        self.orders: dict[str, Order] = {}
        self.links: dict[str, str] = {}
        self.open: dict[str, Order] = {}
        self.executions: list[Execution] = []
        self.emit: Emit = _nobody
        self.marks_at: Callable[[int], Mapping[str, Decimal]] = lambda _ts: {}
        self._seed = seed
        self._numbers = {"order": 0, "exec": 0, "seq": 0}

    @property
    def numbers(self) -> dict[str, int]:
        """The counts so far: whoever restores an account sets them."""
        return self._numbers

    def next_number(self, kind: str) -> int:
        """Count up and return the number: of orders, executions or the cross sequence."""
        self._numbers[kind] += 1
        return self._numbers[kind]

    def new_id(self, kind: str, number: int) -> str:
        """Return the id of the n-th order or execution, the same in every run."""
        digest = hashlib.blake2b(f"{self._seed}/{self.uid}/{kind}/{number}".encode(), digest_size=16).digest()
        return str(uuid.UUID(bytes=digest))

    def add(self, order: Order) -> None:
        """Take in an order that was accepted."""
        self.orders[order.order_id] = order
        self.open[order.order_id] = order
        if order.link_id:
            self.links[order.link_id] = order.order_id

    def changed(self, order: Order, ts: int) -> None:
        """Note that an order changed, and tell the stream."""
        order.updated_ms = ts
        if not order.is_open:
            order.closed_ms = ts
            self.open.pop(order.order_id, None)
        self.emit("order", order.event, ts)

    def post(self, kind: str, coin: str, ts: int, **values: Any) -> LogRow:
        """Change a wallet and log it: ``cash_flow``, ``funding`` and ``fee`` make the change."""
        cash_flow, funding, fee = (money(values.pop(name, ZERO)) for name in ("cash_flow", "funding", "fee"))
        change = cash_flow + funding - fee
        self.wallet[coin] = self.wallet.get(coin, ZERO) + change
        row = LogRow(len(self.log) + 1, kind, coin, ts, cash_flow, funding, fee, change, self.wallet[coin], **values)
        self.log.append(row)
        return row

    def trade(
        self,
        order: Order | None,
        symbol: str,
        side: Side,
        qty: Decimal,
        price: Decimal,
        *,
        maker: bool,
        ts: int,
        mark: Decimal,
        kind: str = "Trade",
        log_kind: str = "TRADE",
        create_type: str = "",
        free: bool = False,
    ) -> Execution:
        """Book one fill: position, profit, fee (none where ``free``), execution, log row, events."""
        position = self.positions[symbol]
        rate = ZERO if free else self.maker if maker else self.taker
        value = qty * price
        fee = money(value * rate)
        closing = position.fill(1 if side == "Buy" else -1, qty, price, ts)
        position.book(closing.pnl - fee)
        position.seq = self.next_number("seq")
        if order is not None:
            order.filled += qty
            order.filled_value += value
            order.fee += fee
            order.closed_pnl += closing.pnl
        exec_id = self.new_id("exec", self.next_number("exec"))
        execution = Execution(
            exec_id,
            kind,
            order,
            symbol,
            side,
            price,
            qty,
            value,
            fee,
            rate,
            maker,
            ts,
            mark,
            closing.qty,
            closing.pnl,
            position.seq,
            order.qty - order.filled if order is not None else ZERO,
            create_type,
        )
        self.executions.append(execution)
        self.post(
            log_kind,
            SETTLE_COIN,
            ts,
            cash_flow=closing.pnl,
            fee=fee,
            symbol=symbol,
            side=side,
            qty=qty,
            size=position.size,
            price=price,
            rate=rate,
            trade_id=exec_id,
            order_id=order.order_id if order else "",
            link_id=order.link_id if order else "",
        )
        self.emit("execution", execution.event, ts)
        return execution

    def order_margin(self, symbol: str, extra: Order | None = None) -> Decimal:
        """Return the initial margin of resting orders in a symbol, USDT: that of the larger side.

        What only reduces the position takes none. Half-open conditional orders take none before they trigger.
        ``extra`` is counted as if it rested too.
        """
        position = self.positions[symbol]
        orders = [order for order in self.open.values() if order.symbol == symbol and order.status in RESTING]
        if extra is not None:
            orders.append(extra)
        sides: dict[str, tuple[Decimal, Decimal]] = {"Buy": (ZERO, ZERO), "Sell": (ZERO, ZERO)}
        for order in orders:
            if not order.reduce_only:
                qty, value = sides[order.side]
                left = order.qty - order.filled
                sides[order.side] = (qty + left, value + left * order.limit)
        most = ZERO
        for side, (qty, value) in sides.items():
            reducing = min(qty, abs(position.size)) if position.side and position.side != side else ZERO
            if qty > reducing:
                most = max(most, value * (qty - reducing) / qty)
        return money(most / position.leverage + most * self.taker) if most else ZERO

    def margin(self, marks: Mapping[str, Decimal], extra: Order | None = None) -> Margin:
        """Return the margins at mark prices by symbol; symbols without position and orders need none."""
        unrealised = position_im = order_im = maintenance = ZERO
        for symbol, position in self.positions.items():
            if position.size:
                value = abs(position.size) * marks[symbol]
                unrealised += position.unrealised(marks[symbol])
                position_im += value / position.leverage
                maintenance += self.rules[symbol].maintenance(value)
            if self.open or (extra is not None and extra.symbol == symbol):
                order_im += self.order_margin(symbol, extra if extra and extra.symbol == symbol else None)
        return Margin(self.wallet[SETTLE_COIN], money(unrealised), money(position_im), order_im, money(maintenance))


def _nobody(_topic: str, _row: Callable[[], Row], _ts: int) -> None:
    """Nobody listens."""
