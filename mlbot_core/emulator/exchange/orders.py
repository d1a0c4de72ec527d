"""One order: its state, and how it looks on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal

from mlbot_core.emulator.exchange.numbers import ZERO, optional, text

Side = Literal["Buy", "Sell"]
Row = dict[str, Any]

OPEN: Final = ("New", "PartiallyFilled", "Untriggered")
RESTING: Final = ("New", "PartiallyFilled")
# Kinds of orders that belong to a position and end with it.
POSITION_STOPS: Final = ("TakeProfit", "StopLoss", "TrailingStop", "PartialTakeProfit", "PartialStopLoss")
OPPOSITE: Final[dict[Side, Side]] = {"Buy": "Sell", "Sell": "Buy"}
SIGN: Final[dict[str, int]] = {"Buy": 1, "Sell": -1}


@dataclass
class Order:
    """An order that was accepted. Prices in USDT, quantities in coins, times in UTC ms.

    ``stop_type`` is empty for a plain order, ``Stop`` for a conditional one and one of :data:`POSITION_STOPS` for
    what hangs on a position. ``whole`` says that its quantity is whatever the position has. ``limit`` is the worst
    price that it may trade at: the order price, or the cap of a market order.
    """

    order_id: str
    link_id: str
    symbol: str
    side: Side
    kind: Literal["Market", "Limit"]
    qty: Decimal
    limit: Decimal
    created_ms: int
    updated_ms: int
    number: int
    tif: str = "GTC"
    status: str = "New"
    filled: Decimal = ZERO
    filled_value: Decimal = ZERO
    fee: Decimal = ZERO
    closed_pnl: Decimal = ZERO
    reduce_only: bool = False
    close_on_trigger: bool = False
    take_profit: Decimal | None = None
    stop_loss: Decimal | None = None
    tp_by: str = "LastPrice"
    sl_by: str = "LastPrice"
    stop_type: str = ""
    whole: bool = False
    trigger_price: Decimal | None = None
    trigger_direction: int = 0
    trigger_by: str = ""
    trail: Decimal | None = None
    active_price: Decimal | None = None
    cap_type: str = ""
    cap_value: str = ""
    create_type: str = "CreateByUser"
    cancel_type: str = "UNKNOWN"
    reject_reason: str = "EC_NoError"
    last_on_created: Decimal | None = None
    visible_ms: int = 0
    closed_ms: int = 0
    # Faults: how much may be filled before the rest is cancelled.
    fill_cap: Decimal | None = None

    @property
    def sign(self) -> int:
        """+1 for a buy, -1 for a sell."""
        return SIGN[self.side]

    @property
    def leaves(self) -> Decimal:
        """Coins still to trade; none once it is closed."""
        return self.qty - self.filled if self.status in OPEN else ZERO

    @property
    def is_open(self) -> bool:
        """Whether it may still trade."""
        return self.status in OPEN

    def cancel(self, cancel_type: str, reason: str = "EC_NoError") -> None:
        """End it; one that has not been triggered is ``Deactivated``."""
        self.status = "Deactivated" if self.status == "Untriggered" else "Cancelled"
        self.cancel_type, self.reject_reason = cancel_type, reason

    def row(self) -> Row:
        """Return the order as ``order/realtime`` lists it."""
        return {
            "orderId": self.order_id,
            "orderLinkId": self.link_id,
            "blockTradeId": "",
            "symbol": self.symbol,
            "price": text(self.limit) if self.kind == "Limit" or not self.trigger_price else "0",
            "qty": text(self.qty),
            "side": self.side,
            "isLeverage": "",
            "positionIdx": 0,
            "orderStatus": self.status,
            "createType": self.create_type,
            "cancelType": self.cancel_type,
            "rejectReason": self.reject_reason,
            "avgPrice": text(self.filled_value / self.filled) if self.filled else "",
            "leavesQty": text(self.leaves),
            "leavesValue": text(self.leaves * self.limit),
            "cumExecQty": text(self.filled),
            "cumExecValue": text(self.filled_value),
            "cumExecFee": text(self.fee),
            "timeInForce": self.tif,
            "orderType": self.kind,
            "stopOrderType": self.stop_type,
            "orderIv": "",
            "marketUnit": "",
            "slippageToleranceType": self.cap_type or "UNKNOWN",
            "slippageTolerance": self.cap_value,
            "triggerPrice": optional(self.trigger_price),
            "takeProfit": optional(self.take_profit),
            "stopLoss": optional(self.stop_loss),
            "tpTriggerBy": self.tp_by if self.take_profit else "",
            "slTriggerBy": self.sl_by if self.stop_loss else "",
            "triggerDirection": self.trigger_direction,
            "triggerBy": self.trigger_by,
            "lastPriceOnCreated": optional(self.last_on_created),
            "reduceOnly": self.reduce_only,
            "closeOnTrigger": self.close_on_trigger,
            "placeType": "",
            "smpType": "None",
            "smpGroup": 0,
            "smpOrderId": "",
            "tpslMode": ("Partial" if self.stop_type.startswith("Partial") else "Full")
            if self.take_profit or self.stop_loss or self.stop_type in POSITION_STOPS
            else "",
            "tpLimitPrice": "",
            "slLimitPrice": "",
            "createdTime": str(self.created_ms),
            "updatedTime": str(self.updated_ms),
            "cumFeeDetail": {"USDT": text(self.fee)} if self.filled else {},
            "extraFees": "",
            "rpiTakerAccess": False,
            "rpiMatchedQty": "0",
        }

    def event(self) -> Row:
        """Return the order as the ``order`` stream pushes it."""
        return {
            **self.row(),
            "category": "linear",
            "closedPnl": text(self.closed_pnl),
            "feeCurrency": "USDT",
        }


@dataclass(frozen=True)
class Execution:
    """One row of the execution list: a fill, a funding payment or what the exchange did to a position.

    ``fee`` is positive when it was paid. ``leaves`` is what the order still had to trade afterwards.
    """

    exec_id: str
    kind: str
    order: Order | None
    symbol: str
    side: Side
    price: Decimal
    qty: Decimal
    value: Decimal
    fee: Decimal
    fee_rate: Decimal
    maker: bool
    ts: int
    mark: Decimal
    closed: Decimal
    pnl: Decimal
    seq: int
    leaves: Decimal = ZERO
    create_type: str = ""

    def row(self) -> Row:
        """Return it as ``execution/list`` lists it."""
        order = self.order
        return {
            "symbol": self.symbol,
            "orderType": order.kind if order else ("UNKNOWN" if self.kind == "Funding" else "Market"),
            "underlyingPrice": "",
            "orderLinkId": order.link_id if order else "",
            "side": self.side,
            "indexPrice": "",
            "orderId": order.order_id if order else self.exec_id,
            "stopOrderType": (order.stop_type if order else "") or "UNKNOWN",
            "leavesQty": text(self.leaves),
            "execTime": str(self.ts),
            "feeCurrency": "USDT",
            "isMaker": self.maker,
            "execFee": text(self.fee),
            "feeRate": text(self.fee_rate),
            "execId": self.exec_id,
            "tradeIv": "",
            "blockTradeId": "",
            "markPrice": text(self.mark),
            "execPrice": text(self.price),
            "markIv": "",
            "orderQty": text(order.qty if order else self.qty),
            "orderPrice": text(order.limit if order else self.price),
            "execValue": text(self.value),
            "execType": self.kind,
            "execQty": text(self.qty),
            "closedSize": text(self.closed),
            "extraFees": "",
            "seq": self.seq,
            "createType": order.create_type if order else self.create_type,
        }

    def event(self) -> Row:
        """Return it as the ``execution`` stream pushes it."""
        more = {"category": "linear", "isLeverage": "0", "marketUnit": "", "execPnl": text(self.pnl), "extraFees": []}
        return {**self.row(), **more}
