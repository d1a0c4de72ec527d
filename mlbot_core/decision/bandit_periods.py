"""What a position's period earned on a real account: from its fills and from marks of the account. Pure.

The same quantities as a backtest's periods have: log growth of NAV net of every cost, and the deepest fall of NAV from
its peak within the period. They are made of the period's own coins, so deposits, withdrawals and what the period before
left behind do not count. A fill that turns the position belongs to the one in proportion to the coins that it closes,
to the other in proportion to those that it opens, and its fee likewise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

_LEAST: Final = 1e-12


class Flow(NamedTuple):
    """A fill, or a funding payment.

    Parameters
    ----------
    coins
        Signed, bought or sold; 0 for a funding payment.
    price
        USD a coin.
    fee
        USD, positive when paid.
    side
        -1, +1: side of the position that paid funding; of a fill, its own.
    """

    coins: float
    price: float
    fee: float
    side: int


class Look(NamedTuple):
    """The account at one of its decisions.

    Parameters
    ----------
    mark
        Mark price, USD; NaN unknown.
    before
        What was traded and paid since the decision before, in the exchange's order.
    """

    mark: float
    before: Sequence[Flow]


def earned(side: int, coins: float, mark: float, nav: float, looks: Sequence[Look]) -> tuple[float, float] | None:
    """Return log growth and deepest fall (fraction) of a period; None where that cannot be said.

    Parameters
    ----------
    side
        -1 or +1, of the period.
    coins, mark, nav
        Position (signed), mark price and NAV (USD) at the decision that began it. Coins that were held on its side
        already count from this mark on.
    looks
        At every decision after that one, to the end of the period. What the period still holds at the last one is
        worth its mark.
    """
    if side not in (-1, 1) or not (math.isfinite(coins + mark + nav) and mark > 0.0 and nav > 0.0):
        return None
    held, total = max(side * coins, 0.0), coins
    cash = -held * mark * side
    top, fall, relative = 1.0, 0.0, 1.0
    for look in looks:
        for flow in look.before:
            if flow.coins == 0.0:
                cash -= flow.fee if flow.side == side and held > 0.0 else 0.0
                continue
            total += flow.coins
            own = max(side * total, 0.0)
            cash -= side * (own - held) * flow.price + flow.fee * abs(own - held) / abs(flow.coins)
            held = own
        if not (math.isfinite(look.mark) and look.mark > 0.0):
            if held > 0.0:
                continue
            worth = 0.0
        else:
            worth = side * held * look.mark
        relative = 1.0 + (cash + worth) / nav
        top = max(top, relative)
        fall = max(fall, 1.0 - relative / top)
    return math.log(max(relative, _LEAST)), fall
